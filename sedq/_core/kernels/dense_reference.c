/* Portable float operators between the quantised ones: quantisation and the dot interaction. */
#include "context.h"

#include <math.h>

static int quantize(const float *x, int64_t n, float inverse_scale, int32_t zp, uint8_t *out)
{
    const float low = (float)-zp, high = (float)(255 - zp);
    int nan = 0;
    for (int64_t i = 0; i < n; i++) {
        float v = x[i] * inverse_scale;
        nan |= v != v;
        v = v > low ? v : low; /* false for NaN, which becomes a number here */
        v = v < high ? v : high;
        out[i] = (uint8_t)((int32_t)rintf(v) + zp);
    }
    return nan;
}

/* 16 lanes, then the tree that adds lane l + 8, + 4, + 2, + 1 */
static float dot(const float *a, const float *b, int64_t n)
{
    float lane[16] = {0};
    for (int64_t i = 0; i < n; i++)
        lane[i % 16] = fmaf(a[i], b[i], lane[i % 16]);
    for (int half = 8; half; half /= 2)
        for (int l = 0; l < half; l++)
            lane[l] += lane[l + half];
    return lane[0];
}

static void dots(const float *t, int64_t features, int64_t dim, float *out)
{
    for (int64_t i = 1; i < features; i++)
        for (int64_t j = 0; j < i; j++)
            *out++ = dot(t + i * dim, t + j * dim, dim);
}

void SEDQ_INIT(dense_reference)(sedq_context *c)
{
    c->quantize = quantize;
    c->dots = dots;
}
