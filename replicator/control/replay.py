"""Dead letters go back to their target topic, each exactly once, whatever is killed and however often it is asked.

A transactional producer writes the record and the mark that it was replayed in one transaction. `begin` comes first of
all: it fences every older replay of the link and ends what that had begun, so that the marks read after it are all
that there will ever be, but for our own. What has a mark is not sent again.

Each letter has a transaction of its own. Were many in one, a single record that is refused again would take the others
with it, and whoever reads uncommitted records would see those twice. As it is, such a reader sees a record twice only
when a replay died between writing and committing it; who reads committed records never does.
"""

import contextlib
import logging
import os
import socket
import time
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Producer
from msgspec import Struct

from replicator.config.models import Cluster, Link
from replicator.control.dead_letters import Replays
from replicator.control.topic_log import TopicLog, spelled
from replicator.data.dead_letters import LETTER_BYTES_MAX, Headers, Placed
from replicator.data.replays import (
    ReplayRecord,
    place_key,
    replay_header,
    replayed_topic,
    transactional_id,
    with_provenance,
)
from replicator.errors import ClusterError, ProtocolError, ReplicatorError, Where
from replicator.state.records import LinkKey, LinkRecord, decode, encode, state_topic

TRANSACTION_S = 30.0  # so long a killed replay may hold up those who read committed records, and no next one ends it
ANSWER_S = 20.0
COMMIT_TRIES = 5
TRIES = 4  # of a letter whose transaction is given up for what an earlier one has left
CLOSE_S = 5.0
POLL_S = 0.05
PRODUCER_FENCED = 90
INVALID_PRODUCER_EPOCH = 47

_FENCED = frozenset({KafkaError._FENCED, PRODUCER_FENCED, INVALID_PRODUCER_EPOCH})
# After a refused record librdkafka has left out a sequence number. It notices with the next record of the partition,
# gives up that transaction, and takes a new epoch, which it would not be given if it had been fenced meanwhile.
_AFTERMATH = frozenset({KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT, KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER})
_NOW = 0  # to librdkafka, as a timestamp


class Edit(Struct, frozen=True):
    """What is changed about a record before it goes back. `key` and `value` replace it, where there is one."""

    drop_headers: tuple[str, ...] = ()
    set_headers: tuple[tuple[str, bytes], ...] = ()  # instead of all of that name, behind the others
    key: bytes | None = None
    value: bytes | None = None
    now: bool = False  # the time of writing, not the record's own


UNCHANGED = Edit()


class Sent(NamedTuple):
    """What became of a letter: `replayed`, `already` (before), `cannot`, or `refused` by the target."""

    placed: Placed
    outcome: str
    problem: str = ""


