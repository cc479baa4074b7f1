"""Dead letters: what is in their headers, and back again; what becomes of those that are refused; what a replay is.

The producer is played. What brokers make of it all is in `tests/broker/test_dlq.py`.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from replicator.config.load import from_data
from replicator.config.models import Cluster, Link
from replicator.control.dead_letters import Replays, Wanted, tally
from replicator.control.replay import Edit, edited, obstacle
from replicator.data import dead_letters
from replicator.data.dead_letters import (
    CUT_BYTES,
    IDENTITY,
    DeadLetter,
    DeadLetters,
    Headers,
    Placed,
    letter_headers,
    read_letter,
    spell_letter,
)
from replicator.data.replays import ReplayKey, ReplayRecord, is_replay, place_key, replay_header, with_provenance
from replicator.errors import ClusterError, NetworkError, ProtocolError, Where
from replicator.state.records import encode

EU = Cluster("eu", (("127.0.0.1", 1),), {"bootstrap.servers": "127.0.0.1:1"})
AT = Where("eu", "us-eu.dlq", 0, 17)
LETTER = DeadLetter(
    topic="orders",
    partition=3,
    offset=12,
    timestamp_ms=1_795_505_937_250,
    key=b"k",
    value=b"v",
    headers=((b"trace", b"1"), (b"trace", None)),
    reason="the target refused the record",
    error_code=32,
    error_text="Timestamp 1 of message with offset 0 is out of range",
)


def make_link(**dead_letter_options: Any) -> Link:
    cluster = {"bootstrap.servers": "127.0.0.1:1"}
    link = {"source": "us", "target": "eu", "rename": {"prefix": "us."}, "dead_letters": dead_letter_options}
    link["topics"] = {"include": ["orders"]}
    return from_data({"clusters": {"us": cluster, "eu": cluster}, "links": [link]}).links[0]


LINK = make_link()


def placed(letter: DeadLetter = LETTER, at: Where = AT, at_ms: int = 1000) -> Placed:
    return read_letter(at, letter.key, letter.value, letter_headers(letter, LINK, 0, at_ms))


# ---- headers ----


def test_headers_of_a_letter() -> None:
    """Connect's as its DeadLetterQueueReporter writes them (all values are text), then ours."""
    headers = letter_headers(LETTER, LINK, 2, 1000)
    assert headers[:2] == [("trace", b"1"), ("trace", None)]
    assert dict(headers[2:]) == {
        "__connect.errors.topic": b"orders",
        "__connect.errors.partition": b"3",
        "__connect.errors.offset": b"12",
        "__connect.errors.connector.name": b"us-eu",
        "__connect.errors.task.id": b"2",
        "__connect.errors.stage": b"KAFKA_PRODUCE",
        "__connect.errors.class.name": b"replicator.data.dead_letters",
        "__connect.errors.exception.class.name": b"org.apache.kafka.common.errors.InvalidTimestampException",
        "__connect.errors.exception.message": LETTER.error_text.encode(),
        "replicator.dlq.link": b"us-eu",
        "replicator.dlq.source": b"us",
        "replicator.dlq.topic": b"orders",
        "replicator.dlq.partition": b"3",
        "replicator.dlq.offset": b"12",
        "replicator.dlq.timestamp": b"1795505937250",
        "replicator.dlq.target.topic": b"us.orders",
        "replicator.dlq.reason": b"the target refused the record",
        "replicator.dlq.error.code": b"32",
        "replicator.dlq.error.name": b"INVALID_TIMESTAMP",
        "replicator.dlq.error.text": LETTER.error_text.encode(),
        "replicator.dlq.attempt": b"1",
        "replicator.dlq.at": b"1000",
        "replicator.dlq.headers": b"2",
    }


