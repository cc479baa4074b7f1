"""`replicator verify`: what links say they have copied, read again on both sides and compared.

What they say is on their targets: positions and offset maps. Nothing is written anywhere, and it does not matter
whether the links are running: what they copy from now on is not in what they said before.
"""

import asyncio
import json
import logging
import re
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import click

from replicator._core import Pool
from replicator.cli.logs import set_up_logging
from replicator.cli.progress import RecordCounter, showing_progress
from replicator.cli.session import Interrupted, watch_signals
from replicator.cli.verdicts import LaneReport, Verification
from replicator.config.load import load
from replicator.config.models import Config, Link
from replicator.config.plug_ins import plug_ins
from replicator.config.recipes import recipe
from replicator.control.cleaned import compacted_topics
from replicator.control.dead_letters import DeadLetterTopic, dead_letter_cluster
from replicator.data import ranges
from replicator.data.rules import Rules, rules_of
from replicator.data.verify import LaneVerdict, MappedClaim, Outcome, verify_lanes
from replicator.errors import ClusterError, ConfigError, NetworkError, ProtocolError
from replicator.kafka.cluster import Cluster
from replicator.kafka.connection import ConnectionSettings
from replicator.kafka.log import Partition, find_offset
from replicator.state.offset_map import NO_SEGMENTS, Segments
from replicator.state.reader import StateReader
from replicator.state.records import LaneKey, LaneRecord, spell_topic_id

POOL_BYTES = 64 << 20
QUESTIONS_AT_ONCE = 16
FULL_RECORDS_MAX = 1_000_000  # so many are compared when nobody says how many


@dataclass(frozen=True)
class AtTime:
    """A place in every partition: its first record that is not older."""

    timestamp_ms: int


Place = int | AtTime | None  # an offset, a time, or the log's end on that side


@dataclass(frozen=True)
class VerifyOptions:
    """The command line of `replicator verify`."""

    link_file: str
    link: str
    topics: tuple[str, ...]
    sample: float | None
    full: bool
    start: Place
    end: Place
    seed: str
    as_json: bool


@dataclass(frozen=True)
class _Lane:
    """A lane, and what is to be compared of it: nothing any more when it has a `verdict`."""

    link: Link
    key: LaneKey
    record: LaneRecord
    segments: Segments
    position: int  # up to which it was copied, or is to be compared
    verdict: LaneVerdict | None = None

    def ended(self, outcome: Outcome, reason: str) -> "_Lane":
        return replace(self, verdict=LaneVerdict(outcome, reason, 0, 0, 0, 0))


async def verify(options: VerifyOptions) -> int:
    """Compares, reports, and returns the exit code. Raises ReplicatorError when it cannot even begin."""
    config = load(options.link_file)
    set_up_logging(logging.WARNING)
    with watch_signals() as session:
        try:
            found = await session.until(_Job(config, options).run())
        except Interrupted as signal:
            click.echo(f"{signal}: interrupted, nothing is proved", err=True)
            return signal.exit_code
    if options.as_json:
        click.echo(json.dumps(found.as_json(), indent=2))
    else:
        from replicator.cli.verify_screen import print_verification  # rich is only loaded for those who see it

        print_verification(found)
    return found.exit_code


