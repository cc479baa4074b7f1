"""What every fault test does around its fault: two clusters, a producer that never pauses, and the final comparison.

The comparison is the point. Counters and states may be right while the target's log is not, so each scenario ends with
`assert_same_log`: both logs as another client reads them, record by record, offsets and times included.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, cast

from confluent_kafka import Message, Producer

from replicator.data.states import LaneState
from tests.harness import witness
from tests.harness.kafka import KafkaCluster
from tests.harness.link import RunningLink, link_config
from tests.harness.records import NewRecord, Record
from tests.harness.waiting import eventually
from tests.harness.wire import EARLIEST, LATEST, Wire, WireError

_TICK_S = 0.01
_FLUSH_TIMEOUT_S = 60
# A producer that outlives every fault of these tests, and that itself neither loses, doubles nor reorders anything.
_PATIENT = {
    "enable.idempotence": True,
    "message.timeout.ms": 120_000,
    "reconnect.backoff.max.ms": 500,
    "retry.backoff.max.ms": 200,
    "linger.ms": 5,
    "log_level": 0,
}


@dataclass
class Pair:
    """A source and a target, each behind proxies."""

    source: KafkaCluster
    target: KafkaCluster

    def config(self, topics: str, timeout_ms: int = 30_000, **options: Any) -> dict[str, Any]:
        """One link between the two, through the proxies, whose requests time out after `timeout_ms`."""
        waits = {"request_timeout_ms": timeout_ms, "fetch_wait_ms": min(500, timeout_ms // 4)}
        limits = {**waits, **options.pop("limits", {})}
        return link_config(
            self.source.proxied_bootstrap, self.target.proxied_bootstrap, topics, limits=limits, **options
        )

    def create(self, topic: str, partitions: int = 1) -> None:
        """The topic on both sides, so that a test may begin with its fault."""
        for cluster in (self.source, self.target):
            witness.create_topic(cluster.bootstrap, topic, partitions)


class Traffic:
    """A producer at work on one topic until the end of the `with` block, or `finish`.

    Every value is unique. `records_per_s` is for all partitions together; the records are dated back by `age_ms`.
    """

    def __init__(
        self,
        cluster: KafkaCluster,
        topic: str,
        partitions: Sequence[int] = (0,),
        records_per_s: int = 2000,
        age_ms: int = 0,
    ) -> None:
        self._topic = topic
        self._cluster = cluster
        self._partitions = partitions
        self._records_per_tick = max(1, round(records_per_s * _TICK_S))
        self._producer = Producer({"bootstrap.servers": cluster.bootstrap, **_PATIENT})
        self._age_ms = age_ms
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="traffic", daemon=True)
        self.acknowledged = 0
        self.refused: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        eventually(lambda: self.acknowledged, f"the first record of {self._topic}")
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def finish(self) -> dict[tuple[str, int], int]:
        """Ends the traffic; returns the log ends that the lanes have to reach. Fails if a record was refused."""
        self._stop.set()
        self._thread.join()
        unsent = self._producer.flush(_FLUSH_TIMEOUT_S)
        assert not unsent
        assert not self.refused
        return log_ends(self._cluster, self._topic, self._partitions)

    def _work(self) -> None:
        number = 0
        while not self._stop.wait(_TICK_S):
            for _ in range(self._records_per_tick):
                partition = self._partitions[number % len(self._partitions)]
                if not self._send(partition, number):
                    break
                number += 1
            self._producer.poll(0)

    def _send(self, partition: int, number: int) -> bool:
        value = b"%012d " % number + b"v" * (number % 400)
        try:
            self._producer.produce(
                self._topic,
                value,
                str(number).encode(),
                partition,
                on_delivery=self._delivered,
                headers=[("n", str(number).encode())],
                timestamp=int(time.time() * 1000) - self._age_ms,
            )
        except BufferError:
            return False
        return True

    def _delivered(self, error: object, _message: Message) -> None:
        if error:
            self.refused.append(str(error))
        else:
            self.acknowledged += 1


@dataclass
class Journal(logging.Handler):
    """Every state that a lane went through, with its reason, as the supervisor's log tells an operator."""

    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(logging.DEBUG)

    __hash__ = logging.Handler.__hash__

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def of(self, topic: str, partition: int = 0) -> list[str]:
        """The lane's entries, oldest first: `paused: why`, `copying`, ..."""
        return [line.split(": ", 1)[1] for line in self.lines if f" {topic}-{partition}: " in line]

    def tells(self, words: str, topic: str, partition: int = 0) -> bool:
        return any(words in entry for entry in self.of(topic, partition))

    def wait_for(self, words: str, topic: str, partition: int = 0, timeout_s: float = 30) -> None:
        eventually(
            lambda: self.tells(words, topic, partition), f"{words!r} in the journal of {topic}-{partition}", timeout_s
        )

    def __enter__(self) -> Self:
        log = logging.getLogger("replicator")
        self._level = log.level
        log.setLevel(logging.DEBUG)
        log.addHandler(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        log = logging.getLogger("replicator")
        log.removeHandler(self)
        log.setLevel(self._level)


def log_ends(cluster: KafkaCluster, topic: str, partitions: Sequence[int] = (0,)) -> dict[tuple[str, int], int]:
    """The log end offset of each partition, from its leader."""
    return {(topic, partition): ask_leader(cluster, topic, partition, LATEST) for partition in partitions}


def log_start(cluster: KafkaCluster, topic: str, partition: int = 0) -> int:
    return ask_leader(cluster, topic, partition, EARLIEST)


def ask_leader(cluster: KafkaCluster, topic: str, partition: int, timestamp: int) -> int:
    """ListOffsets at the partition's leader."""
    metadata = None
    for address in cluster.bootstrap.split(","):
        try:
            with Wire(int(address.rsplit(":", 1)[1])) as wire:
                metadata = wire.metadata(topic)
        except OSError:
            continue  # a node that the test has stopped
    assert metadata, "no node of the cluster answers"
    leader = metadata.leaders[topic][partition]
    port = next(broker.port for broker in metadata.brokers if broker.node == leader)
    with Wire(port) as wire:
        return wire.list_offset(topic, partition, timestamp)


def leaders(cluster: KafkaCluster, topic: str) -> dict[int, int]:
    """partition -> node that leads it, as node 1 says; waits until it knows the topic and all of its leaders."""
    port = int(cluster.bootstrap.split(",")[0].rsplit(":", 1)[1])

    def ask() -> dict[int, int] | None:
        with contextlib.suppress(WireError), Wire(port) as wire:
            return wire.metadata(topic).leaders[topic]
        return None

    return cast(dict[int, int], eventually(ask, f"the leaders of {topic}"))


def wait_for_progress(
    link: RunningLink, topic: str, partition: int = 0, records: int = 500, timeout_s: float = 30
) -> None:
    """Waits until the lane has moved on by so many records from here."""
    eventually(lambda: (topic, partition) in link.lanes, f"a lane of {topic}-{partition}", timeout_s)
    due = link.checkpoint(topic, partition).position + records

    def moved() -> bool:
        return link.checkpoint(topic, partition).position >= due

    eventually(moved, f"{topic}-{partition} to reach {due}; {link.describe()}", timeout_s)


def wait_for_pause(link: RunningLink, topic: str, partition: int = 0, timeout_s: float = 30) -> str:
    """Waits until the lane is paused and returns its reason: a paused lane says why, a moment after its state."""
    link.wait_for_state(LaneState.PAUSED, topic, partition, timeout_s)
    return eventually(lambda: link.reason(topic, partition), f"the reason of {topic}-{partition}")


def backlog(cluster: KafkaCluster, topic: str, records: int, partitions: int = 1, size: int = 200) -> None:
    """Writes `records` in all, round robin."""
    padding = b"x" * size
    wanted = (NewRecord(n % partitions, b"%d" % n, b"%012d " % n + padding) for n in range(records))
    witness.produce(cluster.bootstrap, topic, wanted, {"linger.ms": 20})


def assert_same_log(pair: Pair, topic: str, records_min: int, target_topic: str | None = None) -> None:
    """The whole target log is the whole source log: nothing lost, doubled, moved or changed; and it is no small one."""
    originals = witness.dump(pair.source.bootstrap, topic)
    copies = witness.dump(pair.target.bootstrap, target_topic or topic)
    assert copies.keys() == originals.keys()
    for partition, original in originals.items():
        difference = first_difference(original, copies[partition])
        assert not difference, f"{topic}-{partition}: {difference}"
    count = sum(map(len, originals.values()))
    assert count >= records_min, f"only {count} records were in play"


def assert_is_start_of(original: list[Record], copy: list[Record], position: int) -> None:
    """The copy holds the source's first records, up to `position` at least, and nothing else."""
    assert position > 0
    assert len(copy) >= position
    difference = first_difference(original[: len(copy)], copy)
    assert not difference, difference


def first_difference(original: list[Record], copy: list[Record]) -> str:
    """In words, with how much is lost and doubled; empty if the two are equal."""
    if original == copy:
        return ""
    values, copied = [record.value for record in original], [record.value for record in copy]
    lost, doubled = len(set(values) - set(copied)), len(copied) - len(set(copied))
    where = next(
        (n for n, (a, b) in enumerate(zip(original, copy, strict=False)) if a != b), min(len(original), len(copy))
    )
    pairs = f"{original[where : where + 1]} became {copy[where : where + 1]}"
    return f"{len(original)} records, copied {len(copy)}, lost {lost}, doubled {doubled}; at {where}: {pairs}"
