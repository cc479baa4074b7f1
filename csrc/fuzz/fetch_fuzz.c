/* Any bytes as a Fetch response, in any pieces: nothing may break, and the pieces must not matter.
 *
 * An input is  [flags] [n] [n places to cut, u16 each] [the response, without its length prefix]
 * flags: bit 0 chooses version 13 over 10, bit 1 gives the lanes a stop offset, bit 2 records to skip, bit 3 makes them
 * hold what is behind a gap, bit 4 lets others write to the target as well. The first four bytes of the response, its
 * correlation id, are put right, or nothing behind them would ever be reached.
 *
 * With clang: -fsanitize=fuzzer,address,undefined -DWITH_LIBFUZZER. With any compiler: the main() at the end runs the
 * files it is given and then mutates them for as long as it is told; `tests/unit/test_sanitizers.py` does that with
 * true responses to begin with. The input that broke something is left behind in fetch_fuzz.crash, to be run again.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "bytes.h"
#include "core.h"

#define CHECK(truth) \
    do { \
        if (!(truth)) fail(#truth, __LINE__); \
    } while (0)

enum { LANES = 4, BUDGET = 1 << 24, INPUT_MAX = 1 << 16, CORRELATION_ID = 7, CUTS_MAX = 255, SECONDS_AN_INPUT_MAX = 10 };

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
} world;

static void world_make(world *w, uint8_t flags) {
    *w = (world){.pool = slab_pool_new(BUDGET), .to = target_new()};
    w->from = source_new(w->pool, 1 << 20);
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

/* What is queued follows on from the checkpoint without a gap that is not marked, and adds up. */
static void check_lane(const lane *l) {
    int64_t run_end = check_map(l);
    const checkpoint *c = lane_checkpoint(l);
    int64_t position = c->position;
    int32_t sequence = following((int32_t)c->sequence, (uint32_t)l->skip_records);
    uint64_t bytes = 0;
    for (uint32_t i = l->head; i != l->tail; i++) {
        const lane_batch *b = &l->batches[i & (l->capacity - 1)];
        CHECK(b->bytes >= b->home->data && b->bytes + b->size <= b->home->data + b->home->size);
        CHECK((int32_t)load_u32(b->bytes + BATCH_BASE_SEQUENCE) == sequence);
        CHECK(b->source_next > position && b->count > 0 && b->sequence == sequence);
        CHECK(b->source_offset >= run_end && b->behind_gap == (b->source_offset != run_end));
        run_end = b->source_offset + b->count;
        position = b->source_next;
        sequence = following(sequence, b->count);
        bytes += b->size;
    }
    CHECK(bytes == l->bytes && bytes == l->counters->queued_bytes);
    CHECK(sequence == l->next_sequence && run_end == l->run_end);
    CHECK(l->counters->fetch_offset == (l->head == l->tail ? c->position : position));
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

static size_t write_answer(uint8_t *frame, const produce_request *q, world *w) {
    static const int64_t foreign[] = {0, 0, 0, 2}; /* what others wrote before our batch, where that is tolerated */
    writer out = {frame, frame + 1024, false};
    reader r = {q->parts[0].iov_base, (uint8_t *)q->parts[0].iov_base + 12, false};
    read_i64(&r);
    write_i32(&out, read_i32(&r));
    write_i32(&out, (int32_t)q->lanes);
    for (int i = 0; i < LANES; i++) {
        if (!lane_in_flight(w->lanes[i])) continue;
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
        CHECK(cursor == w->lanes[i]->tail && !lane_permit(w->lanes[i], lane_cursor(w->lanes[i], cursor)));
    }
    return any && target_waiting(w->to);
}

/* Sends everything that was taken in, and acknowledges it. */
static void send_all(outcome *out, world *w) {
    produce_terms terms = {.version = 7, .correlation_id = 1, .client_id = "", .bytes_max = 1 << 20};
    produce_request q;
    while (target_gather(w->to, &terms, &q) || (permit_all(w) && target_gather(w->to, &terms, &q))) {
        for (uint32_t i = 0; i < q.count; i++) out->seen = mix(out->seen, q.parts[i].iov_base, q.parts[i].iov_len);
        uint8_t frame[1024];
        int32_t throttle_ms;
        CHECK(target_settle(w->to, frame, write_answer(frame, &q, w), &throttle_ms, &w->events));
    }
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

#ifndef WITH_LIBFUZZER

/* ---- a mutator for compilers without one ---- */

typedef struct {
    uint8_t bytes[INPUT_MAX];
    size_t size;
} input;

static input *seeds, now;
static size_t seed_count;
static uint64_t state = 1;

static uint32_t chance(uint32_t below) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (uint32_t)(state >> 32) % below;
}

static void overwrite(input *in, size_t at, const void *bytes, size_t n) {
    if (at + n <= in->size) memcpy(in->bytes + at, bytes, n);
}

static void lie_about_a_number(input *in, size_t at) {
    static const uint8_t lies[][5] = {{0xff, 0xff, 0xff, 0xff, 0x0f}, {0x7f, 0xff, 0xff, 0xff, 0xff}, {0x80, 0, 0, 0, 0},
                                      {0, 0, 0, 0, 0}, {0, 0, 0, 1, 0}, {0, 0, 1, 0, 0}, {0xff, 0x7f, 0, 0, 0}};
    overwrite(in, at, lies[chance(sizeof lies / sizeof *lies)], 1 + chance(5));
}

static void take_out(input *in, size_t at) {
    size_t n = 1 + chance(16);
    if (at + n > in->size) return;
    memmove(in->bytes + at, in->bytes + at + n, in->size - at - n);
    in->size -= n;
}

static void say_again(input *in, size_t at) {
    size_t n = 1 + chance(200);
    if (at + n > in->size || in->size + n > INPUT_MAX) return;
    memmove(in->bytes + at + n, in->bytes + at, in->size - at);
    in->size += n;
}

static void splice(input *in, size_t at) {
    const input *other = &seeds[chance((uint32_t)seed_count)];
    size_t from = chance((uint32_t)other->size), n = other->size - from;
    if (at + n > INPUT_MAX) return;
    memcpy(in->bytes + at, other->bytes + from, n);
    in->size = at + n;
}

static void mutate(input *in) {
    for (uint32_t rounds = 1 + chance(4); rounds && in->size; rounds--) {
        size_t at = chance((uint32_t)in->size);
        switch (chance(7)) {
            case 0: in->bytes[at] ^= (uint8_t)(1 << chance(8)); break;
            case 1: in->bytes[at] = (uint8_t)chance(256); break;
            case 2:
            case 3: lie_about_a_number(in, at); break;
            case 4: take_out(in, at); break;
            case 5: say_again(in, at); break;
            case 6: splice(in, at); break;
        }
    }
}

/* Also of an input that takes longer than any should. Whoever was interrupted may hold locks: system calls only. */
static void keep_what_broke(int signal_number) {
    static const char words[] = "the input is in fetch_fuzz.crash\n";
    int file = open("fetch_fuzz.crash", O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (write(file, now.bytes, now.size) == (ssize_t)now.size && write(STDERR_FILENO, words, sizeof words - 1) > 0)
        close(file);
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}

static void run(const input *in) {
    now = *in;
    alarm(SECONDS_AN_INPUT_MAX);
    LLVMFuzzerTestOneInput(now.bytes, now.size);
}

static void read_seed(const char *path, input *in) {
    FILE *file = fopen(path, "rb");
    if (!file) {
        perror(path);
        exit(2);
    }
    in->size = fread(in->bytes, 1, INPUT_MAX, file);
    fclose(file);
}

/* fetch_fuzz SECONDS SEED FILE... */
int main(int argc, char **argv) {
    if (argc < 4) {
        fprintf(stderr, "usage: fetch_fuzz SECONDS SEED FILE...\n");
        return 2;
    }
    time_t end = time(NULL) + atoi(argv[1]);
    state += strtoull(argv[2], NULL, 10) * 2654435761u;
    seed_count = (size_t)argc - 3;
    seeds = calloc(seed_count, sizeof *seeds);
    if (!seeds) return 2;
    signal(SIGABRT, keep_what_broke);
    signal(SIGALRM, keep_what_broke);
    LLVMFuzzerInitialize(&argc, &argv);
    for (size_t i = 0; i < seed_count; i++) {
        read_seed(argv[i + 3], &seeds[i]);
        run(&seeds[i]);
    }
    unsigned long runs = 0;
    for (; time(NULL) < end; runs++) {
        static input mutant;
        mutant = seeds[chance((uint32_t)seed_count)];
        mutate(&mutant);
        run(&mutant);
    }
    alarm(0);
    printf("%lu mutants of %zu seeds\n", runs, seed_count);
    free(seeds);
    return 0;
}

#endif
