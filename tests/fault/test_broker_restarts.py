"""A broker goes away in the middle of a copy, in each way that brokers go, and comes back."""

import time
from collections.abc import Callable

import pytest

from tests.fault.scene import Journal, Pair, Traffic, assert_same_log, wait_for_pause, wait_for_progress
from tests.harness.kafka import KafkaCluster
from tests.harness.link import RunningLink

pytestmark = pytest.mark.broker

PARTITIONS = 3
SHORT_TIMEOUT_MS = 1000
FROZEN_S = 2.5  # longer than the timeout, by more than one attempt


def _kill(cluster: KafkaCluster) -> None:
    cluster.kill()


def _terminate(cluster: KafkaCluster) -> None:
    cluster.stop()


@pytest.mark.parametrize(
    "end",
    [pytest.param(_kill, id="SIGKILL"), pytest.param(_terminate, id="SIGTERM", marks=pytest.mark.soak)],
)
@pytest.mark.parametrize("side", ["source", "target"])
def test_a_broker_that_is_restarted(
    pair: Pair, journal: Journal, topic_name: str, side: str, end: Callable[[KafkaCluster], None]
) -> None:
    """Its lanes pause with a reason and go on by themselves."""
    pair.create(topic_name, PARTITIONS)
    cluster: KafkaCluster = getattr(pair, side)
    with (
        RunningLink(pair.config(topic_name)) as link,
        Traffic(pair.source, topic_name, range(PARTITIONS)) as traffic,
    ):
        wait_for_progress(link, topic_name)
        before = cluster.pid()
        end(cluster)
        wait_for_pause(link, topic_name)
        cluster.restart()
        assert cluster.pid() != before
        wait_for_progress(link, topic_name)
        link.wait_until_copied(traffic.finish())
        assert not link.reason(topic_name), "nothing is left to complain about"
    assert_same_log(pair, topic_name, records_min=1500)


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_broker_that_is_frozen_for_longer_than_the_timeout(
    pair: Pair, journal: Journal, topic_name: str, side: str
) -> None:
    """When it thaws it still holds requests of the connection that was given up; they must not double anything."""
    pair.create(topic_name, PARTITIONS)
    cluster: KafkaCluster = getattr(pair, side)
    with (
        RunningLink(pair.config(topic_name, SHORT_TIMEOUT_MS)) as link,
        Traffic(pair.source, topic_name, range(PARTITIONS)) as traffic,
    ):
        wait_for_progress(link, topic_name)
        cluster.pause()
        try:
            wait_for_pause(link, topic_name, timeout_s=10)
            stood_at = [link.checkpoint(topic_name, partition) for partition in range(PARTITIONS)]
            time.sleep(FROZEN_S)
            assert stood_at == [link.checkpoint(topic_name, partition) for partition in range(PARTITIONS)]
        finally:
            cluster.resume()
        wait_for_progress(link, topic_name)
        link.wait_until_copied(traffic.finish())
    assert journal.tells(f"no answer within {SHORT_TIMEOUT_MS} ms", topic_name)
    assert_same_log(pair, topic_name, records_min=1500)


@pytest.mark.soak
def test_both_brokers_killed_at_once(pair: Pair, topic_name: str) -> None:
    pair.create(topic_name, PARTITIONS)
    with (
        RunningLink(pair.config(topic_name)) as link,
        Traffic(pair.source, topic_name, range(PARTITIONS)) as traffic,
    ):
        wait_for_progress(link, topic_name)
        pair.target.kill()
        pair.source.kill()
        wait_for_pause(link, topic_name)
        pair.target.restart()
        pair.source.restart()
        wait_for_progress(link, topic_name)
        link.wait_until_copied(traffic.finish())
    assert_same_log(pair, topic_name, records_min=1500)
