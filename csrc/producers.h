/* Which producers of a source log are links themselves, so that nothing is copied back to where it came from.
 *
 * A link that writes to the source cluster is known by its producer id, which it registered before its first batch. One
 * table is shared by the lanes of a link; its owner answers for each producer once, when the first batch of it comes.
 */
#ifndef REPLICATOR_PRODUCERS_H
#define REPLICATOR_PRODUCERS_H

#include <stdbool.h>
#include <stdint.h>

typedef enum {
    PRODUCER_UNKNOWN, /* ask the owner: nothing is taken in before it has answered */
    PRODUCER_OWN,     /* no link: its batches are the source's own */
    PRODUCER_OPENED,  /* a link from elsewhere: its records must be looked at, and marked */
    PRODUCER_SKIPPED, /* a link from our target: what it wrote is there already */
} producer_kind;

typedef struct producers producers;

enum { PRODUCERS_MAX = 1 << 20 }; /* 16 MiB */

/* One reference. NULL when memory is out. */
producers *producers_new(void);
producers *producers_ref(producers *p);
void producers_unref(producers *p);

/* Remembers the answer. A table that is full forgets all PRODUCER_OWN first: they are asked for again. */
void producers_add(producers *p, int64_t producer_id, producer_kind kind);

/* Batches without a producer id (-1) are nobody's but the source's own. */
producer_kind producers_find(const producers *p, int64_t producer_id);

#endif