@pytest.mark.parametrize(
    ("letter", "stage", "message"),
    [
        (replace(LETTER, error_code=0, error_text=""), b"TRANSFORMATION", b"the target refused the record"),
        (replace(LETTER, raw=True, error_code=2), b"KAFKA_CONSUME", LETTER.error_text.encode()),
    ],
)
def test_the_stage_that_connect_would_name(letter: DeadLetter, stage: bytes, message: bytes) -> None:
    headers = dict(letter_headers(letter, LINK, 0, 0))
    assert headers["__connect.errors.stage"] == stage
    assert headers["__connect.errors.exception.message"] == message
    assert ("__connect.errors.exception.class.name" in headers) == bool(letter.error_code)


def test_connects_headers_can_be_left_out() -> None:
    headers = letter_headers(LETTER, make_link(context_headers=False), 0, 0)
    assert not [name for name, _ in headers if name.startswith("__connect")]
    assert read_letter(AT, b"k", b"v", headers).letter == LETTER


names = st.sampled_from(["a", "", "replicator.dlq.offset", "replicator.dlq.headers", "__connect.errors.topic", "ü"])
letters = st.builds(
    DeadLetter,
    topic=st.sampled_from(["orders", "a.b-c"]),
    partition=st.integers(0, 2**31 - 1),
    offset=st.integers(0, 2**63 - 1),
    timestamp_ms=st.integers(-1, 2**62),
    key=st.none() | st.binary(max_size=9),
    value=st.none() | st.binary(max_size=9),
    headers=st.lists(st.tuples(names.map(str.encode), st.none() | st.binary(max_size=9)), max_size=6).map(tuple),
    reason=st.text(max_size=9).filter(lambda text: max(text, default="") < "\ud800"),
    error_code=st.integers(-1, 140),
    error_text=st.sampled_from(["", "no"]),
    attempt=st.integers(1, 9),
    raw=st.booleans(),
    topic_id=st.sampled_from(["", "AAAAAAAAAAAAAAAAAAAAAQ"]),
)


@given(letters, st.integers(0, 99))
def test_a_letter_read_back_is_the_one_sent(letter: DeadLetter, task: int) -> None:
    """Whatever the record's own headers are called."""
    found = read_letter(AT, letter.key, letter.value, letter_headers(letter, LINK, task, 77))
    assert found.letter == letter
    assert (found.link, found.source, found.target_topic, found.at_ms) == ("us-eu", "us", f"us.{letter.topic}", 77)
    assert not found.truncated


@given(letters, letters, st.booleans())
def test_identity_is_the_record_and_nothing_else(one: DeadLetter, other: DeadLetter, same: bool) -> None:
    if same:
        kept = {name: getattr(one, name) for name in ("topic", "partition", "offset", "topic_id", "raw")}
        other = replace(other, **kept)
    first, second = (dict(letter_headers(each, LINK, task, task)) for task, each in enumerate((one, other)))
    equal = all(first.get(name) == second.get(name) for name in IDENTITY)
    assert equal == (placed(one).identity == placed(other).identity)
    assert equal or not same


@pytest.mark.parametrize(
    "change",
    [
        {"replicator.dlq.link": None},
        {"replicator.dlq.offset": b"twelve"},
        {"replicator.dlq.offset": b"1" * 50},
        {"replicator.dlq.offset": "\N{ARABIC-INDIC DIGIT ONE}".encode()},
        {"replicator.dlq.offset": b""},
        {"replicator.dlq.headers": b"400"},
        {"replicator.dlq.headers": b"-1"},
        {"replicator.dlq.partition": b"-5"},
    ],
)
def test_what_is_no_letter_of_ours_is_said_to_be_none(change: dict[str, bytes | None]) -> None:
    headers = [(name, change.get(name, value)) for name, value in letter_headers(LETTER, LINK, 0, 0)]
    with pytest.raises(ProtocolError, match=r"eu us-eu\.dlq-0 offset 17: "):
        read_letter(AT, None, None, headers)
    with pytest.raises(ProtocolError):
        read_letter(AT, None, None, [])


