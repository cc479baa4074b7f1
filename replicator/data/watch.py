"""What no error tells of, looked for about once a second while a lane moves: an open transaction that holds everybody
up, retention that comes near, batches that wait although nothing is in their way."""

import asyncio
from typing import TYPE_CHECKING

from replicator.data.states import LaneState
from replicator.data.stuck import RetentionWatch, StuckLso, blocking_producer
from replicator.data.transitions import Trigger

if TYPE_CHECKING:
    from replicator.data.audit import Recent
    from replicator.data.lane import LaneRunner

AUDIT_LAG_MAX = 100_000  # records: a lane that is further behind has better things to do
AUDIT_SEGMENTS = 64
STALLED_S = 60.0  # longer than brokers throttle a client at a time


class LaneWatch:
    """Of one lane."""

    def __init__(self, runner: "LaneRunner") -> None:
        self._runner = runner
        self._stuck, self._retention = StuckLso(), RetentionWatch()
        self._moved, self._moved_s = (-1, 0), 0.0  # row version and batches in flight, and since when it is so

    def look(self, now_s: float) -> bool:
        """True if the lane stands still for no reason: a fault of ours."""
        runner = self._runner
        if runner.state is not LaneState.COPYING:
            return False
        if self._is_stalled(now_s):
            return True
        high_watermark, position = runner.counter("high_watermark"), runner.checkpoint.position
        stuck = self._stuck.update(position, runner.counter("last_stable_offset"), high_watermark, now_s)
        if stuck:
            runner.worker.spawn(self._tell_stuck(stuck))
        log_start = runner.counter("log_start_offset")
        near = self._retention.update(log_start, position, high_watermark, now_s)
        if near:
            runner.tell(near, f"the source's log starts at {log_start}, we are at {position}")
        return False

    def _is_stalled(self, now_s: float) -> bool:
        native = self._runner.native
        now = (self._runner.version, native.in_flight)
        if now != self._moved or not native.queued or native.in_flight:
            self._moved, self._moved_s = now, now_s
        return now_s - self._moved_s > STALLED_S

    async def _tell_stuck(self, trigger: Trigger) -> None:
        runner = self._runner
        runner.tell(trigger, await blocking_producer(runner.source) if trigger is Trigger.LSO_STUCK else "")


def recent(runner: "LaneRunner") -> "Recent | None":
    """What an audit may look at: what was copied lately, unless there is something better to do."""
    from replicator.data.audit import Recent

    behind = runner.counter("high_watermark") - runner.checkpoint.position
    if not runner.placed or runner.state is not LaneState.COPYING or behind > AUDIT_LAG_MAX:
        return None
    segments = runner.native.segments()[-AUDIT_SEGMENTS:]
    return Recent(runner.source, runner.target, segments, runner.rules) if segments else None


def ripen_later(runner: "LaneRunner") -> None:
    """Small batches wait for company, but not for long."""

    def ripen() -> None:
        runner.native.ripen()
        runner.worker.pump_soon()

    asyncio.get_running_loop().call_later(runner.spec.batches.linger_ms / 1000, ripen)
