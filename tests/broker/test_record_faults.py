"""Records that the target refuses: each becomes a dead letter, once, and all others arrive, in their order."""

from typing import Any

import pytest
from confluent_kafka.admin import AdminClient

from replicator.data.states import LaneState
from tests.broker.admin import create_topic
from tests.broker.batches import Entry, make_batch, numbered
from tests.broker.carrying import bring, carry, carrying, name_of, wait_until_carried
from tests.broker.copies import Pair, stored_batches
from tests.broker.letters import Letter, check_letters, read_letters
from tests.broker.log_shape import CODECS
from tests.broker.raw import RawClient
from tests.broker.special_logs import (
    KINDS,
    MIXED,
    NUMBER,
    REFUSING,
    copy_topic,
    number_of,
    numbered_record,
    write_compacted,
    write_in_batches,
    write_poison,
)
from tests.broker.visible import Copied, match, visible_ends
from tests.harness import witness
from tests.harness.java import JavaWitness
from tests.harness.kafka import KafkaCluster
from tests.harness.link import RunningLink
from tests.harness.records import Dump
from tests.harness.waiting import eventually

pytestmark = pytest.mark.broker

PARTITIONS = len(CODECS)
# What a letter says of the broker's answer: the error code of a refused batch.
CODES = {"null key": {"87"}, "future": {"32"}, "too large": {"10", "18"}}
CODES[MIXED] = set.union(*CODES.values())


@pytest.fixture
def pair(kafka4: KafkaCluster, kafka4_second: KafkaCluster) -> Pair:
    return Pair(kafka4, kafka4_second)


class Scene:
    """A topic with bad records in it, and the target's topic that does not take them."""

    def __init__(self, pair: Pair, topic: str, kind: str) -> None:
        self.pair, self.topic, self.kind = pair, topic, kind
        self.numbers = write_poison(pair.source, topic, kind)
        copy_topic(pair.target, topic, PARTITIONS, REFUSING[kind])

    @property
    def copied(self) -> Copied:
        """The good ones."""
        keep = lambda record: number_of(record) not in self.numbers  # noqa: E731
        return Copied(self.pair, self.topic, keep=keep, partitions=PARTITIONS)

    @property
    def bad(self) -> Dump:
        logs = self.copied.original()
        return {part: [r for r in records if number_of(r) in self.numbers] for part, records in logs.items()}

    def check_good(self, link: str, java: JavaWitness | None = None) -> None:
        self.copied.check(link, java, records_min=500)

    def check_letters(self, cluster: KafkaCluster, topic: str) -> list[Letter]:
        """Each bad one once."""
        letters = read_letters(cluster, topic)
        check_letters(letters, self.topic, self.bad)
        assert len(letters) == PARTITIONS * len(self.numbers)
        return letters


@pytest.mark.parametrize("kind", KINDS)
def test_bad_records_become_dead_letters(pair: Pair, java4: JavaWitness, topic_name: str, kind: str) -> None:
    """Everywhere in batches of every codec; the good ones of the same batches go on."""
    scene = Scene(pair, topic_name, kind)
    link = name_of(carry(pair, topic_name, PARTITIONS))
    scene.check_good(link, java4)
    letters = scene.check_letters(pair.target, f"{link}.dlq")
    assert {letter.facts.get("replicator.dlq.error.code", "") for letter in letters} - {""} <= CODES[kind]


def test_dead_letters_on_the_source(pair: Pair, topic_name: str) -> None:
    scene = Scene(pair, topic_name, "null key")
    name = f"{topic_name}-letters"
    link = name_of(carry(pair, topic_name, PARTITIONS, dead_letters={"topic": name, "on": "source"}))
    scene.check_good(link)
    scene.check_letters(pair.source, name)
    admin = AdminClient({"bootstrap.servers": pair.target.bootstrap, "log_level": 0})
    assert not {name, f"{link}.dlq"} & admin.list_topics(timeout=30).topics.keys()


