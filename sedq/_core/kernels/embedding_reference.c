/* Portable EmbeddingBag over every table: complete, plain, and the path that recomputes what a faster one got wrong. */
#include "context.h"
#include "fault_hook.h"
#include "rows.h"

#include <math.h>
#include <string.h>

static uint32_t bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

/* The share of one row in the precomputed sum, and its magnitude. */
static void check_sum(const sedq_table *t, sedq_params p, uint64_t digest, const uint32_t *words, double w,
                      sedq_bag_sums *sums)
{
    if (t->bits > 8) {
        sums->reference += w * sedq_float(words[0]);
        sums->magnitude += fabs(w) * sedq_float(words[1]);
    } else {
        const double code_sum = t->bits == 8 ? (double)(digest >> 40) : (double)words[1], dim = (double)t->dim;
        sums->reference += w * (p.scale * code_sum + dim * p.bias);
        sums->magnitude += fabs(w) * (fabs((double)p.scale) * code_sum + dim * fabs((double)p.bias));
    }
}

/* row is the row that was pooled; index the same number, loaded again */
static void check_row(const sedq_table *t, int64_t row, sedq_params p, int64_t index, float w, sedq_bag_sums *sums)
{
    const uint8_t *codes = sedq_codes(t, row);
    const uint64_t digest = sedq_stored_digest(t, row);
    const uint32_t words[2] = {sedq_word(t, 0, row), sedq_word(t, 1, row)};
    for (int64_t j = 0; j < t->code_bytes; j++)
        sums->codes += codes[j];
    sums->codes -= digest >> 40;
    sums->params += (uint64_t)words[0] + words[1] + (uint64_t)index + 1 - (digest & 0xffffffffff);
    sums->rows += (uint64_t)index + 1;
    check_sum(t, p, digest, words, w, sums);
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
        const int64_t row = sedq_index(indices, index_bytes, i);
        const uint8_t *codes = sedq_codes(t, row);
        const sedq_params p = sedq_row_params(t, row);
        const float w = weights ? weights[i] : 1.0f, factor = w * p.scale;
        for (int64_t j = 0; j < t->dim; j++)
            out[j] = fmaf(factor, sedq_code(t, codes, j), out[j]);
        bias = fmaf(w, p.bias, bias);
        if (check && weights)
            sums->weights += bits(w);
        if (check)
            check_row(t, row, p, sedq_index((const void *)again, index_bytes, i), w, sums);
    }
    SEDQ_FAULT_BAG(out, t->dim);
    for (int64_t j = 0; j < t->dim; j++) {
        const float y = (out[j] + bias) / divisor;
        pooled += y;
        sums->out_bits += bits(y);
        out[j] = y;
    }
    sums->pooled = pooled;
}

static void digests(const sedq_table *t, int64_t first, int64_t n, uint64_t *out)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = sedq_row_digest(t, first + i);
}

static int64_t scan(const sedq_table *t, int64_t first, int64_t n)
{
    for (int64_t row = first; row < first + n; row++)
        if (sedq_row_digest(t, row) != sedq_stored_digest(t, row))
            return row;
    return -1;
}

static int64_t range(const void *indices, int index_bytes, int64_t n, int64_t rows)
{
    for (int64_t i = 0; i < n; i++)
        if ((uint64_t)sedq_index(indices, index_bytes, i) >= (uint64_t)rows)
            return i;
    return -1;
}

void SEDQ_INIT(embedding_reference)(sedq_context *c)
{
    for (int format = 0; format < SEDQ_FORMATS; format++)
        c->bag[format] = bag;
    c->digests = digests;
    c->scan = scan;
    c->range = range;
}
