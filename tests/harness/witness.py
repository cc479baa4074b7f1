"""What a topic really holds: its records, read by librdkafka, and its batches as bytes, by a plain Fetch.

With them come the few things every broker test does first: create a topic, write records to it, delete it.
All of it takes `bootstrap.servers` strings and raises what the client raises; nothing is retried here that
the client would not.
"""

import struct
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import cast

from confluent_kafka import (
    OFFSET_BEGINNING,
    TIMESTAMP_CREATE_TIME,
    TIMESTAMP_LOG_APPEND_TIME,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, NewTopic

from tests.harness.records import Dump, Headers, NewRecord, Record
from tests.harness.waiting import eventually
from tests.harness.wire import EARLIEST, LATEST, Wire

_ANSWER_TIMEOUT_S = 30
_PROGRESS_TIMEOUT_S = 30
_CONSUME_RECORDS = 10_000
_POLL_S = 0.5

_TIMESTAMP_TYPES = {TIMESTAMP_CREATE_TIME: "CreateTime", TIMESTAMP_LOG_APPEND_TIME: "LogAppendTime"}

_BATCH_LENGTH = struct.Struct(">8xi")  # behind the base offset; counts what follows it
_BATCH_LENGTH_END = 12
_BATCH_LAST_OFFSET_DELTA = struct.Struct(">q15xi")  # base offset, and the delta at byte 23
_BATCH_HEADER_BYTES = 61


def create_topic(
    bootstrap: str, name: str, partitions: int = 1, config: Mapping[str, str] | None = None, replicas: int = 1
) -> None:
    """Create a topic and wait until every partition has a leader. Raises KafkaException."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    topic = NewTopic(name, num_partitions=partitions, replication_factor=replicas, config=dict(config or {}))
    admin.create_topics([topic])[name].result(_ANSWER_TIMEOUT_S)

    def is_led() -> bool:
        found = admin.list_topics(timeout=_ANSWER_TIMEOUT_S).topics.get(name)
        return found is not None and [part.leader >= 0 for part in found.partitions.values()] == [True] * partitions

    eventually(is_led, f"leaders of all partitions of {name}")


def delete_topic(bootstrap: str, name: str) -> None:
    """Delete a topic and wait until no broker names it any more. Raises KafkaException."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.delete_topics([name])[name].result(_ANSWER_TIMEOUT_S)
    eventually(lambda: name not in admin.list_topics(timeout=_ANSWER_TIMEOUT_S).topics, f"the end of {name}")


def produce(
    bootstrap: str, topic: str, records: Iterable[NewRecord], config: Mapping[str, object] | None = None
) -> int:
    """Write `records` by librdkafka and return their number once all are acknowledged.

    `config` are producer properties; with `transactional.id` all records are one committed transaction.
    Raises KafkaException for the first record that was not delivered.
    """
    producer = Producer({"bootstrap.servers": bootstrap, **(config or {})})
    refusals: list[KafkaError] = []
    transactional = config is not None and "transactional.id" in config
    if transactional:
        producer.init_transactions(_ANSWER_TIMEOUT_S)
        producer.begin_transaction()
    count = 0
    for record in records:
        _produce_one(producer, topic, record, refusals)
        count += 1
    unsent = producer.flush(_ANSWER_TIMEOUT_S)
    if refusals or unsent:
        raise KafkaException(refusals[0] if refusals else KafkaError(KafkaError._TIMED_OUT))
    if transactional:
        producer.commit_transaction(_ANSWER_TIMEOUT_S)
    return count


def dump(bootstrap: str, topic: str, isolation: str = "read_uncommitted") -> Dump:
    """Read all partitions from their log start to the end that stood when the reading began, by librdkafka.

    The end is the high watermark, for "read_committed" the last stable offset.
    Raises TimeoutError when a partition makes no progress before its end, KafkaException for errors of the
    client.
    """
    settings = {
        "bootstrap.servers": bootstrap,
        "group.id": "harness-witness",  # required, never joined
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        "isolation.level": isolation,
        "check.crcs": True,
    }
    consumer = Consumer(settings)
    with ExitStack() as cleanup:
        cleanup.callback(consumer.close)
        metadata = consumer.list_topics(topic, timeout=_ANSWER_TIMEOUT_S).topics[topic]
        if metadata.error:
            raise KafkaException(metadata.error)
        partitions = [TopicPartition(topic, number, OFFSET_BEGINNING) for number in sorted(metadata.partitions)]
        ends = {part.partition: consumer.get_watermark_offsets(part, _ANSWER_TIMEOUT_S)[1] for part in partitions}
        consumer.assign(partitions)
        return _read_to(consumer, ends)


def raw_batches(bootstrap: str, topic: str, partition: int) -> list[bytes]:
    """Return every RecordBatch of a partition as its leader stores it, from log start to high watermark.

    The first one may begin before the log start. `bootstrap` may name several brokers; the first is asked.
    Raises WireError for error codes and broken frames, OSError when a broker is not there.
    """
    host, port = bootstrap.split(",")[0].rsplit(":", 1)
    with Wire(int(port), host) as wire:
        metadata = wire.metadata(topic)
    leader = next(broker for broker in metadata.brokers if broker.node == metadata.leaders[topic][partition])
    batches: list[bytes] = []
    with Wire(leader.port, leader.host) as wire:
        offset = wire.list_offset(topic, partition, EARLIEST)
        end = wire.list_offset(topic, partition, LATEST)
        while offset < end:
            fetched = list(_split(wire.fetch(topic, partition, offset)))
            if not fetched:
                raise ValueError(f"no batch at offset {offset} of {topic}-{partition}, whose end is {end}")
            batches += fetched
            base, last_delta = _BATCH_LAST_OFFSET_DELTA.unpack_from(fetched[-1])
            offset = base + last_delta + 1
    return batches


def _produce_one(producer: Producer, topic: str, record: NewRecord, refusals: list[KafkaError]) -> None:
    now = 0  # to librdkafka, as to this function's callers None is
    while True:
        try:
            producer.produce(
                topic,
                record.value,
                record.key,
                record.partition,
                on_delivery=lambda error, _message: refusals.append(error) if error else None,
                headers=list(record.headers),
                timestamp=now if record.timestamp is None else record.timestamp,
            )
        except BufferError:
            producer.poll(_POLL_S)
        else:
            producer.poll(0)
            return


def _read_to(consumer: Consumer, ends: dict[int, int]) -> Dump:
    read: Dump = {partition: [] for partition in ends}
    unfinished = set(ends)
    deadline = time.monotonic() + _PROGRESS_TIMEOUT_S
    while unfinished:
        for message in consumer.consume(_CONSUME_RECORDS, _POLL_S):
            deadline = time.monotonic() + _PROGRESS_TIMEOUT_S
            partition, offset = cast(tuple[int, int], (message.partition(), message.offset()))
            if (error := message.error()) is None:
                # Writers may be at work; the promise is about what stood when the reading began.
                if offset < ends[partition]:
                    read[partition].append(_record(message))
                reached = offset + 1
            elif error.code() == KafkaError._PARTITION_EOF:
                reached = offset
            else:
                raise KafkaException(error)
            if reached >= ends[partition]:
                unfinished.discard(partition)
        if unfinished and time.monotonic() > deadline:
            raise TimeoutError(
                f"nothing came for {_PROGRESS_TIMEOUT_S} s, partitions {sorted(unfinished)} not at {ends}"
            )
    return read


def _record(message: Message) -> Record:
    kind, timestamp = message.timestamp()
    offset, headers = cast(int, message.offset()), cast(Headers, tuple(message.headers() or ()))
    timestamp_type = _TIMESTAMP_TYPES.get(kind, "NoTimestampType")
    return Record(offset, timestamp_type, timestamp, message.key(), message.value(), headers)


def _split(record_set: memoryview) -> Iterable[bytes]:
    """Yield the whole batches at the front of `record_set`; what a Fetch's byte limit cut off is left out."""
    while len(record_set) >= _BATCH_LENGTH_END:
        size = _BATCH_LENGTH.unpack_from(record_set)[0] + _BATCH_LENGTH_END
        if size < _BATCH_HEADER_BYTES:
            raise ValueError(f"a batch that claims {size} bytes is shorter than its header")
        if size > len(record_set):
            return
        yield bytes(record_set[:size])
        record_set = record_set[size:]
