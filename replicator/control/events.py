"""What happens to lanes, written down: a line in the log, a record in the link's events topic, a number for metrics.

To say something never makes anybody wait. Events that cannot be written yet are kept, up to QUEUE_MAX; those beyond are
counted, and the count is a line in the log at once and an event itself as soon as events are written again. What
repeats itself word for word about a lane is said once.
"""

import asyncio
import logging
import math
import time
from collections import Counter
from functools import partial

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from msgspec.structs import asdict, replace

from replicator.config.models import Cluster
from replicator.data.states import LANES_MAX
from replicator.data.transitions import Trigger, severity
from replicator.errors import ConfigError, Where
from replicator.state.records import EventRecord, LaneKey, encode, events_topic

log = logging.getLogger("replicator")

QUEUE_MAX = 10_000  # events that wait for the target
REASON_CHARACTERS_MAX = 2_000
POLL_S = 0.25  # between two looks at what became of events, while any is on its way
FLUSH_POLL_S = 0.02
DROPPED_LOG_S = 60.0  # between two lines about events that are lost, while they are lost
NO_LANE = LaneKey("", -1)

_SETTINGS: dict[str, str | int | float | bool] = {
    "acks": "all",
    "linger.ms": 20,
    "message.timeout.ms": 0,  # never given up: QUEUE_MAX is the limit
    "max.in.flight.requests.per.connection": 1,  # a retry must not change their order
    "queue.buffering.max.messages": QUEUE_MAX,
    "topic.metadata.refresh.interval.ms": 10_000,  # so long a topic counts as refused once it was, else 5 minutes
    "compression.type": "lz4",
}


class EventLog:
    """The events of one link. Use from one event loop; `flush` in the end.

    The topic must exist: see `Topics.ensure`, `EVENTS_SETTINGS`. Raises ConfigError for properties that librdkafka
    does not take.
    """

    def __init__(self, cluster: Cluster, link: str) -> None:
        self.link = link
        self.topic = events_topic(link)
        self.counts: Counter[str] = Counter()  # by kind
        self.dropped = 0  # in all
        self._untold = 0  # dropped, and not in an event yet
        self._why_dropped = ""
        self._warned_at = -DROPPED_LOG_S
        self._is_writing = True  # the last that we heard of an event is that it was written
        self._last: dict[LaneKey, tuple[str, str, str]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._where = Where(cluster.alias, self.topic)
        try:
            self._producer = Producer(cluster.client_properties(control=True) | _SETTINGS)
        except KafkaException as error:
            raise ConfigError(f"{cluster.alias}: {error.args[0].str()}") from None

    def append(self, event: EventRecord) -> None:
        """Says it in the log, and writes it as soon as may be. Never waits; what is lost is counted."""
        key = LaneKey(event.topic, event.partition)
        if self._repeats(key, event):
            return
        self.counts[event.kind] += 1
        if say(event) > logging.DEBUG:
            self._write(key, event)

    async def flush(self, timeout_s: float) -> int:
        """Waits until everything is written; returns how many events were not in time, which are then given up."""
        deadline = time.monotonic() + timeout_s
        self._tell_dropped()
        while len(self._producer) and time.monotonic() < deadline:
            self._producer.poll(0)
            await asyncio.sleep(FLUSH_POLL_S)
        if self._timer:
            self._timer.cancel()
        if len(self._producer):
            self._warned_at = math.inf  # the line below says it
            self._producer.purge()
            self._producer.poll(0)  # tells of each that it was purged
        if self._untold:
            log.warning("%s: %d events were not written: they are in the log only", self._where, self._untold)
        return self._untold

    def _repeats(self, key: LaneKey, event: EventRecord) -> bool:
        words = (event.kind, event.state, event.reason)
        if self._last.get(key) == words:
            return True
        if len(self._last) >= LANES_MAX:
            self._last.clear()
        self._last[key] = words
        return False

    def _write(self, key: LaneKey, event: EventRecord, stands_for: int = 0) -> None:
        """`stands_for`: the event itself tells of so many that were dropped."""
        if len(event.reason) > REASON_CHARACTERS_MAX:
            event = replace(event, reason=event.reason[:REASON_CHARACTERS_MAX] + " ...")
        self._producer.poll(0)
        try:
            self._producer.produce(self.topic, encode(event), encode(key), on_delivery=partial(self._done, stands_for))
        except BufferError:
            self._drop(stands_for, f"{QUEUE_MAX:,} events wait for the target already")
        except KafkaException as error:
            self._drop(stands_for, error.args[0].str())
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(POLL_S, self._look)

    def _done(self, stands_for: int, error: KafkaError | None, _message: Message) -> None:
        """librdkafka's word about an event, from inside `poll`: no place to call it again."""
        if error is not None:
            self._drop(stands_for, error.str())
        else:
            self._is_writing = True

    def _drop(self, stands_for: int, why: str) -> None:
        self._untold += stands_for or 1
        self._why_dropped = why
        self._is_writing = False
        if stands_for:
            return
        self.dropped += 1
        if time.monotonic() - self._warned_at >= DROPPED_LOG_S:
            self._warned_at = time.monotonic()
            log.warning("%s: events are lost, %d so far: %s; they are in the log only", self._where, self.dropped, why)

    def _look(self) -> None:
        self._timer = None
        self._producer.poll(0)
        if self._is_writing:
            self._tell_dropped()
        if len(self._producer) and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(POLL_S, self._look)

    def _tell_dropped(self) -> None:
        """Makes an event of how many are missing. Lost in its turn, it leaves their number as it was."""
        count, self._untold = self._untold, 0
        if count:
            reason = f"{count:,} events were not written: {self._why_dropped}"
            kind = Trigger.EVENTS_DROPPED.kind
            now_ms = time.time_ns() // 1_000_000
            event = EventRecord(now_ms, self.link, NO_LANE.topic, NO_LANE.partition, kind, "", "", reason, -1)
            self._write(NO_LANE, event, count)


def say(event: EventRecord) -> int:
    """The event's line in the log; returns its level."""
    level = severity(event.kind, event.state, event.reason)
    # What goes well is worth a record, but no line for each of thousands of lanes, unless something was in the way.
    routine = level == logging.INFO and event.was != "paused" and not event.reason
    log.log(logging.DEBUG if routine else level, "%s", _line(event), extra={"fields": _fields(event)})
    return level


def _line(event: EventRecord) -> str:
    """`us-eu orders-3: paused: target: NOT_LEADER ...`; what leaves the state as it is says its own name instead."""
    what = event.state if event.state != event.was or event.kind == "state" else event.kind
    reason = f": {event.reason}" if event.reason else ""
    return f"{event.link} {event.topic}-{event.partition}: {what.replace('_', ' ')}{reason}"


def _fields(event: EventRecord) -> dict[str, str | int]:
    """The event as keys of a JSON log line, which has its own time."""
    return {name: value for name, value in asdict(event).items() if name not in ("at_ms", "version")}
