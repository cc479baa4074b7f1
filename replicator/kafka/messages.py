"""The messages we speak, as data: one row a field, in the order of the wire.

The pinned versions are few on purpose. The lower one of a pair is what Kafka 2.1 already speaks; the higher
one is there for something we use when it is offered. Every broker from 2.1 to 4.4 offers at least one of
each, except for DescribeProducers: it came with 2.8, and nothing may rely on it.

Names and order follow Kafka's own message definitions, in snake case. What no pinned version carries is not
declared; neither are tagged fields we have no use for (features in ApiVersions, snapshots and the cluster id
in Fetch): they are skipped.
"""

from replicator.errors import ClusterError
from replicator.kafka.codec import (
    BOOL,
    BYTES,
    INT8,
    INT16,
    INT32,
    INT64,
    NO_ID,
    NULLABLE_STRING,
    RECORDS,
    STRING,
    UUID,
    Api,
    Array,
    Field,
    Payload,
    Struct,
    decode_response,
)

# --- what a broker offers -----------------------------------------------------------------------------------

_version_range = Struct(
    Field("api_key", INT16),
    Field("min_version", INT16),
    Field("max_version", INT16),
)

API_VERSIONS = Api(
    key=18,
    name="ApiVersions",
    versions=(0, 3),  # 0: every broker can answer it; 3: says who asks
    flexible_since=3,
    request=Struct(
        Field("client_software_name", STRING, since=3, default="replicator"),
        Field("client_software_version", STRING, since=3, default="unknown"),
    ),
    response=Struct(
        Field("error_code", INT16),
        Field("api_keys", Array(_version_range)),
        Field("throttle_time_ms", INT32, since=1, default=0),
    ),
)

_REFUSED = (35).to_bytes(2, "big")  # UNSUPPORTED_VERSION


def decode_api_versions(payload: Payload, asked_version: int) -> dict[int, tuple[int, int]] | None:
    """What the broker offers, api key -> (lowest, highest version); None to say: ask again, in version 0.

    A broker that does not know the version asked in says so in the layout of version 0, the one that
    everybody should read (KIP-511); what else they put there differs, so start over at 0. Raises ProtocolError
    for malformed bytes, ClusterError for any other error code.
    """
    if asked_version > 0 and bytes(payload[4:6]) == _REFUSED:  # right behind the correlation id, always
        return None
    _, body = decode_response(API_VERSIONS, asked_version, payload)
    if body["error_code"]:
        raise ClusterError(body["error_code"], "ApiVersions")
    return {row["api_key"]: (row["min_version"], row["max_version"]) for row in body["api_keys"]}


# --- who leads what -----------------------------------------------------------------------------------------

_topic_asked_for = Struct(
    Field("topic_id", UUID, since=10, default=NO_ID),
    Field("name", STRING, until=9),
    Field("name", NULLABLE_STRING, since=10),  # null to ask by id
)

_broker = Struct(
    Field("node_id", INT32),
    Field("host", STRING),
    Field("port", INT32),
    Field("rack", NULLABLE_STRING, default=None),
)

_partition_led = Struct(
    Field("error_code", INT16),
    Field("partition_index", INT32),
    Field("leader_id", INT32),  # -1: nobody leads
    Field("leader_epoch", INT32),
    Field("replica_nodes", Array(INT32)),
    Field("isr_nodes", Array(INT32)),
    Field("offline_replicas", Array(INT32)),
)

_topic_led = Struct(
    Field("error_code", INT16),
    Field("name", STRING, until=11),
    Field("name", NULLABLE_STRING, since=12),  # null if the id asked for is not known
    Field("topic_id", UUID, since=10, default=NO_ID),
    Field("is_internal", BOOL, default=False),
    Field("partitions", Array(_partition_led)),
    Field("topic_authorized_operations", INT32, since=8, default=-(2**31)),  # not asked for
)

