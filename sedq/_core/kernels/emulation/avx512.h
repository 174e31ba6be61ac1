/* The AVX-512 intrinsics that the kernels use, and AVX-VNNI's product, on AVX2: to test kernels on machines without.
 *
 * A 512-bit vector is two of 256 bits; what AVX2 has not is a loop over lanes. Semantics are those of the Intel
 * Intrinsics Guide; what it leaves undefined is poison here. A lane that a mask excludes is neither read nor written, so
 * that AddressSanitizer sees what the instruction would touch, and aligned access to what is not aligned ends the process,
 * as it does on the real machine. */
#ifndef SEDQ_EMULATION_AVX512_H
#define SEDQ_EMULATION_AVX512_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define EMULATED static inline __attribute__((always_inline, unused))

typedef union {
    __m512i si;
    __m512 ps;
    __m512d pd;
    __m256i half_si[2];
    __m256 half_ps[2];
    __m256d half_pd[2];
    __m128i part_si[4];
    uint8_t u8[64];
    int32_t i32[16];
    uint32_t u32[16];
    uint64_t u64[8];
    float f32[16];
    double f64[8];
} emulated_zmm;

#define ZMM(field, x) ((emulated_zmm){.field = (x)})

#define LANES(n, f, expression)                                                                                        \
    emulated_zmm r;                                                                                                    \
    for (int i = 0; i < (n); i++)                                                                                      \
        r.f[i] = (expression);

/* ---- the same in both halves */

