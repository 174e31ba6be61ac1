/* What follows the product on AVX-512: sums of accumulators, requantisation or conversion, sums of what is stored, stores.
 *
 * A tile of accumulators comes from an L1 scratch and goes row by row, in strips of 16 columns, the last masked. */
#include "barrier.h"
#include "context.h"
#include "fault_hook.h"
#include "lanes_avx512.h"

static void reduce(int64_t rows, const uint32_t (*lanes)[16], uint32_t *out)
{
    __m512i x[16];
    if (rows == 1) {
        *out = sum_words32(_mm512_loadu_si512(lanes));
        return;
    }
    for (int64_t r = 0; r < rows; r += 16) {
        const int64_t n = rows - r < 16 ? rows - r : 16;
        for (int64_t i = 0; i < n; i++)
            x[i] = _mm512_loadu_si512(lanes[r + i]);
        store_sums(x, n, out + r);
    }
}

static void wide_sum(int rows, int cols, const int32_t *tile, int64_t *sum)
{
    for (int r = 0; r < rows; r++, tile += SEDQ_NR) {
        __m512i wide = _mm512_setzero_si512();
        for (int j = 0; j < cols; j += 8) {
            const __mmask8 m = cols - j >= 8 ? 0xff : (__mmask8)((1u << (cols - j)) - 1);
            const __m256i acc = _mm256_maskz_loadu_epi32(m, tile + j);
            wide = _mm512_add_epi64(wide, _mm512_cvtepi32_epi64(acc));
        }
        sum[r] += _mm512_reduce_add_epi64(wide);
    }
}

enum { OUT_I32, OUT_U8, OUT_F32 };

/* parameters of 16 columns */
typedef struct {
    __m512i term, w_zp;
    __m512 bias, mult;
} columns;

/* parameters that all columns share, in each lane */
typedef struct {
    __m512i low, high, y_zp; /* bits of low and high */
} shared;

/* the same value, of which the optimiser knows nothing */
INLINE __m512i opaque(__m512i x)
{
    SEDQ_HIDE(x);
    return x;
}

/* digest plus the 32-bit words of x, in 64 bits */
INLINE __m512i add_words(__m512i digest, __m512i x)
{
    digest = _mm512_add_epi64(digest, _mm512_and_si512(x, _mm512_set1_epi64(0xffffffff)));
    return _mm512_add_epi64(digest, _mm512_srli_epi64(x, 32));
}

INLINE columns load_columns(const int kind, const sedq_epilogue *e, int j)
{
    columns p;
    p.term = _mm512_loadu_si512(e->col_term + j);
    p.w_zp = e->w_zp ? _mm512_loadu_si512(e->w_zp + j) : _mm512_setzero_si512();
    p.bias = p.mult = _mm512_setzero_ps();
    if (kind != OUT_I32) {
        p.bias = _mm512_loadu_ps(e->bias + j);
        p.mult = _mm512_loadu_ps(e->mult + j);
    }
    return p;
}

INLINE __m512i add_columns(const int kind, const sedq_epilogue *e, const columns *p, __m512i digest)
{
    digest = add_words(digest, p->term);
    if (e->w_zp)
        digest = add_words(digest, p->w_zp);
    if (kind != OUT_I32)
        digest = add_words(add_words(digest, _mm512_castps_si512(p->bias)), _mm512_castps_si512(p->mult));
    return digest;
}

/* Hidden from the optimiser, which would load them again for each use: the digest must see what the arithmetic had. */
INLINE shared load_shared(const sedq_epilogue *e)
{
    const shared s = {
        opaque(_mm512_castps_si512(_mm512_set1_ps(e->low))),
        opaque(_mm512_castps_si512(_mm512_set1_ps(e->high))),
        opaque(_mm512_set1_epi32(e->y_zp)),
    };
    return s;
}

/* the sum over 16 lanes of sedq_scalar_digest */
INLINE uint64_t digest_shared(const shared *s)
{
    __m512i x = _mm512_add_epi32(s->low, _mm512_add_epi32(s->high, _mm512_slli_epi32(s->high, 1)));
    x = _mm512_add_epi32(x, _mm512_add_epi32(s->y_zp, _mm512_slli_epi32(s->y_zp, 2)));
    return (uint64_t)_mm512_reduce_add_epi64(add_words(_mm512_setzero_si512(), x));
}

