/* EmbeddingBag for AVX2, every kind of table.
 *
 * A bag is walked once per block of 64 columns. The first walk also prefetches rows, across the ends of bags, and adds up
 * words and digests, 8 rows at a time: a row's share of scalar work is what costs in a table that is in cache. Rows of ours
 * whose codes fill whole loads have loops of their own (OWN); the others take the words from where the table says. */
#include "context.h"
#include "embedding_avx2.h"
#include "fault_hook.h"

#include <math.h>

enum { AHEAD = 16, COLUMNS = 64, ROWS = 8, TAIL = 16 };

/* a compiler that can't see where a value comes from can't merge what is to be computed twice */
#define HIDE(x) __asm__ volatile("" : "+x"(x))

/* what a bag asks for */
typedef struct {
    const sedq_table *t;
    const void *indices;
    const float *weights;
    int64_t begin, end, total, lines;
    int index_bytes;
} request;

INLINE int64_t index_at(const void *indices, int index_bytes, int64_t i)
{
    if (index_bytes == 4)
        return ((const int32_t *)indices)[i];
    return ((const int64_t *)indices)[i];
}

/* Cache lines that a row of `width` bytes may touch, given by how many bytes rows are aligned. */
static int64_t lines_of(const sedq_table *t)
{
    const int64_t apart = t->stride & -t->stride, aligned = apart < 64 ? apart : 64;
    return (64 - aligned + t->width + 63) / 64;
}

/* The i-th row of a request, whose digest is elsewhere where rows aren't ours; it comes up in a while, perhaps in another bag. */
INLINE void prefetch_row(const int OWN, const int INDEX, const request *q, int64_t i)
{
    const sedq_table *t = q->t;
    const int64_t width = t->width, row = index_at(q->indices, INDEX, i);
    const char *p = (const char *)t->rows + row * t->stride;
    _mm_prefetch(p, _MM_HINT_T0);
    _mm_prefetch(p + (64 < width ? 64 : width - 1), _MM_HINT_T0);
    for (int64_t k = 2; k < q->lines; k++)
        _mm_prefetch(p + (64 * k < width ? 64 * k : width - 1), _MM_HINT_T0);
    if (!OWN)
        _mm_prefetch((const char *)t->digests + row * t->digest_stride, _MM_HINT_T0);
}

/* what stands in for the words and digest of rows that a block of rows lacks */
static const uint8_t no_row[TAIL];

INLINE __m128i foreign_tail(const sedq_table *t, int64_t row)
{
    const uint64_t words = (uint64_t)sedq_word(t, 0, row) | (uint64_t)sedq_word(t, 1, row) << 32;
    return _mm_set_epi64x((long long)sedq_stored_digest(t, row), (long long)words);
}

/* Words and digests of n <= 8 rows; at: where rows of ours start; i: which index is the first, for others. */
INLINE eight_tails load_tails(const int OWN, const request *q, int64_t i, const uint8_t *const *at, int n)
{
    const int64_t tail = q->t->code_bytes;
    eight_tails made;
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) {
        __m128i low = _mm_setzero_si128(), high = low;
        if (OWN) {
            low = _mm_loadu_si128((const __m128i *)(r < n ? at[r] + tail : no_row));
            high = _mm_loadu_si128((const __m128i *)(r + 4 < n ? at[r + 4] + tail : no_row));
        } else {
            if (r < n)
                low = foreign_tail(q->t, index_at(q->indices, q->index_bytes, i + r));
            if (r + 4 < n)
                high = foreign_tail(q->t, index_at(q->indices, q->index_bytes, i + r + 4));
        }
        made.row[r] = _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
    }
    return made;
}

INLINE __m256 load_weights(const float *weights, int64_t i, int n)
{
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    if (!weights)
        return _mm256_set1_ps(1.0f);
    if (n == ROWS)
        return _mm256_loadu_ps(weights + i);
    return _mm256_maskload_ps(weights + i, _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lanes));
}

