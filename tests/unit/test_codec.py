"""The codec against itself, against kafka-python as an independent witness, and against bytes that lie."""

import struct
import tracemalloc
import uuid
import warnings
from contextlib import suppress
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator.errors import ClusterError, InternalError, ProtocolError, UnsupportedBroker
from replicator.kafka import messages
from replicator.kafka.codec import (
    BOOL,
    INT16,
    NO_ID,
    NULLABLE_STRING,
    REQUIRED,
    STRING,
    UUID,
    Api,
    Array,
    Blob,
    Field,
    Reader,
    Scalar,
    Struct,
    Text,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
    negotiate,
)
from replicator.kafka.messages import API_VERSIONS, APIS, FETCH, METADATA, PINS, PRODUCE, decode_api_versions

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # kafka-python 3.0 loads its schemas in an old way
    from kafka.protocol import admin, consumer, metadata, producer

WITNESSES = {
    "ApiVersions": (metadata.ApiVersionsRequest, metadata.ApiVersionsResponse),
    "Metadata": (metadata.MetadataRequest, metadata.MetadataResponse),
    "ListOffsets": (consumer.ListOffsetsRequest, consumer.ListOffsetsResponse),
    "OffsetForLeaderEpoch": (consumer.OffsetForLeaderEpochRequest, consumer.OffsetForLeaderEpochResponse),
    "InitProducerId": (producer.InitProducerIdRequest, producer.InitProducerIdResponse),
    "DescribeProducers": (admin.DescribeProducersRequest, admin.DescribeProducersResponse),
    "Fetch": (consumer.FetchRequest, consumer.FetchResponse),
    "Produce": (producer.ProduceRequest, producer.ProduceResponse),
    "FindCoordinator": (metadata.FindCoordinatorRequest, metadata.FindCoordinatorResponse),
    "ListGroups": (admin.ListGroupsRequest, admin.ListGroupsResponse),
    "DescribeGroups": (admin.DescribeGroupsRequest, admin.DescribeGroupsResponse),
    "LeaveGroup": (consumer.LeaveGroupRequest, consumer.LeaveGroupResponse),
    "OffsetFetch": (consumer.OffsetFetchRequest, consumer.OffsetFetchResponse),
    "OffsetCommit": (consumer.OffsetCommitRequest, consumer.OffsetCommitResponse),
    "DescribeConfigs": (admin.DescribeConfigsRequest, admin.DescribeConfigsResponse),
}

MESSAGES = pytest.mark.parametrize(
    ("api", "version"),
    [pytest.param(api, version, id=f"{api.name}-{version}") for api in APIS.values() for version in api.versions],
)

# Many messages, so few examples of each; and no deadline, because the machine may be busy with brokers.
EXAMPLES = settings(max_examples=40, deadline=None)

# --- values of a schema -------------------------------------------------------------------------------------


def rows(schema, version):
    return [row for row in schema.fields if row.since <= version <= row.until]


@cache
def values(kind, version):
    """Any value of a type at a version; of a struct, with just the fields of that version."""
    match kind:
        case Scalar(layout="?"):
            return st.booleans()
        case Scalar(layout=letter):
            bits = 8 * struct.calcsize(letter)
            return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        case Text(nullable=nullable):
            text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
            return st.none() | text if nullable else text
        case Blob(nullable=nullable):
            return st.none() | st.binary(max_size=300) if nullable else st.binary(max_size=300)
        case Array(of=of, nullable=nullable):
            array = st.lists(values(of, version), max_size=3)
            return st.none() | array if nullable else array
        case Struct():
            return st.fixed_dictionaries({row.name: optional(row, version) for row in rows(kind, version)})
    assert kind is UUID
    return st.binary(min_size=16, max_size=16)


def optional(row, version):
    value = values(row.type, version)
    return value if row.tag is None else st.just(row.default) | value


def full(kind, version):
    """One value with nothing empty and nothing null: every part of the layout is there to be damaged."""
    match kind:
        case Scalar():
            return kind.layout == "?" or 7
        case Text():
            return "tøpic"
        case Blob():
            return b"records" * 30
        case Array(of=of):
            return [full(of, version)] * 2
        case Struct():
            return {row.name: full(row.type, version) for row in rows(kind, version)}
    return bytes(range(16))


