/* Loads of a few bytes, and sums of lanes, for the AVX2 kernels. */
#ifndef SEDQ_BYTES_AVX2_H
#define SEDQ_BYTES_AVX2_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* sum of 32-bit lanes modulo 2^32 */
INLINE uint32_t reduce(__m256i x)
{
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(s);
}

/* lane i of the result is the sum of the lanes of x[i] */
INLINE __m128i reduce4(const __m256i *x)
{
    const __m256i y = _mm256_hadd_epi32(_mm256_hadd_epi32(x[0], x[1]), _mm256_hadd_epi32(x[2], x[3]));
    return _mm_add_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
}

INLINE uint64_t load_part(const uint8_t *p, int64_t n) /* n < 8 bytes */
{
    uint32_t low, high;
    if (n < 4)
        return n <= 0 ? 0 : (uint64_t)p[0] | (uint64_t)p[n / 2] << n / 2 * 8 | (uint64_t)p[n - 1] << (n - 1) * 8;
    memcpy(&low, p, 4);
    memcpy(&high, p + n - 4, 4);
    return low | (uint64_t)high << (n - 4) * 8;
}

/* up to 16 bytes, zeros beyond; only bytes that exist are read */
INLINE __m128i load_bytes(const void *from, int64_t left)
{
    const uint8_t *p = from;
    uint64_t low;
    if (left >= 16)
        return _mm_loadu_si128((const __m128i *)p);
    if (left < 8)
        return _mm_cvtsi64_si128((int64_t)load_part(p, left));
    memcpy(&low, p, 8);
    return _mm_set_epi64x((int64_t)load_part(p + 8, left - 8), (int64_t)low);
}

#endif
