"""The handful of Kafka's wire types that Fetch and Produce are made of, written and read with struct alone."""

import struct
from dataclasses import dataclass


def uvarint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def string(text: str | bytes | None) -> bytes:
    """A nullable string with a 16-bit length."""
    if text is None:
        return struct.pack(">h", -1)
    data = text.encode() if isinstance(text, str) else text
    return struct.pack(">h", len(data)) + data


def tagged(tags: list[tuple[int, bytes]]) -> bytes:
    """A tag section (KIP-482)."""
    return uvarint(len(tags)) + b"".join(uvarint(tag) + uvarint(len(body)) + body for tag, body in tags)


@dataclass
class Cursor:
    """Reads forward through one message; running out of bytes is an error."""

    data: bytes
    at: int = 0

    def take(self, size: int) -> bytes:
        piece = self.data[self.at : self.at + size]
        assert len(piece) == size, f"{size} bytes wanted at {self.at}, {len(piece)} left"
        self.at += size
        return bytes(piece)

    def number(self, layout: str) -> int:
        return struct.unpack(">" + layout, self.take(struct.calcsize(layout)))[0]

    def uvarint(self) -> int:
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def string(self) -> str | None:
        size = self.number("h")
        return None if size < 0 else self.take(size).decode()

    def count(self, compact: bool) -> int:
        return self.uvarint() - 1 if compact else self.number("i")

    def no_tags(self) -> None:
        assert self.uvarint() == 0, "tags that nobody asked for"

    def end(self) -> None:
        assert self.at == len(self.data), f"{len(self.data) - self.at} bytes too many"
