"""Verification against logs made by hand: what is equal passes, and whatever differs is found where it differs."""

import asyncio
import struct
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator._core import crc32c
from replicator.data import verify
from replicator.data.verify import Claim, LaneVerdict, Outcome, verify_lane, verify_lanes
from replicator.errors import ConnectionLost, Where
from replicator.kafka.cluster import Leader
from replicator.kafka.log import Partition

HEADER = struct.Struct(">qiibIhiqqqhii")
CONTROL, LZ4, ZSTD = 0x20, 3, 4
OUT_OF_RANGE, NOT_LEADER, UNAUTHORIZED = 1, 6, 29


@dataclass(frozen=True)
class Made:
    """A batch as a test wants it. `leave` is how many offsets of a hole come after it."""

    section: bytes
    count: int = 1
    attributes: int = 0
    base_timestamp: int = 1000
    max_timestamp: int = 2000
    leave: int = 0
    magic: int = 2

    def encode(self, offset: int) -> bytes:
        size = HEADER.size + len(self.section)
        ids = (7, 0, offset & 0x7FFF_FFFF, self.count)
        times = (self.base_timestamp, self.max_timestamp)
        delta = max(self.count, 1) - 1
        return HEADER.pack(offset, size - 12, 5, self.magic, 0, self.attributes, delta, *times, *ids) + self.section


@dataclass
class FakeCluster:
    """As much of a Cluster as reading one partition's log takes. `failures` are error codes, or exceptions."""

    alias: str
    batches: list[Made]
    first_offset: int = 0
    failures: list[int | Exception] = field(default_factory=list)
    topics: dict[str, Any] = field(default_factory=dict)
    refreshed: int = 0
    most_bytes: int = 0

    def leader(self, topic: str, partition: int) -> Leader:
        return Leader(1, 0)

    async def refresh(self, topics: Any) -> None:
        self.refreshed += 1

    def log(self) -> list[tuple[int, int, bytes]]:
        """Offset, next offset, and bytes of each batch."""
        rows, offset = [], self.first_offset
        for made in self.batches:
            rows.append((offset, offset + max(made.count, 1), made.encode(offset)))
            offset += max(made.count, 1) + made.leave
        return rows

    async def request(self, api: Any, body: dict[str, Any], node_id: int) -> dict[str, Any]:
        await asyncio.sleep(0)
        asked = body["topics"][0]["partitions"][0]
        code: int | Exception = self.failures.pop(0) if self.failures else 0
        if isinstance(code, Exception):
            raise code
        if asked["fetch_offset"] < self.first_offset:
            code = OUT_OF_RANGE
        rest = [raw for _, behind, raw in self.log() if behind > asked["fetch_offset"]]
        records = b"".join(rest)[: max(asked["partition_max_bytes"], len(rest[0]))] if rest else b""
        self.most_bytes = max(self.most_bytes, len(records))
        row = {"partition_index": 0, "error_code": code, "records": records, "log_start_offset": 0}
        return {"error_code": 0, "responses": [{"partitions": [row | {"high_watermark": 0}]}]}


def compare(source: FakeCluster, target: FakeCluster, start: int = 0, end: int | None = None) -> LaneVerdict:
    """The verdict on a lane from `start` to the end of the source's log, or `end`."""
    if end is None:
        end = max((behind for _, behind, _ in source.log()), default=0)
    parts = [Partition(cluster, "orders", 0) for cluster in (source, target)]  # type: ignore[arg-type]
    return asyncio.run(verify_lane(*parts, start, end, 0))


def a_log(*batches: Made) -> FakeCluster:
    return FakeCluster("us", list(batches))


def a_copy(*batches: Made) -> FakeCluster:
    return FakeCluster("eu", list(batches))


THREE = (Made(b"first", 3), Made(b"second" * 100, 10, LZ4), Made(b"third", 1))


def test_equal_logs() -> None:
    verdict = compare(a_log(*THREE), a_copy(*THREE))
    sections = b"".join(made.section for made in THREE)
    bytes_in_all = len(sections) + 3 * HEADER.size
    assert verdict == LaneVerdict(Outcome.IDENTICAL, "", 14, bytes_in_all, 3, crc32c(sections))


def test_empty_logs() -> None:
    assert compare(a_log(), a_copy()) == LaneVerdict(Outcome.IDENTICAL, "", 0, 0, 0, 0)


