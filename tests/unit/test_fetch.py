"""Fetch: what is asked for, and responses that arrive in pieces, out of order, cut by the broker, or full of lies."""

import struct
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator._core import VERDICTS, Event, FetchStream
from replicator.data.states import Checkpoint
from tests.oracle import fetch
from tests.oracle.batch import CONTROL, Batch, old_message
from tests.oracle.fetch import Fetched, FetchedTopic, diverging_epoch
from tests.oracle.lane import LaneModel
from tests.oracle.produce import ProduceRequest
from tests.oracle.rig import PRODUCER, LaneRig, Rig, Settings, joined, topic_id
from tests.oracle.strategies import logs

VERSIONS = pytest.mark.parametrize("version", [10, 13])
EXAMPLES = settings(deadline=None, max_examples=60)
PLACES = [("orders", 0), ("orders", 3), ("payments", 0), ("payments", 1)]
CORRELATION_ID = 101  # of a rig's first request


def rig_of(version: int, **limits: Any) -> Rig:
    return Rig(Settings(fetch_version=version, **limits))


# ---- requests ----


@VERSIONS
def test_a_request_asks_for_what_the_lanes_want(version):
    with rig_of(version, fetch_bytes_max=300_000, lane_bytes_max=100_000) as rig:
        one = rig.running("orders", 3)
        other = rig.start(rig.lane("payments", 1), Checkpoint(40, 9, 9))
        request = rig.ask()
        names = ["orders", "payments"] if version < 13 else [topic_id("orders"), topic_id("payments")]
        epoch = None if version < 12 else -1
        assert request.bytes_max == 300_000
        assert request.topics == [
            (names[0], [fetch.AskedPartition(3, 7, 0, epoch, 100_000)]),
            (names[1], [fetch.AskedPartition(1, 7, 40, epoch, 100_000)]),
        ]
        rig.feed(rig.response((one, Fetched(3, joined([Batch(count=5, leader_epoch=6)]))), (other, Fetched(1))))
        (_, (asked,)), (_, (untouched,)) = rig.ask().topics
        assert asked.fetch_offset == 5
        assert asked.last_fetched_epoch == (None if version < 12 else 6)
        assert asked.bytes_max == 100_000 - len(Batch(count=5).encode())
        assert untouched.fetch_offset == 40


@VERSIONS
def test_each_topic_is_named_once_and_the_longest_wait_comes_first(version):
    with rig_of(version) as rig:
        for topic, partition in [("b", 1), ("a", 0), ("b", 0), ("c", 5), ("a", 2), ("b", 7)]:
            rig.running(topic, partition)
        topics = [topic for topic, _ in rig.ask().topics]
        first_topic, first_partitions = fetch_order(rig, version)
        assert len(topics) == len(set(topics)) == 3
        assert first_topic in ("b", topic_id("b"))
        assert first_partitions[0] == 1


def fetch_order(rig: Rig, version: int) -> tuple[str | bytes, list[int]]:
    """The first topic of the request outstanding, asked for anew by an identical rig."""
    rig.stream.abort()
    again = rig.ask()
    return again.topics[0][0], [row.partition for row in again.topics[0][1]]


@VERSIONS
def test_one_partition_for_two_targets_is_asked_for_in_two_requests(version):
    """A broker answers a partition once, for the offset named last: the other lane would take in a hole."""
    with rig_of(version) as rig:
        near = rig.running("orders", 0, "orders.near")
        far = rig.start(rig.lane("orders", 0, "orders.far"), Checkpoint(50, 0, 0))
        other = rig.running("orders", 1)
        assert [partition for _, partition in rig.ask().asked] == [0, 1]
        rig.feed(rig.response((near, Fetched(0, joined([Batch(0, 50)]))), (other, Fetched(1))))
        assert (near["fetch_offset"], far["fetch_offset"]) == (50, 50)
        second = rig.ask()
        assert sorted(partition for _, partition in second.asked) == [0, 1]
        rig.feed(rig.response((far, Fetched(0, joined([Batch(50, 2)]))), (other, Fetched(1))))
        assert sorted((near["fetch_offset"], far["fetch_offset"])) == [50, 52]


