"""EmbeddingBag over quantised or float rows that have digests.

::

    indices, offsets        rows: codes | words (scale, bias, sums) | digest
        |                                |
        |  split the bags over threads; a bag of more than PART rows, over its parts
        |    chunk of 64 bags            |
        |      bag: for each row, codes -> float -> fused multiply-add into accumulators,
        |           and sums of what was read: bytes of codes, words, row numbers, digests
        |      digest:    sums of what was read = sums of the digests       (integers, exact)
        |      threshold: sum of the outputs ~ sum of scale * code_sum + dim * bias   (within rounding)
        |      the chunk's outputs are read back; rows and weights visited = those of the request
        v
    out (B, dim) float32, and what was found wrong
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cython.parallel cimport prange
from libc.math cimport fabs, isfinite
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memcmp

import numpy as np

from sedq._core._dispatch cimport (
    SEDQ_BAD_COUNT, SEDQ_BAD_DIGEST, SEDQ_BAD_OUTPUT, SEDQ_BAD_OVERFLOW, SEDQ_BAD_REPEAT, SEDQ_BAD_SUM, Context,
    findings_list,
    sedq_bag_sums, sedq_findings, sedq_report, threads_for)
from sedq._core._limits cimport limit_of, may_overflow
from sedq._core._parts cimport add_parts, add_parts_again
from sedq._core._rows cimport Table

from sedq._core._rows import MAX_CODE_BYTES, bad_in_range, bad_rows, digests_of, row_bytes  # no-cython-lint


cdef extern from "views.h":
    const void *offsets_start "SEDQ_VIEW_START"(const int64_t[::1])
    const void *weights_start "SEDQ_VIEW_START"(const float[::1])
    const void *out_start "SEDQ_VIEW_START"(float[:, :])
    int64_t offsets_length "SEDQ_VIEW_LENGTH"(const int64_t[::1])
    int64_t out_step "SEDQ_VIEW_STEP"(float[:, :])


# The most rows of a bag: integer sums stay below 2^64, and the rounding bound finite.
MAX_ROWS = 2**23

# A bag of more rows is pooled in parts of so many, which are then added in order: the same on any number of threads.
PART = 4096

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


cdef void verify_sum(const Job *job, int64_t b, int64_t n, const sedq_bag_sums *s) noexcept nogil:
    # a divisor of its own: the outputs were divided by the one that was passed to the kernel
    cdef double divisor = divisor_of(job, b)
    cdef double reference = s.reference / divisor, magnitude = s.magnitude / divisor, residual = s.pooled - reference
    cdef double limit = limit_of(job, n, reference, magnitude)
    if fabs(residual) <= limit and isfinite(magnitude):
        return
    if isfinite(residual) and isfinite(magnitude) or not may_overflow(job, b):
        sedq_report(job.found, b, SEDQ_BAD_SUM, residual, limit)
    else:
        sedq_report(job.found, b, SEDQ_BAD_OVERFLOW, residual, limit)


cdef void verify_bag(const Job *job, int64_t b, int64_t n, const sedq_bag_sums *s) noexcept nogil:
    cdef double divisor
    if job.stats != NULL:
        divisor = divisor_of(job, b)
        job.stats[3 * b], job.stats[3 * b + 1] = s.pooled - s.reference / divisor, s.reference / divisor
        job.stats[3 * b + 2] = s.magnitude / divisor
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


cdef float divisor_of(const Job *job, int64_t b) noexcept nogil:
    cdef int64_t n = job.offsets[b + 1] - job.offsets[b] if job.lengths == NULL else job.lengths[b]
    return <float>n if job.mean and n > 0 else 1


cdef void verify_request(const Job *job, int64_t b0, int64_t b1, uint64_t rows, uint64_t weights) noexcept nogil:
    """Compare what the kernel visited for bags b0 .. b1 with the request, summed here by a loop of its own.

    A wrong begin, end or pointer to indices or weights pools other rows, and the kernel's own sums agree with them.
    """
    cdef int64_t i, begin = job.offsets[b0], end = job.offsets[b1]
    # modulo 2^64, of which no change of one index or weight, counted once, is a multiple
    cdef uint64_t want = end - begin, want_weights = 0
    if job.index_bytes == 4:
        for i in range(begin, end):
            want += <uint64_t>(<const int32_t *>job.indices)[i]
    else:
        for i in range(begin, end):
            want += <uint64_t>(<const int64_t *>job.indices)[i]
    if job.weights != NULL:
        for i in range(begin, end):
            want_weights += (<const uint32_t *>job.weights)[i]
    if rows != want or weights != want_weights:
        sedq_report(job.found, -1, SEDQ_BAD_COUNT, <double>(<int64_t>(rows - want)), 0)


cdef bint is_long(const Job *job, int64_t b) noexcept nogil:
    return job.offsets[b + 1] - job.offsets[b] > ROWS_OF_PART


cdef void pool_part(const Job *job, int64_t b, int64_t part, int check, bint again) noexcept nogil:
    cdef int64_t begin = job.offsets[b] + part * ROWS_OF_PART, end = min(begin + ROWS_OF_PART, job.offsets[b + 1])
    cdef float *out = job.parts + part * job.t.dim
    if again:
        job.c.bag_again(job.t, job.indices, job.index_bytes, job.weights, begin, end, 1, out)
    else:
        job.bag(job.t, job.indices, job.index_bytes, job.weights, begin, end, job.total, 1, out, check,
                job.part_sums + part)


cdef void pool_long(const Job *job, int64_t b, int check, int threads, float *out, sedq_bag_sums *sums) noexcept nogil:
    """Outputs of a bag, and its sums; without sums, as of the second accumulation, another way."""
    cdef int64_t p, parts = (job.offsets[b + 1] - job.offsets[b] + ROWS_OF_PART - 1) // ROWS_OF_PART
    if threads == 1:
        for p in range(parts):
            pool_part(job, b, p, check, sums == NULL)
    else:
        for p in prange(parts, num_threads=threads, schedule="dynamic"):
            pool_part(job, b, p, check, sums == NULL)
    if sums == NULL:
        add_parts_again(job, parts, divisor_of(job, b), out)
    else:
        add_parts(job, parts, divisor_of(job, b), out, sums)


cdef int64_t run_long(const Job *job, int threads) noexcept nogil:
    """The bags of more rows than a part, one after the other; the number verified."""
    cdef sedq_bag_sums sums
    cdef int64_t b, verified = 0
    cdef float *out
    for b in range(job.bags):
        if not is_long(job, b):
            continue
        out = job.out + b * job.out_stride
        pool_long(job, b, job.check, threads, out, &sums)
        verified += 1
        if job.check:
            job.long_bits[b] = sums.out_bits
            verify_request(job, b, b + 1, sums.rows, sums.weights)
            verify_bag(job, b, job.offsets[b + 1] - job.offsets[b], &sums)
        if job.check & TWICE:
            pool_long(job, b, 0, threads, job.scratch, NULL)
            if memcmp(out, job.scratch, job.t.dim * sizeof(float)):
                sedq_report(job.found, b, SEDQ_BAD_REPEAT, 0, 0)
    return verified


cdef int64_t run_chunk(const Job *job, int64_t chunk, int64_t b0, int64_t b1) noexcept nogil:
    """Bags b0 .. b1, at most CHUNK; the number verified."""
    cdef sedq_bag_sums sums
    cdef uint32_t bits[CHUNK]
    cdef uint32_t total = 0
    cdef uint64_t rows = 0, weights = 0
    cdef int64_t b, begin, end, first = b0, verified = 0, dim = job.t.dim
    cdef float divisor
    cdef float *out
    if job.c.leaves_out != NULL and job.c.leaves_out():
        return 0
    for b in range(b0, b1):
        if job.long_bits != NULL and is_long(job, b):
            bits[b - b0] = job.long_bits[b]
            if job.check:
                verify_request(job, first, b, rows, weights)
            rows, weights, first = 0, 0, b + 1
            continue
        begin, end = job.offsets[b], job.offsets[b + 1]
        out = job.out + b * job.out_stride
        divisor = divisor_of(job, b)
        job.bag(job.t, job.indices, job.index_bytes, job.weights, begin, end, job.total, divisor, out, job.check, &sums)
        verified += 1
        if job.check:
            bits[b - b0] = sums.out_bits
            rows += sums.rows
            weights += sums.weights
            verify_bag(job, b, end - begin, &sums)
        if job.check & TWICE:
            job.c.bag_again(job.t, job.indices, job.index_bytes, job.weights, begin, end, divisor_of(job, b),
                            job.scratch + chunk * dim)
            if memcmp(out, job.scratch + chunk * dim, dim * sizeof(float)):
                sedq_report(job.found, b, SEDQ_BAD_REPEAT, 0, 0)
    if not job.check:
        return verified
    verify_request(job, first, b1, rows, weights)
    # modulo 2^32, but each word is counted once: no change of one is a multiple of it
    for b in range(b0, b1):
        total += bits[b - b0]
        if job.y_sums != NULL:
            job.y_sums[b] = bits[b - b0]
    if job.c.sum_words(job.out + b0 * job.out_stride, b1 - b0, dim, job.out_stride) != total:
        report_outputs(job, b0, b1, bits)
    return verified


cdef int64_t run(const Job *job, int64_t chunk, int threads) noexcept nogil:
    cdef int64_t c, verified = 0, chunks = (job.bags + chunk - 1) // chunk
    if job.long_bits != NULL:
        verified += run_long(job, threads)
    if threads == 1:
        for c in range(chunks):
            verified += run_chunk(job, c, c * chunk, min(job.bags, (c + 1) * chunk))
        return verified
    for c in prange(chunks, num_threads=threads, schedule="dynamic"):
        verified += run_chunk(job, c, c * chunk, min(job.bags, (c + 1) * chunk))
    return verified


cpdef check_offsets(const int64_t[::1] offsets, int64_t total):
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


cdef int64_t longest_bag(const int64_t[::1] offsets) noexcept:
    cdef int64_t b, longest = 0
    for b in range(offsets.shape[0] - 1):
        longest = max(longest, offsets[b + 1] - offsets[b])
    return longest


cdef check_shapes(Table table, const int64_t[::1] offsets, int64_t total, const float[::1] weights, float[:, :] out,
                  const uint32_t[::1] y_sums, const int64_t[::1] lengths, const double[:, ::1] stats):
    """ValueError unless everything is of the shape that the rest demands."""
    cdef int64_t bags = offsets.shape[0] - 1
    if bags < 0 or out.shape[0] != bags or out.shape[1] != table.t.dim or out.strides[1] != sizeof(float):
        raise ValueError(f"out: got shape {(out.shape[0], out.shape[1])}, expected {(bags, table.t.dim)} with "
                         "contiguous rows")
    if weights is not None and weights.shape[0] != total:
        raise ValueError(f"per_sample_weights: got {weights.shape[0]}, expected one per index, {total}")
    if y_sums is not None and y_sums.shape[0] != bags:
        raise ValueError(f"y_sums: got {y_sums.shape[0]}, expected {bags}")
    if lengths is not None and lengths.shape[0] != bags:
        raise ValueError(f"lengths: got {lengths.shape[0]}, expected {bags}")
    if stats is not None and (stats.shape[0] != bags or stats.shape[1] != 3):
        raise ValueError(f"stats: got shape {(stats.shape[0], stats.shape[1])}, expected {(bags, 3)}")
    check_offsets(offsets, total)


cdef take_indices(Job *job, indices):
    """Point the job at the indices; IndexError if one is out of range."""
    cdef const int64_t[::1] wide
    cdef const int32_t[::1] narrow
    cdef int64_t bad
    job.indices, job.index_bytes = NULL, 8
    if not job.total:
        return
    if indices.dtype == np.int32:
        narrow = indices
        job.indices, job.index_bytes = <const char *>&narrow[0], 4
    else:
        wide = indices
        job.indices = <const char *>&wide[0]
    bad = job.c.range(job.indices, job.index_bytes, job.total, job.t.num_rows)
    if bad >= 0:
        raise IndexError(f"indices: got {indices[bad]} at position {bad}, expected 0 to {job.t.num_rows - 1}")


cdef const char *buffer_start(array) except? NULL:
    """Where an array begins, by its buffer taken anew; NULL if it is empty."""
    cdef Py_buffer buffer
    PyObject_GetBuffer(array, &buffer, PyBUF_SIMPLE)
    cdef const char *start = <const char *>buffer.buf if buffer.len else NULL
    PyBuffer_Release(&buffer)
    return start


cdef bint is_astray(const Job *job, indices, const int64_t[::1] offsets, const float[::1] weights, float[:, :] out,
                    const int64_t[::1] lengths, mean):
    """Whether the job isn't of what was given: kernel and checks would follow the same wrong pointer."""
    return (job.mean != <bint>mean or job.bags != offsets_length(offsets) - 1
            or <const void *>job.offsets != offsets_start(offsets) or <const void *>job.out != out_start(out)
            or job.out_stride * <int64_t>sizeof(float) != out_step(out)
            or weights is not None and job.total and <const void *>job.weights != weights_start(weights)
            or lengths is not None and <const void *>job.lengths != offsets_start(lengths)
            or job.indices != buffer_start(indices))


