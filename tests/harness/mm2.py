"""MirrorMaker 2's own classes and client library, asked through the JVM of a JavaWitness.

A record travels as the plain tuple of its fields, in the order in which MirrorMaker 2's constructor takes them, and a
`kind` is the name of its class: OffsetSync, Checkpoint or Heartbeat.
"""

from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tests.harness.java import JavaWitness

Raw = tuple[bytes, bytes]


@dataclass(frozen=True)
class Topology:
    """What RemoteClusterUtils knows of a cluster from the names of its topics; `hops` by alias, -1 for unreachable."""

    upstream: set[str]
    heartbeats: set[str]
    checkpoints: set[str]
    hops: dict[str, int]


class Translated(NamedTuple):
    """An offset that RemoteClusterUtils.translateOffsets gives for a partition of the target."""

    offset: int
    metadata: str


class Mm2Witness:
    """Of the version of the JVM's jars. `config` are properties by MirrorMaker 2's names. Raises JavaWitnessError."""

    def __init__(self, java: JavaWitness) -> None:
        self._java = java

    def encode(self, kind: str, fields: Sequence[object]) -> Raw:
        """(key, value) as MirrorMaker 2 writes the record."""
        key, value = self._ask("mm2_encode", kind=kind, fields=list(fields))
        return b64decode(key), b64decode(value)

    def decode(self, kind: str, raw: Raw) -> tuple[object, ...]:
        """The fields that MirrorMaker 2 reads out of (key, value)."""
        return tuple(self._ask("mm2_decode", kind=kind, record=_encoded(raw)))

    def format(self, kind: str, records: Iterable[Raw]) -> list[str]:
        """What kafka-console-consumer prints with MirrorMaker 2's formatter, a line a record."""
        lines: list[str] = self._ask("mm2_format", kind=kind, records=[_encoded(raw) for raw in records])
        return lines

    def topology(self, bootstrap: str, aliases: Sequence[str], config: Mapping[str, str] | None = None) -> Topology:
        found = self._ask("mm2_topology", bootstrap=bootstrap, aliases=list(aliases), config=config)
        return Topology(set(found["upstream"]), set(found["heartbeats"]), set(found["checkpoints"]), found["hops"])

    def translate(
        self, bootstrap: str, alias: str, group: str, config: Mapping[str, str] | None = None
    ) -> dict[tuple[str, int], Translated]:
        """RemoteClusterUtils.translateOffsets on a target cluster, for the group of the source called `alias`."""
        rows = self._ask("mm2_translate", bootstrap=bootstrap, alias=alias, group=group, config=config)
        return {(topic, partition): Translated(offset, metadata) for topic, partition, offset, metadata in rows}

    def offsets_by_syncs(
        self, topic: str, partition: int, offsets: Iterable[int], config: Mapping[str, str]
    ) -> list[int | None]:
        """What MirrorCheckpointTask makes of offsets of a source partition by the offset syncs that it finds.

        -1 is its word for "before all that I know"; None for "I know nothing of this partition".
        """
        where = [topic, partition]
        found: list[int | None] = self._ask("mm2_sync_store", partition=where, offsets=list(offsets), config=config)
        return found

    def _ask(self, operation: str, **arguments: object) -> Any:
        return self._java.ask(operation, arguments, [])


def _encoded(raw: Raw) -> list[str]:
    return [b64encode(part).decode() for part in raw]
