"""The native core under the address and undefined-behaviour sanitizers: its own tests, the simulation, and a fuzzer.

Everything is built in a folder of its own from a copy of the sources, so neither the extension in use nor its
objects are touched. Needs gcc on Linux.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.oracle.fuzz_seeds import write_seeds

ROOT = Path(__file__).parents[2]
SOURCES = ["csrc", "replicator", "tests/__init__.py", "tests/conftest.py", "tests/harness", "tests/oracle"]
NATIVE_TESTS = [
    "tests/unit/test_crc32c.py",
    "tests/unit/test_batch.py",
    "tests/unit/test_fetch.py",
    "tests/unit/test_produce.py",
    "tests/unit/test_lane.py",
    "tests/unit/test_slab.py",
    "tests/unit/test_transport.py",
    "tests/flow/test_simulation.py",
]
PACKAGES = ["tests/unit/__init__.py", "tests/flow/__init__.py", "pyproject.toml", "setup.py"]
FLAGS = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-g", "-O1", "-fno-omit-frame-pointer"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
STRICT = {"UBSAN_OPTIONS": "print_stacktrace=1:abort_on_error=1"}

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("gcc"), reason="the sanitizers' runtime is gcc's, on Linux"
)


def run(command: list[str], folder: Path, timeout_s: float, **variables: str) -> str:
    """Runs a command; what it said. Fails the test when it fails."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | STRICT | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=timeout_s,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-20_000:]}"
    return done.stdout


def copy_sources(folder: Path) -> None:
    for name in [*SOURCES, *PACKAGES, *NATIVE_TESTS]:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            unwanted = shutil.ignore_patterns("*.so", "_core.c", "__pycache__")
            shutil.copytree(source, target, dirs_exist_ok=True, ignore=unwanted)
        else:
            shutil.copy2(source, target)


@pytest.mark.timeout(900)
def test_the_native_tests_hold_under_the_sanitizers(tmp_path):
    copy_sources(tmp_path)
    run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], tmp_path, 300, REPLICATOR_SANITIZE="1")
    runtime = subprocess.check_output(["gcc", "-print-file-name=libasan.so"], text=True).strip()
    said = run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *NATIVE_TESTS],
        tmp_path,
        600,
        LD_PRELOAD=runtime,
        PYTHONMALLOC="malloc",
        ASAN_OPTIONS="detect_leaks=0:abort_on_error=1",  # Python itself never frees all it has
        REPLICATOR_SANITIZE="1",
    )
    assert " passed" in said
    assert "skipped" not in said


def fuzz(folder: Path, seconds: int, seed: int) -> str:
    program = str(folder / "fetch_fuzz")
    sources = sorted(map(str, (ROOT / "csrc").glob("*.c")))
    harness = str(ROOT / "csrc/fuzz/fetch_fuzz.c")
    run(["gcc", *FLAGS, *SANITIZERS, f"-I{ROOT / 'csrc'}", *sources, harness, "-o", program], folder, 120)
    seeds = [str(path) for path in write_seeds(folder / "seeds", seed, 300)]
    return run(
        [program, str(seconds), str(seed), *seeds],
        folder,
        seconds + 120,
        ASAN_OPTIONS="detect_leaks=1:abort_on_error=1",
    )


@pytest.mark.timeout(300)
def test_a_fuzzer_finds_nothing_in_a_few_seconds(tmp_path):
    said = fuzz(tmp_path, seconds=5, seed=1)
    mutants = int(said.split()[0])
    assert mutants > 1_000, said


@pytest.mark.soak
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("seed", [11, 12, 13])
def test_a_fuzzer_finds_nothing_in_minutes(tmp_path, seed):
    said = fuzz(tmp_path, seconds=300, seed=seed)
    assert int(said.split()[0]) > 100_000, said
