"""Dead letters: records that a link could not copy, written whole to a topic of their own before the lane passes them.

A dead letter has the record's own key, value, headers and timestamp. Behind the record's headers come Kafka Connect's
context headers, under its names and as text as Connect writes them, so tools made for those can read ours; behind them
what only we know. A name may stand among the record's own headers, too: the last one of a name is ours, and
`replicator.dlq.headers` says how many of the first ones are the record's.

    replicator.dlq.link source topic topic.id partition offset timestamp   which record it was; `raw`: which batch
    replicator.dlq.target.topic reason error.code error.name error.text attempt at   what became of it, and when (ms)
    replicator.dlq.truncated key.bytes value.bytes   the topic took no record of its size, see `DeadLetters`

The same record may be diverted twice, by a worker that was killed before it had passed it. IDENTITY are the headers
that are the same then.
"""

import asyncio
import logging
import re
import time
from collections.abc import Iterable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from replicator.config.models import Cluster, Link
from replicator.errors import ClusterError, ProtocolError, Where, kafka_error
from replicator.state.writer import RecordWriter

log = logging.getLogger("replicator")

OURS = "replicator.dlq."
CONNECT = "__connect.errors."
IDENTITY = tuple(OURS + name for name in ("link", "source", "topic", "topic.id", "partition", "offset", "raw"))

# A request may have 100 MiB by default (socket.request.max.bytes), so this is the largest record that brokers take
# without being told; the topic that we make takes it.
LETTER_BYTES_MAX = 96 << 20
CUT_BYTES = 64 << 10  # of the key, of the value, and of all headers, in a letter that was too large for its topic
TEXT_CHARACTERS_MAX = 2_000
TRIES_MAX = 3  # as it is, then without what the topic refuses: its size, its timestamp

_NUMBER = re.compile(r"-?[0-9]{1,19}")
_TOO_LARGE = frozenset({10, 18})
_INVALID_TIMESTAMP = 32
_NOW = 0  # to librdkafka, as a timestamp

# Kafka's own names of the stages and exceptions, as Connect would report them.
_CONSUME, _TRANSFORM, _PRODUCE = "KAFKA_CONSUME", "TRANSFORMATION", "KAFKA_PRODUCE"
_EXCEPTIONS = {
    -1: "org.apache.kafka.common.errors.UnknownServerException",
    2: "org.apache.kafka.common.errors.CorruptRecordException",
    10: "org.apache.kafka.common.errors.RecordTooLargeException",
    18: "org.apache.kafka.common.errors.RecordBatchTooLargeException",
    32: "org.apache.kafka.common.errors.InvalidTimestampException",
    76: "org.apache.kafka.common.errors.UnsupportedCompressionTypeException",
    87: "org.apache.kafka.common.InvalidRecordException",
}

RawHeaders = tuple[tuple[bytes, bytes | None], ...]
Headers = Sequence[tuple[str, bytes | None]]  # as confluent-kafka gives and takes them


class DeadLetter(Struct, frozen=True):
    """A record of the source that is not copied, and why. `raw`: it is a batch that cannot be opened; its bytes are the
    value, its base offset the offset."""

    topic: str  # of the source, as partition and offset are
    partition: int
    offset: int
    timestamp_ms: int  # -1: it has none
    key: bytes | None
    value: bytes | None
    headers: RawHeaders
    reason: str
    error_code: int = 0  # a broker's; 0: no broker was asked
    error_text: str = ""  # in its words
    attempt: int = 1
    raw: bool = False
    topic_id: str = ""  # of the source topic, as `replicator.state.records.spell_topic_id` has it


class Placed(Struct, frozen=True):
    """A dead letter as it stands in its topic. `headers` of the letter are those of the record."""

    at: Where
    letter: DeadLetter
    link: str
    source: str  # cluster alias
    target_topic: str
    at_ms: int  # when it was diverted
    truncated: bool = False
    sizes: tuple[int, int] = (0, 0)  # of key and value before they were cut

    @property
    def identity(self) -> str:
        """Equal for two letters of one record."""
        return identity(self.source, self.letter)


def identity(source: str, letter: DeadLetter) -> str:
    raw = " raw" if letter.raw else ""
    return f"{source} {letter.topic} {letter.topic_id} {letter.partition} {letter.offset}{raw}"


