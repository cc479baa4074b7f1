"""The supervisor: the parent process. It decides what is replicated, and never sees a record.

For each link it asks the source which topics there are, makes what is missing on the target, and gives every partition
to a worker as a lane; then it looks again every `refresh_topics_ms`. What lanes do it reads from shared memory, what
happens to them it hears from the workers.
"""

import asyncio
import logging
import tempfile
import zlib
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from replicator._core import Pool
from replicator.config.models import Config, Link
from replicator.control.topics import Topics
from replicator.control.workers import WorkerProcess
from replicator.data.orders import LaneChanged, LaneSpec, Setup
from replicator.data.states import ROW_BYTES, ROWS_MAX, LaneState, Rows
from replicator.errors import Action, ClusterError, NetworkError, ReplicatorError, Where
from replicator.kafka.backoff import Backoff
from replicator.kafka.cluster import Cluster, TopicMetadata
from replicator.kafka.connection import ConnectionSettings
from replicator.kafka.messages import INIT_PRODUCER_ID

log = logging.getLogger("replicator")

SHARDS = 64
CONTROL_POOL_BYTES = 16 << 20
PRODUCER_ID_TRIES = 100
REACH_TRIES = 3
UNKNOWN_TOPIC = 3

Stop = Literal["never", "now"] | int


@dataclass
class LaneInfo:
    """A lane as the supervisor knows it; figures and state are in the shared row of the same number."""

    spec: LaneSpec
    reason: str = ""


class _Known(NamedTuple):
    """A source topic that has lanes: which incarnation of it, and for how many partitions."""

    topic_id: bytes
    partitions: int


@dataclass
class _LinkControl:
    link: Link
    source: Cluster
    target: Cluster
    topics: Topics
    producer_id: int = -1
    producer_epoch: int = -1
    known: dict[str, _Known] = field(default_factory=dict)  # by source topic
    first_look: bool = True


