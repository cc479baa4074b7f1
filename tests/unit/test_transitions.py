"""The table of transitions: complete, consistent with the states and policies, and strict about what is not in it."""

import logging
from itertools import product
from typing import get_args, get_type_hints

import pytest

from replicator._core import VERDICTS
from replicator.config.models import Policy
from replicator.data.reasons import WHY
from replicator.data.states import LaneState
from replicator.data.transitions import (
    ALIVE,
    MOVING,
    UNAUTHORIZED,
    Question,
    Trigger,
    by_fetch_error,
    by_figures,
    by_policy,
    by_produce_error,
    by_verdict,
    next_state,
    severity,
    table,
)
from replicator.errors import KAFKA_ERRORS, Action, InternalError

QUESTIONS = get_args(Question)

# What reliability demands for each event: by default (None: the lane goes on as it is), and with the other option.
# Written down anew, from the requirement and not from the table.
REQUIRED = [
    ("source_truncated", "stop", LaneState.DIVERGED),
    ("source_truncated", "continue", LaneState.STARTING),
    ("source_gap", "continue", LaneState.STARTING),
    ("source_gap", "stop", LaneState.GAP),
    ("foreign_writes", "fence", LaneState.FAILED),
    ("foreign_writes", "tolerate", LaneState.STARTING),
    ("target_lost", "refill", LaneState.STARTING),
    ("target_lost", "stop", LaneState.TARGET_LOST),
    (Trigger.SOURCE_RECREATED, "", LaneState.RECREATED),
    (Trigger.SOURCE_DELETED, "", LaneState.FAILED),
    (Trigger.RETENTION_NEAR, "", None),
    (Trigger.PARTITION_ADDED, "", LaneState.STARTING),
    (Trigger.TARGET_PARTITIONS_DIFFER, "", None),
    (Trigger.TARGET_DELETED, "", LaneState.TARGET_LOST),
    (Trigger.TARGET_RECREATED, "", LaneState.TARGET_LOST),
    (Trigger.BATCH_TOO_LARGE, "", LaneState.FAILED),
    (Trigger.TARGET_ERROR, "", LaneState.PAUSED),
    (Trigger.UNAUTHORIZED, "", LaneState.PAUSED),
    (Trigger.THROTTLED, "", None),
    (Trigger.CLOCK_SKEW, "", None),
    (Trigger.CODEC_REFUSED, "", LaneState.FAILED),
    (Trigger.CANNOT_TAKE, "", LaneState.FAILED),
    (Trigger.BATCH_DAMAGED, "", LaneState.PAUSED),
    (Trigger.BATCH_CORRUPT, "", LaneState.FAILED),
    (Trigger.BATCH_REFUSED, "", LaneState.FAILED),
    (Trigger.FENCED, "", LaneState.PAUSED),
    (Trigger.LSO_STUCK, "", None),
    ("record_faults", "dlq", None),
    ("record_faults", "stop", LaneState.FAILED),
    ("record_faults", "skip", None),
    (Trigger.BATCH_OPENED, "", LaneState.STARTING),
    (Trigger.LETTER_NOT_WRITTEN, "", LaneState.PAUSED),
]


@pytest.mark.parametrize(("what", "option", "leads_to"), REQUIRED, ids=str)
def test_every_event_of_the_requirement(what, option, leads_to):
    trigger = what if isinstance(what, Trigger) else by_policy(Policy(**{what: option}), what)
    origin = trigger.come_from[0] if trigger.come_from == (LaneState.UNUSED,) else LaneState.COPYING
    assert next_state(origin, trigger) is (leads_to or origin)


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_policy_without_a_word_gets_the_default(question):
    default = {row[0]: row[1] for row in reversed(REQUIRED) if row[1]}[question]
    assert by_policy(Policy(), question).kind == f"{question}_{default}"


def test_every_option_of_every_policy_has_its_trigger():
    options = {name: get_args(get_args(hint)[0]) for name, hint in get_type_hints(Policy, include_extras=True).items()}
    for name in ("topics", "retry_timeout_ms", "retry_delay_max_ms"):
        options.pop(name)
    assert set(options) == set(QUESTIONS)
    for question, words in options.items():
        for word in words:
            assert by_policy(Policy(**{question: word}), question).kind == f"{question}_{word}"


def test_only_what_is_in_the_table():
    for state, trigger in product(LaneState, Trigger):
        if state in trigger.come_from:
            assert next_state(state, trigger) is (state if trigger.to is None else trigger.to)
        else:
            with pytest.raises(InternalError, match=rf"{state.name.lower()} met {trigger.kind}"):
                next_state(state, trigger)


def test_what_is_over_is_left_only_by_giving_it_away_or_by_a_person():
    """And by our own fault, which may be found at any time."""
    leaving = {trigger for trigger in Trigger if trigger.to is not None and LaneState.GAP in trigger.come_from}
    assert leaving == {Trigger.TAKEN_OVER, Trigger.RESUMED, Trigger.OWN_FAULT}


def test_every_state_can_be_reached_and_left():
    reached = {trigger.to for trigger in Trigger if trigger.to is not None}
    assert reached == set(LaneState)
    for state in LaneState:
        assert [t for t in Trigger if state in t.come_from and t.to not in (None, state)], state


