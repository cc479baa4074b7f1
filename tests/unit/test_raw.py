"""Batches that have to be opened before they can be sent: what waits for them, and what becomes of them."""

from typing import Any

import pytest

from replicator._core import SEGMENTS_MAX, Made, Pool, Scratch, Terms
from replicator.data.states import Checkpoint
from tests.oracle.batch import LOG_APPEND_TIME, Batch, is_intact, marker
from tests.oracle.fetch import Fetched
from tests.oracle.opened import Making, make, opened
from tests.oracle.produce import Produced
from tests.oracle.records import Record
from tests.oracle.rig import PRODUCER, LaneRig, Rig, Settings, joined
from tests.oracle.scripted_log import batch_of, recs
from tests.unit.test_segments import BEHIND_FULL, FULL

SCRATCH = Scratch()


def plain(offset: int, count: int, **header: Any) -> Batch:
    return batch_of(recs(count, offset), offset, **header)


def stamped(offset: int, count: int, **header: Any) -> Batch:
    """Has to be opened."""
    return plain(offset, count, attributes=LOG_APPEND_TIME, **header)


def holey(offset: int, deltas: list[int], last: int | None = None) -> Batch:
    return batch_of(recs(len(deltas), offset), offset, 0, deltas, last_offset_delta=last or deltas[-1])


def makings(rig: Rig, lane: LaneRig, *sizes: int, leave_out: tuple[int, ...] = ()) -> list[Making]:
    """Of the oldest raw batch: batches of so many records each, or one of all, without those at some offsets."""
    batch = lane.native.raw(0)
    assert batch is not None
    whole = opened(batch)
    kept = [one for one in whole.records if one.offset >= batch.from_offset and one.offset not in leave_out]
    parts: list[list[Record]] = []
    for size in sizes or (len(kept),):
        parts, kept = [*parts, kept[:size]], kept[size:]
    assert not kept
    return make(rig.pool, SCRATCH, whole, parts)


def replaced(rig: Rig, lane: LaneRig, *sizes: int, leave_out: tuple[int, ...] = ()) -> str:
    return lane.native.replace([making.made for making in makings(rig, lane, *sizes, leave_out=leave_out)])


def sent(rig: Rig) -> Batch:
    request = rig.gather()
    assert request is not None
    ((_, _, data),) = request.batches
    assert is_intact(data)
    assert rig.acknowledge(request) == []
    return Batch.parse(data)


# ---- what is raw, and what waits for it ----


def test_what_has_to_be_opened_is_told_once_until_nothing_is_raw():
    with Rig() as rig:
        lane = rig.running()
        (event,) = rig.fetch(lane, plain(0, 2), stamped(2, 3), plain(5, 1), stamped(6, 1))
        assert (event.kind, event.first, event.lane) == ("rebuild_ahead", 2, lane.native)
        assert rig.fetch(lane, stamped(7, 1)) == []
        for _ in range(3):
            assert replaced(rig, lane) == "pass"
        assert lane.native.raw_count == 0
        (event,) = rig.fetch(lane, stamped(8, 1))
        assert (event.kind, event.first) == ("rebuild_ahead", 8)


def test_a_raw_batch_is_what_was_fetched_and_stays_readable():
    with Rig() as rig:
        lane = rig.running()
        batches = [stamped(0, 3), plain(3, 1)]
        rig.fetch(lane, *batches)
        first, second = lane.native.raw(0), lane.native.raw(1)
        assert (first.why, first.from_offset, second.why, second.from_offset) == ("rebuild_append_time", 0, "pass", 3)
        assert lane.native.raw(2) is None
        lane.native.halt()
        assert [bytes(first), bytes(second)] == [batch.encode() for batch in batches]
        assert (first.is_intact, first.header.count, len(first)) == (True, 3, len(batches[0].encode()))
        assert memoryview(first).readonly
        with pytest.raises(TypeError, match="come from a lane"):
            type(first)()


