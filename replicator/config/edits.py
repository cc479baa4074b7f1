"""What may be done to records on their way: the `edits` of a link, one action each, for some topics and some records.

The models only say what is meant. What the native core is told, `recipes.py` makes of them; what Kafka Connect calls
its transforms and predicates, `connect.py` turns into these.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from replicator.config.fields import (
    INT32_MAX,
    Base64,
    Content,
    Pattern,
    Time,
    TopicPatterns,
    any_matches,
    size,
    time_ms,
)

CONDITIONS_MAX = 100  # of one `any` or `all`
HEADER_NAME_LENGTH_MAX = 1000
OUR_HEADERS = "replicator."  # provenance, which only the replicator writes

HeaderName = Annotated[str, Meta(min_length=1, max_length=HEADER_NAME_LENGTH_MAX)]
Conditions = Annotated[tuple["Where", ...], Meta(min_length=1, max_length=CONDITIONS_MAX)]

COMPARISONS = ("equals", "prefix", "suffix", "contains")


# ---- which records ----


class KeyIs(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Compares a record's key: exactly one of the four. A record without a key is never meant."""

    equals: Annotated[Content | None, Meta(description="It is this text (UTF-8), or these bytes.")] = None
    prefix: Annotated[Content | None, Meta(description="It begins with this.")] = None
    suffix: Annotated[Content | None, Meta(description="It ends with this.")] = None
    contains: Annotated[Content | None, Meta(description="This is somewhere in it.")] = None

    def __post_init__(self) -> None:
        if len(comparisons(self)) != 1:
            raise ValueError(f"give one of {', '.join(COMPARISONS)}")


