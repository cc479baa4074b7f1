"""What a link has written down, read from a real cluster: the state reader, the public interface, and the command."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from replicator.config.load import parse_bootstrap
from replicator.config.models import Cluster
from replicator.errors import ClusterError, ConfigError, NetworkError
from replicator.offsets import LinkOffsets
from replicator.state.chunks import pack
from replicator.state.reader import StateReader
from replicator.state.records import (
    ChunkKey,
    GroupKey,
    GroupRecord,
    LaneKey,
    LaneRecord,
    LinkKey,
    LinkRecord,
    encode,
    offsets_topic,
    shard_of,
    state_topic,
)
from tests.broker.admin import create_topic
from tests.harness import witness
from tests.harness.kafka import KafkaCluster
from tests.harness.ports import free_port
from tests.harness.records import NewRecord

pytestmark = pytest.mark.broker

TOPIC_ID = "AAAAAAAAAAAAAAAAAAAAAQ"
ORDERS = LaneKey("orders", 3)
MANY_LANES, MANY_SHARDS = 10_000, 64
TIMEOUT_S = 30


def lane(position: int, target_next: int, **fields: Any) -> LaneRecord:
    record = LaneRecord(
        generation=2,
        topic_id=TOPIC_ID,
        target_topic="us.orders",
        target_topic_id="",
        position=position,
        target_next=target_next,
        sequence=target_next,
        leader_epoch=0,
        producer_id=1,
        producer_epoch=0,
    )
    return msgspec.structs.replace(record, **fields)


class State:
    """A link's topics, and an ordinary producer that writes into them."""

    def __init__(self, cluster: KafkaCluster, link: str, shards: int = 4, **producer: Any) -> None:
        self.link = link
        self.shards = shards
        self.cluster = Cluster(
            "eu", parse_bootstrap(cluster.bootstrap), {"bootstrap.servers": cluster.bootstrap}, "state-test"
        )
        for topic in (state_topic(link), offsets_topic(link)):
            create_topic(cluster, topic, shards, {"cleanup.policy": "compact"})
        self._producer = Producer({"bootstrap.servers": cluster.bootstrap, "log_level": 0, "linger.ms": 5, **producer})

    def write(self, key: msgspec.Struct | bytes, value: msgspec.Struct | bytes | None, wait: bool = True) -> None:
        topic = offsets_topic(self.link) if isinstance(key, ChunkKey) else state_topic(self.link)
        at = (key.topic, key.partition) if isinstance(key, LaneKey | ChunkKey) else None
        shard = shard_of(*at, self.shards) if at else 0
        raw = [part if part is None or isinstance(part, bytes) else encode(part) for part in (value, key)]
        self._producer.produce(topic, *raw, shard)
        if wait:
            self.flush()

    def flush(self) -> None:
        assert self._producer.flush(TIMEOUT_S) == 0

    def write_in_a_transaction(self, records: Iterable[tuple[msgspec.Struct, msgspec.Struct]]) -> None:
        self._producer.init_transactions(TIMEOUT_S)
        self._producer.begin_transaction()
        for record in records:
            self.write(*record)
        self._producer.commit_transaction(TIMEOUT_S)


@pytest.fixture
def readers() -> Iterator[Callable[[Cluster, str], StateReader]]:
    made: list[StateReader] = []

    def make(cluster: Cluster, link: str) -> StateReader:
        made.append(StateReader(cluster, link))
        return made[-1]

    yield make
    for reader in made:
        reader.close()


Readers = Callable[[Cluster, str], StateReader]