def test_damage_of_a_raw_batch_shows():
    with Rig() as rig:
        lane = rig.running()
        data = bytearray(stamped(0, 3).encode())
        data[-1] ^= 1
        rig.ask()
        rig.feed(rig.response((lane, Fetched(0, bytes(data)))))
        assert not lane.native.raw(0).is_intact


def test_what_follows_a_raw_batch_waits_and_gets_its_sequence_when_it_is_known():
    with Rig() as rig:
        lane = rig.start(rig.lane(), Checkpoint(0, 0, 100))
        rig.fetch(lane, plain(0, 2), stamped(2, 3), plain(5, 1))
        assert sent(rig).base_sequence == 100
        assert rig.gather() is None
        assert replaced(rig, lane, leave_out=(3,)) == "pass"
        middle, last = sent(rig), sent(rig)
        assert (middle.base_sequence, middle.count, last.base_sequence) == (102, 2, 104)
        assert lane.checkpoint == Checkpoint(6, 5, 105, 5)
        assert lane.native.segments() == ((0, 0, 3), (4, 3, 2))


def test_a_made_batch_arrives_as_it_was_made():
    with Rig() as rig:
        lane = rig.running()
        rig.fetch(lane, stamped(0, 3))
        (making,) = makings(rig, lane)
        assert len(making.made) == len(making.batch.encode())
        assert (making.made.count, making.made.max_timestamp) == (3, making.batch.max_timestamp)
        assert lane.native.replace([making.made]) == "pass"
        assert sent(rig).encode() == making.batch.readdressed(*PRODUCER, 0).encode()
        assert lane["max_timestamp"] == making.batch.max_timestamp


def test_the_head_before_the_position_is_not_wanted():
    with Rig() as rig:
        lane = rig.start(rig.lane(), Checkpoint(2, 0, 0))
        rig.fetch(lane, plain(0, 5))
        assert (lane.native.raw(0).why, lane.native.raw(0).from_offset) == ("rebuild_head", 2)
        assert replaced(rig, lane) == "pass"
        assert sent(rig).count == 3
        assert lane.native.segments() == ((2, 0, 3),)


def test_a_batch_that_needs_no_change_after_all_goes_as_it_is():
    with Rig() as rig:
        lane = rig.start(rig.lane(terms=Terms(opens=True)))
        batch = plain(0, 3, leader_epoch=4)
        rig.fetch(lane, batch, plain(3, 1))
        assert [lane.native.raw(nth).why for nth in range(2)] == ["rebuild_open"] * 2
        assert lane.native.pass_raw() == "pass"
        assert lane.native.raw_count == 1
        assert sent(rig).encode() == batch.readdressed(*PRODUCER, 0).encode()
        assert lane.checkpoint == Checkpoint(3, 3, 3, 4)


def test_terms_hold_for_what_comes_after_them():
    with Rig() as rig:
        lane = rig.running()
        rig.fetch(lane, plain(0, 1))
        lane.native.set_terms(Terms(opens=True))
        rig.fetch(lane, plain(1, 1))
        lane.native.set_terms(Terms())
        rig.fetch(lane, plain(2, 1))
        assert [lane.native.raw(nth).why for nth in range(2)] == ["rebuild_open", "pass"]
        assert (lane["pass"], lane["rebuild_open"]) == (2, 1)


# ---- replaced by none ----


def test_what_leaves_nothing_moves_the_position_at_once_when_nothing_stands_before_it():
    with Rig() as rig:
        lane = rig.running()
        rig.fetch(lane, stamped(0, 3, leader_epoch=2), marker(3, True, leader_epoch=3), plain(4, 2))
        assert lane.checkpoint.position == 0
        assert lane.native.replace([]) == "pass"
        assert lane.checkpoint == Checkpoint(4, 0, 0, 3)
        assert sent(rig).base_sequence == 0
        assert lane.native.segments() == ((4, 0, 2),)


