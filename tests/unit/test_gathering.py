"""Small raw batches that are changed become one while they are open, and leave the same records and the same map."""

from dataclasses import replace

import pytest

from replicator._core import Terms
from replicator.data.orders import LaneSpec, TargetTopic
from replicator.data.rebuild import Opener
from replicator.data.refusals import Refusals
from replicator.data.states import Checkpoint
from tests.oracle.batch import HEADER_SIZE, Batch
from tests.oracle.fetch import Fetched
from tests.oracle.opened import unpack
from tests.oracle.records import walk
from tests.oracle.rig import LaneRig, Rig
from tests.oracle.scripted_log import LZ4, NONE, ZSTD, batch_of, recs, stored

ADDS = ("header_add", b"origin", b"here", None)
COUNT = 5
WHOLE_BATCHES = 4


def refusals(*steps: object, limit: int = 0) -> Refusals:
    spec = LaneSpec(0, "us-eu", "us", "eu", "orders", "orders", 0, bytes(16), 1, 0, recipe=steps)
    return Refusals(spec, TargetTopic(max_message_bytes=limit))


def source(codec: int = NONE, count: int = WHOLE_BATCHES) -> list[Batch]:
    return [batch_of(recs(COUNT, first), first, codec) for first in range(0, count * COUNT, COUNT)]


def raw(rig: Rig, batches: list[bytes]) -> LaneRig:
    lane = rig.start(rig.lane(terms=Terms(opens=True)))
    rig.ask()
    rig.feed(rig.response((lane, Fetched(0, b"".join(batches)))))
    return lane


def opened(rig: Rig, lane: LaneRig, terms: Refusals):
    first, *more = (batch for n in range(lane.native.raw_count) if (batch := lane.native.raw(n)))
    return Opener(rig.pool).open(first, terms, following=more)


def sent(rig: Rig) -> Batch:
    request = rig.gather()
    assert request is not None
    ((_, _, data),) = request.batches
    assert rig.acknowledge(request) == []
    return Batch.parse(data)


def contents(batch: Batch, codec: int) -> list[tuple[object, ...]]:
    found = walk(replace(batch, records=b"").encode()[:HEADER_SIZE], unpack(batch.records, codec))
    return [(one.timestamp, one.key, one.value, one.headers) for one in found]


@pytest.mark.parametrize("codec", [NONE, LZ4, ZSTD])
def test_a_row_that_is_changed_becomes_one(codec):
    batches = source(codec)
    with Rig() as rig:
        lane = raw(rig, [stored(one) for one in batches])
        found = opened(rig, lane, refusals(ADDS))
        assert (found.batches, found.is_other, found.filtered, found.left_out) == (WHOLE_BATCHES, True, 0, ())
        for made in (found.made, *([] for _ in range(WHOLE_BATCHES - 1))):
            assert lane.checkpoint.position == 0
            assert lane.native.replace(made) == "pass"
        copy = sent(rig)
        expected = [row for one in batches for row in contents(one, codec)]
        assert contents(copy, codec) == [(*row[:3], (*row[3], (b"origin", b"here"))) for row in expected]
        assert lane.checkpoint == Checkpoint(20, 20, 20, 5)
        assert lane.native.segments() == ((0, 0, 20),)
        assert rig.gather() is None
        del found
        assert rig.pool.used_bytes == 0


def test_what_is_left_out_is_counted_and_is_a_hole_in_the_map():
    with Rig() as rig:
        lane = raw(rig, [stored(one) for one in source(LZ4)])
        found = opened(rig, lane, refusals(("drop", ("key", "equals", b"key 7")), ADDS))
        assert (found.batches, found.filtered) == (WHOLE_BATCHES, 1)
        for made in (found.made, *([] for _ in range(WHOLE_BATCHES - 1))):
            lane.native.replace(made)
        assert sent(rig).count == 19
        assert lane.native.segments() == ((0, 0, 7), (8, 7, 12))


def test_diverted_records_come_with_the_row_and_end_it_for_the_next_time():
    with Rig() as rig:
        lane = raw(rig, [stored(one) for one in source(LZ4)])
        found = opened(rig, lane, refusals(("divert", "bad", ("key", "equals", b"key 12")), ADDS))
        assert ([one.source_offset for one in found.left_out], found.is_other) == ([12], False)
        assert (found.batches, found.filtered) == (WHOLE_BATCHES, 0)


def test_a_first_one_that_goes_as_it_is_goes_alone():
    with Rig() as rig:
        lane = raw(rig, [stored(one) for one in source(LZ4)])
        found = opened(rig, lane, refusals(("header_add", b"h", b"", ("key", "equals", b"key 7"))))
        assert (found.made, found.batches, found.is_other) == (None, 1, False)


def test_a_later_one_that_would_go_as_it_is_is_written_too():
    with Rig() as rig:
        lane = raw(rig, [stored(one) for one in source(LZ4)])
        found = opened(rig, lane, refusals(("header_add", b"h", b"", ("key", "equals", b"key 2"))))
        assert found.made is not None
        assert (found.batches, found.is_other, found.made[0].count) == (WHOLE_BATCHES, False, 20)


def _unsound(batch: Batch) -> bytes:
    return stored(replace(batch, records=batch.records[:-1]))


@pytest.mark.parametrize(
    "spoilt",
    [
        lambda batch: stored(batch)[:-1] + b"?",  # its checksum
        _unsound,  # cannot be unpacked
        lambda batch: stored(batch_of(recs(COUNT, batch.base_offset), batch.base_offset, ZSTD)),
        lambda batch: stored(replace(batch, count=COUNT - 1)),  # what it holds is not what it says
    ],
)
def test_a_row_ends_before_what_has_to_be_looked_at_alone(spoilt):
    batches = source(LZ4)
    with Rig() as rig:
        lane = raw(rig, [*map(stored, batches[:2]), spoilt(batches[2]), stored(batches[3])])
        found = opened(rig, lane, refusals(ADDS))
        assert found.made is not None
        assert (found.batches, [made.count for made in found.made]) == (2, [10])


def test_a_row_is_no_longer_than_a_merged_batch():
    size = len(stored(source(NONE)[0]))
    for whole in (1, 2, 3):
        with Rig() as rig:
            lane = raw(rig, [stored(one) for one in source(NONE)])
            assert opened(rig, lane, refusals(ADDS, limit=whole * size + size // 2)).batches == whole
