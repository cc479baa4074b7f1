"""Records walked, renumbered and built anew, against the slow model and against another client's codec."""

import contextlib
import warnings
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator._core import BadRecords, Scratch, merge_batches, open_batch, readdress
from tests.oracle import records as oracle
from tests.oracle.batch import CONTROL, DELETE_HORIZON, HEADER_SIZE, LOG_APPEND_TIME, Batch
from tests.oracle.records import Bad, Output
from tests.oracle.scripted_log import BASE_TIMESTAMP, Rec, batch_of, recs, signed_varint

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # kafka-python reads its resources in an old way
    from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder

EXAMPLES = settings(deadline=None, max_examples=100)
SLOW_ORACLE = settings(deadline=None, max_examples=40)  # a checksum bit by bit
MANY = 1 << 30

some_bytes = st.one_of(st.none(), st.binary(max_size=40), st.binary(min_size=60, max_size=70))
near_times = st.integers(BASE_TIMESTAMP - 100, BASE_TIMESTAMP + 2**36)
any_times = st.one_of(near_times, st.integers(-(2**63), 2**63 - 1))
names = st.sampled_from(["a", "b", "trace", "x-span", ""])


def any_records(times: Any = near_times, min_size: int = 1) -> Any:
    headers = st.lists(st.tuples(names, some_bytes), max_size=4).map(tuple)
    record = st.builds(Rec, value=some_bytes, key=some_bytes, timestamp=times, headers=headers)
    return st.lists(record, min_size=min_size, max_size=12)


@st.composite
def any_packed(draw: Any, times: Any = near_times) -> tuple[bytes, bytes]:
    """Header and payload of a batch, with or without holes."""
    records = draw(any_records(times))
    steps = draw(st.lists(st.sampled_from([1, 1, 1, 2, 200]), min_size=len(records), max_size=len(records)))
    deltas = [sum(steps[:n]) for n in range(len(records))]
    attributes = draw(st.sampled_from([0, 0, 0, LOG_APPEND_TIME, DELETE_HORIZON, 1]))
    base = draw(st.just(BASE_TIMESTAMP) if times is near_times else st.sampled_from([0, -1, BASE_TIMESTAMP]))
    records = [each._replace(timestamp=min(max(each.timestamp, base - 2**63), base + 2**63 - 1)) for each in records]
    last = deltas[-1] + draw(st.sampled_from([0, 0, 3]))
    offset = draw(st.sampled_from([0, 7, 2**40]))
    fields = {"attributes": attributes, "base_timestamp": base, "last_offset_delta": last}
    return packed(batch_of(records, offset, deltas=deltas, **fields))


def packed(batch: Batch) -> tuple[bytes, bytes]:
    data = replace(batch, crc=0).encode()
    return data[:HEADER_SIZE], data[HEADER_SIZE:]


def output_of(scratch: Scratch) -> Output:
    assert scratch.record_bytes == len(scratch.records)
    return Output(bytes(scratch.records), scratch.count, scratch.base_timestamp, scratch.max_timestamp, scratch.runs)


def rebuilt(scratch: Scratch, bytes_max: int = MANY, runs_max: int = 4096) -> list[Output]:
    found = []
    while scratch.next(bytes_max, runs_max):
        found.append(output_of(scratch))
    return found


# ---- walk and build ----


@EXAMPLES
@given(given=any_packed(), wanted=st.integers(0, 30), bytes_max=st.integers(0, 400), runs_max=st.integers(1, 4))
def test_what_is_kept_is_built_as_the_model_builds_it(given, wanted, bytes_max, runs_max):
    header, payload = given
    scratch = Scratch()
    scratch.feed(header, payload, wanted)
    kept = [each for each in oracle.walk(header, payload) if each.offset >= wanted]
    assert rebuilt(scratch, bytes_max, runs_max) == list(oracle.outputs(kept, bytes_max, runs_max))
    assert scratch.untouched == oracle.is_untouched(header, kept)
    assert not scratch.next(MANY)


@EXAMPLES
@given(given=any_packed(any_times))
def test_times_at_the_ends_of_64_bits(given):
    header, payload = given
    scratch = Scratch()
    try:
        kept = oracle.walk(header, payload)
    except Bad:
        with pytest.raises(BadRecords, match="a time beyond 64 bits"):
            scratch.feed(header, payload, 0)
        return
    scratch.feed(header, payload, 0)
    assert rebuilt(scratch) == list(oracle.outputs(kept, MANY, 4096))


