"""MirrorMaker 2's internal topics, written by us to real brokers and read by MirrorMaker 2's own code."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient, ConfigResource

from replicator.config.models import Cluster, Link, Mm2Topics, Rename, Topics
from replicator.control import mm2_log
from replicator.control.mm2_topics import Mm2Topics as Writer
from replicator.errors import ConfigError, ReplicatorError, Unreachable
from replicator.state.mm2_records import Checkpoint, Heartbeat, OffsetSync
from replicator.state.records import LaneKey, LaneRecord
from tests.broker.admin import partition_count
from tests.harness import witness
from tests.harness.java import JavaWitness
from tests.harness.kafka import KafkaCluster
from tests.harness.mm2 import Mm2Witness, Raw, Translated
from tests.harness.ports import LOOPBACK, free_port
from tests.harness.records import NewRecord

pytestmark = pytest.mark.broker

Segments = Sequence[tuple[int, int, int]]


def cluster(alias: str, bootstrap: str) -> Cluster:
    host, port = bootstrap.split(",")[0].rsplit(":", 1)
    return Cluster(alias, ((host, int(port)),), {"bootstrap.servers": bootstrap})


def lane(segments: Segments, position: int | None = None) -> LaneRecord:
    source, target, length = segments[-1]
    return LaneRecord(
        generation=1,
        topic_id="",
        target_topic="orders",
        target_topic_id="",
        position=source + length if position is None else position,
        target_next=target + length,
        sequence=0,
        leader_epoch=0,
        producer_id=1,
        producer_epoch=0,
        segments=tuple(segments),
    )


@dataclass
class Scene:
    """Two clusters under aliases that no other test uses, and what a link between them has switched on."""

    source: KafkaCluster
    target: KafkaCluster
    name: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def us(self) -> str:
        return f"us-{self.name}"

    @property
    def eu(self) -> str:
        return f"eu-{self.name}"

    def link(self, options: dict[str, Any] | None = None) -> Link:
        topics = Topics(include=("orders",))
        mm2_topics = Mm2Topics(**(self.options if options is None else options))
        return Link(source=self.us, target=self.eu, topics=topics, mm2_topics=mm2_topics)

    def write(
        self,
        *rounds: tuple[dict[LaneKey, LaneRecord], Sequence[Checkpoint]],
        link: Link | None = None,
        between: Callable[[], None] = lambda: None,
    ) -> None:
        """Rounds of one writer, which lives as long as they last; `between` is called after each."""

        async def run() -> None:
            sides = cluster(self.us, self.source.bootstrap), cluster(self.eu, self.target.bootstrap)
            writer = Writer(link or self.link(), *sides)
            try:
                for lanes, checkpoints in rounds:
                    await writer.write_once(lanes, checkpoints)
                    between()
            finally:
                await writer.close()

        asyncio.run(run())


@pytest.fixture
def scene(kafka4_second: KafkaCluster, either_kafka: KafkaCluster, topic_name: str) -> Scene:
    return Scene(kafka4_second, either_kafka, topic_name.rsplit("-", 2)[0][:20] + topic_name.rsplit("-", 1)[1])


def stored(kafka: KafkaCluster, topic: str) -> list[Raw]:
    """(key, value) of the records, all in one partition."""
    (records,) = witness.dump(kafka.bootstrap, topic).values()
    return [(record.key or b"", record.value or b"") for record in records]


def topic_settings(kafka: KafkaCluster, topic: str) -> dict[str, str]:
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
    return {entry.name: entry.value for entry in admin.describe_configs([resource])[resource].result(30).values()}


# ---- the bytes ----

RECORDS = [
    OffsetSync("topic1", 3, 1000, 950),
    OffsetSync("übersee", 0, (1 << 63) - 1, 0),
    Checkpoint("g1", "us-west.topic1", 3, 1000, 950),
    Checkpoint("group ✓", "t", (1 << 31) - 1, 0, (1 << 63) - 1, "metadata, and ünicode"),
    Heartbeat("us-west", "us-east", 1_700_000_000_000),
    Heartbeat("", "", -1),
]


@pytest.mark.parametrize("record", RECORDS, ids=str)
def test_bytes_are_those_of_mirror_makers_classes(either_mm2: Mm2Witness, record: Any) -> None:
    kind = type(record).__name__
    theirs = either_mm2.encode(kind, record)
    assert record.encode() == theirs
    assert type(record).decode(*theirs) == record
    assert either_mm2.decode(kind, record.encode()) == tuple(record)


# ---- checkpoints ----


def test_translate_offsets_finds_what_we_wrote(scene: Scene, mm2: Mm2Witness) -> None:
    scene.options = {"checkpoints": True}
    first = [
        Checkpoint("billing", "us.orders", 0, 1000, 950, "note"),
        Checkpoint("billing", "us.orders", 1, 7, 7),
        Checkpoint("other", "us.orders", 0, 3, 2),
    ]
    second = [first[0]._replace(upstream=1200, downstream=1140, metadata=""), *first[1:]]
    scene.write(({}, first), ({}, second))

    translated = mm2.translate(scene.target.bootstrap, scene.us, "billing")
    assert translated == {("us.orders", 0): Translated(1140, ""), ("us.orders", 1): Translated(7, "")}
    assert mm2.translate(scene.target.bootstrap, scene.us, "other") == {("us.orders", 0): Translated(2, "")}
    assert mm2.translate(scene.target.bootstrap, scene.us, "nobody") == {}

    topic = f"{scene.us}.checkpoints.internal"
    assert topic in mm2.topology(scene.target.bootstrap, []).checkpoints
    lines = mm2.format("Checkpoint", stored(scene.target, topic))
    assert len(lines) == 4  # three, and the one that changed
    for piece in ("billing", "us.orders-0", "1200", "1140"):
        assert piece in lines[-1]
    settings = topic_settings(scene.target, topic)
    assert (settings["cleanup.policy"], partition_count(scene.target, topic)) == ("compact", 1)


def test_what_stands_there_is_not_written_again(scene: Scene) -> None:
    scene.options = {"checkpoints": True, "offset_syncs": "target"}
    groups = [Checkpoint(f"group-{number}", "orders", 0, number, number) for number in range(50)]
    lanes = {LaneKey("orders", 0): lane([(0, 0, 100)])}
    topics = [f"{scene.us}.checkpoints.internal", f"mm2-offset-syncs.{scene.us}.internal"]
    scene.write((lanes, groups))
    before = [stored(scene.target, topic) for topic in topics]
    assert [len(each) for each in before] == [50, 2]
    scene.write((lanes, groups), (lanes, groups))  # by a writer that was not there the first time
    assert [stored(scene.target, topic) for topic in topics] == before


def test_a_link_has_only_what_is_switched_on(scene: Scene) -> None:
    scene.write(({LaneKey("orders", 0): lane([(0, 0, 10)])}, [Checkpoint("g", "orders", 0, 1, 1)]))
    for kafka in (scene.source, scene.target):
        for topic in (
            f"{scene.us}.checkpoints.internal",
            f"{scene.us}.heartbeats",
            f"mm2-offset-syncs.{scene.us}.internal",
            f"mm2-offset-syncs.{scene.eu}.internal",
        ):
            assert partition_count(kafka, topic) == 0


def test_another_separator(scene: Scene, mm2: Mm2Witness) -> None:
    scene.options = {"checkpoints": True, "heartbeats": True, "separator": "_"}
    scene.write(({}, [Checkpoint("billing", "orders", 0, 5, 4)]))
    config = {"replication.policy.separator": "_"}
    bootstrap = scene.target.bootstrap
    assert mm2.translate(bootstrap, scene.us, "billing", config) == {("orders", 0): Translated(4, "")}
    found = mm2.topology(bootstrap, [scene.us], config)
    assert f"{scene.us}_checkpoints_internal" in found.checkpoints
    assert found.hops == {scene.us: 1}


# ---- heartbeats ----


def test_the_source_is_an_upstream_cluster(scene: Scene, mm2: Mm2Witness) -> None:
    scene.options = {"heartbeats": True}
    bootstrap = scene.target.bootstrap
    before = mm2.topology(bootstrap, [scene.us])
    assert scene.us not in before.upstream
    assert before.hops == {scene.us: -1}

    scene.write(({}, []), ({}, []))
    for policy in ("DefaultReplicationPolicy", "IdentityReplicationPolicy"):
        name = f"org.apache.kafka.connect.mirror.{policy}"
        config = {"replication.policy.class": name, "source.cluster.alias": scene.us}
        after = mm2.topology(bootstrap, [scene.us, scene.eu], config)
        assert scene.us in after.upstream, policy
        assert after.hops == {scene.us: 1, scene.eu: -1}
        assert {"heartbeats", f"{scene.us}.heartbeats"} <= after.heartbeats

    beats = [Heartbeat(*mm2.decode("Heartbeat", raw)) for raw in stored(scene.target, f"{scene.us}.heartbeats")]
    assert [(beat.source, beat.target) for beat in beats] == [(scene.us, scene.eu)] * 2
    assert 1_700_000_000_000 < beats[0].timestamp_ms <= beats[1].timestamp_ms
    ours = [raw for raw in stored(scene.target, "heartbeats") if raw[0] == beats[0].encode()[0]]
    assert [Heartbeat.decode(*raw) for raw in ours] == beats
    for piece in (scene.us, scene.eu, str(beats[0].timestamp_ms)):
        assert piece in mm2.format("Heartbeat", ours)[0]
    assert partition_count(scene.source, "heartbeats") == 0


def test_heartbeats_that_the_link_copies_are_left_to_their_lane(
    private_cluster: Callable[..., KafkaCluster], kafka4: KafkaCluster, topic_name: str
) -> None:
    scene = Scene(private_cluster(), kafka4, topic_name.rsplit("-", 1)[1], {"heartbeats": True})
    witness.create_topic(scene.source.bootstrap, "heartbeats")

    def link(**options: Any) -> Link:
        every = Topics(exclude=())  # by default a link leaves them out
        return Link(source=scene.us, target=scene.eu, topics=every, mm2_topics=Mm2Topics(heartbeats=True), **options)

    scene.write(({}, []), link=link(rename=Rename(prefix=f"{scene.us}.")))
    assert partition_count(scene.target, f"{scene.us}.heartbeats") == 0
    key, _ = Heartbeat(scene.us, scene.eu, 0).encode()
    count = [raw[0] for raw in stored(scene.target, "heartbeats")].count(key)
    assert count == 1

    with pytest.raises(ConfigError, match=r"topics\.exclude"):
        scene.write(({}, []), link=link())
    assert [raw[0] for raw in stored(scene.target, "heartbeats")].count(key) == count
    assert len(stored(scene.target, f"{scene.us}.heartbeats")) == 1


def test_an_alias_that_holds_the_separator_is_refused(kafka4: KafkaCluster) -> None:
    scene = Scene(kafka4, kafka4, "a.b", {"heartbeats": True, "checkpoints": True})
    with pytest.raises(ConfigError, match=r"us-a\.b holds the separator"):
        scene.write(({}, [Checkpoint("g", "orders", 0, 1, 1)]))
    assert len(stored(kafka4, "us-a.b.checkpoints.internal")) == 1  # what can be done is done


# ---- offset syncs ----


def store_config(scene: Scene, location: str) -> dict[str, str]:
    """For MirrorMaker 2's checkpoint connector on the same link."""
    return {
        "name": "checkpoints",
        "connector.class": "org.apache.kafka.connect.mirror.MirrorCheckpointConnector",
        "source.cluster.alias": scene.us,
        "target.cluster.alias": scene.eu,
        "source.cluster.bootstrap.servers": scene.source.bootstrap,
        "target.cluster.bootstrap.servers": scene.target.bootstrap,
        "offset-syncs.topic.location": location,
    }


