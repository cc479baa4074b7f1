/* Any bytes as the records of a batch, under several recipes, and as batches to be merged: nothing may break, and what
 * comes out must be sound, and the same in whatever sizes it is built.
 *
 * An input is  [0] [recipe] [from_offset] [bytes_max, u16] [a batch: header and records]
 * or           [1] [flags] [n] [n sizes, u16 each] [n batches]
 * flags: bit 0 puts the parts' lengths and checksums right, or nothing behind them would ever be reached; bit 1 makes
 * them follow one another; bit 2 takes away room for the result. The records' own lengths are what they are.
 *
 * mutator.c says how it is run; `tests/unit/test_sanitizers.py` runs it with true batches to begin with.
 */
#include <stdio.h>
#include <stdlib.h>

#include "bytes.h"
#include "core.h"

#define CHECK(truth) \
    do { \
        if (!(truth)) fail(#truth, __LINE__); \
    } while (0)

enum { RECIPES = 6, PARTS_MAX = 8, ALL = 1 << 30 };

static recipe *recipes[RECIPES];
static builder work;

static void fail(const char *what, int line) {
    fprintf(stderr, "records_fuzz.c:%d: not true: %s\n", line, what);
    abort();
}

/* A copy with nothing behind it, so that reading on is noticed. */
static uint8_t *copy_of(const uint8_t *bytes, size_t size) {
    uint8_t *copy = malloc(size ? size : 1);
    CHECK(copy);
    memcpy(copy, bytes, size);
    return copy;
}

/* ---- recipes ---- */

static span text(const char *s) { return (span){(const uint8_t *)s, (uint32_t)strlen(s)}; }

static uint32_t add_test(recipe *rc, test t) {
    uint32_t index = recipe_add_test(rc, &t);
    CHECK(index != NO_TEST);
    recipe_end_test(rc, index);
    return index;
}

/* any(tombstone, not(key contains "e"), all(header "a", header "b" starts with "v", time >= 5, more than 20 bytes)) */
static uint32_t add_tests(recipe *rc) {
    uint32_t any = add_test(rc, (test){.kind = TEST_ANY});
    add_test(rc, (test){.kind = TEST_TOMBSTONE});
    uint32_t not = add_test(rc, (test){.kind = TEST_NOT});
    add_test(rc, (test){.kind = TEST_KEY, .match = MATCH_CONTAINS, .wanted = text("e")});
    recipe_end_test(rc, not);
    uint32_t all = add_test(rc, (test){.kind = TEST_ALL});
    add_test(rc, (test){.kind = TEST_HEADER, .name = text("a")});
    add_test(rc, (test){.kind = TEST_HEADER_VALUE, .name = text("b"), .match = MATCH_PREFIX, .wanted = text("v")});
    add_test(rc, (test){.kind = TEST_TIMESTAMP, .from = 5, .to = INT64_MAX});
    add_test(rc, (test){.kind = TEST_SIZE, .from = 20});
    recipe_end_test(rc, all);
    recipe_end_test(rc, any);
    return any;
}

static void add_step(recipe *rc, recipe_step s) { CHECK(recipe_add_step(rc, &s)); }

/* Filters, edits, names that are asked for, provenance, and all of it. */
static void make_recipes(void) {
    for (int i = 1; i < RECIPES; i++) {
        recipe *rc = recipes[i] = recipe_new();
        CHECK(rc);
        if (i == 1) add_step(rc, (recipe_step){.kind = STEP_KEEP, .test = add_tests(rc)});
        if (i >= 3) {
            add_step(rc, (recipe_step){.kind = STEP_HEADER_DROP, .test = NO_TEST, .asks = true});
            add_step(rc, (recipe_step){.kind = STEP_HEADER_RENAME, .test = NO_TEST, .asks = true});
        }
        if (i == 2 || i == 5) {
            add_step(rc, (recipe_step){.kind = STEP_DIVERT, .test = add_tests(rc)});
            add_step(rc, (recipe_step){STEP_HEADER_ADD, NO_TEST, false, text("added"), text("value"), {0}});
            add_step(rc, (recipe_step){STEP_HEADER_SET, NO_TEST, false, text("a"), {0}, {0}});
            add_step(rc, (recipe_step){STEP_HEADER_RENAME, NO_TEST, false, text("b"), text("trace"), {0}});
        }
        if (i >= 4) {
            add_step(rc, (recipe_step){STEP_DROP_HOPS, NO_TEST, false, text("there"), {0}, {0}});
            add_step(rc, (recipe_step){STEP_PROVENANCE, NO_TEST, false, text("here"), text("orders"), text("3")});
        }
    }
}

/* Names that begin with an x go; with a y, begin with two. False: there are too many of them. */
static bool answer(recipe *rc, const header_list *h) {
    uint8_t new_name[300] = "y";
    uint8_t first = h->asked.size && h->asked.size < 299 ? *h->asked.bytes : 0;
    span renamed = {new_name, h->asked.size + 1};
    if (first == 'y') memcpy(new_name + 1, h->asked.bytes, h->asked.size);
    name_answer is = first == 'x' ? NAME_GOES : first == 'y' ? NAME_CHANGES : NAME_STAYS;
    if (recipe_tell(rc, h->asking, h->asked, is, first == 'y' ? renamed : (span){0})) return true;
    recipe_forget(rc, h->asking);
    return recipe_tell(rc, h->asking, h->asked, is, first == 'y' ? renamed : (span){0});
}

static feed_outcome feed(const packed_records *from, int64_t from_offset, recipe *rc) {
    feed_outcome found = builder_feed(&work, from, from_offset, rc);
    for (uint32_t asked = 0; found == FEED_ASKS; asked++) {
        CHECK(rc && asked < 1 << 16);
        if (asked > 2 * RECIPE_NAMES_MAX || !answer(rc, work.headers)) {
            builder_give_up(&work);
            return FEED_BAD;
        }
        found = builder_go_on(&work);
    }
    CHECK(found != FEED_NO_MEMORY);
    CHECK((found == FEED_BAD) == (work.walk.fault != NULL));
    return found;
}

/* ---- what comes out ---- */

static uint64_t mix(uint64_t seen, const void *bytes, size_t n) {
    const uint8_t *p = bytes;
    while (n--) seen = (seen ^ *p++) * 0x100000001b3;
    return seen;
}

static void write_header(uint8_t *h, const built *o) {
    memset(h, 0, BATCH_HEADER_SIZE);
    h[BATCH_MAGIC] = 2;
    store_u32(h + BATCH_LAST_OFFSET_DELTA, (uint32_t)o->count - 1);
    store_u64(h + BATCH_BASE_TIMESTAMP, (uint64_t)o->base_timestamp);
    store_u64(h + BATCH_MAX_TIMESTAMP, (uint64_t)o->max_timestamp);
    store_u32(h + BATCH_COUNT, (uint32_t)o->count);
}

/* What was built walks soundly, and its runs are of its records. Mixes in what its records hold. */
static uint64_t check_output(const built *o, int64_t *offset, uint64_t seen) {
    uint8_t header[BATCH_HEADER_SIZE];
    write_header(header, o);
    packed_records from = {header, o->bytes, o->size, 0, -1};
    record_walk w;
    record r;
    record_walk_open(&w, &from);
    int64_t latest = INT64_MIN, counted = 0;
    for (int32_t n = 0; record_walk_next(&w, &r); n++) {
        CHECK(r.offset_delta == n && (n || r.timestamp == o->base_timestamp));
        seen = mix(seen, &r.timestamp, sizeof r.timestamp);
        seen = mix(seen, r.tail, (size_t)(r.end - r.tail));
        if (r.timestamp > latest) latest = r.timestamp;
    }
    CHECK(!w.fault && w.index == o->count && latest == o->max_timestamp);
    for (uint32_t i = 0; i < o->run_count; i++) {
        CHECK(o->runs[i].count > 0 && o->runs[i].source_offset >= *offset);
        *offset = o->runs[i].source_offset + o->runs[i].count;
        counted += o->runs[i].count;
    }
    CHECK(counted == o->count);
    return seen;
}

static uint64_t build_all(uint32_t bytes_max, uint32_t runs_max) {
    uint64_t seen = 0xcbf29ce484222325;
    uint32_t count = 0;
    int64_t offset = 0;
    while (builder_next(&work, bytes_max, runs_max)) {
        CHECK(work.output.size <= bytes_max || work.output.count == 1);
        CHECK(work.output.run_count <= runs_max);
        if (work.output.count % 3 == 2) {
            builder_retry(&work);
            CHECK(builder_next(&work, bytes_max / 2, 1) && work.output.run_count == 1);
        }
        seen = check_output(&work.output, &offset, seen);
        count += (uint32_t)work.output.count;
    }
    CHECK(count == work.count && !is_out_of_memory(&work));
    return seen;
}

static void try_records(const uint8_t *data, size_t size) {
    if (size < 4 + BATCH_HEADER_SIZE) return;
    recipe *rc = recipes[data[0] % RECIPES];
    uint8_t *header = copy_of(data + 4, BATCH_HEADER_SIZE);
    size_t payload_size = size - 4 - BATCH_HEADER_SIZE;
    uint8_t *payload = copy_of(data + 4 + BATCH_HEADER_SIZE, payload_size);
    packed_records from = {header, payload, payload_size, -1, -1};
    feed_outcome first = feed(&from, data[1], rc);
    uint64_t whole = build_all(ALL, ALL);
    CHECK(first == FEED_DONE || !work.count);
    CHECK(!work.untouched || (first == FEED_DONE && !work.diverted_count && work.count == (uint32_t)work.walk.count));
    uint32_t kept = work.count, diverted = work.diverted_count;
    builder_clear(&work);
    CHECK(feed(&from, data[1], rc) == first && work.count == kept && work.diverted_count == diverted);
    CHECK(build_all(load_u16(data + 2), 3) == whole || !kept);
    builder_clear(&work);
    free(payload);
    free(header);
}

/* ---- merge ---- */

static void put_right(uint8_t *part, uint32_t size, uint8_t flags, uint32_t *sequence) {
    if (size < BATCH_HEADER_SIZE) return;
    if (flags & 2) {
        store_u16(part + BATCH_ATTRIBUTES, 0);
        memset(part + BATCH_PRODUCER_ID, 7, BATCH_BASE_SEQUENCE - BATCH_PRODUCER_ID);
        store_u32(part + BATCH_BASE_SEQUENCE, *sequence & INT32_MAX);
        *sequence += load_u32(part + BATCH_COUNT);
    }
    if (flags & 1) {
        store_u32(part + BATCH_LENGTH, size - BATCH_LEADER_EPOCH);
        store_u32(part + BATCH_CRC, crc32c(0, part + BATCH_ATTRIBUTES, size - BATCH_ATTRIBUTES));
    }
}

static void check_merged(const uint8_t *merged, uint32_t size) {
    batch b;
    CHECK(batch_open(&b, merged, size) == BATCH_WHOLE && b.size == size && b.count == b.last_offset_delta + 1);
    CHECK(b.crc == crc32c(0, merged + BATCH_ATTRIBUTES, size - BATCH_ATTRIBUTES));
    CHECK(batch_inspect(&b, 0, &(batch_terms){.codec = ANY_CODEC}) == PASS);
    packed_records from = {merged, merged + BATCH_HEADER_SIZE, size - BATCH_HEADER_SIZE, -1, -1};
    record_walk w;
    record r;
    record_walk_open(&w, &from);
    for (int32_t n = 0; record_walk_next(&w, &r); n++) CHECK(r.offset_delta == n && r.timestamp <= b.max_timestamp);
    CHECK(!w.fault && w.index == b.count);
}

static void try_merge(const uint8_t *data, size_t size) {
    if (size < 2) return;
    uint8_t flags = data[0];
    uint32_t n = data[1] % PARTS_MAX + 1, sequence = INT32_MAX - 2;
    if (size < 2 + 2 * (size_t)n) return;
    const uint8_t *at = data + 2 + 2 * n, *end = data + size;
    merge_part parts[PARTS_MAX];
    uint8_t *copies[PARTS_MAX];
    size_t bytes = 0, records = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t left = (uint32_t)(end - at), wanted = load_u16(data + 2 + 2 * i), part = wanted < left ? wanted : left;
        copies[i] = copy_of(at, part);
        put_right(copies[i], part, flags, &sequence);
        parts[i] = (merge_part){copies[i], part};
        bytes += part;
        records += part / 7;
        at += part;
    }
    size_t room = flags & 4 ? bytes / 2 : bytes + records * MERGE_BYTES_A_RECORD_MAX;
    uint8_t *out = malloc(room ? room : 1);
    CHECK(out);
    uint32_t merged = records_merge(parts, n, out, (uint32_t)room);
    CHECK(merged <= room);
    if (merged) check_merged(out, merged);
    free(out);
    for (uint32_t i = 0; i < n; i++) free(copies[i]);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    crc32c_init();
    make_recipes();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size && data[0] % 2) try_merge(data + 1, size - 1);
    if (size && data[0] % 2 == 0) try_records(data + 1, size - 1);
    return 0;
}
