"""The numbers that commands show: read from the lanes' shared rows, turned into rates, and spelled out.

Reading never disturbs a worker, and thousands of lanes are read at once: what `Rows` tells about a single lane is told
here about all of them as numpy arrays.
"""

import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from replicator.control.supervisor import LaneInfo, Supervisor
from replicator.data.states import LaneState, Rows

RATE_WINDOW_S = 5.0

Numbers = NDArray[np.int64]


class Figures(NamedTuple):
    """All lanes at one moment. `lag_records` counts offsets between positions and high watermarks."""

    at_s: float
    records: int
    bytes: int
    lag_records: int
    states: dict[LaneState, int]  # how many lanes; those that there are, in the order of LaneState


class Rate(NamedTuple):
    """What moved in a second, over the last few."""

    records: float
    bytes: float


class Trouble(NamedTuple):
    """A lane that needs attention."""

    info: LaneInfo
    state: LaneState


def lane_positions(rows: Rows, lanes: Sequence[int]) -> Numbers:
    """The position of each of the lanes with these row numbers."""
    row = rows.array[lanes]
    positions: Numbers = row["checkpoints"]["position"][np.arange(len(row)), row["version"] & 1]
    return positions


def lane_states(rows: Rows, lanes: Sequence[int]) -> Numbers:
    """`Rows.state` of each of the lanes with these row numbers."""
    row = rows.array[lanes]
    states: Numbers = row["state"].copy()
    copying = states == LaneState.COPYING
    states[copying & (row["fetch_offset"] >= row["last_stable_offset"])] = LaneState.TAILING
    states[copying & (lane_positions(rows, lanes) >= row["stop_offset"])] = LaneState.DONE
    return states


def read_figures(supervisor: Supervisor) -> Figures:
    """The figures of this moment: states of all lanes, and what this supervisor's workers have moved."""
    rows = supervisor.rows
    every = rows.array[: len(supervisor.lanes) * len(supervisor.workers)]  # a lane may have moved between workers
    here = [info.row for info in supervisor.lanes if info.is_here]
    row = rows.array[here]
    placed = row["version"] > 0
    lag = np.maximum(row["high_watermark"] - lane_positions(rows, here), 0)
    states, lanes = np.unique(lane_states(rows, supervisor.lane_rows()), return_counts=True)
    return Figures(
        time.monotonic(),
        int(every["records"].sum()),
        int(every["bytes"].sum()),
        int(lag[placed].sum()),
        {LaneState(state): int(many) for state, many in zip(states.tolist(), lanes.tolist(), strict=True)},
    )


def find_trouble(supervisor: Supervisor) -> list[Trouble]:
    """Lanes that stand still and should not, those that need a person first."""
    states = lane_states(supervisor.rows, supervisor.lane_rows())
    lanes = np.flatnonzero((states == LaneState.PAUSED) | (states > LaneState.DONE)).tolist()
    troubles = [Trouble(supervisor.lanes[lane], LaneState(int(states[lane]))) for lane in lanes]
    return sorted(troubles, key=lambda trouble: not trouble.state.is_final)


class RateMeter:
    """Rates over a sliding window of RATE_WINDOW_S; figures may come as often as one likes."""

    def __init__(self) -> None:
        self._seen: deque[Figures] = deque()

    def update(self, figures: Figures) -> Rate:
        """The rate until now. Zero at the first call."""
        seen = self._seen
        seen.append(figures)
        while len(seen) > 2 and seen[1].at_s <= figures.at_s - RATE_WINDOW_S:
            seen.popleft()
        return rate_between(seen[0], figures)


def rate_between(first: Figures, last: Figures) -> Rate:
    seconds = max(last.at_s - first.at_s, 1e-9)
    return Rate((last.records - first.records) / seconds, (last.bytes - first.bytes) / seconds)


def spell_rate(rate: Rate) -> str:
    """`12,345 records/s · 6.7 MB/s`."""
    return f"{rate.records:,.0f} records/s · {spell_bytes(rate.bytes)}/s"


def spell_bytes(count: float) -> str:
    """`512 B`, `1.5 kB`, `340 MB`, `1.23 GB`: three digits, decimal units as disks and networks have them."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            break
        count /= 1000
    digits = 0 if unit == "B" or count >= 99.95 else 1 if count >= 9.995 else 2
    return f"{count:,.{digits}f} {unit}"


def spell_seconds(seconds: float) -> str:
    """`0.8 s`, `42 s`, `3 min 20 s`, `5 h 3 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def spell_states(states: dict[LaneState, int]) -> str:
    """`12 lanes: 10 tailing, 2 paused`."""
    count = sum(states.values())
    each = ", ".join(f"{many:,} {spell_state(state)}" for state, many in states.items())
    return f"{counted(count, 'lane')}{': ' if each else ''}{each}"


def spell_state(state: LaneState) -> str:
    return state.name.lower().replace("_", " ")


def counted(count: int, noun: str) -> str:
    """`1 lane`, `2,000 lanes`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
