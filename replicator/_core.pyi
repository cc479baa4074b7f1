"""The native core as Python sees it: one worker's fast path, where no record becomes a Python object.

    source side                             lane                    target side
    FetchStream.compose  -> Transport
    Transport.receive    <- Transport       inspected, re-addressed,
                                            queued
                                            (permit, behind a gap)
                                                                    Target.gather  -> Transport
                                            position moves          Target.settle  <- Transport

Nothing here knows a clock, retries, or decides: it acts on what it finds (a lane in doubt is halted, one that
meets what it cannot take in is blocked) and says so in `Event`s. Everything belongs to one thread. Sizes and
offsets are plain integers: `*_bytes` in bytes, `*_ms` in milliseconds, offsets in records. Integers that do not
fit their field on the wire raise OverflowError. Misuse that would corrupt memory is refused; other misuse is a
bug of the caller and not looked for.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

CRC32C_KINDS: Final[tuple[str, ...]]
"""Every kind of CRC-32C: `portable`, `sse4.2`, `armv8`. A processor has the first and at most one other."""

CRC32C_KIND: Final[str]
"""The kind that was chosen when the module was loaded: the fastest that this processor has."""

COUNTERS_SIZE: Final[int]
"""Bytes of one lane's row of counters: `lane_counters` of csrc/lane.h, `ROW` of replicator.data.states."""

EVENTS: Final[tuple[str, ...]]
"""The kinds of `Event`, in the order of csrc/events.h."""

SEGMENTS_MAX: Final[int]
"""How many segments a lane keeps."""

AHEAD_MAX: Final[int]
"""How many gaps `Lane.ahead` tells of at a time if it is not told otherwise."""

VERDICTS: Final[tuple[str, ...]]
"""What can be found out about a batch, in the order of csrc/batch.h; `Event.code` of `cannot_take` is an index."""

class BatchHeader(NamedTuple):
    """A RecordBatch v2 header. Of a message in format 0 or 1 only `base_offset`, `size` and `magic` are known."""

    base_offset: int
    size: int
    """Bytes of the whole batch, header included."""
    leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    base_timestamp: int
    max_timestamp: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    count: int  # type: ignore[assignment]  # hides tuple.count

class Event(NamedTuple):
    """Something about a lane that its owner must deal with. What `first` and `second` mean depends on `kind`:

    ============== ================================================ ==================== =================
    kind           what the core has done                           first                second
    ============== ================================================ ==================== =================
    fetch_error    taken the lane from its source; `code`: Kafka's
    diverged       blocked the lane                                 epoch                its end offset
    cannot_take    blocked the lane; `code`: index into VERDICTS    source offset
    produce_error  halted the lane; `code`: Kafka's; `text`: the
                   broker's words, if any
    offset_drift   halted the lane                                  target offset due    the one answered
    answer_lost    halted the lane
    gap_ahead      holds a batch until `Lane.permit`                source offset
    ============== ================================================ ==================== =================
    """

    lane: Lane
    kind: Literal[
        "fetch_error",
        "diverged",
        "cannot_take",
        "produce_error",
        "offset_drift",
        "answer_lost",
        "gap_ahead",
        "merge_ahead",
        "lingers",
        "rebuild_ahead",
    ]
    code: int
    first: int
    second: int
    text: str

def use_crc32c(kind: str) -> None:
    """Use this kind from now on, in the whole process; for tests and benchmarks.

    Raises ValueError for an unknown name, or when this processor does not have that kind.
    """

def crc32c(data: Buffer, crc: int = 0) -> int:
    """The CRC-32C of `data`; pass the checksum of what came before it as `crc` to go on from there."""

def crc32c_patch(crc: int, before: Buffer, after: Buffer, tail: int) -> int:
    """The checksum of a range after its first bytes changed from `before` to `after`, `tail` bytes following unread.

    `tail` is less than 2**32. Raises ValueError when the two differ in length.
    """

def open_batch(data: Buffer, offset: int = 0) -> BatchHeader | None:
    """The header of the batch at byte `offset`; None when the batch is not whole in there.

    Raises ValueError when no batch can have this length or magic.
    """

