"""Batches for hypothesis to draw: whole logs as brokers hold them, and headers in which anything goes."""

from collections.abc import Sequence

from hypothesis import strategies as st

from tests.oracle.batch import CONTROL, DELETE_HORIZON, LOG_APPEND_TIME, TRANSACTIONAL, Batch, marker
from tests.oracle.scripted_log import batch_of, recs

PAYLOADS = st.binary(max_size=40)


def signed(bits: int) -> st.SearchStrategy[int]:
    """Any integer of so many bits, the extreme ones often."""
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return st.one_of(st.sampled_from([lowest, -1, 0, 1, highest]), st.integers(lowest, highest))


def any_batches(**fixed: st.SearchStrategy[object]) -> st.SearchStrategy[Batch]:
    """Any header over any payload, the fields in `fixed` as told. The length is true."""
    free: dict[str, st.SearchStrategy[object]] = {
        "base_offset": st.one_of(st.integers(0, 50), st.integers(0, 2**63 - 1), st.just(2**63 - 1)),
        "count": st.one_of(st.integers(-1, 5), signed(32)),
        "records": PAYLOADS,
        "leader_epoch": signed(32),
        "attributes": signed(16),
        "base_timestamp": signed(64),
        "max_timestamp": signed(64),
        "producer_id": signed(64),
        "producer_epoch": signed(16),
        "base_sequence": signed(32),
        "last_offset_delta": st.one_of(st.integers(-1, 5), signed(32)),
    }
    return st.builds(Batch, **(free | fixed))


PLAIN = ("data", "data", "data", "data", "control", "empty")
RAW = ("stamped", "horizon", "holes", "unreadable")  # these have to be opened, or nobody can open them
TRANSACTIONS = ("sent", "sent", "commit", "abort")  # by producers 1 and 2


@st.composite
def logs(
    draw: st.DrawFn, start: int = 0, size_max: int = 6, kinds: Sequence[str] = PLAIN, sound: bool = False
) -> list[Batch]:
    """A row of batches in offset order, of these kinds, and with holes between them; `sound`: with true records."""
    batches: list[Batch] = []
    offset = start
    for _ in range(draw(st.integers(0, size_max))):
        offset += draw(st.sampled_from([0, 0, 0, 1, 3]))
        batches.append(draw(_batches(offset, draw(st.sampled_from(kinds)), sound)))
        offset = batches[-1].next_offset
    return batches


@st.composite
def _batches(draw: st.DrawFn, offset: int, kind: str, sound: bool) -> Batch:
    producer_id, leader_epoch = draw(st.integers(1, 2)), draw(st.integers(0, 9))
    if kind in ("commit", "abort"):
        return marker(offset, kind == "commit", producer_id, leader_epoch)
    count = draw(st.integers(1, 4))
    fields = {"leader_epoch": leader_epoch, "producer_id": producer_id}
    if kind in ("control", "empty"):
        attributes = CONTROL | TRANSACTIONAL if kind == "control" else draw(st.integers(0, 4))
        count_left = 0 if kind == "empty" else count
        return Batch(offset, count_left, last_offset_delta=count - 1, attributes=attributes, **fields)
    codec = {"unreadable": 6, "data": draw(st.integers(0, 4)), "packed": 4}.get(kind, 0)
    flags = {"stamped": LOG_APPEND_TIME, "horizon": DELETE_HORIZON, "sent": TRANSACTIONAL}.get(kind, 0)
    fields["attributes"] = flags | codec
    deltas = [0, *(delta + 1 for delta in range(1, count))] if kind == "holes" else list(range(count))
    if kind == "holes":
        fields["last_offset_delta"] = deltas[-1] + 1
    if sound:
        return batch_of(recs(count, offset), offset, codec, deltas, **fields)
    return Batch(offset, count, draw(PAYLOADS), **fields)
