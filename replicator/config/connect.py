"""Kafka Connect's properties for what a link can do as well, turned into the link's own options.

The grammar is Connect's: `transforms: "a,b"`, then `transforms.a.type`, `transforms.a.predicate`, `transforms.a.negate`
and the options of that type; the same with `predicates`; and the `errors.` properties. What is not understood is
refused by name, for a connector's configuration that is half obeyed would be worse than none. Properties that are not
given leave the link's own defaults in place, not Connect's.

The meaning was checked against Connect 4.3: a transform with a predicate applies where that holds (or not, with
`negate`), RegexRouter wants the whole name to match and then replaces what the expression finds first, and an
InsertHeader whose literal is `null` adds a header with no value. Connect reads other literals as numbers, lists or
maps where it can, and some come out spelled differently (1.50 as 1.5); we write the text as it stands.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, NoReturn

import msgspec

from replicator.config.edits import Edit, HeaderIs, HeaderMatch, HeaderValue, Where
from replicator.config.fields import pattern_fault, plain_words
from replicator.config.models import REPLACEMENT, DeadLetterTopic, Policy, Rename

_TRIMMED = "".join(map(chr, range(33)))  # Java's idea of white space at the ends of a value
_PACKAGE = "org.apache.kafka.connect.transforms."


class PropertyFault(Exception):
    """A property that cannot be meant, or not by us."""

    def __init__(self, key: str, what: str, hint: str = "", *, at_key: bool = False) -> None:
        super().__init__(what)
        self.key, self.what, self.hint, self.at_key = key, what, hint, at_key


class Translated(NamedTuple):
    """What the properties say in the link's own options; `policy` and `dead_letters` only hold what was given."""

    edits: tuple[Edit, ...]
    rename: Rename | None
    policy: dict[str, Any]
    dead_letters: dict[str, Any]


def translate(properties: Mapping[str, str], rename: Rename | None = None) -> Translated:
    """`rename` is what the link says without Connect. Raises PropertyFault for the first property that is wrong."""
    given = _Given(properties)
    aliases = given.aliases("transforms")
    given.aliases("predicates")
    edits: list[Edit] = []
    for alias in aliases:
        made = _transform(given, alias, rename)
        if isinstance(made, Rename):
            rename = made
        else:
            edits.append(made)
    given.check_predicates()
    policy, dead_letters = _errors(given)
    given.refuse_the_rest()
    return Translated(tuple(edits), rename, policy, dead_letters)


class _Given:
    """The properties, and which of them have been understood."""

    def __init__(self, properties: Mapping[str, str]) -> None:
        self._properties = {key: value.strip(_TRIMMED) for key, value in properties.items()}
        self._asked: set[str] = set()  # what was looked for, given or not
        self._aliases: dict[str, list[str]] = {}

    def take(self, key: str) -> str | None:
        self._asked.add(key)
        return self._properties.get(key)

    def need(self, key: str, of: str, *, empty: bool = False) -> str:
        """A property that must be there; `of` is the property to point at when it is not."""
        value = self.take(key)
        if value is None:
            raise PropertyFault(of, f"`{key}` is missing")
        if not value and not empty:
            raise PropertyFault(key, f"`{key}` is empty")
        return value

    def aliases(self, kind: str) -> list[str]:
        """The aliases that `transforms` or `predicates` lists."""
        aliases = _listed(self.take(kind) or "")
        for alias in aliases:
            if not alias or aliases.count(alias) > 1:
                raise PropertyFault(kind, f"`{kind}` lists `{alias}` twice" if alias else f"`{kind}` has an empty name")
        self._aliases[kind] = aliases
        return aliases

    def predicate(self, key: str, alias: str) -> str:
        """The type of the predicate that property `key` names."""
        if alias not in self._aliases["predicates"]:
            hint = _nearest(alias, self._aliases["predicates"]) if self._aliases["predicates"] else ""
            raise PropertyFault(key, f"`predicates` lists no `{alias}`", hint)
        return self.type("predicates", alias, _PREDICATES)

    def type(self, kind: str, alias: str, table: Iterable[str]) -> str:
        """The simple name of a class of Connect's, from its full or its simple name."""
        key = f"{kind}.{alias}.type"
        value = self.need(key, kind)
        package = _PACKAGE if kind == "transforms" else f"{_PACKAGE}predicates."
        name = value.removeprefix(package)
        if name not in table:
            raise PropertyFault(key, f"`{value}` is not supported", _nearest(name, table))
        return name

    def check_predicates(self) -> None:
        """Those that no transform asks for have to be sound as well."""
        for alias in self._aliases["predicates"]:
            _PREDICATES[self.predicate("predicates", alias)](self, alias)

    def refuse_the_rest(self) -> None:
        for key in self._properties:
            if key in self._asked:
                continue
            for kind, aliases in self._aliases.items():
                if key.startswith(f"{kind}."):
                    self._refuse_option(key, kind, aliases)
            hint = _nearest(key, ("transforms", "predicates", *_ERRORS))
            raise PropertyFault(key, f"`{key}` is not supported", hint, at_key=True)

    def _refuse_option(self, key: str, kind: str, aliases: list[str]) -> NoReturn:
        alias = max((name for name in aliases if key.startswith(f"{kind}.{name}.")), key=len, default=None)
        if alias is None:
            unknown = key.removeprefix(f"{kind}.").split(".")[0]
            hint = _nearest(unknown, aliases) if aliases else ""
            raise PropertyFault(key, f"`{key}`: `{kind}` does not list `{unknown}`", hint, at_key=True)
        options = sorted(asked for asked in self._asked if asked.startswith(f"{kind}.{alias}."))
        raise PropertyFault(key, f"`{key}` is not an option of its type", _nearest(key, options), at_key=True)


