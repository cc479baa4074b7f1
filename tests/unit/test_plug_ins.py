"""Plug-ins at work: what they say is done, and believed only as far as it can be."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator._core import Batch, Terms
from replicator.config.plug_ins import PlugIn
from replicator.data import plug_ins as at_work
from replicator.data.orders import LaneSpec, TargetTopic
from replicator.data.plug_ins import Stage
from replicator.data.rebuild import LeftOut, Opened, Opener
from replicator.data.refusals import Refusal, Refusals
from replicator.data.states import Checkpoint
from replicator.transforms import PARTS, Columns, ListedColumns, Replacement, Selection, Transform
from tests.oracle.batch import LOG_APPEND_TIME
from tests.oracle.batch import Batch as WireBatch
from tests.oracle.opened import opened
from tests.oracle.rig import LaneRig, Rig
from tests.oracle.scripted_log import BASE_TIMESTAMP, LZ4, NONE, Rec, batch_of, recs

EXAMPLES = settings(deadline=None, max_examples=150)
EVERYTHING = PlugIn("test", {}, "1", PARTS, True)
LANE = LaneSpec(0, "us-eu", "us", "eu", "orders", "orders", 0, bytes(16), 1, 0)

Content = tuple[bytes | None, bytes | None, tuple[tuple[bytes, bytes | None], ...], int]
"""Key, value, headers, timestamp."""


def stage(*transforms: Transform, plug_in: PlugIn = EVERYTHING) -> Stage:
    return Stage([(plug_in, transform) for transform in transforms])


class Scene:
    """A batch on its way through a lane with plug-ins."""

    def __init__(self, batch: WireBatch, of: Stage, recipe: tuple[Any, ...] = ()) -> None:
        self.rig = Rig()
        self.lane: LaneRig = self.rig.start(self.rig.lane(terms=Terms(opens=True)))
        self.rig.fetch(self.lane, batch)
        raw = self.lane.native.raw(0)
        assert raw is not None
        self.raw: Batch = raw
        spec = LaneSpec(*(getattr(LANE, name) for name in LANE.__struct_fields__[:10]), recipe=recipe)
        self.refusals = Refusals(spec, TargetTopic())
        self.result: Opened = Opener(self.rig.pool).open(raw, self.refusals, stage=of)

    @property
    def contents(self) -> list[tuple[int, Content]]:
        """What is sent, by source offset."""
        assert self.result.made is not None
        made = list(self.result.made)
        assert self.lane.native.replace(made) == "pass"
        found: list[Content] = []
        while request := self.rig.gather():
            for _, _, data in request.batches:
                found += [(r.key, r.value, r.headers, r.timestamp) for r in opened(data).records]
            self.rig.acknowledge(request)
        segments = self.lane.native.segments()
        offsets = [first + n for first, _, count in segments for n in range(count)]
        return list(zip(offsets, found, strict=True))

    def __enter__(self) -> "Scene":
        self.rig.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.rig.__exit__(*error)


def content(record: Rec) -> Content:
    return (
        record.key,
        record.value,
        tuple((name.encode(), value) for name, value in record.headers),
        record.timestamp,
    )


# ---- against a simple model ----

FATES = st.sampled_from(["keep", "keep", "keep", "drop", "raise", "nonsense", "value", "key", "headers", "time", "all"])


def becomes(old: Content, fate: str, mark: bytes) -> Content:
    key, value, headers, timestamp = old
    return {
        "value": (key, mark, headers, timestamp),
        "key": (mark, value, headers, timestamp),
        "headers": (key, value, ((mark, None), (b"", mark)), timestamp),
        "time": (key, value, headers, timestamp + 7),
        "all": (None, None, (), 1),
    }.get(fate, old)


class Fated:
    """Does to each record what is said for its offset."""

    def __init__(self, fates: dict[int, str], mark: bytes, as_numpy: bool) -> None:
        self.fates, self.mark, self.as_numpy = fates, mark, as_numpy

    def __call__(self, columns: Columns) -> Selection | None:
        fates = [self.fates[offset] for offset in columns.offsets.tolist()]
        if "raise" in fates:
            raise LookupError(f"no good, says {self.mark!r}\nat all")
        if set(fates) <= {"keep"}:
            return None
        replacements: dict[int, Any] = {}
        for at, fate in enumerate(fates):
            key, value = columns.keys[at], columns.values[at]
            times = columns.timestamps
            if fate == "nonsense":
                replacements[at] = (key, value)
            elif fate not in ("keep", "drop"):
                old = (None, None, columns.headers[at], int(times[at]))
                new = becomes(old, fate, self.mark)
                if fate in ("value", "headers", "time"):
                    new = (key, *new[1:])
                if fate in ("key", "headers", "time"):
                    new = (new[0], value, *new[2:])
                replacements[at] = Replacement(
                    new[0],
                    new[1],
                    new[2] if fate in ("headers", "all") else None,
                    new[3] if fate in ("time", "all") else None,
                )
        keep: Any = [fate != "drop" for fate in fates]
        return Selection(np.array(keep) if self.as_numpy else keep, replacements)


@st.composite
def scenes(draw: Any) -> tuple[WireBatch, list[tuple[int, Content]], list[dict[int, str]]]:
    records = recs(draw(st.integers(1, 8)), 100)
    steps = draw(st.lists(st.sampled_from([1, 1, 3]), min_size=len(records), max_size=len(records)))
    deltas = [sum(steps[:n]) for n in range(len(records))]
    attributes = draw(st.sampled_from([NONE, LZ4, LOG_APPEND_TIME]))
    codec = attributes & 7
    batch = batch_of(records, 0, codec, deltas, attributes=attributes)
    model = [(delta, content(record)) for delta, record in zip(deltas, records, strict=True)]
    if attributes & LOG_APPEND_TIME:
        model = [(offset, (*old[:3], batch.max_timestamp)) for offset, old in model]
    fates = [{delta: draw(FATES) for delta in deltas} for _ in range(draw(st.integers(1, 3)))]
    return batch, model, fates


def run_model(
    records: list[tuple[int, Content]], plug_ins: list[dict[int, str]]
) -> tuple[list[tuple[int, Content]], list[int]]:
    """What goes on, and the offsets of those that fail."""
    failed: list[int] = []
    for n, fates in enumerate(plug_ins):
        failed += [offset for offset, _ in records if fates[offset] in ("raise", "nonsense")]
        records = [
            (offset, becomes(old, fates[offset], b"mark %d" % n))
            for offset, old in records
            if fates[offset] not in ("raise", "nonsense", "drop")
        ]
    return records, sorted(failed)


@EXAMPLES
@given(scene=scenes(), as_numpy=st.booleans())
def test_what_plug_ins_say_is_done(scene: Any, as_numpy: bool) -> None:
    batch, records, fates = scene
    transforms = [Fated(each, b"mark %d" % n, as_numpy) for n, each in enumerate(fates)]
    wanted, failed = run_model(records, fates)
    with Scene(batch, stage(*transforms)) as found:
        assert [one.source_offset for one in found.result.left_out] == failed
        originals = dict(records)
        for one in found.result.left_out:
            assert (one.key, one.value, one.headers, one.timestamp) == originals[one.source_offset]
            assert one.why.reason == "transform"
            assert not one.raw
        if found.result.made is None:
            assert (wanted, failed) == (records, [])
        else:
            assert found.result.filtered == len(records) - len(wanted) - len(failed)
            assert found.contents == wanted


# ---- the cheap way through ----


@pytest.mark.parametrize("answer", [None, Selection(), Selection([True] * 3), Selection(np.ones(3, bool), {})])
def test_a_batch_that_nobody_changes_goes_as_it_is(answer: Selection | None) -> None:
    with Scene(batch_of(recs(3), 0, LZ4), stage(lambda columns: answer)) as scene:
        assert scene.result == Opened(None)


def test_a_plug_in_sees_what_the_one_before_it_made_and_nothing_if_nothing_is_left() -> None:
    seen: list[list[int]] = []

    def look(columns: Columns) -> None:
        seen.append(columns.offsets.tolist())

    of = stage(look, lambda columns: Selection([False, True, True]), look, lambda c: Selection([False] * 2), look)
    with Scene(batch_of(recs(3)), of) as scene:
        assert (scene.contents, scene.result.filtered, seen) == ([], 3, [[0, 1, 2], [1, 2]])


def test_the_recipe_comes_behind_the_plug_ins_and_diverts_what_came() -> None:
    def mark(columns: Columns) -> Selection:
        return Selection(replacements={1: Replacement(b"bad", b"new"), 2: Replacement(b"good", b"new")})

    recipe = (("divert", "marked", ("key", "equals", b"bad")), ("header_add", b"h", b"v", None))
    with Scene(batch_of(recs(3)), stage(mark), recipe) as scene:
        (one,) = scene.result.left_out
        key, value, headers, timestamp = content(recs(3)[1])
        assert one == LeftOut(1, timestamp, key, value, headers, Refusal("marked"))
        assert [(offset, new[0], new[2][-1:]) for offset, new in scene.contents] == [
            (0, b"key 0", ((b"h", b"v"),)),
            (2, b"good", ((b"h", b"v"),)),
        ]


def test_records_before_the_position_are_not_shown() -> None:
    seen: list[int] = []

    def fail(columns: Columns) -> None:
        seen.extend(columns.offsets.tolist())
        raise ValueError

    with Rig() as rig:
        lane = rig.start(rig.lane(), Checkpoint(2, 0, 0))
        rig.fetch(lane, batch_of(recs(5)))
        raw = lane.native.raw(0)
        assert raw is not None
        result = Opener(rig.pool).open(raw, Refusals(LANE, TargetTopic()), stage=stage(fail))
        assert ([one.source_offset for one in result.left_out], result.filtered) == ([2, 3, 4], 0)
        assert set(seen) == {2, 3, 4}


def test_batches_that_become_one_go_through_it_one_by_one() -> None:
    seen: list[list[int]] = []

    def thin(columns: Columns) -> Selection:
        seen.append(columns.offsets.tolist())
        if 4 in columns.offsets:
            raise ValueError
        keep = (columns.offsets % 3 != 0).tolist()
        return Selection(keep, {n: SOUND for n in range(len(columns))})

    with Rig() as rig:
        lane = rig.start(rig.lane(terms=Terms(opens=True)))
        rig.fetch(lane, batch_of(recs(3), 0), batch_of(recs(3, 3), 3))
        first, second = lane.native.raw(0), lane.native.raw(1)
        assert first
        assert second
        refusals = Refusals(LANE, TargetTopic())
        result = Opener(rig.pool).open(first, refusals, following=[second], stage=stage(thin))
        assert ([one.count for one in result.made or ()], result.batches, result.filtered) == ([3], 2, 2)
        (one,) = result.left_out
        assert (one.source_offset, one.key) == (4, b"key 4")
        assert seen == [[0, 1, 2], [3, 4, 5], [3], [4], [5]]


# ---- what is no answer ----

SOUND = Replacement(b"k", b"v")
NONSENSE: list[tuple[Any, str]] = [
    (7, "returns a int, which is no Selection"),
    ([True], "returns a list"),
    (Selection([True, False]), r"has a `keep` of bool of shape (2,), where bool of shape (1,) is due"),
    (Selection([1]), "has a `keep` of int64"),
    (Selection([[True], [True, False]]), "has a `keep` that is none"),  # type: ignore[list-item]
    (Selection(None, [SOUND]), "replacements in a list"),  # type: ignore[arg-type]
    (Selection(None, {1: SOUND}), "a replacement at place 1 of 1 records"),
    (Selection(None, {-1: SOUND}), "a replacement at place -1 of 1 records"),
    (Selection(None, {"0": SOUND}), "has a str for the place of a replacement"),  # type: ignore[dict-item]
    (Selection(None, {0: (b"k", b"v")}), "replaces a record by a tuple"),  # type: ignore[dict-item]
    (Selection(None, {0: Replacement("k", b"v")}), "has a str for a key"),  # type: ignore[arg-type]
    (Selection(None, {0: Replacement(b"k", 5)}), "has a int for a value"),  # type: ignore[arg-type]
    (Selection(None, {0: SOUND._replace(headers=b"ab")}), "has a bytes for headers"),
    (Selection(None, {0: SOUND._replace(headers=[b"ab"])}), "has a header that is no pair"),
    (Selection(None, {0: SOUND._replace(headers=[(None, b"")])}), "has a header without a name"),
    (Selection(None, {0: SOUND._replace(headers=[("n", b"")])}), "has a str for a header's name"),
    (Selection(None, {0: SOUND._replace(headers=[(b"n", 1.5)])}), "has a float for a header's value"),
    (Selection(None, {0: SOUND._replace(timestamp=1.5)}), "has a float for a timestamp"),
    (Selection(None, {0: SOUND._replace(timestamp=-2)}), "has the timestamp -2"),
    (Selection(None, {0: SOUND._replace(timestamp=2**62)}), "which is no time in milliseconds"),
    (Selection(None, {0: SOUND._replace(headers=[(b"replicator.hops", b"x")])}), "changes headers named `replicator."),
]


@pytest.mark.parametrize(("answer", "words"), NONSENSE, ids=[words for _, words in NONSENSE])
def test_nonsense_is_the_records_fault(answer: Any, words: str) -> None:
    with Scene(batch_of(recs(1)), stage(lambda columns: answer)) as scene:
        (one,) = scene.result.left_out
        assert one.why.reason == "transform"
        assert one.why.text.startswith("test: ")
        assert words in one.why.text


def test_what_it_makes_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_work, "REPLACED_BYTES_MAX", 20)
    nine = Replacement(b"key", b"val", [(b"a", b"bc")])

    def replace(columns: Columns) -> Selection:
        more = b"x" * 12 if 3 in columns.offsets else b""
        return Selection(None, {n: nine._replace(value=b"val" + more) for n in range(len(columns))})

    with Scene(batch_of(recs(4)), stage(replace)) as scene:  # all of them are too much: they go one by one
        (one,) = scene.result.left_out
        assert (one.source_offset, one.why.text) == (3, "test: has replacements of more than 20 bytes")


@pytest.mark.parametrize("part", PARTS)
def test_only_what_was_declared_may_be_changed(part: str) -> None:
    new = {"key": b"k", "value": b"v", "headers": ((b"a", b"b"),), "timestamp": 5}[part]

    def change(columns: Columns) -> Selection:
        same = Replacement(columns.keys[0], columns.values[0], columns.headers[0], int(columns.timestamps[0]))
        return Selection(replacements={0: same._replace(**{part: new})})

    allowed = PlugIn("test", {}, "1", (part,), True)  # type: ignore[arg-type]
    forbidden = PlugIn("test", {}, "1", tuple(p for p in PARTS if p != part), True)
    with Scene(batch_of(recs(1)), stage(change, plug_in=allowed)) as scene:
        assert scene.result.left_out == ()
    with Scene(batch_of(recs(1)), stage(change, plug_in=forbidden)) as scene:
        assert f"changes the {part}" in scene.result.left_out[0].why.text


def test_who_drops_nothing_must_not_drop() -> None:
    keeps = PlugIn("test", {}, "1", PARTS, False)
    with Scene(batch_of(recs(2)), stage(lambda columns: Selection([False] * len(columns)), plug_in=keeps)) as scene:
        assert [one.why.text for one in scene.result.left_out] == [
            "test: leaves a record out, but its `drops` is False"
        ] * 2


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("two\nlines"), "test: ValueError: two lines"),
        (SystemExit(3), "test: SystemExit: 3"),
        (Unspeakable(), "test: Unspeakable"),
        (MemoryError(), "test: MemoryError"),
    ],
)
def test_whatever_it_raises_is_one_line(error: BaseException, words: str) -> None:
    def fail(columns: Columns) -> Selection | None:
        if 1 in columns.offsets:
            raise type(error)(*error.args)  # a new one: each holds the frames that it went through
        return None

    with Scene(batch_of(recs(3)), stage(fail)) as scene:
        assert [(one.source_offset, one.why.text) for one in scene.result.left_out] == [(1, words)]
        assert [offset for offset, _ in scene.contents] == [0, 2]


def test_a_time_that_its_batch_cannot_hold_is_no_dead_worker() -> None:
    batch = batch_of([Rec(timestamp=-(2**63))], base_timestamp=-(2**63), max_timestamp=-(2**63))
    of = stage(lambda columns: Selection(replacements={0: SOUND._replace(timestamp=BASE_TIMESTAMP)}))
    with Scene(batch, of) as scene:
        (one,) = scene.result.left_out
        assert (one.raw, one.why.reason) == (True, "undecodable")


# ---- views ----


@pytest.mark.parametrize("codec", [NONE, LZ4])
def test_a_view_that_is_kept_stays_valid_and_takes_no_room_from_the_lanes(codec: int) -> None:
    kept: list[Any] = []

    def keep(columns: Columns) -> None:
        kept.append(columns)

    with Scene(batch_of(recs(3), 0, codec), stage(keep)) as scene:
        assert scene.lane.native.pass_raw() == "pass"
        request = scene.rig.gather()
        assert request
        scene.rig.acknowledge(request)
        del scene.raw, request
        assert scene.rig.pool.used_bytes == 0
    (columns,) = kept
    assert [bytes(value) for value in columns.values] == [b"value 0", b"value 1", b"value 2"]
    assert columns.headers[2][0] == (b"number", b"2")


def test_nothing_can_be_written_to() -> None:
    refused: list[type[BaseException]] = []

    def write(columns: Columns) -> None:
        for attempt in (_write_view, _write_time, _write_offset):
            try:
                attempt(columns)
            except (TypeError, ValueError) as error:
                refused.append(type(error))
        columns.values[0] = b"mine"  # type: ignore[index]  # a list of its own
        raise ValueError

    with Scene(batch_of(recs(1)), stage(write)) as scene:
        assert refused[:3] == [TypeError, ValueError, ValueError]
        assert scene.result.left_out[0].value == b"value 0"


def _write_view(columns: Columns) -> None:
    view = columns.values[0]
    assert view is not None
    view[0] = 1


def _write_time(columns: Columns) -> None:
    columns.timestamps[0] = 1


def _write_offset(columns: Columns) -> None:
    columns.offsets[0] = 1


def test_views_are_good_replacements() -> None:
    def swap(columns: Columns) -> Selection:
        value = columns.values[0]
        assert value is not None
        return Selection(replacements={0: Replacement(value[:5], columns.keys[0], [(b"h", columns.keys[0])])})  # type: ignore[list-item]

    with Scene(batch_of(recs(1)), stage(swap)) as scene:
        assert scene.contents[0][1][:3] == (b"value", b"key 0", ((b"h", b"key 0"),))


def test_listed_columns_are_columns() -> None:
    columns: Columns = ListedColumns.of((b"k", None), (None, b"v"), headers=[(b"h", None)], timestamp=5)
    assert (len(columns), columns.offsets.tolist(), columns.timestamps.tolist()) == (2, [0, 1], [5, 5])
    assert (columns.keys, columns.values) == ([b"k", None], [None, b"v"])
    assert columns.headers == [((b"h", None),)] * 2
