"""What must not pass stops its own lane, in front of it, with a reason; all other lanes go on.

One link a pair of clusters has all the cases in it, each a topic whose partition 0 holds something that must stop a
lane, and whose partition 1 does not. Its policy is to stop at records that the target refuses; what becomes of them
where they may be left out is in test_record_faults.py.
"""

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from replicator.data.states import LaneState
from tests.broker.admin import create_topic, end_offset, start_offset
from tests.broker.batches import Batch, Entry, make_batch, now_ms, numbered
from tests.broker.compacted import make_gaps
from tests.broker.copies import Pair, same_batches, stored_batches
from tests.broker.raw import RawClient
from tests.harness import witness
from tests.harness.kafka import KafkaCluster
from tests.harness.link import RunningLink, link_config
from tests.harness.waiting import eventually
from tests.oracle.batch import CONTROL

pytestmark = pytest.mark.broker

PAIRS = [("kafka3", "kafka4"), ("kafka4", "kafka3")]
DAY_MS = 86_400_000
ANY_TIME = {"message.timestamp.after.max.ms": str(2**63 - 1)}
_tags = itertools.count(1)

Write = Callable[[KafkaCluster, str], None]


def produce(cluster: KafkaCluster, topic: str, *batches: list[Entry], partition: int = 0) -> None:
    with RawClient(cluster) as client:
        for entries in batches:
            assert client.produce(topic, make_batch(entries).encode(), partition).error == 0


def ordinary(number: int) -> list[Entry]:
    """The batch of ten records that belongs at offset 10 * number."""
    return numbered(10, first=10 * number)


def around(*bad: list[Entry]) -> Write:
    """Writes two ordinary batches, the bad ones at offset 20, and more ordinary ones."""
    return lambda cluster, topic: produce(cluster, topic, ordinary(0), ordinary(1), *bad, *map(ordinary, range(3, 20)))


def write_large_and_many(cluster: KafkaCluster, topic: str) -> None:
    """A partition that we never wrote to would take whatever is pipelined behind a refused first batch."""
    produce(cluster, topic, [Entry(bytes(5_000))] * 10, *map(ordinary, range(1, 100)))


@dataclass(frozen=True)
class Case:
    """Why the lane stops, at which offset, and how many batches it copies before that."""

    reason: str
    write: Write
    offset: int = 20
    batches_before: int = 2
    source_config: dict[str, str] = field(default_factory=dict)
    target_config: dict[str, str] | None = None  # of a topic that is there before the link; None: the link makes it


CASES = {
    "too-large": Case("message_too_large", around([Entry(bytes(5_000))]), target_config={"max.message.bytes": "2000"}),
    "too-large-first": Case(
        "message_too_large", write_large_and_many, 0, 0, target_config={"max.message.bytes": "2000"}
    ),
    "far-future": Case(
        "invalid_timestamp",
        around([Entry(b"ahead", timestamp=now_ms() + DAY_MS)]),
        source_config=ANY_TIME,
        target_config={"message.timestamp.after.max.ms": "3600000"},
    ),
    "null-key": Case(
        "invalid_record|null_key", around([Entry(b"no key", key=None)]), target_config={"cleanup.policy": "compact"}
    ),
}
STOPPING = {"policies": [{"record_faults": "stop"}], "batches": [{"merge": "off"}]}


@dataclass
class Scene:
    """A running link, and what it runs between."""

    pair: Pair
    link: RunningLink
    tag: str

    def topic(self, case: str) -> str:
        return f"{self.tag}-{case}"


def prepare(pair: Pair, tag: str) -> None:
    for name, case in CASES.items():
        topic = f"{tag}-{name}"
        create_topic(pair.source, topic, 2, case.source_config)
        if case.target_config is not None:
            create_topic(pair.target, topic, 2, case.target_config)
        case.write(pair.source, topic)
        produce(pair.source, topic, ordinary(0), partition=1)


@pytest.fixture(scope="module", params=PAIRS, ids=[" to ".join(pair) for pair in PAIRS])
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    pair = Pair(*map(request.getfixturevalue, request.param))
    tag = f"stops-{next(_tags)}"
    prepare(pair, tag)
    config = link_config(pair.source.bootstrap, pair.target.bootstrap, f"{tag}-.*", link=STOPPING)
    with RunningLink(config) as link:
        yield Scene(pair, link, tag)


