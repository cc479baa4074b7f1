/* Questions: what do records cost the native core alone, hot in memory, uncompressed, with no Python?
 *
 *     records_loop rebuild RECORD_BYTES     GB/s and ns a record to walk batches of 64 KB and build them anew: as they
 *                                           are, with a filter that keeps all, one header added, provenance
 *     records_loop merge RECORD_BYTES       the same for merging batches of one record to 64 KB, checksums included
 *
 * The rivals here are memory itself: memcpy of the same bytes, and with a merge the checksum of them. Prints one JSON
 * object a line. Built and run by bench/micro.py. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "../csrc/bytes.h"
#include "../csrc/core.h"

enum { BATCH_BYTES = 64 << 10, OVERHEAD = 32 };

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static uint8_t *put_record(uint8_t *p, uint32_t size, int32_t n) {
    uint32_t value = size - OVERHEAD, body = 1 + 2 * varint_size(n) + 1 + 16 + varint_size(value) + value + 1;
    p = store_varint(p, body);
    *p++ = 0;
    p = store_varint(store_varint(p, n), n);
    p = store_varint(p, 16);
    for (int i = 0; i < 16; i++) *p++ = (uint8_t)('a' + (n + i) % 26);
    p = store_varint(p, value);
    for (uint32_t i = 0; i < value; i++) *p++ = (uint8_t)(i * 2654435761u >> 24);
    *p++ = 0;
    return p;
}

/* A sealed batch of `count` records; its size. */
static uint32_t make_batch(uint8_t *p, uint32_t record_bytes, int32_t count, int32_t sequence) {
    memset(p, 0, BATCH_HEADER_SIZE);
    uint8_t *at = p + BATCH_HEADER_SIZE;
    for (int32_t n = 0; n < count; n++) at = put_record(at, record_bytes, n);
    uint32_t size = (uint32_t)(at - p);
    store_u32(p + BATCH_LENGTH, size - BATCH_LEADER_EPOCH);
    p[BATCH_MAGIC] = 2;
    store_u32(p + BATCH_LAST_OFFSET_DELTA, (uint32_t)count - 1);
    store_u64(p + BATCH_BASE_TIMESTAMP, 1700000000000);
    store_u32(p + BATCH_BASE_SEQUENCE, (uint32_t)sequence);
    store_u32(p + BATCH_COUNT, (uint32_t)count);
    store_u32(p + BATCH_CRC, crc32c(0, p + BATCH_ATTRIBUTES, size - BATCH_ATTRIBUTES));
    return size;
}

static void tell(const char *question, uint32_t record_bytes, double spent, double bytes, double records) {
    printf("{\"question\": \"%s\", \"record_bytes\": %u, \"gb_per_s\": %.2f, \"ns_per_record\": %.1f}\n", question,
           record_bytes, bytes / spent / 1e9, spent * 1e9 / records);
}

static span text(const char *s) { return (span){(const uint8_t *)s, (uint32_t)strlen(s)}; }

static recipe *recipe_of(recipe_step step, const test *t) {
    recipe *rc = recipe_new();
    if (!rc) abort();
    step.test = NO_TEST;
    if (t) recipe_end_test(rc, step.test = recipe_add_test(rc, t));
    if (!recipe_add_step(rc, &step)) abort();
    return rc;
}

static void bench_rebuild(uint32_t record_bytes) {
    static uint8_t batch[2 * BATCH_BYTES], copy[2 * BATCH_BYTES];
    int32_t count = (int32_t)(BATCH_BYTES / record_bytes);
    uint32_t size = make_batch(batch, record_bytes, count, 0);
    test prefix = {.kind = TEST_KEY, .match = MATCH_PREFIX, .wanted = text("zzz")};
    const struct {
        const char *question;
        recipe *rc;
    } cases[] = {
        {"rebuild: renumbered", NULL},
        {"rebuild: a filter keeps all", recipe_of((recipe_step){.kind = STEP_DROP}, &prefix)},
        {"rebuild: one header added",
         recipe_of((recipe_step){STEP_HEADER_ADD, 0, false, text("source"), text("cluster-a"), {0}}, NULL)},
        {"rebuild: provenance",
         recipe_of((recipe_step){STEP_PROVENANCE, 0, false, text("cluster-a"), text("orders"), text("12")}, NULL)},
    };
    packed_records from = {batch, batch + BATCH_HEADER_SIZE, size - BATCH_HEADER_SIZE, -1, -1};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        builder b = {0};
        double began = now_s(), spent = 0, rounds = 0;
        for (; spent < 0.5; rounds++, spent = now_s() - began) {
            builder_clear(&b);
            if (builder_feed(&b, &from, 0, cases[i].rc) != FEED_DONE || !builder_next(&b, 1 << 20, 1)) abort();
            if (b.output.count != count) abort();
        }
        tell(cases[i].question, record_bytes, spent, rounds * size, rounds * count);
        builder_free(&b);
        if (cases[i].rc) recipe_free(cases[i].rc);
    }
    double began = now_s(), spent = 0, rounds = 0;
    for (; spent < 0.5; rounds++, spent = now_s() - began) {
        memcpy(copy, batch, size);
        __asm__ volatile("" ::"r"(copy) : "memory");
    }
    tell("rebuild: memcpy of the same bytes", record_bytes, spent, rounds * size, rounds * count);
}

static void bench_merge(uint32_t record_bytes) {
    static uint8_t batches[8 * BATCH_BYTES], out[4 * BATCH_BYTES];
    static merge_part parts[1024];
    uint32_t n = BATCH_BYTES / record_bytes, bytes = 0;
    for (uint32_t i = 0; i < n; i++) {
        parts[i] = (merge_part){batches + bytes, make_batch(batches + bytes, record_bytes, 1, (int32_t)i)};
        bytes += parts[i].size;
    }
    double began = now_s(), spent = 0, rounds = 0;
    for (; spent < 0.5; rounds++, spent = now_s() - began)
        if (!records_merge(parts, n, out, sizeof out)) abort();
    tell("merge of batches of one record", record_bytes, spent, rounds * bytes, rounds * n);
    uint32_t crc = 0;
    for (began = now_s(), spent = 0, rounds = 0; spent < 0.5; rounds++, spent = now_s() - began)
        for (uint32_t i = 0; i < n; i++) crc ^= crc32c(0, parts[i].bytes, parts[i].size);
    if (crc == 1) abort();
    tell("merge: their checksums alone", record_bytes, spent, rounds * bytes, rounds * n);
}

int main(int argc, char **argv) {
    crc32c_init();
    uint32_t size = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 0;
    bool fits = argc == 3 && size >= 64 && size <= BATCH_BYTES / 2;
    if (fits && !strcmp(argv[1], "rebuild")) bench_rebuild(size);
    else if (fits && !strcmp(argv[1], "merge")) bench_merge(size);
    else {
        fprintf(stderr, "usage: records_loop rebuild | merge RECORD_BYTES (64 to 32768)\n");
        return 2;
    }
    return 0;
}
