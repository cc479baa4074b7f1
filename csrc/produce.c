#include "produce.h"

#include <stdlib.h>

#include "bytes.h"
#include "fetch.h"
#include "merge.h"

enum { API_PRODUCE = 0, ACKS_ALL = -1, REQUEST_FIXED = 64, REQUEST_A_LANE = TOPIC_NAME_MAX + 32 };

/* One request in flight. Buffers are kept for the next one. */
typedef struct request {
    struct request *next;
    int16_t version;
    int32_t correlation_id;
    uint32_t count, capacity;
    lane_entry *lanes;
    struct iovec *parts;
    uint8_t *headers;
    size_t headers_capacity;
} request;

struct target {
    ring_link sendable;
    request *oldest, *newest, *spare;
    uint32_t in_flight, refs;
    uint32_t lanes_in_flight; /* lanes with at least one batch in flight */
};

target *target_new(void) {
    target *t = calloc(1, sizeof *t);
    if (!t) return NULL;
    ring_init(&t->sendable);
    t->refs = 1;
    return t;
}

static void request_free(request *q) {
    free(q->lanes);
    free(q->parts);
    free(q->headers);
    free(q);
}

void target_unref(target *t) {
    if (--t->refs) return;
    event_list unheard = {0};
    target_abandon(t, &unheard);
    event_list_free(&unheard);
    while (t->spare) {
        request *q = t->spare;
        t->spare = q->next;
        request_free(q);
    }
    free(t);
}

void target_set(lane *l, target *t) {
    ring_leave(&l->sendable);
    if (t) t->refs++;
    if (l->target) target_unref(l->target);
    l->target = t;
    target_offer(l);
}

void target_offer(lane *l) {
    if (l->target && !l->merge_told && lane_may_send(l)) ring_join(&l->target->sendable, &l->sendable);
}

bool target_waiting(const target *t) { return !ring_empty(&t->sendable); }

bool target_ready(const target *t) {
    enum { FEW_REQUESTS = 3, MANY_LANES = 64 };
    uint32_t waiting = 0, enough = t->in_flight < FEW_REQUESTS ? 1 : (t->lanes_in_flight + 1) / 2;
    if (enough > MANY_LANES) enough = MANY_LANES;
    for (const ring_link *link = t->sendable.after; link != &t->sendable; link = link->after)
        if (++waiting >= enough) return true;
    return false;
}

uint32_t target_in_flight(const target *t) { return t->in_flight; }

/* ---- gather ---- */

static request *request_new(target *t) {
    request *q = t->spare;
    if (q)
        t->spare = q->next;
    else
        q = calloc(1, sizeof *q);
    if (q) {
        q->next = NULL;
        q->count = 0;
    }
    return q;
}

static void request_spare(target *t, request *q) {
    q->next = t->spare;
    t->spare = q;
}

static bool room_for_lane(request *q) {
    if (q->count < q->capacity) return true;
    uint32_t capacity = q->capacity ? q->capacity * 2 : 16;
    lane_entry *lanes = realloc(q->lanes, capacity * sizeof *lanes);
    if (lanes) q->lanes = lanes;
    struct iovec *parts = realloc(q->parts, (2 * capacity + 1) * sizeof *parts);
    if (parts) q->parts = parts;
    if (!lanes || !parts) return false;
    q->capacity = capacity;
    return true;
}

static bool room_for_headers(request *q, size_t size) {
    if (size <= q->headers_capacity) return true;
    uint8_t *headers = realloc(q->headers, size);
    if (!headers) return false;
    q->headers = headers;
    q->headers_capacity = size;
    return true;
}

/* Names the lanes of the request, one batch each: which batch is only settled by lane_take, once nothing can fail. */
static void choose_lanes(target *t, request *q, uint32_t bytes_max, event_list *events) {
    uint64_t bytes = 0;
    while (target_waiting(t) && q->count < PRODUCE_LANES_MAX && room_for_lane(q)) {
        lane *l = LANE_OF(t->sendable.after, sendable);
        if (lane_asks_to_merge(l)) {
            ring_leave(&l->sendable);
            event_add(events, l, MERGE_AHEAD);
            continue;
        }
        lane_merge(l);
        if (!lane_may_send(l)) { /* with more runs than there is room for on the map */
            ring_leave(&l->sendable);
            continue;
        }
        uint32_t size = lane_next(l)->size;
        if (q->count && bytes + size > bytes_max) break;
        bytes += size;
        ring_leave(&l->sendable);
        q->lanes[q->count] = (lane_entry){lane_ref(l), l->generation, q->count};
        q->count++;
    }
    lane_group_by_target(q->lanes, q->count);
}

