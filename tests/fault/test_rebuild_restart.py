"""The whole link is killed while it rebuilds, and the world is another one when it comes back: the source was compacted
further, or the link file has another filter. Nothing is lost, nothing comes twice, and the map is exact."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from replicator.state.records import LaneKey
from tests.broker.admin import create_topic, end_offset
from tests.broker.copies import Pair
from tests.broker.letters import check_letters, read_letters
from tests.broker.log_shape import log_shape
from tests.broker.special_logs import (
    REFUSING,
    clean,
    copy_topic,
    number_of,
    numbered_record,
    write_compacted,
    write_in_batches,
    write_poison,
)
from tests.broker.transaction_logs import TransactionLog, leave_open, write_interleaved, write_long_aborted
from tests.broker.visible import Copied, check_map, check_public, everything, link_map, produce_copies, visible_end
from tests.fault.whole_link import WholeLink, joined
from tests.harness import witness
from tests.harness.java import JavaWitness
from tests.harness.kafka import KafkaCluster
from tests.harness.records import Record

pytestmark = pytest.mark.broker

SELDOM_MS = 60_000  # between two checkpoints: the link has to find its place in the logs themselves
OFTEN_MS = 100
Keep = Callable[[Record], bool]


@pytest.fixture
def pair(kafka4: KafkaCluster, kafka4_second: KafkaCluster) -> Pair:
    """Whose log cleaners look for work all the time, as those of the other fault tests do not."""
    return Pair(kafka4, kafka4_second)


def check_joined(link: WholeLink, before: list[Record], since: list[Record]) -> int:
    """What is on the target, and the map of every offset; returns how many copies may be from before."""
    target = link.pair.target
    (copies,) = witness.dump(target.bootstrap, link.topic).values()
    pairs, from_before = joined(before, since, copies)
    ends = visible_end(link.pair.source, link.topic), end_offset(target, link.topic)
    lane = LaneKey(link.topic, 0)
    check_map(link_map(target, link.name, lane), pairs, ends)
    check_public(target, link.name, lane, pairs, ends)
    return from_before


def seen(pair: Pair, topic: str, keep: Keep = everything) -> list[Record]:
    return [record for record in witness.dump(pair.source.bootstrap, topic, "read_committed")[0] if keep(record)]


# ---- compaction ----


@pytest.mark.parametrize("checkpoint_ms", [OFTEN_MS, pytest.param(SELDOM_MS, marks=pytest.mark.soak)])
def test_killed_in_a_compacted_log(pair: Pair, topic_name: str, tmp_path: Path, checkpoint_ms: int) -> None:
    write_compacted(pair.source, topic_name, seed=21)
    copy_topic(pair.target, topic_name)
    link = WholeLink(pair, topic_name, tmp_path)
    link.die_in_the_middle(80, times=2, checkpoint_interval_ms=checkpoint_ms)
    link.finish({0: visible_end(pair.source, topic_name)}, checkpoint_interval_ms=OFTEN_MS)
    Copied(pair, topic_name).check(link.name, records_min=300)


@pytest.mark.parametrize("checkpoint_ms", [OFTEN_MS, pytest.param(SELDOM_MS, marks=pytest.mark.soak)])
def test_the_source_is_compacted_further_meanwhile(
    pair: Pair, topic_name: str, tmp_path: Path, checkpoint_ms: int
) -> None:
    """At both sides of where the link was killed: batches are gone, thinned, or empty that it had copied or was to."""
    write_compacted(pair.source, topic_name, seed=22)
    copy_topic(pair.target, topic_name)
    before = seen(pair, topic_name)
    link = WholeLink(pair, topic_name, tmp_path)
    link.die_in_the_middle(150, checkpoint_interval_ms=checkpoint_ms)
    reached = link.copied()
    compact_further(pair.source, topic_name, before)
    since = seen(pair, topic_name)
    position = before[reached - 1].offset
    assert min(gone(before, since, position + 1)) >= 20
    link.finish({0: visible_end(pair.source, topic_name)}, checkpoint_interval_ms=OFTEN_MS)
    assert check_joined(link, before, since) >= reached


def gone(before: list[Record], since: list[Record], cut: int) -> tuple[int, int]:
    """How many records the cleaner took: below this offset, and from it on."""
    offsets = {record.offset for record in before} - {record.offset for record in since}
    below = sum(offset < cut for offset in offsets)
    return below, len(offsets) - below


def compact_further(cluster: KafkaCluster, topic: str, records: list[Record]) -> None:
    """A third of the keys is written anew."""
    holes = log_shape(cluster, topic)["holes"]
    keys = sorted({record.key for record in records if record.key and record.key != b"filler"})[::3]
    write_in_batches(cluster, topic, (numbered_record(20_000 + n, key, b"anew") for n, key in enumerate(keys)))
    clean(cluster, topic, lambda shape: shape["holes"] >= holes + 30)


# ---- filters ----


def no_evens(record: Record) -> bool:
    return not (record.key or b"").startswith(b"even-")


def no_odds(record: Record) -> bool:
    return not (record.key or b"").startswith(b"odd-")


def dropping(prefix: str) -> list[dict[str, Any]]:
    return [{"drop": True, "where": {"key": {"prefix": prefix}}}]


FILTERS: dict[str, tuple[list[dict[str, Any]], Keep]] = {
    "none": ([], everything),
    "evens": (dropping("even-"), no_evens),
    "odds": (dropping("odd-"), no_odds),
}


@pytest.mark.parametrize("checkpoint_ms", [OFTEN_MS, pytest.param(SELDOM_MS, marks=pytest.mark.soak)])
@pytest.mark.parametrize(
    ("first", "then"), [("none", "evens"), pytest.param("evens", "none", marks=pytest.mark.soak), ("evens", "odds")]
)
def test_a_filter_is_changed_meanwhile(
    pair: Pair, topic_name: str, tmp_path: Path, first: str, then: str, checkpoint_ms: int
) -> None:
    """What was copied under the old one stays, what comes is as the new one has it, and the line is drawn once."""
    create_topic(pair.source, topic_name)
    records = (numbered_record(n, b"%s-%d" % (b"odd" if n % 3 else b"even", n), b"%d " % n * 30) for n in range(1_500))
    write_in_batches(pair.source, topic_name, records)
    link = WholeLink(pair, topic_name, tmp_path)
    link.die_in_the_middle(200, edits=FILTERS[first][0], checkpoint_interval_ms=checkpoint_ms)
    reached = link.copied()
    link.finish({0: 1_500}, edits=FILTERS[then][0], checkpoint_interval_ms=OFTEN_MS)
    before, since = (seen(pair, topic_name, FILTERS[name][1]) for name in (first, then))
    assert 200 <= reached <= check_joined(link, before, since) < 0.9 * len(before)


def test_a_filter_is_changed_and_the_source_compacted_meanwhile(pair: Pair, topic_name: str, tmp_path: Path) -> None:
    write_compacted(pair.source, topic_name, seed=23)
    copy_topic(pair.target, topic_name)
    keep: Keep = lambda record: not (record.key or b"").endswith(b"1")  # noqa: E731
    before = seen(pair, topic_name, keep)
    link = WholeLink(pair, topic_name, tmp_path)
    edits = [{"drop": True, "where": {"key": {"suffix": "1"}}}]
    link.die_in_the_middle(150, edits=edits, checkpoint_interval_ms=SELDOM_MS)
    reached = link.copied()
    compact_further(pair.source, topic_name, seen(pair, topic_name))
    link.finish({0: visible_end(pair.source, topic_name)}, edits=[], checkpoint_interval_ms=OFTEN_MS)
    assert check_joined(link, before, seen(pair, topic_name)) >= reached


# ---- transactions ----


@pytest.mark.parametrize("checkpoint_ms", [OFTEN_MS, pytest.param(SELDOM_MS, marks=pytest.mark.soak)])
def test_killed_in_aborted_transactions(
    pair: Pair, java4: JavaWitness, topic_name: str, tmp_path: Path, checkpoint_ms: int
) -> None:
    """Within ranges that are longer than a Fetch, and again in front of a transaction that is open."""
    with TransactionLog(pair.source, topic_name, java4, seed=24) as log:
        for _ in range(2):
            write_interleaved(log, steps=100)
            write_long_aborted(log, batches=20)
        hanging = leave_open(log)
        link = WholeLink(pair, topic_name, tmp_path, {"fetch_bytes_max": 1_024})
        link.die_in_the_middle(60, times=2, checkpoint_interval_ms=checkpoint_ms)
        link.finish({0: visible_end(pair.source, topic_name)}, checkpoint_interval_ms=OFTEN_MS)
        Copied(pair, topic_name).check(link.name, java4, records_min=150)
        hanging.abort()
    link.finish({0: visible_end(pair.source, topic_name)})
    Copied(pair, topic_name).check(link.name, java4, records_min=150)


# ---- dead letters ----


@pytest.mark.parametrize("checkpoint_ms", [OFTEN_MS, pytest.param(SELDOM_MS, marks=pytest.mark.soak)])
def test_killed_while_it_diverts(pair: Pair, topic_name: str, tmp_path: Path, checkpoint_ms: int) -> None:
    """Each bad record has a dead letter, perhaps two, and both say of which record; the good ones are there once."""
    bad = write_poison(pair.source, topic_name, "null key", codecs=("none",), turns=3)
    copy_topic(pair.target, topic_name, config=REFUSING["null key"])
    link = WholeLink(pair, topic_name, tmp_path)
    link.die_in_the_middle(100, times=2, checkpoint_interval_ms=checkpoint_ms)
    link.finish({0: visible_end(pair.source, topic_name)}, checkpoint_interval_ms=OFTEN_MS)
    copied = Copied(pair, topic_name, keep=lambda record: number_of(record) not in bad)
    copied.check(link.name, records_min=400)
    refused = {0: [record for record in copied.original()[0] if number_of(record) in bad]}
    check_letters(read_letters(pair.target, f"{link.name}.dlq"), topic_name, refused, once=False)


# ---- the oracle ----


def test_a_copy_by_hand_of_a_log_that_is_compacted_further(pair: Pair, topic_name: str) -> None:
    """The scene and its oracle, without a link: half of the log is copied as it was, the rest as it is then."""
    write_compacted(pair.source, topic_name, seed=25)
    before = seen(pair, topic_name)
    cut = before[200].offset
    compact_further(pair.source, topic_name, before)
    since = seen(pair, topic_name)
    rest = [record for record in since if record.offset >= cut]
    assert min(gone(before, since, cut)) >= 20
    create_topic(pair.target, topic_name)
    produce_copies(pair.target, topic_name, 0, before[:200] + rest)
    (copies,) = witness.dump(pair.target.bootstrap, topic_name).values()
    pairs, from_before = joined(before, since, copies)
    assert len(pairs) == len(copies)
    assert 200 <= from_before < 220
    for place in (10, 100, 260, len(copies) - 1):
        with pytest.raises(AssertionError):
            joined(before, since, copies[:place] + copies[place + 1 :])
        with pytest.raises(AssertionError):
            joined(before, since, copies[: place + 1] + copies[place:])


def test_the_line_between_then_and_now() -> None:
    def record(number: int, offset: int) -> Record:
        return Record(offset, "CreateTime", 1, b"k", b"%d" % number, (("n", b"%d" % number),))

    log = [record(n, 2 * n) for n in range(20)]
    before, since = log[::2], log[::3]
    right = [*log[0:9:2], log[9], log[12], log[15], log[18]]
    copies = [record(number_of(each), place) for place, each in enumerate(right)]
    pairs, from_before = joined(before, since, copies)
    assert pairs == tuple((each.offset, place) for place, each in enumerate(right))
    assert from_before == 5
    faults = [copies[:3] + copies[4:], copies[:-1], copies[:6] + copies[5:], copies[1:]]
    faults += [[*copies[:5], copies[6], copies[5], *copies[7:]], [*copies, record(7, 9)], [*copies, record(99, 9)]]
    faults += [[copies[0]._replace(value=b""), *copies[1:]]]
    for wrong in faults:
        with pytest.raises(AssertionError):
            joined(before, since, wrong)
