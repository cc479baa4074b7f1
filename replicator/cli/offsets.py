"""`replicator offsets translate`: where a consumer goes on reading on the other cluster."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click

from replicator._core import Pool
from replicator.config.load import load
from replicator.config.models import Cluster as Endpoint
from replicator.config.models import Config, Link
from replicator.control.group_admin import Committed, GroupAdmin
from replicator.errors import ClusterError, Where
from replicator.kafka.cluster import Cluster
from replicator.kafka.connection import ConnectionSettings
from replicator.offsets import LinkOffsets, Outcome, Translation, choose_link

NOT_ALL = 3  # exit code
ANSWER_BYTES_MAX = 64 << 20
PIPE_WIDTH = 160  # of tables where no terminal says how wide it is


@dataclass(frozen=True)
class Question:
    """The command line of `replicator offsets translate`."""

    link_file: str
    link: str
    topic: str
    partition: int | None
    offset: tuple[int, ...]
    group: str
    reverse: bool
    as_json: bool


@dataclass(frozen=True)
class Row:
    """A place to translate, and what became of it. `error`: why not even that is known."""

    place: Where
    found: Translation

    @property
    def problem(self) -> str:
        return "" if self.found.outcome is Outcome.TRANSLATED else f"{self.place}: {self.found.reason}"


def translate(question: Question) -> int:
    """Translates, prints, and returns the exit code. Raises ReplicatorError."""
    config = load(question.link_file)
    link = choose_link(config, question.link)
    places = _places(question, config, link)
    with LinkOffsets(config.clusters[link.target], link.name) as offsets:
        rows = [Row(place, _translated(offsets, place, question.reverse)) for place in places]
    if question.as_json:
        click.echo(json.dumps(_as_json(question, link, rows), indent=2))
    else:
        _print_table(rows, *((link.target, link.source) if question.reverse else (link.source, link.target)))
    for row in rows:
        if row.problem:
            click.echo(row.problem, err=True)
    return NOT_ALL if any(row.problem for row in rows) else 0


def _places(question: Question, config: Config, link: Link) -> list[Where]:
    """What is to be translated: places in the source cluster, or with `--reverse` in the target cluster."""
    cluster = config.clusters[link.target if question.reverse else link.source]
    if question.group:
        return _committed(cluster, question.group, config.limits.request_timeout_ms)
    return [Where(cluster.alias, question.topic, question.partition, offset) for offset in question.offset]


def _committed(at: Endpoint, group: str, timeout_ms: int) -> list[Where]:
    """The group's committed offsets, in order."""
    found = asyncio.run(_ask(at, group, timeout_ms))
    if not found:
        raise click.ClickException(f"{at.alias}: group `{group}` has committed nothing")
    for part, committed in found.items():
        if committed.code:
            what = f"the committed offset of group `{group}`"
            raise ClusterError(committed.code, what, where=Where(at.alias, *part))
    return [Where(at.alias, *part, committed.offset) for part, committed in sorted(found.items())]


async def _ask(at: Endpoint, group: str, timeout_ms: int) -> dict[tuple[str, int], Committed]:
    settings = ConnectionSettings(at.alias, at.client_id, timeout_ms, Pool(ANSWER_BYTES_MAX))
    cluster = Cluster(at.bootstrap, settings)
    try:
        return await GroupAdmin(cluster).committed(group)
    finally:
        await cluster.close()


def _translated(offsets: LinkOffsets, place: Where, reverse: bool) -> Translation:
    across = offsets.reverse if reverse else offsets.translate
    return across(place.topic or "", place.partition or 0, place.offset or 0)


def _as_json(question: Question, link: Link, rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "link": link.name,
        "group": question.group or None,
        "from": link.target if question.reverse else link.source,
        "to": link.source if question.reverse else link.target,
        "translations": [
            {
                "topic": row.place.topic,
                "partition": row.place.partition,
                "offset": row.place.offset,
                "outcome": row.found.outcome,
                "to_topic": row.found.topic or None,
                "to_offset": row.found.offset,
                "reason": row.found.reason,
            }
            for row in rows
        ],
    }


def _print_table(rows: Sequence[Row], here: str, there: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPE_WIDTH)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name, number in ((f"topic on {here}", False), ("partition", True), ("offset", True)):
        table.add_column(Text(name), justify="right" if number else "left", overflow="fold", no_wrap=number)
    for name, number in ((f"topic on {there}", False), ("offset", True)):
        table.add_column(Text(name), justify="right" if number else "left", overflow="fold", no_wrap=number)
    for row in rows:
        place, found = row.place, row.found
        answer = Text(f"{found.offset}" if found.offset is not None else found.outcome.value)
        answer.stylize("yellow" if row.problem else "")
        table.add_row(Text(place.topic or ""), f"{place.partition}", f"{place.offset}", Text(found.topic), answer)
    console.print(table)