def sent(schema, version, decoded):
    """What of a decoded body was on the wire; the rest must be there too, at its default."""
    present = {row.name: row for row in rows(schema, version)}
    assert decoded.keys() == {row.name for row in schema.fields}
    for row in schema.fields:
        if row.name not in present:
            assert decoded[row.name] == row.default
    return {name: sent_value(row.type, version, decoded[name]) for name, row in present.items()}


def sent_value(kind, version, value):
    match kind:
        case Struct() if value is not None:
            return sent(kind, version, value)
        case Array(of=Struct() as of) if value is not None:
            return [sent(of, version, each) for each in value]
    return value


# --- against itself -----------------------------------------------------------------------------------------


@MESSAGES
@EXAMPLES
@given(data=st.data())
def test_requests_round_trip(api, version, data):
    body = data.draw(values(api.request, version))
    client_id = data.draw(values(NULLABLE_STRING, version))
    request = decode_request(encode_request(api, version, 77, client_id, body), APIS)
    assert request[:4] == (api, version, 77, client_id)
    assert sent(api.request, version, request.body) == body


@MESSAGES
@EXAMPLES
@given(data=st.data())
def test_responses_round_trip(api, version, data):
    body = data.draw(values(api.response, version))
    correlation_id, decoded = decode_response(api, version, encode_response(api, version, -5, body))
    assert correlation_id == -5
    assert sent(api.response, version, decoded) == body


@MESSAGES
def test_a_decoded_response_can_be_sent_on_in_every_version(api, version):
    _, body = decode_response(api, version, encode_response(api, version, 1, full(api.response, version)))
    for other in api.versions:
        assert decode_response(api, other, encode_response(api, other, 1, body))[0] == 1


def test_payloads_may_be_any_kind_of_buffer():
    payload = encode_response(FETCH, 13, 1, full(FETCH.response, 13))
    decoded = decode_response(FETCH, 13, payload)
    assert decode_response(FETCH, 13, memoryview(payload)) == decoded
    assert decode_response(FETCH, 13, bytearray(payload)) == decoded


# --- against kafka-python -----------------------------------------------------------------------------------


BITS = "topic_authorized_operations"  # kafka-python has another name for it, and a set of bit numbers


def to_witness(container, body):
    """A body as arguments for kafka-python's object. A tagged field of ours at its default is not sent."""
    fields = container._struct.fields
    message = {
        name: to_witness_value(fields[name], value)
        for name, value in body.items()
        if name != BITS and (value is not None or fields[name]._tag is None)
    }
    if BITS in body:
        message["authorized_operations"] = {bit for bit in range(32) if body[BITS] >> bit & 1}
    return message


def to_witness_value(field, value):
    if field.is_struct():
        return field.data_class(**to_witness(field.data_class, value))
    if field.is_struct_array() and value is not None:
        return [field.data_class(**to_witness(field.data_class, each)) for each in value]
    return uuid.UUID(bytes=value) if field.type_str == "uuid" else value


def from_witness(schema, version, message):
    """kafka-python's object as a body of ours."""
    return {row.name: from_witness_value(row, version, message) for row in rows(schema, version)}


def from_witness_value(row, version, message):
    if row.name == BITS:
        numbers = message.authorized_operations
        bits = sum(1 << bit for bit in ({31} if numbers is None else numbers))
        return bits - 2**32 if bits >= 2**31 else bits
    value = getattr(message, row.name)
    match row.type:
        case Struct():
            told = row.name in (message.tags or ())
            return from_witness(row.type, version, value) if told else row.default
        case Array(of=Struct() as of) if value is not None:
            return [from_witness(of, version, each) for each in value]
    if row.type is UUID:
        return NO_ID if value is None else value.bytes
    return value


def witness(api, version, side, body):
    container = WITNESSES[api.name][side]
    message = container(version=version, **to_witness(container, body))
    message.with_header(77, "client") if side == 0 else message.with_header(77)
    return message.encode(header=True)


@MESSAGES
@EXAMPLES
@given(data=st.data())
def test_kafka_python_writes_the_same_request(api, version, data):
    body = data.draw(values(api.request, version))
    assert encode_request(api, version, 77, "client", body) == witness(api, version, 0, body)


