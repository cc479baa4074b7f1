"""What options are made of: the kinds of values that several models share, each with its limits and its check."""

import base64
import binascii
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Annotated, Any

from msgspec import Meta, Struct

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

PATTERN_LENGTH_MAX = 1000
PATTERNS_MAX = 1000
TEXT_LENGTH_MAX = 65_536  # of a header's value, or what a key is compared with
INT32_MAX = (1 << 31) - 1  # Kafka's sizes and counts are 32 bit numbers

# A file may spell a value in more types than it has afterwards. msgspec insists on its own `type` in a
# schema, so the wider one goes under this key until the schema is printed.
REAL_TYPE = "x-type"

END = r"$(?!\n)"  # Python's $ also matches in front of a last newline
NAME = r"^(?!\.{1,2}$)[A-Za-z0-9._-]+" + END  # what Kafka allows as a topic name
SIZE = r"^[0-9]+ ?(KiB|MiB|GiB)?" + END


def number(low: int, high: int, description: str) -> Meta:
    return Meta(ge=low, le=high, description=description)


def size(high: int, description: str | None = None) -> Meta:
    """Bytes: an integer, or in a file also a text with a unit, which the reader turns into one."""
    schema: dict[str, Any] = {REAL_TYPE: ["integer", "string"], "pattern": SIZE}
    return Meta(ge=1, le=high, description=description, extra_json_schema=schema)


def plain_words(complaint: str) -> str:
    """What msgspec says of a value, in our words: it speaks JSON, a link file is YAML. Our models' sentences stay."""
    if not complaint.startswith("Expected"):
        return complaint
    for word, ours in {"Expected": "expected", "object": "mapping", "array": "list", "`": ""}.items():
        complaint = complaint.replace(word, ours)
    return complaint


# ---- patterns of names ----

Pattern = Annotated[str, Meta(min_length=1, max_length=PATTERN_LENGTH_MAX)]
Patterns = Annotated[tuple[Pattern, ...], Meta(max_length=PATTERNS_MAX)]
TopicPatterns = Annotated[
    Patterns, Meta(min_length=1, description="Names or regular expressions of source topics, whole names.")
]


@cache
def compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def any_matches(patterns: Iterable[str], name: str) -> bool:
    """True if one of the patterns matches the whole name."""
    return any(compiled(pattern).fullmatch(name) for pattern in patterns)


def pattern_fault(pattern: str) -> str:
    """What is wrong with a regular expression; empty if it is one."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return f"`{pattern}` is not a regular expression: {error}"
    return ""


def replacement_fault(pattern: str, replacement: str) -> str:
    r"""What is wrong with a replacement (`\1`, `\g<name>`) for this regular expression; empty if nothing is."""
    try:
        re.sub(pattern, replacement, "")
    except (re.error, IndexError) as error:
        return f"`{replacement}` does not fit `{pattern}`: {error}"
    return ""


# ---- bytes ----


class Base64(Struct, frozen=True, forbid_unknown_fields=True):
    """Bytes that are no text."""

    base64: Annotated[str, Meta(max_length=TEXT_LENGTH_MAX, description="The bytes in base64, with its padding.")]

    def __post_init__(self) -> None:
        try:
            base64.b64decode(self.base64, validate=True)
        except (binascii.Error, ValueError):
            raise ValueError(f"`{self.base64}` is not base64") from None


Content = Annotated[str, Meta(max_length=TEXT_LENGTH_MAX)] | Base64  # a text means its UTF-8 bytes


def content_bytes(content: str | Base64) -> bytes:
    return content.encode() if isinstance(content, str) else base64.b64decode(content.base64)


# ---- times ----

Time = Annotated[datetime, Meta(tz=True)] | Annotated[int, Meta(ge=0, le=253_402_300_799_999)]


def time_ms(time: datetime | int) -> int:
    """Milliseconds since 1970, as Kafka counts them; fractions are rounded down."""
    return time if isinstance(time, int) else (time - datetime.fromtimestamp(0, UTC)) // timedelta(milliseconds=1)
