"""Topics on the target: made like the source's, and grown when it grows, always before the first batch comes.

Settings are taken over when somebody set them on the source topic, never the source cluster's own defaults; a few that
speak about the source's machines and not about the data are left out, as MirrorMaker 2 leaves them out.

A link's own topics are made here, too: `ensure`, with the settings below.
"""

import asyncio
import logging
from collections.abc import Iterable
from typing import Any, Literal

from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, ConfigResource, ConfigSource, NewPartitions, NewTopic

from replicator.config.models import Cluster
from replicator.errors import ClusterError, ConfigError, Where
from replicator.kafka.cluster import TopicMetadata

log = logging.getLogger("replicator")

ADMIN_TIMEOUT_S = 30.0
UNKNOWN_TOPIC, UNAUTHORIZED, TOPIC_ALREADY_EXISTS = 3, 29, 36
OWN_REPLICAS = 3  # of a link's own topics where the link says nothing else: they have no source to follow

# The clock of the target, whatever ours says: since Kafka 4 a broker refuses records of more than an hour from now.
_OWN = {"message.timestamp.type": "LogAppendTime"}

# A worker reads these from start to end before it begins, so they must stay near what they hold: the log cleaner
# leaves the segment alone that is being written, and the rest until a share of it is out of date. With 64 shards and
# 10,000 lanes a partition takes up to 100 KB/s, so 1 MiB (the least that Kafka 4 allows) fills within a minute or so.
COMPACTED_SETTINGS = _OWN | {
    "cleanup.policy": "compact",
    "segment.bytes": str(1 << 20),
    "segment.ms": str(600_000),  # where little is written, a segment would never fill
    "min.cleanable.dirty.ratio": "0.1",  # by default half of the log may be out of date
    "segment.index.bytes": str(1 << 16),  # each partition has 20 MiB of indexes mapped by default, for 1 GiB segments
    "delete.retention.ms": str(86_400_000),  # so long a reader may take to see that something was taken back
}

EVENTS_SETTINGS = _OWN | {
    "cleanup.policy": "delete",
    "retention.ms": str(30 * 86_400_000),
    "retention.bytes": str(1 << 30),
    "segment.bytes": str(64 << 20),
    "segment.ms": str(86_400_000),
}

NOT_COPIED = {
    "follower.replication.throttled.replicas",
    "leader.replication.throttled.replicas",
    "message.timestamp.difference.max.ms",
    "message.timestamp.type",
    "min.insync.replicas",
    "unclean.leader.election.enable",
}


