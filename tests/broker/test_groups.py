"""Consumer groups on real clusters: their offsets, committed on the target by hand-written state, and read by others.

What was committed is looked at by kafka-python and by Kafka's own tool, and by consumers that go on from there.
"""

import subprocess
from collections.abc import Callable

import pytest
from confluent_kafka import Consumer, ShareConsumer, TopicPartition

from replicator.control.group_admin import Committed, GroupAdmin, Listing, means_active
from replicator.control.group_rules import ACTIVE, AHEAD, FAILED, NOT_YET, SYNCED, UNSUPPORTED
from replicator.kafka.messages import DESCRIBE_GROUPS
from replicator.state.records import spell_topic_id
from tests.broker.admin import create_topic
from tests.broker.group_scene import AHEAD_THERE, TIMEOUT_S, Scene, consuming, kafka, offsets_of
from tests.harness import witness
from tests.harness.jars import class_path, java
from tests.harness.kafka import NEWEST_3, NEWEST_4, KafkaCluster
from tests.harness.records import NewRecord
from tests.harness.waiting import eventually

pytestmark = pytest.mark.broker


@pytest.fixture
def scene(kafka4: KafkaCluster, kafka4_second: KafkaCluster, topic_name: str) -> Scene:
    return Scene(kafka4, kafka4_second, topic_name)


@pytest.mark.parametrize("clusters", [("kafka3", "kafka4"), ("kafka4", "kafka3")], ids="-".join)
def test_offsets_go_along_with_their_text_and_without_epochs(
    clusters: tuple[str, str], request: pytest.FixtureRequest, topic_name: str
) -> None:
    """The source group is a real consumer's, with a leader epoch; on the target it is read by three other programs."""
    scene = Scene(*map(request.getfixturevalue, clusters), topic_name)
    scene.make_topics(partitions=3, records=100)
    with consuming(scene.source, scene.group, scene.topic) as (consumer, _):
        offsets = [
            TopicPartition(scene.topic, 0, 40, "text", 0),
            TopicPartition(scene.topic, 1, 100, "höher\n", 0),
            TopicPartition(scene.topic, 2, 0, "", 0),
        ]
        consumer.commit(offsets=offsets, asynchronous=False)
    was = offsets_of(scene.source, scene.group, scene.topic)
    # librdkafka puts a NUL behind each text: what others keep in there may be as odd, and must come along.
    assert was == {0: (40, "text\0", 0), 1: (100, "höher\n\0", 0), 2: (0, "\0", 0)}
    for partition in range(3):
        scene.write_lane(partition, 100)
    assert scene.sync()[scene.group].record.state == SYNCED
    assert scene.there() == {0: (47, "text\0", -1), 1: (107, "höher\n\0", -1), 2: (7, "\0", -1)}
    assert java_offsets(scene.target, scene.group) == {0: "47", 1: "107", 2: "7"}
    witness.produce(scene.target.bootstrap, scene.target_topic, [NewRecord(1, None, b"100")])
    with consuming(scene.target, scene.group, scene.target_topic, records=60 + 1 + 100) as (_, read):
        assert {partition: min(at for part, at in read if part == partition) for partition in range(3)} == {
            0: 47,
            1: 107,
            2: 7,
        }
        assert len(read) == len(set(read)) == 60 + 1 + 100


def java_offsets(cluster: KafkaCluster, group: str) -> dict[int, str]:
    """CURRENT-OFFSET by partition, as kafka-consumer-groups.sh prints it."""
    version = NEWEST_4 if cluster.version == NEWEST_4 else NEWEST_3
    tool = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand"
    options = ["-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error", "-cp", class_path(version)]
    command = [java(), *options, tool, "--bootstrap-server", cluster.bootstrap, "--group", group, "--describe"]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    rows = [line.split() for line in printed.splitlines() if line.startswith(group)]
    return {int(row[2]): row[3] for row in rows}


