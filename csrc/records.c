#include "records.h"

#include <stdlib.h>

#include "batch.h"
#include "bytes.h"
#include "crc32c.h"
#include "recipe.h"

enum { RECORD_HEAD_MAX = 5 + 1 + 10 + 5, MEMORY_KEPT_MAX = 1 << 24 };

/* ---- walk ---- */

static bool fail(record_walk *w, const char *fault) {
    w->fault = fault;
    return false;
}

void record_walk_open(record_walk *w, const packed_records *from) {
    const uint8_t *h = from->header;
    uint16_t attributes = load_u16(h + BATCH_ATTRIBUTES);
    int64_t count = from->count >= 0 ? from->count : (int32_t)load_u32(h + BATCH_COUNT);
    *w = (record_walk){
        .at = from->payload,
        .end = from->payload + from->payload_size,
        .base_offset = from->first_offset >= 0 ? from->first_offset : (int64_t)load_u64(h + BATCH_BASE_OFFSET),
        .base_timestamp = (int64_t)load_u64(h + BATCH_BASE_TIMESTAMP),
        .append_time = (int64_t)load_u64(h + BATCH_MAX_TIMESTAMP),
        .is_stamped = attributes & ATTRIBUTE_LOG_APPEND_TIME,
        .last_offset_delta = (int32_t)load_u32(h + BATCH_LAST_OFFSET_DELTA),
        .index = -1,
        .last_offset_found = -1,
    };
    if (h[BATCH_MAGIC] != 2)
        fail(w, "is not of format 2");
    else if (attributes & ATTRIBUTE_CONTROL)
        fail(w, "is a control batch's: it has no records");
    else if (w->last_offset_delta < 0 || count < 0 || count > (int64_t)w->last_offset_delta + 1)
        fail(w, "contradicts itself in its count and last offset");
    else if (w->base_offset < 0 || w->base_offset > INT64_MAX - w->last_offset_delta - 1)
        fail(w, "has an offset that cannot be");
    else if (from->payload_size > INT32_MAX)
        fail(w, "belongs to more than 2 GB of records");
    if (w->fault) return;
    w->count = (int32_t)count;
    w->index = 0;
}

/* The bytes that a length claims, which may be none. */
static inline const uint8_t *read_sized(reader *r, int32_t size) {
    if (size < 0 || (size_t)size > reader_left(r)) {
        r->bad = true;
        r->at = r->end;
        return r->end;
    }
    const uint8_t *found = r->at;
    r->at += size;
    return found;
}

/* NULL for null. */
static inline const uint8_t *read_nullable(reader *r, uint32_t *size) {
    int32_t n = read_varint(r);
    *size = n == -1 ? 0 : (uint32_t)n;
    return n == -1 ? NULL : read_sized(r, n);
}

static inline void skip_headers(reader *r) {
    int32_t n = read_varint(r);
    uint32_t size;
    if (n < 0) r->bad = true;
    for (; n > 0 && !r->bad; n--) {
        read_sized(r, read_varint(r));
        read_nullable(r, &size);
    }
}

static const char *cut_short(const record *r, const reader *in) {
    if (!in->bad) return "holds bytes behind its headers";
    if (r->headers) return "has a header that goes beyond its end";
    return "has a number, key or value that goes beyond its end";
}

static bool record_read(record_walk *w, record *r) {
    reader in = {w->at, w->end, false};
    r->start = w->at;
    if (w->at == w->end) return fail(w, "is missing");
    int32_t size = read_varint(&in);
    if (in.bad || size < 1 || (size_t)size > reader_left(&in)) return fail(w, "has a length that cannot be");
    r->end = in.end = in.at + size;
    r->attributes = *in.at++;
    r->timestamp_delta = read_varlong(&in);
    r->offset_delta = read_varint(&in);
    r->tail = in.at;
    r->key = read_nullable(&in, &r->key_size);
    r->value = read_nullable(&in, &r->value_size);
    r->headers = in.bad ? NULL : in.at;
    skip_headers(&in);
    if (in.bad || in.at != in.end) return fail(w, cut_short(r, &in));
    if (r->offset_delta <= w->last_offset_found || r->offset_delta > w->last_offset_delta)
        return fail(w, "has an offset that is out of order");
    r->offset = w->base_offset + r->offset_delta;
    r->timestamp = w->append_time;
    if (!w->is_stamped && __builtin_add_overflow(w->base_timestamp, r->timestamp_delta, &r->timestamp))
        return fail(w, "has a time beyond 64 bits");
    return true;
}

