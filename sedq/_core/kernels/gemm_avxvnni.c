/* int8 matrix product for AVX-VNNI: vpdpbusd on 256-bit vectors, for CPUs that have it without AVX-512.
 *
 * Register budget of a tile of 6 rows x 16 columns: 12 accumulators, 2 vectors of B, 1 broadcast of A, of 16. The epilogue
 * and the sums are those of AVX2. */
#include "context.h"
#include "fault_hook.h"
#include "gemm_tail.h"

#include <immintrin.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

INLINE __m256i broadcast_group(const uint8_t *a)
{
    int32_t group;
    memcpy(&group, a, sizeof group);
    return _mm256_set1_epi32(group);
}

/* R rows by 16 columns, which lie `step` bytes from group to group; whole groups of k. */
INLINE void strip(const int R, const uint8_t *a, int64_t lda, const int8_t *b, int64_t step, int64_t k, int32_t *tile)
{
    __m256i acc[6][2];
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
        acc[r][0] = acc[r][1] = _mm256_setzero_si256();
    for (int64_t i = 0; i + SEDQ_KR <= k; i += SEDQ_KR, b += step) {
        const __m256i b0 = _mm256_loadu_si256((const __m256i *)b);
        const __m256i b1 = _mm256_loadu_si256((const __m256i *)(b + 32));
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
            const __m256i av = broadcast_group(a + r * lda + i);
            acc[r][0] = _mm256_dpbusd_avx_epi32(acc[r][0], av, b0);
            acc[r][1] = _mm256_dpbusd_avx_epi32(acc[r][1], av, b1);
        }
#pragma GCC unroll 6
        for (int r = 0; r < R; r++)
            __asm__("" : "+x"(acc[r][0]), "+x"(acc[r][1])); /* stay in their registers */
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
        _mm256_store_si256((__m256i *)(tile + r * SEDQ_NR), acc[r][0]);
        _mm256_store_si256((__m256i *)(tile + r * SEDQ_NR + 8), acc[r][1]);
    }
}

typedef void (*strip_fn)(const uint8_t *, int64_t, const int8_t *, int64_t, int64_t, int32_t *);

#define TILE(R)                                                                                                        \
    static __attribute__((noinline)) void tile_##R(const uint8_t *a, int64_t lda, const int8_t *b, int64_t step,       \
                                                   int64_t k, int32_t *tile)                                           \
    {                                                                                                                  \
        strip(R, a, lda, b, step, k, tile);                                                                            \
    }
TILE(1)
TILE(2)
TILE(3)
TILE(4)
TILE(5)
TILE(6)
static const strip_fn strips[6] = {tile_1, tile_2, tile_3, tile_4, tile_5, tile_6};

/* a panel of one column, which is contiguous: dot products of whole vectors; the rest is added below */
static void dot_rows(int rows, const uint8_t *a, int64_t lda, const int8_t *b, int64_t k, int32_t *out)
{
    for (int r = 0; r < rows; r++, a += lda) {
        __m256i sum = _mm256_setzero_si256();
        for (int64_t i = 0; i + 32 <= k; i += 32)
            sum = _mm256_dpbusd_avx_epi32(sum, _mm256_loadu_si256((const __m256i *)(a + i)),
                                          _mm256_loadu_si256((const __m256i *)(b + i)));
        __m128i s = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
        s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
        s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
        out[r * SEDQ_NR] = _mm_cvtsi128_si32(s);
    }
    if (k % 32)
        sedq_add_tail(rows, 1, a - rows * lda, lda, b, k - k % 32, k, out);
}

static void tile(int rows, int width, const uint8_t *a, int64_t lda, const int8_t *b, int64_t k, int32_t *out)
{
    if (width == 1) {
        dot_rows(rows, a, lda, b, k, out);
        SEDQ_FAULT_TILE(out, rows, width);
        return;
    }
    for (int j = 0; j < width; j += SEDQ_NV)
        strips[rows - 1](a, lda, b + j * SEDQ_KR, (int64_t)width * SEDQ_KR, k, out + j);
    if (k % SEDQ_KR)
        sedq_add_tail(rows, width, a, lda, b, k - k % SEDQ_KR, k, out);
    SEDQ_FAULT_TILE(out, rows, width);
}

void SEDQ_INIT(gemm_avxvnni)(sedq_context *c)
{
    c->name = "avxvnni";
    c->tile = tile;
}
