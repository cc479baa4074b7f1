"""True Fetch responses and batches for the fuzzers to begin with: csrc/fuzz/*_fuzz.c say what an input is made of."""

import struct
from dataclasses import replace
from pathlib import Path
from random import Random

from tests.oracle.batch import DELETE_HORIZON, LOG_APPEND_TIME, TRANSACTIONAL, Batch, marker, old_message
from tests.oracle.fetch import Fetched, FetchedTopic, diverging_epoch, encode_response
from tests.oracle.scripted_log import Rec, batch_of, recs

TOPIC_IDS = {"orders": b"o" * 16, "payments": b"p" * 16, "unknown": b"u" * 16}
PLACES = [("orders", 0), ("orders", 3), ("payments", 0), ("payments", 1), ("unknown", 0)]
PRODUCERS = 2
FLAGS = [0, 0, 0, 0, TRANSACTIONAL, TRANSACTIONAL, LOG_APPEND_TIME, DELETE_HORIZON]


def _fetched_batch(offset: int, chance: Random) -> Batch:
    kind, producer = chance.random(), chance.randrange(PRODUCERS)
    count = chance.randrange(1, 5)
    if kind < 0.1:
        return marker(offset, chance.choice([True, False]), producer)
    if kind < 0.15:
        return Batch(offset, 0, b"", last_offset_delta=count - 1)
    if kind < 0.25:
        return Batch(offset, count, chance.randbytes(chance.randrange(30)), attributes=chance.choice([0, 2, 7]))
    deltas = sorted(chance.sample(range(5), count)) if kind < 0.35 else range(count)
    codec = chance.choice([0, 0, 0, 4])
    attributes = chance.choice(FLAGS) | codec
    return batch_of(recs(count, offset), offset, codec, deltas, attributes=attributes, producer_id=producer)


def _log(chance: Random) -> bytes:
    out, offset = b"", 0
    is_packed = chance.random() < 0.2  # small batches of one codec, many of them
    for _ in range(chance.randrange(20 if is_packed else 9)):
        start = offset + chance.choice([0, 0, 0, 2])
        batch = Batch(start, chance.randrange(1, 4), b"?", attributes=4) if is_packed else _fetched_batch(start, chance)
        out += batch.encode()
        offset = batch.next_offset
    if chance.random() < 0.1:
        out += old_message(offset, 1)
    return out[: chance.choice([len(out), chance.randrange(len(out) + 1)])]


def _fetched(partition: int, chance: Random) -> Fetched:
    return Fetched(
        partition,
        _log(chance),
        error=chance.choice([0] * 9 + [6]),
        aborted=chance.choice([None, [], [(0, 2), (1, 4)], [(1, 0), (0, 7), (1, 7), (5, 5)]]),
        tags=chance.choice([[], [], [(1, b"leader")], [diverging_epoch(3, 4), (7, b"")]]),
    )


def write_seeds(target: str, folder: Path, seed: int, files: int) -> list[Path]:
    """Writes so many inputs for a fuzz target; the same seed makes the same ones."""
    chance = Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"seed-{seed}-{i}" for i in range(files)]
    for path in paths:
        path.write_bytes(INPUTS[target](chance))
    return paths


def _fetch_input(chance: Random) -> bytes:
    flags = chance.randrange(256)
    topics: list[FetchedTopic] = []
    for name, partition in chance.sample(PLACES, chance.randrange(len(PLACES) + 1)):
        if not topics or topics[-1].name != name:
            topics.append(FetchedTopic(name, TOPIC_IDS[name], []))
        topics[-1].partitions.append(_fetched(partition, chance))
    response = encode_response(13 if flags & 1 else 10, 0, topics)
    cuts = [chance.randrange(2**16) for _ in range(chance.randrange(12))]
    return bytes([flags, len(cuts)]) + struct.pack(f">{len(cuts)}H", *cuts) + response


def _record(chance: Random) -> Rec:
    key, value = (chance.choice([None, b"", b"key", chance.randbytes(chance.randrange(90))]) for _ in range(2))
    names = ["a", "b", "x-1", "x-2", "y", "yy", "replicator.hops", "replicator.source.topic"]
    values = [None, b"", b"value", b"there", b"over,there,", chance.randbytes(70)]
    headers = tuple((chance.choice(names), chance.choice(values)) for _ in range(chance.choice([0, 0, 1, 4])))
    return Rec(value, key, chance.choice([0, 5, 2**41, chance.randrange(-(2**63), 2**63)]), headers)


def _records_batch(chance: Random, dense: bool) -> bytes:
    records = [_record(chance) for _ in range(chance.randrange(1, 12))]
    deltas = sorted(chance.sample(range(len(records) if dense else 2 * len(records)), len(records)))
    attributes = 0 if dense else chance.choice([0, 0, 0, 0x08, 0x40])
    base = chance.choice([0, 2**41, records[0].timestamp]) if dense else chance.choice([0, -1])
    near = [each._replace(timestamp=min(max(each.timestamp, base - 2**63), base + 2**63 - 1)) for each in records]
    batch = batch_of(near, chance.choice([0, 3]), deltas=deltas, attributes=attributes, base_timestamp=base)
    return replace(batch, crc=0).encode()


def _records_input(chance: Random) -> bytes:
    if chance.random() < 0.7:
        head = [0, chance.randrange(6), chance.choice([0, 0, 5])]
        return bytes(head) + struct.pack(">H", chance.randrange(600)) + _records_batch(chance, False)
    parts = [_records_batch(chance, True) for _ in range(chance.randrange(1, 5))]
    flags = chance.choice([3, 3, 3, 7, 1, 0])
    return bytes([1, flags, len(parts) - 1]) + struct.pack(f">{len(parts)}H", *map(len, parts)) + b"".join(parts)


INPUTS = {"fetch_fuzz": _fetch_input, "records_fuzz": _records_input}
