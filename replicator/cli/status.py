"""`replicator status`: every link and lane of a file, from what the owners have written on the target clusters.

It takes no part in the links and asks none of their processes, so it works from any machine, and also when nothing
runs: then it says so. The one thing that no record can tell is how far the source has come meanwhile; the source is
asked for it, and where it does not answer, the last figures that the owners saw stand in.
"""

import time
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import click
import msgspec
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec
from msgspec import Struct

from replicator.cli.figures import counted
from replicator.config.load import load
from replicator.config.models import Cluster, Config, Link
from replicator.errors import ConfigError, ReplicatorError
from replicator.state.reader import StateReader
from replicator.state.records import LaneKey, LaneRecord

READ_TIMEOUT_S = 30.0  # of a link's state on the target
ASK_TIMEOUT_S = 10.0  # of the source

# A record this old comes from an owner that is gone: they write one at each change, and every 10 s anyway.
SILENT_INTERVALS = 10
SILENT_S_MIN = 30.0

GOOD, NOT_GOOD, NOT_READ = 0, 3, 1  # exit codes; 2 is bad input, as for every command
MOVING = ("copying", "tailing")
SILENT = "silent"
# Worst first. A word that this program does not know comes from a newer one, and stands with those that stopped.
ORDER = ("failed", SILENT, "paused", "unused", "starting", "copying", "tailing", "done")


class LaneStatus(Struct, frozen=True):
    """One lane; None is what nobody knows. `state` is the owner's word, true as long as the lane is not `silent`."""

    topic: str
    partition: int
    target_topic: str
    state: str
    silent: bool  # nobody has said anything about it for too long
    reason: str
    position: int
    end_offset: int | None  # of the source's log, now if `end_is_now`, else when the record was written
    end_is_now: bool
    lag_records: int | None
    lag_s: float | None  # how old the last record is that was copied; 0 when there is nothing to copy
    since_ms: int
    age_s: float  # of the record
    owner: str
    counts: dict[str, int] = {}  # by the owner since it began: see LaneRecord

    @property
    def word(self) -> str:
        """The state to show: silence counts for more than what was said before it, unless that needs a person."""
        return SILENT if self.silent and rank(self.state) > rank(SILENT) else self.state

    @property
    def is_good(self) -> bool:
        return self.word in (*MOVING, "done")


class Waiting(Struct, frozen=True):
    """A topic of the source that is selected, and its partitions that have no lane."""

    topic: str
    partitions: list[int]


class LinkStatus(Struct, frozen=True):
    """One link. `error`: its state could not be read; `notes`: what makes the figures worse than they could be."""

    link: str
    source: str
    target: str
    lanes: list[LaneStatus] = []  # the worst first
    waiting: list[Waiting] = []
    notes: list[str] = []
    error: str = ""

    @property
    def is_good(self) -> bool:
        """A link without any lane is not: its pattern may be mistaken."""
        return bool(self.lanes) and not self.error and not self.waiting and all(lane.is_good for lane in self.lanes)

    @property
    def is_silent(self) -> bool:
        """Nobody runs it, as far as anybody can tell."""
        said_to_rest = sum(lane.state in ("done", "unused") for lane in self.lanes)
        silent = sum(lane.silent for lane in self.lanes)
        return silent > 0 and silent + said_to_rest == len(self.lanes)

    def words(self) -> dict[str, int]:
        """How many lanes are what, worst first."""
        return dict(sorted(Counter(lane.word for lane in self.lanes).items(), key=lambda word: rank(word[0])))


class Source(NamedTuple):
    """What the source says itself. Nothing of it is known if `note` says so."""

    partitions: dict[str, int]  # by topic
    ends: dict[LaneKey, int]
    note: str = ""


def status(link_file: str, only: str | None, as_json: bool, all_lanes: bool) -> int:
    """Shows the links of a file; returns the exit code. Raises ConfigError."""
    config = load(link_file)
    links = [link_status(config, link) for link in _selected(config, only)]
    code = exit_code(links)
    if as_json:
        click.echo(to_json(links))
    else:
        from replicator.cli.status_screen import print_status  # rich is only loaded for those who see it

        print_status(links, all_lanes)
    return code


def exit_code(links: Iterable[LinkStatus]) -> int:
    links = list(links)
    if any(link.error for link in links):
        return NOT_READ
    return GOOD if all(link.is_good for link in links) else NOT_GOOD


def to_json(links: Iterable[LinkStatus]) -> str:
    """Everything, as one object; `good` is what the exit code says."""
    links = list(links)
    rows = [
        {
            **msgspec.to_builtins(link),
            "good": link.is_good,
            "states": link.words(),
            "lanes": [{**msgspec.to_builtins(lane), "good": lane.is_good} for lane in link.lanes],
        }
        for link in links
    ]
    return msgspec.json.format(msgspec.json.encode({"good": exit_code(links) == GOOD, "links": rows})).decode()