def wait_for_reason(link: RunningLink, topic: str, words: str) -> None:
    """A state is read from shared memory; the reason for it comes as a message, and may come a little later."""
    eventually(lambda: re.search(words, link.reason(topic)), f"{topic} to say: {words}")


@pytest.mark.parametrize("name", CASES)
def test_the_lane_stops_in_front_of_it(scene: Scene, name: str) -> None:
    case, topic = CASES[name], scene.topic(name)
    scene.link.wait_for_state(LaneState.FAILED, topic)
    wait_for_reason(scene.link, topic, rf"source offset {case.offset}\b")
    assert re.search(case.reason, scene.link.reason(topic))
    before = stored_batches(scene.pair.source, topic)[: case.batches_before]
    assert same_batches(before, stored_batches(scene.pair.target, topic)) == case.batches_before
    copied_to = before[-1].next_offset if before else start_offset(scene.pair.source, topic)
    assert scene.link.checkpoint(topic).position == copied_to


@pytest.mark.parametrize("name", CASES)
def test_its_neighbour_goes_on(scene: Scene, name: str) -> None:
    topic = scene.topic(name)
    scene.link.wait_for_state(LaneState.FAILED, topic)
    target_end = end_offset(scene.pair.target, topic)
    produce(scene.pair.source, topic, ordinary(1), partition=1)
    produce(scene.pair.source, topic, ordinary(20))
    scene.link.wait_until_copied({(topic, 1): 20})
    scene.link.wait_for_state(LaneState.TAILING, topic, 1)
    originals, copies = (stored_batches(side, topic, 1) for side in (scene.pair.source, scene.pair.target))
    assert same_batches(originals, copies) == 2
    assert end_offset(scene.pair.target, topic) == target_end, "the stopped lane stands still"
    assert scene.link.state(topic) is LaneState.FAILED
    assert len(scene.link.worker_pids()) == 1


def test_a_target_with_foreign_records_is_left_alone(scene: Scene, topic_name: str) -> None:
    create_topic(scene.pair.source, topic_name)
    create_topic(scene.pair.target, topic_name)
    produce(scene.pair.source, topic_name, ordinary(0))
    produce(scene.pair.target, topic_name, numbered(3))
    bootstraps = scene.pair.source.bootstrap, scene.pair.target.bootstrap
    with RunningLink(link_config(*bootstraps, topic_name)) as link:
        link.wait_for_state(LaneState.FAILED, topic_name)
        wait_for_reason(link, topic_name, "the target partition is not empty")
    assert len(witness.dump(scene.pair.target.bootstrap, topic_name)[0]) == 3


def test_what_leaves_no_trace_is_passed_over(scene: Scene, topic_name: str) -> None:
    """Markers of transactions without records, and batches that compaction took away whole or left empty."""
    marked, cleaned = topic_name + "-marked", topic_name + "-cleaned"
    create_topic(scene.pair.source, marked)
    with RawClient(scene.pair.source) as client:
        producer = client.init_producer()
        for number in range(5):
            client.mark_commit(marked, producer)
            assert client.produce(marked, make_batch(ordinary(number)).encode()).error == 0
        client.mark_commit(marked, producer)
    make_gaps(scene.pair.source, cleaned)
    ends = {(topic, 0): end_offset(scene.pair.source, topic) for topic in (marked, cleaned)}
    bootstraps = scene.pair.source.bootstrap, scene.pair.target.bootstrap
    with RunningLink(link_config(*bootstraps, topic_name + ".*", link=STOPPING), stop="now") as link:
        link.wait_until_copied(ends)
        assert [link.counter("skipped_batches", topic) for topic in (marked, cleaned)] == [6, 1]
    assert end_offset(scene.pair.target, marked) == 50
    for topic in (marked, cleaned):
        originals, copies = (contents(side, topic) for side in (scene.pair.source, scene.pair.target))
        assert copies == originals
        assert len(copies) >= 4


def contents(cluster: KafkaCluster, topic: str) -> list[bytes]:
    """The records sections of the batches that hold data."""
    return [batch.records for batch in stored_batches(cluster, topic) if batch.count and not is_control(batch)]


def is_control(batch: Batch) -> bool:
    return bool(batch.attributes & CONTROL)
