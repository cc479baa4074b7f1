"""The two clusters that everything is measured between: a pair of brokers started here, or the user's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.harness.jars import NEWEST_4, class_path, java
from tests.harness.kafka import KafkaCluster

# What Kafka's own start script gives a broker. The test harness saves memory and start-up time instead.
BROKER_JVM = (
    *("-Xms1g", "-Xmx1g", "-server", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20"),
    *("-XX:InitiatingHeapOccupancyPercent=35", "-XX:+ExplicitGCInvokesConcurrent"),
)
# Deleted topics free their disk (and their dirty pages) before the next run instead of during it.
BROKER_PROPERTIES = {"log.segment.delete.delay.ms": "1000"}


class _Broker(KafkaCluster):
    """A broker with the memory and the collector of a real one."""

    def _java(self, *arguments: str) -> list[str]:
        log = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
        return [java(), *BROKER_JVM, log, "-cp", class_path(self.version), *arguments]


@dataclass(frozen=True)
class Cluster:
    """Where a cluster is, and its broker if it runs here: only then can its CPU be accounted for."""

    bootstrap: str
    broker: KafkaCluster | None = None

    def cpu_seconds(self) -> float | None:
        """User plus system seconds of the broker so far; None for a cluster that is not ours."""
        return self.broker.cpu_seconds() if self.broker else None


@dataclass(frozen=True)
class Pair:
    """The source and the target of every copy."""

    source: Cluster
    target: Cluster

    @property
    def settings(self) -> dict[str, object]:
        """What a reader of the results must know of the brokers."""
        if not self.source.broker:
            return {"brokers": "the user's own"}
        jvm = " ".join(BROKER_JVM)
        return {"brokers": f"Kafka {NEWEST_4}, one node each", "jvm": jvm, "properties": BROKER_PROPERTIES}


@contextmanager
def pair(source: str | None = None, target: str | None = None) -> Iterator[Pair]:
    """The clusters at these addresses; without addresses two single-node brokers that live as long as the context.

    Raises KafkaUnavailable when brokers are to be started and Java or the jars are missing.
    """
    if source and target:
        yield Pair(Cluster(source), Cluster(target))
        return
    made = (_Broker(NEWEST_4, properties=BROKER_PROPERTIES) for _ in range(2))
    with next(made) as left, next(made) as right:
        yield Pair(Cluster(left.bootstrap, left), Cluster(right.bootstrap, right))
