"""Records as columns of views, for plug-ins, and what they choose and change packed again."""

import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator._core import BadRecords, Columns, Replacement, Scratch
from tests.oracle import records as oracle
from tests.oracle.batch import LOG_APPEND_TIME, Batch
from tests.oracle.records import Record
from tests.oracle.scripted_log import BASE_TIMESTAMP, batch_of, recs, signed_varint, sized
from tests.unit.test_records import SOUND, any_packed, packed, rebuilt, some_bytes

EXAMPLES = settings(deadline=None, max_examples=100)
MANY = 1 << 30


def plain(views: list[memoryview | None]) -> list[bytes | None]:
    return [None if each is None else bytes(each) for each in views]


@EXAMPLES
@given(given=any_packed(), first_offset=st.sampled_from([-1, 0, 2**40]))
def test_columns_hold_what_the_model_finds(given, first_offset):
    header, payload = given
    columns = Scratch().columns(header, payload, first_offset)
    records = oracle.walk(header, payload, first_offset)
    assert len(columns) == len(records)
    assert columns.offsets.dtype == columns.timestamps.dtype == np.int64
    assert columns.offsets.tolist() == [each.offset for each in records]
    assert columns.timestamps.tolist() == [each.timestamp for each in records]
    assert plain(columns.keys) == [each.key for each in records]
    assert plain(columns.values) == [each.value for each in records]
    assert columns.headers == [each.headers for each in records]
    assert columns.headers is columns.headers


headers = st.lists(st.tuples(st.binary(max_size=5), some_bytes), max_size=3).map(tuple)
times = st.one_of(st.none(), st.integers(BASE_TIMESTAMP - 2**40, BASE_TIMESTAMP + 2**40))
replacements = st.builds(Replacement, some_bytes, some_bytes, st.one_of(st.none(), headers), times)


def changed(record: Record, by: Replacement, base: int, stamped: bool) -> Record:
    tail = sized(by.key) + sized(by.value)
    found = by.headers if by.headers is not None else record.headers
    fresh = signed_varint(len(found)) + b"".join(sized(name) + sized(value) for name, value in found)
    time = record.timestamp if by.timestamp is None or stamped else by.timestamp
    return replace(record, key=by.key, value=by.value, headers=found, timestamp=time, tail=tail + fresh)


@EXAMPLES
@given(given=any_packed(), data=st.data())
def test_choices_and_replacements_are_packed(given, data):
    header, payload = given
    records = oracle.walk(header, payload)
    keep = data.draw(st.lists(st.booleans(), min_size=len(records), max_size=len(records)))
    by_index = data.draw(st.dictionaries(st.integers(0, len(records) - 1), replacements, max_size=4))
    scratch = Scratch()
    made = scratch.pack(header, payload, keep, by_index)
    batch = Batch.parse(header[:8] + struct.pack(">i", 49) + header[12:])
    stamped = bool(batch.attributes & LOG_APPEND_TIME)
    wanted = [
        changed(record, by_index[n], batch.base_timestamp, stamped) if n in by_index else record
        for n, record in enumerate(records)
        if keep[n]
    ]
    scratch.feed(header, made, 0, count=sum(keep))
    assert rebuilt(scratch) == list(oracle.outputs(wanted, MANY, 4096))


def test_what_is_kept_as_it_is_is_not_written_anew():
    header, payload = packed(batch_of(recs(4)))
    assert Scratch().pack(header, payload, [True] * 4, {}) == payload
    assert Scratch().pack(header, payload, np.zeros(4, bool), {}) == b""


@pytest.mark.parametrize(("header", "payload"), SOUND)
def test_what_is_not_sound_has_no_columns(header, payload):
    for size in range(len(payload)):
        with pytest.raises(BadRecords):
            Scratch().columns(header, payload[:size])
        with pytest.raises(BadRecords):
            Scratch().pack(header, payload[:size], [True] * 10, {})


def test_a_count_that_lies_takes_no_memory():
    header, payload = packed(Batch(count=2**31 - 1))
    with pytest.raises(BadRecords):
        Scratch().columns(header, payload)


def test_columns_come_from_a_scratch_and_cannot_be_written_to():
    with pytest.raises(TypeError):
        Columns()
    header, payload = packed(batch_of(recs(1)))
    columns = Scratch().columns(header, bytearray(payload))
    with pytest.raises(TypeError):
        columns.values[0][0] = 1


@pytest.mark.parametrize(
    ("keep", "by_index", "what"),
    [
        ([True], {}, "1 choices"),
        ([True] * 3, {}, "3 choices"),
        ([True] * 2, {2: Replacement(b"", b"")}, r"replacements of \[2\] for 2 records"),
        ([True] * 2, {-1: Replacement(b"", b"")}, r"replacements of \[-1\] for 2 records"),
        ([True] * 2, {1: Replacement("text", b"")}, "the replacement of record 1"),
        ([True] * 2, {1: (b"key", b"value")}, "the replacement of record 1"),
        ([True] * 2, {1: Replacement(b"", b"", [(None, b"")])}, "the replacement of record 1: a header has no name"),
        ([True] * 2, {1: Replacement(b"", b"", [b"name"])}, "the replacement of record 1"),
        ([True] * 2, {1: Replacement(b"", b"", None, 2**63)}, "the replacement of record 1"),
        ([True] * 2, {1: Replacement(b"", b"", None, -(2**63))}, "the replacement of record 1"),
    ],
)
def test_choices_and_replacements_that_do_not_fit(keep: Any, by_index: Any, what: str):
    with pytest.raises(ValueError, match=what):
        Scratch().pack(*packed(batch_of(recs(2))), keep, by_index)