def test_what_stands_there_and_what_comes(either_kafka: KafkaCluster, topic_name: str, readers: Readers) -> None:
    state = State(either_kafka, topic_name)
    link = LinkRecord(1, 0, 4, source_cluster_id="source", target_cluster_id="target")
    state.write(LinkKey(topic_name), link)
    state.write(GroupKey("billing"), GroupRecord("billing", "synced"))
    state.write(b'{"another":"kind"}', b"of another program")
    state.write(b"not json", b"{}")
    state.write(ORDERS, lane(30, 20, generation=5, segments=((0, 0, 10), (20, 10, 10))))
    state.write(ORDERS, lane(99, 99, generation=4))
    state.write(LaneKey("clicks", 0), b'{"generation":1}')
    state.write(LaneKey("gone", 0), lane(1, 1))
    state.write(LaneKey("gone", 0), None)
    reader = readers(state.cluster, topic_name)
    reader.catch_up()
    assert (reader.record, list(reader.groups), reader.lanes.keys()) == (link, ["billing"], {ORDERS})
    assert reader.damaged == 2
    words = ("eu: not a key of a link's state", "eu clicks-0: not a LaneRecord")  # of two partitions, in any order
    assert str(reader.damage).startswith(words)
    assert [reader.offset_map(ORDERS).translate(offset) for offset in (0, 9, 10, 29, 30, 31)] == [
        0,
        9,
        10,
        19,
        20,
        None,
    ]
    # And on from there.
    reader.catch_up()
    state.write(ChunkKey("orders", 3, TOPIC_ID, 5, 0), pack(5, [(0, 0, 10), (20, 10, 15)]))
    state.write(ORDERS, lane(50, 36, generation=5, segments=((20, 10, 15), (45, 31, 5))))
    state.write(LaneKey("clicks", 0), lane(7, 7))
    reader.catch_up()
    assert reader.offset_map(ORDERS).segments.tolist() == [[0, 0, 10], [20, 10, 15], [45, 31, 5]]
    assert reader.lanes[LaneKey("clicks", 0)].position == 7
    assert reader.damaged == 2, "nothing is read twice"
    state.write(ORDERS, None)
    reader.catch_up()
    assert reader.lanes.keys() == {LaneKey("clicks", 0)}


def test_the_end_is_a_hole(kafka4: KafkaCluster, topic_name: str, readers: Readers) -> None:
    """A commit marker: the last offset is no record that a consumer is given."""
    state = State(kafka4, topic_name, **{"transactional.id": topic_name})
    state.write_in_a_transaction([(ORDERS, lane(5, 5)), (LaneKey("orders", 4), lane(6, 6))])
    reader = readers(state.cluster, topic_name)
    for _ in range(2):
        reader.catch_up()
        assert [reader.lanes[key].position for key in (ORDERS, LaneKey("orders", 4))] == [5, 6]


