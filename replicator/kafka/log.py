"""Questions about one partition's log: where it begins and ends, and what stands in it at an offset.

These are the questions that make a lane exact: whatever happened on the way, the target's own log is the truth.
"""

from dataclasses import dataclass

from replicator._core import BatchHeader, open_batch
from replicator.errors import ClusterError, ProtocolError, Where
from replicator.kafka.cluster import Cluster
from replicator.kafka.codec import Body
from replicator.kafka.messages import FETCH, LIST_OFFSETS, OFFSET_FOR_LEADER_EPOCH

END = -1  # ListOffsets' own names for the two ends of a log
START = -2

OFFSET_OUT_OF_RANGE, LEADER_NOT_AVAILABLE = 1, 5

# A RecordBatch v2 (KIP-98): its records begin behind so many bytes, and bits of its attributes.
BATCH_HEADER_SIZE = 61
CODEC, LOG_APPEND_TIME, TRANSACTIONAL, CONTROL, DELETE_HORIZON = 0x07, 0x08, 0x10, 0x20, 0x40


@dataclass(frozen=True)
class Partition:
    """One partition of one cluster, and how to ask its leader."""

    cluster: Cluster
    topic: str
    index: int

    @property
    def where(self) -> Where:
        return Where(self.cluster.alias, self.topic, self.index)

    def leader_id(self) -> int:
        leader = self.cluster.leader(self.topic, self.index)
        if leader is None:
            raise ClusterError(LEADER_NOT_AVAILABLE, "no leader", where=self.where)
        return leader.node_id


@dataclass(frozen=True)
class LogSlice:
    """What a Fetch at one offset brought: whole and cut batches as raw bytes, and the ends of the log.

    Fetched `committed`, the bytes end before the last stable offset, and `aborted` are the transactions that have a
    part in them, as (producer id, first offset); their records and markers are in the bytes all the same.
    """

    records: bytes
    log_start_offset: int
    high_watermark: int
    last_stable_offset: int = -1  # -1: not told
    aborted: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class LogTail:
    """The end of a log: the offset of the next record, the header of the last batch (None: empty log) and its bytes."""

    end_offset: int
    last: BatchHeader | None
    records: bytes = b""


async def find_offset(partition: Partition, timestamp: int, committed: bool = False) -> int:
    """The offset of the first record at or after `timestamp` (ms; START and END too); the end if there is none.

    `committed`: END is the last stable offset, where a read_committed reader ends.
    Raises ClusterError with the partition's code, NetworkError.
    """
    asked = {"partition_index": partition.index, "timestamp": timestamp}
    body: Body = {"topics": [{"name": partition.topic, "partitions": [asked]}], "isolation_level": int(committed)}
    answer = await partition.cluster.request(LIST_OFFSETS, body, partition.leader_id())
    row = _only(answer["topics"], partition)
    if row["offset"] < 0:
        return await find_offset(partition, END)
    return int(row["offset"])


async def find_epoch_end(partition: Partition, leader_epoch: int) -> tuple[int, int]:
    """The largest leader epoch up to this one that the leader knows, and the offset after its last record.

    (-1, -1) when it knows none. Raises as find_offset (KIP-320).
    """
    asked = {"partition": partition.index, "leader_epoch": leader_epoch}
    body = {"topics": [{"topic": partition.topic, "partitions": [asked]}]}
    answer = await partition.cluster.request(OFFSET_FOR_LEADER_EPOCH, body, partition.leader_id())
    row = _only(answer["topics"], partition, index="partition")
    return int(row["leader_epoch"]), int(row["end_offset"])


async def fetch_slice(partition: Partition, offset: int, bytes_max: int, committed: bool = False) -> LogSlice:
    """Raw batches from the one that holds `offset` on: at least one whole batch, if there is one.

    `committed`: as for a reader with isolation.level read_committed, see LogSlice.
    Raises ClusterError with the partition's code (1: no such offset), NetworkError.
    """
    metadata = partition.cluster.topics.get(partition.topic)
    asked = {"partition": partition.index, "fetch_offset": offset, "partition_max_bytes": bytes_max}
    topic = {
        "topic": partition.topic,
        "topic_id": metadata.topic_id if metadata else bytes(16),
        "partitions": [asked],
    }
    body = {"max_wait_ms": 0, "min_bytes": 0, "max_bytes": bytes_max, "topics": [topic]}
    body["isolation_level"] = int(committed)
    answer = await partition.cluster.request(FETCH, body, partition.leader_id())
    if answer["error_code"]:
        raise ClusterError(answer["error_code"], "Fetch", where=partition.where)
    row = _only(answer["responses"], partition)
    aborted = tuple((each["producer_id"], each["first_offset"]) for each in row["aborted_transactions"] or ())
    ends = row["log_start_offset"], row["high_watermark"], row["last_stable_offset"]
    return LogSlice(row["records"] or b"", *ends, aborted)


async def read_tail(partition: Partition) -> LogTail:
    """The tail as consumers can see it (below the high watermark). Raises as the functions above."""
    end = await find_offset(partition, END)
    if end <= await find_offset(partition, START):
        return LogTail(end, None)
    found = await fetch_slice(partition, end - 1, 1)
    last = open_batch(found.records)
    if last is None:
        raise ProtocolError("a Fetch below the log's end brought no batch", where=partition.where)
    return LogTail(end, last, found.records)


def _only(topics: list[Body], partition: Partition, index: str = "partition_index") -> Body:
    for topic in topics:
        for row in topic.get("partitions", ()):
            if row[index] == partition.index:
                if row["error_code"]:
                    raise ClusterError(row["error_code"], where=partition.where)
                return dict(row)
    raise ProtocolError("the answer leaves our partition out", where=partition.where)
