"""What a link does once, however many supervisors run it: its own topics, groups' offsets, MirrorMaker 2's topics.

Whoever comes first makes the link's topics and its record. The rest is done by the leader of the moment: the supervisor
whose worker owns shard 0. Two leaders for a moment, before one notices, do no harm: what they write is the same.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from msgspec.structs import replace

from replicator.config import models
from replicator.config.models import Config, Link
from replicator.control.events import say
from replicator.control.group_admin import GroupAdmin
from replicator.control.topics import COMPACTED_SETTINGS, EVENTS_SETTINGS, Topics
from replicator.errors import Action, ClusterError, ConfigError, ReplicatorError
from replicator.kafka.backoff import Backoff
from replicator.kafka.cluster import Cluster
from replicator.kafka.log import START, Partition, find_offset
from replicator.kafka.messages import INIT_PRODUCER_ID
from replicator.state.records import (
    NO_TOPIC_ID,
    EventRecord,
    GroupKey,
    GroupRecord,
    LinkKey,
    LinkRecord,
    events_topic,
    group_id,
    offsets_topic,
    shard_of,
    spell_topic_id,
    state_topic,
)
from replicator.tasks import must_not_end

log = logging.getLogger("replicator")

PRODUCER_ID_TRIES = 100
CATCH_UP_S = 60.0
CATCH_UP_TRIES = 10
TRIM_S = 600.0
FLUSH_S = 5.0


class Leader:
    """The link-wide work of one link. `open`, then `lead` whenever it is ours to do, or is not any more."""

    def __init__(self, link: Link, config: Config, clusters: Mapping[str, Cluster], topics: Topics) -> None:
        self.link = link
        self.record = LinkRecord(-1, -1, link.shards)
        self._configs = config.clusters
        self._timeout_ms = config.limits.request_timeout_ms
        self._source, self._target = clusters[link.source], clusters[link.target]
        self._topics = topics
        self._work: list[asyncio.Task[None]] = []
        self._state: _State | None = None

    # ---- the beginning ----

    async def open_passing(self) -> None:
        """For a run that keeps nothing on the target: a producer id is all it needs. Raises ReplicatorError."""
        self.record = await self._new_record()

    async def open(self) -> bool:
        """Finds or makes the link's topics and record; True if it was not there. Raises ReplicatorError."""
        link = self.link
        for topic, partitions, settings in (
            (state_topic(link.name), link.shards, COMPACTED_SETTINGS),
            (offsets_topic(link.name), link.shards, COMPACTED_SETTINGS),
            (events_topic(link.name), 1, EVENTS_SETTINGS),
        ):
            found = await self._topics.ensure(topic, partitions, settings)
            if partitions > 1 and found != partitions:
                raise ConfigError(
                    f"link {link.name}: `shards` is {partitions}, but {topic} on {link.target} has {found} partitions",
                    hint="the number is fixed once a link has run",
                )
        await self._ensure_dead_letters()
        self._state = state = _State(self._configs[link.target], link.name, self._timeout_ms)
        await state.catch_up()
        is_new = state.reader.record is None
        if is_new:
            await self._write_record(state, await self._new_record())
            await state.catch_up()
        first = state.reader.first_record
        assert first, "written and read"
        self.record = first  # whoever else opens the link in this moment takes it, too
        self._check_clusters()
        self.record = self._completed(first, state)
        if self.record != state.reader.record:
            await self._write_record(state, self.record)
        return is_new

    async def _write_record(self, state: "_State", record: LinkRecord) -> None:
        await state.writer.write(state_topic(self.link.name), 0, LinkKey(self.link.name), record)

    def _completed(self, first: LinkRecord, state: "_State") -> LinkRecord:
        """With the ids of clusters, and of all producers that lanes of this link may have used: two who opened it at
        once had one each, and lanes go on with the one that they have."""
        known = [record for record in (first, state.reader.record) if record]
        used = {lane.producer_id for lane in state.reader.lanes.values()}
        used.update(*((record.producer_id, *record.other_producer_ids) for record in known))
        return replace(
            first,
            source_cluster_id=first.source_cluster_id or self._source.cluster_id,
            target_cluster_id=first.target_cluster_id or self._target.cluster_id,
            other_producer_ids=tuple(sorted(used - {first.producer_id, -1})),
        )

    async def _ensure_dead_letters(self) -> None:
        """Without it the link runs on, and each lane whose record nobody takes does as its policy says."""
        from replicator.control.dead_letters import ensure_dead_letter_topic  # more than a one-shot copy needs

        try:
            await ensure_dead_letter_topic(self.link, self._configs)
        except ReplicatorError as error:
            log.warning("link %s: there is no topic for dead letters: %s", self.link.name, error)

    async def _new_record(self) -> LinkRecord:
        producer_id, epoch = await self._init_producer()
        return LinkRecord(
            producer_id,
            epoch,
            self.link.shards,
            self._source.cluster_id,
            self._target.cluster_id,
            int(time.time() * 1000),
        )

    def _check_clusters(self) -> None:
        """Raises ConfigError when this link copied another source before: offsets there mean something else."""
        then, now = self.record.source_cluster_id, self._source.cluster_id
        if then and now and then != now:
            raise ConfigError(
                f"link {self.link.name} has state on {self.link.target} that is about another source cluster: {then},"
                f" not {now}",
                hint="give the link another name, or mend `bootstrap.servers`",
            )

    async def _init_producer(self) -> tuple[int, int]:
        """A producer id for the link. A young cluster answers that its coordinator is loading, for a while."""
        backoff = Backoff()
        for _ in range(PRODUCER_ID_TRIES):
            answer = await self._target.request(INIT_PRODUCER_ID, {})
            if not answer["error_code"]:
                return answer["producer_id"], answer["producer_epoch"]
            error = ClusterError(answer["error_code"], "InitProducerId")
            if error.row.action not in (Action.RETRY, Action.REFRESH):
                raise error
            await asyncio.sleep(backoff.next_s())
        raise error

    def knows(self, topic: str, topic_id: bytes) -> bool:
        """True if lanes of this incarnation of a source topic ran before: then its target topic existed."""
        return self._state is not None and any(
            key.topic == topic and record.generation and record.topic_id in (spell_topic_id(topic_id), NO_TOPIC_ID)
            for key, record in list(self._state.reader.lanes.items())  # another thread may be reading on
        )

    # ---- what happens ----

    def say(self, event: EventRecord) -> None:
        """Into the log and, if the link has one, its events topic."""
        if self._state:
            self._state.events.append(event)
        else:
            say(event)

    async def say_left(self, member_id: str) -> None:
        """Takes a worker that died out of the link's group. Failing that, its session expires."""
        with contextlib.suppress(ReplicatorError):
            await GroupAdmin(self._target).leave(group_id(self.link.name), member_id)

    # ---- while it leads ----

    def lead(self, leads: bool) -> None:
        """Begins the leader's work, or ends it."""
        for task in self._work:
            task.cancel()
        self._work = []
        if leads and self._state:
            self._work = [asyncio.ensure_future(self._lead(self._state))]
            self._work[0].add_done_callback(must_not_end)

    async def _lead(self, state: "_State") -> None:
        rounds = LeaderRounds(self.link, self._configs, (self._source, self._target), state)
        try:
            await rounds.run()
        finally:
            await rounds.close()

    async def close(self) -> None:
        for task in self._work:
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        if self._state:
            await self._state.close()


