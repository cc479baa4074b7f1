"""The codecs of a batch's records section: what any producer may have packed is opened, what any reader opens is made.

    decode(codec, section)  -> the records         encode(codec, records) -> a section

`codec` is the number in a batch's attributes, the index of its name in CODECS. Both return a view, often on a buffer
with room to spare: who keeps the bytes for long copies them. Whatever is wrong with a section is an UnpackError of one
line. Not for batches that pass through, which nobody opens.

Claims are never believed: memory is taken for what the compressed bytes at hand can amount to, and never for more than
`limit`, because a few kilobytes can stand for a terabyte.

What stands behind the end of the data, and readers differ on, is read as the broker reads it, which counted the
records that way before it took the batch (Java consumers agree with it; librdkafka stops for good at the first case
and loses records at the second):

* lz4, bytes behind the end mark: left out. A second frame is no exception.
* gzip, a second member: is data like the first. Bytes that begin no member: left out.

To refuse these would keep from the target what the source's readers see. No record can get lost by it unnoticed: who
decodes a batch counts its records against the header. All else that is left over (zstd, snappy) is refused.
"""

import struct
import zlib
from typing import Any

import cramjam

from replicator.kafka.codec import Payload

try:  # two to three times as fast as anything else, where there are wheels: the extra `gzip`
    from isal import igzip_lib, isal_zlib
except ImportError:
    igzip_lib = isal_zlib = None

CODECS = ("none", "gzip", "snappy", "lz4", "zstd", "codec 5", "codec 6", "codec 7")
NONE, GZIP, SNAPPY, LZ4, ZSTD = range(5)

UNPACKED_BYTES_MAX = 256 << 20
BLOCKS_MAX = 1 << 16  # full ones would hold gigabytes, and to look at each of the smallest would take seconds

# Where a level can be chosen: those of Kafka's own `compression.<codec>.level`, from fast to small.
LEVELS = {GZIP: range(1, 10), ZSTD: range(-131072, 23)}


class UnpackError(ValueError):
    """The bytes are not what a producer would have packed: one line, without the place, which the caller knows."""


def decode(codec: int, section: Payload, limit: int = UNPACKED_BYTES_MAX) -> memoryview:
    """A records section without its compression: `section` itself if it has none.

    Raises UnpackError, also when there would be more than `limit` bytes; UNPACKED_BYTES_MAX are the most in any case.
    """
    view, limit = memoryview(section), min(limit, UNPACKED_BYTES_MAX)
    if not NONE <= codec <= ZSTD:
        raise UnpackError(f"{CODECS[codec & 7]} is no codec that we know")
    if codec != NONE and not view:
        raise UnpackError(f"{CODECS[codec]}: there is nothing to unpack")
    try:
        return _DECODERS[codec](view, limit)
    except (cramjam.DecompressionError, struct.error, IndexError, *_GZIP_ERRORS) as error:
        raise UnpackError(f"{CODECS[codec]}: {error}") from None


def encode(codec: int, records: Payload, level: int | None = None) -> memoryview:
    """A records section of `records`, which brokers since 2.1, Java consumers and librdkafka all accept.

    `level` is one of LEVELS, or None for what pays in a pipeline: as fast as the codec can (lz4, gzip), 3 (zstd).
    Raises ValueError for a codec or a level that does not exist.
    """
    view = memoryview(records)
    if not NONE <= codec <= ZSTD:
        raise ValueError(f"{codec} is no codec")
    if level is not None and level not in LEVELS.get(codec, ()):
        raise ValueError(f"{CODECS[codec]} has no level {level}")
    return _ENCODERS[codec](view, level)


def _too_large(limit: int) -> UnpackError:
    return UnpackError(f"more than {limit} bytes when it is unpacked")


def _too_many(codec: int) -> UnpackError:
    return UnpackError(f"{CODECS[codec]}: more than {BLOCKS_MAX} blocks")


def _fill(unpack_into: Any, section: memoryview, bound: int, limit: int) -> memoryview:
    """What `unpack_into` makes of a section from which at most `bound` bytes can come."""
    room = memoryview(bytearray(min(bound, limit)))
    try:
        return room[: unpack_into(section, room)]
    except cramjam.DecompressionError as error:
        if bound > limit and "whole buffer" in str(error):
            raise _too_large(limit) from None
        raise


