"""The native core as Python sees it, beside what a program would use instead: `pytest bench --benchmark-only -n 0`.

Each group is a question, each test in it a competitor; the slow ones are given the same work, not less.
"""

import zlib

import pytest
from kafka.record._crc32c import crc as python_crc32c

from bench.scripted import make_batch
from replicator import _core

SIZES = [1 << 10, 16 << 10, 1 << 20]


@pytest.fixture(params=SIZES, ids=lambda size: f"{size >> 10}k")
def raw_batch(request):
    return bytearray(make_batch(request.param))


@pytest.mark.benchmark(group="checksum of a batch")
class TestChecksum:
    def test_ours(self, benchmark, raw_batch):
        assert benchmark(_core.crc32c, raw_batch)

    def test_zlib_crc32_another_polynomial(self, benchmark, raw_batch):
        assert benchmark(zlib.crc32, raw_batch)

    def test_pure_python(self, benchmark, raw_batch):
        assert benchmark.pedantic(python_crc32c, (bytes(raw_batch),), rounds=2) == _core.crc32c(raw_batch)


@pytest.mark.benchmark(group="a batch gets another producer and sequence")
class TestReaddress:
    def test_ours(self, benchmark, raw_batch):
        benchmark(_core.readdress, raw_batch, 1000, 0, 7)
        assert _core.open_batch(raw_batch).producer_id == 1000

    def test_with_the_checksum_computed_anew(self, benchmark, raw_batch):
        def readdress():
            raw_batch[43:51] = (1000).to_bytes(8, "big")
            raw_batch[53:57] = (7).to_bytes(4, "big")
            raw_batch[17:21] = _core.crc32c(memoryview(raw_batch)[21:]).to_bytes(4, "big")

        benchmark(readdress)
        assert _core.open_batch(raw_batch).producer_id == 1000
