#include "lane.h"

#include <stdlib.h>
#include <string.h>

#include "fetch.h"
#include "produce.h"

enum { BATCHES_MIN = 8 };

static bool set_topic(topic *t, const char *name, const uint8_t *id) {
    size_t length = strlen(name);
    if (!length || length > TOPIC_NAME_MAX) return false;
    t->length = (uint16_t)length;
    memcpy(t->name, name, length);
    if (id) memcpy(t->id, id, TOPIC_ID_SIZE);
    return true;
}

lane *lane_new(const lane_spec *spec) {
    lane *l = calloc(1, sizeof *l);
    if (!l) return NULL;
    l->batches = malloc(BATCHES_MIN * sizeof *l->batches);
    if (!l->batches || !set_topic(&l->source_topic, spec->source_topic, spec->source_topic_id) ||
        !set_topic(&l->target_topic, spec->target_topic, NULL)) {
        free(l->batches);
        free(l);
        return NULL;
    }
    l->capacity = BATCHES_MIN;
    l->source_partition = spec->source_partition;
    l->target_partition = spec->target_partition;
    l->leader_epoch = l->last_fetched_epoch = -1;
    l->producer_id = spec->producer_id;
    l->producer_epoch = spec->producer_epoch;
    l->hold_gaps = spec->hold_gaps;
    l->tolerate = spec->tolerate;
    l->counters = spec->counters;
    l->owner = spec->owner;
    l->refs = 1;
    return l;
}

static lane_batch *at(const lane *l, uint32_t cursor) { return &l->batches[cursor & (l->capacity - 1)]; }

static void release(lane *l, lane_batch *b) {
    l->bytes -= b->size;
    slab_unref(b->home);
}

void lane_unref(lane *l) {
    if (--l->refs) return;
    source_set(l, NULL, -1);
    target_set(l, NULL);
    while (l->tail != l->head) release(l, at(l, --l->tail));
    segments_free(&l->segments);
    free(l->batches);
    free(l);
}

/* Other processes read the row: the new checkpoint is whole before the version names it. */
static void write_checkpoint(lane *l, checkpoint c) {
    lane_counters *row = l->counters;
    row->checkpoints[(row->version + 1) & 1] = c;
    __atomic_store_n(&row->version, row->version + 1, __ATOMIC_RELEASE);
}

static int32_t sequence_after(int64_t sequence, int64_t count) { return (int32_t)((sequence + count) & INT32_MAX); }

/* The position moves on over `records`, which end before target_next. */
static void advance(lane *l, int64_t position, int64_t target_next, int64_t records, int32_t leader_epoch) {
    int32_t sequence = sequence_after(lane_checkpoint(l)->sequence, records);
    write_checkpoint(l, (checkpoint){position, target_next, sequence, leader_epoch});
}

void lane_resume(lane *l, checkpoint from, int64_t skip_records, int64_t stop_offset, segments map) {
    write_checkpoint(l, from);
    segments_free(&l->segments);
    l->segments = map;
    l->run_end = map.count ? segments_source_end(&map) : from.position;
    l->counters->fetch_offset = from.position;
    l->counters->stop_offset = stop_offset;
    l->skip_records = skip_records;
    l->next_sequence = sequence_after(from.sequence, skip_records);
    l->blocked = l->steady = false;
    l->last_fetched_epoch = (int32_t)from.leader_epoch;
    l->running = true;
}

static void drop_queued(lane *l) {
    while (l->tail != l->send) release(l, at(l, --l->tail));
    l->counters->queued_bytes = l->bytes;
    l->permitted = 0;
    l->announced = false;
}

void lane_halt(lane *l) {
    l->running = false;
    l->generation++;
    ring_leave(&l->fetchable);
    ring_leave(&l->sendable);
    drop_queued(l);
}

void lane_orphan(lane *l) {
    lane_halt(l);
    source_set(l, NULL, -1);
    l->owner = NULL;
    l->own_counters = *l->counters;
    l->counters = &l->own_counters;
}

static bool grow(lane *l) {
    if (l->tail - l->head < l->capacity) return true;
    if (l->capacity == LANE_BATCHES_MAX) return false;
    uint32_t capacity = l->capacity * 2;
    lane_batch *bigger = malloc(capacity * sizeof *bigger);
    if (!bigger) return false;
    for (uint32_t i = l->head; i != l->tail; i++) bigger[i & (capacity - 1)] = *at(l, i);
    free(l->batches);
    l->batches = bigger;
    l->capacity = capacity;
    return true;
}

