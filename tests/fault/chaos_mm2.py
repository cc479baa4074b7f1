"""One kill -9 in the middle of a copy: what it costs with us, and with MirrorMaker 2.

Both run through the same slow link to the target, so that there is a middle to be killed in, and are started again at
once. MirrorMaker 2 runs in a Connect worker, which finds its connector and its committed source offsets again.
"""

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.job import Job
from bench.rivals import mm2 as rival
from tests.fault.chaos_scene import STILL_S_MAX, Broker, Fleet, Scene, chaos_config
from tests.fault.chaos_verdict import Outcome, judge
from tests.fault.scene import Pair, backlog, log_ends
from tests.harness.kafka import NEWEST_4, KafkaCluster

LINK_BYTES_PER_S = 25 << 20
QUIET_S = 45.0  # nothing more comes


@dataclass(frozen=True)
class Mm2:
    """A copy of `records`, killed when half of them are on the target."""

    seed: int = 1
    records: int = 2_000_000
    partitions: int = 12


class _Worker(rival.ConnectWorker):
    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def mm2(plan: Mm2) -> list[Outcome]:
    """Ours and theirs. Raises KafkaUnavailable, TimeoutError."""
    print(f"mm2: {plan}", flush=True)
    with Broker() as source, KafkaCluster(NEWEST_4, proxied=True) as target:
        pair = Pair(source, target)
        target.proxies[0].link(0.001, LINK_BYTES_PER_S)
        return [_ours(plan, pair), _theirs(plan, pair)]


def _prepare(plan: Mm2, pair: Pair, topic: str) -> None:
    pair.create(topic, plan.partitions)
    backlog(pair.source, topic, plan.records, plan.partitions)


def _ours(plan: Mm2, pair: Pair) -> Outcome:
    topic = "chaos-mm2-ours"
    _prepare(plan, pair, topic)
    config = chaos_config(pair, topic)
    config["clusters"]["target"]["bootstrap.servers"] = pair.target.proxied_bootstrap
    fleet = Fleet(config)
    with fleet:
        scene = Scene(pair, fleet, topic, plan.partitions)
        scene.until(lambda: scene.target_end() >= plan.records // 2, "half of the records")
        at = scene.target_end()
        scene.until(fleet.supervisors[0].kill, "a supervisor with its workers to kill")
        scene.wait_until_level(log_ends(pair.source, topic, scene.partitions))
    faults = {"killed at": at, "times": 1}
    return fleet.outcome("ours", plan.seed, judge(pair, topic, config), faults)


def _theirs(plan: Mm2, pair: Pair) -> Outcome:
    topic = "chaos-mm2-theirs"
    _prepare(plan, pair, topic)
    job = Job(pair.source.bootstrap, pair.target.proxied_bootstrap, topic, "none")

    def end() -> int:
        return sum(log_ends(pair.target, topic, range(plan.partitions)).values())

    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        first = _Worker(pair.target.bootstrap, folder)
        cleanup.callback(first.close)
        first.mirror(job, rival.DEFAULTS)
        _wait(lambda: end() >= plan.records // 2, "half of the records")
        at = end()
        first.kill()
        second = _Worker(pair.target.bootstrap, folder)
        cleanup.callback(second.close)
        _wait(lambda: end() >= plan.records, "all records")
        _wait_until_quiet(end)
    return Outcome("MirrorMaker 2", plan.seed, judge(pair, topic, None), {"killed at": at, "times": 1})


def _wait(check: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 2 * STILL_S_MAX
    while not check():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited in vain for {what} from MirrorMaker 2")
        time.sleep(0.1)


def _wait_until_quiet(end: Callable[[], int]) -> None:
    seen, since = end(), time.monotonic()
    while time.monotonic() - since < QUIET_S:
        time.sleep(1)
        if (now := end()) != seen:
            seen, since = now, time.monotonic()
