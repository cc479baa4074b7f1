"""Waiting for something to become true, instead of sleeping and hoping."""

import time
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")

_PAUSE_S = 0.02


def eventually(check: Callable[[], Answer], what: str, timeout_s: float = 30.0) -> Answer:
    """Call `check` until its answer is true, and return that answer.

    Raises TimeoutError, with `what` and the last answer in its message, when `timeout_s` seconds were not
    enough.
    """
    deadline = time.monotonic() + timeout_s
    while not (answer := check()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:g} s for {what}; the last answer was {answer!r}")
        time.sleep(_PAUSE_S)
    return answer
