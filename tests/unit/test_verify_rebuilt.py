"""Verification where the target's batches are not the source's: rebuilt, merged, split, filtered, of transactions."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.data import log_reader
from replicator.data.log_reader import LogReader, StoredBatch
from replicator.data.rules import Rules, rules_of
from replicator.data.verify import Claim, LaneVerdict, MappedClaim, Outcome, verify_lane
from replicator.state.offset_map import as_segments
from tests.oracle.batch import DELETE_HORIZON, LOG_APPEND_TIME, TRANSACTIONAL
from tests.oracle.rebuilt import HORIZON, OURS, STAMP, Copy, Source, copies, damaged, marker, sources
from tests.oracle.scripted_log import GZIP, LZ4, ZSTD, Rec, ScriptedLog, batch_of, recs

UNCOMMITTED, FILTERED = Rules(committed=False), Rules(filtered=True)
EDITED, BY_PLUGIN = Rules(changed=("headers",)), Rules(changed=("value", "headers", "timestamp"))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_reader.Backoff, "next_s", lambda self: 0)


def source_log(source: Source) -> ScriptedLog:
    return ScriptedLog("us", source.batches, aborted=source.aborted)


def check(
    source: ScriptedLog, target: ScriptedLog, segments: Sequence[tuple[int, int, int]], **claim: Any
) -> LaneVerdict:
    claim = {"producer_id": OURS, **claim}
    return asyncio.run(verify_lane(MappedClaim(source.partition, target.partition, as_segments(segments), **claim)))


def check_copy(source: Source, copy: Copy, **claim: Any) -> LaneVerdict:
    claim = {"position": source.end, **claim}
    return check(source_log(source), ScriptedLog("eu", copy.batches), copy.segments, **claim)


# ---- aborted transactions ----


async def read(log: ScriptedLog, offset: int, slice_bytes: int) -> list[StoredBatch]:
    reader, found = LogReader(log.partition, offset, bytes_max=slice_bytes, committed=True), []
    while (batch := await reader.peek()) is not None:
        found.append(batch)
        reader.move(batch.end)
    return found


@given(sources(), st.integers(0, 40), st.sampled_from([1, 300, 1 << 20]))
def test_aborted_batches_are_told_from_wherever_a_slice_begins(source: Source, offset: int, slice_bytes: int) -> None:
    log, offset = source_log(source), min(offset, source.end)
    found = asyncio.run(read(log, offset, slice_bytes))
    told = {at: batch.aborted for batch in found for at in batch.between(batch.start, batch.end) if at >= offset}
    truth = dict.fromkeys(source.committed, False) | dict.fromkeys(source.aborted_records, True)
    assert told == {at: aborted for at, aborted in truth.items() if at >= offset}


def transactions() -> Source:
    """Offsets 0 to 2 committed, 4 to 6 aborted, 8 to 10 of nobody's transaction, 11 to 12 committed by the aborter."""
    source = Source()
    source.write([0, 1, 2], 3, producer_id=11)
    source.close(11, commit=True)
    source.write([0, 1, 2], 3, producer_id=12)
    source.close(12, commit=False)
    source.write([0, 1, 2], 3)
    source.write([0, 1], 2, producer_id=12)
    source.close(12, commit=True)
    return source


def copied(rows: dict[int, Rec]) -> tuple[ScriptedLog, list[tuple[int, int, int]]]:
    """These records in one batch, and the map, a segment a record."""
    batch = batch_of(list(rows.values()), producer_id=OURS)
    return ScriptedLog("eu", [batch]), [(offset, at, 1) for at, offset in enumerate(rows)]


def test_what_was_aborted_is_rightly_left_out_and_nothing_else_is() -> None:
    source = transactions()
    target, segments = copied(source.committed)
    verdict = check(source_log(source), target, segments)
    assert (verdict.outcome, verdict.records, verdict.passed_over) == (Outcome.EQUAL, 8, 3)
    unheard = ScriptedLog("us", source.batches)
    assert check(unheard, target, segments).reason == "source offset 4: a record that the offset map leaves out"
    verdict = check(source_log(source), target, segments, rules=UNCOMMITTED)
    assert verdict.reason == "source offset 4: a record that the offset map leaves out"


def test_a_committed_record_that_is_missing() -> None:
    source = transactions()
    for lost in (1, 9, 11):
        target, segments = copied({at: each for at, each in source.committed.items() if at != lost})
        verdict = check(source_log(source), target, segments)
        assert verdict.outcome is Outcome.DIFFERENT
        assert verdict.reason == f"source offset {lost}: a record that the offset map leaves out"
        assert check(source_log(source), target, segments, rules=FILTERED).passed_over == 4


