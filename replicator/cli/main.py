"""The `replicator` command: its subcommands, their options, and their help. What they do is in files of their names.

Those are imported when their command runs, so `--help` is quick and a copy loads no more than it needs. Whatever
goes wrong is one line on stderr and an exit code: 2 for input that cannot be meant, 1 for the rest.
"""

import json
import logging
import re
from typing import Any

import click

from replicator import __version__
from replicator.errors import ConfigError, ReplicatorError

EXAMPLES = {
    "group": """\b
        Examples:
          replicator demo
          replicator copy --from us:9092 --to eu:9092 --topics 'orders.*'
          replicator run link.yaml""",
    "run": """\b
        Example of a link file (its JSON Schema: replicator schema):
          clusters:
            us: {bootstrap.servers: "us-1:9092,us-2:9092"}
            eu: {bootstrap.servers: "eu-1:9092"}
          links:
            - {source: us, target: eu, topics: {include: ["orders.*"]}, rename: {prefix: us.}}""",
    "copy": """\b
        Examples:
          replicator copy --from us:9092 --to eu:9092 --topics orders --topics 'clicks-.*'
          replicator copy --from us:9092 --to us:9092 --topics orders --rename-prefix copy-of-
          replicator copy --from us:9092 --to eu:9092 --topics '.*' --start 2026-11-24T00:00:00Z --json""",
    "demo": """\b
        Example:
          replicator demo --seconds 15 --records 100000""",
    "status": """\b
        Examples:
          replicator status link.yaml
          replicator status link.yaml --link us-eu --lanes
          replicator status link.yaml --json | jq '.links[].lanes[] | select(.good | not)'""",
    "offsets": """\b
        Examples:
          replicator offsets translate link.yaml --group billing
          replicator offsets translate link.yaml --link us-eu --topic orders --partition 3 --offset 12345
          replicator offsets translate link.yaml --reverse --topic us.orders --partition 3 --offset 777 --json""",
    "verify": """\b
        Examples:
          replicator verify link.yaml
          replicator verify link.yaml --link us-eu --topics 'orders.*' --full
          replicator verify link.yaml --sample 0.01 --seed 7f3a --json
          replicator verify link.yaml --from 2026-11-24T00:00:00Z --to 2026-11-25T00:00:00Z""",
    "cutover": """\b
        Examples:
          replicator cutover link.yaml billing --dry-run
          replicator cutover link.yaml billing invoices --link us-eu --timeout 60""",
    "dlq": """\b
        Examples:
          replicator dlq list link.yaml
          replicator dlq show link.yaml --topic orders --limit 5
          replicator dlq replay link.yaml --topic orders --dry-run
          replicator dlq replay link.yaml --letter 0:17 --set-header fixed=yes --value-file mended.json
          replicator dlq purge link.yaml --older-than 30d""",
    "schema": """\b
        Example:
          replicator schema > link.schema.json""",
}


class BadInput(click.ClickException):
    """Input that is sound for click, but not for us."""

    exit_code = 2