class HeaderIs(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Asks for a header, and compares its value if one of the four is given; of several with that name, any."""

    name: Annotated[HeaderName, Meta(description="The header's name.")]
    equals: Annotated[Content | None, Meta(description="Its value is this text (UTF-8), or these bytes.")] = None
    prefix: Annotated[Content | None, Meta(description="Its value begins with this.")] = None
    suffix: Annotated[Content | None, Meta(description="Its value ends with this.")] = None
    contains: Annotated[Content | None, Meta(description="This is somewhere in its value.")] = None

    def __post_init__(self) -> None:
        if len(comparisons(self)) > 1:
            raise ValueError(f"give at most one of {', '.join(COMPARISONS)}")


def comparisons(asked: KeyIs | HeaderIs) -> list[tuple[str, str | Base64]]:
    """What is compared with what: (one of `COMPARISONS`, the content)."""
    return [(name, content) for name in COMPARISONS if (content := getattr(asked, name)) is not None]


class Between(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A range of times; an end that is left out is open."""

    from_: Annotated[
        Time | None, Meta(description="Not before: RFC 3339 with a time zone, or milliseconds since 1970.")
    ] = field(default=None, name="from")
    to: Annotated[Time | None, Meta(description="Before: the same. This time itself is outside.")] = None

    def __post_init__(self) -> None:
        if self.from_ms is None and self.to_ms is None:
            raise ValueError("give from, to, or both")
        if self.from_ms is not None and self.to_ms is not None and self.from_ms >= self.to_ms:
            raise ValueError("`from` must be before `to`")

    @property
    def from_ms(self) -> int | None:
        return None if self.from_ is None else time_ms(self.from_)

    @property
    def to_ms(self) -> int | None:
        return None if self.to is None else time_ms(self.to)


class Where(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which records are meant: those for which everything that is given holds."""

    key: Annotated[KeyIs | None, Meta(description="What the key is like.")] = None
    null_key: Annotated[bool | None, Meta(description="true: it has no key. false: it has one.")] = None
    header: Annotated[HeaderIs | None, Meta(description="It has such a header.")] = None
    timestamp: Annotated[Between | None, Meta(description="The time that consumers see is in this range.")] = None
    tombstone: Annotated[bool | None, Meta(description="true: it has no value. false: it has one.")] = None
    larger_than: Annotated[
        Annotated[int, size(INT32_MAX)] | None,
        Meta(description="It takes more bytes than this, encoded: 65536, or 64KiB, 2MiB, 1GiB."),
    ] = None
    not_: Annotated["Where | None", Meta(description="This does not hold.")] = field(default=None, name="not")
    any: Annotated[Conditions | None, Meta(description="One of these holds.")] = None
    all: Annotated[Conditions | None, Meta(description="Each of these holds.")] = None

    def __post_init__(self) -> None:
        if all(getattr(self, name) is None for name in self.__struct_fields__):
            raise ValueError(f"says nothing; give one of {', '.join(self.__struct_encode_fields__)}")


# ---- what is done to them ----


class HeaderValue(Struct, frozen=True, forbid_unknown_fields=True):
    """A header to be written."""

    name: Annotated[HeaderName, Meta(description="Its name.")]
    value: Annotated[Content | None, Meta(description="Its value: a text (UTF-8), bytes in base64, or null.")]

    def __post_init__(self) -> None:
        _refuse_ours(self.name)


class HeaderMatch(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Headers, by one name or by a regular expression: exactly one of the two."""

    name: Annotated[HeaderName | None, Meta(description="This name exactly.")] = None
    matching: Annotated[Pattern | None, Meta(description="A regular expression (Python's), for the whole name.")] = None

    def __post_init__(self) -> None:
        _check_match(self.name, self.matching)


class HeaderRename(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Headers, by one name or by a regular expression, and their new name."""

    to: Annotated[HeaderName, Meta(description=r"The new name; with `matching`, \1 stands for its first group.")]
    name: Annotated[HeaderName | None, Meta(description="This name exactly.")] = None
    matching: Annotated[Pattern | None, Meta(description="A regular expression (Python's), for the whole name.")] = None

    def __post_init__(self) -> None:
        _check_match(self.name, self.matching)
        _refuse_ours(self.to)
        if self.matching is None and "\\" in self.to:
            raise ValueError(r"`to` has a backslash, which needs `matching` instead of `name`")


def _check_match(name: str | None, matching: str | None) -> None:
    if (name is None) == (matching is None):
        raise ValueError("give either name or matching")


def _refuse_ours(name: str) -> None:
    """Loop prevention believes these headers, so nobody else may write them."""
    if name.startswith(OUR_HEADERS):
        raise ValueError(f"headers named `{OUR_HEADERS}...` are written by `provenance` only")


ACTIONS = ("add_header", "set_header", "drop_header", "rename_header", "drop", "keep", "divert")


class Edit(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One action on records: exactly one of the seven. A link's edits are done in their order."""

    topics: TopicPatterns = (".*",)
    where: Annotated[Where | None, Meta(description="Which records. Default: all of these topics.")] = None
    add_header: Annotated[HeaderValue | None, Meta(description="Append a header.")] = None
    set_header: Annotated[
        HeaderValue | None, Meta(description="Put this header in the place of all that have its name.")
    ] = None
    drop_header: Annotated[HeaderMatch | None, Meta(description="Leave headers out.")] = None
    rename_header: Annotated[HeaderRename | None, Meta(description="Give headers another name.")] = None
    drop: Annotated[
        Literal["tombstones"] | bool,
        Meta(description="Leave records out: true for those of `where`, `tombstones` for those without a value."),
    ] = False
    keep: Annotated[bool, Meta(description="Leave out every record but those of `where`.")] = False
    divert: Annotated[
        Annotated[str, Meta(min_length=1, max_length=200)] | None,
        Meta(description="Send records to the dead-letter topic instead, for the reason given here."),
    ] = None

    def __post_init__(self) -> None:
        given = [name for name in ACTIONS if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            raise ValueError(f"has {' and '.join(given) or 'no action'}; give one of {', '.join(ACTIONS)}")
        needs = self.keep or self.divert is not None or (self.drop is True and self.topics == (".*",))
        if needs and self.where is None:
            raise ValueError(f"`{given[0]}` needs a `where` that says which records")

    @property
    def action(self) -> str:
        """The one of `ACTIONS` that is given."""
        return next(name for name in ACTIONS if getattr(self, name) not in (None, False))

    def applies_to(self, topic: str) -> bool:
        return any_matches(self.topics, topic)
