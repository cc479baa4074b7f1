"""What becomes of a task's error when nobody awaits the task: two answers, and none of them is silence by accident."""

import asyncio
from typing import Any


def must_not_end(task: "asyncio.Task[Any]") -> None:
    """A done callback that raises what the task failed with, in the hands of the loop: a fault of ours."""
    if not task.cancelled():
        task.result()


def may_fail_unheard(task: "asyncio.Task[Any]") -> None:
    """A done callback for a task whose error is told to whoever waits, and who may have been cancelled meanwhile."""
    if not task.cancelled():
        task.exception()