METADATA = Api(
    key=3,
    name="Metadata",
    versions=(7, 12),  # 7: leader epochs; 12: topic ids
    flexible_since=9,
    request=Struct(
        Field("topics", Array(_topic_asked_for, nullable=True)),  # null: all of them
        Field("allow_auto_topic_creation", BOOL, default=False),
        Field("include_topic_authorized_operations", BOOL, since=8, default=False),
    ),
    response=Struct(
        Field("throttle_time_ms", INT32, default=0),
        Field("brokers", Array(_broker)),
        Field("cluster_id", NULLABLE_STRING, default=None),
        Field("controller_id", INT32, default=-1),
        Field("topics", Array(_topic_led)),
    ),
)

# --- where a log begins and ends ----------------------------------------------------------------------------

_offset_asked_for = Struct(
    Field("partition_index", INT32),
    Field("current_leader_epoch", INT32, default=-1),
    Field("timestamp", INT64),  # ms; -1: the end, -2: the log start
)

_offset_found = Struct(
    Field("partition_index", INT32),
    Field("error_code", INT16),
    Field("timestamp", INT64, default=-1),
    Field("offset", INT64, default=-1),
    Field("leader_epoch", INT32, default=-1),
)

LIST_OFFSETS = Api(
    key=2,
    name="ListOffsets",
    versions=(4,),  # leader epochs, both ways
    flexible_since=6,
    request=Struct(
        Field("replica_id", INT32, default=-1),
        Field("isolation_level", INT8, default=0),
        Field("topics", Array(Struct(Field("name", STRING), Field("partitions", Array(_offset_asked_for))))),
    ),
    response=Struct(
        Field("throttle_time_ms", INT32, default=0),
        Field("topics", Array(Struct(Field("name", STRING), Field("partitions", Array(_offset_found))))),
    ),
)

_epoch_asked_for = Struct(
    Field("partition", INT32),
    Field("current_leader_epoch", INT32, default=-1),
    Field("leader_epoch", INT32),
)

_epoch_end = Struct(
    Field("error_code", INT16),
    Field("partition", INT32),
    Field("leader_epoch", INT32, default=-1),
    Field("end_offset", INT64, default=-1),
)

OFFSET_FOR_LEADER_EPOCH = Api(
    key=23,
    name="OffsetForLeaderEpoch",
    versions=(2,),  # the asker's own epoch is checked
    flexible_since=4,
    request=Struct(
        Field("topics", Array(Struct(Field("topic", STRING), Field("partitions", Array(_epoch_asked_for))))),
    ),
    response=Struct(
        Field("throttle_time_ms", INT32, default=0),
        Field("topics", Array(Struct(Field("topic", STRING), Field("partitions", Array(_epoch_end))))),
    ),
)

# --- who writes ---------------------------------------------------------------------------------------------

INIT_PRODUCER_ID = Api(
    key=22,
    name="InitProducerId",
    versions=(1,),  # newer ones give a link the same: a fresh id in epoch 0
    flexible_since=2,
    request=Struct(
        Field("transactional_id", NULLABLE_STRING, default=None),
        Field("transaction_timeout_ms", INT32, default=60_000),
    ),
    response=Struct(
        Field("throttle_time_ms", INT32, default=0),
        Field("error_code", INT16),
        Field("producer_id", INT64, default=-1),
        Field("producer_epoch", INT16, default=-1),
    ),
)

_producer = Struct(
    Field("producer_id", INT64),
    Field("producer_epoch", INT32),
    Field("last_sequence", INT32, default=-1),
    Field("last_timestamp", INT64, default=-1),
    Field("coordinator_epoch", INT32, default=-1),
    Field("current_txn_start_offset", INT64, default=-1),
)

_partition_written = Struct(
    Field("partition_index", INT32),
    Field("error_code", INT16),
    Field("error_message", NULLABLE_STRING, default=None),
    Field("active_producers", Array(_producer)),
)

