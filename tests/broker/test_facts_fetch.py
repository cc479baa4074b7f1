"""What a broker answers to a Fetch: in which order, how much of it, how late, and about which log.

`test_facts_restart` has the facts about leader epochs that only a restarted broker can show.
"""

import time
from collections.abc import Iterator

import pytest
from confluent_kafka import Producer

from replicator.kafka.codec import Body
from replicator.kafka.messages import FETCH
from tests.broker.admin import create_topic, delete_records, end_offset
from tests.broker.batches import Batch, make_batch, numbered, parse_batches
from tests.broker.raw import RawClient, fetch_body
from tests.harness import witness
from tests.harness.kafka import KafkaCluster
from tests.harness.waiting import eventually
from tests.oracle.batch import CONTROL, TRANSACTIONAL

pytestmark = pytest.mark.broker

NONE, OUT_OF_RANGE, UNKNOWN_LEADER_EPOCH, UNKNOWN_TOPIC_ID = 0, 1, 75, 100
WAIT_MS = 300


@pytest.fixture
def client(either_kafka: KafkaCluster) -> Iterator[RawClient]:
    with RawClient(either_kafka) as connected:
        yield connected


def fill(client: RawClient, topic: str, batches: int = 3, partition: int = 0) -> list[bytes]:
    """Batches of ten records each; as they were sent."""
    sent = [make_batch(numbered(10, first=10 * number)).encode() for number in range(batches)]
    for batch in sent:
        assert client.produce(topic, batch, partition).error == NONE
    return sent


def found(answer: Body) -> list[tuple[str, int, int, int]]:
    """(topic, partition, error, bytes) in the order of the answer."""
    assert answer["error_code"] == NONE
    rows = [(topic["topic"], row) for topic in answer["responses"] for row in topic["partitions"]]
    return [(topic, row["partition_index"], row["error_code"], len(row["records"])) for topic, row in rows]


def test_one_whole_batch_comes_however_small_the_limit(
    either_kafka: KafkaCluster, client: RawClient, topic_name: str
) -> None:
    create_topic(either_kafka, topic_name)
    first, second, _ = fill(client, topic_name)
    assert len(client.fetch(topic_name, 0, max_bytes=1)["records"]) == len(first)
    second_found = Batch.parse(client.fetch(topic_name, 10, max_bytes=1)["records"])
    assert (second_found.base_offset, second_found.records) == (10, Batch.parse(second).records)


def test_a_limit_cuts_the_last_batch(either_kafka: KafkaCluster, client: RawClient, topic_name: str) -> None:
    create_topic(either_kafka, topic_name)
    first, second, _ = fill(client, topic_name)
    limit = len(first) + len(second) // 2
    assert len(client.fetch(topic_name, 0, max_bytes=limit)["records"]) == limit


def test_an_offset_inside_a_batch_brings_the_whole_batch(
    either_kafka: KafkaCluster, client: RawClient, topic_name: str
) -> None:
    create_topic(either_kafka, topic_name)
    fill(client, topic_name)
    batch = Batch.parse(client.fetch(topic_name, 15, max_bytes=1)["records"])
    assert (batch.base_offset, batch.next_offset) == (10, 20)


def test_a_log_may_start_inside_a_batch(either_kafka: KafkaCluster, client: RawClient, topic_name: str) -> None:
    create_topic(either_kafka, topic_name)
    fill(client, topic_name)
    delete_records(either_kafka, topic_name, before=13)
    answer = client.fetch(topic_name, 13, max_bytes=1)
    assert (answer["error_code"], answer["log_start_offset"]) == (NONE, 13)
    assert Batch.parse(answer["records"]).base_offset == 10
    assert client.fetch(topic_name, 12)["error_code"] == OUT_OF_RANGE


@pytest.mark.parametrize("version", [10, 13])
def test_the_ends_of_the_log(either_kafka: KafkaCluster, client: RawClient, topic_name: str, version: int) -> None:
    create_topic(either_kafka, topic_name)
    fill(client, topic_name)
    topic_id = client.topic_id(topic_name)
    at_end = client.fetch(topic_name, 30, version, topic_id=topic_id)
    assert (at_end["error_code"], at_end["high_watermark"], at_end["records"]) == (NONE, 30, b"")
    assert client.fetch(topic_name, 31, version, topic_id=topic_id)["error_code"] == OUT_OF_RANGE


def test_with_room_for_one_the_first_asked_for_gets_it(
    either_kafka: KafkaCluster, client: RawClient, topic_name: str
) -> None:
    """Whoever asks for many partitions has to change their order, or the last ones never get their turn."""
    create_topic(either_kafka, topic_name, partitions=3)
    (size,) = {len(fill(client, topic_name, 1, partition)[0]) for partition in range(3)}
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        answer = client.ask(FETCH, 10, fetch_body([(topic_name, part, 0) for part in order], max_bytes=1))
        assert found(answer) == [(topic_name, part, NONE, size if part == order[0] else 0) for part in order]


def test_a_partition_asked_for_twice_is_answered_once(
    either_kafka: KafkaCluster, client: RawClient, topic_name: str
) -> None:
    create_topic(either_kafka, topic_name)
    last = fill(client, topic_name)[-1]
    answer = client.ask(FETCH, 10, fetch_body([(topic_name, 0, 0), (topic_name, 0, 20)]))
    assert found(answer) == [(topic_name, 0, NONE, len(last))], "for the last one, from offset 20"


