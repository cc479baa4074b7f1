"""The offset map of a link at work, offset by offset: whatever holes the logs have, and however often the link dies."""

import json
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from confluent_kafka import ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from replicator.cli.main import main
from replicator.config.load import from_data
from replicator.data.states import LaneState
from replicator.state.chunks import CHUNK_SEGMENTS_MAX
from replicator.state.reader import StateReader
from replicator.state.records import LaneKey, offsets_topic
from tests.broker.admin import create_topic, delete_records, end_offset, start_offset
from tests.broker.copies import Pair
from tests.broker.gappy_log import GappyLog
from tests.broker.map_truth import FOREIGN, Truth, answers, places
from tests.fault.scene import wait_for_progress
from tests.harness import witness
from tests.harness.kafka import KafkaCluster
from tests.harness.link import RunningLink, link_config
from tests.harness.waiting import eventually

pytestmark = pytest.mark.broker

SEED = 20_261
PLAIN, RAGGED, CUT, DENSE = range(4)
SEALING = CHUNK_SEGMENTS_MAX + 1_000  # gaps that one owner meets in a row: a chunk is full, another is begun
TIMEOUT_S = 30


class Crash(Exception):
    """The whole link is killed where this is raised."""


class Scene:
    """A gappy log on the source, and the link that carries it."""

    def __init__(self, pair: Pair, topic: str, partitions: int, folder: Path, seed: int = SEED, **link: Any) -> None:
        print(f"seed {seed}")
        self.pair, self.topic, self.partitions = pair, topic, range(partitions)
        self.chance, self.fate = random.Random(seed), random.Random(seed)  # of what is written, and of who is killed
        self.config = link_config(pair.source.bootstrap, pair.target.bootstrap, re.escape(topic), link=link, workers=2)
        self.link: str = self.config["links"][0]["name"]
        self.file = folder / f"{topic}.yaml"
        self.file.write_text(json.dumps(self.config))
        create_topic(pair.source, topic, partitions)
        self.log = GappyLog(pair.source, topic)

    # ---- the source ----

    def write_some(self) -> None:
        """A batch for each partition, and holes, if they are to have some."""
        self.log.records(PLAIN, self.chance.randint(1, 20))
        for part in {RAGGED, CUT} & set(self.partitions):
            self.log.records(part, self.chance.randint(1, 20))
            if self.chance.random() < 0.6:
                self.log.holes(part, self.chance.choice([1, 1, 1, 2, 9]))
        if DENSE in self.partitions:
            self.write_dense(1)

    def write_dense(self, gaps: int) -> None:
        """Every other offset is a hole."""
        for _ in range(gaps):
            self.log.records(DENSE, 1)
            self.log.holes(DENSE)

    @contextmanager
    def growing(self) -> Iterator[None]:
        """As long as the block runs, and its failures are the block's."""
        with repeating(self.write_some, self.chance, pause_s=0.02):
            yield
        self.log.settle()

    # ---- what is so, and what the link says ----

    @property
    def ends(self) -> dict[tuple[str, int], int]:
        return {(self.topic, part): end_offset(self.pair.source, self.topic, part) for part in self.partitions}

    def truths(self) -> dict[int, Truth]:
        """By partition."""
        both = self.pair.source, self.pair.target
        source, target = (witness.dump(cluster.bootstrap, self.topic) for cluster in both)
        found = {}
        for part in self.partitions:
            ends = [end_offset(cluster, self.topic, part) for cluster in both]
            begins_at = start_offset(self.pair.target, self.topic, part)
            found[part] = Truth.of((places(source[part]), places(target[part])), (ends[0], ends[1]), begins_at)
        return found

    @contextmanager
    def reading(self) -> Iterator[StateReader]:
        reader = StateReader(from_data(self.config).clusters["target"], self.link)
        try:
            reader.catch_up()
            assert reader.damaged == 0
            yield reader
        finally:
            reader.close()

    def check(self) -> dict[int, Truth]:
        """Every offset of every partition."""
        truths = self.truths()
        with self.reading() as reader:
            for part, truth in truths.items():
                truth.check(reader.offset_map(LaneKey(self.topic, part)))
        return truths

    def chunks(self, partition: int) -> dict[tuple[int, int], dict[str, Any]]:
        """(generation, number) -> chunk, as another client finds them in the link's topic."""
        found: dict[tuple[int, int], dict[str, Any]] = {}
        for records in witness.dump(self.pair.target.bootstrap, offsets_topic(self.link)).values():
            for record in records:
                key = json.loads(record.key or b"")
                if key["partition"] == partition:
                    number = (key["generation"], key["chunk"])
                    found.pop(number, None)
                    found |= {number: json.loads(record.value)} if record.value else {}
        return found

    def command(self, *words: str) -> tuple[int, Any, str]:
        """Exit code, the JSON on stdout, stderr."""
        done = CliRunner().invoke(main, [*words, "--json"])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, json.loads(done.stdout or "null"), done.stderr