def test_what_leaves_nothing_moves_the_position_with_what_is_queued_before_it():
    with Rig() as rig:
        lane = rig.running()
        rig.fetch(lane, plain(0, 2), stamped(2, 3, leader_epoch=9), plain(5, 1))
        assert lane.native.replace([]) == "pass"
        assert lane.checkpoint.position == 0
        assert (lane.native.queued, sent(rig).count) == (2, 2)
        assert lane.checkpoint == Checkpoint(5, 2, 2, 9)
        assert (sent(rig).base_sequence, lane.checkpoint) == (2, Checkpoint(6, 3, 3, 5))


@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_what_leaves_nothing_may_stand_behind_what_is_in_flight(in_flight):
    """The ring moves up, but not what was sent."""
    with Rig() as rig:
        lane = rig.running()
        rig.fetch(lane, plain(0, 1))
        sent(rig)
        rig.fetch(lane, plain(1, 1), plain(2, 2), plain(4, 1), stamped(5, 1), stamped(6, 1), plain(7, 1))
        requests = [rig.gather() for _ in range(in_flight)]
        for _ in range(2):
            assert lane.native.replace([]) == "pass"
        assert lane.native.in_flight == in_flight
        for request in requests:
            assert rig.acknowledge(request) == []
        while request := rig.gather():
            assert rig.acknowledge(request) == []
        assert lane.checkpoint == Checkpoint(8, 6, 6, 5)
        assert lane.native.segments() == ((0, 0, 5), (7, 5, 1))
        assert (lane["queued_bytes"], rig.pool.used_bytes) == (0, 0)


def test_a_lane_of_which_nothing_is_left_gets_to_the_end():
    with Rig() as rig:
        lane = rig.start(rig.lane(terms=Terms(opens=True)))
        for start in range(0, 300, 3):
            rig.fetch(lane, *(plain(start + i, 1) for i in range(3)))
            for _ in range(3):
                assert lane.native.replace([]) == "pass"
        assert lane.checkpoint == Checkpoint(300, 0, 0, 5)
        assert (lane.native.queued, lane.native.segments(), rig.pool.used_bytes) == (0, (), 0)


# ---- replaced by several ----


def test_several_batches_take_its_place_and_the_position_stands_between_them():
    with Rig() as rig:
        lane = rig.running()
        rig.fetch(lane, stamped(0, 6, leader_epoch=2), marker(6, True, leader_epoch=3), plain(7, 1))
        assert replaced(rig, lane, 1, 3, 2) == "pass"
        assert lane.native.queued == 4
        places = [(sent(rig).count, lane.checkpoint) for _ in range(4)]
        assert places == [
            (1, Checkpoint(1, 1, 1, 2)),
            (3, Checkpoint(4, 4, 4, 2)),
            (2, Checkpoint(7, 6, 6, 3)),
            (1, Checkpoint(8, 7, 7, 5)),
        ]
        assert lane.native.segments() == ((0, 0, 6), (7, 6, 1))


def test_what_was_left_out_at_the_end_goes_with_the_last_of_several():
    with Rig() as rig:
        lane = rig.running()
        rig.fetch(lane, stamped(0, 6))
        assert replaced(rig, lane, 1, 2, leave_out=(1, 4, 5)) == "pass"
        assert (sent(rig).count, lane.checkpoint.position) == (1, 1)
        assert (sent(rig).count, lane.checkpoint.position) == (2, 6)
        assert lane.native.segments() == ((0, 0, 1), (2, 1, 2))


def test_bytes_are_counted_as_they_are_held():
    with Rig() as rig:
        lane = rig.running()
        rig.fetch(lane, stamped(0, 4))
        assert lane["queued_bytes"] == len(stamped(0, 4).encode())
        made = makings(rig, lane, 1, 3)
        assert lane.native.replace([making.made for making in made]) == "pass"
        assert lane["queued_bytes"] == sum(len(making.made) for making in made)
        del made
        while rig.target.waiting:
            sent(rig)
        assert (lane["queued_bytes"], rig.pool.used_bytes) == (0, 0)