@MESSAGES
@EXAMPLES
@given(data=st.data())
def test_kafka_python_writes_the_same_response(api, version, data):
    body = data.draw(values(api.response, version))
    assert encode_response(api, version, 77, body) == witness(api, version, 1, body)


@MESSAGES
@EXAMPLES
@given(data=st.data())
def test_kafka_python_reads_the_same_request(api, version, data):
    body = data.draw(values(api.request, version))
    payload = encode_request(api, version, 77, "client", body)
    message = WITNESSES[api.name][0].decode(payload, version=version, header=True)
    assert (message.header.correlation_id, message.header.client_id) == (77, "client")
    assert from_witness(api.request, version, message) == body


@MESSAGES
@EXAMPLES
@given(data=st.data())
def test_kafka_python_reads_the_same_response(api, version, data):
    body = data.draw(values(api.response, version))
    if api is API_VERSIONS:
        body["error_code"] = 0  # with any other, kafka-python reads on in the layout of version 0
    payload = encode_response(api, version, 77, body)
    message = WITNESSES[api.name][1].decode(payload, version=version, header=True)
    assert message.header.correlation_id == 77
    assert from_witness(api.response, version, message) == body


@pytest.mark.parametrize("api", APIS.values(), ids=lambda api: api.name)
def test_the_table_agrees_with_kafka_python(api):
    for container in WITNESSES[api.name]:
        assert api.key == container.API_KEY
        assert container.name.startswith(api.name)
        assert container._flexible_versions[0] == api.flexible_since
        assert set(api.versions) <= set(range(container.min_version, container.max_version + 1))


# --- the table itself ---------------------------------------------------------------------------------------


def structs(kind):
    match kind:
        case Array(of=of):
            yield from structs(of)
        case Struct(fields=fields):
            yield kind
            for row in fields:
                yield from structs(row.type)


def test_pins_are_ascending_and_complete():
    assert {api.name: api.versions for api in vars(messages).values() if isinstance(api, Api)} == PINS
    assert all(list(pins) == sorted(set(pins)) for pins in PINS.values())


@pytest.mark.parametrize("api", APIS.values(), ids=lambda api: api.name)
def test_a_field_that_some_pinned_version_lacks_has_a_default(api):
    for schema in [*structs(api.request), *structs(api.response)]:
        for version in api.versions:
            names = [row.name for row in rows(schema, version)]
            assert len(names) == len(set(names))
            lacking = [row for row in schema.fields if row.name not in names]
            assert all(row.default is not REQUIRED for row in lacking)
        assert all(row.default is not REQUIRED for row in schema.fields if row.tag is not None)


# --- against bytes that lie ---------------------------------------------------------------------------------


@MESSAGES
def test_every_truncation_is_refused(api, version):
    response = encode_response(api, version, 1, full(api.response, version))
    request = encode_request(api, version, 1, "client", full(api.request, version))
    assert decode_response(api, version, response)
    for size in range(len(response)):
        with pytest.raises(ProtocolError):
            decode_response(api, version, response[:size])
    for size in range(len(request)):
        with pytest.raises(ProtocolError):
            decode_request(request[:size], APIS)


@MESSAGES
def test_bytes_behind_a_request_are_refused_and_behind_a_response_read_over(api, version):
    request = encode_request(api, version, 1, "client", full(api.request, version))
    with pytest.raises(ProtocolError, match="1 bytes too many"):
        decode_request(request + b"\0", APIS)
    response = encode_response(api, version, 1, full(api.response, version))
    assert decode_response(api, version, response + b"\0") == decode_response(api, version, response)


@MESSAGES
@EXAMPLES
@given(data=st.data())
def test_damage_is_refused_or_read_as_something_else(api, version, data):
    payload = bytearray(encode_response(api, version, 1, full(api.response, version)))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ProtocolError):
        _, body = decode_response(api, version, payload)
        assert body.keys() == {row.name for row in api.response.fields}


@MESSAGES
@EXAMPLES
@given(payload=st.binary(max_size=200))
def test_garbage_is_refused_or_read_as_something_else(api, version, payload):
    for decode in (lambda: decode_response(api, version, payload), lambda: decode_request(payload, APIS)):
        with suppress(ProtocolError):
            assert decode()


