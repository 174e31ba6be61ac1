"""A bag of many rows is pooled in parts: how outputs and sums of the bag are made of those of its parts."""

from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memcpy

from sedq._core._dispatch cimport sedq_bag_sums
from sedq._core._embedding cimport Job


cdef inline void add_parts(const Job *job, int64_t parts, float divisor, float *out, sedq_bag_sums *s) noexcept nogil:
    """Outputs and sums of a bag from those of its parts, in order."""
    cdef int64_t j, p, dim = job.t.dim
    cdef uint32_t bits
    cdef float y
    cdef double pooled = 0
    s.codes = s.params = s.rows = s.weights = s.out_bits = 0
    s.reference = s.magnitude = 0
    for p in range(parts):
        # a difference of 64 bits that isn't 0 must not cancel with another part's
        s.codes |= job.part_sums[p].codes
        s.params |= job.part_sums[p].params
        s.rows += job.part_sums[p].rows
        s.weights += job.part_sums[p].weights
        s.reference += job.part_sums[p].reference
        s.magnitude += job.part_sums[p].magnitude
    for j in range(dim):
        y = job.parts[j]
        for p in range(1, parts):
            y = y + job.parts[p * dim + j]
        y = y / divisor
        memcpy(&bits, &y, sizeof(bits))
        s.out_bits += bits
        pooled += y
        out[j] = y
    s.pooled = pooled


cdef inline void add_parts_again(const Job *job, int64_t parts, float divisor, float *out) noexcept nogil:
    """The outputs of a bag from those of its parts, from the last column on."""
    cdef int64_t j, p, dim = job.t.dim
    for j in range(dim - 1, -1, -1):
        out[j] = job.parts[j]
        for p in range(1, parts):
            out[j] = out[j] + job.parts[p * dim + j]
        out[j] = out[j] / divisor