def test_an_aborted_record_that_was_copied() -> None:
    source = transactions()
    target, segments = copied(dict(sorted((source.committed | source.aborted_records).items())))
    verdict = check(source_log(source), target, segments)
    what = "a record of a transaction that the source aborted"
    assert (verdict.outcome, verdict.records) == (Outcome.DIFFERENT, 3)
    assert verdict.reason == f"source offset 4, target offset 3: {what}"
    assert check(source_log(source), target, segments, rules=UNCOMMITTED).outcome is Outcome.EQUAL


def test_a_record_of_a_transaction_that_is_still_open() -> None:
    source = transactions()
    log = source_log(source)
    log.stable = 8
    target, segments = copied(source.committed)
    verdict = check(log, target, segments)
    where = "source offset 8, target offset 3"
    assert verdict.reason == f"{where}: a transaction that is still open on the source, from 8 on"
    assert check(log, target, segments[:3]).outcome is Outcome.EQUAL


def test_a_copy_without_a_map_leaves_aborted_records_out() -> None:
    source = transactions()
    target, _ = copied(source.committed)
    log = source_log(source)
    assert asyncio.run(verify_lane(Claim(log.partition, target.partition, 0, source.end))).records == 8
    everything = Claim(log.partition, target.partition, 0, source.end, rules=UNCOMMITTED)
    assert asyncio.run(verify_lane(everything)).outcome is Outcome.DIFFERENT


def test_what_a_producer_wrote_without_a_transaction_is_not_aborted() -> None:
    source = transactions()
    source.batches[2] = replace(source.batches[2], attributes=source.batches[2].attributes & ~TRANSACTIONAL)
    found = asyncio.run(read(source_log(source), 0, 1 << 20))
    assert not any(batch.aborted for batch in found)


def test_a_marker_that_says_nothing() -> None:
    source = transactions()
    source.batches[3] = replace(source.batches[3], records=b"marker")
    target, segments = copied(source.committed)
    verdict = check(source_log(source), target, segments)
    assert verdict.outcome is Outcome.UNKNOWN
    assert verdict.reason.startswith("the control record at offset 7 cannot be read: ")


@pytest.mark.parametrize(
    ("isolation", "recipe", "record_faults", "expected"),
    [
        ("read_committed", (), "dlq", Rules()),
        ("read_uncommitted", (), "stop", UNCOMMITTED),
        ("read_committed", (), "skip", FILTERED),
        *(("read_committed", ((action, ("tombstone",)),), "dlq", FILTERED) for action in ("drop", "keep")),
        ("read_committed", (("drop_hops", b"id"),), "dlq", FILTERED),
        ("read_committed", (("divert", "why", None),), "dlq", Rules(diverted=True)),
        *(
            ("read_committed", ((action, b"name", None),), "dlq", EDITED)
            for action in ("header_add", "header_set", "header_drop", "header_rename", "provenance")
        ),
    ],
)
def test_rules_of_a_lane(isolation: str, recipe: tuple[Any, ...], record_faults: str, expected: Rules) -> None:
    assert rules_of(isolation, recipe, record_faults) == expected


def test_rules_of_a_lane_that_prevents_loops() -> None:
    """Records of links may be left out, or marked."""
    assert rules_of("read_committed", (), "dlq", prevents_loops=True) == EDITED._replace(filtered=True)


# ---- what the map leaves out ----


def test_behind_the_last_segment_nothing_is_left_out_before_the_position() -> None:
    source = transactions()
    rows = {at: each for at, each in source.committed.items() if at < 11}
    target, segments = copied(rows)
    assert check(source_log(source), target, segments, position=11).outcome is Outcome.EQUAL
    verdict = check(source_log(source), target, segments, position=source.end)
    assert verdict.reason == "source offset 11: a record that the offset map leaves out"
    verdict = check(source_log(source), target, segments, position=source.end, rules=FILTERED)
    assert (verdict.outcome, verdict.passed_over) == (Outcome.EQUAL, 5)


def test_a_tail_that_the_source_has_deleted_meanwhile() -> None:
    source = transactions()
    target, segments = copied({0: source.committed[0]})
    log = source_log(source)
    log.start = 11
    verdict = check(log, target, segments, position=source.end)
    assert (verdict.gone, verdict.reason) == (1, "source offset 11: a record that the offset map leaves out")
    assert check(log, target, segments, position=11).outcome is Outcome.IDENTICAL


def test_dead_letters_are_left_out_rightly() -> None:
    source = Source()
    for _ in range(2):
        source.write([0, 1, 2], 3, LZ4)
    target, segments = copied({at: each for at, each in source.committed.items() if at not in (3, 4)})
    verdict = check(source_log(source), target, segments, dead_letters={3})
    assert verdict.reason == "source offset 4: a record that the offset map leaves out"
    verdict = check(source_log(source), target, segments, dead_letters={3, 4})
    assert (verdict.outcome, verdict.passed_over) == (Outcome.EQUAL, 2)


