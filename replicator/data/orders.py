"""What supervisor and worker say to each other: msgpack messages over a socketpair, each after its length."""

import asyncio
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import force_setattr

from replicator.config.models import Batches, Config, DeadLetterTopic, Policy, StartAt
from replicator.config.plug_ins import PlugIn

MESSAGE_BYTES_MAX = 64 << 20


class TargetTopic(Struct, frozen=True):
    """What a topic of the target takes, as far as we know: what we are not told of is 0, or as brokers have it by
    default."""

    max_message_bytes: int = 0  # of a batch, its header included
    compression_type: str = "producer"  # that: as it comes; else a codec's name, or `uncompressed`
    timestamp_type: str = "CreateTime"  # or LogAppendTime: the limits below hold for CreateTime only
    timestamp_after_max_ms: int = 0  # how far ahead of the broker's clock a record may be; 0: as it likes
    timestamp_before_max_ms: int = 0  # and how far behind
    compacted: bool = False  # then it takes no record without a key


class Loops(Struct, frozen=True):
    """Of a link that does not copy back to a cluster what came from there: between which clusters it is."""

    source_cluster_id: str
    target_cluster_id: str


class LaneSpec(Struct, frozen=True):
    """One lane: which partition goes where, and how it starts and ends."""

    row: int  # of the shared counters; each worker has a row of its own for a lane
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
    policy: Policy = Policy()
    isolation: Literal["read_committed", "read_uncommitted"] = "read_committed"
    recipe: tuple[Any, ...] = ()  # replicator.config.recipes; bytes, str, int, None, and tuples of them
    plug_ins: tuple[PlugIn, ...] = ()  # records go through them before the recipe
    loops: Loops | None = None
    policy_hash: str = ""
    batches: Batches = Batches()
    dead_letters: DeadLetterTopic = DeadLetterTopic(on="none")  # its `topic` is never None where there is one
    settings: TargetTopic = TargetTopic()

    def __post_init__(self) -> None:
        force_setattr(self, "recipe", _with_tuples(self.recipe))

    @property
    def name(self) -> str:
        return f"{self.topic}-{self.partition}"


def _with_tuples(part: Any) -> Any:
    """The same with tuples for lists, which msgpack makes of what is inside of a tuple."""
    return tuple(map(_with_tuples, part)) if isinstance(part, tuple | list) else part


class Setup(Struct, frozen=True, tag=True):
    """First message to a worker. `durable`: its lanes' checkpoints are kept on the target, and it runs those lanes
    whose shards the link's consumer group gives it; otherwise all that it is told of, for as long as this run lasts."""

    config: Config
    durable: bool


class Assign(Struct, frozen=True, tag=True):
    """These lanes exist, too."""

    lanes: list[LaneSpec]


class SettingsChanged(Struct, frozen=True, tag=True):
    """The target topic of these lanes takes something else by now than when they were assigned."""

    rows: list[int]
    settings: TargetTopic


class Drain(Struct, frozen=True, tag=True):
    """Fetch nothing more; when what was fetched is acknowledged, say Drained and exit."""


class LaneChanged(Struct, frozen=True, tag=True):
    """A lane is in another state now, or in the same for another reason. `kind` names what happened."""

    row: int
    state: int
    kind: str
    reason: str


class LaneEvent(Struct, frozen=True, tag=True):
    """Something that a person should know of happened to a lane, whatever its state."""

    row: int
    kind: str
    reason: str


class LaneReleased(Struct, frozen=True, tag=True):
    """This worker does not run the lane any more: its shard went elsewhere. `kind` names how."""

    row: int
    kind: str


class ShardsOwned(Struct, frozen=True, tag=True):
    """The shards of a link that this worker owns by now, and who it is to the link's consumer group."""

    link: str
    shards: list[int]
    member_id: str


class Notice(Struct, frozen=True, tag=True):
    """A line for the supervisor's log: what happened is no single lane's matter."""

    level: int
    text: str


class Drained(Struct, frozen=True, tag=True):
    """Nothing is in flight any more."""

    lanes_left: int  # that could not settle in time


Order = Setup | Assign | SettingsChanged | Drain
Report = LaneChanged | LaneEvent | LaneReleased | ShardsOwned | Notice | Drained

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
