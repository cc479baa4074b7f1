#include "fetch.h"

#include <stdlib.h>

#include "bytes.h"

enum { API_FETCH = 1, FLEXIBLE_SINCE = 12, TOPIC_IDS_SINCE = 13, REQUEST_FIXED = 128, REQUEST_A_LANE = 320 };

/* Where the decoder stands; each phase is an element that is read whole or not at all. */
typedef enum { HEAD, TOPIC, PARTITION, RECORDS, PARTITION_END, TOPIC_END, RESPONSE_END } phase;

/* A transaction that was aborted: records of this producer are void from first_offset on, up to its marker. */
typedef struct {
    int64_t producer_id, first_offset;
} aborted;

struct fetch_stream {
    source *source;
    lane_entry *lanes;
    size_t count, capacity, cursor;
    uint8_t *request;
    size_t request_capacity, reserved;
    int32_t correlation_id;
    int16_t version;
    bool outstanding;
    /* decoder */
    phase phase;
    size_t at, records_end;
    uint32_t topics_left, partitions_left;
    topic topic;          /* the one being read: its name or its id */
    lane_entry *answered; /* of the partition being read; NULL when its records are not for us */
    aborted *aborted;     /* of that partition: those that have begun, and from aborted_next on those that come, sorted */
    size_t aborted_begun, aborted_next, aborted_count, aborted_capacity;
    bool failed;          /* takes nothing more from this partition's records */
    int32_t throttle_ms;
    int16_t error;
};

/* ---- source ---- */

source *source_new(slab_pool *pool, uint64_t lane_bytes_max, bool committed) {
    source *s = calloc(1, sizeof *s);
    if (!s) return NULL;
    *s = (source){.pool = slab_pool_ref(pool), .lane_bytes_max = lane_bytes_max, .refs = 1, .committed = committed};
    ring_init(&s->fetchable);
    return s;
}

void source_unref(source *s) {
    if (--s->refs) return;
    slab_pool_unref(s->pool);
    free(s);
}

void source_limit(source *s, uint64_t lane_bytes_max) { s->lane_bytes_max = lane_bytes_max; }

void source_set(lane *l, source *s, int32_t leader_epoch) {
    ring_leave(&l->fetchable);
    if (s) s->refs++;
    if (l->source) source_unref(l->source);
    l->source = s;
    l->leader_epoch = leader_epoch;
    source_offer(l);
}

void source_offer(lane *l) {
    if (l->running && !l->blocked && !l->fetching && l->source && lane_has_room(l, l->source->lane_bytes_max) &&
        l->counters->fetch_offset < l->counters->stop_offset)
        ring_join(&l->source->fetchable, &l->fetchable);
}

/* ---- compose ---- */

fetch_stream *fetch_stream_new(source *s) {
    fetch_stream *f = calloc(1, sizeof *f);
    if (!f) return NULL;
    s->refs++;
    f->source = s;
    return f;
}

void fetch_stream_free(fetch_stream *f) {
    fetch_abort(f);
    source_unref(f->source);
    free(f->lanes);
    free(f->request);
    free(f->aborted);
    free(f);
}

static bool caught_up(const lane *l) { return l->counters->fetch_offset >= l->counters->last_stable_offset; }

static uint32_t lane_room(const lane *l, uint32_t bytes_max) {
    uint64_t most = l->source->lane_bytes_max, room = l->bytes < most ? most - l->bytes : 0;
    return room < bytes_max ? (uint32_t)room : bytes_max;
}

static bool reserve_entry(fetch_stream *f) {
    if (f->count < f->capacity) return true;
    size_t capacity = f->capacity ? f->capacity * 2 : 16;
    lane_entry *lanes = realloc(f->lanes, capacity * sizeof *lanes);
    uint8_t *request = realloc(f->request, REQUEST_FIXED + UINT16_MAX + capacity * REQUEST_A_LANE);
    if (lanes) f->lanes = lanes;
    if (request) f->request = request;
    if (!lanes || !request) return false;
    f->capacity = capacity;
    f->request_capacity = REQUEST_FIXED + UINT16_MAX + capacity * REQUEST_A_LANE;
    return true;
}

