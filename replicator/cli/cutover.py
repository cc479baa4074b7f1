"""`replicator cutover`: consumer groups move to the target cluster, with a proof for each partition."""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import click

from replicator.cli.figures import counted
from replicator.cli.logs import set_up_logging
from replicator.cli.session import Interrupted, watch_signals
from replicator.config.load import load
from replicator.config.models import Config, Link
from replicator.control.cutover import Cutover, GroupResult, Proof
from replicator.control.group_admin import clusters_of
from replicator.offsets import choose_link
from replicator.state.reader import StateReader

NOT_PROVEN = 3  # exit code


@dataclass(frozen=True)
class CutoverOptions:
    """The command line of `replicator cutover`."""

    link_file: str
    groups: tuple[str, ...]
    link: str
    dry_run: bool
    timeout: float
    as_json: bool


async def cutover(options: CutoverOptions) -> int:
    """Moves, proves, prints; returns the exit code. Raises ReplicatorError when it cannot even begin."""
    config = load(options.link_file)
    link = choose_link(config, options.link)
    set_up_logging(logging.WARNING)
    with watch_signals() as session:
        try:
            with _progress() as progress:
                results = await session.until(_move(options, config, link, progress))
        except Interrupted as signal:
            click.echo(f"{signal}: interrupted; groups that were not moved yet are as they were", err=True)
            return signal.exit_code
    if options.as_json:
        click.echo(json.dumps(_as_json(options, link, results), indent=2))
    else:
        _print_results(link, results)
        click.echo(headline(results, options.dry_run))
    return 0 if all(result.is_good for result in results) else NOT_PROVEN


async def _move(
    options: CutoverOptions, config: Config, link: Link, progress: Callable[[str], None]
) -> list[GroupResult]:
    reader = StateReader(config.clusters[link.target], link.name)
    async with clusters_of(config, link.source, link.target) as (source, target):
        try:
            job = Cutover(link, source, target, reader, progress)
            return await job.run(dict.fromkeys(options.groups), options.timeout, dry_run=options.dry_run)
        finally:
            reader.close()


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Takes lines: on a terminal the last one stays in view while it holds, elsewhere each is a line on stderr."""
    if not sys.stderr.isatty():
        yield lambda line: click.echo(line, err=True)
        return
    from rich.text import Text

    from replicator.cli.screens import Screen  # only loaded for those who see it

    with Screen(transient=True) as screen:
        yield lambda line: screen.show(Text(line))


def headline(results: list[GroupResult], dry_run: bool) -> str:
    """The last line: how it ended, in one sentence."""
    good = [result for result in results if result.is_good]
    partitions = counted(sum(len(result.proofs) for result in good), "partition")
    done = f"{len(good)} of {counted(len(results), 'group')}"
    if dry_run:
        return f"{done} can be moved ({partitions}); nothing was committed"
    return f"{done} moved ({partitions}): every offset is proven" if good else f"{done} moved"


def problem_lines(results: list[GroupResult]) -> Iterator[str]:
    """A line for whatever is not proven."""
    for result in results:
        if result.problem:
            yield f"{result.group}: {result.problem}"
        for proof in result.proofs:
            if proof.reason:
                yield f"{result.group}: {proof.topic}-{proof.partition}: {proof.verdict}: {proof.reason}"


def _as_json(options: CutoverOptions, link: Link, results: list[GroupResult]) -> dict[str, Any]:
    """Plain values. Keys are only ever added."""
    return {
        "link": link.name,
        "from": link.source,
        "to": link.target,
        "dry_run": options.dry_run,
        "proven": all(result.is_good for result in results) and not options.dry_run,
        "groups": [
            {
                "group": result.group,
                "target_group": result.target_group,
                "good": result.is_good,
                "problem": result.problem,
                "partitions": [asdict(proof) for proof in result.proofs],
            }
            for result in results
        ],
    }


def _print_results(link: Link, results: list[GroupResult]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from replicator.cli.screens import PIPE_WIDTH

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPE_WIDTH)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("group", "topic"):
        table.add_column(name, overflow="fold")
    for name in ("partition", f"offset on {link.source}", f"offset on {link.target}", "read back"):
        table.add_column(Text(name), justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for result in results:
        for proof in result.proofs:
            numbers = (proof.partition, proof.source_offset, proof.target_offset, proof.read_back)
            verdict = Text(proof.verdict, style="green" if proof.is_good else "yellow")
            cells = (Text("-" if number is None else str(number)) for number in numbers)
            table.add_row(Text(_renamed(result)), Text(_topic(proof)), *cells, verdict)
    if table.rows:
        console.print(table)
    for line in problem_lines(results):
        console.print(Text(line, style="yellow"), soft_wrap=True)


def _renamed(result: GroupResult) -> str:
    same = result.group == result.target_group
    return result.group if same else f"{result.group} -> {result.target_group}"


def _topic(proof: Proof) -> str:
    return proof.topic if proof.target_topic in ("", proof.topic) else f"{proof.topic} -> {proof.target_topic}"
