"""Questions about the native core alone, answered by `core_loop.c` and `records_loop.c`, which are built here.

Bars: re-addressing a batch of up to 1 MB under 150 ns; 1.5 million batches of 16 KB a second through feed, inspect,
re-address, gather and settle, on one core; CRC-32C of a hot 64 KB at 15 GB/s; uncompressed records of 1 KB with a
header added at 1.8 GB/s.
"""

import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
QUESTIONS = [
    ["crc"],
    *(["patch", str(size)] for size in (1 << 10, 16 << 10, 64 << 10, 1 << 20)),
    *(["pipeline", str(size)] for size in (1 << 10, 16 << 10, 64 << 10)),
    *([question, str(size)] for question in ("rebuild", "merge") for size in (100, 1 << 10)),
]
ANSWERED_BY = {"rebuild": "records_loop", "merge": "records_loop"}  # and all others by core_loop


def build(name: str, folder: Path) -> Path:
    """Compiles a program. Raises CalledProcessError with the compiler's words on the terminal."""
    program = folder / name
    sources = [str(ROOT / "bench" / f"{name}.c"), *map(str, sorted((ROOT / "csrc").glob("*.c")))]
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-O3", "-std=gnu11", *sources, "-o", str(program)], check=True)
    return program


def run(runs: int, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """One row a question (and kind of CRC): every figure as its median and its range over the runs."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        programs = {name: build(name, Path(folder)) for name in ("core_loop", "records_loop")}
        rows = []
        for question in QUESTIONS:
            program = programs[ANSWERED_BY.get(question[0], "core_loop")]
            answers = [_ask(program, question) for _ in range(runs)]
            for same in zip(*answers, strict=True):
                rows.append(_spread(list(same)))
                tell(json.dumps(rows[-1]))
        return rows


def _ask(program: Path, question: list[str]) -> list[dict[str, Any]]:
    output = subprocess.run([program, *question], check=True, capture_output=True, text=True).stdout
    return [json.loads(line) for line in output.splitlines()]


def _spread(answers: list[dict[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, value in answers[0].items():
        values = [answer[name] for answer in answers]
        measured = isinstance(value, float) or name.endswith("_per_s")
        row[name] = {"median": statistics.median(values), "min": min(values), "max": max(values)} if measured else value
    return row
