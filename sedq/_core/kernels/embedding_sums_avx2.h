/* Parts of the AVX2 bags: the sums of 8 rows' words and digests. */
#ifndef SEDQ_EMBEDDING_SUMS_AVX2_H
#define SEDQ_EMBEDDING_SUMS_AVX2_H

#include <immintrin.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))

/* Sums over the rows of a bag, in 64-bit lanes and in doubles: of bytes of codes; of [words, digest] as 64-bit numbers; of
 * their high halves, [word 1, high half of the digest]; of the bits of the weights. products and biases are of w scale S and
 * w bias, or of w sum for bits 16 and 32; sizes of their magnitudes. */
typedef struct {
    __m256i bytes, all, odd, weights;
    __m256d products, biases, product_sizes, bias_sizes;
    uint64_t visited; /* rows */
} lane_sums;

INLINE lane_sums no_sums(void)
{
    lane_sums s;
    s.bytes = s.all = s.odd = s.weights = _mm256_setzero_si256();
    s.products = s.biases = s.product_sizes = s.bias_sizes = _mm256_setzero_pd();
    s.visited = 0;
    return s;
}

INLINE void add_sums(const lane_sums *s, lane_sums *to)
{
    to->bytes = _mm256_add_epi64(to->bytes, s->bytes);
    to->all = _mm256_add_epi64(to->all, s->all);
    to->odd = _mm256_add_epi64(to->odd, s->odd);
    to->weights = _mm256_add_epi64(to->weights, s->weights);
    to->products = _mm256_add_pd(to->products, s->products);
    to->biases = _mm256_add_pd(to->biases, s->biases);
    to->product_sizes = _mm256_add_pd(to->product_sizes, s->product_sizes);
    to->bias_sizes = _mm256_add_pd(to->bias_sizes, s->bias_sizes);
    to->visited += s->visited;
}

/* words and digests of rows 0 .. 3 in the low halves, 4 .. 7 in the high ones */
typedef struct {
    __m256i row[4];
} eight_tails;

INLINE __m256i word_of(const eight_tails *t, int w)
{
    const __m256i a = _mm256_unpacklo_epi32(t->row[0], t->row[1]), b = _mm256_unpacklo_epi32(t->row[2], t->row[3]);
    return w ? _mm256_unpackhi_epi64(a, b) : _mm256_unpacklo_epi64(a, b);
}

INLINE __m256i digest_high(const eight_tails *t)
{
    const __m256i a = _mm256_unpackhi_epi32(t->row[0], t->row[1]), b = _mm256_unpackhi_epi32(t->row[2], t->row[3]);
    return _mm256_unpackhi_epi64(a, b);
}

/* float16 scale and bias of 8 words */
INLINE void halves(__m256i word, __m256 *scale, __m256 *bias)
{
    const __m256i low = _mm256_and_si256(word, _mm256_set1_epi32(0xffff)), high = _mm256_srli_epi32(word, 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
    *scale = _mm256_cvtph_ps(_mm256_castsi256_si128(packed));
    *bias = _mm256_cvtph_ps(_mm256_extracti128_si256(packed, 1));
}

INLINE __m256d absolute(__m256d x)
{
    return _mm256_andnot_pd(_mm256_set1_pd(-0.0), x);
}

INLINE __m256d low_doubles(__m256 x)
{
    return _mm256_cvtps_pd(_mm256_castps256_ps128(x));
}

INLINE __m256d high_doubles(__m256 x)
{
    return _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
}

/* The precomputed sums of 4 half or float rows. */
INLINE void add_float_sums(__m256d sum, __m256d size, __m256d w, lane_sums *s)
{
    s->products = _mm256_fmadd_pd(w, sum, s->products);
    s->product_sizes = _mm256_fmadd_pd(absolute(w), size, s->product_sizes);
}

/* The shares of 4 rows. In doubles: in floats their rounding would outweigh that of short bags. */
INLINE void add_shares(__m256d scale, __m256d bias, __m256d codes, int weighted, __m256d w, lane_sums *s)
{
    if (weighted) {
        scale = _mm256_mul_pd(scale, w);
        bias = _mm256_mul_pd(bias, w);
    }
    s->products = _mm256_fmadd_pd(scale, codes, s->products);
    s->product_sizes = _mm256_fmadd_pd(absolute(scale), codes, s->product_sizes);
    s->biases = _mm256_add_pd(s->biases, bias);
    s->bias_sizes = _mm256_add_pd(s->bias_sizes, absolute(bias));
}

/* Add up what the tails of 8 rows say; weights are 1 where `weighted` isn't set. scale and bias are apart from those that
 * were pooled with. */
INLINE void check_tails(const int BITS, const int half, const eight_tails *t, int weighted, __m256 w, lane_sums *s)
{
    const __m256i low32 = _mm256_set1_epi64x(0xffffffff), word0 = word_of(t, 0), word1 = word_of(t, 1);
    __m256 scale = _mm256_castsi256_ps(word0), bias = _mm256_castsi256_ps(word1);
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) {
        s->all = _mm256_add_epi64(s->all, t->row[r]);
        s->odd = _mm256_add_epi64(s->odd, _mm256_srli_epi64(t->row[r], 32));
    }
    if (weighted) {
        const __m256i bits = _mm256_castps_si256(w);
        s->weights = _mm256_add_epi64(s->weights, _mm256_and_si256(bits, low32));
        s->weights = _mm256_add_epi64(s->weights, _mm256_srli_epi64(bits, 32));
    }
    if (BITS > 8) {
        add_float_sums(low_doubles(scale), low_doubles(bias), low_doubles(w), s);
        add_float_sums(high_doubles(scale), high_doubles(bias), high_doubles(w), s);
        return;
    }
    const __m256i codes = BITS == 8 ? _mm256_srli_epi32(digest_high(t), 8) : word1;
    if (half)
        halves(word0, &scale, &bias);
    add_shares(low_doubles(scale), low_doubles(bias), _mm256_cvtepi32_pd(_mm256_castsi256_si128(codes)), weighted,
               low_doubles(w), s);
    add_shares(high_doubles(scale), high_doubles(bias), _mm256_cvtepi32_pd(_mm256_extracti128_si256(codes, 1)), weighted,
               high_doubles(w), s);
}

#endif
