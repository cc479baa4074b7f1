"""What a process and all its descendants cost: user and system seconds, resident memory."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

_GRACE_S = 20.0
_PAUSE_S = 0.01


def tree_cpu_seconds(pid: int) -> float:
    """User plus system seconds of a process and its descendants, those that ended and were waited for included."""
    return _sum_of_tree(pid, lambda process: sum(process.cpu_times()[:4]))


def tree_rss_bytes(pid: int) -> int:
    """Resident memory of a process and its descendants. Pages they share count once for each."""
    return int(_sum_of_tree(pid, lambda process: process.memory_info().rss))


def _sum_of_tree(pid: int, cost: Callable[[psutil.Process], float]) -> float:
    total = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            # One that ended since it was listed is in its parent's account now, or will be at the next look.
            with contextlib.suppress(psutil.NoSuchProcess):
                total += cost(process)
    return total


class Program:
    """A program that runs for one measurement, with its output in a file and its cost known to the end."""

    def __init__(self, command: Sequence[str], output: Path) -> None:
        """Start `command`, in a process group of its own so that all of it can be ended."""
        self._output = output
        with output.open("wb") as sink:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._cpu_seconds_seen = 0.0
        self._cpu_seconds_final: float | None = None

    @property
    def ended(self) -> bool:
        """Whether the program has exited."""
        if self._cpu_seconds_final is None:
            pid, status, usage = os.wait4(self._process.pid, os.WNOHANG)
            if pid:
                self._process.returncode = os.waitstatus_to_exitcode(status)
                self._cpu_seconds_final = usage.ru_utime + usage.ru_stime
        return self._cpu_seconds_final is not None

    def cpu_seconds(self) -> float:
        """User plus system seconds of the whole tree since it started.

        A descendant that nobody waited for is missing from the kernel's final figure, hence the larger of both.
        """
        if not self.ended:
            self._cpu_seconds_seen = max(self._cpu_seconds_seen, tree_cpu_seconds(self._process.pid))
        return max(self._cpu_seconds_seen, self._cpu_seconds_final or 0.0)

    def rss_bytes(self) -> int:
        """Resident memory of the whole tree now; 0 when it has ended."""
        return 0 if self.ended else tree_rss_bytes(self._process.pid)

    def failure(self) -> str | None:
        """Why the program failed, with the last line of its output; None while it runs and when it succeeded."""
        if not self.ended or self._process.returncode == 0:
            return None
        lines = self._output.read_text(errors="replace").strip().splitlines()
        return f"exit code {self._process.returncode}: {lines[-1] if lines else 'without a word'}"

    def settle(self, deadline: float) -> None:
        """Wait until the program has ended by itself; `deadline` is of time.monotonic()."""
        while not self.ended and time.monotonic() < deadline:
            time.sleep(_PAUSE_S)

    def stop(self) -> None:
        """End the program: SIGTERM, and after a grace SIGKILL for the whole group. Harmless when it has ended."""
        if not self.ended:
            self._process.send_signal(signal.SIGTERM)
            self.settle(time.monotonic() + _GRACE_S)
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.settle(time.monotonic() + _GRACE_S)


class Service(Program):
    """A program that runs until it is stopped, and says in its output that it has `started`."""

    def settle(self, deadline: float) -> None:
        """Wait until it has said so, or ended; `deadline` is of time.monotonic()."""
        while not self.ended and b"started" not in self._output.read_bytes() and time.monotonic() < deadline:
            time.sleep(_PAUSE_S)

    def stop(self) -> None:
        """End it in order, as its operator would, and only then as any program."""
        if not self.ended:
            self._process.send_signal(signal.SIGTERM)
            Program.settle(self, time.monotonic() + _GRACE_S)
        super().stop()