static bool starts_topic(const request *q, uint32_t i) {
    if (i == 0) return true;
    const topic *a = &q->lanes[i - 1].lane->target_topic, *b = &q->lanes[i].lane->target_topic;
    return a->length != b->length || memcmp(a->name, b->name, a->length) != 0;
}

static uint32_t topic_run(const request *q, uint32_t from) {
    uint32_t to = from + 1;
    while (to < q->count && !starts_topic(q, to)) to++;
    return to - from;
}

static void write_head(writer *w, const request *q, const produce_terms *terms) {
    uint32_t topics = 0;
    for (uint32_t i = 0; i < q->count; i += topic_run(q, i)) topics++;
    write_i32(w, 0); /* length, known at the end */
    write_i16(w, API_PRODUCE);
    write_i16(w, terms->version);
    write_i32(w, terms->correlation_id);
    write_i16(w, (int16_t)terms->client_id_length);
    write_bytes(w, terms->client_id, terms->client_id_length);
    write_i16(w, -1); /* no transactional id */
    write_i16(w, ACKS_ALL);
    write_i32(w, terms->timeout_ms);
    write_i32(w, (int32_t)topics);
}

/* Header pieces and batches alternate; a piece runs from the end of the one before to where the batch goes in. */
static size_t write_parts(request *q, const produce_terms *terms, uint32_t *parts) {
    writer w = {q->headers, q->headers + q->headers_capacity, false};
    uint8_t *piece = w.at;
    size_t bytes = 0;
    uint32_t n = 0;
    write_head(&w, q, terms);
    for (uint32_t i = 0; i < q->count; i++) {
        lane *l = q->lanes[i].lane;
        if (starts_topic(q, i)) {
            write_i16(&w, (int16_t)l->target_topic.length);
            write_bytes(&w, l->target_topic.name, l->target_topic.length);
            write_i32(&w, (int32_t)topic_run(q, i));
        }
        if (!lane_in_flight(l)) l->target->lanes_in_flight++;
        const lane_batch *b = lane_take(l);
        write_i32(&w, l->target_partition);
        write_i32(&w, (int32_t)b->size);
        q->parts[n++] = (struct iovec){piece, (size_t)(w.at - piece)};
        q->parts[n++] = (struct iovec){b->bytes, b->size};
        bytes += (size_t)(w.at - piece) + b->size;
        piece = w.at;
    }
    store_u32(q->headers, (uint32_t)bytes - 4);
    *parts = n;
    return bytes;
}

static void drop_entries(request *q) {
    for (uint32_t i = 0; i < q->count; i++) {
        target_offer(q->lanes[i].lane);
        lane_unref(q->lanes[i].lane);
    }
    q->count = 0;
}

bool target_gather(target *t, const produce_terms *terms, produce_request *out, event_list *events) {
    if (!target_waiting(t)) return false;
    request *q = request_new(t);
    if (!q) return false;
    choose_lanes(t, q, terms->bytes_max, events);
    if (!q->count || !room_for_headers(q, REQUEST_FIXED + terms->client_id_length + q->count * REQUEST_A_LANE)) {
        drop_entries(q);
        request_spare(t, q);
        return false;
    }
    q->version = terms->version;
    q->correlation_id = terms->correlation_id;
    uint32_t parts;
    size_t bytes = write_parts(q, terms, &parts);
    for (uint32_t i = 0; i < q->count; i++) target_offer(q->lanes[i].lane);
    if (t->newest)
        t->newest->next = q;
    else
        t->oldest = q;
    t->newest = q;
    t->in_flight++;
    *out = (produce_request){q->parts, parts, q->count, bytes};
    return true;
}

static request *pop_oldest(target *t) {
    request *q = t->oldest;
    t->oldest = q->next;
    if (!t->oldest) t->newest = NULL;
    t->in_flight--;
    return q;
}

/* ---- settle ---- */

static lane_entry *find_entry(request *q, const char *name, uint16_t length, int32_t partition, uint32_t *cursor) {
    for (uint32_t tried = 0; tried < q->count; tried++) {
        uint32_t i = (*cursor + tried) % q->count;
        const lane *l = q->lanes[i].lane;
        if (l && l->target_partition == partition && l->target_topic.length == length &&
            !memcmp(l->target_topic.name, name, length)) {
            *cursor = i + 1;
            return &q->lanes[i];
        }
    }
    return NULL;
}

static void count_out(const lane *l) {
    if (!lane_in_flight(l)) l->target->lanes_in_flight--;
}

/* What a broker says of one batch. `record_errors` begins at their count, and was read once without running short; all
 * zero in versions that have none. */
typedef struct {
    int16_t error;
    int64_t base_offset;
    const char *text;
    size_t text_length;
    reader record_errors;
} answer;

static const char *read_text(reader *r, size_t *length) {
    int16_t n = read_i16(r);
    *length = n > 0 ? (size_t)n : 0;
    return (const char *)read_span(r, *length);
}

