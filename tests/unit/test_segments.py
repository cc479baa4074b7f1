"""The offset map of a lane: where everything stands, what waits behind a gap, and who else may write."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator._core import SEGMENTS_MAX
from replicator.data.states import Checkpoint
from tests.oracle.batch import CONTROL, TRANSACTIONAL, Batch
from tests.oracle.lane import joined, spread
from tests.oracle.produce import Produced
from tests.oracle.rig import NEVER, LaneRig, Rig

FULL = tuple((2 * i, i, 1) for i in range(SEGMENTS_MAX))
BEHIND_FULL = Checkpoint(2 * SEGMENTS_MAX - 1, SEGMENTS_MAX, 0)


def marker(offset: int) -> Batch:
    return Batch(offset, 1, attributes=CONTROL | TRANSACTIONAL)


def copied(rig: Rig, lane: LaneRig, *batches: Batch) -> None:
    """Takes these in and lets them all land where they are due."""
    assert [event.kind for event in rig.fetch(lane, *batches)] in ([], ["gap_ahead"])
    lane.native.permit(lane.native.ahead()[0])
    while request := rig.gather():
        assert rig.acknowledge(request) == []


# ---- the map ----


def test_a_log_without_gaps_is_one_segment():
    with Rig() as rig:
        lane = rig.start(rig.lane(), Checkpoint(10, 20, 0))
        copied(rig, lane, *(Batch(10 + 3 * i, 3) for i in range(50)))
        assert lane.native.segments() == ((10, 20, 150),)
        assert lane.native.segment_count == 1


@pytest.mark.parametrize(
    "between", [[marker(5), marker(6)], [Batch(5, 0, b"", last_offset_delta=1)], []], ids=["control", "emptied", "hole"]
)
def test_whatever_leaves_no_trace_begins_another_segment(between):
    with Rig() as rig:
        lane = rig.running()
        copied(rig, lane, Batch(0, 3), Batch(3, 2), *between, Batch(7, 4))
        assert lane.native.segments() == ((0, 0, 5), (7, 5, 4))


def test_records_that_are_passed_over_are_on_the_map():
    with Rig() as rig:
        lane = rig.start(rig.lane(), Checkpoint(10, 100, 50), skip=7, segments=((8, 98, 2),))
        copied(rig, lane, Batch(10, 3), marker(13), Batch(14, 4), Batch(18, 2))
        assert lane.native.segments() == ((8, 98, 5), (14, 103, 6))


def test_what_follows_records_that_were_passed_over_is_not_behind_a_gap():
    with Rig() as rig:
        lane = rig.start(rig.lane(hold_gaps=True), Checkpoint(10, 100, 50), skip=2)
        assert rig.fetch(lane, Batch(13, 2), Batch(15, 1)) == []
        assert lane.native.ahead()[1] == ()


def test_the_map_says_nothing_of_what_was_not_acknowledged():
    with Rig() as rig:
        lane = rig.running()
        rig.fetch(lane, Batch(0, 3))
        request = rig.gather()
        assert lane.native.segments() == ()
        rig.settle(request, Produced("orders", 0, 1))
        assert lane.native.segments() == ()


def test_the_oldest_are_dropped_but_never_the_last():
    with Rig() as rig:
        lane = rig.start(rig.lane(), Checkpoint(9, 9, 0), segments=((0, 0, 1), (2, 1, 1), (4, 2, 1)))
        lane.native.drop_segments(1)
        assert lane.native.segments() == ((2, 1, 1), (4, 2, 1))
        lane.native.drop_segments(9)
        assert lane.native.segments() == ((4, 2, 1),)
        lane.native.drop_segments(1)
        assert lane.native.segments() == ((4, 2, 1),)
    with Rig() as rig:
        empty = rig.running()
        empty.native.drop_segments(1)
        assert empty.native.segments() == ()


@settings(deadline=None)
@given(runs=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(1, 4)), max_size=12), data=st.data())
def test_segments_are_kept_as_they_were_given_and_go_on_from_there(runs, data):
    """Against a map with an entry for each offset; runs that touch become one."""
    source = target = 0
    given = []
    for source_hole, target_hole, length in runs:
        given.append((source + source_hole, target + target_hole, length))
        source, target = (end + length for end in given[-1][:2])
    position, target_next = source + data.draw(st.integers(0, 2)), target + data.draw(st.integers(0, 2))
    with Rig() as rig:
        lane = rig.start(rig.lane(), Checkpoint(position, target_next, 0), segments=tuple(given))
        assert lane.native.segments() == joined(spread(tuple(given)))
        copied(rig, lane, Batch(position, 5))
        assert lane.native.segments() == joined(spread((*given, (position, target_next, 5))))


@pytest.mark.parametrize(
    "wrong",
    [
        [(0, 0, 0)],
        [(0, 0, -1)],
        [(-1, 0, 1)],
        [(0, -1, 1)],
        [(0, 0, 3), (2, 3, 1)],
        [(0, 0, 3), (3, 2, 1)],
        [(5, 5, 6)],
        [(5, 15, 6)],
        [(2**63 - 1, 0, 1)],
        [(0, 2**63 - 1, 1)],
        (*FULL, (2**40, 2**40, 1)),
    ],
)
def test_segments_that_cannot_be_are_refused(wrong):
    with Rig() as rig:
        lane = rig.lane()
        at = Checkpoint(10, 20, 0) if len(wrong) < 3 else Checkpoint(2**41, 2**41, 0)
        with pytest.raises(ValueError, match="segment"):
            lane.native.resume(at, 0, NEVER, wrong)
        assert not lane.native.running
        lane.native.resume(at, 0, NEVER, ((0, 0, 1),))
        assert lane.native.segments() == ((0, 0, 1),)


@pytest.mark.parametrize("wrong", [[(0, 0)], [("a", 0, 1)], [None], 5])
def test_what_is_no_segment_at_all_is_refused(wrong):
    with Rig() as rig:
        lane = rig.lane()
        with pytest.raises((TypeError, ValueError)):
            lane.native.resume(Checkpoint(10, 20, 0), 0, NEVER, wrong)
        assert not lane.native.running


def test_other_segments_replace_those_that_were_there():
    with Rig() as rig:
        lane = rig.running()
        copied(rig, lane, Batch(0, 3))
        lane.native.halt()
        rig.start(lane, lane.checkpoint, segments=lane.native.segments())
        copied(rig, lane, Batch(3, 2))
        assert lane.native.segments() == ((0, 0, 5),)
        lane.native.halt()
        rig.start(lane, lane.checkpoint)
        assert lane.native.segments() == ()


# ---- what is held behind a gap ----


def holding(rig: Rig) -> LaneRig:
    """A lane that has sent one batch and settled it."""
    lane = rig.start(rig.lane(hold_gaps=True))
    assert rig.fetch(lane, Batch(0, 5)) == []
    rig.acknowledge(rig.gather())
    return lane


def test_a_lane_that_holds_gaps_holds_nothing_else():
    with Rig() as rig:
        lane = holding(rig)
        assert rig.fetch(lane, Batch(5, 1), Batch(6, 1), marker(7)) == []
        assert lane.native.ahead()[1] == ()
        rig.acknowledge(rig.gather())
        rig.acknowledge(rig.gather())
        assert lane.checkpoint == Checkpoint(8, 7, 7, 5)


def test_a_batch_behind_a_gap_and_what_follows_it_wait_for_a_permit():
    with Rig() as rig:
        lane = holding(rig)
        (event,) = rig.fetch(lane, Batch(5, 2), marker(7), Batch(8, 3), Batch(11, 1))
        assert (event.lane, event.kind, event.first) == (lane.native, "gap_ahead", 8)
        before = rig.gather()
        assert Batch.parse(before.batches[0][2]).base_sequence == 5
        assert rig.gather() is None
        assert not rig.target.waiting
        cursor, ahead = lane.native.ahead()
        assert ahead == ((8, 7),)
        assert not lane.native.permit(cursor)
        sequences = [Batch.parse(rig.gather().batches[0][2]).base_sequence for _ in range(2)]
        assert sequences == [7, 10]
        assert lane.native.ahead()[1] == ((8, 7),), "in flight is not acknowledged"


def test_a_lane_that_begins_behind_a_hole_holds_its_first_batch():
    with Rig() as rig:
        lane = rig.start(rig.lane(hold_gaps=True), Checkpoint(10, 0, 2**31 - 1))
        (event,) = rig.fetch(lane, Batch(12, 1))
        assert (event.kind, event.first) == ("gap_ahead", 12)
        assert lane.native.ahead()[1] == ((12, 2**31 - 1),)


@pytest.mark.parametrize(("segments", "gaps"), [((), ()), (((8, 0, 2),), ()), (((7, 0, 2),), ((10, 0),))])
def test_where_the_source_runs_on_from_is_told_by_the_last_segment(segments, gaps):
    """The position may have passed a control batch since, which is a gap as well."""
    with Rig() as rig:
        lane = rig.start(rig.lane(hold_gaps=True), Checkpoint(10, 2, 0), segments=segments)
        rig.fetch(lane, Batch(10, 1))
        assert lane.native.ahead()[1] == gaps


def test_one_event_is_enough_until_nothing_is_ahead_any_more():
    with Rig() as rig:
        lane = holding(rig)
        assert len(rig.fetch(lane, Batch(6, 1), Batch(8, 1))) == 1
        cursor, _ = lane.native.ahead()
        assert rig.fetch(lane, Batch(10, 1)) == []
        assert lane.native.permit(cursor), "one more was taken in since"
        assert rig.fetch(lane, Batch(12, 1)) == []
        cursor, ahead = lane.native.ahead()
        assert ahead == ((6, 5), (8, 6), (10, 7), (12, 8))
        assert not lane.native.permit(cursor)
        (event,) = rig.fetch(lane, Batch(13, 1), Batch(20, 1), Batch(30, 1))
        assert event.first == 20


def test_a_permit_reaches_as_far_as_its_cursor():
    with Rig() as rig:
        lane = holding(rig)
        rig.fetch(lane, Batch(6, 1), Batch(8, 1), Batch(10, 1), Batch(11, 1), Batch(20, 1))
        cursor, ahead = lane.native.ahead(2)
        assert ahead == ((6, 5), (8, 6))
        assert lane.native.permit(cursor)
        first = rig.gather()
        assert first
        assert rig.gather()
        assert rig.gather() is None
        cursor, ahead = lane.native.ahead(1)
        assert ahead == ((6, 5), (8, 6), (10, 7)), "those in flight are told of whatever the limit"
        rig.acknowledge(first)
        assert lane.native.permit(cursor)
        assert lane.native.ahead(1)[1] == ((8, 6), (10, 7))
        assert rig.gather()
        assert rig.gather(), "what runs on from there is not behind a gap"
        assert rig.gather() is None


def test_a_permit_does_nothing_once_all_of_it_is_sent():
    with Rig() as rig:
        lane = holding(rig)
        rig.fetch(lane, Batch(6, 1))
        cursor, _ = lane.native.ahead()
        lane.native.permit(cursor)
        rig.acknowledge(rig.gather())
        rig.fetch(lane, Batch(8, 1))
        assert lane.native.permit(cursor)
        assert rig.gather() is None


def test_a_permit_from_before_a_halt_does_nothing():
    with Rig() as rig:
        lane = holding(rig)
        rig.fetch(lane, Batch(6, 1), Batch(8, 1))
        cursor, _ = lane.native.ahead()
        lane.native.halt()
        assert not lane.native.permit(cursor)
        rig.start(lane, lane.checkpoint, segments=lane.native.segments())
        (event,) = rig.fetch(lane, Batch(9, 1), Batch(11, 1))
        assert event.first == 9
        assert lane.native.permit(cursor), "there is something ahead that nobody has written down"
        assert rig.gather() is None
        assert lane.native.ahead()[1] == ((9, 5), (11, 6))


def test_a_permit_ends_with_a_halt():
    with Rig() as rig:
        lane = holding(rig)
        rig.fetch(lane, Batch(6, 1), Batch(8, 1))
        lane.native.permit(lane.native.ahead()[0])
        lane.native.halt()
        rig.start(lane, lane.checkpoint, segments=lane.native.segments())
        assert len(rig.fetch(lane, Batch(6, 1), Batch(8, 1))) == 1
        assert rig.gather() is None


def test_what_was_sent_before_a_halt_is_ahead_until_it_is_answered():
    with Rig() as rig:
        lane = holding(rig)
        rig.fetch(lane, Batch(6, 1), Batch(8, 1))
        lane.native.permit(lane.native.ahead()[0])
        request = rig.gather()
        lane.native.halt()
        assert lane.native.ahead()[1] == ((6, 5),)
        rig.acknowledge(request)
        assert lane.native.ahead()[1] == ()


def test_a_cursor_that_is_not_of_this_queue_makes_no_permit():
    with Rig() as rig:
        lane = holding(rig)
        for i in range(300):
            rig.fetch(lane, Batch(5 + i, 1))
            rig.acknowledge(rig.gather())
        rig.fetch(lane, Batch(999, 1))
        for wrong in (0, 1, 2**31, 2**32 - 1):
            assert lane.native.permit(wrong)
            assert rig.gather() is None


# ---- a full map ----


def test_a_full_map_holds_what_needs_a_segment_until_some_were_dropped():
    with Rig() as rig:
        lane = rig.start(rig.lane(hold_gaps=True), BEHIND_FULL, segments=FULL)
        rig.fetch(lane, Batch(2 * SEGMENTS_MAX - 1, 1), Batch(2 * SEGMENTS_MAX + 5, 1))
        lane.native.permit(lane.native.ahead()[0])
        assert rig.gather() is None
        lane.native.drop_segments(1)
        rig.acknowledge(rig.gather())
        assert lane.native.segment_count == SEGMENTS_MAX - 1, "it touched the last one"
        rig.acknowledge(rig.gather())
        assert lane.native.segment_count == SEGMENTS_MAX
        rig.fetch(lane, Batch(2 * SEGMENTS_MAX + 6, 1), Batch(2 * SEGMENTS_MAX + 8, 1))
        lane.native.permit(lane.native.ahead()[0])
        rig.acknowledge(rig.gather())
        assert rig.gather() is None
        lane.native.drop_segments(1)
        rig.acknowledge(rig.gather())
        assert lane.native.segment_count == SEGMENTS_MAX


def test_a_full_map_holds_everything_where_others_write_too():
    with Rig() as rig:
        lane = rig.start(rig.lane(hold_gaps=True, tolerate=True), BEHIND_FULL, segments=FULL)
        lane.native.drop_segments(2)
        rig.fetch(lane, *(Batch(2 * SEGMENTS_MAX - 1 + i, 1) for i in range(4)))
        rig.settle(rig.gather(), Produced("orders", 0, 2 * SEGMENTS_MAX))
        request = rig.gather()
        assert rig.gather() is None, "it may need a segment as well"
        rig.settle(request, Produced("orders", 0, 3 * SEGMENTS_MAX))
        assert lane.native.segment_count == SEGMENTS_MAX
        assert rig.gather() is None
        lane.native.drop_segments(1)
        assert rig.gather()


def test_a_full_map_stops_what_is_passed_over_until_some_were_dropped():
    with Rig() as rig:
        lane = rig.start(rig.lane(hold_gaps=True), BEHIND_FULL, skip=3, segments=FULL[1:])
        far = 3 * SEGMENTS_MAX
        assert rig.fetch(lane, Batch(far, 1), Batch(far + 1, 1), Batch(far + 5, 1)) == []
        assert (lane.native.skip_records, lane.checkpoint.position) == (1, far + 2)
        assert rig.ask() is None, "it would be fetched over and over"
        lane.native.drop_segments(1)
        rig.fetch(lane, Batch(far + 5, 1))
        assert (lane.native.skip_records, lane.native.segment_count) == (0, SEGMENTS_MAX)
        assert lane.native.segments()[-2:] == ((far, SEGMENTS_MAX, 2), (far + 5, SEGMENTS_MAX + 2, 1))


def test_a_full_map_that_nobody_reads_forgets_its_oldest_half():
    with Rig() as rig:
        lane = rig.start(rig.lane(), BEHIND_FULL, segments=FULL)
        far = 3 * SEGMENTS_MAX
        copied(rig, lane, Batch(far, 1))
        assert lane.native.segments() == (*FULL[SEGMENTS_MAX // 2 :], (far, SEGMENTS_MAX, 1))


# ---- others that write to the target ----


def test_where_others_may_write_a_later_offset_makes_a_segment():
    with Rig() as rig:
        lane = rig.start(rig.lane(tolerate=True), Checkpoint(0, 10, 0))
        rig.fetch(lane, Batch(0, 2), Batch(2, 3), Batch(5, 1))
        for base_offset in (12, 14, 30):
            assert rig.settle(rig.gather(), Produced("orders", 0, base_offset)) == []
        assert lane.native.segments() == ((0, 12, 5), (5, 30, 1))
        assert lane.checkpoint == Checkpoint(6, 31, 6, 5)


@pytest.mark.parametrize("answered", [-1, 0, 9, 2**63 - 2])
def test_also_there_an_earlier_offset_or_an_impossible_one_halts_the_lane(answered):
    with Rig() as rig:
        lane = rig.start(rig.lane(tolerate=True), Checkpoint(0, 10, 0))
        rig.fetch(lane, Batch(0, 2))
        (event,) = rig.settle(rig.gather(), Produced("orders", 0, answered))
        assert (event.kind, event.first, event.second) == ("offset_drift", 10, answered)
        assert lane.checkpoint == Checkpoint(0, 10, 0)
        assert lane.native.segments() == ()


# ---- leader epochs ----


def test_the_first_fetch_names_the_epoch_of_the_checkpoint():
    with Rig() as rig:
        lane = rig.start(rig.lane(), Checkpoint(10, 0, 0, 7))
        assert rig.ask().topics[0][1][0].last_fetched_epoch == 7
        assert lane.checkpoint.leader_epoch == 7


def test_a_checkpoint_of_three_knows_no_epoch():
    with Rig() as rig:
        lane = rig.lane()
        lane.native.resume((10, 0, 0), 0, NEVER)
        assert lane.checkpoint == Checkpoint(10, 0, 0, -1)
        with pytest.raises(OverflowError):
            rig.lane().native.resume((10, 0, 0, 2**31), 0, NEVER)


def test_the_epoch_of_a_checkpoint_is_that_of_the_batch_before_it():
    with Rig() as rig:
        lane = rig.running()
        skipped = Batch(1, 0, b"", leader_epoch=3, last_offset_delta=0)
        rig.fetch(lane, Batch(0, 1, leader_epoch=1), skipped, Batch(2, 1, leader_epoch=4))
        rig.acknowledge(rig.gather())
        assert lane.checkpoint == Checkpoint(2, 1, 1, 3)
        rig.acknowledge(rig.gather())
        assert lane.checkpoint == Checkpoint(3, 2, 2, 4)
    with Rig() as rig:
        lane = rig.start(rig.lane(), skip=1)
        rig.fetch(lane, Batch(0, 1, leader_epoch=6))
        assert lane.checkpoint == Checkpoint(1, 1, 1, 6)


def test_a_stop_offset_in_a_hole_is_reached_with_the_epoch_beyond_it():
    """The epoch before the hole may have ended before the stop offset: a leader would call that diverged."""
    with Rig() as rig:
        lane = rig.start(rig.lane(), stop=5)
        copied(rig, lane, Batch(0, 3, leader_epoch=1), Batch(9, 1, leader_epoch=2))
        assert lane.checkpoint == Checkpoint(5, 3, 3, 2)
