"""`python -m bench compare` and `python -m bench latency`: ours and the rivals on the same brokers; see README.md."""

import json
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from bench import charts, codecs, machine, merge, micro, poison, rebuild, tables, transforms, worker
from bench import compare as throughput
from bench import latency as delay
from bench.clusters import pair
from bench.datasets import DATA_SETS, DataSet
from bench.measure import IDLE_CORES_MAX
from bench.peers import PEERS, Peer, Stage
from bench.result import FOLDER, ResultFiles

_COMPARED = "ours,mm2-default,mm2-tuned,librdkafka-c,confluent-python"
_TIMED = "ours,mm2-default,mm2-tuned,librdkafka-c,librdkafka-c-linger0"

# A table cut to pieces says nothing: rather let the terminal wrap its lines.
_WIDTH_MIN = 170

_CONSOLE = Console(width=max(Console().width, _WIDTH_MIN))


def _tell(line: str) -> None:
    _CONSOLE.print(line, style="dim", highlight=False)


def _chosen(table: Mapping[str, Any]) -> Callable[[click.Context, click.Parameter, str], list[Any]]:
    """A click callback that turns names after commas into the rows of a table."""

    def pick(_context: click.Context, _parameter: click.Parameter, names: str) -> list[Any]:
        wanted = [name.strip() for name in names.split(",")]
        if unknown := [name for name in wanted if name not in table]:
            raise click.BadParameter(f"no such {', '.join(unknown)}; there are {', '.join(table)}")
        return [table[name] for name in wanted]

    return pick


def _common(command: Callable[..., None]) -> Callable[..., None]:
    """The options of every measurement."""
    folder = click.Path(path_type=Path, file_okay=False)
    for option in (
        click.option("--name", help="Of the result files, behind the date; default: the command's."),
        click.option("--out", type=folder, default=FOLDER, help="Folder of the result files."),
        click.option("--target", metavar="HOST:PORT", help="Your own target cluster; needs --source."),
        click.option("--source", metavar="HOST:PORT", help="Your own source cluster; default: two brokers made here."),
        click.option("--runs", type=click.IntRange(1, 100), default=3, show_default=True, help="Counted runs a peer."),
    ):
        command = option(command)
    return command


@contextmanager
def _stage(source: str | None, target: str | None) -> Iterator[Stage]:
    """The clusters and a folder for the peers' files, as long as the context lasts."""
    if bool(source) != bool(target):
        raise click.UsageError("give both --source and --target, or neither")
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        pair(source, target) as clusters,
        Stage(clusters, Path(folder)) as stage,
    ):
        yield stage


def _show(table: Any, rows: Sequence[Any], runs: Sequence[Any], written: Sequence[Path]) -> None:
    _CONSOLE.print(table)
    disturbed = sum(run.busy_cores_before > IDLE_CORES_MAX for run in runs)
    if disturbed:
        _tell(f"{disturbed} of {len(runs)} runs began while this machine was busy with something else")
    for row in rows:
        for failure in row.failures:
            _tell(f"{row.peer} failed: {failure}")
    _CONSOLE.print("\n".join(map(str, written)), style="dim", highlight=False)


@click.group()
def main() -> None:
    """Measure this replicator beside its rivals."""
    # Being told to end unwinds like Ctrl-C does: peers, worker and brokers end, and what was measured is written.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))


@main.command()
@click.option("--peers", default=_COMPARED, callback=_chosen(PEERS), show_default=True)
@click.option("--sets", default=",".join(DATA_SETS), callback=_chosen(DATA_SETS), show_default=True)
@click.option("--scale", type=click.FloatRange(0.001, 100), default=1.0, help="1: 1 GB of 1 KB, 0.4 GB of 100 B.")
@click.option("--timeout", "timeout_s", type=float, default=300.0, show_default=True, help="Seconds a run may take.")
@_common
def compare(peers: list[Peer], sets: list[DataSet], scale: float, timeout_s: float, runs: int, **where: Any) -> None:
    """Copy data sets from cluster to cluster: throughput, and what it costs everybody."""
    files = ResultFiles(where["out"], where["name"] or "compare", machine.facts())
    plan, seen = throughput.Plan(peers, sets, runs, scale, timeout_s), throughput.Seen()
    with _stage(where["source"], where["target"]) as stage:
        try:
            throughput.compare(plan, stage, seen, _tell)
        finally:  # what was measured before an interruption is worth keeping
            written = [files.write(throughput.findings(plan, seen), stage.pair.settings, peers)]
    rows = throughput.rows(plan, seen)
    if any(row.finished for row in rows):
        about = f"median of {runs} runs, whiskers min to max, 8 partitions"
        written.append(files.draw(charts.compare_chart, rows, about))
    _show(tables.compare_table(rows), rows, seen.runs, written)


@main.command()
@click.option("--peers", default=_TIMED, callback=_chosen(PEERS), show_default=True)
@click.option("--rate", type=click.FloatRange(1, 20_000), default=1000.0, show_default=True, help="Records a second.")
@click.option("--seconds", type=click.FloatRange(1, 3600), default=20.0, show_default=True, help="Of a counted run.")
@_common
def latency(peers: list[Peer], rate: float, seconds: float, runs: int, **where: Any) -> None:
    """Time records from their making until they can be read on the target."""
    files = ResultFiles(where["out"], where["name"] or "latency", machine.facts())
    plan, seen = delay.Plan(peers, runs, rate, seconds), delay.Seen()
    with _stage(where["source"], where["target"]) as stage:
        try:
            delay.latency(plan, stage, seen, _tell)
        finally:
            written = [files.write(delay.findings(plan, seen), stage.pair.settings, peers)]
    rows = delay.rows(plan, seen)
    if any(row.finished for row in rows):
        about = f"median of {runs} runs of {seconds:g} s at {rate:g} records of 1 KB a second, 8 partitions"
        written.append(files.draw(charts.latency_chart, rows, about))
    _show(tables.latency_table(rows), rows, seen.runs, written)


