"""Batches opened and made anew, one lane's in order; what is written is read by kafka-python."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator._core import Batch as Held
from replicator._core import Terms
from replicator.data import rebuild
from replicator.data.orders import TargetTopic
from replicator.data.rebuild import ALONE_MAX, Damaged, Opened, Opener
from replicator.data.refusals import Refusal, Refusals
from replicator.data.states import Checkpoint
from tests.oracle.batch import HEADER_SIZE, LOG_APPEND_TIME, Batch
from tests.oracle.bench import TARGET, lane_spec, witnessed
from tests.oracle.fetch import Fetched
from tests.oracle.rebuilt import CODECS, Source, sources
from tests.oracle.rig import LaneRig, Rig
from tests.oracle.scripted_log import GZIP, LZ4, NONE, ZSTD, Rec, batch_of, recs, stored

STAMP = 1_800_000_000_000


def raw(rig: Rig, lane: LaneRig, batch: Batch) -> Held:
    """The batch as the lane holds it, which must open it."""
    assert rig.ask()
    rig.feed(rig.response((lane, Fetched(0, stored(batch)))))
    found = lane.native.raw(0)
    assert found is not None
    return found


def opened(
    batch: Batch, known: Refusals | None = None, position: int = 0, terms: Terms | None = None
) -> tuple[Opened, list[bytes], str]:
    """What becomes of the batch, the batches that are sent, and why it was opened."""
    known = known or Refusals(lane_spec(), TARGET)
    with Rig() as rig:
        lane = rig.start(rig.lane(terms=terms or known.terms()), Checkpoint(position, 0, 0))
        held = raw(rig, lane, batch)
        result = Opener(rig.pool).open(held, known)
        assert (lane.native.pass_raw() if result.made is None else lane.native.replace(result.made)) == "pass"
        sent = []
        while (request := rig.gather()) is not None:
            sent += [data for _, _, data in request.batches]
            assert rig.acknowledge(request) == []
        return result, sent, held.why


def records_of(sent: list[bytes]) -> list[Rec]:
    return [record for data in sent for record in witnessed(data)]


def exclude(*offsets: int, **settings: Any) -> Refusals:
    known = Refusals(lane_spec(), TargetTopic(**settings))
    for offset in offsets:
        known.leave_out(offset, Refusal("invalid_record", 87, "no key", 3))
    return known


# ---- why a batch is opened, in every codec ----


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    ("why", "header", "deltas", "position"),
    [
        ("rebuild_holes", {"last_offset_delta": 9}, [0, 2, 3, 7, 9], 0),
        ("rebuild_append_time", {"max_timestamp": STAMP}, None, 0),
        ("rebuild_delete_horizon", {"base_timestamp": 1_750_000_000_000}, None, 0),
        ("rebuild_head", {}, None, 2),
    ],
)
def test_records_and_times_arrive_as_readers_of_the_source_see_them(
    codec: int, why: str, header: dict[str, Any], deltas: list[int] | None, position: int
) -> None:
    flags = {"rebuild_append_time": LOG_APPEND_TIME, "rebuild_delete_horizon": 0x40}.get(why, 0)
    batch = batch_of(recs(5), 0, codec, deltas, attributes=codec | flags, **header)
    result, sent, found = opened(batch, position=position)
    assert found == why
    due = recs(5)[position:]
    if why == "rebuild_append_time":
        due = [record._replace(timestamp=STAMP) for record in due]
    assert records_of(sent) == due
    assert [Batch.parse(data).attributes for data in sent] == [codec]
    assert (result.left_out, result.filtered) == ((), 0)


@pytest.mark.parametrize("codec", CODECS)
def test_a_target_of_another_codec_gets_it(codec: int) -> None:
    known = Refusals(lane_spec(codec="zstd" if codec != ZSTD else "lz4"), TARGET)
    _, sent, why = opened(batch_of(recs(5), 0, codec), known)
    assert why == "rebuild_codec"
    assert records_of(sent) == recs(5)
    assert Batch.parse(sent[0]).attributes == (ZSTD if codec != ZSTD else LZ4)


@pytest.mark.parametrize("codec", CODECS)
def test_what_needs_no_change_goes_byte_for_byte(codec: int) -> None:
    batch = batch_of(recs(5), 0, codec)
    result, sent, why = opened(batch, terms=Terms(opens=True))
    assert (why, result.made) == ("rebuild_open", None)
    assert sent[0][HEADER_SIZE:] == batch.records


# ---- limits ----


@pytest.mark.parametrize("codec", CODECS)
def test_a_batch_over_the_limit_is_several_below_it(codec: int) -> None:
    """Where it is compressed, that shows only when it is packed."""
    records = [Rec(bytes(range(256)) * 2 + b"%d" % n, b"%d" % n) for n in range(100)]
    limit = 800 if codec else 20_000
    result, sent, why = opened(batch_of(records, 0, codec), exclude(max_message_bytes=limit))
    assert why == "rebuild_size"
    assert records_of(sent) == records
    assert len(sent) > 1
    assert max(map(len, sent)) <= limit
    assert result.left_out == ()


@pytest.mark.parametrize("codec", [NONE, GZIP])
def test_records_that_alone_are_too_large_are_left_out_and_the_others_arrive(codec: int) -> None:
    noise = random.Random(1).randbytes
    records = [Rec(noise(3_000 if n % 3 == 0 else 100), b"%d" % n) for n in range(12)]
    known = exclude(max_message_bytes=1_000)
    result, sent, _ = opened(batch_of(records, 0, codec), known)
    assert records_of(sent) == [record for n, record in enumerate(records) if n % 3]
    assert [(one.source_offset, one.why.reason, one.value) for one in result.left_out] == [
        (n, "message_too_large", records[n].value) for n in range(0, 12, 3)
    ]
    assert "the target takes 1000" in result.left_out[0].why.text
    assert sorted(known.excluded) == [0, 3, 6, 9]
    assert result.filtered == 0


def test_all_records_that_are_too_large_are_found_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a batch of a thousand such would be packed a thousand times, and the sockets wait."""
    packed: list[int] = []
    real, noise = rebuild.encode, random.Random(1).randbytes
    records = [Rec(noise(2_000)) for _ in range(200)]
    monkeypatch.setattr(rebuild, "encode", lambda codec, records: packed.append(1) or real(codec, records))
    result, sent, _ = opened(batch_of(records, 0, LZ4), exclude(max_message_bytes=1_000))
    assert (len(result.left_out), sent) == (200, [])
    assert len(packed) <= 2 * 200


