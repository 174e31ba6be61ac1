/* int8 matrix product for AVX-512 VNNI.
 *
 * vpdpbusd multiplies 64 unsigned by 64 signed bytes and adds groups of four into 16 int32 lanes, without
 * saturation (Intel SDM; latency 4 to 5 cycles, two per cycle on Zen 5 and server Intel cores). Register budget of
 * the largest tile, 6 rows x 64 columns: 24 accumulators, 4 vectors of B, 1 broadcast of A, of 32.
 *
 * The k loop stands in a function of its own that does nothing after it but store the tile to scratch: with more work
 * behind the loop in one function, compilers spill accumulators inside it. */
#include "barrier.h"
#include "context.h"
#include "fault_hook.h"

#include <immintrin.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

INLINE __m512i broadcast4(const uint8_t *a)
{
    int32_t group;
    memcpy(&group, a, sizeof group);
    return _mm512_set1_epi32(group);
}

/* R rows by V vectors of 16 columns. Small tiles keep S sets of accumulators, so that enough independent
 * instructions are under way to hide the latency. Returns how much of k is done: whole steps of S groups. */
INLINE int64_t tile_body(const int R, const int V, const int S, const uint8_t *a, int64_t lda, const int8_t *b, int64_t k,
                      int32_t *tile)
{
    __m512i acc[4][6][4];
    const int64_t steps = k / (S * SEDQ_KR);
    const int64_t step = (int64_t)V * 64;
#pragma GCC unroll 4
    for (int s = 0; s < S; s++)
#pragma GCC unroll 6
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++)
                acc[s][r][v] = _mm512_setzero_si512();

    for (int64_t g = 0; g < steps; g++) {
#pragma GCC unroll 4
        for (int s = 0; s < S; s++) {
            __m512i bv[4];
#pragma GCC unroll 4
            for (int v = 0; v < V; v++)
                bv[v] = _mm512_loadu_si512(b + s * step + v * 64);
#pragma GCC unroll 6
            for (int r = 0; r < R; r++) {
                const __m512i av = broadcast4(a + r * lda + s * SEDQ_KR);
#pragma GCC unroll 4
                for (int v = 0; v < V; v++)
                    acc[s][r][v] = _mm512_dpbusd_epi32(acc[s][r][v], av, bv[v]);
            }
        }
#pragma GCC unroll 4
        for (int s = 0; s < S; s++)
#pragma GCC unroll 6
            for (int r = 0; r < R; r++)
#pragma GCC unroll 4
                for (int v = 0; v < V; v++)
                    SEDQ_KEEP(acc[s][r][v]);
        a += S * SEDQ_KR;
        b += S * step;
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
            __m512i sum = acc[0][r][v];
#pragma GCC unroll 4
            for (int s = 1; s < S; s++)
                sum = _mm512_add_epi32(sum, acc[s][r][v]);
            _mm512_store_si512(tile + r * SEDQ_NR + v * 16, sum);
        }
    return steps * S * SEDQ_KR;
}

typedef int64_t (*fixed_tile_fn)(const uint8_t *, int64_t, const int8_t *, int64_t, int32_t *);

#define TILE(R, V)                                                                                                     \
    static __attribute__((noinline)) int64_t tile_##R##x##V(const uint8_t *a, int64_t lda, const int8_t *b, int64_t k, \
                                                            int32_t *tile)                                             \
    {                                                                                                                  \
        return tile_body(R, V, R * V <= 4 ? 4 : R * V <= 12 ? 2 : 1, a, lda, b, k, tile);                              \
    }
#define TILE_ROW(R) TILE(R, 1) TILE(R, 2) TILE(R, 3) TILE(R, 4)
TILE_ROW(1)
TILE_ROW(2)
TILE_ROW(3)
TILE_ROW(4)
TILE_ROW(5)
TILE_ROW(6)

