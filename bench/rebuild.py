"""Question: what does opening a batch and making it anew cost, beside its codec alone?

Batches of 64 KB of log lines, each record with one header more: the real path of a worker (checksum, unpack, walk with
a recipe, build, pack, seal), in memory. The rival unpacks the same sections and packs the same outputs, and no
more; without a codec it is what no path can do without: both checksums, and one copy. They take turns, and a figure is
the CPU time of this thread alone: a rate is that of a core. Bytes are those of uncompressed record sections.

Bars: at records of 1 KB none 1.8 GB/s, lz4 0.6, zstd 0.25, each within 1.35 times its codec alone; a filter that keeps
every record, on lz4, 2 GB/s. At 100 B seven times the records a second of librdkafka's loop: see `beside_loop`. What it
costs to merge compressed batches, sixteen of 16 KB into one, stands beside the same rival.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from statistics import median
from typing import Any

from bench import compare, records
from bench.datasets import DataSet
from bench.peers import PEERS
from bench.spread import Spread, spread
from replicator._core import Batch, Made, Pool, Recipe, Scratch, Terms, crc32c
from replicator.data.codecs import CODECS, GZIP, LZ4, NONE, SNAPPY, ZSTD, decode, encode
from replicator.data.orders import LaneSpec, TargetTopic
from replicator.data.rebuild import ANY_SIZE, RUNS_MAX, Opener
from replicator.data.refusals import Refusals
from replicator.kafka.log import BATCH_HEADER_SIZE
from tests.oracle.fetch import Fetched
from tests.oracle.rig import Rig, Settings
from tests.oracle.scripted_log import Rec, batch_of, stored

BATCH_BYTES = 64 << 10
BATCHES = 64  # distinct ones: more than the caches of a core hold
ROUND_S = 0.3  # CPU seconds that a figure is the mean of
CHANGING = "a header is added"
ADDS = (("header_add", b"origin", b"us-east-1", None),)
KEEPS = (("drop", ("key", "equals", b"nobody has this key")),)
BARS = {NONE: 1.8, LZ4: 0.6, ZSTD: 0.25}  # GB/s, at records of 1 KB
FILTER_BAR = 2.0
TIMES_CODEC_BAR = 1.35
MERGED = 16
TIMES_LOOP_BAR = 7.0
LOOP_SETS = {codec: DataSet(f"100b-{CODECS[codec]}-64k", 100, CODECS[codec], BATCH_BYTES) for codec in (NONE, LZ4)}

Tell = Callable[[str], None]
Work = Callable[[], None]
Row = dict[str, Any]


class Bench:
    """The same batches for everybody: raw in a lane, as a worker has them, and as sections to unpack and to pack."""

    def __init__(
        self, codec: int, record_bytes: int, steps: tuple[Any, ...] = (), batch_bytes: int = BATCH_BYTES
    ) -> None:
        self.codec, self.steps = codec, Recipe(steps)
        self.pool = Pool(1 << 31)
        self.opener = Opener(self.pool)
        spec = LaneSpec(0, "us-eu", "us", "eu", "logs", "logs", 0, bytes(16), 1, 0, recipe=steps)
        self.refusals = Refusals(spec, TargetTopic(max_message_bytes=1 << 20))
        made = list(_batches(record_bytes, batch_bytes))
        self.records = sum(batch.count for batch in made)
        self.bytes = sum(len(batch.records) for batch in made)
        packed = [replace(one, records=bytes(encode(codec, one.records)), attributes=codec) for one in made]
        self.packed = [one.records for one in packed]
        self.raw = _raw([stored(one) for one in packed])
        self.outputs = [bytes(self.output_of([batch])) for batch in self.raw]

    def output_of(self, batches: list[Batch]) -> memoryview:
        scratch = Scratch()
        for batch in batches:
            scratch.feed(batch, decode(self.codec, memoryview(batch)[BATCH_HEADER_SIZE:]), 0, self.steps)
        scratch.next(ANY_SIZE, RUNS_MAX)
        return scratch.records

    def rows_of(self, count: int) -> list[list[Batch]]:
        return [self.raw[at : at + count] for at in range(0, len(self.raw), count)]

    def change(self) -> None:
        for batch in self.raw:
            if not self.opener.open(batch, self.refusals).made:
                raise AssertionError("a batch that should change goes as it came")

    def keep(self) -> None:
        for batch in self.raw:
            if self.opener.open(batch, self.refusals).made is not None:
                raise AssertionError("a batch of which every record is kept does not go as it came")

    def merge(self) -> None:
        for row in self.rows_of(MERGED):
            if not self.opener.merge(row, self.codec):
                raise AssertionError("batches that should become one do not")

    def codec_alone(self) -> None:
        for packed in self.packed:
            decode(self.codec, packed)
        for output in self.outputs:
            encode(self.codec, output)

    def unpacking_alone(self) -> None:
        for packed in self.packed:
            decode(self.codec, packed)

    def checksums_and_copy(self) -> None:
        for packed, output in zip(self.packed, self.outputs, strict=True):
            crc32c(packed)
            crc32c(bytearray(output))


def _batches(record_bytes: int, batch_bytes: int) -> Iterator[Any]:
    lines, count = records.pool(record_bytes), batch_bytes // record_bytes
    for first in range(0, BATCHES * BATCH_BYTES // record_bytes // count * count, count):
        chosen = ((n, lines[n % len(lines)]) for n in range(first, first + count))
        yield batch_of([Rec(line["value"], line["key"], 1_750_000_000_000 + n) for n, line in chosen], first)


def _raw(batches: list[bytes]) -> list[Batch]:
    """As they stand in a lane whose records are all to be looked at."""
    size = 4 * sum(map(len, batches))
    with Rig(Settings(credit_bytes=1 << 31, lane_bytes_max=size)) as rig:
        lane = rig.start(rig.lane(terms=Terms(opens=True)))
        rig.ask()
        rig.feed(rig.response((lane, Fetched(0, b"".join(batches)))))
        raw = [batch for n in range(len(batches)) if (batch := lane.native.raw(n))]
    if len(raw) != len(batches):
        raise AssertionError(f"{len(raw)} of {len(batches)} batches stand in the lane")
    return raw


def run(runs: int, tell: Tell) -> list[Row]:
    """One row a codec and record size, and one of the filter; each figure a spread over the runs."""
    rows = []
    for record_bytes in (1024, 100):
        for codec in (NONE, LZ4, ZSTD, GZIP, SNAPPY):
            rows.append(_changing(codec, record_bytes, runs))
            tell(json.dumps(rows[-1]))
    for record_bytes in (1024, 100):
        rows.append(_keeping(record_bytes, runs))
        tell(json.dumps(rows[-1]))
    for codec in (LZ4, ZSTD):
        rows.append(_merging(codec, runs))
        tell(json.dumps(rows[-1]))
    return rows


def _merging(codec: int, runs: int) -> Row:
    bench = Bench(codec, 1024, batch_bytes=BATCH_BYTES // 4)
    bench.outputs = [bytes(bench.output_of(row)) for row in bench.rows_of(MERGED)]
    return _about(f"{MERGED} batches become one", bench, 1024) | _turns(bench, bench.merge, bench.codec_alone, runs)


def _changing(codec: int, record_bytes: int, runs: int) -> Row:
    bench = Bench(codec, record_bytes, ADDS)
    rival = bench.codec_alone if codec else bench.checksums_and_copy
    bars = {"bar_gb_per_s": BARS.get(codec), "bar_times_codec": TIMES_CODEC_BAR if codec else None}
    found = _turns(bench, bench.change, rival, runs)
    parts = {"microseconds_a_batch": _parts(bench)}
    return _about(CHANGING, bench, record_bytes) | found | (bars if record_bytes == 1024 else {}) | parts


def _keeping(record_bytes: int, runs: int) -> Row:
    bench = Bench(LZ4, record_bytes, KEEPS)
    found = _turns(bench, bench.keep, bench.unpacking_alone, runs)
    bars = {"bar_gb_per_s": FILTER_BAR} if record_bytes == 1024 else {}
    return _about("a filter keeps every record", bench, record_bytes) | found | bars


def _about(question: str, bench: Bench, record_bytes: int) -> Row:
    ratio = round(bench.bytes / sum(map(len, bench.packed)), 2)
    counts = {"record_bytes": record_bytes, "records_a_batch": bench.records // len(bench.raw), "ratio": ratio}
    return {"question": question, "codec": CODECS[bench.codec], **counts}


def _turns(bench: Bench, path: Work, rival: Work, runs: int) -> Row:
    """Of both the rates, and how many times the rival's time the path takes, turn by turn."""
    turns = [(_cpu_s(path), _cpu_s(rival)) for _ in range(runs)]
    return {
        "gb_per_s": _spread([bench.bytes / ours / 1e9 for ours, _ in turns]),
        "rival_gb_per_s": _spread([bench.bytes / theirs / 1e9 for _, theirs in turns]),
        "times_rival": _spread([ours / theirs for ours, theirs in turns]),
        "million_records_per_s": _spread([bench.records / ours / 1e6 for ours, _ in turns]),
    }


