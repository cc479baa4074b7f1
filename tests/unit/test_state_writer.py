"""Every record that is written comes to an end: acknowledged, or failed with a reason. The producer is played."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from replicator.config.models import Cluster
from replicator.errors import ClusterError, ReplicatorError, Unreachable
from replicator.state.records import LinkKey, LinkRecord
from replicator.state.writer import StateWriter

EU = Cluster("eu", (("127.0.0.1", 1),), {"bootstrap.servers": "127.0.0.1:1"})


class Failure:
    """A KafkaError, as a delivery report has it."""

    def __init__(self, code: int, *, fatal: bool = False) -> None:
        self._code, self._fatal = code, fatal

    def code(self) -> int:
        return self._code

    def fatal(self) -> bool:
        return self._fatal

    def str(self) -> str:
        return f"failure {self._code}"


class PlayedProducer:
    """Keeps records until the test answers for the oldest."""

    def __init__(self) -> None:
        self.full = False
        self.refuses = 0
        self.waiting: list[Callable[[Failure | None, None], None]] = []
        self.answers: list[Failure | None] = []

    def produce(self, *_record: Any, on_delivery: Callable[[Failure | None, None], None]) -> None:
        if self.full:
            raise BufferError("full")
        if self.refuses:
            raise KafkaException(KafkaError(self.refuses))
        self.waiting.append(on_delivery)

    def poll(self, _timeout: float) -> None:
        while self.answers:
            self.waiting.pop(0)(self.answers.pop(0), None)


class Writer(StateWriter):
    """`made` are its producers, the present one last."""

    made: list[PlayedProducer]

    def _make(self) -> Any:
        self.__dict__.setdefault("made", []).append(PlayedProducer())
        return self.made[-1]

    def begin(self) -> "asyncio.Future[None]":
        return self.write("replicator.us-eu.state", 3, LinkKey("us-eu"), LinkRecord(1, 0, 8))


def run(work: Callable[[Writer], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        await asyncio.wait_for(work(Writer(EU, 1000)), 10)

    asyncio.run(main())


async def error_of(done: "asyncio.Future[None]") -> ReplicatorError:
    with pytest.raises(ReplicatorError) as caught:
        await done
    return caught.value


def test_an_acknowledged_record_is_done() -> None:
    async def work(writer: Writer) -> None:
        first, second = writer.begin(), writer.begin()
        writer.made[0].answers = [None]
        await first
        assert not second.done()
        writer.made[0].answers = [None]
        await second

    run(work)


def test_a_failure_says_whose_it_is() -> None:
    async def work(writer: Writer) -> None:
        refused, timed_out = writer.begin(), writer.begin()
        writer.made[0].answers = [Failure(29), Failure(-192)]
        error = await error_of(refused)
        assert isinstance(error, ClusterError)
        assert str(error).startswith("eu replicator.us-eu.state-3: ")
        assert isinstance(await error_of(timed_out), Unreachable)

    run(work)


def test_a_queue_that_is_full_fails_at_once() -> None:
    async def work(writer: Writer) -> None:
        writer.made[0].full = True
        assert "full" in str(await error_of(writer.begin()))

    run(work)


def test_what_is_refused_before_it_is_sent_says_whose_it_is() -> None:
    async def work(writer: Writer) -> None:
        writer.made[0].refuses = KafkaError.MSG_SIZE_TOO_LARGE
        error = await error_of(writer.begin())
        assert isinstance(error, ClusterError)
        assert error.code == 10
        assert len(writer.made) == 1

    run(work)


def test_a_producer_that_takes_nothing_any_more_is_replaced() -> None:
    """Its fatal error may have come while nothing was outstanding that could have failed."""

    async def work(writer: Writer) -> None:
        writer.made[0].refuses = KafkaError._FATAL
        assert isinstance(await error_of(writer.begin()), Unreachable)
        after = writer.begin()
        writer.made[1].answers = [None]
        await after

    run(work)


def test_after_a_fatal_error_nobody_waits_for_ever() -> None:
    """The producer answers for nothing any more: all that it had has failed, and a new one takes over."""

    async def work(writer: Writer) -> None:
        outstanding = [writer.begin() for _ in range(3)]
        writer.made[0].answers = [Failure(47, fatal=True)]
        for done in outstanding:
            await error_of(done)
        assert len(writer.made) == 2
        after = writer.begin()
        writer.made[1].answers = [None]
        await after

    run(work)


def test_closing_waits_for_what_is_outstanding_but_not_for_ever() -> None:
    async def work(writer: Writer) -> None:
        first, second = writer.begin(), writer.begin()
        writer.made[0].answers = [None]
        await writer.close(0.05)
        assert first.done()
        assert not second.done()

    run(work)
