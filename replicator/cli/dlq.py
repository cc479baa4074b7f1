"""`replicator dlq`: a link's dead letters listed, shown, sent back to their topics, and deleted."""

import asyncio
import json
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import click
from msgspec import structs

from replicator.config.load import load
from replicator.config.models import Cluster, Config, Link
from replicator.control.dead_letters import (
    DeadLetterTopic,
    Replays,
    Tally,
    Wanted,
    count_replayed,
    dead_letter_cluster,
    tally,
)
from replicator.control.replay import Edit, Replay, Sent, obstacle
from replicator.control.topics import COMPACTED_SETTINGS, Topics
from replicator.data.dead_letters import Placed, header_name, spell_content
from replicator.data.replays import place_key, replayed_topic
from replicator.errors import ConfigError, kafka_error
from replicator.offsets import choose_link

NOT_ALL = 1  # exit code
PREVIEW_CHARACTERS = 1_000


class DeadLetterBox:
    """A link's dead letters and what was replayed of them, as a link file names them.

    Raises ConfigError where the link has no dead letters.
    """

    def __init__(self, link_file: str, link: str) -> None:
        self.config: Config = load(link_file)
        self.link: Link = choose_link(self.config, link)
        cluster = dead_letter_cluster(self.link, self.config.clusters)
        if cluster is None:
            raise ConfigError(f"link `{self.link.name}` has no dead-letter topic: `dead_letters.on` is none")
        self.cluster: Cluster = cluster
        self.target = self.config.clusters[self.link.target]
        self.topic = DeadLetterTopic(cluster, self.link.dead_letter_topic, self.link.name)

    def replays(self) -> Replays:
        return Replays(self.target, self.link.name).read()

    @property
    def name(self) -> str:
        return f"{self.cluster.alias} {self.topic.topic}"


# ---- list ----


def list_letters(link_file: str, link: str, as_json: bool) -> int:
    """Counts, prints, and returns the exit code. Raises ReplicatorError."""
    box = DeadLetterBox(link_file, link)
    rows = tally(box.topic.read(), box.replays())
    strangers = box.topic.strangers
    if as_json:
        counts = {"letters": sum(row.letters for row in rows), "strangers": strangers}
        head = {"link": box.link.name, "cluster": box.cluster.alias, "topic": box.topic.topic}
        click.echo(json.dumps(head | counts | {"rows": [asdict(row) for row in rows]}, indent=2))
        return 0
    if rows:
        _print_tallies(rows, box.link)
    click.echo(_counted(sum(row.letters for row in rows), box))
    if strangers:
        click.echo(f"{_many(strangers, 'other record')} there: not dead letters of link {box.link.name}")
    return 0