def test_a_group_of_kafka_python_and_one_that_only_assigns(scene: Scene) -> None:
    scene.make_topics(partitions=1, records=50)
    scene.write_lane(0, 50)
    for name, uses_group in ((scene.group, True), (f"{scene.group}-assigned", False)):
        consumer = kafka.KafkaConsumer(
            bootstrap_servers=scene.source.bootstrap,
            group_id=name,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            max_poll_records=20,
        )
        if uses_group:
            consumer.subscribe([scene.topic])
        else:
            consumer.assign([kafka.TopicPartition(scene.topic, 0)])
        assert eventually(lambda consumer=consumer: consumer.poll(500), "records")
        consumer.commit()
        consumer.close()
    assert {status.record.state for status in scene.sync().values()} == {SYNCED}
    for name in (scene.group, f"{scene.group}-assigned"):
        assert scene.there(name)[0][0] == 20 + AHEAD_THERE


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_target_group_with_members_is_left_alone(scene: Scene, protocol: str) -> None:
    scene.make_topics(partitions=1, records=50)
    scene.write_lane(0, 50)
    scene.commit(10)
    with consuming(scene.target, scene.group, scene.target_topic, protocol=protocol) as (consumer, _):
        assert scene.sync()[scene.group].record.state == ACTIVE
        commit = {(scene.target_topic, 0): Committed(17)}
        (code,) = scene.ask("eu", lambda admin: admin.commit(scene.group, commit)).values()
        assert means_active(code), "the broker itself refuses"
        consumer.commit(offsets=[TopicPartition(scene.target_topic, 0, 12)], asynchronous=False)
    assert scene.there()[0][0] == 12
    status = scene.sync()[scene.group]
    assert (status.record.state, status.record.ever_active) == (SYNCED, True)
    assert scene.there() == {0: (17, "", -1)}
    scene.commit(5)
    assert scene.sync()[scene.group].record.state == AHEAD
    assert scene.there()[0][0] == 17


def test_who_only_assigns_is_not_seen(scene: Scene) -> None:
    """A limit of Kafka's: such a consumer is no member, and the broker takes commits beside it."""
    scene.make_topics(partitions=1, records=50)
    scene.write_lane(0, 50)
    scene.commit(10)
    properties = {"bootstrap.servers": scene.target.bootstrap, "group.id": scene.group, "enable.auto.commit": False}
    consumer = Consumer(properties)
    try:
        consumer.assign([TopicPartition(scene.target_topic, 0, 0)])
        assert consumer.poll(TIMEOUT_S) is not None
        assert scene.sync()[scene.group].record.state == SYNCED
    finally:
        consumer.close()
    assert scene.there()[0][0] == 17


def test_a_reset_is_followed_by_a_leader_that_has_just_begun(scene: Scene) -> None:
    scene.make_topics(partitions=1, records=50)
    scene.write_lane(0, 50)
    for offset in (30, 40, 4, 45):
        scene.commit(offset, metadata=f"at {offset}")
        assert scene.sync()[scene.group].record.state == SYNCED
        assert scene.there() == {0: (offset + AHEAD_THERE, f"at {offset}", -1)}


def test_exact_through_chunks_and_holes_and_never_ahead(scene: Scene) -> None:
    """Every offset of a log with holes on both sides, by a slow oracle."""
    scene.make_topics(partitions=1, records=60)
    segments = [(0, 7, 10), (12, 17, 10), (30, 30, 5), (35, 40, 15)]
    scene.write_chunk(0, segments[:2])
    scene.write_lane(0, 50, segments[2:], target_next=60)
    mapped = {source + at: target + at for source, target, length in segments for at in range(length)}
    for offset in range(0, 52, 3):
        scene.commit(offset)
        record = scene.sync()[scene.group].record
        if offset > 50:
            assert record.reason == f"{scene.topic}-0: not yet replicated to {offset}"
            assert record.state == NOT_YET
        else:
            expected = next((mapped[at] for at in range(offset, 50) if at in mapped), 60)
            assert scene.there()[0][0] == expected


