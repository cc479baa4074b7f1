"""The slow path's wire format: a message is a row of typed fields, and one small machine reads and writes it.

Fetch and Produce move their bytes through the native core. Everything else a link says to a broker, a few
small messages a second, goes through here: `messages.py` declares what the messages look like, this file
knows how the pieces are laid out. It is sans-I/O and works in both directions, so that a scripted peer in a
test speaks by the same tables as the client it faces.

Layout rules (KIP-482). Integers are big-endian. A string, byte string or array starts with its length: int16
for strings, int32 for the others, -1 for null. From a message's first *flexible* version on, every length is
an unsigned varint of length + 1 (0 for null), and every struct ends with *tagged fields*: (tag, size, bytes)
triples that a reader who does not know a tag skips.

    request     api key int16 | version int16 | correlation id int32 | client id string | tags? | body
    response    correlation id int32 | tags? | body

The int32 size in front of either belongs to the connection; nothing here reads or writes it.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple, NoReturn, TypeAlias

from replicator.errors import InternalError, ProtocolError, UnsupportedBroker

Body: TypeAlias = dict[str, Any]
Payload: TypeAlias = bytes | bytearray | memoryview

LATEST = 32_767  # versions are int16 on the wire
UVARINT_BYTES_MAX = 5


class Reader:
    """A cursor over a peer's bytes that cannot leave them. Whatever it refuses is a ProtocolError."""

    def __init__(self, payload: Payload, name: str) -> None:
        self._view = memoryview(payload)
        self._name = name
        self._at = 0

    def fail(self, why: str) -> NoReturn:
        raise ProtocolError(f"{self._name}: {why}, near byte {self._at} of {len(self._view)}")

    @property
    def left(self) -> int:
        return len(self._view) - self._at

    def advance(self, size: int) -> int:
        """Where the next `size` bytes begin. Every read passes here, so none goes past the end."""
        start = self._at
        if size > len(self._view) - start:
            self.fail(f"{size} bytes wanted, {self.left} left")
        self._at = start + size
        return start

    def take(self, size: int) -> memoryview:
        start = self.advance(size)
        return self._view[start : start + size]

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        return layout.unpack_from(self._view, self.advance(layout.size))

    def uvarint(self) -> int:
        value = shift = 0
        while (byte := self._view[self.advance(1)]) >= 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
            if shift == 7 * UVARINT_BYTES_MAX:
                self.fail(f"varint longer than {UVARINT_BYTES_MAX} bytes")
        return value | byte << shift

    def inner(self, size: int, name: str) -> "Reader":
        return Reader(self.take(size), f"{self._name}, {name}")

    def finish(self) -> None:
        if self.left:
            self.fail(f"{self.left} bytes too many")


def _put_uvarint(out: bytearray, value: int) -> None:
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


class Codec(NamedTuple):
    """One type at one version, made once and then only called: how to read a value, how to append one."""

    read: Callable[[Reader], Any]
    write: Callable[[bytearray, Any], None]


# --- types --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Scalar:
    """A value of fixed size; `layout` is its letter in the struct module."""

    layout: str

    def at(self, version: int, flexible: bool) -> Codec:
        layout = struct.Struct(">" + self.layout)

        def read(reader: Reader) -> Any:
            return reader.unpack(layout)[0]

        def write(out: bytearray, value: Any) -> None:
            out += layout.pack(value)

        return Codec(read, write)


@dataclass(frozen=True, eq=False)
class Uuid:
    """Sixteen raw bytes, as bytes. Not a Scalar, because struct pads or cuts a value of another length."""

    def at(self, version: int, flexible: bool) -> Codec:
        def write(out: bytearray, value: bytes) -> None:
            if len(value) != len(NO_ID):
                raise ValueError(f"an id of {len(value)} bytes")
            out += value

        return Codec(lambda reader: bytes(reader.take(len(NO_ID))), write)


@dataclass(frozen=True, eq=False)
class Text:
    """UTF-8 text. One that is not `compact` keeps the old kind of length even in a flexible message."""

    nullable: bool = False
    compact: bool = True

    def at(self, version: int, flexible: bool) -> Codec:
        length = _length("h", flexible and self.compact, self.nullable)

        def read(reader: Reader) -> str | None:
            size = length.read(reader)
            if size is None:
                return None
            try:
                return str(reader.take(size), "utf-8")
            except UnicodeDecodeError:
                reader.fail("text that is not UTF-8")

        def write(out: bytearray, value: str | None) -> None:
            encoded = None if value is None else value.encode()
            length.write(out, encoded)
            out += encoded or b""

        return Codec(read, write)


@dataclass(frozen=True, eq=False)
class Blob:
    """Raw bytes. Records are blobs too: on this path a record batch is never looked into."""

    nullable: bool = False

    def at(self, version: int, flexible: bool) -> Codec:
        length = _length("i", flexible, self.nullable)

        def read(reader: Reader) -> bytes | None:
            size = length.read(reader)
            return None if size is None else bytes(reader.take(size))

        def write(out: bytearray, value: bytes | None) -> None:
            length.write(out, value)
            out += value or b""

        return Codec(read, write)


