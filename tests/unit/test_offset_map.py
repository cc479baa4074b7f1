"""The offset map beside its oracle, for every offset; and what it refuses to be made of."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from replicator.state import offset_map
from replicator.state.offset_map import NOT_YET, OFFSET_MAX, OffsetMap
from tests.oracle.offset_map import Segment, SlowMap, merge, spell_out

GAPS = st.sampled_from([0, 0, 1, 1, 2, 5])


@st.composite
def rows(draw: st.DrawFn, size_max: int = 6, start_max: int = 12) -> list[Segment]:
    """Segments in order, some of which follow each other without a hole."""
    source, target = draw(st.integers(0, start_max)), draw(st.integers(0, start_max))
    segments = []
    for _ in range(draw(st.integers(0, size_max))):
        length = draw(st.integers(1, 5))
        segments.append((source, target, length))
        source, target = source + length + draw(GAPS), target + length + draw(GAPS)
    return segments


@st.composite
def maps(draw: st.DrawFn) -> tuple[OffsetMap, SlowMap]:
    segments = draw(rows())
    records = spell_out(segments)
    position = max(records, default=-1) + 1 + draw(GAPS)
    target_next = max(records.values(), default=-1) + 1 + draw(GAPS)
    return OffsetMap(segments, position, target_next), SlowMap(records, position, target_next)


def check(ours: OffsetMap, slow: SlowMap) -> None:
    offsets = range(-3, slow.position + 4)
    assert [ours.translate(offset) for offset in offsets] == [slow.translate(offset) for offset in offsets]
    assert [ours.exact(offset) for offset in offsets] == [slow.exact(offset) for offset in offsets]
    back = range(-3, slow.target_next + 4)
    assert [ours.reverse(offset) for offset in back] == [slow.reverse(offset) for offset in back]
    for many, one, wanted in ((ours.translate_many, ours.translate, offsets), (ours.reverse_many, ours.reverse, back)):
        found = many(list(wanted))
        assert found.dtype == np.int64
        assert [None if each == NOT_YET else each for each in found.tolist()] == [one(each) for each in wanted]


@given(maps())
def test_every_offset(pair: tuple[OffsetMap, SlowMap]) -> None:
    check(*pair)


@given(maps(), st.integers(-2, 60))
def test_what_the_target_deleted_is_dropped(pair: tuple[OffsetMap, SlowMap], log_start: int) -> None:
    ours, slow = pair
    check(ours.below(log_start), slow.below(log_start))


@given(maps(), st.lists(st.integers(-3, 70), max_size=40), st.data())
def test_offsets_in_any_order(pair: tuple[OffsetMap, SlowMap], offsets: list[int], data: st.DataObject) -> None:
    ours, _ = pair
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(offset_map, "SORT_FROM_SEGMENTS", data.draw(st.sampled_from([1, 16])))
        patch.setattr(offset_map, "BLOCK", data.draw(st.integers(1, 5)))
        found = ours.translate_many(np.reshape(offsets, (1, -1)))
    answers = [ours.translate(offset) for offset in offsets]
    assert found.tolist() == [[NOT_YET if answer is None else answer for answer in answers]]


@given(maps())
def test_there_and_back_again(pair: tuple[OffsetMap, SlowMap]) -> None:
    ours, slow = pair
    for offset in [*slow.records, slow.position]:
        there = ours.translate(offset)
        assert there is not None
        assert ours.reverse(there) == offset
    answers = ours.translate_many(np.arange(slow.position + 1))
    assert (np.diff(answers) >= 0).all()


@given(maps())
def test_a_map_has_as_few_segments_as_it_takes(pair: tuple[OffsetMap, SlowMap]) -> None:
    ours, slow = pair
    assert len(ours) == sum(slow.records.get(source - 1) != target - 1 for source, target in slow.records.items())
    assert spell_out(map(tuple, ours.segments.tolist())) == slow.records


def test_a_log_without_holes_is_one_segment() -> None:
    pieces = [(100 + 10 * n, 7 + 10 * n, 10) for n in range(1000)]
    assert OffsetMap(pieces, 10_100, 10_007).segments.tolist() == [[100, 7, 10_000]]
    assert len(OffsetMap.merge([[piece] for piece in pieces], 10_100, 10_007)) == 1


def test_nothing_copied_yet() -> None:
    fresh = OffsetMap((), 500, 20)
    assert [fresh.translate(offset) for offset in (0, 500, 501)] == [20, 20, None]
    assert [fresh.reverse(offset) for offset in (0, 20, 21)] == [500, 500, None]
    assert fresh.exact(500) is None
    assert fresh.translate_many([[0, 500], [501, -7]]).tolist() == [[20, 20], [-1, 20]]
    assert fresh.translate_many([]).tolist() == []


def test_the_widest_offsets() -> None:
    last = OffsetMap([(0, OFFSET_MAX - 5, 5)], OFFSET_MAX, OFFSET_MAX)
    assert last.translate(4) == OFFSET_MAX - 1
    assert last.translate(OFFSET_MAX) == OFFSET_MAX
    assert last.reverse(OFFSET_MAX - 5) == 0
    assert last.translate(OFFSET_MAX + 1) is None
    assert last.exact(OFFSET_MAX + 1) is None
    assert last.translate_many([-(1 << 63), 0, OFFSET_MAX]).tolist() == [OFFSET_MAX - 5, OFFSET_MAX - 5, OFFSET_MAX]
    with pytest.raises(OverflowError):
        last.translate_many([OFFSET_MAX + 1])


@given(st.lists(rows(), max_size=5), st.integers(0, 60), st.integers(0, 60))
@example([[(0, 0, 10)], [(0, 0, 5), (7, 5, 3)]], 60, 60)  # a contradiction from offset 5 on
@example([[(0, 0, 10)], [(10, 4, 3)]], 60, 60)  # one on the target only
@example([[(0, 0, 2), (4, 4, 2)], [(8, 8, 2)], [(5, 5, 4)]], 60, 60)  # what it prevails over has two parts
def test_merged_from_parts(parts: list[list[Segment]], position: int, target_next: int) -> None:
    check(
        OffsetMap.merge(parts, position, target_next),
        SlowMap(merge(parts, position, target_next), position, target_next),
    )


@given(rows(size_max=12), st.data())
def test_parts_that_repeat_and_extend_each_other_are_one_map(segments: list[Segment], data: st.DataObject) -> None:
    """As an owner writes them: each begins somewhere in what came before it, and goes on from there."""
    parts, end = [], 0
    while end < len(segments):
        start = data.draw(st.integers(0, max(end - 1, 0)))
        end = data.draw(st.integers(end + 1, len(segments)))
        parts.append(segments[start:end])
        source, target, length = segments[end - 1]
        grown = data.draw(st.integers(1, length))
        parts[-1] = [*parts[-1][:-1], (source, target, grown)]  # the last segment, when it was shorter
    parts.append(segments[-1:])
    position, target_next = (n + segments[-1][2] for n in segments[-1][:2]) if segments else (0, 0)
    check(OffsetMap.merge(parts, position, target_next), SlowMap(spell_out(segments), position, target_next))


@pytest.mark.parametrize(
    ("segments", "reason"),
    [
        ([(0, 0)], "three integers"),
        ([(0, 0, 1), (2, 2)], "three integers"),
        ([0, 0, 1], "three integers"),
        ([(0.5, 0, 1)], "three integers"),
        ([("a", "b", "c")], "three integers"),
        ([(0, 0, 1 << 63)], "three integers"),
        ([(0, 0, 1 << 70)], "three integers"),
        ([(0, 0, 0)], "empty"),
        ([(0, 0, -1)], "empty"),
        ([(-1, 0, 5)], "empty"),
        ([(0, -1, 5)], "empty"),
        ([(OFFSET_MAX, 0, 1)], "beyond"),
        ([(0, OFFSET_MAX, 1)], "beyond"),
        ([(0, 0, 5), (4, 9, 1)], "overlap"),
        ([(0, 0, 5), (9, 4, 1)], "overlap"),
        ([(9, 9, 1), (0, 0, 1)], "order"),
        ([(0, 0, 11)], "beyond the map's end"),
        ([(0, 15, 9)], "beyond the map's end"),
    ],
)
def test_what_is_no_map(segments: Sequence[Sequence[int]], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        OffsetMap(segments, 10, 20)


@pytest.mark.parametrize("ends", [(-1, 0), (0, -1), (OFFSET_MAX + 1, 0)])
def test_ends_that_cannot_be(ends: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="cannot end"):
        OffsetMap((), *ends)


def test_a_map_is_not_its_makers_array() -> None:
    segments = np.array([(0, 0, 5)])
    ours = OffsetMap(segments, 5, 5)
    segments[0] = (9, 9, 9)
    assert ours.segments.tolist() == [[0, 0, 5]]
    with pytest.raises(ValueError, match="read-only"):
        ours.segments[0, 0] = 1
