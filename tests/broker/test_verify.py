"""`replicator verify` between real clusters: what was copied is proved, whatever is wrong is found where it is.

What a link has written down is written here by hand, so that it can be wrong in one place. Where two logs differ is
worked out by kafka-python, which knows nothing of us.
"""

import asyncio
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from confluent_kafka import Producer as LibrdkafkaProducer

from replicator._core import Pool
from replicator.cli.main import main
from replicator.config.load import load
from replicator.control.dead_letters import ensure_dead_letter_topic
from replicator.data.audit import Auditor, Recent
from replicator.data.dead_letters import DeadLetter, DeadLetters
from replicator.kafka.cluster import Cluster
from replicator.kafka.connection import ConnectionSettings
from replicator.kafka.log import Partition
from replicator.state.records import (
    LaneKey,
    LaneRecord,
    LinkKey,
    LinkRecord,
    encode,
    offsets_topic,
    spell_topic_id,
    state_topic,
)
from tests.broker.admin import create_topic, delete_records, end_offset, partition_count
from tests.broker.copies import Pair, stored_batches
from tests.broker.raw import RawClient
from tests.harness import witness
from tests.harness.java import JavaWitness
from tests.harness.kafka import KafkaCluster
from tests.harness.records import Headers, NewRecord, Record
from tests.harness.transactions import LibrdkafkaWriter
from tests.harness.waiting import eventually
from tests.oracle.lane import joined

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # kafka-python 3.0 loads its schemas in an old way
    from kafka import KafkaConsumer, TopicPartition

pytestmark = pytest.mark.broker

TIMESTAMP = 1_780_000_000_000
Segments = Sequence[tuple[int, int, int]]
OURS = 987_654


@pytest.fixture
def pair(kafka4: KafkaCluster, kafka4_second: KafkaCluster) -> Pair:
    return Pair(kafka4, kafka4_second)


def new_records(count: int, first: int = 0, partition: int = 0) -> list[NewRecord]:
    return [
        NewRecord(partition, b"%d" % n, b"value %d" % n, (("number", b"%d" % n), ("empty", None)), TIMESTAMP + 10 * n)
        for n in range(first, first + count)
    ]


