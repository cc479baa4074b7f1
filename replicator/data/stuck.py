"""Two things that stop a lane without any error: a transaction that nobody ends, and retention that comes nearer.

Both watches are fed about once a second with what the last Fetch said, keep a few numbers a lane, and answer with a
trigger when something begins or ends. Times are seconds of any clock that never jumps.
"""

import math
from datetime import UTC, datetime
from typing import NamedTuple

from replicator.data.transitions import Trigger
from replicator.errors import ClusterError, NetworkError, ProtocolError, UnsupportedBroker
from replicator.kafka.codec import Body
from replicator.kafka.log import Partition
from replicator.kafka.messages import DESCRIBE_PRODUCERS

STUCK_AFTER_S = 30.0  # transaction.timeout.ms is 60 s by default for Java producers: worth a word before that
WARN_S = 3_600.0
WINDOW_S = 3_600.0  # rates are over the last half to whole of it: retention comes in steps, a segment at a time
RATE_AFTER_S = 60.0  # of a younger window nothing is concluded


class StuckLso:
    """Says when a lane has stood at the last stable offset, below the high watermark, for too long."""

    def __init__(self, after_s: float = STUCK_AFTER_S) -> None:
        self.after_s = after_s
        self.is_stuck = False
        self._standing_at = -1  # the last stable offset
        self._since_s = 0.0

    def update(self, position: int, last_stable_offset: int, high_watermark: int, now_s: float) -> Trigger | None:
        """LSO_STUCK when it begins, LSO_MOVED when it is over. Offsets that are not known yet are -1."""
        stands = 0 <= last_stable_offset <= position and last_stable_offset < high_watermark
        if not stands or last_stable_offset != self._standing_at:
            self._standing_at, self._since_s = (last_stable_offset if stands else -1), now_s
        was, self.is_stuck = self.is_stuck, stands and now_s - self._since_s >= self.after_s
        if was == self.is_stuck:
            return None
        return Trigger.LSO_STUCK if self.is_stuck else Trigger.LSO_MOVED


async def blocking_producer(partition: Partition) -> str:
    """Who holds the last stable offset back, as far as the leader tells: one sentence, whatever happens.

    Kafka knows producer ids here, no names: with `kafka-transactions.sh find-hanging` and `describe` an operator finds
    the transactional id, if the coordinator still has it.
    """
    body = {"topics": [{"name": partition.topic, "partition_indexes": [partition.index]}]}
    try:
        answer = await partition.cluster.request(DESCRIBE_PRODUCERS, body, partition.leader_id())
        return _spell_blocking(_open_transactions(answer, partition))
    except UnsupportedBroker:
        return "which producer holds it cannot be told: brokers say so from Kafka 2.8 on"
    except (ClusterError, NetworkError, ProtocolError) as error:
        return f"which producer holds it cannot be told: {error}"


def _open_transactions(answer: Body, partition: Partition) -> list[Body]:
    """The partition's producers with an open transaction, the oldest transaction first."""
    rows = [row for topic in answer["topics"] for row in topic["partitions"]]
    row = next((row for row in rows if row["partition_index"] == partition.index), None)
    if row is None:
        raise ProtocolError("DescribeProducers leaves our partition out", where=partition.where)
    if row["error_code"]:
        raise ClusterError(row["error_code"], "DescribeProducers", where=partition.where)
    found = [producer for producer in row["active_producers"] if producer["current_txn_start_offset"] >= 0]
    return sorted(found, key=lambda producer: int(producer["current_txn_start_offset"]))


def _spell_blocking(producers: list[Body]) -> str:
    if not producers:
        return "no producer has a transaction open there any more"
    oldest, *others = producers
    more = f"; {len(others)} more transactions are open behind it" if len(others) > 1 else ""
    more = more or ("; one more transaction is open behind it" if others else "")
    return (
        f"producer id {oldest['producer_id']} epoch {oldest['producer_epoch']} has a transaction open since offset"
        f" {oldest['current_txn_start_offset']}, and wrote last at {_spell_time(oldest['last_timestamp'])}{more}"
    )


def _spell_time(timestamp_ms: int) -> str:
    """A record's timestamp, which may be anything that a producer put there."""
    try:
        return datetime.fromtimestamp(timestamp_ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"timestamp {timestamp_ms}"


class _Sample(NamedTuple):
    at_s: float
    log_start: int
    position: int


class RetentionWatch:
    """Says when, as both move now, the source's log start reaches the position within `warn_s`.

    A lane that has read everything is in no danger, however near the log start comes. Where deletions come in steps
    too far apart to make a rate, the last step counts: another one like it must not reach a position that stands still.
    """

    def __init__(self, warn_s: float = WARN_S) -> None:
        self.warn_s = warn_s
        self.seconds_left = math.inf
        self.is_near = False
        self._older: _Sample | None = None  # rates are measured from here
        self._newer: _Sample | None = None  # and from here on when half a window has gone by
        self._step = 0
        self._log_start = -1

    def update(self, log_start: int, position: int, high_watermark: int, now_s: float) -> Trigger | None:
        """RETENTION_NEAR when it begins, RETENTION_EASED when it is over. Offsets not known yet are -1."""
        if log_start < 0 or position < 0:
            return None
        if 0 <= self._log_start < log_start:
            self._step = log_start - self._log_start
        self._log_start = log_start
        self._remember(_Sample(now_s, log_start, position))
        self.seconds_left = self._seconds_left(log_start, position, now_s) if position < high_watermark else math.inf
        was, self.is_near = self.is_near, self._is_near()
        if was == self.is_near:
            return None
        return Trigger.RETENTION_NEAR if self.is_near else Trigger.RETENTION_EASED

    def _is_near(self) -> bool:
        """Twice as far away as where the warning began it is over, so that it does not come and go."""
        return self.seconds_left <= self.warn_s * (2 if self.is_near else 1)

    def _remember(self, now: _Sample) -> None:
        if self._older is None or self._newer is None:
            self._older = self._newer = now
        elif now.at_s - self._newer.at_s >= WINDOW_S / 2:
            self._older, self._newer = self._newer, now

    def _seconds_left(self, log_start: int, position: int, now_s: float) -> float:
        older = self._older
        if older is None or now_s - older.at_s < RATE_AFTER_S:
            return math.inf
        left = position - log_start
        nearer = (log_start - older.log_start) - (position - older.position)  # offsets since then
        if left < 0 or (nearer == 0 and left <= self._step > 0):
            return 0.0
        return left * (now_s - older.at_s) / nearer if nearer > 0 else math.inf
