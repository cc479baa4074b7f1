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
    ctypedef enum batch_state:
        BATCH_WHOLE
        BATCH_PARTIAL
        BATCH_MALFORMED
    batch_state batch_open(batch *b, const uint8_t *p, size_t n)
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

    # lane.h
    ctypedef struct checkpoint:
        int64_t position, target_next, sequence, leader_epoch
    ctypedef struct lane_counters:
        pass
    ctypedef struct lane_batch:
        int64_t source_offset
        int32_t sequence
    ctypedef struct lane:
        bint running, blocked, fetching
        int64_t skip_records
        uint32_t head, send
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
    uint64_t lane_cursor(const lane *l, uint32_t cursor)
    bint lane_permit(lane *l, uint64_t cursor)
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
    source *source_new(slab_pool *pool, uint64_t lane_bytes_max)
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
    bint target_gather(target *t, const produce_terms *terms, produce_request *request)
    bint target_settle(
        target *t, const uint8_t *frame, size_t size, int32_t *throttle_ms, event_list *events)
    void target_abandon(target *t, event_list *events)
