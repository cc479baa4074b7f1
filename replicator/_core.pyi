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

from collections.abc import Iterable
from typing import Any, Final, Literal, NamedTuple

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
    kind: Literal["fetch_error", "diverged", "cannot_take", "produce_error", "offset_drift", "answer_lost", "gap_ahead"]
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
    ) -> Lane:
        """`source_topic_id` is 16 bytes, all zero when the cluster has none; `producer` our id and epoch on the target.

        With `hold_gaps` nothing is sent behind a gap before `permit`, and no segment is forgotten; a lane without it
        forgets the oldest half when it has SEGMENTS_MAX. With `tolerate` others may write to the target partition as
        well: an acknowledgement may name a later offset than was due, never an earlier one.

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

    def ahead(self, limit: int = ...) -> tuple[int, tuple[tuple[int, int], ...]]:
        """What must be known before the batches up to a cursor are sent: the cursor, and (source offset, sequence) of
        each batch behind a gap that is in flight, or queued before the cursor, oldest first.

        At most `limit` queued ones are told of, at least one if there is one. Those of requests that were given up with
        their connection, or by an owner of the past, are not here any more, but may land yet: see
        `replicator.data.resume.still_ahead`.
        """

    def permit(self, cursor: int) -> bool:
        """Let the queued batches before `cursor` go, now that `ahead` is written down.

        True when there are more behind a gap: ask `ahead` again, as no event will tell of them. False when there are
        none: the next one makes an event. If the lane was halted since `cursor` was given, its batches are gone, and
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
        """Batches taken in and not sent yet."""

    @property
    def running(self) -> bool:
        """True from `resume` until the lane is halted, by `halt` or by an event."""

    @property
    def skip_records(self) -> int:
        """Records that are still to be passed over."""

class Source:
    """The lanes that one source broker leads and that have room, in the order in which they will be asked for."""

    def __new__(cls, pool: Pool, lane_bytes_max: int) -> Source:
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
