"""EmbeddingBag over 8-bit rows that carry their digests.

::

    indices, offsets        rows: codes | scale | bias | digest
        |                                |
        |  split the bags over threads   |
        |    chunk of 64 bags            |
        |      bag: for each row, codes -> float -> fused multiply-add into accumulators,
        |           and sums of what was read: codes, bits of scale and bias, row numbers, digests
        |      digest:    sums of what was read = sums of the digests       (integers, exact)
        |      threshold: sum of the outputs ~ sum of scale * code_sum + dim * bias   (within rounding)
        |      the chunk's outputs are read back
        v
    out (B, dim) float32, and what was found wrong
"""

from cython.parallel cimport prange
from libc.math cimport fabs, fmin, isfinite, sqrt
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

import numpy as np

from sedq._core._dispatch cimport (
    SEDQ_BAD_COUNT, SEDQ_BAD_DIGEST, SEDQ_BAD_OUTPUT, SEDQ_BAD_REPEAT, SEDQ_BAD_SUM, Context, findings_list,
    sedq_bag_sums, sedq_context, sedq_findings, sedq_report, sedq_table, threads_for)

# The largest dimension whose code sum fits the 24 bits that a digest has for it.
MAX_DIM = 65_793

# The most rows of a bag: integer sums stay below 2^64, and the rounding bound finite.
MAX_ROWS = 2**23

# What a call checks, as bits.
CHECK_DIGEST = 1
CHECK_SUM = 2
CHECK_TWICE = 4

# What the residual of the pooled sum is compared with.
LIMIT_BOUND = 0      # the rounding bound
LIMIT_REFERENCE = 1  # value * |reference|
LIMIT_MAGNITUDE = 2  # value * magnitude
LIMIT_GROWTH = 3     # value * magnitude * 2^-24 sqrt(g(n)) for a bag of n rows, at most the rounding bound

# Coefficients of g(n) = g0 n^2 + g1 n + g2 + g3 / n + g4 / n^2.
GROWTH_TERMS = 5

# Not a detection: sums this large may overflow float32 in a run without a fault.
FOUND_OVERFLOW = 100

cdef enum:
    CHUNK = 64            # bags whose outputs are read back together
    DIGEST = 1
    SUM = 2
    TWICE = 4
    BOUND = 0
    REFERENCE = 1
    GROWTH = 3
    OVERFLOW = 100

cdef double UNIT = 2.0 ** -24       # rounding unit of float32
cdef double SMALLEST = 2.0 ** -126  # what flushing to zero may lose
cdef double LARGEST = 3.4e38


cdef class Table:
    """Rows of codes, float32 scale, float32 bias and digest; see kernels/context.h."""

    cdef sedq_table t
    cdef readonly object rows
    cdef readonly Py_ssize_t dim

    def __init__(self, const uint8_t[:, ::1] rows, Py_ssize_t dim):
        if dim < 1 or dim > MAX_DIM or rows.shape[1] != row_bytes(dim):
            raise ValueError(f"rows: got {rows.shape[1]} bytes each, expected {row_bytes(dim)} for dim {dim}, "
                             f"at most {MAX_DIM}")
        self.rows, self.dim = rows.base, dim
        self.t.rows = &rows[0, 0] if rows.shape[0] else NULL
        self.t.num_rows, self.t.stride, self.t.dim = rows.shape[0], rows.shape[1], dim
        self.t.codes = (dim + 7) // 8 * 8


def row_bytes(Py_ssize_t dim):
    """Bytes of a row of `dim` codes: the codes padded to a multiple of 8, scale, bias and digest."""
    return (dim + 7) // 8 * 8 + 16


cdef uint64_t digest_of(const uint8_t *row, int64_t codes, int64_t number) noexcept nogil:
    """sum of codes << 40 | (bits(scale) + bits(bias) + row number): no field can overflow into another."""
    cdef uint64_t total = 0
    cdef uint32_t scale, bias
    cdef int64_t j
    for j in range(codes):
        total += row[j]
    memcpy(&scale, row + codes, 4)
    memcpy(&bias, row + codes + 4, 4)
    return (total << 40) + scale + bias + <uint64_t>number


