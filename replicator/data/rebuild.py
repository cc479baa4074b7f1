"""Batches that cannot go as they came: opened, made anew, and put back where they stood in their lane.

Why a batch has to be opened, the native core says (`Batch.why`); what is written is put together by the core's Scratch,
too. Here are the codecs, and the order of things: one Rebuilder a worker takes a batch of each lane that has some in
turn, a few milliseconds at a time, so that the sockets are served in between. A Bench holds what one lane's batches
became, in their order: records that go to the dead letters keep what follows them waiting until they are acknowledged.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from replicator._core import BadRecords, Batch, Lane, Made, Pool, Scratch, Terms
from replicator.data.codecs import GZIP, UnpackError, decode, encode
from replicator.data.disposal import Letters
from replicator.data.plug_ins import Original, Stage, Staged, originals
from replicator.data.refusals import Refusal, Refusals
from replicator.data.transitions import Trigger
from replicator.data.watch import ripen_later
from replicator.errors import ConfigError
from replicator.kafka.log import BATCH_HEADER_SIZE, CODEC

if TYPE_CHECKING:
    from replicator.data.lane import LaneRunner

TURN_S = 0.005
RUNS_MAX = 4096  # in a batch: each is a gap to be written down before the batch is sent
WAITING_MAX = 256  # batches of a lane that wait for their dead letters
RETRY_S = 0.02
ANY_SIZE = (1 << 32) - 1
FOR_THEIR_RECORDS = frozenset({"rebuild_open", "rebuild_loop"})  # batches that could go as they are
BATCH_BYTES_MAX = 256 << 20  # SLAB_SIZE_MAX of csrc/slab.h
GATHERED_TIMES = 4  # as much as that of unpacked records for a byte that a merged batch may have
ALONE_MAX = 4096  # a lane holds only so many batches, however small; the rest of a batch's records has its turn after


class Damaged(Exception):
    """The checksum of a batch is not that of its bytes."""


class _TooLarge(NamedTuple):
    """A batch of this record alone is more than the target takes."""

    source_offset: int
    why: Refusal


class LeftOut(NamedTuple):
    """A record that does not go to the target, or (`raw`) a batch that nobody can open: its bytes are the value."""

    source_offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[bytes, bytes | None], ...]
    why: Refusal
    raw: bool = False


class Opened(NamedTuple):
    """What became of a raw batch, or of a row of `batches`. `made` is None: it goes as it is."""

    made: list[Made] | None
    left_out: tuple[LeftOut, ...] = ()
    filtered: int = 0
    batches: int = 1
    is_other: bool = False  # each of them was changed, and nothing diverted


class Opener:
    """Makes batches of batches. One a worker: its memory is used again."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._scratch = Scratch()

    def open(
        self,
        batch: Batch,
        refusals: Refusals,
        alone: bool = False,
        following: Iterable[Batch] = (),
        stage: Stage | None = None,
    ) -> Opened:
        """`alone`: each record becomes a batch. Of `following`, the raw batches behind it, as many are made one with it
        as a batch of a good size holds. Raises Damaged. What cannot be opened is left out whole."""
        if not batch.is_intact:
            raise Damaged
        try:
            return self._open(batch, refusals, alone or batch.from_offset < refusals.alone_below, following, stage)
        except (UnpackError, BadRecords) as error:
            whole = LeftOut(
                batch.from_offset, -1, None, bytes(batch), (), Refusal("undecodable", text=str(error)), True
            )
            return Opened([], (whole,))

    def _open(
        self, batch: Batch, refusals: Refusals, alone: bool, following: Iterable[Batch], stage: Stage | None
    ) -> Opened:
        payload = decode(batch.header.attributes & CODEC, memoryview(batch)[BATCH_HEADER_SIZE:])
        row = [self._stage(batch, payload, stage)]
        try:
            for unpacked in _gathered(following, (batch, payload), refusals.terms()) if following else ():
                row.append(self._stage(*unpacked, stage))
        except BadRecords:
            pass  # its own turn comes
        while (opened := self._remake(row, refusals, alone)) is None:
            pass  # each time without some more records: most often there is one more
        return opened

    def _stage(self, batch: Batch, payload: memoryview, stage: Stage | None) -> "_Row":
        return _Row(batch, payload, stage.run(self._scratch, batch, payload) if stage else Staged(batch, payload))

    def _remake(self, row: "list[_Row]", refusals: Refusals, alone: bool) -> Opened | None:
        """None: `refusals` knows of more records now that the target will not take."""
        scratch, (batch, _, staged) = self._scratch, row[0]
        scratch.clear()
        scratch.exclude(sorted(refusals.excluded))
        self._feed(row[0], refusals)
        if scratch.untouched and not staged.changed and batch.why in FOR_THEIR_RECORDS and not alone:
            return Opened(None)
        fed, changed = [scratch.fed], [staged.changed or not scratch.untouched]
        for fed_one, changed_one in self._feed_more(row[1:], refusals):
            fed.append(fed_one)
            changed.append(changed_one)
        row = row[: len(fed)]
        left_out = self._left_out(row, refusals)
        terms = refusals.terms()
        wanted = _wanted_codec(batch, terms)
        outputs = list(self._outputs(wanted, terms.batch_bytes_max, alone, refusals.settings.max_message_bytes))
        made = [one for one in outputs if isinstance(one, Made)]
        if len(made) < len(outputs):
            for one in outputs:
                if isinstance(one, _TooLarge):
                    refusals.leave_out(*one)
            return None
        before = sum(one.staged.dropped + len(one.staged.faults) for one in row)
        filtered = before + sum(fed) - sum(one.count for one in made) - len(left_out)
        return Opened(made, left_out, filtered, len(fed), all(changed) and not left_out)

    def _feed(self, one: "_Row", refusals: Refusals) -> None:
        header, payload, *_ = one.staged
        self._scratch.feed(header, payload, one.batch.from_offset, refusals.recipe(one.batch.header.producer_id))

    def _left_out(self, row: "list[_Row]", refusals: Refusals) -> tuple[LeftOut, ...]:
        """As they came: what plug-ins have made of them is not what a replay begins with."""
        reasons = {record.source_offset: record.reason for record in self._scratch.diverted}
        records = {record.source_offset: Original(*record[:5]) for record in self._scratch.diverted}
        left_out: list[LeftOut] = []
        for batch, payload, staged in row:
            if staged.changed:
                records |= {one.source_offset: one for one in originals(self._scratch, batch, payload, reasons)}
            left_out += [LeftOut(*record, Refusal("transform", text=text)) for record, text in staged.faults]
        left_out += [LeftOut(*record, refusals.why(offset, reasons[offset])) for offset, record in records.items()]
        return tuple(sorted(left_out, key=lambda one: one.source_offset))

    def _feed_more(self, row: "list[_Row]", refusals: Refusals) -> Iterator[tuple[int, bool]]:
        """How many records each had, and if it was changed; up to one that is not sound: its own turn comes."""
        for one in row:
            try:
                self._feed(one, refusals)
            except BadRecords:
                return
            yield self._scratch.fed, one.staged.changed or not self._scratch.untouched

    def _outputs(self, codec: int, limit: int, alone: bool, known_limit: int) -> Iterator[Made | _TooLarge]:
        """Batches of at most `limit` bytes, and records that alone have more than `known_limit`. Where these are 0, the
        broker will say so. `alone`: the first records go one by one."""
        scratch, number = self._scratch, 0
        limit, known_limit = limit or BATCH_BYTES_MAX, known_limit or BATCH_BYTES_MAX
        bytes_max = ANY_SIZE if codec else limit - BATCH_HEADER_SIZE
        while scratch.next(1 if alone and number < ALONE_MAX else max(bytes_max, 1), RUNS_MAX):
            section = encode(codec, scratch.records)
            size = BATCH_HEADER_SIZE + len(section)
            if size > limit and scratch.count > 1:
                bytes_max = scratch.record_bytes // 2
                scratch.retry()
                continue
            number += 1
            if size > known_limit:
                text = f"{size} bytes in a batch of its own, the target takes {known_limit}"
                yield _TooLarge(scratch.runs[0][0], Refusal("message_too_large", 10, text))
            else:
                yield Made(self._pool, scratch, codec, section)

    def merge(self, batches: list[Batch], codec: int) -> Made | None:
        """One batch of these, which are ours already. None if they cannot be one."""
        scratch, total = self._scratch, 0
        scratch.clear()
        try:
            for batch in batches:
                if not batch.is_intact:
                    return None
                section = memoryview(batch)[BATCH_HEADER_SIZE:]
                scratch.feed(batch, decode(codec, section), 0, first_offset=total)
                total += batch.header.count
        except (UnpackError, BadRecords):
            return None  # its turn to be refused comes
        if not scratch.next(ANY_SIZE, RUNS_MAX) or scratch.count != total:
            return None
        return Made(self._pool, scratch, codec, encode(codec, scratch.records))