def _print_tallies(rows: list[Tally], link: Link) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from replicator.cli.screens import PIPE_WIDTH

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPE_WIDTH)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(Text(f"topic on {link.source}"), overflow="fold")
    for name in ("partition", "letters", "replayed"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("first", "last"):
        table.add_column(name, no_wrap=True)
    table.add_column("reason", overflow="fold")
    for row in rows:
        numbers = (f"{row.partition}", f"{row.letters:,}", f"{row.replayed:,}")
        table.add_row(Text(row.topic), *numbers, _time(row.first_ms), _time(row.last_ms), Text(_printable(row.reason)))
    console.print(table)


# ---- show ----


@dataclass(frozen=True)
class ShowOptions:
    """The command line of `replicator dlq show`."""

    link_file: str
    link: str
    wanted: Wanted
    limit: int
    as_json: bool


def show(options: ShowOptions) -> int:
    """Prints letters and returns the exit code. Raises ReplicatorError."""
    box = DeadLetterBox(options.link_file, options.link)
    replays = box.replays()
    letters = box.topic.read(options.wanted)
    shown = 0
    with closing(letters):
        for placed in islice(letters, options.limit):
            shown += 1
            if options.as_json:
                click.echo(json.dumps(_as_json(placed, replays)))
            else:
                click.echo("\n".join(_lines(placed, replays)))
    if not options.as_json:
        more = f"; --limit {options.limit} was reached" if shown == options.limit else ""
        click.echo(f"{_counted(shown, box)} shown{more}")
    return 0


def _lines(placed: Placed, replays: Replays) -> Iterator[str]:
    letter = placed.letter
    yield f"--letter {placed.at.partition}:{placed.at.offset}  {_place(placed)}  diverted {_time(placed.at_ms)}"
    yield f"  target    {placed.target_topic}-{letter.partition}"
    yield f"  reason    {_printable(letter.reason)}"
    if letter.error_code:
        row = kafka_error(letter.error_code)
        yield f"  error     {row.name} ({letter.error_code}): {_printable(letter.error_text or row.meaning)}"
    yield f"  attempt   {letter.attempt}"
    if key := replays.records.get(placed.identity):
        yield f"  replayed  from {key.topic} {key.partition}:{key.offset}"
    if letter.timestamp_ms >= 0:
        yield f"  timestamp {_time(letter.timestamp_ms)}"
    yield f"  key       {_content(letter.key)}"
    yield f"  value     {'batch of ' * letter.raw}{_content(letter.value)}"
    for name, value in letter.headers:
        yield f"  header    {_printable(header_name(name))} = {_content(value)}"
    if placed.truncated:
        key_size, value_size = placed.sizes
        yield f"  truncated key was {key_size:,} bytes, value {value_size:,}; the whole was at the place above"


def _as_json(placed: Placed, replays: Replays) -> dict[str, Any]:
    """Plain values; contents in base64, as they may be anything. Keys are only ever added."""
    letter, replayed = placed.letter, replays.records.get(placed.identity)
    return {
        "letter": {"topic": placed.at.topic, "partition": placed.at.partition, "offset": placed.at.offset},
        "link": placed.link,
        "source": placed.source,
        "topic": letter.topic,
        "topic_id": letter.topic_id or None,
        "partition": letter.partition,
        "offset": letter.offset,
        "timestamp_ms": letter.timestamp_ms,
        "target_topic": placed.target_topic,
        "diverted_ms": placed.at_ms,
        "reason": letter.reason,
        "error_code": letter.error_code,
        "error": kafka_error(letter.error_code).name if letter.error_code else None,
        "error_text": letter.error_text,
        "attempt": letter.attempt,
        "raw": letter.raw,
        "truncated": placed.truncated,
        "replayed": structs.asdict(replayed) if replayed else None,
        "key": _base64(letter.key),
        "value": _base64(letter.value),
        "headers": [[header_name(name), _base64(value)] for name, value in letter.headers],
    }


# ---- replay ----


@dataclass(frozen=True)
class ReplayOptions:
    """The command line of `replicator dlq replay`."""

    link_file: str
    link: str
    wanted: Wanted
    limit: int | None
    edit: Edit
    dry_run: bool
    as_json: bool


def replay(options: ReplayOptions) -> int:
    """Sends letters back, prints what became of them, and returns the exit code. Raises ReplicatorError."""
    box = DeadLetterBox(options.link_file, options.link)
    counts: Counter[str] = Counter()
    letters = box.topic.read(options.wanted)
    with closing(letters):
        for sent in islice(_sent(box, options, letters), options.limit):
            counts[sent.outcome] += 1
            if options.as_json:
                click.echo(json.dumps(_sent_as_json(sent)))
            elif sent.problem:
                click.echo(f"{_name(sent.placed)}: {sent.outcome}: {sent.problem}", err=True)
    if not options.as_json:
        click.echo(headline(counts, options.dry_run))
    return NOT_ALL if counts["refused"] or counts["cannot"] else 0


def _sent(box: DeadLetterBox, options: ReplayOptions, letters: Iterator[Placed]) -> Iterator[Sent]:
    """Each letter, and what became of it. Of the same record the first letter is sent."""
    if options.dry_run:
        replays = box.replays()
        for placed in letters:
            problem = obstacle(placed, options.edit)
            yield Sent(placed, "cannot" if problem else "already" if replays.has(placed) else "replayed", problem)
            replays.records.setdefault(placed.identity, place_key(placed.at))
        return
    asyncio.run(_ensure_marks(box))
    with closing(Replay(box.target, box.link, options.edit)) as work:
        work.begin()
        for placed in letters:
            yield work.send(placed)


async def _ensure_marks(box: DeadLetterBox) -> None:
    topics = Topics(box.target, box.target, box.link.dead_letters.replication_factor)
    await topics.ensure(replayed_topic(box.link.name), 1, COMPACTED_SETTINGS)


def headline(counts: Mapping[str, int], dry_run: bool) -> str:
    """The last line: how it ended, in one sentence."""
    words = {
        "replayed": "would be replayed" if dry_run else "replayed",
        "already": "replayed already",
        "refused": "refused again",
        "cannot": "cannot be replayed",
    }
    told = [f"{counts[outcome]:,} {text}" for outcome, text in words.items() if counts[outcome]]
    return ", ".join(told) if told else "no dead letters to replay"


def _sent_as_json(sent: Sent) -> dict[str, Any]:
    placed = sent.placed
    return {
        "letter": {"topic": placed.at.topic, "partition": placed.at.partition, "offset": placed.at.offset},
        "topic": placed.letter.topic,
        "partition": placed.letter.partition,
        "offset": placed.letter.offset,
        "target_topic": placed.target_topic,
        "outcome": sent.outcome,
        "problem": sent.problem,
    }


# ---- purge ----


@dataclass(frozen=True)
class PurgeOptions:
    """The command line of `replicator dlq purge`: one of `everything`, `before` and `older_than_ms`."""

    link_file: str
    link: str
    everything: bool
    before: tuple[tuple[int, int], ...]  # (partition, offset)
    older_than_ms: int | None  # a time, not an age
    yes: bool


def purge(options: PurgeOptions) -> int:
    """Asks, deletes, and returns the exit code. Raises ReplicatorError."""
    box = DeadLetterBox(options.link_file, options.link)
    ends = box.topic.ends()
    before = _bounds(options, box, ends)
    counts = count_replayed(box.topic.read(), box.replays(), before) if before else Counter[bool]()
    if not before or not (counts.total() or options.everything):
        click.echo(f"{_counted(0, box)} to delete")
        return 0
    what = f"{_counted(counts.total(), box)} will be deleted, {counts[False]:,} of them never replayed"
    if not options.yes:
        click.confirm(f"{what}. Go on?", abort=True, err=True)
    box.topic.delete(before)
    click.echo(f"{_counted(counts.total(), box)} deleted, {counts[False]:,} of them never replayed")
    return 0


def _bounds(options: PurgeOptions, box: DeadLetterBox, ends: Mapping[int, int]) -> dict[int, int]:
    """Before which offset of each partition everything goes. Kafka deletes from a log's start on only."""
    if options.everything:
        return {partition: end for partition, end in ends.items() if end}
    for partition, offset in options.before:
        if offset > ends.get(partition, 0):
            end = f"ends at {ends[partition]}" if partition in ends else "does not exist"
            raise ConfigError(f"{box.name}-{partition} {end}: there is no offset before {offset} to delete up to")
    if options.older_than_ms is None:
        return dict(options.before)
    return _older_than(options.older_than_ms, box, ends)


def _older_than(time_ms: int, box: DeadLetterBox, ends: Mapping[int, int]) -> dict[int, int]:
    """Up to the first letter of each partition that was diverted at that time or later."""
    found: dict[int, int] = {}
    for placed in box.topic.read():
        if placed.at_ms >= time_ms:
            found.setdefault(placed.at.partition or 0, placed.at.offset or 0)
    return {partition: found.get(partition, end) for partition, end in ends.items() if found.get(partition, end)}


# ---- spelling ----


def _place(placed: Placed) -> str:
    what = "batch at" if placed.letter.raw else "record"
    return f"{what} {placed.source} {placed.letter.topic}-{placed.letter.partition} offset {placed.letter.offset}"


def _name(placed: Placed) -> str:
    return f"{placed.at.partition}:{placed.at.offset} ({_place(placed)})"


def _counted(count: int, box: DeadLetterBox) -> str:
    return f"{_many(count, 'dead letter')} of link {box.link.name} in {box.name}"


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _time(at_ms: int) -> str:
    """RFC 3339; a number where no calendar goes so far."""
    try:
        return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return str(at_ms)


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)


def _content(content: bytes | None) -> str:
    return "null" if content is None else spell_content(content, PREVIEW_CHARACTERS)


def _base64(content: bytes | None) -> str | None:
    return None if content is None else b64encode(content).decode()
