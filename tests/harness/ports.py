"""Local ports that stay free until their server binds them, and while a killed server is away."""

import os
import random
import socket

LOOPBACK = "127.0.0.1"

# Below the ephemeral range of Linux (32768 and up) and macOS (49152 and up). A port from the ephemeral range
# can be given to some outgoing connection while its broker is down, and a client that keeps dialling a closed
# ephemeral port may even end up connected to itself.
# Test processes that run side by side (pytest-xdist) have every second port each, or every third.
_PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_CANDIDATES = range(20_000 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]), 32_000, _PROCESSES)
_TRIES_MAX = 200

# A server binds its port seconds after it was chosen. Until then the kernel would offer the same one again.
_given: set[int] = set()


def free_port() -> int:
    """Return a TCP port of the loopback interface that nobody listens on and this process was never given before.

    Raises OSError when `_TRIES_MAX` candidates in a row were taken.
    """
    for port in random.sample([port for port in _CANDIDATES if port not in _given], _TRIES_MAX):
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            _given.add(port)
            return port
    raise OSError(f"no free port among {_TRIES_MAX} candidates between {_CANDIDATES.start} and {_CANDIDATES.stop}")
