"""Partitions whose leader is a list of batches, for what asks `replicator.kafka.log` about ends and tails."""

from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest

from replicator._core import open_batch
from replicator.errors import ClusterError, Where
from replicator.kafka.log import START, LogSlice, LogTail
from tests.oracle.batch import Batch


@dataclass(eq=False)
class Log:
    """A partition whose leader is a list. `aborted` transactions: producer id, first offset, the marker's offset."""

    batches: list[Batch] = field(default_factory=list)
    start: int = 0
    alias: str = "eu"
    aborted: list[tuple[int, int, int]] = field(default_factory=list)
    fetches: int = 0

    @property
    def where(self) -> Where:
        return Where(self.alias, "orders", 0)

    @property
    def end(self) -> int:
        return self.batches[-1].next_offset if self.batches else self.start

    def slice(self, offset: int) -> bytes:
        self.fetches += 1
        if not self.start <= offset <= self.end:
            raise ClusterError(1, where=self.where)
        return b"".join(batch.encode() for batch in self.batches if batch.next_offset > offset)

    def aborted_at(self, offset: int) -> tuple[tuple[int, int], ...]:
        """The transactions that a Fetch at this offset tells of: those that did not end before it."""
        return tuple((pid, first) for pid, first, marker in self.aborted if marker >= offset)


async def fetch_slice(log: Any, offset: int, bytes_max: int, committed: bool = False) -> LogSlice:
    return LogSlice(log.slice(offset), log.start, log.end, log.end, log.aborted_at(offset) if committed else ())


async def find_offset(log: Any, timestamp: int) -> int:
    return int(log.start if timestamp == START else log.end)


async def read_tail(log: Any) -> LogTail:
    if log.end <= log.start:
        return LogTail(log.end, None)
    records = log.batches[-1].encode()
    return LogTail(log.end, open_batch(records), records)


def use_lists(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
    """Instead of brokers, in these modules."""
    for module in modules:
        for function in (fetch_slice, find_offset, read_tail):
            if hasattr(module, function.__name__):
                monkeypatch.setattr(module, function.__name__, function)
