"""Kafka Connect's properties become a link's own options, or are refused by name."""

import re
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.config.connect import PropertyFault, java_pattern, java_replacement, translate
from replicator.config.edits import Edit, HeaderIs, HeaderMatch, HeaderValue, Where
from replicator.config.load import from_data
from replicator.config.models import DeadLetterTopic, Link, Policy, Rename
from replicator.errors import ConfigError
from tests.unit.test_edits import link as of_options

TRANSFORMS = "org.apache.kafka.connect.transforms."
PREDICATES = f"{TRANSFORMS}predicates."
HAS = Where(header=HeaderIs("h"))


def link(options: str) -> Link:
    return of_options(options, "link.yaml")


def connect(text: str) -> Link:
    return link("connect:\n" + "".join(f"  {line}\n" for line in text.splitlines()))


EXAMPLE = f"""\
transforms: "mark, strip,thin,late"
transforms.mark.type: {TRANSFORMS}InsertHeader
transforms.mark.header: version
transforms.mark.value.literal: 1.50
transforms.strip.type: DropHeaders
transforms.strip.headers: a , b.c
transforms.strip.predicate: marked
transforms.thin.type: {TRANSFORMS}Filter
transforms.thin.predicate: empty
transforms.thin.negate: false
transforms.late.type: RegexRouter
transforms.late.regex: "(?<team>.*)-(\\\\d+)"
transforms.late.replacement: "$2.${{team}}"
predicates: marked,empty,unused
predicates.marked.type: {PREDICATES}HasHeaderKey
predicates.marked.name: h
predicates.empty.type: RecordIsTombstone
predicates.unused.type: {PREDICATES}TopicNameMatches
predicates.unused.pattern: x.*
errors.tolerance: all
errors.retry.timeout: -1
errors.retry.delay.max.ms: 500
errors.deadletterqueue.topic.name: lost
errors.deadletterqueue.topic.replication.factor: 3
errors.deadletterqueue.context.headers.enable: false
errors.log.enable: true
errors.log.include.messages: true
"""


def test_a_whole_example() -> None:
    assert connect(EXAMPLE) == Link(
        "us",
        "eu",
        edits=(
            Edit(add_header=HeaderValue("version", "1.50")),
            Edit(where=HAS, drop_header=HeaderMatch(matching=r"a|b\.c")),
            Edit(where=Where(tombstone=True), drop=True),
        ),
        rename=Rename(regex=r"(?P<team>.*)-(\d+)", replacement=r"\g<2>.\g<team>"),
        policies=(Policy(record_faults="dlq", retry_timeout_ms=-1, retry_delay_max_ms=500),),
        dead_letters=DeadLetterTopic("lost", replication_factor=3, context_headers=False, log="records"),
    )


def chain(**properties: str) -> dict[str, str]:
    """One transform called `t`, and three predicates it may ask for."""
    predicates = {
        "predicates": "h,e,n",
        "predicates.h.type": "HasHeaderKey",
        "predicates.h.name": "h",
        "predicates.e.type": "RecordIsTombstone",
        "predicates.n.type": "TopicNameMatches",
        "predicates.n.pattern": "a|b.*",
    }
    return {
        "transforms": "t",
        **predicates,
        **{f"transforms.t.{key.replace('_', '.')}": value for key, value in properties.items()},
    }


OTHERS = (r"(?!(?:a|b.*)\Z).*",)
EDITS = [
    (chain(type="InsertHeader", header="k", value_literal="null"), Edit(add_header=HeaderValue("k", None))),
    (chain(type="InsertHeader ", header=" k", value_literal=" v\t"), Edit(add_header=HeaderValue("k", "v"))),
    (chain(type="InsertHeader", header="k", value_literal=""), Edit(add_header=HeaderValue("k", ""))),
    (chain(type="DropHeaders", headers="k"), Edit(drop_header=HeaderMatch("k"))),
    (chain(type="Filter", predicate="h"), Edit(where=HAS, drop=True)),
    (chain(type="Filter", predicate="h", negate="TRUE"), Edit(where=Where(not_=HAS), drop=True)),
    (chain(type="Filter", predicate="e", negate="true"), Edit(where=Where(not_=Where(tombstone=True)), drop=True)),
    (chain(type="Filter", predicate="n"), Edit(("a|b.*",), drop=True)),
    (chain(type="Filter", predicate="n", negate="true"), Edit(OTHERS, drop=True)),
    (
        chain(type="InsertHeader", header="k", value_literal="v", predicate="n", negate="true"),
        Edit(OTHERS, add_header=HeaderValue("k", "v")),
    ),
]


