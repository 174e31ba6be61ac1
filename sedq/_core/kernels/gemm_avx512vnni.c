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
#include "lanes_avx512.h"

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

void SEDQ_INIT(gemm_avx512vnni)(sedq_context *c)
{
    c->name = "avx512vnni";
    c->mr = 6;
    c->mc = 96;
    c->nc_bytes = 512 * 1024;
    c->tile = tile;
    c->rows = sum_rows;
}
