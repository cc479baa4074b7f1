"""What a link needs to be allowed, and what it does when it is not: it reads the source, and leaves no trace there."""

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from confluent_kafka.admin import AclOperation, ResourceType

from replicator.cli.main import main
from replicator.data.states import LaneState
from tests.broker.guarded import GuardedCluster, guarded_cluster
from tests.fault.scene import Journal, wait_for_pause
from tests.harness.link import RunningLink, link_config
from tests.harness.waiting import eventually

pytestmark = pytest.mark.broker

TOPIC, GROUP, CLUSTER = ResourceType.TOPIC, ResourceType.GROUP, ResourceType.BROKER
NO_SETTINGS = "not allowed to read its settings (DESCRIBE_CONFIGS): made with the target's own"
AFTER_PAUSE_S = 60  # a lane that is not allowed to asks again every 30 s


@pytest.fixture(scope="module")
def source() -> Iterator[GuardedCluster]:
    with guarded_cluster() as cluster:
        cluster.allow((TOPIC, "*", AclOperation.READ), (TOPIC, "*", AclOperation.DESCRIBE))
        cluster.allow((GROUP, "*", AclOperation.DESCRIBE))
        yield cluster


@pytest.fixture(scope="module")
def target() -> Iterator[GuardedCluster]:
    with guarded_cluster() as cluster:
        cluster.allow((TOPIC, "*", AclOperation.ALL), (GROUP, "*", AclOperation.ALL))
        cluster.allow((CLUSTER, "kafka-cluster", AclOperation.ALL))
        yield cluster


@contextmanager
def unchanged(cluster: GuardedCluster) -> Iterator[None]:
    before = cluster.contents()
    yield
    assert cluster.contents() == before


class Link:
    """Everything that a link can do is switched on, but what writes to the source."""

    def __init__(
        self,
        source: GuardedCluster,
        target: GuardedCluster,
        topic: str,
        folder: Path,
        offset_syncs: str = "target",
    ) -> None:
        options = {
            "refresh_topics_ms": 200,
            "groups": {"include": [f"{topic}.*"], "sync_interval_ms": 500},
            "mm2_topics": {"checkpoints": True, "heartbeats": True, "offset_syncs": offset_syncs, "interval_ms": 500},
        }
        plain = source.cluster.bootstrap, target.cluster.bootstrap
        self.config = link_config(*plain, re.escape(topic) + ".*", link=options)
        self.file = folder / "link.yaml"
        self.file.write_text(json.dumps(self.config))

    def command(self, *words: str) -> tuple[int, Any]:
        """Exit code, and the JSON on stdout."""
        done = CliRunner().invoke(main, [words[0], str(self.file), *words[1:], "--json"])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, json.loads(done.stdout or "null")

    def lags(self) -> list[int]:
        _, found = self.command("status")
        return [lane["lag_records"] for lane in found["links"][0]["lanes"]]

    def states(self) -> dict[str, tuple[str, str]]:
        """topic -> state and reason of partition 0, for whoever asks from elsewhere."""
        _, found = self.command("status")
        return {lane["topic"]: (lane["state"], lane["reason"]) for lane in found["links"][0]["lanes"]}


