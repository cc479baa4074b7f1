"""Transactions of a source, as its consumers see them: what was aborted never arrives, what is open waits."""

import json
import time
from collections.abc import Callable

import pytest
from click.testing import CliRunner

from replicator.cli.main import main
from replicator.data.states import LaneState
from tests.broker.admin import end_offset
from tests.broker.carrying import bring, carry, carrying, name_of, wait_until_carried
from tests.broker.copies import Pair
from tests.broker.log_shape import log_shape
from tests.broker.special_logs import APPEND_TIME, COMPACTED, NUMBER, copy_topic
from tests.broker.transaction_logs import (
    TransactionLog,
    leave_open,
    write_compacted_transactions,
    write_cut_aborted,
    write_fenced,
    write_interleaved,
    write_long_aborted,
)
from tests.broker.visible import Copied, Isolation, visible_end, visible_ends
from tests.harness import witness
from tests.harness.java import JavaWitness
from tests.harness.kafka import KafkaCluster
from tests.harness.link import RunningLink
from tests.harness.transactions import Writer

pytestmark = pytest.mark.broker

PARTITIONS = 2
BOTH: list[Isolation] = ["read_committed", "read_uncommitted"]
SMALL = {"fetch_bytes_max": 1_024, "lane_bytes_max": 1 << 20}

End = Callable[[Writer], None]


def commit(writer: Writer) -> None:
    writer.commit()


def abort(writer: Writer) -> None:
    writer.abort()


@pytest.fixture
def pair(kafka4: KafkaCluster, kafka4_second: KafkaCluster) -> Pair:
    return Pair(kafka4, kafka4_second)


def assert_plain(pair: Pair, topic: str, partitions: int = PARTITIONS) -> None:
    """On the target there is nothing of transactions, in whose midst somebody might read."""
    for part in range(partitions):
        shape = log_shape(pair.target, topic, part)
        assert [shape[word] for word in ("control", "open", "committed", "aborted", "holes")] == [0] * 5


@pytest.mark.parametrize("isolation", BOTH)
def test_interleaved_writers(pair: Pair, java4: JavaWitness, topic_name: str, isolation: Isolation) -> None:
    with TransactionLog(pair.source, topic_name, java4, partitions=PARTITIONS) as log:
        write_interleaved(log)
    config = carry(pair, topic_name, PARTITIONS, isolation=isolation)
    copied = Copied(pair, topic_name, isolation=isolation, partitions=PARTITIONS)
    copied.check(name_of(config), java4, records_min=100)
    assert_plain(pair, topic_name)


@pytest.mark.soak
def test_a_source_of_kafka_3(kafka3: KafkaCluster, kafka4: KafkaCluster, java3: JavaWitness, topic_name: str) -> None:
    """Whose transactions are of the older kind: one producer epoch for all of them."""
    pair = Pair(kafka3, kafka4)
    with TransactionLog(pair.source, topic_name, java3, seed=3, partitions=PARTITIONS) as log:
        write_interleaved(log)
    config = carry(pair, topic_name, PARTITIONS)
    Copied(pair, topic_name, partitions=PARTITIONS).check(name_of(config), java3, records_min=100)
    assert_plain(pair, topic_name)


@pytest.mark.parametrize("isolation", BOTH)
@pytest.mark.parametrize("limits", [SMALL, pytest.param(None, marks=pytest.mark.soak)], ids=["small", "large"])
def test_an_aborted_range_across_fetches(
    pair: Pair, java4: JavaWitness, topic_name: str, isolation: Isolation, limits: dict[str, int] | None
) -> None:
    with TransactionLog(pair.source, topic_name, java4, seed=4) as log:
        write_long_aborted(log)
    config = carry(pair, topic_name, limits=limits, isolation=isolation)
    Copied(pair, topic_name, isolation=isolation).check(name_of(config), java4, records_min=10)
    assert_plain(pair, topic_name, 1)


@pytest.mark.soak
@pytest.mark.parametrize("isolation", BOTH)
@pytest.mark.parametrize("write", [write_fenced, write_cut_aborted])
def test_transactions_without_a_head_or_without_an_end(
    pair: Pair, java4: JavaWitness, topic_name: str, write: Callable[[TransactionLog], object], isolation: Isolation
) -> None:
    """Ended by the broker, because the producer was replaced; and cut by the log's start, in the middle of a batch."""
    with TransactionLog(pair.source, topic_name, java4, seed=13) as log:
        write(log)
    config = carry(pair, topic_name, limits=SMALL, isolation=isolation)
    Copied(pair, topic_name, isolation=isolation).check(name_of(config), java4, records_min=10)
    assert_plain(pair, topic_name, 1)


