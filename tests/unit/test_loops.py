"""Which producers are links: the native table, the lane that asks, the registry that reads, the link that registers."""

import asyncio
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace as with_fields

from replicator._core import VERDICTS, Producers
from replicator.config.load import parse
from replicator.config.models import Link, Policy
from replicator.control import leader as leader_module
from replicator.control.leader import Leader
from replicator.data import loops as loops_module
from replicator.data import start
from replicator.data.loops import PROBE, LoopRegistry, preflight, state_topics_in
from replicator.data.orders import LaneSpec, Loops
from replicator.data.placement import LaneStopped
from replicator.data.refusals import Refusals
from replicator.data.states import Checkpoint
from replicator.errors import ClusterError, ConfigError, ProtocolError
from replicator.kafka.cluster import Cluster, TopicMetadata
from replicator.kafka.messages import FETCH
from replicator.state.records import LaneKey, LaneRecord, LinkKey, LinkRecord, encode, state_topic
from tests.oracle.batch import CONTROL, TRANSACTIONAL, Batch
from tests.oracle.fetch import Fetched
from tests.oracle.listed_log import Log, read_tail, use_lists
from tests.oracle.rig import Rig
from tests.oracle.scripted_log import LZ4, Rec, ScriptedLog, batch_of

README = Path(__file__).resolve().parents[2] / "README.md"
S, T, X = "source-id", "target-id", "third-id"
BOTH = Loops(S, T)

# ---- the native table ----


def test_a_table_of_producers_holds_what_it_was_told() -> None:
    table, chance, told = Producers(), random.Random(1), {}
    for _ in range(20_000):
        producer_id = chance.choice([chance.randrange(3_000), chance.randrange(1 << 63)])
        told[producer_id] = chance.choice(["own", "opened", "skipped"])
        table.add(producer_id, told[producer_id])
    assert {producer_id: table[producer_id] for producer_id in told} == told
    assert table[3_001] == "unknown"
    assert table[-1] == "own"
    table.add(-1, "skipped")
    assert table[-1] == "own"


def test_a_full_table_forgets_who_is_no_link() -> None:
    table, most = Producers(), 1 << 19
    links = {producer_id: "skipped" if producer_id % 2 else "opened" for producer_id in range(0, most, 1_001)}
    for producer_id in range(most):
        table.add(producer_id, links.get(producer_id, "own"))
    assert [table[1], table[most - 1], table[most]] == ["own", "own", "unknown"]
    table.add(most, "own")
    assert [table[1], table[most - 1], table[most]] == ["unknown", "unknown", "own"]
    assert {producer_id: table[producer_id] for producer_id in links} == links


# ---- the lane that asks ----


def test_a_lane_waits_in_front_of_a_producer_that_nobody_knows() -> None:
    table = Producers()
    first, later = Batch(0, 3, producer_id=7), Batch(3, 2, producer_id=8)
    with Rig() as rig:
        lane = rig.start(rig.lane(producers=table))
        (event,) = rig.fetch(lane, first, later)
        assert (event.kind, VERDICTS[event.code], event.first, event.second) == ("cannot_take", "refuse_producer", 0, 7)
        assert (lane["fetch_offset"], rig.gather(), rig.ask()) == (0, None, None)
        table.add(7, "own")
        lane.native.unblock(False)
        (event,) = rig.fetch(lane, first, later)
        assert (event.first, event.second, lane["fetch_offset"]) == (3, 8, 3)
        table.add(8, "skipped")
        lane.native.unblock(False)
        assert rig.fetch(lane, later) == []
        request = rig.gather()
        assert request is not None
        rig.acknowledge(request)
        assert lane.checkpoint == Checkpoint(5, 3, 3, 5)
        assert (lane["pass"], lane["skip_loop"], lane["refuse_producer"]) == (1, 1, 0)


