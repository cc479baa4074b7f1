"""The event log, on a cluster inside this process that can be taken away from it and given back."""

import asyncio
import ctypes
import json
import logging
from collections.abc import Iterator

import pytest
from confluent_kafka import Consumer, TopicPartition

from replicator.cli.logs import JsonFormatter
from replicator.config.models import Cluster
from replicator.control import events
from replicator.control.embedded import EmbeddedCluster, _library
from replicator.control.events import EventLog
from replicator.data.transitions import Trigger
from replicator.errors import ConfigError
from replicator.state.records import EventRecord, LaneKey, decode, events_topic

LINK = "us-eu"
TOPIC = events_topic(LINK)
WAIT_S = 20
BROKER = 1  # the mock cluster counts from one
UNAUTHORIZED = 29


@pytest.fixture
def target() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster() as cluster:
        cluster.create_topic(TOPIC, 1)
        yield cluster


def config(bootstrap: str, **properties: str) -> Cluster:
    return Cluster("eu", (), {"bootstrap.servers": bootstrap, **properties})


def event(reason: str = "", partition: int = 3, **changes: object) -> EventRecord:
    words = {"kind": "source_away", "was": "tailing", "state": "paused", **changes}
    return EventRecord(1_764_084_000_123, LINK, "orders", partition, reason=reason, position=77, worker="h-1", **words)


def written(cluster: EmbeddedCluster, count: int) -> list[tuple[LaneKey, EventRecord]]:
    """The first events of the topic, read by an ordinary consumer."""
    consumer = Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": "test", "log_level": 0})
    try:
        consumer.assign([TopicPartition(TOPIC, 0, 0)])
        messages = consumer.consume(count, timeout=WAIT_S)
        return [(decode(m.key(), LaneKey), decode(m.value(), EventRecord)) for m in messages]
    finally:
        consumer.close()


def mock(name: str, cluster: EmbeddedCluster, *arguments: object) -> None:
    """A function of librdkafka's mock cluster that tests alone need."""
    getattr(_library(), f"rd_kafka_mock_{name}")(ctypes.c_void_p(cluster._cluster), *arguments)


def take_away(cluster: EmbeddedCluster) -> None:
    mock("broker_set_down", cluster, BROKER)


def give_back(cluster: EmbeddedCluster) -> None:
    mock("broker_set_up", cluster, BROKER)


def refuse(cluster: EmbeddedCluster, code: int) -> None:
    """What the broker answers to everything about the topic; 0: nothing special any more."""
    mock("topic_set_error", cluster, TOPIC.encode(), code)


async def until_written(log: EventLog, left: int = 0) -> None:
    """Until no more than `left` events wait; the log's own timer does the work."""
    async with asyncio.timeout(WAIT_S):
        while len(log._producer) > left or log._timer:
            await asyncio.sleep(0.01)


def test_events_are_written_in_order_with_their_lane_as_key(target):
    many = [event(f"reason {n}", partition=n % 7) for n in range(500)]

    async def run() -> None:
        log = EventLog(config(target.bootstrap_servers), LINK)
        for each in many:
            log.append(each)
        assert await log.flush(WAIT_S) == 0
        assert log.counts == {"source_away": 500}
        assert log.dropped == 0

    asyncio.run(run())
    assert written(target, 500) == [(LaneKey("orders", n % 7), each) for n, each in enumerate(many)]


def test_an_event_is_written_without_anybody_asking_for_it(target):
    async def run() -> None:
        log = EventLog(config(target.bootstrap_servers), LINK)
        log.append(event("why"))
        await until_written(log)

    asyncio.run(run())
    assert written(target, 1) == [(LaneKey("orders", 3), event("why"))]


def test_the_log_says_it_for_people_and_for_machines(target, caplog):
    async def run() -> None:
        log = EventLog(config(target.bootstrap_servers), LINK)
        log.append(event("no broker answers"))
        log.append(event("", kind="placed", was="paused", state="copying"))
        log.append(event("producer id 4", kind="lso_stuck", was="copying", state="copying"))
        log.append(event("it was truncated", kind="source_truncated_stop", was="copying", state="diverged"))
        log.append(event("of another kind", kind="state", was="copying", state="target_lost"))
        await log.flush(WAIT_S)

    with caplog.at_level(logging.DEBUG, "replicator"):
        asyncio.run(run())
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "us-eu orders-3: paused: no broker answers"),
        ("INFO", "us-eu orders-3: copying"),
        ("WARNING", "us-eu orders-3: lso stuck: producer id 4"),
        ("ERROR", "us-eu orders-3: diverged: it was truncated"),
        ("ERROR", "us-eu orders-3: target lost: of another kind"),
    ]
    line = json.loads(JsonFormatter().format(caplog.records[0]))
    assert line.pop("time")
    assert line == {
        "level": "warning",
        "message": "us-eu orders-3: paused: no broker answers",
        "link": "us-eu",
        "topic": "orders",
        "partition": 3,
        "kind": "source_away",
        "was": "tailing",
        "state": "paused",
        "reason": "no broker answers",
        "position": 77,
        "worker": "h-1",
    }


def test_what_repeats_itself_is_said_once_for_each_lane(target):
    async def run() -> EventLog:
        log = EventLog(config(target.bootstrap_servers), LINK)
        for reason in ("a", "a", "a", "b", "a"):
            for partition in (0, 1):
                log.append(event(reason, partition))
        await log.flush(WAIT_S)
        return log

    assert asyncio.run(run()).counts["source_away"] == 6
    assert [(key.partition, each.reason) for key, each in written(target, 6)] == [
        (partition, reason) for reason in "aba" for partition in (0, 1)
    ]


