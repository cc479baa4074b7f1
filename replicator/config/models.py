"""What can be configured: one struct per mapping of a link file, one row per option, its text beside it.

`LinkFile` is the file as it is written, and the JSON schema is printed from it. `Config` is what the rest
of the package gets: the same, checked, with addresses parsed. Everything is frozen and built of plain
values, so it travels to a worker process as it is. To read a file is `load.py`'s job; nothing here knows
about YAML.
"""

import os
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field
from msgspec.structs import force_setattr, replace

from replicator.config.edits import ACTIONS, Edit
from replicator.config.fields import (
    END,
    INT32_MAX,
    MIB,
    NAME,
    REAL_TYPE,
    Pattern,
    Patterns,
    Time,
    TopicPatterns,
    any_matches,
    compiled,
    number,
    size,
    time_ms,
)

ALIAS_LENGTH_MAX = 100
NAME_LENGTH_MAX = 220  # a link's state topic puts about 20 characters around it; Kafka allows 249
TOPIC_LENGTH_MAX = 249
EDITS_MAX = 100
TRANSFORMS_MAX = 16

NAME_PART = r"^[A-Za-z0-9._-]+" + END
TEMPLATE = r"^[A-Za-z0-9._-]*\{topic\}[A-Za-z0-9._-]*" + END
REPLACEMENT = r"^([A-Za-z0-9._-]|\\[0-9]{1,2}|\\g<[A-Za-z0-9_]+>)*" + END
GROUP_TEMPLATE = r"^[^{}]*\{group\}[^{}]*" + END


def default_workers() -> int:
    """One worker a core this process may use, at most 4: the cores beyond are for the brokers next door."""
    affinity = getattr(os, "sched_getaffinity", None)  # macOS has none
    return min(len(affinity(0)) if affinity else os.cpu_count() or 1, 4)


