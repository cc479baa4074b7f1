"""Where progress goes: a bar on a terminal, now and then a line elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import click

from replicator.cli.logs import logging_to

DRAW_S = 0.2
PLAIN_LINE_S = 5.0


class Progress(Protocol):
    """`done` of `total`, and words behind it."""

    def draw(self, description: str, done: int, total: int, words: str) -> None: ...


class PlainProgress:
    """A line on stderr every PLAIN_LINE_S."""

    def __init__(self) -> None:
        self._due = time.monotonic() + PLAIN_LINE_S

    def draw(self, description: str, done: int, total: int, words: str) -> None:
        if (now := time.monotonic()) >= self._due:
            self._due = now + PLAIN_LINE_S
            share = f"{done / total:.0%} · " if total else ""
            click.echo(f"{description}: {share}{words}", err=True)


@contextmanager
def showing_progress() -> Iterator[Progress]:
    if not sys.stderr.isatty():
        yield PlainProgress()
        return
    from replicator.cli.screens import BarScreen

    with BarScreen() as bar, logging_to(bar.print_line):
        yield bar


class RecordCounter:
    """Adds up compared records, and draws them every DRAW_S."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0
        self._drawn_s = 0.0

    def add(self, records: int) -> None:
        self._done += records
        if (now := time.monotonic()) - self._drawn_s >= DRAW_S:
            self._drawn_s = now
            self._progress.draw("verifying", self._done, self._total, f"{self._done:,} of {self._total:,} records")
