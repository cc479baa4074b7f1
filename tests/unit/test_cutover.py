"""A planned cutover, against a model of two clusters: what it waits for, proves, and refuses."""

from typing import Any

import pytest

from replicator.control.cutover import CHANGED, NOT_CARRIED, PROVEN, READY, WAITING, GroupResult
from replicator.control.group_admin import Committed, Listing, TopicPartition
from replicator.control.group_rules import ACTIVE, AHEAD, NOT_YET
from replicator.errors import ConnectionLost
from tests.oracle.groups import ORDERS, ModelGroup, World, make_world


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return make_world(monkeypatch)


def verdicts(result: GroupResult) -> dict[tuple[str, int], str]:
    return {(proof.topic, proof.partition): proof.verdict for proof in result.proofs}


def test_a_cutover_proves_every_partition(world: World) -> None:
    world.source.consume("g", ("orders", 1), 50)
    world.state.replicate("orders", 1, 50)
    result = world.cutover("g")["g"]
    assert result.is_good
    proofs = [(each.partition, each.source_offset, each.target_offset, each.read_back) for each in result.proofs]
    assert proofs == [(0, 100, 90, 90), (1, 50, 50, 50)]
    assert verdicts(result) == {("orders", 0): PROVEN, ("orders", 1): PROVEN}
    assert world.lines == []


def test_a_dry_run_commits_nothing(world: World) -> None:
    result = world.cutover("g", dry_run=True, timeout_s=1_000)["g"]
    assert result.is_good
    assert verdicts(result) == {ORDERS: READY}
    assert world.target.commits == []
    world.source.groups["g"].members = 1
    result = world.cutover("g", dry_run=True, timeout_s=1_000)["g"]
    assert (result.is_good, result.problem) == (False, "has members on us (Stable): stop its consumers")


def test_it_waits_for_consumers_and_for_the_link(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.source.groups["g"].members = 1
    world.source.consume("g", ORDERS, 1_005)
    steps = iter([None, "leave", None, "replicate"])
    plain = world.source.list

    async def listing() -> Listing:
        match next(steps, None):
            case "leave":
                world.source.groups["g"].members = 0
            case "replicate":
                world.state.replicate("orders", 0, 1_005, shift=-10)
        return await plain()

    monkeypatch.setattr(world.source, "list", listing)
    result = world.cutover("g", timeout_s=30)["g"]
    assert result.is_good
    assert world.offset_there("g") == 995
    assert world.lines == [
        "g: has members on us (Stable): stop its consumers",
        "g: 0 of 1 partitions are ready; orders-0: not yet replicated to 1005",
    ]


def test_what_is_not_ready_in_time_is_not_committed(world: World) -> None:
    world.source.consume("g", ("orders", 1), 51)
    world.state.replicate("orders", 1, 50)
    world.source.consume("h", ORDERS, 7)
    found = world.cutover("g", "h", timeout_s=0.01)
    assert verdicts(found["g"]) == {("orders", 0): WAITING, ("orders", 1): NOT_YET}
    assert not found["g"].is_good
    assert found["h"].is_good
    assert "g" not in world.target.groups


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda world: world.source.groups.clear(), "there is no such group on us"),
        (lambda world: world.source.groups["g"].offsets.clear(), "has committed nothing on us"),
        (
            lambda world: setattr(world.source.groups["g"], "type", "share"),
            "a share group is more than its committed offsets: it cannot be carried",
        ),
        (
            lambda world: world.target.groups.update(g=ModelGroup(members=1)),
            "active on target: it has members on eu (Stable)",
        ),
        (lambda world: world.target.groups.update(g=ModelGroup(type="share")), "eu has a share group by that name"),
    ],
)
def test_what_waiting_does_not_help(world: World, change: Any, problem: str) -> None:
    change(world)
    result = world.cutover("g", timeout_s=1_000)["g"]
    assert (result.problem, result.is_good) == (problem, False)
    assert world.target.commits == []


def test_partitions_the_link_does_not_carry_are_named(world: World) -> None:
    world.source.consume("g", ("other", 3), 1)
    result = world.cutover("g", timeout_s=1_000)["g"]
    assert verdicts(result) == {ORDERS: PROVEN, ("other", 3): NOT_CARRIED}
    assert not result.is_good


def test_a_target_that_is_ahead_is_not_set_back(world: World) -> None:
    world.target.consume("g", ORDERS, 95)
    result = world.cutover("g")["g"]
    assert verdicts(result) == {ORDERS: AHEAD}
    assert (result.is_good, world.offset_there("g")) == (False, 95)


def test_a_target_that_was_set_back_is_moved_all_the_same(world: World) -> None:
    world.sync()
    world.target.groups["g"].offsets[ORDERS] = Committed(3)
    world.sync()
    assert world.cutover("g")["g"].is_good
    assert world.offset_there("g") == 90


def test_what_comes_in_between_is_seen(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A late commit of a sync is written over; a source or target that comes to life is not proven."""
    plain, calls = world.target.commit, []

    async def commit(group: str, offsets: dict[TopicPartition, Committed]) -> dict[TopicPartition, int]:
        codes = await plain(group, offsets)
        calls.append(group)
        if len(calls) == 1:
            world.target.groups[group].offsets[ORDERS] = Committed(80, "late")
        return codes

    monkeypatch.setattr(world.target, "commit", commit)
    assert world.cutover("g")["g"].is_good
    assert (len(calls), world.offset_there("g")) == (2, 90)

    async def wake_source(group: str, offsets: dict[TopicPartition, Committed]) -> dict[TopicPartition, int]:
        world.source.consume("g", ORDERS, 101)
        return await plain(group, offsets)

    monkeypatch.setattr(world.target, "commit", wake_source)
    assert verdicts(world.cutover("g")["g"]) == {ORDERS: CHANGED}

    async def wake_target(group: str, offsets: dict[TopicPartition, Committed]) -> dict[TopicPartition, int]:
        world.target.groups[group].members = 1
        return await plain(group, offsets)

    monkeypatch.setattr(world.target, "commit", wake_target)
    result = world.cutover("g")["g"]
    assert verdicts(result) == {ORDERS: ACTIVE}
    assert result.problem == "active on target: it has members on eu"


def test_a_broker_that_does_not_answer_is_asked_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, failures = world.source.list, [ConnectionLost("gone")]

    async def listing() -> Listing:
        if failures:
            raise failures.pop()
        return await plain()

    monkeypatch.setattr(world.source, "list", listing)
    assert world.cutover("g", timeout_s=30)["g"].is_good
    assert world.lines == ["g: gone"]
    failures.append(ConnectionLost("gone"))
    assert world.cutover("g")["g"].problem == "gone"
