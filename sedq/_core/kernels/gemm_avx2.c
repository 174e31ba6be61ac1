/* int8 matrix product for AVX2, exact: bytes are widened to 16 bits and multiplied with vpmaddwd.
 *
 * vpmaddubsw would multiply bytes directly, but saturates at 16 bits: with full-range operands its results are wrong. To be
 * summed in 32 bits its products need a vpmaddwd as well, so that both ways take one multiplication for 16 products: with two a
 * cycle (Zen 2 to 5, Intel since Haswell) 32 multiply-adds per cycle are the most that either reaches.
 *
 * Rows of A are widened once for each panel and block of k, into an L1 scratch; vectors of B as they are loaded, for all rows of a
 * tile. Register budget of a strip of 6 rows x 8 columns: 12 accumulators, 2 vectors of B, 1 broadcast of A, 1 product, of 16. One
 * accumulator holds 4 columns as two halves of their k group, which are added at the end. */
#include "context.h"
#include "fault_hook.h"

#include <immintrin.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

enum {
    MR = 6,
    KC = 1024, /* k at a time: 6 widened rows take 12 of the 32 KiB of L1 */
    AHEAD = 12, /* groups of k */
    LDW = KC + 32 /* rows of them don't fall into the same sets of the cache */
};

INLINE uint32_t reduce(__m256i x)
{
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(s);
}

/* lane i of the result is the sum of the lanes of x[i] */
INLINE __m128i reduce4(const __m256i *x)
{
    const __m256i y = _mm256_hadd_epi32(_mm256_hadd_epi32(x[0], x[1]), _mm256_hadd_epi32(x[2], x[3]));
    return _mm_add_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
}

INLINE uint64_t load_part(const uint8_t *p, int64_t n) /* n < 8 bytes */
{
    uint32_t low, high;
    if (n < 4)
        return n <= 0 ? 0 : (uint64_t)p[0] | (uint64_t)p[n / 2] << n / 2 * 8 | (uint64_t)p[n - 1] << (n - 1) * 8;
    memcpy(&low, p, 4);
    memcpy(&high, p + n - 4, 4);
    return low | (uint64_t)high << (n - 4) * 8;
}

/* up to 16 bytes, zeros beyond; only bytes that exist are read */
INLINE __m128i load_bytes(const void *from, int64_t left)
{
    const uint8_t *p = from;
    uint64_t low;
    if (left >= 16)
        return _mm_loadu_si128((const __m128i *)p);
    if (left < 8)
        return _mm_cvtsi64_si128((int64_t)load_part(p, left));
    memcpy(&low, p, 8);
    return _mm_set_epi64x((int64_t)load_part(p + 8, left - 8), (int64_t)low);
}

/* a[r][0 .. k) as 16-bit numbers, padded with zeros */
INLINE void widen_rows(int rows, const uint8_t *a, int64_t lda, int64_t k, uint16_t wide[][LDW])
{
    for (int r = 0; r < rows; r++, a += lda)
        for (int64_t i = 0; i < k; i += 16)
            _mm256_store_si256((__m256i *)(wide[r] + i), _mm256_cvtepu8_epi16(load_bytes(a + i, k - i)));
}

/* four 16-bit numbers, in every 64-bit lane */
INLINE __m256i broadcast_group(const uint16_t *a)
{
    int64_t group;
    memcpy(&group, a, sizeof group);
    return _mm256_set1_epi64x(group);
}

INLINE __m256i add_halves(__m256i a, __m256i b)
{
    return _mm256_permute4x64_epi64(_mm256_hadd_epi32(a, b), 0xd8);
}

/* R rows by 4 V columns, which lie `step` bytes from group to group; whole groups of k. The sums are added to the tile unless it
 * is the first block of k. On the way a part of the next panel, from `next` on, is fetched into L2. */
