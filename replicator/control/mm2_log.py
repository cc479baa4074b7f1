"""One of MirrorMaker 2's internal topics as we keep it up: one compacted partition, read back before it is added to.

What was written is what the topic says, not what we remember: so a link that starts anew, or a leader that another has
replaced meanwhile, goes on from what is really there. Everything here blocks, and belongs into a thread.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from replicator.config.fields import MIB
from replicator.config.models import Cluster
from replicator.errors import Action, ClusterError, ConfigError, ReplicatorError, Unreachable, Where, kafka_error

TIMEOUT_S = 10.0
PAUSE_S = 0.05
WRITE_MAX = 10_000  # records at a time; a producer queues ten times as many
TOPIC_ALREADY_EXISTS = 36
REPLICAS = 3  # of MirrorMaker 2's internal topics, where nothing else is said

# Compaction leaves the newest segment alone, and RemoteClusterUtils reads the whole topic within a time limit: a
# segment of the default gigabyte would hold millions of old checkpoints.
SETTINGS = {"cleanup.policy": "compact", "segment.bytes": str(8 * MIB)}

REFUSED = "lanes go on; it needs CREATE, DESCRIBE, READ and WRITE there, or to be switched off under mm2_topics"
LATER = "lanes go on, and the next round tries again"

Written = dict[bytes, bytes]  # by key


class Mm2Client:
    """Handles on a cluster, each made when it is first needed. After an error it is closed, and a new one made."""

    def __init__(self, cluster: Cluster) -> None:
        self.alias = cluster.alias
        self._properties = cluster.client_properties()
        self._reader: Consumer | None = None
        self._writer: Producer | None = None

    @property
    def reader(self) -> Consumer:
        """Assigned by hand: it joins no group. To ask it for a topic does not make the topic, unlike a producer."""
        if self._reader is None:
            options: dict[str, Any] = {"group.id": "replicator", "enable.auto.commit": False}
            options |= {"enable.partition.eof": True, "fetch.wait.max.ms": 50}
            # MirrorMaker 2's own readers read this way, so a transaction's fate is none of our business either.
            options |= {"isolation.level": "read_uncommitted", "auto.offset.reset": "error"}
            self._reader = Consumer(self._properties | options)
        return self._reader

    @property
    def writer(self) -> Producer:
        if self._writer is None:
            timeout_ms = int(TIMEOUT_S * 1000)
            options = {"acks": "all", "enable.idempotence": True, "message.timeout.ms": timeout_ms}
            self._writer = Producer(self._properties | options)
        return self._writer

    def close(self) -> None:
        if self._writer is not None:
            self._writer.purge()
            self._writer = None
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def exists(self, topic: str) -> bool:
        """Raises ReplicatorError, also for a topic that we may not see."""
        with spelled(Where(self.alias, topic)):
            found = self.reader.list_topics(topic, timeout=TIMEOUT_S).topics[topic]
            if found.error is None or found.error.code() == KafkaError.LEADER_NOT_AVAILABLE:
                return True
            if found.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                return False
            raise KafkaException(found.error)

    def create(self, topic: str, replication_factor: Literal["source", "broker"] | int) -> None:
        """Makes a topic of one compacted partition, and waits until it answers. Raises ReplicatorError."""
        with spelled(Where(self.alias, topic)):
            admin = AdminClient(self._properties)
            factor = replication_factor if isinstance(replication_factor, int) else -1
            if replication_factor == "source":  # has no such topic to take it from
                factor = min(REPLICAS, len(admin.list_topics(timeout=TIMEOUT_S).brokers))
            new = NewTopic(topic, 1, replication_factor=factor, config=SETTINGS)
            try:
                admin.create_topics([new], request_timeout=TIMEOUT_S)[topic].result()
            except KafkaException as error:
                if error.args[0].code() != TOPIC_ALREADY_EXISTS:
                    raise
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                self.bounds(topic)
                return
            except (ClusterError, Unreachable):  # a topic is made a little before its leader knows it
                if time.monotonic() > deadline:
                    raise
                time.sleep(PAUSE_S)

    def bounds(self, topic: str) -> tuple[int, int]:
        """Offsets of the first record and of the next one. Raises ReplicatorError."""
        with spelled(Where(self.alias, topic)):
            found: tuple[int, int] = self.reader.get_watermark_offsets(TopicPartition(topic, 0), timeout=TIMEOUT_S)
            return found


class Mm2Log:
    """A topic and what it says: `written`, the newest value of each key, as far as `read` has come."""

    def __init__(self, client: Mm2Client, topic: str, replication_factor: Literal["source", "broker"] | int) -> None:
        self.topic = topic
        self.written: Written = {}
        self._client = client
        self._replication_factor = replication_factor
        self._where = Where(client.alias, topic)
        self._is_there = False
        self._position = 0

    def open(self) -> None:
        """Makes the topic if it is not there. Raises ReplicatorError."""
        if not self._is_there and not self._client.exists(self.topic):
            self._client.create(self.topic, self._replication_factor)
        self._is_there = True

    def read(self) -> None:
        """Brings `written` up to the end that the topic has now. Raises ReplicatorError."""
        start, end = self._client.bounds(self.topic)
        if end < self._position:  # it was deleted and made anew
            self._position, self.written = 0, {}
        self._position = max(self._position, start)
        if self._position == end:
            return
        # Assigned for as long as there is something to read: between rounds nothing is fetched.
        with spelled(self._where):
            self._client.reader.assign([TopicPartition(self.topic, 0, self._position)])
            try:
                self._read_to(end)
            finally:
                self._client.reader.unassign()

    def _read_to(self, end: int) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while self._position < end:
            message = self._client.reader.poll(PAUSE_S)
            if message is not None and self._take(message):
                deadline = time.monotonic() + TIMEOUT_S
            elif time.monotonic() > deadline:
                raise Unreachable(f"nothing came for {TIMEOUT_S:g} s", where=self._where, hint=LATER)

    def _take(self, message: Message) -> bool:
        """True if it brought us further. librdkafka's own troubles pass, or end in our time limit."""
        error = message.error()
        if error is None:
            key, value = message.key(), message.value()
            if isinstance(key, bytes) and isinstance(value, bytes):
                self.written[key] = value
            elif isinstance(key, bytes):
                self.written.pop(key, None)
            self._position = (message.offset() or 0) + 1
        elif error.code() == KafkaError._PARTITION_EOF:
            # Behind the last record there may be markers of transactions.
            self._position = message.offset() or 0
        elif error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.TOPIC_AUTHORIZATION_FAILED):
            raise KafkaException(error)
        else:
            return False
        return True

    def append(self, records: Iterable[tuple[bytes, bytes]]) -> None:
        """Writes (key, value) records in order, and waits for the acknowledgement of all. Raises ReplicatorError."""
        rest = iter(records)
        while part := list(islice(rest, WRITE_MAX)):
            self._append(part)

    def _append(self, records: Sequence[tuple[bytes, bytes]]) -> None:
        refusals: list[KafkaError] = []

        def delivered(error: KafkaError | None, _message: Message) -> None:
            if error is not None:
                refusals.append(error)

        with spelled(self._where):
            for key, value in records:
                self._client.writer.produce(self.topic, value, key, partition=0, on_delivery=delivered)
            unsent = self._client.writer.flush(TIMEOUT_S + 1)  # a record gives up a second before
            if refusals:
                raise KafkaException(refusals[0])
            if unsent:
                raise Unreachable(f"{unsent} records were not acknowledged", where=self._where, hint=LATER)


@contextmanager
def spelled(where: Where) -> Iterator[None]:
    """A client's errors as ours: a broker's code is a ClusterError, what librdkafka says for itself Unreachable."""
    try:
        yield
    except (KafkaException, BufferError) as error:
        raise _spell(error, where) from None


def _spell(error: Exception, where: Where) -> ReplicatorError:
    cause = error.args[0] if error.args else None
    if not isinstance(cause, KafkaError):
        return Unreachable(str(error), where=where, hint=LATER)
    if cause.code() == KafkaError._INVALID_ARG:
        return ConfigError(f"cluster `{where.cluster}`: {cause.str()}")
    if cause.code() <= 0:
        return Unreachable(cause.str(), where=where, hint=LATER)
    refused = kafka_error(cause.code()).action is Action.STOP
    return ClusterError(cause.code(), cause.str(), where=where, hint=REFUSED if refused else LATER)
