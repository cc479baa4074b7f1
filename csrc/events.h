/* What the core tells its owner about lanes: rare, one small record each, drained after every call that takes them.
 * The core has acted already (the lane is halted or blocked); the owner decides what comes next. */
#ifndef REPLICATOR_EVENTS_H
#define REPLICATOR_EVENTS_H

#include <stddef.h>
#include <stdint.h>

#include "lane.h"

typedef enum {
    FETCH_ERROR,   /* code: Kafka's. The lane has no source any more: see source_set */
    DIVERGED,      /* first: the epoch, second: its end offset: the source's log branched off there. Blocked */
    CANNOT_TAKE,   /* code: the verdict; first: source offset; second: producer id. The lane is blocked */
    PRODUCE_ERROR, /* code: Kafka's; first: source offset of the batch; text: the broker's words, if any; see
                      lane.refused. The lane is halted */
    OFFSET_DRIFT,  /* first: the target offset that was due, second: the one in the answer. The lane is halted */
    ANSWER_LOST,   /* the connection went with this lane's batches unanswered. The lane is halted */
    GAP_AHEAD,     /* first: source offset of a batch behind a gap. It and what follows wait for lane_permit */
    MERGE_AHEAD,   /* the oldest queued batches are small and compressed: see lane_asks_to_merge. The lane sends nothing */
    LINGERS,       /* a batch waits for company: see lane_asks_for_time */
    REBUILD_AHEAD, /* a batch came in that must be opened: lane_raw. It and what follows wait for lane_replace */
} event_kind;

enum { EVENT_TEXT_MAX = 200 };

typedef struct {
    lane *lane; /* holds a reference: the lane's owner may be gone by the time it is told */
    event_kind kind;
    int32_t code;
    int64_t first, second;
    char text[EVENT_TEXT_MAX];
} event;

typedef struct {
    event *items;
    size_t count, capacity;
} event_list;

/* A cleared event to fill in. Aborts when memory is out: losing one would be silence about a fault. */
event *event_add(event_list *events, lane *l, event_kind kind);
void event_list_clear(event_list *events);
void event_list_free(event_list *events);

#endif
