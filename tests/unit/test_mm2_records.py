"""MirrorMaker 2's records: known bytes, an obvious second encoder, and bytes that are damaged."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.errors import ProtocolError
from replicator.state import mm2_records as mm2
from replicator.state.mm2_records import Checkpoint, Heartbeat, OffsetSync

# Of the schemas of MirrorMaker 2's own classes; tests/compat compares with what those classes write.
VECTORS = [
    (OffsetSync("topic1", 3, 1000, 950), "0006746f7069633100000003", "00000000000003e800000000000003b6"),
    (
        Checkpoint("g1", "us-west.topic1", 3, 1000, 950),
        "00026731000e75732d776573742e746f7069633100000003",
        "000000000000000003e800000000000003b60000",
    ),
    (
        Heartbeat("us-west", "us-east", 1_700_000_000_000),
        "000775732d77657374000775732d65617374",
        "00000000018bcfe56800",
    ),
]


def names(value):
    return type(value).__name__ if isinstance(value, tuple) else ""


@pytest.mark.parametrize(("record", "key", "value"), VECTORS, ids=names)
def test_known_bytes(record, key, value):
    assert record.encode() == (bytes.fromhex(key), bytes.fromhex(value))
    assert type(record).decode(bytes.fromhex(key), bytes.fromhex(value)) == record


INT32 = st.integers(-(1 << 31), (1 << 31) - 1)
INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def plain_text(value):
    raw = value.encode()
    return struct.pack(">h", len(raw)) + raw


@given(TEXT, TEXT, INT32, INT64, INT64, TEXT)
def test_like_a_plain_encoder(group, topic, partition, upstream, downstream, metadata):
    number, offsets = struct.pack(">i", partition), struct.pack(">qq", upstream, downstream)
    sync = OffsetSync(topic, partition, upstream, downstream)
    assert sync.encode() == (plain_text(topic) + number, offsets)
    assert OffsetSync.decode(*sync.encode()) == sync

    checkpoint = Checkpoint(group, topic, partition, upstream, downstream, metadata)
    key = plain_text(group) + plain_text(topic) + number
    assert checkpoint.encode() == (key, b"\0\0" + offsets + plain_text(metadata))
    assert Checkpoint.decode(*checkpoint.encode()) == checkpoint

    beat = Heartbeat(group, topic, upstream)
    assert beat.encode() == (plain_text(group) + plain_text(topic), b"\0\0" + struct.pack(">q", upstream))
    assert Heartbeat.decode(*beat.encode()) == beat


@pytest.mark.parametrize(("record", "_key", "_value"), VECTORS, ids=names)
def test_cut_or_longer_bytes_are_refused(record, _key, _value):
    key, value = record.encode()
    bad_keys = [key[:size] for size in range(len(key))] + [key + b"\0"]
    bad_values = [value[:size] for size in range(len(value))] + [value + b"\0"]
    for bad in [(each, value) for each in bad_keys] + [(key, each) for each in bad_values]:
        with pytest.raises(ProtocolError):
            type(record).decode(*bad)


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_any_bytes_decode_to_themselves_or_are_refused(key, value):
    for kind in (OffsetSync, Checkpoint, Heartbeat):
        try:
            record = kind.decode(key, value)
        except ProtocolError:
            continue
        assert record.encode() == (key, value)


@pytest.mark.parametrize("record", [VECTORS[1][0], VECTORS[2][0]], ids=names)
def test_a_later_version_is_refused(record):
    key, value = record.encode()
    with pytest.raises(ProtocolError, match="version 1"):
        type(record).decode(key, b"\0\1" + value[2:])


def test_what_no_layout_holds_is_a_value_error():
    longest = "m" * mm2.TEXT_BYTES_MAX
    assert Checkpoint.decode(*Checkpoint("g", "t", 0, 1, 1, longest).encode()).metadata == longest
    for misfit in (Checkpoint("g", "t", 0, 1, 1, longest + "m"), OffsetSync("t", 1 << 31, 0, 0)):
        with pytest.raises(ValueError, match="cannot be written"):
            misfit.encode()


def test_topic_names():
    assert mm2.offset_syncs_topic("eu") == "mm2-offset-syncs.eu.internal"
    assert mm2.checkpoints_topic("us") == "us.checkpoints.internal"
    assert mm2.heartbeats_topic("us") == "us.heartbeats"
    assert mm2.offset_syncs_topic("eu", "_") == "mm2-offset-syncs_eu_internal"
    assert mm2.checkpoints_topic("us", "_") == "us_checkpoints_internal"
    assert mm2.heartbeats_topic("us", "_") == "us_heartbeats"
