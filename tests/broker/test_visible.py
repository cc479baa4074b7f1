"""The oracle of rebuilt copies, and its scenes, without a link: a copy by hand is right, and every fault is noticed."""

from collections.abc import Callable

import pytest

from replicator.state.offset_map import OffsetMap
from tests.broker.admin import create_topic
from tests.broker.copies import Pair
from tests.broker.special_logs import (
    ANY_TIME,
    COMPACTED,
    KINDS,
    NUMBER,
    number_of,
    write_all_codecs,
    write_append_time,
    write_compacted,
    write_cut_head,
    write_growing_batches,
    write_large_batches,
    write_poison,
)
from tests.broker.transaction_logs import (
    TransactionLog,
    leave_open,
    write_compacted_transactions,
    write_cut_aborted,
    write_fenced,
    write_interleaved,
    write_long_aborted,
)
from tests.broker.visible import Copied, Isolation, check_map, copied_by_hand, produce_copies, visible_end
from tests.harness import witness
from tests.harness.java import JavaWitness
from tests.harness.kafka import KafkaCluster
from tests.harness.records import NewRecord, Record

pytestmark = pytest.mark.broker

PARTITIONS = 5  # of a topic with a partition for each codec


@pytest.fixture
def pair(kafka4: KafkaCluster, kafka4_second: KafkaCluster) -> Pair:
    return Pair(kafka4, kafka4_second)


def check_copy_by_hand(
    pair: Pair, topic: str, java: JavaWitness, partitions: int = 1, isolation: Isolation = "read_committed"
) -> dict[int, list[Record]]:
    """The copy passes, whoever reads; returns what is on the source."""
    create_topic(pair.target, topic, partitions, ANY_TIME)
    maps = copied_by_hand(pair, topic, topic, isolation)
    copied = Copied(pair, topic, isolation=isolation, partitions=partitions)
    found = copied.check_records(java)
    for part, pairs in found.items():
        check_map(maps[part], pairs, copied.ends(part))
    return copied.original()


@pytest.mark.soak
@pytest.mark.parametrize("config", [{}, {"message.timestamp.type": "LogAppendTime"}], ids=["created", "appended"])
def test_compacted(pair: Pair, java4: JavaWitness, topic_name: str, config: dict[str, str]) -> None:
    shape = write_compacted(pair.source, topic_name, config=config)
    print(shape)
    (records,) = check_copy_by_hand(pair, topic_name, java4).values()
    assert sum(record.value is None for record in records) > 10, "tombstones"


@pytest.mark.soak
def test_append_time(pair: Pair, java4: JavaWitness, topic_name: str) -> None:
    write_append_time(pair.source, topic_name)
    check_copy_by_hand(pair, topic_name, java4)


@pytest.mark.soak
def test_cut_head(pair: Pair, java4: JavaWitness, topic_name: str) -> None:
    write_cut_head(pair.source, topic_name)
    logs = check_copy_by_hand(pair, topic_name, java4, PARTITIONS)
    assert [log[0].offset for log in logs.values()] == [21, 25, 29, 33, 37]


@pytest.mark.soak
@pytest.mark.parametrize("write", [write_all_codecs, write_growing_batches])
def test_codecs(pair: Pair, java4: JavaWitness, topic_name: str, write: Callable[[KafkaCluster, str], None]) -> None:
    write(pair.source, topic_name)
    check_copy_by_hand(pair, topic_name, java4, PARTITIONS)


@pytest.mark.soak
def test_large_batches(pair: Pair, java4: JavaWitness, topic_name: str) -> None:
    write_large_batches(pair.source, topic_name, limit_bytes=4_000)
    check_copy_by_hand(pair, topic_name, java4, PARTITIONS)


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_poison(pair: Pair, java4: JavaWitness, topic_name: str, kind: str) -> None:
    bad = write_poison(pair.source, topic_name, kind)
    logs = check_copy_by_hand(pair, topic_name, java4, PARTITIONS)
    for records in logs.values():
        assert [number_of(record) for record in records] == list(range(len(records)))
        assert bad < set(range(len(records)))