# ---- none ----


def _decode_none(section: memoryview, limit: int) -> memoryview:
    if len(section) > limit:
        raise _too_large(limit)
    return section


def _encode_none(records: memoryview, _level: int | None) -> memoryview:
    return records


# ---- gzip ----

GZIP_MEMBER = b"\x1f\x8b"
GZIP_MEMBERS_MAX = 1000  # each costs a copy of what follows it
GZIP_WBITS = 31  # zlib's way to ask for gzip's head and tail, checked

_GZIP_ERRORS = (zlib.error, *([isal_zlib.error] if isal_zlib else []))


def _decode_gzip(section: memoryview, limit: int) -> memoryview:
    library: Any = isal_zlib or zlib
    members: list[bytes] = []
    room = limit + 1
    while section[: len(GZIP_MEMBER)] == GZIP_MEMBER or not members:
        if len(members) == GZIP_MEMBERS_MAX:
            raise UnpackError(f"gzip: more than {GZIP_MEMBERS_MAX} members")
        member = library.decompressobj(wbits=GZIP_WBITS)
        members.append(member.decompress(section, room))
        room -= len(members[-1])
        if not room:
            raise _too_large(limit)
        if not member.eof:
            raise UnpackError("gzip: the end is missing")
        section = memoryview(member.unused_data)
    return memoryview(members[0] if len(members) == 1 else b"".join(members))


def _encode_gzip(records: memoryview, level: int | None) -> memoryview:
    """Without isal cramjam at its fastest, which at that level has twice the speed of zlib (level 6: a tenth less)."""
    if level is None and igzip_lib is not None:
        # Level 1 of 0 to 3: a third smaller than 0 at nearly its speed; 2 gains nothing, 3 costs twice the time.
        return memoryview(igzip_lib.compress(records, 1, igzip_lib.COMP_GZIP))
    return memoryview(cramjam.gzip.compress(records, level or 1))


# ---- snappy ----
#
# What snappy-java makes; librdkafka writes a single block without any frame, and old Java readers do not know that.
#
#   "\x82SNAPPY\0"  version  oldest version that can read it  ( size of block  block )*
#   8 bytes         int32    int32                              int32

XERIAL = b"\x82SNAPPY\x00"
XERIAL_HEAD = XERIAL + struct.pack(">ii", 1, 1)
XERIAL_BLOCK_BYTES = 32 << 10
XERIAL_SIZE = struct.Struct(">i")


def _decode_snappy(section: memoryview, limit: int) -> memoryview:
    blocks = _xerial_blocks(section) if section[: len(XERIAL)] == XERIAL else [section]
    sizes = [cramjam.snappy.decompress_raw_len(block) for block in blocks]
    if sum(sizes) > limit:
        raise _too_large(limit)
    room, filled = memoryview(bytearray(sum(sizes))), 0
    for block, size in zip(blocks, sizes, strict=True):
        cramjam.snappy.decompress_raw_into(block, room[filled : filled + size])
        filled += size
    return room


def _xerial_blocks(section: memoryview) -> list[memoryview]:
    blocks, at = [], 0
    while at < len(section):
        if section[at : at + len(XERIAL)] == XERIAL:  # at the beginning, or streams were put together: Java reads both
            at += len(XERIAL_HEAD)
            continue
        (size,) = XERIAL_SIZE.unpack_from(section, at)
        at += XERIAL_SIZE.size
        if not 0 < size <= len(section) - at:
            raise UnpackError(f"snappy: a block of {size} bytes where {len(section) - at} are left")
        blocks.append(section[at : at + size])
        at += size
        if len(blocks) > BLOCKS_MAX:
            raise _too_many(SNAPPY)
    return blocks


def _encode_snappy(records: memoryview, _level: int | None) -> memoryview:
    blocks = [records[at : at + XERIAL_BLOCK_BYTES] for at in range(0, len(records), XERIAL_BLOCK_BYTES)]
    bound = sum(XERIAL_SIZE.size + cramjam.snappy.compress_raw_max_len(block) for block in blocks)
    room, filled = memoryview(bytearray(len(XERIAL_HEAD) + bound)), len(XERIAL_HEAD)
    room[:filled] = XERIAL_HEAD
    for block in blocks:
        start = filled + XERIAL_SIZE.size
        size = cramjam.snappy.compress_raw_into(block, room[start:])
        XERIAL_SIZE.pack_into(room, filled, size)
        filled = start + size
    return room[:filled]


