"""A link's dead-letter topic as its operators see it: made, read, and emptied.

Letters stay until somebody purges them: the topic that we make keeps them for ever, and takes records of any size and
timestamp that a broker can be sent. So what a letter holds, its record's own timestamp included, is the record.
"""

import re
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient

from replicator.config.models import Cluster, Link
from replicator.control.topic_log import TopicLog, spelled
from replicator.control.topics import ADMIN_TIMEOUT_S, Topics
from replicator.data.dead_letters import LETTER_BYTES_MAX, Headers, Placed, read_letter
from replicator.data.replays import ReplayKey, ReplayRecord, replayed_topic
from replicator.errors import ClusterError, ProtocolError, Where
from replicator.state.records import decode

INVALID_CONFIG = 40

DEAD_LETTER_SETTINGS = {
    "cleanup.policy": "delete",
    "retention.ms": "-1",
    "retention.bytes": "-1",
    "max.message.bytes": str(LETTER_BYTES_MAX),
    "message.timestamp.type": "CreateTime",
}
# Kafka 4 refuses records of more than an hour from now, and that may be why a record became a dead letter.
_ANY_TIME = {"message.timestamp.after.max.ms": str(2**63 - 1)}


def dead_letter_cluster(link: Link, clusters: Mapping[str, Cluster]) -> Cluster | None:
    """Where the link's dead letters go; None when it has none."""
    aliases = {"target": link.target, "source": link.source}
    alias = aliases.get(link.dead_letters.on)
    return clusters[alias] if alias else None


async def ensure_dead_letter_topic(link: Link, clusters: Mapping[str, Cluster]) -> None:
    """Sees to it that the link's dead-letter topic is there, if it has one.

    Raises ConfigError when it is there and compacted, ClusterError.
    """
    cluster = dead_letter_cluster(link, clusters)
    if cluster is None:
        return
    options = link.dead_letters
    topics = Topics(cluster, cluster, options.replication_factor)
    try:
        await topics.ensure(link.dead_letter_topic, options.partitions, DEAD_LETTER_SETTINGS | _ANY_TIME)
    except ClusterError as error:
        if error.code != INVALID_CONFIG:
            raise
        # Before Kafka 3.6 there is no such limit.
        await topics.ensure(link.dead_letter_topic, options.partitions, DEAD_LETTER_SETTINGS)


@dataclass(frozen=True)
class Wanted:
    """Which dead letters. Everything that is given must hold; patterns match whole names."""

    topics: tuple[str, ...] = ()  # of the source
    partition: int | None = None
    offset: int | None = None
    reasons: tuple[str, ...] = ()
    letters: tuple[tuple[int, int], ...] = ()  # (partition, offset) in the dead-letter topic

    def includes(self, placed: Placed) -> bool:
        letter = placed.letter
        return (
            _matches(self.topics, letter.topic)
            and self.partition in (None, letter.partition)
            and self.offset in (None, letter.offset)
            and _matches(self.reasons, letter.reason)
            and (not self.letters or (placed.at.partition, placed.at.offset) in self.letters)
        )


ALL = Wanted()


def _matches(patterns: tuple[str, ...], text: str) -> bool:
    return not patterns or any(re.fullmatch(pattern, text, re.DOTALL) for pattern in patterns)


