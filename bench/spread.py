"""Median with the smallest and the largest, because a median of a few runs alone says nothing about noise."""

from collections.abc import Callable, Iterable
from statistics import median
from typing import NamedTuple, TypeVar

Item = TypeVar("Item")


class Spread(NamedTuple):
    """Of a few runs."""

    median: float
    min: float
    max: float

    @property
    def text(self) -> str:
        """`median (min-max)`, with about three significant digits."""
        digits = 0 if self.median >= 100 else 1 if self.median >= 10 else 2
        return f"{self.median:,.{digits}f} ({self.min:,.{digits}f}-{self.max:,.{digits}f})"


def spread(items: Iterable[Item], value: Callable[[Item], float | None]) -> Spread | None:
    """The spread of a value over items; None when no item has it."""
    values = [found for item in items if (found := value(item)) is not None]
    return Spread(median(values), min(values), max(values)) if values else None
