"""One log read from an offset on, batch by batch, a slice of it in memory at a time: for those who compare.

Reads what a consumer may see, from whoever leads the partition by then. Batches without records (control batches, and
those that compaction has emptied) are passed over: a lane leaves them out too. Batches of aborted transactions are
shown, and marked: whether they should be anywhere else is for the reader's owner to say.
"""

import asyncio
import struct
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

from replicator._core import BatchHeader, crc32c, open_batch
from replicator.data.codecs import UnpackError, decode
from replicator.data.unpack import Record, split_records
from replicator.errors import Action, ClusterError, NetworkError, ProtocolError
from replicator.kafka.backoff import Backoff
from replicator.kafka.log import (
    BATCH_HEADER_SIZE,
    CODEC,
    CONTROL,
    END,
    LOG_APPEND_TIME,
    OFFSET_OUT_OF_RANGE,
    START,
    TRANSACTIONAL,
    LogSlice,
    Partition,
    fetch_slice,
    find_offset,
)

SLICE_BYTES = 1 << 20
FETCH_TRIES = 6  # over about two seconds: a leader may move while we read

CRC_STARTS_AT = 21

MARKER = struct.Struct(">hh")  # the key of a control record: its version, and what it says
ABORT = 0


class Gone(ClusterError):
    """The log starts behind the offset that was asked for: retention, or somebody deleted records."""

    def __init__(self, partition: Partition, offset: int, log_start_offset: int) -> None:
        what = f"offset {offset} is gone: the log starts at {log_start_offset} now"
        super().__init__(OFFSET_OUT_OF_RANGE, what, where=partition.where)
        self.partition = partition
        self.log_start_offset = log_start_offset


class StoredBatch:
    """A batch with records, as its broker stores it. Opened when somebody asks what is in it: UnpackError then."""

    def __init__(self, header: BatchHeader, raw: memoryview, aborted: bool = False) -> None:
        self.header = header
        self.aborted = aborted  # its transaction was; known only to those who read `committed`
        self.raw = raw
        self.section = raw[BATCH_HEADER_SIZE:]  # the records, compressed as they are
        self.start = header.base_offset
        self.end = header.base_offset + header.last_offset_delta + 1
        self.codec = header.attributes & CODEC
        self.dense = header.count == header.last_offset_delta + 1  # compaction has taken nothing out

    @cached_property
    def intact(self) -> bool:
        """False if the bytes have changed since the batch's checksum was made."""
        return crc32c(self.raw[CRC_STARTS_AT:]) == self.header.crc

    @cached_property
    def unpacked(self) -> bytes:
        return bytes(decode(self.codec, self.section))

    @cached_property
    def _records(self) -> list[Record]:
        records = split_records(self.unpacked, self.header.count)
        if records and records[-1].offset_delta > self.header.last_offset_delta:
            raise UnpackError(f"a record with offset delta {records[-1].offset_delta}, beyond the batch's last")
        return records

    @cached_property
    def _offsets(self) -> list[int]:
        return [self.start + record.offset_delta for record in self._records]

    @property
    def opens(self) -> bool:
        try:
            return len(self._records) == self.header.count
        except UnpackError:
            return False

    def between(self, start: int, end: int) -> Sequence[int]:
        """The offsets from `start` to `end` - 1 that hold a record."""
        if self.dense:
            return range(max(start, self.start), min(end, self.end))
        return self._offsets[bisect_left(self._offsets, start) : bisect_left(self._offsets, end)]

    def at(self, offset: int) -> Record:
        """The record at an offset that holds one."""
        return self._records[offset - self.start if self.dense else bisect_left(self._offsets, offset)]

    def count_between(self, start: int, end: int) -> int:
        whole = start <= self.start and end >= self.end
        return self.header.count if whole else len(self.between(start, end))

    def timestamp(self, record: Record) -> int:
        """As consumers see it, in ms: the broker's, where the broker has stamped the batch."""
        stamped = self.header.attributes & LOG_APPEND_TIME
        return self.header.max_timestamp if stamped else self.header.base_timestamp + record.timestamp_delta

    def runs(self) -> Iterator[tuple[int, int]]:
        """First offset and length of each run of offsets without a hole."""
        if self.dense:
            yield self.start, self.header.count
            return
        first = at = self._offsets[0]
        for offset in [*self._offsets[1:], self.end + 1]:
            if offset != at + 1:
                yield first, at + 1 - first
                first = offset
            at = offset


class AbortedBatches:
    """Tells the batches of aborted transactions in one slice, asked for one after the other, as consumers do.

    A producer's batches are aborted from the first offset of its aborted transaction on, up to its ABORT marker; what
    comes behind that is its next transaction's, which the list names again if it was aborted too.
    """

    def __init__(self, transactions: Iterable[tuple[int, int]]) -> None:
        self._ahead = deque(sorted((first_offset, producer_id) for producer_id, first_offset in transactions))
        self._aborting: set[int] = set()

    def holds(self, header: BatchHeader, raw: memoryview) -> bool:
        """Raises UnpackError for a marker that is none."""
        while self._ahead and self._ahead[0][0] <= header.base_offset + header.last_offset_delta:
            self._aborting.add(self._ahead.popleft()[1])
        if header.producer_id not in self._aborting:
            return False
        if header.attributes & CONTROL:
            if _is_abort(StoredBatch(header, raw)):
                self._aborting.discard(header.producer_id)
            return False
        return bool(header.attributes & TRANSACTIONAL)


