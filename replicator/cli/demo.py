"""`replicator demo`: two embedded clusters, a producer, a link between them, and proof that it works.

The link runs exactly as it would between real clusters: a supervisor, worker processes, raw batches. What is
embedded is small, though (a partition keeps 5 MiB), so the rates are those of the demo and not what a link can do.
"""

import asyncio
import json
import logging
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from replicator.cli.figures import (
    RateMeter,
    counted,
    find_trouble,
    lane_positions,
    read_figures,
    spell_bytes,
    spell_rate,
)
from replicator.cli.logs import logging_to, set_up_logging
from replicator.cli.session import Interrupted, watch_signals
from replicator.config.load import from_data
from replicator.config.models import Config
from replicator.control.embedded import EmbeddedCluster
from replicator.control.supervisor import Supervisor
from replicator.data.verify import Claim, LaneVerdict, Outcome, verify_lanes
from replicator.errors import InternalError, NetworkError, VerificationFailed
from replicator.kafka.log import Partition

if TYPE_CHECKING:
    from replicator.cli.screens import DemoScreen

TOPICS = {"orders": 4, "clicks": 4}  # name -> partitions
RECORD_BYTES = 230  # about; 120,000 of them are 3.5 MiB a partition
TICK_S = 0.05
CHUNK = 1000  # records between two looks at everything else
PLAIN_LINE_S = 1.0
CATCH_UP_S = 15.0  # of which a second would do
COUNT_TIMEOUT_S = 15.0
QUIET = {"log_level": 0}  # a client that outlives its cluster would complain


@dataclass
class Produced:
    """What went into the source so far."""

    records: int = 0
    bytes: int = 0


async def demo(seconds: int, records: int) -> int:
    """Runs it; returns the exit code. Raises VerificationFailed when the sides differ, and what Show.run raises."""
    set_up_logging(logging.WARNING)
    try:
        with watch_signals() as session, _clusters() as (source, target):
            async with session.supervised(_config(source, target)) as supervisor:
                with _display() as display:
                    show = Show(supervisor, display)
                    await session.until(show.run(source, seconds, records))
                    verdicts = await session.until(_verify(supervisor))
                    counted_records = await session.until(asyncio.to_thread(_count_records, target))
    except Interrupted as interrupted:
        click.echo("interrupted", err=True)
        return interrupted.exit_code
    _check(verdicts, show.produced.records, counted_records)
    click.echo(_summary(show, verdicts, counted_records))
    return 0


@contextmanager
def _clusters() -> Iterator[tuple[EmbeddedCluster, EmbeddedCluster]]:
    with EmbeddedCluster() as source, EmbeddedCluster() as target:
        for name, partitions in TOPICS.items():
            source.create_topic(name, partitions)
            target.create_topic(name, partitions)  # by hand: the embedded cluster has no admin requests
        yield source, target


def _config(source: EmbeddedCluster, target: EmbeddedCluster) -> Config:
    return from_data(
        {
            "clusters": {
                "us": {"bootstrap.servers": source.bootstrap_servers},
                "eu": {"bootstrap.servers": target.bootstrap_servers},
            },
            # Unmerged, so that the batches can be shown to be the same on both sides.
            "links": [
                {"source": "us", "target": "eu", "topics": {"include": list(TOPICS)}, "batches": [{"merge": "off"}]}
            ],
            "workers": 1,
            "limits": {"fetch_wait_ms": 20},  # the embedded cluster does not wake a waiting Fetch for new data
        }
    )


@contextmanager
def _display() -> Iterator["DemoScreen | None"]:
    if not sys.stderr.isatty():
        yield None
        return
    from replicator.cli.screens import DemoScreen

    with DemoScreen() as screen, logging_to(screen.print_line):
        yield screen