@main.command("micro")
@click.option("--runs", type=click.IntRange(1, 100), default=5, show_default=True)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=FOLDER)
def micro_command(runs: int, out: Path) -> None:
    """Time the native core and the codecs alone, in memory. Needs a C compiler."""
    found = {"rows": [*micro.run(runs, _tell), *codecs.run(runs, _tell)]}
    _tell(str(ResultFiles(out, "micro", machine.facts()).write(found, {}, [])))


@main.command("transforms")
@click.option("--runs", type=click.IntRange(1, 100), default=5, show_default=True)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=FOLDER)
def transforms_command(runs: int, out: Path) -> None:
    """Weigh plug-ins in Python against native recipes that do the same, in memory."""
    found = {"rows": transforms.run(runs, _tell)}
    _tell(str(ResultFiles(out, "transforms", machine.facts()).write(found, {}, [])))


@main.command("worker")
@click.option("--runs", type=click.IntRange(1, 100), default=5, show_default=True)
@click.option("--gigabytes", type=click.FloatRange(0.1, 1000), default=4.0, show_default=True, help="A run.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=FOLDER)
def worker_command(runs: int, gigabytes: float, out: Path) -> None:
    """Weigh a worker between scripted peers against a relay that only copies bytes."""
    found = {"rows": worker.run(runs, gigabytes, _tell)}
    _tell(str(ResultFiles(out, "worker", machine.facts()).write(found, {}, [])))


@main.command("merge")
@click.option("--questions", default=",".join(merge.QUESTIONS), callback=_chosen(merge.QUESTIONS), show_default=True)
@click.option(
    "--scale", type=click.FloatRange(0.001, 100), default=1.0, help="1: 1 GB of 1 KB; a fifth of single ones."
)
@click.option("--timeout", "timeout_s", type=float, default=300.0, show_default=True, help="Seconds a run may take.")
@_common
def merge_command(questions: list[merge.Question], scale: float, timeout_s: float, runs: int, **where: Any) -> None:
    """Copy small batches with and without merging them, and beside librdkafka, which does the same."""
    files = ResultFiles(where["out"], where["name"] or "merge", machine.facts())
    asked = [(question, question.plan(runs, scale, timeout_s), throughput.Seen()) for question in questions]
    peers = [peer for question in questions for peer in question.peers]
    with _stage(where["source"], where["target"]) as stage:
        try:
            merge.ask(asked, stage, _tell)
        finally:
            written = [files.write(merge.findings(asked), stage.pair.settings, peers)]
    rows = merge.rows(asked)
    _show(tables.compare_table(rows), rows, [run for _, _, seen in asked for run in seen.runs], written)
    for ratios in merge.ratios(asked):
        _tell(json.dumps(ratios))


@main.command("poison")
@click.option("--kinds", default=",".join(poison.REFUSING), show_default=True, help="Of bad records.")
@click.option("--scale", type=click.FloatRange(0.01, 100), default=1.0, help="1: 400,000 records of 1 KB.")
@click.option("--timeout", "timeout_s", type=float, default=120.0, show_default=True, help="Seconds a run may take.")
@_common
def poison_command(kinds: str, scale: float, timeout_s: float, runs: int, **where: Any) -> None:
    """Copy records of which the target refuses one in a thousand, and the same without those."""
    wanted = kinds.split(",")
    if not set(wanted) <= poison.REFUSING.keys():
        raise click.BadParameter(f"there are {', '.join(poison.REFUSING)}", param_hint="--kinds")
    files = ResultFiles(where["out"], where["name"] or "poison", machine.facts())
    seen: list[poison.Found] = []
    with _stage(where["source"], where["target"]) as stage:
        try:
            poison.ask(stage, poison.Plan(wanted, runs, scale, timeout_s), seen, _tell)
        finally:
            written = files.write(poison.findings(seen, runs, scale), stage.pair.settings, [])
    for row in poison.rows(seen):
        _tell(json.dumps(row))
    _tell(str(written))


@main.command("rebuild")
@click.option("--loop/--no-loop", default=True, help="Measure librdkafka's loop on brokers, too.")
@click.option("--scale", type=click.FloatRange(0.001, 100), default=1.0, help="Of the loop's data; 1: 0.4 GB.")
@_common
def rebuild_command(loop: bool, scale: float, runs: int, **where: Any) -> None:
    """Time the opening of batches beside their codecs alone, and beside librdkafka's loop."""
    files = ResultFiles(where["out"], where["name"] or "rebuild", machine.facts())
    found: dict[str, Any] = {"benchmark": "rebuild", "rows": rebuild.run(runs, _tell)}
    if not loop:
        _tell(str(files.write(found, {}, [])))
        return
    plan, seen = rebuild.loop_plan(runs, scale), throughput.Seen()
    with _stage(where["source"], where["target"]) as stage:
        try:
            throughput.compare(plan, stage, seen, _tell)
        finally:
            found |= {"loop": throughput.findings(plan, seen)}
            found |= {"beside_loop": rebuild.beside_loop(found["rows"], throughput.rows(plan, seen))}
            written = [files.write(found, stage.pair.settings, plan.peers)]
    _show(tables.compare_table(throughput.rows(plan, seen)), throughput.rows(plan, seen), seen.runs, written)
    for row in found["beside_loop"]:
        _tell(json.dumps(row))


if __name__ == "__main__":
    main()
