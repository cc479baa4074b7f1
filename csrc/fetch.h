/* The fetch side: which lanes to ask for, and what came back.
 *
 * A `source` is the ring of lanes that one source broker leads and that have room for more. A `fetch_stream` is one
 * connection's half-duplex conversation: compose a request from the ring, then feed it the response as it arrives.
 * Several streams share one source, so that while one response is on its way the next request is too.
 *
 * Pull is the back-pressure: a lane whose ring holds lane_bytes_max is not in the source's ring, and a pool without
 * room composes nothing.
 *
 * Versions spoken: 10 (Kafka 2.1 on, topics by name) and 13 (3.1 on, by topic id: a topic that was deleted and made
 * again answers UNKNOWN_TOPIC_ID instead of silently being another log).
 */
#ifndef REPLICATOR_FETCH_H
#define REPLICATOR_FETCH_H

#include "events.h"
#include "lane.h"
#include "slab.h"

enum { FETCH_LANES_MAX = 4096 };

typedef struct source {
    ring_link fetchable;
    slab_pool *pool;
    uint64_t lane_bytes_max;
    uint32_t refs;
    bool committed;
} source;

/* `committed`: nothing beyond the last stable offset is asked for, and records of aborted transactions are left out
 * (isolation level 1, read_committed). */
source *source_new(slab_pool *pool, uint64_t lane_bytes_max, bool committed);
void source_unref(source *s);

/* How much one lane may hold from now on; what it holds beyond that already, it keeps. */
void source_limit(source *s, uint64_t lane_bytes_max);

/* The lane's partition is led by this source's broker from now on (NULL: by none). Any earlier Fetch that names the
 * lane stays valid; the lane is fetched here once that one has ended. */
void source_set(lane *l, source *s, int32_t leader_epoch);

/* Puts the lane into its source's ring if it can be fetched: running, not blocked, not in an outstanding Fetch, below
 * its stop offset, and with room (lane_has_room). */
void source_offer(lane *l);

typedef struct {
    int16_t version;
    int32_t correlation_id;
    const char *client_id;
    uint16_t client_id_length;
    int32_t wait_ms;
    uint32_t bytes_max; /* of the whole response; a broker may exceed it by one batch */
} fetch_terms;

typedef struct fetch_stream fetch_stream;

fetch_stream *fetch_stream_new(source *s);
void fetch_stream_free(fetch_stream *f);

/* Composes the next request from the source's ring into the stream's own buffer and reserves bytes_max of the pool.
 * Returns its size, length prefix included, and where it stands in *request; 0 when there is nothing to ask for, no
 * room for an answer, or an answer outstanding already. */
size_t fetch_compose(fetch_stream *f, const fetch_terms *terms, const uint8_t **request);

typedef enum { FETCH_MORE, FETCH_DONE, FETCH_MALFORMED } fetch_progress;

/* The first `have` bytes of the response frame (no length prefix) stand in `frame`, which will be frame->size bytes
 * when whole; call again whenever more have arrived. Complete batches go to their lanes at once. MALFORMED: close
 * the connection; fetch_abort has been done. */
fetch_progress fetch_feed(fetch_stream *f, slab *frame, size_t have, event_list *events);

/* The throttle time and top-level error code of the last response that was begun. */
int32_t fetch_throttle_ms(const fetch_stream *f);
int16_t fetch_error(const fetch_stream *f);

/* The connection is gone, or the response is over: lanes not answered go back to the ring, the reservation too. */
void fetch_abort(fetch_stream *f);

#endif
