/* Portable int8 matrix product: complete, plain, and the path that recomputes what a faster one got wrong. */
#include "context.h"
#include "fault_hook.h"

#include <math.h>
#include <string.h>

/* Sums wrap modulo 2^32, so they are taken in unsigned arithmetic. */
static void tile(int rows, int width, const uint8_t *a, int64_t lda, const int8_t *b, int64_t k, int32_t *out)
{
    for (int r = 0; r < rows; r++, a += lda) {
        uint32_t sum[SEDQ_NR] = {0};
        const int8_t *group = b;
        for (int64_t i = 0; i < k; i += SEDQ_KR, group += width * SEDQ_KR) {
            int32_t v[SEDQ_KR] = {0};
            for (int64_t t = 0; t < SEDQ_KR && i + t < k; t++)
                v[t] = a[i + t];
            for (int j = 0; j < width; j++) { /* whole groups, which compilers turn into vectors */
                const int8_t *c = group + j * SEDQ_KR;
                sum[j] += (uint32_t)(v[0] * c[0] + v[1] * c[1] + v[2] * c[2] + v[3] * c[3]);
            }
        }
        memcpy(out + r * SEDQ_NR, sum, (size_t)width * sizeof *sum);
    }
    SEDQ_FAULT_TILE(out, rows, width);
}

static void sum_rows(int64_t rows, const uint8_t *a, int64_t lda, int64_t k, const int8_t *digit, int digits,
                     int64_t kpad, uint32_t *sum, uint32_t *check)
{
    for (int64_t r = 0; r < rows; r++, a += lda) {
        uint32_t s = 0, total = 0;
        for (int64_t i = 0; i < k; i++)
            s += a[i];
        for (int p = digits - 1; p >= 0; p--) {
            uint32_t dot = 0;
            for (int64_t i = 0; i < k; i++)
                dot += (uint32_t)(a[i] * digit[p * kpad + i]);
            total = total * 256u + dot;
        }
        if (sum)
            sum[r] = s;
        check[r] = total;
    }
}

static void reduce(int64_t rows, const uint32_t (*lanes)[16], uint32_t *out)
{
    for (int64_t r = 0; r < rows; r++) {
        out[r] = 0;
        for (int l = 0; l < 16; l++)
            out[r] += lanes[r][l];
    }
}

static void wide_sum(int rows, int cols, const int32_t *acc, int64_t *sum)
{
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < cols; j++)
            sum[r] += acc[r * SEDQ_NR + j];
}

static uint32_t bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

/* accumulator minus both zero points' terms, modulo 2^32 */
static int32_t corrected(const sedq_epilogue *e, int j, int32_t acc, uint32_t row_sum)
{
    uint32_t v = (uint32_t)acc - (uint32_t)e->col_term[j];
    if (e->w_zp)
        v -= (uint32_t)e->w_zp[j] * row_sum;
    return (int32_t)v;
}

/* A float as an integer, modulo 2^32; what a struck bound makes too large for one becomes -2^31, as vector instructions have it. */
static uint32_t whole(float v)
{
    return v >= -0x1p31f && v < 0x1p31f ? (uint32_t)(int32_t)v : 0x80000000u;
}

static int32_t requantized(const sedq_epilogue *e, int j, int32_t raw)
{
    float v = ((float)raw + e->bias[j]) * e->mult[j];
    v = v < e->low ? e->low : v;
    v = v > e->high ? e->high : v;
    return (int32_t)(whole(rintf(v)) + (uint32_t)e->y_zp);
}

/* The same by other instructions: added to a float of magnitude below 2^22, 1.5 * 2^23 leaves the integer nearest to it, halves to
 * even, in the low bits. Negative sums and those that are too large are, as integers, beyond the bounds. */
static int32_t requantized_again(const sedq_epilogue *e, int j, int32_t raw)
{
    const float rounder = 0x1.8p23f, sum = ((float)raw + e->bias[j]) * e->mult[j] + rounder;
    const int32_t low = (int32_t)(bits(rounder) + whole(e->low)), high = (int32_t)(bits(rounder) + whole(e->high));
    int32_t v = (int32_t)bits(sum);
    v = v < low ? low : v > high ? high : v;
    return (int32_t)((uint32_t)v - (bits(rounder) - (uint32_t)e->y_zp));
}

static float real(const sedq_epilogue *e, int j, int32_t raw)
{
    const float v = fmaf((float)raw, e->mult[j], e->bias[j]);
    return v > e->low ? v : e->low;
}

enum { OUT_I32, OUT_U8, OUT_F32 };

