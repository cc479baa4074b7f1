"""A client without manners: whatever a test wants said to a broker is said, on one connection, when it wants it.

Messages are laid out by the product's own tables, which unit tests compare with another implementation; what is in
them, how many are sent before an answer is read, and when the connection ends is the test's business.
"""

import socket
import struct
from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple, Self

from replicator.kafka.codec import (
    BOOL,
    INT16,
    INT32,
    INT64,
    STRING,
    Api,
    Array,
    Body,
    Field,
    Struct,
    decode_response,
    encode_request,
)
from replicator.kafka.messages import FETCH, INIT_PRODUCER_ID, METADATA, PRODUCE
from tests.harness.kafka import KafkaCluster
from tests.harness.waiting import eventually

TIMEOUT_S = 10.0
COORDINATOR_LOAD_IN_PROGRESS = 14
FETCH_BYTES_MAX = 16 << 20

_partitions_of = Struct(Field("name", STRING), Field("partition_indexes", Array(INT32)))
_error_of = Struct(Field("partition_index", INT32), Field("error_code", INT16))
_marker = Struct(
    Field("producer_id", INT64),
    Field("producer_epoch", INT16),
    Field("transaction_result", BOOL),
    Field("topics", Array(_partitions_of)),
    Field("coordinator_epoch", INT32, default=0),
)
_marked = Struct(
    Field("producer_id", INT64),
    Field("topics", Array(Struct(Field("name", STRING), Field("partitions", Array(_error_of))))),
)

# What ends a transaction in a partition's log. Brokers say it to each other; an administrator may, too.
WRITE_TXN_MARKERS = Api(
    key=27,
    name="WriteTxnMarkers",
    versions=(1,),
    flexible_since=1,
    request=Struct(Field("markers", Array(_marker))),
    response=Struct(Field("markers", Array(_marked))),
)


class Appended(NamedTuple):
    """A broker's answer to one batch. `refused` are the records it names, by their place in the batch."""

    error: int
    base_offset: int
    log_append_time_ms: int
    refused: list[int]


class Producer(NamedTuple):
    """Who a batch is from."""

    producer_id: int
    producer_epoch: int


