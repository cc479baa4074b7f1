"""A topic read from its start to its end as it is at that moment, by whoever has a question. Blocks meanwhile.

No group is joined and nothing is committed. Only committed records are read.
"""

import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from replicator.config.models import Cluster
from replicator.errors import ClusterError, ConfigError, NetworkError, ReplicatorError, Where

POLL_S = 0.1
RECORDS_A_POLL = 1_000
RESPONSE_BYTES_MAX = 128 << 20  # a single record may be as large as a request can be: 100 MiB
UNKNOWN_TOPIC = 3
GROUP_UNAUTHORIZED = 30
RETRIABLE = frozenset({5, 6, 7, 13, 78})  # a leader that moves, or does not know its end yet


class TopicLog:
    """One cluster's topics; a context manager. `timeout_s`: so long nothing may come before that is an error."""

    def __init__(self, cluster: Cluster, reader: str, timeout_s: float = 30) -> None:
        """Connects to nothing yet. `reader`: a group's name, for librdkafka wants one; it is never joined.

        Raises ConfigError for properties that librdkafka does not take.
        """
        self._cluster = cluster
        self._timeout_s = timeout_s
        try:
            self._consumer = Consumer(
                cluster.client_properties()
                | {
                    "group.id": reader,
                    "enable.auto.commit": False,
                    "enable.auto.offset.store": False,
                    "enable.partition.eof": True,
                    "auto.offset.reset": "error",
                    "isolation.level": "read_committed",
                    "fetch.wait.max.ms": 50,
                    "receive.message.max.bytes": RESPONSE_BYTES_MAX,
                }
            )
        except KafkaException as error:
            raise spelled(error.args[0], Where(cluster.alias)) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._consumer.close()

    def partitions(self, topic: str) -> list[int]:
        """Empty when there is no such topic. Raises ClusterError, NetworkError."""
        where = Where(self._cluster.alias, topic)
        try:
            found = self._consumer.list_topics(topic, self._timeout_s).topics[topic]
        except KafkaException as error:
            raise spelled(error.args[0], where) from None
        if found.error and found.error.code() == UNKNOWN_TOPIC:
            return []
        if found.error and found.error.code() not in RETRIABLE:
            raise spelled(found.error, where)
        return sorted(found.partitions)

    def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """Offsets of the first record and of the one that comes next. Raises ClusterError, NetworkError."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                found = self._consumer.get_watermark_offsets(TopicPartition(topic, partition), self._timeout_s)
                return found[0], found[1]
            except KafkaException as error:
                if error.args[0].code() not in RETRIABLE or time.monotonic() > deadline:
                    raise spelled(error.args[0], Where(self._cluster.alias, topic, partition)) from None
            time.sleep(POLL_S)

    def read(self, topic: str) -> Iterator[Message]:
        """Every record, in the order of its partition. Raises ClusterError, NetworkError."""
        bounds = {partition: self.bounds(topic, partition) for partition in self.partitions(topic)}
        ends = {partition: end for partition, (start, end) in bounds.items() if start < end}
        if ends:
            self._consumer.assign([TopicPartition(topic, partition, bounds[partition][0]) for partition in ends])
            try:
                yield from self._read_to(topic, ends)
            finally:
                self._consumer.unassign()

    def _read_to(self, topic: str, ends: dict[int, int]) -> Iterator[Message]:
        unfinished, trouble = set(ends), "nothing came"
        deadline = time.monotonic() + self._timeout_s
        while unfinished:
            messages = self._consumer.consume(RECORDS_A_POLL, POLL_S)
            for message in messages:
                partition, offset = message.partition() or 0, message.offset() or 0
                error = message.error()
                if error is None:
                    if offset < ends[partition]:
                        yield message
                    offset += 1
                elif error.code() != KafkaError._PARTITION_EOF:
                    trouble = self._trouble(error, Where(self._cluster.alias, topic, partition))
                    continue
                if offset >= ends[partition]:
                    unfinished.discard(partition)
            if any(not message.error() for message in messages):  # and whoever asked has dealt with them
                deadline = time.monotonic() + self._timeout_s
            elif unfinished and time.monotonic() > deadline:
                what = f"{len(unfinished)} partitions could not be read to their ends in time: {trouble}"
                raise NetworkError(what, where=Where(self._cluster.alias, topic))

    def _trouble(self, error: KafkaError, where: Where) -> str:
        """What librdkafka says for itself passes, or ends in our time limit. What group it would be is not asked."""
        if error.code() == KafkaError._AUTO_OFFSET_RESET:
            raise ClusterError(1, "records were deleted while they were read", where=where, hint="try again")
        if error.code() > 0 and error.code() != GROUP_UNAUTHORIZED:
            raise spelled(error, where)
        return error.str()


def spelled(error: KafkaError, where: Where) -> ReplicatorError:
    """A client's error as ours: a broker's code is a ClusterError, what librdkafka says for itself a NetworkError."""
    if error.code() == KafkaError._INVALID_ARG:
        return ConfigError(f"cluster `{where.cluster}`: {error.str()}")
    if error.code() > 0:
        return ClusterError(error.code(), error.str(), where=where)
    return NetworkError(error.str(), where=where)
