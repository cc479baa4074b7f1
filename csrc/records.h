/* The records of a batch: walked with every check, chosen from and changed, and built anew.
 *
 * A record in a RecordBatch v2, decompressed (Kafka's DefaultRecord, KIP-98); numbers are zigzag varints:
 *
 *     length            varint    bytes that follow it
 *     attributes        i8        unused, carried on
 *     timestampDelta    varlong   to the batch's baseTimestamp      \ what a renumbering writes anew,
 *     offsetDelta       varint    to the batch's baseOffset         / and the length with it
 *     keyLength         varint    -1: null; then the key            \
 *     valueLength       varint    -1: null; then the value           | the tail: copied as it stands
 *     headersCount      varint    each: name length, name,           |
 *                                 value length or -1, value         /
 *
 * A walk trusts nothing: numbers take at most 5 or 10 bytes, no length goes beyond its record and no record beyond the
 * payload, offset deltas rise and stay within lastOffsetDelta, there are as many records as the header says, and
 * nothing is left behind them. Names and values may be any bytes.
 */
#ifndef REPLICATOR_RECORDS_H
#define REPLICATOR_RECORDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- walk ---- */

/* A view: it points into the payload. */
typedef struct {
    const uint8_t *start, *tail, *end; /* the whole record, its length first; from keyLength on; its end */
    const uint8_t *key, *value;        /* NULL for null */
    const uint8_t *headers;            /* headersCount */
    uint32_t key_size, value_size;
    int64_t offset;    /* on the source */
    int64_t timestamp; /* as readers see it: its own, or the broker's */
    int64_t timestamp_delta;
    int32_t offset_delta;
    uint8_t attributes;
} record;

typedef struct {
    const uint8_t *at, *end;
    const char *fault; /* what is wrong, in words to be read behind "record N: "; NULL as long as nothing is */
    int64_t base_offset, base_timestamp;
    int64_t append_time; /* of every record, if is_stamped: LogAppendTime */
    int32_t count, last_offset_delta;
    int32_t index;             /* of the record that comes next, or that is at fault; -1: it is the header */
    int32_t last_offset_found; /* the delta of the record before; -1 at first */
    bool is_stamped;
} record_walk;

/* What the 61 bytes of a header say, but for what the caller knows better (-1: nothing). */
typedef struct {
    const uint8_t *header, *payload;
    size_t payload_size;
    int64_t first_offset; /* instead of baseOffset, which is 0 in batches of ours */
    int64_t count;        /* instead of recordsCount, when records were taken out of the payload since */
} packed_records;

/* Begins a walk. A control batch has no records: its header is at fault here. */
void record_walk_open(record_walk *w, const packed_records *from);

/* The next record. False at the end, which was reached soundly only if there is no fault. */
bool record_walk_next(record_walk *w, record *r);

/* ---- build ---- */

typedef struct recipe recipe; /* recipe.h */

/* Records whose source offsets follow one another. */
typedef struct {
    int64_t source_offset;
    int64_t count;
} record_run;

/* One record section, uncompressed, with offset deltas from 0, and what its header has to say. The pointers are good
 * until the builder is used again. */
typedef struct {
    const uint8_t *bytes;
    uint32_t size;
    const record_run *runs;
    uint32_t run_count;
    int32_t count;
    int64_t base_timestamp, max_timestamp; /* the first record's time; the latest time */
} built;

/* A record to be written: its tail, of which the headers may stand elsewhere. */
typedef struct {
    const uint8_t *tail;
    uint32_t tail_size;
    uint32_t headers_size; /* changed headers, which follow what `tail` holds; 0: they are in there */
    uint32_t headers_at;   /* where, in the builder's `edits` */
    uint8_t attributes;
    int64_t offset, timestamp;
} kept_record;

typedef struct {
    record found;
    uint32_t step; /* of the recipe: why */
} diverted_record;

typedef struct header_list header_list; /* recipe.h */

/* Takes in the records of batches, in the order of their offsets, and gives them out again in sections of the size that
 * is wanted. What was fed must stay where it is until the builder is cleared. All zero is an empty one. */