def read_by_kafka_python(cluster: KafkaCluster, topic: str, partition: int = 0) -> dict[int, tuple[Any, ...]]:
    """Offset to what its readers see of the record there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        consumer = KafkaConsumer(
            bootstrap_servers=cluster.bootstrap, enable_auto_commit=False, isolation_level="read_uncommitted"
        )
        try:
            part = TopicPartition(topic, partition)
            consumer.assign([part])
            consumer.seek_to_beginning(part)
            end, found = consumer.end_offsets([part])[part], {}
            while consumer.position(part) < end:
                for records in consumer.poll(timeout_ms=1_000).values():
                    for record in records:
                        found[record.offset] = (record.key, record.value, record.timestamp, tuple(record.headers))
            return found
        finally:
            consumer.close()


@dataclass
class Scene:
    """A link `source-target` for one topic, without a process that runs it."""

    pair: Pair
    topic: str
    folder: Path
    options: dict[str, Any] = field(default_factory=dict)  # of the link

    @property
    def link(self) -> str:
        return f"link-{self.topic}"[:200]

    @property
    def link_file(self) -> str:
        file = self.folder / "link.yaml"
        clusters = {"source": self.pair.source.bootstrap, "target": self.pair.target.bootstrap}
        link = {"source": "source", "target": "target", "name": self.link, **self.options}
        config = {
            "clusters": {alias: {"bootstrap.servers": where} for alias, where in clusters.items()},
            "links": [link],
        }
        file.write_text(json.dumps(config))
        return str(file)

    def create(self, partitions: int = 1, **target_config: str) -> None:
        create_topic(self.pair.source, self.topic, partitions)
        create_topic(
            self.pair.target,
            self.topic,
            partitions,
            {key.replace("_", "."): target_config[key] for key in target_config},
        )

    def copy(self) -> None:
        """By the product, from log to log."""
        ends = ["--from", self.pair.source.bootstrap, "--to", self.pair.target.bootstrap]
        result = CliRunner().invoke(main, ["copy", *ends, "--topics", self.topic, "--workers", "1", "--no-verify"])
        assert result.exit_code == 0, result.output

    def write_state(self, segments: Mapping[int, Segments], producer_id: int = OURS) -> None:
        """What the link says of each partition."""
        if not partition_count(self.pair.target, state_topic(self.link)):
            for topic in (state_topic(self.link), offsets_topic(self.link)):
                create_topic(self.pair.target, topic, 1, {"cleanup.policy": "compact"})
        rows = {encode(LinkKey(self.link)): encode(LinkRecord(producer_id, 0, 1, "source", "target"))}
        for partition, each in segments.items():
            record = LaneRecord(
                1, self._topic_id(self.pair.source), self.topic, self._topic_id(self.pair.target),
                each[-1][0] + each[-1][2] if each else 0, each[-1][1] + each[-1][2] if each else 0,
                0, 0, producer_id, 0, tuple(each),
            )  # fmt: skip
            rows[encode(LaneKey(self.topic, partition))] = encode(record)
        producer = LibrdkafkaProducer({"bootstrap.servers": self.pair.target.bootstrap})
        for key, value in rows.items():
            producer.produce(state_topic(self.link), value, key, 0)
        assert producer.flush(30) == 0

    def _topic_id(self, cluster: KafkaCluster) -> str:
        with RawClient(cluster) as client:
            return spell_topic_id(client.topic_id(self.topic))

    def claim_everything(self, partitions: int = 1) -> None:
        """As of a source without holes, and a target where nobody else has written."""
        ends = {number: end_offset(self.pair.source, self.topic, number) for number in range(partitions)}
        self.write_state({number: [(0, 0, end)] if end else [] for number, end in ends.items()})

    def verify(self, *options: str) -> Result:
        result = CliRunner().invoke(main, ["verify", self.link_file, *options])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    def report(self, exit_code: int, *options: str) -> dict[str, Any]:
        result = self.verify("--json", *options)
        assert result.exit_code == exit_code, result.output
        return dict(json.loads(result.stdout))

    def only_lane(self, exit_code: int, *options: str) -> dict[str, Any]:
        (lane,) = self.report(exit_code, *options)["lanes"]
        return dict(lane)

    def first_difference(self) -> int:
        """As kafka-python sees the two logs: the first offset of either that is not the same on both."""
        source, target = (read_by_kafka_python(side, self.topic) for side in (self.pair.source, self.pair.target))
        return min(offset for offset in source.keys() | target.keys() if source.get(offset) != target.get(offset))


@pytest.fixture
def scene(pair: Pair, topic_name: str, tmp_path: Path) -> Scene:
    return Scene(pair, topic_name, tmp_path)


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_a_copy_is_proved(scene: Scene, codec: str) -> None:
    scene.create(partitions=2)
    for first in (0, 300, 600):
        both = [record for number in (0, 1) for record in new_records(300, first, number)]
        witness.produce(scene.pair.source.bootstrap, scene.topic, both, {"compression.type": codec})
    scene.copy()
    scene.claim_everything(partitions=2)
    report = scene.report(0, "--full")
    assert (report["records"], report["claimed"], report["problems"]) == (1_800, 1_800, [])
    assert [lane["records"] for lane in report["lanes"]] == [900, 900]
    text = scene.verify()
    assert text.exit_code == 0
    assert "1,800 records" in text.stdout
    assert "all are equal" in text.stdout
    sides = [witness.dump(side.bootstrap, scene.topic) for side in (scene.pair.source, scene.pair.target)]
    assert sides[0] == sides[1], "librdkafka agrees"


@pytest.mark.parametrize(
    ("codec", "target_codec"),
    [
        *(("none", other) for other in ("gzip", "snappy", "lz4", "zstd")),
        *(("snappy", other) for other in ("gzip", "lz4", "zstd", "uncompressed")),
    ],
)
def test_a_target_that_recompresses(scene: Scene, codec: str, target_codec: str, java4: JavaWitness) -> None:
    """Its broker opens every batch; the source's are a Java producer's."""
    scene.create(compression_type=target_codec)
    java4.produce(scene.pair.source.bootstrap, scene.topic, new_records(500), {"compression.type": codec})
    scene.copy()
    scene.claim_everything()
    lane = scene.only_lane(0)
    assert (lane["outcome"], lane["records"]) == ("equal", 500)
    assert "but equal when unpacked" in lane["reason"] or "batches are not the source's" in lane["reason"]


def test_a_target_with_times_of_its_own(scene: Scene) -> None:
    scene.create(message_timestamp_type="LogAppendTime")
    witness.produce(scene.pair.source.bootstrap, scene.topic, new_records(100))
    scene.copy()
    scene.claim_everything()
    lane = scene.only_lane(0)
    assert (lane["outcome"], lane["records"]) == ("equal", 100)
    assert "the target's broker has put its own time on it" in lane["reason"]


def test_a_target_that_a_log_cleaner_has_been_through(scene: Scene) -> None:
    """It has fewer records than the source, rightly, and those that are left are compared."""
    cleaning = {"cleanup_policy": "compact", "segment_bytes": str(1 << 20), "min_cleanable_dirty_ratio": "0.001"}
    scene.create(**cleaning)
    often = [record._replace(key=b"often") for record in new_records(50)]
    filler = [NewRecord(0, b"filler", bytes(200_000), (), TIMESTAMP)] * 7  # the active segment is not cleaned
    witness.produce(scene.pair.source.bootstrap, scene.topic, often)
    witness.produce(scene.pair.source.bootstrap, scene.topic, filler, {"batch.num.messages": 1})
    scene.copy()
    scene.claim_everything()
    records = eventually(lambda: cleaned_records(scene.pair.target, scene.topic, fewer_than=57), "a cleaned target", 60)
    lane = scene.only_lane(0)
    assert (lane["records"], lane["records"] + lane["cleaned"]) == (records, 57)


def cleaned_records(cluster: KafkaCluster, topic: str, fewer_than: int) -> int:
    """How many records the topic still has, once they are fewer; 0 before."""
    count = sum(batch.count for batch in stored_batches(cluster, topic))
    return count if count < fewer_than else 0


WANTED = new_records(60)


def changed(at: int, **what: Any) -> list[NewRecord]:
    return [record._replace(**what) if n == at else record for n, record in enumerate(WANTED)]


@pytest.mark.parametrize("target_config", [{}, {"compression_type": "gzip"}], ids=["as it is", "recompressed"])
@pytest.mark.parametrize(
    ("written", "what"),
    [
        (changed(31, value=b"Value 31"), "another value"),
        (changed(31, value=None), "another value"),
        (changed(31, key=b"other"), "another key"),
        (changed(31, headers=(("number", b"32"),)), "another headers"),
        (changed(31, timestamp=TIMESTAMP), f"timestamp should be {TIMESTAMP + 310}, is {TIMESTAMP}"),
        ([*WANTED[:31], *WANTED[32:]], "it looks like the record of source offset 32"),
        ([*WANTED[:32], *WANTED[31:]], "it looks like the record of source offset 31"),
        ([*WANTED[:31], WANTED[32], WANTED[31], *WANTED[33:]], "it looks like the record of source offset 32"),
        (WANTED[:59], "the target's log ends at 59"),
    ],
    ids=["value", "null", "key", "header", "timestamp", "lost", "doubled", "swapped", "short"],
)
def test_damage_is_found_where_it_is(
    scene: Scene, written: list[NewRecord], what: str, target_config: dict[str, str]
) -> None:
    scene.create(**target_config)
    witness.produce(scene.pair.source.bootstrap, scene.topic, WANTED)
    witness.produce(scene.pair.target.bootstrap, scene.topic, written)
    scene.write_state({0: [(0, 0, 60)]})
    lane = scene.only_lane(3)
    at = scene.first_difference()
    assert lane["outcome"] == "differs"
    assert lane["reason"].startswith(f"source offset {at}, target offset {at}: ")
    assert what in lane["reason"]
    text = scene.verify()
    assert text.exit_code == 3
    assert f"{scene.link} {scene.topic}-0: differs: source offset {at}, target offset {at}: " in text.stdout
    assert "there are differences" in text.stdout


def produce_in_batches(cluster: KafkaCluster, topic: str, records: Iterable[NewRecord], batch: int) -> None:
    records = list(records)
    for first in range(0, len(records), batch):
        witness.produce(cluster.bootstrap, topic, records[first : first + batch])


def test_holes_on_both_sides(scene: Scene) -> None:
    """Markers on the source, other people's records on the target, and other batches."""
    scene.create()
    source, target = scene.pair.source, scene.pair.target
    with RawClient(source) as client:
        marks = client.init_producer()
        for first in (0, 20, 40):
            produce_in_batches(source, scene.topic, WANTED[first : first + 20], 5)
            client.mark_commit(scene.topic, marks)
    witness.produce(target.bootstrap, scene.topic, new_records(7, 1_000))
    produce_in_batches(target, scene.topic, WANTED[:20], 20)
    witness.produce(target.bootstrap, scene.topic, new_records(3, 2_000))
    produce_in_batches(target, scene.topic, WANTED[20:], 8)
    right = [(0, 7, 20), (21, 30, 20), (42, 50, 20)]
    scene.write_state({0: right})
    lane = scene.only_lane(0)
    assert (lane["outcome"], lane["records"], lane["foreign"]) == ("equal", 60, 3)
    for wrong, where in (
        ([(0, 7, 20), (21, 30, 19), (42, 50, 20)], "source offset 40: a record that the offset map leaves out"),
        ([(0, 7, 20), (21, 29, 20), (42, 50, 20)], "source offset 21, target offset 29: another "),
        ([(0, 7, 21), (21, 30, 20), (42, 50, 20)], "source offset 20, target offset 27: the source has no record"),
    ):
        scene.write_state({0: wrong})
        assert scene.only_lane(3)["reason"].startswith(where)


