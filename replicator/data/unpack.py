"""A batch opened: its records section unpacked, and the records in it, for those who compare.

Not for the data path, where no record becomes a Python object. Every length is checked against what is there, and what
unpacks to more than UNPACKED_BYTES_MAX is refused: a few kilobytes can claim to be a terabyte.
"""

import struct
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import cramjam

UNPACKED_BYTES_MAX = 256 << 20
FIRST_GUESS = 8  # times the packed size; logs and JSON seldom shrink further
VARINT_BYTES_MAX = 10

CODECS = ("none", "gzip", "snappy", "lz4", "zstd", "codec 5", "codec 6", "codec 7")

# What snappy-java puts around its blocks (its version, and the oldest one that can read this, come last).
XERIAL = b"\x82SNAPPY\x00"
XERIAL_HEADER_BYTES = len(XERIAL) + 8
BLOCK_SIZE = struct.Struct(">i")


class UnpackError(ValueError):
    """The bytes are not what a producer would have packed: one line, without the place, which the caller knows."""


class Record(NamedTuple):
    """A record as its readers see it. `timestamp_delta` counts from the batch's base timestamp, in ms."""

    offset_delta: int
    timestamp_delta: int
    key: bytes | None
    value: bytes | None
    headers: bytes  # as they are encoded, their count in front


def unpack(section: memoryview, codec: int) -> bytes:
    """A records section without its compression. Raises UnpackError."""
    try:
        return _UNPACKERS[codec](section)
    except IndexError:
        raise UnpackError(f"{CODECS[codec]} is no codec that we know") from None
    except (cramjam.DecompressionError, zlib.error, struct.error) as error:
        raise UnpackError(f"{CODECS[codec]}: {error}") from None


def _none(section: memoryview) -> bytes:
    return bytes(section)


def _gzip(section: memoryview) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)
    unpacked = unpacker.decompress(section, UNPACKED_BYTES_MAX + 1)
    if len(unpacked) > UNPACKED_BYTES_MAX:
        raise _too_large()
    if not unpacker.eof:
        raise UnpackError("gzip: the end is missing")
    return unpacked


def _snappy(section: memoryview) -> bytes:
    if section[: len(XERIAL)] != XERIAL:
        return _snappy_block(section, UNPACKED_BYTES_MAX)
    blocks, at, room = [], XERIAL_HEADER_BYTES, UNPACKED_BYTES_MAX
    while at < len(section):
        (size,) = BLOCK_SIZE.unpack_from(section, at)
        at += BLOCK_SIZE.size
        if not 0 <= size <= len(section) - at:
            raise UnpackError(f"snappy: a block of {size} bytes where {len(section) - at} are left")
        blocks.append(_snappy_block(section[at : at + size], room))
        room -= len(blocks[-1])
        at += size
    return b"".join(blocks)


def _snappy_block(block: memoryview, room: int) -> bytes:
    size = cramjam.snappy.decompress_raw_len(block)
    if size > room:
        raise _too_large()
    unpacked = bytearray(size)
    cramjam.snappy.decompress_raw_into(block, unpacked)
    return bytes(unpacked)


def _by_guessing(unpack_into: Callable[[Any, Any], int]) -> Callable[[memoryview], bytes]:
    """For codecs that do not say beforehand how much they will give: more room each time it was too little."""

    def unpack(section: memoryview) -> bytes:
        room = max(len(section) * FIRST_GUESS, 1 << 12)
        while True:
            unpacked = bytearray(min(room, UNPACKED_BYTES_MAX))
            try:
                return bytes(memoryview(unpacked)[: unpack_into(section, unpacked)])
            except cramjam.DecompressionError as error:
                if "whole buffer" not in str(error):
                    raise
            if room >= UNPACKED_BYTES_MAX:
                raise _too_large()
            room *= 8

    return unpack


def _too_large() -> UnpackError:
    return UnpackError(f"more than {UNPACKED_BYTES_MAX >> 20} MiB when it is unpacked")


_UNPACKERS: tuple[Callable[[memoryview], bytes], ...] = (
    _none,
    _gzip,
    _snappy,
    _by_guessing(cramjam.lz4.decompress_into),
    _by_guessing(cramjam.zstd.decompress_into),
)


# ---- records ----
#
#   length  attributes  timestamp delta  offset delta  key length  key  value length  value  headers
#   varint  1 byte      varint           varint        varint           varint
#
# A varint is zigzag; a length of -1 stands for null.


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