def test_the_two_sides_differ_in_offsets_ids_and_epochs_and_are_equal_all_the_same() -> None:
    source = a_log(*THREE)
    source.first_offset = 500
    assert compare(source, a_copy(*THREE), start=500).outcome is Outcome.IDENTICAL


def test_what_a_lane_leaves_out_is_left_out() -> None:
    marker, emptied = Made(b"\x00marker", 1, CONTROL), Made(b"", 0)
    source = a_log(marker, THREE[0], emptied, emptied, THREE[1], marker, THREE[2], marker)
    verdict = compare(source, a_copy(*THREE))
    assert (verdict.outcome, verdict.batches, verdict.records) == (Outcome.IDENTICAL, 3, 14)


def test_holes_between_batches_of_the_source_are_closed_on_the_target() -> None:
    holes = [replace(made, leave=100) for made in THREE]
    assert compare(a_log(*holes), a_copy(*THREE)).outcome is Outcome.IDENTICAL
    verdict = compare(a_log(*THREE), a_copy(*holes))
    assert verdict.reason == "batch at source offset 3, target offset 3: base offset should be 3, is 103"


def test_a_start_inside_a_batch_means_the_whole_batch_and_an_end_ends() -> None:
    source = a_log(*THREE)
    assert compare(source, a_copy(THREE[1], THREE[2]), start=7).outcome is Outcome.IDENTICAL
    assert compare(source, a_copy(THREE[0], THREE[1]), end=13).outcome is Outcome.IDENTICAL
    assert compare(source, a_copy(THREE[0], THREE[1]), end=14).outcome is Outcome.DIFFERENT
    hole_before_the_end = a_log(replace(THREE[0], leave=10), THREE[1])
    assert compare(hole_before_the_end, a_copy(THREE[0]), end=8).outcome is Outcome.IDENTICAL


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"section": b"secone" * 100}, "the payloads differ"),
        ({"section": b"second" * 99}, "the payloads differ"),
        ({"count": 9}, "records should be 10, is 9"),
        ({"count": 11}, "records should be 10, is 11"),
        ({"base_timestamp": 1001}, "base timestamp should be 1000, is 1001"),
        ({"max_timestamp": 1999}, "max timestamp should be 2000, is 1999"),
    ],
)
def test_the_first_difference_is_named_with_its_offsets(change: dict[str, Any], what: str) -> None:
    source = a_log(*THREE, *THREE)
    source.first_offset = 500
    verdict = compare(source, a_copy(THREE[0], replace(THREE[1], **change), THREE[2], *THREE), start=500)
    assert (verdict.outcome, verdict.batches, verdict.records) == (Outcome.DIFFERENT, 1, 3)
    assert verdict.reason == f"batch at source offset 503, target offset 3: {what}"


def test_too_little_and_too_much_on_the_target() -> None:
    lacks = compare(a_log(*THREE), a_copy(*THREE[:2]))
    assert lacks.outcome is Outcome.DIFFERENT
    assert lacks.reason == "batch at source offset 13, target offset 13: the target's log ends at 13"
    extra = compare(a_log(*THREE[:2]), a_copy(*THREE))
    assert extra.outcome is Outcome.DIFFERENT
    assert extra.reason == "the target goes on at offset 13, where the source's copied part has ended"


def test_batches_that_changed_places() -> None:
    one, other = Made(b"one"), Made(b"other")
    assert compare(a_log(one, other), a_copy(other, one)).reason.endswith("target offset 0: the payloads differ")


def test_a_target_that_recompresses_is_no_failure_and_no_full_success() -> None:
    anew = [replace(made, section=b"anew", attributes=ZSTD) for made in THREE]
    verdict = compare(a_log(*THREE), a_copy(*anew))
    assert (verdict.outcome, verdict.records) == (Outcome.RECOMPRESSED, 14)
    how = "none on the source, zstd on the target, so the bytes cannot be compared"
    assert verdict.reason == f"batch at source offset 0, target offset 0: {how}"
    lost = compare(a_log(*THREE), a_copy(*anew[:2]))
    assert lost.outcome is Outcome.DIFFERENT
    fewer = compare(a_log(*THREE), a_copy(anew[0], replace(anew[1], count=9), anew[2]))
    assert fewer.outcome is Outcome.DIFFERENT


