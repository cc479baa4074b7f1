"""Plug-ins in Python between real clusters: what they leave out, change and fail on, before and after a restart."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from replicator.cli.main import main
from replicator.data.states import LaneState
from replicator.data.worker import FROZEN_S
from replicator.errors import ConfigError
from tests.broker.admin import create_topic, partition_count
from tests.broker.carrying import bring, carrying, name_of
from tests.broker.copies import Pair
from tests.broker.letters import check_letters, read_letters
from tests.broker.log_shape import CODECS
from tests.broker.special_logs import number_of, numbered_record, write_in_batches
from tests.broker.visible import Copied
from tests.harness.java import JavaWitness
from tests.harness.kafka import KafkaCluster
from tests.harness.link import RunningLink
from tests.harness.plug_ins import Installer, forget
from tests.harness.records import Record
from tests.harness.waiting import eventually

pytestmark = pytest.mark.broker

PARTITIONS = len(CODECS)
RECORDS = 300

NAMES = {"thin": "Thin", "mark": "Mark", "choosy": "Choosy", "slow": "Slow"}
# The records say by a number in their value what they are.
SOURCE = """
    import time

    from replicator.transforms import Replacement, Selection

    def number(value):
        return int(bytes(value).split()[1])

    class Thin:
        changes = ()

        def __init__(self, options, place):
            self.each = options["each"]

        def __call__(self, columns):
            return Selection([number(value) % self.each != 0 for value in columns.values])

    class Mark:
        changes = ("value", "headers")
        drops = False

        def __init__(self, options, place):
            self.header = (b"from", f"{place.topic}-{place.partition}".encode())

        def __call__(self, columns):
            found = {}
            for at, value in enumerate(columns.values):
                if number(value) % 50 == 13:
                    raise LookupError("thirteen brings bad luck")
                if number(value) % 5 == 0:
                    headers = [*columns.headers[at], self.header]
                    found[at] = Replacement(columns.keys[at], bytes(value).upper(), headers)
            return Selection(replacements=found)

    class Choosy:
        def __init__(self, options, place):
            if place.partition:
                raise OSError("no such file")

        def __call__(self, columns):
            return None

    class Slow:
        def __init__(self, options, place):
            self.pause_s = options["pause_s"]

        def __call__(self, columns):
            time.sleep(self.pause_s)
