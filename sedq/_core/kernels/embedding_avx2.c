/* EmbeddingBag for AVX2, every kind of table: a walk over the bag's rows for each block of 64 columns
 * (embedding_loops_avx2.c), its output, and what was read against the digests. */
#include "context.h"
#include "embedding_loops_avx2.h"
#include "fault_hook.h"

#include <math.h>

INLINE uint64_t sum_lanes(__m256i x)
{
    const __m128i y = _mm_add_epi64(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    return (uint64_t)_mm_cvtsi128_si64(y) + (uint64_t)_mm_extract_epi64(y, 1);
}

INLINE double sum_doubles(__m256d x)
{
    const __m128d y = _mm_add_pd(_mm256_castpd256_pd128(x), _mm256_extractf128_pd(x, 1));
    return _mm_cvtsd_f64(y) + _mm_cvtsd_f64(_mm_unpackhi_pd(y, y));
}

INLINE uint32_t sum_words32(__m256i x)
{
    __m128i y = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    y = _mm_add_epi32(y, _mm_shuffle_epi32(y, 0x4e));
    y = _mm_add_epi32(y, _mm_shuffle_epi32(y, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(y);
}

/* 8 outputs: the bias added, divided */
INLINE __m256 finished(const float *acc, float bias, float divisor)
{
    const __m256 y = _mm256_add_ps(_mm256_load_ps(acc), _mm256_set1_ps(bias));
    return divisor == 1.0f ? y : _mm256_div_ps(y, _mm256_set1_ps(divisor));
}

INLINE void sum_outputs(__m256 y, __m256d *pooled, __m256i *bits)
{
    pooled[0] = _mm256_add_pd(pooled[0], low_doubles(y)); /* two sums, as one would wait for itself */
    pooled[1] = _mm256_add_pd(pooled[1], high_doubles(y));
    *bits = _mm256_add_epi32(*bits, _mm256_castps_si256(y));
}

/* Finish, sum and store one block of columns. */
INLINE void finish(const float *acc, int64_t n, float bias, float divisor, float *out, int check, __m256d *pooled,
                   __m256i *bits)
{
    const int64_t rest = n % 8, whole = n - rest;
    for (int64_t j = 0; j < whole; j += 8) {
        const __m256 y = finished(acc + j, bias, divisor);
        _mm256_storeu_ps(out + j, y);
        if (check)
            sum_outputs(y, pooled, bits);
    }
    if (!rest)
        return;
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i m = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)rest), lanes);
    const __m256 y = _mm256_and_ps(finished(acc + whole, bias, divisor), _mm256_castsi256_ps(m));
    _mm256_maskstore_ps(out + whole, m, y);
    if (check)
        sum_outputs(y, pooled, bits);
}

/* Sum of the indices, in a loop of its own: the digest sees them as loaded a second time. */
static uint64_t sum_indices(const void *indices, int index_bytes, int64_t begin, int64_t end)
{
    __m256i sum = _mm256_setzero_si256();
    uint64_t rest = 0;
    int64_t i = begin;
    if (index_bytes == 8)
        for (; i + 4 <= end; i += 4)
            sum = _mm256_add_epi64(sum, _mm256_loadu_si256((const __m256i *)((const int64_t *)indices + i)));
    else
        for (; i + 4 <= end; i += 4)
            sum = _mm256_add_epi64(
                sum, _mm256_cvtepi32_epi64(_mm_loadu_si128((const __m128i *)((const int32_t *)indices + i))));
    for (; i < end; i++)
        rest += (uint64_t)index_at(indices, index_bytes, i);
    return sum_lanes(sum) + rest;
}

/* Bytes, words and row numbers + 1 as read against digests. Without a fault both sides are one number, sum of bytes << 40 + the
 * rest; it is compared in units of 2^32 and what is below, which can't wrap. Neither can sums of halves, so that those of
 * the low ones follow from those of all, which may. */
static void compare_digests(const lane_sums *s, uint64_t rows, sedq_bag_sums *sums)
{
    const __m256i low_halves = _mm256_sub_epi64(s->all, _mm256_slli_epi64(s->odd, 32));
    const __m128i even = _mm_add_epi64(_mm256_castsi256_si128(low_halves), _mm256_extracti128_si256(low_halves, 1));
    const __m128i odd = _mm_add_epi64(_mm256_castsi256_si128(s->odd), _mm256_extracti128_si256(s->odd, 1));
    const int64_t words = _mm_cvtsi128_si64(even) + _mm_cvtsi128_si64(odd);
    const int64_t low = words + (int64_t)rows - _mm_extract_epi64(even, 1);
    const int64_t high = (int64_t)(sum_lanes(s->bytes) << 8) - _mm_extract_epi64(odd, 1);
    const int same = (low & 0xffffffff) == 0 && high + (low >> 32) == 0;
    sums->codes = same ? 0 : (uint64_t)high;
    sums->params = same ? 0 : (uint64_t)low;
}

