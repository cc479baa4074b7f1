"""Results as pictures, for the README and for people in a hurry."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib

matplotlib.use("Agg")  # no screen is needed, and none is asked for

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from bench import compare, latency
from bench.spread import Spread

# Ours stands out; the rest are told apart by lightness too, for print and for colour-blind readers.
_COLOURS = {
    "ours": "#d1495b",
    "mm2-default": "#9fb8d0",
    "mm2-tuned": "#4f7cac",
    "librdkafka-c": "#2e4057",
    "librdkafka-c-linger0": "#66788a",
    "confluent-python": "#8d96a3",
}
_GREY = "#bbbbbb"
_PANELS = (
    ("mb_a_second", "Throughput, MB/s  (more is better)", "linear", 0),
    ("cpu_s_per_gb", "CPU of the replicator, s/GB  (less is better, log scale)", "log", 1),
    ("target_cpu_s_per_gb", "CPU of the target broker, s/GB  (less is better)", "linear", 1),
)


def compare_chart(path: Path, rows: Sequence[compare.Row], caption: str) -> None:
    """Three panels of grouped bars: rate, own CPU, the target's CPU; whiskers from the smallest to the largest run."""
    done = [row for row in rows if row.finished]
    sets = list(dict.fromkeys(row.dataset for row in done))
    peers = list(dict.fromkeys(row.peer for row in done))
    width = max(7.0, 1.5 + 0.36 * len(sets) * (len(peers) + 1))
    figure, panels = plt.subplots(len(_PANELS), 1, figsize=(width, 10), sharex=True, layout="constrained")
    for axes, (what, title, scale, digits) in zip(panels, _PANELS, strict=True):
        axes.set_title(title, loc="left", fontsize=10)
        for number, peer in enumerate(peers):
            found = {row.dataset: getattr(row, what) for row in done if row.peer == peer}
            _bars(axes, peer, [found.get(name) for name in sets], (number, len(peers)), digits)
        _tidy(axes)
        if scale == "log":
            axes.set_yscale("log")
            _plain_numbers(axes.yaxis)
        axes.margins(y=0.15)
    panels[-1].set_xticks(range(len(sets)), sets)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=len(peers), frameon=False)
    _save(figure, path, caption)


def _bars(axes: Axes, peer: str, found: Sequence[Spread | None], place: tuple[int, int], digits: int) -> None:
    """One peer's bar in every group; `place` is which of how many."""
    number, of = place
    width = 0.84 / of
    bars = [(group + (number - (of - 1) / 2) * width, seen) for group, seen in enumerate(found) if seen]
    if not bars:
        return
    at = [x for x, _ in bars]
    heights = [seen.median for _, seen in bars]
    whiskers = [[s.median - s.min for _, s in bars], [s.max - s.median for _, s in bars]]
    style: dict[str, Any] = {"ecolor": "#333333", "error_kw": {"elinewidth": 0.7}}
    axes.bar(at, heights, width * 0.92, yerr=whiskers, label=peer, color=_COLOURS.get(peer, _GREY), **style)
    for x, seen in bars:
        label = f"{seen.median:.{digits}f}"
        axes.annotate(label, (x, seen.max), (0, 2), textcoords="offset points", ha="center", fontsize=6.5)


def latency_chart(path: Path, rows: Sequence[latency.Row], caption: str) -> None:
    """A line a peer from its median to its 99th percentile, on a log scale; the source alone is the first line."""
    done = [row for row in rows if row.finished]
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.5 * (len(done) + 1)), layout="constrained")
    source = min(done, key=lambda row: row.source_p50_ms or Spread(0, 0, 0))
    _span(axes, 0, "source alone", source.source_p50_ms, source.source_p99_ms)
    for number, row in enumerate(done, 1):
        _span(axes, number, row.peer, row.target_p50_ms, row.target_p99_ms)
    axes.set_yticks(range(len(done) + 1), ["source alone", *(row.peer for row in done)])
    axes.invert_yaxis()
    axes.set_xscale("log")
    _plain_numbers(axes.xaxis)
    axes.margins(x=0.12, y=0.1)
    axes.set_xlabel("ms from create to readable on the target: median, line to the 99th percentile")
    _tidy(axes, "x")
    _save(figure, path, caption)


def _span(axes: Axes, at: int, name: str, median: Spread | None, tail: Spread | None) -> None:
    if not median or not tail:
        return
    colour = _COLOURS.get(name, _GREY)
    axes.plot([median.median, tail.median], [at, at], color=colour, linewidth=2, marker="|", markevery=[1])
    axes.plot(median.median, at, color=colour, marker="o")
    for value, side in ((median.median, -7), (tail.median, 7)):
        place: dict[str, Any] = {"ha": "right" if side < 0 else "left", "va": "center", "fontsize": 7}
        axes.annotate(f"{value:.3g}", (value, at), (side, 0), textcoords="offset points", **place)


def _plain_numbers(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers at 1, 2, 5, 10, ..."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_locator(NullLocator())


def _tidy(axes: Axes, grid: Literal["x", "y"] = "y") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)


def _save(figure: Any, path: Path, caption: str) -> None:
    figure.supxlabel(caption, fontsize=7, color="#555555")
    figure.savefig(path, dpi=150)
    plt.close(figure)