class _Row(NamedTuple):
    """A raw batch, its records without compression, and what plug-ins have made of it."""

    batch: Batch
    payload: memoryview
    staged: Staged


Unpacked = tuple[Batch, memoryview]
"""A raw batch, and its records without compression."""


def _wanted_codec(batch: Batch, terms: Terms) -> int:
    codec = batch.header.attributes & CODEC
    return codec if terms.codec < 0 else terms.codec


def _gathered(following: Iterable[Batch], first: Unpacked, terms: Terms) -> Iterator[Unpacked]:
    """Those that fit into one batch with the first one, as far as they can be unpacked."""
    codec = first[0].header.attributes & CODEC
    room = terms.merge_bytes - len(first[0])
    times = GATHERED_TIMES if codec and codec == _wanted_codec(first[0], terms) else 1
    unpacked_room = times * terms.merge_bytes - len(first[1])
    for batch in following:
        room -= len(batch)
        if room < 0 or batch.why == "pass" or batch.header.attributes & CODEC != codec or not batch.is_intact:
            return
        try:
            payload = decode(codec, memoryview(batch)[BATCH_HEADER_SIZE:])
        except UnpackError:
            return
        unpacked_room -= len(payload)
        if unpacked_room < 0:
            return
        yield batch, payload


class _Done(NamedTuple):
    """A raw batch that was looked at. `waits`: it only waits for those before it."""

    opened: Opened
    letters: Letters = ()
    waits: bool = False