/* These records are on the target. The map of a lane that does not hold gaps is nobody's to read: it forgets. */
static bool map_records(lane *l, int64_t source, int64_t target, int64_t count) {
    if (l->segments.count == SEGMENTS_MAX && !l->hold_gaps) segments_drop(&l->segments, SEGMENTS_MAX / 2);
    return segments_add(&l->segments, source, target, count);
}

/* What leaves no trace on the target rides on the batch before it; with none before it, the position moves now. */
static void pass_over(lane *l, int64_t source_next, int32_t leader_epoch) {
    if (l->tail == l->head) {
        advance(l, source_next, lane_checkpoint(l)->target_next, 0, leader_epoch);
        return;
    }
    lane_batch *before = at(l, l->tail - 1);
    before->source_next = source_next;
    before->leader_epoch = leader_epoch;
}

/* The target holds this batch already. Nothing stands before it: while records are to be skipped, nothing is queued. */
static verdict recognise(lane *l, const batch *b, int64_t source_next) {
    if (b->count > l->skip_records) return REFUSE_TAIL;
    int64_t target = lane_checkpoint(l)->target_next;
    if (!map_records(l, b->base_offset, target, b->count)) return NO_ROOM;
    l->skip_records -= b->count;
    l->run_end = source_next;
    advance(l, source_next, target + b->count, b->count, b->leader_epoch);
    return PASS;
}

static verdict append(lane *l, uint8_t *p, const batch *b, slab *home, int64_t source_next) {
    if (!grow(l)) return NO_ROOM;
    batch_readdress(p, b->size, l->producer_id, l->producer_epoch, l->next_sequence);
    *at(l, l->tail++) = (lane_batch){.bytes = p,
                                     .home = slab_ref(home),
                                     .source_offset = b->base_offset,
                                     .source_next = source_next,
                                     .max_timestamp = b->max_timestamp,
                                     .size = b->size,
                                     .count = (uint32_t)b->count,
                                     .sequence = l->next_sequence,
                                     .leader_epoch = b->leader_epoch,
                                     .behind_gap = b->base_offset != l->run_end};
    l->run_end = source_next;
    l->next_sequence = sequence_after(l->next_sequence, b->count);
    l->bytes += b->size;
    l->counters->queued_bytes = l->bytes;
    target_offer(l);
    return PASS;
}

/* A batch beyond the stop offset has come, so compaction left nothing between the one before it and there. Its epoch is
 * known to reach that far; that of the one before may have ended earlier. */
static verdict reach_stop(lane *l, const batch *beyond) {
    if (l->skip_records) return REFUSE_TAIL;
    l->counters->fetch_offset = l->counters->stop_offset;
    pass_over(l, l->counters->stop_offset, beyond->leader_epoch);
    return PASS;
}

verdict lane_accept(lane *l, uint8_t *p, const batch *b, slab *home) {
    int64_t wanted = l->counters->fetch_offset, stop = l->counters->stop_offset;
    if (wanted >= stop) return PASS;
    verdict v = batch_inspect(b, wanted);
    if (v == REFUSE_MALFORMED || v == REBUILD_MAGIC) return v; /* says nothing to rely on about its offsets */
    if (b->base_offset >= stop) return reach_stop(l, b);
    int64_t source_next = b->base_offset + b->last_offset_delta + 1;
    if (source_next <= wanted) return PASS;
    if (v == PASS) v = l->skip_records ? recognise(l, b, source_next) : append(l, p, b, home, source_next);
    if (v > SKIP_EMPTY) return v;
    if (v != PASS) {
        l->counters->skipped_batches++;
        pass_over(l, source_next, b->leader_epoch);
    }
    l->counters->fetch_offset = source_next;
    l->last_fetched_epoch = b->leader_epoch;
    return v;
}

/* ---- gaps ---- */

bool lane_announces(lane *l, int64_t *source_offset) {
    if (!l->hold_gaps || l->announced || lane_queued(l) <= l->permitted) return false;
    const lane_batch *last = at(l, l->tail - 1);
    if (!last->behind_gap) return false;
    *source_offset = last->source_offset;
    l->announced = true;
    return true;
}

const lane_batch *lane_ahead(const lane *l, uint32_t *cursor) {
    while (*cursor != l->tail) {
        const lane_batch *b = at(l, (*cursor)++);
        if (b->behind_gap) return b;
    }
    return NULL;
}

