"""One connection to one broker: frames in, frames out, answers in the order of the requests.

A broker answers the requests of a connection strictly in order, so what is owed is a queue. Two kinds of callers
share it: `request` is the slow path, a coroutine for one small message; `begin` is the data plane's, which registers
who takes the answer and then lets the native core put the request into `transport` itself, where no byte is copied.

Whatever goes wrong closes the connection, once, with one reason: `lost` resolves to it. An answer that is overdue is
such a reason too, because an answer that comes after its time would be taken for the next one's.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from replicator import __version__
from replicator._core import FetchStream, Frame, Pool, Transport
from replicator.errors import ConnectionLost, ProtocolError, ReplicatorError, Unreachable, Where
from replicator.kafka.codec import Api, Body, decode_response, encode_request, negotiate
from replicator.kafka.messages import API_VERSIONS, decode_api_versions

Address = tuple[str, int]


@dataclass(frozen=True)
class ConnectionSettings:
    """What every connection to a cluster has in common. `pool` is where its frames land."""

    alias: str
    client_id: str
    request_timeout_ms: int
    pool: Pool


class _Owed(NamedTuple):
    correlation_id: int
    deadline: float  # of the loop's clock
    take: Callable[[Frame], None]
    give_up: Callable[[ReplicatorError], None] | None


class Connection:
    """Made by `open`; closed by `close`, by the peer, or by an answer that does not come."""

    def __init__(self, sock: socket.socket, settings: ConnectionSettings, address: Address) -> None:
        self.loop = asyncio.get_running_loop()
        self.settings = settings
        self.address = address
        self.transport = Transport(sock.fileno(), settings.pool)
        self.stream: FetchStream | None = None  # takes in Fetch responses while they arrive
        self.on_readable: Callable[[], None] | None = None
        self.lost: asyncio.Future[ReplicatorError] = self.loop.create_future()
        self._sock = sock
        self._ranges: dict[int, tuple[int, int]] = {}
        self._owed: deque[_Owed] = deque()
        self._correlation_id = 0
        self._writing = False
        self._timer: asyncio.TimerHandle | None = None
        self.loop.add_reader(sock.fileno(), self._readable)

    @classmethod
    async def open(cls, address: Address, settings: ConnectionSettings) -> "Connection":
        """Connects and asks what the broker speaks. Raises Unreachable, or ClusterError from the handshake."""
        where = Where(settings.alias)
        try:
            async with asyncio.timeout(settings.request_timeout_ms / 1000):
                connection = cls(await _connect(address), settings, address)
                try:
                    await connection._ask_versions()
                except BaseException as error:
                    connection.close(ConnectionLost(f"handshake with {_name(address)} failed: {error}", where=where))
                    raise
        except ConnectionLost as error:
            raise Unreachable(error.what, where=where) from None
        except (OSError, TimeoutError) as error:
            reason = str(error) or "no answer in time"
            raise Unreachable(f"broker {_name(address)}: {reason}", where=where) from None
        return connection

    async def _ask_versions(self) -> None:
        body = {"client_software_name": "kafka-log-replicator", "client_software_version": __version__}
        for version in reversed(API_VERSIONS.versions):
            frame = await self._exchange(API_VERSIONS, version, body if version else {})
            ranges = decode_api_versions(memoryview(frame), version)
            if ranges is not None:
                self._ranges = ranges
                return
        raise ProtocolError(f"{_name(self.address)} does not answer ApiVersions")

    def version(self, api: Api) -> int:
        """The version to speak of `api` here. Raises UnsupportedBroker."""
        return negotiate(api, self._ranges)

    async def request(self, api: Api, body: Body) -> Body:
        """One message of the slow path and its answer. Raises NetworkError, ProtocolError, UnsupportedBroker."""
        return decode_response(api, self.version(api), memoryview(await self.request_frame(api, body)))[1]

    async def request_frame(self, api: Api, body: Body) -> Frame:
        """The answer as it came, not decoded. Raises NetworkError, UnsupportedBroker."""
        return await self._exchange(api, self.version(api), body)

    async def _exchange(self, api: Api, version: int, body: Body) -> Frame:
        answer: asyncio.Future[Frame] = self.loop.create_future()

        def take(frame: Frame) -> None:
            if not answer.done():
                answer.set_result(frame)

        def give_up(error: ReplicatorError) -> None:
            if not answer.done():
                answer.set_exception(error)

        correlation_id = self.begin(take, give_up)
        payload = encode_request(api, version, correlation_id, self.settings.client_id, body)
        self.transport.send(len(payload).to_bytes(4, "big") + payload)
        self.flush()
        return await answer

    def begin(
        self,
        take: Callable[[Frame], None],
        give_up: Callable[[ReplicatorError], None] | None = None,
        wait_ms: int = 0,
    ) -> int:
        """Registers who takes the next request's answer; returns the correlation id that the request must carry.

        `wait_ms` is how long the broker was asked to hold the answer back. Raises ConnectionLost when closed.
        """
        if self.lost.done():
            raise self._lost_again()
        self._correlation_id = (self._correlation_id + 1) & 0x7FFF_FFFF
        deadline = self.loop.time() + (self.settings.request_timeout_ms + wait_ms) / 1000
        self._owed.append(_Owed(self._correlation_id, deadline, take, give_up))
        if self._timer is None:
            self._timer = self.loop.call_at(deadline, self._check_deadline)
        return self._correlation_id

    def unbegin(self) -> None:
        """Takes the last `begin` back: its request was not composed after all."""
        self._owed.pop()

    def flush(self) -> None:
        """Sends what waits in the transport, now as far as the socket takes it and then as it takes more."""
        if self._writing or self.lost.done():
            return
        try:
            done = self.transport.flush()
        except OSError as error:
            self._close_for(f"send failed: {error}")
            return
        if not done:
            self._writing = True
            self.loop.add_writer(self._sock.fileno(), self._writable)

    def extend_deadlines(self, by_ms: int) -> None:
        """For what is in flight: the broker has said that it will take so much longer (its throttle time)."""
        self._owed = deque(owed._replace(deadline=owed.deadline + by_ms / 1000) for owed in self._owed)

    @property
    def in_flight(self) -> int:
        return len(self._owed)

    def close(self, reason: ReplicatorError) -> None:
        """Ends the connection; whoever is owed an answer gets the reason. Further calls do nothing."""
        if self.lost.done():
            return
        self.lost.set_result(reason)
        self.loop.remove_reader(self._sock.fileno())
        self.loop.remove_writer(self._sock.fileno())
        self.transport.close()
        self._sock.close()
        if self._timer:
            self._timer.cancel()
        owed, self._owed = self._owed, deque()
        for each in owed:
            if each.give_up:
                each.give_up(self._lost_again())

    def _lost_again(self) -> ReplicatorError:
        reason = self.lost.result()
        return type(reason)(reason.what, where=reason.where, hint=reason.hint)

    def _close_for(self, what: str) -> None:
        self.close(ConnectionLost(f"broker {_name(self.address)}: {what}", where=Where(self.settings.alias)))

    def _readable(self) -> None:
        try:
            while (frame := self.transport.receive(self.stream)) is not None:
                self._answer(frame)
        except OSError as error:
            self._close_for(str(error))
        except ValueError as error:
            where = Where(self.settings.alias)
            self.close(ProtocolError(f"broker {_name(self.address)}: {error}", where=where))
        if self.on_readable and not self.lost.done():
            self.on_readable()

    def _answer(self, frame: Frame) -> None:
        correlation_id = int.from_bytes(memoryview(frame)[:4], "big")
        if not self._owed or self._owed[0].correlation_id != correlation_id:
            raise ValueError(f"an answer with correlation id {correlation_id} that nobody waits for")
        self._owed.popleft().take(frame)

    def _writable(self) -> None:
        self.loop.remove_writer(self._sock.fileno())
        self._writing = False
        self.flush()
        if self.on_readable and not self._writing and not self.lost.done():
            self.on_readable()  # there is room in the socket again: more can be gathered

    def _check_deadline(self) -> None:
        self._timer = None
        if not self._owed:
            return
        deadline = self._owed[0].deadline
        if deadline > self.loop.time():
            self._timer = self.loop.call_at(deadline, self._check_deadline)
        else:
            self._close_for(f"no answer within {self.settings.request_timeout_ms} ms")


async def _connect(address: Address) -> socket.socket:
    """A connected, non-blocking socket to the first of the host's addresses that takes one."""
    loop = asyncio.get_running_loop()
    failure: OSError = OSError("no address found")
    for family, kind, protocol, _, place in await loop.getaddrinfo(*address, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        sock.setblocking(False)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(sock, place)
            return sock
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
    raise failure


def _name(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
