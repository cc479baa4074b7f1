"""What a reader makes of a link's records, without a cluster: which prevail, which are passed over, what is damage."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import pytest
from confluent_kafka import KafkaError, KafkaException

from replicator.config.models import Cluster
from replicator.errors import ClusterError, ConfigError, NetworkError, ProtocolError, ReplicatorError
from replicator.offsets import LinkOffsets, Outcome
from replicator.state import reader as reader_module
from replicator.state.chunks import pack
from replicator.state.reader import StateReader
from replicator.state.records import (
    Chunk,
    ChunkKey,
    GroupKey,
    GroupOffset,
    GroupRecord,
    LaneKey,
    LaneRecord,
    LinkKey,
    LinkRecord,
    encode,
)
from tests.oracle.offset_map import Segment
from tests.unit.test_state_records import LANE

EU = Cluster("eu", (("127.0.0.1", 1),), {"bootstrap.servers": "127.0.0.1:1"})
ORDERS = LaneKey("orders", 3)


def lane(segments: Sequence[Segment] = (), **fields: Any) -> LaneRecord:
    """A record whose map ends with the last of the segments, unless `fields` say otherwise."""
    source, target, length = segments[-1] if segments else (0, 0, 0)
    ends = {"position": source + length, "target_next": target + length}
    return msgspec.structs.replace(LANE, **{"segments": tuple(segments), **ends, **fields})


def chunk_key(number: int, generation: int = 3, **fields: Any) -> ChunkKey:
    key = ChunkKey(ORDERS.topic, ORDERS.partition, LANE.topic_id, generation, number)
    return msgspec.structs.replace(key, **fields)


def made(records: Iterable[tuple[msgspec.Struct | bytes, msgspec.Struct | bytes | None]]) -> StateReader:
    reader = StateReader(EU, "us-eu")
    for key, value in records:
        reader.take(*(part if part is None or isinstance(part, bytes) else encode(part) for part in (key, value)))
    return reader


def whole(reader: StateReader) -> list[list[int]]:
    return reader.offset_map(ORDERS).segments.tolist()


# ---- which record counts ----


def test_the_last_of_a_generation_counts() -> None:
    reader = made([(ORDERS, lane(position=n)) for n in (5, 9)] + [(LaneKey("orders", 4), lane(position=7))])
    assert {key.partition: record.position for key, record in reader.lanes.items()} == {3: 9, 4: 7}
    assert reader.damaged == 0


def test_an_owner_of_the_past_is_not_believed() -> None:
    records = [lane(generation=generation, position=generation) for generation in (4, 5, 4, 3)]
    reader = made((ORDERS, record) for record in records)
    assert reader.lanes[ORDERS].position == 5
    reader.take(encode(ORDERS), encode(lane(generation=5, position=50)))
    assert reader.lanes[ORDERS].position == 50


def test_a_topic_made_anew_begins_again() -> None:
    """Generations go on growing, so an owner of the past does not bring the former topic back."""
    reader = made([(ORDERS, lane(generation=9)), (ORDERS, lane(generation=10, topic_id="other", position=2))])
    reader.take(encode(ORDERS), encode(lane(generation=9, position=90)))
    assert (reader.lanes[ORDERS].topic_id, reader.lanes[ORDERS].position) == ("other", 2)


def test_tombstones() -> None:
    link = LinkRecord(producer_id=1, producer_epoch=0, shards=64)
    reader = made([(LinkKey("us-eu"), link), (ORDERS, lane(generation=9))])
    assert reader.record == link
    reader.take(encode(ORDERS), None)
    assert reader.lanes == {}
    with pytest.raises(KeyError):
        reader.offset_map(ORDERS)
    reader.take(encode(ORDERS), encode(lane(generation=1)))
    assert reader.lanes[ORDERS].generation == 1
    reader.take(encode(LinkKey("us-eu")), None)
    assert reader.record is None


def test_groups_are_kept_apart() -> None:
    record = GroupRecord("billing", "synced", topics={"orders": (GroupOffset(3, 120, "synced"),)})
    reader = made([(GroupKey("billing"), record), (ORDERS, lane())])
    assert (list(reader.groups), list(reader.lanes)) == (["billing"], [ORDERS])
    assert reader.groups["billing"] == record
    reader.take(encode(GroupKey("billing")), None)
    assert reader.groups == {}


@pytest.mark.parametrize("key", [b'{"crowd":"billing"}', b'{"topic":"orders"}', b"{}", b'{"link":"a","topic":"b"}'])
def test_other_kinds_of_keys_are_others_business(key: bytes) -> None:
    reader = made([(key, b"whatever")])
    assert (reader.damaged, reader.damage, reader.lanes, reader.record) == (0, None, {}, None)


# ---- damage ----


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (b"", b"{}", "eu: not a key"),
        (b"\xff", b"{}", "eu: not a key"),
        (b"[1]", b"{}", "eu: not a key"),
        (b'{"topic":7,"partition":3}', b"{}", "eu: not a key"),
        (b'{"topic":"orders","partition":"3"}', b"{}", "eu: not a key"),
        (encode(ORDERS), b"{", "eu orders-3: not a LaneRecord"),
        (encode(ORDERS), encode(lane(version=2)), "eu orders-3: a LaneRecord of version 2"),
        (encode(LinkKey("us-eu")), b"[]", "eu: not a LinkRecord"),
        (encode(GroupKey("billing")), b"[]", "eu: not a GroupRecord"),
        (encode(chunk_key(0)), b"nonsense", "eu orders-3: not a Chunk"),
    ],
)
def test_damage_is_counted_and_passed_over(key: bytes, value: bytes, words: str) -> None:
    reader = made([(LaneKey("clicks", 0), lane()), (key, value), (key, value), (ORDERS, lane(position=5))])
    assert reader.damaged == 2
    assert str(reader.damage).startswith(words)
    assert len(reader.lanes) == 2


def test_a_damaged_record_leaves_the_one_before_it() -> None:
    reader = made([(ORDERS, lane(position=5)), (ORDERS, b"{}")])
    assert reader.lanes[ORDERS].position == 5
    assert reader.damaged == 1


# ---- maps ----


def test_a_map_is_its_chunks_and_the_record() -> None:
    reader = made(
        [
            (chunk_key(0), pack(3, [(0, 0, 10), (20, 10, 5)])),
            (chunk_key(1), pack(3, [(20, 10, 15), (40, 30, 1)])),
            (ORDERS, lane([(40, 30, 9)])),
        ]
    )
    assert whole(reader) == [[0, 0, 10], [20, 10, 15], [40, 30, 9]]
    assert reader.offset_map(ORDERS) is reader.offset_map(ORDERS)
    reader.take(encode(ORDERS), encode(lane([(40, 30, 12)])))
    assert whole(reader)[-1] == [40, 30, 12]
    reader.take(encode(chunk_key(1)), encode(pack(3, [(20, 10, 15), (38, 26, 2)])))
    assert whole(reader) == [[0, 0, 10], [20, 10, 15], [38, 26, 2], [40, 30, 12]]


def test_later_generations_prevail() -> None:
    records = [
        (chunk_key(0, 1), pack(1, [(0, 0, 10)])),
        (chunk_key(1, 1), pack(1, [(12, 10, 90)])),
        (chunk_key(0, 2), pack(2, [(30, 28, 5), (37, 40, 1)])),
        (ORDERS, lane([(37, 40, 10)], generation=2)),
    ]
    expected = [[0, 0, 10], [12, 10, 23], [37, 40, 10]]
    assert whole(made(records)) == expected
    assert whole(made([records[2], records[0], records[3], records[1]])) == expected, "whatever order they come in"


def test_what_is_beyond_the_checkpoint_is_left_out() -> None:
    reader = made([(chunk_key(0), pack(3, [(0, 0, 10), (20, 10, 50)])), (ORDERS, lane(position=30, target_next=20))])
    assert whole(reader) == [[0, 0, 10], [20, 10, 10]]


def test_chunks_of_another_incarnation_are_not_ours() -> None:
    chunk = pack(3, [(0, 0, 10)])
    reader = made([(chunk_key(0, topic_id="other"), chunk), (ORDERS, lane([(5, 0, 3)]))])
    assert whole(reader) == [[5, 0, 3]]


def test_chunks_that_were_dropped() -> None:
    """The target's log start moved: the oldest ones go."""
    chunks = [(chunk_key(n), pack(3, [(20 * n, 10 * n, 10), (20 * n + 20, 10 * n + 10, 1)])) for n in range(4)]
    reader = made([*chunks, (ORDERS, lane([(80, 40, 3)]))])
    assert len(whole(reader)) == 5
    reader.take(encode(chunk_key(0)), None)
    assert whole(reader)[0] == [20, 10, 10]
    reader.take(encode(chunk_key(2)), None)
    with pytest.raises(ProtocolError, match="eu orders-3: chunk 2 of generation 3 of the offset map is missing"):
        reader.offset_map(ORDERS)
    reader.take(*map(encode, chunks[2]))
    assert len(whole(reader)) == 4


