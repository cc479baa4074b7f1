"""The states of a lane, and its row of counters in shared memory.

A worker writes the rows, the supervisor and whoever shows figures read them; a scrape costs the data plane nothing.
The layout is `lane_counters` of csrc/lane.h: words of eight bytes, whose size is checked at import and whose order a
test compares.
"""

import mmap
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from replicator._core import COUNTERS_SIZE, VERDICTS

if TYPE_CHECKING:
    import numpy as np


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
    def is_final(self) -> bool:
        """True if the lane does nothing more on its own."""
        return self >= LaneState.DONE


CHECKPOINT_COLUMNS = ("position", "target_next", "sequence", "leader_epoch")
COLUMNS = (
    "version",
    *CHECKPOINT_COLUMNS,  # when version is even
    *CHECKPOINT_COLUMNS,  # when it is odd
    "fetch_offset",
    "stop_offset",
    "high_watermark",
    "last_stable_offset",
    "log_start_offset",
    "max_timestamp",
    "records",
    "bytes",
    "batches",
    "skipped_batches",
    "queued_bytes",
    "merged_batches",
    "filtered_records",  # these two by the worker's Python side
    "diverted_records",
    *VERDICTS,  # batches taken in, by what was found of them
    "state",
    "reason",
)
WORDS = len(COLUMNS)
ROW_BYTES = 8 * WORDS
assert ROW_BYTES == COUNTERS_SIZE, "csrc/lane.h and these columns must agree"

LANES_MAX = 16_384  # of a run; each of its workers has a row for each

_COLUMN = {name: index for index, name in enumerate(COLUMNS) if name not in CHECKPOINT_COLUMNS}


class Checkpoint(NamedTuple):
    """Everything below source offset `position` is on the target, which goes on at `target_next`, `sequence`."""

    position: int
    target_next: int
    sequence: int
    leader_epoch: int = -1  # of the source's batch that ends at `position`; -1: unknown


def row_dtype() -> "np.dtype[Any]":
    """A row by column name, with `checkpoints` as two records.

    numpy is loaded on first use: it would be half of a worker's start, and workers look at single rows.
    """
    import numpy as np

    checkpoint = [(name, "<i8") for name in CHECKPOINT_COLUMNS]
    others = [(name, "<i8") for name in COLUMNS[1 + 2 * len(CHECKPOINT_COLUMNS) :]]
    return np.dtype([("version", "<i8"), ("checkpoints", checkpoint, (2,)), *others])


class Rows:
    """The shared array, a row for each lane and worker, over a file without a name (so nobody must clean it up)."""

    def __init__(self, fd: int) -> None:
        self.memory = mmap.mmap(fd, 0)  # all of it
        self._words = memoryview(self.memory).cast("q")

    @cached_property
    def array(self) -> "np.ndarray[Any, Any]":
        """All rows at once, as a structured numpy array of `row_dtype`, for those who count many lanes."""
        import numpy as np

        return np.frombuffer(self.memory, dtype=row_dtype())

    def bytes_of(self, row: int) -> memoryview:
        """The row as writable bytes, for the native core."""
        return memoryview(self.memory)[row * ROW_BYTES : (row + 1) * ROW_BYTES]

    def get(self, row: int, column: str) -> int:
        return self._words[row * WORDS + _COLUMN[column]]

    def set_state(self, row: int, state: LaneState) -> None:
        self._words[row * WORDS + _COLUMN["state"]] = state

    def add(self, row: int, column: str, amount: int) -> None:
        self._words[row * WORDS + _COLUMN[column]] += amount

    def checkpoint(self, row: int) -> Checkpoint:
        """The row's last whole checkpoint, also while its writer writes the next one, or died writing it."""
        while True:
            version = self.get(row, "version")
            first = row * WORDS + 1 + (version & 1) * len(CHECKPOINT_COLUMNS)
            found = Checkpoint(*self._words[first : first + len(CHECKPOINT_COLUMNS)])
            if self.get(row, "version") == version:
                return found

    def state(self, row: int) -> LaneState:
        """As the worker says, with `copying`, `tailing` and `done` told apart by the offsets."""
        state = LaneState(self.get(row, "state"))
        if state is not LaneState.COPYING:
            return state
        if self.checkpoint(row).position >= self.get(row, "stop_offset"):
            return LaneState.DONE
        return LaneState.TAILING if self.get(row, "fetch_offset") >= self.get(row, "last_stable_offset") else state