def _spread(values: list[float]) -> Spread:
    found = spread(values, lambda value: value)
    assert found
    return Spread(*(round(value, 3) for value in found))


def _cpu_s(work: Work) -> float:
    """CPU seconds of one time, of as many as make a round."""
    work()
    times, began = 0, time.thread_time()
    while (spent := time.thread_time() - began) < ROUND_S:
        work()
        times += 1
    return spent / times


# ---- beside the loop ----


def loop_plan(runs: int, scale: float, timeout_s: float = 300) -> compare.Plan:
    """librdkafka's loop on brokers, which only copies; and a whole copy by ours that adds the header as well."""
    peers = (PEERS["librdkafka-c"], PEERS["ours-header"])
    return compare.Plan(peers, tuple(LOOP_SETS.values()), runs, scale, timeout_s)


def beside_loop(ours: list[Row], copies: list[compare.Row]) -> list[Row]:
    """Records a second and core, by data set: the path in memory over the loop, whose CPU has sockets and protocol in
    it; and, like for like, our whole copy less its start-up over the loop less its own."""
    cost = {(row.dataset, row.peer): row.cpu_s_per_gb_running for row in copies}
    found = []
    for codec, dataset in LOOP_SETS.items():
        loop, whole = cost.get((dataset.name, "librdkafka-c")), cost.get((dataset.name, "ours-header"))
        path = next(row["million_records_per_s"] for row in ours if _is_row(row, codec, dataset.record_bytes))
        if loop and whole and loop.median and whole.median:
            loop_rate = 1e3 / dataset.record_bytes / loop.median
            rates = {"loop": loop_rate, "path": path.median, "whole_copy": loop_rate * loop.median / whole.median}
            times = {"path_times_loop": path.median / loop_rate, "whole_copy_times_loop": loop.median / whole.median}
            about = {"dataset": dataset.name, "bar_path_times_loop": TIMES_LOOP_BAR}
            rounded = {f"{name}_million_records_per_s": round(rate, 3) for name, rate in rates.items()}
            found.append(about | rounded | {name: round(value, 2) for name, value in times.items()})
    return found