static const fixed_tile_fn tiles[6][4] = {
    {tile_1x1, tile_1x2, tile_1x3, tile_1x4}, {tile_2x1, tile_2x2, tile_2x3, tile_2x4},
    {tile_3x1, tile_3x2, tile_3x3, tile_3x4}, {tile_4x1, tile_4x2, tile_4x3, tile_4x4},
    {tile_5x1, tile_5x2, tile_5x3, tile_5x4}, {tile_6x1, tile_6x2, tile_6x3, tile_6x4},
};

/* Add the last products, from `done` on, to a stored tile. Only bytes of A that exist are read. */
static void add_tail(int rows, int width, const uint8_t *a, int64_t lda, const int8_t *b, int64_t done, int64_t k,
                     int32_t *out)
{
    for (int64_t i = done; i < k; i += SEDQ_KR)
        for (int r = 0; r < rows; r++) {
            uint32_t group = 0;
            memcpy(&group, a + r * lda + i, k - i < SEDQ_KR ? (size_t)(k - i) : SEDQ_KR);
            const __m512i av = _mm512_set1_epi32((int32_t)group);
            for (int j = 0; j < width; j += 16) {
                int32_t *sum = out + r * SEDQ_NR + j;
                const __m512i bv = _mm512_loadu_si512(b + i * width + j * SEDQ_KR);
                _mm512_store_si512(sum, _mm512_dpbusd_epi32(_mm512_load_si512(sum), av, bv));
            }
        }
}

/* Sum of 32-bit lanes modulo 2^32. (The compiler's own reduction adds the last lanes as signed numbers.) */
INLINE uint32_t sum_words32(__m512i x)
{
    const __m256i a = _mm256_add_epi32(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
    __m128i b = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    b = _mm_add_epi32(b, _mm_shuffle_epi32(b, 0x4e));
    b = _mm_add_epi32(b, _mm_shuffle_epi32(b, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(b);
}

/* a panel of one column, which is contiguous: dot products */
static void dot_rows(int rows, const uint8_t *a, int64_t lda, const int8_t *b, int64_t k, int32_t *out)
{
    for (int r = 0; r < rows; r++, a += lda) {
        __m512i sum = _mm512_setzero_si512();
        for (int64_t i = 0; i < k; i += 64) {
            const __mmask64 m = k - i >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << (k - i)) - 1;
            const __m512i av = _mm512_maskz_loadu_epi8(m, a + i), bv = _mm512_maskz_loadu_epi8(m, b + i);
            sum = _mm512_dpbusd_epi32(sum, av, bv);
        }
        out[r * SEDQ_NR] = (int32_t)sum_words32(sum);
    }
}

static void tile(int rows, int width, const uint8_t *a, int64_t lda, const int8_t *b, int64_t k, int32_t *out)
{
    if (width == 1) {
        dot_rows(rows, a, lda, b, k, out);
        SEDQ_FAULT_TILE(out, rows, width);
        return;
    }
    const int64_t done = tiles[rows - 1][width / 16 - 1](a, lda, b, k, out);
    if (done < k)
        add_tail(rows, width, a, lda, b, done, k, out);
    SEDQ_FAULT_TILE(out, rows, width);
}

/* Lane i of the result is the sum of the lanes of x[i]: 16 vectors at once cost as much as three one by one. */
INLINE __m512i reduce16(__m512i *x)
{
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        x[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]),
                                _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]));
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        x[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(x[2 * i], x[2 * i + 1]),
                                _mm512_unpackhi_epi64(x[2 * i], x[2 * i + 1]));
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++)
        x[i] = _mm512_add_epi32(_mm512_shuffle_i32x4(x[2 * i], x[2 * i + 1], 0x88),
                                _mm512_shuffle_i32x4(x[2 * i], x[2 * i + 1], 0xdd));
    return _mm512_add_epi32(_mm512_shuffle_i32x4(x[0], x[1], 0x88), _mm512_shuffle_i32x4(x[0], x[1], 0xdd));
}

/* Store the sums of n <= 16 vectors. */
INLINE void store_sums(__m512i *x, int64_t n, uint32_t *out)
{
    for (int64_t i = n; i < 16; i++)
        x[i] = _mm512_setzero_si512();
    _mm512_mask_storeu_epi32(out, n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1), reduce16(x));
}

