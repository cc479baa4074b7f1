"""What a chaos run is judged by: both logs as another client reads them, and the offset map against them.

The offset map is checked for every offset of both logs, control batches and the end included: what it must say follows
from the two logs alone, by the obvious rule that the n-th record there is the n-th record here.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from rich import box
from rich.console import Console
from rich.table import Table

from replicator.config.load import parse_bootstrap
from replicator.config.models import Cluster
from replicator.errors import ReplicatorError
from replicator.state.offset_map import OffsetMap
from replicator.state.reader import StateReader
from replicator.state.records import LaneKey
from tests.fault.scene import Pair, first_difference, log_ends
from tests.harness import witness
from tests.harness.records import Dump, Record

CATCH_UP_S = 60
WIDTH_MIN = 150
PROBLEM_LENGTH_MAX = 500

Numbers = npt.NDArray[np.int64]


@dataclass
class Verdict:
    """`clean` is the promise. `moved`: partitions whose records are all there, once, but not in the source's order;
    `map_wrong`: answers of the offset maps that are wrong, of `map_checked`."""

    records: int = 0
    lost: int = 0
    doubled: int = 0
    moved: int = 0
    map_checked: int = 0
    map_wrong: int = 0
    segments: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.moved or self.map_wrong or self.problems)


@dataclass
class Outcome:
    """A run: what was played, what came of it, and what really happened meanwhile."""

    title: str
    seed: int
    verdict: Verdict
    faults: Mapping[str, Any]
    complaints: list[str] = field(default_factory=list)  # what else is not as it should be


def judge(pair: Pair, topic: str, config: dict[str, Any] | None, *, append_time: bool = False) -> Verdict:
    """Compares both whole logs, record by record; their times, too, unless the target puts in its own (`append_time`).

    With the `config` of a link that has ended in order, its offset maps as well.
    """
    originals, copies = witness.dump(pair.source.bootstrap, topic), witness.dump(pair.target.bootstrap, topic)
    verdict = Verdict(sum(map(len, originals.values())))
    for partition, original in originals.items():
        _compare(f"{topic}-{partition}", original, copies.get(partition, []), append_time, verdict)
    if config and verdict.clean:
        _check_maps(pair, topic, config, (originals, copies), verdict)
    return verdict


def _compare(where: str, original: list[Record], copy: list[Record], append_time: bool, verdict: Verdict) -> None:
    plain = {"offset": 0, **({"timestamp_type": "", "timestamp": 0} if append_time else {})}
    left, right = ([record._replace(**plain) for record in log] for log in (original, copy))  # type: ignore[arg-type]
    if left == right:
        return
    lost, doubled = Counter(left) - Counter(right), Counter(right) - Counter(left)
    verdict.lost += lost.total()
    verdict.doubled += doubled.total()
    verdict.moved += not (lost or doubled)
    verdict.problems.append(f"{where}: {first_difference(left, right)}")


# ---- offset maps ----


def _check_maps(pair: Pair, topic: str, config: dict[str, Any], logs: tuple[Dump, Dump], verdict: Verdict) -> None:
    partitions = sorted(logs[0])
    source_ends, target_ends = (log_ends(cluster, topic, partitions) for cluster in (pair.source, pair.target))
    reader = state_reader(pair, config["links"][0]["name"])
    try:
        reader.catch_up(CATCH_UP_S)
        for partition in partitions:
            sides = [np.array([record.offset for record in log[partition]], np.int64) for log in logs]
            ends = (source_ends[topic, partition], target_ends[topic, partition])
            offsets = reader.offset_map(LaneKey(topic, partition))
            problem = _check_map(offsets, sides, ends, verdict)
            if problem:
                verdict.problems.append(f"{topic}-{partition}: {problem}")
    except (ReplicatorError, KeyError) as error:
        verdict.problems.append(f"the offset maps cannot be read: {error!r}")
    finally:
        reader.close()
    if reader.damaged:
        verdict.problems.append(f"{reader.damaged} records of the link's state are damaged: {reader.damage}")


def state_reader(pair: Pair, link: str) -> StateReader:
    """Of what a link keeps on its target. Not by the proxies, which may be full of rules. To be closed."""
    bootstrap = pair.target.bootstrap
    return StateReader(Cluster("target", parse_bootstrap(bootstrap), {"bootstrap.servers": bootstrap}, "witness"), link)


def _check_map(offsets: OffsetMap, sides: list[Numbers], ends: tuple[int, int], verdict: Verdict) -> str:
    """Every question that can be put to a map. Returns the first wrong answer in words."""
    verdict.segments += len(offsets)
    if (offsets.position, offsets.target_next) != ends:
        verdict.map_wrong += 1
        return f"the map ends at {(offsets.position, offsets.target_next)}, the logs at {ends}"
    source, target = sides
    answers = {
        "translate": (offsets.translate_many, _following(source, target, ends)),
        "reverse": (offsets.reverse_many, _following(target, source, ends[::-1])),
    }
    problem = ""
    for what, (ask, due) in answers.items():
        given = ask(np.arange(len(due)))
        wrong = np.flatnonzero(given != due)
        verdict.map_checked += len(due)
        verdict.map_wrong += len(wrong)
        if len(wrong):
            problem = problem or f"{what} of {wrong[0]} says {given[wrong[0]]}, not {due[wrong[0]]}"
    exact = dict(zip(source.tolist(), target.tolist(), strict=True))
    wrong_exact = [offset for offset in range(ends[0]) if offsets.exact(offset) != exact.get(offset)]
    verdict.map_checked += ends[0]
    verdict.map_wrong += len(wrong_exact)
    if wrong_exact:
        at = wrong_exact[0]
        problem = problem or f"exactly {at} is {offsets.exact(at)}, not {exact.get(at)}"
    return problem


def _following(here: Numbers, there: Numbers, ends: tuple[int, int]) -> Numbers:
    """For every offset from 0 to the end of this side's log: where the next record from there on stands on the other
    side; behind the last one, that side's end."""
    due: Numbers = np.append(there, ends[1])[np.searchsorted(here, np.arange(ends[0] + 1))]
    return due


# ---- in print ----


def show(outcomes: list[Outcome]) -> None:
    """A table, a line a run, with everything that is wrong below it."""
    console = Console()
    console = Console(width=max(console.width, WIDTH_MIN))
    table = Table(box=box.SIMPLE)
    for heading in ("run", "seed", "records", "lost", "doubled", "moved", "map checked", "wrong", "segments", "faults"):
        table.add_column(heading, justify="left" if heading in ("run", "faults") else "right")
    for each in outcomes:
        v = each.verdict
        numbers = (each.seed, v.records, v.lost, v.doubled, v.moved, v.map_checked, v.map_wrong, v.segments)
        faults = ", ".join(f"{what}: {count}" for what, count in each.faults.items())
        table.add_row(each.title, *(f"{number:,}" for number in numbers), faults)
    console.print(table)
    for each in outcomes:
        for problem in each.verdict.problems + each.complaints:
            console.print(
                f"{each.title}, seed {each.seed}: {problem[:PROBLEM_LENGTH_MAX]}", highlight=False, markup=False
            )
