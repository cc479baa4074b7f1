"""Produce: what a request is made of, who gets into it, and what is believed of its answer."""

import ctypes
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator._core import Frame
from replicator.data.states import Checkpoint
from tests.oracle import produce
from tests.oracle.batch import Batch, is_intact
from tests.oracle.fetch import Fetched
from tests.oracle.produce import Produced
from tests.oracle.rig import PRODUCER, LaneRig, Rig, Settings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # kafka-python 3.0 loads its schemas in an old way
    from kafka.protocol.producer import ProduceRequest as WitnessRequest

VERSIONS = pytest.mark.parametrize("version", [7, 8])
EXAMPLES = settings(deadline=None, max_examples=60)
NAMES = st.sampled_from(["a", "b", "orders", "x" * 249])


def loaded(rig: Rig, *places: tuple[str, int], batches: int = 1, records: bytes = b"payload") -> list[LaneRig]:
    """Running lanes with so many batches of two records queued each, and nothing acknowledged yet."""
    lanes = [rig.running(*place) for place in places]
    for lane in lanes:
        rig.fetch(lane, *(Batch(2 * i, 2, records) for i in range(batches)))
    return lanes


def steady(rig: Rig, *places: tuple[str, int], batches: int) -> list[LaneRig]:
    """The same behind one batch of two records that was acknowledged, so that the next ones may be pipelined."""
    lanes = loaded(rig, *places, batches=batches + 1)
    rig.acknowledge(rig.gather())
    assert [lane.checkpoint for lane in lanes] == [Checkpoint(2, 2, 2, 5)] * len(lanes)
    return lanes


# ---- requests ----


@VERSIONS
@EXAMPLES
@given(places=st.lists(st.tuples(NAMES, st.integers(0, 99)), unique=True, min_size=1, max_size=12), data=st.data())
def test_a_request_is_what_two_other_parsers_read(version, places, data):
    payloads = {place: data.draw(st.binary(max_size=50)) for place in places}
    with Rig(Settings(produce_version=version)) as rig:
        for place in places:
            rig.fetch(rig.running(*place), Batch(0, 3, payloads[place]))
        assert rig.target.gather(rig.target_side.transport, version, 4711)
        sent = rig.target_side.sent()
    (request,) = produce.parse_requests(sent)
    assert (request.version, request.correlation_id, request.client_id) == (version, 4711, "rig")
    assert request.timeout_ms == 30_000
    names = [name for name, _ in request.topics]
    assert len(names) == len(set(names)), "a topic named twice loses one of the two"
    expected = {place: Batch(0, 3, payloads[place]).readdressed(*PRODUCER, 0).encode() for place in places}
    assert {(name, partition): batch for name, partition, batch in request.batches} == expected
    assert len(request.batches) == len(places)
    assert read_by_kafka_python(sent, version) == request.topics


def read_by_kafka_python(sent: bytes, version: int) -> list[tuple[str, list[tuple[int, bytes]]]]:
    message = WitnessRequest.decode(sent, version=version, header=True, framed=True)
    assert (message.acks, message.transactional_id) == (-1, None)
    return [
        (topic.name, [(row.index, bytes(row.records)) for row in topic.partition_data]) for topic in message.topic_data
    ]


def test_one_batch_a_partition_a_request():
    with Rig() as rig:
        steady(rig, ("a", 0), ("b", 1), batches=3)
        requests = [rig.gather() for _ in range(3)]
        assert all(len(request.batches) == 2 for request in requests)
        assert rig.gather() is None
        sequences = [[Batch.parse(data).base_sequence for *_, data in request.batches] for request in requests]
        assert sequences == [[2, 2], [4, 4], [6, 6]]
        assert rig.target.in_flight == 3
        for request in requests:
            assert rig.acknowledge(request) == []
        assert rig.target.in_flight == 0


@VERSIONS
def test_requests_may_be_pipelined_without_end(version):
    with Rig(Settings(produce_version=version)) as rig:
        (lane,) = steady(rig, ("a", 0), batches=300)
        requests = [rig.gather() for _ in range(300)]
        assert lane.native.in_flight == 300
        for request in requests:
            assert rig.acknowledge(request) == []
        assert lane.checkpoint == Checkpoint(602, 602, 602, 5)


