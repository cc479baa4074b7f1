"""A lane's checkpoint on the target cluster: what is written down of the lane, when, and by which owner.

Three kinds of writing, each by the owner of the lane's shard only:

    a LaneRecord   every `checkpoint_interval_ms` if something moved, and now and then if nothing did
    gaps ahead     the same record with the gaps in the source's offsets that queued batches stand behind: those
                   batches are held until it is acknowledged, so that a sequence found on the target can be told
                   what source offset it stands for, whatever becomes of this process
    a Chunk        segments of the offset map, once there are some that the record should not carry any longer
"""

import asyncio
import os
import socket
import time
from typing import TYPE_CHECKING

import msgspec

from replicator._core import VERDICTS
from replicator.data.placement import Mark, Place
from replicator.data.resume import Intent, Segment, still_ahead
from replicator.data.states import Checkpoint
from replicator.state.chunks import CHUNK_SEGMENTS_MAX, pack
from replicator.state.records import (
    ChunkKey,
    LaneKey,
    LaneRecord,
    offsets_topic,
    shard_of,
    spell_topic_id,
    state_topic,
)
from replicator.state.writer import StateWriter

if TYPE_CHECKING:
    from replicator.data.lane import LaneRunner

ALIVE_S = 10.0  # a lane that stands still says so that often; it also mends what an owner of the past may have written
CHUNK_S = 5.0  # between two chunks of a lane, unless many segments wait
CHUNK_SEGMENTS_SOON = 256  # so many in a LaneRecord are enough

COUNTED = (*VERDICTS, "merged_batches", "filtered_records", "diverted_records")
NOWHERE = Checkpoint(-1, -1, 0)
OWNER = f"{socket.gethostname()}:{os.getpid()}"


