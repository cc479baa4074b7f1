"""A cluster with quotas slows us down: we wait as long as it says, and give up on nothing that it is slow with."""

import re
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.fault.scene import Journal, Pair, assert_same_log, backlog, wait_for_progress
from tests.harness.kafka import KafkaCluster
from tests.harness.link import RunningLink
from tests.harness.proxy import FaultProxy
from tests.harness.waiting import eventually
from tests.harness.wire import Wire

pytestmark = pytest.mark.broker

ALTER_CLIENT_QUOTAS, VERSION = 49, 0
CLIENT_ID = "replicator"
BYTES_PER_S = 256 << 10
TIMEOUT_MS = 1000


def _string(text: str) -> bytes:
    return struct.pack(">h", len(text)) + text.encode()


def _alter_quota(cluster: KafkaCluster, name: str, value: float | None) -> None:
    """Sets a quota of our client id, or takes it away."""
    entity = struct.pack(">i", 1) + _string("client-id") + _string(CLIENT_ID)
    change = struct.pack(">i", 1) + _string(name) + struct.pack(">d?", value or 0.0, value is None)
    body = struct.pack(">i", 1) + entity + change + b"\0"
    with Wire(int(cluster.bootstrap.rsplit(":", 1)[1])) as wire:
        answer = wire.ask(ALTER_CLIENT_QUOTAS, VERSION, body)
        _, entries, error = answer.integers("iih")
    assert (entries, error) == (1, 0)


@contextmanager
def _quota(cluster: KafkaCluster, name: str) -> Iterator[None]:
    _alter_quota(cluster, name, BYTES_PER_S)
    try:
        yield
    finally:
        _alter_quota(cluster, name, None)


def _grows(proxy: FaultProxy) -> bool:
    before = proxy.connections
    time.sleep(1)
    return proxy.connections > before


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_throttled_client(pair: Pair, journal: Journal, topic_name: str, side: str) -> None:
    """The throttle times add up to many request timeouts, and yet not one connection is given up."""
    records, record_bytes, partitions = 4000, 1000, 4  # brokers look at the rate of the last ten seconds
    pair.create(topic_name, partitions)
    backlog(pair.source, topic_name, records, partitions, size=record_bytes)
    name = "consumer_byte_rate" if side == "source" else "producer_byte_rate"
    proxy = getattr(pair, side).proxies[0]
    began = time.monotonic()
    with (
        _quota(getattr(pair, side), name),
        RunningLink(pair.config(re.escape(topic_name), TIMEOUT_MS)) as link,
    ):
        wait_for_progress(link, topic_name, records=10)
        eventually(lambda: not _grows(proxy), "everybody to have his connections")
        before = proxy.connections
        link.wait_until_copied({(topic_name, partition): records // partitions for partition in range(partitions)}, 60)
        connections = proxy.connections
    assert time.monotonic() - began > 3 * TIMEOUT_MS / 1000, "this was no throttle"
    for partition in range(partitions):
        assert not any("paused" in entry for entry in journal.of(topic_name, partition)), journal.lines
    # The slow path may open its own at any time; giving up after each time-out would make one a second.
    assert connections <= before + 2, "connections were given up and made again"
    assert_same_log(pair, topic_name, records_min=records)