def test_to_read_and_describe_is_enough(
    source: GuardedCluster,
    target: GuardedCluster,
    topic_name: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The copy, new topics and partitions, a restart, groups' offsets, MirrorMaker 2's topics, and the commands."""
    late, group = f"{topic_name}-late", f"{topic_name}-group"
    refused = source.refusals(), target.refusals()
    source.create_topic(topic_name, 2, retention_ms="777600000")
    source.produce(topic_name, 2_000, partitions=2)
    source.commit(group, {(topic_name, 0): 300, (topic_name, 1): 400})
    link = Link(source, target, topic_name, tmp_path)
    with unchanged(source), RunningLink(link.config) as running:
        running.wait_until_copied({(topic_name, 0): 1_000, (topic_name, 1): 1_000})
        due = {(topic_name, 0): 300, (topic_name, 1): 400}
        eventually(lambda: offsets_in(target, group) == due, "the group's offsets on the target")
        mm2 = {"heartbeats", "source.checkpoints.internal", "mm2-offset-syncs.source.internal"}
        eventually(lambda: mm2 <= target.contents()["topics"].keys(), "MirrorMaker 2's topics")
    with RunningLink(link.config) as running:
        source.create_topic(late, 2)
        source.produce(late, 500, partitions=2)
        source.add_partitions(topic_name, 3)
        source.produce(topic_name, 900, partitions=3, word="more")
        with unchanged(source):
            ends = {(topic_name, 0): 1_300, (topic_name, 1): 1_300, (topic_name, 2): 300, (late, 0): 250}
            running.wait_until_copied(ends)
            eventually(lambda: link.lags() == [0] * 5, "checkpoints of everything")
            assert link.command("status")[0] == 0
            check_commands(link, group)
    for topic in (topic_name, late):
        assert target.read(topic) == source.read(topic)
    assert sum(map(len, target.read(late).values())) == 500
    optional = {("DESCRIBE_CONFIGS", f"Topic:LITERAL:{topic}") for topic in (topic_name, late)}
    assert (source.refusals() - refused[0], target.refusals() - refused[1]) == (optional, set())
    assert warnings_of(caplog) == [f"source {topic}: {NO_SETTINGS}" for topic in (topic_name, late)]
    assert capfd.readouterr().err == "", "the workers have nothing to say"


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    ours = [record for record in caplog.records if record.name == "replicator"]
    return [record.getMessage() for record in ours if record.levelno >= logging.WARNING]


def offsets_in(cluster: GuardedCluster, group: str) -> dict[tuple[str, int], int]:
    return {part: offset for part, (offset, _) in cluster.contents()["groups"].get(group, {}).items()}


def check_commands(link: Link, group: str) -> None:
    code, found = link.command("verify", "--full")
    assert (code, found["records"]) == (0, 2_000 + 900 + 500)
    code, found = link.command("cutover", group, "--dry-run")
    assert (code, [row["verdict"] for row in found["groups"][0]["partitions"]]) == (0, ["ready", "ready"])


def test_what_would_be_written_to_the_source_needs_more(
    source: GuardedCluster,
    target: GuardedCluster,
    topic_name: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The one option that says so. Without the right it does not work, and nothing else suffers."""
    source.create_topic(topic_name)
    source.produce(topic_name, 100)
    link = Link(source, target, topic_name, tmp_path, offset_syncs="source")
    with unchanged(source), RunningLink(link.config) as running:
        running.wait_until_copied({(topic_name, 0): 100})
        refused = ("CREATE", "Topic:LITERAL:mm2-offset-syncs.target.internal")
        eventually(lambda: refused in source.refusals(), "a refusal")
        eventually(lambda: len(warnings_of(caplog)) == 2, "words about it")
        running.wait_for_state(LaneState.TAILING, topic_name)
    assert re.search("MirrorMaker 2's topics: .*AUTHORIZATION", warnings_of(caplog)[1])


def test_rights_that_are_taken_away_for_a_while(
    source: GuardedCluster, target: GuardedCluster, topic_name: str, tmp_path: Path
) -> None:
    """Each lane says what it may not do, the others go on, and so does it when it may again."""
    unread, unseen, unwritten, free = topics = [
        f"{topic_name}-{word}" for word in ("unread", "unseen", "unwritten", "free")
    ]
    for topic in topics:
        source.create_topic(topic)
        source.produce(topic, 500)
    link = Link(source, target, topic_name, tmp_path)
    with RunningLink(link.config) as running, Journal() as journal:
        running.wait_until_copied({(topic, 0): 500 for topic in topics})
        source.deny((TOPIC, unread, AclOperation.READ), (TOPIC, unseen, AclOperation.ALL))
        target.deny((TOPIC, unwritten, AclOperation.WRITE))
        for topic in topics:
            source.produce(topic, 500, word="more")
        reasons = {topic: wait_for_pause(running, topic) for topic in topics if topic != free}
        side = {unread: "source", unseen: "source", unwritten: "target"}
        assert all(reasons[topic].startswith(f"{where}: TOPIC_AUTHORIZATION_FAILED: ") for topic, where in side.items())
        running.wait_until_copied({(free, 0): 1_000})
        assert running.state(free) is LaneState.TAILING
        told = {topic: ("paused", reason) for topic, reason in reasons.items()} | {free: ("tailing", "")}
        eventually(lambda: link.states() == told, "a status that says so")
        assert link.command("status")[0] == 3
        source.forgive()
        target.forgive()
        running.wait_until_copied({(topic, 0): 1_000 for topic in topics}, AFTER_PAUSE_S)
        assert not journal.tells("paused", free)
    for topic in topics:
        assert target.read(topic) == source.read(topic)
        assert len(target.read(topic)[0]) == 1_000