def test_a_full_ring_leaves_everything_as_it_was():
    with Rig(Settings(credit_bytes=1 << 28, lane_bytes_max=1 << 28)) as rig:
        lane = rig.running()
        rest = bytearray(Batch(0, 1, records=b"").encode() * 65_535)
        for i in range(65_535):
            rest[i * 61 : i * 61 + 8] = (i + 2).to_bytes(8, "big")
        rig.ask()
        rig.feed(rig.response((lane, Fetched(0, joined([stamped(0, 2)]) + bytes(rest)))))
        assert (lane.native.queued, lane.native.raw_count) == (0, 65_536)
        assert replaced(rig, lane, 1, 1) == "no_room"
        assert (lane.native.raw_count, lane.native.raw(0).why) == (65_536, "rebuild_append_time")
        assert replaced(rig, lane, 2) == "pass"
        assert (lane.native.queued, lane.native.raw_count) == (65_536, 0)
        assert sent(rig).count == 2


# ---- halted, and without anything raw ----


def test_a_halted_lane_drops_what_is_raw_and_tells_of_it_anew():
    with Rig() as rig:
        lane = rig.running()
        rig.fetch(lane, plain(0, 1), stamped(1, 2), plain(3, 1))
        request = rig.gather()
        lane.native.halt()
        assert (lane.native.queued, lane.native.raw_count, lane.native.raw(0)) == (0, 0, None)
        rig.settle(request, Produced("orders", 0, 0))
        assert (lane["queued_bytes"], rig.pool.used_bytes) == (0, 0)
        rig.start(lane, Checkpoint(0, 0, 0), skip=1)
        (event,) = rig.fetch(lane, plain(0, 1), stamped(1, 2), plain(3, 1))
        assert (event.kind, event.first) == ("rebuild_ahead", 1)
        assert lane.checkpoint == Checkpoint(1, 1, 1, 5)


def test_nothing_is_done_where_nothing_is_raw():
    with Rig() as rig:
        lane = rig.running()
        rig.fetch(lane, stamped(0, 1))
        (making,) = makings(rig, lane)
        lane.native.halt()
        for attempt in (lambda: lane.native.replace([making.made]), lambda: lane.native.replace([])):
            with pytest.raises(RuntimeError, match="nothing raw"):
                attempt()
        with pytest.raises(RuntimeError, match="nothing raw"):
            lane.native.pass_raw()
        rig.start(lane)
        with pytest.raises(RuntimeError, match="nothing raw"):
            lane.native.replace([])


def test_a_lane_that_goes_with_something_raw_leaves_nothing_behind():
    with Rig() as rig:
        rig.fetch(rig.running(), stamped(0, 1), plain(1, 1))
        assert rig.pool.used_bytes
        rig.lanes.clear()
        assert rig.pool.used_bytes == 0


def test_no_batch_is_made_of_nothing():
    with pytest.raises(ValueError, match="no batch of 0 records"):
        Made(Pool(1 << 20), Scratch(), 0, b"records")


def test_a_list_of_something_else_replaces_nothing():
    with Rig() as rig:
        lane = rig.running()
        rig.fetch(lane, stamped(0, 1))
        for wrong in ([None], ["made"], None):
            with pytest.raises((TypeError, AttributeError)):
                lane.native.replace(wrong)
        assert lane.native.raw_count == 1


# ---- the stop offset ----


@pytest.mark.parametrize("last", [[], [plain(9, 1)]], ids=["inside", "behind"])
@pytest.mark.parametrize("leave_out", [(), (3, 4, 5, 6)])
def test_a_stop_offset_inside_a_raw_batch_or_behind_it_is_reached(last, leave_out):
    with Rig() as rig:
        lane = rig.start(rig.lane(), stop=8 if last else 5)
        rig.fetch(lane, plain(0, 3), stamped(3, 4, leader_epoch=7), *last)
        assert rig.ask() is None
        assert (
            replaced(rig, lane, leave_out=leave_out) == "pass" if not leave_out else lane.native.replace([]) == "pass"
        )
        while rig.target.waiting:
            sent(rig)
        left = 3 if leave_out else 7
        assert lane.checkpoint == Checkpoint(8, left, left, 5) if last else Checkpoint(7, left, left, 7)


