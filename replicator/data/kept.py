"""A connection to one broker that is made again whenever it is lost, for as long as somebody wants it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from replicator._core import Event, Pool
from replicator.config.models import Limits
from replicator.errors import ConnectionLost, ReplicatorError, Where
from replicator.kafka.backoff import Backoff
from replicator.kafka.cluster import Cluster
from replicator.kafka.connection import Connection
from replicator.tasks import must_not_end

RECONNECT_MS_MAX = 1_000  # as Kafka's own clients: reconnect.backoff.max.ms


@dataclass(frozen=True)
class Surroundings:
    """What both sides of the data plane share in a worker, and whom they tell."""

    limits: Limits
    pool: Pool
    on_events: Callable[[list[Event]], None]
    on_progress: Callable[[], None]  # bytes came or went: there may be something to ask for or to send
    on_down: Callable[[Any, ReplicatorError], None]  # the SourceBroker or TargetBroker, and why


class KeptConnection:
    """`current` is the connection while it is up, else None. `on_up` and `on_down` are told, in this order, each time.

    `on_down` also hears of attempts that failed; it runs before any new connection is made, so what was in flight can
    be put in order first.
    """

    def __init__(
        self,
        cluster: Cluster,
        node_id: int,
        on_up: Callable[[Connection], None],
        on_down: Callable[[ReplicatorError], None],
    ) -> None:
        self.current: Connection | None = None
        self._cluster = cluster
        self._node_id = node_id
        self._on_up = on_up
        self._on_down = on_down
        self._keeping = asyncio.ensure_future(self._keep())
        self._keeping.add_done_callback(must_not_end)

    async def close(self) -> None:
        """Ends it for good."""
        self._keeping.cancel()
        await asyncio.gather(self._keeping, return_exceptions=True)

    def drop(self, error: ReplicatorError) -> None:
        """Closes the connection of the moment, if there is one, for this reason."""
        if self.current:
            self.current.close(error)

    async def _keep(self) -> None:
        backoff = Backoff(limit_ms=RECONNECT_MS_MAX)
        while True:
            try:
                error = await self._hold(backoff)
            except ReplicatorError as failure:
                error = failure
            self._on_down(error)
            await asyncio.sleep(backoff.next_s())

    async def _hold(self, backoff: Backoff) -> ReplicatorError:
        connection = await self._cluster.connect(self._node_id)
        try:
            self._on_up(connection)
            self.current = connection
            backoff.reset()
            return await asyncio.shield(connection.lost)
        finally:
            self.current = None
            connection.close(ConnectionLost("closed by us", where=Where(self._cluster.alias)))
