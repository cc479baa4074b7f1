"""How a verification ended: a word for each lane, and for the whole.

The words, those that say more last: `empty` (nothing was copied, or nothing in the range asked for); `gone` (one of the
logs has deleted all of it since); `identical` (every batch, byte by byte); `equal` (every record; the target's batches
or timestamps are its broker's or the link's own); `unknown` (could not be compared); `differs`. The last of them speaks
for all.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from replicator.cli.figures import counted, spell_bytes, spell_seconds
from replicator.data.verify import LaneVerdict, Outcome

WORDS = ("empty", "gone", "identical", "equal", "unknown", "differs")
EXPLAINED = ("equal", "unknown", "differs")

ALL_EQUAL, NOT_COMPARED, DIFFERENT = 0, 1, 3  # exit codes


@dataclass(frozen=True)
class LaneReport:
    """One lane: `claimed` records are in the offset map, within the range asked for."""

    link: str
    topic: str
    target_topic: str
    partition: int
    claimed: int
    segments: int
    verdict: LaneVerdict

    @property
    def outcome(self) -> str:
        match self.verdict.outcome:
            case Outcome.DIFFERENT:
                return "differs"
            case Outcome.UNKNOWN:
                return "unknown"
        if not self.verdict.records:
            return "gone" if self.claimed else "empty"
        return "identical" if self.verdict.outcome is Outcome.IDENTICAL else "equal"

    def as_json(self) -> dict[str, Any]:
        own = {name: value for name, value in vars(self).items() if name != "verdict"}
        verdict = {name: value for name, value in vars(self.verdict).items() if name != "outcome"}
        return {**own, "outcome": self.outcome, **verdict}


class TopicReport(NamedTuple):
    """A topic's lanes together."""

    link: str
    name: str
    partitions: int
    claimed: int
    records: int
    gone: int
    bytes: int
    outcome: str


@dataclass(frozen=True)
class Verification:
    """The whole. `fraction` is 1 when everything was to be compared; `problems` concern no single lane."""

    lanes: list[LaneReport]
    fraction: float
    seed: str
    seconds: float
    problems: list[str]

    def total(self, name: str) -> int:
        """Of a number of the verdicts."""
        return sum(getattr(lane.verdict, name) for lane in self.lanes)

    @property
    def claimed(self) -> int:
        return sum(lane.claimed for lane in self.lanes)

    @property
    def outcome(self) -> str:
        word = _last_word(self.lanes)
        return "unknown" if self.problems and word != "differs" else word

    @property
    def exit_code(self) -> int:
        if self.outcome == "differs":
            return DIFFERENT
        return NOT_COMPARED if self.outcome == "unknown" or not self.total("records") else ALL_EQUAL

    def topics(self) -> list[TopicReport]:
        return [_topic(list(lanes)) for _, lanes in groupby(self.lanes, key=lambda lane: (lane.link, lane.topic))]

    def lines(self) -> Iterator[str]:
        """What needs to be said besides the figures: a line for each problem and for each lane that has a reason."""
        yield from self.problems
        for lane in self.lanes:
            if lane.outcome in EXPLAINED:
                yield f"{lane.link} {lane.topic}-{lane.partition}: {lane.outcome}: {lane.verdict.reason}"

    def headline(self) -> str:
        """The last line: what was compared, and what came out."""
        size = f"{counted(self.total('records'), 'record')} ({spell_bytes(self.total('bytes'))})"
        what = f"{size} of {self.claimed:,} copied compared in {spell_seconds(self.seconds)}"
        notes = [f"a sample of {self.fraction:.3g}, repeat it with --seed {self.seed}"] if self.fraction < 1 else []
        for name, text in (
            ("gone", "deleted since and not comparable any more"),
            ("cleaned", "on one side only, since the other is compacted"),
            ("foreign", "of others between ours on the target"),
            ("passed_over", "rightly not copied: aborted, filtered, or dead letters"),
            ("edited", "compared without what the link changes of them"),
        ):
            if count := self.total(name):
                notes.append(f"{count:,} {text}")
        found = {ALL_EQUAL: "all are equal", DIFFERENT: "there are differences"}.get(self.exit_code)
        if found is None:
            found = "nothing differs, but not everything could be compared" if self.total("records") else "no proof"
        return "; ".join([f"{what}: {found}", *notes])

    def as_json(self) -> dict[str, Any]:
        """For `--json`: plain values. Keys are only ever added."""
        names = ("records", "bytes", "batches", "gone", "cleaned", "foreign", "passed_over", "edited")
        return {
            "outcome": self.outcome,
            "fraction": self.fraction,
            "seed": self.seed if self.fraction < 1 else None,
            "seconds": round(self.seconds, 3),
            "claimed": self.claimed,
            **{name: self.total(name) for name in names},
            "problems": self.problems,
            "lanes": [lane.as_json() for lane in self.lanes],
        }


def _last_word(lanes: list[LaneReport]) -> str:
    return max((lane.outcome for lane in lanes), key=WORDS.index, default="empty")


def _topic(lanes: list[LaneReport]) -> TopicReport:
    first = lanes[0]
    name = first.topic if first.topic == first.target_topic else f"{first.topic} -> {first.target_topic}"
    return TopicReport(
        first.link,
        name,
        len(lanes),
        sum(lane.claimed for lane in lanes),
        sum(lane.verdict.records for lane in lanes),
        sum(lane.verdict.gone for lane in lanes),
        sum(lane.verdict.bytes for lane in lanes),
        _last_word(lanes),
    )
