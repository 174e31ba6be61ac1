from libc.stdint cimport int8_t, int64_t, uint32_t, uint64_t

from sedq._core._dispatch cimport SEDQ_NR, SEDQ_NV, sedq_epilogue

cdef enum:
    OUT_I32, OUT_U8, OUT_F32  # Epilogue.kind


cdef inline int64_t round_up(int64_t value, int64_t step) noexcept nogil:
    return (value + step - 1) // step * step


cdef inline int64_t panel_width(int64_t n, int64_t panel) noexcept nogil:
    """Columns of a panel, padding included; a single column is not padded."""
    cdef int64_t left = n - panel * SEDQ_NR
    return 1 if left == 1 else min(<int64_t>SEDQ_NR, round_up(left, SEDQ_NV))


cdef struct Weights:
    const int8_t *b
    const int8_t *digit
    int64_t n, k, panel_bytes, kpad
    int ndigits, encoded


cdef struct Columns:
    sedq_epilogue e
    const uint64_t *panel_digest
    int64_t n
    uint32_t scalar_digest
    int kind


cdef class PackedB:
    cdef readonly object panels, digits
    cdef Weights[2] w               # the second is a copy
    cdef uint64_t state_digest
    cdef int restore(self) noexcept


cdef class Epilogue:
    cdef readonly object col_term, w_zp, bias, mult, digest
    cdef readonly object dtype
    cdef Columns[2] c               # the second is a copy
    cdef uint64_t state_digest
    cdef int restore(self) noexcept
