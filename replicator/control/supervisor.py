"""The supervisor: the parent process. It decides what is replicated, and never sees a record.

For each link it asks the source which topics there are, makes what is missing on the target, and names every partition
to the workers as a lane; then it looks again every `refresh_topics_ms`. What lanes do it reads from shared memory, what
happens to them it hears from the workers.

A durable run keeps its checkpoints on the target: any number of supervisors may run the same link, their workers share
the lanes by a consumer group, and the supervisor whose worker owns shard 0 leads (leader.py). Otherwise the lanes are
this run's alone, and each has a worker from the beginning.
"""

import asyncio
import logging
import tempfile
import time
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from msgspec.structs import replace

from replicator._core import Pool
from replicator.config.models import Config, Link
from replicator.control.leader import Leader
from replicator.control.topics import Topics
from replicator.control.workers import WorkerProcess
from replicator.data.orders import (
    LaneChanged,
    LaneEvent,
    LaneReleased,
    LaneSpec,
    Notice,
    Order,
    Report,
    Setup,
    ShardsOwned,
)
from replicator.data.states import LANES_MAX, ROW_BYTES, LaneState, Rows
from replicator.data.transitions import Trigger
from replicator.errors import ClusterError, ConfigError, NetworkError, ReplicatorError, Where
from replicator.kafka.backoff import Backoff
from replicator.kafka.cluster import Cluster, TopicMetadata
from replicator.kafka.connection import ConnectionSettings
from replicator.state.records import EventRecord, shard_of
from replicator.tasks import must_not_end

log = logging.getLogger("replicator")

CONTROL_POOL_BYTES = 16 << 20
REACH_TRIES = 3
JOIN_TIMEOUT_S = 60.0
LEAD_TIMEOUT_S = 3.0  # shards come one after the other
LOOK_AGAIN_S = 1.0  # for topics that wait for the leader to make them
UNKNOWN_TOPIC = 3

Stop = Literal["never", "now"] | int


@dataclass
class LaneInfo:
    """A lane as the supervisor knows it; figures and state are in the shared row of the number `row`."""

    spec: LaneSpec
    row: int  # of the worker that runs the lane, or ran it last
    reason: str = ""
    state: str = ""  # as told last
    is_here: bool = False  # a worker of ours runs it


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
    leader: Leader
    known: dict[str, _Known] = field(default_factory=dict)  # by source topic
    owned: dict[int, ShardsOwned] = field(default_factory=dict)  # by each of our workers
    joined_at: float = 0.0  # when a worker of ours was given shards for the first time; 0: not yet
    is_new: bool = True  # nothing was replicated yet when we began

    @property
    def leads(self) -> bool:
        return any(0 in owned.shards for owned in self.owned.values())


