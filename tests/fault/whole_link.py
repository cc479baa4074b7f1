"""A link as a program that dies as a whole: `replicator run` and its workers, all killed at once while they copy.

What the copy must be then is said by two lists: what the link was to write of the source before it died, and what it is
to write since. Somewhere between two records lies the line; nobody knows where, but there is one.
"""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from replicator.errors import ReplicatorError
from replicator.state.records import LaneKey
from tests.broker.admin import end_offset
from tests.broker.copies import Pair
from tests.broker.special_logs import number_of
from tests.broker.visible import Pairs, content, state_reader
from tests.fault.chaos_scene import NEVER_RIGHT, Supervised, all_workers
from tests.harness.kafka import KafkaCluster
from tests.harness.link import link_config
from tests.harness.records import Record
from tests.harness.waiting import eventually
from tests.harness.wire import WireError

SLOW_BYTES_PER_S = 30_000
DIED_IN_S = 20
ARRIVED_IN_S = 40
PAUSE_S = 0.02
LOG_TAIL = 2_000  # characters


class WholeLink:
    """One link from the source to the target's proxy, of a name of its own."""

    def __init__(self, pair: Pair, topic: str, folder: Path, limits: dict[str, Any] | None = None) -> None:
        # Little at a time, so that it can be killed between two pieces.
        self.limits = {"fetch_bytes_max": 4_096, "produce_bytes_max": 4_096, "lane_bytes_max": 16_384, **(limits or {})}
        self.pair, self.topic = pair, topic
        self.file, self.log = folder / "link.yaml", folder / "run.log"
        self.log.touch()
        self.config = link_config(pair.source.bootstrap, pair.target.proxied_bootstrap, topic, limits=self.limits)
        self.name: str = self.config["links"][0]["name"]

    @contextmanager
    def running(self, **options: Any) -> Iterator[Supervised]:
        """With these options of the link. It is killed, and all its workers with it, where the block ends. A member
        that dies so is missed for as long as the brokers' shortest session timeout: 6 s."""
        self.config["links"][0] |= options
        self.file.write_text(json.dumps(self.config))
        program = Supervised(self.file, self.log)
        program.tend()
        try:
            yield program
        finally:
            kill_everything(program)

    def ended_in_order(self, program: Supervised) -> None:
        assert program.end() == 0, self.log.read_text()[-LOG_TAIL:]

    def copied(self, partition: int = 0) -> int:
        """Records on the target; 0 as long as there is no such topic."""
        with contextlib.suppress(WireError):
            return end_offset(self.pair.target, self.topic, partition)
        return 0

    def die_in_the_middle(self, records: int, times: int = 1, **options: Any) -> None:
        """Again and again: killed when so many more records are on the target, over a network that is slow."""
        for _ in range(times):
            due = self.copied() + records
            slow(self.pair.target)
            with self.running(**options):
                self.wait_for(lambda at_least=due: self.copied() >= at_least, f"{due} records")  # type: ignore[misc]
            quick(self.pair.target)

    def finish(self, ends: dict[int, int], **options: Any) -> None:
        """Comes back, and is ended in order when its state says that it has come to these ends, by partition."""

        with closing(state_reader(self.pair.target, self.name)) as reader, self.running(**options) as program:

            def arrived() -> bool:
                with contextlib.suppress(ReplicatorError):  # there is no state yet
                    reader.catch_up(10)
                lanes = {part: reader.lanes.get(LaneKey(self.topic, part)) for part in ends}
                return all((lane := lanes[part]) is not None and lane.position >= end for part, end in ends.items())

            self.wait_for(arrived, f"{ends}")
            self.ended_in_order(program)

    def wait_for(self, check: Callable[[], bool], what: str) -> None:
        """An AssertionError with the log's last lines as soon as a lane has failed, or when the time is over."""
        deadline = time.monotonic() + ARRIVED_IN_S
        while not check():
            said = self.log.read_text(errors="replace")
            assert not NEVER_RIGHT.search(said), said[-LOG_TAIL:]
            assert time.monotonic() < deadline, f"waited {ARRIVED_IN_S} s for {what}:\n{said[-LOG_TAIL:]}"
            time.sleep(PAUSE_S)


def slow(cluster: KafkaCluster) -> None:
    cluster.proxies[0].link(bytes_per_second=SLOW_BYTES_PER_S)


def quick(cluster: KafkaCluster) -> None:
    cluster.proxies[0].reset()


def kill_everything(program: Supervised) -> None:
    """SIGKILL to the supervisor and to the workers that it had; returns when all are gone."""
    workers = set(program.workers()) | program.orphans
    program.kill()
    for pid in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    eventually(lambda: not workers & all_workers().keys(), "the end of the workers", DIED_IN_S)


def joined(before: Sequence[Record], since: Sequence[Record], copies: Sequence[Record]) -> tuple[Pairs, int]:
    """(where each copy's original stands, how many of the copies may be from before).

    An AssertionError unless the copies are, for some offset, all of `before` below it and all of `since` from it on:
    nothing lost, nothing twice, nothing changed, and in order.
    """
    originals = {number_of(record): record for record in (*before, *since)}
    numbers = [number_of(copy) for copy in copies]
    doubled = len(numbers) - len(set(numbers))
    assert not doubled, f"{doubled} are there twice"
    unknown = set(numbers) - originals.keys()
    assert not unknown, f"{len(unknown)} should not be there, such as {min(unknown)}"
    cuts = sorted({0, *(record.offset + 1 for record in (*before, *since))}, reverse=True)
    cut = next((cut for cut in cuts if numbers == _numbers(before, since, cut)), None)
    assert cut is not None, _complaint(before, since, numbers)
    for copy in copies:
        assert content(copy) == content(originals[number_of(copy)])
    pairs = tuple((originals[number].offset, copy.offset) for number, copy in zip(numbers, copies, strict=True))
    return pairs, sum(source < cut for source, _ in pairs)


def _numbers(before: Sequence[Record], since: Sequence[Record], cut: int) -> list[int]:
    first = [number_of(record) for record in before if record.offset < cut]
    return first + [number_of(record) for record in since if record.offset >= cut]


def _complaint(before: Sequence[Record], since: Sequence[Record], numbers: list[int]) -> str:
    both = {number_of(record) for record in before} & {number_of(record) for record in since}
    lost = both - set(numbers)
    first = (
        next((n for n, number in enumerate(numbers) if number != number_of(before[n])), len(numbers)) if before else 0
    )
    return f"{len(numbers)} copies, lost of those wanted before and since: {sorted(lost)[:10]}; as before up to {first}"
