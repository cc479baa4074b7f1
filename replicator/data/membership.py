"""A worker's seat in the link's consumer group on the target cluster. What it is given there are shards.

The group is an ordinary one, subscribed to the link's state topic: owning a partition of it is owning the shard of that
number. So Kafka itself spreads the lanes over workers and machines, and gives them to others when one dies.

A consumer of confluent-kafka does the talking, in a thread that nearly always waits: a rebalance has to be answered
inside its callback, and giving up lanes in good order takes a moment in which the event loop must go on.
"""

import asyncio
import threading
from typing import Any, Protocol

import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from replicator.config.models import Cluster, Link
from replicator.state.records import group_id, state_topic

POLL_S = 0.1
RECORDS_A_POLL = 1000
GIVE_UP_TIMEOUT_S = 30.0  # the owner's own waits are shorter
POLL_INTERVAL_MS_MAX = 300_000
HEARTBEATS_A_SESSION = 4

Records = dict[bytes, bytes]  # key -> the value that counts


class Owner(Protocol):
    """Who is told, on the event loop, what the group says."""

    def taken(self, shard: int, records: Records) -> None:
        """The shard is ours, and this is what its partition of the state topic holds."""

    async def give_up(self, shards: list[int]) -> None:
        """The shards will go to others once this returns."""

    def lost(self, shards: list[int]) -> None:
        """The shards are others' already: we were taken for dead."""

    def troubled(self, reason: str) -> None:
        """Something is wrong with the group or the topic; it is tried again."""


class _Generation(msgspec.Struct):
    generation: int = 0


class Membership:
    """Joins on construction, inside a running event loop. `close` leaves in good order."""

    def __init__(self, cluster: Cluster, link: Link, owner: Owner) -> None:
        self._topic = state_topic(link.name)
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self.member_id = ""  # empty before the group has let us in
        self._loading: dict[int, Records] = {}
        self._generations: dict[bytes, int] = {}
        self._decoder = msgspec.json.Decoder(_Generation)
        self._consumer = Consumer(_properties(cluster, link))
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"membership of {link.name}", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Gives up every shard in good order, and leaves the group."""
        self._closing.set()
        await asyncio.to_thread(self._thread.join)

    # ---- in the thread ----

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:
            self._tell(_raise, error)  # a fault of ours: not to be the end of a thread that nobody looks at

    def _serve(self) -> None:
        self._consumer.subscribe(
            [self._topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )
        while not self._closing.is_set():
            try:
                for message in self._consumer.consume(RECORDS_A_POLL, POLL_S):
                    self._take(message)
            except KafkaException as error:
                self._tell(self._owner.troubled, error.args[0].str())
                self._closing.wait(1)
        self._consumer.close()

    def _tell(self, what: Any, *words: Any) -> None:
        self._loop.call_soon_threadsafe(what, *words)

    def _take(self, message: Any) -> None:
        error = message.error()
        if error is None:
            self._note(message.partition(), message.key() or b"", message.value())
        elif error.code() == KafkaError._PARTITION_EOF:
            self._loaded(message.partition())
        else:
            self._tell(self._owner.troubled, error.str())

    def _note(self, shard: int, key: bytes, value: bytes | None) -> None:
        """Keeps the record if it counts: one of a lower generation was written by an owner of the past."""
        records = self._loading.get(shard)
        if records is None:
            return
        if value is None:
            records.pop(key, None)
            self._generations.pop(key, None)
            return
        try:
            generation = self._decoder.decode(value).generation
        except msgspec.DecodeError:
            generation = 0
        if generation >= self._generations.get(key, 0):
            self._generations[key] = generation
            records[key] = value

    def _loaded(self, shard: int) -> None:
        records = self._loading.pop(shard, None)
        if records is not None:
            # What is written from now on is written by us.
            self._consumer.pause([TopicPartition(self._topic, shard)])
            self._forget_generations(records)
            # Here, in its own thread: asked for while another thread consumes, librdkafka never answers.
            self.member_id = self._consumer.memberid() or ""
            self._tell(self._owner.taken, shard, records)

    def _forget_generations(self, records: Records) -> None:
        for key in records:
            self._generations.pop(key, None)

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for partition in partitions:
            self._loading[partition.partition] = {}
            partition.offset = OFFSET_BEGINNING
        consumer.incremental_assign(partitions)
        consumer.resume(partitions)  # one that was ours before is still paused

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        shards = self._forget(partitions)
        giving_up = asyncio.run_coroutine_threadsafe(self._owner.give_up(shards), self._loop)
        try:
            giving_up.result(GIVE_UP_TIMEOUT_S)
        except Exception as error:  # whatever it was, the shards go: the target's own tail makes it exact
            self._tell(self._owner.troubled, f"giving up {len(shards)} shards: {error!r}")
        consumer.incremental_unassign(partitions)

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._tell(self._owner.lost, self._forget(partitions))
        consumer.incremental_unassign(partitions)

    def _forget(self, partitions: list[TopicPartition]) -> list[int]:
        shards = [partition.partition for partition in partitions]
        for shard in shards:
            self._forget_generations(self._loading.pop(shard, {}))
        return shards


def _raise(error: BaseException) -> None:
    raise error


def _properties(cluster: Cluster, link: Link) -> dict[str, Any]:
    properties = cluster.client_properties(control=True) | {
        "group.id": group_id(link.name),
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
        "enable.partition.eof": True,
        "max.poll.interval.ms": max(POLL_INTERVAL_MS_MAX, link.session_timeout_ms),
        "fetch.wait.max.ms": 100,
        "reconnect.backoff.max.ms": 1_000,  # 10 s by default, in which nobody would own our shards
    }
    if link.group_protocol == "consumer":
        return properties | {"group.protocol": "consumer"}  # its session timeout is the broker's
    return properties | {
        "partition.assignment.strategy": "cooperative-sticky",
        "session.timeout.ms": link.session_timeout_ms,
        "heartbeat.interval.ms": max(link.session_timeout_ms // HEARTBEATS_A_SESSION, 100),
    }