def readdress(data: Buffer, producer_id: int, producer_epoch: int, sequence: int) -> None:
    """Make the one batch that fills the writable `data` ours, in place, as `Lane`s do with what they take in.

    Base offset 0, leader epoch -1, only the codec bits of the attributes, this producer; the checksum is patched and
    still vouches for the records only if it did before. Raises ValueError when `data` is shorter than a header.
    """

class Terms(NamedTuple):
    """What a lane's target takes, and what is asked of the lane; csrc/batch.h says what each of them does."""

    timestamp_max: int = 0
    batch_bytes_max: int = 0
    codec: int = -1
    opens: bool = False
    stamped: bool = False
    merge_bytes: int = 0

class Refused(NamedTuple):
    """A batch that the target refused. `records`: those that it named, by source offset, and its words about each."""

    source_offset: int
    source_next: int
    record_count: int
    size: int
    records: dict[int, str]

class Batch:
    """A whole batch of a lane, readable as a buffer for as long as this object lives. They come from a Lane."""

    from_offset: int
    """Its records from this source offset on are wanted."""
    why: str
    """Why it must be opened, of VERDICTS; `pass`: it only waits for those before it."""
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    @property
    def header(self) -> BatchHeader:
        """As it was fetched, or as we made it."""
    @property
    def is_intact(self) -> bool:
        """True if its checksum is that of its bytes."""

class Made:
    """A batch of the records that `scratch` has built last, whose `section` is packed with this codec."""

    count: int
    max_timestamp: int

    def __new__(cls, pool: Pool, scratch: Scratch, codec: int, section: Buffer) -> Made:
        """Raises ValueError when there are no such records, or it would be too large; MemoryError."""
    def __len__(self) -> int:
        """Its size in bytes."""

class Producers:
    """Which producers of a source are links: one table for the lanes of a link; csrc/producers.h."""
    def add(self, producer_id: int, kind: str) -> None:
        """`kind`: own, opened or skipped. Raises ValueError."""
    def __getitem__(self, producer_id: int) -> str:
        """`unknown`, or what was said of it. -1 is nobody: own."""

class Pool:
    """Receive buffers under one budget of bytes, shared by everything in a worker."""
    def __new__(cls, credit_bytes: int) -> Pool: ...
    @property
    def used_bytes(self) -> int:
        """Buffers in use, and what outstanding Fetches have reserved. 0 when everything is settled and let go."""

class Frame:
    """One response without its length prefix: a read-only buffer. Comes from `Transport.receive` only.

    A Fetch response's batches are changed in place when their lanes take them in: its bytes are not the broker's.
    """
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

