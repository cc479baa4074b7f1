"""Consumer groups of one cluster: which there are, what they have committed, and commits in their name.

A commit in a group's name (OffsetCommit without a member) is taken by the broker while the group has no members, and
refused with 25 UNKNOWN_MEMBER_ID while it has: the broker is the judge, whatever was listed a moment ago. Who only
calls `assign()` is no member to a broker: its group counts as empty, and commits go through beside it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from replicator._core import Pool
from replicator.config.models import Config
from replicator.errors import ClusterError, NetworkError, ReplicatorError, Where, kafka_error
from replicator.kafka.backoff import Backoff
from replicator.kafka.cluster import Cluster
from replicator.kafka.codec import Api, Body
from replicator.kafka.connection import ConnectionSettings
from replicator.kafka.messages import (
    DESCRIBE_GROUPS,
    FIND_COORDINATOR,
    LEAVE_GROUP,
    LIST_GROUPS,
    OFFSET_COMMIT,
    OFFSET_FETCH,
)

COORDINATOR_TRIES = 8  # some 10 s: a young or moving coordinator loads for a while
NO_EPOCH = -1
POOL_BYTES = 16 << 20

_LOADING, _NOT_AVAILABLE, _MOVED = 14, 15, 16
_UNKNOWN_MEMBER = 25
_NO_SUCH_GROUP = 69
_MEMBERLESS = ("Empty", "Dead")
# UNKNOWN_MEMBER_ID; the others are what a rebalance or a newer kind of group may say instead.
_ACTIVE_CODES = {25, 22, 27, 113}
_CARRIED_TYPES = ("", "classic", "consumer")  # share and streams groups keep more than offsets, elsewhere

TopicPartition = tuple[str, int]


class Committed(NamedTuple):
    """A committed offset: of the next record to read. `code` is the error instead of it, or 0."""

    offset: int
    metadata: str = ""
    leader_epoch: int = NO_EPOCH
    code: int = 0

    @property
    def error(self) -> str:
        """The error in words, or nothing."""
        return spell_code(self.code) if self.code else ""


class ListedGroup(NamedTuple):
    """A group of a listing: Kafka's words, empty where a broker is too old to say them."""

    type: str
    state: str

    @property
    def is_carried(self) -> bool:
        """Whether a group of this type is all in its committed offsets."""
        return self.type.lower() in _CARRIED_TYPES

    @property
    def is_active(self) -> bool:
        """Whether it has members; a state that we do not know counts as such. Unknown states come with new types."""
        return self.state not in ("", *_MEMBERLESS)


class Listing(NamedTuple):
    """All groups by name. `errors`: brokers that did not answer, whose groups are missing."""

    groups: dict[str, ListedGroup]
    errors: tuple[ReplicatorError, ...]


