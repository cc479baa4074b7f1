"""Consumer groups on two real clusters, and what a link between them would have written down."""

import asyncio
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, Producer

from replicator.config.load import from_data
from replicator.control.group_admin import Committed, GroupAdmin, clusters_of
from replicator.control.groups import GroupStatus, GroupSync
from replicator.state.chunks import pack
from replicator.state.reader import StateReader
from replicator.state.records import (
    ChunkKey,
    GroupKey,
    GroupRecord,
    LaneKey,
    LaneRecord,
    encode,
    offsets_topic,
    shard_of,
    state_topic,
)
from tests.broker.admin import create_topic
from tests.harness import witness
from tests.harness.kafka import KafkaCluster
from tests.harness.records import NewRecord
from tests.harness.waiting import eventually

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # kafka-python 3.0 loads its schemas in an old way
    import kafka

SHARDS = 4
TIMEOUT_S = 30
AHEAD_THERE = 7  # records that stood in each target partition before the first one came

Segment = tuple[int, int, int]


class Scene:
    """A link that is not running: two topics of the same records, and what the link would have written down about them.

    In every target partition AHEAD_THERE records of somebody else come first.
    """

    def __init__(
        self, source: KafkaCluster, target: KafkaCluster, topic: str, own_topics: bool = True, **link: Any
    ) -> None:
        self.source, self.target, self.topic = source, target, topic
        self.group = f"{topic}-group"
        options = {
            "source": "us",
            "target": "eu",
            "name": topic,
            "topics": {"include": [f"{topic}.*"]},
            "rename": {"prefix": "us."},
            "groups": {"include": [f"{topic}.*"]},
            **link,
        }
        self.file = {
            "clusters": {
                "us": {"bootstrap.servers": source.bootstrap},
                "eu": {"bootstrap.servers": target.bootstrap},
            },
            "links": [options],
        }
        self.config = from_data(self.file)
        (self.link,) = self.config.links
        self._producer = Producer({"bootstrap.servers": target.bootstrap, "log_level": 0, "linger.ms": 1})
        for each in (state_topic(topic), offsets_topic(topic)) if own_topics else ():
            create_topic(target, each, SHARDS, {"cleanup.policy": "compact"})

    @property
    def target_topic(self) -> str:
        return f"us.{self.topic}"

    def make_topics(self, partitions: int, records: int) -> None:
        """Both topics, with `records` a partition, numbered from 0 in their values."""
        create_topic(self.source, self.topic, partitions)
        create_topic(self.target, self.target_topic, partitions)
        foreign = [NewRecord(part, None, b"foreign") for part in range(partitions) for _ in range(AHEAD_THERE)]
        ours = [NewRecord(part, None, b"%d" % number) for part in range(partitions) for number in range(records)]
        witness.produce(self.source.bootstrap, self.topic, ours)
        witness.produce(self.target.bootstrap, self.target_topic, foreign + ours)

    def write_lane(self, partition: int, position: int, segments: Sequence[Segment] = (), **fields: Any) -> None:
        """The lane's checkpoint: everything below `position` is there, by default AHEAD_THERE further on."""
        key = LaneKey(self.topic, partition)
        record = {
            "generation": 1,
            "topic_id": "",
            "target_topic": self.target_topic,
            "target_topic_id": "",
            "position": position,
            "target_next": position + AHEAD_THERE,
            "sequence": position,
            "leader_epoch": 0,
            "producer_id": 1,
            "producer_epoch": 0,
            "segments": segments or ((0, AHEAD_THERE, position),),
            **fields,
        }
        self._write(state_topic(self.topic), shard_of(self.topic, partition, SHARDS), key, LaneRecord(**record))

    def write_chunk(self, partition: int, segments: Sequence[Segment]) -> None:
        key = ChunkKey(self.topic, partition, "", generation=1, chunk=0)
        self._write(offsets_topic(self.topic), shard_of(self.topic, partition, SHARDS), key, pack(1, segments))

    def write_group(self, key: GroupKey, record: GroupRecord | None) -> None:
        self._write(state_topic(self.topic), 0, key, record)

    def _write(self, topic: str, shard: int, key: Any, record: Any) -> None:
        self._producer.produce(topic, encode(record) if record else None, encode(key), shard)
        assert self._producer.flush(TIMEOUT_S) == 0

    def sync(self) -> dict[str, GroupStatus]:
        """One round of a leader that has just begun: it knows only what stands in the link's state."""

        async def one_round() -> list[GroupStatus]:
            reader = StateReader(self.config.clusters["eu"], self.link.name)
            async with clusters_of(self.config, "us", "eu") as (source, target):
                try:
                    return await GroupSync(self.link, source, target, reader, self.write_group).sync()
                finally:
                    reader.close()

        return {status.group: status for status in asyncio.run(one_round())}

    def ask(self, alias: str, question: Callable[[GroupAdmin], Any]) -> Any:
        async def answer() -> Any:
            async with clusters_of(self.config, alias) as (cluster,):
                return await question(GroupAdmin(cluster))

        return asyncio.run(answer())

    def commit(self, offset: int, partition: int = 0, metadata: str = "") -> None:
        """As a consumer of the source group does it, in one line."""
        self.ask("us", lambda admin: admin.commit(self.group, {(self.topic, partition): Committed(offset, metadata)}))

    def there(self, group: str = "") -> dict[int, tuple[int, str, int]]:
        """What kafka-python finds on the target: partition -> (offset, metadata, leader epoch)."""
        return offsets_of(self.target, group or self.group, self.target_topic)

    def cutover(self, folder: Path, *arguments: str) -> tuple[int, Any, str]:
        """The command as an operator runs it: (exit code, its JSON, stderr)."""
        command = [sys.executable, "-m", "replicator", "cutover", str(self.write_file(folder)), *arguments, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
        return done.returncode, json.loads(done.stdout or "null"), done.stderr

    def write_file(self, folder: Path) -> Path:
        path = folder / "link.yaml"
        path.write_text(json.dumps(self.file))
        return path


def offsets_of(cluster: KafkaCluster, group: str, topic: str) -> dict[int, tuple[int, str, int]]:
    client = kafka.KafkaAdminClient(bootstrap_servers=cluster.bootstrap)
    try:
        found = client.list_group_offsets([group])[group]
    finally:
        client.close()
    return {
        at.partition: (each.offset, each.metadata, each.leader_epoch) for at, each in found.items() if at.topic == topic
    }


@contextmanager
def consuming(
    cluster: KafkaCluster, group: str, topic: str, records: int = 1, protocol: str = "classic"
) -> Iterator[tuple[Consumer, list[tuple[int, int]]]]:
    """A live member of the group that has read so many records from the committed offsets on: (partition, offset)."""
    properties = {
        "bootstrap.servers": cluster.bootstrap,
        "group.id": group,
        "group.protocol": protocol,
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
    }
    consumer = Consumer(properties)
    try:
        consumer.subscribe([topic])
        read: list[tuple[int, int]] = []

        def has_read() -> bool:
            message = consumer.poll(0.1)
            if message is not None and message.error() is None:
                read.append((message.partition() or 0, message.offset() or 0))
            return len(read) >= records

        eventually(has_read, f"{records} records of {topic}", TIMEOUT_S)
        yield consumer, read
    finally:
        consumer.close()
