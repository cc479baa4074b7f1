"""What a link has written down on its target cluster, read by anybody: positions, states, and the offset maps.

A reader takes no part in the link: it joins no group, commits nothing, and needs to be allowed no more than to read
the two topics. `catch_up` reads on to their ends as they stand at that moment; between two calls nothing runs.
"""

import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import msgspec
from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, Consumer, KafkaError, KafkaException, TopicPartition
from msgspec import Struct

from replicator.config.models import Cluster
from replicator.errors import ClusterError, ConfigError, NetworkError, ProtocolError, ReplicatorError, Where
from replicator.state.chunks import open_chunk
from replicator.state.offset_map import OffsetMap
from replicator.state.records import (
    Chunk,
    ChunkKey,
    GroupKey,
    GroupRecord,
    LaneKey,
    LaneRecord,
    LinkKey,
    LinkRecord,
    decode,
    offsets_topic,
    state_topic,
)

CACHED_SEGMENTS_MAX = 1 << 21  # of all maps that are kept opened; some 100 bytes each
POLL_S = 0.1
RECORDS_A_POLL = 10_000
UNKNOWN_TOPIC = 3
GROUP_UNAUTHORIZED = 30

# Which key it is can be told by its fields. Other kinds are other programs' business, perhaps newer ones'.
_KEYS: dict[frozenset[str], type[Struct]] = {
    frozenset(kind.__struct_fields__): kind for kind in (LinkKey, LaneKey, GroupKey, ChunkKey)
}
_OBJECT = msgspec.json.Decoder(dict[str, Any])

Partition = tuple[str, int]


