"""Clusters for faults: a pair that is healed after every test, so that most scenarios need no new brokers.

A scenario that cannot leave the brokers as it found them, or that needs other ones, starts its own.
"""

from collections.abc import Iterator

import pytest

from tests.fault.scene import Journal, Pair
from tests.harness.kafka import NEWEST_3, NEWEST_4, KafkaCluster


@pytest.fixture(scope="package")
def _standing_pair() -> Iterator[Pair]:
    with KafkaCluster(NEWEST_4, proxied=True) as source, KafkaCluster(NEWEST_3, proxied=True) as target:
        yield Pair(source, target)


@pytest.fixture
def pair(_standing_pair: Pair) -> Pair:
    """Kafka 4 to Kafka 3, one node each, proxied; running and without rules when the test begins."""
    for cluster in (_standing_pair.source, _standing_pair.target):
        cluster.start()
        for proxy in cluster.proxies:
            proxy.reset()
    return _standing_pair


@pytest.fixture
def journal() -> Iterator[Journal]:
    with Journal() as kept:
        yield kept