@contextmanager
def repeating(work: Callable[[], None], chance: random.Random, pause_s: float) -> Iterator[None]:
    """Again and again, after about such pauses, in a thread, as long as the block runs; its failure is the block's."""
    ended = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            while not ended.wait(pause_s * chance.random() * 2):
                work()
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=run, name="repeating")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert not failures, failures


def kill_workers(link: RunningLink, scene: Scene, times: int) -> None:
    """One of them each time, while there is something to copy."""
    restarts = sum(worker.restarts for worker in link.supervisor.workers)
    for number in range(times):
        wait_for_progress(link, scene.topic, DENSE if DENSE in scene.partitions else PLAIN, records=20)
        time.sleep(scene.fate.uniform(0, 0.5))
        eventually(lambda: len(link.worker_pids()) == 2, "both workers")
        victim = link.worker_pids()[number % 2]
        os.kill(victim, signal.SIGKILL)
        eventually(lambda gone=victim: gone not in link.worker_pids(), "its end")  # type: ignore[misc]
    eventually(lambda: len(link.worker_pids()) == 2, "both workers")
    assert sum(worker.restarts for worker in link.supervisor.workers) == restarts + times


def log_start(batches: list[tuple[int, int]], is_hole: bool) -> int:
    """The first offset between two of the batches that holds a record, or that does not."""
    ends = [base + count for base, count in batches]
    return next(end for end, (after, _) in zip(ends, batches[1:], strict=False) if (after > end) == is_hole)


def carry(scene: Scene, kills: int) -> None:
    """The link is killed in every way, whole and in part, and has copied everything in the end."""
    for _ in range(300):
        scene.write_some()
    scene.log.settle()
    for part, begins_with_a_hole in ((RAGGED, False), (CUT, True)):
        begins_at = log_start(scene.log.batches[part][50:], begins_with_a_hole)
        delete_records(scene.pair.source, scene.topic, begins_at, part)
    with suppress(Crash), RunningLink(scene.config) as link, scene.growing():
        kill_workers(link, scene, kills)
        raise Crash
    scene.log.settle()
    scene.write_dense(SEALING)
    scene.log.settle()
    with RunningLink({**scene.config, "workers": 1}) as link:
        link.wait_until_copied(scene.ends)
    with RunningLink(scene.config) as link:
        with scene.growing():
            kill_workers(link, scene, times=1)
        link.wait_until_copied(scene.ends)


@pytest.fixture(scope="module")
def carried(
    kafka4: KafkaCluster, kafka4_second: KafkaCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    scene = Scene(Pair(kafka4, kafka4_second), f"gappy-{os.getpid()}", 4, tmp_path_factory.mktemp("links"))
    with scene.log:
        carry(scene, kills=4)
        yield scene


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(5))
def test_it_is_exact_after_many_kills(
    kafka4: KafkaCluster, kafka4_second: KafkaCluster, topic_name: str, tmp_path: Path, seed: int
) -> None:
    scene = Scene(Pair(kafka4, kafka4_second), topic_name, 4, tmp_path, seed)
    with scene.log:
        carry(scene, kills=20)
    check_verification(scene, scene.check())


