"""The table at the end of `verify`, on stdout."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from replicator.cli.figures import spell_bytes
from replicator.cli.screens import PIPE_WIDTH
from replicator.cli.verdicts import Verification

_STYLES = {"empty": "dim", "identical": "green", "equal": "green", "gone": "yellow", "unknown": "yellow"}


def print_verification(found: Verification) -> None:
    """A row for each topic, a line for each lane that needs one, and the outcome."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPE_WIDTH)
    console.print(_table(found))
    style = _STYLES.get(found.outcome, "red")
    for line in found.lines():
        console.print(Text(line, style=style), soft_wrap=True)
    console.print(Text(found.headline(), style=style), soft_wrap=True)


def _table(found: Verification) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("link", no_wrap=True)
    table.add_column("topic", overflow="fold")
    for name in ("partitions", "copied", "compared", "gone", "bytes"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("result", no_wrap=True)
    for topic in found.topics():
        figures = [f"{number:,}" for number in (topic.partitions, topic.claimed, topic.records, topic.gone)]
        outcome = Text(topic.outcome, style=_STYLES.get(topic.outcome, "red"))
        table.add_row(topic.link, topic.name, *figures, spell_bytes(topic.bytes), outcome)
    return table
