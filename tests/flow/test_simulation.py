"""The proof that a lane is exact: two brokers, the native core between them, and everything that can go wrong.

Hypothesis plays the network, both brokers and an impatient operator. Answers get lost or come late, requests of a dead
connection are carried out long after it died, brokers answer with errors before and after they have appended, responses
arrive in pieces or only half. Whatever happens, after every step the target's log is the beginning of the source's,
record by record, and the checkpoint says the truth; and once the faults end, everything arrives.

The owner of the lanes is played by the same rules as replicator.data.lane: halt, wait until nothing is in flight, read
the target's tail, go on from there.
"""

import struct
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from replicator._core import Event, FetchStream, Pool, Source, Target
from replicator.data.states import Checkpoint
from tests.oracle import fetch, produce
from tests.oracle.broker import SourceLog, TargetLog
from tests.oracle.duplex import Duplex
from tests.oracle.fetch import Fetched, FetchedTopic, FetchRequest
from tests.oracle.lane import SEQUENCES
from tests.oracle.produce import Produced, ProduceRequest
from tests.oracle.rig import NEVER, PRODUCER, LaneRig, topic_id

TOPICS = ["orders", "payments"]
PARTITIONS = 2
NOT_LEADER, TIMED_OUT, TOO_FEW_REPLICAS, UNKNOWN = 6, 7, 20, -1
TARGET_FAULTS = [0] * 12 + [NOT_LEADER, UNKNOWN, TIMED_OUT, TOO_FEW_REPLICAS]
CREDIT_BYTES, LANE_BYTES_MAX, FETCH_BYTES_MAX, PRODUCE_BYTES_MAX = 60_000, 700, 900, 600
STEPS_TO_CALM_DOWN = 3_000


class SimulatedLane(LaneRig):
    """A lane with both its logs, and what its owner knows of it."""

    def __init__(self, topic: str, partition: int, first_sequence: int) -> None:
        super().__init__(topic, partition, f"copy.of.{topic}")
        self.source_log = SourceLog()
        self.target_log = TargetLog()
        self.first = Checkpoint(0, 0, first_sequence)
        self.native.runner = self
        self.without_source = False

    def landed(self) -> int:
        """How many records beyond the checkpoint the target's tail says are there."""
        beyond = len(self.target_log.records) - self.checkpoint.target_next
        assert beyond >= 0, "more was acknowledged than there is"
        if beyond:
            last = self.target_log.batches[-1]
            assert (last.producer_id, last.producer_epoch) == PRODUCER
            assert (last.base_sequence + last.count - self.checkpoint.sequence) % SEQUENCES == beyond
        return beyond


class SourceConnection:
    """One Fetch at a time, and the part of its response that has not arrived yet."""

    def __init__(self, pool: Pool, source: Source) -> None:
        self.pool = pool
        self.stream = FetchStream(source, b"sim", FETCH_BYTES_MAX)
        self.duplex = Duplex(pool)
        self.asked: FetchRequest | None = None
        self.arriving = b""

    def ask(self, version: int, correlation_id: int) -> bool:
        if self.asked or not self.stream.compose(self.duplex.transport, version, correlation_id, 0):
            return False
        self.asked = fetch.parse_request(self.duplex.sent())
        return True

    def arrive(self, size: int) -> None:
        piece, self.arriving = self.arriving[:size], self.arriving[size:]
        self.duplex.far.sendall(piece)
        if self.duplex.transport.receive(self.stream) is not None:
            assert not self.arriving
            self.asked = None

    def lose(self) -> None:
        self.duplex.close()
        self.stream.abort()
        self.duplex = Duplex(self.pool)
        self.asked, self.arriving = None, b""


