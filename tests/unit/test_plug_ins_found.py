"""Plug-ins before they work: how they are found, tried and told of, and what everybody makes of what they declare."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from replicator.cli.main import main
from replicator.config.load import parse
from replicator.config.models import Link
from replicator.config.models import Transform as Row
from replicator.config.plug_ins import PlugIn, check_plug_ins, make, plug_ins, try_plug_ins
from replicator.config.recipes import policy_hash
from replicator.data.matching import Match, _judge
from replicator.data.orders import Assign, LaneSpec, Order, TargetTopic
from replicator.data.refusals import Refusals
from replicator.data.rules import Rules, rules_of
from replicator.data.unpack import Record
from replicator.errors import ConfigError
from replicator.transforms import PARTS, ListedColumns, Place
from tests.harness.plug_ins import Installer, forget

Install = Callable[..., None]

SOURCE = """
    from replicator.transforms import Replacement, Selection

    class Mark:
        changes = ("headers",)
        drops = False

        def __init__(self, options, place):
            self.value = options["value"].encode() + b"%d" % place.partition

        def __call__(self, columns):
            mine = (b"m", self.value)
            new = lambda at: Replacement(columns.keys[at], columns.values[at], [*columns.headers[at], mine])
            return Selection(replacements={at: new(at) for at in range(len(columns))})

    def anything(options, place):
        return lambda columns: None

    class Versioned:
        changes, version = {"key"}, 7

    class Mistaken:
        changes = "headers"

    def quits(options, place):
        raise SystemExit("not\\ntoday")

    def uncallable(options, place):
        return 5

    number = 5
"""
NAMES = {
    "mark": "Mark",
    "anything": "anything",
    "versioned": "Versioned",
    "mistaken": "Mistaken",
    "quits": "quits",
    "uncallable": "uncallable",
    "number": "number",
    "lost": "Nobody",
}
PLACE = Place("us-eu", "us", "eu", "orders", "orders", 3)
LANE = LaneSpec(0, "us-eu", "us", "eu", "orders", "orders", 0, bytes(16), 1, 0)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    yield Installer(tmp_path, monkeypatch).add
    forget()


@pytest.fixture
def installed(install: Install) -> None:
    install("plugged_unit", SOURCE, "2.5", **NAMES)
    install("plugged_broken", "raise RuntimeError('a\\nbad day')", broken="Anything")


def link(*rows: Row, **options: Any) -> Link:
    return Link("us", "eu", transforms=rows, **options)


@pytest.mark.usefixtures("installed")
class TestFound:
    def test_what_they_say_of_themselves(self) -> None:
        rows = [Row("mark", options={"value": "a"}), Row("anything", ("other",)), Row("versioned")]
        assert plug_ins(link(*rows), "orders") == (
            PlugIn("mark", {"value": "a"}, "2.5", ("headers",), False),
            PlugIn("versioned", {}, "7", ("key",), True),
        )
        assert plug_ins(link(Row("anything")), "orders") == (PlugIn("anything", {}, "2.5", PARTS, True),)

    def test_made_for_a_partition(self) -> None:
        (mark,) = plug_ins(link(Row("mark", options={"value": "a"})), "orders")
        selection = make(mark, PLACE)(ListedColumns.of((b"k", b"v")))
        assert selection is not None
        assert selection.replacements[0].headers == [(b"m", b"a3")]

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("missing", "link us-eu: no transform `missing` is installed"),
            ("broken", "transform `broken` (plugged_broken:Anything) cannot be loaded: RuntimeError: a bad day"),
            ("lost", "transform `lost` (plugged_unit:Nobody) cannot be loaded: AttributeError"),
            ("mistaken", "cannot be loaded: ValueError: its `changes` is 'headers'"),
            ("number", "transform `number` (plugged_unit:number) is a int, which cannot be called"),
        ],
    )
    def test_what_cannot_be_loaded(self, name: str, words: str) -> None:
        for ask in (check_plug_ins, lambda named: plug_ins(named, "orders")):
            with pytest.raises(ConfigError) as error:
                ask(link(Row(name)))
            assert words in str(error.value)
            assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("mark", "transform `mark` cannot be made for topic orders: KeyError: 'value'"),
            ("quits", "transform `quits` cannot be made for topic orders: SystemExit: not today"),
            ("uncallable", "transform `uncallable` makes a int, which cannot be called"),
        ],
    )
    def test_what_cannot_be_made(self, name: str, words: str) -> None:
        check_plug_ins(link(Row(name)))
        with pytest.raises(ConfigError) as error:
            try_plug_ins(link(Row(name)), "orders")
        assert words in str(error.value)
        try_plug_ins(link(Row(name, ("other",))), "orders")

    def test_the_policy_names_them_with_options_and_version(self, install: Install) -> None:
        one, other = {"b": 1, "a": 2}, {"a": 2, "b": 1}
        same = {policy_hash(link(Row("mark", options=each)), "orders") for each in (one, other)}
        assert len(same) == 1
        install("plugged_again", SOURCE, "2.6", again="Mark")
        different = [
            link(),
            link(Row("mark")),
            link(Row("mark", options=one)),
            link(Row("anything")),
            link(Row("anything"), Row("mark")),
            link(Row("mark"), Row("anything")),
        ]
        assert len({policy_hash(each, "orders") for each in different}) == len(different)
        assert policy_hash(link(Row("mark", ("other",))), "orders") == policy_hash(link(), "orders")

    def test_another_version_is_another_policy(self, install: Install, tmp_path: Path) -> None:
        before = policy_hash(link(Row("anything")), "orders")
        info = tmp_path / "plugged_unit-2.5.dist-info"
        metadata = info / "METADATA"
        metadata.write_text(metadata.read_text().replace("2.5", "2.6"))
        info.rename(tmp_path / "plugged_unit-2.6.dist-info")
        forget()
        assert policy_hash(link(Row("anything")), "orders") != before

    def test_two_of_a_name(self, install: Install) -> None:
        install("plugged_second", SOURCE, mark="Mark")
        with pytest.raises(ConfigError, match=r"several transforms `mark` are installed: plugged_second:Mark, plugged"):
            plug_ins(link(Row("mark")), "orders")

    def test_a_run_ends_before_anything_moves(self, tmp_path: Path) -> None:
        file = tmp_path / "link.yaml"
        file.write_text(LINK_FILE.format(name="broken", options="{}"))
        done = CliRunner().invoke(main, ["run", str(file)])
        assert done.exit_code == 2, done.output
        assert "transform `broken` (plugged_broken:Anything) cannot be loaded" in done.output
        assert "Traceback" not in done.output


LINK_FILE = """
clusters:
  us: {{bootstrap.servers: "localhost:1"}}
  eu: {{bootstrap.servers: "localhost:2"}}
