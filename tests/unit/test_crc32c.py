"""CRC-32C of every kind this processor has, against the definition; and the patch, which must not need the payload."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator._core import CRC32C_KIND, CRC32C_KINDS, crc32c, crc32c_patch, use_crc32c
from tests.oracle.crc32c import crc32c as slow_crc32c

KINDS = sorted({"portable", CRC32C_KIND})
EACH_KIND = pytest.mark.parametrize("kind", KINDS)
SLOW_ORACLE = settings(deadline=None, max_examples=60)

# From RFC 3720, appendix B.4, and the check value of the catalogue of parametrised CRC algorithms.
PUBLISHED = [
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
    (b"123456789", 0xE3069283),
    (b"", 0),
]


@contextmanager
def using(kind: str) -> Iterator[None]:
    use_crc32c(kind)
    try:
        yield
    finally:
        use_crc32c(CRC32C_KIND)


def noise(size: int) -> bytes:
    """Bytes without a pattern, the same in every run."""
    state, out = 1, bytearray()
    while len(out) < size:
        state = state * 6364136223846793005 + 1442695040888963407 & 2**64 - 1
        out += (state >> 32).to_bytes(4, "little")
    return bytes(out[:size])


@EACH_KIND
@pytest.mark.parametrize(("data", "checksum"), PUBLISHED)
def test_published_values(kind, data, checksum):
    with using(kind):
        assert crc32c(data) == checksum
    assert slow_crc32c(data) == checksum


@EACH_KIND
@SLOW_ORACLE
@given(data=st.binary(max_size=2_000), start=st.integers(0, 2**32 - 1), cut=st.integers(0, 2_000))
def test_equals_the_definition_also_in_two_steps(kind, data, start, cut):
    expected = slow_crc32c(data, start)
    with using(kind):
        assert crc32c(data, start) == expected
        assert crc32c(data[cut:], crc32c(data[:cut], start)) == expected


@EACH_KIND
def test_every_length_up_to_two_rounds_of_three_streams_at_every_alignment(kind):
    data = noise(2 * 3 * 128 + 64)
    prefixes = [slow_crc32c(b"")]
    for byte in data:
        prefixes.append(slow_crc32c(bytes([byte]), prefixes[-1]))
    with using(kind):
        assert [crc32c(data[:size]) for size in range(len(data) + 1)] == prefixes
        for shift in range(1, 16):
            moved = memoryview(bytes(shift) + data)[shift:]
            assert crc32c(moved) == prefixes[-1]


@EACH_KIND
@pytest.mark.parametrize("size", [3 * 8192 - 1, 3 * 8192, 3 * 8192 + 1, 100_000, 6 * 8192 + 383])
def test_long_stretches(kind, size):
    data = noise(size)
    expected = slow_crc32c(data)
    with using(kind):
        assert crc32c(data) == expected


@EACH_KIND
@SLOW_ORACLE
@given(data=st.data(), size=st.integers(0, 200), tail=st.binary(max_size=1_500))
def test_patch_equals_the_checksum_made_anew(kind, data, size, tail):
    before, after = (data.draw(st.binary(min_size=size, max_size=size)) for _ in range(2))
    with using(kind):
        assert crc32c_patch(slow_crc32c(before + tail), before, after, len(tail)) == slow_crc32c(after + tail)


@EACH_KIND
@pytest.mark.parametrize("tail", [0xFF, 0x100, 0xFFFF, 0x1_0000, 0x1_0001, 0x01_02_03_04])
def test_patch_before_a_long_payload(kind, tail):
    before, after, payload = noise(40), noise(80)[40:], bytes(tail)
    old, new = crc32c(payload, crc32c(before)), crc32c(payload, crc32c(after))
    with using(kind):
        assert crc32c_patch(old, before, after, tail) == new


@pytest.mark.parametrize("tail", [2**24, 2**31 - 1, 2**32 - 1])
@pytest.mark.skipif(len(KINDS) == 1, reason="this processor has the portable kind only")
def test_kinds_agree_about_patches_too_long_to_check(tail):
    with using("portable"):
        expected = crc32c_patch(77, b"before", b"after!", tail)
    assert crc32c_patch(77, b"before", b"after!", tail) == expected != 77


@EACH_KIND
def test_damage_behind_a_patch_stays_visible(kind):
    before, after, payload = noise(40), noise(80)[40:], noise(500)
    damaged = bytearray(payload)
    damaged[123] ^= 4
    with using(kind):
        patched = crc32c_patch(crc32c(before + payload), before, after, len(payload))
        assert crc32c(after + payload) == patched
        assert crc32c(after + bytes(damaged)) != patched


def test_misuse():
    with pytest.raises(ValueError, match="keeps the length"):
        crc32c_patch(0, b"a", b"", 1)
    with pytest.raises(ValueError, match="'md5'"):
        use_crc32c("md5")
    for kind in set(CRC32C_KINDS) - set(KINDS):
        with pytest.raises(ValueError, match="this processor"):
            use_crc32c(kind)
    assert crc32c_patch(5, b"", b"", 1) == 5
