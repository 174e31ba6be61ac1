/* The AVX2 loops over a bag's rows.
 *
 * A bag is walked once per block of 64 columns. The first walk also prefetches rows, across the ends of bags, and notes
 * where they are; after every 64 of them their words and digests are added up, 8 rows at a time: a row's share of scalar
 * work is what costs in a table that is in cache. Rows of ours whose codes fill whole loads have loops of their own (OWN);
 * the others take the words from where the table says. No fault hook is in here: these many loops are compiled once. */
#include "embedding_loops_avx2.h"

#include <math.h>

/* the cache that rows are prefetched to: L2 can wait for far more lines than L1 */
enum { NO_PREFETCH, TO_L1, TO_L2 };
enum { L2_BYTES = 1 << 20, AHEAD = 32, ROWS = 64, TAIL = 16 };

/* a compiler that can't see where a value comes from can't merge what is to be computed twice */
#define HIDE(x) __asm__ volatile("" : "+x"(x))

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
    if (n == 8)
        return _mm256_loadu_ps(weights + i);
    return _mm256_maskload_ps(weights + i, _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lanes));
}

/* scale in every lane */
typedef struct {
    __m256 scale;
    float bias;
} params;

/* Scale and bias of a row, whose words are at `words` if it is ours, for the pooling. */
INLINE params params_of(const int BITS, const int OWN, const request *q, int64_t row, const uint8_t *words)
{
    const sedq_table *t = q->t;
    params p = {_mm256_set1_ps(1), 0};
    if (BITS > 8)
        return p;
    if (BITS < 8 || (!OWN && t->half)) {
        const int word = OWN ? _mm_cvtsi128_si32(_mm_loadu_si32(words)) : (int)sedq_word(t, 0, row);
        const __m128 both = _mm_cvtph_ps(_mm_cvtsi32_si128(word));
        p.scale = _mm256_broadcastss_ps(both);
        p.bias = _mm_cvtss_f32(_mm_movehdup_ps(both));
    } else if (OWN) { /* a load apart for each: one of both would take shuffles */
        p.scale = _mm256_broadcast_ss((const float *)words);
        p.bias = _mm_cvtss_f32(_mm_castsi128_ps(_mm_loadu_si32(words + 4)));
    } else {
        p.scale = _mm256_set1_ps(sedq_float(sedq_word(t, 0, row)));
        p.bias = sedq_float(sedq_word(t, 1, row));
    }
    return p;
}

/* What a walk carries from row to row. */
typedef struct {
    __m256 acc[8];
    __m256i bytes;
    float bias;
} walk;

/* A row that comes up in a while, perhaps in another bag, and its digest where that is elsewhere. TO: where to, of a table
 * that is in L2 to L1; of a larger one to L2, which can wait for far more lines than L1. */
INLINE void prefetch_row(const int OWN, const int TO, const request *q, const uint8_t *start, int64_t row)
{
#define PREFETCH(p)                                                                                                    \
    do {                                                                                                               \
        if (TO == TO_L1)                                                                                               \
            _mm_prefetch(p, _MM_HINT_T0);                                                                              \
        else                                                                                                           \
            _mm_prefetch(p, _MM_HINT_T1);                                                                              \
    } while (0)
    const sedq_table *t = q->t;
    HIDE_ADDRESS(start);
    PREFETCH(start);
    PREFETCH(start + q->second);
    for (int64_t k = 2; k < q->lines; k++)
        PREFETCH(start + (64 * k < t->width ? 64 * k : t->width - 1));
    if (!OWN)
        PREFETCH(t->digests + row * t->digest_stride);
}

/* n rows, the i-th of the request and on, times NV accumulators of columns from `column` on; the first walk notes where up
 * to 64 checked rows start. What is asked for in capitals would otherwise be asked for each row. A row has some forty
 * instructions, and the processor's width in instructions is what bounds the loop. Unrolled, it spills its accumulators. */