class _Job:
    def __init__(self, config: Config, options: VerifyOptions) -> None:
        self.config = config
        self.options = options
        self.links = _chosen(config, options.link)
        self.problems: list[str] = []
        self.clusters = {
            alias: Cluster(cluster.bootstrap, _settings(config, alias)) for alias, cluster in config.clusters.items()
        }
        self._room = asyncio.Semaphore(QUESTIONS_AT_ONCE)

    async def run(self) -> Verification:
        began_s = time.monotonic()
        try:
            lanes = [lane for link in self.links for lane in await self._lanes(link)]
            if not lanes:
                raise click.ClickException(
                    f"nothing to compare: {', '.join(link.name for link in self.links)} has no such lane"
                )
            lanes = await asyncio.gather(*map(self._in_range, await self._same_topics(lanes)))
            fraction = self._fraction(sum(ranges.records_in(lane.segments) for lane in lanes))
            seed = self.options.seed or secrets.token_hex(4)
            reports = await self._compare(lanes, fraction, seed)
        finally:
            await asyncio.gather(*(cluster.close() for cluster in self.clusters.values()))
        return Verification(reports, fraction, seed, time.monotonic() - began_s, self.problems)

    # ---- what is to be compared ----

    async def _lanes(self, link: Link) -> list[_Lane]:
        """The lanes that the link has written down, and that were selected."""
        reader = StateReader(self.config.clusters[link.target], link.name)
        try:
            await asyncio.to_thread(reader.catch_up)
            if reader.damaged:
                what = f"{reader.damaged} records of the link's state are damaged, the first: {reader.damage}"
                self.problems.append(f"{link.name}: {what}")
            return [_mapped(link, key, reader) for key in sorted(reader.lanes) if self._selects(key.topic)]
        finally:
            reader.close()

    def _selects(self, topic: str) -> bool:
        patterns = self.options.topics
        return not patterns or any(re.fullmatch(pattern, topic) for pattern in patterns)

    async def _same_topics(self, lanes: list[_Lane]) -> list[_Lane]:
        """The lanes, those with a verdict whose topics are not what they were. Raises NetworkError."""
        for alias, cluster in self.clusters.items():
            topics = {lane.key.topic for lane in lanes if lane.link.source == alias}
            topics |= {lane.record.target_topic for lane in lanes if lane.link.target == alias}
            if topics:
                await cluster.refresh(topics)
        return [self._same_topic(lane) for lane in lanes]

    def _same_topic(self, lane: _Lane) -> _Lane:
        record = lane.record
        for side, topic, topic_id, outcome in (
            ("source", lane.key.topic, record.topic_id, Outcome.UNKNOWN),
            ("target", record.target_topic, record.target_topic_id, Outcome.DIFFERENT),
        ):
            alias = lane.link.source if side == "source" else lane.link.target
            metadata = self.clusters[alias].topics.get(topic)
            if lane.verdict is None and metadata is None:
                return lane.ended(outcome, f"there is no topic {topic} on {alias} any more")
            found = spell_topic_id(metadata.topic_id) if metadata else ""
            if lane.verdict is None and topic_id and found and found != topic_id:
                return lane.ended(outcome, f"topic {topic} on {alias} was deleted and made anew since it was copied")
        return lane

    async def _in_range(self, lane: _Lane) -> _Lane:
        if lane.verdict or not len(lane.segments):
            return lane
        try:
            start, end = await self._place(lane, self.options.start, 0), await self._place(lane, self.options.end)
        except (ClusterError, NetworkError) as error:
            return lane.ended(Outcome.UNKNOWN, str(error))
        return replace(lane, segments=ranges.clip(lane.segments, start, end), position=min(lane.position, end))

    async def _place(self, lane: _Lane, place: Place, default: int = ranges.NO_END) -> int:
        if not isinstance(place, AtTime):
            return default if place is None else place
        async with self._room:
            return await find_offset(self._source(lane), place.timestamp_ms)

    def _fraction(self, records: int) -> float:
        if self.options.sample is not None:
            return self.options.sample
        return 1.0 if self.options.full or records <= FULL_RECORDS_MAX else FULL_RECORDS_MAX / records

    # ---- comparing ----

    async def _compare(self, lanes: list[_Lane], fraction: float, seed: str) -> list[LaneReport]:
        open_lanes = [index for index, lane in enumerate(lanes) if lane.verdict is None]
        holes_allowed = await self._holes_allowed([lanes[index] for index in open_lanes])
        dead_letters = await asyncio.to_thread(self._dead_letters, lanes)
        claims = [
            MappedClaim(
                self._source(lanes[index]),
                self._target(lanes[index]),
                lanes[index].segments,
                lanes[index].record.producer_id,
                holes_allowed(lanes[index]),
                fraction,
                seed,
                rules=_rules(lanes[index]),
                position=lanes[index].position,
                dead_letters=dead_letters[lanes[index].link.name, lanes[index].key],
            )
            for index in open_lanes
        ]
        total = round(sum(ranges.records_in(claim.segments) for claim in claims) * fraction)
        with showing_progress() as progress:
            verdicts = await verify_lanes(claims, RecordCounter(progress, total).add)
        for index, verdict in zip(open_lanes, verdicts, strict=True):
            lanes[index] = replace(lanes[index], verdict=verdict)
        return [_report(lane) for lane in lanes]

    def _dead_letters(self, lanes: Collection[_Lane]) -> Mapping[tuple[str, LaneKey], set[int]]:
        """By link and lane, the source offsets of what became a dead letter. Blocks meanwhile."""
        found: dict[tuple[str, LaneKey], set[int]] = defaultdict(set)
        topic_ids = {(lane.link.name, lane.key): lane.record.topic_id for lane in lanes}
        for link in self.links:
            cluster = dead_letter_cluster(link, self.config.clusters)
            if cluster is None:
                continue
            try:
                for placed in DeadLetterTopic(cluster, link.dead_letter_topic, link.name).read():
                    lane = link.name, LaneKey(placed.letter.topic, placed.letter.partition)
                    if placed.letter.topic_id in ("", topic_ids.get(lane)):  # a topic of that name may have been before
                        found[lane].add(placed.letter.offset)
            except (ClusterError, NetworkError) as error:
                self.problems.append(f"{link.name}: its dead letters cannot be read: {error}")
        return found

    async def _holes_allowed(self, lanes: Collection[_Lane]) -> Callable[[_Lane], bool]:
        """Whether a log cleaner may have been at a lane. A source that does not tell is taken for like its target."""
        found: dict[tuple[str, str], bool | None] = {}
        for alias, cluster in self.config.clusters.items():
            topics = {lane.key.topic for lane in lanes if lane.link.source == alias}
            topics |= {lane.record.target_topic for lane in lanes if lane.link.target == alias}
            found |= {(alias, topic): told for topic, told in (await compacted_topics(cluster, topics)).items()}

        def allowed(lane: _Lane) -> bool:
            source, target = (lane.link.source, lane.key.topic), (lane.link.target, lane.record.target_topic)
            return bool(found[source]) or found[target] in (True, None)

        return allowed

    def _source(self, lane: _Lane) -> Partition:
        return Partition(self.clusters[lane.link.source], lane.key.topic, lane.key.partition)

    def _target(self, lane: _Lane) -> Partition:
        return Partition(self.clusters[lane.link.target], lane.record.target_topic, lane.key.partition)


