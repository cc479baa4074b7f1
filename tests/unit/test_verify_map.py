"""Verification through an offset map: segments, the holes between them, what was deleted meanwhile, and samples."""

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.data import log_reader, ranges
from replicator.data.ranges import clip, records_in, sample
from replicator.data.verify import LaneVerdict, MappedClaim, Outcome, verify_lane
from replicator.state.offset_map import as_segments
from tests.oracle.batch import CONTROL, TRANSACTIONAL, Batch
from tests.oracle.scripted_log import ScriptedLog, batch_of, recs

OURS, THEIRS = 4242, 77
Rows = Sequence[tuple[int, int, int]]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_reader.Backoff, "next_s", lambda self: 0)


def check(source: ScriptedLog, target: ScriptedLog, segments: Rows, **claim: Any) -> LaneVerdict:
    claim = {"producer_id": OURS, **claim}
    return asyncio.run(verify_lane(MappedClaim(source.partition, target.partition, as_segments(segments), **claim)))


def marker(offset: int, **header: Any) -> Batch:
    return Batch(offset, 1, b"marker", attributes=CONTROL | TRANSACTIONAL, **header)


def counts(verdict: LaneVerdict) -> tuple[int, int, int, int, int]:
    return verdict.records, verdict.gone, verdict.cleaned, verdict.foreign, verdict.passed_over


MANY = recs(30)

# Source offsets 100 to 131 with markers at 110 and 121; on the target from 7 on, with records of others in between.
SOURCE = (
    batch_of(MANY[:10], 100),
    marker(110),
    batch_of(MANY[10:15], 111),
    batch_of(MANY[15:20], 116),
    marker(121),
    batch_of(MANY[20:], 122),
)
TARGET = (
    batch_of(recs(7, 1000), 0, producer_id=THEIRS),
    batch_of(MANY[:10], 7),
    batch_of(MANY[10:15], 17),
    batch_of(MANY[15:20], 22),
    batch_of(recs(3, 2000), 27, producer_id=THEIRS),
    marker(30),
    batch_of(MANY[20:], 31),
    batch_of(recs(5, 3000), 41, producer_id=OURS),  # copied since the checkpoint
)
SEGMENTS = ((100, 7, 10), (111, 17, 10), (122, 31, 10))


def logs() -> tuple[ScriptedLog, ScriptedLog]:
    return ScriptedLog("us", list(SOURCE)), ScriptedLog("eu", list(TARGET))


def test_segments_that_hold() -> None:
    verdict = check(*logs(), SEGMENTS)
    assert (verdict.outcome, verdict.reason) == (Outcome.IDENTICAL, "")
    assert counts(verdict) == (30, 0, 0, 3, 0)


def test_no_segments_hold_too() -> None:
    assert counts(check(*logs(), ())) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_map_that_is_off_by_one(shift: int) -> None:
    verdict = check(*logs(), [(111, 17 + shift, 10)])
    assert verdict.outcome is Outcome.DIFFERENT
    assert f"source offset 111, target offset {17 + shift}: another key" in verdict.reason


def test_a_segment_that_begins_and_ends_inside_batches() -> None:
    verdict = check(*logs(), [(103, 10, 5), (113, 19, 6)])
    assert verdict.outcome is Outcome.DIFFERENT, "the records between them are not left out by any lane"
    assert verdict.reason == "source offset 108: a record that the offset map leaves out"
    assert counts(check(*logs(), [(103, 10, 7), (111, 17, 6)]))[0] == 13


def test_a_record_in_a_hole_of_the_source() -> None:
    source, target = logs()
    source.batches[1] = batch_of(recs(1, 500), 110)
    verdict = check(source, target, SEGMENTS)
    assert (verdict.outcome, verdict.records) == (Outcome.DIFFERENT, 10)
    assert verdict.reason == "source offset 110: a record that the offset map leaves out"
    source.batches[1] = batch_of(recs(1, 500), 110, attributes=TRANSACTIONAL, producer_id=THEIRS)
    assert check(source, target, SEGMENTS).outcome is Outcome.DIFFERENT
    source.aborted = [(THEIRS, 110, 121)]
    assert counts(check(source, target, SEGMENTS)) == (30, 0, 0, 3, 1)


def test_a_record_of_ours_in_a_hole_of_the_target() -> None:
    source, target = logs()
    target.batches[4] = replace(target.batches[4], producer_id=OURS)
    verdict = check(source, target, SEGMENTS)
    assert (verdict.outcome, verdict.records) == (Outcome.DIFFERENT, 20)
    what = "a record of ours that is not in the offset map, between source offsets 120 and 122"
    assert verdict.reason == f"target offset 27: {what}"
    assert check(source, target, SEGMENTS, producer_id=-1).foreign == 3