INLINE void add_each(const int BITS, const int NV, const int OWN, const int check, const int INDEX, const int WEIGHTED,
                     const int TO, const request *q, int64_t column, int64_t i, int64_t n, const uint8_t **at, walk *w)
{
    const sedq_table *t = q->t;
    const int64_t stride = t->stride, before = column * BITS / 8, tail = t->code_bytes - before;
    const int64_t left = tail - (NV / GROUP(BITS) - 1) * GROUP_BYTES(BITS), latest = q->total - n - i;
    const int64_t last = left < GROUP_BYTES(BITS) ? left : GROUP_BYTES(BITS);
    const int64_t ahead = latest < AHEAD ? latest : AHEAD;
    const uint8_t *block = t->rows + t->codes_at + before;
    const char *index = (const char *)q->indices + i * INDEX, *const end = index + n * INDEX;
    const float *weight = WEIGHTED ? q->weights + i : NULL;
    __m256i bytes = w->bytes;
    float bias = w->bias;
    HIDE_ADDRESS(block);
#pragma GCC unroll 1
    for (; index < end; index += INDEX) {
        const int64_t row = index_at(index, INDEX, 0);
        const uint8_t *codes = block + row * stride;
        if (check && TO)
            *at++ = codes;
        HIDE_ADDRESS(codes);
        const params p = params_of(BITS, OWN, q, row, codes + tail);
        __m256 factor = p.scale;
        if (TO) {
            const int64_t next = index_at(index, INDEX, ahead);
            prefetch_row(OWN, TO, q, (OWN ? block : t->rows) + next * stride, next);
        }
        if (WEIGHTED) {
            factor = _mm256_mul_ps(factor, _mm256_broadcast_ss(weight));
            bias = fmaf(*weight++, p.bias, bias);
        } else {
            bias += p.bias;
        }
        bytes = add_row(BITS, NV, OWN, check, codes, last, factor, w->acc, bytes);
    }
    w->bytes = bytes;
    w->bias = bias;
}

/* What the tails of n rows say, the i-th of the request and on, which start at `at`. */
INLINE void sum_tails(const int BITS, const int OWN, const int weighted, const request *q, int64_t i, int64_t n,
                      const uint8_t *const *at, lane_sums *sums)
{
    const int half = BITS < 8 || (BITS == 8 && !OWN && q->t->half);
    lane_sums s = no_sums();
    for (int64_t r = 0; r < n; r += 8) {
        const int count = n - r < 8 ? (int)(n - r) : 8;
        eight_tails tails = count == 8 ? load_tails(OWN, q, i + r, at + r, 8) : load_tails(OWN, q, i + r, at + r, count);
        for (int k = 0; k < 4; k++)
            HIDE(tails.row[k]);
        check_tails(BITS, half, &tails, weighted, load_weights(q->weights, i + r, count), &s);
    }
    s.visited = (uint64_t)n;
    add_sums(&s, sums);
}

typedef void (*tails_fn)(const request *, int64_t, int64_t, const uint8_t *const *, lane_sums *);

#define TAILS(BITS, OWN)                                                                                               \
    static __attribute__((noinline)) void tails_##BITS##_##OWN(const request *q, int64_t i, int64_t n,                 \
                                                               const uint8_t *const *at, lane_sums *s)                 \
    {                                                                                                                  \
        if (q->weights)                                                                                                \
            sum_tails(BITS, OWN, 1, q, i, n, at, s);                                                                   \
        else                                                                                                           \
            sum_tails(BITS, OWN, 0, q, i, n, at, s);                                                                   \
    }
TAILS(8, 0) TAILS(8, 1) TAILS(4, 0) TAILS(4, 1) TAILS(2, 0) TAILS(2, 1) TAILS(16, 0) TAILS(16, 1) TAILS(32, 0) TAILS(32, 1)

INLINE void add_rows(const int BITS, const int NV, const int OWN, const int check, const int TO, tails_fn tails,
                     const request *q, int64_t column, int64_t i, int64_t n, walk *w, lane_sums *s)
{
    const uint8_t *at[ROWS];
    const int first = column == 0, weighted = q->weights != NULL;
#define EACH(INDEX, WEIGHTED, TO) add_each(BITS, NV, OWN, check, INDEX, WEIGHTED, TO, q, column, i, n, at, w)
#define EACH_OF(INDEX)                                                                                                 \
    (weighted ? first ? EACH(INDEX, 1, TO) : EACH(INDEX, 1, NO_PREFETCH)                                               \
     : first  ? EACH(INDEX, 0, TO)                                                                                     \
              : EACH(INDEX, 0, NO_PREFETCH))
    if (!OWN || BITS > 8) /* not worth eight loops */
        EACH(q->index_bytes, weighted, first ? TO : NO_PREFETCH);
    else if (q->index_bytes == 4)
        EACH_OF(4);
    else
        EACH_OF(8);
    if (check && first)
        tails(q, i, n, at, s);
}

/* As many rows as have others AHEAD of them that can be prefetched, then 8 at a time; and 64 if they are checked. */
INLINE int64_t rows_at_once(const int check, const request *q, int64_t i)
{
    const int64_t left = q->end - i, far = q->total - AHEAD - i, most = far < 8 ? 8 : check && far > ROWS ? ROWS : far;
    return left < most ? left : most;
}