class Lane:
    """One source partition on its way to the partition of the same number of `target_topic`.

    It is born halted, with neither source nor target. To start it: `set_target`, `resume`, `set_source`, in this order.
    `row` is COUNTERS_SIZE writable bytes, 8-byte aligned, which the lane keeps up to date as long as it exists.
    A lane may be let go at any time; what it has in flight is waited for without it.

    It keeps the offset map up to its checkpoint: `segments`, each (source start, target start, length), which the owner
    writes down and drops. What is on the target beyond a checkpoint is told by its sequence numbers, if it is known
    where the source's offsets have gaps: with `hold_gaps` a batch behind a gap, and what follows it, is sent only after
    `permit`. The owner hears `gap_ahead`, asks `ahead`, writes down what it says, and permits as far as that goes.
    """

    source_topic: str
    target_topic: str
    partition: int
    runner: Any
    """Whoever looks after the lane; never looked at here."""
    def __new__(
        cls,
        source_topic: str,
        source_topic_id: bytes,
        target_topic: str,
        partition: int,
        producer: tuple[int, int],
        row: Buffer,
        hold_gaps: bool = False,
        tolerate: bool = False,
        terms: Terms = ...,
        producers: Producers | None = None,
    ) -> Lane:
        """`source_topic_id` is 16 bytes, all zero when the cluster has none; `producer` our id and epoch on the target.

        With `hold_gaps` nothing is sent behind a gap before `permit`, and no segment is forgotten; a lane without it
        forgets the oldest half when it has SEGMENTS_MAX. With `tolerate` others may write to the target partition as
        well: an acknowledgement may name a later offset than was due, never an earlier one. With `producers` a batch of
        a producer that is not in there blocks the lane (`cannot_take`, refuse_producer; `second` is its id).

        Raises ValueError when a size is wrong, or a topic name empty or over 249 bytes.
        """
    def resume(
        self,
        where: tuple[int, int, int] | tuple[int, int, int, int],
        skip_records: int,
        stop_offset: int,
        segments: Iterable[tuple[int, int, int]] = (),
    ) -> None:
        """Go on from a checkpoint (source position, target offset after it, sequence of the next record, leader epoch
        of the source's batch before the position).

        The next `skip_records` records are on the target already: they are fetched and passed over. Whole batches
        are taken in until one begins at or beyond `stop_offset`. The first Fetch names the leader epoch, unless it is
        -1 or left out: if the source was truncated below the position since, the answer is `diverged`.

        `segments`, in order, replace those that the lane has. The last one says where the source's records run on from;
        without any it is the position. Raises RuntimeError unless the lane is halted and has nothing in flight, and
        ValueError when segments overlap, are more than SEGMENTS_MAX or go beyond the checkpoint.
        """
    def halt(self) -> None:
        """Drop what is queued, take nothing more, and believe no answer that is still to come."""
    def segments(self) -> tuple[tuple[int, int, int], ...]:
        """Where everything that was acknowledged stands, oldest first: (source start, target start, length).

        It goes with the checkpoint in the row, and no two of them could be one.
        """
    @property
    def segment_count(self) -> int:
        """How many segments there are: one, as long as neither side has a gap."""
    def drop_segments(self, n: int) -> None:
        """Forget the `n` oldest segments, but never the last one. A lane whose map was full goes on."""
    def set_terms(self, terms: Terms) -> None:
        """For batches that are taken in from now on."""
    def linger(self, lingers: bool) -> None:
        """Less than merge_bytes waits for `ripen`. The owner hears `lingers`, once for what comes to an empty queue."""
    def ripen(self) -> None:
        """What waits may go."""
    def asks_for_time(self) -> bool:
        """As the event `lingers`, after `replace` and `pass_raw`."""
    def unblock(self, looked: bool) -> None:
        """Goes on where an unknown producer has blocked it. `looked` for links since then: all are in the table, so who
        is not and was in the partition already is no link."""
    def raw(self, nth: int) -> Batch | None:
        """The batch that is `nth` from the oldest of those that must be opened, or wait behind one."""
    def replace(self, made: list[Made]) -> str:
        """The oldest raw batch becomes these, in order; none: it leaves nothing. `pass`; `no_room`, and nothing was
        done: again later; `refuse_tail`: halt the lane, its records do not end where the target's do. Raises
        RuntimeError when there is none."""
    def pass_raw(self) -> str:
        """The oldest raw batch goes as it is. As `replace`."""
    def announces(self) -> bool:
        """True, once, if a batch with a gap waits, as an event `gap_ahead` says it: after `replace` and `pass_raw`."""
    def refused(self) -> Refused:
        """The batch that the last `produce_error` was about."""
    def mergeable(self) -> list[Batch]:
        """The oldest queued batches that could go as one, after `merge_ahead`."""
    def join(self, n: int, one: Made) -> None:
        """The `n` oldest queued batches go as this one, which has the same records. Raises ValueError."""
    def decline_merge(self, for_good: bool) -> None:
        """They go one by one; `for_good`: nothing compressed of this lane is asked about again."""
    @property
    def raw_count(self) -> int:
        """Batches that must be opened, or wait behind one that must."""
    @property
    def generation(self) -> int:
        """Grows with each halt: what was raw before is gone."""
    def ahead(self, limit: int = ...) -> tuple[int, tuple[tuple[int, int], ...]]:
        """What must be known before the batches up to a mark are sent: the mark, and (source offset, sequence) of
        each run of a batch with a gap that is in flight, or queued before the mark, oldest first.

        At most `limit` queued ones are told of, at least one if there is one. Those of requests that were given up with
        their connection, or by an owner of the past, are not here any more, but may land yet: see
        `replicator.data.resume.still_ahead`.
        """
    def permit(self, mark: int) -> bool:
        """Let the queued batches before `mark` go, now that `ahead` is written down.

        True when there are more behind a gap: ask `ahead` again, as no event will tell of them. False when there are
        none: the next one makes an event. If the lane was halted since `mark` was given, its batches are gone, and
        nothing is let go.
        """
    def set_source(self, source: Source | None, leader_epoch: int) -> None:
        """Fetch from here from now on (None: from nowhere); `leader_epoch` as metadata says, -1 for unknown.

        A Fetch that is outstanding elsewhere stays good, and the lane is not asked for again until it has ended.
        """
    def set_target(self, target: Target | None) -> None:
        """Send to here from now on (None: nowhere). Raises RuntimeError when something is in flight."""
    @property
    def in_flight(self) -> int:
        """Batches sent and not answered yet."""
    @property
    def queued(self) -> int:
        """Batches that could be sent and are not yet."""
    @property
    def running(self) -> bool:
        """True from `resume` until the lane is halted, by `halt` or by an event."""
    @property
    def skip_records(self) -> int:
        """Records that are still to be passed over."""

