"""What was replayed: dead letters that went back to their target topic, told by a header and a mark.

A record that `replicator dlq replay` writes has, behind its own headers, the header

    replicator.replayed = <link>:<dead-letter topic>:<partition>:<offset>

in UTF-8. That is a contract: the link's lanes take a batch on the target that is not theirs for an operator's, and go
on behind it, if each of its records has this header of their link (`is_replay`). Replays are written in transactions:
a control batch, the commit or abort marker, follows each, and an aborted one stands in the log, too, with the header.

It also has the source in `replicator.hops`, as the link's `provenance` would write it, whatever the link's options.
A link back to the source knows the batches of other links by their producer ids, and each replay has an id of its own:
this header alone tells such a link to leave the record out.

In the same transaction goes the mark, into `replicator.<link>.replayed` on the target: compacted, JSON, a ReplayKey and
a ReplayRecord. Either both are there, or neither, to whoever reads committed records only.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from msgspec import Struct

from replicator.errors import Where
from replicator.state.records import VERSION

if TYPE_CHECKING:
    from replicator.data.dead_letters import DeadLetter, Headers  # with confluent-kafka, which most copies do without

REPLAYED = "replicator.replayed"
HOPS = "replicator.hops"
_REPLAYED = REPLAYED.encode()


def replayed_topic(link: str) -> str:
    return f"replicator.{link}.replayed"


def transactional_id(link: str) -> str:
    """Of replays: a newer one fences an older."""
    return f"replicator.{link}.replay"


class ReplayKey(Struct, frozen=True, order=True, forbid_unknown_fields=True):
    """Key of a ReplayRecord: the place of the dead letter."""

    topic: str
    partition: int
    offset: int


class ReplayRecord(Struct, frozen=True):
    """A dead letter is back in its target topic."""

    record: str  # `replicator.data.dead_letters.identity` of the letter: the place may be another's since
    target_topic: str
    partition: int
    at_ms: int
    by: str  # host and process id
    version: int = VERSION


def place_key(at: Where) -> ReplayKey:
    """Of the dead letter that stands there."""
    return ReplayKey(at.topic or "", at.partition or 0, at.offset or 0)


def replay_header(link: str, key: ReplayKey) -> tuple[str, bytes]:
    return REPLAYED, f"{link}:{key.topic}:{key.partition}:{key.offset}".encode()


def with_provenance(headers: "Headers", letter: "DeadLetter", cluster_id: str, fully: bool) -> "Headers":
    """The headers, and behind them where the record is from: what the step `provenance` of a recipe does to records on
    their way. Not `fully`: only the hops. Without a cluster id: nothing."""
    if not cluster_id:
        return headers
    found = list(headers)
    names = {name for name, _ in found}
    if fully:
        place = {"cluster": cluster_id, "topic": letter.topic, "partition": letter.partition, "offset": letter.offset}
        facts = [(f"replicator.source.{name}", str(value).encode()) for name, value in place.items()]
        found += [each for each in facts if each[0] not in names]
    for at, (name, hops) in enumerate(found):
        if name == HOPS:
            found[at] = (HOPS, b",".join(filter(None, (hops, cluster_id.encode()))))
            return found
    return [*found, (HOPS, cluster_id.encode())]


def is_replay(headers: Iterable[tuple[bytes, bytes | None]], link: str) -> bool:
    """True if a record with these headers was put there by a replay of this link; views will do for bytes."""
    prefix = f"{link}:".encode()
    return any(name == _REPLAYED and value is not None and bytes(value).startswith(prefix) for name, value in headers)
