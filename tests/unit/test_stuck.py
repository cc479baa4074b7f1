"""The two watches over a lane's offsets, second by second, and the sentence about who blocks it."""

import asyncio
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.data.stuck import (
    RATE_AFTER_S,
    STUCK_AFTER_S,
    WARN_S,
    WINDOW_S,
    RetentionWatch,
    StuckLso,
    blocking_producer,
)
from replicator.data.transitions import Trigger
from replicator.errors import ClusterError, ConnectionLost, UnsupportedBroker
from replicator.kafka.log import Partition

STUCK, MOVED = Trigger.LSO_STUCK, Trigger.LSO_MOVED
NEAR, EASED = Trigger.RETENTION_NEAR, Trigger.RETENTION_EASED


def said(watch: StuckLso | RetentionWatch, rows: list[tuple[int, int, int]]) -> dict[int, Trigger]:
    """What the watch says, by second."""
    words = {at: watch.update(*row, float(at)) for at, row in enumerate(rows)}
    return {at: word for at, word in words.items() if word}


# ---- the last stable offset ----


def test_stuck_after_its_time_and_said_once():
    assert said(StuckLso(), [(100, 100, 200 + n) for n in range(100)]) == {int(STUCK_AFTER_S): STUCK}


def test_it_moved():
    rows = [(100, 100, 200)] * 40 + [(150, 150, 200)] * 40 + [(200, 200, 200)] * 5
    assert said(StuckLso(), rows) == {30: STUCK, 40: MOVED, 70: STUCK, 80: MOVED}


@pytest.mark.parametrize(
    "row",
    [
        (200, 200, 200),  # caught up
        (50, 100, 200),  # has work to do below it
        (100, -1, 200),  # not known
        (100, 100, -1),
        (-1, -1, -1),
    ],
)
def test_not_stuck(row):
    assert said(StuckLso(), [row] * 100) == {}


