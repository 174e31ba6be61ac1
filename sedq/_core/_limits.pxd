"""What the residual of a bag's sum is compared with; inlined into the loop over bags."""

from libc.math cimport ceil, fabs, fmin, sqrt
from libc.stdint cimport int32_t, int64_t, uint32_t
from libc.string cimport memcpy

from sedq._core._dispatch cimport sedq_table
from sedq._core._embedding cimport BOUND, GROWTH, REFERENCE, ROWS_OF_PART, Job


cdef extern from "float.h" nogil:
    const double UNIT "(FLT_EPSILON / 2)"  # rounding unit of float32
    const double SMALLEST "FLT_MIN"        # what flushing to zero may lose
    const double LARGEST "3.4e38"


cdef extern from "kernels/rows.h" nogil:
    ctypedef struct sedq_params:
        float scale, bias
    sedq_params sedq_row_params(const sedq_table *t, int64_t row)
    uint32_t sedq_word(const sedq_table *t, int w, int64_t row)


cdef inline double chain_of(double n) noexcept nogil:
    """The most additions that a row of a bag of n goes through: those of its part, and of the parts."""
    return n if n <= ROWS_OF_PART else ROWS_OF_PART + ceil(n / ROWS_OF_PART)


cdef inline double underflow(double n, double dim) noexcept nogil:
    return dim * (257 * n + 4) * SMALLEST


cdef inline double rounding_bound(double n, double dim, double magnitude) noexcept nogil:
    """No residual of a bag of n rows without a fault exceeds this.

    Each output is a chain of fused multiply-adds on products w * scale rounded once, plus a chain of biases, one addition,
    one division for the mean: gamma_(chain + 4). Instead of the products, the precomputed sum of a half or float row is
    rounded once. The float64 sums of both sides add less than one more unit. Underflow, flushing to zero included, loses at
    most 2^-126 per operation, in w * scale times a code.
    """
    cdef double steps = (chain_of(n) + 5) * UNIT
    return steps / (1 - steps) * magnitude + underflow(n, dim)


cdef inline double growth_limit(const Job *job, double n, double magnitude) noexcept nogil:
    """A calibrated limit: what grows with the bag as rounding errors do, and never more than they can."""
    cdef double bound = rounding_bound(n, job.t.dim, magnitude)
    cdef const double *g = job.growth
    cdef double scale, chain = chain_of(n)
    if n < 1:
        return bound
    scale = UNIT * sqrt(chain * (g[0] * chain + g[1]) + g[2] + (g[3] + g[4] / chain) / chain)
    return fmin(job.limit_value * scale * magnitude + underflow(n, job.t.dim), bound)


cdef inline double limit_of(const Job *job, double n, double reference, double magnitude) noexcept nogil:
    """The most that the residual of a bag of n rows may be, by the threshold that the call was given."""
    if job.limit == BOUND:
        return rounding_bound(n, job.t.dim, magnitude)
    if job.limit == REFERENCE:
        return job.limit_value * fabs(reference)
    if job.limit == GROWTH:
        return growth_limit(job, n, magnitude)
    return job.limit_value * magnitude


cdef inline bint may_overflow(const Job *job, int64_t b) noexcept nogil:
    """Whether outputs of bag b may overflow float32 without a fault; asked only when something is wrong already."""
    cdef double largest = 0, w, value, most = (1 << min(job.t.bits, 8)) - 1
    cdef sedq_params params
    cdef uint32_t bits
    cdef float magnitude
    cdef int64_t i, index
    for i in range(job.offsets[b], job.offsets[b + 1]):
        index = (<const int32_t *>job.indices)[i] if job.index_bytes == 4 else (<const int64_t *>job.indices)[i]
        if job.t.bits > 8:
            bits = sedq_word(job.t, 1, index)
            memcpy(&magnitude, &bits, sizeof(magnitude))
            value = magnitude
        else:
            params = sedq_row_params(job.t, index)
            value = most * fabs(<double>params.scale) + fabs(<double>params.bias)
        w = job.weights[i] if job.weights != NULL else 1
        largest += fabs(w) * value
    return not largest <= LARGEST
