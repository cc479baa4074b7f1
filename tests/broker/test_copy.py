"""A link at work: logs that grow while it runs, where it starts, several at once, and workers that are shot."""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from replicator.data.states import LaneState
from tests.broker.admin import add_partitions, create_topic, end_offset, partition_count
from tests.broker.batches import Entry, make_batch
from tests.broker.copies import Copy, Pair, same_batches, stored_batches
from tests.broker.raw import RawClient
from tests.harness import witness
from tests.harness.java import Fill, JavaWitness
from tests.harness.kafka import KafkaCluster
from tests.harness.link import UNMERGED, RunningLink, link_config
from tests.harness.records import NewRecord
from tests.harness.waiting import eventually

pytestmark = pytest.mark.broker

SOON_MS = 200  # between two looks for topics; a tenth of the patience of the tests


@pytest.fixture
def pair(kafka4: KafkaCluster, kafka4_second: KafkaCluster) -> Pair:
    return Pair(kafka4, kafka4_second)


def config(pair: Pair, topics: str, **link: Any) -> dict[str, Any]:
    return link_config(
        pair.source.bootstrap, pair.target.bootstrap, topics, link={"refresh_topics_ms": SOON_MS, **UNMERGED, **link}
    )


def records(count: int, partitions: Sequence[int] = (0,)) -> list[NewRecord]:
    return [NewRecord(partitions[n % len(partitions)], b"%d" % n, b"value %d" % n) for n in range(count)]


def wait_for_lane(link: RunningLink, topic: str, partition: int = 0) -> None:
    eventually(lambda: (topic, partition) in link.lanes, f"a lane of {topic}-{partition}")
    link.wait_for_state(LaneState.TAILING, topic, partition)


@contextmanager
def being_written(cluster: KafkaCluster, topic: str, partitions: Sequence[int]) -> Iterator[None]:
    """Records come into the topic, a few hundred at a time, as long as the block runs; its failures are the block's."""
    ended = threading.Event()
    failures: list[Exception] = []

    def write() -> None:
        while not ended.is_set():
            try:
                witness.produce(cluster.bootstrap, topic, records(300, partitions))
            except Exception as failure:
                failures.append(failure)
                return

    thread = threading.Thread(target=write, name=f"writes {topic}")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert not failures


def copied_whole(link: RunningLink, copy: Copy, partitions: int, batches_min: int = 1) -> int:
    """Wait until nothing is missing, compare, and return the number of records."""
    ends = {(copy.topic, part): end_offset(copy.pair.source, copy.topic, part) for part in range(partitions)}
    link.wait_until_copied(ends)
    return sum(len(copy.check(part, batches_min=batches_min)) for part in range(partitions))


def test_logs_and_topics_grow_while_they_are_copied(pair: Pair, java4: JavaWitness, topic_name: str) -> None:
    first, late = (
        Copy(pair, topic_name, topic_name, java4),
        Copy(pair, topic_name + "-late", topic_name + "-late", java4),
    )
    create_topic(pair.source, first.topic, 2)
    with RunningLink(config(pair, topic_name + ".*")) as link:
        with being_written(pair.source, first.topic, [0, 1]):
            wait_for_lane(link, first.topic, 1)
            witness.create_topic(pair.source.bootstrap, late.topic, 3)
            with being_written(pair.source, late.topic, [0, 1, 2]):
                eventually(lambda: (late.topic, 2) in link.lanes, "lanes of the late topic")
                add_partitions(pair.source, first.topic, 4)
                eventually(lambda: (first.topic, 3) in link.lanes, "lanes of the new partitions")
                assert partition_count(pair.target, first.topic) == 4, "the target has grown before"
                witness.produce(pair.source.bootstrap, first.topic, records(1_000, [2, 3]))
        assert copied_whole(link, first, partitions=4) >= 1_000 + 2 * 300
        assert copied_whole(link, late, partitions=3, batches_min=2) >= 300
        assert link.lanes.keys() == {(first.topic, part) for part in range(4)} | {
            (late.topic, part) for part in range(3)
        }


def test_latest_speaks_of_what_is_there_at_the_start(pair: Pair, topic_name: str) -> None:
    late = topic_name + "-late"
    create_topic(pair.source, topic_name)
    witness.produce(pair.source.bootstrap, topic_name, records(100))
    with RunningLink(config(pair, topic_name + ".*", start="latest")) as link:
        wait_for_lane(link, topic_name)
        assert link.checkpoint(topic_name).position == 100
        witness.produce(pair.source.bootstrap, topic_name, records(30))
        create_topic(pair.source, late)
        witness.produce(pair.source.bootstrap, late, records(40))
        add_partitions(pair.source, topic_name, 2)
        eventually(lambda: {(topic_name, 1), (late, 0)} <= link.lanes.keys(), "all lanes")
        witness.produce(pair.source.bootstrap, topic_name, records(50, [1]))
        link.wait_until_copied({(topic_name, 0): 130, (topic_name, 1): 50, (late, 0): 40})
    copied = witness.dump(pair.target.bootstrap, topic_name)
    assert [record.value for record in copied[0]] == [record.value for record in records(30)]
    assert [len(copied[1]), len(witness.dump(pair.target.bootstrap, late)[0])] == [50, 40]


