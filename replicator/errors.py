"""Everything that can go wrong, sorted by whose fault it is; and what a broker's error codes ask us to do.

The tree answers "who has to act": you (ConfigError), the cluster (ClusterError), the network between us
(NetworkError), a peer that does not speak Kafka as we do (ProtocolError, UnsupportedBroker), whoever trusted
the copy (VerificationFailed), or we (InternalError). Every error is one line: where, what, and what to do.

The table answers "what does the data plane do next" for each code that a broker can put into an answer: one
row, one action. A caller that knows better about a code, in one place, looks at the code before the action.
"""

from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple, Self


class Where(NamedTuple):
    """A place in a cluster, as far as it is known: `eu orders-3 offset 1200`, `eu orders`, `eu`, nothing."""

    cluster: str | None = None
    topic: str | None = None
    partition: int | None = None
    offset: int | None = None

    def __str__(self) -> str:
        log = self.topic if self.partition is None else f"{self.topic}-{self.partition}"
        offset = None if self.offset is None else f"offset {self.offset}"
        return " ".join(part for part in (self.cluster, log, offset) if part)


NOWHERE = Where()


class ReplicatorError(Exception):
    """Base of the tree; never raised itself, because it does not say whose fault it is.

    `what` happened, `where` it happened, and a `hint` on what to do. `str()` is always one printable line,
    even when a broker or a file put line ends or terminal codes into the text.
    """

    def __init__(self, what: str, *, where: Where = NOWHERE, hint: str = "") -> None:
        if type(self) is ReplicatorError:
            raise TypeError("raise a subclass that says whose fault it is")
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def at(self, where: Where) -> Self:
        """This error, with what an outer layer knows about the place added; what is known already stays."""
        known = {name: value for name, value in self.where._asdict().items() if value is not None}
        self.where = where._replace(**known)
        return self

    def __str__(self) -> str:
        return _one_line(_joined(": ", str(self.where), _joined("; ", self.what, self.hint)))


class ConfigError(ReplicatorError):
    """Yours: a configuration that cannot be meant. Lines and columns count from 1; 0 means not known."""

    def __init__(self, what: str, file: str = "", line: int = 0, column: int = 0, *, hint: str = "") -> None:
        super().__init__(what, hint=hint)
        self.file = file
        self.line = line
        self.column = column

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line, self.column) if part)
        return _one_line(_joined(": ", place, super().__str__()))


class ClusterError(ReplicatorError):
    """Theirs: a broker answered with an error code. `what` names the request, or is the broker's own text."""

    def __init__(self, code: int, what: str = "", *, where: Where = NOWHERE, hint: str = "") -> None:
        super().__init__(what, where=where, hint=hint)
        self.code = code
        self.row = kafka_error(code)
        self.args = (code, what)

    def __str__(self) -> str:
        answer = f"{self.row.name} ({self.code}): {self.row.meaning}"
        return _one_line(_joined(": ", str(self.where), self.what, _joined("; ", answer, self.hint)))


class NetworkError(ReplicatorError):
    """Nobody's: the bytes do not get through. Worth another try after a pause."""


class Unreachable(NetworkError):
    """No connection could be made."""


class ConnectionLost(NetworkError):
    """A connection ended, or its peer fell silent. What was in flight may have been done: ask first."""


class ProtocolError(ReplicatorError):
    """The peer's bytes are malformed: not Kafka, another service's port, or damage on the way."""


class UnsupportedBroker(ReplicatorError):
    """The broker is sound, but shares no version of a request with us that we cannot do without."""


class VerificationFailed(ReplicatorError):
    """Source and target were compared, and they differ."""


class InternalError(ReplicatorError):
    """Ours: a state we hold impossible. Please report it."""


def _joined(separator: str, *parts: str) -> str:
    return separator.join(part for part in parts if part)


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))


class Action(Enum):
    """What the data plane does about an error code."""

    OK = "ok"  # nothing happened that matters
    RETRY = "retry"  # wait, then try the same again
    REFRESH = "refresh"  # our metadata is stale: ask again who leads, then try there
    RESYNC = "resync"  # we disagree about the sequence: read the target's tail first, then go on from it
    DIVERT = "divert"  # this batch's fault, or one of its records': no retry and no other broker will take it
    STOP = "stop"  # a person has to act; until then the lane stands still, loudly