static void put_back(lane_entry *entry) {
    lane *l = entry->lane;
    entry->lane = NULL;
    l->fetching = false;
    source_offer(l);
    lane_unref(l);
}

/* Takes lanes from the ring until they can be expected to fill the response: the rest is left for the next stream. */
static void choose_lanes(fetch_stream *f, uint32_t bytes_max) {
    ring_link *ring = &f->source->fetchable;
    uint64_t expected = 0;
    while (!ring_empty(ring) && expected < bytes_max && f->count < FETCH_LANES_MAX && reserve_entry(f)) {
        lane *l = LANE_OF(ring->after, fetchable);
        ring_leave(&l->fetchable);
        l->fetching = true;
        if (!caught_up(l)) expected += lane_room(l, bytes_max);
        f->lanes[f->count] = (lane_entry){lane_ref(l), l->generation, (uint32_t)f->count};
        f->count++;
    }
    size_t asked = lane_group_by_source(f->lanes, f->count);
    while (f->count > asked) put_back(&f->lanes[--f->count]);
}

static bool same_topic(const topic *a, const topic *b) {
    return a->length == b->length && !memcmp(a->name, b->name, a->length);
}

static size_t topic_run(const fetch_stream *f, size_t from) {
    size_t to = from;
    while (to < f->count && same_topic(&f->lanes[to].lane->source_topic, &f->lanes[from].lane->source_topic)) to++;
    return to - from;
}

static void write_count(writer *w, bool flexible, size_t n) {
    if (flexible)
        write_uvarint(w, (uint32_t)n + 1);
    else
        write_i32(w, (int32_t)n);
}

static void write_partition(writer *w, const lane *l, bool flexible, uint32_t bytes_max) {
    write_i32(w, l->source_partition);
    write_i32(w, l->leader_epoch);
    write_i64(w, l->counters->fetch_offset);
    if (flexible) write_i32(w, l->last_fetched_epoch);
    write_i64(w, -1); /* log_start_offset: followers only */
    write_i32(w, (int32_t)lane_room(l, bytes_max));
    if (flexible) write_uvarint(w, 0);
}

static void write_topics(writer *w, const fetch_stream *f, bool flexible, uint32_t bytes_max) {
    size_t topics = 0;
    for (size_t i = 0; i < f->count; i += topic_run(f, i)) topics++;
    write_count(w, flexible, topics);
    for (size_t i = 0; i < f->count;) {
        const topic *t = &f->lanes[i].lane->source_topic;
        size_t run = topic_run(f, i);
        if (f->version >= TOPIC_IDS_SINCE) {
            write_bytes(w, t->id, TOPIC_ID_SIZE);
        } else {
            write_i16(w, (int16_t)t->length);
            write_bytes(w, t->name, t->length);
        }
        write_count(w, flexible, run);
        for (size_t end = i + run; i < end; i++) write_partition(w, f->lanes[i].lane, flexible, bytes_max);
        if (flexible) write_uvarint(w, 0);
    }
}

static size_t write_request(fetch_stream *f, const fetch_terms *terms) {
    bool flexible = f->version >= FLEXIBLE_SINCE;
    writer w = {f->request, f->request + f->request_capacity, false};
    write_i32(&w, 0); /* length, known at the end */
    write_i16(&w, API_FETCH);
    write_i16(&w, f->version);
    write_i32(&w, terms->correlation_id);
    write_i16(&w, (int16_t)terms->client_id_length);
    write_bytes(&w, terms->client_id, terms->client_id_length);
    if (flexible) write_uvarint(&w, 0);
    write_i32(&w, -1); /* replica_id: a consumer */
    write_i32(&w, terms->wait_ms);
    write_i32(&w, 1); /* min_bytes */
    write_i32(&w, (int32_t)terms->bytes_max);
    write_i8(&w, f->source->committed);
    write_i32(&w, 0); /* no session */
    write_i32(&w, -1);
    write_topics(&w, f, flexible, terms->bytes_max);
    write_count(&w, flexible, 0); /* forgotten topics */
    if (flexible) {
        write_uvarint(&w, 1); /* rack_id: empty */
        write_uvarint(&w, 0);
    }
    if (w.bad) return 0;
    size_t size = (size_t)(w.at - f->request);
    store_u32(f->request, (uint32_t)size - 4);
    return size;
}

