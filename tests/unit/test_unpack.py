"""Opened batches: what producers pack comes out, whatever the codec; what nobody packs is refused in one line."""

import contextlib
import gzip
import struct
import warnings

import cramjam
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator._core import open_batch
from replicator.data import unpack as unpack_module
from replicator.data.log_reader import StoredBatch
from replicator.data.unpack import UnpackError, split_records, unpack
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
    found = split_records(unpack(memoryview(pack(section_of(records), codec)), codec), len(records))
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


def test_snappy_without_its_frame() -> None:
    assert unpack(memoryview(bytes(cramjam.snappy.compress_raw(b"x" * 1000))), SNAPPY) == b"x" * 1000


@pytest.mark.parametrize("codec", [GZIP, SNAPPY, LZ4, ZSTD])
def test_what_unpacks_to_too_much_is_refused(codec: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack_module, "UNPACKED_BYTES_MAX", 1 << 20)
    packed = {
        GZIP: gzip.compress(bytes(1 << 21)),
        SNAPPY: bytes(cramjam.snappy.compress_raw(bytes(1 << 21))),
        LZ4: bytes(cramjam.lz4.compress(bytes(1 << 21))),
        ZSTD: bytes(cramjam.zstd.compress(bytes(1 << 21))),
    }[codec]
    assert len(packed) < 1 << 17
    with pytest.raises(UnpackError, match="more than 1 MiB when it is unpacked"):
        unpack(memoryview(packed), codec)
    assert len(unpack(memoryview(pack(bytes(1 << 20), codec)), codec)) == 1 << 20


@pytest.mark.parametrize("codec", [GZIP, SNAPPY, LZ4, ZSTD])
def test_what_is_cut_or_no_such_codec_is_refused(codec: int) -> None:
    whole = pack(section_of(recs(20)), codec)
    for end in (0, 5, len(whole) // 2, len(whole) - 1):
        if codec == SNAPPY and end == 0:
            continue  # nothing is nothing: the records are then found missing
        with pytest.raises(UnpackError):
            split_records(unpack(memoryview(whole[:end]), codec), 20)
    with pytest.raises(UnpackError, match="codec 6 is no codec"):
        unpack(memoryview(whole), 6)


def test_a_snappy_block_that_claims_too_much() -> None:
    framed = b"\x82SNAPPY\0" + struct.pack(">iii", 1, 1, 1000) + b"short"
    with pytest.raises(UnpackError, match="a block of 1000 bytes where 5 are left"):
        unpack(memoryview(framed), SNAPPY)


@given(any_records, st.data())
def test_no_bytes_do_any_harm(records: list[Rec], data: st.DataObject) -> None:
    section = bytearray(section_of(records))
    for _ in range(data.draw(st.integers(1, 3))):
        section[data.draw(st.integers(0, len(section) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(UnpackError):
        assert len(split_records(bytes(section), len(records))) == len(records)


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
