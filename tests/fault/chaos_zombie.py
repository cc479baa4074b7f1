"""A worker that is frozen while it owns lanes, is taken for dead, and wakes when others have gone on with them.

Two supervisors run one link. The frozen worker has requests on its way, which a long link to the target makes more of,
and it wakes with a queue, sequences and connections of the past.
"""

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from replicator.state.reader import StateReader
from replicator.state.records import LaneKey, LaneRecord
from tests.fault.chaos_scene import SESSION_TIMEOUT_MS, Fleet, Scene, chaos_config
from tests.fault.chaos_verdict import Outcome, judge, state_reader
from tests.fault.scene import Pair, Traffic

SHORT_S = (2.3, 4.5)  # noticed by the worker itself (2 s), but not by the group
LATENCIES_S = (0.0, 0.05, 0.3)
AFTER_S = 4.0
LINK_BYTES_PER_S = 200 << 20


@dataclass(frozen=True)
class Zombie:
    """`repeats` freezes beyond the session time-out, each followed by one that is shorter."""

    seed: int = 1
    repeats: int = 20
    partitions: int = 6
    records_per_s: int = 5000


def zombie(plan: Zombie, pair: Pair) -> Outcome:
    """On a pair with proxies. Raises TimeoutError when nobody takes over, or the copy stands still."""
    print(f"zombie: {plan}", flush=True)
    topic = f"chaos-zombie-{plan.seed}-{plan.repeats}"
    pair.create(topic, plan.partitions)
    config = chaos_config(pair, topic, proxied=True)
    fleet = Fleet(config, supervisors=2)
    with fleet:
        scene = Scene(pair, fleet, topic, plan.partitions)
        scene.wait_for_workers(2)
        with Traffic(pair.source, topic, scene.partitions, plan.records_per_s) as traffic:
            frozen_s = _play(plan, scene)
            pair.target.proxies[0].reset()
            scene.wait_until_level(traffic.finish())
    verdict = judge(pair, topic, config)
    faults = {"taken over": plan.repeats, "frozen shortly": plan.repeats, "longest": f"{max(frozen_s):.1f} s"}
    faults["taken for dead"] = fleet.told("was taken for dead")
    assert fleet.told("stood still") >= plan.repeats, "workers noticed that they had been frozen"
    return fleet.outcome("zombie", plan.seed, verdict, faults)


def _play(plan: Zombie, scene: Scene) -> list[float]:
    chance = random.Random(plan.seed)
    frozen_s = []
    with contextlib.closing(state_reader(scene.pair, scene.fleet.link)) as reader:
        for _ in range(plan.repeats):
            for is_long in (True, False):
                latency_s = chance.choice(LATENCIES_S)
                scene.pair.target.proxies[0].link(latency_s, LINK_BYTES_PER_S if latency_s else None)
                scene.wait_for_growth(500)
                owner = _wait_for_shared(scene, reader, chance)
                with _frozen(owner, scene, chance) as began:
                    if is_long:
                        _wait_for_takeover(scene, reader, owner)
                        scene.sleep(chance.uniform(0, 2))
                    else:
                        scene.sleep(chance.uniform(*SHORT_S))
                frozen_s.append(time.monotonic() - began)
                scene.sleep(AFTER_S)
    return frozen_s


def _owners(reader: StateReader, topic: str) -> dict[LaneKey, int]:
    """lane -> process id of the worker that wrote its last record."""
    reader.catch_up()
    return {key: _pid(record) for key, record in reader.lanes.items() if key.topic == topic}


def _pid(record: LaneRecord) -> int:
    return int(record.worker.rsplit(":", 1)[1])


def _wait_for_shared(scene: Scene, reader: StateReader, chance: random.Random) -> int:
    """Waits until both supervisors' workers own lanes, and picks one of them."""

    def both() -> list[int]:
        owners = sorted(set(_owners(reader, scene.topic).values()))
        return owners if len(owners) == 2 and set(owners) <= set(scene.fleet.workers()) else []

    return chance.choice(scene.until(both, "lanes with both workers"))


@contextlib.contextmanager
def _frozen(owner: int, scene: Scene, chance: random.Random) -> Iterator[float]:
    """SIGSTOP of the worker, and now and then of its supervisor, too, as when a machine stands still."""
    supervisors = [each.process.pid for each in scene.fleet.supervisors if each.process and owner in each.workers()]
    victims = [owner, *supervisors] if chance.random() < 0.5 else [owner]
    with ExitStack() as thaw:
        for pid in victims:
            os.kill(pid, signal.SIGSTOP)
            thaw.callback(os.kill, pid, signal.SIGCONT)
        yield time.monotonic()


def _wait_for_takeover(scene: Scene, reader: StateReader, owner: int) -> None:
    """Waits until a lane of the frozen owner has grown on the target by another's hand."""
    lanes = [key for key, pid in _owners(reader, scene.topic).items() if pid == owner]
    assert lanes
    scene.sleep(SESSION_TIMEOUT_MS / 1000 / 2)  # what was on its way when it froze has arrived
    ends = scene.until(lambda: scene.ends(scene.pair.target), "the target")

    def grown() -> bool:
        now = scene.ends(scene.pair.target) or {}
        owners = _owners(reader, scene.topic)
        return any(
            owners[lane] != owner and now.get((lane.topic, lane.partition), 0) > ends[lane.topic, lane.partition]
            for lane in lanes
        )

    scene.until(grown, "another worker to go on with the lanes of the frozen one")