bool record_walk_next(record_walk *w, record *r) {
    if (w->fault) return false;
    if (w->index == w->count) {
        if (w->at != w->end) fail(w, "should not be: bytes are left behind the last record");
        return false;
    }
    if (!record_read(w, r)) return false;
    w->last_offset_found = r->offset_delta;
    w->at = r->end;
    w->index++;
    return true;
}

/* ---- keep ---- */

/* `items` with room for `needed`, or NULL, and everything as it was, when memory is out. */
static void *with_room(void *items, size_t *capacity, size_t needed, size_t item_size) {
    if (*capacity >= needed) return items;
    size_t wanted = *capacity * 2 > needed + 64 ? *capacity * 2 : needed + 64;
    void *grown = realloc(items, wanted * item_size);
    if (grown) *capacity = wanted;
    return grown;
}

/* Changed headers, written down where they can wait. */
static bool keep_edits(builder *b, kept_record *k, const record *r) {
    size_t size = header_list_size(b->headers), tail_size = (size_t)(r->headers - r->tail);
    if (size + tail_size > INT32_MAX - RECORD_HEAD_MAX || size + b->edits_size > BUILDER_EDITS_MAX)
        return fail(&b->walk, "becomes too large with its new headers");
    uint8_t *edits = with_room(b->edits, &b->edits_capacity, b->edits_size + size, 1);
    if (!edits) return false;
    b->edits = edits;
    header_list_write(b->headers, edits + b->edits_size);
    k->tail_size = (uint32_t)tail_size;
    k->headers_at = (uint32_t)b->edits_size;
    k->headers_size = (uint32_t)size;
    b->edits_size += size;
    b->untouched = false;
    return true;
}

static bool keep(builder *b, const record *r) {
    if (b->count == BUILDER_RECORDS_MAX) return fail(&b->walk, "is one too many to hold at a time");
    if (r->end - r->tail > INT32_MAX - RECORD_HEAD_MAX) return fail(&b->walk, "is too large to be numbered anew");
    kept_record *kept = with_room(b->kept, &b->kept_capacity, (size_t)b->count + 1, sizeof *kept);
    if (!kept) return false;
    b->kept = kept;
    kept_record *k = &kept[b->count];
    *k = (kept_record){.tail = r->tail,
                       .tail_size = (uint32_t)(r->end - r->tail),
                       .attributes = r->attributes,
                       .offset = r->offset,
                       .timestamp = r->timestamp};
    if (b->recipe && b->headers->is_changed && !keep_edits(b, k, r)) return false;
    b->count++;
    return true;
}

static bool divert(builder *b, const record *r, uint32_t step) {
    size_t needed = (size_t)b->diverted_count + 1;
    diverted_record *diverted = with_room(b->diverted, &b->diverted_capacity, needed, sizeof *diverted);
    if (!diverted) return false;
    b->diverted = diverted;
    diverted[b->diverted_count++] = (diverted_record){*r, step};
    return true;
}

void builder_exclude(builder *b, const int64_t *offsets, size_t n) {
    b->excluded = offsets;
    b->excluded_count = n;
}

static bool is_excluded(builder *b, int64_t offset) {
    while (b->excluded_at < b->excluded_count && b->excluded[b->excluded_at] < offset) b->excluded_at++;
    return b->excluded_at < b->excluded_count && b->excluded[b->excluded_at] == offset;
}

