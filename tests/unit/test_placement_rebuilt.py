"""Where a lane goes on whose target holds other batches than the source: rebuilt, merged, split, edited, replayed."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.config.models import Policy
from replicator.data import log_reader, matching, placement
from replicator.data.placement import CONFLICTS_MAX, LaneStopped, Mark, Place, Placement
from replicator.data.rules import AS_IT_IS, Rules
from replicator.data.states import Checkpoint
from replicator.data.transitions import Trigger
from tests.oracle.batch import LOG_APPEND_TIME, TRANSACTIONAL, Batch
from tests.oracle.lane import SEQUENCES, joined
from tests.oracle.listed_log import Log, use_lists
from tests.oracle.rebuilt import OUR_EPOCH, OURS, STAMP, Copy, Source, copies, marker, sources
from tests.oracle.scripted_log import GZIP, LZ4, ZSTD, Rec, batch_of, recs

TOLERATE, FENCE = Policy(foreign_writes="tolerate"), Policy()
UNCOMMITTED, FILTERED = Rules(committed=False), Rules(filtered=True)
EDITED, BY_PLUGIN = Rules(changed=("headers",)), Rules(changed=("value", "headers", "timestamp"))
OTHER_TAIL = "not the ones that the source has"


@pytest.fixture(autouse=True)
def lists_for_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    use_lists(monkeypatch, placement, matching, log_reader)
    monkeypatch.setattr(placement, "STILL_S", 0)


def origin_of(source: Source) -> Log:
    return Log(source.batches, alias="us", aborted=source.aborted)


def find(origin: Log, target: Log, mark: Mark, policy: Policy = FENCE, rules: Rules = AS_IT_IS) -> Place:
    where = Placement(origin, target, (OURS, OUR_EPOCH), policy, True, rules, "us-eu")  # type: ignore[arg-type]
    return asyncio.run(where.find(mark, in_doubt=True))


def ours(records: list[Rec], at: int, sequence: int, codec: int = 0, **header: Any) -> Batch:
    header |= {"producer_id": OURS, "producer_epoch": OUR_EPOCH, "base_sequence": sequence}
    return batch_of(records, at, codec, **header)


def plain(count: int, codec: int = 0) -> Source:
    """One batch of so many records."""
    source = Source()
    source.write(list(range(count)), count, codec)
    return source


def seen(source: Source, *offsets: int) -> list[Rec]:
    return [source.committed[offset] for offset in offsets]


BEGINNING = Mark(Checkpoint(0, 0, 0), (), ())


# ---- other batches ----


@pytest.mark.parametrize("codec", [0, LZ4])
def test_a_tail_in_the_middle_of_a_source_batch(codec: int) -> None:
    """Which was split, or whose head had been cut off before."""
    source = plain(10, codec)
    target = Log([ours(seen(source, 0, 1, 2), 0, 0, ZSTD), ours(seen(source, 3, 4, 5, 6), 3, 3)])
    assert find(origin_of(source), target, BEGINNING) == Place(Checkpoint(7, 7, 7), ((0, 0, 7),))
    halfway = Mark(Checkpoint(3, 3, 3), ((0, 0, 3),), ())
    assert find(origin_of(source), target, halfway).checkpoint == Checkpoint(7, 7, 7)


def test_a_tail_of_several_source_batches_with_gaps_between_them() -> None:
    source = Source()
    for _ in range(3):
        source.write([0, 2], 4, GZIP)
    target = Log([ours(list(source.committed.values()), 0, 0)])
    runs = [0, 2, 4, 6, 8, 10]
    mark = Mark(Checkpoint(0, 0, 0), (), tuple((offset, number) for number, offset in enumerate(runs)))
    found = find(origin_of(source), target, mark)
    assert found.checkpoint == Checkpoint(11, 6, 6)
    assert found.segments == tuple((offset, number, 1) for number, offset in enumerate(runs))


@pytest.mark.parametrize("name", ["key", "value", "timestamp", "headers"])
def test_a_last_record_that_is_another_in_anything(name: str) -> None:
    source = plain(10, LZ4)
    other = {"key": None, "value": b"other", "timestamp": 1, "headers": ()}[name]
    rows = seen(source, 0, 1, 2)
    rows[2] = rows[2]._replace(**{name: other})  # type: ignore[arg-type]
    target = Log([ours(rows, 0, 0)])
    with pytest.raises(LaneStopped, match=OTHER_TAIL):
        find(origin_of(source), target, BEGINNING)
    for rules, names in ((EDITED, ["headers"]), (BY_PLUGIN, ["headers", "value", "timestamp"])):
        if name in names:
            assert find(origin_of(source), target, BEGINNING, rules=rules).checkpoint == Checkpoint(3, 3, 3)


def test_times_that_readers_saw_and_times_of_the_targets_own() -> None:
    source = Source()
    source.write([0, 1, 2], 3, stamped=True)
    assert {each.timestamp for each in source.committed.values()} == {STAMP}
    target = Log([ours(list(source.committed.values()), 0, 0)])
    assert find(origin_of(source), target, BEGINNING).checkpoint == Checkpoint(3, 3, 3)
    target = Log([ours(recs(3), 0, 0, ZSTD)])  # the times inside the records, which nobody saw
    with pytest.raises(LaneStopped, match=OTHER_TAIL):
        find(origin_of(source), target, BEGINNING)
    again = ours(recs(3), 0, 0, ZSTD, attributes=LOG_APPEND_TIME | ZSTD, max_timestamp=5)
    assert find(origin_of(source), Log([again]), BEGINNING).checkpoint == Checkpoint(3, 3, 3)


def test_a_source_record_that_is_gone_speaks_against_nothing() -> None:
    source = plain(3)
    source.write([0, 1], 4, LZ4)  # the last two are compacted since
    target = Log([ours(recs(7), 0, 0, ZSTD)])
    assert find(origin_of(source), target, BEGINNING).checkpoint == Checkpoint(7, 7, 7)


def test_a_marker_is_where_no_record_comes_from() -> None:
    """The record knows of no gap, so it leads to the marker; without a right count the lane would stop."""
    source = Source()
    source.write([0, 1], 2, producer_id=11)
    source.close(11, commit=True)
    source.write([0, 1], 2)
    target = Log([ours(seen(source, 0, 1, 3), 0, 0)])
    assert find(origin_of(source), target, BEGINNING).checkpoint.position == 4


# ---- counting ----


def test_counting_transactions_and_holes_only_where_the_last_record_proves_it() -> None:
    source = Source()
    source.write([0, 1, 2], 3, producer_id=12)
    source.close(12, commit=False)
    source.write([0, 1], 2, producer_id=11)
    source.close(11, commit=True)
    source.write([0, 2, 3], 5, ZSTD)
    rows = list(source.committed)
    assert rows == [4, 5, 7, 9, 10]
    for landed in (1, 2, 3, 4, 5):
        target = Log([ours(seen(source, *rows[:landed]), 0, 0, LZ4)])
        found = find(origin_of(source), target, BEGINNING)
        assert (found.checkpoint.position, found.checkpoint.sequence) == (rows[landed - 1] + 1, landed)
        assert found.segments == joined({offset: at for at, offset in enumerate(rows[:landed])})
    as_if_not_aborted = Log([ours(seen(source, *rows), 0, 0)])
    with pytest.raises(LaneStopped, match=OTHER_TAIL):
        find(origin_of(source), as_if_not_aborted, BEGINNING, rules=UNCOMMITTED)


def test_counting_what_is_rebuilt_when_nothing_can_be_proved_stops_the_lane() -> None:
    """By the count the last record is one of which nothing but a null key could be compared."""
    source = Source()
    source.write([0, 1], 2)
    source.write([0, 2, 3], 4)
    keyless = {at: each._replace(key=None) for at, each in source.committed.items()}
    source.batches[1] = batch_of([keyless[2], keyless[4], keyless[5]], 2, 0, [0, 2, 3])
    target = Log([ours(seen(source, 0, 1) + [Rec(b"masked", None)] * 3, 0, 0)])
    contradictory = Mark(Checkpoint(0, 0, 0), (), ((1, 1), (0, 2)))
    with pytest.raises(LaneStopped, match=OTHER_TAIL):
        find(origin_of(source), target, contradictory, rules=BY_PLUGIN)


def count_without_proof(source: Source, span: int, rules: Rules = AS_IT_IS, written: int = 0) -> Place:
    """The record contradicts itself, and the target's last records are compacted: `span` of them had landed."""
    left = ours(recs(1), written, written, deltas=[0], last_offset_delta=span - 1)
    at = Checkpoint(written, written, written)
    mark = Mark(at, ((0, 0, written),) if written else (), ((written + 1, written + 1), (written, written + 2)))
    before = [ours(recs(written), 0, 0)] if written else []
    return find(origin_of(source), Log([*before, left]), mark, rules=rules)


