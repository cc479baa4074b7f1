"""Small batches that wait become one: which do, what it is, and what the lane remembers of them."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator._core import SEGMENTS_MAX, Event, Scratch, Terms
from replicator.data.states import Checkpoint
from tests.oracle import produce
from tests.oracle.batch import Batch, is_intact
from tests.oracle.opened import make, make_one, opened
from tests.oracle.produce import Produced, ProduceRequest
from tests.oracle.records import merge
from tests.oracle.rig import PRODUCER, LaneRig, Rig, Settings
from tests.oracle.scripted_log import ZSTD, Rec, batch_of, recs
from tests.unit.test_segments import BEHIND_FULL, FULL

SCRATCH = Scratch()
MERGES = Terms(merge_bytes=10_000)


def small(offset: int, count: int = 1, codec: int = 0) -> Batch:
    return batch_of(recs(count, offset), offset, codec)


def waiting(rig: Rig, batches: Sequence[Batch], terms: Terms = MERGES, **flags: bool) -> LaneRig:
    """A lane with a record acknowledged, and these queued behind it."""
    lane = rig.start(rig.lane(terms=terms, **flags))
    rig.fetch(lane, small(0))
    rig.acknowledge(rig.gather())
    rig.fetch(lane, *batches)
    return lane


def gathered(rig: Rig) -> Batch:
    request = rig.gather()
    assert request is not None
    return only(request)


def only(request: ProduceRequest) -> Batch:
    ((_, _, data),) = request.batches
    assert is_intact(data)
    return Batch.parse(data)


def merged(batches: Sequence[Batch], sequence: int) -> Batch:
    parts = []
    for batch in batches:
        parts.append(batch.readdressed(*PRODUCER, sequence).encode())
        sequence += batch.count
    whole = merge(parts)
    assert whole is not None
    return Batch.parse(whole)


# ---- what is made of them ----


def test_what_waits_goes_as_one_batch_of_the_same_records():
    batches = [small(1, 2), small(3), small(4, 3)]
    with Rig() as rig:
        lane = waiting(rig, batches)
        request = rig.gather()
        assert only(request) == merged(batches, 1)
        assert rig.gather() is None
        assert rig.acknowledge(request) == []
        assert lane.checkpoint == Checkpoint(7, 7, 7, 5)
        assert lane.native.segments() == ((0, 0, 7),)
        assert (lane["batches"], lane["merged_batches"], lane["records"]) == (2, 3, 7)
        assert lane["max_timestamp"] == batches[-1].max_timestamp
        assert (lane["queued_bytes"], rig.pool.used_bytes) == (0, 0)


def test_a_lane_that_does_not_merge_sends_one_after_the_other():
    with Rig() as rig:
        lane = waiting(rig, [small(1), small(2)], Terms())
        assert [gathered(rig).count for _ in range(2)] == [1, 1]
        assert lane["merged_batches"] == 0


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(
        st.tuples(st.integers(1, 5), st.integers(0, 2), st.sampled_from([0, 0, 0, 4])), min_size=1, max_size=9
    ),
    merge_bytes=st.integers(100, 1_500),
    first_sequence=st.sampled_from([0, 2**31 - 4]),
)
def test_merged_or_not_the_same_records_arrive_in_order(sizes, merge_bytes, first_sequence):
    batches, offset = [], 0
    for count, hole, codec in sizes:
        batches.append(small(offset + hole, count, codec))
        offset = batches[-1].next_offset
    with Rig() as rig:
        lane = rig.start(rig.lane(terms=Terms(merge_bytes=merge_bytes)), Checkpoint(0, 0, first_sequence))
        rig.fetch(lane, *batches)
        arrived, sequence = [], first_sequence
        while request := rig.gather():
            batch = only(request)
            assert batch.base_sequence == sequence
            sequence = (sequence + batch.count) % 2**31
            arrived += [(one.key, one.value, one.timestamp, one.headers) for one in opened(batch.encode()).records]
            assert rig.acknowledge(request) == []
        originals = [one for batch in batches for one in opened(batch.encode()).records]
        assert arrived == [(one.key, one.value, one.timestamp, one.headers) for one in originals]
        assert lane.checkpoint == Checkpoint(offset, len(originals), sequence, 5)
        found = {source + i: target + i for source, target, n in lane.native.segments() for i in range(n)}
        assert found == {one.offset: n for n, one in enumerate(originals)}


# ---- which of them ----


def test_a_large_batch_goes_alone_and_ends_what_is_merged():
    large = batch_of([Rec(bytes(600))], 3)
    with Rig() as rig:
        waiting(rig, [small(1), small(2), large, small(4), small(5)], Terms(merge_bytes=1_000))
        assert [gathered(rig).count for _ in range(3)] == [2, 1, 2]


def test_no_merged_batch_is_larger_than_is_wanted():
    size = len(small(1).encode())
    with Rig() as rig:
        waiting(rig, [small(1 + i) for i in range(10)], Terms(merge_bytes=3 * size))
        assert [gathered(rig).count for _ in range(4)] == [3, 3, 3, 1]


def test_nor_when_numbers_become_longer_than_the_headers_that_are_saved():
    """Of 200 records of eight bytes each, more than half get longer numbers by being counted on."""
    tiny = [Rec(None, None)] * 100
    batches = [batch_of(tiny, 1 + 100 * i) for i in range(4)]
    limit = sum(len(batch.encode()) for batch in batches)
    with Rig() as rig:
        waiting(rig, batches, Terms(merge_bytes=limit, batch_bytes_max=limit))
        sizes = [len(gathered(rig).encode()) for _ in range(2)]
        assert rig.gather() is None
        assert max(sizes) <= limit
        assert sum(sizes) > limit


def test_batches_of_different_codecs_do_not_mix():
    with Rig() as rig:
        waiting(rig, [small(1), small(2), small(3, codec=ZSTD), small(4), small(5)])
        assert [gathered(rig).count for _ in range(3)] == [2, 1, 2]


@pytest.mark.parametrize("nth", range(6))
def test_what_is_not_sound_goes_as_it_is_and_the_rest_without_it(nth):
    batches = [small(1 + i) for i in range(6)]
    batches[nth] = replace(batches[nth], records=b"no records", crc=None)
    with Rig() as rig:
        waiting(rig, batches)
        arrived = []
        while request := rig.gather():
            arrived.append(only(request))
            assert rig.acknowledge(request) == []
        assert sum(batch.count for batch in arrived) == 6
        assert [batch.records for batch in arrived if batch.base_sequence == 1 + nth] == [b"no records"]


def test_half_of_them_will_do_if_all_will_not():
    batches = [small(1 + i) for i in range(8)]
    batches[4] = replace(batches[4], records=b"no records", crc=None)
    with Rig() as rig:
        waiting(rig, batches)
        assert [gathered(rig).count for _ in range(3)] == [4, 1, 3]


def test_damage_is_not_blessed_by_merging():
    broken = bytearray(small(2).encode())
    broken[-1] ^= 1
    with Rig() as rig:
        lane = waiting(rig, [small(1), Batch.parse(bytes(broken)), small(3)])
        counts = []
        while request := rig.gather():
            ((_, _, data),) = request.batches
            counts.append((Batch.parse(data).count, is_intact(data)))
            rig.acknowledge(request)
        assert (1, False) in counts
        assert lane.checkpoint.position == 4


def test_counts_that_lie_are_not_added_up():
    liar = replace(small(1), count=2**31 - 1, last_offset_delta=2**31 - 2, crc=None)
    with Rig(Settings(credit_bytes=1 << 24)) as rig:
        lane = waiting(rig, [liar, small(2**31), replace(liar, base_offset=2**32, crc=None)])
        assert [gathered(rig).count for _ in range(3)] == [2**31 - 1, 1, 2**31 - 1]
        assert lane["merged_batches"] == 0


def test_one_that_was_merged_and_found_no_room_in_a_request_may_grow_until_the_next():
    with Rig(Settings(produce_bytes_max=300)) as rig:
        other = rig.running("orders", 1)
        rig.fetch(other, batch_of([Rec(bytes(150))], 0))
        lane = rig.start(rig.lane(terms=MERGES))
        rig.fetch(lane, small(0), small(1))
        request = rig.gather()
        assert [partition for _, partition, _ in request.batches] == [1]
        assert lane["merged_batches"] == 2
        rig.fetch(lane, small(2))
        last = rig.gather()
        assert [Batch.parse(data).count for *_, data in last.batches] == [3]
        rig.acknowledge(request)
        rig.acknowledge(last)
        assert lane.checkpoint == Checkpoint(3, 3, 3, 5)


def test_batches_that_were_made_are_merged_like_others():
    with Rig() as rig:
        lane = waiting(rig, [small(1), batch_of(recs(3, 2), 2, 0, [0, 2, 3]), small(6)])
        whole = opened(lane.native.raw(0))
        made = make(rig.pool, SCRATCH, whole, [whole.records[:1], whole.records[1:]])
        assert lane.native.replace([making.made for making in made]) == "pass"
        request = rig.gather()
        assert only(request).count == 5
        rig.acknowledge(request)
        assert lane.checkpoint == Checkpoint(7, 6, 6, 5)
        assert lane.native.segments() == ((0, 0, 3), (4, 3, 3))


# ---- gaps ----


def test_gaps_inside_are_told_of_before_and_after():
    with Rig() as rig:
        lane = waiting(rig, [small(1), small(5), small(6), small(9)], hold_gaps=True)
        mark, ahead = lane.native.ahead()
        assert ahead == ((5, 2), (9, 4))
        assert not lane.native.permit(mark)
        request = rig.gather()
        assert only(request).count == 4
        assert lane.native.ahead()[1] == ((1, 1), (5, 2), (9, 4))
        rig.acknowledge(request)
        assert lane.native.segments() == ((0, 0, 2), (5, 2, 2), (9, 4, 1))


def test_what_may_not_go_yet_is_not_merged():
    with Rig() as rig:
        lane = waiting(rig, [small(1), small(2), small(5), small(6), small(9), small(10)], hold_gaps=True)
        assert gathered(rig).count == 2
        assert rig.gather() is None
        assert lane.native.permit(lane.native.ahead(1)[0])
        assert gathered(rig).count == 2
        assert lane.native.ahead()[1] == ((5, 3), (9, 5))
        assert rig.gather() is None
        assert not lane.native.permit(lane.native.ahead()[0])
        assert gathered(rig).count == 2


def test_a_permit_is_as_good_for_what_they_became():
    """The mark was given before they were merged, into a batch that a request had no room for."""
    with Rig(Settings(produce_bytes_max=300)) as rig:
        other = rig.start(rig.lane("orders", 1))
        lane = rig.start(rig.lane(terms=MERGES, hold_gaps=True))
        rig.fetch(lane, small(0))
        rig.acknowledge(rig.gather())
        rig.fetch(other, batch_of([Rec(bytes(150))], 0))
        rig.fetch(lane, small(1), small(2), small(5), small(6), small(8))
        mark, _ = lane.native.ahead(1)
        rig.gather()
        assert (lane["merged_batches"], lane.native.queued) == (2, 4)
        assert lane.native.permit(mark)
        assert gathered(rig).count == 4
        assert lane.native.ahead()[1] == ((1, 1), (5, 3), (8, 5))
        assert rig.gather() is None


def test_no_more_is_merged_than_the_map_has_room_for():
    with Rig() as rig:
        lane = rig.start(rig.lane(terms=MERGES, hold_gaps=True), BEHIND_FULL, segments=FULL)
        at = BEHIND_FULL.position
        lane.native.drop_segments(3)
        rig.fetch(lane, *(small(at + 5 * i) for i in range(1, 5)))
        assert not lane.native.permit(lane.native.ahead()[0])
        request = rig.gather()
        assert only(request).count == 3
        assert rig.acknowledge(request) == []
        assert lane.native.segment_count == SEGMENTS_MAX
        assert rig.gather() is None
        lane.native.drop_segments(1)
        assert rig.acknowledge(rig.gather()) == []


# ---- compressed ones ----


def packed(rig: Rig, n: int = 5, terms: Terms = MERGES, **flags: bool) -> tuple[LaneRig, ProduceRequest]:
    """A lane with one compressed batch in flight, and n queued behind it."""
    lane = waiting(rig, [small(1, codec=ZSTD)], terms, **flags)
    request = rig.gather()
    assert only(request).count == 1
    rig.fetch(lane, *(small(2 + i, codec=ZSTD) for i in range(n)))
    return lane, request


def told(rig: Rig) -> list[Event]:
    """What comes instead of a request."""
    assert rig.gather() is None
    return rig.target.take_events()


def test_the_owner_is_asked_once_to_merge_what_is_compressed():
    with Rig() as rig:
        lane, request = packed(rig)
        (event,) = told(rig)
        assert (event.kind, event.lane) == ("merge_ahead", lane.native)
        assert not rig.target.waiting
        assert rig.acknowledge(request) == []
        rig.fetch(lane, small(7, codec=ZSTD))
        assert told(rig) == []
        batches = lane.native.mergeable()
        assert [batch.from_offset for batch in batches] == [2, 3, 4, 5, 6, 7]
        making = make_one(rig.pool, SCRATCH, batches, ZSTD)
        lane.native.join(6, making.made)
        request = rig.gather()
        assert only(request) == Batch.parse(making.batch.readdressed(*PRODUCER, 2).encode())
        del making, batches
        rig.acknowledge(request)
        assert lane.checkpoint == Checkpoint(8, 8, 8, 5)
        assert (lane["merged_batches"], lane["queued_bytes"]) == (6, 0)


def test_nobody_is_asked_where_it_does_not_pay():
    with Rig() as rig:
        packed(rig, n=3)
        assert gathered(rig).count == 1
    with Rig() as rig:
        lane = waiting(rig, [small(1 + i, codec=ZSTD) for i in range(9)])
        assert gathered(rig).count == 1, "nothing is in flight: it should leave now"
        assert [event.kind for event in told(rig)] == ["merge_ahead"]
        lane.native.halt()
    with Rig() as rig:
        packed(rig, terms=Terms())
        assert gathered(rig).count == 1


def test_some_of_them_may_be_joined_while_others_are_in_flight():
    """The ring moves up, the runs and what is in flight with it."""
    with Rig() as rig:
        lane, first = packed(rig, n=7)
        told(rig)
        lane.native.decline_merge(False)
        second = rig.gather()
        assert [event.kind for event in told(rig)] == ["merge_ahead"]
        batches = lane.native.mergeable()
        lane.native.join(4, make_one(rig.pool, SCRATCH, batches[:4], ZSTD).made)
        del batches
        assert (lane.native.in_flight, lane.native.queued) == (2, 3)
        third = rig.gather()
        assert only(third).count == 4
        for request in (first, second, third):
            assert rig.acknowledge(request) == []
        while request := rig.gather():
            assert rig.acknowledge(request) == []
        assert lane.checkpoint == Checkpoint(9, 9, 9, 5)
        assert lane.native.segments() == ((0, 0, 9),)
        assert (lane["queued_bytes"], rig.pool.used_bytes) == (0, 0)


def test_an_owner_that_does_not_merge_now_is_asked_again_later():
    with Rig() as rig:
        lane, _ = packed(rig, n=6)
        assert len(told(rig)) == 1
        lane.native.decline_merge(False)
        assert gathered(rig).count == 1, "one goes as it is"
        assert len(told(rig)) == 1
        lane.native.decline_merge(True)
        rig.fetch(lane, small(8, codec=ZSTD))
        assert [gathered(rig).count for _ in range(6)] == [1] * 6


def test_an_uncompressed_log_is_merged_all_the_same_when_opening_is_declined():
    with Rig() as rig:
        lane, _ = packed(rig, n=4)
        told(rig)
        lane.native.decline_merge(True)
        for _ in range(4):
            gathered(rig)
        rig.fetch(lane, small(6), small(7))
        assert gathered(rig).count == 2


def test_a_lane_that_was_asked_and_halted_is_asked_anew():
    with Rig() as rig:
        lane, request = packed(rig)
        assert len(told(rig)) == 1
        lane.native.halt()
        assert lane.native.mergeable() == []
        rig.settle(request, Produced("orders", 0, 1))
        rig.start(lane, Checkpoint(2, 2, 2))
        rig.fetch(lane, *(small(2 + i, codec=ZSTD) for i in range(6)))
        assert gathered(rig).base_sequence == 2


def test_joining_what_is_not_there_is_refused():
    with Rig() as rig:
        lane, _ = packed(rig)
        told(rig)
        batches = lane.native.mergeable()
        four = make_one(rig.pool, SCRATCH, batches[:4], ZSTD).made
        for n in (0, 6, 2**31):
            with pytest.raises(ValueError, match="are queued"):
                lane.native.join(n, four)
        for n in (3, 5):
            with pytest.raises(ValueError, match="became 4 records"):
                lane.native.join(n, four)
        lane.native.halt()
        with pytest.raises(ValueError, match="0 are queued"):
            lane.native.join(4, four)


def test_permits_of_gaps_among_compressed_batches_survive_a_join():
    with Rig() as rig:
        lane = waiting(rig, [small(1, codec=ZSTD)], hold_gaps=True)
        rig.gather()
        offsets = [2, 3, 6, 7, 10, 11]
        rig.fetch(lane, *(small(offset, codec=ZSTD) for offset in offsets))
        assert lane.native.permit(lane.native.ahead(1)[0])
        assert [event.kind for event in told(rig)] == ["merge_ahead"]
        batches = lane.native.mergeable()
        assert [batch.from_offset for batch in batches] == offsets[:4]
        lane.native.join(4, make_one(rig.pool, SCRATCH, batches, ZSTD).made)
        assert gathered(rig).count == 4
        assert rig.gather() is None
        assert lane.native.ahead()[1] == ((2, 2), (6, 4), (10, 6))


def test_what_was_joined_may_need_more_room_on_the_map_than_there_is():
    with Rig() as rig:
        lane = rig.start(rig.lane(terms=MERGES, hold_gaps=True), BEHIND_FULL, segments=FULL)
        at = BEHIND_FULL.position
        lane.native.drop_segments(2)
        rig.fetch(lane, *(small(at + 5 * i, codec=ZSTD) for i in range(1, 5)))
        lane.native.permit(lane.native.ahead()[0])
        batches = lane.native.mergeable()
        assert len(batches) == 2
        lane.native.join(2, make_one(rig.pool, SCRATCH, batches, ZSTD).made)
        request = rig.gather()
        assert rig.acknowledge(request) == []
        assert lane.native.segment_count == SEGMENTS_MAX


def test_a_lane_may_go_while_it_is_asked():
    with Rig() as rig:
        packed(rig)
        rig.target.gather(rig.target_side.transport, 8, 9)
        rig.lanes.clear()
        assert rig.target.take_events() == []
        rig.target.abandon()
        assert produce.parse_requests(rig.target_side.sent()) == []
        assert rig.pool.used_bytes == 0
