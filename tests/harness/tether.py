"""Child processes that do not outlive the test run, however it ends.

A clean end is the owner's business (`stop`, `atexit`). For a run that is killed, Linux can be asked to kill
the child with its parent, but only by the child itself. So the child starts as this very file, asks, and
becomes the real program by exec: same process id, and no Python code between fork and exec, where it could
deadlock on a lock that another thread held at the fork.

Linux means the parent *thread*: start tethered children from a thread that lives as long as they should.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1


def spawn(command: Sequence[str], **popen: Any) -> subprocess.Popen[Any]:
    """Start `command` tethered to this process; `popen` are further arguments of subprocess.Popen."""
    tethered = list(command)
    if sys.platform == "linux":
        # -I -S: no site packages, no environment; the detour costs some 15 ms.
        tethered = [sys.executable, "-I", "-S", str(Path(__file__)), str(os.getpid()), *command]
    # In a session of its own, so that Ctrl-C reaches the test run alone, which then stops its children in
    # order.
    return subprocess.Popen(tethered, start_new_session=True, **popen)


def end(process: subprocess.Popen[Any], grace_s: float) -> None:
    """Ask `process` to end, make it end after `grace_s` seconds, and collect it. It may be over."""
    if process.poll() is None:
        process.terminate()
        # A stopped process would not hear SIGTERM.
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def _become(parent: int, command: Sequence[str]) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        # The parent died before the request was in place; nobody would ever kill us.
        sys.exit("the test run that wanted this process is gone")
    os.execvp(command[0], list(command))


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2:])
