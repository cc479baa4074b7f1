"""A link file is understood as written, or refused with one sentence that points at the fault."""

import re
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from replicator.config import load as load_module
from replicator.config.edits import (
    Base64,
    Between,
    Edit,
    HeaderIs,
    HeaderMatch,
    HeaderRename,
    HeaderValue,
    KeyIs,
    Where,
)
from replicator.config.fields import KIB, MIB
from replicator.config.load import from_data, load, parse, parse_bootstrap, parse_size
from replicator.config.models import (
    Batches,
    Config,
    DeadLetterTopic,
    Groups,
    Limits,
    Link,
    LinkFile,
    Mm2Topics,
    Policy,
    Rename,
    StartAt,
    Topics,
    Transform,
    default_workers,
)
from replicator.config.schema import json_schema
from replicator.config.tree import DEPTH_MAX, read_tree
from replicator.errors import ConfigError

EVERYTHING = r"""
# A comment, and every option there is.
clusters:
  us:
    bootstrap.servers: "127.0.0.1:9092, [::1]:9093"
    client.id: my-replicator
    socket.keepalive.enable: yes
    fetch.error.backoff.ms: 0500
  no: {bootstrap.servers: "kafka.example.no:9092"}
links:
  - name: first
    source: us
    target: no
    topics:
      include: ["orders", "payments-.*"]
      exclude: ["payments-secret"]
    rename: {prefix: "us."}
    start: {timestamp: 2026-11-01T00:00:00Z}
    replication_factor: 3
    refresh_topics_ms: 5000
    shards: 16
    checkpoint_interval_ms: 500
    session_timeout_ms: 20000
    group_protocol: consumer
    policies:
      - {topics: ["payments-.*"], source_gap: stop, target_lost: stop}
      - {source_truncated: continue, foreign_writes: tolerate}
      - {record_faults: skip, retry_timeout_ms: 60000, retry_delay_max_ms: 5000, foreign_writes: fence}
    groups:
      include: ["billing", "app-.*"]
      exclude: []
      rename: "us.{group}"
      sync_interval_ms: 1000
    mm2_topics: {checkpoints: true, heartbeats: true, offset_syncs: target, separator: "-", interval_ms: 2000}
    isolation: read_uncommitted
    edits:
      - {drop: tombstones}
      - {topics: ["payments-.*"], set_header: {name: region, value: null}}
    transforms:
      - {name: thin, topics: ["orders"], options: {each: 7, more: [null, 1.5]}}
    provenance: true
    loops: prevent
    batches:
      - {topics: ["orders"], codec: zstd, merge: always, linger_ms: 5}
    dead_letters:
      topic: lost
      on: source
      partitions: 3
      replication_factor: 2
      context_headers: false
      log: reasons
  - {source: no, target: us, rename: {template: "{topic}.mirror"}, start: latest, replication_factor: broker}
workers: 2
limits:
  credit_bytes: 16MiB
  lane_bytes_max: 512 KiB
  fetch_bytes_max: 262144
  fetch_wait_ms: 250
  produce_bytes_max: 1MiB
  request_timeout_ms: 20000
"""

SMALLEST = {
    "clusters": {"us": {"bootstrap.servers": "a:1"}, "eu": {"bootstrap.servers": "b:1"}},
    "links": [{"source": "us", "target": "eu"}],
}


