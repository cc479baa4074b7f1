"""Produce in versions 7 and 8, from the broker's side: requests parsed, responses built, by the protocol guide."""

import struct
from dataclasses import dataclass

from tests.oracle.wire import Cursor, string

API_KEY = 0


@dataclass(frozen=True)
class ProduceRequest:
    """`topics` is [(name, [(partition, the bytes of its batch)])], in the order of the request."""

    version: int
    correlation_id: int
    client_id: str | None
    timeout_ms: int
    topics: list[tuple[str, list[tuple[int, bytes]]]]

    @property
    def batches(self) -> list[tuple[str, int, bytes]]:
        return [(topic, partition, data) for topic, rows in self.topics for partition, data in rows]


def parse_requests(data: bytes) -> list[ProduceRequest]:
    """Requests one after the other, each with its length prefix."""
    requests = []
    cursor = Cursor(data)
    while cursor.at < len(data):
        requests.append(_parse_request(cursor.take(cursor.number("i"))))
    return requests


def _parse_request(data: bytes) -> ProduceRequest:
    cursor = Cursor(data)
    assert cursor.number("h") == API_KEY
    version, correlation_id, client_id = cursor.number("h"), cursor.number("i"), cursor.string()
    assert cursor.string() is None, "no transactional id"
    assert cursor.number("h") == -1, "acks of all in-sync replicas"
    timeout_ms = cursor.number("i")
    topics = []
    for _ in range(cursor.number("i")):
        name = cursor.string()
        assert name
        rows = [(cursor.number("i"), cursor.take(cursor.number("i"))) for _ in range(cursor.number("i"))]
        topics.append((name, rows))
    cursor.end()
    return ProduceRequest(version, correlation_id, client_id, timeout_ms, topics)


@dataclass(frozen=True)
class Produced:
    """One partition's part of a response."""

    topic: str
    partition: int
    base_offset: int = 0
    error: int = 0
    record_errors: tuple[tuple[int, str | None], ...] = ()
    message: str | None = None

    def encode(self, version: int) -> bytes:
        out = struct.pack(">ihqqq", self.partition, self.error, self.base_offset, -1, 0)
        if version < 8:
            return out
        out += struct.pack(">i", len(self.record_errors))
        for index, words in self.record_errors:
            out += struct.pack(">i", index) + string(words)
        return out + string(self.message)


def encode_response(version: int, correlation_id: int, answers: list[Produced], throttle_ms: int = 0) -> bytes:
    """The response without its length prefix. Neighbours with the same topic share one topic element."""
    topics: list[tuple[str, list[Produced]]] = []
    for answer in answers:
        if not topics or topics[-1][0] != answer.topic:
            topics.append((answer.topic, []))
        topics[-1][1].append(answer)
    out = struct.pack(">ii", correlation_id, len(topics))
    for topic, rows in topics:
        out += string(topic) + struct.pack(">i", len(rows)) + b"".join(row.encode(version) for row in rows)
    return out + struct.pack(">i", throttle_ms)