links:
  - source: us
    target: eu
    transforms:
      - {{name: {name}, topics: ["o.*"], options: {options}}}
"""


def test_options_are_plain_data() -> None:
    text = LINK_FILE.format(name="a-b", options="{field: env, most: 5, deep: [{x: null}, 1.5, true]}")
    (row,) = parse(text).links[0].transforms
    assert row == Row("a-b", ("o.*",), {"field": "env", "most": 5, "deep": [{"x": None}, 1.5, True]})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LINK_FILE.format(name="a", options="[1]"), "9:45: expected mapping"),
        (LINK_FILE.replace("name: {name}, ", "").format(options="{}"), "9:9: `name` is missing"),
        (LINK_FILE.replace("o.*", "o(").format(name="a", options="{}"), "`o(` is not a regular expression"),
        (LINK_FILE.replace("options:", "option:").format(name="a", options="1"), "did you mean `options`?"),
        (LINK_FILE.format(name="a", options=f"{{x: {'y' * 262_144}}}"), "larger than 262144 bytes"),
    ],
)
def test_mistakes_in_a_link_file(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(text, "link.yaml")
    assert words in str(error.value)


def test_they_get_to_the_lane_which_opens_all_batches() -> None:
    plugged = PlugIn("mark", {"deep": [{"x": None}, 1.5, True, "t"]}, "2.5", ("headers",), False)
    spec = msgspec.structs.replace(LANE, plug_ins=(plugged,))
    found = msgspec.msgpack.decode(msgspec.msgpack.encode(Assign([spec])), type=Order)
    assert found == Assign([spec])
    assert Refusals(spec, TargetTopic()).terms().opens
    assert not Refusals(LANE, TargetTopic()).terms().opens


@pytest.mark.parametrize(
    ("declared", "recipe", "expected"),
    [
        ([(("headers",), False)], (), Rules(diverted=True, changed=("headers",))),
        ([((), True)], (), Rules(filtered=True, diverted=True)),
        ([((), False)], (("header_add", b"a", b"", None),), Rules(diverted=True, changed=("headers",))),
        ([(("timestamp",), False), (("key",), True)], (), Rules(True, True, True, ("key", "timestamp"))),
        ([(PARTS, True)], (), Rules(True, True, True, PARTS)),
    ],
)
def test_what_they_declare_is_no_difference(declared: Any, recipe: Any, expected: Rules) -> None:
    given = [PlugIn("test", {}, "", changes, drops) for changes, drops in declared]
    assert rules_of("read_committed", recipe, "dlq", given) == expected


@pytest.mark.parametrize(
    ("changed", "found", "expected"),
    [
        (("value",), Record(0, 0, b"k", b"new", b""), Match.SAME),
        (("value",), Record(0, 0, b"other", b"new", b""), Match.OTHER),
        (PARTS, Record(0, 0, b"k", b"new", b""), Match.UNKNOWN),
        (("key",), Record(0, 0, b"other", b"v", b""), Match.SAME),
    ],
)
def test_where_everything_may_change_nothing_tells_one_record_from_another(
    changed: tuple[str, ...], found: Record, expected: Match
) -> None:
    assert _judge(Record(0, 0, b"k", b"v", b""), found, False, Rules(changed=changed)) is expected


def test_the_example_of_the_readme() -> None:
    text = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    code = text.split("<!-- transform example -->\n```python\n")[1].split("```")[0]
    made: dict[str, Any] = {}
    exec(code, made)
    drop = made["DropByField"]({"field": "level", "equals": "DEBUG"}, PLACE)
    values = (b'{"level": "DEBUG"}', b'{"level": "INFO"}', b"{}", None)
    assert drop(ListedColumns.of(*((None, value) for value in values))).keep == [False, True, True, True]