def test_bad_records_are_skipped_if_that_is_wanted(pair: Pair, topic_name: str) -> None:
    """They are holes in the map, and nothing else is."""
    scene = Scene(pair, topic_name, MIXED)
    link = name_of(carry(pair, topic_name, PARTITIONS, policies=[{"record_faults": "skip"}]))
    scene.check_good(link)
    admin = AdminClient({"bootstrap.servers": pair.target.bootstrap, "log_level": 0})
    if f"{link}.dlq" in admin.list_topics(timeout=30).topics:
        assert read_letters(pair.target, f"{link}.dlq") == []


def wait_for_reason(link: RunningLink, topic: str, partition: int, words: str) -> None:
    """It comes as a message, perhaps a little later than the state."""
    eventually(lambda: words in link.reason(topic, partition), f"{topic}-{partition} to say: {words}")


@pytest.mark.parametrize("options", [{"policies": [{"record_faults": "stop"}]}, {"dead_letters": {"on": "none"}}])
def test_the_lane_stops_if_that_is_wanted(pair: Pair, topic_name: str, options: dict[str, Any]) -> None:
    """In front of the first bad record: all before it is there, and nothing behind it."""
    scene = Scene(pair, topic_name, "null key")
    first = min(scene.numbers)
    with RunningLink(carrying(pair, topic_name, **options)) as link:
        for part in range(PARTITIONS):
            link.wait_for_state(LaneState.FAILED, topic_name, part, timeout_s=30)
            wait_for_reason(link, topic_name, part, f"offset {first}")
    for part, records in scene.copied.original().items():
        copies = witness.dump(pair.target.bootstrap, topic_name)[part]
        assert len(copies) <= first
        match(records[: len(copies)], copies)
        assert len(copies) >= first - first % 20, "whole batches before it are there"


def test_bad_records_come_while_the_link_waits_for_more(pair: Pair, topic_name: str) -> None:
    """At the log's end, one batch at a time, and the link is ended and started in between."""
    create_topic(pair.source, topic_name)
    copy_topic(pair.target, topic_name, config=REFUSING["null key"])
    config = carrying(pair, topic_name)
    for turn in range(3):
        with RunningLink(config) as link:
            for batch in range(3):
                first = 100 * turn + 10 * batch
                records = [numbered_record(n, None if n % 4 == turn else b"key", b"v") for n in range(first, first + 9)]
                write_in_batches(pair.source, topic_name, records, CODECS[turn])
                wait_until_carried(link, visible_ends(pair.source, topic_name))
    copied = Copied(pair, topic_name, keep=lambda record: record.key is not None)
    copied.check(name_of(config), records_min=50)
    bad = {0: [record for record in copied.original()[0] if record.key is None]}
    check_letters(read_letters(pair.target, f"{name_of(config)}.dlq"), topic_name, bad)
    assert len(bad[0]) >= 15


def test_only_bad_records(pair: Pair, topic_name: str) -> None:
    """A topic of which nothing arrives: the link gets to its end all the same."""
    create_topic(pair.source, topic_name)
    copy_topic(pair.target, topic_name, config=REFUSING["null key"])
    write_in_batches(pair.source, topic_name, (numbered_record(n, None, b"v") for n in range(100)), "lz4")
    config = carry(pair, topic_name)
    copied = Copied(pair, topic_name, keep=lambda record: False)
    copied.check(name_of(config), records_min=0)
    bring(pair, config, topic_name)
    check_letters(read_letters(pair.target, f"{name_of(config)}.dlq"), topic_name, copied.original())


def test_bad_records_of_a_compacted_topic(pair: Pair, topic_name: str) -> None:
    """Among holes, tombstones and empty batches. Fillers, which no one shall miss, are too large, too."""
    write_compacted(pair.source, topic_name, seed=11)
    copy_topic(pair.target, topic_name, config={"max.message.bytes": "5000"})
    config = carry(pair, topic_name)
    copied = Copied(pair, topic_name, keep=lambda record: len(record.value or b"") < 5_000)
    copied.check(name_of(config), records_min=300)
    bad = {0: [record for record in copied.original()[0] if not copied.keep(record)]}
    assert bad[0]
    check_letters(read_letters(pair.target, f"{name_of(config)}.dlq"), topic_name, bad)


