"""What a link writes down on its target cluster: names of the topics, keys and values.

Keys and values are JSON, so that Kafka's own console consumer shows them to a person. Every value carries a `version`;
a reader refuses one that is newer than it knows.

    replicator.<link>.state    compacted, one partition a shard: LaneRecords; in shard 0 the LinkRecord and GroupRecords
    replicator.<link>.offsets  compacted, as many partitions: the offset map's Chunks
    replicator.<link>.events   one partition, kept for a while: every change of a lane's state (EventRecord)

The workers that own the shards are the members of the consumer group `replicator.<link>`.
"""

import base64
import zlib
from typing import TypeVar

import msgspec
from msgspec import Struct

from replicator.errors import ProtocolError

VERSION = 1

NO_TOPIC_ID = ""  # of a broker older than Kafka 2.8

T = TypeVar("T", bound=Struct)


def state_topic(link: str) -> str:
    return f"replicator.{link}.state"


def offsets_topic(link: str) -> str:
    return f"replicator.{link}.offsets"


def events_topic(link: str) -> str:
    return f"replicator.{link}.events"


def group_id(link: str) -> str:
    return f"replicator.{link}"


def shard_of(topic: str, partition: int, shards: int) -> int:
    """The shard that a lane belongs to: its partition of the state and offsets topics. Neighbours spread."""
    return (zlib.crc32(topic.encode()) + partition) % shards


def spell_topic_id(topic_id: bytes) -> str:
    """As Kafka's tools print it (base64url without padding); NO_TOPIC_ID for zeros."""
    return base64.urlsafe_b64encode(topic_id).rstrip(b"=").decode() if any(topic_id) else NO_TOPIC_ID


class LinkKey(Struct, frozen=True, forbid_unknown_fields=True):
    """Key of the LinkRecord."""

    link: str


class LaneKey(Struct, frozen=True, order=True, forbid_unknown_fields=True):
    """Key of a LaneRecord, and of the lane's events: its source partition."""

    topic: str
    partition: int


class ChunkKey(Struct, frozen=True, order=True, forbid_unknown_fields=True):
    """Key of a Chunk: the lane, which incarnation of its source topic, and the chunk's number in its generation, from
    0 on. So an owner of the past never overwrites what the present one has written."""

    topic: str
    partition: int
    topic_id: str
    generation: int
    chunk: int


class LinkRecord(Struct, frozen=True):
    """What the lanes of a link share. Written by whoever opens the link first, before any lane of it begins. So other
    links can tell which producers are links: all that this one has ever used stand here."""

    producer_id: int
    producer_epoch: int
    shards: int
    source_cluster_id: str = ""
    target_cluster_id: str = ""
    created_ms: int = 0
    other_producer_ids: tuple[int, ...] = ()  # that lanes use, or may have used
    version: int = VERSION


class LaneRecord(Struct, frozen=True):
    """A lane's checkpoint, and what it was doing then.

    Everything below source offset `position` was acknowledged by the target, whose log went on at `target_next` and
    our sequence at `sequence`. More may have landed since: the target's last batch tells how much, by its sequence.
    """

    # Grows by one with every owner: a record with a lower one comes from an owner of the past. 0: the lane never found
    # its place, so there is no checkpoint (position -1); the reason says what is in the way.
    generation: int
    topic_id: str  # of the source topic
    target_topic: str
    target_topic_id: str
    position: int
    target_next: int
    sequence: int
    leader_epoch: int  # of the source's last batch below `position`; -1: unknown
    producer_id: int
    producer_epoch: int
    # (source start, target start, length) of each segment that no chunk holds yet, and always of the last one.
    segments: tuple[tuple[int, int, int], ...] = ()
    # (source offset, sequence) of records that are sent after this was written, each behind a gap in the source's
    # offsets: how to tell from a sequence found on the target which source offset it stands for.
    ahead: tuple[tuple[int, int], ...] = ()
    state: str = "starting"
    reason: str = ""
    since_ms: int = 0  # when it came into this state
    written_ms: int = 0
    high_watermark: int = -1  # of the source, as the last Fetch saw it
    last_stable_offset: int = -1
    log_start_offset: int = -1
    last_timestamp_ms: int = -1  # of the last record that was acknowledged
    worker: str = ""  # host and process id of the owner
    policy: str = ""  # what is done to records on the way: a hash of edits, filters and isolation
    # What this owner has counted: batches by what was found of them (as replicator._core.VERDICTS names it), batches
    # that were merged, records that were filtered out or went to the dead letters. Only what is not 0.
    counts: dict[str, int] = {}
    version: int = VERSION


class Chunk(Struct, frozen=True):
    """A part of a lane's offset map. `replicator.state.chunks` packs and opens it.

    Bounds are inclusive at their start and exclusive at their end. `data` is base64 of zlib of int64 little-endian
    differences; `checksum` is the CRC-32C of those bytes before compression. In the order of generation and number each
    chunk says what holds from its source_start on, whatever those before it said about that; the segments of the
    LaneRecord come last.
    """

    generation: int
    count: int
    source_start: int
    source_end: int
    target_start: int
    target_end: int
    checksum: int
    data: str
    version: int = VERSION


class EventRecord(Struct, frozen=True):
    """Something happened to a lane; most often, it came from one state to another."""

    at_ms: int
    link: str
    topic: str
    partition: int
    kind: str  # `state`, or what replicator.data.transitions calls it
    was: str
    state: str
    reason: str
    position: int
    worker: str = ""
    version: int = VERSION


class GroupKey(Struct, frozen=True, order=True, forbid_unknown_fields=True):
    """Key of a GroupRecord, in shard 0: a consumer group's name on the source."""

    group: str


class GroupOffset(Struct, frozen=True, array_like=True):
    """One partition of a group, as an array of these, in order: a group may have thousands.

    Two pairs of offsets: what the source group has now, and what we committed on the target at last, together with
    the source offset that it stood for. That second pair is what the leader must remember: a source offset below
    `written_source` tells of a reset, a target offset other than `written_target` of somebody else's commit.
    """

    partition: int
    source_offset: int
    state: str
    reason: str = ""
    written_source: int = -1  # -1: we never committed here
    written_target: int = -1
    written_ms: int = 0


class GroupRecord(Struct, frozen=True):
    """A consumer group's offsets on the target, and why they are not the source's where they are not."""

    target_group: str
    state: str
    reason: str = ""
    ever_active: bool = False  # somebody was seen in the target group: its offsets are never set back any more
    topics: dict[str, tuple[GroupOffset, ...]] = {}  # by source topic
    written_ms: int = 0
    version: int = VERSION


def encode(record: Struct) -> bytes:
    """A key or value as compact JSON, fields in the order of the class."""
    return msgspec.json.encode(record)


def decode(raw: bytes, kind: type[T]) -> T:
    """Raises ProtocolError for bytes that are no such record, or one of a newer version than this program knows."""
    try:
        record = msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise ProtocolError(f"not a {kind.__name__}: {error}") from None
    version = getattr(record, "version", VERSION)
    if version > VERSION:
        raise ProtocolError(f"a {kind.__name__} of version {version}; this program knows up to {VERSION}: update it")
    return record