DESCRIBE_PRODUCERS = Api(
    key=61,
    name="DescribeProducers",
    versions=(0,),
    flexible_since=0,
    request=Struct(
        Field("topics", Array(Struct(Field("name", STRING), Field("partition_indexes", Array(INT32))))),
    ),
    response=Struct(
        Field("throttle_time_ms", INT32, default=0),
        Field("topics", Array(Struct(Field("name", STRING), Field("partitions", Array(_partition_written))))),
    ),
)

# --- record batches -----------------------------------------------------------------------------------------
# The data plane gathers and reads these two natively; the rows here serve resyncs, scripted peers and tests.

_partition_wanted = Struct(
    Field("partition", INT32),
    Field("current_leader_epoch", INT32, default=-1),
    Field("fetch_offset", INT64),
    Field("last_fetched_epoch", INT32, since=12, default=-1),
    Field("log_start_offset", INT64, default=-1),
    Field("partition_max_bytes", INT32),
)

_topic_wanted = Struct(
    Field("topic", STRING, until=12, default=""),
    Field("topic_id", UUID, since=13, default=NO_ID),
    Field("partitions", Array(_partition_wanted)),
)

_topic_forgotten = Struct(
    Field("topic", STRING, until=12, default=""),
    Field("topic_id", UUID, since=13, default=NO_ID),
    Field("partitions", Array(INT32)),
)

_epoch_and_end = Struct(Field("epoch", INT32), Field("end_offset", INT64))
_leader_and_epoch = Struct(Field("leader_id", INT32), Field("leader_epoch", INT32))
_aborted_transaction = Struct(Field("producer_id", INT64), Field("first_offset", INT64))

_partition_fetched = Struct(
    Field("partition_index", INT32),
    Field("error_code", INT16),
    Field("high_watermark", INT64),
    Field("last_stable_offset", INT64, default=-1),
    Field("log_start_offset", INT64, default=-1),
    Field("diverging_epoch", _epoch_and_end, since=12, tag=0, default=None),
    Field("current_leader", _leader_and_epoch, since=12, tag=1, default=None),
    Field("aborted_transactions", Array(_aborted_transaction, nullable=True), default=None),
    Field("preferred_read_replica", INT32, since=11, default=-1),
    Field("records", RECORDS, default=None),
)

_topic_fetched = Struct(
    Field("topic", STRING, until=12, default=""),
    Field("topic_id", UUID, since=13, default=NO_ID),
    Field("partitions", Array(_partition_fetched)),
)

FETCH = Api(
    key=1,
    name="Fetch",
    versions=(10, 13),  # 10: zstd; 13: topic ids, diverging epochs
    flexible_since=12,
    request=Struct(
        Field("replica_id", INT32, default=-1),
        Field("max_wait_ms", INT32),
        Field("min_bytes", INT32),
        Field("max_bytes", INT32),
        Field("isolation_level", INT8, default=0),
        Field("session_id", INT32, default=0),
        Field("session_epoch", INT32, default=-1),  # -1: no session
        Field("topics", Array(_topic_wanted)),
        Field("forgotten_topics_data", Array(_topic_forgotten), default=()),
        Field("rack_id", STRING, since=11, default=""),
    ),
    response=Struct(
        Field("throttle_time_ms", INT32, default=0),
        Field("error_code", INT16),
        Field("session_id", INT32, default=0),
        Field("responses", Array(_topic_fetched)),
    ),
)

_partition_produced = Struct(Field("index", INT32), Field("records", RECORDS))

_record_refused = Struct(
    Field("batch_index", INT32),
    Field("batch_index_error_message", NULLABLE_STRING, default=None),
)

_partition_appended = Struct(
    Field("index", INT32),
    Field("error_code", INT16),
    Field("base_offset", INT64),
    Field("log_append_time_ms", INT64, default=-1),
    Field("log_start_offset", INT64, default=-1),
    Field("record_errors", Array(_record_refused), since=8, default=()),
    Field("error_message", NULLABLE_STRING, since=8, default=None),
)