@pytest.mark.parametrize(("properties", "edit"), EDITS)
def test_one_transform_is_one_edit(properties: dict[str, str], edit: Edit) -> None:
    assert translate(properties).edits == (edit,)


def test_a_negated_name_is_every_other_name() -> None:
    edit = Edit(OTHERS, drop=True)
    assert [topic for topic in ("a", "b", "bc", "ab", "c") if edit.applies_to(topic)] == ["ab", "c"]


@pytest.mark.parametrize(("negate", "renamed"), [("false", ["xa", "xb1", "c"]), ("true", ["a", "b1", "xc"])])
def test_a_router_with_a_predicate(negate: str, renamed: list[str]) -> None:
    router = chain(type="RegexRouter", regex="(.*)", replacement="x$1", predicate="n", negate=negate)
    rename = translate(router).rename
    assert rename
    assert [rename.apply(topic) for topic in ("a", "b1", "c")] == renamed


ERRORS = [
    ({"tolerance": "none"}, {"record_faults": "stop"}, {}),
    ({"tolerance": "ALL"}, {"record_faults": "skip"}, {}),
    ({"tolerance": "all", "deadletterqueue.topic.name": " "}, {"record_faults": "skip"}, {}),
    ({"tolerance": "all", "deadletterqueue.topic.name": "d"}, {"record_faults": "dlq"}, {"topic": "d"}),
    ({"tolerance": "none", "deadletterqueue.topic.name": "d"}, {"record_faults": "stop"}, {"topic": "d"}),
    ({"deadletterqueue.topic.name": "d"}, {}, {"topic": "d"}),
    ({"deadletterqueue.topic.replication.factor": "-1"}, {}, {"replication_factor": "broker"}),
    ({"deadletterqueue.context.headers.enable": "True"}, {}, {"context_headers": True}),
    ({"retry.timeout": "0", "retry.delay.max.ms": "1"}, {"retry_timeout_ms": 0, "retry_delay_max_ms": 1}, {}),
    ({"log.enable": "false", "log.include.messages": "true"}, {}, {"log": "off"}),
    ({"log.enable": "true"}, {}, {"log": "reasons"}),
    ({"log.include.messages": "true"}, {}, {}),
]


@pytest.mark.parametrize(("properties", "policy", "dead_letters"), ERRORS)
def test_errors(properties: dict[str, str], policy: dict[str, Any], dead_letters: dict[str, Any]) -> None:
    said = translate({f"errors.{key}": value for key, value in properties.items()})
    assert (said.policy, said.dead_letters) == (policy, dead_letters)


def test_policies_that_say_nothing_of_faults_take_connects_word() -> None:
    both = link(
        "policies: [{topics: [a], record_faults: skip}, {topics: [b], source_gap: stop}]\n"
        "connect: {errors.tolerance: none, errors.retry.timeout: 5}"
    )
    assert both.policy("a") == Policy(("a",), record_faults="skip", retry_timeout_ms=5)
    assert both.policy("b") == Policy(("b",), "stop", record_faults="stop", retry_timeout_ms=5)
    assert both.policy("c") == Policy(record_faults="stop", retry_timeout_ms=5)


def test_edits_come_first_and_dead_letters_join() -> None:
    both = link(
        "edits: [{drop: tombstones}]\n"
        "dead_letters: {on: source}\n"
        "connect: {transforms: t, transforms.t.type: DropHeaders, transforms.t.headers: h,"
        " errors.deadletterqueue.topic.name: d}"
    )
    assert both.edits == (Edit(drop="tombstones"), Edit(drop_header=HeaderMatch("h")))
    assert both.dead_letters == DeadLetterTopic("d", "source")
    assert both.connect == {}


def test_a_longer_alias_is_not_mistaken_for_a_shorter() -> None:
    properties = {
        "transforms": "a,a.b",
        "transforms.a.type": "DropHeaders",
        "transforms.a.headers": "x",
        "transforms.a.b.type": "DropHeaders",
        "transforms.a.b.headers": "y",
    }
    assert [edit.drop_header for edit in translate(properties).edits] == [HeaderMatch("x"), HeaderMatch("y")]


