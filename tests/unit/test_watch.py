"""What a lane is looked after for once a second: that it moves, that nobody holds it up, that retention is far."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from replicator.data import watch as module
from replicator.data.states import Checkpoint, LaneState
from replicator.data.stuck import STUCK_AFTER_S
from replicator.data.watch import STALLED_S, LaneWatch


class Lane:
    """What is asked of a runner, its worker, and the native lane."""

    def __init__(self) -> None:
        self.state = LaneState.COPYING
        self.worker = self.native = self
        self.source = "orders-0"
        self.version = self.queued = self.in_flight = 0
        self.checkpoint = Checkpoint(100, 100, 0)
        self.counters = {"high_watermark": 100, "last_stable_offset": 100, "log_start_offset": 0}
        self.told: list[tuple[str, str]] = []
        self.watch = LaneWatch(self)  # type: ignore[arg-type]

    def counter(self, column: str) -> int:
        return self.counters[column]

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run(work)

    def tell(self, trigger: Any, reason: str) -> None:
        self.told.append((trigger.kind, reason))

    def look(self, *seconds: float) -> list[float]:
        """When it is said to stand still for no reason."""
        return [at for at in seconds if self.watch.look(at)]


def test_a_lane_without_work_does_not_stand_still() -> None:
    assert Lane().look(0, 100, 1000) == []


def test_batches_that_wait_while_none_is_on_its_way() -> None:
    lane = Lane()
    lane.queued = 3
    assert lane.look(10, 10 + STALLED_S, 10.1 + STALLED_S) == [10.1 + STALLED_S]
    lane.version += 1
    assert lane.look(20 + STALLED_S) == []
    lane.in_flight = 1  # may take as long as it takes
    assert lane.look(1000, 2000) == []
    lane.in_flight = 0
    assert lane.look(2001, 2002 + STALLED_S) == [2002 + STALLED_S]


def test_only_a_lane_that_moves_is_looked_at() -> None:
    lane = Lane()
    lane.queued, lane.state = 3, LaneState.PAUSED
    assert lane.look(0, 1000) == []


def test_a_transaction_that_holds_it_up_is_named(monkeypatch: Any) -> None:
    async def blocking(partition: Any) -> str:
        assert partition == "orders-0"
        return "producer id 7"

    monkeypatch.setattr(module, "blocking_producer", blocking)
    lane = Lane()
    lane.counters["high_watermark"] = 200
    lane.look(0, STUCK_AFTER_S - 1)
    assert lane.told == []
    lane.look(STUCK_AFTER_S, STUCK_AFTER_S + 1)
    assert lane.told == [("lso_stuck", "producer id 7")]
    lane.counters["last_stable_offset"] = 200
    lane.look(STUCK_AFTER_S + 2)
    assert lane.told[1:] == [("lso_moved", "")]


def test_retention_that_comes_near_is_told_with_its_figures() -> None:
    lane = Lane()
    lane.checkpoint = Checkpoint(1000, 0, 0)
    lane.counters |= {"high_watermark": 100_000, "last_stable_offset": 100_000}
    for second in range(120):
        lane.counters["log_start_offset"] = 5 * second
        lane.look(second)
    ((kind, reason),) = lane.told
    assert (kind, reason.split(",")[1]) == ("retention_near", " we are at 1000")
