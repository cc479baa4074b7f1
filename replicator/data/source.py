"""The fetch side of one source broker: the lanes it leads, and a few connections that ask for them in turn.

Each connection has one Fetch outstanding. A broker answers the requests of a connection one after the other, and one
that waits for news at the end of a log holds up those behind it; so the waiting ones stand on connections of their
own, and the last free one is never told to wait long: a lane that has just caught up is not left out until the
others' wait is over.
"""

import asyncio

from replicator._core import FetchStream, Frame, Source
from replicator.data.kept import KeptConnection, Surroundings
from replicator.errors import ClusterError, ReplicatorError, Where
from replicator.kafka.cluster import Cluster
from replicator.kafka.connection import Connection
from replicator.kafka.messages import FETCH

STREAMS = 3
SHORT_WAIT_MS = 20


class SourceBroker:
    """`ring` holds the lanes that can be fetched here: they join by `Lane.set_source`. `pump` asks for them."""

    def __init__(self, cluster: Cluster, node_id: int, around: Surroundings, committed: bool) -> None:
        """`committed`: asks for what read_committed readers see; lanes of the other isolation stand elsewhere."""
        self.cluster = cluster
        self.node_id = node_id
        self.around = around
        self.ring = Source(around.pool, around.limits.lane_bytes_max, committed)
        self.failures = 0  # connections lost, or not made, since the last answer to a Fetch
        self.streams = [_Stream(self) for _ in range(STREAMS)]

    @property
    def connected(self) -> bool:
        return any(stream.kept.current for stream in self.streams)

    def pump(self) -> None:
        for stream in self.streams:
            if stream.free and not stream.ask(self._wait_ms(stream)):
                return

    def _wait_ms(self, asking: "_Stream") -> int:
        wait_ms = self.around.limits.fetch_wait_ms
        others_free = any(stream.free for stream in self.streams if stream is not asking)
        return wait_ms if others_free else min(SHORT_WAIT_MS, wait_ms)

    async def close(self) -> None:
        await asyncio.gather(*(stream.kept.close() for stream in self.streams))


class _Stream:
    """One connection, and the one Fetch that may be outstanding on it."""

    def __init__(self, broker: SourceBroker) -> None:
        self.broker = broker
        client_id = broker.cluster.settings.client_id.encode()
        self.fetch = FetchStream(broker.ring, client_id, broker.around.limits.fetch_bytes_max)
        self.busy = False  # an answer is outstanding, or a throttle time runs
        self.version = 0
        self.kept = KeptConnection(broker.cluster, broker.node_id, self._up, self._down)

    @property
    def free(self) -> bool:
        return self.kept.current is not None and not self.busy

    def ask(self, wait_ms: int) -> bool:
        """Sends the next Fetch. False: no lane to ask for, no room for an answer, or no connection."""
        connection = self.kept.current
        if connection is None or connection.lost.done():
            return False
        correlation_id = connection.begin(self._take, wait_ms=wait_ms)
        if not self.fetch.compose(connection.transport, self.version, correlation_id, wait_ms):
            connection.unbegin()
            return False
        self.busy = True
        connection.flush()
        return True

    def _take(self, frame: Frame) -> None:
        """The response is whole; its batches went to their lanes while it arrived."""
        if self.fetch.error:
            error = ClusterError(self.fetch.error, "Fetch", where=Where(self.broker.cluster.alias))
            self.kept.drop(error)
            return
        self.broker.failures = 0
        if self.fetch.throttle_ms:
            asyncio.get_running_loop().call_later(self.fetch.throttle_ms / 1000, self._end_throttle)
        else:
            self.busy = False

    def _end_throttle(self) -> None:
        self.busy = False
        self.broker.around.on_progress()

    def _readable(self) -> None:
        if events := self.fetch.take_events():
            self.broker.around.on_events(events)
        self.broker.around.on_progress()

    def _up(self, connection: Connection) -> None:
        self.version = connection.version(FETCH)
        self.busy = False
        connection.stream = self.fetch
        connection.on_readable = self._readable
        self.broker.around.on_progress()

    def _down(self, error: ReplicatorError) -> None:
        self.fetch.abort()
        if events := self.fetch.take_events():
            self.broker.around.on_events(events)
        self.broker.failures += 1
        # A broker that takes every connection and answers no Fetch is down, too: each stream has tried it.
        if not self.broker.connected or self.broker.failures >= STREAMS:
            self.broker.around.on_down(self.broker, error)
        self.broker.around.on_progress()
