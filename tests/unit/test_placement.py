"""Where a lane goes on, for everything that its target's tail may say: logs are lists of batches."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from replicator._core import open_batch
from replicator.config.models import Policy
from replicator.data import log_reader, matching, placement
from replicator.data.placement import LaneStopped, Mark, Place, Placement
from replicator.data.states import Checkpoint
from replicator.data.transitions import Trigger
from replicator.kafka.log import LogTail
from tests.oracle.batch import CONTROL, LOG_APPEND_TIME, Batch
from tests.oracle.listed_log import Log, use_lists

OURS = (4242, 1)
LZ4 = 3
DEFAULTS = Policy()


def source(*counts: int, first: int = 0) -> Log:
    """Batches of so many records each; a negative number is a control batch."""
    log = Log(alias="us")
    for number, count in enumerate(counts):
        offset = log.end if log.batches else first
        attributes = CONTROL if count < 0 else 0
        log.batches.append(Batch(offset, abs(count), b"records %d" % number, attributes=attributes, producer_id=7))
    return log


def copied(origin: Log, upto: int = 1 << 60, first_sequence: int = 0) -> Log:
    """What a lane made of it, up to this source offset."""
    log = Log()
    sequence = first_sequence
    for batch in origin.batches:
        if batch.attributes & CONTROL or batch.next_offset > upto:
            continue
        pid, epoch = OURS
        ours = replace(batch, producer_id=pid, producer_epoch=epoch, base_sequence=sequence, leader_epoch=0)
        log.batches.append(replace(ours, base_offset=log.end))
        sequence = (sequence + batch.count) % (1 << 31)
    return log


@pytest.fixture(autouse=True)
def lists_for_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    use_lists(monkeypatch, placement, matching, log_reader)
    monkeypatch.setattr(placement, "STILL_S", 0)


def find(
    origin: Log, target: Log, mark: Mark, policy: Policy = DEFAULTS, *, by_map: bool = True, in_doubt: bool = True
) -> Place:
    return asyncio.run(Placement(origin, target, OURS, policy, by_map).find(mark, in_doubt))  # type: ignore[arg-type]


def mark(at: Checkpoint, *segments: tuple[int, int, int], ahead: tuple[tuple[int, int], ...] = ()) -> Mark:
    return Mark(at, segments, ahead)


BEGINNING = mark(Checkpoint(0, 0, 0))


def test_nothing_landed() -> None:
    origin = source(3, 4, 5)
    at = mark(Checkpoint(7, 7, 7, 5), (0, 0, 7))
    assert find(origin, copied(origin, 7), at) == Place(at.checkpoint, at.segments)
    assert find(origin, Log(), BEGINNING) == Place(BEGINNING.checkpoint)


def test_more_landed_than_the_record_knows_of() -> None:
    origin = source(3, 4, 5, 6)
    found = find(origin, copied(origin, 12), mark(Checkpoint(3, 3, 3), (0, 0, 3)))
    assert found == Place(Checkpoint(12, 12, 12), ((0, 0, 12),))


def test_without_a_map_what_landed_is_passed_over() -> None:
    origin = source(3, 4, 5, 6)
    at = mark(Checkpoint(3, 3, 3), (0, 0, 3))
    assert find(origin, copied(origin, 12), at, by_map=False) == Place(at.checkpoint, at.segments, landed=9)


def test_what_landed_behind_announced_gaps() -> None:
    origin = source(3, -1, 4, -1, -1, 5, 6)
    at = mark(Checkpoint(3, 3, 3), (0, 0, 3), ahead=((4, 3), (10, 7)))
    found = find(origin, copied(origin, 15), at)
    assert found == Place(Checkpoint(15, 12, 12), ((0, 0, 3), (4, 3, 4), (10, 7, 5)))


@pytest.mark.parametrize("ahead", [(), ((6, 3),), ((4, 3), (5, 3))])
def test_a_record_that_says_too_little_or_wrong_is_found_out_and_the_source_counted(
    ahead: tuple[tuple[int, int], ...],
) -> None:
    origin = source(3, -1, 4, -1, 5, 6)
    found = find(origin, copied(origin, 14), mark(Checkpoint(3, 3, 3), (0, 0, 3), ahead=ahead))
    assert (found.checkpoint, found.segments) == (Checkpoint(14, 12, 12, 5), ((0, 0, 3), (4, 3, 4), (9, 7, 5)))


def test_a_target_that_is_no_copy_is_refused() -> None:
    origin = source(3, 4, 5)
    target = copied(origin, 12)
    target.batches[-1] = replace(target.batches[-1], records=b"something else")
    with pytest.raises(LaneStopped, match="not the ones that the source has"):
        find(origin, target, mark(Checkpoint(3, 3, 3), (0, 0, 3)))


def test_a_target_that_packs_anew_or_stamps_its_own_time_is_a_copy_all_the_same() -> None:
    origin = source(3, 4)
    target = copied(origin)
    target.batches[-1] = replace(target.batches[-1], attributes=LZ4, records=b"packed")
    assert find(origin, target, BEGINNING).checkpoint.position == 7
    target.batches[-1] = replace(copied(origin).batches[-1], attributes=LOG_APPEND_TIME, max_timestamp=1)
    assert find(origin, target, BEGINNING).checkpoint.position == 7


def test_a_source_that_deleted_what_landed_speaks_against_nothing() -> None:
    origin = source(3, 4, 5)
    target = copied(origin, 7)
    origin.batches, origin.start = origin.batches[2:], 7
    assert find(origin, target, BEGINNING).checkpoint == Checkpoint(7, 7, 7)


def test_sequences_wrap() -> None:
    origin = source(3, 4, 5)
    first = (1 << 31) - 5
    found = find(origin, copied(origin, first_sequence=first), mark(Checkpoint(3, 3, first + 3), (0, 0, 3)))
    assert found.checkpoint == Checkpoint(12, 12, (first + 12) % (1 << 31))


def test_foreign_records_stop_the_lane() -> None:
    origin = source(3, 4)
    target = copied(origin)
    target.batches.append(Batch(7, 2, producer_id=-1, producer_epoch=-1, base_sequence=-1))
    with pytest.raises(LaneStopped, match="offsets 3 to 8 are not all ours") as stopped:
        find(origin, target, mark(Checkpoint(3, 3, 3), (0, 0, 3)))
    assert stopped.value.trigger is Trigger.FOREIGN_WRITES_FENCE


def test_foreign_records_are_gaps_where_they_are_tolerated() -> None:
    origin = source(3, 4, 5)
    target, theirs = Log(), replace(Batch(), producer_id=-1, producer_epoch=-1, base_sequence=-1, count=10)
    for batch in copied(origin).batches:
        target.batches.append(replace(theirs, base_offset=target.end))
        target.batches.append(replace(batch, base_offset=target.end))
    target.batches.append(replace(theirs, base_offset=target.end))
    at = mark(Checkpoint(3, 13, 3), (0, 10, 3))
    found = find(origin, target, at, Policy(foreign_writes="tolerate"))
    assert found == Place(Checkpoint(12, 42, 12), ((0, 10, 3), (3, 23, 4), (7, 37, 5)))
    nothing_of_ours = Log([*target.batches[:2], replace(theirs, base_offset=13)])
    assert find(origin, nothing_of_ours, at, Policy(foreign_writes="tolerate")) == Place(at.checkpoint, at.segments)


@pytest.mark.parametrize("foreign_writes", ["tolerate", "fence"])
def test_others_that_never_stop_writing(foreign_writes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target's log does not stand still, but nothing of it is ours any more: no reason to wait."""
    origin = source(3, 4, 5)
    target = copied(origin, 7)

    async def busy_tail(log: Any) -> LogTail:
        log.batches.append(replace(Batch(), base_offset=log.end, producer_id=-1, producer_epoch=-1, base_sequence=-1))
        records = log.batches[-1].encode()
        return LogTail(log.end, open_batch(records), records)

    monkeypatch.setattr(placement, "read_tail", busy_tail)
    where = Placement(origin, target, OURS, Policy(foreign_writes=foreign_writes), True)  # type: ignore[arg-type]
    finding = asyncio.wait_for(where.find(mark(Checkpoint(3, 3, 3), (0, 0, 3)), in_doubt=True), 10)
    if foreign_writes == "fence":
        with pytest.raises(LaneStopped, match="not all ours"):
            asyncio.run(finding)
    else:
        assert asyncio.run(finding) == Place(Checkpoint(7, 7, 7), ((0, 0, 7),))


