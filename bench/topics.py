"""Topics of a cluster, as far as a measurement needs them: made new, looked at from outside, deleted."""

import itertools
import time
from collections.abc import Iterator, Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

PARTITIONS = 8
# Nothing but these is ever created or deleted, because the cluster may be the user's.
PREFIX = "replicator-bench-"

_TIMEOUT_S = 30.0
_PAUSE_S = 0.1
_BROKER_DEFAULT = -1
_LATEST = OffsetSpec.latest()  # type: ignore[no-untyped-call]
_NUMBERS = itertools.count(1)


def fresh_name(what: str) -> str:
    """A topic name that no other run uses."""
    return f"{PREFIX}{what}-{int(time.time())}-{next(_NUMBERS)}"


class Topics:
    """One cluster's topics."""

    def __init__(self, bootstrap: str) -> None:
        # Kept for as long as futures of it may be around: the client must outlive them.
        self._admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})

    def create(self, name: str, partitions: int = PARTITIONS, config: Mapping[str, str] | None = None) -> str:
        """Create a topic that keeps records of any age, and return its name. Waits out its own deletion.

        Raises KafkaException when the cluster refuses.
        """
        new = NewTopic(name, partitions, _BROKER_DEFAULT, config={"retention.ms": "-1", **(config or {})})
        deadline = time.monotonic() + _TIMEOUT_S
        while not self._created(new):
            if time.monotonic() > deadline:
                raise TimeoutError(f"topic {name} was still there {_TIMEOUT_S:g} s after its deletion")
            time.sleep(_PAUSE_S)
        self._wait_for_leaders(name, partitions, deadline)
        return name

    def delete(self, *names: str) -> None:
        """Delete topics; those that do not exist are no error."""
        if foreign := [name for name in names if not name.startswith(PREFIX)]:
            raise ValueError(f"{foreign} are not topics of this benchmark")
        for done in self._admin.delete_topics(list(names), operation_timeout=_TIMEOUT_S).values():
            try:
                done.result(_TIMEOUT_S)
            except KafkaException as refused:
                if refused.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise

    def ends(self, name: str, partitions: int = PARTITIONS) -> list[int]:
        """The log end offset of each partition, in one request a broker."""
        asked = {TopicPartition(name, partition): _LATEST for partition in range(partitions)}
        answers = self._admin.list_offsets(asked, request_timeout=_TIMEOUT_S)
        return [answer.result(_TIMEOUT_S).offset for answer in _by_partition(answers)]

    def _created(self, new: NewTopic) -> bool:
        try:
            self._admin.create_topics([new], operation_timeout=_TIMEOUT_S)[new.topic].result(_TIMEOUT_S)
        except KafkaException as refused:
            if refused.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
            return False
        return True

    def _wait_for_leaders(self, name: str, partitions: int, deadline: float) -> None:
        while True:
            try:
                self.ends(name, partitions)
                return
            except KafkaException:
                if time.monotonic() > deadline:
                    raise
            time.sleep(_PAUSE_S)


def _by_partition(answers: Mapping[TopicPartition, Any]) -> Iterator[Any]:
    return (answers[partition] for partition in sorted(answers, key=lambda asked: asked.partition))
