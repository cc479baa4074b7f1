"""Where a lane begins that never ran, and where it is to stop."""

from replicator._core import open_batch
from replicator.config.models import StartAt
from replicator.data.orders import LaneSpec
from replicator.data.placement import LaneStopped
from replicator.data.states import Checkpoint
from replicator.data.transitions import Trigger
from replicator.kafka.log import END, START, LogTail, Partition, fetch_slice, find_offset

NEVER = (1 << 63) - 1


async def first_place(source: Partition, tail: LogTail, spec: LaneSpec, keeps_map: bool) -> tuple[Checkpoint, int]:
    """Its checkpoint and its stop offset. Its target, whose `tail` this is, must be empty: raises LaneStopped. Unless
    both sides are written to by applications, and a map is kept of what is ours: then the lane begins behind theirs."""
    shared = keeps_map and spec.loops is not None and spec.policy.foreign_writes == "tolerate"
    ours = tail.last is not None and tail.last.producer_id == spec.producer_id
    if tail.end_offset and (ours or not shared):
        raise LaneStopped(
            Trigger.TARGET_NOT_EMPTY,
            f"the target partition is not empty (its log ends at {tail.end_offset}) and nothing says that these"
            " records are ours; use an empty topic, or rename",
        )
    start = await _start_offset(source, spec)
    return Checkpoint(start, tail.end_offset, 0), await _stop_offset(source, spec)


async def _stop_offset(source: Partition, spec: LaneSpec) -> int:
    if spec.stop == "never":
        return NEVER
    # What a read_committed lane never comes to is nothing to wait for.
    end = await find_offset(source, END, committed=spec.isolation == "read_committed")
    return end if spec.stop == "now" else min(spec.stop, end)


async def _start_offset(source: Partition, spec: LaneSpec) -> int:
    start = spec.start
    if isinstance(start, StartAt):
        offset = await find_offset(source, start.timestamp_ms)
        if offset == await find_offset(source, END):
            return offset
        # The batch is the unit that moves: begin with the whole one that holds the offset.
        first = open_batch((await fetch_slice(source, offset, 1)).records)
        log_start = await find_offset(source, START)
        return max(log_start, min(offset, first.base_offset)) if first else offset
    return await find_offset(source, START if start == "earliest" else END)
