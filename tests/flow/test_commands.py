"""`replicator copy` between two embedded clusters: exit codes, reports, signals."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from confluent_kafka import Consumer, Producer, TopicPartition

import replicator
from replicator.cli import copy as copy_command
from replicator.cli.copy import CopyJob
from replicator.cli.main import main
from replicator.control.embedded import EmbeddedCluster
from replicator.data.verify import Claim, LaneVerdict, verify_lanes

HOME = Path(replicator.__file__).parents[1]
TIMEOUT_S = 60
PARTITIONS = 3
PROGRAM = ("-m", "replicator")
OFTEN = ("-c", "from replicator.cli import main, run; run.STATUS_S = 0.2; main.main()")


class Pair:
    """Two clusters with the same topics, and what an ordinary client does to them."""

    def __init__(self, source: EmbeddedCluster, target: EmbeddedCluster) -> None:
        self.source = source
        self.target = target
        for topic in ("orders", "clicks", "__internal"):
            source.create_topic(topic, PARTITIONS)
            target.create_topic(topic, PARTITIONS)

    def produce(self, cluster: EmbeddedCluster, topic: str, count: int) -> None:
        producer = Producer({"bootstrap.servers": cluster.bootstrap_servers, "log_level": 0})
        for number in range(count):
            producer.produce(topic, b"value %d" % number, key=b"%d" % number, partition=number % PARTITIONS)
            producer.poll(0)
        assert producer.flush(TIMEOUT_S) == 0

    def ends(self, cluster: EmbeddedCluster, topic: str) -> list[int]:
        consumer = Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": "test", "log_level": 0})
        try:
            parts = [TopicPartition(topic, index) for index in range(PARTITIONS)]
            return [consumer.get_watermark_offsets(part, timeout=TIMEOUT_S)[1] for part in parts]
        finally:
            consumer.close()

    def arguments(self, *more: str) -> list[str]:
        ends = ["--from", self.source.bootstrap_servers, "--to", self.target.bootstrap_servers]
        return ["copy", *ends, "--workers", "1", *more]

    def copy(self, *more: str) -> Result:
        result = CliRunner().invoke(main, self.arguments(*more))
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result


@pytest.fixture
def pair() -> Iterator[Pair]:
    with EmbeddedCluster() as source, EmbeddedCluster() as target:
        yield Pair(source, target)


# ---- copy ----


def test_copy_verifies_and_says_so(pair: Pair) -> None:
    pair.produce(pair.source, "orders", 3000)
    pair.produce(pair.source, "clicks", 600)
    pair.produce(pair.source, "__internal", 6)
    result = pair.copy("--topics", ".*")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].startswith("3,600 records (")
    assert "copied and verified" in result.stdout
    assert "__internal" not in result.stdout
    assert pair.ends(pair.target, "orders") == [1000] * PARTITIONS
    assert pair.ends(pair.target, "clicks") == [200] * PARTITIONS
    assert pair.ends(pair.target, "__internal") == [0] * PARTITIONS


def test_copy_as_json_in_a_process_of_its_own(pair: Pair) -> None:
    pair.produce(pair.source, "orders", 3000)
    command = [sys.executable, *PROGRAM, *pair.arguments("--topics", "orders", "--json")]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert (report["outcome"], report["records"]) == ("verified", 3000)
    assert report["bytes"] > 3000 * len("value 1")
    (topic,) = report["topics"]
    assert (topic["topic"], topic["partitions"], topic["problems"]) == ("orders", PARTITIONS, [])


def test_copy_without_verification_compares_nothing(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.produce(pair.source, "orders", 300)
    monkeypatch.setattr(copy_command, "verify_lanes", None)
    report = json.loads(pair.copy("--topics", "orders", "--json", "--no-verify").stdout)
    assert (report["outcome"], report["records"]) == ("copied", 300)


def test_copy_of_empty_partitions_and_of_none(pair: Pair) -> None:
    report = json.loads(pair.copy("--topics", "orders", "--json").stdout)
    assert (report["outcome"], report["records"]) == ("verified", 0)
    none = pair.copy("--topics", "nope", "--topics", "nope2")
    assert none.exit_code == 1
    assert none.stderr == f"Error: no topic of {pair.source.bootstrap_servers} matches nope or nope2\n"


def test_copy_from_and_until(pair: Pair) -> None:
    pair.produce(pair.source, "orders", 300)
    pair.produce(pair.source, "orders", 300)
    latest = json.loads(pair.copy("--topics", "orders", "--start", "latest", "--json").stdout)
    assert (latest["outcome"], latest["records"]) == ("verified", 0)
    until = json.loads(pair.copy("--topics", "orders", "--until", "100", "--json").stdout)
    assert until["outcome"] == "verified"
    assert 300 <= until["records"] < 600  # whole batches: those that begin before the offset


def test_verification_fails_for_a_record_too_many(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.produce(pair.source, "orders", 300)
    pair.produce(pair.source, "clicks", 300)

    async def tamper_first(claims: Sequence[Claim], *more: Any) -> list[LaneVerdict]:
        pair.produce(pair.target, "orders", 1)
        return await verify_lanes(claims, *more)

    monkeypatch.setattr(copy_command, "verify_lanes", tamper_first)
    result = pair.copy("--topics", ".*")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    where = "the target goes on at offset 100, where the source's copied part has ended"
    assert f"orders-0: differs: {where}" in lines
    assert sum("differs:" in line for line in lines) == 1
    assert [line.split()[-1] for line in lines if line.startswith(("clicks ", "orders "))] == ["verified", "differs"]
    assert "but 1 of 6 partitions did not end well" in lines[-1]


def test_a_target_that_is_not_empty_fails_with_its_reason(pair: Pair) -> None:
    pair.produce(pair.source, "orders", 300)
    pair.produce(pair.target, "orders", 1)
    result = pair.copy("--topics", "orders", "--json")
    report = json.loads(result.stdout)
    assert (result.exit_code, report["outcome"], report["records"]) == (1, "failed", 200)
    (problem,) = report["topics"][0]["problems"]
    assert (problem["partition"], problem["outcome"]) == (0, "failed")
    assert "the target partition is not empty" in problem["reason"]


def test_copy_interrupted_while_it_copies(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.produce(pair.source, "orders", 300)

    async def never_ends(job: CopyJob, progress: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(TIMEOUT_S)

    monkeypatch.setattr(CopyJob, "copy", never_ends)
    result = pair.copy("--topics", "orders")
    assert result.exit_code == 130
    assert result.stdout.splitlines()[-1].startswith("interrupted after ")


def test_copy_interrupted_while_it_verifies_has_copied(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.produce(pair.source, "orders", 300)

    async def never_ends(*ignored: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(TIMEOUT_S)

    monkeypatch.setattr(copy_command, "verify_lanes", never_ends)
    result = pair.copy("--topics", "orders", "--json")
    report = json.loads(result.stdout)
    assert (result.exit_code, report["outcome"], report["records"]) == (143, "interrupted", 300)
    assert [topic["outcome"] for topic in report["topics"]] == ["copied"]
