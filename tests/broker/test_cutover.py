"""Groups that move from one real cluster to another: nothing skipped, nothing read again."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from replicator.control.group_admin import Committed
from replicator.data.states import LaneState
from replicator.state.reader import StateReader
from tests.broker.admin import create_topic
from tests.broker.group_scene import SHARDS, TIMEOUT_S, Scene, consuming, offsets_of
from tests.harness import witness
from tests.harness.kafka import KafkaCluster
from tests.harness.link import RunningLink
from tests.harness.records import NewRecord
from tests.harness.waiting import eventually

pytestmark = pytest.mark.broker

PARTITIONS = 4


@pytest.fixture
def scene(kafka4: KafkaCluster, kafka4_second: KafkaCluster, topic_name: str) -> Scene:
    return Scene(kafka4, kafka4_second, topic_name)


def test_a_cutover_waits_commits_and_proves(scene: Scene, tmp_path: Path) -> None:
    """A consumer that is still at work on the source, and a link that is a little behind."""
    scene.make_topics(partitions=2, records=100)
    scene.write_lane(0, 30)
    scene.write_lane(1, 100)
    with consuming(scene.source, scene.group, scene.topic, records=10) as (consumer, _):
        consumer.commit(
            offsets=[TopicPartition(scene.topic, 0, 42, "a"), TopicPartition(scene.topic, 1, 9)], asynchronous=False
        )
        code, _, errors = scene.cutover(tmp_path, scene.group, "--timeout", "0")
        assert (code, scene.there()) == (3, {})
        assert "has members on us (Stable)" in errors
        late = threading.Timer(2, consumer.close)
        late.start()
        catches_up = threading.Timer(4, scene.write_lane, (0, 100))
        catches_up.start()
        code, found, errors = scene.cutover(tmp_path, scene.group)
        late.join()
        catches_up.join()
    assert code == 0, errors
    assert f"{scene.group}: 1 of 2 partitions are ready; {scene.topic}-0: not yet replicated to 42" in errors
    (group,) = found["groups"]
    rows = [
        (row["partition"], row["source_offset"], row["target_offset"], row["read_back"], row["verdict"])
        for row in group["partitions"]
    ]
    assert rows == [(0, 42, 49, 49, "proven"), (1, 9, 16, 16, "proven")]
    assert scene.there() == {0: (49, "a\0", -1), 1: (16, "", -1)}
    with consuming(scene.target, scene.group, scene.target_topic, records=58 + 91) as (_, read):
        assert sorted(read) == [(0, at) for at in range(49, 107)] + [(1, at) for at in range(16, 107)]


def test_a_cutover_waits_for_offsets_in_a_transaction(scene: Scene, tmp_path: Path) -> None:
    scene.make_topics(partitions=1, records=100)
    scene.write_lane(0, 100)
    scene.commit(10)
    producer = Producer({"bootstrap.servers": scene.source.bootstrap, "transactional.id": scene.topic})
    producer.init_transactions(TIMEOUT_S)
    with consuming(scene.source, scene.group, scene.topic) as (consumer, _):
        producer.begin_transaction()
        offsets = [TopicPartition(scene.topic, 0, 20)]
        producer.send_offsets_to_transaction(offsets, consumer.consumer_group_metadata(), TIMEOUT_S)
    code, _, errors = scene.cutover(tmp_path, scene.group, "--timeout", "0")
    assert (code, scene.there()) == (3, {})
    assert "UNSTABLE_OFFSET_COMMIT" in errors
    producer.commit_transaction(TIMEOUT_S)
    assert scene.cutover(tmp_path, scene.group)[0] == 0
    assert scene.there()[0][0] == 27


def test_what_a_cutover_cannot_do_it_says(scene: Scene, tmp_path: Path) -> None:
    scene.make_topics(partitions=1, records=100)
    scene.write_lane(0, 100)
    scene.commit(10)
    other = f"other-{scene.topic}"
    create_topic(scene.source, other)
    scene.ask("us", lambda admin: admin.commit(scene.group, {(other, 0): Committed(1)}))
    code, found, _ = scene.cutover(tmp_path, scene.group, f"{scene.group}-none", "--dry-run")
    assert code == 3
    assert [group["problem"] for group in found["groups"]] == ["", "there is no such group on us"]
    verdicts = {row["topic"]: row["verdict"] for row in found["groups"][0]["partitions"]}
    assert verdicts == {scene.topic: "ready", other: "not carried"}
    assert scene.there() == {}
    command = [sys.executable, "-m", "replicator", "cutover", str(scene.write_file(tmp_path)), scene.group]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 3
    assert f"{scene.group}: {other}-0: not carried: the link does not carry this topic" in done.stdout
    assert "0 of 1 group moved" in done.stdout
    assert scene.there()[0][0] == 17
    with consuming(scene.target, scene.group, scene.target_topic):
        code, found, _ = scene.cutover(tmp_path, scene.group)
        assert code == 3
        assert found["groups"][0]["problem"] == "active on target: it has members on eu (Stable)"


# ---- a link at work ----


class Load:
    """Numbers written to every partition of a topic, one after the other, as long as the block runs."""

    def __init__(self, cluster: KafkaCluster, topic: str, partitions: int) -> None:
        self.written: list[int] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write, args=(cluster, topic, partitions), name=f"writes {topic}")

    def _write(self, cluster: KafkaCluster, topic: str, partitions: int) -> None:
        while not self._ended.is_set():
            numbers = range(len(self.written), len(self.written) + 100)
            witness.produce(
                cluster.bootstrap, topic, [NewRecord(number % partitions, None, b"%d" % number) for number in numbers]
            )
            self.written += numbers

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._ended.set()
        self._thread.join()


class Member:
    """A consumer of a group. What it reads counts as `read` once it is committed: else somebody reads it again."""

    def __init__(self, cluster: KafkaCluster, group: str, topic: str) -> None:
        properties = {
            "bootstrap.servers": cluster.bootstrap,
            "group.id": group,
            "auto.offset.reset": "error",  # a partition without a committed offset would show
            "enable.auto.commit": False,
            "log_level": 0,
        }
        self.read: list[int] = []
        self.consumer = Consumer(properties)
        self.consumer.subscribe([topic])

    def work(self) -> None:
        """A few records, read and committed; none if the group is being shared out anew."""
        messages = self.consumer.consume(500, 0.2)
        assert all(message.error() is None for message in messages)
        ends = {message.partition(): message for message in messages}
        offsets = [TopicPartition(last.topic(), part, last.offset() + 1) for part, last in ends.items()]
        try:
            if offsets:
                self.consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException:
            return
        self.read += [int(message.value()) for message in messages if message.value() != b"foreign"]


def close(members: list[Member]) -> None:
    for member in members:
        member.consumer.close()


def work_until(members: list[Member], count: int) -> list[int]:
    """What they have read together, at least so much."""

    def have_read() -> bool:
        for member in members:
            member.work()
        return sum(len(member.read) for member in members) >= count

    eventually(have_read, f"{count} records", timeout_s=60)
    return [number for member in members for number in member.read]


def run_link(scene: Scene) -> RunningLink:
    options = {**scene.file["links"][0], "name": scene.topic, "shards": SHARDS, "refresh_topics_ms": 500}
    options |= {"policies": [{"foreign_writes": "tolerate"}], "checkpoint_interval_ms": 200}
    options["groups"] = {**options["groups"], "sync_interval_ms": 300}
    scene.file["links"][0] = options
    scene.file["workers"] = 1
    return RunningLink(scene.file)


@contextmanager
def link_under_load(scene: Scene) -> Iterator[Load]:
    """The link runs, producers never stop, and somebody else's records in the target's log make offsets differ."""
    create_topic(scene.source, scene.topic, PARTITIONS)
    for partition in range(PARTITIONS):
        scene.commit(0, partition)
    with run_link(scene) as link, Load(scene.source, scene.topic, PARTITIONS) as load:
        for partition in range(PARTITIONS):
            eventually(lambda at=partition: (scene.topic, at) in link.lanes, "a lane")
            link.wait_for_state(LaneState.TAILING, scene.topic, partition)
        foreign = [NewRecord(number % PARTITIONS, None, b"foreign") for number in range(10)]
        witness.produce(scene.target.bootstrap, scene.target_topic, foreign)
        yield load


def test_a_planned_cutover_under_load_skips_nothing_and_reads_nothing_again(
    kafka4: KafkaCluster, kafka4_second: KafkaCluster, topic_name: str, tmp_path: Path
) -> None:
    scene = Scene(kafka4, kafka4_second, topic_name, own_topics=False)
    with link_under_load(scene) as load:
        members = [Member(scene.source, scene.group, scene.topic) for _ in range(2)]
        before = work_until(members, 3_000)
        close(members)
        code, found, errors = scene.cutover(tmp_path, scene.group)
        assert code == 0, errors
        members = [Member(scene.target, scene.group, scene.target_topic) for _ in range(2)]
        work_until(members, 3_000)
    after = work_until(members, len(load.written) - len(before))
    close(members)
    shifts = {row["target_offset"] - row["source_offset"] for row in found["groups"][0]["partitions"]}
    assert shifts & {2, 3}, "the offsets differ"
    assert not {*before} & {*after}, "read again"
    assert sorted([*before, *after]) == load.written, "skipped, or read twice on one side"


def test_an_unplanned_move_reads_again_only_what_came_after_the_last_sync(
    kafka4: KafkaCluster, kafka4_second: KafkaCluster, topic_name: str
) -> None:
    """The group's consumers end without a word and begin on the target at once."""
    scene = Scene(kafka4, kafka4_second, topic_name, own_topics=False)
    with link_under_load(scene) as load:
        members = [Member(scene.source, scene.group, scene.topic)]
        synced = work_until(members, 3_000)
        eventually(lambda: is_synced(scene), "a sync of all that was read", TIMEOUT_S)
        before = work_until(members, len(synced) + 2_000)
        close(members)
        members = [Member(scene.target, scene.group, scene.target_topic)]
        work_until(members, 3_000)
    after = work_until(members, len(load.written) - len(before))
    while len({*before, *after}) < len(load.written):
        after = work_until(members, len(after) + 1)
    close(members)
    assert not {*synced} & {*after}, "read again, though it had been synced"
    assert len(after) == len({*after})
    assert {*before, *after} == {*load.written}


def is_synced(scene: Scene) -> bool:
    """Whether the link says that it has committed just what the source group has."""
    reader = StateReader(scene.config.clusters["eu"], scene.link.name)
    try:
        reader.catch_up()
    finally:
        reader.close()
    record = reader.groups.get(scene.group)
    here = {part: offset for part, (offset, _, _) in offsets_of(scene.source, scene.group, scene.topic).items()}
    return record is not None and {row.partition: row.written_source for row in record.topics[scene.topic]} == here