def test_the_first_batch_goes_alone():
    """Where a broker knows nothing of us it takes any sequence: refusing the first, it would take the second."""
    with Rig() as rig:
        (lane,) = loaded(rig, ("a", 0), batches=4)
        for place in (None, Checkpoint(2, 2, 2)):
            if place:
                lane.native.halt()
                rig.start(lane, place)
                rig.fetch(lane, *(Batch(2 + 2 * i, 2) for i in range(3)))
            first = rig.gather()
            assert rig.gather() is None
            assert not rig.target.waiting
            rig.acknowledge(first)
            second, third = rig.gather(), rig.gather()
            assert rig.target.in_flight == 2
            rig.acknowledge(second)
            rig.acknowledge(third)
        assert lane.checkpoint == Checkpoint(8, 8, 8, 5)


def test_a_request_takes_no_more_bytes_than_allowed_but_always_one_batch():
    size = len(Batch(0, 2, bytes(100)).encode())
    with Rig(Settings(produce_bytes_max=3 * size)) as rig:
        loaded(rig, *(("a", partition) for partition in range(8)), records=bytes(100))
        assert [len(rig.gather().batches) for _ in range(3)] == [3, 3, 2]
    with Rig(Settings(produce_bytes_max=1)) as rig:
        loaded(rig, ("a", 0), ("a", 1))
        assert [len(rig.gather().batches) for _ in range(2)] == [1, 1]


def test_a_request_names_at_most_so_many_lanes_that_one_call_can_send_it():
    with Rig() as rig:
        loaded(rig, *(("a", partition) for partition in range(501)))
        assert [len(rig.gather().batches) for _ in range(2)] == [500, 1]


def test_no_lane_starves():
    size = len(Batch(0, 2).encode())
    with Rig(Settings(produce_bytes_max=2 * size)) as rig:
        lanes = loaded(rig, *(("a", partition) for partition in range(8)), batches=5, records=b"records")
        for _ in range(4):
            rig.acknowledge(rig.gather())
        turns = [partition for _ in range(16) for _, partition, _ in rig.gather().batches]
        assert rig.gather() is None
        assert len(turns) == 4 * len(lanes)
        for round_start in range(0, len(turns), 8):
            assert sorted(turns[round_start : round_start + 8]) == list(range(8))


def test_a_small_request_waits_for_company_only_while_answers_are_due():
    with Rig() as rig:
        lanes = steady(rig, *(("a", partition) for partition in range(8)), batches=3)
        requests = [rig.gather() for _ in range(3)]
        assert not rig.target.ready
        for lane in lanes[:3]:
            rig.fetch(lane, Batch(8, 2))
            assert rig.target.waiting
            assert not rig.target.ready
        rig.fetch(lanes[3], Batch(8, 2))
        assert rig.target.ready, "half as many wait as are on their way"
        requests.append(rig.gather())
        rig.fetch(lanes[7], Batch(8, 2))
        assert not rig.target.ready
        for request in requests[:2]:
            rig.acknowledge(request)
        assert rig.target.ready, "too few are in flight to be worth waiting for"


def test_who_waits_alone_is_not_held():
    with Rig() as rig:
        (lane,) = steady(rig, ("a", 0), batches=6)
        for _ in range(6):
            assert rig.target.ready
            rig.gather()
        assert lane.native.in_flight == 6


def test_lanes_that_are_lost_no_longer_count_as_company():
    with Rig() as rig:
        steady(rig, *(("a", partition) for partition in range(8)), batches=1)
        rig.gather()
        rig.target.abandon()
        rig.target.take_events()
        steady(rig, ("b", 0), batches=6)
        for _ in range(6):
            assert rig.target.ready
            rig.gather()


def test_a_request_that_is_still_being_sent_holds_the_next_one_back():
    with Rig() as rig:
        steady(rig, ("a", 0), batches=2)
        transport = rig.target_side.transport
        assert rig.target.gather(transport, 8, 1)
        assert rig.target.gather(transport, 8, 2) == 0
        assert rig.target.waiting
        assert transport.flush()
        assert rig.target.gather(transport, 8, 2)


def test_batches_are_sent_from_where_they_were_received():
    """Bytes that change in the received frame after the request was gathered change on the wire: nothing was copied."""
    with Rig() as rig:
        lane = rig.running()
        rig.ask()
        frame = rig.source_side.deliver(rig.response((lane, Fetched(0, Batch(0, 1, b"before").encode()))), rig.stream)
        assert rig.target.gather(rig.target_side.transport, 8, 1)
        place = bytes(frame).index(b"before")
        overwrite(frame, place, b"behind")
        ((_, _, data),) = produce.parse_requests(rig.target_side.sent())[0].batches
        assert data.endswith(b"behind")
        assert not is_intact(data)


