"""The oracle of copies that are no images: what a consumer sees on the source it sees on the target, in that order.

Kafka's consumers are asked, who know of aborted transactions and of what compaction left. Where the record stands that
is the n-th on both sides says what the offset map has to answer for every offset of both logs, records or none.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

from confluent_kafka import Consumer, TopicPartition

from replicator.config.models import Cluster
from replicator.offsets import LinkOffsets, Outcome
from replicator.state.offset_map import NOT_YET, OffsetMap
from replicator.state.reader import StateReader
from replicator.state.records import LaneKey
from tests.broker.admin import end_offset
from tests.broker.copies import Pair
from tests.broker.map_truth import answers
from tests.harness import witness
from tests.harness.java import JavaWitness
from tests.harness.kafka import KafkaCluster
from tests.harness.records import NewRecord, Record

TIMEOUT_S = 30
Isolation = Literal["read_committed", "read_uncommitted"]
Pairs = tuple[tuple[int, int], ...]
"""(source offset, target offset) of every record that is on both sides, in order."""


def everything(_record: Record) -> bool:
    return True


def visible_end(cluster: KafkaCluster, topic: str, partition: int = 0, isolation: Isolation = "read_committed") -> int:
    """The offset up to which such a consumer reads: the last stable offset, or the high watermark."""
    settings = {"bootstrap.servers": cluster.bootstrap, "group.id": "asks", "isolation.level": isolation}
    with closing(Consumer({**settings, "log_level": 0})) as consumer:
        return int(consumer.get_watermark_offsets(TopicPartition(topic, partition), TIMEOUT_S)[1])


def visible_ends(
    cluster: KafkaCluster, topic: str, partitions: int = 1, isolation: Isolation = "read_committed"
) -> dict[tuple[str, int], int]:
    """By (topic, partition), as `RunningLink.wait_until_copied` wants it."""
    return {(topic, part): visible_end(cluster, topic, part, isolation) for part in range(partitions)}


def content(record: Record, times: bool = True) -> tuple[object, ...]:
    """All that has to be the same on the other side."""
    return record.timestamp if times else None, record.key, record.value, record.headers


def match(source: Sequence[Record], target: Sequence[Record], times: bool = True) -> Pairs:
    """An AssertionError unless the target has the source's records, all of them, once, unchanged, in their order."""
    for number, (original, copy) in enumerate(zip_longest(source, target)):
        same = original and copy and content(original, times) == content(copy, times)
        assert same, f"record {number} of {len(source)}, of {len(target)} on the target: {original} became {copy}"
    return tuple((original.offset, copy.offset) for original, copy in zip(source, target, strict=True))


def check_map(found: OffsetMap, pairs: Pairs, ends: tuple[int, int]) -> None:
    """An AssertionError unless the map is right about every offset of both logs, up to these ends of theirs."""
    assert (found.position, found.target_next) == ends
    forth, back = answers(pairs, 0, ends), answers([pair[::-1] for pair in pairs], 0, ends[::-1])
    assert {offset: found.translate(offset) for offset in forth} == forth
    assert {offset: found.reverse(offset) for offset in back} == back
    exact = dict(pairs)
    assert {offset: found.exact(offset) for offset in forth} == {offset: exact.get(offset) for offset in forth}


def check_public(cluster: KafkaCluster, link: str, lane: LaneKey, pairs: Pairs, ends: tuple[int, int]) -> None:
    """The same, as programs ask that keep their own offsets."""
    forth = answers(pairs, 0, ends)
    with LinkOffsets.connect({"bootstrap.servers": cluster.bootstrap}, link) as offsets:
        due = [NOT_YET if answer is None else answer for answer in forth.values()]
        assert offsets.translate_many(lane.topic, lane.partition, list(forth)).tolist() == due
        first, last = (offsets.translate(lane.topic, lane.partition, offset) for offset in (0, ends[0] + 1))
        assert (first.outcome, first.offset, last.outcome) == (Outcome.TRANSLATED, forth[0], Outcome.NOT_YET)
        back = answers([pair[::-1] for pair in pairs], 0, ends[::-1])
        due = [NOT_YET if answer is None else answer for answer in back.values()]
        assert offsets.reverse_many(first.topic, lane.partition, list(back)).tolist() == due


