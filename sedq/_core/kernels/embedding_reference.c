/* Portable EmbeddingBag over 8-bit rows: complete, plain, and the path that recomputes what a faster one got wrong. */
#include "context.h"
#include "fault_hook.h"

#include <math.h>
#include <string.h>

static int64_t index_at(const void *indices, int index_bytes, int64_t i)
{
    if (index_bytes == 4)
        return ((const int32_t *)indices)[i];
    return ((const int64_t *)indices)[i];
}

/* what follows the codes of a row */
typedef struct {
    float scale, bias;
    uint64_t digest;
} row_tail;

static uint32_t bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static void check_row(const sedq_table *t, const uint8_t *row, const row_tail *tail, int64_t index, double w,
                      sedq_bag_sums *sums)
{
    const uint64_t stored = tail->digest >> 40;
    const double code_sum = (double)stored, dim = (double)t->dim;
    for (int64_t j = 0; j < t->codes; j++)
        sums->codes += row[j];
    sums->codes -= stored;
    sums->params += (uint64_t)bits(tail->scale) + bits(tail->bias) + (uint64_t)index - (tail->digest - (stored << 40));
    sums->reference += w * (tail->scale * code_sum + dim * tail->bias);
    sums->magnitude += fabs(w) * (fabs((double)tail->scale) * code_sum + dim * fabs((double)tail->bias));
}

static void bag(const sedq_table *t, const void *indices, int index_bytes, const float *weights, int64_t begin,
                int64_t end, int64_t total, float divisor, float *out, int check, sedq_bag_sums *sums)
{
    const volatile char *again = indices; /* the digest sees the index as loaded a second time */
    float bias = 0;
    double pooled = 0;
    (void)total;
    memset(sums, 0, sizeof *sums);
    for (int64_t j = 0; j < t->dim; j++)
        out[j] = 0;
    for (int64_t i = begin; i < end; i++) {
        const uint8_t *row = t->rows + index_at(indices, index_bytes, i) * t->stride;
        const float w = weights ? weights[i] : 1.0f;
        row_tail tail;
        memcpy(&tail, row + t->codes, sizeof tail);
        for (int64_t j = 0; j < t->dim; j++)
            out[j] = fmaf(w * tail.scale, (float)row[j], out[j]);
        bias = fmaf(w, tail.bias, bias);
        if (check)
            check_row(t, row, &tail, index_at((const void *)again, index_bytes, i), w, sums);
    }
    SEDQ_FAULT_BAG(out, t->dim);
    for (int64_t j = 0; j < t->dim; j++) {
        const float y = (out[j] + bias) / divisor;
        pooled += y;
        sums->out_bits += bits(y);
        out[j] = y;
    }
    sums->reference /= divisor;
    sums->magnitude /= divisor;
    sums->residual = pooled - sums->reference;
}

static int64_t range(const void *indices, int index_bytes, int64_t n, int64_t rows)
{
    for (int64_t i = 0; i < n; i++)
        if ((uint64_t)index_at(indices, index_bytes, i) >= (uint64_t)rows)
            return i;
    return -1;
}

void SEDQ_INIT(embedding_reference)(sedq_context *c)
{
    c->bag = bag;
    c->range = range;
}