INLINE void strip(const int R, const int V, const uint16_t (*a)[LDW], const int8_t *b, int64_t step, int64_t groups,
                  const int8_t *next, int first, int32_t *tile)
{
    __m256i acc[MR][8];
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int v = 0; v < V; v++)
            acc[r][v] = _mm256_setzero_si256();
    const uint16_t *at = a[0];
    for (int64_t g = 0; g < groups; g++, at += SEDQ_KR, b += step, next += V * 16) {
        if (R == 1) { /* each vector of B serves one row: as it comes, and sooner than L2 gives it */
            const __m256i av = broadcast_group(at);
            for (int line = 0; line < V * 16; line += 64)
                _mm_prefetch((const char *)(b + AHEAD * step + line), _MM_HINT_T0);
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) {
                const __m256i bv = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(b + v * 16)));
                acc[0][v] = _mm256_add_epi32(acc[0][v], _mm256_madd_epi16(av, bv));
            }
        } else {
            __m256i bv[4];
#pragma GCC unroll 4
            for (int v = 0; v < V; v++)
                bv[v] = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(b + v * 16)));
#pragma GCC unroll 6
            for (int r = 0; r < R; r++) {
                const __m256i av = broadcast_group(at + r * LDW);
#pragma GCC unroll 4
                for (int v = 0; v < V; v++)
                    acc[r][v] = _mm256_add_epi32(acc[r][v], _mm256_madd_epi16(av, bv[v]));
            }
        }
        _mm_prefetch((const char *)next, _MM_HINT_T1);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++)
#pragma GCC unroll 8
            for (int v = 0; v < V; v++)
                __asm__("" : "+x"(acc[r][v])); /* stays in its register */
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int v = 0; v < V; v += 2) {
            __m256i *out = (__m256i *)(tile + r * SEDQ_NR + v * 4);
            const __m256i sum = add_halves(acc[r][v], acc[r][v + 1]);
            _mm256_store_si256(out, first ? sum : _mm256_add_epi32(_mm256_load_si256(out), sum));
        }
}

typedef void (*strip_fn)(const uint16_t (*)[LDW], const int8_t *, int64_t, int64_t, const int8_t *, int,
                         int32_t *);

#define STRIP(R, V)                                                                                                    \
    static __attribute__((noinline)) void strip_##R##x##V(const uint16_t (*a)[LDW], const int8_t *b, int64_t step,            \
                                                    int64_t groups, const int8_t *next, int first, int32_t *tile)      \
    {                                                                                                                  \
        strip(R, V, a, b, step, groups, next, first, tile);                                                            \
    }
STRIP(1, 4)
STRIP(1, 8)
STRIP(2, 4)
STRIP(3, 2)
STRIP(4, 2)
STRIP(5, 2)
STRIP(6, 2)
static const struct strip_of {
    strip_fn run;
    int columns;
} strips[MR] = {{strip_1x4, 16}, {strip_2x4, 16}, {strip_3x2, 8}, {strip_4x2, 8}, {strip_5x2, 8}, {strip_6x2, 8}},
  single = {strip_1x8, 32};

/* A panel of one column, which is contiguous: dot products of three rows at a time, the last repeated where there are fewer. */
static void dot_rows(int rows, const uint8_t *a, int64_t lda, const int8_t *b, int64_t k, int32_t *out)
{
    for (int r = 0; r < rows; r += 3) {
        const uint8_t *row[3];
        __m256i sum[4];
        for (int i = 0; i < 3; i++)
            row[i] = a + (r + i < rows ? r + i : rows - 1) * lda;
        for (int i = 0; i < 4; i++)
            sum[i] = _mm256_setzero_si256();
        for (int64_t i = 0; i < k; i += 16) {
            const __m256i bv = _mm256_cvtepi8_epi16(load_bytes(b + i, k - i));
#pragma GCC unroll 3
            for (int q = 0; q < 3; q++) {
                const __m256i av = _mm256_cvtepu8_epi16(load_bytes(row[q] + i, k - i));
                sum[q] = _mm256_add_epi32(sum[q], _mm256_madd_epi16(av, bv));
            }
        }
        _Alignas(16) int32_t total[4];
        _mm_store_si128((__m128i *)total, reduce4(sum));
        for (int i = 0; i < 3 && r + i < rows; i++)
            out[(r + i) * SEDQ_NR] = total[i];
    }
}

