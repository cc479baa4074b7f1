"""What is due for MirrorMaker 2's topics, against a map that is written out record by record."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from replicator.control.mm2_topics import SYNCS_MAX, changed, due_syncs, sync_points
from replicator.state.mm2_records import TEXT_BYTES_MAX, Checkpoint, OffsetSync
from replicator.state.records import LaneKey, LaneRecord


def lane(segments, position):
    return LaneRecord(
        generation=1,
        topic_id="",
        target_topic="orders",
        target_topic_id="",
        position=position,
        target_next=0,
        sequence=0,
        leader_epoch=-1,
        producer_id=1,
        producer_epoch=0,
        segments=tuple(segments),
    )


@st.composite
def maps(draw, size=12):
    """Segments (source start, target start, length), ascending on both sides."""
    segments, source, target = [], draw(st.integers(0, 5)), draw(st.integers(0, 5))
    for _ in range(draw(st.integers(1, size))):
        length = draw(st.integers(0, 4))
        segments.append((source, target, length))
        source += length + draw(st.integers(0, 3))
        target += length + draw(st.integers(0, 2))
    return segments


def written_out(segments, position):
    """source offset -> target offset of every record below the position; the source offsets that begin segments."""
    records = {source + n: target + n for source, target, length in segments for n in range(length)}
    starts = {source for source, _, length in segments if length}
    copied = {source: target for source, target in records.items() if source < position}
    return copied, starts & copied.keys()


@given(maps(), st.integers(0, 60), st.integers(-1, 60))
def test_points_are_the_starts_and_the_last_record(segments, position, after):
    copied, starts = written_out(segments, position)
    wanted = (starts | {max(copied, default=-1)}) - {-1}
    assert sync_points(segments, position, after) == [(at, copied[at]) for at in sorted(wanted) if at > after]


@given(maps(), maps(), st.integers(0, 30))
def test_a_branch_that_starts_lower_waits(segments, branch, after):
    """As after a truncated source: source offsets begin anew, target offsets go on."""
    forked = [*segments, *((source, target + 100, length) for source, target, length in branch)]
    points = sync_points(forked, 1000, after)
    assert [source for source, _ in points] == sorted({source for source, _ in points})
    assert all(source > after for source, _ in points)


def test_many_segments_are_thinned_evenly_to_a_limit():
    segments = [(10 * n, 5 * n, 5) for n in range(1000)]
    points = sync_points(segments, 1 << 40, -1)
    assert SYNCS_MAX // 2 < len(points) <= SYNCS_MAX
    assert points[-2:] == [(9990, 4995), (9994, 4999)]
    assert len({after[0] - before[0] for before, after in pairwise(points[:-1])}) == 1
    exactly = [(10 * n, 5 * n, 5) for n in range(SYNCS_MAX - 1)]
    assert len(sync_points(exactly, 1 << 40, -1)) == SYNCS_MAX


@given(maps(), st.lists(st.integers(0, 60), max_size=5))
def test_syncs_rise_whatever_the_positions_do(segments, positions):
    """Rounds with positions in any order, each reading back what those before have written."""
    written, seen = {}, []
    for position in positions:
        for key, value in due_syncs({LaneKey("orders", 3): lane(segments, position)}, written):
            seen.append(OffsetSync.decode(key, value))
            written[key] = value
    assert all((sync.topic, sync.partition) == ("orders", 3) for sync in seen)
    assert all(before.upstream < after.upstream for before, after in pairwise(seen))
    copied, _ = written_out(segments, max(positions, default=0))
    assert all(copied[sync.upstream] == sync.downstream for sync in seen)
    assert (max(copied) in {sync.upstream for sync in seen}) if copied else not seen


def test_a_value_that_is_no_sync_counts_as_nothing_written():
    key, _ = OffsetSync("orders", 0, 0, 0).encode()
    due = list(due_syncs({LaneKey("orders", 0): lane([(0, 0, 1)], 1)}, {key: b"rubbish"}))
    assert due == [OffsetSync("orders", 0, 0, 0).encode()]


def test_checkpoints_are_written_when_they_say_something_new():
    old = [Checkpoint("g", "orders", partition, 5, 4, "note") for partition in range(4)]
    written = dict(each.encode() for each in old)
    assert list(changed(old, written)) == []
    new = [
        old[0],
        old[1]._replace(upstream=3, downstream=2),  # back, as a group that was reset
        old[2]._replace(metadata=""),
        old[3]._replace(group="h"),
    ]
    assert list(changed(new, written)) == [each.encode() for each in new[1:]]


def test_a_text_that_does_not_fit_does_not_keep_the_offset_back():
    ((key, value),) = changed([Checkpoint("g", "orders", 0, 5, 4, "é" * TEXT_BYTES_MAX)], {})
    assert Checkpoint.decode(key, value) == Checkpoint("g", "orders", 0, 5, 4, "")
