/* Questions: how fast is the native core alone, in memory, with no socket and no Python?
 *
 *     core_loop crc                         GB/s of CRC-32C over a hot 64 KB, every kind this processor has
 *     core_loop patch BATCH_BYTES           ns to re-address a batch, hot and from cold memory; and the rival's:
 *                                           the same change with the checksum computed anew
 *     core_loop pipeline BATCH_BYTES        batches/s through feed, inspect, re-address, gather and settle
 *
 * Prints one JSON object a line. Built and run by bench/micro.py. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "../csrc/bytes.h"
#include "../csrc/core.h"

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void make_batch(uint8_t *p, uint32_t size, int64_t base_offset) {
    for (uint32_t i = BATCH_HEADER_SIZE; i < size; i++) p[i] = (uint8_t)(i * 2654435761u >> 24);
    store_u64(p, (uint64_t)base_offset);
    store_u32(p + BATCH_LENGTH, size - 12);
    store_u32(p + BATCH_LEADER_EPOCH, 0);
    p[BATCH_MAGIC] = 2;
    store_u16(p + BATCH_ATTRIBUTES, 0);
    store_u32(p + BATCH_LAST_OFFSET_DELTA, 15);
    store_u64(p + BATCH_BASE_TIMESTAMP, 1);
    store_u64(p + BATCH_MAX_TIMESTAMP, 1);
    store_u64(p + BATCH_PRODUCER_ID, (uint64_t)-1);
    store_u16(p + BATCH_PRODUCER_EPOCH, (uint16_t)-1);
    store_u32(p + BATCH_BASE_SEQUENCE, (uint32_t)-1);
    store_u32(p + BATCH_COUNT, 16);
    store_u32(p + BATCH_CRC, crc32c(0, p + BATCH_ATTRIBUTES, size - BATCH_ATTRIBUTES));
}

static void bench_crc(void) {
    static const char *names[] = {"portable", "sse4.2", "armv8"};
    static uint8_t data[64 << 10];
    for (size_t i = 0; i < sizeof data; i++) data[i] = (uint8_t)(i * 31);
    for (int kind = CRC32C_PORTABLE; kind <= CRC32C_ARMV8; kind++) {
        if (crc32c_use((crc32c_kind)kind)) continue;
        uint32_t crc = 0;
        double began = now_s(), spent = 0;
        uint64_t rounds = 0;
        for (; spent < 0.5; rounds += 64, spent = now_s() - began)
            for (int i = 0; i < 64; i++) crc = crc32c(crc, data, sizeof data);
        printf("{\"question\": \"crc32c of a hot 64 KB\", \"kind\": \"%s\", \"gb_per_s\": %.2f, \"check\": %u}\n",
               names[kind], (double)rounds * sizeof data / spent / 1e9, crc);
    }
}

static double patch_ns(uint8_t *arena, uint32_t size, uint32_t batches, uint32_t rounds) {
    double began = now_s();
    for (uint32_t r = 0; r < rounds; r++)
        for (uint32_t i = 0; i < batches; i++)
            batch_readdress(arena + (size_t)i * size, size, 1000, 0, (int32_t)(r * batches + i));
    return (now_s() - began) * 1e9 / rounds / batches;
}

/* What re-addressing costs who does not know that the checksum is linear. */
static double recompute_ns(uint8_t *arena, uint32_t size, uint32_t batches, uint32_t rounds) {
    double began = now_s();
    for (uint32_t r = 0; r < rounds; r++)
        for (uint32_t i = 0; i < batches; i++) {
            uint8_t *p = arena + (size_t)i * size;
            store_u32(p + BATCH_BASE_SEQUENCE, r * batches + i);
            store_u32(p + BATCH_CRC, crc32c(0, p + BATCH_ATTRIBUTES, size - BATCH_ATTRIBUTES));
        }
    return (now_s() - began) * 1e9 / rounds / batches;
}

