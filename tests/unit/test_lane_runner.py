"""A lane's runner where batches are opened: what it waits for when it stops or drains, and what it begins no more."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from msgspec.structs import replace

from replicator._core import Event
from replicator.config.models import Policy
from replicator.data.lane import LaneRunner
from replicator.data.placement import Place
from replicator.data.refusals import Refusal
from replicator.data.states import ROW_BYTES, Checkpoint, LaneState, Rows
from replicator.data.transitions import Trigger
from tests.oracle import bench
from tests.oracle.batch import Batch
from tests.oracle.bench import lane_spec, turns
from tests.oracle.fetch import Fetched
from tests.oracle.produce import Produced
from tests.oracle.rig import NEVER, LaneRig, Rig, topic_id
from tests.oracle.scripted_log import batch_of, recs, stored


class Worker(bench.Worker):
    """With real rows; clusters that nobody asks."""

    def __init__(self, rig: Rig, rows: Rows) -> None:
        super().__init__(rig)
        self.rows: Any = rows
        self.clusters: Any = {"us": None, "eu": None}
        self.kinds: list[str] = []

    def lane_changed(self, lane: LaneRunner, trigger: Trigger, reason: str) -> None:
        self.rows.set_state(lane.spec.row, lane.state)
        self.kinds.append(trigger.kind)

    def lane_event(self, lane: LaneRunner, trigger: Trigger, reason: str) -> None:
        self.kinds.append(trigger.kind)

    def spawn(self, work: Any) -> None:
        raise AssertionError("nothing is to be spawned here")


class Scene:
    """A runner whose lane copies on a rig, of which record 1 is left out."""

    def __init__(self, rig: Rig, rows: Rows, policy: Policy) -> None:
        spec = replace(lane_spec((("drop", ("tombstone",)),), policy), topic_id=topic_id("orders"))
        self.rig, self.worker = rig, Worker(rig, rows)
        self.runner = LaneRunner(spec, self.worker)  # type: ignore[arg-type]
        self.runner.state = LaneState.COPYING
        self.lane = LaneRig.__new__(LaneRig)
        self.lane.topic = self.lane.target_topic = "orders"
        self.lane.partition, self.lane.native = 0, self.runner.native
        self.runner.native.set_target(rig.target)
        self.runner.native.resume(Checkpoint(0, 0, 0), 0, NEVER)
        self.runner.native.set_source(rig.source, 7)
        self.runner.refusals.leave_out(1, Refusal("invalid_record"))

    def fetch(self, data: bytes) -> None:
        assert self.rig.ask()
        for event in self.rig.feed(self.rig.response((self.lane, Fetched(0, data)))):
            self.runner.on_event(event)

    def send(self) -> int:
        """How many records; all of them are acknowledged."""
        count = 0
        while (request := self.rig.gather()) is not None:
            ((_, _, data),) = request.batches
            count += Batch.parse(data).count
            due = self.runner.checkpoint.target_next
            assert self.rig.settle(request, Produced("orders", 0, due)) == []
        return count


def on_lane(play: Callable[[Scene], Awaitable[None]], policy: Policy = Policy()) -> None:  # noqa: B008
    async def run() -> None:
        fd = os.memfd_create("rows")
        os.ftruncate(fd, ROW_BYTES)
        with Rig() as rig:
            scene = Scene(rig, Rows(fd), policy)
            await play(scene)
            await scene.runner.close()
            await turns()
        os.close(fd)

    asyncio.run(run())


BATCHES = [stored(batch_of(recs(2, at), at)) for at in (0, 2, 4)]


def damaged(data: bytes) -> bytes:
    return data[:-2] + bytes([data[-2] ^ 1]) + data[-1:]


def test_a_lane_that_drains_waits_for_letters_that_are_under_way() -> None:
    """Else they would be written again by its next owner."""

    async def play(scene: Scene) -> None:
        scene.fetch(BATCHES[0])
        await turns()
        assert scene.worker.letter_box.offsets == [1]
        scene.runner.drain()
        assert not scene.runner.settled
        await scene.worker.letter_box.acknowledge()
        assert not scene.runner.settled
        assert scene.send() == 1
        assert scene.runner.settled
        assert scene.runner.checkpoint.position == 2

    on_lane(play)


def test_a_letter_that_is_lost_while_it_drains_begins_nothing() -> None:
    async def play(scene: Scene) -> None:
        scene.fetch(BATCHES[0])
        await turns()
        scene.runner.drain()
        scene.worker.letter_box.futures[0].set_exception(OSError("no room"))
        await turns()
        assert scene.runner.settled
        assert (scene.runner._procedure, scene.runner.checkpoint.position) == (None, 0)
        assert "letter_not_written" not in scene.worker.kinds

    on_lane(play)


def test_a_lost_letter_is_told_and_the_lane_is_placed_again() -> None:
    async def play(scene: Scene) -> None:
        scene.fetch(BATCHES[0])
        await turns()
        scene.worker.letter_box.futures[0].set_exception(OSError("no room"))
        await turns()
        assert scene.runner.state is LaneState.PAUSED
        assert "no room" in scene.runner.reason
        assert not scene.runner.native.running

    on_lane(play)


def test_a_lane_that_stops_settles_what_waits_for_letters_first() -> None:
    async def play(scene: Scene) -> None:
        scene.runner._suspect = (0, 99, 0.0)  # its tries are over
        scene.fetch(BATCHES[0] + BATCHES[1] + damaged(BATCHES[2]))
        await turns()
        await asyncio.sleep(0.02)
        assert scene.runner.state is LaneState.COPYING, "a letter is under way"
        await scene.worker.letter_box.acknowledge()
        assert scene.send() == 3
        for _ in range(100):
            await asyncio.sleep(0.005)
            if scene.runner.state.is_final:
                break
        assert (scene.runner.state, scene.runner.checkpoint.position) == (LaneState.FAILED, 4)
        assert "batch at source offset 4: its checksum" in scene.runner.reason

    on_lane(play)


def test_a_policy_that_stops_at_a_record_stands_in_front_of_its_batch() -> None:
    async def play(scene: Scene) -> None:
        scene.fetch(BATCHES[0])
        for _ in range(100):
            await asyncio.sleep(0.005)
            if scene.runner.state.is_final:
                break
        assert (scene.runner.state, scene.runner.checkpoint.position) == (LaneState.FAILED, 0)
        assert "source offset 1: invalid_record" in scene.runner.reason

    on_lane(play, Policy(record_faults="stop"))


@pytest.mark.parametrize("kind", ["rebuild_ahead", "merge_ahead", "gap_ahead"])
def test_a_lane_that_drains_hears_of_nothing_new(kind: str) -> None:
    async def play(scene: Scene) -> None:
        scene.runner.drain()
        scene.runner.on_event(Event(scene.runner.native, kind, 0, 0, 0, ""))  # type: ignore[arg-type]
        await turns()
        assert scene.runner._bench is None

    on_lane(play)


def test_records_of_the_old_branch_are_forgotten_at_a_fork() -> None:
    async def play(scene: Scene) -> None:
        scene.fetch(BATCHES[0])
        await turns()
        runner = scene.runner
        found: list[Place] = []

        async def go_on(trigger: Trigger, reason: str, adjust: Callable[[Place], Place]) -> None:
            found.append(adjust(Place(runner.checkpoint)))

        runner._go_on = go_on  # type: ignore[method-assign]
        await runner._fork(1, 5, "truncated")
        assert found[0].checkpoint == Checkpoint(0, 0, 0, 5)
        assert runner.refusals.excluded == {}
        assert runner.disposal._letters == {}

    on_lane(play, Policy(source_truncated="continue"))