def test_everything() -> None:
    config = parse(EVERYTHING)
    us, no = config.clusters["us"], config.clusters["no"]
    assert (us.alias, us.client_id, no.client_id) == ("us", "my-replicator", "replicator")
    assert us.bootstrap == (("127.0.0.1", 9092), ("::1", 9093))
    assert us.properties == {
        "bootstrap.servers": "127.0.0.1:9092, [::1]:9093",
        "client.id": "my-replicator",
        "socket.keepalive.enable": "yes",
        "fetch.error.backoff.ms": "0500",
    }
    assert config.links == (
        Link(
            "us",
            "no",
            "first",
            Topics(("orders", "payments-.*"), ("payments-secret",)),
            Rename(prefix="us."),
            StartAt(datetime(2026, 11, 1, tzinfo=UTC)),
            3,
            5000,
            16,
            500,
            20_000,
            "consumer",
            (
                Policy(("payments-.*",), source_gap="stop", target_lost="stop", foreign_writes="tolerate"),
                Policy(source_truncated="continue", foreign_writes="tolerate"),
                Policy(record_faults="skip", retry_timeout_ms=60_000, retry_delay_max_ms=5000, foreign_writes="fence"),
                Policy(foreign_writes="tolerate"),
            ),
            Groups(("billing", "app-.*"), (), "us.{group}", 1000),
            Mm2Topics(True, True, "target", "-", 2000),
            "read_uncommitted",
            (Edit(drop="tombstones"), Edit(("payments-.*",), set_header=HeaderValue("region", None))),
            True,
            "prevent",
            (Batches(("orders",), "zstd", "always", 5),),
            DeadLetterTopic("lost", "source", 3, 2, False, "reasons"),
            transforms=(Transform("thin", ("orders",), {"each": 7, "more": [None, 1.5]}),),
        ),
        Link("no", "us", "no-us", Topics(), Rename(template="{topic}.mirror"), "latest", "broker", 30_000),
    )
    assert config.workers == 2
    assert config.limits == Limits(16 * MIB, 512 * KIB, 256 * KIB, 250, MIB, 20_000)


def test_defaults() -> None:
    config = from_data(SMALLEST)
    assert config.links == (Link("us", "eu", "us-eu"),)
    assert config.workers == default_workers()
    assert 1 <= config.workers <= 4
    assert config.limits == Limits(64 * MIB, 2 * MIB, MIB, 500, MIB, 30_000)


def test_a_config_travels_to_a_worker_process() -> None:
    config = parse(EVERYTHING)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(config), type=Config) == config


def test_a_config_is_frozen() -> None:
    with pytest.raises(AttributeError):
        parse(EVERYTHING).workers = 3  # type: ignore[misc]


# ---- what a link selects, and what it calls things ----


@pytest.mark.parametrize(
    ("topics", "selected", "left_out"),
    [
        (Topics(), ["orders", "a.b", "_x"], ["__consumer_offsets", "a.internal", "a-internal", "a.replica"]),
        (Topics(("orders",)), ["orders"], ["orders2", "my-orders", "Orders"]),
        (Topics(("a.*", "b"), ("ab+",)), ["a", "ac", "b"], ["ab", "abbb", "c"]),
        (Topics((".*",), ()), ["__consumer_offsets"], []),
    ],
)
def test_selection(topics: Topics, selected: list[str], left_out: list[str]) -> None:
    link = Link("us", "eu", topics=topics)
    assert [topic for topic in selected + left_out if link.selects(topic)] == selected


@pytest.mark.parametrize(
    ("rename", "target"),
    [
        (None, "orders"),
        (Rename(prefix="us."), "us.orders"),
        (Rename(template="{topic}.mirror"), "orders.mirror"),
        (Rename(template="a-{topic}-b"), "a-orders-b"),
        (Rename(regex="ord(.*)", replacement=r"\1-of"), "ers-of"),
        (Rename(regex="ord", replacement="x"), "orders"),  # the whole name, or nothing
        (Rename(regex="o|or|ord.*", replacement="x"), "xrders"),  # as Kafka Connect: what is found first
    ],
)
def test_target_topic(rename: Rename | None, target: str) -> None:
    assert Link("us", "eu", rename=rename).target_topic("orders") == target


@pytest.mark.parametrize(
    ("start", "timestamp_ms"),
    [
        ("2026-11-01T00:00:00Z", 1_793_491_200_000),
        ("2026-11-01T01:00:00.0019+01:00", 1_793_491_200_001),
        ("1970-01-01T00:00:00Z", 0),
        (1_700_000_000_123, 1_700_000_000_123),
    ],
)
def test_start_timestamp(start: object, timestamp_ms: int) -> None:
    data = {**SMALLEST, "links": [{"source": "us", "target": "eu", "start": {"timestamp": start}}]}
    started = from_data(data).links[0].start
    assert isinstance(started, StartAt)
    assert started.timestamp_ms == timestamp_ms


# ---- small languages ----


@given(st.integers(0, 10**12), st.sampled_from([("", 1), ("KiB", 2**10), ("MiB", 2**20), ("GiB", 2**30)]))
def test_sizes(number: int, unit: tuple[str, int]) -> None:
    name, factor = unit
    assert parse_size(f"{number}{name}") == parse_size(f"{number} {name}".strip()) == number * factor


