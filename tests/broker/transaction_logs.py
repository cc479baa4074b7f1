"""Source topics that transactional producers wrote: several at once, of both families of clients, at random."""

import random
from collections.abc import Mapping, Sequence

from tests.broker.admin import create_topic, delete_records, end_offset
from tests.broker.copies import stored_batches
from tests.broker.log_shape import CODECS, Shape, log_shape
from tests.broker.special_logs import clean, numbered_record
from tests.harness import witness
from tests.harness.java import JavaWitness
from tests.harness.kafka import KafkaCluster
from tests.harness.records import NewRecord
from tests.harness.transactions import JavaWriter, LibrdkafkaWriter, Writer
from tests.harness.waiting import eventually

STEPS = 120
SENT_MAX = 9  # records at once
SHARED_KEYS = 25
PLAIN_SHARE = 0.15  # of the steps, by a producer without transactions
END_SHARE = 0.35


class TransactionLog:
    """A topic and the writers that are at it. A context manager that leaves open what is open when it ends."""

    def __init__(
        self,
        cluster: KafkaCluster,
        topic: str,
        java: JavaWitness,
        seed: int = 1,
        partitions: int = 1,
        config: Mapping[str, str] | None = None,
    ) -> None:
        """The topic is made."""
        print(f"seed {seed}")
        self.cluster, self.topic = cluster, topic
        self.partitions = range(partitions)
        self.chance = random.Random(seed)
        self.number = 0
        create_topic(cluster, topic, partitions, config)
        # Java's zstd, lz4 and snappy are not librdkafka's.
        where = cluster.bootstrap, topic
        self.writers: list[Writer] = [
            LibrdkafkaWriter(*where, f"{topic}-{codec}", {"compression.type": codec})
            for codec in ("none", "lz4", "gzip")
        ]
        self.writers += [
            JavaWriter(java, *where, f"{topic}-java-{codec}", {"compression.type": codec})
            for codec in ("zstd", "snappy")
        ]

    def __enter__(self) -> "TransactionLog":
        return self

    def __exit__(self, *_exc: object) -> None:
        for writer in self.writers:
            writer.close()

    def records(self, count: int, partition: int | None = None) -> list[NewRecord]:
        """The next ones, of a partition at random if none is given. Half of their keys come again and again."""
        part = self.chance.choice(self.partitions) if partition is None else partition
        made = []
        for _ in range(count):
            number, self.number = self.number, self.number + 1
            again = self.chance.random() < 0.5
            key = b"shared-%d" % self.chance.randrange(SHARED_KEYS) if again else b"own-%d" % number
            made.append(numbered_record(number, key, b"%d:" % number + b"t" * self.chance.randrange(80), part))
        return made

    def plain(self, count: int, partition: int | None = None, codec: str = "none") -> None:
        """Without a transaction."""
        witness.produce(
            self.cluster.bootstrap,
            self.topic,
            self.records(count, partition),
            {"compression.type": codec, "linger.ms": 5},
        )

    def step(self) -> None:
        """Somebody writes, begins, commits or aborts."""
        if self.chance.random() < PLAIN_SHARE:
            self.plain(self.chance.randint(1, SENT_MAX), codec=self.chance.choice(CODECS))
            return
        writer = self.chance.choice(self.writers)
        if writer.is_open and self.chance.random() < END_SHARE:
            self.end(writer)
        else:
            writer.send(self.records(self.chance.randint(1, SENT_MAX)))

    def end(self, writer: Writer) -> None:
        if self.chance.random() < 0.5:
            writer.commit()
        else:
            writer.abort()

    def settle(self, writers: Sequence[Writer] = ()) -> None:
        """Everybody, or these, have no open transaction."""
        for writer in writers or self.writers:
            if writer.is_open:
                self.end(writer)

    def shapes(self) -> list[Shape]:
        return [log_shape(self.cluster, self.topic, part) for part in self.partitions]