static uint32_t store_one(int kind, const sedq_epilogue *e, int j, int32_t acc, uint32_t row_sum, void *out,
                          int64_t at)
{
    const int32_t raw = corrected(e, j, acc, row_sum);
    uint32_t y = kind == OUT_I32 ? (uint32_t)raw : kind == OUT_U8 ? (uint32_t)requantized(e, j, raw) : bits(real(e, j, raw));
    SEDQ_FAULT_EPILOGUE(&y, 1);
    if (kind == OUT_U8)
        ((uint8_t *)out)[at] = (uint8_t)y;
    else
        memcpy((uint32_t *)out + at, &y, sizeof y);
    return y;
}

static uint32_t recomputed(int kind, const sedq_epilogue *e, int j, const volatile int32_t *acc, uint32_t row_sum)
{
    const int32_t raw = corrected(e, j, *acc, row_sum); /* volatile: loaded and computed again */
    if (kind == OUT_I32)
        return (uint32_t)raw;
    if (kind == OUT_U8)
        return (uint32_t)requantized_again(e, j, raw);
    return bits(real(e, j, raw));
}

static uint64_t parameters(int kind, const sedq_epilogue *e, int j)
{
    uint64_t sum = (uint32_t)e->col_term[j];
    if (e->w_zp)
        sum += (uint32_t)e->w_zp[j];
    if (kind != OUT_I32)
        sum += (uint64_t)bits(e->bias[j]) + bits(e->mult[j]);
    return sum;
}

static void store(int kind, int rows, int cols, const int32_t *acc, const uint32_t *row_sums, const sedq_epilogue *e,
                  void *out, int64_t ldo, int check, sedq_tile_sums *sums)
{
    const sedq_epilogue *anew = e, used = *e; /* what the arithmetic has is what is summed */
    e = &used;
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < cols; j++) {
            const int32_t *v = acc + r * SEDQ_NR + j;
            const uint32_t row_sum = row_sums[r], y = store_one(kind, e, j, *v, row_sum, out, r * ldo + j);
            if (check == SEDQ_CHECK_OFF)
                continue;
            sums->acc[r][j % 16] += (uint32_t)*v;
            sums->out[r][j % 16] += y;
            if (e->w_zp)
                sums->row_sums_differ |= row_sum ^ sums->row_sums[r];
            if (check == SEDQ_CHECK_FULL)
                sums->twice |= y ^ recomputed(kind, anew, j, v, row_sums[r]);
        }
    if (check) {
        for (int j = 0; j < cols; j++)
            sums->params[j % 8] += parameters(kind, e, j);
        sums->scalars += 16 * (uint64_t)sedq_scalar_digest(e->low, e->high, e->y_zp);
    }
}

static void store_i32(int rows, int cols, const int32_t *acc, const uint32_t *row_sums, const sedq_epilogue *e,
                      void *out, int64_t ldo, int check, sedq_tile_sums *sums)
{
    store(OUT_I32, rows, cols, acc, row_sums, e, out, ldo, check, sums);
}

static void store_u8(int rows, int cols, const int32_t *acc, const uint32_t *row_sums, const sedq_epilogue *e,
                     void *out, int64_t ldo, int check, sedq_tile_sums *sums)
{
    store(OUT_U8, rows, cols, acc, row_sums, e, out, ldo, check, sums);
}

static void store_f32(int rows, int cols, const int32_t *acc, const uint32_t *row_sums, const sedq_epilogue *e,
                      void *out, int64_t ldo, int check, sedq_tile_sums *sums)
{
    store(OUT_F32, rows, cols, acc, row_sums, e, out, ldo, check, sums);
}

static uint32_t sum_u8(const void *p, int64_t rows, int64_t n, int64_t ld)
{
    uint32_t sum = 0;
    for (const uint8_t *x = p; rows > 0; rows--, x += ld)
        for (int64_t i = 0; i < n; i++)
            sum += x[i];
    return sum;
}

static uint32_t sum_words(const void *p, int64_t rows, int64_t n, int64_t ld)
{
    uint32_t sum = 0;
    for (const uint32_t *x = p; rows > 0; rows--, x += ld)
        for (int64_t i = 0; i < n; i++)
            sum += x[i];
    return sum;
}

void SEDQ_INIT(gemm_reference)(sedq_context *c)
{
    c->name = "reference";
    c->mr = 4;
    c->mc = 96;
    c->nc_bytes = 256 * 1024;
    c->tile = tile;
    c->rows = sum_rows;
    c->reduce = reduce;
    c->wide_sum = wide_sum;
    c->store_i32 = store_i32;
    c->store_u8 = store_u8;
    c->store_f32 = store_f32;
    c->sum_u8 = sum_u8;
    c->sum_words = sum_words;
}
