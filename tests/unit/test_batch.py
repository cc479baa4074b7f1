"""RecordBatch headers: read, judged and re-addressed, against the slow model; and the payload that is never read."""

import struct
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from replicator._core import VERDICTS, BatchHeader, Terms, open_batch, readdress
from replicator.data.states import Checkpoint
from tests.oracle.batch import (
    ANY,
    CONTROL,
    CRC_STARTS_AT,
    DELETE_HORIZON,
    HEADER_SIZE,
    LOG_APPEND_TIME,
    TRANSACTIONAL,
    Batch,
    is_intact,
    old_message,
    verdict,
)
from tests.oracle.fetch import Fetched
from tests.oracle.rig import PRODUCER, Rig
from tests.oracle.strategies import any_batches, signed
from tests.unit.test_crc32c import EACH_KIND, using

EXAMPLES = settings(deadline=None, max_examples=200)

# ---- reading ----


def open_slowly(data: bytes) -> BatchHeader | str | None:
    """The header; None when it is not whole; a string when there can be no batch."""
    if len(data) < 17:
        return None
    base_offset, length, leader_epoch, magic = struct.unpack_from(">qiib", data)
    size = length + 12
    if base_offset < 0 or length < 5 or magic not in (0, 1, 2) or (magic == 2 and size < HEADER_SIZE):
        return "impossible"
    if len(data) < size:
        return None
    if magic < 2:
        return BatchHeader(base_offset, size, 0, magic, *[0] * 9)
    rest = struct.unpack_from(">Ihiqqqhii", data, 17)
    return BatchHeader(base_offset, size, leader_epoch, magic, *rest)


def opened(data: bytes, offset: int = 0) -> BatchHeader | str | None:
    try:
        return open_batch(data, offset)
    except ValueError:
        return "impossible"


@EXAMPLES
@given(batch=any_batches(), before=st.binary(max_size=9), behind=st.binary(max_size=9))
def test_every_field_is_read(batch, before, behind):
    data = batch.encode()
    header = open_batch(before + data + behind, len(before))
    assert header == open_slowly(data)
    again = Batch.parse(data)
    for name in BatchHeader._fields:
        if name != "size":
            assert getattr(header, name) == getattr(again, name), name
    assert header.size == len(data)


@EXAMPLES
@given(data=st.binary(max_size=120))
def test_arbitrary_bytes_are_read_as_the_model_reads_them(data):
    assert opened(data) == open_slowly(data)


@EXAMPLES
@given(base_offset=st.sampled_from([-1, 0, 7]), length=signed(32), magic=signed(8), room=st.integers(0, 200))
@example(base_offset=0, length=48, magic=2, room=200)
@example(base_offset=0, length=49, magic=2, room=60)
@example(base_offset=0, length=49, magic=2, room=61)
@example(base_offset=0, length=5, magic=1, room=17)
@example(base_offset=0, length=4, magic=0, room=17)
def test_lengths_and_magics_that_lie(base_offset, length, magic, room):
    data = (struct.pack(">qiib", base_offset, length, 3, magic) + bytes(200))[:room]
    assert opened(data) == open_slowly(data)


@pytest.mark.parametrize("size", range(HEADER_SIZE + len(Batch().records)))
def test_a_batch_that_is_cut_is_not_opened(size):
    assert open_batch(Batch().encode()[:size]) is None


def test_offsets_beyond_the_data_hold_no_batch():
    assert open_batch(b"") is None
    assert open_batch(Batch().encode(), 10_000) is None


# ---- judging ----


def judged(data: bytes, wanted: int, terms: Terms = ANY) -> str:
    """The verdict on one batch, as a lane that wants `wanted` shows it."""
    with Rig() as rig:
        lane = rig.start(rig.lane(terms=terms), Checkpoint(wanted, 0, 0))
        rig.ask()
        events = rig.feed(rig.response((lane, Fetched(0, data))))
        if events:
            (event,) = events
            assert event.lane is lane.native
            assert lane.checkpoint == Checkpoint(wanted, 0, 0)
            assert (lane.native.queued, lane.native.raw_count) == (0, event.kind == "rebuild_ahead")
            if event.kind == "rebuild_ahead":
                assert lane[lane.native.raw(0).why] == 1
                return lane.native.raw(0).why
            assert event.kind == "cannot_take"
            return VERDICTS[event.code]
        if lane["skipped_batches"]:
            assert lane.native.queued == lane.native.raw_count == 0
            return "skipped"
        return "pass" if lane.native.queued else "left out"


def expected(batch: Batch, wanted: int, terms: Terms = ANY) -> str:
    found = verdict(batch, wanted, terms)
    if found in ("refuse_malformed", "refuse_magic"):
        return found
    if batch.next_offset <= wanted:
        return "left out"
    return "skipped" if found.startswith("skip") else found


ONE_OF_EACH = {
    "pass": Batch(base_offset=10, count=3),
    "pass ": Batch(base_offset=10, attributes=TRANSACTIONAL | 4),
    "skip_control": Batch(base_offset=10, attributes=CONTROL | TRANSACTIONAL),
    "skip_empty": Batch(base_offset=10, count=0, last_offset_delta=4, records=b""),
    "rebuild_holes": Batch(base_offset=10, count=2, last_offset_delta=4),
    "rebuild_append_time": Batch(base_offset=10, attributes=LOG_APPEND_TIME | 1),
    "rebuild_delete_horizon": Batch(base_offset=10, attributes=DELETE_HORIZON),
    "rebuild_head": Batch(base_offset=8, count=3),
    "divert_codec": Batch(base_offset=10, attributes=5),
    "refuse_malformed": Batch(base_offset=10, count=5, last_offset_delta=3),
}


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_verdict_on_a_whole_batch(name):
    batch = ONE_OF_EACH[name]
    name = name.strip()
    assert verdict(batch, 10) == name
    assert judged(batch.encode(), 10) == ("skipped" if name.startswith("skip") else name)


