"""`replicator.data.resume`, one record at a time."""

from replicator.data.states import Checkpoint
from tests.oracle.lane import SEQUENCES, joined, spread

Intents = list[tuple[int, int]]
Segments = tuple[tuple[int, int, int], ...]


def resume_point(
    checkpoint: Checkpoint, segments: Segments, ahead: Intents, next_sequence: int, records_max: int
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


def conflicts(
    checkpoint: Checkpoint, ahead: Intents, next_sequence: int, records_max: int
) -> dict[int, tuple[int, ...]]:
    """What several intents say of each record from the checkpoint to `next_sequence`; nothing if that is too far."""
    found: dict[int, tuple[int, ...]] = {}
    sequence = checkpoint.sequence
    for _ in range(records_max):
        if sequence == next_sequence:
            return found
        told = sorted({offset for offset, named in ahead if named == sequence})
        if len(told) > 1:
            found[sequence] = tuple(told)
        sequence = (sequence + 1) % SEQUENCES
    return {}
