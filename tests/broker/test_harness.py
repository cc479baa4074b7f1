"""The harness itself: a witness is believed only after it was examined."""

import random
import socket
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import suppress

import pytest
from confluent_kafka import KafkaException, Producer

from tests.harness import wire, witness
from tests.harness.java import Fill, JavaWitness
from tests.harness.kafka import NEWEST_3, NEWEST_4, KafkaCluster
from tests.harness.ports import LOOPBACK, free_port
from tests.harness.proxy import FaultProxy
from tests.harness.records import NewRecord
from tests.harness.waiting import eventually
from tests.harness.wire import API_VERSIONS, LATEST, METADATA, PRODUCE, Wire, WireError

pytestmark = pytest.mark.broker

StartCluster = Callable[..., KafkaCluster]

# Every distinction that a careless client loses: null against empty, order and repetition of headers, old
# timestamps.
AWKWARD = [
    NewRecord(0, b"key", b"value", (), 1_500_000_000_000),
    NewRecord(0, None, b"no key", (), 1_500_000_000_001),
    NewRecord(0, b"tombstone", None, (), 1_500_000_000_002),
    NewRecord(0, None, None, (), 1_500_000_000_003),
    NewRecord(0, b"", b"", (), 1),
    NewRecord(1, b"h", b"1", (("one", b"1"), ("null", None), ("empty", b"")), 1_500_000_000_004),
    NewRecord(1, b"h", b"2", (("again", b"b"), ("other", b"x"), ("again", b"a")), 1_500_000_000_005),
    NewRecord(1, b"h", b"3", (("größe", bytes(range(256))), ("", b"no name")), 1_500_000_000_006),
]


def plain_records(count: int, partition: int = 0) -> list[NewRecord]:
    return [NewRecord(partition, b"%d" % number, b"value %d" % number) for number in range(count)]


def batch_record_count(batch: bytes) -> int:
    return struct.unpack_from(">i", batch, 57)[0]


def test_no_port_is_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    # A broker was refused because two of its listeners, bound only seconds later, had been given the same port.
    monkeypatch.setattr(random, "sample", lambda candidates, count: list(candidates)[:count])
    ports = [free_port() for _ in range(3)]
    assert len(set(ports)) == 3


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
@pytest.mark.parametrize("writer", ["java", "librdkafka"])
def test_all_witnesses_agree(
    kafka4: KafkaCluster, java4: JavaWitness, topic_name: str, writer: str, codec: str
) -> None:
    witness.create_topic(kafka4.bootstrap, topic_name, partitions=3)
    write = java4.produce if writer == "java" else witness.produce
    write(kafka4.bootstrap, topic_name, AWKWARD, {"compression.type": codec, "linger.ms": "100"})

    by_java = java4.dump(kafka4.bootstrap, topic_name)
    assert by_java == witness.dump(kafka4.bootstrap, topic_name)
    assert sorted(by_java) == [0, 1, 2]
    for partition, read in by_java.items():
        sent = [record for record in AWKWARD if record.partition == partition]
        assert [one[3:] for one in read] == [record[1:4] for record in sent]
        assert [one.timestamp for one in read] == [record.timestamp for record in sent]
        assert [one.offset for one in read] == list(range(len(sent)))
        batches = witness.raw_batches(kafka4.bootstrap, topic_name, partition)
        assert sum(map(batch_record_count, batches)) == len(sent)


def test_versions_agree(kafka3: KafkaCluster, java3: JavaWitness, topic_name: str) -> None:
    witness.create_topic(kafka3.bootstrap, topic_name, config={"message.timestamp.type": "LogAppendTime"})
    witness.produce(kafka3.bootstrap, topic_name, plain_records(10))
    read = witness.dump(kafka3.bootstrap, topic_name)
    assert [record.timestamp_type for record in read[0]] == ["LogAppendTime"] * 10
    assert java3.dump(kafka3.bootstrap, topic_name) == read