@pytest.mark.parametrize(
    ("timestamp", "first_copied"),
    [(0, 0), (5_000, 0), (9_001, 10), (10_000, 10), (15_500, 10), (20_000, 20), (29_000, 20), (29_001, None)],
)
def test_a_start_by_time_begins_with_a_whole_batch(
    pair: Pair, topic_name: str, timestamp: int, first_copied: int | None
) -> None:
    """Three batches of ten records, which are a second apart."""
    create_topic(pair.source, topic_name)
    with RawClient(pair.source) as client:
        for first in (0, 10, 20):
            entries = [Entry(b"%d" % second, timestamp=1_000 * second) for second in range(first, first + 10)]
            assert client.produce(topic_name, make_batch(entries, base_timestamp=1_000 * first).encode()).error == 0
    with RunningLink(config(pair, topic_name, start={"timestamp": timestamp})) as link:
        wait_for_lane(link, topic_name)
        link.wait_until_copied({(topic_name, 0): 30})
    values = [int(record.value or b"-1") for record in witness.dump(pair.target.bootstrap, topic_name)[0]]
    assert values == ([] if first_copied is None else list(range(first_copied, 30)))


def test_links_in_both_directions(pair: Pair, topic_name: str) -> None:
    """One topic name on both sides, each copied to the other under a prefix; nothing travels in circles."""
    both = {"source": pair.source, "target": pair.target}
    for alias, cluster in both.items():
        create_topic(cluster, topic_name, 2)
        values = [record._replace(value=alias.encode()) for record in records(500, [0, 1])]
        witness.produce(cluster.bootstrap, topic_name, values)
    forth = config(pair, topic_name, rename={"prefix": "from-source."})
    back = config(pair, topic_name, rename={"template": "{topic}.from-target"})["links"][0]
    back |= {"source": "target", "target": "source"}
    with RunningLink({**forth, "links": [*forth["links"], back]}) as link:
        eventually(lambda: len(link.supervisor.lanes) == 4, "two lanes a link")
        eventually(
            lambda: all(link.supervisor.rows.checkpoint(row).position >= 250 for row in range(4)), "both directions"
        )
        assert len(link.worker_pids()) == 1
    for cluster, copy, alias in (
        (pair.target, f"from-source.{topic_name}", "source"),
        (pair.source, f"{topic_name}.from-target", "target"),
    ):
        origin = witness.dump(both[alias].bootstrap, topic_name)
        assert witness.dump(cluster.bootstrap, copy) == origin
        assert [len(origin[part]) for part in (0, 1)] == [250, 250]
        assert {record.value for record in origin[0]} == {alias.encode()}


def test_two_workers_share_the_lanes(pair: Pair, java4: JavaWitness, topic_name: str) -> None:
    copy = Copy(pair, topic_name, topic_name, java4)
    create_topic(pair.source, topic_name, 8)
    java4.fill(pair.source.bootstrap, topic_name, Fill(8, 8_000), {"batch.size": "16384"})
    with RunningLink({**config(pair, topic_name), "workers": 2}) as link:
        assert copied_whole(link, copy, partitions=8, batches_min=2) == 8_000
        # Who came to the group first may have had all of them for a moment.
        eventually(lambda: [len(share) for share in link.shares()] == [4, 4], "a fair share for each worker")
        assert set.union(*link.shares()) == set(range(8))
        assert len(set(link.worker_pids())) == 2


def test_killed_workers_lose_and_double_nothing(
    kafka4: KafkaCluster, kafka3: KafkaCluster, java4: JavaWitness, topic_name: str
) -> None:
    """Shot one after the other with batches in flight, over a network that holds some of them back."""
    pair, partitions, count = Pair(kafka4, kafka3), 6, 24_000
    copy = Copy(pair, topic_name, topic_name, java4)
    create_topic(pair.source, topic_name, partitions)
    java4.fill(pair.source.bootstrap, topic_name, Fill(partitions, count), {"batch.size": "16384"})
    kafka3.proxies[0].link(latency_s=0.005, bytes_per_second=10_000_000)
    through_proxy = link_config(pair.source.bootstrap, kafka3.proxied_bootstrap, topic_name, workers=2, link=UNMERGED)
    shots = [1, 3_000, 100, 4_000, 2_000, 1_000]  # each so many records after the one before
    with RunningLink(through_proxy) as link:

        def copied() -> int:
            return sum(link.checkpoint(topic_name, part).position for part in range(partitions))

        for shot, more in enumerate(shots):
            wanted = copied() + more
            eventually(lambda at_least=wanted: copied() >= at_least, f"{wanted} records")
            alive = eventually(link.worker_pids, "a worker")
            os.kill(alive[shot % len(alive)], signal.SIGKILL)
        assert copied() < count, "the last shot fell in the middle, too"
        assert copied_whole(link, copy, partitions, batches_min=100) == count
        assert sum(worker.restarts for worker in link.supervisor.workers) == len(shots)
        assert {link.reason(topic_name, part) for part in range(partitions)} == {""}


def test_a_backlog_of_the_smallest_batches(pair: Pair, topic_name: str) -> None:
    """Batches of one record each, in requests that carry one batch of a partition."""
    create_topic(pair.source, topic_name)
    witness.produce(pair.source.bootstrap, topic_name, records(5_000), {"batch.num.messages": 1})
    with RunningLink(config(pair, topic_name), stop="now") as link:
        link.wait_until_copied({(topic_name, 0): 5_000})
        link.wait_for_state(LaneState.DONE, topic_name)
        assert link.counter("records", topic_name) == link.counter("batches", topic_name) == 5_000
    originals, copies = (stored_batches(side, topic_name) for side in (pair.source, pair.target))
    assert same_batches(originals, copies) == 5_000
