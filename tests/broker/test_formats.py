"""Whatever a producer may have written arrives unchanged: codecs, writers, contents and shapes, between all versions.

Each pair of clusters is set up once: every topic is written, then one link copies them all, then the tests look.
A codec and the client that used it have a partition of their own, so that one topic holds all combinations.
"""

import itertools
import random
from functools import cache

import pytest

from tests.broker.admin import create_topic
from tests.broker.batches import Entry, make_batch, now_ms
from tests.broker.copies import Copy, Pair, stored_batches
from tests.broker.raw import RawClient
from tests.harness import witness
from tests.harness.java import JavaWitness
from tests.harness.link import UNMERGED, RunningLink, link_config
from tests.harness.records import NewRecord

pytestmark = pytest.mark.broker

PAIRS = [("kafka4", "kafka4_second"), ("kafka3", "kafka4"), ("kafka4", "kafka3"), ("kafka3", "kafka3_second")]
CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
WRITERS = "java", "librdkafka"
COMBINATIONS = list(itertools.product(WRITERS, CODECS))
EMPTY = len(COMBINATIONS)  # the partition behind them, which stays empty
PREFIX = "copy."
WIDE_PARTITIONS = 50
NEAR_LIMIT_BYTES = 1_000_000  # brokers take batches up to 1,048,588 bytes by default
DAY_MS = 86_400_000
YEAR_MS = 365 * DAY_MS

# Every distinction that a careless copy loses.
AWKWARD: list[NewRecord] = [
    NewRecord(0, b"key", b"value", (), 1_500_000_000_000),
    NewRecord(0, None, b"no key", (), 1_500_000_000_001),
    NewRecord(0, b"tombstone", None, (), 1_500_000_000_002),
    NewRecord(0, None, None, (), 1_500_000_000_003),
    NewRecord(0, b"", b"", (), 1),
    NewRecord(0, b"h", b"1", (("one", b"1"), ("null", None), ("empty", b"")), 1_500_000_000_004),
    NewRecord(0, b"h", b"2", (("again", b"b"), ("other", b"x"), ("again", b"a"), ("again", b"b")), 1_400_000_000_000),
    NewRecord(0, b"h", b"3", (("größe 大小", bytes(range(256))), ("", b"no name")), 1_500_000_000_006),
    NewRecord(0, "ключ".encode(), "值 🚀".encode(), (("emoji 🎉", "ß".encode()),), 1_500_000_000_007),
]


@cache
def rounds() -> list[list[NewRecord]]:
    """What goes into a partition, each round by a client of its own: a batch ends with it."""
    noise = random.Random(7)
    many = [NewRecord(0, b"%d" % number, noise.randbytes(20) * noise.randrange(20)) for number in range(2_000)]
    near_limit = NewRecord(0, b"large", noise.randbytes(NEAR_LIMIT_BYTES), (), 1_600_000_000_000)
    return [AWKWARD, [near_limit], AWKWARD[::-1], many, [NewRecord(0, None, b"")]]


def write(pair: Pair, java: JavaWitness, topic: str, partition: int) -> None:
    writer, codec = COMBINATIONS[partition]
    produce = java.produce if writer == "java" else witness.produce
    limit = "max.request.size" if writer == "java" else "message.max.bytes"
    config = {"compression.type": codec, "linger.ms": "50", limit: "1048576"}
    for records in rounds():
        produce(pair.source.bootstrap, topic, [record._replace(partition=partition) for record in records], config)


def write_times(pair: Pair, topic: str) -> None:
    """Clients refuse to write the oddest times, so a hand-made batch does: below 1970, and ahead within limits."""
    odd = [0, -1, -2, 1, now_ms() - 50 * YEAR_MS, now_ms() + 3_000_000]
    with RawClient(pair.source) as client:
        for batch in (
            make_batch([Entry(b"odd", timestamp=time) for time in odd]),
            make_batch([Entry(b"%d" % time, timestamp=time) for time in odd], base_timestamp=-1),
            make_batch([Entry(b"long ago")], base_timestamp=-(2**62)),
        ):
            assert client.produce(topic, batch.encode()).error == 0


