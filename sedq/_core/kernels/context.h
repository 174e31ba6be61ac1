/* The contract between the compiled loops (Cython) and the micro-kernels (C).
 *
 * One sedq_context describes one instruction set: tile and block sizes and the
 * functions that are written for it. The portable context (reference) is
 * complete; every other one starts as a copy of it and overwrites what it has
 * faster. Kernels take raw pointers to memory that the caller has validated, never
 * allocate, never fail silently and never include Python.h.
 */
#ifndef SEDQ_CONTEXT_H
#define SEDQ_CONTEXT_H

#include <stdint.h>
#include <string.h>

/* Packed weights. B = W^T (K x N) is cut into panels of SEDQ_NR columns; the last
 * panel is as wide as it must be, in steps of SEDQ_NV, or of a single column. Inside a panel, groups of
 * SEDQ_KR consecutive k stand together for each column: b[k / KR][column][k % KR].
 * What pads K and N is zero. Every instruction set reads this one layout, so a pack
 * can be recomputed by another set, and is the same file on every machine. */
enum { SEDQ_NR = 64, SEDQ_NV = 16, SEDQ_KR = 4, SEDQ_MR_MAX = 8, SEDQ_MAX_DIGITS = 4 };

/* Level of checking, as an argument of the kernels. */
enum { SEDQ_CHECK_OFF = 0, SEDQ_CHECK_EXACT = 1, SEDQ_CHECK_FULL = 2 };

/* What the epilogue needs of each column, padded with zeros to the panel's width. */
typedef struct {
    const int32_t *col_term; /* x_zero_point * col_offsets */
    const int32_t *w_zp;     /* weight zero points, NULL when all are 0 */
    const float *bias;       /* uint8 output: bias / (s_x s_w);  float output: bias */
    const float *mult;       /* uint8 output: s_x s_w / s_y;     float output: s_x s_w */
    float low, high;         /* clamp: uint8 output, of the value before y_zp is added; float output, low alone */
    int32_t y_zp;
} sedq_epilogue;

/* Digest of the parameters that all columns share. Odd factors: a flipped bit of one changes it, and low and high that change
 * places do. */
static inline uint32_t sedq_scalar_digest(float low, float high, int32_t y_zp)
{
    uint32_t l, h;
    memcpy(&l, &low, sizeof l);
    memcpy(&h, &high, sizeof h);
    return l + 3 * h + 5 * (uint32_t)y_zp;
}

/* What is known of one tile. Running sums of its rows, 16 lanes each so that nothing is reduced in the
 * loops: acc[r] of accumulators, out[r] of what was stored (bytes, or 32-bit words),
 * both modulo 2^32: one flipped bit of a word is counted once. A bit of a parameter, or of a lane that is stuck, may be
 * counted a power of two times. So parameters are summed in 64 bits, which no number of panels can fill. */
typedef struct {
    uint32_t (*acc)[16];
    uint32_t (*out)[16];
    uint64_t params[8]; /* words of the column parameters as they were loaded */
    uint64_t scalars;   /* 16 times, for 16 lanes, and for each panel: the digest of low, high and y_zp as the arithmetic had them */
    const uint32_t *row_sums; /* the same that the epilogue is given, to be found by another pointer */
    uint32_t row_sums_differ; /* not 0 if a row sum that weight zero points multiplied isn't the one found there */
    uint32_t twice;           /* check full: not 0 if the two computations of the epilogue differ */
} sedq_tile_sums;

/* tile[r * SEDQ_NR + j] = sum_k a[r * lda + k] * b[k][j] for r < rows <= mr and j < width
 * (a multiple of SEDQ_NV, or 1). */
typedef void (*sedq_tile_fn)(int rows, int width, const uint8_t *a, int64_t lda, const int8_t *b, int64_t k,
                             int32_t *tile);

/* For each of `rows` rows of A: sum[r] = sum_k a[r][k], unless sum is NULL; check[r] = sum_p 256^p (a[r] . digit_p) modulo 2^32, the digits
 * being `digits` vectors of kpad int8. */
typedef void (*sedq_rows_fn)(int64_t rows, const uint8_t *a, int64_t lda, int64_t k, const int8_t *digit, int digits,
                             int64_t kpad, uint32_t *sum, uint32_t *check);

/* sum[r] += sum of the first cols accumulators of row r of a tile, in 64 bits: sums modulo 2^32 and modulo 127 do not mix. */
typedef void (*sedq_wide_sum_fn)(int rows, int cols, const int32_t *tile, int64_t *sum);

/* out[r] = sum of lanes[r][0 .. 16), modulo 2^32. */
typedef void (*sedq_reduce_fn)(int64_t rows, const uint32_t (*lanes)[16], uint32_t *out);

/* Turn a tile of accumulators into output: rows x cols at out, ldo elements from row to row. e points at
 * the first of these columns. */
