"""What a plug-in in Python costs: MB/s of records of one core, opened, transformed and made anew, in memory.

Each plug-in stands beside the native recipe that does the same, or as near as a recipe comes: a recipe does not look
into values, so the one beside `drop by a JSON field` leaves out as many records by their key. All take turns.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from bench.records import pool
from replicator._core import Batch, BatchHeader, Pool, open_batch
from replicator.config.plug_ins import PlugIn
from replicator.data.codecs import CODECS, LZ4, NONE
from replicator.data.orders import LaneSpec, TargetTopic
from replicator.data.plug_ins import Stage
from replicator.data.rebuild import Opener
from replicator.data.refusals import Refusals
from replicator.transforms import PARTS, Columns, Place, Replacement, Selection, Transform
from tests.oracle.scripted_log import Rec, batch_of

BATCH_BYTES = 64 << 10
RECORD_BYTES = (100, 1000)
ROUND_BYTES = 32 << 20  # a figure is the time for so much
PREFIX = "host-01"  # of the keys of a fifth of the records
PLACE = Place("bench", "a", "b", "logs", "logs", 0)

Call = Callable[[], Any]


# ---- the plug-ins ----


class _Level(msgspec.Struct):
    level: str


class DropByField:
    """Leaves records out by a field of the JSON in their values; of a struct with one field only that is read."""

    changes = ()

    def __init__(self, options: Mapping[str, Any], place: Place) -> None:
        self._level: str = options["level"]
        self._decode = msgspec.json.Decoder(_Level).decode

    def __call__(self, columns: Columns) -> Selection:
        decode, level = self._decode, self._level
        return Selection([value is None or decode(value).level != level for value in columns.values])


class MarkByKey:
    """Appends a header to the records whose key begins with a prefix."""

    changes = ("headers",)
    drops = False

    def __init__(self, options: Mapping[str, Any], place: Place) -> None:
        self._prefix, self._header = options["prefix"].encode(), (b"marked", b"yes")

    def __call__(self, columns: Columns) -> Selection:
        prefix, size, keys = self._prefix, len(self._prefix), columns.keys
        found = [at for at, key in enumerate(keys) if key is not None and key[:size] == prefix]
        headers, values = columns.headers if found else [], columns.values
        marked = {at: Replacement(keys[at], values[at], (*headers[at], self._header)) for at in found}
        return Selection(replacements=marked)


class Look:
    """Looks at each key, and has nothing against it: the least that a plug-in costs."""

    changes, drops = (), False

    def __init__(self, options: Mapping[str, Any], place: Place) -> None:
        self._prefix = options["prefix"].encode()

    def __call__(self, columns: Columns) -> Selection | None:
        return Selection() if self._prefix in columns.keys else None


_HAS_PREFIX = ("key", "prefix", PREFIX.encode())
_NOBODY = ("drop", ("key", "equals", b"nobody"))
QUESTIONS: list[tuple[str, Transform, tuple[Any, ...]]] = [
    ("drop by a JSON field", DropByField({"level": "DEBUG"}, PLACE), (("drop", _HAS_PREFIX),)),
    (
        "set a header by a key's prefix",
        MarkByKey({"prefix": PREFIX}, PLACE),
        (("header_add", b"marked", b"yes", _HAS_PREFIX),),
    ),
    ("look at keys, change nothing", Look({"prefix": "nobody"}, PLACE), (_NOBODY,)),
]


# ---- the question ----


class _Stored(bytes):
    """A batch as it was fetched, for who needs no lane."""

    from_offset, why, is_intact = 0, "rebuild_open", True

    @property
    def header(self) -> BatchHeader:
        found = open_batch(self)
        assert found
        return found


def run(runs: int, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """One row a question, codec and record size: every figure as its median and its range over the runs."""
    rows = []
    for question, transform, recipe in QUESTIONS:
        for codec in (NONE, LZ4):
            for size in RECORD_BYTES:
                about = {"question": f"a plug-in: {question}", "codec": CODECS[codec], "record_bytes": size}
                rows.append(about | _rates(_calls(transform, recipe, codec, size), runs))
                tell(json.dumps(rows[-1]))
    return rows


def _calls(transform: Transform, recipe: tuple[Any, ...], codec: int, size: int) -> dict[str, Call]:
    batches = [_Stored(data) for data in _batches(codec, size)]
    opener = Opener(Pool(1 << 30))
    spec = LaneSpec(0, "bench", "a", "b", "logs", "logs", 0, bytes(16), 1, 0)
    plugged = Stage([(PlugIn("bench", {}, "", PARTS, True), transform)])
    native = Refusals(msgspec.structs.replace(spec, recipe=recipe), TargetTopic())
    plain = Refusals(spec, TargetTopic())

    def through(refusals: Refusals, stage: Stage | None) -> None:
        for batch in batches:
            assert not opener.open(_as_batch(batch), refusals, stage=stage).left_out

    return {"plug_in": lambda: through(plain, plugged), "native": lambda: through(native, None)}


def _as_batch(stored: _Stored) -> Batch:
    return stored  # type: ignore[return-value]


def _batches(codec: int, size: int) -> Iterator[bytes]:
    """ROUND_BYTES of keys and values, of which an eighth is distinct."""
    records = [Rec(record["value"], record["key"]) for record in pool(size)]
    count, wanted = BATCH_BYTES // size, ROUND_BYTES // BATCH_BYTES
    distinct = [batch_of(records[at : at + count], 0, codec).encode() for at in range(0, len(records) - count, count)]
    yield from (distinct[n % len(distinct)] for n in range(wanted))


def _rates(calls: dict[str, Call], runs: int) -> dict[str, Any]:
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(runs):
        for name, call in calls.items():
            began = time.process_time()
            call()
            rates[name].append(round(ROUND_BYTES / (time.process_time() - began) / 1e6, 1))
    middle = {name: statistics.median(rate) for name, rate in rates.items()}
    spread = {
        f"{name}_mb_per_s": {"median": middle[name], "min": min(rate), "max": max(rate)} for name, rate in rates.items()
    }
    return spread | {"native_is_faster_by": round(middle["native"] / middle["plug_in"], 1)}
