"""The codecs: what producers pack comes out, what we pack opens elsewhere, what nobody packs is refused in one line.

Everything runs twice, with and without the optional library for gzip.
"""

import contextlib
import gzip
import random
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Iterator

import cramjam
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.data import codecs
from replicator.data.codecs import CODECS, GZIP, LZ4, NONE, SNAPPY, ZSTD, UnpackError, decode, encode
from tests.oracle.compression import lz4_block, lz4_frame, snappy_block, xerial, xxh32_of_a_few
from tests.oracle.scripted_log import pack

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # kafka-python reads its resources in an old way
    from kafka.codec import gzip_decode

ALL = [NONE, GZIP, SNAPPY, LZ4, ZSTD]
COMPRESSED = ALL[1:]
SIZES = [1, 2, 100, 1000, 32 << 10, (32 << 10) + 1, (64 << 10) - 1, 64 << 10, (64 << 10) + 1, 200_000, 900_000]
MEBIBYTE = 1 << 20
XERIAL_HEAD = b"\x82SNAPPY\0" + struct.pack(">ii", 1, 1)
LZ4_HEAD = bytes.fromhex("04224d18604082")

# Little of anything, or a lot of the same with something in between that is not.
contents = st.builds(
    lambda first, times, second: first * times + second + first * times,
    st.binary(max_size=50),
    st.sampled_from([1, 10, 1000, 3000]),
    st.binary(max_size=300),
)


