/* EmbeddingBag over 8-bit rows for AVX-512.
 *
 * A bag is walked once per block of up to 256 columns, which stay in 16 accumulators: codes are loaded once, summed with
 * vpsadbw for the digest from the very registers that are then widened (vpmovzxbd), converted and added (vfmadd). What
 * follows a row's codes (scale, bias, digest: 16 bytes) is copied to a small buffer and checked for 8 rows at a time, in
 * vectors: a row's share of scalar work is what costs in a table that is in cache. */
#include "context.h"
#include "fault_hook.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

enum { AHEAD = 16, BLOCK = 8, TAIL = 16 };

INLINE int64_t index_at(const void *indices, int index_bytes, int64_t i)
{
    if (index_bytes == 4)
        return ((const int32_t *)indices)[i];
    return ((const int64_t *)indices)[i];
}

INLINE void prefetch_row(const uint8_t *row, int64_t stride)
{
    for (int64_t at = 0; at < stride; at += 64)
        _mm_prefetch((const char *)row + at, _MM_HINT_T0);
    _mm_prefetch((const char *)row + stride - 1, _MM_HINT_T0);
}

/* Sums over the rows of a bag, in lanes. */
typedef struct {
    __m512i codes, params, digest, digest_hi;
    __m512d reference, magnitude;
} lane_sums;

/* Tails of 8 rows, unused ones zero: each is scale, bias (32 bits each) and digest (64 bits). */
INLINE void check_tails(const uint8_t *tails, const float *w, double dim, lane_sums *s)
{
    const __m512i low32 = _mm512_set1_epi64(0xffffffff);
    const __m512i a = _mm512_load_si512(tails), b = _mm512_load_si512(tails + 64);
    const __m512i even = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
    const __m512i odd = _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15);
    const __m512i param = _mm512_permutex2var_epi64(a, even, b);
    const __m512i digest = _mm512_permutex2var_epi64(a, odd, b);
    const __m512i code_sum = _mm512_srli_epi64(digest, 40);
    s->params = _mm512_add_epi64(s->params, _mm512_add_epi64(_mm512_and_si512(param, low32),
                                                             _mm512_srli_epi64(param, 32)));
    s->digest = _mm512_add_epi64(s->digest, digest);
    s->digest_hi = _mm512_add_epi64(s->digest_hi, code_sum);

    const __m512d scale = _mm512_cvtps_pd(_mm256_castsi256_ps(_mm512_cvtepi64_epi32(param)));
    const __m512d bias = _mm512_cvtps_pd(_mm256_castsi256_ps(_mm512_cvtepi64_epi32(_mm512_srli_epi64(param, 32))));
    const __m512d q = _mm512_cvtepu64_pd(code_sum), d = _mm512_set1_pd(dim);
    const __m512d value = _mm512_fmadd_pd(scale, q, _mm512_mul_pd(d, bias));
    const __m512d size = _mm512_fmadd_pd(_mm512_abs_pd(scale), q, _mm512_mul_pd(d, _mm512_abs_pd(bias)));
    const __m512d weight = _mm512_cvtps_pd(_mm256_load_ps(w));
    s->reference = _mm512_fmadd_pd(weight, value, s->reference);
    s->magnitude = _mm512_fmadd_pd(_mm512_abs_pd(weight), size, s->magnitude);
}