def test_of_a_limit_that_was_learned_the_broker_says_which_record_is_too_large() -> None:
    known = exclude()
    known.bytes_max = 500
    result, sent, _ = opened(batch_of([Rec(b"small"), Rec(bytes(2_000)), Rec(b"small")]), known)
    assert result.left_out == ()
    assert [Batch.parse(data).count for data in sent] == [1, 1, 1]


def test_records_go_one_by_one_where_one_is_looked_for() -> None:
    known = exclude()
    known.opened_below = known.alone_below = 5
    _, sent, _ = opened(batch_of(recs(5)), known, terms=known.terms())
    assert [witnessed(data) for data in sent] == [[record] for record in recs(5)]
    assert opened(batch_of(recs(5), 5), known, 5, known.terms())[0].made is None


def test_not_more_go_one_by_one_than_a_lane_can_hold() -> None:
    known = exclude()
    count = ALONE_MAX + 100
    known.opened_below = known.alone_below = count
    records = [Rec(b"%d" % n, None) for n in range(count)]
    result, sent, _ = opened(batch_of(records), known, terms=known.terms())
    assert [one.count for one in result.made or []] == [1] * ALONE_MAX + [100]
    assert records_of(sent) == records


# ---- what is left out ----


def test_excluded_records_are_left_out_with_the_reason_that_is_known() -> None:
    result, sent, _ = opened(batch_of(recs(5)), exclude(1, 4, 77), terms=Terms(opens=True))
    assert records_of(sent) == [recs(5)[n] for n in (0, 2, 3)]
    assert [(one.source_offset, one.why, one.raw) for one in result.left_out] == [
        (offset, Refusal("invalid_record", 87, "no key", 3), False) for offset in (1, 4)
    ]
    one, record = result.left_out[0], recs(5)[1]
    assert (one.key, one.value, one.timestamp) == (record.key, record.value, record.timestamp)
    assert one.headers == ((b"number", b"1"), (b"null", None))


def test_filtered_records_are_counted() -> None:
    known = Refusals(lane_spec((("drop", ("key", "equals", b"key 2")), ("divert", "mine", ("key_null",)))), TARGET)
    records = [*recs(4), Rec(key=None)]
    result, sent, _ = opened(batch_of(records), known)
    assert records_of(sent) == [recs(4)[n] for n in (0, 1, 3)]
    assert (result.filtered, [one.why.reason for one in result.left_out]) == (1, ["mine"])


def test_a_batch_of_which_nothing_is_left() -> None:
    result, sent, _ = opened(batch_of(recs(3)), exclude(0, 1, 2), terms=Terms(opens=True))
    assert (result.made, sent, len(result.left_out)) == ([], [], 3)


@pytest.mark.parametrize("codec", [GZIP, LZ4, ZSTD, 6])
def test_what_nobody_can_unpack_is_left_out_whole(codec: int) -> None:
    batch = Batch(0, 3, b"no such thing", attributes=codec)
    result, sent, _ = opened(batch, terms=Terms(opens=True))
    (one,) = result.left_out
    assert (one.raw, one.value, one.source_offset, one.why.reason) == (True, stored(batch), 0, "undecodable")
    assert one.why.text
    assert (result.made, sent) == ([], [])


def test_records_that_are_none_are_left_out_whole() -> None:
    batch = Batch(0, 3, b"\x04\0\0\0")
    (one,) = opened(batch, terms=Terms(opens=True))[0].left_out
    assert (one.raw, one.value) == (True, stored(batch))


