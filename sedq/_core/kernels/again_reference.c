/* The second accumulation of a bag, portably: 64 columns at a time, each in a place further on, so that what the compiler makes
 * vectors of has other columns in its lanes. */
#include "context.h"
#include "fault_hook.h"
#include "rows.h"

#include <math.h>

enum { BLOCK = 64 };

static void bag_again(const sedq_table *t, const void *indices, int index_bytes, const float *weights, int64_t begin,
                      int64_t end, float divisor, float *out)
{
    for (int64_t first = 0; first < t->dim; first += BLOCK) {
        const int64_t n = t->dim - first < BLOCK ? t->dim - first : BLOCK;
        float sum[BLOCK + 1] = {0}, bias = 0; /* of column first + j at j + 1 */
        for (int64_t i = begin; i < end; i++) {
            const int64_t row = sedq_index(indices, index_bytes, i);
            const uint8_t *codes = sedq_codes(t, row);
            const sedq_params p = sedq_row_params(t, row);
            const float w = weights ? weights[i] : 1.0f, factor = w * p.scale;
            for (int64_t j = 0; j <= n; j++)
                sum[j] = j ? fmaf(factor, sedq_code(t, codes, first + j - 1), sum[j]) : 0;
            bias = fmaf(w, p.bias, bias);
        }
        SEDQ_FAULT_BAG_AGAIN(sum, first, n + 1, t->dim);
        for (int64_t j = 0; j < n; j++)
            out[first + j] = (sum[j + 1] + bias) / divisor;
    }
}

void SEDQ_INIT(again_reference)(sedq_context *c)
{
    c->bag_again = bag_again;
}
