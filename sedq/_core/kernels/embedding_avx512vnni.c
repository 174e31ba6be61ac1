/* EmbeddingBag over 8-bit rows of ours for AVX-512; other tables are AVX2's.
 *
 * A bag is walked once per block of up to 256 columns, which stay in 16 accumulators: codes are loaded once, summed with
 * vpsadbw for the digest from the very registers that are then widened (vpmovzxbd), converted and added (vfmadd). What
 * follows a row's codes (scale, bias, digest: 16 bytes) is checked for 8 rows at a time, in vectors: a row's share of scalar
 * work is what costs in a table that is in cache. Sums that every row adds to stay in registers. */
#include "context.h"
#include "fault_hook.h"
#include "lanes_avx512.h"

#include <math.h>

enum { L2_BYTES = 1 << 20, AHEAD = 32, BLOCK = 8, TAIL = 16 };

INLINE int64_t index_at(const void *indices, int index_bytes, int64_t i)
{
    if (index_bytes == 4)
        return ((const int32_t *)indices)[i];
    return ((const int64_t *)indices)[i];
}

/* whether a table is too large for L2 */
INLINE int is_far(const sedq_table *t)
{
    return t->num_rows * t->stride > L2_BYTES;
}

/* Of a table that is in L2 to L1; of a larger one to L2, which can wait for far more lines than L1. */
INLINE void prefetch_row(const uint8_t *row, int64_t stride, int far)
{
    if (far) {
        for (int64_t at = 0; at < stride; at += 64)
            _mm_prefetch((const char *)row + at, _MM_HINT_T1);
        _mm_prefetch((const char *)row + stride - 1, _MM_HINT_T1);
    } else {
        for (int64_t at = 0; at < stride; at += 64)
            _mm_prefetch((const char *)row + at, _MM_HINT_T0);
        _mm_prefetch((const char *)row + stride - 1, _MM_HINT_T0);
    }
}

/* The rows of a call that no earlier ones prefetch. Inlined, as compilers drop a call that does nothing but prefetch. */
INLINE void prefetch_first(const sedq_table *t, const void *indices, int index_bytes, int64_t total)
{
    for (int64_t i = 0; i < total && i < AHEAD; i++)
        prefetch_row(t->rows + index_at(indices, index_bytes, i) * t->stride, t->stride, is_far(t));
}

/* Sums over the rows of a bag, in lanes; see sedq_bag_sums. */
typedef struct {
    __m512i codes, params, rows, weights; /* rows: of the indices alone */
    __m512d reference, magnitude;
    uint64_t visited;
} lane_sums;

/* what stands in for the rows that a block lacks */
static const uint8_t no_row[TAIL];

INLINE __m512i load_tails(const uint8_t *const *tail)
{
    __m512i z = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)tail[0]));
    z = _mm512_inserti32x4(z, _mm_loadu_si128((const __m128i *)tail[1]), 1);
    z = _mm512_inserti32x4(z, _mm_loadu_si128((const __m128i *)tail[2]), 2);
    return _mm512_inserti32x4(z, _mm_loadu_si128((const __m128i *)tail[3]), 3);
}

/* The tails of 8 rows (scale and bias, 32 bits each, and 64 bits of digest), their indices and weights. */
INLINE void check_tails(const uint8_t *const *tail, __m512i index, __m256 w, double dim, lane_sums *s)
{
    const __m512i low32 = _mm512_set1_epi64(0xffffffff);
    const __m512i a = load_tails(tail), b = load_tails(tail + 4);
    /* rows in the order 0 4 1 5 2 6 3 7, which sums don't mind and weights follow below */
    const __m512i param = _mm512_unpacklo_epi64(a, b), digest = _mm512_unpackhi_epi64(a, b);
    const __m512i code_sum = _mm512_srli_epi64(digest, 40), bias_bits = _mm512_srli_epi64(param, 32);
    const __m512i low = _mm512_sub_epi64(digest, _mm512_slli_epi64(code_sum, 40));
    const __m512i bits = _mm512_add_epi64(_mm512_and_si512(param, low32), bias_bits);
    s->params = _mm512_add_epi64(s->params, _mm512_sub_epi64(bits, low));
    s->rows = _mm512_add_epi64(s->rows, index);
    s->codes = _mm512_sub_epi64(s->codes, code_sum);

    const __m512d scale = _mm512_cvtps_pd(_mm256_castsi256_ps(_mm512_cvtepi64_epi32(param)));
    const __m512d bias = _mm512_cvtps_pd(_mm256_castsi256_ps(_mm512_cvtepi64_epi32(bias_bits)));
    const __m512d q = _mm512_cvtepu64_pd(code_sum), d = _mm512_set1_pd(dim);
    const __m512d value = _mm512_fmadd_pd(scale, q, _mm512_mul_pd(d, bias));
    const __m512d size = _mm512_fmadd_pd(_mm512_abs_pd(scale), q, _mm512_mul_pd(d, _mm512_abs_pd(bias)));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m512d weight = _mm512_cvtps_pd(_mm256_permutevar8x32_ps(w, order));
    s->reference = _mm512_fmadd_pd(weight, value, s->reference);
    s->magnitude = _mm512_fmadd_pd(_mm512_abs_pd(weight), size, s->magnitude);
}

