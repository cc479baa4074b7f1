"""Our own processes die, freeze, or meet a target that takes nothing."""

import os
import random
import re
import signal
import subprocess
import time

import pytest

from tests.fault.scene import Journal, Pair, Traffic, assert_same_log, backlog, wait_for_progress
from tests.harness.link import RunningLink
from tests.harness.waiting import eventually

pytestmark = pytest.mark.broker

PARTITIONS = 4
MIB = 1 << 20


def _kill_at_random(link: RunningLink, seed: int, times: int) -> None:
    """Each time the supervisor has to bring up another process, which has to find its place in both logs."""
    chance = random.Random(seed)
    print(f"seed {seed}")
    for _ in range(times):
        (pid,) = eventually(link.worker_pids, "a worker")
        # From before it has read its first order to well into the copy.
        time.sleep(chance.choice([0.05, 0.3, 0.5, 0.7, 1.0, 1.5]))
        os.kill(pid, signal.SIGKILL)
        eventually(lambda pid=pid: link.worker_pids() not in ([pid], []), "another worker")


def _copy_while_workers_die(pair: Pair, topic: str, seed: int, times: int) -> None:
    pair.create(topic, PARTITIONS)
    with (
        RunningLink(pair.config(re.escape(topic))) as link,
        Traffic(pair.source, topic, range(PARTITIONS), records_per_s=5000) as traffic,
    ):
        wait_for_progress(link, topic)
        _kill_at_random(link, seed, times)
        assert link.supervisor.workers[0].restarts == times
        wait_for_progress(link, topic)
        link.wait_until_copied(traffic.finish())
    assert_same_log(pair, topic, records_min=5000)


def test_a_worker_that_is_killed_again_and_again(pair: Pair, topic_name: str) -> None:
    _copy_while_workers_die(pair, topic_name, seed=20_261, times=2)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(5))
def test_a_worker_that_is_killed_ten_times(pair: Pair, topic_name: str, seed: int) -> None:
    _copy_while_workers_die(pair, topic_name, seed, times=10)


def test_a_worker_that_is_frozen(pair: Pair, topic_name: str) -> None:
    """When it wakes, the times of all its requests are over, and the answers are there all the same."""
    pair.create(topic_name, PARTITIONS)
    with (
        RunningLink(pair.config(re.escape(topic_name), timeout_ms=1000)) as link,
        Traffic(pair.source, topic_name, range(PARTITIONS), records_per_s=5000) as traffic,
    ):
        wait_for_progress(link, topic_name)
        (pid,) = link.worker_pids()
        os.kill(pid, signal.SIGSTOP)
        try:
            stood_at = link.checkpoint(topic_name)
            time.sleep(2.5)
            assert link.checkpoint(topic_name) == stood_at
        finally:
            os.kill(pid, signal.SIGCONT)
        wait_for_progress(link, topic_name)
        assert link.worker_pids() == [pid]
        link.wait_until_copied(traffic.finish())
    assert_same_log(pair, topic_name, records_min=5000)


def _resident_mib(pid: int) -> float:
    return int(subprocess.check_output(["ps", "-o", "rss=", "-p", str(pid)])) / 1024


def test_memory_while_the_target_takes_nothing(pair: Pair, journal: Journal, topic_name: str) -> None:
    """A backlog many times the credit stands behind a stalled target: what is held in memory is the credit, no more."""
    credit_mib, backlog_mib = 16, 128
    pair.create(topic_name, PARTITIONS)
    pair.create(f"{topic_name}-first")
    backlog(pair.source, topic_name, backlog_mib * 1024, PARTITIONS, size=1024)
    limits = {"credit_bytes": credit_mib * MIB, "lane_bytes_max": 8 * MIB}
    pair.target.proxies[0].link(bytes_per_second=MIB)
    with RunningLink(pair.config(f"{re.escape(topic_name)}(-first)?", limits=limits)) as link:
        wait_for_progress(link, topic_name, records=100)
        (pid,) = link.worker_pids()
        pair.target.proxies[0].blackhole(True)
        eventually(lambda: _queued_mib(link, topic_name) > 3, "lanes that are full")
        seen = []
        for _ in range(20):
            time.sleep(0.1)
            seen.append(_resident_mib(pid))
        pair.target.proxies[0].reset()
        wait_for_progress(link, topic_name, records=1000)
        seen.append(_resident_mib(pid))
        print(f"resident: {min(seen):.0f} to {max(seen):.0f} MiB")
        assert max(seen) < 80 + credit_mib
        link.wait_until_copied({(topic_name, n): backlog_mib * 1024 // PARTITIONS for n in range(PARTITIONS)}, 90)
        assert _resident_mib(pid) < 80 + credit_mib
    assert_same_log(pair, topic_name, records_min=backlog_mib * 1024)


def _queued_mib(link: RunningLink, topic: str) -> float:
    return sum(link.counter("queued_bytes", topic, partition) for partition in range(PARTITIONS)) / MIB
