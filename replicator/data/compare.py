"""One segment compared: a run of source offsets, and the place of each on the target.

Two batches that hold the same offsets are compared as a whole, if need be unpacked; all else record by record, since
a batch of the target may be made of several of the source's, or of a part of one. `at` is the source offset up to which
everything has been compared.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from replicator._core import crc32c
from replicator.data.codecs import CODECS, UnpackError
from replicator.data.log_reader import LogReader, StoredBatch
from replicator.data.ranges import Segment
from replicator.data.rules import Rules
from replicator.data.unpack import Record, differences
from replicator.errors import ProtocolError
from replicator.kafka.log import LOG_APPEND_TIME

OWN_TIME = "the target's broker has put its own time on it, everything else is equal"


class Difference(Exception):
    """Ends a comparison: here the target is not what the source is."""


class Enough(Exception):
    """Ends a comparison that was asked for so much and no more."""


class Tally:
    """What was compared so far, and what was met on the way: see `LaneVerdict`."""

    def __init__(self) -> None:
        self.records = self.bytes = self.batches = self.checksum = 0
        self.gone = self.cleaned = self.foreign = self.passed_over = self.edited = 0
        self.remarks = ["", ""]  # where first something was not compared, and where first not all was identical

    def note(self, remark: str, *, uncompared: bool = False) -> None:
        which = 0 if uncompared else 1
        self.remarks[which] = self.remarks[which] or remark

    @property
    def remark(self) -> str:
        """Why not everything is identical; empty if it is."""
        return self.remarks[0] or self.remarks[1]


class _Stretch(NamedTuple):
    """The same offsets on both sides, within one batch on each, or none."""

    original: StoredBatch | None
    copy: StoredBatch | None
    start: int  # source offsets
    end: int
    shift: int  # from a source offset to its target offset

    def place(self, offset: int) -> str:
        return f"source offset {offset}, target offset {offset + self.shift}"

    @property
    def lined_up(self) -> bool:
        """True if the two batches hold the same offsets, or as many."""
        if self.original is None or self.copy is None:
            return False
        ours, theirs = self.original.header, self.copy.header
        wanted = ours.base_offset + self.shift, ours.last_offset_delta, ours.count
        return wanted == (theirs.base_offset, theirs.last_offset_delta, theirs.count)

    @property
    def stamped(self) -> bool:
        """True if the target's broker put its own time on it."""
        return self.copy is not None and bool(self.copy.header.attributes & LOG_APPEND_TIME)


class Comparison:
    """Two logs side by side, read forwards from segment to segment.

    With `holes_allowed` a record that only one log still has is counted instead of a difference. `rules` say what the
    records met on their way. `bytes_max` of the source are compared, and the batch that goes beyond it.
    """

    def __init__(
        self,
        readers: tuple[LogReader, LogReader],
        tally: Tally,
        on_records: Callable[[int], None],
        rules: Rules,
        holes_allowed: bool = False,
        bytes_max: int | None = None,
    ) -> None:
        self.source, self.target = readers
        self.at = 0
        self._tally = tally
        self._on_records = on_records
        self._rules = rules
        self._counted = 0  # source offset up to which batches are in the tally: many segments may lie in one
        self._holes_allowed = holes_allowed
        self._bytes_max = bytes_max

    async def segment(self, segment: Segment) -> None:
        """Raises Difference, Enough, UnpackError, and as LogReader.peek."""
        shift, self.at = segment.target - segment.source, segment.source
        self.source.end, self.target.end = segment.source_end, segment.target_end
        while self.at < segment.source_end:
            if self._bytes_max is not None and self._tally.bytes >= self._bytes_max and self.at >= self._counted:
                raise Enough
            self.source.move(self.at)
            self.target.move(self.at + shift)
            original, copy = await self.source.peek(), await self.target.peek()
            end = min(original.end if original else segment.source_end, segment.source_end)
            end = min(copy.end - shift if copy else end, end)
            self._compare(_Stretch(original, copy, self.at, end, shift))
            self.at = end
        self.source.move(segment.source_end)
        self.target.move(segment.target_end)

    def _compare(self, stretch: _Stretch) -> None:
        self._check_ends(stretch)
        _check_intact(stretch)
        try:
            _check_committed(stretch)
            if _same_batch(stretch, self._tally):
                assert stretch.original
                records = stretch.original.count_between(stretch.start, stretch.end)
            else:
                records = self._compare_records(stretch)
        except UnpackError as error:
            raise _cannot_open(stretch, error) from None
        if records < stretch.end - stretch.start and not self._holes_allowed:
            raise Difference(f"{stretch.place(stretch.start)}: some record from here on is on neither side")
        self._count(stretch, records)

    def _check_ends(self, stretch: _Stretch) -> None:
        for batch, reader, name in (
            (stretch.original, self.source, "source"),
            (stretch.copy, self.target, "target"),
        ):
            if batch is None and reader.log_ended:
                why = f"the {name}'s log ends at {reader.log_end}"
                if reader.open_from >= 0:
                    why = f"a transaction that is still open on the {name}, from {reader.open_from} on"
                raise Difference(f"{stretch.place(stretch.start)}: {why}")

    def _compare_records(self, stretch: _Stretch) -> int:
        """How many are on both sides."""
        original, copy, start, end, shift = stretch
        ours = original.between(start, end) if original else ()
        theirs = [at - shift for at in copy.between(start + shift, end + shift)] if copy else []
        both = ours if list(ours) == theirs else self._on_both_sides(stretch, ours, theirs)
        if original is None or copy is None or not both:
            return 0
        for offset in both:
            self._compare_record(stretch, offset, original, copy)
        how = OWN_TIME if stretch.stamped else "the target's batches are not the source's"
        self._tally.note(f"{stretch.place(both[0])}: {how}")
        return len(both)

    def _compare_record(self, stretch: _Stretch, offset: int, original: StoredBatch, copy: StoredBatch) -> None:
        wanted, found = original.at(offset), copy.at(offset + stretch.shift)
        names = differences(wanted, found)
        if unasked := [name for name in names if name not in self._rules.changed]:
            what = f"another {' and '.join(unasked)}{_looks_like(original, found)}"
            raise Difference(f"{stretch.place(offset)}: {what}")
        times = original.timestamp(wanted), copy.timestamp(found)
        if times[0] != times[1] and not stretch.stamped:
            names.append("timestamp")
            if "timestamp" not in self._rules.changed:
                raise Difference(f"{stretch.place(offset)}: timestamp should be {times[0]}, is {times[1]}")
        if names:
            self._tally.edited += 1
            what = f"another {' and '.join(names)}, which the link's edits explain"
            self._tally.note(f"{stretch.place(offset)}: {what}", uncompared=True)

    def _on_both_sides(self, stretch: _Stretch, ours: Sequence[int], theirs: Sequence[int]) -> list[int]:
        """Where that is not everything, a cleaner must have been allowed."""
        wanted, found = set(ours), set(theirs)
        for only, name in ((wanted - found, "target"), (found - wanted, "source")):
            if only and not self._holes_allowed:
                raise Difference(f"{stretch.place(min(only))}: the {name} has no record there")
            self._tally.cleaned += len(only)
        return sorted(wanted & found)

    def _count(self, stretch: _Stretch, records: int) -> None:
        tally, original = self._tally, stretch.original
        tally.records += records
        if (
            original
            and original.end > self._counted
            and stretch.end == min(original.end, self.source.end or original.end)
        ):
            self._counted = original.end
            tally.bytes += original.header.size
            tally.batches += 1
            tally.checksum = crc32c(original.section, tally.checksum)
        self._on_records(records)


