#include "lane.h"

#include <stdlib.h>
#include <string.h>

#include "fetch.h"
#include "produce.h"

enum { BATCHES_MIN = 8, BATCHES_MAX = 1 << 16 };

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

void lane_resume(lane *l, checkpoint from, int64_t skip_records, int64_t stop_offset) {
    write_checkpoint(l, from);
    l->counters->fetch_offset = from.position;
    l->counters->stop_offset = stop_offset;
    l->skip_records = skip_records;
    l->next_sequence = sequence_after(from.sequence, skip_records);
    l->blocked = false;
    l->last_fetched_epoch = -1;
    l->running = true;
}

static void drop_queued(lane *l) {
    while (l->tail != l->send) release(l, at(l, --l->tail));
    l->counters->queued_bytes = l->bytes;
}

void lane_halt(lane *l) {
    l->running = false;
    l->generation++;
    ring_leave(&l->fetchable);
    ring_leave(&l->sendable);
    drop_queued(l);
}

static bool grow(lane *l) {
    if (l->tail - l->head < l->capacity) return true;
    if (l->capacity == BATCHES_MAX) return false;
    uint32_t capacity = l->capacity * 2;
    lane_batch *bigger = malloc(capacity * sizeof *bigger);
    if (!bigger) return false;
    for (uint32_t i = l->head; i != l->tail; i++) bigger[i & (capacity - 1)] = *at(l, i);
    free(l->batches);
    l->batches = bigger;
    l->capacity = capacity;
    return true;
}

/* What leaves no trace on the target rides on the batch before it; with none before it, the position moves now. */
static void pass_over(lane *l, int64_t source_next, int64_t records) {
    if (l->tail != l->head) {
        at(l, l->tail - 1)->source_next = source_next;
        return;
    }
    checkpoint c = *lane_checkpoint(l);
    c.position = source_next;
    c.target_next += records;
    c.sequence = sequence_after(c.sequence, records);
    write_checkpoint(l, c);
}

static void append(lane *l, uint8_t *p, const batch *b, slab *home, int64_t source_next) {
    batch_readdress(p, b->size, l->producer_id, l->producer_epoch, l->next_sequence);
    *at(l, l->tail++) = (lane_batch){.bytes = p,
                                     .home = slab_ref(home),
                                     .source_next = source_next,
                                     .max_timestamp = b->max_timestamp,
                                     .size = b->size,
                                     .count = (uint32_t)b->count};
    l->next_sequence = sequence_after(l->next_sequence, b->count);
    l->bytes += b->size;
    l->counters->queued_bytes = l->bytes;
    target_offer(l);
}

verdict lane_accept(lane *l, uint8_t *p, const batch *b, slab *home) {
    int64_t wanted = l->counters->fetch_offset;
    int64_t source_next = b->base_offset + (b->magic == 2 ? b->last_offset_delta : 0) + 1;
    if (b->base_offset >= l->counters->stop_offset) return PASS;
    verdict v = batch_inspect(b, wanted);
    if (v != REFUSE_MALFORMED && v != REBUILD_MAGIC && source_next <= wanted) return PASS;
    if (v > SKIP_EMPTY) return v;
    if (v == PASS && l->skip_records) {
        if (b->count > l->skip_records) return REFUSE_TAIL;
        l->skip_records -= b->count;
        pass_over(l, source_next, b->count);
    } else if (v == PASS) {
        if (!grow(l)) return NO_ROOM;
        append(l, p, b, home, source_next);
    } else {
        l->counters->skipped_batches++;
        pass_over(l, source_next, 0);
    }
    l->counters->fetch_offset = source_next;
    l->last_fetched_epoch = b->leader_epoch;
    return v;
}

const lane_batch *lane_next(const lane *l) { return at(l, l->send); }

const lane_batch *lane_take(lane *l) { return at(l, l->send++); }

void lane_forget(lane *l) {
    release(l, at(l, l->head++));
    l->counters->queued_bytes = l->bytes;
}

bool lane_settle(lane *l, int64_t base_offset) {
    lane_batch *b = at(l, l->head);
    checkpoint c = *lane_checkpoint(l);
    if (base_offset != c.target_next) return false;
    c.position = b->source_next;
    c.target_next += b->count;
    c.sequence = sequence_after(c.sequence, b->count);
    l->counters->records += b->count;
    l->counters->bytes += b->size;
    l->counters->batches++;
    l->counters->max_timestamp = b->max_timestamp;
    lane_forget(l);
    write_checkpoint(l, c);
    return true;
}

static int compare(const topic *left, const topic *right, uint32_t left_order, uint32_t right_order) {
    if (left->length != right->length) return left->length < right->length ? -1 : 1;
    int names = memcmp(left->name, right->name, left->length);
    if (names) return names;
    return left_order < right_order ? -1 : left_order > right_order;
}

static int by_source_topic(const void *left, const void *right) {
    const lane_entry *a = left, *b = right;
    return compare(&a->lane->source_topic, &b->lane->source_topic, a->order, b->order);
}

static int by_target_topic(const void *left, const void *right) {
    const lane_entry *a = left, *b = right;
    return compare(&a->lane->target_topic, &b->lane->target_topic, a->order, b->order);
}

static void reverse(lane_entry *entries, size_t from, size_t to) {
    while (from + 1 < to) {
        lane_entry e = entries[from];
        entries[from++] = entries[--to];
        entries[to] = e;
    }
}

static void rotate_first_to_front(lane_entry *entries, size_t n) {
    size_t first = 0;
    while (first < n && entries[first].order) first++;
    reverse(entries, 0, first);
    reverse(entries, first, n);
    reverse(entries, 0, n);
}

void lane_group_by_source(lane_entry *entries, size_t n) {
    qsort(entries, n, sizeof *entries, by_source_topic);
    rotate_first_to_front(entries, n);
}

void lane_group_by_target(lane_entry *entries, size_t n) { qsort(entries, n, sizeof *entries, by_target_topic); }