def test_a_generation_without_its_first_chunk() -> None:
    chunk = pack(4, [(0, 0, 10)])
    reader = made([(chunk_key(0), pack(3, [(0, 0, 10)])), (chunk_key(1, 4), chunk), (ORDERS, lane([(0, 0, 10)]))])
    with pytest.raises(ProtocolError, match="chunk 0 of generation 4 of the offset map is missing"):
        reader.offset_map(ORDERS)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"{}", "chunk 0 of generation 3 of the offset map is damaged"),
        (pack(2, [(0, 0, 10)]), "chunk 0 of generation 3 of the offset map is damaged"),
        (msgspec.structs.replace(pack(3, [(0, 0, 10)]), checksum=1), "does not match its checksum"),
        (msgspec.structs.replace(pack(3, [(0, 0, 10)]), count=1 << 60), "segments in a chunk"),
    ],
)
def test_a_damaged_chunk_is_not_left_out_silently(value: Any, words: str) -> None:
    reader = made([(ORDERS, lane([(20, 10, 5)])), (chunk_key(0), value)])
    with pytest.raises(ProtocolError, match=f"eu orders-3: .*{words}"):
        reader.offset_map(ORDERS)
    reader.take(encode(chunk_key(0)), encode(pack(3, [(0, 0, 10)])))
    assert whole(reader) == [[0, 0, 10], [20, 10, 5]]


