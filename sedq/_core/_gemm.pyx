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

Sums of accumulators and outputs are modulo 2^32: both sides of a comparison are the same function of the same integers, so
that a run without a fault cannot disagree, even when C itself wraps. Sums of parameters have 64 bits: a word that all panels
load, or a stuck lane, is counted often, and must not cancel.
"""

from cython.parallel cimport prange
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from sedq._core._dispatch cimport (
    SEDQ_BAD_ACCUMULATOR, SEDQ_BAD_COUNT, SEDQ_BAD_EPILOGUE, SEDQ_BAD_INPUT, SEDQ_BAD_OUTPUT, SEDQ_BAD_PARAMETERS,
    SEDQ_CHECK_EXACT, SEDQ_CHECK_FULL, SEDQ_CHECK_OFF, SEDQ_NR, Context, findings_list, sedq_context, sedq_epilogue,
    sedq_findings, sedq_report, sedq_store_fn, sedq_sum_fn, sedq_tile_sums, threads_for)
from sedq._core._packing cimport OUT_F32, OUT_U8, Columns, Epilogue, PackedB, panel_width, round_up


cdef extern from "views.h":
    const void *x_start "SEDQ_VIEW_START"(const uint8_t[:, ::1])
    const void *i32_start "SEDQ_VIEW_START"(int32_t[:, ::1])
    const void *u8_start "SEDQ_VIEW_START"(uint8_t[:, ::1])
    const void *f32_start "SEDQ_VIEW_START"(float[:, ::1])
    int64_t x_length "SEDQ_VIEW_LENGTH"(const uint8_t[:, ::1])
    int64_t x_width "SEDQ_VIEW_WIDTH"(const uint8_t[:, ::1])


CHECK_OFF = SEDQ_CHECK_OFF
CHECK_EXACT = SEDQ_CHECK_EXACT
CHECK_FULL = SEDQ_CHECK_FULL
CHECK_MOD127 = 3

cdef enum:
    MAX_MC = 96      # rows of x that one task holds sums for, on its stack
    MAX_TASKS = 64   # parts that the columns are cut into
    MOD127 = 3       # the paper's scheme, which the kernels know nothing of


cdef struct Job:
    const sedq_context *c
    int64_t m, n, k, columns, panels, panel_bytes, kpad   # columns of packed B: n, or n + 1 if encoded
    const uint8_t *a
    const int8_t *b
    const int8_t *digit
    int ndigits, check
    const sedq_epilogue *e
    const uint64_t *panel_digest
    uint32_t scalar_digest
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
    cdef uint64_t expected = 0, params = 0, scalars = 0
    cdef int lane, check = 0 if job.check == MOD127 else job.check
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
        scalars += 16 * <uint64_t>job.scalar_digest
    if check:
        # In 64 bits nothing wraps: a fault that every panel meets, or a stuck lane, can't cancel.
        for lane in range(8):
            params += sums.params[lane]
        if params != expected or sums.scalars != scalars:
            sedq_report(job.found, i, SEDQ_BAD_PARAMETERS, <double>(<int64_t>(params - expected)), 0)
        if sums.row_sums_differ:
            sedq_report(job.found, i, SEDQ_BAD_PARAMETERS, 0, 0)
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
            sums.scalars = 0
            sums.row_sums = &rows.sum[i - i0]
            sums.row_sums_differ = sums.twice = 0
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
    return (job.m != x_length(x) or job.k != x_width(x) or job.n != packed.w[1].n or <const void *>job.a != x_start(x)
            or <const void *>job.out != out)


cdef void take_operands(Job *job, PackedB packed, const Columns *columns) noexcept:
    """Point the job at weights and column parameters, and at the kernels for the output that these make."""
    job.n, job.k, job.columns = packed.w.n, packed.w.k, packed.w.n + packed.w.encoded
    job.panels = (job.columns + SEDQ_NR - 1) // SEDQ_NR
    job.b, job.panel_bytes = packed.w.b, packed.w.panel_bytes
    job.digit, job.ndigits, job.kpad = packed.w.digit, packed.w.ndigits, packed.w.kpad
    job.e, job.panel_digest, job.scalar_digest = &columns.e, columns.panel_digest, columns.scalar_digest
    if columns.kind == OUT_U8:
        job.item, job.store, job.sum_out = 1, job.c.store_u8, job.c.sum_u8
    elif columns.kind == OUT_F32:
        job.item, job.store, job.sum_out = 4, job.c.store_f32, job.c.sum_words
    else:
        job.item, job.store, job.sum_out = 4, job.c.store_i32, job.c.sum_words


cdef check_shapes(const Job *job, const uint8_t[:, ::1] x, int64_t rows, int64_t columns, int64_t of_epilogue,
                  const uint32_t[::1] x_sums, const uint32_t[::1] y_sums):
    """ValueError unless the output, of rows x columns, and all else are of the shape that x and the weights demand."""
    if x.shape[1] != job.k or rows != job.m or columns != job.n or of_epilogue != job.n:
        raise ValueError(f"shapes do not fit: x {(x.shape[0], x.shape[1])}, weights {(job.n, job.k)}, "
                         f"out {(rows, columns)}, epilogue of {of_epilogue} columns")
    if (x_sums is not None and x_sums.shape[0] != job.m) or (y_sums is not None and y_sums.shape[0] != job.m):
        raise ValueError(f"x_sums and y_sums: expected {job.m} elements")


cdef int restore(PackedB packed, Epilogue epilogue) noexcept:
    """Compare what the loops read of both with its copy: 0 if all agrees, 1 if it was restored, -1 if it can't be."""
    cdef int weights = packed.restore(), columns = epilogue.restore()
    return min(weights, columns) if weights < 0 or columns < 0 else max(weights, columns)


