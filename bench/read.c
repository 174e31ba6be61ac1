/* Reads memory once, for bench/scrub.py: four independent sums, so that memory alone is waited for. */
#include <stdint.h>

uint64_t sedq_bench_read(const uint64_t *p, int64_t n)
{
    uint64_t sum[16] = {0};
    for (int64_t i = 0; i + 16 <= n; i += 16)
        for (int j = 0; j < 16; j++)
            sum[j] += p[i + j];
    for (int j = 1; j < 16; j++)
        sum[0] += sum[j];
    return sum[0];
}