@pytest.mark.parametrize("segments", [((0, 0, 0),), ((5, 5, 5), (0, 0, 1)), ((0, 0, 1 << 70),)])
def test_a_record_whose_segments_are_none(segments: Any) -> None:
    reader = made([(ORDERS, lane(segments=segments, position=9, target_next=9))])
    with pytest.raises(ProtocolError, match="eu orders-3: bad offset map"):
        reader.offset_map(ORDERS)


@pytest.mark.parametrize("position", [-1, 1 << 70])
def test_a_record_whose_position_is_none(position: int) -> None:
    with pytest.raises(ProtocolError, match="eu orders-3: bad offset map"):
        made([(ORDERS, lane([(0, 0, 3)], position=position))]).offset_map(ORDERS)


def test_opened_maps_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "CACHED_SEGMENTS_MAX", 5)
    segments = [(0, 0, 1), (2, 1, 1)]
    lanes = [LaneKey("orders", n) for n in range(4)]
    reader = made((key, lane(segments)) for key in lanes)
    first = reader.offset_map(lanes[0])
    reader.offset_map(lanes[1])
    assert reader.offset_map(lanes[0]) is first
    reader.offset_map(lanes[2])  # in place of the one used longest ago
    assert reader.offset_map(lanes[0]) is first
    for key in lanes[1:]:
        reader.offset_map(key)
    assert reader.offset_map(lanes[0]) is not first


# ---- what a client says ----


class FakeConsumer:
    """A consumer whose first question fails."""

    def __init__(self, code: int) -> None:
        self.code = code

    def __call__(self, _properties: Any) -> "FakeConsumer":
        return self

    def list_topics(self, _topic: str, _timeout_s: float) -> Any:
        raise KafkaException(KafkaError(self.code))

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("code", "kind"),
    [(KafkaError._TRANSPORT, NetworkError), (KafkaError._TIMED_OUT, NetworkError), (29, ClusterError)],
)
def test_a_client_that_fails(monkeypatch: pytest.MonkeyPatch, code: int, kind: type[ReplicatorError]) -> None:
    monkeypatch.setattr(reader_module, "Consumer", FakeConsumer(code))
    reader = StateReader(EU, "us-eu")
    with pytest.raises(kind, match="eu: "):
        reader.catch_up()
    reader.close()
    reader.close()


def test_properties_that_the_client_does_not_know() -> None:
    cluster = msgspec.structs.replace(EU, properties={**EU.properties, "no.such.property": "1"})
    with pytest.raises(ConfigError, match=r"cluster `eu`: .*no\.such\.property"):
        StateReader(cluster, "us-eu").catch_up()


# ---- the public interface ----


@pytest.fixture
def offsets(monkeypatch: pytest.MonkeyPatch) -> LinkOffsets:
    """Of a link that has copied orders-3 to us.orders-3, and nothing is read from anywhere."""
    records = [(ORDERS, lane([(0, 0, 50), (70, 50, 50)], reason="no disk"))]
    reader = made(records)
    monkeypatch.setattr(reader, "catch_up", lambda timeout_s: None)
    monkeypatch.setattr("replicator.offsets.StateReader", lambda _cluster, _link: reader)
    return LinkOffsets.connect({"bootstrap.servers": "127.0.0.1:1"}, "us-eu")