cdef list make_room(Job *job, const int64_t[::1] offsets, int64_t chunk):
    """Point the job at memory for second accumulations and for the parts of long bags; the arrays to keep alive."""
    cdef float[::1] scratch, parts
    cdef uint32_t[::1] long_bits
    cdef unsigned char[::1] part_sums
    cdef int64_t dim = job.t.dim, most = longest_bag(offsets) if job.total > ROWS_OF_PART else 0
    job.scratch, job.parts, job.part_sums, job.long_bits = NULL, NULL, NULL, NULL
    memory = []
    if job.check & TWICE:
        scratch = np.empty((job.bags + chunk - 1) // chunk * dim, dtype=np.float32)
        job.scratch = &scratch[0]
        memory.append(scratch.base)
    if most > ROWS_OF_PART:
        most = (most + ROWS_OF_PART - 1) // ROWS_OF_PART
        parts, long_bits = np.empty(most * dim, np.float32), np.empty(job.bags, np.uint32)
        part_sums = np.empty(most * sizeof(sedq_bag_sums), np.uint8)
        job.parts, job.long_bits, job.part_sums = &parts[0], &long_bits[0], <sedq_bag_sums *>&part_sums[0]
        memory += [parts.base, long_bits.base, part_sums.base]
    return memory


def pool(Context context, Table table, indices, const int64_t[::1] offsets, const float[::1] weights, float[:, :] out,
         int check, int limit, double limit_value, mean, int num_threads, uint32_t[::1] y_sums=None,
         const int64_t[::1] lengths=None, double[:, ::1] stats=None, growth=(0, 0, 0, 0, 0)):
    """Pool bags indices[offsets[b] : offsets[b + 1]] into out (B, dim), whose rows are contiguous.

    offsets (B + 1,) include the last one; check is a sum of CHECK_*; limit is LIMIT_*, growth the coefficients of
    LIMIT_GROWTH; the mean divides by lengths where given. stats (B, 3) takes residual, reference and magnitude of each bag,
    if check isn't 0. Returns None when every check agreed, else a list of (bag, kind, residual, limit). IndexError and
    ValueError before anything is written.
    """
    cdef Job job
    cdef sedq_findings found
    cdef int64_t verified, chunk
    cdef int threads
    job.c, job.t, job.bag, job.bags = &context.c, &table.t, context.c.bag[table.t.format], offsets.shape[0] - 1
    job.total = indices.shape[0]
    check_shapes(table, offsets, job.total, weights, out, y_sums, lengths, stats)
    take_indices(&job, indices)
    if job.bags == 0:
        return None
    job.offsets, job.out, job.out_stride = &offsets[0], &out[0, 0], out.strides[0] // <int64_t>sizeof(float)
    job.weights = &weights[0] if weights is not None and job.total else NULL
    job.y_sums = NULL if y_sums is None else &y_sums[0]
    job.stats = NULL if stats is None else &stats[0, 0]
    job.growth[0], job.growth[1], job.growth[2], job.growth[3], job.growth[4] = growth
    job.lengths = NULL if lengths is None else &lengths[0]
    job.check, job.limit, job.limit_value, job.mean, job.found = check, limit, limit_value, mean, &found
    found.count = 0
    threads = threads_for(num_threads, job.total * (4 + table.t.dim // 16))
    chunk = max(<int64_t>1, min(<int64_t>CHUNK, job.bags // (4 * threads)))
    _kept = make_room(&job, offsets, chunk)
    with nogil:
        verified = run(&job, chunk, threads)
    if check and (verified != job.bags or job.offsets[job.bags] != job.total
                  or is_astray(&job, indices, offsets, weights, out, lengths, mean)):
        sedq_report(&found, -1, SEDQ_BAD_COUNT, verified - job.bags, 0)
    return findings_list(&found) if found.count else None
