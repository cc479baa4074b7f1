"""A source log with everything in it that has to be rebuilt, what its readers see, and a copy in other batches.

Made record by record: whoever made a transaction knows whether it was aborted, whoever took a record out that it is
gone. Nothing here reads a batch.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import strategies as st

from tests.oracle.batch import CONTROL, DELETE_HORIZON, LOG_APPEND_TIME, TRANSACTIONAL, Batch
from tests.oracle.lane import SEQUENCES, joined
from tests.oracle.scripted_log import GZIP, LZ4, NONE, SNAPPY, ZSTD, Rec, batch_of, recs

OURS, THEIRS = 4242, 77
OUR_EPOCH = 1
STAMP = 1_800_000_000_000
HORIZON = 1_750_000_000_000
CODECS = [NONE, GZIP, SNAPPY, LZ4, ZSTD]


def marker(offset: int, producer_id: int, *, commit: bool) -> Batch:
    """What a transaction coordinator writes at the end of a transaction."""
    says = Rec(struct.pack(">hi", 0, 0), struct.pack(">hh", 0, int(commit)))
    return batch_of([says], offset, attributes=CONTROL | TRANSACTIONAL, producer_id=producer_id, base_sequence=-1)


@dataclass
class Source:
    """Batches, and the truth about them: source offset to the record as readers see it."""

    batches: list[Batch] = field(default_factory=list)
    committed: dict[int, Rec] = field(default_factory=dict)
    aborted_records: dict[int, Rec] = field(default_factory=dict)
    aborted: list[tuple[int, int, int]] = field(default_factory=list)  # producer id, first offset, the marker's
    open: dict[int, list[tuple[int, Rec]]] = field(default_factory=dict)  # records of each producer's transaction
    written: int = 0

    @property
    def end(self) -> int:
        return self.batches[-1].next_offset if self.batches else 0

    def write(
        self,
        deltas: list[int],
        span: int,
        codec: int = NONE,
        producer_id: int = -1,
        *,
        stamped: bool = False,
        horizon: bool = False,
    ) -> None:
        """A batch of `span` offsets, of which compaction has left these."""
        records, base = recs(len(deltas), self.written), self.end
        self.written += len(deltas)
        attributes = codec | stamped * LOG_APPEND_TIME | horizon * DELETE_HORIZON | (producer_id >= 0) * TRANSACTIONAL
        header: dict[str, Any] = {"last_offset_delta": span - 1, "producer_id": producer_id, "attributes": attributes}
        header |= {"max_timestamp": STAMP + base} if stamped else {}
        header |= {"base_timestamp": HORIZON} if horizon else {}
        self.batches.append(batch_of(records, base, codec, deltas, **header))
        seen = [each._replace(timestamp=STAMP + base) if stamped else each for each in records]
        rows = [(base + delta, each) for delta, each in zip(deltas, seen, strict=True)]
        if producer_id < 0:
            self.committed |= dict(rows)
        else:
            self.open.setdefault(producer_id, []).extend(rows)

    def close(self, producer_id: int, *, commit: bool) -> None:
        """Ends the producer's transaction, if it has one."""
        rows = self.open.pop(producer_id, [])
        if not rows:
            return
        if commit:
            self.committed |= dict(rows)
        else:
            self.aborted_records |= dict(rows)
            first = next(each.base_offset for each in self.batches if each.next_offset > rows[0][0])
            self.aborted.append((producer_id, first, self.end))
        self.batches.append(marker(self.end, producer_id, commit=commit))


@st.composite
def sources(draw: st.DrawFn, size_max: int = 8) -> Source:
    """A whole log, every transaction of which has ended."""
    source = Source()
    for _ in range(draw(st.integers(1, size_max))):
        producer_id = draw(st.sampled_from([-1, -1, 11, 12]))
        span = draw(st.integers(1, 5))
        gone = draw(st.sets(st.integers(0, span - 1), max_size=span - 1) if draw(st.booleans()) else st.just(set()))
        deltas = [delta for delta in range(span) if delta not in gone]
        look = draw(st.sampled_from([{}, {}, {"stamped": True}, {"horizon": True}]))
        source.write(deltas, span, draw(st.sampled_from(CODECS)), producer_id, **look)
        if draw(st.booleans()):
            source.close(draw(st.sampled_from([11, 12])), commit=draw(st.booleans()))
    for producer_id in (11, 12):
        source.close(producer_id, commit=draw(st.booleans()))
    source.committed = dict(sorted(source.committed.items()))
    return source


@dataclass
class Copy:
    """A target's batches, and where each source offset stands there."""

    batches: list[Batch]
    map: dict[int, int]
    first_sequence: int = 0

    @property
    def segments(self) -> tuple[tuple[int, int, int], ...]:
        return joined(self.map)

    @property
    def end(self) -> int:
        return self.batches[-1].next_offset if self.batches else 0

    def sequence_of(self, source_offset: int) -> int:
        return (self.first_sequence + list(self.map).index(source_offset)) % SEQUENCES


@st.composite
def copies(draw: st.DrawFn, rows: dict[int, Rec], *, foreign: bool = True, first_sequence: int = 0) -> Copy:
    """These records in batches of any sizes and codecs, with batches of others between them if that may be."""
    copy, left = Copy([], {}, first_sequence), list(rows.items())
    while left:
        if foreign and draw(st.integers(0, 4)) == 0:
            theirs = batch_of(recs(draw(st.integers(1, 3)), 5_000), copy.end, producer_id=THEIRS)
            copy.batches.append(theirs)
        some = left[: draw(st.integers(1, 7))]
        left = left[len(some) :]
        sequence = (first_sequence + len(copy.map)) % SEQUENCES
        ours: dict[str, Any] = {"producer_id": OURS, "producer_epoch": OUR_EPOCH, "base_sequence": sequence}
        codec, at = draw(st.sampled_from(CODECS)), copy.end
        copy.batches.append(batch_of([each for _, each in some], at, codec, None, **ours))
        copy.map |= {offset: at + number for number, (offset, _) in enumerate(some)}
    return copy


def damaged(batches: list[Batch], at: int, change: Callable[[Rec], Rec], rows: dict[int, Rec]) -> list[Batch]:
    """The batches with the record at target offset `at` another; `rows` are all of them, by target offset."""
    changed = []
    for batch in batches:
        if batch.base_offset <= at < batch.next_offset:
            offsets = range(batch.base_offset, batch.next_offset)
            made = [change(rows[offset]) if offset == at else rows[offset] for offset in offsets]
            again = batch_of(made, batch.base_offset, batch.attributes & 7)
            names = ("producer_id", "producer_epoch", "base_sequence")
            batch = replace(again, **{name: getattr(batch, name) for name in names})
        changed.append(batch)
    return changed
