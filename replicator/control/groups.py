"""Consumer groups' offsets, kept up on the target: read on the source, translated exactly, committed over there.

One round (`GroupSync.sync`): list both clusters' groups, read what the source's have committed, let the reader of the
link's state catch up, and commit what `group_rules.py` finds due. What came of it is a GroupRecord a group in the
link's state, and with it what the next leader has to remember.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple, TypeVar

from msgspec.structs import replace

from replicator.config.models import Link
from replicator.control.group_admin import Committed, GroupAdmin, ListedGroup, TopicPartition, means_active
from replicator.control.group_rules import (
    FAILED,
    GONE,
    SYNCED,
    UNSUPPORTED,
    GroupWork,
    TopicIds,
    Verdict,
    without_offsets,
)
from replicator.errors import ClusterError, ReplicatorError
from replicator.kafka.cluster import Cluster
from replicator.state.mm2_records import Checkpoint
from replicator.state.reader import StateReader
from replicator.state.records import GroupKey, GroupRecord, spell_topic_id

GONE_KEPT_MS = 7 * 24 * 3600 * 1000  # a listing may lack a group while its coordinator moves
GROUPS_AT_ONCE = 16
CATCH_UP_S = 30.0

log = logging.getLogger("replicator")

Write = Callable[[GroupKey, GroupRecord | None], None]
Offsets = dict[TopicPartition, Committed]
T = TypeVar("T")


class GroupStatus(NamedTuple):
    """A group of the source, and how it stands with its offsets on the target.

    `checkpoints` are all of them that could be translated, whether or not they could be committed.
    """

    group: str
    record: GroupRecord
    checkpoints: tuple[Checkpoint, ...] = ()


class GroupSync:
    """All groups of one link. Made anew whenever the link gets a new leader: what it must know is in the link's state.

    `write` puts a record there, into shard 0; None is a tombstone. Nobody else uses `reader` while a round runs.
    """

    def __init__(self, link: Link, source: Cluster, target: Cluster, reader: StateReader, write: Write) -> None:
        self.link = link
        self._source = GroupAdmin(source)
        self._target = GroupAdmin(target)
        self._reader = reader
        self._write = write
        self._written: dict[str, GroupRecord | None] = {}  # the reader may not have it yet

    async def sync(self) -> list[GroupStatus]:
        """One round over all groups. Raises ReplicatorError when a cluster or the state cannot be read at all.

        What goes wrong with one group becomes its state, and the others go on.
        """
        sources, targets = await self._source.list(), await self._target.list()
        for error in (*sources.errors, *targets.errors):
            log.warning("link %s: the groups of one broker are left out: %s", self.link.name, error)
        names = sorted(group for group in sources.groups if self.link.groups.selects(group))
        read = await _some_at_once(self._read(group, sources.groups[group]) for group in names)
        await asyncio.to_thread(self._reader.catch_up, CATCH_UP_S)
        ids = await find_topic_ids(self._source.cluster, self._target.cluster, self._reader, _topics(read))
        done = await _some_at_once(
            self._carry(group, offsets, _Round(ids, targets.groups)) for group, offsets in zip(names, read, strict=True)
        )
        found = [status for status in done if status]
        gone = [] if sources.errors else self._find_gone({status.group for status in found})
        for status in (*found, *gone):
            self._remember(status)
        return sorted([*found, *gone])

    # ---- one group ----

    async def _read(self, group: str, listed: ListedGroup) -> Offsets | Verdict:
        """What a source group has committed in topics of this link, or why nothing can be done about it."""
        if not listed.is_carried:
            return Verdict(UNSUPPORTED, f"a {listed.type} group is more than its committed offsets")
        try:
            offsets = await self._source.committed(group)
        except ReplicatorError as error:
            return Verdict(FAILED, str(error))
        return {at: committed for at, committed in sorted(offsets.items()) if self.link.selects(at[0])}

    async def _carry(self, group: str, offsets: Offsets | Verdict, seen: "_Round") -> GroupStatus | None:
        """The group's new status; None for one that has nothing to do with this link."""
        last = self._last(group)
        if isinstance(offsets, Verdict):
            return GroupStatus(group, without_offsets(last, offsets))
        if not offsets:
            return None
        work = GroupWork(self._reader, seen.ids, offsets, last)
        record = await self._place(work, seen.targets.get(last.target_group))
        checkpoints = (
            Checkpoint(group, *place.at, source.offset, place.offset, source.metadata)
            for _, source, place in work.translated()
        )
        return GroupStatus(group, record, tuple(checkpoints))

    async def _place(self, work: GroupWork, listed: ListedGroup | None) -> GroupRecord:
        """Commits what is due on the target, which lists its group so (None: it does not)."""
        group = work.last.target_group
        if listed and not listed.is_carried:
            return without_offsets(
                work.last, Verdict(UNSUPPORTED, f"the target has a {listed.type} group by that name")
            )
        if listed and listed.is_active:
            return work.active()
        try:
            work.judge(await self._target.committed(group), _now_ms())
            refused = await self._target.commit(group, work.commits) if work.commits else {}
        except ReplicatorError as error:
            return without_offsets(work.last, Verdict(FAILED, str(error)))
        if any(means_active(code) for code in refused.values()):
            return work.active()
        work.settle(refused, _now_ms())
        return work.record()

    # ---- what is remembered ----

    def _last(self, group: str) -> GroupRecord:
        last = self._known(group)
        target_group = self.link.groups.target_group(group)
        if last is None or last.target_group != target_group:  # was called otherwise: nothing is known of this one
            return GroupRecord(target_group, SYNCED)
        return last

    def _known(self, group: str) -> GroupRecord | None:
        return self._written[group] if group in self._written else self._reader.groups.get(group)

    def _find_gone(self, found: set[str]) -> list[GroupStatus]:
        """Known groups that are not to be found any more; they are forgotten after a while."""
        gone = []
        for group in {*self._reader.groups, *self._written} - found:
            last = self._known(group)
            if last is None:
                continue
            is_over = last.state == GONE and _now_ms() - last.written_ms >= GONE_KEPT_MS
            if is_over or not self.link.groups.selects(group):
                self._written[group] = None
                self._write(GroupKey(group), None)
            else:
                verdict = Verdict(GONE, "no committed offsets in topics of this link")
                gone.append(GroupStatus(group, without_offsets(last, verdict)))
        return gone

    def _remember(self, status: GroupStatus) -> None:
        """Writes a record that says something new."""
        last = self._known(status.group)
        if last is None or replace(status.record, written_ms=last.written_ms) != last:
            record = self._written[status.group] = replace(status.record, written_ms=_now_ms())
            self._write(GroupKey(status.group), record)


