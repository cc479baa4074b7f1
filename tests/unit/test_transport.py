"""Frames over a socket: cut at every byte, sent in parts, ended in the middle, and announced with lengths that lie."""

import socket
import struct
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator._core import Pool, Transport
from tests.oracle.batch import Batch
from tests.oracle.duplex import Duplex, pieces
from tests.oracle.fetch import Fetched
from tests.oracle.produce import parse_requests
from tests.oracle.rig import Rig, Settings

FRAMES = st.lists(st.binary(min_size=4, max_size=700), min_size=1, max_size=5)


def framed(*frames: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(frame)) + frame for frame in frames)


def receive_all(duplex: Duplex, data: bytes, cuts: list[int]) -> list[bytes]:
    received = []
    for piece in pieces(data, cuts):
        duplex.far.sendall(piece)
        while (frame := duplex.transport.receive()) is not None:
            received.append(bytes(frame))
    return received


# ---- receiving ----


def test_frames_cut_at_every_byte():
    frames = [b"four", b"x" * 509, b"y" * 508, b"z" * 1_300, b"tiny" * 2]
    data = framed(*frames)
    pool = Pool(1 << 20)
    with Duplex(pool) as duplex:
        for cut in range(1, len(data)):
            assert receive_all(duplex, data, [cut]) == frames, cut
        assert receive_all(duplex, data, list(range(len(data)))) == frames
        assert duplex.transport.received_bytes == len(data) * len(data)
    assert pool.used_bytes == 0


@settings(deadline=None)
@given(frames=FRAMES, cuts=st.lists(st.integers(0, 3_000)))
def test_any_frames_cut_anywhere(frames, cuts):
    with Duplex(Pool(1 << 20)) as duplex:
        assert receive_all(duplex, framed(*frames), cuts) == frames


def test_a_frame_larger_than_any_socket_buffer():
    with Duplex(Pool(1 << 24)) as duplex:
        frame = bytes(range(256)) * 12_345
        assert bytes(duplex.deliver(frame)) == frame


@pytest.mark.parametrize("size", [0, 1, 3, (256 << 20) + 1, 2**31 - 1, 2**31, 2**32 - 1])
def test_lengths_that_no_broker_sends(size):
    pool = Pool(1 << 20)
    with Duplex(pool) as duplex:
        duplex.far.sendall(struct.pack(">I", size))
        with pytest.raises(ValueError, match=f"a frame of {size} bytes"):
            duplex.transport.receive()
    assert pool.used_bytes == 0


def test_a_large_frame_that_is_announced_and_never_comes_is_given_back():
    pool = Pool(1 << 20)
    with Duplex(pool) as duplex:
        duplex.far.sendall(struct.pack(">I", 256 << 20))
        assert duplex.transport.receive() is None
        assert pool.used_bytes == 256 << 20
    assert pool.used_bytes == 0


@pytest.mark.parametrize("sent", [b"", b"\0\0", framed(b"whole"), framed(b"whole") + b"\0\0\0\x09half"])
def test_the_end_of_the_stream(sent):
    pool = Pool(1 << 20)
    with Duplex(pool) as duplex:
        duplex.far.sendall(sent)
        duplex.far.close()
        if b"whole" in sent:
            assert bytes(duplex.transport.receive()) == b"whole"
        elif sent:
            assert duplex.transport.receive() is None
        for _ in range(2):
            with pytest.raises(ConnectionResetError, match="closed by the peer"):
                duplex.transport.receive()
    assert pool.used_bytes == 0


def test_frames_are_buffers_that_outlive_everything():
    pool = Pool(1 << 20)
    with Duplex(pool) as duplex:
        frame = duplex.deliver(b"to be kept")
    assert memoryview(frame).readonly
    assert len(frame) == 10
    view = memoryview(frame)
    del pool, frame, duplex
    assert bytes(view) == b"to be kept"


