"""As much of a worker and its lane's runner as opening batches takes: what is asked of them is written down.

The core, the Bench and the Disposal are real; the letters are acknowledged by the test.
"""

import asyncio
import warnings
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from msgspec import structs

from replicator.config.models import Batches, Policy
from replicator.data.dead_letters import DeadLetter
from replicator.data.disposal import Disposal
from replicator.data.orders import LaneSpec, TargetTopic
from replicator.data.rebuild import Bench, Rebuilder
from replicator.data.refusals import Refusals
from tests.oracle.batch import CODEC, Batch
from tests.oracle.fetch import Fetched
from tests.oracle.opened import unpack
from tests.oracle.rig import LaneRig, Rig
from tests.oracle.scripted_log import Rec, stored

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # kafka-python reads its resources in an old way
    from kafka.record.default_records import DefaultRecordBatch

SPEC = LaneSpec(
    row=0,
    link="us-eu",
    source="us",
    target="eu",
    topic="orders",
    target_topic="orders",
    partition=0,
    topic_id=bytes(16),
    producer_id=9001,
    producer_epoch=3,
)


TARGET = TargetTopic()


def lane_spec(recipe: tuple[Any, ...] = (), policy: Policy = Policy(), **batches: Any) -> LaneSpec:  # noqa: B008
    return structs.replace(SPEC, recipe=recipe, policy=policy, batches=Batches(**batches))


def witnessed(data: bytes) -> list[Rec]:
    """The records of a batch that brokers would take, as kafka-python reads them; it must be such a batch."""
    batch = DefaultRecordBatch(bytes(data))
    assert batch.validate_crc()
    header = Batch.parse(bytes(data))
    codec = header.attributes & CODEC
    plain = replace(header, attributes=header.attributes & ~CODEC, records=unpack(header.records, codec))
    records = list(DefaultRecordBatch(plain.encode()))  # it has no codecs of its own here, but gzip
    assert [record.offset - header.base_offset for record in records] == list(range(header.count))
    assert header.count == header.last_delta + 1 >= 1
    assert header.max_timestamp == max(record.timestamp for record in records)
    return [
        Rec(
            *(bytes(part) if part is not None else None for part in (record.value, record.key)),
            record.timestamp,
            tuple((name, value) for name, value in record.headers),
        )
        for record in records
    ]


@dataclass
class Letters:
    """Of a link, to nowhere."""

    sent: list[DeadLetter] = field(default_factory=list)
    futures: list["asyncio.Future[None]"] = field(default_factory=list)

    def send(self, letter: DeadLetter) -> "asyncio.Future[None]":
        self.sent.append(letter)
        self.futures.append(asyncio.get_running_loop().create_future())
        return self.futures[-1]

    @property
    def offsets(self) -> list[int]:
        return [letter.offset for letter in self.sent]

    async def acknowledge(self, *numbers: int) -> None:
        """These of all that were sent; without numbers all."""
        for number in numbers or range(len(self.futures)):
            if not self.futures[number].done():
                self.futures[number].set_result(None)
        await turns()


async def turns(count: int = 5) -> None:
    """Lets what is due run."""
    for _ in range(count):
        await asyncio.sleep(0)


class Worker:
    """With one lane, one link, and a Rebuilder."""

    def __init__(self, rig: Rig) -> None:
        self.rows, self.letter_box, self.rebuilder = self, Letters(), Rebuilder(rig.pool)
        self.counts: Counter[str] = Counter()
        self.pumped = 0

    def add(self, _row: int, column: str, amount: int) -> None:
        self.counts[column] += amount

    def letters(self, link: str) -> Letters:
        assert link == SPEC.link
        return self.letter_box

    def pump_soon(self) -> None:
        self.pumped += 1

    def rebuild_soon(self, bench: Bench) -> None:
        self.rebuilder.ask(bench)

    def bench(self, runner: Any) -> Bench:
        return Bench(runner)

    def loops(self, _spec: LaneSpec) -> None:
        return None


class Runner:
    """A lane of the worker that runs on a rig. `said` is what it was told, in order."""

    def __init__(
        self,
        rig: Rig,
        worker: Worker,
        spec: LaneSpec = SPEC,
        settings: TargetTopic = TARGET,
        **flags: Any,
    ) -> None:
        self.rig, self.worker, self.spec, self.source = rig, worker, spec, None
        self.refusals = Refusals(spec, settings)
        self.lane: LaneRig = rig.lane(terms=flags.pop("terms", self.refusals.terms()), **flags)
        self.native = self.lane.native
        self.disposal = Disposal(self)  # type: ignore[arg-type]
        self.bench = Bench(self)  # type: ignore[arg-type]
        self.draining = False
        self.said: list[tuple[Any, ...]] = []
        self.announced = 0

    def topic_id(self, _partition: Any) -> bytes:
        return bytes(16)

    def counter(self, column: str) -> int:
        return self.lane[column]

    def announce_soon(self) -> None:
        self.announced += 1

    def tell(self, trigger: Any, reason: str) -> None:
        self.said.append(("told", trigger.kind, reason))

    def stop(self, trigger: Any, reason: str) -> None:
        self.said.append(("stop", trigger.kind, reason))

    def on_damage(self, reason: str) -> None:
        self.said.append(("damaged", int(reason.split("source offset ")[1].split(":")[0])))

    def on_cannot_take(self, verdict: str, offset: int) -> None:
        self.said.append(("cannot take", verdict, offset))

    def on_letter_lost(self, why: str) -> None:
        self.said.append(("letter lost", why))
        self.disposal.passed(self.lane.checkpoint.position)
        self.native.halt()

    # ---- the lane's life ----

    def fetch(self, *batches: Batch) -> None:
        """They arrive, and what is to be opened will be."""
        request = self.rig.ask()
        assert request is not None
        data = b"".join(map(stored, batches))
        self.rig.feed(self.rig.response((self.lane, Fetched(self.lane.partition, data))))
        self.worker.rebuild_soon(self.bench)

    def resume(self) -> None:
        """Goes on from its checkpoint after a halt."""
        self.rig.start(self.lane, self.lane.checkpoint, segments=self.native.segments())

    def sent(self) -> list[bytes]:
        """Everything that waits, sent and acknowledged."""
        found = []
        while (request := self.rig.gather()) is not None:
            found += [data for _, _, data in request.batches]
            assert self.rig.acknowledge(request) == []
        return found
