"""A link that runs while a test does things to the clusters around it.

The supervisor gets a thread with a loop of its own; its workers are real processes, as ever. The test sees what an
operator would: states, reasons, positions, worker pids.
"""

import asyncio
import threading
import uuid
from collections.abc import Callable, Coroutine
from typing import Any, Self

from replicator.config.load import from_data
from replicator.control.supervisor import LaneInfo, Stop, Supervisor
from replicator.data.states import Checkpoint, LaneState
from tests.harness.waiting import eventually

# Of a link, for tests that compare batch by batch: what passes is the same on both sides, whatever else is waiting.
UNMERGED = {"batches": [{"merge": "off"}]}


def link_config(source: str, target: str, topics: str, **options: Any) -> dict[str, Any]:
    """A configuration with one link, of a name of its own, for the topics that match; `options` are other keys.

    Few shards: the link's own topics are made for every test.
    """
    link = {
        "name": f"test-{uuid.uuid4().hex[:12]}",
        "source": "source",
        "target": "target",
        "topics": {"include": [topics]},
        "shards": 4,
        "session_timeout_ms": 6_000,
        "groups": {"sync_interval_ms": 0},
        **options.pop("link", {}),
    }
    return {
        "clusters": {"source": {"bootstrap.servers": source}, "target": {"bootstrap.servers": target}},
        "links": [link],
        "workers": 1,
        **options,
    }


class RunningLink:
    """A context manager: starts on entry, drains on exit (kills, if the test failed)."""

    def __init__(self, config: dict[str, Any], stop: Stop = "never", *, durable: bool = True) -> None:
        self.config = from_data(config)
        self._stop = stop
        self._durable = durable and stop == "never"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="supervisor", daemon=True)
        self.supervisor: Supervisor

    def __enter__(self) -> Self:
        self._thread.start()
        self.supervisor = self._call(self._make())
        try:
            self._call(self.supervisor.start())
        except BaseException:
            self._end(self.supervisor.kill)
            raise
        return self

    def __exit__(self, failed: type[BaseException] | None, *_exc: object) -> None:
        self._end(self.supervisor.kill if failed else self.supervisor.drain)

    async def _make(self) -> Supervisor:
        return Supervisor(self.config, stop=self._stop, durable=self._durable)

    def _end(self, how: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            self._call(how())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _call(self, coroutine: Coroutine[Any, Any, Any], timeout_s: float = 60) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout_s)

    @property
    def lanes(self) -> dict[tuple[str, int], int]:
        """(source topic, partition) -> row."""
        return {(info.spec.topic, info.spec.partition): info.row for info in self.supervisor.lanes}

    def _info(self, topic: str, partition: int) -> LaneInfo:
        return next(i for i in self.supervisor.lanes if (i.spec.topic, i.spec.partition) == (topic, partition))

    def state(self, topic: str, partition: int = 0) -> LaneState:
        return self.supervisor.rows.state(self.lanes[topic, partition])

    def reason(self, topic: str, partition: int = 0) -> str:
        return self._info(topic, partition).reason

    def checkpoint(self, topic: str, partition: int = 0) -> Checkpoint:
        return self.supervisor.rows.checkpoint(self.lanes[topic, partition])

    def counter(self, name: str, topic: str, partition: int = 0) -> int:
        return self.supervisor.rows.get(self.lanes[topic, partition], name)

    def shares(self) -> list[set[int]]:
        """The partitions of the lanes that each worker runs."""
        shares: list[set[int]] = [set() for _ in self.supervisor.workers]
        for info in self.supervisor.lanes:
            if info.is_here:
                shares[info.row % len(shares)].add(info.spec.partition)
        return shares

    def worker_pids(self) -> list[int]:
        return [worker.pid for worker in self.supervisor.workers if worker.pid]

    def wait_until_copied(self, ends: dict[tuple[str, int], int], timeout_s: float = 60) -> None:
        """Waits until each lane's position has reached its source end offset."""

        def copied() -> bool:
            lanes = self.lanes
            return all(key in lanes and self.checkpoint(*key).position >= end for key, end in ends.items())

        eventually(copied, f"copied to {ends}; {self.describe()}", timeout_s)

    def wait_for_state(self, state: LaneState, topic: str, partition: int = 0, timeout_s: float = 60) -> None:
        eventually(lambda: self.state(topic, partition) is state, f"{topic}-{partition} to be {state.name}", timeout_s)

    def describe(self) -> str:
        rows = self.supervisor.lanes
        return "; ".join(f"{i.spec.name} {self.supervisor.rows.state(i.row).name} {i.reason}" for i in rows)
