"""Scripted peers for the worker: a source and a target broker that cost almost nothing and keep no log.

Each is a process of its own that speaks just enough of the protocol, over loopback, for one topic: the source answers
every Fetch from one prepared batch whose base offset it renumbers, the target acknowledges every batch with the base
offset that a log would have given it. So what a worker costs is the worker's cost alone.
"""

import asyncio
import multiprocessing
import os
import struct
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from replicator._core import crc32c
from replicator.kafka.codec import Request, decode_request, encode_response
from replicator.kafka.messages import (
    API_VERSIONS,
    APIS,
    FETCH,
    INIT_PRODUCER_ID,
    LIST_OFFSETS,
    METADATA,
    PRODUCE,
)

TOPIC = "bench"
TOPIC_ID = bytes(range(16))
RECORDS_A_BATCH = 16
HEADER = 61


def make_batch(size: int) -> bytes:
    """A batch of `size` bytes whose header is right and whose records are noise: nothing here opens them."""
    records = os.urandom(size - HEADER)
    last = RECORDS_A_BATCH - 1
    covered = struct.pack(">hiqqqhii", 0, last, 1, 1, -1, -1, -1, RECORDS_A_BATCH) + records
    return struct.pack(">qiibI", 0, size - 12, 0, 2, crc32c(covered)) + covered


@dataclass
class Script:
    """What both peers know: how many partitions, how many batches each holds, and of what size."""

    partitions: int
    batches: int
    batch_bytes: int
    fetch_bytes_max: int = 1 << 20

    @property
    def end_offset(self) -> int:
        return self.batches * RECORDS_A_BATCH


