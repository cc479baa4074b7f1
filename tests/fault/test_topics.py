"""A topic goes away, or becomes another one under the same name, while it is copied and while its neighbour is.

Its lane stops with the state and the reason that say so; nothing is made again or written to unasked; the neighbour
does not notice.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from confluent_kafka.admin import AdminClient, NewPartitions

from replicator.data.states import LaneState
from tests.fault.scene import (
    Journal,
    Pair,
    Traffic,
    assert_is_start_of,
    assert_same_log,
    log_ends,
    wait_for_progress,
)
from tests.harness import witness
from tests.harness.kafka import KafkaCluster
from tests.harness.link import RunningLink
from tests.harness.records import NewRecord
from tests.harness.waiting import eventually

pytestmark = pytest.mark.broker

LOOK_MS = 200


def _topics(cluster: KafkaCluster) -> set[str]:
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap})
    return set(admin.list_topics(timeout=10).topics)


@contextmanager
def _copying_two(pair: Pair, doomed: str) -> Iterator[RunningLink]:
    """Both topics flow when the test's fault comes; the neighbour has to flow on and be whole in the end."""
    neighbour = f"{doomed}-neighbour"
    for topic in (doomed, neighbour):
        pair.create(topic)
    config = pair.config(f"{re.escape(doomed)}(-neighbour)?", link={"refresh_topics_ms": LOOK_MS})
    with RunningLink(config) as link, Traffic(pair.source, neighbour) as traffic:
        wait_for_progress(link, neighbour)
        yield link
        wait_for_progress(link, neighbour, records=1000)
        link.wait_until_copied(traffic.finish())
        assert link.state(neighbour) in (LaneState.COPYING, LaneState.TAILING)
    assert_same_log(pair, neighbour, records_min=1500)


def test_a_source_topic_that_is_deleted(pair: Pair, topic_name: str) -> None:
    """What was copied stays on the target; what we had in hand is on it, too."""
    with _copying_two(pair, topic_name) as link:
        with Traffic(pair.source, topic_name, records_per_s=500) as traffic:
            wait_for_progress(link, topic_name)
        traffic.finish()
        original = witness.dump(pair.source.bootstrap, topic_name)[0]
        witness.delete_topic(pair.source.bootstrap, topic_name)
        link.wait_for_state(LaneState.FAILED, topic_name)
        eventually(lambda: "no longer exists on source" in link.reason(topic_name), "the reason")
        position = link.checkpoint(topic_name).position
    assert_is_start_of(original, witness.dump(pair.target.bootstrap, topic_name)[0], position)


def test_a_source_topic_that_is_deleted_while_its_copy_is_behind(pair: Pair, topic_name: str) -> None:
    pair.create(topic_name)
    records = 20_000
    wanted = (NewRecord(0, b"%d" % n, b"%012d" % n + b"x" * 500) for n in range(records))
    witness.produce(pair.source.bootstrap, topic_name, wanted, {"batch.size": 16_384})
    original = witness.dump(pair.source.bootstrap, topic_name)[0]
    # What a full lane holds takes longer to leave than we look for a topic that is missing.
    pair.target.proxies[0].link(bytes_per_second=50_000)
    with RunningLink(pair.config(topic_name, limits={"lane_bytes_max": 512 << 10})) as link:
        wait_for_progress(link, topic_name, records=10)
        witness.delete_topic(pair.source.bootstrap, topic_name)
        link.wait_for_state(LaneState.FAILED, topic_name)
        position = link.checkpoint(topic_name).position
        assert position < records, "the deletion came too late to matter"
        assert position == link.counter("fetch_offset", topic_name), "all that was fetched is on the target"
    assert_is_start_of(original, witness.dump(pair.target.bootstrap, topic_name)[0], position)