/* One row's sum and checksum of D digits, in lanes. Two sets of accumulators, because a single row leaves nothing else
 * to hide latency behind. */
INLINE __m512i row_lanes(const int D, const uint8_t *a, int64_t k, const int8_t *digit, int64_t kpad, __m512i *sum)
{
    const __m512i ones = _mm512_set1_epi8(1);
    __m512i s[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()}, d[SEDQ_MAX_DIGITS][2];
#pragma GCC unroll 4
    for (int p = 0; p < D; p++)
        d[p][0] = d[p][1] = _mm512_setzero_si512();
    for (int64_t i = 0; i < k; i += 128) {
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            const int64_t at = i + 64 * h, left = k - at;
            if (left <= 0)
                break;
            const __mmask64 m = left >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << left) - 1;
            const __m512i av = _mm512_maskz_loadu_epi8(m, a + at);
            s[h] = _mm512_dpbusd_epi32(s[h], av, ones);
#pragma GCC unroll 4
            for (int p = 0; p < D; p++) /* digits are padded to whole vectors */
                d[p][h] = _mm512_dpbusd_epi32(d[p][h], av, _mm512_loadu_si512(digit + p * kpad + at));
        }
    }
    *sum = _mm512_add_epi32(s[0], s[1]);
    __m512i total = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int p = D - 1; p >= 0; p--)
        total = _mm512_add_epi32(_mm512_slli_epi32(total, 8), _mm512_add_epi32(d[p][0], d[p][1]));
    return total;
}

INLINE void rows_body(const int D, int64_t rows, const uint8_t *a, int64_t lda, int64_t k, const int8_t *digit,
                      int64_t kpad, uint32_t *sum, uint32_t *check)
{
    __m512i s[16], c[16];
    for (int64_t r = 0; r < rows; r += 16) {
        const int64_t n = rows - r < 16 ? rows - r : 16;
        for (int64_t i = 0; i < n; i++)
            c[i] = row_lanes(D, a + (r + i) * lda, k, digit, kpad, &s[i]);
        if (sum)
            store_sums(s, n, sum + r);
        store_sums(c, n, check + r);
    }
}

static void sum_rows(int64_t rows, const uint8_t *a, int64_t lda, int64_t k, const int8_t *digit, int digits,
                     int64_t kpad, uint32_t *sum, uint32_t *check)
{
    switch (digits) {
    case 0: rows_body(0, rows, a, lda, k, digit, kpad, sum, check); break;
    case 1: rows_body(1, rows, a, lda, k, digit, kpad, sum, check); break;
    case 2: rows_body(2, rows, a, lda, k, digit, kpad, sum, check); break;
    case 3: rows_body(3, rows, a, lda, k, digit, kpad, sum, check); break;
    default: rows_body(4, rows, a, lda, k, digit, kpad, sum, check);
    }
}

static void reduce(int64_t rows, const uint32_t (*lanes)[16], uint32_t *out)
{
    __m512i x[16];
    if (rows == 1) {
        *out = sum_words32(_mm512_loadu_si512(lanes));
        return;
    }
    for (int64_t r = 0; r < rows; r += 16) {
        const int64_t n = rows - r < 16 ? rows - r : 16;
        for (int64_t i = 0; i < n; i++)
            x[i] = _mm512_loadu_si512(lanes[r + i]);
        store_sums(x, n, out + r);
    }
}

static void wide_sum(int rows, int cols, const int32_t *tile, int64_t *sum)
{
    for (int r = 0; r < rows; r++, tile += SEDQ_NR) {
        __m512i wide = _mm512_setzero_si512();
        for (int j = 0; j < cols; j += 8) {
            const __mmask8 m = cols - j >= 8 ? 0xff : (__mmask8)((1u << (cols - j)) - 1);
            const __m256i acc = _mm256_maskz_loadu_epi32(m, tile + j);
            wide = _mm512_add_epi64(wide, _mm512_cvtepi32_epi64(acc));
        }
        sum[r] += _mm512_reduce_add_epi64(wide);
    }
}

