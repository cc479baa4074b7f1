"""Local ports that stay free until their server binds them, and while a killed server is away."""

import random
import socket

LOOPBACK = "127.0.0.1"

# Below the ephemeral range of Linux (32768 and up) and macOS (49152 and up). A port from the ephemeral range
# can be given to some outgoing connection while its broker is down, and a client that keeps dialling a closed
# ephemeral port may even end up connected to itself.
_CANDIDATES = range(20_000, 32_000)
_TRIES_MAX = 200


def free_port() -> int:
    """Return a TCP port of the loopback interface that nobody listens on.

    Raises OSError when `_TRIES_MAX` candidates in a row were taken.
    """
    for port in random.sample(_CANDIDATES, _TRIES_MAX):
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port among {_TRIES_MAX} candidates between {_CANDIDATES.start} and {_CANDIDATES.stop}")