@EXAMPLES
@given(batches=st.lists(any_records(), min_size=1, max_size=4), bytes_max=st.integers(0, 2_000))
def test_batches_that_are_fed_together_run_on(batches, bytes_max):
    scratch, kept, offset = Scratch(), [], 5
    for records in batches:
        header, payload = packed(batch_of(records))
        scratch.feed(header, payload, 0, first_offset=offset)
        kept += oracle.walk(header, payload, offset)
        offset += len(records)
    assert rebuilt(scratch, bytes_max) == list(oracle.outputs(kept, bytes_max, 4096))
    assert scratch.runs[-1][0] + scratch.runs[-1][1] == offset


def test_an_output_is_taken_back_and_built_smaller():
    scratch = Scratch()
    scratch.feed(*packed(batch_of(recs(20), 100)), 100)
    assert scratch.next(MANY)
    assert scratch.runs == ((100, 20),)
    half = scratch.record_bytes // 2
    scratch.retry()
    assert (scratch.count, scratch.runs, bytes(scratch.records)) == (0, (), b"")
    kept = oracle.walk(*packed(batch_of(recs(20), 100)))
    assert rebuilt(scratch, half) == list(oracle.outputs(kept, half, 4096))


def test_what_is_cleared_is_forgotten():
    scratch = Scratch()
    scratch.feed(*packed(batch_of(recs(3), 100)), 0)
    scratch.clear()
    assert not scratch.next(MANY)
    scratch.feed(*packed(batch_of(recs(2), 50)), 0)
    assert [each.runs for each in rebuilt(scratch)] == [((50, 2),)]


def test_much_memory_is_given_back():
    header, payload = packed(batch_of([Rec(bytes(1 << 25)), *recs(2)]))
    scratch = Scratch()
    for _ in range(2):
        scratch.feed(header, payload, 0)
        assert [each.records for each in rebuilt(scratch)] == [payload]
        scratch.clear()
    scratch.feed(*packed(batch_of(recs(2))), 0)
    assert [each.count for each in rebuilt(scratch)] == [2]


def test_a_batch_does_not_go_before_what_was_fed_already():
    scratch = Scratch()
    scratch.feed(*packed(batch_of(recs(3), 100)), 0)
    with pytest.raises(BadRecords, match="belongs before what was fed already"):
        scratch.feed(*packed(batch_of(recs(3), 102)), 0)
    assert [each.runs for each in rebuilt(scratch)] == [((100, 3),)]


def test_a_batch_of_which_records_were_taken_out_says_how_many_are_left():
    header, payload = packed(batch_of(recs(3), 10, deltas=[0, 2, 5], count=6))
    scratch = Scratch()
    with pytest.raises(BadRecords, match="record 3 is missing"):
        scratch.feed(header, payload, 0)
    scratch.feed(header, payload, 0, count=3)
    assert [each.runs for each in rebuilt(scratch)] == [((10, 1), (12, 1), (15, 1))]


def test_a_payload_is_held_until_the_scratch_is_cleared():
    header, payload = packed(batch_of(recs(3)))
    scratch, lent = Scratch(), bytearray(payload)
    scratch.feed(header, lent, 0)
    with pytest.raises(BufferError):
        lent.clear()
    scratch.clear()
    lent.clear()


# ---- what is not sound ----


def outcome(header: bytes, payload: bytes) -> Any:
    scratch = Scratch()
    try:
        scratch.feed(header, payload, 0)
    except BadRecords:
        assert not scratch.next(MANY)
        assert not scratch.untouched
        return "bad"
    return rebuilt(scratch)


def expected(header: bytes, payload: bytes) -> Any:
    try:
        return list(oracle.outputs(oracle.walk(header, payload), MANY, 4096))
    except Bad:
        return "bad"


SOUND = [
    packed(batch_of(recs(5), 3)),
    packed(batch_of([Rec(None, None), Rec(b"v" * 200, b"", BASE_TIMESTAMP - 5, (("", None),) * 3)], deltas=[0, 70])),
    packed(batch_of([Rec(timestamp=-(2**63)), Rec(timestamp=2**62)], base_timestamp=-1)),
]


@pytest.mark.parametrize(("header", "payload"), SOUND)
def test_every_truncation_is_refused(header, payload):
    for size in range(len(payload)):
        assert outcome(header, payload[:size]) == "bad" == expected(header, payload[:size])
    assert outcome(header, payload + b"\0") == "bad"


@pytest.mark.parametrize(("header", "payload"), SOUND)
def test_every_bit_flip_is_refused_or_means_what_the_model_says(header, payload):
    whole = header + payload
    for bit in range(8 * len(whole)):
        if 8 <= bit // 8 < 12:
            continue  # the length: it is who gives the payload that knows it
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        header, payload = bytes(flipped[:HEADER_SIZE]), bytes(flipped[HEADER_SIZE:])
        assert outcome(header, payload) == expected(header, payload), bit