typedef void (*sedq_store_fn)(int rows, int cols, const int32_t *tile, const uint32_t *row_sums,
                              const sedq_epilogue *e, void *out, int64_t ldo, int check, sedq_tile_sums *sums);

/* Sum of rows x n stored words (bytes or 32-bit words), rows lying ld words apart, modulo 2^32. */
typedef uint32_t (*sedq_sum_fn)(const void *p, int64_t rows, int64_t n, int64_t ld);

/* An embedding table, in rows of ours or in someone else's layout. A row is `code_bytes` bytes of codes, of `bits` bits
 * each, the first in the low bits of a byte; two 32-bit words; and a 64-bit digest,
 *     sum of the bytes of the codes << 40 | (word 0 + word 1 + row number + 1).
 *
 *   bits    word 0                              word 1
 *   8       float32 scale                       float32 bias
 *   8 half  float16 scale, float16 bias         (none: 0)
 *   4, 2    float16 scale, float16 bias         sum of codes
 *   16, 32  float32 sum of the row's values     float32 sum of their magnitudes, rounded up;
 *                                               2^-104 for each that is denormal, and for a sum that is
 *
 * A row of ours is codes, padded with zeros to a multiple of 8 bytes, words, digest. In another layout the codes stand
 * somewhere in the row, the words in the row or in a sidecar, the digest in the sidecar. Nothing is aligned. */
typedef struct {
    const uint8_t *rows;    /* row i: rows + i * stride; its codes: codes_at further */
    const uint8_t *word[2]; /* word w of row i: word[w] + i * word_stride[w] */
    const uint8_t *digests; /* digest of row i: digests + i * digest_stride */
    int64_t stride, word_stride[2], digest_stride;
    int64_t num_rows, dim, width, codes_at, code_bytes; /* width: bytes of a row that belong to the table */
    int bits, half, format;                             /* half: scale and bias are float16; format: SEDQ_OWN8 ... */
} sedq_table;

/* Kinds of tables that a kernel may be written for: rows of ours by their bits, and everything else. */
enum { SEDQ_OWN8, SEDQ_OWN4, SEDQ_OWN2, SEDQ_OWN16, SEDQ_OWN32, SEDQ_FOREIGN, SEDQ_FORMATS };

/* What one pass over a bag found; sums are over its rows. S_i is the sum of codes that is stored with row i. No
 * integer sum can wrap for fewer than 2^24 rows, so that a row that occurs many times cannot cancel: `codes` and `params`
 * are both 0 if and only if what was read and the stored digests have the same sum. */
typedef struct {
    uint64_t codes;    /* bytes of codes as the loop read them, less what the digests say; 0 unless something is wrong */
    uint64_t params;   /* words and index likewise; a kernel that can't tell the two apart may put the difference anywhere */
    double pooled;     /* sum of the outputs, from registers */
    double reference;  /* sum of w_i (scale_i S_i + dim bias_i), not divided; of w_i times word 0 for bits 16 and 32 */
    double magnitude;  /* sum of |w_i| (|scale_i| S_i + dim |bias_i|), not divided; of |w_i| times word 1 */
    uint64_t rows;     /* what was visited, to be compared with the request: sum of index + 1, */
    uint64_t weights;  /* and of the weights' bits; 0 without weights */
    uint32_t out_bits; /* sum of the outputs' bit patterns, from registers, modulo 2^32 */
} sedq_bag_sums;

/* Pool rows indices[begin .. end) into out[dim]; `total` is the number of indices there are, for prefetching.
 * index_bytes is 4 or 8; weights may be NULL; divisor is 1, or the length of the bag for the mean. Order of
 * operations, the same everywhere: acc_j = fma(w_i scale_i, code_ij, acc_j) and b = fma(w_i, bias_i, b) in index order,
 * then out_j = (acc_j + b) / divisor. For bits 16 and 32 the codes are the values, scale is 1 and bias 0. */
typedef void (*sedq_bag_fn)(const sedq_table *t, const void *indices, int index_bytes, const float *weights,
                            int64_t begin, int64_t end, int64_t total, float divisor, float *out, int check,
                            sedq_bag_sums *sums);

/* The same outputs another way, for check full: columns in other lanes, codes unpacked by other instructions. */
typedef void (*sedq_bag_again_fn)(const sedq_table *t, const void *indices, int index_bytes, const float *weights,
                                  int64_t begin, int64_t end, float divisor, float *out);

/* out[i] = digest of row first + i, from what is stored but the digest, for i < n. */
typedef void (*sedq_digests_fn)(const sedq_table *t, int64_t first, int64_t n, uint64_t *out);

/* Number of the first of n rows from `first` on that doesn't fit its digest, or -1. */
typedef int64_t (*sedq_scan_fn)(const sedq_table *t, int64_t first, int64_t n);