# ---- other batches, by rights ----


def committed(cluster: KafkaCluster, topic: str) -> list[Record]:
    """What a consumer of committed records sees, by librdkafka."""
    return witness.dump(cluster.bootstrap, topic, "read_committed")[0]


def write_copy(scene: Scene, records: Sequence[Record], **properties: Any) -> None:
    """These records on the target, in batches of a producer's own making, and the map that leads there."""
    copies = [NewRecord(0, each.key, each.value, each.headers, each.timestamp) for each in records]
    witness.produce(scene.pair.target.bootstrap, scene.topic, copies, {"linger.ms": 50, **properties})
    scene.write_state({0: joined({each.offset: at for at, each in enumerate(records)})})


def write_transactions(scene: Scene) -> None:
    """Two producers' transactions, one in the other, the same ids committing now and aborting then."""
    records = iter(new_records(200))
    one, other = (
        LibrdkafkaWriter(scene.pair.source.bootstrap, scene.topic, f"{scene.topic}-{name}", {"compression.type": codec})
        for name, codec in (("one", "gzip"), ("other", "none"))
    )
    for step in ("commit", "abort", "abort", "commit"):
        one.send([next(records) for _ in range(7)])
        other.send([next(records) for _ in range(3)])
        witness.produce(scene.pair.source.bootstrap, scene.topic, [next(records) for _ in range(4)])
        getattr(one, step)()
        other.send([next(records) for _ in range(2)])
        (other.commit if step == "abort" else other.abort)()
    one.close()
    other.close()


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_a_source_of_transactions(scene: Scene, codec: str) -> None:
    scene.create()
    write_transactions(scene)
    seen, everything = committed(scene.pair.source, scene.topic), read_by_kafka_python(scene.pair.source, scene.topic)
    aborted = everything.keys() - {each.offset for each in seen}
    assert len(seen) == 40
    assert len(aborted) == 24
    write_copy(scene, seen, **{"compression.type": codec})
    lane = scene.only_lane(0)
    assert (lane["outcome"], lane["records"]) == ("equal", 40)
    within = [at for at in aborted if seen[0].offset < at < seen[-1].offset]
    assert lane["passed_over"] == len(within) > 0
    scene.options = {"isolation": "read_uncommitted"}
    assert scene.only_lane(3)["reason"] == f"source offset {min(within)}: a record that the offset map leaves out"