/* Rows begin .. end times columns of NZ vectors from `column` on, bias not yet added; the bias sum is returned. */
INLINE float accumulate(const int NZ, const int check, const sedq_table *t, const void *indices, int index_bytes,
                        const float *weights, int64_t begin, int64_t end, int64_t total, int64_t column,
                        float *acc_out, lane_sums *s, uint64_t *index_sum)
{
    _Alignas(64) uint8_t tails[BLOCK * TAIL];
    _Alignas(64) float w[BLOCK];
    const volatile char *again = indices; /* the digest sees the index as loaded a second time */
    const int first = column == 0;
    const int64_t last = total - 1;
    /* codes of this block of columns; beyond them in the last chunk stand the tail's bytes, which no one may sum */
    const int64_t bytes = t->codes - column < NZ * 16 ? t->codes - column : NZ * 16;
    const int64_t left = bytes % 64 ? bytes % 64 : 64;
    const __mmask64 last_mask = ~(__mmask64)0 >> (64 - left);
    __m512 acc[16];
    float bias = 0;
    int held = 0;
#pragma GCC unroll 16
    for (int z = 0; z < NZ; z++)
        acc[z] = _mm512_setzero_ps();
    for (int64_t i = begin; i < end; i++) {
        const uint8_t *row = t->rows + index_at(indices, index_bytes, i) * t->stride;
        const uint8_t *codes = row + column;
        const float weight = weights ? weights[i] : 1.0f;
        if (first)
            prefetch_row(t->rows + index_at(indices, index_bytes, i + AHEAD < last ? i + AHEAD : last) * t->stride,
                         t->stride);
        const __m128i tail = _mm_loadu_si128((const __m128i *)(row + t->codes));
        const __m128 params = _mm_castsi128_ps(tail);
        const __m512 scale = _mm512_broadcastss_ps(_mm_mul_ss(_mm_set_ss(weight), params));
        bias = fmaf(weight, _mm_cvtss_f32(_mm_movehdup_ps(params)), bias);
#pragma GCC unroll 4
        for (int c = 0; c < (NZ + 3) / 4; c++) {
            const int whole = c + 1 < (NZ + 3) / 4;
            const __m512i x = whole ? _mm512_loadu_si512(codes + c * 64)
                                    : _mm512_maskz_loadu_epi8(last_mask, codes + c * 64);
            if (check)
                s->codes = _mm512_add_epi64(s->codes, _mm512_sad_epu8(x, _mm512_setzero_si512()));
#pragma GCC unroll 4
            for (int z = 0; z < 4; z++)
                if (c * 4 + z < NZ) {
                    const __m128i q = z == 0   ? _mm512_castsi512_si128(x)
                                      : z == 1 ? _mm512_extracti32x4_epi32(x, 1)
                                      : z == 2 ? _mm512_extracti32x4_epi32(x, 2)
                                               : _mm512_extracti32x4_epi32(x, 3);
                    acc[c * 4 + z] = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(q)),
                                                     acc[c * 4 + z]);
                }
        }
        if (check && first) {
            *index_sum += (uint64_t)index_at((const void *)again, index_bytes, i);
            _mm_store_si128((__m128i *)(tails + held * TAIL), tail);
            w[held] = weight;
            if (++held == BLOCK) {
                check_tails(tails, w, (double)t->dim, s);
                held = 0;
            }
        }
    }
    if (held) {
        memset(tails + held * TAIL, 0, (size_t)(BLOCK - held) * TAIL);
        memset(w + held, 0, (size_t)(BLOCK - held) * sizeof *w);
        check_tails(tails, w, (double)t->dim, s);
    }
#pragma GCC unroll 16
    for (int z = 0; z < NZ; z++)
        _mm512_store_ps(acc_out + z * 16, acc[z]);
    return bias;
}

typedef float (*accumulate_fn)(const sedq_table *, const void *, int, const float *, int64_t, int64_t, int64_t, int64_t,
                               float *, lane_sums *, uint64_t *);

#define ACCUMULATE(NZ, CHECK)                                                                                          \
    static __attribute__((noinline)) float accumulate_##NZ##_##CHECK(                                                  \
        const sedq_table *t, const void *indices, int index_bytes, const float *weights, int64_t begin, int64_t end,   \
        int64_t total, int64_t column, float *acc, lane_sums *s, uint64_t *index_sum)                                  \
    {                                                                                                                  \
        return accumulate(NZ, CHECK, t, indices, index_bytes, weights, begin, end, total, column, acc, s, index_sum);  \
    }
#define BOTH(NZ) ACCUMULATE(NZ, 0) ACCUMULATE(NZ, 1)
BOTH(1) BOTH(2) BOTH(3) BOTH(4) BOTH(5) BOTH(6) BOTH(7) BOTH(8)
BOTH(9) BOTH(10) BOTH(11) BOTH(12) BOTH(13) BOTH(14) BOTH(15) BOTH(16)
#define PAIR(NZ) {accumulate_##NZ##_0, accumulate_##NZ##_1}
static const accumulate_fn table[16][2] = {PAIR(1),  PAIR(2),  PAIR(3),  PAIR(4),  PAIR(5),  PAIR(6),
                                           PAIR(7),  PAIR(8),  PAIR(9),  PAIR(10), PAIR(11), PAIR(12),
                                           PAIR(13), PAIR(14), PAIR(15), PAIR(16)};

