"""A RecordBatch v2 with every header field in the open: built, parsed and re-addressed the long way round.

Payloads here are opaque bytes, since no code under test reads them.
"""

import struct
from dataclasses import dataclass, fields, replace
from typing import Self

from replicator._core import Terms
from tests.oracle.crc32c import crc32c

HEADER = struct.Struct(">qiibIhiqqqhii")
HEADER_SIZE = 61
LENGTH_STARTS_AT = 12  # batchLength counts what follows it
CRC_STARTS_AT = 21

CODEC, LOG_APPEND_TIME, TRANSACTIONAL, CONTROL, DELETE_HORIZON = 0x07, 0x08, 0x10, 0x20, 0x40

ANY = Terms()  # whatever brokers take

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


def marker(offset: int, commits: bool, producer_id: int = 4242, leader_epoch: int = 5) -> Batch:
    """The end of a transaction: one control record, whose key says version 0 and how it ended."""
    key = struct.pack(">hh", 0, commits)
    record = b"\0\0\0" + bytes([2 * len(key)]) + key + b"\x01\0"
    return Batch(
        offset,
        1,
        bytes([2 * len(record)]) + record,
        leader_epoch,
        attributes=CONTROL | TRANSACTIONAL,
        producer_id=producer_id,
        base_sequence=-1,
    )


def ends_by_abort(batch: Batch) -> bool:
    """True for what `marker` makes of an abort; other control records are no end, or cannot be read."""
    return bool(batch.attributes & CONTROL) and batch.records[5:9] == b"\0\0\0\0" and batch.records[4:5] >= b"\x08"


def verdict(batch: Batch, wanted_offset: int, terms: Terms = ANY) -> str:
    """What is to be done with a whole batch, as replicator._core.VERDICTS names it; the first reason counts."""
    attributes = batch.attributes
    codec = attributes & CODEC
    contradicts = batch.last_delta < 0 or not 0 <= batch.count <= batch.last_delta + 1
    is_large = terms.batch_bytes_max and HEADER_SIZE + len(batch.records) > terms.batch_bytes_max
    is_late = terms.timestamp_max and batch.max_timestamp > terms.timestamp_max
    reasons = [
        (batch.magic != 2, "refuse_magic"),
        (contradicts or batch.next_offset > 2**63 - 1, "refuse_malformed"),
        (attributes & CONTROL, "skip_control"),
        (batch.count == 0, "skip_empty"),
        (codec > 4, "divert_codec"),
        (attributes & LOG_APPEND_TIME and not terms.stamped, "rebuild_append_time"),
        (attributes & DELETE_HORIZON, "rebuild_delete_horizon"),
        (batch.count != batch.last_delta + 1, "rebuild_holes"),
        (batch.base_offset < wanted_offset, "rebuild_head"),
        (is_large, "rebuild_size"),
        (terms.codec not in (-1, codec), "rebuild_codec"),
        (terms.opens or is_late, "rebuild_open"),
    ]
    return next((name for holds, name in reasons if holds), "pass")


def old_message(offset: int, magic: int, value: bytes = b"old") -> bytes:
    """A message of format 0 or 1, as far as anybody looks at it: offset, size, checksum, magic, and then some."""
    body = struct.pack(">Ibb", 0, magic, 0) + (bytes(8) if magic else b"") + struct.pack(">ii", -1, len(value)) + value
    return struct.pack(">qi", offset, len(body)) + body