def test_records_that_the_link_diverts(pair: Pair, topic_name: str) -> None:
    """By an edit: nobody refuses them, and the reason is the link file's."""
    create_topic(pair.source, topic_name)
    records = (numbered_record(n, b"%s-%d" % (b"odd" if n % 7 == 3 else b"even", n), b"v" * n) for n in range(200))
    write_in_batches(pair.source, topic_name, records, "zstd")
    edits = [{"divert": "odd ones go", "where": {"key": {"prefix": "odd-"}}}]
    config = carry(pair, topic_name, edits=edits)
    copied = Copied(pair, topic_name, keep=lambda record: not (record.key or b"").startswith(b"odd-"))
    copied.check(name_of(config), records_min=150)
    bad = {0: [record for record in copied.original()[0] if not copied.keep(record)]}
    letters = read_letters(pair.target, f"{name_of(config)}.dlq")
    check_letters(letters, topic_name, bad)
    assert {letter.ours("reason") for letter in letters} == {"odd ones go"}


def test_a_batch_that_cannot_be_opened(pair: Pair, topic_name: str) -> None:
    """Brokers take an uncompressed batch whose records lie about their offsets. Where it has to be opened, it goes to
    the dead letters as it is, and the batches around it go on."""
    create_topic(pair.source, topic_name)
    lying = [Entry(b"a", delta=0), Entry(b"b", delta=5), Entry(b"c", delta=1)]
    with RawClient(pair.source) as client:
        for entries in (numbered(4), lying, numbered(4, first=4)):
            assert client.produce(topic_name, make_batch(entries).encode()).error == 0
    config = carry(pair, topic_name, edits=[{"add_header": {"name": NUMBER, "value": "1"}}])
    copies = witness.dump(pair.target.bootstrap, topic_name)[0]
    assert [record.value for record in copies] == [b"value %d" % number for number in range(8)]
    assert [record.offset for record in copies] == list(range(8))
    assert {record.headers for record in copies} == {((NUMBER, b"1"),)}
    (letter,) = read_letters(pair.target, f"{name_of(config)}.dlq")
    stored = stored_batches(pair.source, topic_name)[1]
    raw = type(stored).parse(letter.record.value or b"")
    assert (raw.base_offset, raw.count, raw.records) == (stored.base_offset, stored.count, stored.records)
    assert letter.place == letter.connect_place == (topic_name, 0, 4)
    assert letter.ours("raw") == "true"


def test_a_letter_that_is_missing_or_doubled_is_noticed(pair: Pair, topic_name: str) -> None:
    """The oracle, on letters made by hand."""
    originals = [
        numbered_record(n, b"k", b"%d" % n, 0)._replace(headers=((NUMBER, b"%d" % n), ("a", None))) for n in range(4)
    ]
    create_topic(pair.source, topic_name)
    witness.produce(pair.source.bootstrap, topic_name, originals)
    bad = {0: witness.dump(pair.source.bootstrap, topic_name)[0][1:3]}
    letters = []
    for record in bad[0]:
        place = {"topic": topic_name, "partition": "0", "offset": str(record.offset)}
        more = {"link": "l", "source": "s", "timestamp": str(record.timestamp), "target.topic": topic_name}
        said = {"headers": "2", "reason": "why", **more}
        named = {"replicator.dlq." + name: value for name, value in {**place, **said}.items()}
        named |= {"__connect.errors." + name: value for name, value in place.items()}
        headers = (*record.headers, *((name, value.encode()) for name, value in named.items()))
        letters.append(Letter(record._replace(headers=headers)))
    check_letters(letters, topic_name, bad)
    check_letters([*letters, letters[0]], topic_name, bad, once=False)
    other = Letter(letters[0].record._replace(value=b"other"))
    for wrong in (letters[:1], [*letters, letters[0]], [other, letters[1]], letters[:0]):
        with pytest.raises(AssertionError):
            check_letters(wrong, topic_name, bad)
