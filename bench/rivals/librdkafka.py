"""librdkafka, driven from C and from Python: how both loops are set up, and the compiler's part."""

import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

from bench.job import Job, PeerUnavailable

_LOOP = Path(__file__).with_name("librdkafka_loop.c")
_COMPILE_TIMEOUT_S = 60

# fetch.queue.backoff.ms defaults to 1000, which starves any loop that is faster than the fetches.
CONSUMER = {"fetch.queue.backoff.ms": "5"}
# Batches of 1 MB are the largest a broker takes by default; acks=all is librdkafka's own default.
PRODUCER = {
    "batch.size": "1000000",
    "queue.buffering.max.messages": "200000",
    "delivery.report.only.error": "true",
}


def settings(codec: str, linger_ms: int) -> dict[str, str]:
    """Every setting of a loop, by the argument that sets it: `c.` for the consumer, `p.` for the producer."""
    producer = {**PRODUCER, "linger.ms": str(linger_ms), "compression.type": codec}
    consumer = {f"c.{name}": value for name, value in CONSUMER.items()}
    return consumer | {f"p.{name}": value for name, value in producer.items()}


def loop_arguments(job: Job, linger_ms: int) -> list[str]:
    """The arguments that both loops take."""
    mode = "follow" if job.follow else "once"
    chosen = settings(job.codec, linger_ms)
    return [job.source, job.target, job.topic, mode, *(f"{name}={value}" for name, value in chosen.items())]


def compiled_loop(folder: Path) -> Path:
    """Compile the C loop into `folder` against the library inside the confluent-kafka wheel, once.

    Raises PeerUnavailable when there is no C compiler, no bundled library, or they do not fit.
    """
    program = folder / "librdkafka_loop"
    if program.exists():
        return program
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        raise PeerUnavailable("there is no C compiler (cc, gcc or clang) in PATH")
    library = _bundled_library()
    command = [compiler, "-O2", str(_LOOP), "-o", str(program), str(library), f"-Wl,-rpath,{library.parent}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S, check=False)
    if done.returncode:
        raise PeerUnavailable(f"the C loop does not compile: {done.stderr.strip()}")
    return program


def _bundled_library() -> Path:
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    for file in importlib.metadata.files("confluent-kafka") or ():
        if file.name.startswith("librdkafka") and suffix in file.name:
            return Path(str(file.locate())).resolve()
    raise PeerUnavailable("the confluent-kafka package here has no librdkafka inside (not a wheel?)")