def test_one_look_answers_for_all_that_was_there_before() -> None:
    """But for batches of a later epoch: below the high watermark too, they may be of another log than was looked at."""

    def batch(offset: int, epoch: int = 5) -> Batch:
        return Batch(offset, 1, producer_id=100 + offset, leader_epoch=epoch)

    with Rig() as rig:
        lane = rig.start(rig.lane(producers=Producers()))

        def asked(*batches: Batch, high_watermark: int) -> list[int]:
            assert rig.ask()
            answer = Fetched(0, b"".join(each.encode() for each in batches), high_watermark=high_watermark)
            return [event.second for event in rig.feed(rig.response((lane, answer)))]

        assert asked(batch(0), high_watermark=3) == [100]
        lane.native.unblock(False)
        assert asked(batch(0), high_watermark=3) == [100]
        lane.native.unblock(True)
        assert asked(batch(0), batch(1, 4), batch(2), batch(3), high_watermark=9) == [103]
        lane.native.unblock(True)
        assert asked(batch(3), batch(4, 6), high_watermark=9) == [104]
        lane.native.unblock(True)
        assert asked(batch(4, 6), batch(5, -1), high_watermark=9) == [105]


def test_what_has_no_records_needs_no_answer() -> None:
    with Rig() as rig:
        lane = rig.start(rig.lane(producers=Producers()))
        nobody = Batch(2, 1, producer_id=-1)
        marker, emptied = Batch(0, 1, attributes=CONTROL | TRANSACTIONAL), Batch(1, 0, b"", last_offset_delta=0)
        assert rig.fetch(lane, replace(marker, producer_id=5), replace(emptied, producer_id=6), nobody) == []
        assert lane["fetch_offset"] == 3


def test_what_another_link_wrote_is_opened() -> None:
    table = Producers()
    table.add(7, "opened")
    with Rig() as rig:
        lane = rig.start(rig.lane(producers=table))
        (event,) = rig.fetch(lane, Batch(0, 3, producer_id=7))
        raw = lane.native.raw(0)
        assert (event.kind, raw.why, raw.header.producer_id) == ("rebuild_ahead", "rebuild_loop", 7)


def test_who_is_unblocked_while_halted_stays_halted() -> None:
    with Rig() as rig:
        lane = rig.start(rig.lane(producers=Producers()))
        rig.fetch(lane, Batch(0, 3, producer_id=7))
        lane.native.halt()
        lane.native.unblock(False)
        assert rig.ask() is None


# ---- the registry that reads ----


def written(*records: LinkRecord | LaneRecord | None, offset: int = 0, codec: int = LZ4) -> Batch:
    """A batch of a state topic."""
    lane = LaneKey("orders", 0)
    rows = [
        Rec(encode(each) if each else None, encode(lane if isinstance(each, LaneRecord) else LinkKey("l")))
        for each in records
    ]
    return batch_of(rows, offset, codec)


def link_from(cluster_id: str, producer_id: int, *others: int) -> LinkRecord:
    return LinkRecord(producer_id, 0, 4, cluster_id, S, other_producer_ids=others)


SOME_LANE = LaneRecord(1, "id", "orders", "id", 5, 5, 5, 0, 99, 0)


@dataclass(eq=False)
class Source:
    """As much of a Cluster as the registry needs. `refusal` is raised where the topics are asked for."""

    logs: dict[str, ScriptedLog] = field(default_factory=dict)
    alias: str = "us"
    topics: dict[str, TopicMetadata] = field(default_factory=dict)
    refusal: Exception | None = None
    rounds: int = 0

    def add(self, link: str, *batches: Batch, topic_id: bytes = b"1" * 16) -> ScriptedLog:
        name = state_topic(link)
        self.logs[name] = log = ScriptedLog("us", list(batches))
        self.topics[name] = TopicMetadata(name, topic_id, (None,), 1)
        return log

    async def find_topics(self, names_in: Any, also: str) -> set[str]:
        self.rounds += 1
        assert (names_in, also) == (state_topics_in, PROBE)
        await asyncio.sleep(0)
        if self.refusal:
            raise self.refusal
        return set(self.logs)

    def leader(self, topic: str, partition: int) -> Any:
        assert partition == 0
        return self.logs[topic].leader(topic, partition)

    async def request(self, api: Any, body: dict[str, Any], node_id: int) -> dict[str, Any]:
        (asked,) = body["topics"]
        return await self.logs[asked["topic" if api is FETCH else "name"]].request(api, body, node_id)


