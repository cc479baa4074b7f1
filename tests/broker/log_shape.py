"""How much there is in a log of everything that cannot pass as it is: counted in its batches' headers, one by one.

A scene that has none of what it is named after proves nothing, so each asks this first.
"""

from collections import Counter
from collections.abc import Sequence

from tests.broker.copies import stored_batches
from tests.harness.kafka import KafkaCluster
from tests.oracle.batch import CODEC, CONTROL, DELETE_HORIZON, LOG_APPEND_TIME, TRANSACTIONAL, Batch

CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
# A control record is uncompressed and short: length, attributes, both deltas and the key's length take a byte each.
CONTROL_KEY = slice(5, 9)
COMMIT = b"\x00\x00\x00\x01"  # version 0, type 1; an abort is of type 0

Shape = Counter[str]
"""By word: `batches` and `records` of data, `holes` (offsets that batches leave out), `thinned` (batches with such),
`empty`, `gaps` (between batches), `horizon`, `append_time`, `control`; batches of transactions that were `committed`,
`aborted`, or still are `open`; `interleaved`, data of others in the midst of a transaction; and a word a codec."""


def log_shape(cluster: KafkaCluster, topic: str, partition: int = 0) -> Shape:
    """Of what its leader stores, up to the high watermark."""
    return shape_of(stored_batches(cluster, topic, partition))


def shape_of(batches: Sequence[Batch]) -> Shape:
    found: Shape = Counter()
    expected = batches[0].base_offset if batches else 0
    for batch in batches:
        found["gaps"] += batch.base_offset > expected
        expected = batch.next_offset
        if batch.attributes & CONTROL:
            found["control"] += 1
        elif not batch.count:
            found["empty"] += 1
        else:
            found += _of_data(batch)
    return found + _of_transactions(batches)


def _of_data(batch: Batch) -> Shape:
    holes = batch.last_delta + 1 - batch.count
    return Counter(
        {
            "batches": 1,
            "records": batch.count,
            "holes": holes,
            "thinned": bool(holes),
            "horizon": bool(batch.attributes & DELETE_HORIZON),
            "append_time": bool(batch.attributes & LOG_APPEND_TIME),
            CODECS[batch.attributes & CODEC]: 1,
        }
    )


def _of_transactions(batches: Sequence[Batch]) -> Shape:
    found: Shape = Counter()
    open_batches: Counter[int] = Counter()  # by producer id
    for batch in batches:
        if batch.attributes & CONTROL:
            how = "committed" if batch.records[CONTROL_KEY] == COMMIT else "aborted"
            found[how] += open_batches.pop(batch.producer_id, 0)
        elif batch.count:
            found["interleaved"] += bool(open_batches.keys() - {batch.producer_id})
            open_batches[batch.producer_id] += bool(batch.attributes & TRANSACTIONAL)
            open_batches += Counter()  # without those of 0
    found["open"] = open_batches.total()
    return found
