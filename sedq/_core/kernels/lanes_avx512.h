/* Sums of the 32-bit lanes of vectors, for the AVX-512 kernels. */
#ifndef SEDQ_LANES_AVX512_H
#define SEDQ_LANES_AVX512_H

#include <immintrin.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))

/* Sum of 32-bit lanes modulo 2^32. (The compiler's own reduction adds the last lanes as signed numbers.) */
INLINE uint32_t sum_words32(__m512i x)
{
    const __m256i a = _mm256_add_epi32(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
    __m128i b = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    b = _mm_add_epi32(b, _mm_shuffle_epi32(b, 0x4e));
    b = _mm_add_epi32(b, _mm_shuffle_epi32(b, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(b);
}

/* Lane i of the result is the sum of the lanes of x[i]: 16 vectors at once cost as much as three one by one. */
INLINE __m512i reduce16(__m512i *x)
{
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        x[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]),
                                _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]));
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        x[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(x[2 * i], x[2 * i + 1]),
                                _mm512_unpackhi_epi64(x[2 * i], x[2 * i + 1]));
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++)
        x[i] = _mm512_add_epi32(_mm512_shuffle_i32x4(x[2 * i], x[2 * i + 1], 0x88),
                                _mm512_shuffle_i32x4(x[2 * i], x[2 * i + 1], 0xdd));
    return _mm512_add_epi32(_mm512_shuffle_i32x4(x[0], x[1], 0x88), _mm512_shuffle_i32x4(x[0], x[1], 0xdd));
}

/* Store the sums of n <= 16 vectors. */
INLINE void store_sums(__m512i *x, int64_t n, uint32_t *out)
{
    for (int64_t i = n; i < 16; i++)
        x[i] = _mm512_setzero_si512();
    _mm512_mask_storeu_epi32(out, n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1), reduce16(x));
}

#endif
