/* Reads memory once, for bench/scrub.py: independent sums, so that memory alone is waited for. What lies `ahead` bytes
 * further on is asked for as well, unless that is 0: the hardware's own prefetching ends at each page. */
#include <stdint.h>

uint64_t sedq_bench_read(const uint64_t *p, int64_t n, int64_t ahead)
{
    uint64_t sum[16] = {0};
    for (int64_t i = 0; i + 16 <= n; i += 16) {
        if (ahead) {
            __builtin_prefetch((const void *)((uintptr_t)(p + i) + (uintptr_t)ahead));
            __builtin_prefetch((const void *)((uintptr_t)(p + i + 8) + (uintptr_t)ahead));
        }
        for (int j = 0; j < 16; j++)
            sum[j] += p[i + j];
    }
    for (int j = 1; j < 16; j++)
        sum[0] += sum[j];
    return sum[0];
}
