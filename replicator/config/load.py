"""From a link file to a Config, or to one clear sentence about what is wrong with it and where.

The main line is `from_tree`: sizes get their numbers, msgspec checks keys and types against the models,
then the few rules that span several values are checked by hand. msgspec says where it stumbled as a path
(`$.links[0].start`); the tree knows the line and column of every path.
"""

import difflib
import ipaddress
import re
from collections.abc import Iterable, Iterator
from pathlib import Path as FilePath
from typing import Any, NoReturn

import msgspec
from msgspec import inspect
from msgspec.structs import replace

from replicator.config.connect import PropertyFault, translate
from replicator.config.fields import GIB, KIB, MIB, NAME, pattern_fault, plain_words, replacement_fault
from replicator.config.models import Cluster, Config, Limits, Link, LinkFile, Policy
from replicator.config.recipes import DEPTH_MAX, NODES_MAX, condition, measure
from replicator.config.tree import Path, Tree, read_tree
from replicator.errors import ConfigError

FILE_BYTES_MAX = MIB
BOOTSTRAP_MAX = 100
OPTIONS_BYTES_MAX = 256 * KIB

_UNITS = {None: 1, "KiB": KIB, "MiB": MIB, "GiB": GIB}
_ADDRESS = re.compile(r"(?:\[(?P<ipv6>[^\]]*)\]|(?P<host>[A-Za-z0-9._-]+)):(?P<port>[0-9]{1,5})")


def load(path: str | FilePath) -> Config:
    """Read and check a link file. Raises ConfigError with file, line and column."""
    file = str(path)
    try:
        with open(path, "rb") as stream:
            raw = stream.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file) from None
    if len(raw) > FILE_BYTES_MAX:
        raise ConfigError(f"larger than {FILE_BYTES_MAX} bytes", file, hint="is this a link file?")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError("not UTF-8", file, raw.count(b"\n", 0, error.start) + 1) from None
    return parse(text, file)


def parse(text: str, file: str = "") -> Config:
    """Check a link file that is in memory already. `file` is the name that errors show."""
    return from_tree(read_tree(text, file, verbatim=("clusters", "connect")))


def from_data(data: dict[str, Any]) -> Config:
    """Check a configuration that was never in a file: the same structure as plain data, the same rules."""
    return from_tree(Tree(data))


def from_tree(tree: Tree) -> Config:
    """Check a document in the shape of `LinkFile`. Raises ConfigError for the first thing that is wrong."""
    if not tree.data:
        raise ConfigError("is empty", tree.file, hint="a link file has `clusters` and `links`")
    _check_properties(tree)
    try:
        file = msgspec.convert(_with_sizes(tree), LinkFile)
    except msgspec.ValidationError as error:
        _explain(tree, str(error))
    clusters = {alias: _cluster(tree, alias, properties) for alias, properties in file.clusters.items()}
    _check_limits(tree, file.limits)
    links = tuple(_completed(tree, ("links", index), link) for index, link in enumerate(file.links))
    _check_links(tree, links, clusters)
    return Config(clusters, links, file.workers, file.limits)


# ---- sizes ----


def _with_sizes(tree: Tree) -> Any:
    """The document with texts such as 64MiB replaced by numbers."""
    return _sized(tree, (), tree.data)


def _sized(tree: Tree, path: Path, value: Any) -> Any:
    """The value at a path, changed only where a size may be: in `limits`, and in the `where` of an edit."""
    match path, value:
        case (("limits", str(key)), str()) if key in Limits.__struct_fields__ and "bytes" in key:
            return _size(tree, path, value)
        case (("links", _, "edits", _, "where", *_, "larger_than"), str()):
            return _size(tree, path, value)
        case ((), dict()) | (("limits", *_), dict()) | (("links", _), dict()) | (("links", _, "edits", *_), dict()):
            return {key: _sized(tree, (*path, key), part) for key, part in value.items()}
        case (("links",), list()) | (("links", _, "edits", *_), list()):
            return [_sized(tree, (*path, index), part) for index, part in enumerate(value)]
    return value


def _size(tree: Tree, path: Path, text: str) -> int:
    with tree.at(*path):
        return parse_size(text)


def parse_size(text: str) -> int:
    """Bytes of `65536`, `64KiB`, `2 MiB`, `1GiB`. Raises ConfigError."""
    found = re.fullmatch(r"([0-9]{1,18}) ?(KiB|MiB|GiB)?", text)
    if not found:
        raise ConfigError(f"`{text}` is not a size", hint="write 65536, 64KiB, 2MiB or 1GiB")
    return int(found[1]) * _UNITS[found[2]]


