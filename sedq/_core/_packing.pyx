"""Packed weights and the parameters of their columns, as the loops read them.

The layout of the panels is described in kernels/context.h; it is the same for every instruction set.
"""

from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memcpy

import numpy as np

from sedq._core._dispatch cimport SEDQ_KR, SEDQ_MAX_DIGITS, SEDQ_NR, SEDQ_NV

PANEL_COLUMNS = SEDQ_NR
PANEL_STEP = SEDQ_NV


cdef const void *address(array, dtype, Py_ssize_t least, str name) except? NULL:
    """Address of a contiguous array that the caller keeps alive; ValueError if it isn't what the kernels read."""
    cdef const uint8_t[::1] view
    if array.dtype != dtype or not array.flags.c_contiguous or array.size < least:
        raise ValueError(f"{name}: got {array.dtype} of {array.size} elements, expected contiguous "
                         f"{np.dtype(dtype)} of at least {least}")
    if array.size == 0:
        return NULL
    view = array.reshape(-1).view(np.uint8)
    return &view[0]


def packed_size(Py_ssize_t n, Py_ssize_t k):
    """Bytes of packed (K, N) weights."""
    cdef int64_t last = (n - 1) // SEDQ_NR
    return (last * SEDQ_NR + panel_width(n, last)) * round_up(k, SEDQ_KR)


def panel_index(Py_ssize_t n, Py_ssize_t k, Py_ssize_t j, Py_ssize_t i):
    """Position in the packed panels of W[j, i], of weights (n, k)."""
    cdef int64_t width = panel_width(n, j // SEDQ_NR)
    return (j // SEDQ_NR * SEDQ_NR * round_up(k, SEDQ_KR) + j % SEDQ_NR * SEDQ_KR
            + i // SEDQ_KR * width * SEDQ_KR + i % SEDQ_KR)


def pack(const int8_t[:, ::1] w, int8_t[::1] panels):
    """Write w (N, K) into zeroed panels."""
    cdef Py_ssize_t n = w.shape[0], k = w.shape[1], j, i
    cdef int64_t panel_bytes = SEDQ_NR * round_up(k, SEDQ_KR), width
    cdef int8_t *column
    if panels.shape[0] != packed_size(n, k):
        raise ValueError(f"panels: got {panels.shape[0]} bytes, expected {packed_size(n, k)}")
    with nogil:
        for j in range(n):
            width = panel_width(n, j // SEDQ_NR)
            column = &panels[j // SEDQ_NR * panel_bytes + j % SEDQ_NR * SEDQ_KR]
            for i in range(k):
                column[i // SEDQ_KR * width * SEDQ_KR + i % SEDQ_KR] = w[j, i]


def unpack(const int8_t[::1] panels, int8_t[:, ::1] w):
    """Read w (N, K) back from its panels."""
    cdef Py_ssize_t n = w.shape[0], k = w.shape[1], j, i
    cdef int64_t panel_bytes = SEDQ_NR * round_up(k, SEDQ_KR), width
    cdef const int8_t *column
    if panels.shape[0] != packed_size(n, k):
        raise ValueError(f"panels: got {panels.shape[0]} bytes, expected {packed_size(n, k)}")
    with nogil:
        for j in range(n):
            width = panel_width(n, j // SEDQ_NR)
            column = &panels[j // SEDQ_NR * panel_bytes + j % SEDQ_NR * SEDQ_KR]
            for i in range(k):
                w[j, i] = column[i // SEDQ_KR * width * SEDQ_KR + i % SEDQ_KR]


cdef class PackedB:
    """Packed weights and their checksum digits, as the loops read them.

    panels : int8 (packed_size(n + encoded, k),), with `encoded` one more column, the sums of the rows of B modulo 127;
    digits : int8 (digits, kpad), kpad a multiple of 128, zero beyond k.
    """

    def __init__(self, Py_ssize_t n, Py_ssize_t k, panels, digits, bint encoded=False):
        if n < 1 or k < 1:
            raise ValueError(f"weights: got shape ({n}, {k}), expected at least one row and one column")
        self.n, self.k, self.panels, self.digits, self.encoded = n, k, panels, digits, encoded
        self.panel_bytes = SEDQ_NR * round_up(k, SEDQ_KR)
        self.ndigits, self.kpad = digits.shape
        if self.ndigits > SEDQ_MAX_DIGITS or self.kpad % 128 or self.kpad < k:
            raise ValueError(f"digits: got shape {digits.shape}, expected up to {SEDQ_MAX_DIGITS} rows and a multiple "
                             f"of 128 columns from {k} on")
        self.b = <const int8_t *>address(panels, np.int8, packed_size(n + encoded, k), "panels")
        self.digit = <const int8_t *>address(digits, np.int8, 0, "digits")


cdef class Epilogue:
    """What turns accumulators into output, column by column, all arrays padded with zeros to whole panel steps.

    dtype : of the output, int32, uint8 or float32; col_term, w_zp (or None) : int32; bias, mult : float32 (None for
    int32); digest : uint32, the sum of the bits of all parameters of each panel.
    """

    def __init__(self, dtype, Py_ssize_t n, col_term, w_zp, bias, mult, digest,
                 float low=0, float high=0, int y_zero_point=0):
        cdef Py_ssize_t padded = round_up(n, SEDQ_NV)
        self.dtype, self.n = np.dtype(dtype), n
        self.kind = OUT_U8 if self.dtype == np.uint8 else OUT_F32 if self.dtype == np.float32 else OUT_I32
        self.col_term, self.w_zp, self.bias, self.mult, self.digest = col_term, w_zp, bias, mult, digest
        self.e.low, self.e.high, self.e.y_zp = low, high, y_zero_point
        self.e.col_term = <const int32_t *>address(col_term, np.int32, padded, "col_term")
        self.e.w_zp = NULL
        if w_zp is not None:
            self.e.w_zp = <const int32_t *>address(w_zp, np.int32, padded, "w_zp")
        if self.dtype != np.int32:
            self.e.bias = <const float *>address(bias, np.float32, padded, "bias")
            self.e.mult = <const float *>address(mult, np.float32, padded, "mult")
        self.panel_digest = <const uint32_t *>address(digest, np.uint32, (n + SEDQ_NR - 1) // SEDQ_NR, "digest")

    def scalar_bits(self):
        """Sum of the bits of low, high and y_zero_point, modulo 2^32."""
        cdef uint32_t low, high
        memcpy(&low, &self.e.low, 4)
        memcpy(&high, &self.e.high, 4)
        return <uint32_t>(low + high + <uint32_t>self.e.y_zp)