def test_it_is_exact_for_every_offset(carried: Scene) -> None:
    segments = {part: len(truth.segments()) for part, truth in carried.check().items()}
    print(f"segments: {segments}")
    assert segments[PLAIN] == 1
    assert min(segments[RAGGED], segments[CUT]) > 100
    assert segments[DENSE] > SEALING


def test_it_is_kept_in_chunks(carried: Scene) -> None:
    chunks = carried.chunks(DENSE)
    print({number: chunk["count"] for number, chunk in chunks.items()})
    full = full_chunk(chunks)
    assert any(chunk["source_end"] > full["source_end"] for chunk in chunks.values())
    assert len({generation for generation, _ in chunks}) > 1, "several owners have written some"
    with carried.reading() as reader:
        left = {part: len(reader.lanes[LaneKey(carried.topic, part)].segments) for part in carried.partitions}
    assert left[PLAIN] == 1
    assert left[DENSE] < CHUNK_SEGMENTS_MAX


def full_chunk(chunks: Mapping[tuple[int, int], dict[str, Any]]) -> dict[str, Any]:
    full = next((chunk for chunk in chunks.values() if chunk["count"] == CHUNK_SEGMENTS_MAX), None)
    assert full, "one at least"
    return full


def test_the_commands_know_it(carried: Scene) -> None:
    """Of the link as it runs, and again when it has stopped."""
    truths = carried.truths()
    with RunningLink(carried.config) as link:
        for part in carried.partitions:
            link.wait_for_state(LaneState.TAILING, carried.topic, part)
        eventually(lambda: carried.command("status", str(carried.file))[0] == 0, "a good status")
        _, found, _ = carried.command("status", str(carried.file))
    lanes = {lane["partition"]: lane for lane in found["links"][0]["lanes"]}
    ends = {part: (truth.source_end, truth.source_end, 0, True) for part, truth in truths.items()}
    words = ("position", "end_offset", "lag_records", "good")
    assert {part: tuple(lane[word] for word in words) for part, lane in lanes.items()} == ends
    for part, truth in truths.items():
        check_translations(carried, part, truth)
    check_group(carried, truths)
    check_verification(carried, truths)


def check_translations(scene: Scene, partition: int, truth: Truth) -> None:
    there = answers(truth.pairs, 0, (truth.source_end, truth.target_end))
    back = answers([pair[::-1] for pair in truth.pairs], 0, (truth.target_end, truth.source_end))
    for known, options in ((there, ()), (back, ("--reverse",))):
        beyond = [offset for offset, answer in known.items() if answer is None]
        asked = [*scene.fate.sample(sorted(known.keys() - set(beyond)), 30), *beyond]
        place = ["--topic", scene.topic, "--partition", str(partition), *options]
        code, found, said = scene.command("offsets", "translate", str(scene.file), *place, *offset_options(asked))
        assert [row["to_offset"] for row in found["translations"]] == [known[offset] for offset in asked]
        assert [row["outcome"] for row in found["translations"]] == ["translated"] * 30 + ["not yet"] * len(beyond)
        assert (code, len(said.splitlines())) == (3, len(beyond))


def offset_options(offsets: Iterable[int]) -> list[str]:
    return [text for offset in offsets for text in ("--offset", str(offset))]


def check_group(scene: Scene, truths: Mapping[int, Truth]) -> None:
    """A consumer that goes on in a hole, in each partition that has some."""
    group = f"group-of-{scene.topic}"
    holes = {
        part: next(a + 1 for (a, _), (b, _) in pairwise(truths[part].pairs) if b > a + 1) for part in (RAGGED, DENSE)
    }
    admin = AdminClient({"bootstrap.servers": scene.pair.source.bootstrap, "log_level": 0})
    parts = [TopicPartition(scene.topic, part, offset) for part, offset in holes.items()]
    for done in admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, parts)]).values():
        done.result(TIMEOUT_S)
    code, found, _ = scene.command("offsets", "translate", str(scene.file), "--group", group)
    due = {part: next(target for source, target in truths[part].pairs if source >= holes[part]) for part in holes}
    assert (code, {row["partition"]: row["to_offset"] for row in found["translations"]}) == (0, due)