# ---- what msgspec found ----


def _explain(tree: Tree, message: str) -> NoReturn:
    """Turn msgspec's sentence into ours: YAML's words, a place in the file, and what may have been meant."""
    split = re.fullmatch(r"(.*) - at `(?:key` in `)?(\$[^`]*)`", message, re.DOTALL)
    what, where = split.groups() if split else (message, "")
    path: Path = tuple(int(index) if index else key for key, index in re.findall(r"\.(\w+)|\[(\d+)\]", where))
    if found := re.fullmatch(r"Object contains unknown field `(.*)`", what, re.DOTALL):
        key = found[1]
        raise tree.error((*path, key), f"unknown key `{key}`", hint=_meant(key, _names(path)), at_key=True)
    if found := re.fullmatch(r"Object missing required field `(.*)`", what):
        raise tree.error(path, f"`{found[1]}` is missing")
    if found := re.fullmatch(r"Invalid enum value '(.*)'", what, re.DOTALL):
        raise tree.error(path, f"unknown value `{found[1]}`", hint=_meant(found[1], _names(path)))
    raise tree.error(path, plain_words(what))


def _meant(word: str, choices: Iterable[str]) -> str:
    """The nearest of the choices, or all of them."""
    choices = list(choices)
    close = difflib.get_close_matches(word, choices, 1)
    return f"did you mean `{close[0]}`?" if close else f"one of {', '.join(choices)}"


def _names(path: Path) -> list[str]:
    """The names that the models allow at a path: keys of a mapping, and words of a choice."""
    kinds = _unwrapped(inspect.type_info(LinkFile))
    for step in path:
        kinds = [part for kind in kinds for part in _part(kind, step)]
    keys = [row.encode_name for kind in kinds if isinstance(kind, inspect.StructType) for row in kind.fields]
    words = [str(word) for kind in kinds if isinstance(kind, inspect.LiteralType) for word in kind.values]
    return keys + words


def _part(kind: inspect.Type, step: str | int) -> list[inspect.Type]:
    match kind:
        case inspect.StructType():
            return [part for row in kind.fields if row.encode_name == step for part in _unwrapped(row.type)]
        case inspect.VarTupleType():
            return _unwrapped(kind.item_type)
    return []


def _unwrapped(kind: inspect.Type) -> list[inspect.Type]:
    match kind:
        case inspect.Metadata():
            return _unwrapped(kind.type)
        case inspect.UnionType():
            return [part for choice in kind.types for part in _unwrapped(choice)]
    return [kind]


# ---- clusters ----


def _check_properties(tree: Tree) -> None:
    """Shape of the clusters. Their keys are free, and msgspec does not name free keys in its errors."""
    clusters = tree.data.get("clusters") if isinstance(tree.data, dict) else None
    for alias, properties in clusters.items() if isinstance(clusters, dict) else ():
        if not re.search(NAME, alias):
            hint = "letters, digits, `.`, `_` and `-`"
            raise tree.error(("clusters", alias), f"`{alias}` cannot be an alias", hint=hint, at_key=True)
        if not isinstance(properties, dict):
            raise tree.error(("clusters", alias), f"cluster `{alias}` must be a mapping of client properties")
        for key, value in properties.items():
            if not isinstance(value, str):
                raise tree.error(("clusters", alias, key), f"`{key}` must be a single value")


def _cluster(tree: Tree, alias: str, properties: dict[str, str]) -> Cluster:
    for key, value in properties.items():
        if key.startswith(("sasl.", "ssl.")) or (key == "security.protocol" and value.upper() != "PLAINTEXT"):
            what = f"`{key}`: TLS and SASL are not in this version yet"
            raise tree.error(("clusters", alias, key), what, hint="use a PLAINTEXT listener", at_key=True)
    if "bootstrap.servers" not in properties:
        close = difflib.get_close_matches("bootstrap.servers", properties, 1)
        hint = f"`{close[0]}` is a typo?" if close else ""
        raise tree.error(("clusters", alias), "`bootstrap.servers` is missing", hint=hint)
    with tree.at("clusters", alias, "bootstrap.servers"):
        bootstrap = parse_bootstrap(properties["bootstrap.servers"])
    return Cluster(alias, bootstrap, properties, properties.get("client.id") or "replicator")


def parse_bootstrap(text: str) -> tuple[tuple[str, int], ...]:
    """Host and port of each address in `host:port,[::1]:9092`. Raises ConfigError."""
    addresses = [address for part in text.split(",") if (address := part.strip())]
    if not 1 <= len(addresses) <= BOOTSTRAP_MAX:
        raise ConfigError(f"{len(addresses)} addresses", hint=f"give 1 to {BOOTSTRAP_MAX}, as host:port")
    return tuple(_address(address) for address in addresses)