class Simulation(RuleBasedStateMachine):
    seen: Counter[str] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool(CREDIT_BYTES)
        self.source = Source(self.pool, LANE_BYTES_MAX)
        self.target = Target(b"sim", PRODUCE_BYTES_MAX, 1_000)
        self.sources = [SourceConnection(self.pool, self.source) for _ in range(2)]
        self.duplex = Duplex(self.pool)
        self.correlation_id = 0
        self.lanes: dict[tuple[str, int], SimulatedLane] = {}
        self.at_target: list[ProduceRequest] = []  # sent, not yet carried out
        self.answers: list[tuple[ProduceRequest, list[Produced]]] = []  # carried out, not yet answered
        self.ghosts: list[list[ProduceRequest]] = []  # of dead connections, still to be carried out

    @initialize(
        version=st.sampled_from([10, 13]), produce_version=st.sampled_from([7, 8]), wraps=st.sampled_from([0, 3, 40])
    )
    def begin(self, version: int, produce_version: int, wraps: int) -> None:
        self.version, self.produce_version = version, produce_version
        for topic in TOPICS:
            for partition in range(PARTITIONS):
                lane = SimulatedLane(topic, partition, -wraps % SEQUENCES)
                for size in (3, 1, 4, 1, 5, 2):
                    lane.source_log.append("data", size, 0)
                self.lanes[topic, partition] = lane
                lane.native.set_target(self.target)
                lane.native.resume(lane.first, 0, NEVER)
                lane.native.set_source(self.source, 1)

    def _target_log(self, topic: str, partition: int) -> TargetLog:
        return self.lanes[topic.removeprefix("copy.of."), partition].target_log

    def lane(self, data: st.DataObject) -> SimulatedLane:
        return self.lanes[data.draw(st.sampled_from(sorted(self.lanes)))]

    # ---- the source ----

    @rule(
        data=st.data(),
        kinds=st.lists(st.sampled_from(["data", "data", "data", "data", "control", "empty"]), min_size=1, max_size=6),
    )
    def source_grows(self, data: st.DataObject, kinds: list[str]) -> None:
        log = self.lane(data).source_log
        for kind in kinds:
            log.append(kind, data.draw(st.integers(1, 5)), data.draw(st.sampled_from([0, 0, 0, 2])))

    @rule()
    def fetches_are_sent(self) -> None:
        for connection in self.sources:
            self.correlation_id += 1
            if connection.ask(self.version, self.correlation_id):
                self.seen["fetches"] += 1

    @precondition(lambda self: any(each.asked and not each.arriving for each in self.sources))
    @rule(data=st.data())
    def source_answers(self, data: st.DataObject) -> None:
        waiting = [each for each in self.sources if each.asked and not each.arriving]
        self._answer(data.draw(st.sampled_from(waiting)), data)

    def _answer(self, connection: SourceConnection, data: st.DataObject | None) -> None:
        """Starts a response: truly and in order without `data`, else as it is drawn."""
        request = connection.asked
        assert request
        topics = [self._fetched(name, rows, data) for name, rows in request.topics]
        if data:
            topics = data.draw(st.permutations(topics))
        frame = fetch.encode_response(self.version, request.correlation_id, topics)
        connection.arriving = struct.pack(">I", len(frame)) + frame

    def _fetched(self, name: str | bytes, rows: list[fetch.AskedPartition], data: st.DataObject | None) -> FetchedTopic:
        topic = next(topic for topic in TOPICS if name in (topic, topic_id(topic)))
        partitions = []
        for row in rows:
            log = self.lanes[topic, row.partition].source_log
            error, behind, bytes_max = 0, 0, row.bytes_max
            if data:
                error = data.draw(st.sampled_from([0, 0, 0, 0, 0, 0, NOT_LEADER]))
                behind = data.draw(st.sampled_from([0, 0, 1, 2]))
                bytes_max = min(bytes_max, data.draw(st.integers(1, LANE_BYTES_MAX)))
            records = b"" if error else log.read(row.fetch_offset, bytes_max, behind)
            partitions.append(Fetched(row.partition, records, error, high_watermark=log.end))
        return FetchedTopic(topic, topic_id(topic), partitions)

    @precondition(lambda self: any(each.arriving for each in self.sources))
    @rule(data=st.data(), size=st.integers(1, 900) | st.just(10_000))
    def response_arrives(self, data: st.DataObject, size: int) -> None:
        connection = data.draw(st.sampled_from([each for each in self.sources if each.arriving]))
        self._arrive(connection, size)

    def _arrive(self, connection: SourceConnection, size: int) -> None:
        connection.arrive(size)
        self._hear(connection.stream.take_events())

    @precondition(lambda self: any(each.asked for each in self.sources))
    @rule(data=st.data())
    def source_connection_is_lost(self, data: st.DataObject) -> None:
        connection = data.draw(st.sampled_from([each for each in self.sources if each.asked]))
        connection.lose()
        self._hear(connection.stream.take_events())
        self.seen["source connections lost"] += 1

    # ---- the target ----

    @rule(requests=st.integers(1, 8))
    def produce_is_sent(self, requests: int) -> None:
        for _ in range(requests):
            self._gather()

    def _gather(self) -> None:
        self.correlation_id += 1
        if self.target.gather(self.duplex.transport, self.produce_version, self.correlation_id):
            (request,) = produce.parse_requests(self.duplex.sent())
            places = [(topic, partition) for topic, partition, _ in request.batches]
            assert len(set(places)) == len(places)
            self.at_target.append(request)
            self.seen["requests"] += 1

    @precondition(lambda self: self.at_target)
    @rule(data=st.data(), requests=st.integers(1, 8))
    def target_carries_out(self, data: st.DataObject, requests: int) -> None:
        for _ in range(min(requests, len(self.at_target))):
            self._carry_out(data)

    def _carry_out(self, data: st.DataObject | None) -> None:
        request = self.at_target.pop(0)
        answers = []
        for topic, partition, batch in request.batches:
            log = self._target_log(topic, partition)
            fault = data.draw(st.sampled_from(TARGET_FAULTS)) if data else 0
            error, offset = (fault, -1) if fault in (NOT_LEADER, UNKNOWN) else log.append(batch)
            if fault in (TIMED_OUT, TOO_FEW_REPLICAS):
                error, offset = fault, -1  # appended, and answered as if it were not
            answers.append(Produced(topic, partition, offset, error))
            self.seen[f"answer {error}"] += 1
        self.answers.append((request, data.draw(st.permutations(answers)) if data else answers))

    @precondition(lambda self: self.answers)
    @rule(requests=st.integers(1, 8))
    def target_answers(self, requests: int) -> None:
        for _ in range(min(requests, len(self.answers))):
            self._settle()

    def _settle(self) -> None:
        request, answers = self.answers.pop(0)
        frame = self.duplex.deliver(produce.encode_response(request.version, request.correlation_id, answers))
        assert frame is not None
        self.target.settle(frame)
        self._hear(self.target.take_events())

    @precondition(lambda self: self.at_target or self.answers)
    @rule(survive=st.integers(0, 3))
    def target_connection_is_lost(self, survive: int) -> None:
        """Answers under way are lost; some of the requests are read by the broker all the same, later."""
        if ghosts := self.at_target[:survive]:
            self.ghosts.append(ghosts)
        self.seen["answers lost"] += len(self.answers)
        self.at_target, self.answers = [], []
        self.duplex.close()
        self.target.abandon()
        self._hear(self.target.take_events())
        self.duplex = Duplex(self.pool)

    @precondition(lambda self: self.ghosts)
    @rule(data=st.data())
    def dead_connection_is_carried_on(self, data: st.DataObject) -> None:
        ghosts = data.draw(st.sampled_from(self.ghosts))
        for topic, partition, batch in ghosts.pop(0).batches:
            error, _ = self._target_log(topic, partition).append(batch)
            self.seen["late and appended" if not error else "late and refused"] += 1
        if not ghosts:
            self.ghosts = [each for each in self.ghosts if each]

    @rule(data=st.data())
    def target_restarts(self, data: st.DataObject) -> None:
        self.lane(data).target_log.restart()

    # ---- the owner ----

    def _hear(self, events: list[Event]) -> None:
        for event in events:
            self.seen[event.kind] += 1
            if event.kind == "fetch_error":
                event.lane.runner.without_source = True
            else:
                assert event.kind in ("produce_error", "offset_drift", "answer_lost"), event
                assert not event.lane.running

    @rule(data=st.data())
    def lane_is_halted(self, data: st.DataObject) -> None:
        self.lane(data).native.halt()

    @precondition(lambda self: any(not lane.native.running for lane in self.lanes.values()))
    @rule()
    def halted_lanes_are_placed(self) -> None:
        self._place_halted()

    def _place_halted(self) -> None:
        for lane in self.lanes.values():
            if not lane.native.running and not lane.native.in_flight:
                skip = lane.landed()
                self.seen["records skipped"] += skip
                lane.native.resume(lane.checkpoint, skip, NEVER)
                lane.native.set_source(self.source, 2)
                lane.without_source = False

    @rule()
    def leaders_are_looked_up(self) -> None:
        self._find_sources()

    def _find_sources(self) -> None:
        for lane in self.lanes.values():
            if lane.without_source:
                lane.native.set_source(self.source, 3)
                lane.without_source = False

    # ---- what always holds ----

    @invariant()
    def the_target_is_the_beginning_of_the_source(self) -> None:
        for lane in self.lanes.values():
            records = lane.target_log.records
            assert records == lane.source_log.data_below(lane.source_log.end)[: len(records)]

    @invariant()
    def the_checkpoint_is_true(self) -> None:
        for lane in self.lanes.values():
            position, target_next, sequence = lane.checkpoint
            assert target_next == len(lane.source_log.data_below(position)) <= len(lane.target_log.records)
            assert sequence == (lane.first.sequence + target_next) % SEQUENCES

    def teardown(self) -> None:
        """The faults end: everything arrives, and nothing is kept."""
        for _ in range(STEPS_TO_CALM_DOWN):
            if self._is_done():
                break
            self._step()
        for lane in self.lanes.values():
            log = lane.source_log
            assert lane.target_log.records == log.data_below(log.end)
            assert lane.checkpoint.position == log.end
            assert (lane.native.in_flight, lane.native.queued) == (0, 0)
            self.seen["duplicates recognised"] += lane.target_log.recognised
            self.seen["records"] += len(lane.target_log.records)
        for connection in self.sources:
            connection.lose()
        assert self.pool.used_bytes == 0
        for connection in self.sources:
            connection.duplex.close()
        self.duplex.close()

    def _is_done(self) -> bool:
        idle = not (self.at_target or self.answers or self.target.waiting)
        return idle and all(
            lane.native.running and lane.checkpoint.position == lane.source_log.end for lane in self.lanes.values()
        )

    def _step(self) -> None:
        """One round in which everybody does what is to be done."""
        self._place_halted()
        self._find_sources()
        self.fetches_are_sent()
        for connection in self.sources:
            if connection.asked and not connection.arriving:
                self._answer(connection, None)
            if connection.arriving:
                self._arrive(connection, len(connection.arriving))
        self._gather()
        if self.at_target:
            self._carry_out(None)
        if self.answers:
            self._settle()


MUST_HAVE_HAPPENED = [
    "records",
    "requests",
    "fetch_error",
    "produce_error",
    "answer_lost",
    "answers lost",
    "source connections lost",
    "records skipped",
    "duplicates recognised",
    "late and appended",
    "late and refused",
    "answer 45",
]


def simulate(examples: int, steps: int, **options: bool) -> Counter[str]:
    Simulation.seen.clear()
    run_state_machine_as_test(
        Simulation,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            **options,
        ),
    )
    return Simulation.seen


def test_every_record_arrives_once_and_in_order_whatever_fails():
    seen = simulate(examples=60, steps=60, derandomize=True)
    assert not [what for what in MUST_HAVE_HAPPENED if not seen[what]], seen


@pytest.mark.soak
@pytest.mark.timeout(3_600)
def test_every_record_arrives_once_and_in_order_for_a_long_time():
    seen = simulate(examples=3_000, steps=150, print_blob=True)
    assert not [what for what in MUST_HAVE_HAPPENED if not seen[what]], seen
