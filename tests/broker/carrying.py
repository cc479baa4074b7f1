"""A durable link that brings one topic over and is then ended in order, as most tests of rebuilt copies want it."""

import re
from typing import Any

from replicator.data.states import LaneState
from tests.broker.copies import Pair
from tests.broker.visible import Isolation, visible_ends
from tests.harness.link import RunningLink, link_config
from tests.harness.waiting import eventually

CARRIED_IN_S = 40


def carrying(pair: Pair, topic: str, limits: dict[str, Any] | None = None, **link: Any) -> dict[str, Any]:
    """A configuration with one link for this topic; `link` are its options."""
    options = {"limits": limits} if limits else {}
    return link_config(pair.source.bootstrap, pair.target.bootstrap, re.escape(topic), link=link, **options)


def name_of(config: dict[str, Any]) -> str:
    name: str = config["links"][0]["name"]
    return name


def wait_until_carried(link: RunningLink, ends: dict[tuple[str, int], int]) -> None:
    """Waits until each lane is at its end, or has stopped: an AssertionError with its reason."""

    def carried() -> bool:
        lanes = link.lanes
        for topic, part in ends.keys() & lanes.keys():
            assert link.state(topic, part) is not LaneState.FAILED, link.describe()
        return all(key in lanes and link.checkpoint(*key).position >= end for key, end in ends.items())

    eventually(carried, f"copied to {ends}", CARRIED_IN_S)


def carry(
    pair: Pair, topic: str, partitions: int = 1, limits: dict[str, Any] | None = None, **link: Any
) -> dict[str, Any]:
    """Everything that a consumer sees of the topic is brought over; returns the configuration."""
    config = carrying(pair, topic, limits, **link)
    bring(pair, config, topic, partitions)
    return config


def bring(pair: Pair, config: dict[str, Any], topic: str, partitions: int = 1) -> None:
    """The same, of a configuration that is there."""
    isolation: Isolation = config["links"][0].get("isolation", "read_committed")
    with RunningLink(config) as running:
        wait_until_carried(running, visible_ends(pair.source, topic, partitions, isolation))