def write_digests(uint8_t[:, ::1] rows, Py_ssize_t dim, int64_t first=0):
    """Fill in the digests of rows, the first of which has the number `first`."""
    cdef int64_t i, codes = (dim + 7) // 8 * 8
    cdef uint64_t digest
    if rows.shape[1] != row_bytes(dim):
        raise ValueError(f"rows: got {rows.shape[1]} bytes each, expected {row_bytes(dim)} for dim {dim}")
    with nogil:
        for i in range(rows.shape[0]):
            digest = digest_of(&rows[i, 0], codes, first + i)
            memcpy(&rows[i, codes + 8], &digest, 8)


def bad_rows(Table table, const int64_t[::1] numbers):
    """Those of the rows `numbers` that don't fit their digests."""
    cdef int64_t i, codes = table.t.codes
    cdef const uint8_t *row
    cdef uint64_t stored
    cdef list bad = []
    for i in range(numbers.shape[0]):
        if numbers[i] < 0 or numbers[i] >= table.t.num_rows:
            raise IndexError(f"row {numbers[i]} of {table.t.num_rows}")
        row = table.t.rows + numbers[i] * table.t.stride
        memcpy(&stored, row + codes + 8, 8)
        if digest_of(row, codes, numbers[i]) != stored:
            bad.append(numbers[i])
    return bad


cdef struct Job:
    const sedq_context *c
    const sedq_table *t
    const char *indices
    int index_bytes
    const int64_t *offsets
    const float *weights
    int64_t bags, total
    float *out
    int64_t out_stride
    uint32_t *y_sums
    float *scratch            # dim floats per chunk, for the second accumulation
    int check, limit, mean
    double limit_value
    double growth[5]
    double *stats             # residual, reference and magnitude of each bag, or NULL
    sedq_findings *found


cdef double rounding_bound(double n, double dim, double magnitude) noexcept nogil:
    """No residual of a bag of n rows without a fault exceeds this.

    Each output is a chain of n fused multiply-adds on products w * scale rounded once, plus a bias sum of n steps,
    one addition, one division for the mean: gamma_(n + 4). The float64 sums of both sides add less than one more unit.
    Underflow, flushing to zero included, loses at most 2^-126 per operation, in w * scale times a code.
    """
    cdef double steps = (n + 5) * UNIT  # at most 1/2, as bags are limited
    return steps / (1 - steps) * magnitude + underflow(n, dim)


cdef double underflow(double n, double dim) noexcept nogil:
    return dim * (257 * n + 4) * SMALLEST


cdef double growth_limit(const Job *job, double n, double magnitude) noexcept nogil:
    """A calibrated limit: what grows with the bag as rounding errors do, and never more than they can."""
    cdef double bound = rounding_bound(n, job.t.dim, magnitude)
    cdef const double *g = job.growth
    cdef double scale
    if n < 1:
        return bound
    scale = UNIT * sqrt(n * (g[0] * n + g[1]) + g[2] + (g[3] + g[4] / n) / n)
    return fmin(job.limit_value * scale * magnitude + underflow(n, job.t.dim), bound)


cdef bint may_overflow(const Job *job, int64_t b) noexcept nogil:
    """Whether outputs of bag b may overflow float32 without a fault; asked only when something is wrong already."""
    cdef double largest = 0, w
    cdef float params[2]
    cdef int64_t i, index
    for i in range(job.offsets[b], job.offsets[b + 1]):
        index = (<const int32_t *>job.indices)[i] if job.index_bytes == 4 else (<const int64_t *>job.indices)[i]
        memcpy(params, job.t.rows + index * job.t.stride + job.t.codes, sizeof(params))
        w = job.weights[i] if job.weights != NULL else 1
        largest += fabs(w) * (255 * fabs(<double>params[0]) + fabs(<double>params[1]))
    return not largest <= LARGEST


cdef void verify_sum(const Job *job, int64_t b, int64_t n, const sedq_bag_sums *s) noexcept nogil:
    cdef double limit
    if job.limit == BOUND:
        limit = rounding_bound(n, job.t.dim, s.magnitude)
    elif job.limit == REFERENCE:
        limit = job.limit_value * fabs(s.reference)
    elif job.limit == GROWTH:
        limit = growth_limit(job, n, s.magnitude)
    else:
        limit = job.limit_value * s.magnitude
    if fabs(s.residual) <= limit:
        return
    if isfinite(s.residual) or not may_overflow(job, b):
        sedq_report(job.found, b, SEDQ_BAD_SUM, s.residual, limit)
    else:
        sedq_report(job.found, b, OVERFLOW, s.residual, limit)


