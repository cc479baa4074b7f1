"""Two brokers as far as a replicator can tell: a log to fetch from, and a log that checks sequences as Kafka does.

Records are eight-byte numbers, so that a log can be compared with another one record by record. The rules of the
target are those of a real broker for one producer id (ProducerAppendInfo, LogValidator): a batch it has among its
last five is acknowledged again where it stands, the next sequence is appended, anything else is refused.
"""

import struct
from collections import deque
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

from tests.oracle.batch import CODEC, CONTROL, TRANSACTIONAL, Batch, is_intact
from tests.oracle.lane import SEQUENCES

CORRUPT_MESSAGE, OUT_OF_ORDER_SEQUENCE, INVALID_RECORD = 2, 45, 87
REMEMBERED = 5


def packed(numbers: list[int]) -> bytes:
    return struct.pack(f">{len(numbers)}q", *numbers)


def unpacked(records: bytes) -> list[int]:
    return list(struct.unpack(f">{len(records) // 8}q", records))


@dataclass
class SourceLog:
    """One partition of the source. It only grows."""

    batches: list[Batch] = field(default_factory=list)
    end: int = 0
    leader_epoch: int = 0  # of what is appended next
    numbers: "count[int]" = field(default_factory=count)

    def append(self, kind: str, size: int, hole: int) -> None:
        """Adds `size` records (`data`), a marker of a transaction (`control`), or what compaction leaves (`empty`)."""
        offset = self.end + hole
        if kind == "data":
            records = packed([next(self.numbers) for _ in range(size)])
            batch = Batch(offset, size, records, self.leader_epoch)
        elif kind == "control":
            batch = Batch(offset, 1, b"marker", self.leader_epoch, attributes=CONTROL | TRANSACTIONAL)
        else:
            batch = Batch(offset, 0, b"", self.leader_epoch, last_offset_delta=size - 1)
        self.batches.append(batch)
        self.end = batch.next_offset

    def read(self, offset: int, bytes_max: int, behind: int) -> bytes:
        """Batches from the one that holds `offset` on, and `behind` earlier ones; the last may be cut."""
        first = next((i for i, batch in enumerate(self.batches) if batch.next_offset > offset), len(self.batches))
        wanted = b"".join(batch.encode() for batch in self.batches[first:])
        whole = len(self.batches[first].encode()) if wanted else 0
        earlier = b"".join(batch.encode() for batch in self.batches[max(0, first - behind) : first])
        return earlier + wanted[: max(whole, bytes_max)]

    def data_below(self, offset: int) -> list[int]:
        """The records that have to be on the target when the position is there."""
        return [number for batch in self._data_below(offset) for number in unpacked(batch.records)]

    def offsets_below(self, offset: int) -> list[int]:
        """Where they stand."""
        return [batch.base_offset + i for batch in self._data_below(offset) for i in range(batch.count)]

    def _data_below(self, offset: int) -> list[Batch]:
        return [batch for batch in self.batches if batch.next_offset <= offset and not batch.attributes & CONTROL]

    def epoch_before(self, offset: int) -> int:
        """The leader epoch of the batch that ends there; -1 if none does."""
        return next((batch.leader_epoch for batch in self.batches if batch.next_offset == offset), -1)


class Appended(NamedTuple):
    first: int
    last: int
    base_offset: int


@dataclass
class TargetLog:
    """One partition of the target, and what it remembers of the one producer that writes to it."""

    batches: list[Batch] = field(default_factory=list)
    records: list[int] = field(default_factory=list)
    remembered: deque[Appended] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    recognised: int = 0  # duplicates

    def append(self, data: bytes) -> tuple[int, int]:
        """Kafka's error code and the base offset of the answer."""
        if not is_intact(data):
            return CORRUPT_MESSAGE, -1
        batch = Batch.parse(data)
        valid = batch.base_offset == 0 and not batch.attributes & ~CODEC and batch.count == batch.last_delta + 1 > 0
        if not valid:
            return INVALID_RECORD, -1
        first, last = batch.base_sequence, (batch.base_sequence + batch.count - 1) % SEQUENCES
        for known in self.remembered:
            if (known.first, known.last) == (first, last):
                self.recognised += 1
                return 0, known.base_offset
        if self.remembered and first != (self.remembered[-1].last + 1) % SEQUENCES:
            return OUT_OF_ORDER_SEQUENCE, -1
        base_offset = len(self.records)
        self.remembered.append(Appended(first, last, base_offset))
        self.batches.append(batch)
        self.records += unpacked(batch.records)
        return 0, base_offset

    def restart(self) -> None:
        """A broker that comes up again knows its last batch only."""
        while len(self.remembered) > 1:
            self.remembered.popleft()
