"""Receive buffers: one budget for all, used again, held as long as anybody needs them, and not a moment longer."""

import gc
import itertools
import struct

import numpy as np
import pytest

from replicator._core import COUNTERS_SIZE, FetchStream, Frame, Lane, Pool, Source, Target
from replicator.data.states import Checkpoint
from tests.oracle import produce
from tests.oracle.batch import Batch
from tests.oracle.duplex import Duplex
from tests.oracle.fetch import Fetched, FetchedTopic, encode_response
from tests.oracle.produce import Produced
from tests.oracle.rig import NEVER, PRODUCER, Rig, Settings, joined, topic_id

SLAB_SIZE_MAX = 256 << 20


def compose(stream: FetchStream, duplex: Duplex) -> bool:
    composed = stream.compose(duplex.transport, 13, 1, 0)
    duplex.sent()
    return composed


def address(frame: Frame) -> int:
    return int(np.frombuffer(frame, dtype=np.uint8).ctypes.data)


# ---- sizes ----


@pytest.mark.parametrize("size", [4, 5, 4096, 4097, 5120, 5121, 8192, 8193, 100_000, 1 << 20, (1 << 20) + 1])
def test_at_most_a_fifth_of_a_buffer_is_waste(size):
    pool = Pool(1 << 24)
    with Duplex(pool) as duplex:
        frame = duplex.deliver(bytes(size))
        assert len(frame) == size
        assert size <= pool.used_bytes <= max(4096, size * 1.25)
        del frame
        assert pool.used_bytes == 0


def test_sizes_of_all_classes_are_held_and_given_back():
    pool = Pool(1 << 28)
    with Duplex(pool) as duplex:
        frames = [duplex.deliver(bytes([i]) * (4 + 3_517 * i)) for i in range(40)]
        assert pool.used_bytes >= sum(map(len, frames))
        for i, frame in enumerate(frames):
            assert bytes(frame) == bytes([i]) * len(frame)
        del frame, frames
        assert pool.used_bytes == 0


def test_memory_is_used_again():
    pool = Pool(1 << 24)
    with Duplex(pool) as duplex:
        frame = duplex.deliver(bytes(100_000))
        first = address(frame)
        del frame
        frame = duplex.deliver(b"x" * 99_999)
        assert address(frame) == first
        assert bytes(frame) == b"x" * 99_999


def test_a_frame_that_must_be_read_is_read_even_over_budget_and_not_kept_then():
    pool = Pool(10_000)
    with Duplex(pool) as duplex:
        frames = [duplex.deliver(bytes(50_000)) for _ in range(3)]
        assert pool.used_bytes >= 150_000
        del frames
        assert pool.used_bytes == 0


# ---- the budget ----


def test_outstanding_responses_are_reserved_and_hold_others_back():
    with Rig(Settings(credit_bytes=250_000, fetch_bytes_max=100_000, lane_bytes_max=100_000)) as rig:
        for partition in range(4):
            rig.lane("orders", partition).rows["last_stable_offset"] = (
                1_000  # so much to fetch that each fills a response
            )
        for lane in rig.lanes:
            rig.start(lane)
        streams = [FetchStream(rig.source, b"rig", 100_000) for _ in range(3)]
        assert [compose(stream, rig.source_side) for stream in streams] == [True, True, False]
        assert rig.pool.used_bytes == 200_000
        streams[0].abort()
        assert rig.pool.used_bytes == 100_000
        streams[0].abort()
        assert rig.pool.used_bytes == 100_000
        assert compose(streams[2], rig.source_side)
        del streams
        assert rig.pool.used_bytes == 0


def test_an_idle_pool_always_lets_one_fetch_through():
    with Rig(Settings(credit_bytes=10, fetch_bytes_max=100_000)) as rig:
        lane = rig.running()
        other = rig.running("orders", 1)
        rig.ask()
        rig.feed(rig.response((lane, Fetched(0, joined([Batch(0, 1)]))), (other, Fetched(1))))
        assert rig.ask() is None, "the batch that is queued is over budget already"
        rig.acknowledge(rig.gather())
        assert rig.ask() is not None


def test_a_buffer_lives_until_its_last_batch_is_settled():
    with Rig() as rig:
        lane, other = rig.running("a", 0), rig.running("b", 0)
        rig.ask()
        batches = Fetched(0, joined([Batch(0, 1), Batch(1, 1)]))
        rig.feed(rig.response((lane, batches), (other, batches)))
        assert rig.pool.used_bytes == 4096
        rig.acknowledge(rig.gather())
        assert rig.pool.used_bytes == 4096
        rig.settle(rig.gather(), Produced("a", 0, 1), Produced("b", 0, 99))
        assert rig.pool.used_bytes == 0


# ---- let go in any order ----


