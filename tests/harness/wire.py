"""The three Kafka requests the harness must be able to say itself, on a plain blocking socket.

Metadata (is the cluster up, who leads), ListOffsets (where a log starts and ends) and Fetch (its bytes as
they are) are written by hand here, in versions that every broker from 2.1 to 4.x answers, so that the raw
evidence comes from neither librdkafka nor the code under test. Layouts are those of the protocol guide; all
integers are big-endian.
"""

import socket
import struct
from dataclasses import dataclass
from typing import NamedTuple, Self

from tests.harness.ports import LOOPBACK

PRODUCE, FETCH, LIST_OFFSETS, METADATA, API_VERSIONS = 0, 1, 2, 3, 18

EARLIEST, LATEST = -2, -1  # the two ListOffsets timestamps that are no timestamps

_METADATA_VERSION, _LIST_OFFSETS_VERSION, _FETCH_VERSION = 7, 4, 10
_ANSWER_BYTES_MAX = 128 << 20
_FETCH_BYTES_MAX = 32 << 20
_FETCH_WAIT_MS = 500


class WireError(Exception):
    """A broker closed the connection, answered with an error code, or sent what cannot be read."""


class Broker(NamedTuple):
    """A broker as Metadata names it: by the address of the listener that was asked."""

    node: int
    host: str
    port: int


@dataclass
class Metadata:
    """The registered brokers, and for the topics asked about: {topic: {partition: leader's node id}}."""

    brokers: list[Broker]
    leaders: dict[str, dict[int, int]]


@dataclass
class Reader:
    """A cursor over one answer. Reading past its end raises WireError."""

    data: memoryview
    at: int = 0

    def integers(self, layout: str) -> tuple[int, ...]:
        """Read fixed-size fields by their struct letters, without byte order."""
        layout = ">" + layout
        field = self.take(struct.calcsize(layout))
        return struct.unpack(layout, field)

    def take(self, size: int) -> memoryview:
        """Read `size` bytes; a negative size is Kafka's null and reads as empty."""
        end = self.at + max(size, 0)
        if end > len(self.data):
            raise WireError(f"the answer ends at byte {len(self.data)}, a field would need {end}")
        field = self.data[self.at : end]
        self.at = end
        return field

    def string(self) -> str:
        """Read a string with a two-byte length; null reads as empty."""
        return str(self.take(self.integers("h")[0]), "utf-8")

    def count(self) -> range:
        """Read an array's length and return it as something to loop over; null reads as empty."""
        (size,) = self.integers("i")
        if size > len(self.data) - self.at:
            raise WireError(f"an array claims {size} elements, more than the bytes that are left")
        return range(size)


