#include "batch.h"

#include "bytes.h"
#include "crc32c.h"

#define PREFIX BATCH_LEADER_EPOCH /* baseOffset and batchLength: what batchLength does not count */

batch_state batch_open(batch *b, const uint8_t *p, size_t n) {
    if (n < BATCH_CRC) return BATCH_PARTIAL;
    int32_t length = (int32_t)load_u32(p + BATCH_LENGTH);
    *b = (batch){.base_offset = (int64_t)load_u64(p), .magic = (int8_t)p[BATCH_MAGIC]};
    if (length < BATCH_CRC - PREFIX || b->base_offset < 0) return BATCH_MALFORMED;
    b->size = (uint32_t)length + PREFIX;
    if (b->magic == 0 || b->magic == 1) return n < b->size ? BATCH_PARTIAL : BATCH_WHOLE;
    if (b->size < BATCH_HEADER_SIZE || b->magic != 2) return BATCH_MALFORMED;
    if (n < b->size) return BATCH_PARTIAL;
    b->leader_epoch = (int32_t)load_u32(p + BATCH_LEADER_EPOCH);
    b->crc = load_u32(p + BATCH_CRC);
    b->attributes = (int16_t)load_u16(p + BATCH_ATTRIBUTES);
    b->last_offset_delta = (int32_t)load_u32(p + BATCH_LAST_OFFSET_DELTA);
    b->base_timestamp = (int64_t)load_u64(p + BATCH_BASE_TIMESTAMP);
    b->max_timestamp = (int64_t)load_u64(p + BATCH_MAX_TIMESTAMP);
    b->producer_id = (int64_t)load_u64(p + BATCH_PRODUCER_ID);
    b->producer_epoch = (int16_t)load_u16(p + BATCH_PRODUCER_EPOCH);
    b->base_sequence = (int32_t)load_u32(p + BATCH_BASE_SEQUENCE);
    b->count = (int32_t)load_u32(p + BATCH_COUNT);
    return BATCH_WHOLE;
}

verdict batch_inspect(const batch *b, int64_t wanted_offset, const batch_terms *terms) {
    if (b->magic != 2) return REFUSE_MAGIC;
    if (b->last_offset_delta < 0 || b->count < 0 || b->count > (int64_t)b->last_offset_delta + 1 ||
        b->base_offset > INT64_MAX - b->last_offset_delta - 1)
        return REFUSE_MALFORMED;
    if (b->attributes & ATTRIBUTE_CONTROL) return SKIP_CONTROL;
    if (b->count == 0) return SKIP_EMPTY;
    int codec = b->attributes & ATTRIBUTE_CODEC;
    if (codec > 4) return DIVERT_CODEC;
    if (b->attributes & ATTRIBUTE_LOG_APPEND_TIME && !terms->stamped) return REBUILD_APPEND_TIME;
    if (b->attributes & ATTRIBUTE_DELETE_HORIZON) return REBUILD_DELETE_HORIZON;
    if (b->count - 1 != b->last_offset_delta) return REBUILD_HOLES;
    if (b->base_offset < wanted_offset) return REBUILD_HEAD;
    if (terms->batch_bytes_max && b->size > terms->batch_bytes_max) return REBUILD_SIZE;
    if (terms->codec != ANY_CODEC && terms->codec != codec) return REBUILD_CODEC;
    if (terms->opens || (terms->timestamp_max && b->max_timestamp > terms->timestamp_max)) return REBUILD_OPEN;
    return PASS;
}

/* length, attributes, timestamp delta, offset delta, key length, then the key: version i16, type i16. */
bool batch_aborts(const uint8_t *p, const batch *b) {
    enum { ABORT = 0, KEY_SIZE = 4 };
    reader r = {p + BATCH_HEADER_SIZE, p + b->size, false};
    read_varint(&r);
    read_i8(&r);
    read_varlong(&r);
    read_varint(&r);
    if (read_varint(&r) < KEY_SIZE) return false;
    read_i16(&r);
    int16_t type = read_i16(&r);
    return !r.bad && type == ABORT;
}

void batch_readdress(uint8_t *p, uint32_t size, int64_t producer_id, int16_t producer_epoch, int32_t sequence) {
    enum { FROM = BATCH_ATTRIBUTES, CHANGED = BATCH_COUNT - BATCH_ATTRIBUTES };
    uint8_t before[CHANGED];
    memcpy(before, p + FROM, CHANGED);
    store_u64(p + BATCH_BASE_OFFSET, 0);
    store_u32(p + BATCH_LEADER_EPOCH, (uint32_t)-1);
    store_u16(p + BATCH_ATTRIBUTES, load_u16(p + BATCH_ATTRIBUTES) & ATTRIBUTE_CODEC);
    store_u64(p + BATCH_PRODUCER_ID, (uint64_t)producer_id);
    store_u16(p + BATCH_PRODUCER_EPOCH, (uint16_t)producer_epoch);
    store_u32(p + BATCH_BASE_SEQUENCE, (uint32_t)sequence);
    uint32_t crc = crc32c_patch(load_u32(p + BATCH_CRC), before, p + FROM, CHANGED, size - BATCH_COUNT);
    store_u32(p + BATCH_CRC, crc);
}

void batch_write(const batch *b, uint8_t *p) {
    store_u64(p + BATCH_BASE_OFFSET, 0);
    store_u32(p + BATCH_LENGTH, b->size - PREFIX);
    store_u32(p + BATCH_LEADER_EPOCH, (uint32_t)-1);
    p[BATCH_MAGIC] = 2;
    store_u16(p + BATCH_ATTRIBUTES, (uint16_t)b->attributes);
    store_u32(p + BATCH_LAST_OFFSET_DELTA, (uint32_t)b->last_offset_delta);
    store_u64(p + BATCH_BASE_TIMESTAMP, (uint64_t)b->base_timestamp);
    store_u64(p + BATCH_MAX_TIMESTAMP, (uint64_t)b->max_timestamp);
    store_u64(p + BATCH_PRODUCER_ID, (uint64_t)-1);
    store_u16(p + BATCH_PRODUCER_EPOCH, (uint16_t)-1);
    store_u32(p + BATCH_BASE_SEQUENCE, (uint32_t)-1);
    store_u32(p + BATCH_COUNT, (uint32_t)b->count);
    store_u32(p + BATCH_CRC, crc32c(0, p + BATCH_ATTRIBUTES, b->size - BATCH_ATTRIBUTES));
}
