"""What a link says about itself, on real brokers: its own topics, its events, `status`, and who blocks a lane."""

import asyncio
import json
import random
import struct
import time
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest
from click.testing import CliRunner
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource

from replicator._core import Pool
from replicator.cli.main import main
from replicator.config.load import parse_bootstrap
from replicator.config.models import Cluster as ClusterConfig
from replicator.control.events import EventLog
from replicator.control.topics import COMPACTED_SETTINGS, EVENTS_SETTINGS, Topics
from replicator.data.stuck import blocking_producer
from replicator.errors import ConfigError
from replicator.kafka.cluster import Cluster
from replicator.kafka.connection import ConnectionSettings
from replicator.kafka.log import Partition
from replicator.kafka.messages import FETCH
from replicator.state.records import (
    EventRecord,
    LaneKey,
    LaneRecord,
    LinkKey,
    LinkRecord,
    encode,
    events_topic,
    offsets_topic,
    shard_of,
    state_topic,
)
from tests.broker.admin import create_topic, end_offset
from tests.harness import witness
from tests.harness.kafka import KafkaCluster
from tests.harness.records import NewRecord
from tests.harness.waiting import eventually

pytestmark = pytest.mark.broker

TIMEOUT_S = 30
SHARDS = 4
NOW_MS = int(time.time() * 1000)

_PRODUCER = struct.Struct(">qh")  # of a batch's header: producer id and epoch
_PRODUCER_AT = 43

T = TypeVar("T")


def config(cluster: KafkaCluster, alias: str = "eu") -> ClusterConfig:
    return ClusterConfig(alias, parse_bootstrap(cluster.bootstrap), {"bootstrap.servers": cluster.bootstrap})


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


# ---- topics of our own ----


def settings(cluster: KafkaCluster, topic: str) -> dict[str, str]:
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap})
    (done,) = admin.describe_configs([ConfigResource(ConfigResource.Type.TOPIC, topic)]).values()
    return {name: entry.value for name, entry in done.result(TIMEOUT_S).items()}


def partitions(cluster: KafkaCluster, topic: str) -> int:
    return len(
        AdminClient({"bootstrap.servers": cluster.bootstrap}).list_topics(topic, TIMEOUT_S).topics[topic].partitions
    )


@pytest.mark.parametrize("wanted", [COMPACTED_SETTINGS, EVENTS_SETTINGS], ids=["compacted", "events"])
@pytest.mark.parametrize("factor", ["source", "broker", 1])
def test_a_topic_of_our_own_is_made_once(
    either_kafka: KafkaCluster, topic_name: str, wanted: dict[str, str], factor: Any
) -> None:
    async def make() -> tuple[int, int]:
        topics = Topics(config(either_kafka), config(either_kafka), factor)
        first = await topics.ensure(topic_name, 5, wanted)
        await asyncio.to_thread(eventually, lambda: partitions(either_kafka, topic_name) == 5, "its partitions")
        return first, await topics.ensure(topic_name, 7, wanted)

    assert run(make()) == (5, 5), "the second time it says what there is"
    found = settings(either_kafka, topic_name)
    assert {name: found[name] for name in wanted} == wanted


def test_two_workers_that_make_it_at_once(kafka4: KafkaCluster, topic_name: str) -> None:
    async def make() -> list[int]:
        both = [Topics(config(kafka4), config(kafka4), "source") for _ in range(2)]
        return await asyncio.gather(*(topics.ensure(topic_name, 3, COMPACTED_SETTINGS) for topics in both))

    assert run(make()) == [3, 3]


def test_a_state_topic_that_would_be_deleted_bit_by_bit_is_refused(kafka4: KafkaCluster, topic_name: str) -> None:
    create_topic(kafka4, topic_name)
    topics = Topics(config(kafka4), config(kafka4), "source")
    with pytest.raises(
        ConfigError, match=f"eu {topic_name} has cleanup.policy=delete, and must have compact; kafka-conf"
    ):
        run(topics.ensure(topic_name, 1, COMPACTED_SETTINGS))
    assert run(topics.ensure(topic_name, 1, EVENTS_SETTINGS)) == 1


