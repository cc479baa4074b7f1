"""From what a link file says about records to what the native core does to them: recipes.

A recipe is a tuple of steps, done in order to each record; a step is (action, arguments..., predicate or None), and a
predicate a tuple (word, arguments...). Everything in them is bytes, str, int, None or a tuple, so they travel as
msgpack (which makes lists of tuples; `_core.Recipe` takes both).
"""

import hashlib
from collections.abc import Iterator
from typing import Any

import msgspec

from replicator.config.edits import Edit, HeaderMatch, HeaderRename, HeaderValue, Where, comparisons
from replicator.config.fields import content_bytes
from replicator.config.models import Link
from replicator.config.plug_ins import plug_ins

Step = tuple[Any, ...]
Condition = tuple[Any, ...]

DEPTH_MAX = 8  # of one predicate; these two are the native core's own limits
NODES_MAX = 1024  # of a link's predicates together

_HASH_VERSION = 1


def recipe(link: Link, topic: str, source_cluster_id: str, partition: int) -> tuple[Step, ...]:
    """What is done to each record of a partition of the source: first the edits for this topic; last, since an edit
    must not drop them, the headers of `provenance`. Empty: records are copied as they are, and whole batches may be.
    """
    steps = list(edit_steps(link, topic))
    if link.provenance:
        steps.append(("provenance", source_cluster_id.encode(), topic.encode(), partition))
    return tuple(steps)


def recipe_of_a_link(
    steps: tuple[Step, ...], written_from: str, source_cluster_id: str, target_cluster_id: str
) -> tuple[Step, ...]:
    """With `loops: prevent`, what is done instead to records that another link wrote to the source, `written_from` a
    third cluster: those that were on the target before are left out, first of all, since an edit may drop the header
    that tells; last, where both clusters are said to have been passed. `steps`: what `recipe` says.

    Records of applications are not looked at: one that was made of another record may have its headers.
    """
    hops: list[Step] = [("hop", written_from.encode())]
    if steps and steps[-1][0] == "provenance":  # names the source itself
        steps, hops = steps[:-1], [*hops, steps[-1]]
    else:
        hops.append(("hop", source_cluster_id.encode()))
    return (("drop_hops", target_cluster_id.encode()), *steps, *hops)


def policy_hash(link: Link, topic: str) -> str:
    """16 hexadecimal digits that name everything which decides what records of a topic go to the target, and with what
    content: isolation, loop prevention, provenance, the edits for this topic, and the plug-ins, with their options and
    versions. Two links with the same hash make
    the same records of the same source records; the cluster ids in the recipe are not a policy, and a partition's
    number is known to who compares.

    Not in it, because they change neither a record nor how many there are: codec and merging (batches begin elsewhere
    and their bytes differ, but the offset map counts records, and a tail is compared by the records in it), the
    target's name of the topic (another name is another log, with a position of its own), where dead letters go, and
    `record_faults` (what is no record, or what the target refuses, is not copied whatever it says).

    Raises ConfigError for a plug-in that is not installed.
    """
    plugged = tuple((each.name, each.options, each.version) for each in plug_ins(link, topic))
    what = (_HASH_VERSION, link.isolation, link.loops, link.provenance, edit_steps(link, topic))
    whole = (*what, plugged) if plugged else what
    return hashlib.sha256(msgspec.msgpack.encode(whole, order="deterministic")).hexdigest()[:16]


def edit_steps(link: Link, topic: str) -> tuple[Step, ...]:
    """The steps of a link's edits for a topic of the source."""
    return tuple(_step(edit) for edit in link.edits if edit.applies_to(topic))


def _step(edit: Edit) -> Step:
    where = condition(edit.where) if edit.where else None
    match edit.action, getattr(edit, edit.action):
        case "add_header" | "set_header" as action, HeaderValue(name=name, value=value):
            word = {"add_header": "header_add", "set_header": "header_set"}[action]
            return word, name.encode(), None if value is None else content_bytes(value), where
        case "drop_header", HeaderMatch() as match:
            return "header_drop", _names(match), where
        case "rename_header", HeaderRename() as match:
            return "header_rename", _names(match), match.to, where
        case "drop", "tombstones":
            return "drop", ("all", ("tombstone",), where) if where else ("tombstone",)
        case "divert", reason:
            return "divert", reason, where
    return edit.action, where


def _names(match: HeaderMatch | HeaderRename) -> bytes | str:
    """A name matcher: bytes mean this name, a str is a regular expression."""
    return match.name.encode() if match.name is not None else str(match.matching)


# ---- predicates ----


def condition(where: Where) -> Condition:
    """The predicate for records of which everything in `where` holds."""
    found = tuple(_conditions(where))
    return found[0] if len(found) == 1 else ("all", *found)


def _conditions(where: Where) -> Iterator[Condition]:
    if where.key is not None:
        ((how, content),) = comparisons(where.key)
        yield "key", how, content_bytes(content)
    if where.null_key is not None:
        yield _if(where.null_key, ("key_null",))
    if where.header is not None:
        compared = [(how, content_bytes(content)) for how, content in comparisons(where.header)]
        yield "header", where.header.name.encode(), *(compared[0] if compared else ())
    if where.timestamp is not None:
        yield "timestamp", where.timestamp.from_ms, where.timestamp.to_ms
    if where.tombstone is not None:
        yield _if(where.tombstone, ("tombstone",))
    if where.larger_than is not None:
        yield "size", where.larger_than
    if where.not_ is not None:
        yield "not", condition(where.not_)
    for word, parts in (("any", where.any), ("all", where.all)):
        if parts:
            yield word, *map(condition, parts)


def _if(holds: bool, predicate: Condition) -> Condition:
    return predicate if holds else ("not", predicate)


def measure(predicate: Condition) -> tuple[int, int]:
    """How deep a predicate is, and of how many it is made; a simple one is 1 and 1."""
    inner = [measure(part) for part in predicate[1:] if isinstance(part, tuple)]
    return 1 + max((depth for depth, _ in inner), default=0), 1 + sum(nodes for _, nodes in inner)