@pytest.fixture(scope="module", autouse=True, params=["isal", "without isal"])
def gzip_library(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "isal":
            pytest.importorskip("isal")
        else:
            patch.setattr(codecs, "isal_zlib", None)
            patch.setattr(codecs, "igzip_lib", None)
        yield


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def log_lines(size: int) -> bytes:
    lines = b"".join(b'{"number": %d, "level": "INFO", "user": "%x"}\n' % (n, n * n) for n in range(size // 40 + 1))
    return lines[:size]


# ---- both ways ----


@given(contents, st.sampled_from(ALL))
def test_what_we_pack_comes_out(content: bytes, codec: int) -> None:
    if content:
        assert decode(codec, encode(codec, content)) == content


@given(contents, st.sampled_from(ALL))
def test_what_others_pack_comes_out(content: bytes, codec: int) -> None:
    if content:
        assert decode(codec, pack(content, codec)) == content


@pytest.mark.parametrize("codec", ALL)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", [noise, log_lines, bytes])
def test_contents_of_all_sizes(codec: int, size: int, make: type[bytes]) -> None:
    content = make(size)
    packed = encode(codec, content)
    assert decode(codec, packed) == content
    assert decode(codec, memoryview(bytearray(packed))) == content
    assert len(packed) <= size + size // 1000 + 40, "what does not shrink is stored"
    if codec and make is not noise and size > 1000:
        assert len(packed) < size * 0.6


@pytest.mark.parametrize("codec", [GZIP, ZSTD])
def test_levels(codec: int) -> None:
    content = log_lines(300_000)
    levels = codecs.LEVELS[codec]
    sizes = [len(encode(codec, content, level)) for level in (max(levels[0], -7), levels[-1])]
    assert sizes[1] < sizes[0] * 0.95
    for level in (levels[0], 1, 5, levels[-1]):
        assert decode(codec, encode(codec, content, level)) == content
    for wrong in (levels[0] - 1, levels[-1] + 1):
        with pytest.raises(ValueError, match=f"{CODECS[codec]} has no level {wrong}"):
            encode(codec, content, wrong)


def test_what_there_is_not() -> None:
    for codec in (NONE, SNAPPY, LZ4):
        with pytest.raises(ValueError, match=f"{CODECS[codec]} has no level 1"):
            encode(codec, b"content", 1)
    for codec in (5, -1):
        with pytest.raises(ValueError, match=f"{codec} is no codec"):
            encode(codec, b"content")
    with pytest.raises(UnpackError, match="codec 6 is no codec that we know"):
        decode(6, b"content")
    for codec in COMPRESSED:
        with pytest.raises(UnpackError, match=f"{CODECS[codec]}: there is nothing to unpack"):
            decode(codec, b"")


def test_without_a_codec_nothing_is_copied() -> None:
    content = bytearray(b"content")
    views = decode(NONE, content), encode(NONE, content)
    content[0] = 0
    assert [view[0] for view in views] == [0, 0]


# ---- the bytes that we write, read by others ----


@given(contents)
def test_gzip_by_other_readers(content: bytes) -> None:
    packed = bytes(encode(GZIP, content))
    assert gzip.decompress(packed) == gzip_decode(packed) == content
    assert packed[3] & 0b11100 == 0, "neither name, comment nor more: small readers stumble"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", [noise, log_lines])
def test_lz4_by_its_format(size: int, make: type[bytes]) -> None:
    content = make(size)
    packed = bytes(encode(LZ4, content))
    assert packed[:7] == LZ4_HEAD
    blocks = lz4_frame(packed)
    assert b"".join(blocks) == content
    assert {len(block) for block in blocks[:-1]} <= {64 << 10}
    stored = packed[10] >> 7
    assert stored == (make is noise or size < 100)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", [noise, log_lines])
def test_snappy_by_its_format(size: int, make: type[bytes]) -> None:
    content = make(size)
    blocks = xerial(bytes(encode(SNAPPY, content)))
    assert b"".join(blocks) == content
    assert {len(block) for block in blocks[:-1]} <= {32 << 10}


@given(contents)
def test_the_readers_by_format_read_what_others_write(content: bytes) -> None:
    assert lz4_block(bytes(cramjam.lz4.compress_block(content, store_size=False))) == content
    assert snappy_block(bytes(cramjam.snappy.compress_raw(content))) == content


# ---- what producers do differently ----


def test_snappy_without_its_frame() -> None:
    assert decode(SNAPPY, cramjam.snappy.compress_raw(b"x" * 1000)) == b"x" * 1000


def test_snappy_streams_put_together() -> None:
    """As Java reads them."""
    assert decode(SNAPPY, bytes(encode(SNAPPY, b"one")) + bytes(encode(SNAPPY, b"two"))) == b"onetwo"


def test_gzip_members_are_all_read() -> None:
    members = [gzip.compress(b"%d," % n) for n in range(5)]
    assert decode(GZIP, b"".join(members)) == b"0,1,2,3,4,"
    with pytest.raises(UnpackError, match="gzip: the end is missing"):
        decode(GZIP, b"".join(members)[:-1])
    empty = gzip.compress(b"")
    assert decode(GZIP, empty * 1000) == b""
    with pytest.raises(UnpackError, match="more than 1000 members"):
        decode(GZIP, empty * 1001)
    with pytest.raises(UnpackError, match="more than 9 bytes"):
        decode(GZIP, b"".join(members), limit=9)
    assert decode(GZIP, b"".join(members), limit=10) == b"0,1,2,3,4,"


@pytest.mark.parametrize("behind", [b"garbage!", bytes(8), bytes(1), b"\x1f"])
@pytest.mark.parametrize("codec", [GZIP, LZ4])
def test_what_brokers_leave_out_is_left_out(codec: int, behind: bytes) -> None:
    assert decode(codec, bytes(encode(codec, b"content")) + behind) == b"content"


def test_a_second_lz4_frame_is_left_out() -> None:
    assert decode(LZ4, bytes(encode(LZ4, b"one")) + bytes(encode(LZ4, b"two"))) == b"one"


@pytest.mark.parametrize("codec", [SNAPPY, ZSTD])
def test_what_brokers_refuse_is_refused(codec: int) -> None:
    for packed in (encode(codec, b"content"), pack(b"content", codec)):
        for behind in (b"garbage!", b"x"):
            with pytest.raises(UnpackError):
                decode(codec, bytes(packed) + behind)


def test_zstd_frames() -> None:
    """Several, some to be skipped, and of any layout: with or without sizes, windows and checksums."""
    one, two = (bytes(encode(ZSTD, part)) for part in (b"one" * 1000, noise(300_000)))
    skipped = struct.pack("<II", 0x184D2A53, 5) + b"12345"
    assert decode(ZSTD, one + skipped + two + skipped) == b"one" * 1000 + noise(300_000)
    nothing = bytes.fromhex("28b52ffd24000100 0099e9d851")  # with a checksum
    assert decode(ZSTD, nothing + one + nothing) == b"one" * 1000
    raw = b"\x28\xb5\x2f\xfd%s" + (5 << 3 | 1).to_bytes(3, "little") + b"hello%s"
    for head, tail in (
        (b"\x20\x05", b""),
        (b"\x21\0\x05", b""),
        (b"\x00\x38", b""),
        (b"\x60\x05\xff", b""),
        (b"\x80\x38" + b"\5\0\0\0", b""),
    ):
        if head[:1] != b"\x60":  # which counts from 256
            assert decode(ZSTD, raw % (head, tail)) == b"hello"
        else:
            with pytest.raises(UnpackError):
                decode(ZSTD, raw % (head, tail))
    with pytest.raises(UnpackError, match="zstd: "):
        decode(ZSTD, raw % (b"\x24\x05", b"\0\0\0\0"))  # a wrong checksum
    for level in (-7, 1, 3, 19):
        long = log_lines(300_000)
        assert decode(ZSTD, encode(ZSTD, long, level)) == long


@pytest.mark.parametrize("block_size", [0x40, 0x50, 0x60, 0x70])
def test_lz4_blocks_of_other_sizes(block_size: int) -> None:
    checks = {0x40: 0x82, 0x50: 0xFB, 0x60: 0x51, 0x70: 0x73}
    size = 1 << 8 + (block_size >> 3)
    content = log_lines(size + 1000)
    blocks = [bytes(cramjam.lz4.compress_block(part, store_size=False)) for part in (content[:size], content[size:])]
    body = b"".join(struct.pack("<I", len(block)) + block for block in blocks) + bytes(4)
    packed = bytes.fromhex("04224d1860") + bytes([block_size, checks[block_size]]) + body
    assert b"".join(lz4_frame(packed)) == decode(LZ4, packed) == content
    with pytest.raises(UnpackError, match="lz4: "):
        decode(LZ4, packed[:6] + b"\0" + packed[7:])


def test_lz4_with_the_size_of_its_content() -> None:
    plain = bytes(encode(LZ4, log_lines(100_000)))
    for size, right in ((100_000, True), (100_001, False)):
        about = b"\x68\x40" + struct.pack("<Q", size)
        packed = plain[:4] + about + bytes([xxh32_of_a_few(about) >> 8 & 0xFF]) + plain[7:]
        with contextlib.nullcontext() if right else pytest.raises(UnpackError, match="lz4: "):
            assert decode(LZ4, packed) == log_lines(100_000)


def test_lz4_with_blocks_that_need_the_one_before() -> None:
    packed = bytes(cramjam.lz4.compress(log_lines(300_000)))
    assert packed[4] & 0x20 == 0
    assert decode(LZ4, packed) == log_lines(300_000)


# ---- what nobody packs ----


def bomb(codec: int, size: int) -> bytes:
    """`size` zeros in as few bytes as the codec can."""
    return pack(bytes(size), codec) if codec != SNAPPY else bytes(cramjam.snappy.compress_raw(bytes(size)))


@pytest.mark.parametrize("codec", ALL)
def test_what_unpacks_to_too_much_is_refused(codec: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert codecs.UNPACKED_BYTES_MAX == 256 * MEBIBYTE
    for packed in (bomb(codec, MEBIBYTE), bytes(encode(codec, bytes(MEBIBYTE))), bytes(encode(codec, noise(MEBIBYTE)))):
        assert len(decode(codec, packed)) == MEBIBYTE
        assert len(decode(codec, packed, limit=MEBIBYTE)) == MEBIBYTE
        for limit in (MEBIBYTE - 1, 100_000, 1):
            with pytest.raises(UnpackError, match=f"more than {limit} bytes when it is unpacked"):
                decode(codec, packed, limit)
    monkeypatch.setattr(codecs, "UNPACKED_BYTES_MAX", MEBIBYTE)
    with pytest.raises(UnpackError, match="more than 1048576 bytes"):
        decode(codec, bomb(codec, MEBIBYTE + 1), limit=1 << 50)


def frame_of_zstd(content_size: int, block: bytes) -> bytes:
    return b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", content_size) + block


CLAIMS = {
    "snappy": (SNAPPY, b"\xff\xff\xff\xff\x0f" + b"x" * 100),
    "snappy in a frame": (SNAPPY, XERIAL_HEAD + struct.pack(">i", 6) + b"\xff\xff\xff\xff\x0fx"),
    "zstd's content size": (ZSTD, frame_of_zstd(1 << 40, b"\x05\0\0")),
    "a repeated byte of zstd": (ZSTD, frame_of_zstd(1 << 40, b"\xfb\xff\xff\0" * 1000)),
    "a block of zstd": (ZSTD, frame_of_zstd(1 << 40, b"\xfd\xff\xff\0")),
    "a skipped frame of zstd": (ZSTD, struct.pack("<II", 0x184D2A50, 0xFFFFFFFF) + b"x" * 100),
    "a block of lz4": (LZ4, LZ4_HEAD + struct.pack("<I", 0x7FFFFFFF) + b"x" * 100),
    "lz4's content size": (LZ4, bytes.fromhex("04224d186840") + struct.pack("<QB", 1 << 40, 0) + b"x" * 100),
    "gzip": (GZIP, gzip.compress(bytes(8 * MEBIBYTE))),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_no_memory_is_taken_for_a_claim(claim: str) -> None:
    codec, packed = CLAIMS[claim]
    tracemalloc.start()
    try:
        with pytest.raises(UnpackError):
            decode(codec, packed, limit=MEBIBYTE)
        assert tracemalloc.get_traced_memory()[1] < 4 * MEBIBYTE
    finally:
        tracemalloc.stop()


CRUMBS = {
    SNAPPY: (XERIAL_HEAD, struct.pack(">i", 3) + bytes(cramjam.snappy.compress_raw(b"x")), b""),
    LZ4: (LZ4_HEAD, struct.pack("<I", 1 << 31 | 1) + b"x", bytes(4)),
    ZSTD: (b"\x28\xb5\x2f\xfd\x00\x38", (1 << 3).to_bytes(3, "little") + b"x", (1).to_bytes(3, "little")),
}


@pytest.mark.parametrize("codec", CRUMBS)
def test_there_are_limits_to_small_blocks(codec: int) -> None:
    head, block, end = CRUMBS[codec]
    for count in (1, codecs.BLOCKS_MAX - 10):
        assert decode(codec, head + block * count + end) == b"x" * count
    with pytest.raises(UnpackError, match=f"{CODECS[codec]}: more than 65536 blocks"):
        decode(codec, head + block * (codecs.BLOCKS_MAX + 1) + end)


@pytest.mark.parametrize("codec", COMPRESSED)
def test_what_is_cut_is_refused(codec: int) -> None:
    """Snappy has no end: cut between two blocks it is only shorter, which whoever counts the records will find."""
    for whole in (bytes(encode(codec, log_lines(100_000))), pack(log_lines(2000), codec)):
        step = max(1, len(whole) // 200)
        for end in [*range(0, len(whole), step), len(whole) - 1]:
            with contextlib.suppress(UnpackError) if codec == SNAPPY else pytest.raises(UnpackError):
                assert len(decode(codec, whole[:end])) < 100_000


CHECKED = {
    GZIP: lambda content: [bytes(encode(GZIP, content)), gzip.compress(content), zlib.compress(content, wbits=31)],
    LZ4: lambda content: [bytes(cramjam.lz4.compress(content))],  # with checksums of blocks and content
}


@given(st.binary(min_size=1, max_size=300), st.sampled_from(sorted(CHECKED)), st.data())
def test_a_checksum_is_checked(content: bytes, codec: int, data: st.DataObject) -> None:
    for packed in CHECKED[codec](content):
        bit = data.draw(st.integers(0, len(packed) * 8 - 1))
        changed = bytearray(packed)
        changed[bit // 8] ^= 1 << bit % 8
        with contextlib.suppress(UnpackError):
            assert decode(codec, changed) == content


def test_the_checksum_of_an_lz4_head_is_checked() -> None:
    packed = bytes(encode(LZ4, b"content " * 100))
    for bit in range(7 * 8):
        changed = bytearray(packed)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(UnpackError):
            decode(LZ4, changed)


@given(contents, st.sampled_from(COMPRESSED), st.booleans(), st.data())
def test_no_bytes_do_any_harm(content: bytes, codec: int, ours: bool, data: st.DataObject) -> None:
    packed = bytearray(encode(codec, content) if ours else pack(content, codec))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(packed)))
        packed[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    with contextlib.suppress(UnpackError):
        assert len(decode(codec, packed, MEBIBYTE)) <= MEBIBYTE


@given(st.sampled_from([b"", b"\x1f\x8b\x08", XERIAL_HEAD, LZ4_HEAD, b"\x28\xb5\x2f\xfd"]), st.binary(max_size=100))
def test_no_other_bytes_do_either(head: bytes, rest: bytes) -> None:
    for codec in COMPRESSED:
        with contextlib.suppress(UnpackError):
            assert len(decode(codec, head + rest, MEBIBYTE)) <= MEBIBYTE


@pytest.mark.parametrize(
    ("codec", "packed", "what"),
    [
        (SNAPPY, XERIAL_HEAD + struct.pack(">i", 1000) + b"short", "snappy: a block of 1000 bytes where 5 are left"),
        (SNAPPY, XERIAL_HEAD + struct.pack(">i", -5) + b"short", "snappy: a block of -5 bytes where 5 are left"),
        (SNAPPY, XERIAL_HEAD + b"\0\0\0\0", "snappy: a block of 0 bytes"),
        (LZ4, b"raw block", "lz4: this is not how a frame begins"),
        (LZ4, struct.pack("<II", 0x184D2A50, 0) + LZ4_HEAD + bytes(4), "lz4: this is not how a frame begins"),
        (LZ4, LZ4_HEAD + struct.pack("<I", 1000) + b"short", "lz4: a block of 1000 bytes where 5 are left"),
        (LZ4, LZ4_HEAD + struct.pack("<I", 1 << 31) + bytes(4), "lz4: a block of 0 bytes"),
        (LZ4, bytes.fromhex("04224d18614082") + bytes(8), "flags 0x61 and block size 0x40, which Kafka has not"),
        (LZ4, bytes.fromhex("04224d18603082") + bytes(8), "flags 0x60 and block size 0x30, which Kafka has not"),
        (ZSTD, b"raw bytes", "zstd: this is not how a frame begins"),
        (ZSTD, bytes(encode(ZSTD, b"content"))[:6], "zstd: the end is missing"),
    ],
)
def test_what_is_wrong_is_said(codec: int, packed: bytes, what: str) -> None:
    with pytest.raises(UnpackError, match=what):
        decode(codec, packed)