def _selected(config: Config, only: str | None) -> list[Link]:
    found = [link for link in config.links if only in (None, link.name)]
    if not found:
        names = ", ".join(f"`{link.name}`" for link in config.links[:20])
        raise ConfigError(f"no link is named `{only}`", hint=f"there is {names}")
    return found


# ---- one link ----


def link_status(config: Config, link: Link) -> LinkStatus:
    """Asks the target what is written there, then the source how far it has come."""
    reader = StateReader(config.clusters[link.target], link.name)
    try:
        reader.catch_up(READ_TIMEOUT_S)
    except ReplicatorError as error:
        return LinkStatus(link.name, link.source, link.target, error=str(error))
    finally:
        reader.close()
    source = ask_source(config.clusters[link.source], link, reader.lanes)
    notes = [source.note] if source.note else []
    if reader.damaged:
        notes.append(f"{counted(reader.damaged, 'record')} of its state cannot be read; the first: {reader.damage}")
    return judge(link, reader.lanes, source, notes, time.time_ns() // 1_000_000)


def ask_source(cluster: Cluster, link: Link, lanes: Iterable[LaneKey]) -> Source:
    """The partitions of the topics that the link selects, and where the logs of its lanes end."""
    try:
        admin = AdminClient(cluster.client_properties())
        found = admin.list_topics(timeout=ASK_TIMEOUT_S).topics
        wanted = [TopicPartition(key.topic, key.partition) for key in lanes if key.topic in found]
        ends = _ends(admin, [part for part in wanted if part.partition in found[part.topic].partitions])
    except KafkaException as error:
        note = f"source `{cluster.alias}` does not answer ({error.args[0].str()}): lags are those last seen"
        return Source({}, {}, note)
    partitions = {name: len(topic.partitions) for name, topic in found.items() if link.selects(name)}
    missing = len(wanted) - len(ends)
    note = f"source `{cluster.alias}` does not say where {counted(missing, 'log')} end" if missing else ""
    return Source(partitions, ends, note)


def _ends(admin: AdminClient, wanted: list[TopicPartition]) -> dict[LaneKey, int]:
    """Those that the brokers tell in time."""
    if not wanted:
        return {}
    latest: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]
    asked = {part: latest for part in wanted}
    ends = {}
    for part, done in admin.list_offsets(asked, request_timeout=ASK_TIMEOUT_S).items():
        try:
            ends[LaneKey(part.topic, part.partition)] = done.result(2 * ASK_TIMEOUT_S).offset
        except (KafkaException, TimeoutError):
            continue
    return ends


def judge(link: Link, lanes: dict[LaneKey, LaneRecord], source: Source, notes: list[str], now_ms: int) -> LinkStatus:
    """The link's status from what was read at `now_ms`."""
    silent_s = max(SILENT_S_MIN, SILENT_INTERVALS * link.checkpoint_interval_ms / 1000)
    judged = [_judge_lane(key, record, source.ends.get(key), now_ms, silent_s) for key, record in lanes.items()]
    judged.sort(key=lambda lane: (rank(lane.word), -(lane.lag_records or 0), lane.topic, lane.partition))
    waiting = [
        Waiting(topic, left)
        for topic, count in sorted(source.partitions.items())
        if (left := [part for part in range(count) if LaneKey(topic, part) not in lanes])
    ]
    return LinkStatus(link.name, link.source, link.target, judged, waiting, notes)


def _judge_lane(key: LaneKey, record: LaneRecord, end: int | None, now_ms: int, silent_s: float) -> LaneStatus:
    age_s = max(now_ms - record.written_ms, 0) / 1000
    known_end = end if end is not None else record.high_watermark if record.high_watermark >= 0 else None
    lag = None if known_end is None else max(known_end - record.position, 0)
    return LaneStatus(
        topic=key.topic,
        partition=key.partition,
        target_topic=record.target_topic,
        state=record.state,
        silent=age_s > silent_s and record.state not in ("done", "unused"),
        reason=record.reason,
        position=record.position,
        end_offset=known_end,
        end_is_now=end is not None,
        lag_records=lag,
        lag_s=_lag_s(lag, record.last_timestamp_ms, now_ms),
        since_ms=record.since_ms,
        age_s=age_s,
        owner=record.worker,
        counts=record.counts,
    )


def _lag_s(lag: int | None, last_timestamp_ms: int, now_ms: int) -> float | None:
    if lag == 0:
        return 0.0
    if lag is None or last_timestamp_ms < 0:
        return None
    return max(now_ms - last_timestamp_ms, 0) / 1000


def rank(word: str) -> int:
    """The smaller the worse."""
    return ORDER.index(word) if word in ORDER else 0
