"""What chaos runs are made of: brokers that come back at once, supervisors as real processes, and holes in the source.

Nothing here waits for a victim to be well again before the next blow: `tend` starts again whatever has ended, and a run
calls it all the time.
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from confluent_kafka.admin import AdminClient

from replicator.errors import ReplicatorError
from replicator.state.reader import StateReader
from tests.broker.raw import Producer, RawClient
from tests.fault.chaos_verdict import Outcome, Verdict, state_reader
from tests.fault.scene import Pair, log_ends
from tests.harness import tether
from tests.harness.kafka import NEWEST_4, KafkaCluster
from tests.harness.link import link_config
from tests.harness.wire import WireError

Answer = TypeVar("Answer")
Ends = dict[tuple[str, int], int]

SHARDS = 8
SESSION_TIMEOUT_MS = 6_000
TURN_S = 0.05
LOOK_S = 0.5
RESTART_PAUSE_S = 0.5  # of a supervisor that ended by itself, as an operator's service manager would wait
END_GRACE_S = 40.0
STILL_S_MAX = 180.0  # without progress for so long, a run is over
LOG_TAIL_LINES = 25
# Words in a supervisor's log that are never right, whatever is killed.
NEVER_RIGHT = re.compile(r"Traceback|our own fault|died \(exit code|: (?:failed|diverged|recreated|target_lost|gap): ")


class Broker(KafkaCluster):
    """A cluster of one node that is started again without waiting until it is ready."""

    def __init__(self, version: str = NEWEST_4, properties: Mapping[str, str] | None = None, **options: Any) -> None:
        super().__init__(version, properties=properties, **options)

    def tend(self) -> None:
        if not self._nodes[1].alive:
            self._launch(self._nodes[1])


class Supervised:
    """One `replicator run`, started again whenever it ends."""

    def __init__(self, link_file: Path, log: Path) -> None:
        self.link_file = link_file
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None
        self.exits: Counter[int] = Counter()  # by exit code, of those that nobody killed
        self.orphans: set[int] = set()  # workers whose supervisor was killed: they are to end by themselves
        self._restart_at = 0.0
        self._expected = False

    def tend(self) -> None:
        if self.process is not None and self.process.poll() is not None:
            code, self.process = self.process.returncode, None
            if not self._expected:
                self.exits[code] += 1
                self._restart_at = time.monotonic() + RESTART_PAUSE_S
            self._expected = False
        if self.process is None and time.monotonic() >= self._restart_at:
            with self.log.open("ab") as log:
                command = [sys.executable, "-m", "replicator", "run", "--verbose", str(self.link_file)]
                self.process = tether.spawn(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def workers(self) -> list[int]:
        """Process ids of its workers that live."""
        return workers_of(self.process.pid) if self.process else []

    def kill(self) -> bool:
        """SIGKILL; True if it ran, and had workers."""
        if self.process is None or self.process.poll() is not None:
            return False
        workers = self.workers()
        self.orphans |= set(workers)
        self._expected = True
        self.process.kill()
        self.process.wait()
        return bool(workers)

    def end(self) -> int:
        """SIGTERM, and its exit code."""
        if self.process is None:
            return 0
        tether.end(self.process, END_GRACE_S)
        return self.process.returncode


class Fleet:
    """Supervisors that run one link. A context manager; ends them in order if its block ends in order."""

    def __init__(self, config: dict[str, Any], supervisors: int = 1) -> None:
        self.link: str = config["links"][0]["name"]
        self.folder = Path(tempfile.mkdtemp(prefix="chaos-"))
        link_file = self.folder / "link.yaml"
        link_file.write_text(json.dumps(config))  # every JSON text is YAML
        logs = (self.folder / f"supervisor-{number}.log" for number in range(supervisors))
        self.supervisors = [Supervised(link_file, log) for log in logs]
        self.seen: set[int] = set()  # workers that ran: those that lived long enough to be noticed
        self._looked_at = 0.0
        self.exit_codes: list[int] = []

    def __enter__(self) -> Self:
        self.tend()
        return self

    def __exit__(self, failed: type[BaseException] | None, *_exc: object) -> None:
        for each in self.supervisors:
            for pid in each.workers():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            if failed and each.process:
                each.process.kill()
        if not failed:
            self.exit_codes = [each.end() for each in self.supervisors]
        self._wait_for_orphans()

    def _wait_for_orphans(self) -> None:
        orphans = {pid for each in self.supervisors for pid in each.orphans}
        deadline = time.monotonic() + END_GRACE_S
        while left := orphans & set(all_workers()):
            assert time.monotonic() < deadline, f"workers {left} live on without their supervisor"
            time.sleep(TURN_S)

    def tend(self) -> None:
        for each in self.supervisors:
            each.tend()
        if time.monotonic() - self._looked_at > LOOK_S:
            self._looked_at = time.monotonic()
            self.workers()

    def workers(self) -> list[int]:
        found = [pid for each in self.supervisors for pid in each.workers()]
        self.seen |= set(found)
        return found

    def exits(self) -> Counter[int]:
        """Of supervisors that nobody killed, by exit code."""
        return sum((each.exits for each in self.supervisors), Counter())

    def outcome(self, title: str, seed: int, verdict: Verdict, faults: Mapping[str, Any]) -> Outcome:
        """Of a run that has ended; the logs stay if there is anything to read in them."""
        outcome = Outcome(title, seed, verdict, faults, self.complaints())
        if outcome.complaints or not verdict.clean:
            outcome.complaints.append(f"logs in {self.folder}")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
        return outcome

    def complaints(self) -> list[str]:
        """What no fault from outside explains: lines of the logs, and exit codes of the end."""
        lines = (line for each in self.supervisors for line in each.log.read_text(errors="replace").splitlines())
        complaints = [f"in the log: {line}" for line in lines if NEVER_RIGHT.search(line)]
        return complaints + [f"a supervisor that was told to end gave {code}" for code in self.exit_codes if code]

    def tail(self) -> str:
        """The last lines of every log."""
        tails = (each.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:] for each in self.supervisors)
        return "\n".join(line for tail in tails for line in ["---", *tail])

    def told(self, words: str) -> int:
        """In how many lines of the logs these words stand."""
        return sum(each.log.read_text(errors="replace").count(words) for each in self.supervisors)


def workers_of(supervisor: int) -> list[int]:
    return [pid for pid, parent in all_workers().items() if parent == supervisor]


def all_workers() -> dict[int, int]:
    """Process id -> parent's, of every worker on this machine that is no zombie, in the kernel's sense."""
    rows = subprocess.check_output(["ps", "-A", "-ww", "-o", "pid=,ppid=,stat=,args="], text=True).splitlines()
    fields = (row.split(None, 3) for row in rows if "replicator.data.worker" in row)
    return {int(pid): int(parent) for pid, parent, state, _ in fields if not state.startswith("Z")}


class Scene:
    """Brokers and fleet of one run, tended together."""

    def __init__(self, pair: Pair, fleet: Fleet, topic: str, partitions: int) -> None:
        self.pair = pair
        self.fleet = fleet
        self.topic = topic
        self.partitions = range(partitions)
        self.killed: Counter[str] = Counter()

    def tend(self) -> None:
        for broker in (self.pair.source, self.pair.target):
            if isinstance(broker, Broker):
                broker.tend()
        self.fleet.tend()

    def sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.tend()
            time.sleep(TURN_S)

    def until(self, check: Callable[[], Answer | None], what: str, timeout_s: float = STILL_S_MAX) -> Answer:
        """The first answer that is true. Raises TimeoutError with the ends of the logs."""
        deadline = time.monotonic() + timeout_s
        while not (answer := check()):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"waited {timeout_s:g} s for {what}; logs in {self.fleet.folder}:{self.fleet.tail()}"
                )
            self.sleep(TURN_S)
        return answer

    def ends(self, cluster: KafkaCluster) -> Ends | None:
        """The log end of every partition; None while the broker does not answer."""
        with contextlib.suppress(OSError, WireError, AssertionError, KeyError, StopIteration, EOFError):
            return log_ends(cluster, self.topic, self.partitions)
        return None

    def wait_for_workers(self, count: int) -> None:
        self.until(lambda: len(self.fleet.workers()) == count, f"{count} workers")

    def target_end(self) -> int:
        """Of all partitions together; 0 while the broker does not answer."""
        return sum((self.ends(self.pair.target) or {}).values())

    def wait_for_growth(self, records: int = 200, timeout_s: float = STILL_S_MAX) -> None:
        """Waits until the target's log has grown by so much from here."""
        begin = self.until(lambda: self.ends(self.pair.target), "the target's answer", timeout_s)
        due = sum(begin.values()) + records
        self.until(lambda: self.target_end() >= due, f"{records} more records on the target", timeout_s)

    def wait_until_level(self, due: Ends) -> None:
        """Waits until the link says that it has come to these ends of the source, as long as anything moves."""
        seen: tuple[object, ...] = ()
        moved_at = time.monotonic()
        with contextlib.closing(state_reader(self.pair, self.fleet.link)) as reader:
            while short := self._short(reader, due):
                now = (short, self.target_end())
                if now != seen:
                    seen, moved_at = now, time.monotonic()
                if time.monotonic() - moved_at > STILL_S_MAX:
                    what = f"nothing came for {STILL_S_MAX:g} s; partition: (position, due) {short}"
                    raise TimeoutError(f"{what}; logs in {self.fleet.folder}:{self.fleet.tail()}")
                self.sleep(0.5)

    def _short(self, reader: StateReader, due: Ends) -> dict[int, tuple[int, int]]:
        """partition -> (position, due) of the lanes that are not there yet."""
        with contextlib.suppress(ReplicatorError):  # what was read before stands
            reader.catch_up(10)
        positions = {(key.topic, key.partition): record.position for key, record in reader.lanes.items()}
        found = {key: positions.get(key, -1) for key in due}
        return {key[1]: (found[key], end) for key, end in due.items() if found[key] < end}

    # ---- blows ----

    def kill(self, kind: str, chance: random.Random) -> None:
        """kill -9 of a `worker`, a `supervisor`, or the broker of the `source` or `target`, once there is one."""
        match kind:
            case "worker":
                pids = self.until(self.fleet.workers, "a worker to kill")
                os.kill(chance.choice(pids), signal.SIGKILL)
            case "supervisor":
                self.until(self.fleet.workers, "a supervisor with workers")
                self.until(chance.choice(self.fleet.supervisors).kill, "a supervisor to kill")
            case "source" | "target":
                broker: KafkaCluster = getattr(self.pair, kind)
                broker.kill()
        self.killed[kind] += 1
        self.tend()


