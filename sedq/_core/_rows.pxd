from libc.stdint cimport int64_t, uint8_t

from sedq._core._dispatch cimport sedq_table


cdef class Table:
    cdef sedq_table t
    cdef readonly object rows, sidecar
    cdef readonly Py_ssize_t params_at
    cdef bint writeable
    cdef _own(self)
    cdef _foreign(self, uint8_t[:, ::1] sidecar, int64_t codes_at, int64_t params_at, bint half)
