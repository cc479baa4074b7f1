"""Everything dies, again and again: short forms of the runs of chaos.py in every run, and the whole ones as soak.

`python -m tests.fault.chaos` is the same with seeds and sizes of one's choice.
"""

import pytest

from tests.broker.raw import RawClient
from tests.fault.chaos_ambiguous import Ambiguous, ambiguous
from tests.fault.chaos_expiry import CASES, Expiry, expiry
from tests.fault.chaos_kill import Kill, kill
from tests.fault.chaos_resume import BOUND_S, Resume, resume
from tests.fault.chaos_verdict import Outcome, judge, show
from tests.fault.chaos_zombie import Zombie, zombie
from tests.fault.scene import Pair, backlog
from tests.harness.link import RunningLink

pytestmark = pytest.mark.broker

HOUR_S = 3600
RECORDS = 20_000


def _assert_clean(*outcomes: Outcome) -> None:
    show(list(outcomes))
    for outcome in outcomes:
        assert outcome.verdict.clean, outcome.verdict.problems
        assert not outcome.complaints


def test_a_hole_in_front_of_a_long_backlog(pair: Pair, topic_name: str) -> None:
    """The first batch waits until the hole is written down, and by then the lane is full: nothing else stirs it."""
    pair.create(topic_name)
    with RawClient(pair.source) as client:
        client.mark_commit(topic_name, client.init_producer())
    backlog(pair.source, topic_name, RECORDS)
    config = pair.config(topic_name, limits={"lane_bytes_max": 128 << 10, "fetch_bytes_max": 128 << 10})
    with RunningLink(config) as link:
        link.wait_until_copied({(topic_name, 0): RECORDS + 1})
    verdict = judge(pair, topic_name, config)
    assert verdict.clean, verdict.problems
    assert verdict.records == RECORDS


@pytest.mark.parametrize(
    ("workers", "holes"),
    [pytest.param(1, False, id="1 worker", marks=pytest.mark.soak), pytest.param(3, True, id="3 workers, holes")],
)
def test_kill_9_of_anything(workers: int, holes: bool) -> None:
    plan = Kill(kills=5, records=40_000, partitions=4, workers=workers, holes=holes, pauses_s=(1, 3))
    _assert_clean(kill(plan))


@pytest.mark.soak
@pytest.mark.timeout(HOUR_S)
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("holes", [False, True], ids=["", "holes"])
def test_kill_9_of_anything_forty_times(workers: int, holes: bool) -> None:
    _assert_clean(kill(Kill(workers=workers, holes=holes)))


def test_a_frozen_worker_that_wakes(pair: Pair) -> None:
    _assert_clean(zombie(Zombie(repeats=1), pair))


@pytest.mark.soak
@pytest.mark.timeout(HOUR_S)
def test_a_frozen_worker_that_wakes_twenty_times(pair: Pair) -> None:
    _assert_clean(zombie(Zombie(), pair))


@pytest.mark.parametrize("case", ["back-dated", pytest.param("append-time, forgetful", marks=pytest.mark.soak)])
def test_a_target_that_forgets_us(case: str) -> None:
    _assert_clean(expiry(Expiry(case, kills=2, holes=case == "back-dated")))


@pytest.mark.soak
@pytest.mark.timeout(HOUR_S)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("holes", [False, True], ids=["", "holes"])
def test_a_target_that_forgets_us_and_many_deaths(case: str, holes: bool) -> None:
    _assert_clean(expiry(Expiry(case, holes=holes)))


def test_every_seventh_answer_is_lost(pair: Pair) -> None:
    _assert_clean(ambiguous(Ambiguous(batches=2_000, partitions=12), pair))


@pytest.mark.soak
@pytest.mark.timeout(HOUR_S)
def test_every_seventh_answer_is_lost_of_many(pair: Pair) -> None:
    _assert_clean(ambiguous(Ambiguous(seed=2), pair))


def _assert_soon(*outcomes: Outcome) -> None:
    _assert_clean(*outcomes)
    for outcome in outcomes:
        assert outcome.faults["slowest_s"] < BOUND_S


def test_a_lane_goes_on_soon(pair: Pair) -> None:
    _assert_soon(*resume(Resume(records=(10_000, 100_000), repeats=1), pair))


@pytest.mark.soak
@pytest.mark.timeout(HOUR_S)
def test_a_lane_goes_on_soon_however_much_was_copied(pair: Pair) -> None:
    _assert_soon(*resume(Resume(seed=2), pair))


@pytest.mark.soak
@pytest.mark.timeout(HOUR_S)
def test_one_kill_in_the_middle_with_mirrormaker_2_beside() -> None:
    pytest.importorskip("psutil", reason="MirrorMaker 2 is started as by the benchmarks")
    from tests.fault.chaos_mm2 import Mm2, mm2

    ours, theirs = mm2(Mm2())
    _assert_clean(ours)
    show([ours, theirs])
