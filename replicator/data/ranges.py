"""Segments as rows of numbers, and cutting them: to what is still there, to what was asked for, to a random sample.

`Segments` are an array of shape (n, 3), `Segment` is one row of it.
"""

import hashlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from replicator.state.offset_map import Numbers, Segments

NO_END = (1 << 63) - 1
SAMPLE_RECORDS = 2_000  # offsets of one random range: a slice or two of ordinary records


class Segment(NamedTuple):
    """The source offset `source` + n stands at target offset `target` + n, for every n below the length."""

    source: int
    target: int
    length: int

    @property
    def source_end(self) -> int:
        return self.source + self.length

    @property
    def target_end(self) -> int:
        return self.target + self.length


def records_in(segments: Segments) -> int:
    return int(segments[:, 2].sum())


def clip(segments: Segments, source_start: int, source_end: int = NO_END, target_start: int = 0) -> Segments:
    """What of them lies at source offsets from `source_start` to `source_end` - 1 and not below `target_start`."""
    source, target, length = segments[:, 0], segments[:, 1], segments[:, 2]
    head = np.clip(np.maximum(source_start - source, target_start - target), 0, length)
    left = np.clip(np.minimum(source_end - source, length) - head, 0, None)
    cut: Segments = np.column_stack((source + head, target + head, left))[left > 0]
    return cut


def sample(segments: Segments, fraction: float, seed: str) -> list[Segments]:
    """Random ranges of SAMPLE_RECORDS source offsets: about this fraction of all, at least one; in order.

    Whether a range is taken depends on the seed and its place alone. So the same seed takes the same ranges again, even
    when the log has grown or lost its head meanwhile. Ranges that touch are one.
    """
    firsts = segments[:, 0] // SAMPLE_RECORDS
    counts = (segments[:, 0] + segments[:, 2] - 1) // SAMPLE_RECORDS - firsts + 1
    steps = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    blocks = np.unique(np.repeat(firsts, counts) + steps)
    lots = _lots(blocks, seed)
    taken = blocks[(lots < fraction) | (lots == lots.min())]
    breaks = np.flatnonzero(np.diff(taken) > 1) + 1
    runs = [(int(run[0]) * SAMPLE_RECORDS, int(run[-1] + 1) * SAMPLE_RECORDS) for run in np.split(taken, breaks)]
    starts, ends = segments[:, 0], segments[:, 0] + segments[:, 2]
    return [
        clip(segments[ends.searchsorted(low, "right") : starts.searchsorted(high)], low, high) for low, high in runs
    ]


def _lots(blocks: Numbers, seed: str) -> npt.NDArray[np.float64]:
    """A number from 0 to below 1 for each block, by splitmix64's mixing (Steele, Lea, Flood: OOPSLA 2014)."""
    start = int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=8).digest())
    mixed = blocks.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    lots: npt.NDArray[np.float64] = (mixed >> np.uint64(11)) / float(1 << 53)
    return lots
