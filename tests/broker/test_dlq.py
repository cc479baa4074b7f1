"""Dead letters on real brokers: written, read by others, listed, replayed exactly once whatever is killed, purged."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource
from msgspec.structs import replace

from replicator.config.load import load
from replicator.config.models import Config, Link
from replicator.control.dead_letters import DeadLetterTopic, Replays, ensure_dead_letter_topic
from replicator.control.replay import Replay
from replicator.data.dead_letters import CUT_BYTES, IDENTITY, DeadLetter, DeadLetters, letter_headers
from replicator.data.replays import is_replay, replayed_topic
from replicator.errors import ClusterError, ConfigError
from replicator.state.records import LinkKey, LinkRecord, encode, state_topic
from tests.broker.admin import create_topic, start_offset
from tests.harness import tether, witness
from tests.harness.java import JavaWitness
from tests.harness.kafka import KafkaCluster
from tests.harness.records import Dump, NewRecord, Record
from tests.harness.waiting import eventually

pytestmark = pytest.mark.broker

NOW_MS = time.time_ns() // 1_000_000
FAR_AHEAD_MS = NOW_MS + 365 * 86_400_000  # refused by Kafka 4, unless the topic says otherwise


class Scene:
    """A link whose source is nobody's business here, and its target."""

    def __init__(self, target: KafkaCluster, name: str, folder: Path, **dead_letters: Any) -> None:
        self.target, self.name = target, name
        self.file = folder / "link.yaml"
        options = json.dumps(dead_letters)
        self.file.write_text(
            f"""
clusters:
  us: {{bootstrap.servers: "127.0.0.1:1"}}
  eu: {{bootstrap.servers: "{target.bootstrap}"}}
links:
  - {{source: us, target: eu, name: {name}, topics: {{include: [orders]}}, rename: {{template: "{name}.{{topic}}"}},
      dead_letters: {options}}}
"""
        )
        self.config: Config = load(self.file)
        self.link: Link = self.config.links[0]
        self.topic = self.link.dead_letter_topic
        self.copy = self.link.target_topic("orders")

    def ensure(self) -> None:
        asyncio.run(ensure_dead_letter_topic(self.link, self.config.clusters))

    def send(self, *letters: DeadLetter) -> None:
        async def work() -> None:
            sender = DeadLetters(self.link, self.config.clusters["eu"], task=4)
            await asyncio.gather(*(sender.send(letter) for letter in letters))
            await sender.close()

        asyncio.run(work())

    def dump(self, topic: str, isolation: str = "read_committed") -> Dump:
        return witness.dump(self.target.bootstrap, topic, isolation)

    def copied(self, isolation: str = "read_committed") -> list[Record]:
        return [record for records in self.dump(self.copy, isolation).values() for record in records]

    def dlq(self, *arguments: str, answer: str = "") -> tuple[int, str, list[str]]:
        """Exit code, stdout, and the lines of stderr."""
        command, *rest = arguments
        run = [sys.executable, "-m", "replicator", "dlq", command, str(self.file), *rest]
        done = subprocess.run(run, capture_output=True, text=True, timeout=120, check=False, input=answer)
        return done.returncode, done.stdout, done.stderr.splitlines()


@pytest.fixture
def scene(either_kafka: KafkaCluster, topic_name: str, tmp_path: Path) -> Scene:
    made = Scene(either_kafka, topic_name, tmp_path)
    made.ensure()
    create_topic(either_kafka, made.copy, 4)
    return made


def letter(offset: int, **fields: Any) -> DeadLetter:
    made = DeadLetter(
        topic="orders",
        partition=offset % 4,
        offset=offset,
        timestamp_ms=NOW_MS - 1000 + offset,
        key=b"key %d" % offset,
        value=b"value %d" % offset,
        headers=((b"trace", b"%d" % offset), (b"empty", None)),
        reason="the target refused the record",
        error_code=87,
        error_text="One or more records have been rejected",
    )
    return replace(made, **fields)


def plain(record: Record) -> tuple[Any, ...]:
    """Key, value, the record's own headers, and the timestamp."""
    return record.key, record.value, record.headers[:2], record.timestamp