class Commands(click.Group):
    """Turns the package's errors into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ReplicatorError as error:
            raise (BadInput if isinstance(error, ConfigError) else click.ClickException)(str(error)) from None


@click.group(cls=Commands, epilog=EXAMPLES["group"], context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="replicator")
def main() -> None:
    """Carries Kafka logs between clusters: moves record batches as they are, exactly once."""


def _run(work: Any) -> Any:
    import uvloop

    return uvloop.run(work)


# ---- run ----


@main.command(epilog=EXAMPLES["run"])
@click.argument("link_file", type=click.Path(), metavar="LINK.yaml")
@click.option("--quiet", "-q", is_flag=True, help="Only warnings and errors.")
@click.option("--verbose", "-v", is_flag=True, help="Every change of every lane, too.")
@click.option("--json-log", is_flag=True, help="The log as JSON lines.")
def run(link_file: str, quiet: bool, verbose: bool, json_log: bool) -> None:
    """Runs the links of a file until told to stop.

    The log goes to stderr, with the figures every 10 seconds; on a terminal they stay in view instead. SIGTERM or
    Ctrl-C finishes what is under way and exits 0; a second one exits at once.
    """
    from replicator.cli.run import run as run_links

    _run(run_links(link_file, logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO, json_log))


# ---- copy ----


def _address(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    from replicator.config.load import parse_bootstrap

    try:
        parse_bootstrap(value)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from None
    return value


def _patterns(ctx: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    for pattern in value:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise click.BadParameter(f"`{pattern}` is not a regular expression: {error}") from None
    return value


def _prefix(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{0,100}", value):
        raise click.BadParameter(f"`{value}` is not up to 100 letters, digits, `.`, `_` and `-`")
    return value


def _until(ctx: click.Context, parameter: click.Parameter, value: str) -> str | int:
    if value != "now" and not re.fullmatch(r"[0-9]{1,18}", value):
        raise click.BadParameter(f"`{value}` is neither `now` nor an offset")
    return value if value == "now" else int(value)


def _start(ctx: click.Context, parameter: click.Parameter, value: str) -> str | int:
    import msgspec

    from replicator.config.models import StartAt

    if value in ("earliest", "latest"):
        return value
    start = int(value) if re.fullmatch(r"[0-9]{1,18}", value) else value
    try:
        msgspec.convert({"timestamp": start}, StartAt)
    except msgspec.ValidationError:
        hint = "a time such as 2026-11-24T07:38:57Z, or milliseconds since 1970"
        raise click.BadParameter(f"`{value}` is neither `earliest` nor `latest` nor {hint}") from None
    return start


@main.command(epilog=EXAMPLES["copy"], short_help="Copies topics as they are now, and proves it.")
@click.option("--from", "source", required=True, metavar="HOST:PORT", callback=_address, help="Cluster to read.")
@click.option("--to", "target", required=True, metavar="HOST:PORT", callback=_address, help="Cluster to write.")
@click.option(
    "--topics",
    required=True,
    multiple=True,
    metavar="RE",
    callback=_patterns,
    help="Topics to copy: a name or a regular expression that matches the whole name. May be repeated.",
)
@click.option(
    "--exclude",
    multiple=True,
    metavar="RE",
    callback=_patterns,
    help="Topics to leave out, besides internal ones. May be repeated.",
)
@click.option(
    "--until",
    default="now",
    show_default=True,
    metavar="now|OFFSET",
    callback=_until,
    help="Where to end in each partition: its end at the start of the copy, or before an offset.",
)
@click.option(
    "--start",
    default="earliest",
    show_default=True,
    metavar="earliest|latest|TIME",
    callback=_start,
    help="Where to begin: TIME is like 2026-11-24T07:38:57Z, or milliseconds since 1970.",
)
@click.option(
    "--rename-prefix",
    default="",
    metavar="P",
    callback=_prefix,
    help="Put in front of topic names on the target.",
)
@click.option("--workers", type=click.IntRange(1, 256), help="Processes. Default: one a core, at most 4.")
@click.option("--verify/--no-verify", default=True, help="Read both sides again and compare. Default: yes.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON on stdout.")
def copy(**options: Any) -> None:
    """Copies topics as they are now, then proves that both sides are equal.

    Target topics are created if they are missing; those that exist must be empty. The proof compares, batch by
    batch, record counts, offsets, timestamps and checksums of the payload on both sides.

    Exit code: 0 all copied (and verified), 1 something failed or differs, 2 bad input, 130 interrupted.
    """
    from replicator.cli.copy import CopyOptions
    from replicator.cli.copy import copy as copy_topics

    raise SystemExit(_run(copy_topics(CopyOptions(**options))))


# ---- demo ----


@main.command(epilog=EXAMPLES["demo"], short_help="Shows a live replication, without Kafka.")
@click.option(
    "--seconds", type=click.IntRange(1, 20), default=6, show_default=True, help="How long to produce records."
)
@click.option(
    "--records",
    type=click.IntRange(1, 120_000),
    default=60_000,
    show_default=True,
    help="How many to produce.",
)
def demo(seconds: int, records: int) -> None:
    """Shows a live replication between two small clusters inside this process.

    Nothing to install or to start: it produces records into one cluster while a link carries them to the other, then
    compares both sides, once with the replicator's own verification and once by an ordinary consumer.
    """
    from replicator.cli.demo import demo as run_demo

    raise SystemExit(_run(run_demo(seconds, records)))


# ---- status ----


@main.command(epilog=EXAMPLES["status"], short_help="Shows the state of every link and lane.")
@click.argument("link_file", type=click.Path(), metavar="LINK.yaml")
@click.option("--link", "only", metavar="NAME", help="Only this link. Default: all of the file.")
@click.option("--lanes", "all_lanes", is_flag=True, help="Every lane, not only the worst 20 of a link.")
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON on stdout.")
def status(link_file: str, only: str | None, all_lanes: bool, as_json: bool) -> None:
    """Shows every link and lane of a file: state, position, lag, owner, and why it stands where it does.

    It reads what the owners have written on the target cluster, and asks the source how far its logs go, so it runs
    anywhere and disturbs nobody. A lane that nobody has reported on for 10 checkpoint intervals (at least 30 s) is
    `silent`: whatever it was, nobody says that it still is.

    Exit code: 0 every lane is copying, tailing or done; 3 some are not, are silent, or a selected topic has no lane
    yet; 1 a link's state could not be read; 2 bad input.
    """
    from replicator.cli.status import status as show_status

    raise SystemExit(show_status(link_file, only, as_json, all_lanes))


# ---- offsets ----


@main.group(epilog=EXAMPLES["offsets"], short_help="Offsets on the other cluster.")
def offsets() -> None:
    """Where a consumer goes on reading on the other cluster: exact, from what the link wrote down on its target."""


@offsets.command(epilog=EXAMPLES["offsets"], short_help="Translates offsets, or those of a consumer group.")
@click.argument("link_file", type=click.Path(), metavar="LINK.yaml")
@click.option("--link", default="", metavar="NAME", help="Which link of the file. Not needed where it is the only one.")
@click.option("--topic", default="", metavar="T", help="A topic of the source; with --reverse one of the target.")
@click.option("--partition", type=click.IntRange(0, 2**31 - 1), metavar="P", help="Its partition.")
@click.option(
    "--offset", type=click.IntRange(0, 2**63 - 1), multiple=True, metavar="N", help="Of the next record. Repeatable."
)
@click.option("--group", default="", metavar="G", help="Instead of these: whatever this group has committed.")
@click.option("--reverse", is_flag=True, help="From the target cluster to the source.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON on stdout.")
def translate(**options: Any) -> None:
    """Translates offsets of the source cluster to the target, or back.

    An offset is that of the next record to read, as groups commit it. Nothing is committed here.

    Exit code: 0 all translated, 3 some have no translation (yet): one line each on stderr, 1 it could not be found
    out, 2 bad input.
    """
    by_place = (bool(options["topic"]), options["partition"] is not None, bool(options["offset"]))
    if any(by_place) if options["group"] else not all(by_place):
        raise click.UsageError("give either --group, or --topic, --partition and --offset")
    from replicator.cli.offsets import Question
    from replicator.cli.offsets import translate as translate_offsets

    raise SystemExit(translate_offsets(Question(**options)))


# ---- verify ----


def _range_end(ctx: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    import msgspec

    from replicator.cli.verify import AtTime
    from replicator.config.models import StartAt

    if value is None or re.fullmatch(r"[0-9]{1,18}", value):
        return value and int(value)
    try:
        return AtTime(msgspec.convert({"timestamp": value}, StartAt).timestamp_ms)
    except msgspec.ValidationError:
        raise click.BadParameter(f"`{value}` is neither an offset nor a time such as 2026-11-24T07:38:57Z") from None


@main.command(epilog=EXAMPLES["verify"], short_help="Compares what was copied with what is there.")
@click.argument("link_file", type=click.Path(), metavar="LINK.yaml")
@click.option("--link", default="", metavar="NAME", help="Only this link. Default: all of the file.")
@click.option(
    "--topics",
    multiple=True,
    metavar="RE",
    callback=_patterns,
    help="Source topics: a name or a regular expression that matches the whole name. May be repeated. Default: all.",
)
@click.option(
    "--sample",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="FRACTION",
    help="Compare random ranges that hold this fraction of the records, and at least one of each partition.",
)
@click.option("--full", is_flag=True, help="Compare everything. Default: only a sample of more than 1,000,000 records.")
@click.option("--from", "start", metavar="OFFSET|TIME", callback=_range_end, help="From this source offset or time on.")
@click.option("--to", "end", metavar="OFFSET|TIME", callback=_range_end, help="Up to, and without, this one.")
@click.option("--seed", default="", metavar="TEXT", help="Of an earlier sample, to compare the same ranges again.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON on stdout.")
def verify(**options: Any) -> None:
    """Compares what links have copied with the source, record by record, through their offset maps.

    Every record that was copied must be on the target at its place, with the same key, value, headers and timestamp;
    what was not copied must not be there; every batch must match its own checksum. What one of the two clusters has
    deleted since is counted, not compared. Both are only read, and the links may be running.

    Exit code: 0 something was compared, and all of it is equal; 3 there are differences, the first one of each
    partition is shown; 1 it could not be compared, or not all of it; 2 bad input; 130 interrupted.
    """
    if options["full"] and options["sample"] is not None:
        raise click.UsageError("give either --full or --sample")
    from replicator.cli.verify import VerifyOptions
    from replicator.cli.verify import verify as verify_links

    raise SystemExit(_run(verify_links(VerifyOptions(**options))))


# ---- cutover ----


@main.command(epilog=EXAMPLES["cutover"], short_help="Moves consumer groups to the target, and proves it.")
@click.argument("link_file", type=click.Path(), metavar="LINK.yaml")
@click.argument("groups", nargs=-1, required=True, metavar="GROUP...")
@click.option("--link", default="", metavar="NAME", help="Which link of the file. Not needed where it is the only one.")
@click.option("--dry-run", is_flag=True, help="Look once, and commit nothing.")
@click.option(
    "--timeout",
    type=click.FloatRange(0, 86_400),
    default=300,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for a group's consumers to stop, and for its last records to be replicated.",
)
@click.option("--json", "as_json", is_flag=True, help="The result as JSON on stdout.")
def cutover(**options: Any) -> None:
    """Moves consumer groups to the target: nothing is skipped, and nothing read again.

    Stop a group's consumers on the source, run this, and start them on the target. It waits until the group is empty
    and everything below its last offsets is replicated, commits the same places on the target, reads them back, and
    prints source offset, target offset and what was read back for each partition. The link must be running. Consumers
    that only call assign() are in no group: that they have stopped is for you to know.

    Exit code: 0 every partition of every group is proven (dry run: would be), 3 some are not: each with its reason,
    1 a cluster could not be asked, 2 bad input, 130 interrupted.
    """
    from replicator.cli.cutover import CutoverOptions
    from replicator.cli.cutover import cutover as move_groups

    raise SystemExit(_run(move_groups(CutoverOptions(**options))))


# ---- dlq ----


def _letter(ctx: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    places = [re.fullmatch(r"([0-9]{1,9}):([0-9]{1,18})", each) for each in value]
    for text, place in zip(value, places, strict=True):
        if place is None:
            raise click.BadParameter(f"`{text}` is not PARTITION:OFFSET")
    return tuple((int(place[1]), int(place[2])) for place in places if place)


def _header(ctx: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> tuple[tuple[str, bytes], ...]:
    for text in value:
        if "=" not in text:
            raise click.BadParameter(f"`{text}` is not NAME=VALUE")
    return tuple((name, content.encode()) for name, _, content in (text.partition("=") for text in value))


def _time_or_age(ctx: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Milliseconds since 1970."""
    import time

    import msgspec

    from replicator.config.models import StartAt

    if value is None:
        return None
    age = re.fullmatch(r"([0-9]{1,6})([smhd])", value)
    if age:
        return time.time_ns() // 1_000_000 - int(age[1]) * {"s": 1, "m": 60, "h": 3_600, "d": 86_400}[age[2]] * 1000
    try:
        return msgspec.convert({"timestamp": value}, StartAt).timestamp_ms
    except msgspec.ValidationError:
        hint = "neither an age such as 36h or 7d nor a time such as 2026-11-24T07:38:57Z"
        raise click.BadParameter(f"`{value}` is {hint}") from None


