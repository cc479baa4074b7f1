"""Plug-ins that change records or leave them out, in Python: what they are given, and what they return.

This module is all that a plug-in needs, and stays as it is. A plug-in is a distribution with an entry point:

    [project.entry-points."replicator.transforms"]
    drop-tests = "my_package:DropTests"

and a link that names it: `transforms: [{name: drop-tests, topics: ["orders"], options: {field: env}}]`. The entry point
is a Factory; what it makes, one for each partition, is a Transform, which is called with a batch of records at a time:

    class DropTests:
        changes = ()                                      # of each record that it keeps, everything stays

        def __init__(self, options, place):
            self.field = options["field"]

        def __call__(self, columns):
            return Selection(keep=[not is_test(value, self.field) for value in columns.values])

A link's transforms are done in their order, each seeing what the one before it made, and before the link's `edits`.

What a plug-in may rely on, and what is asked of it:

* Batches of a partition come in the order of their offsets, in one thread of one process. The same records may come
  again: after a restart, when the target has refused some of them, and one by one after an error (see below). So a
  plug-in should make the same of the same record each time.
* The views (`keys`, `values`) are for the call: copy what is kept longer (`bytes(view)`). A view that outlives it stays
  valid, and costs the memory of its whole batch for as long.
* It works in the worker's only thread, which moves no data meanwhile: a call should take milliseconds. It must not wait
  for anything, start an event loop, or end the process.
* An exception, or an answer that is none, is not the end: the batch's records are given again one by one, and those for
  which it happens again are dealt with by the topic's `record_faults` policy (to the dead letters, with the reason
  `transform` and the exception's words, as they came from the source), the others go on.
* Headers named `replicator....` are ours: a replacement has to carry them on as they are.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:  # a link without plug-ins does without numpy
    import numpy as np
    from numpy.typing import NDArray

ENTRY_POINT_GROUP = "replicator.transforms"

Part: TypeAlias = Literal["key", "value", "headers", "timestamp"]
PARTS: tuple[Part, ...] = ("key", "value", "headers", "timestamp")

Content: TypeAlias = bytes | bytearray | memoryview | None
Headers: TypeAlias = Sequence[tuple[bytes, bytes | None]]
"""Names and values, in their order; names may repeat. Names are UTF-8 if their producer kept to the rules."""


class Columns(Protocol):
    """The records of a batch as columns, all of length n = `len(columns)` >= 1. They cannot be written to."""

    @property
    def offsets(self) -> "NDArray[np.int64]":
        """n offsets on the source, ascending, not always without holes."""

    @property
    def timestamps(self) -> "NDArray[np.int64]":
        """n times in milliseconds since 1970, as consumers see them; -1 for none."""

    @property
    def keys(self) -> Sequence[memoryview | None]:
        """n views of bytes, or None for null."""

    @property
    def values(self) -> Sequence[memoryview | None]:
        """n views of bytes, or None for null: a tombstone."""

    @property
    def headers(self) -> Sequence[Headers]:
        """n lists of headers. Made when first asked for, which costs more than the other columns together."""

    def __len__(self) -> int: ...


class Replacement(NamedTuple):
    """What a record becomes: this key and value, and its own headers or timestamp where none are given. Key and value
    that stay are given again: `Replacement(columns.keys[n], new_value)`."""

    key: Content
    value: Content
    headers: Headers | None = None
    timestamp: int | None = None  # in ms since 1970


class Selection(NamedTuple):
    """What is made of a batch of n records."""

    keep: "Sequence[bool] | NDArray[np.bool_] | None" = None
    """n truths: whether the record goes on. None: all do."""
    replacements: Mapping[int, Replacement] = {}
    """By place in the batch, 0 to n - 1; of a record that is not kept it does not matter."""


class Transform(Protocol):
    """Called with a batch, or a part of one. None: all records go on as they are, which is the cheapest answer: if no
    other has changed anything, their batch is passed on without being packed again."""

    def __call__(self, columns: Columns, /) -> Selection | None: ...


class Place(NamedTuple):
    """Which partition a Transform is made for."""

    link: str
    source: str  # the clusters' aliases in the link file
    target: str
    topic: str  # on the source
    target_topic: str
    partition: int


class Factory(Protocol):
    """What the entry point names: a class, as a rule. `options` are the link file's, as plain data.

    Called for each partition by the worker that copies it, and once for each topic before anything is copied, to try
    the options: what it raises then ends `replicator run` with its words. Three attributes may say more of it:

    changes  which of `PARTS` its replacements may change: all, unless told. `replicator verify` and a worker that reads
             the target's log after a restart do not compare these; so the fewer, the more is proved.
    drops    False if it keeps every record; True, unless told.
    version  a text that changes when it makes something else of the same record; the distribution's version, unless
             told. It is part of what a link remembers about how its records were made.
    """

    def __call__(self, options: Mapping[str, Any], place: Place, /) -> Transform: ...


@dataclass(frozen=True)
class ListedColumns:
    """Columns made of lists, for the tests of a plug-in: `ListedColumns.of((b"key", b"value"), ...)`."""

    offsets: "NDArray[np.int64]"
    timestamps: "NDArray[np.int64]"
    keys: Sequence[memoryview | None]
    values: Sequence[memoryview | None]
    headers: Sequence[Headers]

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def of(
        cls, *records: tuple[bytes | None, bytes | None], headers: Headers = (), timestamp: int = 0
    ) -> "ListedColumns":
        """Of keys and values: offsets count from 0, and each record has these headers and this timestamp."""
        import numpy as np

        count = len(records)
        keys, values = ([_view(record[part]) for record in records] for part in (0, 1))
        times = np.full(count, timestamp, np.int64)
        return cls(np.arange(count, dtype=np.int64), times, keys, values, [tuple(headers)] * count)


def _view(content: bytes | None) -> memoryview | None:
    return None if content is None else memoryview(content)


def declared(factory: object) -> tuple[tuple[Part, ...], bool, str]:
    """`changes`, `drops` and `version` of a Factory, the last one empty if it has none. Raises ValueError."""
    changes = getattr(factory, "changes", PARTS)
    if not isinstance(changes, Collection) or isinstance(changes, str) or not set(changes) <= set(PARTS):
        raise ValueError(f"its `changes` is {changes!r}; a tuple of some of {', '.join(PARTS)} is one")
    version = getattr(factory, "version", "")
    return tuple(part for part in PARTS if part in changes), bool(getattr(factory, "drops", True)), str(version)