def _is_row(row: Row, codec: int, record_bytes: int) -> bool:
    return (row["question"], row["codec"], row["record_bytes"]) == (CHANGING, CODECS[codec], record_bytes)


# ---- where the time goes ----


def _parts(bench: Bench) -> dict[str, float]:
    """Medians, part by part, in microseconds a batch; what asking the clock costs is in each."""
    scratch = Scratch()
    seen = [_dissect(bench, batch, scratch) for _ in range(4) for batch in bench.raw]
    names = ("checksum", "unpack", "walk", "build", "pack", "seal")
    return {name: round(median(parts) * 1e6, 1) for name, parts in zip(names, zip(*seen, strict=True), strict=True)}


def _dissect(bench: Bench, batch: Batch, scratch: Scratch) -> list[float]:
    """What `Opener.open` does to a batch, with a clock beside it: seconds of each part."""
    at = [time.perf_counter()]

    def mark() -> None:
        at.append(time.perf_counter())

    _ = batch.is_intact
    mark()
    payload = decode(bench.codec, memoryview(batch)[BATCH_HEADER_SIZE:])
    mark()
    scratch.clear()
    scratch.feed(batch, payload, 0, bench.steps)
    mark()
    scratch.next(ANY_SIZE, RUNS_MAX)
    mark()
    section = encode(bench.codec, scratch.records)
    mark()
    Made(bench.pool, scratch, bench.codec, section)
    mark()
    return [ended - began for began, ended in pairwise(at)]