# ---- refused: the lines of a `connect` mapping, which begins at line 8, column 7 ----

FILTER = "transforms: f\ntransforms.f.type: Filter\n"
ROUTER = "transforms: r\ntransforms.r.type: RegexRouter\n"
NAMED = "predicates: n\npredicates.n.type: TopicNameMatches\npredicates.n.pattern: "
SUPPORTED_TYPES = "InsertHeader, DropHeaders, Filter, RegexRouter"

BAD = [
    ("transform: f", "8:7: `transform` is not supported; did you mean `transforms`?"),
    (
        "key.converter: x",
        "8:7: `key.converter` is not supported; supported: transforms, predicates, errors.tolerance,"
        " errors.retry.timeout, errors.retry.delay.max.ms, errors.log.enable, errors.log.include.messages,"
        " errors.deadletterqueue.topic.name, errors.deadletterqueue.topic.replication.factor,"
        " errors.deadletterqueue.context.headers.enable",
    ),
    ("errors.tolerence: all", "8:7: `errors.tolerence` is not supported; did you mean `errors.tolerance`?"),
    ("transforms: f", "8:19: `transforms.f.type` is missing"),
    ("transforms: f,,g", "8:19: `transforms` has an empty name"),
    ("transforms: f,f", "8:19: `transforms` lists `f` twice"),
    ("transforms: f\ntransforms.f.type: Filtr", "9:26: `Filtr` is not supported; did you mean `Filter`?"),
    (
        f"transforms: f\ntransforms.f.type: {TRANSFORMS}Cast$Value",
        f"9:26: `{TRANSFORMS}Cast$Value` is not supported; supported: {SUPPORTED_TYPES}",
    ),
    (
        "transforms: f\ntransforms.f.type: com.example.Filter",
        f"9:26: `com.example.Filter` is not supported; supported: {SUPPORTED_TYPES}",
    ),
    (FILTER, "9:26: a Filter without a predicate would drop every record"),
    (f"{FILTER}transforms.f.predicate: p", "10:31: `predicates` lists no `p`"),
    (
        f"{FILTER}transforms.f.predicate: emty\npredicates: empty",
        "10:31: `predicates` lists no `emty`; did you mean `empty`?",
    ),
    (f"{FILTER}transforms.f.negate: true", "10:7: `transforms.f.negate` without `transforms.f.predicate`"),
    (
        f"{FILTER}transforms.f.predicate: n\ntransforms.f.negate: maybe\n{NAMED}a",
        "11:28: `transforms.f.negate` is `maybe`, but must be true or false",
    ),
    (
        f"{FILTER}transforms.f.predicate: n\ntransforms.f.header: h\n{NAMED}a",
        "11:7: `transforms.f.header` is not an option of its type; did you mean `transforms.f.negate`?",
    ),
    (
        "predicates: p\npredicates.p.type: RecordIsTombstone\npredicates.p.name: x",
        "10:7: `predicates.p.name` is not an option of its type; did you mean `predicates.p.type`?",
    ),
    (
        "transforms: a,a.b\ntransforms.a.type: DropHeaders\ntransforms.a.headers: x\ntransforms.a.b.type: DropHeaders\n"
        "transforms.a.b.headers: y\ntransforms.a.b.zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz: z",
        "13:7: `transforms.a.b.zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz` is not an option of its type; supported:"
        " transforms.a.b.headers, transforms.a.b.negate, transforms.a.b.predicate, transforms.a.b.type",
    ),
    (
        f"{FILTER}transforms.f.predicate: n\ntransforms.g.type: Filter\n{NAMED}a",
        "11:7: `transforms.g.type`: `transforms` does not list `g`; supported: f",
    ),
    ("predicates: p\npredicates.p.type: HasHeader", "9:26: `HasHeader` is not supported; did you mean `HasHeaderKey`?"),
    ("predicates: p\npredicates.p.type: HasHeaderKey", "9:26: `predicates.p.name` is missing"),
    ("predicates: p\npredicates.p.type: HasHeaderKey\npredicates.p.name: ''", "10:26: `predicates.p.name` is empty"),
    ("transforms: i\ntransforms.i.type: InsertHeader", "9:26: `transforms.i.header` is missing"),
    (
        "transforms: i\ntransforms.i.type: InsertHeader\ntransforms.i.header: h",
        "9:26: `transforms.i.value.literal` is missing",
    ),
    (
        "transforms: i\ntransforms.i.type: InsertHeader\ntransforms.i.header: replicator.hops\n"
        "transforms.i.value.literal: x",
        "9:26: headers named `replicator....` are written by `provenance` only",
    ),
    (f"{ROUTER}transforms.r.regex: a", "9:26: `transforms.r.replacement` is missing"),
    (
        f"{ROUTER}transforms.r.regex: '('\ntransforms.r.replacement: x",
        "10:27: `(` is not a regular expression: missing ), unterminated subpattern at position 0",
    ),
    (
        f"{ROUTER}transforms.r.regex: '\\p{{Alpha}}+'\ntransforms.r.replacement: x",
        r"10:27: `\p` in `\p{Alpha}+` is Java's alone; write it in the syntax that Java and Python share",
    ),
    (
        f"{ROUTER}transforms.r.regex: a\ntransforms.r.replacement: $1",
        "11:33: the regex has no group 1",
    ),
    (
        f"{ROUTER}transforms.r.regex: (a)\ntransforms.r.replacement: $1/",
        "11:33: `$1/` would make a name that no topic can have",
    ),
    (
        f"{ROUTER}transforms.r.regex: a\ntransforms.r.replacement: a$\n",
        r"11:33: `a$` has a loose `$`; write \$ or \\ for the character",
    ),
    (
        f"{ROUTER}transforms.r.regex: a\ntransforms.r.replacement: b\ntransforms.r.predicate: p\n"
        "predicates: p\npredicates.p.type: RecordIsTombstone",
        "12:31: a RegexRouter is for whole topics, so its predicate can only be TopicNameMatches",
    ),
    (
        f"{ROUTER}transforms.r.regex: a\ntransforms.r.replacement: b\ntransforms.r.predicate: n\n{NAMED}(a)",
        "12:31: the predicate of a RegexRouter must not have groups; write (?:...), or put the condition into `regex`",
    ),
    (
        "transforms: r,s\ntransforms.r.type: RegexRouter\ntransforms.r.regex: a\ntransforms.r.replacement: b\n"
        "transforms.s.type: RegexRouter\ntransforms.s.regex: b\ntransforms.s.replacement: c",
        "12:26: topics are renamed already; one RegexRouter, or `rename`",
    ),
    (
        "transforms: r,f\ntransforms.r.type: RegexRouter\ntransforms.r.regex: a\ntransforms.r.replacement: b\n"
        f"transforms.f.type: Filter\ntransforms.f.predicate: n\n{NAMED}a",
        "13:31: TopicNameMatches would ask for the new name of renamed topics; list RegexRouter last, or use"
        " `edits` with `topics`, which are the source's names",
    ),
    ("errors.tolerance: some", "8:25: `errors.tolerance` is `some`, but must be none or all"),
    ("errors.retry.timeout: 5s", "8:29: `errors.retry.timeout` is `5s`, but must be a whole number"),
    ("errors.retry.timeout: -2", "8:29: `errors.retry.timeout`: expected int >= -1"),
    ("errors.retry.delay.max.ms: 0", "8:34: `errors.retry.delay.max.ms`: expected int >= 1"),
    ("errors.log.enable: yes", "8:26: `errors.log.enable` is `yes`, but must be true or false"),
    (
        "errors.deadletterqueue.topic.name: a b",
        "8:42: `errors.deadletterqueue.topic.name`: expected str matching regex"
        r" '^(?!\\.{1,2}$)[A-Za-z0-9._-]+$(?!\\n)'",
    ),
    (
        "errors.deadletterqueue.topic.replication.factor: 0",
        "8:56: `errors.deadletterqueue.topic.replication.factor`: expected int >= 1",
    ),
    ("transforms: [a]", "8:7: expected str, got list"),
]


