"""What our codecs make is what brokers, Java and librdkafka read; and what those two write, ours open.

Batches are made by hand and their records packed by ours, so that the brokers' own check of every record, and both
consumers, judge nothing but the packing.
"""

import gzip
import random
from dataclasses import replace
from functools import cache

import pytest

from replicator._core import crc32c
from replicator.data import codecs
from replicator.data.codecs import CODECS, GZIP, LZ4, NONE, SNAPPY, ZSTD, decode, encode
from replicator.data.unpack import split_records
from tests.broker.admin import create_topic
from tests.broker.batches import Batch, Entry, make_batch, numbered
from tests.broker.copies import stored_batches
from tests.broker.raw import RawClient
from tests.harness import witness
from tests.harness.java import JavaWitness
from tests.harness.kafka import KafkaCluster
from tests.harness.records import NewRecord, Record
from tests.oracle.batch import CRC_STARTS_AT

pytestmark = pytest.mark.broker

# (codec, level, with the optional library for gzip)
WAYS = [
    (NONE, None, True),
    (GZIP, None, True),
    (GZIP, None, False),
    (GZIP, 9, True),
    (SNAPPY, None, True),
    (LZ4, None, True),
    (ZSTD, None, True),
    (ZSTD, -5, True),
    (ZSTD, 19, True),
]
SIZES = [1, 100, 1000, (32 << 10) - 30, 32 << 10, (64 << 10) - 30, 64 << 10, 131_072, 200_000, 900_000]
WRITTEN_BYTES = 300_000


@pytest.fixture(params=WAYS, ids=lambda way: f"{CODECS[way[0]]} {way[1] or ''}{'' if way[2] else 'without isal'}")
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int | None]:
    codec, level, with_isal = request.param
    if not with_isal:
        monkeypatch.setattr(codecs, "isal_zlib", None)
        monkeypatch.setattr(codecs, "igzip_lib", None)
    elif codec == GZIP and level is None:
        pytest.importorskip("isal")
    return codec, level


@cache
def shapes() -> list[list[Entry]]:
    """Batches of every size: of what shrinks and of what does not, of one record and of many."""
    noise = random.Random(5)
    single = [[Entry(content(size), None)] for size in SIZES for content in (noise.randbytes, bytes, log_lines)]
    many = [[Entry(noise.randbytes(n % 90), b"%d" % n) for n in range(count)] for count in (2, 500, 8000)]
    return [*single, *many, [Entry(None, None)], numbered(20_000)]


def log_lines(size: int) -> bytes:
    return b"".join(b'{"number": %d, "level": "INFO"}\n' % n for n in range(size // 30 + 1))[:size]


def packed(batch: Batch, codec: int, level: int | None = None) -> Batch:
    """With a checksum by the fast routine, which the broker checks: the oracle's would take most of the time."""
    batch = replace(batch, attributes=codec, records=bytes(encode(codec, batch.records, level)), crc=0)
    return replace(batch, crc=crc32c(batch.encode()[CRC_STARTS_AT:]))


def contents(records: list[Record]) -> list[tuple[bytes | None, bytes | None]]:
    return [(record.key, record.value) for record in records]


def named(cluster: KafkaCluster, *parts: object) -> str:
    return "-".join(map(str, ("codecs", *parts, cluster.bootstrap.rsplit(":", 1)[1])))


def test_what_we_pack_is_read_by_all(
    either_kafka: KafkaCluster, java4: JavaWitness, way: tuple[int, int | None]
) -> None:
    codec, level = way
    topic = named(either_kafka, CODECS[codec], level, codecs.isal_zlib is not None)
    create_topic(either_kafka, topic)
    sent = [packed(make_batch(entries), codec, level) for entries in shapes()]
    assert max(len(batch.records) for batch in sent) > 900_000 - 1000
    with RawClient(either_kafka) as client:
        for batch in sent:
            assert client.produce(topic, batch.encode()).error == 0, len(batch.records)
    stored = stored_batches(either_kafka, topic)
    assert [batch.records for batch in stored] == [batch.records for batch in sent], "the broker changed nothing"
    wanted = [(entry.key, entry.value) for entries in shapes() for entry in entries]
    (by_librdkafka,) = witness.dump(either_kafka.bootstrap, topic).values()
    (by_java,) = java4.dump(either_kafka.bootstrap, topic).values()
    assert contents(by_librdkafka) == wanted
    assert by_java == by_librdkafka


@pytest.mark.parametrize("codec", [GZIP, SNAPPY, LZ4, ZSTD])
@pytest.mark.parametrize("writer", ["java3", "java4", "librdkafka"])
def test_what_clients_pack_is_opened(
    kafka4: KafkaCluster, writer: str, codec: int, request: pytest.FixtureRequest
) -> None:
    produce = witness.produce if writer == "librdkafka" else request.getfixturevalue(writer).produce
    topic = named(kafka4, writer, CODECS[codec])
    create_topic(kafka4, topic)
    noise = random.Random(6)
    records = [NewRecord(0, b"%d" % n, log_lines(n) + noise.randbytes(n % 60)) for n in range(1000)]
    records += [NewRecord(0, None, log_lines(WRITTEN_BYTES)), NewRecord(0, b"", noise.randbytes(1000) * 300)]
    config = {"compression.type": CODECS[codec], "linger.ms": "50", "batch.size": "1000000"}
    produce(kafka4.bootstrap, topic, records, config)
    batches = stored_batches(kafka4, topic)
    assert {batch.attributes for batch in batches} == {codec}
    found = [record for batch in batches for record in split_records(bytes(decode(codec, batch.records)), batch.count)]
    assert [(record.key, record.value) for record in found] == [(record.key, record.value) for record in records]


# What stands behind the end: the broker takes such batches, so they are in logs, and Java reads all of their records.
BEHIND = {
    "a second gzip member": (GZIP, lambda data: gzip.compress(data[:300]) + gzip.compress(data[300:])),
    "no gzip member": (GZIP, lambda data: gzip.compress(data) + b"garbage!"),
    "garbage behind lz4": (LZ4, lambda data: bytes(encode(LZ4, data)) + b"garbage!"),
}


@pytest.mark.parametrize("case", BEHIND)
def test_what_stands_behind_the_end_is_read_as_brokers_do(
    either_kafka: KafkaCluster, java4: JavaWitness, case: str
) -> None:
    codec, pack = BEHIND[case]
    topic, mended = (named(either_kafka, case.replace(" ", "-"), which) for which in ("odd", "mended"))
    entries = numbered(100)
    odd = make_batch(entries)
    odd = replace(odd, attributes=codec, records=pack(odd.records))
    for name in (topic, mended):
        create_topic(either_kafka, name)
    with RawClient(either_kafka) as client:
        assert client.produce(topic, odd.encode()).error == 0
        (stored,) = stored_batches(either_kafka, topic)
        assert stored.records == odd.records
        again = bytes(encode(codec, decode(codec, stored.records)))
        assert client.produce(mended, replace(odd, records=again).encode()).error == 0
    (read,) = java4.dump(either_kafka.bootstrap, topic).values()
    assert contents(read) == [(entry.key, entry.value) for entry in entries]
    assert java4.dump(either_kafka.bootstrap, mended) == witness.dump(either_kafka.bootstrap, mended) == {0: read}