def _listed(text: str) -> list[str]:
    return re.split(r"\s*,\s*", text) if text else []


def _nearest(word: str, choices: Iterable[str]) -> str:
    choices = list(choices)
    close = difflib.get_close_matches(word, choices, 1)
    return f"did you mean `{close[0]}`?" if close else f"supported: {', '.join(choices)}"


# ---- transforms and predicates ----


class _Records(NamedTuple):
    """Where a transform applies: topics by their names, records by what they are."""

    topics: tuple[str, ...] = (".*",)
    where: Where | None = None

    def negated(self) -> "_Records":
        if self.where is not None:
            return _Records(self.topics, Where(not_=self.where))
        return _Records((rf"(?!(?:{self.topics[0]})\Z).*",))


def _transform(given: _Given, alias: str, rename: Rename | None) -> Edit | Rename:
    prefix = f"transforms.{alias}."
    make = _TRANSFORMS[given.type("transforms", alias, _TRANSFORMS)]
    records = _condition(given, prefix, rename)
    try:
        made = make(given, prefix, records)
        if isinstance(made, Rename) and rename is not None:
            raise PropertyFault(f"{prefix}type", "topics are renamed already", "one RegexRouter, or `rename`")
        # What a file may not say, a property may not say either: lengths and the like.
        return msgspec.convert(msgspec.to_builtins(made), type(made))
    except (ValueError, msgspec.ValidationError) as error:
        raise PropertyFault(f"{prefix}type", _complaint(error)) from None


def _condition(given: _Given, prefix: str, rename: Rename | None) -> _Records:
    key = f"{prefix}predicate"
    alias, negate = given.take(key), given.take(f"{prefix}negate")
    if alias is None:
        if negate is not None:
            raise PropertyFault(f"{prefix}negate", f"`{prefix}negate` without `{key}`", at_key=True)
        return _Records()
    name = given.predicate(key, alias)
    if name == "TopicNameMatches" and rename is not None:
        what = "TopicNameMatches would ask for the new name of renamed topics"
        raise PropertyFault(
            key, what, "list RegexRouter last, or use `edits` with `topics`, which are the source's names"
        )
    records = _PREDICATES[name](given, alias)
    return records.negated() if negate is not None and _boolean(f"{prefix}negate", negate) else records


def _insert_header(given: _Given, prefix: str, records: _Records) -> Edit:
    name = given.need(f"{prefix}header", f"{prefix}type")
    literal = given.need(f"{prefix}value.literal", f"{prefix}type", empty=True)
    header = HeaderValue(name, None if literal == "null" else literal)
    return Edit(records.topics, records.where, add_header=header)


def _drop_headers(given: _Given, prefix: str, records: _Records) -> Edit:
    """One step for all of them: after the first is gone, the predicate might not hold any more."""
    names = _listed(given.need(f"{prefix}headers", f"{prefix}type"))
    if len(names) == 1:
        return Edit(records.topics, records.where, drop_header=HeaderMatch(name=names[0]))
    matching = "|".join(re.escape(name) for name in names)
    return Edit(records.topics, records.where, drop_header=HeaderMatch(matching=matching))