static void multiply_strips(int rows, int width, const uint8_t *a, int64_t lda, const int8_t *b, int64_t k, int32_t *out)
{
    _Alignas(32) uint16_t wide[MR][LDW];
    const int64_t step = (int64_t)width * SEDQ_KR, panel = (k + SEDQ_KR - 1) / SEDQ_KR * step;
    const struct strip_of *of = rows == 1 && width % 32 == 0 ? &single : &strips[rows - 1];
    for (int64_t k0 = 0; k0 < k; k0 += KC) {
        const int64_t depth = k - k0 < KC ? k - k0 : KC, groups = (depth + SEDQ_KR - 1) / SEDQ_KR;
        const int8_t *block = b + k0 * width;
        widen_rows(rows, a + k0, lda, depth, wide);
        for (int j = 0; j < width; j += of->columns)
            of->run(wide, block + j * SEDQ_KR, step, groups, block + panel + groups * j * SEDQ_KR, k0 == 0, out + j);
    }
}

static void tile(int rows, int width, const uint8_t *a, int64_t lda, const int8_t *b, int64_t k, int32_t *out)
{
    if (width == 1)
        dot_rows(rows, a, lda, b, k, out);
    else
        multiply_strips(rows, width, a, lda, b, k, out);
    SEDQ_FAULT_TILE(out, rows, width);
}

/* Dot products with D digits, which are padded to whole vectors and widened once for all, and sums if S, of R <= 2 rows. */
INLINE void rows_body(const int R, const int D, const int S, const uint8_t *a, int64_t lda, int64_t k, const int8_t *digit,
                      int64_t kpad, uint32_t *sum, uint32_t *check)
{
    __m256i dot[2][SEDQ_MAX_DIGITS], total[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++)
        total[r] = _mm256_setzero_si256();
#pragma GCC unroll 2
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int p = 0; p < D; p++)
            dot[r][p] = _mm256_setzero_si256();
    for (int64_t i = 0; i < k; i += 16) {
        __m256i dv[SEDQ_MAX_DIGITS];
#pragma GCC unroll 4
        for (int p = 0; p < D; p++)
            dv[p] = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(digit + p * kpad + i)));
#pragma GCC unroll 2
        for (int r = 0; r < R; r++) {
            const __m128i bytes = load_bytes(a + r * lda + i, k - i);
            const __m256i av = _mm256_cvtepu8_epi16(bytes);
            if (S)
                total[2 + r] = _mm256_add_epi32(total[2 + r],
                                                _mm256_zextsi128_si256(_mm_sad_epu8(bytes, _mm_setzero_si128())));
#pragma GCC unroll 4
            for (int p = 0; p < D; p++)
                dot[r][p] = _mm256_add_epi32(dot[r][p], _mm256_madd_epi16(av, dv[p]));
        }
    }
#pragma GCC unroll 2
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int p = D - 1; p >= 0; p--)
            total[r] = _mm256_add_epi32(_mm256_slli_epi32(total[r], 8), dot[r][p]);
    const __m128i sums = reduce4(total);
    const uint32_t lane[4] = {(uint32_t)_mm_extract_epi32(sums, 0), (uint32_t)_mm_extract_epi32(sums, 1),
                              (uint32_t)_mm_extract_epi32(sums, 2), (uint32_t)_mm_extract_epi32(sums, 3)};
    for (int r = 0; r < R; r++) {
        check[r] = lane[r];
        if (S)
            sum[r] = lane[2 + r];
    }
}

