"""Sequence numbers as compare-and-append: what makes a lane exactly once without a transaction.

A broker keeps, for each producer id in each partition, the last few batches it appended, and takes only what follows
them. `test_facts_restart` says what of it outlives a killed broker.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from replicator.kafka.messages import DESCRIBE_PRODUCERS
from tests.broker.admin import create_topic
from tests.broker.batches import Batch, Entry, make_batch, now_ms, numbered
from tests.broker.raw import Appended, Producer, RawClient
from tests.harness import witness
from tests.harness.kafka import KafkaCluster
from tests.harness.waiting import eventually

pytestmark = pytest.mark.broker

NONE, OUT_OF_ORDER, STALE_EPOCH, INVALID = 0, 45, 47, 87
SEQUENCE_MAX = 2**31 - 1
NO_TIME = -1
ID_NEVER_GIVEN = 7_777_777_777


@dataclass
class Writer:
    """A producer of one-partition topic `topic`, over one connection."""

    client: RawClient
    topic: str
    producer: Producer

    def batch(self, sequence: int, count: int = 1, epoch: int | None = None) -> bytes:
        epoch = self.producer.producer_epoch if epoch is None else epoch
        who = {"producer_id": self.producer.producer_id, "producer_epoch": epoch, "base_sequence": sequence}
        return make_batch(numbered(count, first=sequence), **who).encode()

    def append(self, sequence: int, count: int = 1, epoch: int | None = None) -> Appended:
        return self.client.produce(self.topic, self.batch(sequence, count, epoch))

    def pipeline(self, sequences: list[int]) -> list[Appended]:
        """Send batches of one record each, and only then read the answers."""
        for sequence in sequences:
            self.client.send_batch(self.topic, self.batch(sequence))
        return [self.client.receive_appended() for _ in sequences]

    def describe(self) -> tuple[int, int]:
        """The last sequence and its producer's epoch, as DescribeProducers has them."""
        place = {"name": self.topic, "partition_indexes": [0]}
        (topic,) = self.client.ask(DESCRIBE_PRODUCERS, 0, {"topics": [place]})["topics"]
        known = {row["producer_id"]: row for row in topic["partitions"][0]["active_producers"]}
        row = known[self.producer.producer_id]
        return row["last_sequence"], row["producer_epoch"]


@pytest.fixture
def writer(either_kafka: KafkaCluster, topic_name: str) -> Iterator[Writer]:
    create_topic(either_kafka, topic_name)
    with RawClient(either_kafka) as client:
        yield Writer(client, topic_name, client.init_producer())


def values(cluster: KafkaCluster, topic: str) -> list[bytes | None]:
    return [record.value for record in witness.dump(cluster.bootstrap, topic)[0]]


def test_a_producer_is_not_bound_to_a_connection(either_kafka: KafkaCluster, writer: Writer) -> None:
    with RawClient(either_kafka) as client:
        other = Writer(client, writer.topic, writer.producer)
        answers = [writer.append(0, 10), other.append(10, 10), writer.append(20, 10)]
    assert [answer[:3] for answer in answers] == [(NONE, 0, NO_TIME), (NONE, 10, NO_TIME), (NONE, 20, NO_TIME)]


@pytest.mark.parametrize(
    ("sequence", "count"),
    [(101, 1), (110, 10), (99, 1), (95, 5), (98, 4), (90, 20), (0, 10), (1, 1)],
    ids=["gap", "wide gap", "part", "tail part", "overlap", "span", "too old", "inside an old one"],
)
def test_what_does_not_follow_is_refused(writer: Writer, sequence: int, count: int) -> None:
    """After ten batches of ten records, only sequence 100 follows."""
    assert [writer.append(first, 10).base_offset for first in range(0, 100, 10)] == list(range(0, 100, 10))
    assert writer.append(sequence, count).error == OUT_OF_ORDER
    assert writer.append(100)[:2] == (NONE, 100), "nothing was appended before"


def test_the_last_five_batches_are_known(writer: Writer) -> None:
    """A retry is answered with the first one's offset; that it has a time gives it away on a CreateTime topic."""
    assert [writer.append(sequence).error for sequence in range(8)] == [NONE] * 8
    retries = {sequence: writer.append(sequence) for sequence in range(8)}
    assert [retries[sequence].error for sequence in (0, 1, 2)] == [OUT_OF_ORDER] * 3
    assert [retries[sequence][:2] for sequence in (3, 4, 5, 6, 7)] == [(NONE, sequence) for sequence in (3, 4, 5, 6, 7)]
    assert all(retries[sequence].log_append_time_ms != NO_TIME for sequence in (3, 4, 5, 6, 7))
    assert writer.append(8) == (NONE, 8, NO_TIME, [])


def test_only_the_range_is_compared(either_kafka: KafkaCluster, writer: Writer) -> None:
    """Other bytes under the same sequence are acknowledged and thrown away: same sequence must mean same records."""
    assert writer.append(0, 2)[:2] == (NONE, 0)
    who = {**writer.producer._asdict(), "base_sequence": 0}
    other = make_batch([Entry(b"other"), Entry(b"bytes")], **who).encode()
    assert writer.client.produce(writer.topic, other)[:2] == (NONE, 0)
    assert values(either_kafka, writer.topic) == [b"value 0", b"value 1"]


def test_deep_pipelines_keep_their_order(either_kafka: KafkaCluster, writer: Writer) -> None:
    """The limit of five in flight, which every client knows, guards blind retries only."""
    assert [answer[:2] for answer in writer.pipeline(list(range(64)))] == [(NONE, offset) for offset in range(64)]
    assert values(either_kafka, writer.topic) == [b"value %d" % number for number in range(64)]