static recipe_outcome choose(builder *b, const record *r, uint32_t *step) {
    *step = NO_STEP;
    if (r->offset < b->from_offset) return RECIPE_LEAVE_OUT;
    if (is_excluded(b, r->offset)) return RECIPE_DIVERT;
    return b->recipe ? recipe_apply(b->recipe, r, b->headers, step) : RECIPE_PASS;
}

/* What becomes of one record. FEED_DONE: it is dealt with. */
static feed_outcome take(builder *b, const record *r) {
    uint32_t step;
    recipe_outcome found = choose(b, r, &step);
    bool done = true;
    switch (found) {
        case RECIPE_PASS: done = keep(b, r); break;
        case RECIPE_LEAVE_OUT: b->untouched = false; break;
        case RECIPE_DIVERT: b->untouched = false, done = divert(b, r, step); break;
        case RECIPE_ASKS: return FEED_ASKS;
        case RECIPE_TOO_MANY: done = fail(&b->walk, "has more headers than can be looked at"); break;
        case RECIPE_NO_MEMORY: done = false; break;
    }
    if (done) return FEED_DONE;
    return b->walk.fault ? FEED_BAD : FEED_NO_MEMORY;
}

void builder_give_up(builder *b) {
    b->count = b->count_before;
    b->edits_size = b->edits_before;
    b->diverted_count = 0;
    b->untouched = false;
}

static feed_outcome end_feed(builder *b) {
    if (b->walk.fault) {
        builder_give_up(b);
        return FEED_BAD;
    }
    b->next_offset = b->walk.base_offset + b->walk.last_offset_delta + 1;
    return FEED_DONE;
}

feed_outcome builder_go_on(builder *b) {
    record_walk *w = &b->walk;
    for (;;) {
        record r;
        int32_t last_offset_found = w->last_offset_found;
        if (!record_walk_next(w, &r)) return end_feed(b);
        feed_outcome found = take(b, &r);
        b->wanted_count += found == FEED_DONE && r.offset >= b->from_offset;
        if (found == FEED_DONE) continue;
        w->at = r.start;
        w->last_offset_found = last_offset_found;
        w->index--;
        if (found != FEED_ASKS) builder_give_up(b);
        return found;
    }
}

feed_outcome builder_feed(builder *b, const packed_records *from, int64_t from_offset, const recipe *recipe) {
    record_walk *w = &b->walk;
    record_walk_open(w, from);
    if (!w->fault && w->base_offset < b->next_offset) {
        w->index = -1;
        fail(w, "belongs before what was fed already");
    }
    uint16_t attributes = load_u16(from->header + BATCH_ATTRIBUTES);
    b->untouched = w->count > 0 && w->count - 1 == w->last_offset_delta &&
                   !(attributes & (ATTRIBUTE_LOG_APPEND_TIME | ATTRIBUTE_DELETE_HORIZON));
    b->from_offset = from_offset;
    b->recipe = recipe;
    b->count_before = b->count;
    b->edits_before = b->edits_size;
    b->diverted_count = b->wanted_count = 0;
    b->excluded_at = 0;
    if (recipe && !b->headers) b->headers = calloc(1, sizeof *b->headers);
    if (!recipe || b->headers) return builder_go_on(b);
    builder_give_up(b);
    return FEED_NO_MEMORY;
}

/* ---- build ---- */

static inline uint8_t *write_head(uint8_t *p, size_t body_size, const kept_record *k, int64_t timestamp_delta,
                                  int32_t offset_delta) {
    p = store_varint(p, (int64_t)body_size);
    *p++ = k->attributes;
    p = store_varint(p, timestamp_delta);
    return store_varint(p, offset_delta);
}

/* Of what follows the length. */
static inline size_t body_size(const kept_record *k, int64_t timestamp_delta, int32_t offset_delta) {
    return 1 + varint_size(timestamp_delta) + varint_size(offset_delta) + (size_t)k->tail_size + k->headers_size;
}