class Wire:
    """One connection to one broker; one request at a time. A context manager."""

    def __init__(self, port: int, host: str = LOOPBACK, timeout_s: float = 10.0) -> None:
        """Connect. Raises OSError when nobody listens."""
        self._socket = socket.create_connection((host, port), timeout_s)
        self._correlation_id = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._socket.close()

    def ask(self, api_key: int, version: int, body: bytes) -> Reader:
        """Send a request of a version without tagged fields; return its answer behind the correlation id."""
        self._correlation_id += 1
        header = struct.pack(">hhi", api_key, version, self._correlation_id) + _string("harness")
        self._socket.sendall(struct.pack(">i", len(header) + len(body)) + header + body)
        (size,) = struct.unpack(">i", self._receive(4))
        if not 4 <= size <= _ANSWER_BYTES_MAX:
            raise WireError(f"the broker announces an answer of {size} bytes")
        answer = Reader(memoryview(self._receive(size)))
        if answer.integers("i") != (self._correlation_id,):
            raise WireError(f"the broker answered another request than {self._correlation_id}")
        return answer

    def metadata(self, *topics: str) -> Metadata:
        """Ask for the brokers, and for the leaders of `topics`. Raises WireError for a topic in error."""
        names = b"".join(map(_string, topics))
        # The last byte forbids the broker to create what it does not know.
        answer = self.ask(METADATA, _METADATA_VERSION, struct.pack(">i", len(topics)) + names + b"\0")
        answer.integers("i")  # throttle time
        brokers = [_read_broker(answer) for _ in answer.count()]
        answer.string()  # cluster id
        answer.integers("i")  # controller
        return Metadata(brokers, dict(_read_topic(answer) for _ in answer.count()))

    def list_offset(self, topic: str, partition: int, timestamp: int) -> int:
        """Return the offset ListOffsets gives for `timestamp`, which may be EARLIEST or LATEST."""
        no_replica, read_uncommitted, any_epoch = -1, 0, -1
        head = struct.pack(">ibi", no_replica, read_uncommitted, 1) + _string(topic)
        body = head + struct.pack(">iiiq", 1, partition, any_epoch, timestamp)
        answer = self.ask(LIST_OFFSETS, _LIST_OFFSETS_VERSION, body)
        _skip_to_partition(answer)
        _, error, _, offset, _ = answer.integers("ihqqi")
        _check(error, "ListOffsets", topic, partition)
        return offset

    def fetch(self, topic: str, partition: int, offset: int) -> memoryview:
        """Return the record set of a Fetch at `offset`: whole batches, perhaps with a part of one behind."""
        no_replica, bytes_min, read_uncommitted, no_session, no_epoch = -1, 1, 0, 0, -1
        head = struct.pack(">iiii", no_replica, _FETCH_WAIT_MS, bytes_min, _FETCH_BYTES_MAX)
        head += struct.pack(">biii", read_uncommitted, no_session, no_epoch, 1) + _string(topic)
        any_epoch, no_log_start = -1, -1
        body = struct.pack(">iiiqqi", 1, partition, any_epoch, offset, no_log_start, _FETCH_BYTES_MAX)
        nothing_forgotten = struct.pack(">i", 0)
        answer = self.ask(FETCH, _FETCH_VERSION, head + body + nothing_forgotten)
        _check(answer.integers("ihi")[1], "Fetch", topic, partition)
        answer.integers("i")  # one topic
        answer.string()
        answer.integers("i")  # one partition
        _, error, *_ = answer.integers("ihqqq")
        _check(error, "Fetch", topic, partition)
        answer.take(16 * len(answer.count()))  # aborted transactions
        return answer.take(answer.integers("i")[0])

    def _receive(self, size: int) -> bytearray:
        received = bytearray(size)
        rest = memoryview(received)
        while rest:
            taken = self._socket.recv_into(rest)
            if not taken:
                raise WireError("the broker closed the connection instead of answering")
            rest = rest[taken:]
        return received


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack(">h", len(encoded)) + encoded


def _check(error: int, api: str, topic: str, partition: int) -> None:
    if error:
        raise WireError(f"{api} of {topic}-{partition} answered error code {error}")


def _read_broker(answer: Reader) -> Broker:
    (node,) = answer.integers("i")
    host = answer.string()
    (port,) = answer.integers("i")
    answer.string()  # rack
    return Broker(node, host, port)


def _read_topic(answer: Reader) -> tuple[str, dict[int, int]]:
    (error,) = answer.integers("h")
    name = answer.string()
    answer.integers("?")  # internal
    leaders = {}
    for _ in answer.count():
        partition_error, partition, leader, _epoch = answer.integers("hiii")
        _check(error or partition_error, "Metadata", name, partition)
        leaders[partition] = leader
        for _ in ("replicas", "in-sync replicas", "offline replicas"):
            answer.take(4 * len(answer.count()))
    if error:
        raise WireError(f"Metadata of topic {name} answered error code {error}")
    return name, leaders


def _skip_to_partition(answer: Reader) -> None:
    answer.integers("ii")  # throttle time, one topic
    answer.string()
    answer.integers("i")  # one partition
