"""A worker: one process of the data plane, with its own loop and sockets, and nothing else to do.

It owns the lanes that the supervisor assigns to it, keeps one SourceBroker and one TargetBroker for each broker that
leads any of them, and turns the crank: whenever bytes came or went, every target gathers what waits and every source
asks for what has room. Run as `python -m replicator.data.worker CONTROL_FD ROWS_FD`; ends when its supervisor does.
"""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Coroutine
from typing import Any

import msgspec
import uvloop

from replicator._core import Event, Pool
from replicator.data.kept import Surroundings
from replicator.data.lane import LaneRunner
from replicator.data.orders import (
    Assign,
    Drain,
    Drained,
    LaneChanged,
    Order,
    Report,
    Setup,
    read_message,
    write_message,
)
from replicator.data.source import SourceBroker
from replicator.data.states import LaneState, Rows
from replicator.data.target import TargetBroker
from replicator.errors import InternalError, ReplicatorError
from replicator.kafka.cluster import Cluster
from replicator.kafka.connection import ConnectionSettings

DRAIN_TIMEOUT_S = 10.0
LANE_BYTES_MIN = 128 << 10


class Worker:
    """The lanes of one process and the brokers they stand at."""

    def __init__(self, setup: Setup, rows: Rows, reports: asyncio.StreamWriter) -> None:
        self.rows = rows
        self.reports = reports
        self.lanes: dict[int, LaneRunner] = {}
        self.source_brokers: dict[tuple[str, int], SourceBroker] = {}
        self.target_brokers: dict[tuple[str, int], TargetBroker] = {}
        self.around = Surroundings(
            setup.limits, Pool(setup.limits.credit_bytes), self._on_events, self.pump_soon, self._on_down
        )
        self.clusters = {
            alias: Cluster(
                cluster.bootstrap,
                ConnectionSettings(alias, cluster.client_id, setup.limits.request_timeout_ms, self.around.pool),
            )
            for alias, cluster in setup.clusters.items()
        }
        self._pump_handle: asyncio.Handle | None = None

    # ---- the crank ----

    def pump_soon(self) -> None:
        """Turns the crank once more in this iteration of the loop, however many ask for it."""
        if self._pump_handle is None:
            self._pump_handle = asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_handle = None
        for target in self.target_brokers.values():
            target.pump()
        for source in self.source_brokers.values():
            source.pump()

    def _on_events(self, events: list[Event]) -> None:
        for event in events:
            event.lane.runner.on_event(event)

    def _on_down(self, broker: SourceBroker | TargetBroker, error: ReplicatorError) -> None:
        for lane in list(self.lanes.values()):
            if broker in (lane.source_broker, lane.target_broker):
                lane.on_broker_down(broker, error)

    # ---- what lanes ask for ----

    def source_broker(self, alias: str, node_id: int) -> SourceBroker:
        key = (alias, node_id)
        if key not in self.source_brokers:
            self.source_brokers[key] = SourceBroker(self.clusters[alias], node_id, self.around)
            self.source_brokers[key].ring.limit(self._lane_bytes_max())
        return self.source_brokers[key]

    def _lane_bytes_max(self) -> int:
        """Half of the credit, shared out: lanes to a target that stands still must leave room for the others."""
        limits = self.around.limits
        share = limits.credit_bytes // (2 * max(len(self.lanes), 1))
        return min(limits.lane_bytes_max, max(share, LANE_BYTES_MIN))

    def target_broker(self, alias: str, node_id: int) -> TargetBroker:
        key = (alias, node_id)
        if key not in self.target_brokers:
            self.target_brokers[key] = TargetBroker(self.clusters[alias], node_id, self.around)
        return self.target_brokers[key]

    def lane_changed(self, lane: LaneRunner, state: LaneState, reason: str) -> None:
        self.rows.set_state(lane.spec.row, state)
        write_message(self.reports, LaneChanged(lane.spec.row, state, reason))

    # ---- orders ----

    def assign(self, order: Assign) -> None:
        for spec in order.lanes:
            self.lanes[spec.row] = LaneRunner(spec, self)
        for broker in self.source_brokers.values():
            broker.ring.limit(self._lane_bytes_max())
        for spec in order.lanes:
            self.lanes[spec.row].start()

    async def drain(self) -> int:
        """Fetches nothing more, waits for what is under way; returns how many lanes did not settle in time."""
        for lane in self.lanes.values():
            lane.drain()
        deadline = asyncio.get_running_loop().time() + DRAIN_TIMEOUT_S
        while left := sum(not lane.settled for lane in self.lanes.values()):
            if asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(0.01)
        return left

    async def close(self) -> None:
        closing: list[Coroutine[Any, Any, None]] = [lane.close() for lane in self.lanes.values()]
        await asyncio.gather(*closing)
        closing = [broker.close() for broker in self.source_brokers.values()]
        closing += [broker.close() for broker in self.target_brokers.values()]
        closing += [cluster.close() for cluster in self.clusters.values()]
        await asyncio.gather(*closing)


def _end_at_once(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A callback failed: what it left half done would stand still without a word. The next process reads the logs."""
    loop.default_exception_handler(context)
    if "handle" in context:
        os._exit(os.EX_SOFTWARE)


async def serve(control: socket.socket, rows: Rows) -> None:
    """Takes orders until told to drain, or until the supervisor is gone."""
    asyncio.get_running_loop().set_exception_handler(_end_at_once)
    reader, reports = await asyncio.open_connection(sock=control)
    decoder: msgspec.msgpack.Decoder[Order | Report] = msgspec.msgpack.Decoder(Order | Report)
    setup = await read_message(reader, decoder)
    if not isinstance(setup, Setup):
        raise InternalError("the first order to a worker was not its setup")
    worker = Worker(setup, rows, reports)
    try:
        while True:
            order = await read_message(reader, decoder)
            if isinstance(order, Assign):
                worker.assign(order)
            elif isinstance(order, Drain):
                write_message(reports, Drained(await worker.drain()))
                await reports.drain()
                break
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # the supervisor is gone: the next one goes on from the target's own log
    finally:
        await worker.close()
        reports.close()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the supervisor's to answer
    control_fd, rows_fd = map(int, sys.argv[1:3])
    uvloop.run(serve(socket.socket(fileno=control_fd), Rows(rows_fd)))


if __name__ == "__main__":
    main()
