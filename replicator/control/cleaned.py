"""Which topics a log cleaner works on: there, records go missing and nothing is wrong."""

import asyncio
from collections.abc import Collection

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource

from replicator.config.models import Cluster

ADMIN_TIMEOUT_S = 30.0


async def compacted_topics(cluster: Cluster, topics: Collection[str]) -> dict[str, bool | None]:
    """Whether each is compacted; None where the cluster does not tell us (it may need a right that we lack)."""
    admin = AdminClient(cluster.client_properties())
    found: dict[str, bool | None] = {}
    for topic in topics:  # one resource a request: one that is refused must not take others with it
        (future,) = admin.describe_configs(
            [ConfigResource(ConfigResource.Type.TOPIC, topic)], request_timeout=ADMIN_TIMEOUT_S
        ).values()
        try:
            settings = await asyncio.wrap_future(future)
            found[topic] = "compact" in (settings["cleanup.policy"].value or "")
        except (KafkaException, KeyError):
            found[topic] = None
    return found
