/* The offset map of one lane: which source offsets stand where on the target.
 *
 * A segment is a run on which target offset = source offset + constant. Offsets only grow on both sides, so the map is
 * a list of segments in order, and what lands next either makes the last one longer or begins another: O(1), and no
 * memory is asked for while a lane runs without gaps. A gap is whatever breaks the run: on the source a control batch
 * or what compaction took out, on the target somebody else's records.
 *
 * The owner reads the list, writes it down, and drops the oldest. The last one stays: it may grow yet.
 */
#ifndef REPLICATOR_SEGMENTS_H
#define REPLICATOR_SEGMENTS_H

#include <stdbool.h>
#include <stdint.h>

enum { SEGMENTS_MAX = 1 << 16 }; /* 1.5 MiB a lane */

typedef struct {
    int64_t source, target, length; /* records from `source` on stand on the target from `target` on */
} segment;

typedef struct {
    segment *items; /* oldest first; all zero to begin with */
    uint32_t count, capacity;
} segments;

/* These records are on the target now. False, and nothing done, when they are none, begin on either side before the end
 * of the last segment, end beyond the highest offset, or would need a segment more than SEGMENTS_MAX. Aborts when memory
 * is out, as event_add does: a hole in the map would be silence about a fault. */
bool segments_add(segments *s, int64_t source, int64_t target, int64_t length);

/* Drops the n oldest, but never the last. */
void segments_drop(segments *s, uint32_t n);

void segments_free(segments *s);

/* The source offset behind the last segment. Only when there is one. */
static inline int64_t segments_source_end(const segments *s) {
    return s->items[s->count - 1].source + s->items[s->count - 1].length;
}

#endif
