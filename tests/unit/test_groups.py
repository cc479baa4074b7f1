"""Consumer groups' offsets: the rules case by case, and whole rounds against a model of two clusters."""

import random
from typing import Any, NamedTuple

import pytest

from replicator.config.models import Groups, Rename
from replicator.control import groups as rounds
from replicator.control.group_admin import Committed, Listing
from replicator.control.group_rules import (
    ACTIVE,
    AHEAD,
    FAILED,
    GONE,
    MOVED,
    NO_PARTITION,
    NOT_YET,
    REFRESH_MS,
    SYNCED,
    UNSUPPORTED,
    judge,
)
from replicator.errors import ClusterError, ConnectionLost
from replicator.state.records import GroupOffset, GroupRecord, LaneKey, decode
from tests.oracle.groups import NOW_MS, ORDERS, ModelGroup, World, make_world

# ---- one partition ----

WROTE = GroupOffset(0, 100, SYNCED, "", 100, 90, NOW_MS - 1)  # source 100 stood for 90 on the target
NEVER = GroupOffset(0, 100, SYNCED)
OLD = GroupOffset(0, 100, SYNCED, "", 100, 90, NOW_MS - REFRESH_MS)


class Case(NamedTuple):
    """Offsets of the source, of the target by translation, and of the target as it is."""

    what: str
    source: int
    translated: int
    there: int | None
    last: GroupOffset
    is_unused: bool
    state: str
    commit: bool


