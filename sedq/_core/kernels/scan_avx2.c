/* Scrubbing for AVX2: rows of ours, four at a time, as fast as memory gives them.
 *
 *   codes   vpsadbw sums 32 bytes to four 64-bit lanes; the lanes of four rows are added crosswise to one vector of four sums
 *   tails   words and digests of four rows, 16 bytes each, are transposed likewise
 *   compare (sum << 40) + word 0 + word 1 + row number with the digest, four rows in one comparison
 */
#include "rows.h"

#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))

enum { TAIL = 16, AHEAD = 4096 }; /* bytes: the hardware's own prefetching ends at each page */

/* Four partial sums of n bytes, a multiple of 8. */
INLINE __m256i byte_sums(const uint8_t *p, int64_t n)
{
    const __m256i zero = _mm256_setzero_si256();
    __m256i sums = zero;
    int64_t j = 0;
    for (; j + 32 <= n; j += 32)
        sums = _mm256_add_epi64(sums, _mm256_sad_epu8(_mm256_loadu_si256((const __m256i *)(p + j)), zero));
    for (; j + 16 <= n; j += 16)
        sums = _mm256_add_epi64(
            sums, _mm256_sad_epu8(_mm256_zextsi128_si256(_mm_loadu_si128((const __m128i *)(p + j))), zero));
    if (j < n)
        sums = _mm256_add_epi64(
            sums, _mm256_sad_epu8(_mm256_zextsi128_si256(_mm_loadl_epi64((const __m128i *)(p + j))), zero));
    return sums;
}

/* The tails of two rows. */
INLINE __m256i tails(const uint8_t *a, const uint8_t *b)
{
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)a)),
                                   _mm_loadu_si128((const __m128i *)b), 1);
}

/* Bit i is set if row first + i of four fits its digest. */
INLINE int four(const uint8_t *p, int64_t stride, int64_t codes, int64_t first)
{
    const __m256i s0 = byte_sums(p, codes), s1 = byte_sums(p + stride, codes);
    const __m256i s2 = byte_sums(p + 2 * stride, codes), s3 = byte_sums(p + 3 * stride, codes);
    const __m256i s01 = _mm256_add_epi64(_mm256_unpacklo_epi64(s0, s1), _mm256_unpackhi_epi64(s0, s1));
    const __m256i s23 = _mm256_add_epi64(_mm256_unpacklo_epi64(s2, s3), _mm256_unpackhi_epi64(s2, s3));
    const __m256i bytes =
        _mm256_add_epi64(_mm256_permute2x128_si256(s01, s23, 0x20), _mm256_permute2x128_si256(s01, s23, 0x31));
    const uint8_t *tail = p + codes;
    const __m256i t02 = tails(tail, tail + 2 * stride), t13 = tails(tail + stride, tail + 3 * stride);
    const __m256i words = _mm256_unpacklo_epi64(t02, t13), stored = _mm256_unpackhi_epi64(t02, t13);
    const __m256i both =
        _mm256_add_epi64(_mm256_and_si256(words, _mm256_set1_epi64x(0xffffffff)), _mm256_srli_epi64(words, 32));
    const __m256i rows = _mm256_add_epi64(_mm256_set1_epi64x(first), _mm256_setr_epi64x(0, 1, 2, 3));
    const __m256i digests = _mm256_add_epi64(_mm256_add_epi64(_mm256_slli_epi64(bytes, 40), both), rows);
    return _mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpeq_epi64(digests, stored)));
}

INLINE int64_t scan_own(const sedq_table *t, int64_t first, int64_t end, int64_t codes)
{
    const int64_t stride = codes + TAIL;
    for (; first + 4 <= end; first += 4) {
        const uint8_t *p = t->rows + first * stride;
        for (int64_t at = 0; at < 4 * stride; at += 64)
            _mm_prefetch((const char *)((uintptr_t)p + AHEAD + (uintptr_t)at), _MM_HINT_T0);
        const int fits = four(p, stride, codes, first);
        if (fits != 15)
            return first + __builtin_ctz(~(unsigned)fits);
    }
    for (; first < end; first++)
        if (sedq_row_digest(t, first) != sedq_stored_digest(t, first))
            return first;
    return -1;
}

/* Rows of another layout: one at a time, in any place. */
static int64_t scan_foreign(const sedq_table *t, int64_t first, int64_t end)
{
    for (; first < end; first++) {
        const uint8_t *codes = sedq_codes(t, first);
        const int64_t whole = t->code_bytes / 8 * 8;
        const __m256i four_sums = byte_sums(codes, whole);
        const __m128i two = _mm_add_epi64(_mm256_castsi256_si128(four_sums), _mm256_extracti128_si256(four_sums, 1));
        uint64_t bytes = (uint64_t)_mm_cvtsi128_si64(two) + (uint64_t)_mm_extract_epi64(two, 1);
        for (int64_t j = whole; j < t->code_bytes; j++)
            bytes += codes[j];
        if ((bytes << 40) + sedq_word(t, 0, first) + sedq_word(t, 1, first) + (uint64_t)first !=
            sedq_stored_digest(t, first))
            return first;
    }
    return -1;
}

static int64_t scan(const sedq_table *t, int64_t first, int64_t n)
{
    const int64_t end = first + n;
    if (t->format == SEDQ_FOREIGN)
        return scan_foreign(t, first, end);
    switch (t->code_bytes) { /* the usual sizes without loops */
    case 32:
        return scan_own(t, first, end, 32);
    case 64:
        return scan_own(t, first, end, 64);
    default:
        return scan_own(t, first, end, t->code_bytes);
    }
}

void SEDQ_INIT(scan_avx2)(sedq_context *c)
{
    c->scan = scan;
}
