"""Verification of copies against logs made by hand: what is equal passes, what differs is found where it differs."""

import asyncio
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator._core import crc32c
from replicator.data import log_reader
from replicator.data.verify import Claim, LaneVerdict, Outcome, verify_lane, verify_lanes
from replicator.errors import ConnectionLost, Where
from tests.oracle.batch import CONTROL, HEADER, LOG_APPEND_TIME, Batch
from tests.oracle.scripted_log import GZIP, LZ4, SNAPPY, ZSTD, Rec, ScriptedLog, batch_of, recs

NOT_LEADER, UNAUTHORIZED = 6, 29


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_reader.Backoff, "next_s", lambda self: 0)


@dataclass(frozen=True)
class Made:
    """A batch as a test wants it, of bytes that nobody needs to open. `leave` is how many offsets of a hole follow."""

    section: bytes
    count: int = 1
    attributes: int = 0
    base_timestamp: int = 1000
    max_timestamp: int = 2000
    leave: int = 0
    magic: int = 2

    def at(self, offset: int) -> Batch:
        times = {"base_timestamp": self.base_timestamp, "max_timestamp": self.max_timestamp}
        return Batch(
            offset, self.count, self.section, magic=self.magic, attributes=self.attributes, **times,
            last_offset_delta=max(self.count, 1) - 1,
        )  # fmt: skip


def log(alias: str, made: tuple[Made, ...], first_offset: int = 0) -> ScriptedLog:
    batches, offset = [], first_offset
    for each in made:
        batches.append(each.at(offset))
        offset = batches[-1].next_offset + each.leave
    return ScriptedLog(alias, batches, end=offset)


def a_log(*made: Made, first_offset: int = 0) -> ScriptedLog:
    return log("us", made, first_offset)


def a_copy(*made: Made, first_offset: int = 0) -> ScriptedLog:
    return log("eu", made, first_offset)


def compare(source: ScriptedLog, target: ScriptedLog, start: int = 0, end: int | None = None) -> LaneVerdict:
    """The verdict on a lane from `start` to the end of the source's log, or `end`."""
    claim = Claim(source.partition, target.partition, start, source.log_end if end is None else end)
    return asyncio.run(verify_lane(claim))


THREE = (Made(b"first", 3), Made(b"second" * 100, 10, LZ4), Made(b"third", 1))


def test_equal_logs() -> None:
    verdict = compare(a_log(*THREE), a_copy(*THREE))
    sections = b"".join(made.section for made in THREE)
    bytes_in_all = len(sections) + 3 * HEADER.size
    assert verdict == LaneVerdict(Outcome.IDENTICAL, "", 14, bytes_in_all, 3, crc32c(sections))


def test_empty_logs() -> None:
    assert compare(a_log(), a_copy()) == LaneVerdict(Outcome.IDENTICAL, "", 0, 0, 0, 0)


def test_the_two_sides_differ_in_offsets_ids_and_epochs_and_are_equal_all_the_same() -> None:
    source, target = a_log(*THREE, first_offset=500), a_copy(*THREE)
    target.batches = [
        replace(batch, producer_id=9, producer_epoch=3, base_sequence=8, leader_epoch=1) for batch in target.batches
    ]
    assert compare(source, target, start=500).outcome is Outcome.IDENTICAL


def test_what_a_lane_leaves_out_is_left_out() -> None:
    marker, emptied = Made(b"\x00marker", 1, CONTROL), Made(b"", 0)
    source = a_log(marker, THREE[0], emptied, emptied, THREE[1], marker, THREE[2], marker)
    verdict = compare(source, a_copy(*THREE))
    assert (verdict.outcome, verdict.batches, verdict.records) == (Outcome.IDENTICAL, 3, 14)


def test_holes_between_batches_of_the_source_are_closed_on_the_target() -> None:
    holes = [replace(made, leave=100) for made in THREE]
    assert compare(a_log(*holes), a_copy(*THREE)).outcome is Outcome.IDENTICAL
    verdict = compare(a_log(THREE[0], THREE[2]), a_copy(holes[0], THREE[2]))
    assert (verdict.outcome, verdict.records) == (Outcome.DIFFERENT, 3)
    assert verdict.reason == "source offset 3, target offset 3: the target has no record there"