class LaneLedger:
    """The records of one lane while this worker owns it."""

    def __init__(self, runner: "LaneRunner", saved: LaneRecord | None, writer: StateWriter, shards: int) -> None:
        spec = runner.spec
        self.saved = saved
        self._runner = runner
        self._writer = writer
        self._link = spec.link
        self._shard = shard_of(spec.topic, spec.partition, shards)
        self._key = LaneKey(spec.topic, spec.partition)
        self._generation = saved.generation + 1 if saved else 1
        # The gaps announced: the target may have passed these, and no others.
        self.ahead: tuple[Intent, ...] = saved.ahead if saved else ()
        # Of the core's segments, the oldest so many stand in the acknowledged chunk of this number. The last one never
        # counts: it still grows.
        self._chunked = 0
        self._chunk = 0
        self._chunk_at = -CHUNK_S
        self._written: tuple[int, int, str] | None = None  # row version, state, reason
        self._written_at = 0.0
        self._announcing = self._chunking = False
        self._places = 0  # how often this owner has placed the lane

    def mark(self) -> Mark | None:
        """What is known of the lane from the record of the owner before. None: it never ran."""
        if self.saved is None:
            return None
        s = self.saved
        return Mark(Checkpoint(s.position, s.target_next, s.sequence, s.leader_epoch), s.segments, s.ahead)

    @property
    def has_other_policy(self) -> bool:
        """The last owner treated records differently: by other edits, filters or isolation."""
        return self.saved is not None and self.saved.policy not in ("", self._runner.spec.policy_hash)

    def begin_anew(self) -> None:
        """Both topics are others than those that were left: what is known of them is of no use."""
        self.saved, self.ahead = None, ()

    async def place(self, place: Place, *, forget: bool) -> None:
        """Writes down where the lane goes on, before it does. Raises ClusterError, NetworkError.

        Gaps that were announced stay so, for a request that nobody waits for any more may still land; unless the lane
        is to `forget` them, because its source's log is another by now.
        """
        self.ahead = () if forget else still_ahead(place.checkpoint, self.ahead, ())
        self._places += 1
        self._chunk += bool(self._chunked)
        self._chunked = 0
        await self._write(place.checkpoint, place.segments)

    def round(self, now: float) -> "asyncio.Future[None] | None":
        """Writes a checkpoint if it is due: something has changed, or nothing was said for a while."""
        runner = self._runner
        seen = (runner.version, runner.state, runner.reason)
        if seen == self._written and now - self._written_at < ALIVE_S:
            return None
        if not runner.placed and self._places:
            return None  # on its way to its place, which is written down
        self._written, self._written_at = seen, now
        if runner.placed:
            return self._write(runner.checkpoint, self._loose_segments())
        return self._put(self._record_unplaced())

    async def announce(self) -> None:
        """Writes down the gaps ahead and lets the batches behind them go, until none is held.

        Raises ClusterError, NetworkError.
        """
        if self._announcing:
            return
        self._announcing = more = True
        try:
            while more:
                # Before it is written, so that no checkpoint written meanwhile leaves them out.
                cursor, queued = self._runner.native.ahead()
                self.ahead = still_ahead(self._runner.checkpoint, self.ahead, queued)
                await self._write(self._runner.checkpoint, self._loose_segments())
                more = self._runner.native.permit(cursor)
                if self._loose_count > CHUNK_SEGMENTS_SOON:
                    await self.write_chunk()
                    more = self._runner.native.permit(cursor)  # again: gaps that came meanwhile told us in vain
                # Nothing else may stir: the lane can be full, with nothing in flight that would be answered.
                self._runner.worker.pump_soon()
        finally:
            self._announcing = False

    async def write_chunk(self) -> None:
        """Moves segments from the record to a chunk, if it is time. Raises ClusterError, NetworkError."""
        loose, now = self._loose_count, time.monotonic()
        is_due = loose > CHUNK_SEGMENTS_SOON or (loose > 1 and now - self._chunk_at >= CHUNK_S)
        if self._chunking or not loose or not (is_due or self._chunk_at < 0):
            return
        self._chunk_at, self._chunking = now, True
        try:
            await self._write_chunk(self._runner.native.segments())
        finally:
            self._chunking = False

    async def _write_chunk(self, segments: tuple[Segment, ...]) -> None:
        number, places = self._chunk, self._places
        written = segments[:CHUNK_SEGMENTS_MAX]
        key = ChunkKey(self._key.topic, self._key.partition, self._topic_id, self._generation, number)
        chunk = pack(self._generation, written)
        await self._writer.write(offsets_topic(self._link), self._shard, key, chunk)
        if self._places != places:
            return  # the lane was placed anew meanwhile, perhaps further back
        self._chunked = len(written) - 1
        if len(written) == CHUNK_SEGMENTS_MAX < len(segments):
            self._runner.native.drop_segments(len(written))
            self._runner.worker.pump_soon()  # a lane whose map was full goes on
            self._chunk, self._chunked = number + 1, 0

    # ---- one record ----

    @property
    def _topic_id(self) -> str:
        return spell_topic_id(self._runner.topic_id(self._runner.source))

    @property
    def _loose_count(self) -> int:
        """How many `_loose_segments` there are, without a copy of them: asked each round, of each lane."""
        return self._runner.native.segment_count - self._chunked

    def _loose_segments(self) -> tuple[Segment, ...]:
        return self._runner.native.segments()[self._chunked :]

    def _write(self, checkpoint: Checkpoint, segments: tuple[Segment, ...]) -> "asyncio.Future[None]":
        return self._put(self._record(checkpoint, segments))

    def _put(self, record: LaneRecord) -> "asyncio.Future[None]":
        return self._writer.write(state_topic(self._link), self._shard, self._key, record)

    def _record_unplaced(self) -> LaneRecord:
        """Of a lane that has not found its place yet: what its last owner left, with our state and reason."""
        if self.saved is None:
            return msgspec.structs.replace(self._record(NOWHERE, ()), generation=0)
        ours = self._record(NOWHERE, ())
        names = ("state", "reason", "since_ms", "written_ms", "worker")
        return msgspec.structs.replace(self.saved, **{name: getattr(ours, name) for name in names})

    def _record(self, checkpoint: Checkpoint, segments: tuple[Segment, ...]) -> LaneRecord:
        runner = self._runner
        producer_id, producer_epoch = runner.producer
        return LaneRecord(
            generation=self._generation,
            topic_id=self._topic_id,
            target_topic=runner.spec.target_topic,
            target_topic_id=spell_topic_id(runner.topic_id(runner.target)),
            position=checkpoint.position,
            target_next=checkpoint.target_next,
            sequence=checkpoint.sequence,
            leader_epoch=checkpoint.leader_epoch,
            producer_id=producer_id,
            producer_epoch=producer_epoch,
            segments=segments,
            ahead=self.ahead,
            state=runner.shown_state.name.lower(),
            reason=runner.reason,
            since_ms=runner.since_ms,
            written_ms=int(time.time() * 1000),
            high_watermark=runner.counter("high_watermark"),
            last_stable_offset=runner.counter("last_stable_offset"),
            log_start_offset=runner.counter("log_start_offset"),
            last_timestamp_ms=runner.counter("max_timestamp"),
            worker=OWNER,
            policy=runner.spec.policy_hash,
            counts={column: n for column in COUNTED if (n := runner.counter(column))},
        )
