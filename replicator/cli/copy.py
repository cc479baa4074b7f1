"""`replicator copy`: topics as they are now, from one cluster to another, and then the proof.

The supervisor does the work, with lanes that end at an offset; this file waits for them, shows how far they are, has
both sides compared, and says how it went. While lanes move it wakes up POLL_S apart and reads a few arrays: the cores
are the workers'.
"""

import asyncio
import json
import logging
import time
from dataclasses import dataclass
from typing import Any

import click
import numpy as np

from replicator.cli.figures import (
    Figures,
    Numbers,
    Rate,
    RateMeter,
    lane_positions,
    lane_states,
    read_figures,
    spell_bytes,
    spell_seconds,
    spell_states,
)
from replicator.cli.logs import set_up_logging
from replicator.cli.progress import DRAW_S, Progress, RecordCounter, showing_progress
from replicator.cli.results import GOOD, LaneResult, Results, by_topic
from replicator.cli.session import Interrupted, Session, watch_signals
from replicator.config.load import from_data
from replicator.config.models import Config, StartAt, Topics
from replicator.control.supervisor import Stop, Supervisor
from replicator.data.orders import LaneSpec
from replicator.data.states import LaneState
from replicator.data.verify import Claim, LaneVerdict, verify_lanes
from replicator.errors import ClusterError, NetworkError
from replicator.kafka.log import END, START, Partition, find_offset

POLL_S = 0.05
QUESTIONS_AT_ONCE = 16
UNKNOWN = -1


@dataclass(frozen=True)
class CopyOptions:
    """The command line of `replicator copy`."""

    source: str
    target: str
    topics: tuple[str, ...]
    exclude: tuple[str, ...]
    until: Stop
    rename_prefix: str
    start: Any  # earliest, latest, or what StartAt takes for its timestamp
    workers: int | None
    verify: bool
    as_json: bool

    def config(self) -> Config:
        """The same as a link file would say. Raises ConfigError."""
        link: dict[str, Any] = {
            "source": "source",
            "target": "target",
            "topics": {"include": list(self.topics), "exclude": [*Topics().exclude, *self.exclude]},
            "start": self.start if self.start in ("earliest", "latest") else {"timestamp": self.start},
            "dead_letters": {"on": "none"},  # a copy that is over leaves nothing behind but the topics
        }
        if self.rename_prefix:
            link["rename"] = {"prefix": self.rename_prefix}
        clusters = {
            "source": {"bootstrap.servers": self.source},
            "target": {"bootstrap.servers": self.target},
        }
        workers = {"workers": self.workers} if self.workers else {}
        return from_data({"clusters": clusters, "links": [link], **workers})


async def copy(options: CopyOptions) -> int:
    """Copies, verifies, reports; returns the exit code. Raises ReplicatorError when it cannot even begin."""
    began_s = time.monotonic()
    config = options.config()
    set_up_logging(logging.WARNING)
    job: CopyJob | None = None
    signal: Interrupted | None = None
    with watch_signals() as session:
        try:
            async with session.supervised(config, options.until) as supervisor:
                job = CopyJob(supervisor, began_s)
                await _work(job, session, options)
        except Interrupted as interrupted:
            signal = interrupted
    if job is None:
        click.echo("interrupted before anything was copied", err=True)
        return signal.exit_code if signal else 1
    results = job.results(interrupted=signal is not None)
    if options.as_json:
        click.echo(json.dumps(results.as_json(), indent=2))
    else:
        from replicator.cli.screens import print_results  # rich is only loaded for those who see it

        print_results(results)
    return signal.exit_code if signal else 0 if results.outcome in GOOD else 1


async def _work(job: "CopyJob", session: Session, options: CopyOptions) -> None:
    if not job.lanes:
        raise click.ClickException(f"no topic of {options.source} matches {' or '.join(options.topics)}")
    with showing_progress() as progress:
        await session.until(job.copy(progress))
        if options.verify:
            await session.until(job.verify(progress))


