"""Partition logs made by hand, and as much of a cluster as it takes to read them; records in any codec.

The encoder here is the long way round, and knows nothing of the product's decoder.
"""

import asyncio
import gzip
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import cramjam

from replicator._core import crc32c
from replicator.kafka.cluster import Leader, TopicMetadata
from replicator.kafka.log import Partition
from replicator.kafka.messages import FETCH, LIST_OFFSETS
from tests.oracle.batch import CRC_STARTS_AT, Batch
from tests.oracle.wire import uvarint

NONE, GZIP, SNAPPY, LZ4, ZSTD = range(5)
BASE_TIMESTAMP = 1_700_000_000_000
OUT_OF_RANGE = 1
EARLIEST, LATEST = -2, -1


class Rec(NamedTuple):
    """A record as its producer means it."""

    value: bytes | None = b"value"
    key: bytes | None = b"key"
    timestamp: int = BASE_TIMESTAMP
    headers: tuple[tuple[str, bytes | None], ...] = ()


def recs(count: int, first: int = 0) -> list[Rec]:
    """Records that differ in everything."""
    return [
        Rec(b"value %d" % n, b"key %d" % n, BASE_TIMESTAMP + 10 * n, (("number", b"%d" % n), ("null", None)))
        for n in range(first, first + count)
    ]


def signed_varint(value: int) -> bytes:
    return uvarint(value << 1 if value >= 0 else (-value << 1) - 1)


def sized(content: bytes | None) -> bytes:
    return signed_varint(-1) if content is None else signed_varint(len(content)) + content


def encode_record(record: Rec, delta: int, base_timestamp: int) -> bytes:
    headers = b"".join(sized(name.encode()) + sized(value) for name, value in record.headers)
    body = b"\0" + signed_varint(record.timestamp - base_timestamp) + signed_varint(delta)
    body += sized(record.key) + sized(record.value) + signed_varint(len(record.headers)) + headers
    return signed_varint(len(body)) + body


def pack(data: bytes, codec: int) -> bytes:
    """As a producer would; snappy in snappy-java's framing, in blocks of at most 100 bytes."""
    match codec:
        case 1:
            return gzip.compress(data)
        case 2:
            blocks = [bytes(cramjam.snappy.compress_raw(data[at : at + 100])) for at in range(0, len(data), 100)]
            framed = b"".join(struct.pack(">i", len(block)) + block for block in blocks)
            return b"\x82SNAPPY\0" + struct.pack(">ii", 1, 1) + framed
        case 3:
            return bytes(cramjam.lz4.compress(data))
        case 4:
            return bytes(cramjam.zstd.compress(data))
    return data


def batch_of(
    records: Sequence[Rec], offset: int = 0, codec: int = NONE, deltas: Sequence[int] | None = None, **header: Any
) -> Batch:
    """The records at `offset` and so on, or at the offsets that the deltas say."""
    deltas = range(len(records)) if deltas is None else deltas
    base = header.setdefault("base_timestamp", records[0].timestamp)
    section = b"".join(encode_record(each, delta, base) for each, delta in zip(records, deltas, strict=True))
    fields = {
        "base_offset": offset,
        "count": len(records),
        "records": pack(section, codec),
        "attributes": codec,
        "max_timestamp": max(each.timestamp for each in records),
        "last_offset_delta": deltas[-1],
    }
    return Batch(**{**fields, **header})


def stored(batch: Batch) -> bytes:
    """Its bytes, with a right checksum unless it has one already."""
    if batch.crc is not None:
        return batch.encode()
    raw = replace(batch, crc=0).encode()
    return replace(batch, crc=crc32c(raw[CRC_STARTS_AT:])).encode()


@dataclass(eq=False)
class ScriptedLog:
    """As much of a Cluster as reading one partition's log takes. `failures` are error codes, or exceptions.

    `start` and `end` are the log's offsets; without them they are those of the batches. `aborted` are transactions
    (producer id, first offset, offset of the marker), `stable` is the last stable offset; those who read uncommitted
    are told of neither.
    """

    alias: str
    batches: list[Batch] = field(default_factory=list)
    start: int | None = None
    end: int | None = None
    stable: int | None = None
    aborted: list[tuple[int, int, int]] = field(default_factory=list)
    failures: list[int | Exception] = field(default_factory=list)
    topics: dict[str, TopicMetadata] = field(default_factory=dict)
    refreshed: int = 0
    most_bytes: int = 0
    fetches: int = 0

    @property
    def partition(self) -> Partition:
        return Partition(self, "orders", 0)  # type: ignore[arg-type]

    @property
    def log_start(self) -> int:
        return self.start if self.start is not None else self.batches[0].base_offset if self.batches else 0

    @property
    def log_end(self) -> int:
        return self.end if self.end is not None else self.batches[-1].next_offset if self.batches else self.log_start

    def leader(self, topic: str, partition: int) -> Leader:
        return Leader(1, 0)

    async def refresh(self, topics: Any) -> None:
        self.refreshed += 1

    async def request(self, api: Any, body: dict[str, Any], node_id: int) -> dict[str, Any]:
        await asyncio.sleep(0)
        asked = body["topics"][0]["partitions"][0]
        if api is LIST_OFFSETS:
            offset = {EARLIEST: self.log_start, LATEST: self.log_end}[asked["timestamp"]]
            row = {"partition_index": 0, "error_code": 0, "offset": offset}
            return {"topics": [{"name": "orders", "partitions": [row]}]}
        assert api is FETCH
        answer = self._fetch(asked["fetch_offset"], asked["partition_max_bytes"])
        if not body["isolation_level"]:
            return answer
        return self._committed(answer, asked["fetch_offset"])

    def _committed(self, answer: dict[str, Any], offset: int) -> dict[str, Any]:
        """The same for a reader of committed records: up to the last stable offset, with the aborted transactions."""
        row = answer["responses"][0]["partitions"][0]
        stable = row["high_watermark"] if self.stable is None else self.stable
        row["last_stable_offset"] = stable
        if offset >= stable or any(offset < batch.next_offset > stable for batch in self.batches):
            rest = [batch for batch in self.batches if offset < batch.next_offset <= stable]
            row["records"] = b"".join(map(stored, rest))[: len(row["records"])]
        found = [(pid, first) for pid, first, marker in self.aborted if marker >= offset and first < stable]
        row["aborted_transactions"] = [{"producer_id": pid, "first_offset": first} for pid, first in found] or None
        return answer

    def _fetch(self, offset: int, bytes_max: int) -> dict[str, Any]:
        self.fetches += 1
        code: int | Exception = self.failures.pop(0) if self.failures else 0
        if isinstance(code, Exception):
            raise code
        if not self.log_start <= offset <= self.log_end:
            code = code or OUT_OF_RANGE
        rest = [stored(batch) for batch in self.batches if batch.next_offset > offset]
        records = b"".join(rest)[: max(bytes_max, len(rest[0]))] if rest and not code else b""
        self.most_bytes = max(self.most_bytes, len(records))
        row = {"partition_index": 0, "error_code": code, "records": records, "log_start_offset": self.log_start}
        row |= {"high_watermark": self.log_end, "last_stable_offset": -1, "aborted_transactions": None}
        return {"error_code": 0, "responses": [{"partitions": [row]}]}
