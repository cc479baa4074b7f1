"""A worker: one process of the data plane, with its own loop and sockets, and nothing else to do.

It runs the lanes that the supervisor names and, where checkpoints are kept on the target, the link's consumer group
gives it (shards.py). It keeps one SourceBroker and one TargetBroker for each broker that
leads any of them, and turns the crank: whenever bytes came or went, every target gathers what waits and every source
asks for what has room. Run as `python -m replicator.data.worker CONTROL_FD ROWS_FD`; ends when its supervisor does.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Coroutine, Iterable
from typing import TYPE_CHECKING, Any

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
    LaneEvent,
    LaneReleased,
    LaneSpec,
    Notice,
    Order,
    Report,
    SettingsChanged,
    Setup,
    read_message,
    write_message,
)
from replicator.data.source import SourceBroker
from replicator.data.states import LaneState, Rows
from replicator.data.target import TargetBroker
from replicator.data.transitions import Trigger
from replicator.data.watch import recent
from replicator.errors import InternalError, ReplicatorError
from replicator.kafka.cluster import Cluster
from replicator.kafka.connection import ConnectionSettings

if TYPE_CHECKING:
    from replicator.data.audit import Auditor
    from replicator.data.dead_letters import DeadLetters
    from replicator.data.loops import LoopRegistry
    from replicator.data.rebuild import Bench, Rebuilder
    from replicator.data.shards import LinkShards
    from replicator.state.writer import StateWriter

DRAIN_TIMEOUT_S = 10.0
LANE_BYTES_MIN = 128 << 10
PULSE_S = 0.25
WATCH_S = 1.0
FROZEN_S = 2.0  # nothing in this process takes so long
SLOW_S, SLOW_TOLD_EACH_S = 0.5, 60.0  # a plug-in that is too slow


class Worker:
    """The lanes of one process and the brokers they stand at."""

    def __init__(self, setup: Setup, rows: Rows, reports: asyncio.StreamWriter) -> None:
        self.config = setup.config
        self.rows = rows
        self.reports = reports
        self.lanes: dict[int, LaneRunner] = {}
        self.source_brokers: dict[tuple[str, int, bool], SourceBroker] = {}
        self.target_brokers: dict[tuple[str, int], TargetBroker] = {}
        limits = setup.config.limits
        self.around = Surroundings(limits, Pool(limits.credit_bytes), self._on_events, self.pump_soon, self._on_down)
        self.clusters = {
            alias: Cluster(
                cluster.bootstrap,
                ConnectionSettings(alias, cluster.client_id, limits.request_timeout_ms, self.around.pool),
            )
            for alias, cluster in setup.config.clusters.items()
        }
        self._pump_handle: asyncio.Handle | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._writers: dict[str, StateWriter] = {}
        self._shards: dict[str, LinkShards] = {}
        self._rebuilder: Rebuilder | None = None
        self._letters: dict[str, DeadLetters] = {}
        self._loops: dict[str, LoopRegistry] = {}
        self._pulse_at = asyncio.get_running_loop().time()
        self._slow_told_at = -SLOW_TOLD_EACH_S
        self._auditor: Auditor[LaneRunner] | None = None
        if setup.durable:
            self._join_groups()
            self.spawn(self._pulse())
        else:
            self.spawn(self._watch())

    def _join_groups(self) -> None:
        from replicator.data.audit import Auditor  # these load numpy and confluent-kafka, which a one-shot copy does
        from replicator.data.shards import LinkShards  # without
        from replicator.state.writer import StateWriter

        for link in self.config.links:
            if link.target not in self._writers:
                self._writers[link.target] = StateWriter(
                    self.config.clusters[link.target], self.config.limits.request_timeout_ms
                )
            self._shards[link.name] = LinkShards(link, self, self._writers[link.target])
        self._auditor = Auditor(lambda: list(self.lanes.values()), recent, self._on_difference)
        self._auditor.start()

    def _on_difference(self, lane: LaneRunner, sentence: str) -> None:
        self.lane_event(lane, Trigger.AUDIT_DIFFERS, sentence)

    # ---- the crank ----

    def pump_soon(self) -> None:
        """Turns the crank once more in this iteration of the loop, however many ask for it."""
        if self._pump_handle is None:
            self._pump_handle = asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_handle = None
        if self._shards:
            self._look_at_clock()
        for target in self.target_brokers.values():
            target.pump()
        for source in self.source_brokers.values():
            source.pump()

    async def _pulse(self) -> None:
        while True:
            await asyncio.sleep(PULSE_S)
            self._look_at_clock()

    async def _watch(self) -> None:
        """Of lanes without checkpoints to write, whose rounds look after the others."""
        while True:
            await asyncio.sleep(WATCH_S)
            for lane in self.lanes.values():
                lane.watch(asyncio.get_running_loop().time())

    def _look_at_clock(self) -> None:
        """If this process was frozen for a while, others may own its lanes by now: then nothing more is sent before
        the target's logs were looked at, and before the group had time to say so."""
        now = asyncio.get_running_loop().time()
        stood_s, self._pulse_at = now - self._pulse_at, now
        if stood_s >= FROZEN_S:
            for lane in self.lanes.values():
                lane.on_frozen(stood_s, pause_s=self._news_due_s())

    def was_busy(self, lane: str, took_s: float) -> None:
        """A plug-in of this lane has kept us from everything else for so long: we were not frozen, only slow."""
        self._pulse_at += min(took_s, self._news_due_s())
        now = asyncio.get_running_loop().time()
        if took_s > SLOW_S and now - self._slow_told_at > SLOW_TOLD_EACH_S:
            self._slow_told_at = now
            words = f"a batch of lane {lane} took {took_s:.1f} s in its transforms: nothing else moved meanwhile"
            self.report(Notice(logging.WARNING, words))

    def _news_due_s(self) -> float:
        """In how long the group surely has told us what changed: two heartbeats."""
        return max((shards.link.session_timeout_ms for shards in self._shards.values()), default=0) / 2000

    def _on_events(self, events: list[Event]) -> None:
        for event in events:
            if event.lane.runner:  # else the lane is closed
                event.lane.runner.on_event(event)

    def _on_down(self, broker: SourceBroker | TargetBroker, error: ReplicatorError) -> None:
        for lane in list(self.lanes.values()):
            if broker in (lane.source_broker, lane.target_broker):
                lane.on_broker_down(broker, error)

    # ---- what lanes ask for ----

    def source_broker(self, alias: str, node_id: int, committed: bool) -> SourceBroker:
        key = (alias, node_id, committed)
        if key not in self.source_brokers:
            self.source_brokers[key] = SourceBroker(self.clusters[alias], node_id, self.around, committed)
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

    def bench(self, lane: LaneRunner) -> "Bench":
        """For what a lane has to open."""
        from replicator.data.rebuild import Bench  # loads the codecs, which most workers never need

        return Bench(lane)

    def rebuild_soon(self, bench: "Bench") -> None:
        """This lane has something to open."""
        if self._rebuilder is None:
            from replicator.data.rebuild import Rebuilder  # loads the codecs, which most workers never need

            self._rebuilder = Rebuilder(self.around.pool)
        self._rebuilder.ask(bench)

    def letters(self, link: str) -> "DeadLetters":
        """Where dead letters of this link go."""
        if link not in self._letters:
            from replicator.data.dead_letters import DeadLetters

            settings = next(settings for settings in self.config.links if settings.name == link)
            alias = settings.source if settings.dead_letters.on == "source" else settings.target
            timeout_ms = self.config.limits.request_timeout_ms
            self._letters[link] = DeadLetters(settings, self.config.clusters[alias], timeout_ms)
        return self._letters[link]

    def loops(self, spec: LaneSpec) -> "LoopRegistry | None":
        """What tells which producers of the lane's source are links, if its link asks."""
        if spec.loops and spec.link not in self._loops:
            from replicator.data.loops import LoopRegistry

            self._loops[spec.link] = LoopRegistry(self.clusters[spec.source], spec.loops)
        return self._loops.get(spec.link)

    def lane_changed(self, lane: LaneRunner, trigger: Trigger, reason: str) -> None:
        self.rows.set_state(lane.spec.row, lane.state)
        self.report(LaneChanged(lane.spec.row, lane.state, trigger.kind, reason))

    def lane_event(self, lane: LaneRunner, trigger: Trigger, reason: str) -> None:
        """Something that a person should know of happened to the lane, whatever its state."""
        self.report(LaneEvent(lane.spec.row, trigger.kind, reason))

    def report(self, report: Report) -> None:
        if not self.reports.is_closing():
            write_message(self.reports, report)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs it beside everything else. What it raises is a fault of ours, and ends the process."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._spawned_has_ended)

    def _spawned_has_ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.result()

    # ---- lanes come and go ----

    def assign(self, order: Assign) -> None:
        if not self._shards:
            for spec in order.lanes:
                self.start_lane(LaneRunner(spec, self))
            return
        for name, shards in self._shards.items():
            shards.know(spec for spec in order.lanes if spec.link == name)

    def change_settings(self, order: SettingsChanged) -> None:
        """Lanes that are not here (yet) learn of it, too: an owner comes with its lane's spec."""
        for row in order.rows:
            if row in self.lanes:
                self.lanes[row].change_settings(order.settings)
        for shards in self._shards.values():
            shards.change_settings(order)

    def start_lane(self, lane: LaneRunner) -> None:
        self.lanes[lane.spec.row] = lane
        self._share_credit()
        lane.start()

    def cannot_start(self, spec: LaneSpec, reason: str) -> None:
        """The lane stands still before it began."""
        self.rows.set_state(spec.row, LaneState.FAILED)
        self.report(LaneChanged(spec.row, LaneState.FAILED, Trigger.CANNOT_PLACE.kind, reason))

    async def release(self, lanes: Iterable[LaneRunner], trigger: Trigger) -> None:
        """These lanes are somebody else's now."""
        for lane in lanes:
            self.lanes.pop(lane.spec.row, None)
            self.rows.set_state(lane.spec.row, LaneState.UNUSED)
            self.report(LaneReleased(lane.spec.row, trigger.kind))
            await lane.close()
        self._share_credit()

    def _share_credit(self) -> None:
        for broker in self.source_brokers.values():
            broker.ring.limit(self._lane_bytes_max())

    async def drain(self) -> int:
        """Fetches nothing more, waits for what is under way; returns how many lanes did not settle in time."""
        left = await self._leave_groups()
        for lane in self.lanes.values():
            lane.drain()
        deadline = asyncio.get_running_loop().time() + DRAIN_TIMEOUT_S
        while unsettled := sum(not lane.settled for lane in self.lanes.values()):
            if asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(0.01)
        return left + unsettled

    async def _leave_groups(self) -> int:
        """Gives up every shard in good order; returns how many lanes did not settle in time."""
        leaving = list(self._shards.values())
        await asyncio.gather(*(shards.close() for shards in leaving))
        self._shards.clear()
        return sum(shards.unsettled for shards in leaving)

    async def close(self) -> None:
        await self._leave_groups()
        if self._auditor:
            await self._auditor.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        closing: list[Coroutine[Any, Any, None]] = [lane.close() for lane in self.lanes.values()]
        await asyncio.gather(*closing)
        closing = [broker.close() for broker in self.source_brokers.values()]
        closing += [broker.close() for broker in self.target_brokers.values()]
        closing += [cluster.close() for cluster in self.clusters.values()]
        closing += [writer.close() for writer in self._writers.values()]
        closing += [letters.close() for letters in self._letters.values()]
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
    try:
        setup = await read_message(reader, decoder)
    except (asyncio.IncompleteReadError, ConnectionError):
        return  # the supervisor was gone before it had a word for us
    if not isinstance(setup, Setup):
        raise InternalError("the first order to a worker was not its setup")
    worker = Worker(setup, rows, reports)
    try:
        while True:
            order = await read_message(reader, decoder)
            if isinstance(order, Assign):
                worker.assign(order)
            elif isinstance(order, SettingsChanged):
                worker.change_settings(order)
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
