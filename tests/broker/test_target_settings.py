"""Lanes know what their target topic takes: from the beginning, when somebody alters it, and after a worker died."""

import asyncio
import logging
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import KafkaError, Producer
from confluent_kafka.admin import (
    AclOperation,
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from replicator._core import Pool
from replicator.config.load import parse_bootstrap
from replicator.control import workers
from replicator.control.target_settings import TargetSettings
from replicator.data.orders import Assign, LaneSpec, SettingsChanged, TargetTopic
from replicator.kafka.cluster import Cluster
from replicator.kafka.connection import ConnectionSettings
from tests.broker.admin import add_partitions, create_topic
from tests.broker.guarded import GuardedCluster, guarded_cluster
from tests.harness import witness
from tests.harness.kafka import KafkaCluster
from tests.harness.link import RunningLink, link_config
from tests.harness.records import NewRecord
from tests.harness.waiting import eventually

pytestmark = pytest.mark.broker

TIMEOUT_S = 30
BY_DEFAULT = {
    "kafka3": TargetTopic(max_message_bytes=1_048_588),
    "kafka4": TargetTopic(max_message_bytes=1_048_588, timestamp_after_max_ms=3_600_000),
}


def alter(cluster: KafkaCluster, topic: str, settings: dict[str, str]) -> None:
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap, "log_level": 0})
    entries = [
        ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in settings.items()
    ]
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=entries)
    (done,) = admin.incremental_alter_configs([resource]).values()
    done.result(TIMEOUT_S)


def ask(cluster: KafkaCluster, *topics: str) -> dict[str, TargetTopic]:
    async def read() -> dict[str, TargetTopic]:
        settings = ConnectionSettings("eu", "test", 10_000, Pool(1 << 20))
        client = Cluster(parse_bootstrap(cluster.bootstrap), settings)
        try:
            return await TargetSettings("test", client).read(topics)
        finally:
            await client.close()

    return asyncio.run(read())


