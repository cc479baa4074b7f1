"""What a lane makes of refusals: how it closes in on a record, what it looks for by itself, and when it forgets."""

from typing import Any

import pytest

from replicator._core import Refused, Scratch
from replicator.data import refusals as module
from replicator.data.orders import TargetTopic
from replicator.data.refusals import ATTEMPTS_MAX, CLOCK_MARGIN_MS, EXCLUDED_MAX, MERGE_BYTES, Refusal, Refusals
from tests.oracle.bench import lane_spec
from tests.oracle.scripted_log import Rec, batch_of

NOW_S = 1_800_000_000.0
NOW_MS = int(NOW_S * 1000)
TOO_LARGE, BAD_TIMESTAMP, BAD_CODEC, BAD_RECORD, UNKNOWN = 10, 32, 76, 87, -1
DAY_MS = 86_400_000


class Clock:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def time(self) -> float:
        return NOW_S + self.now_s


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def refusals(settings: TargetTopic = TargetTopic(), recipe: tuple[Any, ...] = (), **batches: Any) -> Refusals:  # noqa: B008
    return Refusals(lane_spec(recipe, **batches), settings)


def batch(first: int = 20, count: int = 10, size: int = 1000, records: dict[int, str] | None = None) -> Refused:
    return Refused(first, first + count, count, size, records or {})


def diverted(known: Refusals, *records: Rec) -> list[tuple[int, str]]:
    """Which of the records at offsets 0, 1, ... the recipe of the moment leaves out, and why."""
    scratch, made = Scratch(), batch_of(records)
    scratch.feed(made.encode(), made.records, 0, known.recipe(-1))
    return [(record.source_offset, record.reason) for record in scratch.diverted]


# ---- terms ----


def test_a_lane_that_was_never_refused_opens_nothing() -> None:
    known = refusals()
    terms = known.terms()
    assert (terms.batch_bytes_max, terms.codec, terms.opens, terms.stamped) == (0, -1, False, False)
    assert terms.merge_bytes == MERGE_BYTES
    assert known.recipe(-1) is None


@pytest.mark.parametrize(
    ("settings", "learned", "limit"),
    [(0, 0, 0), (5_000, 0, 5_000), (0, 3_000, 3_000), (5_000, 3_000, 3_000), (2_000, 3_000, 2_000)],
)
def test_the_smaller_of_the_known_and_the_learned_limit_counts(settings: int, learned: int, limit: int) -> None:
    known = refusals(TargetTopic(max_message_bytes=settings))
    known.bytes_max = learned
    assert known.terms().batch_bytes_max == limit
    assert known.terms().merge_bytes == (limit or MERGE_BYTES), "what is merged must be taken, too"


def test_options_and_settings_say_how_batches_are_written() -> None:
    stamped = TargetTopic(timestamp_type="LogAppendTime", max_message_bytes=1 << 20)
    terms = refusals(stamped, codec="zstd", merge="off").terms()
    assert (terms.codec, terms.merge_bytes, terms.stamped) == (4, 0, True)
    assert refusals(recipe=(("drop", ("tombstone",)),)).terms().opens


# ---- closing in ----


def test_a_batch_is_opened_then_its_records_go_one_by_one_then_the_one_at_fault_is_left_out() -> None:
    known = refusals()
    assert known.refused(UNKNOWN, "", batch())
    assert (known.opened_below, known.alone_below, known.excluded) == (30, -1, {})
    assert known.terms().opens
    assert known.refused(UNKNOWN, "", batch())
    assert (known.opened_below, known.alone_below, known.excluded) == (30, 30, {})
    assert known.refused(UNKNOWN, "bad", batch(24, count=1))
    assert known.excluded == {24: Refusal("unknown_server_error", -1, "bad", 3)}


def test_records_that_go_one_by_one_are_not_merged_again() -> None:
    known = refusals()
    for _ in range(2):
        assert known.terms().merge_bytes
        known.refused(UNKNOWN, "", batch())
    assert known.terms().merge_bytes == 0
    known.passed(30, 0)
    assert known.terms().merge_bytes == MERGE_BYTES


def test_records_that_the_broker_names_are_left_out_at_once() -> None:
    known = refusals()
    assert known.refused(BAD_RECORD, "some are bad", batch(records={22: "no key", 25: ""}))
    words = {offset: why.text for offset, why in known.excluded.items()}
    assert words == {22: "no key", 25: "some are bad"}
    assert (known.opened_below, known.alone_below) == (30, -1)
    assert known.why(22, "excluded") == Refusal("invalid_record", BAD_RECORD, "no key", 1)


def test_a_refused_size_teaches_a_limit_until_a_single_record_is_at_fault() -> None:
    known = refusals()
    for size, learned in [(1_000, 500), (490, 245), (240, 120)]:
        assert known.refused(TOO_LARGE, "", batch(size=size))
        assert known.bytes_max == learned
    assert known.refused(TOO_LARGE, "", batch(20, count=1, size=119))
    assert (known.bytes_max, list(known.excluded)) == (120, [20])


def test_a_refused_codec_is_another_one_next_time_and_then_nothing_is_left_to_try() -> None:
    known = refusals(codec="keep")
    assert known.refused(BAD_CODEC, "", batch())
    assert known.terms().codec == 3
    assert known.excluded == {}
    assert not known.refused(BAD_CODEC, "", batch())


def test_it_is_given_up_after_so_many_tries_or_records() -> None:
    known = refusals()
    known.attempts = ATTEMPTS_MAX
    assert not known.refused(UNKNOWN, "", batch())
    known = refusals()
    known.excluded = dict.fromkeys(range(EXCLUDED_MAX), Refusal("too many"))
    assert not known.refused(UNKNOWN, "", batch(records={22: ""}))
    assert 22 not in known.excluded or len(known.excluded) == EXCLUDED_MAX


