"""`replicator status`: what it makes of records that are written by hand here, and how it shows it."""

import contextlib
import io
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from replicator.cli import status_screen
from replicator.cli.main import main
from replicator.cli.status import (
    GOOD,
    NOT_GOOD,
    NOT_READ,
    ORDER,
    LinkStatus,
    Source,
    Waiting,
    exit_code,
    judge,
    rank,
    to_json,
)
from replicator.cli.status_screen import LANES_SHOWN, headline, print_status, warnings
from replicator.config.models import Link
from replicator.data.states import LaneState
from replicator.state.records import LaneKey, LaneRecord

NOW = 1_764_084_000_000
LINK = Link("us", "eu")
NOTHING_KNOWN = Source({}, {}, "source `us` does not answer")


def record(**changes: object) -> LaneRecord:
    values: dict[str, object] = {
        "generation": 2,
        "topic_id": "id",
        "target_topic": "us.orders",
        "target_topic_id": "id2",
        "position": 900,
        "target_next": 900,
        "sequence": 900,
        "leader_epoch": 1,
        "producer_id": 7,
        "producer_epoch": 0,
        "state": "tailing",
        "since_ms": NOW - 60_000,
        "written_ms": NOW - 1_500,
        "high_watermark": 900,
        "last_timestamp_ms": NOW - 20_000,
        "worker": "host-1",
        **changes,
    }
    return LaneRecord(**values)  # type: ignore[arg-type]


def judged(
    *records: LaneRecord, source: Source | None = None, link: Link = LINK, notes: tuple[str, ...] = ()
) -> LinkStatus:
    """A link with a lane for each record: partitions of one topic, in this order."""
    lanes = {LaneKey("orders", partition): each for partition, each in enumerate(records)}
    if source is None:
        source = Source({"orders": len(records)}, {key: each.high_watermark for key, each in lanes.items()})
    return judge(link, lanes, source, list(notes), NOW)


# ---- one lane ----


def test_a_lane_that_has_caught_up():
    (lane,) = judged(record()).lanes
    assert (lane.topic, lane.partition, lane.target_topic) == ("orders", 0, "us.orders")
    assert (lane.word, lane.is_good, lane.silent) == ("tailing", True, False)
    assert (lane.position, lane.end_offset, lane.end_is_now, lane.lag_records, lane.lag_s) == (900, 900, True, 0, 0)
    assert (lane.age_s, lane.owner, lane.since_ms) == (1.5, "host-1", NOW - 60_000)


def test_lag_is_counted_to_the_end_that_the_source_tells_now():
    (lane,) = judged(record(), source=Source({"orders": 1}, {LaneKey("orders", 0): 1_000})).lanes
    assert (lane.end_offset, lane.end_is_now, lane.lag_records, lane.lag_s) == (1_000, True, 100, 20.0)


def test_lag_is_counted_to_the_last_known_end_where_the_source_does_not_answer():
    (lane,) = judged(record(high_watermark=950), source=NOTHING_KNOWN).lanes
    assert (lane.end_offset, lane.end_is_now, lane.lag_records, lane.lag_s) == (950, False, 50, 20.0)


@pytest.mark.parametrize(
    ("changes", "lag", "lag_s"),
    [
        ({"high_watermark": -1}, None, None),  # nobody knows
        ({"high_watermark": 800}, 0, 0),  # a source that was cut back
        ({"high_watermark": 950, "last_timestamp_ms": -1}, 50, None),  # nothing copied yet
        ({"high_watermark": 950, "last_timestamp_ms": NOW + 5_000}, 50, 0),  # a producer with another clock
    ],
)
def test_lag_that_is_not_known_or_none(changes, lag, lag_s):
    (lane,) = judged(record(**changes), source=NOTHING_KNOWN).lanes
    assert (lane.lag_records, lane.lag_s) == (lag, lag_s)


@pytest.mark.parametrize("state", [state.name.lower() for state in LaneState])
def test_which_states_are_good(state):
    (lane,) = judged(record(state=state, reason="why")).lanes
    assert lane.is_good == (state in ("copying", "tailing", "done"))
    assert (lane.word, lane.reason) == (state, "why")


def test_a_state_of_a_newer_version_is_not_good():
    (lane,) = judged(record(state="levitating")).lanes
    assert not lane.is_good
    assert rank("levitating") == 0


@pytest.mark.parametrize(
    ("interval_ms", "age_s", "silent"),
    [(1_000, 30, False), (1_000, 31, True), (50, 30, False), (10_000, 100, False), (10_000, 101, True)],
)
def test_a_lane_is_silent_after_ten_checkpoints_but_not_before_half_a_minute(interval_ms, age_s, silent):
    link = Link("us", "eu", checkpoint_interval_ms=interval_ms)
    (lane,) = judged(record(written_ms=NOW - 1_000 * age_s), link=link).lanes
    assert lane.silent == silent
    assert lane.is_good != silent
    assert lane.word == ("silent" if silent else "tailing")