class StateReader:
    """One link's records on its target cluster. Threads may ask it to catch up one after the other; looking at what it
    has read is for the thread that waits for that.

    `record` is what its lanes share (`first_record`: the first that is still there), `lanes` their checkpoints by
    source partition, `groups` the consumer groups' records. What cannot be understood is passed over, but counted in
    `damaged`, and `damage` is the first such error: what depends on it stays as it was.
    """

    def __init__(self, cluster: Cluster, link: str) -> None:
        """Connects to nothing yet."""
        self.record: LinkRecord | None = None
        self.first_record: LinkRecord | None = None
        self.lanes: dict[LaneKey, LaneRecord] = {}
        self.groups: dict[str, GroupRecord] = {}  # by the group's name on the source
        self.damaged = 0
        self.damage: ProtocolError | None = None
        self._cluster = cluster
        self._link = link
        self._reading = threading.Lock()
        self._consumer: Consumer | None = None
        self._next: dict[Partition, int] = {}  # of each partition of a topic that was found: where to read on
        # By lane, then topic id, then (generation, number): in this order they were written. None: one in pieces.
        self._chunks: dict[LaneKey, dict[str, dict[tuple[int, int], Chunk | None]]] = {}
        self._maps: dict[LaneKey, OffsetMap] = {}  # those used last, the latest at the end
        self._cached_segments = 0

    # ---- reading ----

    def catch_up(self, timeout_s: float = 30) -> None:
        """Reads on to the end of both topics, as it is now; blocks meanwhile.

        Raises ConfigError when the link has no state there, ClusterError, NetworkError.
        """
        with self._reading:
            self._catch_up(time.monotonic() + timeout_s)

    def _catch_up(self, deadline: float) -> None:
        # In this order: what a LaneRecord relies on is in the offsets topic already.
        for topic in (state_topic(self._link), offsets_topic(self._link)):
            try:
                self._read(topic, deadline)
            except KafkaException as failure:
                raise self._spell(failure.args[0]) from None

    def close(self) -> None:
        with self._reading:
            if self._consumer is not None:
                self._consumer.close()
                self._consumer = None

    def _read(self, topic: str, deadline: float) -> None:
        consumer = self._open()
        ends = self._ends(consumer, topic, deadline)
        ahead = {part: end for part, end in ends.items() if self._next[part] < end}
        if not ahead:
            return
        consumer.assign([TopicPartition(*part, self._next[part]) for part in ahead])
        try:
            self._read_to(consumer, ahead, deadline)
        finally:
            consumer.unassign()

    def _open(self) -> Consumer:
        if self._consumer is None:
            self._consumer = Consumer(
                self._cluster.client_properties()
                | {
                    "group.id": f"{state_topic(self._link)}.reader",  # librdkafka wants one; it is never joined
                    "enable.auto.commit": False,
                    "enable.auto.offset.store": False,
                    "enable.partition.eof": True,  # where the end is a hole that compaction has left
                    "auto.offset.reset": "error",
                    "isolation.level": "read_uncommitted",
                    "fetch.wait.max.ms": 50,
                }
            )
        return self._consumer

    def _ends(self, consumer: Consumer, topic: str, deadline: float) -> dict[Partition, int]:
        """Where the topic's partitions end now."""
        if not any(name == topic for name, _ in self._next):
            self._next |= dict.fromkeys(self._find(consumer, topic, deadline), OFFSET_BEGINNING)
        parts = [TopicPartition(*part, OFFSET_END) for part in self._next if part[0] == topic]
        ends = {}
        for found in consumer.offsets_for_times(parts, _left(deadline)):
            part = (found.topic, found.partition)
            if found.error:
                raise self._spell(found.error)
            if found.offset < self._next[part]:
                raise self._cut_back(Where(self._cluster.alias, *part, self._next[part]))
            ends[part] = found.offset
        return {part: end for part, end in ends.items() if end > 0}

    def _find(self, consumer: Consumer, topic: str, deadline: float) -> list[Partition]:
        found = consumer.list_topics(topic, _left(deadline)).topics[topic]
        if found.error and found.error.code() == UNKNOWN_TOPIC:
            what = f"link `{self._link}` has no state on `{self._cluster.alias}`: there is no topic {topic}"
            raise ConfigError(what, hint="it has not run yet, or its name is another")
        if found.error:
            raise self._spell(found.error)
        return [(topic, partition) for partition in found.partitions]

    def _read_to(self, consumer: Consumer, ends: dict[Partition, int], deadline: float) -> None:
        unfinished, trouble = set(ends), "nothing came"
        while unfinished:
            if time.monotonic() > deadline:
                what = f"{len(unfinished)} partitions of the link's state could not be read to their ends in time"
                raise NetworkError(f"{what}: {trouble}", where=Where(self._cluster.alias))
            for message in consumer.consume(RECORDS_A_POLL, min(POLL_S, _left(deadline))):
                part, offset = (str(message.topic()), int(message.partition() or 0)), message.offset() or 0
                error = message.error()
                if error is None:
                    self._next[part] = offset + 1
                    self.take(message.key(), message.value())
                elif error.code() == KafkaError._PARTITION_EOF:
                    self._next[part] = offset
                elif error.code() == KafkaError._AUTO_OFFSET_RESET:
                    raise self._cut_back(Where(self._cluster.alias, *part, self._next.get(part)))
                elif error.code() > 0 and error.code() != GROUP_UNAUTHORIZED:  # what group it would be is not asked
                    raise self._spell(error)
                else:
                    trouble = error.str()
                unfinished -= {part} if self._next.get(part, -1) >= ends.get(part, 0) else set()

    def _spell(self, error: KafkaError) -> ReplicatorError:
        where = Where(self._cluster.alias)
        if error.code() == KafkaError._INVALID_ARG:
            return ConfigError(f"cluster `{self._cluster.alias}`: {error.str()}")
        if error.code() > 0:
            return ClusterError(error.code(), error.str(), where=where)
        return NetworkError(f"the state of link `{self._link}` cannot be read: {error.str()}", where=where)

    def _cut_back(self, where: Where) -> ClusterError:
        return ClusterError(1, "the link's state was deleted since it was read", where=where, hint="read it anew")

    # ---- what the records say ----

    def take(self, key: bytes | None, value: bytes | None) -> None:
        """One record of either topic, in their order."""
        try:
            match _decode_key(key):
                case LaneKey() as lane:
                    self._take_lane(lane, value)
                case ChunkKey() as chunk:
                    self._take_chunk(chunk, value)
                case GroupKey() as group:
                    self._take_group(group, value)
                case LinkKey():
                    self.record = decode(value, LinkRecord) if value else None
                    self.first_record = self.first_record or self.record
        except ProtocolError as error:
            self.damaged += 1
            self.damage = self.damage or error.at(Where(self._cluster.alias))

    def _take_lane(self, lane: LaneKey, value: bytes | None) -> None:
        if not value:
            self.lanes.pop(lane, None)
        else:
            try:
                record = decode(value, LaneRecord)
            except ProtocolError as error:
                raise error.at(Where(None, lane.topic, lane.partition)) from None
            known = self.lanes.get(lane)
            if known and known.generation > record.generation:
                return
            self.lanes[lane] = record
        self._close_map(lane)

    def _take_group(self, key: GroupKey, value: bytes | None) -> None:
        if value:
            self.groups[key.group] = decode(value, GroupRecord)
        else:
            self.groups.pop(key.group, None)

    def _take_chunk(self, key: ChunkKey, value: bytes | None) -> None:
        lane = LaneKey(key.topic, key.partition)
        chunks = self._chunks.setdefault(lane, {}).setdefault(key.topic_id, {})
        number = (key.generation, key.chunk)
        self._close_map(lane)
        chunks.pop(number, None)
        if value:
            chunks[number] = None
            try:
                chunks[number] = decode(value, Chunk)
            except ProtocolError as error:
                raise error.at(Where(None, key.topic, key.partition)) from None

    def offset_map(self, lane: LaneKey) -> OffsetMap:
        """The lane's map, up to its last checkpoint.

        Raises KeyError for a lane that `lanes` does not have, ProtocolError when a part of it is damaged or missing:
        a map with a hole would send a consumer past records that were copied.
        """
        offsets = self._close_map(lane)
        if offsets is None:
            offsets = self._open_map(lane, self.lanes[lane])
        while self._maps and self._cached_segments + len(offsets) > CACHED_SEGMENTS_MAX:
            self._close_map(next(iter(self._maps)))
        self._maps[lane] = offsets
        self._cached_segments += len(offsets)
        return offsets

    def has_chunks(self, lane: LaneKey) -> bool:
        """False: all that there is of the lane's map stands in its record."""
        return any(self._chunks.get(lane, {}).values())

    def obsolete_chunks(self, lane: LaneKey, target_log_start: int) -> list[ChunkKey]:
        """Which of the lane's chunks the offset map does without: those about another incarnation of the source topic,
        those whose records the target has deleted, and those that a later owner's chunk replaces as a whole.

        Raises KeyError for a lane that `lanes` does not have.
        """
        by_topic_id, topic_id = self._chunks.get(lane, {}), self.lanes[lane].topic_id
        numbers = {(other, number) for other, chunks in by_topic_id.items() if other != topic_id for number in chunks}
        numbers |= {(topic_id, number) for number in _obsolete(by_topic_id.get(topic_id, {}), target_log_start)}
        return [ChunkKey(lane.topic, lane.partition, other, *number) for other, number in sorted(numbers)]

    def _close_map(self, lane: LaneKey) -> OffsetMap | None:
        offsets = self._maps.pop(lane, None)
        self._cached_segments -= len(offsets) if offsets else 0
        return offsets

    def _open_map(self, lane: LaneKey, record: LaneRecord) -> OffsetMap:
        chunks = self._chunks.get(lane, {}).get(record.topic_id, {})
        try:
            _check_numbers(sorted(chunks))
            parts: list[Any] = [_opened(number, chunks[number]) for number in sorted(chunks)]
            return OffsetMap.merge([*parts, record.segments], record.position, record.target_next)
        except ValueError as error:
            raise ProtocolError(f"bad offset map: {error}", where=self._where(lane)) from None
        except ProtocolError as error:
            raise error.at(self._where(lane)) from None

    def _where(self, lane: LaneKey) -> Where:
        return Where(self._cluster.alias, lane.topic, lane.partition)


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.001)


