/* Receive buffers under one byte budget.
 *
 * A slab holds one response frame. Batches are views into it and each holds a reference; the slab returns to its
 * pool when the last one is settled. Pages that were touched once are kept and used again, because faulting a
 * fresh gigabyte in costs as much CPU as moving it.
 *
 * The budget covers slabs in use plus what outstanding fetches may still bring (reserved). Cached free slabs
 * count too: they are resident memory. A frame that must be read is always given a slab, even over budget;
 * `slab_pool_room` is what keeps new fetches from being sent.
 */
#ifndef REPLICATOR_SLAB_H
#define REPLICATOR_SLAB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct slab_pool slab_pool;

typedef struct slab {
    slab_pool *pool;
    struct slab *next_free;
    uint32_t refs;
    uint32_t capacity;
    uint32_t size;
    uint8_t data[];
} slab;

#define SLAB_SIZE_MAX (256u << 20) /* a frame beyond this is a broken or hostile peer */

slab_pool *slab_pool_new(size_t budget);

/* Ends the owner's use of the pool. The pool itself goes when the last slab and the last source do. */
void slab_pool_free(slab_pool *pool);

/* For whoever reserves and may outlive the owner. */
slab_pool *slab_pool_ref(slab_pool *pool);
void slab_pool_unref(slab_pool *pool);

/* A slab of `size` bytes with one reference; NULL when size is over SLAB_SIZE_MAX or memory is out. */
slab *slab_acquire(slab_pool *pool, uint32_t size);

static inline slab *slab_ref(slab *s) {
    s->refs++;
    return s;
}

void slab_unref(slab *s);

/* Reserves `bytes` for a response to come. False, and nothing reserved, when the budget has no room; a pool
 * with nothing in use and nothing reserved always has room, so that work never stops for good. */
bool slab_pool_reserve(slab_pool *pool, size_t bytes);
void slab_pool_release(slab_pool *pool, size_t bytes);

size_t slab_pool_used(const slab_pool *pool);

#endif
