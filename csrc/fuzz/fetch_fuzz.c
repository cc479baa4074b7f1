/* Any bytes as a Fetch response, in any pieces: nothing may break, and the pieces must not matter.
 *
 * An input is  [flags] [n] [n places to cut, u16 each] [the response, without its length prefix]
 * flags: bit 0 chooses version 13 over 10, bit 1 gives the lanes a stop offset, bit 2 records to skip, bit 3 makes them
 * hold what is behind a gap, bit 4 lets others write to the target as well, bit 5 leaves aborted transactions out, bit 6
 * merges small batches, bit 7 opens all of them. The first four bytes of the response, its correlation id, are put right, or
 * nothing behind them would ever be reached.
 *
 * mutator.c says how it is run; `tests/unit/test_sanitizers.py` runs it with true responses to begin with.
 */
#include <stdio.h>
#include <stdlib.h>

#include "bytes.h"
#include "core.h"

#define CHECK(truth) \
    do { \
        if (!(truth)) fail(#truth, __LINE__); \
    } while (0)

enum { LANES = 4, BUDGET = 1 << 24, CORRELATION_ID = 7, CUTS_MAX = 255 };

static const struct {
    const char *topic, *topic_id;
    int32_t partition;
} places[LANES] = {
    {"orders", "oooooooooooooooo", 0},
    {"orders", "oooooooooooooooo", 3},
    {"payments", "pppppppppppppppp", 0},
    {"payments", "pppppppppppppppp", 1},
};

static void fail(const char *what, int line) {
    fprintf(stderr, "fetch_fuzz.c:%d: not true: %s\n", line, what);
    abort();
}

/* ---- one source broker, one target broker, four lanes ---- */

typedef struct {
    slab_pool *pool;
    source *from;
    target *to;
    fetch_stream *stream;
    lane *lanes[LANES];
    lane_counters rows[LANES];
    event_list events;
    int32_t requests;
} world;

static void world_make(world *w, uint8_t flags) {
    *w = (world){.pool = slab_pool_new(BUDGET), .to = target_new()};
    w->from = source_new(w->pool, 1 << 20, flags & 32);
    w->stream = fetch_stream_new(w->from);
    for (int i = 0; i < LANES; i++) {
        w->lanes[i] = lane_new(&(lane_spec){.source_topic = places[i].topic,
                                            .target_topic = places[i].topic,
                                            .source_topic_id = (const uint8_t *)places[i].topic_id,
                                            .source_partition = places[i].partition,
                                            .target_partition = places[i].partition,
                                            .producer_id = 9,
                                            .hold_gaps = flags & 8,
                                            .tolerate = flags & 16,
                                            .terms = {.codec = ANY_CODEC, .opens = flags & 128},
                                            .merge_bytes = flags & 64 ? 1000 : 0,
                                            .counters = &w->rows[i]});
        target_set(w->lanes[i], w->to);
        lane_resume(w->lanes[i], (checkpoint){0, 0, INT32_MAX - 2, -1}, flags & 4 ? 3 : 0, flags & 2 ? 5 : INT64_MAX,
                    (segments){0});
        source_set(w->lanes[i], w->from, 1);
    }
}

static void world_free(world *w) {
    for (int i = 0; i < LANES; i++) {
        lane_orphan(w->lanes[i]);
        lane_unref(w->lanes[i]);
    }
    event_list_free(&w->events);
    fetch_stream_free(w->stream);
    target_unref(w->to);
    CHECK(slab_pool_used(w->pool) == 0);
    source_unref(w->from);
    slab_pool_free(w->pool);
}

static int32_t following(int32_t sequence, uint32_t count) { return (int32_t)(((int64_t)sequence + count) & INT32_MAX); }

/* The map ends at or before the checkpoint, in order, with no two segments that could be one. */
static int64_t check_map(const lane *l) {
    const checkpoint *c = lane_checkpoint(l);
    const segment *last = NULL;
    int64_t records = 0;
    for (uint32_t i = 0; i < l->segments.count; i++) {
        const segment *s = &l->segments.items[i];
        int64_t hole = last ? s->source - last->source - last->length : 0;
        int64_t target_hole = last ? s->target - last->target - last->length : 0;
        CHECK(s->length > 0 && hole >= 0 && target_hole >= 0 && (!last || hole || target_hole));
        records += s->length;
        last = s;
    }
    CHECK(!last || (last->source + last->length <= c->position && last->target + last->length <= c->target_next));
    CHECK(following(INT32_MAX - 2, (uint32_t)records) == c->sequence);
    return last ? last->source + last->length : 0;
}

/* Its runs follow one another, from its first offset on; returns where they end. */
static int64_t check_runs(const lane_batch *b) {
    if (!b->runs) {
        CHECK(b->run_count == 1);
        return b->source_offset + b->count;
    }
    int64_t end = b->source_offset, records = 0;
    CHECK(b->run_count > 0 && b->runs[0].source_offset == b->source_offset);
    for (uint32_t i = 0; i < b->run_count; i++) {
        CHECK(b->runs[i].count > 0 && (i ? b->runs[i].source_offset > end : b->runs[i].source_offset == end));
        end = b->runs[i].source_offset + b->runs[i].count;
        records += b->runs[i].count;
    }
    CHECK(records == b->count);
    return end;
}

/* What is raw waits in order, and the oldest of it for its owner. */
static uint64_t check_raw(const lane *l, int64_t *position) {
    uint64_t bytes = 0;
    CHECK(!lane_raw_count(l) || lane_raw(l, 0)->why != PASS);
    for (uint32_t i = 0; i < lane_raw_count(l); i++) {
        const lane_batch *b = lane_raw(l, i);
        CHECK(b->source_offset >= *position && b->source_next > b->source_offset && b->count > 0 && !b->runs);
        CHECK(b->why == PASS || verdict_opens(b->why));
        *position = b->source_next;
        bytes += b->size;
    }
    return bytes;
}

/* What is queued follows on from the checkpoint without a gap that is not marked, and adds up. */
static void check_lane(const lane *l) {
    int64_t run_end = check_map(l);
    const checkpoint *c = lane_checkpoint(l);
    int64_t position = c->position;
    int32_t sequence = following((int32_t)c->sequence, (uint32_t)l->skip_records);
    uint64_t bytes = 0;
    CHECK(l->head <= l->send && l->send <= l->ready && l->ready <= l->tail && l->permitted <= lane_queued(l));
    for (uint32_t i = l->head; i != l->ready; i++) {
        const lane_batch *b = lane_at(l, i);
        CHECK(b->bytes >= b->home->data && b->bytes + b->size <= b->home->data + b->home->size);
        CHECK((int32_t)load_u32(b->bytes + BATCH_BASE_SEQUENCE) == sequence);
        CHECK(b->source_next > position && b->count > 0 && b->sequence == sequence);
        CHECK(b->source_offset >= run_end && b->behind_gap == (b->source_offset != run_end));
        CHECK(i == l->head || (int32_t)(b->number - lane_at(l, i - 1)->number) > 0);
        run_end = check_runs(b);
        position = b->source_next;
        sequence = following(sequence, b->count);
        bytes += b->size;
    }
    bytes += check_raw(l, &position);
    CHECK(bytes == l->bytes && bytes == l->counters->queued_bytes);
    CHECK(sequence == l->next_sequence && run_end == l->run_end);
    CHECK(!l->running || l->counters->fetch_offset == (l->head == l->tail ? c->position : position));
}

/* ---- owning ---- */

static slab *make_batch(world *w, uint32_t count, int codec) {
    batch b = {.size = BATCH_HEADER_SIZE + 1, .attributes = (int16_t)codec, .count = (int32_t)count};
    b.last_offset_delta = b.count - 1;
    slab *home = slab_acquire(w->pool, b.size);
    CHECK(home);
    home->data[BATCH_HEADER_SIZE] = 'x';
    batch_write(&b, home->data);
    return home;
}

/* The oldest raw batch becomes none, itself, or one or two that hold its last or its first and last record. */
static verdict open_one(world *w, lane *l) {
    const lane_batch *raw = lane_raw(l, 0);
    uint32_t choice = (uint32_t)(raw->source_offset + raw->size) % 4;
    record_run runs[2] = {{raw->source_offset, 1}, {raw->source_next - 1, 1}};
    if (choice == 1 && raw->why >= REBUILD_SIZE && raw->why <= REBUILD_OPEN) return lane_pass(l);
    if (choice < 2) return lane_replace(l, NULL, 0);
    slab *home = make_batch(w, 1, 0), *other = make_batch(w, 2, 4);
    rebuilt one[2] = {{home, runs, 1, 1, 5}, {home, runs + 1, 1, 1, 6}}, both = {other, runs, 2, 2, 7};
    bool has_both = runs[0].source_offset + 1 < runs[1].source_offset;
    verdict v;
    if (choice == 2 && has_both && raw->source_offset % 2)
        v = lane_replace(l, &both, 1);
    else if (choice == 2 && has_both) {
        one[1].home = make_batch(w, 1, 0);
        v = lane_replace(l, one, 2);
        slab_unref(one[1].home);
    } else
        v = lane_replace(l, one + 1, 1);
    slab_unref(home);
    slab_unref(other);
    return v;
}

/* Opens whatever is raw. True if anything was. */
static bool open_all(world *w) {
    bool any = false;
    for (int i = 0; i < LANES; i++) {
        lane *l = w->lanes[i];
        while (lane_raw(l, 0)) {
            any = true;
            verdict v = open_one(w, l);
            CHECK(v == PASS || v == REFUSE_TAIL);
            if (v != PASS) lane_halt(l);
            check_lane(l);
        }
    }
    return any;
}

/* Answers lanes that ask whether compressed batches are to be merged. True if any did. */
static bool merge_all(world *w) {
    bool any = false;
    for (int i = 0; i < LANES; i++) {
        lane *l = w->lanes[i];
        if (!l->merge_told) continue;
        any = true;
        int codec = load_u16(lane_next(l)->bytes + BATCH_ATTRIBUTES) & ATTRIBUTE_CODEC;
        uint32_t n = lane_mergeable(l, codec), count = 0;
        CHECK(n > 1 && codec);
        uint32_t choice = (uint32_t)lane_next(l)->sequence;
        if (choice % 3 == 0) {
            lane_merge_declined(l, choice % 5 == 0);
            continue;
        }
        n = 2 + choice % (n - 1);
        for (uint32_t k = 0; k < n; k++) count += lane_waiting(l, k)->count;
        slab *home = make_batch(w, count, codec);
        batch_readdress(home->data, home->size, l->producer_id, l->producer_epoch, lane_next(l)->sequence);
        lane_join(l, n, home);
        slab_unref(home);
        check_lane(l);
    }
    return any;
}

/* ---- feeding ---- */

typedef struct {
    fetch_progress progress;
    size_t events;
    uint64_t seen; /* of everything that was taken in or told */
} outcome;

static uint64_t mix(uint64_t seen, const void *bytes, size_t n) {
    const uint8_t *p = bytes;
    while (n--) seen = (seen ^ *p++) * 0x100000001b3;
    return seen;
}

static void note_events(outcome *out, const world *w) {
    out->events = w->events.count;
    for (size_t i = 0; i < w->events.count; i++) {
        const event *e = &w->events.items[i];
        int64_t told[] = {e->kind, e->code, e->first, e->second, e->lane->source_partition};
        out->seen = mix(out->seen, told, sizeof told);
    }
}

typedef struct {
    bool has[LANES]; /* lanes with a batch in it */
    int32_t correlation_id;
    uint32_t lanes;
    size_t bytes;
} sent;

static size_t write_answer(uint8_t *frame, const sent *q, world *w) {
    static const int64_t foreign[] = {0, 0, 0, 2}; /* what others wrote before our batch, where that is tolerated */
    writer out = {frame, frame + 1024, false};
    write_i32(&out, q->correlation_id);
    write_i32(&out, (int32_t)q->lanes);
    for (int i = 0; i < LANES; i++) {
        if (!q->has[i]) continue;
        size_t length = strlen(places[i].topic);
        write_i16(&out, (int16_t)length);
        write_bytes(&out, places[i].topic, length);
        write_i32(&out, 1);
        write_i32(&out, places[i].partition);
        write_i16(&out, 0);
        write_i64(&out, lane_checkpoint(w->lanes[i])->target_next + (w->lanes[i]->tolerate ? foreign[q->bytes % 4] : 0));
        write_i64(&out, -1);
        write_i64(&out, 0);
    }
    write_i32(&out, 0);
    CHECK(!out.bad);
    return (size_t)(out.at - frame);
}

/* Lets everything go that waits behind a gap. True if anything did. */
static bool permit_all(world *w) {
    bool any = false;
    for (int i = 0; i < LANES; i++) {
        uint32_t cursor = w->lanes[i]->head;
        while (lane_ahead(w->lanes[i], &cursor)) any = true;
        CHECK(cursor == w->lanes[i]->ready && !lane_permit(w->lanes[i], lane_mark(w->lanes[i], cursor)));
        check_lane(w->lanes[i]);
    }
    return any && target_waiting(w->to);
}

static bool send_one(outcome *out, world *w, sent *s) {
    produce_terms terms = {.version = 7, .correlation_id = ++w->requests, .client_id = "", .bytes_max = 1 << 20};
    produce_request q;
    uint32_t before[LANES];
    for (int i = 0; i < LANES; i++) before[i] = lane_in_flight(w->lanes[i]);
    if (!target_gather(w->to, &terms, &q, &w->events)) return false;
    for (uint32_t i = 0; i < q.count; i++) out->seen = mix(out->seen, q.parts[i].iov_base, q.parts[i].iov_len);
    *s = (sent){.correlation_id = terms.correlation_id, .lanes = q.lanes, .bytes = q.bytes};
    for (int i = 0; i < LANES; i++) {
        s->has[i] = lane_in_flight(w->lanes[i]) > before[i];
        check_lane(w->lanes[i]);
    }
    return true;
}

/* Sends everything that was taken in, a few requests at a time, and acknowledges it. */
static void send_all(outcome *out, world *w) {
    sent pipeline[4];
    do {
        uint32_t n = 0;
        while (n < 4 && send_one(out, w, &pipeline[n])) n++;
        if (n < 4 && merge_all(w)) while (n < 4 && send_one(out, w, &pipeline[n])) n++;
        for (uint32_t i = 0; i < n; i++) {
            uint8_t frame[1024];
            int32_t throttle_ms;
            CHECK(target_settle(w->to, frame, write_answer(frame, &pipeline[i], w), &throttle_ms, &w->events));
        }
    } while (target_waiting(w->to) || merge_all(w) || permit_all(w) || open_all(w));
    for (int i = 0; i < LANES; i++) {
        check_lane(w->lanes[i]);
        CHECK(w->lanes[i]->head == w->lanes[i]->tail);
        out->seen = mix(out->seen, &w->rows[i], sizeof w->rows[i]);
        const segments *map = &w->lanes[i]->segments;
        if (map->count) out->seen = mix(out->seen, map->items, map->count * sizeof *map->items);
    }
}

/* Lets `response` arrive up to each of the places in turn, and then all of it. */
static outcome feed(uint8_t flags, const uint8_t *response, size_t size, const uint16_t *cuts, size_t n) {
    world w;
    world_make(&w, flags);
    fetch_terms terms = {.version = flags & 1 ? 13 : 10, .correlation_id = CORRELATION_ID, .client_id = "",
                         .bytes_max = 1 << 20};
    const uint8_t *request;
    CHECK(fetch_compose(w.stream, &terms, &request));
    slab *frame = slab_acquire(w.pool, (uint32_t)size);
    CHECK(frame);
    memcpy(frame->data, response, size);
    store_u32(frame->data, CORRELATION_ID);
    outcome out = {.progress = FETCH_MORE, .seen = 0xcbf29ce484222325};
    for (size_t i = 0; i <= n && out.progress == FETCH_MORE; i++) {
        out.progress = fetch_feed(w.stream, frame, i < n ? cuts[i] : size, &w.events);
        for (int l = 0; l < LANES; l++) check_lane(w.lanes[l]);
    }
    CHECK(out.progress != FETCH_MORE);
    slab_unref(frame);
    note_events(&out, &w);
    send_all(&out, &w);
    world_free(&w);
    return out;
}

static int compare_cuts(const void *a, const void *b) { return *(const uint16_t *)a - *(const uint16_t *)b; }

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    crc32c_init();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2) return 0;
    uint8_t flags = data[0];
    size_t n = data[1];
    if (size < 2 + 2 * n + 4 || size - 2 - 2 * n > UINT16_MAX) return 0;
    const uint8_t *response = data + 2 + 2 * n;
    size_t response_size = size - 2 - 2 * n;
    uint16_t cuts[CUTS_MAX];
    for (size_t i = 0; i < n; i++) cuts[i] = (uint16_t)(load_u16(data + 2 + 2 * i) % (response_size + 1));
    qsort(cuts, n, sizeof *cuts, compare_cuts);
    outcome whole = feed(flags, response, response_size, NULL, 0);
    outcome cut = feed(flags, response, response_size, cuts, n);
    CHECK(whole.progress == cut.progress && whole.events == cut.events && whole.seen == cut.seen);
    return 0;
}