@given(st.text() | st.from_regex(r"[0-9]{0,3}[ .]?[kKMG]i?[bB]?", fullmatch=True))
def test_sizes_of_any_text(text: str) -> None:
    if re.fullmatch(r"[0-9]{1,18} ?([KMG]iB)?", text, re.ASCII):
        assert parse_size(text) >= 0
    else:
        with pytest.raises(ConfigError, match="is not a size"):
            parse_size(text)


hosts: SearchStrategy[str] = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?", fullmatch=True)
addresses = st.tuples(hosts | st.ip_addresses(v=4).map(str) | st.ip_addresses(v=6).map(str), st.integers(1, 65535))


@given(st.lists(addresses, min_size=1, max_size=5))
def test_bootstrap(given_addresses: list[tuple[str, int]]) -> None:
    text = " ,".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in given_addresses)
    assert parse_bootstrap(text) == tuple(given_addresses)


@given(st.text(max_size=200))
def test_any_text_is_a_config_or_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError):
        parse(text)


# ---- what is refused: the change to a good file, and the exact answer ----

GOOD = """\
clusters:
  us: {bootstrap.servers: "h:1"}
  eu:
    bootstrap.servers: "h:2,h:3"
links:
  - source: us
    target: eu
    topics: {include: ["a", "b.*"]}
workers: 2
limits: {fetch_bytes_max: 64KiB}
"""

BAD_VALUES = [
    ("workers: 2", "workers: 0", "9:10: expected int >= 1"),
    ("workers: 2", "workers: -1", "9:10: expected int >= 1"),
    ("workers: 2", "workers: two", "9:10: expected int, got str"),
    ("workers: 2", "workers: 2.5", "9:10: expected int, got float"),
    ("workers: 2", "workers: true", "9:10: expected int, got bool"),
    ("workers: 2", "workers:", "9:9: expected int, got null"),
    ("workers: 2", "wrokers: 2", "9:1: unknown key `wrokers`; did you mean `workers`?"),
    ("workers: 2", "threads: 2", "9:1: unknown key `threads`; one of clusters, links, workers, limits"),
    ("workers: 2", "links: []", "9:1: `links` is given twice; first on line 5"),
    ("workers: 2", "? [a]\n: 1", "9:3: a key must be a plain text"),
    ("64KiB", "64KB", "10:27: `64KB` is not a size; write 65536, 64KiB, 2MiB or 1GiB"),
    ("64KiB", "-1", "10:27: expected int >= 1"),
    ("64KiB", "0MiB", "10:27: expected int >= 1"),
    ("64KiB", "2GiB", "10:27: expected int <= 2147483647"),
    (
        "64KiB",
        "1MiB, credit_bytes: 512KiB",
        "10:47: `credit_bytes` is 524288, but must be >= `fetch_bytes_max`, which is 1048576",
    ),
    ("64KiB", "64KiB, fetch_wait_ms: 5KiB", "10:49: expected int, got str"),
    (
        "64KiB",
        "64KiB, request_timeout_ms: 200",
        "10:9: `fetch_wait_ms` is 500, but must be < `request_timeout_ms`, which is 200",
    ),
    (
        "fetch_bytes_max",
        "fetch_byte_max",
        "10:10: unknown key `fetch_byte_max`; did you mean `fetch_bytes_max`?",
    ),
]

