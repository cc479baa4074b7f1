"""Results on the terminal."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table

from bench import compare, latency
from bench.spread import Spread

_COPYING = ("MB/s", "k records/s", "CPU s/GB", "less start-up", "source", "target", "RSS MB", "start s")
_NOTHING, _FAILED = "-", "failed"


def compare_table(rows: Sequence[compare.Row]) -> Table:
    """One line a data set and peer; medians (min-max)."""
    table = _table("Copying, median (min-max)", "data set", "peer")
    for heading in _COPYING:
        table.add_column(heading, justify="right")
    for number, row in enumerate(rows):
        last = number + 1 == len(rows) or rows[number + 1].dataset != row.dataset
        table.add_row(row.dataset, row.peer, *_compare_cells(row), end_section=last)
    table.caption = (
        "CPU s/GB: the peer's own; the same less what copying nothing costs; the brokers'. "
        "GB are of uncompressed keys and values."
    )
    return table


def _compare_cells(row: compare.Row) -> Iterable[str]:
    if not row.finished:
        return [_FAILED]
    return (
        _text(row.mb_a_second),
        _text(_scaled(row.records_a_second, 1e-3)),
        _text(row.cpu_s_per_gb),
        _text(row.cpu_s_per_gb_running),
        _text(row.source_cpu_s_per_gb),
        _text(row.target_cpu_s_per_gb),
        _text(row.rss_mb),
        _text(row.start_s),
    )


def latency_table(rows: Sequence[latency.Row]) -> Table:
    """One line a peer; medians (min-max)."""
    table = _table("Latency in ms from create to readable, median (min-max)", "peer")
    for heading in ("source p50", "source p99", "p50", "p90", "p99", "added p50", "cores"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(row.peer, *(_latency_cells(row) if row.finished else [_FAILED]))
    return table


def _latency_cells(row: latency.Row) -> Iterable[str]:
    times = (row.source_p50_ms, row.source_p99_ms, row.target_p50_ms, row.target_p90_ms, row.target_p99_ms)
    return (*(_text(time) for time in times), _text(row.added_p50_ms), _text(row.cores))


def _table(title: str, *names: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD)
    for name in names:
        table.add_column(name, no_wrap=True)
    return table


def _text(found: Spread | None) -> str:
    return found.text if found else _NOTHING


def _scaled(found: Spread | None, factor: float) -> Spread | None:
    return Spread(*(value * factor for value in found)) if found else None
