"""Writes records to a cluster, each acknowledged by all in-sync replicas before it counts.

The records are few and small, so this is an ordinary producer of confluent-kafka. Its threads hold no Python state;
what it has to say is fetched by a timer, and only while something is outstanding.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer
from msgspec import Struct

from replicator.config.models import Cluster
from replicator.errors import ClusterError, ReplicatorError, Unreachable, Where
from replicator.state.records import encode

POLL_S = 0.001
TRIES = 3  # so many requests may time out before a record is given up
ANY_PARTITION = -1  # to librdkafka
QUEUE_MAX = 100_000  # records; 10,000 lanes write one each a second


class RecordWriter:
    """For one cluster. Use from one event loop only. `settings` are librdkafka's, besides those here."""

    def __init__(
        self, cluster: Cluster, request_timeout_ms: int, settings: Mapping[str, str | int | float | bool] | None = None
    ) -> None:
        self._cluster = cluster
        self._timeout_ms = request_timeout_ms
        self._settings = dict(settings or {})
        self._producer = self._make()
        self._outstanding: set[asyncio.Future[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def _make(self) -> Producer:
        return Producer(
            self._cluster.client_properties(control=True)
            | {
                "acks": "all",
                # Not against duplicates, which would do no harm, but for the order: a retry must not overtake.
                "enable.idempotence": True,
                "linger.ms": 0,
                "reconnect.backoff.max.ms": 1_000,
                "compression.type": "lz4",
                "request.timeout.ms": self._timeout_ms,
                "socket.timeout.ms": self._timeout_ms,
                "message.timeout.ms": TRIES * self._timeout_ms,
                "queue.buffering.max.messages": QUEUE_MAX,
                # Without one a fatal error is raised from inside `poll`; delivery reports tell of it as well.
                "error_cb": _heard,
            }
            | self._settings
        )

    def produce(self, where: Where, key: bytes | None, value: bytes | None, **more: Any) -> asyncio.Future[None]:
        """Done once the record is acknowledged. Fails with ClusterError or Unreachable.

        `where` without a partition: the key decides. `more`: headers and timestamp as confluent-kafka takes them.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        partition = ANY_PARTITION if where.partition is None else where.partition

        def delivered(error: KafkaError | None, _message: Any) -> None:
            self._outstanding.discard(done)
            if done.done():
                return
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(self._spell(error, where))

        try:
            self._producer.produce(where.topic or "", value, key, partition, on_delivery=delivered, **more)
        except BufferError as error:
            done.set_exception(Unreachable(f"cannot be written: {error}", where=where))
            return done
        except KafkaException as error:
            done.set_exception(self._spell(error.args[0], where))
            return done
        self._outstanding.add(done)
        if self._timer is None:
            self._timer = loop.call_later(POLL_S, self._poll)
        return done

    def _poll(self) -> None:
        self._timer = None
        self._producer.poll(0)
        if self._outstanding:
            self._timer = asyncio.get_running_loop().call_later(POLL_S, self._poll)

    def _begin_anew(self) -> None:
        """After a fatal error a producer writes nothing any more, and what it still had nobody will answer for."""
        self._producer = self._make()
        given_up, self._outstanding = self._outstanding, set()
        for done in given_up:
            if not done.done():
                done.set_exception(Unreachable("not written: its producer failed", where=Where(self._cluster.alias)))

    def _spell(self, error: KafkaError, where: Where) -> ReplicatorError:
        if error.fatal() or error.code() == KafkaError._FATAL:
            self._begin_anew()
        if error.code() > 0:
            return ClusterError(error.code(), error.str(), where=where)
        return Unreachable(f"cannot be written: {error.str()}", where=where)

    async def close(self, timeout_s: float = 5) -> None:
        """Waits for what is outstanding, for so long."""
        if self._outstanding:
            await asyncio.wait(set(self._outstanding), timeout=timeout_s)
        if self._timer:
            self._timer.cancel()
            self._timer = None


def _heard(_error: KafkaError) -> None:
    pass


class StateWriter(RecordWriter):
    """Of a link's own records, on its target cluster."""

    def write(self, topic: str, partition: int, key: Struct, value: Struct | None) -> asyncio.Future[None]:
        """As `produce`; None is a tombstone."""
        where = Where(self._cluster.alias, topic, partition)
        return self.produce(where, encode(key), encode(value) if value else None)
