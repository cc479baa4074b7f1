"""The native core under the address and undefined-behaviour sanitizers: its own tests, the simulation, and fuzzers.

`python -m tests.sanitize [--fuzz-seconds N] [--seed S]` does all of it, in a folder of its own, so that neither the
extension in use nor its objects are touched. Needs gcc on Linux.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.oracle.fuzz_seeds import write_seeds

ROOT = Path(__file__).parents[1]
BUILT_FROM = ["csrc", "replicator", "setup.py", "pyproject.toml", "README.md", "LICENSE"]
TESTED_WITH = ["tests/__init__.py", "tests/conftest.py", "tests/harness", "tests/oracle", "pyproject.toml"]
TESTS = [
    "tests/unit/__init__.py",
    "tests/unit/test_crc32c.py",
    "tests/unit/test_batch.py",
    "tests/unit/test_records.py",
    "tests/unit/test_recipe.py",
    "tests/unit/test_columns.py",
    "tests/unit/test_fetch.py",
    "tests/unit/test_aborted.py",
    "tests/unit/test_raw.py",
    "tests/unit/test_merge.py",
    "tests/unit/test_records.py",
    "tests/unit/test_produce.py",
    "tests/unit/test_lane.py",
    "tests/unit/test_segments.py",
    "tests/unit/test_slab.py",
    "tests/unit/test_transport.py",
    "tests/flow/__init__.py",
    "tests/flow/test_simulation.py",
]
WARNINGS = ["-std=gnu11", "-Wall", "-Wextra", "-Werror"]
SANITIZERS = ["-g", "-O1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
SEEDS = 300
TARGETS = {"fetch_fuzz": "Fetch responses", "records_fuzz": "batches"}


def run(command: list[str], folder: Path, timeout_s: float, **variables: str) -> str:
    """Runs a command; what it said. Raises AssertionError with that when it fails."""
    strict = {"UBSAN_OPTIONS": "print_stacktrace=1:abort_on_error=1"}
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | strict | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=timeout_s,
    )
    said = "\n".join([done.stdout[-20_000:], *(log.read_text() for log in folder.glob("sanitizer.log*"))])
    assert done.returncode == 0, f"{' '.join(command)}\n{said}"
    return done.stdout


def copy(names: list[str], folder: Path) -> None:
    for name in names:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            unwanted = shutil.ignore_patterns("*.so", "_core.c", "__pycache__")
            shutil.copytree(source, target, dirs_exist_ok=True, ignore=unwanted)
        elif source.exists():
            shutil.copy2(source, target)


def build(folder: Path) -> Path:
    """Builds the package with sanitizers; the folder to run in, which has it and the tests."""
    copy(BUILT_FROM, folder / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder / "built")]
    run([*pip, str(folder / "source")], folder, 600, REPLICATOR_SANITIZE="1")
    copy([*TESTED_WITH, *TESTS], folder / "built")
    return folder / "built"


def run_native_tests(folder: Path) -> str:
    """All tests of the native core, with sanitizers. Leaks are the fuzzer's to find: Python never frees all it has."""
    built = build(folder)
    runtime = subprocess.check_output(["gcc", "-print-file-name=libasan.so"], text=True).strip()
    return run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *TESTS],
        built,
        1_200,
        LD_PRELOAD=runtime,
        PYTHONMALLOC="malloc",
        ASAN_OPTIONS=f"detect_leaks=0:abort_on_error=1:log_path={built}/sanitizer.log",
    )


def fuzz(target: str, folder: Path, seconds: int, seed: int) -> int:
    """Lets a fuzz target run; how many inputs it tried. The same seed begins the same way."""
    program = str(folder / target)
    sources = [*sorted((ROOT / "csrc").glob("*.c")), ROOT / f"csrc/fuzz/{target}.c", ROOT / "csrc/fuzz/mutator.c"]
    include = f"-I{ROOT / 'csrc'}"
    run(["gcc", *WARNINGS, *SANITIZERS, include, *map(str, sources), "-o", program], folder, 300)
    seeds = [str(path) for path in write_seeds(target, folder / f"{target}-seeds", seed, SEEDS)]
    command = [program, str(seconds), str(seed), *seeds]
    said = run(command, folder, seconds + 300, ASAN_OPTIONS="detect_leaks=1:abort_on_error=1")
    return int(said.split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fuzz-seconds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(run_native_tests(folder), end="", flush=True)
        for target, what in TARGETS.items():
            print(f"{fuzz(target, folder, options.fuzz_seconds, options.seed):,} mutants of {what} did no harm")


if __name__ == "__main__":
    main()
