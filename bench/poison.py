"""Question: what does a record that the target refuses, one in a thousand, do to its lane?

One partition, records of 1 KB in batches of 64 KB, and a target topic that refuses some: without a key (it is
compacted), from the future, or too large for it. The rival is the same link with the same records and none of the bad
ones, in the same run, in turn. A run ends when every good record is on the target and every bad one a dead letter;
then both are read and compared, record by record. The time until the first refusal is understood counts. Bars: half the
rate of the clean lane; no good record lost, doubled or out of order; every bad one in the dead letters once.
"""

import itertools
import json
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Producer, TopicPartition

from bench import records
from bench.compare import Tell
from bench.job import Job
from bench.measure import wait_until_idle
from bench.peers import Stage, link_service
from bench.spread import Spread, spread
from bench.topics import Topics, fresh_name

EACH = 1000  # one record of so many is bad
RECORDS_AT_SCALE_1 = 400_000
RECORD_BYTES = 1024
BATCH_BYTES = 64 << 10
CODECS = ("none", "lz4")
SHARE_BAR = 0.5

LIMIT_BYTES = 70_000
DAY_MS = 86_400_000
FOREVER_MS = str(2**63 - 1)
REFUSING = {
    "null-key": {"cleanup.policy": "compact", "min.compaction.lag.ms": FOREVER_MS},
    "future": {"message.timestamp.after.max.ms": str(DAY_MS)},
    "too-large": {"max.message.bytes": str(LIMIT_BYTES)},
}
ANY_TIME = {"message.timestamp.after.max.ms": FOREVER_MS}
NUMBER = "n"  # the header that tells records apart
OFFSET = "replicator.dlq.offset"

_POLL_S = 0.02
_READ_TIMEOUT_S = 30.0
_FLUSH_TIMEOUT_S = 120.0


@dataclass
class Found:
    """What a run left. Numbers of records are of the good ones; `letters_*` of the bad ones."""

    kind: str
    codec: str
    is_clean: bool
    round: int
    good: int
    bad: int
    busy_cores_before: float = 0.0
    failure: str | None = None
    seconds: float = 0.0
    records_a_second: float = 0.0
    cpu_s: float = 0.0
    lost: int = 0
    doubled: int = 0
    out_of_order: int = 0
    letters_missing: int = 0
    letters_doubled: int = 0
    letters_of_good: int = 0

    @property
    def wrong(self) -> int:
        return sum(value for name, value in asdict(self).items() if name.startswith(_WRONGS))


_WRONGS = ("lost", "doubled", "out_of_order", "letters_")


@dataclass(frozen=True)
class Scene:
    """A source topic of one partition; `bad` are the offsets of its bad records."""

    kind: str
    codec: str
    topic: str
    count: int
    bad: frozenset[int] = field(default=frozenset())

    @property
    def good(self) -> list[int]:
        return [number for number in range(self.count) if number not in self.bad]


