"""NumPy oracles for every compiled entry point: slow, obvious, and bit for bit what the kernels must return.

Shapes and names are those of the public functions. See ``numerics`` in the documentation for the roundings.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sedq.qparams import QParams, quantize

__all__ = [
    "bag",
    "dots",
    "fma",
    "interact_quantize",
    "matmul_integer",
    "qlinear",
    "row_digests",
    "row_sums",
    "unpack_rows",
]

Array = NDArray[Any]


def wrap32(values: Array) -> NDArray[np.int32]:
    """Return int64 values modulo 2^32, as int32."""
    return (np.asarray(values, np.int64) & 0xFFFFFFFF).astype(np.uint32).view(np.int32)


def fma(a: ArrayLike, b: ArrayLike, c: ArrayLike) -> NDArray[np.float32]:
    """Return ``a * b + c`` rounded once to float32.

    The product is exact in float64; the sum is rounded to odd there (its last bit set if anything was lost), which makes
    the second rounding, to float32, the right one.
    """
    product = np.asarray(a, np.float64) * np.asarray(b, np.float64)
    addend = np.asarray(c, np.float64)
    total = np.asarray(product + addend)
    part = total - product
    lost = (product - (total - part)) + (addend - part)
    even = (total.view(np.int64) & 1) == 0
    toward = np.where(lost > 0, np.inf, -np.inf)
    odd = np.where((lost != 0) & even & np.isfinite(total), np.nextafter(total, toward), total)
    return np.asarray(odd, np.float64).astype(np.float32)


def matmul_integer(x: Array, w: Array, w_zero_point: Array | int = 0, x_zero_point: int = 0) -> NDArray[np.int32]:
    """``(x - x_zero_point) @ (w - w_zero_point).T`` modulo 2^32."""
    zero = np.broadcast_to(np.asarray(w_zero_point, np.int64), len(w))[:, None]
    return wrap32((x.astype(np.int64) - x_zero_point) @ (w.astype(np.int64) - zero).T)


def qlinear(
    x: Array,
    w: Array,
    *,
    scale: Array | float,
    zero_point: Array | int = 0,
    bias: Array | None = None,
    x_scale: float,
    x_zero_point: int,
    y_scale: float | None = None,
    y_zero_point: int = 0,
    relu: bool = False,
) -> Array:
    """Quantised linear layer with FBGEMM's roundings; float32 output without `y_scale`."""
    raw = matmul_integer(x, w, zero_point, x_zero_point).astype(np.float32)
    one_scale = np.ndim(scale) == 0
    aw = np.float32(x_scale) * np.asarray(scale, np.float32)
    b = np.zeros(len(w), np.float32) if bias is None else np.asarray(bias, np.float32)
    if y_scale is None:
        y = fma(raw, aw, b)
        return np.where(y > 0, y, np.float32(0)) if relu else y
    mult = aw / np.float32(y_scale)
    b = b * (np.float32(1) / aw) if one_scale else b / aw
    value = np.rint((raw + b) * mult).astype(np.float64) + y_zero_point
    return np.clip(value, y_zero_point if relu else 0, 255).astype(np.uint8)