def test_names_of_groups_are_changed(kafka4: KafkaCluster, kafka4_second: KafkaCluster, topic_name: str) -> None:
    groups = {"include": [f"{topic_name}.*"], "exclude": [f"{topic_name}-secret.*"], "rename": "from-us.{group}"}
    scene = Scene(kafka4, kafka4_second, topic_name, groups=groups)
    scene.make_topics(partitions=1, records=50)
    scene.write_lane(0, 50)
    scene.commit(10)
    secret = f"{topic_name}-secret-group"
    scene.ask("us", lambda admin: admin.commit(secret, {(scene.topic, 0): Committed(10)}))
    assert list(scene.sync()) == [scene.group]
    assert scene.there(f"from-us.{scene.group}")[0][0] == 17
    listing: Listing = scene.ask("eu", lambda admin: admin.list())
    assert not {secret, scene.group, f"from-us.{secret}"} & listing.groups.keys()


def test_share_groups_are_told_of(scene: Scene) -> None:
    scene.make_topics(partitions=1, records=50)
    scene.write_lane(0, 50)
    scene.commit(10)
    consumer = ShareConsumer({"bootstrap.servers": scene.source.bootstrap, "group.id": f"{scene.topic}-shared"})
    try:
        consumer.subscribe([scene.topic])
        eventually(lambda: consumer.poll(0.2) is not None and f"{scene.topic}-shared" in scene.sync(), "a share group")
        found = {group: status.record.state for group, status in scene.sync().items()}
    finally:
        consumer.close()
    assert found == {f"{scene.topic}-shared": UNSUPPORTED, scene.group: SYNCED}


def test_a_topic_made_anew_is_not_taken_for_the_old_one(scene: Scene) -> None:
    scene.make_topics(partitions=1, records=50)

    async def topic_id(admin: GroupAdmin) -> str:
        await admin.cluster.refresh([scene.topic])
        return spell_topic_id(admin.cluster.topics[scene.topic].topic_id)

    scene.write_lane(0, 50, topic_id=scene.ask("us", topic_id))
    scene.commit(40)
    assert scene.sync()[scene.group].record.state == SYNCED
    witness.delete_topic(scene.source.bootstrap, scene.topic)
    create_topic(scene.source, scene.topic)
    scene.commit(3)
    record = scene.sync()[scene.group].record
    assert record.state == FAILED
    assert "made anew on the source" in record.reason
    assert scene.there()[0][0] == 47


def test_states_from_brokers_that_list_none(either_kafka: KafkaCluster, topic_name: str) -> None:
    """DescribeGroups, as it is asked of brokers older than 2.6, says the same as the listing of newer ones."""
    scene = Scene(either_kafka, either_kafka, topic_name)
    create_topic(either_kafka, topic_name)
    witness.produce(either_kafka.bootstrap, topic_name, [NewRecord(0, None, b"1")])

    async def states(admin: GroupAdmin) -> tuple[str, str]:
        listed = (await admin.list()).groups[topic_name].state
        (row,) = (await admin.cluster.request(DESCRIBE_GROUPS, {"groups": [topic_name]}))["groups"]
        return listed, row["group_state"]

    with consuming(either_kafka, topic_name, topic_name):
        assert scene.ask("us", states) == ("Stable", "Stable")
    assert scene.ask("us", states) == ("Empty", "Empty")


def test_the_first_question_to_a_young_cluster(private_cluster: Callable[..., KafkaCluster], topic_name: str) -> None:
    """Its coordinators are not there yet, then loading: what takes librdkafka's admin client down (its issue 5040)."""
    cluster = private_cluster()
    witness.create_topic(cluster.bootstrap, topic_name)
    scene = Scene(cluster, cluster, topic_name)
    assert scene.ask("us", lambda admin: admin.committed("nobody")) == {}
    assert scene.ask("us", lambda admin: admin.commit("somebody", {(topic_name, 0): Committed(0)})) == {}
    cluster.restart()
    assert scene.ask("us", lambda admin: admin.committed("somebody")) == {(topic_name, 0): Committed(0)}
