/* Bounded big-endian reading and writing.
 *
 * A reader that runs short turns `bad`, stays bad, and yields zeros from then on: a decoder reads a whole
 * element and asks once. Nothing here can read past `end` or write past `limit`, whatever a length says.
 */
#ifndef REPLICATOR_BYTES_H
#define REPLICATOR_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    const uint8_t *at, *end;
    bool bad;
} reader;

static inline size_t reader_left(const reader *r) { return (size_t)(r->end - r->at); }

/* The next n bytes, or NULL (and bad) when there are fewer. */
static inline const uint8_t *read_span(reader *r, size_t n) {
    if (r->bad || reader_left(r) < n) {
        r->bad = true;
        return NULL;
    }
    const uint8_t *span = r->at;
    r->at += n;
    return span;
}

static inline uint16_t load_u16(const uint8_t *p) { return (uint16_t)(p[0] << 8 | p[1]); }

static inline uint32_t load_u32(const uint8_t *p) {
    uint32_t v;
    memcpy(&v, p, 4);
    return __builtin_bswap32(v);
}

static inline uint64_t load_u64(const uint8_t *p) {
    uint64_t v;
    memcpy(&v, p, 8);
    return __builtin_bswap64(v);
}

static inline void store_u16(uint8_t *p, uint16_t v) {
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

static inline void store_u32(uint8_t *p, uint32_t v) {
    v = __builtin_bswap32(v);
    memcpy(p, &v, 4);
}

static inline void store_u64(uint8_t *p, uint64_t v) {
    v = __builtin_bswap64(v);
    memcpy(p, &v, 8);
}

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the core is written for little-endian machines (x86-64, arm64)"
#endif

static inline int8_t read_i8(reader *r) {
    const uint8_t *p = read_span(r, 1);
    return p ? (int8_t)*p : 0;
}

static inline int16_t read_i16(reader *r) {
    const uint8_t *p = read_span(r, 2);
    return p ? (int16_t)load_u16(p) : 0;
}

static inline int32_t read_i32(reader *r) {
    const uint8_t *p = read_span(r, 4);
    return p ? (int32_t)load_u32(p) : 0;
}

static inline int64_t read_i64(reader *r) {
    const uint8_t *p = read_span(r, 8);
    return p ? (int64_t)load_u64(p) : 0;
}

/* Unsigned varint of at most 32 bits: five bytes, and the fifth holds four bits. */
static inline uint32_t read_uvarint(reader *r) {
    uint32_t value = 0;
    for (unsigned shift = 0; shift <= 28; shift += 7) {
        const uint8_t *p = read_span(r, 1);
        if (!p) return 0;
        value |= (uint32_t)(*p & 0x7f) << shift;
        if (!(*p & 0x80)) {
            if (shift == 28 && *p > 0x0f) break;
            return value;
        }
    }
    r->bad = true;
    return 0;
}

/* Zigzag varints, of which records are made: at most 32 bits in five bytes, or 64 in ten. Most take one byte or two. */
static inline int32_t unzigzag32(uint32_t v) { return (int32_t)(v >> 1 ^ (0 - (v & 1))); }

static inline int64_t unzigzag64(uint64_t v) { return (int64_t)(v >> 1 ^ (0 - (v & 1))); }

static inline uint64_t read_base128(reader *r, unsigned bits) {
    uint64_t value = 0;
    for (unsigned shift = 0; shift < bits && r->at < r->end; shift += 7) {
        uint64_t septet = *r->at & 0x7f;
        if (bits - shift < 7 && septet >> (bits - shift)) break;
        value |= septet << shift;
        if (!(*r->at++ & 0x80)) return value;
    }
    r->bad = true;
    r->at = r->end;
    return 0;
}

static inline int32_t read_varint(reader *r) {
    if (reader_left(r) >= 2) {
        uint32_t first = r->at[0], second = r->at[1];
        if (first < 0x80) return r->at++, unzigzag32(first);
        if (second < 0x80) return r->at += 2, unzigzag32((first & 0x7f) | second << 7);
    }
    return unzigzag32((uint32_t)read_base128(r, 32));
}

static inline int64_t read_varlong(reader *r) {
    if (r->at < r->end && *r->at < 0x80) return unzigzag64(*r->at++);
    return unzigzag64(read_base128(r, 64));
}

/* KIP-482 tagged fields: skip them all. Counts are bounded by what is left, as each tag takes two bytes or more. */
static inline void skip_tags(reader *r) {
    uint32_t count = read_uvarint(r);
    while (count-- && !r->bad) {
        read_uvarint(r);
        read_span(r, read_uvarint(r));
    }
}

/* Zigzag varints, written where there is room for them. A varint of 64 bits that fits in 32 is the varint of 32. */
static inline uint64_t zigzag(int64_t v) { return (uint64_t)v << 1 ^ (uint64_t)(v >> 63); }

static inline unsigned varint_size(int64_t v) {
    return (unsigned)(70 - __builtin_clzll(zigzag(v) | 1)) / 7;
}

static inline uint8_t *store_varint(uint8_t *p, int64_t v) {
    uint64_t left = zigzag(v);
    for (; left >= 0x80; left >>= 7) *p++ = (uint8_t)(left | 0x80);
    *p++ = (uint8_t)left;
    return p;
}

typedef struct {
    uint8_t *at, *limit;
    bool bad;
} writer;

static inline uint8_t *write_span(writer *w, size_t n) {
    if (w->bad || (size_t)(w->limit - w->at) < n) {
        w->bad = true;
        return NULL;
    }
    uint8_t *span = w->at;
    w->at += n;
    return span;
}

static inline void write_i8(writer *w, int8_t v) {
    uint8_t *p = write_span(w, 1);
    if (p) *p = (uint8_t)v;
}

static inline void write_i16(writer *w, int16_t v) {
    uint8_t *p = write_span(w, 2);
    if (p) store_u16(p, (uint16_t)v);
}

static inline void write_i32(writer *w, int32_t v) {
    uint8_t *p = write_span(w, 4);
    if (p) store_u32(p, (uint32_t)v);
}

static inline void write_i64(writer *w, int64_t v) {
    uint8_t *p = write_span(w, 8);
    if (p) store_u64(p, (uint64_t)v);
}

static inline void write_uvarint(writer *w, uint32_t v) {
    for (; v >= 0x80; v >>= 7) write_i8(w, (int8_t)(v | 0x80));
    write_i8(w, (int8_t)v);
}

static inline void write_bytes(writer *w, const void *src, size_t n) {
    uint8_t *p = write_span(w, n);
    if (p) memcpy(p, src, n);
}

#endif