class _Round(NamedTuple):
    """What all groups of a round have in common."""

    ids: TopicIds
    targets: dict[str, ListedGroup]


def _topics(read: Iterable[Offsets | Verdict]) -> set[str]:
    return {topic for offsets in read if not isinstance(offsets, Verdict) for topic, _ in offsets}


async def find_topic_ids(source: Cluster, target: Cluster, reader: StateReader, topics: set[str]) -> TopicIds:
    """The ids of these topics of the source, and of their lanes' topics on the target. Raises NetworkError."""
    targets = {lane.target_topic for key, lane in reader.lanes.items() if key.topic in topics}
    return TopicIds(await _ids(source, topics), await _ids(target, targets))


async def _ids(cluster: Cluster, topics: set[str]) -> dict[str, str]:
    try:
        await cluster.refresh(topics)
        found = cluster.topics
    except ClusterError:  # one topic that we may not describe, and nothing is said of the others
        found = await cluster.list_topics()
    return {topic: spell_topic_id(found[topic].topic_id) for topic in topics if topic in found}


async def _some_at_once(work: Iterable[Awaitable[T]]) -> list[T]:
    """The results in order. A thousand questions to one coordinator at once would only wait in its queue."""
    room = asyncio.Semaphore(GROUPS_AT_ONCE)

    async def one(each: Awaitable[T]) -> T:
        async with room:
            return await each

    return await asyncio.gather(*(one(each) for each in work))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
