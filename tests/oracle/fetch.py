"""Fetch in versions 10 and 13, from the broker's side: requests parsed, responses built, each by the protocol guide.

Versions up to 11 name topics and have counts of four bytes; 12 brought compact types and tags, 13 topic ids.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.oracle.batch import CONTROL, TRANSACTIONAL, Batch, ends_by_abort
from tests.oracle.wire import Cursor, string, tagged, uvarint

API_KEY = 1
Tags = list[tuple[int, bytes]]


@dataclass(frozen=True)
class AskedPartition:
    partition: int
    leader_epoch: int
    fetch_offset: int
    last_fetched_epoch: int | None  # None: not in this version
    bytes_max: int


@dataclass(frozen=True)
class FetchRequest:
    """`topics` is [(name or id, partitions)], in the order of the request."""

    version: int
    correlation_id: int
    client_id: str | None
    wait_ms: int
    bytes_max: int
    topics: list[tuple[str | bytes, list[AskedPartition]]]
    committed: bool = False

    @property
    def asked(self) -> list[tuple[str | bytes, int]]:
        return [(topic, row.partition) for topic, rows in self.topics for row in rows]


def parse_request(data: bytes) -> FetchRequest:
    """`data` is one request with its length prefix and nothing else."""
    cursor = Cursor(data)
    assert cursor.number("i") == len(data) - 4
    assert cursor.number("h") == API_KEY
    version = cursor.number("h")
    compact = version >= 12
    correlation_id, client_id = cursor.number("i"), cursor.string()
    if compact:
        cursor.no_tags()
    assert cursor.number("i") == -1, "only a consumer's requests are ours"
    wait_ms, _min_bytes, bytes_max = (cursor.number("i") for _ in range(3))
    isolation_level = cursor.number("b")
    assert isolation_level in (0, 1)
    assert (cursor.number("i"), cursor.number("i")) == (0, -1), "no session"
    topics = [_parse_topic(cursor, version) for _ in range(cursor.count(compact))]
    assert cursor.count(compact) == 0, "no forgotten topics"
    if compact:
        assert cursor.uvarint() == 1, "an empty rack id"
        cursor.no_tags()
    cursor.end()
    return FetchRequest(version, correlation_id, client_id, wait_ms, bytes_max, topics, isolation_level == 1)


def _parse_topic(cursor: Cursor, version: int) -> tuple[str | bytes, list[AskedPartition]]:
    name = cursor.take(16) if version >= 13 else cursor.string()
    assert name is not None
    compact = version >= 12
    partitions = [_parse_partition(cursor, compact) for _ in range(cursor.count(compact))]
    if compact:
        cursor.no_tags()
    return name, partitions


def _parse_partition(cursor: Cursor, compact: bool) -> AskedPartition:
    partition, leader_epoch, fetch_offset = cursor.number("i"), cursor.number("i"), cursor.number("q")
    last_fetched_epoch = cursor.number("i") if compact else None
    assert cursor.number("q") == -1, "log start offset is for followers"
    bytes_max = cursor.number("i")
    if compact:
        cursor.no_tags()
    return AskedPartition(partition, leader_epoch, fetch_offset, last_fetched_epoch, bytes_max)


@dataclass(frozen=True)
class Fetched:
    """One partition's part of a response. `records_size` overrides the true size of `records`: a lie.

    `aborted` is [(producer id, first offset)] of transactions; each has `aborted_tags`, in versions that have tags.
    """

    partition: int
    records: bytes | None = b""
    error: int = 0
    high_watermark: int = 1_000
    last_stable_offset: int = 900
    log_start_offset: int = 0
    aborted: list[tuple[int, int]] | None = None
    tags: Tags = field(default_factory=list)
    records_size: int | None = None
    aborted_tags: Tags = field(default_factory=list)

    def encode(self, version: int) -> bytes:
        compact = version >= 12
        out = struct.pack(
            ">ihqqq",
            self.partition,
            self.error,
            self.high_watermark,
            self.last_stable_offset,
            self.log_start_offset,
        )
        out += _count(None if self.aborted is None else len(self.aborted), compact)
        for producer_id, first_offset in self.aborted or ():
            out += struct.pack(">qq", producer_id, first_offset) + (tagged(self.aborted_tags) if compact else b"")
        if version >= 11:
            out += struct.pack(">i", -1)  # preferred read replica
        size = self.records_size
        if size is None and self.records is not None:
            size = len(self.records)
        out += _count(size, compact) + (self.records or b"")
        return out + (tagged(self.tags) if compact else b"")


@dataclass(frozen=True)
class FetchedTopic:
    name: str
    topic_id: bytes
    partitions: list[Fetched]

    def encode(self, version: int) -> bytes:
        compact = version >= 12
        out = self.topic_id if version >= 13 else string(self.name)
        out += _count(len(self.partitions), compact)
        out += b"".join(partition.encode(version) for partition in self.partitions)
        return out + (tagged([]) if compact else b"")


def encode_response(
    version: int,
    correlation_id: int,
    topics: list[FetchedTopic],
    throttle_ms: int = 0,
    error: int = 0,
    tags: Tags | None = None,
) -> bytes:
    """The response without its length prefix."""
    compact = version >= 12
    out = struct.pack(">i", correlation_id) + (tagged([]) if compact else b"")
    out += struct.pack(">ihi", throttle_ms, error, 0) + _count(len(topics), compact)
    out += b"".join(topic.encode(version) for topic in topics)
    return out + (tagged(tags or []) if compact else b"")


def is_void(batches: Sequence[Batch], nth: int, aborted: Iterable[tuple[int, int]]) -> bool:
    """True if the batch is of one of those transactions: it began, and no abort marker of its producer came since.

    The rule of Kafka's own consumer (ConsumerRecords' CompletedFetch).
    """
    batch = batches[nth]
    if batch.attributes & (TRANSACTIONAL | CONTROL) != TRANSACTIONAL:
        return False
    markers = [
        before.base_offset
        for before in batches[:nth]
        if before.producer_id == batch.producer_id and before.attributes & TRANSACTIONAL and ends_by_abort(before)
    ]
    begun = [first for producer, first in aborted if producer == batch.producer_id and first <= batch.base_offset]
    return any(not any(marker >= first for marker in markers) for first in begun)


def diverging_epoch(epoch: int, end_offset: int) -> tuple[int, bytes]:
    """Tag 0 of a partition: the source's log branched off there."""
    return 0, struct.pack(">iq", epoch, end_offset) + tagged([])


def _count(n: int | None, compact: bool) -> bytes:
    if compact:
        return uvarint(0 if n is None else n + 1)
    return struct.pack(">i", -1 if n is None else n)
