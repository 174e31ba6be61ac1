/* int8 matrix product for AVX2, exact: bytes are widened to 16 bits and multiplied with vpmaddwd.
 *
 * vpmaddubsw would multiply bytes directly, but saturates at 16 bits: with full-range operands its results are wrong. Register
 * budget of a tile of 2 rows x 16 columns: 8 accumulators, 2 vectors of A, 1 of B, 1 product, of 16. One accumulator holds 4
 * columns as two halves of their k group, which are added at the end. */
#include "context.h"
#include "fault_hook.h"
#include "gemm_tail.h"

#include <immintrin.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* four bytes of A as 16-bit numbers, in every group of four lanes */
INLINE __m256i broadcast_group(const uint8_t *a)
{
    int32_t group;
    memcpy(&group, a, sizeof group);
    return _mm256_cvtepu8_epi16(_mm_set1_epi32(group));
}

INLINE __m256i add_halves(__m256i a, __m256i b)
{
    return _mm256_permute4x64_epi64(_mm256_hadd_epi32(a, b), 0xd8);
}

/* R rows by 16 columns, which lie `step` bytes from group to group; whole groups of k. */
INLINE void strip(const int R, const uint8_t *a, int64_t lda, const int8_t *b, int64_t step, int64_t k, int32_t *tile)
{
    __m256i acc[2][4];
#pragma GCC unroll 2
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++)
            acc[r][v] = _mm256_setzero_si256();
    for (int64_t i = 0; i + SEDQ_KR <= k; i += SEDQ_KR, b += step) {
        __m256i av[2];
#pragma GCC unroll 2
        for (int r = 0; r < R; r++)
            av[r] = broadcast_group(a + r * lda + i);
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) {
            const __m256i bv = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(b + v * 16)));
#pragma GCC unroll 2
            for (int r = 0; r < R; r++)
                acc[r][v] = _mm256_add_epi32(acc[r][v], _mm256_madd_epi16(av[r], bv));
        }
#pragma GCC unroll 2
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++)
                __asm__("" : "+x"(acc[r][v])); /* stays in its register */
    }
#pragma GCC unroll 2
    for (int r = 0; r < R; r++) {
        _mm256_store_si256((__m256i *)(tile + r * SEDQ_NR), add_halves(acc[r][0], acc[r][1]));
        _mm256_store_si256((__m256i *)(tile + r * SEDQ_NR + 8), add_halves(acc[r][2], acc[r][3]));
    }
}

static __attribute__((noinline)) void tile_1(const uint8_t *a, int64_t lda, const int8_t *b, int64_t step, int64_t k,
                                             int32_t *tile)
{
    strip(1, a, lda, b, step, k, tile);
}

static __attribute__((noinline)) void tile_2(const uint8_t *a, int64_t lda, const int8_t *b, int64_t step, int64_t k,
                                             int32_t *tile)
{
    strip(2, a, lda, b, step, k, tile);
}

static void tile(int rows, int width, const uint8_t *a, int64_t lda, const int8_t *b, int64_t k, int32_t *out)
{
    const int64_t step = (int64_t)width * SEDQ_KR;
    for (int j = 0; j < width; j += SEDQ_NV) {
        int r = 0;
        for (; r + 2 <= rows; r += 2)
            tile_2(a + r * lda, lda, b + j * SEDQ_KR, step, k, out + r * SEDQ_NR + j);
        if (r < rows)
            tile_1(a + r * lda, lda, b + j * SEDQ_KR, step, k, out + r * SEDQ_NR + j);
    }
    if (k % SEDQ_KR)
        sedq_add_tail(rows, width, a, lda, b, k - k % SEDQ_KR, k, out);
    SEDQ_FAULT_TILE(out, rows, width);
}

INLINE uint32_t reduce(__m256i x)
{
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(s);
}

/* up to 16 bytes, zeros beyond */
INLINE __m128i load_bytes(const void *p, int64_t left)
{
    uint8_t whole[16] = {0};
    if (left >= 16)
        return _mm_loadu_si128((const __m128i *)p);
    memcpy(whole, p, (size_t)left);
    return _mm_loadu_si128((const __m128i *)whole);
}

static void sum_row(const uint8_t *a, int64_t k, const int8_t *digit, int digits, int64_t kpad, uint32_t *sum,
                    uint32_t *check)
{
    __m256i dot[SEDQ_MAX_DIGITS], s = _mm256_setzero_si256();
    uint32_t total = 0;
    for (int p = 0; p < digits; p++)
        dot[p] = _mm256_setzero_si256();
    for (int64_t i = 0; i < k; i += 16) {
        const __m128i bytes = load_bytes(a + i, k - i);
        const __m256i av = _mm256_cvtepu8_epi16(bytes);
        s = _mm256_add_epi32(s, _mm256_castsi128_si256(_mm_sad_epu8(bytes, _mm_setzero_si128())));
        for (int p = 0; p < digits; p++) { /* digits are padded to whole vectors */
            const __m256i dv = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(digit + p * kpad + i)));
            dot[p] = _mm256_add_epi32(dot[p], _mm256_madd_epi16(av, dv));
        }
    }
    for (int p = digits - 1; p >= 0; p--)
        total = total * 256u + reduce(dot[p]);
    *sum = (uint32_t)_mm_cvtsi128_si32(_mm256_castsi256_si128(s)) + (uint32_t)_mm256_extract_epi32(s, 2);
    *check = total;
}

static void sum_rows(int64_t rows, const uint8_t *a, int64_t lda, int64_t k, const int8_t *digit, int digits,
                     int64_t kpad, uint32_t *sum, uint32_t *check)
{
    for (int64_t r = 0; r < rows; r++)
        sum_row(a + r * lda, k, digit, digits, kpad, sum + r, check + r);
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
    const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    for (int r = 0; r < rows; r++) {
        const __m256i acc = _mm256_load_si256((const __m256i *)(tile + r * SEDQ_NR + j));
        const __m256i y = _mm256_and_si256(finish(kind, e, &p, acc, row_sums[r]), mask);
        if (check) {
            add_to(sums->acc[r], _mm256_and_si256(acc, mask));
            add_to(sums->out[r], y);
        }
        if (check == SEDQ_CHECK_FULL) {
            const __m256i again = opaque(finish(kind, e, &p, opaque(acc), row_sums[r]));
            const __m256i differs = _mm256_and_si256(_mm256_xor_si256(again, y), mask);
            sums->twice |= !_mm256_testz_si256(differs, differs);
        }
        store_words(kind, y, mask, n, out, r * ldo + j);
    }
}

INLINE void store_tile(const int kind, const int check, int rows, int cols, const int32_t *tile,
                       const uint32_t *row_sums, const sedq_epilogue *e, void *out, int64_t ldo, sedq_tile_sums *sums)
{
    __m256i digest = _mm256_setzero_si256();
    /* whole steps of 16 columns, as they are padded: their parameters are all summed */
    for (int j = 0; j < (cols + 15) / 16 * 16; j += 8)
        store_strip(kind, check, rows, j, cols - j, tile, row_sums, e, out, ldo, sums, &digest);
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
    __m128i sum = _mm_setzero_si128();
    for (const uint8_t *x = p; rows > 0; rows--, x += ld)
        for (int64_t i = 0; i < n; i += 16)
            sum = _mm_add_epi64(sum, _mm_sad_epu8(load_bytes(x + i, n - i), _mm_setzero_si128()));
    return (uint32_t)_mm_cvtsi128_si32(sum) + (uint32_t)_mm_extract_epi32(sum, 2);
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
    c->mr = 6;
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
