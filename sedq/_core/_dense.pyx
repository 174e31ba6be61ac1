"""The float operators between the quantised ones: quantisation of rows, and the dot interaction.

Both are small, so both are computed twice, the second time in other lanes and by other instructions: a fault that sticks to
a lane or an instruction doesn't repeat itself. The codes as stored are compared with what the second computation says they
must be. What is read is compared with the sums that its writer took, and what is written is summed for its reader, and read
back in the end.

::

    x of a request -> first vector, dot products -> quantize ---------------------------> codes
         |                                                                                  |
         '-> lanes rotated by one -> the same, factors and lanes having changed places -> same_codes
"""

from cython.parallel cimport prange
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memcpy

import numpy as np

from sedq._core._dispatch cimport (
    SEDQ_BAD_COUNT, SEDQ_BAD_INPUT, SEDQ_BAD_OUTPUT, SEDQ_BAD_REPEAT, Context, findings_list, sedq_context, sedq_findings,
    sedq_report, sedq_rotate_lanes, threads_for)


cdef extern from "views.h":
    const void *x_start "SEDQ_VIEW_START"(const float[:, :, ::1])
    const void *out_start "SEDQ_VIEW_START"(uint8_t[:, ::1])
    int64_t x_length "SEDQ_VIEW_LENGTH"(const float[:, :, ::1])
    int64_t x_width "SEDQ_VIEW_WIDTH"(const float[:, :, ::1])
    int64_t out_width "SEDQ_VIEW_WIDTH"(uint8_t[:, ::1])


cdef struct Job:
    const sedq_context *c
    const float *x
    int64_t rows, features, dim, width   # a request is features x dim, its output has `width` bytes
    float inverse_scale
    int32_t zero_point
    uint8_t *out
    int check
    const uint32_t *x_sums               # rows x features
    uint32_t *y_sums
    float *values                        # per task `room` floats: what is quantised, twice, and a copy of a request
    int64_t room
    sedq_findings *found
    int64_t nan_row


cdef inline int64_t padded(int64_t dim) noexcept nogil:
    """Elements of whole blocks of 16."""
    return (dim + 15) // 16 * 16


cdef void check_inputs(const Job *job, int64_t i) noexcept nogil:
    cdef int64_t f, n = job.features * job.dim
    cdef uint32_t got, expected = 0
    if job.x_sums == NULL:
        return
    # Modulo 2^32: each word and each of the writers' sums is counted once, so that no change of one is a multiple of 2^32.
    for f in range(job.features):
        expected += job.x_sums[i * job.features + f]
    got = job.c.sum_words(job.x + i * n, 1, n, n)
    if got != expected:
        sedq_report(job.found, i, SEDQ_BAD_INPUT, <int32_t>(got - expected), 0)


cdef const float *interact(const Job *job, int64_t i, float *values) noexcept nogil:
    """[first vector, pairwise dot products] of request i; of one vector, just that."""
    cdef const float *t = job.x + i * job.features * job.dim
    if job.features == 1:
        return t
    memcpy(values, t, job.dim * sizeof(float))
    job.c.dots(t, job.features, job.dim, 0, values + job.dim)
    return values


cdef const float *interact_again(const Job *job, int64_t i, float *values) noexcept nogil:
    """The same in other lanes, equal but for signs of zeros, which codes don't have."""
    cdef const float *t = job.x + i * job.features * job.dim
    cdef float *again = values + job.width
    cdef float *rotated = again + job.width
    if job.features == 1:
        return t
    memcpy(again, t, job.dim * sizeof(float))
    sedq_rotate_lanes(t, job.features, job.dim, rotated)
    job.c.dots(rotated, job.features, padded(job.dim), 1, again + job.dim)
    return again


cdef int run_row(Job *job, int64_t i, float *values) noexcept nogil:
    """Request i; 1 if a value is NaN."""
    cdef uint8_t *out = job.out + i * job.width
    cdef uint32_t total
    cdef int nan, again
    nan = job.c.quantize(interact(job, i, values), job.width, job.inverse_scale, job.zero_point, out)
    if not job.check:
        return nan
    check_inputs(job, i)
    again = job.c.same_codes(interact_again(job, i, values), job.width, job.inverse_scale, job.zero_point, out, &total)
    if again != 2 * nan:
        sedq_report(job.found, i, SEDQ_BAD_REPEAT, 0, 0)
    if job.y_sums != NULL:
        job.y_sums[i] = total
    return nan


cdef int64_t run_rows(Job *job, int64_t task, int64_t i0, int64_t i1) noexcept nogil:
    cdef int64_t i, done = 0
    for i in range(i0, i1):
        if run_row(job, i, job.values + task * job.room):
            job.nan_row = i
        done += 1
    return done