def row_sums(x: Array, w: Array) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Return, for each row of x, its sum, and the sum of its products with W, both modulo 2^32."""
    sums = x.sum(axis=1, dtype=np.int64)
    checks = x.astype(np.int64) @ w.sum(axis=0, dtype=np.int64)
    return wrap32(sums).view(np.uint32), wrap32(checks).view(np.uint32)


def row_digests(fused: Array, first: int = 0, *, bits: int = 8, dim: int | None = None) -> NDArray[np.uint64]:
    """Digests of fused rows of layout ``torch``: sum of the codes' bytes << 40 | (two words + row number + 1).

    The words are the bits of float32 scale and bias; of float16 scale and bias, and the sum of codes (4 and 2 bits); of
    float32 sums of the values and of their magnitudes, the latter rounded up (16 and 32 bits), in which a denormal value,
    and a denormal sum, counts as 2^-104.
    """
    size = {8: 8, 4: 4, 2: 4}.get(bits, 0)
    packed = fused[:, : fused.shape[1] - size]
    words = np.ascontiguousarray(fused[:, fused.shape[1] - size :]).view("<u4").astype(np.uint64)
    if bits != 8:
        codes = unpack_rows(fused, bits, dim)[0].astype(np.float64)
        total = codes.sum(axis=1)
        if bits > 8:
            sizes = abs(np.hstack([codes, np.where(abs(total) < 2.0**-126, total, 0)[:, None]]))
            sizes[(sizes > 0) & (sizes < 2.0**-126)] = 2.0**-104
            most = np.nextafter(sizes.sum(axis=1).astype(np.float32), np.float32(np.inf))
            words = np.stack([total.astype(np.float32), most], axis=1).view(np.uint32).astype(np.uint64)
        else:
            words = np.hstack([words, total[:, None].astype(np.uint64)])
    numbers = np.arange(first + 1, first + 1 + len(fused), dtype=np.uint64)
    codes_sum = packed.sum(axis=1, dtype=np.uint64)
    return np.asarray((codes_sum << np.uint64(40)) + words.sum(axis=1, dtype=np.uint64) + numbers, np.uint64)


PART = 4096  # rows of a bag that are pooled together; the parts of a longer bag are added in order


def bag(
    fused: Array,
    indices: Array,
    offsets: Array,
    weights: Array | None = None,
    mode: str = "sum",
    *,
    bits: int = 8,
    dim: int | None = None,
) -> NDArray[np.float32]:
    """Pool bags of fused rows of layout ``torch``, in index order, with one rounding per step; offsets include the last."""
    codes, scale, bias = unpack_rows(fused, bits, dim)
    out = np.zeros((len(offsets) - 1, codes.shape[1]), np.float32)
    for b in range(len(out)):
        begin, end = int(offsets[b]), int(offsets[b + 1])
        for part in range(begin, end, PART):
            chosen = slice(part, min(part + PART, end))
            w = np.ones(chosen.stop - part, np.float32) if weights is None else np.asarray(weights[chosen], np.float32)
            rows = indices[chosen]
            pooled = _pool(codes[rows], scale[rows], bias[rows], w)
            out[b] = pooled if part == begin else out[b] + pooled
        out[b] /= np.float32(end - begin if mode == "mean" and end > begin else 1)
    return out


def _pool(codes: Array, scale: Array, bias: Array, weights: Array) -> NDArray[np.float32]:
    """Sum rows times weights, the biases apart."""
    acc, shift = np.zeros(codes.shape[1], np.float32), np.zeros((), np.float32)
    for i, w in enumerate(weights):
        acc = fma(w * scale[i], codes[i], acc)
        shift = fma(w, bias[i], shift)
    return np.asarray(acc + shift, np.float32)


def unpack_rows(fused: Array, bits: int = 8, dim: int | None = None) -> tuple[Array, Array, Array]:
    """Return codes (rows, d), scale and bias (rows,), all float32, of fused rows of layout ``torch``."""
    if bits > 8:
        values = np.ascontiguousarray(fused).view("<f2" if bits == 16 else "<f4").astype(np.float32)
        return values, np.ones(len(fused), np.float32), np.zeros(len(fused), np.float32)
    size, kind = (8, "<f4") if bits == 8 else (4, "<f2")
    params = np.ascontiguousarray(fused[:, -size:]).view(kind).astype(np.float32)
    packed = fused[:, :-size]
    planes = [packed >> np.uint8(bits * k) & np.uint8(2**bits - 1) for k in range(8 // bits)]
    codes = np.stack(planes, axis=2).reshape(len(fused), -1)[:, :dim]
    return codes.astype(np.float32), params[:, 0], params[:, 1]


def dots(t: Array) -> NDArray[np.float32]:
    """Dot products of rows i and j < i of t (features, d): 16 lanes of fused steps, then a tree over the lanes."""
    features, dim = t.shape
    padded = np.zeros((features, -(-dim // 16) * 16), np.float32)
    padded[:, :dim] = t
    out = []
    for i in range(features):
        for j in range(i):
            lanes = np.zeros(16, np.float32)
            for c in range(0, padded.shape[1], 16):
                lanes = fma(padded[i, c : c + 16], padded[j, c : c + 16], lanes)
            half = 8
            while half:
                lanes = lanes[:half] + lanes[half : 2 * half]
                half //= 2
            out.append(lanes[0])
    return np.asarray(out, np.float32)


def interact_quantize(vectors: Array, qparams: QParams) -> Array:
    """Quantise the first vector of each request (B, F, d) and the dot products of all pairs."""
    features = [np.concatenate([t[0], dots(t)]) for t in vectors]
    width = vectors.shape[2] + vectors.shape[1] * (vectors.shape[1] - 1) // 2
    return quantize(np.reshape(features, (len(vectors), width)), qparams)
