/* Quantisation and the dot interaction for AVX-512. */
#include "context.h"

#include <immintrin.h>

static __mmask16 lanes(int64_t left)
{
    return left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
}

static int quantize(const float *x, int64_t n, float inverse_scale, int32_t zp, uint8_t *out)
{
    const __m512 low = _mm512_set1_ps((float)-zp), high = _mm512_set1_ps((float)(255 - zp));
    __mmask16 nan = 0;
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 m = lanes(n - i);
        __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(m, x + i), _mm512_set1_ps(inverse_scale));
        nan |= _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
        v = _mm512_min_ps(_mm512_max_ps(v, low), high); /* both return the second operand for NaN */
        const __m512i q = _mm512_add_epi32(_mm512_cvtps_epi32(v), _mm512_set1_epi32(zp));
        _mm_mask_storeu_epi8(out + i, m, _mm512_cvtepi32_epi8(q));
    }
    return nan != 0;
}

/* The reference's tree (lanes l + 8, + 4, + 2, + 1) for 16 vectors at once: each level halves their number. One
 * vector at a time would cost more than its dot product. */
static __m512 reduce16(__m512 *x)
{
    for (int i = 0; i < 8; i++) {
        const __m512 low = _mm512_shuffle_f32x4(x[2 * i], x[2 * i + 1], 0x44);
        const __m512 high = _mm512_shuffle_f32x4(x[2 * i], x[2 * i + 1], 0xee);
        x[i] = _mm512_add_ps(low, high);
    }
    for (int i = 0; i < 4; i++) {
        const __m512 low = _mm512_shuffle_f32x4(x[2 * i], x[2 * i + 1], 0x88);
        const __m512 high = _mm512_shuffle_f32x4(x[2 * i], x[2 * i + 1], 0xdd);
        x[i] = _mm512_add_ps(low, high);
    }
    for (int i = 0; i < 2; i++) {
        const __m512 low = _mm512_shuffle_ps(x[2 * i], x[2 * i + 1], 0x44);
        const __m512 high = _mm512_shuffle_ps(x[2 * i], x[2 * i + 1], 0xee);
        x[i] = _mm512_add_ps(low, high);
    }
    return _mm512_add_ps(_mm512_shuffle_ps(x[0], x[1], 0x88), _mm512_shuffle_ps(x[0], x[1], 0xdd));
}

static __m512 dot_lanes(const float *a, const float *b, int64_t n)
{
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 m = lanes(n - i);
        sum = _mm512_mask3_fmadd_ps(_mm512_maskz_loadu_ps(m, a + i), _mm512_maskz_loadu_ps(m, b + i), sum, m);
    }
    return sum;
}

/* Put the sums of n <= 16 vectors in their order. */
static void store_dots(__m512 *x, int n, float *out)
{
    /* reduce16 leaves vector i in 128-bit part i % 4, as its element i / 4 */
    const __m512i place = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for (int i = n; i < 16; i++)
        x[i] = _mm512_setzero_ps();
    _mm512_mask_storeu_ps(out, lanes(n), _mm512_permutexvar_ps(place, reduce16(x)));
}

static void dots(const float *t, int64_t features, int64_t dim, float *out)
{
    __m512 x[16];
    int n = 0;
    for (int64_t i = 1; i < features; i++)
        for (int64_t j = 0; j < i; j++) {
            x[n++] = dot_lanes(t + i * dim, t + j * dim, dim);
            if (n == 16) {
                store_dots(x, n, out);
                out += n;
                n = 0;
            }
        }
    if (n)
        store_dots(x, n, out);
}

void SEDQ_INIT(dense_avx512vnni)(sedq_context *c)
{
    c->quantize = quantize;
    c->dots = dots;
}
