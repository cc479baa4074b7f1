/* The border of the native core: everything that Python may call, and the order in which to call it.
 *
 *     source side                         lane                          target side
 *     fetch_compose   -> request bytes
 *     fetch_feed      <- response bytes   lane_accept: inspect, re-address, queue
 *     REBUILD_AHEAD   -> event            lane_raw, lane_replace
 *                                         lane_merge, lane_join         target_gather -> iovec of batches, or MERGE_AHEAD
 *     GAP_AHEAD       -> event            lane_ahead, lane_permit
 *                                         lane_settle: position, map    target_settle <- response bytes
 *     ... the lane has room again and is back in its source's ring
 *
 * The core does no I/O, keeps no clock, starts no thread, knows no Python. It never calls back: what its owner must
 * know comes out of the call that found it, as events. Single-threaded by design: one process, one loop, one core.
 * Misuse (NULL, a freed object) is a bug of the caller and is not checked; bytes from a peer always are.
 *
 * Ownership: lanes, sources, targets, streams and pools are reference counted or owned by whoever made them; a request
 * in flight, an outstanding Fetch and a queued batch hold what they need, so objects may be let go in any order.
 */
#ifndef REPLICATOR_CORE_H
#define REPLICATOR_CORE_H

#include "batch.h"
#include "crc32c.h"
#include "events.h"
#include "fetch.h"
#include "lane.h"
#include "merge.h"
#include "producers.h"
#include "produce.h"
#include "recipe.h"
#include "records.h"
#include "segments.h"
#include "slab.h"

#endif