def kinds(registry: LoopRegistry, *producer_ids: int) -> list[str]:
    async def learn() -> None:
        await asyncio.gather(*map(registry.learn, producer_ids))

    asyncio.run(learn())
    return [registry.table[producer_id] for producer_id in producer_ids]


def registry_of(source: Source) -> LoopRegistry:
    return LoopRegistry(source, BOTH)  # type: ignore[arg-type]


def test_who_is_a_link_and_from_where() -> None:
    source = Source()
    source.add("back", written(SOME_LANE, link_from(T, 10, 11, 12), SOME_LANE))
    source.add("chain", written(link_from(X, 20)))
    source.add("empty")
    registry = registry_of(source)
    assert kinds(registry, 10, 11, 12, 20, 99, 5) == ["skipped"] * 3 + ["opened"] + ["own"] * 2
    assert [registry.written_from(producer_id) for producer_id in (10, 20, 5)] == [T, X, ""]
    assert source.rounds == 1


def test_a_link_that_came_later_is_found_and_old_records_are_not_read_again() -> None:
    source = Source()
    log = source.add("back", written(SOME_LANE, SOME_LANE))
    registry = registry_of(source)
    assert kinds(registry, 1, 2) == ["own", "own"]
    log.batches.append(written(link_from(T, 3), offset=2))
    source.add("new", written(link_from(X, 4)))
    fetches = log.fetches
    assert kinds(registry, 3, 4) == ["skipped", "opened"]
    assert log.fetches == fetches + 1
    assert kinds(registry, 5) == ["own"]
    assert log.fetches == fetches + 1


def test_a_look_that_began_before_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops_module, "ROUND_PAUSE_S", 0)
    source = Source()
    log = source.add("back")
    registry = registry_of(source)

    async def scene() -> None:
        first = asyncio.ensure_future(registry.learn(1))
        while not source.rounds:
            await asyncio.sleep(0)
        log.batches.append(written(link_from(T, 2)))
        await asyncio.gather(first, registry.learn(2), registry.learn(3))

    asyncio.run(scene())
    assert (registry.table[2], registry.table[3], source.rounds) == ("skipped", "own", 2)


def test_a_state_topic_made_anew_is_read_from_its_start_and_nothing_is_forgotten() -> None:
    source = Source()
    source.add("back", written(SOME_LANE, link_from(T, 1)))
    registry = registry_of(source)
    assert kinds(registry, 9) == ["own"]
    source.add("back", written(link_from(T, 2)), topic_id=b"2" * 16)
    assert kinds(registry, 1, 2) == ["skipped", "skipped"]
    source.logs.clear()
    assert kinds(registry, 1, 2, 3) == ["skipped", "skipped", "own"]


def test_a_log_that_was_cut_is_read_from_its_start() -> None:
    source = Source()
    log = source.add("back", written(SOME_LANE, SOME_LANE, SOME_LANE))
    registry = registry_of(source)
    assert kinds(registry, 9) == ["own"]
    log.batches[:] = [written(link_from(T, 2))]
    assert kinds(registry, 2) == ["skipped"]


def test_what_stands_among_the_records_of_a_link_is_passed_over() -> None:
    source = Source()
    strange = batch_of([Rec(b"{", b'{"link":"l","more":1}'), Rec(b"{", b'{"link":'), Rec(b"{", None)], 1)
    marker = Batch(4, 1, b"{", attributes=CONTROL)
    source.add("back", written(None), strange, marker, written(link_from(T, 1), offset=5))
    assert kinds(registry_of(source), 1, 2) == ["skipped", "own"]