def _which_letters(command: Any) -> Any:
    """The options of those commands that choose among dead letters."""
    place = "where the record stood on the source"
    options = [
        click.argument("link_file", type=click.Path(), metavar="LINK.yaml"),
        click.option("--link", default="", metavar="NAME", help="Which link of the file. Not needed for the only one."),
        click.option("--topic", multiple=True, metavar="RE", callback=_patterns, help=f"Topic {place}. Repeatable."),
        click.option("--partition", type=click.IntRange(0), metavar="P", help=f"Partition {place}."),
        click.option("--offset", type=click.IntRange(0), metavar="N", help=f"Offset {place}."),
        click.option("--reason", multiple=True, metavar="RE", callback=_patterns, help="The whole reason. Repeatable."),
        click.option(
            "--letter", multiple=True, metavar="P:N", callback=_letter, help="A letter as `show` names it. Repeatable."
        ),
        click.option("--json", "as_json", is_flag=True, help="JSON on stdout, a line each."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _wanted(options: dict[str, Any]) -> dict[str, Any]:
    """The options, with those of `_which_letters` as one."""
    from replicator.control.dead_letters import Wanted

    chosen = [options.pop(name) for name in ("topic", "partition", "offset", "reason", "letter")]
    return options | {"wanted": Wanted(*chosen)}


@main.group(epilog=EXAMPLES["dlq"], short_help="Dead letters: list, show, replay, purge.")
def dlq() -> None:
    """Dead letters: records that a link could not copy, and keeps in its dead-letter topic with the reason."""


@dlq.command("list", epilog=EXAMPLES["dlq"], short_help="Counts them by topic, partition and reason.")
@click.argument("link_file", type=click.Path(), metavar="LINK.yaml")
@click.option("--link", default="", metavar="NAME", help="Which link of the file. Not needed where it is the only one.")
@click.option("--json", "as_json", is_flag=True, help="The counts as JSON on stdout.")
def dlq_list(**options: Any) -> None:
    """Counts a link's dead letters by topic, partition and reason, with the times of the first and the last."""
    from replicator.cli.dlq import list_letters

    raise SystemExit(list_letters(**options))


@dlq.command("show", epilog=EXAMPLES["dlq"], short_help="Shows them, with headers and what they hold.")
@_which_letters
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, metavar="N", help="At most so many.")
def dlq_show(**options: Any) -> None:
    """Shows dead letters: which record it was, why it is here, headers, and the start of key and value."""
    from replicator.cli.dlq import ShowOptions, show

    raise SystemExit(show(ShowOptions(**_wanted(options))))


@dlq.command("replay", epilog=EXAMPLES["dlq"], short_help="Sends them back to their topics, each once.")
@_which_letters
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Look at so many at most. Default: all.")
@click.option("--drop-header", multiple=True, metavar="NAME", help="Leave out this header. Repeatable.")
@click.option(
    "--set-header", multiple=True, metavar="NAME=VALUE", callback=_header, help="Instead of all of it. Repeatable."
)
@click.option("--key-file", type=click.File("rb"), metavar="FILE", help="What to put in place of the key: all of it.")
@click.option("--value-file", type=click.File("rb"), metavar="FILE", help="The same for the value.")
@click.option("--now", is_flag=True, help="With the time of now. Default: the record's own timestamp.")
@click.option("--dry-run", is_flag=True, help="Say what would be sent, and send nothing.")
def dlq_replay(**options: Any) -> None:
    """Sends dead letters back to their target topics, each record exactly once however often this is run.

    Mend the cause first, or edit what is sent. A record goes to the end of its partition, with its own key, value,
    headers and timestamp and a header `replicator.replayed`, in one transaction with the mark that it was replayed.
    A second replay of the same link takes over from the first. Who reads uncommitted records may see one twice if a
    replay is killed.

    Exit code: 0 all were replayed, now or before, 1 some were refused again or cannot be, one line each on stderr, or
    it could not be done, 2 bad input.
    """
    from replicator.cli.dlq import ReplayOptions, replay
    from replicator.control.replay import Edit

    drop, add, now = (options.pop(name) for name in ("drop_header", "set_header", "now"))
    files = [options.pop(name) for name in ("key_file", "value_file")]
    if any(files) and len(options["letter"]) != 1:
        raise click.UsageError("--key-file and --value-file are for a single record: name it with --letter")
    key, value = (file and file.read() for file in files)
    edit = Edit(drop, add, key, value, now)
    raise SystemExit(replay(ReplayOptions(**_wanted(options), edit=edit)))


@dlq.command("purge", epilog=EXAMPLES["dlq"], short_help="Deletes them, from the oldest on.")
@click.argument("link_file", type=click.Path(), metavar="LINK.yaml")
@click.option("--link", default="", metavar="NAME", help="Which link of the file. Not needed where it is the only one.")
@click.option("--all", "everything", is_flag=True, help="All that are there now.")
@click.option(
    "--before", multiple=True, metavar="P:N", callback=_letter, help="In this partition those before this offset."
)
@click.option(
    "--older-than",
    "older_than_ms",
    metavar="AGE|TIME",
    callback=_time_or_age,
    help="From the oldest on until the first that was diverted since: 7d, 36h, or a time.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
def dlq_purge(**options: Any) -> None:
    """Deletes dead letters for good, after telling how many, and how many of them were never replayed.

    Kafka deletes from the start of a partition on, so none is deleted before those older than it. The numbers of
    partitions and offsets are those that `show` gives with --letter.
    """
    if bool(options["everything"]) + bool(options["before"]) + (options["older_than_ms"] is not None) != 1:
        raise click.UsageError("give one of --all, --before and --older-than")
    from replicator.cli.dlq import PurgeOptions, purge

    raise SystemExit(purge(PurgeOptions(**options)))


# ---- schema ----


@main.command(epilog=EXAMPLES["schema"])
def schema() -> None:
    """Prints the JSON Schema of link files, for editors."""
    from replicator.config.schema import json_schema

    click.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
