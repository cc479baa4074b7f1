"""A RecordBatch v2 with every header field in the open: built, parsed and re-addressed the long way round.

Payloads here are opaque bytes, since no code under test reads them.
"""

import struct
from dataclasses import dataclass, fields, replace
from typing import Self

from tests.oracle.crc32c import crc32c

HEADER = struct.Struct(">qiibIhiqqqhii")
HEADER_SIZE = 61
LENGTH_STARTS_AT = 12  # batchLength counts what follows it
CRC_STARTS_AT = 21

CODEC, LOG_APPEND_TIME, TRANSACTIONAL, CONTROL, DELETE_HORIZON = 0x07, 0x08, 0x10, 0x20, 0x40

assert HEADER.size == HEADER_SIZE


@dataclass(frozen=True)
class Batch:
    """A batch as a broker stores it. `length`, `crc` and `last_offset_delta` are made to fit when they are None."""

    base_offset: int = 0
    count: int = 1
    records: bytes = b"records"
    leader_epoch: int = 5
    magic: int = 2
    attributes: int = 0
    base_timestamp: int = 1_700_000_000_000
    max_timestamp: int = 1_700_000_000_999
    producer_id: int = 4242
    producer_epoch: int = 1
    base_sequence: int = 77
    length: int | None = None
    crc: int | None = None
    last_offset_delta: int | None = None

    @property
    def last_delta(self) -> int:
        return self.count - 1 if self.last_offset_delta is None else self.last_offset_delta

    @property
    def next_offset(self) -> int:
        return self.base_offset + self.last_delta + 1

    def encode(self) -> bytes:
        length = HEADER_SIZE - LENGTH_STARTS_AT + len(self.records) if self.length is None else self.length
        data = bytearray(self._header(length, 0) + self.records)
        crc = crc32c(data[CRC_STARTS_AT:]) if self.crc is None else self.crc
        data[:HEADER_SIZE] = self._header(length, crc)
        return bytes(data)

    def _header(self, length: int, crc: int) -> bytes:
        return HEADER.pack(
            self.base_offset,
            length,
            self.leader_epoch,
            self.magic,
            crc,
            self.attributes,
            self.last_delta,
            self.base_timestamp,
            self.max_timestamp,
            self.producer_id,
            self.producer_epoch,
            self.base_sequence,
            self.count,
        )

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Every field as it stands in `data`, which is one whole batch and nothing else."""
        (
            base_offset,
            length,
            leader_epoch,
            magic,
            crc,
            attributes,
            last_offset_delta,
            base_timestamp,
            max_timestamp,
            producer_id,
            producer_epoch,
            base_sequence,
            count,
        ) = HEADER.unpack(data[:HEADER_SIZE])
        assert length == len(data) - LENGTH_STARTS_AT, "not one whole batch"
        values = locals()
        named = {field.name: values[field.name] for field in fields(cls) if field.name != "records"}
        return cls(records=bytes(data[HEADER_SIZE:]), **named)

    def readdressed(self, producer_id: int, producer_epoch: int, base_sequence: int) -> "Batch":
        """What has to stand on the target: our address, the same records, a checksum made anew over all of it."""
        return replace(
            self,
            base_offset=0,
            leader_epoch=-1,
            attributes=self.attributes & CODEC,
            producer_id=producer_id,
            producer_epoch=producer_epoch,
            base_sequence=base_sequence,
            crc=None,
        )


def is_intact(data: bytes) -> bool:
    """True if the checksum of the batch is that of its bytes, as a broker looks before it appends."""
    return HEADER.unpack(data[:HEADER_SIZE])[4] == crc32c(data[CRC_STARTS_AT:])


def verdict(batch: Batch, wanted_offset: int) -> str:
    """What is to be done with a whole batch, as replicator._core.VERDICTS names it; the first reason counts."""
    attributes = batch.attributes
    contradicts = batch.last_delta < 0 or not 0 <= batch.count <= batch.last_delta + 1
    reasons = [
        (batch.magic != 2, "rebuild_magic"),
        (contradicts or batch.next_offset > 2**63 - 1, "refuse_malformed"),
        (attributes & CONTROL, "skip_control"),
        (batch.count == 0, "skip_empty"),
        (attributes & CODEC > 4, "refuse_codec"),
        (attributes & TRANSACTIONAL, "rebuild_transactional"),
        (attributes & LOG_APPEND_TIME, "rebuild_append_time"),
        (attributes & DELETE_HORIZON, "rebuild_delete_horizon"),
        (batch.count != batch.last_delta + 1, "rebuild_holes"),
        (batch.base_offset < wanted_offset, "rebuild_head"),
    ]
    return next((name for holds, name in reasons if holds), "pass")


def old_message(offset: int, magic: int, value: bytes = b"old") -> bytes:
    """A message of format 0 or 1, as far as anybody looks at it: offset, size, checksum, magic, and then some."""
    body = struct.pack(">Ibb", 0, magic, 0) + (bytes(8) if magic else b"") + struct.pack(">ii", -1, len(value)) + value
    return struct.pack(">qi", offset, len(body)) + body