@dataclass(frozen=True, eq=False)
class Array:
    """A list of `of`. The list grows as elements are really there, so a false count costs nothing."""

    of: "Type"
    nullable: bool = False

    def at(self, version: int, flexible: bool) -> Codec:
        length = _length("i", flexible, self.nullable)
        element = self.of.at(version, flexible)

        def read(reader: Reader) -> list[Any] | None:
            count = length.read(reader)
            return None if count is None else [element.read(reader) for _ in range(count)]

        def write(out: bytearray, value: list[Any] | None) -> None:
            length.write(out, value)
            for each in value or ():
                element.write(out, each)

        return Codec(read, write)


REQUIRED = object()


@dataclass(frozen=True, eq=False)
class Field:
    """One row of a struct: present in versions `since` to `until`; with a `tag`, among the tagged fields.

    A field with a `default` may be left out of a body to encode, and reads as that default where the version
    or the peer does not send it; a field that some pinned version lacks must have one. So one body serves
    every pinned version, and a caller never asks which one was spoken. A name may come twice, in disjoint
    versions, when its type changed.
    """

    name: str
    type: "Type"
    since: int = 0
    until: int = LATEST
    tag: int | None = None
    default: Any = REQUIRED

    def of(self, value: Body) -> Any:
        return value[self.name] if self.default is REQUIRED else value.get(self.name, self.default)


class Struct:
    """A row of fields. Values are dicts by field name, and decoding always gives every name declared."""

    def __init__(self, *fields: Field) -> None:
        self.fields = fields

    def at(self, version: int, flexible: bool) -> Codec:
        present = [row for row in self.fields if row.since <= version <= row.until]
        plain = [(row, row.type.at(version, flexible)) for row in present if row.tag is None]
        tagged = {row.tag: (row, row.type.at(version, flexible)) for row in present if row.tag is not None}
        tags = _tags(tagged) if flexible else None
        defaults = {row.name: row.default for row in self.fields}

        def read(reader: Reader) -> Body:
            value = dict(defaults)
            for row, codec in plain:
                value[row.name] = codec.read(reader)
            if tags:
                value |= tags.read(reader)
            return value

        def write(out: bytearray, value: Body) -> None:
            if unknown := value.keys() - defaults.keys():
                raise KeyError(*unknown)
            for row, codec in plain:
                codec.write(out, row.of(value))
            if tags:
                tags.write(out, value)

        return Codec(read, write)


Type: TypeAlias = Scalar | Uuid | Text | Blob | Array | Struct

INT8, INT16, INT32, INT64 = (Scalar(letter) for letter in "bhiq")
BOOL = Scalar("?")
UUID = Uuid()
STRING, NULLABLE_STRING = Text(), Text(nullable=True)
BYTES, NULLABLE_BYTES = Blob(), Blob(nullable=True)
RECORDS = NULLABLE_BYTES

NO_ID = bytes(16)  # Kafka's way to say "no topic id"


def _length(letter: str, flexible: bool, nullable: bool) -> Codec:
    """The length in front of a string, blob or array, None for null.

    A length that is read never exceeds the bytes that are left, for every element takes at least one.
    """
    layout = struct.Struct(">" + letter)

    def read(reader: Reader) -> int | None:
        length: int = reader.uvarint() - 1 if flexible else reader.unpack(layout)[0]
        if length == -1 and nullable:
            return None
        if not 0 <= length <= reader.left:
            reader.fail(f"length {length}, {reader.left} bytes left")
        return length

    def write(out: bytearray, value: list[Any] | bytes | None) -> None:
        if value is None and not nullable:
            raise ValueError("null")
        length = -1 if value is None else len(value)
        if flexible:
            _put_uvarint(out, length + 1)
        else:
            out += layout.pack(length)

    return Codec(read, write)


def _tags(known: Mapping[int, tuple[Field, Codec]]) -> Codec:
    """The tagged fields at the end of a flexible struct. One at its default is not sent, as Kafka does it."""

    def read(reader: Reader) -> Body:
        value: Body = {}
        last = -1
        for _ in range(reader.uvarint()):
            tag = reader.uvarint()
            if tag <= last:
                reader.fail(f"tag {tag} after tag {last}")
            last = tag
            content = reader.inner(reader.uvarint(), f"tag {tag}")
            if tag in known:
                row, codec = known[tag]
                value[row.name] = codec.read(content)
                content.finish()
        return value

    def write(out: bytearray, value: Body) -> None:
        sent = [tag for tag, (row, _) in sorted(known.items()) if row.of(value) != row.default]
        _put_uvarint(out, len(sent))
        for tag in sent:
            row, codec = known[tag]
            content = bytearray()
            codec.write(content, row.of(value))
            _put_uvarint(out, tag)
            _put_uvarint(out, len(content))
            out += content

    return Codec(read, write)


