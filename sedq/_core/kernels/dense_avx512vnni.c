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

/* the reference's tree: lanes l + 8, + 4, + 2, + 1 */
static float reduce(__m512 x)
{
    const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

static float dot(const float *a, const float *b, int64_t n)
{
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 m = lanes(n - i);
        sum = _mm512_mask3_fmadd_ps(_mm512_maskz_loadu_ps(m, a + i), _mm512_maskz_loadu_ps(m, b + i), sum, m);
    }
    return reduce(sum);
}

static void dots(const float *t, int64_t features, int64_t dim, float *out)
{
    for (int64_t i = 1; i < features; i++)
        for (int64_t j = 0; j < i; j++)
            *out++ = dot(t + i * dim, t + j * dim, dim);
}

void SEDQ_INIT(dense_avx512vnni)(sedq_context *c)
{
    c->quantize = quantize;
    c->dots = dots;
}