/* 16 outputs as 32-bit words */
INLINE __m512i finish(const int kind, const sedq_epilogue *e, const columns *p, const shared *s, __m512i acc,
                      uint32_t row_sum)
{
    __m512i raw = _mm512_sub_epi32(acc, p->term);
    if (e->w_zp)
        raw = _mm512_sub_epi32(raw, _mm512_mullo_epi32(p->w_zp, _mm512_set1_epi32((int32_t)row_sum)));
    if (kind == OUT_I32)
        return raw;
    const __m512 value = _mm512_cvtepi32_ps(raw);
    if (kind == OUT_F32)
        return _mm512_castps_si512(
            _mm512_max_ps(_mm512_fmadd_ps(value, p->mult, p->bias), _mm512_castsi512_ps(s->low)));
    __m512 y = _mm512_mul_ps(_mm512_add_ps(value, p->bias), p->mult);
    y = _mm512_max_ps(y, _mm512_castsi512_ps(s->low));
    y = _mm512_min_ps(y, _mm512_castsi512_ps(s->high));
    return _mm512_add_epi32(_mm512_cvtps_epi32(y), s->y_zp);
}

/* 16 outputs, as a fault in the arithmetic of requantisation left them */
INLINE __m512i after_fault(__m512i y)
{
#ifdef SEDQ_FAULT_HOOK
    _Alignas(64) uint32_t words[16];
    _mm512_store_si512(words, y);
    SEDQ_FAULT_EPILOGUE(words, 16);
    y = _mm512_load_si512(words);
#endif
    return y;
}

/* The same for the second computation, in whose lanes other columns are. */
INLINE __m512i after_fault_again(__m512i y)
{
#ifdef SEDQ_FAULT_HOOK
    _Alignas(64) uint32_t words[16];
    _mm512_store_si512(words, y);
    SEDQ_FAULT_EPILOGUE_AGAIN(words, 16);
    y = _mm512_load_si512(words);
#endif
    return y;
}

/* the same pointer, to memory of which the optimiser knows nothing */
INLINE const sedq_epilogue *forget(const sedq_epilogue *e)
{
    __asm__ volatile("" : "+r"(e) : : "memory");
    return e;
}

/* the first n > 0 of 16 lanes, made anew each time */
INLINE __mmask16 mask_of(int n)
{
    __asm__ volatile("" : "+r"(n));
    return n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1);
}

INLINE void add_to(uint32_t *lanes, __m512i x)
{
    _mm512_storeu_si512(lanes, _mm512_add_epi32(_mm512_loadu_si512(lanes), x));
}

/* A row sum that stays in one register until compare_row_sum has seen it. */
INLINE uint32_t hold_row_sum(uint32_t row_sum)
{
    __asm__ volatile("" : "+r"(row_sum));
    return row_sum;
}

/* Compare the row sum that outputs of sum y were computed from with the one that another pointer leads to. */
INLINE void compare_row_sum(uint32_t row_sum, __m512i y, sedq_tile_sums *sums, int r)
{
    SEDQ_AFTER(row_sum, y);
    sums->row_sums_differ |= row_sum ^ sums->row_sums[r];
}

/* the halves change places, so that each column goes through another lane */
INLINE __m512i swapped(__m512i x)
{
    return _mm512_castps_si512(_mm512_shuffle_f32x4(_mm512_castsi512_ps(x), _mm512_castsi512_ps(x), 0x4e));
}

/* ---- check full: the second computation, in other lanes and, where there is a choice, by other instructions */

/* 1.5 * 2^23: added to a float of magnitude below 2^22 it leaves the integer nearest to it, halves to even, in the low bits. */
enum { ROUNDER_BITS = 0x4b400000 };

INLINE columns load_columns_again(const int kind, const sedq_epilogue *e, int j)
{
    columns p = load_columns(kind, e, j);
    p.term = opaque(swapped(p.term));
    p.w_zp = opaque(swapped(p.w_zp));
    p.bias = _mm512_castsi512_ps(opaque(swapped(_mm512_castps_si512(p.bias))));
    p.mult = _mm512_castsi512_ps(opaque(swapped(_mm512_castps_si512(p.mult))));
    return p;
}

