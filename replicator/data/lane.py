"""One lane's life outside the fast path: getting to its place, and what is done about everything that goes wrong.

While batches flow, nothing here runs. The native core calls a person, so to speak, when something about the lane is
in doubt, having stopped it first; then one of three procedures runs, never two at once:

    _place        read the target's tail, compare it with the checkpoint, go on from exactly there (placement.py)
    _find_source  the source partition has another leader, or none: look for it; what was fetched stays good
    _stop         send what is queued, then stand still with a state and a reason until a person acts
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from replicator._core import VERDICTS, Event, Lane
from replicator.data.disposal import Disposal
from replicator.data.loops import answer
from replicator.data.orders import LaneSpec, TargetTopic
from replicator.data.placement import LaneStopped, Mark, Place, Placement
from replicator.data.reasons import WHY
from replicator.data.refusals import Refusals
from replicator.data.rules import rules_of_lane
from replicator.data.source import SourceBroker
from replicator.data.start import NEVER, first_place
from replicator.data.states import Checkpoint, LaneState
from replicator.data.target import TargetBroker
from replicator.data.transitions import (
    UNAUTHORIZED,
    Trigger,
    by_fetch_error,
    by_policy,
    by_produce_error,
    by_verdict,
    next_state,
)
from replicator.data.watch import STALLED_S, LaneWatch, ripen_later
from replicator.errors import Action, ClusterError, NetworkError, ReplicatorError, kafka_error
from replicator.kafka.backoff import Backoff
from replicator.kafka.cluster import Leader
from replicator.kafka.codec import NO_ID
from replicator.kafka.log import (
    END,
    OFFSET_OUT_OF_RANGE,
    START,
    Partition,
    find_epoch_end,
    find_offset,
    read_tail,
)
from replicator.state.records import LaneRecord, spell_topic_id

if TYPE_CHECKING:
    from replicator.data.ledger import LaneLedger
    from replicator.data.rebuild import Bench
    from replicator.data.worker import Worker

SUSPECT_TRIES = 3  # an error that may be the batch's fault, at the same position
MISSING_TRIES = 5  # looks at the metadata before a topic counts as deleted
UNAUTHORIZED_PAUSE_S = 30.0
BATCH_FAULTS = frozenset({Trigger.BATCH_TOO_LARGE, Trigger.BATCH_REFUSED, Trigger.CODEC_REFUSED})


class LaneRunner:
    """Runs one lane of a worker. `native` is the fast path's half; its events come in by `on_event`.

    `keep` makes its ledger, if its checkpoints are kept on the target cluster; `saved` is what its last owner left
    there. Without a ledger they are in shared memory, for as long as this run lasts.
    """

    def __init__(
        self,
        spec: LaneSpec,
        worker: "Worker",
        saved: LaneRecord | None = None,
        keep: "Callable[[LaneRunner], LaneLedger] | None" = None,
    ) -> None:
        self.spec = spec
        self.worker = worker
        self.source = Partition(worker.clusters[spec.source], spec.topic, spec.partition)
        self.target = Partition(worker.clusters[spec.target], spec.target_topic, spec.partition)
        self.producer = (saved.producer_id, saved.producer_epoch) if saved else (spec.producer_id, spec.producer_epoch)
        durable = keep is not None
        self.loops = worker.loops(spec)
        self.refusals = Refusals(spec, spec.settings, self.loops)
        self.rules = rules_of_lane(spec)
        self._bench: Bench | None = None
        self.disposal = Disposal(self)
        self.native = Lane(
            spec.topic,
            spec.topic_id,
            spec.target_topic,
            spec.partition,
            self.producer,
            worker.rows.bytes_of(spec.row),
            hold_gaps=durable,
            tolerate=durable and spec.policy.foreign_writes == "tolerate",
            terms=self.refusals.terms(),
            producers=self.loops.table if self.loops else None,
        )
        self.native.runner = self
        self.native.linger(spec.batches.linger_ms > 0)
        self.source_broker: SourceBroker | None = None
        self.target_broker: TargetBroker | None = None
        self.state = LaneState.UNUSED
        self.reason = ""
        self.since_ms = 0
        self.ledger = keep(self) if keep else None
        # Its row holds a checkpoint. At first: an earlier process of this worker left it.
        self.placed = not durable and worker.rows.get(spec.row, "version") > 0
        # Requests whose answers nobody heard may still be landing on the target.
        self._in_doubt = self.placed or saved is not None
        self._stop_offset = worker.rows.get(spec.row, "stop_offset") if self.placed else NEVER
        self._procedure: asyncio.Task[None] | None = None
        self.draining = False
        self._backoff = Backoff(limit_ms=spec.policy.retry_delay_max_ms)
        self._watch = LaneWatch(self)
        self._suspect = (-1, 0, 0.0)  # position, tries there, since when
        self._troubled_at = -1  # position when something last went wrong
        self._adjust: Callable[[Place], Place] | None = None  # what a policy makes of the next place found
        # NO_ID: not known yet
        self._topic_ids = {self.source: spec.topic_id, self.target: NO_ID}

    # ---- states ----

    def _change(self, trigger: Trigger, reason: str = "") -> None:
        """What happened, and the state that it leads to. Raises InternalError when it cannot happen in this state."""
        state = next_state(self.state, trigger)
        if state is not self.state:
            self.since_ms = int(time.time() * 1000)
        self.state, self.reason = state, reason
        self.worker.lane_changed(self, trigger, reason)

    def tell(self, trigger: Trigger, reason: str) -> None:
        """Something that a person should know of, whatever the state."""
        self.worker.lane_event(self, trigger, reason)

    @property
    def shown_state(self) -> LaneState:
        """`state`, with `copying`, `tailing` and `done` told apart."""
        return self.worker.rows.state(self.spec.row)

    @property
    def checkpoint(self) -> Checkpoint:
        return self.worker.rows.checkpoint(self.spec.row)

    @property
    def version(self) -> int:
        """Grows with each checkpoint."""
        return self.counter("version")

    def counter(self, column: str) -> int:
        return self.worker.rows.get(self.spec.row, column)

    def topic_id(self, partition: Partition) -> bytes:
        """Of the lane's source or target: the incarnation of the topic that this lane is about."""
        return self._topic_ids[partition]

    @property
    def _position(self) -> int:
        return self.checkpoint.position

    def start(self) -> None:
        self._change(Trigger.ASSIGNED)
        self._run(self._place())

    def drain(self) -> None:
        """Fetches nothing more, and begins nothing new: what is under way may still settle."""
        self.draining = True
        self.native.linger(False)
        if self._procedure:
            self._procedure.cancel()
        self.native.set_source(None, -1)

    @property
    def settled(self) -> bool:
        waits = self.native.queued or (self._bench and self._bench.waits)  # what has its letters must go with them
        return not (self.native.in_flight or (self.native.running and waits))

    async def close(self) -> None:
        if self._procedure:
            self._procedure.cancel()
            await asyncio.gather(self._procedure, return_exceptions=True)
        self.native.halt()
        self.native.runner = None  # without the circle it goes at once, and lets go of its row

    def _run(self, procedure: Coroutine[Any, Any, None]) -> None:
        if self.draining:
            procedure.close()  # the next owner finds out
            return
        if self._procedure:
            self._procedure.cancel()
        self._procedure = asyncio.ensure_future(self._guard(procedure))
        # Cancelled before its first step, the task would leave its procedure behind, never begun and never closed.
        self._procedure.add_done_callback(lambda _: procedure.close())

    async def _guard(self, procedure: Coroutine[Any, Any, None]) -> None:
        try:
            await procedure
        except LaneStopped as stopped:
            self.native.halt()
            self._change(stopped.trigger, stopped.reason)
        except Exception as error:
            self.native.halt()
            self._change(Trigger.OWN_FAULT, f"our own fault, please report it: {error!r}")
            raise

    # ---- what goes wrong ----

    def on_event(self, event: Event) -> None:
        """Decides what follows. The core has already stopped what had to stop."""
        if self.state.is_final or self.draining:
            if event.kind == "merge_ahead":
                self.native.decline_merge(True)  # or what is queued would never be sent
            return
        match event.kind:
            case "fetch_error":
                self._on_fetch_error(event.code)
            case "cannot_take":
                self.on_cannot_take(VERDICTS[event.code], event.first, event.second)
            case "diverged":
                self._run(self._diverged(event.first, event.second))
            case "produce_error":
                self._on_produce_error(event.code, event.text)
            case "offset_drift":
                self._replace(
                    Trigger.OFFSET_DRIFT, f"an answer names offset {event.second} where {event.first} was due"
                )
            case "answer_lost":
                self._in_doubt = True
                self._replace(Trigger.ANSWER_LOST, f"no answer to a Produce: {event.text}")
            case _:
                self._on_waiting(event.kind)

    def _on_waiting(self, kind: str) -> None:
        """Nothing is wrong, but some batches do not go before we have done our part."""
        match kind:
            case "gap_ahead":
                self.announce_soon()
            case "lingers":
                ripen_later(self)
            case "merge_ahead":
                self._on_bench.merge_asked = True
                self.worker.rebuild_soon(self._on_bench)
            case "rebuild_ahead":
                self.worker.rebuild_soon(self._on_bench)

    def waits(self, trigger: Trigger, reason: str) -> None:
        self._change(trigger, reason)

    def announce_soon(self) -> None:
        self.worker.spawn(self._announce())

    async def _announce(self) -> None:
        """Has the gaps that queued batches stand behind written down, so that they may go."""
        if self.ledger is None:
            return
        try:
            await self.ledger.announce()
        except (ClusterError, NetworkError) as error:
            if not self.state.is_final and not self.draining:
                self._replace(Trigger.MAP_NOT_WRITTEN, f"the offset map cannot be written: {error}")

    def _on_fetch_error(self, code: int) -> None:
        row = kafka_error(code)
        trigger, reason = by_fetch_error(code), f"source: {row.name}: {row.meaning}"
        if code == OFFSET_OUT_OF_RANGE:
            self._run(self._out_of_range())
        elif trigger.is_final:
            self.stop(trigger, reason)
        else:
            self._run(self._find_source(trigger, reason))

    def on_cannot_take(self, verdict: str, offset: int, producer_id: int = -1) -> None:
        if self.loops and verdict == "refuse_producer":
            self.worker.spawn(answer(self, self.loops, producer_id))
            return
        reason = f"batch at source offset {offset}: {WHY[verdict]}"
        if verdict == "refuse_malformed":
            self.on_damage(reason)
        else:
            self.stop(by_verdict(verdict), reason)

    def on_damage(self, reason: str) -> None:
        if self._may_try_again():
            self._replace(Trigger.BATCH_DAMAGED, reason)
        else:
            self.stop(Trigger.BATCH_CORRUPT, reason)

    def _on_produce_error(self, code: int, words: str) -> None:
        row = kafka_error(code)
        trigger, reason = by_produce_error(code), f"target: {row.name}: {words or row.meaning}"
        if trigger is Trigger.BATCH_SUSPECT and not self._may_try_again():
            trigger = Trigger.BATCH_REFUSED
        if trigger in BATCH_FAULTS:
            self._on_refused(trigger, code, words or row.meaning, reason)
        elif trigger.is_final:
            self.stop(trigger, f"{reason} (batch at source offset {self._position})")
        else:
            self._replace(trigger, reason, UNAUTHORIZED_PAUSE_S if trigger is Trigger.UNAUTHORIZED else 0)

    def _on_refused(self, trigger: Trigger, code: int, words: str, reason: str) -> None:
        """The target does not take this batch. It is opened, and the records at fault are told from the others."""
        batch = self.native.refused()
        what = f"{reason} (batch at source offset {batch.source_offset})"
        if not self.refusals.refused(code, words, batch):
            self.stop(trigger, what)
            return
        self.native.set_terms(self.refusals.terms())
        self._change(Trigger.BATCH_OPENED, what)
        self.native.halt()
        self._run(self._place())

    @property
    def _on_bench(self) -> "Bench":
        self._bench = self._bench or self.worker.bench(self)
        return self._bench

    def change_settings(self, settings: TargetTopic) -> None:
        self.refusals.change(settings)
        self.native.set_terms(self.refusals.terms())

    def on_letter_lost(self, why: str) -> None:
        self.disposal.passed(self._position)
        if not self.draining:
            self._replace(Trigger.LETTER_NOT_WRITTEN, f"a dead letter cannot be written: {why}")

    def stop(self, trigger: Trigger, reason: str) -> None:
        self._run(self._stop(trigger, reason))

    def _may_try_again(self) -> bool:
        """After an error that may pass, or be the fault of the batch at this position."""
        (position, tries, since_s), now_s = self._suspect, time.monotonic()
        if position != self._position:
            tries, since_s = 0, now_s
        self._suspect = (self._position, tries + 1, since_s)
        timeout_ms = self.spec.policy.retry_timeout_ms
        return tries + 1 < SUSPECT_TRIES or timeout_ms < 0 or now_s - since_s < timeout_ms / 1000

    def on_broker_down(self, broker: object, error: ReplicatorError) -> None:
        """The broker that this lane stands at has no connection any more."""
        if self.state.is_final or self.draining or (self._procedure and not self._procedure.done()):
            return
        if broker is self.target_broker:
            self._replace(Trigger.TARGET_AWAY, str(error))
        elif broker is self.source_broker:
            self._run(self._find_source(Trigger.SOURCE_AWAY, str(error)))

    def watch(self, now_s: float) -> None:
        """Once a second or so, whatever happens."""
        self.disposal.tell_if_due()
        self.disposal.passed(self._position)
        if self.refusals.passed(self._position, self.checkpoint.target_next) or self.refusals.has_clock:
            self.native.set_terms(self.refusals.terms())
        if self._watch.look(now_s):
            self._replace(Trigger.STALLED, f"batches wait to be sent, and none is on its way for {STALLED_S:.0f} s")

    def on_frozen(self, stood_s: float, pause_s: float) -> None:
        """This process stood still: somebody else may have gone on with this lane."""
        if self.draining:
            self.native.halt()  # the next owner finds out
        elif not self.state.is_final:
            self._in_doubt = True
            reason = f"this worker stood still for {stood_s:.1f} s: looking who owns its lanes now"
            self._replace(Trigger.FROZEN, reason, pause_s)

    # ---- procedures ----

    def _pause(self, trigger: Trigger, reason: str) -> None:
        """Waiting begins short again if something was settled since the last trouble: that one is over."""
        if self._position != self._troubled_at:
            self._backoff.reset()
            self._troubled_at = self._position
        self._change(trigger, reason)

    def _replace(self, trigger: Trigger, reason: str, pause_s: float = 0) -> None:
        self.native.halt()
        self._pause(trigger, reason)
        self._run(self._place(pause_s or self._backoff.next_s()))

    async def _place(self, pause_s: float = 0) -> None:
        """Puts the halted lane where it belongs, however long that takes. Raises LaneStopped."""
        while True:
            await asyncio.sleep(pause_s)
            try:
                await self._drained()
                await self._refresh(self.target)
                await self._refresh(self.source)
                self._check_left()
                await self._resume()
                break
            except ClusterError as error:
                self._may_retry(error)
                pause_s = UNAUTHORIZED_PAUSE_S if error.code in UNAUTHORIZED else self._backoff.next_s()
            except NetworkError as error:
                self._change(Trigger.NOT_PLACED, str(error))
                pause_s = self._backoff.next_s()

    async def _refresh(self, partition: Partition) -> None:
        """A fresh look at who leads; a topic that is missing for good, or is another by now, stops the lane."""
        gone = Trigger.SOURCE_DELETED if partition is self.source else Trigger.TARGET_DELETED
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
            raise self._made_again(partition)

    def _check_left(self) -> None:
        """Compares both topics with those that the last owner left. If both are others, the lane begins anew; if one
        is, it cannot go on: raises LaneStopped."""
        if self.placed or not self.ledger or not (saved := self.ledger.saved):
            return
        changed = [
            partition
            for partition, left in ((self.source, saved.topic_id), (self.target, saved.target_topic_id))
            if left and any(self.topic_id(partition)) and left != spell_topic_id(self.topic_id(partition))
        ]
        if len(changed) == 2:
            self.ledger.begin_anew()
        elif changed:
            raise self._made_again(changed[0])

    def _made_again(self, partition: Partition) -> LaneStopped:
        what = "topic was deleted and made again: another log under the same name"
        if partition is self.source:
            return LaneStopped(Trigger.SOURCE_RECREATED, f"the source {what}")
        return LaneStopped(Trigger.TARGET_RECREATED, f"the target {what}")

    def _may_retry(self, error: ClusterError) -> None:
        if error.code in UNAUTHORIZED:
            self._change(Trigger.UNAUTHORIZED, str(error))
        elif error.row.action in (Action.RETRY, Action.REFRESH):
            self._change(Trigger.NOT_PLACED, str(error))
        else:
            raise LaneStopped(Trigger.CANNOT_PLACE, str(error))

    async def _drained(self) -> None:
        """Waits until nothing of this lane is in flight: answered, or given up with its connection."""
        while self.native.in_flight:
            await asyncio.sleep(0.005)

    async def _resume(self) -> None:
        place = await self._find_place()
        if self._adjust:
            place = self._adjust(place)
        if self.ledger:
            await self.ledger.place(place, forget=self._adjust is not None)
        if place.trigger:
            self._change(place.trigger, place.news)
        self._join_target()
        self.native.resume(place.checkpoint, place.landed, self._stop_offset, place.segments)
        if not self.placed and self.ledger and self.ledger.has_other_policy:
            self.tell(Trigger.POLICY_CHANGED, f"from source offset {place.checkpoint.position} on")
        self.placed, self._in_doubt, self._adjust = True, False, None
        self._join_source(self._leader(self.source))
        self._change(Trigger.PLACED)
        self.worker.pump_soon()

    async def _find_place(self) -> Place:
        mark = self._mark()
        if mark is None:
            tail, keeps_map = await read_tail(self.target), self.ledger is not None
            start, self._stop_offset = await first_place(self.source, tail, self.spec, keeps_map)
            return Place(start)
        spec, by_map = self.spec, self.ledger is not None
        placement = Placement(self.source, self.target, self.producer, spec.policy, by_map, self.rules, spec.link)
        return await placement.find(mark, self._in_doubt)

    def _mark(self) -> Mark | None:
        """What is known for certain: by the row, once the lane was placed; else by what its last owner left."""
        if self.placed:
            return Mark(self.checkpoint, self.native.segments(), self.ledger.ahead if self.ledger else ())
        return self.ledger.mark() if self.ledger else None

    def _leader(self, partition: Partition) -> Leader:
        leader = partition.cluster.leader(partition.topic, partition.index)
        if leader is None:
            raise ClusterError(5, where=partition.where)
        return leader

    def _join_target(self) -> None:
        self.target_broker = self.worker.target_broker(self.spec.target, self._leader(self.target).node_id)
        self.native.set_target(self.target_broker.ring)

    def _join_source(self, leader: Leader) -> None:
        self.source_broker = self._broker_of(leader)
        self.native.set_source(self.source_broker.ring, leader.epoch)

    def _broker_of(self, leader: Leader) -> SourceBroker:
        committed = self.spec.isolation == "read_committed"
        return self.worker.source_broker(self.spec.source, leader.node_id, committed)

    async def _find_source(self, trigger: Trigger, reason: str) -> None:
        """Looks for a leader to fetch from; whatever is queued goes on to the target meanwhile."""
        self.native.set_source(None, -1)
        self._pause(trigger, reason)
        pause_s = UNAUTHORIZED_PAUSE_S if trigger is Trigger.UNAUTHORIZED else self._backoff.next_s()
        while True:
            await asyncio.sleep(pause_s)
            pause_s = self._backoff.next_s()
            try:
                await self._refresh(self.source)
                leader = self._leader(self.source)
                if self._broker_of(leader).connected:
                    break
            except LaneStopped as stopped:
                await self._stop(stopped.trigger, stopped.reason)
            except ClusterError as error:
                self._may_retry(error)
            except NetworkError as error:
                self._change(Trigger.SOURCE_AWAY, str(error))
        self._join_source(leader)
        self._change(Trigger.SOURCE_FOUND)
        self.worker.pump_soon()

    async def _stop(self, trigger: Trigger, reason: str) -> None:
        """Stands still, after everything that was taken in before is settled."""
        await self._settle()
        raise LaneStopped(trigger, reason)

    async def _settle(self) -> None:
        """Fetches nothing more, and waits until what was taken in is acknowledged, or given up."""
        self.native.set_source(None, -1)
        self.native.ripen()
        native, bench = self.native, self._bench
        while native.running and (native.in_flight or native.queued or (bench and bench.is_at_work)):
            await asyncio.sleep(0.005)

    async def _out_of_range(self) -> None:
        wanted = self.counter("fetch_offset")
        try:
            log_start, end = await find_offset(self.source, START), await find_offset(self.source, END)
        except (ClusterError, NetworkError) as error:
            await self._find_source(Trigger.SOURCE_ERROR, str(error))
            return
        if wanted < log_start:
            await self._pass_gap(wanted, log_start)
        elif wanted > end:
            reason = f"the source's log ends at {end}, but {wanted - 1} was read before: it was truncated"
            await self._fork(end, -1, reason)
        elif await self._knows_our_epoch(wanted):
            await self._find_source(Trigger.SOURCE_ERROR, "the offset was out of range for a moment")

    async def _knows_our_epoch(self, wanted: int) -> bool:
        """False: the leader never heard of the epoch that we read last, an unclean election went back before it. A
        leader says `out of range` then, too. The lane has gone on or stopped there."""
        epoch = self.checkpoint.leader_epoch
        if epoch < 0:
            return True
        try:
            known, end_offset = await find_epoch_end(self.source, epoch)
        except (ClusterError, NetworkError):
            return True  # looked at again with the next answer
        if known == epoch and end_offset >= wanted:
            return True
        reason = f"the source's leader knows epoch {known} up to offset {end_offset}, we read epoch {epoch}: truncated"
        await self._fork(min(end_offset, wanted) if end_offset >= 0 else wanted, known, reason)
        return False

    async def _pass_gap(self, wanted: int, log_start: int) -> None:
        trigger = by_policy(self.spec.policy, "source_gap")
        reason = f"source offsets {wanted} to {log_start - 1} are gone: the log starts at {log_start} now"
        await self._go_on(trigger, reason, lambda place: place.behind_gap(log_start))

    async def _diverged(self, epoch: int, end_offset: int) -> None:
        reason = (
            f"the source's log was truncated: epoch {epoch} ends at {end_offset}, so records from there on are on the"
            " target but not on the source"
        )
        await self._fork(end_offset, epoch, reason)

    async def _fork(self, end_offset: int, epoch: int, reason: str) -> None:
        def at_fork(place: Place) -> Place:
            self.disposal.forget(end_offset)
            return place.at_fork(end_offset, epoch)

        await self._go_on(by_policy(self.spec.policy, "source_truncated"), reason, at_fork)

    async def _go_on(self, trigger: Trigger, reason: str, adjust: "Callable[[Place], Place]") -> None:
        """At a place that a policy has chosen, or not at all."""
        if trigger.is_final:
            await self._stop(trigger, reason)
        await self._settle()
        self.native.halt()
        self._adjust = adjust
        self._change(trigger, reason)
        await self._place()