def test_the_head_of_a_log_is_gone() -> None:
    source, target = a_log(*THREE), a_copy(*THREE)
    source.first_offset = 500
    verdict = compare(source, target)
    assert verdict.outcome is Outcome.UNKNOWN
    assert verdict.reason.startswith("us orders-0: OFFSET_OUT_OF_RANGE")
    target.first_offset = 3
    verdict = compare(a_log(*THREE), target)
    assert verdict.outcome is Outcome.DIFFERENT
    assert verdict.reason.startswith("eu orders-0: OFFSET_OUT_OF_RANGE")


def test_bytes_that_are_no_batches() -> None:
    verdict = compare(a_log(THREE[0], Made(b"x" * 50, magic=9)), a_copy(*THREE))
    assert (verdict.outcome, verdict.records) == (Outcome.UNKNOWN, 3)
    assert "impossible" in verdict.reason
    verdict = compare(a_log(*THREE), a_copy(THREE[0], Made(b"x" * 50, magic=1)))
    assert verdict.outcome is Outcome.UNKNOWN
    assert verdict.reason == "eu orders-0: message format v1 at offset 3 is not compared"


def test_passing_errors_are_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify.Backoff, "next_s", lambda self: 0)
    source, target = a_log(*THREE), a_copy(*THREE)
    source.failures = [NOT_LEADER, ConnectionLost("gone", where=Where("us")), NOT_LEADER]
    assert compare(source, target).outcome is Outcome.IDENTICAL
    assert source.refreshed == 3
    source.failures = [NOT_LEADER] * 100
    verdict = compare(source, target)
    assert verdict.outcome is Outcome.UNKNOWN
    assert len(source.failures) == 100 - verify.FETCH_TRIES
    target.failures = [UNAUTHORIZED]
    source.failures = []
    verdict = compare(source, target)
    assert verdict.outcome is Outcome.UNKNOWN
    assert verdict.reason.startswith("eu orders-0: TOPIC_AUTHORIZATION_FAILED")


def test_only_slices_are_in_memory() -> None:
    big = [Made(bytes([n]) * 300_000, 5) for n in range(12)]
    source, target = a_log(*big), a_copy(*big)
    verdict = compare(source, target)
    assert (verdict.outcome, verdict.records) == (Outcome.IDENTICAL, 60)
    assert max(source.most_bytes, target.most_bytes) <= verify.SLICE_BYTES


def test_many_lanes_keep_their_order_and_report_progress() -> None:
    claims, seen = [], []
    for lane in range(30):
        made = [Made(b"%d" % lane, lane + 1)]
        copied = made if lane % 7 else [Made(b"other", lane + 1)]
        parts = [Partition(cluster, "orders", 0) for cluster in (a_log(*made), a_copy(*copied))]  # type: ignore[arg-type]
        claims.append(Claim(*parts, 0, lane + 1))
    verdicts = asyncio.run(verify_lanes(claims, seen.append))
    assert [lane for lane, verdict in enumerate(verdicts) if verdict.outcome is Outcome.DIFFERENT] == [0, 7, 14, 21, 28]
    assert sum(seen) == sum(verdict.records for verdict in verdicts) > 300
    assert all(claim.source.cluster.refreshed == 1 for claim in claims)  # type: ignore[attr-defined]


batches = st.lists(
    st.builds(
        Made,
        section=st.binary(min_size=1, max_size=200),
        count=st.integers(1, 50),
        attributes=st.integers(0, 4),
        leave=st.integers(0, 3),
    ),
    min_size=1,
    max_size=20,
)


@given(batches, st.data())
def test_any_changed_byte_is_found_in_its_batch(made: list[Made], data: st.DataObject) -> None:
    copied = [replace(each, leave=0) for each in made]
    assert compare(a_log(*made), a_copy(*copied)).outcome is Outcome.IDENTICAL
    which = data.draw(st.integers(0, len(made) - 1))
    at, flip = data.draw(st.integers(0, len(made[which].section) - 1)), data.draw(st.integers(1, 255))
    section = bytearray(copied[which].section)
    section[at] ^= flip
    copied[which] = replace(copied[which], section=bytes(section))
    verdict = compare(a_log(*made), a_copy(*copied))
    assert (verdict.outcome, verdict.batches) == (Outcome.DIFFERENT, which)
    assert verdict.reason.endswith("the payloads differ")
