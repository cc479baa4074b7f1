"""Worker processes: started, spoken to, and started again when they die.

A process is started afresh (never forked: librdkafka's threads would not survive that), with one end of a socketpair
and the shared counter rows as its only inheritance. When the supervisor goes, the socket closes and the worker ends.
"""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping

import msgspec
from msgspec.structs import replace

from replicator.data.orders import (
    Assign,
    Drain,
    Drained,
    LaneSpec,
    Order,
    Report,
    SettingsChanged,
    Setup,
    TargetTopic,
    read_message,
    write_message,
)
from replicator.kafka.backoff import Backoff

log = logging.getLogger("replicator")

KILL_AFTER_S = 15.0
LANES_PER_ORDER = 100  # each comes with its recipe, and a message may have 64 MiB


class WorkerProcess:
    """One worker's place: the process in it may change, its lanes stay."""

    def __init__(
        self,
        index: int,
        setup: Setup,
        rows_fd: int,
        on_report: "Callable[[WorkerProcess, Order | Report], None]",
        on_gone: "Callable[[WorkerProcess], None]",
    ) -> None:
        self.index = index
        self.lanes: list[LaneSpec] = []
        self.restarts = 0
        self.process: asyncio.subprocess.Process | None = None
        self._setup = setup
        self._rows_fd = rows_fd
        self._on_report = on_report
        self._on_gone = on_gone
        self._orders: asyncio.StreamWriter | None = None
        self._draining = False
        self._keeping = asyncio.ensure_future(self._keep())

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process and self.process.returncode is None else None

    def assign(self, lanes: list[LaneSpec]) -> None:
        self.lanes += lanes
        self._send_lanes(lanes)

    def change_settings(self, settings: Mapping[int, TargetTopic]) -> None:
        """By row: what the target topics of these lanes, as far as they are its own, take by now. Whoever takes the
        worker's place is told, too."""
        rows: dict[TargetTopic, list[int]] = {}
        for lane in self.lanes:
            if lane.row in settings:
                rows.setdefault(settings[lane.row], []).append(lane.row)
        if rows:
            self.lanes = [replace(lane, settings=settings.get(lane.row, lane.settings)) for lane in self.lanes]
        for each, concerned in rows.items():
            self._send(SettingsChanged(concerned, each))

    @property
    def draining(self) -> bool:
        """It is to end: it leaves its groups by itself, or we end, too."""
        return self._draining

    async def drain(self) -> None:
        """Lets the worker finish what it has begun, and waits until it is gone."""
        self._draining = True
        self._send(Drain())
        try:
            await asyncio.wait_for(asyncio.shield(self._keeping), KILL_AFTER_S)
        except TimeoutError:
            log.error("worker %d did not drain within %.0f s: killed", self.index, KILL_AFTER_S)
            await self.kill()

    async def kill(self) -> None:
        self._draining = True
        if self.process and self.process.returncode is None:
            self.process.kill()
        self._keeping.cancel()
        await asyncio.gather(self._keeping, return_exceptions=True)
        if self.process:
            await self.process.wait()

    def _send_lanes(self, lanes: list[LaneSpec]) -> None:
        for first in range(0, len(lanes), LANES_PER_ORDER):
            self._send(Assign(lanes[first : first + LANES_PER_ORDER]))

    def _send(self, order: Order) -> None:
        if self._orders and not self._orders.is_closing():
            write_message(self._orders, order)

    async def _keep(self) -> None:
        backoff = Backoff()
        while True:
            started = asyncio.get_running_loop().time()
            code = await self._run_once()
            self._on_gone(self)
            if self._draining:
                return
            self.restarts += 1
            if asyncio.get_running_loop().time() - started > 60:
                backoff.reset()
            log.error("worker %d died (%s); starting another", self.index, _ending(code))
            await asyncio.sleep(backoff.next_s())

    async def _run_once(self) -> int:
        ours, theirs = socket.socketpair()
        fds = (theirs.fileno(), self._rows_fd)
        command = [sys.executable, "-P", "-m", "replicator.data.worker", *map(str, fds)]
        # A worker looks for modules where we do, and not first in whatever folder we were started from.
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self.process = await asyncio.create_subprocess_exec(
            *command, pass_fds=fds, env={**os.environ, "PYTHONPATH": path}
        )
        theirs.close()
        reader, self._orders = await asyncio.open_connection(sock=ours)
        self._send(self._setup)
        self._send_lanes(self.lanes)
        try:
            await self._hear(reader)
        finally:
            self._orders.close()
            self._orders = None
        return await self.process.wait()

    async def _hear(self, reader: asyncio.StreamReader) -> None:
        decoder: msgspec.msgpack.Decoder[Order | Report] = msgspec.msgpack.Decoder(Order | Report)
        try:
            while True:
                report = await read_message(reader, decoder)
                if isinstance(report, Drained) and report.lanes_left:
                    log.warning("worker %d: %d lanes did not settle in time", self.index, report.lanes_left)
                self._on_report(self, report)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # it is gone; its exit code tells how


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