def test_names_that_are_no_text_are_as_java_reads_them() -> None:
    letter = replace(LETTER, headers=((b"\xff\x00a", b"x"),))
    assert letter_headers(letter, LINK, 0, 0)[0] == ("\N{REPLACEMENT CHARACTER}" * 2 + "a", b"x")


def test_a_line_of_a_letter() -> None:
    letter = replace(LETTER, key=b"\xff\x00", value=b"x" * 5000, error_text="no\nway")
    line = spell_letter(letter)
    assert line.startswith(
        "record orders-3 offset 12: the target refused the record: no?way; key b'\\xff\\x00'; value xx"
    )
    assert "xxx... (5,000 bytes); header trace 1" in line


# ---- sending ----


class Failure:
    def __init__(self, code: int) -> None:
        self._code = code

    def code(self) -> int:
        return self._code

    def fatal(self) -> bool:
        return False

    def str(self) -> str:
        return f"failure {self._code}"


class PlayedProducer:
    """Answers each record with what `verdict` says of it."""

    def __init__(self) -> None:
        self.written: list[tuple[bytes | None, bytes | None, Headers, int]] = []
        self.verdict: Callable[[bytes | None, int], int] = lambda _value, _timestamp: 0
        self._waiting: list[Callable[[], None]] = []

    def produce(self, topic: str, value: bytes | None, key: bytes | None, partition: int, **more: Any) -> None:
        assert (topic, partition) == ("us-eu.dlq", -1)
        self.written.append((key, value, more["headers"], more["timestamp"]))
        code = self.verdict(value, more["timestamp"])
        self._waiting.append(lambda: more["on_delivery"](Failure(code) if code else None, None))

    def poll(self, _timeout: float) -> None:
        answers, self._waiting = self._waiting, []
        for answer in answers:
            answer()


class Letters(DeadLetters):
    made: PlayedProducer

    def _make(self) -> Any:
        self.made = PlayedProducer()
        return self.made


def run(work: Callable[[Letters], Coroutine[Any, Any, None]], link: Link = LINK) -> None:
    async def main() -> None:
        await asyncio.wait_for(work(Letters(link, EU, 1000)), 10)

    asyncio.run(main())


def test_letters_keep_their_order_and_are_done_when_acknowledged() -> None:
    async def work(sender: Letters) -> None:
        sent = [sender.send(replace(LETTER, offset=offset, value=b"%d" % offset)) for offset in range(9)]
        assert not any(done.done() for done in sent)
        await asyncio.gather(*sent)
        assert [value for _, value, *_ in sender.made.written] == [b"%d" % offset for offset in range(9)]
        assert {timestamp for *_, timestamp in sender.made.written} == {LETTER.timestamp_ms}
        await sender.close()

    run(work)


def test_a_letter_that_is_too_large_is_cut_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    value, key = b"v" * (CUT_BYTES + 1), b"k" * CUT_BYTES

    async def work(sender: Letters) -> None:
        sender.made.verdict = lambda value, _: 10 if len(value or b"") > CUT_BYTES else 0
        await sender.send(replace(LETTER, key=key, value=value))
        found_key, found_value, headers, _ = sender.made.written[-1]
        found = read_letter(AT, found_key, found_value, headers)
        assert found.truncated
        assert found.sizes == (len(key), len(value))
        assert found.letter == replace(LETTER, key=key, value=value[:CUT_BYTES])
        assert "the dead letter of orders-3 offset 12 is written again, cut" in caplog.text

    run(work)


def test_headers_that_are_too_large_are_left_out() -> None:
    async def work(sender: Letters) -> None:
        big = replace(LETTER, headers=((b"h", b"x" * CUT_BYTES),))
        sender.made.verdict = lambda *_: 10 if len(sender.made.written) == 1 else 0
        await sender.send(big)
        key, value, headers, _ = sender.made.written[-1]
        found = read_letter(AT, key, value, headers)
        assert (found.letter, found.truncated) == (replace(big, headers=()), True)

    run(work)