class Replay:
    """One link's replay. Blocks while it works. Begin it, then `send` what is to be sent, in order; close it."""

    def __init__(self, target: Cluster, link: Link, edit: Edit = UNCHANGED) -> None:
        """Connects to nothing yet. Raises ConfigError for properties that librdkafka does not take."""
        self._target = target
        self._link = link.name
        self._edit = edit
        self._replays = Replays(target, link.name)
        self._has_provenance = link.provenance
        self._source_id = ""
        self._partitions: dict[str, list[int]] = {}  # of the target topics
        self._refusals: list[tuple[str, KafkaError]] = []  # topic, and why it was not delivered there
        settings: dict[str, Any] = {
            "transactional.id": transactional_id(link.name),
            "transaction.timeout.ms": int(TRANSACTION_S * 1000),
            "message.timeout.ms": int(ANSWER_S * 1000),
            "message.max.bytes": LETTER_BYTES_MAX,
            "queue.buffering.max.kbytes": 2 * LETTER_BYTES_MAX >> 10,
            "linger.ms": 0,
            # A topic that was made a moment ago, or is missing, is looked for only so long.
            "topic.metadata.propagation.max.ms": 5_000,
            # That it was fenced is said by us, in a line, and not by librdkafka from inside `flush`.
            "error_cb": lambda _error: None,
            "logger": _silence(),
        }
        try:
            self._producer = Producer(target.client_properties() | settings)
        except KafkaException as error:
            raise spelled(error.args[0], Where(target.alias)) from None

    def begin(self) -> None:
        """Fences older replays, then reads what was replayed. The topic of marks must exist.

        Raises ClusterError, NetworkError; ProtocolError when it cannot be told what was replayed.
        """
        try:
            self._producer.init_transactions(ANSWER_S)
        except KafkaException as error:
            raise self._spelled(error.args[0]) from None
        self._source_id = self._find_source_id()
        self._replays.read()
        if self._replays.damaged:
            what = f"{self._replays.damaged} marks of {replayed_topic(self._link)} cannot be read"
            where = Where(self._target.alias)
            raise ProtocolError(f"{what}: nobody can tell what was replayed", where=where, hint="see who wrote there")

    def _find_source_id(self) -> str:
        """The source's cluster id, as the link's record has it; empty where there is none."""
        key = encode(LinkKey(self._link))
        with TopicLog(self._target, transactional_id(self._link)) as log:
            values = [message.value() for message in log.read(state_topic(self._link)) if message.key() == key]
        return decode(values[-1], LinkRecord).source_cluster_id if values and isinstance(values[-1], bytes) else ""

    def send(self, placed: Placed) -> Sent:
        """One letter, if it was not replayed yet.

        Raises ClusterError when a newer replay has fenced us, NetworkError: nothing more can be sent then.
        """
        if problem := obstacle(placed, self._edit):
            return Sent(placed, "cannot", problem)
        if self._replays.has(placed):
            return Sent(placed, "already")
        if placed.letter.partition not in self._partitions_of(placed.target_topic):
            # To ask the producer would make the topic, where the broker makes topics by itself.
            where = Where(self._target.alias, placed.target_topic, placed.letter.partition)
            return Sent(placed, "refused", f"{where}: there is no such partition")
        try:
            refusal = self._insist(placed)
        except KafkaException as error:
            raise self._spelled(error.args[0]) from None
        if refusal is not None:
            where = Where(self._target.alias, placed.target_topic, placed.letter.partition)
            return Sent(placed, "refused", str(spelled(refusal, where)))
        self._replays.records[placed.identity] = place_key(placed.at)
        return Sent(placed, "replayed")

    def _partitions_of(self, topic: str) -> list[int]:
        if topic not in self._partitions:
            with TopicLog(self._target, transactional_id(self._link)) as log:
                self._partitions[topic] = log.partitions(topic)
        return self._partitions[topic]

    def _insist(self, placed: Placed) -> KafkaError | None:
        """Returns why it was refused, if it was. Raises KafkaException for what no other letter would survive."""
        for _ in range(TRIES):
            refusal = self._transact(placed)
            if refusal is None or refusal.code() not in _AFTERMATH:
                return refusal
        raise KafkaException(refusal)

    def _transact(self, placed: Placed) -> KafkaError | None:
        """Once. What is refused or given up is undone."""
        self._refusals.clear()
        self._producer.begin_transaction()
        try:
            self._produce(placed)
            self._await_answers()
            if not self._refusals:
                self._commit()
                return None
        except KafkaException as error:
            if not is_abortable(error.args[0]):
                raise
            self._refusals.append((placed.target_topic, error.args[0]))
        for _, refusal in self._refusals:
            if is_final(refusal):
                raise KafkaException(refusal)
        self._producer.abort_transaction(ANSWER_S)
        self._producer.flush(ANSWER_S)  # what was purged is told of now, and not in the next transaction
        causes = [each for each in self._refusals if each[1].code() not in _AFTERMATH] or self._refusals
        topic, refusal = causes[0]
        if refusal.code() not in _AFTERMATH and (topic != placed.target_topic or refusal.code() < 0):
            raise KafkaException(refusal)
        return refusal

    def _produce(self, placed: Placed) -> None:
        letter, key = placed.letter, place_key(placed.at)
        mark = ReplayRecord(placed.identity, placed.target_topic, letter.partition, _now_ms(), _who())
        self._producer.produce(
            placed.target_topic,
            letter.value if self._edit.value is None else self._edit.value,
            letter.key if self._edit.key is None else self._edit.key,
            letter.partition,
            on_delivery=lambda error, _: self._delivered(placed.target_topic, error),
            timestamp=_NOW if self._edit.now else max(letter.timestamp_ms, _NOW),
            headers=[*self._headers(placed), replay_header(self._link, key)],
        )
        marks = replayed_topic(self._link)
        self._producer.produce(
            marks, encode(mark), encode(key), on_delivery=lambda error, _: self._delivered(marks, error)
        )

    def _headers(self, placed: Placed) -> Headers:
        headers = edited(record_headers(placed), self._edit)
        return with_provenance(headers, placed.letter, self._source_id, self._has_provenance)

    def _await_answers(self) -> None:
        """Until both are acknowledged or one is refused: the other may wait for ever then."""
        while len(self._producer) and not self._refusals:
            self._producer.poll(POLL_S)

    def _delivered(self, topic: str, error: KafkaError | None) -> None:
        if error is not None:
            self._refusals.append((topic, error))

    def _commit(self) -> None:
        """A commit that is not answered is asked for again: it is the same one."""
        for tries_left in reversed(range(COMMIT_TRIES)):
            try:
                self._producer.commit_transaction(ANSWER_S)
                return
            except KafkaException as error:
                if not error.args[0].retriable() or not tries_left:
                    raise

    def _spelled(self, error: KafkaError) -> ReplicatorError:
        where = Where(self._target.alias)
        if error.code() in _FENCED:
            return ClusterError(
                PRODUCER_FENCED,
                f"another replay of link {self._link} has taken over; what this one had not committed is undone",
                where=where,
                hint="run it again when the other has ended",
            )
        found = spelled(error, where)
        found.hint = found.hint or "run it again: what was replayed is not replayed twice"
        return found

    def close(self) -> None:
        """What is under way is undone; failing that, by the broker in TRANSACTION_S or by the next replay."""
        with contextlib.suppress(KafkaException):  # most often there is nothing to undo
            self._producer.abort_transaction(CLOSE_S)
        self._producer.purge()


