"""Two clusters and a link's state as plain data, to play consumer groups through."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from replicator.config.models import Link, Topics
from replicator.control import cutover as cutovers
from replicator.control import groups as rounds
from replicator.control.cutover import Cutover, GroupResult
from replicator.control.group_admin import Committed, ListedGroup, Listing, TopicPartition
from replicator.control.groups import GroupStatus, GroupSync
from replicator.errors import ProtocolError
from replicator.state.offset_map import OffsetMap
from replicator.state.records import GroupKey, GroupRecord, LaneKey, decode, encode

NOW_MS = 1_795_505_937_250
ORDERS = ("orders", 0)


@dataclass
class ModelGroup:
    offsets: dict[TopicPartition, Committed] = field(default_factory=dict)
    members: int = 0
    type: str = "classic"


class ModelCluster:
    """Groups and topics as a broker keeps them; it is its own GroupAdmin. `commits` counts what was taken."""

    def __init__(self, alias: str, topics: Iterable[str]) -> None:
        self.alias = alias
        self.cluster = self
        self.topics = {topic: SimpleNamespace(topic_id=bytes(15) + b"\1") for topic in topics}
        self.groups: dict[str, ModelGroup] = {}
        self.errors: dict[str, Exception] = {}
        self.partitions = 4
        self.list_errors: tuple[Any, ...] = ()
        self.commits: list[tuple[str, TopicPartition, Committed]] = []

    async def refresh(self, topics: Iterable[str]) -> None:
        pass

    async def list(self) -> Listing:
        states = {name: "Stable" if group.members else "Empty" for name, group in self.groups.items()}
        return Listing(
            {name: ListedGroup(group.type, states[name]) for name, group in self.groups.items()}, self.list_errors
        )

    async def committed(self, group: str, *, stable: bool = False) -> dict[TopicPartition, Committed]:
        if group in self.errors:
            raise self.errors[group]
        return dict(self.groups[group].offsets) if group in self.groups else {}

    async def commit(self, group: str, offsets: dict[TopicPartition, Committed]) -> dict[TopicPartition, int]:
        kept = self.groups.setdefault(group, ModelGroup())
        if kept.members:
            return dict.fromkeys(offsets, 25)
        codes = {at: 0 if at[0] in self.topics and at[1] < self.partitions else 3 for at in offsets}
        for at, committed in offsets.items():
            if not codes[at]:
                kept.offsets[at] = committed
                self.commits.append((group, at, committed))
        return {at: code for at, code in codes.items() if code}

    def consume(self, group: str, at: TopicPartition, offset: int, metadata: str = "") -> None:
        """As a consumer commits, with a leader epoch."""
        self.groups.setdefault(group, ModelGroup()).offsets[at] = Committed(offset, metadata, leader_epoch=3)


class ModelState:
    """A StateReader that knows what `replicate` said, and keeps groups as JSON, as Kafka does."""

    def __init__(self) -> None:
        self.lanes: dict[LaneKey, Any] = {}
        self.kept: dict[bytes, bytes] = {}
        self.groups: dict[str, GroupRecord] = {}
        self.maps: dict[LaneKey, OffsetMap] = {}
        self.damaged: set[LaneKey] = set()
        self.writes = 0

    def replicate(self, topic: str, partition: int, position: int, shift: int = 0, target: str = "") -> None:
        key = LaneKey(topic, partition)
        self.lanes[key] = SimpleNamespace(
            topic_id="", target_topic=target or topic, target_topic_id="", position=position
        )
        start = max(0, -shift)  # the source's first records were gone
        self.maps[key] = OffsetMap([(start, start + shift, position - start)], position, position + shift)

    def write(self, key: GroupKey, record: GroupRecord | None) -> None:
        self.writes += 1
        if record is None:
            del self.kept[encode(key)]
        else:
            self.kept[encode(key)] = encode(record)

    def catch_up(self, timeout_s: float) -> None:
        self.groups = {decode(key, GroupKey).group: decode(value, GroupRecord) for key, value in self.kept.items()}

    def offset_map(self, lane: LaneKey) -> OffsetMap:
        if lane in self.damaged:
            raise ProtocolError("chunk 3 is damaged")
        return self.maps[lane]


class World:
    """A link between two models."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **link: Any) -> None:
        self.link = Link("us", "eu", topics=Topics(include=("orders", "clicks")), **link)
        self.source = ModelCluster("us", ["orders", "clicks", "other"])
        self.target = ModelCluster("eu", [self.link.target_topic(topic) for topic in ("orders", "clicks")])
        self.state = ModelState()
        self.now_ms = NOW_MS
        self.lines: list[str] = []
        monkeypatch.setattr(rounds, "GroupAdmin", lambda cluster: cluster)
        monkeypatch.setattr(cutovers, "GroupAdmin", lambda cluster: cluster)
        monkeypatch.setattr(rounds, "_now_ms", lambda: self.now_ms)
        monkeypatch.setattr(asyncio, "to_thread", _call)
        monkeypatch.setattr(cutovers, "POLL_S", 0.001)
        monkeypatch.setattr(cutovers, "SETTLE_S", 0)
        self.new_leader()

    def new_leader(self) -> None:
        clusters: list[Any] = [self.source, self.target]
        state: Any = self.state
        self.groups = GroupSync(self.link, *clusters, state, self.state.write)

    def sync(self) -> dict[str, GroupStatus]:
        return {status.group: status for status in asyncio.run(self.groups.sync())}

    def state_of(self, group: str, topic: str = "orders", partition: int = 0) -> tuple[str, str]:
        """(state, reason) of a partition after a round."""
        rows = {row.partition: row for row in self.sync()[group].record.topics[topic]}
        return rows[partition].state, rows[partition].reason

    def offset_there(self, group: str, topic: str = "orders", partition: int = 0) -> int | None:
        found = self.target.groups.get(group, ModelGroup()).offsets.get((topic, partition))
        return found.offset if found else None

    def cutover(self, *groups: str, timeout_s: float = 0, dry_run: bool = False) -> dict[str, GroupResult]:
        clusters: list[Any] = [self.source, self.target]
        state: Any = self.state
        job = Cutover(self.link, *clusters, state, self.lines.append)
        return {result.group: result for result in asyncio.run(job.run(groups, timeout_s, dry_run=dry_run))}


async def _call(work: Callable[..., Any], *arguments: Any) -> Any:
    """Instead of a thread, which takes longer to start than a model to answer."""
    return work(*arguments)


def make_world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Group `g` has read `orders` up to 100, which stands for 90 on the target, and everything is replicated."""
    made = World(monkeypatch)
    made.state.replicate("orders", 0, 1_000, shift=-10)
    made.source.consume("g", ("orders", 0), 100, "text")
    return made
