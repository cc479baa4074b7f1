"""What a lane has to do, without a thought for speed: lists, copies, and one step at a time."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from replicator._core import Terms
from replicator.data.states import Checkpoint
from tests.oracle.batch import ANY, CODEC, HEADER_SIZE, Batch, verdict
from tests.oracle.records import merge

NEVER = 2**63 - 1
SEQUENCES = 2**31  # they run from 0 to 2**31 - 1 and then from 0 again
OPENED_MIN = 4  # fewer compressed batches are not worth opening
Run = tuple[int, int]  # source offset, records


@dataclass(eq=False)
class Held:
    """A batch taken in: as it was fetched, or made, while it is raw; from then on as it must arrive at the target."""

    batch: Batch
    runs: tuple[Run, ...]
    source_next: int  # where the source goes on behind it
    leader_epoch: int
    why: str = "pass"
    raw: bool = True
    behind_gap: bool = False
    permitted: bool = False
    last: "Held | None" = None  # of those that became this one

    @property
    def source_offset(self) -> int:
        return self.runs[0][0]

    @property
    def records_end(self) -> int:
        return sum(self.runs[-1])

    @property
    def has_gap(self) -> bool:
        return self.behind_gap or len(self.runs) > 1

    @property
    def codec(self) -> int:
        return self.batch.attributes & CODEC

    @property
    def size(self) -> int:
        return HEADER_SIZE + len(self.batch.records)

    def intents(self) -> list[tuple[int, int]]:
        """(source offset, sequence) of each run."""
        found, sequence = [], self.batch.base_sequence
        for offset, count in self.runs:
            found.append((offset, sequence))
            sequence = (sequence + count) % SEQUENCES
        return found


@dataclass
class LaneModel:
    """`held`: the oldest first, `sent` of them in flight, then those that are queued, then those that are raw."""

    producer: tuple[int, int]
    hold_gaps: bool = False
    tolerate: bool = False
    terms: Terms = ANY
    place: Checkpoint = field(default_factory=lambda: Checkpoint(0, 0, 0))
    map: dict[int, int] = field(default_factory=dict)  # target offset of each source offset
    run_end: int = 0  # where the source's records run on without a gap
    fetch_offset: int = 0
    last_fetched_epoch: int = -1
    stop_offset: int = NEVER
    skip_records: int = 0
    next_sequence: int = 0
    running: bool = False
    blocked: bool = False
    held: list[Held] = field(default_factory=list)
    sent: int = 0
    steady: bool = False  # a batch was acknowledged since it was resumed
    announced: bool = False
    rebuild_told: bool = False
    merge_told: bool = False
    merge_declined: bool = False  # the next batch goes as it is
    merges_no_codec: bool = False
    halts: int = 0
    found: Counter[str] = field(default_factory=Counter)  # of batches taken in
    lost_faith: list[Held] = field(default_factory=list)  # in flight, and sent before the lane was halted

    @property
    def raw(self) -> list[Held]:
        return [held for held in self.held if held.raw]

    @property
    def queue(self) -> list[Held]:
        """What could be sent, if nothing else forbids it."""
        return [held for held in self.held[self.sent :] if not held.raw]

    @property
    def queued(self) -> int:
        return len(self.queue)

    @property
    def in_flight(self) -> int:
        return len(self.lost_faith) + self.sent

    def resume(
        self,
        place: Checkpoint,
        skip_records: int = 0,
        stop_offset: int = NEVER,
        segments: tuple[tuple[int, int, int], ...] = (),
    ) -> None:
        assert not self.in_flight
        assert not self.running
        self.place = place
        self.map = spread(segments)
        self.run_end = max(self.map) + 1 if self.map else place.position
        self.fetch_offset = place.position
        self.last_fetched_epoch = place.leader_epoch
        self.stop_offset = stop_offset
        self.skip_records = skip_records
        self.next_sequence = (place.sequence + skip_records) % SEQUENCES
        self.running, self.blocked, self.steady, self.announced = True, False, False, False

    def halt(self) -> None:
        self.running = False
        self.halts += 1
        self.lost_faith += self.held[: self.sent]
        self.held, self.sent = [], 0
        self.announced = self.rebuild_told = self.merge_told = self.merge_declined = False

    # ---- taking in ----

    def take_in(self, batches: list[Batch], void: Sequence[bool] = ()) -> list[tuple[str, int]]:
        """Takes a row of batches as one response brings them; `void` says which are of aborted transactions. What it
        stumbles over, as (verdict, offset), and what has to be told, as (kind of event, offset)."""
        told = []
        for nth, batch in enumerate(batches):
            if not self.running or self.blocked:
                break
            found = self._take_one(batch, bool(void) and void[nth])
            if found:
                self.blocked = True
                told.append((found, batch.base_offset))
            told += self.announcements()
        return told

    def announcements(self) -> list[tuple[str, int]]:
        told = []
        if self.raw and not self.rebuild_told:
            self.rebuild_told = True
            told.append(("rebuild_ahead", self.raw[0].source_offset))
        if self.hold_gaps and not self.announced and self.waiting:
            self.announced = True
            told.append(("gap_ahead", self.waiting[0].source_offset))
        return told

    def _take_one(self, batch: Batch, void: bool) -> str | None:
        if self.fetch_offset >= self.stop_offset:
            return None
        found = verdict(batch, self.fetch_offset, self.terms)
        if found.startswith("refuse"):
            return found
        if batch.base_offset >= self.stop_offset:
            if self.skip_records and not self.raw:
                return "refuse_tail"
            self.fetch_offset = self.stop_offset
            self._moved_to(self.stop_offset, batch.leader_epoch)
        elif batch.next_offset > self.fetch_offset:
            return self._take_wanted(batch, "skip_aborted" if void and not found.startswith("skip") else found)
        return None

    def _take_wanted(self, batch: Batch, found: str) -> str | None:
        if found.startswith("skip"):
            self._moved_to(batch.next_offset, batch.leader_epoch)
        else:
            runs = ((max(batch.base_offset, self.fetch_offset), batch.count),)
            self.held.append(Held(batch, runs, batch.next_offset, batch.leader_epoch, found))
            if found == "pass" and len(self.raw) == 1 and (refused := self._seal()):
                self.held.pop()
                return refused
        self.found[found] += 1
        self.fetch_offset = batch.next_offset
        self.last_fetched_epoch = batch.leader_epoch
        return None

    def _moved_to(self, source_next: int, leader_epoch: int) -> None:
        """Passes over something: at once when nothing stands before it, else together with what does."""
        self._moved_behind(len(self.held), source_next, leader_epoch)

    def _moved_behind(self, nth: int, source_next: int, leader_epoch: int) -> None:
        if nth:
            self.held[nth - 1].source_next, self.held[nth - 1].leader_epoch = source_next, leader_epoch
        else:
            self.place = self.place._replace(position=source_next, leader_epoch=leader_epoch)

    def _seal(self) -> str | None:
        """The oldest raw batch need not be opened. What it stumbles over."""
        held = self.raw[0]
        if self.skip_records:
            if held.batch.count > self.skip_records:
                return "refuse_tail"
            self.skip_records -= held.batch.count
            self.held.remove(held)
            self._landed(held, self.place.target_next)
        else:
            held.raw = False
            held.batch = held.batch.readdressed(*self.producer, self.next_sequence)
            held.behind_gap = held.source_offset != self.run_end
            self.next_sequence = (self.next_sequence + held.batch.count) % SEQUENCES
        self.run_end = held.records_end
        return None

    def _landed(self, held: Held, target: int) -> None:
        for source, count in held.runs:
            self.map |= {source + i: target + i for i in range(count)}
            target += count
        sequence = (self.place.sequence + held.batch.count) % SEQUENCES
        self.place = Checkpoint(held.source_next, target, sequence, held.leader_epoch)

    # ---- what is opened ----

    def replace(self, made: Sequence[tuple[Batch, tuple[Run, ...]]]) -> str:
        """The oldest raw batch becomes these; the verdict."""
        raw = self.raw[0]
        at = self.held.index(raw)
        if made:
            parts = [Held(one, runs, sum(runs[-1]), raw.batch.leader_epoch) for one, runs in made]
            parts[-1].source_next, parts[-1].leader_epoch = raw.source_next, raw.leader_epoch
            self.held[at : at + 1] = parts
        else:
            self.held.remove(raw)
            self._moved_behind(at, raw.source_next, raw.leader_epoch)
        return self._seal_waiting()

    def pass_raw(self) -> str:
        self.raw[0].why = "pass"
        return self._seal_waiting()

    def _seal_waiting(self) -> str:
        while self.raw and self.raw[0].why == "pass":
            if refused := self._seal():
                return refused
        if self.raw:
            return "pass"
        self.rebuild_told = False
        return "refuse_tail" if self.skip_records and self.fetch_offset >= self.stop_offset else "pass"

    # ---- gaps ----

    @property
    def waiting(self) -> list[Held]:
        """What is held back by gaps, as far as it is behind one itself, or has one inside."""
        return [held for held in self.queue if held.has_gap and not held.permitted]

    def ahead(self, limit: int) -> tuple[list[Held], tuple[tuple[int, int], ...]]:
        """The batches that may go when it is known what stands behind a gap among them, and what does; of those queued
        as far as `limit` of them do."""
        told, gaps = self.lost_faith + self.held[: self.sent], 0
        for held in self.queue:
            if gaps >= limit:
                break
            told = [*told, held]
            gaps += len(held.runs) * held.has_gap
        return told, tuple(intent for held in told if held.has_gap for intent in held.intents())

    def permit(self, told: list[Held], halts: int) -> bool:
        """What `ahead` told of after so many halts may go. True when more wait behind a gap."""
        if halts != self.halts:
            return self.announced
        for held in self.queue:
            held.permitted |= held in told or held.last in told
        self.announced = bool(self.waiting)
        return self.announced

    # ---- merging ----

    def mergeable(self, codec: int) -> int:
        """How many of the oldest could go as one."""
        size_max, size = self.terms.merge_bytes, 0
        for nth, held in enumerate(self.queue):
            size += held.size
            free = held.permitted or not (self.hold_gaps and held.has_gap)
            if held.size > size_max // 2 or size > size_max or held.codec != codec or not free:
                return nth
        return len(self.queue)

    def join(self, n: int, batch: Batch) -> None:
        """The n oldest that are queued go as this one."""
        parts = self.queue[:n]
        runs: list[Run] = []
        for offset, count in (run for part in parts for run in part.runs):
            if runs and sum(runs[-1]) == offset:
                runs[-1] = (runs[-1][0], runs[-1][1] + count)
            else:
                runs.append((offset, count))
        whole = batch.readdressed(*self.producer, parts[0].batch.base_sequence)
        one = replace(parts[-1], batch=whole, runs=tuple(runs), last=parts[-1].last or parts[-1])
        one.behind_gap, one.permitted = parts[0].behind_gap, parts[0].permitted
        self.held[self.sent : self.sent + n] = [one]
        self.merge_told = False

    def decline_merge(self, for_good: bool) -> None:
        self.merge_told = False
        self.merge_declined = True
        self.merges_no_codec |= for_good

    def _merge(self) -> None:
        n = self.mergeable(0)
        while n > 1:
            merged = merge([held.batch.encode() for held in self.queue[:n]])
            if merged and len(merged) <= self.terms.merge_bytes:
                self.join(n, Batch.parse(merged))
                return
            n //= 2

    @property
    def _asks_to_merge(self) -> bool:
        if self.merge_declined or self.merges_no_codec or not self.sent:
            return False
        codec = self.queue[0].codec
        return codec > 0 and self.mergeable(codec) >= OPENED_MIN

    # ---- sending ----

    def send(self) -> Batch | str | None:
        """The batch that the next request carries, or the kind of event that comes instead."""
        alone = not self.steady and self.sent
        if not self.running or not self.queue or alone or self.merge_told:
            return None
        if self.hold_gaps and self.queue[0] in self.waiting:
            return None
        if self._asks_to_merge:
            self.merge_told = True
            return "merge_ahead"
        self._merge()
        self.sent += 1
        self.merge_declined = False
        return self.held[self.sent - 1].batch

    def answer(self, base_offset: int, error: int = 0) -> str | None:
        """The answer to the oldest batch in flight; the kind of the event it makes."""
        if self.lost_faith:
            self.lost_faith.pop(0)
            return None
        held = self.held.pop(0)
        self.sent -= 1
        due = self.place.target_next
        if not error and (base_offset == due or (self.tolerate and base_offset > due)):
            self._landed(held, base_offset)
            self.steady = True
            return None
        self.halt()
        return "produce_error" if error else "offset_drift"

    def connection_lost(self) -> bool:
        """Nothing in flight will be answered. True if that puts the lane in doubt."""
        in_doubt = self.sent > 0
        if in_doubt:
            self.halt()
        self.lost_faith = []
        return in_doubt


def spread(segments: tuple[tuple[int, int, int], ...]) -> dict[int, int]:
    """An offset map, an entry for each record."""
    return {source + i: target + i for source, target, length in segments for i in range(length)}


def joined(offsets: dict[int, int]) -> tuple[tuple[int, int, int], ...]:
    """The other way round: as few segments as can be, in order."""
    segments: list[tuple[int, int, int]] = []
    for source, target in sorted(offsets.items()):
        if segments and (source, target) == (segments[-1][0] + segments[-1][2], segments[-1][1] + segments[-1][2]):
            segments[-1] = (*segments[-1][:2], segments[-1][2] + 1)
        else:
            segments.append((source, target, 1))
    return tuple(segments)