def true_offset(segments: Segments, source_offset: int) -> int:
    """Where the first record at or behind a source offset lies on the target; its end if there is none."""
    last = 0
    for source, target, length in segments:
        for step in range(length):
            last = target + step
            if source + step >= source_offset:
                return last
    return last + 1


# Gaps on the source, one on the target as well, and a segment of one record.
GAPPY: Segments = [(5, 0, 40), (50, 40, 1), (60, 41, 100), (200, 150, 30)]


@pytest.mark.parametrize("location", ["source", "target"])
def test_mirror_makers_translation_by_our_syncs(scene: Scene, mm2: Mm2Witness, location: str) -> None:
    scene.options = {"offset_syncs": location}
    other = scene.eu if location == "source" else scene.us
    homes = {"source": scene.source, "target": scene.target}
    topic = f"mm2-offset-syncs.{other}.internal"
    orders, payments = LaneKey("orders", 0), LaneKey("payments", 7)
    scene.write(
        ({orders: lane(GAPPY[:1])}, []),
        ({orders: lane(GAPPY[:3], position=130), payments: lane([(0, 0, 3)])}, []),
    )
    scene.write(({orders: lane(GAPPY[2:]), payments: lane([(0, 0, 3)])}, []))  # the map's older part is in chunks

    raw = stored(homes.pop(location), topic)
    (elsewhere,) = homes.values()
    assert partition_count(elsewhere, topic) == 0
    syncs = [OffsetSync(*mm2.decode("OffsetSync", each)) for each in raw]
    points = [(5, 0), (44, 39), (50, 40), (60, 41), (129, 110), (200, 150), (229, 179)]
    assert [sync[2:] for sync in syncs if sync.topic == "orders"] == points
    assert [sync for sync in syncs if sync.topic == "payments"] == [
        OffsetSync("payments", 7, 0, 0),
        OffsetSync("payments", 7, 2, 2),
    ]
    line = next(line for line in mm2.format("OffsetSync", raw) if "229" in line)
    assert "orders-0" in line
    assert "179" in line

    offsets = range(235)
    found = mm2.offsets_by_syncs("orders", 0, offsets, store_config(scene, location))
    assert found[:5] == [-1] * 5
    wrong = [
        (at, found[at], true_offset(GAPPY, at)) for at in offsets[5:] if not -1 < found[at] <= true_offset(GAPPY, at)
    ]
    assert wrong == []
    assert [found[offset] for offset in (5, 229, 230)] == [0, 179, 180]  # MirrorMaker 2 keeps the oldest and the newest
    assert found == sorted(found)


