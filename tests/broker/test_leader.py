"""Several supervisors run one link: its shards are shared out, and what is done once for all is done by one of them."""

import contextlib
import json
import logging
import os
import re
import signal
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from replicator.state.records import events_topic
from tests.broker.admin import create_topic, end_offset, partition_count
from tests.broker.copies import same_batches, stored_batches
from tests.fault.chaos_scene import Supervised
from tests.fault.scene import Pair, Traffic, assert_same_log, backlog, log_ends
from tests.harness.java import JavaWitness
from tests.harness.kafka import KafkaCluster
from tests.harness.link import UNMERGED, RunningLink, link_config
from tests.harness.waiting import eventually
from tests.harness.wire import WireError

pytestmark = pytest.mark.broker

PARTITIONS = 8
NEVER_MS = 86_400_000  # between two looks for topics
TIMEOUT_S = 60

Lane = tuple[str, int]
Event = dict[str, Any]


@pytest.fixture
def pair(kafka4: KafkaCluster, kafka4_second: KafkaCluster) -> Pair:
    return Pair(kafka4, kafka4_second)


def config(pair: Pair, topic: str, **link: Any) -> dict[str, Any]:
    options = {"shards": PARTITIONS, **link}
    link = {**UNMERGED, **options}
    return link_config(pair.source.bootstrap, pair.target.bootstrap, re.escape(topic) + ".*", link=link)


def here(link: RunningLink) -> set[Lane]:
    """The lanes that a worker of this supervisor runs."""
    return {(info.spec.topic, info.spec.partition) for info in link.supervisor.lanes if info.is_here}


def leads(link: RunningLink) -> bool:
    (control,) = link.supervisor._links.values()
    return control.leads


def look(link: RunningLink) -> bool:
    """One look for topics; False if some wait for the leader."""
    (control,) = link.supervisor._links.values()
    return bool(link._call(link.supervisor._look(control)))


def wait_until_shared(*links: RunningLink, lanes: set[Lane]) -> None:
    """Each has some, and every lane is with exactly one."""

    def shared() -> bool:
        shares = [here(link) for link in links]
        return all(shares) and sum(map(len, shares)) == len(lanes) and set.union(*shares) == lanes

    eventually(shared, "the lanes to be shared out", TIMEOUT_S)
    assert [leads(link) for link in links].count(True) == 1


def wait_until_copied(pair: Pair, ends: dict[Lane, int]) -> None:
    """Whoever copies it."""

    def copied() -> bool:
        with contextlib.suppress(WireError):  # not made yet
            return all(end_offset(pair.target, *lane) == end for lane, end in ends.items())
        return False

    eventually(copied, f"copied to {ends}", TIMEOUT_S)


def events_of(pair: Pair, java: JavaWitness, link: str) -> dict[Lane, list[Event]]:
    """The link's events by lane, in their order, as Kafka's own client finds them."""
    found: defaultdict[Lane, list[Event]] = defaultdict(list)
    for record in java.dump(pair.target.bootstrap, events_topic(link))[0]:
        event = json.loads(record.value or b"")
        assert json.loads(record.key or b"") == {"topic": event["topic"], "partition": event["partition"]}
        found[event["topic"], event["partition"]].append(event)
    return dict(found)


def check_one_after_the_other(events: list[Event]) -> int:
    """That a lane was with one worker at a time, and how many times it was given to one. In good order, that is."""
    owner, owners = "", 0
    for event in sorted(events, key=lambda each: each["at_ms"]):
        assert event["kind"] in ("assigned", "placed", "drained"), event
        if event["kind"] == "assigned":
            assert not owner, f"{event} while worker {owner} has it"
            owner, owners = event["worker"], owners + 1
        else:
            assert event["worker"] == owner
        if event["kind"] == "drained":
            owner = ""
    assert not owner
    return owners


