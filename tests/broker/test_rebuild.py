"""What cannot pass as it is arrives all the same, as consumers see it, and the offset map is exact for every offset."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from confluent_kafka.admin import AdminClient

from replicator.cli.main import main
from tests.broker.admin import create_topic
from tests.broker.carrying import bring, carry, name_of
from tests.broker.copies import Pair, stored_batches
from tests.broker.log_shape import CODECS, log_shape
from tests.broker.special_logs import (
    APPEND_TIME,
    NUMBER,
    copy_topic,
    write_all_codecs,
    write_append_time,
    write_compacted,
    write_cut_head,
    write_growing_batches,
    write_large_batches,
)
from tests.broker.visible import Copied, Pairs, match
from tests.harness import witness
from tests.harness.java import JavaWitness
from tests.harness.kafka import KafkaCluster
from tests.harness.records import NewRecord, Record

pytestmark = pytest.mark.broker

Write = Callable[[KafkaCluster, str], object]
PARTITIONS = len(CODECS)
LIMIT_BYTES = 4_000


def soak(value: str) -> Any:
    """This case in the long runs only."""
    return pytest.param(value, marks=pytest.mark.soak)


@pytest.fixture
def pair(kafka4: KafkaCluster, kafka4_second: KafkaCluster) -> Pair:
    return Pair(kafka4, kafka4_second)


@pytest.fixture(scope="module")
def compacted(kafka4: KafkaCluster) -> str:
    """A topic of `kafka4` that many links may read."""
    write_compacted(kafka4, "rebuild-compacted")
    return "rebuild-compacted"


@pytest.fixture(scope="module")
def codecs(kafka4: KafkaCluster) -> str:
    write_all_codecs(kafka4, "rebuild-codecs")
    return "rebuild-codecs"


def renamed(topic: str, name: str) -> dict[str, Any]:
    """Options of a link: what is called `topic` on the source is called `name` on the target."""
    return {"rename": {"regex": topic, "replacement": name}}


def command(*words: str) -> tuple[int, Any]:
    """Exit code, and the JSON on stdout."""
    done = CliRunner().invoke(main, [*words, "--json"])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, json.loads(done.stdout or "null")


def dead_letters(pair: Pair, config: dict[str, Any]) -> int:
    """How many there are; the topic need not be there."""
    topic = f"{name_of(config)}.dlq"
    admin = AdminClient({"bootstrap.servers": pair.target.bootstrap, "log_level": 0})
    if topic not in admin.list_topics(timeout=30).topics:
        return 0
    return sum(map(len, witness.dump(pair.target.bootstrap, topic).values()))


def target_codecs(pair: Pair, topic: str, partition: int = 0) -> set[str]:
    shape = log_shape(pair.target, topic, partition)
    return {codec for codec in CODECS if shape[codec]}


# ---- compaction ----


def test_compacted(pair: Pair, java4: JavaWitness, compacted: str, topic_name: str) -> None:
    copy_topic(pair.target, topic_name)
    config = carry(pair, compacted, **renamed(compacted, topic_name))
    Copied(pair, compacted, topic_name).check(name_of(config), java4, records_min=300)
    assert dead_letters(pair, config) == 0
    shape = log_shape(pair.target, topic_name)
    assert [shape[word] for word in ("holes", "empty", "horizon", "gaps")] == [0, 0, 0, 0]
    assert all(shape[codec] for codec in CODECS), "each batch keeps its codec"


def test_compacted_and_timed_by_the_broker(pair: Pair, java4: JavaWitness, topic_name: str) -> None:
    write_compacted(pair.source, topic_name, seed=2, config=APPEND_TIME)
    copy_topic(pair.target, topic_name)
    config = carry(pair, topic_name)
    Copied(pair, topic_name).check(name_of(config), java4, records_min=300)


@pytest.mark.soak
def test_compacted_in_small_fetches(pair: Pair, compacted: str, topic_name: str) -> None:
    copy_topic(pair.target, topic_name)
    limits = {"fetch_bytes_max": 1_024, "lane_bytes_max": 1 << 20}
    config = carry(pair, compacted, limits=limits, **renamed(compacted, topic_name))
    Copied(pair, compacted, topic_name).check(name_of(config), records_min=300)


def test_the_link_goes_on_behind_what_it_rebuilt(pair: Pair, compacted: str, topic_name: str, tmp_path: Path) -> None:
    """Ended in order, and started again, twice; and its own verification agrees."""
    copy_topic(pair.target, topic_name)
    config = carry(pair, compacted, **renamed(compacted, topic_name))
    first = witness.dump(pair.target.bootstrap, topic_name)
    for _ in range(2):
        bring(pair, config, compacted)
    assert witness.dump(pair.target.bootstrap, topic_name) == first
    (found,) = Copied(pair, compacted, topic_name).check(name_of(config)).values()
    file = tmp_path / "link.yaml"
    file.write_text(json.dumps(config))
    code, report = command("verify", str(file), "--full")
    assert (code, report["outcome"], report["problems"]) == (0, "equal", [])
    assert report["records"] == len(found)


def test_copy_of_a_compacted_topic(pair: Pair, java4: JavaWitness, compacted: str) -> None:
    """By `replicator copy`, which verifies what it did."""
    copy_topic(pair.target, compacted)
    ends = ["--from", pair.source.bootstrap, "--to", pair.target.bootstrap]
    code, report = command("copy", *ends, "--workers", "1", "--topics", compacted)
    (found,) = Copied(pair, compacted).check_records(java4, records_min=300).values()
    assert (code, report["outcome"], report["records"]) == (0, "equal", len(found))


# ---- times ----


def test_append_time_into_create_time(pair: Pair, java4: JavaWitness, topic_name: str) -> None:
    """Consumers go on to see the time that the source's broker gave."""
    write_append_time(pair.source, topic_name)
    config = carry(pair, topic_name)
    Copied(pair, topic_name).check(name_of(config), java4, records_min=900)
    (records,) = witness.dump(pair.target.bootstrap, topic_name).values()
    assert {record.timestamp_type for record in records} == {"CreateTime"}
    assert target_codecs(pair, topic_name) == set(CODECS)


