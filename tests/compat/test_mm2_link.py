"""A link at work, watched by MirrorMaker 2's client library as by an application that is about to fail over."""

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient

from tests.broker.admin import create_topic, delete_records, partition_count
from tests.harness import witness
from tests.harness.kafka import KafkaCluster
from tests.harness.link import RunningLink, link_config
from tests.harness.mm2 import Mm2Witness, Translated
from tests.harness.records import NewRecord
from tests.harness.waiting import eventually

pytestmark = pytest.mark.broker

OFTEN_MS = 200
DELETED = 100  # records at the front of a partition, in batches of their own: the target's offsets are lower by so many


def commit(kafka: KafkaCluster, group: str, topic: str, offsets: dict[int, int]) -> None:
    """A young cluster refuses for a moment, partition by partition: its coordinator is not there yet."""
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    asked = [TopicPartition(topic, partition, offset) for partition, offset in offsets.items()]

    def committed() -> bool:
        request = ConsumerGroupTopicPartitions(group, asked)
        answer = admin.alter_consumer_group_offsets([request])[group].result(30)
        return not any(each.error for each in answer.topic_partitions)

    eventually(committed, f"the offsets of {group}")


def write(kafka: KafkaCluster, topic: str, first: int, end: int) -> None:
    """Records whose key is their offset, the same ones in both partitions."""
    records = [NewRecord(partition, b"%d" % number, b"") for partition in (0, 1) for number in range(first, end)]
    witness.produce(kafka.bootstrap, topic, records)


def test_an_application_fails_over_by_translate_offsets(
    kafka4: KafkaCluster, kafka4_second: KafkaCluster, mm2: Mm2Witness, topic_name: str
) -> None:
    source, target, group = kafka4_second, kafka4, f"{topic_name}-group"
    create_topic(source, topic_name, partitions=2)
    write(source, topic_name, 0, DELETED)
    write(source, topic_name, DELETED, 1000)
    for partition in (0, 1):
        delete_records(source, topic_name, DELETED, partition)
    commit(source, group, topic_name, {0: 1000, 1: 400})

    link = {
        "groups": {"sync_interval_ms": OFTEN_MS},
        "mm2_topics": {"checkpoints": True, "heartbeats": True, "offset_syncs": "target", "interval_ms": OFTEN_MS},
    }

    def translated() -> dict[tuple[str, int], Translated]:
        return mm2.translate(target.bootstrap, "source", group)

    def expect(offsets: dict[int, int]) -> None:
        wanted = {(topic_name, partition): Translated(offset - DELETED, "") for partition, offset in offsets.items()}
        eventually(lambda: translated() == wanted, f"checkpoints {wanted}")

    with RunningLink(link_config(source.bootstrap, target.bootstrap, topic_name, link=link)) as running:
        expect({0: 1000, 1: 400})
        write(source, topic_name, 1000, 1500)
        commit(source, group, topic_name, {0: 1500, 1: 1234})
        expect({0: 1500, 1: 1234})
        running.wait_until_copied({(topic_name, 0): 1500, (topic_name, 1): 1500})

        found = mm2.topology(target.bootstrap, ["source"])
        assert "source" in found.upstream
        assert found.hops == {"source": 1}

    copied = witness.dump(target.bootstrap, topic_name)
    assert copied[1][translated()[topic_name, 1].offset].key == b"1234"  # the very record it would have read next
    assert len(copied[0]) == translated()[topic_name, 0].offset  # and here there is none yet
    assert not any(partition_count(source, topic) for topic in ("heartbeats", "mm2-offset-syncs.target.internal"))


def test_mirror_maker_itself_could_go_on_from_our_offset_syncs(
    kafka4: KafkaCluster, kafka4_second: KafkaCluster, mm2: Mm2Witness, topic_name: str
) -> None:
    source, target = kafka4_second, kafka4
    create_topic(source, topic_name, partitions=2)
    write(source, topic_name, 0, DELETED)
    write(source, topic_name, DELETED, 500)
    delete_records(source, topic_name, DELETED)
    config = {
        "name": "checkpoints",
        "connector.class": "org.apache.kafka.connect.mirror.MirrorCheckpointConnector",
        "source.cluster.alias": "source",
        "target.cluster.alias": "target",
        "source.cluster.bootstrap.servers": source.bootstrap,
        "target.cluster.bootstrap.servers": target.bootstrap,
        "offset-syncs.topic.location": "target",
    }
    link = {"mm2_topics": {"offset_syncs": "target", "interval_ms": OFTEN_MS}, "checkpoint_interval_ms": OFTEN_MS}
    with RunningLink(link_config(source.bootstrap, target.bootstrap, topic_name, link=link)):
        asked = [DELETED - 1, DELETED, 499, 500]

        def answers() -> list[int | None]:
            return mm2.offsets_by_syncs(topic_name, 0, asked, config)

        eventually(lambda: partition_count(target, "mm2-offset-syncs.source.internal"), "the topic of offset syncs")
        eventually(lambda: answers() == [-1, 0, 399, 400], "exact answers at both ends")
        write(source, topic_name, 500, 600)
        asked = [DELETED - 1, DELETED, 499, 599, 600]
        eventually(lambda: answers()[-2:] == [499, 500], "an exact answer at the new end")
        assert answers()[:2] == [-1, 0]
        between = answers()[2]
        assert between is not None
        assert 0 < between <= 399
