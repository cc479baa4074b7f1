"""`replicator dlq`: what it refuses, and what it prints. The topic and the marks are played."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from replicator.cli import dlq
from replicator.cli.main import main
from replicator.config.load import load
from replicator.config.models import Link
from replicator.control.dead_letters import Replays, Wanted
from replicator.control.replay import Edit, Sent
from replicator.data.dead_letters import DeadLetter, Placed, letter_headers, read_letter
from replicator.data.replays import place_key
from replicator.errors import Where

LINK = """\
clusters:
  us: {bootstrap.servers: "127.0.0.1:1"}
  eu: {bootstrap.servers: "127.0.0.1:1"}
links:
  - {source: us, target: eu, rename: {prefix: us.}, topics: {include: [orders]}, dead_letters: {}}
"""
LETTER = DeadLetter(
    topic="orders",
    partition=3,
    offset=12,
    timestamp_ms=1_795_505_937_250,
    key=None,
    value=b"\x1b[31mred",
    headers=((b"a\nb", b"1"),),
    reason="the target \x1b[31mrefused it",
    error_code=32,
    error_text="",
)


class PlayedTopic:
    """Has three letters: one that was replayed, one that was not, and a batch."""

    topic = "us-eu.dlq"
    strangers = 2

    def __init__(self, file: Path) -> None:
        link = load(file).links[0]
        letters = [LETTER, replace(LETTER, offset=13), replace(LETTER, offset=14, raw=True, reason="damaged")]
        self.letters = [
            read_letter(Where("eu", self.topic, 0, n), each.key, each.value, letter_headers(each, link, 0, 1000 * n))
            for n, each in enumerate(letters)
        ]
        self.deleted: dict[int, int] | None = None

    def read(self, wanted: Wanted = Wanted()) -> Iterator[Placed]:  # noqa: B008
        yield from (each for each in self.letters if wanted.includes(each))

    def ends(self) -> dict[int, int]:
        return {0: 3, 1: 0}

    def delete(self, before: dict[int, int]) -> None:
        self.deleted = before


class PlayedReplay:
    """Refuses offset 13."""

    edits: list[Edit] = []

    def __init__(self, _target: Any, link: Link, edit: Edit) -> None:
        assert link.name == "us-eu"
        self.edits.append(edit)

    def begin(self) -> None:
        pass

    def send(self, placed: Placed) -> Sent:
        refused = placed.letter.offset == 13
        return Sent(placed, "refused" if refused else "replayed", "too old" if refused else "")

    def close(self) -> None:
        pass


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "link.yaml"
    file.write_text(LINK)
    return file


@pytest.fixture
def topic(file: Path, monkeypatch: pytest.MonkeyPatch) -> PlayedTopic:
    made = PlayedTopic(file)
    replays = Replays(load(file).clusters["eu"], "us-eu")
    replays.records = {made.letters[0].identity: place_key(made.letters[0].at)}

    async def ensure(_box: Any) -> None:
        pass

    monkeypatch.setattr(dlq, "DeadLetterTopic", lambda *_: made)
    monkeypatch.setattr(dlq.DeadLetterBox, "replays", lambda _: replays)
    monkeypatch.setattr(dlq, "_ensure_marks", ensure)
    monkeypatch.setattr(dlq, "Replay", PlayedReplay)
    return made


def invoke(*arguments: str, answer: str = "") -> Result:
    result = CliRunner().invoke(main, ["dlq", *arguments], input=answer)
    assert result.exception is None or isinstance(result.exception, SystemExit), "a traceback"
    return result


# ---- input ----


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["show", "--letter", "12"], "'--letter': `12` is not PARTITION:OFFSET"),
        (["show", "--topic", "a("], "'--topic': `a(` is not a regular expression"),
        (["show", "--partition", "-1"], "'--partition': -1 is not in the range"),
        (["show", "--limit", "0"], "'--limit': 0 is not in the range"),
        (["replay", "--set-header", "name"], "'--set-header': `name` is not NAME=VALUE"),
        (["replay", "--value-file", "/dev/null"], "are for a single record: name it with --letter"),
        (["replay", "--key-file", "/dev/null", "--letter", "0:1", "--letter", "0:2"], "are for a single record"),
        (["replay", "--value-file", "/none", "--letter", "0:1"], "'--value-file': '/none': No such file"),
        (["purge"], "give one of --all, --before and --older-than"),
        (["purge", "--all", "--before", "0:1"], "give one of --all, --before and --older-than"),
        (
            ["purge", "--older-than", "a week"],
            "'--older-than': `a week` is neither an age such as 36h or 7d nor a time",
        ),
        (
            ["purge", "--before", "0:4", "--yes"],
            "eu us-eu.dlq-0 ends at 3: there is no offset before 4 to delete up to",
        ),
        (["purge", "--before", "7:1", "--yes"], "eu us-eu.dlq-7 does not exist"),
        (["list", "--link", "other"], "no link `other`; one of us-eu"),
    ],
)
def test_bad_input(arguments: list[str], line: str, topic: PlayedTopic, file: Path) -> None:
    result = invoke(arguments[0], str(file), *arguments[1:])
    assert result.exit_code == 2
    assert line in result.stderr.splitlines()[-1]
    assert result.stdout == ""
    assert topic.deleted is None


@pytest.mark.parametrize("command", [["list"], ["show"], ["replay"], ["purge", "--all"]])
def test_a_link_without_dead_letters(command: list[str], file: Path) -> None:
    file.write_text(LINK.replace("dead_letters: {}", 'dead_letters: {"on": none}'))
    result = invoke(command[0], str(file), *command[1:])
    line = "Error: link `us-eu` has no dead-letter topic: `dead_letters.on` is none\n"
    assert (result.exit_code, result.stderr) == (2, line)


def test_every_command_has_help_with_examples() -> None:
    for command in ("list", "show", "replay", "purge"):
        assert f"replicator dlq {command} link.yaml" in invoke(command, "--help").stdout


# ---- what is printed ----


def test_list(topic: PlayedTopic, file: Path) -> None:
    out = invoke("list", str(file)).stdout
    assert [line.rstrip().split(maxsplit=6) for line in out.splitlines()[1:3]] == [
        ["orders", "3", "1", "0", "1970-01-01T00:00:02Z", "1970-01-01T00:00:02Z", "damaged"],
        ["orders", "3", "2", "1", "1970-01-01T00:00:00Z", "1970-01-01T00:00:01Z", "the target ?[31mrefused it"],
    ]
    assert out.splitlines()[3:] == [
        "3 dead letters of link us-eu in eu us-eu.dlq",
        "2 other records there: not dead letters of link us-eu",
    ]
    assert json.loads(invoke("list", str(file), "--json").stdout) == {
        "link": "us-eu",
        "cluster": "eu",
        "topic": "us-eu.dlq",
        "letters": 3,
        "strangers": 2,
        "rows": [
            {
                "topic": "orders",
                "partition": 3,
                "reason": "damaged",
                "letters": 1,
                "replayed": 0,
                "first_ms": 2000,
                "last_ms": 2000,
            },
            {
                "topic": "orders",
                "partition": 3,
                "reason": LETTER.reason,
                "letters": 2,
                "replayed": 1,
                "first_ms": 0,
                "last_ms": 1000,
            },
        ],
    }


def test_show(topic: PlayedTopic, file: Path) -> None:
    out = invoke("show", str(file), "--offset", "12").stdout
    assert out.splitlines() == [
        "--letter 0:0  record us orders-3 offset 12  diverted 1970-01-01T00:00:00Z",
        "  target    us.orders-3",
        "  reason    the target ?[31mrefused it",
        "  error     INVALID_TIMESTAMP (32): a record's time is outside the topic's message.timestamp limits",
        "  attempt   1",
        "  replayed  from us-eu.dlq 0:0",
        "  timestamp 2026-11-24T07:38:57Z",
        "  key       null",
        r"  value     \x1b[31mred",
        "  header    a?b = 1",
        "1 dead letter of link us-eu in eu us-eu.dlq shown",
    ]
    assert "; --limit 2 was reached" in invoke("show", str(file), "--limit", "2").stdout
    assert "value     batch of \\x1b" in invoke("show", str(file), "--reason", "damaged").stdout
    lines = [json.loads(line) for line in invoke("show", str(file), "--json").stdout.splitlines()]
    assert [line["offset"] for line in lines] == [12, 13, 14]
    assert lines[0] == {
        "letter": {"topic": "us-eu.dlq", "partition": 0, "offset": 0},
        "link": "us-eu",
        "source": "us",
        "topic": "orders",
        "topic_id": None,
        "partition": 3,
        "offset": 12,
        "timestamp_ms": 1_795_505_937_250,
        "target_topic": "us.orders",
        "diverted_ms": 0,
        "reason": LETTER.reason,
        "error_code": 32,
        "error": "INVALID_TIMESTAMP",
        "error_text": "",
        "attempt": 1,
        "raw": False,
        "truncated": False,
        "replayed": {"topic": "us-eu.dlq", "partition": 0, "offset": 0},
        "key": None,
        "value": "G1szMW1yZWQ=",
        "headers": [["a\nb", "MQ=="]],
    }


def test_replay(topic: PlayedTopic, file: Path, tmp_path: Path) -> None:
    result = invoke("replay", str(file))
    assert (result.exit_code, result.stdout) == (1, "2 replayed, 1 refused again\n")
    assert result.stderr == "0:1 (record us orders-3 offset 13): refused: too old\n"
    result = invoke("replay", str(file), "--offset", "12", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "letter": {"topic": "us-eu.dlq", "partition": 0, "offset": 0},
        "topic": "orders",
        "partition": 3,
        "offset": 12,
        "target_topic": "us.orders",
        "outcome": "replayed",
        "problem": "",
    }
    (tmp_path / "v").write_bytes(b"\x00new")
    options = ["--letter", "0:0", "--value-file", str(tmp_path / "v"), "--drop-header", "x", "--now"]
    assert invoke("replay", str(file), *options, "--set-header", "a=b=c").stdout == "1 replayed\n"
    assert PlayedReplay.edits[-1] == Edit(("x",), (("a", b"b=c"),), None, b"\x00new", True)


def test_a_dry_run_sends_nothing(topic: PlayedTopic, file: Path) -> None:
    PlayedReplay.edits.clear()
    result = invoke("replay", str(file), "--dry-run")
    assert (result.exit_code, result.stdout) == (1, "1 would be replayed, 1 replayed already, 1 cannot be replayed\n")
    assert "0:2 (batch at us orders-3 offset 14): cannot: it is a whole batch" in result.stderr
    assert not PlayedReplay.edits


def test_headlines() -> None:
    assert dlq.headline(Counter(), False) == "no dead letters to replay"
    assert dlq.headline(Counter(replayed=1200, cannot=1), False) == "1,200 replayed, 1 cannot be replayed"


def test_purge(topic: PlayedTopic, file: Path) -> None:
    words = "2 dead letters of link us-eu in eu us-eu.dlq will be deleted, 1 of them never replayed. Go on?"
    result = invoke("purge", str(file), "--before", "0:2", answer="n\n")
    assert (result.exit_code, topic.deleted) == (1, None)
    assert words in result.stderr
    result = invoke("purge", str(file), "--before", "0:2", answer="y\n")
    assert (result.exit_code, topic.deleted) == (0, {0: 2})
    assert result.stdout == "2 dead letters of link us-eu in eu us-eu.dlq deleted, 1 of them never replayed\n"
    invoke("purge", str(file), "--all", "--yes")
    assert topic.deleted == {0: 3}


@pytest.mark.parametrize(
    ("when", "before"),
    [
        ("1970-01-01T00:00:01Z", {0: 1}),
        ("1970-01-01T00:00:01.5Z", {0: 2}),
        ("1h", {0: 3}),
        ("1970-01-01T00:00:00Z", None),
    ],
)
def test_purge_by_age(when: str, before: dict[int, int] | None, topic: PlayedTopic, file: Path) -> None:
    assert invoke("purge", str(file), "--older-than", when, "--yes").exit_code == 0
    assert topic.deleted == before


def test_nobody_to_answer_is_a_no(topic: PlayedTopic, file: Path) -> None:
    assert invoke("purge", str(file), "--all").exit_code == 1
    assert topic.deleted is None