class GroupAdmin:
    """One cluster's groups. Every method raises ClusterError, NetworkError and their like."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._coordinators: dict[str, int] = {}

    # ---- which there are ----

    async def list(self) -> Listing:
        """Every group that we may describe, of every broker. Raises NetworkError when there is none to ask."""
        await self.cluster.refresh([])
        groups: dict[str, ListedGroup] = {}
        errors: list[ReplicatorError] = []
        for node_id in sorted(self.cluster.brokers):
            try:
                groups |= await self._list(node_id)
            except (ClusterError, NetworkError) as error:
                errors.append(error)
        return Listing(groups, tuple(errors))

    async def _list(self, node_id: int) -> dict[str, ListedGroup]:
        answer = await self.cluster.request(LIST_GROUPS, {}, node_id)
        if answer["error_code"]:
            raise self._error(answer["error_code"], "ListGroups")
        groups = {row["group_id"]: ListedGroup(row["group_type"], row["group_state"]) for row in answer["groups"]}
        unsaid = [name for name, group in groups.items() if not group.state]
        if unsaid:  # a broker older than Kafka 2.6
            described = await self.cluster.request(DESCRIBE_GROUPS, {"groups": unsaid}, node_id)
            groups |= {row["group_id"]: ListedGroup("", row["group_state"]) for row in described["groups"]}
        return groups

    # ---- offsets ----

    async def committed(self, group: str, *, stable: bool = False) -> dict[TopicPartition, Committed]:
        """All offsets of a group by (topic, partition); none for a group that does not exist.

        `stable`: partitions with offsets in an open transaction have the code 88 UNSTABLE_OFFSET_COMMIT instead of
        the offset before it. Brokers older than Kafka 2.5 give the one before it.
        """
        body = {"group_id": group, "topics": None, "require_stable": stable}
        answer = await self._ask(group, OFFSET_FETCH, body, lambda answer: [answer["error_code"]])
        if answer["error_code"] == _NO_SUCH_GROUP:
            return {}
        if answer["error_code"]:
            raise self._error(answer["error_code"], f"offsets of group {group}")
        return {
            (topic["name"], row["partition_index"]): Committed(
                row["committed_offset"], row["metadata"] or "", row["committed_leader_epoch"], row["error_code"]
            )
            for topic in answer["topics"]
            for row in topic["partitions"]
            if row["error_code"] or row["committed_offset"] >= 0
        }

    async def commit(self, group: str, offsets: Mapping[TopicPartition, Committed]) -> dict[TopicPartition, int]:
        """Commits in the group's name; returns the codes of those that were refused.

        The leader epoch is always -1: one of another cluster means nothing here, and would have consumers believe that
        the log was cut back. A commit is not repeated after a lost connection: it may come late, so look first.
        """
        topics: dict[str, list[Body]] = {}
        for (topic, partition), to in offsets.items():
            row = {"partition_index": partition, "committed_offset": to.offset, "committed_metadata": to.metadata}
            topics.setdefault(topic, []).append(row)
        body = {"group_id": group, "topics": [{"name": name, "partitions": rows} for name, rows in topics.items()]}
        answer = await self._ask(group, OFFSET_COMMIT, body, lambda answer: _codes(answer).values())
        return {at: code for at, code in _codes(answer).items() if code}

    async def leave(self, group: str, member_id: str) -> None:
        """Takes a member of a classic group out of it, on its behalf. Raises ClusterError; one that is gone is fine."""
        body = {"group_id": group, "member_id": member_id}
        answer = await self._ask(group, LEAVE_GROUP, body, lambda answer: [answer["error_code"]])
        if answer["error_code"] not in (0, _UNKNOWN_MEMBER):
            raise self._error(answer["error_code"], f"leaving group {group}")

    # ---- who coordinates ----

    async def _ask(self, group: str, api: Api, body: Body, codes: Callable[[Body], Any]) -> Body:
        """Asks the group's coordinator, and again while it is only moving or loading."""
        backoff = Backoff()
        for tries_left in reversed(range(COORDINATOR_TRIES)):
            code = await self._find_coordinator(group)
            if not code:
                answer = await self._ask_coordinator(group, api, body)
                code = next((each for each in codes(answer) if each in (_LOADING, _NOT_AVAILABLE, _MOVED)), 0)
                if not code:
                    return answer
            self._coordinators.pop(group, None)
            if not tries_left:
                break
            await asyncio.sleep(backoff.next_s())
        raise self._error(code, f"coordinator of group {group}")

    async def _ask_coordinator(self, group: str, api: Api, body: Body) -> Body:
        try:
            return await self.cluster.request(api, body, self._coordinators[group])
        except NetworkError:
            self._coordinators.pop(group, None)
            raise

    async def _find_coordinator(self, group: str) -> int:
        """0 when it is known now, or a code that time mends. Raises ClusterError for one that it does not."""
        if group in self._coordinators:
            return 0
        answer = await self.cluster.request(FIND_COORDINATOR, {"key": group})
        code = int(answer["error_code"])
        if code not in (0, _LOADING, _NOT_AVAILABLE, _MOVED):
            raise self._error(code, f"coordinator of group {group}")
        if not code:
            self._coordinators[group] = answer["node_id"]
            if answer["node_id"] not in self.cluster.brokers:
                await self.cluster.refresh([])
        return code

    def _error(self, code: int, what: str) -> ClusterError:
        return ClusterError(code, what, where=Where(self.cluster.alias))


@asynccontextmanager
async def clusters_of(config: Config, *aliases: str) -> AsyncIterator[list[Cluster]]:
    """Clusters for questions, outside a supervisor."""
    pool, timeout_ms = Pool(POOL_BYTES), config.limits.request_timeout_ms
    clusters = [
        Cluster(each.bootstrap, ConnectionSettings(each.alias, each.client_id, timeout_ms, pool))
        for each in (config.clusters[alias] for alias in aliases)
    ]
    try:
        yield clusters
    finally:
        for cluster in clusters:
            await cluster.close()


def _codes(answer: Body) -> dict[TopicPartition, int]:
    rows = ((topic["name"], row) for topic in answer["topics"] for row in topic["partitions"])
    return {(name, row["partition_index"]): row["error_code"] for name, row in rows}


def means_active(code: int) -> bool:
    """Whether a refused commit says that the group has members."""
    return code in _ACTIVE_CODES


def spell_code(code: int) -> str:
    """A code of a partition, in a few words."""
    row = kafka_error(code)
    return f"{row.name} ({code}): {row.meaning}"
