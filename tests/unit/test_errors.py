"""The error tree says whose fault it is on one line; the table of codes is complete and says what to do."""

import pickle
import warnings

import pytest

from replicator import errors
from replicator.errors import (
    KAFKA_ERRORS,
    Action,
    ClusterError,
    ConfigError,
    ConnectionLost,
    InternalError,
    NetworkError,
    ProtocolError,
    ReplicatorError,
    Unreachable,
    UnsupportedBroker,
    VerificationFailed,
    Where,
    kafka_error,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # kafka-python 3.0 loads its schemas in an old way
    import kafka.errors

LEAVES = [Unreachable, ConnectionLost, ProtocolError, UnsupportedBroker, VerificationFailed, InternalError]

# --- the tree -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "text"),
    [
        (Where(), ""),
        (Where("eu"), "eu"),
        (Where("eu", "orders"), "eu orders"),
        (Where("eu", "orders", 0), "eu orders-0"),
        (Where("eu", "orders", 0, 0), "eu orders-0 offset 0"),
        (Where(topic="orders", partition=3), "orders-3"),
        (Where("eu", offset=7), "eu offset 7"),
    ],
)
def test_a_place_reads_as_far_as_it_is_known(where, text):
    assert str(where) == text


@pytest.mark.parametrize("leaf", LEAVES)
def test_an_error_is_one_line(leaf):
    error = leaf("it broke", where=Where("eu", "orders", 3), hint="mend it")
    assert str(error) == "eu orders-3: it broke; mend it"
    assert str(leaf("it broke")) == "it broke"
    assert isinstance(error, ReplicatorError)


def test_foreign_text_cannot_leave_its_line():
    assert str(ProtocolError("a\r\n\tb \x1b[31mred\x00", hint="c\nd")) == "a b ?[31mred?; c d"


def test_an_outer_layer_adds_what_it_knows():
    error = ProtocolError("it broke", where=Where(topic="orders"))
    assert error.at(Where("eu", "other", 3)) is error
    assert error.where == Where("eu", "orders", 3)


def test_the_base_says_nobodys_fault_so_it_is_never_raised():
    with pytest.raises(TypeError):
        ReplicatorError("it broke")


def test_the_network_is_told_from_the_cluster():
    assert issubclass(Unreachable, NetworkError)
    assert issubclass(ConnectionLost, NetworkError)
    assert not issubclass(NetworkError, ClusterError)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ConfigError("unknown key", "link.yaml", 3, 5), "link.yaml:3:5: unknown key"),
        (ConfigError("unknown key", "link.yaml", 3), "link.yaml:3: unknown key"),
        (ConfigError("no such file", "link.yaml"), "link.yaml: no such file"),
        (ConfigError("no link"), "no link"),
        (
            ConfigError("unknown key 'topcs'", "link.yaml", 3, 5, hint="did you mean 'topics'?"),
            "link.yaml:3:5: unknown key 'topcs'; did you mean 'topics'?",
        ),
    ],
)
def test_a_config_error_points_at_the_file(error, text):
    assert str(error) == text


def test_a_cluster_error_explains_its_code():
    error = ClusterError(6, "Produce", where=Where("eu", "orders", 3), hint="wait")
    assert error.code == 6
    assert error.row is KAFKA_ERRORS[6]
    assert str(error) == (
        "eu orders-3: Produce: NOT_LEADER_OR_FOLLOWER (6): another broker leads the partition now; wait"
    )
    assert str(ClusterError(999)).startswith("ERROR_999 (999): ")


@pytest.mark.parametrize(
    "error",
    [
        ProtocolError("it broke", where=Where("eu"), hint="mend it"),
        ConfigError("unknown key", "link.yaml", 3, 5, hint="no"),
        ClusterError(6, "Produce", where=Where("eu", "orders", 3), hint="wait"),
    ],
)
def test_errors_cross_processes(error):
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.where) == (type(error), str(error), error.where)


# --- the table ----------------------------------------------------------------------------------------------

# Kafka has renamed these since kafka-python named its own, or kafka-python shortens them.
NAMED_OTHERWISE = {-1, 0, 6, 10, 17, 39}


def test_the_table_holds_every_code_of_kafka_4_4():
    assert list(KAFKA_ERRORS) == list(range(-1, 137))
    assert len({row.name for row in KAFKA_ERRORS.values()}) == len(KAFKA_ERRORS)


def test_names_are_kafkas():
    theirs = {code: error.message for code, error in kafka.errors.kafka_errors.items() if code is not None}
    assert len(theirs) > 120
    assert {code for code, name in theirs.items() if KAFKA_ERRORS[code].name != name} == NAMED_OTHERWISE


def test_what_kafka_python_retries_we_do_not_give_up_on():
    retried = {
        code
        for code, error in kafka.errors.kafka_errors.items()
        if code is not None and issubclass(error, kafka.errors.RetriableError)
    }
    assert len(retried) > 20
    assert all(KAFKA_ERRORS[code].action in {Action.RETRY, Action.REFRESH} for code in retried)


@pytest.mark.parametrize(
    ("action", "codes"),
    [
        (Action.OK, {0}),
        (Action.RETRY, {-1, 7, 14, 15, 19, 20, 51, 56, 70, 71, 78, 89, 106}),
        (Action.REFRESH, {3, 5, 6, 9, 13, 72, 74, 75, 100, 103, 129}),
        (Action.RESYNC, {45, 46, 47, 59}),
        (Action.DIVERT, {2, 10, 18, 32, 76, 87}),
        (Action.STOP, {1, 29, 30, 31, 35, 42, 44, 48, 53, 58, 90}),
    ],
)
def test_what_the_data_plane_does(action, codes):
    assert {code for code in codes if kafka_error(code).action is action} == codes


@pytest.mark.parametrize("action", [Action.OK, Action.RESYNC, Action.DIVERT])
def test_only_few_codes_touch_the_records(action):
    """They confirm, renumber or divert records, so no new row may get one of them by accident."""
    allowed = {Action.OK: {0}, Action.RESYNC: {45, 46, 47, 59}, Action.DIVERT: {2, 10, 18, 32, 76, 87}}
    assert {row.code for row in KAFKA_ERRORS.values() if row.action is action} == allowed[action]


@pytest.mark.parametrize("row", KAFKA_ERRORS.values(), ids=lambda row: row.name)
def test_a_meaning_is_plain(row):
    assert row.meaning
    assert row.meaning.strip() == row.meaning
    assert not row.meaning.endswith(".")


def test_an_unknown_code_stops_the_lane():
    row = kafka_error(12_345)
    assert (row.code, row.name, row.action) == (12_345, "ERROR_12345", Action.STOP)
    assert "newer" in row.meaning


def test_a_code_cannot_stand_in_the_table_twice():
    row = (7, "REQUEST_TIMED_OUT", Action.RETRY, "it took too long")
    with pytest.raises(InternalError, match="7 stands in the table twice"):
        errors._by_code([row, row])
