"""Topics on the target: made like the source's, and grown when it grows, always before the first batch comes.

Settings are taken over when somebody set them on the source topic, never the source cluster's own defaults; a few that
speak about the source's machines and not about the data are left out, as MirrorMaker 2 leaves them out.
"""

import asyncio
from collections.abc import Iterable
from typing import Any, Literal

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, ConfigSource, NewPartitions, NewTopic

from replicator.config.models import Cluster
from replicator.errors import ClusterError, Where
from replicator.kafka.cluster import TopicMetadata

ADMIN_TIMEOUT_S = 30.0
TOPIC_ALREADY_EXISTS = 36

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
            properties: dict[str, str | int | float | bool] = {"log_level": 0, **cluster.properties}
            self._admins[cluster.alias] = AdminClient(properties | {"client.id": cluster.client_id})
        return self._admins[cluster.alias]

    async def create(self, source: TopicMetadata, target_topic: str, target_brokers: int) -> None:
        """Makes `target_topic` like `source`. Raises ClusterError. A topic that exists by now is fine."""
        factor = self._factor(source.replicas, target_brokers)
        settings = await self._settings(source.name)
        new = NewTopic(target_topic, len(source.leaders), replication_factor=factor, config=settings)
        (done,) = self._admin(self._target).create_topics([new], request_timeout=ADMIN_TIMEOUT_S).values()
        await self._finish(done, Where(self._target.alias, target_topic), allowed=TOPIC_ALREADY_EXISTS)

    async def grow(self, target_topic: str, partitions: int) -> None:
        """Gives `target_topic` as many partitions. Raises ClusterError."""
        new = NewPartitions(target_topic, partitions)
        (done,) = self._admin(self._target).create_partitions([new], request_timeout=ADMIN_TIMEOUT_S).values()
        await self._finish(done, Where(self._target.alias, target_topic))

    def _factor(self, source_factor: int, target_brokers: int) -> int:
        if self._replication_factor == "broker":
            return -1
        if self._replication_factor == "source":
            return min(source_factor, max(target_brokers, 1))  # a smaller cluster holds as many as it can
        return self._replication_factor

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
