from libc.stdint cimport int64_t, uint32_t

from sedq._core._dispatch cimport sedq_bag_fn, sedq_bag_sums, sedq_context, sedq_findings, sedq_table

cdef enum:
    CHUNK = 64            # bags whose outputs are read back together
    ROWS_OF_PART = 4096
    DIGEST = 1
    SUM = 2
    TWICE = 4
    BOUND = 0
    REFERENCE = 1
    GROWTH = 3


cdef struct Job:
    const sedq_context *c
    const sedq_table *t
    sedq_bag_fn bag
    const char *indices
    int index_bytes
    const int64_t *offsets
    const int64_t *lengths    # by which the mean divides; NULL: the lengths of the bags
    const float *weights
    int64_t bags, total
    float *out
    int64_t out_stride
    uint32_t *y_sums
    float *scratch            # dim floats per chunk, for the second accumulation
    float *parts              # dim floats per part of the longest bag, and its sums
    sedq_bag_sums *part_sums
    uint32_t *long_bits       # of the outputs of bags pooled in parts
    int check, limit, mean
    double limit_value
    double growth[5]
    double *stats             # residual, reference and magnitude of each bag, or NULL
    sedq_findings *found

cdef int64_t run_chunk(const Job *job, int64_t chunk, int64_t b0, int64_t b1) noexcept nogil
cdef const char *buffer_start(array) except? NULL
cpdef check_offsets(const int64_t[::1] offsets, int64_t total)