cdef void read_back(const Job *job) noexcept nogil:
    """Compare what is stored, in the end, with what the second computation stored: a store may have hit an earlier row."""
    cdef int64_t i
    cdef uint32_t stored
    for i in range(job.rows if job.y_sums != NULL else 0):
        stored = job.c.sum_u8(job.out + i * job.width, 1, job.width, job.width)
        if stored != job.y_sums[i]:
            sedq_report(job.found, i, SEDQ_BAD_OUTPUT, <int32_t>(stored - job.y_sums[i]), 0)


cdef float inverse(scale) except? -1:
    return <float>1 / <float>scale


cdef bint is_astray(const Job *job, const float[:, :, ::1] x, uint8_t[:, ::1] out, scale, zero_point) except -1:
    """Whether the job isn't of what was given: both computations would follow the same wrong pointer or number."""
    return (job.inverse_scale != inverse(scale) or job.zero_point != <int32_t>zero_point
            or <const void *>job.x != x_start(x) or <const void *>job.out != out_start(out) or job.rows != x_length(x)
            or job.features != x_width(x) or job.width != out_width(out)
            or job.dim != job.width - job.features * (job.features - 1) // 2)


def interact_quantize(Context context, const float[:, :, ::1] x, scale, zero_point, uint8_t[:, ::1] out,
                      bint check, int num_threads, const uint32_t[:, ::1] x_sums=None, uint32_t[::1] y_sums=None):
    """Quantise [x_0, (x_i . x_j for j < i)] of each request x (B, F, d) into out (B, d + F (F - 1) / 2) uint8.

    With one feature this quantises rows. x_sums (B, F) are the sums of the bit patterns that the writers of x took;
    y_sums (B,) receives the sums of the output's bytes. Returns None or a list of (request, kind, residual, limit).
    ValueError for NaN, if checked.
    """
    cdef Job job
    cdef sedq_findings found
    cdef float[::1] values
    cdef int threads
    cdef int64_t t, tasks, done = 0
    job.c, job.rows, job.features, job.dim = &context.c, x.shape[0], x.shape[1], x.shape[2]
    job.width = job.dim + job.features * (job.features - 1) // 2
    if job.features < 1 or job.dim < 1 or out.shape[0] != job.rows or out.shape[1] != job.width:
        raise ValueError(f"shapes do not fit: x {(x.shape[0], x.shape[1], x.shape[2])}, "
                         f"out {(out.shape[0], out.shape[1])}, expected out {(job.rows, job.width)}")
    if x_sums is not None and (x_sums.shape[0] != job.rows or x_sums.shape[1] != job.features):
        raise ValueError(f"x_sums: expected shape {(job.rows, job.features)}")
    if y_sums is not None and y_sums.shape[0] != job.rows:
        raise ValueError(f"y_sums: expected shape {(job.rows,)}")
    if job.rows == 0:
        return None
    job.x, job.out, job.check, job.found, job.nan_row = &x[0, 0, 0], &out[0, 0], check, &found, -1
    job.inverse_scale, job.zero_point = inverse(scale), zero_point
    job.x_sums = NULL if x_sums is None else &x_sums[0, 0]
    job.y_sums = NULL if y_sums is None else &y_sums[0]
    found.count = 0
    threads = threads_for(num_threads, job.rows * job.features * job.features * job.dim // 8)
    tasks = threads
    job.room = 0 if job.features == 1 else 2 * job.width + job.features * padded(job.dim)
    values = np.empty(tasks * max(1, job.room), dtype=np.float32)
    job.values = &values[0]
    if tasks == 1:
        with nogil:
            done = run_rows(&job, 0, 0, job.rows)
    else:
        for t in prange(tasks, num_threads=threads, schedule="static", chunksize=1, nogil=True):
            done += run_rows(&job, t, t * job.rows // tasks, (t + 1) * job.rows // tasks)
    if check and (done != job.rows or is_astray(&job, x, out, scale, zero_point)):
        sedq_report(&found, -1, SEDQ_BAD_COUNT, done - job.rows, 0)
    if check:
        read_back(&job)
    if found.count:
        return findings_list(&found)
    if check and job.nan_row >= 0:  # no fault made it, so the input did
        raise ValueError(f"x: got values that give NaN in row {job.nan_row}, expected numbers")
    return None


def quantize_rows(Context context, const float[:, ::1] x, scale, zero_point, uint8_t[:, ::1] out, bint check,
                  int num_threads, uint32_t[::1] y_sums=None):
    """Quantise x (M, K) into out (M, K): clamp(zero_point + rint(x * (1 / scale)), 0, 255)."""
    return interact_quantize(context, np.asarray(x)[:, None, :], scale, zero_point, out, check, num_threads, None,
                             y_sums)
