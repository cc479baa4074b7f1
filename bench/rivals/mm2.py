"""MirrorMaker 2 as it runs in production: a MirrorSourceConnector in a Connect worker that is already warm.

One distributed worker serves all runs, so that the JVM has compiled what it is measured at. Every run is a connector
of its own name: Connect keeps source offsets by connector name, so each starts from nothing.
"""

import contextlib
import http.client
import itertools
import json
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from bench.job import Job
from tests.harness import tether
from tests.harness.jars import NEWEST_4, class_path, java
from tests.harness.ports import LOOPBACK, free_port

# What Kafka's own start script gives a Connect worker.
CONNECT_JVM = (
    *("-Xms256m", "-Xmx2g", "-server", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20"),
    *("-XX:InitiatingHeapOccupancyPercent=35", "-XX:+ExplicitGCInvokesConcurrent"),
)
COMMON = {
    "connector.class": "org.apache.kafka.connect.mirror.MirrorSourceConnector",
    "replication.policy.class": "org.apache.kafka.connect.mirror.IdentityReplicationPolicy",
    "tasks.max": "2",
    "source.cluster.alias": "source",
    "target.cluster.alias": "target",
    "replication.factor": "-1",
    # Brokers without an authorizer have no ACLs to offer.
    "sync.topic.acls.enabled": "false",
}
DEFAULTS = {"offset-syncs.topic.replication.factor": "-1"}
# Throughput first. Offset syncs are off because no other peer writes any.
TUNED = {
    "producer.override.batch.size": "327680",
    "producer.override.linger.ms": "100",
    "producer.override.buffer.memory": str(128 << 20),
    "producer.override.send.buffer.bytes": str(1 << 20),
    "source.consumer.fetch.min.bytes": str(1 << 20),
    "source.consumer.max.partition.fetch.bytes": str(4 << 20),
    "source.consumer.fetch.max.bytes": str(50 << 20),
    "source.consumer.max.poll.records": "5000",
    "emit.offset-syncs.enabled": "false",
}
_WORKER = {
    "group.id": "replicator-bench-connect",
    "key.converter": "org.apache.kafka.connect.converters.ByteArrayConverter",
    "value.converter": "org.apache.kafka.connect.converters.ByteArrayConverter",
    "header.converter": "org.apache.kafka.connect.converters.ByteArrayConverter",
    "plugin.discovery": "service_load",
    "connector.client.config.override.policy": "All",
    "config.storage.topic": "replicator-bench-connect-configs",
    "offset.storage.topic": "replicator-bench-connect-offsets",
    "status.storage.topic": "replicator-bench-connect-status",
    "config.storage.replication.factor": "-1",
    "offset.storage.replication.factor": "-1",
    "status.storage.replication.factor": "-1",
}
INTERNAL_TOPICS = tuple(name for key, name in _WORKER.items() if key.endswith(".storage.topic"))

_READY_TIMEOUT_S = 90.0
_REQUEST_TIMEOUT_S = 30.0
_DELETE_TIMEOUT_S = 60.0
_STOP_GRACE_S = 20.0
_PAUSE_S = 0.1
_NUMBERS = itertools.count(1)


class ConnectWorker:
    """A Connect worker on the target cluster. Lives until `close`."""

    def __init__(self, target: str, folder: Path) -> None:
        """Start the worker and wait until it takes connectors.

        Raises KafkaUnavailable when Java or the jars are missing, RuntimeError when the worker does not come up.
        """
        self._port = free_port()
        config = folder / "connect.properties"
        settings = {**_WORKER, "bootstrap.servers": target, "listeners": f"http://{LOOPBACK}:{self._port}"}
        config.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        self._log = folder / "connect.log"
        quiet = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
        jvm = [java(), *CONNECT_JVM, quiet, "-cp", class_path(NEWEST_4)]
        with self._log.open("wb") as log:
            self._process = tether.spawn(
                [*jvm, "org.apache.kafka.connect.cli.ConnectDistributed", str(config)],
                **{"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log},
            )
        self._wait_until_ready()

    def mirror(self, job: Job, settings: Mapping[str, str]) -> "Mirror":
        """Start a connector for the job; `settings` come on top of the common ones."""
        name = f"bench-{next(_NUMBERS)}"
        config = {
            **COMMON,
            **settings,
            "topics": job.topic,
            "source.cluster.bootstrap.servers": job.source,
            "target.cluster.bootstrap.servers": job.target,
            # The same as the source's, as for every peer; MM2 itself would write uncompressed.
            "producer.override.compression.type": job.codec,
        }
        return Mirror(self, name, config)

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Send a request to the worker's REST interface; return the status and the answer, decoded if it is JSON."""
        connection = http.client.HTTPConnection(LOOPBACK, self._port, timeout=_REQUEST_TIMEOUT_S)
        with contextlib.closing(connection):
            payload = None if body is None else json.dumps(body)
            connection.request(method, path, payload, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
        is_json = answer.headers.get_content_type() == "application/json"
        return answer.status, json.loads(text) if text and is_json else text.decode(errors="replace")

    def cpu_seconds(self) -> float:
        """User plus system seconds of the worker so far."""
        user, system, *_ = psutil.Process(self._process.pid).cpu_times()
        return float(user + system)

    def rss_bytes(self) -> int:
        """Resident memory of the worker."""
        return int(psutil.Process(self._process.pid).memory_info().rss)

    def close(self) -> None:
        """End the worker."""
        tether.end(self._process, _STOP_GRACE_S)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.close()
                words = self._log.read_text(errors="replace").splitlines()[-20:]
                raise RuntimeError("the Connect worker did not come up; its log ends with:\n" + "\n".join(words))
            time.sleep(_PAUSE_S)

    def _ready(self) -> bool:
        try:
            return self.ask("GET", "/connectors")[0] == http.client.OK
        except OSError:
            return False


class Mirror:
    """One connector, from its creation to its deletion; what the worker spends meanwhile is its cost."""

    def __init__(self, worker: ConnectWorker, name: str, config: Mapping[str, str]) -> None:
        self._worker = worker
        self._path = f"/connectors/{name}"
        self._cpu_seconds_before = worker.cpu_seconds()
        status, answer = worker.ask("POST", "/connectors", {"name": name, "config": config})
        if status != http.client.CREATED:
            raise RuntimeError(f"Connect refuses the connector: {answer}")

    def cpu_seconds(self) -> float:
        """User plus system seconds of the worker since just before the connector was created."""
        return self._worker.cpu_seconds() - self._cpu_seconds_before

    def rss_bytes(self) -> int:
        """Resident memory of the worker, heap that earlier runs made it take included."""
        return self._worker.rss_bytes()

    def failure(self) -> str | None:
        """The first line of a failed task's stack trace."""
        failed = [part for part in self._parts() if part["state"] == "FAILED"]
        return failed[0].get("trace", "failed").splitlines()[0] if failed else None

    def settle(self, deadline: float) -> None:
        """Wait until the connector and at least one task of it run."""
        while time.monotonic() < deadline:
            parts = self._parts()
            if len(parts) > 1 and all(part["state"] == "RUNNING" for part in parts):
                return
            time.sleep(_PAUSE_S)

    def stop(self) -> None:
        """Delete the connector and wait until it is gone."""
        deadline = time.monotonic() + _DELETE_TIMEOUT_S
        # 409 means that the worker is rebalancing and wants to be asked again.
        while self._worker.ask("DELETE", self._path)[0] != http.client.NOT_FOUND:
            if time.monotonic() > deadline:
                raise RuntimeError(f"Connect did not delete {self._path} in {_DELETE_TIMEOUT_S:g} s")
            time.sleep(_PAUSE_S)

    def _parts(self) -> list[dict[str, str]]:
        """The states of the connector and its tasks; none while they are not known yet."""
        status, answer = self._worker.ask("GET", self._path + "/status")
        return [answer["connector"], *answer["tasks"]] if status == http.client.OK else []
