"""The plug-ins of a lane at work: a batch's records go through each in its order, before the native recipe sees them.

What they return is checked before it is believed. Where one fails, its records are given to it again one by one, and
only those for which it fails again are left out, for the lane's policy to deal with.
"""

import operator
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from replicator._core import BadRecords, Batch, Columns, Scratch
from replicator.config.edits import OUR_HEADERS
from replicator.config.plug_ins import PlugIn, make, spell
from replicator.data.codecs import UNPACKED_BYTES_MAX
from replicator.kafka.log import BATCH_HEADER_SIZE, CODEC, LOG_APPEND_TIME
from replicator.transforms import PARTS, Headers, ListedColumns, Part, Place, Replacement, Selection, Transform

if TYPE_CHECKING:
    from replicator.data.orders import LaneSpec

REPLACED_BYTES_MAX = UNPACKED_BYTES_MAX  # by one plug-in in one batch
TIMESTAMP_MS_MAX = 253_402_300_799_999  # the year 9999

_OURS = OUR_HEADERS.encode()
ATTRIBUTES_AT, COUNT_AT = 21, 57  # in a batch's header
_BASE_OFFSET, _ATTRIBUTES, _COUNT = (struct.Struct(format) for format in (">q", ">h", ">i"))


class Nonsense(ValueError):
    """A plug-in's answer is none: what is wrong with it, in one line."""


class Original(NamedTuple):
    """A record as it came from the source."""

    source_offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[bytes, bytes | None], ...]


class Staged(NamedTuple):
    """What plug-ins have made of a batch. `header` and `payload` go together, and the header's checksum is stale."""

    header: bytes | Batch
    payload: bytes | memoryview
    changed: bool = False
    dropped: int = 0
    faults: tuple[tuple[Original, str], ...] = ()  # what a plug-in fails on, and its words


class Stage:
    """The plug-ins of one lane."""

    def __init__(self, transforms: Iterable[tuple[PlugIn, Transform]]) -> None:
        self._plugged = [_Plugged(plug_in, transform) for plug_in, transform in transforms]

    @classmethod
    def of(cls, spec: "LaneSpec") -> "Stage":
        """Raises ConfigError when one of them cannot be made."""
        place = Place(spec.link, spec.source, spec.target, spec.topic, spec.target_topic, spec.partition)
        return cls((plug_in, make(plug_in, place)) for plug_in in spec.plug_ins)

    def run(self, scratch: Scratch, batch: Batch, payload: memoryview) -> Staged:
        """The batch's records from `batch.from_offset` on; `payload` are all of them, decompressed.

        Raises BadRecords.
        """
        # A copy of what would be a view of a slab: a plug-in that keeps one takes no room from the lanes.
        held = payload if batch.header.attributes & CODEC else memoryview(bytes(payload))
        whole = _Part(scratch, bytes(memoryview(batch)[:BATCH_HEADER_SIZE]), held)
        part = whole.cut(batch.from_offset)
        wanted = part.count
        faults: dict[int, str] = {}
        for plugged in self._plugged:
            if not part.count:
                break
            part, failed = plugged.apply(part)
            faults |= failed
        if part is whole:
            return Staged(batch, payload)
        known = originals(scratch, whole.header, held, faults)
        left_out = tuple((record, faults[record.source_offset]) for record in known)
        return Staged(part.header, part.payload, True, wanted - part.count - len(faults), left_out)


def originals(
    scratch: Scratch, header: bytes | Batch, payload: memoryview, wanted: Collection[int]
) -> Iterator[Original]:
    """The records at these source offsets."""
    if not wanted:
        return
    columns = scratch.columns(header, payload)
    for index, offset in enumerate(columns.offsets.tolist()):
        if offset in wanted:
            key, value = _bytes(columns.keys[index]), _bytes(columns.values[index])
            yield Original(offset, int(columns.timestamps[index]), key, value, columns.headers[index])


def _bytes(view: memoryview | None) -> bytes | None:
    return None if view is None else bytes(view)