typedef struct {
    kept_record *kept;
    size_t kept_capacity;
    uint32_t count;            /* of kept; at most BUILDER_RECORDS_MAX */
    uint32_t at, before;       /* the first record that is not written yet; the same before the last `next` */
    diverted_record *diverted; /* by the last feed */
    size_t diverted_capacity;
    uint32_t diverted_count;
    uint8_t *edits;
    size_t edits_size, edits_capacity;
    header_list *headers;
    record_walk walk;
    const recipe *recipe;
    int64_t from_offset, next_offset; /* of the first record that is wanted; the least that a next batch may begin at */
    uint32_t count_before;            /* what was there before this feed, to be put back if it fails */
    size_t edits_before;
    const int64_t *excluded; /* see builder_exclude */
    size_t excluded_count, excluded_at;
    uint32_t wanted_count; /* records of the last feed from from_offset on */
    bool untouched; /* the last feed left nothing out, changed nothing and need not renumber: its payload will do */
    uint8_t *bytes;
    size_t bytes_capacity;
    record_run *runs;
    size_t runs_capacity;
    built output;
} builder;

#define BUILDER_RECORDS_MAX (1u << 22) /* 160 MB to remember them by: 64 MB of records of 16 bytes */

#define BUILDER_EDITS_MAX (1u << 28)   /* bytes of changed headers at a time */

typedef enum {
    FEED_DONE,
    FEED_BAD,       /* walk.fault and walk.index say why; nothing of it was kept */
    FEED_ASKS,      /* the recipe does not know a header name: see recipe_asked; then builder_go_on */
    FEED_NO_MEMORY, /* nothing of it was kept */
} feed_outcome;

/* Walks all records of a batch, keeps those with source offset >= from_offset that `recipe` (may be NULL) lets through.
 * A recipe that asks is given its answer, and then builder_go_on goes on with the record that made it ask. */
feed_outcome builder_feed(builder *b, const packed_records *from, int64_t from_offset, const recipe *recipe);
feed_outcome builder_go_on(builder *b);

/* Of the next feeds these records, sorted source offsets, are diverted before the recipe sees them (step: NO_STEP). The
 * list stays where it is until builder_clear. */
enum { NO_STEP = UINT32_MAX };
void builder_exclude(builder *b, const int64_t *offsets, size_t n);

/* Gives up a feed that stands still because the recipe asks. Nothing of it was kept. */
void builder_give_up(builder *b);

/* Builds b->output from the records that come next: at least one, and then as many as make up at most `bytes_max` and
 * at most `runs_max` runs, and whose times are less than 2^63 from the first one's. False when all is written, or when
 * memory is out: then is_out_of_memory. */
bool builder_next(builder *b, uint32_t bytes_max, uint32_t runs_max);
static inline bool is_out_of_memory(const builder *b) { return b->at < b->count; }

/* Takes the last builder_next back, once. */
void builder_retry(builder *b);

/* Forgets all records. Memory is kept for the next ones, unless it is very much. */
void builder_clear(builder *b);
void builder_free(builder *b);

/* ---- merge ---- */

/* A whole uncompressed v2 batch, header and records, as batch_readdress leaves it. */
typedef struct {
    const uint8_t *bytes;
    uint32_t size;
} merge_part;

enum { MERGE_BYTES_A_RECORD_MAX = 17 };

/* Writes one batch of all parts to `out`: offset deltas from 0, the first part's base timestamp, producer, epoch and
 * base sequence, the true latest time, a fresh checksum. Its size is at most that of all parts and
 * MERGE_BYTES_A_RECORD_MAX for each record. Every part is walked, and its own checksum looked at first, as a damaged
 * payload must not get a good seal.
 *
 * Returns the size; 0, with `out` in any state, when a part is not sound, is compressed, has attributes, has holes,
 * does not follow on the sequence of the one before, or when the result does not fit `out_capacity`. */
uint32_t records_merge(const merge_part *parts, uint32_t n, uint8_t *out, uint32_t out_capacity);

#endif