def test_a_compacted_topic_stays_near_what_it_holds(kafka4: KafkaCluster, topic_name: str) -> None:
    """Checkpoints of 50 lanes, 400 times over: 20 MB go in, and what a reader has to read is a tenth of that."""
    run(Topics(config(kafka4), config(kafka4), "source").ensure(topic_name, 1, COMPACTED_SETTINGS))
    filler = random.Random(1)
    written = 0
    for _ in range(400):
        records = [NewRecord(0, b"%d" % lane, filler.randbytes(1_000)) for lane in range(50)]
        written += witness.produce(kafka4.bootstrap, topic_name, records)

    def left() -> int:
        return sum(len(batch) for batch in witness.raw_batches(kafka4.bootstrap, topic_name, 0))

    assert written == 20_000
    eventually(lambda: left() < 2_000_000, "the log cleaner to have been there")


# ---- events ----


def test_events_are_in_their_topic(kafka4: KafkaCluster, topic_name: str) -> None:
    topic = events_topic(topic_name)
    events = [
        EventRecord(NOW_MS + n, topic_name, "orders", n, "source_away", "tailing", "paused", f"reason {n}", n)
        for n in range(200)
    ]

    async def write() -> int:
        target = config(kafka4)
        await Topics(target, target, "source").ensure(topic, 1, EVENTS_SETTINGS)
        log = EventLog(target, topic_name)
        for event in events:
            log.append(event)
        return await log.flush(TIMEOUT_S)

    assert run(write()) == 0
    (records,) = witness.dump(kafka4.bootstrap, topic).values()
    assert [json.loads(record.key) for record in records] == [{"topic": "orders", "partition": n} for n in range(200)]
    first = json.loads(records[0].value)
    assert first == {
        "at_ms": NOW_MS,
        "link": topic_name,
        "topic": "orders",
        "partition": 0,
        "kind": "source_away",
        "was": "tailing",
        "state": "paused",
        "reason": "reason 0",
        "position": 0,
        "worker": "",
        "version": 1,
    }


# ---- status ----


def lane(position: int, **changes: Any) -> LaneRecord:
    now_ms = int(time.time() * 1000)
    changes = {"state": "tailing", "written_ms": now_ms, "high_watermark": position, "worker": "host-1", **changes}
    return LaneRecord(2, "", "us.orders", "", position, position, position, 0, 7, 0, **changes)


def write_state(cluster: KafkaCluster, link: str, lanes: Mapping[LaneKey, LaneRecord]) -> None:
    """As the owners of the lanes do: a link's record, and some old ones of each lane before that which counts."""
    for topic in (state_topic(link), offsets_topic(link)):
        witness.create_topic(cluster.bootstrap, topic, SHARDS, {"cleanup.policy": "compact"})
    records = [NewRecord(0, encode(LinkKey(link)), encode(LinkRecord(7, 0, SHARDS, "source", "target")))]
    for key, last in lanes.items():
        for record in (lane(1, state="starting"), lane(2), last):
            records.append(NewRecord(shard_of(key.topic, key.partition, SHARDS), encode(key), encode(record)))
    witness.produce(cluster.bootstrap, state_topic(link), records)


def link_file(folder: Path, source: str, target: str, link: str, topics: str) -> str:
    file = folder / "link.yaml"
    file.write_text(
        f'clusters:\n  us: {{bootstrap.servers: "{source}"}}\n  eu: {{bootstrap.servers: "{target}"}}\n'
        f'links:\n  - {{name: "{link}", source: us, target: eu, topics: {{include: ["{topics}"]}}}}\n'
    )
    return str(file)


def status(*arguments: str) -> tuple[int, Any]:
    result = CliRunner().invoke(main, ["status", *arguments, "--json"])
    assert result.exception is None or isinstance(result.exception, SystemExit), "a traceback"
    return result.exit_code, json.loads(result.stdout)["links"][0]


