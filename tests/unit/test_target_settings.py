"""What the target's topics take, from what brokers of several ages and tempers say of them."""

import asyncio
import logging
from typing import Any

import pytest

from replicator.control.target_settings import TOPICS_PER_REQUEST, TargetSettings, target_topic
from replicator.data.orders import TargetTopic
from replicator.errors import ConnectionLost, UnsupportedBroker
from replicator.kafka.codec import Api
from replicator.kafka.messages import DESCRIBE_CONFIGS

NO_LIMIT = str(2**63 - 1)
DIFFERENCE, AFTER, BEFORE = (f"message.timestamp.{word}.max.ms" for word in ("difference", "after", "before"))


@pytest.mark.parametrize(
    ("settings", "due"),
    [
        pytest.param({}, TargetTopic(), id="nothing said"),
        pytest.param({"max.message.bytes": "1048588"}, TargetTopic(max_message_bytes=1_048_588), id="size"),
        pytest.param({"max.message.bytes": None}, TargetTopic(), id="no value"),
        pytest.param({"max.message.bytes": "much"}, TargetTopic(), id="no number"),
        pytest.param({"max.message.bytes": "0"}, TargetTopic(max_message_bytes=1), id="takes nothing"),
        pytest.param({"compression.type": "zstd"}, TargetTopic(compression_type="zstd"), id="codec"),
        pytest.param(
            {"message.timestamp.type": "LogAppendTime"}, TargetTopic(timestamp_type="LogAppendTime"), id="broker's time"
        ),
        pytest.param({"cleanup.policy": "delete"}, TargetTopic(), id="deleted"),
        pytest.param({"cleanup.policy": "compact"}, TargetTopic(compacted=True), id="compacted"),
        pytest.param({"cleanup.policy": "delete, compact"}, TargetTopic(compacted=True), id="both"),
        pytest.param({"cleanup.policy": ""}, TargetTopic(), id="kept for ever"),
        # Kafka 4
        pytest.param({AFTER: "3600000", BEFORE: NO_LIMIT}, TargetTopic(timestamp_after_max_ms=3_600_000), id="4"),
        pytest.param({AFTER: NO_LIMIT, BEFORE: "9"}, TargetTopic(timestamp_before_max_ms=9), id="4, before"),
        pytest.param({AFTER: "0"}, TargetTopic(timestamp_after_max_ms=1), id="none of the future"),
        # up to 3.5
        pytest.param({DIFFERENCE: NO_LIMIT}, TargetTopic(), id="3.5"),
        pytest.param(
            {DIFFERENCE: "7"}, TargetTopic(timestamp_after_max_ms=7, timestamp_before_max_ms=7), id="3.5, limited"
        ),
        # from 3.6 to 3.9
        pytest.param(
            {DIFFERENCE: "7", AFTER: NO_LIMIT, BEFORE: "5"},
            TargetTopic(timestamp_after_max_ms=7, timestamp_before_max_ms=5),
            id="3.9",
        ),
    ],
)
def test_settings_as_brokers_spell_them(settings: dict[str, str | None], due: TargetTopic) -> None:
    assert target_topic(settings) == due


class Brokers:
    """Stands for a cluster that answers DescribeConfigs. `codes` by topic: it does not show that one."""

    alias = "eu"

    def __init__(self, codes: dict[str, int] | None = None, failure: Exception | None = None) -> None:
        self.codes = codes or {}
        self.failure = failure
        self.asked: list[list[str]] = []

    async def request(self, api: Api, body: dict[str, Any]) -> dict[str, Any]:
        assert api is DESCRIBE_CONFIGS
        if self.failure:
            raise self.failure
        assert {row["resource_type"] for row in body["resources"]} == {2}
        names = [row["resource_name"] for row in body["resources"]]
        self.asked.append(names)
        return {"results": [self.row(name) for name in names]}

    def row(self, name: str) -> dict[str, Any]:
        configs = [{"name": "max.message.bytes", "value": name.removeprefix("t")}]
        code = self.codes.get(name, 0)
        return {"resource_name": name, "error_code": code, "configs": [] if code else configs}


def read(brokers: Brokers, topics: list[str], times: int = 1) -> dict[str, TargetTopic]:
    async def ask() -> dict[str, TargetTopic]:
        settings = TargetSettings("us-eu", brokers)  # type: ignore[arg-type]
        for _ in range(times):
            found = await settings.read(topics)
        return found

    return asyncio.run(ask())


@pytest.mark.parametrize("count", [0, 1, TOPICS_PER_REQUEST, TOPICS_PER_REQUEST + 1, 250])
def test_many_topics_take_several_requests(count: int) -> None:
    brokers, topics = Brokers(), [f"t{n}" for n in range(1, count + 1)]
    assert read(brokers, topics) == {name: TargetTopic(max_message_bytes=int(name[1:])) for name in topics}
    assert sorted(name for names in brokers.asked for name in names) == sorted(topics)
    assert len(brokers.asked) == -(-count // TOPICS_PER_REQUEST)
    assert all(len(names) <= TOPICS_PER_REQUEST for names in brokers.asked)


def test_what_we_are_not_shown_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    refused = {f"t{n}": 29 for n in range(2, 200)}
    due = dict.fromkeys(refused, TargetTopic()) | {"t1": TargetTopic(max_message_bytes=1)}
    assert read(Brokers(refused), ["t1", *refused], times=3) == due
    (said,) = caplog.records
    assert said.levelno == logging.WARNING
    words = "link us-eu: the settings of eu t10, and maybe of others, cannot be read: not allowed (DESCRIBE_CONFIGS)"
    assert said.getMessage().startswith(words)


def test_a_topic_that_does_not_exist_is_nothing_to_speak_of(caplog: pytest.LogCaptureFixture) -> None:
    assert read(Brokers({"t2": 3}), ["t1", "t2"]) == {"t1": TargetTopic(max_message_bytes=1)}
    assert not caplog.records


def test_another_error_is_not_taken_for_settings(caplog: pytest.LogCaptureFixture) -> None:
    assert read(Brokers({"t2": -1}), ["t1", "t2"]) == {"t1": TargetTopic(max_message_bytes=1)}
    assert "cannot be read: UNKNOWN_SERVER_ERROR" in caplog.text


def test_brokers_that_show_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert read(Brokers(failure=UnsupportedBroker("DescribeConfigs")), ["t1"]) == {"t1": TargetTopic()}
    assert not caplog.records


def test_a_network_that_fails() -> None:
    with pytest.raises(ConnectionLost):
        read(Brokers(failure=ConnectionLost("gone")), ["t1"])
