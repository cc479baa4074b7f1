#include "merge.h"

#include <stdlib.h>

#include "bytes.h"
#include "produce.h"

enum { MERGED_BATCHES_MAX = 4096, MERGED_RUNS_MAX = 4096 };

static int codec_of(const lane_batch *b) { return load_u16(b->bytes + BATCH_ATTRIBUTES) & ATTRIBUTE_CODEC; }

static bool may_go(const lane *l, uint32_t nth) {
    return !l->hold_gaps || nth < l->permitted || !lane_has_gap(lane_at(l, l->send + nth));
}

uint32_t lane_mergeable(const lane *l, int codec) {
    uint64_t bytes = 0, runs = 0, records = 0;
    uint32_t n = 0;
    for (; n < lane_queued(l) && n < MERGED_BATCHES_MAX; n++) {
        const lane_batch *b = lane_at(l, l->send + n);
        bytes += b->size;
        runs += b->run_count;
        records += b->count;
        if (b->size > l->merge_bytes / 2 || bytes > l->merge_bytes) break;
        if (runs > MERGED_RUNS_MAX || records > INT32_MAX) break;
        if (codec_of(b) != codec || !may_go(l, n) || lane_map_full(l, (uint32_t)runs)) break;
    }
    return n;
}

const lane_batch *lane_waiting(const lane *l, uint32_t nth) { return lane_at(l, l->send + nth); }

static void add_run(lane_batch *b, record_run run) {
    record_run *last = b->run_count ? &b->runs[b->run_count - 1] : NULL;
    if (last && last->source_offset + last->count == run.source_offset)
        last->count += run.count;
    else
        b->runs[b->run_count++] = run;
}

static lane_batch joined(const lane *l, uint32_t n, slab *home) {
    lane_batch one = *lane_at(l, l->send + n - 1); /* what it ends with */
    uint32_t runs = 0;
    for (uint32_t i = 0; i < n; i++) runs += lane_at(l, l->send + i)->run_count;
    one.runs = malloc(runs * sizeof *one.runs);
    if (!one.runs) abort(); /* as event_add: what stands where would be forgotten in silence */
    one.run_count = one.count = 0;
    for (uint32_t i = 0; i < n; i++) {
        const lane_batch *b = lane_at(l, l->send + i);
        for (uint32_t j = 0; j < b->run_count; j++) add_run(&one, b->runs ? b->runs[j] : lane_first_run(b));
        one.count += b->count;
        if (b->max_timestamp > one.max_timestamp) one.max_timestamp = b->max_timestamp;
    }
    const lane_batch *first = lane_at(l, l->send);
    one.source_offset = first->source_offset;
    one.sequence = first->sequence;
    one.behind_gap = first->behind_gap;
    one.bytes = home->data;
    one.home = slab_ref(home);
    one.size = home->size;
    return one;
}

void lane_join(lane *l, uint32_t n, slab *home) {
    lane_batch one = joined(l, n, home);
    l->bytes += one.size;
    for (uint32_t i = 0; i < n; i++) lane_release(l, lane_at(l, l->send + i));
    *lane_at(l, l->send + n - 1) = one;
    for (uint32_t i = l->send; i-- != l->head;) *lane_at(l, i + n - 1) = *lane_at(l, i);
    l->head += n - 1;
    l->send += n - 1;
    if (l->permitted) l->permitted = l->permitted > n ? l->permitted - n + 1 : 1;
    l->counters->queued_bytes = l->bytes;
    l->counters->merged_batches += n;
    l->merge_told = false;
    target_offer(l);
}

static bool merge_oldest(lane *l, const merge_part *parts, uint32_t n) {
    uint64_t room = 0;
    for (uint32_t i = 0; i < n; i++)
        room += parts[i].size + (uint64_t)lane_waiting(l, i)->count * MERGE_BYTES_A_RECORD_MAX;
    if (room > l->merge_bytes) room = l->merge_bytes;
    slab *home = slab_acquire(lane_waiting(l, 0)->home->pool, (uint32_t)room);
    if (!home) return false;
    home->size = records_merge(parts, n, home->data, (uint32_t)room);
    bool merged = home->size;
    if (merged) lane_join(l, n, home);
    slab_unref(home);
    return merged;
}

/* Numbers of records and times may take more bytes than the headers that are saved: then fewer batches will do. */
void lane_merge(lane *l) {
    merge_part parts[MERGED_BATCHES_MAX];
    uint32_t n = l->merge_bytes ? lane_mergeable(l, 0) : 0;
    for (uint32_t i = 0; i < n; i++) parts[i] = (merge_part){lane_waiting(l, i)->bytes, lane_waiting(l, i)->size};
    while (n > 1 && !merge_oldest(l, parts, n)) n /= 2;
}

/* A few cost less to send than to open. With nothing in flight the first one should leave now: the others pile up behind it. */
enum { OPENED_BATCHES_MIN = 4 };

bool lane_asks_to_merge(lane *l) {
    if (l->merge_told) return true;
    if (l->merge_declined || l->merges_no_codec || !l->merge_bytes) return false;
    if (!lane_in_flight(l) || !lane_queued(l)) return false;
    int codec = codec_of(lane_next(l));
    if (codec == 0 || lane_mergeable(l, codec) < OPENED_BATCHES_MIN) return false;
    return l->merge_told = true;
}

void lane_merge_declined(lane *l, bool for_good) {
    l->merge_told = false;
    l->merge_declined = true;
    l->merges_no_codec |= for_good;
    target_offer(l);
}
