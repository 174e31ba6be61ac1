"""Blocked int8 matrix product with the exact row check.

::

    x (M, K) uint8      packed B (K, N) int8, panels of 64 columns      digits of s_k = sum_j B_kj
        |                              |                                    |
        |  split M, or N for few rows, over threads                         |
        |    block of mc rows of x                                          |
        |      row sums and checksums  r_i = sum_k x_ik s_k   <-------------+
        |      block of panels that stays in L2
        |        tile of mr rows
        |          panel of 64 columns
        |            micro-kernel: k loop into an L1 scratch tile
        |            epilogue: sum the accumulators, requantise, sum what is stored, store
        |      verify: sum_j C_ij = r_i; output read back; parameters; input sums
        v
    out (M, N) int32, uint8 or float32, and what was found wrong

All sums are modulo 2^32: both sides of a comparison are the same function of the same integers, so that a run without a
fault cannot disagree, even when C itself wraps.
"""

from cython.parallel cimport prange
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memcpy, memset

import numpy as np

from sedq._core._dispatch cimport (
    SEDQ_BAD_ACCUMULATOR, SEDQ_BAD_COUNT, SEDQ_BAD_EPILOGUE, SEDQ_BAD_INPUT, SEDQ_BAD_OUTPUT, SEDQ_BAD_PARAMETERS,
    SEDQ_CHECK_EXACT, SEDQ_CHECK_FULL, SEDQ_CHECK_OFF, SEDQ_KR, SEDQ_MAX_DIGITS, SEDQ_NR, SEDQ_NV, Context,
    findings_list, sedq_context, sedq_epilogue, sedq_findings, sedq_report, sedq_store_fn, sedq_sum_fn, sedq_tile_sums,
    threads_for)


cdef extern from "views.h":
    const void *x_start "SEDQ_VIEW_START"(const uint8_t[:, ::1])
    const void *i32_start "SEDQ_VIEW_START"(int32_t[:, ::1])
    const void *u8_start "SEDQ_VIEW_START"(uint8_t[:, ::1])
    const void *f32_start "SEDQ_VIEW_START"(float[:, ::1])
    int64_t x_length "SEDQ_VIEW_LENGTH"(const uint8_t[:, ::1])
    int64_t x_width "SEDQ_VIEW_WIDTH"(const uint8_t[:, ::1])


PANEL_COLUMNS = SEDQ_NR
PANEL_STEP = SEDQ_NV
K_GROUP = SEDQ_KR
MAX_DIGITS = SEDQ_MAX_DIGITS

CHECK_OFF = SEDQ_CHECK_OFF
CHECK_EXACT = SEDQ_CHECK_EXACT
CHECK_FULL = SEDQ_CHECK_FULL
CHECK_MOD127 = 3

cdef enum:
    MAX_MC = 96      # rows of x that one task holds sums for, on its stack
    MAX_TASKS = 64   # parts that the columns are cut into
    MOD127 = 3       # the paper's scheme, which the kernels know nothing of


cdef int64_t round_up(int64_t value, int64_t step) noexcept nogil:
    return (value + step - 1) // step * step


cdef int64_t panel_width(int64_t n, int64_t panel) noexcept nogil:
    """Columns of a panel, padding included; a single column is not padded."""
    cdef int64_t left = n - panel * SEDQ_NR
    return 1 if left == 1 else min(<int64_t>SEDQ_NR, round_up(left, SEDQ_NV))


cdef const void *address(array, dtype, Py_ssize_t least, str name) except? NULL:
    """Address of a contiguous array that the caller keeps alive; ValueError if it isn't what the kernels read."""
    cdef const uint8_t[::1] view
    if array.dtype != dtype or not array.flags.c_contiguous or array.size < least:
        raise ValueError(f"{name}: got {array.dtype} of {array.size} elements, expected contiguous "
                         f"{np.dtype(dtype)} of at least {least}")
    if array.size == 0:
        return NULL
    view = array.reshape(-1).view(np.uint8)
    return &view[0]


def packed_size(Py_ssize_t n, Py_ssize_t k):
    """Bytes of packed (K, N) weights."""
    cdef int64_t last = (n - 1) // SEDQ_NR
    return (last * SEDQ_NR + panel_width(n, last)) * round_up(k, SEDQ_KR)


