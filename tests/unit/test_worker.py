"""A worker without sockets: who looks after its lanes."""

import asyncio
import os
import subprocess
import sys
from typing import Any

import pytest

from replicator.config.load import from_data
from replicator.data import worker as module
from replicator.data.orders import Setup
from replicator.data.states import ROW_BYTES, Rows
from replicator.data.worker import Worker

CLUSTER = {"bootstrap.servers": "127.0.0.1:1"}


class Lane:
    looks = 0

    def watch(self, _now_s: float) -> None:
        self.looks += 1

    async def close(self) -> None:
        pass


def test_lanes_without_checkpoints_are_looked_after_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they learned of refusals, and letters of records that they passed, would be kept for ever."""
    monkeypatch.setattr(module, "WATCH_S", 0)
    config = from_data(
        {
            "clusters": {"us": CLUSTER, "eu": {"bootstrap.servers": "127.0.0.1:2"}},
            "links": [{"source": "us", "target": "eu", "topics": {"include": ["a"]}}],
        }
    )
    lane = Lane()

    async def run(reports: Any) -> None:
        fd = os.memfd_create("rows")
        os.ftruncate(fd, ROW_BYTES)
        worker = Worker(Setup(config, durable=False), Rows(fd), reports)
        worker.lanes[0] = lane  # type: ignore[assignment]
        for _ in range(5):
            await asyncio.sleep(0)
        await worker.close()
        os.close(fd)

    asyncio.run(run(None))
    assert lane.looks


def test_a_worker_starts_without_what_most_copies_never_need():
    program = "import sys, replicator.data.worker; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "replicator.data.lane" in loaded
    assert not {"numpy", "confluent_kafka", "rich"} & set(loaded)
