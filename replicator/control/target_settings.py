"""What the target's topics take: those of their settings that a lane has to know before it writes.

Asked for over the connection that is there anyway, and by name: a topic has some 35 settings, a lane needs seven, and
the others of 10,000 topics would be most of what a look for new topics brings in.
"""

import logging
from collections.abc import Iterable, Mapping

from replicator.data.orders import TargetTopic
from replicator.errors import UnsupportedBroker, Where, kafka_error
from replicator.kafka.cluster import Cluster
from replicator.kafka.codec import Body
from replicator.kafka.messages import DESCRIBE_CONFIGS

log = logging.getLogger("replicator")

TOPICS_PER_REQUEST = 100
UNKNOWN_TOPIC, UNAUTHORIZED = 3, 29
_TOPIC = 2  # among Kafka's kinds of resources
_NO_LIMIT = 2**63 - 1

# A broker leaves those out that it does not have: the last one is gone since Kafka 4, the two before came with 3.6.
_NAMES = (
    "max.message.bytes",
    "compression.type",
    "message.timestamp.type",
    "cleanup.policy",
    "message.timestamp.after.max.ms",
    "message.timestamp.before.max.ms",
    "message.timestamp.difference.max.ms",
)


class TargetSettings:
    """Of the topics of a cluster that one link writes to."""

    def __init__(self, link: str, cluster: Cluster) -> None:
        self._link = link
        self._cluster = cluster
        self._has_warned = False

    async def read(self, topics: Iterable[str]) -> dict[str, TargetTopic]:
        """By topic; those that do not exist are left out. Of what we may not see (said once), or where brokers have no
        settings to show, nothing is known. Raises NetworkError, ProtocolError."""
        found: dict[str, TargetTopic] = {}
        names = sorted(topics)
        try:
            for first in range(0, len(names), TOPICS_PER_REQUEST):
                rows = [
                    {"resource_type": _TOPIC, "resource_name": name, "configuration_keys": _NAMES}
                    for name in names[first : first + TOPICS_PER_REQUEST]
                ]
                answer = await self._cluster.request(DESCRIBE_CONFIGS, {"resources": rows})
                found |= self._found(answer["results"])
        except UnsupportedBroker:  # librdkafka's mock cluster
            return dict.fromkeys(names, TargetTopic())
        return found

    def _found(self, rows: Iterable[Body]) -> dict[str, TargetTopic]:
        found: dict[str, TargetTopic] = {}
        for row in rows:
            name, code = row["resource_name"], row["error_code"]
            if not code:
                found[name] = target_topic({each["name"]: each["value"] for each in row["configs"]})
            elif code == UNAUTHORIZED:
                found[name] = TargetTopic()
            if code not in (0, UNKNOWN_TOPIC) and not self._has_warned:
                self._has_warned = True
                self._warn(Where(self._cluster.alias, name), code)
        return found

    def _warn(self, where: Where, code: int) -> None:
        reason = "not allowed (DESCRIBE_CONFIGS)" if code == UNAUTHORIZED else kafka_error(code).name
        log.warning(
            "link %s: the settings of %s, and maybe of others, cannot be read: %s: lanes learn from what is refused",
            self._link,
            where,
            reason,
        )


def target_topic(settings: Mapping[str, str | None]) -> TargetTopic:
    """From settings as Kafka spells them; those that are missing stay unknown."""
    difference_ms = _limit(settings.get("message.timestamp.difference.max.ms"))
    return TargetTopic(
        max_message_bytes=_limit(settings.get("max.message.bytes")),
        compression_type=settings.get("compression.type") or TargetTopic().compression_type,
        timestamp_type=settings.get("message.timestamp.type") or TargetTopic().timestamp_type,
        # Where there are both, the older one is in force for each of the newer ones that is at its default: no limit.
        timestamp_after_max_ms=_limit(settings.get("message.timestamp.after.max.ms")) or difference_ms,
        timestamp_before_max_ms=_limit(settings.get("message.timestamp.before.max.ms")) or difference_ms,
        compacted="compact" in (settings.get("cleanup.policy") or "").replace(" ", "").split(","),
    )


def _limit(value: str | None) -> int:
    """0: there is none, or we are not told. A limit of 0 is one of 1: next to nothing, either way."""
    number = int(value) if value and value.isascii() and value.isdigit() else _NO_LIMIT
    return 0 if number >= _NO_LIMIT else max(number, 1)