def test_ten_thousand_lanes(kafka4: KafkaCluster, topic_name: str, readers: Readers) -> None:
    """As a link leaves them: a record of every lane twice over, and its chunk. The time is only printed."""
    state = State(kafka4, topic_name, MANY_SHARDS)
    lanes = [LaneKey(f"topic-{number // 100}", number % 100) for number in range(MANY_LANES)]
    chunk = pack(2, [(11 * n, 10 * n, 10) for n in range(20)])
    for position in (220, 230):
        for key in lanes:
            segments = ((209, 190, 10), (220, 200, 10))[: (position - 210) // 10]
            state.write(key, lane(position, position - 20, segments=segments), wait=False)
            if position == 220:
                state.write(ChunkKey(key.topic, key.partition, TOPIC_ID, 2, 0), chunk, wait=False)
        state.flush()
    reader = readers(state.cluster, topic_name)
    began_s = time.monotonic()
    reader.catch_up()
    loaded_s = time.monotonic()
    translated = [reader.offset_map(key).translate(219) for key in lanes]
    print(f"\n{MANY_LANES:,} lanes: read in {loaded_s - began_s:.2f} s, maps in {time.monotonic() - loaded_s:.2f} s")
    assert reader.lanes.keys() == set(lanes)
    assert {record.position for record in reader.lanes.values()} == {230}
    assert set(translated) == {200}
    assert reader.damaged == 0


def test_catching_up_ends_while_others_write(kafka4: KafkaCluster, topic_name: str, readers: Readers) -> None:
    state = State(kafka4, topic_name, 1)
    state.write(ORDERS, lane(0, 0))
    ended = threading.Event()
    written = 0

    def write() -> None:
        nonlocal written
        while not ended.is_set():
            written += 1
            state.write(ORDERS, lane(written, written))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        reader = readers(state.cluster, topic_name)
        for _ in range(5):
            at_least = written - 1
            reader.catch_up(timeout_s=10)
            assert reader.lanes[ORDERS].position >= at_least
    finally:
        ended.set()
        thread.join()
    assert written > 5


def test_a_link_that_has_not_run(kafka4: KafkaCluster, topic_name: str, readers: Readers) -> None:
    cluster = Cluster("eu", parse_bootstrap(kafka4.bootstrap), {"bootstrap.servers": kafka4.bootstrap})
    reader = readers(cluster, topic_name)
    words = f"link `{topic_name}` has no state on `eu`: .*it has not run yet, or its name is another"
    with pytest.raises(ConfigError, match=words):
        reader.catch_up()
    State(kafka4, topic_name).write(ORDERS, lane(5, 5))
    reader.catch_up()
    assert reader.lanes[ORDERS].position == 5


def test_a_cluster_that_is_not_there(readers: Readers) -> None:
    address = f"127.0.0.1:{free_port()}"
    cluster = Cluster("eu", parse_bootstrap(address), {"bootstrap.servers": address})
    with pytest.raises(NetworkError, match="eu: the state of link `us-eu` cannot be read"):
        readers(cluster, "us-eu").catch_up(timeout_s=1)


def test_state_that_was_deleted_meanwhile(kafka4: KafkaCluster, topic_name: str, readers: Readers) -> None:
    state = State(kafka4, topic_name)
    for position in range(3):
        state.write(ORDERS, lane(position, position))
    reader = readers(state.cluster, topic_name)
    reader.catch_up()
    for topic in (state_topic(topic_name), offsets_topic(topic_name)):
        witness.delete_topic(kafka4.bootstrap, topic)
    State(kafka4, topic_name).write(ORDERS, lane(9, 9))
    with pytest.raises(ClusterError, match="the link's state was deleted since it was read"):
        reader.catch_up()


def test_a_reader_needs_no_group(
    private_cluster: Callable[..., KafkaCluster], topic_name: str, readers: Readers
) -> None:
    """It may not touch any group, nor write anything."""
    authorizer = "org.apache.kafka.metadata.authorizer.StandardAuthorizer"
    cluster = private_cluster(
        properties={"authorizer.class.name": authorizer, "allow.everyone.if.no.acl.found": "true"}
    )
    state = State(cluster, topic_name)
    state.write(ORDERS, lane(5, 5))
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap, "log_level": 0})

    def denied(kind: ResourceType, name: str, what: AclOperation) -> AclBinding:
        return AclBinding(kind, name, ResourcePatternType.LITERAL, "User:ANONYMOUS", "*", what, AclPermissionType.DENY)

    acls = [denied(ResourceType.GROUP, "*", AclOperation.ALL)]
    acls += [denied(ResourceType.TOPIC, "*", what) for what in (AclOperation.WRITE, AclOperation.CREATE)]
    # A resource with an ACL on it is closed to what that does not allow.
    acls.append(
        AclBinding(
            ResourceType.TOPIC,
            "*",
            ResourcePatternType.LITERAL,
            "User:ANONYMOUS",
            "*",
            AclOperation.READ,
            AclPermissionType.ALLOW,
        )
    )
    for done in admin.create_acls(acls).values():
        done.result(TIMEOUT_S)
    asked = [ConsumerGroupTopicPartitions("any")]
    with pytest.raises(KafkaException, match="GROUP_AUTHORIZATION_FAILED"):
        admin.list_consumer_group_offsets(asked)["any"].result(TIMEOUT_S)
    with pytest.raises(KafkaException, match="TOPIC_AUTHORIZATION_FAILED"):
        witness.produce(cluster.bootstrap, state_topic(topic_name), [NewRecord(0, b"k", b"v")], {"log_level": 0})
    reader = readers(state.cluster, topic_name)
    reader.catch_up()
    assert reader.lanes[ORDERS].position == 5


# ---- the public interface, and the command ----


@pytest.fixture
def link_file(kafka4: KafkaCluster, kafka4_second: KafkaCluster, topic_name: str, tmp_path: Path) -> str:
    """Of a link that has copied two partitions of orders, with holes on both sides of one."""
    state = State(kafka4, topic_name)
    state.write(ChunkKey("orders", 3, TOPIC_ID, 2, 0), pack(2, [(0, 0, 10), (20, 15, 5)]))
    state.write(ORDERS, lane(40, 30, segments=((20, 15, 5), (30, 20, 10))))
    state.write(LaneKey("orders", 4), lane(7, 7, segments=((0, 0, 7),), state="failed", reason="no disk"))
    file = tmp_path / "link.yaml"
    file.write_text(
        f"""
clusters:
  us: {{bootstrap.servers: "{kafka4_second.bootstrap}"}}
  eu: {{bootstrap.servers: "{kafka4.bootstrap}"}}
links:
  - {{source: us, target: eu, name: {topic_name}, topics: {{include: [orders]}}, rename: {{prefix: us.}}}}
  - {{source: eu, target: us, name: another, topics: {{include: [clicks]}}}}
"""
    )
    return str(file)


def command(link_file: str, *arguments: str) -> tuple[int, str, list[str]]:
    """Exit code, stdout, and the lines of stderr."""
    run = [sys.executable, "-m", "replicator", "offsets", "translate", link_file, *arguments]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr.splitlines()


def place(partition: int, *offsets: int, topic: str = "orders") -> list[str]:
    options = [text for offset in offsets for text in ("--offset", str(offset))]
    return ["--topic", topic, "--partition", str(partition), *options]


