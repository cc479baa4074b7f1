"""A node of two goes away: partitions that it led alone wait for it, partitions with a second replica move over.

Whatever its lanes do, the lanes at the other node never stop.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
from confluent_kafka import ElectionType, TopicPartition
from confluent_kafka.admin import AdminClient

from replicator.data.states import LaneState
from tests.fault.scene import (
    Journal,
    Pair,
    Traffic,
    assert_same_log,
    leaders,
    wait_for_pause,
    wait_for_progress,
)
from tests.harness import witness
from tests.harness.kafka import NEWEST_3, KafkaCluster
from tests.harness.link import RunningLink
from tests.harness.waiting import eventually

pytestmark = pytest.mark.broker

PARTITIONS = 4


@pytest.fixture(scope="module")
def twin() -> Iterator[KafkaCluster]:
    """Two nodes, of which tests kill the second."""
    with KafkaCluster(NEWEST_3, nodes=2, proxied=True, properties={"offsets.topic.replication.factor": "2"}) as cluster:
        yield cluster


def _create(pair: Pair, topic: str, replicas: int, twin: KafkaCluster) -> dict[int, int]:
    """The topic on both sides; returns who leads its partitions on the side with two nodes."""
    for cluster in (pair.source, pair.target):
        witness.create_topic(cluster.bootstrap, topic, PARTITIONS, replicas=replicas if cluster is twin else 1)
    led_by = leaders(twin, topic)
    assert set(led_by.values()) == {1, 2}
    return led_by


def _led_by(node: int, led_by: dict[int, int]) -> list[int]:
    return [partition for partition, leader in led_by.items() if leader == node]


def _gave_back(twin: KafkaCluster, topic: str, before: dict[int, int]) -> bool:
    """Gives the leadership back to the replicas that are meant to have it, as soon as they can."""
    admin = AdminClient({"bootstrap.servers": twin.bootstrap})
    wanted = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]
    admin.elect_leaders(ElectionType.PREFERRED, wanted).result(30)
    return leaders(twin, topic) == before


def _patient(config: dict[str, Any]) -> dict[str, Any]:
    """The group's coordinator may be on the node that dies: its move must not cost the workers their seats."""
    config["links"][0]["session_timeout_ms"] = 30_000
    return config


def _unharmed(journal: Journal, topic: str, partitions: list[int]) -> bool:
    return not any("paused" in entry for partition in partitions for entry in journal.of(topic, partition))


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_node_that_dies_and_comes_back(
    pair: Pair, twin: KafkaCluster, journal: Journal, topic_name: str, side: str
) -> None:
    """`alone` has one replica, `doubled` has two: its leaders move to the other node without warning, and back."""
    pair = replace(pair, **{side: twin})
    alone, doubled = f"{topic_name}-alone", f"{topic_name}-doubled"
    led_by, before = _create(pair, alone, 1, twin), _create(pair, doubled, 2, twin)
    staying, leaving, moving = _led_by(1, led_by), _led_by(2, led_by), _led_by(2, before)[0]
    with ExitStack() as stack:
        stack.callback(twin.start)
        link = stack.enter_context(RunningLink(_patient(pair.config(f"{re.escape(topic_name)}.*", timeout_ms=5000))))
        # A producer of its own for those that stay: one that cannot reach a leader must not hold it up.
        traffics = [
            stack.enter_context(Traffic(pair.source, alone, staying, records_per_s=1000)),
            stack.enter_context(Traffic(pair.source, alone, leaving, records_per_s=1000)),
            stack.enter_context(Traffic(pair.source, doubled, range(PARTITIONS), records_per_s=1000)),
        ]
        for partition in range(PARTITIONS):
            wait_for_progress(link, alone, partition, records=100)
        wait_for_progress(link, doubled, moving, records=100)

        twin.kill(2)
        for partition in leaving:
            wait_for_pause(link, alone, partition)
        while not all(journal.tells("LEADER_NOT_AVAILABLE", alone, partition) for partition in leaving):
            for partition in staying:
                wait_for_progress(link, alone, partition, records=100, timeout_s=5)
        wait_for_progress(link, doubled, moving)
        assert {link.state(alone, partition) for partition in leaving} == {LaneState.PAUSED}

        twin.restart(2)
        for partition in leaving:
            wait_for_progress(link, alone, partition)
        eventually(lambda: _gave_back(twin, doubled, before), "node 2 to lead again", 60)
        wait_for_progress(link, doubled, moving)
        assert _unharmed(journal, alone, staying)
        for traffic in traffics:
            link.wait_until_copied(traffic.finish())
    pauses = [entry for entry in journal.of(doubled, moving) if entry.startswith("paused")]
    assert len(pauses) >= 2, pauses
    for topic in (alone, doubled):
        assert_same_log(pair, topic, records_min=2000)
