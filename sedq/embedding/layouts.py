"""Row layouts of quantised tables.

A row of ours is ``codes | words | digest``: the codes padded with zeros to a multiple of 8 bytes, two 32-bit words, and a
64-bit digest that also holds the row's number + 1, so that no row of zeros is valid. 8-bit rows have float32 scale and bias
as words; 4 and 2-bit rows have float16 scale and bias, and the sum of their codes; half and float rows have the sum of
their values and that of the values' magnitudes. A row stands for ``scale * codes + bias``.

Layouts of others, a row of which is, of 8 bits and of 4 or 2:

========= ========================================== ==========================================
``torch`` codes, float32 scale, float32 bias         packed codes, float16 scale, float16 bias
``half``  codes, float16 scale, float16 bias         the same
``tbe``   float16 scale, float16 bias, codes         float16 scale, float16 bias, packed codes
========= ========================================== ==========================================

Packed codes have the first column in the low bits. Rows of ``tbe`` may be padded to a multiple of 16 bytes, as TorchRec
does. Rows of 16 and 32 bits are plain float16 and float32 in every layout.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sedq import _validation
from sedq._core import _rows

__all__ = [
    "LAYOUTS",
    "Geometry",
    "add_digests",
    "attach_sidecar",
    "geometry",
    "pack_codes",
    "quantize_rows",
    "strip_digests",
    "table_geometry",
]

Array = NDArray[Any]
Progress = Callable[[int, int], object]
LAYOUTS = ("torch", "half", "tbe")
FLOATS = {16: np.dtype(np.float16), 32: np.dtype(np.float32)}
TBE_ALIGNMENT = 16
HUGE_PAGE = 2**21
CHUNK_BYTES = 2**24


class Geometry(NamedTuple):
    """Where the parts of a row stand, in bytes from its beginning.

    Attributes
    ----------
    dim, bits : int
        Columns, and bits of a code.
    codes_at, params_at : int
        Where the codes and the scale start.
    half : bool
        Whether scale and bias are float16.
    """

    dim: int
    bits: int
    codes_at: int
    params_at: int
    half: bool

    @property
    def code_bytes(self) -> int:
        """Bytes of codes."""
        return _rows.code_bytes(self.dim, self.bits)

    @property
    def params(self) -> int:
        """Bytes of scale and bias."""
        return 0 if self.bits > 8 else 4 if self.half else 8

    @property
    def width(self) -> int:
        """Bytes of a row without padding."""
        return self.code_bytes + self.params


def geometry(layout: str, bits: int, dim: int) -> Geometry:
    """Return where the parts of a row of `dim` columns stand in a layout."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout: got {layout!r}, expected {', '.join(map(repr, LAYOUTS[:-1]))} or {LAYOUTS[-1]!r}")
    half = bits < 8 or (bits == 8 and layout != "torch")
    if bits > 8:
        return Geometry(dim, bits, 0, 0, False)
    if layout == "tbe":
        return Geometry(dim, bits, 4, 0, True)
    return Geometry(dim, bits, 0, _rows.code_bytes(dim, bits), half)


def check_bits(bits: int) -> int:
    """Return the bits of a code."""
    if isinstance(bits, bool) or bits not in _rows.BITS:
        raise ValueError(f"bits: got {bits!r}, expected 8, 4, 2, 16 or 32")
    return int(bits)


def check_dim(name: str, dim: int, bits: int = 8) -> int:
    """Check that the sum of a row's bytes fits its digest."""
    most = _rows.MAX_CODE_BYTES * 8 // bits
    if dim > most:
        raise ValueError(f"{name}: got rows of {dim} columns, expected at most {most} of {bits} bits")
    return dim


