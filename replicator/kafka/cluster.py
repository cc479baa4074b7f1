"""A cluster as its clients see it: which brokers there are, who leads which partition, and a way to ask them.

Metadata is a picture that is always somewhat old. Whoever finds it wrong calls `refresh`, waits for a new picture
and looks again; calls that come while one is on its way share it.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from replicator.errors import ClusterError, ConnectionLost, NetworkError, Unreachable, Where, kafka_error
from replicator.kafka.codec import NO_ID, Api, Body
from replicator.kafka.connection import Address, Connection, ConnectionSettings
from replicator.kafka.messages import METADATA
from replicator.tasks import may_fail_unheard

REFRESH_PAUSE_S = 0.05  # between two metadata requests: a storm of stale lanes asks once


@dataclass(frozen=True)
class Leader:
    node_id: int
    epoch: int


@dataclass(frozen=True)
class TopicMetadata:
    """`leaders` by partition; None where nobody leads. `topic_id` is NO_ID on brokers older than 2.8."""

    name: str
    topic_id: bytes
    leaders: tuple[Leader | None, ...]
    replicas: int  # of partition 0: the replication factor


class Cluster:
    """Connections for the slow path and the picture of the cluster. Use from one event loop only."""

    def __init__(self, bootstrap: tuple[Address, ...], settings: ConnectionSettings) -> None:
        self.alias = settings.alias
        self.settings = settings
        self.topics: dict[str, TopicMetadata] = {}
        self.brokers: dict[int, Address] = {}
        self.cluster_id = ""
        self._bootstrap = bootstrap
        self._connections: dict[Address, asyncio.Task[Connection]] = {}
        self._wanted: set[str] = set()
        self._refused: set[str] = set()  # topics that we may not describe
        self._refresh: asyncio.Task[None] | None = None

    async def close(self) -> None:
        if self._refresh:
            self._refresh.cancel()
        for task in self._connections.values():
            if task.done() and not task.cancelled() and task.exception() is None:
                task.result().close(ConnectionLost("closed by us", where=Where(self.alias)))
            task.cancel()
        self._connections.clear()

    async def connect(self, node_id: int) -> Connection:
        """A connection of one's own to a broker, for the data plane. Raises Unreachable."""
        address = self.brokers.get(node_id)
        if address is None:
            raise Unreachable(f"broker {node_id} is not in the cluster's metadata", where=Where(self.alias))
        return await Connection.open(address, self.settings)

    async def request(self, api: Api, body: Body, node_id: int | None = None) -> Body:
        """Asks the broker `node_id`, or any, over the shared connection. Raises NetworkError and its like."""
        if node_id is None:
            return await self._request_any(api, body)
        address = self.brokers.get(node_id)
        if address is None:
            raise Unreachable(f"broker {node_id} is not in the cluster's metadata", where=Where(self.alias))
        return await (await self._shared(address)).request(api, body)

    async def _request_any(self, api: Api, body: Body) -> Body:
        failure: NetworkError = Unreachable("no broker known", where=Where(self.alias))
        for address in [*self.brokers.values(), *self._bootstrap]:
            try:
                return await (await self._shared(address)).request(api, body)
            except NetworkError as error:
                failure = error
        raise failure

    async def _shared(self, address: Address) -> Connection:
        task = self._connections.get(address)
        if task is None or (task.done() and (task.exception() or task.result().lost.done())):
            task = asyncio.ensure_future(Connection.open(address, self.settings))
            task.add_done_callback(may_fail_unheard)
            self._connections[address] = task
        return await asyncio.shield(task)

    def leader(self, topic: str, partition: int) -> Leader | None:
        """Who leads, as far as the picture goes."""
        metadata = self.topics.get(topic)
        if metadata is None or partition >= len(metadata.leaders):
            return None
        return metadata.leaders[partition]

    async def refresh(self, topics: Iterable[str]) -> None:
        """A picture of these topics that is newer than this call. A topic that does not exist leaves `topics`.

        Raises NetworkError when no broker answers, ClusterError when we may not describe one of these.
        """
        topics = list(topics)
        self._wanted.update(topics)
        if self._refresh is None or self._refresh.done():
            self._refresh = asyncio.ensure_future(self._refresh_wanted())
            self._refresh.add_done_callback(may_fail_unheard)
        await asyncio.shield(self._refresh)
        for topic in topics:
            if topic in self._refused:  # others' topics, asked for in the same request, are no concern of ours
                raise ClusterError(_UNAUTHORIZED, "Metadata", where=Where(self.alias, topic))

    async def _refresh_wanted(self) -> None:
        await asyncio.sleep(REFRESH_PAUSE_S)
        wanted, self._wanted, self._refresh = self._wanted, set(), None
        body = await self._metadata([{"name": name} for name in sorted(wanted)])
        found = {row["name"]: row for row in body["topics"]}
        for name in wanted:
            row = found.get(name)
            self._refused.discard(name)
            if row is not None and row["error_code"] == _UNAUTHORIZED:
                self._refused.add(name)
            elif row is None or row["error_code"] in _GONE:
                self.topics.pop(name, None)
            elif row["error_code"] == 0 or row["partitions"]:
                self.topics[name] = _topic(row)

    async def list_topics(self) -> dict[str, TopicMetadata]:
        """Every topic that we may describe, internal ones too, from the brokers just now."""
        body = await self._metadata(None)
        return {row["name"]: _topic(row) for row in body["topics"] if row["error_code"] == 0}

    async def find_topics(self, names_in: Callable[[bytes], Iterable[str]], also: str) -> set[str]:
        """The topics that `names_in` finds in a list of all topics, as each broker has it; and `also`, if there is such
        a topic. Metadata travels from broker to broker: what any one of them knows of is there.

        The lists are long, and not decoded: names that are no topic's may be among those found. `topics` holds those
        that are. Raises NetworkError when one of the brokers does not answer, ClusterError when we may not describe
        one of the topics.
        """
        await self._metadata([])
        asked = [self._find_topics(address, names_in, also) for address in self.brokers.values()]
        found: dict[str, TopicMetadata] = {}
        for topics in await asyncio.gather(*asked):
            for topic in topics:
                if topic.name not in found or _epoch(topic) >= _epoch(found[topic.name]):
                    found[topic.name] = topic
        self.topics |= found
        return set(found)

    async def _find_topics(
        self, address: Address, names_in: Callable[[bytes], Iterable[str]], also: str
    ) -> list[TopicMetadata]:
        connection = await self._shared(address)
        listed = await connection.request_frame(METADATA, {"topics": None})
        names = {also, *names_in(bytes(memoryview(listed)))}
        body = await connection.request(METADATA, {"topics": [{"name": name} for name in sorted(names)]})
        for row in body["topics"]:
            if row["error_code"] == _UNAUTHORIZED:
                raise ClusterError(_UNAUTHORIZED, "Metadata", where=Where(self.alias, row["name"]))
        return [_topic(row) for row in body["topics"] if row["error_code"] == 0 or row["partitions"]]

    async def _metadata(self, topics: list[Body] | None) -> Body:
        body = await self.request(METADATA, {"topics": topics})
        self.brokers = {row["node_id"]: (row["host"], row["port"]) for row in body["brokers"]} or self.brokers
        self.cluster_id = body["cluster_id"] or self.cluster_id
        return body


_GONE = {kafka_error(3).code, kafka_error(100).code}
_UNAUTHORIZED = 29


def _topic(row: Body) -> TopicMetadata:
    partitions = {each["partition_index"]: each for each in row["partitions"]}
    leaders = tuple(_leader(partitions.get(index)) for index in range(max(partitions, default=-1) + 1))
    replicas = len(partitions[0]["replica_nodes"]) if 0 in partitions else 1
    return TopicMetadata(row["name"], row.get("topic_id", NO_ID), leaders, replicas)


def _epoch(topic: TopicMetadata) -> int:
    """Of partition 0: who knows of a later one knows more."""
    leader = topic.leaders[0] if topic.leaders else None
    return leader.epoch if leader else -1


def _leader(partition: Body | None) -> Leader | None:
    if partition is None or partition["leader_id"] < 0:
        return None
    return Leader(partition["leader_id"], partition["leader_epoch"])
