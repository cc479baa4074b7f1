"""kill -9 of anything, again and again, while a producer writes and a link copies."""

import random
import time
from contextlib import ExitStack
from dataclasses import dataclass

from tests.fault.chaos_scene import Broker, Fleet, Markers, Scene, chaos_config
from tests.fault.chaos_verdict import Outcome, judge
from tests.fault.scene import Pair, Traffic, backlog
from tests.harness.kafka import NEWEST_4

KINDS = ("worker", "supervisor", "source", "target")
BACKLOG_SHARE = 0.25  # of the records; the others are written while the killing goes on


@dataclass(frozen=True)
class Kill:
    """A run. With `holes` there are control batches all over the source's log."""

    seed: int = 1
    kills: int = 40
    records: int = 2_000_000
    partitions: int = 12
    workers: int = 1
    holes: bool = False
    pauses_s: tuple[float, float] = (2.0, 5.0)
    versions: tuple[str, str] = (NEWEST_4, NEWEST_4)


def kill(plan: Kill) -> Outcome:
    """Raises TimeoutError when the copy stands still, AssertionError when the run itself was not what it should be."""
    print(f"kill: {plan}", flush=True)
    topic = f"chaos-kill-{plan.seed}"
    with Broker(plan.versions[0]) as source, Broker(plan.versions[1]) as target:
        pair = Pair(source, target)
        pair.create(topic, plan.partitions)
        first = int(plan.records * BACKLOG_SHARE)
        backlog(source, topic, first, plan.partitions)
        config = chaos_config(pair, topic, workers=plan.workers)
        fleet = Fleet(config)
        with fleet:
            scene = Scene(pair, fleet, topic, plan.partitions)
            faults = _play(plan, scene, plan.records - first)
        verdict = judge(pair, topic, config)
    assert verdict.records >= plan.records, f"only {verdict.records} records were in play"
    title = f"kill, {plan.workers} worker{'s' * (plan.workers > 1)}{', holes' * plan.holes}"
    return fleet.outcome(title, plan.seed, verdict, faults)


def _play(plan: Kill, scene: Scene, records: int) -> dict[str, object]:
    chance = random.Random(plan.seed)
    victims = [KINDS[n % len(KINDS)] for n in range(plan.kills)]
    chance.shuffle(victims)
    seconds = plan.kills * sum(plan.pauses_s) / 2
    source = scene.pair.source
    scene.wait_for_growth(100)
    with ExitStack() as busy:
        if plan.holes:
            markers = busy.enter_context(Markers(source, scene.topic, scene.partitions))
        traffic = busy.enter_context(Traffic(source, scene.topic, scene.partitions, round(records / seconds)))
        began = time.monotonic()
        for kind in victims:
            scene.sleep(chance.uniform(*plan.pauses_s))
            scene.kill(kind, chance)
        lasted = time.monotonic() - began
        scene.until(lambda: traffic.acknowledged >= records, f"{records} records to be written", 1200)
    scene.until(lambda: scene.ends(source), "the source")
    scene.wait_until_level(traffic.finish())
    _assert_that_it_happened(plan, scene)
    faults: dict[str, object] = {kind: scene.killed[kind] for kind in KINDS}
    faults["every"] = f"{lasted / plan.kills:.1f} s"
    faults["workers seen"] = len(scene.fleet.seen)
    if scene.fleet.exits():
        faults["supervisors that gave up"] = dict(scene.fleet.exits())
    if plan.holes:
        assert markers.written > 10
        faults["control batches"] = markers.written
    return faults


def _assert_that_it_happened(plan: Kill, scene: Scene) -> None:
    killed = scene.killed
    assert killed.total() == plan.kills
    assert all(killed[kind] >= plan.kills // len(KINDS) for kind in KINDS)
    # Each worker that was killed, and all of each supervisor's, were followed by others.
    assert len(scene.fleet.seen) >= plan.workers * (1 + killed["supervisor"]) + killed["worker"]
    # Unless its supervisor was killed before it could say so.
    assert scene.fleet.told("died (signal 9)") >= killed["worker"] - killed["supervisor"]
