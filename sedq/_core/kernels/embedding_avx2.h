/* Parts of the AVX2 bags: one row's codes into accumulators, and accumulators into columns.
 *
 * 8 accumulators of 8 columns, a block of 64, stay in registers. Which column a lane holds is what costs the fewest
 * shuffles: of 32 bytes, accumulator k of 4 has byte k of each word of 32 bits; packed codes have accumulators of their own
 * for each position in a byte. `columns` puts them in order, once a bag. */
#ifndef SEDQ_EMBEDDING_AVX2_H
#define SEDQ_EMBEDDING_AVX2_H

#include "rows.h"

#include <immintrin.h>

/* one that can't see what an address is made of adds constants to it where it is used, not to its parts, in registers */
#define HIDE_ADDRESS(p) __asm__ volatile("" : "+r"(p))

#define INLINE static inline __attribute__((always_inline))

/* Bytes of codes that one load brings, but where a row has fewer left: these fill GROUP(bits) accumulators. */
#define GROUP_BYTES(BITS) ((BITS) <= 8 ? 8 : (BITS))
#define GROUP(BITS) ((BITS) <= 8 ? 8 / (BITS) : 1)

/* Masks for vpshufb that bring byte K of each word of 32 bits down. */
#define WORD(I, K) 4 * I + K, -1, -1, -1
#define HALF(K) WORD(0, K), WORD(1, K), WORD(2, K), WORD(3, K)
static const int8_t inner_bytes[2][32] __attribute__((aligned(32))) = {{HALF(1), HALF(1)}, {HALF(2), HALF(2)}};

/* Byte k of each word. `inner`: the masks, which a loop without a register to spare takes from memory. */
INLINE __m256i byte_of(__m256i x, int k, const int8_t (*inner)[32])
{
    if (k == 0)
        return _mm256_and_si256(x, _mm256_set1_epi32(0xff));
    if (k == 3)
        return _mm256_srli_epi32(x, 24);
    return _mm256_shuffle_epi8(x, _mm256_load_si256((const __m256i *)inner[k - 1]));
}

INLINE __m256 add_codes(__m256 factor, __m256i codes, __m256 acc)
{
    return _mm256_fmadd_ps(factor, _mm256_cvtepi32_ps(codes), acc);
}

/* n <= 8 bytes, zeros above; nothing beyond them is read */
INLINE uint64_t load_bytes(const uint8_t *p, int64_t n)
{
    uint32_t low, high;
    if (n < 4)
        return (uint64_t)p[0] | (uint64_t)p[n / 2] << 8 * (n / 2) | (uint64_t)p[n - 1] << 8 * (n - 1);
    memcpy(&low, p, sizeof low);
    memcpy(&high, p + n - 4, sizeof high);
    return (uint64_t)low | (uint64_t)high << 8 * (n - 4);
}

/* Group of up to 32 bytes at p, of which n are the row's. */
INLINE __m256i load_group(const int BITS, const int whole, const uint8_t *p, int64_t n)
{
    if (BITS == 32) {
        if (whole)
            return _mm256_loadu_si256((const __m256i *)p);
        const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        return _mm256_maskload_epi32((const int *)p, _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(n / 4)), lanes));
    }
    if (BITS == 16) {
        if (whole)
            return _mm256_zextsi128_si256(_mm_loadu_si128((const __m128i *)p));
        return _mm256_zextsi128_si256(_mm_set_epi64x(n > 8 ? (long long)load_bytes(p + 8, n - 8) : 0,
                                                     (long long)load_bytes(p, n < 8 ? n : 8)));
    }
    if (whole)
        return _mm256_zextsi128_si256(_mm_loadl_epi64((const __m128i *)p));
    return _mm256_zextsi128_si256(_mm_cvtsi64_si128((long long)load_bytes(p, n)));
}

/* A group's codes times factor into GROUP(BITS) accumulators. */
INLINE void add_group(const int BITS, __m256i x, __m256 factor, __m256 *acc)
{
    if (BITS == 32) {
        acc[0] = _mm256_fmadd_ps(factor, _mm256_castsi256_ps(x), acc[0]);
    } else if (BITS == 16) {
        acc[0] = _mm256_fmadd_ps(factor, _mm256_cvtph_ps(_mm256_castsi256_si128(x)), acc[0]);
    } else {
        __m256i q = _mm256_cvtepu8_epi32(_mm256_castsi256_si128(x));
#pragma GCC unroll 4
        for (int k = 0; k < 8 / BITS; k++) {
            const __m256i low = k + 1 < 8 / BITS ? _mm256_and_si256(q, _mm256_set1_epi32((1 << BITS) - 1)) : q;
            acc[k] = add_codes(factor, low, acc[k]);
            q = _mm256_srli_epi32(q, BITS);
        }
    }
}

