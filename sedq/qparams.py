"""Affine quantisation: ``real = scale * (code - zero_point)``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sedq import _validation

__all__ = ["QParams", "choose_qparams", "dequantize", "quantize"]

LIMITS = {"uint8": (0, 255), "int8": (-128, 127)}


@dataclass(frozen=True, eq=False)
class QParams:
    """Parameters of a quantised tensor.

    Parameters
    ----------
    scale : float or array_like of float
        Size of a step: one number, or one per channel. Positive.
    zero_point : int or array_like of int, default 0
        The code that stands for 0. Within the limits of `dtype`.
    dtype : {"uint8", "int8"}, default "uint8"
        Type of the codes.

    Raises
    ------
    ValueError
        For a scale that is not positive and finite, a zero point out of range, another dtype, or shapes that differ.

    Examples
    --------
    >>> import sedq
    >>> sedq.QParams(0.5, 128)
    QParams(scale=0.5, zero_point=128, dtype='uint8')
    """

    scale: Any
    zero_point: Any = 0
    dtype: str = "uint8"

    def __post_init__(self) -> None:
        name = np.dtype(self.dtype).name if not isinstance(self.dtype, str) else self.dtype
        if name not in LIMITS:
            raise ValueError(f"dtype: got {self.dtype!r}, expected 'uint8' or 'int8'")
        scale = _validation.finite_array("scale", self.scale, (None,) * np.ndim(self.scale))
        zero = np.asarray(self.zero_point)
        low, high = LIMITS[name]
        if scale.ndim > 1 or (scale <= 0).any():
            raise ValueError(f"scale: got {self.scale!r}, expected positive numbers, one or one per channel")
        if zero.dtype.kind not in "iu" or (zero < low).any() or (zero > high).any():
            raise ValueError(f"zero_point: got {self.zero_point!r}, expected integers from {low} to {high}")
        if zero.ndim and zero.shape != scale.shape:
            raise ValueError(f"zero_point: got shape {zero.shape}, expected a scalar or {scale.shape} as the scale")
        object.__setattr__(self, "dtype", name)
        object.__setattr__(self, "scale", scale if scale.ndim else float(self.scale))
        object.__setattr__(self, "zero_point", zero.astype(np.int32) if zero.ndim else int(zero))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, QParams)
            and self.dtype == other.dtype
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )

    __hash__ = None  # type: ignore[assignment]


def choose_qparams(
    low: ArrayLike,
    high: ArrayLike,
    dtype: Literal["uint8", "int8"] = "uint8",
    *,
    symmetric: bool = False,
    reduce_range: bool = False,
) -> QParams:
    """Choose scale and zero point for values from `low` to `high`.

    The range is widened to contain 0, so that 0 is represented exactly (padding, ReLU).

    Parameters
    ----------
    low, high : float or array_like of float
        Smallest and largest value; arrays give parameters per channel.
    dtype : {"uint8", "int8"}, default "uint8"
        Type of the codes.
    symmetric : bool, default False
        Zero point in the middle (128 or 0), scale from the larger magnitude.
    reduce_range : bool, default False
        Use seven bits, as PyTorch's dynamic modules do.

    Returns
    -------
    QParams

    Raises
    ------
    ValueError
        For NaN, infinities, `low` above `high`, or an unknown dtype.

    Examples
    --------
    >>> import sedq
    >>> sedq.choose_qparams(-100.0, 155.0)
    QParams(scale=1.0, zero_point=100, dtype='uint8')
    """
    if dtype not in LIMITS:
        raise ValueError(f"dtype: got {dtype!r}, expected 'uint8' or 'int8'")
    lo, hi = np.broadcast_arrays(np.asarray(low, np.float64), np.asarray(high, np.float64))
    if not (np.isfinite(lo).all() and np.isfinite(hi).all()) or (lo > hi).any():
        raise ValueError(f"low, high: got {low!r} and {high!r}, expected finite numbers, low at most high")
    lo, hi = np.minimum(lo, 0.0), np.maximum(hi, 0.0)
    qmin, qmax = LIMITS[dtype]
    if reduce_range:
        qmin, qmax = qmin // 2, qmax // 2
    if symmetric:
        scale = np.maximum(-lo, hi) / ((qmax - qmin) // 2)
        scale = np.where(scale < 2.0**-126, 1.0, scale)
        zero = np.full(scale.shape, (qmin + qmax + 1) // 2)
    else:
        scale = (hi - lo) / (qmax - qmin)
        scale = np.where(scale < 2.0**-126, 1.0, scale)
        zero = np.clip(qmin - np.rint(lo / scale), qmin, qmax).astype(np.int64)
    if (scale > np.finfo(np.float32).max).any():
        raise ValueError(f"low, high: got {low!r} and {high!r}, expected a range that float32 can hold")
    if scale.ndim == 0:
        return QParams(float(scale), int(zero), dtype)
    return QParams(scale, zero, dtype)


def _along(values: Any, ndim: int, axis: int) -> Any:
    """Parameters shaped to broadcast along an axis."""
    if np.ndim(values) == 0:
        return values
    shape = [1] * ndim
    shape[axis] = -1
    return np.reshape(values, shape)


def quantize(x: ArrayLike, qparams: QParams, *, axis: int = 0) -> NDArray[Any]:
    """Quantise: ``clamp(zero_point + rint(x * (1 / scale)))``, in float32.

    Parameters
    ----------
    x : array_like of float
        Any shape. Infinities are clamped.
    qparams : QParams
        Parameters; per channel ones apply along `axis`.
    axis : int, default 0
        Axis of the channels.

    Returns
    -------
    ndarray of qparams.dtype, of the shape of x

    Raises
    ------
    ValueError
        For NaN.

    Examples
    --------
    >>> import sedq
    >>> sedq.quantize([0.0, 0.5, 99.0], sedq.QParams(0.25, 10))
    array([ 10,  12, 255], dtype=uint8)
    """
    a = np.asarray(x, dtype=np.float32)
    if np.isnan(a).any():
        raise ValueError("x: got NaN, expected numbers")
    low, high = LIMITS[qparams.dtype]
    zero = np.asarray(_along(qparams.zero_point, a.ndim, axis), dtype=np.float32)
    inverse = np.float32(1) / np.asarray(_along(qparams.scale, a.ndim, axis), dtype=np.float32)
    with np.errstate(over="ignore"):
        codes = np.rint(np.clip(a * inverse, low - zero, high - zero)) + zero
    return np.asarray(codes, dtype=qparams.dtype)


def dequantize(codes: ArrayLike, qparams: QParams, *, axis: int = 0) -> NDArray[np.float32]:
    """Return ``scale * (codes - zero_point)`` as float32.

    Parameters
    ----------
    codes : array_like of qparams.dtype
        Any shape.
    qparams : QParams
        Parameters; per channel ones apply along `axis`.
    axis : int, default 0
        Axis of the channels.

    Returns
    -------
    ndarray of float32, of the shape of codes

    Raises
    ------
    ValueError
        For codes of another dtype.

    Examples
    --------
    >>> import sedq
    >>> import numpy as np
    >>> sedq.dequantize(np.array([10, 12], dtype=np.uint8), sedq.QParams(0.25, 10))
    array([0. , 0.5], dtype=float32)
    """
    a = np.asarray(codes)
    if a.dtype != qparams.dtype:
        raise ValueError(f"codes: got {_validation.describe(a)}, expected {qparams.dtype}")
    zero = np.asarray(_along(qparams.zero_point, a.ndim, axis), dtype=np.int32)
    scale = np.asarray(_along(qparams.scale, a.ndim, axis), dtype=np.float32)
    return np.asarray((a.astype(np.int32) - zero).astype(np.float32) * scale, dtype=np.float32)