def test_a_count_without_proof_is_good_enough_where_whole_batches_were_passed_on() -> None:
    source = plain(4)
    source.write([0, 1, 2], 3, LZ4)
    assert count_without_proof(source, 7).checkpoint == Checkpoint(7, 7, 7, 5)
    assert count_without_proof(source, 4).checkpoint == Checkpoint(4, 4, 4, 5)
    assert count_without_proof(source, 3, written=4).checkpoint == Checkpoint(7, 7, 7, 5)


def test_a_count_without_proof_is_a_guess_where_something_was_rebuilt() -> None:
    source = plain(4)
    source.write([0, 1, 2], 3, LZ4)
    for span, written in ((3, 0), (6, 0), (5, 2)):  # in the middle of a batch, or from there
        with pytest.raises(LaneStopped, match=OTHER_TAIL):
            count_without_proof(source, span, written=written)
    with pytest.raises(LaneStopped, match=OTHER_TAIL):
        count_without_proof(source, 4, EDITED)
    looks: list[dict[str, Any]] = [{"stamped": True}, {"horizon": True}, {"producer_id": 11}]
    for look in looks:
        source = Source()
        source.write([0, 1, 2], 3, **look)
        source.close(11, commit=True)
        with pytest.raises(LaneStopped, match=OTHER_TAIL):
            count_without_proof(source, 3)
    holes = Source()
    holes.write([0, 2, 3], 4)
    with pytest.raises(LaneStopped, match=OTHER_TAIL):
        count_without_proof(holes, 3)