def test_translations(offsets: LinkOffsets) -> None:
    assert offsets.partitions == [("orders", 3)]
    there = offsets.translate("orders", 3, 60)
    assert (there.outcome, there.topic, there.partition, there.offset) == ("translated", "us.orders", 3, 50)
    back = offsets.reverse("us.orders", 3, 50)
    assert (back.outcome, back.topic, back.partition, back.offset) == ("translated", "orders", 3, 70)
    assert offsets.translate_many("orders", 3, [0, 60, 120, 121]).tolist() == [0, 50, 100, -1]
    assert offsets.reverse_many("us.orders", 3, [0, 50, 100, 101]).tolist() == [0, 70, 120, -1]


def test_no_answer_has_a_reason(offsets: LinkOffsets) -> None:
    late = offsets.translate("orders", 3, 121)
    assert (late.outcome, late.offset, late.topic) == (Outcome.NOT_YET, None, "us.orders")
    assert late.reason == "only replicated up to 120; the lane is starting: no disk"
    assert offsets.reverse("us.orders", 3, 101).reason.startswith("only written up to 100; ")
    for other in (offsets.translate("us.orders", 3, 0), offsets.reverse("orders", 3, 0), offsets.translate("x", 0, 0)):
        assert (other.outcome, other.offset) == (Outcome.NOT_REPLICATED, None)
    assert offsets.translate("orders", 4, 0).reason == "link `us-eu` has copied nothing of orders-4"
    for many, topic in ((offsets.translate_many, "us.orders"), (offsets.reverse_many, "orders")):
        with pytest.raises(ConfigError, match=f"link `us-eu` has copied nothing of {topic}-3"):
            many(topic, 3, [1])


def test_what_may_be_missing_because_of_damage_says_so(offsets: LinkOffsets) -> None:
    offsets._reader.take(encode(LaneKey("orders", 4)), b"{")
    for found in (offsets.translate("orders", 4, 0), offsets.translate("orders", 3, 121)):
        assert "1 of the records of its state cannot be read; the first: eu orders-4: not a LaneRecord" in found.reason


def test_properties_without_an_address() -> None:
    with pytest.raises(ConfigError, match="0 addresses"):
        LinkOffsets.connect({}, "us-eu")


# ---- what the map does without ----


def numbered(*chunks: tuple[int, int, list[Segment]]) -> list[tuple[ChunkKey, Chunk]]:
    """Chunks by generation and number."""
    return [(chunk_key(number, generation), pack(generation, segments)) for generation, number, segments in chunks]


def obsolete(chunks: list[tuple[ChunkKey, Chunk]], log_start: int = 0) -> list[tuple[int, int]]:
    """(generation, number) of what may go. Checks that the map above the log start stays the same without it."""
    last = lane([(90, 45, 5)])
    reader = made([*chunks, (ORDERS, last)])
    gone = reader.obsolete_chunks(ORDERS, log_start)
    before = reader.offset_map(ORDERS).below(log_start).segments.tolist()
    left = made([*((key, chunk) for key, chunk in chunks if key not in gone), (ORDERS, last)])
    assert left.offset_map(ORDERS).below(log_start).segments.tolist() == before
    return [(key.generation, key.chunk) for key in gone]


def test_chunks_below_the_log_start_may_go() -> None:
    chunks = numbered(*((3, n, [(20 * n, 10 * n, 9), (20 * n + 15, 10 * n + 9, 1)]) for n in range(4)))
    assert obsolete(chunks) == []
    assert obsolete(chunks, log_start=9) == []
    assert obsolete(chunks, log_start=10) == [(3, 0)]
    assert obsolete(chunks, log_start=35) == [(3, 0), (3, 1), (3, 2)]


def test_chunks_that_a_later_owner_has_replaced_may_go() -> None:
    same = [(0, 0, 10)]
    assert obsolete(numbered((3, 0, same), (4, 0, same), (5, 0, [(0, 0, 10), (20, 10, 1)]))) == [(3, 0), (4, 0)]
    further_on = numbered((3, 0, [(0, 0, 10), (20, 10, 5)]), (3, 1, [(30, 15, 5)]), (4, 0, [(20, 10, 9)]))
    assert obsolete(further_on) == [(3, 1)]


def test_chunks_of_a_topic_that_is_gone_may_go() -> None:
    chunks = [(chunk_key(0, 2, topic_id="other"), pack(2, [(0, 0, 10)])), *numbered((3, 0, [(0, 0, 10)]))]
    assert obsolete(chunks) == [(2, 0)]


def test_a_damaged_chunk_is_not_tidied_away() -> None:
    chunks = numbered((3, 0, [(0, 0, 10)]), (3, 1, [(20, 10, 10)]), (4, 0, [(20, 10, 11)]))
    reader = made([chunks[0], (chunks[1][0], b"{"), chunks[2], (ORDERS, lane([(90, 45, 5)]))])
    assert reader.obsolete_chunks(ORDERS, 5) == []