/* n <= 8 indices as 64-bit lanes: loaded here a second time, for the digest, apart from the addresses */
INLINE __m512i load_indices(const void *indices, int index_bytes, int64_t i, int n)
{
    const __mmask8 m = (__mmask8)((1u << n) - 1);
    if (index_bytes == 4)
        return _mm512_cvtepi32_epi64(_mm256_maskz_loadu_epi32(m, (const int32_t *)indices + i));
    return _mm512_maskz_loadu_epi64(m, (const int64_t *)indices + i);
}

/* Add one row's codes, NZ vectors of 16 columns, times scale; returns their sum in lanes. */
INLINE __m512i add_row(const int NZ, const int check, const uint8_t *codes, __mmask64 last_mask, __m512 scale,
                       __m512 *acc, __m512i sum)
{
#pragma GCC unroll 4
    for (int c = 0; c < (NZ + 3) / 4; c++) {
        const int whole = c + 1 < (NZ + 3) / 4;
        const __m512i x = whole ? _mm512_loadu_si512(codes + c * 64)
                                : _mm512_maskz_loadu_epi8(last_mask, codes + c * 64);
        if (check)
            sum = _mm512_add_epi64(sum, _mm512_sad_epu8(x, _mm512_setzero_si512()));
#pragma GCC unroll 4
        for (int z = 0; z < 4; z++)
            if (c * 4 + z < NZ) {
                const __m128i q = z == 0   ? _mm512_castsi512_si128(x)
                                  : z == 1 ? _mm512_extracti32x4_epi32(x, 1)
                                  : z == 2 ? _mm512_extracti32x4_epi32(x, 2)
                                           : _mm512_extracti32x4_epi32(x, 3);
                const __m512 value = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(q));
                acc[c * 4 + z] = _mm512_fmadd_ps(scale, value, acc[c * 4 + z]);
            }
    }
    return sum;
}

/* Rows begin .. end times columns of NZ vectors from `column` on, bias not yet added; the bias sum is returned. */
INLINE float accumulate(const int NZ, const int check, const sedq_table *t, const void *indices, int index_bytes,
                        const float *weights, int64_t begin, int64_t end, int64_t total, int64_t column,
                        float *acc_out, lane_sums *s)
{
    const int first = column == 0; /* the block of columns that also sees to tails and prefetching */
    const int far = is_far(t);
    const int64_t last = total - 1, stride = t->stride, tail_at = t->code_bytes;
    /* codes of this block of columns; beyond them in the last chunk stand the tail's bytes, which no one may sum */
    const int64_t bytes = tail_at - column < NZ * 16 ? tail_at - column : NZ * 16;
    const __mmask64 last_mask = ~(__mmask64)0 >> ((64 - bytes % 64) % 64);
    __m512 acc[16];
    __m512i codes = _mm512_setzero_si512();
    float bias = 0;
#pragma GCC unroll 16
    for (int z = 0; z < NZ; z++)
        acc[z] = _mm512_setzero_ps();
    for (int64_t i = begin; i < end; i += BLOCK) {
        const int n = end - i < BLOCK ? (int)(end - i) : BLOCK;
        const uint8_t *tail[BLOCK];
        for (int r = 0; r < n; r++) {
            const uint8_t *row = t->rows + index_at(indices, index_bytes, i + r) * stride;
            tail[r] = row + tail_at;
            if (first) {
                const int64_t next = i + r + AHEAD < last ? i + r + AHEAD : last;
                prefetch_row(t->rows + index_at(indices, index_bytes, next) * stride, stride, far);
            }
            float scale, row_bias;
            memcpy(&scale, tail[r], sizeof scale);
            memcpy(&row_bias, tail[r] + sizeof scale, sizeof row_bias);
            if (weights) {
                scale *= weights[i + r];
                bias = fmaf(weights[i + r], row_bias, bias);
            } else {
                bias += row_bias;
            }
            codes = add_row(NZ, check, row + column, last_mask, _mm512_set1_ps(scale), acc, codes);
        }
        if (check && first) {
            for (int r = n; r < BLOCK; r++)
                tail[r] = no_row;
            const __mmask8 m = (__mmask8)((1u << n) - 1);
            const __m256 w = weights ? _mm256_maskz_loadu_ps(m, weights + i) : _mm256_set1_ps(1.0f);
            if (weights)
                s->weights = _mm512_add_epi64(
                    s->weights, _mm512_and_si512(_mm512_cvtepi32_epi64(_mm256_castps_si256(w)), _mm512_set1_epi64(0xffffffff)));
            s->visited += (uint64_t)n;
            check_tails(tail, load_indices(indices, index_bytes, i, n), w, (double)t->dim, s);
        }
    }
    s->codes = _mm512_add_epi64(s->codes, codes);
#pragma GCC unroll 16
    for (int z = 0; z < NZ; z++)
        _mm512_store_ps(acc_out + z * 16, acc[z]);
    return bias;
}

