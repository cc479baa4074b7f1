"""A lane that waits for company before it sends small batches, and how it is told to wait no longer."""

from replicator._core import Terms
from tests.oracle.rig import LaneRig, Rig
from tests.unit.test_merge import gathered, merged, small

LINGERS = Terms(merge_bytes=1_000)


def lingering(rig: Rig) -> LaneRig:
    """A lane with nothing queued, and a record acknowledged."""
    lane = rig.start(rig.lane(terms=LINGERS))
    rig.fetch(lane, small(0))
    rig.acknowledge(rig.gather())
    lane.native.linger(True)
    return lane


def kinds(rig: Rig, lane: LaneRig, *offsets: int) -> list[str]:
    return [event.kind for event in rig.fetch(lane, *map(small, offsets))]


def test_what_comes_meanwhile_goes_with_it():
    with Rig() as rig:
        lane = lingering(rig)
        assert kinds(rig, lane, 1) == ["lingers"]
        assert kinds(rig, lane, 2, 3) == [], "told once"
        assert rig.gather() is None
        lane.native.ripen()
        assert gathered(rig) == merged([small(1), small(2), small(3)], 1)


def test_the_next_one_waits_again():
    with Rig() as rig:
        lane = lingering(rig)
        kinds(rig, lane, 1)
        lane.native.ripen()
        rig.acknowledge(rig.gather())
        assert kinds(rig, lane, 2) == ["lingers"]
        assert rig.gather() is None


def test_enough_of_them_do_not_wait():
    with Rig() as rig:
        lane = lingering(rig)
        count = LINGERS.merge_bytes // len(small(1).encode()) + 1
        kinds(rig, lane, *range(1, count + 1))
        assert rig.gather() is not None


def test_a_lane_that_need_not_wait_any_more_sends_what_waited():
    with Rig() as rig:
        lane = lingering(rig)
        kinds(rig, lane, 1)
        lane.native.linger(False)
        assert gathered(rig).records == small(1).records
        assert kinds(rig, lane, 2) == []


def test_a_halt_forgets_that_something_waited():
    with Rig() as rig:
        lane = lingering(rig)
        kinds(rig, lane, 1)
        lane.native.halt()
        rig.start(lane, lane.checkpoint)
        assert kinds(rig, lane, 1) == ["lingers"]
        lane.native.ripen()
        assert gathered(rig).base_sequence == 1


def test_without_it_nothing_waits():
    with Rig() as rig:
        lane = lingering(rig)
        lane.native.linger(False)
        assert kinds(rig, lane, 1) == []
        assert rig.gather() is not None