# ---- records that the target holds already ----


def test_records_of_raw_batches_are_passed_over_when_the_target_holds_them():
    with Rig() as rig:
        lane = rig.start(rig.lane(), Checkpoint(0, 100, 50), skip=6)
        rig.fetch(lane, stamped(0, 3), plain(3, 2), stamped(5, 4))
        assert lane.native.skip_records == 6
        assert replaced(rig, lane, leave_out=(1,)) == "pass"
        assert (lane.native.skip_records, lane.native.raw_count, lane.native.queued) == (2, 1, 0)
        assert lane.checkpoint == Checkpoint(5, 104, 54, 5)
        assert replaced(rig, lane, 2, 2) == "pass"
        assert (lane.native.skip_records, lane.checkpoint) == (0, Checkpoint(7, 106, 56, 5))
        assert lane.native.segments() == ((0, 100, 1), (2, 101, 5))
        assert sent(rig).base_sequence == 56
        assert lane.native.segments() == ((0, 100, 1), (2, 101, 7))
        assert lane["queued_bytes"] == 0


def test_what_is_passed_over_is_not_held():
    with Rig() as rig:
        lane = rig.start(rig.lane(), skip=3)
        rig.fetch(lane, plain(0, 1), plain(1, 2))
        assert (lane["queued_bytes"], lane.native.queued, rig.pool.used_bytes) == (0, 0, 0)


def test_what_the_target_holds_may_end_with_nothing_before_a_raw_batch():
    with Rig() as rig:
        lane = rig.start(rig.lane(), skip=2)
        rig.fetch(lane, stamped(0, 3), plain(3, 2))
        assert lane.native.replace([]) == "pass"
        assert (lane.checkpoint, lane["queued_bytes"]) == (Checkpoint(5, 2, 2, 5), 0)


@pytest.mark.parametrize("sizes", [(3,), (1, 2)])
def test_a_target_whose_tail_ends_inside_what_was_made_is_refused(sizes):
    with Rig() as rig:
        lane = rig.start(rig.lane(), skip=2)
        rig.fetch(lane, stamped(0, 3), plain(3, 2))
        assert replaced(rig, lane, *sizes) == "refuse_tail"
        lane.native.halt()
        assert rig.pool.used_bytes == 0


def test_a_target_that_holds_more_than_what_is_left_below_the_stop_offset_is_refused():
    with Rig() as rig:
        lane = rig.start(rig.lane(), skip=4, stop=6)
        assert [event.kind for event in rig.fetch(lane, stamped(0, 3), plain(3, 2), plain(8, 1))] == ["rebuild_ahead"]
        assert lane["fetch_offset"] == 6
        assert lane.native.replace([]) == "refuse_tail"


def test_a_waiting_batch_that_does_not_match_the_targets_tail_is_refused():
    with Rig() as rig:
        lane = rig.start(rig.lane(), skip=3)
        rig.fetch(lane, stamped(0, 2), plain(2, 2))
        assert replaced(rig, lane) == "refuse_tail"


# ---- gaps ----


