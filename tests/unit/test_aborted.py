"""Transactions: what was aborted is left out, as the response's list and the markers among the batches tell."""

import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator._core import VERDICTS
from replicator.data.states import Checkpoint
from tests.oracle.batch import CONTROL, LOG_APPEND_TIME, TRANSACTIONAL, Batch, marker
from tests.oracle.fetch import Fetched, is_void
from tests.oracle.lane import LaneModel
from tests.oracle.rig import PRODUCER, LaneRig, Rig, Settings, joined
from tests.oracle.strategies import PLAIN, TRANSACTIONS, logs

VERSIONS = pytest.mark.parametrize("version", [10, 13])
TAGS = pytest.mark.parametrize("tags", [[], [(0, b""), (7, b"what is it")]])


def sent(offset: int, count: int, producer: int, attributes: int = 0) -> Batch:
    return Batch(offset, count, attributes=TRANSACTIONAL | attributes, producer_id=producer)


def commit(offset: int, producer: int) -> Batch:
    return marker(offset, True, producer)


def abort(offset: int, producer: int) -> Batch:
    return marker(offset, False, producer)


def committed(version: int) -> Rig:
    return Rig(Settings(fetch_version=version, committed=True))


def taken(rig: Rig, lane: LaneRig, log: list[Batch], **fetched: object) -> list[int]:
    """The sizes of the batches that go on to the target; they are told apart by them."""
    rig.ask()
    assert rig.feed(rig.response((lane, Fetched(0, joined(log), **fetched)))) == []
    counts = []
    while request := rig.gather():
        counts += [Batch.parse(data).count for *_, data in request.batches]
        assert rig.acknowledge(request) == []
    assert lane.checkpoint.position == log[-1].next_offset
    return counts


@VERSIONS
@pytest.mark.parametrize("isolation", [False, True])
def test_the_isolation_level_is_asked_for(version, isolation):
    with Rig(Settings(fetch_version=version, committed=isolation)) as rig:
        rig.running()
        assert rig.ask().committed == isolation


@VERSIONS
@TAGS
def test_transactions_that_interleave_are_told_apart(version, tags):
    log = [
        sent(0, 1, 7),
        sent(1, 2, 8),
        Batch(3, 3),
        sent(6, 4, 7),
        sent(10, 5, 9),
        abort(15, 7),
        sent(16, 6, 8),
        commit(22, 8),
        sent(23, 7, 7),
        commit(30, 7),
        abort(31, 9),
        sent(32, 8, 9),
        commit(40, 9),
    ]
    with committed(version) as rig:
        lane = rig.running()
        assert taken(rig, lane, log, aborted=[(7, 0), (9, 10)], aborted_tags=tags) == [2, 3, 6, 7, 8]
        assert lane.native.segments() == ((1, 0, 5), (16, 5, 6), (23, 11, 7), (32, 18, 8))
        assert (lane["skip_aborted"], lane["skip_control"], lane["skipped_batches"]) == (3, 5, 8)


@VERSIONS
@pytest.mark.parametrize(
    "aborted", [[(7, 0), (7, 4), (7, 8)], [(7, 8), (7, 0), (7, 4)], [(7, 4), (7, 4), (7, 8), (7, 0)]]
)
def test_one_producer_may_abort_again_and_again_and_commit_between(version, aborted):
    log = [sent(0, 1, 7), abort(1, 7), sent(2, 1, 7), commit(3, 7), sent(4, 2, 7), abort(6, 7), commit(7, 7)]
    log += [sent(8, 3, 7), abort(11, 7), sent(12, 4, 7), commit(16, 7)]
    with committed(version) as rig:
        assert taken(rig, rig.running(), log, aborted=aborted) == [1, 4]


@VERSIONS
def test_a_marker_that_compaction_took_does_not_outlive_the_next_one(version):
    """Both are of one producer: its next abort marker ends them both."""
    log = [sent(4, 2, 7), abort(6, 7), sent(8, 3, 7), commit(11, 7)]
    with committed(version) as rig:
        assert taken(rig, rig.running(), log, aborted=[(7, 0), (7, 4)]) == [3]


@VERSIONS
def test_a_transaction_that_begins_where_it_is_fetched_from_or_before(version):
    log = [sent(8, 5, 7), sent(13, 1, 7), abort(14, 7), sent(15, 2, 7), commit(17, 7)]
    with committed(version) as rig:
        lane = rig.start(rig.lane(), Checkpoint(13, 0, 0))
        assert taken(rig, lane, log, aborted=[(7, 3)]) == [2]
    with committed(version) as rig:
        lane = rig.start(rig.lane(), Checkpoint(10, 0, 0))
        assert taken(rig, lane, log, aborted=[(7, 8)]) == [2], "its head is not opened, either"


@VERSIONS
def test_a_transaction_that_ends_in_the_next_response_is_in_its_list_again(version):
    with committed(version) as rig:
        lane = rig.running()
        assert taken(rig, lane, [sent(0, 1, 7), sent(1, 1, 7)], aborted=[(7, 0)]) == []
        assert taken(rig, lane, [sent(2, 1, 7), abort(3, 7), Batch(4, 2)], aborted=[(7, 0)]) == [2]
        assert taken(rig, lane, [sent(6, 3, 7), commit(9, 7)], aborted=None) == [3], "the list is of one response"
        assert taken(rig, lane, [sent(10, 4, 7), commit(14, 7)], aborted=[]) == [4]