def write_interleaved(log: TransactionLog, steps: int = STEPS) -> None:
    """Transactions of five producers in the midst of each other, committed and aborted, all of them ended."""
    for _ in range(steps):
        log.step()
    log.settle()
    enough = {"committed": 5, "aborted": 5, "interleaved": 10, "control": 10}
    # A commit has its answer before its markers are in every log.
    eventually(lambda: not any(shape["open"] for shape in log.shapes()), "the markers of all that is over")
    for shape in log.shapes():
        assert all(shape[word] >= count for word, count in enough.items()), shape


def leave_open(log: TransactionLog) -> Writer:
    """A transaction in every partition that nobody ends, and behind it others that are over, which no reader of
    committed records may see yet. The last part of each log, up to the writer that is returned."""
    hanging = log.writers[0]
    for part in log.partitions:
        hanging.send(log.records(5, part))
    others = log.writers[1:]
    for part in log.partitions:
        for writer in others:
            writer.send(log.records(3, part))
        log.plain(4, part)
        log.settle(others)
        hanging.send(log.records(2, part))
    assert all(shape["open"] >= 2 for shape in log.shapes())
    return hanging


def write_long_aborted(log: TransactionLog, batches: int = 40) -> None:
    """In partition 0: one transaction that is aborted after many batches, so that no small Fetch sees all of it, with
    committed and plain ones in its midst, and one of another producer that ends within it and begins before it."""
    before, long, within = log.writers[1], log.writers[0], log.writers[3]
    before.send(log.records(3, 0))
    for number in range(batches):
        long.send(log.records(6, 0))
        if number % 4 == 0:
            within.send(log.records(2, 0))
        if number % 8 == 4:
            log.end(within)
        if number % 5 == 0:
            log.plain(2, 0)
        if number == batches // 2:
            before.abort()
    long.abort()
    log.settle()
    (shape, *_) = log.shapes()
    assert shape["aborted"] >= batches, shape


def write_fenced(log: TransactionLog) -> None:
    """A producer dies in its transaction, and another of its name comes: it is the broker that aborts, with a producer
    epoch that has written nothing. Twice, and the newcomers commit."""
    for number in range(2):
        dead = LibrdkafkaWriter(log.cluster.bootstrap, log.topic, f"{log.topic}-fenced")
        dead.send(log.records(5, 0))
        log.writers[number].send(log.records(3, 0))
        heir = LibrdkafkaWriter(log.cluster.bootstrap, log.topic, f"{log.topic}-fenced")
        heir.send(log.records(4, 0))
        log.plain(2, 0)
        heir.commit()
        heir.close()
        dead.close()
    log.settle()
    (shape, *_) = log.shapes()
    assert min(shape["aborted"], shape["committed"]) >= 2, shape
    assert not shape["open"], shape


def write_cut_aborted(log: TransactionLog) -> int:
    """The log starts in the midst of a transaction that was aborted, in the middle of a batch; where it starts."""
    write_long_aborted(log)
    ours = LibrdkafkaWriter(log.cluster.bootstrap, log.topic, f"{log.topic}-cut", {"linger.ms": 200})
    ours.send(log.records(20, 0))
    for _ in range(5):
        ours.send(log.records(20, 0))
        log.plain(3, 0)
    cut = end_offset(log.cluster, log.topic) - 50
    ours.abort()
    ours.close()
    log.plain(10, 0)
    delete_records(log.cluster, log.topic, before=cut)
    first = stored_batches(log.cluster, log.topic)[0]
    assert first.base_offset < cut < first.next_offset, "inside a batch"
    (shape, *_) = log.shapes()
    assert shape["aborted"] >= 2, shape
    return cut


def write_compacted_transactions(log: TransactionLog) -> None:
    """Interleaved transactions, of which the cleaner has taken what was aborted, and what was written anew."""
    write_interleaved(log)
    before = log.shapes()[0]
    clean(log.cluster, log.topic, lambda shape: shape["thinned"] >= 3 and shape["holes"] >= 10)
    after = log.shapes()[0]
    assert after["aborted"] < before["aborted"], after
    assert after["control"] + after["empty"] >= 5, after
