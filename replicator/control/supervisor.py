"""The supervisor: the parent process. It decides what is replicated, and never sees a record.

For each link it asks the source which topics there are, makes what is missing on the target, and names every partition
to the workers as a lane; then it looks again every `refresh_topics_ms`. What lanes do it reads from shared memory, what
happens to them it hears from the workers.

A durable run keeps its checkpoints on the target: any number of supervisors may run the same link, their workers share
the lanes by a consumer group, and the supervisor whose worker owns shard 0 leads (leader.py). Otherwise the lanes are
this run's alone, and each has a worker from the beginning.
"""

import asyncio
import contextlib
import logging
import tempfile
import time
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from msgspec.structs import replace

from replicator._core import Pool
from replicator.config.models import Config, Link
from replicator.config.plug_ins import check_plug_ins, plug_ins, try_plug_ins
from replicator.config.recipes import policy_hash, recipe
from replicator.control.leader import Leader
from replicator.control.target_settings import TargetSettings
from replicator.control.topics import Topics
from replicator.control.workers import WorkerProcess
from replicator.data.orders import (
    LaneChanged,
    LaneEvent,
    LaneReleased,
    LaneSpec,
    Loops,
    Notice,
    Order,
    Report,
    Setup,
    ShardsOwned,
    TargetTopic,
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
MADE_PAUSES_S = (0.0, 0.02, 0.04, 0.08, 0.16)  # for the settings of a topic that was just made
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
    settings: TargetSettings
    leader: Leader
    known: dict[str, _Known] = field(default_factory=dict)  # by source topic
    owned: dict[int, ShardsOwned] = field(default_factory=dict)  # by each of our workers
    joined_at: float = 0.0  # when a worker of ours was given shards for the first time; 0: not yet
    is_new: bool = True  # nothing was replicated yet when we began

    @property
    def loops(self) -> Loops | None:
        """Both clusters have been reached, and have their ids."""
        return Loops(self.source.cluster_id, self.target.cluster_id) if self.link.loops == "prevent" else None

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
        return _LinkControl(link, source, target, topics, TargetSettings(link.name, target), leader)

    # ---- life ----

    async def start(self) -> None:
        """Makes the topics and lanes of every link and starts the workers. Raises ReplicatorError."""
        for link in self.config.links:
            check_plug_ins(link)
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
        ConfigError when one has no id and the link's records are to tell where they were."""
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
        link = control.link
        for cluster, option, is_on in (
            (control.source, "provenance: true", link.provenance),
            (control.source, "loops: prevent", link.loops == "prevent"),
            (control.target, "loops: prevent", link.loops == "prevent"),
        ):
            if is_on and not cluster.cluster_id:
                raise ConfigError(f"link {link.name}: `{option}` takes a cluster id, and {cluster.alias} has none")
        if control.loops:
            from replicator.data.loops import preflight  # more than most links need

            await preflight(control.source, control.loops)

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
        source_topics = {
            name: topic for name, topic in (await control.source.list_topics()).items() if link.selects(name)
        }
        target_topics, settings = await asyncio.gather(
            control.target.list_topics(), control.settings.read({link.target_topic(name) for name in source_topics})
        )
        self._tell_settings(control, settings)
        self._refuse_circle(control, source_topics)
        for name in source_topics.keys() - control.known.keys():
            try_plug_ins(link, name)
        complete, made = True, []
        for name in sorted(source_topics):
            topic = source_topics[name]
            if not _has_grown(topic, control.known.get(name)):
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
            if existing is None:
                made.append(link.target_topic(name))
            self._start_lanes(control, topic, settings.get(link.target_topic(name), TargetTopic()))
        control.is_new = False
        await self._learn_settings(control, made)
        return complete

    async def _learn_settings(self, control: _LinkControl, topics: list[str]) -> None:
        """Of topics that were just made: their settings can be read a little later. Their lanes begin meanwhile."""
        missing = set(topics)
        for pause_s in MADE_PAUSES_S if topics else ():
            await asyncio.sleep(pause_s)
            with contextlib.suppress(NetworkError):  # the next look asks again
                settings = await control.settings.read(missing)
                self._tell_settings(control, settings)
                missing -= settings.keys()
            if not missing:
                break

    def _tell_settings(self, control: _LinkControl, settings: dict[str, TargetTopic]) -> None:
        """To the lanes whose target topic takes something else by now."""
        changed: dict[int, TargetTopic] = {}
        altered: set[str] = set()
        for info in self.lanes:
            spec = info.spec
            now = settings.get(spec.target_topic)
            if spec.link != control.link.name or now is None or now == spec.settings:
                continue
            if spec.settings != TargetTopic():
                altered.add(spec.target_topic)
            info.spec = replace(spec, settings=now)
            changed[spec.row] = now
        for worker in self.workers if changed else ():
            worker.change_settings({row + worker.index: now for row, now in changed.items()})
        for topic in sorted(altered):
            log.info("link %s: topic %s has other settings now", control.link.name, topic)

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

    def _start_lanes(self, control: _LinkControl, topic: TopicMetadata, settings: TargetTopic) -> None:
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
            spec = replace(spec, settings=settings)
            self.lanes.append(LaneInfo(spec, spec.row))
            self.rows.set_state(spec.row, LaneState.STARTING)
            specs.append(spec)
        control.known[topic.name] = _Known(topic.topic_id, len(topic.leaders))
        self._assign(specs, control.link.shards)

    def _spec(self, control: _LinkControl, topic: TopicMetadata, partition: int, start: object) -> LaneSpec:
        link = control.link
        return LaneSpec(
            row=len(self.lanes) * len(self.workers),
            link=link.name,
            source=link.source,
            target=link.target,
            topic=topic.name,
            target_topic=link.target_topic(topic.name),
            partition=partition,
            topic_id=topic.topic_id,
            producer_id=control.leader.record.producer_id,
            producer_epoch=control.leader.record.producer_epoch,
            start=start,  # type: ignore[arg-type]
            stop=self.stop,
            policy=link.policy(topic.name),
            isolation=link.isolation,
            recipe=recipe(link, topic.name, control.source.cluster_id, partition),
            plug_ins=plug_ins(link, topic.name),
            loops=control.loops,
            policy_hash=policy_hash(link, topic.name),
            batches=link.batching(topic.name),
            dead_letters=replace(link.dead_letters, topic=link.dead_letter_topic),
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
