"""What a recipe makes of records, step by step, with every record a value of its own."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.oracle.records import Headers, Record

HOPS = b"replicator.hops"


@dataclass(frozen=True)
class Letter:
    """A record that was diverted, as it came."""

    record: Record
    reason: str


def apply(steps: Sequence[tuple[Any, ...]], records: Sequence[Record]) -> tuple[list[Record], list[Letter]]:
    """The records that are kept, and those that are diverted."""
    kept, letters = [], []
    for given in records:
        record: Record | str | None = given
        for step in steps:
            record = _take(step, record)
            if not isinstance(record, Record):
                break
        if isinstance(record, Record):
            kept.append(given if record.headers == given.headers else record)
        elif isinstance(record, str):
            letters.append(Letter(given, record))
    return kept, letters


def _take(step: tuple[Any, ...], record: Record) -> Record | str | None:
    """The record as it goes on; None if it is left out; a reason if it is diverted."""
    match step:
        case ("drop", test):
            return None if holds(test, record) else record
        case ("keep", test):
            return record if holds(test, record) else None
        case ("divert", reason, test):
            return reason if holds(test, record) else record
        case ("provenance", cluster, topic, partition):
            return record.with_headers(_say_where_from(record, cluster, topic, partition))
        case ("drop_hops", cluster):
            lists = [value or b"" for name, value in record.headers if name == HOPS]
            return None if any(cluster in hops.split(b",") for hops in lists if hops) else record
        case ("hop", cluster):
            been = [hop for name, value in record.headers if name == HOPS for hop in (value or b"").split(b",")]
            return record if cluster in been and cluster else record.with_headers(_add_hop(record.headers, cluster))
    if not holds(step[-1], record):
        return record
    return record.with_headers(_edit(step, record.headers))


def _edit(step: tuple[Any, ...], headers: Headers) -> Headers:
    match step:
        case ("header_add", name, value, _):
            return (*headers, (name, value))
        case ("header_set", name, value, _):
            return (*(each for each in headers if each[0] != name), (name, value))
        case ("header_drop", matcher, _):
            return tuple(each for each in headers if _match(matcher, each[0]) is None)
        case ("header_rename", matcher, replacement, _):
            return tuple((_renamed(matcher, replacement, name), value) for name, value in headers)
    raise AssertionError(step)


def _match(matcher: bytes | str, name: bytes) -> Any:
    if isinstance(matcher, bytes):
        return name if matcher == name else None
    return re.fullmatch(matcher, name.decode("utf-8", "surrogateescape"))


def _renamed(matcher: bytes | str, replacement: str, name: bytes) -> bytes:
    found = _match(matcher, name)
    if found is None:
        return name
    text = replacement if isinstance(found, bytes) else found.expand(replacement)
    return text.encode("utf-8", "surrogateescape")


def _say_where_from(record: Record, cluster: bytes, topic: bytes, partition: int) -> Headers:
    said = {b"cluster": cluster, b"topic": topic, b"partition": b"%d" % partition, b"offset": b"%d" % record.offset}
    headers = list(record.headers)
    for last, value in said.items():
        name = b"replicator.source." + last
        if name not in [each[0] for each in headers]:
            headers.append((name, value))
    return _add_hop(headers, cluster)


def _add_hop(given: Sequence[tuple[bytes, bytes | None]], cluster: bytes) -> Headers:
    headers = list(given)
    hops = [n for n, each in enumerate(headers) if each[0] == HOPS]
    if not hops:
        return (*headers, (HOPS, cluster))
    before = headers[hops[-1]][1]
    headers[hops[-1]] = (HOPS, before + b"," + cluster if before else cluster)
    return tuple(headers)


def holds(test: tuple[Any, ...] | None, record: Record) -> bool:
    match test:
        case None:
            return True
        case ("tombstone",):
            return record.value is None
        case ("key_null",):
            return record.key is None
        case ("key", operator, wanted):
            return _compare(operator, record.key, wanted)
        case ("header", name):
            return name in [each[0] for each in record.headers]
        case ("header", name, operator, wanted):
            return any(_compare(operator, value, wanted) for each, value in record.headers if each == name)
        case ("timestamp", start, end):
            after = start is None or start <= record.timestamp
            return after and (end is None or end == 2**63 - 1 or record.timestamp < end)
        case ("size", size):
            return record.size > size
        case ("not", inner):
            return not holds(inner, record)
        case ("any", *inner):
            return any(holds(each, record) for each in inner)
        case ("all", *inner):
            return all(holds(each, record) for each in inner)
    raise AssertionError(test)


def _compare(operator: str, found: bytes | None, wanted: bytes) -> bool:
    if found is None:
        return False
    ways = {
        "equals": bytes.__eq__,
        "prefix": bytes.startswith,
        "suffix": bytes.endswith,
        "contains": bytes.__contains__,
    }
    return bool(ways[operator](found, wanted))
