"""The network between us and the brokers fails in the ways that leave it open what the broker has done."""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import pytest

from tests.fault.scene import Journal, Pair, Traffic, assert_same_log, wait_for_pause, wait_for_progress
from tests.harness.link import RunningLink
from tests.harness.waiting import eventually

pytestmark = pytest.mark.broker

PRODUCE, FETCH = 0, 1
PARTITIONS = 3
TIMEOUT_MS = 1000


@contextmanager
def _copying(pair: Pair, topic: str, timeout_ms: int = TIMEOUT_MS, records_min: int = 1500) -> Iterator[RunningLink]:
    """A link at work and a producer that feeds it; afterwards, when the network is well again, the comparison."""
    pair.create(topic, PARTITIONS)
    with (
        RunningLink(pair.config(topic, timeout_ms)) as link,
        Traffic(pair.source, topic, range(PARTITIONS)) as traffic,
    ):
        wait_for_progress(link, topic)
        yield link
        for cluster in (pair.source, pair.target):
            cluster.proxies[0].reset()
        link.wait_until_copied(traffic.finish())
    assert_same_log(pair, topic, records_min)


def test_the_connection_is_cut_between_a_produce_and_its_answer(pair: Pair, journal: Journal, topic_name: str) -> None:
    proxy = pair.target.proxies[0]
    with _copying(pair, topic_name) as link:
        for _ in range(5):
            cut = proxy.cut
            proxy.cut_after_request(PRODUCE, n=3)
            eventually(lambda cut=cut: proxy.cut > cut, "the cut")
            wait_for_progress(link, topic_name)
        assert proxy.cut == 5
    assert journal.tells("no answer to a Produce", topic_name)


@pytest.mark.parametrize("then", ["close", pytest.param("silence", marks=pytest.mark.soak)])
def test_every_seventh_answer_to_a_produce_is_lost(
    pair: Pair, journal: Journal, topic_name: str, then: Literal["close", "silence"]
) -> None:
    proxy = pair.target.proxies[0]
    with _copying(pair, topic_name) as link:
        proxy.drop_answers(PRODUCE, every=7, then=then)  # those to checkpoints are lost as well

        def looked_again() -> bool:
            pauses = [entry for entry in journal.of(topic_name) if entry.startswith("paused")]
            return proxy.dropped >= 5 and len(pauses) >= 2

        eventually(looked_again, "the lane to look at the target's log again and again", 90)
        wait_for_progress(link, topic_name, timeout_s=60)


def test_answers_to_produces_come_too_late(pair: Pair, journal: Journal, topic_name: str) -> None:
    """Every batch is appended, and never acknowledged in time: only the target's own log tells."""
    proxy = pair.target.proxies[0]
    with _copying(pair, topic_name, timeout_ms=500) as link:
        proxy.delay_answers(PRODUCE, 0.8)
        eventually(lambda: proxy.delayed >= 3, "late answers")
        # The first batch after a doubt goes alone, so each look at the target's log brings one on.
        wait_for_progress(link, topic_name, records=30)
    assert journal.tells("no answer within 500 ms", topic_name)


@pytest.mark.parametrize("then", ["close", pytest.param("silence", marks=pytest.mark.soak)])
def test_answers_to_fetches_are_lost(
    pair: Pair, journal: Journal, topic_name: str, then: Literal["close", "silence"]
) -> None:
    proxy = pair.source.proxies[0]
    with _copying(pair, topic_name) as link:
        proxy.drop_answers(FETCH, every=7, then=then)
        eventually(lambda: proxy.dropped >= 5, "lost answers", 60)
        wait_for_progress(link, topic_name)


def test_answers_to_fetches_come_too_late(pair: Pair, journal: Journal, topic_name: str) -> None:
    proxy = pair.source.proxies[0]
    with _copying(pair, topic_name, timeout_ms=500) as link:
        proxy.delay_answers(FETCH, 2.0)
        eventually(lambda: proxy.delayed >= 3, "late answers")
        assert "no answer within 500 ms" in wait_for_pause(link, topic_name)


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_black_hole(pair: Pair, topic_name: str, side: str) -> None:
    """Nothing comes through and nothing is closed; what was held arrives when we have long given up."""
    proxy = getattr(pair, side).proxies[0]
    with _copying(pair, topic_name) as link:
        proxy.blackhole(True)
        wait_for_pause(link, topic_name)
        time.sleep(1.5)  # one more attempt fails
        proxy.blackhole(False)
        wait_for_progress(link, topic_name)


def _cut_at_random(pair: Pair, seed: int, seconds: float) -> int:
    chance = random.Random(seed)
    print(f"seed {seed}")
    proxies = [pair.source.proxies[0], pair.target.proxies[0]]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(chance.uniform(0.02, 0.6))
        chance.choice(proxies).cut_all()
    return sum(proxy.cut for proxy in proxies)


def test_cuts_at_random_moments(pair: Pair, topic_name: str) -> None:
    with _copying(pair, topic_name) as link:
        assert _cut_at_random(pair, seed=20_261, seconds=6) > 20
        wait_for_progress(link, topic_name)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(8))
def test_cuts_at_random_moments_for_longer(pair: Pair, topic_name: str, seed: int) -> None:
    with _copying(pair, topic_name, records_min=10_000) as link:
        assert _cut_at_random(pair, seed, seconds=25) > 80
        wait_for_progress(link, topic_name)