class DeadLetterTopic:
    """The letters of one link. Blocks while it asks; raises ClusterError, NetworkError, and ConfigError for clusters'
    properties that cannot be meant.

    `strangers`: records of the topic that are not this link's letters, as far as it was read.
    """

    def __init__(self, cluster: Cluster, topic: str, link: str) -> None:
        self.topic = topic
        self.strangers = 0
        self._cluster = cluster
        self._link = link

    def read(self, wanted: Wanted = ALL) -> Generator[Placed, None, None]:
        """In the order of each partition of the topic; nothing when there is no such topic."""
        self.strangers = 0
        with TopicLog(self._cluster, f"replicator.{self._link}.dlq") as log:
            for message in log.read(self.topic):
                placed = self._placed(message)
                if placed is None:
                    self.strangers += 1
                elif wanted.includes(placed):
                    yield placed

    def _placed(self, message: Message) -> Placed | None:
        at = Where(self._cluster.alias, self.topic, message.partition(), message.offset())
        try:
            placed = read_letter(at, _bytes(message.key()), _bytes(message.value()), _headers(message))
        except ProtocolError:
            return None
        return placed if placed.link == self._link else None

    def ends(self) -> dict[int, int]:
        """Of each partition, the offset that comes next."""
        with TopicLog(self._cluster, f"replicator.{self._link}.dlq") as log:
            return {partition: log.bounds(self.topic, partition)[1] for partition in log.partitions(self.topic)}

    def delete(self, before: Mapping[int, int]) -> None:
        """Deletes what is before an offset of a partition, by partition."""
        admin = AdminClient(self._cluster.client_properties())
        parts = [TopicPartition(self.topic, partition, offset) for partition, offset in before.items()]
        for part, done in admin.delete_records(parts, request_timeout=ADMIN_TIMEOUT_S).items():
            try:
                done.result()
            except KafkaException as error:
                raise spelled(error.args[0], Where(self._cluster.alias, self.topic, part.partition)) from None


def _bytes(part: object) -> bytes | None:
    return part if isinstance(part, bytes) else None


def _headers(message: Message) -> Headers:
    headers: Any = message.headers() or []
    return list(headers)


class Replays:
    """What a link has replayed, as its marks on the target say. Those that cannot be read are counted in `damaged`."""

    def __init__(self, target: Cluster, link: str) -> None:
        self.records: dict[str, ReplayKey] = {}  # by identity of the record
        self.damaged = 0
        self._target = target
        self._link = link

    def read(self) -> "Replays":
        """All marks there are now; none when nothing was ever replayed. Raises ClusterError, NetworkError."""
        marks: dict[ReplayKey, ReplayRecord] = {}
        with TopicLog(self._target, f"replicator.{self._link}.replay") as log:
            for message in log.read(replayed_topic(self._link)):
                self._take(marks, _bytes(message.key()), _bytes(message.value()))
        self.records = {record.record: key for key, record in marks.items()}
        return self

    def _take(self, marks: dict[ReplayKey, ReplayRecord], raw_key: bytes | None, value: bytes | None) -> None:
        try:
            key = decode(raw_key or b"", ReplayKey)
            if value is None:
                marks.pop(key, None)  # somebody took it back
            else:
                marks[key] = decode(value, ReplayRecord)
        except ProtocolError:
            self.damaged += 1

    def has(self, placed: Placed) -> bool:
        """Whether this letter's record was replayed, from this letter or from another of the same record."""
        return placed.identity in self.records


@dataclass
class Tally:
    """Letters of one source partition that have one reason."""

    topic: str
    partition: int
    reason: str
    letters: int = 0
    replayed: int = 0
    first_ms: int = 0  # when the first was diverted, and the last
    last_ms: int = 0


def tally(letters: Iterator[Placed], replays: Replays) -> list[Tally]:
    """In the order of topics, partitions, reasons."""
    rows: dict[tuple[str, int, str], Tally] = {}
    for placed in letters:
        place = (placed.letter.topic, placed.letter.partition, placed.letter.reason)
        row = rows.setdefault(place, Tally(*place, first_ms=placed.at_ms))
        row.letters += 1
        row.replayed += replays.has(placed)
        row.first_ms = min(row.first_ms, placed.at_ms)
        row.last_ms = max(row.last_ms, placed.at_ms)
    return [rows[place] for place in sorted(rows)]


def count_replayed(letters: Iterator[Placed], replays: Replays, before: Mapping[int, int]) -> Counter[bool]:
    """How many letters stand before these offsets, by whether they were replayed."""
    concerned = (each for each in letters if (each.at.offset or 0) < before.get(each.at.partition or 0, 0))
    return Counter(replays.has(each) for each in concerned)
