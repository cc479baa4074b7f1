"""Source logs with holes: numbered records in batches, and between them control batches, which no consumer ever sees.

A marker that ends a transaction takes one offset and holds no record, whether or not there was a transaction. So a few
requests make a log whose offsets have thousands of gaps, and the record with the number n is still the n-th one.
"""

from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any, Self

from tests.broker.batches import Entry, make_batch
from tests.broker.raw import WRITE_TXN_MARKERS, RawClient, appended
from tests.harness.kafka import KafkaCluster

UNANSWERED_MAX = 100

Batch = tuple[int, int]  # base offset, count


class GappyLog:
    """Writes one topic, by one connection, in the order of the calls; a context manager. Use it from one thread.

    Answers are read later: `settle` waits for all of them. An answer that is none of success is an AssertionError.
    """

    def __init__(self, cluster: KafkaCluster, topic: str) -> None:
        self.batches: defaultdict[int, list[Batch]] = defaultdict(list)  # by partition, those that were answered
        self._topic = topic
        self._next: defaultdict[int, int] = defaultdict(int)
        self._client = RawClient(cluster)
        self._producer = self._client.init_producer()
        self._unanswered: deque[Callable[[Any], None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._client.close()

    def records(self, partition: int, count: int) -> None:
        """One batch of the next `count` records."""
        first = self._next[partition]
        self._next[partition] += count
        values = [b"%d:%d" % (partition, number) for number in range(first, first + count)]
        batch = make_batch([Entry(value, key=value) for value in values])
        self._client.send_batch(self._topic, batch.encode(), partition)

        def check(answer: Any) -> None:
            (found,) = appended(answer).values()
            assert found.error == 0
            self.batches[partition].append((found.base_offset, count))

        self._owe(check)

    def holes(self, partition: int, count: int = 1) -> None:
        """So many offsets without a record."""
        place = {"name": self._topic, "partition_indexes": [partition]}
        marker = {**self._producer._asdict(), "transaction_result": True, "topics": [place]}
        self._client.send(WRITE_TXN_MARKERS, 1, {"markers": [marker] * count})

        def check(answer: Any) -> None:
            codes = [row["topics"][0]["partitions"][0]["error_code"] for row in answer["markers"]]
            assert set(codes) == {0}

        self._owe(check)

    def settle(self) -> None:
        while self._unanswered:
            self._read_one()

    def _owe(self, check: Callable[[Any], None]) -> None:
        self._unanswered.append(check)
        if len(self._unanswered) > UNANSWERED_MAX:
            self._read_one()

    def _read_one(self) -> None:
        self._unanswered.popleft()(self._client.receive())