def fused_geometry(rows: Array, bits: int, layout: str, dim: int | None) -> tuple[Array, Geometry]:
    """Check rows of a layout; return them as uint8 (rows, bytes), and where their parts stand."""
    geometry(layout, bits, 1)
    # not `dtype == FLOATS.get(bits)`: to NumPy float64 equals None
    if isinstance(rows, np.ndarray) and rows.ndim == 2 and bits in FLOATS and rows.dtype == FLOATS[bits]:
        rows = (rows if rows.strides[1] == rows.itemsize else np.ascontiguousarray(rows)).view(np.uint8)
    least = geometry(layout, bits, 1).params + 1
    if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] < least:
        kind = f"uint8 of shape (rows, codes + {least - 1})" if bits <= 8 else f"float{bits} or uint8 of shape (rows, d)"
        raise ValueError(f"rows: got {_validation.describe(rows)}, expected {kind} with d >= 1")
    width = rows.shape[1]
    got = (width - least + 1) * 8 // bits
    if dim is not None:
        dim = _validation.integer("dim", dim, 1, _rows.MAX_CODE_BYTES * 4)
    made = geometry(layout, bits, check_dim("rows", got if dim is None else dim, bits))
    padded = -(-made.width // TBE_ALIGNMENT) * TBE_ALIGNMENT
    if width != made.width and not (layout == "tbe" and width == padded):
        if dim is None:
            raise ValueError(f"rows: got {width} bytes each, expected a multiple of {bits // 8}, float{bits} columns")
        raise ValueError(f"dim: got {dim!r}, but rows of {width} bytes hold {got} codes")
    return rows, made


def table_geometry(rows: Array, bits: int, layout: str, dim: int | None) -> tuple[Array, Geometry]:
    """As `fused_geometry`, of a table: bits are checked as well, and there is at least one row."""
    rows, made = fused_geometry(rows, check_bits(bits), layout, dim)
    if not len(rows):
        raise ValueError(f"rows: got shape {rows.shape}, expected at least one row")
    return rows, made


# --- quantisation ---


def quantize_rows(weight: Array, bits: int = 8) -> Array:
    """Quantise float rows (rows, d) to fused rows of layout ``torch``, as FBGEMM does.

    8 bit: ``scale = range / 255``; ``code = rint((x - min) * (255 / (range + 1e-8)))``, all in float32. 4 and 2 bit: the
    minimum is rounded to float16, ``scale = float16(range / most)`` or 1 where that is 0 or its reciprocal overflows;
    ``code = rint((x - min) * (1 / scale))``, clamped. 16 and 32 bit: rounded to the nearest.
    """
    if bits > 8:
        return _float_rows(weight, bits)
    low = weight.min(axis=1, keepdims=True)
    if bits == 8:
        extent = _extent(weight, low)
        inverse = np.float32(255) / (extent + np.float32(1e-8))
        codes = np.rint((weight - low) * inverse).astype(np.uint8)
        params = np.hstack([extent / np.float32(255), low]).astype("<f4")
        return np.hstack([codes, params.view(np.uint8)])
    most = np.float32(2**bits - 1)
    with np.errstate(over="ignore"):
        bias = low.astype("<f2")
        low = bias.astype(np.float32)
    extent = _extent(weight, low)
    with np.errstate(over="ignore", divide="ignore"):
        scale = np.where(extent == 0, np.float32(1), extent / most).astype("<f2")
        scale[~np.isfinite(np.float32(1) / scale.astype(np.float32))] = 1
    if not (np.isfinite(scale).all() and np.isfinite(bias).all()):
        raise ValueError(f"weight: got a row whose range overflows float16, expected smaller values with bits={bits}")
    codes = np.clip(np.rint((weight - low) * (np.float32(1) / scale.astype(np.float32))), 0, most).astype(np.uint8)
    return np.hstack([pack_codes(codes, bits), np.hstack([scale, bias]).view(np.uint8)])


def _extent(weight: Array, low: Array) -> Array:
    """Largest value of each row less `low`."""
    with np.errstate(over="ignore", invalid="ignore"):
        extent: Array = weight.max(axis=1, keepdims=True) - low
    if not np.isfinite(extent).all():
        raise ValueError("weight: got a row whose range overflows float32, expected smaller values")
    return extent


def _float_rows(weight: Array, bits: int) -> Array:
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(weight, "<f2" if bits == 16 else "<f4")
    if not np.isfinite(values).all():
        raise ValueError("weight: got values that overflow float16, expected smaller ones with bits=16")
    return values.view(np.uint8)


def pack_codes(codes: Array, bits: int) -> Array:
    """Pack codes (rows, d) of 8, 4 or 2 bits into bytes, the first column in the low bits."""
    per_byte = 8 // bits
    padded = np.zeros((len(codes), -(-codes.shape[1] // per_byte) * per_byte), np.uint8)
    padded[:, : codes.shape[1]] = codes
    packed = padded[:, ::per_byte].copy()
    for k in range(1, per_byte):
        packed |= padded[:, k::per_byte] << np.uint8(bits * k)
    return packed


# --- rows of ours, and back ---


def allocate(rows: int, width: int) -> Array:
    """Return zeroed rows that start on a cache line; large ones on huge pages, where the system has them."""
    size = rows * width
    if size >= 2 * HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
        private = mmap.mmap(-1, -(-size // HUGE_PAGE) * HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # a kernel without them
            private.madvise(mmap.MADV_HUGEPAGE)
        return np.frombuffer(private, np.uint8, size).reshape(rows, width)
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].reshape(rows, width)


def add_digests(
    fused: Array, dim: int, first: int = 0, *, bits: int = 8, layout: str = "torch", out: Array | None = None
) -> Array:
    """Return rows of ours, or zeroed ones filled, from rows of a layout, the first of which has the number `first`.

    Raises
    ------
    ValueError
        For scales, biases or values that are not finite.
    """
    at = geometry(layout, bits, dim)
    rows = allocate(len(fused), _rows.row_bytes(dim, bits)) if out is None else out
    rows[:, : at.code_bytes] = fused[:, at.codes_at : at.codes_at + at.code_bytes]
    params = fused[:, at.params_at : at.params_at + at.params]
    if bits == 8 and at.half:
        params = np.ascontiguousarray(params).view("<f2").astype("<f4").view(np.uint8)
    words = rows.shape[1] - _rows.TAIL
    rows[:, words : words + params.shape[1]] = params
    _refuse(_rows.Table(rows, dim, bits).write_digests(0, len(rows), first), fused, at)
    return rows


def strip_digests(rows: Array, dim: int, *, bits: int = 8, layout: str = "torch", align: int = 1) -> Array:
    """Return rows of a layout from ours, padded with zeros to a multiple of `align` bytes."""
    at = geometry(layout, bits, dim)
    fused = np.zeros((len(rows), -(-at.width // align) * align), np.uint8)
    fused[:, at.codes_at : at.codes_at + at.code_bytes] = rows[:, : at.code_bytes]
    words = rows.shape[1] - _rows.TAIL
    params = rows[:, words : words + (8 if bits == 8 else at.params)]
    if bits == 8 and at.half:
        params = _halved(params, layout)
    fused[:, at.params_at : at.params_at + at.params] = params
    return fused


def _halved(params: Array, layout: str) -> Array:
    """Float32 parameters as float16, if that changes nothing."""
    wide = np.ascontiguousarray(params).view("<f4")
    with np.errstate(over="ignore"):
        narrow = wide.astype("<f2")
    bad = np.flatnonzero((narrow.astype(np.float32) != wide).any(axis=1))
    if bad.size:
        scale, bias = wide[bad[0]]
        raise ValueError(
            f"layout: got {layout!r}, but scale {scale} and bias {bias} of row {bad[0]} are no float16 numbers, "
            "expected 'torch'"
        )
    return narrow.view(np.uint8)


def attach_sidecar(rows: Array, at: Geometry, progress: Progress | None = None, also: Progress | None = None) -> _rows.Table:
    """Return a table of rows in another layout, read-only, with a sidecar of digests made in one pass over them.

    also(begin, end) is called with each piece of some 16 MB, progress(done, rows) after it.
    """
    sidecar = allocate(len(rows), _rows.sidecar_bytes(at.bits))
    table = _rows.Table(rows, at.dim, at.bits, sidecar=sidecar, codes_at=at.codes_at, params_at=at.params_at, half=at.half)
    step = max(1, CHUNK_BYTES // rows.shape[1])
    for begin in range(0, len(rows), step):
        end = min(begin + step, len(rows))
        _refuse(table.write_digests(begin, end - begin), rows, at)
        if also is not None:
            also(begin, end)
        if progress is not None:
            progress(end, len(rows))
    return table


def _refuse(bad: int, rows: Array, at: Geometry) -> None:
    """Say what isn't finite in a row, unless its number is -1."""
    if bad < 0:
        return
    if at.bits > 8:
        raise ValueError(f"rows: got values or sums that are not finite in row {bad}, expected finite ones")
    kind = "<f2" if at.half else "<f4"
    scale, bias = np.ascontiguousarray(rows[bad, at.params_at : at.params_at + at.params]).view(kind)
    raise ValueError(f"rows: got scale {scale} and bias {bias} in row {bad}, expected finite ones")
