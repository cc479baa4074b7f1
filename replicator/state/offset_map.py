"""The offset map of a lane, outside the worker: which offset a record of the source has on the target, and back.

A map is a row of segments: runs on which target offset = source offset + constant. Offsets grow strictly on both
sides, so both ways are one binary search. Between segments are holes: offsets that hold no record for us, such as
control records and what compaction removed on the source, or what somebody else wrote on the target.

An offset that is translated means, as a committed offset does, "the next one to read". What is read next is the first
mapped record at or after it, so nothing is read again and nothing is left out.
"""

from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]
Segments = npt.NDArray[np.int64]
"""Shape (n, 3): source start, target start, length of each segment, in order."""

SOURCE, TARGET, LENGTH = 0, 1, 2  # columns of Segments
OFFSET_MAX = (1 << 63) - 1
NOT_YET = -1

# Searching for offsets that grow keeps to the cache: from so many segments on, sorting them first pays. And an array
# of some megabytes costs more to ask of the kernel than to fill, so it goes block by block.
SORT_FROM_SEGMENTS = 16
BLOCK = 1 << 18  # offsets
NO_SEGMENTS: Segments = np.empty((0, 3), np.int64)


def as_segments(rows: npt.ArrayLike | Sequence[Sequence[int]]) -> Segments:
    """Rows of (source start, target start, length), checked. Raises ValueError when they are no segments of a map."""
    try:
        array = np.asarray(rows)
        segments: Segments = NO_SEGMENTS if not array.size else array.astype(np.int64, casting="safe", copy=False)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("a segment must be three integers of 64 bits") from None
    if segments.ndim != 2 or segments.shape[1] != 3:
        raise ValueError("a segment must be three integers of 64 bits")
    starts, lengths = segments[:, :LENGTH], segments[:, LENGTH:]
    if (starts < 0).any() or (lengths < 1).any() or (starts > OFFSET_MAX - lengths).any():
        raise ValueError("a segment that is empty or ends beyond what an offset can be")
    if (starts[1:] < (starts + lengths)[:-1]).any():
        raise ValueError("segments that overlap or are not in order")
    return segments


class OffsetMap:
    """Exact both ways, for every offset up to the end of what was replicated. Does not change once it is made.

    Its end is `position` on the source and `target_next` on the target: everything below was acknowledged, and what
    comes next has at least these offsets.
    """

    def __init__(self, segments: npt.ArrayLike, position: int, target_next: int) -> None:
        """`segments` are rows of (source start, target start, length). Raises ValueError when they are no map."""
        self.segments = _coalesced(as_segments(segments))
        self.segments.flags.writeable = False
        self.position = position
        self.target_next = target_next
        ends = (position, target_next)
        if not 0 <= min(ends) <= max(ends) <= OFFSET_MAX:
            raise ValueError(f"a map cannot end at source offset {position}, target offset {target_next}")
        if any(_end(self.segments, column) > end for column, end in enumerate(ends)):
            raise ValueError(f"segments beyond the map's end, source offset {position}, target offset {target_next}")
        self._forth = _Way(self.segments, SOURCE, ends)
        self._back = _Way(self.segments, TARGET, ends)

    @classmethod
    def merge(cls, parts: Iterable[npt.ArrayLike], position: int, target_next: int) -> Self:
        """A map of parts that may repeat, extend or contradict each other, in the order in which they were written.

        Each says what holds from its first record on, whatever those before it said about that. What lies beyond the
        map's end is left out: it is not known to be acknowledged. Raises ValueError when a part is no row of segments.
        """
        kept: list[Segments] = []
        for rows in parts:
            part = as_segments(rows)
            if not len(part):
                continue
            source, target = int(part[0, SOURCE]), int(part[0, TARGET])
            while kept and (_end(kept[-1], SOURCE) > source or _end(kept[-1], TARGET) > target):
                older = _within(_within(kept.pop(), SOURCE, 0, source), TARGET, 0, target)
                kept += [older] if len(older) else []
            kept.append(part)
        whole = _within(np.concatenate([NO_SEGMENTS, *kept]), SOURCE, 0, position)
        return cls(_within(whole, TARGET, 0, target_next), position, target_next)

    def __len__(self) -> int:
        """The number of segments: 1 for a log without holes."""
        return len(self.segments)

    def translate(self, offset: int) -> int | None:
        """The target offset to go on from, for one that goes on from source `offset`; None: not yet replicated."""
        return self._forth.one(offset)

    def translate_many(self, offsets: npt.ArrayLike) -> Numbers:
        """`translate` for an array of any shape; NOT_YET where there is no answer yet."""
        return self._forth.many(offsets)

    def reverse(self, target_offset: int) -> int | None:
        """The source offset to go on from, for one that goes on from `target_offset`; None beyond `target_next`."""
        return self._back.one(target_offset)

    def reverse_many(self, target_offsets: npt.ArrayLike) -> Numbers:
        """`reverse` for an array of any shape; NOT_YET where there is no answer yet."""
        return self._back.many(target_offsets)

    def exact(self, offset: int) -> int | None:
        """The target offset of exactly the record at source `offset`; None when there is no such record."""
        return self._forth.exact(offset)

    def below(self, target_log_start: int) -> "OffsetMap":
        """The map without what the target has deleted: its log starts at `target_log_start` now."""
        kept = _within(self.segments, TARGET, target_log_start, OFFSET_MAX)
        return OffsetMap(kept, self.position, self.target_next)


