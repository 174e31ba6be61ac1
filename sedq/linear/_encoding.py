"""What weights are compared with: digits of row sums, digests of derived parameters, CRCs of arrays at rest."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sedq._core import _packing

__all__ = ["aligned", "crc", "digest", "encode", "intact"]

Array = NDArray[Any]


def aligned(size: int, dtype: type) -> Array:
    """Return zeros that start on a cache line."""
    nbytes = size * np.dtype(dtype).itemsize
    raw = np.zeros(nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes].view(dtype)


def encode(row_sums: Array, n: int) -> Array:
    """Return the digits of the row sums in balanced base 256, least significant first: (digits, K padded) int8."""
    count = 1
    while (256**count - 1) // 255 < n:  # digits of -128 .. 127 hold -128 n .. 127 n
        count += 1
    digits = aligned(count * (-(-row_sums.size // 128) * 128), np.int8).reshape(count, -1)
    rest = row_sums.copy()
    for p in range(count):
        digits[p, : rest.size] = ((rest + 128) & 255) - 128
        rest = (rest - digits[p, : rest.size]) >> 8
    return digits


def digest(e: _packing.Epilogue) -> Array:
    """Return the sum of the bits of the column parameters of each panel, uint64."""
    total = np.zeros(e.col_term.size, np.uint64)
    for a in (e.col_term, e.w_zp, e.bias, e.mult):
        if a is not None:
            total += a.view(np.uint32)
    sums: Array = np.add.reduceat(total, np.arange(0, total.size, _packing.PANEL_COLUMNS))
    return sums


def intact(e: _packing.Epilogue) -> bool:
    """Whether derived parameters fit their digests."""
    return e.has_sound_scalars() and np.array_equal(digest(e), e.digest)


def crc(a: Array) -> int:
    """Return the CRC-32 of the bytes of an array."""
    return zlib.crc32(a.reshape(-1).view(np.uint8).data)
