"""Throughput and cost: every peer copies every data set between the same two clusters, in turn, several times."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

from confluent_kafka import KafkaException

from bench.datasets import EMPTY, DataSet, Filled, fill
from bench.job import PeerUnavailable
from bench.measure import Figures, measure
from bench.peers import Peer, Stage
from bench.spread import Spread, spread
from bench.topics import Topics
from tests.harness.jars import KafkaUnavailable

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What is compared. `scale` multiplies the data sets' sizes; `timeout_s` bounds a single run."""

    peers: Sequence[Peer]
    sets: Sequence[DataSet]
    runs: int
    scale: float
    timeout_s: float


@dataclass
class Seen:
    """What a comparison has found so far; complete enough to be reported at any time."""

    sets: dict[str, Filled] = field(default_factory=dict)
    runs: list[Figures] = field(default_factory=list)
    unavailable: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One peer on one data set: medians over the runs that finished. GB are 10^9 bytes of keys and values.

    `cpu_s_per_gb_running` leaves out what the same peer costs on a topic without records, measured in this session.
    """

    dataset: str
    peer: str
    finished: int
    failures: list[str]
    mb_a_second: Spread | None
    records_a_second: Spread | None
    start_s: Spread | None
    wall_s: Spread | None
    cpu_s_per_gb: Spread | None
    cpu_s_per_gb_running: Spread | None
    cpu_us_per_record: Spread | None
    source_cpu_s_per_gb: Spread | None
    target_cpu_s_per_gb: Spread | None
    rss_mb: Spread | None
    target_batch_kb: Spread | None


def compare(plan: Plan, stage: Stage, seen: Seen, tell: Tell) -> None:
    """Run the plan, adding what is found to `seen` as it is found."""
    for dataset in (EMPTY, *plan.sets):
        source = stage.pair.source.bootstrap
        tell(f"writing {dataset.name}")
        filled = fill(source, dataset, 0 if dataset is EMPTY else plan.scale)
        seen.sets[dataset.name] = filled
        try:
            for number, peer in _turns(plan):
                if peer.name not in seen.unavailable:
                    _turn(plan, stage, seen, (number, peer, filled), tell)
        finally:
            Topics(source).delete(filled.topic)


def _turns(plan: Plan) -> Iterator[tuple[int, Peer]]:
    """Round 0 warms up peers and brokers and is not counted. Every other round goes backwards, so that nobody always
    follows the same neighbour."""
    for number in range(plan.runs + 1):
        for peer in plan.peers if number % 2 else reversed(plan.peers):
            yield number, peer


def _turn(plan: Plan, stage: Stage, seen: Seen, turn: tuple[int, Peer, Filled], tell: Tell) -> None:
    number, peer, filled = turn
    try:
        figures = measure(stage, peer, filled, plan.timeout_s)
    except (PeerUnavailable, KafkaUnavailable) as unavailable:
        seen.unavailable[peer.name] = str(unavailable)
        tell(f"{peer.name} is left out: {unavailable}")
        return
    except (KafkaException, OSError, RuntimeError) as broken:
        figures = Figures(peer.name, filled.dataset.name, number, filled.records, filled.record_bytes, 0, str(broken))
    figures.round = number
    seen.runs.append(figures)
    tell(_line(figures))


def _line(run: Figures) -> str:
    what = f"{run.dataset} {run.peer} {'warm-up' if not run.round else f'run {run.round}'}"
    if run.failure:
        return f"{what}: {run.failure}"
    rate = run.records_a_second * run.record_bytes / max(run.records, 1) / 1e6
    return f"{what}: {rate:.0f} MB/s, {run.wall_s:.1f} s, {run.cpu_s:.2f} CPU s"


def rows(plan: Plan, seen: Seen) -> list[Row]:
    """A row for each data set and peer that was measured at least once, in the plan's order."""
    made = []
    for dataset in plan.sets:
        for peer in plan.peers:
            runs = [run for run in seen.runs if (run.dataset, run.peer) == (dataset.name, peer.name) and run.round]
            if runs:
                made.append(_row(dataset.name, peer.name, runs, startup_cpu_s(seen, peer.name)))
    return made


def startup_cpu_s(seen: Seen, peer: str) -> Spread | None:
    """What a peer costs on a topic without records."""
    empty = (r for r in seen.runs if r.dataset == EMPTY.name and r.peer == peer and r.round and not r.failure)
    return spread(empty, lambda run: run.cpu_s)


def _row(dataset: str, peer: str, runs: list[Figures], startup: Spread | None) -> Row:
    done = [run for run in runs if not run.failure]

    def per_gb(value: Callable[[Figures], float | None]) -> Spread | None:
        costs = ((value(run), run.record_bytes) for run in done)
        return spread(costs, lambda cost: None if cost[0] is None else cost[0] / cost[1] * 1e9)

    return Row(
        dataset=dataset,
        peer=peer,
        finished=len(done),
        failures=[run.failure for run in runs if run.failure],
        mb_a_second=spread(done, lambda run: run.records_a_second * run.record_bytes / run.records / 1e6),
        records_a_second=spread(done, lambda run: run.records_a_second),
        start_s=spread(done, lambda run: run.start_s),
        wall_s=spread(done, lambda run: run.wall_s),
        cpu_s_per_gb=per_gb(lambda run: run.cpu_s),
        cpu_s_per_gb_running=per_gb(lambda run: max(run.cpu_s - startup.median, 0)) if startup else None,
        cpu_us_per_record=spread(done, lambda run: run.cpu_s / run.records * 1e6),
        source_cpu_s_per_gb=per_gb(lambda run: run.source_cpu_s),
        target_cpu_s_per_gb=per_gb(lambda run: run.target_cpu_s),
        rss_mb=spread(done, lambda run: run.rss_bytes / 1e6),
        target_batch_kb=spread(done, lambda run: run.target_batch_bytes and run.target_batch_bytes / 1e3),
    )


def findings(plan: Plan, seen: Seen) -> dict[str, object]:
    """All of it as plain values, for the result file."""
    return {
        "benchmark": "compare",
        "plan": {"runs": plan.runs, "warm_up_runs": 1, "scale": plan.scale, "timeout_s": plan.timeout_s},
        "sets": {name: _set_facts(filled) for name, filled in seen.sets.items()},
        "unavailable": seen.unavailable,
        "startup_cpu_s": {peer.name: startup_cpu_s(seen, peer.name) for peer in plan.peers},
        "rows": [asdict(row) for row in rows(plan, seen)],
        "runs": [asdict(run) for run in seen.runs],
    }


def _set_facts(filled: Filled) -> dict[str, object]:
    stored = filled.batches.facts if filled.batches else None
    return {**asdict(filled.dataset), "records": filled.records, "stored": stored}