# ---- lz4 ----
#
#   magic    flags  block size  [content size]  checksum of the two  ( size   block  [checksum] )*  0       [checksum]
#   4 bytes  1      1           8               1                      4 (LE)        4              4 (LE)  4
#
# Flags: 01 version, then one bit each: blocks are independent, blocks have checksums, the content's size is there, the
# content has a checksum, none, a dictionary. The highest bit of a block's size: it is stored as it is.

LZ4_MAGIC = b"\x04\x22\x4d\x18"
LZ4_BLOCK_CHECKSUM, LZ4_CONTENT_SIZE, LZ4_CONTENT_CHECKSUM, LZ4_STRANGE = 0x10, 8, 4, 3
LZ4_STORED = 1 << 31
LZ4_SIZE = struct.Struct("<I")
LZ4_CHECKSUM_BYTES = 4
LZ4_BLOCK_BYTES = 64 << 10  # the only size that the oldest Java readers know
LZ4_HEAD = LZ4_MAGIC + b"\x60\x40\x82"  # independent blocks of this size, and no checksums but this one
LZ4_GROWTH_MAX = 255  # no byte of a block stands for more


def _decode_lz4(section: memoryview, limit: int) -> memoryview:
    if section[: len(LZ4_MAGIC)] != LZ4_MAGIC:
        raise UnpackError("lz4: this is not how a frame begins")
    flags, block_bytes_max = section[4], 1 << 8 + (section[5] >> 3 & 14)
    if flags & LZ4_STRANGE or block_bytes_max < LZ4_BLOCK_BYTES:
        raise UnpackError(f"lz4: a frame with flags {flags:#04x} and block size {section[5]:#04x}, which Kafka has not")
    bound, end = _lz4_bound(section, flags, block_bytes_max)
    return _fill(cramjam.lz4.decompress_into, section[:end], bound, limit)


def _lz4_bound(section: memoryview, flags: int, block_bytes_max: int) -> tuple[int, int]:
    """How many bytes can come from a frame at the most, by the heads of its blocks; and where it ends."""
    bound, at = 0, len(LZ4_HEAD) + (8 if flags & LZ4_CONTENT_SIZE else 0)
    behind = LZ4_CHECKSUM_BYTES if flags & LZ4_BLOCK_CHECKSUM else 0
    for _ in range(BLOCKS_MAX + 1):
        (word,) = LZ4_SIZE.unpack_from(section, at)
        at += LZ4_SIZE.size
        if not word:
            return bound, at + (LZ4_CHECKSUM_BYTES if flags & LZ4_CONTENT_CHECKSUM else 0)
        size = word & ~LZ4_STORED
        # A stored block of nothing is the end to Java and not to lz4's own library: not for us to choose.
        if not 0 < size <= min(block_bytes_max, len(section) - at):
            raise UnpackError(f"lz4: a block of {size} bytes where {len(section) - at} are left")
        bound += size if word & LZ4_STORED else min(size * LZ4_GROWTH_MAX, block_bytes_max)
        at += size + behind
    raise _too_many(LZ4)


def _encode_lz4(records: memoryview, _level: int | None) -> memoryview:
    """Not `cramjam.lz4.compress`: its blocks need the one before, and Java refuses that; and it is ten times slower.

    Without levels: cramjam's functions for blocks know one way only, the fast one, whatever they are given. Who wants
    it smaller is better off with zstd anyway.
    """
    blocks = [records[at : at + LZ4_BLOCK_BYTES] for at in range(0, len(records), LZ4_BLOCK_BYTES)]
    bound = sum(LZ4_SIZE.size + cramjam.lz4.compress_block_bound(block) for block in blocks)
    room, filled = memoryview(bytearray(len(LZ4_HEAD) + bound + LZ4_SIZE.size)), len(LZ4_HEAD)
    room[:filled] = LZ4_HEAD
    for block in blocks:
        start = filled + LZ4_SIZE.size
        size = word = cramjam.lz4.compress_block_into(block, room[start:], store_size=False)
        if size >= len(block):
            size = len(block)
            word = size | LZ4_STORED
            room[start : start + size] = block
        LZ4_SIZE.pack_into(room, filled, word)
        filled = start + size
    LZ4_SIZE.pack_into(room, filled, 0)
    return room[: filled + LZ4_SIZE.size]