class CopyJob:
    """The lanes of one copy: waited for, compared, and summed up."""

    def __init__(self, supervisor: Supervisor, began_s: float) -> None:
        self.supervisor = supervisor
        self.lanes = supervisor.lanes
        self._began_s = began_s
        self._starts: Numbers = np.full(len(self.lanes), UNKNOWN, np.int64)
        self._seconds = np.zeros(len(self.lanes))  # until the lane ended; 0 while it has not
        self._verdicts: dict[int, LaneVerdict] = {}

    # ---- copying ----

    async def copy(self, progress: Progress) -> None:
        """Until every lane has ended, one way or another."""
        await self._find_starts()  # while the worker processes come up
        meter, drawn_s = RateMeter(), 0.0
        while True:
            self._note_ends()
            now = time.monotonic()
            if now - drawn_s >= DRAW_S or self._seconds.all():
                drawn_s = now
                figures = read_figures(self.supervisor)
                done, total = self._done_of_total()
                words = _words(figures, meter.update(figures), done, total)
                progress.draw("copying" if total else "starting", done, total, words)
            if self._seconds.all():
                return
            await asyncio.sleep(POLL_S)

    @property
    def _rows(self) -> list[int]:
        return self.supervisor.lane_rows()

    def _note_ends(self) -> None:
        ended = lane_states(self.supervisor.rows, self._rows) >= LaneState.DONE
        self._seconds[ended & (self._seconds == 0)] = time.monotonic() - self._began_s

    def _done_of_total(self) -> tuple[int, int]:
        """Offsets passed, and offsets to pass, of all lanes that have found their place."""
        row = self.supervisor.rows.array[self._rows]
        start = np.where(self._starts == UNKNOWN, row["log_start_offset"], self._starts)
        total = np.maximum(row["stop_offset"] - start, 0)
        done = np.clip(lane_positions(self.supervisor.rows, self._rows) - start, 0, total)
        placed = row["version"] > 0
        return int(done[placed].sum()), int(total[placed].sum())

    async def _find_starts(self) -> None:
        """Where lanes begin, as far as it is not known yet. A partition without a leader keeps its question open."""
        room = asyncio.Semaphore(QUESTIONS_AT_ONCE)

        async def find(lane: int) -> None:
            async with room:
                try:
                    spec = self.lanes[lane].spec
                    self._starts[lane] = await find_offset(self._source(spec), _start_timestamp(spec))
                except (ClusterError, NetworkError):
                    pass  # asked again before the verification, which says so if it is still not known

        missing = np.flatnonzero(self._starts == UNKNOWN).tolist()
        if missing:
            await self.supervisor.clusters["source"].refresh({self.lanes[lane].spec.topic for lane in missing})
            await asyncio.gather(*map(find, missing))

    def _source(self, spec: LaneSpec) -> Partition:
        return Partition(self.supervisor.clusters[spec.source], spec.topic, spec.partition)

    def _target(self, spec: LaneSpec) -> Partition:
        return Partition(self.supervisor.clusters[spec.target], spec.target_topic, spec.partition)

    # ---- verifying ----

    async def verify(self, progress: Progress) -> None:
        """Compares what every lane that is done has copied."""
        await self._find_starts()
        states = lane_states(self.supervisor.rows, self._rows)
        lanes: list[int] = np.flatnonzero(states == LaneState.DONE).tolist()
        counter = RecordCounter(
            progress, int(self.supervisor.rows.array["records"][[self._rows[lane] for lane in lanes]].sum())
        )
        verdicts = await verify_lanes([self._claim(lane) for lane in lanes], counter.add)
        self._verdicts = dict(zip(lanes, verdicts, strict=True))

    def _claim(self, lane: int) -> Claim:
        spec, end = self.lanes[lane].spec, self.supervisor.rows.checkpoint(self._rows[lane]).position
        row = self.supervisor.rows.array[self._rows[lane]]
        moved = row["records"] or row["skipped_batches"]
        start = int(self._starts[lane]) if moved else end
        return Claim(self._source(spec), self._target(spec), start, end)

    # ---- summing up ----

    def results(self, interrupted: bool) -> Results:
        """To be asked when the supervisor has ended: then it has heard all the reasons."""
        lanes = [self._lane_result(lane) for lane in range(len(self.lanes))]
        _, total = self._done_of_total()
        return Results(by_topic(lanes), time.monotonic() - self._began_s, total, interrupted)

    def _lane_result(self, lane: int) -> LaneResult:
        info, row = self.lanes[lane], self.supervisor.rows.array[self._rows[lane]]
        return LaneResult(
            info.spec,
            self.supervisor.rows.state(info.row),
            info.reason,
            int(row["records"]),
            int(row["bytes"]),
            float(self._seconds[lane]) or time.monotonic() - self._began_s,
            self._verdicts.get(lane),
        )


def _start_timestamp(spec: LaneSpec) -> int:
    """The start of a lane in ListOffsets' terms."""
    if isinstance(spec.start, StartAt):
        return spec.start.timestamp_ms
    return START if spec.start == "earliest" else END


def _words(figures: Figures, rate: Rate, done: int, total: int) -> str:
    if not total:
        return spell_states(figures.states)
    words = [
        f"{done:,} of {total:,} records",
        f"{spell_bytes(rate.bytes)}/s",
        f"{rate.records:,.0f} records/s",
    ]
    if rate.records and done < total:
        words.append(f"ETA {spell_seconds((total - done) / rate.records)}")
    if paused := figures.states.get(LaneState.PAUSED):
        words.append(f"{paused:,} paused")
    return " · ".join(words)
