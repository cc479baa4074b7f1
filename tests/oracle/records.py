"""Records the long way round: a payload walked number by number, and sections built of what is kept.

What a walk refuses it refuses with `Bad`. The tail of a record (key, value, headers) is kept as bytes beside what it
means, since what is not changed is carried on as it stood, also where a number was written longer than it need be.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from tests.oracle.batch import CONTROL, CRC_STARTS_AT, HEADER_SIZE, LOG_APPEND_TIME, Batch, is_intact
from tests.oracle.crc32c import crc32c
from tests.oracle.scripted_log import signed_varint, sized

INT64_MAX = 2**63 - 1
Headers = tuple[tuple[bytes, bytes | None], ...]
Run = tuple[int, int]


class Bad(Exception):
    """Not what the header says."""


@dataclass(frozen=True)
class Record:
    offset: int
    delta: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    attributes: int
    size: int  # with its length
    tail: bytes
    before_headers: bytes  # of the tail

    def with_headers(self, headers: Headers) -> "Record":
        fresh = signed_varint(len(headers)) + b"".join(sized(name) + sized(value) for name, value in headers)
        return replace(self, headers=headers, tail=self.before_headers + fresh)

    def encode(self, timestamp_delta: int, offset_delta: int) -> bytes:
        numbers = signed_varint(timestamp_delta) + signed_varint(offset_delta)
        body = bytes([self.attributes]) + numbers + self.tail
        return signed_varint(len(body)) + body


class Cursor:
    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        if not 0 <= size <= len(self.data) - self.at:
            raise Bad
        self.at += size
        return self.data[self.at - size : self.at]

    def varint(self, bits: int) -> int:
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            shift += 7
            if value >= 2**bits or (byte & 0x80 and shift >= bits):
                raise Bad
            if not byte & 0x80:
                return value >> 1 if value % 2 == 0 else -(value >> 1) - 1

    def sized(self) -> bytes:
        return self.take(self.varint(32))

    def nullable(self) -> bytes | None:
        size = self.varint(32)
        return None if size == -1 else self.take(size)


def walk(header: bytes, payload: bytes, first_offset: int = -1, count: int = -1) -> list[Record]:
    batch = Batch.parse(header[:8] + struct.pack(">i", HEADER_SIZE - 12) + header[12:HEADER_SIZE])
    base = first_offset if first_offset >= 0 else batch.base_offset
    count = count if count >= 0 else batch.count
    sound = batch.magic == 2 and not batch.attributes & CONTROL and base >= 0
    if (
        not sound
        or batch.last_delta < 0
        or not 0 <= count <= batch.last_delta + 1
        or base + batch.last_delta >= INT64_MAX
    ):
        raise Bad
    cursor, last, found = Cursor(payload), -1, []
    for _ in range(count):
        record = _record(cursor, base, batch)
        if not last < record.delta <= batch.last_delta or not -(2**63) <= record.timestamp <= INT64_MAX:
            raise Bad
        last = record.delta
        found.append(record)
    if cursor.at != len(payload):
        raise Bad
    return found


def _record(cursor: Cursor, base: int, batch: Batch) -> Record:
    start = cursor.at
    body = Cursor(cursor.sized())
    attributes = body.take(1)[0]
    timestamp = batch.base_timestamp + body.varint(64)
    delta = body.varint(32)
    tail_at = body.at
    key, value = body.nullable(), body.nullable()
    headers_at = body.at
    header_count = body.varint(32)
    if header_count < 0:
        raise Bad
    headers = []
    for _ in range(header_count):
        headers.append((body.sized(), body.nullable()))
    if body.at != len(body.data):
        raise Bad
    return Record(
        base + delta,
        delta,
        batch.max_timestamp if batch.attributes & LOG_APPEND_TIME else timestamp,
        key,
        value,
        tuple(headers),
        attributes,
        cursor.at - start,
        body.data[tail_at:],
        body.data[tail_at:headers_at],
    )


@dataclass(frozen=True)
class Output:
    records: bytes
    count: int
    base_timestamp: int
    max_timestamp: int
    runs: tuple[Run, ...]


def runs_of(offsets: Iterable[int]) -> tuple[Run, ...]:
    runs: list[Run] = []
    for offset in offsets:
        if runs and sum(runs[-1]) == offset:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((offset, 1))
    return tuple(runs)


def output(records: Sequence[Record]) -> Output:
    base = records[0].timestamp
    section = b"".join(each.encode(each.timestamp - base, n) for n, each in enumerate(records))
    latest = max(each.timestamp for each in records)
    return Output(section, len(records), base, latest, runs_of(each.offset for each in records))


def outputs(records: Sequence[Record], bytes_max: int, runs_max: int) -> Iterator[Output]:
    """As few as can be: each as long as it may become."""
    while records:
        taken = 1
        while taken < len(records):
            spread = {each.timestamp - records[0].timestamp for each in records[: taken + 1]}
            more = output(records[: taken + 1])
            if (
                len(more.records) > bytes_max
                or len(more.runs) > runs_max
                or not all(-(2**63) <= d < 2**63 for d in spread)
            ):
                break
            taken += 1
        yield output(records[:taken])
        records = records[taken:]


def is_untouched(header: bytes, kept: Sequence[Record]) -> bool:
    """True if a payload of which this is kept, unchanged, is what would be sent."""
    batch = Batch.parse(header[:8] + struct.pack(">i", HEADER_SIZE - 12) + header[12:HEADER_SIZE])
    whole = [each.delta for each in kept] == list(range(batch.last_delta + 1))
    return whole and not batch.attributes & (LOG_APPEND_TIME | 0x40)


def merge(parts: Sequence[bytes]) -> bytes | None:
    """One batch of the records of all, or None when they cannot be one."""
    if not parts or not all(_is_part(part) for part in parts):
        return None
    batches = [Batch.parse(part) for part in parts]
    first, section, count, times = batches[0], b"", 0, []
    for part, batch in zip(parts, batches, strict=True):
        same = (batch.producer_id, batch.producer_epoch) == (first.producer_id, first.producer_epoch)
        if not same or batch.base_sequence != (first.base_sequence + count) % 2**31:
            return None
        try:
            records = walk(part[:HEADER_SIZE], part[HEADER_SIZE:], 0)
        except Bad:
            return None
        times += [each.timestamp for each in records]
        if any(not -(2**63) <= time - first.base_timestamp < 2**63 for time in times):
            return None
        encoded = [each.encode(each.timestamp - first.base_timestamp, count + n) for n, each in enumerate(records)]
        section += batch.records if part is parts[0] else b"".join(encoded)
        count += len(records)
    merged = replace(
        first,
        base_offset=0,
        records=section,
        count=count,
        last_offset_delta=None,
        length=None,
        max_timestamp=max(times),
        crc=0,
    ).encode()
    return merged[:17] + struct.pack(">I", crc32c(merged[CRC_STARTS_AT:])) + merged[CRC_STARTS_AT:]


def _is_part(part: bytes) -> bool:
    if len(part) < HEADER_SIZE or struct.unpack_from(">i", part, 8)[0] != len(part) - 12 or part[16] != 2:
        return False
    batch = Batch.parse(part)
    whole = batch.count > 0 and batch.count - 1 == batch.last_offset_delta and batch.base_offset >= 0
    return whole and batch.attributes == 0 and is_intact(part)