def test_only_lanes_with_room_are_asked_for():
    batch = Batch(count=1, records=bytes(1_000))
    with Rig(Settings(lane_bytes_max=2 * len(batch.encode()) - 1)) as rig:
        lane = rig.running()
        rig.fetch(lane, batch)
        assert rig.ask() is None
        rig.acknowledge(rig.gather())
        assert rig.ask() is not None


def test_lanes_that_will_fill_a_response_leave_the_others_to_the_next_stream():
    with Rig(Settings(lane_bytes_max=1_000, fetch_bytes_max=2_500)) as rig:
        lanes = [rig.running("orders", partition) for partition in range(8)]
        rig.ask()
        rig.feed(rig.response(*((lane, Fetched(lane.partition)) for lane in lanes)))
        second_stream = FetchStream(rig.source, b"rig", 2_500)
        assert len(rig.ask().asked) == 3
        assert second_stream.compose(rig.source_side.transport, 13, 1, 0)
        assert len(fetch.parse_request(rig.source_side.sent()).asked) == 3


def test_one_request_at_a_time():
    with Rig() as rig:
        rig.running()
        assert rig.ask() is not None
        assert rig.ask() is None
        rig.running("orders", 1)
        assert rig.ask() is None
        rig.feed_nothing()
        assert len(rig.ask().asked) == 2


def test_the_buffer_of_a_request_that_is_still_being_sent_is_not_written_to():
    with Rig() as rig:
        rig.running()
        transport = rig.source_side.transport
        assert rig.stream.compose(transport, 13, CORRELATION_ID, 0)
        rig.fetch_id = CORRELATION_ID
        rig.feed_nothing()  # from a broker that did not wait for the question
        assert not rig.stream.compose(transport, 13, CORRELATION_ID + 1, 0)
        assert fetch.parse_request(rig.source_side.sent()).correlation_id == CORRELATION_ID
        assert rig.stream.compose(transport, 13, CORRELATION_ID + 1, 0)


def test_more_lanes_than_a_request_may_name():
    with Rig(Settings(credit_bytes=1 << 26)) as rig:
        for partition in range(4_100):
            rig.running("orders", partition)
        assert len(rig.ask().asked) == 4_096
        rig.stream.abort()
        assert len(set(rig.ask().asked)) == 4_096


# ---- responses: any cut gives the same ----


@dataclass
class Outcome:
    """Everything that can be seen of a rig after a response."""

    malformed: bool = False
    events: list[tuple[tuple[str, int], str, int, int, int]] = field(default_factory=list)
    counters: list[str] = field(default_factory=list)
    states: list[tuple[bool, int, int]] = field(default_factory=list)
    sent: list[tuple[str, int, bytes]] = field(default_factory=list)
    raw: list[tuple[tuple[str, int], str, int, bytes]] = field(default_factory=list)
    reserved: int = 0


def told(rig: Rig, events: list[Event]) -> list[tuple[tuple[str, int], str, int, int, int]]:
    places = {lane.native: lane.place for lane in rig.lanes}
    return [(places[event.lane], event.kind, event.code, event.first, event.second) for event in events]


def outcome_of(version: int, frame: bytes, cuts: list[int]) -> Outcome:
    """Four lanes ask, this frame arrives in these pieces, and all that was taken in is sent on."""
    outcome = Outcome()
    with rig_of(version) as rig:
        for topic, partition in PLACES:
            rig.running(topic, partition)
        rig.ask()
        try:
            rig.feed_quietly(frame, cuts)
        except ValueError:
            outcome.malformed = True
            rig.source_side.transport.close()
        outcome.events = told(rig, rig.stream.take_events())
        outcome.counters = [repr(lane.rows[0].tolist()) for lane in rig.lanes]
        outcome.states = [(lane.native.running, lane.native.queued, lane["version"]) for lane in rig.lanes]
        while request := rig.gather() or leave_out(rig, outcome):
            outcome.sent += request.batches
            rig.acknowledge(request)
        rig.stream.abort()
        outcome.reserved = rig.pool.used_bytes
    return outcome


def leave_out(rig: Rig, outcome: Outcome) -> ProduceRequest | None:
    """Notes the oldest raw batch of each lane, and makes nothing of it. What can be sent then."""
    for lane in rig.lanes:
        while batch := lane.native.raw(0):
            outcome.raw.append((lane.place, batch.why, batch.from_offset, bytes(batch)))
            assert lane.native.replace([]) == "pass"
    return rig.gather()