/* Position of the first of n indices outside [0, rows), or -1. */
typedef int64_t (*sedq_range_fn)(const void *indices, int index_bytes, int64_t n, int64_t rows);

/* out = clamp(zp + rint(x * inverse_scale)); returns 1 if an x is NaN. */
typedef int (*sedq_quantize_fn)(const float *x, int64_t n, float inverse_scale, int32_t zp, uint8_t *out);

/* The same another way, so that a fault that sticks to an instruction or a lane doesn't repeat itself: value i is in the lane of
 * value i + 1, and other instructions multiply, round and clamp. Compares with the codes as stored, and sums what they must be.
 * Returns 1 if one differs, plus 2 if an x is NaN. */
typedef int (*sedq_same_codes_fn)(const float *x, int64_t n, float inverse_scale, int32_t zp, const uint8_t *codes,
                                  uint32_t *sum);

/* The lower triangle of T T^T for one request, T being (features, dim): out[p], p over (1,0) (2,0) (2,1) ... Each dot
 * product sums 16 lanes l of fma(t_i[l + 16 c], t_j[l + 16 c]) over c, then the lanes in a tree, adding lanes 8, 4, 2 and 1 apart.
 *
 * With `again` the caller has moved each lane to the next one (sedq_rotate_lanes). The same lanes are added as before, and the
 * factors change places, so that each result is the same but for the sign of a zero, and its last steps take other lanes, too.
 * The word before out must exist; it is not written. */
typedef void (*sedq_dots_fn)(const float *t, int64_t features, int64_t dim, int again, float *out);

/* to = `vectors` vectors of `dim` floats, padded with zeros to whole blocks of 16, in which element l is at (l + 1) % 16. */
static inline void sedq_rotate_lanes(const float *from, int64_t vectors, int64_t dim, float *to)
{
    for (int64_t v = 0; v < vectors; v++, from += dim)
        for (int64_t l = 0; l < dim; l += 16, to += 16) {
            const int64_t n = dim - l < 16 ? dim - l : 16;
            if (n == 16) {
                memcpy(to + 1, from + l, 15 * sizeof *to);
                to[0] = from[l + 15];
            } else {
                memset(to, 0, 16 * sizeof *to);
                memcpy(to + 1, from + l, (size_t)n * sizeof *to);
            }
        }
}

typedef struct sedq_context {
    const char *name;
    int mr;           /* rows of a tile */
    int64_t mc;       /* rows of A per block: whole tiles */
    int64_t nc_bytes; /* bytes of packed B per block: what stays in L2 */
    sedq_tile_fn tile;
    sedq_rows_fn rows;
    sedq_reduce_fn reduce;
    sedq_wide_sum_fn wide_sum;
    sedq_store_fn store_i32, store_u8, store_f32;
    sedq_sum_fn sum_u8, sum_words;
    sedq_bag_fn bag[SEDQ_FORMATS];
    sedq_bag_again_fn bag_again;
    sedq_digests_fn digests;
    sedq_scan_fn scan;
    sedq_range_fn range;
    sedq_quantize_fn quantize;
    sedq_same_codes_fn same_codes;
    sedq_dots_fn dots;
    int (*leaves_out)(void); /* hooked build: whether a fault makes the loops skip a chunk of bags; else NULL */
} sedq_context;

/* Each translation unit exports one function, which fills in its part. A second build, with a fault hook in
 * the kernels (fault_hook.h), exports the same names with a suffix; so does a build of the portable kernels without
 * vector instructions, by which recovery computes again. */
#ifdef SEDQ_FAULT_HOOK
#define SEDQ_INIT(unit) sedq_init_##unit##_hooked
#elif defined SEDQ_SCALAR
#define SEDQ_INIT(unit) sedq_init_##unit##_scalar
#else
#define SEDQ_INIT(unit) sedq_init_##unit
#endif

void SEDQ_INIT(gemm_reference)(sedq_context *);
void SEDQ_INIT(embedding_reference)(sedq_context *);
void SEDQ_INIT(again_reference)(sedq_context *);
void SEDQ_INIT(dense_reference)(sedq_context *);
void SEDQ_INIT(gemm_avx2)(sedq_context *);
void SEDQ_INIT(epilogue_avx2)(sedq_context *);
void SEDQ_INIT(embedding_avx2)(sedq_context *);
void SEDQ_INIT(again_avx2)(sedq_context *);
void SEDQ_INIT(scan_avx2)(sedq_context *);
void SEDQ_INIT(dense_avx2)(sedq_context *);
void SEDQ_INIT(gemm_avxvnni)(sedq_context *);
void SEDQ_INIT(gemm_avx512vnni)(sedq_context *);
void SEDQ_INIT(epilogue_avx512vnni)(sedq_context *);
void SEDQ_INIT(embedding_avx512vnni)(sedq_context *);
void SEDQ_INIT(dense_avx512vnni)(sedq_context *);

#endif
