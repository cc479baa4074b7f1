"""Producers whose transactions stay open between two calls, so that those of several can be interleaved in one log.

Two kinds, of the two families of clients: librdkafka's, and Java's, through the JVM of a witness. What is aborted is in
the log before: a client that has not sent its records yet would only forget them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from confluent_kafka import KafkaError, KafkaException, Producer

from tests.harness.java import JavaWitness, as_json
from tests.harness.records import NewRecord

_TIMEOUT_S = 30
# Nobody but the test ends a transaction; brokers allow a quarter of an hour.
_OPEN_MS = 600_000


class Writer(Protocol):
    """Writes to one topic. `send` begins a transaction where none is open, and returns when all is in the log."""

    is_open: bool

    def send(self, records: Sequence[NewRecord]) -> None: ...

    def commit(self) -> None: ...

    def abort(self) -> None: ...

    def close(self) -> None:
        """Leaves an open transaction open, as a program does that is killed."""


class LibrdkafkaWriter:
    """Raises KafkaException."""

    def __init__(self, bootstrap: str, topic: str, name: str, config: Mapping[str, Any] | None = None) -> None:
        """`name` is the transactional id; `config` are further properties of the producer."""
        self.is_open = False
        self._topic = topic
        settings = {"bootstrap.servers": bootstrap, "transactional.id": name, "transaction.timeout.ms": _OPEN_MS}
        self._producer = Producer({**settings, "linger.ms": 5, "log_level": 0, **(config or {})})
        self._producer.init_transactions(_TIMEOUT_S)

    def send(self, records: Sequence[NewRecord]) -> None:
        if not self.is_open:
            self._producer.begin_transaction()
            self.is_open = True
        refused: list[KafkaError] = []
        for record in records:
            self._producer.produce(
                self._topic,
                record.value,
                record.key,
                record.partition,
                on_delivery=lambda error, _message: refused.append(error) if error else None,
                headers=list(record.headers),
                timestamp=record.timestamp or 0,
            )
        unsent = self._producer.flush(_TIMEOUT_S)
        if refused or unsent:
            raise KafkaException(refused[0] if refused else KafkaError(KafkaError._TIMED_OUT))

    def commit(self) -> None:
        self._producer.commit_transaction(_TIMEOUT_S)
        self.is_open = False

    def abort(self) -> None:
        self._producer.abort_transaction(_TIMEOUT_S)
        self.is_open = False

    def close(self) -> None:
        del self._producer


class JavaWriter:
    """Raises JavaWitnessError. All of one witness are asked from one thread."""

    def __init__(
        self, java: JavaWitness, bootstrap: str, topic: str, name: str, config: Mapping[str, str] | None = None
    ) -> None:
        """`name` is the transactional id; `config` are further properties of the producer."""
        self.is_open = False
        self._java = java
        settings = {"transactional.id": name, "transaction.timeout.ms": str(_OPEN_MS), **(config or {})}
        self._command = {"bootstrap": bootstrap, "topic": topic, "config": settings}

    def send(self, records: Sequence[NewRecord]) -> None:
        if not self.is_open:
            self._do("begin")
            self.is_open = True
        self._do("send", records=as_json(records))

    def commit(self) -> None:
        self._do("commit")
        self.is_open = False

    def abort(self) -> None:
        self._do("abort")
        self.is_open = False

    def close(self) -> None:
        self._do("close")

    def _do(self, step: str, **arguments: Any) -> None:
        self._java.ask("transaction", {**self._command, "step": step, **arguments}, [])