def fetched_topics(version: int, topics: list[FetchedTopic], **options: object) -> bytes:
    return fetch.encode_response(version, CORRELATION_ID, topics, **options)


def topic(name: str, *partitions: Fetched) -> FetchedTopic:
    return FetchedTopic(name, topic_id(name), list(partitions))


def busy_response(version: int) -> bytes:
    """Something of everything, with topics and partitions in another order than they were asked for."""
    cut_batch = Batch(5, 2, b"cut by the broker").encode()[:70]
    control = Batch(4, 1, b"ctl", attributes=CONTROL)
    payments = topic(
        "payments",
        Fetched(1, joined([Batch(0, 3), control]) + cut_batch, aborted=[(1, 2), (3, 4)]),
        Fetched(0, b"", error=6),
    )
    orders = topic(
        "orders",
        Fetched(3, joined([Batch(0, 2), Batch(2, 2, attributes=0x40), Batch(4, 1)]), tags=[(9, b"??")]),
        Fetched(0, None, tags=[(3, b""), diverging_epoch(4, 77), (8, b"later")]),
        Fetched(55, joined([Batch(0, 1)]), aborted=[]),
    )
    unknown = topic("unknown", Fetched(0, joined([Batch(0, 9)])))
    return fetched_topics(version, [payments, unknown, orders], throttle_ms=5, tags=[(1, b"node endpoints")])


@VERSIONS
def test_a_response_cut_at_every_byte_gives_the_same(version):
    frame = busy_response(version)
    whole = outcome_of(version, frame, [])
    kinds = {kind for _, kind, *_ in whole.events}
    assert kinds == {"fetch_error", "rebuild_ahead"} | ({"diverged"} if version >= 12 else set())
    assert [(name, partition) for name, partition, _ in whole.sent] == [("orders", 3), ("payments", 1), ("orders", 3)]
    assert [(place, why) for place, why, *_ in whole.raw] == [(("orders", 3), "rebuild_delete_horizon")]
    assert (whole.malformed, whole.reserved) == (False, 0)
    places = range(1, len(frame) + 4)
    assert outcome_of(version, frame, list(places)) == whole
    for cut in places:
        assert outcome_of(version, frame, [cut]) == whole, cut


@st.composite
def responses(draw: st.DrawFn, version: int) -> bytes:
    """Any true response to the four lanes: any order, some left out, some twice, some not asked for."""
    places = [*PLACES, ("orders", 9), ("elsewhere", 0)]
    asked = draw(st.lists(st.sampled_from(places), max_size=7))
    topics: list[FetchedTopic] = []
    for name, partition in asked:
        records = joined(draw(logs()))
        if draw(st.booleans()) and records:
            records = records[: draw(st.integers(0, len(records)))]
        fetched = Fetched(
            partition,
            draw(st.sampled_from([records, records, records, None])),
            error=draw(st.sampled_from([0, 0, 0, 0, 1, 6, -1])),
            high_watermark=draw(st.integers(0, 99)),
            aborted=draw(st.sampled_from([None, [], [(7, 8)], [(1, 1)] * 3])),
            tags=draw(st.lists(st.sampled_from([diverging_epoch(3, 9), (0, b"short"), (1, b"leader"), (7, b"")]))),
        )
        if not topics or topics[-1].name != name or draw(st.booleans()):
            topics.append(topic(name))
        topics[-1].partitions.append(fetched)
    return fetched_topics(version, topics)


@VERSIONS
@EXAMPLES
@given(data=st.data())
def test_any_response_cut_anywhere_gives_the_same(version, data):
    frame = data.draw(responses(version))
    cuts = data.draw(st.lists(st.integers(1, len(frame) + 3)))
    whole = outcome_of(version, frame, [])
    assert not whole.malformed
    assert outcome_of(version, frame, cuts) == whole
    assert whole.reserved == 0


LIES = [
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x80\0\0\0",
    b"\0\0\0\0",
    b"\0\0\0\1",
    b"\xff\xff\xff\xff\x0f",
    b"\xff\x7f",
]


@VERSIONS
@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_lies_do_no_harm_however_they_are_cut(version, data):
    frame = bytearray(data.draw(responses(version) | st.just(busy_response(version))))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(4, len(frame)))
        lie = data.draw(st.sampled_from(LIES) | st.binary(max_size=6))
        frame[place : place + data.draw(st.sampled_from([0, len(lie)]))] = lie
    cuts = data.draw(st.lists(st.integers(1, len(frame) + 3)))
    outcome = outcome_of(version, bytes(frame), [])
    assert outcome_of(version, bytes(frame), cuts) == outcome
    assert outcome.reserved == 0