def test_a_target_that_lost_its_end_is_filled_again() -> None:
    origin = source(3, -1, 4, 5)
    at = mark(Checkpoint(13, 12, 12), (0, 0, 3), (4, 3, 9))
    found = find(origin, copied(origin, 8), at)
    assert (found.checkpoint, found.segments) == (Checkpoint(8, 7, 7), ((0, 0, 3), (4, 3, 4)))
    assert "ends at 7, but 12 was acknowledged: copied once more from source offset 8 on" in found.news
    emptied = find(origin, Log(), at)
    assert (emptied.checkpoint, emptied.segments) == (Checkpoint(0, 0, 0), ())


@pytest.mark.parametrize(
    ("policy", "change", "words"),
    [
        (Policy(target_lost="stop"), {}, "ends at 7, but 12 was acknowledged"),
        (Policy(), {"base_sequence": 99}, "its last batch is not the one that stood there"),
        (Policy(), {"producer_id": 1}, "its last batch is not ours"),
    ],
)
def test_a_target_that_lost_its_end_and_cannot_be_filled(policy: Policy, change: dict[str, int], words: str) -> None:
    origin = source(3, 4, 5)
    target = copied(origin, 7)
    target.batches[-1] = replace(target.batches[-1], **change)  # type: ignore[arg-type]
    with pytest.raises(LaneStopped, match=words) as stopped:
        find(origin, target, mark(Checkpoint(12, 12, 12), (0, 0, 12)), policy)
    assert stopped.value.trigger in (Trigger.TARGET_LOST_STOP, Trigger.CANNOT_REFILL)


def test_a_target_that_lost_what_the_source_has_not_any_more() -> None:
    origin = source(3, 4, 5)
    target = copied(origin, 3)
    origin.batches, origin.start = origin.batches[2:], 7
    with pytest.raises(LaneStopped, match="the source has nothing below 7"):
        find(origin, target, mark(Checkpoint(12, 12, 12), (0, 0, 12)))
    with pytest.raises(LaneStopped, match="begins later"):
        find(origin, target, mark(Checkpoint(12, 12, 12), (7, 7, 5)))


def test_a_batch_of_ours_that_is_not_the_one_acknowledged() -> None:
    origin = source(3, 4)
    with pytest.raises(LaneStopped, match="not the one acknowledged there"):
        find(origin, copied(origin), mark(Checkpoint(7, 7, 12), (0, 0, 7)))


def test_what_policies_make_of_a_place() -> None:
    place = Place(Checkpoint(20, 12, 12, 5), ((0, 0, 3), (10, 3, 9)))
    assert place.behind_gap(100).checkpoint == Checkpoint(100, 12, 12)
    assert place.behind_gap(100).segments == place.segments
    fork = place.at_fork(15, 6)
    assert (fork.checkpoint, fork.segments) == (Checkpoint(15, 12, 12, 6), ((0, 0, 3), (10, 3, 5)))
    assert place.at_fork(5, 6).segments == ((0, 0, 3),)
