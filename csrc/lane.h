/* A lane: one source partition to one target partition. Order, sequence numbers and errors live here.
 *
 * Its batches stand in one ring, oldest first:
 *
 *        head             send              tail
 *     ----|--- in flight ---|---- queued -----|----
 *
 * Fetch appends at `tail` (lane_accept), Produce takes at `send` (lane_take), acknowledgements free at `head`
 * (lane_settle). A lane stands in at most one ring of its source (waiting to be fetched) and one of its target
 * (with something to send); both are intrusive links, so joining and leaving are O(1).
 *
 * When anything about a lane is in doubt it is halted: what is queued is dropped, what is in flight is waited for
 * but no longer believed, and the owner reads the target's own log before lane_resume. Nothing is ever sent twice
 * on a guess.
 */
#ifndef REPLICATOR_LANE_H
#define REPLICATOR_LANE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "batch.h"
#include "slab.h"

enum { TOPIC_NAME_MAX = 249, TOPIC_ID_SIZE = 16 }; /* Kafka's Topic.MAX_NAME_LENGTH */

enum { LANE_BATCHES_MAX = 1 << 16 }; /* queued and in flight, however small they are */

typedef struct {
    uint8_t id[TOPIC_ID_SIZE];
    uint16_t length;
    char name[TOPIC_NAME_MAX];
} topic;

/* Where a lane stands for certain: everything below source offset `position` is on the target and acknowledged,
 * `target_next` is the target offset after it, `sequence` the sequence number of the next record. */
typedef struct {
    int64_t position, target_next, sequence;
} checkpoint;

/* One row of shared memory a lane, read by the supervisor while it is written here. `version` grows by one a
 * checkpoint; checkpoints[version & 1] is whole even if this process dies between two stores. */
typedef struct {
    uint64_t version;
    checkpoint checkpoints[2];
    int64_t fetch_offset, stop_offset, high_watermark, last_stable_offset, log_start_offset, max_timestamp;
    uint64_t records, bytes, batches, skipped_batches, queued_bytes;
    int64_t state, reason; /* written by the worker's Python side; see replicator.data.states */
} lane_counters;

typedef struct ring_link {
    struct ring_link *before, *after; /* NULL when in no ring */
} ring_link;

typedef struct {
    uint8_t *bytes;
    slab *home;
    int64_t source_next, max_timestamp; /* the source offset after this batch and what was skipped behind it */
    uint32_t size, count;
} lane_batch;

typedef struct lane {
    ring_link fetchable, sendable;
    struct source *source; /* holds a reference */
    struct target *target; /* holds a reference */
    topic source_topic, target_topic;
    int32_t source_partition, target_partition;
    int32_t leader_epoch;       /* of the source partition, as metadata says; -1 unknown */
    int32_t last_fetched_epoch; /* of the last batch taken in; -1 none yet */
    int64_t producer_id;
    int16_t producer_epoch;
    bool running;  /* between lane_resume and lane_halt */
    bool blocked;  /* met what it cannot take in: sends what it has, fetches no more */
    bool fetching; /* named in an outstanding Fetch */
    bool steady;   /* a batch was acknowledged since lane_resume: see target_offer */
    uint32_t refs, generation;
    int64_t skip_records;  /* the target holds this many records beyond the position already */
    int32_t next_sequence; /* of the next batch taken in */
    uint64_t bytes;        /* queued and in flight */
    lane_batch *batches;
    uint32_t capacity, head, send, tail; /* capacity is a power of two, the cursors run freely */
    lane_counters *counters;
    lane_counters own_counters; /* once it is orphaned */
    void *owner;                /* whoever gets this lane's events; never looked at here */
} lane;

typedef struct {
    const char *source_topic, *target_topic;
    const uint8_t *source_topic_id; /* TOPIC_ID_SIZE bytes, zero when the broker has none */
    int32_t source_partition, target_partition;
    int64_t producer_id;
    int16_t producer_epoch;
    lane_counters *counters; /* until lane_orphan */
    void *owner;
} lane_spec;

