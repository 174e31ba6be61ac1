"""Affine quantisation: ``real = scale * (code - zero_point)``."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sedq import _validation
from sedq._sealed import Sealed

__all__ = ["QParams", "choose_qparams", "dequantize", "quantize"]

LIMITS = {"uint8": (0, 255), "int8": (-128, 127)}


def dtype_name(dtype: object) -> str:
    """Return the name of a type of codes; ValueError for any other."""
    name = dtype
    if isinstance(dtype, np.dtype) or (isinstance(dtype, type) and issubclass(dtype, np.generic)):
        name = np.dtype(dtype).name
    if not isinstance(name, str) or name not in LIMITS:
        raise ValueError(f"dtype: got {dtype!r}, expected 'uint8' or 'int8'")
    return name


@dataclass(frozen=True, eq=False)
class QParams(Sealed):
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
    _values: ClassVar[Any] = operator.attrgetter("scale", "zero_point", "dtype")

    def __post_init__(self) -> None:
        name = dtype_name(self.dtype)
        low, high = LIMITS[name]
        scale = _validation.array("scale", self.scale, "positive numbers, one or one per channel")
        if scale.ndim > 1:
            raise ValueError(f"scale: got {self.scale!r}, expected positive numbers, one or one per channel")
        scale = _validation.finite_array("scale", scale, (None,) * scale.ndim)
        expected = f"integers from {low} to {high}, one or one per channel"
        zero = _validation.array("zero_point", self.zero_point, expected)
        if not scale.size or (scale < _validation.FLOAT32_TINY).any():
            raise ValueError(f"scale: got {self.scale!r}, expected positive numbers in the range of float32")
        if zero.dtype.kind not in "iu" or (zero < low).any() or (zero > high).any():
            raise ValueError(f"zero_point: got {self.zero_point!r}, expected {expected}")
        if zero.ndim and zero.shape != scale.shape:
            raise ValueError(f"zero_point: got shape {zero.shape}, expected a scalar or {scale.shape} as the scale")
        object.__setattr__(self, "dtype", name)
        object.__setattr__(self, "scale", scale.copy() if scale.ndim else float(self.scale))
        object.__setattr__(self, "zero_point", zero.astype(np.int32) if zero.ndim else int(zero))
        self._seal()

    def _set_values(self, values: tuple[Any, Any, str]) -> None:
        scale, zero, name = values
        object.__setattr__(self, "dtype", name)
        object.__setattr__(self, "scale", scale if isinstance(scale, float) else np.frombuffer(scale, np.float32).copy())
        object.__setattr__(self, "zero_point", zero if isinstance(zero, int) else np.frombuffer(zero, np.int32).copy())

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
    dtype: str = "uint8",
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
    name = dtype_name(dtype)
    symmetric, reduce_range = (
        _validation.boolean("symmetric", symmetric),
        _validation.boolean("reduce_range", reduce_range),
    )
    lo, hi = _limits(low, high)
    lo, hi = np.minimum(lo, 0.0), np.maximum(hi, 0.0)
    qmin, qmax = LIMITS[name]
    if reduce_range:
        qmin, qmax = qmin // 2, qmax // 2
    if symmetric:
        scale = np.maximum(-lo, hi) / ((qmax - qmin) // 2)
        scale = np.where(scale < 2.0**-126, 1.0, scale)
        zero = np.full(scale.shape, (qmin + qmax + 1) // 2)
    else:
        with np.errstate(over="ignore"):
            scale = (hi - lo) / (qmax - qmin)
        scale = np.where(scale < 2.0**-126, 1.0, scale)
        zero = np.clip(qmin - np.rint(lo / scale), qmin, qmax).astype(np.int64)
    if (scale > _validation.FLOAT32_MAX).any():
        raise ValueError(f"low, high: got {low!r} and {high!r}, expected a range that float32 can hold")
    if scale.ndim == 0:
        return QParams(float(scale), int(zero), name)
    return QParams(scale, zero, name)


def _limits(low: ArrayLike, high: ArrayLike) -> tuple[Any, Any]:
    """Return both ends of a range as float64 arrays of one shape."""
    expected = "finite numbers, one or one per channel, low at most high"
    arrays = [_validation.array("low, high", v, expected) for v in (low, high)]
    try:
        if not all(a.dtype.kind in "fiu" for a in arrays):
            raise TypeError
        lo, hi = (a.astype(np.float64) for a in np.broadcast_arrays(*arrays))
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"low, high: got {low!r} and {high!r}, expected {expected}") from None
    if lo.ndim > 1 or not (np.isfinite(lo).all() and np.isfinite(hi).all()) or (lo > hi).any():
        raise ValueError(f"low, high: got {low!r} and {high!r}, expected {expected}")
    return lo, hi


def _along(name: str, a: Any, qparams: QParams, axis: int) -> tuple[Any, Any]:
    """Return scale and zero point shaped to broadcast along an axis of `a`."""
    if np.ndim(qparams.scale) == 0:
        return np.float32(qparams.scale), np.float32(qparams.zero_point)
    channels = len(qparams.scale)
    if a.ndim == 0:
        raise ValueError(f"{name}: got a scalar, expected an axis of {channels} channels")
    axis = _validation.integer("axis", axis, -a.ndim, a.ndim - 1)
    if a.shape[axis] != channels:
        raise ValueError(f"{name}: got shape {a.shape}, expected {channels} channels along axis {axis}")
    shape = [1] * a.ndim
    shape[axis] = channels
    zero = np.broadcast_to(np.float32(qparams.zero_point), channels)
    return np.reshape(qparams.scale, shape), np.reshape(zero, shape)


def _qparams(qparams: QParams) -> QParams:
    if not isinstance(qparams, QParams):
        raise TypeError(f"qparams: got {_validation.describe(qparams)}, expected a QParams")
    return qparams


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
        For NaN, or an axis that does not have the channels of `qparams`.

    Examples
    --------
    >>> import sedq
    >>> sedq.quantize([0.0, 0.5, 99.0], sedq.QParams(0.25, 10))
    array([ 10,  12, 255], dtype=uint8)
    """
    a = _validation.array("x", x, "real numbers")
    if a.dtype.kind not in "fiu" and a.size:
        raise ValueError(f"x: got {_validation.describe(a)}, expected real numbers")
    scale, zero = _along("x", a, _qparams(qparams), axis)
    low, high = LIMITS[qparams.dtype]
    # what overflows is clamped
    with np.errstate(over="ignore"):
        a = a.astype(np.float32)
        if np.isnan(a).any():
            raise ValueError("x: got NaN, expected numbers")
        codes = np.rint(np.clip(a * (np.float32(1) / scale), low - zero, high - zero)) + zero
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
    expected = _qparams(qparams).dtype
    a = _validation.array("codes", codes, expected)
    if a.dtype != expected:
        raise ValueError(f"codes: got {_validation.describe(a)}, expected {expected}")
    scale, zero = _along("codes", a, qparams, axis)
    return np.asarray((a.astype(np.float32) - zero) * scale, dtype=np.float32)
