"""`replicator run` as an operator has it: a process of its own, told to stop by signals, started again later."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from confluent_kafka import ConsumerGroupType
from confluent_kafka.admin import AdminClient

from replicator.state.records import group_id
from tests.broker.admin import create_topic, end_offset
from tests.harness import witness
from tests.harness.kafka import KafkaCluster
from tests.harness.link import RunningLink, link_config
from tests.harness.records import NewRecord
from tests.harness.waiting import eventually
from tests.harness.wire import WireError

pytestmark = pytest.mark.broker

HOME = Path(__file__).resolve().parents[2]
PROGRAM = ("-m", "replicator")
OFTEN = ("-c", "from replicator.cli import main, run; run.STATUS_S = 0.2; main.main()")
TIMEOUT_S = 60
PARTITIONS = 3


class Scene:
    """Two clusters, a topic on the source, and the link file of a link that carries it."""

    def __init__(self, source: KafkaCluster, target: KafkaCluster, topic: str, folder: Path) -> None:
        self.source, self.target, self.topic = source, target, topic
        create_topic(source, topic, PARTITIONS)
        self.config = link_config(source.bootstrap, target.bootstrap, re.escape(topic), workers=2)
        self.file = folder / "link.yaml"
        self.file.write_text(json.dumps(self.config))
        self.link = self.config["links"][0]["name"]

    def produce(self, count: int) -> None:
        records = [NewRecord(n % PARTITIONS, b"%d" % n, b"value %d" % n) for n in range(count)]
        witness.produce(self.source.bootstrap, self.topic, records)

    def wait_until_copied(self, count: int) -> None:
        def copied() -> bool:
            with contextlib.suppress(WireError):  # not made yet
                return sum(end_offset(self.target, self.topic, part) for part in range(PARTITIONS)) == count
            return False

        eventually(copied, f"{count} records on the target", TIMEOUT_S)


@pytest.fixture
def scene(kafka4: KafkaCluster, kafka4_second: KafkaCluster, topic_name: str, tmp_path: Path) -> Scene:
    return Scene(kafka4, kafka4_second, topic_name, tmp_path)


class Running:
    """`replicator run` in a process of its own."""

    def __init__(self, scene: Scene, *options: str, program: Sequence[str] = PROGRAM) -> None:
        command = [sys.executable, *program, "run", str(scene.file), *options]
        self.process = subprocess.Popen(command, cwd=HOME, stderr=subprocess.PIPE, text=True)

    def children(self) -> list[int]:
        listed = subprocess.run(["ps", "-A", "-o", "ppid=,pid="], capture_output=True, text=True, check=True)
        pairs = (line.split() for line in listed.stdout.splitlines())
        return [int(pid) for parent, pid in pairs if int(parent) == self.process.pid]

    def end(self, *signals: int) -> list[str]:
        """Sends the signals; returns the log when the process has ended."""
        for number in signals:
            os.kill(self.process.pid, number)
        return self.process.communicate(timeout=TIMEOUT_S)[1].splitlines()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_drains_on_the_first_signal(scene: Scene, number: int) -> None:
    running = Running(scene, "--json-log", "--verbose")
    scene.produce(3000)
    scene.wait_until_copied(3000)
    workers = running.children()
    log = [json.loads(line) for line in running.end(number)]
    assert running.process.returncode == 0
    assert len(workers) == 2
    assert not any(map(alive, workers))
    messages = [line["message"] for line in log]
    assert f"started: {scene.link} (source -> target), 3 lanes, 2 workers" in messages
    assert f"{scene.link} {scene.topic}-0: copying" in messages
    assert messages[-1] == f"{signal.Signals(number).name}: stopped in order"
    assert not [line for line in log if line["level"] in ("warning", "error")]


def test_it_ends_at_once_on_the_second_signal(scene: Scene) -> None:
    running = Running(scene)
    assert running.process.stderr
    while "started" not in running.process.stderr.readline():
        pass
    workers = running.children()
    assert len(workers) == 2
    log = running.end(signal.SIGTERM, signal.SIGINT)
    assert running.process.returncode in (128 + signal.SIGTERM, 128 + signal.SIGINT)
    assert not any("Traceback" in line for line in log)
    eventually(lambda: not any(map(alive, workers)), "the workers' end")


def test_it_says_every_now_and_then_how_it_goes(scene: Scene) -> None:
    scene.produce(3000)
    running = Running(scene, "--json-log", program=OFTEN)
    assert running.process.stderr
    lines = map(json.loads, iter(running.process.stderr.readline, ""))
    status = next(line for line in lines if line.get("records") == 3000)
    assert status["message"].startswith("3 lanes: ")
    assert (sum(status["lanes"].values()), status["lag_records"]) == (3, 0)
    assert status["records_per_s"] > 0
    running.end(signal.SIGTERM)
    assert running.process.returncode == 0


def test_it_goes_on_where_it_was_when_it_is_started_again(scene: Scene) -> None:
    """Also after the whole of it was killed: what the target holds already is not sent once more."""
    for round_number, last_signals in enumerate([(signal.SIGTERM,), (signal.SIGKILL,), (signal.SIGTERM,)], 1):
        running = Running(scene)
        scene.produce(3000)
        scene.wait_until_copied(3000 * round_number)
        workers = running.children()
        running.end(*last_signals)
        eventually(lambda gone=workers: not any(map(alive, gone)), "the workers' end")
    copied = witness.dump(scene.target.bootstrap, scene.topic)
    assert sum(map(len, copied.values())) == 9000
    assert copied == witness.dump(scene.source.bootstrap, scene.topic)


def test_shards_by_kafkas_new_group_protocol(scene: Scene) -> None:
    """KIP-848: the brokers share the shards out themselves."""
    scene.config["links"][0]["group_protocol"] = "consumer"
    admin = AdminClient({"bootstrap.servers": scene.target.bootstrap})
    for round_number in (1, 2):
        scene.produce(3000)
        with RunningLink(scene.config) as link:
            ends = {(scene.topic, part): 1000 * round_number for part in range(PARTITIONS)}
            link.wait_until_copied(ends)
            listed = admin.list_consumer_groups().result(30)
    kinds = {group.group_id: group.type for group in listed.valid}
    assert kinds.get(group_id(scene.link)) is ConsumerGroupType.CONSUMER, (kinds, listed.errors)
    assert witness.dump(scene.target.bootstrap, scene.topic) == witness.dump(scene.source.bootstrap, scene.topic)