def test_a_committed_record_that_a_link_has_lost(scene: Scene) -> None:
    scene.create()
    write_transactions(scene)
    seen = committed(scene.pair.source, scene.topic)
    write_copy(scene, [*seen[:17], *seen[18:]])
    lane = scene.only_lane(3)
    assert lane["reason"] == f"source offset {seen[17].offset}: a record that the offset map leaves out"


def test_a_record_of_an_aborted_transaction_that_a_link_has_copied(scene: Scene) -> None:
    scene.create()
    write_transactions(scene)
    seen = {each.offset for each in committed(scene.pair.source, scene.topic)}
    everything = witness.dump(scene.pair.source.bootstrap, scene.topic)[0]
    write_copy(scene, everything)
    at = next(number for number, each in enumerate(everything) if each.offset not in seen)
    where = f"source offset {everything[at].offset}, target offset {at}"
    assert scene.only_lane(3)["reason"] == f"{where}: a record of a transaction that the source aborted"
    scene.options = {"isolation": "read_uncommitted"}
    assert scene.only_lane(0)["records"] == 64


def test_a_link_that_edits_and_filters(scene: Scene) -> None:
    scene.create()
    tagged: Headers = (("replicated", b"yes"),)
    produce_in_batches(scene.pair.source, scene.topic, WANTED, 20)
    kept = [each for each in committed(scene.pair.source, scene.topic) if not (each.key or b"").endswith(b"1")]
    write_copy(scene, [each._replace(headers=each.headers + tagged) for each in kept])
    assert scene.only_lane(3)["reason"] == "source offset 0, target offset 0: another headers"
    edits: list[Any] = [{"set_header": {"name": "replicated", "value": "yes"}}]
    scene.options = {"edits": edits}
    assert scene.only_lane(3)["reason"] == "source offset 1: a record that the offset map leaves out"
    edits.append({"drop": True, "where": {"key": {"suffix": "1"}}})
    lane = scene.only_lane(0)
    assert (lane["outcome"], lane["records"], lane["edited"], lane["passed_over"]) == ("equal", 54, 54, 6)
    assert "another headers, which the link's edits explain" in lane["reason"]
    assert "54 compared without what the link changes of them" in scene.verify().stdout


