"""Record batches made by hand, right or wrong in exactly one place, as no honest producer would write them.

The header is the oracle's (`tests.oracle.batch.Batch`), which leaves every field open; here come the records. So a
broker can be asked what it thinks of a batch that nobody but a replicator could ever send by mistake.
"""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from tests.oracle.batch import LENGTH_STARTS_AT, Batch
from tests.oracle.wire import uvarint

__all__ = ["Batch", "Entry", "encode_records", "make_batch", "now_ms", "numbered", "parse_batches"]

NO_PRODUCER = {"producer_id": -1, "producer_epoch": -1, "base_sequence": -1}


class Entry(NamedTuple):
    """One record of a batch; its offset is its place in the batch unless `delta` says otherwise."""

    value: bytes | None
    key: bytes | None = b"key"
    timestamp: int | None = None  # ms; None: the batch's base timestamp
    delta: int | None = None


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def numbered(count: int, first: int = 0) -> list[Entry]:
    """Records that differ in their values, `first` and so on."""
    return [Entry(b"value %d" % number) for number in range(first, first + count)]


def encode_records(entries: Sequence[Entry], base_timestamp: int) -> bytes:
    """The records section of an uncompressed batch."""
    return b"".join(_encode(place, entry, base_timestamp) for place, entry in enumerate(entries))


def make_batch(entries: Sequence[Entry], **header: Any) -> Batch:
    """An uncompressed batch of now, without a producer, and right in every field that `header` does not overrule."""
    base_timestamp = header.pop("base_timestamp", now_ms())
    times = [base_timestamp if entry.timestamp is None else entry.timestamp for entry in entries]
    fields = {
        "count": len(entries),
        "records": encode_records(entries, base_timestamp),
        "leader_epoch": -1,
        "base_timestamp": base_timestamp,
        "max_timestamp": max(times),
        **NO_PRODUCER,
        **header,
    }
    return Batch(**fields)


def parse_batches(record_set: bytes) -> list[Batch]:
    """The batches of a record set that ends with a whole one."""
    batches = []
    while record_set:
        size = LENGTH_STARTS_AT + int.from_bytes(record_set[LENGTH_STARTS_AT - 4 : LENGTH_STARTS_AT], "big")
        batches.append(Batch.parse(record_set[:size]))
        record_set = record_set[size:]
    return batches


def _encode(place: int, entry: Entry, base_timestamp: int) -> bytes:
    timestamp = base_timestamp if entry.timestamp is None else entry.timestamp
    delta = place if entry.delta is None else entry.delta
    no_attributes, no_headers = b"\0", _varint(0)
    times_and_place = _varint(timestamp - base_timestamp) + _varint(delta)
    body = no_attributes + times_and_place + _sized(entry.key) + _sized(entry.value) + no_headers
    return _varint(len(body)) + body


def _sized(content: bytes | None) -> bytes:
    return _varint(-1) if content is None else _varint(len(content)) + content


def _varint(value: int) -> bytes:
    return uvarint(value << 1 if value >= 0 else (-value << 1) - 1)