def test_silence_hides_no_failure_and_what_rests_is_not_silent():
    long_ago = NOW - 3_600_000
    states = ("failed", "diverged", "paused", "starting", "copying", "done", "unused")
    lanes = judged(*(record(state=state, written_ms=long_ago) for state in states)).lanes
    words = {lane.state: (lane.word, lane.silent) for lane in lanes}
    assert words == {
        "failed": ("failed", True),
        "diverged": ("diverged", True),
        "paused": ("silent", True),
        "starting": ("silent", True),
        "copying": ("silent", True),
        "done": ("done", False),
        "unused": ("unused", False),
    }


def test_a_clock_that_is_behind_the_owners_is_no_trouble():
    (lane,) = judged(record(written_ms=NOW + 3_600_000)).lanes
    assert (lane.age_s, lane.silent) == (0, False)


# ---- a link ----


def test_the_worst_lanes_come_first():
    states = ["tailing", "done", "copying", "gap", "paused", "starting", "copying"]
    ends = [900, 900, 950, 900, 900, 900, 2_000]
    link = judged(*(record(state=state, high_watermark=end) for state, end in zip(states, ends, strict=True)))
    assert [(lane.state, lane.partition) for lane in link.lanes] == [
        ("gap", 3),
        ("paused", 4),
        ("starting", 5),
        ("copying", 6),
        ("copying", 2),
        ("tailing", 0),
        ("done", 1),
    ]
    assert link.words() == {"gap": 1, "paused": 1, "starting": 1, "copying": 2, "tailing": 1, "done": 1}


def test_every_state_that_there_is_has_its_place():
    places = {state.name.lower() for state in LaneState} & set(ORDER)
    stopped = {state.name.lower() for state in LaneState if state > LaneState.DONE}
    assert places | stopped == {state.name.lower() for state in LaneState}
    assert {rank(state) for state in stopped} == {0}


def test_selected_topics_and_partitions_without_a_lane_are_named():
    lanes = {LaneKey("orders", 0): record(), LaneKey("orders", 2): record()}
    link = judge(LINK, lanes, Source({"orders": 4, "clicks": 2}, {}), [], NOW)
    assert link.waiting == [Waiting("clicks", [0, 1]), Waiting("orders", [1, 3])]
    assert all(lane.is_good for lane in link.lanes)
    assert not link.is_good


@pytest.mark.parametrize(
    ("links", "code"),
    [
        ([judged(record(), record(state="copying"), record(state="done"))], GOOD),
        ([judged(record(), record(state="paused"))], NOT_GOOD),
        ([judged(record(), record(state="gap"))], NOT_GOOD),
        ([judged(record(), record(state="starting"))], NOT_GOOD),
        ([judged(record()), judged(record(written_ms=0))], NOT_GOOD),
        ([judged(record(), source=Source({"new": 1}, {}))], NOT_GOOD),
        ([judged(record()), LinkStatus("l", "us", "eu", error="away"), judged(record(state="gap"))], NOT_READ),
        ([judged(record(), source=NOTHING_KNOWN)], GOOD),
        ([judged()], NOT_GOOD),
    ],
)
def test_exit_codes(links, code):
    assert exit_code(iter(links)) == code


def test_json_holds_everything():
    link = judged(
        record(),
        record(state="gap", reason="gone", high_watermark=-1),
        source=Source({"new": 2}, {}),
        notes=("a note",),
    )
    found = json.loads(to_json([link, LinkStatus("b", "eu", "us", error="away")]))
    assert found["good"] is False
    first, second = found["links"]
    assert (first["link"], first["source"], first["target"], first["good"]) == ("us-eu", "us", "eu", False)
    assert first["waiting"] == [{"topic": "new", "partitions": [0, 1]}]
    assert (first["notes"], first["error"], first["states"]) == (["a note"], "", {"gap": 1, "tailing": 1})
    assert first["lanes"][0] == {
        "topic": "orders",
        "partition": 1,
        "target_topic": "us.orders",
        "state": "gap",
        "silent": False,
        "reason": "gone",
        "position": 900,
        "end_offset": None,
        "end_is_now": False,
        "lag_records": None,
        "lag_s": None,
        "since_ms": NOW - 60_000,
        "age_s": 1.5,
        "owner": "host-1",
        "counts": {},
        "good": False,
    }
    assert (second["lanes"], second["error"], second["good"]) == ([], "away", False)


# ---- for people ----