def test_dead_letters(scene: Scene) -> None:
    """A record that could not be copied is missing, until it stands in the dead-letter topic."""
    scene.create()
    witness.produce(scene.pair.source.bootstrap, scene.topic, WANTED)
    seen = committed(scene.pair.source, scene.topic)
    write_copy(scene, [each for each in seen if each.offset not in (31, 32)])
    config = load(scene.link_file)
    link, cluster = config.links[0], config.clusters["target"]

    async def divert(offset: int) -> None:
        await ensure_dead_letter_topic(link, config.clusters)
        letters, lost = DeadLetters(link, cluster), seen[offset]
        content = lost.timestamp, lost.key, lost.value, ()
        await letters.send(DeadLetter(scene.topic, 0, offset, *content, "too large"))
        await letters.close()

    for missing in (31, 32):
        reason = f"source offset {missing}: a record that the offset map leaves out"
        assert scene.only_lane(3)["reason"] == reason
        asyncio.run(divert(missing))
    lane = scene.only_lane(0)
    assert (lane["records"], lane["passed_over"]) == (58, 2)


def test_records_that_one_side_has_deleted(scene: Scene) -> None:
    scene.create()
    produce_in_batches(scene.pair.source, scene.topic, WANTED, 10)
    scene.copy()
    scene.claim_everything()
    delete_records(scene.pair.source, scene.topic, 15)
    report = scene.report(0)
    assert (report["records"], report["gone"], report["claimed"]) == (45, 15, 60)
    delete_records(scene.pair.target, scene.topic, 33)
    report = scene.report(0)
    assert (report["records"], report["gone"]) == (27, 33)
    assert "33 deleted since and not comparable any more" in scene.verify().stdout
    delete_records(scene.pair.source, scene.topic, 60)
    report = scene.report(1)
    assert (report["outcome"], report["records"], report["gone"]) == ("gone", 0, 60)


