"""What an operator does to a topic while it is being replicated. All raise KafkaException, or TimeoutError."""

from collections.abc import Mapping
from typing import Any

from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

from tests.harness import witness
from tests.harness.kafka import KafkaCluster
from tests.harness.waiting import eventually
from tests.harness.wire import EARLIEST, LATEST, Wire, WireError

_ANSWER_TIMEOUT_S = 30


def create_topic(
    cluster: KafkaCluster, name: str, partitions: int = 1, config: Mapping[str, str] | None = None
) -> None:
    """Create a topic on a single-node cluster and wait until its partitions take requests.

    That a node leads a partition can be read in its metadata a little before the node itself knows it.
    """
    witness.create_topic(cluster.bootstrap, name, partitions, config)
    with Wire(_port(cluster)) as wire:
        for partition in range(partitions):
            eventually(lambda at=partition: _answers(wire, name, at), f"{name}-{partition} to answer")


def delete_records(cluster: KafkaCluster, topic: str, before: int, partition: int = 0) -> None:
    """Move the log start of a partition to the offset `before`."""
    admin = _admin(cluster)
    _finish(admin.delete_records([TopicPartition(topic, partition, before)]))


def add_partitions(cluster: KafkaCluster, topic: str, partitions: int) -> None:
    """Give a topic so many partitions in all."""
    admin = _admin(cluster)
    _finish(admin.create_partitions([NewPartitions(topic, partitions)]))


def partition_count(cluster: KafkaCluster, topic: str) -> int:
    """0 when there is no such topic."""
    found = _admin(cluster).list_topics(timeout=_ANSWER_TIMEOUT_S).topics.get(topic)
    return 0 if found is None else len(found.partitions)


def end_offset(cluster: KafkaCluster, topic: str, partition: int = 0) -> int:
    with Wire(_port(cluster)) as wire:
        return wire.list_offset(topic, partition, LATEST)


def start_offset(cluster: KafkaCluster, topic: str, partition: int = 0) -> int:
    with Wire(_port(cluster)) as wire:
        return wire.list_offset(topic, partition, EARLIEST)


def _admin(cluster: KafkaCluster) -> AdminClient:
    """To be kept until its futures are done: they end with it."""
    return AdminClient({"bootstrap.servers": cluster.bootstrap, "log_level": 0})


def _finish(futures: Mapping[Any, Any]) -> None:
    for future in futures.values():
        future.result(_ANSWER_TIMEOUT_S)


def _port(cluster: KafkaCluster) -> int:
    return int(cluster.bootstrap.rsplit(":", 1)[1])


def _answers(wire: Wire, topic: str, partition: int) -> bool:
    try:
        return wire.list_offset(topic, partition, LATEST) >= 0
    except WireError:
        return False
