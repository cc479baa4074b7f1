/* A lane: one source partition to one target partition. Order, sequence numbers and errors live here.
 *
 * Its batches stand in one ring, oldest first:
 *
 *        head             send            ready             tail
 *     ----|--- in flight ---|--- queued -----|----- raw -------|----
 *
 * Fetch appends at `tail` (lane_accept), Produce takes at `send` (lane_take), acknowledgements free at `head`
 * (lane_settle). What must be opened before it can be sent is raw: its owner makes new batches of the oldest one
 * (lane_raw, lane_replace), or lets it go as it is (lane_pass). Whatever came in behind it waits, and has no sequence yet:
 * nobody knows how many records will be left. A lane without such batches has nothing raw, ever. A lane stands in at most one ring of its source (waiting to be fetched) and one of its target
 * (with something to send); both are intrusive links, so joining and leaving are O(1).
 *
 * When anything about a lane is in doubt it is halted: what is queued is dropped, what is in flight is waited for
 * but no longer believed, and the owner reads the target's own log before lane_resume. Nothing is ever sent twice
 * on a guess.
 *
 * What that log holds beyond the checkpoint is told by sequence numbers, which count records. As long as the source's
 * offsets run on, they tell the source offset as well; a batch that is `behind_gap`, or made of several runs, breaks that.
 * With `hold_gaps` it is not sent before its owner has written down which source offsets its sequences stand for:
 * GAP_AHEAD tells the owner, lane_ahead what there is to write, lane_permit lets it go.
 */
#ifndef REPLICATOR_LANE_H
#define REPLICATOR_LANE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "batch.h"
#include "producers.h"
#include "records.h"
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
    uint64_t merged_batches;      /* that were sent as a part of a larger one */
    uint64_t filtered_records, diverted_records; /* written by the worker's Python side */
    uint64_t verdicts[VERDICTS];  /* on batches taken in, by reason */
    int64_t state, reason; /* written by the worker's Python side; see replicator.data.states */
} lane_counters;

typedef struct ring_link {
    struct ring_link *before, *after; /* NULL when in no ring */
} ring_link;

typedef struct {
    uint8_t *bytes;
    slab *home;
    record_run *runs;                   /* owned; NULL: one, which begins at source_offset */
    int64_t source_offset, source_next; /* where it begins, and where the source goes on behind it and what was skipped */
    int64_t max_timestamp;
    uint32_t size, count, run_count;
    uint32_t number;                /* grows along the ring, once it is sealed */
    int32_t sequence, leader_epoch; /* the epoch goes with source_next */
    verdict why;                    /* of a raw one: PASS if it only waits for those before it */
    bool behind_gap;                /* the source has no record right before it that is on its way, or on the target */
} lane_batch;

enum { REFUSED_TEXT_MAX = 200 };

typedef struct {
    int64_t source_offset;
    uint16_t text_length;
    char text[REFUSED_TEXT_MAX]; /* the broker's words, cut */
} refused_record;

/* The batch that the target refused last, and the records that it named. */
typedef struct {
    int64_t source_offset, source_next;
    uint32_t count, size;
    refused_record *records;
    uint32_t named;
} refused_batch;

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
    bool gap_waits;           /* a batch was sealed that needs a permit, and nobody was told */
    bool linger_told;         /* LINGERS was told, and the owner has not called lane_ripen */
    bool raw_told;            /* REBUILD_AHEAD was told, and the owner is not through with what is raw */
    batch_terms terms;
    producers *producers;     /* holds a reference; NULL: whoever wrote a batch, it is the source's */
    int64_t asked_below, known_below; /* see lane_unblock */
    int32_t asked_epoch, known_epoch;
    uint32_t merge_bytes;     /* small batches that wait are sent as one of up to so many bytes; 0: never */
    bool lingers, ripe;       /* see lane_linger */
    bool merge_told;          /* MERGE_AHEAD was told, and the owner has not answered */
    bool merge_declined;      /* the owner does not merge just now: the next batch goes as it is */
    bool merges_no_codec;     /* compressed batches are not worth opening */
    uint32_t next_number, runs_in_flight;
    refused_batch refused;
    uint32_t permitted;       /* of the queued batches, the oldest: may go even behind a gap */
    uint32_t refs, generation;
    int64_t skip_records;  /* the target holds this many records beyond the position already */
    int32_t next_sequence; /* of the next batch taken in */
    int64_t run_end;       /* of the source's records taken in, passed over or on the map: no gap before the next one */
    segments segments;     /* of what is on the target, up to the checkpoint */
    uint64_t bytes;        /* queued and in flight */
    lane_batch *batches;
    uint32_t capacity, head, send, ready, tail; /* capacity is a power of two, the cursors run freely */
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
    batch_terms terms;
    producers *producers; /* may be NULL */
    uint32_t merge_bytes;
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
static inline uint32_t lane_queued(const lane *l) { return l->ready - l->send; }
static inline uint32_t lane_raw_count(const lane *l) { return l->tail - l->ready; }

/* No room for so many segments more than those that batches in flight may need: lane_drop_segments makes some. */
static inline bool lane_map_full(const lane *l, uint32_t more) {
    return l->hold_gaps && l->segments.count + l->runs_in_flight + more > SEGMENTS_MAX;
}

