/* The second accumulation of a bag for AVX2, and for AVX-512, whose kernels have other vectors.
 *
 * A fault that sticks to a lane or an instruction would repeat itself if the kernels of bags ran twice. Here column l of 8 is in
 * lane (l + 1) % 8, and codes are unpacked by shuffles of bytes and by shifts of one word for all lanes:
 *
 *   columns   c0 c1 c2 c3 c4 c5 c6 c7
 *   lanes     c7 c0 c1 c2 c3 c4 c5 c6
 *
 * The order of operations is that of the kernels, so that results are the same bit for bit. 64 columns at a time stay in registers. */
#include "bytes_avx2.h"
#include "context.h"
#include "fault_hook.h"
#include "rows.h"

#include <math.h>

enum { BLOCK = 64 };

/* `left` > 0 values of 32 bits, at most 8, zeros beyond */
INLINE __m256 load_floats(const uint8_t *p, int64_t left)
{
    float part[8] = {0};
    if (left >= 8)
        return _mm256_loadu_ps((const float *)p);
    memcpy(part, p, (size_t)left * sizeof *part);
    return _mm256_loadu_ps(part);
}

/* a word for all lanes, of whose fields of `bits` bits each lane takes that of its column */
INLINE __m256 fields(const int bits, const uint8_t *p, int64_t left)
{
    const __m256i column = _mm256_setr_epi32(7, 0, 1, 2, 3, 4, 5, 6);
    uint32_t word = 0;
    if (left >= 8)
        memcpy(&word, p, (size_t)bits);
    else
        word = (uint32_t)load_part(p, (left * bits + 7) / 8);
    const __m256i shift = bits == 4 ? _mm256_slli_epi32(column, 2) : _mm256_slli_epi32(column, 1);
    const __m256i field = _mm256_srlv_epi32(_mm256_set1_epi32((int32_t)word), shift);
    return _mm256_cvtepi32_ps(_mm256_and_si256(field, _mm256_set1_epi32((1 << bits) - 1)));
}

/* Columns j .. j + 8 of a row, each in the next lane; `left` of them exist. */
INLINE __m256 unpack(const int bits, const uint8_t *codes, int64_t j, int64_t left)
{
    const __m128i next_byte = _mm_setr_epi8(7, 0, 1, 2, 3, 4, 5, 6, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m128i next_half = _mm_setr_epi8(14, 15, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13);
    __m128i x;
    switch (bits) {
    case 8:
        x = left >= 8 ? _mm_loadl_epi64((const __m128i *)(codes + j)) : load_bytes(codes + j, left);
        return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_shuffle_epi8(x, next_byte)));
    case 4:
    case 2:
        return fields(bits, codes + j * bits / 8, left);
    case 16:
        return _mm256_cvtph_ps(_mm_shuffle_epi8(load_bytes(codes + 2 * j, 2 * left), next_half));
    default:
        return _mm256_permutevar8x32_ps(load_floats(codes + 4 * j, left), _mm256_setr_epi32(7, 0, 1, 2, 3, 4, 5, 6));
    }
}

/* V vectors of columns from j on, of which `left` exist: all, unless V is 1 */
INLINE void pool(const int bits, const int V, const sedq_table *t, const void *indices, int index_bytes,
                 const float *weights, int64_t begin, int64_t end, float divisor, int64_t j, int64_t left, float *out)
{
    __m256 sum[BLOCK / 8];
    _Alignas(32) float stored[BLOCK];
    float bias = 0;
    for (int v = 0; v < V; v++)
        sum[v] = _mm256_setzero_ps();
    for (int64_t i = begin; i < end; i++) {
        const int64_t row = sedq_index(indices, index_bytes, i);
        const uint8_t *codes = sedq_codes(t, row);
        const sedq_params p = sedq_row_params(t, row);
        const float w = weights ? weights[i] : 1.0f, factor = w * p.scale;
        const __m256 factors = _mm256_set1_ps(factor);
#pragma GCC unroll 8
        for (int v = 0; v < V; v++)
            sum[v] = _mm256_fmadd_ps(unpack(bits, codes, j + 8 * v, left - 8 * v), factors, sum[v]);
        bias = fmaf(w, p.bias, bias);
    }
    for (int v = 0; v < V; v++)
        _mm256_store_ps(stored + 8 * v, sum[v]);
    SEDQ_FAULT_BAG_AGAIN(stored, j, 8 * V, t->dim);
    for (int64_t c = 0; c < left && c < 8 * V; c++)
        out[j + c] = (stored[c / 8 * 8 + (c + 1) % 8] + bias) / divisor;
}

INLINE void pool_columns(const int bits, const sedq_table *t, const void *indices, int index_bytes, const float *weights,
                         int64_t begin, int64_t end, float divisor, float *out)
{
    int64_t j = 0;
    for (; j + BLOCK <= t->dim; j += BLOCK)
        pool(bits, BLOCK / 8, t, indices, index_bytes, weights, begin, end, divisor, j, BLOCK, out);
    for (; j + 16 <= t->dim; j += 16)
        pool(bits, 2, t, indices, index_bytes, weights, begin, end, divisor, j, 16, out);
    for (; j < t->dim; j += 8)
        pool(bits, 1, t, indices, index_bytes, weights, begin, end, divisor, j, t->dim - j, out);
}

static void bag_again(const sedq_table *t, const void *indices, int index_bytes, const float *weights, int64_t begin,
                      int64_t end, float divisor, float *out)
{
    switch (t->bits) {
    case 8: pool_columns(8, t, indices, index_bytes, weights, begin, end, divisor, out); break;
    case 4: pool_columns(4, t, indices, index_bytes, weights, begin, end, divisor, out); break;
    case 2: pool_columns(2, t, indices, index_bytes, weights, begin, end, divisor, out); break;
    case 16: pool_columns(16, t, indices, index_bytes, weights, begin, end, divisor, out); break;
    default: pool_columns(32, t, indices, index_bytes, weights, begin, end, divisor, out);
    }
}

void SEDQ_INIT(again_avx2)(sedq_context *c)
{
    c->bag_again = bag_again;
}
