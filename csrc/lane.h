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
 *
 * What that log holds beyond the checkpoint is told by sequence numbers, which count records. As long as the source's
 * offsets run on, they tell the source offset as well; a batch that is `behind_gap` breaks that. With `hold_gaps` it is
 * not sent before its owner has written down which source offset its sequence stands for: GAP_AHEAD tells the owner,
 * lane_ahead what there is to write, lane_permit lets it go.
 */
#ifndef REPLICATOR_LANE_H
#define REPLICATOR_LANE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "batch.h"
#include "segments.h"
#include "slab.h"

enum { TOPIC_NAME_MAX = 249, TOPIC_ID_SIZE = 16 }; /* Kafka's Topic.MAX_NAME_LENGTH */

enum { LANE_BATCHES_MAX = 1 << 16 }; /* queued and in flight, however small they are */

typedef struct {
    uint8_t id[TOPIC_ID_SIZE];
    uint16_t length;
    char name[TOPIC_NAME_MAX];
} topic;

/* Where a lane stands for certain: everything below source offset `position` is on the target and acknowledged,
 * `target_next` is the target offset after it, `sequence` the sequence number of the next record, `leader_epoch` that of
 * the source's batch which ends at `position` (-1: unknown). */
typedef struct {
    int64_t position, target_next, sequence, leader_epoch;
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
    int64_t source_offset, source_next; /* where it begins, and where the source goes on behind it and what was skipped */
    int64_t max_timestamp;
    uint32_t size, count;
    int32_t sequence, leader_epoch; /* the epoch goes with source_next */
    bool behind_gap;                /* the source has no record right before it that is on its way, or on the target */
} lane_batch;

typedef struct lane {
    ring_link fetchable, sendable;
    struct source *source; /* holds a reference */
    struct target *target; /* holds a reference */
    topic source_topic, target_topic;
    int32_t source_partition, target_partition;
    int32_t leader_epoch;       /* of the source partition, as metadata says; -1 unknown */
    int32_t last_fetched_epoch; /* of the last batch taken in, or as the checkpoint says; -1 unknown */
    int64_t producer_id;
    int16_t producer_epoch;
    bool running;  /* between lane_resume and lane_halt */
    bool blocked;  /* met what it cannot take in: sends what it has, fetches no more */
    bool fetching; /* named in an outstanding Fetch */
    bool steady;   /* a batch was acknowledged since lane_resume: see lane_may_send */
    bool hold_gaps, tolerate; /* see lane_spec */
    bool announced;           /* GAP_AHEAD was told, and lane_permit has not caught up since */
    uint32_t permitted;       /* of the queued batches, the oldest: may go even behind a gap */
    uint32_t refs, generation;
    int64_t skip_records;  /* the target holds this many records beyond the position already */
    int32_t next_sequence; /* of the next batch taken in */
    int64_t run_end;       /* of the source's records taken in, passed over or on the map: no gap before the next one */
    segments segments;     /* of what is on the target, up to the checkpoint */
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
    bool hold_gaps; /* batches behind a gap wait for lane_permit, and no segment is dropped but by lane_drop_segments */
    bool tolerate;  /* others may write to the target partition too: an acknowledgement may name a later offset than due */
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
 * too), and where to stop. `map`, which the lane takes over, ends at or before the checkpoint on either side. Only for a
 * halted lane with nothing in flight. */
void lane_resume(lane *l, checkpoint from, int64_t skip_records, int64_t stop_offset, segments map);

/* Stops fetching and sending, drops what is queued. What is in flight stays until answered or abandoned. */
void lane_halt(lane *l);

/* The owner goes, and its row of counters with it: halts the lane for good, but what is in flight holds it still. */
void lane_orphan(lane *l);

static inline uint32_t lane_in_flight(const lane *l) { return l->send - l->head; }
static inline uint32_t lane_queued(const lane *l) { return l->tail - l->send; }

/* No room for a segment more than those that batches in flight may need: lane_drop_segments makes some. */
static inline bool lane_map_full(const lane *l) {
    return l->hold_gaps && l->segments.count + lane_in_flight(l) >= SEGMENTS_MAX;
}

/* Half free, by bytes and by number: to ask for crumbs would cost a request each. */
static inline bool lane_has_room(const lane *l, uint64_t bytes_max) {
    if (l->skip_records && lane_map_full(l)) return false; /* what is passed over goes on the map at once */
    return l->bytes <= bytes_max / 2 && l->tail - l->head <= LANE_BATCHES_MAX / 2;
}

/* Inspects the batch at p (inside `home`), and takes it in when it passes: re-addressed, with the next sequence,
 * holding a reference to `home`. Skipped batches only move the position. Batches behind what is wanted, or beyond
 * the stop offset, are left out and answered with PASS; one beyond it also says that there is nothing before it any
 * more, so the lane has reached its stop offset. Any verdict but PASS and SKIP_* leaves the lane as it was;
 * the caller must then not offer it a later batch, or there would be a hole. */
verdict lane_accept(lane *l, uint8_t *p, const batch *b, slab *home);

/* The owner has to be told of a gap: the batch taken in last is behind one and waits, and the owner was told of none since
 * lane_permit had nothing left ahead. Says so once; the batch's source offset in *source_offset. */
bool lane_announces(lane *l, int64_t *source_offset);

/* The next batch behind a gap, in flight or queued, from *cursor on, which then stands behind it; NULL, and *cursor at
 * the end, when there is none. Begin with l->head. */
const lane_batch *lane_ahead(const lane *l, uint32_t *cursor);

/* All queued batches before `cursor` may go: what lane_ahead told of them is written down. True when there are more behind
 * a gap: ask again, no event will tell. `cursor` is a cursor of lane_ahead below the lane's generation at that time
 * (lane_cursor); of an earlier generation it lets nothing go, since those batches are gone. */
bool lane_permit(lane *l, uint64_t cursor);
static inline uint64_t lane_cursor(const lane *l, uint32_t cursor) { return (uint64_t)l->generation << 32 | cursor; }

/* The n oldest segments are written down elsewhere; never the last one. */
void lane_drop_segments(lane *l, uint32_t n);

/* Running, something is queued, and the oldest of it may go now. The first batch after lane_resume goes alone: a broker
 * without state of our producer (a partition we never wrote to, or wrote to long ago) takes any sequence to begin with, and
 * if it refused that batch and took one sent behind it, its log would have a hole. With hold_gaps, a batch behind a gap
 * needs a permit, and one that may need a segment of its own needs room for it. */
bool lane_may_send(const lane *l);

/* The oldest queued batch; lane_take also counts it in flight. Only when lane_queued. */
const lane_batch *lane_next(const lane *l);
const lane_batch *lane_take(lane *l);

/* The oldest batch in flight was appended at target offset base_offset. Returns false, and settles nothing, when
 * that is not where it had to land; with `tolerate`, when it is before that. */
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