@pytest.mark.parametrize("write", [write_append_time, write_all_codecs])
def test_into_append_time(pair: Pair, java4: JavaWitness, topic_name: str, write: Write) -> None:
    """The target's broker gives times of its own; all else is the same."""
    write(pair.source, topic_name)
    partitions = 1 if write is write_append_time else PARTITIONS
    create_topic(pair.target, topic_name, partitions, APPEND_TIME)
    config = carry(pair, topic_name, partitions)
    Copied(pair, topic_name, times=False, partitions=partitions).check(name_of(config), java4, records_min=900)
    for records in witness.dump(pair.target.bootstrap, topic_name).values():
        assert {record.timestamp_type for record in records} == {"LogAppendTime"}


# ---- where the log starts ----


def test_a_log_that_starts_inside_a_batch(pair: Pair, java4: JavaWitness, topic_name: str) -> None:
    write_cut_head(pair.source, topic_name)
    config = carry(pair, topic_name, PARTITIONS)
    found = Copied(pair, topic_name, partitions=PARTITIONS).check(name_of(config), java4)
    assert [pairs[0] for pairs in found.values()] == [(21, 0), (25, 0), (29, 0), (33, 0), (37, 0)]


# ---- size and codec ----


def largest(pair: Pair, topic: str) -> int:
    """Bytes of the largest batch on the target."""
    batches = (witness.raw_batches(pair.target.bootstrap, topic, part) for part in range(PARTITIONS))
    return max(len(batch) for part in batches for batch in part)


def test_batches_over_the_limit_are_split(pair: Pair, java4: JavaWitness, topic_name: str) -> None:
    write_large_batches(pair.source, topic_name, LIMIT_BYTES)
    copy_topic(pair.target, topic_name, PARTITIONS, {"max.message.bytes": str(LIMIT_BYTES)})
    config = carry(pair, topic_name, PARTITIONS)
    Copied(pair, topic_name, partitions=PARTITIONS).check(name_of(config), java4, records_min=1_500)
    assert LIMIT_BYTES // 2 < largest(pair, topic_name) <= LIMIT_BYTES
    assert dead_letters(pair, config) == 0


