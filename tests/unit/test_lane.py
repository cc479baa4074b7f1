"""A lane's life: placed, filled, sent, settled, halted, placed again; step by step beside the slow model."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from replicator._core import COUNTERS_SIZE, VERDICTS, Lane, Scratch, Terms
from replicator.data.reasons import WHY
from replicator.data.states import Checkpoint, row_dtype
from tests.oracle.batch import CONTROL, TRANSACTIONAL, Batch
from tests.oracle.fetch import Fetched, is_void
from tests.oracle.lane import LaneModel
from tests.oracle.lane import joined as one_by_one
from tests.oracle.opened import make, make_one, opened
from tests.oracle.produce import Produced
from tests.oracle.records import Record
from tests.oracle.rig import PRODUCER, Rig, Settings, joined, topic_id
from tests.oracle.strategies import PLAIN, RAW, TRANSACTIONS, logs


def marker(offset: int) -> Batch:
    return Batch(offset, 1, attributes=CONTROL | TRANSACTIONAL)


def emptied(offset: int, width: int = 4) -> Batch:
    return Batch(offset, 0, b"", last_offset_delta=width - 1)


# ---- the row ----


def test_the_row_has_the_layout_that_python_reads():
    assert row_dtype().itemsize == COUNTERS_SIZE


def test_a_wrong_row_or_name_is_refused():
    def make(topic: str = "t", id_size: int = 16, row_size: int = COUNTERS_SIZE) -> Lane:
        row = memoryview(np.zeros(row_size, np.uint8))
        return Lane(topic, bytes(id_size), topic, 0, PRODUCER, row)

    make("t" * 249)
    for wrong in ({"row_size": COUNTERS_SIZE - 1}, {"id_size": 15}, {"topic": ""}, {"topic": "t" * 250}):
        with pytest.raises(ValueError):  # noqa: PT011
            make(**wrong)


def test_verdicts_that_stop_a_lane_all_have_words():
    assert set(WHY) | {"refuse_producer"} == {verdict for verdict in VERDICTS if verdict.startswith("refuse")}


# ---- what moves the position ----


def test_a_batch_moves_the_position_when_it_is_acknowledged():
    with Rig() as rig:
        lane = rig.start(rig.lane(), Checkpoint(10, 20, 30))
        rig.fetch(lane, Batch(10, 5, max_timestamp=777))
        assert (lane["fetch_offset"], lane.checkpoint) == (15, Checkpoint(10, 20, 30))
        request = rig.gather()
        assert lane.checkpoint == Checkpoint(10, 20, 30)
        rig.settle(request, Produced("orders", 0, 20))
        assert lane.checkpoint == Checkpoint(15, 25, 35, 5)
        assert (lane["records"], lane["batches"], lane["max_timestamp"]) == (5, 1, 777)
        assert lane["bytes"] == len(Batch(10, 5).encode())


@pytest.mark.parametrize("nothing", [marker, emptied])
def test_what_leaves_no_trace_moves_the_position_at_once_when_nothing_stands_before_it(nothing):
    with Rig() as rig:
        lane = rig.running()
        rig.fetch(lane, nothing(0))
        assert lane.checkpoint == Checkpoint(nothing(0).next_offset, 0, 0, 5)
        assert (lane["skipped_batches"], rig.gather()) == (1, None)


@pytest.mark.parametrize("nothing", [marker, emptied])
def test_what_leaves_no_trace_waits_for_what_stands_before_it(nothing):
    with Rig() as rig:
        lane = rig.running()
        rig.fetch(lane, Batch(0, 5), nothing(5), Batch(20, 1))
        request = rig.gather()
        assert lane.checkpoint.position == 0
        rig.settle(request, Produced("orders", 0, 0))
        assert lane.checkpoint == Checkpoint(nothing(5).next_offset, 5, 5, 5)
        rig.settle(rig.gather(), Produced("orders", 0, 5))
        assert lane.checkpoint == Checkpoint(21, 6, 6, 5)


def test_what_leaves_no_trace_may_come_while_the_batch_before_it_is_in_flight():
    with Rig() as rig:
        lane = rig.running()
        rig.fetch(lane, Batch(0, 5))
        request = rig.gather()
        rig.fetch(lane, marker(5), marker(6))
        assert (lane["fetch_offset"], lane.checkpoint.position) == (7, 0)
        rig.settle(request, Produced("orders", 0, 0))
        assert lane.checkpoint == Checkpoint(7, 5, 5, 5)


def test_batches_from_before_the_position_are_left_out():
    with Rig() as rig:
        lane = rig.start(rig.lane(), Checkpoint(10, 0, 0))
        rig.fetch(lane, Batch(0, 5), marker(5), Batch(6, 4), Batch(10, 1))
        assert (lane.native.queued, lane["fetch_offset"], lane["skipped_batches"]) == (1, 11, 0)


# ---- the stop offset ----


def test_a_lane_stops_with_the_batch_that_holds_its_stop_offset():
    with Rig() as rig:
        lane = rig.start(rig.lane(), stop=7)
        rig.fetch(lane, Batch(0, 5), Batch(5, 5), Batch(10, 5))
        assert (lane.native.queued, lane["fetch_offset"]) == (2, 10)
        assert rig.ask() is None


def test_a_lane_that_starts_at_its_stop_offset_asks_for_nothing():
    with Rig() as rig:
        rig.start(rig.lane(), Checkpoint(7, 0, 0), stop=7)
        assert rig.ask() is None


def test_nothing_beyond_the_stop_offset_stops_a_lane_with_a_fault():
    with Rig() as rig:
        lane = rig.start(rig.lane(), stop=5)
        rig.fetch(lane, Batch(0, 5), Batch(5, 2, last_offset_delta=9), replace(Batch(15, 1), count=-4))
        assert (lane.native.queued, lane["fetch_offset"]) == (1, 5)


# ---- records that the target holds already ----


def test_exactly_the_records_beyond_the_checkpoint_are_passed_over():
    with Rig() as rig:
        lane = rig.start(rig.lane(), Checkpoint(10, 100, 50), skip=7)
        rig.fetch(lane, Batch(10, 3), marker(13), Batch(14, 4), Batch(18, 2))
        assert lane.native.skip_records == 0
        assert lane.checkpoint == Checkpoint(18, 107, 57, 5)
        ((_, _, data),) = rig.gather().batches
        assert Batch.parse(data).base_sequence == 57


def test_a_target_whose_tail_ends_inside_a_source_batch_is_refused():
    with Rig() as rig:
        lane = rig.start(rig.lane(), Checkpoint(10, 100, 50), skip=5)
        (event,) = rig.fetch(lane, Batch(10, 3), Batch(13, 4))
        assert (event.kind, VERDICTS[event.code], event.first) == ("cannot_take", "refuse_tail", 13)
        assert lane.checkpoint == Checkpoint(13, 103, 53, 5)
        assert (lane.native.queued, lane.native.skip_records) == (0, 2)


def test_a_target_that_holds_more_than_the_source_has_below_the_stop_offset_is_refused():
    with Rig() as rig:
        lane = rig.start(rig.lane(), skip=5, stop=4)
        (event,) = rig.fetch(lane, Batch(0, 3), Batch(6, 2))
        assert VERDICTS[event.code] == "refuse_tail"


# ---- sequences ----


@pytest.mark.parametrize(
    ("before", "count", "after"),
    [(2**31 - 3, 2, 2**31 - 1), (2**31 - 2, 2, 0), (2**31 - 1, 1, 0), (2**31 - 1, 5, 4), (2**31 - 3, 7, 4)],
)
def test_sequences_begin_again_behind_the_highest(before, count, after):
    with Rig() as rig:
        lane = rig.start(rig.lane(), Checkpoint(0, 0, before))
        rig.fetch(lane, Batch(0, count), Batch(count, 1))
        request = rig.gather()
        assert Batch.parse(request.batches[0][2]).base_sequence == before
        rig.settle(request, Produced("orders", 0, 0))
        assert lane.checkpoint.sequence == after
        assert Batch.parse(rig.gather().batches[0][2]).base_sequence == after


def test_sequences_begin_again_also_for_records_that_are_passed_over():
    with Rig() as rig:
        lane = rig.start(rig.lane(), Checkpoint(0, 0, 2**31 - 2), skip=5)
        rig.fetch(lane, Batch(0, 5), Batch(5, 1))
        assert lane.checkpoint == Checkpoint(5, 5, 3, 5)
        assert Batch.parse(rig.gather().batches[0][2]).base_sequence == 3


# ---- halting ----


def test_a_halted_lane_drops_what_is_queued_and_waits_for_what_is_in_flight():
    with Rig() as rig:
        lane = rig.running()
        rig.fetch(lane, Batch(0, 1), Batch(1, 1))
        request = rig.gather()
        lane.native.halt()
        assert (lane.native.running, lane.native.queued, lane.native.in_flight) == (False, 0, 1)
        for wrong in (lambda: lane.native.resume((0, 0, 0), 0, 9), lambda: lane.native.set_target(None)):
            with pytest.raises(RuntimeError):
                wrong()
        assert rig.settle(request, Produced("orders", 0, 0)) == []
        assert lane.checkpoint == Checkpoint(0, 0, 0), "an answer after a halt is not believed"
        assert lane["queued_bytes"] == 0
        rig.start(lane, Checkpoint(0, 0, 0), skip=1)
        rig.fetch(lane, Batch(0, 1), Batch(1, 1))
        assert lane.checkpoint == Checkpoint(1, 1, 1, 5)
        assert Batch.parse(rig.gather().batches[0][2]).base_sequence == 1


def test_only_a_halted_lane_resumes():
    with Rig() as rig:
        lane = rig.running()
        with pytest.raises(RuntimeError, match="halted"):
            lane.native.resume((0, 0, 0), 0, 9)


def test_a_lane_may_change_both_its_brokers():
    with Rig() as old, Rig() as new:
        lane = old.running()
        old.fetch(lane, Batch(0, 1))
        old.ask()
        lane.native.set_source(new.source, 9)
        lane.native.set_target(new.target)
        assert new.ask() is None, "not while the old broker still owes an answer"
        old.feed(old.response((lane, Fetched(0, joined([Batch(1, 1)])))))
        assert old.ask() is None
        assert new.ask().asked == [(topic_id("orders"), 0)]
        assert old.gather() is None
        assert len(new.gather().batches) == 1


# ---- everything at once, beside the model ----

SELDOM = st.sampled_from([False] * 7 + [True])
FOUND = [name for name in VERDICTS if not name.startswith("refuse") and name != "no_room"]


class LaneBesideModel(RuleBasedStateMachine):
    """Any order of fetching, opening, merging, sending, answering, halting and resuming; the lane and the model never
    differ."""

    def __init__(self) -> None:
        super().__init__()
        self.requests = []
        self.told = []  # cursors of the lane, and what the model has for one
        self.dropped = ()
        self.scratch = Scratch()

    @initialize(
        hold_gaps=st.booleans(),
        tolerate=st.booleans(),
        committed=st.booleans(),
        terms=st.builds(
            Terms, opens=st.booleans(), codec=st.sampled_from([-1, -1, 0]), merge_bytes=st.sampled_from([0, 900])
        ),
        kinds=st.sampled_from([PLAIN, PLAIN * 3 + RAW, PLAIN + RAW + TRANSACTIONS, ("data",), ("packed",)]),
    )
    def begin(self, hold_gaps: bool, tolerate: bool, committed: bool, terms: Terms, kinds: tuple[str, ...]) -> None:
        self.rig = Rig(Settings(committed=committed))
        self.lane = self.rig.lane(hold_gaps=hold_gaps, tolerate=tolerate, terms=terms)
        self.model = LaneModel(PRODUCER, hold_gaps, tolerate, terms)
        self.kinds = kinds

    def teardown(self) -> None:
        with self.rig:  # also where hypothesis gives an example up half way, and hears of nothing that is wrong with it
            self.lane.native.halt()
            self.rig.stream.abort()
            self.rig.target.abandon()
            self.rig.target.take_events()
            assert self.rig.pool.used_bytes == 0

    @precondition(lambda self: not self.model.running and not self.model.in_flight)
    @rule(
        place=st.builds(
            Checkpoint, st.integers(0, 9), st.integers(0, 9), st.integers(2**31 - 9, 2**31 - 1), st.integers(-1, 9)
        ),
        skip=st.sampled_from([0] * 6 + [1, 3]),
        stop=st.sampled_from([2**63 - 1] * 6 + [8, 15]),
        offsets=st.dictionaries(st.integers(0, 8), st.integers(0, 8), max_size=4),
    )
    def resume(self, place: Checkpoint, skip: int, stop: int, offsets: dict[int, int]) -> None:
        rising = dict(zip(sorted(offsets), sorted(set(offsets.values())), strict=False))
        fitting = {s: t for s, t in rising.items() if s < place.position and t < place.target_next}
        segments = one_by_one(fitting)
        self.rig.start(self.lane, place, skip, stop, segments)
        self.model.resume(place, skip, stop, segments)
        self.dropped = ()

    @precondition(lambda self: self.model.running and self.model.fetch_offset < self.model.stop_offset)
    @rule(data=st.data(), behind=st.sampled_from([0, 0, 0, 1, 2, 5]))
    def fetch(self, data: st.DataObject, behind: int) -> None:
        request = self.rig.ask()
        assert (request is None) == self.model.blocked
        if request is None:
            return
        asked = request.topics[0][1][0]
        assert asked.fetch_offset == self.model.fetch_offset
        assert asked.last_fetched_epoch == self.model.last_fetched_epoch
        start = max(0, self.model.fetch_offset - behind)
        log = data.draw(logs(start, size_max=9, kinds=self.kinds, sound=True))
        cuts = data.draw(st.lists(st.integers(1, 900), max_size=4))
        aborted = data.draw(st.lists(st.tuples(st.integers(1, 2), st.integers(start, start + 9)), max_size=3))
        fetched = Fetched(0, joined(log), aborted=aborted)
        events = self.rig.feed(self.rig.response((self.lane, fetched)), cuts)
        expected = self.model.take_in(log, [is_void(log, nth, aborted) for nth in range(len(log))])
        assert [
            (VERDICTS[event.code] if event.kind == "cannot_take" else event.kind, event.first) for event in events
        ] == expected

    @precondition(lambda self: self.model.raw)
    @rule(data=st.data())
    def open_a_raw_batch(self, data: st.DataObject) -> None:
        native, raw = self.lane.native, self.model.raw[0]
        batch = native.raw(0)
        assert bytes(batch) == raw.batch.encode()
        parts: list[list[Record]] = []
        whole = None
        if raw.why != "divert_codec":
            whole = opened(batch)
            kept = [record for record in whole.records if record.offset >= batch.from_offset]
            kept = data.draw(st.sampled_from([kept, kept, kept[1:], kept[:-1], kept[::2], []]))
            parts = data.draw(divided(kept))
        if raw.why in ("rebuild_codec", "rebuild_open") and data.draw(st.booleans()):
            found, expected = native.pass_raw(), self.model.pass_raw()
        else:
            codec = data.draw(st.sampled_from([0, 0, 4]))
            makings = make(self.rig.pool, self.scratch, whole, parts, codec) if whole else []
            found = native.replace([making.made for making in makings])
            expected = self.model.replace([(making.batch, making.runs) for making in makings])
        assert found == expected
        if found != "pass":
            assert found == "refuse_tail"
            self.lane.native.halt()
            self.model.halt()
        assert native.announces() == bool(self.model.announcements())

    @precondition(lambda self: self.model.merge_told)
    @rule(data=st.data(), answer=st.sampled_from(["join", "join", "join", "later", "never"]))
    def answer_whether_to_merge(self, data: st.DataObject, answer: str) -> None:
        native = self.lane.native
        codec = self.model.queue[0].codec
        batches = native.mergeable()
        assert len(batches) == self.model.mergeable(codec)
        assert [bytes(batch) for batch in batches] == [held.batch.encode() for held in self.model.queue[: len(batches)]]
        if answer == "join":
            n = data.draw(st.integers(2, len(batches)))
            making = make_one(self.rig.pool, self.scratch, batches[:n], codec)
            native.join(n, making.made)
            self.model.join(n, making.batch)
        else:
            native.decline_merge(answer == "never")
            self.model.decline_merge(answer == "never")

    @rule(limit=st.sampled_from([1, 2, 4096]))
    def ask_what_is_ahead(self, limit: int) -> None:
        cursor, ahead = self.lane.native.ahead(limit)
        told, expected = self.model.ahead(limit)
        assert ahead == expected
        self.told.append((cursor, told, self.model.halts))

    @precondition(lambda self: self.told)
    @rule(data=st.data())
    def permit(self, data: st.DataObject) -> None:
        cursor, *told = self.told.pop(data.draw(st.integers(0, len(self.told) - 1)))
        assert self.lane.native.permit(cursor) == self.model.permit(*told)

    @rule(n=st.integers(0, 3))
    def drop_segments(self, n: int) -> None:
        before = self.lane.native.segments()
        self.lane.native.drop_segments(n)
        self.dropped += before[: min(n, max(0, len(before) - 1))]

    @rule()
    def send(self) -> None:
        expected, request = self.model.send(), self.rig.gather()
        told = [event.kind for event in self.rig.target.take_events()]
        assert told == ([expected] if isinstance(expected, str) else [])
        assert (request is None) == (not isinstance(expected, Batch))
        if request is not None and isinstance(expected, Batch):
            assert request.batches == [("orders", 0, expected.encode())]
            self.requests.append(request)

    @precondition(lambda self: self.requests)
    @rule(error=st.sampled_from([0] * 20 + [45, 7]), drift=st.sampled_from([0] * 20 + [1, -1]))
    def answer(self, error: int, drift: int) -> None:
        offset = self.model.place.target_next + drift
        events = self.rig.settle(self.requests.pop(0), Produced("orders", 0, offset, error))
        expected = self.model.answer(offset, error)
        assert [event.kind for event in events] == ([expected] if expected else [])

    @precondition(lambda self: self.model.running)
    @rule(really=SELDOM)
    def halt(self, really: bool) -> None:
        if really:
            self.lane.native.halt()
            self.model.halt()

    @precondition(lambda self: self.model.in_flight)
    @rule(really=SELDOM)
    def lose_the_connection(self, really: bool) -> None:
        if not really:
            return
        self.rig.target.abandon()
        self.requests.clear()
        kinds = [event.kind for event in self.rig.target.take_events()]
        assert kinds == (["answer_lost"] if self.model.connection_lost() else [])

    @rule(data=st.data(), steps=st.lists(st.sampled_from(["fetch", "send", "send", "answer", "owner"]), min_size=4))
    def work(self, data: st.DataObject, steps: list[str]) -> None:
        """For a while without a fault, so that faults meet lanes that are in the middle of something."""
        model = self.model
        if not model.running and not model.in_flight:
            self.resume(model.place, 0, 2**63 - 1, {})
        for step in steps:
            if step == "fetch" and model.running and not model.blocked and model.fetch_offset < model.stop_offset:
                self.fetch(data, 0)
            if step == "send":
                self.send()
            if step == "answer" and self.requests:
                self.answer(0, 0)
            if step == "owner":
                self.look_after_it(data)
            self.they_agree()

    def look_after_it(self, data: st.DataObject) -> None:
        if self.model.raw:
            self.open_a_raw_batch(data)
        if self.model.merge_told:
            self.answer_whether_to_merge(data, "join")
        if self.model.announced:
            self.ask_what_is_ahead(4096)
            cursor, *told = self.told.pop()
            assert self.lane.native.permit(cursor) == self.model.permit(*told)

    @invariant()
    def they_agree(self) -> None:
        native, model = self.lane.native, self.model
        assert (native.running, native.queued, native.in_flight) == (model.running, model.queued, model.in_flight)
        raw = [native.raw(nth) for nth in range(native.raw_count)]
        assert [(batch.why, batch.from_offset) for batch in raw] == [
            (held.why, held.source_offset) for held in model.raw
        ]
        assert native.raw(len(raw)) is None
        assert self.lane["queued_bytes"] == sum(held.size for held in model.lost_faith + model.held)
        assert {name: self.lane[name] for name in FOUND} == {name: model.found[name] for name in FOUND}
        if self.lane["version"]:
            assert self.lane.checkpoint == model.place
        assert self.dropped + native.segments() == one_by_one(model.map)
        if model.running:
            assert self.lane["fetch_offset"] == model.fetch_offset
            assert native.skip_records == model.skip_records


@st.composite
def divided(draw: st.DrawFn, records: list[Record]) -> list[list[Record]]:
    """In one part or more, none of them empty."""
    if not records:
        return []
    cuts = draw(st.lists(st.integers(0, len(records)), max_size=2))
    places = sorted({0, *cuts, len(records)})
    return [records[start:end] for start, end in pairwise(places)]


TestLaneBesideModel = LaneBesideModel.TestCase
TestLaneBesideModel.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
