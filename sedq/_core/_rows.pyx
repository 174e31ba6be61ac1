"""Tables of quantised rows: where codes, scale, bias and digest stand, and whether they fit one another.

See ``sedq_table`` in kernels/context.h for what a row is.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

import numpy as np

from sedq._core._dispatch cimport (
    SEDQ_FOREIGN, SEDQ_OWN2, SEDQ_OWN4, SEDQ_OWN8, SEDQ_OWN16, SEDQ_OWN32, Context, sedq_table)

from sedq._core import _dispatch


cdef extern from "kernels/rows.h" nogil:
    uint32_t sedq_word(const sedq_table *t, int w, int64_t row)
    uint64_t sedq_stored_digest(const sedq_table *t, int64_t row)
    uint64_t sedq_row_digest(const sedq_table *t, int64_t row)
    int sedq_derive_words(const sedq_table *t, int64_t row, uint32_t *words)


# The most bytes of codes whose sum fits the 24 bits that a digest has for it.
MAX_CODE_BYTES = 65_793

TAIL = 16  # bytes of a row of ours after its codes: two words, digest
BITS = (8, 4, 2, 16, 32)

cdef enum:
    TAIL_BYTES = 16
    AT_ONCE = 1024  # rows whose digests are computed together

cdef uint8_t[4] NOTHING = [0, 0, 0, 0]  # the second word of rows that have only one


def code_bytes(Py_ssize_t dim, int bits):
    """Bytes that `dim` codes take."""
    return (dim * bits + 7) // 8


def row_bytes(Py_ssize_t dim, int bits=8):
    """Bytes of a row of ours: the codes padded to a multiple of 8, two words, digest."""
    return (code_bytes(dim, bits) + 7) // 8 * 8 + TAIL


def sidecar_bytes(int bits):
    """Bytes that a sidecar has for each row of a table in someone else's layout: digest, and the words of sums."""
    return 8 if bits == 8 else 12 if bits < 8 else 16


cdef class Table:
    """Rows of ours, or with a sidecar (uint8, (rows, sidecar_bytes)) rows in another layout, which are only read.

    rows is uint8 (rows, bytes), contiguous within a row. For rows of another layout codes_at and params_at say where
    codes and scale start; half, whether scale and bias are float16.
    """

    def __init__(self, const uint8_t[:, :] rows, Py_ssize_t dim, int bits=8, *, uint8_t[:, ::1] sidecar=None,
                 Py_ssize_t codes_at=0, Py_ssize_t params_at=0, bint half=False):
        if bits not in BITS or dim < 1 or code_bytes(dim, bits) > MAX_CODE_BYTES:
            raise ValueError(f"rows: got {dim} columns of {bits} bits, expected at least 1 and at most "
                             f"{MAX_CODE_BYTES} bytes of 2, 4, 8, 16 or 32 bits")
        if rows.shape[0] and rows.strides[1] != 1:
            raise ValueError("rows: got bytes that lie apart, expected contiguous rows")
        self.rows, self.sidecar = rows.base, None if sidecar is None else sidecar.base
        self.params_at = params_at
        self.t.dim, self.t.bits, self.t.num_rows = dim, bits, rows.shape[0]
        self.t.rows = &rows[0, 0] if rows.shape[0] else NULL
        self.t.stride, self.t.width = rows.strides[0], rows.shape[1]
        self.writeable = getattr(rows.base, "flags", None) is not None and rows.base.flags.writeable
        if sidecar is None:
            self._own()
        else:
            self._foreign(sidecar, codes_at, params_at, half)

    cdef _own(self):
        cdef int64_t width = row_bytes(self.t.dim, self.t.bits)
        if self.t.width != width:
            raise ValueError(f"rows: got {self.t.width} bytes each, expected {width} for dim {self.t.dim} and "
                             f"{self.t.bits} bits")
        if self.t.num_rows > 1 and self.t.stride != width:  # kernels go from row to row without asking
            raise ValueError(f"rows: got rows {self.t.stride} bytes apart, expected {width}, one right after another")
        self.t.half, self.t.codes_at, self.t.code_bytes = self.t.bits < 8, 0, width - TAIL_BYTES
        self.params_at = self.t.code_bytes
        self.t.format = {8: SEDQ_OWN8, 4: SEDQ_OWN4, 2: SEDQ_OWN2, 16: SEDQ_OWN16, 32: SEDQ_OWN32}[self.t.bits]
        if self.t.num_rows:
            self.t.word[0] = self.t.rows + width - TAIL_BYTES
            self.t.word[1], self.t.digests = self.t.word[0] + 4, self.t.word[0] + 8
        self.t.word_stride[0] = self.t.word_stride[1] = self.t.digest_stride = self.t.stride

    cdef _foreign(self, uint8_t[:, ::1] sidecar, int64_t codes_at, int64_t params_at, bint half):
        cdef int64_t size = sidecar_bytes(self.t.bits), params = 0 if self.t.bits > 8 else 4 if half else 8
        self.t.half, self.t.codes_at, self.t.code_bytes = half, codes_at, code_bytes(self.t.dim, self.t.bits)
        self.t.format = SEDQ_FOREIGN
        if codes_at < 0 or params_at < 0 or max(codes_at + self.t.code_bytes, params_at + params) > self.t.width:
            raise ValueError(f"rows: got {self.t.width} bytes each, too few for dim {self.t.dim}")
        if self.t.bits < 8 and not half:
            raise ValueError(f"rows: got float32 parameters with {self.t.bits} bits, expected float16")
        if sidecar.shape[0] != self.t.num_rows or sidecar.shape[1] != size:
            raise ValueError(f"sidecar: got shape {(sidecar.shape[0], sidecar.shape[1])}, expected "
                             f"{(self.t.num_rows, size)}")
        if self.t.num_rows == 0:
            return
        self.t.digests, self.t.digest_stride = &sidecar[0, 0], size
        self.t.word[0], self.t.word_stride[0] = self.t.rows + params_at, self.t.stride
        self.t.word[1], self.t.word_stride[1] = self.t.digests + 8, size
        if self.t.bits > 8:
            self.t.word[0], self.t.word[1], self.t.word_stride[0] = self.t.digests + 8, self.t.digests + 12, size
        elif self.t.bits == 8 and half:
            self.t.word[1], self.t.word_stride[1] = NOTHING, 0
        elif self.t.bits == 8:
            self.t.word[1], self.t.word_stride[1] = self.t.word[0] + 4, self.t.stride

    @property
    def num_rows(self):
        return self.t.num_rows

    @property
    def dim(self):
        return self.t.dim

    @property
    def bits(self):
        return self.t.bits

    @property
    def stride(self):
        """Bytes from row to row."""
        return self.t.stride

    @property
    def codes_at(self):
        """Where codes start in a row."""
        return self.t.codes_at

    @property
    def code_bytes(self):
        """Bytes of codes, padding of rows of ours included."""
        return self.t.code_bytes

    @property
    def half(self):
        """Whether scale and bias are float16."""
        return bool(self.t.half)

    def __reduce__(self):
        return _restored, (self.rows, self.t.dim, self.t.bits, self.sidecar, self.t.codes_at, self.params_at, self.half)

    @property
    def own(self):
        """Whether rows are ours, digests among them."""
        return self.t.format != SEDQ_FOREIGN

    @property
    def digests(self):
        """The stored digests, uint64 (rows,), a view."""
        if self.own:
            return self.rows[:, self.t.width - 8:].view("<u8")[:, 0]
        return self.sidecar[:, :8].view("<u8")[:, 0]

    def like(self, rows, sidecar=None):
        """A table of other rows (and their sidecar) in the layout of this one."""
        return Table(rows, self.t.dim, self.t.bits, sidecar=sidecar, codes_at=self.codes_at, params_at=self.params_at,
                     half=self.half)

    def bad_rows(self, numbers):
        """Those of the rows `numbers` (int64) that don't fit their digests."""
        return bad_rows(self, numbers)

    def write_digests(self, Py_ssize_t first=0, count=None, number=None):
        """Sum up `count` rows from `first` on, the first of which is to have the number `number`, `first` by default.

        Returns the first row whose scale, bias, values or sums are not finite, or -1. Of a table in another layout only
        the sidecar is written.
        """
        cdef int64_t i, bad = -1, end = self.t.num_rows if count is None else first + count
        cdef uint64_t digest, shift = <uint64_t>((first if number is None else number) - first)
        cdef uint32_t[2] words
        if first < 0 or end < first or end > self.t.num_rows:
            raise IndexError(f"rows {first} to {end} of {self.t.num_rows}")
        if self.own and not self.writeable:
            raise ValueError("rows: got a read-only array, expected one that digests can be written to")
        with nogil:
            for i in range(first, end):
                if not sedq_derive_words(&self.t, i, words) and bad < 0:
                    bad = i
                if self.t.bits > 8:
                    memcpy(<uint8_t *>self.t.word[0] + i * self.t.word_stride[0], &words[0], 4)
                if self.t.bits != 8:
                    memcpy(<uint8_t *>self.t.word[1] + i * self.t.word_stride[1], &words[1], 4)
                digest = sedq_row_digest(&self.t, i) + shift
                memcpy(<uint8_t *>self.t.digests + i * self.t.digest_stride, &digest, 8)
        return bad