def overwrite(frame: Frame, place: int, data: bytes) -> None:
    """Writes into a frame past its read-only face."""
    address = np.frombuffer(frame, dtype=np.uint8).ctypes.data
    ctypes.memmove(address + place, data, len(data))


# ---- answers ----


@VERSIONS
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]])
def test_an_answer_may_come_in_any_order(version, order):
    places = [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    with Rig(Settings(produce_version=version)) as rig:
        lanes = loaded(rig, *places)
        request = rig.gather()
        assert rig.settle(request, *(Produced(*places[i], 0) for i in order), throttle_ms=7) == []
        assert [lane.checkpoint for lane in lanes] == [Checkpoint(2, 2, 2, 5)] * 4
        assert [lane["records"] for lane in lanes] == [2] * 4
        assert rig.pool.used_bytes == 0


@pytest.mark.parametrize(
    "answers",
    [
        [Produced("a", 0)],
        [Produced("a", 0), Produced("a", 1), Produced("a", 1)],
        [Produced("a", 0), Produced("a", 1), Produced("a", 2)],
        [Produced("a", 0), Produced("b", 1)],
        [],
    ],
    ids=["missing", "twice", "extra", "another topic", "empty"],
)
def test_what_cannot_be_the_answer_ends_the_connection(answers):
    with Rig() as rig:
        lanes = loaded(rig, ("a", 0), ("a", 1))
        request = rig.gather()
        with pytest.raises(ValueError, match="not the answer"):
            rig.settle(request, *answers)
        answered = {(answer.topic, answer.partition) for answer in answers}
        rig.target.abandon()
        assert {event.kind for event in rig.target.take_events()} <= {"answer_lost"}
        for lane in lanes:
            assert lane.native.running == (lane.place in answered)
            assert lane.native.in_flight == 0
        assert rig.pool.used_bytes == 0


@VERSIONS
def test_answers_that_are_cut_or_lie(version):
    def attempt(frame: bytes) -> None:
        with Rig(Settings(produce_version=version)) as rig:
            lanes = loaded(rig, ("a", 0), ("b", 1))
            rig.produce_id = 0
            rig.gather()
            with pytest.raises(ValueError, match="not the answer"):
                rig.target.settle(rig.target_frame(frame))
            rig.target.abandon()
            rig.target.take_events()
            assert [lane.native.in_flight for lane in lanes] == [0, 0]
            assert rig.pool.used_bytes == 0

    words = Produced("b", 1, 0, 87, ((0, "one"), (1, None)), "whole")
    frame = produce.encode_response(version, 1, [Produced("a", 0), words])
    for end in range(4, len(frame)):
        attempt(frame[:end])
    for place in (4, 8, 11, 15):
        for lie in (b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff"):
            attempt(frame[:place] + lie + frame[place + 4 :])
    attempt(produce.encode_response(version, 2, [Produced("a", 0), words]))


@settings(deadline=None, max_examples=150)
@given(version=st.sampled_from([7, 8]), noise=st.binary(max_size=120), place=st.integers(4, 90))
def test_noise_in_an_answer_is_survived(version, noise, place):
    with Rig(Settings(produce_version=version)) as rig:
        loaded(rig, ("a", 0), ("b", 1))
        rig.produce_id = 0
        rig.gather()
        frame = produce.encode_response(version, 1, [Produced("a", 0), Produced("b", 1)])
        frame = frame[:place] + noise + frame[place + len(noise) :]
        try:
            rig.target.settle(rig.target_frame(frame))
        except ValueError:
            rig.target.abandon()
        assert rig.target.in_flight == 0
        rig.target.take_events()
        while request := rig.gather():
            rig.acknowledge(request)
        assert rig.pool.used_bytes == 0


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Produced("a", 0, -1, 32, ((1, "out of range"), (2, "too")), "some records"), "out of range"),
        (Produced("a", 0, -1, 32, ((1, None), (2, "too")), "some records"), "too"),
        (Produced("a", 0, -1, 32, (), "some records"), "some records"),
        (Produced("a", 0, -1, 32, (), None), ""),
        (Produced("a", 0, -1, 32, (), "w" * 500), "w" * 199),
    ],
)
def test_an_error_halts_its_lane_only_and_brings_the_brokers_words(answer, words):
    with Rig() as rig:
        lane, other = loaded(rig, ("a", 0), ("b", 1), batches=2)
        request = rig.gather()
        (event,) = rig.settle(request, answer, Produced("b", 1, 0))
        assert (event.lane, event.kind, event.code) == (lane.native, "produce_error", 32)
        assert event.text == words
        assert (lane.native.running, lane.native.queued, lane.native.in_flight) == (False, 0, 0)
        assert lane.checkpoint == Checkpoint(0, 0, 0)
        assert other.checkpoint == Checkpoint(2, 2, 2, 5)
        assert [(name, partition) for name, partition, _ in rig.gather().batches] == [("b", 1)]


