"""Real clusters, shared by all tests that can share: each is started by the first test that asks, once a run.

Shared clusters are for tests that name their own topics and leave the brokers alone. Rules on their proxies
end with the test that made them. Whoever kills, stops or pauses a broker takes a `private_cluster`.
"""

import functools
import itertools
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import hypothesis
import pytest

from tests.harness.jars import KafkaUnavailable, jars, java
from tests.harness.java import JavaWitness
from tests.harness.kafka import NEWEST_3, NEWEST_4, KafkaCluster

# The machine may be busy with brokers: how long an example takes says nothing.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")

_topic_numbers = itertools.count(1)
_shared: list[KafkaCluster] = []


@functools.cache
def _what_is_missing(version: str) -> str | None:
    """Say why Kafka `version` cannot run here, or None when it can. Jars that are not cached are resolved."""
    try:
        java()
        jars(version)
    except KafkaUnavailable as problem:
        return str(problem)
    return None


def _need_kafka(version: str) -> None:
    """Skip the test when Kafka cannot run here; fail it where a skip would hide that nothing was tested."""
    if missing := _what_is_missing(version):
        if os.environ.get("REPLICATOR_REQUIRE_BROKERS") == "1":
            pytest.fail(f"{missing} (REPLICATOR_REQUIRE_BROKERS=1 forbids to skip)", pytrace=False)
        pytest.skip(missing)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("broker"):
        _need_kafka(NEWEST_4)


def pytest_runtest_teardown() -> None:
    for cluster in _shared:
        for proxy in cluster.proxies:
            proxy.reset()


def _share(version: str, proxied: bool = False) -> Iterator[KafkaCluster]:
    _need_kafka(version)
    # The log cleaner looks for work every 15 s otherwise, and tests wait for it.
    with KafkaCluster(version, properties={"log.cleaner.backoff.ms": "200"}, proxied=proxied) as cluster:
        _shared.append(cluster)
        yield cluster
        _shared.remove(cluster)


@pytest.fixture(scope="session")
def kafka4() -> Iterator[KafkaCluster]:
    """One node of the newest Kafka 4, with a proxied listener."""
    yield from _share(NEWEST_4, proxied=True)


@pytest.fixture(scope="session")
def kafka4_second() -> Iterator[KafkaCluster]:
    """Another cluster like `kafka4`, for links between two of the same version."""
    yield from _share(NEWEST_4, proxied=True)


@pytest.fixture(scope="session")
def kafka3() -> Iterator[KafkaCluster]:
    """One node of the newest Kafka 3, with a proxied listener."""
    yield from _share(NEWEST_3, proxied=True)


@pytest.fixture(scope="session")
def kafka3_second() -> Iterator[KafkaCluster]:
    """Another cluster like `kafka3`, for links between two of the same version."""
    yield from _share(NEWEST_3, proxied=True)


@pytest.fixture(params=["kafka3", "kafka4"])
def either_kafka(request: pytest.FixtureRequest) -> KafkaCluster:
    """A test that takes this runs twice: on the newest Kafka 3 and on the newest Kafka 4."""
    cluster: KafkaCluster = request.getfixturevalue(request.param)
    return cluster


@pytest.fixture(scope="session")
def java4() -> Iterator[JavaWitness]:
    """The newest official Java clients."""
    _need_kafka(NEWEST_4)
    with JavaWitness(NEWEST_4) as witness:
        yield witness


@pytest.fixture(scope="session")
def java3() -> Iterator[JavaWitness]:
    """The Java clients of Kafka 3, which write some codecs otherwise than those of 4."""
    _need_kafka(NEWEST_3)
    with JavaWitness(NEWEST_3) as witness:
        yield witness


@pytest.fixture
def private_cluster() -> Iterator[Callable[..., KafkaCluster]]:
    """A factory of started clusters, called like KafkaCluster, that do not outlive the test."""
    with ExitStack() as clusters:

        def start(version: str = NEWEST_4, **options: object) -> KafkaCluster:
            _need_kafka(version)
            return clusters.enter_context(KafkaCluster(version, **options))

        yield start


@pytest.fixture
def topic_name(request: pytest.FixtureRequest) -> str:
    """A topic name that no other test of the run uses, with the test's own name in it."""
    readable = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name).strip("-")[:80]
    return f"{readable}-{os.getpid()}-{next(_topic_numbers)}"
