#include "slab.h"

#include <stdlib.h>

#define CLASS_MIN 12                          /* the smallest slab: 4 KiB */
#define CLASSES (4 * (28 - CLASS_MIN) + 1)    /* four sizes a doubling, up to SLAB_SIZE_MAX */

struct slab_pool {
    size_t budget, used, reserved, cached;
    uint32_t refs;
    bool closed;
    slab *free_list[CLASSES];
};

/* Sizes go up in quarters of a power of two: at most a fifth of a slab is waste. */
static unsigned class_of(uint32_t size, uint32_t *capacity) {
    if (size <= 1u << CLASS_MIN) {
        *capacity = 1u << CLASS_MIN;
        return 0;
    }
    unsigned top = 31 - (unsigned)__builtin_clz(size - 1);
    unsigned quarter = (size - 1) >> (top - 2) & 3;
    *capacity = (5 + quarter) << (top - 2);
    return 4 * (top - CLASS_MIN) + quarter + 1;
}

slab_pool *slab_pool_new(size_t budget) {
    slab_pool *pool = calloc(1, sizeof *pool);
    if (pool) *pool = (slab_pool){.budget = budget, .refs = 1};
    return pool;
}

static void drop_cached(slab_pool *pool) {
    for (unsigned c = 0; c < CLASSES; c++)
        while (pool->free_list[c]) {
            slab *s = pool->free_list[c];
            pool->free_list[c] = s->next_free;
            free(s);
        }
    pool->cached = 0;
}

void slab_pool_free(slab_pool *pool) {
    drop_cached(pool);
    pool->closed = true;
    slab_pool_unref(pool);
}

slab_pool *slab_pool_ref(slab_pool *pool) {
    pool->refs++;
    return pool;
}

void slab_pool_unref(slab_pool *pool) {
    if (--pool->refs == 0) free(pool);
}

slab *slab_acquire(slab_pool *pool, uint32_t size) {
    if (size > SLAB_SIZE_MAX) return NULL;
    uint32_t capacity;
    unsigned c = class_of(size, &capacity);
    slab *s = pool->free_list[c];
    if (s) {
        pool->free_list[c] = s->next_free;
        pool->cached -= capacity;
    } else {
        if (pool->used + pool->cached + capacity > pool->budget) drop_cached(pool);
        s = malloc(sizeof *s + capacity);
        if (!s) return NULL;
    }
    *s = (slab){.pool = slab_pool_ref(pool), .refs = 1, .capacity = capacity, .size = size};
    pool->used += capacity;
    return s;
}

void slab_unref(slab *s) {
    if (--s->refs) return;
    slab_pool *pool = s->pool;
    pool->used -= s->capacity;
    if (pool->closed || pool->used + pool->cached + s->capacity > pool->budget) {
        free(s);
    } else {
        uint32_t capacity;
        unsigned c = class_of(s->capacity, &capacity);
        s->next_free = pool->free_list[c];
        pool->free_list[c] = s;
        pool->cached += capacity;
    }
    slab_pool_unref(pool);
}

bool slab_pool_reserve(slab_pool *pool, size_t bytes) {
    bool idle = pool->used == 0 && pool->reserved == 0;
    if (!idle && pool->used + pool->reserved + bytes > pool->budget) return false;
    pool->reserved += bytes;
    return true;
}

void slab_pool_release(slab_pool *pool, size_t bytes) { pool->reserved -= bytes; }

size_t slab_pool_used(const slab_pool *pool) { return pool->used + pool->reserved; }
