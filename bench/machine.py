"""Where and with what a measurement was made; without it a figure means nothing."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import confluent_kafka
import psutil

from tests.harness.jars import NEWEST_4, KafkaUnavailable, java

_TIMEOUT_S = 10


def facts() -> dict[str, object]:
    """Machine, versions, commit and date, as they go into a result."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / (1 << 30), 1),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "java": _java_version(),
        "kafka": NEWEST_4,
        "librdkafka": confluent_kafka.libversion()[0],
        "load_average_at_start": [round(load, 2) for load in os.getloadavg()],
    }


def _answer(*command: str) -> str | None:
    """What a program prints, or None when it cannot be asked."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, cwd=here, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return (done.stdout or done.stderr).strip()


def _commit() -> str | None:
    commit = _answer("git", "rev-parse", "HEAD")
    return f"{commit} with local changes" if commit and _answer("git", "status", "--porcelain") else commit


def _cpu_model() -> str | None:
    if sys.platform == "darwin":
        return _answer("sysctl", "-n", "machdep.cpu.brand_string")
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def _java_version() -> str | None:
    try:
        return (_answer(java(), "-version") or "").partition("\n")[0] or None
    except KafkaUnavailable:
        return None