class Told:
    """What supervisors tell their workers, as it leaves."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.orders: list[Any] = []
        self._write = workers.write_message
        patch.setattr(workers, "write_message", self._take)

    def _take(self, writer: asyncio.StreamWriter, order: Any) -> None:
        self.orders.append(order)
        self._write(writer, order)

    def changes(self) -> list[SettingsChanged]:
        return [order for order in self.orders if isinstance(order, SettingsChanged)]

    def assigned(self) -> list[LaneSpec]:
        return [lane for order in self.orders if isinstance(order, Assign) for lane in order.lanes]


def look(link: RunningLink, times: int) -> None:
    (control,) = link.supervisor._links.values()
    for _ in range(times):
        link._call(link.supervisor._look(control))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    return Told(monkeypatch)


# ---- what brokers say ----


def test_settings_of_real_topics(request: pytest.FixtureRequest, either_kafka: KafkaCluster, topic_name: str) -> None:
    plain, altered, missing = (f"{topic_name}-{word}" for word in ("plain", "altered", "missing"))
    for topic in (plain, altered):
        create_topic(either_kafka, topic)
    alter(
        either_kafka,
        altered,
        {
            "max.message.bytes": "2000000",
            "compression.type": "lz4",
            "message.timestamp.type": "LogAppendTime",
            "message.timestamp.after.max.ms": "70000",
            "message.timestamp.before.max.ms": "80000",
            "cleanup.policy": "compact,delete",
        },
    )
    due = TargetTopic(2_000_000, "lz4", "LogAppendTime", 70_000, 80_000, True)
    eventually(lambda: ask(either_kafka, altered) == {altered: due}, "the settings of one")
    by_default = BY_DEFAULT[request.node.callspec.params["either_kafka"]]
    assert ask(either_kafka, plain, missing, altered) == {plain: by_default, altered: due}


def test_the_older_limit_on_timestamps_holds_for_both_sides(kafka3: KafkaCluster, topic_name: str) -> None:
    """By what the broker does, and by what we read."""
    limit_ms, now_ms = 3_600_000, int(time.time() * 1000)
    create_topic(kafka3, topic_name)
    alter(kafka3, topic_name, {"message.timestamp.difference.max.ms": str(limit_ms)})
    due = TargetTopic(max_message_bytes=1_048_588, timestamp_after_max_ms=limit_ms, timestamp_before_max_ms=limit_ms)
    eventually(lambda: ask(kafka3, topic_name) == {topic_name: due}, "the settings")

    def takes(timestamp_ms: int) -> bool:
        errors: list[KafkaError | None] = []
        producer = Producer({"bootstrap.servers": kafka3.bootstrap, "log_level": 0})
        producer.produce(topic_name, b"", timestamp=timestamp_ms, on_delivery=lambda error, _: errors.append(error))
        producer.flush(TIMEOUT_S)
        (error,) = errors
        assert error is None or error.code() == KafkaError.INVALID_TIMESTAMP
        return error is None

    near, far = limit_ms // 2, limit_ms * 2
    assert [takes(now_ms + away_ms) for away_ms in (-far, -near, near, far)] == [False, True, True, False]


# ---- what lanes are told ----


@pytest.fixture
def config(kafka4: KafkaCluster, kafka4_second: KafkaCluster, topic_name: str) -> Callable[..., dict[str, Any]]:
    def make(workers: int = 1) -> dict[str, Any]:
        link = {"refresh_topics_ms": 200, "rename": {"prefix": "copy-"}}
        both = kafka4.bootstrap, kafka4_second.bootstrap
        return link_config(*both, re.escape(topic_name) + ".*", link=link, workers=workers)

    return make


def test_lanes_hear_of_what_is_altered(
    kafka4: KafkaCluster,
    kafka4_second: KafkaCluster,
    config: Callable[..., dict[str, Any]],
    topic_name: str,
    told: Told,
) -> None:
    first, other = f"{topic_name}-first", f"{topic_name}-other"
    for topic in (first, other):
        create_topic(kafka4, topic, 2)
    create_topic(kafka4_second, f"copy-{first}", 2, {"max.message.bytes": "3000000"})
    as_made = BY_DEFAULT["kafka4"]
    before = TargetTopic(max_message_bytes=3_000_000, timestamp_after_max_ms=3_600_000)
    after = TargetTopic(4_000_000, timestamp_after_max_ms=2**62, timestamp_before_max_ms=5_000, compacted=True)
    altered = {
        "max.message.bytes": "4000000",
        "cleanup.policy": "compact",
        "message.timestamp.after.max.ms": str(2**62),
        "message.timestamp.before.max.ms": "5000",
    }
    with RunningLink(config(workers=2)) as link:
        lanes = told.assigned()
        assert {(lane.topic, lane.settings == before) for lane in lanes} == {(first, True), (other, False)}

        def settings(topic: str) -> set[TargetTopic]:
            return {info.spec.settings for info in link.supervisor.lanes if info.spec.topic == topic}

        eventually(lambda: settings(other) == {as_made}, "what a topic takes that was made just now")
        look(link, 1)  # what is told is told by then
        del told.orders[:]
        alter(kafka4_second, f"copy-{first}", altered)
        rows = [{lane.row for lane in worker.lanes if lane.topic == first} for worker in link.supervisor.workers]
        eventually(lambda: len(told.changes()) == 2, "both workers to be told")
        assert sorted(told.changes(), key=lambda each: each.rows) == [SettingsChanged(sorted(r), after) for r in rows]
        assert len(set.union(*rows)) == 4, "each worker has rows of its own"
        assert (settings(first), settings(other)) == ({after}, {as_made})
        add_partitions(kafka4, first, 3)
        eventually(lambda: len(told.assigned()) == 2, "a new lane")
        assert {lane.settings for lane in told.assigned()} == {after}
        del told.orders[:]
        (died, *_) = link.worker_pids()
        os.kill(died, signal.SIGKILL)
        eventually(lambda: len(told.assigned()) == 5, "another worker's lanes")
        assert {(lane.topic, lane.settings) for lane in told.assigned()} == {(first, after), (other, as_made)}
        assert not told.changes(), "nothing was altered meanwhile"


def test_settings_that_are_not_altered_are_not_told(
    kafka4: KafkaCluster, config: Callable[..., dict[str, Any]], topic_name: str, told: Told
) -> None:
    create_topic(kafka4, topic_name)
    with RunningLink(config()) as link:
        (info,) = link.supervisor.lanes
        eventually(lambda: info.spec.settings == BY_DEFAULT["kafka4"], "what it takes")
        look(link, 1)
        del told.orders[:]
        look(link, 3)
        assert not told.orders


def test_a_one_shot_copy(
    kafka4: KafkaCluster,
    kafka4_second: KafkaCluster,
    config: Callable[..., dict[str, Any]],
    topic_name: str,
    told: Told,
) -> None:
    create_topic(kafka4, topic_name, 2)
    create_topic(kafka4_second, f"copy-{topic_name}", 2, {"max.message.bytes": "3000000"})
    witness.produce(kafka4.bootstrap, topic_name, [NewRecord(n % 2, b"", b"%d" % n) for n in range(100)])
    with RunningLink(config(), stop="now") as link:
        link.wait_until_copied({(topic_name, 0): 50, (topic_name, 1): 50})
        assert {lane.settings.max_message_bytes for lane in told.assigned()} == {3_000_000}
        assert not told.changes()


# ---- a target that does not show them, or no dead letters ----


@pytest.fixture(scope="module")
def guarded() -> Iterator[GuardedCluster]:
    with guarded_cluster() as cluster:
        for operation in (AclOperation.WRITE, AclOperation.READ, AclOperation.DESCRIBE, AclOperation.CREATE):
            cluster.allow((ResourceType.TOPIC, "*", operation))
        cluster.allow((ResourceType.GROUP, "*", AclOperation.ALL))
        for operation in (AclOperation.DESCRIBE, AclOperation.IDEMPOTENT_WRITE):
            cluster.allow((ResourceType.BROKER, "kafka-cluster", operation))
        yield cluster


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def guarded_link(source: KafkaCluster, target: GuardedCluster, topic: str, **link: Any) -> dict[str, Any]:
    both = source.bootstrap, target.cluster.bootstrap
    return link_config(*both, re.escape(topic) + ".*", link={"refresh_topics_ms": 200, **link})


def test_a_target_that_does_not_show_its_settings(
    kafka4: KafkaCluster, guarded: GuardedCluster, topic_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is written to all the same, and the matter is mentioned once."""
    topics = [f"{topic_name}-{n}" for n in range(3)]
    for topic in topics:
        create_topic(kafka4, topic)
        witness.produce(kafka4.bootstrap, topic, [NewRecord(0, b"", b"%d" % n) for n in range(10)])
    with RunningLink(guarded_link(kafka4, guarded, topic_name)) as link:
        link.wait_until_copied({(topic, 0): 10 for topic in topics})
        look(link, 3)
        assert {info.spec.settings for info in link.supervisor.lanes} == {TargetTopic()}
    (said,) = warnings_of(caplog)
    assert re.search("the settings of target .* cannot be read: not allowed", said)


