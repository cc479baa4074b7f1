"""Every way in which a lane comes from one state to another, in one table: when, how bad, what we do, what you do.

A trigger is what happened; its row says which states it can happen in and where it leads. Nothing else changes a
state: `next_state` refuses what is not in the table. Some rows lead nowhere (`to` is STAY): things to know about a
lane that goes on. What has a policy is asked about it with `by_policy`: its triggers are called after the policy and
its options, `source_gap_continue` and `source_gap_stop`.

`copying` and `tailing` are one state to those who move batches; which of the two it is, and whether a lane has come to
where it was to stop, is told by its figures (`Rows.state`) and becomes a trigger by `by_figures`.
"""

import logging
from enum import Enum
from typing import TYPE_CHECKING, Literal, NamedTuple

from replicator.data.states import LaneState
from replicator.errors import Action, InternalError, kafka_error

if TYPE_CHECKING:
    from replicator.config.models import Policy

DEBUG, INFO, WARNING, ERROR = logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR

UNUSED, STARTING, COPYING, TAILING = LaneState.UNUSED, LaneState.STARTING, LaneState.COPYING, LaneState.TAILING
PAUSED, DONE, FAILED, GAP = LaneState.PAUSED, LaneState.DONE, LaneState.FAILED, LaneState.GAP
DIVERGED, RECREATED, TARGET_LOST = LaneState.DIVERGED, LaneState.RECREATED, LaneState.TARGET_LOST

NEW = (UNUSED,)
MOVING = (COPYING, TAILING)
ALIVE = (STARTING, *MOVING, PAUSED)
STOPPED = (DONE, FAILED, GAP, DIVERGED, RECREATED, TARGET_LOST)
ANY = tuple(LaneState)
STAY = None

UNAUTHORIZED = frozenset({29, 31})  # error codes of topic and cluster authorization
_SUSPECT = frozenset({-1, 2})  # may be the batch's fault: a few tries, then it is
_TOO_LARGE = frozenset({10, 18})
_CODEC_REFUSED = 76

TRANSACTIONS = "transactional writing"
OPERATOR = "an operator's commands"
THROTTLE = "metrics of throttling"
PREFLIGHT = "a check before the start"

_NOTHING = "nothing"
_RESTART = "mend it, then start the link again"
_REPORT = "please report it, with the log"