def _address(text: str) -> tuple[str, int]:
    found = _ADDRESS.fullmatch(text)
    if not found:
        raise ConfigError(f"`{text}` is not an address", hint="write host:port or [IPv6]:port")
    if not 1 <= int(found["port"]) <= 65535:
        raise ConfigError(f"`{text}` has no possible port", hint="1 to 65535")
    if found["host"]:
        return found["host"], int(found["port"])
    try:
        ipaddress.IPv6Address(found["ipv6"])
    except ValueError:
        raise ConfigError(f"`{found['ipv6']}` is not an IPv6 address") from None
    return found["ipv6"], int(found["port"])


def _completed(tree: Tree, path: Path, link: Link) -> Link:
    """With what follows from what is said elsewhere in the link."""
    return _with_others(tree, path, _with_connect(tree, path, link))


# ---- Kafka Connect's properties ----


def _with_connect(tree: Tree, path: Path, link: Link) -> Link:
    """The link with its `connect` properties as its own options; its edits come first. What is said both ways is
    refused, except for policies: those that say nothing of a record's faults take Connect's word."""
    if not link.connect:
        return link
    try:
        said = translate(link.connect, link.rename)
    except PropertyFault as fault:
        raise tree.error((*path, "connect", fault.key), fault.what, hint=fault.hint, at_key=fault.at_key) from None
    written = _at(tree.data, path)
    for key in sorted(set(said.dead_letters) & set(written.get("dead_letters", ()))):
        raise tree.error((*path, "dead_letters", key), f"`{key}` is given by `connect`, too", at_key=True)
    if said.dead_letters.get("topic") and link.dead_letters.on == "none":
        place = (*path, "connect", "errors.deadletterqueue.topic.name")
        raise tree.error(place, "there is no dead-letter topic", hint="`dead_letters.on` is `none`", at_key=True)
    given = [policy.keys() for policy in written.get("policies", ())]
    policies = [
        replace(policy, **{key: value for key, value in said.policy.items() if key not in keys})
        for policy, keys in zip(link.policies, given, strict=True)
    ]
    return replace(
        link,
        edits=(*link.edits, *said.edits),
        rename=said.rename,
        policies=(*policies, *([Policy(**said.policy)] if said.policy else [])),
        dead_letters=replace(link.dead_letters, **said.dead_letters),
        connect={},
    )


def _with_others(tree: Tree, path: Path, link: Link) -> Link:
    """Where loops are prevented, applications write to both sides: policies that say nothing of it tolerate that."""
    if link.loops != "prevent":
        return link
    written = _at(tree.data, path).get("policies", ())
    said = {index for index, policy in enumerate(written) if "foreign_writes" in policy}
    policies = enumerate((*link.policies, Policy()))
    return replace(
        link,
        policies=tuple(
            policy if index in said else replace(policy, foreign_writes="tolerate") for index, policy in policies
        ),
    )


def _at(data: Any, path: Path) -> Any:
    for step in path:
        data = data[step]
    return data


# ---- rules that span several values ----


def _check_limits(tree: Tree, limits: Limits) -> None:
    rules = [
        ("credit_bytes", limits.credit_bytes, ">=", "fetch_bytes_max", limits.fetch_bytes_max),
        ("fetch_wait_ms", limits.fetch_wait_ms, "<", "request_timeout_ms", limits.request_timeout_ms),
    ]
    for key, value, relation, other, bound in rules:
        if not (value < bound if relation == "<" else value >= bound):
            what = f"`{key}` is {value}, but must be {relation} `{other}`, which is {bound}"
            raise tree.error(("limits", key), what)


def _check_links(tree: Tree, links: tuple[Link, ...], clusters: dict[str, Cluster]) -> None:
    names: dict[str, int] = {}
    for index, link in enumerate(links):
        path = ("links", index)
        for end, alias in (("source", link.source), ("target", link.target)):
            if alias not in clusters:
                raise tree.error((*path, end), f"no cluster `{alias}`", hint=_meant(alias, clusters))
        if link.name in names:
            hint = f"links need different names; the other one is links[{names[link.name]}]"
            raise tree.error((*path, "name"), f"a second link named `{link.name}`", hint=hint)
        names[link.name] = index
        _check_patterns(tree, path, link)
        _check_edits(tree, path, link)
        _check_options(tree, path, link)
        _check_dead_letters(tree, path, link)
        _check_loop(tree, path, link, clusters)