enum { OUT_I32, OUT_U8, OUT_F32 };

/* parameters of 16 columns */
typedef struct {
    __m512i term, w_zp;
    __m512 bias, mult;
} columns;

INLINE columns load_columns(const int kind, const sedq_epilogue *e, int j, __m512i *digest)
{
    columns p;
    p.term = _mm512_loadu_si512(e->col_term + j);
    *digest = _mm512_add_epi32(*digest, p.term);
    p.w_zp = _mm512_setzero_si512();
    if (e->w_zp) {
        p.w_zp = _mm512_loadu_si512(e->w_zp + j);
        *digest = _mm512_add_epi32(*digest, p.w_zp);
    }
    p.bias = p.mult = _mm512_setzero_ps();
    if (kind != OUT_I32) {
        p.bias = _mm512_loadu_ps(e->bias + j);
        p.mult = _mm512_loadu_ps(e->mult + j);
        *digest = _mm512_add_epi32(
            *digest, _mm512_add_epi32(_mm512_castps_si512(p.bias), _mm512_castps_si512(p.mult)));
    }
    return p;
}

/* 16 outputs as 32-bit words */
INLINE __m512i finish(const int kind, const sedq_epilogue *e, const columns *p, __m512i acc, uint32_t row_sum)
{
    __m512i raw = _mm512_sub_epi32(acc, p->term);
    if (e->w_zp)
        raw = _mm512_sub_epi32(raw, _mm512_mullo_epi32(p->w_zp, _mm512_set1_epi32((int32_t)row_sum)));
    if (kind == OUT_I32)
        return raw;
    const __m512 value = _mm512_cvtepi32_ps(raw);
    if (kind == OUT_F32)
        return _mm512_castps_si512(
            _mm512_max_ps(_mm512_fmadd_ps(value, p->mult, p->bias), _mm512_set1_ps(e->low)));
    __m512 y = _mm512_mul_ps(_mm512_add_ps(value, p->bias), p->mult);
    y = _mm512_max_ps(y, _mm512_set1_ps(e->low));
    y = _mm512_min_ps(y, _mm512_set1_ps(e->high));
    return _mm512_add_epi32(_mm512_cvtps_epi32(y), _mm512_set1_epi32(e->y_zp));
}

/* the same value, of which the optimiser knows nothing */
INLINE __m512i opaque(__m512i x)
{
    SEDQ_HIDE(x);
    return x;
}

/* the same pointer, to memory of which the optimiser knows nothing */
INLINE const sedq_epilogue *forget(const sedq_epilogue *e)
{
    __asm__ volatile("" : "+r"(e) : : "memory");
    return e;
}

/* the first n > 0 of 16 lanes, made anew each time */
INLINE __mmask16 mask_of(int n)
{
    __asm__ volatile("" : "+r"(n));
    return n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1);
}

INLINE void add_to(uint32_t *lanes, __m512i x)
{
    _mm512_storeu_si512(lanes, _mm512_add_epi32(_mm512_loadu_si512(lanes), x));
}