def _check_intact(stretch: _Stretch) -> None:
    for batch, name in ((stretch.original, "source"), (stretch.copy, "target")):
        if batch and not batch.intact:
            what = f"the {name}'s batch at {batch.start} does not match its own checksum: it was damaged where it lies"
            raise Difference(f"{stretch.place(stretch.start)}: {what}")


def _check_committed(stretch: _Stretch) -> None:
    original = stretch.original
    if original and original.aborted and original.count_between(stretch.start, stretch.end):
        raise Difference(f"{stretch.place(stretch.start)}: a record of a transaction that the source aborted")


def _same_batch(stretch: _Stretch, tally: Tally) -> bool:
    """True if the target's batch is the source's, as it is or packed anew. False leaves it open."""
    original, copy = stretch.original, stretch.copy
    if original is None or copy is None:
        return False
    ours, theirs = original.header, copy.header
    stamps_differ = (ours.attributes ^ theirs.attributes) & LOG_APPEND_TIME and not stretch.stamped
    if not stretch.lined_up or stamps_differ or ours.base_timestamp != theirs.base_timestamp:
        return False
    if not _same_content(stretch, original, copy, tally):
        return False
    if stretch.stamped:
        tally.note(f"{stretch.place(original.start)}: {OWN_TIME}")
    elif ours.max_timestamp != theirs.max_timestamp:
        what = f"max timestamp of the batch should be {ours.max_timestamp}, is {theirs.max_timestamp}"
        raise Difference(f"{stretch.place(original.start)}: {what}")
    return True


def _same_content(stretch: _Stretch, original: StoredBatch, copy: StoredBatch, tally: Tally) -> bool:
    if original.codec == copy.codec:
        if crc32c(original.section) == crc32c(copy.section):
            return True
        return original.codec != 0 and original.unpacked == copy.unpacked
    how = f"{CODECS[original.codec]} on the source, {CODECS[copy.codec]} on the target"
    if original.unpacked != copy.unpacked:
        return False
    tally.note(f"{stretch.place(original.start)}: {how}, but equal when unpacked")
    return True


def _cannot_open(stretch: _Stretch, error: UnpackError) -> Exception:
    """What it means that one of the two cannot be opened, and something about them is not the same."""
    original, copy = stretch.original, stretch.copy
    if original and copy and stretch.lined_up and original.codec == copy.codec and not original.opens:
        return Difference(f"{stretch.place(stretch.start)}: the payloads differ")
    if copy and not copy.opens and (original is None or original.opens):
        return Difference(
            f"{stretch.place(stretch.start)}: the target's batch at {copy.start} cannot be opened: {error}"
        )
    return ProtocolError(f"{stretch.place(stretch.start)}: the source's batch cannot be opened: {error}")


def _looks_like(original: StoredBatch, found: Record) -> str:
    """Which other record of the source's batch stands there: that tells loss from damage."""
    for offset in original.between(original.start, original.end):
        if not differences(original.at(offset), found):
            return f"; it looks like the record of source offset {offset}"
    return ""