class Source:
    """The lanes that one source broker leads and that have room, in the order in which they will be asked for."""
    def __new__(cls, pool: Pool, lane_bytes_max: int, committed: bool = False) -> Source:
        """A lane with more than half of `lane_bytes_max` queued and in flight is not asked for."""
    def limit(self, lane_bytes_max: int) -> None:
        """Let a lane hold so much from now on; what one holds beyond that already, it keeps."""

class FetchStream:
    """One connection's conversation with a source broker: a Fetch, its response, the next Fetch."""

    bytes_max: int

    def __new__(cls, source: Source, client_id: bytes, bytes_max: int) -> FetchStream:
        """`bytes_max` is asked for in each response; a broker may exceed it by one batch."""
    def compose(self, transport: Transport, version: int, correlation_id: int, wait_ms: int) -> bool:
        """Put the next Fetch, of version 10 or 13, into `transport`, and reserve `bytes_max` of the pool.

        False, and nothing done, when no lane can be asked for, the pool has no room, a response is outstanding, or
        `transport` has not sent yet what it was given before.
        """
    def abort(self) -> None:
        """The connection is gone: lanes not answered yet can be asked for again, the reservation is given back."""
    def take_events(self) -> list[Event]:
        """What has happened since the last call, oldest first. Lanes that no longer exist are left out."""
    @property
    def throttle_ms(self) -> int:
        """As the last response that was begun said."""
    @property
    def error(self) -> int:
        """Kafka's top-level error code of the last response that was begun; 0 for none."""

class Target:
    """One target broker: the lanes with something to send, oldest wait first, and the Produce requests in flight."""
    def __new__(cls, client_id: bytes, bytes_max: int, timeout_ms: int) -> Target:
        """`bytes_max` of batches go into a request; the first one is taken whatever its size."""
    def gather(self, transport: Transport, version: int, correlation_id: int) -> int:
        """Put the next Produce request, of version 7 or 8, into `transport`: one batch of each lane that waits.

        Batches are sent from the memory they were received into. Returns the request's bytes, length prefix
        included; 0, and nothing done, when no lane waits or `transport` has not sent yet what it was given before.
        """
    def settle(self, frame: Frame) -> int:
        """Take the answer to the oldest request in flight; returns its throttle time in ms.

        Raises ValueError when it cannot be that answer; the connection must then be closed, and `abandon` called.
        """
    def abandon(self) -> None:
        """The connection is gone: every lane with a batch in flight is halted, with an `answer_lost`.

        Raises RuntimeError while its transport still has something to send: close that first.
        """
    def take_events(self) -> list[Event]:
        """What has happened since the last call, oldest first. Lanes that no longer exist are left out."""
    @property
    def waiting(self) -> bool:
        """True when some lane has something to send."""
    @property
    def ready(self) -> bool:
        """True when a request is worth its cost now: with some in flight, a small one waits for company or answers."""
    @property
    def in_flight(self) -> int:
        """Requests sent and not answered yet."""