def test_what_a_filter_leaves_cannot_be_counted() -> None:
    source = plain(10)
    target = Log([ours(seen(source, 0, 1, 2, 3), 0, 0, ZSTD)])
    contradictory = Mark(Checkpoint(0, 0, 0), (), ((1, 1), (0, 2)))
    assert find(origin_of(source), target, contradictory).checkpoint.position == 4
    for rules in (FILTERED, Rules(diverted=True)):
        with pytest.raises(LaneStopped, match=OTHER_TAIL):
            find(origin_of(source), target, contradictory, rules=rules)


def test_an_old_format_cannot_be_counted() -> None:
    source = plain(3)
    origin = origin_of(source)
    origin.batches = [replace(source.batches[0], magic=1)]
    contradictory = Mark(Checkpoint(0, 0, 0), (), ((1, 1), (0, 2)))
    with pytest.raises(LaneStopped, match=OTHER_TAIL):
        find(origin, Log([ours(recs(3), 0, 0)]), contradictory)


# ---- intents that contradict each other ----


def filtered_twice() -> tuple[Source, Mark]:
    """One owner was to send offset 4 as the third record, another 6: the first one's filter let more through."""
    source = plain(10)
    return source, Mark(Checkpoint(2, 2, 2), ((0, 0, 2),), ((4, 2), (6, 2)))


@pytest.mark.parametrize("sent", [4, 6])
def test_the_record_that_landed_says_which_owner_sent_it(sent: int) -> None:
    source, mark = filtered_twice()
    target = Log([ours(seen(source, 0, 1), 0, 0), ours(seen(source, sent, sent + 1), 2, 2, GZIP)])
    found = find(origin_of(source), target, mark, rules=FILTERED)
    assert found == Place(Checkpoint(sent + 2, 4, 4), ((0, 0, 2), (sent, 2, 2)))