def test_a_busy_topic_is_not_stuck():
    """Its last stable offset is always behind, but moves."""
    assert said(StuckLso(), [(n // 20, n // 20, n // 20 + 5) for n in range(200)]) == {}


def test_a_lane_that_comes_late_to_it_waits_as_long():
    rows = [(50, 100, 200)] * 50 + [(100, 100, 200)] * 50
    assert said(StuckLso(), rows) == {80: STUCK}


def stuck_by_history(rows: list[tuple[int, int, int]], after: int) -> list[bool]:
    """At each second: did each of the last `after` seconds and now show the lane at one and the same offset?"""

    def stands(row: tuple[int, int, int]) -> bool:
        position, stable, high = row
        return stable >= 0 and position >= stable and stable < high

    return [
        at >= after and all(stands(row) and row[1] == rows[at][1] for row in rows[at - after : at + 1])
        for at in range(len(rows))
    ]


@given(st.lists(st.tuples(*[st.integers(-1, 3)] * 3), max_size=40), st.integers(1, 4))
def test_against_the_whole_history(rows, after):
    watch = StuckLso(after)
    seen = []
    for at, row in enumerate(rows):
        was = watch.is_stuck
        word = watch.update(*row, float(at))
        assert (word is not None) == (was != watch.is_stuck)
        seen.append(watch.is_stuck)
    assert seen == stuck_by_history(rows, after)


# ---- retention ----


def test_retention_that_closes_in():
    """90 offsets a second nearer, from 1,000,000 away: an hour before the end it says so, once."""
    rows = [(100 * n, 1_000_000 + 10 * n, 2_000_000) for n in range(11_000)]
    words = said(watch := RetentionWatch(), rows)
    assert list(words.values()) == [NEAR]
    at = next(iter(words))
    assert at == pytest.approx(1_000_000 / 90 - WARN_S, abs=2)
    assert watch.seconds_left == pytest.approx(1_000_000 / 90 - 10_999, abs=2)


def test_nothing_is_said_of_a_lane_that_gains():
    assert said(RetentionWatch(), [(100 * n, 200 * n + 1_000, 10**9) for n in range(5_000)]) == {}


def test_nothing_is_said_of_a_lane_that_has_read_everything():
    """Old records expire on an idle topic: the log start comes up to the end, and nothing is lost."""
    assert said(RetentionWatch(), [(min(n, 3_000), 3_000, 3_000) for n in range(5_000)]) == {}


def test_nothing_is_said_of_a_topic_that_deletes_nothing():
    """Even where the lane stands still at the very start of the log."""
    assert said(RetentionWatch(), [(0, 0, 1_000)] * 5_000) == {}
    assert said(RetentionWatch(), [(500, 500, 1_000)] * 5_000) == {}


def test_nothing_is_concluded_from_the_first_moments():
    rows = [(0, 1_000, 10_000), *[(900, 1_000, 10_000)] * 100]
    assert list(said(RetentionWatch(), rows)) == [int(RATE_AFTER_S)]


def test_a_lane_that_stands_still_is_warned_of_the_next_step():
    """Retention takes 1,000 offsets every two hours: in most windows nothing moves, but the next step would hit."""
    rows = [(1_000 * (n // 7_200), 4_500, 100_000) for n in range(4 * 7_200 + 7_000)]
    words = said(RetentionWatch(), rows)
    assert list(words.values())[-1] is NEAR, "500 offsets are left, and the last step took 1,000"
    last_step = 4 * 7_200
    assert last_step <= list(words)[-1] <= last_step + 10


def test_a_lane_that_stands_still_far_away_is_left_alone():
    rows = [(1_000 * (n // 7_200), 1_000_000, 2_000_000) for n in range(3 * 7_200)]
    assert said(RetentionWatch(), rows) == {}


def test_it_eases_and_not_at_once():
    slow = [(100 * n, 400_000 + 10 * n, 10**7) for n in range(2_000)]
    fast = [(200_000 + 100 * n, 420_000 + 1_000 * n, 10**7) for n in range(3_000)]
    words = said(watch := RetentionWatch(), slow + fast)
    assert list(words.values()) == [NEAR, EASED]
    assert list(words)[1] > 2_000
    assert watch.seconds_left == math.inf


def test_passed_already():
    watch = RetentionWatch()
    watch.update(0, 100, 1_000, 0.0)
    assert watch.update(500, 100, 1_000, 2 * RATE_AFTER_S) is NEAR
    assert watch.seconds_left == 0


def test_unknown_offsets_say_nothing():
    assert said(RetentionWatch(), [(-1, -1, -1)] * 100 + [(-1, 50, 100)] * 100) == {}


@given(
    st.integers(1, 1_000), st.integers(0, 1_000), st.integers(1, 10**7), st.integers(int(WINDOW_S), 4 * int(WINDOW_S))
)
def test_steady_rates_against_arithmetic(nearer, own, distance, until):
    """Both go at steady speeds: what is left is a division, whatever the windows do."""
    watch = RetentionWatch()
    at = 0
    for at in range(0, until, 60):
        start, position = (own + nearer) * at, distance + own * at
        if start > position:
            break
        watch.update(start, position, 10**12, float(at))
    left = (distance - nearer * at) / nearer
    if left > 0:
        assert watch.seconds_left == pytest.approx(left)
        assert watch.is_near == (left <= WARN_S)


# ---- who it is ----


class _Answers:
    """A cluster that gives one answer."""

    alias = "us"

    def __init__(self, answer: dict[str, Any] | Exception) -> None:
        self.answer = answer
        self.asked: list[Any] = []

    def leader(self, topic: str, partition: int) -> Any:
        return type("Leader", (), {"node_id": 1})

    async def request(self, api: Any, body: Any, node_id: int) -> Any:
        self.asked.append((api.name, body, node_id))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def producer(number: int, start: int, at_ms: int = 1_764_084_000_000) -> dict[str, Any]:
    return {"producer_id": number, "producer_epoch": 2, "current_txn_start_offset": start, "last_timestamp": at_ms}


def answer(*producers: dict[str, Any], code: int = 0, partition: int = 3) -> dict[str, Any]:
    row = {"partition_index": partition, "error_code": code, "error_message": None, "active_producers": producers}
    return {"topics": [{"name": "orders", "partitions": [row]}]}


def ask(given: dict[str, Any] | Exception) -> str:
    cluster = _Answers(given)
    said = asyncio.run(blocking_producer(Partition(cluster, "orders", 3)))  # type: ignore[arg-type]
    assert cluster.asked == [
        ("DescribeProducers", {"topics": [{"name": "orders", "partition_indexes": [3]}]}, 1),
    ]
    return said


def test_the_oldest_open_transaction_is_named():
    said = ask(answer(producer(1, -1), producer(2, 900), producer(3, 500), producer(4, -1)))
    assert said == (
        "producer id 3 epoch 2 has a transaction open since offset 500, and wrote last at 2025-11-25T15:20:00Z; one"
        " more transaction is open behind it"
    )
    assert ask(answer(producer(3, 0))).endswith("since offset 0, and wrote last at 2025-11-25T15:20:00Z")
    assert ask(answer(*(producer(n, n) for n in range(5)))).endswith("; 4 more transactions are open behind it")


def test_a_strange_time_is_no_obstacle():
    assert "wrote last at timestamp 9223372036854775807" in ask(answer(producer(3, 0, (1 << 63) - 1)))
    assert "wrote last at 1969-12-31T23:59:59Z" in ask(answer(producer(3, 0, -1)))


def test_no_transaction_is_open():
    assert ask(answer(producer(1, -1))) == "no producer has a transaction open there any more"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (UnsupportedBroker("DescribeProducers"), "brokers say so from Kafka 2.8 on"),
        (answer(code=29), "us orders-3: DescribeProducers: TOPIC_AUTHORIZATION_FAILED"),
        (ClusterError(6, "moved"), "NOT_LEADER_OR_FOLLOWER"),
        (ConnectionLost("gone"), "gone"),
        (answer(partition=4), "DescribeProducers leaves our partition out"),
    ],
    ids=str,
)
def test_that_it_cannot_be_told_is_said(given, words):
    said = ask(given)
    assert said.startswith("which producer holds it cannot be told: ")
    assert words in said
