#include "lane.h"

#include <stdlib.h>
#include <string.h>

#include "bytes.h"
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
    l->terms = spec->terms;
    l->merge_bytes = spec->merge_bytes;
    l->producers = spec->producers ? producers_ref(spec->producers) : NULL;
    l->counters = spec->counters;
    l->owner = spec->owner;
    l->refs = 1;
    return l;
}

static int64_t records_end(const lane_batch *b) {
    record_run last = b->runs ? b->runs[b->run_count - 1] : lane_first_run(b);
    return last.source_offset + last.count;
}

void lane_unref(lane *l) {
    if (--l->refs) return;
    source_set(l, NULL, -1);
    target_set(l, NULL);
    while (l->tail != l->head) lane_release(l, lane_at(l, --l->tail));
    segments_free(&l->segments);
    free(l->refused.records);
    if (l->producers) producers_unref(l->producers);
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
    while (l->tail != l->send) lane_release(l, lane_at(l, --l->tail));
    l->ready = l->send;
    l->counters->queued_bytes = l->bytes;
    l->permitted = 0;
    l->announced = l->gap_waits = l->raw_told = l->ripe = l->linger_told = l->merge_told = l->merge_declined = false;
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

static bool grow(lane *l, uint32_t more) {
    uint32_t needed = l->tail - l->head + more, capacity = l->capacity;
    if (needed <= capacity) return true;
    if (needed > LANE_BATCHES_MAX) return false;
    while (capacity < needed) capacity *= 2;
    lane_batch *bigger = malloc(capacity * sizeof *bigger);
    if (!bigger) return false;
    for (uint32_t i = l->head; i != l->tail; i++) bigger[i & (capacity - 1)] = *lane_at(l, i);
    free(l->batches);
    l->batches = bigger;
    l->capacity = capacity;
    return true;
}

/* This batch's records are on the target. The map of a lane that does not hold gaps is nobody's to read: it forgets. */
static bool map_batch(lane *l, const lane_batch *b, int64_t target) {
    bool full = l->segments.count + b->run_count > SEGMENTS_MAX;
    if (full && !l->hold_gaps) segments_drop(&l->segments, SEGMENTS_MAX / 2);
    else if (full && b->run_count > 1) return false; /* all of them, or none; a single one may still join the last */
    if (!b->runs) return segments_add(&l->segments, b->source_offset, target, b->count);
    for (uint32_t i = 0; i < b->run_count; target += b->runs[i++].count)
        if (!segments_add(&l->segments, b->runs[i].source_offset, target, b->runs[i].count)) return false;
    return true;
}

/* What leaves no trace on the target rides on the batch before it; with none before it, the position moves now. */
static void pass_over(lane *l, int64_t source_next, int32_t leader_epoch) {
    if (l->tail == l->head) {
        advance(l, source_next, lane_checkpoint(l)->target_next, 0, leader_epoch);
        return;
    }
    lane_batch *before = lane_at(l, l->tail - 1);
    before->source_next = source_next;
    before->leader_epoch = leader_epoch;
}

/* The target holds the oldest raw batch already. Nothing stands before it: while records are to be skipped, nothing is
 * queued. */
static verdict recognise(lane *l) {
    lane_batch *b = lane_at(l, l->ready);
    if (b->count > l->skip_records) return REFUSE_TAIL;
    int64_t target = lane_checkpoint(l)->target_next;
    if (!map_batch(l, b, target)) return NO_ROOM;
    l->skip_records -= b->count;
    l->run_end = records_end(b);
    advance(l, b->source_next, target + b->count, b->count, b->leader_epoch);
    lane_release(l, b);
    l->counters->queued_bytes = l->bytes;
    l->head = l->send = ++l->ready;
    return PASS;
}

/* The oldest raw batch joins the queue, if it need not be opened (any more): it is known now which sequences are its own. */
static verdict seal(lane *l) {
    if (l->skip_records) return recognise(l);
    lane_batch *b = lane_at(l, l->ready++);
    batch_readdress(b->bytes, b->size, l->producer_id, l->producer_epoch, l->next_sequence);
    b->sequence = l->next_sequence;
    b->number = l->next_number++;
    b->behind_gap = lane_first_run(b).source_offset != l->run_end;
    l->gap_waits |= lane_has_gap(b);
    l->ripe |= l->bytes >= l->merge_bytes; /* for good: merged, they will have fewer bytes */
    l->run_end = records_end(b);
    l->next_sequence = sequence_after(l->next_sequence, b->count);
    target_offer(l);
    return PASS;
}

static void drop_newest(lane *l) {
    lane_release(l, lane_at(l, --l->tail));
    l->counters->queued_bytes = l->bytes;
}

static verdict take(lane *l, uint8_t *p, const batch *b, slab *home, verdict why) {
    if (!grow(l, 1)) return NO_ROOM;
    int64_t wanted = l->counters->fetch_offset;
    *lane_at(l, l->tail++) = (lane_batch){.bytes = p,
                                          .home = slab_ref(home),
                                          .source_offset = b->base_offset < wanted ? wanted : b->base_offset,
                                          .source_next = b->base_offset + b->last_offset_delta + 1,
                                          .max_timestamp = b->max_timestamp,
                                          .size = b->size,
                                          .count = (uint32_t)b->count,
                                          .run_count = 1,
                                          .leader_epoch = b->leader_epoch,
                                          .why = why};
    l->bytes += b->size;
    l->counters->queued_bytes = l->bytes;
    if (why != PASS || lane_raw_count(l) > 1) return PASS;
    verdict sealed = seal(l);
    if (sealed != PASS) drop_newest(l);
    return sealed;
}

/* A batch beyond the stop offset has come, so compaction left nothing between the one before it and there. Its epoch is
 * known to reach that far; that of the one before may have ended earlier. */
static verdict reach_stop(lane *l, const batch *beyond) {
    if (l->skip_records && !lane_raw_count(l)) return REFUSE_TAIL;
    l->counters->fetch_offset = l->counters->stop_offset;
    pass_over(l, l->counters->stop_offset, beyond->leader_epoch);
    return PASS;
}

/* A producer that is not in the table. Notes what the answer will tell of others besides. */
static bool has_to_ask(lane *l, const batch *b) {
    bool was_there = b->base_offset < l->known_below && b->leader_epoch <= l->known_epoch;
    if (was_there && b->leader_epoch >= 0) return false;
    l->asked_below = l->counters->high_watermark;
    l->asked_epoch = b->leader_epoch;
    return true;
}

/* Whoever wrote a batch of records may be a link. */
static verdict judge_producer(lane *l, const batch *b, verdict v) {
    if (!l->producers || verdict_skips(v)) return v;
    switch (producers_find(l->producers, b->producer_id)) {
        case PRODUCER_UNKNOWN: return has_to_ask(l, b) ? REFUSE_PRODUCER : v;
        case PRODUCER_SKIPPED: return SKIP_LOOP;
        case PRODUCER_OPENED: return verdict_opens(v) ? v : REBUILD_LOOP;
        case PRODUCER_OWN: break;
    }
    return v;
}

void lane_unblock(lane *l, bool looked) {
    if (looked) {
        l->known_below = l->asked_below;
        l->known_epoch = l->asked_epoch;
    }
    l->blocked = false;
    source_offer(l);
}

verdict lane_accept(lane *l, uint8_t *p, const batch *b, slab *home, bool aborted) {
    int64_t wanted = l->counters->fetch_offset, stop = l->counters->stop_offset;
    if (wanted >= stop) return PASS;
    verdict v = batch_inspect(b, wanted, &l->terms);
    if (verdict_refuses(v)) return v; /* says nothing to rely on about its offsets */
    if (b->base_offset >= stop) return reach_stop(l, b);
    int64_t source_next = b->base_offset + b->last_offset_delta + 1;
    if (source_next <= wanted) return PASS;
    if (aborted && !verdict_skips(v)) v = SKIP_ABORTED;
    v = judge_producer(l, b, v);
    if (verdict_refuses(v)) return v;
    if (verdict_skips(v)) {
        l->counters->skipped_batches++;
        pass_over(l, source_next, b->leader_epoch);
    } else {
        verdict taken = take(l, p, b, home, v);
        if (taken != PASS) return taken;
    }
    l->counters->verdicts[v]++;
    l->counters->fetch_offset = source_next;
    l->last_fetched_epoch = b->leader_epoch;
    return v;
}

/* ---- raw batches ---- */

bool lane_asks_to_open(lane *l) {
    if (l->raw_told || !lane_raw_count(l)) return false;
    return l->raw_told = true;
}

const lane_batch *lane_raw(const lane *l, uint32_t nth) {
    return nth < lane_raw_count(l) ? lane_at(l, l->ready + nth) : NULL;
}

/* What is passed over goes on the map at once: whether that has room for these, in the place of the oldest raw batch, and for
 * what waits behind it. All of it, or nothing is done: an owner counts on that what waited behind a batch goes with it. */
static bool map_has_room(const lane *l, const rebuilt *made, uint32_t n) {
    if (!l->skip_records || !l->hold_gaps) return true;
    uint64_t runs = 0;
    int64_t left = l->skip_records, end = l->run_end;
    for (uint32_t i = 0; i < n; left -= made[i++].count) runs += made[i].run_count;
    for (uint32_t i = 0; i < n; i++) {
        record_run last = made[i].runs[made[i].run_count - 1];
        end = last.source_offset + last.count;
    }
    for (uint32_t i = l->ready + 1; i != l->tail && left > 0 && lane_at(l, i)->why == PASS; i++) {
        const lane_batch *b = lane_at(l, i);
        runs += b->source_offset != end;
        end = records_end(b);
        left -= b->count;
    }
    return l->segments.count + runs <= SEGMENTS_MAX;
}

/* What only waited for those before it joins the queue. */
static verdict seal_waiting(lane *l) {
    while (lane_raw_count(l) && lane_at(l, l->ready)->why == PASS) {
        verdict v = seal(l);
        if (v != PASS) return v;
    }
    l->counters->queued_bytes = l->bytes;
    source_offer(l);
    if (lane_raw_count(l)) return PASS;
    l->raw_told = false;
    return l->skip_records && l->counters->fetch_offset >= l->counters->stop_offset ? REFUSE_TAIL : PASS;
}

/* The oldest raw batch leaves nothing: the position moves over it with the batch before it. */
static void vanish(lane *l) {
    lane_batch raw = *lane_at(l, l->ready);
    lane_release(l, &raw);
    if (l->ready == l->head) {
        advance(l, raw.source_next, lane_checkpoint(l)->target_next, 0, raw.leader_epoch);
    } else {
        lane_batch *before = lane_at(l, l->ready - 1);
        before->source_next = raw.source_next;
        before->leader_epoch = raw.leader_epoch;
        for (uint32_t i = l->ready; i != l->head; i--) *lane_at(l, i) = *lane_at(l, i - 1);
    }
    l->head++;
    l->send++;
    l->ready++;
}

static record_run *copy_runs(const record_run *runs, uint32_t n) {
    record_run *copy = malloc(n * sizeof *copy);
    if (!copy) abort(); /* as event_add: what stands where would be forgotten in silence */
    memcpy(copy, runs, n * sizeof *copy);
    return copy;
}

static lane_batch of_rebuilt(const rebuilt *made) {
    return (lane_batch){.bytes = made->home->data,
                        .home = slab_ref(made->home),
                        .runs = copy_runs(made->runs, made->run_count),
                        .run_count = made->run_count,
                        .source_offset = made->runs[0].source_offset,
                        .max_timestamp = made->max_timestamp,
                        .size = made->home->size,
                        .count = made->count,
                        .why = PASS};
}

verdict lane_replace(lane *l, const rebuilt *made, uint32_t n) {
    if (!map_has_room(l, made, n)) return NO_ROOM;
    if (!n) {
        vanish(l);
        return seal_waiting(l);
    }
    if (!grow(l, n - 1)) return NO_ROOM;
    lane_batch raw = *lane_at(l, l->ready);
    int32_t epoch = (int32_t)load_u32(raw.bytes + BATCH_LEADER_EPOCH); /* what was passed over behind it may have another */
    for (uint32_t i = l->tail - 1; i != l->ready; i--) *lane_at(l, i + n - 1) = *lane_at(l, i);
    l->tail += n - 1;
    for (uint32_t i = 0; i < n; i++) {
        lane_batch *b = lane_at(l, l->ready + i);
        *b = of_rebuilt(&made[i]);
        b->leader_epoch = i + 1 < n ? epoch : raw.leader_epoch;
        b->source_next = i + 1 < n ? records_end(b) : raw.source_next;
        l->bytes += b->size;
    }
    lane_release(l, &raw);
    return seal_waiting(l);
}

verdict lane_pass(lane *l) {
    lane_batch *raw = lane_at(l, l->ready);
    record_run run = lane_first_run(raw);
    rebuilt same = {.runs = &run, .run_count = 1, .count = raw->count};
    if (!map_has_room(l, &same, 1)) return NO_ROOM;
    raw->why = PASS;
    return seal_waiting(l);
}

/* ---- gaps ---- */

bool lane_announces(lane *l, int64_t *source_offset) {
    if (!l->hold_gaps || l->announced || !l->gap_waits) return false;
    uint32_t cursor = l->send + l->permitted;
    const lane_batch *waits = lane_ahead(l, &cursor);
    l->gap_waits = false;
    if (!waits) return false;
    *source_offset = waits->source_offset;
    return l->announced = true;
}

const lane_batch *lane_ahead(const lane *l, uint32_t *cursor) {
    while (*cursor != l->ready) {
        const lane_batch *b = lane_at(l, (*cursor)++);
        if (lane_has_gap(b)) return b;
    }
    return NULL;
}

/* Numbers, not places in the ring: those move when batches are merged, or leave nothing. */
uint64_t lane_mark(const lane *l, uint32_t cursor) {
    uint32_t number = cursor == l->head ? l->next_number - (l->ready - l->head) : lane_at(l, cursor - 1)->number + 1;
    return (uint64_t)l->generation << 32 | number;
}

bool lane_permit(lane *l, uint64_t mark) {
    if (mark >> 32 != l->generation || (int32_t)((uint32_t)mark - l->next_number) > 0) return l->announced;
    while (l->permitted < lane_queued(l) &&
           (int32_t)(lane_at(l, l->send + l->permitted)->number - (uint32_t)mark) < 0)
        l->permitted++;
    target_offer(l);
    uint32_t behind = l->send + l->permitted;
    l->gap_waits = false;
    l->announced = lane_ahead(l, &behind) != NULL;
    return l->announced;
}

void lane_drop_segments(lane *l, uint32_t n) {
    segments_drop(&l->segments, n);
    target_offer(l);
    source_offer(l);
}

static bool waits_for_company(const lane *l) { return l->lingers && !l->ripe; }

bool lane_may_send(const lane *l) {
    if (!l->running || !lane_queued(l) || (!l->steady && lane_in_flight(l)) || waits_for_company(l)) return false;
    if (!l->hold_gaps) return true;
    const lane_batch *b = lane_next(l);
    if (lane_has_gap(b) && !l->permitted) return false;
    bool own_segment = lane_has_gap(b) || l->tolerate || !l->steady; /* may need one, that is */
    return !own_segment || !lane_map_full(l, b->run_count);
}

/* ---- lingering ---- */

bool lane_asks_for_time(lane *l) {
    if (l->linger_told || !lane_queued(l) || !waits_for_company(l)) return false;
    return l->linger_told = true;
}

void lane_linger(lane *l, bool lingers) {
    l->lingers = lingers;
    target_offer(l);
}

void lane_ripen(lane *l) {
    l->ripe = lane_queued(l);
    l->linger_told = false;
    target_offer(l);
}

/* ---- sending ---- */

const lane_batch *lane_next(const lane *l) { return lane_at(l, l->send); }

const lane_batch *lane_take(lane *l) {
    if (l->permitted) l->permitted--;
    l->merge_declined = false;
    lane_batch *b = lane_at(l, l->send++);
    l->runs_in_flight += b->run_count;
    l->ripe &= lane_queued(l) != 0;
    return b;
}

void lane_forget(lane *l) {
    lane_batch *b = lane_at(l, l->head++);
    l->runs_in_flight -= b->run_count;
    lane_release(l, b);
    l->counters->queued_bytes = l->bytes;
}

/* ---- settling ---- */

uint32_t lane_note_refused(lane *l, uint32_t records_max) {
    const lane_batch *b = lane_at(l, l->head);
    if (records_max > b->count) records_max = b->count;
    refused_record *records = realloc(l->refused.records, (records_max + 1) * sizeof *records);
    if (!records) abort(); /* as event_add */
    l->refused = (refused_batch){lane_first_run(b).source_offset, b->source_next, b->count, b->size, records, 0};
    return records_max;
}

int64_t lane_record_offset(const lane *l, int32_t nth) {
    const lane_batch *b = lane_at(l, l->head);
    if (nth < 0 || (uint32_t)nth >= b->count) return -1;
    for (uint32_t i = 0; b->runs && i < b->run_count; nth -= b->runs[i++].count)
        if (nth < b->runs[i].count) return b->runs[i].source_offset + nth;
    return b->source_offset + nth;
}

bool lane_settle(lane *l, int64_t base_offset) {
    lane_batch *b = lane_at(l, l->head);
    int64_t due = lane_checkpoint(l)->target_next;
    if (base_offset != due && !(l->tolerate && base_offset > due)) return false;
    if (!map_batch(l, b, base_offset)) return false;
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