def test_a_lane_that_is_behind_writes_no_lower_sync(scene: Scene, mm2: Mm2Witness) -> None:
    """As after a truncated source, or when a leader that was replaced writes once more."""
    scene.options = {"offset_syncs": "target"}
    key = LaneKey("orders", 0)
    scene.write(({key: lane([(0, 0, 100)])}, []))
    scene.write(({key: lane([(0, 0, 50)])}, []), ({key: lane([(0, 0, 100), (40, 100, 30)])}, []))
    scene.write(({key: lane([(0, 0, 100), (40, 100, 80)])}, []))
    syncs = [mm2.decode("OffsetSync", raw) for raw in stored(scene.target, f"mm2-offset-syncs.{scene.us}.internal")]
    assert syncs == [("orders", 0, 0, 0), ("orders", 0, 99, 99), ("orders", 0, 119, 179)]


def test_foreign_records_and_transactions_in_the_topic(scene: Scene, java4: JavaWitness) -> None:
    """Whatever else stands there, ours is found behind it, and written once."""
    scene.options = {"offset_syncs": "target"}
    topic = f"mm2-offset-syncs.{scene.us}.internal"
    key = LaneKey("orders", 0)
    scene.write(({key: lane([(0, 0, 100)])}, []))
    raw_key, _ = OffsetSync("orders", 0, 0, 0).encode()
    rubbish = [NewRecord(0, b"\xff\xff", b"x"), NewRecord(0, b"gone", None), NewRecord(0, b"", b"")]
    java4.produce(scene.target.bootstrap, topic, rubbish, {"transactional.id": topic})
    scene.write(({key: lane([(0, 0, 100)])}, []), ({key: lane([(0, 0, 200)])}, []), ({key: lane([(0, 0, 200)])}, []))
    ours = [OffsetSync.decode(*raw) for raw in stored(scene.target, topic) if raw[0] == raw_key]
    assert [sync.upstream for sync in ours] == [0, 99, 199]