class KafkaError(NamedTuple):
    """One row: the code on the wire, Kafka's name for it, our next step, and its meaning in plain words."""

    code: int
    name: str
    action: Action
    meaning: str


OK, RETRY, REFRESH, RESYNC, DIVERT, STOP = Action

# Every code up to Kafka 4.4. What only groups, transactions, admin requests or brokers among themselves can
# cause says STOP, unless Kafka's own clients retry it: should it ever reach a lane, to guess would be worse.
_ROWS = [
    # -1 is also the word for malformed compressed bytes: the caller caps its retries, then blames the batch.
    (-1, "UNKNOWN_SERVER_ERROR", RETRY, "the broker failed, or cannot digest the batch: a few retries only"),
    (0, "NONE", OK, "no error"),
    # No retry heals 1, and jumping to the log's start or end would lose records without a word.
    (1, "OFFSET_OUT_OF_RANGE", STOP, "the log lost this offset: retention, truncation, or a new topic"),
    (2, "CORRUPT_MESSAGE", DIVERT, "the batch does not match its checksum, or is otherwise damaged"),
    (3, "UNKNOWN_TOPIC_OR_PARTITION", REFRESH, "this broker does not know the partition, or it was deleted"),
    (4, "INVALID_FETCH_SIZE", STOP, "the size asked for in a fetch makes no sense to the broker"),
    (5, "LEADER_NOT_AVAILABLE", REFRESH, "the partition has no leader at the moment"),
    (6, "NOT_LEADER_OR_FOLLOWER", REFRESH, "another broker leads the partition now"),
    (7, "REQUEST_TIMED_OUT", RETRY, "it took too long; a batch may be appended all the same"),
    (8, "BROKER_NOT_AVAILABLE", REFRESH, "the broker is not available"),
    (9, "REPLICA_NOT_AVAILABLE", REFRESH, "this broker holds no replica of the partition now"),
    (10, "MESSAGE_TOO_LARGE", DIVERT, "the batch exceeds the topic's max.message.bytes"),
    (11, "STALE_CONTROLLER_EPOCH", STOP, "the controller moved (between brokers only)"),
    (12, "OFFSET_METADATA_TOO_LARGE", STOP, "the text beside a committed offset is too long"),
    (13, "NETWORK_EXCEPTION", REFRESH, "the broker lost a connection before the answer"),
    (14, "COORDINATOR_LOAD_IN_PROGRESS", RETRY, "the coordinator is still loading its state"),
    (15, "COORDINATOR_NOT_AVAILABLE", RETRY, "the coordinator is not available yet"),
    (16, "NOT_COORDINATOR", REFRESH, "another broker coordinates this now"),
    (17, "INVALID_TOPIC_EXCEPTION", STOP, "the topic name is not legal, or the topic is internal"),
    (18, "RECORD_LIST_TOO_LARGE", DIVERT, "the batch exceeds the topic's segment.bytes"),
    (19, "NOT_ENOUGH_REPLICAS", RETRY, "not appended: too few replicas in sync for min.insync.replicas"),
    (20, "NOT_ENOUGH_REPLICAS_AFTER_APPEND", RETRY, "appended, but on too few replicas"),
    (21, "INVALID_REQUIRED_ACKS", STOP, "acks is none of -1, 0, 1"),
    (22, "ILLEGAL_GENERATION", STOP, "the group has moved on to another generation"),
    (23, "INCONSISTENT_GROUP_PROTOCOL", STOP, "the group's members share no assignment protocol"),
    (24, "INVALID_GROUP_ID", STOP, "the group name is not legal"),
    (25, "UNKNOWN_MEMBER_ID", STOP, "the group does not know this member"),
    (26, "INVALID_SESSION_TIMEOUT", STOP, "the session timeout is outside what the broker allows"),
    (27, "REBALANCE_IN_PROGRESS", RETRY, "the group is rebalancing"),
    (28, "INVALID_COMMIT_OFFSET_SIZE", STOP, "the committed offset and its text are too long"),
    (29, "TOPIC_AUTHORIZATION_FAILED", STOP, "not allowed on the topic (source: READ, target: WRITE)"),
    (30, "GROUP_AUTHORIZATION_FAILED", STOP, "not allowed on the group (READ)"),
    (31, "CLUSTER_AUTHORIZATION_FAILED", STOP, "not allowed on the cluster (before 2.8: IDEMPOTENT_WRITE)"),
    (32, "INVALID_TIMESTAMP", DIVERT, "a record's time is outside the topic's message.timestamp limits"),
    (33, "UNSUPPORTED_SASL_MECHANISM", STOP, "the broker does not offer this SASL mechanism"),
    (34, "ILLEGAL_SASL_STATE", STOP, "this request does not fit the state of the authentication"),
    (35, "UNSUPPORTED_VERSION", STOP, "the broker does not speak this version of the request"),
    (36, "TOPIC_ALREADY_EXISTS", STOP, "the topic exists already"),
    (37, "INVALID_PARTITIONS", STOP, "the partition count is not possible"),
    (38, "INVALID_REPLICATION_FACTOR", STOP, "the replication factor is below 1 or above the broker count"),
    (39, "INVALID_REPLICA_ASSIGNMENT", STOP, "the assignment of replicas is not possible"),
    (40, "INVALID_CONFIG", STOP, "a topic or broker setting is not valid"),
    (41, "NOT_CONTROLLER", REFRESH, "another broker is the controller now"),
    (42, "INVALID_REQUEST", STOP, "the broker finds the request malformed"),
    (43, "UNSUPPORTED_FOR_MESSAGE_FORMAT", STOP, "the topic keeps a format older than batches (magic 2)"),
    (44, "POLICY_VIOLATION", STOP, "the cluster's policy forbids it"),
    (45, "OUT_OF_ORDER_SEQUENCE_NUMBER", RESYNC, "the batch does not follow the log's last sequence"),
    (46, "DUPLICATE_SEQUENCE_NUMBER", RESYNC, "the target's log holds this sequence already"),
    (47, "INVALID_PRODUCER_EPOCH", RESYNC, "a newer epoch of our producer id has written here"),
    (48, "INVALID_TXN_STATE", STOP, "a transaction is open for this producer id, or none is"),
    (49, "INVALID_PRODUCER_ID_MAPPING", STOP, "the producer id does not belong to this transactional id"),
    (50, "INVALID_TRANSACTION_TIMEOUT", STOP, "the transaction timeout is above what the broker allows"),
    (51, "CONCURRENT_TRANSACTIONS", RETRY, "another step of the same transaction is still running"),
    (52, "TRANSACTION_COORDINATOR_FENCED", STOP, "a newer transaction coordinator has taken over"),
    (53, "TRANSACTIONAL_ID_AUTHORIZATION_FAILED", STOP, "not allowed on this transactional id"),
    (54, "SECURITY_DISABLED", STOP, "the cluster has no authorizer"),
    (55, "OPERATION_NOT_ATTEMPTED", RETRY, "another part of the request failed first; not tried"),
    (56, "KAFKA_STORAGE_ERROR", RETRY, "the broker's disk failed; another replica should take over"),
    (57, "LOG_DIR_NOT_FOUND", STOP, "the broker has no such log directory"),
    (58, "SASL_AUTHENTICATION_FAILED", STOP, "the broker refused the credentials"),
    (59, "UNKNOWN_PRODUCER_ID", RESYNC, "the broker has forgotten our producer id on this partition"),
    (60, "REASSIGNMENT_IN_PROGRESS", RETRY, "the partition is being moved"),
    (61, "DELEGATION_TOKEN_AUTH_DISABLED", STOP, "the cluster does not use delegation tokens"),
    (62, "DELEGATION_TOKEN_NOT_FOUND", STOP, "the delegation token is not known"),
    (63, "DELEGATION_TOKEN_OWNER_MISMATCH", STOP, "the delegation token belongs to someone else"),
    (64, "DELEGATION_TOKEN_REQUEST_NOT_ALLOWED", STOP, "not on this kind of connection"),
    (65, "DELEGATION_TOKEN_AUTHORIZATION_FAILED", STOP, "not allowed on this delegation token"),
    (66, "DELEGATION_TOKEN_EXPIRED", STOP, "the delegation token has expired"),
    (67, "INVALID_PRINCIPAL_TYPE", STOP, "this type of principal is not supported"),
    (68, "NON_EMPTY_GROUP", STOP, "the group has members"),
    (69, "GROUP_ID_NOT_FOUND", STOP, "there is no such group"),
    (70, "FETCH_SESSION_ID_NOT_FOUND", RETRY, "the broker dropped our fetch session: start a new one"),
    (71, "INVALID_FETCH_SESSION_EPOCH", RETRY, "our fetch session is out of step: start a new one"),
    (72, "LISTENER_NOT_FOUND", REFRESH, "the leader has no listener like the one we asked on"),
    (73, "TOPIC_DELETION_DISABLED", STOP, "the cluster forbids deleting topics"),
    (74, "FENCED_LEADER_EPOCH", REFRESH, "the partition has a newer leader epoch than we know"),
    (75, "UNKNOWN_LEADER_EPOCH", REFRESH, "the broker has not heard of this leader epoch yet"),
    (76, "UNSUPPORTED_COMPRESSION_TYPE", DIVERT, "the broker does not take this codec"),
    (77, "STALE_BROKER_EPOCH", STOP, "the broker's registration is outdated (between brokers only)"),
    (78, "OFFSET_NOT_AVAILABLE", RETRY, "a new leader does not know its high watermark yet"),
    (79, "MEMBER_ID_REQUIRED", RETRY, "the group gave us a member id to join with"),
    (80, "PREFERRED_LEADER_NOT_AVAILABLE", REFRESH, "the preferred leader is not available"),
    (81, "GROUP_MAX_SIZE_REACHED", STOP, "the group is full"),
    (82, "FENCED_INSTANCE_ID", STOP, "another member uses the same group.instance.id"),
    (83, "ELIGIBLE_LEADERS_NOT_AVAILABLE", REFRESH, "no replica may lead the partition at the moment"),
    (84, "ELECTION_NOT_NEEDED", REFRESH, "the partition has its leader already"),
    (85, "NO_REASSIGNMENT_IN_PROGRESS", STOP, "the partition is not being moved"),
    (86, "GROUP_SUBSCRIBED_TO_TOPIC", STOP, "an active group is subscribed to this topic"),
    (87, "INVALID_RECORD", DIVERT, "a rule is broken: null key on a compacted topic, gaps, control bit"),
    (88, "UNSTABLE_OFFSET_COMMIT", RETRY, "the group has offsets in an open transaction"),
    (89, "THROTTLING_QUOTA_EXCEEDED", RETRY, "a quota is used up for now"),
    (90, "PRODUCER_FENCED", STOP, "a newer producer uses the same transactional id"),
    (91, "RESOURCE_NOT_FOUND", STOP, "the request names something that does not exist"),
    (92, "DUPLICATE_RESOURCE", STOP, "the request names the same thing twice"),
    (93, "UNACCEPTABLE_CREDENTIAL", STOP, "the credential breaks the cluster's rules"),
    (94, "INCONSISTENT_VOTER_SET", STOP, "not one of the expected voters (between controllers only)"),
    (95, "INVALID_UPDATE_VERSION", STOP, "the feature or partition update has a wrong version"),
    (96, "FEATURE_UPDATE_FAILED", STOP, "a feature could not be updated"),
    (97, "PRINCIPAL_DESERIALIZATION_FAILURE", STOP, "a forwarded principal could not be read"),
    (98, "SNAPSHOT_NOT_FOUND", STOP, "there is no such metadata snapshot (between controllers only)"),
    (99, "POSITION_OUT_OF_RANGE", STOP, "position outside the metadata snapshot (between controllers only)"),
    (100, "UNKNOWN_TOPIC_ID", REFRESH, "the topic id is unknown here: new, deleted, or made anew"),
    (101, "DUPLICATE_BROKER_REGISTRATION", STOP, "the broker id is in use (between brokers only)"),
    (102, "BROKER_ID_NOT_REGISTERED", STOP, "the broker id is not registered"),
    (103, "INCONSISTENT_TOPIC_ID", REFRESH, "the topic id is not the log's: the topic was made anew"),
    (104, "INCONSISTENT_CLUSTER_ID", STOP, "this is another cluster than the request was meant for"),
    (105, "TRANSACTIONAL_ID_NOT_FOUND", STOP, "there is no such transactional id"),
    (106, "FETCH_SESSION_TOPIC_ID_ERROR", RETRY, "a fetch session mixed names and ids: start a new one"),
    (107, "INELIGIBLE_REPLICA", STOP, "a replica may not join the in-sync set (between brokers only)"),
    (108, "NEW_LEADER_ELECTED", REFRESH, "the leader has changed (between brokers only)"),
    (109, "OFFSET_MOVED_TO_TIERED_STORAGE", STOP, "the offset is in tiered storage only (told to followers)"),
    (110, "FENCED_MEMBER_EPOCH", STOP, "the group has fenced this member"),
    (111, "UNRELEASED_INSTANCE_ID", STOP, "another member still holds this group.instance.id"),
    (112, "UNSUPPORTED_ASSIGNOR", STOP, "the group does not support this assignor"),
    (113, "STALE_MEMBER_EPOCH", STOP, "the member's epoch is outdated"),
    (114, "MISMATCHED_ENDPOINT_TYPE", STOP, "this endpoint is a controller, not a broker, or the reverse"),
    (115, "UNSUPPORTED_ENDPOINT_TYPE", STOP, "this type of endpoint is not supported"),
    (116, "UNKNOWN_CONTROLLER_ID", STOP, "there is no such controller"),
    (117, "UNKNOWN_SUBSCRIPTION_ID", STOP, "the telemetry subscription is outdated"),
    (118, "TELEMETRY_TOO_LARGE", STOP, "the pushed telemetry is too large"),
    (119, "INVALID_REGISTRATION", STOP, "the controller refused a broker's registration"),
    (120, "TRANSACTION_ABORTABLE", STOP, "the transaction must be aborted"),
    (121, "INVALID_RECORD_STATE", STOP, "the record of a share group cannot be acknowledged in its state"),
    (122, "SHARE_SESSION_NOT_FOUND", RETRY, "the broker dropped the share session"),
    (123, "INVALID_SHARE_SESSION_EPOCH", RETRY, "the share session is out of step"),
    (124, "FENCED_STATE_EPOCH", STOP, "the share group's state has a newer epoch"),
    (125, "INVALID_VOTER_KEY", STOP, "the voter's key is another (between controllers only)"),
    (126, "DUPLICATE_VOTER", STOP, "the voter is in the set already (between controllers only)"),
    (127, "VOTER_NOT_FOUND", STOP, "the voter is not in the set (between controllers only)"),
    (128, "INVALID_REGULAR_EXPRESSION", STOP, "the regular expression is not valid"),
    (129, "REBOOTSTRAP_REQUIRED", REFRESH, "our metadata is too old: start from the bootstrap servers"),
    (130, "STREAMS_INVALID_TOPOLOGY", STOP, "the Streams topology is not valid"),
    (131, "STREAMS_INVALID_TOPOLOGY_EPOCH", STOP, "the Streams topology's epoch is not valid"),
    (132, "STREAMS_TOPOLOGY_FENCED", STOP, "the Streams topology is outdated"),
    (133, "SHARE_SESSION_LIMIT_REACHED", RETRY, "the broker holds as many share sessions as it may"),
    (134, "GROUP_DELETION_FAILED", STOP, "the group could not be deleted"),
    (135, "STREAMS_TOPOLOGY_DESCRIPTION_UPDATE_FAILED", STOP, "the Streams topology could not be described"),
    (136, "CONTROLLER_ID_NOT_REGISTERED", STOP, "the controller id is not registered"),
]


def _by_code(rows: Iterable[tuple[int, str, Action, str]]) -> dict[int, KafkaError]:
    table: dict[int, KafkaError] = {}
    for row in rows:
        if row[0] in table:
            raise InternalError(f"error code {row[0]} stands in the table twice")
        table[row[0]] = KafkaError(*row)
    return table


KAFKA_ERRORS = _by_code(_ROWS)


def kafka_error(code: int) -> KafkaError:
    """The row of an error code. One newer than this table stops the lane: to guess would be a defect."""
    unknown = KafkaError(code, f"ERROR_{code}", STOP, "this error is newer than we are; see the broker's log")
    return KAFKA_ERRORS.get(code, unknown)