def test_status_tells_what_the_owners_wrote_and_how_far_the_source_has_come(
    kafka3: KafkaCluster, kafka4: KafkaCluster, topic_name: str, tmp_path: Path
) -> None:
    late = topic_name + "-late"
    create_topic(kafka3, topic_name, 3)
    create_topic(kafka3, late, 2)
    witness.produce(kafka3.bootstrap, topic_name, [NewRecord(part, b"k", b"v") for part in (0, 1) for _ in range(50)])
    now_ms = int(time.time() * 1000)
    write_state(
        kafka4,
        topic_name,
        {
            LaneKey(topic_name, 0): lane(50),
            LaneKey(topic_name, 1): lane(20, state="copying", last_timestamp_ms=now_ms - 60_000),
            LaneKey(topic_name, 2): lane(0, state="paused", reason="target: no leader"),
        },
    )
    code, found = status(link_file(tmp_path, kafka3.bootstrap, kafka4.bootstrap, topic_name, topic_name + ".*"))
    assert code == 3
    assert (found["error"], found["notes"]) == ("", [])
    assert found["waiting"] == [{"topic": late, "partitions": [0, 1]}]
    seen = {row["partition"]: row for row in found["lanes"]}
    assert [row["partition"] for row in found["lanes"]] == [2, 1, 0], "the worst first"
    assert {row["end_offset"] for row in found["lanes"] if row["end_is_now"]} == {0, 50}
    assert [seen[part]["lag_records"] for part in range(3)] == [0, 30, 0]
    assert seen[1]["lag_s"] == pytest.approx(60, abs=30)
    assert (seen[2]["state"], seen[2]["reason"], seen[2]["owner"]) == ("paused", "target: no leader", "host-1")


def test_status_of_a_link_whose_lanes_are_all_well(kafka4: KafkaCluster, topic_name: str, tmp_path: Path) -> None:
    create_topic(kafka4, topic_name, 2)
    write_state(kafka4, topic_name, {LaneKey(topic_name, 0): lane(0), LaneKey(topic_name, 1): lane(0, state="copying")})
    file = link_file(
        tmp_path, kafka4.bootstrap, kafka4.bootstrap.replace("127.0.0.1", "localhost"), topic_name, topic_name
    )
    code, found = status(file)
    assert (code, found["good"], found["waiting"]) == (0, True, [])
    people = CliRunner().invoke(main, ["status", file])
    assert people.exit_code == 0
    assert people.stdout.startswith(f"{topic_name}: us → eu · 2 lanes: 1 copying, 1 tailing · lag 0 records\n")