INLINE void sum_rows_of(const int D, const int S, int64_t rows, const uint8_t *a, int64_t lda, int64_t k,
                        const int8_t *digit, int64_t kpad, uint32_t *sum, uint32_t *check)
{
    int64_t r = 0;
    for (; r + 2 <= rows; r += 2)
        rows_body(2, D, S, a + r * lda, lda, k, digit, kpad, sum + r, check + r);
    if (r < rows)
        rows_body(1, D, S, a + r * lda, lda, k, digit, kpad, sum + r, check + r);
}

#define SUM_ROWS(D)                                                                                                    \
    case D:                                                                                                            \
        if (sum)                                                                                                       \
            sum_rows_of(D, 1, rows, a, lda, k, digit, kpad, sum, check);                                               \
        else                                                                                                           \
            sum_rows_of(D, 0, rows, a, lda, k, digit, kpad, check, check);                                             \
        break
static void sum_rows(int64_t rows, const uint8_t *a, int64_t lda, int64_t k, const int8_t *digit, int digits,
                     int64_t kpad, uint32_t *sum, uint32_t *check)
{
    switch (digits) {
        SUM_ROWS(0);
        SUM_ROWS(1);
        SUM_ROWS(2);
        SUM_ROWS(3);
        SUM_ROWS(4);
    }
}

static void reduce_lanes(int64_t rows, const uint32_t (*lanes)[16], uint32_t *out)
{
    for (int64_t r = 0; r < rows; r++)
        out[r] = reduce(_mm256_add_epi32(_mm256_loadu_si256((const __m256i *)lanes[r]),
                                         _mm256_loadu_si256((const __m256i *)(lanes[r] + 8))));
}

static void wide_sum(int rows, int cols, const int32_t *tile, int64_t *sum)
{
    for (int r = 0; r < rows; r++, tile += SEDQ_NR) {
        __m256i wide = _mm256_setzero_si256();
        int64_t lane[4];
        int j = 0;
        for (; j + 4 <= cols; j += 4)
            wide = _mm256_add_epi64(wide, _mm256_cvtepi32_epi64(_mm_loadu_si128((const __m128i *)(tile + j))));
        _mm256_storeu_si256((__m256i *)lane, wide);
        sum[r] += lane[0] + lane[1] + lane[2] + lane[3];
        for (; j < cols; j++)
            sum[r] += tile[j];
    }
}

enum { OUT_I32, OUT_U8, OUT_F32 };

typedef struct {
    __m256i term, w_zp;
    __m256 bias, mult;
} columns;

INLINE columns load_columns(const int kind, const sedq_epilogue *e, int j, __m256i *digest)
{
    columns p;
    p.term = _mm256_loadu_si256((const __m256i *)(e->col_term + j));
    *digest = _mm256_add_epi32(*digest, p.term);
    p.w_zp = _mm256_setzero_si256();
    if (e->w_zp) {
        p.w_zp = _mm256_loadu_si256((const __m256i *)(e->w_zp + j));
        *digest = _mm256_add_epi32(*digest, p.w_zp);
    }
    p.bias = p.mult = _mm256_setzero_ps();
    if (kind != OUT_I32) {
        p.bias = _mm256_loadu_ps(e->bias + j);
        p.mult = _mm256_loadu_ps(e->mult + j);
        *digest = _mm256_add_epi32(
            *digest, _mm256_add_epi32(_mm256_castps_si256(p.bias), _mm256_castps_si256(p.mult)));
    }
    return p;
}