def test_a_batch_that_became_one_dead_letter() -> None:
    """Nobody can open it, so it stands there whole, under its base offset."""
    source = Source()
    for _ in range(3):
        source.write([0, 1], 2, GZIP)
    target, segments = copied({at: each for at, each in source.committed.items() if at not in (2, 3)})
    source.batches[1] = replace(source.batches[1], records=b"not gzip")
    verdict = check(source_log(source), target, segments, dead_letters={2})
    assert (verdict.outcome, verdict.passed_over) == (Outcome.EQUAL, 2)
    assert check(source_log(source), target, segments, dead_letters={3}).outcome is Outcome.DIFFERENT


def test_a_batch_of_many_runs_is_read_and_counted_once() -> None:
    source = Source()
    for _ in range(3):
        source.write(list(range(300)), 300, ZSTD)
    kept = {at: each for at, each in source.committed.items() if at % 3 < 2}
    target, segments = copied(kept)
    log = source_log(source)
    verdict = check(log, target, segments, rules=FILTERED, position=900)
    assert (verdict.outcome, verdict.records, verdict.passed_over) == (Outcome.EQUAL, 600, 300)
    assert (verdict.batches, log.fetches) == (3, 1)
    assert verdict.bytes == sum(len(batch.encode()) for batch in source.batches)
    verdict = check(log, target, segments, rules=FILTERED, bytes_max=1)
    assert (verdict.batches, verdict.records) == (1, 200), "the batch that goes beyond the limit is compared whole"


def test_a_log_that_starts_inside_a_batch() -> None:
    """Its head is not to be seen any more, and was not copied."""
    source = Source()
    source.write([0, 1, 3, 4], 5, LZ4)
    source.write([0, 1], 2)
    log = source_log(source)
    log.start = 2
    target, _ = copied({at: each for at, each in source.committed.items() if at > 1})
    assert asyncio.run(verify_lane(Claim(log.partition, target.partition, 2, source.end))).records == 4
    log.start = 0
    whole, _ = copied(source.committed)
    assert asyncio.run(verify_lane(Claim(log.partition, whole.partition, 2, source.end))).records == 6
    verdict = asyncio.run(verify_lane(Claim(log.partition, target.partition, 2, source.end)))
    assert verdict.outcome is Outcome.DIFFERENT


# ---- times ----


@pytest.mark.parametrize("sizes", [[4], [1, 3]])
def test_times_of_a_source_and_a_target_that_both_stamp(sizes: list[int]) -> None:
    source = Source()
    source.write([0, 1, 2, 3], 4, stamped=True)
    rows, target = list(source.committed.values()), ScriptedLog("eu")
    for size in sizes:
        some, rows = rows[:size], rows[size:]
        at = target.batches[-1].next_offset if target.batches else 0
        stamp = {"attributes": LOG_APPEND_TIME, "max_timestamp": STAMP + 999_999}
        target.batches.append(batch_of(some, at, producer_id=OURS, **stamp))
    verdict = check(source_log(source), target, [(0, 0, 4)])
    assert (verdict.outcome, verdict.records) == (Outcome.EQUAL, 4)
    assert "the target's broker has put its own time on it" in verdict.reason


def test_a_delete_horizon_is_no_time() -> None:
    source = Source()
    source.write([0, 2], 3, GZIP, horizon=True)
    assert (source.batches[0].base_timestamp, source.batches[0].attributes) == (HORIZON, GZIP | DELETE_HORIZON)
    target, segments = copied(source.committed)
    assert check(source_log(source), target, segments).outcome is Outcome.EQUAL
    late = {at: each._replace(timestamp=each.timestamp + 1) for at, each in source.committed.items()}
    target, segments = copied(late)
    assert "timestamp should be" in check(source_log(source), target, segments).reason


# ---- edits ----


def with_header(record: Rec) -> Rec:
    return record._replace(headers=(*record.headers, ("added", b"by the link")))


