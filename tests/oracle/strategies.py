"""Batches for hypothesis to draw: whole logs as brokers hold them, and headers in which anything goes."""

from hypothesis import strategies as st

from tests.oracle.batch import CONTROL, Batch

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


@st.composite
def logs(draw: st.DrawFn, start: int = 0, size_max: int = 6) -> list[Batch]:
    """A row of batches in offset order, with data, control and emptied batches, and with holes between them."""
    batches: list[Batch] = []
    offset = start
    for _ in range(draw(st.integers(0, size_max))):
        offset += draw(st.sampled_from([0, 0, 0, 1, 3]))
        kind = draw(st.sampled_from(["data", "data", "data", "data", "control", "empty"]))
        count = draw(st.integers(1, 4))
        batch = Batch(
            base_offset=offset,
            count=0 if kind == "empty" else count,
            last_offset_delta=count - 1,
            attributes=CONTROL | 0x10 if kind == "control" else draw(st.integers(0, 4)),
            records=draw(PAYLOADS),
            leader_epoch=draw(st.integers(0, 9)),
        )
        batches.append(batch)
        offset = batch.next_offset
    return batches
