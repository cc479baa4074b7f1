"""Where a lane goes on: the target's own tail, read against what is known of the lane for certain.

The rule behind all of it: never resend on a guess. The log end offset and the last batch's header on the target say
how many records beyond the checkpoint have landed. Which source offset comes after them follows from the offset map:
the checkpoint's record names every gap in the source's offsets before anything behind the gap is sent. The batch found
there is compared with the one at the target's end, because the record may be an owner's of the past; if they differ,
the source's batches are counted from the checkpoint on instead.
"""

import asyncio
import contextlib
from dataclasses import dataclass
from typing import NamedTuple

from replicator._core import BatchHeader, crc32c, open_batch
from replicator.config.models import Policy
from replicator.data.reasons import WHY
from replicator.data.resume import SEQUENCES, Segment, resume_point
from replicator.data.states import Checkpoint
from replicator.data.transitions import Trigger, by_policy
from replicator.errors import ClusterError, ProtocolError
from replicator.kafka.log import (
    BATCH_HEADER_SIZE,
    CODEC,
    CONTROL,
    LOG_APPEND_TIME,
    OFFSET_OUT_OF_RANGE,
    START,
    LogTail,
    Partition,
    fetch_slice,
    find_offset,
    read_tail,
)

STILL_S = 0.3  # how long the target's tail must not move before we believe that a dead connection's requests are over
SLICE_BYTES = 1 << 20


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
    """Finds the place of one lane. `by_map`: gaps are announced before they are passed."""

    source: Partition
    target: Partition
    producer: tuple[int, int]  # id, epoch
    policy: Policy
    by_map: bool

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
            return await self._beyond(mark, tail, beyond)
        trigger = by_policy(self.policy, "foreign_writes")
        if not trigger.is_final and self.by_map:
            return await self._among_others(mark, tail)
        raise LaneStopped(
            Trigger.FOREIGN_WRITES_FENCE,
            f"target offsets {mark.checkpoint.target_next} to {tail.end_offset - 1} are not all ours: only the link may"
            " write to this topic",
        )

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

    async def _beyond(self, mark: Mark, tail: LogTail, landed: int) -> Place:
        if not self.by_map:
            return Place(mark.checkpoint, mark.segments, landed)
        assert tail.last is not None
        with contextlib.suppress(ValueError):  # the record contradicts itself: an owner of the past had a hand in it
            checkpoint, segments = resume_point(*mark, _next_sequence(tail.last))
            if await self._agree(checkpoint.position, tail.last, tail.records):
                return Place(checkpoint, segments)
        checkpoint, segments = await self._count(mark, landed)
        if await self._agree(checkpoint.position, tail.last, tail.records):
            return Place(checkpoint, segments)
        raise LaneStopped(Trigger.SOURCE_CHANGED, WHY["refuse_tail"])

    async def _agree(self, position: int, copy: BatchHeader, copied: bytes) -> bool:
        """True unless the source's batch that ends before `position` shows that it is not this one of the target."""
        try:
            records = (await fetch_slice(self.source, position - 1, 1)).records
        except ClusterError as error:
            if error.code == OFFSET_OUT_OF_RANGE:
                return True  # gone from the source: nothing speaks against it
            raise
        original = open_batch(records)
        if original is None or original.magic != 2:
            return True
        if original.base_offset + original.last_offset_delta + 1 != position:
            return False
        if original.count != original.last_offset_delta + 1:
            return True  # the log cleaner was there since
        return _same(original, records, copy, copied)

    async def _count(self, mark: Mark, landed: int) -> tuple[Checkpoint, tuple[Segment, ...]]:
        """The place that so many of the source's records lead to, counted batch by batch from the checkpoint on."""
        at, segments = mark.checkpoint, list(mark.segments)
        while landed:
            records = memoryview((await fetch_slice(self.source, at.position, SLICE_BYTES)).records)
            if open_batch(records) is None:  # the source ends before the target does
                raise LaneStopped(Trigger.SOURCE_CHANGED, WHY["refuse_tail"])
            while landed and (header := open_batch(records)) is not None:
                records = records[header.size :]
                behind = header.base_offset + header.last_offset_delta + 1
                if behind <= at.position:
                    continue
                count = 0 if header.attributes & CONTROL else header.count
                if count > landed or (count and count != header.last_offset_delta + 1):
                    raise LaneStopped(Trigger.SOURCE_CHANGED, WHY["refuse_tail"])
                if count:
                    segments.append((header.base_offset, at.target_next, count))
                landed -= count
                sequence = (at.sequence + count) % SEQUENCES
                at = Checkpoint(behind, at.target_next + count, sequence, header.leader_epoch)
        return at, _joined(segments)

    async def _among_others(self, mark: Mark, tail: LogTail) -> Place:
        """As `_beyond`, on a target partition that others write to as well: our batches are looked for one by one."""
        found = await self._find_ours(mark.checkpoint.target_next, tail.end_offset)
        if not found:
            return Place(mark.checkpoint, mark.segments)
        sequence = (found[-1][1] + found[-1][2]) % SEQUENCES
        checkpoint, segments = resume_point(*mark, sequence)
        settled = _joined(_moved(segments, mark.checkpoint, found))
        return Place(checkpoint._replace(target_next=found[-1][0] + found[-1][2]), settled)

    async def _find_ours(self, offset: int, end: int) -> list[tuple[int, int, int]]:
        """(target offset, sequence, count) of each of our batches on the target from `offset` on."""
        found: list[tuple[int, int, int]] = []
        while offset < end:
            records = memoryview((await fetch_slice(self.target, offset, SLICE_BYTES)).records)
            if open_batch(records) is None:
                raise ProtocolError("a Fetch below the log's end brought no batch", where=self.target.where)
            while (header := open_batch(records)) is not None:
                records = records[header.size :]
                behind = header.base_offset + header.last_offset_delta + 1
                if behind > offset and (header.producer_id, header.producer_epoch) == self.producer:
                    found.append((header.base_offset, header.base_sequence, header.last_offset_delta + 1))
                offset = max(offset, behind)
        return found

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


def _same(original: BatchHeader, records: bytes, copy: BatchHeader, copied: bytes) -> bool:
    """True if these two batches have the same records. A target that packs batches anew leaves the times to compare."""
    if (original.count, original.base_timestamp) != (copy.count, copy.base_timestamp):
        return False
    if not copy.attributes & LOG_APPEND_TIME and original.max_timestamp != copy.max_timestamp:
        return False
    if (original.attributes ^ copy.attributes) & CODEC:
        return True
    return crc32c(records[BATCH_HEADER_SIZE : original.size]) == crc32c(copied[BATCH_HEADER_SIZE : copy.size])


def _moved(segments: tuple[Segment, ...], checkpoint: Checkpoint, found: list[tuple[int, int, int]]) -> list[Segment]:
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