def expected(sent: DeadLetter) -> tuple[Any, ...]:
    return sent.key, sent.value, tuple((name.decode(), value) for name, value in sent.headers), sent.timestamp_ms


# ---- written ----


def test_letters_read_by_others(scene: Scene, java4: JavaWitness) -> None:
    """By librdkafka and by Kafka's own client: key, value, headers and timestamp are the record's."""
    odd = letter(2, key=None, value=None, headers=(), timestamp_ms=FAR_AHEAD_MS)
    old = letter(3, timestamp_ms=1, value=os.urandom(2 << 20))  # larger than any topic takes by default
    letters = [letter(1), odd, old]
    scene.send(*letters)
    found = scene.dump(scene.topic)
    assert found == java4.dump(scene.target.bootstrap, scene.topic)
    assert [(each.key, each.value, each.timestamp) for each in found[0]] == [
        (each.key, each.value, each.timestamp_ms) for each in letters
    ]
    for record, sent in zip(found[0], letters, strict=True):
        assert record.headers[: len(sent.headers)] == expected(sent)[2]
        facts = dict(record.headers[len(sent.headers) :])
        assert facts["__connect.errors.offset"] == b"%d" % sent.offset
        assert facts["__connect.errors.exception.class.name"] == b"org.apache.kafka.common.InvalidRecordException"
        assert facts["__connect.errors.task.id"] == b"4"
        assert "replicator.dlq.truncated" not in facts
    read = list(DeadLetterTopic(scene.config.clusters["eu"], scene.topic, scene.link.name).read())
    assert [each.letter for each in read] == letters


def test_the_topic_is_made_once_and_keeps_letters_for_ever(scene: Scene) -> None:
    scene.ensure()
    admin = AdminClient({"bootstrap.servers": scene.target.bootstrap, "log_level": 0})
    resource = ConfigResource(ConfigResource.Type.TOPIC, scene.topic)
    settings = admin.describe_configs([resource])[resource].result(30)
    wanted = {"retention.ms": "-1", "retention.bytes": "-1", "cleanup.policy": "delete"}
    assert {name: settings[name].value for name in wanted} == wanted


def test_a_compacted_topic_is_no_place_for_letters(kafka4: KafkaCluster, topic_name: str, tmp_path: Path) -> None:
    scene = Scene(kafka4, topic_name, tmp_path)
    create_topic(kafka4, scene.topic, 1, {"cleanup.policy": "compact"})
    with pytest.raises(ConfigError, match=r"has cleanup\.policy=compact, and must have delete"):
        scene.ensure()


def test_a_topic_that_takes_less(kafka4: KafkaCluster, topic_name: str, tmp_path: Path) -> None:
    """Somebody else made it: what is too large is cut, what is too far ahead gets the time of now, neither is lost."""
    scene = Scene(kafka4, topic_name, tmp_path)
    create_topic(kafka4, scene.topic, 1, {"max.message.bytes": "100000"})
    value = os.urandom(300_000)
    scene.send(letter(1), letter(2, value=value, timestamp_ms=FAR_AHEAD_MS), letter(3))
    topic = DeadLetterTopic(scene.config.clusters["eu"], scene.topic, scene.link.name)
    found = {each.letter.offset: each for each in topic.read()}
    assert [found[offset].letter for offset in (1, 3)] == [letter(1), letter(3)]
    assert found[2].letter == letter(2, value=value[:CUT_BYTES], timestamp_ms=FAR_AHEAD_MS)
    assert (found[2].truncated, found[2].sizes) == (True, (5, 300_000))
    assert abs(scene.dump(scene.topic)[0][-1].timestamp - NOW_MS) < 3_600_000


def test_a_letter_that_cannot_be_written_fails(kafka4: KafkaCluster, topic_name: str, tmp_path: Path) -> None:
    scene = Scene(kafka4, topic_name, tmp_path)
    create_topic(kafka4, scene.topic, 1, {"max.message.bytes": "200"})
    with pytest.raises(ClusterError, match=r"MESSAGE_TOO_LARGE"):
        scene.send(letter(1))