def test_a_letter_whose_timestamp_is_refused_gets_that_of_now_and_keeps_its_own() -> None:
    async def work(sender: Letters) -> None:
        sender.made.verdict = lambda _, timestamp: 32 if timestamp else 0
        await sender.send(LETTER)
        key, value, headers, timestamp = sender.made.written[-1]
        assert timestamp == 0  # librdkafka's word for now
        assert read_letter(AT, key, value, headers).letter == LETTER

    run(work)


@pytest.mark.parametrize(
    ("code", "tries", "kind"), [(10, 3, ClusterError), (29, 1, ClusterError), (-192, 1, NetworkError)]
)
def test_a_letter_that_is_refused_fails(code: int, tries: int, kind: type[Exception]) -> None:
    async def work(sender: Letters) -> None:
        sender.made.verdict = lambda *_: code
        with pytest.raises(kind, match=r"eu us-eu\.dlq"):
            await sender.send(LETTER)
        assert len(sender.made.written) == tries

    run(work)


def test_closing_waits_for_letters_that_are_written_again() -> None:
    async def work(sender: Letters) -> None:
        sender.made.verdict = lambda _, timestamp: 32 if timestamp else 0
        done = sender.send(LETTER)
        await sender.close()
        assert done.done()
        await done

    run(work)


