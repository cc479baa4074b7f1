"""Is the copy the original? By two clients that know nothing of us, record by record, and by the bytes themselves."""

from dataclasses import dataclass
from functools import cached_property

from tests.broker.batches import Batch
from tests.harness import witness
from tests.harness.java import JavaWitness
from tests.harness.kafka import KafkaCluster
from tests.harness.records import Dump, Record
from tests.oracle.batch import CODEC


@dataclass(frozen=True)
class Pair:
    """A source and a target."""

    source: KafkaCluster
    target: KafkaCluster


@dataclass
class Copy:
    """A topic and its copy, each log read once when it is first asked for: nobody may still write to them."""

    pair: Pair
    topic: str
    target_topic: str
    java: JavaWitness

    @cached_property
    def original(self) -> Dump:
        return witness.dump(self.pair.source.bootstrap, self.topic)

    @cached_property
    def copied(self) -> Dump:
        return witness.dump(self.pair.target.bootstrap, self.target_topic)

    @cached_property
    def copied_by_java(self) -> Dump:
        return self.java.dump(self.pair.target.bootstrap, self.target_topic)

    def check(self, partition: int = 0, records_min: int = 1, batches_min: int = 1) -> list[Record]:
        """The records of a partition, which are the same on both sides, at the same offsets, in the same batches."""
        records = self.original[partition]
        assert len(records) >= records_min
        assert self.copied[partition] == records
        assert self.copied_by_java[partition] == records
        batches = same_batches(
            stored_batches(self.pair.source, self.topic, partition),
            stored_batches(self.pair.target, self.target_topic, partition),
        )
        assert batches >= batches_min
        return records


def stored_batches(cluster: KafkaCluster, topic: str, partition: int = 0) -> list[Batch]:
    """Every batch as its leader stores it."""
    return [Batch.parse(raw) for raw in witness.raw_batches(cluster.bootstrap, topic, partition)]


def same_batches(originals: list[Batch], copies: list[Batch]) -> int:
    """Compare batch by batch, and return how many there are.

    The same bytes of records at the same offset, with the same count and times, of one producer whose sequence numbers
    leave nothing out and begin with 0.
    """
    assert [_content(batch) for batch in copies] == [_content(batch) for batch in originals]
    assert len({(batch.producer_id, batch.producer_epoch) for batch in copies}) <= 1
    assert [batch.base_sequence for batch in copies] == [batch.base_offset for batch in copies]
    assert all(batch.producer_id >= 0 and batch.attributes == batch.attributes & CODEC for batch in copies)
    return len(copies)


def _content(batch: Batch) -> tuple[object, ...]:
    times = batch.base_timestamp, batch.max_timestamp
    return batch.base_offset, batch.count, batch.attributes & CODEC, *times, batch.records