def _check_patterns(tree: Tree, path: Path, link: Link) -> None:
    for place, pattern in _patterns(link):
        if fault := pattern_fault(pattern):
            raise tree.error((*path, *place), fault)
    for place, pattern, replacement in _replacements(link):
        if fault := replacement_fault(pattern, replacement):
            raise tree.error((*path, *place), fault)


def _patterns(link: Link) -> Iterator[tuple[Path, str]]:
    """Every regular expression of a link, and where it is."""
    lists: list[tuple[Path, tuple[str, ...]]] = [
        (("topics", "include"), link.topics.include),
        (("topics", "exclude"), link.topics.exclude),
        (("groups", "include"), link.groups.include),
        (("groups", "exclude"), link.groups.exclude),
    ]
    for key in ("policies", "edits", "batches", "transforms"):
        lists += [((key, index, "topics"), row.topics) for index, row in enumerate(getattr(link, key))]
    for place, patterns in lists:
        yield from (((*place, index), pattern) for index, pattern in enumerate(patterns))
    if link.rename and link.rename.regex is not None:
        yield ("rename", "regex"), link.rename.regex
    for index, edit in enumerate(link.edits):
        for key in ("drop_header", "rename_header"):
            if (match := getattr(edit, key)) and match.matching is not None:
                yield ("edits", index, key, "matching"), match.matching


def _replacements(link: Link) -> Iterator[tuple[Path, str, str]]:
    if link.rename and link.rename.regex is not None:
        yield ("rename", "replacement"), link.rename.regex, link.rename.replacement
    for index, edit in enumerate(link.edits):
        if (match := edit.rename_header) and match.matching is not None:
            yield ("edits", index, "rename_header", "to"), match.matching, match.to


def _check_edits(tree: Tree, path: Path, link: Link) -> None:
    """The native core's limits on predicates: a link's edits together stay below what it takes of one partition."""
    nodes_left = NODES_MAX
    for index, edit in enumerate(link.edits):
        if edit.where is None:
            continue
        depth, nodes = measure(condition(edit.where))
        nodes_left -= nodes
        place = (*path, "edits", index, "where")
        if depth > DEPTH_MAX:
            raise tree.error(place, f"conditions within conditions, {depth} deep; {DEPTH_MAX} is the most")
        if nodes_left < 0:
            raise tree.error(place, f"the edits of a link have more than {NODES_MAX} conditions")


def _check_options(tree: Tree, path: Path, link: Link) -> None:
    """Each partition's worker is told them."""
    size = 0
    for index, transform in enumerate(link.transforms):
        size += len(msgspec.msgpack.encode(transform.options))
        if size > OPTIONS_BYTES_MAX:
            what = f"the options of a link's transforms are larger than {OPTIONS_BYTES_MAX} bytes"
            raise tree.error((*path, "transforms", index, "options"), what, hint="give them the name of a file")


def _check_dead_letters(tree: Tree, path: Path, link: Link) -> None:
    if link.dead_letters.on != "none":
        return
    written = _at(tree.data, path).get("policies", ())
    needy: list[Path] = [
        ("policies", index, "record_faults") for index, row in enumerate(written) if row.get("record_faults") == "dlq"
    ]
    needy += [("edits", index, "divert") for index, edit in enumerate(link.edits) if edit.divert is not None]
    for place in needy:
        raise tree.error((*path, *place), "there is no dead-letter topic", hint="`dead_letters.on` is `none`")


def _check_loop(tree: Tree, path: Path, link: Link, clusters: dict[str, Cluster]) -> None:
    """A link must not read what it writes.

    A guard against plain mistakes: one host under two names gets past it, and a pattern too clever to guess a
    name from. Who has asked the brokers knows cluster ids and topics, and has `Link.feeds_itself`.
    """
    if not set(clusters[link.source].bootstrap) & set(clusters[link.target].bootstrap):
        return
    if link.rename is None:
        raise tree.error(
            path,
            f"link `{link.name}` would feed itself: source and target are one cluster",
            hint="add a `rename`",
        )
    for topic in _examples(link.topics.include):
        if link.feeds_itself(topic):
            what = f"link `{link.name}` would feed itself: `{link.target_topic(topic)}` is selected too"
            raise tree.error((*path, "rename"), what, hint="exclude the new names")


def _examples(patterns: Iterable[str]) -> Iterator[str]:
    """A topic name for each pattern that is a name, or simple enough to guess one from."""
    for pattern in patterns:
        yield re.sub(r"\\(.)", r"\1", re.sub(r"\.[*+]", "x", pattern))