typedef float (*accumulate_fn)(const sedq_table *, const void *, int, const float *, int64_t, int64_t, int64_t, int64_t,
                               float *, lane_sums *);

#define ACCUMULATE(NZ, CHECK)                                                                                          \
    static __attribute__((noinline)) float accumulate_##NZ##_##CHECK(                                                  \
        const sedq_table *t, const void *indices, int index_bytes, const float *weights, int64_t begin, int64_t end,   \
        int64_t total, int64_t column, float *acc, lane_sums *s)                                                       \
    {                                                                                                                  \
        return accumulate(NZ, CHECK, t, indices, index_bytes, weights, begin, end, total, column, acc, s);             \
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
        if (divisor != 1.0f)
            y = _mm512_div_ps(y, _mm512_set1_ps(divisor));
        y = _mm512_maskz_mov_ps(m, y);
        *pooled = _mm512_add_pd(*pooled, _mm512_cvtps_pd(_mm512_castps512_ps256(y)));
        *pooled = _mm512_add_pd(*pooled, _mm512_cvtps_pd(_mm512_extractf32x8_ps(y, 1)));
        *bits = _mm512_add_epi32(*bits, _mm512_castps_si512(y));
        _mm512_mask_storeu_ps(out + j, m, y);
    }
}

/* Sums of the lanes of two vectors at once: a short bag is little more than its sums. */
INLINE void reduce_integers(__m512i a, __m512i b, uint64_t *sum_a, uint64_t *sum_b)
{
    const __m512i x = _mm512_add_epi64(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    const __m256i y = _mm256_add_epi64(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
    const __m128i z = _mm_add_epi64(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
    *sum_a = (uint64_t)_mm_cvtsi128_si64(z);
    *sum_b = (uint64_t)_mm_extract_epi64(z, 1);
}

INLINE void reduce_doubles(__m512d a, __m512d b, double *sum_a, double *sum_b)
{
    const __m512d x = _mm512_add_pd(_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
    const __m256d y = _mm256_add_pd(_mm512_castpd512_pd256(x), _mm512_extractf64x4_pd(x, 1));
    const __m128d z = _mm_add_pd(_mm256_castpd256_pd128(y), _mm256_extractf128_pd(y, 1));
    *sum_a = _mm_cvtsd_f64(z);
    *sum_b = _mm_cvtsd_f64(_mm_unpackhi_pd(z, z));
}

static void bag(const sedq_table *t, const void *indices, int index_bytes, const float *weights, int64_t begin,
                int64_t end, int64_t total, float divisor, float *out, int check, sedq_bag_sums *sums)
{
    _Alignas(64) float acc[256];
    lane_sums s;
    __m512d pooled = _mm512_setzero_pd();
    __m512i bits = _mm512_setzero_si512();
    s.codes = s.params = s.rows = s.weights = _mm512_setzero_si512();
    s.visited = 0;
    s.reference = s.magnitude = _mm512_setzero_pd();
    if (begin == 0)
        prefetch_first(t, indices, index_bytes, total);
    for (int64_t column = 0; column < t->dim; column += 256) {
        const int64_t n = t->dim - column < 256 ? t->dim - column : 256;
        const float bias = table[(n + 15) / 16 - 1][check != 0](t, indices, index_bytes, weights, begin, end, total,
                                                                column, acc, &s);
        SEDQ_FAULT_BAG(acc, n);
        finish(acc, n, bias, divisor, out + column, &pooled, &bits);
    }
    if (!check)
        return;
    reduce_integers(s.codes, s.params, &sums->codes, &sums->params);
    reduce_integers(s.rows, s.weights, &sums->rows, &sums->weights);
    sums->rows += s.visited;
    sums->params += sums->rows; /* the digest has the row number + 1 */
    reduce_doubles(s.reference, s.magnitude, &sums->reference, &sums->magnitude);
    sums->pooled = _mm512_reduce_add_pd(pooled);
    sums->out_bits = sum_words32(bits);
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
    c->bag[SEDQ_OWN8] = bag;
    c->range = range;
}
