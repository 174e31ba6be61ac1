from libc.stdint cimport int8_t, int64_t, uint32_t

from sedq._core._dispatch cimport sedq_epilogue


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