class Supervisor:
    """`start`, then watch `lanes` and `rows`; `drain` or `kill` in the end."""

    def __init__(self, config: Config, stop: Stop = "never") -> None:
        self.config = config
        self.stop = stop
        self.lanes: list[LaneInfo] = []
        self.workers: list[WorkerProcess] = []
        self._rows_file = tempfile.TemporaryFile(prefix="replicator-")  # noqa: SIM115 - lives as long as we do
        self._rows_file.truncate(ROWS_MAX * ROW_BYTES)
        self.rows = Rows(self._rows_file.fileno())
        pool = Pool(CONTROL_POOL_BYTES)
        self.clusters = {
            alias: Cluster(
                cluster.bootstrap,
                ConnectionSettings(alias, cluster.client_id, config.limits.request_timeout_ms, pool),
            )
            for alias, cluster in config.clusters.items()
        }
        self._links = [self._link_control(link) for link in config.links]
        self._watches: list[asyncio.Task[None]] = []

    def _link_control(self, link: Link) -> _LinkControl:
        topics = Topics(self.config.clusters[link.source], self.config.clusters[link.target], link.replication_factor)
        return _LinkControl(link, self.clusters[link.source], self.clusters[link.target], topics)

    # ---- life ----

    async def start(self) -> None:
        """Makes the topics and lanes of every link and starts the workers. Raises ReplicatorError."""
        setup = Setup(self.config.clusters, self.config.limits)
        for control in self._links:
            await self._reach(control)
            await self._init_producer(control)
        self.workers = [
            WorkerProcess(index, setup, self._rows_file.fileno(), self._lane_changed)
            for index in range(self.config.workers)
        ]
        for control in self._links:
            await self._look(control)
        if self.stop == "never":
            self._watches = [asyncio.ensure_future(self._watch(control)) for control in self._links]

    async def drain(self) -> None:
        """Ends in order: nothing new is fetched, what is under way is settled."""
        await self._stop_watching()
        await asyncio.gather(*(worker.drain() for worker in self.workers))
        await self._close()

    async def kill(self) -> None:
        """Ends at once. The target's own log tells the next run how far this one came."""
        await self._stop_watching()
        await asyncio.gather(*(worker.kill() for worker in self.workers))
        await self._close()

    async def _stop_watching(self) -> None:
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)

    async def _close(self) -> None:
        self._rows_file.close()  # `rows` stays readable: the mapping outlives its file
        for cluster in self.clusters.values():
            await cluster.close()

    async def _reach(self, control: _LinkControl) -> None:
        """Both clusters answer, or answer at the second or third try. Raises NetworkError when one does not."""
        backoff = Backoff()
        for cluster in (control.source, control.target):
            for tries_left in reversed(range(REACH_TRIES)):
                try:
                    await cluster.refresh([])
                    break
                except NetworkError:
                    if not tries_left:
                        raise
                    await asyncio.sleep(backoff.next_s())

    async def _init_producer(self, control: _LinkControl) -> None:
        """A producer id for the link. A young cluster answers that its coordinator is loading, for a while."""
        backoff = Backoff()
        for _ in range(PRODUCER_ID_TRIES):
            answer = await control.target.request(INIT_PRODUCER_ID, {})
            if not answer["error_code"]:
                control.producer_id, control.producer_epoch = answer["producer_id"], answer["producer_epoch"]
                return
            error = ClusterError(answer["error_code"], "InitProducerId")
            if error.row.action not in (Action.RETRY, Action.REFRESH):
                raise error
            await asyncio.sleep(backoff.next_s())
        raise error

    # ---- what there is to replicate ----

    async def _watch(self, control: _LinkControl) -> None:
        while True:
            await asyncio.sleep(control.link.refresh_topics_ms / 1000)
            try:
                await self._look(control)
            except ReplicatorError as error:
                log.warning("link %s: looking for new topics failed: %s", control.link.name, error)

    async def _look(self, control: _LinkControl) -> None:
        """Finds partitions that have no lane yet, sees to it that the target has them, and starts them."""
        link = control.link
        source_topics = await control.source.list_topics()
        target_topics = await control.target.list_topics()
        for name in sorted(source_topics):
            topic = source_topics[name]
            if not link.selects(name) or not _has_grown(topic, control.known.get(name)):
                continue
            try:
                await self._prepare_target(control, topic, target_topics.get(link.target_topic(name)))
            except ReplicatorError as error:
                if self.stop != "never":
                    raise
                log.error("link %s: topic %s is not replicated yet: %s", link.name, name, error)
                continue
            self._start_lanes(control, topic)
        control.first_look = False

    async def _prepare_target(
        self, control: _LinkControl, topic: TopicMetadata, existing: TopicMetadata | None
    ) -> None:
        target_topic = control.link.target_topic(topic.name)
        if existing is None and topic.name in control.known:
            where = Where(control.link.target, target_topic)
            raise ClusterError(UNKNOWN_TOPIC, "was deleted while we wrote to it: not made again unasked", where=where)
        if existing is None:
            await control.topics.create(topic, target_topic, len(control.target.brokers))
            log.info("link %s: created topic %s", control.link.name, target_topic)
        elif len(existing.leaders) < len(topic.leaders):
            await control.topics.grow(target_topic, len(topic.leaders))
            log.info("link %s: topic %s has %d partitions now", control.link.name, target_topic, len(topic.leaders))

    def _start_lanes(self, control: _LinkControl, topic: TopicMetadata) -> None:
        known = control.known.get(topic.name)
        partitions = range(known.partitions if known else 0, len(topic.leaders))
        # What appears later is copied whole: a start of `latest` speaks of what was there when the link began.
        first = control.first_look and known is None
        shares: dict[int, list[LaneSpec]] = {}
        for partition in partitions:
            if len(self.lanes) == ROWS_MAX:
                log.error("link %s: %d lanes are the limit; %s is left out", control.link.name, ROWS_MAX, topic.name)
                break
            spec = LaneSpec(
                row=len(self.lanes),
                link=control.link.name,
                source=control.link.source,
                target=control.link.target,
                topic=topic.name,
                target_topic=control.link.target_topic(topic.name),
                partition=partition,
                topic_id=topic.topic_id,
                producer_id=control.producer_id,
                producer_epoch=control.producer_epoch,
                start=control.link.start if first else "earliest",
                stop=self.stop,
            )
            self.lanes.append(LaneInfo(spec))
            self.rows.set_state(spec.row, LaneState.STARTING)
            shares.setdefault(shard(spec) % len(self.workers), []).append(spec)
        control.known[topic.name] = _Known(topic.topic_id, len(topic.leaders))
        for index, specs in shares.items():
            self.workers[index].assign(specs)

    # ---- what lanes do ----

    def _lane_changed(self, change: LaneChanged) -> None:
        info = self.lanes[change.row]
        state = LaneState(change.state)
        info.reason = change.reason
        level = logging.ERROR if state.is_final else logging.WARNING if change.reason else logging.DEBUG
        name = f"{info.spec.link} {info.spec.name}"
        log.log(level, "%s: %s%s", name, state.name.lower(), f": {change.reason}" if change.reason else "")

    def state(self, row: int) -> LaneState:
        return self.rows.state(row)


def _has_grown(topic: TopicMetadata, known: _Known | None) -> bool:
    """True if there are partitions without a lane. A topic made again gets none: its old lanes say what happened."""
    return known is None or (known.topic_id == topic.topic_id and known.partitions < len(topic.leaders))


def shard(spec: LaneSpec) -> int:
    """The unit of ownership that a lane belongs to. Neighbouring partitions spread over workers."""
    return (zlib.crc32(spec.topic.encode()) + spec.partition) % SHARDS
