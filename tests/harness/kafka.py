"""Clusters of real Apache Kafka brokers on this machine, up in about three seconds.

KRaft: node 1 is broker and controller, further nodes are brokers only. Each node keeps its ports and its
folder for the life of the cluster, so that it can be killed, stopped, paused and started again like a machine
in a rack; the folders go away with the cluster. One JVM a node, some 250 MB resident while idle.
"""

import atexit
import base64
import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

from tests.harness import tether
from tests.harness.jars import NEWEST_3, NEWEST_4, class_path, jars, java
from tests.harness.ports import LOOPBACK, free_port
from tests.harness.proxy import FaultProxy
from tests.harness.waiting import eventually
from tests.harness.wire import Wire, WireError

__all__ = ["NEWEST_3", "NEWEST_4", "KafkaCluster", "jars"]

_START_TIMEOUT_S = 60
_STOP_GRACE_S = 20
_LOG_TAIL_LINES = 30
_CONTROLLER_NODE = 1

# What a test may rely on, unless it passes other `properties`.
_DEFAULTS = {
    "auto.create.topics.enable": "false",
    # Tests write records of any age, and the broker must not tidy them up.
    "log.retention.ms": "-1",
    "group.initial.rebalance.delay.ms": "0",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # Fewer partitions of the internal topics (50 each otherwise) make the first use of a group quick.
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.num.partitions": "4",
    # A node that comes back from `kill` is not let in before its former session has expired (9 s otherwise).
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    # Allocated at once, 128 MB otherwise: a quarter of the heap.
    "log.cleaner.dedupe.buffer.size": str(8 << 20),
}


@dataclass
class _Node:
    """What stays the same when a node is started again, and the process that is its present incarnation."""

    id: int
    port: int
    folder: Path
    proxied_port: int | None = None
    process: subprocess.Popen[Any] | None = None

    @property
    def config(self) -> Path:
        return self.folder / "server.properties"

    @property
    def log(self) -> Path:
        return self.folder / "broker.log"

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def require_running(self) -> subprocess.Popen[Any]:
        """Return the running process. Raises RuntimeError, with the end of its log, when there is none."""
        if not self.alive:
            raise RuntimeError(f"node {self.id} is not running; its log ends with:\n{self.log_tail()}")
        return cast(subprocess.Popen[Any], self.process)

    def log_tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(lines[-_LOG_TAIL_LINES:])