class Trigger(Enum):
    """What happened to a lane. `kind`, its name in small letters, stands in events and metrics."""

    def __init__(
        self,
        severity: int,
        come_from: tuple[LaneState, ...],
        to: LaneState | None,
        action: str,
        advice: str,
        later: str = "",
    ) -> None:
        self.severity = severity  # a level of `logging`; what is only DEBUG is no event
        self.come_from = come_from
        self.to = to
        self.action = action  # what the product does by itself
        self.advice = advice  # what the operator should do
        self.later = later  # not empty: nothing raises it, or does better than this, before that exists

    @property
    def kind(self) -> str:
        return self.name.lower()

    @property
    def is_final(self) -> bool:
        """True if the lane does nothing more on its own after this."""
        return self.to is not STAY and self.to.is_final

    # fmt: off
    # ---- coming and going ----
    ASSIGNED = (INFO, NEW, STARTING,
        "reads both logs to find where to go on", _NOTHING)
    PARTITION_ADDED = (INFO, NEW, STARTING,
        "has made the partition on the target, and copies it from its start", _NOTHING)
    NOT_PREPARED = (ERROR, (UNUSED, PAUSED), PAUSED,
        "leaves the topic out, and tries again at the next look for topics",
        "see the reason: rights to create or grow topics, a name that is too long, a target topic that was deleted")
    PREPARED = (INFO, (PAUSED,), STARTING,
        "the target has the topic now: goes on", _NOTHING)
    PLACED = (INFO, ALIVE, COPYING,
        "copies from the offset at which the target's log ends", _NOTHING)
    CAUGHT_UP = (DEBUG, (COPYING,), TAILING,
        "copies what is written as it is written", _NOTHING)
    FELL_BEHIND = (DEBUG, (TAILING,), COPYING,
        "copies what is there already", _NOTHING)
    REACHED_STOP = (INFO, MOVING, DONE,
        "has copied all that it was to copy, and is over", _NOTHING)
    DRAINED = (INFO, ALIVE, UNUSED,
        "settled what was under way; its shard is free for another worker", _NOTHING)
    TAKEN_OVER = (WARNING, ANY, UNUSED,
        "lets go of it: another worker owns the shard, and reads the target's log first",
        "nothing, if workers were started, stopped or killed; else look for workers that freeze")
    WORKER_LOST = (WARNING, ALIVE, STARTING,
        "starts another worker, or another owner takes the shard: it reads both logs",
        "nothing; if it comes again, see the worker's last lines in the log")
    RESUMED = (INFO, STOPPED, STARTING,
        "reads both logs to find where to go on",
        _NOTHING, OPERATOR)

    # ---- something is in the way: tried again by itself ----
    SOURCE_AWAY = (WARNING, ALIVE, PAUSED,
        "looks for the partition's leader, forever; what was fetched is still sent",
        "see whether the source's brokers are up and can be reached")
    SOURCE_ERROR = (WARNING, ALIVE, PAUSED,
        "asks again who leads, forever",
        "nothing, unless it lasts: see the source's brokers")
    SOURCE_FOUND = (INFO, ALIVE, COPYING,
        "goes on where it was", _NOTHING)
    TARGET_AWAY = (WARNING, ALIVE, PAUSED,
        "looks for the partition's leader, forever, and reads its log before it sends again",
        "see whether the target's brokers are up and can be reached")
    TARGET_ERROR = (WARNING, ALIVE, PAUSED,
        "tries again, forever, after reading the target's log",
        "nothing, unless it lasts: replicas in sync, disks and load of the target's brokers")
    NOT_PLACED = (WARNING, ALIVE, PAUSED,
        "asks again, forever",
        "nothing, unless it lasts: see the brokers that the reason names")
    ANSWER_LOST = (WARNING, ALIVE, PAUSED,
        "reads the target's log to see what landed; sends nothing on a guess", _NOTHING)
    OUT_OF_STEP = (WARNING, ALIVE, PAUSED,
        "reads the target's log, and goes on behind its last record",
        "nothing, unless it comes again and again: two links with one name?")
    OFFSET_DRIFT = (WARNING, ALIVE, PAUSED,
        "reads the target's log to see whose records are there", _NOTHING)
    BATCH_DAMAGED = (WARNING, ALIVE, PAUSED,
        "fetches it again, three times",
        "nothing yet; see the source brokers' disks")
    BATCH_SUSPECT = (WARNING, ALIVE, PAUSED,
        "sends it again, three times",
        "nothing yet; see the target brokers' logs")
    UNAUTHORIZED = (ERROR, ALIVE, PAUSED,
        "tries again every 30 s, and goes on by itself",
        "give the right back: READ on the source topic; WRITE, READ and DESCRIBE on the target's")
    MAP_NOT_WRITTEN = (WARNING, ALIVE, PAUSED,
        "waits in front of the gap until the target has the offset map's word of it",
        "see whether the link may write to its state and offsets topics, and who leads them")
    BATCH_OPENED = (WARNING, ALIVE, STARTING,
        "opens the batch, and finds the records that the target refuses",
        "see the reason; what becomes of these records is told apart")
    LETTER_NOT_WRITTEN = (ERROR, ALIVE, PAUSED,
        "tries again, forever, and does not pass the record before that",
        "see whether the link may write to its dead-letter topic, and who leads it")
    LOOPS_UNKNOWN = (ERROR, ALIVE, PAUSED,
        "waits in front of the batch and looks again, forever: it might copy back what came from the target",
        "see the reason: the right to read `replicator.*` topics on the source, or the source's brokers")
    LOOPS_KNOWN = (INFO, ALIVE, COPYING,
        "goes on where it was", _NOTHING)
    STALLED = (WARNING, ALIVE, PAUSED,
        "begins again from the target's log",
        _REPORT)
    FROZEN = (WARNING, ALIVE, PAUSED,
        "asks who owns its shard by now, and reads the target's log, before it sends again",
        "see why the process stood still: swapping, a paused machine, SIGSTOP")
    FENCED = (ERROR, ALIVE, PAUSED,
        "reads the state anew; stops if an unknown owner has fenced it",
        _REPORT, TRANSACTIONS)

    # ---- a policy decides ----
    SOURCE_GAP_CONTINUE = (ERROR, ALIVE, STARTING,
        "goes on at the log's start; the offset map keeps the hole",
        "the records in the hole are lost: longer retention on the source, or more workers")
    SOURCE_GAP_STOP = (ERROR, ALIVE, GAP,
        "stands still in front of the hole",
        "decide: policy `source_gap: continue` accepts the hole")
    SOURCE_TRUNCATED_CONTINUE = (ERROR, ALIVE, STARTING,
        "appends the new branch behind the old one; the map marks the fork",
        "the target holds records that the source lost, named in the reason")
    SOURCE_TRUNCATED_STOP = (ERROR, ALIVE, DIVERGED,
        "stands still at the fork, which the reason names",
        "decide: policy `source_truncated: continue`, or delete the target topic and copy anew")
    FOREIGN_WRITES_TOLERATE = (WARNING, ALIVE, STARTING,
        "goes on behind them; the offset map keeps the gap",
        "let only the link write to the target topic")
    FOREIGN_WRITES_FENCE = (ERROR, ALIVE, FAILED,
        "stands still in front of them",
        "take the right to write from others; then policy `foreign_writes: tolerate`, or copy anew")
    RECORD_FAULTS_DLQ = (ERROR, ALIVE, STAY,
        "goes on behind the records, which stand in the dead-letter topic",
        "read them there: replicator dlq; mend the cause, then replay them")
    RECORD_FAULTS_SKIP = (ERROR, ALIVE, STAY,
        "goes on behind the records, which are counted, and a hole in the offset map",
        "policy `record_faults: dlq` would keep them")
    RECORD_FAULTS_STOP = (ERROR, ALIVE, FAILED,
        "stands still in front of the record",
        "decide: policy `record_faults: dlq` or `skip` goes on without it")
    TARGET_LOST_REFILL = (ERROR, ALIVE, STARTING,
        "goes back and copies once more what the target lost",
        "see why the target lost it: unclean leader election, a lost disk")
    TARGET_LOST_STOP = (ERROR, ALIVE, TARGET_LOST,
        "stands still at the target's new end",
        "decide: policy `target_lost: refill` copies it once more")

    # ---- over, until a person acts ----
    SOURCE_DELETED = (ERROR, ALIVE, FAILED,
        "stands still, and keeps the target topic",
        "take the topic out of the link, or restore it")
    SOURCE_RECREATED = (ERROR, ALIVE, RECREATED,
        "stands still: never appends another log under the same name",
        "delete or rename the target topic, then start the link again: it copies the new one")
    SOURCE_CHANGED = (ERROR, ALIVE, FAILED,
        "stands still: the target's last records cannot be found on the source any more",
        "the source compacted or lost them meanwhile: copy the topic anew")
    SOURCE_REFUSED = (ERROR, ALIVE, FAILED,
        "stands still",
        _RESTART)
    TARGET_DELETED = (ERROR, ALIVE, TARGET_LOST,
        "stands still: never makes the topic again and goes on in its middle",
        "start the link under another name to copy the topic whole, or restore it")
    TARGET_RECREATED = (ERROR, ALIVE, TARGET_LOST,
        "stands still: another log under the same name",
        "start the link under another name, with the target topic empty, to copy the topic whole")
    TARGET_CHANGED = (ERROR, ALIVE, TARGET_LOST,
        "stands still: the target's last batch is not the one acknowledged there",
        "see why the target lost it: unclean leader election, a lost disk; copy the topic anew")
    CANNOT_REFILL = (ERROR, ALIVE, TARGET_LOST,
        "stands still: what the target lost cannot be found on the source, or in the offset map, any more",
        "see why the target lost it; copy the topic anew")
    TARGET_NOT_EMPTY = (ERROR, ALIVE, FAILED,
        "stands still, and writes nothing",
        "use an empty topic, or rename")
    TARGET_REFUSED = (ERROR, ALIVE, FAILED,
        "stands still",
        _RESTART)
    CANNOT_PLACE = (ERROR, ALIVE, FAILED,
        "stands still",
        _RESTART)
    CANNOT_TAKE = (ERROR, ALIVE, FAILED,
        "stands still in front of the batch",
        "see the reason; or leave the topic out")
    BATCH_CORRUPT = (ERROR, ALIVE, FAILED,
        "stands still in front of the batch: damage is neither copied nor passed over",
        "see the source brokers' disks; another replica may hold it whole")
    BATCH_TOO_LARGE = (ERROR, ALIVE, FAILED,
        "has split the batch, and stands still: the target takes no part of it",
        "raise max.message.bytes (and segment.bytes) of the target topic, then start the link again")
    BATCH_REFUSED = (ERROR, ALIVE, FAILED,
        "has opened the batch, and stands still: no record of it can be told to be the one at fault",
        "see the reason: message.timestamp limits, records without a key on a compacted topic")
    CODEC_REFUSED = (ERROR, ALIVE, FAILED,
        "has packed the batch anew, and stands still: the target does not take it",
        "see compression.type of the target topic")
    PLUG_IN_FAILED = (ERROR, ALIVE, FAILED,
        "stands still: a transform of the link cannot be loaded here, or does not take its options",
        "see the reason; install it where every worker runs, then start the link again")
    OWN_FAULT = (ERROR, ANY, FAILED,
        "stands still; its neighbours go on",
        _REPORT)

    # ---- to know about a lane that goes on ----
    LSO_STUCK = (WARNING, MOVING, STAY,
        "waits, as every read_committed reader does",
        "end the transaction that the reason names: its application, or kafka-transactions.sh abort")
    LSO_MOVED = (INFO, ANY, STAY,
        "goes on", _NOTHING)
    RETENTION_NEAR = (WARNING, ALIVE, STAY,
        "goes on as fast as it can",
        "longer retention on the source until the lane has caught up, or more workers")
    RETENTION_EASED = (INFO, ANY, STAY,
        "goes on", _NOTHING)
    CHECKPOINT_LATE = (WARNING, ALIVE, STAY,
        "goes on, and waits in front of gaps in the offset map; a crash reads more again",
        "see whether the link may write to its state topic, and who leads it")
    AUDIT_DIFFERS = (ERROR, ANY, STAY,
        "goes on",
        "compare with `replicator verify`; somebody changed one of the logs")
    POLICY_CHANGED = (INFO, ALIVE, STAY,
        "treats records by the new edits, filters or isolation; what was copied before stays as it is", _NOTHING)
    THROTTLED = (INFO, ALIVE, STAY,
        "sends nothing on that connection as long as the broker asks",
        "raise the quota", THROTTLE)
    CLOCK_SKEW = (WARNING, ANY, STAY,
        "goes on: no decision hangs on a wall clock",
        "set the clock", PREFLIGHT)
    TARGET_PARTITIONS_DIFFER = (ERROR, NEW, STAY,
        "makes those that are missing; leaves those beyond alone",
        "make sure that nobody else writes to the partitions beyond", PREFLIGHT)
    EVENTS_DROPPED = (WARNING, ANY, STAY,
        "counts events that could not be written, and says how many",
        "they are in the log")
    # fmt: on


