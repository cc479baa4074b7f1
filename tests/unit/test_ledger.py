"""What a lane's owner writes down, in which order, and what it must not leave out: lane and target are played."""

import asyncio
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from replicator.data import ledger as ledger_module
from replicator.data.ledger import ALIVE_S, CHUNK_SEGMENTS_SOON, LaneLedger
from replicator.data.orders import LaneSpec
from replicator.data.placement import Mark, Place
from replicator.data.states import Checkpoint, LaneState
from replicator.state.chunks import CHUNK_SEGMENTS_MAX, open_chunk
from replicator.state.records import Chunk, ChunkKey, LaneRecord

SPEC = LaneSpec(0, "us-eu", "us", "eu", "orders", "us.orders", 3, bytes(15) + b"\1", 4000, 2)
Segments = tuple[tuple[int, int, int], ...]


class Writer:
    """Keeps what is written, and acknowledges it when the test says so; `at_once` from the start."""

    def __init__(self, *, at_once: bool = True) -> None:
        self.written: list[tuple[str, int, Any, Any]] = []
        self.at_once = at_once
        self.waiting: list[asyncio.Future[None]] = []

    def write(self, topic: str, partition: int, key: Any, value: Any) -> "asyncio.Future[None]":
        self.written.append((topic, partition, key, value))
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.at_once:
            done.set_result(None)
        else:
            self.waiting.append(done)
        return done

    def acknowledge(self) -> None:
        waiting, self.waiting = self.waiting, []
        for done in waiting:
            done.set_result(None)

    @property
    def records(self) -> list[LaneRecord]:
        return [value for *_, value in self.written if isinstance(value, LaneRecord)]

    @property
    def chunks(self) -> list[tuple[ChunkKey, Chunk]]:
        return [(key, value) for _, _, key, value in self.written if isinstance(key, ChunkKey)]


class Native:
    """The core's half: segments, and gaps that wait in front of their batches."""

    def __init__(self) -> None:
        self.held: list[tuple[int, int, int]] = []
        self.gaps: list[tuple[int, int]] = []
        self.permitted = 0

    def segments(self) -> Segments:
        return tuple(self.held)

    @property
    def segment_count(self) -> int:
        return len(self.held)

    def drop_segments(self, count: int) -> None:
        del self.held[:count]

    def ahead(self) -> tuple[int, tuple[tuple[int, int], ...]]:
        return len(self.gaps), tuple(self.gaps)

    def permit(self, cursor: int) -> bool:
        self.permitted = cursor
        return cursor < len(self.gaps)


class Runner:
    """As much of a LaneRunner as a ledger looks at."""

    def __init__(self) -> None:
        self.spec = SPEC
        self.native = Native()
        self.pumps = 0
        self.worker = self
        self.source, self.target = "source", "target"
        self.producer = (4000, 2)
        self.checkpoint = Checkpoint(0, 0, 0)
        self.version, self.placed = 1, True
        self.state = self.shown_state = LaneState.COPYING
        self.reason, self.since_ms = "", 5

    def pump_soon(self) -> None:
        self.pumps += 1

    def topic_id(self, partition: str) -> bytes:
        return SPEC.topic_id if partition == "source" else bytes(15) + b"\2"

    def counter(self, column: str) -> int:
        return {"high_watermark": 100}.get(column, -1)

    def move(self, position: int, *segments: tuple[int, int, int]) -> None:
        self.checkpoint = Checkpoint(position, position, position)
        self.native.held += segments
        self.version += 1


def scene(saved: LaneRecord | None = None, *, at_once: bool = True) -> SimpleNamespace:
    runner, writer = Runner(), Writer(at_once=at_once)
    return SimpleNamespace(
        runner=runner,
        native=runner.native,
        writer=writer,
        ledger=LaneLedger(runner, saved, writer, 8),  # type: ignore[arg-type]
    )


def run(work: Coroutine[Any, Any, Any]) -> None:
    asyncio.run(work)


def test_a_checkpoint_is_written_when_something_moved_and_now_and_then_otherwise() -> None:
    async def work() -> None:
        s = scene()
        s.runner.move(10, (0, 0, 10))
        assert s.ledger.round(0) is not None
        assert s.ledger.round(1) is None
        s.runner.reason = "why"
        assert s.ledger.round(2) is not None
        assert s.ledger.round(2 + ALIVE_S) is not None
        record = s.writer.records[0]
        assert (record.position, record.segments, record.generation) == (10, ((0, 0, 10),), 1)
        assert (record.producer_id, record.high_watermark, record.target_topic) == (4000, 100, "us.orders")

    run(work())


def test_the_next_owner_begins_with_what_was_left_and_a_higher_generation() -> None:
    async def work() -> None:
        first = scene()
        first.runner.move(10, (0, 0, 10))
        await first.ledger.round(0)
        left = first.writer.records[-1]
        second = scene(left)
        assert second.ledger.mark() == Mark(Checkpoint(10, 10, 10), ((0, 0, 10),), ())
        await second.ledger.place(Place(Checkpoint(10, 10, 10), ((0, 0, 10),)), forget=False)
        assert second.writer.records[-1].generation == 2

    run(work())


def test_a_lane_that_never_found_its_place_says_why() -> None:
    async def work() -> None:
        s = scene()
        s.runner.placed, s.runner.reason = False, "the target partition is not empty"
        s.runner.shown_state = LaneState.FAILED
        await s.ledger.round(0)
        record = s.writer.records[-1]
        assert (record.generation, record.position, record.state) == (0, -1, "failed")
        assert record.reason == "the target partition is not empty"

    run(work())