def test_where_it_does_not_the_lane_stops() -> None:
    source, mark = filtered_twice()
    target = Log([ours(seen(source, 0, 1), 0, 0), ours(seen(source, 8, 9), 2, 2)])
    why = "the target's record of sequence 2 may be the source's at 4 or 6, and none of these is the same"
    with pytest.raises(LaneStopped, match=why) as stopped:
        find(origin_of(source), target, mark, rules=FILTERED)
    assert stopped.value.trigger is Trigger.SOURCE_CHANGED
    twins = Source()
    twins.write([0], 1)
    twins.batches.append(batch_of([Rec()] * 9, 1))
    target = Log([ours(seen(source, 0, 1), 0, 0), ours([Rec()] * 2, 2, 2)])
    with pytest.raises(LaneStopped, match="and 2 of these is the same"):
        find(origin_of(twins), target, mark, rules=FILTERED)


def test_a_conflict_about_a_batch_that_the_target_has_compacted() -> None:
    source, mark = filtered_twice()
    target = Log([ours(seen(source, 0, 1), 0, 0), replay(1, 3), ours(seen(source, 7, 8), 4, 3)])
    with pytest.raises(LaneStopped, match="of sequence 2 may be the source's at 4 or 6, and none of these"):
        find(origin_of(source), target, mark, rules=FILTERED)


def test_a_conflict_beyond_the_tail_is_of_no_interest() -> None:
    source, mark = filtered_twice()
    target = Log([ours(seen(source, 0, 1), 0, 0)])
    assert find(origin_of(source), target, mark, rules=FILTERED) == Place(mark.checkpoint, mark.segments)


def test_no_more_conflicts_than_so_many_are_looked_into() -> None:
    source = plain(600)
    for count in (CONFLICTS_MAX, CONFLICTS_MAX + 1):
        ahead = tuple((4 * n + which, n) for n in range(count) for which in (0, 2))
        target = Log([ours(seen(source, *(4 * n for n in range(count))), 0, 0)])
        mark = Mark(Checkpoint(0, 0, 0), (), ahead)
        if count <= CONFLICTS_MAX:
            assert find(origin_of(source), target, mark, rules=FILTERED).checkpoint.position == 4 * count - 3
        else:
            with pytest.raises(LaneStopped, match="may be the source's"):
                find(origin_of(source), target, mark, rules=FILTERED)


def test_thousands_of_intents() -> None:
    source = plain(20_000)
    kept = range(0, 20_000, 2)
    target = Log([ours(seen(source, *kept), 0, 0, LZ4)])
    origin = origin_of(source)
    found = find(origin, target, Mark(Checkpoint(0, 0, 0), (), tuple((at, n) for n, at in enumerate(kept))))
    assert found.checkpoint == Checkpoint(19_999, 10_000, 10_000)
    assert len(found.segments) == 10_000
    assert origin.fetches + target.fetches <= 4


# ---- replays ----


def replay(count: int, at: int, link: str = "us-eu", **header: Any) -> Batch:
    mark = ("replicator.replayed", f"{link}:us-eu.dlq:0:7".encode())
    rows = [each._replace(headers=(*each.headers, mark)) for each in recs(count, 900)]
    return batch_of(rows, at, **{"producer_id": 9, "attributes": TRANSACTIONAL, **header})


@pytest.mark.parametrize("policy", [FENCE, TOLERATE])
@pytest.mark.parametrize("commit", [True, False])
def test_replays_of_this_link_are_a_gap_whatever_the_policy(policy: Policy, commit: bool) -> None:
    source = plain(6)
    target = Log([ours(seen(source, 0, 1), 0, 0), replay(2, 2), marker(4, 9, commit=commit)])
    mark = Mark(Checkpoint(2, 2, 2), ((0, 0, 2),), ())
    assert find(origin_of(source), target, mark, policy) == Place(mark.checkpoint, mark.segments)
    target.batches.append(ours(seen(source, 2, 3), 5, 2))
    found = find(origin_of(source), target, mark, policy)
    assert found == Place(Checkpoint(4, 7, 4), ((0, 0, 2), (2, 5, 2)))
    target.batches.append(replay(1, 7))
    assert find(origin_of(source), target, mark, policy) == found