def state_reader(cluster: KafkaCluster, link: str) -> StateReader:
    """Of what the link wrote down on its target cluster; nothing is read yet."""
    host, port = cluster.bootstrap.rsplit(":", 1)
    servers = {"bootstrap.servers": cluster.bootstrap}
    return StateReader(Cluster("target", ((host, int(port)),), servers), link)


def link_map(cluster: KafkaCluster, link: str, lane: LaneKey) -> OffsetMap:
    """As the link's state has it."""
    with closing(state_reader(cluster, link)) as reader:
        reader.catch_up()
        assert reader.damaged == 0
        return reader.offset_map(lane)


@dataclass(frozen=True)
class Copied:
    """A topic, and what a link made of it; nobody writes to either any more.

    `keep` is what the link is to copy of what a consumer sees, `times` whether the copy's are to be the same.
    """

    pair: Pair
    topic: str
    target_topic: str = ""
    isolation: Isolation = "read_committed"
    keep: Callable[[Record], bool] = everything
    times: bool = True
    partitions: int = 1

    @property
    def copy(self) -> str:
        return self.target_topic or self.topic

    def check_records(self, java: JavaWitness | None = None, records_min: int = 1) -> dict[int, Pairs]:
        """By partition. An AssertionError where a consumer on the target sees anything else, at any isolation."""
        source = self.original(java)
        found = self.match(source, witness.dump(self.pair.target.bootstrap, self.copy, "read_committed"))
        assert self.match(source, witness.dump(self.pair.target.bootstrap, self.copy, "read_uncommitted")) == found
        if java:
            assert self.match(source, java.dump(self.pair.target.bootstrap, self.copy, "read_committed")) == found
        assert sum(map(len, found.values())) >= records_min
        for part, pairs in found.items():
            # Brokers take uncompressed batches with wrong offsets in them: consumers would see those.
            begin = pairs[0][1] if pairs else 0
            copies = [target for _, target in pairs]
            assert copies == list(range(begin, begin + len(pairs))), f"{self.copy}-{part} has holes"
        return found

    def original(self, java: JavaWitness | None = None) -> dict[int, list[Record]]:
        """What consumers of the source see; with `java` two kinds of them, who agree."""
        seen = witness.dump(self.pair.source.bootstrap, self.topic, self.isolation)
        if java:
            assert java.dump(self.pair.source.bootstrap, self.topic, self.isolation) == seen
        return seen

    def match(self, source: dict[int, list[Record]], target: dict[int, list[Record]]) -> dict[int, Pairs]:
        kept = {part: list(filter(self.keep, records)) for part, records in source.items()}
        assert target.keys() == kept.keys()
        return {part: match(records, target[part], self.times) for part, records in kept.items()}

    def ends(self, partition: int = 0) -> tuple[int, int]:
        source = visible_end(self.pair.source, self.topic, partition, self.isolation)
        return source, end_offset(self.pair.target, self.copy, partition)

    def check(self, link: str, java: JavaWitness | None = None, records_min: int = 1) -> dict[int, Pairs]:
        """The records, and the link's map of every offset: of its state, and as it answers others."""
        found = self.check_records(java, records_min)
        for part, pairs in found.items():
            lane, ends = LaneKey(self.topic, part), self.ends(part)
            check_map(link_map(self.pair.target, link, lane), pairs, ends)
            check_public(self.pair.target, link, lane, pairs, ends)
        return found


def produce_copies(cluster: KafkaCluster, topic: str, partition: int, records: Sequence[Record]) -> None:
    """Writes what a consumer has seen."""
    news = [NewRecord(partition, r.key, r.value, r.headers, r.timestamp) for r in records]
    witness.produce(cluster.bootstrap, topic, news, {"linger.ms": 5})


def copied_by_hand(
    pair: Pair, topic: str, target_topic: str, isolation: Isolation = "read_committed"
) -> dict[int, OffsetMap]:
    """What a link would do, the slow way: consume, produce, and keep a map, by partition. The target is empty."""
    maps = {}
    for part, records in witness.dump(pair.source.bootstrap, topic, isolation).items():
        produce_copies(pair.target, target_topic, part, records)
        rows = [(record.offset, number, 1) for number, record in enumerate(records)]
        ends = visible_end(pair.source, topic, part, isolation), end_offset(pair.target, target_topic, part)
        maps[part] = OffsetMap(rows, *ends)
    return maps