class Transport:
    """Kafka frames over one connected, non-blocking stream socket, which stays the caller's to close."""

    received_bytes: int
    sent_bytes: int

    def __new__(cls, fd: int, pool: Pool) -> Transport:
        """Frames are received into buffers of `pool`."""
    def receive(self, stream: FetchStream | None = None) -> Frame | None:
        """The next whole frame, or None when more bytes have to arrive first; never waits.

        With a `stream` every frame is the response to its Fetch, and whole batches go to their lanes even before
        the frame is whole. Raises ConnectionResetError at the end of the stream, OSError from the socket,
        ValueError for what no broker sends, MemoryError; close the transport after any of them.
        """
    def send(self, data: bytes) -> None:
        """Put `data` behind what is to be sent."""
    def flush(self) -> bool:
        """Send as much as the socket takes; False when something is left. Raises OSError."""
    def close(self) -> None:
        """Forget what was to be sent and what was half received. The socket stays open."""
    @property
    def pending(self) -> bool:
        """True when something is left to be sent."""

class BadRecords(ValueError):
    """A payload is not what its header says, or holds what cannot be dealt with: one line, without the place of the
    batch, which the caller knows. `record N ...` counts from 0."""

class Diverted(NamedTuple):
    """A record that a recipe diverted, as it came."""

    source_offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[bytes, bytes | None], ...]
    reason: str

class Replacement(NamedTuple):
    """What a record becomes. Without `headers` or `timestamp` it keeps its own."""

    key: Buffer | None
    value: Buffer | None
    headers: Sequence[tuple[Buffer, Buffer | None]] | None = None
    timestamp: int | None = None

RECIPE_DEPTH_MAX: Final[int]
"""How deep tests may stand inside one another."""

RECIPE_BYTES_MAX: Final[int]
"""Bytes of a name or a value in a recipe, at most."""

class Recipe:
    """What is done to records: filters, screens and edits, compiled. Steps are taken in order, and each sees the
    headers as the steps before it left them; key, value, time and size are the record's own. P is a test, or None for
    every record.

    =========================================== ===============================================================
    ("drop", P), ("keep", P)                    leave records out for which P is true, is false
    ("divert", reason, P)                       leave them out and give them to `Scratch.diverted`
    ("header_add", name, value, P)              one more header at the end; a value may be None
    ("header_set", name, value, P)              the same, and all others of that name go
    ("header_drop", N, P)                       all whose name N matches go
    ("header_rename", N, replacement, P)        each whose name N matches is renamed where it stands
    ("provenance", cluster, topic, partition)   `replicator.source.cluster`, `.topic`, `.partition` and `.offset`, each
                                                unless there is one; and `cluster` behind a comma at the end of the last
                                                `replicator.hops`, or in one of its own
    ("drop_hops", cluster)                      leave records out with `cluster` in a `replicator.hops`
    =========================================== ===============================================================

    Names and values are bytes, reasons and replacements are str, a partition is an int. N is bytes, to be equal to, or
    a regular expression (str; `re.fullmatch` on the name, decoded as UTF-8 with surrogateescape), whose replacement is
    a template as `re.Match.expand` takes it. A name that is no text is encoded back as it came.

    =========================================== ===============================================================
    ("tombstone",), ("key_null",)               the value, the key is null
    ("key", operator, bytes)                    operator: equals, prefix, suffix, contains; a null key matches nothing
    ("header", name)                            there is one
    ("header", name, operator, bytes)           one of that name matches; a null value matches nothing
    ("timestamp", from_ms, to_ms)               from <= time < to; None for no limit
    ("size", n)                                 the record takes more than n bytes in its batch, its length included
    ("not", P), ("any", P, ...), ("all", P, ...)
    =========================================== ===============================================================
    """

    steps: tuple[tuple[Any, ...], ...]

    def __new__(cls, steps: tuple[tuple[Any, ...], ...]) -> Recipe:
        """At most 1024 steps, one of them with provenance, and 1024 tests.

        Raises ValueError for a step or test that is none, or says what cannot be, in one line.
        """

