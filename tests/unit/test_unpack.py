"""Opened batches: the records that producers put in come out; what nobody puts in is refused in one line."""

import contextlib
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator._core import open_batch
from replicator.data.codecs import UnpackError, decode
from replicator.data.log_reader import StoredBatch
from replicator.data.unpack import split_headers, split_records
from tests.oracle.scripted_log import BASE_TIMESTAMP, GZIP, LZ4, NONE, SNAPPY, ZSTD, Rec, encode_record, pack, recs

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # kafka-python reads its resources in an old way
    from kafka.record.default_records import DefaultRecordBatchBuilder

CODECS = [NONE, GZIP, SNAPPY, LZ4, ZSTD]

some_bytes = st.one_of(st.none(), st.binary(max_size=300))
any_records = st.lists(
    st.builds(
        Rec,
        value=some_bytes,
        key=some_bytes,
        timestamp=st.integers(BASE_TIMESTAMP - 2**40, BASE_TIMESTAMP + 2**40),
        headers=st.lists(st.tuples(st.text(max_size=5), some_bytes), max_size=3).map(tuple),
    ),
    min_size=1,
    max_size=10,
)


def section_of(records: list[Rec], deltas: list[int] | None = None) -> bytes:
    deltas = list(range(len(records))) if deltas is None else deltas
    return b"".join(encode_record(*each, BASE_TIMESTAMP) for each in zip(records, deltas, strict=True))


@given(any_records, st.sampled_from(CODECS))
def test_what_is_packed_comes_out(records: list[Rec], codec: int) -> None:
    found = split_records(bytes(decode(codec, pack(section_of(records), codec))), len(records))
    assert [(each.key, each.value, BASE_TIMESTAMP + each.timestamp_delta) for each in found] == [
        (record.key, record.value, record.timestamp) for record in records
    ]
    assert [each.offset_delta for each in found] == list(range(len(records)))


@pytest.mark.parametrize("codec", [NONE, GZIP])
def test_what_another_client_packs_comes_out(codec: int) -> None:
    builder = DefaultRecordBatchBuilder(2, codec, 0, -1, -1, -1, 1 << 20)
    wanted = recs(50)
    for n, record in enumerate(wanted):
        builder.append(n, record.timestamp, record.key, record.value, list(record.headers))
    raw = bytes(builder.build())
    header = open_batch(raw)
    assert header
    batch = StoredBatch(header, memoryview(raw))
    assert batch.intact
    assert list(batch.between(0, 100)) == list(range(50))
    found = [batch.at(n) for n in range(50)]
    assert [(each.key, each.value, batch.timestamp(each)) for each in found] == [
        (record.key, record.value, record.timestamp) for record in wanted
    ]
    headers = [each.headers for each in found]
    assert headers == [bytes(split_records(encode_record(record, 0, 0), 1)[0].headers) for record in wanted]


@given(any_records, st.data())
def test_no_bytes_do_any_harm(records: list[Rec], data: st.DataObject) -> None:
    section = bytearray(section_of(records))
    for _ in range(data.draw(st.integers(1, 3))):
        section[data.draw(st.integers(0, len(section) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(UnpackError):
        assert len(split_records(bytes(section), len(records))) == len(records)


@given(any_records)
def test_headers_come_out(records: list[Rec]) -> None:
    for record in records:
        (found,) = split_records(encode_record(record, 0, BASE_TIMESTAMP), 1)
        assert split_headers(found.headers) == [(name.encode(), value) for name, value in record.headers]


@given(st.binary(max_size=12))
def test_no_headers_do_any_harm(encoded: bytes) -> None:
    with contextlib.suppress(UnpackError):
        assert len(split_headers(encoded)) <= len(encoded) // 2


@pytest.mark.parametrize(
    ("encoded", "what"),
    [
        (b"", "header 0 ends too early"),
        (b"\x02\x02a", "header 0 ends too early"),
        (b"\x02\x01\x01", "header 0 has no name"),
        (b"\x02\x7ea", "claims 63 bytes, 1 are left"),
        (b"\x00\x00", "1 bytes are left behind 0 headers"),
        (b"\x01", "left behind -1 headers"),
    ],
)
def test_what_is_wrong_with_headers(encoded: bytes, what: str) -> None:
    with pytest.raises(UnpackError, match=what):
        split_headers(encoded)


@pytest.mark.parametrize(
    ("section", "count", "what"),
    [
        (section_of(recs(3)), 4, "record 3 ends too early"),
        (section_of(recs(3)), 2, "bytes are left behind the last record"),
        (section_of(recs(3), [0, 2, 2]), 3, "record 2 has offset delta 2 after 2"),
        (b"\xff" * 20, 1, "a number of more than 10 bytes"),
        (b"\x7e" + bytes(5), 1, "record 0 claims 63 bytes, 5 are left"),
        (b"\x0c\0\0\0\x7e\0\0", 1, "a key or value claims 63 bytes, 2 are left"),
    ],
)
def test_what_is_wrong_with_records(section: bytes, count: int, what: str) -> None:
    with pytest.raises(UnpackError, match=what):
        split_records(section, count)
