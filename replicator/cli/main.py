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


# ---- schema ----


@main.command(epilog=EXAMPLES["schema"])
def schema() -> None:
    """Prints the JSON Schema of link files, for editors."""
    from replicator.config.schema import json_schema

    click.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
