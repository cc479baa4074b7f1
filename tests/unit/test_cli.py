"""The command line: what it refuses and how it says so, and the pieces that spell figures and results."""

import asyncio
import json
import logging
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from replicator import __version__
from replicator.cli import figures, logs
from replicator.cli.copy import CopyOptions
from replicator.cli.figures import Figures, Rate
from replicator.cli.main import main
from replicator.cli.results import WORDS, LaneResult, Results, by_topic
from replicator.cli.session import Interrupted, watch_signals
from replicator.config.models import StartAt
from replicator.data.orders import LaneSpec
from replicator.data.states import LANES_MAX, LaneState, Rows, row_dtype
from replicator.data.verify import LaneVerdict, Outcome

COPY = ["copy", "--from", "127.0.0.1:1", "--to", "127.0.0.1:2", "--topics", "orders"]
LINK = """\
clusters:
  us: {bootstrap.servers: "127.0.0.1:1"}
  eu: {bootstrap.servers: "127.0.0.1:1"}
links:
  - {source: us, target: eu, rename: {prefix: us.}, topics: {include: [orders]}}
"""


def invoke(*arguments: str) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), "a traceback"
    return result


def last_line(result: Result) -> str:
    return result.stderr.splitlines()[-1]


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that refuses connections: bound, so nobody else gets it, but not listened on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


# ---- input ----


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--from", "us"], "'--from': `us` is not an address; write host:port or [IPv6]:port"),
        (["--to", "eu:99999"], "'--to': `eu:99999` has no possible port; 1 to 65535"),
        (["--topics", "a("], "'--topics': `a(` is not a regular expression: missing )"),
        (["--exclude", "*"], "'--exclude': `*` is not a regular expression: nothing to repeat"),
        (["--until", "later"], "'--until': `later` is neither `now` nor an offset"),
        (["--until", "-1"], "'--until': `-1` is neither `now` nor an offset"),
        (["--start", "yesterday"], "'--start': `yesterday` is neither `earliest` nor `latest` nor a time such as"),
        (["--start", "2026-11-24T07:38:57"], "'--start': `2026-11-24T07:38:57` is neither"),
        (["--workers", "0"], "'--workers': 0 is not in the range"),
        (["--rename-prefix", "a/b"], "'--rename-prefix': `a/b` is not up to 100 letters"),
        (["--to", "127.0.0.1:1"], "Error: link `source-target` would feed itself: source and target are one cluster"),
        (["--progress"], "No such option"),
    ],
)
def test_bad_input_of_copy(arguments: list[str], line: str) -> None:
    result = invoke(*COPY, *arguments)
    assert result.exit_code == 2
    assert line in last_line(result)
    assert result.stdout == ""


@pytest.mark.parametrize("option", ["--from", "--to", "--topics"])
def test_copy_needs_both_clusters_and_topics(option: str) -> None:
    at = COPY.index(option)
    result = invoke(*COPY[:at], *COPY[at + 2 :])
    assert result.exit_code == 2
    assert f"Missing option '{option}'" in last_line(result)


def test_bad_input_of_run(tmp_path: Path) -> None:
    file = tmp_path / "link.yaml"
    result = invoke("run", str(file))
    assert (result.exit_code, result.stderr) == (2, f"Error: {file}: cannot be read: No such file or directory\n")
    file.write_text(LINK.replace("source: us", "source: uss"))
    result = invoke("run", str(file))
    assert (result.exit_code, result.stderr) == (2, f"Error: {file}:5:14: no cluster `uss`; did you mean `us`?\n")
    assert invoke("run").exit_code == 2


def test_an_unreachable_cluster_is_one_line(tmp_path: Path, closed_port: int) -> None:
    file = tmp_path / "link.yaml"
    file.write_text(LINK.replace(":1", f":{closed_port}"))
    copy = ("copy", "--from", f"127.0.0.1:{closed_port}", "--to", f"localhost:{closed_port}", "--topics", "orders")
    for arguments in (("run", str(file)), copy):
        result = invoke(*arguments)
        assert result.exit_code == 1
        assert len(result.stderr.splitlines()) == 1
        assert f":{closed_port}: [Errno" in result.stderr
        assert result.stdout == ""


def test_options_become_the_configuration_of_a_link() -> None:
    options = CopyOptions("us:1", "eu:1", ("a", "b.*"), ("b2",), "now", "us.", 1_700_000_000_000, 3, True, False)
    config = options.config()
    (link,) = config.links
    assert config.workers == 3
    assert config.clusters["source"].bootstrap == (("us", 1),)
    assert link.start == StartAt(1_700_000_000_000)
    assert link.target_topic("a") == "us.a"
    assert [link.selects(topic) for topic in ("a", "b1", "b2", "c")] == [True, True, False, False]
    everything = CopyOptions("us:1", "eu:1", (".*",), ("b2",), "now", "", "earliest", None, True, False).config()
    names = ("a", "b2", "__consumer_offsets", "mm2-offsets.us.internal")
    assert [everything.links[0].selects(topic) for topic in names] == [True, False, False, False]