@VERSIONS
def test_each_partition_has_a_list_of_its_own(version):
    with committed(version) as rig:
        lanes = [rig.running("orders", partition) for partition in range(3)]
        rig.ask()
        log = joined([sent(0, 2, 7), sent(2, 3, 8)])
        lists = [[(7, 0)], None, [(8, 0), (9, 1)]]
        answers = [(lane, Fetched(lane.partition, log, aborted=lists[lane.partition])) for lane in lanes]
        rig.feed(rig.response(*answers))
        assert [lane.native.queued for lane in lanes] == [1, 2, 1]
        assert [lane["skip_aborted"] for lane in lanes] == [1, 0, 1]


def test_only_what_was_written_in_a_transaction_can_be_aborted():
    with committed(13) as rig:
        assert taken(rig, rig.running(), [Batch(0, 2, producer_id=7), sent(2, 3, 7)], aborted=[(7, 0)]) == [2]


def test_what_was_aborted_need_not_be_opened_but_it_must_be_a_batch():
    with committed(13) as rig:
        lane = rig.running()
        kinds = [sent(0, 2, 7, LOG_APPEND_TIME), sent(2, 1, 7, 6), replace(sent(3, 2, 7), last_offset_delta=4)]
        assert taken(rig, lane, [*kinds, Batch(8, 1)], aborted=[(7, 0)]) == [1]
        assert (lane["skip_aborted"], lane.native.raw_count) == (3, 0)
        rig.ask()
        fetched = Fetched(0, joined([replace(sent(9, 2, 7), count=5, last_offset_delta=1)]), aborted=[(7, 9)])
        (event,) = rig.feed(rig.response((lane, fetched)))
        assert VERDICTS[event.code] == "refuse_malformed"


def test_what_compaction_emptied_counts_as_that():
    with committed(13) as rig:
        lane = rig.running()
        emptied = Batch(0, 0, b"", last_offset_delta=3, attributes=TRANSACTIONAL, producer_id=7)
        assert taken(rig, lane, [emptied, sent(4, 1, 7)], aborted=[(7, 0)]) == []
        assert (lane["skip_empty"], lane["skip_aborted"]) == (1, 1)


# ---- markers ----

KEY_ABORT = struct.pack(">hh", 0, 0)


def control(record: bytes) -> Batch:
    return Batch(1, 1, record, attributes=CONTROL | TRANSACTIONAL, producer_id=7)


def control_record(key: bytes, key_size: int | None = None) -> bytes:
    size = 2 * len(key) if key_size is None else key_size
    body = b"\0\0\0" + bytes([size]) + key + b"\x01\0"
    return bytes([2 * len(body)]) + body


ENDS = {
    "abort": control_record(KEY_ABORT),
    "a later version": control_record(struct.pack(">hh", 3, 0)),
    "a longer key": control_record(KEY_ABORT + b"more"),
    "long numbers": b"\x80\x01\0\x80\x80\x80\x80\x80\x80\x80\x80\x80\0\x80\0\x08" + KEY_ABORT,
    "what follows the key is not looked at": control_record(KEY_ABORT)[:9],
}
NO_ENDS = {
    "commit": control_record(struct.pack(">hh", 0, 1)),
    "another type": control_record(struct.pack(">hh", 0, 2)),
    "a negative type": control_record(struct.pack(">hh", 0, -1)),
    "a null key": control_record(b"", 1),
    "an empty key": control_record(b""),
    "a short key": control_record(KEY_ABORT[:3]),
    "a key that says it is short": control_record(KEY_ABORT, 6),
    "a key of a negative length": control_record(KEY_ABORT, 9),
    "numbers without end": b"\xff" * 30,
    "nothing": b"",
}


def ends(record: bytes) -> bool:
    """Whether what follows it is kept: then it has ended the transaction."""
    with committed(13) as rig:
        counts = taken(rig, rig.running(), [sent(0, 1, 7), control(record), sent(2, 3, 7)], aborted=[(7, 0)])
        assert counts in ([], [3])
        return bool(counts)


@pytest.mark.parametrize("name", ENDS)
def test_what_ends_an_aborted_transaction(name):
    assert ends(ENDS[name])


@pytest.mark.parametrize("name", NO_ENDS)
def test_what_does_not(name):
    assert not ends(NO_ENDS[name])


@pytest.mark.parametrize("size", range(9))
def test_a_control_record_that_is_cut_ends_nothing(size):
    assert not ends(control_record(KEY_ABORT)[:size])


def test_a_marker_outside_a_transaction_ends_nothing():
    log = [sent(0, 1, 7), replace(abort(1, 7), attributes=CONTROL), sent(2, 3, 7)]
    with committed(13) as rig:
        assert taken(rig, rig.running(), log, aborted=[(7, 0)]) == []


# ---- any log ----


@VERSIONS
@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_any_log_is_taken_in_as_the_model_takes_it(version, data):
    log = data.draw(logs(size_max=12, kinds=PLAIN + TRANSACTIONS * 3))
    aborted = data.draw(st.lists(st.tuples(st.integers(1, 2), st.integers(0, 30)), max_size=6))
    cuts = data.draw(st.lists(st.integers(1, 2_000), max_size=6))
    tags = data.draw(st.sampled_from([[], [(3, b"x" * 40)]]))
    model = LaneModel(PRODUCER)
    model.resume(Checkpoint(0, 0, 0))
    assert model.take_in(log, [is_void(log, nth, aborted) for nth in range(len(log))]) == []
    with committed(version) as rig:
        lane = rig.running()
        rig.ask()
        fetched = Fetched(0, joined(log), aborted=aborted, aborted_tags=tags)
        assert rig.feed(rig.response((lane, fetched)), cuts) == []
        assert {name: lane[name] for name in VERDICTS} == {name: model.found[name] for name in VERDICTS}
        while batch := model.send():
            ((_, _, data),) = rig.gather().batches
            assert data == batch.encode()
        assert rig.gather() is None
        assert lane.checkpoint == model.place