@pytest.mark.parametrize(
    ("starts", "compared"), [((105, 0), 25), ((0, 12), 25), ((105, 14), 23), ((111, 18), 19), ((132, 0), 0)]
)
def test_what_is_deleted_is_counted(starts: tuple[int, int], compared: int) -> None:
    source, target = logs()
    source.start, target.start = starts
    verdict = check(source, target, SEGMENTS)
    assert verdict.outcome is Outcome.IDENTICAL
    assert (verdict.records, verdict.gone) == (compared, 30 - compared)


@pytest.mark.parametrize("side", ["us", "eu"])
@pytest.mark.parametrize("fetches", [0, 1, 2])
def test_what_is_deleted_meanwhile_is_counted(side: str, fetches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of one batch each; the log start moves over three of them after some."""
    source, target = logs()
    changing = source if side == "us" else target
    fetch = changing._fetch

    def fetch_then_delete(offset: int, bytes_max: int) -> dict[str, Any]:
        if changing.fetches == fetches:
            changing.start = 122 if side == "us" else 31
        return fetch(offset, bytes_max)

    monkeypatch.setattr(changing, "_fetch", fetch_then_delete)
    monkeypatch.setattr("replicator.data.verify.SLICE_BYTES", 1)
    verdict = check(source, target, SEGMENTS)
    assert verdict.outcome is Outcome.IDENTICAL, verdict.reason
    assert verdict.gone > 0
    assert verdict.records + verdict.gone == 30


def test_a_log_that_ends_too_early() -> None:
    source, target = logs()
    target.batches = target.batches[:6]
    target.end = 31
    verdict = check(source, target, SEGMENTS)
    assert (verdict.outcome, verdict.records) == (Outcome.DIFFERENT, 20)
    assert verdict.reason == "source offset 122, target offset 31: the target's log ends at 31"
    target.end = 25
    target.batches = target.batches[:3]
    assert check(source, target, SEGMENTS).reason.endswith("the target's log ends at 25")
    source, target = logs()
    source.batches = source.batches[:4]
    assert check(source, target, SEGMENTS).reason.endswith("the source's log ends at 121")


def test_a_new_leader_that_does_not_know_its_high_watermark_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = logs()
    fetch, whole = target._fetch, target.batches

    def late(offset: int, bytes_max: int) -> dict[str, Any]:
        target.batches = whole if target.fetches >= 3 else whole[:3]
        return fetch(offset, bytes_max)

    monkeypatch.setattr(target, "_fetch", late)
    target.end = None
    assert check(source, target, SEGMENTS).records == 30


def test_holes_are_differences_unless_a_cleaner_may_have_been_there() -> None:
    source, target = logs()
    target.batches[1] = batch_of([MANY[0], *MANY[4:10]], 7, deltas=[0, 4, 5, 6, 7, 8, 9])
    source.batches[2] = batch_of([MANY[10], MANY[14]], 111, deltas=[0, 4])
    verdict = check(source, target, SEGMENTS)
    assert (verdict.outcome, verdict.records) == (Outcome.DIFFERENT, 0)
    assert verdict.reason == "source offset 101, target offset 8: the target has no record there"
    verdict = check(source, target, SEGMENTS[1:])
    assert verdict.reason == "source offset 112, target offset 18: the source has no record there"
    verdict = check(source, target, SEGMENTS, holes_allowed=True)
    assert verdict.outcome is Outcome.EQUAL
    assert counts(verdict) == (24, 0, 6, 3, 0)


def test_a_cleaned_batch_that_is_gone_as_a_whole_and_a_changed_record_behind_it() -> None:
    source, target = logs()
    del target.batches[2]
    assert check(source, target, SEGMENTS).reason.endswith("target offset 17: the target has no record there")
    assert counts(check(source, target, SEGMENTS, holes_allowed=True)) == (25, 0, 5, 3, 0)
    target.batches[2] = batch_of([MANY[15]._replace(value=b"other"), *MANY[16:20]], 22)
    verdict = check(source, target, SEGMENTS, holes_allowed=True)
    assert verdict.reason == "source offset 116, target offset 22: another value"


def test_both_cleaned_alike() -> None:
    source, target = logs()
    source.batches[0] = batch_of([MANY[0], MANY[9]], 100, deltas=[0, 9])
    target.batches[1] = batch_of([MANY[0], MANY[9]], 7, deltas=[0, 9])
    assert check(source, target, SEGMENTS).reason.endswith("some record from here on is on neither side")
    assert counts(check(source, target, SEGMENTS, holes_allowed=True))[0] == 22


def test_so_many_bytes_and_no_more() -> None:
    verdict = check(*logs(), SEGMENTS, bytes_max=1)
    assert (verdict.outcome, verdict.batches) == (Outcome.IDENTICAL, 1)


# ---- samples ----


def long_logs(count: int) -> tuple[ScriptedLog, ScriptedLog]:
    """Batches of 100 records, at a distance of 3 on the target."""
    records = recs(count)
    rows = range(0, count, 100)
    return (
        ScriptedLog("us", [batch_of(records[at : at + 100], at) for at in rows]),
        ScriptedLog("eu", [batch_of(records[at : at + 100], at + 3) for at in rows]),
    )


def test_a_sample_compares_about_so_much_and_finds_what_it_meets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "SAMPLE_RECORDS", 100)
    source, target = long_logs(5_000)
    segments = [(0, 3, 5_000)]
    verdict = check(source, target, segments, fraction=0.2, seed="1")
    assert verdict.outcome is Outcome.IDENTICAL
    assert 200 <= verdict.records <= 2_000
    assert check(source, target, segments, fraction=0.2, seed="1") == verdict
    checksums = {check(source, target, segments, fraction=0.2, seed=f"{n}").checksum for n in range(5)}
    assert len(checksums) > 1, "another seed, other ranges"
    target.batches[30] = replace(target.batches[30], records=target.batches[29].records)
    outcomes = {check(source, target, segments, fraction=0.2, seed=f"{n}").outcome for n in range(30)}
    assert outcomes == {Outcome.IDENTICAL, Outcome.DIFFERENT}


gaps = st.integers(0, 3)
maps = st.lists(st.tuples(gaps, gaps, st.integers(1, 9)), max_size=8).map(
    lambda rows: [
        (
            sum(row[0] + row[2] for row in rows[:n]) + rows[n][0],
            sum(row[1] + row[2] for row in rows[:n]) + rows[n][1],
            rows[n][2],
        )
        for n in range(len(rows))
    ]
)


def pairs(segments: Any) -> dict[int, int]:
    """Source offset to target offset, one by one."""
    return {source + n: target + n for source, target, length in segments for n in range(length)}


@given(maps, st.integers(0, 100), st.integers(0, 100), st.integers(0, 100))
def test_clip_record_by_record(segments: Rows, start: int, end: int, target_start: int) -> None:
    cut = clip(as_segments(segments), start, end, target_start)
    assert pairs(cut.tolist()) == {
        source: target for source, target in pairs(segments).items() if start <= source < end and target >= target_start
    }
    assert records_in(cut) == len(pairs(cut.tolist()))
    assert (cut[:, 2] > 0).all()


@given(maps.filter(len), st.floats(0.01, 1), st.text(max_size=3))
def test_samples_are_whole_blocks_that_growth_and_deletion_do_not_move(
    segments: Rows, fraction: float, seed: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "SAMPLE_RECORDS", 5)
        whole = as_segments(segments)
        taken = [pairs(piece.tolist()) for piece in sample(whole, fraction, seed)]
        grown = np.vstack([whole, [[200, 200, 50]]])
        later = [pairs(piece.tolist()) for piece in sample(clip(grown, 7), fraction, seed)]
    blocks = [{source // 5 for source in piece} for piece in taken]
    assert all(blocks)
    everything = pairs(segments)
    for piece, block in zip(taken, blocks, strict=True):
        assert piece == {source: target for source, target in everything.items() if source // 5 in block}
    assert all(max(one) + 1 < min(two) for one, two in itertools.pairwise(blocks))
    if len(set().union(*blocks)) > 1:  # otherwise it may be the one that is taken in any case
        kept = {source for piece in taken for source in piece if source >= 7}
        assert kept <= {source for piece in later for source in piece}


def test_a_sample_takes_its_fraction() -> None:
    whole = as_segments([(0, 0, 3_000_000), (4_000_000, 3_000_000, 1_000_000)])
    for fraction in (0.01, 0.1, 0.5, 1):
        taken = sum(records_in(piece) for piece in sample(whole, fraction, "seed")) / 4_000_000
        assert taken == pytest.approx(fraction, rel=0.35)
