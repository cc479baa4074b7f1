"""Which producers of a source are links themselves, so that nothing is copied back to where it came from.

A link has one producer id, and writes it down on its target, in its state topic, before its first batch. So whoever
copies from that cluster can tell, when the first batch of a producer comes, whether a link wrote it and from where: the
lane waits in front of the batch until the state topics have been read to their ends once more. What a link from our own
target wrote is skipped whole. What a link from a third cluster wrote is opened: its records say in a header which
clusters they came through (`replicator.config.recipes.recipe_of_a_link`).

Whatever is in the way of knowing (a right that is missing, a record that cannot be read) keeps the lane waiting, and it
says so: a loop must not begin because somebody could not look.
"""

import asyncio
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from replicator._core import Producers
from replicator.data.codecs import UnpackError
from replicator.data.log_reader import LogReader, StoredBatch
from replicator.data.orders import Loops
from replicator.data.transitions import Trigger
from replicator.errors import ClusterError, ConfigError, ProtocolError, ReplicatorError
from replicator.kafka.backoff import Backoff
from replicator.kafka.cluster import Cluster
from replicator.kafka.log import END, LEADER_NOT_AVAILABLE, START, Partition, find_offset
from replicator.state.records import LinkKey, LinkRecord, decode, encode, state_topic

if TYPE_CHECKING:
    from replicator.data.lane import LaneRunner

ROUND_PAUSE_S = 0.02  # producers that come together are asked for in one round
RETRY_MS_MAX = 5_000
LINKS_MAX = 10_000  # that write to one cluster
SHARD = 0  # holds the LinkRecord
RIGHTS = "`loops: prevent` takes READ and DESCRIBE on the source's topics whose names begin with `replicator.`"
UNKNOWN_TOPIC, UNAUTHORIZED = 3, 29

# A name that nobody has: all topics that we may not describe are left out of a list without a word, but one that is
# asked for by its name is refused.
PROBE = state_topic("any")

_NAME = re.compile(rb"replicator\.[a-zA-Z0-9._-]+")
_STATE = re.compile(rb"\.state")
_LINK_KEY = re.compile(rb'\{"link":')


class LoopRegistry:
    """Of one link in a worker. `table` is what the native core looks into; who is in it was asked for once."""

    def __init__(self, source: Cluster, loops: Loops) -> None:
        self.table = Producers()
        self._source = source
        self._loops = loops
        self._written_from: dict[int, str] = {}  # by producer id of a link: the cluster id of its source
        self._ids: dict[str, bytes] = {}  # topic ids of the state topics
        self._next: dict[str, int] = {}  # where to read on in each
        self._coming: asyncio.Future[None] | None = None  # a round that has not begun
        self._reading = asyncio.Lock()

    def written_from(self, producer_id: int) -> str:
        """The cluster id of the source of the link that has this producer id; empty if it is no link's."""
        return self._written_from.get(producer_id, "")

    async def learn(self, producer_id: int) -> None:
        """Puts a producer into the table, after a look at the state topics that begins after this call.

        Raises ReplicatorError when it cannot be told what it is.
        """
        if self._coming is None:
            self._coming = asyncio.ensure_future(self._round())
        await asyncio.shield(self._coming)
        if producer_id not in self._written_from:
            self.table.add(producer_id, "own")

    async def _round(self) -> None:
        await asyncio.sleep(ROUND_PAUSE_S)
        async with self._reading:
            self._coming = None
            await self.read()

    async def read(self) -> None:
        """Reads all state topics to their ends as they are now. Raises ReplicatorError."""
        try:
            topics = await self._source.find_topics(state_topics_in, PROBE)
            if max(len(topics), len(self._written_from)) > LINKS_MAX:
                what = f"more than {LINKS_MAX} links have state on {self._source.alias}"
                raise ConfigError(what, hint="delete the state topics of those that are gone")
            for topic in sorted(topics):
                await self._read(Partition(self._source, topic, SHARD))
        except ClusterError as error:
            raise _with_hint(error) from None
        silent = [producer_id for producer_id, written_from in self._written_from.items() if not written_from]
        if silent:
            what = f"producer {silent[0]} is a link whose record does not say from which cluster it copies"
            raise ConfigError(what, hint="start that link once with this version")

    async def _read(self, partition: Partition) -> None:
        topic, found = partition.topic, self._source.topics.get(partition.topic)
        if found is None:
            raise ClusterError(UNKNOWN_TOPIC, "was deleted in this moment", where=partition.where)
        topic_id = found.topic_id
        end = await find_offset(partition, END)  # a new leader does not say it before it knows what was acknowledged
        if self._ids.get(topic) != topic_id or self._next[topic] > end:
            self._ids[topic], self._next[topic] = topic_id, await find_offset(partition, START)
        reader = LogReader(partition, self._next[topic], end)
        while batch := await reader.peek():
            for record in _link_records(batch, partition):
                for producer_id in (record.producer_id, *record.other_producer_ids):
                    self._take(producer_id, record.source_cluster_id)
            reader.move(batch.end)
        if reader.log_ended:
            raise ClusterError(LEADER_NOT_AVAILABLE, f"the log ends before offset {end}", where=partition.where)
        self._next[topic] = end

    def _take(self, producer_id: int, written_from: str) -> None:
        """All links are in the table, asked for or not: the native core relies on it."""
        self._written_from[producer_id] = written_from
        if written_from:
            self.table.add(producer_id, "skipped" if written_from == self._loops.target_cluster_id else "opened")


