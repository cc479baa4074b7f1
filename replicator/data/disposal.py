"""Records that do not go to the target: by the topic's policy they go to the dead letters, are only counted, or stop
their lane. None of them goes without a count and an event; of many in a row one event tells."""

import asyncio
import time
from typing import TYPE_CHECKING

from replicator.data.transitions import Trigger, by_policy
from replicator.state.records import spell_topic_id

if TYPE_CHECKING:
    from replicator.data.lane import LaneRunner
    from replicator.data.rebuild import LeftOut, Opened

TOLD_EACH_S = 1.0

Letters = tuple["asyncio.Future[None]", ...]


class Disposal:
    """Of one lane."""

    def __init__(self, runner: "LaneRunner") -> None:
        self._runner = runner
        # Letters of records that the lane has not passed: it may meet them again, and they are written once.
        self._letters: dict[tuple[int, bool], asyncio.Future[None]] = {}
        self._known: set[tuple[int, bool]] = set()  # those that were counted; also where no letters are written
        self._untold = 0
        self._first = ""
        self._told_at_s = -TOLD_EACH_S

    @property
    def _trigger(self) -> Trigger:
        return by_policy(self._runner.spec.policy, "record_faults")

    def dispose(self, left_out: "tuple[LeftOut, ...]") -> Letters | None:
        """The letters that are under way; None when the lane stops instead."""
        if not left_out:
            return ()
        if self._trigger.is_final:
            self._runner.stop(self._trigger, _spell(left_out[0]))
            return None
        self._count([one for one in left_out if _key(one) not in self._known])
        if self._trigger is Trigger.RECORD_FAULTS_SKIP:
            return ()
        for one in left_out:
            if _key(one) not in self._letters:
                self._letters[_key(one)] = self._send(one)
        return tuple(self._letters[_key(one)] for one in left_out)

    def _count(self, new: "list[LeftOut]") -> None:
        if not new:
            return
        self._known |= {_key(one) for one in new}
        self._runner.worker.rows.add(self._runner.spec.row, "diverted_records", len(new))
        self._first = self._first or _spell(new[0])
        self._untold += len(new)
        self.tell_if_due()

    def forget(self, offset: int) -> None:
        """The source has other records from this offset on."""
        self._runner.refusals.forget()
        self._letters = {key: letter for key, letter in self._letters.items() if key[0] < offset}
        self._known = {key for key in self._known if key[0] < offset}

    def passed(self, position: int) -> None:
        """Records before the position do not come again; letters that failed are written anew."""
        self._known = {key for key in self._known if key[0] >= position}
        self._letters = {
            key: letter for key, letter in self._letters.items() if key[0] >= position and not _has_failed(letter)
        }

    def _send(self, one: "LeftOut") -> "asyncio.Future[None]":
        from replicator.data.dead_letters import DeadLetter  # with confluent-kafka, which most copies do without

        spec, why = self._runner.spec, one.why
        letter = DeadLetter(
            topic=spec.topic,
            partition=spec.partition,
            offset=one.source_offset,
            timestamp_ms=one.timestamp,
            key=one.key,
            value=one.value,
            headers=one.headers,
            reason=why.reason,
            error_code=why.code,
            error_text=why.text,
            attempt=why.attempt,
            raw=one.raw,
            topic_id=spell_topic_id(self._runner.topic_id(self._runner.source)),
        )
        return self._runner.worker.letters(spec.link).send(letter)

    def count(self, opened: "Opened") -> None:
        """What became of a batch that was opened, and is through."""
        rows, row = self._runner.worker.rows, self._runner.spec.row
        rows.add(row, "filtered_records", opened.filtered)
        if opened.batches > 1 and opened.made:
            rows.add(row, "merged_batches", opened.batches)

    def tell_if_due(self) -> None:
        now_s = time.monotonic()
        if not self._untold or now_s - self._told_at_s < TOLD_EACH_S:
            return
        more = f" and {self._untold - 1} more" if self._untold > 1 else ""
        self._runner.tell(self._trigger, f"{self._first}{more}")
        self._untold, self._first, self._told_at_s = 0, "", now_s


def _key(one: "LeftOut") -> tuple[int, bool]:
    return one.source_offset, one.raw


def _has_failed(letter: "asyncio.Future[None]") -> bool:
    return letter.done() and (letter.cancelled() or letter.exception() is not None)


def _spell(one: "LeftOut") -> str:
    return f"source offset {one.source_offset}: {one.why.reason}: {one.why.text}"