_TRIGGERS = {trigger.kind: trigger for trigger in Trigger}


def next_state(state: LaneState, trigger: Trigger) -> LaneState:
    """Where a lane comes by this. Raises InternalError for what the table does not know."""
    if state not in trigger.come_from:
        raise InternalError(f"a lane that is {state.name.lower()} met {trigger.kind}, which is not in its table")
    return state if trigger.to is STAY else trigger.to


def severity(kind: str, state: str, reason: str) -> int:
    """The log level of an event by its kind; of a kind that is no trigger's (`state`) by the state it led to."""
    if kind in _TRIGGERS:
        return _TRIGGERS[kind].severity
    if state.upper() in LaneState.__members__ and LaneState[state.upper()] > DONE:
        return ERROR
    return WARNING if reason else INFO


Question = Literal["source_gap", "source_truncated", "foreign_writes", "target_lost", "record_faults"]


def by_policy(policy: "Policy", question: Question) -> Trigger:
    """What the topic's policy makes of an event that has one."""
    return _TRIGGERS[f"{question}_{getattr(policy, question)}"]


def by_figures(was: LaneState, now: LaneState) -> Trigger | None:
    """What `Rows.state` has seen between two looks at a lane that moves; None: nothing that has a trigger here."""
    if was == now or was not in MOVING:
        return None
    return {TAILING: Trigger.CAUGHT_UP, COPYING: Trigger.FELL_BEHIND, DONE: Trigger.REACHED_STOP}.get(now)