def commit(cluster: KafkaCluster, group: str, offsets: dict[tuple[str, int], int]) -> None:
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap, "log_level": 0})
    parts = [TopicPartition(*part, offset) for part, offset in offsets.items()]
    for done in admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, parts)]).values():
        done.result(TIMEOUT_S)


def test_the_interface(link_file: str, kafka4: KafkaCluster, topic_name: str) -> None:
    properties = {"bootstrap.servers": kafka4.bootstrap}
    with LinkOffsets.open(link_file, topic_name) as one, LinkOffsets.connect(properties, topic_name) as two:
        for offsets in (one, two):
            assert offsets.partitions == [("orders", 3), ("orders", 4)]
            assert offsets.translate("orders", 3, 12).offset == 15
            assert offsets.reverse("us.orders", 3, 12).offset == 20
            assert offsets.translate_many("orders", 3, [0, 29, 40, 41]).tolist() == [0, 20, 30, -1]
            offsets.refresh()
    with pytest.raises(ConfigError, match="which of the links"):
        LinkOffsets.open(link_file)
    with pytest.raises(ConfigError, match="link `another` has no state on `us`"):
        LinkOffsets.open(link_file, "another")


def test_translate_places(link_file: str, topic_name: str) -> None:
    code, out, err = command(link_file, "--link", topic_name, *place(3, 0, 12, 40))
    assert (code, err) == (0, [])
    assert [line.split() for line in out.splitlines()[1:]] == [
        ["orders", "3", "0", "us.orders", "0"],
        ["orders", "3", "12", "us.orders", "15"],
        ["orders", "3", "40", "us.orders", "30"],
    ]
    code, out, err = command(link_file, "--link", topic_name, *place(4, 7, 8))
    assert (code, len(out.splitlines())) == (3, 3)
    assert err == ["us orders-4 offset 8: only replicated up to 7; the lane is failed: no disk"]


def test_translate_back(link_file: str, topic_name: str) -> None:
    code, out, err = command(link_file, "--link", topic_name, "--reverse", "--json", *place(3, 12, topic="us.orders"))
    assert (code, err) == (0, [])
    assert json.loads(out) == {
        "link": topic_name,
        "group": None,
        "from": "eu",
        "to": "us",
        "translations": [
            {
                "topic": "us.orders",
                "partition": 3,
                "offset": 12,
                "outcome": "translated",
                "to_topic": "orders",
                "to_offset": 20,
                "reason": "",
            }
        ],
    }


def test_translate_a_group(link_file: str, kafka4_second: KafkaCluster, topic_name: str) -> None:
    for topic in ("orders", "unrelated"):
        if topic not in AdminClient({"bootstrap.servers": kafka4_second.bootstrap}).list_topics(timeout=30).topics:
            create_topic(kafka4_second, topic, 5)
    group = f"group-of-{topic_name}"
    commit(kafka4_second, group, {("orders", 3): 12, ("orders", 4): 7})
    code, out, err = command(link_file, "--link", topic_name, "--group", group)
    assert (code, err) == (0, [])
    assert [line.split()[-1] for line in out.splitlines()] == ["offset", "15", "7"]
    commit(kafka4_second, group, {("orders", 4): 8, ("unrelated", 0): 1})
    code, out, err = command(link_file, "--link", topic_name, "--group", group, "--json")
    answers = [(each["topic"], each["to_offset"], each["outcome"]) for each in json.loads(out)["translations"]]
    assert answers == [
        ("orders", 15, "translated"),
        ("orders", None, "not yet"),
        ("unrelated", None, "not replicated"),
    ]
    assert (code, len(err)) == (3, 2)
    assert err[1] == f"us unrelated-0 offset 1: link `{topic_name}` has copied nothing of unrelated-0"
    code, out, err = command(link_file, "--link", topic_name, "--group", "nobody-" + group)
    assert (code, out, err) == (1, "", [f"Error: us: group `nobody-{group}` has committed nothing"])


def test_what_cannot_be_asked(link_file: str) -> None:
    code, out, err = command(link_file, "--link", "anothr", *place(0, 1))
    assert (code, out, len(err)) == (2, "", 1)
    assert "no link `anothr`; one of" in err[0]
    code, out, err = command(link_file, "--link", "another", *place(0, 1))
    assert (code, out, len(err)) == (2, "", 1)
    assert "link `another` has no state on `us`" in err[0]
    for arguments in (["--topic", "orders"], ["--group", "g", *place(0, 1)], []):
        code, out, err = command(link_file, *arguments)
        assert (code, out) == (2, "")
        assert err[-1] == "Error: give either --group, or --topic, --partition and --offset"
