"""A mistake of our own in the data plane: the process ends, and the supervisor says so and starts another.

Anything else would leave lanes that stand still and look well.
"""

import os
import subprocess
import sys

import pytest

_WORKER = """
import asyncio, uvloop
from replicator import tasks
from replicator.data import worker

async def main():
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(worker._end_at_once)

    def fail():
        raise KeyError("a mistake")

    async def fail_later():
        fail()

    {mistake}
    await asyncio.sleep(0.1)
    print("went on")

uvloop.run(main())
"""


@pytest.mark.parametrize(
    "mistake",
    [
        "loop.call_soon(fail)",
        "asyncio.ensure_future(fail_later()).add_done_callback(tasks.must_not_end)",
    ],
    ids=["callback", "keeper of a connection"],
)
def test_a_mistake_ends_the_process(mistake: str) -> None:
    program = _WORKER.format(mistake=mistake)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == os.EX_SOFTWARE
    assert "a mistake" in done.stderr
    assert "went on" not in done.stdout
