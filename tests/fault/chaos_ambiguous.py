"""Answers that never come: of every seven to a Produce one is lost with its connection, for a very long time."""

from dataclasses import dataclass

from tests.fault.chaos_scene import Fleet, Scene, chaos_config
from tests.fault.chaos_verdict import Outcome, judge
from tests.fault.scene import Pair, log_ends
from tests.harness import witness
from tests.harness.link import UNMERGED
from tests.harness.records import NewRecord

PRODUCE = 0
EVERY = 7
RECORDS_A_BATCH = 2
DROPPED_MIN = 10


@dataclass(frozen=True)
class Ambiguous:
    """A run. There is nothing random in it but when a broker answers."""

    seed: int = 1
    batches: int = 100_000
    partitions: int = 48


def ambiguous(plan: Ambiguous, pair: Pair) -> Outcome:
    """On a pair with proxies. Raises TimeoutError when the copy stands still."""
    print(f"ambiguous: {plan}", flush=True)
    topic = f"chaos-ambiguous-{plan.seed}-{plan.batches}"
    pair.create(topic, plan.partitions)
    _write(plan, pair, topic)
    config = chaos_config(pair, topic, proxied=True, fetch_bytes_max=64 << 10, produce_bytes_max=16 << 10)
    config["links"][0] |= UNMERGED  # or there would be too few requests for their answers to get lost
    fleet, proxy = Fleet(config), pair.target.proxies[0]
    proxy.drop_answers(PRODUCE, EVERY)
    with fleet:
        scene = Scene(pair, fleet, topic, plan.partitions)
        scene.wait_until_level(log_ends(pair.source, topic, scene.partitions))
        dropped, requests = proxy.dropped, proxy.requests[PRODUCE]
        proxy.reset()
    verdict = judge(pair, topic, config)
    copied = sum(len(witness.raw_batches(pair.target.bootstrap, topic, partition)) for partition in scene.partitions)
    assert copied >= plan.batches, f"only {copied} batches were in play"
    assert dropped >= DROPPED_MIN
    assert fleet.told("no answer to a Produce") > 0
    faults = {"batches": copied, "requests": requests, "answers lost": dropped}
    return fleet.outcome("ambiguous", plan.seed, verdict, faults)


def _write(plan: Ambiguous, pair: Pair, topic: str) -> None:
    records = plan.batches * RECORDS_A_BATCH
    wanted = (NewRecord(n % plan.partitions, b"%d" % n, b"%012d" % n) for n in range(records))
    small = {"batch.num.messages": RECORDS_A_BATCH, "linger.ms": 5}
    assert witness.produce(pair.source.bootstrap, topic, wanted, small) == records