class RawClient:
    """One connection to a single-node cluster. A context manager."""

    def __init__(self, cluster: KafkaCluster) -> None:
        host, port = cluster.bootstrap.rsplit(":", 1)
        self._socket = socket.create_connection((host, int(port)), TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._owed: deque[tuple[Api, int, int]] = deque()
        self._correlation_id = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection at once, whatever is still owed on it."""
        self._socket.close()

    def send(self, api: Api, version: int, body: Body) -> None:
        """Send a request and wait for nothing."""
        self._correlation_id += 1
        self._owed.append((api, version, self._correlation_id))
        payload = encode_request(api, version, self._correlation_id, "raw", body)
        self._socket.sendall(struct.pack(">i", len(payload)) + payload)

    def receive(self) -> Body:
        """The next answer; an AssertionError unless it belongs to the oldest request that has none."""
        (size,) = struct.unpack(">i", self._take(4))
        api, version, due = self._owed.popleft()
        correlation_id, body = decode_response(api, version, self._take(size))
        assert correlation_id == due, "answers come in the order of the requests"
        return body

    def ask(self, api: Api, version: int, body: Body) -> Body:
        self.send(api, version, body)
        return self.receive()

    def _take(self, size: int) -> bytes:
        received = bytearray()
        while len(received) < size:
            piece = self._socket.recv(size - len(received))
            if not piece:
                raise ConnectionError("the broker closed the connection instead of answering")
            received += piece
        return bytes(received)

    # ---- produce ----

    def send_batch(self, topic: str, records: bytes, partition: int = 0, version: int = 8) -> None:
        self.send(PRODUCE, version, produce_body([(topic, [(partition, records)])]))

    def receive_appended(self) -> Appended:
        """The answer to a Produce of one batch."""
        (answer,) = appended(self.receive()).values()
        return answer

    def produce(self, topic: str, records: bytes, partition: int = 0, version: int = 8) -> Appended:
        self.send_batch(topic, records, partition, version)
        return self.receive_appended()

    def init_producer(self) -> Producer:
        """A producer id that nobody else has. A young broker says at first that it is still loading."""

        def ask() -> Body:
            answer = self.ask(INIT_PRODUCER_ID, 1, {})
            assert answer["error_code"] in (0, COORDINATOR_LOAD_IN_PROGRESS)
            return {} if answer["error_code"] else answer

        answer = eventually(ask, "a producer id")
        return Producer(answer["producer_id"], answer["producer_epoch"])

    def mark_commit(self, topic: str, producer: Producer, partition: int = 0) -> None:
        """Put a commit marker into a partition: a control batch of one record, at the log's end."""
        place = {"name": topic, "partition_indexes": [partition]}
        marker = {**producer._asdict(), "transaction_result": True, "topics": [place]}
        (answer,) = self.ask(WRITE_TXN_MARKERS, 1, {"markers": [marker]})["markers"]
        assert answer["topics"][0]["partitions"][0]["error_code"] == 0

    # ---- fetch ----

    def fetch(self, topic: str, offset: int, version: int = 10, **options: Any) -> Body:
        """The part of partition 0 of a Fetch's answer. `options` as in `fetch_body`."""
        body = self.ask(FETCH, version, fetch_body([(topic, 0, offset)], **options))
        assert body["error_code"] == 0
        ((partition,),) = (row["partitions"] for row in body["responses"])
        return dict(partition)

    def topic_id(self, topic: str) -> bytes:
        (row,) = self.ask(METADATA, 12, {"topics": [{"name": topic}]})["topics"]
        return bytes(row["topic_id"])

    def leader_epoch(self, topic: str) -> int:
        (row,) = self.ask(METADATA, 12, {"topics": [{"name": topic}]})["topics"]
        return int(row["partitions"][0]["leader_epoch"])


def produce_body(topics: Iterable[tuple[str, list[tuple[int, bytes]]]]) -> Body:
    """A Produce request of [(topic, [(partition, records)])], in this order and with these repetitions."""
    rows = [
        {"name": name, "partition_data": [{"index": index, "records": records} for index, records in parts]}
        for name, parts in topics
    ]
    return {"timeout_ms": 10_000, "topic_data": rows}


def appended(answer: Body) -> dict[tuple[str, int], Appended]:
    """A Produce's answer by (topic, partition); an AssertionError when it names one twice."""
    found: dict[tuple[str, int], Appended] = {}
    for topic in answer["responses"]:
        for row in topic["partition_responses"]:
            place = topic["name"], row["index"]
            assert place not in found, f"two answers for {place}"
            refused = [record["batch_index"] for record in row["record_errors"]]
            found[place] = Appended(row["error_code"], row["base_offset"], row["log_append_time_ms"], refused)
    return found


def fetch_body(
    places: Iterable[tuple[str, int, int]],
    topic_id: bytes = bytes(16),
    max_wait_ms: int = 0,
    max_bytes: int = FETCH_BYTES_MAX,
    isolation_level: int = 0,
    epochs: tuple[int, int] = (-1, -1),
) -> Body:
    """A Fetch of [(topic, partition, offset)], one element a place; `epochs` are the current and the last fetched."""
    current_epoch, last_epoch = epochs
    rows = [
        {
            "topic": topic,
            "topic_id": topic_id,
            "partitions": [
                {
                    "partition": partition,
                    "fetch_offset": offset,
                    "current_leader_epoch": current_epoch,
                    "last_fetched_epoch": last_epoch,
                    "partition_max_bytes": max_bytes,
                }
            ],
        }
        for topic, partition, offset in places
    ]
    limits = {"max_wait_ms": max_wait_ms, "min_bytes": 1, "max_bytes": max_bytes}
    return {**limits, "isolation_level": isolation_level, "topics": rows}