# ---- when something is wrong ----


def test_a_topic_that_is_deleted_is_made_anew(scene: Scene, mm2: Mm2Witness) -> None:
    scene.options = {"checkpoints": True}
    topic = f"{scene.us}.checkpoints.internal"
    groups = [Checkpoint("g", "orders", 0, 1, 1)]
    scene.write(({}, groups))
    witness.delete_topic(scene.target.bootstrap, topic)
    scene.write(({}, groups))
    assert mm2.translate(scene.target.bootstrap, scene.us, "g") == {("orders", 0): Translated(1, "")}


def test_a_cluster_that_is_gone_is_one_error_and_keeps_nothing_else_waiting(
    kafka4: KafkaCluster, topic_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mm2_log, "TIMEOUT_S", 1.0)

    async def run() -> None:
        options = Mm2Topics(checkpoints=True, offset_syncs="source")
        link = Link(source=f"us-{topic_name}", target="eu", mm2_topics=options)
        nowhere = cluster(link.source, f"{LOOPBACK}:{free_port()}")
        writer = Writer(link, nowhere, cluster("eu", kafka4.bootstrap))
        groups = [Checkpoint("g", "orders", 0, 1, 1)]
        with pytest.raises(Unreachable) as caught:
            await writer.write_once({LaneKey("orders", 0): lane([(0, 0, 1)])}, groups)
        assert str(caught.value).startswith(f"{link.source} mm2-offset-syncs.eu.internal: ")
        assert isinstance(caught.value, ReplicatorError)
        await writer.close()

    asyncio.run(run())
    assert len(stored(kafka4, f"us-{topic_name}.checkpoints.internal")) == 1