size_t fetch_compose(fetch_stream *f, const fetch_terms *terms, const uint8_t **request) {
    if (f->outstanding || ring_empty(&f->source->fetchable)) return 0;
    if (!slab_pool_reserve(f->source->pool, terms->bytes_max)) return 0;
    f->outstanding = true;
    f->reserved = terms->bytes_max;
    f->version = terms->version;
    f->correlation_id = terms->correlation_id;
    f->phase = HEAD;
    f->at = f->cursor = 0;
    f->answered = NULL;
    f->throttle_ms = 0;
    f->error = 0;
    choose_lanes(f, terms->bytes_max);
    size_t size = f->count ? write_request(f, terms) : 0;
    if (!size) fetch_abort(f);
    *request = f->request;
    return size;
}

void fetch_abort(fetch_stream *f) {
    for (size_t i = 0; i < f->count; i++)
        if (f->lanes[i].lane) put_back(&f->lanes[i]);
    slab_pool_release(f->source->pool, f->reserved);
    f->count = f->reserved = 0;
    f->outstanding = false;
}

/* ---- feed ---- */

static uint32_t read_count(reader *r, bool flexible) {
    if (!flexible) {
        int32_t n = read_i32(r);
        return n < 0 ? 0 : (uint32_t)n;
    }
    uint32_t n = read_uvarint(r);
    return n ? n - 1 : 0;
}

static void read_head(fetch_stream *f, reader *r, bool flexible) {
    if (read_i32(r) != f->correlation_id) r->bad = true;
    if (flexible) skip_tags(r);
    f->throttle_ms = read_i32(r);
    f->error = read_i16(r);
    read_i32(r); /* session id */
    f->topics_left = read_count(r, flexible);
    f->phase = f->topics_left ? TOPIC : RESPONSE_END;
}

static void read_topic(fetch_stream *f, reader *r, bool flexible) {
    topic *t = &f->topic;
    if (f->version >= TOPIC_IDS_SINCE) {
        const uint8_t *id = read_span(r, TOPIC_ID_SIZE);
        if (id) memcpy(t->id, id, TOPIC_ID_SIZE);
    } else {
        uint16_t length = (uint16_t)read_i16(r);
        const uint8_t *name = read_span(r, length);
        t->length = name && length <= TOPIC_NAME_MAX ? length : 0;
        if (name) memcpy(t->name, name, t->length);
    }
    f->partitions_left = read_count(r, flexible);
    f->phase = f->partitions_left ? PARTITION : TOPIC_END;
}

static bool is_named(const fetch_stream *f, const lane *l, int32_t partition) {
    if (l->source_partition != partition) return false;
    if (f->version >= TOPIC_IDS_SINCE) return !memcmp(l->source_topic.id, f->topic.id, TOPIC_ID_SIZE);
    return same_topic(&l->source_topic, &f->topic);
}

/* Brokers answer in the order of the request, nearly always: look on from the last one found. */
static lane_entry *find_lane(fetch_stream *f, int32_t partition) {
    for (size_t tried = 0; tried < f->count; tried++) {
        size_t i = (f->cursor + tried) % f->count;
        if (f->lanes[i].lane && is_named(f, f->lanes[i].lane, partition)) {
            f->cursor = i + 1;
            return &f->lanes[i];
        }
    }
    return NULL;
}

/* ---- aborted transactions ----
 *
 * A partition's list names each by its first offset; where it ends is told by its abort marker among the batches, so the
 * two are walked together, as Kafka's own consumer does.
 */

static void skip_aborted(reader *r, bool flexible, uint32_t n) {
    for (; n && !r->bad; n--) {
        read_span(r, 16);
        if (flexible) skip_tags(r);
    }
}

static int by_first_offset(const void *left, const void *right) {
    const aborted *a = left, *b = right;
    return (a->first_offset > b->first_offset) - (a->first_offset < b->first_offset);
}

