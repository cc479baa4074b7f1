"""Does a record of the target come from this offset of the source? Asked when a lane is placed; guessing is a defect.

The target's batches need not be the source's: they may be merged, split, cut, packed with another codec, edited. The
same bytes settle it at once; otherwise both batches are opened, and the two records compared.
"""

from enum import Enum

from replicator._core import crc32c, open_batch
from replicator.data.codecs import UnpackError
from replicator.data.log_reader import StoredBatch
from replicator.data.replays import is_replay
from replicator.data.rules import Rules
from replicator.data.unpack import Record, differences, split_headers
from replicator.errors import ClusterError
from replicator.kafka.log import CONTROL, LOG_APPEND_TIME, OFFSET_OUT_OF_RANGE, Partition, fetch_slice


class Match(Enum):
    """What two records say."""

    SAME = "same"
    OTHER = "other"
    UNKNOWN = "unknown"  # the source's is gone, or nothing can be told: nothing speaks against it


def first_batch(records: bytes) -> StoredBatch | None:
    """Of what a Fetch has brought. Raises ValueError for bytes that are no batches."""
    header = open_batch(records)
    return StoredBatch(header, memoryview(records)[: header.size]) if header and header.magic == 2 else None


async def match(source: Partition, offset: int, copy: StoredBatch, at: int, rules: Rules) -> Match:
    """Whether the record at target offset `at`, in `copy`, is the source's at `offset`.

    Raises ClusterError, NetworkError, ValueError.
    """
    try:
        original = first_batch((await fetch_slice(source, offset, 1)).records)
    except ClusterError as error:
        if error.code == OFFSET_OUT_OF_RANGE:
            return Match.UNKNOWN
        raise
    if original is None or not original.start <= offset < original.end:
        return Match.UNKNOWN
    if original.header.attributes & CONTROL:
        return Match.OTHER  # a marker's offset, which no lane carries
    in_step = offset - original.start == at - copy.start
    if in_step and _same_bytes(original, copy):
        return Match.SAME
    return _match_records(original, offset, copy, at, rules)


def _same_bytes(original: StoredBatch, copy: StoredBatch) -> bool:
    if original.codec != copy.codec or not original.dense or not _same_times(original, copy):
        return False
    return crc32c(original.section) == crc32c(copy.section)


def _same_times(original: StoredBatch, copy: StoredBatch) -> bool:
    ours, theirs = original.header, copy.header
    if (ours.count, ours.base_timestamp) != (theirs.count, theirs.base_timestamp):
        return False
    return bool(theirs.attributes & LOG_APPEND_TIME) or ours.max_timestamp == theirs.max_timestamp


def _match_records(original: StoredBatch, offset: int, copy: StoredBatch, at: int, rules: Rules) -> Match:
    try:
        if not original.between(offset, offset + 1):
            return Match.UNKNOWN  # compacted since
        wanted = original.at(offset)
    except UnpackError:
        # It can only have been passed on whole, and be packed anew by the target's broker.
        in_step = offset - original.start == at - copy.start
        packed_anew = in_step and original.codec != copy.codec and _same_times(original, copy)
        return Match.UNKNOWN if packed_anew or not original.dense else Match.OTHER
    try:
        if not copy.between(at, at + 1):
            return Match.UNKNOWN
        found = copy.at(at)
    except UnpackError:
        return Match.OTHER
    stamped = bool(copy.header.attributes & LOG_APPEND_TIME)
    times_differ = not stamped and original.timestamp(wanted) != copy.timestamp(found)
    return _judge(wanted, found, times_differ, rules)


def _judge(wanted: Record, found: Record, times_differ: bool, rules: Rules) -> Match:
    names = differences(wanted, found) + ["timestamp"] * times_differ
    if set(names) - set(rules.changed):
        return Match.OTHER
    if "value" in rules.changed and (wanted.key is None or "key" in rules.changed):
        return Match.UNKNOWN  # there is nothing to tell one from another
    return Match.SAME


def is_replayed(batch: StoredBatch, link: str) -> bool:
    """True if an operator of this link replayed every record of the batch; False for one that cannot be opened."""
    try:
        offsets = batch.between(batch.start, batch.end)
        return all(is_replay(split_headers(batch.at(offset).headers), link) for offset in offsets)
    except UnpackError:
        return False
