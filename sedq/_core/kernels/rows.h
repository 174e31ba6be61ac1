/* Parts of a stored row, read portably; see sedq_table. */
#ifndef SEDQ_ROWS_H
#define SEDQ_ROWS_H

#include "context.h"

#include <math.h>

static inline int64_t sedq_index(const void *indices, int index_bytes, int64_t i)
{
    return index_bytes == 4 ? ((const int32_t *)indices)[i] : ((const int64_t *)indices)[i];
}

static inline uint32_t sedq_word(const sedq_table *t, int w, int64_t row)
{
    uint32_t u;
    memcpy(&u, t->word[w] + row * t->word_stride[w], sizeof u);
    return u;
}

static inline uint64_t sedq_stored_digest(const sedq_table *t, int64_t row)
{
    uint64_t u;
    memcpy(&u, t->digests + row * t->digest_stride, sizeof u);
    return u;
}

static inline const uint8_t *sedq_codes(const sedq_table *t, int64_t row)
{
    return t->rows + row * t->stride + t->codes_at;
}

static inline float sedq_float(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* float16 to float32, exactly */
static inline float sedq_half(uint32_t h)
{
    const uint32_t sign = (h & 0x8000) << 16, magnitude = h & 0x7fff;
    if (magnitude < 0x400) /* denormal: a multiple of 2^-24 */
        return copysignf((float)magnitude * 0x1p-24f, sedq_float(sign));
    if (magnitude >= 0x7c00)
        return sedq_float(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
    return sedq_float(sign | ((magnitude << 13) + (112u << 23)));
}

/* Code j of a row, or its value for bits 16 and 32. */
static inline float sedq_code(const sedq_table *t, const uint8_t *codes, int64_t j)
{
    uint16_t h;
    float x;
    switch (t->bits) {
    case 8:
        return codes[j];
    case 4:
        return (float)(codes[j / 2] >> 4 * (j % 2) & 15);
    case 2:
        return (float)(codes[j / 4] >> 2 * (j % 4) & 3);
    case 16:
        memcpy(&h, codes + 2 * j, sizeof h);
        return sedq_half(h);
    default:
        memcpy(&x, codes + 4 * j, sizeof x);
        return x;
    }
}

/* What stands beside the codes, as the pooling needs it. For bits 16 and 32: scale 1, bias 0. */
typedef struct {
    float scale, bias;
} sedq_params;

static inline sedq_params sedq_row_params(const sedq_table *t, int64_t row)
{
    const uint32_t word = sedq_word(t, 0, row);
    if (t->bits > 8)
        return (sedq_params){1, 0};
    if (t->half)
        return (sedq_params){sedq_half(word & 0xffff), sedq_half(word >> 16)};
    return (sedq_params){sedq_float(word), sedq_float(sedq_word(t, 1, row))};
}

/* Digest of a row from what is stored but the digest. It is never 0, so that a row whose memory was zeroed is seen. */
static inline uint64_t sedq_row_digest(const sedq_table *t, int64_t row)
{
    const uint8_t *codes = sedq_codes(t, row);
    uint64_t bytes = 0;
    for (int64_t j = 0; j < t->code_bytes; j++)
        bytes += codes[j];
    return (bytes << 40) + sedq_word(t, 0, row) + sedq_word(t, 1, row) + (uint64_t)row + 1;
}

/* Whether a float32 may be taken for zero, or become it, where denormals are: smaller than 2^-126, but not 0. Said without
 * floating point, to which it may be zero already. */
static inline int sedq_denormal(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return (u & 0x7f800000) == 0 && (u & 0x7fffff) != 0;
}

/* What a value that a thread may take for zero adds to the magnitude of its row: times the least factor of the rounding
 * bound, 6 * 2^-24, more than the 2^-126 that are lost. */
#define SEDQ_DENORMAL_SHARE 0x1p-104

/* The words that sum up a row, as they must be; words that are scale and bias are left as they are. Returns 0 if a scale,
 * a bias or a value, or a sum of values, is not finite in float32. */
static inline int sedq_derive_words(const sedq_table *t, int64_t row, uint32_t *words)
{
    const uint8_t *codes = sedq_codes(t, row);
    const sedq_params p = sedq_row_params(t, row);
    double sum = 0, magnitude = 0;
    float rounded[2];
    words[0] = sedq_word(t, 0, row);
    words[1] = sedq_word(t, 1, row);
    if (t->bits == 8)
        return isfinite(p.scale) && isfinite(p.bias);
    for (int64_t j = 0; j < t->dim; j++) {
        const float x = sedq_code(t, codes, j);
        sum += (double)x;
        magnitude += sedq_denormal(x) ? SEDQ_DENORMAL_SHARE : fabs((double)x);
    }
    if (t->bits < 8) {
        words[1] = (uint32_t)sum;
        return isfinite(p.scale) && isfinite(p.bias);
    }
    if (sum != 0 && fabs(sum) < 0x1p-126)
        magnitude += SEDQ_DENORMAL_SHARE;
    rounded[0] = (float)sum;
    rounded[1] = nextafterf((float)magnitude, INFINITY);
    memcpy(words, rounded, sizeof rounded);
    return isfinite(rounded[0]) && isfinite(rounded[1]);
}

#endif
