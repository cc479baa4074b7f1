"""Source topics that only a rebuilding link can carry: thinned by compaction, timed by their broker, cut, or refused.

Each is written by ordinary clients, looks as real ones do, and is asserted to have in it what it is for. Records have
their number in a header of their own, because values may be null and keys come again.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence

from tests.broker.admin import create_topic, delete_records, start_offset
from tests.broker.batches import now_ms
from tests.broker.log_shape import CODECS, Shape, log_shape
from tests.harness import witness
from tests.harness.kafka import KafkaCluster
from tests.harness.records import NewRecord, Record
from tests.harness.waiting import eventually

NUMBER = "n"  # the header that tells records apart
DAY_MS = 86_400_000
FOREVER_MS = str(2**63 - 1)
ANY_TIME = {"message.timestamp.after.max.ms": FOREVER_MS}
APPEND_TIME = {"message.timestamp.type": "LogAppendTime"}

# The smallest segments that brokers allow. What is written last stays in the active one, which is not cleaned.
SEGMENT_BYTES = 1 << 20
FILLER_BYTES = 200_000
COMPACTED = {
    "cleanup.policy": "compact",
    "segment.bytes": str(SEGMENT_BYTES),
    "min.cleanable.dirty.ratio": "0.001",
}
CLEANED_IN_S = 60
BATCH_RECORDS = 20
SHARED_KEYS = 30


def number_of(record: Record) -> int:
    """An AssertionError for a record that has none, or more than one."""
    ((_, value),) = [header for header in record.headers if header[0] == NUMBER]
    return int(value or b"")


def numbered_record(number: int, key: bytes | None, value: bytes | None, partition: int = 0) -> NewRecord:
    """Its time is a second after that of the number before it, some months ago."""
    return NewRecord(partition, key, value, ((NUMBER, b"%d" % number),), 1_770_000_000_000 + 1_000 * number)


def write_in_batches(
    cluster: KafkaCluster, topic: str, records: Iterable[NewRecord], codec: str = "none", **config: object
) -> None:
    """By a producer of its own, in batches of twenty."""
    settings = {"compression.type": codec, "linger.ms": 200, "batch.num.messages": BATCH_RECORDS}
    more = {name.replace("_", "."): value for name, value in config.items()}
    witness.produce(cluster.bootstrap, topic, records, settings | {"enable.idempotence": True} | more)


def copy_topic(cluster: KafkaCluster, topic: str, partitions: int = 1, config: Mapping[str, str] | None = None) -> None:
    """The target's topic, made before the link would make it like the source's: nothing may be cleaned there."""
    create_topic(cluster, topic, partitions, {"cleanup.policy": "delete", **(config or {})})


# ---- compaction ----


def write_compacted(cluster: KafkaCluster, topic: str, seed: int = 1, config: Mapping[str, str] | None = None) -> Shape:
    """Every codec's batches with holes at all places, tombstones past their first cleaning, empty batches that the
    cleaner keeps for their producers' sake, gaps where batches were; then ordinary batches, behind it all."""
    create_topic(cluster, topic, config={**COMPACTED, **(config or {})})
    chance = random.Random(seed)
    for turn, codec in enumerate(CODECS):
        write_in_batches(cluster, topic, _round(turn, chance), codec)
    write_in_batches(cluster, topic, _overwriting(chance))
    clean(cluster, topic, is_cleaned)
    write_in_batches(cluster, topic, [numbered_record(9_000 + n, b"late-%d" % n, b"late") for n in range(50)], "lz4")
    shape = log_shape(cluster, topic)
    assert all(shape[codec] for codec in CODECS), shape
    return shape


def is_cleaned(shape: Shape) -> bool:
    """Enough of everything."""
    enough = {"holes": 100, "thinned": 20, "empty": 3, "horizon": 5, "gaps": 3}
    return all(shape[word] >= count for word, count in enough.items())