class _Way:
    """One direction through a map: from the offsets of one column to those of the other."""

    def __init__(self, segments: Segments, column: int, map_ends: tuple[int, int]) -> None:
        starts, other_starts = segments[:, column], segments[:, 1 - column]
        self.limit = map_ends[column]
        # What lies behind the last record goes to the map's other end; a last row without a length says so.
        self._starts: Numbers = np.append(starts, map_ends[column])
        self._shifts: Numbers = np.append(other_starts, map_ends[1 - column]) - self._starts
        self._ends: Numbers = starts + segments[:, LENGTH]

    def one(self, offset: int) -> int | None:
        if offset > self.limit:
            return None
        offset = max(offset, 0)
        row = self._ends.searchsorted(offset, "right")
        return max(offset, int(self._starts[row])) + int(self._shifts[row])

    def many(self, offsets: npt.ArrayLike) -> Numbers:
        wanted = np.asarray(offsets, np.int64)
        flat = wanted.ravel()
        found = np.empty_like(flat)
        for at in range(0, len(flat), BLOCK):
            found[at : at + BLOCK] = self._block(flat[at : at + BLOCK])
        return found.reshape(wanted.shape)

    def _block(self, wanted: Numbers) -> Numbers:
        if len(self._ends) < SORT_FROM_SEGMENTS:
            return self._look_up(wanted)
        order = wanted.argsort()
        found = np.empty_like(wanted)
        found[order] = self._look_up(wanted[order])
        return found

    def _look_up(self, wanted: Numbers) -> Numbers:
        rows = self._ends.searchsorted(wanted, "right")
        found = self._starts[rows]
        np.maximum(found, wanted, out=found)
        found += self._shifts[rows]
        found[wanted > self.limit] = NOT_YET
        return found

    def exact(self, offset: int) -> int | None:
        if not 0 <= offset < self.limit:
            return None
        row = self._ends.searchsorted(offset, "right")
        is_mapped = row < len(self._ends) and offset >= self._starts[row]
        return offset + int(self._shifts[row]) if is_mapped else None


# ---- rows of segments ----


def _end(segments: Segments, column: int) -> int:
    """Behind the last record, on one side; 0 when there is none."""
    return int(segments[-1, column] + segments[-1, LENGTH]) if len(segments) else 0


def _coalesced(segments: Segments) -> Segments:
    """The same as few segments as it takes: those that follow each other on both sides become one. A new array."""
    starts = segments[:, :LENGTH]
    follows = (starts[1:] == (starts + segments[:, LENGTH:])[:-1]).all(axis=1)
    firsts = np.flatnonzero(np.append(True, ~follows))[: len(segments)]
    joined: Segments = segments[firsts]  # by an index array, which copies
    if len(segments):
        joined[:, LENGTH] = np.add.reduceat(segments[:, LENGTH], firsts)
    return joined


def _within(segments: Segments, column: int, low: int, high: int) -> Segments:
    """What lies at offsets from `low` up to `high` on one side. A new array."""
    starts = segments[:, column]
    first = (starts + segments[:, LENGTH]).searchsorted(low, "right")
    part = segments[first : starts.searchsorted(high)].copy()
    if len(part):
        excess = max(low - int(part[0, column]), 0)
        part[0] += (excess, excess, -excess)
        part[-1, LENGTH] -= max(_end(part, column) - high, 0)
    return part
