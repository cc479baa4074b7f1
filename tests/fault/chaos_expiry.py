"""Where nothing but our own care keeps records from being doubled: a broker that forgets who wrote.

It forgets a producer whose last record is old, and then takes any sequence: back-dated data, or short expiry. And
where the target puts in its own times (LogAppendTime), an answer does not tell that a batch was there already. On both,
workers are killed and answers to Produce are lost.
"""

import os
import random
import signal
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from tests.fault.chaos_scene import Broker, Fleet, Markers, Scene, chaos_config
from tests.fault.chaos_verdict import Outcome, judge
from tests.fault.scene import Pair, Traffic
from tests.harness import witness
from tests.harness.kafka import KafkaCluster
from tests.harness.proxy import FaultProxy

PRODUCE = 0
TWO_DAYS_MS = 2 * 24 * 3600 * 1000
PAUSES_S = (0.3, 4.0)
DROPPED_MIN = 5  # answers, between two kills

# How old records are, settings of the target's broker, settings of the target topic. A producer of such records is
# forgotten at once, or, by its clock, as soon as it has been silent for a moment.
CASES: dict[str, tuple[int, dict[str, str], dict[str, str]]] = {
    "back-dated": (TWO_DAYS_MS, {"producer.id.expiration.check.interval.ms": "1"}, {}),
    "append-time": (0, {}, {"message.timestamp.type": "LogAppendTime"}),
    "append-time, forgetful": (
        0,
        {"producer.id.expiration.ms": "200", "producer.id.expiration.check.interval.ms": "20"},
        {"message.timestamp.type": "LogAppendTime"},
    ),
}


@dataclass(frozen=True)
class Expiry:
    """A run. With `holes` there are control batches all over the source's log."""

    case: str = "back-dated"
    seed: int = 1
    kills: int = 20
    partitions: int = 4
    records_per_s: int = 8000
    every: int = 5  # so many answers to Produce, and one of them is lost
    holes: bool = False


def expiry(plan: Expiry) -> Outcome:
    """Raises TimeoutError when the copy stands still."""
    print(f"expiry: {plan}", flush=True)
    _, properties, _ = CASES[plan.case]
    with Broker() as source, KafkaCluster(source.version, properties=properties, proxied=True) as target:
        return _on(plan, Pair(source, target))


def _on(plan: Expiry, pair: Pair) -> Outcome:
    age_ms, _, settings = CASES[plan.case]
    topic = f"chaos-expiry-{plan.seed}"
    witness.create_topic(pair.source.bootstrap, topic, plan.partitions)
    witness.create_topic(pair.target.bootstrap, topic, plan.partitions, settings)
    config = chaos_config(pair, topic, proxied=False)
    config["clusters"]["target"]["bootstrap.servers"] = pair.target.proxied_bootstrap
    fleet = Fleet(config)
    proxy = pair.target.proxies[0]
    with fleet, ExitStack() as busy:
        scene = Scene(pair, fleet, topic, plan.partitions)
        if plan.holes:
            busy.enter_context(Markers(pair.source, topic, scene.partitions))
        traffic = busy.enter_context(Traffic(pair.source, topic, scene.partitions, plan.records_per_s, age_ms=age_ms))
        scene.wait_for_growth()
        proxy.drop_answers(PRODUCE, plan.every)
        _play(plan, scene)
        dropped = proxy.dropped
        proxy.reset()
        busy.close()
        scene.wait_until_level(traffic.finish())
    verdict = judge(pair, topic, config, append_time=bool(settings))
    faults: dict[str, Any] = {"worker": scene.killed["worker"], "answers lost": dropped}
    return fleet.outcome(f"expiry, {plan.case}{', holes' * plan.holes}", plan.seed, verdict, faults)


def _play(plan: Expiry, scene: Scene) -> None:
    chance, proxy = random.Random(plan.seed), scene.pair.target.proxies[0]
    for _ in range(plan.kills):
        _wait_for_drops(scene, proxy, proxy.dropped + DROPPED_MIN)
        scene.sleep(chance.uniform(*PAUSES_S))
        (pid,) = scene.until(scene.fleet.workers, "a worker")
        os.kill(pid, signal.SIGKILL)
        scene.killed["worker"] += 1
        scene.wait_for_growth()


def _wait_for_drops(scene: Scene, proxy: FaultProxy, due: int) -> None:
    scene.until(lambda: proxy.dropped >= due, "lost answers")
