"""The face of `replicator verify`: options, words, exit codes, and what is said in the end."""

import json
from typing import Any

import pytest
from click.testing import CliRunner

from replicator.cli import verify as verify_command
from replicator.cli.main import main
from replicator.cli.verdicts import ALL_EQUAL, DIFFERENT, NOT_COMPARED, LaneReport, Verification
from replicator.cli.verify import AtTime, VerifyOptions
from replicator.cli.verify_screen import print_verification
from replicator.data.verify import LaneVerdict, Outcome


def lane(outcome: Outcome, reason: str = "", records: int = 10, claimed: int = 10, **verdict: Any) -> LaneReport:
    found = LaneVerdict(outcome, reason, records, records * 100, 1, 7, **verdict)
    return LaneReport("us-eu", "orders", "us.orders", 3, claimed, 1, found)


def whole(*lanes: LaneReport, fraction: float = 1.0, problems: tuple[str, ...] = ()) -> Verification:
    return Verification(list(lanes), fraction, "7f3a", 2.5, list(problems))


IDENTICAL = lane(Outcome.IDENTICAL)
GONE = lane(Outcome.IDENTICAL, records=0, gone=10)
EMPTY = lane(Outcome.IDENTICAL, records=0, claimed=0)
UNKNOWN = lane(Outcome.UNKNOWN, "no leader", records=2)
DIFFERS = lane(Outcome.DIFFERENT, "source offset 3, target offset 5: another value", records=3)
EQUAL = lane(Outcome.EQUAL, "packed anew")


@pytest.mark.parametrize(
    ("found", "outcome", "exit_code"),
    [
        (whole(), "empty", NOT_COMPARED),
        (whole(EMPTY), "empty", NOT_COMPARED),
        (whole(IDENTICAL), "identical", ALL_EQUAL),
        (whole(IDENTICAL, EMPTY, EQUAL), "equal", ALL_EQUAL),
        (whole(GONE, GONE), "gone", NOT_COMPARED),
        (whole(GONE, IDENTICAL), "identical", ALL_EQUAL),
        (whole(IDENTICAL, UNKNOWN), "unknown", NOT_COMPARED),
        (whole(IDENTICAL, problems=("state is damaged",)), "unknown", NOT_COMPARED),
        (whole(UNKNOWN, DIFFERS, IDENTICAL), "differs", DIFFERENT),
        (whole(DIFFERS, problems=("state is damaged",)), "differs", DIFFERENT),
    ],
)
def test_the_outcome_of_all_lanes(found: Verification, outcome: str, exit_code: int) -> None:
    assert (found.outcome, found.exit_code) == (outcome, exit_code)
    assert len({ALL_EQUAL, DIFFERENT, NOT_COMPARED, 2, 130}) == 5
    assert json.loads(json.dumps(found.as_json()))["outcome"] == outcome


def test_what_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    print_verification(whole(DIFFERS, lane(Outcome.IDENTICAL, claimed=1_000, gone=4, foreign=2), fraction=0.01))
    shown = capsys.readouterr().out.splitlines()
    assert shown[1].split() == ["us-eu", "orders", "->", "us.orders", "2", "1,010", "13", "4", "1.30", "kB", "differs"]
    assert shown[2] == "us-eu orders-3: differs: source offset 3, target offset 5: another value"
    assert shown[3] == (
        "13 records (1.30 kB) of 1,010 copied compared in 2.5 s: there are differences; a sample of 0.01, repeat it"
        " with --seed 7f3a; 4 deleted since and not comparable any more; 2 of others between ours on the target"
    )


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (whole(IDENTICAL), "all are equal"),
        (whole(IDENTICAL, UNKNOWN), "nothing differs, but not everything could be compared"),
        (whole(EMPTY), "no proof"),
        (whole(DIFFERS), "there are differences"),
    ],
)
def test_headlines(found: Verification, said: str) -> None:
    assert found.headline().endswith(said)


def test_json() -> None:
    found = whole(EQUAL, fraction=0.5).as_json()
    assert (found["fraction"], found["seed"], found["records"], found["claimed"]) == (0.5, "7f3a", 10, 10)
    (row,) = found["lanes"]
    assert (row["topic"], row["target_topic"], row["partition"]) == ("orders", "us.orders", 3)
    assert (row["outcome"], row["reason"], row["checksum"], row["gone"]) == ("equal", "packed anew", 7, 0)
    assert whole(EQUAL).as_json()["seed"] is None


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> list[VerifyOptions]:
    """What the command was called with."""
    seen: list[VerifyOptions] = []

    async def verify(given: VerifyOptions) -> int:
        seen.append(given)
        return 3

    monkeypatch.setattr(verify_command, "verify", verify)
    return seen


def test_options(options: list[VerifyOptions]) -> None:
    assert CliRunner().invoke(main, ["verify", "link.yaml"]).exit_code == 3
    words = ["--link", "us-eu", "--topics", "a", "--topics", "b.*", "--sample", "0.1", "--seed", "x", "--json"]
    CliRunner().invoke(main, ["verify", "link.yaml", *words, "--from", "17", "--to", "2026-11-24T00:00:00.5Z"])
    assert options == [
        VerifyOptions("link.yaml", "", (), None, False, None, None, "", False),
        VerifyOptions("link.yaml", "us-eu", ("a", "b.*"), 0.1, False, 17, AtTime(1_795_478_400_500), "x", True),
    ]
    CliRunner().invoke(main, ["verify", "link.yaml", "--from", "0"])
    assert options[-1].start == 0


@pytest.mark.parametrize(
    "words",
    [
        ["--full", "--sample", "0.1"],
        ["--sample", "0"],
        ["--sample", "1.1"],
        ["--from", "yesterday"],
        ["--to", "-1"],
        ["--to", "2026-11-24T00:00:00"],
        ["--topics", "("],
    ],
)
def test_options_that_cannot_be_meant(words: list[str], options: list[VerifyOptions]) -> None:
    assert CliRunner().invoke(main, ["verify", "link.yaml", *words]).exit_code == 2
    assert options == []


def test_what_was_left_out_or_edited_is_said() -> None:
    found = whole(lane(Outcome.EQUAL, "edited", passed_over=3, edited=4), lane(Outcome.EQUAL, "edited", edited=1))
    notes = found.headline().split("; ")[1:]
    assert notes == [
        "3 rightly not copied: aborted, filtered, or dead letters",
        "5 compared without what the link changes of them",
    ]
    assert (found.as_json()["passed_over"], found.as_json()["edited"]) == (3, 5)
