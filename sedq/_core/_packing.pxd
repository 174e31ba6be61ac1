from libc.stdint cimport int8_t, int64_t, uint32_t

from sedq._core._dispatch cimport SEDQ_NR, SEDQ_NV, sedq_epilogue

cdef enum:
    OUT_I32, OUT_U8, OUT_F32  # Epilogue.kind


cdef inline int64_t round_up(int64_t value, int64_t step) noexcept nogil:
    return (value + step - 1) // step * step


cdef inline int64_t panel_width(int64_t n, int64_t panel) noexcept nogil:
    """Columns of a panel, padding included; a single column is not padded."""
    cdef int64_t left = n - panel * SEDQ_NR
    return 1 if left == 1 else min(<int64_t>SEDQ_NR, round_up(left, SEDQ_NV))


cdef class PackedB:
    cdef readonly Py_ssize_t n, k
    cdef readonly object panels, digits
    cdef const int8_t *b
    cdef const int8_t *digit
    cdef int64_t panel_bytes, kpad
    cdef int ndigits
    cdef readonly bint encoded


cdef class Epilogue:
    cdef readonly object col_term, w_zp, bias, mult, digest
    cdef readonly object dtype
    cdef int kind
    cdef int64_t n
    cdef sedq_epilogue e
    cdef const uint32_t *panel_digest