def by_verdict(verdict: str) -> Trigger:
    """What stops a lane at a batch with this verdict of the native core (`refuse_malformed`: after a few tries)."""
    found = {"refuse_malformed": Trigger.BATCH_CORRUPT, "refuse_tail": Trigger.SOURCE_CHANGED}
    return found.get(verdict, Trigger.CANNOT_TAKE)


def by_fetch_error(code: int) -> Trigger:
    """What an error code in a Fetch response means; not for OFFSET_OUT_OF_RANGE, where the log's ends decide."""
    if code in UNAUTHORIZED:
        return Trigger.UNAUTHORIZED
    retried = kafka_error(code).action in (Action.RETRY, Action.REFRESH)
    return Trigger.SOURCE_ERROR if retried else Trigger.SOURCE_REFUSED


def by_produce_error(code: int) -> Trigger:
    """What an error code in a Produce response means; BATCH_SUSPECT is BATCH_REFUSED after a few tries."""
    if code in UNAUTHORIZED:
        return Trigger.UNAUTHORIZED
    if code in _SUSPECT:
        return Trigger.BATCH_SUSPECT
    if code in _TOO_LARGE:
        return Trigger.BATCH_TOO_LARGE
    if code == _CODEC_REFUSED:
        return Trigger.CODEC_REFUSED
    by_action = {
        Action.RETRY: Trigger.TARGET_ERROR,
        Action.REFRESH: Trigger.TARGET_ERROR,
        Action.RESYNC: Trigger.OUT_OF_STEP,
        Action.DIVERT: Trigger.BATCH_REFUSED,
    }
    return by_action.get(kafka_error(code).action, Trigger.TARGET_REFUSED)


# ---- for people ----


class Line(NamedTuple):
    """A row of the table in words."""

    trigger: str
    severity: str
    come_from: str
    to: str
    action: str
    advice: str
    later: str


_SETS = {ANY: "any", ALIVE: "any that is not over", STOPPED: "any that is over", MOVING: "copying, tailing"}


def table() -> list[Line]:
    """The whole table in words, in its own order. `to` says `(final)` where nothing more happens by itself."""
    return [
        Line(
            trigger.kind,
            logging.getLevelName(trigger.severity).lower(),
            _SETS.get(trigger.come_from, ", ".join(map(spell, trigger.come_from))),
            "stays" if trigger.to is STAY else spell(trigger.to) + " (final)" * trigger.is_final,
            trigger.action,
            trigger.advice,
            trigger.later and f"with {trigger.later}",
        )
        for trigger in Trigger
    ]


def spell(state: LaneState) -> str:
    return state.name.lower().replace("_", " ")