BAD_CLUSTERS = [
    ('us: {bootstrap.servers: "h:1"}', "us: h:1", "2:7: cluster `us` must be a mapping of client properties"),
    ('us: {bootstrap.servers: "h:1"}', "us: {}", "2:7: `bootstrap.servers` is missing"),
    (
        "us: {bootstrap.servers:",
        "us: {bootstrap.server:",
        "2:7: `bootstrap.servers` is missing; `bootstrap.server` is a typo?",
    ),
    ('"h:1"}', "[h:1]}", "2:27: `bootstrap.servers` must be a single value"),
    ('"h:1"}', '""}', "2:27: 0 addresses; give 1 to 100, as host:port"),
    ('"h:1"}', '"h"}', "2:27: `h` is not an address; write host:port or [IPv6]:port"),
    ('"h:1"}', '"::1:9092"}', "2:27: `::1:9092` is not an address; write host:port or [IPv6]:port"),
    ('"h:1"}', '"[x::1]:9092"}', "2:27: `x::1` is not an IPv6 address"),
    ('"h:1"}', '"h:0"}', "2:27: `h:0` has no possible port; 1 to 65535"),
    ('"h:1"}', '"h:65536"}', "2:27: `h:65536` has no possible port; 1 to 65535"),
    ("  eu:", "  us:", "3:3: `us` is given twice; first on line 2"),
    ("  eu:", "  e u:", "3:3: `e u` cannot be an alias; letters, digits, `.`, `_` and `-`"),
    ("  eu:", '  "eu\\n":', "3:3: `eu ` cannot be an alias; letters, digits, `.`, `_` and `-`"),
    ("  eu:", f"  {'e' * 101}:", "2:3: expected str of length <= 100"),
    (
        '"h:1"}',
        '"h:1", security.protocol: SASL_SSL}',
        "2:34: `security.protocol`: TLS and SASL are not in this version yet; use a PLAINTEXT listener",
    ),
    (
        '"h:1"}',
        '"h:1", sasl.username: me}',
        "2:34: `sasl.username`: TLS and SASL are not in this version yet; use a PLAINTEXT listener",
    ),
    (
        '"h:1"}',
        '"h:1", ssl.ca.location: /ca.pem}',
        "2:34: `ssl.ca.location`: TLS and SASL are not in this version yet; use a PLAINTEXT listener",
    ),
]

BAD_LINKS = [
    ("source: us", "source: uss", "6:13: no cluster `uss`; did you mean `us`?"),
    ("target: eu", "target: asia", "7:13: no cluster `asia`; one of us, eu"),
    ("target: eu", "target: 3", "7:13: expected str, got int"),
    ("    target: eu\n", "", "6:5: `target` is missing"),
    ("source: us", "sorce: us", "6:5: unknown key `sorce`; did you mean `source`?"),
    (
        "source: us",
        "source: us\n    name: a b",
        r"7:11: expected str matching regex '^(?!\\.{1,2}$)[A-Za-z0-9._-]+$(?!\\n)'",
    ),
    (
        "workers: 2",
        "  - {source: us, target: eu}",
        "9:5: a second link named `us-eu`; links need different names; the other one is links[0]",
    ),
    (
        "target: eu",
        "target: us",
        "6:5: link `us-us` would feed itself: source and target are one cluster; add a `rename`",
    ),
    (
        '"h:2,h:3"',
        '"h:2,h:1"',
        "6:5: link `us-eu` would feed itself: source and target are one cluster; add a `rename`",
    ),
    (
        "target: eu",
        "target: us\n    rename: {prefix: b}",
        "8:13: link `us-us` would feed itself: `ba` is selected too; exclude the new names",
    ),
    (
        "target: eu",
        'target: us\n    rename: {template: "{topic}"}',
        "8:13: link `us-us` would feed itself: `a` is selected too; exclude the new names",
    ),
    ('"a", "b.*"', "", "8:23: expected list of length >= 1"),
    ('"a", "b.*"', '"a", 5', "8:29: expected str, got int"),
    ('"a", "b.*"', '"a", ""', "8:29: expected str of length >= 1"),
    ('"a", "b.*"', '"a", "+b"', "8:29: `+b` is not a regular expression: nothing to repeat at position 0"),
    (
        '"b.*"]',
        '"b.*"], exclude: ["*"]',
        "8:47: `*` is not a regular expression: nothing to repeat at position 0",
    ),
    ('["a", "b.*"]', '"a"', "8:23: expected list, got str"),
    ("include", "inclde", "8:14: unknown key `inclde`; did you mean `include`?"),
    (
        "target: eu",
        "target: eu\n    start: earlist",
        "8:12: unknown value `earlist`; did you mean `earliest`?",
    ),
    ("target: eu", "target: eu\n    start: 17", "8:12: expected str | mapping, got int"),
    (
        "target: eu",
        "target: eu\n    start: {time: 17}",
        "8:13: unknown key `time`; did you mean `timestamp`?",
    ),
    ("target: eu", "target: eu\n    start: {timestamp: -1}", "8:24: expected int >= 0"),
    (
        "target: eu",
        "target: eu\n    start: {timestamp: 2026-11-01T00:00:00}",
        "8:24: expected datetime with a timezone component",
    ),
    (
        "target: eu",
        "target: eu\n    start: {timestamp: 1969-12-31T23:59:59Z}",
        "8:12: a timestamp before 1970",
    ),
    ("target: eu", "target: eu\n    rename: {}", "8:13: give one of prefix, template, and regex with replacement"),
    (
        "target: eu",
        'target: eu\n    rename: {prefix: a, template: "{topic}b"}',
        "8:13: give one of prefix, template, and regex with replacement",
    ),
    (
        "target: eu",
        "target: eu\n    rename: {template: mirror}",
        r"8:24: expected str matching regex '^[A-Za-z0-9._-]*\\{topic\\}[A-Za-z0-9._-]*$(?!\\n)'",
    ),
    ("target: eu", "target: eu\n    rename: us.", "8:13: expected mapping | null, got str"),
    ("target: eu", "target: eu\n    replication_factor: 0", "8:25: expected int >= 1"),
    (
        "target: eu",
        "target: eu\n    replication_factor: all",
        "8:25: unknown value `all`; one of broker, source",
    ),
    ("target: eu", "target: eu\n    refresh_topics_ms: 1", "8:24: expected int >= 100"),
]

