#include "producers.h"

#include <stdlib.h>

enum { SLOTS_MIN = 64, NOBODY = -1 };

typedef struct {
    int64_t producer_id;
    producer_kind kind; /* PRODUCER_UNKNOWN: the slot is free */
} slot;

struct producers {
    slot *slots;
    uint32_t capacity, count, refs; /* capacity is a power of two, at most half of it in use */
};

producers *producers_new(void) {
    producers *p = calloc(1, sizeof *p);
    if (!p) return NULL;
    *p = (producers){.slots = calloc(SLOTS_MIN, sizeof *p->slots), .capacity = SLOTS_MIN, .refs = 1};
    if (p->slots) return p;
    free(p);
    return NULL;
}

producers *producers_ref(producers *p) {
    p->refs++;
    return p;
}

void producers_unref(producers *p) {
    if (--p->refs) return;
    free(p->slots);
    free(p);
}

/* Ids are handed out in blocks, so their low bits are what differs; the multiplication spreads them. */
static slot *find(const producers *p, int64_t producer_id) {
    uint32_t i = (uint32_t)(((uint64_t)producer_id * 0x9e3779b97f4a7c15u) >> 32);
    for (;; i++) {
        slot *s = &p->slots[i & (p->capacity - 1)];
        if (s->kind == PRODUCER_UNKNOWN || s->producer_id == producer_id) return s;
    }
}

static void grow(producers *p) {
    producers bigger = {.capacity = p->capacity * 2};
    bigger.slots = calloc(bigger.capacity, sizeof *bigger.slots);
    if (!bigger.slots) abort(); /* as event_add */
    for (uint32_t i = 0; i < p->capacity; i++)
        if (p->slots[i].kind != PRODUCER_UNKNOWN) *find(&bigger, p->slots[i].producer_id) = p->slots[i];
    free(p->slots);
    p->slots = bigger.slots;
    p->capacity = bigger.capacity;
}

static void forget_own(producers *p) {
    producers left = {.capacity = p->capacity};
    left.slots = calloc(left.capacity, sizeof *left.slots);
    if (!left.slots) abort(); /* as event_add */
    for (uint32_t i = 0; i < p->capacity; i++) {
        if (p->slots[i].kind <= PRODUCER_OWN) continue;
        *find(&left, p->slots[i].producer_id) = p->slots[i];
        left.count++;
    }
    free(p->slots);
    p->slots = left.slots;
    p->count = left.count;
}

void producers_add(producers *p, int64_t producer_id, producer_kind kind) {
    if (producer_id <= NOBODY || kind == PRODUCER_UNKNOWN) return;
    if (p->count == PRODUCERS_MAX / 2) forget_own(p);
    if (p->count == PRODUCERS_MAX / 2) return; /* so many links: the lane asks for ever, and waits */
    slot *s = find(p, producer_id);
    p->count += s->kind == PRODUCER_UNKNOWN;
    *s = (slot){producer_id, kind};
    if (p->count > p->capacity / 2) grow(p);
}

producer_kind producers_find(const producers *p, int64_t producer_id) {
    return producer_id <= NOBODY ? PRODUCER_OWN : find(p, producer_id)->kind;
}
