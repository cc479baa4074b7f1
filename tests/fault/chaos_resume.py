"""How long a lane stands still after a crash: from the group's gift of its shard to a new record on the target."""

import itertools
import os
import random
import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from replicator.state.records import group_id
from tests.fault.chaos_scene import STILL_S_MAX, Ends, Fleet, Scene, chaos_config
from tests.fault.chaos_verdict import Outcome, judge
from tests.fault.scene import Pair, Traffic, backlog, log_ends

BOUND_S = 5.0
RECORDS_PER_S = 2000
PAUSES_S = (1.0, 3.0)


@dataclass(frozen=True)
class Resume:
    """Crashes after so many records in all were copied: `repeats` of a worker, and as many of a supervisor."""

    seed: int = 1
    records: tuple[int, ...] = (10_000, 2_000_000)
    partitions: int = 4
    repeats: int = 4


def resume(plan: Resume, pair: Pair) -> list[Outcome]:
    """One outcome for each number of records, with `slowest_s` among its faults."""
    print(f"resume: {plan}", flush=True)
    return [_after(plan, pair, records) for records in plan.records]


def _after(plan: Resume, pair: Pair, records: int) -> Outcome:
    topic = f"chaos-resume-{plan.seed}-{records}"
    pair.create(topic, plan.partitions)
    backlog(pair.source, topic, records, plan.partitions)
    config = chaos_config(pair, topic)
    fleet, chance = Fleet(config), random.Random(plan.seed)
    took: list[float] = []
    with fleet, ExitStack() as busy:
        scene = Scene(pair, fleet, topic, plan.partitions)
        scene.wait_until_level(log_ends(pair.source, topic, scene.partitions))
        traffic = busy.enter_context(Traffic(pair.source, topic, scene.partitions, RECORDS_PER_S))
        for kind in ["worker", "supervisor"] * plan.repeats:
            scene.wait_for_growth()
            scene.sleep(chance.uniform(*PAUSES_S))
            took.append(_measure(scene, kind))
        busy.close()
        scene.wait_until_level(traffic.finish())
    verdict = judge(pair, topic, config)
    worker, supervisor = took[::2], took[1::2]
    faults: dict[str, Any] = {"worker": len(worker), "supervisor": len(supervisor), "slowest_s": round(max(took), 2)}
    faults |= {"worker_s": _spelled(worker), "supervisor_s": _spelled(supervisor)}
    return fleet.outcome(f"resume after {records:,}", plan.seed, verdict, faults)


def _spelled(seconds: list[float]) -> str:
    return " ".join(f"{each:.2f}" for each in sorted(seconds))


def _measure(scene: Scene, kind: str) -> float:
    """Kills, and returns the seconds of the slowest partition.

    Never less than it was: the clock starts at the last look at which the group had not given anything yet.
    """
    admin = AdminClient({"bootstrap.servers": scene.pair.target.bootstrap, "log_level": 0})
    group = group_id(scene.fleet.link)
    before = set(_owners(admin, group))
    assert before
    if kind == "worker":
        (pid,) = scene.until(scene.fleet.workers, "a worker")
        os.kill(pid, signal.SIGKILL)
    else:
        assert scene.fleet.supervisors[0].kill()
    began, given_at = time.monotonic(), 0.0
    ends: Ends = {}
    waiting = {(scene.topic, partition) for partition in scene.partitions}
    for _ in itertools.count():
        assert time.monotonic() - began < STILL_S_MAX, f"the copy did not go on:{scene.fleet.tail()}"
        scene.tend()
        if not given_at:
            asked_at, ends = time.monotonic(), scene.ends(scene.pair.target) or ends
            given_at = asked_at if set(_owners(admin, group)) - before else 0.0
            continue
        now = scene.ends(scene.pair.target) or {}
        waiting -= {key for key in waiting if now.get(key, 0) > ends[key]}
        if not waiting:
            break
    return time.monotonic() - given_at


def _owners(admin: AdminClient, group: str) -> list[str]:
    """Members that have shards."""
    try:
        found = admin.describe_consumer_groups([group], request_timeout=10)[group].result(10)
    except KafkaException:
        return []
    return [member.member_id for member in found.members if member.assignment.topic_partitions]
