"""The contract of what a link writes down: names, keys and values as JSON, and what is refused."""

import zlib

import msgspec
import pytest

from replicator.errors import ProtocolError
from replicator.state import records
from replicator.state.records import (
    NO_TOPIC_ID,
    Chunk,
    ChunkKey,
    GroupKey,
    LaneKey,
    LaneRecord,
    LinkKey,
    LinkRecord,
    decode,
    encode,
    shard_of,
    spell_topic_id,
)

LANE = LaneRecord(
    generation=3,
    topic_id="AAAAAAAAAAAAAAAAAAAAAQ",
    target_topic="us.orders",
    target_topic_id="",
    position=120,
    target_next=100,
    sequence=100,
    leader_epoch=7,
    producer_id=1000,
    producer_epoch=0,
    segments=((0, 0, 50), (70, 50, 50)),
)


def test_names() -> None:
    assert records.state_topic("us-eu") == "replicator.us-eu.state"
    assert records.offsets_topic("us-eu") == "replicator.us-eu.offsets"
    assert records.events_topic("us-eu") == "replicator.us-eu.events"
    assert records.group_id("us-eu") == "replicator.us-eu"


def test_values_are_json_that_a_person_can_read() -> None:
    found = msgspec.json.decode(encode(LANE))
    assert found["position"] == 120
    assert found["segments"] == [[0, 0, 50], [70, 50, 50]]
    assert found["version"] == 1
    assert decode(encode(LANE), LaneRecord) == LANE


@pytest.mark.parametrize(
    ("key", "raw"),
    [
        (LinkKey("us-eu"), b'{"link":"us-eu"}'),
        (LaneKey("orders", 3), b'{"topic":"orders","partition":3}'),
        (
            ChunkKey("orders", 3, "x", 2, 5),
            b'{"topic":"orders","partition":3,"topic_id":"x","generation":2,"chunk":5}',
        ),
        (GroupKey("billing"), b'{"group":"billing"}'),
    ],
)
def test_keys_are_bytes_that_never_change(key: msgspec.Struct, raw: bytes) -> None:
    """Compaction goes by the bytes: another spelling would be another record."""
    assert encode(key) == raw
    assert decode(raw, type(key)) == key


def test_keys_of_different_kinds_have_different_fields() -> None:
    fields = [frozenset(kind.__struct_fields__) for kind in (LinkKey, LaneKey, ChunkKey, GroupKey)]
    assert len(set(fields)) == len(fields)


def test_a_field_more_is_for_a_newer_program() -> None:
    assert decode(encode(LANE)[:-1] + b',"mood":"fine"}', LaneRecord) == LANE


def test_a_newer_version_is_refused() -> None:
    raw = encode(msgspec.structs.replace(LANE, version=2))
    with pytest.raises(ProtocolError, match="a LaneRecord of version 2; this program knows up to 1: update it"):
        decode(raw, LaneRecord)


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"generation":1}', b'{"producer_id":"x","producer_epoch":0,"shards":1}'],
)
@pytest.mark.parametrize("kind", [LinkRecord, LaneRecord, Chunk])
def test_what_is_no_record(raw: bytes, kind: type[msgspec.Struct]) -> None:
    with pytest.raises(ProtocolError, match=f"not a {kind.__name__}"):
        decode(raw, kind)


def test_topic_ids_are_spelled_as_by_kafka() -> None:
    assert spell_topic_id(bytes(16)) == NO_TOPIC_ID
    assert spell_topic_id(bytes(15) + b"\x01") == "AAAAAAAAAAAAAAAAAAAAAQ"
    assert spell_topic_id(b"\xff" * 16) == "_" * 21 + "w"


def test_shards_are_as_they_always_were() -> None:
    """Stored state depends on it: the shard of a lane is the partition that its record is in."""
    assert shard_of("orders", 0, 64) == zlib.crc32(b"orders") % 64
    assert [shard_of("orders", partition, 4) for partition in range(5)] == [
        (shard_of("orders", 0, 4) + partition) % 4 for partition in range(5)
    ]
    assert {shard_of("größe", partition, 8) for partition in range(8)} == set(range(8))