@pytest.mark.parametrize(("text", "answer"), BAD)
def test_refused(text: str, answer: str) -> None:
    with pytest.raises(ConfigError) as caught:
        connect(text)
    assert str(caught.value) == f"link.yaml:{answer}"


def test_what_is_said_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^link.yaml:7:20: `topic` is given by `connect`, too$"):
        link("dead_letters: {topic: a}\nconnect: {errors.deadletterqueue.topic.name: b}")
    router = "transforms: r, transforms.r.type: RegexRouter, transforms.r.regex: a, transforms.r.replacement: b"
    with pytest.raises(ConfigError, match="topics are renamed already; one RegexRouter, or `rename`"):
        link(f'rename: {{prefix: x}}\nconnect: {{transforms: "r", {router.split(", ", 1)[1]}}}')


def test_a_skipped_fault_needs_no_dead_letter_topic_but_a_kept_one_does() -> None:
    assert link("dead_letters: {on: none}\nconnect: {errors.tolerance: all}").policy("a").record_faults == "skip"
    with pytest.raises(
        ConfigError, match=r"^link.yaml:8:15: there is no dead-letter topic; `dead_letters.on` is `none`"
    ):
        link("dead_letters: {on: none}\nconnect: {errors.deadletterqueue.topic.name: d}")


