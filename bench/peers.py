"""Who is compared: ourselves and our rivals, each with every setting that is not its default.

A peer is a row: what it is, its settings as the report prints them, and how to start it on a job.
"""

import importlib.util
import itertools
import json
import re
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import msgspec

from bench.clusters import Pair
from bench.job import Job, PeerUnavailable, Run
from bench.process import Program, Service
from bench.rivals import librdkafka, mm2
from bench.topics import Topics
from replicator.config.models import Limits, default_workers


@dataclass
class Stage:
    """What the peers of one comparison share: the clusters, a folder for their files, and the Connect worker."""

    pair: Pair
    folder: Path
    worker: mm2.ConnectWorker | None = None
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self.worker:
            self.worker.close()
            Topics(self.pair.target.bootstrap).delete(*mm2.INTERNAL_TOPICS)

    def service(self, *command: str) -> Service:
        """The same for one that runs until it is stopped."""
        return Service(command, self.folder / f"output-{next(self._numbers)}.log")

    def program(self, *command: str) -> Program:
        """Run a command whose output goes to a file of its own."""
        return Program(command, self.folder / f"output-{next(self._numbers)}.log")

    def connect(self) -> mm2.ConnectWorker:
        """The Connect worker on the target cluster, started at the first call."""
        if not self.worker:
            self.worker = mm2.ConnectWorker(self.pair.target.bootstrap, self.folder)
        return self.worker


@dataclass(frozen=True)
class Peer:
    """One competitor. `start` raises PeerUnavailable or KafkaUnavailable when it cannot run on this machine."""

    name: str
    what: str
    settings: Mapping[str, Any]
    start: Callable[[Stage, Job], Run]


def _ours(stage: Stage, job: Job) -> Program:
    if not importlib.util.find_spec("replicator.cli.main"):
        raise PeerUnavailable("the replicator's command line is not installed here")
    replicator = [sys.executable, "-m", "replicator.cli.main"]
    if job.follow:
        return stage.program(*replicator, "run", str(_link_file(stage.folder, job, {})))
    ends = ["--from", job.source, "--to", job.target]
    return stage.program(*replicator, "copy", *ends, "--topics", re.escape(job.topic), "--no-verify")


def link_service(stage: Stage, job: Job, options: Mapping[str, Any]) -> Service:
    """A link with these options that runs until it is stopped, and keeps its checkpoints on the target."""
    file = _link_file(stage.folder, job, options)
    return stage.service(sys.executable, "-m", "replicator.cli.main", "run", str(file))


def _durable(name: str, checkpoint_interval_ms: int) -> Peer:
    """A link that keeps its checkpoints on the target; each run is a link of its own."""
    options = {"checkpoint_interval_ms": checkpoint_interval_ms}

    def start(stage: Stage, job: Job) -> Program:
        return link_service(stage, job, options | {"name": f"bench-{uuid.uuid4().hex[:8]}"})

    what = f"this replicator as a service, a checkpoint every {checkpoint_interval_ms / 1000:g} s"
    return Peer(name, what, {"throughput": "replicator run", **options}, start)


def _linked(name: str, what: str, **options: Any) -> Peer:
    """A copy of what there is by a link with these options."""

    def start(stage: Stage, job: Job) -> Program:
        command = ["replicator.cli.main", "run"] if job.follow else ["bench.linked"]
        return stage.program(sys.executable, "-m", *command, str(_link_file(stage.folder, job, options)))

    return Peer(name, what, {"throughput": "as replicator copy --no-verify", "link": options}, start)


def _link_file(folder: Path, job: Job, options: Mapping[str, Any]) -> Path:
    link = {
        "clusters": {
            "source": {"bootstrap.servers": job.source},
            "target": {"bootstrap.servers": job.target},
        },
        "links": [{"source": "source", "target": "target", "topics": {"include": [re.escape(job.topic)]}, **options}],
    }
    file = folder / f"{job.topic}.yaml"
    file.write_text(json.dumps(link))  # every JSON text is YAML
    return file


def _mm2(name: str, what: str, settings: Mapping[str, str]) -> Peer:
    shown = {
        **mm2.COMMON,
        **settings,
        "producer.override.compression.type": "as the data set",
        "jvm": mm2.CONNECT_JVM,
    }
    return Peer(name, what, shown, lambda stage, job: stage.connect().mirror(job, settings))


def _librdkafka_c(name: str, linger_ms: int) -> Peer:
    def start(stage: Stage, job: Job) -> Program:
        loop = librdkafka.compiled_loop(stage.folder)
        return stage.program(str(loop), *librdkafka.loop_arguments(job, linger_ms))

    what = f"a loop in C around librdkafka's batch calls, linger {linger_ms} ms"
    return Peer(name, what, librdkafka.settings("as the data set", linger_ms), start)


def _confluent_python(name: str, linger_ms: int) -> Peer:
    def start(stage: Stage, job: Job) -> Program:
        loop = [sys.executable, "-m", "bench.rivals.confluent_loop"]
        return stage.program(*loop, *librdkafka.loop_arguments(job, linger_ms))

    return Peer(name, "the same loop in Python", librdkafka.settings("as the data set", linger_ms), start)


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "ours",
            "this replicator, all defaults",
            {
                "throughput": "replicator copy --no-verify",
                "latency": "replicator run, of a minimal link file",
                "workers": default_workers(),
                "limits": msgspec.to_builtins(Limits()),
            },
            _ours,
        ),
        _durable("ours-checkpoints-1s", 1_000),
        _durable("ours-checkpoints-60s", 60_000),
        _linked("ours-merging", "this replicator, all defaults; started as those with options are"),
        _linked("ours-not-merging", "this replicator without merging", batches=[{"merge": "off"}]),
        _linked(
            "ours-header",
            "this replicator, adding a header to each record",
            edits=[{"add_header": {"name": "origin", "value": "us-east-1"}}],
        ),
        _mm2("mm2-default", "MirrorMaker 2 in a warm Connect worker, defaults", mm2.DEFAULTS),
        _mm2("mm2-tuned", "MirrorMaker 2 in a warm Connect worker, tuned for throughput", mm2.TUNED),
        _librdkafka_c("librdkafka-c", 20),
        _librdkafka_c("librdkafka-c-linger0", 0),
        _confluent_python("confluent-python", 20),
    )
}