@pytest.mark.parametrize(
    ("version", "head"),
    [
        pytest.param(0, b"\0\0\0\1\0\0" + struct.pack(">i", 2**31 - 1), id="int32"),
        pytest.param(3, b"\0\0\0\1\0\0" + b"\xff\xff\xff\xff\x0f", id="varint"),
    ],
)
def test_a_false_count_allocates_nothing(version, head):
    payload = head + bytes(1000)
    tracemalloc.start()
    with pytest.raises(ProtocolError, match="length"):
        decode_response(API_VERSIONS, version, payload)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 100_000


def test_a_count_within_the_bytes_left_still_ends_with_them():
    payload = b"\0\0\0\1\0\0" + struct.pack(">i", 1000) + bytes(1000)
    with pytest.raises(ProtocolError, match=r"2 bytes wanted, . left"):
        decode_response(API_VERSIONS, 0, payload)


@pytest.mark.parametrize("length", [-2, -1, 3, 2**15 - 1, -(2**15)])
def test_a_false_length_is_refused(length):
    reader = Reader(struct.pack(">h", length) + b"ab", "message")
    with pytest.raises(ProtocolError, match=r"message: length .* left, near byte 2 of 4"):
        STRING.at(0, flexible=False).read(reader)


def test_text_that_is_not_utf8_is_refused():
    with pytest.raises(ProtocolError, match="UTF-8"):
        STRING.at(0, flexible=True).read(Reader(b"\x03\xff\xfe", "message"))


@given(st.integers(0, 2**32 - 1))
def test_varints_agree_with_a_slow_model(value):
    sevens = [value >> shift & 0x7F for shift in range(0, 35, 7)]
    while len(sevens) > 1 and sevens[-1] == 0:
        sevens.pop()
    encoded = bytes([seven | 0x80 for seven in sevens[:-1]] + sevens[-1:])
    assert Reader(encoded, "message").uvarint() == value


@pytest.mark.parametrize("encoded", [b"", b"\x80", b"\xff" * 4, b"\xff" * 5 + b"\x01", b"\x80" * 9])
def test_a_varint_ends_within_five_bytes(encoded):
    with pytest.raises(ProtocolError):
        Reader(encoded, "message").uvarint()


# --- tagged fields ------------------------------------------------------------------------------------------

TAGGED = Struct(Field("plain", INT16), Field("known", BOOL, tag=1, default=False)).at(0, flexible=True)


def test_unknown_tags_are_skipped():
    container = metadata.ApiVersionsResponse
    feature = container.SupportedFeatureKey(name="metadata.version", min_version=1, max_version=27)
    message = container(version=3, error_code=0, supported_features=[feature], finalized_features_epoch=9)
    message.with_header(4)
    payload = message.encode(header=True)
    assert b"metadata.version" in payload
    assert decode_response(API_VERSIONS, 3, payload) == (
        4,
        dict(error_code=0, api_keys=[], throttle_time_ms=0),
    )


def test_known_tags_are_read_between_unknown_ones():
    payload = b"\0\5" + b"\3" + b"\0\2xx" + b"\1\1\1" + b"\x80\1\3yyy"
    assert TAGGED.read(Reader(payload, "message")) == {"plain": 5, "known": True}


@pytest.mark.parametrize(
    "tags",
    [
        pytest.param(b"\2\1\1\1\1\1\1", id="the same twice"),
        pytest.param(b"\2\2\0\1\1\1", id="out of order"),
        pytest.param(b"\1\1\2\1\0", id="longer than its type"),
        pytest.param(b"\1\1\0", id="shorter than its type"),
        pytest.param(b"\1\7\x09abc", id="longer than the message"),
        pytest.param(b"\xff\xff\xff\xff\x0f", id="a false count"),
    ],
)
def test_malformed_tags_are_refused(tags):
    with pytest.raises(ProtocolError):
        TAGGED.read(Reader(b"\0\5" + tags, "message"))


def test_a_tag_at_its_default_is_not_sent():
    out = bytearray()
    TAGGED.write(out, {"plain": 5, "known": False})
    TAGGED.write(out, {"plain": 5, "known": True})
    assert out == b"\0\5\0" + b"\0\5\1\1\1\1"