class Copies:
    """The copies that one link made between a pair of clusters, by what their topics are for."""

    def __init__(self, pair: Pair, java: JavaWitness, tag: str) -> None:
        self.pair, self.java = pair, java
        names = {"formats": f"{tag}.formats", "wide": f"{tag}_wide-and_dashed", "times": f"{tag}-times"}
        self.topics = {role: Copy(pair, name, PREFIX + name, java) for role, name in names.items()}

    def make(self) -> None:
        formats, wide, times = (self.topics[role].topic for role in ("formats", "wide", "times"))
        for topic, partitions in ((formats, EMPTY + 1), (wide, WIDE_PARTITIONS), (times, 1)):
            create_topic(self.pair.source, topic, partitions)
        for partition in range(len(COMBINATIONS)):
            write(self.pair, self.java, formats, partition)
        for _ in range(2):
            some = [NewRecord(part, b"%d" % part, b"wide") for part in range(0, WIDE_PARTITIONS, 3) for _ in range(9)]
            witness.produce(self.pair.source.bootstrap, wide, some)
        write_times(self.pair, times)

    def copy(self, tag: str) -> None:
        config = link_config(
            self.pair.source.bootstrap,
            self.pair.target.bootstrap,
            f"{tag}.*",
            link={"rename": {"prefix": PREFIX}, **UNMERGED},
        )
        with RunningLink(config, stop="now") as link:
            ends = {
                (copy.topic, part): len(log) for copy in self.topics.values() for part, log in copy.original.items()
            }
            link.wait_until_copied(ends)


@pytest.fixture(scope="module", params=PAIRS, ids=[" to ".join(pair) for pair in PAIRS])
def copies(request: pytest.FixtureRequest, java4: JavaWitness) -> Copies:
    source, target = map(request.getfixturevalue, request.param)
    tag = "formats-" + "-".join(request.param).replace("_", "-")
    made = Copies(Pair(source, target), java4, tag)
    made.make()
    made.copy(tag)
    return made


@pytest.mark.parametrize(("writer", "codec"), COMBINATIONS)
def test_every_codec_of_every_writer(copies: Copies, writer: str, codec: str) -> None:
    copy, partition = copies.topics["formats"], COMBINATIONS.index((writer, codec))
    written = [record for records in rounds() for record in records]
    read = copy.check(partition, records_min=len(written), batches_min=len(rounds()))
    assert [record[3:] for record in read] == [record[1:4] for record in written]
    assert [record.timestamp for record in read[: len(AWKWARD)]] == [record.timestamp for record in AWKWARD]
    batches = stored_batches(copies.pair.target, copy.target_topic, partition)
    # A client sends what does not get smaller as it is.
    assert {batch.attributes for batch in batches} - {0} == {CODECS[codec]} - {0}
    assert max(len(batch.records) for batch in batches) >= NEAR_LIMIT_BYTES


def test_an_empty_partition_stays_empty(copies: Copies) -> None:
    copy = copies.topics["formats"]
    assert copy.original[EMPTY] == copy.copied[EMPTY] == copy.copied_by_java[EMPTY] == []
    assert len(copy.copied) == EMPTY + 1


def test_fifty_partitions_most_of_them_empty(copies: Copies) -> None:
    copy = copies.topics["wide"]
    assert len(copy.copied) == WIDE_PARTITIONS
    for partition in range(WIDE_PARTITIONS):
        if partition % 3:
            assert copy.copied[partition] == copy.copied_by_java[partition] == []
        else:
            assert len(copy.check(partition, batches_min=2)) == 18


def test_times_of_all_ages(copies: Copies) -> None:
    """Times before 1970 are compared as bytes: librdkafka and Java have no name for some of them."""
    copy = copies.topics["times"]
    assert len(copy.check(batches_min=3)) == 13
    base_times = [batch.base_timestamp for batch in stored_batches(copies.pair.target, copy.target_topic)]
    assert min(base_times) == -(2**62)