def test_behind_a_gap_all_is_refused(writer: Writer) -> None:
    answers = writer.pipeline([0, 1, 2, 4, 5, 6, 7, 8])
    assert [answer.error for answer in answers] == [NONE] * 3 + [OUT_OF_ORDER] * 5
    assert writer.append(3)[:2] == (NONE, 3)


def test_one_refusal_does_not_harm_the_next(writer: Writer) -> None:
    errors = [answer.error for answer in writer.pipeline([0, 1, 2, 5, 3, 4])]
    assert errors == [NONE, NONE, NONE, OUT_OF_ORDER, NONE, NONE]


def test_a_refused_batch_leaves_its_sequence_free(writer: Writer) -> None:
    who = {**writer.producer._asdict(), "base_sequence": 0}
    assert writer.client.produce(writer.topic, make_batch(numbered(2), count=3, **who).encode()).error == INVALID
    assert writer.append(0, 2)[:2] == (NONE, 0)


@pytest.mark.parametrize("first", [0, 1, 777, SEQUENCE_MAX])
def test_an_empty_partition_takes_any_first_sequence(writer: Writer, first: int) -> None:
    follows = (first + 1) & SEQUENCE_MAX
    assert [writer.append(first).error, writer.append(follows + 5).error] == [NONE, OUT_OF_ORDER]
    assert writer.append(follows)[:2] == (NONE, 1)


def test_an_id_nobody_gave_out_counts_as_well(writer: Writer) -> None:
    stranger = Writer(writer.client, writer.topic, Producer(ID_NEVER_GIVEN, 3))
    assert [stranger.append(50).error, stranger.append(52).error, stranger.append(51).error] == [
        NONE,
        OUT_OF_ORDER,
        NONE,
    ]


def test_producers_do_not_share_sequences(writer: Writer) -> None:
    other = Writer(writer.client, writer.topic, writer.client.init_producer())
    assert other.producer != writer.producer
    assert [writer.append(0)[:2], other.append(0)[:2], writer.append(1)[:2]] == [(NONE, 0), (NONE, 1), (NONE, 2)]


@pytest.mark.parametrize("first", [SEQUENCE_MAX - 1, SEQUENCE_MAX - 2], ids=["across", "up to"])
def test_sequences_wrap_to_zero(writer: Writer, first: int) -> None:
    follows = (first + 3) & SEQUENCE_MAX
    assert writer.append(first, 3)[:2] == (NONE, 0)
    assert writer.append(first, 3)[:2] == (NONE, 0), "a retry is known across the wrap"
    assert writer.describe()[0] == (first + 2) & SEQUENCE_MAX
    assert writer.append(follows + 1).error == OUT_OF_ORDER
    assert writer.append(follows)[:2] == (NONE, 3)


def test_epochs_fence(writer: Writer) -> None:
    assert writer.append(0).error == NONE
    assert writer.append(1, epoch=2).error == OUT_OF_ORDER, "a new epoch begins at 0"
    assert writer.append(0, epoch=2)[:2] == (NONE, 1)
    assert writer.append(1).error == STALE_EPOCH
    assert writer.describe() == (0, 2)


def test_the_state_can_be_asked_for(writer: Writer) -> None:
    writer.append(0, 10)
    assert writer.describe() == (9, 0)
    writer.client.mark_commit(writer.topic, writer.producer)
    assert writer.append(10, 5)[:2] == (NONE, 11), "the marker took an offset, but no sequence"
    assert writer.describe() == (14, 0)


def test_a_closed_connection_keeps_a_prefix(either_kafka: KafkaCluster, writer: Writer) -> None:
    """What was sent and never answered is there up to some batch; only the log's tail says up to which."""
    client = RawClient(either_kafka)
    for sequence in range(64):
        client.send_batch(writer.topic, writer.batch(sequence, 10))
    client.close()
    settled = settled_end(either_kafka, writer.topic)
    batches = [Batch.parse(raw) for raw in witness.raw_batches(either_kafka.bootstrap, writer.topic, 0)]
    assert [batch.base_sequence for batch in batches] == list(range(0, 10 * len(batches), 10))
    assert writer.append(settled, 10)[:2] == (NONE, settled)


def settled_end(cluster: KafkaCluster, topic: str) -> int:
    """The number of records in a log that nobody writes to any more, when it has not grown for ten looks."""
    looks: list[int] = []

    def has_settled() -> bool:
        looks.append(sum(Batch.parse(raw).count for raw in witness.raw_batches(cluster.bootstrap, topic, 0)))
        return len(looks) >= 10 and len(set(looks[-10:])) == 1

    eventually(has_settled, "the log to stand still")
    return looks[-1]


def test_racing_writers_append_everything_once(either_kafka: KafkaCluster, writer: Writer) -> None:
    """Three writers of one stream, none knowing of the others: each batch is there once, and all are told where."""
    with RawClient(either_kafka) as second, RawClient(either_kafka) as third:
        for sequence in range(100):
            racers = [writer.client, second, third]
            for client in racers:
                client.send_batch(writer.topic, writer.batch(sequence))
            assert {client.receive_appended()[:2] for client in racers} == {(NONE, sequence)}
    assert values(either_kafka, writer.topic) == [b"value %d" % number for number in range(100)]


def test_an_old_time_does_not_matter_at_first(writer: Writer) -> None:
    """State is dropped by the records' time, but not before the broker looks, every ten minutes or at a restart."""
    old = now_ms() - 2 * 86_400_000
    who = {**writer.producer._asdict(), "base_timestamp": old}
    first, second, far = (make_batch(numbered(1), **who, base_sequence=at).encode() for at in (0, 1, 5))
    answers = [writer.client.produce(writer.topic, batch).error for batch in (first, far, second)]
    assert answers == [NONE, OUT_OF_ORDER, NONE]
