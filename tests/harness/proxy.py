"""A TCP proxy in front of one broker that understands just enough Kafka to misbehave at the worst moment.

It reads the frame of every request (length, API key, version, correlation id) and recognises an answer by its
correlation id. So a test can say "lose the answer to every seventh Produce", and the broker has appended the
batch all the same. Each direction of a connection is a delay line: bytes enter with the time they are due and
leave in order once it has come, which is how latency, a slow link and a late answer are played without
holding up the reading side.

A proxy is an asyncio loop in a thread of its own, and everything about connections happens there. A test may
read the counters at any time; a rule is one object put into a dictionary, which needs no lock.
"""

import asyncio
import concurrent.futures
import contextlib
import struct
import threading
from collections import Counter, deque
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from tests.harness.ports import LOOPBACK, free_port

_LENGTH_BYTES = 4
_REQUEST_HEAD = struct.Struct(">ihhi")  # length, API key, version, correlation id
_ANSWER_HEAD = struct.Struct(">ii")  # length, correlation id
_FRAME_BYTES_MAX = 128 << 20  # brokers take requests up to 100 MiB
_CHUNK_BYTES = 256 << 10
# What one direction of a connection may hold; it must exceed bandwidth times latency of the links we imitate.
_LINE_BYTES_MAX = 16 << 20
# A slow link queues so much before it takes no more, as a router would: without a bound, a small request
# would wait behind many seconds of bulk data.
_LINK_QUEUE_S_MAX = 0.2
_LAST_ANSWER_TIMEOUT_S = 30
_LAST_STEPS_S = 0.05
_CONTROL_TIMEOUT_S = 10


class _Cut(Exception):
    """Ends a connection, because a rule says so."""


class _NotKafka(Exception):
    """What came was not Kafka's protocol: a mistake in the test, never a fault to play."""


@dataclass
class _Drop:
    every: int
    then: Literal["close", "silence"]
    seen: int = 0


@dataclass
class _Cutting:
    requests_left: int


@dataclass
class _Rules:
    """What shall go wrong; the dictionaries are by API key."""

    drop: dict[int, _Drop] = field(default_factory=dict)
    cut: dict[int, _Cutting] = field(default_factory=dict)
    delay_s: dict[int, float] = field(default_factory=dict)
    latency_s: float = 0.0
    bytes_per_second: float | None = None


