"""Where a lane goes on, told by a sequence number; against the same record by record, and against what was true."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.data.resume import BEYOND_MAX, conflicts, resume_point, still_ahead
from replicator.data.states import Checkpoint
from tests.oracle import resume as slow
from tests.oracle.lane import SEQUENCES, joined

AT = Checkpoint(100, 1_000, 50, 7)
MAP = ((90, 990, 10),)

# ---- by hand ----


def test_when_nothing_landed_it_is_the_checkpoint():
    assert resume_point(AT, MAP, [(120, 50)], 50) == (AT, MAP)
    ahead_of_the_map = AT._replace(position=105)
    assert resume_point(ahead_of_the_map, MAP, [], 50) == (ahead_of_the_map, MAP)


def test_without_gaps_all_numbers_grow_alike():
    assert resume_point(AT, MAP, [], 60) == (Checkpoint(110, 1_010, 60), ((90, 990, 20),))


def test_without_a_map_the_source_runs_on_from_the_position():
    assert resume_point(AT, (), [(200, 53)], 60) == (Checkpoint(207, 1_010, 60), ((100, 1_000, 3), (200, 1_003, 7)))


def test_an_intent_moves_what_comes_behind_it():
    expected = (Checkpoint(305, 1_010, 60), ((90, 990, 13), (200, 1_003, 2), (300, 1_005, 5)))
    assert resume_point(AT, MAP, [(300, 55), (200, 53)], 60) == expected


def test_a_target_that_ends_at_an_intent_has_not_passed_the_gap():
    assert resume_point(AT, MAP, [(200, 53)], 53) == (Checkpoint(103, 1_003, 53), ((90, 990, 13),))
    assert resume_point(AT, MAP, [(200, 53)], 54) == (Checkpoint(201, 1_004, 54), ((90, 990, 13), (200, 1_003, 1)))


def test_an_intent_at_the_checkpoint_itself():
    behind_markers = AT._replace(position=105)
    assert resume_point(behind_markers, MAP, [(105, 50)], 51)[0] == Checkpoint(106, 1_001, 51)
    assert resume_point(behind_markers, MAP, [(130, 50)], 51)[1] == (*MAP, (130, 1_000, 1))


def test_a_target_with_a_gap_at_the_checkpoint_begins_a_segment():
    assert resume_point(AT._replace(target_next=1_001), MAP, [], 52)[1] == (*MAP, (100, 1_001, 2))


def test_intents_from_before_the_checkpoint_are_over():
    assert resume_point(AT, MAP, [(95, 49), (80, 0), (70, SEQUENCES - 1)], 51) == (
        Checkpoint(101, 1_001, 51),
        ((90, 990, 11),),
    )


@pytest.mark.parametrize("beyond", [0, 1, 5])
def test_sequences_begin_again_behind_the_highest(beyond):
    at = AT._replace(sequence=SEQUENCES - 2)
    found, segments = resume_point(at, MAP, [(200, SEQUENCES - 1), (300, 0)], 1 + beyond)
    assert found == Checkpoint(301 + beyond, 1_003 + beyond, 1 + beyond)
    assert segments == ((90, 990, 11), (200, 1_001, 1), (300, 1_002, 1 + beyond))


@pytest.mark.parametrize(
    ("checkpoint", "ahead", "next_sequence"),
    [
        (AT, [], 49),
        (AT, [], 50 + BEYOND_MAX + 1),
        (AT, [(200, 55), (201, 55)], 60),
        (AT, [(104, 55)], 60),
        (AT, [(200, 52), (201, 55)], 60),
        (AT, [(99, 50)], 60),
        (AT._replace(position=105), [], 51),
        (AT._replace(position=105), [(200, 51)], 60),
        (AT._replace(position=99), [], 51),
    ],
    ids=["behind", "too far", "twice", "no gap", "backwards", "below", "passed already", "too late", "map too long"],
)
def test_what_does_not_fit_together_is_refused(checkpoint, ahead, next_sequence):
    with pytest.raises(ValueError, match=r"\d"):
        resume_point(checkpoint, MAP, ahead, next_sequence)


def test_as_far_as_a_sequence_can_lead():
    assert resume_point(AT, MAP, [], 50 + BEYOND_MAX)[0].position == 100 + BEYOND_MAX


def test_intents_stay_until_the_checkpoint_has_passed_them():
    written = [(90, 49), (100, 50), (300, 70)]
    assert still_ahead(AT, written, [(200, 60), (300, 70)]) == ((100, 50), (200, 60), (300, 70))
    wrapping = AT._replace(sequence=SEQUENCES - 1)
    assert still_ahead(wrapping, [(1, SEQUENCES - 2), (9, 3)], [(5, SEQUENCES - 1)]) == ((5, SEQUENCES - 1), (9, 3))


def test_intents_for_one_sequence_are_a_conflict_once_its_record_has_landed():
    ahead = [(200, 55), (201, 55), (200, 55), (300, 57), (400, 60), (401, 60), (90, 49), (91, 49)]
    assert conflicts(AT, ahead, 60) == {55: (200, 201)}
    assert conflicts(AT, ahead, 61) == {55: (200, 201), 60: (400, 401)}
    assert conflicts(AT, ahead, 55) == conflicts(AT, ahead, 50) == conflicts(AT, ahead, 49) == {}
    wrapping = AT._replace(sequence=SEQUENCES - 1)
    assert conflicts(wrapping, [(7, 0), (8, 0)], 1) == {0: (7, 8)}


def test_many_runs_of_one_source_batch():
    """As a filter leaves them; the target ends in the middle of it."""
    ahead = [(100 + 2 * n, 50 + n) for n in range(5_000)]
    found, segments = resume_point(AT, MAP, ahead, 50 + 3_000)
    assert found == Checkpoint(100 + 2 * 2_999 + 1, 4_000, 3_050)
    assert segments == ((90, 990, 11), *((100 + 2 * n, 1_000 + n, 1) for n in range(1, 3_000)))
    assert len(still_ahead(found, ahead, ())) == 2_000


# ---- record by record ----

FIRST_SEQUENCES = st.sampled_from([0, 7, SEQUENCES - 1, SEQUENCES - 4])
NEAR = st.integers(0, 12)


def mapped(runs: list[tuple[int, int, int]]) -> tuple[dict[int, int], int, int]:
    """Offsets, and where source and target go on behind them, of runs (source hole, target hole, length)."""
    offsets, source, target = {}, 0, 0
    for source_hole, target_hole, length in runs:
        source, target = source + source_hole, target + target_hole
        offsets |= {source + i: target + i for i in range(length)}
        source, target = source + length, target + length
    return offsets, source, target


@given(
    runs=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(1, 3)), max_size=3),
    passed=st.integers(-1, 3),
    first=FIRST_SEQUENCES,
    near=st.lists(st.tuples(NEAR, st.integers(-3, 12)), max_size=4),
    landed=st.integers(-2, 12),
)
def test_it_is_what_walking_record_by_record_finds(runs, passed, first, near, landed):
    """Whatever the record says, also what makes no sense."""
    offsets, source, target = mapped(runs)
    checkpoint = Checkpoint(max(0, source + passed), target, first)
    ahead = [(source + offset, (first + at) % SEQUENCES) for offset, at in near]
    next_sequence = (first + landed) % SEQUENCES
    try:
        expected = slow.resume_point(checkpoint, joined(offsets), ahead, next_sequence, records_max=100)
    except ValueError:
        expected = None
    if landed == 0:
        expected = checkpoint, joined(offsets)
    elif slow.conflicts(checkpoint, ahead, next_sequence, records_max=100):
        assert expected is None
    assert conflicts(checkpoint, ahead, next_sequence) == slow.conflicts(checkpoint, ahead, next_sequence, 100)
    try:
        found = resume_point(checkpoint, joined(offsets), ahead, next_sequence)
    except ValueError:
        found = None
    assert found == expected


@given(
    runs=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), min_size=1, max_size=8),
    first=FIRST_SEQUENCES,
    data=st.data(),
)
def test_whenever_the_record_was_written_it_leads_to_the_truth(runs, first, data):
    """A source with holes, copied record by record; the record is from any moment, with intents enough, or more."""
    offsets, _, _ = mapped([(hole, 0, length) for hole, length in runs])
    sources = list(offsets)
    gaps = [(source, (first + target) % SEQUENCES) for source, target in offsets.items() if source - 1 not in offsets]
    written = data.draw(st.integers(0, len(sources)))
    landed = data.draw(st.integers(written, len(sources)))
    position = sources[written - 1] + 1 if written else 0
    checkpoint = Checkpoint(position, written, (first + written) % SEQUENCES)
    needed = [(source, sequence) for source, sequence in gaps if written <= offsets[source] < landed]
    others = data.draw(st.lists(st.sampled_from(gaps))) if gaps else []
    ahead = data.draw(st.permutations(needed + others))
    segments = joined({source: offsets[source] for source in sources[:written]})
    if segments:
        segments = segments[data.draw(st.integers(0, len(segments) - 1)) :]
    next_sequence = (first + landed) % SEQUENCES
    found, completed = resume_point(checkpoint, segments, ahead, next_sequence)
    assert found == Checkpoint(sources[landed - 1] + 1 if landed else 0, landed, next_sequence)
    everything = joined({source: offsets[source] for source in sources[:landed]})
    assert completed == everything[len(everything) - len(completed) :]
    assert still_ahead(found, ahead, ()) == tuple(
        sorted({gap for gap in ahead if offsets[gap[0]] >= landed}, key=lambda gap: offsets[gap[0]])
    )
