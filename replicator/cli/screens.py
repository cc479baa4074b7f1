"""What people see on a terminal: the live screen of `run`, progress bars, tables. Only `status_screen` uses rich, too.

Everything is drawn when the caller says so: no thread redraws in the background, and the cores stay with the workers.
Whatever the number of lanes, a screen's height is bounded.
"""

from collections.abc import Iterable
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from replicator.cli.figures import (
    Figures,
    Rate,
    RateMeter,
    Trouble,
    counted,
    find_trouble,
    read_figures,
    spell_bytes,
    spell_rate,
    spell_state,
    spell_states,
)
from replicator.cli.results import GOOD, Results, TopicResult
from replicator.config.models import Config
from replicator.control.supervisor import Supervisor

TROUBLES_MAX = 8
WIDTH_MAX = 120
CARET_ROOM = 3  # a terminal echoes ^C behind the last line; were that full, everything would move by a line
PIPE_WIDTH = 160  # of tables where no terminal says how wide it is


class Screen:
    """Something live on stderr, with log lines above it."""

    def __init__(self, *, transient: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.live = Live(console=self.console, auto_refresh=False, transient=transient)

    def print_line(self, line: str) -> None:
        """A line above; never cut, never taken for markup."""
        self.console.print(Text(line, style=_line_style(line)), soft_wrap=True)

    def show(self, what: RenderableType) -> None:
        self.live.update(what, refresh=True)

    def show_panel(self, what: RenderableType, title: str, border: str) -> None:
        width = min(self.console.width, WIDTH_MAX) - CARET_ROOM
        self.show(Panel(what, title=title, title_align="left", border_style=border, width=width))

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()


def _line_style(line: str) -> str:
    level = line.split(" ", 2)[1:2]
    return {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "red"}.get(level[0] if level else "", "")


class LiveScreen(Screen):
    """`run`: the totals of all links, and the lanes that need attention."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self._links = ", ".join(f"{link.source} → {link.target}" for link in config.links)
        self._meter = RateMeter()

    def draw(self, supervisor: Supervisor) -> None:
        figures = read_figures(supervisor)
        troubles = find_trouble(supervisor)
        parts: list[RenderableType] = [_totals(figures, self._meter.update(figures))]
        if troubles:
            parts.append(_troubles(troubles, min(TROUBLES_MAX, max(self.console.height - 8, 1))))
        border = "red" if any(trouble.state.is_final for trouble in troubles) else "yellow" if troubles else "green"
        self.show_panel(Group(*parts), self._links, border)


def _totals(figures: Figures, rate: Rate) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    grid.add_row("lanes", spell_states(figures.states))
    grid.add_row("rate", Text(spell_rate(rate), style="bold"))
    grid.add_row("lag", counted(figures.lag_records, "record"))
    grid.add_row("so far", f"{counted(figures.records, 'record')} · {spell_bytes(figures.bytes)}")
    return grid


def _troubles(troubles: list[Trouble], rows_max: int) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for _ in range(2):
        table.add_column(no_wrap=True)
    table.add_column()  # the one that gives way when it gets narrow
    for trouble in troubles[:rows_max]:
        style = "red" if trouble.state.is_final else "yellow"
        name = f"{trouble.info.spec.link} {trouble.info.spec.name}"
        table.add_row(
            name,
            Text(spell_state(trouble.state), style=style),
            Text(trouble.info.reason, no_wrap=True, overflow="ellipsis"),
        )
    if len(troubles) > rows_max:
        table.add_row(Text(f"and {len(troubles) - rows_max:,} more; all are in the log", style="dim"))
    return table


class BarScreen(Screen):
    """A bar with what is done of what is to do, and figures behind it. It goes away when it has no more to say."""

    def __init__(self) -> None:
        super().__init__(transient=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[words]}"),
            console=self.console,
            auto_refresh=False,
        )
        self._task = self._progress.add_task("", total=None, words="")

    def draw(self, description: str, done: int, total: int, words: str) -> None:
        self._progress.update(self._task, description=description, completed=done, total=total or None, words=words)
        self.show(self._progress.get_renderable())


# ---- the end of a copy ----

_STYLES = {"verified": "green", "copied": "green", "equal": "green", "interrupted": "yellow"}


def print_results(results: Results) -> None:
    """The summary table on stdout, and one line for each lane that did not end well."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPE_WIDTH)
    console.print(_results_table(results.topics))
    for line in results.problem_lines():
        console.print(Text(line, style="yellow" if results.outcome in GOOD else "red"), soft_wrap=True)
    console.print(Text(results.headline(), style=_STYLES.get(results.outcome, "red")), soft_wrap=True)


def _results_table(topics: Iterable[TopicResult]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("topic", overflow="fold")
    for name in ("partitions", "records", "bytes", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("result", no_wrap=True)
    for topic in topics:
        table.add_row(
            topic.name,
            f"{topic.partitions:,}",
            f"{topic.records:,}",
            spell_bytes(topic.bytes),
            f"{topic.seconds:.1f}",
            Text(topic.outcome, style=_STYLES.get(topic.outcome, "red")),
        )
    return table


# ---- the demo ----

DemoRow = tuple[str, str, str]


class DemoScreen(Screen):
    """`demo`: what goes into the source, and what comes out of the target."""

    def draw(self, rows: Iterable[DemoRow], title: str) -> None:
        grid = Table.grid(padding=(0, 3))
        grid.add_column(style="dim")
        grid.add_column(justify="right", min_width=18)
        grid.add_column(justify="right", min_width=18)
        for name, total, rate in rows:
            grid.add_row(name, total, Text(rate, style="bold"))
        self.show_panel(grid, title, "cyan")