def _filter(given: _Given, prefix: str, records: _Records) -> Edit:
    if records == _Records():
        raise PropertyFault(f"{prefix}type", "a Filter without a predicate would drop every record")
    return Edit(records.topics, records.where, drop=True)


def _regex_router(given: _Given, prefix: str, records: _Records) -> Rename:
    regex = java_pattern(f"{prefix}regex", given.need(f"{prefix}regex", f"{prefix}type"))
    text = given.need(f"{prefix}replacement", f"{prefix}type", empty=True)
    replacement = java_replacement(f"{prefix}replacement", text, re.compile(regex))
    if not re.search(REPLACEMENT, replacement):
        raise PropertyFault(f"{prefix}replacement", f"`{text}` would make a name that no topic can have")
    if records.where is not None:
        what = "a RegexRouter is for whole topics, so its predicate can only be TopicNameMatches"
        raise PropertyFault(f"{prefix}predicate", what)
    if records != _Records():
        if re.compile(records.topics[0]).groups:
            what = "the predicate of a RegexRouter must not have groups"
            raise PropertyFault(f"{prefix}predicate", what, "write (?:...), or put the condition into `regex`")
        regex = rf"(?=(?:{records.topics[0]})\Z)(?:{regex})"
    return Rename(regex=regex, replacement=replacement)


_TRANSFORMS: dict[str, Callable[[_Given, str, _Records], Edit | Rename]] = {
    "InsertHeader": _insert_header,
    "DropHeaders": _drop_headers,
    "Filter": _filter,
    "RegexRouter": _regex_router,
}


def _has_header_key(given: _Given, alias: str) -> _Records:
    name = given.need(f"predicates.{alias}.name", f"predicates.{alias}.type")
    return _Records(where=Where(header=HeaderIs(name)))


def _record_is_tombstone(given: _Given, alias: str) -> _Records:
    return _Records(where=Where(tombstone=True))


def _topic_name_matches(given: _Given, alias: str) -> _Records:
    key = f"predicates.{alias}.pattern"
    return _Records((java_pattern(key, given.need(key, f"predicates.{alias}.type")),))


_PREDICATES: dict[str, Callable[[_Given, str], _Records]] = {
    "HasHeaderKey": _has_header_key,
    "RecordIsTombstone": _record_is_tombstone,
    "TopicNameMatches": _topic_name_matches,
}


# ---- errors ----

_ERRORS = (
    "errors.tolerance",
    "errors.retry.timeout",
    "errors.retry.delay.max.ms",
    "errors.log.enable",
    "errors.log.include.messages",
    "errors.deadletterqueue.topic.name",
    "errors.deadletterqueue.topic.replication.factor",
    "errors.deadletterqueue.context.headers.enable",
)


def _errors(given: _Given) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields of Policy and of DeadLetterTopic."""
    tolerance, timeout, delay, log, messages, topic, replicas, context = ((key, given.take(key)) for key in _ERRORS)
    policy: dict[str, Any] = {}
    letters: dict[str, Any] = {"topic": topic[1]} if topic[1] else {}
    if tolerance[1] is not None:
        word = _choice(*tolerance, ("none", "all"))
        policy["record_faults"] = "stop" if word == "none" else "dlq" if letters else "skip"
    if timeout[1] is not None:
        policy["retry_timeout_ms"] = _integer(*timeout)
    if delay[1] is not None:
        policy["retry_delay_max_ms"] = _integer(*delay)
    if replicas[1] is not None:
        factor = _integer(*replicas)
        letters["replication_factor"] = "broker" if factor == -1 else factor
    if context[1] is not None:
        letters["context_headers"] = _boolean(*context)
    whole = messages[1] is not None and _boolean(*messages)
    if log[1] is not None:
        letters["log"] = ("records" if whole else "reasons") if _boolean(*log) else "off"
    _check(policy, Policy, {"retry_timeout_ms": timeout[0], "retry_delay_max_ms": delay[0]})
    _check(letters, DeadLetterTopic, {"topic": topic[0], "replication_factor": replicas[0]})
    return policy, letters


def _check(fields: dict[str, Any], model: type, keys: dict[str, str]) -> None:
    """The model's limits hold for properties, too."""
    for field, key in keys.items():
        try:
            msgspec.convert({name: value for name, value in fields.items() if name == field}, model)
        except msgspec.ValidationError as error:
            raise PropertyFault(key, f"`{key}`: {_complaint(error)}") from None


