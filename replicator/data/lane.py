"""One lane's life outside the fast path: finding its place, and what is done about everything that goes wrong.

While batches flow, nothing here runs. The native core calls a person, so to speak, when something about the lane is
in doubt, having stopped it first; then one of three procedures runs, never two at once:

    _place        read the target's tail, compare it with the checkpoint, go on from exactly there
    _find_source  the source partition has another leader, or none: look for it; what was fetched stays good
    _stop         send what is queued, then stand still with a state and a reason until a person acts

The rule behind `_place`: never resend on a guess. The log end offset and the last batch's header on the target say
how many records beyond the checkpoint have landed; that many are fetched again and passed over, not sent.
"""

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from replicator._core import VERDICTS, Event, Lane, open_batch
from replicator.config.models import StartAt
from replicator.data.orders import LaneSpec
from replicator.data.reasons import WHY
from replicator.data.source import SourceBroker
from replicator.data.states import Checkpoint, LaneState
from replicator.data.target import TargetBroker
from replicator.errors import Action, ClusterError, NetworkError, ReplicatorError, kafka_error
from replicator.kafka.backoff import Backoff
from replicator.kafka.cluster import Leader
from replicator.kafka.codec import NO_ID
from replicator.kafka.log import END, START, LogTail, Partition, fetch_slice, find_offset, read_tail

if TYPE_CHECKING:
    from replicator.data.worker import Worker

NEVER = (1 << 63) - 1
SEQUENCE_MASK = 0x7FFF_FFFF
SUSPECT_TRIES = 3  # an error that may be the batch's fault, at the same position
MISSING_TRIES = 5  # looks at the metadata before a topic counts as deleted
UNAUTHORIZED_PAUSE_S = 30.0
RETRY_MS_MAX = 2_000  # what a paused lane asks is shared with the others, or small
STILL_S = 0.3  # how long the target's tail must not move before we believe that the old connection's requests are over
OFFSET_OUT_OF_RANGE, UNKNOWN_SERVER_ERROR, CORRUPT_MESSAGE = 1, -1, 2
UNAUTHORIZED = {29, 31}


class LaneStopped(Exception):
    """Ends a procedure: the lane stands still in this state."""

    def __init__(self, state: LaneState, reason: str) -> None:
        super().__init__(reason)
        self.state = state
        self.reason = reason


