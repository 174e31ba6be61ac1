from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "kernels/context.h" nogil:
    const int SEDQ_NR
    const int SEDQ_NV
    const int SEDQ_KR
    const int SEDQ_MR_MAX
    const int SEDQ_MAX_DIGITS
    const int SEDQ_CHECK_OFF
    const int SEDQ_CHECK_EXACT
    const int SEDQ_CHECK_FULL
    const int SEDQ_OWN8
    const int SEDQ_OWN4
    const int SEDQ_OWN2
    const int SEDQ_OWN16
    const int SEDQ_OWN32
    const int SEDQ_FOREIGN

    ctypedef struct sedq_epilogue:
        const int32_t *col_term
        const int32_t *w_zp
        const float *bias
        const float *mult
        float low, high
        int32_t y_zp

    uint32_t sedq_scalar_digest(float low, float high, int32_t y_zp)

    ctypedef struct sedq_tile_sums:
        uint32_t (*acc)[16]
        uint32_t (*out)[16]
        uint64_t params[8]
        uint64_t scalars
        const uint32_t *row_sums
        uint32_t row_sums_differ
        uint32_t twice

    void sedq_rotate_lanes(const float *source, int64_t vectors, int64_t dim, float *to)

    ctypedef struct sedq_table:
        const uint8_t *rows
        const uint8_t *word[2]
        const uint8_t *digests
        int64_t stride, digest_stride
        int64_t word_stride[2]
        int64_t num_rows, dim, width, codes_at, code_bytes
        int bits, half, format

    ctypedef struct sedq_bag_sums:
        uint64_t codes, params, rows, weights
        double pooled, reference, magnitude
        uint32_t out_bits

    ctypedef void (*sedq_store_fn)(int, int, const int32_t *, const uint32_t *, const sedq_epilogue *, void *, int64_t,
                                   int, sedq_tile_sums *) noexcept nogil
    ctypedef void (*sedq_bag_fn)(const sedq_table *, const void *, int, const float *, int64_t, int64_t, int64_t, float,
                                 float *, int, sedq_bag_sums *) noexcept nogil
    ctypedef uint32_t (*sedq_sum_fn)(const void *, int64_t, int64_t, int64_t) noexcept nogil
    ctypedef struct sedq_context:
        const char *name
        int mr
        int64_t mc, nc_bytes
        void (*tile)(int, int, const uint8_t *, int64_t, const int8_t *, int64_t, int32_t *) noexcept nogil
        void (*rows)(int64_t, const uint8_t *, int64_t, int64_t, const int8_t *, int, int64_t, uint32_t *,
                     uint32_t *) noexcept nogil
        void (*reduce)(int64_t, const uint32_t (*)[16], uint32_t *) noexcept nogil
        void (*wide_sum)(int, int, const int32_t *, int64_t *) noexcept nogil
        sedq_store_fn store_i32, store_u8, store_f32
        sedq_sum_fn sum_u8, sum_words
        sedq_bag_fn bag[6]
        void (*bag_again)(const sedq_table *, const void *, int, const float *, int64_t, int64_t, float,
                          float *) noexcept nogil
        void (*digests)(const sedq_table *, int64_t, int64_t, uint64_t *) noexcept nogil
        int64_t (*scan)(const sedq_table *, int64_t, int64_t) noexcept nogil
        int64_t (*range)(const void *, int, int64_t, int64_t) noexcept nogil
        int (*quantize)(const float *, int64_t, float, int32_t, uint8_t *) noexcept nogil
        int (*same_codes)(const float *, int64_t, float, int32_t, const uint8_t *, uint32_t *) noexcept nogil
        void (*dots)(const float *, int64_t, int64_t, int, float *) noexcept nogil
        int (*leaves_out)() noexcept nogil


cdef extern from "findings.h" nogil:
    const int SEDQ_MAX_FINDINGS
    const int SEDQ_BAD_ACCUMULATOR
    const int SEDQ_BAD_INPUT
    const int SEDQ_BAD_OUTPUT
    const int SEDQ_BAD_PARAMETERS
    const int SEDQ_BAD_EPILOGUE
    const int SEDQ_BAD_COUNT
    const int SEDQ_BAD_DIGEST
    const int SEDQ_BAD_SUM
    const int SEDQ_BAD_REPEAT
    const int SEDQ_BAD_OVERFLOW

    ctypedef struct sedq_finding:
        int64_t row
        double residual, limit
        int kind

    ctypedef struct sedq_findings:
        int64_t count
        sedq_finding entry[64]

    void sedq_report(sedq_findings *, int64_t, int, double, double)


cdef class Context:
    cdef sedq_context c
    cdef readonly str name
    cdef readonly bint hooked

cdef object findings_list(const sedq_findings *f)
cpdef int threads_for(int requested, int64_t work)