@pytest.mark.parametrize("compression", ["uncompressed", "zstd", *map(soak, ["gzip", "snappy", "lz4"])])
def test_a_codec_that_the_target_insists_on(pair: Pair, codecs: str, topic_name: str, compression: str) -> None:
    copy_topic(pair.target, topic_name, PARTITIONS, {"compression.type": compression})
    config = carry(pair, codecs, PARTITIONS, **renamed(codecs, topic_name))
    Copied(pair, codecs, topic_name, partitions=PARTITIONS).check(name_of(config), records_min=1_500)
    wanted = "none" if compression == "uncompressed" else compression
    assert [target_codecs(pair, topic_name, part) for part in range(PARTITIONS)] == [{wanted}] * PARTITIONS


@pytest.mark.parametrize("codec", ["lz4", *map(soak, sorted({*CODECS} - {"lz4"}))])
def test_a_codec_that_the_link_is_told(
    pair: Pair, java4: JavaWitness, codecs: str, topic_name: str, codec: str
) -> None:
    batches = [{"codec": codec}]
    config = carry(pair, codecs, PARTITIONS, batches=batches, **renamed(codecs, topic_name))
    Copied(pair, codecs, topic_name, partitions=PARTITIONS).check(name_of(config), java4, records_min=1_500)
    assert [target_codecs(pair, topic_name, part) for part in range(PARTITIONS)] == [{codec}] * PARTITIONS


def test_batches_that_are_too_large_once_the_target_has_unpacked_them(pair: Pair, topic_name: str) -> None:
    write_growing_batches(pair.source, topic_name)
    copy_topic(pair.target, topic_name, PARTITIONS, {"compression.type": "uncompressed", "max.message.bytes": "100000"})
    config = carry(pair, topic_name, PARTITIONS)
    Copied(pair, topic_name, partitions=PARTITIONS).check(name_of(config), records_min=500)
    assert largest(pair, topic_name) <= 100_000
    assert dead_letters(pair, config) == 0


# ---- merging ----


def test_small_batches_are_merged(pair: Pair, java4: JavaWitness, topic_name: str) -> None:
    """Of each codec, by a link that is told to; the map knows every record."""
    create_topic(pair.source, topic_name, PARTITIONS)
    for part, codec in enumerate(CODECS):
        records = (NewRecord(part, b"%d" % n, b"value %d" % n * 10) for n in range(400))
        config = {"batch.num.messages": 2, "linger.ms": 50, "compression.type": codec}
        witness.produce(pair.source.bootstrap, topic_name, records, config)
    link = carry(pair, topic_name, PARTITIONS, batches=[{"merge": "always", "linger_ms": 50}])
    Copied(pair, topic_name, partitions=PARTITIONS).check(name_of(link), java4, records_min=2_000)
    before, after = (
        [len(stored_batches(side, topic_name, part)) for part in range(PARTITIONS)]
        for side in (pair.source, pair.target)
    )
    assert all(many >= 200 > 3 * few for many, few in zip(before, after, strict=True)), (before, after)
    assert all(codec in target_codecs(pair, topic_name, part) for part, codec in enumerate(CODECS))


# ---- edits and filters ----


def check_edited(pair: Pair, topics: tuple[str, str], edit: Callable[[Record], Any]) -> Pairs:
    """`edit` says what becomes of a record, None for one that is left out."""
    wanted = [edited for record in witness.dump(pair.source.bootstrap, topics[0])[0] if (edited := edit(record))]
    pairs = match(wanted, witness.dump(pair.target.bootstrap, topics[1])[0])
    assert len(pairs) >= 100
    return pairs