def _restored(rows, dim, bits, sidecar, codes_at, params_at, half):
    """What pickle makes a table of."""
    if sidecar is None:
        return Table(rows, dim, bits)
    return Table(rows, dim, bits, sidecar=sidecar, codes_at=codes_at, params_at=params_at, half=half)


def digests_of(Table table, Py_ssize_t first=0, count=None, Context context=None):
    """Digests, uint64, of `count` rows from `first` on, as what is stored of them demands."""
    cdef Context kernels = _dispatch.default if context is None else context
    cdef int64_t n = table.t.num_rows - first if count is None else count
    if first < 0 or n < 0 or first + n > table.t.num_rows:
        raise IndexError(f"rows {first} to {first + n} of {table.t.num_rows}")
    out = np.empty(n, np.uint64)
    cdef uint64_t[::1] digests = out
    if n:
        with nogil:
            kernels.c.digests(&table.t, first, n, &digests[0])
    return out


def bad_rows(Table table, const int64_t[::1] numbers):
    """Those of the rows `numbers` that don't fit their digests."""
    cdef int64_t i
    cdef list bad = []
    for i in range(numbers.shape[0]):
        if numbers[i] < 0 or numbers[i] >= table.t.num_rows:
            raise IndexError(f"row {numbers[i]} of {table.t.num_rows}")
        if sedq_row_digest(&table.t, numbers[i]) != sedq_stored_digest(&table.t, numbers[i]):
            bad.append(numbers[i])
    return bad


def bad_in_range(Table table, Py_ssize_t first, Py_ssize_t count, Context context=None):
    """Those of `count` rows from `first` on that don't fit their digests; what scrubbing calls."""
    cdef Context kernels = _dispatch.default if context is None else context
    cdef int64_t at = first, end = first + count
    cdef list bad = []
    if first < 0 or count < 0 or end > table.t.num_rows:
        raise IndexError(f"rows {first} to {end} of {table.t.num_rows}")
    while at < end:
        with nogil:
            at = kernels.c.scan(&table.t, at, end - at)
        if at < 0:
            break
        bad.append(at)
        at += 1
    return bad
