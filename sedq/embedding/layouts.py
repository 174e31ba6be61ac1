"""Row layouts of quantised tables.

A row of ours is ``codes | float32 scale | float32 bias | digest``: d codes padded with zeros to a multiple of 8, and a
64-bit digest that also holds the row's number. The layout ``torch`` is ``codes | float32 scale | float32 bias``, without
padding, as PyTorch's ``embedding_bag_byte_prepack`` makes it. A row stands for ``scale * codes + bias``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sedq import _validation
from sedq._core import _embedding

__all__ = ["add_digests", "fused_dim", "quantize_rows", "strip_digests"]

Array = NDArray[Any]
PARAMETERS = 8  # bytes of float32 scale and bias


def quantize_rows(weight: Array) -> Array:
    """Quantise float rows (rows, d) to fused 8-bit rows of layout ``torch``, as FBGEMM does.

    ``scale = range / 255``; ``code = rint((x - min) * (255 / (range + 1e-8)))``, all in float32.
    """
    low = weight.min(axis=1, keepdims=True)
    with np.errstate(over="ignore"):
        extent = weight.max(axis=1, keepdims=True) - low
    if not np.isfinite(extent).all():
        raise ValueError("weight: got a row whose range overflows float32, expected smaller values")
    inverse = np.float32(255) / (extent + np.float32(1e-8))
    codes = np.rint((weight - low) * inverse).astype(np.uint8)
    params = np.hstack([extent / np.float32(255), low]).astype("<f4")
    return np.hstack([codes, params.view(np.uint8)])


def check_dim(name: str, dim: int) -> int:
    """Check that the code sum of a row fits its digest."""
    if dim > _embedding.MAX_DIM:
        raise ValueError(f"{name}: got rows of {dim} columns, expected at most {_embedding.MAX_DIM}")
    return dim


def fused_dim(rows: Array, layout: str, dim: int | None) -> int:
    """Check fused rows (rows, bytes) of a layout and return their dimension."""
    if layout != "torch":
        raise ValueError(f"layout: got {layout!r}, expected 'torch'")
    if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] <= PARAMETERS:
        raise ValueError(
            f"rows: got {_validation.describe(rows)}, expected uint8 of shape (rows, d + {PARAMETERS}) with d >= 1"
        )
    got = check_dim("rows", int(rows.shape[1]) - PARAMETERS)
    if dim is not None and dim != got:
        raise ValueError(f"dim: got {dim!r}, but rows of {rows.shape[1]} bytes hold {got} codes")
    params = np.ascontiguousarray(rows[:, got:]).view("<f4")
    if not np.isfinite(params).all():
        bad = int(np.flatnonzero(~np.isfinite(params).all(axis=1))[0])
        raise ValueError(f"rows: got scale {params[bad, 0]} and bias {params[bad, 1]} in row {bad}, expected finite ones")
    return got


def add_digests(fused: Array, dim: int, first: int = 0) -> Array:
    """Return rows of ours from fused ones, the first of which has the number `first`; they start on a cache line."""
    row_bytes = _embedding.row_bytes(dim)
    raw = np.zeros(len(fused) * row_bytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    rows = raw[start : start + len(fused) * row_bytes].reshape(len(fused), row_bytes)
    rows[:, :dim] = fused[:, :dim]
    codes = row_bytes - PARAMETERS - 8
    rows[:, codes : codes + PARAMETERS] = fused[:, dim : dim + PARAMETERS]
    _embedding.write_digests(rows, dim, first)
    return rows


def strip_digests(rows: Array, dim: int) -> Array:
    """Return fused rows of layout ``torch`` from ours."""
    codes = rows.shape[1] - PARAMETERS - 8
    return np.hstack([rows[:, :dim], rows[:, codes : codes + PARAMETERS]])
