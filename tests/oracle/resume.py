"""`replicator.data.resume`, one record at a time."""

from replicator.data.states import Checkpoint
from tests.oracle.lane import SEQUENCES, joined, spread

Segments = tuple[tuple[int, int, int], ...]


def resume_point(
    checkpoint: Checkpoint, segments: Segments, ahead: list[tuple[int, int]], next_sequence: int, records_max: int
) -> tuple[Checkpoint, Segments]:
    """Raises ValueError when not so many records lead from the checkpoint to `next_sequence`, or where is unclear."""
    offsets = spread(segments)
    source = max(offsets, default=checkpoint.position - 1) + 1
    if source > checkpoint.position:
        raise ValueError("the map goes beyond the position")
    at = checkpoint
    while at.sequence != next_sequence:
        told = {offset for offset, sequence in ahead if sequence == at.sequence}
        if len(told) > 1 or any(offset < source for offset in told):
            raise ValueError("the intents contradict each other")
        source = told.pop() if told else source
        if source < checkpoint.position or len(offsets) > records_max:
            raise ValueError("this record is not where it can be")
        offsets[source] = at.target_next
        source += 1
        at = Checkpoint(source, at.target_next + 1, (at.sequence + 1) % SEQUENCES)
    return at, joined(offsets)