BAD_YAML = [
    ("workers: 2", "workers: [2", "10:7: expected ',' or ']', but got ':'"),
    ("workers: 2", "\tworkers: 2", "9:1: found character '\\t' that cannot start any token"),
    ("workers: 2", "workers: 2\n---\na: 1", "10:1: but found another document"),
    ("workers: 2", r'workers: "\UFFFFFFFF"', " not YAML: Python int too large to convert to C int"),
    ("workers: 2", '"a`b$.c": 2', "9:1: unknown key `a`b$.c`; one of clusters, links, workers, limits"),
    ("workers: 2", "workers: &x 2", "9:10: anchors and aliases are not supported"),
    ("workers: 2", "workers: *x", "9:10: anchors and aliases are not supported"),
    ("workers: 2", "workers: !!python/name:os.system 2", "9:10: tags are not supported"),
    (
        "workers: 2",
        f"workers: {'[' * 20}{']' * 20}",
        f"9:{10 + DEPTH_MAX - 1}: nested deeper than {DEPTH_MAX}",
    ),
]


@pytest.mark.parametrize(("old", "new", "answer"), BAD_VALUES + BAD_CLUSTERS + BAD_LINKS + BAD_YAML)
def test_refused(old: str, new: str, answer: str) -> None:
    assert GOOD.count(old) == 1
    with pytest.raises(ConfigError) as caught:
        parse(GOOD.replace(old, new), "link.yaml")
    assert str(caught.value) == f"link.yaml:{answer}"


def test_what_is_refused_was_good_before() -> None:
    assert parse(GOOD).limits.fetch_bytes_max == 64 * KIB


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}", "[]", "~"])
def test_an_empty_file(text: str) -> None:
    with pytest.raises(ConfigError, match=r"link.yaml: is empty; a link file has `clusters` and `links`"):
        parse(text, "link.yaml")


def test_plain_data_is_checked_by_the_same_rules_without_a_place() -> None:
    with pytest.raises(ConfigError) as caught:
        from_data({**SMALLEST, "workers": 0})
    assert str(caught.value) == "expected int >= 1"


def test_a_rename_that_leads_out_of_the_selection_may_stay_in_its_cluster() -> None:
    link = {"source": "us", "target": "us", "rename": {"prefix": "copy."}}
    with pytest.raises(ConfigError, match="would feed itself"):
        from_data({**SMALLEST, "links": [link]})
    for topics in ({"include": ["orders", "pay.*"]}, {"exclude": [r"copy\..*"]}):
        (loaded,) = from_data({**SMALLEST, "links": [{**link, "topics": topics}]}).links
        assert loaded.selects("orders")
        assert not loaded.feeds_itself("orders")


# ---- files ----