def _settings(config: Config, alias: str) -> ConnectionSettings:
    timeout_ms = config.limits.request_timeout_ms
    return ConnectionSettings(alias, config.clusters[alias].client_id, timeout_ms, Pool(POOL_BYTES))


def _chosen(config: Config, name: str) -> list[Link]:
    links = [link for link in config.links if link.name == name] if name else list(config.links)
    if not links:
        raise ConfigError(f"no link `{name}`", hint=f"one of {', '.join(link.name for link in config.links)}")
    return links


def _mapped(link: Link, key: LaneKey, reader: StateReader) -> _Lane:
    lane = _Lane(link, key, reader.lanes[key], NO_SEGMENTS, reader.lanes[key].position)
    try:
        return replace(lane, segments=reader.offset_map(key).segments)
    except ProtocolError as error:
        return lane.ended(Outcome.UNKNOWN, str(error))


def _rules(lane: _Lane) -> Rules:
    link, topic = lane.link, lane.key.topic
    steps = recipe(link, topic, link.source, lane.key.partition)
    policy, prevents_loops = link.policy(topic), link.loops == "prevent"
    return rules_of(link.isolation, steps, policy.record_faults, plug_ins(link, topic), prevents_loops=prevents_loops)


def _report(lane: _Lane) -> LaneReport:
    assert lane.verdict
    claimed, topic = ranges.records_in(lane.segments), lane.record.target_topic
    return LaneReport(
        lane.link.name, lane.key.topic, topic, lane.key.partition, claimed, len(lane.segments), lane.verdict
    )