class _State:
    """The link's state on the target: a reader of it, a writer, and the log of events."""

    def __init__(self, target: models.Cluster, link: str, timeout_ms: int) -> None:
        from replicator.control.events import EventLog  # these load more than a one-shot copy needs
        from replicator.state.reader import StateReader
        from replicator.state.writer import StateWriter

        self.reader = StateReader(target, link)
        self.writer = StateWriter(target, timeout_ms)
        self.events = EventLog(target, link)

    async def catch_up(self) -> None:
        """Reads on. Raises ReplicatorError, after some tries: topics that were just made are not there at once."""
        backoff = Backoff()
        for tries_left in reversed(range(CATCH_UP_TRIES)):
            try:
                await asyncio.to_thread(self.reader.catch_up, CATCH_UP_S)
                return
            except ReplicatorError as error:
                lasting = isinstance(error, ClusterError) and error.row.action not in (Action.RETRY, Action.REFRESH)
                if lasting or not tries_left:
                    raise
            await asyncio.sleep(backoff.next_s())

    async def close(self) -> None:
        await self.events.flush(FLUSH_S)
        await self.writer.close()
        await asyncio.to_thread(self.reader.close)


class LeaderRounds:
    """The recurring work of the leader: groups' offsets, MirrorMaker 2's topics, and what the offset map can forget."""

    def __init__(
        self, link: Link, configs: Mapping[str, models.Cluster], clusters: tuple[Cluster, Cluster], state: _State
    ) -> None:
        from replicator.control.groups import GroupStatus, GroupSync
        from replicator.control.mm2_topics import Mm2Topics

        self.link = link
        self._state = state
        self._target = clusters[1]
        self._groups = GroupSync(link, *clusters, state.reader, self._write_group)
        self._mm2 = Mm2Topics(link, configs[link.source], configs[link.target])
        self._found: list[GroupStatus] = []
        self._said: dict[str, str] = {}

    async def run(self) -> None:
        """Until cancelled. What fails is told of, once while it stays the same, and tried again."""
        rounds = [self._repeat("groups' offsets", self.link.groups.sync_interval_ms, self._sync_groups)]
        options = self.link.mm2_topics
        if options.checkpoints or options.heartbeats or options.offset_syncs != "off":
            rounds.append(self._repeat("MirrorMaker 2's topics", options.interval_ms, self._write_mm2))
        rounds.append(self._repeat("the offset map", int(TRIM_S * 1000), self._trim))
        await asyncio.gather(*rounds)

    async def _repeat(self, what: str, interval_ms: int, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while interval_ms:
            try:
                await work()
                said = ""
            except ReplicatorError as error:
                said = str(error)
                if self._said.get(what) != said:
                    log.warning("link %s: %s: %s", self.link.name, what, said)
            if not said and self._said.get(what):
                log.info("link %s: %s: in order again", self.link.name, what)
            self._said[what] = said
            await asyncio.sleep(interval_ms / 1000)

    async def _sync_groups(self) -> None:
        self._found = await self._groups.sync()

    async def _write_mm2(self) -> None:
        if not self.link.groups.sync_interval_ms:
            await self._state.catch_up()
        await self._mm2.write_once(
            self._state.reader.lanes, [each for group in self._found for each in group.checkpoints]
        )

    async def _trim(self) -> None:
        """Takes out of the offset map what speaks of records that the target has deleted, and what was replaced."""
        await self._state.catch_up()
        reader, topic = self._state.reader, offsets_topic(self.link.name)
        for lane, record in list(reader.lanes.items()):
            if not reader.has_chunks(lane):
                continue
            partition = Partition(self._target, record.target_topic, lane.partition)
            await self._target.refresh([record.target_topic])
            try:
                log_start = await find_offset(partition, START)
            except ClusterError:
                continue  # the lane itself says what became of its target
            shard = shard_of(lane.topic, lane.partition, self.link.shards)
            for key in reader.obsolete_chunks(lane, log_start):
                await self._state.writer.write(topic, shard, key, None)

    def _write_group(self, key: GroupKey, record: GroupRecord | None) -> None:
        done = self._state.writer.write(state_topic(self.link.name), 0, key, record)
        done.add_done_callback(_tell_failure)

    async def close(self) -> None:
        await self._mm2.close()


def _tell_failure(done: "asyncio.Future[None]") -> None:
    if not done.cancelled() and (error := done.exception()):
        log.warning("a group's record was not written: %s", error)
