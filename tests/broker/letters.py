"""Dead letters as any consumer reads them, compared with the records that they are about."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from tests.harness import witness
from tests.harness.kafka import KafkaCluster
from tests.harness.records import Headers, Record

OURS = "replicator.dlq."
CONNECT = "__connect.errors."
# Of these two letters of one record differ in no value.
IDENTITY = ("link", "source", "topic", "partition", "offset", "timestamp", "target.topic", "headers")

Place = tuple[str, int, int]
"""Source topic, partition, offset."""


@dataclass(frozen=True)
class Letter:
    """A record of a dead-letter topic, taken apart by the documents' own words."""

    record: Record

    @property
    def facts(self) -> dict[str, str]:
        """By name without its prefix; of several with one name the last, since the first may be the record's own."""
        named = {name: value for name, value in self.record.headers if name.startswith((OURS, CONNECT))}
        return {name: (value or b"").decode() for name, value in named.items()}

    def ours(self, name: str) -> str:
        return self.facts[OURS + name]

    @property
    def place(self) -> Place:
        return self.ours("topic"), int(self.ours("partition")), int(self.ours("offset"))

    @property
    def connect_place(self) -> Place:
        """As tools for Kafka Connect's dead letters read it."""
        facts = self.facts
        return facts[CONNECT + "topic"], int(facts[CONNECT + "partition"]), int(facts[CONNECT + "offset"])

    @property
    def identity(self) -> tuple[str, ...]:
        return tuple(self.ours(name) for name in IDENTITY)

    @property
    def headers(self) -> Headers:
        """The record's own."""
        return self.record.headers[: int(self.ours("headers"))]

    def check(self, original: Record, topic: str, partition: int) -> None:
        """An AssertionError unless it is about this record, and has in it all that the record had."""
        assert self.place == self.connect_place == (topic, partition, original.offset)
        content = self.record.timestamp, self.record.key, self.record.value, self.headers
        assert content == (original.timestamp, original.key, original.value, original.headers)
        assert self.ours("timestamp") == str(original.timestamp)
        assert self.ours("reason")


def read_letters(cluster: KafkaCluster, topic: str) -> list[Letter]:
    """In the order of the topic's partitions."""
    logs = witness.dump(cluster.bootstrap, topic)
    return [Letter(record) for part in sorted(logs) for record in logs[part]]


def check_letters(
    letters: Sequence[Letter], topic: str, bad: dict[int, list[Record]], once: bool = True
) -> dict[Place, list[Letter]]:
    """An AssertionError unless there are letters of these records of the source topic, by partition, and of no others;
    each one once, or with the same headers each time that say which it is."""
    originals = {(topic, part, record.offset): record for part, records in bad.items() for record in records}
    found = {place: list(same) for place, same in _by_place(letters)}
    missing = originals.keys() - found.keys()
    assert not missing, f"{len(missing)} bad records have no dead letter, such as {min(missing)}"
    others = found.keys() - originals.keys()
    assert not others, f"{len(others)} dead letters are of good records, such as {min(others)}"
    for place, same in found.items():
        for letter in same:
            letter.check(originals[place], *place[:2])
        assert len({letter.identity for letter in same}) == 1
        assert len(same) == 1 or not once, f"{place} has {len(same)} dead letters"
    return found


def _by_place(letters: Iterable[Letter]) -> Iterator[tuple[Place, Iterator[Letter]]]:
    return groupby(sorted(letters, key=lambda letter: letter.place), key=lambda letter: letter.place)