def test_a_start_inside_a_batch_means_the_whole_batch_and_an_end_ends() -> None:
    source = a_log(*THREE)
    assert compare(source, a_copy(THREE[1], THREE[2]), start=7).outcome is Outcome.IDENTICAL
    assert compare(source, a_copy(THREE[0], THREE[1]), end=13).outcome is Outcome.IDENTICAL
    assert compare(source, a_copy(THREE[0], THREE[1]), end=14).outcome is Outcome.DIFFERENT
    hole_before_the_end = a_log(replace(THREE[0], leave=10), THREE[1])
    assert compare(hole_before_the_end, a_copy(THREE[0]), end=8).outcome is Outcome.IDENTICAL


@pytest.mark.parametrize("section", [b"secone" * 100, b"second" * 99])
def test_payloads_that_nobody_can_open_must_be_the_same_bytes(section: bytes) -> None:
    source = a_log(*THREE, *THREE, first_offset=500)
    verdict = compare(source, a_copy(THREE[0], replace(THREE[1], section=section), THREE[2], *THREE), start=500)
    assert (verdict.outcome, verdict.batches, verdict.records) == (Outcome.DIFFERENT, 1, 3)
    assert verdict.reason == "source offset 503, target offset 3: the payloads differ"


def test_too_little_and_too_much_on_the_target() -> None:
    lacks = compare(a_log(*THREE), a_copy(*THREE[:2]))
    assert lacks.outcome is Outcome.DIFFERENT
    assert lacks.reason == "source offset 13, target offset 13: the target's log ends at 13"
    extra = compare(a_log(*THREE[:2]), a_copy(*THREE))
    assert extra.outcome is Outcome.DIFFERENT
    assert extra.reason == "the target goes on at offset 13, where the source's copied part has ended"


def test_batches_that_changed_places() -> None:
    one, other = Made(b"one"), Made(b"other")
    assert compare(a_log(one, other), a_copy(other, one)).reason.endswith("target offset 0: the payloads differ")


@pytest.mark.parametrize("side", ["source", "target"])
def test_bytes_that_have_rotted_on_either_side(side: str) -> None:
    source, target = a_log(*THREE), a_copy(*THREE)
    rotten = source if side == "source" else target
    rotten.batches[1] = replace(rotten.batches[1], crc=12345)
    verdict = compare(source, target)
    assert (verdict.outcome, verdict.records) == (Outcome.DIFFERENT, 3)
    place = "source offset 3, target offset 3"
    what = f"the {side}'s batch at 3 does not match its own checksum: it was damaged where it lies"
    assert verdict.reason == f"{place}: {what}"


def test_the_head_of_a_log_is_gone() -> None:
    verdict = compare(a_log(*THREE, first_offset=500), a_copy(*THREE))
    assert verdict.outcome is Outcome.UNKNOWN
    assert verdict.reason.startswith("us orders-0: offset 0 is gone: the log starts at 500 now: OFFSET_OUT_OF_RANGE")
    target = a_copy(*THREE)
    target.start = 3
    verdict = compare(a_log(*THREE), target)
    assert verdict.outcome is Outcome.DIFFERENT
    assert verdict.reason.startswith("eu orders-0: offset 0 is gone: the log starts at 3 now: OFFSET_OUT_OF_RANGE")


def test_bytes_that_are_no_batches() -> None:
    verdict = compare(a_log(THREE[0], Made(b"x" * 50, magic=9)), a_copy(*THREE))
    assert (verdict.outcome, verdict.records) == (Outcome.UNKNOWN, 3)
    assert "impossible" in verdict.reason
    verdict = compare(a_log(*THREE), a_copy(THREE[0], Made(b"x" * 50, magic=1)))
    assert verdict.outcome is Outcome.UNKNOWN
    assert verdict.reason == "eu orders-0: message format v1 at offset 3 is not compared"


def test_passing_errors_are_waited_out() -> None:
    source, target = a_log(*THREE), a_copy(*THREE)
    source.failures = [NOT_LEADER, ConnectionLost("gone", where=Where("us")), NOT_LEADER]
    assert compare(source, target).outcome is Outcome.IDENTICAL
    assert source.refreshed == 3
    source.failures = [NOT_LEADER] * 100
    verdict = compare(source, target)
    assert verdict.outcome is Outcome.UNKNOWN
    assert len(source.failures) == 100 - log_reader.FETCH_TRIES
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
    assert max(source.most_bytes, target.most_bytes) <= log_reader.SLICE_BYTES


