"""One run: a peer copies one data set into a fresh topic, and what that costs everybody is written down."""

import time
from dataclasses import dataclass

import psutil

from bench.datasets import Filled, inspect
from bench.job import Job, Run
from bench.peers import Peer, Stage
from bench.topics import Topics

# Asking for the end offsets costs the target about 0.1 ms; looking at a process tree costs us several.
_POLL_S = 0.02
_SAMPLE_S = 0.25
IDLE_CORES_MAX = 0.2
_IDLE_PROBE_S = 0.5
_IDLE_TIMEOUT_S = 20.0


@dataclass
class Figures:
    """What was seen of one run. Seconds of CPU are user plus system; those of brokers are None if not ours.

    `start_s` is from the start to the first records on the target, `wall_s` to the last; both as seen by asking every
    20 ms. `records_a_second` is between these two, so that neither the start of a process nor of a connector counts.
    `target_batch_bytes` is the mean size of the batches at the start of the copy, None if there is none.
    """

    peer: str
    dataset: str
    round: int
    records: int
    record_bytes: int
    busy_cores_before: float
    failure: str | None = None
    start_s: float = 0.0
    wall_s: float = 0.0
    records_a_second: float = 0.0
    cpu_s: float = 0.0
    source_cpu_s: float | None = None
    target_cpu_s: float | None = None
    rss_bytes: int = 0
    target_batch_bytes: float | None = None


def measure(stage: Stage, peer: Peer, filled: Filled, timeout_s: float) -> Figures:
    """Run `peer` once. A run that fails or takes longer than `timeout_s` is a result too: see `failure`.

    Raises PeerUnavailable and KafkaUnavailable when the peer cannot run here at all.
    """
    pair = stage.pair
    targets = Topics(pair.target.bootstrap)
    goal = Topics(pair.source.bootstrap).ends(filled.topic, filled.dataset.partitions)
    targets.create(filled.topic, filled.dataset.partitions)
    job = Job(pair.source.bootstrap, pair.target.bootstrap, filled.topic, filled.dataset.codec)
    busy = wait_until_idle()
    figures = Figures(peer.name, filled.dataset.name, 0, filled.records, filled.record_bytes, busy)
    try:
        _run(stage, peer, _Watch(targets, job, goal, timeout_s, figures))
        if filled.records and not figures.failure:
            copied = inspect(pair.target.bootstrap, filled.topic, filled.dataset)
            figures.target_batch_bytes = round(copied.batch_bytes_mean, 1) if copied else None
    finally:
        targets.delete(filled.topic)
    return figures


def wait_until_idle() -> float:
    """Wait until this machine does next to nothing, or for 20 s; return how many cores were busy at last."""
    deadline = time.monotonic() + _IDLE_TIMEOUT_S
    while True:
        busy = float(psutil.cpu_percent(_IDLE_PROBE_S)) / 100 * (psutil.cpu_count() or 1)
        if busy <= IDLE_CORES_MAX or time.monotonic() > deadline:
            return round(busy, 2)


class _Watch:
    """Looks at the target until everything has arrived, and at the peer's memory on the way."""

    def __init__(self, targets: Topics, job: Job, goal: list[int], timeout_s: float, figures: Figures) -> None:
        self.job = job
        self.figures = figures
        self.started = time.monotonic()
        self.deadline = self.started + timeout_s
        self._targets = targets
        self._goal = goal
        self._sampled = 0.0

    def follow(self, run: Run) -> None:
        """Return when all records are on the target, or with a `failure` in the figures."""
        first: tuple[float, int] | None = None
        while True:
            now, ends = time.monotonic(), self._targets.ends(self.job.topic, len(self._goal))
            if first is None and any(ends):
                first = (now, sum(ends))
                self.figures.start_s = now - self.started
            if all(end >= goal for end, goal in zip(ends, self._goal, strict=True)):
                return self._arrived(now, first)
            if failure := run.failure() or self._too_late(now, ends):
                self.figures.failure = failure
                return None
            self._sample(run, now)
            time.sleep(_POLL_S)

    def check(self) -> None:
        """Fail the run when the target holds more than the source: then records were written twice."""
        extra = sum(self._targets.ends(self.job.topic, len(self._goal))) - sum(self._goal)
        if extra > 0 and not self.figures.failure:
            self.figures.failure = f"{extra} records too many on the target"

    def _arrived(self, now: float, first: tuple[float, int] | None) -> None:
        self.figures.wall_s = now - self.started
        at, count = first or (now, 0)
        carried, seconds = (sum(self._goal) - count, now - at) if now > at else (sum(self._goal), self.figures.wall_s)
        self.figures.records_a_second = carried / seconds if carried else 0.0

    def _too_late(self, now: float, ends: list[int]) -> str | None:
        if now < self.deadline:
            return None
        return f"not finished after {now - self.started:.0f} s: {sum(ends)} of {sum(self._goal)} records arrived"

    def _sample(self, run: Run, now: float) -> None:
        if now - self._sampled > _SAMPLE_S:
            self._sampled = now
            self.figures.rss_bytes = max(self.figures.rss_bytes, run.rss_bytes())
            run.cpu_seconds()  # a program remembers the last figure it saw of its living tree


def _run(stage: Stage, peer: Peer, watch: _Watch) -> None:
    figures, pair = watch.figures, stage.pair
    source, target = pair.source.cpu_seconds(), pair.target.cpu_seconds()
    run = peer.start(stage, watch.job)
    try:
        watch.follow(run)
        if not figures.failure:
            run.settle(watch.deadline)
            figures.failure = run.failure()
        figures.cpu_s = run.cpu_seconds()
        figures.source_cpu_s = _since(source, pair.source.cpu_seconds())
        figures.target_cpu_s = _since(target, pair.target.cpu_seconds())
        watch.check()
    finally:
        run.stop()


def _since(before: float | None, now: float | None) -> float | None:
    return None if before is None or now is None else now - before