class Rename(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How a topic is called on the target: a prefix, a template, or a regular expression and its replacement."""

    prefix: Annotated[str, Meta(pattern=NAME_PART, max_length=100, description="Put in front of the topic's name.")] = (
        ""
    )
    template: Annotated[
        str,
        Meta(pattern=TEMPLATE, max_length=100, description="The new name; {topic} stands for the old one."),
    ] = ""
    regex: Annotated[
        Pattern | None,
        Meta(description="A regular expression (Python's). Topics whose whole name it does not match keep their name."),
    ] = None
    replacement: Annotated[
        str,
        Meta(
            pattern=REPLACEMENT,
            max_length=TOPIC_LENGTH_MAX,
            description=r"Put in the place of what `regex` finds first in such a name; \1 stands for its first group.",
        ),
    ] = ""

    def __post_init__(self) -> None:
        if bool(self.prefix) + bool(self.template) + (self.regex is not None) != 1:
            raise ValueError("give one of prefix, template, and regex with replacement")
        if self.regex is None and self.replacement:
            raise ValueError("`replacement` needs a `regex`")

    def apply(self, topic: str) -> str:
        if self.regex is not None:
            # As Kafka Connect's RegexRouter: the whole name must match, then the first find is replaced.
            pattern = compiled(self.regex)
            return pattern.sub(self.replacement, topic, count=1) if pattern.fullmatch(topic) else topic
        return self.template.replace("{topic}", topic) if self.template else self.prefix + topic


class StartAt(Struct, frozen=True, forbid_unknown_fields=True):
    """Start at the first record that is not older than a time."""

    timestamp: Annotated[Time, Meta(description="RFC 3339 with a time zone, or milliseconds since 1970.")]

    def __post_init__(self) -> None:
        # Kafka gives negative timestamps meanings of their own: -1 is the log's end, -2 its start.
        if self.timestamp_ms < 0:
            raise ValueError("a timestamp before 1970")

    @property
    def timestamp_ms(self) -> int:
        """Milliseconds since 1970, as ListOffsets wants them; fractions are rounded down."""
        return time_ms(self.timestamp)


class Topics(Struct, frozen=True, forbid_unknown_fields=True):
    """Which topics of the source: those that an `include` pattern matches and no `exclude` pattern does."""

    include: Annotated[
        Patterns,
        Meta(min_length=1, description="Names or regular expressions (Python's), matching the whole name."),
    ] = (".*",)
    exclude: Annotated[
        Patterns,
        Meta(description="The same, to leave topics out. Replaces the default: internal topics, MM2's and ours too."),
    ] = (
        "__.*",
        r".*[-.]internal",
        r".*\.replica",
        r"(.*\.)?heartbeats",
        r"replicator\..*\.(state|offsets|events|replayed)",
        r".*\.dlq",
    )

    def selects(self, topic: str) -> bool:
        return any_matches(self.include, topic) and not any_matches(self.exclude, topic)


class Policy(Struct, frozen=True, forbid_unknown_fields=True):
    """What is done when something has happened to a log that no retry mends. Of a lane's policies the first that
    names its topic counts; what a policy leaves out, and topics that none names, get the defaults."""

    topics: TopicPatterns = (".*",)
    source_gap: Annotated[
        Literal["continue", "stop"],
        Meta(
            description="The source deleted records before they were copied: go on behind the hole, which the offset"
            " map keeps, or stop the lane."
        ),
    ] = "continue"
    source_truncated: Annotated[
        Literal["stop", "continue"],
        Meta(description="The source's log was cut back behind our position: stop, or append its new branch."),
    ] = "stop"
    foreign_writes: Annotated[
        Literal["fence", "tolerate"],
        Meta(
            description="Somebody else wrote to the target partition: stop the lane, or note the gap in the offset map."
            " In a file with `loops: prevent` the default is tolerate: both sides are written to there."
        ),
    ] = "fence"
    target_lost: Annotated[
        Literal["refill", "stop"],
        Meta(description="The target lost what it had acknowledged: copy it once more, or stop the lane."),
    ] = "refill"
    record_faults: Annotated[
        Literal["dlq", "stop", "skip"],
        Meta(
            description="A record cannot be decoded, or the target refuses it: send it to the dead-letter topic and go"
            " on, stop the lane, or leave it out (counted, an event, and a hole in the offset map)."
        ),
    ] = "dlq"
    retry_timeout_ms: Annotated[
        int,
        number(
            -1,
            86_400_000,
            "How long a batch is tried again, after three tries in any case, before an error that may pass counts as"
            " its own fault; -1: for ever.",
        ),
    ] = 0
    retry_delay_max_ms: Annotated[int, number(1, 3_600_000, "The longest pause before anything is tried again.")] = (
        2_000
    )

    def applies_to(self, topic: str) -> bool:
        return any_matches(self.topics, topic)


class Batches(Struct, frozen=True, forbid_unknown_fields=True):
    """How batches are written that are not passed on as they are. Of a link's rows the first that names a topic
    counts."""

    topics: TopicPatterns = (".*",)
    codec: Annotated[
        Literal["keep", "none", "gzip", "snappy", "lz4", "zstd"],
        Meta(
            description="How their records are compressed. `keep`: as on the source, and whole batches pass untouched;"
            " any other: batches of other codecs are rebuilt."
        ),
    ] = "keep"
    merge: Annotated[
        Literal["auto", "off", "always"],
        Meta(description="Make one batch of several small ones: when it pays, never, or whenever there are several."),
    ] = "auto"
    linger_ms: Annotated[
        int, number(0, 60_000, "How long a small batch may wait for others to be merged with, in milliseconds.")
    ] = 0

    def applies_to(self, topic: str) -> bool:
        return any_matches(self.topics, topic)


class Transform(Struct, frozen=True, forbid_unknown_fields=True):
    """A plug-in that records go through: see `replicator/transforms.py`."""

    name: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=200,
            description="Its entry point in the group `replicator.transforms` of an installed distribution.",
        ),
    ]
    topics: TopicPatterns = (".*",)
    options: Annotated[dict[str, Any], Meta(description="What it is told: plain data, which only it understands.")] = {}

    def applies_to(self, topic: str) -> bool:
        return any_matches(self.topics, topic)


class DeadLetterTopic(Struct, frozen=True, forbid_unknown_fields=True):
    """Where records go that cannot be replicated, with the reason in their headers."""

    topic: Annotated[
        Annotated[str, Meta(pattern=NAME, max_length=TOPIC_LENGTH_MAX)] | None,
        Meta(description="Its name; made if missing, never replicated by this link. Default: <link>.dlq."),
    ] = None
    on: Annotated[
        Literal["target", "source", "none"],
        Meta(
            description="The cluster it is on. `source` writes to the source cluster. `none`: there is no such topic,"
            " and `record_faults: dlq` stops the lane."
        ),
    ] = "target"
    partitions: Annotated[int, number(1, 1000, "Of the topic when it is made.")] = 1
    replication_factor: Annotated[
        Literal["broker"] | Annotated[int, Meta(ge=1, le=32767)],
        Meta(description="Of the topic when it is made: the broker's default, or a number."),
    ] = "broker"
    context_headers: Annotated[
        bool, Meta(description="Write Kafka Connect's `__connect.errors.*` headers, too, beside our own.")
    ] = True
    log: Annotated[
        Literal["off", "reasons", "records"],
        Meta(
            description="Put a line into the log for each dead letter: none, place and reason, or its key, value and"
            " headers as well."
        ),
    ] = "off"


class Groups(Struct, frozen=True, forbid_unknown_fields=True):
    """Which consumer groups' offsets are kept up on the target, and how."""

    include: Annotated[
        Patterns, Meta(description="Names or regular expressions of groups, whole names. Empty: none.")
    ] = (".*",)
    exclude: Annotated[Patterns, Meta(description="The same, to leave groups out. Replaces the default.")] = (
        "console-consumer-.*",
        "connect-.*",
        "__.*",
        r"replicator\..*",
    )
    rename: Annotated[
        str,
        Meta(
            pattern=GROUP_TEMPLATE,
            max_length=100,
            description="A group's name on the target; {group} stands for the one on the source.",
        ),
    ] = "{group}"
    sync_interval_ms: Annotated[
        int, number(0, 86_400_000, "How often offsets are translated and committed; 0: never.")
    ] = 5_000

    def selects(self, group: str) -> bool:
        return any_matches(self.include, group) and not any_matches(self.exclude, group)

    def target_group(self, group: str) -> str:
        return self.rename.replace("{group}", group)


class Mm2Topics(Struct, frozen=True, forbid_unknown_fields=True):
    """The internal topics of MirrorMaker 2, kept up for tools that read them: RemoteClusterUtils and its like."""

    checkpoints: Annotated[bool, Meta(description="Write <source>.checkpoints.internal on the target.")] = False
    heartbeats: Annotated[bool, Meta(description="Write heartbeats on the target.")] = False
    offset_syncs: Annotated[
        Literal["off", "source", "target"],
        Meta(
            description="Write mm2-offset-syncs.<other>.internal, and where. `source` is the only thing that ever"
            " writes to a source cluster, beside `dead_letters.on: source`."
        ),
    ] = "off"
    separator: Annotated[str, Meta(min_length=1, max_length=10, description="Of replication.policy.separator.")] = "."
    interval_ms: Annotated[int, number(100, 86_400_000, "How often checkpoints and syncs are written.")] = 5_000


# A key with dots, as in a connector's configuration. Numbers and booleans are text too, spelled as in the file.
ConnectProperties = Annotated[
    dict[str, Annotated[str, Meta(extra_json_schema={REAL_TYPE: ["string", "number", "boolean"]})]],
    Meta(max_length=1000),
]


class Link(Struct, frozen=True, forbid_unknown_fields=True):
    """One direction of replication: topics of a source cluster, copied to a target cluster."""

    source: Annotated[
        str,
        Meta(
            description="Alias of the cluster to read. It is never written to, but for `mm2_topics.offset_syncs:"
            " source` and `dead_letters.on: source`."
        ),
    ]
    target: Annotated[str, Meta(description="Alias of the cluster to write.")]
    name: Annotated[
        str,
        Meta(
            pattern=NAME,
            max_length=NAME_LENGTH_MAX,
            description="Names the link's state on the target, so keep it. Default: <source>-<target>.",
        ),
    ] = ""
    topics: Annotated[Topics, Meta(description="Which topics of the source.")] = Topics()
    rename: Annotated[
        Rename | None,
        Meta(
            description="How topics are called on the target. Default: as on the source.",
            extra_json_schema={"oneOf": [{"required": [key]} for key in ("prefix", "template", "regex")]},
        ),
    ] = None
    start: Annotated[
        Literal["earliest", "latest"] | StartAt,
        Meta(description="Where to start in a partition that was never replicated before."),
    ] = "earliest"
    replication_factor: Annotated[
        Literal["source", "broker"] | Annotated[int, Meta(ge=1, le=32767)],
        Meta(description="Of created topics: as on the source, the target broker's default, or a number."),
    ] = "source"
    refresh_topics_ms: Annotated[
        int, number(100, 86_400_000, "How often to look for new topics and partitions, in milliseconds.")
    ] = 30_000
    shards: Annotated[
        int,
        number(1, 1024, "Units of ownership that workers share out, fixed once the link has run."),
    ] = 64
    checkpoint_interval_ms: Annotated[
        int, number(50, 60_000, "How often the lanes' positions are written to the target, in milliseconds.")
    ] = 1_000
    session_timeout_ms: Annotated[
        int, number(1_000, 1_800_000, "After how long without a sign of life a worker's shards go to others.")
    ] = 10_000
    group_protocol: Annotated[
        Literal["classic", "consumer"],
        Meta(
            description="How workers share out the shards. `consumer` is Kafka 4's own (KIP-848), whose session"
            " timeout is the broker's: 45 s by default."
        ),
    ] = "classic"
    policies: Annotated[
        tuple[Policy, ...], Meta(max_length=1000, description="What is done about damage, by topic.")
    ] = ()
    groups: Annotated[Groups, Meta(description="Consumer groups whose offsets go along.")] = Groups()
    mm2_topics: Annotated[Mm2Topics, Meta(description="Internal topics as MirrorMaker 2 writes them.")] = Mm2Topics()
    isolation: Annotated[
        Literal["read_committed", "read_uncommitted"],
        Meta(
            description="read_committed: records of aborted transactions are left out, and those of open ones wait."
            " read_uncommitted: all records are copied, as they come."
        ),
    ] = "read_committed"
    edits: Annotated[
        tuple[Annotated[Edit, Meta(extra_json_schema={"oneOf": [{"required": [action]} for action in ACTIONS]})], ...],
        Meta(max_length=EDITS_MAX, description="What is done to records on their way, in this order."),
    ] = ()
    provenance: Annotated[
        bool,
        Meta(
            description="Write into each record's headers where it is from: `replicator.source.cluster`, `.topic`,"
            " `.partition`, `.offset`, and the clusters it came through, `replicator.hops`."
        ),
    ] = False
    loops: Annotated[
        Literal["off", "prevent"],
        Meta(
            description="prevent: leave out records that links brought from the target cluster, whatever their topic."
        ),
    ] = "off"
    batches: Annotated[
        tuple[Batches, ...], Meta(max_length=1000, description="Codec and merging of batches, by topic.")
    ] = ()
    dead_letters: Annotated[DeadLetterTopic, Meta(description="Where records go that cannot be replicated.")] = (
        DeadLetterTopic()
    )
    connect: Annotated[
        ConnectProperties,
        Meta(
            description="Kafka Connect's properties for some of the same things: `transforms`, `predicates`, `errors`."
        ),
    ] = {}
    transforms: Annotated[
        tuple[Transform, ...],
        Meta(max_length=TRANSFORMS_MAX, description="Plug-ins in Python that records go through, before the edits."),
    ] = ()

    def __post_init__(self) -> None:
        if not self.name:
            force_setattr(self, "name", f"{self.source}-{self.target}")

    def selects(self, topic: str) -> bool:
        """True if this topic of the source is to be replicated. The link's own dead letters never are."""
        return self.topics.selects(topic) and topic != self.dead_letter_topic

    def policy(self, topic: str) -> Policy:
        """What holds for this topic of the source. Without dead letters a record's fault stops its lane."""
        policy = next((policy for policy in self.policies if policy.applies_to(topic)), Policy())
        if policy.record_faults == "dlq" and self.dead_letters.on == "none":
            return replace(policy, record_faults="stop")
        return policy

    def batching(self, topic: str) -> Batches:
        """How batches of this topic of the source are written."""
        return next((row for row in self.batches if row.applies_to(topic)), Batches())

    @property
    def dead_letter_topic(self) -> str:
        return self.dead_letters.topic or f"{self.name}.dlq"

    def target_topic(self, topic: str) -> str:
        """The name on the target of a topic of the source. May be too long for Kafka (more than 249)."""
        return self.rename.apply(topic) if self.rename else topic

    def feeds_itself(self, topic: str) -> bool:
        """True if, were source and target one cluster, this topic's copy would be copied in its turn."""
        return self.selects(topic) and self.selects(self.target_topic(topic))


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    """What one worker may use. Sizes are bytes: 65536, or 64KiB, 2MiB, 1GiB."""

    credit_bytes: Annotated[int, size(1 << 40, "Bytes fetched and not yet acknowledged by the target.")] = 64 * MIB
    lane_bytes_max: Annotated[int, size(INT32_MAX, "The same for a single partition.")] = 2 * MIB
    fetch_bytes_max: Annotated[int, size(INT32_MAX, "Bytes asked for in one Fetch request.")] = MIB
    fetch_wait_ms: Annotated[
        int, number(0, 300_000, "How long a source broker may wait for new data, in milliseconds.")
    ] = 500
    produce_bytes_max: Annotated[int, size(INT32_MAX, "Bytes sent in one Produce request.")] = MIB
    request_timeout_ms: Annotated[
        int, number(100, 3_600_000, "How long to wait for an answer before the connection is given up.")
    ] = 30_000


# A key with dots, as in a Kafka properties file. Numbers and booleans are text too, spelled as in the file.
Properties = Annotated[
    dict[str, Annotated[str, Meta(extra_json_schema={REAL_TYPE: ["string", "number", "boolean"]})]],
    Meta(
        description="Client properties as in a Kafka properties file, `bootstrap.servers` among them.",
        extra_json_schema={
            "required": ["bootstrap.servers"],
            "properties": {
                "bootstrap.servers": {"type": "string", "description": "host:port, more after commas."},
                "client.id": {
                    "type": "string",
                    "description": "How brokers see us.",
                    "default": "replicator",
                },
            },
        },
    ),
]


class LinkFile(Struct, frozen=True, forbid_unknown_fields=True):
    """A link file: clusters, the links between them, and how much of this machine to use."""

    clusters: Annotated[
        dict[Annotated[str, Meta(pattern=NAME, max_length=ALIAS_LENGTH_MAX)], Properties],
        Meta(
            min_length=1,
            max_length=1000,
            description="The Kafka clusters, each under an alias of your choice.",
        ),
    ]
    links: Annotated[tuple[Link, ...], Meta(min_length=1, max_length=1000, description="What to replicate.")]
    workers: Annotated[int, number(1, 256, "Processes that move data. Default: one a core, at most 4.")] = field(
        default_factory=default_workers
    )
    limits: Annotated[Limits, Meta(description="Memory and time limits of a worker.")] = Limits()


class Cluster(Struct, frozen=True):
    """A Kafka cluster: where it is, and the properties as given (for clients that take them as they are)."""

    alias: str
    bootstrap: tuple[tuple[str, int], ...]  # IPv6 hosts without their brackets
    properties: dict[str, str]
    client_id: str = "replicator"

    def client_properties(self, *, control: bool = False) -> dict[str, Any]:
        """What every librdkafka client of this cluster begins with: it says nothing by itself, and the cluster's own
        properties come before ours. `control`: for those that keep a link's state, under a client id of their own, so
        that a quota that slows the data down does not hold up its checkpoints."""
        client_id = f"{self.client_id}.control" if control else self.client_id
        return {"log_level": 0, **self.properties, "client.id": client_id}


class Config(Struct, frozen=True):
    """A checked configuration: every link's clusters exist, names are unique, limits fit each other."""

    clusters: dict[str, Cluster]
    links: tuple[Link, ...]
    workers: int = field(default_factory=default_workers)
    limits: Limits = Limits()
