"""`replicator demo`, as a newcomer starts it: a process of its own, and nothing else on the machine."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import replicator

HOME = Path(replicator.__file__).parents[1]
TIMEOUT_S = 60
COMMAND = [sys.executable, "-m", "replicator", "demo"]


def number(pattern: str, text: str) -> int:
    """The number in front of a pattern in a text."""
    found = re.search(r"([\d,]+)" + pattern, text)
    assert found, f"no number before {pattern!r} in {text}"
    return int(found[1].replace(",", ""))


def test_it_moves_what_it_says_and_proves_it() -> None:
    began_s = time.monotonic()
    command = [*COMMAND, "--seconds", "2", "--records", "20000"]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began_s < 30
    assert "It works" in done.stdout
    assert number(r" records, .* MB\n", done.stdout) == 20_000
    assert number(r" batches, .* MB", done.stdout) >= 16
    assert number(r" records from eu", done.stdout) == 20_000
    assert number(r" partitions: offsets", done.stdout) == 8
    lines = done.stderr.splitlines()
    assert len(lines) >= 2
    assert all(
        re.match(r"(producing and replicating|draining|done): produced [\d,]+, replicated", line) for line in lines
    )


def test_ctrl_c_ends_it_quickly_and_quietly() -> None:
    with subprocess.Popen(
        [*COMMAND, "--seconds", "20"], cwd=HOME, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr
        assert "producing" in process.stderr.readline()
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in err


def test_it_runs_the_replicator_it_belongs_to_wherever_it_is_started(tmp_path: Path) -> None:
    """As in a clone after `pip install .`: the folder has a package of our name, and it is not the one installed."""
    (tmp_path / "replicator").mkdir()
    (tmp_path / "replicator" / "__init__.py").write_text("raise ImportError('not this one')")
    command = [sys.executable, "-P", "-m", "replicator", "demo", "--seconds", "2", "--records", "10000"]
    environment = {**os.environ, "PYTHONPATH": str(HOME)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    assert "died" not in done.stderr
    assert number(r" records from eu", done.stdout) == 10_000
