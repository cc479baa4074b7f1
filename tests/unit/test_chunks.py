"""Chunks of the offset map: they come back as they were, and one that was tampered with does not come back at all."""

import base64
import zlib

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator._core import crc32c
from replicator.errors import ProtocolError
from replicator.state.chunks import CHUNK_SEGMENTS_MAX, DATA_LENGTH_MAX, open_chunk, pack
from replicator.state.offset_map import OFFSET_MAX
from replicator.state.records import Chunk, decode, encode
from tests.oracle.crc32c import crc32c as slow_crc32c
from tests.oracle.offset_map import Segment
from tests.unit.test_offset_map import rows

SEGMENTS: list[Segment] = [(5, 3, 10), (16, 13, 1), (20, 20, 7)]


@given(rows(size_max=20).filter(len), st.integers(0, 1 << 40))
def test_there_and_back(segments: list[Segment], generation: int) -> None:
    chunk = decode(encode(pack(generation, segments)), Chunk)
    assert open_chunk(chunk).tolist() == [list(row) for row in segments]
    first, last = segments[0], segments[-1]
    assert (chunk.generation, chunk.count) == (generation, len(segments))
    assert (chunk.source_start, chunk.source_end) == (first[0], last[0] + last[2])
    assert (chunk.target_start, chunk.target_end) == (first[1], last[1] + last[2])


def test_the_layout() -> None:
    """Written by hand, so that another program could read it: holes before each segment, then lengths."""
    numbers = [5, 1, 3, 3, 0, 6, 10, 1, 7]
    raw = b"".join(number.to_bytes(8, "little", signed=True) for number in numbers)
    chunk = pack(9, SEGMENTS)
    assert zlib.decompress(base64.b64decode(chunk.data)) == raw
    assert chunk.checksum == slow_crc32c(raw)


@pytest.mark.parametrize("seed", range(3))
def test_the_largest(seed: int) -> None:
    """As many segments as it may have, of numbers that nothing can compress."""
    random = np.random.default_rng(seed)
    numbers = random.integers(1, OFFSET_MAX // (3 * CHUNK_SEGMENTS_MAX), (CHUNK_SEGMENTS_MAX, 3))
    starts = np.cumsum(numbers[:, :2] + numbers[:, 2:], axis=0) - numbers[:, 2:]
    segments = np.column_stack([starts, numbers[:, 2]])
    chunk = pack(1, segments)
    assert len(chunk.data) <= DATA_LENGTH_MAX
    assert (open_chunk(chunk) == segments).all()


def test_a_regular_log_takes_few_bytes() -> None:
    """A control record behind every ten records."""
    segments = [(11 * n, 10 * n, 10) for n in range(CHUNK_SEGMENTS_MAX)]
    assert len(encode(pack(1, segments))) < 1_000


@pytest.mark.parametrize("count", [0, CHUNK_SEGMENTS_MAX + 1])
def test_too_few_and_too_many(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} segments in a chunk"):
        pack(1, [(2 * n, n, 1) for n in range(count)])


def forge(numbers: list[int], **fields: object) -> Chunk:
    """A chunk of these numbers whose checksum is right."""
    raw = np.array(numbers, "<i8").tobytes()
    data = base64.b64encode(zlib.compress(raw)).decode()
    return msgspec.structs.replace(
        pack(1, SEGMENTS), count=len(numbers) // 3, checksum=crc32c(raw), data=data, **fields
    )


BOMB = base64.b64encode(zlib.compress(bytes(1 << 24))).decode()


@pytest.mark.parametrize(
    ("chunk", "reason"),
    [
        (msgspec.structs.replace(pack(1, SEGMENTS), count=0), "0 segments in a chunk"),
        (msgspec.structs.replace(pack(1, SEGMENTS), count=-1), "-1 segments in a chunk"),
        (msgspec.structs.replace(pack(1, SEGMENTS), count=2), "does not hold the 2 segments"),
        (msgspec.structs.replace(pack(1, SEGMENTS), count=4), "does not hold the 4 segments"),
        (msgspec.structs.replace(pack(1, SEGMENTS), count=1 << 40), "segments in a chunk"),
        (msgspec.structs.replace(pack(1, SEGMENTS), checksum=1), "checksum"),
        (msgspec.structs.replace(pack(1, SEGMENTS), source_start=4), "bounds"),
        (msgspec.structs.replace(pack(1, SEGMENTS), source_end=28), "bounds"),
        (msgspec.structs.replace(pack(1, SEGMENTS), target_start=4), "bounds"),
        (msgspec.structs.replace(pack(1, SEGMENTS), target_end=1 << 80), "bounds"),
        (msgspec.structs.replace(pack(1, SEGMENTS), data="!!!!"), "cannot be unpacked"),
        (msgspec.structs.replace(pack(1, SEGMENTS), data="§"), "cannot be unpacked"),
        (msgspec.structs.replace(pack(1, SEGMENTS), data=""), "does not hold"),
        (msgspec.structs.replace(pack(1, SEGMENTS), data="AAAA"), "cannot be unpacked"),
        (msgspec.structs.replace(pack(1, SEGMENTS), data="A" * (DATA_LENGTH_MAX + 4)), "characters"),
        (msgspec.structs.replace(pack(1, SEGMENTS), data=BOMB), "does not hold the 3 segments"),
        (
            msgspec.structs.replace(
                pack(1, SEGMENTS), data=base64.b64encode(zlib.compress(bytes(72)) + b"more").decode()
            ),
            "does not hold the 3 segments",
        ),
        (forge([-1, 0, 1]), "overlap"),
        (forge([0, -1, 1]), "overlap"),
        (forge([0, 0, 0]), "empty"),
        (forge([OFFSET_MAX, 0, 1]), "beyond"),
        (forge([0, OFFSET_MAX, 1]), "beyond"),
        (forge([OFFSET_MAX // 2, OFFSET_MAX // 2, 0, 0, 1, 2]), "beyond"),
    ],
)
def test_tampered_with(chunk: Chunk, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        open_chunk(chunk)


@given(st.data())
def test_any_damage_is_found(data: st.DataObject) -> None:
    """One character of the value is another: either it says the same, or it is refused."""
    raw = bytearray(encode(pack(1, SEGMENTS)))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] = data.draw(st.integers(0, 255))
    try:
        chunk = decode(bytes(raw), Chunk)
        assert open_chunk(chunk).tolist() == [list(row) for row in SEGMENTS]
    except ProtocolError:
        pass