@VERSIONS
@EXAMPLES
@given(noise=st.binary(max_size=200))
def test_noise_is_refused(version, noise):
    frame = struct.pack(">i", CORRELATION_ID) + noise
    assert outcome_of(version, frame, []) == outcome_of(version, frame, list(range(1, len(frame) + 4)))


@VERSIONS
def test_a_response_that_ends_early_or_late_is_malformed(version):
    frame = fetched_topics(version, [topic("orders", Fetched(0, joined([Batch(0, 1)])))])
    assert not outcome_of(version, frame, []).malformed
    for end in range(4, len(frame)):
        assert outcome_of(version, frame[:end], []).malformed, end
    for cuts in ([], [len(frame) + 4]):
        late = outcome_of(version, frame + b"\0", cuts)
        assert late.malformed
        assert len(late.sent) == 1


@VERSIONS
@pytest.mark.parametrize("size", [2**31 - 1, 100_000, 0x1_0000])
def test_records_that_claim_to_be_longer_than_the_frame(version, size):
    frame = fetched_topics(version, [topic("orders", Fetched(0, joined([Batch(0, 1)]), records_size=size))])
    outcome = outcome_of(version, frame, [])
    assert outcome.malformed
    assert outcome.sent == []


@VERSIONS
def test_counts_without_end(version):
    head = struct.pack(">i", CORRELATION_ID) + (b"\0" if version >= 12 else b"") + struct.pack(">ihi", 0, 0, 0)
    many = b"\xff\xff\xff\xff\x0f" if version >= 12 else b"\x7f\xff\xff\xff"
    no_partitions = (topic_id("orders") + b"\1\0" if version >= 13 else b"\0\6orders\0\0\0\0") * 50
    assert outcome_of(version, head + many, []).malformed
    assert outcome_of(version, head + many + no_partitions, []).malformed


def test_a_varint_of_more_than_32_bits_is_malformed():
    head = struct.pack(">i", CORRELATION_ID) + b"\0" + struct.pack(">ihi", 0, 0, 0)
    assert outcome_of(13, head + b"\x81\x80\x80\x80\x10", []).malformed
    assert outcome_of(13, head + b"\x81\x80\x80\x80\x80\x00", []).malformed
    assert not outcome_of(13, head + b"\x01\x00", []).malformed


@VERSIONS
def test_another_requests_answer_is_malformed(version):
    with rig_of(version) as rig:
        lane = rig.running()
        rig.ask()
        rig.fetch_id += 1
        with pytest.raises(ValueError, match="malformed"):
            rig.feed(rig.response((lane, Fetched(0))))
        with pytest.raises(ValueError, match="malformed"):
            rig.feed(rig.response((lane, Fetched(0))))
        assert lane["fetch_offset"] == 0


# ---- responses: what they mean ----


@VERSIONS
@EXAMPLES
@given(log=logs(start=3), cut=st.integers(0, 60))
def test_batches_become_what_the_model_makes_of_them(version, log, cut):
    model = LaneModel(PRODUCER)
    model.resume(Checkpoint(0, 0, 0))
    records = joined(log)
    records = records[: len(records) - cut] if cut else records
    whole, seen = [], 0
    for batch in log:
        seen += len(batch.encode())
        if seen <= len(records):
            whole.append(batch)
    assert model.take_in(whole) == []
    with rig_of(version) as rig:
        lane = rig.running()
        rig.ask()
        assert rig.feed(rig.response((lane, Fetched(0, records)))) == []
        assert lane["fetch_offset"] == model.fetch_offset
        assert lane.checkpoint == model.place
        assert lane.native.queued == model.queued
        while batch := model.send():
            ((_, _, data),) = rig.gather().batches
            assert data == batch.encode()


@VERSIONS
@pytest.mark.parametrize("committed", [False, True])
def test_watermarks_are_noted(version, committed):
    """Where what is not committed counts as well, all is stable up to the high watermark."""
    with rig_of(version, committed=committed) as rig:
        lane = rig.running()
        rig.ask()
        fetched = Fetched(0, high_watermark=77, last_stable_offset=70, log_start_offset=2)
        rig.feed(rig.response((lane, fetched)))
        stable = 70 if committed else 77
        assert (lane["high_watermark"], lane["last_stable_offset"], lane["log_start_offset"]) == (77, stable, 2)