static void bench_patch(uint32_t size) {
    uint32_t cold = (uint32_t)((512u << 20) / size); /* half a gigabyte: no cache holds the headers */
    uint8_t *arena = malloc((size_t)cold * size);
    for (uint32_t i = 0; i < cold; i++) make_batch(arena + (size_t)i * size, size, 0);
    double hot_ns = patch_ns(arena, size, 1, 2000000);
    double cold_ns = patch_ns(arena, size, cold, cold < 1000 ? 200 : 4);
    double rival_ns = recompute_ns(arena, size, cold, 1);
    int right = 1;
    for (uint32_t i = 0; i < cold; i += cold / 8 ? cold / 8 : 1) {
        uint8_t *p = arena + (size_t)i * size;
        right &= load_u32(p + BATCH_CRC) == crc32c(0, p + BATCH_ATTRIBUTES, size - BATCH_ATTRIBUTES);
    }
    printf("{\"question\": \"re-address a batch\", \"batch_bytes\": %u, \"hot_ns\": %.1f, \"cold_ns\": %.1f,"
           " \"recomputed_cold_ns\": %.1f, \"checksum_right\": %s}\n", size, hot_ns, cold_ns, rival_ns,
           right ? "true" : "false");
    free(arena);
}

enum { LANES = 8, FRAME_BYTES = 1 << 20 };

typedef struct {
    slab_pool *pool;
    source *from;
    target *to;
    fetch_stream *stream;
    lane *lanes[LANES];
    lane_counters rows[LANES];
    int64_t ends[LANES]; /* of the target's logs */
} plant;

static void plant_make(plant *p) {
    static const uint8_t id[TOPIC_ID_SIZE] = {1};
    memset(p, 0, sizeof *p);
    p->pool = slab_pool_new(64u << 20);
    p->from = source_new(p->pool, 4u << 20);
    p->to = target_new();
    p->stream = fetch_stream_new(p->from);
    for (int i = 0; i < LANES; i++) {
        lane_spec spec = {.source_topic = "topic",
                          .target_topic = "topic",
                          .source_topic_id = id,
                          .source_partition = i,
                          .target_partition = i,
                          .producer_id = 1000,
                          .counters = &p->rows[i]};
        p->lanes[i] = lane_new(&spec);
        lane_resume(p->lanes[i], (checkpoint){0, 0, 0, -1}, 0, INT64_MAX, (segments){0});
        p->rows[i].high_watermark = INT64_MAX;
        target_set(p->lanes[i], p->to);
        source_set(p->lanes[i], p->from, 0);
    }
}

/* A Fetch v13 response with the same number of batches for every lane. */
static slab *make_frame(plant *p, uint32_t batch_bytes, uint32_t a_lane) {
    slab *frame = slab_acquire(p->pool, FRAME_BYTES + 4096 + LANES * batch_bytes);
    writer w = {frame->data, frame->data + frame->size, false};
    write_i32(&w, 1);
    write_uvarint(&w, 0);
    write_i32(&w, 0);
    write_i16(&w, 0);
    write_i32(&w, 0);
    write_uvarint(&w, 2);
    write_bytes(&w, p->lanes[0]->source_topic.id, TOPIC_ID_SIZE);
    write_uvarint(&w, LANES + 1);
    for (int i = 0; i < LANES; i++) {
        write_i32(&w, i);
        write_i16(&w, 0);
        write_i64(&w, INT64_MAX);
        write_i64(&w, INT64_MAX);
        write_i64(&w, 0);
        write_uvarint(&w, 1);
        write_i32(&w, -1);
        write_uvarint(&w, a_lane * batch_bytes + 1);
        for (uint32_t b = 0; b < a_lane; b++) make_batch(write_span(&w, batch_bytes), batch_bytes, 0);
        write_uvarint(&w, 0);
    }
    write_uvarint(&w, 0);
    write_uvarint(&w, 0);
    frame->size = (uint32_t)(w.at - frame->data);
    return frame;
}