# --- bodies that do not fit ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({}, id="missing"),
        pytest.param({"topics": None, "topicz": 1}, id="unknown field"),
        pytest.param({"topics": 5}, id="wrong type"),
        pytest.param({"topics": [{"name": None}]}, id="null where the version has none"),
        pytest.param({"topics": [{"name": "x" * 40_000}]}, id="too long"),
        pytest.param({"topics": [{"name": "\ud800"}]}, id="not text"),
    ],
)
def test_a_misfit_is_our_error(body):
    with pytest.raises(InternalError, match="Metadata v7 request"):
        encode_request(METADATA, 7, 1, "client", body)


def test_ids_have_sixteen_bytes():
    with pytest.raises(InternalError, match="15 bytes"):
        encode_request(METADATA, 12, 1, "client", {"topics": [{"topic_id": bytes(15), "name": None}]})


def test_numbers_have_bounds():
    with pytest.raises(InternalError):
        encode_request(PRODUCE, 8, 1, "client", {"timeout_ms": 2**31, "topic_data": []})


def test_only_pinned_versions_are_spoken():
    with pytest.raises(InternalError, match="version 9 is not pinned"):
        encode_request(METADATA, 9, 1, "client", {"topics": None})
    with pytest.raises(InternalError, match="version 9 is not pinned"):
        decode_response(METADATA, 9, b"")
    with pytest.raises(ProtocolError, match="api key 3 in version 9 is not in the table"):
        decode_request(struct.pack(">hhih", 3, 9, 1, -1), APIS)
    with pytest.raises(ProtocolError, match="api key 999 in version 0 is not in the table"):
        decode_request(struct.pack(">hhih", 999, 0, 1, -1), APIS)


# --- versions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offer", "version"), [((0, 7), 7), ((0, 12), 12), ((0, 13), 12), ((7, 11), 7), ((12, 12), 12)]
)
def test_the_highest_shared_pin_is_chosen(offer, version):
    assert negotiate(METADATA, {3: offer}) == version


@pytest.mark.parametrize(
    ("offers", "message"),
    [
        ({3: (0, 6)}, "the broker offers Metadata 0 to 6; we speak 7 or 12"),
        ({3: (13, 14)}, "the broker offers Metadata 13 to 14; we speak 7 or 12"),
        ({3: (8, 11)}, "the broker offers Metadata 8 to 11; we speak 7 or 12"),
        ({}, "the broker does not offer Metadata; we speak 7 or 12"),
    ],
)
def test_a_broker_without_a_shared_pin_is_named(offers, message):
    with pytest.raises(UnsupportedBroker) as error:
        negotiate(METADATA, offers)
    assert str(error.value) == message


@pytest.mark.parametrize("version", API_VERSIONS.versions)
def test_what_a_broker_offers(version):
    offer = {"api_key": 3, "min_version": 0, "max_version": 13}
    payload = encode_response(API_VERSIONS, version, 1, {"error_code": 0, "api_keys": [offer]})
    assert decode_api_versions(payload, version) == {3: (0, 13)}
    assert decode_api_versions(memoryview(payload), version) == {3: (0, 13)}


@pytest.mark.parametrize("listed", [[], [{"api_key": 18, "min_version": 0, "max_version": 2}]])
def test_a_broker_that_does_not_know_our_version_is_asked_again(listed):
    payload = encode_response(API_VERSIONS, 0, 1, {"error_code": 35, "api_keys": listed})
    assert decode_api_versions(payload, 3) is None
    with pytest.raises(ClusterError, match="UNSUPPORTED_VERSION"):
        decode_api_versions(payload, 0)


def test_another_error_in_api_versions_is_the_clusters():
    payload = encode_response(API_VERSIONS, 3, 1, {"error_code": 31, "api_keys": []})
    with pytest.raises(ClusterError, match="CLUSTER_AUTHORIZATION_FAILED") as error:
        decode_api_versions(payload, 3)
    assert error.value.code == 31


def test_whatever_follows_the_refusal_of_a_version_does_not_matter():
    assert decode_api_versions(b"\0\0\0\1\0\x23\1\0\x12\0\0more", 3) is None


@pytest.mark.parametrize("payload", [b"", b"\0\0\0\1", b"\0\0\0\1\0\0\0", b"\0\0\0\1\0\0\x7fmore"])
def test_malformed_api_versions_are_refused(payload):
    with pytest.raises(ProtocolError):
        decode_api_versions(payload, 3)