def test_what_is_no_replay_of_this_link_is_foreign() -> None:
    source = plain(6)
    mark = Mark(Checkpoint(2, 2, 2), ((0, 0, 2),), ())
    half = [recs(1)[0], *recs(1)]
    half[0] = half[0]._replace(headers=(("replicator.replayed", b"us-eu:us-eu.dlq:0:7"),))
    for theirs in (
        replay(2, 2, "other"),
        batch_of(recs(2), 2, producer_id=9),
        batch_of(half, 2, producer_id=9),
        replace(replay(2, 2), records=b"cannot be opened"),
    ):
        target = Log([ours(seen(source, 0, 1), 0, 0), theirs, ours(seen(source, 2, 3), 4, 2)])
        with pytest.raises(LaneStopped, match="not all ours") as stopped:
            find(origin_of(source), target, mark)
        assert stopped.value.trigger is Trigger.FOREIGN_WRITES_FENCE
        assert find(origin_of(source), target, mark, TOLERATE).checkpoint == Checkpoint(4, 6, 4)


def test_among_others_the_last_record_is_compared_too() -> None:
    source = plain(6)
    mark = Mark(Checkpoint(2, 2, 2), ((0, 0, 2),), ())
    wrong = Log([ours(seen(source, 0, 1), 0, 0), replay(1, 2), ours(recs(2, 500), 3, 2)])
    with pytest.raises(LaneStopped, match=OTHER_TAIL):
        find(origin_of(source), wrong, mark)


# ---- any log, any copy, any moment ----


def intents(copy: Copy) -> tuple[tuple[int, int], ...]:
    """Every gap of the source that the copy passes over."""
    return tuple((offset, copy.sequence_of(offset)) for offset in copy.map if offset and offset - 1 not in copy.map)


def at_batch(copy: Copy, batches: int) -> tuple[Checkpoint, tuple[tuple[int, int, int], ...], Copy]:
    """Where the lane stands when so many batches of its target are acknowledged, and the target as of then."""
    some = Copy(copy.batches[:batches], {}, copy.first_sequence)
    some.map = {offset: at for offset, at in copy.map.items() if at < some.end}
    if not some.map:
        return Checkpoint(0, 0, copy.first_sequence), (), some
    last, at = max(some.map.items())
    place = Checkpoint(last + 1, at + 1, (copy.first_sequence + len(some.map)) % SEQUENCES)
    return place, some.segments, some


@given(st.data())
def test_whatever_landed_the_lane_goes_on_behind_it(data: st.DataObject) -> None:
    source = data.draw(sources().filter(lambda found: bool(found.committed)))
    rows = data.draw(st.sets(st.sampled_from(sorted(source.committed)), min_size=1))
    first = data.draw(st.sampled_from([0, SEQUENCES - 3]))
    copy = data.draw(copies({at: source.committed[at] for at in sorted(rows)}, first_sequence=first))
    landed = data.draw(st.integers(0, len(copy.batches)))
    written = data.draw(st.integers(0, landed))
    checkpoint, segments, _ = at_batch(copy, written)
    place, everything, target = at_batch(copy, landed)
    ahead = [each for each in intents(copy) if each[0] >= checkpoint.position]
    lies = [(at, copy.sequence_of(offset)) for offset in copy.map for at in source.committed if at not in copy.map]
    ahead += data.draw(st.lists(st.sampled_from(lies), max_size=3)) if lies and ahead else []
    told = {sequence for _, sequence in intents(copy)}
    mark = Mark(checkpoint, segments, tuple(each for each in ahead if each[1] in told))
    found = find(origin_of(source), Log(target.batches), mark, TOLERATE, FILTERED)
    assert found.checkpoint == place
    assert found.segments == everything


@given(st.data())
def test_a_record_that_forgot_its_intents_leads_to_the_truth_or_nowhere(data: st.DataObject) -> None:
    """Unless compaction has taken what would tell."""
    source = data.draw(sources().filter(lambda found: bool(found.committed)))
    copy = data.draw(copies(source.committed, foreign=False))
    place, _, target = at_batch(copy, data.draw(st.integers(1, len(copy.batches))))
    try:
        found = find(origin_of(source), Log(target.batches), BEGINNING)
    except LaneStopped:
        return
    there = source.committed | source.aborted_records
    if found.checkpoint.position - 1 in there:
        assert found.checkpoint[:3] == place[:3]
