/* CRC-32C (Castagnoli, polynomial 0x1EDC6F41), and how to change a covered header without reading the payload.
 *
 * The checksum is linear over GF(2). When only the first h of n covered bytes change, by the difference D,
 *
 *     crc(after) = crc(before) ^ L(D) * x^(8 * (n - h)) mod P
 *
 * where L is the CRC without its initial and final inversion. So a patch costs one multiplication for each
 * non-zero byte of (n - h), however large the payload is, and a payload that was damaged on the way still fails
 * its producer's checksum: recomputing would bless the damage, patching cannot.
 */
#ifndef REPLICATOR_CRC32C_H
#define REPLICATOR_CRC32C_H

#include <stddef.h>
#include <stdint.h>

typedef enum { CRC32C_PORTABLE, CRC32C_SSE42, CRC32C_ARMV8 } crc32c_kind;

/* Builds the tables and picks the fastest kind this processor has. Call once, before anything else here. */
crc32c_kind crc32c_init(void);

/* Uses this kind from now on (tests run every kind). Returns 0, or -1 when this processor does not have it. */
int crc32c_use(crc32c_kind kind);

/* The checksum of p[0..n); pass 0 first, or an earlier result to go on from it. */
uint32_t crc32c(uint32_t crc, const uint8_t *p, size_t n);

/* The checksum after the first h bytes of a covered range changed from `before` to `after`, `tail` more
 * bytes following them unread. */
uint32_t crc32c_patch(uint32_t crc, const uint8_t *before, const uint8_t *after, size_t h, size_t tail);

#endif