def fill(bootstrap: str, kind: str, codec: str, count: int, clean: bool) -> Scene:
    """Writes the records, whose numbers are their offsets. Bad is the middle one of each thousand."""
    topics = Topics(bootstrap)
    topic = topics.create(fresh_name(f"poison-{kind}-{codec}"), 1, ANY_TIME)
    bad = frozenset() if clean else frozenset(range(EACH // 2, count, EACH))
    settings = {
        "bootstrap.servers": bootstrap,
        "compression.type": codec,
        "batch.size": BATCH_BYTES,
        "linger.ms": 200,
        "enable.idempotence": True,
        "log_level": 0,
        "queue.buffering.max.messages": 1_000_000,
    }
    _produce(Producer(settings), topic, _records(kind, count, bad))
    if topics.ends(topic, 1) != [count]:
        raise RuntimeError(f"{topic} holds {topics.ends(topic, 1)} records instead of {count}")
    return Scene(kind, codec, topic, count, bad)


def _records(kind: str, count: int, bad: frozenset[int]) -> Iterator[dict[str, Any]]:
    noise, now_ms = Random(5), time.time_ns() // 1_000_000
    for number, line in zip(range(count), itertools.cycle(records.pool(RECORD_BYTES))):
        record = {**line, "headers": [(NUMBER, b"%d" % number)], "timestamp": now_ms}
        if number in bad:
            record |= _spoilt(kind, noise, now_ms)
        yield record


def _spoilt(kind: str, noise: Random, now_ms: int) -> dict[str, Any]:
    match kind:
        case "null-key":
            return {"key": None}
        case "future":
            return {"timestamp": now_ms + 30 * DAY_MS}
    return {"value": noise.randbytes(LIMIT_BYTES + 5_000)}


def _produce(producer: Producer, topic: str, made: Iterator[dict[str, Any]]) -> None:
    for record in made:
        while True:
            try:
                producer.produce(topic, partition=0, **record)
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    if producer.flush(_FLUSH_TIMEOUT_S):
        raise TimeoutError(f"the source did not take the records in {_FLUSH_TIMEOUT_S:g} s")


# ---- a run ----


def measure(stage: Stage, scene: Scene, timeout_s: float) -> Found:
    """One copy by a link of its own into a fresh topic. One that fails or takes too long is a result too."""
    pair = stage.pair
    targets, letters = Topics(pair.target.bootstrap), fresh_name("dlq")
    targets.create(scene.topic, 1, REFUSING[scene.kind])
    found = Found(scene.kind, scene.codec, not scene.bad, 0, scene.count - len(scene.bad), len(scene.bad))
    found.busy_cores_before = wait_until_idle()
    options = {"name": f"bench-{uuid.uuid4().hex[:8]}", "dead_letters": {"topic": letters}}
    job = Job(pair.source.bootstrap, pair.target.bootstrap, scene.topic, scene.codec, follow=True)
    run = link_service(stage, job, options)
    try:
        _watch(targets, (scene.topic, letters), found, run.failure, time.monotonic() + timeout_s)
        found.cpu_s = run.cpu_seconds()
    finally:
        run.stop()
    try:
        _check(pair.target.bootstrap, scene, letters, found)
    finally:
        targets.delete(scene.topic, letters)
    return found


def _watch(
    targets: Topics, topics: tuple[str, str], found: Found, failure: Callable[[], str | None], deadline: float
) -> None:
    """Until all is there, or with a `failure`. The time is that from the first records on."""
    first: tuple[float, int] | None = None
    while True:
        now, end = time.monotonic(), _end(targets, topics[0])
        if first is None and end:
            first = now, end
        letters = _end(targets, topics[1]) if end >= found.good and found.bad else 0
        if end >= found.good and letters >= found.bad:
            began, at_first = first or (now, 0)
            found.seconds = now - began
            found.records_a_second = (found.good - at_first) / max(found.seconds, _POLL_S)
            return
        found.failure = failure()
        if not found.failure and now > deadline:
            found.failure = f"too late: {end} of {found.good} records, {letters} of {found.bad} dead letters"
        if found.failure:
            return
        time.sleep(_POLL_S)


def _end(topics: Topics, name: str) -> int:
    """0 for a topic that is not there."""
    try:
        return topics.ends(name, 1)[0]
    except KafkaException:
        return 0


def _check(bootstrap: str, scene: Scene, letters: str, found: Found) -> None:
    """Reads both topics and counts what is wrong."""
    copied = _read(bootstrap, scene.topic, NUMBER)
    good, seen = set(scene.good), set(copied)
    found.lost, found.doubled = len(good - seen), len(copied) - len(seen)
    found.out_of_order = sum(one > next_one for one, next_one in itertools.pairwise(copied))
    diverted = _read(bootstrap, letters, OFFSET) if _end(Topics(bootstrap), letters) else []
    found.letters_missing = len(scene.bad - set(diverted))
    found.letters_of_good = len(set(diverted) - scene.bad) + len(seen - good)
    found.letters_doubled = len(diverted) - len(set(diverted))


def _read(bootstrap: str, topic: str, header: str) -> list[int]:
    """The number in this header of each record, in order; of several with the name the last counts."""
    settings = {"bootstrap.servers": bootstrap, "group.id": "bench", "enable.auto.commit": False}
    numbers: list[int] = []
    with closing(Consumer(settings)) as consumer:
        end = consumer.get_watermark_offsets(TopicPartition(topic, 0), _READ_TIMEOUT_S)[1]
        consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
        deadline = time.monotonic() + _READ_TIMEOUT_S
        while len(numbers) < end and time.monotonic() < deadline:
            for message in consumer.consume(10_000, 0.5):
                if message.error():
                    raise KafkaException(message.error())
                numbers.append(int(dict(message.headers() or ())[header]))
    return numbers


# ---- all of them ----


@dataclass(frozen=True)
class Plan:
    """`scale` multiplies the records; `timeout_s` bounds a single run."""

    kinds: Sequence[str]
    runs: int
    scale: float
    timeout_s: float


def ask(stage: Stage, plan: Plan, seen: list[Found], tell: Tell) -> None:
    """Every kind and codec, with bad records and without, in turn; adds what is found as it is found. Round 0 is not
    counted."""
    source = stage.pair.source.bootstrap
    count = round(RECORDS_AT_SCALE_1 * plan.scale / EACH) * EACH
    for kind, codec in itertools.product(plan.kinds, CODECS):
        tell(f"writing {kind} {codec}")
        scenes = [fill(source, kind, codec, count, clean) for clean in (True, False)]
        for number in range(plan.runs + 1):
            for scene in scenes if number % 2 else reversed(scenes):
                found = measure(stage, scene, plan.timeout_s)
                found.round = number
                seen.append(found)
                tell(_line(found))
        Topics(source).delete(*(scene.topic for scene in scenes))


def _line(found: Found) -> str:
    about = f"{found.kind} {found.codec} {'clean' if found.is_clean else 'poisoned'} {found.round or 'warm-up'}"
    if found.failure:
        return f"{about}: {found.failure}"
    wrong = f", {found.wrong} WRONG: {json.dumps(asdict(found))}" if found.wrong else ""
    return f"{about}: {found.records_a_second:,.0f} records/s, {found.seconds:.2f} s, {found.cpu_s:.2f} CPU s{wrong}"


def rows(seen: Sequence[Found]) -> Iterator[dict[str, Any]]:
    """One a kind and codec: both rates, their ratio round by round, and what went wrong in all rounds together."""
    for kind, codec in itertools.product(REFUSING, CODECS):
        here = [found for found in seen if (found.kind, found.codec) == (kind, codec)]
        if not here:
            continue
        clean, poisoned = ({f.round: f for f in here if f.is_clean is which and f.round} for which in (True, False))
        both = [
            (poisoned[n], clean[n]) for n in poisoned if n in clean and not (poisoned[n].failure or clean[n].failure)
        ]
        yield {
            "kind": kind,
            "codec": codec,
            "clean_records_a_second": _rate(clean.values()),
            "poisoned_records_a_second": _rate(poisoned.values()),
            "share": spread(both, lambda pair: round(pair[0].records_a_second / pair[1].records_a_second, 3)),
            "bar_share": SHARE_BAR,
            "failures": [found.failure for found in here if found.failure],
            "wrong": sum(found.wrong for found in here),
        }


def _rate(found: Any) -> Spread | None:
    return spread((one for one in found if not one.failure), lambda one: round(one.records_a_second))


def findings(seen: Sequence[Found], runs: int, scale: float) -> dict[str, object]:
    plan = {"runs": runs, "warm_up_runs": 1, "scale": scale, "one_bad_in": EACH, "target_topics": REFUSING}
    return {"benchmark": "poison", "plan": plan, "rows": list(rows(seen)), "runs": [asdict(one) for one in seen]}