def test_a_record_diverted_twice_has_the_same_identity(scene: Scene) -> None:
    """And is replayed once."""
    scene.send(letter(5))
    scene.send(letter(5, attempt=2, reason="another"))
    first, second = (dict(record.headers) for record in scene.dump(scene.topic)[0])
    assert {name: first.get(name) for name in IDENTITY} == {name: second.get(name) for name in IDENTITY}
    code, out, err = scene.dlq("replay")
    assert (code, out, err) == (0, "1 replayed, 1 replayed already\n", [])
    assert [plain(record) for record in scene.copied()] == [expected(letter(5))]


# ---- listed and shown ----


def test_list_and_show(scene: Scene) -> None:
    _, out, _ = scene.dlq("list")
    assert out == f"0 dead letters of link {scene.name} in eu {scene.topic}\n"
    raw = letter(9, raw=True, reason="the batch cannot be opened", error_code=2)
    scene.send(*(letter(offset) for offset in (1, 2, 5)), raw)
    witness.produce(scene.target.bootstrap, scene.topic, [NewRecord(0, b"k", b"of a stranger")])
    code, out, err = scene.dlq("list")
    lines = [line.split() for line in out.splitlines()]
    assert (code, err) == (0, [])
    assert [(row[:4], " ".join(row[6:])) for row in lines[1:4]] == [
        (["orders", "1", "1", "0"], "the batch cannot be opened"),
        (["orders", "1", "2", "0"], "the target refused the record"),
        (["orders", "2", "1", "0"], "the target refused the record"),
    ]
    assert out.splitlines()[-2:] == [
        f"4 dead letters of link {scene.name} in eu {scene.topic}",
        f"1 other record there: not dead letters of link {scene.name}",
    ]
    listed = json.loads(scene.dlq("list", "--json")[1])
    assert (listed["letters"], listed["strangers"], len(listed["rows"])) == (4, 1, 3)
    assert all(abs(row["first_ms"] - NOW_MS) < 3_600_000 for row in listed["rows"])
    code, out, err = scene.dlq("show", "--partition", "1", "--reason", "the target.*")
    assert (code, err) == (0, [])
    assert [line.split()[1] for line in out.splitlines() if line.startswith("--letter")] == ["0:0", "0:2"]
    for text in ("record us orders-1 offset 5", "INVALID_RECORD (87): One or more records", "header    trace = 5"):
        assert text in out
    shown = [json.loads(line) for line in scene.dlq("show", "--json", "--offset", "9")[1].splitlines()]
    assert [(each["raw"], each["value"], each["error"]) for each in shown] == [
        (True, "dmFsdWUgOQ==", "CORRUPT_MESSAGE")
    ]
    assert "1 dead letter of link" in scene.dlq("show", "--limit", "1")[1].splitlines()[-1]


# ---- replayed ----


def test_replaying_twice_is_replaying_once(scene: Scene, java4: JavaWitness) -> None:
    letters = [letter(offset) for offset in range(10)]
    scene.send(*letters)
    code, out, err = scene.dlq("replay", "--dry-run")
    assert (code, out, err) == (0, "10 would be replayed\n", [])
    assert scene.copied() == []
    code, out, err = scene.dlq("replay", "--offset", "3")
    assert (code, out, err) == (0, "1 replayed\n", [])
    for counts in ("9 replayed, 1 replayed already\n", "10 replayed already\n"):
        code, out, err = scene.dlq("replay")
        assert (code, out, err) == (0, counts, [])
    found = scene.dump(scene.copy)
    assert found == java4.dump(scene.target.bootstrap, scene.copy, "read_committed")
    assert sorted(map(plain, scene.copied())) == sorted(map(expected, letters))
    assert scene.dump(scene.copy, "read_uncommitted") == found, "an uncommitted record stands there"
    for partition, records in found.items():
        assert [record.key for record in records if record.key != b"key 3"] == [
            each.key for each in letters if each.partition == partition and each.offset != 3
        ]
        for record in records:
            assert [name for name, _ in record.headers[2:]] == ["replicator.replayed"]
            headers = [(name.encode(), value) for name, value in record.headers]
            assert is_replay(headers, scene.name)
            at = record.headers[-1][1] or b""
            assert at == f"{scene.name}:{scene.topic}:0:".encode() + (record.key or b"")[4:]
    marks = [json.loads(record.key or b"") for record in scene.dump(replayed_topic(scene.name))[0]]
    assert sorted(mark["offset"] for mark in marks) == list(range(10))
    rows = json.loads(scene.dlq("list", "--json")[1])["rows"]
    assert sum(row["replayed"] for row in rows) == 10