def test_version_schema_and_help() -> None:
    assert invoke("--version").stdout == f"replicator, version {__version__}\n"
    assert json.loads(invoke("schema").stdout)["title"] == "replicator link file"
    for command in (main, *main.commands.values()):
        arguments = ["--help"] if command is main else [str(command.name), "--help"]
        text = invoke(*arguments).stdout
        assert "Example" in text
        assert f"replicator {command.name if command is not main else 'copy'}" in text or "clusters:" in text


# ---- signals ----


def test_the_first_signal_interrupts_and_is_told_apart() -> None:
    async def interrupted_by(number: int) -> Interrupted:
        with watch_signals() as session:
            assert await session.until(asyncio.sleep(0, "done")) == "done"
            asyncio.get_running_loop().call_later(0.01, os.kill, os.getpid(), number)
            with pytest.raises(Interrupted) as raised:
                await session.until(asyncio.sleep(60))
            with pytest.raises(Interrupted):
                await session.until(asyncio.sleep(60))
            return raised.value

    for number in (signal.SIGTERM, signal.SIGINT):
        interrupted = asyncio.run(interrupted_by(number))
        assert (str(interrupted), interrupted.exit_code) == (number.name, 128 + number)


def test_errors_of_the_work_come_through() -> None:
    async def fail() -> None:
        raise click.ClickException("no")

    async def work() -> None:
        with watch_signals() as session:
            await session.until(fail())

    with pytest.raises(click.ClickException, match="no"):
        asyncio.run(work())


# ---- log lines ----