@pytest.mark.parametrize("end", [commit, abort])
def test_an_open_transaction_at_restart(pair: Pair, java4: JavaWitness, topic_name: str, end: End) -> None:
    """The link waits in front of it, is ended there, comes back, waits, and goes on when it is over."""
    with TransactionLog(pair.source, topic_name, java4, seed=5, partitions=PARTITIONS) as log:
        write_interleaved(log, steps=100)
        hanging = leave_open(log)
        copied = Copied(pair, topic_name, partitions=PARTITIONS)
        config = carry(pair, topic_name, PARTITIONS)
        first = copied.check(name_of(config), records_min=30)
        with RunningLink(config) as link:
            for part in range(PARTITIONS):
                link.wait_for_state(LaneState.TAILING, topic_name, part)
            log.plain(10, 0)
            log.plain(10, 1)
            time.sleep(1.5)  # in which a link that does not wait would have copied them
            stood = [len(pairs) for pairs in first.values()]
            assert [end_offset(pair.target, topic_name, part) for part in range(PARTITIONS)] == stood
            end(hanging)
            wait_until_carried(link, visible_ends(pair.source, topic_name, PARTITIONS))
        found = copied.check(name_of(config), java4)
        assert all(len(found[part]) >= len(first[part]) + 10 for part in found)
        everything = (visible_end(pair.source, topic_name, part, "read_uncommitted") for part in range(PARTITIONS))
        assert list(everything) == [copied.ends(part)[0] for part in range(PARTITIONS)]


def test_an_open_transaction_is_no_hindrance_to_who_reads_all(pair: Pair, java4: JavaWitness, topic_name: str) -> None:
    with TransactionLog(pair.source, topic_name, java4, seed=6, partitions=PARTITIONS) as log:
        write_interleaved(log, steps=100)
        hanging = leave_open(log)
        config = carry(pair, topic_name, PARTITIONS, isolation="read_uncommitted")
        copied = Copied(pair, topic_name, isolation="read_uncommitted", partitions=PARTITIONS)
        before = copied.check(name_of(config), java4)
        hanging.abort()
        bring(pair, config, topic_name, PARTITIONS)
        after = copied.check(name_of(config), java4)
        assert after == before, "nothing is taken back, and a marker is no record"


def test_copy_ends_in_front_of_an_open_transaction(pair: Pair, java4: JavaWitness, topic_name: str) -> None:
    with TransactionLog(pair.source, topic_name, java4, seed=7, partitions=PARTITIONS) as log:
        write_interleaved(log, steps=100)
        leave_open(log)
        with RunningLink(carrying(pair, topic_name), stop="now") as link:
            wait_until_carried(link, visible_ends(pair.source, topic_name, PARTITIONS))
            for part in range(PARTITIONS):
                link.wait_for_state(LaneState.DONE, topic_name, part)
        Copied(pair, topic_name, partitions=PARTITIONS).check_records(java4, records_min=30)


def test_copy_verifies_what_is_committed(pair: Pair, java4: JavaWitness, topic_name: str) -> None:
    """`replicator copy` reads both sides once more, as consumers of committed records do."""
    with TransactionLog(pair.source, topic_name, java4, seed=12, partitions=PARTITIONS) as log:
        write_interleaved(log, steps=80)
    ends = ["--from", pair.source.bootstrap, "--to", pair.target.bootstrap]
    done = CliRunner().invoke(main, ["copy", *ends, "--workers", "1", "--topics", topic_name, "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    found = Copied(pair, topic_name, partitions=PARTITIONS).check_records(java4, records_min=60)
    assert (report["outcome"], report["records"]) == ("equal", sum(map(len, found.values())))


@pytest.mark.soak
def test_transactions_as_they_are_written(pair: Pair, java4: JavaWitness, topic_name: str) -> None:
    """By a link that is at the log's end while others begin, write, commit and abort."""
    config = carrying(pair, topic_name)
    with TransactionLog(pair.source, topic_name, java4, seed=8, partitions=PARTITIONS) as log:
        with RunningLink(config) as link:
            write_interleaved(log)
            wait_until_carried(link, visible_ends(pair.source, topic_name, PARTITIONS))
        Copied(pair, topic_name, partitions=PARTITIONS).check(name_of(config), java4, records_min=100)


def test_compacted_transactions(pair: Pair, java4: JavaWitness, topic_name: str) -> None:
    copy_topic(pair.target, topic_name)
    with TransactionLog(pair.source, topic_name, java4, seed=9, config=COMPACTED) as log:
        write_compacted_transactions(log)
    config = carry(pair, topic_name)
    Copied(pair, topic_name).check(name_of(config), java4, records_min=30)


@pytest.mark.soak
def test_everything_at_once(pair: Pair, java4: JavaWitness, topic_name: str) -> None:
    """Transactions, their broker's times, small fetches, a small target with a codec of its own, a filter, a header."""
    copy_topic(pair.target, topic_name, PARTITIONS, {"compression.type": "zstd", "max.message.bytes": "600"})
    with TransactionLog(pair.source, topic_name, java4, seed=10, partitions=PARTITIONS, config=APPEND_TIME) as log:
        write_interleaved(log)
        write_long_aborted(log, batches=15)
    edits = [
        {"drop": True, "where": {"key": {"equals": "shared-3"}}},
        {"rename_header": {"name": NUMBER, "to": "m"}},
        {"rename_header": {"name": "m", "to": NUMBER}},
    ]
    config = carry(pair, topic_name, PARTITIONS, limits=SMALL, edits=edits)
    copied = Copied(pair, topic_name, partitions=PARTITIONS, keep=lambda record: record.key != b"shared-3")
    found = copied.check(name_of(config), java4, records_min=100)
    everything = sum(map(len, copied.original().values()))
    assert sum(map(len, found.values())) < everything
    batches = [raw for part in found for raw in witness.raw_batches(pair.target.bootstrap, topic_name, part)]
    assert max(map(len, batches)) <= 600