@VERSIONS
def test_throttling_and_top_level_errors_can_be_read(version):
    with rig_of(version) as rig:
        rig.running()
        rig.ask()
        rig.feed(fetch.encode_response(version, rig.fetch_id, [], throttle_ms=250, error=71))
        assert (rig.stream.throttle_ms, rig.stream.error) == (250, 71)
        assert len(rig.ask().asked) == 1
        assert (rig.stream.throttle_ms, rig.stream.error) == (0, 0)


@VERSIONS
def test_an_error_takes_the_lane_from_its_source(version):
    with rig_of(version) as rig:
        lane = rig.running()
        rig.fetch(lane, Batch(0, 1))
        rig.ask()
        (event,) = rig.feed(rig.response((lane, Fetched(0, error=6))))
        assert (event.kind, event.code, event.lane) == ("fetch_error", 6, lane.native)
        assert rig.ask() is None
        assert lane.native.running
        assert rig.gather() is not None, "what is queued is still good"
        lane.native.set_source(rig.source, 8)
        assert rig.ask().topics[0][1][0].leader_epoch == 8


@VERSIONS
def test_a_late_error_does_not_touch_a_lane_that_was_placed_anew(version):
    with rig_of(version) as rig:
        lane = rig.running()
        rig.ask()
        lane.native.halt()
        rig.start(lane, Checkpoint(5, 5, 5))
        assert rig.feed(rig.response((lane, Fetched(0, error=6, high_watermark=-1)))) == []
        assert lane["high_watermark"] != -1
        assert rig.ask() is not None, "or nobody would ever look at the lane again"


@VERSIONS
def test_late_records_are_not_taken_in(version):
    with rig_of(version) as rig:
        lane = rig.running()
        rig.ask()
        lane.native.halt()
        rig.start(lane, Checkpoint(5, 5, 5))
        rig.feed(rig.response((lane, Fetched(0, joined([Batch(5, 1)])))))
        assert (lane.native.queued, lane["fetch_offset"]) == (0, 5)
        rig.fetch(lane, Batch(5, 1))
        assert (lane.native.queued, lane["fetch_offset"]) == (1, 6)


@VERSIONS
def test_a_lane_halted_between_two_pieces_takes_nothing_more(version):
    with rig_of(version) as rig:
        lane = rig.running()
        rig.ask()
        frame = rig.response((lane, Fetched(0, joined([Batch(0, 1), Batch(1, 1)]))))
        data = struct.pack(">I", len(frame)) + frame
        rig.source_side.far.sendall(data[:-30])
        assert rig.source_side.transport.receive(rig.stream) is None
        assert lane.native.queued == 1
        lane.native.halt()
        rig.source_side.far.sendall(data[-30:])
        assert rig.source_side.transport.receive(rig.stream) is not None
        assert lane.native.queued == 0


@VERSIONS
def test_batches_arrive_before_their_response_is_whole(version):
    with rig_of(version) as rig:
        lane = rig.running()
        rig.ask()
        frame = rig.response((lane, Fetched(0, joined([Batch(0, 1), Batch(1, 1, records=bytes(900))]))))
        rig.source_side.far.sendall(struct.pack(">I", len(frame)) + frame[:-900])
        assert rig.source_side.transport.receive(rig.stream) is None
        assert len(rig.gather().batches) == 1


def test_a_diverging_epoch_blocks_the_lane_and_lets_it_send_what_it_has():
    with Rig() as rig:
        lane = rig.running()
        rig.fetch(lane, Batch(0, 1))
        rig.ask()
        (event,) = rig.feed(rig.response((lane, Fetched(0, tags=[diverging_epoch(4, 77)]))))
        assert (event.kind, event.first, event.second) == ("diverged", 4, 77)
        assert rig.ask() is None
        assert rig.acknowledge(rig.gather()) == []
        assert lane.checkpoint.position == 1


