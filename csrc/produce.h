/* The produce side: gather one batch a lane into a request, and settle what the broker answers.
 *
 * A `target` is one target broker: the ring of lanes it leads that have something queued, and the requests that are
 * in flight to it, oldest first. A request is an iovec of small headers, which it owns, and of batches where they
 * stand in their slabs: no payload is copied. Brokers want exactly one batch a partition a request, and silently
 * lose all but the last when a partition is named twice; a topic is answered once, so its lanes are grouped.
 *
 * Requests may be pipelined without a limit of five: a sequence that does not follow is refused, with everything
 * behind it (see the README beside this file).
 *
 * Versions spoken: 7 (Kafka 2.1 on; zstd needs it) and 8 (2.4 on: the broker's words and record errors).
 */
#ifndef REPLICATOR_PRODUCE_H
#define REPLICATOR_PRODUCE_H

#include <sys/uio.h>

#include "events.h"
#include "lane.h"

enum { PRODUCE_LANES_MAX = 500 }; /* two iovec entries a lane and one more stay under IOV_MAX, 1024 */

typedef struct target target;

target *target_new(void);
void target_unref(target *t);

/* The lane's batches go to this target from now on (NULL: to none). Only with nothing in flight. */
void target_set(lane *l, target *t);

/* Puts the lane into its target's ring if it has something that may go (lane_may_send). */
void target_offer(lane *l);

typedef struct {
    int16_t version;
    int32_t correlation_id;
    const char *client_id;
    uint16_t client_id_length;
    int32_t timeout_ms;
    uint32_t bytes_max; /* of batches; the first is taken whatever its size */
} produce_terms;

typedef struct {
    const struct iovec *parts;
    uint32_t count;
    uint32_t lanes;
    size_t bytes;
} produce_request;

/* Takes one batch of each waiting lane into a new request, in flight from now on. The parts stay where they are until
 * the request is settled or abandoned. False when no lane waits, or memory is out. */
bool target_gather(target *t, const produce_terms *terms, produce_request *request, event_list *events);

/* True when some lane has something to send. */
bool target_waiting(const target *t);

/* True when a request is worth its cost now. A broker does one request of a connection after the other, so while a few
 * are on their way a small one gains nothing by leaving early, and costs both sides as much as a large one. It is held
 * until lanes with something in flight have as much company waiting, or answers come: with few requests in flight, and
 * when waiting brings nobody else, nothing is ever held. */
bool target_ready(const target *t);

uint32_t target_in_flight(const target *t);

/* The whole answer to the oldest request, no length prefix. Positions move, lanes go back to their source's ring.
 * Returns false when it cannot be the answer to that request: close the connection. */
bool target_settle(target *t, const uint8_t *frame, size_t size, int32_t *throttle_ms, event_list *events);

/* The connection is gone: every lane with a batch in flight is halted and gets ANSWER_LOST. */
void target_abandon(target *t, event_list *events);

#endif
