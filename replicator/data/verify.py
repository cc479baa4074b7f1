"""Proof that a copy is a copy: both logs are read again, from the brokers, and compared.

What a lane moves is the records section of each batch, as the producer made it. So where source and target hold the
same batches, a batch is compared as a whole: place, counts, timestamps, and the CRC-32C of the section. Where the
target's batches are others, packed anew by its broker or by us, they are opened, and compared record by record: key,
value, headers, timestamp, at the offset that is due. Either way every batch must match its own checksum.

The core compares one segment: a run of source offsets, each with its place on the target (`Comparison.segment`).
Around it are two ways to come by segments. A copy (`Claim`) makes its own from what is on the source: everything, in
order, without a hole on the target and nothing after it. A link that runs (`MappedClaim`) has an offset map; then the
holes between its segments are looked at as well: on the source they may hold nothing that a lane carries, on the
target nothing that is ours.

What counts as a difference and what does not:

* Offsets that one log has deleted since (retention, DeleteRecords) cannot be compared any more. They are counted.
* Records that a log cleaner took out of a compacted topic leave holes, on one side or on both. Where the claim says
  that this may be, they are counted; elsewhere a hole is a difference.
* A target that stamps records itself (LogAppendTime) has other timestamps. Everything else is compared.
* Records of others between the map's segments on the target are counted.
* What a link does to records (`Rules`) is no difference. Where it leaves records out they are counted, and so are those
  of aborted transactions, which no committed reader sees either; where it changes a part of them, that part may be
  another, everything else is compared. Anything else that the map leaves out is lost, and a difference.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from replicator.data import ranges
from replicator.data.compare import Comparison, Difference, Enough, Tally
from replicator.data.log_reader import SLICE_BYTES, Gone, LogReader, StoredBatch
from replicator.data.ranges import Segment
from replicator.data.rules import AS_IT_IS, Rules
from replicator.errors import ReplicatorError
from replicator.kafka.log import START, Partition, find_offset
from replicator.state.offset_map import Segments

LANES_AT_ONCE = 8  # two slices each are in memory


class Outcome(Enum):
    """What a comparison found."""

    IDENTICAL = "identical"  # every records section, byte by byte
    EQUAL = "equal"  # every record; they were packed anew, stamped by the target's broker, or edited as the link should
    DIFFERENT = "different"
    UNKNOWN = "unknown"  # one of the logs could not be read to the end


@dataclass(frozen=True)
class LaneVerdict:
    """What one lane's comparison found, and how much was compared before it ended.

    `reason` is one line: the first difference with its offsets on both sides, or why there is no telling. `checksum`
    is the CRC-32C over all compared records sections of the source, one after the other.
    """

    outcome: Outcome
    reason: str
    records: int
    bytes: int
    batches: int
    checksum: int
    gone: int = 0  # records that are in the map, and that one of the logs has deleted since
    cleaned: int = 0  # records that only one of the logs still has, because the other's cleaner took them
    foreign: int = 0  # records of others in the map's holes on the target
    passed_over: int = 0  # records in the map's holes on the source, rightly: aborted, filtered, or dead letters
    edited: int = 0  # records that are others in a part that the link changes: that part was not compared


class Claim(NamedTuple):
    """That source offsets `start` to `end` - 1 are on the target, from `target_start` on, and nothing after them.

    `start` may lie inside a batch: the batch is the unit that moves, so its whole batch is the first; unless the log
    starts inside of it, since then no reader sees its head, and a lane cuts it off.
    """

    source: Partition
    target: Partition
    start: int
    end: int
    target_start: int = 0
    rules: Rules = AS_IT_IS


class MappedClaim(NamedTuple):
    """That these segments of an offset map hold. `source` and `target` are partitions as in a Claim.

    With a `fraction` below 1 random ranges of them are compared, always the same for the same `seed`. Comparing ends
    early after `bytes_max` of the source.
    """

    source: Partition
    target: Partition
    segments: Segments
    producer_id: int = -1  # ours; -1: not known, so nothing in a hole of the target is taken for ours
    holes_allowed: bool = False  # the log cleaner may have been at either side
    fraction: float = 1.0
    seed: str = ""
    bytes_max: int | None = None
    rules: Rules = AS_IT_IS
    position: int = 0  # so far, behind the last segment, the source holds nothing that is not left out rightly
    dead_letters: Container[int] = ()  # source offsets of records that became dead letters instead


async def verify_lanes(
    claims: Sequence[Claim | MappedClaim], on_records: Callable[[int], None] = lambda records: None
) -> list[LaneVerdict]:
    """The verdicts on the claims, in their order. `on_records` hears of every batch compared: its record count.

    Raises NetworkError when a cluster cannot be asked who leads its partitions; what happens later to a single lane
    is its verdict.
    """
    for cluster in {id(part.cluster): part.cluster for claim in claims for part in claim[:2]}.values():
        await cluster.refresh({part.topic for claim in claims for part in claim[:2] if part.cluster is cluster})
    room = asyncio.Semaphore(LANES_AT_ONCE)

    async def verify(claim: Claim | MappedClaim) -> LaneVerdict:
        async with room:
            return await verify_lane(claim, on_records)

    return await asyncio.gather(*map(verify, claims))


async def verify_lane(
    claim: Claim | MappedClaim, on_records: Callable[[int], None] = lambda records: None
) -> LaneVerdict:
    """The verdict on one claim. Both clusters know the partitions' leaders already (`Cluster.refresh`)."""
    tally = Tally()
    try:
        if isinstance(claim, Claim):
            await _compare_copy(claim, tally, on_records)
        else:
            await _MapComparison(claim, tally, on_records).run()
    except Difference as difference:
        return _verdict(tally, Outcome.DIFFERENT, str(difference))
    except Gone as error:  # of a copy, which was there a moment ago; a map's is dealt with
        return _verdict(tally, Outcome.DIFFERENT if error.partition == claim.target else Outcome.UNKNOWN, str(error))
    except Enough:
        pass
    except (ReplicatorError, ValueError) as error:
        return _verdict(tally, Outcome.UNKNOWN, str(error))
    return _verdict(tally, Outcome.EQUAL if tally.remark else Outcome.IDENTICAL, tally.remark)


