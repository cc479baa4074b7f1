"""A cluster that asks everybody who he is: the link comes as nobody in particular, with the rights that a test gives.

The plain listener knows every client as ANONYMOUS, who may do what ACLs say and nothing else. The one behind the proxy
wants a name and a password: the test comes there as an administrator, for whom no rule holds.
"""

import contextlib
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ConfigResource,
    NewPartitions,
    NewTopic,
    OffsetSpec,
    ResourcePatternType,
    ResourceType,
)

from tests.harness import witness
from tests.harness.kafka import NEWEST_4, KafkaCluster
from tests.harness.records import NewRecord
from tests.harness.waiting import eventually

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # kafka-python 3.0 loads its schemas in an old way
    import kafka  # type: ignore[import-untyped]

TIMEOUT_S = 30
_LOGIN = "org.apache.kafka.common.security.plain.PlainLoginModule required"
_RULES = {
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,PROXIED:SASL_PLAINTEXT,CONTROLLER:SASL_PLAINTEXT",
    "sasl.mechanism.controller.protocol": "PLAIN",
    "listener.name.proxied.sasl.enabled.mechanisms": "PLAIN",
    "listener.name.proxied.plain.sasl.jaas.config": f'{_LOGIN} user_admin="secret";',
    "listener.name.controller.sasl.enabled.mechanisms": "PLAIN",
    "listener.name.controller.plain.sasl.jaas.config": f'{_LOGIN} username="broker" password="x" user_broker="x";',
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "super.users": "User:admin;User:broker",
}
_LATEST: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]
_EARLIEST: OffsetSpec = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
# The broker writes down what it refuses, and to whom.
_JVM_OPTIONS = "-Dorg.slf4j.simpleLogger.log.kafka.authorizer.logger=info"
_REFUSAL = re.compile(r"Principal = (\S+) is Denied operation = (\S+) from host = \S+ on resource = (\S+)", re.I)

Right = tuple[ResourceType, str, AclOperation]