# --- messages -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Api:
    """One row of the message table: an API, and the versions of it that we pin, ascending.

    We speak a version only if it is pinned and therefore tested; `flexible_since` is Kafka's, pinned or not.
    """

    key: int
    name: str
    versions: tuple[int, ...]
    flexible_since: int
    request: Struct = field(repr=False)
    response: Struct = field(repr=False)


class Request(NamedTuple):
    """A decoded request, as a scripted peer sees it."""

    api: Api
    version: int
    correlation_id: int
    client_id: str | None
    body: Body


_KEY_AND_VERSION = struct.Struct(">hh")
_HEADERS = {
    "request": Struct(
        Field("api_key", INT16),
        Field("version", INT16),
        Field("correlation_id", INT32),
        # Not compact, ever: a broker must be able to read the header of a version it has never heard of.
        Field("client_id", Text(nullable=True, compact=False)),
    ),
    "response": Struct(Field("correlation_id", INT32)),
}
_API_VERSIONS_KEY = 18


def encode_request(api: Api, version: int, correlation_id: int, client_id: str | None, body: Body) -> bytes:
    """A request without its size. Raises InternalError for a misfit body or a version that is not pinned."""
    header = {
        "api_key": api.key,
        "version": version,
        "correlation_id": correlation_id,
        "client_id": client_id,
    }
    return _encode(api, version, "request", header, body)


def encode_response(api: Api, version: int, correlation_id: int, body: Body) -> bytes:
    """A response without its size. Raises InternalError for a misfit body or a version that is not pinned."""
    return _encode(api, version, "response", {"correlation_id": correlation_id}, body)


def decode_request(payload: Payload, apis: Mapping[int, Api]) -> Request:
    """A request without its size, by the table `apis` (api key -> Api).

    Raises ProtocolError, and nothing else, for bytes that are not one whole request of a pinned version in
    the table.
    """
    reader = Reader(payload, "request")
    key, version = reader.unpack(_KEY_AND_VERSION)
    api = apis.get(key)
    if api is None or version not in api.versions:
        reader.fail(f"api key {key} in version {version} is not in the table")
    header, body = _decode(api, version, "request", payload)
    return Request(api, version, header["correlation_id"], header["client_id"], body)


def decode_response(api: Api, version: int, payload: Payload) -> tuple[int, Body]:
    """(correlation id, body) of a response without its size.

    Raises ProtocolError, and nothing else, for bytes that do not begin with a whole response; InternalError if the
    version is not pinned.
    """
    header, body = _decode(api, version, "response", payload)
    return header["correlation_id"], body


def negotiate(api: Api, broker_ranges: Mapping[int, tuple[int, int]]) -> int:
    """The highest pinned version that the broker offers; its offer is api key -> (lowest, highest).

    Raises UnsupportedBroker, with both sides' versions, when there is none.
    """
    ours = " or ".join(map(str, api.versions))
    if api.key not in broker_ranges:
        raise UnsupportedBroker(f"the broker does not offer {api.name}; we speak {ours}")
    lowest, highest = broker_ranges[api.key]
    shared = [version for version in api.versions if lowest <= version <= highest]
    if not shared:
        raise UnsupportedBroker(f"the broker offers {api.name} {lowest} to {highest}; we speak {ours}")
    return max(shared)


@cache
def _layout(api: Api, version: int, side: str) -> tuple[Codec, Codec]:
    """The codecs of a message's header and body; `side` is "request" or "response"."""
    if version not in api.versions:
        raise InternalError(f"{api.name} version {version} is not pinned; pinned are {api.versions}")
    flexible = version >= api.flexible_since
    # Who asks for ApiVersions does not know the broker yet, so that answer keeps the oldest header for ever.
    old_header = side == "response" and api.key == _API_VERSIONS_KEY
    schema = api.request if side == "request" else api.response
    return _HEADERS[side].at(version, flexible and not old_header), schema.at(version, flexible)


def _encode(api: Api, version: int, side: str, header: Body, body: Body) -> bytes:
    header_codec, body_codec = _layout(api, version, side)
    out = bytearray()
    try:
        header_codec.write(out, header)
        body_codec.write(out, body)
    except (struct.error, KeyError, TypeError, ValueError, AttributeError) as misfit:
        raise InternalError(f"a value does not fit {api.name} v{version} {side}: {misfit!r}") from misfit
    return bytes(out)


def _decode(api: Api, version: int, side: str, payload: Payload) -> tuple[Body, Body]:
    header_codec, body_codec = _layout(api, version, side)
    reader = Reader(payload, f"{api.name} v{version} {side}")
    header, body = header_codec.read(reader), body_codec.read(reader)
    if side == "request":
        reader.finish()  # Kafka's own clients read over what follows a response, and not every server is exact
    return header, body