class Parts:
    """One lane with a batch in flight, a batch queued, a Fetch outstanding half answered, and events unheard."""

    def __init__(self) -> None:
        self.pool = Pool(1 << 20)
        self.source = Source(self.pool, 1 << 16)
        self.stream = FetchStream(self.source, b"parts", 1 << 16)
        self.target = Target(b"parts", 1 << 16, 1_000)
        self.row = np.zeros(COUNTERS_SIZE, np.uint8)
        self.lane = Lane("orders", topic_id("orders"), "orders", 0, PRODUCER, memoryview(self.row))
        self.source_side, self.target_side = Duplex(self.pool), Duplex(self.pool)
        self.lane.set_target(self.target)
        self.lane.resume(Checkpoint(0, 0, 0), 0, NEVER)
        self.lane.set_source(self.source, 0)
        self.fetch(Batch(0, 1), Batch(1, 1))
        assert self.target.gather(self.target_side.transport, 8, 1)
        self.target_side.sent()
        self.answer = self.target_side.deliver(produce.encode_response(8, 1, [Produced("orders", 0, 55)]))
        self.fetch(Batch(2, 1), Batch(3, 5, last_offset_delta=3), whole=False)

    def fetch(self, *batches: Batch, whole: bool = True) -> None:
        assert compose(self.stream, self.source_side)
        topic = FetchedTopic("orders", topic_id("orders"), [Fetched(0, joined(batches))])
        frame = encode_response(13, 1, [topic])
        data = struct.pack(">I", len(frame)) + frame
        self.source_side.far.sendall(data if whole else data[:-1])
        self.frame = self.source_side.transport.receive(self.stream)
        assert (self.frame is not None) == whole

    def close(self) -> None:
        for duplex in (self.source_side, self.target_side):
            duplex.near.close()
            duplex.far.close()


HELD = ["pool", "source", "stream", "target", "lane", "row", "answer"]


def let_go_first(first: tuple[str, ...]) -> None:
    """Lets these go in this order, hears what is still to be heard, and lets the others go."""
    parts = Parts()
    ends = [end for duplex in (parts.source_side, parts.target_side) for end in (duplex.near, duplex.far)]
    for name in first:
        delattr(parts, name)
    if "target" not in first and "answer" not in first:
        parts.target.settle(parts.answer)
        events = parts.target.take_events()
        assert [event.kind for event in events] == ([] if "lane" in first else ["offset_drift"])
    if "stream" not in first:
        events = parts.stream.take_events()
        assert [event.kind for event in events] == ([] if "lane" in first else ["cannot_take"])
    pool = getattr(parts, "pool", None)
    del parts
    for end in ends:
        end.close()
    if pool is not None:
        assert pool.used_bytes == 0


def test_objects_may_go_in_any_order():
    for first in itertools.permutations(HELD, 3):
        let_go_first(first)


def test_objects_may_go_with_a_cycle_of_garbage():
    for order in itertools.permutations(["stream", "lane", "target", "source_side"]):
        parts = Parts()
        cycle = [getattr(parts, name) for name in order]
        cycle.append(cycle)
        parts.lane.runner = cycle
        parts.close()
        del parts, cycle
    gc.collect()
    assert not [each for each in gc.get_objects() if isinstance(each, (Lane, FetchStream, Target))]


def test_what_is_in_flight_survives_its_lane_and_the_lanes_row():
    with Rig() as rig:
        lane = rig.running()
        rig.fetch(lane, Batch(0, 1), Batch(1, 1))
        request = rig.gather()
        rows, version = lane.rows, lane["version"]
        rig.lanes.clear()
        del lane
        before = rows.tobytes()
        assert rig.settle(request, Produced("orders", 0, 0)) == []
        assert rows.tobytes() == before, "the row belongs to somebody else by now"
        assert version == 1
        assert rig.pool.used_bytes == 0


def test_events_of_a_lane_that_is_gone_are_left_out():
    with Rig() as rig:
        lane, other = rig.running("orders", 0), rig.running("orders", 1)
        rig.ask()
        rig.feed_quietly(rig.response((lane, Fetched(0, error=6)), (other, Fetched(1, error=6))))
        rig.lanes.remove(lane)
        del lane
        assert [event.lane for event in rig.stream.take_events()] == [other.native]


def test_a_frame_comes_from_a_transport_only():
    with pytest.raises(TypeError, match=r"Transport\.receive"):
        Frame()


@pytest.mark.parametrize(
    "misuse",
    [
        lambda rig: Source(None, 1),
        lambda rig: FetchStream(None, b"", 1),
        lambda rig: Target(None, 1, 1),
        lambda rig: rig.target.settle(None),
        lambda rig: rig.target.gather(None, 8, 1),
        lambda rig: rig.stream.compose(None, 13, 1, 1),
        lambda rig: rig.source_side.transport.send(None),
    ],
)
def test_none_is_nothing_to_work_with(misuse):
    with Rig() as rig, pytest.raises(TypeError):
        misuse(rig)
