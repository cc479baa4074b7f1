#include "crc32c.h"

#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define ACCELERATED __attribute__((target("sse4.2,pclmul")))
#elif defined(__aarch64__)
#include <arm_acle.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif
#if defined(__clang__)
#define ACCELERATED __attribute__((target("crc")))
#else
#define ACCELERATED __attribute__((target("+crc")))
#endif
#endif

#define POLY 0x82F63B78u /* 0x1EDC6F41 reflected: bit 31 is x^0, bit 0 is x^31 */
#define X0 0x80000000u

/* Write-once tables: filled by crc32c_init with values that depend on nothing but the polynomial. */
static uint32_t slice[8][256];     /* slice[k][b]: byte b followed by k zero bytes */
static uint32_t power[4][256];     /* power[j][i] = x^(8 * i * 256^j) */
static uint32_t power_m33[4][256]; /* the same times x^-33; see multiply_clmul */

static uint32_t times_x(uint32_t a) { return a & 1 ? (a >> 1) ^ POLY : a >> 1; }

static uint32_t over_x(uint32_t a) { return a & X0 ? ((a ^ POLY) << 1) | 1 : a << 1; }

/* a * b mod P, bit by bit: the portable multiplication, and what the tables are made with. */
static uint32_t multiply(uint32_t a, uint32_t b) {
    uint32_t product = 0;
    for (; a; a <<= 1, b = times_x(b))
        product ^= b & (uint32_t)-(int32_t)(a >> 31);
    return product;
}

static void fill_slices(void) {
    for (uint32_t b = 0; b < 256; b++) {
        uint32_t c = b;
        for (int bit = 0; bit < 8; bit++) c = times_x(c);
        slice[0][b] = c;
    }
    for (int k = 1; k < 8; k++)
        for (uint32_t b = 0; b < 256; b++)
            slice[k][b] = (slice[k - 1][b] >> 8) ^ slice[0][slice[k - 1][b] & 0xff];
}

static void fill_powers(void) {
    uint32_t step = X0, back = X0;
    for (int bit = 0; bit < 8; bit++) step = times_x(step);
    for (int i = 0; i < 33; i++) back = over_x(back);
    for (int j = 0; j < 4; j++) {
        power[j][0] = X0;
        for (int i = 1; i < 256; i++) power[j][i] = multiply(power[j][i - 1], step);
        for (int i = 0; i < 256; i++) power_m33[j][i] = multiply(power[j][i], back);
        step = multiply(power[j][255], step);
    }
}

/* The register after n more zero bytes: crc * x^(8n). One multiplication a non-zero byte of n. */
static uint32_t shift_portable(uint32_t crc, size_t n) {
    for (int j = 0; j < 4 && n; j++, n >>= 8)
        if (n & 0xff) crc = multiply(power[j][n & 0xff], crc);
    return crc;
}

/* `raw` functions work on the register itself: no inversion before or after. */
static uint32_t raw_portable(uint32_t crc, const uint8_t *p, size_t n) {
    for (; n >= 8; p += 8, n -= 8) {
        uint32_t low, high;
        memcpy(&low, p, 4);
        memcpy(&high, p + 4, 4);
        low ^= crc;
        crc = slice[7][low & 0xff] ^ slice[6][low >> 8 & 0xff] ^ slice[5][low >> 16 & 0xff] ^ slice[4][low >> 24] ^
              slice[3][high & 0xff] ^ slice[2][high >> 8 & 0xff] ^ slice[1][high >> 16 & 0xff] ^ slice[0][high >> 24];
    }
    while (n--) crc = crc >> 8 ^ slice[0][(crc ^ *p++) & 0xff];
    return crc;
}

#ifdef ACCELERATED

#if defined(__x86_64__)
#define CRC_U64(crc, v) ((uint32_t)_mm_crc32_u64((crc), (v)))
#define CRC_U8(crc, v) _mm_crc32_u8((crc), (v))
#define KIND_HERE CRC32C_SSE42

