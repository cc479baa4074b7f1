"""Edits, batches and dead letters of a link: understood as written, and refused at the very place that is wrong."""

import re
from pathlib import Path

import pytest

from replicator.config.edits import Edit, HeaderIs, KeyIs, Where
from replicator.config.load import from_data, parse
from replicator.config.models import Batches, DeadLetterTopic, Link, Policy, Rename
from replicator.config.schema import json_schema
from replicator.config.tree import read_tree
from replicator.errors import ConfigError

README = Path(__file__).resolve().parents[2] / "README.md"

LINK = """\
clusters:
  us: {bootstrap.servers: "h:1"}
  eu: {bootstrap.servers: "h:2"}
links:
  - source: us
    target: eu
"""


def link(options: str, file: str = "") -> Link:
    return parse(LINK + "".join(f"    {line}\n" for line in options.splitlines()), file).links[0]


def edit(text: str) -> Edit:
    (only,) = link(f"edits:\n  - {{{text}}}").edits
    return only


# ---- understood ----


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("add_header: {name: a, value: b}", "add_header"),
        ("set_header: {name: a, value: {base64: AP8=}}", "set_header"),
        ("drop_header: {name: a}", "drop_header"),
        ("rename_header: {matching: 'x-(.*)', to: 'y-\\1'}", "rename_header"),
        ("drop: tombstones", "drop"),
        ("drop: true, topics: [a]", "drop"),
        ("drop: true, where: {tombstone: false}", "drop"),
        ("keep: true, where: {header: {name: a}}", "keep"),
        ("divert: too large, where: {larger_than: 2 MiB}", "divert"),
    ],
)
def test_each_action(text: str, action: str) -> None:
    assert edit(text).action == action


def test_sizes_in_conditions_however_deep() -> None:
    where = edit("drop: true, where: {any: [{larger_than: 2 MiB}, {not: {larger_than: 1KiB}}, {larger_than: 7}]}").where
    assert where == Where(any=(Where(larger_than=2 << 20), Where(not_=Where(larger_than=1024)), Where(larger_than=7)))
    sizes = "any: [{header: {name: larger_than, equals: 1KiB}}, {key: {equals: 1KiB}}]"
    header, key = Where(header=HeaderIs("larger_than", "1KiB")), Where(key=KeyIs("1KiB"))
    assert edit(f"drop: true, where: {{{sizes}}}").where == Where(any=(header, key))


def test_of_batches_the_first_row_that_names_a_topic_counts() -> None:
    of = link("batches: [{topics: [a], codec: lz4}, {topics: ['a.*'], merge: 'off', linger_ms: 20}]").batching
    assert of("a") == Batches(("a",), codec="lz4")
    assert (of("ab").codec, of("ab").merge, of("ab").linger_ms) == ("keep", "off", 20)
    assert of("b") == Batches()


def test_the_dead_letter_topic_has_the_links_name_and_is_not_copied() -> None:
    assert (Link("us", "eu").dead_letter_topic, link("name: x").dead_letter_topic) == ("us-eu.dlq", "x.dlq")
    named = link("dead_letters: {topic: lost, on: source, replication_factor: 3}")
    assert named.dead_letters == DeadLetterTopic("lost", "source", replication_factor=3)
    assert [topic for topic in ("orders", "lost", "us-eu.dlq") if named.selects(topic)] == ["orders"]
    assert not Link("us", "eu").selects("us-eu.dlq")


def test_without_dead_letters_a_fault_stops_the_lane() -> None:
    assert (Link("us", "eu").policy("a").record_faults, Policy().record_faults) == ("dlq", "dlq")
    without = link("dead_letters: {on: none}\npolicies: [{topics: [a], record_faults: skip}, {source_gap: stop}]")
    assert [without.policy(topic).record_faults for topic in "ab"] == ["skip", "stop"]
    assert without.policy("b").source_gap == "stop"


def test_a_regex_names_topics_by_its_groups() -> None:
    renamed = link("rename: {regex: '(?P<team>.*)[.](.*)', replacement: '\\2-of-\\g<team>'}")
    assert [renamed.target_topic(topic) for topic in ("sales.orders", "orders")] == ["orders-of-sales", "orders"]
    assert renamed.rename == Rename(regex=r"(?P<team>.*)[.](.*)", replacement=r"\2-of-\g<team>")


def test_the_examples_of_the_readme_are_understood() -> None:
    """A whole file, and options of its link: these are indented as they would stand in it."""
    file, *options = re.findall(r"```yaml\n(.*?)```", README.read_text(), re.DOTALL)
    assert parse(file).links
    assert len(options) == 3
    for text in options:
        link = parse(file + text).links[0]
        assert link.edits or link.transforms