def _is_abort(control: StoredBatch) -> bool:
    if not control.header.count:
        return False  # the log cleaner has taken the marker out
    try:
        key = split_records(control.unpacked, control.header.count)[0].key or b""
        return bool(MARKER.unpack_from(key)[1] == ABORT)
    except (UnpackError, struct.error) as error:
        raise UnpackError(f"the control record at offset {control.start} cannot be read: {error}") from None


class LogReader:
    """`peek` shows the batch at or behind `offset`; `move` goes on.

    Nothing at or beyond `end` is shown. Up to there the log is known to go, so its reader waits a little when it seems
    not to: a new leader learns late what was acknowledged before. None: to the end of the log, wherever that is.

    `committed`: the log ends before the first transaction that is still open, and batches of aborted ones say so.
    """

    def __init__(
        self,
        partition: Partition,
        offset: int,
        end: int | None = None,
        bytes_max: int = SLICE_BYTES,
        committed: bool = False,
    ) -> None:
        self.partition = partition
        self.offset = offset
        self.end = end
        self._bytes_max = bytes_max
        self._committed = committed
        self.log_end = 0  # as far as we have seen
        self.open_from = -1  # where it ends because a transaction is open; -1: it does not
        self._records = memoryview(b"")
        self._aborted = AbortedBatches(())
        self._batch: StoredBatch | None = None

    def move(self, offset: int) -> None:
        """What is below `offset` is done with. Backwards is possible, too."""
        if offset < self.offset and not (self._batch and self._batch.start <= offset):
            self._records, self._batch = memoryview(b""), None
        self.offset = offset

    @property
    def log_ended(self) -> bool:
        """Of a `peek` that has shown nothing: true if that is because the log does not go up to `end`."""
        return self.end is not None and self.offset < self.end and self.log_end < self.end

    async def peek(self) -> StoredBatch | None:
        """None when there is no more; whether there should be is for the caller to say.

        Raises Gone, ReplicatorError, and ValueError for bytes that are no batches.
        """
        while self.end is None or self.offset < self.end:
            if self._batch is None or self._batch.end <= self.offset:
                self._batch = await self._next()
            batch = self._batch
            if batch is None:
                return None
            if batch.end <= self.offset:
                continue  # a slice may begin too early
            if self.end is not None and batch.start >= self.end:
                self.log_end = max(self.log_end, batch.end)
                return None
            if batch.header.count and not batch.header.attributes & CONTROL:
                return batch
            self.offset = batch.end
        return None

    async def _next(self) -> StoredBatch | None:
        header = open_batch(self._records)
        if header is None:
            self._records = memoryview(await self._slice())
            header = open_batch(self._records)
        if header is None:
            return None
        if header.magic != 2:
            what = f"message format v{header.magic} at offset {header.base_offset} is not compared"
            raise ProtocolError(what, where=self.partition.where)
        raw, self._records = self._records[: header.size], self._records[header.size :]
        return StoredBatch(header, raw, self._aborted.holds(header, raw))

    async def _slice(self) -> bytes:
        backoff = Backoff()
        for left in reversed(range(FETCH_TRIES)):
            found = await _fetch(self.partition, self.offset, self._bytes_max, self._committed)
            stable = found.last_stable_offset if self._committed else -1
            self.open_from = stable if 0 <= stable < found.high_watermark else -1
            self.log_end = found.high_watermark if self.open_from < 0 else stable
            if found.records or self.end is None or self.log_end >= self.end or not left:
                self._aborted = AbortedBatches(found.aborted)
                return found.records
            await asyncio.sleep(backoff.next_s())
        raise AssertionError("the last try returns or raises")


async def _fetch(partition: Partition, offset: int, bytes_max: int, committed: bool) -> LogSlice:
    """A slice of the log, from whoever leads the partition by now; empty beyond its end.

    Raises Gone, and as fetch_slice after some tries.
    """
    backoff = Backoff()
    for left in reversed(range(FETCH_TRIES)):
        try:
            return await _fetch_once(partition, offset, bytes_max, committed)
        except Gone:
            raise
        except (ClusterError, NetworkError) as error:
            passing = isinstance(error, NetworkError) or error.row.action in (Action.RETRY, Action.REFRESH)
            if not left or not passing:
                raise
        await asyncio.sleep(backoff.next_s())
        await partition.cluster.refresh([partition.topic])
    raise AssertionError("the last try returns or raises")


async def _fetch_once(partition: Partition, offset: int, bytes_max: int, committed: bool) -> LogSlice:
    try:
        return await fetch_slice(partition, offset, bytes_max, committed)
    except ClusterError as error:
        if error.code != OFFSET_OUT_OF_RANGE:
            raise
    log_start_offset = await find_offset(partition, START)
    if offset < log_start_offset:
        raise Gone(partition, offset, log_start_offset)
    return LogSlice(b"", log_start_offset, await find_offset(partition, END))
