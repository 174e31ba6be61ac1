/* What follows the product on AVX2: sums of accumulators, requantisation or conversion, sums of what is stored, stores.
 *
 * A tile of accumulators comes from an L1 scratch. Whole chunks of 32 columns go row by row, with the columns' parameters as
 * operands from L1; what is left goes by strips of 8 columns, masked; a single column goes with rows in the lanes. */
#include "fault_hook.h"
#include "bytes_avx2.h"
#include "context.h"

static void reduce_lanes(int64_t rows, const uint32_t (*lanes)[16], uint32_t *out)
{
    for (int64_t r = 0; r < rows; r++)
        out[r] = reduce(_mm256_add_epi32(_mm256_loadu_si256((const __m256i *)lanes[r]),
                                         _mm256_loadu_si256((const __m256i *)(lanes[r] + 8))));
}

static void wide_sum(int rows, int cols, const int32_t *tile, int64_t *sum)
{
    for (int r = 0; r < rows; r++, tile += SEDQ_NR) {
        __m256i wide = _mm256_setzero_si256();
        int64_t lane[4];
        int j = 0;
        for (; j + 4 <= cols; j += 4)
            wide = _mm256_add_epi64(wide, _mm256_cvtepi32_epi64(_mm_loadu_si128((const __m128i *)(tile + j))));
        _mm256_storeu_si256((__m256i *)lane, wide);
        sum[r] += lane[0] + lane[1] + lane[2] + lane[3];
        for (; j < cols; j++)
            sum[r] += tile[j];
    }
}

enum { OUT_I32, OUT_U8, OUT_F32 };

typedef struct {
    __m256i term, w_zp;
    __m256 bias, mult;
} columns;

/* parameters that all columns share, in each lane */
typedef struct {
    __m256i low, high, y_zp; /* bits of low and high */
} shared;

/* the same value, of which the optimiser knows nothing */
INLINE __m256i opaque(__m256i x)
{
    __asm__ volatile("" : "+x"(x));
    return x;
}

/* Hidden from the optimiser, which would load them again for each use: the digest must see what the arithmetic had. */
INLINE shared load_shared(const sedq_epilogue *e)
{
    const shared s = {
        opaque(_mm256_castps_si256(_mm256_set1_ps(e->low))),
        opaque(_mm256_castps_si256(_mm256_set1_ps(e->high))),
        opaque(_mm256_set1_epi32(e->y_zp)),
    };
    return s;
}

/* digest plus the 32-bit words of x, in 64 bits */
INLINE __m256i add_words(__m256i digest, __m256i x)
{
    digest = _mm256_add_epi64(digest, _mm256_and_si256(x, _mm256_set1_epi64x(0xffffffff)));
    return _mm256_add_epi64(digest, _mm256_srli_epi64(x, 32));
}

/* the sum over 8 lanes of sedq_scalar_digest */
INLINE uint64_t digest_shared(const shared *s)
{
    uint64_t lane[4];
    __m256i x = _mm256_add_epi32(s->low, _mm256_add_epi32(s->high, _mm256_slli_epi32(s->high, 1)));
    x = _mm256_add_epi32(x, _mm256_add_epi32(s->y_zp, _mm256_slli_epi32(s->y_zp, 2)));
    _mm256_storeu_si256((__m256i *)lane, add_words(_mm256_setzero_si256(), x));
    return lane[0] + lane[1] + lane[2] + lane[3];
}

/* where the parameters of some columns start */
typedef struct {
    const int32_t *term, *w_zp;
    const float *bias, *mult;
} places;

INLINE places places_of(const int kind, const sedq_epilogue *e, int j)
{
    places at = {e->col_term + j, e->w_zp ? e->w_zp + j : NULL, NULL, NULL};
    if (kind != OUT_I32) {
        at.bias = e->bias + j;
        at.mult = e->mult + j;
    }
    return at;
}

