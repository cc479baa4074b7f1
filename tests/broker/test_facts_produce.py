"""What a broker takes from a Produce and what it does with it: every rule that passing batches through rests on.

These tests know nothing of the product but its message tables. When one fails on a new Kafka, the rule has changed
and the code that leans on it has to follow.
"""

import gzip
from collections.abc import Callable
from dataclasses import replace

import pytest

from replicator._core import readdress
from replicator.kafka.messages import PRODUCE
from tests.broker.admin import create_topic
from tests.broker.batches import Batch, Entry, encode_records, make_batch, now_ms, numbered
from tests.broker.raw import RawClient, appended, produce_body
from tests.harness import witness
from tests.harness.kafka import NEWEST_3, KafkaCluster
from tests.harness.records import NewRecord
from tests.oracle.batch import CONTROL, DELETE_HORIZON, HEADER_SIZE, LOG_APPEND_TIME, TRANSACTIONAL

pytestmark = pytest.mark.broker

NONE, UNKNOWN, CORRUPT, TOO_LARGE, BAD_TIME, TRANSACTIONAL_ID, INVALID = 0, -1, 2, 10, 32, 53, 87
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
GZIP = 1
HOLES = [Entry(b"a"), Entry(b"b", delta=2), Entry(b"c", delta=5)]  # three records, as compaction leaves six


def zipped(entries: list[Entry], **header: object) -> Batch:
    plain = make_batch(entries, **header)
    records = gzip.compress(encode_records(entries, plain.base_timestamp))
    return replace(plain, attributes=plain.attributes | GZIP, records=records)


def two() -> Batch:
    return make_batch(numbered(2))


REFUSED = [
    ("two batches", INVALID, lambda: two().encode() + two().encode()),
    ("a base offset of 1", INVALID, lambda: replace(two(), base_offset=1).encode()),
    ("a control batch", INVALID, lambda: replace(two(), attributes=CONTROL).encode()),
    ("a transactional batch", TRANSACTIONAL_ID, lambda: replace(two(), attributes=TRANSACTIONAL).encode()),
    ("more counted than offsets", INVALID, lambda: replace(two(), count=3, last_offset_delta=1).encode()),
    ("more offsets than counted", INVALID, lambda: replace(two(), last_offset_delta=4).encode()),
    ("more counted than there", INVALID, lambda: replace(two(), count=3).encode()),
    ("nothing counted", INVALID, lambda: make_batch([Entry(b"")], count=0, last_offset_delta=0).encode()),
    ("no batch", INVALID, lambda: b""),
    ("half a batch", INVALID, lambda: two().encode()[:-1]),
    ("codec 5", UNKNOWN, lambda: replace(two(), attributes=5).encode()),
    ("format 1", INVALID, lambda: replace(two(), magic=1).encode()),
    ("format 3", CORRUPT, lambda: replace(two(), magic=3).encode()),
    ("a wrong checksum", CORRUPT, lambda: replace(two(), crc=1).encode()),
    ("holes in a batch", INVALID, lambda: make_batch(HOLES, last_offset_delta=5).encode()),
    ("wrong deltas, compressed", UNKNOWN, lambda: zipped(HOLES).encode()),
    ("a producer without a sequence", INVALID, lambda: replace(two(), producer_id=1, producer_epoch=0).encode()),
]


