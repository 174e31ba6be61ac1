/* What the loops over a bag's rows are given, and how they are had. */
#ifndef SEDQ_EMBEDDING_LOOPS_AVX2_H
#define SEDQ_EMBEDDING_LOOPS_AVX2_H

#include "embedding_avx2.h"
#include "embedding_sums_avx2.h"

enum { COLUMNS = 64 };

/* what a bag asks for */
typedef struct {
    const sedq_table *t;
    const void *indices;
    const float *weights;
    int64_t begin, end, total;
    int64_t second, lines; /* where a row's second cache line is at the latest, and how many lines it may touch */
    int index_bytes;
} request;

INLINE int64_t index_at(const void *indices, int index_bytes, int64_t i)
{
    if (index_bytes == 4)
        return ((const int32_t *)indices)[i];
    return ((const int64_t *)indices)[i];
}

/* Pools a request's rows for a block of columns from `column` on, bias not yet added; returns the sum of biases. */
typedef float (*accumulate_fn)(const request *, int64_t column, float *acc, lane_sums *);

/* The loop for a block of n columns. */
accumulate_fn sedq_bag_loop_avx2(const sedq_table *, int64_t n, int check);

/* Prefetch the rows that no earlier ones prefetch. */
void sedq_prefetch_first_avx2(const request *);

#endif