class DeadLetters(RecordWriter):
    """Of one link, for one worker (`task`, a number), to the link's topic on `cluster`, which must exist: see
    `replicator.control.dead_letters.ensure_dead_letter_topic`. Use from one event loop only.

    A letter is never lost without a word. One that is too large for its topic, or whose timestamp the topic refuses,
    is written again: cut to CUT_BYTES of key, value and headers each, with `replicator.dlq.truncated`, or with the
    time of now; the sizes and the record's own timestamp are in the headers, and the whole record is still where the
    headers say, on the source. The topic that we make ourselves takes whatever a broker can be sent. What is refused
    even so fails, and the lane must not pass the record.
    """

    def __init__(self, link: Link, cluster: Cluster, request_timeout_ms: int = 30_000, task: int = 0) -> None:
        settings: dict[str, str | int | float | bool] = {
            "message.max.bytes": LETTER_BYTES_MAX,
            "queue.buffering.max.kbytes": 2 * LETTER_BYTES_MAX >> 10,
            # A batch is refused as one for its size: small letters must not be for their neighbours'.
            "batch.size": 256 << 10,
            "partitioner": "murmur2_random",  # as Java's
        }
        super().__init__(cluster, request_timeout_ms, settings)
        self._link = link
        self._where = Where(cluster.alias, link.dead_letter_topic)
        self._task = task
        self._letters: set[asyncio.Future[None]] = set()

    def send(self, letter: DeadLetter) -> "asyncio.Future[None]":
        """Done once the letter is acknowledged; letters that are written as they are keep the order of the calls.

        Fails with ClusterError or NetworkError, also when QUEUE_MAX letters wait already: then it is not certain to be
        there, and is to be sent again.
        """
        self._tell(letter)
        headers = letter_headers(letter, self._link, self._task, time.time_ns() // 1_000_000)
        first = self._write(letter, headers, letter.timestamp_ms)
        done = asyncio.ensure_future(self._see_through(letter, headers, first))
        self._letters.add(done)
        done.add_done_callback(self._letters.discard)
        return done

    def _write(self, letter: DeadLetter, headers: Headers, timestamp_ms: int) -> "asyncio.Future[None]":
        return self.produce(
            self._where, letter.key, letter.value, headers=list(headers), timestamp=max(timestamp_ms, _NOW)
        )

    def _tell(self, letter: DeadLetter) -> None:
        """A line in the log, where the link asks for it."""
        words = self._link.dead_letters.log
        if words != "off":
            record = letter if words == "records" else replace(letter, key=None, value=None, headers=())
            log.warning("link %s: dead letter: %s", self._link.name, spell_letter(record))

    async def _see_through(self, letter: DeadLetter, headers: Headers, written: "asyncio.Future[None]") -> None:
        timestamp_ms = letter.timestamp_ms
        for tries_left in reversed(range(TRIES_MAX)):
            try:
                await written
                return
            except ClusterError as error:
                if not tries_left:
                    raise
                if error.code in _TOO_LARGE:
                    letter, headers = cut(letter, headers)
                elif error.code == _INVALID_TIMESTAMP:
                    timestamp_ms = _NOW
                else:
                    raise
                what = f"link {self._link.name}: the dead letter of {letter.topic}-{letter.partition} offset"
                log.warning("%s %d is written again, cut or with another timestamp: %s", what, letter.offset, error)
            written = self._write(letter, headers, timestamp_ms)

    async def close(self, timeout_s: float = 5) -> None:
        """Waits for what is outstanding, for so long."""
        if self._letters:
            await asyncio.wait(set(self._letters), timeout=timeout_s)
        await super().close(0)


# ---- what is in the headers ----


def letter_headers(letter: DeadLetter, link: Link, task: int, at_ms: int) -> list[tuple[str, bytes | None]]:
    """All headers of a dead letter: the record's, Connect's, ours."""
    headers: list[tuple[str, bytes | None]] = [(header_name(name), value) for name, value in letter.headers]
    facts = [*(_context(letter, link, task) if link.dead_letters.context_headers else ()), *_facts(letter, link, at_ms)]
    return headers + [(name, str(value).encode("utf-8", "replace")) for name, value in facts if value != ""]


def _context(letter: DeadLetter, link: Link, task: int) -> Iterable[tuple[str, str | int]]:
    """What Connect would say; an empty text has nothing to say."""
    yield CONNECT + "topic", letter.topic
    yield CONNECT + "partition", letter.partition
    yield CONNECT + "offset", letter.offset
    yield CONNECT + "connector.name", link.name
    yield CONNECT + "task.id", task
    yield CONNECT + "stage", _CONSUME if letter.raw else _PRODUCE if letter.error_code else _TRANSFORM
    yield CONNECT + "class.name", __name__
    yield CONNECT + "exception.class.name", _EXCEPTIONS.get(letter.error_code, "") if letter.error_code else ""
    yield CONNECT + "exception.message", (letter.error_text or letter.reason)[:TEXT_CHARACTERS_MAX]


def _facts(letter: DeadLetter, link: Link, at_ms: int) -> Iterable[tuple[str, str | int]]:
    yield OURS + "link", link.name
    yield OURS + "source", link.source
    yield OURS + "topic", letter.topic
    yield OURS + "topic.id", letter.topic_id
    yield OURS + "partition", letter.partition
    yield OURS + "offset", letter.offset
    yield OURS + "timestamp", letter.timestamp_ms
    yield OURS + "target.topic", link.target_topic(letter.topic)
    yield OURS + "reason", letter.reason[:TEXT_CHARACTERS_MAX]
    if letter.error_code:
        yield OURS + "error.code", letter.error_code
        yield OURS + "error.name", kafka_error(letter.error_code).name
    yield OURS + "error.text", letter.error_text[:TEXT_CHARACTERS_MAX]
    yield OURS + "attempt", letter.attempt
    yield OURS + "at", at_ms
    yield OURS + "raw", "true" if letter.raw else ""
    yield OURS + "headers", len(letter.headers)


def header_name(raw: bytes) -> str:
    """A header's name as Java's clients read it. Ours takes text without NUL only; Kafka demands UTF-8."""
    return raw.decode("utf-8", "replace").replace("\0", "\N{REPLACEMENT CHARACTER}")


def cut(letter: DeadLetter, headers: Headers) -> tuple[DeadLetter, Headers]:
    """The letter with as much of it as any topic takes, and the headers that say so. A small one stays as it is."""
    own, facts = headers[: len(letter.headers)], headers[len(letter.headers) :]
    key, value = letter.key or b"", letter.value or b""
    own_bytes = sum(len(name.encode()) + len(content or b"") for name, content in own)
    if max(len(key), len(value), own_bytes) <= CUT_BYTES:
        return letter, headers
    if own_bytes > CUT_BYTES:
        own = ()
    shorter = replace(
        letter,
        key=None if letter.key is None else key[:CUT_BYTES],
        value=None if letter.value is None else value[:CUT_BYTES],
        headers=letter.headers[: len(own)],
    )
    kept = [each for each in facts if each[0] != OURS + "headers"]
    sizes = {"truncated": "true", "key.bytes": len(key), "value.bytes": len(value), "headers": len(own)}
    return shorter, [*own, *kept, *((OURS + name, str(size).encode()) for name, size in sizes.items())]


def spell_letter(letter: DeadLetter) -> str:
    """A line: where it is from, why it is here, and as much as fits of what it holds."""
    what = "batch" if letter.raw else "record"
    held = [("key", letter.key), ("value", letter.value)]
    held += [(f"header {header_name(name)}", content) for name, content in letter.headers]
    parts = [f"{name} {spell_content(content)}" for name, content in held if content is not None]
    words = f"{letter.reason}: {letter.error_text}" if letter.error_text else letter.reason
    place = Where(None, letter.topic, letter.partition, letter.offset)
    line = "; ".join([f"{what} {place}: {words}", *parts])
    return "".join(char if char.isprintable() else "?" for char in line)[:TEXT_CHARACTERS_MAX]


def spell_content(content: bytes, characters_max: int = 200) -> str:
    """Text where it is text, else as Python writes bytes; with the size where it does not fit."""
    try:
        text = content[: characters_max + 3].decode()
        shown = text if text.isprintable() else repr(text)[1:-1]
    except UnicodeDecodeError:
        shown = repr(content[:characters_max])
    more = len(content) > characters_max or len(shown) > characters_max
    return f"{shown[:characters_max]}... ({len(content):,} bytes)" if more else shown


def read_letter(at: Where, key: bytes | None, value: bytes | None, headers: Headers) -> Placed:
    """A record of a dead-letter topic, back into what was sent. Raises ProtocolError when it is none of ours."""
    facts = _Facts(at, headers)
    count = facts.number("headers")
    if count > len(headers):
        raise ProtocolError(f"{OURS}headers says {count}, and there are {len(headers)} in all", where=at)
    letter = DeadLetter(
        topic=facts.text("topic"),
        partition=facts.number("partition"),
        offset=facts.number("offset"),
        timestamp_ms=facts.number("timestamp", least=-(2**63)),
        key=key,
        value=value,
        headers=tuple((name.encode(), content) for name, content in headers[:count]),
        reason=facts.text("reason", ""),
        error_code=facts.number("error.code", 0, least=-1),
        error_text=facts.text("error.text", ""),
        attempt=facts.number("attempt", 1),
        raw=facts.text("raw", "") == "true",
        topic_id=facts.text("topic.id", ""),
    )
    return Placed(
        at=at,
        letter=letter,
        link=facts.text("link"),
        source=facts.text("source"),
        target_topic=facts.text("target.topic"),
        at_ms=facts.number("at"),
        truncated=facts.text("truncated", "") == "true",
        sizes=(facts.number("key.bytes", 0), facts.number("value.bytes", 0)),
    )


class _Facts:
    """Our headers by name; of those that occur twice the last, as the first may be the record's own."""

    def __init__(self, at: Where, headers: Headers) -> None:
        self._at = at
        self._facts = {name: value for name, value in headers if name.startswith(OURS)}

    def text(self, name: str, otherwise: str | None = None) -> str:
        value = self._facts.get(OURS + name)
        if value is not None:
            return value.decode("utf-8", "replace")
        if otherwise is None:
            raise ProtocolError(f"no dead letter of a link: there is no header {OURS}{name}", where=self._at)
        return otherwise

    def number(self, name: str, otherwise: int | None = None, least: int = 0) -> int:
        text = self.text(name, None if otherwise is None else str(otherwise))
        if not _NUMBER.fullmatch(text) or int(text) < least:
            raise ProtocolError(f"the header {OURS}{name} is no such number: {text[:100]}", where=self._at)
        return int(text)
