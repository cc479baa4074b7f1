"""Topics that the log cleaner has really been through: the only way to see what compaction makes of batches."""

from collections.abc import Callable

from tests.broker.admin import create_topic
from tests.broker.batches import Batch, Entry, make_batch
from tests.broker.copies import stored_batches
from tests.broker.raw import Producer, RawClient
from tests.harness import witness
from tests.harness.kafka import KafkaCluster
from tests.harness.records import NewRecord
from tests.harness.waiting import eventually
from tests.oracle.batch import DELETE_HORIZON

# The smallest segments that brokers allow. What is written last stays in the active one, which is not cleaned.
_SEGMENT_BYTES = 1 << 20
_CONFIG = {
    "cleanup.policy": "compact",
    "segment.bytes": str(_SEGMENT_BYTES),
    "min.cleanable.dirty.ratio": "0.001",
}
_FILLER_BYTES = 200_000


def make_holes(cluster: KafkaCluster, topic: str) -> None:
    """A whole batch, then one that lost records in its middle, then more."""
    batches = [[Entry(b"kept", b"kept")], [Entry(b"%d" % key, b"%d" % key) for key in range(5)]]
    overwriting = [Entry(b"new", b"2")]
    _fill(cluster, topic, [*batches, overwriting])
    _wait_for(cluster, topic, lambda batch: 0 < batch.count <= batch.last_delta)


def make_delete_horizon(cluster: KafkaCluster, topic: str) -> None:
    """A whole batch, then a tombstone that the cleaner has seen and marked for its removal, then more."""
    _fill(cluster, topic, [[Entry(b"kept", b"kept")], [Entry(b"gone", b"gone")], [Entry(None, b"gone")]])
    _wait_for(cluster, topic, lambda batch: bool(batch.attributes & DELETE_HORIZON))


def make_gaps(cluster: KafkaCluster, topic: str) -> None:
    """Whole batches with nothing where others were, and an empty one: the last that its producer wrote."""
    overwritten = [[Entry(b"%d" % number, b"key")] for number in range(50)]
    with RawClient(cluster) as client:
        last_of_a_producer = client.init_producer()
    _fill(cluster, topic, [[Entry(b"kept", b"kept")], *overwritten], last_of_a_producer)
    _wait_for(cluster, topic, lambda batch: batch.count == 0)


def _fill(cluster: KafkaCluster, topic: str, batches: list[list[Entry]], producer: Producer | None = None) -> None:
    """Write `batches`, the last of them by `producer`, and behind them enough for the segment to be closed."""
    create_topic(cluster, topic, partitions=2, config=_CONFIG)
    who = {**producer._asdict(), "base_sequence": 0} if producer else {}
    with RawClient(cluster) as client:
        for entries in batches:
            header = who if entries is batches[-1] else {}
            assert client.produce(topic, make_batch(entries, **header).encode()).error == 0
    fillers = [NewRecord(0, b"key", bytes(_FILLER_BYTES))] * (_SEGMENT_BYTES // _FILLER_BYTES + 2)
    witness.produce(cluster.bootstrap, topic, fillers, {"batch.num.messages": 1})


def _wait_for(cluster: KafkaCluster, topic: str, is_cleaned: Callable[[Batch], bool]) -> None:
    eventually(lambda: any(map(is_cleaned, stored_batches(cluster, topic))), f"{topic} to be cleaned", 60)
