"""What the owner of a lane makes of batches that it opens: chosen by hand, built by the core, packed by libraries.

Whatever the core builds is compared with what `tests.oracle.records` says before it is made a batch of.
"""

import gzip
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import cramjam

from replicator._core import Made, Pool, Scratch
from tests.oracle.batch import CODEC, HEADER_SIZE, Batch
from tests.oracle.records import Record, Run, output, walk
from tests.oracle.scripted_log import pack


def unpack(data: bytes, codec: int) -> bytes:
    """The other way round of `tests.oracle.scripted_log.pack`."""
    match codec:
        case 1:
            return gzip.decompress(data)
        case 2:
            out, at = b"", 16
            while at < len(data):
                (size,) = struct.unpack_from(">i", data, at)
                out += bytes(cramjam.snappy.decompress_raw(data[at + 4 : at + 4 + size]))
                at += 4 + size
            return out
        case 3:
            return bytes(cramjam.lz4.decompress(data))
        case 4:
            return bytes(cramjam.zstd.decompress(data))
    return data


@dataclass(frozen=True)
class Opened:
    """A batch and its records, as they stand in its payload."""

    header: bytes
    records: list[Record]
    sources: list[bytes]
    first_offset: int

    def payload(self, kept: Iterable[Record]) -> bytes:
        """Of these records only, as they were."""
        by_offset = {record.offset: source for record, source in zip(self.records, self.sources, strict=True)}
        return b"".join(by_offset[record.offset] for record in kept)


def opened(batch: Any, first_offset: int = -1) -> Opened:
    """A batch of a lane (`Lane.raw`, `Lane.mergeable`), or any bytes of one."""
    data = bytes(batch)
    header = data[:HEADER_SIZE]
    payload = unpack(data[HEADER_SIZE:], Batch.parse(data).attributes & CODEC)
    records = walk(header, payload, first_offset)
    sources, at = [], 0
    for record in records:
        sources.append(payload[at : at + record.size])
        at += record.size
    return Opened(header, records, sources, first_offset)


@dataclass(frozen=True)
class Making:
    """A batch that was made, and what it has to be."""

    made: Made
    batch: Batch
    runs: tuple[Run, ...]


def make(
    pool: Pool, scratch: Scratch, whole: Opened, parts: Sequence[Sequence[Record]], codec: int = 0
) -> list[Making]:
    """A batch of each part of its records; they are in order."""
    kept = [record for part in parts for record in part]
    scratch.clear()
    scratch.feed(whole.header, whole.payload(kept), 0, None, whole.first_offset, len(kept))
    makings = [_next(pool, scratch, part, codec) for part in parts]
    assert not scratch.next(1 << 20)
    return makings


def make_one(pool: Pool, scratch: Scratch, batches: Sequence[Any], codec: int) -> Making:
    """One batch of all records of batches of a lane that are not raw."""
    scratch.clear()
    records: list[Record] = []
    for batch in batches:
        whole = opened(batch, batch.from_offset)
        scratch.feed(whole.header, b"".join(whole.sources), 0, None, whole.first_offset)
        records += whole.records
    making = _next(pool, scratch, records, codec)
    assert not scratch.next(1 << 20)
    return making


def _next(pool: Pool, scratch: Scratch, records: Sequence[Record], codec: int) -> Making:
    expected = output(records)
    assert scratch.next(len(expected.records))
    built = bytes(scratch.records), scratch.count, scratch.base_timestamp, scratch.max_timestamp, scratch.runs
    assert built == (
        expected.records,
        expected.count,
        expected.base_timestamp,
        expected.max_timestamp,
        expected.runs,
    )
    section = pack(expected.records, codec)
    batch = Batch(
        count=expected.count,
        records=section,
        attributes=codec,
        base_timestamp=expected.base_timestamp,
        max_timestamp=expected.max_timestamp,
    )
    return Making(Made(pool, scratch, codec, section), batch, expected.runs)