class Topics:
    """Admin work of one link. Handles are made when first needed: a link whose topics all exist needs none."""

    def __init__(self, source: Cluster, target: Cluster, replication_factor: Literal["source", "broker"] | int) -> None:
        self._source = source
        self._target = target
        self._replication_factor = replication_factor
        self._admins: dict[str, AdminClient] = {}

    def _admin(self, cluster: Cluster) -> AdminClient:
        if cluster.alias not in self._admins:
            self._admins[cluster.alias] = AdminClient(cluster.client_properties())
        return self._admins[cluster.alias]

    async def create(self, source: TopicMetadata, target_topic: str, target_brokers: int) -> None:
        """Makes `target_topic` like `source`. Raises ClusterError. A topic that exists by now is fine."""
        factor = self._factor(source.replicas, target_brokers)
        settings = await self._settings_if_allowed(source.name)
        new = NewTopic(target_topic, len(source.leaders), replication_factor=factor, config=settings)
        (done,) = self._admin(self._target).create_topics([new], request_timeout=ADMIN_TIMEOUT_S).values()
        await self._finish(done, Where(self._target.alias, target_topic), allowed=TOPIC_ALREADY_EXISTS)

    async def grow(self, target_topic: str, partitions: int) -> None:
        """Gives `target_topic` as many partitions. Raises ClusterError."""
        new = NewPartitions(target_topic, partitions)
        (done,) = self._admin(self._target).create_partitions([new], request_timeout=ADMIN_TIMEOUT_S).values()
        await self._finish(done, Where(self._target.alias, target_topic))

    async def ensure(self, topic: str, partitions: int, settings: dict[str, str]) -> int:
        """Sees to it that one of our own topics is on the target; returns how many partitions it has.

        Asks before it makes it: who made the topic for us need not let us make topics. One that exists keeps its
        settings, but must be cleaned up as ours are. Raises ConfigError where it is not, ClusterError.
        """
        where = Where(self._target.alias, topic)
        found = await self._partitions(topic, where)
        if found:
            await self._check_cleanup(topic, settings["cleanup.policy"], where)
            return found
        new = NewTopic(topic, partitions, replication_factor=await self._own_factor(where), config=settings)
        (done,) = self._admin(self._target).create_topics([new], request_timeout=ADMIN_TIMEOUT_S).values()
        # Another worker of the link may have been quicker: it made the same.
        await self._finish(done, where, allowed=TOPIC_ALREADY_EXISTS)
        return partitions

    async def _partitions(self, topic: str, where: Where) -> int:
        """0 when there is no such topic."""
        names = TopicCollection([topic])
        (done,) = self._admin(self._target).describe_topics(names, request_timeout=ADMIN_TIMEOUT_S).values()
        found = await self._finish(done, where, allowed=UNKNOWN_TOPIC)
        return len(found.partitions) if found else 0

    async def _check_cleanup(self, topic: str, wanted: str, where: Where) -> None:
        """A broker that makes topics by itself makes them with `delete`: a link's state would be gone in a week."""
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
        (done,) = self._admin(self._target).describe_configs([resource], request_timeout=ADMIN_TIMEOUT_S).values()
        try:
            entries = await self._finish(done, where)
        except ClusterError as error:
            if error.code == UNAUTHORIZED:
                return  # we may write there, but not look
            raise
        policy = entries["cleanup.policy"].value
        if policy != wanted:
            raise ConfigError(
                f"{where} has cleanup.policy={policy}, and must have {wanted}",
                hint=f"kafka-configs.sh --alter --topic {topic} --add-config cleanup.policy={wanted}",
            )

    async def _own_factor(self, where: Where) -> int:
        if self._replication_factor != "source":
            return self._factor(0, 0)
        done = self._admin(self._target).describe_cluster(request_timeout=ADMIN_TIMEOUT_S)
        brokers = len((await self._finish(done, where)).nodes)
        return self._factor(OWN_REPLICAS, brokers)

    def _factor(self, source_factor: int, target_brokers: int) -> int:
        if self._replication_factor == "broker":
            return -1
        if self._replication_factor == "source":
            return min(source_factor, max(target_brokers, 1))  # a smaller cluster holds as many as it can
        return self._replication_factor

    async def _settings_if_allowed(self, topic: str) -> dict[str, str]:
        """A source that lets us read and describe need not show us its topics' settings."""
        try:
            return await self._settings(topic)
        except ClusterError as error:
            if error.code != UNAUTHORIZED:
                raise
            log.warning(
                "%s: not allowed to read its settings (DESCRIBE_CONFIGS): made with the target's own", error.where
            )
            return {}

    async def _settings(self, topic: str) -> dict[str, str]:
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
        (done,) = self._admin(self._source).describe_configs([resource], request_timeout=ADMIN_TIMEOUT_S).values()
        entries: Iterable[Any] = (await self._finish(done, Where(self._source.alias, topic))).values()
        return {
            entry.name: entry.value
            for entry in entries
            if entry.source == ConfigSource.DYNAMIC_TOPIC_CONFIG.value
            and entry.name not in NOT_COPIED
            and entry.value is not None
        }

    async def _finish(self, done: Any, where: Where, allowed: int = 0) -> Any:
        try:
            return await asyncio.wrap_future(done)
        except KafkaException as error:
            cause = error.args[0]
            if cause.code() == allowed:
                return None
            raise ClusterError(cause.code() if cause.code() > 0 else -1, cause.str(), where=where) from None