def test_many_lanes_keep_their_order_and_report_progress() -> None:
    claims, seen = [], []
    for lane in range(30):
        made = [Made(b"%d" % lane, lane + 1)]
        copied = made if lane % 7 else [Made(b"other", lane + 1)]
        claims.append(Claim(a_log(*made).partition, a_copy(*copied).partition, 0, lane + 1))
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
    """Even with a checksum that fits."""
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


# ---- other batches, the same records ----


def in_batches(alias: str, records: list[Rec], sizes: list[int], codec: int = 0, **header: Any) -> ScriptedLog:
    """The records from offset 0 on, in batches of these sizes."""
    made, offset = [], 0
    for size in sizes:
        made.append(batch_of(records[offset : offset + size], offset, codec, **header))
        offset += size
    assert offset == len(records)
    return ScriptedLog(alias, made)


@pytest.mark.parametrize("codec", [0, GZIP, SNAPPY, LZ4, ZSTD])
@pytest.mark.parametrize("copied_codec", [0, GZIP, SNAPPY, LZ4, ZSTD])
def test_a_target_that_recompresses_is_compared_all_the_same(codec: int, copied_codec: int) -> None:
    many = recs(40)
    source = in_batches("us", many, [10, 25, 5], codec)
    verdict = compare(source, in_batches("eu", many, [10, 25, 5], copied_codec))
    expected = Outcome.IDENTICAL if codec == copied_codec else Outcome.EQUAL
    assert (verdict.outcome, verdict.records, verdict.batches) == (expected, 40, 3)
    many[30] = many[30]._replace(value=b"changed")
    verdict = compare(source, in_batches("eu", many, [10, 25, 5], copied_codec))
    assert (verdict.outcome, verdict.records) == (Outcome.DIFFERENT, 10)
    assert verdict.reason == "source offset 30, target offset 30: another value"


def test_how_a_target_recompresses_is_said() -> None:
    verdict = compare(in_batches("us", recs(3), [3]), in_batches("eu", recs(3), [3], ZSTD))
    how = "none on the source, zstd on the target, but equal when unpacked"
    assert verdict.reason == f"source offset 0, target offset 0: {how}"


@pytest.mark.parametrize("codec", [0, SNAPPY])
@pytest.mark.parametrize("sizes", [[30], [1] * 30, [10, 10, 10], [3, 25, 2], [29, 1]])
def test_other_boundaries(sizes: list[int], codec: int) -> None:
    """As when small batches were merged, or a large one was split."""
    many = recs(30)
    source, target = in_batches("us", many, [7, 3, 12, 8], LZ4), in_batches("eu", many, sizes, codec)
    verdict = compare(source, target)
    assert (verdict.outcome, verdict.records, verdict.batches) == (Outcome.EQUAL, 30, 4)
    assert verdict.reason.endswith("the target's batches are not the source's")
    for changed in (0, 9, 15, 29):
        other = [*many[:changed], many[changed]._replace(key=b"changed"), *many[changed + 1 :]]
        verdict = compare(source, in_batches("eu", other, sizes, codec))
        assert verdict.outcome is Outcome.DIFFERENT
        assert verdict.reason == f"source offset {changed}, target offset {changed}: another key"


