"""Proof that a copy is a copy: both logs are read again, from the brokers, and compared batch by batch.

What a lane moves is the records section of each batch, as the producer made it. So source and target hold the same
bytes there, in the same order, without a hole on the target: equal counts, equal timestamps, equal codec and equal
CRC-32C of the section, at the target offset that follows from all batches before. What a lane leaves out (control
batches, and batches that compaction has emptied) is left out here as well.

A target topic with a `compression.type` of its own is another matter: its broker opens every batch and packs it anew.
Then counts and timestamps are all that is left to compare, and the verdict says so instead of claiming more.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from replicator._core import BatchHeader, crc32c, open_batch
from replicator.errors import Action, ClusterError, NetworkError, ProtocolError, ReplicatorError
from replicator.kafka.backoff import Backoff
from replicator.kafka.log import LogSlice, Partition, fetch_slice

SLICE_BYTES = 1 << 20
LANES_AT_ONCE = 8  # two slices each are in memory
FETCH_TRIES = 6  # over about two seconds: a leader may move while we read

BATCH_HEADER_SIZE = 61
CODEC = 0x07
CONTROL = 0x20
CODECS = ("none", "gzip", "snappy", "lz4", "zstd", "codec 5", "codec 6", "codec 7")
OFFSET_OUT_OF_RANGE = 1


class Outcome(Enum):
    """What a comparison found."""

    IDENTICAL = "identical"  # every records section, byte by byte
    RECOMPRESSED = "recompressed"  # counts and timestamps are equal; the target's broker made the bytes anew
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


class Claim(NamedTuple):
    """That source offsets `start` to `end` - 1 are on the target, from `target_start` on, and nothing after them.

    `start` may lie inside a batch: the batch is the unit that moves, so its whole batch is the first.
    """

    source: Partition
    target: Partition
    start: int
    end: int
    target_start: int = 0


class _Batch(NamedTuple):
    header: BatchHeader
    section: memoryview  # the records, compressed as they are


class _Difference(Exception):
    """Ends a comparison: here the target is not what the source is."""


class _Tally:
    """What was compared so far."""

    def __init__(self) -> None:
        self.records = self.bytes = self.batches = self.checksum = 0
        self.recompressed = ""  # the first batch that was, in words

    def add(self, batch: _Batch) -> None:
        self.records += batch.header.count
        self.bytes += batch.header.size
        self.batches += 1
        self.checksum = crc32c(batch.section, self.checksum)

    def verdict(self, outcome: Outcome, reason: str) -> LaneVerdict:
        return LaneVerdict(outcome, reason, self.records, self.bytes, self.batches, self.checksum)


async def verify_lanes(
    claims: Sequence[Claim], on_records: Callable[[int], None] = lambda records: None
) -> list[LaneVerdict]:
    """The verdicts on the claims, in their order. `on_records` hears of every batch compared: its record count.

    Raises NetworkError when a cluster cannot be asked who leads its partitions; what happens later to a single lane
    is its verdict.
    """
    for cluster in {id(part.cluster): part.cluster for claim in claims for part in claim[:2]}.values():
        await cluster.refresh({part.topic for claim in claims for part in claim[:2] if part.cluster is cluster})
    room = asyncio.Semaphore(LANES_AT_ONCE)

    async def verify(claim: Claim) -> LaneVerdict:
        async with room:
            return await verify_lane(*claim, on_records=on_records)

    return await asyncio.gather(*map(verify, claims))


async def verify_lane(
    source: Partition,
    target: Partition,
    start: int,
    end: int,
    target_start: int,
    *,
    on_records: Callable[[int], None] = lambda records: None,
) -> LaneVerdict:
    """The verdict on one Claim. Both clusters know the partitions' leaders already (`Cluster.refresh`)."""
    tally = _Tally()
    try:
        await _compare(_LogReader(source, start, end), _LogReader(target, target_start), tally, on_records)
    except _Difference as difference:
        return tally.verdict(Outcome.DIFFERENT, str(difference))
    except ClusterError as error:
        lost = error.code == OFFSET_OUT_OF_RANGE and error.where == target.where
        return tally.verdict(Outcome.DIFFERENT if lost else Outcome.UNKNOWN, str(error))
    except (ReplicatorError, ValueError) as error:
        return tally.verdict(Outcome.UNKNOWN, str(error))
    return tally.verdict(Outcome.RECOMPRESSED if tally.recompressed else Outcome.IDENTICAL, tally.recompressed)