class _Part:
    """A header and its records."""

    def __init__(self, scratch: Scratch, header: bytes, payload: bytes | memoryview) -> None:
        self.scratch, self.header, self.payload = scratch, header, payload
        (self.count,) = _COUNT.unpack_from(header, COUNT_AT)

    def columns(self) -> Columns:
        found = self.scratch.columns(self.header, self.payload)
        for times in (found.offsets, found.timestamps):
            times.flags.writeable = False
        return found

    def cut(self, from_offset: int) -> "_Part":
        """Without what was dealt with before."""
        if _BASE_OFFSET.unpack_from(self.header)[0] >= from_offset or not self.count:
            return self
        keep = (self.columns().offsets >= from_offset).tolist()
        return self if all(keep) else self.packed(keep, {})

    def packed(self, keep: list[bool], replacements: dict[int, Replacement]) -> "_Part":
        """With these only, some of them replaced. Raises BadRecords when a time is too far from the batch's first."""
        header = bytearray(self.header)
        _COUNT.pack_into(header, COUNT_AT, sum(keep))
        (attributes,) = _ATTRIBUTES.unpack_from(header, ATTRIBUTES_AT)
        if attributes & LOG_APPEND_TIME and any(each.timestamp is not None for each in replacements.values()):
            # The broker's time stands for all of the batch: from here on each record has its own.
            _ATTRIBUTES.pack_into(header, ATTRIBUTES_AT, attributes & ~LOG_APPEND_TIME)
            replacements = dict(_with_times(self.columns(), replacements))
        try:
            # Of ours and of the core's replacements the fields are the same.
            payload = self.scratch.pack(self.header, self.payload, keep, replacements)  # type: ignore[arg-type]
        except ValueError as error:
            raise BadRecords(str(error)) from None
        return _Part(self.scratch, bytes(header), payload)


def _with_times(columns: Columns, replacements: Mapping[int, Replacement]) -> Iterator[tuple[int, Replacement]]:
    for index, timestamp in enumerate(columns.timestamps.tolist()):
        given = replacements.get(index) or Replacement(columns.keys[index], columns.values[index])
        yield index, given if given.timestamp is not None else given._replace(timestamp=timestamp)


class _Plugged:
    def __init__(self, plug_in: PlugIn, transform: Transform) -> None:
        self._plug_in, self._transform = plug_in, transform
        self._fixed = [part for part in PARTS if part not in plug_in.changes]

    def apply(self, part: _Part) -> tuple[_Part, dict[int, str]]:
        """What becomes of the records, and for each that it fails on, by source offset, why."""
        columns = part.columns()
        try:
            chosen = self._choose(columns)
        except BaseException:  # SystemExit, too: whatever it is, it is no reason for the worker to end
            return self._apply_to_each(part)
        return (part.packed(*chosen) if chosen else part), {}

    def _apply_to_each(self, part: _Part) -> tuple[_Part, dict[int, str]]:
        keep = [True] * part.count
        replacements: dict[int, Replacement] = {}
        faults: dict[int, str] = {}
        for index, record in enumerate(_each(part.columns())):
            try:
                chosen = self._choose(record)
            except BaseException as error:
                keep[index] = False
                words = str(error) if isinstance(error, Nonsense) else spell(error)
                faults[int(record.offsets[0])] = f"{self._plug_in.name}: {words}"
                continue
            if chosen:
                keep[index] = chosen[0][0]
                replacements.update((index, one) for one in chosen[1].values())
        unchanged = all(keep) and not replacements
        return (part if unchanged else part.packed(keep, replacements)), faults

    def _choose(self, columns: Columns | ListedColumns) -> tuple[list[bool], dict[int, Replacement]] | None:
        """Raises Nonsense, and whatever the plug-in raises. None: all stays as it is."""
        chosen = self._transform(columns)
        if chosen is None:
            return None
        if not isinstance(chosen, Selection):
            raise Nonsense(f"returns a {type(chosen).__name__}, which is no Selection")
        keep, replacements = _keep(chosen.keep, len(columns)), self._replacements(chosen.replacements, columns)
        if not all(keep) and not self._plug_in.drops:
            raise Nonsense("leaves a record out, but its `drops` is False")
        return None if all(keep) and not replacements else (keep, replacements)

    def _replacements(self, given: object, columns: Columns | ListedColumns) -> dict[int, Replacement]:
        if not isinstance(given, Mapping):
            raise Nonsense(f"has replacements in a {type(given).__name__}, which is no mapping")
        found: dict[int, Replacement] = {}
        room = REPLACED_BYTES_MAX
        for place, replacement in given.items():
            index = _whole_number(place, "the place of a replacement")
            if not 0 <= index < len(columns):
                raise Nonsense(f"has a replacement at place {index} of {len(columns)} records")
            found[index], size = _replacement(replacement)
            room -= size
            if room < 0:
                raise Nonsense(f"has replacements of more than {REPLACED_BYTES_MAX} bytes")
            self._check_changes(found[index], index, columns)
        return found

    def _check_changes(self, new: Replacement, index: int, columns: Columns | ListedColumns) -> None:
        for part in self._fixed:
            if _differs(part, new, index, columns):
                raise Nonsense(f"changes the {part}, which its `changes` does not name")
        if new.headers is not None and _ours(new.headers) != _ours(columns.headers[index]):
            raise Nonsense(f"changes headers named `{OUR_HEADERS}...`, which are the replicator's own")