/* Rows of a request times the NV accumulators of columns from `column` on, bias not yet added; the bias sum is returned. */
INLINE float accumulate(const int BITS, const int NV, const int OWN, const int check, const int TO, tails_fn tails,
                        const request *q, int64_t column, float *acc_out, lane_sums *s)
{
    walk w;
#pragma GCC unroll 8
    for (int z = 0; z < NV; z++)
        w.acc[z] = _mm256_setzero_ps();
    w.bytes = _mm256_setzero_si256();
    w.bias = 0;
    for (int64_t i = q->begin, n; i < q->end; i += n) {
        n = rows_at_once(check, q, i);
        add_rows(BITS, NV, OWN, check, TO, tails, q, column, i, n, &w, s);
    }
    s->bytes = _mm256_add_epi64(s->bytes, w.bytes);
    columns(BITS, NV, OWN, w.acc, acc_out);
    return w.bias;
}

#define ACCUMULATE(BITS, NV, OWN, CHECK, TO)                                                                           \
    static __attribute__((noinline)) float accumulate_##BITS##_##NV##_##OWN##_##CHECK##_##TO(                          \
        const request *q, int64_t column, float *acc, lane_sums *s)                                                    \
    {                                                                                                                  \
        return accumulate(BITS, NV, OWN, CHECK, TO, tails_##BITS##_##OWN, q, column, acc, s);                          \
    }
#define PAIR(BITS, NV, OWN, TO) ACCUMULATE(BITS, NV, OWN, 0, TO) ACCUMULATE(BITS, NV, OWN, 1, TO)
#define QUANTISED(BITS, NV) PAIR(BITS, NV, 1, TO_L1) PAIR(BITS, NV, 1, TO_L2) PAIR(BITS, NV, 0, TO_L2)
#define REAL(BITS, NV) PAIR(BITS, NV, 1, TO_L2) PAIR(BITS, NV, 0, TO_L2)
#define EIGHT(X, BITS) X(BITS, 1) X(BITS, 2) X(BITS, 3) X(BITS, 4) X(BITS, 5) X(BITS, 6) X(BITS, 7) X(BITS, 8)
EIGHT(QUANTISED, 8)
QUANTISED(4, 2) QUANTISED(4, 4) QUANTISED(4, 6) QUANTISED(4, 8) QUANTISED(2, 4) QUANTISED(2, 8)
EIGHT(REAL, 16)
EIGHT(REAL, 32)

/* by whether rows are ours, whether to check, and whether they are too many for L2 */
#define NAME(BITS, NV, OWN, CHECK, TO) accumulate_##BITS##_##NV##_##OWN##_##CHECK##_##TO
#define OTHERS(BITS, NV, OWN)                                                                                          \
    {{NAME(BITS, NV, OWN, 0, TO_L2), NAME(BITS, NV, OWN, 0, TO_L2)},                                                   \
     {NAME(BITS, NV, OWN, 1, TO_L2), NAME(BITS, NV, OWN, 1, TO_L2)}}
#define OURS(BITS, NV)                                                                                                 \
    {{NAME(BITS, NV, 1, 0, TO_L1), NAME(BITS, NV, 1, 0, TO_L2)}, {NAME(BITS, NV, 1, 1, TO_L1), NAME(BITS, NV, 1, 1, TO_L2)}}
#define NAMES(BITS, NV) {OTHERS(BITS, NV, 0), OURS(BITS, NV)},
#define REAL_NAMES(BITS, NV) {OTHERS(BITS, NV, 0), OTHERS(BITS, NV, 1)},
static const accumulate_fn with_8[8][2][2][2] = {EIGHT(NAMES, 8)};
static const accumulate_fn with_4[4][2][2][2] = {NAMES(4, 2) NAMES(4, 4) NAMES(4, 6) NAMES(4, 8)};
static const accumulate_fn with_2[2][2][2][2] = {NAMES(2, 4) NAMES(2, 8)};
static const accumulate_fn with_16[8][2][2][2] = {EIGHT(REAL_NAMES, 16)}, with_32[8][2][2][2] = {EIGHT(REAL_NAMES, 32)};

accumulate_fn sedq_bag_loop_avx2(const sedq_table *t, int64_t n, int check)
{
    const int own = t->format != SEDQ_FOREIGN && t->code_bytes % GROUP_BYTES(t->bits) == 0;
    const int far = t->num_rows * t->stride > L2_BYTES;
    switch (t->bits) {
    case 8:
        return with_8[(n - 1) / 8][own][check][far];
    case 4:
        return with_4[(n - 1) / 16][own][check][far];
    case 2:
        return with_2[(n - 1) / 32][own][check][far];
    case 16:
        return with_16[(n - 1) / 8][own][check][far];
    default:
        return with_32[(n - 1) / 8][own][check][far];
    }
}

void sedq_prefetch_first_avx2(const request *q)
{
    const int64_t n = q->total < AHEAD ? q->total : AHEAD;
    for (int64_t i = 0; i < n; i++) {
        const int64_t row = index_at(q->indices, q->index_bytes, i);
        prefetch_row(q->t->format != SEDQ_FOREIGN, TO_L2, q, (const uint8_t *)q->t->rows + row * q->t->stride, row);
    }
}
