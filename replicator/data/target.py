"""The produce side of one target broker: the lanes it leads, one connection, and the requests in flight on it.

A request is gathered whenever the socket has taken the one before and lanes wait. While few requests are in flight
whatever waits goes at once; while more are, a request that would carry few lanes is held until others have something to
send, too, or an answer comes. So nothing waits that would arrive sooner by leaving, and a backlog makes large requests.
"""

import asyncio

from replicator._core import Frame, Target
from replicator.data.kept import KeptConnection, Surroundings
from replicator.errors import ReplicatorError
from replicator.kafka.cluster import Cluster
from replicator.kafka.connection import Connection
from replicator.kafka.messages import PRODUCE

REQUESTS_IN_FLIGHT_MAX = 64


class TargetBroker:
    """`ring` holds the lanes with something to send here: they join by `Lane.set_target`. `pump` sends it."""

    def __init__(self, cluster: Cluster, node_id: int, around: Surroundings) -> None:
        self.cluster = cluster
        self.node_id = node_id
        self.around = around
        limits, client_id = around.limits, cluster.settings.client_id.encode()
        self.ring = Target(client_id, limits.produce_bytes_max, limits.request_timeout_ms)
        self.throttle: asyncio.TimerHandle | None = None  # runs while the broker wants nothing sent
        self.version = 0
        self.kept = KeptConnection(cluster, node_id, self._up, self._down)

    def pump(self) -> None:
        connection = self.kept.current
        while (
            connection is not None
            and self.ring.ready
            and not self.throttle
            and not connection.transport.pending
            and self.ring.in_flight < REQUESTS_IN_FLIGHT_MAX
            and not connection.lost.done()
        ):
            correlation_id = connection.begin(self._settle)
            gathered = self.ring.gather(connection.transport, self.version, correlation_id)
            if events := self.ring.take_events():
                self.around.on_events(events)
            if not gathered:
                connection.unbegin()
                return
            connection.flush()

    def _settle(self, frame: Frame) -> None:
        throttle_ms = self.ring.settle(frame)
        if events := self.ring.take_events():
            self.around.on_events(events)
        if throttle_ms:
            self._begin_throttle(throttle_ms)

    def _begin_throttle(self, throttle_ms: int) -> None:
        """The broker reads nothing from us for so long: what is in flight behind this answer waits there, too."""
        if self.kept.current:
            self.kept.current.extend_deadlines(throttle_ms)
        self._cancel_throttle()
        self.throttle = asyncio.get_running_loop().call_later(throttle_ms / 1000, self._end_throttle)

    def _end_throttle(self) -> None:
        self.throttle = None
        self.around.on_progress()

    def _cancel_throttle(self) -> None:
        if self.throttle:
            self.throttle.cancel()
            self.throttle = None

    def _up(self, connection: Connection) -> None:
        self.version = connection.version(PRODUCE)
        connection.on_readable = self.around.on_progress
        self.around.on_progress()

    def _down(self, error: ReplicatorError) -> None:
        """Every batch in flight may or may not be on the target: its lane has to look."""
        self._cancel_throttle()
        self.ring.abandon()
        if events := self.ring.take_events():
            self.around.on_events([event._replace(text=str(error)) for event in events])
        self.around.on_down(self, error)

    async def close(self) -> None:
        await self.kept.close()
        self._cancel_throttle()
        self.ring.abandon()
        self.ring.take_events()
