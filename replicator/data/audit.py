"""The cheap, continuous audit in a worker: now and then a stretch of what was just copied is read again on both sides.

It costs what its budget says and no more: `bytes_per_s` of source data (the target's are read as well), in stretches of
STRETCH_BYTES, one at a time, over the connections of the slow path. A difference is looked at twice before it is
reported, the second time after a pause: a lane may have been set back meanwhile, and then its segments say so.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from replicator.data.ranges import clip, records_in
from replicator.data.rules import AS_IT_IS, Rules
from replicator.data.verify import LaneVerdict, MappedClaim, Outcome, verify_lane
from replicator.kafka.log import Partition
from replicator.state.offset_map import as_segments

BYTES_PER_S = 256 << 10
STRETCH_BYTES = 128 << 10
STRETCH_RECORDS_MAX = 2_000
IDLE_S = 1.0  # when nothing can be audited
DOUBT_S = 1.0
AFTER_FAULT_S = 60.0

L = TypeVar("L")


class Recent(NamedTuple):
    """What may be audited of a lane: settled segments as (source start, target start, length), in order."""

    source: Partition
    target: Partition
    segments: Sequence[tuple[int, int, int]]
    rules: Rules = AS_IT_IS


class Auditor(Generic[L]):
    """Picks lanes by chance from `lanes()`, and a stretch of what `recent(lane)` says was copied.

    `recent` gives None for a lane that is behind, or has settled nothing: it is skipped. `report(lane, sentence)` hears
    of a difference, once for each stretch that was found different. Counts what it has done: `records`, `bytes` (of the
    source), `differences`, and `unknown` for stretches that could not be read.
    """

    def __init__(
        self,
        lanes: Callable[[], Sequence[L]],
        recent: Callable[[L], Recent | None],
        report: Callable[[L, str], None],
        *,
        bytes_per_s: int = BYTES_PER_S,
        chance: random.Random | None = None,
    ) -> None:
        self.records = self.bytes = self.differences = self.unknown = 0
        self._lanes = lanes
        self._recent = recent
        self._report = report
        self._bytes_per_s = bytes_per_s
        self._chance = chance or random.Random()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Inside a running loop, which hears of errors of our own: they must not end more than one stretch."""
        self._task = asyncio.ensure_future(self._run())

    async def close(self) -> None:
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            try:
                compared_bytes = await self.audit_once()
            except Exception as error:
                what = {"message": "the audit failed, which is our own fault: please report it", "exception": error}
                asyncio.get_running_loop().call_exception_handler(what)
                await asyncio.sleep(AFTER_FAULT_S)
                continue
            await asyncio.sleep(compared_bytes / self._bytes_per_s if compared_bytes else IDLE_S)

    async def audit_once(self) -> int:
        """Audits one stretch of one lane; returns the source's bytes it took, 0 if there was nothing to do."""
        lanes = self._lanes()
        if not lanes:
            return 0
        lane = self._chance.choice(lanes)
        claim = self._claim(lane)
        if claim is None:
            return 0
        verdict: LaneVerdict | None = await verify_lane(claim)
        if verdict and verdict.outcome is Outcome.DIFFERENT:
            await asyncio.sleep(DOUBT_S)
            verdict = await self._again(lane, claim)
            if verdict and verdict.outcome is Outcome.DIFFERENT:
                self.differences += 1
                self._report(lane, verdict.reason)
        if verdict:
            self.records += verdict.records
            self.bytes += verdict.bytes
            self.unknown += verdict.outcome is Outcome.UNKNOWN
        return verdict.bytes if verdict else STRETCH_BYTES

    def _claim(self, lane: L) -> MappedClaim | None:
        recent = self._recent(lane)
        if recent is None or not recent.segments:
            return None
        segments = as_segments(recent.segments)
        source, target, length = self._chance.choice(segments.tolist())
        skip = self._chance.randrange(max(length - STRETCH_RECORDS_MAX, 0) + 1)
        stretch = (source + skip, target + skip, min(length, STRETCH_RECORDS_MAX))
        return MappedClaim(
            recent.source,
            recent.target,
            as_segments([stretch]),
            holes_allowed=True,
            bytes_max=STRETCH_BYTES,
            rules=recent.rules,
        )

    async def _again(self, lane: L, claim: MappedClaim) -> LaneVerdict | None:
        """The verdict on the same stretch, if it is still where the lane says it is."""
        recent = self._recent(lane)
        (source, target, length) = claim.segments[0].tolist()
        if recent is None:
            return None
        now = clip(as_segments(recent.segments), source, source + length, target)
        if records_in(now) < length or (now[:, 1] - now[:, 0] != target - source).any():
            return None
        return await verify_lane(claim)