class _Broker(asyncio.BufferedProtocol):
    """Frames in, answers out; reads into one large buffer, so that a request costs one or two system calls."""

    def __init__(self, script: Script, port: int, ends: list[int]) -> None:
        self.script = script
        self.port = port
        self.ends = ends  # of the target's log, a partition
        self.buffer = bytearray(8 << 20)
        self.filled = 0
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self.buffer)[self.filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self.filled += nbytes
        at = 0
        while self.filled - at >= 4:
            size = int.from_bytes(self.buffer[at : at + 4], "big")
            if self.filled - at - 4 < size:
                break
            self.answer(memoryview(self.buffer)[at + 4 : at + 4 + size])
            at += 4 + size
        if at:
            self.buffer[: self.filled - at] = self.buffer[at : self.filled]
            self.filled -= at

    def answer(self, frame: memoryview) -> None:
        key = int.from_bytes(frame[:2], "big")
        if key == PRODUCE.key:
            self.send(self.settle(frame))
            return
        request = decode_request(bytes(frame), APIS)
        if request.api is FETCH:
            self.fetch(request)
        else:
            body = _ANSWERS[request.api.key](self, request)
            self.send(encode_response(request.api, request.version, request.correlation_id, body))

    def send(self, payload: bytes) -> None:
        self.transport.write(len(payload).to_bytes(4, "big") + payload)

    # ---- the source ----

    def fetch(self, request: Request) -> None:
        """Batches for the first partition that has some left, straight after the others' empty answers."""
        (topic,) = request.body["topics"]
        rows, records = [], b""
        for asked in topic["partitions"]:
            base = asked["fetch_offset"]
            room = min(asked["partition_max_bytes"], self.script.fetch_bytes_max - len(records))
            count = min(max(room // self.script.batch_bytes, 0), (self.script.end_offset - base) // RECORDS_A_BATCH)
            row = {
                "partition_index": asked["partition"],
                "error_code": 0,
                "high_watermark": self.script.end_offset,
            }
            rows.append(row | {"records": self.batches(base, count)})
        body = {"error_code": 0, "responses": [{"topic_id": TOPIC_ID, "topic": TOPIC, "partitions": rows}]}
        self.send(encode_response(FETCH, request.version, request.correlation_id, body))

    def batches(self, base: int, count: int) -> bytes:
        out = bytearray(_template(self.script.batch_bytes) * count)
        for index in range(count):
            struct.pack_into(">q", out, index * self.script.batch_bytes, base + index * RECORDS_A_BATCH)
        return bytes(out)

    # ---- the target ----

    def settle(self, frame: memoryview) -> bytes:
        version, correlation_id, client_length = struct.unpack_from(">hih", frame, 2)
        at = 10 + client_length + 2 + 2 + 4
        (topics,) = struct.unpack_from(">i", frame, at)
        assert topics == 1
        at += 4 + 2 + len(TOPIC)
        (count,) = struct.unpack_from(">i", frame, at)
        at += 4
        out = [struct.pack(">iih", correlation_id, 1, len(TOPIC)), TOPIC.encode(), struct.pack(">i", count)]
        for _ in range(count):
            partition, size = struct.unpack_from(">ii", frame, at)
            (records,) = struct.unpack_from(">i", frame, at + 8 + 57)
            out.append(struct.pack(">ihqqq", partition, 0, self.ends[partition], -1, 0))
            if version >= 8:
                out.append(struct.pack(">ih", 0, -1))
            self.ends[partition] += records
            at += 8 + size
        out.append(struct.pack(">i", 0))
        return b"".join(out)


def _versions(broker: _Broker, request: Request) -> dict[str, Any]:
    rows = [
        {"api_key": api.key, "min_version": api.versions[0], "max_version": api.versions[-1]} for api in APIS.values()
    ]
    return {"error_code": 0, "api_keys": rows}


def _metadata(broker: _Broker, request: Request) -> dict[str, Any]:
    led = {"error_code": 0, "leader_id": 1, "leader_epoch": 0, "replica_nodes": [1], "isr_nodes": [1]}
    partitions = [led | {"partition_index": index, "offline_replicas": []} for index in range(broker.script.partitions)]
    topic = {"error_code": 0, "name": TOPIC, "topic_id": TOPIC_ID, "partitions": partitions}
    return {"brokers": [{"node_id": 1, "host": "127.0.0.1", "port": broker.port}], "topics": [topic]}


def _offsets(broker: _Broker, request: Request) -> dict[str, Any]:
    rows = []
    for asked in request.body["topics"][0]["partitions"]:
        index = asked["partition_index"]
        end = broker.ends[index] if broker.ends else broker.script.end_offset
        rows.append({"partition_index": index, "error_code": 0, "offset": end if asked["timestamp"] == -1 else 0})
    return {"topics": [{"name": TOPIC, "partitions": rows}]}


def _producer(broker: _Broker, request: Request) -> dict[str, Any]:
    return {"error_code": 0, "producer_id": 1000, "producer_epoch": 0}


_ANSWERS = {
    API_VERSIONS.key: _versions,
    METADATA.key: _metadata,
    LIST_OFFSETS.key: _offsets,
    INIT_PRODUCER_ID.key: _producer,
}
_TEMPLATES: dict[int, bytes] = {}


def _template(size: int) -> bytes:
    if size not in _TEMPLATES:
        _TEMPLATES[size] = make_batch(size)
    return _TEMPLATES[size]


async def _serve(script: Script, is_target: bool, ready: Connection) -> None:
    loop = asyncio.get_running_loop()
    ends = [0] * script.partitions if is_target else []
    server = await loop.create_server(lambda: _Broker(script, port, ends), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    ready.send(port)
    await loop.run_in_executor(None, ready.poll, None)  # until the parent closes its end


def _main(script: Script, is_target: bool, ready: Connection) -> None:
    asyncio.run(_serve(script, is_target, ready))


class ScriptedPeer:
    """One peer's process; a context manager. `bootstrap` is its address."""

    def __init__(self, script: Script, is_target: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_main, args=(script, is_target, theirs), daemon=True)
        self._process.start()
        self.bootstrap = f"127.0.0.1:{self._ours.recv()}"

    def __enter__(self) -> "ScriptedPeer":
        return self

    def __exit__(self, *_exc: object) -> None:
        self._process.terminate()
        self._process.join()