async def _compare(
    source: "_LogReader", target: "_LogReader", tally: _Tally, on_records: Callable[[int], None]
) -> None:
    due = target.offset
    while (original := await source.next()) is not None:
        place = f"batch at source offset {original.header.base_offset}, target offset {due}"
        copy = await target.next()
        if copy is None:
            raise _Difference(f"{place}: the target's log ends at {target.offset}")
        codec, copied_codec = original.header.attributes & CODEC, copy.header.attributes & CODEC
        if what := _header_difference(original.header, copy.header, due):
            raise _Difference(f"{place}: {what}")
        if codec != copied_codec:
            how = f"{CODECS[codec]} on the source, {CODECS[copied_codec]} on the target"
            tally.recompressed = tally.recompressed or f"{place}: {how}, so the bytes cannot be compared"
        elif crc32c(original.section) != crc32c(copy.section):
            raise _Difference(f"{place}: the payloads differ")
        tally.add(original)
        on_records(original.header.count)
        due += original.header.count
    if (extra := await target.next()) is not None:
        raise _Difference(
            f"the target goes on at offset {extra.header.base_offset}, where the source's copied part has ended"
        )


def _header_difference(original: BatchHeader, copy: BatchHeader, due: int) -> str:
    """What the copy's header should say and does not; empty if nothing."""
    rows = (
        ("base offset", due, copy.base_offset),
        ("records", original.count, copy.count),
        ("base timestamp", original.base_timestamp, copy.base_timestamp),
        ("max timestamp", original.max_timestamp, copy.max_timestamp),
    )
    return next((f"{name} should be {wanted}, is {found}" for name, wanted, found in rows if wanted != found), "")


class _LogReader:
    """The batches with records of one log, one after the other, a slice of it in memory at a time."""

    def __init__(self, partition: Partition, offset: int, end: int | None = None) -> None:
        self.partition = partition
        self.offset = offset  # of the next record
        self._end = end  # None: the end of the log, whatever that is by then
        self._records = memoryview(b"")

    async def next(self) -> _Batch | None:
        """None at the end. Raises ReplicatorError, and ValueError for bytes that are no batches."""
        while self._end is None or self.offset < self._end:
            header = open_batch(self._records)
            if header is None:
                self._records = memoryview((await _fetch(self.partition, self.offset)).records)
                if open_batch(self._records) is None:
                    return None
                continue
            if self._end is not None and header.base_offset >= self._end:
                return None
            section, self._records = (
                self._records[BATCH_HEADER_SIZE : header.size],
                self._records[header.size :],
            )
            if self._pass(header) and header.count and not header.attributes & CONTROL:
                return _Batch(header, section)
        return None

    def _pass(self, header: BatchHeader) -> bool:
        """Moves the offset behind the batch. False if it was there already: a slice may begin too early."""
        if header.magic != 2:
            what = f"message format v{header.magic} at offset {header.base_offset} is not compared"
            raise ProtocolError(what, where=self.partition.where)
        behind = header.base_offset + header.last_offset_delta + 1
        if behind <= self.offset:
            return False
        self.offset = behind
        return True


async def _fetch(partition: Partition, offset: int) -> LogSlice:
    """A slice of the log, from whoever leads the partition by now. Raises as fetch_slice, after some tries."""
    backoff = Backoff()
    for left in reversed(range(FETCH_TRIES)):
        try:
            return await fetch_slice(partition, offset, SLICE_BYTES)
        except (ClusterError, NetworkError) as error:
            passing = isinstance(error, NetworkError) or error.row.action in (Action.RETRY, Action.REFRESH)
            if not left or not passing:
                raise
        await asyncio.sleep(backoff.next_s())
        await partition.cluster.refresh([partition.topic])
    raise AssertionError("the last try returns or raises")
