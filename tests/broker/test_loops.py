"""Links in circles, on topics of one name: nothing comes back to where it was, and nothing is missing anywhere.

Every record says in its value on which cluster it was written. So where it must be, and where not, is plain.
"""

import json
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from confluent_kafka import Producer
from confluent_kafka.admin import AclOperation, ResourceType

from replicator.cli.main import main
from replicator.config.load import from_data
from replicator.data.states import LaneState
from replicator.errors import ClusterError
from replicator.state.reader import StateReader
from replicator.state.records import LaneKey, state_topic
from tests.broker.admin import create_topic
from tests.broker.guarded import guarded_cluster
from tests.harness import witness
from tests.harness.java import JavaWitness
from tests.harness.kafka import KafkaCluster
from tests.harness.link import RunningLink, link_config
from tests.harness.records import Dump, NewRecord
from tests.harness.transactions import JavaWriter, LibrdkafkaWriter
from tests.harness.waiting import eventually

pytestmark = pytest.mark.broker

PARTITIONS = 2
QUIET_S = 2.0  # in which an echo would come
PLAIN: dict[str, Any] = {"enable.idempotence": False}
HOPS = "replicator.hops"


@dataclass
class Site:
    """A cluster of a circle, and the applications that write to it."""

    name: str
    cluster: KafkaCluster
    topic: str
    java: JavaWitness
    written: list[bytes] = field(default_factory=list)  # by applications, and not aborted
    made: int = 0

    def records(self, count: int, kept: bool = True) -> list[NewRecord]:
        """To be written here."""
        first, self.made = self.made, self.made + count
        values = [f"{self.name} {number}".encode() for number in range(first, first + count)]
        self.written += values if kept else []
        return [NewRecord(number % PARTITIONS, value, value) for number, value in enumerate(values, first)]

    def write(self, count: int = 20) -> None:
        """By every kind of producer that there is; each is a new one."""
        address = self.cluster.bootstrap
        witness.produce(address, self.topic, self.records(count), {"enable.idempotence": True})
        witness.produce(address, self.topic, self.records(count), PLAIN | {"compression.type": "lz4"})
        self.java.produce(address, self.topic, self.records(count), {"compression.type": "gzip"})
        self.java.produce(address, self.topic, self.records(count), {"enable.idempotence": "false"})
        names = [f"{self.topic}-{self.name}-{self.made}-{kind}" for kind in ("rd", "java")]
        writers = LibrdkafkaWriter(address, self.topic, names[0]), JavaWriter(self.java, address, self.topic, names[1])
        for writer in writers:
            writer.send(self.records(count, kept=False))
            writer.abort()
            writer.send(self.records(count))
            writer.commit()
            writer.close()

    def read(self) -> Dump:
        return witness.dump(self.cluster.bootstrap, self.topic, "read_committed")

    def values(self) -> Counter[bytes]:
        return Counter(record.value or b"" for records in self.read().values() for record in records)


class Circle:
    """Sites with a link from each to the next, and from the last to the first."""

    def __init__(self, clusters: Sequence[KafkaCluster], topic: str, java: JavaWitness, **link: Any) -> None:
        self.sites = [Site("ABCD"[number], cluster, topic, java) for number, cluster in enumerate(clusters)]
        self.topic = topic
        self.pairs = list(zip(self.sites, [*self.sites[1:], self.sites[0]], strict=True))
        options = {"loops": "prevent", "checkpoint_interval_ms": 200, **link}
        self.configs = [
            link_config(source.cluster.bootstrap, target.cluster.bootstrap, re.escape(topic), link=options)
            for source, target in self.pairs
        ]
        for cluster in clusters:
            create_topic(cluster, topic, PARTITIONS)

    @contextmanager
    def running(self) -> Iterator[list[RunningLink]]:
        with ExitStack() as links:
            yield [links.enter_context(RunningLink(config)) for config in self.configs]

    def as_one(self) -> dict[str, Any]:
        """Two sites' links in one file, as an operator writes it."""
        forth, back = self.configs
        links = [*forth["links"], back["links"][0] | {"source": "target", "target": "source"}]
        return {**forth, "links": links, "workers": 2}

    def wait(self, links: Sequence[RunningLink]) -> None:
        """Until every record is everywhere, and then a little."""
        everything = {value for site in self.sites for value in site.written}

        def is_everywhere() -> bool:
            for link in links:
                assert not any(link.supervisor.rows.state(i.row).is_final for i in link.supervisor.lanes), [
                    each.describe() for each in links
                ]
            return all(site.values().keys() >= everything for site in self.sites)

        try:
            eventually(is_everywhere, f"all records everywhere; {[link.describe() for link in links]}", 60)
        except TimeoutError as late:
            missing = {site.name: sorted(everything - site.values().keys())[:3] for site in self.sites}
            raise TimeoutError(f"{late}; missing, such as {missing}; {[link.describe() for link in links]}") from None
        time.sleep(QUIET_S)

    def check(self) -> None:
        """After the links have ended: everything is everywhere once, and every map says where."""
        everything = Counter(value for site in self.sites for value in site.written)
        for site in self.sites:
            found = site.values()
            assert found == everything, f"at {site.name}: more {(found - everything)}, less {(everything - found)}"
        for (source, target), config in zip(self.pairs, self.configs, strict=True):
            self._check_map(source, target, config)

    def _check_map(self, source: Site, target: Site, config: dict[str, Any]) -> None:
        name = config["links"][0]["name"]
        reader = StateReader(from_data(config).clusters["target"], name)
        reader.catch_up()
        reader.close()
        originals, copies = source.read(), target.read()
        for part in range(PARTITIONS):
            found = reader.offset_map(LaneKey(self.topic, part))
            there = {record.value: record.offset for record in copies[part]}
            brought = {
                record.offset: there[record.value]
                for record in originals[part]
                if (record.value or b"").split()[0] != target.name.encode()
            }
            exact = {offset: found.exact(offset) for offset in range(found.position)}
            assert {offset: at for offset, at in exact.items() if at is not None} == brought
            assert sorted(brought.values()) == [brought[offset] for offset in sorted(brought)], "in another order"