@pytest.mark.parametrize(("error", "records"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused(either_kafka: KafkaCluster, topic_name: str, error: int, records: Callable[[], bytes]) -> None:
    create_topic(either_kafka, topic_name)
    with RawClient(either_kafka) as client:
        assert client.produce(topic_name, records()).error == error
        assert client.produce(topic_name, two().encode()).base_offset == 0, "nothing was appended before"


def test_a_transactional_batch_fails_its_whole_request(either_kafka: KafkaCluster, topic_name: str) -> None:
    create_topic(either_kafka, topic_name, partitions=2)
    bad = replace(two(), attributes=TRANSACTIONAL).encode()
    with RawClient(either_kafka) as client:
        body = produce_body([(topic_name, [(0, two().encode()), (1, bad)])])
        answers = appended(client.ask(PRODUCE, 8, body))
        assert [answers[topic_name, partition].error for partition in (0, 1)] == [TRANSACTIONAL_ID] * 2
        assert client.produce(topic_name, two().encode()).base_offset == 0


def test_any_other_refusal_is_the_partitions_own(either_kafka: KafkaCluster, topic_name: str) -> None:
    create_topic(either_kafka, topic_name, partitions=2)
    bad = replace(two(), attributes=CONTROL).encode()
    with RawClient(either_kafka) as client:
        body = produce_body([(topic_name, [(0, two().encode()), (1, bad)])])
        answers = appended(client.ask(PRODUCE, 8, body))
        assert [answers[topic_name, partition].error for partition in (0, 1)] == [NONE, INVALID]


# What the broker takes and what stands in its log then: the reason to set these fields ourselves.
STORED = [
    ("the bit of LogAppendTime is cleared", {"attributes": LOG_APPEND_TIME}, {"attributes": 0}),
    ("a delete horizon stays", {"attributes": DELETE_HORIZON}, {"attributes": DELETE_HORIZON}),
    *((f"bit {bit} stays", {"attributes": 1 << bit}, {"attributes": 1 << bit}) for bit in range(7, 15)),
    ("a leader epoch is overwritten", {"leader_epoch": 77}, {"leader_epoch": 0}),
]


@pytest.mark.parametrize(("sent", "stored"), [row[1:] for row in STORED], ids=[row[0] for row in STORED])
def test_stored(either_kafka: KafkaCluster, topic_name: str, sent: dict[str, int], stored: dict[str, int]) -> None:
    create_topic(either_kafka, topic_name)
    with RawClient(either_kafka) as client:
        assert client.produce(topic_name, replace(two(), **sent).encode()).error == NONE
    (found,) = map(Batch.parse, witness.raw_batches(either_kafka.bootstrap, topic_name, 0))
    assert {name: getattr(found, name) for name in stored} == stored


def test_a_wrong_max_timestamp_is_corrected(either_kafka: KafkaCluster, topic_name: str) -> None:
    create_topic(either_kafka, topic_name)
    sent = two()
    with RawClient(either_kafka) as client:
        client.produce(topic_name, replace(sent, max_timestamp=sent.max_timestamp + DAY_MS).encode())
    (found,) = map(Batch.parse, witness.raw_batches(either_kafka.bootstrap, topic_name, 0))
    assert found.max_timestamp == sent.max_timestamp


def test_wrong_deltas_without_compression_are_believed(either_kafka: KafkaCluster, topic_name: str) -> None:
    """The one wrong thing that a broker stores: whoever builds a batch has to count right."""
    create_topic(either_kafka, topic_name)
    with RawClient(either_kafka) as client:
        sent = make_batch(HOLES)
        assert client.produce(topic_name, sent.encode()).error == NONE
        assert client.produce(topic_name, two().encode()).base_offset == 3
    stored = Batch.parse(witness.raw_batches(either_kafka.bootstrap, topic_name, 0)[0])
    assert stored.records == sent.records
    offsets = [record.offset for record in witness.dump(either_kafka.bootstrap, topic_name)[0]]
    assert offsets[:2] == [0, 2], "a consumer sees offsets that are not the log's"


def test_bytes_behind_a_batch_are_dropped(either_kafka: KafkaCluster, topic_name: str) -> None:
    create_topic(either_kafka, topic_name)
    with RawClient(either_kafka) as client:
        assert client.produce(topic_name, two().encode() + b"behind").error == NONE
        assert client.produce(topic_name, two().encode()).base_offset == 2


def test_the_same_partition_twice_loses_the_first(either_kafka: KafkaCluster, topic_name: str) -> None:
    create_topic(either_kafka, topic_name)
    first, second = make_batch(numbered(3)).encode(), make_batch(numbered(2, first=3)).encode()
    with RawClient(either_kafka) as client:
        for topics in (
            [(topic_name, [(0, first), (0, second)])],
            [(topic_name, [(0, first)]), (topic_name, [(0, second)])],
        ):
            (answer,) = appended(client.ask(PRODUCE, 8, produce_body(topics))).values()
            assert answer.error == NONE
    values = [record.value for record in witness.dump(either_kafka.bootstrap, topic_name)[0]]
    assert values == [b"value 3", b"value 4"] * 2


def test_a_topic_named_twice_is_one_topic(either_kafka: KafkaCluster, topic_name: str) -> None:
    """All is appended; the answer has one element for the topic, and an order of its own."""
    other = topic_name + "-other"
    create_topic(either_kafka, topic_name, partitions=8)
    create_topic(either_kafka, other)
    apart: list[tuple[str, list[tuple[int, bytes]]]] = [(topic_name, [(part, two().encode())]) for part in range(8)]
    apart.insert(4, (other, [(0, two().encode())]))
    with RawClient(either_kafka) as client:
        answer = client.ask(PRODUCE, 8, produce_body(apart))
        assert sorted(row["name"] for row in answer["responses"]) == sorted([topic_name, other])
        places = {(topic_name, partition) for partition in range(8)} | {(other, 0)}
        assert {place: found[:2] for place, found in appended(answer).items()} == dict.fromkeys(places, (NONE, 0))


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
@pytest.mark.parametrize("value_bytes", [1, 100_000])
def test_damage_on_the_way_is_found(either_kafka: KafkaCluster, topic_name: str, codec: str, value_bytes: int) -> None:
    """Our patch never reads the records, so the checksum behind it still is the one their producer made."""
    origin, copy = topic_name, topic_name + "-copy"
    for topic in (origin, copy):
        create_topic(either_kafka, topic)
    record = NewRecord(0, b"key", bytes(place * place % 251 for place in range(value_bytes)))
    witness.produce(either_kafka.bootstrap, origin, [record], {"compression.type": codec})
    (batch,) = map(bytearray, witness.raw_batches(either_kafka.bootstrap, origin, 0))
    with RawClient(either_kafka) as client:
        readdress(batch, *client.init_producer(), 0)
        for place in {HEADER_SIZE, (HEADER_SIZE + len(batch)) // 2, len(batch) - 1}:
            damaged = bytearray(batch)
            damaged[place] ^= 0x10
            assert client.produce(copy, damaged).error == CORRUPT
        assert client.produce(copy, batch)[:2] == (NONE, 0)
    (stored,), (sent,) = (witness.raw_batches(either_kafka.bootstrap, topic, 0) for topic in (copy, origin))
    assert stored[HEADER_SIZE:] == sent[HEADER_SIZE:]


def test_damage_before_the_patch_is_found_after_it(either_kafka: KafkaCluster, topic_name: str) -> None:
    create_topic(either_kafka, topic_name)
    batch = bytearray(two().encode())
    batch[-1] ^= 1
    with RawClient(either_kafka) as client:
        readdress(batch, *client.init_producer(), 0)
        assert client.produce(topic_name, batch).error == CORRUPT


@pytest.mark.parametrize("timestamp", [0, -1, -2, 1, 1_480_000_000_000])
def test_old_times_are_taken(either_kafka: KafkaCluster, topic_name: str, timestamp: int) -> None:
    create_topic(either_kafka, topic_name)
    with RawClient(either_kafka) as client:
        batch = make_batch([Entry(b"then", timestamp=timestamp), Entry(b"now")])
        assert client.produce(topic_name, batch.encode()).error == NONE


def test_times_far_ahead_are_refused_by_kafka_4(either_kafka: KafkaCluster, topic_name: str) -> None:
    create_topic(either_kafka, topic_name)
    ahead = make_batch([*numbered(2), Entry(b"ahead", timestamp=now_ms() + 2 * HOUR_MS), Entry(b"now")]).encode()
    with RawClient(either_kafka) as client:
        answer, briefly = client.produce(topic_name, ahead), client.produce(topic_name, ahead, version=7)
        if either_kafka.version == NEWEST_3:
            assert [answer.error, briefly.error] == [NONE, NONE]
        else:
            assert (answer.error, answer.refused) == (BAD_TIME, [2])
            assert (briefly.error, briefly.refused) == (BAD_TIME, [])
            assert client.produce(topic_name, two().encode()).base_offset == 0, "refused as a whole"


def test_a_topic_may_allow_times_far_ahead(either_kafka: KafkaCluster, topic_name: str) -> None:
    config = {"message.timestamp.after.max.ms": str(2**63 - 1)}
    create_topic(either_kafka, topic_name, config=config)
    with RawClient(either_kafka) as client:
        ahead = make_batch([Entry(b"ahead", timestamp=now_ms() + 365 * DAY_MS)])
        assert client.produce(topic_name, ahead.encode()).error == NONE


def test_a_compacted_topic_needs_keys(either_kafka: KafkaCluster, topic_name: str) -> None:
    create_topic(either_kafka, topic_name, config={"cleanup.policy": "compact"})
    entries = [Entry(b"0"), Entry(b"1", key=None), Entry(b"2"), Entry(b"3", key=None)]
    with RawClient(either_kafka) as client:
        for batch in (make_batch(entries), zipped(entries)):
            answer = client.produce(topic_name, batch.encode())
            assert (answer.error, answer.refused) == (INVALID, [1, 3])
        assert client.produce(topic_name, two().encode()).base_offset == 0, "refused as a whole"


def test_the_size_limit_counts_the_whole_batch(either_kafka: KafkaCluster, topic_name: str) -> None:
    fitting = make_batch([Entry(bytes(5_000))]).encode()
    limit = {"max.message.bytes": str(len(fitting))}
    create_topic(either_kafka, topic_name, config=limit)
    with RawClient(either_kafka) as client:
        assert client.produce(topic_name, fitting).error == NONE
        assert client.produce(topic_name, make_batch([Entry(bytes(5_001))]).encode()).error == TOO_LARGE
        assert client.produce(topic_name, zipped([Entry(bytes(50_000))]).encode()).error == NONE


def test_a_log_append_time_topic_says_when(either_kafka: KafkaCluster, topic_name: str) -> None:
    config = {"message.timestamp.type": "LogAppendTime"}
    create_topic(either_kafka, topic_name, config=config)
    batch = make_batch(numbered(2), base_timestamp=1_500_000_000_000)
    with RawClient(either_kafka) as client:
        appended_at = client.produce(topic_name, batch.encode()).log_append_time_ms
    assert abs(appended_at - now_ms()) < HOUR_MS
    (stored,) = map(Batch.parse, witness.raw_batches(either_kafka.bootstrap, topic_name, 0))
    assert (stored.attributes, stored.records) == (LOG_APPEND_TIME, batch.records)
    read = witness.dump(either_kafka.bootstrap, topic_name)[0]
    assert [(record.timestamp_type, record.timestamp) for record in read] == [("LogAppendTime", appended_at)] * 2


@pytest.mark.parametrize(("topics_codec", "is_kept"), [("producer", True), ("gzip", True), ("zstd", False)])
def test_another_codec_of_the_topic_recompresses(
    either_kafka: KafkaCluster, topic_name: str, topics_codec: str, is_kept: bool
) -> None:
    create_topic(either_kafka, topic_name, config={"compression.type": topics_codec})
    batch = zipped(numbered(10))
    with RawClient(either_kafka) as client:
        assert client.produce(topic_name, batch.encode()).error == NONE
    (stored,) = map(Batch.parse, witness.raw_batches(either_kafka.bootstrap, topic_name, 0))
    assert (stored.records == batch.records) is is_kept
    assert stored.count == batch.count
