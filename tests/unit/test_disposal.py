"""Records that are left out: a letter each, once; a count; and an event that tells of many."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from replicator.config.models import Policy
from replicator.data import disposal as module
from replicator.data.disposal import TOLD_EACH_S, Disposal
from replicator.data.orders import TargetTopic
from replicator.data.rebuild import LeftOut, Opened
from replicator.data.refusals import Refusal, Refusals
from tests.oracle.bench import Letters, lane_spec


class Clock:
    """Stands for the module `time`."""

    now_s = 1_000.0

    def monotonic(self) -> float:
        return self.now_s


class Lane:
    """What Disposal asks of a runner and its worker."""

    def __init__(self, policy: Policy) -> None:
        self.spec, self.source = lane_spec(policy=policy), None
        self.worker = self.rows = self
        self.refusals = Refusals(self.spec, TargetTopic())
        self.counts: Counter[str] = Counter()
        self.box = Letters()
        self.told: list[tuple[str, str]] = []
        self.stopped: list[tuple[str, str]] = []
        self.disposal = Disposal(self)  # type: ignore[arg-type]

    def add(self, row: int, column: str, amount: int) -> None:
        assert row == self.spec.row
        self.counts[column] += amount

    def letters(self, link: str) -> Letters:
        assert link == self.spec.link
        return self.box

    def topic_id(self, _partition: Any) -> bytes:
        return b"\x01" * 16

    def tell(self, trigger: Any, reason: str) -> None:
        self.told.append((trigger.kind, reason))

    def stop(self, trigger: Any, reason: str) -> None:
        self.stopped.append((trigger.kind, reason))

    def dispose(self, *offsets: int, raw: bool = False) -> Any:
        return self.disposal.dispose(tuple(left_out(offset, raw) for offset in offsets))


def left_out(offset: int, raw: bool = False) -> LeftOut:
    return LeftOut(offset, 1_700, b"k", b"v", ((b"h", None),), Refusal("invalid_record", 87, "no key", 3), raw)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def run(lane: Lane, play: Any) -> None:
    async def inside() -> None:
        play(lane)

    asyncio.run(inside())


def test_nothing_left_out_is_nothing_to_do() -> None:
    lane = Lane(Policy(record_faults="stop"))
    assert lane.dispose() == ()
    assert (lane.told, lane.stopped, lane.counts) == ([], [], Counter())


def test_a_letter_says_all_that_is_known() -> None:
    def play(lane: Lane) -> None:
        (future,) = lane.dispose(12)
        assert future is lane.box.futures[0]
        (letter,) = lane.box.sent
        assert (letter.topic, letter.partition, letter.offset, letter.timestamp_ms) == ("orders", 0, 12, 1_700)
        assert (letter.key, letter.value, letter.headers) == (b"k", b"v", ((b"h", None),))
        assert (letter.reason, letter.error_code, letter.error_text, letter.attempt) == (
            "invalid_record",
            87,
            "no key",
            3,
        )
        assert letter.topic_id
        assert not letter.raw

    run(Lane(Policy()), play)


def test_letters_are_written_once_until_the_record_is_passed() -> None:
    def play(lane: Lane) -> None:
        first = lane.dispose(1, 2)
        assert lane.dispose(1, 2, 3)[:2] == first
        assert lane.box.offsets == [1, 2, 3]
        assert lane.dispose(2, raw=True)[0] not in first, "a batch, not the record of the same offset"
        lane.disposal.passed(2)
        lane.dispose(2, 3)
        assert lane.box.offsets == [1, 2, 3, 2]
        lane.disposal.passed(4)
        assert lane.disposal._letters == {}
        assert lane.disposal._known == set()

    run(Lane(Policy()), play)


def test_a_letter_that_failed_is_written_anew_but_counted_and_told_once(clock: Clock) -> None:
    def play(lane: Lane) -> None:
        first, second = lane.dispose(1, 2)
        first.set_exception(OSError("no room"))
        first.exception()
        lane.disposal.passed(0)
        again = lane.dispose(1, 2)
        assert (again[0] is first, again[1] is second) == (False, True)
        assert lane.box.offsets == [1, 2, 1]
        assert lane.counts["diverted_records"] == 2
        clock.now_s += TOLD_EACH_S
        lane.disposal.tell_if_due()
        assert len(lane.told) == 1

    run(Lane(Policy()), play)


def test_a_letter_that_was_cancelled_is_written_anew() -> None:
    def play(lane: Lane) -> None:
        lane.dispose(1)[0].cancel()
        lane.disposal.passed(0)
        lane.dispose(1)
        assert lane.box.offsets == [1, 1]

    run(Lane(Policy()), play)


def test_one_event_a_second_tells_of_all(clock: Clock) -> None:
    def play(lane: Lane) -> None:
        lane.dispose(1)
        for offset in range(2, 100):
            lane.dispose(offset)
        assert lane.told == [("record_faults_dlq", "source offset 1: invalid_record: no key")]
        clock.now_s += TOLD_EACH_S - 0.01
        lane.disposal.tell_if_due()
        assert len(lane.told) == 1
        clock.now_s += 0.02
        lane.disposal.tell_if_due()
        lane.disposal.tell_if_due()
        assert lane.told[1:] == [("record_faults_dlq", "source offset 2: invalid_record: no key and 97 more")]

    run(Lane(Policy()), play)


def test_what_is_skipped_is_counted_and_told_once_however_often_it_is_met(clock: Clock) -> None:
    def play(lane: Lane) -> None:
        for _ in range(3):
            assert lane.dispose(1, 2) == ()
        clock.now_s += TOLD_EACH_S
        lane.disposal.tell_if_due()
        assert lane.told == [("record_faults_skip", "source offset 1: invalid_record: no key and 1 more")]
        assert (lane.counts["diverted_records"], lane.box.sent) == (2, [])

    run(Lane(Policy(record_faults="skip")), play)


def test_a_policy_may_stop_there() -> None:
    def play(lane: Lane) -> None:
        assert lane.dispose(7, 8) is None
        assert lane.stopped == [("record_faults_stop", "source offset 7: invalid_record: no key")]
        assert (lane.box.sent, lane.counts) == ([], Counter())

    run(Lane(Policy(record_faults="stop")), play)


def test_after_a_fork_the_same_offsets_are_other_records() -> None:
    """A letter of the old branch is none for the new one; and what is known of refusals is of the old one."""

    def play(lane: Lane) -> None:
        lane.refusals.leave_out(6, Refusal("invalid_record"))
        lane.dispose(4, 6)
        lane.disposal.forget(5)
        lane.dispose(4, 6)
        assert lane.box.offsets == [4, 6, 6]
        assert lane.refusals.excluded == {}
        assert lane.counts["diverted_records"] == 3

    run(Lane(Policy()), play)


def test_filtered_records_are_counted_when_their_batch_is_through() -> None:
    lane = Lane(Policy())
    lane.disposal.count(Opened([], (left_out(1),), 5))
    assert lane.counts == {"filtered_records": 5}