CASES = [
    Case("nothing there yet", 100, 90, None, NEVER, True, SYNCED, True),
    Case("nothing there any more", 100, 90, None, WROTE, True, SYNCED, True),
    Case("nothing there, but it was used", 100, 90, None, WROTE, False, SYNCED, True),
    Case("unchanged", 100, 90, 90, WROTE, True, SYNCED, False),
    Case("unchanged, and used", 100, 90, 90, WROTE, False, SYNCED, False),
    Case("unchanged, but about to expire", 100, 90, 90, OLD, True, SYNCED, True),
    Case("the same by chance: its age is not known", 100, 90, 90, NEVER, True, SYNCED, True),
    Case("where a cutover put it: ours from now on", 110, 100, 100, WROTE, True, SYNCED, True),
    Case("forward", 110, 100, 90, WROTE, True, SYNCED, True),
    Case("forward, and used", 110, 100, 90, WROTE, False, SYNCED, True),
    Case("forward, from an offset of somebody else", 110, 100, 70, WROTE, True, SYNCED, True),
    Case("forward on the target alone: a gap there", 100, 95, 90, WROTE, True, SYNCED, True),
    Case("source was reset", 40, 30, 90, WROTE, True, SYNCED, True),
    Case("source was reset to its start", 0, 0, 90, WROTE, True, SYNCED, True),
    Case("source was reset, but the target was used", 40, 30, 90, WROTE, False, AHEAD, False),
    Case("source was reset, but the offset is not ours", 40, 30, 91, WROTE, True, AHEAD, False),
    Case("source was reset before we ever wrote", 40, 30, 90, NEVER, True, AHEAD, False),
    Case("not reset: the map says otherwise now", 100, 80, 90, WROTE, True, AHEAD, False),
    Case("ahead", 100, 90, 95, WROTE, False, AHEAD, False),
    Case("set back on the target", 100, 90, 10, WROTE, True, MOVED, False),
    Case("set back on the target, then the source went on", 101, 91, 10, WROTE, True, SYNCED, True),
    Case("set back on the target, then the source was reset beyond it", 40, 30, 10, WROTE, True, SYNCED, True),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
def test_the_rules(case: Case) -> None:
    there = None if case.there is None else Committed(case.there)
    verdict = judge(Committed(case.source), case.translated, there, case.last, case.is_unused, NOW_MS)
    assert (verdict.state, verdict.commit) == (case.state, case.commit)
    assert bool(verdict.reason) is (verdict.state != SYNCED)


def test_a_changed_text_is_carried_though_the_offset_stands() -> None:
    verdict = judge(Committed(100, "new"), 90, Committed(90, "old"), WROTE, True, NOW_MS)
    assert (verdict.state, verdict.commit) == (SYNCED, True)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return make_world(monkeypatch)


# ---- rounds ----


def test_a_group_is_carried_with_its_text_and_without_a_leader_epoch(world: World) -> None:
    status = world.sync()["g"]
    assert (status.record.state, status.record.reason) == (SYNCED, "")
    assert world.target.groups["g"].offsets == {ORDERS: Committed(90, "text", -1)}
    (checkpoint,) = status.checkpoints
    assert checkpoint == ("g", "orders", 0, 100, 90, "text")


def test_nothing_is_written_that_is_not_new(world: World) -> None:
    for _ in range(3):
        world.sync()
    assert (len(world.target.commits), world.state.writes) == (1, 1)
    world.source.consume("g", ORDERS, 101, "text")
    world.sync()
    assert (len(world.target.commits), world.state.writes) == (2, 2)
    world.now_ms += REFRESH_MS
    world.sync()
    assert (len(world.target.commits), world.offset_there("g")) == (3, 91)


def test_not_beyond_what_is_replicated(world: World) -> None:
    world.source.consume("g", ORDERS, 1_001)
    world.source.consume("g", ("orders", 1), 5)
    world.state.replicate("orders", 1, 50)
    assert world.state_of("g") == (NOT_YET, "not yet replicated to 1001")
    record = world.sync()["g"].record
    assert (record.state, record.reason) == (NOT_YET, "orders-0: not yet replicated to 1001")
    assert world.target.groups["g"].offsets == {("orders", 1): Committed(5)}
    world.state.replicate("orders", 0, 1_001, shift=-10)
    assert world.state_of("g") == (SYNCED, "")
    assert world.offset_there("g") == 991


def test_an_active_target_group_is_left_alone(world: World) -> None:
    world.target.groups["g"] = ModelGroup(members=1)
    assert world.state_of("g") == (ACTIVE, "")
    status = world.sync()["g"]
    assert (status.record.state, status.record.ever_active) == (ACTIVE, True)
    assert [each.downstream for each in status.checkpoints] == [90]
    assert world.target.commits == []
    world.target.groups["g"].members = 0
    assert world.state_of("g") == (SYNCED, "")
    assert world.offset_there("g") == 90


def test_a_group_that_comes_to_life_between_look_and_commit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def see_nobody() -> Listing:
        return Listing({}, ())

    world.target.groups["g"] = ModelGroup(members=2)
    monkeypatch.setattr(world.target, "list", see_nobody)
    status = world.sync()["g"]
    assert (status.record.state, status.record.ever_active) == (ACTIVE, True)


def test_a_reset_is_followed_also_by_the_next_leader(world: World) -> None:
    world.sync()
    world.new_leader()
    world.source.consume("g", ORDERS, 20)
    assert world.state_of("g") == (SYNCED, "")
    assert world.offset_there("g") == 10


def test_a_reset_is_followed_when_it_is_replicated(world: World) -> None:
    """The look between reset and commit must not forget that there was a reset."""
    world.sync()
    world.source.consume("g", ORDERS, 20)
    world.state.damaged.add(LaneKey("orders", 0))
    assert world.state_of("g")[0] == FAILED
    world.new_leader()
    world.state.damaged.clear()
    assert world.state_of("g") == (SYNCED, "")
    assert world.offset_there("g") == 10


@pytest.mark.parametrize("seen", ["members", "an offset of a consumer"])
def test_a_reset_is_not_followed_once_the_target_group_was_used(world: World, seen: str) -> None:
    world.sync()
    if seen == "members":
        world.target.groups["g"].members = 1
        world.sync()
        world.target.groups["g"].members = 0
    else:
        world.target.consume("g", ORDERS, 90)
    world.new_leader()
    world.source.consume("g", ORDERS, 20)
    assert world.state_of("g") == (AHEAD, "90 there, while the source's 20 stands for 10")
    assert world.offset_there("g") == 90


def test_set_back_on_the_target(world: World) -> None:
    world.sync()
    world.target.groups["g"].offsets[ORDERS] = Committed(3)
    assert world.state_of("g") == (MOVED, "set back to 3 there, after 90 was committed")
    assert world.offset_there("g") == 3
    world.source.consume("g", ORDERS, 101)
    assert world.state_of("g") == (SYNCED, "")


def test_what_the_link_does_not_have(world: World) -> None:
    world.source.consume("g", ("orders", 7), 1)
    assert world.state_of("g", partition=7) == (NO_PARTITION, "the link has no lane for it")
    world.state.replicate("orders", 7, 50)
    assert world.state_of("g", partition=7) == (NO_PARTITION, "the target does not have it")
    world.target.partitions = 8
    assert world.state_of("g", partition=7) == (SYNCED, "")
    world.source.consume("g", ("other", 0), 1)
    world.source.consume("h", ("other", 0), 1)
    assert {group: set(status.record.topics) for group, status in world.sync().items()} == {"g": {"orders"}}


def test_topics_made_anew_are_not_taken_for_the_old_ones(world: World) -> None:
    world.state.lanes[LaneKey("orders", 0)].topic_id = "AAAAAAAAAAAAAAAAAAAAAQ"
    assert world.state_of("g") == (SYNCED, "")
    world.source.topics["orders"].topic_id = bytes(15) + b"\2"
    assert world.state_of("g")[0] == FAILED
    assert "made anew on the source" in world.state_of("g")[1]
    del world.target.topics["orders"]
    world.source.topics["orders"].topic_id = bytes(15) + b"\1"
    assert world.state_of("g") == (NO_PARTITION, "the target does not have topic orders")


def test_names_of_groups_and_topics(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = Groups(include=("app-.*",), exclude=("app-x",), rename="us.{group}")
    world = World(monkeypatch, groups=groups, rename=Rename(prefix="us."))
    world.state.replicate("orders", 0, 50, target="us.orders")
    for name in ("app-1", "app-x", "other"):
        world.source.consume(name, ORDERS, 7)
    assert list(world.sync()) == ["app-1"]
    assert list(world.target.groups) == ["us.app-1"]
    assert world.target.groups["us.app-1"].offsets == {("us.orders", 0): Committed(7)}


def test_another_name_has_another_memory(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    world.sync()
    renamed = World(monkeypatch, groups=Groups(rename="{group}.copy"))
    renamed.state, renamed.source = world.state, world.source
    renamed.new_leader()
    renamed.target.groups["g.copy"] = ModelGroup({ORDERS: Committed(90)})
    renamed.source.consume("g", ORDERS, 20)
    assert renamed.state_of("g")[0] == AHEAD


def test_kinds_of_groups_that_cannot_be_carried(world: World) -> None:
    world.source.groups["s"] = ModelGroup(type="share")
    world.target.groups["g"] = ModelGroup(type="streams")
    found = world.sync()
    assert (found["s"].record.state, found["g"].record.state) == (UNSUPPORTED, UNSUPPORTED)
    assert "share" in found["s"].record.reason
    assert "the target has a streams group" in found["g"].record.reason


def test_one_group_s_errors_are_its_own(world: World) -> None:
    world.source.consume("h", ORDERS, 50)
    world.source.consume("i", ORDERS, 60)
    world.source.errors["g"] = ClusterError(30, "offsets of group g")
    world.target.errors["h"] = ConnectionLost("gone")
    found = world.sync()
    assert {group: status.record.state for group, status in found.items()} == {"g": FAILED, "h": FAILED, "i": SYNCED}
    assert "GROUP_AUTHORIZATION_FAILED" in found["g"].record.reason


def test_what_is_known_survives_an_error(world: World) -> None:
    world.sync()
    world.source.errors["g"] = ConnectionLost("gone")
    assert world.sync()["g"].record.state == FAILED
    del world.source.errors["g"]
    world.new_leader()
    world.source.consume("g", ORDERS, 20)
    assert world.state_of("g") == (SYNCED, "")


def test_groups_that_are_gone_are_forgotten_after_a_while(world: World) -> None:
    world.sync()
    group = world.source.groups.pop("g")
    world.source.list_errors = (ConnectionLost("a broker is down"),)
    assert world.sync() == {}
    assert len(world.state.kept) == 1
    world.source.list_errors = ()
    assert world.sync()["g"].record.state == GONE
    world.now_ms += rounds.GONE_KEPT_MS - 1
    world.new_leader()
    assert world.sync()["g"].record.state == GONE
    world.now_ms += 1
    assert world.sync() == {}
    assert world.state.kept == {}
    assert world.sync() == {}
    world.source.groups["g"] = group
    assert world.sync()["g"].record.state == SYNCED


def test_records_say_what_they_need_and_stay_small(world: World) -> None:
    world.source.partitions = world.target.partitions = 10_000
    for partition in range(10_000):
        world.state.replicate("orders", partition, 10**12)
        world.source.consume("g", ("orders", partition), 10**12 - partition)
    record = world.sync()["g"].record
    assert len(record.topics["orders"]) == 10_000
    assert record.topics["orders"][3] == GroupOffset(3, 10**12 - 3, SYNCED, "", 10**12 - 3, 10**12 - 3, NOW_MS)
    (value,) = world.state.kept.values()
    assert len(value) < 1_000_000, "a record must fit Kafka's default limit"
    assert decode(value, GroupRecord) == record.__class__(**{**_fields(record), "written_ms": NOW_MS})


def _fields(record: GroupRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__struct_fields__}


# ---- any history ----


class History:
    """Consumers, operators, the link and its leaders do what they like, in any order; the target group may be used."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.draw = random.Random(seed)
        self.shift, self.position = self.draw.randrange(20), 50
        self.is_used = self.is_moved = False
        self.may_use, self.may_move = seed % 2 == 1, seed % 3 == 0
        self.commits = 0
        world.state.replicate("orders", 0, self.position, self.shift)
        world.source.consume("g", ORDERS, 10)
        self.target = world.target.groups.setdefault("g", ModelGroup())

    def step(self) -> None:
        names = [name for name in dir(self) if name.startswith("do_")]
        getattr(self, self.draw.choice([*names, "do_sync"]))()

    def do_consume(self) -> None:
        here = self.world.source.groups["g"].offsets[ORDERS].offset
        self.world.source.consume("g", ORDERS, here + self.draw.randrange(30), self.draw.choice(["", "a", "b"]))

    def do_reset(self) -> None:
        self.world.source.groups["g"].offsets[ORDERS] = Committed(self.draw.randrange(self.position + 10))

    def do_replicate(self) -> None:
        self.position += self.draw.randrange(40)
        self.world.state.replicate("orders", 0, self.position, self.shift)

    def do_join(self) -> None:
        if self.may_use:
            self.target.members = 1

    def do_leave(self) -> None:
        self.target.members = 0

    def do_use(self) -> None:
        if self.target.members:
            self.is_used = True
            self.world.target.consume("g", ORDERS, self._somewhere())

    def do_move(self) -> None:  # an operator's tool, which leaves no epoch
        if self.may_move and not self.target.members:
            self.is_moved = True
            self.target.offsets[ORDERS] = Committed(self._somewhere())

    def _somewhere(self) -> int:
        return self.draw.randrange(self.position + self.shift + 1)

    def do_lead(self) -> None:
        self.world.new_leader()

    def do_sync(self) -> None:
        before, taken = self.world.offset_there("g"), len(self.world.target.commits)
        record = self.world.sync()["g"].record
        after, commits = self.world.offset_there("g"), self.world.target.commits[taken:]
        source = self.world.source.groups["g"].offsets[ORDERS]
        is_replicated = source.offset <= self.position
        self.commits += len(commits)
        self.is_used |= bool(self.target.members)
        assert not (commits and self.target.members)
        if commits:
            assert is_replicated
            assert self.target.offsets[ORDERS] == Committed(source.offset + self.shift, source.metadata)
        if self.is_used and before is not None:
            assert after is not None
            assert after >= before
        if not self.is_used and not self.is_moved:
            assert after == (source.offset + self.shift if is_replicated else before)
            assert record.state == (SYNCED if is_replicated else NOT_YET)


def test_promises_hold_in_any_history(monkeypatch: pytest.MonkeyPatch) -> None:
    """After every round: nothing was committed beyond what is replicated, nor to a group with members, nor backwards
    once somebody was in the group; and as long as nobody was, a target group is exactly where its source group is.
    """
    commits = [0, 0]
    for seed in range(300):
        history = History(World(monkeypatch), seed)
        for _ in range(60):
            history.step()
        commits[history.is_used] += history.commits
    assert min(commits) > 300, "too little happened to prove anything"
