"""What a broker still knows after it was killed and has come back: two versions, one kill each, many questions."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from replicator.kafka.messages import INIT_PRODUCER_ID
from tests.broker.admin import create_topic
from tests.broker.batches import make_batch, now_ms, numbered
from tests.broker.raw import COORDINATOR_LOAD_IN_PROGRESS, Appended, Producer, RawClient
from tests.harness.kafka import NEWEST_3, NEWEST_4, KafkaCluster

pytestmark = pytest.mark.broker

NONE, OUT_OF_RANGE, OUT_OF_ORDER, FENCED_LEADER_EPOCH = 0, 1, 45, 74
DAY_MS = 86_400_000
BATCHES, BEFORE_STOP = 8, 3
WRITTEN, UNTOUCHED, OLD = TOPICS = "written", "untouched", "old"


@dataclass
class Survivor:
    """A broker that has BATCHES batches of one record in each topic, with sequences from 0 on.

    It was stopped in good order behind the first BEFORE_STOP of them and killed behind the last. Tests may add to
    `written` and to `old`, whose records are dated two days ago.
    """

    client: RawClient
    producer: Producer

    def append(self, topic: str, sequence: int) -> Appended:
        when = now_ms() - (2 * DAY_MS if topic == OLD else 0)
        who = {**self.producer._asdict(), "base_sequence": sequence, "base_timestamp": when}
        return self.client.produce(topic, make_batch(numbered(1, first=sequence), **who).encode())

    def append_to_all(self, sequences: range) -> None:
        for topic in TOPICS:
            answers = [self.append(topic, sequence)[:2] for sequence in sequences]
            assert answers == [(NONE, sequence) for sequence in sequences]


@pytest.fixture(scope="module", params=[NEWEST_3, NEWEST_4])
def survivor(request: pytest.FixtureRequest) -> Iterator[Survivor]:
    with KafkaCluster(request.param) as cluster:
        for topic in TOPICS:
            create_topic(cluster, topic)
        with RawClient(cluster) as client:
            producer = client.init_producer()
            Survivor(client, producer).append_to_all(range(BEFORE_STOP))
        cluster.restart()
        with RawClient(cluster) as client:
            Survivor(client, producer).append_to_all(range(BEFORE_STOP, BATCHES))
        cluster.kill()
        cluster.restart()
        with RawClient(cluster) as client:
            yield Survivor(client, producer)


def test_sequences_outlive_a_kill(survivor: Survivor) -> None:
    """Only the last batch is still known as such; before the kill it was the last five."""
    last = BATCHES - 1
    assert survivor.append(WRITTEN, last + 2).error == OUT_OF_ORDER
    assert survivor.append(WRITTEN, last - 1).error == OUT_OF_ORDER
    again = survivor.append(WRITTEN, last)
    assert again[:2] == (NONE, last)
    assert again.log_append_time_ms != -1
    assert survivor.append(WRITTEN, last + 1) == (NONE, last + 1, -1, [])


def test_old_records_leave_no_sequences_behind(survivor: Survivor) -> None:
    """A log of old records takes anything as its producer's next: only its tail protects from doing it twice."""
    assert survivor.append(OLD, BATCHES - 1) == (NONE, BATCHES, -1, []), "the last batch, appended once more"


def test_a_stop_moves_the_leader_epoch(survivor: Survivor) -> None:
    """So a new epoch by itself is no sign of a truncated log: here is one replica, and it has lost nothing."""
    assert survivor.client.leader_epoch(UNTOUCHED) > 0
    assert survivor.client.fetch(UNTOUCHED, 0, epochs=(0, -1))["error_code"] == FENCED_LEADER_EPOCH
    assert survivor.client.fetch(UNTOUCHED, BATCHES)["high_watermark"] == BATCHES


def test_a_fetch_may_say_what_was_read_before(survivor: Survivor) -> None:
    """From version 12 on: who has read more of an epoch than there is of it is told, as after a truncation."""
    client, now = survivor.client, survivor.client.leader_epoch(UNTOUCHED)
    topic_id = client.topic_id(UNTOUCHED)

    def ask(offset: int, last_epoch: int) -> dict[str, Any]:
        return client.fetch(UNTOUCHED, offset, 13, topic_id=topic_id, epochs=(now, last_epoch))

    for offset in (BEFORE_STOP - 1, BEFORE_STOP):
        answer = ask(offset, 0)
        assert (answer["error_code"], answer["diverging_epoch"], bool(answer["records"])) == (NONE, None, True)
    beyond = ask(BEFORE_STOP + 1, 0)
    assert (beyond["error_code"], beyond["records"]) == (NONE, b"")
    assert beyond["diverging_epoch"] == {"epoch": 0, "end_offset": BEFORE_STOP}
    assert ask(0, now + 1)["error_code"] == OUT_OF_RANGE


def test_a_young_broker_may_have_no_ids_yet(survivor: Survivor) -> None:
    answer = survivor.client.ask(INIT_PRODUCER_ID, 1, {})
    assert answer["error_code"] in (NONE, COORDINATOR_LOAD_IN_PROGRESS)
    assert survivor.client.init_producer() != survivor.producer
