/* Small batches of a lane that wait to be sent go as one.
 *
 * A broker's work is for the most part by the batch, and it takes one batch a partition a request: a log of small batches
 * costs it several times what its bytes would, and moves at one small batch a round trip. So of what waits anyway the
 * oldest batches are made one before a request is gathered. Nothing waits in order to be merged, but where that is asked for
 * (lane_linger).
 *
 * A merged batch is an ordinary one with the records, sequences and offsets of those it was made of. Sequences run on from
 * batch to batch, so neither the broker nor a resync can tell, and the offset map is the same.
 *
 * Uncompressed batches are merged here. Compressed ones have to be opened for it, by the owner: MERGE_AHEAD asks for it,
 * and lane_join takes what it made.
 */
#ifndef REPLICATOR_MERGE_H
#define REPLICATOR_MERGE_H

#include "lane.h"

/* How many of the oldest queued batches are small (at most half of merge_bytes each, all of it together), may go now,
 * have this codec, and could go as one. 0 or 1: there is nothing to merge. */
uint32_t lane_mergeable(const lane *l, int codec);

/* The queued batch that is `nth` from the oldest. Only when there are so many. */
const lane_batch *lane_waiting(const lane *l, uint32_t nth);

/* The n oldest queued batches, which are mergeable, go as this one, which has the same records: `home` holds it, with the
 * producer, epoch and sequence of the first of them. Takes a reference to `home`. */
void lane_join(lane *l, uint32_t n, slab *home);

/* lane_join of whatever is mergeable and uncompressed. What does not merge, because it is not sound, is left as it is: the
 * broker will say so. */
void lane_merge(lane *l);

/* The oldest batch is compressed, and so many behind it could go with it that opening them pays: the owner has to be told,
 * and was not yet. Until lane_join or lane_merge_declined the lane is left alone. */
bool lane_asks_to_merge(lane *l);

/* The owner does not merge what it was asked to: the oldest batch goes as it is. `for_good`: nor is anything compressed of
 * this lane merged. */
void lane_merge_declined(lane *l, bool for_good);

#endif