class Show:
    """Produces records at a steady rate while the link carries them, and shows both."""

    def __init__(self, supervisor: Supervisor, display: "DemoScreen | None") -> None:
        self.supervisor = supervisor
        self.produced = Produced()
        self.behind_s = 0.0  # from the last record's production until the target had it, or less
        self._display = display
        self._in, self._out = RateMeter(), RateMeter()
        self._line_due_s = 0.0

    async def run(self, source: EmbeddedCluster, seconds: int, records: int) -> None:
        """Until the target has everything. Raises NetworkError or InternalError when it does not come."""
        ended_s = await self._produce(source, seconds, records)
        while self._arrived() < records:
            for trouble in find_trouble(self.supervisor):
                if trouble.state.is_final:
                    raise InternalError(f"{trouble.info.spec.name}: {trouble.info.reason}")
            if time.monotonic() - ended_s > CATCH_UP_S:
                raise NetworkError(f"only {self._arrived():,} of {records:,} records came within {CATCH_UP_S:.0f} s")
            self._draw("draining")
            await asyncio.sleep(TICK_S / 5)
        self.behind_s = time.monotonic() - ended_s
        self._draw("done")

    def _arrived(self) -> int:
        return int(lane_positions(self.supervisor.rows, self.supervisor.lane_rows()).sum())

    async def _produce(self, source: EmbeddedCluster, seconds: int, records: int) -> float:
        """The time at which the last record was handed to the producer."""
        from confluent_kafka import Producer

        producer = Producer({"bootstrap.servers": source.bootstrap_servers, "linger.ms": 5, **QUIET})
        partitions = [(topic, index) for topic, count in TOPICS.items() for index in range(count)]
        began_s = ended_s = time.monotonic()
        while self.produced.records < records:
            due = min(records, int(records * (time.monotonic() - began_s) / seconds) + 1)
            late, due = due > self.produced.records + CHUNK, min(due, self.produced.records + CHUNK)
            for number in range(self.produced.records, due):
                topic, partition = partitions[number % len(partitions)]
                value = _record(topic, number)
                producer.produce(topic, value, key=str(number % 5000), partition=partition)
                self.produced.bytes += len(value)
            self.produced.records, ended_s = due, time.monotonic()
            producer.poll(0)
            self._draw("producing and replicating")
            await asyncio.sleep(0 if late else TICK_S)
        if left := await asyncio.to_thread(producer.flush, CATCH_UP_S):
            raise NetworkError(f"{counted(left, 'record')} could not be produced into the embedded cluster")
        return ended_s

    def _draw(self, title: str) -> None:
        figures = read_figures(self.supervisor)
        produced = figures._replace(records=self.produced.records, bytes=self.produced.bytes)
        rate_in, rate_out = self._in.update(produced), self._out.update(figures)
        if self._display:
            rows = [
                ("us  produced", counted(produced.records, "record"), spell_rate(rate_in)),
                ("eu  replicated", counted(figures.records, "record"), spell_rate(rate_out)),
                ("on the way", counted(max(produced.records - figures.records, 0), "record"), ""),
            ]
            self._display.draw(rows, f"us → eu: {title}")
        elif figures.at_s >= self._line_due_s:
            self._line_due_s = figures.at_s + PLAIN_LINE_S
            words = f"produced {produced.records:,}, replicated {figures.records:,} · {spell_rate(rate_out)}"
            click.echo(f"{title}: {words}", err=True)


def _record(topic: str, number: int) -> bytes:
    """Something that looks like data, RECORD_BYTES long."""
    body: dict[str, Any] = {
        "id": number,
        "topic": topic,
        "user": number % 5000,
        "at_ms": time.time_ns() // 1_000_000,
    }
    noise_bytes = max(RECORD_BYTES - len(json.dumps(body)) - len(', "noise": ""'), 0)
    return json.dumps(body | {"noise": random.randbytes(noise_bytes // 2 + 1).hex()[:noise_bytes]}).encode()


# ---- the proof ----


async def _verify(supervisor: Supervisor) -> list[LaneVerdict]:
    def part(alias: str, topic: str, index: int) -> Partition:
        return Partition(supervisor.clusters[alias], topic, index)

    return await verify_lanes(
        [
            Claim(
                part(info.spec.source, info.spec.topic, info.spec.partition),
                part(info.spec.target, info.spec.target_topic, info.spec.partition),
                0,
                supervisor.rows.checkpoint(info.row).position,
            )
            for info in supervisor.lanes
        ]
    )


def _count_records(target: EmbeddedCluster) -> int:
    """What an ordinary consumer finds on the target: none of our code has a part in it."""
    from confluent_kafka import Consumer, KafkaError, TopicPartition

    options: dict[str, Any] = {"bootstrap.servers": target.bootstrap_servers, "group.id": "demo", **QUIET}
    consumer = Consumer(options | {"enable.partition.eof": True, "fetch.wait.max.ms": 20})
    partitions = [TopicPartition(topic, index, 0) for topic, count in TOPICS.items() for index in range(count)]
    consumer.assign(partitions)
    ended: set[object] = set()
    records, deadline_s = 0, time.monotonic() + COUNT_TIMEOUT_S
    while len(ended) < len(partitions) and time.monotonic() < deadline_s:
        for message in consumer.consume(10_000, timeout=0.2):
            error = message.error()
            if error is None:
                records += 1
            elif error.code() == KafkaError._PARTITION_EOF:
                ended.add((message.topic(), message.partition()))
    consumer.close()
    return records


def _check(verdicts: list[LaneVerdict], produced: int, consumed: int) -> None:
    for verdict in verdicts:
        if verdict.outcome is not Outcome.IDENTICAL:
            raise VerificationFailed(verdict.reason)
    compared = sum(verdict.records for verdict in verdicts)
    if not produced == compared == consumed:
        raise VerificationFailed(f"{produced:,} records produced, {compared:,} compared, {consumed:,} consumed")


def _summary(show: Show, verdicts: list[LaneVerdict], consumed: int) -> str:
    batches, size = sum(verdict.batches for verdict in verdicts), sum(verdict.bytes for verdict in verdicts)
    topics = ", ".join(f"{name} ({partitions} partitions)" for name, partitions in TOPICS.items())
    return f"""
It works: everything that was produced into us is on eu, once and in order.

  topics      {topics}
  produced    {counted(show.produced.records, "record")}, {spell_bytes(show.produced.bytes)}
  replicated  {batches:,} batches, {spell_bytes(size)}, as their producer made them
  lag         the last record was on eu within {show.behind_s * 1000:.0f} ms
  verified    {len(verdicts)} partitions: offsets, counts, timestamps and checksums of every batch are the same
  consumed    {counted(consumed, "record")} from eu, by an ordinary consumer

Next, with clusters of your own:

  replicator copy --from HOST:9092 --to HOST:9092 --topics NAME   once, proved at the end
  replicator run link.yaml                                        for good (see `replicator run --help`)
"""