/* A carry-less product of two reflected 32-bit polynomials lands one power of x low, and the crc instruction
 * multiplies by x^32 while it reduces: the table's x^-33 cancels both. */
ACCELERATED static uint32_t multiply_clmul(uint32_t a_m33, uint32_t b) {
    __m128i product = _mm_clmulepi64_si128(_mm_cvtsi32_si128((int)a_m33), _mm_cvtsi32_si128((int)b), 0);
    return CRC_U64(0, (uint64_t)_mm_cvtsi128_si64(product));
}

ACCELERATED static uint32_t shift_accelerated(uint32_t crc, size_t n) {
    for (int j = 0; j < 4 && n; j++, n >>= 8)
        if (n & 0xff) crc = multiply_clmul(power_m33[j][n & 0xff], crc);
    return crc;
}

static int processor_has_it(void) { return __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul"); }

#else
#define CRC_U64(crc, v) __crc32cd((crc), (v))
#define CRC_U8(crc, v) __crc32cb((crc), (v))
#define KIND_HERE CRC32C_ARMV8
#define shift_accelerated shift_portable

static int processor_has_it(void) {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & (1ul << 7)) != 0; /* HWCAP_CRC32 */
#else
    return 1; /* every 64-bit Apple processor */
#endif
}
#endif

ACCELERATED static uint64_t load_native_u64(const uint8_t *p) {
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}

/* The instruction has a latency of three cycles and a throughput of one: three streams side by side keep it busy.
 * Stretches are long enough that joining the three registers costs next to nothing. */
ACCELERATED static uint32_t raw_accelerated(uint32_t crc, const uint8_t *p, size_t n) {
    while (n >= 3 * 128) {
        size_t stretch = n / 3 & ~(size_t)7;
        if (stretch > 8192) stretch = 8192;
        uint32_t second = 0, third = 0;
        for (size_t i = 0; i < stretch; i += 8) {
            crc = CRC_U64(crc, load_native_u64(p + i));
            second = CRC_U64(second, load_native_u64(p + stretch + i));
            third = CRC_U64(third, load_native_u64(p + 2 * stretch + i));
        }
        crc = shift_accelerated(crc, 2 * stretch) ^ shift_accelerated(second, stretch) ^ third;
        p += 3 * stretch;
        n -= 3 * stretch;
    }
    for (; n >= 8; p += 8, n -= 8) crc = CRC_U64(crc, load_native_u64(p));
    while (n--) crc = CRC_U8(crc, *p++);
    return crc;
}
#endif

static uint32_t (*raw)(uint32_t, const uint8_t *, size_t) = raw_portable;
static uint32_t (*shift)(uint32_t, size_t) = shift_portable;

int crc32c_use(crc32c_kind kind) {
    if (kind == CRC32C_PORTABLE) {
        raw = raw_portable;
        shift = shift_portable;
        return 0;
    }
#ifdef ACCELERATED
    if (kind == KIND_HERE && processor_has_it()) {
        raw = raw_accelerated;
        shift = shift_accelerated;
        return 0;
    }
#endif
    return -1;
}

crc32c_kind crc32c_init(void) {
    fill_slices();
    fill_powers();
    if (crc32c_use(CRC32C_SSE42) == 0) return CRC32C_SSE42;
    if (crc32c_use(CRC32C_ARMV8) == 0) return CRC32C_ARMV8;
    return CRC32C_PORTABLE;
}

uint32_t crc32c(uint32_t crc, const uint8_t *p, size_t n) { return ~raw(~crc, p, n); }

uint32_t crc32c_patch(uint32_t crc, const uint8_t *before, const uint8_t *after, size_t h, size_t tail) {
    uint8_t difference[64];
    uint32_t effect = 0;
    for (size_t done = 0; done < h;) {
        size_t step = h - done < sizeof difference ? h - done : sizeof difference;
        for (size_t i = 0; i < step; i++) difference[i] = before[done + i] ^ after[done + i];
        effect = raw(effect, difference, step);
        done += step;
    }
    return crc ^ shift(effect, tail);
}