class GuardedCluster:
    """One node. `admin` are client properties of the administrator."""

    def __init__(self, cluster: KafkaCluster) -> None:
        self.cluster = cluster
        self.admin: dict[str, Any] = {
            "bootstrap.servers": cluster.proxied_bootstrap,
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "PLAIN",
            "sasl.username": "admin",
            "sasl.password": "secret",
            "log_level": 0,
        }
        self._client = AdminClient(self.admin)

    # ---- rights ----

    def allow(self, *rights: Right) -> None:
        """To ANONYMOUS; the name `*` means all of them."""
        self._change([_binding(*right, AclPermissionType.ALLOW) for right in rights])

    def deny(self, *rights: Right) -> None:
        """This counts for more than what is allowed, until `forgive`."""
        self._change([_binding(*right, AclPermissionType.DENY) for right in rights])

    def forgive(self) -> None:
        """Takes back all that was denied."""
        denied = _rights(AclPermissionType.DENY)
        for done in self._client.delete_acls([denied]).values():
            assert done.result(TIMEOUT_S)

    def _change(self, bindings: list[AclBinding]) -> None:
        for done in self._client.create_acls(bindings).values():
            done.result(TIMEOUT_S)

    def refusals(self) -> set[tuple[str, str]]:
        """(operation, resource) of everything that the broker has ever refused to ANONYMOUS, by its own log."""
        (log,) = self.cluster.folder.glob("node-*/broker.log")
        found = _REFUSAL.findall(log.read_text(errors="replace"))
        return {(operation, resource) for principal, operation, resource in found if principal == "User:ANONYMOUS"}

    # ---- what the administrator does ----

    def create_topic(self, name: str, partitions: int = 1, **settings: str) -> None:
        new = NewTopic(name, partitions, 1, config={key.replace("_", "."): value for key, value in settings.items()})
        self._client.create_topics([new])[name].result(TIMEOUT_S)
        parts = [TopicPartition(name, part) for part in range(partitions)]
        eventually(lambda: self._are_led(parts), f"leaders of {name}")

    def _are_led(self, parts: list[TopicPartition]) -> bool:
        self._client.list_topics(timeout=TIMEOUT_S)  # what the client remembers of them is old
        with contextlib.suppress(KafkaException):
            return bool(self._offsets(parts, _LATEST))
        return False

    def add_partitions(self, topic: str, partitions: int) -> None:
        """So many in all."""
        for done in self._client.create_partitions([NewPartitions(topic, partitions)]).values():
            done.result(TIMEOUT_S)
        eventually(lambda: self._are_led([TopicPartition(topic, partitions - 1)]), f"more partitions of {topic}")

    def produce(self, topic: str, count: int, partitions: int = 1, word: str = "value") -> None:
        """`count` records in all, round robin."""
        records = (NewRecord(n % partitions, b"%d" % n, f"{word} {n}".encode()) for n in range(count))
        witness.produce(self.cluster.proxied_bootstrap, topic, records, self.admin)

    def commit(self, group: str, offsets: Mapping[tuple[str, int], int]) -> None:
        parts = [TopicPartition(*part, offset) for part, offset in offsets.items()]

        def is_done() -> bool:
            (done,) = self._client.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, parts)]).values()
            return all(part.error is None for part in done.result(TIMEOUT_S).topic_partitions)

        eventually(is_done, f"offsets of {group}")  # a young coordinator does not know every topic at once

    def read(self, topic: str) -> dict[int, list[tuple[int, int, bytes, bytes]]]:
        """(offset, timestamp, key, value) of all records by partition, as kafka-python finds them."""
        client = kafka.KafkaConsumer(
            bootstrap_servers=self.cluster.proxied_bootstrap,
            security_protocol="SASL_PLAINTEXT",
            sasl_mechanism="PLAIN",
            sasl_plain_username=self.admin["sasl.username"],
            sasl_plain_password=self.admin["sasl.password"],
            auto_offset_reset="earliest",
        )
        with contextlib.closing(client):
            parts = [kafka.TopicPartition(topic, part) for part in sorted(client.partitions_for_topic(topic) or ())]
            client.assign(parts)
            ends = client.end_offsets(parts)
            found: dict[int, list[Any]] = {part.partition: [] for part in parts}
            while any(client.position(part) < ends[part] for part in parts):
                for part, records in client.poll(1_000).items():
                    found[part.partition] += [(r.offset, r.timestamp, r.key, r.value) for r in records]
        return found

    # ---- what there is ----

    def contents(self) -> dict[str, Any]:
        """All that somebody could have changed: topics, settings, where logs begin and end, groups and their offsets,
        rights. Its values are plain, to be compared."""
        topics = self._client.list_topics(timeout=TIMEOUT_S).topics
        parts = [TopicPartition(name, part) for name, topic in topics.items() for part in topic.partitions]
        groups = [group.group_id for group in self._client.list_consumer_groups().result(TIMEOUT_S).valid]
        return {
            "topics": {name: len(topic.partitions) for name, topic in topics.items()},
            "starts": self._offsets(parts, _EARLIEST),
            "ends": self._offsets(parts, _LATEST),
            "settings": {name: self._settings(ConfigResource.Type.TOPIC, name) for name in topics},
            "broker": self._settings(ConfigResource.Type.BROKER, "1"),
            "groups": {group: self._committed(group) for group in groups},
            "rights": sorted(map(str, self._client.describe_acls(_rights(AclPermissionType.ANY)).result(TIMEOUT_S))),
        }

    def _offsets(self, parts: Iterable[TopicPartition], spec: OffsetSpec) -> dict[tuple[str, int], int]:
        answers = self._client.list_offsets({part: spec for part in parts})
        return {(part.topic, part.partition): done.result(TIMEOUT_S).offset for part, done in answers.items()}

    def _settings(self, kind: Any, name: str) -> dict[str, str]:
        (done,) = self._client.describe_configs([ConfigResource(kind, name)]).values()
        return {entry.name: entry.value for entry in done.result(TIMEOUT_S).values()}

    def _committed(self, group: str) -> dict[tuple[str, int], tuple[int, str]]:
        (done,) = self._client.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)]).values()
        parts = done.result(TIMEOUT_S).topic_partitions
        return {(part.topic, part.partition): (part.offset, part.metadata) for part in parts}


def _rights(permission: AclPermissionType) -> AclBindingFilter:
    """All of them."""
    whatever: Any = None
    kinds = ResourceType.ANY, whatever, ResourcePatternType.ANY
    return AclBindingFilter(*kinds, whatever, whatever, AclOperation.ANY, permission)


def _binding(kind: ResourceType, name: str, operation: AclOperation, permission: AclPermissionType) -> AclBinding:
    return AclBinding(kind, name, ResourcePatternType.LITERAL, "User:ANONYMOUS", "*", operation, permission)


@contextlib.contextmanager
def guarded_cluster(version: str = NEWEST_4) -> Iterator[GuardedCluster]:
    """In which ANONYMOUS may do nothing at first."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("JAVA_TOOL_OPTIONS", _JVM_OPTIONS)
        cluster = KafkaCluster(version, properties=_RULES, proxied=True)
        try:
            cluster.start()
        except BaseException:
            cluster.close()
            raise
    with cluster:
        guarded = GuardedCluster(cluster)
        eventually(lambda: guarded.contents()["rights"] == [], "an answer")
        yield guarded
