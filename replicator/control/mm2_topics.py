"""MirrorMaker 2's internal topics for a link, so that tools which read them go on working: RemoteClusterUtils foremost.

    <source>.checkpoints.internal      on the target: each group's offsets on both sides
    heartbeats, <source>.heartbeats    on the target: that the link is alive; see `_heartbeats`
    mm2-offset-syncs.<other>.internal  on the target or, if the link says so, on the source: where records came to lie

Nothing here is needed by the link itself, whose own records are exact. So nothing here ever stops a lane.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from replicator.config.models import Cluster, Link
from replicator.control.mm2_log import Mm2Client, Mm2Log, Written
from replicator.errors import ClusterError, ConfigError, NetworkError, ProtocolError, ReplicatorError
from replicator.state.mm2_records import (
    HEARTBEATS,
    TEXT_BYTES_MAX,
    Checkpoint,
    Heartbeat,
    OffsetSync,
    checkpoints_topic,
    heartbeats_topic,
    offset_syncs_topic,
)
from replicator.state.records import LaneKey, LaneRecord

TOPIC_AUTHORIZATION_FAILED = 29
SYNCS_MAX = 64  # of a lane in one round: MirrorMaker 2 itself remembers so many of a partition

Lanes = Mapping[LaneKey, LaneRecord]


class Mm2Topics:
    """Of one link, for whoever leads it. What is switched off by `link.mm2_topics` is neither made nor written.

    The clients block, so they have a thread of their own; rounds, and the end, come one after the other.
    """

    def __init__(self, link: Link, source: Cluster, target: Cluster) -> None:
        self._link = link
        self._source = source
        self._target = target
        self._thread = ThreadPoolExecutor(1, "mm2-topics")
        self._clients: dict[str, Mm2Client] = {}
        self._logs: dict[tuple[str, str], Mm2Log] = {}

    async def write_once(self, lanes: Lanes, checkpoints: Iterable[Checkpoint]) -> None:
        """Brings all that is switched on up to date: from the lanes' records, and the groups' offsets as translated.

        Checkpoints carry the group's name on the source and the topic's on the target; only changed ones are written.
        One kind of topic that fails does not keep the others waiting. Raises ReplicatorError, the first one's; the
        next round starts from what the topics say then.
        """
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._write, dict(lanes), list(checkpoints))

    async def close(self) -> None:
        """Waits for the round that is under way, at most some 30 s when a cluster is gone."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._forget)
        self._thread.shutdown(wait=False)

    # ---- a round, in its thread ----

    def _write(self, lanes: Lanes, checkpoints: Sequence[Checkpoint]) -> None:
        options = self._link.mm2_topics
        parts: list[Callable[[], None]] = []
        if options.checkpoints:
            parts.append(lambda: self._write_checkpoints(checkpoints))
        if options.offset_syncs != "off":
            parts.append(lambda: self._write_offset_syncs(lanes))
        if options.heartbeats:
            parts.append(self._write_heartbeats)
        failures = [failure for part in parts if (failure := _failure(part))]
        if any(isinstance(failure, ClusterError | NetworkError) for failure in failures):
            self._forget()
        if failures:
            raise failures[0]

    def _write_checkpoints(self, checkpoints: Sequence[Checkpoint]) -> None:
        topic = checkpoints_topic(self._link.source, self._link.mm2_topics.separator)
        log = self._log(self._target, topic)
        log.read()
        log.append(changed(checkpoints, log.written))

    def _write_offset_syncs(self, lanes: Lanes) -> None:
        on_source = self._link.mm2_topics.offset_syncs == "source"
        cluster, other = (self._source, self._target) if on_source else (self._target, self._source)
        log = self._log(cluster, offset_syncs_topic(other.alias, self._link.mm2_topics.separator))
        log.read()
        log.append(due_syncs(lanes, log.written))

    def _write_heartbeats(self) -> None:
        """`heartbeats` says here that the link lives, `<source>.heartbeats` that this cluster is fed by the source.

        RemoteClusterUtils finds a cluster's upstream by names alone: there must be a topic <source>.heartbeats. With
        MirrorMaker 2 that is the copy of the topic `heartbeats` of the source, which somebody has to write there. We
        do not write to a source, so we write the target's end of it ourselves; unless the source does have such a
        topic and the link copies it to this very name, for then it is a lane's, and nobody else's.
        """
        separator = self._link.mm2_topics.separator
        if separator in self._link.source:
            raise ConfigError(
                f"link {self._link.name}: alias {self._link.source} holds the separator {separator!r}, so"
                " MirrorMaker 2's tools would take it for several clusters",
                hint="choose another alias or mm2_topics.separator, or switch mm2_topics.heartbeats off",
            )
        copied_to = self._copy_of_heartbeats()
        record = Heartbeat(self._link.source, self._link.target, time.time_ns() // 1_000_000).encode()
        for topic in (heartbeats_topic(self._link.source, separator), HEARTBEATS):
            if topic != copied_to:
                self._log(self._target, topic).append([record])
        if copied_to == HEARTBEATS:
            raise ConfigError(
                f"link {self._link.name}: copies heartbeats to heartbeats, where mm2_topics.heartbeats writes",
                hint="leave it out by topics.exclude, rename it, or switch mm2_topics.heartbeats off",
            )

    def _copy_of_heartbeats(self) -> str | None:
        """Where the link copies the source's own topic `heartbeats` to; None if it does not, or there is none."""
        if not self._link.selects(HEARTBEATS):
            return None
        try:
            there = self._client(self._source).exists(HEARTBEATS)
        except ClusterError as error:
            if error.code != TOPIC_AUTHORIZATION_FAILED:
                raise
            there = False  # what we may not see, no lane copies
        return self._link.target_topic(HEARTBEATS) if there else None

    # ---- handles ----

    def _client(self, cluster: Cluster) -> Mm2Client:
        return self._clients.setdefault(cluster.alias, Mm2Client(cluster))

    def _log(self, cluster: Cluster, topic: str) -> Mm2Log:
        new = Mm2Log(self._client(cluster), topic, self._link.replication_factor)
        log = self._logs.setdefault((cluster.alias, topic), new)
        log.open()
        return log

    def _forget(self) -> None:
        self._logs.clear()
        while self._clients:
            self._clients.popitem()[1].close()


def _failure(part: Callable[[], None]) -> ReplicatorError | None:
    try:
        part()
    except ReplicatorError as failure:
        return failure
    return None


def changed(checkpoints: Iterable[Checkpoint], written: Written) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of the checkpoints that say something else than what is written."""
    for checkpoint in checkpoints:
        if len(checkpoint.metadata.encode()) > TEXT_BYTES_MAX:
            checkpoint = checkpoint._replace(metadata="")  # brokers take 4 KiB; the offset matters more than a text
        key, value = checkpoint.encode()
        if written.get(key) != value:
            yield key, value


def due_syncs(lanes: Lanes, written: Written) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of every offset sync that is newer than what is written of its partition, in order."""
    for lane, record in lanes.items():
        # The key does not depend on the offsets.
        key, _ = OffsetSync(lane.topic, lane.partition, 0, 0).encode()
        for upstream, downstream in sync_points(record.segments, record.position, _upstream(key, written)):
            yield OffsetSync(lane.topic, lane.partition, upstream, downstream).encode()


def _upstream(key: bytes, written: Written) -> int:
    try:
        return OffsetSync.decode(key, written[key]).upstream
    except (KeyError, ProtocolError):
        return -1


def sync_points(segments: Iterable[tuple[int, int, int]], position: int, after: int) -> list[tuple[int, int]]:
    """(source offset, target offset) of copied records above source offset `after`, ascending, at most SYNCS_MAX.

    The first record of each segment (source start, target start, length), and the last one below `position`. A lower
    source offset than before would tell MirrorMaker 2 that the log was rewound, and it would throw away what it knows:
    so a branch that starts anew below `after` waits until it has passed it. To leave points out is safe: of an offset
    behind a point MirrorMaker 2 only concludes that it lies behind it on the target, too.
    """
    starts: list[tuple[int, int]] = []
    last = None
    for source, target, length in segments:
        copied = min(length, position - source)
        if copied <= 0:
            continue
        last = (source + copied - 1, target + copied - 1)
        if source > after:
            starts.append((source, target))
            after = source
    if last is None or last[0] <= after:
        return _thinned(starts, SYNCS_MAX)
    return [*_thinned(starts, SYNCS_MAX - 1), last]


def _thinned(points: list[tuple[int, int]], count_max: int) -> list[tuple[int, int]]:
    """The newest, and evenly spaced ones before it."""
    step = -(-len(points) // count_max) or 1
    return points[::-step][::-1]