@EXAMPLES
@given(payload=st.binary(max_size=60), count=st.integers(0, 4))
def test_arbitrary_bytes_mean_what_the_model_says(payload, count):
    header, _ = packed(Batch(count=count, last_offset_delta=5))
    assert outcome(header, payload) == expected(header, payload)


def body(*numbers: int, rest: bytes = b"") -> bytes:
    content = b"\0" + b"".join(map(signed_varint, numbers)) + rest
    return signed_varint(len(content)) + content


FAULTS = [
    ("record 0 is missing", b""),
    ("record 0 has a length that cannot be", b"\x7e" + bytes(5)),
    ("record 0 has a length that cannot be", b"\x80\x80\x80\x80\x80\x01"),
    ("record 0 has a length that cannot be", signed_varint(0)),
    ("record 0 has a length that cannot be", signed_varint(-4)),
    ("record 0 has a number, key or value that goes beyond its end", body(0, 0, 5, -1, 0)),
    ("record 0 has a number, key or value that goes beyond its end", body(0, 0, -2, -1, 0)),
    ("record 0 has a number, key or value that goes beyond its end", body(0, 0, rest=b"\xff" * 4)),
    ("record 0 has a header that goes beyond its end", body(0, 0, -1, -1, 1, -1, -1)),
    ("record 0 has a header that goes beyond its end", body(0, 0, -1, -1, -1)),
    ("record 0 has a header that goes beyond its end", body(0, 0, -1, -1, 2**31 - 1, 0, -1)),
    ("record 0 holds bytes behind its headers", body(0, 0, -1, -1, 0, 0)),
    ("record 0 has an offset that is out of order", body(0, -1, -1, -1, 0)),
    ("record 0 has an offset that is out of order", body(0, 6, -1, -1, 0)),
    ("record 0 has a time beyond 64 bits", body(2**63 - 1, 0, -1, -1, 0)),
    ("record 1 has an offset that is out of order", body(0, 2, -1, -1, 0) * 2),
    (
        "record 2 should not be: bytes are left behind the last record",
        body(0, 2, -1, -1, 0) + body(0, 3, -1, -1, 0) * 2,
    ),
]


@pytest.mark.parametrize(("what", "payload"), FAULTS)
def test_what_is_wrong_is_said_in_a_line(what, payload):
    header, _ = packed(Batch(count=2, last_offset_delta=5))
    with pytest.raises(BadRecords, match=what):
        Scratch().feed(header, payload, 0)


@pytest.mark.parametrize(
    ("what", "batch"),
    [
        ("is not of format 2", Batch(magic=1)),
        ("is a control batch's", Batch(attributes=CONTROL)),
        ("contradicts itself", Batch(count=3, last_offset_delta=1)),
        ("contradicts itself", Batch(count=-1, last_offset_delta=1)),
        ("contradicts itself", Batch(count=0, last_offset_delta=-1)),
        ("an offset that cannot be", Batch(base_offset=-1)),
        ("an offset that cannot be", Batch(base_offset=2**63 - 1)),
    ],
)
def test_what_is_wrong_with_a_header(what, batch):
    with pytest.raises(BadRecords, match=f"the batch's header .*{what}"):
        Scratch().feed(*packed(batch), 0)


def test_a_feed_that_fails_leaves_what_was_there():
    header, payload = packed(batch_of(recs(4), 10))
    scratch = Scratch()
    scratch.feed(header, payload, 0)
    with pytest.raises(BadRecords):
        scratch.feed(header, payload[:-1], 0, first_offset=14)
    scratch.feed(header, payload, 0, first_offset=14)
    assert [each.runs for each in rebuilt(scratch)] == [((10, 8),)]


def test_what_is_shorter_than_a_header_is_refused():
    with pytest.raises(ValueError, match="header"):
        Scratch().feed(bytes(HEADER_SIZE - 1), b"", 0)


# ---- another client's codec ----


def built_elsewhere(records: list[Rec]) -> bytes:
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1 << 20)
    for n, record in enumerate(records):
        builder.append(n, record.timestamp, record.key, record.value, list(record.headers))
    return bytes(builder.build())


def read_elsewhere(batch: bytes) -> list[tuple[Any, ...]]:
    opened = DefaultRecordBatch(batch)
    assert opened.validate_crc()
    return [(each.offset, each.timestamp, each.key, each.value, list(each.headers)) for each in opened]


@EXAMPLES
@given(records=any_records())
def test_what_another_client_packs_is_built_again_byte_for_byte(records):
    raw = built_elsewhere(records)
    scratch = Scratch()
    scratch.feed(raw, memoryview(raw)[HEADER_SIZE:], 0)
    (found,) = rebuilt(scratch)
    assert found.records == raw[HEADER_SIZE:]
    assert (found.count, found.max_timestamp) == (len(records), max(each.timestamp for each in records))
    assert scratch.untouched


