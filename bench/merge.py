"""Question: what is merging worth, to the copy and to the target broker?

Two comparisons on one pair of brokers, measured as `compare` measures:

* one partition of batches of one 1 KB record each, merged (the default) beside the same link with merging off. Bars: 10
  times the rate, a fifth of the target broker's CPU;
* eight partitions of batches of 16 KB, beside librdkafka's loop in C, which makes batches of up to 1 MB. Bars: 1.3
  times the rate, no more of the target broker's CPU, half of the loop's own CPU.

The own CPU of a copy has its start in it, of Python and of as many workers as there are; `less start-up` has not.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bench import compare
from bench.compare import Plan, Row, Seen, Tell
from bench.datasets import DATA_SETS, DataSet
from bench.peers import PEERS, Peer, Stage
from bench.spread import Spread

SINGLE = DataSet("1k-none-single", 1024, "none", 1 << 10, partitions=1)
SINGLE_SCALE = 0.2  # a batch a record is slow to write, and slower to copy unmerged
SMALL = tuple(name for name in DATA_SETS if name.endswith("-16k"))


@dataclass(frozen=True)
class Question:
    """Two peers on some data. `bars` are of the first one's figure over the second one's, by the figure's name: at
    least so much, or, of costs, at most."""

    name: str
    peers: tuple[Peer, Peer]
    sets: tuple[DataSet, ...]
    scale: float
    bars: Mapping[str, float]

    def plan(self, runs: int, scale: float, timeout_s: float) -> Plan:
        return Plan(self.peers, self.sets, runs, self.scale * scale, timeout_s)


QUESTIONS = {
    question.name: question
    for question in (
        Question(
            "merged-or-not",
            (PEERS["ours-merging"], PEERS["ours-not-merging"]),
            (SINGLE,),
            SINGLE_SCALE,
            {"mb_a_second": 10.0, "target_cpu_s_per_gb": 0.2},
        ),
        Question(
            "beside-librdkafka",
            (PEERS["ours"], PEERS["librdkafka-c"]),
            tuple(DATA_SETS[name] for name in SMALL),
            1.0,
            {"mb_a_second": 1.3, "target_cpu_s_per_gb": 1.0, "cpu_s_per_gb": 0.5, "cpu_s_per_gb_running": 0.5},
        ),
    )
}

Asked = list[tuple[Question, Plan, Seen]]


def ask(asked: Asked, stage: Stage, tell: Tell) -> None:
    """Answers the questions, adding what is found as it is found."""
    for _, plan, seen in asked:
        compare.compare(plan, stage, seen, tell)


def rows(asked: Asked) -> list[Row]:
    return [row for _, plan, seen in asked for row in compare.rows(plan, seen)]


def ratios(asked: Asked) -> Iterator[dict[str, Any]]:
    """The first peer's median over the second one's, of each figure that has a bar, on each data set."""
    for question, plan, seen in asked:
        by_place = {(row.dataset, row.peer): row for row in compare.rows(plan, seen)}
        first, second = (peer.name for peer in question.peers)
        for dataset in question.sets:
            pair = by_place.get((dataset.name, first)), by_place.get((dataset.name, second))
            found = {name: _ratio(name, *pair) for name in question.bars}
            about = {"question": question.name, "dataset": dataset.name, "ratio": f"{first} / {second}"}
            yield about | {name: {"ratio": found[name], "bar": bar} for name, bar in question.bars.items()}


def _ratio(name: str, first: Row | None, second: Row | None) -> float | None:
    ours: Spread | None = getattr(first, name, None)
    theirs: Spread | None = getattr(second, name, None)
    return round(ours.median / theirs.median, 3) if ours and theirs and theirs.median else None


def findings(asked: Asked) -> dict[str, object]:
    """All of it as plain values, for the result file."""
    parts = {question.name: compare.findings(plan, seen) for question, plan, seen in asked}
    bars = {question.name: dict(question.bars) for question, _, _ in asked}
    return {"benchmark": "merge", "bars": bars, "ratios": list(ratios(asked)), "questions": parts}