def test_a_socket_that_is_no_socket():
    transport = Transport(2**20, Pool(1 << 20))
    with pytest.raises(OSError, match="Bad file descriptor"):
        transport.receive()
    transport.send(b"x")
    with pytest.raises(OSError, match="Bad file descriptor"):
        transport.flush()


# ---- sending ----


def test_what_is_sent_comes_out_in_order():
    with Duplex(Pool(1 << 20)) as duplex:
        for word in (b"one", b"", b"two", b"three"):
            duplex.transport.send(word)
        assert duplex.transport.pending
        assert duplex.sent() == b"onetwothree"
        assert not duplex.transport.pending
        assert duplex.transport.sent_bytes == 11
        assert duplex.transport.flush()


def test_nothing_to_send_is_no_progress_to_wait_for():
    with Duplex(Pool(1 << 20)) as duplex:
        duplex.transport.send(b"")
        assert not duplex.transport.pending
        assert duplex.transport.flush()


def test_a_socket_that_takes_little_at_a_time():
    parts = [bytes([i % 256]) * (1 + 37 * i % 5_000) for i in range(3_000)]
    with Duplex(Pool(1 << 20), send_buffer_bytes=4_096) as duplex:
        for part in parts:
            duplex.transport.send(part)
        assert not duplex.transport.flush(), "or nothing was tested"
        duplex.transport.send(b"and more")
        assert duplex.sent() == b"".join(parts) + b"and more"


def test_a_produce_request_that_is_sent_bit_by_bit():
    with Rig(Settings(produce_bytes_max=1 << 22)) as rig:
        rig.target_side.close()
        rig.target_side = Duplex(rig.pool, send_buffer_bytes=4_096)
        lanes = [rig.running("orders", partition) for partition in range(40)]
        for lane in lanes:
            rig.fetch(lane, Batch(0, 1, bytes([lane.partition]) * 30_000))
        assert rig.target.gather(rig.target_side.transport, 8, 1)
        assert not rig.target_side.transport.flush(), "or nothing was tested"
        (request,) = parse_requests(rig.target_side.sent())
        records = {partition: Batch.parse(data).records for _, partition, data in request.batches}
        assert records == {partition: bytes([partition]) * 30_000 for partition in range(40)}


def test_sending_to_who_is_gone():
    with Duplex(Pool(1 << 20)) as duplex:
        duplex.far.close()
        duplex.transport.send(b"anybody?")
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            duplex.transport.flush()


def test_a_closed_transport_forgets():
    pool = Pool(1 << 20)
    with Duplex(pool) as duplex:
        duplex.far.sendall(framed(bytes(9_000))[:5_000])
        assert duplex.transport.receive() is None
        duplex.transport.send(b"never")
        duplex.transport.close()
        assert not duplex.transport.pending
        assert duplex.transport.receive() is None
        assert duplex.transport.flush()
        with pytest.raises(BlockingIOError):
            duplex.far.recv(1)
        assert pool.used_bytes == 0


def test_over_tcp():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as near:
        far, _ = server.accept()
        near.setblocking(False)
        transport = Transport(near.fileno(), Pool(1 << 24))
        frame = bytes(range(256)) * 20_000

        def echo() -> None:
            with far:
                left = len(frame) + 4
                while left:
                    data = far.recv(1 << 16)
                    far.sendall(data)
                    left -= len(data)

        echoing = threading.Thread(target=echo)
        echoing.start()
        transport.send(framed(frame))
        received = None
        while received is None:
            transport.flush()
            received = transport.receive()
        echoing.join()
        assert bytes(received) == frame
        transport.close()


def test_a_fetch_response_begins_in_the_bytes_that_were_read_with_its_length():
    """Small frames arrive whole in the read that finds their length: they must reach their stream all the same."""
    with Rig() as rig:
        lane = rig.running()
        rig.fetch(lane, Batch(0, 1))
        assert len(rig.response((lane, Fetched(0, Batch(0, 1).encode())))) < 508
        assert lane["fetch_offset"] == 1