def record(**extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("replicator", logging.WARNING, __file__, 1, "%s: paused", ("us-eu orders-3",), None)
    made.created = 1_795_505_937.25
    made.__dict__.update(extra)
    return made


def test_log_lines() -> None:
    assert logs.LineFormatter().format(record()) == "2026-11-24T07:38:57Z WARNING us-eu orders-3: paused"
    line = json.loads(logs.JsonFormatter().format(record(fields={"records": 5})))
    expected = {"time": "2026-11-24T07:38:57Z", "level": "warning", "message": "us-eu orders-3: paused", "records": 5}
    assert line == expected


def test_lines_are_lent_to_a_display_and_given_back(capsys: pytest.CaptureFixture[str]) -> None:
    log, lines = logging.getLogger("replicator"), []
    before = log.handlers[:], log.propagate, log.level
    try:
        logs.set_up_logging(logging.INFO)
        with logs.logging_to(lines.append):
            log.info("above the display")
            log.debug("below the level")
        log.info("on stderr")
    finally:
        log.handlers[:], log.propagate = before[:2]
        log.setLevel(before[2])
    assert [line.split(" ", 1)[1] for line in lines] == ["INFO above the display"]
    assert capsys.readouterr().err.endswith("INFO on stderr\n")


# ---- figures ----


@pytest.fixture
def rows() -> Iterator[Rows]:
    with tempfile.TemporaryFile() as file:
        file.truncate(LANES_MAX * row_dtype().itemsize)
        yield Rows(file.fileno())


def test_states_of_all_lanes_are_the_states_of_each(rows: Rows) -> None:
    cases = [
        (state, version, position, fetch, high, stop)
        for state in LaneState
        for version in (0, 1, 2, 3)
        for position, fetch, high, stop in [(5, 6, 9, 10), (10, 10, 12, 10), (9, 9, 9, 10), (0, 0, 0, 0), (5, 4, 3, 6)]
    ]
    for index, (state, version, position, fetch, high, stop) in enumerate(cases):
        row = rows.array[index]
        row["state"], row["version"], row["fetch_offset"], row["last_stable_offset"] = state, version, fetch, high
        row["stop_offset"], row["high_watermark"] = stop, high + 5
        row["checkpoints"]["position"][version & 1] = position
        row["checkpoints"]["position"][1 - (version & 1)] = -77
    states = figures.lane_states(rows, range(len(cases)))
    assert states.tolist() == [rows.state(index) for index in range(len(cases))]
    assert {LaneState.COPYING, LaneState.TAILING, LaneState.DONE} <= set(states.tolist())
    assert figures.lane_positions(rows, range(len(cases))).tolist() == [case[2] for case in cases]
    assert [case[0] for case in cases] == [row["state"] for row in rows.array[: len(cases)]], "rows were written to"


def test_rates_over_a_sliding_window() -> None:
    meter = figures.RateMeter()
    assert meter.update(Figures(100.0, 0, 0, 0, {})) == (0, 0)
    rates = [meter.update(Figures(100.0 + second, 50 * second, 700 * second, 0, {})) for second in range(1, 20)]
    assert all(rate == (50, 700) for rate in rates)
    rates = [meter.update(Figures(120.0 + second, 950, 13_300, 0, {})) for second in range(20)]
    assert rates[-1] == (0, 0)


@pytest.mark.parametrize(
    ("spelled", "text"),
    [
        (figures.spell_bytes(0), "0 B"),
        (figures.spell_bytes(999), "999 B"),
        (figures.spell_bytes(999.7), "1.00 kB"),
        (figures.spell_bytes(12_345), "12.3 kB"),
        (figures.spell_bytes(340_400_000), "340 MB"),
        (figures.spell_bytes(999_600_000), "1.00 GB"),
        (figures.spell_bytes(5_000_000_000_000_000), "5,000 TB"),
        (figures.spell_seconds(0.04), "0.0 s"),
        (figures.spell_seconds(9.96), "10 s"),
        (figures.spell_seconds(59.6), "1 min 0 s"),
        (figures.spell_seconds(3725), "1 h 2 min"),
        (figures.spell_rate(Rate(1234.5, 6_700_000)), "1,234 records/s · 6.70 MB/s"),
        (
            figures.spell_states({LaneState.TAILING: 10, LaneState.TARGET_LOST: 1}),
            "11 lanes: 10 tailing, 1 target lost",
        ),
        (figures.spell_states({}), "0 lanes"),
        (figures.counted(1, "record"), "1 record"),
    ],
)
def test_spelling(spelled: str, text: str) -> None:
    assert spelled == text


# ---- results ----


def lane(topic: str, partition: int, state: LaneState, outcome: Outcome | None = None, why: str = "") -> LaneResult:
    spec = LaneSpec(0, "a-b", "a", "b", topic, f"x.{topic}", partition, bytes(16), 1, 0)
    verdict = LaneVerdict(outcome, why, 10, 1000, 1, 0) if outcome else None
    return LaneResult(spec, state, "" if verdict else why, 10, 1000, 1.0 + partition, verdict)


def results(*lanes: LaneResult, interrupted: bool = False) -> Results:
    return Results(by_topic(lanes), 2.5, 40, interrupted)


DONE = LaneState.DONE


@pytest.mark.parametrize(
    ("made", "word"),
    [
        (lane("t", 0, DONE, Outcome.IDENTICAL), "verified"),
        (lane("t", 0, DONE), "copied"),
        (lane("t", 0, DONE, Outcome.EQUAL, "zstd"), "equal"),
        (lane("t", 0, LaneState.COPYING), "interrupted"),
        (lane("t", 0, LaneState.PAUSED, why="no leader"), "interrupted"),
        (lane("t", 0, DONE, Outcome.UNKNOWN, "gone"), "unverified"),
        (lane("t", 0, DONE, Outcome.DIFFERENT, "lost"), "differs"),
        (lane("t", 0, LaneState.GAP, why="gone"), "failed"),
    ],
)
def test_the_word_for_a_lane(made: LaneResult, word: str) -> None:
    assert made.outcome == word
    assert results(made).outcome == word


def test_the_worst_lane_speaks_for_its_topic_and_the_worst_topic_for_all() -> None:
    good = [lane("good", n, DONE, Outcome.IDENTICAL) for n in range(3)]
    bad = [lane("bad", 0, DONE, Outcome.IDENTICAL), lane("bad", 1, DONE, Outcome.DIFFERENT, "they differ")]
    made = results(*good, *bad)
    assert [(topic.topic, topic.partitions, topic.outcome) for topic in made.topics] == [
        ("good", 3, "verified"),
        ("bad", 2, "differs"),
    ]
    assert list(made.problem_lines()) == ["bad-1: differs: they differ"]
    assert made.headline() == "50 records (5.00 kB) copied in 2.5 s, but 1 of 5 partitions did not end well: see above"
    assert results(*good).headline().startswith("30 records (3.00 kB) copied and verified in 2.5 s")
    assert results(*good, interrupted=True).headline().startswith("interrupted after 2.5 s: 30 records (3.00 kB) of 40")


def test_every_outcome_has_a_headline() -> None:
    assert WORDS.index("verified") == 0
    for made in (lane("t", 0, DONE), lane("t", 0, DONE, Outcome.EQUAL, "zstd")):
        assert "10 records (1.00 kB) copied in 2.5 s" in results(made).headline()


def test_json_of_results() -> None:
    made = results(lane("t", 0, DONE, Outcome.IDENTICAL), lane("t", 1, LaneState.FAILED, why="too large"))
    assert json.loads(json.dumps(made.as_json())) == {
        "outcome": "failed",
        "seconds": 2.5,
        "records": 20,
        "bytes": 2000,
        "topics": [
            {
                "topic": "t",
                "target_topic": "x.t",
                "partitions": 2,
                "records": 20,
                "bytes": 2000,
                "seconds": 2.0,
                "outcome": "failed",
                "problems": [{"partition": 1, "outcome": "failed", "reason": "too large"}],
            }
        ],
    }
