"""The owner of a simulated lane: what it writes down, and how the next one goes on from there.

The rules are those of replicator.data: a record of a moment says the checkpoint, the map and what is ahead; nothing
goes past a gap before a record says it; what left the map was written elsewhere before. Whoever comes next may find
any record from the last permit on, since what was written after it may be lost with its writer.
"""

from itertools import pairwise
from random import Random
from typing import NamedTuple

from replicator._core import Pool, Scratch, Terms
from replicator.data.resume import resume_point, still_ahead
from replicator.data.states import Checkpoint
from tests.oracle.batch import CODEC
from tests.oracle.broker import Row, SourceLog, TargetLog
from tests.oracle.lane import SEQUENCES, spread
from tests.oracle.opened import make, make_one, opened
from tests.oracle.records import Record as Kept
from tests.oracle.rig import NEVER, PRODUCER, LaneRig

Segments = tuple[tuple[int, int, int], ...]


class Record(NamedTuple):
    checkpoint: Checkpoint
    segments: Segments
    ahead: tuple[tuple[int, int], ...]
    chunks: Segments  # written before: what was dropped from the map


class SimulatedLane(LaneRig):
    """A lane with both its logs, and what its owner knows of it."""

    def __init__(
        self, topic: str, partition: int, first_sequence: int, hold_gaps: bool, terms: Terms, committed: bool
    ) -> None:
        super().__init__(topic, partition, f"copy.of.{topic}", hold_gaps=hold_gaps, terms=terms)
        self.native.runner = self
        self.terms, self.committed = terms, committed
        self.source_log = SourceLog()
        self.target_log = TargetLog(bytes_max=terms.batch_bytes_max or 1 << 20)
        self.first = Checkpoint(0, 0, first_sequence)
        self.without_source = False
        self.records = [Record(self.first, (), (), ())]
        self.chunks: Segments = ()
        self.merge_told = False  # and did not answer yet
        self.told = False  # of a gap ahead that nothing was written for yet
        self.cursor: int | None = None  # written down: the last record but those in `since` says it
        self.since: list[Record] = []

    # ---- writing down ----

    @property
    def known(self) -> Record:
        """What could be written down now."""
        ahead = still_ahead(self.checkpoint, self.records[-1].ahead, self.native.ahead()[1])
        return Record(self.checkpoint, self.native.segments(), ahead, self.chunks)

    def write(self) -> None:
        if self["version"]:
            self.records.append(self.known)
            self.since.append(self.records[-1])

    def write_to_permit(self, limit: int) -> None:
        """Before this, whatever is ahead beyond `limit` gaps is not written."""
        cursor, ahead = self.native.ahead(limit)
        ahead = still_ahead(self.checkpoint, self.records[-1].ahead, ahead)
        self.records.append(self.known._replace(ahead=ahead))
        self.cursor, self.since, self.told = cursor, [self.records[-1]], False

    def permit(self) -> bool:
        """Lets go what is written down; true when it did. From now on no older record will do."""
        if self.cursor is None:
            return False
        self.records = self.since
        before = self.native.queued
        self.told = self.native.permit(self.cursor)
        self.cursor = None
        return before > 0

    def drop(self, segments: int) -> None:
        """Writes some of the oldest elsewhere, and forgets them."""
        complete = self.native.segments()[:-1]
        self.chunks += complete[:segments]
        self.native.drop_segments(segments)

    # ---- opening ----

    def keeps(self, number: int) -> bool:
        """A lane that opens everything has a filter. Whatever it says, it has to say it again of the same record."""
        return not self.terms.opens or number // 4 % 3 > 0

    def open_one(self, pool: Pool, scratch: Scratch, chance: Random) -> str:
        """The oldest raw batch becomes as many as may be; how it went."""
        batch = self.native.raw(0)
        if batch is None:
            return "nothing"
        whole = opened(batch)
        kept = [
            record
            for record in whole.records
            if record.offset >= batch.from_offset and self.keeps(int.from_bytes(record.value or b"", "big"))
        ]
        ends_inside = 0 < self.native.skip_records < len(kept)
        untouched = batch.why == "rebuild_open" and len(kept) == len(whole.records) and not ends_inside
        if untouched and chance.randrange(2):
            assert self.native.pass_raw() == "pass"
            how = "batches passed on"
        else:
            codec = self.terms.codec if self.terms.codec >= 0 else chance.choice([0, 0, 4])
            parts = self._divided(kept, chance)
            made = [making.made for making in make(pool, scratch, whole, parts, codec)]
            assert self.native.replace(made) == "pass"
            how = ["batches that left nothing", "batches opened", "batches divided"][min(len(made), 2)]
        self.told |= self.native.announces()
        return how

    def _divided(self, kept: list[Kept], chance: Random) -> list[list[Kept]]:
        """Anyhow, but what the target holds already ends with a part, and no part is larger than it takes."""
        places = {0, len(kept)} | {chance.randrange(len(kept) + 1) for _ in range(chance.randrange(3))}
        if self.native.skip_records < len(kept):
            places.add(self.native.skip_records)
        if self.terms.batch_bytes_max:
            places |= set(range(0, len(kept), 3))
        return [kept[start:end] for start, end in pairwise(sorted(places))]

    def merge(self, pool: Pool, scratch: Scratch, chance: Random) -> str:
        """Answers that small compressed batches wait, if they do."""
        batches = self.native.mergeable()
        if len(batches) < 2 or not chance.randrange(4):
            self.native.decline_merge(not chance.randrange(8))
            return "merges declined"
        n = chance.choice([len(batches), chance.randrange(2, len(batches) + 1)])
        self.native.join(
            n, make_one(pool, scratch, batches[:n], chance.choice([batches[0].header.attributes & CODEC, 4])).made
        )
        return "merges of compressed batches"

    # ---- finding the place ----

    def landed(self, checkpoint: Checkpoint) -> int:
        """How many records beyond the checkpoint the target's tail says are there."""
        beyond = len(self.target_log.records) - checkpoint.target_next
        assert beyond >= 0, "more was acknowledged than there is"
        if beyond:
            last = self.target_log.batches[-1]
            assert (last.producer_id, last.producer_epoch) == PRODUCER
            assert (last.base_sequence + last.count - checkpoint.sequence) % SEQUENCES == beyond
        return beyond

    def die(self, chance: Random) -> None:
        """Nothing is left but what is in flight, and what was written down."""
        record = chance.choice(self.records)
        self.renew()
        self.native.runner = self
        self.records, self.chunks = [record], record.chunks
        self.told, self.merge_told, self.cursor, self.since = False, False, None, []

    def resume(self, by_map: bool) -> tuple[int, int]:
        """Goes on from what is known, or from the last record if that is nothing. `by_map`: the target's tail and the
        map tell where, else what landed is passed over. Returns how many records landed, and behind how many gaps."""
        record = self.known if self["version"] else self.records[-1]
        landed = self.landed(record.checkpoint)
        passed = sum((at - record.checkpoint.sequence) % SEQUENCES < landed for _, at in record.ahead)
        if by_map:
            sequence = (record.checkpoint.sequence + landed) % SEQUENCES
            checkpoint, segments = resume_point(*record[:3], sequence)
            assert checkpoint.target_next == len(self.target_log.records)
            self.native.resume(checkpoint, 0, NEVER, segments)
        else:
            self.native.resume(record.checkpoint, landed, NEVER, record.segments)
        self.without_source = True
        return landed, passed if by_map else 0

    # ---- what must be true ----

    @property
    def expected(self) -> list[Row]:
        """Everything that has to arrive, as far as it can be told yet."""
        return [row for row in self.source_log.rows(self.committed) if self.keeps(row.number)]

    def check_target(self) -> None:
        """The target is the beginning of what has to arrive."""
        records = self.target_log.records
        assert records == [(row.number, row.timestamp) for row in self.expected[: len(records)]]

    def check_checkpoint(self) -> None:
        position, target_next, sequence, leader_epoch = self.checkpoint
        arrived = sum(row.offset < position for row in self.expected)
        assert target_next == arrived <= len(self.target_log.records)
        assert sequence == (self.first.sequence + target_next) % SEQUENCES
        assert leader_epoch in (-1, self.source_log.epoch_before(position))

    def check_map(self) -> None:
        """What is below the position stands where the map says, and nothing else is on it."""
        found = spread(self.chunks + self.native.segments())
        offsets = [row.offset for row in self.expected if row.offset < self.checkpoint.position]
        assert found == {source: target for target, source in enumerate(offsets)}
