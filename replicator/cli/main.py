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


# ---- schema ----


@main.command(epilog=EXAMPLES["schema"])
def schema() -> None:
    """Prints the JSON Schema of link files, for editors."""
    from replicator.config.schema import json_schema

    click.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