def linear(Context context, PackedB packed, Epilogue epilogue, const uint8_t[:, ::1] x, out, int check,
           int num_threads, const uint32_t[::1] x_sums=None, uint32_t[::1] y_sums=None):
    """Multiply x (M, K) with packed weights into out (M, N); check is one of the CHECK_* below.

    x_sums (M,) are the sums of the rows of x that its writer took, to be compared; y_sums (M,) receives those of the
    output. Returns None when every check agreed, else a list of (row, kind, residual, limit), at most 64 entries and
    never empty.
    """
    cdef Job job
    cdef sedq_findings found
    cdef int64_t verified, rows, width
    cdef int threads, restored = 0
    cdef const void *out_start
    cdef const Columns *columns = epilogue.c
    cdef int32_t[:, ::1] out_i32
    cdef uint8_t[:, ::1] out_u8
    cdef float[:, ::1] out_f32
    job.c, job.m, job.check = &context.c, x.shape[0], check
    found.count = 0
    if check == SEDQ_CHECK_EXACT or check == SEDQ_CHECK_FULL:
        # sizes and pointers that a fault changed would make the loops read elsewhere
        restored = restore(packed, epilogue)
    if restored:
        sedq_report(&found, -1, SEDQ_BAD_PARAMETERS, 0, 0)
    if restored < 0:
        return findings_list(&found)
    take_operands(&job, packed, columns)
    if columns.kind == OUT_U8:
        out_u8 = out
        rows, width = out_u8.shape[0], out_u8.shape[1]
    elif columns.kind == OUT_F32:
        out_f32 = out
        rows, width = out_f32.shape[0], out_f32.shape[1]
    else:
        out_i32 = out
        rows, width = out_i32.shape[0], out_i32.shape[1]
    check_shapes(&job, x, rows, width, columns.n, x_sums, y_sums)
    if job.m == 0:
        return findings_list(&found) if found.count else None
    job.out = (<char *>&out_u8[0, 0] if columns.kind == OUT_U8 else
               <char *>&out_f32[0, 0] if columns.kind == OUT_F32 else <char *>&out_i32[0, 0])
    job.a, job.found = &x[0, 0], &found
    job.x_sums = NULL if x_sums is None else &x_sums[0]
    job.y_sums = NULL if y_sums is None else &y_sums[0]
    threads = threads_for(num_threads, job.n * job.k // 40 + job.m * job.n * job.k // 200)
    with nogil:
        verified = run(&job, threads)
    if check:
        out_start = (u8_start(out_u8) if columns.kind == OUT_U8 else
                     f32_start(out_f32) if columns.kind == OUT_F32 else i32_start(out_i32))
        if verified != job.m or is_astray(&job, packed, x, out_start):
            sedq_report(&found, -1, SEDQ_BAD_COUNT, verified - job.m, 0)
    return findings_list(&found) if found.count else None
