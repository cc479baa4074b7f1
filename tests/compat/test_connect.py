"""Kafka Connect's properties, obeyed by Kafka Connect's own transforms and by the edits that we make of them."""

import re
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replicator.config.connect import PropertyFault, Translated, translate
from replicator.config.models import Link
from replicator.config.recipes import edit_steps
from tests.harness.java import JavaWitness, JavaWitnessError

pytestmark = pytest.mark.broker

PACKAGE = "org.apache.kafka.connect.transforms."


class Message(NamedTuple):
    topic: str
    value: str | None
    headers: tuple[tuple[str, str | None], ...]


def by_connect(java: JavaWitness, properties: dict[str, str], messages: list[Message]) -> list[Message | None]:
    """Raises JavaWitnessError for what Connect refuses."""
    answers = java.ask("chain", {"properties": properties, "records": messages}, [])
    return [Message(a[0], a[1], tuple((name, text) for name, text in a[2])) if a else None for a in answers]


# ---- ours, slowly: the steps of a recipe as they are described, for the few that Connect has, too ----


def by_us(said: Translated, messages: list[Message]) -> list[Message | None]:
    link = Link("us", "eu", edits=said.edits, rename=said.rename)
    return [_edited(link, message) for message in messages]


def _edited(link: Link, message: Message) -> Message | None:
    headers = message.headers
    for action, *arguments, where in edit_steps(link, message.topic):
        if not _holds(where, message.value, headers):
            continue
        if action == "drop":
            return None
        if action == "header_add":
            name, value = arguments
            headers += ((name.decode(), None if value is None else value.decode()),)
        elif action == "header_drop":
            headers = tuple(header for header in headers if not _named(arguments[0], header[0]))
        else:
            raise AssertionError(action)
    return Message(link.target_topic(message.topic), message.value, headers)


def _named(matcher: bytes | str, name: str) -> bool:
    return name.encode() == matcher if isinstance(matcher, bytes) else bool(re.fullmatch(matcher, name))


def _holds(where: Any, value: str | None, headers: tuple[tuple[str, str | None], ...]) -> bool:
    match where:
        case None:
            return True
        case ("tombstone",):
            return value is None
        case ("not", inner):
            return not _holds(inner, value, headers)
        case ("header", name):
            return any(each.encode() == name for each, _ in headers)
    raise AssertionError(where)


# ---- chains ----

names = st.sampled_from(["a", "b", "a.b", "c+"])
topics = st.sampled_from(["orders", "orders-1", "us.orders", "a", "ab", "aab", "x_1.y-2"])
literals = st.sampled_from(["eu", "42", "", "null", "true", "a,b", '"q"', " x ", "x:y", "[a", "a\\b", "$1"])
messages_of_any = st.lists(
    st.builds(
        Message,
        topics,
        st.none() | st.just("v"),
        st.lists(st.tuples(names, st.sampled_from(["eu", "us", None])), max_size=3).map(tuple),
    ),
    min_size=1,
    max_size=6,
)
PATTERNS = ["a.*", "orders", r"(?:us\.)?orders", r".*-\d", r"[\w.-]+\z", r"\Qa\E+", "(?i)ORDERS", "a|ab", "a?+b"]
patterns = st.sampled_from(PATTERNS)

predicates = st.one_of(
    st.builds(lambda name: {"type": "predicates.HasHeaderKey", "name": name}, names),
    st.just({"type": "predicates.RecordIsTombstone"}),
    st.builds(lambda pattern: {"type": "predicates.TopicNameMatches", "pattern": pattern}, patterns),
)
transforms = st.one_of(
    st.builds(lambda n, v: {"type": "InsertHeader", "header": n, "value.literal": v}, names, literals),
    st.builds(
        lambda some: {"type": "DropHeaders", "headers": ",".join(some)}, st.lists(names, min_size=1, unique=True)
    ),
    st.just({"type": "Filter"}),
)


@st.composite
def chains(draw: st.DrawFn) -> dict[str, str]:
    asked = draw(st.lists(predicates, min_size=1, max_size=3))
    done = draw(st.lists(transforms, min_size=1, max_size=4))
    properties = {
        "transforms": ",".join(f"t{index}" for index in range(len(done))),
        "predicates": ",".join(f"p{index}" for index in range(len(asked))),
    }
    for kind, rows in (("transforms.t", done), ("predicates.p", asked)):
        for index, row in enumerate(rows):
            full = {**row, "type": PACKAGE + row["type"]}
            properties |= {f"{kind}{index}.{key}": value for key, value in full.items()}
    for index, row in enumerate(done):
        if row["type"] == "Filter" or draw(st.booleans()):
            properties[f"transforms.t{index}.predicate"] = f"p{draw(st.integers(0, len(asked) - 1))}"
            if draw(st.booleans()):
                properties[f"transforms.t{index}.negate"] = draw(st.sampled_from(["true", "false"]))
    return properties


several = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@several
@given(properties=chains(), messages=messages_of_any)
def test_a_chain_does_the_same(java4: JavaWitness, properties: dict[str, str], messages: list[Message]) -> None:
    assert by_us(translate(properties), messages) == by_connect(java4, properties, messages)


# ---- regular expressions of Java's ----

ATOMS = [
    "a",
    "b",
    "o",
    ".",
    r"\d",
    r"\w",
    "[a-m]",
    "[^a]",
    "[]a]",
    r"\.",
    "-",
    "(a)",
    "(?:ab|a)",
    "(?<n>o.*)",
    r"\Q.\E",
    "(a|ab)",
]
pieces = st.builds(str.__add__, st.sampled_from(ATOMS), st.sampled_from(["", "", "*", "+", "?", "*?", "++", "{2}"]))
regexes = st.lists(pieces, min_size=1, max_size=4).map("".join)
replacements = st.lists(
    st.sampled_from(["x", "$1", "$0", "${n}", "$2", r"\$", "$12", "-", r"\\", "."]), max_size=3
).map("".join)


@several
@given(
    regex=regexes | patterns | st.builds("{}|{}".format, regexes, regexes),
    replacement=replacements,
    topic=topics | st.text("abo.-1", min_size=1, max_size=6),
)
def test_a_router_gives_the_same_name(java4: JavaWitness, regex: str, replacement: str, topic: str) -> None:
    """Or we refuse it in the file: some of it Java finds wrong only when a topic matches."""
    router = {"type": f"{PACKAGE}RegexRouter", "regex": regex, "replacement": replacement}
    properties = {"transforms": "r", **{f"transforms.r.{key}": value for key, value in router.items()}}
    messages = [Message(topic, "v", ())]
    try:
        said = translate(properties)
    except PropertyFault:
        return
    assert by_us(said, messages) == by_connect(java4, properties, messages)


@several
@given(regex=regexes, topic=topics)
def test_what_is_refused_as_no_regular_expression_is_none_of_javas(java4: JavaWitness, regex: str, topic: str) -> None:
    router = {"type": f"{PACKAGE}RegexRouter", "regex": regex, "replacement": "x"}
    properties = {"transforms": "r", **{f"transforms.r.{key}": value for key, value in router.items()}}
    try:
        translate(properties)
    except PropertyFault:
        with pytest.raises(JavaWitnessError, match="regex"):
            by_connect(java4, properties, [Message(topic, "v", ())])
