"""The records of a batch, out of its decompressed records section, for those who compare.

Not for the data path, where no record becomes a Python object. Every length is checked against what is there.
"""

from typing import NamedTuple

from replicator.data.codecs import UnpackError

VARINT_BYTES_MAX = 10


class Record(NamedTuple):
    """A record as its readers see it. `timestamp_delta` counts from the batch's base timestamp, in ms."""

    offset_delta: int
    timestamp_delta: int
    key: bytes | None
    value: bytes | None
    headers: bytes  # as they are encoded, their count in front


#   length  attributes  timestamp delta  offset delta  key length  key  value length  value  headers
#   varint  1 byte      varint           varint        varint           varint
#
# A varint is zigzag; a length of -1 stands for null.


def differences(wanted: Record, found: Record) -> list[str]:
    """What of the two is not the same, timestamps apart."""
    return [name for name in ("key", "value", "headers") if getattr(wanted, name) != getattr(found, name)]


def split_records(unpacked: bytes, count: int) -> list[Record]:
    """The `count` records of an unpacked section, in their order. Raises UnpackError."""
    records: list[Record] = []
    at, last = 0, -1
    try:
        for _ in range(count):
            size, at = _varint(unpacked, at)
            end = at + size
            if size < 0 or end > len(unpacked):
                raise UnpackError(f"record {len(records)} claims {size} bytes, {len(unpacked) - at} are left")
            records.append(_record(unpacked, at, end))
            if records[-1].offset_delta <= last:
                raise UnpackError(f"record {len(records) - 1} has offset delta {records[-1].offset_delta} after {last}")
            last, at = records[-1].offset_delta, end
    except IndexError:
        raise UnpackError(f"record {len(records)} ends too early") from None
    if at != len(unpacked):
        raise UnpackError(f"{len(unpacked) - at} bytes are left behind the last record")
    return records


def _record(data: bytes, at: int, end: int) -> Record:
    timestamp_delta, at = _varint(data, at + 1)
    offset_delta, at = _varint(data, at)
    key, at = _nullable(data, at, end)
    value, at = _nullable(data, at, end)
    if at >= end:
        raise UnpackError(f"the record with offset delta {offset_delta} has no room for headers")
    return Record(offset_delta, timestamp_delta, key, value, data[at:end])


def split_headers(headers: bytes) -> list[tuple[bytes, bytes | None]]:
    """The headers of a record, name and value, in their order. Raises UnpackError."""
    pairs: list[tuple[bytes, bytes | None]] = []
    try:
        count, at = _varint(headers, 0)
        for _ in range(count):
            name, at = _nullable(headers, at, len(headers))
            value, at = _nullable(headers, at, len(headers))
            if name is None:
                raise UnpackError(f"header {len(pairs)} has no name")
            pairs.append((name, value))
    except IndexError:
        raise UnpackError(f"header {len(pairs)} ends too early") from None
    if count < 0 or at != len(headers):
        raise UnpackError(f"{len(headers) - at} bytes are left behind {count} headers")
    return pairs


def _nullable(data: bytes, at: int, end: int) -> tuple[bytes | None, int]:
    size, at = _varint(data, at)
    if size == -1:
        return None, at
    if size < 0 or at + size > end:
        raise UnpackError(f"a key or value claims {size} bytes, {end - at} are left")
    return data[at : at + size], at + size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at byte `at`, and where the next thing starts. Raises IndexError at the end of the data."""
    byte = data[at]
    if byte < 0x80:
        return (byte >> 1) ^ -(byte & 1), at + 1
    number, shift, first = byte & 0x7F, 7, at
    while True:
        at += 1
        if at - first == VARINT_BYTES_MAX:
            raise UnpackError(f"a number of more than {VARINT_BYTES_MAX} bytes")
        byte = data[at]
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (number >> 1) ^ -(number & 1), at + 1
        shift += 7
