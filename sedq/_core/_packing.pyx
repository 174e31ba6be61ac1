"""Packed weights and the parameters of their columns, as the loops read them.

The layout of the panels is described in kernels/context.h; it is the same for every instruction set.
"""

from cpython.buffer cimport PyBuffer_FillInfo
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint64_t
from libc.string cimport memcpy, memset

import numpy as np

from sedq._core._dispatch cimport SEDQ_KR, SEDQ_MAX_DIGITS, SEDQ_NR, SEDQ_NV, sedq_scalar_digest


cdef extern from "state.h":
    uint64_t sedq_state_digest(const void *state, size_t size)
    int sedq_restore_state(void *copies, size_t size, uint64_t digest)


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
        self.panels, self.digits = panels, digits
        memset(self.w, 0, sizeof(self.w))
        cdef Weights *w = self.w
        w.n, w.k, w.encoded, w.panel_bytes = n, k, encoded, SEDQ_NR * round_up(k, SEDQ_KR)
        w.ndigits, w.kpad = digits.shape
        if w.ndigits > SEDQ_MAX_DIGITS or w.kpad % 128 or w.kpad < k:
            raise ValueError(f"digits: got shape {digits.shape}, expected up to {SEDQ_MAX_DIGITS} rows and a multiple "
                             f"of 128 columns from {k} on")
        w.b = <const int8_t *>address(panels, np.int8, packed_size(n + encoded, k), "panels")
        w.digit = <const int8_t *>address(digits, np.int8, 0, "digits")
        memcpy(&self.w[1], w, sizeof(Weights))
        self.state_digest = sedq_state_digest(w, sizeof(Weights))

    @property
    def n(self):
        return self.w[0].n

    @property
    def k(self):
        return self.w[0].k

    @property
    def encoded(self):
        return bool(self.w[0].encoded)

    cdef int restore(self) noexcept:
        """As sedq_restore_state: what the loops read of this object."""
        return sedq_restore_state(self.w, sizeof(Weights), self.state_digest)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        """The bytes of both copies of the state, so that a fault can strike them."""
        PyBuffer_FillInfo(buffer, self, self.w, sizeof(self.w), 0, flags)


cdef class Epilogue:
    """What turns accumulators into output, column by column, all arrays padded with zeros to whole panel steps.

    dtype : of the output, int32, uint8 or float32; col_term, w_zp (or None) : int32; bias, mult : float32 (None for
    int32); digest : uint64, the sum of the bits of the column parameters of each panel.
    """

    def __init__(self, dtype, Py_ssize_t n, col_term, w_zp, bias, mult, digest,
                 float low=0, float high=0, int y_zero_point=0):
        cdef Py_ssize_t padded = round_up(n, SEDQ_NV)
        self.dtype = np.dtype(dtype)
        self.col_term, self.w_zp, self.bias, self.mult, self.digest = col_term, w_zp, bias, mult, digest
        memset(self.c, 0, sizeof(self.c))
        cdef Columns *c = self.c
        c.n, c.kind = n, OUT_U8 if self.dtype == np.uint8 else OUT_F32 if self.dtype == np.float32 else OUT_I32
        c.e.low, c.e.high, c.e.y_zp = low, high, y_zero_point
        c.scalar_digest = sedq_scalar_digest(low, high, y_zero_point)
        c.e.col_term = <const int32_t *>address(col_term, np.int32, padded, "col_term")
        if w_zp is not None:
            c.e.w_zp = <const int32_t *>address(w_zp, np.int32, padded, "w_zp")
        if self.dtype != np.int32:
            c.e.bias = <const float *>address(bias, np.float32, padded, "bias")
            c.e.mult = <const float *>address(mult, np.float32, padded, "mult")
        c.panel_digest = <const uint64_t *>address(digest, np.uint64, (n + SEDQ_NR - 1) // SEDQ_NR, "digest")
        memcpy(&self.c[1], c, sizeof(Columns))
        self.state_digest = sedq_state_digest(c, sizeof(Columns))

    def has_sound_scalars(self):
        """Whether low, high and y_zero_point fit the digest that was made of them with this object."""
        cdef const Columns *c = self.c
        return sedq_scalar_digest(c.e.low, c.e.high, c.e.y_zp) == c.scalar_digest

    cdef int restore(self) noexcept:
        """As sedq_restore_state: what the loops read of this object."""
        return sedq_restore_state(self.c, sizeof(Columns), self.state_digest)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        """The bytes of both copies of the state, so that a fault can strike them; see SCALARS_AT."""
        PyBuffer_FillInfo(buffer, self, self.c, sizeof(self.c), 0, flags)


cdef Columns LAYOUT
# Where low, high and y_zero_point, 4 bytes each, stand in the state of an Epilogue.
SCALARS_AT = <Py_ssize_t>(<char *>&LAYOUT.e.low - <char *>&LAYOUT)