/* Which records the broker named: those are at fault, and the others of the batch are not. */
static void note_records(lane *l, reader r) {
    int32_t n = r.at ? read_i32(&r) : 0;
    uint32_t room = lane_note_refused(l, n > 0 ? (uint32_t)n : 0);
    for (int32_t i = 0; i < n && l->refused.named < room; i++) {
        size_t length;
        refused_record one = {.source_offset = lane_record_offset(l, read_i32(&r))};
        const char *words = read_text(&r, &length);
        one.text_length = (uint16_t)(length < REFUSED_TEXT_MAX ? length : REFUSED_TEXT_MAX);
        if (words) memcpy(one.text, words, one.text_length);
        if (one.source_offset >= 0) l->refused.records[l->refused.named++] = one;
    }
}

static void refuse(lane *l, const answer *a, event_list *events) {
    event *e = event_add(events, l, PRODUCE_ERROR);
    e->code = a->error;
    if (a->text) memcpy(e->text, a->text, a->text_length < EVENT_TEXT_MAX - 1 ? a->text_length : EVENT_TEXT_MAX - 1);
    note_records(l, a->record_errors);
    e->first = l->refused.source_offset;
}

/* An answer for a lane that was halted since is not believed: the target's log will tell. */
static void settle_lane(lane_entry *entry, const answer *a, event_list *events) {
    lane *l = entry->lane;
    int64_t base_offset = a->base_offset;
    bool believed = l->generation == entry->generation;
    if (believed && a->error) {
        refuse(l, a, events);
    } else if (believed) {
        int64_t due = lane_checkpoint(l)->target_next;
        if (lane_settle(l, base_offset)) {
            count_out(l);
            entry->lane = NULL;
            source_offer(l);
            target_offer(l);
            lane_unref(l);
            return;
        }
        event *e = event_add(events, l, OFFSET_DRIFT);
        e->first = due;
        e->second = base_offset;
    }
    lane_forget(l);
    count_out(l);
    if (believed) lane_halt(l);
    entry->lane = NULL;
    lane_unref(l);
}

/* The first record error names the cause best; the partition's own message is the fallback. */
static void read_words(reader *r, answer *a) {
    a->record_errors = *r;
    int32_t n = read_i32(r);
    for (int32_t i = 0; i < n && !r->bad; i++) {
        size_t one_length;
        read_i32(r); /* the record's index in the batch */
        const char *one = read_text(r, &one_length);
        if (!a->text && one_length) {
            a->text = one;
            a->text_length = one_length;
        }
    }
    size_t own_length;
    const char *own = read_text(r, &own_length);
    if (a->text) return;
    a->text = own;
    a->text_length = own_length;
}

static void settle_partition(request *q, reader *r, const char *name, uint16_t length, uint32_t *cursor,
                             event_list *events) {
    int32_t partition = read_i32(r);
    answer a = {.error = read_i16(r)};
    a.base_offset = read_i64(r);
    read_span(r, 16); /* log append time, log start offset */
    if (q->version >= 8) read_words(r, &a);
    if (r->bad) return;
    lane_entry *entry = find_entry(q, name, length, partition, cursor);
    if (entry)
        settle_lane(entry, &a, events);
    else
        r->bad = true; /* an answer to what was not asked */
}

static bool all_answered(const request *q) {
    for (uint32_t i = 0; i < q->count; i++)
        if (q->lanes[i].lane) return false;
    return true;
}

bool target_settle(target *t, const uint8_t *frame, size_t size, int32_t *throttle_ms, event_list *events) {
    request *q = t->oldest;
    reader r = {frame, frame + size, false};
    if (!q || read_i32(&r) != q->correlation_id) return false;
    uint32_t cursor = 0;
    for (int32_t topics = read_i32(&r); topics > 0 && !r.bad; topics--) {
        uint16_t length = (uint16_t)read_i16(&r);
        const char *name = (const char *)read_span(&r, length);
        for (int32_t n = read_i32(&r); n > 0 && !r.bad; n--) settle_partition(q, &r, name, length, &cursor, events);
    }
    *throttle_ms = read_i32(&r);
    if (r.bad || !all_answered(q)) return false;
    pop_oldest(t);
    q->count = 0;
    request_spare(t, q);
    return true;
}

void target_abandon(target *t, event_list *events) {
    while (t->oldest) {
        request *q = pop_oldest(t);
        for (uint32_t i = 0; i < q->count; i++) {
            lane *l = q->lanes[i].lane;
            if (!l) continue;
            lane_forget(l);
            count_out(l);
            if (l->generation == q->lanes[i].generation) {
                event_add(events, l, ANSWER_LOST);
                lane_halt(l);
            }
            lane_unref(l);
        }
        q->count = 0;
        request_spare(t, q);
    }
}
