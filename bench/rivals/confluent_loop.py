"""The rival most Python teams would write: the loop of librdkafka_loop.c, through confluent-kafka.

python -m bench.rivals.confluent_loop SOURCE TARGET TOPIC once|follow [c.PROPERTY=VALUE | p.PROPERTY=VALUE]...
"""

import signal
import sys
from types import FrameType
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, Producer, TopicPartition

_RECORDS_A_CALL = 10_000
_TIMEOUT_S = 30
_FLUSH_S = 120
_NEVER = 1 << 63

_stopped = False


def main(source: str, target: str, topic: str, mode: str, *settings: str) -> None:
    """Copy the records that are there (`once`), or go on until SIGTERM (`follow`)."""
    signal.signal(signal.SIGTERM, _stop)
    # The consumer API wants a group even from those who assign themselves and never commit.
    own = {"group.id": "confluent-loop", "enable.auto.commit": "false"}
    consumer = Consumer({"bootstrap.servers": source, **own, **_chosen("c.", settings)})
    producer = Producer({"bootstrap.servers": target, "on_delivery": _check, **_chosen("p.", settings)})
    ends = _ends(consumer, topic, mode)
    consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in ends])
    while ends and not _stopped:
        for message in _take(consumer):
            if message.error():
                raise SystemExit(str(message.error()))
            _produce(producer, topic, message)
            partition, offset = message.partition(), message.offset()
            if partition is not None and offset is not None and offset + 1 == ends.get(partition):
                del ends[partition]
        producer.poll(0)
    if producer.flush(_FLUSH_S):
        raise SystemExit("not everything was delivered in time")


def _stop(_number: int, _frame: FrameType | None) -> None:
    global _stopped
    _stopped = True


def _chosen(prefix: str, settings: tuple[str, ...]) -> dict[str, Any]:
    pairs = (setting.removeprefix(prefix).partition("=") for setting in settings if setting.startswith(prefix))
    # The one property that the wrapper takes for its own wants to be a bool.
    return {name: value == "true" if value in ("true", "false") else value for name, _, value in pairs}


def _ends(consumer: Consumer, topic: str, mode: str) -> dict[int, int]:
    """Where each partition that holds anything ends."""
    partitions = consumer.list_topics(topic, _TIMEOUT_S).topics[topic].partitions
    if mode == "follow":
        return dict.fromkeys(partitions, _NEVER)
    spans = {p: consumer.get_watermark_offsets(TopicPartition(topic, p), _TIMEOUT_S) for p in partitions}
    return {p: high for p, (low, high) in spans.items() if high > low}


def _take(consumer: Consumer) -> list[Message]:
    """Wait for a record and take those that have arrived with it: a call for many waits for all of them."""
    first = consumer.poll(0.1)
    return [] if first is None else [first, *consumer.consume(_RECORDS_A_CALL, 0)]


def _produce(producer: Producer, topic: str, message: Message) -> None:
    copy: dict[str, Any] = {
        "key": message.key(),
        "value": message.value(),
        "partition": message.partition(),
        "timestamp": message.timestamp()[1],
    }
    if headers := message.headers():
        copy["headers"] = headers
    while True:
        try:
            return producer.produce(topic, **copy)
        except BufferError:
            producer.poll(0.01)


def _check(error: KafkaError | None, _message: Message) -> None:
    if error:
        raise SystemExit(f"delivery failed: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