/* 8 outputs as 32-bit words */
INLINE __m256i finish(const int kind, const sedq_epilogue *e, const columns *p, __m256i acc, uint32_t row_sum)
{
    __m256i raw = _mm256_sub_epi32(acc, p->term);
    if (e->w_zp)
        raw = _mm256_sub_epi32(raw, _mm256_mullo_epi32(p->w_zp, _mm256_set1_epi32((int32_t)row_sum)));
    if (kind == OUT_I32)
        return raw;
    const __m256 value = _mm256_cvtepi32_ps(raw);
    if (kind == OUT_F32)
        return _mm256_castps_si256(
            _mm256_max_ps(_mm256_fmadd_ps(value, p->mult, p->bias), _mm256_set1_ps(e->low)));
    __m256 y = _mm256_mul_ps(_mm256_add_ps(value, p->bias), p->mult);
    y = _mm256_max_ps(y, _mm256_set1_ps(e->low));
    y = _mm256_min_ps(y, _mm256_set1_ps(e->high));
    return _mm256_add_epi32(_mm256_cvtps_epi32(y), _mm256_set1_epi32(e->y_zp));
}

INLINE __m256i opaque(__m256i x)
{
    __asm__ volatile("" : "+x"(x));
    return x;
}

/* the same pointer, to memory of which the optimiser knows nothing */
INLINE const sedq_epilogue *forget(const sedq_epilogue *e)
{
    __asm__ volatile("" : "+r"(e) : : "memory");
    return e;
}