class KafkaCluster:
    """Kafka brokers of one version; a context manager that starts them and in the end removes every trace.

    `properties` are broker properties over the harness's defaults. With `proxied`, every node has a second
    listener behind a FaultProxy of its own; clients that bootstrap from `proxied_bootstrap` are led through
    the proxies by the brokers' own metadata, others are not. `heap` is the JVM's -Xmx.

    Start it from a thread that lives as long as the cluster shall: on Linux the brokers die with that thread.
    """

    def __init__(
        self,
        version: str,
        nodes: int = 1,
        properties: Mapping[str, str] | None = None,
        proxied: bool = False,
        heap: str = "512m",
    ) -> None:
        """Choose ports and folders; nothing runs before `start`."""
        self.version = version
        self.heap = heap
        self.properties = {**_DEFAULTS, **(properties or {})}
        self.folder = Path(tempfile.mkdtemp(prefix="kafka-"))
        self.proxies: list[FaultProxy] = []
        self._proxied = proxied
        self._cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        self._controller_port = free_port()
        self._nodes = {node: _Node(node, free_port(), self.folder / f"node-{node}") for node in range(1, nodes + 1)}

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @property
    def bootstrap(self) -> str:
        """The `bootstrap.servers` of the plain listeners."""
        return ",".join(f"{LOOPBACK}:{node.port}" for node in self._nodes.values())

    @property
    def proxied_bootstrap(self) -> str:
        """The `bootstrap.servers` of the proxied listeners. Raises RuntimeError when there are none."""
        if not self._proxied:
            raise RuntimeError("this cluster has no proxies: create it with proxied=True")
        return ",".join(f"{LOOPBACK}:{proxy.port}" for proxy in self.proxies)

    @property
    def log_tail(self) -> str:
        """The last lines of every node's log, for the message of a failure."""
        return "\n".join(f"--- node {node.id}\n{node.log_tail()}" for node in self._nodes.values())

    def start(self) -> Self:
        """Start every node that is not running, and wait until each of them knows all of them.

        Raises RuntimeError with the end of the broker's log when a node exits or is not ready in time, and
        KafkaUnavailable when Java or the jars are missing.
        """
        atexit.register(self.close)
        for node in self._nodes.values():
            if not node.config.exists():
                self._prepare(node)
            if not node.alive:
                self._launch(node)
        for node in self._nodes.values():
            self._wait_until_ready(node, set(self._nodes))
        return self

    def stop(self) -> None:
        """Stop every node as an operator would (SIGTERM), the controller last. `start` brings them back."""
        for node in reversed(self._nodes.values()):
            if node.process is not None:
                tether.end(node.process, _STOP_GRACE_S)

    def close(self) -> None:
        """End the cluster and remove its data. Nothing is written any more, so nothing is asked politely."""
        for node in self._nodes.values():
            if node.process is not None:
                node.process.kill()
                node.process.wait()
        while self.proxies:
            self.proxies.pop().close()
        shutil.rmtree(self.folder, ignore_errors=True)
        atexit.unregister(self.close)

    def kill(self, node: int = 1) -> None:
        """Kill a node without warning (SIGKILL). What it had written survives in the page cache."""
        process = self._nodes[node].require_running()
        process.kill()
        process.wait()

    def restart(self, node: int = 1) -> None:
        """Start a node again on its folder and ports, stopping it if it runs; wait until it is ready."""
        chosen = self._nodes[node]
        if chosen.process is not None:
            tether.end(chosen.process, _STOP_GRACE_S)
        self._launch(chosen)
        self._wait_until_ready(chosen, {node})

    def pause(self, node: int = 1) -> None:
        """Freeze a node (SIGSTOP): its connections stay open and nobody answers."""
        process = self._nodes[node].require_running()
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)  # its threads do not all stop at once

    def resume(self, node: int = 1) -> None:
        """Let a paused node go on (SIGCONT)."""
        self._nodes[node].require_running().send_signal(signal.SIGCONT)

    def pid(self, node: int = 1) -> int:
        """Return the process id of a running node. Raises RuntimeError when it does not run."""
        return self._nodes[node].require_running().pid

    def cpu_seconds(self) -> float:
        """Return user plus system seconds of the running nodes since each was started."""
        import psutil  # of the `bench` extra: only benchmarks account for CPU

        times = [psutil.Process(self.pid(node)).cpu_times() for node in self._nodes]
        return float(sum(spent.user + spent.system for spent in times))

    def _prepare(self, node: _Node) -> None:
        """Start the node's proxy, write its configuration and format its folder."""
        node.folder.mkdir(exist_ok=True)
        if self._proxied:
            node.proxied_port = free_port()
            self.proxies.append(FaultProxy(node.proxied_port))
        settings = "".join(f"{name}={value}\n" for name, value in self._server_properties(node).items())
        node.config.write_text(settings)
        # With "=", because one id in 64 begins with a dash and would be taken for an option.
        arguments = ["format", f"--cluster-id={self._cluster_id}", "-c", str(node.config)]
        # Compiling well would take longer than the tool runs.
        command = self._java("-XX:TieredStopAtLevel=1", "kafka.tools.StorageTool", *arguments)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"Kafka {self.version} refuses to format node {node.id}:\n{done.stdout}{done.stderr}")

    def _server_properties(self, node: _Node) -> dict[str, str]:
        address = f"PLAINTEXT://{LOOPBACK}:{node.port}"
        listeners, advertised = [address], [address]
        if node.proxied_port is not None:
            listeners.append(f"PROXIED://{LOOPBACK}:{node.proxied_port}")
            advertised.append(f"PROXIED://{LOOPBACK}:{self.proxies[node.id - 1].port}")
        roles = "broker"
        if node.id == _CONTROLLER_NODE:
            roles = "broker,controller"
            listeners.append(f"CONTROLLER://{LOOPBACK}:{self._controller_port}")
        return {
            "process.roles": roles,
            "node.id": str(node.id),
            "listeners": ",".join(listeners),
            "advertised.listeners": ",".join(advertised),
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "controller.quorum.voters": f"{_CONTROLLER_NODE}@{LOOPBACK}:{self._controller_port}",
            "log.dirs": str(node.folder / "data"),
            **self.properties,
        }

    def _launch(self, node: _Node) -> None:
        command = self._java("kafka.Kafka", str(node.config))
        with node.log.open("ab") as log:
            node.process = tether.spawn(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=node.folder)

    def _java(self, *arguments: str) -> list[str]:
        # The serial collector starts fastest and keeps the smallest heap of them all.
        options = [f"-Xmx{self.heap}", "-XX:+UseSerialGC", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
        return [java(), *options, "-cp", class_path(self.version), *arguments]

    def _wait_until_ready(self, node: _Node, expected: set[int]) -> None:
        try:
            eventually(lambda: self._names(node, expected), "readiness", _START_TIMEOUT_S)
        except TimeoutError as late:
            problem = f"node {node.id} of Kafka {self.version} was not ready after {_START_TIMEOUT_S} s"
            raise RuntimeError(f"{problem}; its log ends with:\n{node.log_tail()}") from late

    def _names(self, node: _Node, expected: set[int]) -> bool:
        """Whether `node` answers and names the `expected` nodes. Raises RuntimeError when it has exited."""
        node.require_running()
        try:
            with Wire(node.port) as wire:
                return expected <= {broker.node for broker in wire.metadata().brokers}
        except (OSError, WireError):
            return False
