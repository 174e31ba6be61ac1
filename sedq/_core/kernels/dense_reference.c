/* Portable float operators between the quantised ones: quantisation and the dot interaction. */
#include "context.h"
#include "fault_hook.h"

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

/* In the opposite order, and rounded by adding 1.5 * 2^23, which leaves the integer nearest to a float of magnitude below 2^22,
 * halves to even, in the low bits of the sum. Negative sums and those that are too large are, as integers, beyond the bounds. */
static int same_codes(const float *x, int64_t n, float inverse_scale, int32_t zp, const uint8_t *codes, uint32_t *sum)
{
    const float rounder = 0x1.8p23f;
    const int32_t bits = 0x4b400000;
    int differs = 0, nan = 0;
    *sum = 0;
    for (int64_t i = n - 1; i >= 0; i--) {
        const float rounded = fmaf(x[i], inverse_scale, 0) + rounder;
        int32_t q;
        memcpy(&q, &rounded, sizeof q);
        q = q < bits - zp ? bits - zp : q > bits + 255 - zp ? bits + 255 - zp : q;
        uint32_t code = (uint32_t)(q - (bits - zp));
        if (rounded != rounded) {
            nan = 2;
            code = 0;
        }
        SEDQ_FAULT_CODES_AGAIN(&code, i + 1, 1, n);
        *sum += code;
        differs |= code != codes[i];
    }
    return differs | nan;
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

static void dots(const float *t, int64_t features, int64_t dim, int again, float *out)
{
    for (int64_t i = 1; i < features; i++)
        for (int64_t j = 0; j < i; j++)
            *out++ = again ? dot(t + j * dim, t + i * dim, dim) : dot(t + i * dim, t + j * dim, dim);
}

void SEDQ_INIT(dense_reference)(sedq_context *c)
{
    c->quantize = quantize;
    c->same_codes = same_codes;
    c->dots = dots;
}