def _differs(part: Part, new: Replacement, index: int, columns: Columns | ListedColumns) -> bool:
    match part:
        case "key":
            return new.key != columns.keys[index]
        case "value":
            return new.value != columns.values[index]
        case "headers":
            return new.headers is not None and new.headers != columns.headers[index]
        case "timestamp":
            return new.timestamp is not None and new.timestamp != columns.timestamps[index]


def _each(columns: Columns) -> Iterator[ListedColumns]:
    for at in range(len(columns)):
        one = slice(at, at + 1)
        yield ListedColumns(
            columns.offsets[one], columns.timestamps[one], columns.keys[one], columns.values[one], columns.headers[one]
        )


# ---- what a plug-in returns ----


def _keep(given: Any, count: int) -> list[bool]:
    if given is None:
        return [True] * count
    import numpy as np

    try:
        keep = np.asarray(given)
    except Exception as error:
        raise Nonsense(f"has a `keep` that is none: {spell(error)}") from None
    if keep.shape != (count,) or keep.dtype != bool:
        what = f"{keep.dtype} of shape {keep.shape}"
        raise Nonsense(f"has a `keep` of {what}, where bool of shape ({count},) is due")
    return list(keep.tolist())


def _replacement(given: object) -> tuple[Replacement, int]:
    """With bytes for views, and how large it is about."""
    if not isinstance(given, Replacement):
        raise Nonsense(f"replaces a record by a {type(given).__name__}, which is no Replacement")
    key, value = _content(given.key, "key"), _content(given.value, "value")
    headers = None if given.headers is None else _headers(given.headers)
    timestamp = None if given.timestamp is None else _whole_number(given.timestamp, "a timestamp")
    if timestamp is not None and not -1 <= timestamp <= TIMESTAMP_MS_MAX:
        raise Nonsense(f"has the timestamp {timestamp}, which is no time in milliseconds")
    size = len(key or b"") + len(value or b"")
    size += sum(len(name) + len(content or b"") for name, content in headers or ())
    return Replacement(key, value, headers, timestamp), size


def _content(given: object, what: str) -> bytes | None:
    if given is None or type(given) is bytes:
        return given
    if isinstance(given, bytes | bytearray | memoryview):
        return bytes(given)
    raise Nonsense(f"has a {type(given).__name__} for a {what}, where bytes or None are due")


def _headers(given: Headers) -> tuple[tuple[bytes, bytes | None], ...]:
    if type(given) not in (tuple, list) and (
        not isinstance(given, Sequence) or isinstance(given, bytes | bytearray | memoryview | str)
    ):
        raise Nonsense(f"has a {type(given).__name__} for headers, where a list of names and values is due")
    found = []
    for pair in given:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise Nonsense("has a header that is no pair of a name and a value")
        name = _content(pair[0], "header's name")
        if name is None:
            raise Nonsense("has a header without a name")
        found.append((name, _content(pair[1], "header's value")))
    return tuple(found)


def _whole_number(given: Any, what: str) -> int:
    try:
        return operator.index(given)
    except TypeError:
        raise Nonsense(f"has a {type(given).__name__} for {what}, where an int is due") from None


def _ours(headers: Headers) -> list[tuple[bytes, bytes | None]]:
    return [header for header in headers if header[0].startswith(_OURS)]