@EXAMPLES
@given(given=any_packed(), bytes_max=st.integers(0, 400))
def test_another_client_reads_what_is_built(given, bytes_max):
    header, payload = given
    scratch = Scratch()
    scratch.feed(header, payload, 0)
    wanted = iter(oracle.walk(header, payload))
    for built in rebuilt(scratch, bytes_max):
        times = {"base_timestamp": built.base_timestamp, "max_timestamp": built.max_timestamp}
        for n, found in enumerate(read_elsewhere(Batch(0, built.count, built.records, **times).encode())):
            record = next(wanted)
            headers = [(name.decode(), value) for name, value in record.headers]
            assert found == (n, record.timestamp, record.key, record.value, headers)
    with contextlib.suppress(StopIteration):
        raise AssertionError(next(wanted))


# ---- merge ----


def parts_of(groups: list[list[Rec]], sequence: int = 2**31 - 3) -> list[bytes]:
    """Batches as a lane holds them, one behind the other."""
    parts = []
    for records in groups:
        part = bytearray(built_elsewhere(records))
        readdress(part, 9001, 3, sequence % 2**31)
        sequence += len(records)
        parts.append(bytes(part))
    return parts


@SLOW_ORACLE
@given(groups=st.lists(any_records(), min_size=1, max_size=5))
def test_batches_become_one(groups):
    parts = parts_of(groups)
    merged = merge_batches(parts)
    assert merged == oracle.merge(parts)
    wanted = [record for records in groups for record in records]
    assert read_elsewhere(merged) == [
        (n, each.timestamp, each.key, each.value, list(each.headers)) for n, each in enumerate(wanted)
    ]
    header = open_batch(merged)
    assert (header.producer_id, header.producer_epoch, header.base_sequence) == (9001, 3, 2**31 - 3)
    assert (header.base_offset, header.leader_epoch, header.attributes) == (0, -1, 0)
    assert header.max_timestamp == max(each.timestamp for each in wanted)
    assert len(merged) <= sum(map(len, parts)) + 17 * len(wanted)


@SLOW_ORACLE
@given(
    groups=st.lists(any_records(any_times), min_size=2, max_size=3), bases=st.lists(any_times, min_size=3, max_size=3)
)
def test_times_too_far_apart_are_not_merged(groups, bases):
    parts, sequence = [], 0
    for records, base in zip(groups, bases, strict=False):
        near = [each._replace(timestamp=min(max(each.timestamp, base - 2**63), base + 2**63 - 1)) for each in records]
        fields = {"base_timestamp": base, "base_sequence": sequence, "leader_epoch": -1}
        parts.append(batch_of(near, 0, **fields).encode())
        sequence += len(records)
    assert merge_batches(parts) == oracle.merge(parts)


def test_nothing_damaged_is_merged():
    sound = parts_of([recs(2), recs(3)])
    assert merge_batches(sound)
    for which, part in enumerate(sound):
        for bit in range(8 * len(part)):
            flipped = bytearray(part)
            flipped[bit // 8] ^= 1 << bit % 8
            parts = [*sound]
            parts[which] = bytes(flipped)
            covered = bit // 8 >= 17 or 8 <= bit // 8 < 12
            assert merge_batches(parts) == oracle.merge(parts), bit
            assert not covered or merge_batches(parts) is None, bit


@pytest.mark.parametrize(
    "change",
    [
        {"producer_id": 1},
        {"producer_epoch": 2},
        {"base_sequence": 3},
        {"attributes": 1},
        {"attributes": LOG_APPEND_TIME},
        {"attributes": 0x10},
        {"last_offset_delta": 3},
        {"count": 1},
        {"count": 0},
        {"records": b"no records"},
        {"records": b""},
        {"magic": 1},
        {},
    ],
)
def test_what_does_not_belong_together_is_not_merged(change):
    first = batch_of(recs(2), 0, base_sequence=0)
    second = replace(batch_of(recs(2), 0, base_sequence=2), **change)
    parts = [first.encode(), second.encode()]
    assert merge_batches(parts) == oracle.merge(parts)
    assert (merge_batches(parts) is None) == bool(change)
    assert merge_batches(parts[::-1]) is None
    assert merge_batches([]) is None


def test_records_that_are_out_of_order_inside_a_part_with_a_good_seal_are_not_merged():
    for deltas in ([1, 0], [0, 0], [1, 2]):
        second = batch_of(recs(2), 0, deltas=deltas, base_sequence=2, last_offset_delta=1)
        assert merge_batches([batch_of(recs(2), 0, base_sequence=0).encode(), second.encode()]) is None
