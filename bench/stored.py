"""What the source's log really holds: sizes of batches, read from their headers.

A batch's size on disk decides much of what a copy costs on both sides, and a producer's batch.size is only a wish.
"""

import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import mean, median

from tests.harness.wire import Wire

_HEAD = struct.Struct(">qi")  # base offset, bytes behind this field
_COUNT_AT = 57
_HEADER_BYTES = 61


@dataclass(frozen=True)
class Stored:
    """A sample of a topic's batches: the first Fetch answer (up to 32 MB) of each partition."""

    batches: int
    batch_bytes_mean: float
    batch_bytes_median: float
    records_a_batch_mean: float
    bytes_a_record: float

    @property
    def facts(self) -> dict[str, float]:
        """The same, rounded, for a report."""
        return {name: round(value, 1) for name, value in asdict(self).items()}


def inspect(bootstrap: str, topic: str, partitions: int) -> Stored:
    """Read the start of each partition. Plain TCP only.

    Raises OSError and WireError when the cluster does not answer so, ValueError when the topic is empty.
    """
    found = [batch for partition in range(partitions) for batch in _batches(bootstrap, topic, partition)]
    if not found:
        raise ValueError(f"topic {topic} holds no batch")
    sizes, counts = zip(*found, strict=True)
    per_record = sum(sizes) / sum(counts)
    return Stored(len(sizes), mean(sizes), median(sizes), mean(counts), per_record)


def _batches(bootstrap: str, topic: str, partition: int) -> Iterator[tuple[int, int]]:
    """(bytes, records) of each whole batch at a partition's start."""
    host, _, port = bootstrap.split(",")[0].rpartition(":")
    with Wire(int(port), host) as wire:
        metadata = wire.metadata(topic)
    leader = next(b for b in metadata.brokers if b.node == metadata.leaders[topic][partition])
    with Wire(leader.port, leader.host) as wire:
        log = wire.fetch(topic, partition, 0)
    at = 0
    while at + _HEADER_BYTES <= len(log):
        size = _HEAD.size + _HEAD.unpack_from(log, at)[1]
        if size < _HEADER_BYTES or at + size > len(log):
            return
        yield size, struct.unpack_from(">i", log, at + _COUNT_AT)[0]
        at += size