/* Of an element that was read whole already, so nothing can be short. */
static void keep_aborted(fetch_stream *f, reader r, bool flexible, uint32_t n) {
    f->aborted_count = n;
    f->aborted_begun = f->aborted_next = 0;
    if (n > f->aborted_capacity) {
        aborted *more = realloc(f->aborted, n * sizeof *more);
        if (!more) abort(); /* as event_add: void records would be copied in silence */
        f->aborted = more;
        f->aborted_capacity = n;
    }
    for (uint32_t i = 0; i < n; i++) {
        int64_t producer_id = read_i64(&r);
        f->aborted[i] = (aborted){producer_id, read_i64(&r)};
        if (flexible) skip_tags(&r);
    }
    if (n > 1) qsort(f->aborted, n, sizeof *f->aborted, by_first_offset);
}

static void begin_aborted(fetch_stream *f, int64_t offset) {
    while (f->aborted_next < f->aborted_count && f->aborted[f->aborted_next].first_offset <= offset)
        f->aborted[f->aborted_begun++] = f->aborted[f->aborted_next++];
}

/* True if the batch at p is of a transaction that was aborted; its marker ends that. */
static bool is_aborted(fetch_stream *f, const uint8_t *p, const batch *b) {
    if (b->magic != 2) return false;
    begin_aborted(f, b->base_offset);
    if (!(b->attributes & ATTRIBUTE_TRANSACTIONAL)) return false;
    bool is_marker = b->attributes & ATTRIBUTE_CONTROL;
    if (is_marker && !batch_aborts(p, b)) return false;
    for (size_t i = f->aborted_begun; i-- > 0;) {
        if (f->aborted[i].producer_id != b->producer_id) continue;
        if (!is_marker) return true;
        f->aborted[i] = f->aborted[--f->aborted_begun]; /* and any other: compaction may have taken a marker before */
    }
    return false;
}

/* ---- feed, element by element ---- */

static void read_partition(fetch_stream *f, reader *r, bool flexible, const uint8_t *frame, event_list *events) {
    int32_t partition = read_i32(r);
    int16_t error = read_i16(r);
    int64_t high_watermark = read_i64(r), last_stable = read_i64(r), log_start = read_i64(r);
    uint32_t aborted_count = read_count(r, flexible);
    reader aborted_list = *r;
    skip_aborted(r, flexible, aborted_count);
    if (f->version >= 11) read_i32(r); /* preferred read replica */
    uint32_t size = read_count(r, flexible);
    if (r->bad) return;
    keep_aborted(f, aborted_list, flexible, aborted_count);
    f->records_end = (size_t)(r->at - frame) + size;
    f->phase = RECORDS;
    f->answered = find_lane(f, partition);
    f->failed = error != 0;
    if (!f->answered) return;
    lane *l = f->answered->lane;
    if (l->generation != f->answered->generation) return; /* a late answer: the lane may stand elsewhere by now */
    if (error) {
        event_add(events, l, FETCH_ERROR)->code = error;
        source_set(l, NULL, -1);
        return;
    }
    l->counters->high_watermark = high_watermark;
    l->counters->last_stable_offset = f->source->committed ? last_stable : high_watermark;
    l->counters->log_start_offset = log_start;
}

static bool takes_records(const fetch_stream *f) {
    return f->answered && !f->failed && f->answered->lane->running && !f->answered->lane->blocked &&
           f->answered->generation == f->answered->lane->generation;
}

static void refuse(fetch_stream *f, verdict v, const batch *b, event_list *events) {
    lane *l = f->answered->lane;
    f->failed = true;
    if (v == NO_ROOM) return;
    l->blocked = true;
    event *e = event_add(events, l, CANNOT_TAKE);
    e->code = v;
    e->first = b->base_offset;
    e->second = b->producer_id;
}

static void announce(lane *l, event_list *events) {
    int64_t source_offset;
    if (lane_asks_to_open(l)) event_add(events, l, REBUILD_AHEAD)->first = lane_raw(l, 0)->source_offset;
    if (lane_announces(l, &source_offset)) event_add(events, l, GAP_AHEAD)->first = source_offset;
    if (lane_asks_for_time(l)) event_add(events, l, LINGERS);
}

static verdict give(fetch_stream *f, slab *frame, batch_state state, const batch *b) {
    uint8_t *p = frame->data + f->at;
    if (state != BATCH_WHOLE) return REFUSE_MALFORMED;
    return lane_accept(f->answered->lane, p, b, frame, is_aborted(f, p, b));
}