bool lane_permit(lane *l, uint64_t cursor) {
    if (cursor >> 32 != l->generation) return l->announced;
    uint32_t queued = (uint32_t)cursor - l->send;
    if (queued <= lane_queued(l) && queued > l->permitted) l->permitted = queued; /* else: all of them are sent by now */
    target_offer(l);
    uint32_t behind = l->send + l->permitted;
    l->announced = lane_ahead(l, &behind) != NULL;
    return l->announced;
}

void lane_drop_segments(lane *l, uint32_t n) {
    segments_drop(&l->segments, n);
    target_offer(l);
    source_offer(l);
}

bool lane_may_send(const lane *l) {
    if (!l->running || !lane_queued(l) || (!l->steady && lane_in_flight(l))) return false;
    if (!l->hold_gaps) return true;
    bool behind_gap = lane_next(l)->behind_gap;
    if (behind_gap && !l->permitted) return false;
    bool own_segment = behind_gap || l->tolerate || !l->steady; /* may need one, that is */
    return !own_segment || !lane_map_full(l);
}

/* ---- sending ---- */

const lane_batch *lane_next(const lane *l) { return at(l, l->send); }

const lane_batch *lane_take(lane *l) {
    if (l->permitted) l->permitted--;
    return at(l, l->send++);
}

void lane_forget(lane *l) {
    release(l, at(l, l->head++));
    l->counters->queued_bytes = l->bytes;
}

bool lane_settle(lane *l, int64_t base_offset) {
    lane_batch *b = at(l, l->head);
    int64_t due = lane_checkpoint(l)->target_next;
    if (base_offset != due && !(l->tolerate && base_offset > due)) return false;
    if (!map_records(l, b->source_offset, base_offset, b->count)) return false;
    l->counters->records += b->count;
    l->counters->bytes += b->size;
    l->counters->batches++;
    l->counters->max_timestamp = b->max_timestamp;
    advance(l, b->source_next, base_offset + b->count, b->count, b->leader_epoch);
    lane_forget(l);
    l->steady = true;
    return true;
}

/* ---- grouping ---- */

static int compare_topics(const topic *left, const topic *right) {
    if (left->length != right->length) return left->length < right->length ? -1 : 1;
    return memcmp(left->name, right->name, left->length);
}

static int compare_numbers(int64_t left, int64_t right) { return (left > right) - (left < right); }

static int by_source_partition(const void *left, const void *right) {
    const lane_entry *a = left, *b = right;
    int order = compare_topics(&a->lane->source_topic, &b->lane->source_topic);
    if (!order) order = compare_numbers(a->lane->source_partition, b->lane->source_partition);
    return order ? order : compare_numbers(a->order, b->order);
}

static int by_target_topic(const void *left, const void *right) {
    const lane_entry *a = left, *b = right;
    int order = compare_topics(&a->lane->target_topic, &b->lane->target_topic);
    return order ? order : compare_numbers(a->order, b->order);
}

static bool share_topic(const lane_entry *a, const lane_entry *b) {
    return !compare_topics(&a->lane->source_topic, &b->lane->source_topic);
}

static void swap(lane_entry *a, lane_entry *b) {
    lane_entry e = *a;
    *a = *b;
    *b = e;
}

static void reverse(lane_entry *entries, size_t from, size_t to) {
    while (from + 1 < to) swap(&entries[from++], &entries[--to]);
}

static void rotate_to_front(lane_entry *entries, size_t n, size_t first) {
    reverse(entries, 0, first);
    reverse(entries, first, n);
    reverse(entries, 0, n);
}

/* Of sorted entries, moves those whose partition the entry before them names already behind the others. */
static size_t part_twins(lane_entry *entries, size_t n) {
    size_t kept = 1;
    for (size_t i = 1; i < n; i++) {
        const lane_entry *last = &entries[kept - 1];
        if (share_topic(last, &entries[i]) && last->lane->source_partition == entries[i].lane->source_partition)
            continue;
        swap(&entries[kept++], &entries[i]);
    }
    return kept;
}

size_t lane_group_by_source(lane_entry *entries, size_t n) {
    if (!n) return 0;
    qsort(entries, n, sizeof *entries, by_source_partition);
    n = part_twins(entries, n);
    size_t first = 0;
    while (entries[first].order) first++;
    size_t from = first, to = first + 1;
    while (from && share_topic(&entries[from - 1], &entries[first])) from--;
    while (to < n && share_topic(&entries[to], &entries[first])) to++;
    rotate_to_front(entries + from, to - from, first - from);
    rotate_to_front(entries, n, from);
    return n;
}

void lane_group_by_target(lane_entry *entries, size_t n) { qsort(entries, n, sizeof *entries, by_target_topic); }