# ---- zstd ----
#
#   magic    descriptor  [window]  [dictionary]  [content size]  ( head    block )*  [checksum]
#   4 bytes  1           1         0 to 4        0 to 8            3 (LE)            4
#
# Any number of these frames, and of frames to be skipped: magic, size, as many bytes.
# Descriptor: two bits for the bytes of the content's size, then one each: it is all one segment (which has no window,
# and a content size), unused, reserved, checksum; two bits for the bytes of the dictionary's id.
# Head of a block: size << 3 | kind << 1 | it is the last one.

ZSTD_MAGIC, ZSTD_SKIPPABLE = 0xFD2FB528, 0x184D2A5
ZSTD_SINGLE_SEGMENT, ZSTD_CHECKSUM = 0x20, 4
ZSTD_REPEATED, ZSTD_COMPRESSED = 1, 2  # kinds; 0 is for bytes as they are
ZSTD_BLOCK_BYTES_MAX = 128 << 10
ZSTD_WORD = struct.Struct("<I")
# Producers' own default. On JSON logs half the size of lz4's, at 0.6 to 0.7 GB/s a core; level 1 is a third faster and
# on such data no larger, on other data it is. Who is short of CPU sets it.
ZSTD_LEVEL = 3


def _decode_zstd(section: memoryview, limit: int) -> memoryview:
    return _fill(cramjam.zstd.decompress_into, section, _zstd_bound(section), limit)


def _zstd_bound(section: memoryview) -> int:
    """How many bytes can come from a section at the most, by the heads of its blocks: its frames need not say."""
    bound = at = heads = checksum_bytes = 0
    last = True
    while at < len(section) or not last:
        heads += 1
        if heads > BLOCKS_MAX:
            raise _too_many(ZSTD)
        if last:
            last, checksum_bytes, at = _zstd_frame(section, at)
            continue
        if at + 3 > len(section):
            raise UnpackError("zstd: the end is missing")
        head = int.from_bytes(section[at : at + 3], "little")
        last, kind, size = bool(head & 1), head >> 1 & 3, head >> 3
        at += 3 + (1 if kind == ZSTD_REPEATED else size) + (checksum_bytes if last else 0)
        bound += ZSTD_BLOCK_BYTES_MAX if kind == ZSTD_COMPRESSED else size
    return bound


def _zstd_frame(section: memoryview, at: int) -> tuple[bool, int, int]:
    """Of the frame at byte `at`: has it no blocks, the size of its checksum, and where its blocks are, or the next."""
    (magic,) = ZSTD_WORD.unpack_from(section, at)
    if magic >> 4 == ZSTD_SKIPPABLE:
        return True, 0, at + 2 * ZSTD_WORD.size + ZSTD_WORD.unpack_from(section, at + ZSTD_WORD.size)[0]
    if magic != ZSTD_MAGIC:
        raise UnpackError("zstd: this is not how a frame begins")
    descriptor = section[at + ZSTD_WORD.size]
    single = bool(descriptor & ZSTD_SINGLE_SEGMENT)
    sizes = (not single) + (0, 1, 2, 4)[descriptor & 3] + (int(single), 2, 4, 8)[descriptor >> 6]
    return False, 4 if descriptor & ZSTD_CHECKSUM else 0, at + ZSTD_WORD.size + 1 + sizes


def _encode_zstd(records: memoryview, level: int | None) -> memoryview:
    return memoryview(cramjam.zstd.compress(records, ZSTD_LEVEL if level is None else level))


_DECODERS = (_decode_none, _decode_gzip, _decode_snappy, _decode_lz4, _decode_zstd)
_ENCODERS = (_encode_none, _encode_gzip, _encode_snappy, _encode_lz4, _encode_zstd)
