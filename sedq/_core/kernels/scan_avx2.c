/* Scrubbing for AVX2: four rows at a time, as fast as memory gives them.
 *
 *   codes   vpsadbw sums 32 bytes to four 64-bit lanes; the lanes of four rows are added crosswise to one vector of four sums
 *   tails   words and digests of four rows of ours, 16 bytes each, are transposed likewise; of another layout they are
 *           gathered one by one
 *   compare (sum << 40) + word 0 + word 1 + row number + 1 with the digest, four rows in one comparison
 */
#include "rows.h"

#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))

enum { TAIL = 16, AHEAD = 4096 }; /* bytes: the hardware's own prefetching ends at each page */

/* Four partial sums of n bytes. */
INLINE __m256i byte_sums(const uint8_t *p, int64_t n)
{
    const __m256i zero = _mm256_setzero_si256();
    __m256i sums = zero;
    uint64_t rest = 0;
    int64_t j = 0;
    for (; j + 32 <= n; j += 32)
        sums = _mm256_add_epi64(sums, _mm256_sad_epu8(_mm256_loadu_si256((const __m256i *)(p + j)), zero));
    for (; j + 16 <= n; j += 16)
        sums = _mm256_add_epi64(
            sums, _mm256_sad_epu8(_mm256_zextsi128_si256(_mm_loadu_si128((const __m128i *)(p + j))), zero));
    if (j + 8 <= n) {
        sums = _mm256_add_epi64(
            sums, _mm256_sad_epu8(_mm256_zextsi128_si256(_mm_loadl_epi64((const __m128i *)(p + j))), zero));
        j += 8;
    }
    if (j == n)
        return sums;
    if (n >= 8) { /* the last bytes of a word that ends with the row */
        memcpy(&rest, p + n - 8, sizeof rest);
        rest >>= 64 - 8 * (n - j);
    } else {
        for (; j < n; j++)
            rest = rest << 8 | p[j];
    }
    return _mm256_add_epi64(sums, _mm256_sad_epu8(_mm256_zextsi128_si256(_mm_cvtsi64_si128((int64_t)rest)), zero));
}

/* Sums of n bytes of each of four rows. */
INLINE __m256i four_sums(const uint8_t *p, int64_t stride, int64_t n)
{
    const __m256i s0 = byte_sums(p, n), s1 = byte_sums(p + stride, n);
    const __m256i s2 = byte_sums(p + 2 * stride, n), s3 = byte_sums(p + 3 * stride, n);
    const __m256i s01 = _mm256_add_epi64(_mm256_unpacklo_epi64(s0, s1), _mm256_unpackhi_epi64(s0, s1));
    const __m256i s23 = _mm256_add_epi64(_mm256_unpacklo_epi64(s2, s3), _mm256_unpackhi_epi64(s2, s3));
    return _mm256_add_epi64(_mm256_permute2x128_si256(s01, s23, 0x20), _mm256_permute2x128_si256(s01, s23, 0x31));
}

/* Bit i is set if row first + i of four fits its digest; `words` are word 0 + word 1. */
INLINE int fitting(__m256i bytes, __m256i words, __m256i stored, int64_t first)
{
    const __m256i rows = _mm256_add_epi64(_mm256_set1_epi64x(first), _mm256_setr_epi64x(1, 2, 3, 4));
    const __m256i digests = _mm256_add_epi64(_mm256_add_epi64(_mm256_slli_epi64(bytes, 40), words), rows);
    return _mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpeq_epi64(digests, stored)));
}

/* The tails of two rows. */
INLINE __m256i tails(const uint8_t *a, const uint8_t *b)
{
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)a)),
                                   _mm_loadu_si128((const __m128i *)b), 1);
}

/* Four rows of ours. */
INLINE int four_own(const uint8_t *p, int64_t stride, int64_t codes, int64_t first)
{
    const __m256i bytes = four_sums(p, stride, codes); /* before the tails: memory likes to be read in its order */
    const uint8_t *tail = p + codes;
    const __m256i t02 = tails(tail, tail + 2 * stride), t13 = tails(tail + stride, tail + 3 * stride);
    const __m256i words = _mm256_unpacklo_epi64(t02, t13), stored = _mm256_unpackhi_epi64(t02, t13);
    const __m256i both =
        _mm256_add_epi64(_mm256_and_si256(words, _mm256_set1_epi64x(0xffffffff)), _mm256_srli_epi64(words, 32));
    return fitting(bytes, both, stored, first);
}

INLINE int64_t words_of(const sedq_table *t, int64_t row)
{
    return (int64_t)((uint64_t)sedq_word(t, 0, row) + sedq_word(t, 1, row));
}

INLINE int64_t digest_of(const sedq_table *t, int64_t row)
{
    return (int64_t)sedq_stored_digest(t, row);
}

/* Four rows of another layout. */
INLINE int four_foreign(const sedq_table *t, int64_t codes, int64_t first)
{
    const __m256i words = _mm256_setr_epi64x(words_of(t, first), words_of(t, first + 1), words_of(t, first + 2),
                                             words_of(t, first + 3));
    const __m256i stored = _mm256_setr_epi64x(digest_of(t, first), digest_of(t, first + 1), digest_of(t, first + 2),
                                              digest_of(t, first + 3));
    return fitting(four_sums(sedq_codes(t, first), t->stride, codes), words, stored, first);
}

/* What is scrubbed needn't stay in the caches: others live there. */
INLINE void ask_for(const void *p, int64_t bytes)
{
    for (int64_t at = 0; at < bytes; at += 64)
        _mm_prefetch((const char *)((uintptr_t)p + AHEAD + (uintptr_t)at), _MM_HINT_NTA);
}

INLINE int64_t scan_rows(const sedq_table *t, int own, int64_t first, int64_t end, int64_t codes)
{
    const int64_t stride = own ? codes + TAIL : t->stride;
    for (; first + 4 <= end; first += 4) {
        const uint8_t *p = t->rows + first * stride;
        ask_for(p, 4 * stride);
        const int fits = own ? four_own(p, stride, codes, first) : four_foreign(t, codes, first);
        if (fits != 15)
            return first + __builtin_ctz(~(unsigned)fits);
    }
    for (; first < end; first++)
        if (sedq_row_digest(t, first) != sedq_stored_digest(t, first))
            return first;
    return -1;
}

/* Short rows without loops; in longer ones, without, the loads of four rows would mix and leave memory's order. */
INLINE int64_t scan_sizes(const sedq_table *t, int own, int64_t first, int64_t end)
{
    switch (t->code_bytes) {
    case 32:
        return scan_rows(t, own, first, end, 32);
    case 64:
        return scan_rows(t, own, first, end, 64);
    default:
        return scan_rows(t, own, first, end, t->code_bytes);
    }
}

static int64_t scan(const sedq_table *t, int64_t first, int64_t n)
{
    return t->format == SEDQ_FOREIGN ? scan_sizes(t, 0, first, first + n) : scan_sizes(t, 1, first, first + n);
}

void SEDQ_INIT(scan_avx2)(sedq_context *c)
{
    c->scan = scan;
}