def test_each_run_of_a_batch_is_told_of_before_it_is_sent():
    with Rig() as rig:
        lane = rig.start(rig.lane(hold_gaps=True), Checkpoint(0, 0, 2**31 - 2))
        events = rig.fetch(lane, plain(0, 1), holey(1, [0, 1, 4, 6, 7], last=9), plain(11, 1))
        assert [event.kind for event in events] == ["rebuild_ahead"]
        assert not lane.native.announces()
        assert replaced(rig, lane) == "pass"
        assert lane.native.announces()
        assert not lane.native.announces()
        sent(rig)
        assert rig.gather() is None
        mark, ahead = lane.native.ahead()
        assert ahead == ((1, 2**31 - 1), (5, 1), (7, 2), (11, 4))
        assert not lane.native.permit(mark)
        assert (sent(rig).count, sent(rig).count) == (5, 1)
        assert lane.native.segments() == ((0, 0, 3), (5, 3, 1), (7, 4, 2), (11, 6, 1))


def test_gaps_inside_a_batch_are_gaps_even_when_there_is_none_before_it():
    with Rig() as rig:
        lane = rig.start(rig.lane(hold_gaps=True))
        rig.fetch(lane, holey(0, [0, 1, 4]))
        assert replaced(rig, lane) == "pass"
        assert lane.native.announces()
        assert rig.gather() is None
        assert lane.native.ahead()[1] == ((0, 0), (4, 2))


def test_limits_count_runs_but_a_batch_is_told_of_whole():
    with Rig() as rig:
        lane = rig.start(rig.lane(hold_gaps=True))
        rig.fetch(lane, holey(0, [0, 2, 4, 6]), holey(10, [0, 2, 4]), plain(20, 1))
        replaced(rig, lane)
        replaced(rig, lane)
        assert len(lane.native.ahead(1)[1]) == 4
        assert len(lane.native.ahead(4)[1]) == 4
        assert len(lane.native.ahead(5)[1]) == 7
        assert lane.native.permit(lane.native.ahead(1)[0])
        assert sent(rig).count == 4
        assert rig.gather() is None
        assert [offset for offset, _ in lane.native.ahead(3)[1]] == [10, 12, 14]
        assert lane.native.permit(lane.native.ahead(3)[0])
        assert sent(rig).count == 3
        assert rig.gather() is None


def test_a_permit_is_for_batches_wherever_the_ring_has_them():
    """What leaves nothing makes room behind those that were told of; what comes after them was not told of."""
    with Rig() as rig:
        lane = rig.start(rig.lane(hold_gaps=True))
        rig.fetch(lane, plain(0, 1), plain(2, 1), stamped(3, 1), plain(4, 1))
        mark, ahead = lane.native.ahead()
        assert ahead == ((2, 1),)
        assert lane.native.replace([]) == "pass"
        assert lane.native.permit(mark), "the one behind what left nothing is behind a gap"
        sent(rig)
        sent(rig)
        assert rig.gather() is None
        mark, ahead = lane.native.ahead()
        assert ahead == ((4, 2),)
        assert not lane.native.permit(mark)
        assert sent(rig).count == 1


def test_a_gap_that_is_left_by_what_left_nothing_is_announced_by_the_owner():
    with Rig() as rig:
        lane = rig.start(rig.lane(hold_gaps=True))
        rig.fetch(lane, plain(0, 1), stamped(1, 1), plain(2, 1))
        sent(rig)
        lane.native.replace([])
        assert rig.gather() is None
        assert lane.native.announces()
        assert lane.native.ahead()[1] == ((2, 1),)


def test_runs_need_no_permit_where_nobody_asks_for_it():
    with Rig() as rig:
        lane = rig.running()
        rig.fetch(lane, holey(0, [0, 2, 4]))
        replaced(rig, lane)
        assert sent(rig).count == 3
        assert lane.native.segments() == ((0, 0, 1), (2, 1, 1), (4, 2, 1))


# ---- a full map ----


def test_a_batch_of_several_runs_waits_for_room_for_all_of_them():
    with Rig() as rig:
        lane = rig.start(rig.lane(hold_gaps=True), BEHIND_FULL, segments=FULL)
        at = BEHIND_FULL.position
        rig.fetch(lane, holey(at + 9, [0, 2, 4]))
        replaced(rig, lane)
        lane.native.permit(lane.native.ahead()[0])
        for _ in range(3):
            assert rig.gather() is None
            lane.native.drop_segments(1)
        assert sent(rig).count == 3
        assert lane.native.segment_count == SEGMENTS_MAX


