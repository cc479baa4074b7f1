"""A supervisor's life inside a command: started, watched, and ended in order, however the command ends.

The first SIGTERM or SIGINT interrupts what the command is doing, so that it drains; a second one ends everything on
the spot.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

from replicator.config.models import Config
from replicator.control.supervisor import Stop, Supervisor

T = TypeVar("T")

SHOW_CURSOR = "\x1b[?25h"  # a live display has hidden it


class Interrupted(Exception):
    """The first signal came."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


class Session:
    """Takes the signals from `watch_signals` on, and runs work `until` the first of them."""

    def __init__(self) -> None:
        self.supervisor: Supervisor | None = None
        self._signalled: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def _on_signal(self, signum: int) -> None:
        if not self._signalled.done():
            self._signalled.set_result(signum)
            return
        for worker in self.supervisor.workers if self.supervisor else ():
            if worker.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
        if sys.stderr.isatty():
            sys.stderr.write(SHOW_CURSOR)
            sys.stderr.flush()
        os._exit(128 + signum)

    async def until(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`. Raises Interrupted, `work` being cancelled, when a signal comes first."""
        task = asyncio.ensure_future(work)
        try:
            first: set[asyncio.Future[Any]] = {task, self._signalled}
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if self._signalled.done():
            if not task.cancelled():
                task.exception()  # seen: what the work failed with does not matter any more
            raise Interrupted(self._signalled.result())
        return task.result()

    @contextlib.asynccontextmanager
    async def supervised(
        self, config: Config, stop: Stop = "never", *, durable: bool = False
    ) -> AsyncIterator[Supervisor]:
        """A started supervisor: drained in the end and when interrupted, killed for any other error.

        Raises ReplicatorError when it cannot start.
        """
        self.supervisor = supervisor = Supervisor(config, stop, durable=durable)
        try:
            await self.until(supervisor.start())
        except BaseException:
            await supervisor.kill()
            raise
        try:
            yield supervisor
        except Interrupted:
            await supervisor.drain()
            raise
        except BaseException:
            await supervisor.kill()
            raise
        await supervisor.drain()


@contextlib.contextmanager
def watch_signals() -> Iterator[Session]:
    """A Session that answers SIGTERM and SIGINT while this is open. Inside a running event loop only."""
    loop, session = asyncio.get_running_loop(), Session()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, session._on_signal, number)
    try:
        yield session
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