FILTERS: dict[str, tuple[dict[str, Any], Callable[[Record], bool]]] = {
    "drop tombstones": ({"drop": "tombstones"}, lambda record: record.value is not None),
    "drop by key": (
        {"drop": True, "where": {"key": {"prefix": "shared-"}}},
        lambda record: not (record.key or b"").startswith(b"shared-"),
    ),
    "keep by key": (
        {"keep": True, "where": {"key": {"prefix": "own-"}}},
        lambda record: (record.key or b"").startswith(b"own-"),
    ),
    "keep by time": (
        {"keep": True, "where": {"timestamp": {"from": 1_770_000_500_000, "to": 1_770_003_000_000}}},
        lambda record: 1_770_000_500_000 <= record.timestamp < 1_770_003_000_000,
    ),
    "drop by size": (
        {"drop": True, "where": {"larger_than": 1_000}},
        lambda record: len(record.value or b"") < 1_000,
    ),
    "drop by header": (
        {"drop": True, "where": {"header": {"name": NUMBER, "suffix": "7"}}},
        lambda record: not (dict(record.headers)[NUMBER] or b"").endswith(b"7"),
    ),
    "keep everything": ({"drop": True, "where": {"key": {"equals": "nobody"}}}, lambda record: True),
}


@pytest.mark.parametrize("name", [*list(FILTERS)[:3], *map(soak, list(FILTERS)[3:])])
def test_filters(pair: Pair, compacted: str, topic_name: str, name: str) -> None:
    edit, keep = FILTERS[name]
    copy_topic(pair.target, topic_name)
    config = carry(pair, compacted, edits=[{"topics": [compacted], **edit}], **renamed(compacted, topic_name))
    (found,) = Copied(pair, compacted, topic_name, keep=keep).check(name_of(config), records_min=100).values()
    everything = witness.dump(pair.source.bootstrap, compacted)[0]
    assert (len(found) < len(everything)) == (name != "keep everything")


def test_a_filter_that_leaves_nothing(pair: Pair, codecs: str, topic_name: str) -> None:
    copy_topic(pair.target, topic_name, PARTITIONS)
    edits = [{"keep": True, "where": {"key": {"equals": "nobody"}}}]
    config = carry(pair, codecs, PARTITIONS, edits=edits, **renamed(codecs, topic_name))
    copied = Copied(pair, codecs, topic_name, keep=lambda record: False, partitions=PARTITIONS)
    assert copied.check(name_of(config), records_min=0) == dict.fromkeys(range(PARTITIONS), ())


def test_headers_are_changed(pair: Pair, compacted: str, topic_name: str) -> None:
    copy_topic(pair.target, topic_name)
    edits = [
        {"add_header": {"name": "from", "value": "afar"}},
        {"rename_header": {"matching": "(n)", "to": r"number-\1"}},
        {"set_header": {"name": "odd", "value": None}, "where": {"key": {"suffix": "1"}}},
    ]
    carry(pair, compacted, edits=edits, **renamed(compacted, topic_name))

    def edit(record: Record) -> Record:
        odd = (("odd", None),) if (record.key or b"").endswith(b"1") else ()
        named = tuple(("number-n", value) for _, value in record.headers)
        return record._replace(headers=(*named, ("from", b"afar"), *odd))

    pairs = check_edited(pair, (compacted, topic_name), edit)
    plain = Copied(pair, compacted, topic_name)
    assert dict(pairs).keys() == {record.offset for record in plain.original()[0]}


def test_provenance(pair: Pair, codecs: str, topic_name: str) -> None:
    """Whole batches that could pass are rebuilt, too, since every record is to say where it is from."""
    carry(pair, codecs, PARTITIONS, provenance=True, **renamed(codecs, topic_name))
    originals, copies = (
        witness.dump(cluster.bootstrap, name) for cluster, name in ((pair.source, codecs), (pair.target, topic_name))
    )
    clusters: Counter[bytes | None] = Counter()
    for part, records in originals.items():
        assert len(copies[part]) == len(records)
        for record, copy in zip(records, copies[part], strict=True):
            assert (copy.timestamp, copy.key, copy.value) == (record.timestamp, record.key, record.value)
            assert copy.headers[: len(record.headers)] == record.headers
            added = dict(copy.headers[len(record.headers) :])
            clusters[added.pop("replicator.source.cluster")] += 1
            assert added.pop("replicator.hops") in clusters
            place = {"topic": codecs.encode(), "partition": b"%d" % part, "offset": b"%d" % record.offset}
            assert added == {f"replicator.source.{word}": value for word, value in place.items()}
    assert len(clusters) == 1