def test_supervisors_that_come_and_go(
    pair: Pair,
    java4: JavaWitness,
    topic_name: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Lanes move, in good order, while records are written all the time."""
    for cluster in (pair.source, pair.target):
        create_topic(cluster, topic_name, PARTITIONS)  # a target topic that was just made may be led by nobody
    both = config(pair, topic_name)
    lanes = {(topic_name, part) for part in range(PARTITIONS)}
    first, second, again = (RunningLink(both) for _ in range(3))
    with Traffic(pair.source, topic_name, range(PARTITIONS), records_per_s=1_000) as traffic, ExitStack() as left:
        left.enter_context(first)
        eventually(lambda: here(first) == lanes, "all lanes with the first", TIMEOUT_S)
        with second:
            wait_until_shared(first, second, lanes=lanes)
        eventually(lambda: here(first) == lanes, "all lanes with the first again", TIMEOUT_S)
        assert leads(first)
        with again:
            wait_until_shared(first, again, lanes=lanes)
            left.close()
            eventually(lambda: here(again) == lanes, "all lanes with the other", TIMEOUT_S)
            assert leads(again)
            wait_until_copied(pair, traffic.finish())
    assert_same_log(pair, topic_name, records_min=1_000)
    for part in range(PARTITIONS):
        both_sides = (stored_batches(cluster, topic_name, part) for cluster in (pair.source, pair.target))
        assert same_batches(*both_sides) > 10
    events = events_of(pair, java4, both["links"][0]["name"])
    assert events.keys() == lanes
    owners = [check_one_after_the_other(events[lane]) for lane in sorted(lanes)]
    assert min(owners) >= 2
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert capfd.readouterr().err == "", "the workers have nothing to say"


def test_a_new_topic_waits_for_the_leader(pair: Pair, topic_name: str) -> None:
    """The other one sees it first."""
    first_topic, late = f"{topic_name}-first", f"{topic_name}-late"
    create_topic(pair.source, first_topic, PARTITIONS)
    both = config(pair, topic_name, refresh_topics_ms=NEVER_MS)
    lanes = {(first_topic, part) for part in range(PARTITIONS)}
    with RunningLink(both) as one, RunningLink(both) as two:
        wait_until_shared(one, two, lanes=lanes)
        leader, other = (one, two) if leads(one) else (two, one)
        create_topic(pair.source, late, PARTITIONS)
        backlog(pair.source, late, 4_000, PARTITIONS)
        assert not look(other)
        assert partition_count(pair.target, late) == 0
        assert not any(topic == late for topic, _ in other.lanes)
        assert look(leader)
        assert partition_count(pair.target, late) == PARTITIONS
        assert look(other)
        lanes |= {(late, part) for part in range(PARTITIONS)}
        wait_until_shared(one, two, lanes=lanes)
        wait_until_copied(pair, log_ends(pair.source, late, range(PARTITIONS)))
    assert_same_log(pair, late, records_min=4_000)


class Fleet:
    """Supervisors as processes of their own, which never end by themselves."""

    def __init__(self, folder: Path, config: dict[str, Any], count: int) -> None:
        file = folder / "link.yaml"
        file.write_text(json.dumps(config))
        self.all = [Supervised(file, folder / f"{number}.log") for number in range(count)]

    def __enter__(self) -> "Fleet":
        for each in self.all:
            each.tend()
        return self

    def __exit__(self, *_exc: object) -> None:
        codes = [each.end() for each in self.all if each.process]
        assert set(codes) == {0}, self.logs()

    def logs(self) -> str:
        return "\n".join(each.log.read_text() for each in self.all)

    def leader(self) -> Supervised:
        """Of those that run, the one that has said so, and not taken it back. Waits until there is one."""

        def find() -> list[Supervised]:
            return [each for each in self.all if each.process and last_word(each.log) == "leads"]

        eventually(lambda: len(find()) == 1, "one leader", TIMEOUT_S)
        return find()[0]


def last_word(log: Path) -> str:
    said = re.findall(r"this supervisor (leads|does not lead) it now", log.read_text())
    return said[-1] if said else ""


def kill_all_of(supervisor: Supervised) -> set[str]:
    """As a machine dies; returns its workers' process ids."""
    workers = supervisor.workers()
    assert workers
    assert supervisor.process
    os.kill(supervisor.process.pid, signal.SIGSTOP)  # so that it starts no others meanwhile
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    supervisor.process.kill()
    supervisor.process.wait()
    supervisor.process = None
    return set(map(str, workers))


def test_the_leader_dies(pair: Pair, java4: JavaWitness, topic_name: str, tmp_path: Path) -> None:
    """Supervisor and worker at once, in mid-copy: another leads, makes the topics that are new, and copies all."""
    first_topic, late = f"{topic_name}-first", f"{topic_name}-late"
    create_topic(pair.source, first_topic, PARTITIONS)
    both = config(pair, topic_name, refresh_topics_ms=500)
    with Fleet(tmp_path, both, 2) as fleet, Traffic(pair.source, first_topic, range(PARTITIONS)) as traffic:
        eventually(lambda: all(": copying" in each.log.read_text() for each in fleet.all), "both at work", TIMEOUT_S)
        dead = kill_all_of(fleet.leader())
        create_topic(pair.source, late, 2)
        backlog(pair.source, late, 2_000, 2)
        leader = fleet.leader()
        wait_until_copied(pair, log_ends(pair.source, late, range(2)))
        assert f"created topic {late}" in leader.log.read_text()
        wait_until_copied(pair, traffic.finish())
        alive = set(map(str, leader.workers()))
    assert_same_log(pair, late, records_min=2_000)
    assert_same_log(pair, first_topic, records_min=2_000)
    events = events_of(pair, java4, both["links"][0]["name"])
    workers = {lane: {event["worker"] for event in events[lane] if event["kind"] == "placed"} for lane in events}
    assert all(workers[late, part] == alive for part in range(2))
    assert all(workers[first_topic, part] & alive for part in range(PARTITIONS))
    assert set.union(*workers.values()) == dead | alive
    assert "Traceback" not in fleet.logs()