def _round(turn: int, chance: random.Random) -> Iterable[NewRecord]:
    """Batches of which all, some or none is written anew later; the last one wholly."""
    for place in range(10 * BATCH_RECORDS):
        number = 1_000 * turn + place
        batch = place // BATCH_RECORDS
        own_share = (1.0, 0.5, 0.9, 0.1, 0.0, 0.7, 0.5, 0.0, 0.3, 0.0)[batch]
        is_own = chance.random() < own_share
        key = b"own-%d" % number if is_own else b"shared-%d" % chance.randrange(SHARED_KEYS)
        # The tombstones of what the round before wrote.
        if turn and batch in (2, 5) and place % 4 == 0:
            yield numbered_record(number, b"own-%d" % (number - 1_000), None)
        else:
            yield numbered_record(number, key, b"%d:" % number + b"v" * chance.randrange(100))


def _overwriting(chance: random.Random) -> Iterable[NewRecord]:
    keys = [*range(SHARED_KEYS)]
    chance.shuffle(keys)
    for place, key in enumerate(keys):
        yield numbered_record(8_000 + place, b"shared-%d" % key, b"final")


def clean(cluster: KafkaCluster, topic: str, is_done: Callable[[Shape], bool], partition: int = 0) -> None:
    """Closes the segment that is written, by writing enough behind it, and waits until the cleaner has been there."""
    first = now_ms() * 100  # numbers that nobody has
    numbers = range(first, first + SEGMENT_BYTES // FILLER_BYTES + 2)
    value = bytes(FILLER_BYTES)
    fillers = [NewRecord(partition, b"filler", value, ((NUMBER, b"%d" % number),)) for number in numbers]
    witness.produce(cluster.bootstrap, topic, fillers, {"batch.num.messages": 1})
    eventually(lambda: is_done(log_shape(cluster, topic, partition)), f"{topic} to be cleaned", CLEANED_IN_S)


# ---- times and heads ----


def write_append_time(cluster: KafkaCluster, topic: str) -> None:
    """Batches of every codec whose times are their broker's; the producers' own were long ago."""
    create_topic(cluster, topic, config=APPEND_TIME)
    for turn in range(3):
        for place, codec in enumerate(CODECS):
            first = 1_000 * turn + 100 * place
            write_in_batches(
                cluster, topic, [numbered_record(first + n, b"%d" % n, b"v" * n) for n in range(60)], codec
            )
    shape = log_shape(cluster, topic)
    assert shape["append_time"] == shape["batches"] >= 30, shape
    records = witness.dump(cluster.bootstrap, topic)[0]
    assert {record.timestamp_type for record in records} == {"LogAppendTime"}
    assert len({record.timestamp for record in records}) > 5
    assert min(record.timestamp for record in records) > now_ms() - DAY_MS


def write_cut_head(cluster: KafkaCluster, topic: str) -> None:
    """A partition for each codec, whose log starts in the middle of a batch, and goes on behind it."""
    create_topic(cluster, topic, len(CODECS))
    for part, codec in enumerate(CODECS):
        records = (numbered_record(n, b"%d" % n, b"value " * 9, part) for n in range(5 * BATCH_RECORDS))
        write_in_batches(cluster, topic, records, codec)
        cut = BATCH_RECORDS + 1 + part * 4
        delete_records(cluster, topic, before=cut, partition=part)
        assert start_offset(cluster, topic, part) == cut
        assert log_shape(cluster, topic, part)[codec] >= 4, "all but the first are there"


# ---- records that a target refuses, and batches ----

MIXED = "mixed"
LIMIT_BYTES = 4_000
HOUR_MS = 3_600_000
# What the target's topic is like that refuses them. It is never cleaned: it is too young.
REFUSING: dict[str, dict[str, str]] = {
    "null key": {"cleanup.policy": "compact", "min.compaction.lag.ms": FOREVER_MS},
    "future": {"message.timestamp.after.max.ms": str(HOUR_MS)},
    "too large": {"max.message.bytes": str(LIMIT_BYTES)},
}
REFUSING[MIXED] = {name: value for config in REFUSING.values() for name, value in config.items()}
KINDS = tuple(REFUSING)
# In a batch of twenty, by batch: where the bad ones are.
BAD_PLACES: tuple[Sequence[int], ...] = ((), (0,), (19,), (3, 4, 5), (0, 19), (), range(20), (10,), range(0, 20, 2), ())


def write_poison(
    cluster: KafkaCluster, topic: str, kind: str, codecs: Sequence[str] = CODECS, turns: int = 1
) -> set[int]:
    """A partition for each codec, with records in it that a topic made by REFUSING[kind] does not take; the numbers of
    these, which are in every partition: first and last ones of batches, neighbours, and a whole batch."""
    create_topic(cluster, topic, len(codecs), ANY_TIME)
    noise = random.Random(5)
    bad: set[int] = set()
    for part, codec in enumerate(codecs):
        records = []
        for number in range(turns * len(BAD_PLACES) * BATCH_RECORDS):
            batch, place = divmod(number, BATCH_RECORDS)
            record = numbered_record(number, b"key-%d" % number, noise.randbytes(150), part)
            if place in BAD_PLACES[batch % len(BAD_PLACES)]:
                bad.add(number)
                which = KINDS[number % 3] if kind == MIXED else kind
                record = _spoilt(record, which, noise)
            records.append(record)
        write_in_batches(cluster, topic, records, codec)
        shape = log_shape(cluster, topic, part)
        assert shape["batches"] >= turns * len(BAD_PLACES), shape
    assert len(bad) >= 30 * turns
    return bad


def _spoilt(record: NewRecord, kind: str, noise: random.Random) -> NewRecord:
    match kind:
        case "null key":
            return record._replace(key=None)
        case "future":
            return record._replace(timestamp=now_ms() + 30 * DAY_MS)
        case "too large":
            return record._replace(value=noise.randbytes(LIMIT_BYTES + 500))
    raise ValueError(kind)


def write_large_batches(cluster: KafkaCluster, topic: str, limit_bytes: int) -> None:
    """A partition for each codec; its batches are several times as large as `limit_bytes`, its records are not."""
    create_topic(cluster, topic, len(CODECS))
    noise = random.Random(3)
    for part, codec in enumerate(CODECS):
        sizes = (noise.choice([10, limit_bytes // 20, limit_bytes // 2, limit_bytes - 300]) for _ in range(300))
        records = (numbered_record(n, b"%d" % n, noise.randbytes(size), part) for n, size in enumerate(sizes))
        write_in_batches(cluster, topic, records, codec)
        shape = log_shape(cluster, topic, part)
        assert shape["records"] == 300
        large = [batch for batch in witness.raw_batches(cluster.bootstrap, topic, part) if len(batch) > 2 * limit_bytes]
        assert len(large) >= 10


def write_growing_batches(cluster: KafkaCluster, topic: str) -> None:
    """Batches of half a megabyte that take a hundredth of it: uncompressed they are larger than most limits."""
    create_topic(cluster, topic, len(CODECS))
    for part, codec in enumerate(CODECS):
        records = (numbered_record(n, b"%d" % n, b"%d " % n * 4_000, part) for n in range(5 * BATCH_RECORDS))
        write_in_batches(cluster, topic, records, codec, message_max_bytes=1_000_000)
        assert log_shape(cluster, topic, part)[codec] >= 5


def write_all_codecs(cluster: KafkaCluster, topic: str) -> None:
    """A partition for each codec: ordinary batches, which pass as they are if nothing is in their way."""
    create_topic(cluster, topic, len(CODECS))
    for part, codec in enumerate(CODECS):
        values = (b"a line of a log, number %d" % n * (1 + n % 7) for n in range(15 * BATCH_RECORDS))
        records = (numbered_record(n, b"%d" % n, value, part) for n, value in enumerate(values))
        write_in_batches(cluster, topic, records, codec)
        assert log_shape(cluster, topic, part)[codec] >= 15
