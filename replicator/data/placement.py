"""Where a lane goes on: the target's own tail, read against what is known of the lane for certain.

The rule behind all of it: never resend on a guess. The log end offset and the last batch's header on the target say
how many records beyond the checkpoint have landed. Which source offset comes after them follows from the offset map:
the checkpoint's record names every gap in the source's offsets before anything behind the gap is sent. The record found
there is compared with the last one of the target, because the checkpoint may be an owner's of the past; if they differ,
the source's records are counted from the checkpoint on instead, as far as they can be: where they were rebuilt, the
last one must prove the count right.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import NamedTuple

from replicator._core import BatchHeader, open_batch
from replicator.config.models import Policy
from replicator.data.codecs import UnpackError
from replicator.data.log_reader import LogReader, StoredBatch
from replicator.data.matching import Match, first_batch, is_replayed, match
from replicator.data.reasons import WHY
from replicator.data.resume import SEQUENCES, Intent, Segment, conflicts, resume_point
from replicator.data.rules import AS_IT_IS, Rules
from replicator.data.states import Checkpoint
from replicator.data.transitions import Trigger, by_policy
from replicator.errors import ProtocolError
from replicator.kafka.log import (
    CONTROL,
    DELETE_HORIZON,
    LOG_APPEND_TIME,
    START,
    TRANSACTIONAL,
    LogTail,
    Partition,
    fetch_slice,
    find_offset,
    read_tail,
)

STILL_S = 0.3  # how long the target's tail must not move before we believe that a dead connection's requests are over
SLICE_BYTES = 1 << 20
CONFLICTS_MAX = 64  # so many are looked into: each costs two Fetches or more


class LaneStopped(Exception):
    """Ends a procedure: the lane stands still after this."""

    def __init__(self, trigger: Trigger, reason: str) -> None:
        super().__init__(reason)
        self.trigger = trigger
        self.reason = reason


class Mark(NamedTuple):
    """What is known of a lane for certain: a checkpoint, the segments up to it, and the gaps announced beyond it."""

    checkpoint: Checkpoint
    segments: tuple[Segment, ...]
    ahead: tuple[tuple[int, int], ...]


class Run(NamedTuple):
    """Records of ours that stand together on the target."""

    at: int  # target offset
    sequence: int
    length: int  # in offsets: what the log cleaner leaves of a batch keeps its span

    @property
    def end(self) -> int:
        return self.at + self.length

    def holds(self, sequence: int) -> bool:
        return (sequence - self.sequence) % SEQUENCES < self.length

    def offset_of(self, sequence: int) -> int:
        return self.at + (sequence - self.sequence) % SEQUENCES


class Place(NamedTuple):
    """Where a lane goes on: what its core resumes with, and what was found out on the way, if a person should know."""

    checkpoint: Checkpoint
    segments: tuple[Segment, ...] = ()
    landed: int = 0  # records beyond the checkpoint that are on the target, to be passed over
    trigger: Trigger | None = None
    news: str = ""

    def behind_gap(self, log_start: int) -> "Place":
        """The source has nothing before `log_start` any more."""
        position = max(self.checkpoint.position, log_start)
        return self._replace(checkpoint=self.checkpoint._replace(position=position, leader_epoch=-1))

    def at_fork(self, end_offset: int, epoch: int) -> "Place":
        """The source's log goes on differently from `end_offset` on: what was copied of its old branch stays on the
        target, and is no offset of the source any more."""
        position = min(self.checkpoint.position, end_offset)
        kept = tuple((s, t, min(n, position - s)) for s, t, n in self.segments if s < position)
        return self._replace(checkpoint=self.checkpoint._replace(position=position, leader_epoch=epoch), segments=kept)


@dataclass(frozen=True)
class Placement:
    """Finds the place of one lane of `link`. `by_map`: gaps are announced before they are passed. `rules`: what becomes
    of records on their way, so how to know them again on the target."""

    source: Partition
    target: Partition
    producer: tuple[int, int]  # id, epoch
    policy: Policy
    by_map: bool
    rules: Rules = AS_IT_IS
    link: str = ""

    async def find(self, mark: Mark, in_doubt: bool) -> Place:
        """`in_doubt`: requests whose answers nobody heard may still be landing.

        Raises LaneStopped when it cannot be told, ClusterError, NetworkError.
        """
        tail = await self._tail(mark, in_doubt)
        beyond = tail.end_offset - mark.checkpoint.target_next
        if beyond < 0:
            return await self._refill(mark, tail)
        ours = self._ours_beyond(mark.checkpoint, tail)
        if not beyond:
            if tail.last and ours != 0:
                what = f"the target's last batch, at offset {tail.last.base_offset}, is not the one acknowledged there"
                raise LaneStopped(Trigger.TARGET_CHANGED, what)
            return Place(mark.checkpoint, mark.segments)
        if ours == beyond:
            return await self._beyond(mark, beyond)
        if self.by_map and await self._may_stand_there(mark.checkpoint.target_next, tail.end_offset):
            return await self._among_others(mark, tail)
        raise LaneStopped(
            Trigger.FOREIGN_WRITES_FENCE,
            f"target offsets {mark.checkpoint.target_next} to {tail.end_offset - 1} are not all ours: only the link may"
            " write to this topic",
        )

    async def _may_stand_there(self, offset: int, end: int) -> bool:
        """True if what others have put on the target is no reason to stop: a policy tolerates it, or it is an
        operator's replay of this link's dead letters. What a control batch says is no record of anybody's."""
        if not by_policy(self.policy, "foreign_writes").is_final:
            return True
        async for batch in self._target_batches(offset, end):
            if not (self._is_ours(batch) or batch.header.attributes & CONTROL or is_replayed(batch, self.link)):
                return False
        return True

    async def _tail(self, mark: Mark, in_doubt: bool) -> LogTail:
        """The target's tail, and not before requests of a lost connection have stopped landing there.

        The sequence would refuse them, or recognise ours behind them, but for old records a broker keeps no sequence.
        A log that seems to have lost its end is looked at twice, too.
        """
        tail = await read_tail(self.target)
        while in_doubt or tail.end_offset < mark.checkpoint.target_next:
            before = tail.end_offset
            await asyncio.sleep(STILL_S)
            tail = await read_tail(self.target)
            if tail.end_offset == before or (tail.end_offset > before and await self._only_others(before, tail)):
                break
        return tail

    async def _only_others(self, offset: int, tail: LogTail) -> bool:
        """True if nothing of what came to the target from `offset` on is ours: others may never stop writing."""
        return not await self._find_ours(offset, tail.end_offset)

    def _ours_beyond(self, checkpoint: Checkpoint, tail: LogTail) -> int:
        """By how many records the sequence of the target's last batch leads the checkpoint; -1 if it is not ours."""
        last = tail.last
        if last is None or (last.producer_id, last.producer_epoch) != self.producer:
            return -1
        return (_next_sequence(last) - checkpoint.sequence) % SEQUENCES

    # ---- more landed than the checkpoint knows of ----

    async def _beyond(self, mark: Mark, landed: int) -> Place:
        if not self.by_map:
            return Place(mark.checkpoint, mark.segments, landed)
        return Place(*await self._resume(mark, [Run(mark.checkpoint.target_next, mark.checkpoint.sequence, landed)]))

    async def _among_others(self, mark: Mark, tail: LogTail) -> Place:
        """As `_beyond`, on a target partition that others write to as well: our batches are looked for one by one."""
        found = await self._find_ours(mark.checkpoint.target_next, tail.end_offset)
        if not found:
            return Place(mark.checkpoint, mark.segments)
        checkpoint, segments = await self._resume(mark, found)
        settled = _joined(_moved(segments, mark.checkpoint, found))
        return Place(checkpoint._replace(target_next=found[-1].end), settled)

    async def _resume(self, mark: Mark, ours: list[Run]) -> tuple[Checkpoint, tuple[Segment, ...]]:
        """Where the last of our records on the target leads to, which stand in these runs."""
        next_sequence = (ours[-1].sequence + ours[-1].length) % SEQUENCES
        ahead = await self._settle_conflicts(mark, ours, next_sequence)
        with contextlib.suppress(ValueError):  # the record contradicts itself: an owner of the past had a hand in it
            checkpoint, segments = resume_point(mark.checkpoint, mark.segments, ahead, next_sequence)
            if await self._match(checkpoint.position - 1, ours[-1].end - 1) is not Match.OTHER:
                return checkpoint, segments
        landed = (next_sequence - mark.checkpoint.sequence) % SEQUENCES
        checkpoint, segments, is_certain = await self._count(mark, landed)
        found = await self._match(checkpoint.position - 1, ours[-1].end - 1)
        if found is Match.SAME or (is_certain and found is Match.UNKNOWN):
            return checkpoint, segments
        raise LaneStopped(Trigger.SOURCE_CHANGED, WHY["refuse_tail"])

    async def _settle_conflicts(self, mark: Mark, ours: list[Run], next_sequence: int) -> tuple[Intent, ...]:
        """The intents without those that others contradict, and the target's records too.

        Two owners may each have announced a gap before the same record: between them the source was compacted, or the
        link's policy changed. Either may have sent it. So the record that landed decides which it was; where it cannot,
        the lane stops.
        """
        ahead = mark.ahead
        disputed = conflicts(mark.checkpoint, ahead, next_sequence)
        for number, (sequence, offsets) in enumerate(disputed.items()):
            at = next((run.offset_of(sequence) for run in ours if run.holds(sequence)), -1)  # -1: compacted since
            told = [offset for offset in offsets if at >= 0 and await self._match(offset, at) is Match.SAME]
            if len(told) != 1 or number >= CONFLICTS_MAX:
                raise LaneStopped(
                    Trigger.SOURCE_CHANGED,
                    f"the target's record of sequence {sequence} may be the source's at"
                    f" {' or '.join(map(str, offsets))}, and {len(told) or 'none'} of these is the same: owners of the"
                    " lane saw the source differently, which was compacted meanwhile, or filtered in another way",
                )
            ahead = tuple(intent for intent in ahead if intent[1] != sequence or intent[0] == told[0])
        return ahead

    async def _match(self, offset: int, at: int) -> Match:
        """Whether the target's record at `at` is the source's at `offset`."""
        copy = first_batch((await fetch_slice(self.target, at, 1)).records)
        if copy is None:
            raise ProtocolError("a Fetch below the log's end brought no batch", where=self.target.where)
        return await match(self.source, offset, copy, at, self.rules)

    async def _count(self, mark: Mark, landed: int) -> tuple[Checkpoint, tuple[Segment, ...], bool]:
        """The place that so many of the source's records lead to, counted batch by batch from the checkpoint on.

        And whether that is certain: what was rebuilt may have been more records then, or fewer.
        """
        at, segments, is_certain = mark.checkpoint, list(mark.segments), not self.rules.changed
        reader = LogReader(self.source, at.position, committed=self.rules.committed)
        try:
            while landed:
                batch = None if self.rules.filtered or self.rules.diverted else await reader.peek()
                if batch is None:  # the source ends before the target does, or its records cannot be counted
                    raise LaneStopped(Trigger.SOURCE_CHANGED, WHY["refuse_tail"])
                is_certain = is_certain and not _is_rebuilt(batch) and at.position <= batch.start
                for start, length in () if batch.aborted else batch.runs():
                    first, end = max(start, at.position), min(start + length, max(start, at.position) + landed)
                    if first < end:
                        segments.append((first, at.target_next, end - first))
                        at = _passed(at, end, end - first, batch.header.leader_epoch)
                        landed -= end - first
                is_certain = is_certain and at.position >= batch.end
                reader.move(batch.end)
        except (ProtocolError, UnpackError):  # of a format, or in a state, that we cannot count in
            raise LaneStopped(Trigger.SOURCE_CHANGED, WHY["refuse_tail"]) from None
        return at, _joined(segments), is_certain

    def _is_ours(self, batch: StoredBatch) -> bool:
        return (batch.header.producer_id, batch.header.producer_epoch) == self.producer

    async def _find_ours(self, offset: int, end: int) -> list[Run]:
        """Each of our batches on the target from `offset` on."""
        return [
            Run(batch.start, batch.header.base_sequence, batch.end - batch.start)
            async for batch in self._target_batches(offset, end)
            if self._is_ours(batch)
        ]

    async def _target_batches(self, offset: int, end: int) -> AsyncIterator[StoredBatch]:
        while offset < end:
            records = memoryview((await fetch_slice(self.target, offset, SLICE_BYTES)).records)
            if open_batch(records) is None:
                raise ProtocolError("a Fetch below the log's end brought no batch", where=self.target.where)
            while (header := open_batch(records)) is not None:
                batch = StoredBatch(header, records[: header.size])
                records = records[header.size :]
                if batch.end > offset:
                    offset = batch.end
                    yield batch

    # ---- less there than was acknowledged ----

    async def _refill(self, mark: Mark, tail: LogTail) -> Place:
        """The target lost its end: go back to where the offset map says that its last record came from."""
        checkpoint, end = mark.checkpoint, tail.end_offset
        lost = f"the target's log ends at {end}, but {checkpoint.target_next} was acknowledged"
        trigger = by_policy(self.policy, "target_lost")
        if trigger.is_final:
            raise LaneStopped(trigger, lost)
        kept = tuple((s, t, min(n, end - t)) for s, t, n in mark.segments if t < end)
        gone = sum(n for _, _, n in mark.segments) - sum(n for _, _, n in kept)
        if not kept and (not mark.segments or mark.segments[0][1] != end):
            raise LaneStopped(Trigger.CANNOT_REFILL, f"{lost}, and what is known of the offset map begins later")
        position = kept[-1][0] + kept[-1][2] if kept else mark.segments[0][0]
        sequence = (checkpoint.sequence - gone) % SEQUENCES
        if tail.last and ((tail.last.producer_id, tail.last.producer_epoch) != self.producer):
            raise LaneStopped(Trigger.CANNOT_REFILL, f"{lost}, and its last batch is not ours")
        if tail.last and _next_sequence(tail.last) != sequence:
            raise LaneStopped(Trigger.CANNOT_REFILL, f"{lost}, and its last batch is not the one that stood there")
        log_start = await find_offset(self.source, START)
        if position < log_start:
            raise LaneStopped(
                Trigger.CANNOT_REFILL, f"{lost}, and the source has nothing below {log_start} to fill it up from"
            )
        news = f"{lost}: copied once more from source offset {position} on"
        return Place(Checkpoint(position, end, sequence), kept, trigger=trigger, news=news)