/* Cache lines that a row of `width` bytes may touch, given by how many bytes rows are aligned. */
static int64_t lines_of(const sedq_table *t)
{
    const int64_t apart = t->stride & -t->stride, aligned = apart < 64 ? apart : 64;
    return (64 - aligned + t->width + 63) / 64;
}

static void bag(const sedq_table *t, const void *indices, int index_bytes, const float *weights, int64_t begin,
                int64_t end, int64_t total, float divisor, float *out, int check, sedq_bag_sums *sums)
{
    const void *volatile again = indices;
    const request q = {
        .t = t, .indices = indices, .weights = weights, .begin = begin, .end = end, .total = total,
        .second = t->width > 64 ? 64 : t->width - 1,
        .lines = lines_of(t), .index_bytes = index_bytes,
    };
    float acc[COLUMNS] __attribute__((aligned(32)));
    lane_sums s = no_sums();
    __m256d pooled[2] = {_mm256_setzero_pd(), _mm256_setzero_pd()};
    __m256i bits = _mm256_setzero_si256();
    if (begin == 0)
        sedq_prefetch_first_avx2(&q);
    for (int64_t column = 0; column < t->dim; column += COLUMNS) {
        const int64_t n = t->dim - column < COLUMNS ? t->dim - column : COLUMNS;
        const float bias = sedq_bag_loop_avx2(t, n, check != 0)(&q, column, acc, &s);
        SEDQ_FAULT_BAG(acc, n);
        finish(acc, n, bias, divisor, out + column, check, pooled, &bits);
    }
    if (!check)
        return;
    sums->rows = sum_indices(again, index_bytes, begin, end) + s.visited;
    compare_digests(&s, sums->rows, sums);
    sums->weights = sum_lanes(s.weights);
    sums->reference = sum_doubles(s.products) + (double)t->dim * sum_doubles(s.biases);
    sums->magnitude = sum_doubles(s.product_sizes) + (double)t->dim * sum_doubles(s.bias_sizes);
    sums->pooled = sum_doubles(_mm256_add_pd(pooled[0], pooled[1]));
    sums->out_bits = sum_words32(bits);
}

static void digests(const sedq_table *t, int64_t first, int64_t n, uint64_t *out)
{
    const __m256i zero = _mm256_setzero_si256();
    for (int64_t i = 0; i < n; i++) {
        const uint8_t *codes = sedq_codes(t, first + i);
        __m256i sum = zero;
        int64_t j = 0;
        for (; j + 32 <= t->code_bytes; j += 32)
            sum = _mm256_add_epi64(sum, _mm256_sad_epu8(_mm256_loadu_si256((const __m256i *)(codes + j)), zero));
        for (; j + 8 <= t->code_bytes; j += 8)
            sum = _mm256_add_epi64(sum, _mm256_sad_epu8(load_group(8, 1, codes + j, 8), zero));
        if (j < t->code_bytes)
            sum = _mm256_add_epi64(sum, _mm256_sad_epu8(load_group(8, 0, codes + j, t->code_bytes - j), zero));
        out[i] = (sum_lanes(sum) << 40) + sedq_word(t, 0, first + i) + sedq_word(t, 1, first + i) +
                 (uint64_t)(first + i) + 1;
    }
}

/* Indices as unsigned numbers against `rows`, by flipping the sign of both. */
static int64_t range(const void *indices, int index_bytes, int64_t n, int64_t rows)
{
    int64_t i = 0;
    if (index_bytes == 8) {
        const __m256i sign = _mm256_set1_epi64x(INT64_MIN), most = _mm256_xor_si256(_mm256_set1_epi64x(rows - 1), sign);
        for (; i + 4 <= n; i += 4) {
            const __m256i x = _mm256_loadu_si256((const __m256i *)((const int64_t *)indices + i));
            if (_mm256_movemask_epi8(_mm256_cmpgt_epi64(_mm256_xor_si256(x, sign), most)))
                break;
        }
    } else if (rows <= INT32_MAX) {
        const __m256i most = _mm256_set1_epi32((int)(rows - 1));
        for (; i + 8 <= n; i += 8) {
            const __m256i x = _mm256_loadu_si256((const __m256i *)((const int32_t *)indices + i));
            if (_mm256_movemask_epi8(_mm256_or_si256(_mm256_cmpgt_epi32(x, most), x)) & 0x88888888)
                break;
        }
    }
    for (; i < n; i++)
        if ((uint64_t)index_at(indices, index_bytes, i) >= (uint64_t)rows)
            return i;
    return -1;
}

void SEDQ_INIT(embedding_avx2)(sedq_context *c)
{
    for (int format = 0; format < SEDQ_FORMATS; format++)
        c->bag[format] = bag;
    c->digests = digests;
    c->range = range;
}