/* the first n of 8 lanes, made anew each time */
INLINE __m256i mask_of(int n)
{
    __asm__ volatile("" : "+r"(n));
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

INLINE void add_to(uint32_t *lanes, __m256i x)
{
    __m256i *at = (__m256i *)lanes;
    _mm256_storeu_si256(at, _mm256_add_epi32(_mm256_loadu_si256(at), x));
}

/* the first n of 8 words, or their low bytes */
INLINE void store_words(const int kind, __m256i y, __m256i mask, int n, char *out, int64_t at)
{
    if (kind != OUT_U8) {
        _mm256_maskstore_epi32((int *)out + at, mask, y);
        return;
    }
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
    const int64_t bytes = _mm_cvtsi128_si64(_mm_packus_epi16(words, words));
    if (n >= 8)
        memcpy(out + at, &bytes, 8);
    else if (n > 0) /* else padding alone */
        memcpy(out + at, &bytes, (size_t)n);
}

INLINE void store_strip(const int kind, const int check, int rows, int j, int n, const int32_t *tile,
                        const uint32_t *row_sums, const sedq_epilogue *e, void *out, int64_t ldo, sedq_tile_sums *sums,
                        __m256i *digest)
{
    const columns p = load_columns(kind, e, j, digest);
    const __m256i mask = mask_of(n);
    for (int r = 0; r < rows; r++) {
        const __m256i acc = _mm256_load_si256((const __m256i *)(tile + r * SEDQ_NR + j));
        const __m256i y = _mm256_and_si256(finish(kind, e, &p, acc, row_sums[r]), mask);
        if (check) {
            add_to(sums->acc[r], _mm256_and_si256(acc, mask));
            add_to(sums->out[r], y);
        }
        if (check == SEDQ_CHECK_FULL) {
            /* parameters and mask anew: a fault in the registers that hold them for all rows would be in both results */
            const sedq_epilogue *anew = forget(e);
            __m256i unused = _mm256_setzero_si256();
            const columns q = load_columns(kind, anew, j, &unused);
            const __m256i again = _mm256_and_si256(finish(kind, anew, &q, opaque(acc), row_sums[r]), mask_of(n));
            const __m256i differs = _mm256_xor_si256(opaque(again), y);
            sums->twice |= !_mm256_testz_si256(differs, differs);
        }
        store_words(kind, y, mask, n, out, r * ldo + j);
    }
}

/* 32 columns, row by row: parameters are operands from L1, and a row's sums stay in registers. */
INLINE void store_chunk(const int kind, const int check, int rows, int j, const int32_t *tile, const uint32_t *row_sums,
                        const sedq_epilogue *e, void *out, int64_t ldo, sedq_tile_sums *sums, __m256i *digest)
{
    for (int v = 0; v < 4; v++)
        load_columns(kind, e, j + v * 8, digest);
    for (int r = 0; r < rows; r++) {
        __m256i acc_sum = _mm256_setzero_si256(), out_sum = _mm256_setzero_si256(), y[4];
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) {
            __m256i unused = _mm256_setzero_si256();
            const columns p = load_columns(kind, e, j + v * 8, &unused);
            const __m256i acc = _mm256_load_si256((const __m256i *)(tile + r * SEDQ_NR + j + v * 8));
            y[v] = finish(kind, e, &p, acc, row_sums[r]);
            if (check)
                acc_sum = _mm256_add_epi32(acc_sum, acc);
            if (check && kind != OUT_U8)
                out_sum = _mm256_add_epi32(out_sum, y[v]);
            if (check == SEDQ_CHECK_FULL) {
                const __m256i differs = _mm256_xor_si256(opaque(finish(kind, e, &p, opaque(acc), row_sums[r])), y[v]);
                sums->twice |= !_mm256_testz_si256(differs, differs);
            }
            if (kind != OUT_U8)
                _mm256_storeu_si256((__m256i *)((int32_t *)out + r * ldo + j + v * 8), y[v]);
        }
        if (kind == OUT_U8) { /* the sums are of the very bytes that are stored */
            const __m256i words = _mm256_packus_epi16(_mm256_packs_epi32(y[0], y[1]), _mm256_packs_epi32(y[2], y[3]));
            const __m256i bytes = _mm256_permutevar8x32_epi32(words, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            if (check)
                out_sum = _mm256_sad_epu8(bytes, _mm256_setzero_si256());
            _mm256_storeu_si256((__m256i *)((uint8_t *)out + r * ldo + j), bytes);
        }
        if (check) {
            add_to(sums->acc[r], acc_sum);
            add_to(sums->out[r], out_sum);
        }
    }
}

/* A single column: rows in the lanes. */
INLINE void store_column(const int kind, const int check, int rows, const int32_t *tile, const uint32_t *row_sums,
                         const sedq_epilogue *e, void *out, int64_t ldo, sedq_tile_sums *sums)
{
    _Alignas(32) int32_t acc[8] = {0}, row_sum[8] = {0}, y[8];
    sedq_epilogue of_lanes = *e;
    columns p = {_mm256_set1_epi32(e->col_term[0]), _mm256_setzero_si256(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int r = 0; r < rows; r++)
        acc[r] = tile[r * SEDQ_NR];
    const __m256i in = _mm256_load_si256((const __m256i *)acc);
    if (e->w_zp) { /* differs from lane to lane: one more term to subtract */
        memcpy(row_sum, row_sums, (size_t)rows * sizeof *row_sum);
        p.term = _mm256_add_epi32(p.term, _mm256_mullo_epi32(_mm256_set1_epi32(e->w_zp[0]),
                                                             _mm256_load_si256((const __m256i *)row_sum)));
        of_lanes.w_zp = NULL;
    }
    if (kind != OUT_I32) {
        p.bias = _mm256_set1_ps(e->bias[0]);
        p.mult = _mm256_set1_ps(e->mult[0]);
    }
    const __m256i result = finish(kind, &of_lanes, &p, in, 0);
    if (check == SEDQ_CHECK_FULL) {
        const __m256i differs = _mm256_xor_si256(opaque(finish(kind, &of_lanes, &p, opaque(in), 0)), result);
        sums->twice |= !_mm256_testz_si256(differs, differs);
    }
    _mm256_store_si256((__m256i *)y, result);
    for (int r = 0; r < rows; r++) {
        if (check) {
            sums->acc[r][0] += (uint32_t)acc[r];
            sums->out[r][0] += (uint32_t)y[r];
        }
        if (kind == OUT_U8)
            ((uint8_t *)out)[r * ldo] = (uint8_t)y[r];
        else
            ((int32_t *)out)[r * ldo] = y[r];
    }
}

INLINE void store_tile(const int kind, const int check, int rows, int cols, const int32_t *tile,
                       const uint32_t *row_sums, const sedq_epilogue *e, void *out, int64_t ldo, sedq_tile_sums *sums)
{
    __m256i digest = _mm256_setzero_si256();
    int j = 0;
    if (cols == 1)
        store_column(kind, check, rows, tile, row_sums, e, out, ldo, sums);
    for (; j + 32 <= cols; j += 32)
        store_chunk(kind, check, rows, j, tile, row_sums, e, out, ldo, sums, &digest);
    for (; cols > 1 && j < cols; j += 8)
        store_strip(kind, check, rows, j, cols - j, tile, row_sums, e, out, ldo, sums, &digest);
    for (; check && j < (cols + SEDQ_NV - 1) / SEDQ_NV * SEDQ_NV; j += 8) /* parameters are padded, and all summed */
        load_columns(kind, e, j, &digest);
    if (check) {
        add_to(sums->params, digest);
        sums->params[0] += sedq_scalar_bits(e);
    }
}

#define STORE(name, kind)                                                                                              \
    static void name(int rows, int cols, const int32_t *tile, const uint32_t *row_sums, const sedq_epilogue *e,        \
                     void *out, int64_t ldo, int check, sedq_tile_sums *sums)                                          \
    {                                                                                                                  \
        if (check == SEDQ_CHECK_OFF)                                                                                   \
            store_tile(kind, SEDQ_CHECK_OFF, rows, cols, tile, row_sums, e, out, ldo, sums);                           \
        else if (check == SEDQ_CHECK_EXACT)                                                                            \
            store_tile(kind, SEDQ_CHECK_EXACT, rows, cols, tile, row_sums, e, out, ldo, sums);                         \
        else                                                                                                           \
            store_tile(kind, SEDQ_CHECK_FULL, rows, cols, tile, row_sums, e, out, ldo, sums);                          \
    }
STORE(store_i32, OUT_I32)
STORE(store_u8, OUT_U8)
STORE(store_f32, OUT_F32)

static uint32_t sum_u8(const void *p, int64_t rows, int64_t n, int64_t ld)
{
    const __m256i zero = _mm256_setzero_si256();
    __m256i sum = zero;
    for (const uint8_t *x = p; rows > 0; rows--, x += ld) {
        int64_t i = 0;
        for (; i + 32 <= n; i += 32)
            sum = _mm256_add_epi64(sum, _mm256_sad_epu8(_mm256_loadu_si256((const __m256i *)(x + i)), zero));
        for (; i < n; i += 16) {
            const __m128i rest = _mm_sad_epu8(load_bytes(x + i, n - i), _mm_setzero_si128());
            sum = _mm256_add_epi64(sum, _mm256_zextsi128_si256(rest));
        }
    }
    return reduce(sum);
}

static uint32_t sum_words(const void *p, int64_t rows, int64_t n, int64_t ld)
{
    __m256i sum = _mm256_setzero_si256();
    uint32_t rest = 0;
    for (const uint32_t *x = p; rows > 0; rows--, x += ld) {
        int64_t i = 0;
        for (; i + 8 <= n; i += 8)
            sum = _mm256_add_epi32(sum, _mm256_loadu_si256((const __m256i *)(x + i)));
        for (; i < n; i++)
            rest += x[i];
    }
    return rest + reduce(sum);
}

void SEDQ_INIT(gemm_avx2)(sedq_context *c)
{
    c->name = "avx2";
    c->mr = MR;
    c->mc = 96;
    c->nc_bytes = 256 * 1024;
    c->tile = tile;
    c->rows = sum_rows;
    c->reduce = reduce_lanes;
    c->wide_sum = wide_sum;
    c->store_i32 = store_i32;
    c->store_u8 = store_u8;
    c->store_f32 = store_f32;
    c->sum_u8 = sum_u8;
    c->sum_words = sum_words;
}
