"""The lanes of one link in a worker that keeps its checkpoints on the target: which it runs follows from its shards.

A lane runs here while two things are so: the supervisor has named it, and the link's consumer group has given us its
shard. The shard comes with what its last owner left in the state topic; it goes after what is in flight was settled, if
that does not take long, and a last checkpoint. Neither makes the copy exact: the next owner asks the target.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from msgspec.structs import replace

from replicator.config.models import Link
from replicator.data.lane import LaneRunner
from replicator.data.ledger import LaneLedger
from replicator.data.membership import Membership, Records
from replicator.data.orders import LaneSpec, Notice, SettingsChanged, ShardsOwned
from replicator.data.transitions import Trigger
from replicator.errors import ProtocolError, ReplicatorError
from replicator.state.records import LaneKey, LaneRecord, decode, encode, shard_of
from replicator.state.writer import StateWriter
from replicator.tasks import must_not_end

if TYPE_CHECKING:
    from replicator.data.worker import Worker

SETTLE_TIMEOUT_S = 5.0
LATE_S = 15.0  # checkpoints that could not be written for so long are told of


class LinkShards:
    """`know` lanes; the group does the rest. An Owner for its Membership."""

    def __init__(self, link: Link, worker: "Worker", writer: StateWriter) -> None:
        self.link = link
        self._worker = worker
        self._writer = writer
        self._known: dict[int, list[LaneSpec]] = {}  # by shard
        self._owned: dict[int, Records] = {}
        self._membership = Membership(worker.config.clusters[link.target], link, self)
        self._rounds = asyncio.ensure_future(self._write_rounds())
        self._rounds.add_done_callback(must_not_end)
        self._trouble = ""
        self.unsettled = 0  # lanes given up with something in flight: the next owner sees how it ended

    @property
    def lanes(self) -> list[LaneRunner]:
        return [lane for lane in self._worker.lanes.values() if lane.spec.link == self.link.name]

    def know(self, specs: Iterable[LaneSpec]) -> None:
        """These lanes exist, too."""
        for spec in specs:
            shard = shard_of(spec.topic, spec.partition, self.link.shards)
            self._known.setdefault(shard, []).append(spec)
            if shard in self._owned:
                self._start(spec, self._owned[shard])

    def change_settings(self, order: SettingsChanged) -> None:
        """The target topic of these lanes takes something else now."""
        rows = set(order.rows)
        for shard, specs in self._known.items():
            self._known[shard] = [
                replace(spec, settings=order.settings) if spec.row in rows else spec for spec in specs
            ]

    def _start(self, spec: LaneSpec, records: Records) -> None:
        raw = records.get(encode(LaneKey(spec.topic, spec.partition)))
        try:
            saved = decode(raw, LaneRecord) if raw else None
        except ProtocolError as error:
            self._worker.cannot_start(spec, f"its record in the state topic cannot be read: {error}")
            return

        if saved and not saved.generation:  # it never found its place
            saved = None

        def keep(lane: LaneRunner) -> LaneLedger:
            return LaneLedger(lane, saved, self._writer, self.link.shards)

        self._worker.start_lane(LaneRunner(spec, self._worker, saved, keep))

    # ---- what the group says ----

    def taken(self, shard: int, records: Records) -> None:
        self._owned[shard] = records
        for spec in self._known.get(shard, ()):
            self._start(spec, records)
        self._tell()

    async def give_up(self, shards: list[int]) -> None:
        lanes = self._forget(shards)
        for lane in lanes:
            lane.drain()
        deadline = asyncio.get_running_loop().time() + SETTLE_TIMEOUT_S
        while not all(lane.settled for lane in lanes) and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)
        self.unsettled += sum(not lane.settled for lane in lanes)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._write_round(lanes), SETTLE_TIMEOUT_S)
        await self._worker.release(lanes, Trigger.DRAINED)
        self._tell()

    def lost(self, shards: list[int]) -> None:
        self._note(logging.WARNING, f"a worker was taken for dead; {len(shards)} shards are others' now")
        self._worker.spawn(self._worker.release(self._forget(shards), Trigger.TAKEN_OVER))
        self._tell()

    def troubled(self, reason: str) -> None:
        if reason != self._trouble:
            self._note(logging.WARNING, f"its group on {self.link.target}: {reason}")
        self._trouble = reason

    def _note(self, level: int, text: str) -> None:
        self._worker.report(Notice(level, f"link {self.link.name}: {text}"))

    def _forget(self, shards: list[int]) -> list[LaneRunner]:
        for shard in shards:
            self._owned.pop(shard, None)
        gone = set(shards)
        return [lane for lane in self.lanes if self._shard(lane) in gone]

    def _shard(self, lane: LaneRunner) -> int:
        return shard_of(lane.spec.topic, lane.spec.partition, self.link.shards)

    def _tell(self) -> None:
        self._worker.report(ShardsOwned(self.link.name, sorted(self._owned), self._membership.member_id))

    # ---- checkpoints ----

    async def _write_rounds(self) -> None:
        loop = asyncio.get_running_loop()
        last_good = loop.time()
        while True:
            await asyncio.sleep(self.link.checkpoint_interval_ms / 1000)
            for lane in self.lanes:
                lane.watch(loop.time())
            if error := await self._write_round(self.lanes):
                if loop.time() - last_good > LATE_S:
                    self._note(logging.ERROR, f"no checkpoint since {loop.time() - last_good:.0f} s: {error}")
            else:
                last_good = loop.time()

    async def _write_round(self, lanes: list[LaneRunner]) -> ReplicatorError | None:
        """A checkpoint and, if due, a chunk of each lane. Returns the first of the errors."""
        now = asyncio.get_running_loop().time()
        ledgers = [lane.ledger for lane in lanes if lane.ledger]
        writes = [written for ledger in ledgers if (written := ledger.round(now))]
        for outcome in await asyncio.gather(*writes, return_exceptions=True):
            if isinstance(outcome, ReplicatorError):
                return outcome
        for lane in lanes:
            try:
                if lane.ledger and lane.placed:
                    await lane.ledger.write_chunk()
            except ReplicatorError as error:
                return error
        return None

    async def close(self) -> None:
        """Gives up every shard in good order."""
        await self._membership.close()
        self._rounds.cancel()
        await asyncio.gather(self._rounds, return_exceptions=True)