/* Scale and bias of the row at `at`, the i-th of the request, for the pooling. */
INLINE sedq_params params_of(const int BITS, const int OWN, const int INDEX, const request *q, int64_t i, const uint8_t *at)
{
    const sedq_table *t = q->t;
    const int64_t row = OWN ? 0 : index_at(q->indices, INDEX, i);
    uint32_t words[2] = {0, 0};
    sedq_params p = {1, 0};
    if (BITS > 8)
        return p;
    if (OWN) {
        memcpy(words, at + t->code_bytes, sizeof words);
    } else {
        words[0] = sedq_word(t, 0, row);
        words[1] = t->half ? 0 : sedq_word(t, 1, row);
    }
    if (BITS < 8 || (!OWN && t->half)) {
        const __m128 both = _mm_cvtph_ps(_mm_cvtsi32_si128((int)words[0]));
        p.scale = _mm_cvtss_f32(both);
        p.bias = _mm_cvtss_f32(_mm_movehdup_ps(both));
    } else {
        p.scale = sedq_float(words[0]);
        p.bias = sedq_float(words[1]);
    }
    return p;
}

/* What a walk carries from row to row. */
typedef struct {
    __m256 acc[8];
    __m256i bytes;
    float bias;
} walk;

/* n <= 8 rows from the i-th index on, times NV accumulators of columns from `column` on; `at` tells where they stand. What
 * is asked for in capitals would otherwise be asked for each row. Unrolled, the loop spills its accumulators. */
INLINE void add_each(const int BITS, const int NV, const int OWN, const int check, const int INDEX, const int WEIGHTED,
                     const int FIRST, const request *q, int64_t column, int64_t i, int n, const uint8_t **at, walk *w)
{
    const sedq_table *t = q->t;
    const uint8_t *rows = t->rows;
    const int64_t first_code = t->codes_at + column * BITS / 8, stride = t->stride, latest = q->total - n - i;
    const int64_t groups = NV / GROUP(BITS) - 1, left = t->code_bytes - column * BITS / 8 - groups * GROUP_BYTES(BITS);
    const int64_t last = left < GROUP_BYTES(BITS) ? left : GROUP_BYTES(BITS), ahead = latest < AHEAD ? latest : AHEAD;
    __m256i bytes = w->bytes;
    float bias = w->bias;
#pragma GCC unroll 1
    for (int r = 0; r < n; r++) {
        const uint8_t *row = rows + index_at(q->indices, INDEX, i + r) * stride;
        const sedq_params p = params_of(BITS, OWN, INDEX, q, i + r, row);
        float factor = p.scale;
        at[r] = row;
        if (FIRST)
            prefetch_row(OWN, INDEX, q, i + r + ahead);
        if (WEIGHTED) {
            factor *= q->weights[i + r];
            bias = fmaf(q->weights[i + r], p.bias, bias);
        } else {
            bias += p.bias;
        }
        bytes = add_row(BITS, NV, OWN, check, row + first_code, last, _mm256_set1_ps(factor), w->acc, bytes);
    }
    w->bytes = bytes;
    w->bias = bias;
}

INLINE void add_rows(const int BITS, const int NV, const int OWN, const int check, const request *q, int64_t column,
                     int64_t i, int n, walk *w, lane_sums *s)
{
    const uint8_t *at[ROWS];
    const int first = column == 0, weighted = q->weights != NULL;
#define EACH(INDEX, WEIGHTED, FIRST) add_each(BITS, NV, OWN, check, INDEX, WEIGHTED, FIRST, q, column, i, n, at, w)
#define EACH_OF(INDEX)                                                                                                 \
    (weighted ? first ? EACH(INDEX, 1, 1) : EACH(INDEX, 1, 0) : first ? EACH(INDEX, 0, 1) : EACH(INDEX, 0, 0))
    if (!OWN || BITS > 8) /* not worth eight loops */
        EACH(q->index_bytes, weighted, first);
    else if (q->index_bytes == 4)
        EACH_OF(4);
    else
        EACH_OF(8);
    if (check && first) {
        eight_tails tails = n == ROWS ? load_tails(OWN, q, i, at, ROWS) : load_tails(OWN, q, i, at, n);
        for (int r = 0; r < 4; r++)
            HIDE(tails.row[r]);
        s->visited += (uint64_t)n;
        check_tails(BITS, BITS < 8 || (BITS == 8 && !OWN && q->t->half), &tails, weighted, load_weights(q->weights, i, n),
                    s);
    }
}