/* Gives every batch that has arrived to the lane. False: the next one has not arrived yet. */
static bool read_records(fetch_stream *f, slab *frame, size_t have, event_list *events) {
    size_t end = f->records_end < have ? f->records_end : have;
    while (f->at < f->records_end && takes_records(f)) {
        batch b;
        if (f->at >= end) return false;
        batch_state state = batch_open(&b, frame->data + f->at, end - f->at);
        if (state == BATCH_PARTIAL && f->records_end > have) return false;
        if (state == BATCH_PARTIAL) break; /* cut by the broker: fetched again, whole, next time */
        verdict v = give(f, frame, state, &b);
        if (verdict_refuses(v)) refuse(f, v, &b, events);
        announce(f->answered->lane, events);
        f->at += state == BATCH_WHOLE ? b.size : 0;
    }
    f->at = f->records_end;
    f->phase = PARTITION_END;
    return true;
}

/* DivergingEpoch is tag 0 of a partition: (epoch i32, end_offset i64, tags). Returns its body, or NULL. */
static const uint8_t *read_diverging_epoch(reader *r) {
    const uint8_t *found = NULL;
    uint32_t count = read_uvarint(r);
    while (count-- && !r->bad) {
        uint32_t tag = read_uvarint(r), size = read_uvarint(r);
        const uint8_t *body = read_span(r, size);
        if (tag == 0 && size >= 12) found = body;
    }
    return found;
}

static void diverge(lane *l, const uint8_t *diverging_epoch, event_list *events) {
    l->blocked = true;
    event *e = event_add(events, l, DIVERGED);
    e->first = (int32_t)load_u32(diverging_epoch);
    e->second = (int64_t)load_u64(diverging_epoch + 4);
}

static void end_partition(fetch_stream *f, reader *r, bool flexible, event_list *events) {
    const uint8_t *diverging_epoch = flexible ? read_diverging_epoch(r) : NULL;
    if (r->bad) return;
    if (diverging_epoch && takes_records(f)) diverge(f->answered->lane, diverging_epoch, events);
    if (f->answered) put_back(f->answered);
    f->answered = NULL;
    f->phase = --f->partitions_left ? PARTITION : TOPIC_END;
}

static void read_element(fetch_stream *f, reader *r, slab *frame, event_list *events) {
    bool flexible = f->version >= FLEXIBLE_SINCE;
    switch (f->phase) {
        case HEAD: read_head(f, r, flexible); break;
        case TOPIC: read_topic(f, r, flexible); break;
        case PARTITION: read_partition(f, r, flexible, frame->data, events); break;
        case PARTITION_END: end_partition(f, r, flexible, events); break;
        case TOPIC_END:
            if (flexible) skip_tags(r);
            f->phase = --f->topics_left ? TOPIC : RESPONSE_END;
            break;
        case RESPONSE_END:
            if (flexible) skip_tags(r);
            if (reader_left(r) || r->end != frame->data + frame->size) r->bad = true;
            break;
        case RECORDS: break;
    }
}

fetch_progress fetch_feed(fetch_stream *f, slab *frame, size_t have, event_list *events) {
    if (!f->outstanding) return FETCH_MALFORMED;
    for (;;) {
        if (f->phase == RECORDS) {
            if (f->records_end > frame->size) break;
            if (!read_records(f, frame, have, events)) return FETCH_MORE;
            continue;
        }
        if (f->at > have) return FETCH_MORE;
        fetch_stream before = *f; /* an element that is cut short is read again from its start */
        reader r = {frame->data + f->at, frame->data + have, false};
        read_element(f, &r, frame, events);
        if (r.bad) {
            *f = before;
            if (have < frame->size) return FETCH_MORE;
            break;
        }
        f->at = (size_t)(r.at - frame->data);
        if (before.phase == RESPONSE_END) {
            fetch_abort(f); /* the response is over: same tidying */
            return FETCH_DONE;
        }
    }
    fetch_abort(f);
    return FETCH_MALFORMED;
}

int32_t fetch_throttle_ms(const fetch_stream *f) { return f->throttle_ms; }

int16_t fetch_error(const fetch_stream *f) { return f->error; }