def check_verification(scene: Scene, truths: Mapping[int, Truth], foreign: int = 0) -> None:
    code, found, _ = scene.command("verify", str(scene.file), "--full")
    assert (code, found["problems"]) == (0, [])
    assert found["outcome"] in ("identical", "equal")  # small batches may have been merged
    lanes = {lane["partition"]: (lane["records"], lane["segments"]) for lane in found["lanes"]}
    assert lanes == {part: (len(truth.pairs), len(truth.segments())) for part, truth in truths.items()}
    assert found["claimed"] == found["records"]
    assert [found[name] for name in ("gone", "cleaned", "foreign", "passed_over")] == [0, 0, foreign, 0]


def test_it_forgets_what_the_target_has_deleted(carried: Scene) -> None:
    """Whole chunks go, as soon as somebody leads the link; what is said of the rest stays right."""
    chunks = carried.chunks(DENSE)
    begins_at = full_chunk(chunks)["target_end"] + 100
    delete_records(carried.pair.target, carried.topic, begins_at, DENSE)
    with RunningLink(carried.config) as link:
        eventually(lambda: all(c["target_end"] > begins_at for c in carried.chunks(DENSE).values()), "their end")
        carried.write_dense(10)
        carried.log.settle()
        link.wait_until_copied(carried.ends)
    left = carried.chunks(DENSE)
    assert 0 < len(left) < len(chunks)
    truth = carried.check()[DENSE]
    assert 100 < len(truth.pairs) < SEALING


@pytest.mark.parametrize(
    ("seed", "kills"), [(SEED, 3), *(pytest.param(seed, 20, marks=pytest.mark.soak) for seed in range(5))]
)
def test_it_is_exact_among_the_records_of_others(
    kafka4: KafkaCluster, kafka4_second: KafkaCluster, topic_name: str, tmp_path: Path, seed: int, kills: int
) -> None:
    """Somebody writes to the target partitions, while the link copies, while its workers die, and while it is down."""
    pair = Pair(kafka4, kafka4_second)
    scene = Scene(pair, topic_name, 2, tmp_path, seed, policies=[{"foreign_writes": "tolerate"}])
    chance = random.Random(seed)
    others = Producer({"bootstrap.servers": kafka4_second.bootstrap, "linger.ms": 0, "log_level": 0})

    def write_foreign() -> None:
        part = chance.choice(scene.partitions)
        for _ in range(chance.randint(1, 3)):
            others.produce(topic_name, FOREIGN, partition=part)
        assert others.flush(TIMEOUT_S) == 0

    with scene.log:
        with suppress(Crash), RunningLink(scene.config) as link:
            for part in scene.partitions:
                link.wait_for_state(LaneState.TAILING, topic_name, part)
            with scene.growing(), repeating(write_foreign, chance, pause_s=0.03):
                kill_workers(link, scene, kills)
                raise Crash
        for _ in range(10):
            write_foreign()
        with RunningLink(scene.config) as link:
            with scene.growing(), repeating(write_foreign, chance, pause_s=0.03):
                kill_workers(link, scene, times=1)
            link.wait_until_copied(scene.ends)
    truths = scene.check()
    assert min(len(truth.segments()) for truth in truths.values()) > 10
    check_verification(scene, truths, foreign=between_ours(scene, truths))


def between_ours(scene: Scene, truths: Mapping[int, Truth]) -> int:
    """How many records of others stand on the target between two of ours."""
    found = witness.dump(scene.pair.target.bootstrap, scene.topic)
    ours = {part: range(truth.pairs[0][1], truth.pairs[-1][1]) for part, truth in truths.items()}
    return sum(record.value == FOREIGN and record.offset in ours[part] for part in ours for record in found[part])