/* For bytes: bounds of the sum with the rounder, compared as integers, and what to take from it. */
INLINE shared load_shared_again(const int kind, const sedq_epilogue *e)
{
    shared s = load_shared(e);
    if (kind == OUT_U8) {
        const __m512i rounder = _mm512_set1_epi32(ROUNDER_BITS);
        s.low = _mm512_add_epi32(rounder, _mm512_cvtps_epi32(_mm512_castsi512_ps(s.low)));
        s.high = _mm512_add_epi32(rounder, _mm512_cvtps_epi32(_mm512_castsi512_ps(s.high)));
        s.y_zp = _mm512_sub_epi32(rounder, s.y_zp);
    }
    return s;
}

/* 16 outputs, all vectors being swapped. Negative sums and those that are too large are, as integers, beyond the bounds. */
INLINE __m512i finish_again(const int kind, const sedq_epilogue *e, const columns *p, const shared *s, __m512i acc,
                            uint32_t row_sum)
{
    if (kind != OUT_U8)
        return finish(kind, e, p, s, acc, row_sum);
    const __m512 value = _mm512_cvtepi32_ps(finish(OUT_I32, e, p, s, acc, row_sum));
    const __m512 y = _mm512_mul_ps(_mm512_add_ps(value, p->bias), p->mult);
    const __m512 rounder = _mm512_castsi512_ps(_mm512_set1_epi32(ROUNDER_BITS));
    __m512i bits = _mm512_castps_si512(_mm512_add_ps(y, rounder));
    bits = _mm512_min_epi32(_mm512_max_epi32(bits, s->low), s->high);
    return _mm512_sub_epi32(bits, s->y_zp);
}

/* V strips of 16 columns, the last masked: parameters are loaded once for all rows, and a row's sums stay in registers. The digest
 * is taken after the rows, of the registers that they used. */
INLINE void store_rows(const int kind, const int check, const int V, int rows, int cols, const int32_t *tile,
                       const uint32_t *row_sums, const sedq_epilogue *e, void *out, int64_t ldo, sedq_tile_sums *sums)
{
    const __mmask16 last = mask_of(cols - (V - 1) * 16);
    const shared s = load_shared(e);
    columns p[4], q[4]; /* q: for the second computation, loaded anew, as a fault in p would be in both */
    shared t;
    const sedq_epilogue *anew = forget(e);
#pragma GCC unroll 4
    for (int v = 0; v < V; v++)
        p[v] = load_columns(kind, e, v * 16);
    if (check == SEDQ_CHECK_FULL) {
        t = load_shared_again(kind, anew);
#pragma GCC unroll 4
        for (int v = 0; v < V; v++)
            q[v] = load_columns_again(kind, anew, v * 16);
    }
    for (int r = 0; r < rows; r++) {
        __m512i acc_sum = _mm512_setzero_si512(), out_sum = _mm512_setzero_si512();
        const uint32_t row_sum = hold_row_sum(row_sums[r]);
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
            const __mmask16 m = v + 1 < V ? 0xffff : last;
            /* hidden, so that sum and outputs are of one load: else a pointer struck between two would go unseen */
            const __m512i acc = opaque(_mm512_load_si512(tile + r * SEDQ_NR + v * 16));
            const __m512i y = _mm512_maskz_mov_epi32(m, after_fault(finish(kind, e, &p[v], &s, acc, row_sum)));
            const int64_t at = r * ldo + v * 16;
            if (check) {
                acc_sum = _mm512_mask_add_epi32(acc_sum, m, acc_sum, acc);
                out_sum = _mm512_add_epi32(out_sum, y);
            }
            if (check == SEDQ_CHECK_FULL) {
                /* the mask anew: one that holds for all rows would be in both results */
                const __m512i second = finish_again(kind, anew, &q[v], &t, swapped(opaque(acc)), row_sums[r]);
                const __m512i again = swapped(after_fault_again(opaque(second)));
                sums->twice |= _mm512_cmpneq_epi32_mask(_mm512_maskz_mov_epi32(mask_of(cols - v * 16), again), y);
            }
            if (kind == OUT_U8)
                _mm_mask_storeu_epi8((uint8_t *)out + at, m, _mm512_cvtepi32_epi8(y));
            else
                _mm512_mask_storeu_epi32((int32_t *)out + at, m, y);
        }
        if (check) {
            add_to(sums->acc[r], acc_sum);
            add_to(sums->out[r], out_sum);
        }
        if (check && e->w_zp)
            compare_row_sum(row_sum, out_sum, sums, r);
    }
    if (check) {
        __m512i digest = _mm512_loadu_si512(sums->params);
#pragma GCC unroll 4
        for (int v = 0; v < V; v++)
            digest = add_columns(kind, e, &p[v], digest);
        _mm512_storeu_si512(sums->params, digest);
        sums->scalars += digest_shared(&s);
    }
}

