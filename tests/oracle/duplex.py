"""A Transport on one end of a socket pair, and a scripted broker's bare socket on the other."""

import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from itertools import pairwise

from replicator._core import FetchStream, Frame, Pool, Transport

STEP = 32_768  # less than any socket buffer, so that writing never waits for reading


def pieces(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """`data` cut at these places."""
    places = [0, *sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]
    return [data[start:end] for start, end in pairwise(places)]


class Duplex:
    """`transport` is the code under test, `far` the socket of whom it talks to."""

    def __init__(self, pool: Pool, send_buffer_bytes: int | None = None) -> None:
        self.near, self.far = socket.socketpair()
        for end in (self.near, self.far):
            end.setblocking(False)
        if send_buffer_bytes:
            self.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
        self.transport = Transport(self.near.fileno(), pool)

    def deliver(self, frame: bytes, stream: FetchStream | None = None, cuts: Iterable[int] = ()) -> Frame | None:
        """Sends a frame in pieces, receiving after each; cuts count from the start of the length prefix."""
        whole = None
        for piece in pieces(struct.pack(">I", len(frame)) + frame, cuts):
            for step in pieces(piece, range(STEP, len(piece), STEP)):
                assert whole is None, "a frame came out before its last byte went in"
                self.far.sendall(step)
                whole = self.transport.receive(stream)
        return whole

    def sent(self) -> bytes:
        """Everything that waits to be sent, as the far end reads it."""
        out = bytearray()
        done = False
        while not done:
            done = self.transport.flush()
            with suppress(BlockingIOError):
                while data := self.far.recv(1 << 16):
                    out += data
        return bytes(out)

    def close(self) -> None:
        self.transport.close()
        self.near.close()
        self.far.close()

    def __enter__(self) -> "Duplex":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
