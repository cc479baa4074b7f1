"""One lane's batches in order while they are opened: what waits for letters, for room, for its turn; merges.

The core is real; the runner, the worker and the letters are those of `tests.oracle.bench`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from replicator._core import Terms
from replicator.config.models import Policy
from replicator.data import rebuild
from replicator.data.orders import TargetTopic
from replicator.data.rebuild import Opener
from replicator.data.refusals import Refusal
from replicator.data.states import Checkpoint
from tests.oracle.bench import TARGET, Runner, Worker, lane_spec, turns, witnessed
from tests.oracle.fetch import Fetched
from tests.oracle.produce import ProduceRequest
from tests.oracle.rig import Rig
from tests.oracle.scripted_log import GZIP, LZ4, Rec, batch_of, recs, stored


def records_of(sent: list[bytes]) -> list[Rec]:
    return [record for data in sent for record in witnessed(data)]


# ---- a lane's batches, in order ----

Play = Callable[[Rig, Runner], Awaitable[None]]


def on_bench(play: Play, policy: Policy = Policy(), settings: TargetTopic = TARGET, **flags: Any) -> None:  # noqa: B008
    async def run() -> None:
        with Rig() as rig:
            runner = Runner(
                rig, Worker(rig), lane_spec(policy=policy), settings, **{"terms": Terms(opens=True), **flags}
            )
            rig.start(runner.lane)
            await play(rig, runner)
            runner.native.halt()
            await turns()

    asyncio.run(run())


def four(runner: Runner) -> None:
    """Records 1 and 5 are left out."""
    for offset in (1, 5):
        runner.refusals.leave_out(offset, Refusal("invalid_record"))
    runner.fetch(*[batch_of(recs(2, at), at) for at in (0, 2, 4, 6)])


def numbers(sent: list[bytes]) -> list[int]:
    return [int((record.key or b"").split()[1]) for record in records_of(sent)]


def test_a_record_keeps_what_follows_it_waiting_until_its_letter_is_there() -> None:
    async def play(rig: Rig, runner: Runner) -> None:
        box = runner.worker.letter_box
        four(runner)
        await turns()
        assert (box.offsets, rig.gather()) == ([1, 5], None)
        assert runner.bench.waits
        await box.acknowledge(1)
        assert rig.gather() is None
        assert runner.lane.checkpoint.position == 0
        await box.acknowledge(0)
        assert numbers(runner.sent()) == [0, 2, 3, 4, 6, 7]
        assert runner.lane.checkpoint.position == 8
        assert runner.worker.counts["diverted_records"] == 2
        assert not runner.bench.waits

    on_bench(play)


def test_what_came_before_the_record_does_not_wait() -> None:
    async def play(rig: Rig, runner: Runner) -> None:
        runner.refusals.leave_out(5, Refusal("invalid_record"))
        runner.fetch(*[batch_of(recs(2, at), at) for at in (0, 2, 4, 6)])
        await turns()
        assert numbers(runner.sent()) == [0, 1, 2, 3]
        assert runner.lane.checkpoint.position == 4
        await runner.worker.letter_box.acknowledge()
        assert numbers(runner.sent()) == [4, 6, 7]

    on_bench(play)


def test_letters_are_written_once_over_a_halt() -> None:
    async def play(rig: Rig, runner: Runner) -> None:
        box = runner.worker.letter_box
        four(runner)
        await turns()
        runner.native.halt()
        await box.acknowledge(0)
        assert runner.lane.checkpoint.position == 0
        runner.resume()
        four(runner)
        await turns()
        assert box.offsets == [1, 5]
        assert numbers(runner.sent()) == [0, 2, 3]
        await box.acknowledge()
        assert numbers(runner.sent()) == [4, 6, 7]
        assert runner.worker.counts["diverted_records"] == 2

    on_bench(play)


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_letter_that_fails_is_written_again_and_the_record_is_not_passed(cancelled: bool) -> None:
    async def play(rig: Rig, runner: Runner) -> None:
        box = runner.worker.letter_box
        four(runner)
        await turns()
        if cancelled:
            box.futures[0].cancel()
        else:
            box.futures[0].set_exception(OSError("no room"))
        await box.acknowledge(1)
        assert [row[0] for row in runner.said if row[0] != "told"] == ["letter lost"]
        assert (rig.gather(), runner.lane.checkpoint.position) == (None, 0)
        runner.resume()
        four(runner)
        await turns()
        assert box.offsets == [1, 5, 1]
        await box.acknowledge()
        assert numbers(runner.sent()) == [0, 2, 3, 4, 6, 7]

    on_bench(play)


def test_a_batch_that_leaves_nothing_is_passed_when_its_letters_are_there() -> None:
    async def play(rig: Rig, runner: Runner) -> None:
        for offset in (0, 1):
            runner.refusals.leave_out(offset, Refusal("invalid_record"))
        runner.fetch(batch_of(recs(2)))
        await turns()
        assert runner.lane.checkpoint.position == 0
        await runner.worker.letter_box.acknowledge(0)
        assert runner.lane.checkpoint.position == 0
        await runner.worker.letter_box.acknowledge(1)
        assert runner.lane.checkpoint == Checkpoint(2, 0, 0, 5)

    on_bench(play)


def test_a_damaged_batch_stops_the_bench_and_those_before_it_are_still_put_back() -> None:
    async def play(rig: Rig, runner: Runner) -> None:
        runner.refusals.leave_out(1, Refusal("invalid_record"))
        damaged = bytearray(stored(batch_of(recs(2, 2), 2)))
        damaged[-2] ^= 1
        rig.ask()
        rig.feed(rig.response((runner.lane, Fetched(0, stored(batch_of(recs(2))) + bytes(damaged)))))
        runner.worker.rebuild_soon(runner.bench)
        await turns()
        assert ("damaged", 2) in runner.said
        assert runner.bench.is_at_work, "a letter is under way: what waits for it is to be settled first"
        await runner.worker.letter_box.acknowledge()
        assert numbers(runner.sent()) == [0]
        assert runner.native.raw_count == 1
        assert not runner.bench.is_at_work

    on_bench(play)


def test_a_policy_stops_in_front_of_the_record() -> None:
    async def play(rig: Rig, runner: Runner) -> None:
        four(runner)
        await turns()
        ((what, kind, reason),) = runner.said
        assert (what, kind) == ("stop", "record_faults_stop")
        assert "source offset 1" in reason
        assert (rig.gather(), runner.worker.letter_box.sent) == (None, [])
        assert not runner.bench.is_at_work

    on_bench(play, Policy(record_faults="stop"))


def test_a_policy_passes_records_over_with_a_count() -> None:
    async def play(rig: Rig, runner: Runner) -> None:
        four(runner)
        await turns()
        assert numbers(runner.sent()) == [0, 2, 3, 4, 6, 7]
        assert runner.worker.letter_box.sent == []
        assert runner.worker.counts["diverted_records"] == 2

    on_bench(play, Policy(record_faults="skip"))


def test_a_lane_that_drains_opens_nothing_more_but_what_waits_for_letters_is_settled() -> None:
    async def play(rig: Rig, runner: Runner) -> None:
        four(runner)
        await turns()
        runner.draining = True
        runner.fetch(batch_of(recs(2, 8), 8))
        await turns()
        assert runner.bench.waits
        await runner.worker.letter_box.acknowledge()
        assert not runner.bench.waits
        assert numbers(runner.sent()) == [0, 2, 3, 4, 6, 7]
        assert runner.native.raw_count == 1

    on_bench(play)


def test_what_is_not_put_back_for_want_of_room_is_put_back_later_by_one_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuild, "RETRY_S", 0)

    async def play(rig: Rig, runner: Runner) -> None:
        monkeypatch.setattr(rebuild, "WAITING_MAX", 2)
        runner.fetch(batch_of(recs(1)))
        await turns()
        assert rig.gather()  # in flight: there may be room later
        answers = ["no_room"] * 3
        real = runner.native

        class Crowded:
            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

            def pass_raw(self) -> str:
                return answers.pop() if answers else real.pass_raw()

        runner.native = Crowded()  # type: ignore[assignment]
        runner.fetch(*[batch_of(recs(1, at), at) for at in range(1, 8)])
        await turns(60)
        assert (real.raw_count, answers) == (0, []), "all of them, also those behind the first two"
        runner.native = real

    on_bench(play)


def test_a_batch_that_becomes_more_than_a_lane_can_hold_stops_it() -> None:
    """It would stand still without a word."""

    async def play(rig: Rig, runner: Runner) -> None:
        real = runner.native

        class Full:
            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

            def pass_raw(self) -> str:
                return "no_room"

        runner.native = Full()  # type: ignore[assignment]
        runner.fetch(batch_of(recs(1, 3), 3))
        await turns()
        ((what, kind, reason),) = runner.said
        assert (what, kind) == ("stop", "cannot_take")
        assert "source offset 3" in reason
        runner.native = real

    on_bench(play)


def test_what_landed_before_may_have_been_divided_otherwise() -> None:
    async def play(rig: Rig, runner: Runner) -> None:
        runner.native.halt()
        rig.start(runner.lane, Checkpoint(0, 0, 0), skip=1)
        runner.fetch(batch_of(recs(2)), batch_of(recs(2, 2), 2))
        await turns()
        assert runner.said == []
        assert (runner.native.skip_records, runner.native.raw_count, runner.native.queued) == (0, 0, 2)

    on_bench(play)


def test_many_letters_of_one_batch_cost_a_look_each() -> None:
    """Not a look at all those before each."""

    async def play(rig: Rig, runner: Runner) -> None:
        count = 300
        for offset in range(count):
            runner.refusals.leave_out(offset, Refusal("invalid_record"))
        runner.fetch(batch_of([Rec(b"", None)] * count))
        await turns()
        looks = 0
        (done,) = runner.bench._done

        class Counted:
            def __init__(self, letter: "asyncio.Future[None]") -> None:
                self.letter = letter

            def done(self) -> bool:
                nonlocal looks
                looks += 1
                return self.letter.done()

            def __getattr__(self, name: str) -> Any:
                return getattr(self.letter, name)

        runner.bench._done[0] = done._replace(letters=tuple(map(Counted, done.letters)))
        for number in range(count):
            await runner.worker.letter_box.acknowledge(number)
        assert runner.lane.checkpoint.position == count
        assert looks <= 5 * count

    on_bench(play)


# ---- merging ----


def waiting_compressed(rig: Rig, runner: Runner, codec: int) -> ProduceRequest:
    """One batch is in flight, five wait, and the core asks whether they could be one."""
    runner.fetch(batch_of(recs(1), 0, codec))
    request = rig.gather()
    assert request is not None
    runner.fetch(*[batch_of(recs(1, n), n, codec) for n in range(1, 6)])
    runner.bench.merge_asked = True
    return request


@pytest.mark.parametrize(
    ("codec", "settings", "batches"),
    [(LZ4, TARGET, 1), (GZIP, TARGET, 5), (LZ4, TargetTopic(max_message_bytes=150), 5)],
)
def test_compressed_batches_are_merged_where_it_pays_and_they_fit(
    codec: int, settings: TargetTopic, batches: int
) -> None:
    async def play(rig: Rig, runner: Runner) -> None:
        request = waiting_compressed(rig, runner, codec)
        await turns()
        rig.acknowledge(request)
        sent = runner.sent()
        assert (records_of(sent), len(sent)) == (recs(5, 1), batches)

    on_bench(play, settings=settings, terms=Terms(merge_bytes=1 << 20))


def test_what_is_merged_keeps_to_a_limit_that_was_learned() -> None:
    async def play(rig: Rig, runner: Runner) -> None:
        request = waiting_compressed(rig, runner, LZ4)
        runner.refusals.bytes_max = 150
        await turns()
        rig.acknowledge(request)
        assert len(runner.sent()) == 5

    on_bench(play, terms=Terms(merge_bytes=1 << 20))


# ---- turns ----


class Slow:
    """A bench that has so many batches, each of which takes a whole slice."""

    def __init__(self, name: str, count: int, log: list[str]) -> None:
        self.name, self.left, self.log = name, count, log

    def step(self, _opener: Opener) -> bool:
        if not self.left:
            return False
        self.left -= 1
        self.log.append(self.name)
        return True


def test_lanes_take_turns_and_the_loop_is_served_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    clock = iter(range(1000))
    monkeypatch.setattr(rebuild.time, "perf_counter", lambda: next(clock) * rebuild.TURN_S / 2)

    async def run() -> None:
        with Rig() as rig:
            rebuilder = rebuild.Rebuilder(rig.pool)
            for bench in (Slow("a", 3, log), Slow("b", 2, log)):
                rebuilder.ask(bench)  # type: ignore[arg-type]
                rebuilder.ask(bench)  # type: ignore[arg-type]
            for _ in range(12):
                await asyncio.sleep(0)
                log.append("|")

    asyncio.run(run())
    words = "".join(log)
    assert words.replace("|", "") == "ababa"
    assert "aa" not in words
    assert max(map(len, words.split("|"))) == 1