/* V strips of 16 columns, the last masked: parameters are loaded once for all rows, and a row's sums stay in registers. */
INLINE void store_rows(const int kind, const int check, const int V, int rows, int cols, const int32_t *tile,
                       const uint32_t *row_sums, const sedq_epilogue *e, void *out, int64_t ldo, sedq_tile_sums *sums)
{
    const __mmask16 last = mask_of(cols - (V - 1) * 16);
    __m512i digest = _mm512_setzero_si512();
    columns p[4];
#pragma GCC unroll 4
    for (int v = 0; v < V; v++)
        p[v] = load_columns(kind, e, v * 16, &digest);
    for (int r = 0; r < rows; r++) {
        __m512i acc_sum = _mm512_setzero_si512(), out_sum = _mm512_setzero_si512();
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
            const __mmask16 m = v + 1 < V ? 0xffff : last;
            const __m512i acc = _mm512_load_si512(tile + r * SEDQ_NR + v * 16);
            const __m512i y = _mm512_maskz_mov_epi32(m, finish(kind, e, &p[v], acc, row_sums[r]));
            const int64_t at = r * ldo + v * 16;
            if (check) {
                acc_sum = _mm512_mask_add_epi32(acc_sum, m, acc_sum, acc);
                out_sum = _mm512_add_epi32(out_sum, y);
            }
            if (check == SEDQ_CHECK_FULL) {
                /* parameters and mask anew: a fault in the registers that hold them for all rows would be in both results */
                const sedq_epilogue *anew = forget(e);
                __m512i unused = _mm512_setzero_si512();
                const columns q = load_columns(kind, anew, v * 16, &unused);
                const __m512i again = finish(kind, anew, &q, opaque(acc), row_sums[r]);
                sums->twice |= _mm512_cmpneq_epi32_mask(_mm512_maskz_mov_epi32(mask_of(cols - v * 16), opaque(again)), y);
            }
            if (kind == OUT_U8)
                _mm_mask_storeu_epi8((uint8_t *)out + at, m, _mm512_cvtepi32_epi8(y));
            else
                _mm512_mask_storeu_epi32((int32_t *)out + at, m, y);
        }
        if (check) {
            add_to(sums->acc[r], acc_sum);
            add_to(sums->out[r], out_sum);
        }
    }
    if (check) {
        add_to(sums->params, digest);
        sums->params[0] += sedq_scalar_bits(e);
    }
}

INLINE void store_tile(const int kind, const int check, int rows, int cols, const int32_t *tile,
                       const uint32_t *row_sums, const sedq_epilogue *e, void *out, int64_t ldo, sedq_tile_sums *sums)
{
    switch ((cols + 15) / 16) {
    case 1: store_rows(kind, check, 1, rows, cols, tile, row_sums, e, out, ldo, sums); break;
    case 2: store_rows(kind, check, 2, rows, cols, tile, row_sums, e, out, ldo, sums); break;
    case 3: store_rows(kind, check, 3, rows, cols, tile, row_sums, e, out, ldo, sums); break;
    default: store_rows(kind, check, 4, rows, cols, tile, row_sums, e, out, ldo, sums);
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
    __m512i sum = _mm512_setzero_si512();
    for (const uint8_t *x = p; rows > 0; rows--, x += ld)
        for (int64_t i = 0; i < n; i += 64) {
            const __mmask64 m = n - i >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << (n - i)) - 1;
            const __m512i v = _mm512_maskz_loadu_epi8(m, x + i);
            sum = _mm512_add_epi64(sum, _mm512_sad_epu8(v, _mm512_setzero_si512()));
        }
    return (uint32_t)_mm512_reduce_add_epi64(sum);
}

static uint32_t sum_words(const void *p, int64_t rows, int64_t n, int64_t ld)
{
    __m512i sum = _mm512_setzero_si512();
    for (const int32_t *x = p; rows > 0; rows--, x += ld)
        for (int64_t i = 0; i < n; i += 16) {
            const __mmask16 m = n - i >= 16 ? 0xffff : (__mmask16)((1u << (n - i)) - 1);
            sum = _mm512_add_epi32(sum, _mm512_maskz_loadu_epi32(m, x + i));
        }
    return sum_words32(sum);
}

void SEDQ_INIT(gemm_avx512vnni)(sedq_context *c)
{
    c->name = "avx512vnni";
    c->mr = 6;
    c->mc = 96;
    c->nc_bytes = 512 * 1024;
    c->tile = tile;
    c->rows = sum_rows;
    c->reduce = reduce;
    c->wide_sum = wide_sum;
    c->store_i32 = store_i32;
    c->store_u8 = store_u8;
    c->store_f32 = store_f32;
    c->sum_u8 = sum_u8;
    c->sum_words = sum_words;
}
