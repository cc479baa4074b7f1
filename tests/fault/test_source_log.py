"""The source's log loses records that were not copied yet: the lane says exactly which, and does not jump over them."""

import re

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from replicator.data.states import LaneState
from tests.fault.scene import Pair, assert_is_start_of, backlog, log_start, wait_for_progress
from tests.harness import witness
from tests.harness.kafka import KafkaCluster
from tests.harness.link import RunningLink
from tests.harness.waiting import eventually

pytestmark = pytest.mark.broker

RECORDS = 40_000


def _delete_records(cluster: KafkaCluster, topic: str, before: int) -> None:
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap})
    (done,) = admin.delete_records([TopicPartition(topic, 0, before)]).values()
    done.result(30)
    eventually(lambda: log_start(cluster, topic) == before, f"the log of {topic} to start at {before}")


def test_records_that_are_deleted_before_they_are_copied(pair: Pair, topic_name: str) -> None:
    neighbour = f"{topic_name}-neighbour"
    pair.create(topic_name)
    pair.create(neighbour)
    backlog(pair.source, topic_name, RECORDS, size=500)
    original = witness.dump(pair.source.bootstrap, topic_name)[0]
    pair.target.proxies[0].link(bytes_per_second=2 << 20)
    config = pair.config(f"{re.escape(topic_name)}(-neighbour)?", limits={"lane_bytes_max": 256 << 10})
    with RunningLink(config) as link:
        wait_for_progress(link, topic_name)
        _delete_records(pair.source, topic_name, RECORDS - 10)
        link.wait_for_state(LaneState.GAP, topic_name)
        position = link.checkpoint(topic_name).position
        assert 0 < position < RECORDS - 10, "the lane was too fast for this test"
        expected = f"source offsets {position} to {RECORDS - 11} are gone: the log starts at {RECORDS - 10} now"
        eventually(lambda: link.reason(topic_name) == expected, expected)
        pair.target.proxies[0].reset()
        backlog(pair.source, neighbour, 1000)
        link.wait_until_copied({(neighbour, 0): 1000})
    copy = witness.dump(pair.target.bootstrap, topic_name)[0]
    assert len(copy) == position
    assert_is_start_of(original, copy, position)
