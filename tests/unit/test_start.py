"""Where a lane begins that never ran, and where it stops, from logs made by hand."""

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from replicator.config.models import StartAt
from replicator.data.placement import LaneStopped
from replicator.data.start import NEVER, first_place
from replicator.data.states import Checkpoint
from replicator.data.transitions import Trigger
from replicator.kafka.log import LogTail
from replicator.kafka.messages import LIST_OFFSETS
from tests.oracle.bench import lane_spec
from tests.oracle.scripted_log import BASE_TIMESTAMP, EARLIEST, LATEST, ScriptedLog, batch_of, recs

EMPTY = LogTail(0, None)
FIRST, LAST, STABLE = 10, 40, 30  # three batches of ten records each, the last of them in an open transaction


class Log(ScriptedLog):
    """Knows times, and where committed readers end."""

    async def request(self, api: Any, body: dict[str, Any], node_id: int) -> dict[str, Any]:
        if api is not LIST_OFFSETS:
            return await super().request(api, body, node_id)
        (row,) = body["topics"][0]["partitions"]
        end = self.stable if body["isolation_level"] and self.stable is not None else self.log_end
        found = {EARLIEST: self.log_start, LATEST: end}.get(row["timestamp"])
        if found is None:
            late = [n for n in range(self.log_start, self.log_end) if BASE_TIMESTAMP + 10 * n >= row["timestamp"]]
            found = late[0] if late else -1
        answer = {"partition_index": 0, "error_code": 0, "offset": found}
        return {"topics": [{"name": "orders", "partitions": [answer]}]}


def log(**settings: Any) -> Log:
    return Log("us", [batch_of(recs(10, at), at) for at in (10, 20, 30)], stable=STABLE, **settings)


def place(source: Log, tail: LogTail = EMPTY, **settings: Any) -> tuple[Checkpoint, int]:
    return asyncio.run(first_place(source.partition, tail, replace(lane_spec(), **settings), keeps_map=True))


def at(offset: int, ms: int = 0) -> StartAt:
    return StartAt(BASE_TIMESTAMP + 10 * offset + ms)


@pytest.mark.parametrize(
    ("start", "position"),
    [
        ("earliest", FIRST),
        ("latest", LAST),
        (at(0), FIRST),
        (at(20), 20),
        (at(25), 20),  # the batch that holds it, whole
        (at(29, 1), 30),
        (at(39), 30),
        (at(39, 1), LAST),  # nothing is as new
    ],
)
def test_where_it_starts(start: Any, position: int) -> None:
    assert place(log(), start=start) == (Checkpoint(position, 0, 0), NEVER)


def test_a_first_batch_whose_head_was_deleted_starts_where_the_log_does() -> None:
    assert place(log(start=13), start=at(15))[0].position == 13


@pytest.mark.parametrize(
    ("isolation", "stop", "offset"),
    [
        ("read_committed", "never", NEVER),
        ("read_committed", "now", STABLE),
        ("read_uncommitted", "now", LAST),
        ("read_committed", 25, 25),
        ("read_committed", 35, STABLE),
        ("read_uncommitted", 35, 35),
        ("read_uncommitted", 99, LAST),
        ("read_uncommitted", 0, 0),
    ],
)
def test_where_it_stops(isolation: str, stop: Any, offset: int) -> None:
    """Not beyond what it ever comes to see: it would wait for that."""
    assert place(log(), isolation=isolation, stop=stop)[1] == offset


def test_an_empty_source() -> None:
    assert place(Log("us"), stop="now") == (Checkpoint(0, 0, 0), 0)
    assert place(Log("us"), start=at(20)) == (Checkpoint(0, 0, 0), NEVER)


def test_a_target_that_holds_something_already() -> None:
    with pytest.raises(LaneStopped, match="its log ends at 7") as stopped:
        place(log(), LogTail(7, None))
    assert stopped.value.trigger is Trigger.TARGET_NOT_EMPTY