@pytest.mark.parametrize(
    ("batch", "error", "words"),
    [
        (written(with_fields(link_from(T, 1), version=99)), ProtocolError, "LinkRecord of version 99"),
        (
            batch_of([Rec(b"{", encode(LinkKey("l")))]),
            ProtocolError,
            "us replicator.l.state-0 offset 0: not a LinkRecord",
        ),
        (replace(written(SOME_LANE), records=b"\0\0"), ProtocolError, "cannot be opened"),
        (written(link_from("", 7)), ConfigError, "producer 7 is a link whose record does not say from which cluster"),
    ],
)
def test_what_cannot_be_told_is_said(batch: Batch, error: type[Exception], words: str) -> None:
    source = Source()
    source.add("l", batch)
    registry = registry_of(source)
    for _ in range(2):
        with pytest.raises(error, match=words):
            kinds(registry, 7)
        assert registry.table[7] == "unknown"


def test_a_record_that_says_more_later_counts() -> None:
    source = Source()
    source.add("l", written(link_from("", 7), link_from(T, 7)))
    assert kinds(registry_of(source), 7) == ["skipped"]


def test_who_may_not_look_is_told_what_it_takes() -> None:
    source = Source(refusal=ClusterError(29, "Metadata"))
    with pytest.raises(
        ClusterError, match=r"READ and DESCRIBE on the source's topics whose names begin with .replicat"
    ):
        asyncio.run(preflight(source, BOTH))  # type: ignore[arg-type]
    source.refusal = None
    source.add("l", written(link_from(T, 7))).failures = [29]
    registry = registry_of(source)
    with pytest.raises(ClusterError, match=r"replicator.l.state-0: .*29.*READ and DESCRIBE"):
        kinds(registry, 7)
    assert kinds(registry, 7) == ["skipped"]


def test_too_many_links(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops_module, "LINKS_MAX", 1)
    source = Source()
    source.add("a")
    source.add("b")
    with pytest.raises(ConfigError, match="more than 1 links have state on us"):
        kinds(registry_of(source), 7)


def test_ids_with_commas_are_refused() -> None:
    with pytest.raises(ConfigError, match="a comma in the target's cluster id a,b"):
        asyncio.run(preflight(Source(), Loops("a", "a,b")))  # type: ignore[arg-type]


def test_names_in_a_list_that_is_not_decoded() -> None:
    names = [b"replicator.us-eu.state", b"replicator.a.offsets", b"replicator.x.state.y.state", b"x.replicator.b.state"]
    listed = b"".join(bytes([len(name) + 1]) + name + bytes(2) + b"abcdefghijklmnop" for name in names)
    listed += b"replicator.c.state" + b"a" * 16 + b"replicator.d.state\0" + b"replicator..state" + b"replicator.state"
    assert state_topics_in(listed) >= {"replicator.us-eu.state", "replicator.x.state.y.state", "replicator.c.state"}
    assert "replicator.d.state" in state_topics_in(b"\0replicator.d.state\0")
    assert not state_topics_in(b"replicator.a.offsets\0orders\0.state")


# ---- every broker is asked ----


@dataclass
class Broker:
    """One that knows of these topics; it tells of all of them unasked, but for those in `secret`."""

    topics: dict[str, int]  # name -> leader epoch
    secret: tuple[str, ...] = ()

    async def request_frame(self, _api: Any, body: dict[str, Any]) -> bytes:
        assert body == {"topics": None}
        return b"\0".join(name.encode() for name in self.topics)

    async def request(self, _api: Any, body: dict[str, Any]) -> dict[str, Any]:
        return {"topics": [self._row(topic["name"]) for topic in body["topics"]]}

    def _row(self, name: str) -> dict[str, Any]:
        code = 29 if name in self.secret else 0 if name in self.topics else 3
        row = {"partition_index": 0, "leader_id": 1, "leader_epoch": self.topics.get(name), "replica_nodes": [1]}
        return {"name": name, "error_code": code, "topic_id": bytes(16), "partitions": [] if code else [row]}