/* Add the bias, divide, sum and store one block of columns. */
INLINE void finish(const float *acc, int64_t n, float bias, float divisor, float *out, __m512d *pooled, __m512i *bits)
{
    for (int64_t j = 0; j < n; j += 16) {
        const __mmask16 m = n - j >= 16 ? 0xffff : (__mmask16)((1u << (n - j)) - 1);
        __m512 y = _mm512_add_ps(_mm512_load_ps(acc + j), _mm512_set1_ps(bias));
        y = _mm512_maskz_div_ps(m, y, _mm512_set1_ps(divisor));
        *pooled = _mm512_add_pd(*pooled, _mm512_cvtps_pd(_mm512_castps512_ps256(y)));
        *pooled = _mm512_add_pd(*pooled, _mm512_cvtps_pd(_mm512_extractf32x8_ps(y, 1)));
        *bits = _mm512_add_epi32(*bits, _mm512_castps_si512(y));
        _mm512_mask_storeu_ps(out + j, m, y);
    }
}

static void bag(const sedq_table *t, const void *indices, int index_bytes, const float *weights, int64_t begin,
                int64_t end, int64_t total, float divisor, float *out, int check, sedq_bag_sums *sums)
{
    _Alignas(64) float acc[256];
    lane_sums s;
    __m512d pooled = _mm512_setzero_pd();
    __m512i bits = _mm512_setzero_si512();
    uint64_t index_sum = 0;
    s.codes = s.params = s.digest = s.digest_hi = _mm512_setzero_si512();
    s.reference = s.magnitude = _mm512_setzero_pd();
    for (int64_t column = 0; column < t->dim; column += 256) {
        const int64_t n = t->dim - column < 256 ? t->dim - column : 256;
        const float bias = table[(n + 15) / 16 - 1][check != 0](t, indices, index_bytes, weights, begin, end, total,
                                                                column, acc, &s, &index_sum);
        SEDQ_FAULT_BAG(acc, n);
        finish(acc, n, bias, divisor, out + column, &pooled, &bits);
    }
    if (!check)
        return;
    sums->codes = (uint64_t)_mm512_reduce_add_epi64(s.codes);
    sums->params = (uint64_t)_mm512_reduce_add_epi64(s.params) + index_sum;
    sums->digest = (uint64_t)_mm512_reduce_add_epi64(s.digest);
    sums->digest_hi = (uint64_t)_mm512_reduce_add_epi64(s.digest_hi);
    sums->reference = _mm512_reduce_add_pd(s.reference);
    sums->magnitude = _mm512_reduce_add_pd(s.magnitude);
    sums->pooled = _mm512_reduce_add_pd(pooled);
    sums->out_bits = (uint32_t)_mm512_reduce_add_epi32(bits);
}

static int64_t range(const void *indices, int index_bytes, int64_t n, int64_t rows)
{
    int64_t i = 0;
    if (index_bytes == 8) {
        const __m512i limit = _mm512_set1_epi64(rows);
        for (; i + 8 <= n; i += 8)
            if (_mm512_cmpge_epu64_mask(_mm512_loadu_si512((const int64_t *)indices + i), limit))
                break;
    } else if (rows <= INT32_MAX) {
        const __m512i limit = _mm512_set1_epi32((int32_t)rows);
        for (; i + 16 <= n; i += 16)
            if (_mm512_cmpge_epu32_mask(_mm512_loadu_si512((const int32_t *)indices + i), limit))
                break;
    }
    for (; i < n; i++)
        if ((uint64_t)index_at(indices, index_bytes, i) >= (uint64_t)rows)
            return i;
    return -1;
}

void SEDQ_INIT(embedding_avx512vnni)(sedq_context *c)
{
    c->bag = bag;
    c->range = range;
}