/* Rows of a request times the NV accumulators of columns from `column` on, bias not yet added; the bias sum is returned. */
INLINE float accumulate(const int BITS, const int NV, const int OWN, const int check, const request *q, int64_t column,
                        float *acc_out, lane_sums *s)
{
    walk w;
#pragma GCC unroll 8
    for (int z = 0; z < NV; z++)
        w.acc[z] = _mm256_setzero_ps();
    w.bytes = _mm256_setzero_si256();
    w.bias = 0;
    for (int64_t i = q->begin; i < q->end; i += ROWS)
        add_rows(BITS, NV, OWN, check, q, column, i, q->end - i < ROWS ? (int)(q->end - i) : ROWS, &w, s);
    s->bytes = _mm256_add_epi64(s->bytes, w.bytes);
    columns(BITS, NV, OWN, w.acc, acc_out);
    return w.bias;
}

typedef float (*accumulate_fn)(const request *, int64_t, float *, lane_sums *);

#define ACCUMULATE(BITS, NV, OWN, CHECK)                                                                               \
    static __attribute__((noinline)) float accumulate_##BITS##_##NV##_##OWN##_##CHECK(const request *q, int64_t column, \
                                                                                       float *acc, lane_sums *s)       \
    {                                                                                                                  \
        return accumulate(BITS, NV, OWN, CHECK, q, column, acc, s);                                                    \
    }
#define FOUR(BITS, NV) ACCUMULATE(BITS, NV, 0, 0) ACCUMULATE(BITS, NV, 0, 1) ACCUMULATE(BITS, NV, 1, 0) ACCUMULATE(BITS, NV, 1, 1)
#define ALL(BITS) FOUR(BITS, 1) FOUR(BITS, 2) FOUR(BITS, 3) FOUR(BITS, 4) FOUR(BITS, 5) FOUR(BITS, 6) FOUR(BITS, 7) FOUR(BITS, 8)
ALL(8) ALL(16) ALL(32) FOUR(4, 2) FOUR(4, 4) FOUR(4, 6) FOUR(4, 8) FOUR(2, 4) FOUR(2, 8)