def test_the_schema_takes_the_examples_of_the_readme() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    check = jsonschema.Draft202012Validator(json_schema())
    file, *options = re.findall(r"```yaml\n(.*?)```", README.read_text(), re.DOTALL)
    for text in ("", *options):
        assert check.is_valid(read_tree(file + text).data)
    for edit in ("{}", "{drop: tombstones, keep: true}", "{keep: true, where: {larger_than: 5KB}}"):
        assert not check.is_valid(read_tree(f"{file}    edits: [{edit}]").data), edit


# ---- refused ----

ACTIONS = "add_header, set_header, drop_header, rename_header, drop, keep, divert"
CONDITIONS = "key, null_key, header, timestamp, tombstone, larger_than, not, any, all"

# Each is the seventh line of the file, five columns in: where `edits` is, a column is 12 more than in the edit's text.
BAD = [
    ("isolation: read_comitted", "7:16: unknown value `read_comitted`; did you mean `read_committed`?"),
    ("provenance: 1", "7:17: expected bool, got int"),
    ("loops: on", "7:12: unknown value `on`; one of off, prevent"),
    ("edits: {}", "7:12: expected list, got mapping"),
    ("edits: [{}]", f"7:13: has no action; give one of {ACTIONS}"),
    ("edits: [{where: {tombstone: true}}]", f"7:13: has no action; give one of {ACTIONS}"),
    ("edits: [{drop: tombstones, keep: true}]", f"7:13: has drop and keep; give one of {ACTIONS}"),
    ("edits: [{drop: false}]", f"7:13: has no action; give one of {ACTIONS}"),
    ("edits: [{drop: true}]", "7:13: `drop` needs a `where` that says which records"),
    ("edits: [{keep: true, topics: [a]}]", "7:13: `keep` needs a `where` that says which records"),
    ("edits: [{divert: odd}]", "7:13: `divert` needs a `where` that says which records"),
    ("edits: [{drop: tombstone}]", "7:20: unknown value `tombstone`; did you mean `tombstones`?"),
    ("edits: [{add_headers: {}}]", "7:14: unknown key `add_headers`; did you mean `add_header`?"),
    ("edits: [{add_header: {name: a}}]", "7:26: `value` is missing"),
    ("edits: [{add_header: {value: a}}]", "7:26: `name` is missing"),
    ("edits: [{add_header: {name: '', value: a}}]", "7:33: expected str of length >= 1"),
    ("edits: [{add_header: {name: a, value: 5}}]", "7:43: expected str | mapping | null, got int"),
    ("edits: [{add_header: {name: a, value: {base64: A}}}]", "7:43: `A` is not base64"),
    ("edits: [{add_header: {name: a, value: {base64: 'AA==x'}}}]", "7:43: `AA==x` is not base64"),
    (
        "edits: [{add_header: {name: replicator.hops, value: a}}]",
        "7:26: headers named `replicator....` are written by `provenance` only",
    ),
    ("edits: [{drop_header: {}}]", "7:27: give either name or matching"),
    ("edits: [{drop_header: {name: a, matching: b}}]", "7:27: give either name or matching"),
    (
        "edits: [{drop_header: {matching: '(a'}}]",
        "7:38: `(a` is not a regular expression: missing ), unterminated subpattern at position 0",
    ),
    ("edits: [{rename_header: {name: a}}]", "7:29: `to` is missing"),
    (
        "edits: [{rename_header: {name: a, to: '\\1'}}]",
        "7:29: `to` has a backslash, which needs `matching` instead of `name`",
    ),
    (
        "edits: [{rename_header: {matching: 'a', to: '\\1'}}]",
        r"7:49: `\1` does not fit `a`: invalid group reference 1 at position 1",
    ),
    (
        "edits: [{rename_header: {matching: 'a', to: '\\g<b>'}}]",
        r"7:49: `\g<b>` does not fit `a`: unknown group name 'b'",
    ),
    (
        "edits: [{rename_header: {matching: '*', to: b}}]",
        "7:40: `*` is not a regular expression: nothing to repeat at position 0",
    ),
    ("edits: [{keep: true, where: {}}]", f"7:33: says nothing; give one of {CONDITIONS}"),
    ("edits: [{keep: true, where: {keys: {}}}]", "7:34: unknown key `keys`; did you mean `key`?"),
    ("edits: [{keep: true, where: {key: {}}}]", "7:39: give one of equals, prefix, suffix, contains"),
    (
        "edits: [{keep: true, where: {key: {equals: a, prefix: b}}}]",
        "7:39: give one of equals, prefix, suffix, contains",
    ),
    (
        "edits: [{keep: true, where: {key: {matches: a}}}]",
        "7:40: unknown key `matches`; one of equals, prefix, suffix, contains",
    ),
    (
        "edits: [{keep: true, where: {header: {name: a, equals: b, prefix: c}}}]",
        "7:42: give at most one of equals, prefix, suffix, contains",
    ),
    ("edits: [{keep: true, where: {header: {equals: b}}}]", "7:42: `name` is missing"),
    ("edits: [{keep: true, where: {timestamp: {}}}]", "7:45: give from, to, or both"),
    ("edits: [{keep: true, where: {timestamp: {from: 5, to: 5}}}]", "7:45: `from` must be before `to`"),
    ("edits: [{keep: true, where: {timestamp: {since: 5}}}]", "7:46: unknown key `since`; one of from, to"),
    ("edits: [{keep: true, where: {timestamp: {from: -5}}}]", "7:52: expected int >= 0"),
    (
        "edits: [{keep: true, where: {timestamp: {from: 2026-11-01T00:00:00}}}]",
        "7:52: expected datetime with a timezone component",
    ),
    ("edits: [{keep: true, where: {larger_than: 1KB}}]", "7:47: `1KB` is not a size; write 65536, 64KiB, 2MiB or 1GiB"),
    ("edits: [{keep: true, where: {not: {larger_than: 0}}}]", "7:53: expected int >= 1"),
    ("edits: [{keep: true, where: {any: []}}]", "7:39: expected list of length >= 1"),
    (
        "edits: [{keep: true, where: {all: [{tombston: true}]}}]",
        "7:41: unknown key `tombston`; did you mean `tombstone`?",
    ),
    (
        f"edits: [{{keep: true, where: {'{not: ' * 8}{{tombstone: true}}{'}' * 8}}}]",
        "7:33: conditions within conditions, 9 deep; 8 is the most",
    ),
    ("edits: [{drop: tombstones, topics: []}]", "7:40: expected list of length >= 1"),
    (
        "edits: [{drop: tombstones, topics: [a, '*']}]",
        "7:44: `*` is not a regular expression: nothing to repeat at position 0",
    ),
    (
        "rename: {regex: a, replacement: a/b}",
        r"7:37: expected str matching regex '^([A-Za-z0-9._-]|\\\\[0-9]{1,2}|\\\\g<[A-Za-z0-9_]+>)*$(?!\\n)'",
    ),
    ("rename: {replacement: a}", "7:13: give one of prefix, template, and regex with replacement"),
    ("rename: {prefix: a, replacement: a}", "7:13: `replacement` needs a `regex`"),
    ("rename: {regex: a, prefix: a}", "7:13: give one of prefix, template, and regex with replacement"),
    ("rename: {regex: 'a)'}", "7:21: `a)` is not a regular expression: unbalanced parenthesis at position 1"),
    (
        "rename: {regex: 'a', replacement: '\\1'}",
        r"7:39: `\1` does not fit `a`: invalid group reference 1 at position 1",
    ),
    ("batches: [{codec: lzo}]", "7:23: unknown value `lzo`; did you mean `lz4`?"),
    ("batches: [{merge: never}]", "7:23: unknown value `never`; one of always, auto, off"),
    ("batches: [{linger_ms: -1}]", "7:27: expected int >= 0"),
    (
        "batches: [{topics: ['(']}]",
        "7:25: `(` is not a regular expression: missing ), unterminated subpattern at position 0",
    ),
    ("dead_letters: {on: sourc}", "7:24: unknown value `sourc`; did you mean `source`?"),
    ("dead_letters: {topic: 'a b'}", r"7:27: expected str matching regex '^(?!\\.{1,2}$)[A-Za-z0-9._-]+$(?!\\n)'"),
    ("dead_letters: {partitions: 0}", "7:32: expected int >= 1"),
    ("dead_letters: {replication_factor: source}", "7:40: unknown value `source`; one of broker"),
    (
        "dead_letters: {on: none}\n    policies: [{record_faults: stop}, {record_faults: dlq}]",
        "8:55: there is no dead-letter topic; `dead_letters.on` is `none`",
    ),
    (
        "dead_letters: {on: none}\n    edits: [{divert: odd, where: {tombstone: true}}]",
        "8:22: there is no dead-letter topic; `dead_letters.on` is `none`",
    ),
    ("policies: [{record_faults: dql}]", "7:32: unknown value `dql`; did you mean `dlq`?"),
    ("policies: [{retry_timeout_ms: -2}]", "7:35: expected int >= -1"),
    ('name: "\\ud800"', "7:11: half a character (a surrogate)"),
    ('"\\ud800": 1', "7:5: half a character (a surrogate)"),
]


@pytest.mark.parametrize(("text", "answer"), BAD)
def test_refused(text: str, answer: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(f"{LINK}    {text}\n", "link.yaml")
    assert str(caught.value) == f"link.yaml:{answer}"


def test_all_edits_together_have_a_limit() -> None:
    row = {"drop": True, "where": {"any": [{"tombstone": True}] * 99}}
    file = {"clusters": {"us": {"bootstrap.servers": "a:1"}, "eu": {"bootstrap.servers": "b:1"}}}
    ten = {"source": "us", "target": "eu", "edits": [row] * 10}
    assert len(from_data({**file, "links": [ten]}).links[0].edits) == 10
    with pytest.raises(ConfigError, match="the edits of a link have more than 1024 conditions"):
        from_data({**file, "links": [{**ten, "edits": [row] * 11}]})
