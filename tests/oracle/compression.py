"""Decompression the long way round: lz4 frames and snappy byte by byte, as their formats are published.

Strict where readers in the field are: no blocks that need the one before, nothing behind the end.
"""

MASK = 0xFFFFFFFF
PRIMES = 2654435761, 2246822519, 3266489917, 668265263, 374761393

LZ4_MAGIC = bytes.fromhex("04224d18")
XERIAL_MAGIC = b"\x82SNAPPY\0"


def lz4_frame(data: bytes) -> list[bytes]:
    """The blocks of a frame without options, unpacked. Raises AssertionError for anything else."""
    assert data[:5] == LZ4_MAGIC + b"\x60"
    block_bytes_max = {0x40: 64 << 10, 0x50: 256 << 10, 0x60: 1 << 20, 0x70: 4 << 20}[data[5]]
    assert data[6] == xxh32_of_a_few(data[4:6]) >> 8 & 0xFF
    blocks, at = [], 7
    while word := int.from_bytes(data[at : at + 4], "little"):
        size = word & 0x7FFFFFFF
        block = data[at + 4 : at + 4 + size]
        assert 0 < len(block) == size
        blocks.append(block if word >> 31 else lz4_block(block))
        assert max(size, len(blocks[-1])) <= block_bytes_max
        at += 4 + size
    assert data[at:] == bytes(4)
    return blocks


def lz4_block(data: bytes) -> bytes:
    out, at = bytearray(), 0

    def length(nibble: int) -> int:
        nonlocal at
        total, more = nibble, nibble == 15
        while more:
            total, more, at = total + data[at], data[at] == 255, at + 1
        return total

    while True:
        token = data[at]
        at += 1
        literals = length(token >> 4)
        assert at + literals <= len(data)
        out += data[at : at + literals]
        at += literals
        if at == len(data):
            return bytes(out)
        offset = int.from_bytes(data[at : at + 2], "little")
        at += 2
        _repeat(out, offset, length(token & 15) + 4)


def xerial(data: bytes) -> list[bytes]:
    """The blocks of what snappy-java writes, unpacked."""
    assert data[:16] == XERIAL_MAGIC + b"\0\0\0\1" * 2
    blocks, at = [], 16
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        block = data[at + 4 : at + 4 + size]
        assert 0 < len(block) == size
        blocks.append(snappy_block(block))
        at += 4 + size
    return blocks


def snappy_block(data: bytes) -> bytes:
    wanted = shift = at = 0
    while True:
        wanted |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 0x80:
            break
    out = bytearray()
    while at < len(data):
        tag = data[at]
        at += 1
        if tag & 3 == 0:
            size, more = (tag >> 2) + 1, max(0, (tag >> 2) - 59)
            if more:
                size = int.from_bytes(data[at : at + more], "little") + 1
            at += more
            assert at + size <= len(data)
            out += data[at : at + size]
            at += size
        elif tag & 3 == 1:
            _repeat(out, tag >> 5 << 8 | data[at], (tag >> 2 & 7) + 4)
            at += 1
        else:
            more = 2 if tag & 3 == 2 else 4
            _repeat(out, int.from_bytes(data[at : at + more], "little"), (tag >> 2) + 1)
            at += more
    assert len(out) == wanted
    return bytes(out)


def _repeat(out: bytearray, offset: int, count: int) -> None:
    assert 0 < offset <= len(out)
    for _ in range(count):
        out.append(out[-offset])


def xxh32_of_a_few(data: bytes) -> int:
    """The checksum in an lz4 frame's head: seed 0, and as much of the algorithm as less than 16 bytes need."""
    assert len(data) < 16
    total, whole = PRIMES[4] + len(data), len(data) // 4 * 4
    for at in range(0, whole, 4):
        total = _turn(total + int.from_bytes(data[at : at + 4], "little") * PRIMES[2], 17) * PRIMES[3]
    for byte in data[whole:]:
        total = _turn(total + byte * PRIMES[4], 11) * PRIMES[0]
    total &= MASK
    total = (total ^ total >> 15) * PRIMES[1] & MASK
    total = (total ^ total >> 13) * PRIMES[2] & MASK
    return total ^ total >> 16


def _turn(word: int, bits: int) -> int:
    word &= MASK
    return word << bits | word >> 32 - bits