class Bench:
    """The batches of one lane that are opened: what they became, in order."""

    def __init__(self, runner: "LaneRunner") -> None:
        self._runner = runner
        self._done: deque[_Done] = deque()
        self._stage: Stage | None = None  # made with the first batch
        self._generation = -1
        self._retry: asyncio.TimerHandle | None = None
        self.merge_asked = False
        self._is_stuck = False  # at a batch that stops the lane
        self._gathers = False  # the last batch was changed throughout, so the next ones are likely to be

    @property
    def _native(self) -> Lane:
        return self._runner.native

    @property
    def waits(self) -> bool:
        """True if something was opened, and waits for its letters, or for room."""
        self._forget_if_halted()
        return bool(self._done)

    @property
    def is_at_work(self) -> bool:
        """True if what is raw will be less without anybody's help."""
        return self._native.raw_count > 0 and (self.waits or not self._is_stuck)

    def step(self, opener: Opener) -> bool:
        """Does one batch, or one merge. False: there is nothing to do now."""
        if self.merge_asked:
            self.merge_asked = False
            self._merge(opener)
        self._forget_if_halted()
        if self._is_stuck or self._runner.draining or len(self._done) >= WAITING_MAX:
            return False
        batch = self._native.raw(len(self._done))
        if batch is None:
            return False
        if batch.why == "pass":
            self._done.append(_Done(Opened(None), waits=True))
            return True
        try:
            opened = self._open(opener, batch)
        except Damaged:
            self._is_stuck = True
            what = "its checksum does not match: damaged on the source's disk, or on the way"
            self._runner.on_damage(f"batch at source offset {batch.from_offset}: {what}")
            return False
        except ConfigError as error:
            self._is_stuck = True
            self._runner.stop(Trigger.PLUG_IN_FAILED, str(error))
            return False
        letters = self._dispose(opened.left_out)
        if letters is None:
            return False
        self._gathers = opened.is_other
        self._done.append(_Done(opened, letters))
        # Put back in one go with the first one, which has their records: they leave nothing behind.
        self._done.extend(_Done(Opened([])) for _ in range(opened.batches - 1))
        self.flush()
        return True

    def _open(self, opener: Opener, batch: Batch) -> Opened:
        """Raises Damaged, and ConfigError when a plug-in cannot be made."""
        # What landed before an answer was lost may have been divided otherwise; single records end everywhere.
        alone = self._native.skip_records > 0
        following = () if alone else self._following()
        if not self._runner.spec.plug_ins:
            return opener.open(batch, self._runner.refusals, alone, following)
        self._stage = self._stage or Stage.of(self._runner.spec)
        began_s = time.monotonic()
        opened = opener.open(batch, self._runner.refusals, alone, following, self._stage)
        self._runner.worker.was_busy(self._runner.spec.name, time.monotonic() - began_s)
        return opened

    def _following(self) -> Iterable[Batch]:
        """The raw batches that may become one with the next, if there is nothing to be found out about single ones."""
        if not self._gathers or self._runner.refusals.opened_below >= 0:
            return ()
        return self._raw_from(len(self._done) + 1)

    def _raw_from(self, nth: int) -> Iterator[Batch]:
        while nth < WAITING_MAX and (batch := self._native.raw(nth)):
            yield batch
            nth += 1

    def _forget_if_halted(self) -> None:
        if self._native.generation != self._generation:
            self._done.clear()
            self._generation = self._native.generation
            self._is_stuck = False

    def _dispose(self, left_out: tuple[LeftOut, ...]) -> Letters | None:
        letters = self._runner.disposal.dispose(left_out)
        if letters is None:
            self._is_stuck = True
        for letter in letters or ():
            letter.add_done_callback(self._letter_is_there)
        return letters

    def _letter_is_there(self, _letter: "asyncio.Future[None]") -> None:
        self.flush()
        self._runner.worker.rebuild_soon(self)

    def flush(self) -> None:
        """Puts back what is done, and whose letters are acknowledged."""
        self._forget_if_halted()
        moved = False
        # From behind: they are acknowledged in order, and each comes here.
        while self._done and all(letter.done() for letter in reversed(self._done[0].letters)):
            if self._has_failed(self._done[0].letters):
                return
            if not self._put_back(self._done[0]):
                break
            moved = True
        if moved:
            if self._native.announces():
                self._runner.announce_soon()
            if self._native.asks_for_time():
                ripen_later(self._runner)
            self._runner.worker.pump_soon()

    def _has_failed(self, letters: Letters) -> bool:
        for letter in letters:
            error = None if letter.cancelled() else letter.exception()
            if error is not None or letter.cancelled():
                self._done.clear()
                self._is_stuck = True
                self._runner.on_letter_lost(str(error or "given up"))
                return True
        return False

    def _put_back(self, done: _Done) -> bool:
        if done.waits:
            self._done.popleft()
            return True
        made = done.opened.made
        verdict = self._native.pass_raw() if made is None else self._native.replace(made)
        if verdict == "no_room":
            self._wait_for_room(len(made or ()))
            return False
        self._done.popleft()
        self._runner.disposal.count(done.opened)
        if verdict == "refuse_tail":
            self._done.clear()
            self._is_stuck = True
            self._runner.on_cannot_take(verdict, self._runner.counter("fetch_offset"))
            return False
        return True

    def _wait_for_room(self, count: int) -> None:
        if not (self._native.in_flight or self._native.queued):  # there is all the room that there will ever be
            self._done.clear()
            self._is_stuck = True
            raw = self._native.raw(0)
            where = f"batch at source offset {raw.from_offset if raw else -1}"
            self._runner.stop(Trigger.CANNOT_TAKE, f"{where}: became {count} batches, more than a lane can hold")
        elif self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(RETRY_S, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        self.flush()
        self._runner.worker.rebuild_soon(self)  # it may have stood still with WAITING_MAX

    def _merge(self, opener: Opener) -> None:
        native = self._native
        batches = native.mergeable()
        if len(batches) < 2:
            native.decline_merge(False)
            return
        codec = batches[0].header.attributes & CODEC
        limit = self._runner.refusals.terms().batch_bytes_max
        # gzip costs more to pack than a broker saves by it.
        wanted = codec != GZIP or self._runner.spec.batches.merge == "always"
        merged = opener.merge(batches, codec) if wanted else None
        if merged is None or (limit and len(merged) > limit):
            native.decline_merge(True)
        else:
            native.join(len(batches), merged)
        self._runner.worker.pump_soon()


class Rebuilder:
    """Of one worker: every lane that has something to open gets its turn."""

    def __init__(self, pool: Pool) -> None:
        self._opener = Opener(pool)
        self._waiting: deque[Bench] = deque()
        self._handle: asyncio.Handle | None = None

    def ask(self, bench: Bench) -> None:
        if bench not in self._waiting:
            self._waiting.append(bench)
        if self._handle is None:
            self._handle = asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._handle = None
        until = time.perf_counter() + TURN_S
        while self._waiting and time.perf_counter() < until:
            bench = self._waiting.popleft()
            if bench.step(self._opener):
                self._waiting.append(bench)
        if self._waiting:
            self._handle = asyncio.get_running_loop().call_soon(self._turn)