class Markers:
    """Puts control batches into the source's log all the time, so that its offsets have holes: a context manager."""

    def __init__(self, cluster: KafkaCluster, topic: str, partitions: Sequence[int], pause_s: float = 0.05) -> None:
        self._cluster = cluster
        self._topic = topic
        self._partitions = partitions
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="markers", daemon=True)
        self.written = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._stop.wait(self._pause_s):
            # The broker may be dead, or about to die.
            with contextlib.suppress(OSError, AssertionError, TimeoutError), RawClient(self._cluster) as client:
                self._mark(client, client.init_producer())

    def _mark(self, client: RawClient, producer: Producer) -> None:
        while not self._stop.wait(self._pause_s):
            client.mark_commit(self._topic, producer, self._partitions[self.written % len(self._partitions)])
            self.written += 1


def chaos_config(pair: Pair, topic: str, *, proxied: bool = False, workers: int = 1, **limits: Any) -> dict[str, Any]:
    """A link of few shards for one topic that goes straight to the brokers, or through their proxies."""
    source, target = (c.proxied_bootstrap if proxied else c.bootstrap for c in (pair.source, pair.target))
    link = {"shards": SHARDS, "session_timeout_ms": SESSION_TIMEOUT_MS}
    return link_config(source, target, re.escape(topic), workers=workers, link=link, limits=limits)


def group_members(cluster: KafkaCluster, group: str) -> dict[str, int]:
    """How many shards each member of a link's group has."""
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap, "log_level": 0})
    found = admin.describe_consumer_groups([group], request_timeout=10)[group].result(10)
    return {member.member_id: len(member.assignment.topic_partitions) for member in found.members}