def test_words_that_are_no_text_are_shown_all_the_same():
    with Rig() as rig:
        loaded(rig, ("a", 0))
        frame = produce.encode_response(8, rig.gather().correlation_id, [Produced("a", 0, -1, 87, (), "??")])
        rig.target.settle(rig.target_frame(frame.replace(b"??", b"\xff\xfe")))
        (event,) = rig.target.take_events()
        assert event.text == "\N{REPLACEMENT CHARACTER}" * 2


@pytest.mark.parametrize("answered", [-1, 1, 3, 2**62])
def test_an_offset_that_was_not_due_halts_the_lane(answered):
    with Rig() as rig:
        (lane,) = loaded(rig, ("a", 0), batches=2)
        (event,) = rig.settle(rig.gather(), Produced("a", 0, answered))
        assert (event.kind, event.first, event.second) == ("offset_drift", 0, answered)
        assert not lane.native.running
        assert lane.checkpoint == Checkpoint(0, 0, 0)


def test_answers_that_come_after_an_error_are_not_believed():
    """Everything behind a refused batch was refused too, or else nobody knows where it landed."""
    with Rig() as rig:
        (lane,) = steady(rig, ("a", 0), batches=3)
        requests = [rig.gather() for _ in range(3)]
        (event,) = rig.settle(requests[0], Produced("a", 0, -1, 45))
        assert event.code == 45
        assert rig.settle(requests[1], Produced("a", 0, 2)) == []
        assert lane.native.in_flight == 1
        assert rig.settle(requests[2], Produced("a", 0, -1, 45)) == []
        assert lane.checkpoint == Checkpoint(2, 2, 2, 5)
        assert lane.native.in_flight == 0
        assert rig.pool.used_bytes == 0


def test_a_lost_connection_halts_every_lane_with_something_in_flight_once():
    with Rig() as rig:
        busy, also_busy = steady(rig, ("a", 0), ("b", 1), batches=3)
        requests = [rig.gather() for _ in range(3)]
        rig.acknowledge(requests[0])
        other = rig.running("c", 0)
        rig.target.abandon()
        events = rig.target.take_events()
        assert sorted((event.lane.source_topic, event.kind) for event in events) == [
            ("a", "answer_lost"),
            ("b", "answer_lost"),
        ]
        assert [lane.native.running for lane in (busy, also_busy, other)] == [False, False, True]
        assert busy.checkpoint == Checkpoint(4, 4, 4, 5)
        rig.target.abandon()
        assert rig.target.take_events() == []


def test_an_answer_to_what_is_still_being_sent_is_refused():
    """Its batches stand in memory that the socket has yet to read."""
    with Rig() as rig:
        loaded(rig, ("a", 0))
        transport = rig.target_side.transport
        assert rig.target.gather(transport, 8, 1)
        answer = rig.target_frame(produce.encode_response(8, 1, [Produced("a", 0)]))
        with pytest.raises(ValueError, match="still being sent"):
            rig.target.settle(answer)
        with pytest.raises(RuntimeError, match="close its transport"):
            rig.target.abandon()
        transport.close()
        rig.target.abandon()
        assert [event.kind for event in rig.target.take_events()] == ["answer_lost"]


def test_an_answer_when_nothing_was_asked():
    with Rig() as rig, pytest.raises(ValueError, match="not the answer"):
        rig.target.settle(rig.target_frame(produce.encode_response(8, 1, [])))


def test_words_of_an_unknown_partition_are_no_reason_to_halt_others():
    with Rig() as rig:
        (lane,) = loaded(rig, ("a", 0))
        with pytest.raises(ValueError, match="not the answer"):
            rig.settle(rig.gather(), Produced("zzz", 5, -1, 3))
        assert lane.native.running
        assert rig.target.take_events() == []
