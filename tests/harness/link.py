"""A link that runs while a test does things to the clusters around it.

The supervisor gets a thread with a loop of its own; its workers are real processes, as ever. The test sees what an
operator would: states, reasons, positions, worker pids.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Self

from replicator.config.load import from_data
from replicator.control.supervisor import Stop, Supervisor
from replicator.data.states import Checkpoint, LaneState
from tests.harness.waiting import eventually


def link_config(source: str, target: str, topics: str, **options: Any) -> dict[str, Any]:
    """A configuration with one link `source-target` for the topics that match; `options` are the file's other keys."""
    link = {"source": "source", "target": "target", "topics": {"include": [topics]}, **options.pop("link", {})}
    return {
        "clusters": {"source": {"bootstrap.servers": source}, "target": {"bootstrap.servers": target}},
        "links": [link],
        "workers": 1,
        **options,
    }


class RunningLink:
    """A context manager: starts on entry, drains on exit (kills, if the test failed)."""

    def __init__(self, config: dict[str, Any], stop: Stop = "never") -> None:
        self._config = from_data(config)
        self._stop = stop
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
        return Supervisor(self._config, stop=self._stop)

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
        return {(info.spec.topic, info.spec.partition): info.spec.row for info in self.supervisor.lanes}

    def state(self, topic: str, partition: int = 0) -> LaneState:
        return self.supervisor.state(self.lanes[topic, partition])

    def reason(self, topic: str, partition: int = 0) -> str:
        return self.supervisor.lanes[self.lanes[topic, partition]].reason

    def checkpoint(self, topic: str, partition: int = 0) -> Checkpoint:
        return self.supervisor.rows.checkpoint(self.lanes[topic, partition])

    def counter(self, name: str, topic: str, partition: int = 0) -> int:
        return self.supervisor.rows.get(self.lanes[topic, partition], name)

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
        return "; ".join(f"{i.spec.name} {self.supervisor.state(i.spec.row).name} {i.reason}" for i in rows)