static bool note_run(builder *b, int64_t offset, uint32_t runs_max) {
    built *o = &b->output;
    record_run *last = o->run_count ? &b->runs[o->run_count - 1] : NULL;
    if (last && last->source_offset + last->count == offset) {
        last->count++;
        return true;
    }
    if (o->run_count && o->run_count >= runs_max) return false;
    record_run *runs = with_room(b->runs, &b->runs_capacity, (size_t)o->run_count + 1, sizeof *runs);
    if (!runs) return false;
    b->runs = runs;
    runs[o->run_count++] = (record_run){offset, 1};
    return true;
}

/* Writes the record that comes next. False when it does not belong to this output, or memory is out. */
static bool write_record(builder *b, uint32_t bytes_max, uint32_t runs_max) {
    built *o = &b->output;
    const kept_record *k = &b->kept[b->at];
    int64_t timestamp_delta;
    if (__builtin_sub_overflow(k->timestamp, o->base_timestamp, &timestamp_delta)) return false;
    size_t body = body_size(k, timestamp_delta, o->count);
    size_t size = o->size + varint_size((int64_t)body) + body;
    if (size > bytes_max && o->count) return false;
    if (size > b->bytes_capacity) {
        uint8_t *bytes = with_room(b->bytes, &b->bytes_capacity, size, 1);
        if (!bytes) return false;
        b->bytes = bytes;
    }
    if (!note_run(b, k->offset, runs_max)) return false;
    uint8_t *p = write_head(b->bytes + o->size, body, k, timestamp_delta, o->count);
    memcpy(p, k->tail, k->tail_size);
    if (k->headers_size) memcpy(p + k->tail_size, b->edits + k->headers_at, k->headers_size);
    o->size = (uint32_t)size;
    o->count++;
    if (k->timestamp > o->max_timestamp) o->max_timestamp = k->timestamp;
    return true;
}

bool builder_next(builder *b, uint32_t bytes_max, uint32_t runs_max) {
    if (b->at == b->count) return false;
    int64_t first = b->kept[b->at].timestamp;
    b->before = b->at;
    b->output = (built){.base_timestamp = first, .max_timestamp = first};
    if (bytes_max > INT32_MAX) bytes_max = INT32_MAX;
    while (b->at < b->count && write_record(b, bytes_max, runs_max)) b->at++;
    b->output.bytes = b->bytes;
    b->output.runs = b->runs;
    return b->output.count > 0;
}

void builder_retry(builder *b) {
    b->at = b->before;
    b->output = (built){0};
}

static void *trimmed(void *items, size_t *capacity, size_t item_size) {
    if (*capacity <= MEMORY_KEPT_MAX / item_size) return items;
    free(items);
    *capacity = 0;
    return NULL;
}

void builder_clear(builder *b) {
    b->kept = trimmed(b->kept, &b->kept_capacity, sizeof *b->kept);
    b->diverted = trimmed(b->diverted, &b->diverted_capacity, sizeof *b->diverted);
    b->edits = trimmed(b->edits, &b->edits_capacity, 1);
    b->bytes = trimmed(b->bytes, &b->bytes_capacity, 1);
    b->runs = trimmed(b->runs, &b->runs_capacity, sizeof *b->runs);
    b->count = b->at = b->before = b->diverted_count = 0;
    b->edits_size = 0;
    b->next_offset = 0;
    b->excluded = NULL;
    b->excluded_count = 0;
    b->untouched = false;
    b->output = (built){0};
}

void builder_free(builder *b) {
    free(b->kept);
    free(b->diverted);
    free(b->edits);
    free(b->bytes);
    free(b->runs);
    if (b->headers) header_list_free(b->headers);
    free(b->headers);
    *b = (builder){0};
}

/* ---- merge ---- */

typedef struct {
    uint8_t *at, *end;
    int64_t base_timestamp, max_timestamp, count;
} merging;