def state_topics_in(listed: bytes) -> set[str]:
    """Everything in a list of topics that may be the name of a link's state topic."""
    found = set()
    for run in _NAME.finditer(listed):
        found |= {run[0][: end.end()].decode() for end in _STATE.finditer(run[0])}
    return found


def _link_records(batch: StoredBatch, partition: Partition) -> Iterator[LinkRecord]:
    """Raises ProtocolError for one that cannot be read."""
    where = partition.where._replace(offset=batch.start)
    try:
        if not _LINK_KEY.search(batch.unpacked):
            return
        for offset in batch.between(batch.start, batch.end):
            record = batch.at(offset)
            if record.value is not None and _is_link_key(record.key):
                yield decode(record.value, LinkRecord)
    except UnpackError as error:
        raise ProtocolError(f"a batch of a link's state cannot be opened: {error}", where=where) from None
    except ProtocolError as error:
        raise error.at(where) from None


def _is_link_key(key: bytes | None) -> bool:
    try:
        return encode(msgspec.json.decode(key or b"", type=LinkKey)) == key
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError):
        return False


def _with_hint(error: ClusterError) -> ClusterError:
    return ClusterError(error.code, error.what, where=error.where, hint=RIGHTS) if error.code == UNAUTHORIZED else error


async def preflight(source: Cluster, loops: Loops) -> None:
    """Raises ReplicatorError when a link could not tell which producers of its source are links."""
    for name, cluster_id in (("source", loops.source_cluster_id), ("target", loops.target_cluster_id)):
        if "," in cluster_id:
            raise ConfigError(f"`loops: prevent` cannot do with a comma in the {name}'s cluster id {cluster_id}")
    await LoopRegistry(source, loops).read()


async def answer(lane: "LaneRunner", registry: LoopRegistry, producer_id: int) -> None:
    """Of a lane that stands in front of the first batch of this producer. Tries until it is known, or the lane is set
    back anyway."""
    generation, backoff, told, looked = lane.native.generation, Backoff(limit_ms=RETRY_MS_MAX), False, False
    while registry.table[producer_id] == "unknown":
        try:
            await registry.learn(producer_id)
            looked = True
        except ReplicatorError as error:
            if not _waits_since(generation, lane):
                return
            told = True
            lane.waits(Trigger.LOOPS_UNKNOWN, f"producer {producer_id} may be a link, which cannot be told: {error}")
            await asyncio.sleep(backoff.next_s())
    if not _waits_since(generation, lane):
        return
    if told:
        lane.waits(Trigger.LOOPS_KNOWN, "")
    lane.native.unblock(looked)
    lane.worker.pump_soon()


def _waits_since(generation: int, lane: "LaneRunner") -> bool:
    """The lane still stands where it stood then."""
    return lane.native.generation == generation and not lane.state.is_final