def test_load(tmp_path: Path) -> None:
    path = tmp_path / "link.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load(path) == load(str(path)) == parse(GOOD)


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        (None, ": cannot be read: No such file or directory"),
        (b"workers: 2\n\xff", ":2: not UTF-8"),
        (b"workers: \0", ": unacceptable character #x0000: special characters are not allowed"),
        (b"# " + b"x" * load_module.FILE_BYTES_MAX, ": larger than 1048576 bytes; is this a link file?"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: bytes | None, answer: str) -> None:
    path = tmp_path / "link.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}{answer}")


# ---- the schema ----


def test_the_first_policy_that_names_a_topic_counts() -> None:
    first = parse(EVERYTHING).links[0]
    assert [first.policy(topic).source_gap for topic in ("payments-eu", "orders")] == ["stop", "continue"]
    assert Link("us", "eu").policy("orders") == Policy()


def test_others_may_write_to_the_target_where_loops_are_prevented_unless_a_policy_says_no() -> None:
    def tolerated(**link: object) -> list[str]:
        clusters = {alias: {"bootstrap.servers": f"{alias}:9092"} for alias in ("us", "eu")}
        made = from_data({"clusters": clusters, "links": [{"source": "us", "target": "eu", **link}]}).links[0]
        return [made.policy(topic).foreign_writes for topic in ("a", "b", "c")]

    policies = [{"topics": ["a"], "foreign_writes": "fence"}, {"topics": ["b"], "source_gap": "stop"}]
    assert tolerated() == ["fence"] * 3
    assert tolerated(policies=policies) == ["fence"] * 3
    assert tolerated(loops="prevent") == ["tolerate"] * 3
    assert tolerated(loops="prevent", policies=policies) == ["fence", "tolerate", "tolerate"]
    connect = {"errors.tolerance": "all"}
    assert tolerated(loops="prevent", policies=policies, connect=connect) == ["fence", "tolerate", "tolerate"]


def test_groups_are_selected_and_renamed() -> None:
    groups = parse(EVERYTHING).links[0].groups
    assert [groups.selects(group) for group in ("app-1", "billing", "billing-2")] == [True, True, False]
    assert groups.target_group("app-1") == "us.app-1"
    kept_out = ("console-consumer-7", "connect-sink", "__internal", "replicator.us-eu")
    assert [group for group in ("orders", *kept_out) if Groups().selects(group)] == ["orders"]


def test_the_schema_lists_exactly_the_options() -> None:
    documented = {name: set(part["properties"]) for name, part in json_schema()["$defs"].items()}
    models = [LinkFile, Link, Topics, Rename, StartAt, Limits, Policy, Groups, Mm2Topics, Batches, DeadLetterTopic]
    models += [Transform, Edit, Where, KeyIs, HeaderIs, Between, Base64, HeaderValue, HeaderMatch, HeaderRename]
    assert documented == {model.__name__: set(model.__struct_encode_fields__) for model in models}


def test_every_option_is_described_and_nothing_else_is_allowed() -> None:
    for name, part in json_schema()["$defs"].items():
        assert part["additionalProperties"] is False, name
        for key, row in part["properties"].items():
            assert row.get("description"), f"{name}.{key}"


def test_the_schema_allows_what_a_file_may_spell() -> None:
    parts = json_schema()["$defs"]
    assert parts["Limits"]["properties"]["credit_bytes"]["type"] == ["integer", "string"]
    cluster = parts["LinkFile"]["properties"]["clusters"]["additionalProperties"]
    assert cluster["required"] == ["bootstrap.servers"]
    assert cluster["additionalProperties"] == {"type": ["string", "number", "boolean"]}
    assert "x-type" not in msgspec.json.encode(json_schema()).decode()


def test_the_schema_accepts_the_example_and_refuses_what_we_refuse() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    check = jsonschema.Draft202012Validator(json_schema())
    assert check.is_valid(read_tree(EVERYTHING).data)
    assert check.is_valid(SMALLEST)
    for wrong in ({"workers": 0}, {"links": []}, {"limits": {"credit_bytes": "64KB"}}, {"more": 1}):
        assert not check.is_valid({**SMALLEST, **wrong}), wrong
    for rename in ({}, {"prefix": "a", "template": "{topic}"}, {"template": "x"}):
        link = {"source": "us", "target": "eu", "rename": rename}
        assert not check.is_valid({**SMALLEST, "links": [link]}), rename
