"""Two brokers as far as a replicator can tell: a log to fetch from, and a log that checks sequences as Kafka does.

The values of records are eight-byte numbers, so that a log can be compared with another one record by record. The rules
of the target are those of a real broker for one producer id (ProducerAppendInfo, LogValidator): a batch it has among
its last five is acknowledged again where it stands, the next sequence is appended, anything else is refused.
"""

import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

from tests.oracle.batch import (
    CODEC,
    DELETE_HORIZON,
    HEADER_SIZE,
    LOG_APPEND_TIME,
    TRANSACTIONAL,
    Batch,
    is_intact,
    marker,
)
from tests.oracle.lane import SEQUENCES
from tests.oracle.opened import unpack
from tests.oracle.records import walk
from tests.oracle.scripted_log import BASE_TIMESTAMP, Rec, batch_of

MESSAGE_TOO_LARGE, CORRUPT_MESSAGE, OUT_OF_ORDER_SEQUENCE, INVALID_RECORD = 10, 2, 45, 87
REMEMBERED = 5
FLAGS = {"data": 0, "holes": 0, "stamped": LOG_APPEND_TIME, "horizon": DELETE_HORIZON}


class Row(NamedTuple):
    """A record of the source."""

    offset: int
    number: int
    timestamp: int  # as readers see it


@dataclass
class Stored:
    batch: Batch
    data: bytes
    rows: list[Row]
    producer: int | None = None  # if it belongs to a transaction
    outcome: str = "committed"


@dataclass
class SourceLog:
    """One partition of the source. It only grows."""

    stored: list[Stored] = field(default_factory=list)
    end: int = 0
    leader_epoch: int = 0  # of what is appended next
    numbers: "count[int]" = field(default_factory=count)
    open: dict[int, int] = field(default_factory=dict)  # first offset of the transaction of each producer
    aborted: list[tuple[int, int, int]] = field(default_factory=list)  # producer, first offset, that of the marker

    def append(self, kind: str, size: int, hole: int, producer: int | None = None, codec: int = 0) -> None:
        """Adds `size` records: `data`, or of a kind that has to be opened. With a producer, in a transaction of it."""
        offset = self.end + hole
        deltas = list(range(size)) if kind != "holes" else [delta + (delta > 0) for delta in range(size)]
        rows = []
        for delta in deltas:
            number = next(self.numbers)
            rows.append(Row(offset + delta, number, BASE_TIMESTAMP + 7 * number))
        header = {"base_timestamp": 12_345} if kind == "horizon" else {}
        if kind == "stamped":
            rows = [row._replace(timestamp=BASE_TIMESTAMP + 1_000_000 + offset) for row in rows]
            header["max_timestamp"] = rows[0].timestamp
        if producer is not None:
            self.open.setdefault(producer, offset)
            header["producer_id"] = producer
        attributes = FLAGS[kind] | codec | TRANSACTIONAL * (producer is not None)
        records = [Rec(struct.pack(">q", row.number), None, BASE_TIMESTAMP + 7 * row.number) for row in rows]
        header |= {"leader_epoch": self.leader_epoch, "attributes": attributes}
        batch = batch_of(records, offset, codec, deltas, last_offset_delta=deltas[-1] + (kind == "holes"), **header)
        self._add(batch, rows, producer)

    def append_emptied(self, size: int, hole: int) -> None:
        """What compaction leaves of a batch."""
        self._add(Batch(self.end + hole, 0, b"", self.leader_epoch, last_offset_delta=size - 1))

    def append_marker(self, producer: int, commits: bool) -> None:
        """The end of a transaction, which may have been an empty one."""
        if producer in self.open and not commits:
            self.aborted.append((producer, self.open[producer], self.end))
        for stored in self.stored:
            if stored.producer == producer and stored.outcome == "open":
                stored.outcome = "committed" if commits else "aborted"
        self.open.pop(producer, None)
        self._add(marker(self.end, commits, producer, self.leader_epoch))

    def _add(self, batch: Batch, rows: Sequence[Row] = (), producer: int | None = None) -> None:
        outcome = "committed" if producer is None else "open"
        self.stored.append(Stored(batch, batch.encode(), list(rows), producer, outcome))
        self.end = batch.next_offset

    @property
    def last_stable_offset(self) -> int:
        return min([self.end, *self.open.values()])

    def read(
        self, offset: int, bytes_max: int, behind: int, committed: bool
    ) -> tuple[bytes, list[tuple[int, int]] | None]:
        """Batches from the one that holds `offset` on, and `behind` earlier ones; the last may be cut. With `committed`
        none beyond the last stable offset, and the aborted transactions among them."""
        end = self.last_stable_offset if committed else self.end
        stored = [each for each in self.stored if each.batch.base_offset < end]
        first = next((i for i, each in enumerate(stored) if each.batch.next_offset > offset), len(stored))
        wanted = b"".join(each.data for each in stored[first:])
        whole = len(stored[first].data) if wanted else 0
        earlier = b"".join(each.data for each in stored[max(0, first - behind) : first])
        aborted = [(producer, began) for producer, began, ended in self.aborted if ended >= offset and began < end]
        return earlier + wanted[: max(whole, bytes_max)], aborted if committed else None

    def rows(self, committed: bool) -> list[Row]:
        """The records that have to be on the target once everything below the last stable offset is."""
        end = self.last_stable_offset if committed else self.end
        kept = [each for each in self.stored if not committed or each.outcome != "aborted"]
        return [row for each in kept for row in each.rows if row.offset < end]

    def epoch_before(self, offset: int) -> int:
        """The leader epoch of the record before it; -1 if there is none."""
        batches = [each.batch for each in self.stored if each.batch.base_offset < offset <= each.batch.next_offset]
        return batches[0].leader_epoch if batches else -1


class Appended(NamedTuple):
    first: int
    last: int
    base_offset: int


@dataclass
class TargetLog:
    """One partition of the target, and what it remembers of the one producer that writes to it."""

    batches: list[Batch] = field(default_factory=list)
    records: list[tuple[int, int]] = field(default_factory=list)  # number and timestamp
    bytes_max: int = 1 << 20  # of a batch
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
        if len(data) > self.bytes_max:
            return MESSAGE_TOO_LARGE, -1
        first, last = batch.base_sequence, (batch.base_sequence + batch.count - 1) % SEQUENCES
        for known in self.remembered:
            if (known.first, known.last) == (first, last):
                self.recognised += 1
                return 0, known.base_offset
        if self.remembered and first != (self.remembered[-1].last + 1) % SEQUENCES:
            return OUT_OF_ORDER_SEQUENCE, -1
        base_offset = len(self.records)
        found = walk(data[:HEADER_SIZE], unpack(batch.records, batch.attributes))
        records = [(struct.unpack(">q", each.value or b"")[0], each.timestamp) for each in found]
        assert max(timestamp for _, timestamp in records) == batch.max_timestamp
        self.remembered.append(Appended(first, last, base_offset))
        self.batches.append(batch)
        self.records += records
        return 0, base_offset

    def restart(self) -> None:
        """A broker that comes up again knows its last batch only."""
        while len(self.remembered) > 1:
            self.remembered.popleft()