def test_a_pipeline_is_answered_in_its_order(either_kafka: KafkaCluster, client: RawClient, topic_name: str) -> None:
    """`RawClient.receive` looks at the correlation ids; offsets say that each answer is to its own question."""
    create_topic(either_kafka, topic_name)
    fill(client, topic_name, batches=20)
    offsets = [10 * (number * 7 % 20) for number in range(20)]
    for offset in offsets:
        client.send(FETCH, 10, fetch_body([(topic_name, 0, offset)], max_bytes=1))
    answers = [client.receive()["responses"][0]["partitions"][0]["records"] for _ in offsets]
    assert [Batch.parse(records).base_offset for records in answers] == offsets


def test_waiting_fetches_hold_up_those_behind_them(
    either_kafka: KafkaCluster, client: RawClient, topic_name: str
) -> None:
    """On one connection they wait one after the other, and what could be answered at once waits with them."""
    create_topic(either_kafka, topic_name)
    fill(client, topic_name)
    began = time.monotonic()
    for _ in range(3):
        client.send(FETCH, 10, fetch_body([(topic_name, 0, 30)], max_wait_ms=WAIT_MS))
    client.send(FETCH, 10, fetch_body([(topic_name, 0, 0)], max_wait_ms=WAIT_MS))
    with RawClient(either_kafka) as other:
        assert other.fetch(topic_name, 0, max_wait_ms=WAIT_MS)["records"]
        assert time.monotonic() - began < 3 * WAIT_MS / 1000, "another connection is not held up"
    answers = [found(client.receive())[0][-1] for _ in range(4)]
    assert time.monotonic() - began >= 3 * WAIT_MS / 1000
    assert [size > 0 for size in answers] == [False, False, False, True]


def test_new_data_in_any_partition_ends_the_wait(
    either_kafka: KafkaCluster, client: RawClient, topic_name: str
) -> None:
    create_topic(either_kafka, topic_name, partitions=3)
    body = fetch_body([(topic_name, part, 0) for part in range(3)], max_wait_ms=20_000)
    began = time.monotonic()
    client.send(FETCH, 10, body)
    with RawClient(either_kafka) as other:
        (batch,) = fill(other, topic_name, batches=1, partition=1)
    sizes = [row[-1] for row in found(client.receive())]
    assert sizes == [0, len(batch), 0]
    assert time.monotonic() - began < 10


def test_a_name_reads_whatever_topic_bears_it(either_kafka: KafkaCluster, client: RawClient, topic_name: str) -> None:
    """A topic made anew under the old name is another log. Only its id tells, from version 13 on."""
    create_topic(either_kafka, topic_name)
    fill(client, topic_name)
    old_id = client.topic_id(topic_name)
    witness.delete_topic(either_kafka.bootstrap, topic_name)
    create_topic(either_kafka, topic_name)
    (batch,) = fill(client, topic_name, batches=1)
    new_id = client.topic_id(topic_name)
    assert old_id != new_id

    by_name = client.fetch(topic_name, 0)
    assert (by_name["error_code"], len(by_name["records"])) == (NONE, len(batch)), "the new topic, without a word"
    assert client.fetch(topic_name, 20)["error_code"] == OUT_OF_RANGE
    assert client.fetch(topic_name, 0, 13, topic_id=old_id)["error_code"] == UNKNOWN_TOPIC_ID
    assert client.fetch(topic_name, 0, 13, topic_id=new_id)["error_code"] == NONE


def test_a_leader_epoch_that_is_still_to_come(either_kafka: KafkaCluster, client: RawClient, topic_name: str) -> None:
    create_topic(either_kafka, topic_name)
    fill(client, topic_name)
    epoch = client.leader_epoch(topic_name)
    assert client.fetch(topic_name, 0, epochs=(epoch, -1))["error_code"] == NONE
    assert client.fetch(topic_name, 0, epochs=(epoch + 1, -1))["error_code"] == UNKNOWN_LEADER_EPOCH


def test_control_batches_are_among_the_bytes(either_kafka: KafkaCluster, client: RawClient, topic_name: str) -> None:
    create_topic(either_kafka, topic_name)
    fill(client, topic_name, batches=1)
    client.mark_commit(topic_name, client.init_producer())
    batch = Batch.parse(client.fetch(topic_name, 10)["records"])
    assert (batch.base_offset, batch.count, batch.attributes & CONTROL) == (10, 1, CONTROL)
    assert len(witness.dump(either_kafka.bootstrap, topic_name)[0]) == 10, "no consumer sees them"


@pytest.mark.parametrize("isolation_level", [0, 1])
def test_aborted_records_are_among_the_bytes(
    either_kafka: KafkaCluster, client: RawClient, topic_name: str, isolation_level: int
) -> None:
    """A Fetch that wants committed data gets aborted batches too, with a list of whose they are and since when."""
    create_topic(either_kafka, topic_name)
    fill(client, topic_name, batches=1)
    producer = Producer({"bootstrap.servers": either_kafka.bootstrap, "transactional.id": topic_name})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(topic_name, b"aborted")
    producer.flush(30)
    producer.abort_transaction(30)
    eventually(lambda: end_offset(either_kafka, topic_name) == 12, "the marker")
    answer = client.fetch(topic_name, 10, isolation_level=isolation_level)
    aborted, marker = parse_batches(answer["records"])
    assert (aborted.base_offset, aborted.attributes) == (10, TRANSACTIONAL)
    assert (marker.base_offset, marker.attributes) == (11, TRANSACTIONAL | CONTROL)
    listed = [(row["producer_id"], row["first_offset"]) for row in answer["aborted_transactions"] or ()]
    assert listed == ([(aborted.producer_id, 10)] if isolation_level else [])