def shown(*links: LinkStatus, all_lanes: bool = False) -> list[str]:
    """The lines on stdout, as a pipe gets them."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        print_status(links, all_lanes)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_the_headline():
    link = judged(
        record(), record(state="paused", high_watermark=2_134), record(high_watermark=-1), source=NOTHING_KNOWN
    )
    assert (
        headline(link) == "3 lanes: 1 paused, 2 tailing · lag 1,234 records, 20 s at most (and 1 lane of unknown lag)"
    )
    assert headline(judged(record(state="target_lost"))) == "1 lane: 1 target lost · lag 0 records"
    assert headline(LinkStatus("l", "us", "eu", error="us: away")) == "us: away"


def test_a_link_on_the_screen():
    lines = shown(judged(record(), record(state="gap", reason="source offsets 5 to 9 are gone", high_watermark=1_900)))
    assert lines[0] == "us-eu: us → eu · 2 lanes: 1 gap, 1 tailing · lag 1,000 records, 20 s at most"
    assert lines[1].split() == ["lane", "state", "position", "lag", "behind", "reported", "owner", "why"]
    gap = "orders-1 gap 900 1,000 20 s 1.5 s ago host-1 source offsets 5 to 9 are gone"
    assert lines[2].split() == gap.split()
    assert lines[3].split() == ["orders-0", "tailing", "900", "0", "0", "1.5", "s", "ago", "host-1"]
    assert len(lines) == 4


def test_silence_is_loud():
    long_ago = NOW - 200_000
    lines = shown(judged(record(), record(written_ms=long_ago), record(written_ms=long_ago - 1_000)))
    assert "2 silent" in lines[0]
    assert lines[1] == "2 lanes SILENT: nobody reports on them, for 3 min 20 s at least"
    assert "SILENT (was tailing)" in lines[3]
    lines = shown(
        judged(record(written_ms=long_ago), record(written_ms=long_ago, state="failed"), record(state="done"))
    )
    assert lines[1] == "NOBODY RUNS THIS LINK, so it seems: the last word of any of its lanes is 3 min 20 s old"
    assert "failed (silent)" in lines[3]


def test_what_is_not_replicated_is_named():
    link = judged(record(), source=Source({"orders": 1, "a": 1, "b": 30, **{f"c{n}": 1 for n in range(8)}}, {}))
    assert warnings(link)[:2] == [
        "NOT REPLICATED: topic a, partition 0: selected, but no lane yet",
        "NOT REPLICATED: topic b, partitions 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 20 more: selected, but no lane yet",
    ]
    assert warnings(link)[-1] == "and 5 topics more without lanes: --json names all"
    assert warnings(judged()) == ["it has no lane yet"]


def test_only_the_worst_lanes_are_shown_and_how_many_are_not():
    states = ["gap"] * 3 + ["tailing"] * 500
    link = judged(*(record(state=state) for state in states))
    lines = shown(link)
    assert len(lines) == 2 + LANES_SHOWN + 1
    assert lines[-1] == f"and {503 - LANES_SHOWN} lanes more, none of them worse: --lanes shows all"
    assert sum(" gap " in line for line in lines) == 3
    assert len(shown(link, all_lanes=True)) == 2 + 503


def test_reasons_are_never_cut_and_never_taken_for_markup(monkeypatch):
    reason = " ".join(f"[bold]word{n}[/bold]" for n in range(60))
    lines = shown(judged(record(state="paused", reason=reason)))
    assert len(lines) > 5
    assert "".join("".join(line.split()) for line in lines).count("[bold]word") == 60
    monkeypatch.setattr(status_screen, "PIPE_WIDTH", 70)
    narrow = shown(judged(record(state="paused", reason="because of this")))
    assert max(map(len, narrow[1:])) <= 70


def test_two_links_have_an_empty_line_between_them():
    lines = shown(judged(record()), LinkStatus("b", "eu", "us", error="us: away", notes=["a note"]))
    assert lines[3:] == ["", "b: eu → us · us: away", "a note"]


# ---- the command ----


@pytest.fixture
def link_file(tmp_path: Path) -> Iterator[Path]:
    """A link between two clusters that refuse connections."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{bound.getsockname()[1]}"
        file = tmp_path / "link.yaml"
        file.write_text(
            f'clusters:\n  us: {{bootstrap.servers: "{where}"}}\n  eu: {{bootstrap.servers: "{where}"}}\n'
            "links:\n  - {source: us, target: eu, rename: {prefix: us.}, topics: {include: [orders]}}\n"
        )
        yield file


def invoke(*arguments: str) -> Result:
    result = CliRunner().invoke(main, ["status", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), "a traceback"
    return result


def test_a_link_that_is_not_in_the_file(link_file):
    result = invoke(str(link_file), "--link", "eu-us")
    assert result.exit_code == 2
    assert result.stderr == "Error: no link is named `eu-us`; there is `us-eu`\n"
    assert invoke(str(link_file) + "x").exit_code == 2


def test_a_target_that_is_away(link_file, monkeypatch):
    monkeypatch.setattr("replicator.cli.status.READ_TIMEOUT_S", 0.5)
    result = invoke(str(link_file), "--json")
    assert result.exit_code == NOT_READ
    (link,) = json.loads(result.stdout)["links"]
    assert link["error"].startswith("eu: ")
    assert "\n" not in link["error"]
    people = invoke(str(link_file))
    assert people.exit_code == NOT_READ
    assert people.stdout.startswith("us-eu: us → eu · eu: ")


def test_help_names_the_exit_codes():
    result = invoke("--help")
    assert result.exit_code == 0
    for code in (GOOD, NOT_GOOD, NOT_READ, 2):
        assert f" {code} " in result.stdout