def test_no_checkpoint_forgets_a_gap_that_is_being_announced() -> None:
    """Also one that is written while the announcement has no answer yet: it comes later in the log, and would count."""

    async def work() -> None:
        s = scene(at_once=False)
        s.runner.move(10, (0, 0, 10))
        s.native.gaps = [(12, 10)]
        announcing = asyncio.ensure_future(s.ledger.announce())
        await asyncio.sleep(0)
        s.ledger.round(0)
        assert [record.ahead for record in s.writer.records] == [((12, 10),)] * 2
        assert s.native.permitted == 0, "nothing goes before the answer"
        assert s.runner.pumps == 0
        s.writer.acknowledge()
        await announcing
        assert s.native.permitted == 1
        assert s.runner.pumps == 1, "nothing else may stir: the lane can be full"

    run(work())


def test_gaps_that_come_while_others_are_announced_have_their_turn() -> None:
    async def work() -> None:
        s = scene(at_once=False)
        s.native.gaps = [(12, 10)]
        announcing = asyncio.ensure_future(s.ledger.announce())
        await asyncio.sleep(0)
        s.native.gaps.append((20, 15))
        await s.ledger.announce()  # one at a time: this does nothing
        s.writer.acknowledge()
        await asyncio.sleep(0.01)
        s.writer.acknowledge()
        await announcing
        assert s.native.permitted == 2
        assert s.writer.records[-1].ahead == ((12, 10), (20, 15))

    run(work())


def test_gaps_that_come_while_an_announcement_writes_a_chunk_have_their_turn() -> None:
    """The core tells of them once, and nobody listens at that moment."""

    async def work() -> None:
        s = scene(at_once=False)
        s.runner.move(1000, *((2 * n, n, 1) for n in range(CHUNK_SEGMENTS_SOON + 1)))
        s.native.gaps = [(1002, 500)]
        announcing = asyncio.ensure_future(s.ledger.announce())
        while not s.writer.chunks:
            await asyncio.sleep(0)
            s.writer.acknowledge()
        s.native.gaps.append((1004, 501))
        await s.ledger.announce()
        while not announcing.done():
            s.writer.acknowledge()
            await asyncio.sleep(0)
        assert s.native.permitted == 2

    run(work())


def test_a_gap_stays_announced_until_the_checkpoint_has_passed_it() -> None:
    """What was sent in front of a lost connection may land later: a sequence found then must still be told."""

    async def work() -> None:
        s = scene()
        s.native.gaps = [(12, 10)]
        await s.ledger.announce()
        await s.ledger.place(Place(Checkpoint(11, 10, 10)), forget=False)
        assert s.writer.records[-1].ahead == ((12, 10),)
        await s.ledger.place(Place(Checkpoint(15, 13, 13)), forget=False)
        assert s.writer.records[-1].ahead == ()
        s.native.gaps = [(20, 13)]
        await s.ledger.announce()
        await s.ledger.place(Place(Checkpoint(11, 10, 10)), forget=True)
        assert s.writer.records[-1].ahead == ()

    run(work())


def test_chunks_take_segments_over_and_the_last_one_stays() -> None:
    async def work() -> None:
        s = scene()
        s.runner.move(10, (0, 0, 10))
        await s.ledger.write_chunk()
        await s.ledger.write_chunk()
        assert len(s.writer.chunks) == 1, "nothing new"
        s.runner.move(300, *((10 + 2 * n, 10 + n, 1) for n in range(300)))
        await s.ledger.write_chunk()
        await s.ledger.round(0)
        (_, first), (key, second) = s.writer.chunks
        assert first.count == 1
        assert (key.generation, key.chunk, second.count) == (1, 0, 301), "the same one, grown"
        assert s.writer.records[-1].segments == (s.native.held[-1],)

    run(work())


def test_a_full_chunk_is_closed_and_its_segments_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "CHUNK_S", 0)

    async def work() -> None:
        s = scene(at_once=False)
        every = [(2 * n, n, 1) for n in range(2 * CHUNK_SEGMENTS_MAX + 100)]
        s.runner.move(10, *every)
        # Two at once, as a round and an announcement may have it: the second must not let go of what no chunk holds.
        writing = [asyncio.ensure_future(s.ledger.write_chunk()) for _ in range(2)]
        await asyncio.sleep(0)
        s.writer.acknowledge()
        await asyncio.gather(*writing)
        assert s.native.held == every[CHUNK_SEGMENTS_MAX:]
        s.writer.at_once = True
        await s.ledger.write_chunk()
        await s.ledger.write_chunk()
        assert [key.chunk for key, _ in s.writer.chunks] == [0, 1, 2]
        found = [tuple(row) for _, chunk in s.writer.chunks for row in open_chunk(chunk).tolist()]
        assert found == every

    run(work())


@pytest.mark.parametrize("back", [1, 5])
def test_a_lane_that_is_set_back_while_a_chunk_is_written(back: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chunk speaks of segments that are no more: the record has to say all that holds, in the next chunk, too."""
    monkeypatch.setattr(ledger_module, "CHUNK_S", 0)

    async def work() -> None:
        s = scene(at_once=False)
        segments = [(2 * n, n, 1) for n in range(10)]
        s.runner.move(20, *segments)
        writing = asyncio.ensure_future(s.ledger.write_chunk())
        await asyncio.sleep(0)
        s.native.held = segments[:back]
        placing = asyncio.ensure_future(
            s.ledger.place(Place(Checkpoint(2, 1, 1), tuple(segments[:back])), forget=False)
        )
        await asyncio.sleep(0)
        s.writer.acknowledge()
        await asyncio.gather(writing, placing)
        s.writer.at_once = True
        s.runner.version += 1
        await s.ledger.round(0)
        assert s.writer.records[-1].segments == tuple(segments[:back])

    run(work())