def test_a_target_topic_that_is_deleted(pair: Pair, topic_name: str) -> None:
    """It is not made again, not even when the source topic grows."""
    with _copying_two(pair, topic_name) as link, Traffic(pair.source, topic_name):
        wait_for_progress(link, topic_name)
        witness.delete_topic(pair.target.bootstrap, topic_name)
        link.wait_for_state(LaneState.TARGET_LOST, topic_name)
        eventually(lambda: "no longer exists on target" in link.reason(topic_name), "the reason")
        admin = AdminClient({"bootstrap.servers": pair.source.bootstrap})
        admin.create_partitions([NewPartitions(topic_name, 2)])[topic_name].result(10)
        wait_for_progress(link, f"{topic_name}-neighbour", records=2000)  # many looks at the topics
        assert topic_name not in _topics(pair.target)
        assert (topic_name, 1) not in link.lanes


def test_a_source_topic_that_is_made_again(pair: Pair, topic_name: str) -> None:
    """The new log is another one: not one record of it follows those of the old."""
    with _copying_two(pair, topic_name) as link:
        with Traffic(pair.source, topic_name, records_per_s=500) as traffic:
            wait_for_progress(link, topic_name)
        traffic.finish()
        original = witness.dump(pair.source.bootstrap, topic_name)[0]
        _make_again(pair.source, topic_name, partitions=2)
        witness.produce(
            pair.source.bootstrap, topic_name, [NewRecord(0, None, b"new %d" % n) for n in range(len(original) + 100)]
        )
        link.wait_for_state(LaneState.RECREATED, topic_name)
        eventually(lambda: "made again" in link.reason(topic_name), "the reason")
        wait_for_progress(link, f"{topic_name}-neighbour", records=1000)
        assert (topic_name, 1) not in link.lanes, "the new log's second partition is not the old topic's"
    assert_is_start_of(original, witness.dump(pair.target.bootstrap, topic_name)[0], 1)


def test_a_target_topic_that_is_made_again(pair: Pair, topic_name: str) -> None:
    with _copying_two(pair, topic_name) as link, Traffic(pair.source, topic_name):
        wait_for_progress(link, topic_name)
        _make_again(pair.target, topic_name)
        link.wait_for_state(LaneState.TARGET_LOST, topic_name)
        eventually(lambda: link.reason(topic_name), "the reason")
        written = log_ends(pair.target, topic_name)
        wait_for_progress(link, f"{topic_name}-neighbour", records=1000)
        assert log_ends(pair.target, topic_name) == written, "nothing is written to it any more"


def test_a_target_topic_that_is_made_again_while_its_lane_rests(pair: Pair, journal: Journal, topic_name: str) -> None:
    """Even when the new log is as long as the old one was: it holds other records."""
    records = [NewRecord(0, None, b"%d" % n) for n in range(100)]
    with _copying_two(pair, topic_name) as link:
        witness.produce(pair.source.bootstrap, topic_name, records)
        link.wait_until_copied({(topic_name, 0): 100})
        _make_again(pair.target, topic_name)
        witness.produce(pair.target.bootstrap, topic_name, [NewRecord(0, None, b"foreign")] * 100)
        pair.target.proxies[0].cut_all()
        link.wait_for_state(LaneState.TARGET_LOST, topic_name)
        witness.produce(pair.source.bootstrap, topic_name, records)
        wait_for_progress(link, f"{topic_name}-neighbour", records=500)
    values = [record.value for record in witness.dump(pair.target.bootstrap, topic_name)[0]]
    assert values == [b"foreign"] * 100


def _make_again(cluster: KafkaCluster, topic: str, partitions: int = 1) -> None:
    """Deletes the topic and creates it in the next moment."""
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap})
    admin.delete_topics([topic])[topic].result(30)
    eventually(lambda: _is_unknown(cluster, topic), f"the end of {topic}")
    witness.create_topic(cluster.bootstrap, topic, partitions)


def _is_unknown(cluster: KafkaCluster, topic: str) -> bool:
    return topic not in _topics(cluster)