cdef void verify_bag(const Job *job, int64_t b, int64_t n, const sedq_bag_sums *s) noexcept nogil:
    if job.check & DIGEST:
        if s.codes or s.params:
            # a bad row explains whatever the sum says
            sedq_report(job.found, b, SEDQ_BAD_DIGEST, <double>(<int64_t>(s.codes if s.codes else s.params)), 0)
            return
    if job.check & SUM:
        verify_sum(job, b, n, s)


cdef void report_outputs(const Job *job, int64_t b0, int64_t b1, const uint32_t *bits) noexcept nogil:
    """The chunk's outputs as read back differ from what was stored: say in which bags."""
    cdef int64_t b
    for b in range(b0, b1):
        if job.c.sum_words(job.out + b * job.out_stride, 1, job.t.dim, job.t.dim) != bits[b - b0]:
            sedq_report(job.found, b, SEDQ_BAD_OUTPUT, 0, 0)


cdef int64_t run_chunk(const Job *job, int64_t chunk, int64_t b0, int64_t b1) noexcept nogil:
    """Bags b0 .. b1, at most CHUNK; the number verified."""
    cdef sedq_bag_sums sums, again
    cdef uint32_t bits[CHUNK]
    cdef uint32_t total = 0
    cdef int64_t b, begin, end, verified = 0, dim = job.t.dim
    cdef float divisor
    cdef float *out
    for b in range(b0, b1):
        begin, end = job.offsets[b], job.offsets[b + 1]
        out = job.out + b * job.out_stride
        divisor = <float>(end - begin) if job.mean and end > begin else 1
        job.c.bag(job.t, job.indices, job.index_bytes, job.weights, begin, end, job.total, divisor, out, job.check,
                  &sums)
        if job.check:
            bits[b - b0] = sums.out_bits
            if job.stats != NULL:
                job.stats[3 * b], job.stats[3 * b + 1] = sums.residual, sums.reference
                job.stats[3 * b + 2] = sums.magnitude
            verify_bag(job, b, end - begin, &sums)
            verified += 1
        if job.check & TWICE:
            job.c.bag(job.t, job.indices, job.index_bytes, job.weights, begin, end, job.total, divisor,
                      job.scratch + chunk * dim, 0, &again)
            if memcmp(out, job.scratch + chunk * dim, dim * sizeof(float)):
                sedq_report(job.found, b, SEDQ_BAD_REPEAT, 0, 0)
    if not job.check:
        return b1 - b0
    for b in range(b0, b1):
        total += bits[b - b0]
        if job.y_sums != NULL:
            job.y_sums[b] = bits[b - b0]
    if job.c.sum_words(job.out + b0 * job.out_stride, b1 - b0, dim, job.out_stride) != total:
        report_outputs(job, b0, b1, bits)
    return verified


cdef int64_t run(const Job *job, int64_t chunk, int threads) noexcept nogil:
    cdef int64_t c, verified = 0, chunks = (job.bags + chunk - 1) // chunk
    if threads == 1:
        for c in range(chunks):
            verified += run_chunk(job, c, c * chunk, min(job.bags, (c + 1) * chunk))
        return verified
    for c in prange(chunks, num_threads=threads, schedule="dynamic"):
        verified += run_chunk(job, c, c * chunk, min(job.bags, (c + 1) * chunk))
    return verified


cdef check_offsets(const int64_t[::1] offsets, int64_t total):
    """ValueError unless offsets start at 0, don't decrease, and end at `total`."""
    cdef int64_t b, last = offsets.shape[0] - 1
    if offsets[0] != 0:
        raise ValueError(f"offsets: got {offsets[0]} first, expected 0")
    for b in range(last):
        if offsets[b + 1] < offsets[b]:
            raise ValueError(f"offsets: got {offsets[b + 1]} after {offsets[b]} at position {b + 1}, expected offsets "
                             "that do not decrease")
    if offsets[last] != total:
        raise ValueError(f"offsets: got {offsets[last]} at the end, expected the number of indices, {total}")
    if total > MAX_ROWS:
        for b in range(last):
            if offsets[b + 1] - offsets[b] > MAX_ROWS:
                raise ValueError(f"offsets: got a bag of {offsets[b + 1] - offsets[b]} rows at position {b}, expected at "
                                 f"most {MAX_ROWS}")