@pytest.mark.parametrize("magic", [0, 1])
def test_old_message_formats_are_told_apart(magic):
    assert judged(old_message(10, magic), 10) == "refuse_magic"


def test_what_cannot_be_a_batch_is_malformed():
    assert judged(struct.pack(">qiib", 10, 3, 0, 2) + bytes(80), 10) == "refuse_malformed"
    assert judged(replace(Batch(base_offset=10), magic=3).encode(), 10) == "refuse_malformed"


@EXAMPLES
@given(batch=any_batches(), wanted=st.integers(0, 60))
@example(batch=Batch(base_offset=2**63 - 1), wanted=0)
@example(batch=Batch(base_offset=2**63 - 2), wanted=0)
@example(batch=Batch(count=2**31 - 1, last_offset_delta=2**31 - 1), wanted=0)
@example(batch=Batch(count=-(2**31), last_offset_delta=2**31 - 1), wanted=0)
def test_any_header_is_judged_as_the_model_judges_it(batch, wanted):
    assert judged(batch.encode(), wanted) == expected(batch, wanted)


TERMS = st.builds(
    Terms,
    timestamp_max=st.sampled_from([0, 0, 500]),
    batch_bytes_max=st.sampled_from([0, 0, 70]),
    codec=st.integers(-1, 4),
    opens=st.booleans(),
    stamped=st.booleans(),
)


@EXAMPLES
@given(
    batch=any_batches(
        base_offset=st.integers(0, 20),
        attributes=st.integers(0, 5) | st.integers(0, 15),
        max_timestamp=st.integers(499, 501),
        count=st.just(3),
        last_offset_delta=st.sampled_from([2, 2, 2, 3]),
    ),
    wanted=st.integers(0, 20),
    terms=TERMS,
)
@example(batch=Batch(records=b"123456789"), wanted=0, terms=Terms(batch_bytes_max=70))
@example(batch=Batch(records=b"1234567890"), wanted=0, terms=Terms(batch_bytes_max=70))
@example(batch=Batch(max_timestamp=500), wanted=0, terms=Terms(timestamp_max=500))
@example(batch=Batch(max_timestamp=501), wanted=0, terms=Terms(timestamp_max=500))
@example(batch=Batch(attributes=LOG_APPEND_TIME), wanted=0, terms=Terms(stamped=True))
def test_what_the_target_takes_is_asked_of_a_batch_as_well(batch, wanted, terms):
    assert judged(batch.encode(), wanted, terms) == expected(batch, wanted, terms)


# ---- re-addressing ----


@EACH_KIND
@EXAMPLES
@given(batch=any_batches(), producer_id=signed(64), epoch=signed(16), sequence=signed(32))
def test_readdressed_equals_built_anew(kind, batch, producer_id, epoch, sequence):
    data = bytearray(batch.encode())
    with using(kind):
        readdress(data, producer_id, epoch, sequence)
    assert bytes(data) == batch.readdressed(producer_id, epoch, sequence).encode()


def test_damage_done_before_is_not_blessed():
    data = bytearray(Batch(records=b"important").encode())
    data[-1] ^= 1
    readdress(data, *PRODUCER, 0)
    assert not is_intact(data)


def test_damage_done_behind_it_shows():
    data = bytearray(Batch(records=b"important").encode())
    readdress(data, *PRODUCER, 0)
    assert is_intact(data)
    data[HEADER_SIZE + 2] ^= 0x10
    assert not is_intact(data)


def test_what_is_shorter_than_a_header_is_refused():
    with pytest.raises(ValueError, match="header"):
        readdress(bytearray(HEADER_SIZE - 1), 1, 1, 1)


# The records begin at a page that may not be touched: whoever reads a byte of them dies of it.
UNREADABLE_PAYLOAD = """
import ctypes, mmap, sys
from replicator._core import readdress
from tests.oracle.batch import HEADER_SIZE, Batch

libc = ctypes.CDLL(None, use_errno=True)
page = mmap.PAGESIZE
memory = mmap.mmap(-1, 4 * page)
batch = Batch(records=b"r" * 3 * page)
start = page - HEADER_SIZE
memory[start:] = batch.encode()
address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(memory)) + page)

def protect(mode):
    assert libc.mprotect(address, ctypes.c_size_t(3 * page), mode) == 0, ctypes.get_errno()

protect(0)
readdress(memoryview(memory)[start:], 9001, 3, 17)
protect(mmap.PROT_READ | mmap.PROT_WRITE)
assert memory[start:] == batch.readdressed(9001, 3, 17).encode()
if "touch" in sys.argv:
    protect(0)
    memory[page]
print("untouched")
"""


def run_with_an_unreadable_payload(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", UNREADABLE_PAYLOAD, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_payload_is_never_read():
    done = run_with_an_unreadable_payload()
    assert (done.returncode, done.stdout) == (0, "untouched\n"), done.stderr


def test_reading_the_payload_would_have_been_noticed():
    assert run_with_an_unreadable_payload("touch").returncode != 0


def test_the_checksum_covers_what_it_should():
    data = bytearray(Batch().encode())
    for outside in range(CRC_STARTS_AT - 4):
        data[outside] ^= 0xFF
    assert is_intact(data)
    data[CRC_STARTS_AT] ^= 1
    assert not is_intact(data)
