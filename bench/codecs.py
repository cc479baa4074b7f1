"""Questions about the codecs: MB/s of records, packed and opened by ours, beside the library's own call on one block.

The rival is the time of the library alone, with its output already allocated where it takes that: what is missing to it
is what the formats of Kafka and the checks cost. Of gzip there is no such twin. Bars: lz4 packs 64 KB
of log lines at 1 GB/s, and none is more than a third slower than the library alone from 64 KB on.
"""

import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import cramjam

from replicator.data import codecs
from replicator.data.codecs import CODECS, GZIP, LZ4, SNAPPY, ZSTD, ZSTD_LEVEL, decode, encode

SIZES = [1 << 10, 16 << 10, 64 << 10, 800 << 10]
ROUND_BYTES = 16 << 20  # a figure is the time for so much

Call = Callable[[], Any]


def run(runs: int, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """One row a codec, size and direction: every figure as its median and its range over the runs."""
    rows = []
    for codec in (GZIP, SNAPPY, LZ4, ZSTD):
        for size in SIZES:
            for row, calls in _questions(codec, log_lines(size)):
                rows.append(row | _rates(calls, size, runs))
                tell(json.dumps(rows[-1]))
    return rows


def log_lines(size: int) -> bytes:
    """JSON as services log it, the same every time."""
    chance = random.Random(1)
    lines, made = [], 0
    while made < size:
        entry = {
            "time": 1_700_000_000_000 + 37 * len(lines),
            "level": chance.choice(["INFO", "WARN", "DEBUG"]),
            "service": chance.choice(["checkout", "payment", "search"]),
            "trace": f"{chance.getrandbits(128):032x}",
            "message": f"request of user {chance.randrange(10**6)} took {chance.random() * 100:.3f} ms",
        }
        lines.append(json.dumps(entry).encode())
        made += len(lines[-1])
    return b"".join(lines)[:size]


def _questions(codec: int, records: bytes) -> Iterator[tuple[dict[str, Any], dict[str, Call]]]:
    packed = encode(codec, records)
    library = "isal" if codec == GZIP and codecs.igzip_lib else "cramjam"
    about = {"codec": CODECS[codec], "library": library, "records_bytes": len(records)}
    about["ratio"] = round(len(records) / len(packed), 2)
    pack, unpack = _library(codec, records)
    ours = "mb_per_s"
    yield {"question": "records are packed", **about}, {ours: lambda: encode(codec, records), **pack}
    yield {"question": "records are unpacked", **about}, {ours: lambda: decode(codec, packed), **unpack}


def _library(codec: int, records: bytes) -> tuple[dict[str, Call], dict[str, Call]]:
    """What the library takes to pack and to unpack the records, cut into blocks as the format wants it."""
    step = {SNAPPY: 32 << 10, LZ4: 64 << 10}.get(codec, len(records))
    parts = [records[at : at + step] for at in range(0, len(records), step)]
    room = bytearray(2 * len(records) + 100)
    pack, unpack = _LIBRARY[codec]
    if not pack:
        return {}, {}
    blocks = [room[: pack(part, room)] for part in parts]
    alone = "library_mb_per_s"
    return {alone: lambda: [pack(part, room) for part in parts]}, {alone: lambda: [unpack(b, room) for b in blocks]}


_LIBRARY: dict[int, tuple[Callable[..., int] | None, Callable[..., int] | None]] = {
    GZIP: (None, None),
    SNAPPY: (cramjam.snappy.compress_raw_into, cramjam.snappy.decompress_raw_into),
    LZ4: (partial(cramjam.lz4.compress_block_into, store_size=False), cramjam.lz4.decompress_block_into),
    ZSTD: (partial(cramjam.zstd.compress_into, level=ZSTD_LEVEL), cramjam.zstd.decompress_into),
}


def _rates(calls: dict[str, Call], size: int, runs: int) -> dict[str, dict[str, float]]:
    """Of each call 10^6 bytes of records a second. They take turns: a machine's mood is the same for all."""
    times = max(1, ROUND_BYTES // size)
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs):
        for name, call in calls.items():
            call()
            start = time.perf_counter()
            for _ in range(times):
                call()
            rates[name].append(round(times * size / (time.perf_counter() - start) / 1e6, 1))
    return {
        name: {"median": statistics.median(found), "min": min(found), "max": max(found)}
        for name, found in rates.items()
    }
