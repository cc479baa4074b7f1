/* RecordBatch v2: a view, the verdict, and the re-addressing.
 *
 * The header, 61 bytes, big-endian (Kafka's DefaultRecordBatch, KIP-98):
 *
 *      0  baseOffset            i64   \
 *      8  batchLength           i32    | outside the checksum; the broker writes
 *     12  partitionLeaderEpoch  i32    | its own baseOffset and epoch
 *     16  magic                 i8    /
 *     17  crc                   u32   CRC-32C of everything from 21 on
 *     21  attributes            i16   bits 0-2 codec, 3 LogAppendTime, 4 transactional, 5 control, 6 delete horizon
 *     23  lastOffsetDelta       i32
 *     27  baseTimestamp         i64
 *     35  maxTimestamp          i64
 *     43  producerId            i64   \
 *     51  producerEpoch         i16    | ours on the target
 *     53  baseSequence          i32   /
 *     57  recordsCount          i32
 *     61  records               compressed as the codec says; never touched here
 */
#ifndef REPLICATOR_BATCH_H
#define REPLICATOR_BATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    BATCH_BASE_OFFSET = 0,
    BATCH_LENGTH = BATCH_BASE_OFFSET + 8,
    BATCH_LEADER_EPOCH = BATCH_LENGTH + 4,
    BATCH_MAGIC = BATCH_LEADER_EPOCH + 4,
    BATCH_CRC = BATCH_MAGIC + 1,
    BATCH_ATTRIBUTES = BATCH_CRC + 4,
    BATCH_LAST_OFFSET_DELTA = BATCH_ATTRIBUTES + 2,
    BATCH_BASE_TIMESTAMP = BATCH_LAST_OFFSET_DELTA + 4,
    BATCH_MAX_TIMESTAMP = BATCH_BASE_TIMESTAMP + 8,
    BATCH_PRODUCER_ID = BATCH_MAX_TIMESTAMP + 8,
    BATCH_PRODUCER_EPOCH = BATCH_PRODUCER_ID + 8,
    BATCH_BASE_SEQUENCE = BATCH_PRODUCER_EPOCH + 2,
    BATCH_COUNT = BATCH_BASE_SEQUENCE + 4,
    BATCH_HEADER_SIZE = BATCH_COUNT + 4,
};
_Static_assert(BATCH_HEADER_SIZE == 61, "RecordBatch v2 header");

enum {
    ATTRIBUTE_CODEC = 0x07,
    ATTRIBUTE_LOG_APPEND_TIME = 0x08,
    ATTRIBUTE_TRANSACTIONAL = 0x10,
    ATTRIBUTE_CONTROL = 0x20,
    ATTRIBUTE_DELETE_HORIZON = 0x40,
};

typedef struct {
    int64_t base_offset, base_timestamp, max_timestamp, producer_id;
    uint32_t size; /* of the whole batch, header included */
    int32_t leader_epoch, last_offset_delta, base_sequence, count;
    uint32_t crc;
    int16_t attributes, producer_epoch;
    int8_t magic;
} batch;

typedef enum { BATCH_WHOLE, BATCH_PARTIAL, BATCH_MALFORMED } batch_state;

/* Reads the header at p of n readable bytes. PARTIAL: more bytes are needed (or will never come: a broker may cut
 * the last batch of a response). MALFORMED: no batch can have this length. Magic 0 and 1 messages share the first
 * 17 bytes; for them only base_offset, size and magic are set. */
batch_state batch_open(batch *b, const uint8_t *p, size_t n);

/* What is to be done with a batch. This list, in this order, is also replicator.data.reasons'. */
typedef enum {
    PASS,
    SKIP_CONTROL,           /* a transaction marker: belongs to the source's log only */
    SKIP_EMPTY,             /* what compaction leaves of a producer's last batch: no records */
    SKIP_ABORTED,           /* of a transaction that was aborted, for a lane that copies what was committed */
    SKIP_LOOP,              /* a link wrote it to the source that copies from our target */
    REBUILD_HOLES,          /* compaction took records out: brokers refuse count != lastOffsetDelta + 1 */
    REBUILD_APPEND_TIME,    /* times that readers saw are not in the records */
    REBUILD_DELETE_HORIZON, /* baseTimestamp is a horizon there, not a time */
    REBUILD_HEAD,           /* the wanted offset is inside the batch: its head must be cut off */
    REBUILD_SIZE,           /* larger than the target takes */
    REBUILD_CODEC,          /* the target is to have another codec */
    REBUILD_LOOP,           /* another link wrote it: some of its records may have been on our target */
    REBUILD_OPEN,           /* the lane has edits or filters, or looks for records that the target would refuse */
    DIVERT_CODEC,           /* codec ids 5 to 7: nobody can open it, so it can only be put aside whole */
    REFUSE_MAGIC,           /* message format v0 or v1 */
    REFUSE_MALFORMED,       /* header fields that contradict each other */
    REFUSE_PRODUCER,        /* nobody has said yet what this producer is: see producers.h */
    REFUSE_TAIL,            /* does not match what the target already holds */
    NO_ROOM,                /* the lane's ring is full: nothing is wrong, fetch it again later */
    VERDICTS,               /* how many there are */
} verdict;

static inline bool verdict_skips(verdict v) { return v >= SKIP_CONTROL && v <= SKIP_LOOP; }
static inline bool verdict_opens(verdict v) { return v >= REBUILD_HOLES && v <= DIVERT_CODEC; }
static inline bool verdict_refuses(verdict v) { return v >= REFUSE_MAGIC; }

enum { ANY_CODEC = -1 };

/* What a lane's target takes, and what is asked of the lane. All zero but the codec: everything passes that brokers take. */
typedef struct {
    int64_t timestamp_max;    /* a batch with later records is opened; 0: any time will do */
    uint32_t batch_bytes_max; /* 0: any size */
    int8_t codec;             /* of what is sent: ANY_CODEC, or 0 to 4 */
    bool opens;               /* every batch is opened */
    bool stamped;             /* the target gives records its own times: the source's need not be kept */
} batch_terms;

verdict batch_inspect(const batch *b, int64_t wanted_offset, const batch_terms *terms);

/* The control record of a transaction marker, in a whole batch at p: true if it ends a transaction by abort (Kafka's
 * ControlRecordType 0; 1 is a commit, and there are others). False, too, when it cannot be read. */
bool batch_aborts(const uint8_t *p, const batch *b);

/* Writes the header of a new batch of b->size bytes, whose records stand at p + 61 already: base offset 0, no leader epoch,
 * no producer; attributes, times and counts as in b; and the checksum of it all. */
void batch_write(const batch *b, uint8_t *p);

/* Makes the batch ours, in place: base offset 0, leader epoch -1, only the codec bits of the attributes, our producer
 * id, epoch and sequence; patches the checksum. Never reads a byte from offset 61 on. */
void batch_readdress(uint8_t *p, uint32_t size, int64_t producer_id, int16_t producer_epoch, int32_t sequence);

#endif
