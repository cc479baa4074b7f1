"""The native core between two scripted brokers: what it asks for and sends comes out parsed, answers go in built.

There is no clock, no loop and no port: a socket pair on each side, and the test plays both brokers.
"""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from replicator._core import Event, FetchStream, Frame, Lane, Pool, Source, Target
from replicator.data.states import Checkpoint, row_dtype
from tests.oracle import fetch, produce
from tests.oracle.batch import Batch
from tests.oracle.duplex import Duplex
from tests.oracle.fetch import Fetched, FetchedTopic, FetchRequest
from tests.oracle.produce import Produced, ProduceRequest

NEVER = 2**63 - 1
PRODUCER = (9001, 3)


def topic_id(name: str) -> bytes:
    return uuid.uuid5(uuid.NAMESPACE_DNS, name).bytes


def joined(batches: Iterable[Batch]) -> bytes:
    return b"".join(batch.encode() for batch in batches)


class LaneRig:
    """A lane, and its row of counters as others read it."""

    def __init__(self, topic: str, partition: int, target_topic: str | None = None, **flags: Any) -> None:
        """`flags`: hold_gaps, tolerate, terms."""
        self.topic, self.partition, self.target_topic = topic, partition, target_topic or topic
        self.flags = flags
        self.renew()

    def renew(self) -> None:
        """As another process would make it: nothing is left of the one before, but what is in flight."""
        self.rows = np.zeros(1, dtype=row_dtype())
        memory = memoryview(self.rows.view(np.uint8))
        names = self.topic, topic_id(self.topic), self.target_topic, self.partition
        self.native = Lane(*names, PRODUCER, memory, **self.flags)

    def __getitem__(self, counter: str) -> int:
        return int(self.rows[0][counter])

    @property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint(*self.rows[0]["checkpoints"][self["version"] & 1].item())

    @property
    def place(self) -> tuple[str, int]:
        return self.topic, self.partition


@dataclass(frozen=True)
class Settings:
    """What the brokers speak, and the limits."""

    fetch_version: int = 13
    produce_version: int = 8
    credit_bytes: int = 1 << 31
    lane_bytes_max: int = 1 << 20
    fetch_bytes_max: int = 1 << 30  # room for every lane in one request
    produce_bytes_max: int = 1 << 20
    committed: bool = False


class Rig:
    """One source broker with one connection, one target broker with one connection, and their lanes."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.pool = Pool(self.settings.credit_bytes)
        self.source = Source(self.pool, self.settings.lane_bytes_max, self.settings.committed)
        self.stream = FetchStream(self.source, b"rig", self.settings.fetch_bytes_max)
        self.target = Target(b"rig", self.settings.produce_bytes_max, 30_000)
        self.source_side = Duplex(self.pool)
        self.target_side = Duplex(self.pool)
        self.lanes: list[LaneRig] = []
        self.fetch_id = 100  # correlation ids of the last request on either side
        self.produce_id = 500

    def close(self) -> None:
        self.source_side.close()
        self.target_side.close()

    def __enter__(self) -> "Rig":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- lanes ----

    def lane(self, topic: str = "orders", partition: int = 0, target_topic: str | None = None, **flags: Any) -> LaneRig:
        """A lane that stands still."""
        lane = LaneRig(topic, partition, target_topic, **flags)
        self.lanes.append(lane)
        return lane

    def start(
        self,
        lane: LaneRig,
        place: Checkpoint | None = None,
        skip: int = 0,
        stop: int = NEVER,
        segments: tuple[tuple[int, int, int], ...] = (),
    ) -> LaneRig:
        """Lets it run from here."""
        lane.native.set_target(self.target)
        lane.native.resume(place or Checkpoint(0, 0, 0), skip, stop, segments)
        lane.native.set_source(self.source, 7)
        return lane

    def running(self, topic: str = "orders", partition: int = 0, target_topic: str | None = None) -> LaneRig:
        return self.start(self.lane(topic, partition, target_topic))

    # ---- the source's side ----

    def ask(self) -> FetchRequest | None:
        """The next Fetch as the source broker reads it; None when there is none."""
        version = self.settings.fetch_version
        if not self.stream.compose(self.source_side.transport, version, self.fetch_id + 1, 500):
            return None
        self.fetch_id += 1
        request = fetch.parse_request(self.source_side.sent())
        assert (request.version, request.correlation_id) == (version, self.fetch_id)
        assert (request.client_id, request.wait_ms) == ("rig", 500)
        assert request.committed == self.settings.committed
        return request

    def response(self, *answers: tuple[LaneRig, Fetched]) -> bytes:
        """The frame that answers the Fetch outstanding; neighbours of one topic share its element."""
        topics: list[FetchedTopic] = []
        for lane, fetched in answers:
            if not topics or topics[-1].name != lane.topic:
                topics.append(FetchedTopic(lane.topic, topic_id(lane.topic), []))
            topics[-1].partitions.append(fetched)
        return fetch.encode_response(self.settings.fetch_version, self.fetch_id, topics)

    def feed(self, frame: bytes, cuts: Iterable[int] = ()) -> list[Event]:
        """Lets a whole response arrive; what has happened. Raises ValueError when it is malformed."""
        self.feed_quietly(frame, cuts)
        return self.stream.take_events()

    def feed_quietly(self, frame: bytes, cuts: Iterable[int] = ()) -> None:
        """The same, leaving the events where they are."""
        assert self.source_side.deliver(frame, self.stream, cuts) is not None

    def fetch(self, lane: LaneRig, *batches: Batch) -> list[Event]:
        """One round trip that brings these batches."""
        request = self.ask()
        assert request is not None
        key = topic_id(lane.topic) if self.settings.fetch_version >= 13 else lane.topic
        assert (key, lane.partition) in request.asked
        return self.feed(self.response((lane, Fetched(lane.partition, joined(batches)))))

    def feed_nothing(self) -> None:
        """Answers the Fetch outstanding with no partition at all."""
        self.feed(fetch.encode_response(self.settings.fetch_version, self.fetch_id, []))

    # ---- the target's side ----

    def gather(self) -> ProduceRequest | None:
        """The next Produce request as the target broker reads it; None when there is none."""
        version = self.settings.produce_version
        size = self.target.gather(self.target_side.transport, version, self.produce_id + 1)
        if not size:
            return None
        self.produce_id += 1
        data = self.target_side.sent()
        assert len(data) == size
        (request,) = produce.parse_requests(data)
        assert (request.version, request.correlation_id) == (version, self.produce_id)
        return request

    def settle(self, request: ProduceRequest, *answers: Produced, throttle_ms: int = 0) -> list[Event]:
        """Answers a request. Raises ValueError when that cannot be its answer."""
        frame = produce.encode_response(request.version, request.correlation_id, list(answers), throttle_ms)
        assert self.target.settle(self.target_frame(frame)) == throttle_ms
        return self.target.take_events()

    def target_frame(self, frame: bytes) -> Frame:
        received = self.target_side.deliver(frame)
        assert received is not None
        return received

    def acknowledge(self, request: ProduceRequest) -> list[Event]:
        """Answers that every batch was appended where its lane wants it."""
        due = {(lane.target_topic, lane.partition): lane for lane in self.lanes}
        rows = [(topic, partition) for topic, partition, _ in request.batches]
        answers = [Produced(*row, due[row].checkpoint.target_next) for row in rows]
        return self.settle(request, *answers)