/* NULL when a name is longer than TOPIC_NAME_MAX or memory is out. One reference. */
lane *lane_new(const lane_spec *spec);
void lane_unref(lane *l);
static inline lane *lane_ref(lane *l) {
    l->refs++;
    return l;
}

/* From here: the checkpoint, what the target holds beyond it (skip_records, counted in its sequence and log end
 * too), and where to stop. Only for a halted lane with nothing in flight. */
void lane_resume(lane *l, checkpoint from, int64_t skip_records, int64_t stop_offset);

/* Stops fetching and sending, drops what is queued. What is in flight stays until answered or abandoned. */
void lane_halt(lane *l);

/* The owner goes, and its row of counters with it: halts the lane for good, but what is in flight holds it still. */
void lane_orphan(lane *l);

static inline uint32_t lane_in_flight(const lane *l) { return l->send - l->head; }
static inline uint32_t lane_queued(const lane *l) { return l->tail - l->send; }

/* Half free, by bytes and by number: to ask for crumbs would cost a request each. */
static inline bool lane_has_room(const lane *l, uint64_t bytes_max) {
    return l->bytes <= bytes_max / 2 && l->tail - l->head <= LANE_BATCHES_MAX / 2;
}

/* Inspects the batch at p (inside `home`), and takes it in when it passes: re-addressed, with the next sequence,
 * holding a reference to `home`. Skipped batches only move the position. Batches behind what is wanted, or beyond
 * the stop offset, are left out and answered with PASS; one beyond it also says that there is nothing before it any
 * more, so the lane has reached its stop offset. Any verdict but PASS and SKIP_* leaves the lane as it was;
 * the caller must then not offer it a later batch, or there would be a hole. */
verdict lane_accept(lane *l, uint8_t *p, const batch *b, slab *home);

/* The oldest queued batch; lane_take also counts it in flight. Only when lane_queued. */
const lane_batch *lane_next(const lane *l);
const lane_batch *lane_take(lane *l);

/* The oldest batch in flight was appended at target offset base_offset. Returns false, and settles nothing, when
 * that is not where it had to land. */
bool lane_settle(lane *l, int64_t base_offset);

/* The oldest batch in flight will not be settled: answered with an error, or after the lane was halted. */
void lane_forget(lane *l);

static inline const checkpoint *lane_checkpoint(const lane *l) {
    return &l->counters->checkpoints[l->counters->version & 1];
}

/* Rings: a link is its own ring of one when it is a head. */
static inline void ring_init(ring_link *head) { head->before = head->after = head; }
static inline bool ring_empty(const ring_link *head) { return head->after == head; }
static inline void ring_leave(ring_link *link) {
    if (!link->after) return;
    link->before->after = link->after;
    link->after->before = link->before;
    link->before = link->after = NULL;
}
static inline void ring_join(ring_link *head, ring_link *link) {
    if (link->after) return;
    link->before = head->before;
    link->after = head;
    head->before->after = link;
    head->before = link;
}

#define LANE_OF(link, member) ((lane *)((char *)(link) - offsetof(lane, member)))

/* A lane named in a request, as it was then; `order` is its place in the ring it was taken from. */
typedef struct {
    lane *lane; /* holds a reference */
    uint32_t generation, order;
} lane_entry;

/* Brings entries of one topic together, and the entry with order 0 to the front: a broker answers at least one batch
 * for the first partition named, so who waits longest must come first. Returns how many entries to ask for. Those
 * behind them name a partition once more (two lanes may copy it to two targets): a broker keeps only the offset named
 * last, and what the other lane then got would have a hole before it. */
size_t lane_group_by_source(lane_entry *entries, size_t n);

/* Brings entries of one topic together (a broker answers a topic once, however often a Produce request names it), without
 * changing their order inside it. */
void lane_group_by_target(lane_entry *entries, size_t n);

#endif
