"""Offsets across a link, for programs that keep their own: Flink, Spark, a table with offsets in it.

    with LinkOffsets.open("link.yaml", link="us-eu") as offsets:
        found = offsets.translate("orders", 3, 12_345)
        if found.offset is None:
            print(found.reason)
        else:
            consumer.assign([TopicPartition(found.topic, found.partition, found.offset)])

An offset means "the next record to read", as a committed one does. Translated, it is the offset of the same record on
the other cluster, or where there is none of the first one behind it: nothing is read again, and nothing left out. The
answer is exact for every record that was ever copied and that the target still has. It is read from the target cluster
alone, so it can be had when the source is gone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from os import PathLike
from types import TracebackType
from typing import Self

import numpy.typing as npt

from replicator.config.load import load, parse_bootstrap
from replicator.config.models import Cluster, Config, Link
from replicator.errors import ConfigError
from replicator.state.offset_map import Numbers, OffsetMap
from replicator.state.reader import StateReader
from replicator.state.records import LaneKey, LaneRecord


class Outcome(StrEnum):
    TRANSLATED = "translated"
    NOT_YET = "not yet"  # the link has not copied so far; ask again later
    NOT_REPLICATED = "not replicated"  # the link knows nothing of this partition


@dataclass(frozen=True)
class Translation:
    """Where to go on reading on the other cluster. Without an answer `offset` is None, and `reason` says why."""

    outcome: Outcome
    topic: str = ""  # on the other cluster; empty where none is known
    partition: int = -1
    offset: int | None = None
    reason: str = ""


class LinkOffsets:
    """The offsets of one link as of the last `refresh`. Use from one thread.

    Everything that asks the cluster raises ConfigError when the link has no state there, ClusterError or NetworkError;
    everything that opens a lane's map ProtocolError when a part of it is damaged.
    """

    def __init__(self, target: Cluster, link: str, timeout_s: float = 30) -> None:
        """Reads the state of `link` from its target cluster; blocks meanwhile."""
        self.link = link
        self._reader = StateReader(target, link)
        try:
            self.refresh(timeout_s)
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, link_file: str | PathLike[str], link: str = "", timeout_s: float = 30) -> Self:
        """Of a link in a link file; its name may be left out where it is the only one. Raises ConfigError, too."""
        config = load(str(link_file))
        chosen = choose_link(config, link)
        return cls(config.clusters[chosen.target], chosen.name, timeout_s)

    @classmethod
    def connect(cls, properties: Mapping[str, str], link: str, timeout_s: float = 30) -> Self:
        """Of a link by its name, and the client properties of its *target* cluster, `bootstrap.servers` among them."""
        servers = properties.get("bootstrap.servers", "")
        client_id = properties.get("client.id", "replicator")
        return cls(Cluster("target", parse_bootstrap(servers), dict(properties), client_id), link, timeout_s)

    def refresh(self, timeout_s: float = 30) -> None:
        """Reads on to what the link has written down by now; blocks meanwhile. The link does so about every second."""
        self._reader.catch_up(timeout_s)
        self._sources = {
            (record.target_topic, lane.partition): lane for lane, record in sorted(self._reader.lanes.items())
        }

    def close(self) -> None:
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def partitions(self) -> list[tuple[str, int]]:
        """The source partitions that the link has copied from, in order."""
        return [(lane.topic, lane.partition) for lane in sorted(self._reader.lanes)]

    def translate(self, topic: str, partition: int, offset: int) -> Translation:
        """Of the source cluster's partition, to its copy on the target."""
        lane = LaneKey(topic, partition)
        record = self._reader.lanes.get(lane)
        if record is None:
            return Translation(Outcome.NOT_REPLICATED, reason=self._unknown(topic, partition))
        found = self._reader.offset_map(lane).translate(offset)
        return self._answer(record.target_topic, partition, found, f"replicated up to {record.position}", record)

    def reverse(self, target_topic: str, partition: int, offset: int) -> Translation:
        """Of a partition on the target cluster, to that which it is a copy of on the source."""
        lane = self._sources.get((target_topic, partition))
        if lane is None:
            return Translation(Outcome.NOT_REPLICATED, reason=self._unknown(target_topic, partition))
        record = self._reader.lanes[lane]
        found = self._reader.offset_map(lane).reverse(offset)
        return self._answer(lane.topic, partition, found, f"written up to {record.target_next}", record)

    def translate_many(self, topic: str, partition: int, offsets: npt.ArrayLike) -> Numbers:
        """`translate` for an array: int64 of the same shape, -1 where there is no answer yet.

        Raises ConfigError for a partition that the link knows nothing of.
        """
        return self._map(LaneKey(topic, partition), topic, partition).translate_many(offsets)

    def reverse_many(self, target_topic: str, partition: int, offsets: npt.ArrayLike) -> Numbers:
        """`reverse` for an array, as `translate_many`."""
        lane = self._sources.get((target_topic, partition))
        return self._map(lane, target_topic, partition).reverse_many(offsets)

    def _map(self, lane: LaneKey | None, topic: str, partition: int) -> OffsetMap:
        if lane is None or lane not in self._reader.lanes:
            raise ConfigError(self._unknown(topic, partition))
        return self._reader.offset_map(lane)

    def _answer(self, topic: str, partition: int, offset: int | None, end: str, record: LaneRecord) -> Translation:
        if offset is not None:
            return Translation(Outcome.TRANSLATED, topic, partition, offset)
        why = f"; the lane is {record.state}: {record.reason}" if record.reason else ""
        return Translation(Outcome.NOT_YET, topic, partition, None, f"only {end}{why}{self._damage()}")

    def _unknown(self, topic: str, partition: int) -> str:
        return f"link `{self.link}` has copied nothing of {topic}-{partition}{self._damage()}"

    def _damage(self) -> str:
        """To stand behind whatever may be missing because of it."""
        damaged, first = self._reader.damaged, self._reader.damage
        return f"; {damaged} of the records of its state cannot be read; the first: {first}" if damaged else ""


def choose_link(config: Config, name: str) -> Link:
    """The link of this name, or the only one. Raises ConfigError."""
    found = [link for link in config.links if name in ("", link.name)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(link.name for link in config.links)
    raise ConfigError(f"no link `{name}`" if name else "which of the links?", hint=f"one of {names}")