def _complaint(error: Exception) -> str:
    """msgspec's sentence without its path, which leads into our models and not into the file."""
    return plain_words(str(error).split(" - at ")[0])


def _choice(key: str, value: str | None, words: tuple[str, ...]) -> str:
    """Connect takes these words in any case."""
    word = (value or "").lower()
    if word not in words:
        raise PropertyFault(key, f"`{key}` is `{value}`, but must be {' or '.join(words)}")
    return word


def _boolean(key: str, value: str | None) -> bool:
    return _choice(key, value, ("true", "false")) == "true"


def _integer(key: str, value: str | None) -> int:
    if not re.fullmatch(r"[-+]?[0-9]{1,18}", value or ""):
        raise PropertyFault(key, f"`{key}` is `{value}`, but must be a whole number")
    return int(value or "")


# ---- Java's regular expressions ----

# What Python does not have, or reads as something else without a word.
_ONLY_JAVA = re.compile(r"\\[pPhHRXGezc]|\[|&&")
_PIECES = re.compile(
    r"\\Q(?P<literal>.*?)(?:\\E|\Z)|\\k<(?P<back>\w+)>|\(\?<(?P<group>\w+)>|\\.|\[\^?\]?|&&|.", re.DOTALL
)


def java_pattern(key: str, text: str) -> str:
    """A regular expression of Java's as Python's, the same for topic names. Raises PropertyFault for what has no
    counterpart there."""
    flags = re.match(r"\(\?([imsx]+)\)", text)
    made = [f"(?{flags[1]}:"] if flags else []  # Python wants flags at the very start, where others may put more
    in_set = False
    for piece in _PIECES.finditer(text, flags.end() if flags else 0):
        token = piece[0]
        if token.startswith("[") and not in_set:
            in_set = True
        elif _ONLY_JAVA.match(token) and (in_set or token[0] == "\\"):
            made.append(_counterpart(key, text, token))
            continue
        elif token == "]":
            in_set = False
        made.append(piece[0] if in_set and piece["literal"] is None else _as_python(piece))
    pattern = "".join(made) + (")" if flags else "")
    if fault := pattern_fault(pattern):
        raise PropertyFault(key, fault if pattern == text else f"{fault} (from `{text}`)")
    return pattern


def _as_python(piece: re.Match[str]) -> str:
    if piece["literal"] is not None:
        return re.escape(piece["literal"])
    if piece["back"]:
        return f"(?P={piece['back']})"
    return f"(?P<{piece['group']}>" if piece["group"] else piece[0]


def _counterpart(key: str, text: str, token: str) -> str:
    if token == r"\z":
        return r"\Z"
    what = f"`{token}` in `{text}` is Java's alone"
    if token.startswith("["):
        what = f"`{text}` has a set within a set, which is Java's alone"
    raise PropertyFault(key, what, "write it in the syntax that Java and Python share")


def java_replacement(key: str, text: str, pattern: re.Pattern[str]) -> str:
    r"""A replacement of Java's (`$1`, `${name}`, `\$`) as Python's. Raises PropertyFault for what Java would refuse."""
    made: list[str] = []
    at = 0
    while at < len(text):
        found = re.compile(r"\$\{(?P<name>\w+)\}|\$(?P<digits>[0-9]+)|\\(?P<literal>.)|(?P<plain>[^$\\])", re.DOTALL)
        piece = found.match(text, at)
        if piece is None:
            raise PropertyFault(key, f"`{text}` has a loose `{text[at]}`", r"write \$ or \\ for the character")
        at = piece.end()
        made.append(_replacement_piece(key, piece, pattern))
    return "".join(made)


def _replacement_piece(key: str, piece: re.Match[str], pattern: re.Pattern[str]) -> str:
    if piece["name"]:
        if piece["name"] not in pattern.groupindex:
            raise PropertyFault(key, f"the regex has no group `{piece['name']}`")
        return rf"\g<{piece['name']}>"
    if digits := piece["digits"]:
        # Java takes as many digits as still name a group; the others are text.
        count = next((n for n in range(len(digits), 0, -1) if n == 1 or int(digits[:n]) <= pattern.groups), 1)
        if int(digits[:count]) > pattern.groups:
            raise PropertyFault(key, f"the regex has no group {digits[:count]}")
        return rf"\g<{int(digits[:count])}>{digits[count:]}"
    text: str = piece["literal"] or piece["plain"]
    return text.replace("\\", r"\\")
