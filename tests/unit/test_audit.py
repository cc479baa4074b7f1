"""The continuous audit against logs made by hand: what it picks, what it reports, what it leaves alone."""

import asyncio
import random
from dataclasses import replace

import pytest

from replicator.data import audit, log_reader
from replicator.data.audit import Auditor, Recent
from replicator.data.rules import Rules
from tests.oracle.scripted_log import ScriptedLog, batch_of, recs

LANES = ["first", "second", "third"]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_reader.Backoff, "next_s", lambda self: 0)
    monkeypatch.setattr(audit, "DOUBT_S", 0)
    monkeypatch.setattr(audit, "IDLE_S", 0)


class Stage:
    """Three lanes of 300 records in batches of ten, at a distance of 5 on the target, and who audits them."""

    def __init__(self, seed: int = 1) -> None:
        records = recs(300)
        self.logs = {lane: [self._log(lane, records, shift) for shift in (0, 5)] for lane in LANES}
        self.segments = {lane: [(0, 5, 120), (120, 125, 180)] for lane in LANES}
        self.reported: list[tuple[str, str]] = []
        self.auditor = Auditor(
            lambda: LANES, self.recent, lambda *report: self.reported.append(report), chance=random.Random(seed)
        )

    def _log(self, lane: str, records: list, shift: int) -> ScriptedLog:
        return ScriptedLog(f"{lane}+{shift}", [batch_of(records[at : at + 10], at + shift) for at in range(0, 300, 10)])

    def recent(self, lane: str) -> Recent | None:
        source, target = self.logs[lane]
        return Recent(source.partition, target.partition, self.segments[lane]) if lane in self.segments else None

    def run(self, times: int) -> list[int]:
        async def audit_often() -> list[int]:
            return [await self.auditor.audit_once() for _ in range(times)]

        return asyncio.run(audit_often())

    def damage(self, lane: str, batch: int) -> None:
        target = self.logs[lane][1]
        target.batches[batch] = replace(target.batches[batch], records=target.batches[batch - 1].records)


def test_equal_lanes_are_read_and_nothing_is_reported() -> None:
    stage = Stage()
    sizes = stage.run(30)
    assert all(size > 0 for size in sizes)
    assert stage.auditor.bytes == sum(sizes)
    assert stage.auditor.records > 30
    assert (stage.reported, stage.auditor.differences, stage.auditor.unknown) == ([], 0, 0)
    assert all(log.fetches for pair in stage.logs.values() for log in pair)


def test_a_difference_is_reported_with_its_lane_and_place() -> None:
    stage = Stage()
    stage.damage("second", 20)
    stage.run(30)
    assert stage.auditor.differences == len(stage.reported) > 0
    what = "another key and value and headers; it looks like the record of source offset 190"
    assert {lane for lane, _ in stage.reported} == {"second"}
    assert {reason.split(": ")[0] for _, reason in stage.reported} == {"source offset 200, target offset 205"}
    assert what.split(";")[0] in stage.reported[0][1]


def test_a_difference_that_is_none_when_looked_at_again() -> None:
    """The lane was set back meanwhile, or the target had a moment's weakness."""
    stage = Stage()
    stage.damage("second", 20)
    good, looks = stage.recent, []

    def recent(lane: str) -> Recent | None:
        looks.append(lane)
        if looks.count("second") % 2 == 0 and lane == "second":
            return None
        return good(lane)

    stage.auditor._recent = recent
    stage.run(30)
    assert stage.reported == []
    stage.auditor._recent = good
    stage.segments["second"] = [(0, 5, 120)]
    stage.run(30)
    assert stage.reported == []


def test_a_segment_that_has_moved_since_is_not_reported() -> None:
    stage = Stage()
    stage.damage("first", 20)
    stage.segments = {"first": [(120, 125, 180)]}
    moved = {"first": [(120, 225, 180)]}
    good, looks = stage.recent, []

    def recent(lane: str) -> Recent | None:
        looks.append(lane)
        stage.segments = {"first": [(120, 125, 180)]} if looks.count("first") % 2 else moved
        return good(lane)

    stage.auditor._recent = recent
    stage.run(10)
    assert stage.reported == []


def test_what_a_link_changes_is_not_reported() -> None:
    stage = Stage()
    source, _ = stage.logs["first"]
    untagged = [each._replace(headers=()) for each in recs(300)]
    source.batches = [batch_of(untagged[at : at + 10], at) for at in range(0, 300, 10)]
    stage.run(20)
    assert {lane for lane, _ in stage.reported} == {"first"}
    stage.reported.clear()
    plain = stage.recent

    def recent(lane: str) -> Recent | None:
        found = plain(lane)
        return found and found._replace(rules=Rules(changed=("headers",)))

    stage.auditor._recent = recent
    stage.run(20)
    assert stage.reported == []


def test_lanes_that_are_behind_are_skipped_and_no_lanes_are_no_trouble() -> None:
    stage = Stage()
    stage.segments = {"third": []}
    assert stage.run(10) == [0] * 10
    stage.auditor._lanes = list
    assert stage.run(1) == [0]
    assert not any(log.fetches for pair in stage.logs.values() for log in pair)


def test_what_cannot_be_read_or_is_gone_is_not_reported() -> None:
    stage = Stage()
    stage.logs["first"][0].failures = [29] * 1000
    stage.logs["second"][1].start = 305
    stage.logs["second"][1].end = 305
    stage.run(30)
    assert stage.reported == []
    assert stage.auditor.unknown > 0


def test_stretches_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    monkeypatch.setattr(audit, "STRETCH_BYTES", 1_000)
    sizes = stage.run(20)
    whole_batch = max(len(batch.encode()) for batch in stage.logs["first"][0].batches)
    assert max(sizes) <= 1_000 + whole_batch
    assert max(log.most_bytes for pair in stage.logs.values() for log in pair) <= 1_000 + whole_batch


def test_its_budget_is_kept_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It sleeps so long that its bytes, divided by all its sleep, are the budget."""
    stage, slept = Stage(), []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def run_for_a_while() -> None:
        stage.auditor.start()
        while stage.auditor.bytes < 100_000:
            await real_sleep(0)
        await stage.auditor.close()

    real_sleep = asyncio.sleep
    monkeypatch.setattr(audit.asyncio, "sleep", lambda seconds: sleep(seconds) if seconds else real_sleep(0))
    asyncio.run(run_for_a_while())
    assert sum(slept) == pytest.approx(stage.auditor.bytes / audit.BYTES_PER_S, rel=0.2)


def test_closing_one_that_never_ran_or_is_at_work() -> None:
    async def close() -> None:
        await Stage().auditor.close()
        stage = Stage()
        stage.auditor.start()
        await asyncio.sleep(0)
        await stage.auditor.close()

    asyncio.run(close())


def test_a_fault_of_our_own_is_told_and_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stage, told = Stage(), []
    monkeypatch.setattr(audit, "AFTER_FAULT_S", 0)

    def recent(lane: str) -> Recent | None:
        stage.auditor._recent = stage.recent
        raise KeyError(lane)

    async def run_for_a_while() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
        stage.auditor.start()
        while not stage.auditor.records:
            await asyncio.sleep(0)
        await stage.auditor.close()

    stage.auditor._recent = recent
    asyncio.run(run_for_a_while())
    assert [type(context["exception"]) for context in told] == [KeyError]