def pool(Context context, Table table, indices, const int64_t[::1] offsets, const float[::1] weights, float[:, :] out,
         int check, int limit, double limit_value, bint mean, int num_threads, uint32_t[::1] y_sums=None,
         double[:, ::1] stats=None, growth=(0, 0, 0, 0, 0)):
    """Pool bags indices[offsets[b] : offsets[b + 1]] into out (B, dim), whose rows are contiguous.

    offsets (B + 1,) include the last one; check is a sum of CHECK_*; limit is LIMIT_*, growth the coefficients of
    LIMIT_GROWTH. stats (B, 3) takes residual, reference and magnitude of each bag, if check isn't 0. Returns None when
    every check agreed, else a list of (bag, kind, residual, limit). IndexError and ValueError before anything is written.
    """
    cdef Job job
    cdef sedq_findings found
    cdef const int64_t[::1] wide
    cdef const int32_t[::1] narrow
    cdef float[::1] scratch
    cdef int64_t bad, verified, chunk
    cdef int threads
    job.c, job.t, job.bags = &context.c, &table.t, offsets.shape[0] - 1
    job.total = indices.shape[0]
    if job.bags < 0 or out.shape[0] != job.bags or out.shape[1] != table.dim or out.strides[1] != sizeof(float):
        raise ValueError(f"out: got shape {(out.shape[0], out.shape[1])}, expected {(job.bags, table.dim)} with "
                         "contiguous rows")
    if weights is not None and weights.shape[0] != job.total:
        raise ValueError(f"per_sample_weights: got {weights.shape[0]}, expected one per index, {job.total}")
    if y_sums is not None and y_sums.shape[0] != job.bags:
        raise ValueError(f"y_sums: got {y_sums.shape[0]}, expected {job.bags}")
    if stats is not None and (stats.shape[0] != job.bags or stats.shape[1] != 3):
        raise ValueError(f"stats: got shape {(stats.shape[0], stats.shape[1])}, expected {(job.bags, 3)}")
    check_offsets(offsets, job.total)
    job.indices, job.index_bytes = NULL, 8
    if job.total:
        if indices.dtype == np.int32:
            narrow = indices
            job.indices, job.index_bytes = <const char *>&narrow[0], 4
        else:
            wide = indices
            job.indices = <const char *>&wide[0]
        bad = job.c.range(job.indices, job.index_bytes, job.total, job.t.num_rows)
        if bad >= 0:
            raise IndexError(f"indices: got {indices[bad]} at position {bad}, expected 0 to {job.t.num_rows - 1}")
    if job.bags == 0:
        return None
    job.offsets, job.out, job.out_stride = &offsets[0], &out[0, 0], out.strides[0] // <int64_t>sizeof(float)
    job.weights = &weights[0] if weights is not None and job.total else NULL
    job.y_sums = NULL if y_sums is None else &y_sums[0]
    job.stats = NULL if stats is None else &stats[0, 0]
    job.growth[0], job.growth[1], job.growth[2], job.growth[3], job.growth[4] = growth
    job.check, job.limit, job.limit_value, job.mean, job.found = check, limit, limit_value, mean, &found
    found.count = 0
    threads = threads_for(num_threads, job.total * (4 + table.dim // 16))
    chunk = max(<int64_t>1, min(<int64_t>CHUNK, job.bags // (4 * threads)))
    job.scratch = NULL
    if check & TWICE:
        scratch = np.empty((job.bags + chunk - 1) // chunk * table.dim, dtype=np.float32)
        job.scratch = &scratch[0]
    with nogil:
        verified = run(&job, chunk, threads)
    if verified != job.bags:
        sedq_report(&found, -1, SEDQ_BAD_COUNT, verified - job.bags, 0)
    return findings_list(&found) if found.count else None