"""


@pytest.fixture
def pair(kafka4: KafkaCluster, kafka4_second: KafkaCluster) -> Pair:
    return Pair(kafka4, kafka4_second)


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    Installer(tmp_path, monkeypatch).add("plugged_broker", SOURCE, **NAMES)
    yield
    forget()


def write(cluster: KafkaCluster, topic: str, first: int, partitions: int = PARTITIONS) -> None:
    """RECORDS more of a partition for each codec."""
    for part in range(partitions):
        records = (numbered_record(n, b"%d" % n, b"number %d" % n, part) for n in range(first, first + RECORDS))
        write_in_batches(cluster, topic, records, CODECS[part])


@dataclass(frozen=True)
class Changed(Copied):
    """What the plug-ins make of a topic."""

    def original(self, java: JavaWitness | None = None) -> dict[int, list[Record]]:
        seen = super().original(java)
        return {part: [self._becomes(part, record) for record in records] for part, records in seen.items()}

    def _becomes(self, part: int, record: Record) -> Record:
        if number_of(record) % 5 or not self.keep(record):
            return record
        headers = (*record.headers, ("from", f"{self.topic}-{part}".encode()))
        return record._replace(value=(record.value or b"").upper(), headers=headers)


def is_bad(record: Record) -> bool:
    return number_of(record) % 7 != 0 and number_of(record) % 50 == 13


def goes_on(record: Record) -> bool:
    return number_of(record) % 7 != 0 and not is_bad(record)


def transforms(topic: str) -> list[dict[str, Any]]:
    return [{"name": "thin", "options": {"each": 7}}, {"name": "mark", "topics": [topic]}]


def test_records_go_through_plug_ins(pair: Pair, java4: JavaWitness, topic_name: str, tmp_path: Path) -> None:
    create_topic(pair.source, topic_name, PARTITIONS)
    config = carrying(pair, topic_name, transforms=transforms(topic_name))
    copied = Changed(pair, topic_name, keep=goes_on, partitions=PARTITIONS)
    for first in (0, RECORDS):  # the second time what is on the target has to be found again
        write(pair.source, topic_name, first)
        bring(pair, config, topic_name, PARTITIONS)
    copied.check(name_of(config), java4, records_min=PARTITIONS * RECORDS)
    seen = Copied.original(copied)
    bad = {part: [record for record in records if is_bad(record)] for part, records in seen.items()}
    letters = read_letters(pair.target, f"{name_of(config)}.dlq")
    check_letters(letters, topic_name, bad)
    assert len(letters) == sum(map(len, bad.values())) > PARTITIONS
    assert {letter.ours("reason") for letter in letters} == {"transform"}
    file = tmp_path / "link.yaml"
    file.write_text(json.dumps(config))
    done = CliRunner().invoke(main, ["verify", str(file), "--full", "--json"])
    assert done.exit_code == 0, done.output


def test_a_fault_stops_the_lane_if_so_told(pair: Pair, topic_name: str) -> None:
    create_topic(pair.source, topic_name)
    write(pair.source, topic_name, 0, partitions=1)
    options = {"transforms": transforms(topic_name), "policies": [{"record_faults": "stop"}]}
    with RunningLink(carrying(pair, topic_name, **options)) as link:
        link.wait_for_state(LaneState.FAILED, topic_name)
        words = "transform: mark: LookupError: thirteen brings bad luck"
        eventually(lambda: words in link.reason(topic_name), f"the reason of {topic_name} to tell")
        assert link.supervisor.workers[0].restarts == 0


def test_skipped_records_are_counted(pair: Pair, topic_name: str) -> None:
    create_topic(pair.source, topic_name)
    write(pair.source, topic_name, 0, partitions=1)
    options = {"transforms": transforms(topic_name), "policies": [{"record_faults": "skip"}]}
    config = carrying(pair, topic_name, **options)
    bring(pair, config, topic_name)
    Changed(pair, topic_name, keep=goes_on).check(name_of(config))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"name": "nobody"}, "no transform `nobody` is installed"),
        ({"name": "thin"}, "transform `thin` cannot be made for topic {topic}: KeyError: 'each'"),
    ],
)
def test_nothing_moves_without_them(pair: Pair, topic_name: str, row: dict[str, Any], words: str) -> None:
    create_topic(pair.source, topic_name)
    write(pair.source, topic_name, 0, partitions=1)
    with pytest.raises(ConfigError) as error, RunningLink(carrying(pair, topic_name, transforms=[row])):
        pass
    assert words.format(topic=topic_name) in str(error.value)
    assert partition_count(pair.target, topic_name) == 0


def test_a_worker_that_cannot_make_one_stops_that_lane_only(pair: Pair, topic_name: str) -> None:
    """The supervisor tries them for partition 0."""
    create_topic(pair.source, topic_name, 2)
    write(pair.source, topic_name, 0, partitions=2)
    with RunningLink(carrying(pair, topic_name, transforms=[{"name": "choosy"}])) as link:
        link.wait_for_state(LaneState.FAILED, topic_name, 1)
        words = f"transform `choosy` cannot be made for topic {topic_name}: OSError: no such file"
        eventually(lambda: words in link.reason(topic_name, 1), f"the reason of {topic_name}-1 to tell")
        link.wait_until_copied({(topic_name, 0): RECORDS})


def test_a_slow_one_is_not_taken_for_a_frozen_worker(pair: Pair, topic_name: str) -> None:
    """Which would begin again from the target's log, for ever."""
    create_topic(pair.source, topic_name)
    records = (numbered_record(n, b"%d" % n, b"number %d" % n) for n in range(60))
    write_in_batches(pair.source, topic_name, records)
    options = {"transforms": [{"name": "slow", "options": {"pause_s": FROZEN_S + 0.2}}]}
    with RunningLink(carrying(pair, topic_name, **options)) as link:
        link.wait_until_copied({(topic_name, 0): 60})
        assert link.supervisor.workers[0].restarts == 0
