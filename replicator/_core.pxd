# The native core's border, as csrc/core.h states it. Contracts are told there, not here.
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "sys/uio.h" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len


cdef extern from "core.h" nogil:
    enum: BATCH_HEADER_SIZE
    enum: TOPIC_NAME_MAX
    enum: TOPIC_ID_SIZE
    enum: SLAB_SIZE_MAX

    # crc32c.h
    ctypedef int crc32c_kind
    crc32c_kind crc32c_init()
    int crc32c_use(crc32c_kind kind)
    uint32_t c_crc32c "crc32c"(uint32_t crc, const uint8_t *p, size_t n)
    uint32_t c_crc32c_patch "crc32c_patch"(
        uint32_t crc, const uint8_t *before, const uint8_t *after, size_t h, size_t tail)

    # batch.h
    ctypedef struct batch:
        int64_t base_offset, base_timestamp, max_timestamp, producer_id
        uint32_t size
        int32_t leader_epoch, last_offset_delta, base_sequence, count
        uint32_t crc
        int16_t attributes, producer_epoch
        int8_t magic
    ctypedef struct batch_terms:
        int64_t timestamp_max
        uint32_t batch_bytes_max
        int8_t codec
        bint opens, stamped
    ctypedef int verdict
    ctypedef enum batch_state:
        BATCH_WHOLE
        BATCH_PARTIAL
        BATCH_MALFORMED
    batch_state batch_open(batch *b, const uint8_t *p, size_t n)
    void batch_write(const batch *b, uint8_t *p)
    void batch_readdress(uint8_t *p, uint32_t size, int64_t producer_id, int16_t producer_epoch, int32_t sequence)

    # slab.h
    ctypedef struct slab_pool:
        pass
    ctypedef struct slab:
        uint32_t size
        uint8_t *data
    slab_pool *slab_pool_new(size_t budget)
    void slab_pool_free(slab_pool *pool)
    slab *slab_acquire(slab_pool *pool, uint32_t size)
    slab *slab_ref(slab *s)
    void slab_unref(slab *s)
    size_t slab_pool_used(const slab_pool *pool)

    # segments.h
    enum: C_SEGMENTS_MAX "SEGMENTS_MAX"
    ctypedef struct segment:
        int64_t source, target, length
    ctypedef struct segments:
        segment *items
        uint32_t count
    bint segments_add(segments *s, int64_t source, int64_t target, int64_t length)
    void segments_free(segments *s)

    # producers.h
    ctypedef enum producer_kind:
        PRODUCER_UNKNOWN
        PRODUCER_OWN
        PRODUCER_OPENED
        PRODUCER_SKIPPED
    ctypedef struct producers:
        pass
    producers *producers_new()
    void producers_unref(producers *p)
    void producers_add(producers *p, int64_t producer_id, producer_kind kind)
    producer_kind producers_find(const producers *p, int64_t producer_id)

    # lane.h
    ctypedef struct checkpoint:
        int64_t position, target_next, sequence, leader_epoch
    enum: VERDICT_COUNT "VERDICTS"
    ctypedef struct lane_counters:
        pass
    ctypedef struct record_run
    ctypedef struct lane_batch:
        uint8_t *bytes
        slab *home
        record_run *runs
        int64_t source_offset
        uint32_t size, count, run_count
        int32_t sequence
        verdict why
    ctypedef struct refused_record:
        int64_t source_offset
        uint16_t text_length
        char *text
    ctypedef struct refused_batch:
        int64_t source_offset, source_next
        uint32_t count, size, named
        refused_record *records
    ctypedef struct lane:
        refused_batch refused
        bint running, blocked, fetching
        int64_t skip_records, producer_id
        int16_t producer_epoch
        batch_terms terms
        uint32_t head, send, generation, merge_bytes
        segments segments
        void *owner
    ctypedef struct lane_spec:
        const char *source_topic
        const char *target_topic
        const uint8_t *source_topic_id
        int32_t source_partition, target_partition
        int64_t producer_id
        int16_t producer_epoch
        bint hold_gaps, tolerate
        batch_terms terms
        producers *producers
        uint32_t merge_bytes
        lane_counters *counters
        void *owner
    lane *lane_new(const lane_spec *spec)
    void lane_unref(lane *l)
    void lane_resume(lane *l, checkpoint start, int64_t skip_records, int64_t stop_offset, segments map)
    void lane_halt(lane *l)
    void lane_orphan(lane *l)
    uint32_t lane_in_flight(const lane *l)
    uint32_t lane_queued(const lane *l)
    const lane_batch *lane_ahead(const lane *l, uint32_t *cursor)
    uint64_t lane_mark(const lane *l, uint32_t cursor)
    bint lane_permit(lane *l, uint64_t mark)
    void lane_unblock(lane *l, bint looked)
    bint lane_asks_for_time(lane *l)
    void lane_linger(lane *l, bint lingers)
    void lane_ripen(lane *l)
    uint32_t lane_raw_count(const lane *l)
    const lane_batch *lane_raw(const lane *l, uint32_t nth)
    ctypedef struct rebuilt:
        slab *home
        const record_run *runs
        uint32_t run_count, count
        int64_t max_timestamp
    verdict lane_replace(lane *l, const rebuilt *made, uint32_t n)
    verdict lane_pass(lane *l)
    bint lane_announces(lane *l, int64_t *source_offset)

    # merge.h
    uint32_t lane_mergeable(const lane *l, int codec)
    const lane_batch *lane_waiting(const lane *l, uint32_t nth)
    void lane_join(lane *l, uint32_t n, slab *home)
    void lane_merge_declined(lane *l, bint for_good)
    void lane_drop_segments(lane *l, uint32_t n)

    # events.h
    ctypedef struct event:
        lane *lane
        int kind
        int32_t code
        int64_t first, second
        char *text
    ctypedef struct event_list:
        event *items
        size_t count
    void event_list_clear(event_list *events)
    void event_list_free(event_list *events)

    # fetch.h
    ctypedef struct source:
        pass
    source *source_new(slab_pool *pool, uint64_t lane_bytes_max, bint committed)
    void source_unref(source *s)
    void source_limit(source *s, uint64_t lane_bytes_max)
    void source_set(lane *l, source *s, int32_t leader_epoch)
    ctypedef struct fetch_terms:
        int16_t version
        int32_t correlation_id
        const char *client_id
        uint16_t client_id_length
        int32_t wait_ms
        uint32_t bytes_max
    ctypedef struct fetch_stream:
        pass
    ctypedef enum fetch_progress:
        FETCH_MORE
        FETCH_DONE
        FETCH_MALFORMED
    fetch_stream *fetch_stream_new(source *s)
    void fetch_stream_free(fetch_stream *f)
    size_t fetch_compose(fetch_stream *f, const fetch_terms *terms, const uint8_t **request)
    fetch_progress fetch_feed(fetch_stream *f, slab *frame, size_t have, event_list *events)
    int32_t fetch_throttle_ms(const fetch_stream *f)
    int16_t fetch_error(const fetch_stream *f)
    void fetch_abort(fetch_stream *f)

    # produce.h
    ctypedef struct target:
        pass
    ctypedef struct produce_terms:
        int16_t version
        int32_t correlation_id
        const char *client_id
        uint16_t client_id_length
        int32_t timeout_ms
        uint32_t bytes_max
    ctypedef struct produce_request:
        const iovec *parts
        uint32_t count, lanes
        size_t bytes
    target *target_new()
    void target_unref(target *t)
    void target_set(lane *l, target *t)
    bint target_waiting(const target *t)
    bint target_ready(const target *t)
    uint32_t target_in_flight(const target *t)
    bint target_gather(target *t, const produce_terms *terms, produce_request *request, event_list *events)
    bint target_settle(
        target *t, const uint8_t *frame, size_t size, int32_t *throttle_ms, event_list *events)
    void target_abandon(target *t, event_list *events)

    # recipe.h
    ctypedef struct span:
        const uint8_t *bytes
        uint32_t size

    # records.h
    ctypedef struct record:
        const uint8_t *start
        const uint8_t *tail
        const uint8_t *end
        const uint8_t *key
        const uint8_t *value
        const uint8_t *headers
        uint32_t key_size, value_size
        int64_t offset, timestamp, timestamp_delta
        int32_t offset_delta
        uint8_t attributes
    ctypedef struct record_walk:
        const char *fault
        int64_t base_timestamp
        int32_t count, index
    ctypedef struct packed_records:
        const uint8_t *header
        const uint8_t *payload
        size_t payload_size
        int64_t first_offset, count
    void record_walk_open(record_walk *w, const packed_records *whole)
    bint record_walk_next(record_walk *w, record *r)
    ctypedef struct recipe:
        pass
    ctypedef struct record_run:
        int64_t source_offset, count
    ctypedef struct built:
        const uint8_t *bytes
        uint32_t size
        const record_run *runs
        uint32_t run_count
        int32_t count
        int64_t base_timestamp, max_timestamp
    ctypedef struct diverted_record:
        record found
        uint32_t step
    ctypedef struct header_list:
        uint32_t asking
        span asked
    ctypedef struct builder:
        diverted_record *diverted
        uint32_t diverted_count
        header_list *headers
        record_walk walk
        uint32_t wanted_count
        bint untouched
        built output
    ctypedef enum feed_outcome:
        FEED_DONE
        FEED_BAD
        FEED_ASKS
        FEED_NO_MEMORY
    feed_outcome builder_feed(builder *b, const packed_records *whole, int64_t from_offset, const recipe *recipe)
    feed_outcome builder_go_on(builder *b)
    void builder_give_up(builder *b)
    bint builder_next(builder *b, uint32_t bytes_max, uint32_t runs_max)
    bint is_out_of_memory(const builder *b)
    void builder_retry(builder *b)
    enum: NO_STEP
    void builder_exclude(builder *b, const int64_t *offsets, size_t n)
    void builder_clear(builder *b)
    void builder_free(builder *b)
    ctypedef struct merge_part:
        const uint8_t *bytes
        uint32_t size
    uint32_t records_merge(const merge_part *parts, uint32_t n, uint8_t *out, uint32_t out_capacity)
    enum: MERGE_BYTES_A_RECORD_MAX

    # recipe.h
    enum: NO_TEST
    ctypedef enum test_kind:
        TEST_TOMBSTONE
        TEST_KEY_NULL
        TEST_KEY
        TEST_HEADER
        TEST_HEADER_VALUE
        TEST_TIMESTAMP
        TEST_SIZE
        TEST_NOT
        TEST_ANY
        TEST_ALL
    ctypedef enum match_kind:
        MATCH_EQUALS
        MATCH_PREFIX
        MATCH_SUFFIX
        MATCH_CONTAINS
    ctypedef struct test:
        test_kind kind
        match_kind match
        span name, wanted
        int64_t start "from"
        int64_t to
    ctypedef enum step_kind:
        STEP_DROP
        STEP_KEEP
        STEP_DIVERT
        STEP_HEADER_ADD
        STEP_HEADER_SET
        STEP_HEADER_DROP
        STEP_HEADER_RENAME
        STEP_PROVENANCE
        STEP_DROP_HOPS
        STEP_HOP
    ctypedef struct recipe_step:
        step_kind kind
        uint32_t test
        bint asks
        span name, value, extra
    recipe *recipe_new()
    void recipe_free(recipe *rc)
    uint32_t recipe_add_test(recipe *rc, const test *t)
    void recipe_end_test(recipe *rc, uint32_t index)
    bint recipe_add_step(recipe *rc, const recipe_step *s)
    ctypedef enum name_answer:
        NAME_STAYS
        NAME_GOES
        NAME_CHANGES
    bint recipe_tell(recipe *rc, uint32_t index, span name, name_answer answer, span new_name)
    void recipe_forget(recipe *rc, uint32_t index)


cdef extern from "bytes.h" nogil:
    uint8_t *store_varint(uint8_t *p, int64_t v)