def test_edited_headers_are_not_compared_and_everything_else_is() -> None:
    source = Source()
    source.write([0, 1, 2, 3], 4)
    target, segments = copied({at: with_header(each) if at > 1 else each for at, each in source.committed.items()})
    verdict = check(source_log(source), target, segments, rules=EDITED)
    assert (verdict.outcome, verdict.records, verdict.edited) == (Outcome.EQUAL, 4, 2)
    assert verdict.reason == "source offset 2, target offset 2: another headers, which the link's edits explain"
    assert check(source_log(source), target, segments).reason.endswith("target offset 2: another headers")
    for change, what in (
        ({"value": b"other"}, "another value"),
        ({"key": None}, "another key"),
        ({"timestamp": 5}, "timestamp should be 1700000000020, is 5"),
    ):
        rows = {at: with_header(each) for at, each in source.committed.items()}
        rows[2] = rows[2]._replace(**change)  # type: ignore[arg-type]
        target, segments = copied(rows)
        verdict = check(source_log(source), target, segments, rules=EDITED)
        assert (verdict.outcome, verdict.reason) == (Outcome.DIFFERENT, f"source offset 2, target offset 2: {what}")


def test_what_a_plug_in_may_do() -> None:
    source = Source()
    source.write([0, 1, 2, 3], 4)
    other = {at: Rec(b"masked", each.key, each.timestamp + 1) for at, each in source.committed.items()}
    target, segments = copied(other)
    verdict = check(source_log(source), target, segments, rules=BY_PLUGIN)
    assert (verdict.outcome, verdict.edited) == (Outcome.EQUAL, 4)
    assert "another value and headers and timestamp, which the link's edits explain" in verdict.reason
    other[1] = other[1]._replace(key=b"another")
    target, segments = copied(other)
    assert check(source_log(source), target, segments, rules=BY_PLUGIN).outcome is Outcome.DIFFERENT


# ---- any log, any copy ----


@given(st.data())
def test_any_right_copy_is_proved(data: st.DataObject) -> None:
    source = data.draw(sources())
    dropped = data.draw(st.sets(st.sampled_from(sorted(source.committed)))) if source.committed else set()
    rows = {at: each for at, each in source.committed.items() if at not in dropped}
    copy = data.draw(copies(rows))
    verdict = check_copy(source, copy, rules=Rules(filtered=bool(dropped)))
    assert verdict.outcome in (Outcome.EQUAL, Outcome.IDENTICAL), verdict.reason
    assert (verdict.records, verdict.edited, verdict.gone) == (len(rows), 0, 0)


CHANGES: list[tuple[str, Callable[[Rec], Rec]]] = [
    ("key", lambda record: record._replace(key=b"changed")),
    ("value", lambda record: record._replace(value=None)),
    ("headers", lambda record: record._replace(headers=(("x", None),))),
    ("timestamp", lambda record: record._replace(timestamp=record.timestamp + 1)),
]


@given(st.data())
def test_any_changed_record_is_found_at_its_place(data: st.DataObject) -> None:
    source = data.draw(sources().filter(lambda found: bool(found.committed)))
    copy = data.draw(copies(source.committed, foreign=False))
    offset = data.draw(st.sampled_from(sorted(copy.map)))
    name, change = data.draw(st.sampled_from(CHANGES))
    by_target = {copy.map[at]: each for at, each in source.committed.items()}
    copy.batches = damaged(copy.batches, copy.map[offset], change, by_target)
    verdict = check_copy(source, copy)
    assert verdict.outcome is Outcome.DIFFERENT
    assert verdict.reason.startswith(f"source offset {offset}, target offset {copy.map[offset]}: "), verdict.reason
    assert name in verdict.reason


@given(st.data())
def test_any_lost_record_is_found_at_its_place(data: st.DataObject) -> None:
    """It is on neither the map nor the target, and no filter explains that."""
    source = data.draw(sources().filter(lambda found: len(found.committed) > 1))
    lost = data.draw(st.sampled_from(sorted(source.committed)[1:]))
    rows = {at: each for at, each in source.committed.items() if at != lost}
    verdict = check_copy(source, data.draw(copies(rows)))
    assert verdict.outcome is Outcome.DIFFERENT
    assert verdict.reason == f"source offset {lost}: a record that the offset map leaves out"


def test_a_replay_on_the_target_is_foreign() -> None:
    """Of this link, in a transaction: the map leaves it out, and so does the comparison."""
    source = Source()
    source.write([0, 1, 2, 3], 4)
    rows = list(source.committed.values())
    replay = batch_of(recs(2, 900), 2, attributes=TRANSACTIONAL, producer_id=9)
    ours = [batch_of(rows[:2], 0, producer_id=OURS), batch_of(rows[2:], 5, producer_id=OURS)]
    target = ScriptedLog("eu", [ours[0], replay, marker(4, 9, commit=True), ours[1]])
    verdict = check(source_log(source), target, [(0, 0, 2), (2, 5, 2)])
    assert (verdict.outcome, verdict.foreign) == (Outcome.EQUAL, 2)
    target.batches[1] = replace(replay, producer_id=OURS)
    assert (
        "a record of ours that is not in the offset map"
        in check(source_log(source), target, [(0, 0, 2), (2, 5, 2)]).reason
    )
