/* EmbeddingBag over 8-bit rows for AVX2: as for AVX-512, in blocks of 64 columns that stay in 8 accumulators. */
#include "context.h"
#include "fault_hook.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

enum { AHEAD = 16, COLUMNS = 64 };

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

/* Sums over the rows of a bag, as in sedq_bag_sums. */
typedef struct {
    uint64_t codes, params;
    double reference, magnitude;
} row_sums;

/* What follows a row's codes: scale, bias, digest. */
INLINE void check_tail(const uint8_t *tail, uint64_t index, double w, double dim, row_sums *s)
{
    uint32_t bits[2];
    float params[2];
    uint64_t digest;
    memcpy(bits, tail, sizeof bits);
    memcpy(params, tail, sizeof params);
    memcpy(&digest, tail + sizeof bits, sizeof digest);
    const uint64_t code_sum = digest >> 40;
    const double q = (double)(int64_t)code_sum;
    s->codes -= code_sum;
    s->params += (uint64_t)bits[0] + bits[1] + index - (digest - (code_sum << 40));
    s->reference += w * (params[0] * q + dim * params[1]);
    s->magnitude += fabs(w) * (fabs((double)params[0]) * q + dim * fabs((double)params[1]));
}

/* Rows begin .. end times 8 NZ columns from `column` on, bias not yet added; the bias sum is returned. */
INLINE float accumulate(const int NZ, const int check, const sedq_table *t, const void *indices, int index_bytes,
                        const float *weights, int64_t begin, int64_t end, int64_t total, int64_t column,
                        float *acc_out, row_sums *s)
{
    const volatile char *again = indices; /* the digest sees the index as loaded a second time */
    const int first = column == 0;        /* the block of columns that also sees to tails and prefetching */
    const int64_t last = total - 1;
    __m256 acc[8];
    __m128i codes = _mm_setzero_si128();
    float bias = 0;
#pragma GCC unroll 8
    for (int z = 0; z < NZ; z++)
        acc[z] = _mm256_setzero_ps();
    for (int64_t i = begin; i < end; i++) {
        const uint8_t *row = t->rows + index_at(indices, index_bytes, i) * t->stride, *tail = row + t->code_bytes;
        const float w = weights ? weights[i] : 1.0f;
        float scale, row_bias;
        if (first)
            prefetch_row(t->rows + index_at(indices, index_bytes, i + AHEAD < last ? i + AHEAD : last) * t->stride,
                         t->stride);
        memcpy(&scale, tail, sizeof scale);
        memcpy(&row_bias, tail + sizeof scale, sizeof row_bias);
        bias = fmaf(w, row_bias, bias);
        const __m256 factor = _mm256_set1_ps(w * scale);
#pragma GCC unroll 8
        for (int z = 0; z < NZ; z++) {
            const __m128i q = _mm_loadl_epi64((const __m128i *)(row + column + z * 8));
            if (check)
                codes = _mm_add_epi64(codes, _mm_sad_epu8(q, _mm_setzero_si128()));
            acc[z] = _mm256_fmadd_ps(factor, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(q)), acc[z]);
        }
        if (check && first)
            check_tail(tail, (uint64_t)index_at((const void *)again, index_bytes, i), w, (double)t->dim, s);
    }
    s->codes += (uint64_t)_mm_cvtsi128_si64(codes);
#pragma GCC unroll 8
    for (int z = 0; z < NZ; z++)
        _mm256_store_ps(acc_out + z * 8, acc[z]);
    return bias;
}

typedef float (*accumulate_fn)(const sedq_table *, const void *, int, const float *, int64_t, int64_t, int64_t, int64_t,
                               float *, row_sums *);

#define ACCUMULATE(NZ, CHECK)                                                                                          \
    static __attribute__((noinline)) float accumulate_##NZ##_##CHECK(                                                  \
        const sedq_table *t, const void *indices, int index_bytes, const float *weights, int64_t begin, int64_t end,   \
        int64_t total, int64_t column, float *acc, row_sums *s)                                                        \
    {                                                                                                                  \
        return accumulate(NZ, CHECK, t, indices, index_bytes, weights, begin, end, total, column, acc, s);             \
    }
#define BOTH(NZ) ACCUMULATE(NZ, 0) ACCUMULATE(NZ, 1)
BOTH(1) BOTH(2) BOTH(3) BOTH(4) BOTH(5) BOTH(6) BOTH(7) BOTH(8)
#define PAIR(NZ) {accumulate_##NZ##_0, accumulate_##NZ##_1}
static const accumulate_fn table[8][2] = {PAIR(1), PAIR(2), PAIR(3), PAIR(4), PAIR(5), PAIR(6), PAIR(7), PAIR(8)};

static uint32_t bits_of(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static void bag(const sedq_table *t, const void *indices, int index_bytes, const float *weights, int64_t begin,
                int64_t end, int64_t total, float divisor, float *out, int check, sedq_bag_sums *sums)
{
    _Alignas(32) float acc[COLUMNS];
    row_sums s = {0, 0, 0, 0};
    double pooled = 0;
    uint32_t bits = 0;
    for (int64_t column = 0; column < t->dim; column += COLUMNS) {
        const int64_t n = t->dim - column < COLUMNS ? t->dim - column : COLUMNS;
        const float bias = table[(n + 7) / 8 - 1][check != 0](t, indices, index_bytes, weights, begin, end, total, column,
                                                              acc, &s);
        SEDQ_FAULT_BAG(acc, n);
        for (int64_t j = 0; j < n; j++) {
            const float y = (acc[j] + bias) / divisor;
            pooled += y;
            bits += bits_of(y);
            out[column + j] = y;
        }
    }
    sums->codes = s.codes;
    sums->params = s.params;
    sums->reference = s.reference / divisor;
    sums->magnitude = s.magnitude / divisor;
    sums->residual = pooled - sums->reference;
    sums->out_bits = bits;
}

void SEDQ_INIT(embedding_avx2)(sedq_context *c)
{
    c->bag[SEDQ_OWN8] = bag;
}