def _decode_key(key: bytes | None) -> Struct | None:
    """None for a key of another kind. Raises ProtocolError for what is none."""
    try:
        fields = _OBJECT.decode(key or b"")
        kind = _KEYS.get(frozenset(fields))
        return msgspec.convert(fields, kind) if kind else None
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise ProtocolError(f"not a key of a link's state: {error}") from None


def _opened(number: tuple[int, int], chunk: Chunk | None) -> Any:
    if chunk is None or chunk.generation != number[0]:
        raise ProtocolError(f"chunk {number[1]} of generation {number[0]} of the offset map is damaged")
    return open_chunk(chunk)


def _check_numbers(numbers: list[tuple[int, int]]) -> None:
    """Each generation counts its chunks from 0, and they are dropped in order, the oldest first.

    Raises ProtocolError when one is missing.
    """
    for (was, last), (generation, number) in pairwise(numbers):
        due = last + 1 if generation == was else 0
        if number != due:
            what = f"chunk {due} of generation {generation} of the offset map is missing"
            raise ProtocolError(what, hint="read on; if it stays away, the offsets topic has lost it")


def _obsolete(chunks: dict[tuple[int, int], Chunk | None], target_log_start: int) -> Iterator[tuple[int, int]]:
    """Numbers of chunks below the target's log start, in front, and of those that a later generation replaces.

    A damaged one stays, and what stands before it: that it is missing must not be forgotten.
    """
    numbers = sorted(chunks)
    for number in numbers:
        chunk = chunks[number]
        if chunk is None or chunk.target_end > target_log_start:
            break
        yield number
    later: Chunk | None = None
    for number in reversed(numbers):
        chunk = chunks[number]
        if chunk is None:
            break
        if (
            later
            and later.generation > chunk.generation
            and (later.source_start <= chunk.source_start and later.target_start <= chunk.target_start)
        ):
            yield number
        else:
            later = chunk
