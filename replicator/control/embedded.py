"""A Kafka cluster inside this process, for `replicator demo` and for tests: no Java, no waiting.

librdkafka, which the confluent-kafka wheel carries along, contains a mock cluster that its own tests run
against. It listens on real sockets on 127.0.0.1 and speaks enough of the protocol for producers, consumers
and for us. Two of them in one process make a source and a target.

What it is not: durable, a benchmark, or a judge. A partition keeps its last 5 MiB. A Fetch gets one batch a
partition, and one that waits is not woken by new data. Checksums and the sequences of idempotent producers
are not looked at: a duplicate is appended like anything else. The log append time in its answers is a
made-up constant.
"""

import ctypes
import ctypes.util
import importlib.metadata
import re
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from replicator.errors import ClusterError, ConfigError, NetworkError

BROKERS_MAX = 16
PARTITIONS_MAX = 10_000

_LIBRARY_FILE = re.compile(r"librdkafka(-[0-9a-f]+)?(\.\d+)*\.(so|dylib)(\.\d+)*")
_PRODUCER = 0  # rd_kafka_type_t
_ERROR_BYTES = 512

# The part of the C interface used here: name, result, arguments. Every handle is an opaque pointer.
_SIGNATURES: list[tuple[str, type | None, list[type]]] = [
    ("rd_kafka_conf_new", ctypes.c_void_p, []),
    ("rd_kafka_conf_destroy", None, [ctypes.c_void_p]),
    ("rd_kafka_conf_set_log_cb", None, [ctypes.c_void_p, ctypes.c_void_p]),
    ("rd_kafka_new", ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]),
    ("rd_kafka_destroy", None, [ctypes.c_void_p]),
    ("rd_kafka_mock_cluster_new", ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int]),
    ("rd_kafka_mock_cluster_destroy", None, [ctypes.c_void_p]),
    ("rd_kafka_mock_cluster_bootstraps", ctypes.c_char_p, [ctypes.c_void_p]),
    (
        "rd_kafka_mock_topic_create",
        ctypes.c_int,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int],
    ),
]


def _library_path() -> str:
    """The librdkafka inside confluent-kafka, else the system's (confluent-kafka built from source)."""
    try:
        files = importlib.metadata.files("confluent-kafka") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    bundled = (Path(str(file.locate())) for file in files if _LIBRARY_FILE.fullmatch(file.name))
    found = next((str(path) for path in bundled if path.exists()), None) or ctypes.util.find_library("rdkafka")
    if found is None:
        raise ConfigError("librdkafka was not found", hint="pip install confluent-kafka, or install librdkafka")
    return found


@cache
def _library() -> ctypes.CDLL:
    path = _library_path()
    try:
        library = ctypes.CDLL(path)
        for name, result, arguments in _SIGNATURES:
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise ConfigError(f"{path} is not a librdkafka with a mock cluster: {error}") from error
    return library


class EmbeddedCluster:
    """A mock cluster of `brokers` brokers on ports of 127.0.0.1, up until `close()` or the end of `with`.

    Topics appear by `create_topic`, or when a client that may create topics asks for them. Not to be shared
    across a fork: librdkafka's threads do not survive one.

    Raises ConfigError where there is no librdkafka, NetworkError where it cannot listen.
    """

    def __init__(self, brokers: int = 1) -> None:
        if not 1 <= brokers <= BROKERS_MAX:
            raise ValueError(f"brokers must be 1 to {BROKERS_MAX}, not {brokers}")
        self._client = self._cluster = None
        self._brokers = brokers
        self._lib = _library()
        try:
            self._client = _silent_client(self._lib)
            self._cluster = self._lib.rd_kafka_mock_cluster_new(self._client, brokers)
            if not self._cluster:
                raise NetworkError("librdkafka could not start a mock cluster on 127.0.0.1")
        except BaseException:
            self.close()
            raise
        self.bootstrap_servers: str = self._lib.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()

    def create_topic(self, name: str, partitions: int, replication_factor: int = 1) -> None:
        """Create a topic, its leaders spread over the brokers. Raises ClusterError, e.g. if it exists."""
        if not 1 <= partitions <= PARTITIONS_MAX:
            raise ValueError(f"partitions must be 1 to {PARTITIONS_MAX}, not {partitions}")
        if not 1 <= replication_factor <= self._brokers:
            raise ValueError(f"replication_factor must be 1 to {self._brokers}, not {replication_factor}")
        if not self._cluster:
            raise ValueError("the cluster is closed")
        code = self._lib.rd_kafka_mock_topic_create(self._cluster, name.encode(), partitions, replication_factor)
        if code:
            raise ClusterError(code, f"create topic {name}")

    def close(self) -> None:
        """Close all sockets and free the logs. Calling it again does nothing."""
        if self._cluster:
            self._lib.rd_kafka_mock_cluster_destroy(self._cluster)
        if self._client:
            self._lib.rd_kafka_destroy(self._client)
        self._client = self._cluster = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _silent_client(library: ctypes.CDLL) -> int:
    """The client handle that a mock cluster hangs on. Its log would land in the middle of a demo."""
    conf = library.rd_kafka_conf_new()
    library.rd_kafka_conf_set_log_cb(conf, None)
    reason = ctypes.create_string_buffer(_ERROR_BYTES)
    client = library.rd_kafka_new(_PRODUCER, conf, reason, _ERROR_BYTES)
    if not client:
        library.rd_kafka_conf_destroy(conf)
        raise NetworkError(f"librdkafka could not start a client: {reason.value.decode(errors='replace')}")
    return int(client)