def test_a_damaged_batch_is_not_opened() -> None:
    data = bytearray(stored(batch_of(recs(3))))
    data[-2] ^= 1
    with Rig() as rig:
        lane = rig.start(rig.lane(terms=Terms(opens=True)))
        rig.ask()
        rig.feed(rig.response((lane, Fetched(0, bytes(data)))))
        with pytest.raises(Damaged):
            Opener(rig.pool).open(lane.native.raw(0), exclude())


# ---- the silent trap ----


@given(
    source=sources(),
    limit=st.sampled_from([0, 0, 150, 300, 100_000]),
    codec=st.sampled_from(["keep", "none", "gzip", "snappy", "lz4", "zstd"]),
    recipe=st.sampled_from(
        [
            (),
            (("header_add", b"more", b"\xff", None),),
            (("drop", ("key", "suffix", b"1")),),
            (("provenance", b"us", b"orders", 0),),
        ]
    ),
    alone=st.booleans(),
)
def test_no_batch_that_we_make_is_one_that_brokers_store_and_readers_cannot_read(
    source: Source, limit: int, codec: str, recipe: tuple[Any, ...], alone: bool
) -> None:
    """Offsets within a batch run from 0 without gaps, times are those meant, the checksum is right: by kafka-python."""
    known = Refusals(lane_spec(recipe, codec=codec), TargetTopic(max_message_bytes=limit))
    if alone:
        known.opened_below = known.alone_below = source.end
    for batch in source.batches:
        if batch.attributes & 0x20:
            continue
        with Rig() as rig:
            lane = rig.start(rig.lane(terms=known.terms()), Checkpoint(batch.base_offset, 0, 0))
            rig.ask()
            rig.feed(rig.response((lane, Fetched(0, stored(batch)))))
            held = lane.native.raw(0)
            result = Opener(rig.pool).open(held, known) if held else Opened(None)
            if held:
                assert (lane.native.pass_raw() if result.made is None else lane.native.replace(result.made)) == "pass"
            sent = []
            while (request := rig.gather()) is not None:
                sent += [data for _, _, data in request.batches]
                assert rig.acknowledge(request) == []
        left_out = {one.source_offset for one in result.left_out}
        drops = bool(recipe) and recipe[0][0] == "drop"
        truth = {**source.committed, **source.aborted_records}
        due = [
            record
            for offset, record in sorted(truth.items())
            if batch.base_offset <= offset < batch.next_offset
            and offset not in left_out
            and not (drops and (record.key or b"").endswith(b"1"))
        ]
        found = records_of(sent)
        plain = lambda record: (record.key, record.value, record.timestamp)  # noqa: E731
        assert list(map(plain, found)) == list(map(plain, due))
        own = [found_one.headers[: len(one.headers)] for found_one, one in zip(found, due, strict=True)]
        assert own == [one.headers for one in due]
        assert not limit or all(len(data) <= limit for data in sent)


@given(
    sizes=st.lists(st.integers(1, 4), min_size=2, max_size=12),
    codec=st.sampled_from(CODECS),
    shift=st.integers(-(2**40), 2**40),
)
def test_batches_that_are_merged_are_one_with_the_same_records(sizes: list[int], codec: int, shift: int) -> None:
    batches, due, offset = [], [], 0
    for n, size in enumerate(sizes):
        records = [record._replace(timestamp=abs(record.timestamp + shift * (n % 3))) for record in recs(size, offset)]
        batches.append(batch_of(records, offset, codec))
        due += records
        offset += size
    with Rig() as rig:
        lane = rig.start(rig.lane(terms=Terms(merge_bytes=1 << 20)))
        rig.fetch(lane, batches[0])
        first = rig.gather()
        assert first is not None
        rig.acknowledge(first)
        if len(batches) > 1:
            rig.ask()
            rig.feed(rig.response((lane, Fetched(0, b"".join(map(stored, batches[1:]))))))
        waiting = lane.native.mergeable()
        if len(waiting) > 1:
            merged = Opener(rig.pool).merge(waiting, codec)
            assert merged is not None
            lane.native.join(len(waiting), merged)
        sent = [data for _, _, data in first.batches]
        while (request := rig.gather()) is not None:
            sent += [data for _, _, data in request.batches]
            assert rig.acknowledge(request) == []
        assert records_of(sent) == due
        assert lane.native.segments() == ((0, 0, len(due)),)
        if len(waiting) > 1:
            assert len(sent) == 2


def test_what_cannot_be_unpacked_or_was_damaged_is_not_merged() -> None:
    with Rig() as rig:
        lane = rig.start(rig.lane(terms=Terms(merge_bytes=1 << 20)))
        rig.fetch(lane, *[Batch(n, 1, b"no such thing", attributes=GZIP) for n in range(3)])
        assert Opener(rig.pool).merge(lane.native.mergeable(), GZIP) is None