/* A merge is of batches that a broker would take one after the other. */
static bool opens_as_part(const merge_part *part, const batch *first, int64_t count, batch *b) {
    if (batch_open(b, part->bytes, part->size) != BATCH_WHOLE || b->size != part->size || b->magic != 2) return false;
    if (b->attributes || b->count <= 0 || b->count - 1 != b->last_offset_delta) return false;
    if (b->producer_id != first->producer_id || b->producer_epoch != first->producer_epoch) return false;
    if (b->base_sequence != (int32_t)((first->base_sequence + count) & INT32_MAX)) return false;
    return b->crc == crc32c(0, part->bytes + BATCH_ATTRIBUTES, part->size - BATCH_ATTRIBUTES);
}

static bool append_record(merging *m, const record *r, int64_t timestamp_delta) {
    kept_record k = {.tail = r->tail, .tail_size = (uint32_t)(r->end - r->tail), .attributes = r->attributes};
    size_t body = body_size(&k, timestamp_delta, (int32_t)m->count);
    if (varint_size((int64_t)body) + body > (size_t)(m->end - m->at)) return false;
    uint8_t *p = write_head(m->at, body, &k, timestamp_delta, (int32_t)m->count);
    memcpy(p, k.tail, k.tail_size);
    m->at = p + k.tail_size;
    return true;
}

/* The first part's records keep their numbers and times, so they are looked at and then copied as one. */
static bool append_part(merging *m, const merge_part *part, bool is_first) {
    packed_records from = {part->bytes, part->bytes + BATCH_HEADER_SIZE, part->size - BATCH_HEADER_SIZE, 0, -1};
    record_walk w;
    record r;
    int64_t delta;
    record_walk_open(&w, &from);
    while (record_walk_next(&w, &r)) {
        if (m->count == INT32_MAX) return false;
        if (__builtin_sub_overflow(r.timestamp, m->base_timestamp, &delta)) return false;
        if (!is_first && !append_record(m, &r, delta)) return false;
        if (r.timestamp > m->max_timestamp) m->max_timestamp = r.timestamp;
        m->count++;
    }
    if (w.fault || (is_first && from.payload_size > (size_t)(m->end - m->at))) return false;
    if (is_first) memcpy(m->at, from.payload, from.payload_size);
    if (is_first) m->at += from.payload_size;
    return true;
}

static uint32_t seal(uint8_t *out, const merging *m) {
    uint32_t size = (uint32_t)(m->at - out);
    store_u64(out + BATCH_BASE_OFFSET, 0);
    store_u32(out + BATCH_LENGTH, size - BATCH_LEADER_EPOCH);
    store_u32(out + BATCH_LAST_OFFSET_DELTA, (uint32_t)m->count - 1);
    store_u64(out + BATCH_MAX_TIMESTAMP, (uint64_t)m->max_timestamp);
    store_u32(out + BATCH_COUNT, (uint32_t)m->count);
    store_u32(out + BATCH_CRC, crc32c(0, out + BATCH_ATTRIBUTES, size - BATCH_ATTRIBUTES));
    return size;
}

uint32_t records_merge(const merge_part *parts, uint32_t n, uint8_t *out, uint32_t out_capacity) {
    batch first, b;
    if (out_capacity > INT32_MAX) out_capacity = INT32_MAX;
    if (!n || out_capacity < BATCH_HEADER_SIZE) return 0;
    if (batch_open(&first, parts[0].bytes, parts[0].size) != BATCH_WHOLE || first.magic != 2) return 0;
    merging m = {out + BATCH_HEADER_SIZE, out + out_capacity, first.base_timestamp, INT64_MIN, 0};
    memcpy(out, parts[0].bytes, BATCH_HEADER_SIZE);
    for (uint32_t i = 0; i < n; i++)
        if (!opens_as_part(&parts[i], &first, m.count, &b) || !append_part(&m, &parts[i], i == 0)) return 0;
    return seal(out, &m);
}