@pytest.fixture
def both(kafka4: KafkaCluster, kafka4_second: KafkaCluster, topic_name: str, java4: JavaWitness) -> Circle:
    return Circle([kafka4, kafka4_second], topic_name, java4)


def test_active_active(both: Circle, tmp_path: Path) -> None:
    """Records are on both sides before there is a link, and come while both are at work, and after a restart."""
    for site in both.sites:
        site.write()
    with both.running() as links:
        for _ in range(2):
            for site in both.sites:
                site.write()
        both.wait(links)
        skipped = [sum(link.counter("skip_loop", both.topic, part) for part in range(PARTITIONS)) for link in links]
        assert all(skipped)
    both.check()
    for site in both.sites:
        site.write()
    config = both.as_one()
    with RunningLink(config) as one:
        both.wait([one])
    both.check()
    file = tmp_path / "links.yaml"
    file.write_text(json.dumps(config))
    verified = CliRunner().invoke(main, ["verify", str(file), "--full"])
    assert verified.exit_code == 0, verified.output
    assert not any(record.headers for site in both.sites for part in site.read().values() for record in part)


class Traffic:
    """Short-lived producers and a long-lived one, at work on a site until the end of the `with` block."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        site, round_number = self._site, 0
        settings = {"bootstrap.servers": site.cluster.bootstrap, "enable.idempotence": True, "linger.ms": 2}
        lasting = Producer(settings)
        while not self._stop.wait(0.02):
            round_number += 1
            producer = lasting if round_number % 10 else Producer(settings)
            for record in site.records(10):
                producer.produce(site.topic, record.value, record.key, record.partition)
            assert not producer.flush(30)


def kill_worker(link: RunningLink) -> None:
    (pid,) = eventually(link.worker_pids, "a worker")
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: link.worker_pids() not in ([pid], []), "another worker")


@pytest.mark.soak
def test_killed_on_both_sides(both: Circle) -> None:
    with both.running() as links:
        with Traffic(both.sites[0]), Traffic(both.sites[1]):
            for pause_s in (2.0, 0.7, 1.5, 0.3, 2.0):
                time.sleep(pause_s)
                for link in links:
                    kill_worker(link)
        both.wait(links)
    both.check()


def test_a_ring_of_three(
    kafka4: KafkaCluster,
    kafka4_second: KafkaCluster,
    private_cluster: Callable[..., KafkaCluster],
    topic_name: str,
    java4: JavaWitness,
) -> None:
    ring = Circle([kafka4, kafka4_second, private_cluster()], topic_name, java4)
    ring.sites[0].write()
    with ring.running() as links:
        for site in ring.sites:
            site.write()
        ring.wait(links)
    ring.check()
    with ring.running() as links:
        for site in ring.sites:
            site.write()
        ring.wait(links)
    ring.check()
    ids = [link.supervisor.clusters["source"].cluster_id.encode() for link in links]
    for home, site in enumerate(ring.sites):
        for record in (record for records in site.read().values() for record in records):
            born = "ABC".index((record.value or b"").decode()[0])
            hops = [value for name, value in record.headers if name == HOPS]
            # Where it is, nobody has opened it; one step on, the producer alone told; two steps on, its header does.
            assert hops == ([ids[born] + b"," + ids[(born + 1) % 3]] if (home - born) % 3 == 2 else [])


def test_rights_that_are_missing(kafka4_second: KafkaCluster, topic_name: str) -> None:
    """A link that may not look begins nothing; one that may not any more waits, says so, and goes on."""
    of_others = state_topic("another")
    with guarded_cluster() as source:
        source.create_topic(topic_name)
        source.create_topic(of_others)
        source.produce(of_others, 1)
        for operation in (AclOperation.READ, AclOperation.DESCRIBE):
            source.allow((ResourceType.TOPIC, topic_name, operation))
        options = {"loops": "prevent"}
        address = source.cluster.bootstrap
        config = link_config(address, kafka4_second.bootstrap, re.escape(topic_name), link=options)
        with (
            pytest.raises(ClusterError, match=r"READ and DESCRIBE on .* begin with `replicator\.`"),
            RunningLink(config),
        ):
            pass
        for operation in (AclOperation.READ, AclOperation.DESCRIBE):
            source.allow((ResourceType.TOPIC, "*", operation))
        with RunningLink(config) as link:
            source.produce(topic_name, 10)
            link.wait_until_copied({(topic_name, 0): 10})
            source.deny((ResourceType.TOPIC, of_others, AclOperation.READ))
            time.sleep(0.5)
            written = _write_idempotent(source, topic_name)
            link.wait_for_state(LaneState.PAUSED, topic_name)
            assert "may be a link" in link.reason(topic_name)
            assert of_others in link.reason(topic_name)
            assert link.checkpoint(topic_name).position == 10
            source.forgive()
            link.wait_until_copied({(topic_name, 0): 10 + written})
            link.wait_for_state(LaneState.TAILING, topic_name)


def _write_idempotent(source: Any, topic: str) -> int:
    return witness.produce(
        source.cluster.proxied_bootstrap,
        topic,
        [NewRecord(0, b"k", b"idempotent")],
        source.admin | {"enable.idempotence": True},
    )