def test_what_cannot_be_taken_blocks_its_lane_only():
    with Rig() as rig:
        lane, other = rig.running("orders", 0), rig.running("orders", 1)
        rig.ask()
        damaged = Batch(2, 7, last_offset_delta=5)
        blocked = Fetched(0, joined([Batch(0, 2), damaged, Batch(8, 1)]))
        (event,) = rig.feed(rig.response((lane, blocked), (other, Fetched(1, joined([Batch(0, 3)])))))
        assert (event.lane, VERDICTS[event.code], event.first) == (lane.native, "refuse_malformed", 2)
        assert (lane.native.queued, other.native.queued) == (1, 1)
        assert rig.ask().asked == [(topic_id("orders"), 1)]


@pytest.mark.parametrize("stop", [5, 6, 7])
def test_a_lane_whose_stop_offset_lies_in_a_hole_reaches_it(stop):
    with Rig() as rig:
        lane = rig.start(rig.lane(), stop=stop)
        rig.fetch(lane, Batch(0, 5), Batch(7, 2))
        assert rig.ask() is None
        rig.acknowledge(rig.gather())
        assert lane.checkpoint == Checkpoint(stop, 5, 5, 5)
        assert rig.gather() is None


def test_an_old_message_beyond_the_stop_offset_may_hold_offsets_below_it():
    """The offset of a compressed wrapper is that of its last record."""
    with Rig() as rig:
        lane = rig.start(rig.lane(), stop=10)
        rig.ask()
        (event,) = rig.feed(rig.response((lane, Fetched(0, old_message(12, 1)))))
        assert VERDICTS[event.code] == "refuse_magic"
        assert lane.checkpoint.position == 0


def test_a_lane_full_of_tiny_batches_is_not_asked_for():
    """The ring of a lane is bounded, and asking again for what does not fit would go round and round."""
    with Rig(Settings(credit_bytes=1 << 28, lane_bytes_max=1 << 28, fetch_bytes_max=1 << 20)) as rig:
        lane = rig.running()
        tiny = Batch(0, 1, records=b"")
        while rig.ask():
            start = lane["fetch_offset"]
            records = joined([tiny]) * 5_000
            renumbered = bytearray(records)
            for i in range(5_000):
                struct.pack_into(">q", renumbered, i * 61, start + i)
            rig.feed(rig.response((lane, Fetched(0, bytes(renumbered)))))
        assert 32_768 < lane.native.queued < 65_536
        assert lane.native.running


def test_a_response_with_more_batches_than_a_lane_holds_is_taken_in_as_far_as_there_is_room():
    with Rig(Settings(credit_bytes=1 << 28, lane_bytes_max=1 << 28)) as rig:
        lane = rig.running()
        records = bytearray(Batch(0, 1, records=b"").encode() * 70_000)
        for i in range(70_000):
            struct.pack_into(">q", records, i * 61, i)
        rig.ask()
        assert rig.feed(rig.response((lane, Fetched(0, bytes(records))))) == []
        assert (lane.native.queued, lane["fetch_offset"]) == (65_536, 65_536)


def test_the_same_partition_twice_in_one_response_counts_once():
    with Rig() as rig:
        lane = rig.running()
        rig.ask()
        fetched = Fetched(0, joined([Batch(0, 1)]))
        rig.feed(rig.response((lane, fetched), (lane, replace(fetched, records=joined([Batch(1, 1)])))))
        assert lane["fetch_offset"] == 1


@VERSIONS
def test_a_topic_of_the_same_name_or_id_is_what_counts(version):
    with rig_of(version) as rig:
        lane = rig.running()
        rig.ask()
        other_name = FetchedTopic("ordersX", topic_id("orders"), [Fetched(0, joined([Batch(0, 1)]))])
        rig.feed(fetch.encode_response(version, rig.fetch_id, [other_name]))
        assert lane["fetch_offset"] == (1 if version >= 13 else 0)
        rig.ask()
        other_id = FetchedTopic("orders", topic_id("ordersX"), [Fetched(0, joined([Batch(lane["fetch_offset"], 1)]))])
        rig.feed(fetch.encode_response(version, rig.fetch_id, [other_id]))
        assert lane["fetch_offset"] == 1


def test_lanes_left_out_of_an_answer_are_asked_for_again():
    with Rig() as rig:
        lanes: list[LaneRig] = [rig.running("orders", partition) for partition in range(3)]
        rig.ask()
        rig.feed(rig.response((lanes[1], Fetched(1, joined([Batch(0, 1)])))))
        assert len(rig.ask().asked) == 3