INLINE columns load_columns(const int kind, const places *at, int j, __m256i *digest)
{
    columns p;
    p.term = _mm256_loadu_si256((const __m256i *)(at->term + j));
    *digest = add_words(*digest, p.term);
    p.w_zp = _mm256_setzero_si256();
    if (at->w_zp) {
        p.w_zp = _mm256_loadu_si256((const __m256i *)(at->w_zp + j));
        *digest = add_words(*digest, p.w_zp);
    }
    p.bias = p.mult = _mm256_setzero_ps();
    if (kind != OUT_I32) {
        p.bias = _mm256_loadu_ps(at->bias + j);
        p.mult = _mm256_loadu_ps(at->mult + j);
        *digest = add_words(add_words(*digest, _mm256_castps_si256(p.bias)), _mm256_castps_si256(p.mult));
    }
    return p;
}

/* 8 outputs as 32-bit words; zero_points: whether weights have any */
INLINE __m256i finish(const int kind, const columns *p, const shared *s, int zero_points, __m256i acc, uint32_t row_sum)
{
    __m256i raw = _mm256_sub_epi32(acc, p->term);
    if (zero_points)
        raw = _mm256_sub_epi32(raw, _mm256_mullo_epi32(p->w_zp, _mm256_set1_epi32((int32_t)row_sum)));
    if (kind == OUT_I32)
        return raw;
    const __m256 value = _mm256_cvtepi32_ps(raw);
    if (kind == OUT_F32)
        return _mm256_castps_si256(
            _mm256_max_ps(_mm256_fmadd_ps(value, p->mult, p->bias), _mm256_castsi256_ps(s->low)));
    __m256 y = _mm256_mul_ps(_mm256_add_ps(value, p->bias), p->mult);
    y = _mm256_max_ps(y, _mm256_castsi256_ps(s->low));
    y = _mm256_min_ps(y, _mm256_castsi256_ps(s->high));
    return _mm256_add_epi32(_mm256_cvtps_epi32(y), s->y_zp);
}

/* ---- check full: the second computation, in other lanes and, where there is a choice, by other instructions */

/* 1.5 * 2^23: added to a float of magnitude below 2^22 it leaves the integer nearest to it, halves to even, in the low bits. */
enum { ROUNDER_BITS = 0x4b400000 };

/* The halves change places, so that each column goes through another lane. */
INLINE __m256i swapped(__m256i x)
{
    return _mm256_permute2x128_si256(x, x, 1);
}

INLINE __m256i load_swapped(const void *from)
{
    const __m128i *at = from;
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(at + 1)), _mm_loadu_si128(at), 1);
}

