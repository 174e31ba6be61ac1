/* Wrappers that let a kernel do its work and then strike what it read or left behind. Hooked build alone. */
#include "fault_sites.h"
#include "fault_hook.h"

SEDQ_THREAD_LOCAL sedq_fault_plan sedq_fault_plans[SEDQ_FAULT_SITES];
/* The kernels that are wrapped: those of the context last wrapped in this thread, or else anywhere. */
static SEDQ_THREAD_LOCAL sedq_context of_thread;
static sedq_context last;

static const sedq_context *sound(void)
{
    return of_thread.name ? &of_thread : &last;
}

/* Where a tile or a bag is stored, as a fault in an address register left it. */
static void *astray(void *out)
{
    sedq_fault_plan *plan = &sedq_fault_plans[SEDQ_FAULT_ADDRESS_SITE];
    if (!sedq_fault_due(plan))
        return out;
    plan->changed += plan->add != 0;
    return (char *)out + (int32_t)plan->add;
}

/* The row sums that the epilogue is given, in a copy that a fault may have struck. */
static const uint32_t *given(const uint32_t *row_sums, int rows, uint32_t *copy)
{
    memcpy(copy, row_sums, (size_t)rows * sizeof *copy);
    sedq_strike(SEDQ_FAULT_GIVEN_SITE, copy, 1, rows, rows, 4);
    return copy;
}

static void store_i32(int rows, int cols, const int32_t *tile, const uint32_t *row_sums, const sedq_epilogue *e,
                      void *out, int64_t ldo, int check, sedq_tile_sums *sums)
{
    uint32_t copy[SEDQ_MR_MAX];
    sound()->store_i32(rows, cols, tile, given(row_sums, rows, copy), e, astray(out), ldo, check, sums);
    sedq_strike(SEDQ_FAULT_STORE_SITE, out, rows, cols, ldo, 4);
}

static void store_u8(int rows, int cols, const int32_t *tile, const uint32_t *row_sums, const sedq_epilogue *e,
                     void *out, int64_t ldo, int check, sedq_tile_sums *sums)
{
    uint32_t copy[SEDQ_MR_MAX];
    sound()->store_u8(rows, cols, tile, given(row_sums, rows, copy), e, astray(out), ldo, check, sums);
    sedq_strike(SEDQ_FAULT_STORE_SITE, out, rows, cols, ldo, 1);
}

static void store_f32(int rows, int cols, const int32_t *tile, const uint32_t *row_sums, const sedq_epilogue *e,
                      void *out, int64_t ldo, int check, sedq_tile_sums *sums)
{
    uint32_t copy[SEDQ_MR_MAX];
    sound()->store_f32(rows, cols, tile, given(row_sums, rows, copy), e, astray(out), ldo, check, sums);
    sedq_strike(SEDQ_FAULT_STORE_SITE, out, rows, cols, ldo, 4);
}

static void sum_rows(int64_t rows, const uint8_t *a, int64_t lda, int64_t k, const int8_t *digit, int digits,
                     int64_t kpad, uint32_t *sum, uint32_t *check)
{
    sound()->rows(rows, a, lda, k, digit, digits, kpad, sum, check);
    if (digits) /* else there are no checksums */
        sedq_strike(SEDQ_FAULT_CHECKS_SITE, check, 1, rows, rows, 4);
    if (sum)
        sedq_strike(SEDQ_FAULT_ROWSUM_SITE, sum, 1, rows, rows, 4);
}

static void bag(const sedq_table *t, const void *indices, int index_bytes, const float *weights, int64_t begin,
                int64_t end, int64_t total, float divisor, float *out, int check, sedq_bag_sums *sums)
{
    int32_t off[4] = {0, 0, 0, 0};
    sedq_strike(SEDQ_FAULT_REQUEST_SITE, off, 1, 4, 4, 4);
    sound()->bag[t->format](t, (const char *)indices + off[2] * index_bytes, index_bytes,
                            weights ? weights + off[3] : weights, begin + off[0], end + off[1], total, divisor,
                            astray(out), check, sums);
    sedq_strike(SEDQ_FAULT_POOLED_SITE, out, 1, t->dim, t->dim, 4);
    if (check) /* else there are none */
        sedq_strike(SEDQ_FAULT_SUMS_SITE, &sums->codes, 1, 2, 2, 8);
}

static int leaves_out(void)
{
    sedq_fault_plan *plan = &sedq_fault_plans[SEDQ_FAULT_CHUNK_SITE];
    const int due = sedq_fault_due(plan);
    plan->changed += due;
    return due;
}

static uint32_t sum_words(const void *p, int64_t rows, int64_t n, int64_t ld)
{
    sedq_strike(SEDQ_FAULT_READ_SITE, (void *)p, rows, n, ld, 4);
    return sound()->sum_words(p, rows, n, ld);
}

static int64_t range(const void *indices, int index_bytes, int64_t n, int64_t rows)
{
    const int64_t bad = sound()->range(indices, index_bytes, n, rows);
    sedq_strike(SEDQ_FAULT_INDEX_SITE, (void *)indices, 1, n, n, index_bytes);
    return bad;
}

static int quantize(const float *x, int64_t n, float inverse_scale, int32_t zp, uint8_t *out)
{
    const int nan = sound()->quantize(x, n, inverse_scale, zp, out);
    sedq_strike(SEDQ_FAULT_CODES_SITE, out, 1, n, n, 1);
    return nan;
}

/* The second computation is no visit. A fault that is stuck strikes the same lanes in it, where other pairs are. */
static void dots(const float *t, int64_t features, int64_t dim, int again, float *out)
{
    const int64_t n = features * (features - 1) / 2;
    sound()->dots(t, features, dim, again, out);
    if (again)
        sedq_strike_again(SEDQ_FAULT_DOTS_SITE, out, 1, n, n, 4);
    else
        sedq_strike(SEDQ_FAULT_DOTS_SITE, out, 1, n, 0, 4);
}

void sedq_wrap_fault_sites(sedq_context *c)
{
    of_thread = last = *c;
    c->store_i32 = store_i32;
    c->store_u8 = store_u8;
    c->store_f32 = store_f32;
    c->rows = sum_rows;
    for (int format = 0; format < SEDQ_FORMATS; format++)
        c->bag[format] = bag;
    c->leaves_out = leaves_out;
    c->sum_words = sum_words;
    c->range = range;
    c->quantize = quantize;
    c->dots = dots;
}
