"""The target's log is not what the lane left there: somebody else wrote to it, or the broker forgot who wrote."""

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from replicator.data.states import LaneState
from tests.fault.scene import Journal, Pair, Traffic, assert_same_log, log_ends, wait_for_pause, wait_for_progress
from tests.harness import witness
from tests.harness.kafka import NEWEST_4, KafkaCluster
from tests.harness.link import RunningLink
from tests.harness.records import NewRecord
from tests.harness.waiting import eventually

pytestmark = pytest.mark.broker

PRODUCE = 0
TWO_DAYS_MS = 2 * 24 * 3600 * 1000
# A broker forgets a producer by the age of its records, and looks for such producers every 10 minutes by default.
FORGETFUL = {"producer.id.expiration.check.interval.ms": "1"}


def test_a_foreign_writer(pair: Pair, topic_name: str) -> None:
    """Its lane stops and says why; the partition beside it is copied on."""
    pair.create(topic_name, 2)
    with (
        RunningLink(pair.config(re.escape(topic_name))) as link,
        Traffic(pair.source, topic_name, (0, 1)) as traffic,
    ):
        wait_for_progress(link, topic_name)
        witness.produce(pair.target.bootstrap, topic_name, [NewRecord(0, None, b"foreign")])
        link.wait_for_state(LaneState.FAILED, topic_name)
        eventually(lambda: "only the link may write" in link.reason(topic_name), "the reason")
        written = log_ends(pair.target, topic_name)
        wait_for_progress(link, topic_name, partition=1, records=1000)
        assert log_ends(pair.target, topic_name) == written
        position = link.checkpoint(topic_name).position
        ends = traffic.finish()
        link.wait_until_copied({(topic_name, 1): ends[topic_name, 1]})
    originals, copies = witness.dump(pair.source.bootstrap, topic_name), witness.dump(pair.target.bootstrap, topic_name)
    assert originals[1] == copies[1]
    assert len(originals[1]) > 1500
    values = [record.value for record in copies[0]]
    assert values.count(b"foreign") == 1
    values.remove(b"foreign")
    assert values == [record.value for record in originals[0][: len(values)]], "no gap, no duplicate"
    assert len(values) >= position


@pytest.fixture(scope="module")
def forgetful() -> Iterator[KafkaCluster]:
    with KafkaCluster(NEWEST_4, proxied=True, properties=FORGETFUL) as cluster:
        yield cluster


def test_lost_answers_where_the_broker_forgets_us(
    pair: Pair, forgetful: KafkaCluster, journal: Journal, topic_name: str
) -> None:
    """Old records: the broker takes any sequence, so nothing but our own care keeps a batch from being doubled."""
    pair = replace(pair, target=forgetful)
    pair.create(topic_name, 2)
    proxy = pair.target.proxies[0]
    with (
        RunningLink(pair.config(topic_name)) as link,
        Traffic(pair.source, topic_name, (0, 1), age_ms=TWO_DAYS_MS) as traffic,
    ):
        wait_for_progress(link, topic_name)
        proxy.drop_answers(PRODUCE, every=11)
        eventually(lambda: proxy.dropped >= 12, "lost answers", 60)
        for _ in range(5):
            proxy.cut_all()
            wait_for_progress(link, topic_name, records=100)
        proxy.reset()
        link.wait_until_copied(traffic.finish())
    assert journal.tells("no answer to a Produce", topic_name)
    assert_same_log(pair, topic_name, records_min=2000)


@pytest.mark.parametrize("fault", ["black hole", "frozen broker"])
def test_late_requests_where_the_broker_forgets_us(
    pair: Pair, forgetful: KafkaCluster, topic_name: str, fault: str
) -> None:
    """The hardest case: what the given-up connection still holds is appended when we are back on another one."""
    pair = replace(pair, target=forgetful)
    pair.create(topic_name, 2)
    with (
        RunningLink(pair.config(topic_name, timeout_ms=1000)) as link,
        Traffic(pair.source, topic_name, (0, 1), records_per_s=20_000, age_ms=TWO_DAYS_MS) as traffic,
    ):
        for _ in range(4):
            wait_for_progress(link, topic_name)
            if fault == "black hole":
                pair.target.proxies[0].blackhole(True)
            else:
                pair.target.pause()
            wait_for_pause(link, topic_name)
            if fault == "black hole":
                pair.target.proxies[0].blackhole(False)
            else:
                pair.target.resume()
        wait_for_progress(link, topic_name)
        link.wait_until_copied(traffic.finish())
    assert_same_log(pair, topic_name, records_min=2000)
