"""What `replicator status` shows to people: for each link a line of sums, then its lanes, the worst first."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from replicator.cli.figures import counted, spell_seconds
from replicator.cli.screens import PIPE_WIDTH
from replicator.cli.status import MOVING, SILENT, LaneStatus, LinkStatus, Waiting

LANES_SHOWN = 20
WAITING_SHOWN = 5
PARTITIONS_SHOWN = 10

_STYLES = {"copying": "green", "tailing": "green", "done": "green"} | dict.fromkeys(
    ("paused", "starting", "unused"), "yellow"
)


def print_status(links: Iterable[LinkStatus], all_lanes: bool) -> None:
    """On stdout; whatever the number of lanes, of bounded height unless `all_lanes`."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPE_WIDTH)
    for number, link in enumerate(links):
        if number:
            console.print()
        _print_link(console, link, all_lanes)


def _print_link(console: Console, link: LinkStatus, all_lanes: bool) -> None:
    def say(line: str, style: str) -> None:
        console.print(Text(line, style=style), soft_wrap=True)

    say(f"{link.link}: {link.source} → {link.target} · {headline(link)}", "green" if link.is_good else "bold red")
    for line in warnings(link):
        say(line, "red")
    for note in link.notes:
        say(note, "yellow")
    shown = link.lanes if all_lanes else link.lanes[:LANES_SHOWN]
    if shown:
        console.print(_lanes_table(shown))
    if left := link.lanes[len(shown) :]:
        say(f"and {counted(len(left), 'lane')} more, none of them worse: --lanes shows all", "dim")


def headline(link: LinkStatus) -> str:
    """`12 lanes: 2 paused, 10 tailing · lag 1,234 records, 3 min 20 s at most`."""
    if link.error:
        return link.error
    words = ", ".join(f"{many:,} {_spaced(word)}" for word, many in link.words().items())
    lags = [lane.lag_records for lane in link.lanes if lane.lag_records is not None]
    seconds = max((lane.lag_s for lane in link.lanes if lane.lag_s is not None), default=0.0)
    unknown = len(link.lanes) - len(lags)
    most = f", {spell_seconds(seconds)} at most" if seconds else ""
    more = f" (and {counted(unknown, 'lane')} of unknown lag)" if unknown else ""
    lanes = f"{counted(len(link.lanes), 'lane')}{': ' if words else ''}{words}"
    return f"{lanes} · lag {counted(sum(lags), 'record')}{most}{more}"


def warnings(link: LinkStatus) -> list[str]:
    """What must not be overlooked, though no lane's own words say it."""
    lines = []
    silent = [lane for lane in link.lanes if lane.silent]
    if link.is_silent:
        last = spell_seconds(min(lane.age_s for lane in silent))
        lines.append(f"NOBODY RUNS THIS LINK, so it seems: the last word of any of its lanes is {last} old")
    elif silent:
        last = spell_seconds(min(lane.age_s for lane in silent))
        lines.append(f"{counted(len(silent), 'lane')} SILENT: nobody reports on them, for {last} at least")
    if not link.lanes and not link.error:
        lines.append("it has no lane yet")
    for topic in link.waiting[:WAITING_SHOWN]:
        lines.append(f"NOT REPLICATED: {_spell_waiting(topic)}")
    if len(link.waiting) > WAITING_SHOWN:
        lines.append(f"and {counted(len(link.waiting) - WAITING_SHOWN, 'topic')} more without lanes: --json names all")
    return lines


def _spell_waiting(topic: Waiting) -> str:
    first = ", ".join(map(str, topic.partitions[:PARTITIONS_SHOWN]))
    more = f" and {len(topic.partitions) - PARTITIONS_SHOWN} more" if len(topic.partitions) > PARTITIONS_SHOWN else ""
    plural = "s" if len(topic.partitions) > 1 else ""
    return f"topic {topic.topic}, partition{plural} {first}{more}: selected, but no lane yet"


def _lanes_table(lanes: list[LaneStatus]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("lane", overflow="fold")
    table.add_column("state", no_wrap=True)
    for name in ("position", "lag", "behind", "reported"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("owner", overflow="fold")
    table.add_column("why", overflow="fold", ratio=1)
    for lane in lanes:
        table.add_row(
            f"{lane.topic}-{lane.partition}",
            Text(_spell_state(lane), style=_STYLES.get(lane.word, "red")),
            f"{lane.position:,}",
            "?" if lane.lag_records is None else f"{lane.lag_records:,}",
            "?" if lane.lag_s is None else spell_seconds(lane.lag_s) if lane.lag_s else "0",
            f"{spell_seconds(lane.age_s)} ago",
            lane.owner,
            Text(lane.reason),
        )
    return table


def _spell_state(lane: LaneStatus) -> str:
    """`tailing`; `SILENT (was tailing)`; `failed (silent)`."""
    if lane.word == SILENT:
        return f"SILENT (was {_spaced(lane.state)})"
    return _spaced(lane.state) + (" (silent)" if lane.silent and lane.state not in MOVING else "")


def _spaced(word: str) -> str:
    return word.replace("_", " ")
