/* int8 matrix product for AVX2, exact: bytes are widened to 16 bits and multiplied with vpmaddwd.
 *
 * vpmaddubsw would multiply bytes directly, but saturates at 16 bits: with full-range operands its results are wrong. To be
 * summed in 32 bits its products need a vpmaddwd as well, so that both ways take one multiplication for 16 products: with two a
 * cycle (Zen 2 to 5, Intel since Haswell) 32 multiply-adds per cycle are the most that either reaches.
 *
 * Rows of A are widened once for each panel and block of k, into an L1 scratch; vectors of B as they are loaded, for all rows of a
 * tile. Register budget of a strip of 6 rows x 8 columns: 12 accumulators, 2 vectors of B, 1 broadcast of A, 1 product, of 16. One
 * accumulator holds 4 columns as two halves of their k group, which are added at the end. */
#include "bytes_avx2.h"
#include "context.h"
#include "fault_hook.h"

enum {
    MR = 6,
    KC = 1024, /* k at a time: 6 widened rows take 12 of the 32 KiB of L1 */
    AHEAD = 12, /* groups of k */
    LDW = KC + 32 /* rows of them don't fall into the same sets of the cache */
};

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

void SEDQ_INIT(gemm_avx2)(sedq_context *c)
{
    c->name = "avx2";
    c->mr = MR;
    c->mc = 96;
    c->nc_bytes = 256 * 1024;
    c->tile = tile;
    c->rows = sum_rows;
}
