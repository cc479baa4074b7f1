"""`replicator run`: links that run until they are told to stop.

On a terminal the figures stay on the screen and the log scrolls by above them; elsewhere they are a line of the log
every STATUS_S.
"""

import asyncio
import logging
import sys

from replicator.cli.figures import Figures, Rate, RateMeter, read_figures, spell_rate, spell_states
from replicator.cli.logs import logging_to, set_up_logging
from replicator.cli.session import Interrupted, watch_signals
from replicator.config.load import load
from replicator.config.models import Config
from replicator.control.supervisor import Supervisor

STATUS_S = 10.0
REDRAW_S = 0.25

log = logging.getLogger("replicator")


async def run(link_file: str, level: int, as_json: bool) -> None:
    """Runs the links of a file until a signal comes, then drains. Raises ReplicatorError when they cannot start."""
    config = load(link_file)
    set_up_logging(level, as_json=as_json)
    live = sys.stderr.isatty() and not as_json and level <= logging.INFO
    with watch_signals() as session:
        try:
            async with session.supervised(config, durable=True) as supervisor:
                log.info("started: %s", _what_runs(config, supervisor))
                await session.until(_show_live(config, supervisor) if live else _log_status(supervisor))
        except Interrupted as signal:
            log.info("%s: stopped in order", signal)


def _what_runs(config: Config, supervisor: Supervisor) -> str:
    links = ", ".join(f"{link.name} ({link.source} -> {link.target})" for link in config.links)
    return f"{links}, {len(supervisor.lanes)} lanes, {config.workers} workers"


async def _log_status(supervisor: Supervisor) -> None:
    meter = RateMeter()
    meter.update(read_figures(supervisor))
    while True:
        await asyncio.sleep(STATUS_S)
        figures = read_figures(supervisor)
        _log_figures(figures, meter.update(figures))


def _log_figures(figures: Figures, rate: Rate) -> None:
    lag = f"lag {figures.lag_records:,} records"
    fields = {
        "lanes": {state.name.lower(): count for state, count in figures.states.items()},
        "records": figures.records,
        "bytes": figures.bytes,
        "records_per_s": round(rate.records, 1),
        "bytes_per_s": round(rate.bytes, 1),
        "lag_records": figures.lag_records,
    }
    words = (spell_states(figures.states), spell_rate(rate), lag)
    log.info("%s · %s · %s", *words, extra={"fields": fields})


async def _show_live(config: Config, supervisor: Supervisor) -> None:
    from replicator.cli.screens import LiveScreen  # rich is only loaded for those who see it

    with LiveScreen(config) as screen, logging_to(screen.print_line):
        while True:
            screen.draw(supervisor)
            await asyncio.sleep(REDRAW_S)