/* by whether rows are ours and whether to check */
#define NAMES(BITS, NV)                                                                                                \
    {{accumulate_##BITS##_##NV##_0_0, accumulate_##BITS##_##NV##_0_1},                                                 \
     {accumulate_##BITS##_##NV##_1_0, accumulate_##BITS##_##NV##_1_1}}
#define TABLE(BITS) {NAMES(BITS, 1), NAMES(BITS, 2), NAMES(BITS, 3), NAMES(BITS, 4), NAMES(BITS, 5), NAMES(BITS, 6), NAMES(BITS, 7), NAMES(BITS, 8)}
static const accumulate_fn with_8[8][2][2] = TABLE(8), with_16[8][2][2] = TABLE(16), with_32[8][2][2] = TABLE(32);
static const accumulate_fn with_4[4][2][2] = {NAMES(4, 2), NAMES(4, 4), NAMES(4, 6), NAMES(4, 8)};
static const accumulate_fn with_2[2][2][2] = {NAMES(2, 4), NAMES(2, 8)};

/* The loop for a block of n columns. */
static accumulate_fn loop_for(const sedq_table *t, int64_t n, int check)
{
    const int own = t->format != SEDQ_FOREIGN && t->code_bytes % GROUP_BYTES(t->bits) == 0;
    switch (t->bits) {
    case 8:
        return with_8[(n - 1) / 8][own][check];
    case 4:
        return with_4[(n - 1) / 16][own][check];
    case 2:
        return with_2[(n - 1) / 32][own][check];
    case 16:
        return with_16[(n - 1) / 8][own][check];
    default:
        return with_32[(n - 1) / 8][own][check];
    }
}

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

/* Add the bias, divide, sum and store one block of columns. */
INLINE void finish(const float *acc, int64_t n, float bias, float divisor, float *out, int check, __m256d *pooled,
                   __m256i *bits)
{
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    for (int64_t j = 0; j < n; j += 8) {
        __m256 y = _mm256_add_ps(_mm256_load_ps(acc + j), _mm256_set1_ps(bias));
        if (divisor != 1.0f)
            y = _mm256_div_ps(y, _mm256_set1_ps(divisor));
        if (n - j >= 8) {
            _mm256_storeu_ps(out + j, y);
        } else {
            const __m256i m = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(n - j)), lanes);
            y = _mm256_and_ps(y, _mm256_castsi256_ps(m));
            _mm256_maskstore_ps(out + j, m, y);
        }
        if (!check)
            continue;
        *pooled = _mm256_add_pd(*pooled, low_doubles(y));
        *pooled = _mm256_add_pd(*pooled, high_doubles(y));
        *bits = _mm256_add_epi32(*bits, _mm256_castps_si256(y));
    }
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

/* Bytes, words and indices as read against digests. Without a fault both sides are one number, sum of bytes << 40 + the
 * rest; it is compared in units of 2^32 and what is below, which can't wrap. Neither can sums of halves, so that those of the
 * low ones follow from those of all, which may. */
static void compare_digests(const lane_sums *s, uint64_t indices, sedq_bag_sums *sums)
{
    const __m256i low_halves = _mm256_sub_epi64(s->all, _mm256_slli_epi64(s->odd, 32));
    const __m128i even = _mm_add_epi64(_mm256_castsi256_si128(low_halves), _mm256_extracti128_si256(low_halves, 1));
    const __m128i odd = _mm_add_epi64(_mm256_castsi256_si128(s->odd), _mm256_extracti128_si256(s->odd, 1));
    const int64_t words = _mm_cvtsi128_si64(even) + _mm_cvtsi128_si64(odd);
    const int64_t low = words + (int64_t)indices - _mm_extract_epi64(even, 1);
    const int64_t high = (int64_t)(sum_lanes(s->bytes) << 8) - _mm_extract_epi64(odd, 1);
    const int same = (low & 0xffffffff) == 0 && high + (low >> 32) == 0;
    sums->codes = same ? 0 : (uint64_t)high;
    sums->params = same ? 0 : (uint64_t)low;
}

static void bag(const sedq_table *t, const void *indices, int index_bytes, const float *weights, int64_t begin,
                int64_t end, int64_t total, float divisor, float *out, int check, sedq_bag_sums *sums)
{
    const void *volatile again = indices;
    const request q = {t, indices, weights, begin, end, total, lines_of(t), index_bytes};
    float acc[COLUMNS] __attribute__((aligned(32)));
    lane_sums s;
    __m256d pooled = _mm256_setzero_pd();
    __m256i bits = _mm256_setzero_si256();
    s.bytes = s.all = s.odd = s.weights = _mm256_setzero_si256();
    s.products = s.biases = s.product_sizes = s.bias_sizes = _mm256_setzero_pd();
    s.visited = 0;
    for (int64_t column = 0; column < t->dim; column += COLUMNS) {
        const int64_t n = t->dim - column < COLUMNS ? t->dim - column : COLUMNS;
        const float bias = loop_for(t, n, check != 0)(&q, column, acc, &s);
        SEDQ_FAULT_BAG(acc, n);
        finish(acc, n, bias, divisor, out + column, check, &pooled, &bits);
    }
    if (!check)
        return;
    sums->rows = sum_indices(again, index_bytes, begin, end);
    compare_digests(&s, sums->rows, sums);
    sums->rows += s.visited;
    sums->weights = sum_lanes(s.weights);
    sums->reference = sum_doubles(s.products) + (double)t->dim * sum_doubles(s.biases);
    sums->magnitude = sum_doubles(s.product_sizes) + (double)t->dim * sum_doubles(s.bias_sizes);
    sums->pooled = sum_doubles(pooled);
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
        out[i] = (sum_lanes(sum) << 40) + sedq_word(t, 0, first + i) + sedq_word(t, 1, first + i) + (uint64_t)(first + i);
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
