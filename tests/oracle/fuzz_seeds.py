"""True Fetch responses for the fuzzer to begin with: csrc/fuzz/fetch_fuzz.c says what an input is made of."""

import struct
from pathlib import Path
from random import Random

from tests.oracle.batch import CONTROL, TRANSACTIONAL, Batch, old_message
from tests.oracle.fetch import Fetched, FetchedTopic, diverging_epoch, encode_response

TOPIC_IDS = {"orders": b"o" * 16, "payments": b"p" * 16, "unknown": b"u" * 16}
PLACES = [("orders", 0), ("orders", 3), ("payments", 0), ("payments", 1), ("unknown", 0)]
OTHER_KINDS = [
    {"attributes": CONTROL | TRANSACTIONAL},
    {"count": 0},
    {"attributes": TRANSACTIONAL},
    {"attributes": 0x08},
    {"attributes": 0x07},
    {"count": 1},
    {"magic": 1},
]


def _log(chance: Random) -> bytes:
    out, offset = b"", 0
    for _ in range(chance.randrange(6)):
        offset += chance.choice([0, 0, 0, 2])
        width = chance.randrange(1, 5)
        kind = {"count": width} | (chance.choice(OTHER_KINDS) if chance.random() < 0.2 else {})
        batch = Batch(offset, records=chance.randbytes(chance.randrange(30)), last_offset_delta=width - 1, **kind)
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
        aborted=chance.choice([None, [], [(1, 2), (3, 4)]]),
        tags=chance.choice([[], [], [(1, b"leader")], [diverging_epoch(3, 4), (7, b"")]]),
    )


def write_seeds(folder: Path, seed: int, files: int) -> list[Path]:
    """Writes so many inputs; the same seed makes the same ones."""
    chance = Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i in range(files):
        flags = chance.randrange(32)
        topics: list[FetchedTopic] = []
        for name, partition in chance.sample(PLACES, chance.randrange(len(PLACES) + 1)):
            if not topics or topics[-1].name != name:
                topics.append(FetchedTopic(name, TOPIC_IDS[name], []))
            topics[-1].partitions.append(_fetched(partition, chance))
        response = encode_response(13 if flags & 1 else 10, 0, topics)
        cuts = [chance.randrange(2**16) for _ in range(chance.randrange(12))]
        paths.append(folder / f"seed-{seed}-{i}")
        paths[-1].write_bytes(bytes([flags, len(cuts)]) + struct.pack(f">{len(cuts)}H", *cuts) + response)
    return paths