INLINE void store_tile(const int kind, const int check, int rows, int cols, const int32_t *tile,
                       const uint32_t *row_sums, const sedq_epilogue *e, void *out, int64_t ldo, sedq_tile_sums *sums)
{
    switch ((cols + 15) / 16) {
    case 1: store_rows(kind, check, 1, rows, cols, tile, row_sums, e, out, ldo, sums); break;
    case 2: store_rows(kind, check, 2, rows, cols, tile, row_sums, e, out, ldo, sums); break;
    case 3: store_rows(kind, check, 3, rows, cols, tile, row_sums, e, out, ldo, sums); break;
    default: store_rows(kind, check, 4, rows, cols, tile, row_sums, e, out, ldo, sums);
    }
}

#define STORE(name, kind)                                                                                              \
    static void name(int rows, int cols, const int32_t *tile, const uint32_t *row_sums, const sedq_epilogue *e,        \
                     void *out, int64_t ldo, int check, sedq_tile_sums *sums)                                          \
    {                                                                                                                  \
        if (check == SEDQ_CHECK_OFF)                                                                                   \
            store_tile(kind, SEDQ_CHECK_OFF, rows, cols, tile, row_sums, e, out, ldo, sums);                           \
        else if (check == SEDQ_CHECK_EXACT)                                                                            \
            store_tile(kind, SEDQ_CHECK_EXACT, rows, cols, tile, row_sums, e, out, ldo, sums);                         \
        else                                                                                                           \
            store_tile(kind, SEDQ_CHECK_FULL, rows, cols, tile, row_sums, e, out, ldo, sums);                          \
    }
STORE(store_i32, OUT_I32)
STORE(store_u8, OUT_U8)
STORE(store_f32, OUT_F32)

static uint32_t sum_u8(const void *p, int64_t rows, int64_t n, int64_t ld)
{
    __m512i sum = _mm512_setzero_si512();
    for (const uint8_t *x = p; rows > 0; rows--, x += ld)
        for (int64_t i = 0; i < n; i += 64) {
            const __mmask64 m = n - i >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << (n - i)) - 1;
            const __m512i v = _mm512_maskz_loadu_epi8(m, x + i);
            sum = _mm512_add_epi64(sum, _mm512_sad_epu8(v, _mm512_setzero_si512()));
        }
    return (uint32_t)_mm512_reduce_add_epi64(sum);
}

static uint32_t sum_words(const void *p, int64_t rows, int64_t n, int64_t ld)
{
    __m512i sum = _mm512_setzero_si512();
    for (const int32_t *x = p; rows > 0; rows--, x += ld)
        for (int64_t i = 0; i < n; i += 16) {
            const __mmask16 m = n - i >= 16 ? 0xffff : (__mmask16)((1u << (n - i)) - 1);
            sum = _mm512_add_epi32(sum, _mm512_maskz_loadu_epi32(m, x + i));
        }
    return sum_words32(sum);
}

void SEDQ_INIT(epilogue_avx512vnni)(sedq_context *c)
{
    c->reduce = reduce;
    c->wide_sum = wide_sum;
    c->store_i32 = store_i32;
    c->store_u8 = store_u8;
    c->store_f32 = store_f32;
    c->sum_u8 = sum_u8;
    c->sum_words = sum_words;
}