def is_final(error: KafkaError) -> bool:
    """Whether this producer will never write anything any more."""
    return error.fatal() or error.code() in _FENCED


def is_abortable(error: KafkaError) -> bool:
    """Whether only the transaction is lost. MSG_SIZE_TOO_LARGE is said before anything is sent, too."""
    return not is_final(error) and (error.txn_requires_abort() or error.code() == KafkaError.MSG_SIZE_TOO_LARGE)


def _silence() -> logging.Logger:
    log = logging.getLogger("replicator.librdkafka")
    log.propagate = False
    log.addHandler(logging.NullHandler())
    return log


def obstacle(placed: Placed, edit: Edit) -> str:
    """Why a letter cannot be replayed as it is, or nothing."""
    letter = placed.letter
    if letter.raw:
        return "it is a whole batch that could not be opened, not a record"
    key_size, value_size = placed.sizes
    cut_value = placed.truncated and value_size > len(letter.value or b"") and edit.value is None
    cut_key = placed.truncated and key_size > len(letter.key or b"") and edit.key is None
    if cut_value or cut_key:
        what = f"its {'value' if cut_value else 'key'} was cut"
        whole = Where(placed.source, letter.topic, letter.partition, letter.offset)
        return f"{what}; the whole record was at {whole}: give it with --{'value' if cut_value else 'key'}-file"
    return ""


def record_headers(placed: Placed) -> Headers:
    return [(name.decode("utf-8", "replace"), value) for name, value in placed.letter.headers]


def edited(headers: Headers, edit: Edit) -> list[tuple[str, bytes | None]]:
    gone = {*edit.drop_headers, *(name for name, _ in edit.set_headers)}
    return [*(each for each in headers if each[0] not in gone), *edit.set_headers]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _who() -> str:
    return f"{socket.gethostname()} {os.getpid()}"
