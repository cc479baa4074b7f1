"""What supervisor and worker say to each other comes out as it went in, types and all."""

import asyncio

import msgspec
import pytest
from msgspec.structs import replace

from replicator.config.edits import Edit, HeaderMatch, HeaderRename, HeaderValue
from replicator.config.edits import Where as Records
from replicator.config.models import Batches, DeadLetterTopic, Link, Policy
from replicator.config.recipes import policy_hash, recipe
from replicator.control.workers import LANES_PER_ORDER, WorkerProcess
from replicator.data import orders
from replicator.data.orders import (
    Assign,
    LaneSpec,
    Loops,
    Order,
    Report,
    SettingsChanged,
    TargetTopic,
    write_message,
)

SPEC = LaneSpec(0, "us-eu", "us", "eu", "orders", "us.orders", 3, bytes(15) + b"\1", 4000, 2)
SETTINGS = TargetTopic(2_000_000, "zstd", "LogAppendTime", 3_600_000, 60_000, True)

RECIPE = (
    ("drop_hops", b"eu-id"),
    ("header_set", b"a", None, ("any", ("key", "prefix", b"\xff\x00"), ("not", ("tombstone",)))),
    ("header_rename", "x-(.*)", r"y-\1", None),
    ("header_drop", b"secret", ("timestamp", None, 2**62)),
    ("divert", "too large", ("size", 1_000)),
    ("drop", ("all", ("header", b"h"), ("all", ("key_null",), ("header", b"h", "equals", b"")))),
    ("provenance", b"us-id", b"orders", 3),
)


class Wire:
    """A writer's end, and what a reader makes of it."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.is_open = True

    def write(self, chunk: bytes) -> None:
        self.sent += chunk

    def is_closing(self) -> bool:
        return not self.is_open

    def heard(self) -> list[Order | Report]:
        decoder: msgspec.msgpack.Decoder[Order | Report] = msgspec.msgpack.Decoder(Order | Report)

        async def read() -> list[Order | Report]:
            reader = asyncio.StreamReader()
            reader.feed_data(bytes(self.sent))
            reader.feed_eof()
            found = []
            while not reader.at_eof():
                found.append(await orders.read_message(reader, decoder))
            return found

        return asyncio.run(read())


def there_and_back(message: Order | Report) -> Order | Report:
    wire = Wire()
    write_message(wire, message)  # type: ignore[arg-type]
    (found,) = wire.heard()
    return found


def types(part: object) -> object:
    return tuple(map(types, part)) if isinstance(part, tuple) else type(part)


def test_a_lane_with_all_that_it_can_have() -> None:
    spec = replace(
        SPEC,
        policy=Policy(record_faults="skip"),
        isolation="read_uncommitted",
        recipe=RECIPE,
        policy_hash="0123456789abcdef",
        batches=Batches(codec="zstd", merge="always", linger_ms=5),
        dead_letters=DeadLetterTopic(topic="bad", on="source"),
        settings=SETTINGS,
    )
    found = there_and_back(Assign([spec, SPEC]))
    assert found == Assign([spec, SPEC])
    assert isinstance(found, Assign)
    assert found.lanes[0].recipe == RECIPE
    assert types(found.lanes[0].recipe) == types(RECIPE), "a list would equal no tuple, and text is not bytes"


def test_what_a_link_says_about_records_gets_to_the_lane() -> None:
    edits = (
        Edit(add_header=HeaderValue("a", "b"), where=Records(tombstone=False)),
        Edit(rename_header=HeaderRename(matching="x-(.*)", to=r"y-\1")),
        Edit(drop_header=HeaderMatch(name="secret")),
    )
    link = Link("us", "eu", edits=edits, provenance=True, loops="prevent")
    steps = recipe(link, "orders", "us-id", 3)
    assert [step[0] for step in steps] == ["header_add", "header_rename", "header_drop", "provenance"]
    spec = replace(SPEC, recipe=steps, loops=Loops("us-id", "eu-id"), policy_hash=policy_hash(link, "orders"))
    found = there_and_back(Assign([spec]))
    assert isinstance(found, Assign)
    assert (types(found.lanes[0].recipe), found.lanes[0]) == (types(steps), spec)


@pytest.mark.parametrize("settings", [TargetTopic(), SETTINGS])
def test_changed_settings(settings: TargetTopic) -> None:
    assert there_and_back(SettingsChanged([0, 7, 2**31], settings)) == SettingsChanged([0, 7, 2**31], settings)


# ---- a worker's place ----


def place(wire: Wire, lanes: list[LaneSpec]) -> WorkerProcess:
    """Without its process."""
    worker = object.__new__(WorkerProcess)
    worker.lanes = lanes
    worker._orders = wire  # type: ignore[assignment]
    return worker


def lanes(count: int) -> list[LaneSpec]:
    return [replace(SPEC, row=row, partition=row) for row in range(count)]


def test_a_worker_hears_of_its_own_lanes_only() -> None:
    wire = Wire()
    worker = place(wire, lanes(5))
    other = TargetTopic(max_message_bytes=9)
    worker.change_settings({1: SETTINGS, 2: other, 3: SETTINGS, 9: SETTINGS})
    worker.change_settings({10: SETTINGS})
    assert wire.heard() == [SettingsChanged([1, 3], SETTINGS), SettingsChanged([2], other)]
    assert [lane.settings for lane in worker.lanes] == [TargetTopic(), SETTINGS, other, SETTINGS, TargetTopic()]
    assert [lane.row for lane in worker.lanes] == [0, 1, 2, 3, 4]


def test_between_two_processes_the_lanes_are_kept_up_all_the_same() -> None:
    wire = Wire()
    worker = place(wire, lanes(2))
    wire.is_open = False
    worker.change_settings({1: SETTINGS})
    assert not wire.sent
    wire.is_open = True
    worker._send_lanes(worker.lanes)
    assert wire.heard() == [Assign(worker.lanes)]
    assert [lane.settings for lane in worker.lanes] == [TargetTopic(), SETTINGS]


@pytest.mark.parametrize("count", [0, 1, LANES_PER_ORDER, LANES_PER_ORDER + 1, 3 * LANES_PER_ORDER])
def test_many_lanes_come_in_several_orders(count: int) -> None:
    wire, every = Wire(), lanes(count)
    place(wire, [])._send_lanes(every)
    found = wire.heard()
    assert [lane for order in found for lane in order.lanes] == every  # type: ignore[union-attr]
    assert all(len(order.lanes) <= LANES_PER_ORDER for order in found)  # type: ignore[union-attr]