#define HALVES_2(T, f, name)                                                                                           \
    EMULATED T emulated_mm512_##name(T a, T b)                                                                         \
    {                                                                                                                  \
        LANES(2, half_##f, _mm256_##name(ZMM(f, a).half_##f[i], ZMM(f, b).half_##f[i]))                                \
        return r.f;                                                                                                    \
    }
#define HALVES_3(T, f, name)                                                                                           \
    EMULATED T emulated_mm512_##name(T a, T b, T c)                                                                    \
    {                                                                                                                  \
        LANES(2, half_##f, _mm256_##name(ZMM(f, a).half_##f[i], ZMM(f, b).half_##f[i], ZMM(f, c).half_##f[i]))         \
        return r.f;                                                                                                    \
    }
HALVES_2(__m512i, si, add_epi32)
HALVES_2(__m512i, si, add_epi64)
HALVES_2(__m512i, si, sub_epi32)
HALVES_2(__m512i, si, sub_epi64)
HALVES_2(__m512i, si, mullo_epi32)
HALVES_2(__m512i, si, max_epi32)
HALVES_2(__m512i, si, min_epi32)
HALVES_2(__m512i, si, sad_epu8)
HALVES_2(__m512i, si, unpacklo_epi32)
HALVES_2(__m512i, si, unpackhi_epi32)
HALVES_2(__m512i, si, unpacklo_epi64)
HALVES_2(__m512i, si, unpackhi_epi64)
HALVES_2(__m512, ps, add_ps)
HALVES_2(__m512, ps, mul_ps)
HALVES_2(__m512, ps, div_ps)
HALVES_2(__m512, ps, min_ps)
HALVES_2(__m512, ps, max_ps)
HALVES_3(__m512, ps, fmadd_ps)
HALVES_2(__m512d, pd, add_pd)
HALVES_2(__m512d, pd, mul_pd)
HALVES_2(__m512d, pd, unpacklo_pd)
HALVES_2(__m512d, pd, unpackhi_pd)
HALVES_3(__m512d, pd, fmadd_pd)

/* vpdpbusd: the products of bytes 0 and 2, then 1 and 3, of each group. A product has 16 bits, and nothing saturates. */
EMULATED __m256i emulated_mm256_dpbusd_epi32(__m256i sum, __m256i a, __m256i b)
{
    const __m256i a02 = _mm256_and_si256(a, _mm256_set1_epi16(0xff)), a13 = _mm256_srli_epi16(a, 8);
    const __m256i b02 = _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8), b13 = _mm256_srai_epi16(b, 8);
    const __m256i products = _mm256_add_epi32(_mm256_madd_epi16(a02, b02), _mm256_madd_epi16(a13, b13));
    return _mm256_add_epi32(sum, products);
}

EMULATED __m512i emulated_mm512_dpbusd_epi32(__m512i sum, __m512i a, __m512i b)
{
    LANES(2, half_si, emulated_mm256_dpbusd_epi32(ZMM(si, sum).half_si[i], ZMM(si, a).half_si[i], ZMM(si, b).half_si[i]))
    return r.si;
}

/* ---- lane by lane */

EMULATED __m512i emulated_mm512_setzero_si512(void) { LANES(8, u64, 0) return r.si; }
EMULATED __m512 emulated_mm512_setzero_ps(void) { LANES(16, f32, 0) return r.ps; }
EMULATED __m512d emulated_mm512_setzero_pd(void) { LANES(8, f64, 0) return r.pd; }
EMULATED __m512i emulated_mm512_set1_epi8(char a) { LANES(64, u8, (uint8_t)a) return r.si; }
EMULATED __m512i emulated_mm512_set1_epi32(int a) { LANES(16, i32, a) return r.si; }
EMULATED __m512 emulated_mm512_castsi512_ps(__m512i a) { return ZMM(si, a).ps; }
EMULATED __m512i emulated_mm512_set1_epi64(long long a) { LANES(8, u64, (uint64_t)a) return r.si; }
EMULATED __m512 emulated_mm512_set1_ps(float a) { LANES(16, f32, a) return r.ps; }
EMULATED __m512d emulated_mm512_set1_pd(double a) { LANES(8, f64, a) return r.pd; }
#define emulated_mm512_setr_epi32(...) ((emulated_zmm){.i32 = {__VA_ARGS__}}.si)

EMULATED __m512i emulated_mm512_and_si512(__m512i a, __m512i b)
{
    LANES(8, u64, ZMM(si, a).u64[i] & ZMM(si, b).u64[i])
    return r.si;
}

EMULATED __m512i emulated_mm512_slli_epi32(__m512i a, unsigned n)
{
    LANES(16, u32, n < 32 ? ZMM(si, a).u32[i] << n : 0)
    return r.si;
}

EMULATED __m512i emulated_mm512_slli_epi64(__m512i a, unsigned n)
{
    LANES(8, u64, n < 64 ? ZMM(si, a).u64[i] << n : 0)
    return r.si;
}

EMULATED __m512i emulated_mm512_srli_epi64(__m512i a, unsigned n)
{
    LANES(8, u64, n < 64 ? ZMM(si, a).u64[i] >> n : 0)
    return r.si;
}

EMULATED __m512d emulated_mm512_abs_pd(__m512d a)
{
    LANES(8, u64, ZMM(pd, a).u64[i] & INT64_MAX)
    return r.pd;
}

EMULATED __m512 emulated_mm512_mask3_fmadd_ps(__m512 a, __m512 b, __m512 c, __mmask16 m)
{
    const emulated_zmm sum = ZMM(ps, emulated_mm512_fmadd_ps(a, b, c)), kept = ZMM(ps, c);
    LANES(16, f32, m >> i & 1 ? sum.f32[i] : kept.f32[i])
    return r.ps;
}

EMULATED __m512i emulated_mm512_mask_add_epi32(__m512i src, __mmask16 m, __m512i a, __m512i b)
{
    LANES(16, u32, m >> i & 1 ? ZMM(si, a).u32[i] + ZMM(si, b).u32[i] : ZMM(si, src).u32[i])
    return r.si;
}

EMULATED __m512i emulated_mm512_maskz_mov_epi32(__mmask16 m, __m512i a)
{
    LANES(16, u32, m >> i & 1 ? ZMM(si, a).u32[i] : 0)
    return r.si;
}

EMULATED __m512 emulated_mm512_maskz_mov_ps(__mmask16 m, __m512 a)
{
    LANES(16, u32, m >> i & 1 ? ZMM(ps, a).u32[i] : 0)
    return r.ps;
}

/* ---- lanes that change places */

EMULATED __m512 emulated_mm512_shuffle_ps(__m512 a, __m512 b, unsigned control)
{
    LANES(16, f32, ZMM(ps, i & 2 ? b : a).f32[(i & ~3) + (control >> 2 * (i & 3) & 3)])
    return r.ps;
}

EMULATED __m512i emulated_mm512_shuffle_i32x4(__m512i a, __m512i b, unsigned control)
{
    LANES(4, part_si, ZMM(si, i & 2 ? b : a).part_si[control >> 2 * i & 3])
    return r.si;
}

EMULATED __m512 emulated_mm512_shuffle_f32x4(__m512 a, __m512 b, unsigned control)
{
    return ZMM(si, emulated_mm512_shuffle_i32x4(ZMM(ps, a).si, ZMM(ps, b).si, control)).ps;
}

EMULATED __m512 emulated_mm512_permutexvar_ps(__m512i place, __m512 a)
{
    LANES(16, f32, ZMM(ps, a).f32[ZMM(si, place).u32[i] % 16])
    return r.ps;
}

EMULATED __m512i emulated_mm512_inserti32x4(__m512i a, __m128i b, unsigned part)
{
    emulated_zmm r = ZMM(si, a);
    r.part_si[part % 4] = b;
    return r.si;
}

EMULATED __m128i emulated_mm512_extracti32x4_epi32(__m512i a, unsigned part) { return ZMM(si, a).part_si[part % 4]; }
EMULATED __m256i emulated_mm512_extracti64x4_epi64(__m512i a, unsigned half) { return ZMM(si, a).half_si[half % 2]; }
EMULATED __m256 emulated_mm512_extractf32x8_ps(__m512 a, unsigned half) { return ZMM(ps, a).half_ps[half % 2]; }
EMULATED __m256d emulated_mm512_extractf64x4_pd(__m512d a, unsigned half) { return ZMM(pd, a).half_pd[half % 2]; }
EMULATED __m128i emulated_mm512_castsi512_si128(__m512i a) { return ZMM(si, a).part_si[0]; }
EMULATED __m256i emulated_mm512_castsi512_si256(__m512i a) { return ZMM(si, a).half_si[0]; }
EMULATED __m256 emulated_mm512_castps512_ps256(__m512 a) { return ZMM(ps, a).half_ps[0]; }
EMULATED __m256d emulated_mm512_castpd512_pd256(__m512d a) { return ZMM(pd, a).half_pd[0]; }
EMULATED __m512i emulated_mm512_castps_si512(__m512 a) { return ZMM(ps, a).si; }

EMULATED __m512i emulated_mm512_castsi128_si512(__m128i a)
{
    LANES(4, part_si, i ? _mm_set1_epi8(0x5a) : a)
    return r.si;
}

/* ---- conversion */

EMULATED __m512i emulated_mm512_cvtps_epi32(__m512 a)
{
    LANES(2, half_si, _mm256_cvtps_epi32(ZMM(ps, a).half_ps[i]))
    return r.si;
}

EMULATED __m512 emulated_mm512_cvtepi32_ps(__m512i a)
{
    LANES(16, f32, (float)ZMM(si, a).i32[i])
    return r.ps;
}

EMULATED __m512d emulated_mm512_cvtps_pd(__m256 a)
{
    LANES(8, f64, ((const union { __m256 ps; float f32[8]; }){a}).f32[i])
    return r.pd;
}

EMULATED __m512d emulated_mm512_cvtepu64_pd(__m512i a)
{
    LANES(8, f64, (double)ZMM(si, a).u64[i])
    return r.pd;
}

EMULATED __m512i emulated_mm512_cvtepu8_epi32(__m128i a)
{
    LANES(16, u32, ((const union { __m128i si; uint8_t u8[16]; }){a}).u8[i])
    return r.si;
}

EMULATED __m512i emulated_mm512_cvtepi32_epi64(__m256i a)
{
    LANES(8, u64, (uint64_t)((const union { __m256i si; int32_t i32[8]; }){a}).i32[i])
    return r.si;
}

EMULATED __m128i emulated_mm512_cvtepi32_epi8(__m512i a)
{
    LANES(16, u8, (uint8_t)ZMM(si, a).u32[i])
    return r.part_si[0];
}

EMULATED __m256i emulated_mm512_cvtepi64_epi32(__m512i a)
{
    LANES(8, u32, (uint32_t)ZMM(si, a).u64[i])
    return r.half_si[0];
}

/* ---- comparisons; sums of all lanes, in the order that the guide gives */

#define MASK(n, T, condition)                                                                                          \
    T m = 0;                                                                                                           \
    for (int i = 0; i < (n); i++)                                                                                      \
        m |= (T)((T)(condition) << i);                                                                                 \
    return m;

EMULATED __mmask16 emulated_mm512_cmpge_epu32_mask(__m512i a, __m512i b)
{
    MASK(16, __mmask16, ZMM(si, a).u32[i] >= ZMM(si, b).u32[i])
}

EMULATED __mmask8 emulated_mm512_cmpge_epu64_mask(__m512i a, __m512i b)
{
    MASK(8, __mmask8, ZMM(si, a).u64[i] >= ZMM(si, b).u64[i])
}

EMULATED __mmask16 emulated_mm512_mask_cmpneq_epi32_mask(__mmask16 among, __m512i a, __m512i b)
{
    MASK(16, __mmask16, (among >> i & 1) && ZMM(si, a).u32[i] != ZMM(si, b).u32[i])
}

EMULATED __mmask16 emulated_mm512_cmpneq_epi32_mask(__m512i a, __m512i b)
{
    return emulated_mm512_mask_cmpneq_epi32_mask(0xffff, a, b);
}

/* a macro, because the predicate must be a constant */
#define emulated_mm512_cmp_ps_mask(a, b, predicate)                                                                    \
    ((__mmask16)(_mm256_movemask_ps(_mm256_cmp_ps(ZMM(ps, a).half_ps[0], ZMM(ps, b).half_ps[0], predicate)) |          \
                 _mm256_movemask_ps(_mm256_cmp_ps(ZMM(ps, a).half_ps[1], ZMM(ps, b).half_ps[1], predicate)) << 8))

EMULATED long long emulated_mm512_reduce_add_epi64(__m512i a)
{
    uint64_t sum = 0;
    for (int i = 0; i < 8; i++)
        sum += ZMM(si, a).u64[i];
    return (long long)sum;
}

EMULATED double emulated_mm512_reduce_add_pd(__m512d a)
{
    emulated_zmm x = ZMM(pd, a);
    for (int n = 4; n > 0; n /= 2)
        for (int i = 0; i < n; i++)
            x.f64[i] += x.f64[i + n];
    return x.f64[0];
}

/* ---- memory */

EMULATED void emulated_need_alignment(const void *p)
{
    if ((uintptr_t)p % 64)
        __builtin_trap();
}

EMULATED __m512i emulated_mm512_loadu_si512(const void *p)
{
    emulated_zmm r;
    memcpy(&r, p, sizeof r);
    return r.si;
}

EMULATED void emulated_mm512_storeu_si512(void *p, __m512i a) { memcpy(p, &a, sizeof a); }
EMULATED __m512 emulated_mm512_loadu_ps(const void *p) { return ZMM(si, emulated_mm512_loadu_si512(p)).ps; }

EMULATED __m512i emulated_mm512_load_si512(const void *p)
{
    emulated_need_alignment(p);
    return emulated_mm512_loadu_si512(p);
}

EMULATED void emulated_mm512_store_si512(void *p, __m512i a)
{
    emulated_need_alignment(p);
    emulated_mm512_storeu_si512(p, a);
}

EMULATED __m512 emulated_mm512_load_ps(const void *p) { return ZMM(si, emulated_mm512_load_si512(p)).ps; }
EMULATED void emulated_mm512_store_ps(void *p, __m512 a) { emulated_mm512_store_si512(p, ZMM(ps, a).si); }

/* What the mask m chooses of n elements of `size` bytes; zeros elsewhere. One element at a time, by size's own type or
 * not, is what keeps the others untouched. */
EMULATED emulated_zmm emulated_maskz_load(uint64_t m, const void *p, int n, size_t size)
{
    emulated_zmm r = ZMM(si, emulated_mm512_setzero_si512());
    for (int i = 0; i < n; i++)
        if (m >> i & 1)
            memcpy(r.u8 + (size_t)i * size, (const uint8_t *)p + (size_t)i * size, size);
    return r;
}

EMULATED void emulated_mask_store(void *p, uint64_t m, const void *x, int n, size_t size)
{
    for (int i = 0; i < n; i++)
        if (m >> i & 1)
            memcpy((uint8_t *)p + (size_t)i * size, (const uint8_t *)x + (size_t)i * size, size);
}

EMULATED __m512i emulated_mm512_maskz_loadu_epi8(__mmask64 m, const void *p)
{
    if (m == UINT64_MAX) /* what nearly all are */
        return emulated_mm512_loadu_si512(p);
    return emulated_maskz_load(m, p, 64, 1).si;
}

EMULATED __m512i emulated_mm512_maskz_loadu_epi32(__mmask16 m, const void *p) { return emulated_maskz_load(m, p, 16, 4).si; }
EMULATED __m512i emulated_mm512_maskz_loadu_epi64(__mmask8 m, const void *p) { return emulated_maskz_load(m, p, 8, 8).si; }
EMULATED __m512 emulated_mm512_maskz_loadu_ps(__mmask16 m, const void *p) { return emulated_maskz_load(m, p, 16, 4).ps; }

EMULATED __m256i emulated_mm256_maskz_loadu_epi32(__mmask8 m, const void *p)
{
    return emulated_maskz_load(m, p, 8, 4).half_si[0];
}

EMULATED __m128i emulated_mm_maskz_loadu_epi8(__mmask16 m, const void *p)
{
    return emulated_maskz_load(m, p, 16, 1).part_si[0];
}

EMULATED __m256 emulated_mm256_maskz_loadu_ps(__mmask8 m, const void *p)
{
    return emulated_maskz_load(m, p, 8, 4).half_ps[0];
}

EMULATED void emulated_mm512_mask_storeu_epi32(void *p, __mmask16 m, __m512i a) { emulated_mask_store(p, m, &a, 16, 4); }
EMULATED void emulated_mm512_mask_storeu_ps(void *p, __mmask16 m, __m512 a) { emulated_mask_store(p, m, &a, 16, 4); }
EMULATED void emulated_mm_mask_storeu_epi8(void *p, __mmask16 m, __m128i a) { emulated_mask_store(p, m, &a, 16, 1); }

#undef HALVES_2
#undef HALVES_3
#undef LANES
#undef MASK
#endif