_produced = Array(Struct(Field("name", STRING), Field("partition_data", Array(_partition_produced))))
_appended = Array(Struct(Field("name", STRING), Field("partition_responses", Array(_partition_appended))))

PRODUCE = Api(
    key=0,
    name="Produce",
    versions=(7, 8),  # 7: zstd; 8: names the records it refuses
    flexible_since=9,
    request=Struct(
        Field("transactional_id", NULLABLE_STRING, default=None),
        Field("acks", INT16, default=-1),
        Field("timeout_ms", INT32),
        Field("topic_data", _produced),
    ),
    response=Struct(
        Field("responses", _appended),
        Field("throttle_time_ms", INT32, default=0),
    ),
)

# --- consumer groups ----------------------------------------------------------------------------------------
# Not by librdkafka's admin client: asked for a group's offsets while the coordinator moves, it takes the process down
# (librdkafka issue 5040), and it knows no share or streams groups.

FIND_COORDINATOR = Api(
    key=10,
    name="FindCoordinator",
    versions=(1,),
    flexible_since=3,
    request=Struct(
        Field("key", STRING),
        Field("key_type", INT8, default=0),  # a group; 1: a transactional id
    ),
    response=Struct(
        Field("throttle_time_ms", INT32, default=0),
        Field("error_code", INT16),
        Field("error_message", NULLABLE_STRING, default=None),
        Field("node_id", INT32, default=-1),
        Field("host", STRING, default=""),
        Field("port", INT32, default=-1),
    ),
)

_group_listed = Struct(
    Field("group_id", STRING),
    Field("protocol_type", STRING),  # "": nobody ever joined it
    Field("group_state", STRING, since=4, default=""),
    Field("group_type", STRING, since=5, default=""),
)

LIST_GROUPS = Api(
    key=16,
    name="ListGroups",
    versions=(2, 4, 5),  # 4: states; 5: types
    flexible_since=3,
    request=Struct(
        Field("states_filter", Array(STRING), since=4, default=()),
        Field("types_filter", Array(STRING), since=5, default=()),
    ),
    response=Struct(
        Field("throttle_time_ms", INT32, default=0),
        Field("error_code", INT16),
        Field("groups", Array(_group_listed)),
    ),
)

_member = Struct(
    Field("member_id", STRING),
    Field("client_id", STRING),
    Field("client_host", STRING),
    Field("member_metadata", BYTES),
    Field("member_assignment", BYTES),
)

_group_described = Struct(
    Field("error_code", INT16),
    Field("group_id", STRING),
    Field("group_state", STRING),
    Field("protocol_type", STRING),
    Field("protocol_data", STRING),
    Field("members", Array(_member)),
)

DESCRIBE_GROUPS = Api(
    key=15,
    name="DescribeGroups",
    versions=(2,),  # for brokers that list groups without their state
    flexible_since=5,
    request=Struct(Field("groups", Array(STRING))),
    response=Struct(
        Field("throttle_time_ms", INT32, default=0),
        Field("groups", Array(_group_described)),
    ),
)

_offset_committed = Struct(
    Field("partition_index", INT32),
    Field("committed_offset", INT64),
    Field("committed_leader_epoch", INT32, default=-1),
    Field("metadata", NULLABLE_STRING, default=None),
    Field("error_code", INT16),
)

_partitions_asked_for = Struct(Field("name", STRING), Field("partition_indexes", Array(INT32)))