def test_numbers_and_booleans_are_text_from_plain_data_too() -> None:
    clusters = {"us": {"bootstrap.servers": "a:1"}, "eu": {"bootstrap.servers": "b:1"}}
    row = {"source": "us", "target": "eu", "connect": {"errors.retry.timeout": 5}}
    with pytest.raises(ConfigError, match="expected str, got int"):
        from_data({"clusters": clusters, "links": [row]})


# ---- Java's regular expressions ----

PATTERNS = [
    ("a.*", "a.*"),
    (r"(?<x>a)\k<x>", "(?P<x>a)(?P=x)"),
    (r"\Qa.b\E+", r"a\.b+"),
    (r"\Qa.b", r"a\.b"),
    (r"a\z", r"a\Z"),
    (r"(?i)a|b", "(?i:a|b)"),
    ("(?<=a)b(?<!c)", "(?<=a)b(?<!c)"),
    ("[]a]", "[]a]"),
    ("[^]a[]", None),
    (r"[a\]b]&&c", r"[a\]b]&&c"),
    ("[a-z&&[^b]]", None),
    ("[a[b]]", None),
    (r"[\Qa]\E]", r"[a\]]"),
    (r"\p{Lu}", None),
    (r"\h", None),
    (r"a\R", None),
    (r"\\h", r"\\h"),
    ("a++", "a++"),
    ("(?>a)", "(?>a)"),
    ("(", None),
]


@pytest.mark.parametrize(("java", "ours"), PATTERNS)
def test_patterns(java: str, ours: str | None) -> None:
    if ours is None:
        with pytest.raises(PropertyFault):
            java_pattern("regex", java)
    else:
        assert java_pattern("regex", java) == ours


REPLACEMENTS = [
    ("$1-$0", "(a)b", "ab", "a-ab"),
    ("$11", "(a)b", "ab", "a1"),
    ("$01", "(a)b", "ab", "a"),
    ("${x}", "(?P<x>a)b", "ab", "a"),
    (r"\$1\\n", "(a)b", "ab", r"$1\n"),
    (r"\g<1>", "(a)b", "ab", "g<1>"),
    ("[$1]", "(a)?b", "b", "[]"),
    ("$2", "(a)b", "ab", None),
    ("${y}", "(?P<x>a)b", "ab", None),
    ("$", "a", "a", None),
    ("\\", "a", "a", None),
    ("$x", "a", "a", None),
]


@pytest.mark.parametrize(("replacement", "pattern", "text", "result"), REPLACEMENTS)
def test_replacements(replacement: str, pattern: str, text: str, result: str | None) -> None:
    compiled = re.compile(pattern)
    if result is None:
        with pytest.raises(PropertyFault):
            java_replacement("replacement", replacement, compiled)
    else:
        assert compiled.sub(java_replacement("replacement", replacement, compiled), text, count=1) == result


@given(st.text("a.()[]{}?*+|\\^$<>&QEk1ix:=!-", max_size=12), st.text("a$\\{}x01", max_size=6))
def test_any_text_is_a_rename_or_a_fault(regex: str, replacement: str) -> None:
    rename = None
    with suppress(PropertyFault):
        rename = translate(chain(type="RegexRouter", regex=regex, replacement=replacement)).rename
    assert rename is None or isinstance(rename.apply("a-1"), str)