/* How many accumulators are filled from loads of 32 bytes. A last group that may be short isn't. */
#define WIDE(BITS, NV, OWN) ((BITS) == 8 ? ((NV) - !(OWN)) / 4 * 4 : (BITS) == 4 && (OWN) ? (NV) / 8 * 8 : 0)

/* 32 bytes of codes times factor into 32 / BITS accumulators. */
INLINE void add_wide(const int BITS, __m256i x, __m256 factor, __m256 *acc, const int8_t (*inner)[32])
{
    const __m256i low = _mm256_set1_epi8(15);
#pragma GCC unroll 2
    for (int p = 0; p < 8 / BITS; p++) {
        const __m256i codes = BITS == 8 ? x : _mm256_and_si256(p ? _mm256_srli_epi32(x, 4) : x, low);
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++)
            acc[4 * p + k] = add_codes(factor, byte_of(codes, k, inner), acc[4 * p + k]);
    }
}

/* One row's codes, NV accumulators of them, times factor; returns `sum` with their bytes added. last: bytes of the last
 * group, where rows aren't ours. */
INLINE __m256i add_row(const int BITS, const int NV, const int OWN, const int check, const uint8_t *codes, int64_t last,
                       __m256 factor, __m256 *acc, __m256i sum)
{
    const __m256i zero = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int z = 0; z < WIDE(BITS, NV, OWN); z += 32 / BITS) {
        const __m256i x = _mm256_loadu_si256((const __m256i *)(codes + z * BITS));
        const int8_t(*inner)[32] = inner_bytes;
        if (check) {
            HIDE_ADDRESS(inner); /* or the compiler keeps masks in registers, and accumulators on the stack */
            sum = _mm256_add_epi64(sum, _mm256_sad_epu8(x, zero));
        }
        add_wide(BITS, x, factor, acc + z, inner);
    }
#pragma GCC unroll 8
    for (int z = WIDE(BITS, NV, OWN); z < NV; z += GROUP(BITS)) {
        const int whole = OWN || z + GROUP(BITS) < NV;
        const __m256i x = load_group(BITS, whole, codes + z / GROUP(BITS) * GROUP_BYTES(BITS), last);
        if (check)
            sum = _mm256_add_epi64(sum, _mm256_sad_epu8(x, zero));
        add_group(BITS, x, factor, acc + z);
    }
    return sum;
}

/* Two accumulators of even and odd columns as 16 columns, or as two runs of 8 that lie `apart`. */
INLINE void interleave(__m256 even, __m256 odd, float *out, int apart)
{
    const __m256 low = _mm256_unpacklo_ps(even, odd), high = _mm256_unpackhi_ps(even, odd);
    _mm256_store_ps(out, _mm256_permute2f128_ps(low, high, 0x20));
    _mm256_store_ps(out + apart, _mm256_permute2f128_ps(low, high, 0x31));
}

/* Accumulators of columns 4i + k as 32 columns. */
INLINE void interleave_4(const __m256 *acc, float *out)
{
    float pairs[32] __attribute__((aligned(32))); /* columns 4i, 4i + 2, ...; then 4i + 1, 4i + 3, ... */
    interleave(acc[0], acc[2], pairs, 8);
    interleave(acc[1], acc[3], pairs + 16, 8);
    interleave(_mm256_load_ps(pairs), _mm256_load_ps(pairs + 16), out, 8);
    interleave(_mm256_load_ps(pairs + 8), _mm256_load_ps(pairs + 24), out + 16, 8);
}

/* Accumulators in the order of columns. */
INLINE void columns(const int BITS, const int NV, const int OWN, const __m256 *acc, float *out)
{
    const int wide = WIDE(BITS, NV, OWN);
#pragma GCC unroll 8
    for (int z = 0; z < wide; z += 32 / BITS) {
        if (BITS == 8) {
            interleave_4(acc + z, out + 8 * z);
        } else {
            float halves[64] __attribute__((aligned(32))); /* even columns, then odd ones */
            interleave_4(acc + z, halves);
            interleave_4(acc + z + 4, halves + 32);
            for (int j = 0; j < 32; j += 8)
                interleave(_mm256_load_ps(halves + j), _mm256_load_ps(halves + 32 + j), out + 8 * z + 2 * j, 8);
        }
    }
#pragma GCC unroll 8
    for (int z = wide; z < NV; z += GROUP(BITS)) {
        float *to = out + z * 8;
        if (BITS == 4)
            interleave(acc[z], acc[z + 1], to, 8);
        else if (BITS == 2)
            interleave_4(acc + z, to);
        else
            _mm256_store_ps(to, acc[z]);
    }
}

#endif
