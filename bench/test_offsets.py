"""Offset maps in memory: what a group with a million partitions' worth of offsets, or a Flink savepoint, would ask.

Bar: a million offsets, in no order, translated in under 50 ms, whatever the number of segments. The rival is the same
binary search as a Python program writes it, one offset after the other.
"""

from bisect import bisect_right

import numpy as np
import pytest

from replicator.state.chunks import CHUNK_SEGMENTS_MAX, open_chunk, pack
from replicator.state.offset_map import OffsetMap

OFFSETS = 1_000_000


def make_map(segments: int) -> OffsetMap:
    """Runs of 1 to 99 records, with holes of 1 to 4 on either side."""
    random = np.random.default_rng(segments)
    lengths = random.integers(1, 100, segments)
    ends = np.cumsum(random.integers(1, 5, (2, segments)) + lengths, axis=1)
    rows = np.column_stack([ends[0] - lengths, ends[1] - lengths, lengths])
    return OffsetMap(rows, int(ends[0, -1]), int(ends[1, -1]))


@pytest.fixture(params=[1, CHUNK_SEGMENTS_MAX, 1_000_000], ids=lambda count: f"{count}-segments")
def offset_map(request):
    return make_map(request.param)


@pytest.mark.benchmark(group="a million offsets are translated")
class TestTranslate:
    def test_ours(self, benchmark, offset_map):
        offsets = np.random.default_rng(0).integers(0, offset_map.position, OFFSETS)
        assert (benchmark(offset_map.translate_many, offsets) >= 0).all()

    def test_ours_back(self, benchmark, offset_map):
        offsets = np.random.default_rng(0).integers(0, offset_map.target_next, OFFSETS)
        assert (benchmark(offset_map.reverse_many, offsets) >= 0).all()

    def test_bisect_in_python(self, benchmark, offset_map):
        offsets = np.random.default_rng(0).integers(0, offset_map.position, OFFSETS).tolist()
        rows = offset_map.segments.tolist()
        ends = [source + length for source, _, length in rows]
        rows.append((offset_map.position, offset_map.target_next, 0))

        def translate():
            found = []
            for offset in offsets:
                source, target, _ = rows[bisect_right(ends, offset)]
                found.append(max(offset - source, 0) + target)
            return found

        found = benchmark.pedantic(translate, rounds=1)
        assert found == offset_map.translate_many(offsets).tolist()


@pytest.mark.benchmark(group="a whole chunk of a map")
class TestChunk:
    def test_is_packed(self, benchmark):
        assert benchmark(pack, 1, make_map(CHUNK_SEGMENTS_MAX).segments).count == CHUNK_SEGMENTS_MAX

    def test_is_opened(self, benchmark):
        assert len(benchmark(open_chunk, pack(1, make_map(CHUNK_SEGMENTS_MAX).segments))) == CHUNK_SEGMENTS_MAX


@pytest.mark.benchmark(group="a map of a million segments is put together")
def test_merge(benchmark):
    whole = make_map(1_000_000)
    step = CHUNK_SEGMENTS_MAX - 1  # every part begins with the last segment of the one before it
    parts = [whole.segments[at : at + CHUNK_SEGMENTS_MAX] for at in range(0, len(whole), step)]
    assert len(benchmark(OffsetMap.merge, parts, whole.position, whole.target_next)) == len(whole)