OFFSET_FETCH = Api(
    key=9,
    name="OffsetFetch",
    versions=(5, 7),  # 5: leader epochs; 7: can wait for the end of a transaction
    flexible_since=6,
    request=Struct(
        Field("group_id", STRING),
        Field("topics", Array(_partitions_asked_for, nullable=True), default=None),  # null: all of them
        Field("require_stable", BOOL, since=7, default=False),
    ),
    response=Struct(
        Field("throttle_time_ms", INT32, default=0),
        Field("topics", Array(Struct(Field("name", STRING), Field("partitions", Array(_offset_committed))))),
        Field("error_code", INT16, default=0),
    ),
)

_offset_to_commit = Struct(
    Field("partition_index", INT32),
    Field("committed_offset", INT64),
    Field("committed_leader_epoch", INT32, default=-1),
    Field("committed_metadata", NULLABLE_STRING, default=None),
)

_commit_answered = Struct(Field("partition_index", INT32), Field("error_code", INT16))

OFFSET_COMMIT = Api(
    key=8,
    name="OffsetCommit",
    versions=(6,),  # leader epochs
    flexible_since=8,
    request=Struct(
        Field("group_id", STRING),
        Field("generation_id_or_member_epoch", INT32, default=-1),  # -1, and no member: in the name of an empty group
        Field("member_id", STRING, default=""),
        Field("topics", Array(Struct(Field("name", STRING), Field("partitions", Array(_offset_to_commit))))),
    ),
    response=Struct(
        Field("throttle_time_ms", INT32, default=0),
        Field("topics", Array(Struct(Field("name", STRING), Field("partitions", Array(_commit_answered))))),
    ),
)

LEAVE_GROUP = Api(
    key=13,
    name="LeaveGroup",
    versions=(2,),  # on behalf of a worker that died: one member, by its id
    flexible_since=4,
    request=Struct(Field("group_id", STRING), Field("member_id", STRING)),
    response=Struct(Field("throttle_time_ms", INT32, default=0), Field("error_code", INT16)),
)

# --- what a topic takes -------------------------------------------------------------------------------------

_resource_asked_for = Struct(
    Field("resource_type", INT8),  # 2: a topic
    Field("resource_name", STRING),
    Field(
        "configuration_keys", Array(STRING, nullable=True)
    ),  # null: all; those that a broker does not know are left out
)

_synonym = Struct(
    Field("name", STRING),
    Field("value", NULLABLE_STRING),
    Field("source", INT8),
)

_config_found = Struct(
    Field("name", STRING),
    Field("value", NULLABLE_STRING),
    Field("read_only", BOOL),
    Field("config_source", INT8),
    Field("is_sensitive", BOOL),
    Field("synonyms", Array(_synonym)),
)

_resource_described = Struct(
    Field("error_code", INT16),
    Field("error_message", NULLABLE_STRING),
    Field("resource_type", INT8),
    Field("resource_name", STRING),
    Field("configs", Array(_config_found)),
)

DESCRIBE_CONFIGS = Api(
    key=32,
    name="DescribeConfigs",
    versions=(1,),  # where a value is from; 0 is gone in Kafka 4
    flexible_since=4,
    request=Struct(
        Field("resources", Array(_resource_asked_for)),
        Field("include_synonyms", BOOL, default=False),
    ),
    response=Struct(
        Field("throttle_time_ms", INT32, default=0),
        Field("results", Array(_resource_described)),
    ),
)

# --- the table ----------------------------------------------------------------------------------------------

APIS: dict[int, Api] = {
    api.key: api
    for api in (
        API_VERSIONS,
        METADATA,
        LIST_OFFSETS,
        OFFSET_FOR_LEADER_EPOCH,
        INIT_PRODUCER_ID,
        DESCRIBE_PRODUCERS,
        FETCH,
        PRODUCE,
        FIND_COORDINATOR,
        LIST_GROUPS,
        DESCRIBE_GROUPS,
        OFFSET_FETCH,
        OFFSET_COMMIT,
        LEAVE_GROUP,
        DESCRIBE_CONFIGS,
    )
}

PINS: dict[str, tuple[int, ...]] = {api.name: api.versions for api in APIS.values()}
