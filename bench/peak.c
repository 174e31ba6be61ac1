/* The peak of the machine's int8 multiply-adds: independent vpdpbusd on registers, nothing else. */
#include <immintrin.h>
#include <stdint.h>

/* n rounds of 24 instructions of 64 multiply-adds each */
int32_t sedq_bench_peak(int64_t n)
{
    __m512i acc[24];
    const __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(5);
#pragma GCC unroll 24
    for (int i = 0; i < 24; i++)
        acc[i] = _mm512_setzero_si512();
    for (int64_t r = 0; r < n; r++) {
#pragma GCC unroll 24
        for (int i = 0; i < 24; i++) {
            acc[i] = _mm512_dpbusd_epi32(acc[i], a, b);
            __asm__ volatile("" : "+v"(acc[i]));
        }
    }
#pragma GCC unroll 24
    for (int i = 1; i < 24; i++)
        acc[0] = _mm512_add_epi32(acc[0], acc[i]);
    return _mm512_reduce_add_epi32(acc[0]);
}