def found_by(*brokers: Broker, monkeypatch: pytest.MonkeyPatch) -> tuple[set[str], dict[str, TopicMetadata]]:
    cluster = object.__new__(Cluster)
    cluster.alias, cluster.topics = "us", {}
    cluster.brokers = {number: ("host", number) for number in range(len(brokers))}

    async def shared(self: Cluster, address: tuple[str, int]) -> Any:
        return brokers[address[1]]

    async def metadata(self: Cluster, topics: Any) -> None:
        assert topics == []

    monkeypatch.setattr(Cluster, "_shared", shared)
    monkeypatch.setattr(Cluster, "_metadata", metadata)
    return asyncio.run(cluster.find_topics(state_topics_in, PROBE)), cluster.topics


def test_a_topic_that_one_broker_knows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = state_topic("a"), state_topic("b")
    names, topics = found_by(Broker({a: 4, "orders": 1}), Broker({a: 5, b: 1}), Broker({a: 3}), monkeypatch=monkeypatch)
    assert names == topics.keys() == {a, b}
    leader = topics[a].leaders[0]
    assert leader
    assert leader.epoch == 5


def test_a_right_that_is_missing_is_noticed_though_lists_are_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClusterError, match=r"us replicator.any.state"):
        found_by(Broker({}, secret=(PROBE,)), monkeypatch=monkeypatch)


# ---- what follows for a lane ----


def spec(**fields: Any) -> LaneSpec:
    return LaneSpec(0, "l", "us", "eu", "orders", "orders", 0, bytes(16), 5, 0, **fields)


def test_the_recipe_is_the_producers() -> None:
    source = Source()
    source.add("chain", written(link_from(X, 20)))
    registry = registry_of(source)
    kinds(registry, 20, 21)
    refusals = Refusals(spec(loops=BOTH), spec().settings, registry)
    assert refusals.recipe(21) is refusals.recipe(-1) is None
    opened = refusals.recipe(20)
    assert opened
    assert opened.steps == (("drop_hops", T.encode()), ("hop", X.encode()), ("hop", S.encode()))
    assert refusals.recipe(20) is opened
    edited = Refusals(spec(loops=BOTH, recipe=(("drop", ("tombstone",)),)), spec().settings, registry)
    mine, theirs = edited.recipe(21), edited.recipe(20)
    assert mine
    assert theirs
    assert [step[0] for step in mine.steps] == ["drop"]
    assert [step[0] for step in theirs.steps] == ["drop_hops", "drop", "hop", "hop"]


TOLERATE = Policy(foreign_writes="tolerate")


@pytest.mark.parametrize(
    ("batches", "fields", "keeps_map", "begins"),
    [
        ([], {}, True, True),
        ([Batch(0, 7)], {}, True, False),
        ([Batch(0, 7)], {"loops": BOTH, "policy": TOLERATE}, True, True),
        ([Batch(0, 7)], {"loops": BOTH, "policy": TOLERATE}, False, False),
        ([Batch(0, 7)], {"loops": BOTH}, True, False),
        ([Batch(0, 7)], {"policy": TOLERATE}, True, False),
        ([Batch(0, 7, producer_id=5)], {"loops": BOTH, "policy": TOLERATE}, True, False),
    ],
)
def test_a_lane_begins_behind_what_others_wrote(
    monkeypatch: pytest.MonkeyPatch, batches: list[Batch], fields: dict[str, Any], keeps_map: bool, begins: bool
) -> None:
    use_lists(monkeypatch, start)
    origin, target = Log([Batch(3, 2)], start=3), Log([replace(each) for each in batches])

    async def place() -> tuple[Checkpoint, int]:
        return await start.first_place(origin, await read_tail(target), spec(**fields), keeps_map)  # type: ignore[arg-type]

    if begins:
        assert asyncio.run(place())[0] == Checkpoint(3, target.end, 0)
    else:
        with pytest.raises(LaneStopped, match="not empty"):
            asyncio.run(place())