def test_aborted_records_are_in_the_log_but_not_committed(
    kafka4: KafkaCluster, java4: JavaWitness, topic_name: str
) -> None:
    witness.create_topic(kafka4.bootstrap, topic_name)
    java4.produce(kafka4.bootstrap, topic_name, plain_records(3), {"transactional.id": topic_name}, abort=True)
    witness.produce(kafka4.bootstrap, topic_name, plain_records(2), {"transactional.id": topic_name})
    for dump in (java4.dump, witness.dump):
        everything = dump(kafka4.bootstrap, topic_name)
        committed = dump(kafka4.bootstrap, topic_name, "read_committed")
        assert [record.offset for record in everything[0]] == [0, 1, 2, 4, 5]
        assert committed[0] == everything[0][3:]


def test_fill_writes_what_was_ordered(
    kafka4: KafkaCluster, java4: JavaWitness, topic_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    witness.create_topic(kafka4.bootstrap, topic_name, partitions=2)
    config = {"compression.type": "lz4", "batch.size": "65536", "linger.ms": "20"}
    summary = java4.fill(kafka4.bootstrap, topic_name, Fill(2, 5_000, 700), config)
    assert (summary["count"], summary["value_bytes"]) == (5_000, 5_000 * 700)
    read = witness.dump(kafka4.bootstrap, topic_name)
    assert [len(read[0]), len(read[1])] == [2_500, 2_500]
    # One Fetch does not hold this partition, and ends in the middle of a batch.
    monkeypatch.setattr(wire, "_FETCH_BYTES_MAX", 100_000)
    batches = witness.raw_batches(kafka4.bootstrap, topic_name, 0)
    assert sum(map(batch_record_count, batches)) == 2_500
    assert sum(map(len, batches)) > 3 * 100_000


def test_a_topic_can_be_deleted(kafka4: KafkaCluster, topic_name: str) -> None:
    witness.create_topic(kafka4.bootstrap, topic_name)
    witness.delete_topic(kafka4.bootstrap, topic_name)
    with pytest.raises(KafkaException):
        witness.dump(kafka4.bootstrap, topic_name)


def test_a_killed_node_comes_back_with_its_data(private_cluster: StartCluster, topic_name: str) -> None:
    cluster = private_cluster(NEWEST_4)
    witness.create_topic(cluster.bootstrap, topic_name)
    witness.produce(cluster.bootstrap, topic_name, plain_records(100))
    before, dead = witness.dump(cluster.bootstrap, topic_name), cluster.pid()
    cluster.kill()
    assert not list(cluster.folder.rglob(".kafka_cleanshutdown"))
    with pytest.raises(RuntimeError, match="node 1 is not running"):
        cluster.pid()
    cluster.restart()
    assert cluster.pid() != dead
    assert witness.dump(cluster.bootstrap, topic_name) == before
    assert len(before[0]) == 100


def test_a_stopped_cluster_starts_again(private_cluster: StartCluster, topic_name: str) -> None:
    cluster = private_cluster(NEWEST_3)
    witness.create_topic(cluster.bootstrap, topic_name)
    witness.produce(cluster.bootstrap, topic_name, plain_records(10))
    cluster.stop()
    assert list(cluster.folder.rglob(".kafka_cleanshutdown"))
    cluster.start()
    assert len(witness.dump(cluster.bootstrap, topic_name)[0]) == 10


def test_a_follower_takes_over(private_cluster: StartCluster, topic_name: str) -> None:
    cluster = private_cluster(NEWEST_4, nodes=2)
    witness.create_topic(cluster.bootstrap, topic_name, partitions=2, replicas=2)
    witness.produce(cluster.bootstrap, topic_name, plain_records(10), {"acks": "all"})
    controller = int(cluster.bootstrap.split(",")[0].split(":")[1])
    with Wire(controller) as broker:
        assert set(broker.metadata(topic_name).leaders[topic_name].values()) == {1, 2}
        cluster.kill(2)
        eventually(
            lambda: set(broker.metadata(topic_name).leaders[topic_name].values()) == {1},
            "node 1 to lead alone",
        )
    cluster.restart(2)
    assert len(witness.dump(cluster.bootstrap, topic_name)[0]) == 10


def test_a_paused_node_is_silent(private_cluster: StartCluster) -> None:
    cluster = private_cluster(NEWEST_4)
    port = int(cluster.bootstrap.split(":")[1])
    cluster.pause()
    with Wire(port, timeout_s=0.5) as broker, pytest.raises(TimeoutError):
        broker.metadata()
    cluster.resume()
    with Wire(port) as broker:
        assert [known.node for known in broker.metadata().brokers] == [1]


def test_a_broker_that_cannot_start_says_why(private_cluster: StartCluster) -> None:
    with pytest.raises(RuntimeError, match=r"log\.retention\.ms"):
        private_cluster(NEWEST_4, properties={"log.retention.ms": "for ever"})


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a child with its parent")
def test_brokers_do_not_survive_a_killed_run() -> None:
    script = textwrap.dedent("""
        from tests.harness import tether
        tether.spawn(["sh", "-c", "echo started; exec sleep 30"]).wait()
    """)
    run = [sys.executable, "-c", script]
    with subprocess.Popen(run, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == "started\n"
        parent.kill()
        killed = time.monotonic()
        # The child has inherited the pipe: its end is the end of the last process that could write to it.
        assert parent.stdout.read() == ""
        assert time.monotonic() - killed < 15


def proxied_port(cluster: KafkaCluster) -> int:
    return cluster.proxies[0].port


def test_metadata_leads_through_the_proxy(kafka4: KafkaCluster, topic_name: str) -> None:
    witness.create_topic(kafka4.proxied_bootstrap, topic_name)
    witness.produce(kafka4.proxied_bootstrap, topic_name, plain_records(20))
    with Wire(proxied_port(kafka4)) as broker:
        assert [known.port for known in broker.metadata().brokers] == [proxied_port(kafka4)]
    assert kafka4.proxies[0].requests[PRODUCE] >= 1
    assert witness.dump(kafka4.bootstrap, topic_name) == witness.dump(kafka4.proxied_bootstrap, topic_name)


def test_a_dropped_answer_belongs_to_a_done_request(kafka4: KafkaCluster, topic_name: str) -> None:
    proxy = kafka4.proxies[0]
    witness.create_topic(kafka4.bootstrap, topic_name)
    proxy.drop_answers(PRODUCE, every=3)
    config = {"enable.idempotence": "true", "batch.num.messages": 1, "linger.ms": 0, "retry.backoff.ms": 10}
    witness.produce(kafka4.proxied_bootstrap, topic_name, plain_records(20), config)
    assert proxy.dropped >= 3
    assert proxy.requests[PRODUCE] >= 20 + proxy.dropped
    values = [record.value for record in witness.dump(kafka4.bootstrap, topic_name)[0]]
    assert values == [record.value for record in plain_records(20)]


def test_a_silenced_connection_stays_open(kafka4: KafkaCluster) -> None:
    proxy = kafka4.proxies[0]
    proxy.drop_answers(METADATA, then="silence")
    with Wire(proxy.port, timeout_s=0.3) as broker:
        for _ in range(2):
            with pytest.raises(TimeoutError):
                broker.metadata()
    assert proxy.dropped == 2
    assert proxy.requests[METADATA] == 2


def test_answers_can_be_late(kafka4: KafkaCluster) -> None:
    proxy = kafka4.proxies[0]
    proxy.delay_answers(METADATA, 0.3)
    with Wire(proxy.port) as broker:
        began = time.monotonic()
        broker.metadata()
        assert time.monotonic() - began >= 0.3
        began = time.monotonic()
        broker.ask(API_VERSIONS, 0, b"")
        assert time.monotonic() - began < 0.3
    assert proxy.delayed == 1


def test_a_request_is_done_after_its_client_was_cut_off(kafka4: KafkaCluster, topic_name: str) -> None:
    proxy = kafka4.proxies[0]
    witness.create_topic(kafka4.bootstrap, topic_name)
    proxy.cut_after_request(PRODUCE, n=2)
    config = {"batch.num.messages": 1, "linger.ms": 0, "retries": 0, "acks": "1", "max.in.flight": 1}
    producer = Producer({"bootstrap.servers": kafka4.proxied_bootstrap, **config})
    outcomes: list[object] = []
    for record in plain_records(3):
        producer.produce(topic_name, record.value, on_delivery=lambda error, _message: outcomes.append(error))
        producer.flush(10)
    assert [error is None for error in outcomes] == [True, False, True]
    assert proxy.cut == 1
    with Wire(int(kafka4.bootstrap.split(":")[1])) as broker:
        eventually(lambda: broker.list_offset(topic_name, 0, LATEST) == 3, "the record without an answer")


def test_connections_can_be_cut_and_refused(kafka4: KafkaCluster) -> None:
    proxy = kafka4.proxies[0]
    with Wire(proxy.port) as broker:
        broker.metadata()
        proxy.refuse(True)
        broker.metadata()
        proxy.cut_all()
        with pytest.raises((WireError, ConnectionError)):
            broker.metadata()
    assert proxy.cut >= 1
    with pytest.raises(ConnectionRefusedError):
        Wire(proxy.port)
    proxy.refuse(False)
    with Wire(proxy.port) as broker:
        assert broker.metadata().brokers


def test_a_blackhole_holds_what_it_swallows(kafka4: KafkaCluster) -> None:
    proxy = kafka4.proxies[0]
    with Wire(proxy.port) as before, Wire(proxy.port, timeout_s=0.2) as victim:
        before.metadata()
        victim.metadata()
        proxy.blackhole(True)
        with pytest.raises(TimeoutError):
            victim.metadata()
        with Wire(proxy.port, timeout_s=0.2) as late, pytest.raises(TimeoutError):
            late.metadata()
        proxy.blackhole(False)
        assert before.metadata().brokers


def test_a_long_thin_link(kafka4: KafkaCluster, java4: JavaWitness, topic_name: str) -> None:
    proxy = kafka4.proxies[0]
    witness.create_topic(kafka4.bootstrap, topic_name)
    java4.fill(kafka4.bootstrap, topic_name, Fill(1, 4_000, 1_000))
    proxy.link(latency_s=0.1)
    with Wire(proxy.port) as broker:
        began = time.monotonic()
        broker.metadata()
        assert time.monotonic() - began >= 0.2
        proxy.link(bytes_per_second=8_000_000)
        began = time.monotonic()
        stored_bytes = len(broker.fetch(topic_name, 0, 0))
        assert stored_bytes > 4_000_000
        assert 0.8 * stored_bytes / 8_000_000 <= time.monotonic() - began <= 3 * stored_bytes / 8_000_000


def test_the_proxy_keeps_up(kafka4: KafkaCluster, java4: JavaWitness, topic_name: str) -> None:
    witness.create_topic(kafka4.bootstrap, topic_name)
    java4.fill(kafka4.bootstrap, topic_name, Fill(1, 30_000, 1_000), {"batch.size": "1000000", "linger.ms": "20"})
    with Wire(proxied_port(kafka4)) as broker:
        broker.fetch(topic_name, 0, 0)
        began = time.monotonic()
        fetched_bytes = sum(len(broker.fetch(topic_name, 0, 0)) for _ in range(5))
        bytes_per_second = fetched_bytes / (time.monotonic() - began)
    assert fetched_bytes > 150_000_000
    # It does several times that on an idle machine; tests share theirs.
    assert bytes_per_second > 50_000_000


def test_what_is_not_kafka_is_reported(kafka4: KafkaCluster) -> None:
    proxy = FaultProxy(int(kafka4.bootstrap.split(":")[1]))
    with socket.create_connection((LOOPBACK, proxy.port), 5) as client, suppress(ConnectionError):
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert client.recv(1) == b""
    with pytest.raises(RuntimeError, match="met a problem"):
        proxy.close()
