"""What is copied: records of 1 KB or 100 B, uncompressed or lz4, in source batches of 16 KB or 256 KB."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from confluent_kafka import KafkaError, Message, Producer

from bench import records, stored
from bench.topics import PARTITIONS, Topics, fresh_name

_BYTES_AT_SCALE_1 = {1024: 1_000_000_000, 100: 400_000_000}
_PROBE_BYTES = 24 << 20
# Handed to one partition at a time, so that batches fill up; a multiple of the largest batch.
_CHUNK_BYTES = 4 << 20
_FLUSH_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class DataSet:
    """A kind of data. `batch_bytes` is the wanted size of a source batch as it is stored, compressed."""

    name: str
    record_bytes: int
    codec: str
    batch_bytes: int
    partitions: int = PARTITIONS

    def count(self, scale: float) -> int:
        """How many records it has; a multiple of the partitions, and 0 at scale 0."""
        each = _BYTES_AT_SCALE_1[self.record_bytes] * scale / self.record_bytes / self.partitions
        return round(each) * self.partitions


DATA_SETS = {
    made.name: made
    for made in (
        DataSet(f"{label}-{codec}-{kib}k", size, codec, kib << 10)
        for (label, size), codec, kib in itertools.product((("1k", 1024), ("100b", 100)), ("none", "lz4"), (16, 256))
    )
}
# A topic without records: what a peer costs before it has copied anything.
EMPTY = DataSet("empty", 1024, "none", 16 << 10)


@dataclass(frozen=True)
class Filled:
    """A data set in a topic. `batches` is None when the source cannot be read over plain TCP."""

    dataset: DataSet
    topic: str
    records: int
    batches: stored.Stored | None

    @property
    def record_bytes(self) -> int:
        """Keys and values, uncompressed: the gigabytes of every figure."""
        return self.records * self.dataset.record_bytes


def fill(bootstrap: str, dataset: DataSet, scale: float) -> Filled:
    """Write a data set into a fresh topic of the source.

    The producer's batch.size counts uncompressed bytes, and no two codecs or clients fill it alike; so a first small
    topic is written and looked at, and the setting corrected by what it shows.
    """
    topics = Topics(bootstrap)
    count = dataset.count(scale)
    topic = topics.create(fresh_name(dataset.name), dataset.partitions)
    if not count:
        return Filled(dataset, topic, 0, None)
    batch_bytes = _calibrated(bootstrap, dataset, topics)
    _write(bootstrap, topic, dataset, count, batch_bytes)
    held = sum(topics.ends(topic, dataset.partitions))
    if held != count:
        raise RuntimeError(f"{topic} holds {held} records instead of {count}")
    return Filled(dataset, topic, count, inspect(bootstrap, topic, dataset))


def _calibrated(bootstrap: str, dataset: DataSet, topics: Topics) -> int:
    probe = topics.create(fresh_name("probe"), dataset.partitions)
    count = _PROBE_BYTES // dataset.record_bytes // PARTITIONS * dataset.partitions
    _write(bootstrap, probe, dataset, count, dataset.batch_bytes)
    seen = inspect(bootstrap, probe, dataset)
    topics.delete(probe)
    return round(dataset.batch_bytes**2 / seen.batch_bytes_median) if seen else dataset.batch_bytes


def inspect(bootstrap: str, topic: str, dataset: DataSet) -> stored.Stored | None:
    """What the start of a data set's topic, or of its copy, really holds; None if it cannot be read over plain TCP."""
    try:
        return stored.inspect(bootstrap, topic, dataset.partitions)
    except OSError:
        return None


def _write(bootstrap: str, topic: str, dataset: DataSet, count: int, batch_bytes: int) -> None:
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "compression.type": dataset.codec,
            "batch.size": batch_bytes,
            "message.max.bytes": max(1_000_000, 2 * batch_bytes),
            "batch.num.messages": 1_000_000,
            "linger.ms": 200,
            "queue.buffering.max.messages": 1_000_000,
            "delivery.report.only.error": True,
            "on_delivery": _check,
        }
    )
    for partition, chunk in _chunks(dataset, count):
        _produce(producer, topic, partition, chunk)
    if producer.flush(_FLUSH_TIMEOUT_S):
        raise TimeoutError(f"the source did not take the data set in {_FLUSH_TIMEOUT_S:g} s")


def _chunks(dataset: DataSet, count: int) -> Iterator[tuple[int, list[records.Record]]]:
    """(partition, records), going round the partitions, each of which gets the same number of records in all."""
    ring = itertools.cycle(records.pool(dataset.record_bytes))
    left = count // dataset.partitions
    while left:
        size = min(left, _CHUNK_BYTES // dataset.record_bytes)
        for partition in range(dataset.partitions):
            yield partition, list(itertools.islice(ring, size))
        left -= size


def _produce(producer: Producer, topic: str, partition: int, chunk: list[records.Record]) -> None:
    while chunk:
        # The library marks what did not fit into its queue, in the record itself.
        producer.produce_batch(topic, chunk, partition=partition)
        chunk = [record for record in chunk if record.pop("_error", None)]
        producer.poll(0.01 if chunk else 0)


def _check(error: KafkaError | None, _message: Message) -> None:
    if error:
        raise RuntimeError(f"the source refuses a record: {error}")