/* Gives the frame's batches the offsets that the lanes want next: what a broker would have written there. */
static void renumber(slab *frame, uint32_t batch_bytes, uint32_t a_lane, int64_t first) {
    uint8_t *at = frame->data + frame->size;
    for (int i = LANES - 1; i >= 0; i--) {
        at -= i == LANES - 1 ? 3 : 1;
        for (uint32_t b = a_lane; b-- > 0;) store_u64(at -= batch_bytes, (uint64_t)(first + 16 * b));
        uint32_t size = a_lane * batch_bytes + 1, length = 1;
        while (size >>= 7) length++;
        at -= 4 + 2 + 8 + 8 + 8 + 1 + 4 + length;
    }
}

static size_t answer(plant *p, const produce_request *request, int32_t correlation_id, uint8_t *out) {
    writer w = {out, out + 4096, false};
    write_i32(&w, correlation_id);
    write_i32(&w, 1);
    write_i16(&w, 5);
    write_bytes(&w, "topic", 5);
    write_i32(&w, (int32_t)request->lanes);
    for (uint32_t i = 0; i < request->lanes; i++) {
        const struct iovec *header = &request->parts[2 * i];
        int32_t partition = (int32_t)load_u32((uint8_t *)header->iov_base + header->iov_len - 8);
        write_i32(&w, partition);
        write_i16(&w, 0);
        write_i64(&w, p->ends[partition]);
        write_i64(&w, -1);
        write_i64(&w, 0);
        write_i32(&w, 0);
        write_i16(&w, -1);
        p->ends[partition] += 16;
    }
    write_i32(&w, 0);
    return (size_t)(w.at - out);
}

static void bench_pipeline(uint32_t batch_bytes) {
    static plant p;
    plant_make(&p);
    uint32_t a_lane = FRAME_BYTES / LANES / batch_bytes;
    if (!a_lane) a_lane = 1;
    slab *frame = make_frame(&p, batch_bytes, a_lane);
    event_list events = {0};
    fetch_terms ask = {13, 1, "bench", 5, 0, FRAME_BYTES};
    uint64_t batches = 0;
    double began = now_s(), spent = 0;
    while (spent < 1.0) {
        const uint8_t *bytes;
        renumber(frame, batch_bytes, a_lane, p.rows[0].fetch_offset);
        if (!fetch_compose(p.stream, &ask, &bytes) || fetch_feed(p.stream, frame, frame->size, &events) != FETCH_DONE)
            abort();
        produce_terms send = {8, 0, "bench", 5, 30000, 1 << 20};
        produce_request request;
        while (target_gather(p.to, &send, &request)) {
            uint8_t out[4096];
            int32_t throttle_ms;
            if (!target_settle(p.to, out, answer(&p, &request, send.correlation_id, out), &throttle_ms, &events)) abort();
            batches += request.lanes;
            send.correlation_id++;
        }
        if (events.count) abort();
        spent = now_s() - began;
    }
    printf("{\"question\": \"feed, inspect, re-address, gather, settle\", \"batch_bytes\": %u,"
           " \"batches_per_s\": %.0f, \"ns_per_batch\": %.1f}\n", batch_bytes, (double)batches / spent,
           spent * 1e9 / (double)batches);
    slab_unref(frame);
}

int main(int argc, char **argv) {
    crc32c_init();
    uint32_t size = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 0;
    if (argc == 2 && !strcmp(argv[1], "crc")) bench_crc();
    else if (argc == 3 && size > BATCH_HEADER_SIZE && !strcmp(argv[1], "patch")) bench_patch(size);
    else if (argc == 3 && size > BATCH_HEADER_SIZE && !strcmp(argv[1], "pipeline")) bench_pipeline(size);
    else {
        fprintf(stderr, "usage: core_loop crc | patch BATCH_BYTES | pipeline BATCH_BYTES\n");
        return 2;
    }
    return 0;
}
