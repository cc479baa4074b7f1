"""Kafka's official Java clients, asked through one small program that stays in its JVM.

A JVM takes a second to start and far longer to become fast, so each version of the clients gets one JVM that
answers commands line by line (`Witness.java` describes them). The classes are compiled once a version and
kept with the jars.
"""

import contextlib
import hashlib
import json
import os
import subprocess
import tempfile
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from tests.harness import tether
from tests.harness.jars import KafkaUnavailable, cache_root, class_path, java
from tests.harness.records import Dump, NewRecord, Record

_SOURCES = sorted((Path(__file__).parent.parent / "java").glob("*.java"))
_END_GRACE_S = 10
_STDERR_TAIL_BYTES = 4000


@dataclass(frozen=True)
class Fill:
    """Bulk data for `JavaWitness.fill`: `count` records in all, round robin over the partitions.

    Every record's value is a JSON log line of `record_bytes` bytes (at least some 200); equal seeds, equal
    values.
    """

    partitions: int
    count: int
    record_bytes: int = 1024
    seed: int = 1


class JavaWitnessError(Exception):
    """A command failed in Java, or its JVM is gone. The message is Java's."""


class JavaWitness:
    """The official clients of one Kafka version; a context manager. One command at a time, from one thread.

    `config` of every command are client properties by their Kafka names.
    """

    def __init__(self, version: str, heap: str = "512m") -> None:
        """Start the JVM. Raises KafkaUnavailable when Java or the jars are missing."""
        classes = os.pathsep.join([str(_compiled(version)), class_path(version)])
        options = [f"-Xmx{heap}", "-XX:+UseSerialGC", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error"]
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the JVM that writes it
        self._jvm = tether.spawn(
            [java(), *options, "-cp", classes, "Witness"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            encoding="utf-8",
        )
        assert self._jvm.stdin
        assert self._jvm.stdout
        self._stdin, self._stdout = self._jvm.stdin, self._jvm.stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the JVM, by the end of its input."""
        with contextlib.suppress(BrokenPipeError, subprocess.TimeoutExpired):
            self._stdin.close()
            self._jvm.wait(_END_GRACE_S)
        tether.end(self._jvm, grace_s=0)
        self._stdout.close()
        self._stderr.close()

    def produce(
        self,
        bootstrap: str,
        topic: str,
        records: Iterable[NewRecord],
        config: Mapping[str, str] | None = None,
        abort: bool = False,
    ) -> list[int]:
        """Write `records` in order and return their offsets.

        With `transactional.id` in `config` they are one transaction, committed or, with `abort`, aborted
        after all of them are in the log. Raises JavaWitnessError when one of them was refused.
        """
        command = {
            "bootstrap": bootstrap,
            "topic": topic,
            "records": as_json(records),
            "config": config,
            "abort": abort,
        }
        offsets: list[int] = self.ask("produce", command, [])
        return offsets

    def dump(self, bootstrap: str, topic: str, isolation: str = "read_uncommitted") -> Dump:
        """Read all partitions from their log start to the end that stood when the reading began.

        Raises JavaWitnessError for errors of the client and when a partition stays short of its end.
        """
        rows: list[list[Any]] = []
        command = {"bootstrap": bootstrap, "topic": topic, "isolation": isolation}
        summary = self.ask("dump", command, rows)
        if summary["records"] != len(rows):
            raise JavaWitnessError(f"Java sent {summary['records']} records, {len(rows)} arrived")
        read: Dump = {partition: [] for partition in range(summary["partitions"])}
        for partition, offset, timestamp_type, timestamp, key, value, headers in rows:
            named = tuple((name, _decoded(content)) for name, content in headers)
            when = (timestamp_type, timestamp)
            read[partition].append(Record(offset, *when, _decoded(key), _decoded(value), named))
        return read

    def fill(self, bootstrap: str, topic: str, bulk: Fill, config: Mapping[str, str] | None = None) -> dict[str, float]:
        """Write bulk data and return {"count", "value_bytes", "seconds"}. Raises JavaWitnessError."""
        command = {"bootstrap": bootstrap, "topic": topic, "config": config, **asdict(bulk)}
        summary: dict[str, float] = self.ask("fill", command, [])
        return summary

    def ask(self, operation: str, arguments: Mapping[str, object], rows: list[list[Any]]) -> Any:
        """Send a command, add the rows of its answer to `rows`, and return the summary behind them.

        Raises JavaWitnessError.
        """
        try:
            self._stdin.write(json.dumps({"op": operation, **arguments}) + "\n")
            self._stdin.flush()
        except OSError as broken:
            raise self._gone(operation) from broken
        for line in self._stdout:
            answer = json.loads(line)
            if isinstance(answer, list):
                rows.append(answer)
            elif "error" in answer:
                raise JavaWitnessError(f"{operation} of {arguments.get('topic', '?')}: {answer['error']}")
            else:
                return answer["ok"]
        raise self._gone(operation)

    def _gone(self, operation: str) -> JavaWitnessError:
        status = self._jvm.wait(_END_GRACE_S)
        self._stderr.seek(max(0, self._stderr.seek(0, os.SEEK_END) - _STDERR_TAIL_BYTES))
        tail = self._stderr.read().decode(errors="replace")
        return JavaWitnessError(f"the JVM ended with status {status} during {operation}; it said:\n{tail}")


def as_json(records: Iterable[NewRecord]) -> list[dict[str, object]]:
    """Records as the JVM reads them."""
    return [
        {
            "partition": record.partition,
            "key": _encoded(record.key),
            "value": _encoded(record.value),
            "headers": [[name, _encoded(value)] for name, value in record.headers],
            "timestamp": record.timestamp,
        }
        for record in records
    ]


def _compiled(version: str) -> Path:
    """Return the folder of the compiled program for a version of the clients, compiling if need be."""
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in _SOURCES)).hexdigest()[:16]
    folder = cache_root() / f"witness-{version}-{digest}"
    if folder.is_dir():
        return folder
    libraries = class_path(version)
    with tempfile.TemporaryDirectory(prefix=".witness-", dir=cache_root()) as scratch:
        classes = Path(scratch) / "classes"
        # javac's own main class: a `java` that is found may have no `javac` beside it on PATH.
        compiler = [java(), "-m", "jdk.compiler/com.sun.tools.javac.Main"]
        command = [
            *compiler,
            "-Xlint:all,-path,-processing",
            "-Werror",
            "-cp",
            libraries,
            "-d",
            str(classes),
            *map(str, _SOURCES),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if "jdk.compiler not found" in done.stdout + done.stderr:
            raise KafkaUnavailable(f"needs a Java development kit: {java()} is a runtime without its compiler")
        if done.returncode:
            raise JavaWitnessError(f"tests/java does not compile against Kafka {version}:\n{done.stderr}")
        try:
            classes.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    return folder


def _encoded(content: bytes | None) -> str | None:
    return None if content is None else b64encode(content).decode()


def _decoded(content: str | None) -> bytes | None:
    return None if content is None else b64decode(content)