def _next_sequence(last: BatchHeader) -> int:
    # Not the count: what the log cleaner leaves of a batch keeps its span.
    return (last.base_sequence + last.last_offset_delta + 1) % SEQUENCES


def _is_rebuilt(batch: StoredBatch) -> bool:
    """True for a batch that a lane does not pass on as it is."""
    return not batch.dense or bool(batch.header.attributes & (TRANSACTIONAL | LOG_APPEND_TIME | DELETE_HORIZON))


def _passed(at: Checkpoint, position: int, count: int, leader_epoch: int) -> Checkpoint:
    return Checkpoint(position, at.target_next + count, (at.sequence + count) % SEQUENCES, leader_epoch)


def _moved(segments: tuple[Segment, ...], checkpoint: Checkpoint, found: list[Run]) -> list[Segment]:
    """The segments beyond the checkpoint, which are as if no others had written, moved to where our batches stand."""
    target_next = checkpoint.target_next
    moved = [(s, t, min(n, target_next - t)) for s, t, n in segments if t < target_next]
    for start, target_start, length in segments:
        for at, sequence, count in found:
            due = target_next + ((sequence - checkpoint.sequence) % SEQUENCES)
            first, behind = max(target_start, due, target_next), min(target_start + length, due + count)
            if first < behind:
                moved.append((start + first - target_start, at + first - due, behind - first))
    return sorted(moved)


def _joined(segments: list[Segment]) -> tuple[Segment, ...]:
    """The same, with those that touch on both sides made one."""
    joined: list[Segment] = []
    for source_start, target_start, length in segments:
        if joined:
            before = joined[-1]
            if (before[0] + before[2], before[1] + before[2]) == (source_start, target_start):
                joined[-1] = (before[0], before[1], before[2] + length)
                continue
        joined.append((source_start, target_start, length))
    return tuple(joined)
