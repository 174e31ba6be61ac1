/* Quantisation and the dot interaction for AVX2. */
#include "context.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

static int quantize(const float *x, int64_t n, float inverse_scale, int32_t zp, uint8_t *out)
{
    const __m256 low = _mm256_set1_ps((float)-zp), high = _mm256_set1_ps((float)(255 - zp));
    const __m256i zero = _mm256_set1_epi32(zp);
    __m256 nan = _mm256_setzero_ps();
    for (int64_t i = 0; i < n; i += 8) {
        const int64_t left = n - i < 8 ? n - i : 8;
        float part[8] = {0};
        memcpy(part, x + i, (size_t)left * sizeof *part);
        __m256 v = _mm256_mul_ps(_mm256_loadu_ps(part), _mm256_set1_ps(inverse_scale));
        nan = _mm256_or_ps(nan, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
        v = _mm256_min_ps(_mm256_max_ps(v, low), high); /* both return the second operand for NaN */
        const __m256i q = _mm256_add_epi32(_mm256_cvtps_epi32(v), zero);
        const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
        const int64_t bytes = _mm_cvtsi128_si64(_mm_packus_epi16(words, words));
        memcpy(out + i, &bytes, (size_t)left);
    }
    return _mm256_movemask_ps(nan) != 0;
}

/* 16 lanes, then the reference's tree: lanes l + 8, + 4, + 2, + 1 */
static float dot(const float *a, const float *b, int64_t n)
{
    float lane[16];
    __m256 low = _mm256_setzero_ps(), high = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        low = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), low);
        high = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 8), _mm256_loadu_ps(b + i + 8), high);
    }
    _mm256_storeu_ps(lane, low);
    _mm256_storeu_ps(lane + 8, high);
    for (; i < n; i++)
        lane[i % 16] = fmaf(a[i], b[i], lane[i % 16]);
    const __m256 x = _mm256_add_ps(_mm256_loadu_ps(lane), _mm256_loadu_ps(lane + 8));
    const __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 z = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(z, _mm_movehdup_ps(z)));
}

static void dots(const float *t, int64_t features, int64_t dim, float *out)
{
    for (int64_t i = 1; i < features; i++)
        for (int64_t j = 0; j < i; j++)
            *out++ = dot(t + i * dim, t + j * dim, dim);
}

void SEDQ_INIT(dense_avx2)(sedq_context *c)
{
    c->quantize = quantize;
    c->dots = dots;
}