@pytest.mark.parametrize(
    ("words", "parts"), [("off", []), ("reasons", ["orders-3"]), ("records", ["orders-3", "key k"])]
)
def test_a_line_in_the_log_where_the_link_wants_one(
    words: str, parts: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    async def work(sender: Letters) -> None:
        await sender.send(LETTER)

    with caplog.at_level(logging.WARNING):
        run(work, make_link(log=words))
    assert ("dead letter" in caplog.text) == bool(parts)
    assert all(part in caplog.text for part in parts)
    assert ("key k" in caplog.text) == (words == "records")


def test_the_batches_of_small_letters_stay_below_what_topics_take() -> None:
    """A batch is refused as one: letters are cut for their own size, not for their neighbours'."""
    settings = DeadLetters(LINK, EU)._settings
    assert settings["batch.size"] < 1_048_588  # Kafka's default of max.message.bytes
    assert settings["message.max.bytes"] == dead_letters.LETTER_BYTES_MAX


# ---- replays ----


def test_the_header_of_a_replay() -> None:
    name, value = replay_header("us-eu", ReplayKey("us-eu.dlq", 0, 17))
    assert (name, value) == ("replicator.replayed", b"us-eu:us-eu.dlq:0:17")
    headers: list[tuple[Any, Any]] = [(b"a", None), (b"replicator.replayed", None), (memoryview(b"b"), b"us-eu:")]
    assert not is_replay(headers, "us-eu")
    assert is_replay([*headers, (name.encode(), value)], "us-eu")
    assert is_replay([(memoryview(name.encode()), memoryview(value)), *headers], "us-eu")
    for other in ("us-e", "us-eu2", "", "us-eu:us-eu.dlq"):
        assert not is_replay([(name.encode(), value)], other) or other == "us-eu:us-eu.dlq"


def test_where_a_replayed_record_is_from() -> None:
    """As the step `provenance` of a recipe has it; see `replicator.config.recipes`."""
    own = [("a", b"1"), ("replicator.source.topic", b"kept"), ("replicator.hops", b"first")]
    assert with_provenance(own, LETTER, "", True) == own
    assert with_provenance(own[:1], LETTER, "US", False) == [("a", b"1"), ("replicator.hops", b"US")]
    assert with_provenance([("replicator.hops", None)], LETTER, "US", False) == [("replicator.hops", b"US")]
    assert with_provenance(own, LETTER, "US", True) == [
        ("a", b"1"),
        ("replicator.source.topic", b"kept"),
        ("replicator.hops", b"first,US"),
        ("replicator.source.cluster", b"US"),
        ("replicator.source.partition", b"3"),
        ("replicator.source.offset", b"12"),
    ]


def test_what_marks_say() -> None:
    replays = Replays(EU, "us-eu")
    mine, marks = placed(), {}
    mark = encode(ReplayRecord(mine.identity, "us.orders", 3, 1, "host 1"))
    for key, value in [
        (encode(place_key(AT)), mark),
        (encode(ReplayKey("us-eu.dlq", 0, 18)), encode(ReplayRecord("another", "us.orders", 3, 1, "host 1"))),
        (encode(ReplayKey("us-eu.dlq", 0, 18)), None),
        (b"no json", mark),
        (encode(place_key(AT)), b"{}"),
        (encode(place_key(AT)), mark.replace(b'"version":1', b'"version":2')),
    ]:
        replays._take(marks, key, value)
    assert (replays.damaged, list(marks)) == (3, [place_key(AT)])


def test_a_place_that_holds_another_letter_by_now_was_not_replayed() -> None:
    """The dead-letter topic was deleted and made anew, or so was the source topic."""
    replays = Replays(EU, "us-eu")
    replays.records = {placed().identity: place_key(AT)}
    assert replays.has(placed(at=AT._replace(offset=99)))
    assert not replays.has(placed(replace(LETTER, offset=13)))
    assert not replays.has(placed(replace(LETTER, topic_id="AAAAAAAAAAAAAAAAAAAAAQ")))


def test_edits() -> None:
    headers = [("a", b"1"), ("b", None), ("a", b"2"), ("c", b"3")]
    assert edited(headers, Edit()) == headers
    edit = Edit(drop_headers=("b", "none"), set_headers=(("a", b"9"), ("d", b"")))
    assert edited(headers, edit) == [("c", b"3"), ("a", b"9"), ("d", b"")]


def test_what_cannot_be_replayed_says_why() -> None:
    assert obstacle(placed(), Edit()) == ""
    assert "a whole batch" in obstacle(placed(replace(LETTER, raw=True)), Edit())
    long = replace(LETTER, value=b"v" * (CUT_BYTES + 1))
    shorter, headers = dead_letters.cut(long, letter_headers(long, LINK, 0, 0))
    found = read_letter(AT, shorter.key, shorter.value, headers)
    assert obstacle(found, Edit()) == (
        "its value was cut; the whole record was at us orders-3 offset 12: give it with --value-file"
    )
    assert obstacle(found, Edit(value=b"whole")) == ""


# ---- choosing and counting ----


@pytest.mark.parametrize(
    ("wanted", "included"),
    [
        (Wanted(), True),
        (Wanted(topics=("ord.*", "x")), True),
        (Wanted(topics=("ord",)), False),
        (Wanted(partition=3, offset=12), True),
        (Wanted(partition=0), False),
        (Wanted(offset=0), False),
        (Wanted(reasons=("the target refused.*",)), True),
        (Wanted(reasons=("refused",)), False),
        (Wanted(letters=((1, 1), (0, 17))), True),
        (Wanted(letters=((17, 0),)), False),
    ],
)
def test_which_letters(wanted: Wanted, included: bool) -> None:
    assert wanted.includes(placed()) == included


def test_counts() -> None:
    replays = Replays(EU, "us-eu")
    replays.records = {placed().identity: place_key(AT)}
    other = replace(LETTER, topic="clicks")
    found = [placed(LETTER, AT, 50), placed(other, AT, 9), placed(replace(LETTER, offset=13), AT, 40)]
    rows = [(row.topic, row.letters, row.replayed, row.first_ms, row.last_ms) for row in tally(iter(found), replays)]
    assert rows == [("clicks", 1, 0, 9, 9), ("orders", 2, 1, 40, 50)]