def test_the_example_of_the_readme() -> None:
    (links,) = re.findall(r"```\n(links:.*?)```", README.read_text(), re.DOTALL)
    clusters = 'clusters: {us: {bootstrap.servers: "a:1"}, eu: {bootstrap.servers: "b:1"}}\n'
    forth, back = parse(clusters + links).links
    assert (forth.target, back.target, forth.loops, back.loops) == ("eu", "us", "prevent", "prevent")
    assert forth.policy("orders").foreign_writes == "tolerate"


# ---- the link that registers ----


@dataclass
class StateLog:
    """A link's state topic, shared by everybody who opens the link."""

    records: list[LinkRecord] = field(default_factory=list)
    lanes: dict[LaneKey, LaneRecord] = field(default_factory=dict)


class State:
    """Stands for the leader's `_State`. Others may do something between two looks."""

    def __init__(self, log: StateLog) -> None:
        self._log = log
        self.reader, self.writer = self, self
        self.lanes = log.lanes
        self.record: LinkRecord | None = None
        self.first_record: LinkRecord | None = None

    async def catch_up(self) -> None:
        await asyncio.sleep(0)
        self.record = self._log.records[-1] if self._log.records else None
        self.first_record = self.first_record or next(iter(self._log.records), None)

    async def write(self, topic: str, partition: int, key: LinkKey, record: LinkRecord) -> None:
        assert (topic, partition, key) == (state_topic("l"), 0, LinkKey("l"))
        await asyncio.sleep(0)
        self._log.records.append(record)


class Named:
    def __init__(self, cluster_id: str) -> None:
        self.cluster_id = cluster_id


class Made:
    async def ensure(self, _topic: str, partitions: int, _settings: Any) -> int:
        return partitions


def opened(monkeypatch: pytest.MonkeyPatch, log: StateLog, producer_ids: Iterable[int]) -> list[LinkRecord]:
    """The records by which supervisors go on that open the link at once."""
    fresh = iter(producer_ids)

    async def init(_self: Leader) -> tuple[int, int]:
        await asyncio.sleep(0)
        return next(fresh), 0

    async def nothing(_self: Leader) -> None:
        pass

    monkeypatch.setattr(leader_module, "_State", lambda *_: State(log))
    monkeypatch.setattr(Leader, "_init_producer", init)
    monkeypatch.setattr(Leader, "_ensure_dead_letters", nothing)
    leaders = []
    for _ in producer_ids:
        made = object.__new__(Leader)
        made.link, made._configs, made._timeout_ms = Link("us", "eu", "l"), {"eu": None}, 0  # type: ignore[dict-item]
        made._source, made._target, made._topics = Named(S), Named(T), Made()  # type: ignore[assignment]
        leaders.append(made)

    async def scene() -> None:
        await asyncio.gather(*(made.open() for made in leaders))

    asyncio.run(scene())
    return [made.record for made in leaders]


def test_supervisors_that_open_a_link_at_once_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    log = StateLog()
    records = opened(monkeypatch, log, [1, 2, 3])
    assert {record.producer_id for record in records} == {1}
    last = log.records[-1]
    assert (last.producer_id, last.source_cluster_id, last.target_cluster_id) == (1, S, T)
    (later,) = opened(monkeypatch, log, [4])
    assert later.producer_id == 1
    assert {2, 3} >= set(later.other_producer_ids)  # no batch has them
    size = len(log.records)
    assert opened(monkeypatch, log, [5]) == [later]
    assert len(log.records) == size


def test_producers_of_lanes_are_registered_too_and_a_record_without_ids_is_completed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = StateLog(
        [LinkRecord(1, 0, 64)], {LaneKey("orders", n): with_fields(SOME_LANE, producer_id=n) for n in (1, 8)}
    )
    log.lanes[LaneKey("orders", 3)] = with_fields(SOME_LANE, producer_id=-1)
    (record,) = opened(monkeypatch, log, [9])
    assert (record.producer_id, record.other_producer_ids, record.source_cluster_id) == (1, (8,), S)
    assert log.records[-1] == record