def test_what_stops_a_lane_is_an_error_with_advice():
    for trigger in Trigger:
        if trigger.is_final and trigger is not Trigger.REACHED_STOP:
            assert trigger.severity == logging.ERROR, trigger
            assert trigger.advice != "nothing", trigger
            assert set(ALIVE) <= set(trigger.come_from), f"{trigger} may be found in any of them"
        elif trigger.to is LaneState.PAUSED:
            assert trigger.severity >= logging.WARNING, trigger
    assert Trigger.REACHED_STOP.is_final
    assert not Trigger.LSO_STUCK.is_final


def test_a_lane_that_moves_can_meet_all_that_happens_to_lanes_that_move():
    for state in MOVING:
        for trigger in Trigger:
            if set(MOVING) & set(trigger.come_from) and trigger not in (Trigger.CAUGHT_UP, Trigger.FELL_BEHIND):
                next_state(state, trigger)


# ---- from what is seen to a trigger ----


def test_figures():
    assert by_figures(LaneState.COPYING, LaneState.TAILING) is Trigger.CAUGHT_UP
    assert by_figures(LaneState.TAILING, LaneState.COPYING) is Trigger.FELL_BEHIND
    assert by_figures(LaneState.COPYING, LaneState.DONE) is by_figures(LaneState.TAILING, LaneState.DONE)
    assert by_figures(LaneState.COPYING, LaneState.DONE) is Trigger.REACHED_STOP
    for was, now in product(LaneState, LaneState):
        trigger = by_figures(was, now)
        if trigger:
            assert next_state(was, trigger) is now
    assert by_figures(LaneState.TAILING, LaneState.TAILING) is None
    assert by_figures(LaneState.PAUSED, LaneState.COPYING) is None, "that one was placed, and said so"
    assert by_figures(LaneState.COPYING, LaneState.PAUSED) is None


def test_every_verdict_that_stops_a_lane_stops_it():
    stopping = [verdict for verdict in VERDICTS if verdict in WHY]
    assert set(stopping) == set(WHY)
    for verdict in stopping:
        assert by_verdict(verdict).to is LaneState.FAILED
    assert by_verdict("refuse_malformed") is Trigger.BATCH_CORRUPT
    assert by_verdict("refuse_tail") is Trigger.SOURCE_CHANGED
    assert by_verdict("rebuild_holes") is Trigger.CANNOT_TAKE


@pytest.mark.parametrize("code", sorted(KAFKA_ERRORS))
def test_error_codes_of_both_sides(code):
    action = KAFKA_ERRORS[code].action
    fetch, produce = by_fetch_error(code), by_produce_error(code)
    if code in UNAUTHORIZED:
        assert (fetch, produce) == (Trigger.UNAUTHORIZED, Trigger.UNAUTHORIZED)
        return
    retried = action in (Action.RETRY, Action.REFRESH)
    assert fetch is (Trigger.SOURCE_ERROR if retried else Trigger.SOURCE_REFUSED)
    goes_on = retried or action is Action.RESYNC or code == 2  # a few tries, in case that it was the way
    assert produce.to is (LaneState.PAUSED if goes_on else LaneState.FAILED)


@pytest.mark.parametrize(
    ("code", "trigger"),
    [
        (-1, Trigger.BATCH_SUSPECT),
        (2, Trigger.BATCH_SUSPECT),
        (6, Trigger.TARGET_ERROR),
        (10, Trigger.BATCH_TOO_LARGE),
        (18, Trigger.BATCH_TOO_LARGE),
        (20, Trigger.TARGET_ERROR),
        (32, Trigger.BATCH_REFUSED),
        (45, Trigger.OUT_OF_STEP),
        (47, Trigger.OUT_OF_STEP),
        (76, Trigger.CODEC_REFUSED),
        (87, Trigger.BATCH_REFUSED),
        (44, Trigger.TARGET_REFUSED),
        (9999, Trigger.TARGET_REFUSED),
    ],
)
def test_some_codes_of_produce(code, trigger):
    assert by_produce_error(code) is trigger


def test_severity_of_a_kind_or_of_what_it_led_to():
    assert severity("source_away", "paused", "why") == logging.WARNING
    assert severity("caught_up", "tailing", "") == logging.DEBUG
    assert severity("state", "target_lost", "why") == logging.ERROR
    assert severity("state", "paused", "why") == logging.WARNING
    assert severity("state", "copying", "") == logging.INFO
    assert severity("state", "done", "") == logging.INFO
    assert severity("of a newer version", "of a newer version", "") == logging.INFO


# ---- for people ----


def test_the_table_in_words():
    lines = {line.trigger: line for line in table()}
    assert list(lines) == [trigger.name.lower() for trigger in Trigger]
    assert lines["source_gap_stop"][1:4] == ("error", "any that is not over", "gap (final)")
    assert lines["lso_stuck"][1:4] == ("warning", "copying, tailing", "stays")
    assert lines["target_lost_refill"].to == "starting"
    assert lines["fenced"].later == "with transactional writing"
    for line in lines.values():
        assert line.action
        assert line.advice
        assert "|" not in "".join(line), "it goes into a Markdown table"