@pytest.mark.soak
@pytest.mark.parametrize("isolation", ["read_committed", "read_uncommitted"])
def test_transactions(pair: Pair, java4: JavaWitness, topic_name: str, isolation: Isolation) -> None:
    with TransactionLog(pair.source, topic_name, java4, partitions=2) as log:
        write_interleaved(log)
        hanging = leave_open(log)
        print(log.shapes())
        logs = check_copy_by_hand(pair, topic_name, java4, 2, isolation)
        ends = [visible_end(pair.source, topic_name, part, "read_uncommitted") for part in (0, 1)]
        stable = [visible_end(pair.source, topic_name, part) for part in (0, 1)]
        assert all(below < end for below, end in zip(stable, ends, strict=True))
        assert all((log[-1].offset < stable[part]) == (isolation == "read_committed") for part, log in logs.items())
        hanging.abort()
        assert [visible_end(pair.source, topic_name, part) for part in (0, 1)] == [end + 1 for end in ends]


@pytest.mark.soak
@pytest.mark.parametrize("write", [write_long_aborted, write_fenced, write_cut_aborted])
def test_aborted(pair: Pair, java4: JavaWitness, topic_name: str, write: Callable[[TransactionLog], object]) -> None:
    with TransactionLog(pair.source, topic_name, java4) as log:
        write(log)
        print(log.shapes())
        check_copy_by_hand(pair, topic_name, java4)


@pytest.mark.soak
def test_compacted_transactions(pair: Pair, java4: JavaWitness, topic_name: str) -> None:
    with TransactionLog(pair.source, topic_name, java4, config=COMPACTED) as log:
        write_compacted_transactions(log)
        print(log.shapes())
        check_copy_by_hand(pair, topic_name, java4)


# ---- every fault is noticed ----


@pytest.fixture(scope="module")
def small(kafka4: KafkaCluster) -> str:
    topic = "visible-small"
    create_topic(kafka4, topic)
    values = (NewRecord(0, b"k", b"%d" % n, ((NUMBER, b"%d" % n),), 1_700_000_000_000 + n) for n in range(30))
    witness.produce(kafka4.bootstrap, topic, values)
    return topic


def changed(record: Record, **fields: object) -> Record:
    return record._replace(**fields)  # type: ignore[arg-type]


FAULTS: dict[str, Callable[[list[Record]], list[Record]]] = {
    "dropped": lambda log: log[:7] + log[8:],
    "dropped at the start": lambda log: log[1:],
    "dropped at the end": lambda log: log[:-1],
    "doubled": lambda log: [*log[:8], *log[7:]],
    "doubled at the end": lambda log: [*log, log[-1]],
    "exchanged": lambda log: [*log[:7], log[8], log[7], *log[9:]],
    "time": lambda log: [*log[:7], changed(log[7], timestamp=log[7].timestamp + 1), *log[8:]],
    "key": lambda log: [*log[:7], changed(log[7], key=None), *log[8:]],
    "value": lambda log: [*log[:7], changed(log[7], value=b""), *log[8:]],
    "header": lambda log: [*log[:7], changed(log[7], headers=()), *log[8:]],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(pair: Pair, topic_name: str, small: str, fault: str) -> None:
    create_topic(pair.target, topic_name)
    wrong = FAULTS[fault](witness.dump(pair.source.bootstrap, small)[0])
    produce_copies(pair.target, topic_name, 0, wrong)
    with pytest.raises(AssertionError, match="became"):
        Copied(pair, small, topic_name).check_records()


def test_a_map_that_is_wrong_is_noticed(pair: Pair, topic_name: str, small: str) -> None:
    create_topic(pair.target, topic_name)
    (right,) = copied_by_hand(pair, small, topic_name).values()
    copied = Copied(pair, small, topic_name)
    pairs = copied.check_records()[0]
    check_map(right, pairs, copied.ends())
    for rows in ([[0, 0, 29]], [[0, 0, 7], [8, 8, 22]], [[0, 0, 7], [8, 7, 22]], [[0, 1, 29]]):
        wrong = OffsetMap(rows, right.position, right.target_next)
        with pytest.raises(AssertionError):
            check_map(wrong, pairs, copied.ends())
    with pytest.raises(AssertionError):
        check_map(OffsetMap(right.segments[:1], 30, 31), pairs, copied.ends())