def test_what_is_in_flight_has_its_room_for_every_run():
    with Rig() as rig:
        lane = rig.start(rig.lane(hold_gaps=True), BEHIND_FULL, segments=FULL)
        at = BEHIND_FULL.position
        lane.native.drop_segments(5)
        rig.fetch(lane, plain(at, 1), holey(at + 9, [0, 2]), holey(at + 19, [0, 2, 4]), holey(at + 29, [0, 2]))
        for _ in range(3):
            replaced(rig, lane)
        lane.native.permit(lane.native.ahead()[0])
        sent(rig)
        requests = [rig.gather(), rig.gather()]
        assert rig.gather() is None
        for request in requests:
            assert rig.acknowledge(request) == []
        assert lane.native.segment_count == SEGMENTS_MAX
        lane.native.drop_segments(2)
        assert sent(rig).count == 2


def test_a_full_map_that_nobody_reads_makes_room_for_all_runs():
    with Rig() as rig:
        lane = rig.start(rig.lane(), BEHIND_FULL, segments=FULL)
        at = BEHIND_FULL.position
        rig.fetch(lane, holey(at + 9, [0, 2, 4]))
        replaced(rig, lane)
        sent(rig)
        assert lane.native.segment_count == SEGMENTS_MAX // 2 + 3


def test_what_is_passed_over_has_room_on_the_map_with_all_that_waits_behind_it_or_nothing_is_done():
    with Rig() as rig:
        lane = rig.start(rig.lane(hold_gaps=True), BEHIND_FULL, skip=6, segments=FULL[1:])
        at = BEHIND_FULL.position
        batches = [holey(at + 9, [0, 2, 4]), plain(at + 20, 1), plain(at + 21, 1), plain(at + 30, 1), plain(at + 40, 1)]
        rig.fetch(lane, *batches)
        made = [making.made for making in makings(rig, lane, 1, 2)]
        for _ in range(4):
            assert lane.native.replace(made) == "no_room"
            assert (lane.native.raw_count, lane.native.raw(0).why) == (5, "rebuild_holes")
            assert (lane.native.skip_records, lane.checkpoint) == (6, BEHIND_FULL)
            lane.native.drop_segments(1)
        assert lane.native.replace(made) == "pass"
        assert (lane.native.raw_count, lane.native.queued, lane.native.skip_records) == (0, 1, 0)
        assert lane.native.segment_count == SEGMENTS_MAX
        assert lane.native.segments()[-1][0] == at + 30


def test_what_is_passed_over_as_it_is_needs_room_on_the_map_too():
    with Rig() as rig:
        lane = rig.start(rig.lane(hold_gaps=True, terms=Terms(opens=True)), BEHIND_FULL, skip=4, segments=FULL[1:])
        at = BEHIND_FULL.position
        rig.fetch(lane, plain(at + 9, 1), plain(at + 20, 3))
        assert lane.native.pass_raw() == "pass"
        assert lane.native.pass_raw() == "no_room"
        assert (lane.native.raw_count, lane.native.raw(0).why, lane.native.skip_records) == (1, "rebuild_open", 3)
        lane.native.drop_segments(1)
        assert lane.native.pass_raw() == "pass"
        assert (lane.native.raw_count, lane.native.skip_records) == (0, 0)


def test_nothing_left_needs_room_for_what_waits_behind_it():
    with Rig() as rig:
        lane = rig.start(rig.lane(hold_gaps=True), BEHIND_FULL, skip=1, segments=FULL[1:])
        at = BEHIND_FULL.position
        rig.fetch(lane, stamped(at + 9, 1), plain(at + 20, 1))
        assert lane.native.replace([]) == "pass"
        assert (lane.native.skip_records, lane.native.segment_count) == (0, SEGMENTS_MAX)
