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
    source_next: int


@dataclass
class LaneModel:
    """`sent` of the `held` batches are in flight, the oldest first; the others are queued behind them."""

    producer: tuple[int, int]
    place: Checkpoint = field(default_factory=lambda: Checkpoint(0, 0, 0))
    fetch_offset: int = 0
    stop_offset: int = NEVER
    skip_records: int = 0
    next_sequence: int = 0
    running: bool = False
    blocked: bool = False
    held: list[Held] = field(default_factory=list)
    sent: int = 0
    steady: bool = False  # a batch was acknowledged since it was resumed
    lost_faith: int = 0  # how many of those in flight were sent before the lane was halted

    @property
    def queued(self) -> int:
        return len(self.held) - self.sent

    @property
    def in_flight(self) -> int:
        return self.lost_faith + self.sent

    def resume(self, place: Checkpoint, skip_records: int = 0, stop_offset: int = NEVER) -> None:
        assert not self.in_flight
        assert not self.running
        self.place = place
        self.fetch_offset = place.position
        self.stop_offset = stop_offset
        self.skip_records = skip_records
        self.next_sequence = (place.sequence + skip_records) % SEQUENCES
        self.running, self.blocked, self.steady = True, False, False

    def halt(self) -> None:
        self.running = False
        self.lost_faith += self.sent
        self.held, self.sent = [], 0

    def take_in(self, batches: list[Batch]) -> tuple[str, int] | None:
        """Takes a row of batches as one response brings them; the verdict and offset it stumbles over, if any."""
        for batch in batches:
            if not self.running or self.blocked:
                break
            found = self._take_one(batch)
            if found:
                self.blocked = True
                return found, batch.base_offset
        return None

    def _take_one(self, batch: Batch) -> str | None:
        if self.fetch_offset >= self.stop_offset:
            return None
        found = verdict(batch, self.fetch_offset)
        if found in ("refuse_malformed", "rebuild_magic"):
            return found
        if batch.base_offset >= self.stop_offset:
            if self.skip_records:
                return "refuse_tail"
            self._moved_to(self.stop_offset)
        elif batch.next_offset > self.fetch_offset:
            return self._take_wanted(batch, found)
        return None

    def _take_wanted(self, batch: Batch, found: str) -> str | None:
        if found.startswith("skip"):
            self._moved_to(batch.next_offset)
        elif found != "pass":
            return found
        elif self.skip_records:
            if batch.count > self.skip_records:
                return "refuse_tail"
            self.skip_records -= batch.count
            self._advance(batch.count)
            self._moved_to(batch.next_offset)
        else:
            ours = batch.readdressed(*self.producer, self.next_sequence)
            self.held.append(Held(ours, batch.next_offset))
            self.next_sequence = (self.next_sequence + batch.count) % SEQUENCES
            self.fetch_offset = batch.next_offset
        return None

    def _moved_to(self, source_next: int) -> None:
        """Passes over something: at once when nothing stands before it, else together with what does."""
        self.fetch_offset = source_next
        if self.held:
            self.held[-1].source_next = source_next
        else:
            self.place = self.place._replace(position=source_next)

    def _advance(self, records: int) -> None:
        position, target_next, sequence = self.place
        self.place = Checkpoint(position, target_next + records, (sequence + records) % SEQUENCES)

    def send(self) -> Batch | None:
        """The batch that the next request carries."""
        alone = not self.steady and self.sent
        if not self.running or not self.queued or alone:
            return None
        self.sent += 1
        return self.held[self.sent - 1].batch

    def answer(self, base_offset: int, error: int = 0) -> str | None:
        """The answer to the oldest batch in flight; the kind of the event it makes."""
        if self.lost_faith:
            self.lost_faith -= 1
            return None
        held = self.held.pop(0)
        self.sent -= 1
        if not error and base_offset == self.place.target_next:
            self._advance(held.batch.count)
            self.place = self.place._replace(position=held.source_next)
            self.steady = True
            return None
        self.halt()
        return "produce_error" if error else "offset_drift"

    def connection_lost(self) -> bool:
        """Nothing in flight will be answered. True if that puts the lane in doubt."""
        in_doubt = self.sent > 0
        if in_doubt:
            self.halt()
        self.lost_faith = 0
        return in_doubt
