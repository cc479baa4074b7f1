"""Latency: a steady trickle of records, and how long each takes until it can be read on the target."""

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from confluent_kafka import KafkaException

from bench.compare import Tell
from bench.job import Job, PeerUnavailable, Run
from bench.measure import wait_until_idle
from bench.peers import Peer, Stage
from bench.probe import RECORD_BYTES
from bench.spread import Spread, spread
from bench.topics import PARTITIONS, Topics, fresh_name
from tests.harness.jars import KafkaUnavailable

_SETTLE_S = 5.0
_ARRIVAL_S = 15.0


@dataclass(frozen=True)
class Plan:
    """What is measured: `seconds` of records at `rate` a second, after a quarter of that to warm up."""

    peers: Sequence[Peer]
    runs: int
    rate: float
    seconds: float

    @property
    def skip(self) -> int:
        """Records at the start that are sent but not counted."""
        return int(self.rate * self.seconds / 4)

    @property
    def records(self) -> int:
        """Records in all."""
        return self.skip + int(self.rate * self.seconds)


@dataclass
class Figures:
    """One run: percentiles at the source and at the target, in milliseconds from a record's making."""

    peer: str
    round: int
    busy_cores_before: float = 0.0
    failure: str | None = None
    source: dict[str, float] = field(default_factory=dict)
    target: dict[str, float] = field(default_factory=dict)
    cores: float = 0.0
    rss_bytes: int = 0


@dataclass
class Seen:
    """What has been found so far."""

    runs: list[Figures] = field(default_factory=list)
    unavailable: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One peer; medians over its runs. `added_p50_ms` is the target's median less the source's of the same run."""

    peer: str
    finished: int
    failures: list[str]
    source_p50_ms: Spread | None
    source_p99_ms: Spread | None
    target_p50_ms: Spread | None
    target_p90_ms: Spread | None
    target_p99_ms: Spread | None
    added_p50_ms: Spread | None
    cores: Spread | None
    rss_mb: Spread | None


def latency(plan: Plan, stage: Stage, seen: Seen, tell: Tell) -> None:
    """Run the plan, adding what is found to `seen` as it is found. Round 0 warms up and is not counted."""
    for number in range(plan.runs + 1):
        for peer in plan.peers if number % 2 else reversed(plan.peers):
            if peer.name not in seen.unavailable:
                _turn(plan, stage, seen, (number, peer), tell)


def _turn(plan: Plan, stage: Stage, seen: Seen, turn: tuple[int, Peer], tell: Tell) -> None:
    number, peer = turn
    figures = Figures(peer.name, number, wait_until_idle())
    try:
        _measure(plan, stage, peer, figures)
    except (PeerUnavailable, KafkaUnavailable) as unavailable:
        seen.unavailable[peer.name] = str(unavailable)
        tell(f"{peer.name} is left out: {unavailable}")
        return
    except (KafkaException, OSError, RuntimeError, subprocess.SubprocessError) as broken:
        figures.failure = str(broken)
    seen.runs.append(figures)
    tell(_line(figures))


def _line(run: Figures) -> str:
    what = f"{run.peer} {'warm-up' if not run.round else f'run {run.round}'}"
    if run.failure:
        return f"{what}: {run.failure}"
    return f"{what}: p50 {run.target['p50_ms']} ms, p99 {run.target['p99_ms']} ms, {run.cores:.2f} cores"


def _measure(plan: Plan, stage: Stage, peer: Peer, figures: Figures) -> None:
    source, target = stage.pair.source.bootstrap, stage.pair.target.bootstrap
    ends = Topics(source), Topics(target)
    topic = fresh_name("latency")
    for end in ends:
        end.create(topic)
    try:
        run = peer.start(stage, Job(source, target, topic, "none", follow=True))
        try:
            _listen(plan, (source, target, topic), run, figures)
        finally:
            run.stop()
    finally:
        for end in ends:
            end.delete(topic)


def _listen(plan: Plan, where: tuple[str, str, str], run: Run, figures: Figures) -> None:
    """Let the records flow past the running peer, and note what the probes say and what the peer costs meanwhile."""
    source, _, topic = where
    bound_s = plan.records / plan.rate + _SETTLE_S + _ARRIVAL_S
    watcher = _probe("watch", *where, plan.records, plan.skip, bound_s, stdout=subprocess.PIPE)
    time.sleep(_SETTLE_S)  # for the peer to find its topic
    sender = _probe("produce", source, topic, plan.rate, plan.records)
    try:
        time.sleep(plan.skip / plan.rate)
        cpu_s, since = run.cpu_seconds(), time.monotonic()
        sender.wait(bound_s)
        figures.cores = (run.cpu_seconds() - cpu_s) / (time.monotonic() - since)
        figures.rss_bytes = run.rss_bytes()
        answer, _ = watcher.communicate(timeout=bound_s)
    finally:
        for probe in (sender, watcher):
            probe.kill()
            probe.wait()
    figures.source, figures.target = json.loads(answer)
    figures.failure = run.failure() or _complaint(figures.target)


def _probe(*arguments: object, stdout: int | None = None) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "bench.probe", *map(str, arguments)], stdout=stdout)


def _complaint(target: Mapping[str, float]) -> str | None:
    wrong = [f"{target[what]:.0f} records {what}" for what in ("missing", "twice") if target[what]]
    return ", ".join(wrong) or None


def rows(plan: Plan, seen: Seen) -> list[Row]:
    """A row for each peer that was measured at least once, in the plan's order."""
    counted = {peer.name: [run for run in seen.runs if run.peer == peer.name and run.round] for peer in plan.peers}
    return [_row(peer, runs) for peer, runs in counted.items() if runs]


def _row(peer: str, runs: list[Figures]) -> Row:
    done = [run for run in runs if not run.failure]
    return Row(
        peer=peer,
        finished=len(done),
        failures=[run.failure for run in runs if run.failure],
        source_p50_ms=spread(done, lambda run: run.source["p50_ms"]),
        source_p99_ms=spread(done, lambda run: run.source["p99_ms"]),
        target_p50_ms=spread(done, lambda run: run.target["p50_ms"]),
        target_p90_ms=spread(done, lambda run: run.target["p90_ms"]),
        target_p99_ms=spread(done, lambda run: run.target["p99_ms"]),
        added_p50_ms=spread(done, lambda run: run.target["p50_ms"] - run.source["p50_ms"]),
        cores=spread(done, lambda run: run.cores),
        rss_mb=spread(done, lambda run: run.rss_bytes / 1e6),
    )


def findings(plan: Plan, seen: Seen) -> dict[str, object]:
    """All of it as plain values, for the result file."""
    counted = {"runs": plan.runs, "warm_up_runs": 1, "records_a_second": plan.rate, "seconds": plan.seconds}
    return {
        "benchmark": "latency",
        "plan": {**counted, "record_bytes": RECORD_BYTES, "partitions": PARTITIONS},
        "unavailable": seen.unavailable,
        "rows": [asdict(row) for row in rows(plan, seen)],
        "runs": [asdict(run) for run in seen.runs],
    }