def test_the_memory_of_what_was_said_is_bounded(target, monkeypatch):
    monkeypatch.setattr(events, "LANES_MAX", 10)

    async def run() -> None:
        log = EventLog(config(target.bootstrap_servers), LINK)
        for partition in range(100):
            log.append(event("a", partition))
            assert len(log._last) <= 10
        await log.flush(WAIT_S)

    asyncio.run(run())


def test_what_happens_all_the_time_is_no_event(target, caplog):
    async def run() -> EventLog:
        log = EventLog(config(target.bootstrap_servers), LINK)
        log.append(event("", kind="caught_up", was="copying", state="tailing"))
        log.append(event("", kind="fell_behind", was="tailing", state="copying"))
        log.append(event("", kind="placed", was="paused", state="copying"))
        await log.flush(WAIT_S)
        return log

    with caplog.at_level(logging.DEBUG, "replicator"):
        log = asyncio.run(run())
    assert [record.levelname for record in caplog.records] == ["DEBUG", "DEBUG", "INFO"]
    assert log.counts == {"caught_up": 1, "fell_behind": 1, "placed": 1}
    assert [each.kind for _, each in written(target, 1)] == ["placed"]


def test_a_long_reason_is_cut(target):
    async def run() -> None:
        log = EventLog(config(target.bootstrap_servers), LINK)
        log.append(event("x" * 3_000_000))
        assert await log.flush(WAIT_S) == 0

    asyncio.run(run())
    ((_, each),) = written(target, 1)
    assert each.reason == "x" * events.REASON_CHARACTERS_MAX + " ..."


def test_while_the_target_is_away_events_wait_and_those_beyond_the_limit_are_counted(target, monkeypatch, caplog):
    monkeypatch.setitem(events._SETTINGS, "queue.buffering.max.messages", 20)
    take_away(target)

    async def run() -> EventLog:
        log = EventLog(config(target.bootstrap_servers), LINK)
        for n in range(50):
            log.append(event(f"reason {n}"))
        assert log.dropped == 30
        give_back(target)
        await until_written(log)
        log.append(event("afterwards"))
        assert await log.flush(WAIT_S) == 0
        assert log.dropped == 30
        return log

    with caplog.at_level(logging.INFO, "replicator"):
        asyncio.run(run())
    found = [each for _, each in written(target, 22)]
    assert [each.reason for each in found[:20]] == [f"reason {n}" for n in range(20)]
    assert (found[20].kind, found[20].link) == (Trigger.EVENTS_DROPPED.kind, LINK)
    assert found[20].reason.startswith("30 events were not written: ")
    assert found[21].reason == "afterwards"
    about_loss = [r.getMessage() for r in caplog.records if "are lost" in r.getMessage()]
    assert len(about_loss) == 1, "one line, not one for each"
    assert about_loss[0].startswith(f"eu {TOPIC}: events are lost, 1 so far: ")
    assert {f"us-eu orders-3: paused: reason {n}" for n in range(50)} <= {r.getMessage() for r in caplog.records}


async def until_told(log: EventLog) -> int:
    """Says more until one is taken and the number of the missing ones is written, too; returns how many it said."""
    said = 0
    async with asyncio.timeout(WAIT_S):
        while log._untold or len(log._producer):
            log.append(event(f"another {said}"))
            said += 1
            await until_written(log)
    return said


def told(found: list[EventRecord]) -> int:
    """How many events are missing, by the events that say so."""
    reasons = [each.reason for each in found if each.kind == "events_dropped"]
    return sum(int(reason.split()[0]) for reason in reasons)


def test_events_that_the_target_refuses_are_counted_until_it_takes_them_again(target, monkeypatch, caplog):
    monkeypatch.setitem(events._SETTINGS, "topic.metadata.refresh.interval.ms", 100)
    refuse(target, UNAUTHORIZED)

    async def run() -> int:
        log = EventLog(config(target.bootstrap_servers), LINK)
        for n in range(5):
            log.append(event(f"reason {n}"))
        await until_written(log)
        assert log.dropped == 5
        log._tell_dropped()  # is refused in its turn, and changes no number
        await until_written(log)
        assert (log.dropped, log._untold) == (5, 5)
        refuse(target, 0)
        said = 5 + await until_told(log)
        assert 5 <= log.dropped < said
        return said

    with caplog.at_level(logging.INFO, "replicator"):
        said = asyncio.run(run())
    dropped = [r.getMessage() for r in caplog.records if "are lost" in r.getMessage()]
    assert len(dropped) == 1
    found: list[EventRecord] = []
    while not told(found):
        found = [each for _, each in written(target, len(found) + 1)]
    assert found[-1].reason.startswith(f"{told(found)} events were not written: ")
    assert "authoriz" in found[-1].reason.lower()
    assert told(found) + len(found) - 1 == said


def test_what_cannot_be_written_in_the_end_is_said(target, monkeypatch, caplog):
    monkeypatch.setitem(events._SETTINGS, "queue.buffering.max.messages", 20)
    take_away(target)

    async def run() -> None:
        log = EventLog(config(target.bootstrap_servers), LINK)
        for n in range(50):
            log.append(event(f"reason {n}"))
        assert await log.flush(0) == 50

    with caplog.at_level(logging.INFO, "replicator"):
        asyncio.run(run())
    assert caplog.records[-1].getMessage() == f"eu {TOPIC}: 50 events were not written: they are in the log only"


def test_properties_that_make_no_sense(target):
    with pytest.raises(ConfigError, match=r"eu: .*bogus"):
        EventLog(config(target.bootstrap_servers, bogus="1"), LINK)
