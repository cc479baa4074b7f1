"""What supervisor and worker say to each other: msgpack messages over a socketpair, each after its length."""

import asyncio
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from replicator.config.models import Cluster, Limits, StartAt

MESSAGE_BYTES_MAX = 64 << 20


class LaneSpec(Struct, frozen=True):
    """One lane: which partition goes where, and how it starts and ends."""

    row: int  # of the shared counters
    link: str
    source: str  # cluster aliases
    target: str
    topic: str
    target_topic: str
    partition: int
    topic_id: bytes  # of the source topic when the lane was made; zeros when brokers have none
    producer_id: int
    producer_epoch: int
    start: Literal["earliest", "latest"] | StartAt = "earliest"
    stop: Literal["never", "now"] | Annotated[int, Meta(ge=0)] = "never"

    @property
    def name(self) -> str:
        return f"{self.topic}-{self.partition}"


class Setup(Struct, frozen=True, tag=True):
    """First message to a worker."""

    clusters: dict[str, Cluster]
    limits: Limits


class Assign(Struct, frozen=True, tag=True):
    """Run these lanes, too."""

    lanes: list[LaneSpec]


class Drain(Struct, frozen=True, tag=True):
    """Fetch nothing more; when what was fetched is acknowledged, say Drained and exit."""


class LaneChanged(Struct, frozen=True, tag=True):
    """A lane is in another state now, or in the same for another reason."""

    row: int
    state: int
    reason: str


class Drained(Struct, frozen=True, tag=True):
    """Nothing is in flight any more."""

    lanes_left: int  # that could not settle in time


Order = Setup | Assign | Drain
Report = LaneChanged | Drained

_encoder = msgspec.msgpack.Encoder()


def write_message(writer: asyncio.StreamWriter, message: Order | Report) -> None:
    payload = _encoder.encode(message)
    writer.write(len(payload).to_bytes(4, "big") + payload)


async def read_message(
    reader: asyncio.StreamReader, decoder: "msgspec.msgpack.Decoder[Order | Report]"
) -> Order | Report:
    """The next message. Raises asyncio.IncompleteReadError when the other side has gone."""
    size = int.from_bytes(await reader.readexactly(4), "big")
    if size > MESSAGE_BYTES_MAX:
        raise ValueError(f"a message of {size} bytes between supervisor and worker")
    return decoder.decode(await reader.readexactly(size))
