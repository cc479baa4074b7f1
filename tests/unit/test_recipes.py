"""What the native core is told about a link's edits, and the name of a policy."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.config.edits import Edit, HeaderIs, KeyIs, Where
from replicator.config.load import from_data, parse
from replicator.config.models import Batches, DeadLetterTopic, Link, Policy, Rename, Topics
from replicator.config.recipes import condition, measure, policy_hash, recipe, recipe_of_a_link

CLUSTERS = {"us": {"bootstrap.servers": "a:1"}, "eu": {"bootstrap.servers": "b:1"}}
TOMBSTONE = ("tombstone",)


def link(**options: Any) -> Link:
    return from_data({"clusters": CLUSTERS, "links": [{"source": "us", "target": "eu", **options}]}).links[0]


def edits(text: str) -> Link:
    head = 'clusters: {us: {bootstrap.servers: "a:1"}, eu: {bootstrap.servers: "b:1"}}\n'
    return parse(f"{head}links: [{{source: us, target: eu, edits: [{text}]}}]").links[0]


STEPS = [
    ("{add_header: {name: region, value: eu}}", ("header_add", b"region", b"eu", None)),
    ("{add_header: {name: région, value: 'é'}}", ("header_add", b"r\xc3\xa9gion", b"\xc3\xa9", None)),
    ("{set_header: {name: a, value: null}}", ("header_set", b"a", None, None)),
    ("{set_header: {name: a, value: ''}}", ("header_set", b"a", b"", None)),
    ("{set_header: {name: a, value: {base64: 'AP8='}}}", ("header_set", b"a", b"\x00\xff", None)),
    ("{drop_header: {name: 'x.y'}}", ("header_drop", b"x.y", None)),
    ("{drop_header: {matching: 'x.y'}}", ("header_drop", "x.y", None)),
    ("{rename_header: {name: a, to: b}}", ("header_rename", b"a", "b", None)),
    (
        r"{rename_header: {matching: 'a(.*)', to: 'b\1'}, where: {tombstone: true}}",
        ("header_rename", "a(.*)", r"b\1", TOMBSTONE),
    ),
    ("{drop: tombstones}", ("drop", TOMBSTONE)),
    ("{drop: tombstones, where: {null_key: true}}", ("drop", ("all", TOMBSTONE, ("key_null",)))),
    ("{drop: true, topics: [orders]}", ("drop", None)),
    ("{drop: true, where: {tombstone: false}}", ("drop", ("not", TOMBSTONE))),
    ("{keep: true, where: {key: {prefix: eu-}}}", ("keep", ("key", "prefix", b"eu-"))),
    ("{keep: true, where: {header: {name: a}}}", ("keep", ("header", b"a"))),
    ("{keep: true, where: {header: {name: a, suffix: z}}}", ("keep", ("header", b"a", "suffix", b"z"))),
    ("{divert: too large, where: {larger_than: 1MiB}}", ("divert", "too large", ("size", 1 << 20))),
]


@pytest.mark.parametrize(("text", "step"), STEPS)
def test_each_edit_is_one_step(text: str, step: tuple[object, ...]) -> None:
    assert recipe(edits(text), "orders", "c", 0) == (step,)


PREDICATES = [
    ("{key: {equals: {base64: AAE=}}}", ("key", "equals", b"\x00\x01")),
    ("{key: {contains: a}}", ("key", "contains", b"a")),
    ("{null_key: false}", ("not", ("key_null",))),
    ("{header: {name: a, equals: ''}}", ("header", b"a", "equals", b"")),
    ("{timestamp: {from: 1970-01-01T00:00:01Z, to: 2000}}", ("timestamp", 1000, 2000)),
    ("{timestamp: {to: 1970-01-01T00:00:00.0019Z}}", ("timestamp", None, 1)),
    ("{timestamp: {from: 0}}", ("timestamp", 0, None)),
    ("{larger_than: 7}", ("size", 7)),
    ("{not: {tombstone: true}}", ("not", TOMBSTONE)),
    ("{any: [{tombstone: true}]}", ("any", TOMBSTONE)),
    ("{all: [{tombstone: true}, {null_key: true}]}", ("all", TOMBSTONE, ("key_null",))),
    # All that is given has to hold, in one order, however it is written.
    ("{tombstone: true, key: {suffix: z}}", ("all", ("key", "suffix", b"z"), TOMBSTONE)),
    (
        "{any: [{tombstone: true, null_key: true}, {not: {any: [{larger_than: 9}]}}], larger_than: 1}",
        ("all", ("size", 1), ("any", ("all", ("key_null",), TOMBSTONE), ("not", ("any", ("size", 9))))),
    ),
]


@pytest.mark.parametrize(("text", "predicate"), PREDICATES)
def test_conditions(text: str, predicate: tuple[object, ...]) -> None:
    assert recipe(edits(f"{{keep: true, where: {text}}}"), "orders", "c", 0) == (("keep", predicate),)


def test_only_the_edits_of_the_topic_in_their_order() -> None:
    both = edits("{drop: true, topics: [a]}, {drop: tombstones}, {topics: ['b.*'], set_header: {name: h, value: v}}")
    last = ("header_set", b"h", b"v", None)
    assert recipe(both, "a", "c", 0) == (("drop", None), ("drop", TOMBSTONE))
    assert recipe(both, "b1", "c", 0) == (("drop", TOMBSTONE), last)
    assert recipe(both, "xa", "c", 0) == (("drop", TOMBSTONE),)


def test_provenance_last() -> None:
    ours = link(provenance=True, loops="prevent", edits=[{"drop_header": {"matching": ".*"}}])
    drop, source = ("header_drop", ".*", None), ("provenance", b"C1", b"orders", 7)
    assert recipe(ours, "orders", "C1", 7) == (drop, source)
    assert recipe_of_a_link((drop, source), "C0", "C1", "C2") == (
        ("drop_hops", b"C2"),
        drop,
        ("hop", b"C0"),
        source,
    )
    assert recipe_of_a_link((drop,), "C0", "C1", "C2") == (
        ("drop_hops", b"C2"),
        drop,
        ("hop", b"C0"),
        ("hop", b"C1"),
    )


def test_a_link_without_a_word_leaves_records_as_they_are() -> None:
    assert recipe(Link("us", "eu"), "orders", "C1", 0) == ()
    assert recipe(Link("us", "eu", loops="prevent"), "orders", "C1", 0) == ()


# ---- how large a predicate is ----

leaves = st.sampled_from([Where(tombstone=True), Where(null_key=False), Where(key=KeyIs(prefix="a"), larger_than=1)])
wheres = st.recursive(
    leaves,
    lambda inner: (
        st.builds(lambda part: Where(not_=part), inner)
        | st.builds(lambda parts: Where(any=tuple(parts)), st.lists(inner, min_size=1, max_size=3))
        | st.builds(
            lambda parts, key: Where(all=tuple(parts), tombstone=key), st.lists(inner, min_size=1), st.booleans()
        )
    ),
    max_leaves=20,
)


def nodes(predicate: Any) -> int:
    """Every predicate begins with one of these words, and no content here does."""
    words = ("key", "key_null", "tombstone", "size", "not", "any", "all")
    if isinstance(predicate, tuple):
        return sum(map(nodes, predicate))
    return predicate in words


def deepest(predicate: Any) -> int:
    text, depth, most = repr(predicate), 0, 0
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        most = max(most, depth)
    return most


@given(wheres)
def test_measure(where: Where) -> None:
    predicate = condition(where)
    assert measure(predicate) == (deepest(predicate), nodes(predicate))


@given(wheres)
def test_a_recipe_travels(where: Where) -> None:
    steps = recipe(Link("us", "eu", edits=(Edit(keep=True, where=where),), provenance=True), "orders", "c", 3)
    decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(steps))
    assert as_tuples(decoded) == steps


def as_tuples(value: Any) -> Any:
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


# ---- policy_hash ----


def test_a_policy_has_the_same_name_for_ever() -> None:
    """These are written into state: who changes them makes every running link believe its filter was changed."""
    assert policy_hash(Link("us", "eu"), "orders") == "17f40e99b2d5181b"
    changed = link(edits=[{"keep": True, "where": {"header": {"name": "a", "prefix": "b"}}}], provenance=True)
    assert policy_hash(changed, "orders") == "2050b79566edba84"


def test_the_order_of_keys_does_not_matter() -> None:
    one = edits("{keep: true, topics: ['.*'], where: {tombstone: false, key: {prefix: a}}}")
    other = edits("{where: {key: {prefix: a}, tombstone: false}, keep: true}")
    assert policy_hash(one, "orders") == policy_hash(other, "orders")


def test_what_it_is_called_and_where_it_goes_is_no_policy() -> None:
    same = [
        Link("us", "eu"),
        Link("a", "b", "c", Topics(("o.*",)), Rename(prefix="p"), "latest", 3, shards=1),
        Link("us", "eu", batches=(Batches(codec="zstd", merge="off", linger_ms=9),)),
        Link("us", "eu", dead_letters=DeadLetterTopic("d", "source"), policies=(Policy(record_faults="skip"),)),
        Link("us", "eu", edits=(Edit(("other",), drop=True),)),
    ]
    assert len({policy_hash(each, "orders") for each in same}) == 1


def test_whatever_changes_records_changes_it() -> None:
    edit: Callable[..., Link] = lambda **options: Link("us", "eu", edits=(Edit(**options),))  # noqa: E731
    header = [Where(header=HeaderIs("a")), Where(header=HeaderIs("b")), Where(header=HeaderIs("a", prefix="b"))]
    different = [
        Link("us", "eu"),
        Link("us", "eu", isolation="read_uncommitted"),
        Link("us", "eu", provenance=True),
        Link("us", "eu", loops="prevent"),
        edit(drop="tombstones"),
        *(edit(keep=True, where=where) for where in header),
        *(edit(drop=True, where=where) for where in header),
        Link("us", "eu", edits=(Edit(drop="tombstones"), Edit(keep=True, where=header[0]))),
        Link("us", "eu", edits=(Edit(keep=True, where=header[0]), Edit(drop="tombstones"))),
    ]
    assert len({policy_hash(each, "orders") for each in different}) == len(different)


def test_a_topic_that_no_edit_names_keeps_its_policy() -> None:
    named = Link("us", "eu", edits=(Edit(("orders",), drop=True),))
    assert policy_hash(named, "payments") == policy_hash(Link("us", "eu"), "payments")
    assert policy_hash(named, "orders") != policy_hash(Link("us", "eu"), "orders")