def test_status_without_the_source_and_of_owners_that_are_gone(
    kafka4: KafkaCluster, topic_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replicator.cli.status.ASK_TIMEOUT_S", 1.0)
    long_ago = NOW_MS - 3_600_000
    write_state(kafka4, topic_name, {LaneKey(topic_name, 0): lane(40, high_watermark=70, written_ms=long_ago)})
    code, found = status(link_file(tmp_path, "127.0.0.1:1", kafka4.bootstrap, topic_name, topic_name))
    assert code == 3
    (row,) = found["lanes"]
    assert (row["silent"], row["good"], row["end_is_now"], row["lag_records"]) == (True, False, False, 30)
    assert row["age_s"] >= 3_600
    assert found["notes"][0].startswith("source `us` does not answer")


def test_status_of_a_link_that_never_ran(kafka4: KafkaCluster, topic_name: str, tmp_path: Path) -> None:
    code, found = status(link_file(tmp_path, "127.0.0.1:1", kafka4.bootstrap, topic_name, topic_name))
    assert code == 1
    assert f"there is no topic {state_topic(topic_name)}" in found["error"]


# ---- who blocks a lane ----


async def ask_who(cluster: KafkaCluster, topic: str) -> str:
    settings = ConnectionSettings("us", "test", 30_000, Pool(16 << 20))
    asked = Cluster(parse_bootstrap(cluster.bootstrap), settings)
    try:
        await asked.refresh([topic])
        return await blocking_producer(Partition(asked, topic, 0))
    finally:
        await asked.close()


def open_transaction(cluster: KafkaCluster, topic: str, name: str) -> Producer:
    """A producer with a record in the log and no end in sight."""
    producer = Producer({"bootstrap.servers": cluster.bootstrap, "transactional.id": name})
    producer.init_transactions(TIMEOUT_S)
    producer.begin_transaction()
    producer.produce(topic, b"in a transaction", partition=0)
    assert producer.flush(TIMEOUT_S) == 0
    return producer


def last_stable_offset(cluster: KafkaCluster, topic: str) -> int:
    """Where a read_committed reader's log ends, by librdkafka."""
    conf = {"bootstrap.servers": cluster.bootstrap, "group.id": "test", "isolation.level": "read_committed"}
    consumer = Consumer(conf)
    try:
        return int(consumer.get_watermark_offsets(TopicPartition(topic, 0), TIMEOUT_S)[1])
    finally:
        consumer.close()


async def fetched_offsets(cluster: KafkaCluster, topic: str) -> tuple[int, int]:
    """Last stable offset and high watermark as a Fetch like ours (read_uncommitted) says them."""
    settings = ConnectionSettings("us", "test", 30_000, Pool(16 << 20))
    asked = Cluster(parse_bootstrap(cluster.bootstrap), settings)
    try:
        await asked.refresh([topic])
        wanted = {"partition": 0, "fetch_offset": 0, "partition_max_bytes": 1}
        named = {"topic": topic, "topic_id": asked.topics[topic].topic_id, "partitions": [wanted]}
        body = {"max_wait_ms": 0, "min_bytes": 0, "max_bytes": 1, "topics": [named]}
        row = (await asked.request(FETCH, body, Partition(asked, topic, 0).leader_id()))["responses"][0]["partitions"][
            0
        ]
        return row["last_stable_offset"], row["high_watermark"]
    finally:
        await asked.close()


def test_the_producer_of_the_oldest_open_transaction_is_named(either_kafka: KafkaCluster, topic_name: str) -> None:
    create_topic(either_kafka, topic_name)
    witness.produce(either_kafka.bootstrap, topic_name, [NewRecord(0, b"k", b"v")] * 10, {"enable.idempotence": True})
    assert run(ask_who(either_kafka, topic_name)) == "no producer has a transaction open there any more"
    first = open_transaction(either_kafka, topic_name, topic_name + "-1")
    second = open_transaction(either_kafka, topic_name, topic_name + "-2")
    producer_id, epoch = _PRODUCER.unpack_from(
        witness.raw_batches(either_kafka.bootstrap, topic_name, 0)[-2], _PRODUCER_AT
    )
    said = run(ask_who(either_kafka, topic_name))
    assert last_stable_offset(either_kafka, topic_name) == 10
    assert run(fetched_offsets(either_kafka, topic_name)) == (10, 12), "what StuckLso is fed with"
    assert end_offset(either_kafka, topic_name) == 12
    whose = f"producer id {producer_id} epoch {epoch} has a transaction open since offset 10, and wrote last at 20"
    assert said.startswith(whose)
    assert said.endswith("Z; one more transaction is open behind it")
    first.abort_transaction(TIMEOUT_S)
    eventually(lambda: "since offset 11" in run(ask_who(either_kafka, topic_name)), "the second one to be the oldest")
    second.commit_transaction(TIMEOUT_S)
    eventually(lambda: run(ask_who(either_kafka, topic_name)).startswith("no producer"), "nobody to be left")


def test_a_topic_that_nobody_knows_is_no_reason_to_fail(kafka4: KafkaCluster, topic_name: str) -> None:
    assert run(ask_who(kafka4, topic_name)).startswith("which producer holds it cannot be told: us ")