/* Half free, by bytes and by number: to ask for crumbs would cost a request each. */
static inline bool lane_has_room(const lane *l, uint64_t bytes_max) {
    if (l->skip_records && lane_map_full(l, 1)) return false; /* what is passed over goes on the map at once */
    return l->bytes <= bytes_max / 2 && l->tail - l->head <= LANE_BATCHES_MAX / 2;
}

/* Inspects the batch at p (inside `home`), and takes it in when it passes: re-addressed, with the next sequence,
 * holding a reference to `home`; or raw, when it must be opened or something before it must. Skipped batches only move the
 * position; `aborted` makes one of those of a batch of records. Batches behind what is wanted, or beyond the stop offset,
 * are left out and answered with PASS; one beyond it also says that there is nothing before it any more, so the lane has
 * reached its stop offset. A verdict that refuses leaves the lane as it was; the caller must then not offer it a later
 * batch, or there would be a hole. */
verdict lane_accept(lane *l, uint8_t *p, const batch *b, slab *home, bool aborted);

/* The lane was blocked by REFUSE_PRODUCER, and the owner has answered: goes on where it was. If the owner has `looked`
 * for links since, and all are in the table, more is known: what was below the high watermark then, and is of an epoch up
 * to that of the batch, was there before the look, so a producer of it that is not in the table is no link. */
void lane_unblock(lane *l, bool looked);

/* ---- raw batches, opened by the owner ---- */

/* The owner has to be told that there is something to open, and was not yet. Says so once, until nothing is raw. */
bool lane_asks_to_open(lane *l);

/* The raw batch that is `nth` from the oldest; NULL when there are not so many. */
const lane_batch *lane_raw(const lane *l, uint32_t nth);

/* One batch that was made of the oldest raw one: records of it in `runs`, in order. `bytes` is a whole batch in `home`,
 * checksum and all, but for what lane_replace writes: base offset, leader epoch, attributes but the codec, and producer. */
typedef struct {
    slab *home;
    const record_run *runs;
    uint32_t run_count, count;
    int64_t max_timestamp;
} rebuilt;

/* The oldest raw batch becomes these n, in order; none: it leaves nothing but a gap. Takes references to their slabs and
 * copies their runs. PASS; NO_ROOM (nothing done) when the ring or the map is full or memory is out; REFUSE_TAIL (halt the lane) when
 * the records do not end where what the target holds already does. */
verdict lane_replace(lane *l, const rebuilt *made, uint32_t n);

/* The oldest raw batch goes as it is. As lane_replace. Only when brokers take it: contiguous, no special attributes. */
verdict lane_pass(lane *l);

/* ---- gaps ---- */

/* The owner has to be told of a gap: a batch with one waits, and the owner was told of none since lane_permit had nothing
 * left ahead. Says so once; the source offset in *source_offset. */
bool lane_announces(lane *l, int64_t *source_offset);

/* The next batch with a gap before it or inside, in flight or queued, from *cursor on, which then stands behind it; NULL,
 * and *cursor at the end, when there is none. Begin with l->head; good until anything else is done to the lane. */
const lane_batch *lane_ahead(const lane *l, uint32_t *cursor);

/* All queued batches before `mark` may go: what lane_ahead told of them is written down. True when there are more with
 * a gap: ask again, no event will tell. `mark` is what lane_mark made of a cursor of lane_ahead; of an earlier generation
 * of the lane it lets nothing go, since those batches are gone. */
bool lane_permit(lane *l, uint64_t mark);
uint64_t lane_mark(const lane *l, uint32_t cursor);

/* The n oldest segments are written down elsewhere; never the last one. */
void lane_drop_segments(lane *l, uint32_t n);

/* ---- sending ---- */

/* The lane is to wait for company: less than merge_bytes is not sent before lane_ripen, which the owner calls some time
 * after it was told: LINGERS, with the first batch that comes to an empty queue. */
bool lane_asks_for_time(lane *l);
void lane_linger(lane *l, bool lingers);
void lane_ripen(lane *l);

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

/* The oldest batch in flight was refused: notes what it was in l->refused, to be filled with lane_record_offset. Returns for
 * how many records there is room: for as many as the caller says, and no more than the batch has. */
uint32_t lane_note_refused(lane *l, uint32_t records_max);

/* The source offset of the record that is `nth` in the oldest batch in flight; -1 when it has not so many. */
int64_t lane_record_offset(const lane *l, int32_t nth);

/* The oldest batch in flight will not be settled: answered with an error, or after the lane was halted. */
void lane_forget(lane *l);

static inline const checkpoint *lane_checkpoint(const lane *l) {
    return &l->counters->checkpoints[l->counters->version & 1];
}

/* ---- inside the core ---- */

static inline lane_batch *lane_at(const lane *l, uint32_t cursor) { return &l->batches[cursor & (l->capacity - 1)]; }

static inline void lane_release(lane *l, lane_batch *b) {
    l->bytes -= b->size;
    free(b->runs);
    slab_unref(b->home);
}

static inline record_run lane_first_run(const lane_batch *b) {
    return b->runs ? b->runs[0] : (record_run){b->source_offset, b->count};
}

/* Its sequences do not tell the source offsets by themselves. */
static inline bool lane_has_gap(const lane_batch *b) { return b->behind_gap || b->run_count > 1; }

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
