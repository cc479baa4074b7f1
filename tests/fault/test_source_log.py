"""The source's log loses records that were not copied yet: the lane says exactly which, and does as its policy says."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from replicator.data.states import LaneState
from replicator.state.reader import StateReader
from replicator.state.records import LaneKey
from tests.fault.scene import Journal, Pair, backlog, log_ends, log_start, wait_for_progress
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


@contextmanager
def _overtaken(pair: Pair, topic: str, policy: str) -> Iterator[tuple[RunningLink, int]]:
    """A slow copy of a log that is cut off in front of its last batch; yields the link and where the log starts now."""
    pair.create(topic)
    backlog(pair.source, topic, RECORDS, size=500)
    # At the edge of a batch, as retention cuts: with the rest of one, a lane cannot do anything yet.
    (end,) = log_ends(pair.source, topic).values()
    backlog(pair.source, topic, 10, size=500)
    pair.target.proxies[0].link(bytes_per_second=2 << 20)
    link = {"policies": [{"source_gap": policy}]}
    config = pair.config(f"{re.escape(topic)}(-neighbour)?", limits={"lane_bytes_max": 256 << 10}, link=link)
    with RunningLink(config) as running:
        wait_for_progress(running, topic)
        _delete_records(pair.source, topic, end)
        yield running, end


def test_records_that_are_deleted_before_they_are_copied(pair: Pair, topic_name: str) -> None:
    neighbour = f"{topic_name}-neighbour"
    pair.create(neighbour)
    with _overtaken(pair, topic_name, "stop") as (link, log_start_offset):
        link.wait_for_state(LaneState.GAP, topic_name)
        position = link.checkpoint(topic_name).position
        assert 0 < position < log_start_offset, "the lane was too fast for this test"
        gone = f"source offsets {position} to {log_start_offset - 1} are gone"
        expected = f"{gone}: the log starts at {log_start_offset} now"
        eventually(lambda: link.reason(topic_name) == expected, expected)
        pair.target.proxies[0].reset()
        backlog(pair.source, neighbour, 1000)
        link.wait_until_copied({(neighbour, 0): 1000})
    copy = witness.dump(pair.target.bootstrap, topic_name)[0]
    assert len(copy) == position


def test_a_hole_that_is_accepted_is_told_of_and_kept_in_the_map(pair: Pair, journal: Journal, topic_name: str) -> None:
    with _overtaken(pair, topic_name, "continue") as (link, log_start_offset):
        link.wait_until_copied({(topic_name, 0): log_start_offset + 10})
        name = link.config.links[0].name
    (told,) = [entry for entry in journal.of(topic_name) if "are gone" in entry]
    first_gone, last_gone = map(int, re.findall(r"source offsets (\d+) to (\d+) are gone", told)[0])
    assert 0 < first_gone < last_gone == log_start_offset - 1, "the lane was too fast for this test"
    copy = witness.dump(pair.target.bootstrap, topic_name)[0]
    assert len(copy) == first_gone + 10
    assert [r.value for r in copy[-10:]] == [r.value for r in witness.dump(pair.source.bootstrap, topic_name)[0]]
    reader = StateReader(link.config.clusters["target"], name)
    reader.catch_up()
    segments = reader.offset_map(LaneKey(topic_name, 0)).segments.tolist()
    reader.close()
    assert segments == [[0, 0, first_gone], [log_start_offset, first_gone, 10]]
