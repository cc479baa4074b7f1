"""The embedded cluster: two in one process, as a demo has them, seen through confluent-kafka's clients."""

import importlib.metadata
import socket
from collections.abc import Iterator

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from replicator.control import embedded
from replicator.control.embedded import EmbeddedCluster
from replicator.errors import ClusterError, ConfigError

TIMEOUT_S = 20


def _client(cluster: EmbeddedCluster, **more: object) -> dict[str, object]:
    # log_level 0: a client outlives its cluster here, and would complain about that.
    return {"bootstrap.servers": cluster.bootstrap_servers, "log_level": 0, **more}


def _write(cluster: EmbeddedCluster, topic: str, values: list[bytes], partition: int) -> None:
    producer = Producer(_client(cluster, **{"enable.idempotence": True}))
    for value in values:
        producer.produce(topic, value, partition=partition)
    assert producer.flush(TIMEOUT_S) == 0


def _read(cluster: EmbeddedCluster, topic: str, count: int, partition: int) -> list[tuple[int, bytes]]:
    consumer = Consumer(_client(cluster, **{"group.id": "test"}))
    try:
        consumer.assign([TopicPartition(topic, partition, 0)])
        return [(message.offset(), message.value()) for message in consumer.consume(count, timeout=TIMEOUT_S)]
    finally:
        consumer.close()


@pytest.fixture
def cluster() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster() as started:
        yield started


def test_two_clusters_in_one_process_keep_their_logs_apart() -> None:
    with EmbeddedCluster() as source, EmbeddedCluster() as target:
        logs = {source: [b"s%d" % n for n in range(500)], target: [b"t%d" % n for n in range(300)]}
        for cluster, values in logs.items():
            cluster.create_topic("orders", 3)
            _write(cluster, "orders", values, partition=2)
        for cluster, values in logs.items():
            assert _read(cluster, "orders", len(values), partition=2) == list(enumerate(values))


def test_brokers_and_leaders() -> None:
    with EmbeddedCluster(brokers=3) as cluster:
        cluster.create_topic("orders", 6, replication_factor=2)
        metadata = AdminClient(_client(cluster)).list_topics(timeout=TIMEOUT_S)
        addresses = {f"{broker.host}:{broker.port}" for broker in metadata.brokers.values()}
        assert addresses == set(cluster.bootstrap_servers.split(","))
        assert len(addresses) == 3
        partitions = metadata.topics["orders"].partitions.values()
        assert sorted(partition.id for partition in partitions) == list(range(6))
        # librdkafka draws the leaders, so six partitions need not use all three brokers.
        assert {partition.leader for partition in partitions} <= set(metadata.brokers)
        assert {len(partition.replicas) for partition in partitions} == {2}


def test_it_listens_on_this_machine_only_and_only_while_it_lives() -> None:
    with EmbeddedCluster() as cluster:
        host, port = cluster.bootstrap_servers.split(":")
        assert host == "127.0.0.1"
        socket.create_connection((host, int(port)), TIMEOUT_S).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), TIMEOUT_S)
    cluster.close()
    with pytest.raises(ValueError, match="closed"):
        cluster.create_topic("orders", 1)


def test_a_topic_twice(cluster: EmbeddedCluster) -> None:
    cluster.create_topic("orders", 1)
    with pytest.raises(ClusterError, match=r"create topic orders: TOPIC_ALREADY_EXISTS \(36\)"):
        cluster.create_topic("orders", 2)


@pytest.mark.parametrize(("partitions", "replicas"), [(0, 1), (-1, 1), (10_001, 1), (1, 0), (1, 2)])
def test_impossible_topics(cluster: EmbeddedCluster, partitions: int, replicas: int) -> None:
    with pytest.raises(ValueError, match="must be 1 to"):
        cluster.create_topic("orders", partitions, replicas)


@pytest.mark.parametrize("brokers", [0, -1, 17])
def test_impossible_clusters(brokers: int) -> None:
    with pytest.raises(ValueError, match="brokers must be 1 to 16"):
        EmbeddedCluster(brokers)


@pytest.mark.parametrize(
    ("name", "is_librdkafka"),
    [
        ("librdkafka-0cb94173.so.1", True),  # Linux wheels
        ("librdkafka.1.dylib", True),  # macOS wheels
        ("librdkafka.so", True),
        ("librdkafka.so.1", True),
        ("librdkafka++.so.1", False),
        ("librdkafka_string_parser.py", False),
        ("libssl-0cb94173.so.3", False),
    ],
)
def test_names_of_the_library(name: str, is_librdkafka: bool) -> None:
    assert bool(embedded._LIBRARY_FILE.fullmatch(name)) is is_librdkafka


def test_the_system_library_is_second_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "files", lambda name: None)
    monkeypatch.setattr(embedded.ctypes.util, "find_library", lambda name: f"lib{name}.so.1")
    assert embedded._library_path() == "librdkafka.so.1"


def test_no_library_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", not_installed)
    monkeypatch.setattr(embedded.ctypes.util, "find_library", lambda name: None)
    with pytest.raises(ConfigError, match=r"librdkafka was not found; pip install confluent-kafka"):
        embedded._library_path()


def test_another_library_under_that_name(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    path = f"{tmp_path}/librdkafka.so.1"
    with open(path, "wb") as file:
        file.write(b"not a library")
    monkeypatch.setattr(embedded, "_library_path", lambda: path)
    with pytest.raises(ConfigError, match=r"librdkafka.so.1 is not a librdkafka with a mock cluster"):
        embedded._library.__wrapped__()
