"""The two small programs behind a latency measurement, each in a process of its own.

    python -m bench.probe produce SOURCE TOPIC RATE RECORDS    one record every 1/RATE seconds, each sent at once
    python -m bench.probe watch SOURCE TARGET TOPIC RECORDS SKIP TIMEOUT_S    prints what it saw, as JSON

A record carries its number and the time it was made. Both programs use the machine's monotonic clock, which is the
same for all of its processes; so they have to run on one machine, and the clusters may be anywhere.
"""

import json
import struct
import sys
import threading
import time

import numpy as np
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from bench.records import pool
from bench.topics import PARTITIONS

RECORD_BYTES = 1024

_STAMP = struct.Struct(">qq")  # the record's number, monotonic nanoseconds
_POLL_S = 0.1
_FLUSH_S = 30
# An answer comes when there is something; a short wait keeps a fetch from missing what was written just before it.
_CONSUMER = {
    "group.id": "latency-probe",
    "enable.auto.commit": False,
    "fetch.wait.max.ms": 10,
    "check.crcs": False,
}


def produce(source: str, topic: str, rate: float, records: int) -> None:
    """Send records at a steady rate, round the partitions; late ones are sent at once, with their true time."""
    producer = Producer({"bootstrap.servers": source, "linger.ms": 0})
    producer.list_topics(topic, _FLUSH_S)
    filler = [record["value"][: RECORD_BYTES - _STAMP.size] for record in pool(RECORD_BYTES)]
    started = time.monotonic()
    for number in range(records):
        time.sleep(max(0.0, started + number / rate - time.monotonic()))
        value = _STAMP.pack(number, time.monotonic_ns()) + filler[number % len(filler)]
        producer.produce(topic, value, partition=number % PARTITIONS)
        producer.poll(0)
    if producer.flush(_FLUSH_S):
        raise SystemExit("the source did not take all records")


class Ear:
    """Listens to one cluster and notes how long each record took from its making to our hands."""

    def __init__(self, bootstrap: str, topic: str, records: int) -> None:
        self.delays_ms = np.full(records, np.nan)
        self.twice = 0
        self._left = records
        self._consumer = Consumer({"bootstrap.servers": bootstrap, **_CONSUMER})
        self._consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in range(PARTITIONS)])

    def listen(self, deadline: float) -> None:
        """Return when every record was seen, or at the deadline of time.monotonic()."""
        while self._left and time.monotonic() < deadline:
            message = self._consumer.poll(_POLL_S)
            if message is not None and not message.error():
                self._note(message.value() or b"", time.monotonic_ns())

    def _note(self, value: bytes, now_ns: int) -> None:
        number, made_ns = _STAMP.unpack_from(value)
        if not np.isnan(self.delays_ms[number]):
            self.twice += 1
            return
        self.delays_ms[number] = (now_ns - made_ns) / 1e6
        self._left -= 1

    def summary(self, skip: int) -> dict[str, float | int | None]:
        """Percentiles in milliseconds of all but the first `skip` records; how many are missing or came twice."""
        counted = self.delays_ms[skip:]
        seen = counted[~np.isnan(counted)]
        cuts = np.percentile(seen, (50, 90, 99, 100)) if len(seen) else [None] * 4
        named = zip(("p50_ms", "p90_ms", "p99_ms", "max_ms"), cuts, strict=True)
        percentiles = {name: None if cut is None else round(float(cut), 3) for name, cut in named}
        return {**percentiles, "records": len(seen), "missing": int(self._left), "twice": self.twice}


def watch(ends: tuple[str, str], topic: str, records: int, skip: int, timeout_s: float) -> None:
    """Listen to source and target at the same time, and print both summaries."""
    deadline = time.monotonic() + timeout_s
    ears = [Ear(bootstrap, topic, records) for bootstrap in ends]
    threads = [threading.Thread(target=ear.listen, args=(deadline,)) for ear in ears]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps([ear.summary(skip) for ear in ears]))


def main(what: str, *arguments: str) -> None:
    """Dispatch to one of the two programs."""
    if what == "produce":
        source, topic, rate, records = arguments
        produce(source, topic, float(rate), int(records))
    else:
        source, target, topic, records, skip, timeout_s = arguments
        watch((source, target), topic, int(records), int(skip), float(timeout_s))


if __name__ == "__main__":
    main(*sys.argv[1:])
