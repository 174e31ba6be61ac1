"""Rows of every number of bits and layout, and bags of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import sedq
from sedq.embedding import _formats

Array = NDArray[Any]
BITS = (8, 4, 2, 16, 32)
LAYOUTS = [("torch", 1), ("half", 1), ("tbe", 1), ("tbe", 16)]  # with the multiple of bytes that rows are padded to


def fused_rows(rng: np.random.Generator, rows: int, dim: int, bits: int, half: bool = False) -> Array:
    """Rows of layout ``torch``, with scales and biases of either sign; in 8 bits, of float16 numbers if `half`."""
    if bits > 8:
        return rng.normal(size=(rows, dim)).astype(f"<f{bits // 8}").view(np.uint8)
    params = rng.normal(size=(rows, 2)).astype("<f2")
    if bits == 8:
        params = params.astype("<f4") if half else rng.normal(size=(rows, 2)).astype("<f4")
    codes = _formats.pack_codes(rng.integers(0, 2**bits, (rows, dim), dtype=np.uint8), bits)
    return np.hstack([codes, params.view(np.uint8)])


def in_layout(fused: Array, dim: int, bits: int, layout: str, align: int) -> Array:
    """Rows of layout ``torch`` in another one, put together part by part; what pads them is not zero."""
    size = 0 if bits > 8 else 8 if bits == 8 else 4
    codes, params = fused[:, : fused.shape[1] - size], fused[:, fused.shape[1] - size :]
    if bits == 8 and layout != "torch":
        params = np.ascontiguousarray(params).view("<f4").astype("<f2").view(np.uint8)
    parts = [params, codes] if layout == "tbe" else [codes, params]
    width = codes.shape[1] + params.shape[1]
    return np.hstack([*parts, np.full((len(fused), -width % align), 0xA5, np.uint8)])


def tables(fused: Array, dim: int, bits: int, layout: str, align: int, **kwargs: Any) -> list[sedq.EmbeddingBag]:
    """Make a bag of rows of its own, and one over rows that are only read."""
    rows = in_layout(fused, dim, bits, layout, align)
    frozen = rows.copy()
    frozen.flags.writeable = False
    given = {"bits": bits, "layout": layout, "dim": dim} | kwargs
    return [sedq.EmbeddingBag.from_fused(rows, **given), sedq.EmbeddingBag.view_fused(frozen, **given)]


def bits_equal(got: Array, want: Array, message: str = "") -> None:
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32), err_msg=message)