# ---- looking for it by itself ----

FUTURE = TargetTopic(timestamp_after_max_ms=1_000)
BOTH = TargetTopic(timestamp_after_max_ms=1_000, timestamp_before_max_ms=DAY_MS)


def test_records_without_a_key_are_looked_for_once_one_was_refused() -> None:
    known = refusals(TargetTopic(compacted=True))
    assert known.recipe(-1) is None
    known.refused(BAD_RECORD, "", batch())
    assert diverted(known, Rec(), Rec(key=None), Rec(key=b"")) == [(1, "null_key")]
    why = known.why(1, "null_key")
    assert (why.reason, why.code) == ("null_key", BAD_RECORD)
    assert why.text


@pytest.mark.parametrize(
    ("settings", "distance_ms", "screened"),
    [
        (FUTURE, 0, False),
        (FUTURE, 1_000, False),
        (FUTURE, 1_000 + CLOCK_MARGIN_MS - 1, False),
        (FUTURE, 1_000 + CLOCK_MARGIN_MS, True),
        (FUTURE, -10 * DAY_MS, False),
        (BOTH, -DAY_MS, False),
        (BOTH, -DAY_MS - CLOCK_MARGIN_MS, False),
        (BOTH, -DAY_MS - CLOCK_MARGIN_MS - 1, True),
    ],
)
def test_times_are_looked_for_but_near_a_limit_the_broker_judges(
    settings: TargetTopic, distance_ms: int, screened: bool
) -> None:
    known = refusals(settings)
    known.refused(BAD_TIMESTAMP, "", batch())
    due = [(0, "invalid_timestamp")] if screened else []
    assert diverted(known, Rec(timestamp=NOW_MS + distance_ms), Rec(timestamp=NOW_MS)) == due


def test_a_record_that_has_no_time_is_neither_too_old_nor_too_new() -> None:
    """Brokers look at no time where there is none: LogValidator of Kafka passes over -1."""
    known = refusals(BOTH)
    known.refused(BAD_TIMESTAMP, "", batch())
    assert diverted(known, Rec(timestamp=-1), Rec(timestamp=0)) == [(1, "invalid_timestamp")]


def test_a_target_that_stamps_records_itself_refuses_none_for_its_time() -> None:
    known = refusals(TargetTopic(timestamp_type="LogAppendTime", timestamp_after_max_ms=1_000, compacted=True))
    known.refused(BAD_RECORD, "", batch())
    assert diverted(known, Rec(timestamp=NOW_MS + DAY_MS), Rec(key=None)) == [(1, "null_key")]


def test_limits_of_time_move_with_the_clock(clock: Clock) -> None:
    known = refusals(FUTURE)
    known.refused(BAD_TIMESTAMP, "", batch())
    record = Rec(timestamp=NOW_MS + 1_000 + CLOCK_MARGIN_MS + 3_000)
    first = known.recipe(-1)
    assert diverted(known, record)
    clock.now_s = 4.0
    assert known.recipe(-1) is first
    clock.now_s = 6.0
    assert not diverted(known, record)


def test_the_links_edits_come_before_what_is_looked_for() -> None:
    known = refusals(TargetTopic(compacted=True), recipe=(("drop", ("key_null",)),))
    known.refused(BAD_RECORD, "", batch())
    assert diverted(known, Rec(key=None)) == []
    assert diverted(refusals(recipe=(("divert", "mine", None),)), Rec()) == [(0, "mine")]


def test_why_of_a_links_own_step_is_its_reason() -> None:
    assert refusals().why(5, "mine") == Refusal("mine")


def test_what_was_learned_is_of_no_use_for_other_settings() -> None:
    known = refusals(TargetTopic(compacted=True, max_message_bytes=1_000))
    known.refused(BAD_RECORD, "", batch())
    known.refused(TOO_LARGE, "", batch())
    known.change(TargetTopic(max_message_bytes=9_000))
    assert known.recipe(-1) is None
    assert known.terms().batch_bytes_max == 9_000


# ---- forgetting ----


def test_it_is_all_forgotten_behind_the_batch() -> None:
    known = refusals()
    for _ in range(2):
        known.refused(UNKNOWN, "", batch())
    known.refused(UNKNOWN, "", batch(24, count=1))
    assert not known.passed(29, 0)
    assert (known.opened_below, known.alone_below) == (30, 30)
    assert known.passed(30, 0)
    assert (known.excluded, known.opened_below, known.alone_below) == ({}, -1, -1)
    assert not known.terms().opens
    assert not known.passed(31, 0)


def test_records_are_forgotten_one_by_one_where_bad_ones_never_end() -> None:
    """Else all of them would be kept, and looked through for every batch."""
    known = refusals()
    for offset in range(1000):
        known.leave_out(offset, Refusal("message_too_large"))
        known.passed(offset, 0)
    assert len(known.excluded) <= 2


def test_tries_are_counted_since_the_target_took_something() -> None:
    known = refusals()
    known.passed(20, 7)
    for number in range(5):
        known.refused(UNKNOWN, "", batch(20 + number, count=1, size=100))
        known.leave_out(1_000 + number, Refusal("message_too_large"))
        known.passed(1_001 + number, target_next=7)
    assert known.attempts == 5, "records that are left out are no progress"
    known.passed(1_005, target_next=8)
    assert known.attempts == 0


def test_a_fork_makes_other_records_of_the_same_offsets() -> None:
    known = refusals(TargetTopic(compacted=True))
    known.refused(BAD_RECORD, "", batch(records={22: ""}))
    known.forget()
    assert (known.excluded, known.opened_below, known.alone_below) == ({}, -1, -1)
    assert known.recipe(-1) is not None, "the target refuses such records as before"
