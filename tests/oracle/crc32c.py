"""CRC-32C as its definition says: one bit at a time."""

POLYNOMIAL = 0x82F63B78  # 0x1EDC6F41 with its bits reversed


def crc32c(data: bytes, crc: int = 0) -> int:
    """The checksum of `data`, going on from `crc`, the checksum of what came before it."""
    crc ^= 0xFFFF_FFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (POLYNOMIAL if crc & 1 else 0)
    return crc ^ 0xFFFF_FFFF