@pytest.mark.parametrize("codec", [0, GZIP])
@pytest.mark.parametrize("sizes", [[20], [6, 14]])
@pytest.mark.parametrize(
    ("damage", "where", "what"),
    [
        ({"value": b"another"}, 11, "another value"),
        ({"value": None}, 11, "another value"),
        ({"key": None}, 11, "another key"),
        ({"headers": (("number", b"11"),)}, 11, "another headers"),
        ({"headers": (("null", None), ("number", b"11"))}, 11, "another headers"),
        ({"timestamp": 1_700_000_000_111}, 11, "timestamp should be 1700000000110, is 1700000000111"),
        ("lose", 11, "another key and value and headers; it looks like the record of source offset 12"),
        ("double", 12, "another key and value and headers; it looks like the record of source offset 11"),
        ("swap", 11, "another key and value and headers; it looks like the record of source offset 12"),
    ],
)
def test_each_kind_of_damage_is_found_at_its_record(
    damage: dict[str, Any] | str, where: int, what: str, sizes: list[int], codec: int
) -> None:
    many, copied = recs(20), recs(20)
    if damage == "lose":
        copied = [*many[:11], *many[12:], Rec()]
    elif damage == "double":
        copied = [*many[:12], *many[11:19]]
    elif damage == "swap":
        copied[11], copied[12] = many[12], many[11]
    else:
        copied[11] = many[11]._replace(**damage)  # type: ignore[arg-type]
    target = in_batches("eu", copied, sizes, codec)
    verdict = compare(in_batches("us", many, [20]), target)
    assert verdict.outcome is Outcome.DIFFERENT
    assert verdict.reason == f"source offset {where}, target offset {where}: {what}"


def test_a_batch_that_lies_about_its_newest_record() -> None:
    """Brokers look at the header alone when they search by time."""
    source, target = in_batches("us", recs(5), [5]), in_batches("eu", recs(5), [5], max_timestamp=1_700_000_000_041)
    what = "max timestamp of the batch should be 1700000000040, is 1700000000041"
    assert compare(source, target).reason == f"source offset 0, target offset 0: {what}"


def test_another_base_timestamp_is_no_difference_where_the_records_are_the_same() -> None:
    source, target = in_batches("us", recs(5), [5]), in_batches("eu", recs(5), [5], base_timestamp=1_700_000_000_001)
    assert compare(source, target).outcome is Outcome.EQUAL


@pytest.mark.parametrize("sizes", [[10], [4, 6]])
def test_a_target_with_times_of_its_own(sizes: list[int]) -> None:
    many = recs(10)
    target = in_batches("eu", many, sizes, attributes=LOG_APPEND_TIME, max_timestamp=1_800_000_000_000)
    verdict = compare(in_batches("us", many, [10]), target)
    assert (verdict.outcome, verdict.records) == (Outcome.EQUAL, 10)
    assert "the target's broker has put its own time on it" in verdict.reason
    many[3] = many[3]._replace(value=b"other")
    target = in_batches("eu", many, sizes, attributes=LOG_APPEND_TIME, max_timestamp=1_800_000_000_000)
    assert compare(in_batches("us", recs(10), [10]), target).outcome is Outcome.DIFFERENT


def test_a_source_with_times_of_its_own_lends_them_to_its_copy() -> None:
    stamp = 1_800_000_000_000
    source = in_batches("us", recs(3), [3], attributes=LOG_APPEND_TIME, max_timestamp=stamp)
    right = in_batches("eu", [each._replace(timestamp=stamp) for each in recs(3)], [3])
    assert compare(source, right).outcome is Outcome.EQUAL
    wrong = in_batches("eu", recs(3), [3])
    reason = f"source offset 0, target offset 0: timestamp should be {stamp}, is 1700000000000"
    assert compare(source, wrong).reason == reason


def test_a_compacted_batch_that_was_packed_without_its_holes() -> None:
    many = recs(6)
    source = ScriptedLog("us", [batch_of(many, 10, deltas=[0, 1, 4, 7, 8, 9])])
    verdict = compare(source, in_batches("eu", many, [6]), start=10)
    assert (verdict.outcome, verdict.records) == (Outcome.EQUAL, 6)
    many[3] = many[3]._replace(value=b"other")
    reason = "source offset 17, target offset 3: another value"
    assert compare(source, in_batches("eu", many, [6]), start=10).reason == reason


def test_a_target_batch_that_cannot_be_opened() -> None:
    source, target = in_batches("us", recs(5), [5]), in_batches("eu", recs(5), [5], GZIP)
    target.batches[0] = replace(target.batches[0], records=b"not gzip")
    verdict = compare(source, target)
    assert verdict.outcome is Outcome.DIFFERENT
    assert "the target's batch at 0 cannot be opened: gzip: " in verdict.reason
    assert compare(target, in_batches("eu", recs(5), [5])).outcome is Outcome.UNKNOWN
