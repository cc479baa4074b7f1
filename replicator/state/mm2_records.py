"""MirrorMaker 2's own records, byte for byte as its classes OffsetSync, Checkpoint and Heartbeat write them.

    offset-syncs   key    source topic string | partition int32
                   value  upstream int64 | downstream int64
    checkpoints    key    group string | target topic string | partition int32
                   value  version int16 = 0 | upstream int64 | downstream int64 | metadata string
    heartbeats     key    source alias string | target alias string
                   value  version int16 = 0 | timestamp int64, milliseconds

Strings have an int16 length in front and are never null; an offset sync has no version at all. `upstream` are offsets
of the source, `downstream` those of the target. All of them stand in partition 0 of topics of one partition.
"""

import struct
from typing import Any, NamedTuple, Self

from replicator.errors import ProtocolError
from replicator.kafka.codec import INT16, INT32, INT64, STRING, Field, Reader, Struct

VERSION = 0
TEXT_BYTES_MAX = 32_767
HEARTBEATS = "heartbeats"


def offset_syncs_topic(other: str, separator: str = ".") -> str:
    """On the source cluster `other` is the target's alias, on the target cluster the source's."""
    return f"mm2-offset-syncs{separator}{other}{separator}internal"


def checkpoints_topic(source: str, separator: str = ".") -> str:
    """Of the checkpoints on a target cluster that come from `source`."""
    return f"{source}{separator}checkpoints{separator}internal"


def heartbeats_topic(source: str, separator: str = ".") -> str:
    """Of the copy, on a target cluster, of the heartbeats on `source`."""
    return f"{source}{separator}{HEARTBEATS}"


class _Layout:
    """A key or value as a row of fields; with a version in front of them where `versioned`."""

    def __init__(self, name: str, *fields: Field, versioned: bool = False) -> None:
        front = (Field("version", INT16),) if versioned else ()
        self._name = name
        self._codec = Struct(*front, *fields).at(version=0, flexible=False)
        self._fields = [field.name for field in fields]
        self._versioned = versioned

    def write(self, record: Any) -> bytes:
        body = {name: getattr(record, name) for name in self._fields}
        out = bytearray()
        try:
            self._codec.write(out, body | ({"version": VERSION} if self._versioned else {}))
        except (struct.error, UnicodeEncodeError) as misfit:
            raise ValueError(f"{record} cannot be written as a {self._name}: {misfit}") from None
        return bytes(out)

    def read(self, raw: bytes) -> dict[str, Any]:
        reader = Reader(raw, self._name)
        body: dict[str, Any] = self._codec.read(reader)
        reader.finish()
        version = body.pop("version", VERSION)
        if version != VERSION:
            raise ProtocolError(f"{self._name} of version {version}; MirrorMaker 2 has only version {VERSION}")
        return body


_SYNC_KEY = _Layout("offset sync's key", Field("topic", STRING), Field("partition", INT32))
_SYNC = _Layout("offset sync", Field("upstream", INT64), Field("downstream", INT64))
_CHECKPOINT_KEY = _Layout("checkpoint's key", Field("group", STRING), Field("topic", STRING), Field("partition", INT32))
_CHECKPOINT = _Layout(
    "checkpoint", Field("upstream", INT64), Field("downstream", INT64), Field("metadata", STRING), versioned=True
)
_HEARTBEAT_KEY = _Layout("heartbeat's key", Field("source", STRING), Field("target", STRING))
_HEARTBEAT = _Layout("heartbeat", Field("timestamp_ms", INT64), versioned=True)


class OffsetSync(NamedTuple):
    """One record that was copied: its offset on either side."""

    topic: str  # of the source
    partition: int
    upstream: int
    downstream: int

    def encode(self) -> tuple[bytes, bytes]:
        """(key, value). Raises ValueError for what the layout cannot hold."""
        return _SYNC_KEY.write(self), _SYNC.write(self)

    @classmethod
    def decode(cls, key: bytes, value: bytes) -> Self:
        """Raises ProtocolError for bytes that are no offset sync."""
        return cls(**_SYNC_KEY.read(key), **_SYNC.read(value))


class Checkpoint(NamedTuple):
    """Where a group stands: the next offset it reads, on either side."""

    group: str
    topic: str  # as it is called on the target
    partition: int
    upstream: int
    downstream: int
    metadata: str = ""

    def encode(self) -> tuple[bytes, bytes]:
        """(key, value). Raises ValueError for what the layout cannot hold."""
        return _CHECKPOINT_KEY.write(self), _CHECKPOINT.write(self)

    @classmethod
    def decode(cls, key: bytes, value: bytes) -> Self:
        """Raises ProtocolError for bytes that are no checkpoint of version 0."""
        return cls(**_CHECKPOINT_KEY.read(key), **_CHECKPOINT.read(value))


class Heartbeat(NamedTuple):
    """The link from `source` to `target`, both aliases, was alive at this time."""

    source: str
    target: str
    timestamp_ms: int

    def encode(self) -> tuple[bytes, bytes]:
        """(key, value). Raises ValueError for what the layout cannot hold."""
        return _HEARTBEAT_KEY.write(self), _HEARTBEAT.write(self)

    @classmethod
    def decode(cls, key: bytes, value: bytes) -> Self:
        """Raises ProtocolError for bytes that are no heartbeat of version 0."""
        return cls(**_HEARTBEAT_KEY.read(key), **_HEARTBEAT.read(value))
