"""Filters, edits and screens of records, against the slow model, and recipes that are none."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator._core import BadRecords, Diverted, Recipe, Scratch
from tests.oracle import recipe as recipe_oracle
from tests.oracle import records as oracle
from tests.oracle.batch import Batch
from tests.oracle.scripted_log import BASE_TIMESTAMP, Rec, batch_of, recs
from tests.unit.test_records import any_packed, any_records, packed, read_elsewhere, rebuilt

EXAMPLES = settings(deadline=None, max_examples=150)
MANY = 1 << 30

# ---- any recipe ----

names = st.sampled_from([b"a", b"b", b"trace", b"x-span", b"", b"replicator.hops", b"replicator.source.topic"])
contents = st.sampled_from([b"", b"k", b"key", b"ey", b"v" * 70, b"here", b"here,there", b"there"])
matchers = st.one_of(names, st.sampled_from([".*", "x-(.*)", "(a|b)", "t.*e", "(a)|b", "replicator[.](.*)"]))
operators = st.sampled_from(["equals", "prefix", "suffix", "contains"])
times = st.one_of(st.none(), st.integers(BASE_TIMESTAMP - 50, BASE_TIMESTAMP + 2**36))

leaves = st.one_of(
    st.just(("tombstone",)),
    st.just(("key_null",)),
    st.tuples(st.just("key"), operators, contents),
    st.tuples(st.just("header"), names),
    st.tuples(st.just("header"), names, operators, contents),
    st.tuples(st.just("timestamp"), times, times),
    st.tuples(st.just("size"), st.integers(0, 90)),
)
tests = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(st.just("not"), inner),
        st.lists(inner, min_size=1, max_size=3).map(lambda each: ("any", *each)),
        st.lists(inner, min_size=1, max_size=3).map(lambda each: ("all", *each)),
    ),
    max_leaves=6,
)
optional_tests = st.one_of(st.none(), tests)
values = st.one_of(st.none(), contents)


@st.composite
def renames(draw: Any) -> tuple[Any, ...]:
    matcher = draw(matchers)
    groups = isinstance(matcher, str) and re.compile(matcher).groups
    replacement = draw(st.sampled_from(["new", "", "a", *([r"y-\1", r"\g<1>\1"] if groups else [])]))
    return ("header_rename", matcher, replacement, draw(optional_tests))


steps = st.one_of(
    st.tuples(st.just("drop"), tests),
    st.tuples(st.just("keep"), tests),
    st.tuples(st.just("divert"), st.sampled_from(["too large", "not wanted"]), tests),
    st.tuples(st.just("header_add"), names, values, optional_tests),
    st.tuples(st.just("header_set"), names, values, optional_tests),
    st.tuples(st.just("header_drop"), matchers, optional_tests),
    renames(),
    st.tuples(st.just("drop_hops"), st.sampled_from([b"here", b"there", b"elsewhere", b""])),
    st.tuples(st.just("hop"), st.sampled_from([b"here", b"there", b"elsewhere"])),
)
PROVENANCE = ("provenance", b"here", b"orders", 12)


@st.composite
def recipes(draw: Any) -> tuple[Any, ...]:
    made = draw(st.lists(steps, max_size=3))
    if draw(st.booleans()):
        made.insert(draw(st.integers(0, len(made))), PROVENANCE)
    return tuple(made)


def letters_of(letters: list[recipe_oracle.Letter]) -> list[Diverted]:
    found = []
    for record, reason in ((each.record, each.reason) for each in letters):
        found.append(Diverted(record.offset, record.timestamp, record.key, record.value, record.headers, reason))
    return found


@EXAMPLES
@given(given=any_packed(), made=recipes(), wanted=st.sampled_from([0, 0, 8]), bytes_max=st.sampled_from([100, MANY]))
def test_any_recipe_does_what_the_model_does(given, made, wanted, bytes_max):
    header, payload = given
    scratch, recipe = Scratch(), Recipe(made)
    records = [each for each in oracle.walk(header, payload) if each.offset >= wanted]
    kept, letters = recipe_oracle.apply(made, records)
    for _ in range(2):  # the second time with all names known
        scratch.clear()
        scratch.feed(header, payload, wanted, recipe)
        assert rebuilt(scratch, bytes_max) == list(oracle.outputs(kept, bytes_max, 4096))
        assert not scratch.untouched or (kept == records and oracle.is_untouched(header, kept))
        assert scratch.diverted == letters_of(letters)


@EXAMPLES
@given(given=any_packed(), made=recipes())
def test_what_a_recipe_makes_is_read_by_another_client(given, made):
    header, payload = given
    scratch = Scratch()
    scratch.feed(header, payload, 0, Recipe(made))
    kept, _ = recipe_oracle.apply(made, oracle.walk(header, payload))
    for built in rebuilt(scratch):
        times = {"base_timestamp": built.base_timestamp, "max_timestamp": built.max_timestamp}
        assert read_elsewhere(Batch(0, built.count, built.records, **times).encode()) == [
            (n, each.timestamp, each.key, each.value, [(name.decode(), value) for name, value in each.headers])
            for n, each in enumerate(kept)
        ]


@EXAMPLES
@given(batches=st.lists(any_records(), min_size=1, max_size=3), made=recipes())
def test_batches_that_are_fed_together_share_a_recipe(batches, made):
    scratch, recipe, kept, letters, offset = Scratch(), Recipe(made), [], [], 0
    for records in batches:
        header, payload = packed(batch_of(records))
        scratch.feed(header, payload, 0, recipe, offset)
        some_kept, some_letters = recipe_oracle.apply(made, oracle.walk(header, payload, offset))
        kept, letters, offset = kept + some_kept, letters + some_letters, offset + len(records)
    assert rebuilt(scratch) == list(oracle.outputs(kept, MANY, 4096))
    assert scratch.diverted == letters_of(letters)


def headers_after(made: tuple[Any, ...], *headers: tuple[str, bytes | None], offset: int = 0) -> list[Any]:
    scratch = Scratch()
    scratch.feed(*packed(batch_of([Rec(headers=headers)], offset)), 0, Recipe(made))
    (built,) = rebuilt(scratch)
    ((*_, found),) = read_elsewhere(Batch(0, 1, built.records, base_timestamp=built.base_timestamp).encode())
    return found


def test_headers_are_added_set_dropped_and_renamed_in_turn():
    made = (
        ("header_add", b"a", b"1", None),
        ("header_set", b"b", None, ("header", b"a", "equals", b"1")),
        ("header_drop", "x-.*", None),
        ("header_rename", r"trace-(\w+)", r"\1", None),
        ("header_rename", b"id", "id2", ("header", b"no such")),
    )
    before = [("b", b"0"), ("trace-id", b"t"), ("x-y", b""), ("b", b"9")]
    assert headers_after(made, *before) == [("id", b"t"), ("a", b"1"), ("b", None)]


def test_where_a_record_is_from_is_said_once_and_every_hop_is_added():
    first = headers_after((("provenance", b"A", b"orders", 3),), offset=2**62)
    source = [("cluster", b"A"), ("topic", b"orders"), ("partition", b"3"), ("offset", b"%d" % 2**62)]
    assert first == [*((f"replicator.source.{name}", value) for name, value in source), ("replicator.hops", b"A")]
    second = headers_after((("provenance", b"B", b"copy", 4),), *first)
    assert second == [*first[:-1], ("replicator.hops", b"A,B")]


def test_a_hop_is_said_once():
    hops = lambda *given, before=(): dict(headers_after(tuple(("hop", each) for each in given), *before))  # noqa: E731
    assert hops(b"A") == {"replicator.hops": b"A"}
    assert hops(b"A", b"A") == {"replicator.hops": b"A"}
    assert hops(b"A", b"B", b"C", b"D") == {"replicator.hops": b"A,B,C,D"}
    assert hops(b"A", b"B", b"AA", before=[("replicator.hops", b"B,A")]) == {"replicator.hops": b"B,A,AA"}
    assert hops(b"A", before=[("replicator.hops", None)]) == {"replicator.hops": b"A"}
    both = headers_after((("hop", b"X"), ("provenance", b"A", b"orders", 3)))
    assert both[0] == ("replicator.hops", b"X,A")


def test_a_list_of_hops_stays_what_it_was_when_another_header_takes_its_name():
    rename = ("header_rename", b"replicator.hops", "was", None)
    made = (("hop", b"B"), rename, ("hop", b"C"), ("hop", b"D" * 90))
    assert headers_after(made, ("replicator.hops", b"A")) == [("was", b"A,B"), ("replicator.hops", b"C," + b"D" * 90)]


def kept_by(made: tuple[Any, ...], records: list[Rec]) -> tuple[Any, ...]:
    scratch = Scratch()
    scratch.feed(*packed(batch_of(records)), 0, Recipe(made))
    return tuple(run for built in rebuilt(scratch) for run in built.runs)


def test_records_that_have_been_here_are_dropped():
    hops = [None, b"", b"there", b"there,here", b"here,there", b"here", b"heres,nothere"]
    records = [Rec(headers=(("replicator.hops", each),)) for each in hops]
    assert kept_by((("drop_hops", b"here"),), records) == ((0, 3), (6, 1))


def test_untouched_is_what_can_be_forwarded():
    header, payload = packed(batch_of(recs(5), 10))
    scratch = Scratch()
    for made, wanted, untouched in [
        ((), 0, True),
        ((("drop", ("tombstone",)), ("keep", ("header", b"number"))), 0, True),
        ((("drop", ("key", "equals", b"key 3")),), 0, False),
        ((("divert", "no", ("key", "equals", b"key 3")),), 0, False),
        ((("header_add", b"a", b"", ("key", "equals", b"key 3")),), 0, False),
        ((("header_drop", "x.*", None), ("header_rename", b"null", "null", ("key_null",))), 0, True),
        ((), 11, False),
    ]:
        scratch.clear()
        scratch.feed(header, payload, wanted, Recipe(made))
        assert scratch.untouched is untouched, made


def test_names_that_are_no_text_are_matched_too():
    record = oracle.walk(*packed(batch_of([Rec()])))[0].with_headers(((b"x-\xff", b"1"), (b"\xfe", None)))
    header, _ = packed(batch_of([Rec()]))
    payload = record.encode(0, 0)
    scratch, made = Scratch(), (("header_rename", "x-(.*)", r"\1\1", None), ("header_drop", "\udcfe", None))
    scratch.feed(header, payload, 0, Recipe(made))
    (built,) = rebuilt(scratch)
    assert oracle.walk(header, built.records)[0].headers == ((b"\xff\xff", b"1"),)


# ---- names that are asked for ----


def test_more_names_than_are_remembered():
    records = [Rec(headers=tuple((f"x-{n}-{m}", None) for m in range(3))) for n in range(3_000)]
    header, payload = packed(batch_of(records))
    scratch, made = Scratch(), (("header_drop", r"x-\d+-[02]", None),)
    for _ in range(2):
        scratch.clear()
        scratch.feed(header, payload, 0, Recipe(made))
        (built,) = rebuilt(scratch)
        kept = oracle.walk(packed(batch_of(records))[0], built.records)
        assert [each.headers for each in kept] == [((b"x-%d-1" % n, None),) for n in range(3_000)]


@pytest.mark.parametrize(
    "names", [[f"{n}" for n in range(5_000)], ["x" * (1 << 22)]], ids=["too many in a record", "too long"]
)
def test_names_that_cannot_be_remembered_are_a_fault_of_the_record(names):
    bad = Rec(headers=tuple((name, None) for name in names))
    scratch, recipe = Scratch(), Recipe((("header_drop", "x.*", None),))
    with pytest.raises(BadRecords, match="record 1 has header names that are too many or too long to be matched"):
        scratch.feed(*packed(batch_of([Rec(), bad, Rec()])), 0, recipe)
    assert rebuilt(scratch) == []
    scratch.feed(*packed(batch_of(recs(2))), 0, recipe)
    assert [each.runs for each in rebuilt(scratch)] == [((0, 2),)]


def test_more_headers_than_are_looked_at():
    many = Rec(headers=(("", None),) * (1 << 16))
    assert kept_by((("header_drop", "x", None),), [many]) == ((0, 1),)
    with pytest.raises(BadRecords, match="record 0 has more headers than can be looked at"):
        kept_by((("header_add", b"one more", None, None),), [many])
    assert kept_by((("drop", ("tombstone",)),), [many]) == ((0, 1),)


def test_headers_that_grow_beyond_all_bounds():
    made = tuple(("header_add", b"large", bytes(1 << 20), None) for _ in range(257))
    with pytest.raises(BadRecords, match="record 0 becomes too large"):
        kept_by(made, [Rec()])


def test_a_feed_that_fails_gives_its_room_back():
    recipe = Recipe(tuple(("header_add", b"large", bytes(1 << 20), None) for _ in range(130)))
    header, payload = packed(batch_of([Rec()]))
    scratch = Scratch()
    with pytest.raises(BadRecords, match="bytes are left behind"):
        scratch.feed(header, payload + b"0", 0, recipe)
    scratch.feed(header, payload, 0, recipe)  # twice 130 MB would be too much
    assert scratch.next(MANY)
    assert scratch.record_bytes > 130 << 20


# ---- what is no recipe ----


def nested(depth: int) -> tuple[Any, ...]:
    return ("tombstone",) if depth == 1 else ("not", nested(depth - 1))


@pytest.mark.parametrize(
    ("step", "what"),
    [
        ("drop", "is no step"),
        ((), "is no step"),
        (("lose", None), "is no step"),
        (([],), "is no step"),
        (("drop",), "is no step"),
        (("drop", None, None), "is no step"),
        (("drop", "tombstone"), "is no test"),
        (("drop", ("tombstone", 1)), "is no test"),
        (("drop", ("header",)), "is no test"),
        (("drop", ("any",)), "has nothing to test"),
        (("drop", ("not",)), "is no test"),
        (("drop", ("all", ("what",))), "is no test"),
        (("drop", nested(9)), "more than 8 deep"),
        (("drop", ("any", *[("tombstone",)] * 1024)), "more than 1024 tests"),
        (("drop", ("key", "like", b"")), "is none of equals, prefix"),
        (("drop", ("key", [], b"")), "is none of equals, prefix"),
        (("drop", ("key", "equals", "text")), "bytes should stand where 'text'"),
        (("drop", ("header", "text")), "bytes should stand where 'text'"),
        (("drop", ("size", "large")), "size"),
        (("drop", ("size", 2**63)), "size"),
        (("drop", ("timestamp", "now", None)), "timestamp"),
        (("divert", None, ("tombstone",)), "a reason should stand where None"),
        (("header_add", b"name", bytes((1 << 20) + 1), None), "at most 1048576 bytes"),
        (("header_add", None, b"value", None), "bytes should stand where None"),
        (("header_drop", "(", None), "unterminated"),
        (("header_drop", None, None), "bytes should stand where None"),
        (("header_rename", "(a)", r"\2", None), "invalid group reference"),
        (("header_rename", "a", b"b", None), "a name should stand where b'b'"),
        (("header_rename", "a", "\ud800", None), "surrogates not allowed"),
        (("provenance", b"A", "orders", 1), "bytes should stand where 'orders'"),
        (("provenance", b"A", b"orders", "1"), "a partition should stand where '1'"),
    ],
)
def test_what_is_no_recipe_is_refused_in_a_line(step, what):
    with pytest.raises(ValueError, match=what):
        Recipe((step,))


def test_steps_that_are_too_many():
    with pytest.raises(ValueError, match="one too many"):
        Recipe((PROVENANCE, PROVENANCE))
    with pytest.raises(ValueError, match="step 4 is one too many"):
        Recipe((*[("hop", b"A")] * 3, PROVENANCE, ("hop", b"B")))
    with pytest.raises(ValueError, match="step 1024 is one too many"):
        Recipe((("drop_hops", b"here"),) * 1025)
    assert Recipe((("drop", nested(8)),)).steps == (("drop", nested(8)),)