@pytest.mark.parametrize("where", ["target", "none"])
def test_a_dead_letter_topic_that_cannot_be_made(
    kafka4: KafkaCluster, guarded: GuardedCluster, topic_name: str, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    dead = f"{topic_name}-dead"
    create_topic(kafka4, topic_name)
    witness.produce(kafka4.bootstrap, topic_name, [NewRecord(0, b"", b"%d" % n) for n in range(10)])
    guarded.deny((ResourceType.TOPIC, dead, AclOperation.CREATE))
    dead_letters = {"on": where} if where == "none" else {"on": where, "topic": dead}
    try:
        with RunningLink(guarded_link(kafka4, guarded, topic_name, dead_letters=dead_letters)) as link:
            link.wait_until_copied({(topic_name, 0): 10})
            look(link, 2)
    finally:
        guarded.forgive()
    assert dead not in guarded.contents()["topics"]
    said = [text for text in warnings_of(caplog) if "dead letters" in text]
    assert len(said) == (where == "target")
    assert all(f"there is no topic for dead letters: target {dead}" in text for text in said)


@pytest.mark.parametrize("where", ["target", "source"])
def test_the_dead_letter_topic_is_there_once_the_link_runs(
    kafka4: KafkaCluster, kafka4_second: KafkaCluster, topic_name: str, where: str
) -> None:
    create_topic(kafka4, topic_name)
    link = {"dead_letters": {"on": where, "partitions": 2}}
    made = link_config(kafka4.bootstrap, kafka4_second.bootstrap, re.escape(topic_name), link=link)
    dead = f"{made['links'][0]['name']}.dlq"
    with RunningLink(made) as running:
        (info,) = running.supervisor.lanes
        assert (info.spec.dead_letters.topic, info.spec.dead_letters.on) == (dead, where)
        clusters = {"source": kafka4, "target": kafka4_second}
        found = {
            side: dead in AdminClient({"bootstrap.servers": each.bootstrap}).list_topics(timeout=TIMEOUT_S).topics
            for side, each in clusters.items()
        }
        assert found == {"source": where == "source", "target": where == "target"}