# What a killed replay had done: `begin`, the record and the mark written and acknowledged, and no commit.
HALTING = """
import sys
from replicator.control import replay
from replicator.cli import dlq
from replicator.cli.main import main

class Halting(replay.Replay):
    def _commit(self):
        print("written", flush=True)
        sys.stdin.readline()
        super()._commit()

dlq.Replay = Halting
main(["dlq", "replay", *sys.argv[1:]])
"""


def halted(scene: Scene) -> "subprocess.Popen[str]":
    run = [sys.executable, "-c", HALTING, str(scene.file)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = tether.spawn(run, text=True, **pipes)
    assert process.stdout
    assert process.stdout.readline() == "written\n"
    return process


def test_killed_between_writing_and_committing(scene: Scene) -> None:
    """The record stands in the log, for nobody but those who read uncommitted ones; the next replay ends that."""
    letters = [letter(offset) for offset in range(3)]
    scene.send(*letters)
    process = halted(scene)
    try:
        assert len(scene.copied("read_uncommitted")) == 1
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
    code, out, err = scene.dlq("replay")
    assert (code, out, err) == (0, "3 replayed\n", [])
    assert scene.dlq("replay")[1] == "3 replayed already\n"
    assert sorted(map(plain, scene.copied())) == sorted(map(expected, letters))
    assert len(scene.copied("read_uncommitted")) == 4, "the one that was not committed, and the three"


def test_killed_at_any_moment(scene: Scene) -> None:
    """Again and again, until there is nothing left to replay: every record is there once."""
    letters = [letter(offset) for offset in range(40)]
    scene.send(*letters)
    run = [sys.executable, "-m", "replicator", "dlq", "replay", str(scene.file), "--json"]
    for lines in (1, 4, 2, 7):
        process = tether.spawn(run, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout
            replayed = 0
            while replayed < lines:
                replayed += json.loads(process.stdout.readline())["outcome"] == "replayed"
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(30)
            process.stdout.close()
    code, _, err = scene.dlq("replay")
    assert (code, err) == (0, [])
    assert sorted(map(plain, scene.copied())) == sorted(map(expected, letters))


def test_the_second_of_two_replays_takes_over(scene: Scene) -> None:
    letters = [letter(1), letter(2)]
    scene.send(*letters)
    older = halted(scene)
    assert scene.dlq("replay")[:2] == (0, "2 replayed\n")
    out, err = older.communicate("go on\n", timeout=60)
    assert (older.returncode, out, len(err.splitlines())) == (1, "", 1), err
    assert err.startswith(f"Error: eu: another replay of link {scene.name} has taken over; ")
    assert sorted(map(plain, scene.copied())) == sorted(map(expected, letters))


class Late:
    """A producer in front of whose fencing something happens."""

    def __init__(self, producer: Any, before: Callable[[], None]) -> None:
        self._producer, self._before = producer, before

    def init_transactions(self, timeout_s: float) -> None:
        self._before()
        self._producer.init_transactions(timeout_s)

    def __len__(self) -> int:
        return len(self._producer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)


def test_what_an_older_replay_commits_at_the_last_moment_counts(scene: Scene) -> None:
    """Marks are read behind the fence: in front of it they would not be the last."""
    scene.send(letter(1), letter(2))
    assert scene.dlq("replay", "--offset", "2")[0] == 0  # makes the topic of marks
    target = scene.config.clusters["eu"]
    first, second = DeadLetterTopic(target, scene.topic, scene.name).read()
    with closing(Replay(target, scene.link)) as older, closing(Replay(target, scene.link)) as newer:
        older.begin()
        outcomes: list[str] = []
        newer._producer = Late(newer._producer, lambda: outcomes.append(older.send(first).outcome))
        newer.begin()
        outcomes += [newer.send(each).outcome for each in (first, second)]
    assert outcomes == ["replayed", "already", "already"]
    assert sorted(map(plain, scene.copied())) == [expected(letter(1)), expected(letter(2))]


def test_poison_that_is_still_poison(scene: Scene) -> None:
    """The topic takes small records only: those go, the large one is told of and stays where it is."""
    limit_records(scene, "300")
    large = letter(5, value=os.urandom(500))
    scene.send(letter(1), large, letter(9), letter(13, topic="orders2"), letter(2, raw=True))
    code, out, err = scene.dlq("replay")
    assert (code, out) == (1, "2 replayed, 2 refused again, 1 cannot be replayed\n"), err
    assert err[0].startswith(f"0:1 (record us orders-1 offset 5): refused: eu {scene.copy}-1: ")
    assert "MESSAGE_TOO_LARGE (10)" in err[0]
    assert err[1].endswith(f"refused: eu {scene.name}.orders2-1: there is no such partition")
    assert err[2].endswith("cannot: it is a whole batch that could not be opened, not a record")
    assert [plain(record) for record in scene.copied("read_uncommitted")] == [expected(letter(1)), expected(letter(9))]
    limit_records(scene, "1000000")
    assert scene.dlq("replay", "--topic", "orders", "--partition", "1")[:2] == (0, "1 replayed, 2 replayed already\n")
    assert expected(large) in map(plain, scene.copied())


def limit_records(scene: Scene, value: str) -> None:
    """The largest record that the target topic takes."""
    admin = AdminClient({"bootstrap.servers": scene.target.bootstrap, "log_level": 0})
    entry = ConfigEntry("max.message.bytes", value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, scene.copy, incremental_configs=[entry])
    admin.incremental_alter_configs([resource])[resource].result(30)

    def is_set() -> bool:
        return admin.describe_configs([resource])[resource].result(30)["max.message.bytes"].value == value

    eventually(is_set, f"max.message.bytes={value}")


def test_edits(scene: Scene, tmp_path: Path) -> None:
    scene.send(letter(1), letter(2, timestamp_ms=1))
    (tmp_path / "value").write_bytes(b"mended\x00")
    one = ["--letter", "0:0", "--value-file", str(tmp_path / "value"), "--drop-header", "empty"]
    assert scene.dlq("replay", *one, "--set-header", "trace=x=y")[:2] == (0, "1 replayed\n")
    assert scene.dlq("replay", "--now")[:2] == (0, "1 replayed, 1 replayed already\n")
    first, second = sorted(scene.copied(), key=lambda record: record.key or b"")
    assert (first.key, first.value, first.headers[:-1]) == (b"key 1", b"mended\x00", (("trace", b"x=y"),))
    assert plain(second)[:3] == expected(letter(2))[:3]
    assert abs(second.timestamp - NOW_MS) < 3_600_000


def test_letters_on_the_source(
    kafka4: KafkaCluster, kafka4_second: KafkaCluster, topic_name: str, tmp_path: Path
) -> None:
    scene = Scene(kafka4, topic_name, tmp_path, on="source", partitions=2)
    scene.file.write_text(scene.file.read_text().replace("127.0.0.1:1", kafka4_second.bootstrap))
    scene.config = load(scene.file)
    scene.ensure()
    create_topic(kafka4, scene.copy, 4)
    letters = [letter(offset) for offset in range(6)]

    async def work() -> None:
        sender = DeadLetters(scene.link, scene.config.clusters["us"])
        await asyncio.gather(*map(sender.send, letters))

    asyncio.run(work())
    assert len(witness.dump(kafka4_second.bootstrap, scene.topic)) == 2
    assert scene.dlq("replay")[:2] == (0, "6 replayed\n")
    assert sorted(map(plain, scene.copied())) == sorted(map(expected, letters))


def test_a_link_back_can_tell_where_a_replayed_record_is_from(scene: Scene) -> None:
    """Once the link has run: its record has the source's cluster id."""
    state = state_topic(scene.name)
    create_topic(scene.target, state, 2)
    record = LinkRecord(1, 0, 2, source_cluster_id="US", target_cluster_id="EU")
    witness.produce(scene.target.bootstrap, state, [NewRecord(0, encode(LinkKey(scene.name)), encode(record))])
    scene.send(letter(1))
    assert scene.dlq("replay")[:2] == (0, "1 replayed\n")
    (replayed,) = scene.copied()
    assert plain(replayed) == expected(letter(1))
    assert replayed.headers[2:] == (
        ("replicator.hops", b"US"),
        ("replicator.replayed", f"{scene.name}:{scene.topic}:0:0".encode()),
    )


# ---- purged ----


def test_purge(scene: Scene) -> None:
    scene.send(*(letter(offset) for offset in range(6)))
    assert scene.dlq("replay", "--letter", "0:0")[0] == 0
    words = f"3 dead letters of link {scene.name} in eu {scene.topic} will be deleted, 2 of them never replayed"
    code, _, err = scene.dlq("purge", "--before", "0:3", answer="n\n")
    assert (code, err) == (1, [f"{words}. Go on? [y/N]: Aborted!"])
    assert start_offset(scene.target, scene.topic) == 0
    code, out, err = scene.dlq("purge", "--before", "0:3", answer="y\n")
    assert (code, start_offset(scene.target, scene.topic)) == (0, 3)
    assert out.startswith(f"3 dead letters of link {scene.name} in eu {scene.topic} deleted")
    assert scene.dlq("purge", "--older-than", "1h", "--yes")[1].startswith("0 dead letters")
    code, _, err = scene.dlq("purge", "--before", "0:7", "--yes")
    assert (code, len(err)) == (2, 1)
    assert f"{scene.topic}-0 ends at 6" in err[0]
    time.sleep(1.1)  # ages are seconds
    assert scene.dlq("purge", "--older-than", "1s", "--yes")[1].startswith("3 dead letters")
    scene.send(letter(7))
    assert scene.dlq("purge", "--all", "--yes")[0] == 0
    assert start_offset(scene.target, scene.topic) == 7
    assert scene.dlq("purge", "--all", "--yes")[1].startswith("0 dead letters")


# ---- damage ----


def test_marks_that_cannot_be_read_stop_a_replay(scene: Scene) -> None:
    scene.send(letter(1), letter(2))
    assert scene.dlq("replay", "--offset", "1")[0] == 0
    witness.produce(scene.target.bootstrap, replayed_topic(scene.name), [NewRecord(0, b"no json", b"of a stranger")])
    code, out, err = scene.dlq("replay")
    assert (code, out, len(err)) == (1, "", 1)
    assert "nobody can tell what was replayed" in err[0]
    assert len(scene.copied("read_uncommitted")) == 1


def test_there_is_nothing_yet(kafka4: KafkaCluster, topic_name: str, tmp_path: Path) -> None:
    """No topic of letters, none of marks: the commands say so, and make neither."""
    scene = Scene(kafka4, topic_name, tmp_path)
    for command in (["list"], ["show"], ["replay", "--dry-run"], ["purge", "--all", "--yes"]):
        code, _, err = scene.dlq(*command)
        assert (code, err) == (0, [])
    topics = AdminClient({"bootstrap.servers": kafka4.bootstrap, "log_level": 0}).list_topics(timeout=30).topics
    assert not {scene.topic, replayed_topic(scene.name)} & set(topics)
    assert Replays(scene.config.clusters["eu"], scene.name).read().records == {}


def test_the_copy_of_a_dead_letter_topic_is_replayed_as_it_was(scene: Scene) -> None:
    """A record whose own headers are those of a dead letter keeps them."""
    own = tuple((name.encode(), value) for name, value in letter_headers(letter(77), scene.link, 0, 0))
    scene.send(letter(1, headers=own))
    assert scene.dlq("replay")[:2] == (0, "1 replayed\n")
    (record,) = scene.copied()
    assert record.headers[:-1] == tuple((name.decode(), value) for name, value in own)