def _verdict(tally: Tally, outcome: Outcome, reason: str) -> LaneVerdict:
    counted = {name: value for name, value in vars(tally).items() if name != "remarks"}
    return LaneVerdict(outcome, reason, **counted)


# ---- where segments come from ----


async def _compare_copy(claim: Claim, tally: Tally, on_records: Callable[[int], None]) -> None:
    source = LogReader(claim.source, claim.start, committed=claim.rules.committed)
    target = LogReader(claim.target, claim.target_start)
    comparison = Comparison((source, target), tally, on_records, claim.rules)
    due = claim.target_start
    while True:
        source.end = claim.end
        batch = await source.peek()
        if batch is None:
            break
        head = await find_offset(claim.source, START) if batch.start < claim.start else 0
        for start, length in () if batch.aborted else batch.runs():
            first, end = max(start, head), start + length
            if first < end:
                await comparison.segment(Segment(first, due, end - first))
                due += end - first
        source.move(batch.end)
    target.end = None
    if (extra := await target.peek()) is not None:
        raise Difference(f"the target goes on at offset {extra.start}, where the source's copied part has ended")


class _MapComparison:
    """Goes through the segments of a MappedClaim, or a sample of them, whatever is deleted meanwhile."""

    def __init__(self, claim: MappedClaim, tally: Tally, on_records: Callable[[int], None]) -> None:
        self.claim = claim
        self.tally = tally
        slice_bytes = min(claim.bytes_max or SLICE_BYTES, SLICE_BYTES)
        self.source = LogReader(claim.source, 0, 0, slice_bytes, claim.rules.committed)
        self.target = LogReader(claim.target, 0, 0, slice_bytes)
        readers = self.source, self.target
        self.comparison = Comparison(readers, tally, on_records, claim.rules, claim.holes_allowed, claim.bytes_max)

    async def run(self) -> None:
        starts = [await find_offset(part, START) for part in self.claim[:2]]
        segments = self._without_gone(self.claim.segments, *starts)
        whole = self.claim.fraction >= 1 or not len(segments)
        pieces = deque([segments] if whole else ranges.sample(segments, self.claim.fraction, self._seed()))
        while pieces:
            try:
                await self._piece([Segment(*row) for row in pieces[0].tolist()])
                if whole and len(self.claim.segments):
                    await self._source_hole(max(self._mapped_end, starts[0]), self.claim.position)
            except Gone as gone:
                starts = [gone.log_start_offset if gone.partition == part else 0 for part in self.claim[:2]]
                pieces[0] = ranges.clip(pieces[0], self.comparison.at)
                pieces = deque(self._without_gone(piece, *starts) for piece in pieces)
            else:
                pieces.popleft()

    @property
    def _mapped_end(self) -> int:
        return int(self.claim.segments[-1, 0] + self.claim.segments[-1, 2])

    def _seed(self) -> str:
        return f"{self.claim.seed} {self.claim.source.topic} {self.claim.source.index}"

    def _without_gone(self, segments: Segments, source_start: int, target_start: int) -> Segments:
        left = ranges.clip(segments, source_start, target_start=target_start)
        self.tally.gone += ranges.records_in(segments) - ranges.records_in(left)
        return left

    async def _piece(self, segments: list[Segment]) -> None:
        for index, segment in enumerate(segments):
            await self.comparison.segment(segment)
            if index + 1 < len(segments):
                await self._source_hole(segment.source_end, segments[index + 1].source)
                await self._target_hole(segment, segments[index + 1])

    async def _source_hole(self, start: int, end: int) -> None:
        """Nothing that a lane carries may be left out by the map."""
        self.source.move(start)
        self.source.end = end
        while (batch := await self.source.peek()) is not None:
            self._left_out(batch, max(batch.start, start), end)
            self.source.move(batch.end)

    def _left_out(self, batch: StoredBatch, start: int, end: int) -> None:
        count = batch.count_between(start, end)
        if count and not (batch.aborted or self.claim.rules.filtered or self._is_dead(batch)):
            for offset in batch.between(start, end):
                if offset not in self.claim.dead_letters:
                    raise Difference(f"source offset {offset}: a record that the offset map leaves out")
        self.tally.passed_over += count

    def _is_dead(self, batch: StoredBatch) -> bool:
        """True for a batch that could not be opened, and is one dead letter, at its base offset."""
        return batch.start in self.claim.dead_letters and not batch.opens

    async def _target_hole(self, before: Segment, after: Segment) -> None:
        """Nothing of ours may stand where the map says that nothing does."""
        self.target.move(before.target_end)
        self.target.end = after.target
        while (batch := await self.target.peek()) is not None:
            start = max(batch.start, before.target_end)
            if others := batch.count_between(start, after.target):
                if batch.header.producer_id == self.claim.producer_id != -1:
                    raise Difference(
                        f"target offset {start}: a record of ours that is not in the offset map, between source offsets"
                        f" {before.source_end - 1} and {after.source}"
                    )
                self.tally.foreign += others
            self.target.move(batch.end)