INLINE columns load_columns_again(const int kind, const places *at, int j)
{
    columns p = {load_swapped(at->term + j), _mm256_setzero_si256(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    if (at->w_zp)
        p.w_zp = load_swapped(at->w_zp + j);
    if (kind != OUT_I32) {
        p.bias = _mm256_castsi256_ps(load_swapped(at->bias + j));
        p.mult = _mm256_castsi256_ps(load_swapped(at->mult + j));
    }
    return p;
}

/* For bytes: bounds of the sum with the rounder, compared as integers, and what to take from it. */
INLINE shared load_shared_again(const int kind, const sedq_epilogue *e)
{
    shared s = load_shared(e);
    if (kind == OUT_U8) {
        const __m256i rounder = _mm256_set1_epi32(ROUNDER_BITS);
        s.low = _mm256_add_epi32(rounder, _mm256_cvtps_epi32(_mm256_castsi256_ps(s.low)));
        s.high = _mm256_add_epi32(rounder, _mm256_cvtps_epi32(_mm256_castsi256_ps(s.high)));
        s.y_zp = _mm256_sub_epi32(rounder, s.y_zp);
    }
    return s;
}

/* 8 outputs, all vectors being swapped. Negative sums and those that are too large are, as integers, beyond the bounds. */
INLINE __m256i finish_again(const int kind, const columns *p, const shared *s, int zero_points, __m256i acc, uint32_t row_sum)
{
    if (kind != OUT_U8)
        return finish(kind, p, s, zero_points, acc, row_sum);
    const __m256 value = _mm256_cvtepi32_ps(finish(OUT_I32, p, s, zero_points, acc, row_sum));
    const __m256 y = _mm256_mul_ps(_mm256_add_ps(value, p->bias), p->mult);
    const __m256 rounder = _mm256_castsi256_ps(_mm256_set1_epi32(ROUNDER_BITS));
    __m256i bits = _mm256_castps_si256(_mm256_add_ps(y, rounder));
    bits = _mm256_min_epi32(_mm256_max_epi32(bits, s->low), s->high);
    return _mm256_sub_epi32(bits, s->y_zp);
}

/* 8 accumulators. Hidden from the compiler, which else loads them once for their sum and again for the outputs: a pointer
 * struck between the two loads would give outputs of accumulators that nobody summed. */
INLINE __m256i load_once(const int32_t *acc)
{
    return opaque(_mm256_load_si256((const __m256i *)acc));
}

/* 8 outputs, as a fault in the arithmetic of requantisation left them */
INLINE __m256i after_fault(__m256i y)
{
#ifdef SEDQ_FAULT_HOOK
    _Alignas(32) uint32_t words[8];
    _mm256_store_si256((__m256i *)words, y);
    SEDQ_FAULT_EPILOGUE(words, 8);
    y = _mm256_load_si256((const __m256i *)words);
#endif
    return y;
}

/* The same for the second computation, in whose lanes other columns are. */
INLINE __m256i after_fault_again(__m256i y)
{
#ifdef SEDQ_FAULT_HOOK
    _Alignas(32) uint32_t words[8];
    _mm256_store_si256((__m256i *)words, y);
    SEDQ_FAULT_EPILOGUE_AGAIN(words, 8);
    y = _mm256_load_si256((const __m256i *)words);
#endif
    return y;
}

/* the same pointer, to memory of which the optimiser knows nothing */
INLINE const sedq_epilogue *forget(const sedq_epilogue *e)
{
    __asm__ volatile("" : "+r"(e) : : "memory");
    return e;
}

/* the first n of 8 lanes, made anew each time */
INLINE __m256i mask_of(int n)
{
    __asm__ volatile("" : "+r"(n));
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

INLINE void add_to(uint32_t *lanes, __m256i x)
{
    __m256i *at = (__m256i *)lanes;
    _mm256_storeu_si256(at, _mm256_add_epi32(_mm256_loadu_si256(at), x));
}

/* the first n of 8 words, or their low bytes */
INLINE void store_words(const int kind, __m256i y, __m256i mask, int n, char *out, int64_t at)
{
    if (kind != OUT_U8) {
        _mm256_maskstore_epi32((int *)out + at, mask, y);
        return;
    }
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
    const int64_t bytes = _mm_cvtsi128_si64(_mm_packus_epi16(words, words));
    if (n >= 8)
        memcpy(out + at, &bytes, 8);
    else if (n > 0) /* else padding alone */
        memcpy(out + at, &bytes, (size_t)n);
}

/* A row sum that stays in one register until compare_row_sum has seen it. */
INLINE uint32_t hold_row_sum(uint32_t row_sum)
{
    __asm__ volatile("" : "+r"(row_sum));
    return row_sum;
}

/* Compare the row sum that outputs y were computed from with the one that another pointer leads to. */
INLINE void compare_row_sum(uint32_t row_sum, __m256i y, sedq_tile_sums *sums, int r)
{
    __asm__ volatile("" : "+r"(row_sum) : "x"(y)); /* not before y is known */
    sums->row_sums_differ |= row_sum ^ sums->row_sums[r];
}

INLINE void store_strip(const int kind, const int check, int rows, int j, int n, const int32_t *tile,
                        const uint32_t *row_sums, const sedq_epilogue *e, const shared *s, const shared *t, void *out,
                        int64_t ldo, sedq_tile_sums *sums, __m256i *digest)
{
    const places at = places_of(kind, e, j);
    const columns p = load_columns(kind, &at, 0, digest);
    const __m256i mask = mask_of(n);
    for (int r = 0; r < rows; r++) {
        const __m256i acc = load_once(tile + r * SEDQ_NR + j);
        const uint32_t row_sum = hold_row_sum(row_sums[r]);
        const __m256i y = _mm256_and_si256(after_fault(finish(kind, &p, s, at.w_zp != NULL, acc, row_sum)), mask);
        if (check && at.w_zp)
            compare_row_sum(row_sum, y, sums, r);
        if (check) {
            add_to(sums->acc[r], _mm256_and_si256(acc, mask));
            add_to(sums->out[r], y);
        }
        if (check == SEDQ_CHECK_FULL) {
            /* parameters and mask anew: a fault in the registers that hold them for all rows would be in both results */
            const sedq_epilogue *anew = forget(e);
            const places places_anew = places_of(kind, anew, j);
            const columns q = load_columns_again(kind, &places_anew, 0);
            const __m256i second = finish_again(kind, &q, t, places_anew.w_zp != NULL, swapped(opaque(acc)), row_sums[r]);
            const __m256i again = _mm256_and_si256(swapped(after_fault_again(opaque(second))), mask_of(n));
            const __m256i differs = _mm256_xor_si256(again, y);
            sums->twice |= !_mm256_testz_si256(differs, differs);
        }
        store_words(kind, y, mask, n, out, r * ldo + j);
    }
}

/* The low bytes of four vectors of 8 words that lie in 0 .. 255, fours of them in the order 0 2 4 6 1 3 5 7. */
INLINE __m256i pack_bytes(const __m256i *y)
{
    return _mm256_packus_epi16(_mm256_packs_epi32(y[0], y[1]), _mm256_packs_epi32(y[2], y[3]));
}

INLINE __m256i in_order(__m256i packed)
{
    return _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

/* 32 outputs of one row; their accumulators are summed on the way. */
INLINE void finish_chunk(const int kind, const places *at, const shared *s, const int32_t *acc, uint32_t row_sum,
                         __m256i *y, __m256i *acc_sum)
{
    __m256i unused = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++) {
        const columns p = load_columns(kind, at, v * 8, &unused);
        const __m256i in = load_once(acc + v * 8);
        y[v] = finish(kind, &p, s, at->w_zp != NULL, in, row_sum);
        *acc_sum = _mm256_add_epi32(*acc_sum, in);
    }
}

INLINE void finish_chunk_again(const int kind, const places *at, const shared *s, const int32_t *acc, uint32_t row_sum,
                               __m256i *y)
{
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++) {
        const columns p = load_columns_again(kind, at, v * 8);
        y[v] = after_fault_again(finish_again(kind, &p, s, at->w_zp != NULL, load_swapped(acc + v * 8), row_sum));
    }
}

/* 32 columns, row by row: parameters are operands from L1, and a row's sums stay in registers. The outputs are summed before they
 * are put in order and stored, and with full checking they are those of the second computation, whose parameters and accumulators
 * are found and loaded anew: what is stored is read back against the other. The first computation keeps its pointers to the
 * parameters for all rows and for the digest, taken after them: there a pointer that was struck on the way is seen. */
INLINE void store_chunk(const int kind, const int check, int rows, int j, const int32_t *tile, const uint32_t *row_sums,
                        const sedq_epilogue *e, const shared *s, const shared *t, void *out, int64_t ldo,
                        sedq_tile_sums *sums, __m256i *digest)
{
    places at = places_of(kind, e, j);
    /* values of which the compiler knows nothing: it keeps them, and doesn't load them again for each row */
    __asm__ volatile("" : "+r"(at.term), "+r"(at.w_zp), "+r"(at.bias), "+r"(at.mult));
    for (int r = 0; r < rows; r++) {
        __m256i acc_sum = _mm256_setzero_si256(), y[4], again[4];
        const uint32_t row_sum = hold_row_sum(row_sums[r]);
        finish_chunk(kind, &at, s, tile + r * SEDQ_NR + j, row_sum, y, &acc_sum);
        if (check && at.w_zp)
            compare_row_sum(row_sum, y[3], sums, r);
        for (int v = 0; v < 4; v++)
            y[v] = after_fault(y[v]);
        if (check == SEDQ_CHECK_FULL) {
            const sedq_epilogue *anew = forget(e);
            const places places_anew = places_of(kind, anew, j);
            finish_chunk_again(kind, &places_anew, t, tile + r * SEDQ_NR + j, row_sums[r], again);
        }
        const __m256i *summed = check == SEDQ_CHECK_FULL ? again : y;
        __m256i out_sum;
        if (kind == OUT_U8) {
            const __m256i bytes = pack_bytes(y), other = check == SEDQ_CHECK_FULL ? pack_bytes(again) : bytes;
            if (check == SEDQ_CHECK_FULL) {
                const __m256i differs = _mm256_xor_si256(bytes, swapped(other));
                sums->twice |= !_mm256_testz_si256(differs, differs);
            }
            out_sum = _mm256_sad_epu8(other, _mm256_setzero_si256());
            _mm256_storeu_si256((__m256i *)((uint8_t *)out + r * ldo + j), in_order(bytes));
        } else {
            out_sum = _mm256_add_epi32(_mm256_add_epi32(summed[0], summed[1]), _mm256_add_epi32(summed[2], summed[3]));
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) {
                if (check == SEDQ_CHECK_FULL) {
                    const __m256i differs = _mm256_xor_si256(y[v], swapped(again[v]));
                    sums->twice |= !_mm256_testz_si256(differs, differs);
                }
                _mm256_storeu_si256((__m256i *)((int32_t *)out + r * ldo + j + v * 8), y[v]);
            }
        }
        if (check) {
            add_to(sums->acc[r], acc_sum);
            add_to(sums->out[r], out_sum);
        }
    }
    for (int v = 0; check && v < 4; v++)
        load_columns(kind, &at, v * 8, digest);
}

/* The parameters of a single column for rows in the lanes. Row sums, which weight zero points multiply, differ from lane to
 * lane: they go into the term. */
INLINE columns spread_column(const int kind, const int again, const sedq_epilogue *e, int rows, const uint32_t *row_sums)
{
    columns p = {_mm256_set1_epi32(e->col_term[0]), _mm256_setzero_si256(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    _Alignas(32) uint32_t sum[8] = {0};
    if (e->w_zp) {
        memcpy(sum, row_sums, (size_t)rows * sizeof *sum);
        const __m256i sums = again ? load_swapped(sum) : _mm256_load_si256((const __m256i *)sum);
        p.term = _mm256_add_epi32(p.term, _mm256_mullo_epi32(_mm256_set1_epi32(e->w_zp[0]), sums));
    }
    if (kind != OUT_I32) {
        p.bias = _mm256_set1_ps(e->bias[0]);
        p.mult = _mm256_set1_ps(e->mult[0]);
    }
    return p;
}

/* A single column: rows in the lanes. The sums are of the second computation, if there is one. */
INLINE void store_column(const int kind, const int check, int rows, const int32_t *tile, const uint32_t *row_sums,
                         const sedq_epilogue *e, const shared *s, const shared *t, void *out, int64_t ldo,
                         sedq_tile_sums *sums)
{
    _Alignas(32) int32_t acc[8] = {0}, y[8], summed[8];
    uint32_t held[8];
    for (int r = 0; r < rows; r++) {
        acc[r] = tile[r * SEDQ_NR];
        held[r] = hold_row_sum(row_sums[r]);
    }
    const __m256i in = _mm256_load_si256((const __m256i *)acc);
    const columns p = spread_column(kind, 0, e, rows, held);
    const __m256i result = after_fault(finish(kind, &p, s, 0, in, 0));
    __m256i again = result;
    if (check == SEDQ_CHECK_FULL) {
        const columns q = spread_column(kind, 1, forget(e), rows, row_sums);
        again = swapped(after_fault_again(opaque(finish_again(kind, &q, t, 0, swapped(opaque(in)), 0))));
        const __m256i differs = _mm256_xor_si256(again, result);
        sums->twice |= !_mm256_testz_si256(differs, differs);
    }
    _mm256_store_si256((__m256i *)y, result);
    _mm256_store_si256((__m256i *)summed, again);
    for (int r = 0; r < rows; r++) {
        if (check) {
            sums->acc[r][0] += (uint32_t)acc[r];
            sums->out[r][0] += (uint32_t)summed[r];
        }
        if (check && e->w_zp)
            compare_row_sum(held[r], result, sums, r);
        if (kind == OUT_U8)
            ((uint8_t *)out)[r * ldo] = (uint8_t)y[r];
        else
            ((int32_t *)out)[r * ldo] = y[r];
    }
}

INLINE void store_tile(const int kind, const int check, int rows, int cols, const int32_t *tile,
                       const uint32_t *row_sums, const sedq_epilogue *e, void *out, int64_t ldo, sedq_tile_sums *sums)
{
    __m256i digest = _mm256_setzero_si256();
    const shared s = load_shared(e);
    shared t = s;
    int j = 0;
    if (check == SEDQ_CHECK_FULL)
        t = load_shared_again(kind, forget(e));
    if (cols == 1)
        store_column(kind, check, rows, tile, row_sums, e, &s, &t, out, ldo, sums);
    for (; j + 32 <= cols; j += 32)
        store_chunk(kind, check, rows, j, tile, row_sums, e, &s, &t, out, ldo, sums, &digest);
    for (; cols > 1 && j < cols; j += 8)
        store_strip(kind, check, rows, j, cols - j, tile, row_sums, e, &s, &t, out, ldo, sums, &digest);
    const places at = places_of(kind, e, 0);
    for (; check && j < (cols + SEDQ_NV - 1) / SEDQ_NV * SEDQ_NV; j += 8) /* parameters are padded, and all summed */
        load_columns(kind, &at, j, &digest);
    if (check) {
        __m256i *params = (__m256i *)sums->params;
        _mm256_storeu_si256(params, _mm256_add_epi64(_mm256_loadu_si256(params), digest));
        sums->scalars += 2 * digest_shared(&s);
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
    const __m256i zero = _mm256_setzero_si256();
    __m256i sum = zero;
    for (const uint8_t *x = p; rows > 0; rows--, x += ld) {
        int64_t i = 0;
        for (; i + 32 <= n; i += 32)
            sum = _mm256_add_epi64(sum, _mm256_sad_epu8(_mm256_loadu_si256((const __m256i *)(x + i)), zero));
        for (; i < n; i += 16) {
            const __m128i rest = _mm_sad_epu8(load_bytes(x + i, n - i), _mm_setzero_si128());
            sum = _mm256_add_epi64(sum, _mm256_zextsi128_si256(rest));
        }
    }
    return reduce(sum);
}

static uint32_t sum_words(const void *p, int64_t rows, int64_t n, int64_t ld)
{
    __m256i sum = _mm256_setzero_si256();
    uint32_t rest = 0;
    for (const uint32_t *x = p; rows > 0; rows--, x += ld) {
        int64_t i = 0;
        for (; i + 8 <= n; i += 8)
            sum = _mm256_add_epi32(sum, _mm256_loadu_si256((const __m256i *)(x + i)));
        for (; i < n; i++)
            rest += x[i];
    }
    return rest + reduce(sum);
}

void SEDQ_INIT(epilogue_avx2)(sedq_context *c)
{
    c->reduce = reduce_lanes;
    c->wide_sum = wide_sum;
    c->store_i32 = store_i32;
    c->store_u8 = store_u8;
    c->store_f32 = store_f32;
    c->sum_u8 = sum_u8;
    c->sum_words = sum_words;
}