class LaneRunner:
    """Runs one lane of a worker. `native` is the fast path's half; its events come in by `on_event`."""

    def __init__(self, spec: LaneSpec, worker: "Worker") -> None:
        self.spec = spec
        self.worker = worker
        self.source = Partition(worker.clusters[spec.source], spec.topic, spec.partition)
        self.target = Partition(worker.clusters[spec.target], spec.target_topic, spec.partition)
        self.native = Lane(
            spec.topic,
            spec.topic_id,
            spec.target_topic,
            spec.partition,
            (spec.producer_id, spec.producer_epoch),
            worker.rows.bytes_of(spec.row),
        )
        self.native.runner = self
        self.source_broker: SourceBroker | None = None
        self.target_broker: TargetBroker | None = None
        self.state = LaneState.STARTING
        # Above zero: an earlier worker had this lane, and left its checkpoint.
        self._placed = worker.rows.get(spec.row, "version") > 0
        self._in_doubt = self._placed  # requests whose answers nobody heard may still be landing on the target
        self._stop_offset = worker.rows.get(spec.row, "stop_offset") if self._placed else NEVER
        self._procedure: asyncio.Task[None] | None = None
        self._draining = False
        self._backoff = Backoff(limit_ms=RETRY_MS_MAX)
        self._suspect = (-1, 0)  # position, tries there
        self._troubled_at = -1  # position when something last went wrong
        self._topic_ids = {self.source: spec.topic_id, self.target: NO_ID}  # NO_ID: not known yet

    # ---- states ----

    def _change(self, state: LaneState, reason: str = "") -> None:
        self.state = state
        self.worker.lane_changed(self, state, reason)

    @property
    def _position(self) -> int:
        return self.worker.rows.checkpoint(self.spec.row).position

    def start(self) -> None:
        self._change(LaneState.STARTING)
        self._run(self._place())

    def drain(self) -> None:
        """Fetches nothing more, and begins nothing new: what is under way may still settle."""
        self._draining = True
        if self._procedure:
            self._procedure.cancel()
        self.native.set_source(None, -1)

    @property
    def settled(self) -> bool:
        return not (self.native.in_flight or (self.native.running and self.native.queued))

    async def close(self) -> None:
        if self._procedure:
            self._procedure.cancel()
            await asyncio.gather(self._procedure, return_exceptions=True)
        self.native.halt()

    def _run(self, procedure: Coroutine[Any, Any, None]) -> None:
        if self._procedure:
            self._procedure.cancel()
        self._procedure = asyncio.ensure_future(self._guard(procedure))

    async def _guard(self, procedure: Coroutine[Any, Any, None]) -> None:
        try:
            await procedure
        except LaneStopped as stopped:
            self.native.halt()
            self._change(stopped.state, stopped.reason)
        except Exception as error:
            self.native.halt()
            self._change(LaneState.FAILED, f"our own fault, please report it: {error!r}")
            raise

    # ---- what goes wrong ----

    def on_event(self, event: Event) -> None:
        """Decides what follows. The core has already stopped what had to stop."""
        if self.state.is_final or self._draining:
            return
        match event.kind:
            case "fetch_error":
                self._on_fetch_error(event.code)
            case "cannot_take":
                self._on_cannot_take(VERDICTS[event.code], event.first)
            case "diverged":
                self._run(self._diverged(event.first, event.second))
            case "produce_error":
                self._on_produce_error(event.code, event.text)
            case "offset_drift":
                self._replace(f"an answer names offset {event.second} where {event.first} was due")
            case "answer_lost":
                self._in_doubt = True
                self._replace(f"no answer to a Produce: {event.text}")

    def _on_fetch_error(self, code: int) -> None:
        row = kafka_error(code)
        if code == OFFSET_OUT_OF_RANGE:
            self._run(self._out_of_range())
        elif row.action in (Action.RETRY, Action.REFRESH) or code in UNAUTHORIZED:
            self._run(self._find_source(f"source: {row.name}: {row.meaning}", code))
        else:
            self._run(self._stop(LaneState.FAILED, f"source: {row.name}: {row.meaning}"))

    def _on_cannot_take(self, verdict: str, offset: int) -> None:
        reason = f"batch at source offset {offset}: {WHY[verdict]}"
        if verdict == "refuse_malformed" and self._may_try_again():
            self._replace(reason)
        else:
            self._run(self._stop(LaneState.FAILED, reason))

    def _on_produce_error(self, code: int, words: str) -> None:
        row = kafka_error(code)
        reason = f"target: {row.name}: {words or row.meaning}"
        suspect = code in (UNKNOWN_SERVER_ERROR, CORRUPT_MESSAGE)
        stops = row.action in (Action.DIVERT, Action.STOP) and code not in UNAUTHORIZED
        if (suspect and not self._may_try_again()) or (stops and not suspect):
            self._run(self._stop(LaneState.FAILED, f"{reason} (batch at source offset {self._position})"))
        else:
            self._replace(reason, UNAUTHORIZED_PAUSE_S if code in UNAUTHORIZED else 0)

    def _may_try_again(self) -> bool:
        position, tries = self._suspect
        tries = tries + 1 if position == self._position else 1
        self._suspect = (self._position, tries)
        return tries < SUSPECT_TRIES

    def on_broker_down(self, broker: object, error: ReplicatorError) -> None:
        """The broker that this lane stands at has no connection any more."""
        if self.state.is_final or self._draining or (self._procedure and not self._procedure.done()):
            return
        if broker is self.target_broker:
            self._replace(str(error))
        elif broker is self.source_broker:
            self._run(self._find_source(str(error)))

    # ---- procedures ----

    def _pause(self, reason: str) -> None:
        """Waiting begins short again if something was settled since the last trouble: that one is over."""
        if self._position != self._troubled_at:
            self._backoff.reset()
            self._troubled_at = self._position
        self._change(LaneState.PAUSED, reason)

    def _replace(self, reason: str, pause_s: float = 0) -> None:
        self.native.halt()
        self._pause(reason)
        self._run(self._place(pause_s or self._backoff.next_s()))

    async def _place(self, pause_s: float = 0) -> None:
        """Puts the halted lane where it belongs, however long that takes. Raises LaneStopped."""
        while True:
            await asyncio.sleep(pause_s)
            try:
                await self._drained()
                await self._refresh(self.target)
                await self._refresh(self.source)
                await self._resume()
                break
            except ClusterError as error:
                self._may_retry(error)
                pause_s = UNAUTHORIZED_PAUSE_S if error.code in UNAUTHORIZED else self._backoff.next_s()
            except NetworkError as error:
                self._change(LaneState.PAUSED, str(error))
                pause_s = self._backoff.next_s()

    async def _refresh(self, partition: Partition) -> None:
        """A fresh look at who leads; a topic that is missing for good, or is another by now, stops the lane."""
        gone = LaneState.FAILED if partition is self.source else LaneState.TARGET_LOST
        for attempt in range(MISSING_TRIES):
            await partition.cluster.refresh([partition.topic])
            if partition.topic in partition.cluster.topics:
                break
            await asyncio.sleep(0.2 * (attempt + 1))
        else:
            raise LaneStopped(gone, f"topic {partition.topic} no longer exists on {partition.cluster.alias}")
        self._check_identity(partition, partition.cluster.topics[partition.topic].topic_id)

    def _check_identity(self, partition: Partition, now: bytes) -> None:
        """Raises LaneStopped when the topic has another id than it had."""
        then = self._topic_ids[partition]
        if then == NO_ID:
            self._topic_ids[partition] = now
        elif now not in (then, NO_ID):
            what = "topic was deleted and made again: another log under the same name"
            if partition is self.source:
                raise LaneStopped(LaneState.RECREATED, f"the source {what}")
            raise LaneStopped(LaneState.TARGET_LOST, f"the target {what}")

    def _may_retry(self, error: ClusterError) -> None:
        if error.row.action in (Action.RETRY, Action.REFRESH) or error.code in UNAUTHORIZED:
            self._change(LaneState.PAUSED, str(error))
        else:
            raise LaneStopped(LaneState.FAILED, str(error))

    async def _drained(self) -> None:
        """Waits until nothing of this lane is in flight: answered, or given up with its connection."""
        while self.native.in_flight:
            await asyncio.sleep(0.005)

    async def _resume(self) -> None:
        if self._placed:
            checkpoint = self.worker.rows.checkpoint(self.spec.row)
            landed = await self._all_landed(checkpoint)
        else:
            checkpoint = await self._first_checkpoint(await read_tail(self.target))
            landed = 0
        self._join_target()
        self.native.resume(checkpoint, landed, self._stop_offset)
        self._placed, self._in_doubt = True, False
        self._join_source(self._leader(self.source))
        self._change(LaneState.COPYING)
        self.worker.pump_soon()

    async def _first_checkpoint(self, tail: LogTail) -> Checkpoint:
        """Of a lane that never ran; settles where it is to stop, too. Its target must be empty."""
        if tail.end_offset:
            raise LaneStopped(
                LaneState.FAILED,
                f"the target partition is not empty (its log ends at {tail.end_offset}) and nothing says that these"
                " records are ours; use an empty topic, or rename",
            )
        start = await self._start_offset()
        if self.spec.stop == "now":
            self._stop_offset = await find_offset(self.source, END)
        elif self.spec.stop != "never":
            self._stop_offset = min(self.spec.stop, await find_offset(self.source, END))
        return Checkpoint(start, tail.end_offset, 0)

    async def _start_offset(self) -> int:
        start = self.spec.start
        if isinstance(start, StartAt):
            offset = await find_offset(self.source, start.timestamp_ms)
            if offset == await find_offset(self.source, END):
                return offset
            # The batch is the unit that moves: begin with the whole one that holds the offset.
            first = open_batch((await fetch_slice(self.source, offset, 1)).records)
            log_start = await find_offset(self.source, START)
            return max(log_start, min(offset, first.base_offset)) if first else offset
        return await find_offset(self.source, START if start == "earliest" else END)

    async def _all_landed(self, checkpoint: Checkpoint) -> int:
        """As `_landed`, but not before requests of a lost connection have stopped landing.

        The sequence would refuse them, or recognise ours behind them, but for old records a broker keeps no sequence.
        """
        landed = self._landed(checkpoint, await read_tail(self.target))
        while self._in_doubt:
            before = landed
            await asyncio.sleep(STILL_S)
            landed = self._landed(checkpoint, await read_tail(self.target))
            if landed == before:
                break
        return landed

    def _landed(self, checkpoint: Checkpoint, tail: LogTail) -> int:
        """How many records beyond the checkpoint the target holds. Raises LaneStopped when that cannot be told."""
        beyond = tail.end_offset - checkpoint.target_next
        if beyond < 0:
            raise LaneStopped(
                LaneState.TARGET_LOST,
                f"the target's log ends at {tail.end_offset}, but {checkpoint.target_next} was acknowledged",
            )
        if beyond and self._beyond(checkpoint, tail) != beyond:
            raise LaneStopped(
                LaneState.FAILED,
                f"target offsets {checkpoint.target_next} to {tail.end_offset - 1} are not all ours: only the link may"
                " write to this topic",
            )
        if not beyond and tail.last and self._beyond(checkpoint, tail):
            raise LaneStopped(
                LaneState.TARGET_LOST,
                f"the target's last batch, at offset {tail.last.base_offset}, is not the one acknowledged there",
            )
        return beyond

    def _beyond(self, checkpoint: Checkpoint, tail: LogTail) -> int:
        """By how many records the sequence of the target's last batch leads the checkpoint; -1 if it is not ours."""
        last = tail.last
        if last is None or (last.producer_id, last.producer_epoch) != (self.spec.producer_id, self.spec.producer_epoch):
            return -1
        # Not the count: what the log cleaner leaves of a batch keeps its span.
        return (last.base_sequence + last.last_offset_delta + 1 - checkpoint.sequence) & SEQUENCE_MASK

    def _leader(self, partition: Partition) -> Leader:
        leader = partition.cluster.leader(partition.topic, partition.index)
        if leader is None:
            raise ClusterError(5, where=partition.where)
        return leader

    def _join_target(self) -> None:
        self.target_broker = self.worker.target_broker(self.spec.target, self._leader(self.target).node_id)
        self.native.set_target(self.target_broker.ring)

    def _join_source(self, leader: Leader) -> None:
        self.source_broker = self.worker.source_broker(self.spec.source, leader.node_id)
        self.native.set_source(self.source_broker.ring, leader.epoch)

    async def _find_source(self, reason: str, code: int = 0) -> None:
        """Looks for a leader to fetch from; whatever is queued goes on to the target meanwhile."""
        self.native.set_source(None, -1)
        self._pause(reason)
        pause_s = UNAUTHORIZED_PAUSE_S if code in UNAUTHORIZED else self._backoff.next_s()
        while True:
            await asyncio.sleep(pause_s)
            pause_s = self._backoff.next_s()
            try:
                await self._refresh(self.source)
                leader = self._leader(self.source)
                broker = self.worker.source_broker(self.spec.source, leader.node_id)
                if broker.connected:
                    break
            except LaneStopped as stopped:
                await self._stop(stopped.state, stopped.reason)
            except ClusterError as error:
                self._may_retry(error)
            except NetworkError as error:
                self._change(LaneState.PAUSED, str(error))
        self._join_source(leader)
        self._change(LaneState.COPYING)
        self.worker.pump_soon()

    async def _stop(self, state: LaneState, reason: str) -> None:
        """Stands still, after everything that was taken in before is settled."""
        self.native.set_source(None, -1)
        while self.native.running and (self.native.in_flight or self.native.queued):
            await asyncio.sleep(0.005)
        raise LaneStopped(state, reason)

    async def _out_of_range(self) -> None:
        wanted = self.worker.rows.get(self.spec.row, "fetch_offset")
        try:
            log_start, end = await find_offset(self.source, START), await find_offset(self.source, END)
        except (ClusterError, NetworkError) as error:
            await self._find_source(str(error))
            return
        if wanted < log_start:
            reason = f"source offsets {wanted} to {log_start - 1} are gone: the log starts at {log_start} now"
            await self._stop(LaneState.GAP, reason)
        if wanted > end:
            reason = f"the source's log ends at {end}, but {wanted - 1} was read before: it was truncated"
            await self._stop(LaneState.DIVERGED, reason)
        await self._find_source("the offset was out of range for a moment", OFFSET_OUT_OF_RANGE)

    async def _diverged(self, epoch: int, end_offset: int) -> None:
        reason = (
            f"the source's log was truncated: epoch {epoch} ends at {end_offset}, so records from there on are on the"
            " target but not on the source"
        )
        await self._stop(LaneState.DIVERGED, reason)
