"""What a lane has learned of what its target refuses, and what follows for the batches that it sends.

The broker decides. A batch that it refuses is opened and made anew; if it is refused again, its records go one by one,
until the one at fault is named; where a broker names records itself (Produce v8), these are left out at once. Once a
record was refused for a rule that the topic's settings state, the lane looks for such records by itself: one in a
thousand would otherwise cost a resync each.
"""

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from replicator._core import Recipe, Refused, Terms
from replicator.config.recipes import recipe_of_a_link
from replicator.data.orders import LaneSpec, TargetTopic
from replicator.errors import kafka_error

if TYPE_CHECKING:
    from replicator.data.loops import LoopRegistry

MERGE_BYTES = 256 << 10  # batches of about this size cost a broker least
CODECS = {"keep": -1, "none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
TAKEN_BY_ALL = "lz4"  # of every broker that takes batches of this format
INVALID_TIMESTAMP, CODEC_REFUSED, INVALID_RECORD = 32, 76, 87
TOO_LARGE = frozenset({10, 18})
EXCLUDED_MAX = 100_000
# Since the target took anything: a batch whose records go one by one may be refused so often. Where a broker refuses
# whatever it is sent, so many records become letters before somebody is asked.
ATTEMPTS_MAX = 10_000

# Between our clock and the broker's: what is nearer to a limit is left for the broker to judge.
CLOCK_MARGIN_MS = 30_000
SCREEN_RENEWED_S = 5.0  # limits of time move with the clock

TOO_OLD_OR_NEW, NO_KEY = "invalid_timestamp", "null_key"
NO_TIME = ("timestamp", -1, 0)  # brokers look at no time where there is none
_SCREENED = {TOO_OLD_OR_NEW: INVALID_TIMESTAMP, NO_KEY: INVALID_RECORD}


class Refusal(NamedTuple):
    """Why a record is left out."""

    reason: str
    code: int = 0
    text: str = ""
    attempt: int = 1


@dataclass
class Refusals:
    """Of one lane. `recipe` and `terms` say how its batches are to be treated now."""

    spec: LaneSpec
    settings: TargetTopic
    registry: "LoopRegistry | None" = None
    excluded: dict[int, Refusal] = field(default_factory=dict)  # by source offset
    opened_below: int = -1  # source offset: batches before it are opened, whatever they are
    alone_below: int = -1  # and before this one, each record goes by itself
    bytes_max: int = 0  # of a batch, as a refusal has taught; 0: as the settings say
    attempts: int = 0
    _target_next: int = -1  # when the attempts began
    _codec_refused: bool = False
    _screens: set[str] = field(default_factory=set)
    _recipes: dict[str, Recipe] = field(default_factory=dict)  # by the cluster that a link wrote the records from
    _recipes_at_s: float = 0.0

    # ---- what is asked of the core ----

    def terms(self) -> Terms:
        known, options = self.settings.max_message_bytes, self.spec.batches
        limit = min(known or self.bytes_max, self.bytes_max or known)
        # Records that go one by one would be one batch again.
        merges = options.merge != "off" and self.alone_below < 0
        _, newest = self._times()
        return Terms(
            timestamp_max=newest or 0,
            batch_bytes_max=limit,
            codec=CODECS[TAKEN_BY_ALL if self._codec_refused else options.codec],
            opens=bool(self.spec.recipe or self.spec.plug_ins) or self._opens or self.opened_below >= 0,
            stamped=self.settings.timestamp_type == "LogAppendTime",
            merge_bytes=min(MERGE_BYTES, limit or MERGE_BYTES) if merges else 0,
        )

    @property
    def _opens(self) -> bool:
        """What is looked for does not show in a batch's header: a latest time does."""
        oldest, _ = self._times()
        return NO_KEY in self._screens or oldest is not None

    @property
    def has_clock(self) -> bool:
        """`terms` change with the time."""
        return TOO_OLD_OR_NEW in self._screens

    def _times(self) -> tuple[int | None, int | None]:
        """Records before the one and from the other on would be refused for certain."""
        if TOO_OLD_OR_NEW not in self._screens:
            return None, None
        now_ms, before, after = int(time.time() * 1000), *self._limits
        oldest = now_ms - before - CLOCK_MARGIN_MS if before else None
        return oldest, now_ms + after + CLOCK_MARGIN_MS if after else None

    @property
    def _limits(self) -> tuple[int, int]:
        if self.settings.timestamp_type == "LogAppendTime":
            return 0, 0
        return self.settings.timestamp_before_max_ms, self.settings.timestamp_after_max_ms

    def recipe(self, producer_id: int) -> Recipe | None:
        """The link's edits, and a look for what the target is known to refuse, for records of this producer."""
        now_s = time.monotonic()
        if self._screens and now_s - self._recipes_at_s > SCREEN_RENEWED_S:
            self._recipes.clear()
        written_from = self.registry.written_from(producer_id) if self.registry else ""
        if not (written_from or self._screens or self.spec.recipe):
            return None
        if not self._recipes:
            self._recipes_at_s = now_s
        if written_from not in self._recipes:
            self._recipes[written_from] = Recipe((*self._steps(written_from), *self._screening()))
        return self._recipes[written_from]

    def _steps(self, written_from: str) -> tuple[Any, ...]:
        loops = self.spec.loops
        if not (written_from and loops):
            return self.spec.recipe
        return recipe_of_a_link(self.spec.recipe, written_from, loops.source_cluster_id, loops.target_cluster_id)

    def _screening(self) -> list[tuple[object, ...]]:
        steps: list[tuple[object, ...]] = []
        if NO_KEY in self._screens:
            steps.append(("divert", NO_KEY, ("key_null",)))
        if TOO_OLD_OR_NEW in self._screens:
            refused = ("all", ("not", ("timestamp", *self._times())), ("not", NO_TIME))
            steps.append(("divert", TOO_OLD_OR_NEW, refused))
        return steps

    def why(self, source_offset: int, reason: str) -> Refusal:
        """Of a record that was left out by `excluded` or by a step."""
        if source_offset in self.excluded:
            return self.excluded[source_offset]
        code = _SCREENED.get(reason, 0)
        return Refusal(reason, code, kafka_error(code).meaning if code else "")

    # ---- what is learned ----

    def leave_out(self, source_offset: int, why: Refusal) -> None:
        """This record would be refused."""
        self.excluded[source_offset] = why
        self.opened_below = max(self.opened_below, source_offset + 1)

    def change(self, settings: TargetTopic) -> None:
        """The target topic has other settings now: what was learned of the old ones is of no use."""
        self.settings = settings
        self.bytes_max, self._codec_refused = 0, False
        self._screens.clear()
        self._recipes.clear()

    def refused(self, code: int, text: str, batch: Refused) -> bool:
        """The target has refused this batch, whose records are to be told apart. False: nothing is left to try."""
        reason = kafka_error(code).name.lower()
        self.attempts += 1
        if self.attempts > ATTEMPTS_MAX or len(self.excluded) + len(batch.records) > EXCLUDED_MAX:
            return False
        self._screen(code)
        if code == CODEC_REFUSED:
            if self._codec_refused:
                return False
            self._codec_refused = True
        elif batch.records or batch.record_count == 1:
            for offset, words in (batch.records or {batch.source_offset: text}).items():
                self.excluded[offset] = Refusal(reason, code, words or text, self.attempts)
        elif code in TOO_LARGE:
            self.bytes_max = max(batch.size // 2, 1)
        elif self.opened_below >= batch.source_next:
            self.alone_below = batch.source_next
        self.opened_below = max(self.opened_below, batch.source_next)
        return True

    def _screen(self, code: int) -> None:
        """One code stands for all that is wrong with a batch's records."""
        if code not in (INVALID_TIMESTAMP, INVALID_RECORD):
            return
        if any(self._limits):
            self._screens.add(TOO_OLD_OR_NEW)
        if self.settings.compacted:
            self._screens.add(NO_KEY)
        self._recipes.clear()

    def passed(self, position: int, target_next: int) -> bool:
        """Forgets what was about records before the position. True if `terms` are others by that.

        `target_next`: the target's offset that goes with the position. Records that are left out move only the one.
        """
        if target_next != self._target_next:
            self._target_next, self.attempts = target_next, 0
        if self.excluded:  # one by one: where bad records never end, the position is never behind all of them
            self.excluded = {offset: why for offset, why in self.excluded.items() if offset >= position}
        if self.opened_below < 0 or position < self.opened_below:
            return False
        self.opened_below = self.alone_below = -1
        return True

    def forget(self) -> None:
        """The source has other records at these offsets now."""
        self.excluded.clear()
        self.opened_below = self.alone_below = -1
