"""Question: what does a worker cost a gigabyte, beside a relay that only copies bytes?

The rival is a plain TCP relay: read up to 1 MB from one socket, write it to another, in one Python process, whose user
time is next to nothing. Both move the same bytes over loopback in the same run, in turn. Bars: 1.5 times the relay at
batches of 64 KB and more, 2.5 times at 16 KB.
"""

import asyncio
import json
import multiprocessing
import resource
import socket
import statistics
import time
from collections.abc import Callable
from typing import Any

import psutil

from bench.scripted import TOPIC, Script, ScriptedPeer
from replicator.config.load import from_data
from replicator.control.supervisor import Supervisor

PARTITIONS = 8
BARS = {16 << 10: 2.5, 64 << 10: 1.5, 256 << 10: 1.5, 1 << 20: 1.5}
CHUNK = 1 << 20


async def _copy(script: Script, source: str, target: str) -> tuple[float, float, int]:
    """(worker's CPU seconds, wall seconds, bytes moved) of one whole copy; the process's start is left out."""
    config = from_data(
        {
            "clusters": {"source": {"bootstrap.servers": source}, "target": {"bootstrap.servers": target}},
            "links": [{"source": "source", "target": "target", "topics": {"include": [TOPIC]}}],
            "workers": 1,
        }
    )
    supervisor = Supervisor(config, stop="now")
    await supervisor.start()
    rows = supervisor.rows.array[:PARTITIONS]
    while not rows["batches"].any():
        await asyncio.sleep(0.001)
    worker = psutil.Process(supervisor.workers[0].pid)
    cpu_before, bytes_before, began = sum(worker.cpu_times()[:2]), int(rows["bytes"].sum()), time.monotonic()
    while int(rows["batches"].sum()) < script.batches * script.partitions:
        await asyncio.sleep(0.005)
    wall_s = time.monotonic() - began
    cpu_s, moved = sum(worker.cpu_times()[:2]) - cpu_before, int(rows["bytes"].sum()) - bytes_before
    await supervisor.drain()
    return cpu_s, wall_s, moved


def _pour(port: int, size: int) -> None:
    data = bytes(CHUNK)
    with socket.create_connection(("127.0.0.1", port)) as sock:
        for _ in range(size // CHUNK):
            sock.sendall(data)


def _swallow(ready: Any) -> None:
    buffer = bytearray(CHUNK)
    with socket.create_server(("127.0.0.1", 0)) as server:
        ready.send(server.getsockname()[1])
        sock, _ = server.accept()
        while sock.recv_into(buffer):
            pass


def _relay(size: int) -> tuple[float, float]:
    """(CPU seconds, wall seconds) of this process for relaying `size` bytes."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    sink = context.Process(target=_swallow, args=(theirs,), daemon=True)
    sink.start()
    with socket.create_server(("127.0.0.1", 0)) as server:
        feeder = context.Process(target=_pour, args=(server.getsockname()[1], size), daemon=True)
        feeder.start()
        out = socket.create_connection(("127.0.0.1", ours.recv()))
        source, _ = server.accept()
        buffer = memoryview(bytearray(CHUNK))
        before, began = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
        while n := source.recv_into(buffer):
            out.sendall(buffer[:n])
        after, wall_s = resource.getrusage(resource.RUSAGE_SELF), time.monotonic() - began
        out.close()
        source.close()
    feeder.join()
    sink.join()
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall_s


def run(runs: int, gigabytes: float, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """One row a batch size: CPU seconds a gigabyte of both, medians and spread, and their ratio."""
    rows = []
    for batch_bytes, bar in BARS.items():
        script = Script(PARTITIONS, int(gigabytes * 1e9 / PARTITIONS / batch_bytes), batch_bytes)
        ours, relay, rates = [], [], []
        for _ in range(runs):
            with ScriptedPeer(script, False) as source, ScriptedPeer(script, True) as target:
                cpu_s, wall_s, moved = asyncio.run(_copy(script, source.bootstrap, target.bootstrap))
            ours.append(cpu_s / moved * 1e9)
            rates.append(moved / wall_s / 1e6)
            relay.append(_relay(int(gigabytes * 1e9))[0] / gigabytes)
        ratio = statistics.median(ours) / statistics.median(relay)
        rows.append(
            {
                "batch_bytes": batch_bytes,
                "worker_cpu_s_per_gb": [
                    round(statistics.median(ours), 3),
                    round(min(ours), 3),
                    round(max(ours), 3),
                ],
                "relay_cpu_s_per_gb": [
                    round(statistics.median(relay), 3),
                    round(min(relay), 3),
                    round(max(relay), 3),
                ],
                "ratio": round(ratio, 2),
                "bar": bar,
                "worker_mb_per_s": round(statistics.median(rates)),
            }
        )
        tell(json.dumps(rows[-1]))
    return rows
