/* Quantisation and the dot interaction for AVX-512. */
#include "context.h"
#include "fault_hook.h"
#include "lanes_avx512.h"

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

/* 1.5 * 2^23: added to a float of magnitude below 2^22 it leaves the integer nearest to it, halves to even, in the low bits. */
enum { ROUNDER_BITS = 0x4b400000 };

static int same_codes(const float *x, int64_t n, float inverse_scale, int32_t zp, const uint8_t *codes, uint32_t *sum)
{
    /* negative sums and those that are too large are, as integers, beyond the bounds */
    const __m512i low = _mm512_set1_epi32(ROUNDER_BITS - zp), high = _mm512_set1_epi32(ROUNDER_BITS + 255 - zp);
    const __m512 rounder = _mm512_castsi512_ps(_mm512_set1_epi32(ROUNDER_BITS));
    __m512i total = _mm512_setzero_si512();
    __mmask16 differs = 0, nan = 0;
    for (int64_t i = -1; i < n; i += 16) {
        const __mmask16 m = lanes(n - i) & (i < 0 ? 0xfffe : 0xffff);
        const __m512 y =
            _mm512_fmadd_ps(_mm512_maskz_loadu_ps(m, x + i), _mm512_set1_ps(inverse_scale), _mm512_setzero_ps());
        const __m512 rounded = _mm512_add_ps(y, rounder);
        const __mmask16 unordered = _mm512_cmp_ps_mask(rounded, rounded, _CMP_UNORD_Q);
        __m512i q = _mm512_min_epi32(_mm512_max_epi32(_mm512_castps_si512(rounded), low), high);
        q = _mm512_maskz_mov_epi32(m & (__mmask16)~unordered, _mm512_sub_epi32(q, low));
#ifdef SEDQ_FAULT_HOOK
        _Alignas(64) uint32_t words[16];
        _mm512_store_si512(words, q);
        SEDQ_FAULT_CODES_AGAIN(words, i + 1, 16, n);
        q = _mm512_load_si512(words);
#endif
        nan |= unordered;
        total = _mm512_add_epi32(total, q);
        differs |= _mm512_cmpneq_epi32_mask(q, _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(m, codes + i)));
    }
    *sum = sum_words32(total);
    return (differs != 0) | (nan != 0) << 1;
}

/* The reference's tree (lanes l + 8, + 4, + 2, + 1) for 16 vectors at once: each level halves their number. One
 * vector at a time would cost more than its dot product. */
static __m512 add_tree(__m512 *x)
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

/* Put the sums of vectors first .. n <= 16 in their order; that of vector 0 would be at out. */
static void store_dots(__m512 *x, int first, int n, float *out)
{
    /* add_tree leaves vector i in 128-bit part i % 4, as its element i / 4 */
    const __m512i place = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for (int i = n; i < 16; i++)
        x[i] = _mm512_setzero_ps();
    const __mmask16 m = lanes(n) & (__mmask16)(0xffff << first);
    _mm512_mask_storeu_ps(out, m, _mm512_permutexvar_ps(place, add_tree(x)));
}

/* Again: the first of all vectors is left out, so that each sum comes in the next lane. */
static void dots(const float *t, int64_t features, int64_t dim, int again, float *out)
{
    __m512 x[16];
    int first = again != 0, n = first;
    x[0] = _mm512_setzero_ps();
    out -= first;
    for (int64_t i = 1; i < features; i++)
        for (int64_t j = 0; j < i; j++) {
            const float *a = t + (again ? j : i) * dim, *b = t + (again ? i : j) * dim;
            x[n++] = dot_lanes(a, b, dim);
            if (n == 16) {
                store_dots(x, first, n, out);
                out += n;
                n = first = 0;
            }
        }
    if (n > first)
        store_dots(x, first, n, out);
}

void SEDQ_INIT(dense_avx512vnni)(sedq_context *c)
{
    c->quantize = quantize;
    c->same_codes = same_codes;
    c->dots = dots;
}