def panel_index(Py_ssize_t n, Py_ssize_t k, Py_ssize_t j, Py_ssize_t i):
    """Position in the packed panels of W[j, i], of weights (n, k)."""
    cdef int64_t width = panel_width(n, j // SEDQ_NR)
    return (j // SEDQ_NR * SEDQ_NR * round_up(k, SEDQ_KR) + j % SEDQ_NR * SEDQ_KR
            + i // SEDQ_KR * width * SEDQ_KR + i % SEDQ_KR)


def pack(const int8_t[:, ::1] w, int8_t[::1] panels):
    """Write w (N, K) into zeroed panels."""
    cdef Py_ssize_t n = w.shape[0], k = w.shape[1], j, i
    cdef int64_t panel_bytes = SEDQ_NR * round_up(k, SEDQ_KR), width
    cdef int8_t *column
    if panels.shape[0] != packed_size(n, k):
        raise ValueError(f"panels: got {panels.shape[0]} bytes, expected {packed_size(n, k)}")
    with nogil:
        for j in range(n):
            width = panel_width(n, j // SEDQ_NR)
            column = &panels[j // SEDQ_NR * panel_bytes + j % SEDQ_NR * SEDQ_KR]
            for i in range(k):
                column[i // SEDQ_KR * width * SEDQ_KR + i % SEDQ_KR] = w[j, i]


def unpack(const int8_t[::1] panels, int8_t[:, ::1] w):
    """Read w (N, K) back from its panels."""
    cdef Py_ssize_t n = w.shape[0], k = w.shape[1], j, i
    cdef int64_t panel_bytes = SEDQ_NR * round_up(k, SEDQ_KR), width
    cdef const int8_t *column
    if panels.shape[0] != packed_size(n, k):
        raise ValueError(f"panels: got {panels.shape[0]} bytes, expected {packed_size(n, k)}")
    with nogil:
        for j in range(n):
            width = panel_width(n, j // SEDQ_NR)
            column = &panels[j // SEDQ_NR * panel_bytes + j % SEDQ_NR * SEDQ_KR]
            for i in range(k):
                w[j, i] = column[i // SEDQ_KR * width * SEDQ_KR + i % SEDQ_KR]


cdef class PackedB:
    """Packed weights and their checksum digits, as the loops read them.

    panels : int8 (packed_size(n + encoded, k),), with `encoded` one more column, the sums of the rows of B modulo 127;
    digits : int8 (digits, kpad), kpad a multiple of 128, zero beyond k.
    """

    def __init__(self, Py_ssize_t n, Py_ssize_t k, panels, digits, bint encoded=False):
        if n < 1 or k < 1:
            raise ValueError(f"weights: got shape ({n}, {k}), expected at least one row and one column")
        self.n, self.k, self.panels, self.digits, self.encoded = n, k, panels, digits, encoded
        self.panel_bytes = SEDQ_NR * round_up(k, SEDQ_KR)
        self.ndigits, self.kpad = digits.shape
        if self.ndigits > SEDQ_MAX_DIGITS or self.kpad % 128 or self.kpad < k:
            raise ValueError(f"digits: got shape {digits.shape}, expected up to {SEDQ_MAX_DIGITS} rows and a multiple "
                             f"of 128 columns from {k} on")
        self.b = <const int8_t *>address(panels, np.int8, packed_size(n + encoded, k), "panels")
        self.digit = <const int8_t *>address(digits, np.int8, 0, "digits")


cdef enum:
    OUT_I32, OUT_U8, OUT_F32


cdef class Epilogue:
    """What turns accumulators into output, column by column, all arrays padded with zeros to whole panel steps.

    dtype : of the output, int32, uint8 or float32; col_term, w_zp (or None) : int32; bias, mult : float32 (None for
    int32); digest : uint32, the sum of the bits of all parameters of each panel.
    """

    def __init__(self, dtype, Py_ssize_t n, col_term, w_zp, bias, mult, digest,
                 float low=0, float high=0, int y_zero_point=0):
        cdef Py_ssize_t padded = round_up(n, SEDQ_NV)
        self.dtype, self.n = np.dtype(dtype), n
        self.kind = OUT_U8 if self.dtype == np.uint8 else OUT_F32 if self.dtype == np.float32 else OUT_I32
        self.col_term, self.w_zp, self.bias, self.mult, self.digest = col_term, w_zp, bias, mult, digest
        self.e.low, self.e.high, self.e.y_zp = low, high, y_zero_point
        self.e.col_term = <const int32_t *>address(col_term, np.int32, padded, "col_term")
        self.e.w_zp = NULL
        if w_zp is not None:
            self.e.w_zp = <const int32_t *>address(w_zp, np.int32, padded, "w_zp")
        if self.dtype != np.int32:
            self.e.bias = <const float *>address(bias, np.float32, padded, "bias")
            self.e.mult = <const float *>address(mult, np.float32, padded, "mult")
        self.panel_digest = <const uint32_t *>address(digest, np.uint32, (n + SEDQ_NR - 1) // SEDQ_NR, "digest")

    def scalar_bits(self):
        """Sum of the bits of low, high and y_zero_point, modulo 2^32."""
        cdef uint32_t low, high
        memcpy(&low, &self.e.low, 4)
        memcpy(&high, &self.e.high, 4)
        return <uint32_t>(low + high + <uint32_t>self.e.y_zp)


cdef struct Job:
    const sedq_context *c
    int64_t m, n, k, columns, panels, panel_bytes, kpad   # columns of packed B: n, or n + 1 if encoded
    const uint8_t *a
    const int8_t *b
    const int8_t *digit
    int ndigits, check
    const sedq_epilogue *e
    const uint32_t *panel_digest
    sedq_store_fn store
    sedq_sum_fn sum_out
    char *out
    int64_t item              # bytes of an output element
    const uint32_t *x_sums    # what the writer of x summed, or NULL
    uint32_t *y_sums          # to be filled for the reader of the output, or NULL
    sedq_findings *found


# What a task knows of its block of rows.
cdef struct Rows:
    uint32_t acc[MAX_MC][16]
    uint32_t out[MAX_MC][16]
    uint32_t sum[MAX_MC]      # sum_k x_ik
    uint32_t check[MAX_MC]    # sum_k x_ik s_k
    int64_t wide[MAX_MC]      # sum_j C_ij, in 64 bits
    int64_t encoded[MAX_MC]   # C_iN, the encoded column


cdef void sum_rows(const Job *job, int64_t i0, int64_t i1, Rows *rows) noexcept nogil:
    """Row sums and checksums of x, in a pass of its own: it reads x independently of the micro-kernel."""
    cdef int digits = job.ndigits if job.check == SEDQ_CHECK_EXACT or job.check == SEDQ_CHECK_FULL else 0
    cdef bint used = job.e.w_zp != NULL or job.x_sums != NULL
    if not used:
        memset(rows.sum, 0, (i1 - i0) * sizeof(rows.sum[0]))
    if used or digits:
        job.c.rows(i1 - i0, job.a + i0 * job.k, job.k, job.k, job.digit, digits, job.kpad, rows.sum if used else NULL,
                   rows.check)


cdef void sum_mod127(const Job *job, int nrows, int64_t column, const int32_t *scratch, int64_t *wide,
                     int64_t *encoded) noexcept nogil:
    """The paper's scheme: 64-bit sums of a tile's rows, and the encoded column if it is in this panel."""
    cdef int r
    job.c.wide_sum(nrows, <int>max(<int64_t>0, min(<int64_t>SEDQ_NR, job.n - column)), scratch, wide)
    if job.n - column < SEDQ_NR:
        for r in range(nrows):
            encoded[r] = scratch[r * SEDQ_NR + job.n - column]


cdef void multiply_tile(const Job *job, int64_t i, int nrows, int64_t p0, int64_t p1, int64_t at, Rows *rows,
                        sedq_tile_sums *sums) noexcept nogil:
    """One tile of rows, `at` of its block, against panels p0 .. p1."""
    cdef int32_t tile[8 * 64 + 16]
    # scratch on a cache line of its own, for aligned vector stores
    cdef int32_t *scratch = <int32_t *>((<size_t>tile + 63) & ~<size_t>63)
    cdef sedq_epilogue e = job.e[0]
    cdef int64_t p, column
    cdef uint32_t expected = 0, params
    cdef int check = 0 if job.check == MOD127 else job.check
    for p in range(p0, p1):
        column = p * SEDQ_NR
        job.c.tile(nrows, <int>panel_width(job.columns, p), job.a + i * job.k, job.k, job.b + p * job.panel_bytes, job.k,
                   scratch)
        if job.check == MOD127:
            sum_mod127(job, nrows, column, scratch, rows.wide + at, rows.encoded + at)
        if column >= job.n:  # a panel of the encoded column alone
            continue
        e.col_term = job.e.col_term + column
        if job.e.w_zp != NULL:
            e.w_zp = job.e.w_zp + column
        if job.e.mult != NULL:
            e.bias = job.e.bias + column
            e.mult = job.e.mult + column
        job.store(nrows, <int>min(<int64_t>SEDQ_NR, job.n - column), scratch, rows.sum + at,
                  &e, job.out + (i * job.n + column) * job.item, job.n, check, sums)
        expected += job.panel_digest[p]
    if check:
        # compared for each tile of rows: sums over tiles could wrap and hide a fault
        job.c.reduce(1, &sums.params, &params)
        if params != expected:
            sedq_report(job.found, i, SEDQ_BAD_PARAMETERS, <int32_t>(params - expected), 0)
        if sums.twice:
            sedq_report(job.found, i, SEDQ_BAD_EPILOGUE, sums.twice, 0)


cdef void multiply(const Job *job, int64_t i0, int64_t i1, int64_t p0, int64_t p1, Rows *rows) noexcept nogil:
    """Rows i0 .. i1 (at most MAX_MC) against panels p0 .. p1, blocked so that panels stay in L2."""
    cdef int64_t i, p = p0, last
    cdef int64_t block = max(<int64_t>1, job.c.nc_bytes // job.panel_bytes)
    cdef sedq_tile_sums sums
    if job.check:
        memset(rows.acc, 0, (i1 - i0) * sizeof(rows.acc[0]))
        memset(rows.out, 0, (i1 - i0) * sizeof(rows.out[0]))
        memset(rows.wide, 0, (i1 - i0) * sizeof(rows.wide[0]))
        memset(rows.encoded, 0, (i1 - i0) * sizeof(rows.encoded[0]))
    while p < p1:
        last = min(p + block, p1)
        i = i0
        while i < i1:
            sums.acc = &rows.acc[i - i0]
            sums.out = &rows.out[i - i0]
            memset(sums.params, 0, sizeof(sums.params))
            sums.twice = 0
            multiply_tile(job, i, <int>min(<int64_t>job.c.mr, i1 - i), p, last, i - i0, rows, &sums)
            i += job.c.mr
        p = last


cdef uint32_t read_back(const Job *job, int64_t i) noexcept nogil:
    """Sum of the stored outputs of row i, through an address of its own."""
    cdef const char *row = job.out + i * job.n * job.item
    cdef uint32_t word
    if job.n > 1:
        return job.sum_out(row, 1, job.n, job.n)
    if job.item == 1:
        return (<const uint8_t *>row)[0]
    memcpy(&word, row, 4)
    return word


cdef void verify_row(const Job *job, int64_t i, uint32_t acc, uint32_t out, uint32_t row_sum,
                     uint32_t check) noexcept nogil:
    """Compare all that is known of row i, and read its output back."""
    cdef uint32_t stored = read_back(job, i)
    if acc != check:
        sedq_report(job.found, i, SEDQ_BAD_ACCUMULATOR, <int32_t>(acc - check), 0)
    # row sums that the epilogue used for weight zero points: taken again, apart from the pass that made them
    if job.e.w_zp != NULL and job.c.sum_u8(job.a + i * job.k, 1, job.k, job.k) != row_sum:
        sedq_report(job.found, i, SEDQ_BAD_ACCUMULATOR, 0, 0)
    if stored != out:
        sedq_report(job.found, i, SEDQ_BAD_OUTPUT, <int32_t>(stored - out), 0)
    if job.x_sums != NULL and job.x_sums[i] != row_sum:
        sedq_report(job.found, i, SEDQ_BAD_INPUT, <int32_t>(row_sum - job.x_sums[i]), 0)
    if job.y_sums != NULL:
        job.y_sums[i] = out


cdef void verify_mod127(const Job *job, int64_t i, int64_t wide, int64_t encoded) noexcept nogil:
    """The paper's check of row i: sum_j C_ij = C_iN modulo 127."""
    cdef int64_t residual = ((wide - encoded) % 127 + 127) % 127
    if residual:
        sedq_report(job.found, i, SEDQ_BAD_ACCUMULATOR, residual, 0)


cdef int64_t run_rows(const Job *job, int64_t i0, int64_t i1) noexcept nogil:
    """All columns of rows i0 .. i1 (at most MAX_MC); the number of rows verified."""
    cdef Rows rows
    cdef uint32_t acc[MAX_MC]
    cdef uint32_t out[MAX_MC]
    cdef int64_t i, verified = 0
    sum_rows(job, i0, i1, &rows)
    multiply(job, i0, i1, 0, job.panels, &rows)
    if not job.check:
        return i1 - i0
    if job.check == MOD127:
        for i in range(i1 - i0):
            verify_mod127(job, i0 + i, rows.wide[i], rows.encoded[i])
        return i1 - i0
    job.c.reduce(i1 - i0, rows.acc, acc)
    job.c.reduce(i1 - i0, rows.out, out)
    for i in range(i0, i1):
        verify_row(job, i, acc[i - i0], out[i - i0], rows.sum[i - i0], rows.check[i - i0])
        verified += 1
    return verified


cdef void run_panels(const Job *job, int64_t p0, int64_t p1, const Rows *all_rows, uint32_t *acc, uint32_t *out,
                     int64_t *wide) noexcept nogil:
    """Panels p0 .. p1 of all rows (at most MAX_MC), and this part's sums of each row."""
    cdef Rows rows
    cdef int64_t i
    for i in range(job.m):
        rows.sum[i] = all_rows.sum[i]
    multiply(job, 0, job.m, p0, p1, &rows)
    if job.check == MOD127:
        for i in range(job.m):  # only their difference counts, and one part has the encoded column
            wide[i] = rows.wide[i] - rows.encoded[i]
    elif job.check:
        job.c.reduce(job.m, rows.acc, acc)
        job.c.reduce(job.m, rows.out, out)


cdef int64_t split_rows(const Job *job, int threads) noexcept nogil:
    cdef int64_t most = min(job.c.mc, <int64_t>MAX_MC)
    # as many parts for each thread, and whole tiles
    cdef int64_t parts = round_up((job.m + most - 1) // most, threads)
    cdef int64_t chunk = min(most, round_up((job.m + parts - 1) // parts, job.c.mr))
    cdef int64_t tasks = (job.m + chunk - 1) // chunk
    cdef int64_t t, verified = 0
    if threads == 1:
        for t in range(tasks):
            verified += run_rows(job, t * chunk, min(job.m, (t + 1) * chunk))
        return verified
    for t in prange(tasks, num_threads=threads, schedule="dynamic"):
        verified += run_rows(job, t * chunk, min(job.m, (t + 1) * chunk))
    return verified


cdef int64_t split_panels(const Job *job, int threads) noexcept nogil:
    """For few rows: each thread takes a part of the columns, and the parts' row sums are added before they are
    compared."""
    cdef Rows rows
    cdef uint32_t acc[MAX_TASKS][MAX_MC]
    cdef uint32_t out[MAX_TASKS][MAX_MC]
    cdef int64_t wide[MAX_TASKS][MAX_MC]
    cdef int64_t wide_total
    cdef int64_t t, i, tasks = min(<int64_t>threads, <int64_t>MAX_TASKS), verified = 0
    cdef uint32_t acc_total, out_total
    sum_rows(job, 0, job.m, &rows)
    for t in prange(tasks, num_threads=threads, schedule="static", chunksize=1):
        run_panels(job, t * job.panels // tasks, (t + 1) * job.panels // tasks, &rows, acc[t], out[t],
                   wide[t])
    if not job.check:
        return job.m
    for i in range(job.m):
        acc_total = out_total = 0
        wide_total = 0
        for t in range(tasks):
            acc_total += acc[t][i]
            out_total += out[t][i]
            wide_total += wide[t][i]
        if job.check == MOD127:
            verify_mod127(job, i, wide_total, 0)
        else:
            verify_row(job, i, acc_total, out_total, rows.sum[i], rows.check[i])
        verified += 1
    return verified


cdef int64_t run(const Job *job, int threads) noexcept nogil:
    if threads > 1 and job.m <= MAX_MC and job.m < 24 * threads and job.panels >= 2 * threads:
        return split_panels(job, threads)
    return split_rows(job, threads)


cdef bint is_astray(const Job *job, PackedB packed, const uint8_t[:, ::1] x, const void *out) noexcept:
    """Whether the job isn't of the arrays that were given: kernel and checks would follow the same wrong pointer."""
    return (job.m != x_length(x) or job.k != x_width(x) or job.n != packed.n or <const void *>job.a != x_start(x)
            or <const void *>job.out != out)


def linear(Context context, PackedB packed, Epilogue epilogue, const uint8_t[:, ::1] x, out, int check,
           int num_threads, const uint32_t[::1] x_sums=None, uint32_t[::1] y_sums=None):
    """Multiply x (M, K) with packed weights into out (M, N); check is one of the CHECK_* below.

    x_sums (M,) are the sums of the rows of x that its writer took, to be compared; y_sums (M,) receives those of the
    output. Returns None when every check agreed, else a list of (row, kind, residual, limit), at most 64 entries and
    never empty.
    """
    cdef Job job
    cdef sedq_findings found
    cdef int64_t verified, rows, columns
    cdef int threads
    cdef const void *out_start
    cdef int32_t[:, ::1] out_i32
    cdef uint8_t[:, ::1] out_u8
    cdef float[:, ::1] out_f32
    job.c, job.m, job.n, job.k = &context.c, x.shape[0], packed.n, packed.k
    if epilogue.kind == OUT_U8:
        out_u8 = out
        rows, columns = out_u8.shape[0], out_u8.shape[1]
    elif epilogue.kind == OUT_F32:
        out_f32 = out
        rows, columns = out_f32.shape[0], out_f32.shape[1]
    else:
        out_i32 = out
        rows, columns = out_i32.shape[0], out_i32.shape[1]
    if x.shape[1] != job.k or rows != job.m or columns != job.n or epilogue.n != job.n:
        raise ValueError(f"shapes do not fit: x {(x.shape[0], x.shape[1])}, weights {(packed.n, packed.k)}, "
                         f"out {(rows, columns)}, epilogue of {epilogue.n} columns")
    if (x_sums is not None and x_sums.shape[0] != job.m) or (y_sums is not None and y_sums.shape[0] != job.m):
        raise ValueError(f"x_sums and y_sums: expected {job.m} elements")
    if job.m == 0:
        return None
    if epilogue.kind == OUT_U8:
        job.out, job.item, job.store, job.sum_out = <char *>&out_u8[0, 0], 1, job.c.store_u8, job.c.sum_u8
    elif epilogue.kind == OUT_F32:
        job.out, job.item, job.store, job.sum_out = <char *>&out_f32[0, 0], 4, job.c.store_f32, job.c.sum_words
    else:
        job.out, job.item, job.store, job.sum_out = <char *>&out_i32[0, 0], 4, job.c.store_i32, job.c.sum_words
    job.a, job.b, job.digit = &x[0, 0], packed.b, packed.digit
    job.columns = packed.n + packed.encoded
    job.panels = (job.columns + SEDQ_NR - 1) // SEDQ_NR
    job.panel_bytes, job.kpad, job.ndigits, job.check = packed.panel_bytes, packed.kpad, packed.ndigits, check
    job.e, job.panel_digest = &epilogue.e, epilogue.panel_digest
    job.x_sums = NULL if x_sums is None else &x_sums[0]
    job.y_sums = NULL if y_sums is None else &y_sums[0]
    job.found = &found
    found.count = 0
    threads = threads_for(num_threads, job.n * job.k // 40 + job.m * job.n * job.k // 200)
    with nogil:
        verified = run(&job, threads)
    if check:
        out_start = (u8_start(out_u8) if epilogue.kind == OUT_U8 else
                     f32_start(out_f32) if epilogue.kind == OUT_F32 else i32_start(out_i32))
        if verified != job.m or is_astray(&job, packed, x, out_start):
            sedq_report(&found, -1, SEDQ_BAD_COUNT, verified - job.m, 0)
    return findings_list(&found) if found.count else None
