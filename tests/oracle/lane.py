"""What a lane has to do, without a thought for speed: lists, copies, and one step at a time."""

from dataclasses import dataclass, field

from replicator.data.states import Checkpoint
from tests.oracle.batch import Batch, verdict

NEVER = 2**63 - 1
SEQUENCES = 2**31  # they run from 0 to 2**31 - 1 and then from 0 again


@dataclass
class Held:
    """A batch taken in: as it must arrive at the target, and where the source goes on behind it."""

    batch: Batch
    source_offset: int
    source_next: int
    leader_epoch: int
    behind_gap: bool
    permitted: bool = False


@dataclass
class LaneModel:
    """`sent` of the `held` batches are in flight, the oldest first; the others are queued behind them."""

    producer: tuple[int, int]
    hold_gaps: bool = False
    tolerate: bool = False
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
    halts: int = 0
    lost_faith: list[Held] = field(default_factory=list)  # in flight, and sent before the lane was halted

    @property
    def queued(self) -> int:
        return len(self.held) - self.sent

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
        self.announced = False

    def take_in(self, batches: list[Batch]) -> list[tuple[str, int]]:
        """Takes a row of batches as one response brings them. What it stumbles over, as (verdict, offset), and the gap
        that has to be told of, as ("gap_ahead", offset)."""
        told = []
        for batch in batches:
            if not self.running or self.blocked:
                break
            found = self._take_one(batch)
            if found:
                self.blocked = True
                told.append((found, batch.base_offset))
            elif self.hold_gaps and not self.announced and self.waiting:
                self.announced = True
                told.append(("gap_ahead", self.waiting[-1].source_offset))
        return told

    def _take_one(self, batch: Batch) -> str | None:
        if self.fetch_offset >= self.stop_offset:
            return None
        found = verdict(batch, self.fetch_offset)
        if found in ("refuse_malformed", "rebuild_magic"):
            return found
        if batch.base_offset >= self.stop_offset:
            if self.skip_records:
                return "refuse_tail"
            self._moved_to(self.stop_offset, batch.leader_epoch)
        elif batch.next_offset > self.fetch_offset:
            return self._take_wanted(batch, found)
        return None

    def _take_wanted(self, batch: Batch, found: str) -> str | None:
        if found.startswith("skip"):
            self._moved_to(batch.next_offset, batch.leader_epoch)
        elif found != "pass":
            return found
        elif self.skip_records:
            if batch.count > self.skip_records:
                return "refuse_tail"
            self.skip_records -= batch.count
            self._landed(batch.base_offset, self.place.target_next, batch.count)
            self.run_end = batch.next_offset
            self._moved_to(batch.next_offset, batch.leader_epoch)
        else:
            ours = batch.readdressed(*self.producer, self.next_sequence)
            gap = batch.base_offset != self.run_end
            self.held.append(Held(ours, batch.base_offset, batch.next_offset, batch.leader_epoch, gap))
            self.next_sequence = (self.next_sequence + batch.count) % SEQUENCES
            self.fetch_offset = self.run_end = batch.next_offset
        self.last_fetched_epoch = batch.leader_epoch
        return None

    def _moved_to(self, source_next: int, leader_epoch: int) -> None:
        """Passes over something: at once when nothing stands before it, else together with what does."""
        self.fetch_offset = source_next
        if self.held:
            self.held[-1].source_next, self.held[-1].leader_epoch = source_next, leader_epoch
        else:
            self.place = self.place._replace(position=source_next, leader_epoch=leader_epoch)

    def _landed(self, source: int, target: int, records: int) -> None:
        self.map |= {source + i: target + i for i in range(records)}
        sequence = (self.place.sequence + records) % SEQUENCES
        self.place = self.place._replace(target_next=target + records, sequence=sequence)

    @property
    def waiting(self) -> list[Held]:
        """What is held back by gaps, as far as it is behind one itself."""
        return [held for held in self.held[self.sent :] if held.behind_gap and not held.permitted]

    def ahead(self, limit: int) -> tuple[list[Held], tuple[tuple[int, int], ...]]:
        """The batches that may go when it is known what stands behind a gap among them, and what does; of those queued
        as far as `limit` of them do."""
        told, gaps = self.lost_faith + self.held[: self.sent], 0
        for held in self.held[self.sent :]:
            if gaps == limit:
                break
            told = [*told, held]
            gaps += held.behind_gap
        return told, tuple((held.source_offset, held.batch.base_sequence) for held in told if held.behind_gap)

    def permit(self, told: list[Held], halts: int) -> bool:
        """What `ahead` told of after so many halts may go. True when more wait behind a gap."""
        if halts != self.halts:
            return self.announced
        for held in told:
            held.permitted = True
        self.announced = bool(self.waiting)
        return self.announced

    def send(self) -> Batch | None:
        """The batch that the next request carries."""
        alone = not self.steady and self.sent
        if not self.running or not self.queued or alone:
            return None
        if self.hold_gaps and self.held[self.sent] in self.waiting:
            return None
        self.sent += 1
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
            self._landed(held.source_offset, base_offset, held.batch.count)
            self.place = self.place._replace(position=held.source_next, leader_epoch=held.leader_epoch)
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
