"""The states of a lane, and its row of counters in shared memory.

A worker writes the rows, the supervisor and whoever shows figures read them; a scrape costs the data plane nothing.
The layout is `lane_counters` of csrc/lane.h, which a test compares with this dtype.
"""

import mmap
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from replicator._core import COUNTERS_SIZE


class LaneState(IntEnum):
    """What a lane is doing. Whatever is not `starting`, `copying`, `tailing` or `done` has a reason beside it."""

    UNUSED = 0
    STARTING = 1  # finding its place in both logs
    COPYING = 2  # moving batches, behind the source's end
    TAILING = 3  # moving batches as they are written
    PAUSED = 4  # something is in the way; tried again by itself
    DONE = 5  # reached the offset it was to stop at
    FAILED = 6  # needs a person; so do those below
    GAP = 7  # the source no longer has records that were not copied yet
    DIVERGED = 8  # the source's log was truncated: the target holds records that it does not
    RECREATED = 9  # the source topic was deleted and made again: another log under the same name
    TARGET_LOST = 10  # the target no longer holds what it had acknowledged

    @property
    def moves(self) -> bool:
        return self in (LaneState.COPYING, LaneState.TAILING)

    @property
    def is_final(self) -> bool:
        """True if the lane does nothing more on its own."""
        return self >= LaneState.DONE


_CHECKPOINT = np.dtype([("position", "<i8"), ("target_next", "<i8"), ("sequence", "<i8")])

ROW = np.dtype(
    [
        ("version", "<u8"),
        ("checkpoints", _CHECKPOINT, (2,)),
        ("fetch_offset", "<i8"),
        ("stop_offset", "<i8"),
        ("high_watermark", "<i8"),
        ("last_stable_offset", "<i8"),
        ("log_start_offset", "<i8"),
        ("max_timestamp", "<i8"),
        ("records", "<u8"),
        ("bytes", "<u8"),
        ("batches", "<u8"),
        ("skipped_batches", "<u8"),
        ("queued_bytes", "<u8"),
        ("state", "<i8"),
        ("reason", "<i8"),
    ]
)
assert ROW.itemsize == COUNTERS_SIZE, "csrc/lane.h and this dtype must agree"

ROWS_MAX = 16_384


class Checkpoint(NamedTuple):
    """Everything below source offset `position` is on the target, which goes on at `target_next`, `sequence`."""

    position: int
    target_next: int
    sequence: int


class Rows:
    """The shared array, one row a lane, over a file that has no name any more (so nobody must clean it up)."""

    def __init__(self, fd: int) -> None:
        self.memory = mmap.mmap(fd, ROWS_MAX * ROW.itemsize)
        self.array = np.frombuffer(self.memory, dtype=ROW, count=ROWS_MAX)

    def bytes_of(self, row: int) -> memoryview:
        """The row as writable bytes, for the native core."""
        return memoryview(self.memory)[row * ROW.itemsize : (row + 1) * ROW.itemsize]

    def checkpoint(self, row: int) -> Checkpoint:
        """The row's last whole checkpoint, also when its writer was killed while it wrote the next one."""
        counters = self.array[row]
        position, target_next, sequence = counters["checkpoints"][int(counters["version"]) & 1].item()
        return Checkpoint(position, target_next, sequence)

    def state(self, row: int) -> LaneState:
        """As the worker says, with `copying`, `tailing` and `done` told apart by the offsets."""
        counters = self.array[row]
        state = LaneState(int(counters["state"]))
        if state is not LaneState.COPYING:
            return state
        if self.checkpoint(row).position >= counters["stop_offset"]:
            return LaneState.DONE
        return LaneState.TAILING if counters["fetch_offset"] >= counters["high_watermark"] else state