def test_topics_that_are_not_what_they_were(scene: Scene) -> None:
    scene.create()
    witness.produce(scene.pair.source.bootstrap, scene.topic, WANTED)
    scene.copy()
    scene.claim_everything()
    witness.delete_topic(scene.pair.source.bootstrap, scene.topic)
    assert scene.only_lane(1)["reason"] == f"there is no topic {scene.topic} on source any more"
    create_topic(scene.pair.source, scene.topic)
    witness.produce(scene.pair.source.bootstrap, scene.topic, WANTED)
    lane = scene.only_lane(1)
    assert lane["outcome"] == "unknown"
    assert lane["reason"] == f"topic {scene.topic} on source was deleted and made anew since it was copied"


def test_a_target_topic_that_was_made_anew(scene: Scene) -> None:
    scene.create()
    witness.produce(scene.pair.source.bootstrap, scene.topic, WANTED)
    scene.copy()
    scene.claim_everything()
    witness.delete_topic(scene.pair.target.bootstrap, scene.topic)
    create_topic(scene.pair.target, scene.topic)
    assert scene.only_lane(3)["outcome"] == "differs"


def test_a_part_and_a_sample(scene: Scene) -> None:
    scene.create()
    produce_in_batches(scene.pair.source, scene.topic, WANTED, 10)
    scene.copy()
    scene.claim_everything()
    assert scene.report(0, "--from", "25", "--to", "40")["records"] == 15
    assert scene.report(0, "--from", "2026-05-28T20:26:40.251Z")["records"] == 34
    assert scene.report(0, "--to", "2026-05-28T20:26:40.251Z")["records"] == 26
    assert scene.report(1, "--from", "60")["outcome"] == "empty"
    sampled = scene.report(0, "--sample", "0.5", "--seed", "once")
    assert (sampled["fraction"], sampled["seed"]) == (0.5, "once")
    assert scene.report(0, "--sample", "0.5", "--seed", "once")["lanes"] == sampled["lanes"]
    assert "repeat it with --seed " in scene.verify("--sample", "0.01").stdout


def test_what_cannot_be_verified(scene: Scene) -> None:
    scene.create()
    unknown = scene.verify()
    assert unknown.exit_code == 2
    assert "has no state on `target`" in unknown.stderr
    scene.write_state({0: []})
    assert scene.report(1)["outcome"] == "empty"
    nothing = scene.verify("--topics", "nope")
    assert nothing.exit_code == 1
    assert "nothing to compare" in nothing.stderr
    assert scene.verify("--link", "nope").exit_code == 2


def audited(scene: Scene, segments: Segments, times: int) -> tuple[Auditor[str], list[tuple[str, str]]]:
    """The worker's continuous audit of the one lane, so many stretches of it."""
    reported: list[tuple[str, str]] = []

    async def audit() -> Auditor[str]:
        pool = Pool(16 << 20)
        clusters = [
            Cluster(
                (("127.0.0.1", int(side.bootstrap.rsplit(":", 1)[1])),), ConnectionSettings(alias, "t", 30_000, pool)
            )
            for alias, side in (("source", scene.pair.source), ("target", scene.pair.target))
        ]
        for cluster in clusters:
            await cluster.refresh([scene.topic])
        recent = Recent(*(Partition(cluster, scene.topic, 0) for cluster in clusters), segments)
        auditor = Auditor(lambda: ["lane"], lambda lane: recent, lambda *report: reported.append(report))
        for _ in range(times):
            await auditor.audit_once()
        for cluster in clusters:
            await cluster.close()
        return auditor

    return asyncio.run(audit()), reported


def test_the_continuous_audit(scene: Scene) -> None:
    scene.create()
    for side, records in ((scene.pair.source, WANTED), (scene.pair.target, changed(31, value=b"Value 31"))):
        produce_in_batches(side, scene.topic, records, 10)
    good, nothing = audited(scene, [(0, 0, 30), (40, 40, 20)], times=20)
    assert (good.differences, good.unknown, nothing) == (0, 0, [])
    assert 20 * 20 <= good.records <= 20 * 30, "one of the two segments each time"
    found, reported = audited(scene, [(0, 0, 60)], times=1)
    at = scene.first_difference()
    assert found.differences == 1
    assert reported == [("lane", f"source offset {at}, target offset {at}: another value")]