class Columns:
    """The records of one payload, as columns of the same length. Views keep the payload; they cannot be written to."""

    offsets: NDArray[np.int64]
    """On the source."""
    timestamps: NDArray[np.int64]
    """In ms, as readers see them: of a LogAppendTime batch all the same."""
    keys: list[memoryview | None]
    values: list[memoryview | None]

    @property
    def headers(self) -> list[tuple[tuple[bytes, bytes | None], ...]]:
        """Made when they are first asked for."""
    def __len__(self) -> int: ...

class Scratch:
    """Where records are rebuilt: batches go in, record sections come out. One a worker: its memory is used again.

    `feed` walks all of a payload before anything of it is kept; `next` builds what is kept into sections, with offset
    deltas from 0 and times relative to the first. What was fed is held, not copied, until `clear`: it must not change.
    """

    diverted: list[Diverted]
    """By all feeds since `clear`, in their order."""
    def clear(self) -> None:
        """Forget what was fed and what was built."""
    def feed(
        self,
        header: Buffer,
        payload: Buffer,
        from_offset: int,
        recipe: Recipe | None = None,
        first_offset: int = -1,
        count: int = -1,
    ) -> None:
        """Take in a batch: its header as it was fetched (61 bytes, more are not looked at), its records decompressed.

        Records with source offset < `from_offset` and what `recipe` leaves out are not kept. `first_offset` stands for
        the header's base offset (ours is 0), `count` for its count (if `pack` left records out). Batches are fed in the
        order of their offsets. Raises BadRecords, and what was fed before is as it was; MemoryError.
        """
    def exclude(self, source_offsets: Iterable[int]) -> None:
        """These records, sorted, are diverted by the next feeds, before a recipe sees them; reason: excluded."""
    @property
    def fed(self) -> int:
        """How many records of the last feed were wanted: from `from_offset` on."""
    @property
    def untouched(self) -> bool:
        """True when the last feed left nothing out, changed nothing, and could be sent as it is: no holes, times of its
        own. Its original bytes will then do, if nothing else was fed."""
    def next(self, bytes_max: int, runs_max: int = 4096) -> bool:
        """Build the section that comes next, of at most `bytes_max` bytes and `runs_max` runs, but at least one record.

        It also ends before a time too far from its first to be written down. False when all is written.
        """
    def retry(self) -> None:
        """Take the last `next` back, once."""
    @property
    def records(self) -> memoryview:
        """The section, uncompressed; good until the next call of anything here. Empty when there is none."""
    @property
    def record_bytes(self) -> int:
        """Its size."""
    @property
    def count(self) -> int:
        """Its records."""
    @property
    def base_timestamp(self) -> int:
        """The first record's time, for the header."""
    @property
    def max_timestamp(self) -> int:
        """The latest time, for the header."""
    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """Where its records are from: (source offset, count of records whose source offsets follow on), in order."""
    def columns(self, header: Buffer, payload: Buffer, first_offset: int = -1) -> Columns:
        """The records of a batch, for those who look at them in Python. Changes nothing here. Raises BadRecords."""
    def pack(
        self, header: Buffer, payload: Buffer, keep: Sequence[Any], replacements: Mapping[int, Replacement]
    ) -> bytes:
        """A payload of the records for which `keep` is true, with those in `replacements` (by index) replaced.

        Their offset deltas stay, so it goes with the same header, but `feed` must be told `count`. In a LogAppendTime
        batch a replaced time is the batch's all the same. Changes nothing here. Raises BadRecords; ValueError when
        `keep` has another length than the batch, or a replacement is none.
        """

def merge_batches(parts: Sequence[Buffer]) -> bytes | None:
    """One uncompressed batch of all, as a lane makes it of its queue; None if they cannot be one. See csrc/records.h.

    For tests and benchmarks.
    """
