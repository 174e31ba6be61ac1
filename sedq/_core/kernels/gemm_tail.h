/* The last k % 4 products of a tile, for kernels whose loop takes whole groups only. */
#ifndef SEDQ_GEMM_TAIL_H
#define SEDQ_GEMM_TAIL_H

#include "context.h"

/* Add the products from `done` on to a stored tile. Only bytes of A that exist are read. */
static inline void sedq_add_tail(int rows, int width, const uint8_t *a, int64_t lda, const int8_t *b, int64_t done,
                                 int64_t k, int32_t *out)
{
    b += done * width;
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < width; j++) {
            uint32_t sum = (uint32_t)out[r * SEDQ_NR + j];
            for (int64_t i = done; i < k; i++)
                sum += (uint32_t)(a[r * lda + i] * b[j * SEDQ_KR + i - done]);
            out[r * SEDQ_NR + j] = (int32_t)sum;
        }
}

#endif
