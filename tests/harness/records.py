"""Records as plain tuples, equal exactly when Kafka's own clients would see the same record."""

from typing import NamedTuple

Headers = tuple[tuple[str, bytes | None], ...]


class Record(NamedTuple):
    """A record read from a log. `timestamp_type` is CreateTime, LogAppendTime or NoTimestampType."""

    offset: int
    timestamp_type: str
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class NewRecord(NamedTuple):
    """A record to be written. Without a timestamp (milliseconds) the client puts in the time of writing."""

    partition: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    timestamp: int | None = None


Dump = dict[int, list[Record]]
