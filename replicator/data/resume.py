"""From a sequence number found on the target back to the place in the source: what a lane's new owner goes on from.

A durable record says where a lane stood once; the target's last batch, by its sequence, how many records landed since.
Sequences count records and leave out what is no record, so an intent is written down before anything behind a gap in
the source's offsets is sent: (source offset, sequence) of the first record behind the gap. Between two intents both
numbers grow alike. Nothing here is guessed: what does not fit together is refused.
"""

from collections.abc import Iterable, Iterator, Sequence

from replicator.data.states import Checkpoint

SEQUENCES = 1 << 31  # they run from 0 to 2**31 - 1, and then from 0 again
BEYOND_MAX = 1 << 30  # a sequence that leads by more than this lies behind

Segment = tuple[int, int, int]  # source start, target start, length
Intent = tuple[int, int]  # source offset, sequence


def resume_point(
    checkpoint: Checkpoint, segments: Sequence[Segment], ahead: Iterable[Intent], next_sequence: int
) -> tuple[Checkpoint, tuple[Segment, ...]]:
    """Where a lane stands whose target's last batch ends before `next_sequence`, and the offset map up to there.

    `checkpoint`, `segments` (in order, the last one ends at or before the position) and `ahead` are what one durable
    record says. Without a segment, the source's records run on from the position. What landed beyond the checkpoint
    stands together: on a target that others write to as well, the target offsets have to be put right afterwards. The
    checkpoint itself comes back when nothing landed, else its leader epoch is -1, for unknown.

    Raises ValueError when the target holds less than the checkpoint says, or the record contradicts itself, as it does
    when two owners saw the source before and after it was compacted.
    """
    landed = _beyond(checkpoint, next_sequence)
    if landed > BEYOND_MAX:
        raise ValueError(
            f"the target goes on at sequence {next_sequence}, before {checkpoint.sequence}, the checkpoint's"
        )
    if not landed:
        return checkpoint, tuple(segments)
    joined, position = list(segments), checkpoint.position
    for start, first, behind in _runs(checkpoint, segments, ahead, landed):
        _extend(joined, (start, checkpoint.target_next + first, behind - first))
        position = start + behind - first
    return Checkpoint(position, checkpoint.target_next + landed, next_sequence), tuple(joined)


def conflicts(checkpoint: Checkpoint, ahead: Iterable[Intent], next_sequence: int) -> dict[int, tuple[int, ...]]:
    """The source offsets that intents name for one sequence, where those are several, and its record has landed.

    That is no damage: owners of the lane, one after the other, may have seen the source differently.
    """
    landed = _beyond(checkpoint, next_sequence)
    told: dict[int, set[int]] = {}
    for offset, sequence in ahead:
        if _beyond(checkpoint, sequence) < landed <= BEYOND_MAX:
            told.setdefault(sequence, set()).add(offset)
    return {sequence: tuple(sorted(offsets)) for sequence, offsets in told.items() if len(offsets) > 1}


def still_ahead(checkpoint: Checkpoint, written: Iterable[Intent], ahead: Iterable[Intent]) -> tuple[Intent, ...]:
    """The intents of the next durable record: those that `Lane.ahead` tells of, and those of the record before it that
    the checkpoint has not passed.

    The latter may be of requests that nobody waits for any more (the connection is gone, or its owner) and that land
    all the same. A record that forgot them could not tell what they are.
    """
    kept = {intent for intent in written if _beyond(checkpoint, intent[1]) <= BEYOND_MAX}
    return tuple(sorted(kept.union(ahead), key=lambda intent: (_beyond(checkpoint, intent[1]), intent[0])))


def _beyond(checkpoint: Checkpoint, sequence: int) -> int:
    return (sequence - checkpoint.sequence) % SEQUENCES


def _runs(
    checkpoint: Checkpoint, segments: Sequence[Segment], ahead: Iterable[Intent], landed: int
) -> Iterator[tuple[int, int, int]]:
    """(source start, records beyond the checkpoint before it, and up to its end) of each run of records that landed."""
    end = segments[-1][0] + segments[-1][2] if segments else checkpoint.position
    if end > checkpoint.position:
        raise ValueError(f"a segment ends at {end}, beyond the position {checkpoint.position}")
    beyond = {(_beyond(checkpoint, sequence), offset) for offset, sequence in ahead}
    intents = sorted((first, offset) for first, offset in beyond if first < landed)
    starts = {0: end} | dict(intents)
    if len(dict(intents)) < len(intents):
        raise ValueError(f"one sequence within {landed} stands for several source offsets")
    end = checkpoint.position
    for (first, start), behind in zip(starts.items(), [*list(starts)[1:], landed], strict=True):
        if start < end:
            raise ValueError(f"{first} records beyond the checkpoint is source offset {start}, but {end} was reached")
        end = start + behind - first
        yield start, first, behind


def _extend(segments: list[Segment], run: Segment) -> None:
    """Adds a run, to the last segment if it touches that on both sides."""
    if segments:
        source_start, target_start, length = segments[-1]
        if (source_start + length, target_start + length) == run[:2]:
            segments[-1] = (source_start, target_start, length + run[2])
            return
    segments.append(run)