class FaultProxy:
    """A proxy to `upstream_port` of this machine, listening on `port`. Close it; it is a context manager.

    Counters of what really happened since the start or the last `reset`:
      connections  accepted
      requests     forwarded, a Counter by API key
      dropped      answers swallowed by `drop_answers`
      delayed      answers held back by `delay_answers`
      cut          connections cut by `cut_after_request` or `cut_all`
    """

    def __init__(self, upstream_port: int) -> None:
        """Listen. The upstream is dialled when a client comes, and need not be there yet."""
        self.upstream_port = upstream_port
        self.port = free_port()
        self._rules = _Rules()
        self._zero_counters()
        self._clients: dict[asyncio.Task[None], _Connection] = {}
        self._problem: Exception | None = None
        listening: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(
            target=asyncio.run, args=[self._main(listening)], name="fault-proxy", daemon=True
        )
        self._thread.start()
        listening.result(_CONTROL_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def drop_answers(self, api_key: int, every: int = 1, then: Literal["close", "silence"] = "close") -> None:
        """Forward requests of `api_key`, but swallow every `every`-th answer to them.

        Then the connection is closed behind the answers before it, or falls silent: nothing more reaches the
        client on it, while its requests still reach the broker.
        """
        self._rules.drop[api_key] = _Drop(every, then)

    def delay_answers(self, api_key: int, seconds: float) -> None:
        """Hold back each answer to `api_key`. Those behind it wait as well: Kafka answers in order."""
        self._rules.delay_s[api_key] = seconds

    def cut_after_request(self, api_key: int, n: int = 1) -> None:
        """Forward the `n`-th request of `api_key` from now and cut its client off at once, without an answer.

        Happens once. The broker's side stays open until the broker has answered, so that it really carries
        the request out, maybe after the client has come back and asked again.
        """
        self._rules.cut[api_key] = _Cutting(n)

    def link(self, latency_s: float = 0.0, bytes_per_second: float | None = None) -> None:
        """Imitate a long or thin link: one-way latency, and each way a bandwidth for all connections."""
        self._rules.latency_s = latency_s
        self._rules.bytes_per_second = bytes_per_second

    def cut_all(self) -> None:
        """Cut every present connection, both ways, losing what is under way."""
        self._in_loop(self._cut_all())

    def refuse(self, on: bool) -> None:
        """Refuse new connections, as a port without a process does, or end that. Present ones live on."""
        self._in_loop(self._listen(not on))

    def blackhole(self, on: bool) -> None:
        """Let nothing through either way, without closing anything; afterwards what was held goes on."""
        self._in_loop(self._set_blackhole(on))

    def reset(self) -> None:
        """Forget all rules, and set all counters to zero. Connections stay as they are."""
        self._in_loop(self._reset())

    def close(self) -> None:
        """Cut everything and stop listening. Raises RuntimeError when traffic was not Kafka's protocol."""
        if self._thread.is_alive():
            self._in_loop(self._stop())
            self._thread.join()
        if self._problem is not None:
            raise RuntimeError(f"the proxy to port {self.upstream_port} met a problem") from self._problem

    def _in_loop(self, action: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(action, self._loop).result(_CONTROL_TIMEOUT_S)

    async def _main(self, listening: concurrent.futures.Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._road = asyncio.Event()
        self._road.set()
        self._upstream_link, self._downstream_link = _Link(self), _Link(self)
        self._server: asyncio.Server | None = None
        try:
            await self._listen(True)
        except OSError as problem:
            listening.set_exception(problem)
            return
        listening.set_result(None)
        await self._ended.wait()
        await self._listen(False)
        await asyncio.sleep(0.05)  # what was accepted just now begins, or nobody would close it
        await self._cut_all()

    async def _listen(self, on: bool) -> None:
        if on and self._server is None:
            self._server = await asyncio.start_server(self._accept, LOOPBACK, self.port, limit=_CHUNK_BYTES)
        elif not on and self._server is not None:
            self._server.close()
            self._server = None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection = _Connection(self, reader, writer)
        task = asyncio.current_task()
        assert task is not None
        self._clients[task] = connection
        try:
            await connection.run()
        except* (_Cut, OSError, EOFError, asyncio.CancelledError):
            pass  # how connections end, here as in life
        except* Exception as problem:
            self._problem = problem
        finally:
            del self._clients[task]

    async def _cut_all(self) -> None:
        tasks = list(self._clients)
        self.cut += len(tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _set_blackhole(self, on: bool) -> None:
        if on:
            self._road.clear()
        else:
            self._road.set()

    async def _reset(self) -> None:
        self._rules = _Rules()
        self._zero_counters()
        self._road.set()
        await self._listen(True)

    def _zero_counters(self) -> None:
        self.requests: Counter[int] = Counter()
        self.connections = self.dropped = self.delayed = self.cut = 0

    async def _stop(self) -> None:
        await self._listen(False)
        await asyncio.sleep(_LAST_STEPS_S)  # what was accepted a moment ago begins,
        await self._cut_all()
        await asyncio.sleep(_LAST_STEPS_S)  # and what was cut lets go of its sockets
        self._ended.set()


class _Link:
    """The bandwidth and latency of one direction, shared by all connections of a proxy."""

    def __init__(self, proxy: FaultProxy) -> None:
        self._proxy = proxy
        self._free_at = 0.0

    async def due(self, size: int) -> float:
        """Wait until the link takes `size` bytes, and return the loop time at which they arrive."""
        rules, clock = self._proxy._rules, self._proxy._loop.time
        if not rules.bytes_per_second:
            return clock() + rules.latency_s
        if (ahead_s := self._free_at - clock()) > _LINK_QUEUE_S_MAX:
            await asyncio.sleep(ahead_s - _LINK_QUEUE_S_MAX)
        self._free_at = max(self._free_at, clock()) + size / rules.bytes_per_second
        return self._free_at + rules.latency_s


class _DelayLine:
    """One direction of a connection: what `put` takes, `deliver` writes, in order and when it is due."""

    def __init__(self, link: _Link, road: asyncio.Event, writer: asyncio.StreamWriter) -> None:
        self._link = link
        self._road = road
        self._writer = writer
        self._queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        self._held_bytes = 0
        self._room = asyncio.Event()
        self._room.set()
        self._silent = False

    async def put(self, chunk: bytes, extra_s: float = 0.0) -> None:
        """Take a chunk that arrives `extra_s` later than the link alone would make it."""
        await self._room.wait()
        due = await self._link.due(len(chunk)) + extra_s
        self._held_bytes += len(chunk)
        if self._held_bytes >= _LINE_BYTES_MAX:
            self._room.clear()
        self._queue.put_nowait((due, chunk))

    def end(self) -> None:
        """Close the writing side behind all that was put."""
        self._queue.put_nowait((0.0, b""))

    def silence(self) -> None:
        """Deliver nothing any more, neither what is held nor what will be put."""
        self._silent = True

    async def deliver(self) -> None:
        """Write until the end is reached. Raises OSError when the receiver is gone."""
        while True:
            due, chunk = await self._queue.get()
            if (early_s := due - asyncio.get_running_loop().time()) > 0:
                await asyncio.sleep(early_s)
            await self._road.wait()
            if not chunk:
                break
            self._held_bytes -= len(chunk)
            self._room.set()
            await self._write(chunk)
        if not self._silent:
            self._writer.write_eof()

    async def _write(self, chunk: bytes) -> None:
        if self._silent:
            return
        self._writer.write(chunk)
        try:
            await self._writer.drain()
        except ConnectionError:
            # Whoever silenced the line meanwhile may have cut off the receiver, too.
            if not self._silent:
                raise


class _Connection:
    """One client and its own connection to the broker."""

    def __init__(self, proxy: FaultProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._client = reader
        self._to_client = _DelayLine(proxy._downstream_link, proxy._road, writer)
        self._client_writer = writer
        # Correlation id and API key of what the broker has yet to answer, oldest first.
        self._unanswered: deque[tuple[int, int]] = deque()
        self._last_answer: int | None = None

    async def run(self) -> None:
        """Relay until both sides have ended, or one breaks, or a rule cuts them. Raises what ended it."""
        async with contextlib.AsyncExitStack() as cleanup:
            cleanup.callback(self._client_writer.transport.abort)
            await self._proxy._road.wait()
            self._broker, writer = await asyncio.open_connection(
                LOOPBACK, self._proxy.upstream_port, limit=_CHUNK_BYTES
            )
            cleanup.callback(writer.transport.abort)
            self._to_broker = _DelayLine(self._proxy._upstream_link, self._proxy._road, writer)
            async with asyncio.TaskGroup() as both_ways:
                for job in (
                    self._relay_requests,
                    self._relay_answers,
                    self._to_broker.deliver,
                    self._to_client.deliver,
                ):
                    both_ways.create_task(job())

    async def _relay_requests(self) -> None:
        while head := await _read_head(self._client, _REQUEST_HEAD.size):
            size, api_key, _version, correlation_id = _REQUEST_HEAD.unpack(head)
            self._unanswered.append((correlation_id, api_key))
            await _forward(self._client, self._to_broker, head, size)
            self._proxy.requests[api_key] += 1
            if self._is_cut_after(api_key):
                self._last_answer = correlation_id
                self._to_client.silence()
                self._client_writer.transport.abort()
                await asyncio.sleep(_LAST_ANSWER_TIMEOUT_S)
                raise _Cut
        self._to_broker.end()

    async def _relay_answers(self) -> None:
        while head := await _read_head(self._broker, _ANSWER_HEAD.size):
            size, correlation_id = _ANSWER_HEAD.unpack(head)
            api_key = self._asked(correlation_id)
            if correlation_id == self._last_answer:
                raise _Cut
            if drop := self._is_dropped(api_key):
                if drop.then == "close":
                    break
                self._to_client.silence()
            delay_s = self._proxy._rules.delay_s.get(api_key, 0.0)
            self._proxy.delayed += delay_s > 0
            await _forward(self._broker, self._to_client, head, size, delay_s)
        self._to_client.end()
        while await self._broker.read(_CHUNK_BYTES):
            pass  # behind a dropped answer, until the client has gone and the broker has noticed

    def _asked(self, correlation_id: int) -> int:
        """Return the API key of the request with this id. Requests before it wanted no answer (acks=0)."""
        while self._unanswered:
            asked, api_key = self._unanswered.popleft()
            if asked == correlation_id:
                return api_key
        raise _NotKafka(f"an answer with correlation id {correlation_id}, which no request had")

    def _is_cut_after(self, api_key: int) -> bool:
        rule = self._proxy._rules.cut.get(api_key)
        if rule is None:
            return False
        rule.requests_left -= 1
        if rule.requests_left:
            return False
        del self._proxy._rules.cut[api_key]
        self._proxy.cut += 1
        return True

    def _is_dropped(self, api_key: int) -> _Drop | None:
        rule = self._proxy._rules.drop.get(api_key)
        if rule is None:
            return None
        rule.seen += 1
        if rule.seen % rule.every:
            return None
        self._proxy.dropped += 1
        return rule


async def _read_head(reader: asyncio.StreamReader, size: int) -> bytes:
    """Return the first `size` bytes of a frame, or none of them at the end of the stream."""
    try:
        head = await reader.readexactly(size)
    except asyncio.IncompleteReadError as ended:
        if ended.partial:
            raise
        return b""
    (length,) = struct.unpack_from(">i", head)
    if not size - _LENGTH_BYTES <= length <= _FRAME_BYTES_MAX:
        raise _NotKafka(f"a frame that claims {length} bytes")
    return head


async def _forward(
    reader: asyncio.StreamReader, line: _DelayLine, head: bytes, length: int, extra_s: float = 0.0
) -> None:
    """Put a frame into `line`: `head`, and the rest of the `length` bytes behind the length field."""
    rest = length + _LENGTH_BYTES - len(head)
    while True:
        chunk = await reader.readexactly(min(rest, _CHUNK_BYTES))
        rest -= len(chunk)
        await line.put(head + chunk, extra_s)
        head = b""
        if not rest:
            return