class Supervisor:
    """`start`, then watch `lanes` and `rows`; `drain` or `kill` in the end."""

    def __init__(self, config: Config, stop: Stop = "never", *, durable: bool = False) -> None:
        self.config = config
        self.stop = stop
        self.durable = durable
        self.lanes: list[LaneInfo] = []
        self.workers: list[WorkerProcess] = []
        self._rows_file = tempfile.TemporaryFile(prefix="replicator-")  # noqa: SIM115 - lives as long as we do
        self._rows_file.truncate(LANES_MAX * config.workers * ROW_BYTES)
        self.rows = Rows(self._rows_file.fileno())
        pool = Pool(CONTROL_POOL_BYTES)
        self.clusters = {
            alias: Cluster(
                cluster.bootstrap,
                ConnectionSettings(alias, cluster.client_id, config.limits.request_timeout_ms, pool),
            )
            for alias, cluster in config.clusters.items()
        }
        self._links = {link.name: self._link_control(link) for link in config.links}
        self._claims: dict[tuple[str, str], tuple[str, str]] = {}  # target alias and topic -> link and source topic
        self._watches: list[asyncio.Task[None]] = []

    def _link_control(self, link: Link) -> _LinkControl:
        source, target = self.clusters[link.source], self.clusters[link.target]
        topics = Topics(self.config.clusters[link.source], self.config.clusters[link.target], link.replication_factor)
        leader = Leader(link, self.config, self.clusters, topics)
        return _LinkControl(link, source, target, topics, leader)

    # ---- life ----

    async def start(self) -> None:
        """Makes the topics and lanes of every link and starts the workers. Raises ReplicatorError."""
        for control in self._links.values():
            await self._reach(control)
            if self.durable:
                control.is_new = await control.leader.open()
            else:
                await control.leader.open_passing()
        setup = Setup(self.config, self.durable)
        self.workers = [
            WorkerProcess(
                index,
                setup,
                self._rows_file.fileno(),
                self._on_report,
                self._on_worker_gone,
            )
            for index in range(self.config.workers)
        ]
        for control in self._links.values():
            if self.durable:
                await self._join(control)
            await self._look(control)
        if self.stop == "never":
            self._watches = [asyncio.ensure_future(self._watch(control)) for control in self._links.values()]
            for watch in self._watches:
                watch.add_done_callback(must_not_end)

    async def _join(self, control: _LinkControl) -> None:
        """Waits until the group has given shards to a worker of ours, and a little longer for the one that leads."""
        deadline = time.monotonic() + JOIN_TIMEOUT_S
        while time.monotonic() < deadline and not control.leads:
            if control.joined_at:
                deadline = min(deadline, control.joined_at + LEAD_TIMEOUT_S)
            await asyncio.sleep(0.05)
        if not control.joined_at:
            log.warning(
                "link %s: its group has given no shard to us for %.0f s: others have all, or the group is in trouble",
                control.link.name,
                JOIN_TIMEOUT_S,
            )

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
        for control in self._links.values():
            await control.leader.close()
        for cluster in self.clusters.values():
            await cluster.close()

    async def _reach(self, control: _LinkControl) -> None:
        """Both clusters answer, or answer at the second or third try. Raises NetworkError when one does not, and
        ConfigError when they are one cluster and the link would copy its own copies."""
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

    # ---- what there is to replicate ----

    async def _watch(self, control: _LinkControl) -> None:
        complete = True
        while True:
            pause_s = control.link.refresh_topics_ms / 1000
            await asyncio.sleep(pause_s if complete else min(pause_s, LOOK_AGAIN_S))
            try:
                complete = await self._look(control)
            except ReplicatorError as error:
                log.warning("link %s: looking for new topics failed: %s", control.link.name, error)

    async def _look(self, control: _LinkControl) -> bool:
        """Finds partitions that have no lane yet, sees to it that the target has them, and starts them.

        Returns False when some wait for the leader, which is somebody else.
        """
        link = control.link
        source_topics = await control.source.list_topics()
        target_topics = await control.target.list_topics()
        self._refuse_circle(control, source_topics)
        complete = True
        for name in sorted(source_topics):
            topic = source_topics[name]
            if not link.selects(name) or not _has_grown(topic, control.known.get(name)):
                continue
            existing = target_topics.get(link.target_topic(name))
            if self.durable and not control.leads and not _holds(existing, topic):
                complete = False
                continue
            try:
                self._claim(control, name)
                await self._prepare_target(control, topic, existing)
            except ReplicatorError as error:
                if self.stop != "never":
                    raise
                log.error("link %s: topic %s is not replicated yet: %s", link.name, name, error)
                continue
            self._start_lanes(control, topic)
        control.is_new = False
        return complete

    def _refuse_circle(self, control: _LinkControl, topics: dict[str, TopicMetadata]) -> None:
        """Raises ConfigError when source and target are one cluster and a topic's copy would be copied in its turn."""
        if not control.source.cluster_id or control.source.cluster_id != control.target.cluster_id:
            return
        for name in topics:
            if control.link.feeds_itself(name):
                raise ConfigError(
                    f"link {control.link.name}: {control.link.source} and {control.link.target} are one cluster, and"
                    f" the copy of {name} would be copied, too",
                    hint="narrow `topics` or change `rename`",
                )

    def _claim(self, control: _LinkControl, topic: str) -> None:
        """Raises ConfigError when another topic, or another link, is copied to the same target topic already."""
        link = control.link
        place, who = (link.target, link.target_topic(topic)), (link.name, topic)
        first = self._claims.setdefault(place, who)
        if first != who:
            where = Where(*place)
            raise ConfigError(
                f"{where}: link {first[0]} copies {first[1]} there, so link {who[0]} must not copy {who[1]} there",
                hint="change `rename` or `topics`",
            )

    async def _prepare_target(
        self, control: _LinkControl, topic: TopicMetadata, existing: TopicMetadata | None
    ) -> None:
        target_topic = control.link.target_topic(topic.name)
        if existing is None and control.leader.knows(topic.name, topic.topic_id):
            return  # its lanes will say that it was deleted: it is not made again unasked
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
        first = control.is_new and known is None
        specs: list[LaneSpec] = []
        for partition in partitions:
            if len(self.lanes) == LANES_MAX:
                log.error("link %s: %d lanes are the limit; %s is left out", control.link.name, LANES_MAX, topic.name)
                break
            spec = self._spec(control, topic, partition, control.link.start if first else "earliest")
            self.lanes.append(LaneInfo(spec, spec.row))
            self.rows.set_state(spec.row, LaneState.STARTING)
            specs.append(spec)
        control.known[topic.name] = _Known(topic.topic_id, len(topic.leaders))
        self._assign(specs, control.link.shards)

    def _spec(self, control: _LinkControl, topic: TopicMetadata, partition: int, start: object) -> LaneSpec:
        return LaneSpec(
            row=len(self.lanes) * len(self.workers),
            link=control.link.name,
            source=control.link.source,
            target=control.link.target,
            topic=topic.name,
            target_topic=control.link.target_topic(topic.name),
            partition=partition,
            topic_id=topic.topic_id,
            producer_id=control.leader.record.producer_id,
            producer_epoch=control.leader.record.producer_epoch,
            start=start,  # type: ignore[arg-type]
            stop=self.stop,
            policy=control.link.policy(topic.name),
        )

    def _assign(self, specs: list[LaneSpec], shards: int) -> None:
        """To every worker, if the group shares them out, else to one each: neighbours spread."""
        for worker in self.workers:
            others = len(self.workers)
            worker.assign(
                [
                    replace(spec, row=spec.row + worker.index)
                    for spec in specs
                    if self.durable or shard_of(spec.topic, spec.partition, shards) % others == worker.index
                ]
            )

    # ---- what workers report ----

    def _on_report(self, worker: WorkerProcess, report: Order | Report) -> None:
        match report:
            case LaneChanged():
                self._lane_changed(worker, report)
            case LaneEvent():
                info = self._info(report.row)
                self._say(info, report.kind, self.rows.state(report.row), report.reason, worker)
            case LaneReleased():
                self._lane_gone(worker, report.row, report.kind, LaneState.UNUSED)
            case Notice():
                log.log(report.level, "worker %d: %s", worker.index, report.text)
            case ShardsOwned():
                self._shards_changed(worker, report)

    def _info(self, row: int) -> LaneInfo:
        return self.lanes[row // len(self.workers)]

    def _lane_changed(self, worker: WorkerProcess, change: LaneChanged) -> None:
        info = self._info(change.row)
        info.row, info.is_here, info.reason = change.row, True, change.reason
        self._say(info, change.kind, LaneState(change.state), change.reason, worker)

    def _lane_gone(self, worker: WorkerProcess, row: int, kind: str, state: LaneState) -> None:
        """A worker runs the lane no more; another of ours may have begun already."""
        info = self._info(row)
        if info.row == row and info.is_here:
            info.is_here, info.reason = False, ""
            self._say(info, kind, state, "", worker)

    def _say(self, info: LaneInfo, kind: str, state: LaneState, reason: str, worker: WorkerProcess) -> None:
        spec = info.spec
        event = EventRecord(
            at_ms=int(time.time() * 1000),
            link=spec.link,
            topic=spec.topic,
            partition=spec.partition,
            kind=kind,
            was=info.state,
            state=state.name.lower(),
            reason=reason,
            position=self.rows.checkpoint(info.row).position,
            worker=str(worker.pid or ""),
        )
        info.state = event.state
        self._links[spec.link].leader.say(event)

    def _shards_changed(self, worker: WorkerProcess, owned: ShardsOwned) -> None:
        control = self._links[owned.link]
        led = control.leads
        control.owned[worker.index] = owned
        if owned.shards:
            control.joined_at = control.joined_at or time.monotonic()
        if control.leads != led:
            leads = "leads" if control.leads else "does not lead"
            log.info("link %s: this supervisor %s it now", owned.link, leads)
            control.leader.lead(control.leads)

    def _on_worker_gone(self, worker: WorkerProcess) -> None:
        """Tells the groups on its behalf, or its shards would be nobody's until its session expires."""
        for control in self._links.values():
            owned = control.owned.pop(worker.index, None)
            if self.durable and not worker.draining:
                self._lanes_lost(control.link, worker)
            if owned and not control.leads:
                control.leader.lead(False)
            if owned and owned.member_id and not worker.draining:
                self._watches.append(asyncio.ensure_future(control.leader.say_left(owned.member_id)))

    def _lanes_lost(self, link: Link, worker: WorkerProcess) -> None:
        for info in self.lanes:
            if info.is_here and info.spec.link == link.name and info.row % len(self.workers) == worker.index:
                self.rows.set_state(info.row, LaneState.STARTING)
                self._lane_gone(worker, info.row, Trigger.WORKER_LOST.kind, LaneState.STARTING)

    # ---- what others look at ----

    def lane_rows(self) -> list[int]:
        """The row that counts of each lane, in the order of `lanes`."""
        return [info.row for info in self.lanes]


def _has_grown(topic: TopicMetadata, known: _Known | None) -> bool:
    """True if there are partitions without a lane. A topic made again gets none: its old lanes say what happened."""
    return known is None or (known.topic_id == topic.topic_id and known.partitions < len(topic.leaders))


def _holds(existing: TopicMetadata | None, topic: TopicMetadata) -> bool:
    return existing is not None and len(existing.leaders) >= len(topic.leaders)
