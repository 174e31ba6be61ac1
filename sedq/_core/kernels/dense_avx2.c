/* Quantisation and the dot interaction for AVX2. */
#include "context.h"
#include "fault_hook.h"
#include "bytes_avx2.h"

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

/* What codes must be, and what they are. */
typedef struct {
    __m256i low, high, offset; /* bounds of the sum with the rounder, compared as integers, and what to take from it */
    __m256i sum, differs;
    __m256 nan;
} comparison;

/* 1.5 * 2^23: added to a float of magnitude below 2^22 it leaves the integer nearest to it, halves to even, in the low bits. */
enum { ROUNDER_BITS = 0x4b400000 };

/* Lanes `from` to `to` of 8 values; negative sums and those that are too large are, as integers, beyond the bounds. */
INLINE void compare_codes(comparison *c, __m256 x, float inverse_scale, __m128i codes, int from, int to, int64_t at, int64_t n)
{
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256 y = _mm256_fmadd_ps(x, _mm256_set1_ps(inverse_scale), _mm256_setzero_ps());
    const __m256 rounded = _mm256_add_ps(y, _mm256_castsi256_ps(_mm256_set1_epi32(ROUNDER_BITS)));
    const __m256 nan = _mm256_cmp_ps(rounded, rounded, _CMP_UNORD_Q);
    __m256i q = _mm256_min_epi32(_mm256_max_epi32(_mm256_castps_si256(rounded), c->low), c->high);
    q = _mm256_andnot_si256(_mm256_castps_si256(nan), _mm256_sub_epi32(q, c->offset));
    if (to - from < 8)
        q = _mm256_and_si256(q, _mm256_and_si256(_mm256_cmpgt_epi32(lane, _mm256_set1_epi32(from - 1)),
                                                 _mm256_cmpgt_epi32(_mm256_set1_epi32(to), lane)));
#ifdef SEDQ_FAULT_HOOK
    _Alignas(32) uint32_t words[8];
    _mm256_store_si256((__m256i *)words, q);
    SEDQ_FAULT_CODES_AGAIN(words, at, to, n);
    q = _mm256_load_si256((const __m256i *)words);
#else
    (void)at, (void)n;
#endif
    c->nan = _mm256_or_ps(c->nan, nan);
    c->sum = _mm256_add_epi32(c->sum, q);
    c->differs = _mm256_or_si256(c->differs, _mm256_xor_si256(q, _mm256_cvtepu8_epi32(codes)));
}

static int same_codes(const float *x, int64_t n, float inverse_scale, int32_t zp, const uint8_t *codes, uint32_t *sum)
{
    const __m256i zero = _mm256_setzero_si256();
    comparison c = {_mm256_set1_epi32(ROUNDER_BITS - zp), _mm256_set1_epi32(ROUNDER_BITS + 255 - zp),
                    _mm256_set1_epi32(ROUNDER_BITS - zp), zero, zero, _mm256_setzero_ps()};
    for (int64_t i = -1; i < n; i += 8) {
        if (i >= 0 && i + 8 <= n) {
            compare_codes(&c, _mm256_loadu_ps(x + i), inverse_scale, _mm_loadl_epi64((const __m128i *)(codes + i)), 0, 8,
                          i + 1, n);
            continue;
        }
        const int64_t from = i < 0, to = n - i < 8 ? n - i : 8;
        float part[8] = {0};
        uint8_t read[16] = {0};
        memcpy(part + from, x + i + from, (size_t)(to - from) * sizeof *part);
        memcpy(read + from, codes + i + from, (size_t)(to - from));
        compare_codes(&c, _mm256_loadu_ps(part), inverse_scale, _mm_loadl_epi64((const __m128i *)read), (int)from, (int)to,
                      i + 1, n);
    }
    *sum = reduce(c.sum);
    return (_mm256_testz_si256(c.differs, c.differs) ? 0 : 1) | (_mm256_movemask_ps(c.nan) ? 2 : 0);
}

/* 16 lanes, then the reference's tree: lanes l + 8, + 4, + 2, + 1. Again: the last sums in the highest lane. */
INLINE float dot(const int again, const float *a, const float *b, int64_t n)
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
    if (again) {
        const __m256 y = _mm256_add_ps(x, _mm256_permute2f128_ps(x, x, 1));
        const __m256 z = _mm256_add_ps(y, _mm256_permute_ps(y, 0x4e));
        const __m128 sums = _mm256_extractf128_ps(_mm256_add_ps(z, _mm256_permute_ps(z, 0xb1)), 1);
        return _mm_cvtss_f32(_mm_permute_ps(sums, 0xff));
    }
    const __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 z = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(z, _mm_movehdup_ps(z)));
}

static void dots(const float *t, int64_t features, int64_t dim, int again, float *out)
{
    for (int64_t i = 1; i < features; i++)
        for (int64_t j = 0; j < i; j++)
            *out++ = again ? dot(1, t + j * dim, t + i * dim, dim) : dot(0, t + i * dim, t + j * dim, dim);
}

void SEDQ_INIT(dense_avx2)(sedq_context *c)
{
    c->quantize = quantize;
    c->same_codes = same_codes;
    c->dots = dots;
}
