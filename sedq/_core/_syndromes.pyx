"""Position-weighted sums and CRCs, which locate an error: of rows at rest, and of the indices of a request.

An error e in element j changes the plain sum by e and the sum weighted with j + 1 by (j + 1) e, so that their quotient says
where it is. A CRC-32 (the one of zlib) confirms that the correction is right.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

cdef uint32_t POLYNOMIAL = 0xEDB88320  # of zlib's CRC-32, reflected
cdef uint32_t ONES = 0xFFFFFFFF
cdef uint32_t[256] CRC_OF_BYTE
cdef enum:
    AT_ONCE = 4


cdef void fill_crc_table() noexcept nogil:
    cdef uint32_t i, word
    cdef int _bit
    for i in range(256):
        word = i
        for _bit in range(8):
            word = (word >> 1) ^ (POLYNOMIAL * (word & 1))
        CRC_OF_BYTE[i] = word


fill_crc_table()


cdef void rows_at_once(const uint8_t *rows, Py_ssize_t stride, Py_ssize_t length, uint32_t *out) noexcept nogil:
    """AT_ONCE rows: each step of a CRC waits for the one before, so that others may go on meanwhile."""
    cdef uint32_t[AT_ONCE] weighted
    cdef uint32_t[AT_ONCE] crc
    cdef Py_ssize_t i, j
    cdef uint8_t byte
    for i in range(AT_ONCE):
        weighted[i], crc[i] = 0, ONES
    for j in range(length):
        for i in range(AT_ONCE):
            byte = rows[i * stride + j]
            weighted[i] += <uint32_t>(j + 1) * byte
            crc[i] = CRC_OF_BYTE[(crc[i] ^ byte) & 255] ^ (crc[i] >> 8)
    for i in range(AT_ONCE):
        out[2 * i], out[2 * i + 1] = weighted[i], crc[i] ^ ONES


def row_syndromes(const uint8_t[:, :] rows, Py_ssize_t length, uint32_t[:, ::1] out):
    """out[i] = (sum of (j + 1) row[j] modulo 2^32, CRC-32), over the first `length` bytes of row i, which are contiguous."""
    cdef Py_ssize_t i, j, blocks = rows.shape[0] // AT_ONCE
    cdef uint32_t weighted, crc
    cdef const uint8_t *row
    if length < 0 or length > rows.shape[1] or (rows.shape[1] > 1 and rows.strides[1] != 1):
        raise ValueError(f"rows: got {rows.shape[1]} bytes each, expected at least {length} contiguous ones")
    if out.shape[0] != rows.shape[0] or out.shape[1] != 2:
        raise ValueError(f"out: got shape {(out.shape[0], out.shape[1])}, expected {(rows.shape[0], 2)}")
    if length == 0:
        out[:, :] = 0
        return
    with nogil:
        for i in range(blocks):
            rows_at_once(&rows[i * AT_ONCE, 0], rows.strides[0], length, &out[i * AT_ONCE, 0])
        for i in range(blocks * AT_ONCE, rows.shape[0]):
            row = &rows[i, 0]
            weighted, crc = 0, ONES
            for j in range(length):
                weighted += <uint32_t>(j + 1) * row[j]
                crc = CRC_OF_BYTE[(crc ^ row[j]) & 255] ^ (crc >> 8)
            out[i, 0], out[i, 1] = weighted, crc ^ ONES


def index_sums(values):
    """Sum of a contiguous int32 or int64 array, and its sum weighted with position + 1, both modulo 2^64.

    The plain sum counts each index once, so that it sees any change of one; the weighted one says where it is.
    """
    cdef const int32_t[::1] narrow
    cdef const int64_t[::1] wide
    cdef uint64_t plain = 0, weighted = 0
    cdef int64_t i
    if values.itemsize == 4:
        narrow = values
        with nogil:
            for i in range(narrow.shape[0]):
                plain += <uint64_t>narrow[i]
                weighted += <uint64_t>narrow[i] * <uint64_t>(i + 1)
    else:
        wide = values
        with nogil:
            for i in range(wide.shape[0]):
                plain += <uint64_t>wide[i]
                weighted += <uint64_t>wide[i] * <uint64_t>(i + 1)
    return plain, weighted
