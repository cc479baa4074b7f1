"""How a copy ended: a word for each lane, the worst of them for each topic, the worst of those for the whole.

The words, best first: `verified` and `copied` (not verified, because nobody asked); `equal` (verified record by
record, since batches had to be made anew, or the target puts its own time on them); `interrupted`; `unverified`
(should have been, but a log could not be read); `differs`; `failed`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from replicator.cli.figures import counted, spell_bytes, spell_seconds
from replicator.data.orders import LaneSpec
from replicator.data.states import LaneState
from replicator.data.verify import LaneVerdict, Outcome

WORDS = ("verified", "copied", "equal", "interrupted", "unverified", "differs", "failed")
GOOD = WORDS[:3]

_OF_VERDICT = {
    Outcome.IDENTICAL: "verified",
    Outcome.EQUAL: "equal",
    Outcome.DIFFERENT: "differs",
    Outcome.UNKNOWN: "unverified",
}


@dataclass(frozen=True)
class LaneResult:
    """One lane at the end; `reason` is the supervisor's, `verdict` None when it was not compared."""

    spec: LaneSpec
    state: LaneState
    reason: str
    records: int
    bytes: int
    seconds: float  # from the start of the copy until this lane ended
    verdict: LaneVerdict | None = None

    @property
    def outcome(self) -> str:
        if not self.state.is_final:
            return "interrupted"
        if self.state is not LaneState.DONE:
            return "failed"
        return _OF_VERDICT[self.verdict.outcome] if self.verdict else "copied"

    @property
    def why(self) -> str:
        """One line about an outcome that needs one."""
        return self.verdict.reason if self.verdict else self.reason


class Problem(NamedTuple):
    """A lane that did not end well, or has something to explain."""

    partition: int
    outcome: str
    reason: str


@dataclass(frozen=True)
class TopicResult:
    """A topic's lanes together."""

    topic: str
    target_topic: str
    partitions: int
    records: int
    bytes: int
    seconds: float
    outcome: str
    problems: list[Problem]

    @property
    def name(self) -> str:
        return self.topic if self.topic == self.target_topic else f"{self.topic} -> {self.target_topic}"


@dataclass(frozen=True)
class Results:
    """The whole copy. `total_records` is what there was to copy."""

    topics: list[TopicResult]
    seconds: float
    total_records: int
    interrupted: bool = False

    @property
    def records(self) -> int:
        return sum(topic.records for topic in self.topics)

    @property
    def bytes(self) -> int:
        return sum(topic.bytes for topic in self.topics)

    @property
    def outcome(self) -> str:
        words = [topic.outcome for topic in self.topics]
        return worst([*words, "interrupted"] if self.interrupted else words)

    def problem_lines(self) -> Iterator[str]:
        for topic in self.topics:
            for problem in topic.problems:
                yield f"{topic.topic}-{problem.partition}: {problem.outcome}: {problem.reason}"

    def headline(self) -> str:
        """The last line: what happened, in one sentence."""
        size = f"{counted(self.records, 'record')} ({spell_bytes(self.bytes)})"
        took = f"in {spell_seconds(self.seconds)}"
        match self.outcome:
            case "verified":
                return f"{size} copied and verified {took}: every batch is the same on both sides"
            case "copied":
                return f"{size} copied {took}, not verified"
            case "equal":
                return f"{size} copied {took}; verified record by record, as batches were made anew"
            case "interrupted":
                return (
                    f"interrupted after {spell_seconds(self.seconds)}: {size} of {self.total_records:,} copied; to copy"
                    " anew, delete the topics on the target or give another --rename-prefix"
                )
        bad = sum(problem.outcome not in GOOD for topic in self.topics for problem in topic.problems)
        lanes = sum(topic.partitions for topic in self.topics)
        return f"{size} copied {took}, but {bad:,} of {counted(lanes, 'partition')} did not end well: see above"

    def as_json(self) -> dict[str, Any]:
        """For `--json`: plain values. Keys are only ever added."""
        return {
            "outcome": self.outcome,
            "seconds": round(self.seconds, 3),
            "records": self.records,
            "bytes": self.bytes,
            "topics": [_topic_json(topic) for topic in self.topics],
        }


def _topic_json(topic: TopicResult) -> dict[str, Any]:
    problems = [problem._asdict() for problem in topic.problems]
    return {**vars(topic), "seconds": round(topic.seconds, 3), "problems": problems}


def worst(words: Iterable[str]) -> str:
    return max(words, key=WORDS.index, default="copied")


def by_topic(lanes: Sequence[LaneResult]) -> list[TopicResult]:
    """The results of each topic. Lanes of a topic stand together, as the supervisor made them."""
    return [_topic_result(list(group)) for _, group in groupby(lanes, key=lambda lane: lane.spec.topic)]


def _topic_result(lanes: list[LaneResult]) -> TopicResult:
    return TopicResult(
        lanes[0].spec.topic,
        lanes[0].spec.target_topic,
        len(lanes),
        sum(lane.records for lane in lanes),
        sum(lane.bytes for lane in lanes),
        max(lane.seconds for lane in lanes),
        worst(lane.outcome for lane in lanes),
        [Problem(lane.spec.partition, lane.outcome, lane.why) for lane in lanes if lane.why],
    )
