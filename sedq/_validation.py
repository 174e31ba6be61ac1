"""Conversion and checking of arguments, before anything is computed.

Every error is a ValueError that says ``name: got ..., expected ...``.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

__all__ = [
    "activations",
    "array",
    "boolean",
    "describe",
    "finite_array",
    "float_rows",
    "integer",
    "integers",
    "output",
    "positive_scalar",
]

Array = NDArray[Any]
UINT8, INT32, INT64, FLOAT32 = np.dtype(np.uint8), np.dtype(np.int32), np.dtype(np.int64), np.dtype(np.float32)
FLOAT32_MAX = float(np.finfo(np.float32).max)
FEW = 4096
FLOAT32_TINY = 2.0**-126  # below it the reciprocal may overflow


def describe(value: object) -> str:
    """Say what an argument is: dtype and shape of an array, else its type and the beginning of its repr."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} array of shape {value.shape}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 80 else text[:77] + '...'}"


def array(name: str, value: object, expected: str) -> Array:
    """Return what NumPy makes of a value, ragged sequences refused."""
    if type(value) is np.ndarray:
        return value
    try:
        return np.asarray(value)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"{name}: got {describe(value)}, expected {expected}") from None


def activations(x: ArrayLike, k: int) -> Array:
    """Return quantised activations (..., K) as a contiguous (M, K) array of uint8."""
    if type(x) is np.ndarray and x.dtype is UINT8 and x.ndim == 2 and x.shape[1] == k and x.flags.c_contiguous:
        return x  # the usual case, soon
    a = array("x", x, f"uint8 of shape (..., {k})")
    if a.dtype != UINT8 or a.ndim == 0 or a.shape[-1] != k:
        raise ValueError(f"x: got {describe(a)}, expected uint8 of shape (..., {k})")
    if a.ndim == 2 and a.flags.c_contiguous:
        return a
    return np.ascontiguousarray(a).reshape(math.prod(a.shape[:-1]), k)


def float_rows(x: ArrayLike, k: int, name: str = "x") -> Array:
    """Return finite float activations (..., K) as a contiguous (M, K) array of float32."""
    expected = f"float32 of shape (..., {k})"
    a = array(name, x, expected)
    if a.dtype.kind != "f" or a.ndim == 0 or a.shape[-1] != k:
        raise ValueError(f"{name}: got {describe(a)}, expected {expected}")
    return _finite(name, a).reshape(math.prod(a.shape[:-1]), k)


def _finite(name: str, a: Array) -> Array:
    """Return a C-contiguous float32 array, of finite numbers."""
    if a.dtype is not FLOAT32 or not a.flags.carray:
        with np.errstate(over="ignore"):
            a = np.require(a, np.float32, ["C", "A"])
    # of few numbers the sum of squares is soon told, and is finite only if they are
    if not (a.size < FEW and math.isfinite(np.vdot(a, a))) and not np.isfinite(a).all():
        raise ValueError(f"{name}: got NaN or infinite values, expected finite ones in the range of float32")
    return a


def finite_array(name: str, value: ArrayLike, shape: Sequence[int | None]) -> Array:
    """Return a C-contiguous float32 array of finite numbers; None in `shape` stands for any length."""
    if type(value) is not np.ndarray or value.shape != shape or value.dtype is not FLOAT32:  # else all is right, and soon
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        expected = f"float32 of shape ({wanted}{',' if len(shape) == 1 else ''})"
        value = array(name, value, expected)
        fits = value.ndim == len(shape) and all(want in (None, got) for got, want in zip(value.shape, shape, strict=True))
        if value.dtype.kind not in "fiu" or not fits:
            raise ValueError(f"{name}: got {describe(value)}, expected {expected}")
    return _finite(name, value)


def output(out: Array | None, shape: Sequence[int], dtype: DTypeLike, inputs: Sequence[Array | None] = ()) -> Array:
    """Return the array to write: `out` if it fits, else a new one."""
    if out is None:
        return np.empty(shape, dtype)
    if not isinstance(out, np.ndarray) or out.shape != tuple(shape) or out.dtype != dtype:
        raise ValueError(f"out: got {describe(out)}, expected {np.dtype(dtype)} array of shape {tuple(shape)}")
    if not out.flags.writeable or not out.flags.c_contiguous:
        raise ValueError("out: got a read-only or non-contiguous array, expected a writeable C-contiguous one")
    if not out.flags.aligned:
        raise ValueError(f"out: got a misaligned array, expected one aligned for {out.dtype}")
    if any(a is not None and np.may_share_memory(out, a) for a in inputs):
        raise ValueError("out: got an array that overlaps an input, expected memory of its own")
    return out


def positive_scalar(name: str, value: float) -> float:
    """Return a number as a float; it must be positive, and normal in float32."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
        raise ValueError(f"{name}: got {describe(value)}, expected a positive number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not FLOAT32_TINY <= number <= FLOAT32_MAX:
        raise ValueError(f"{name}: got {number}, expected a positive number in the range of float32")
    return number


def integer(name: str, value: int, low: int, high: int) -> int:
    """Return an integer within its bounds."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name}: got {describe(value)}, expected an integer from {low} to {high}") from None
    if not low <= number <= high:
        raise ValueError(f"{name}: got {number}, expected an integer from {low} to {high}")
    return number


def integers(name: str, value: ArrayLike, ndims: Sequence[int]) -> Array:
    """Return a contiguous array of int32 or int64 of one of some numbers of dimensions."""
    if type(value) is np.ndarray and (value.dtype is INT64 or value.dtype is INT32) and value.ndim in ndims:
        flags = value.flags  # what nearly every call gives, and fast
        if flags.c_contiguous and flags.aligned:
            return value
    expected = " or ".join(f"{n}-dimensional" for n in ndims) + " int32 or int64"
    a = array(name, value, expected)
    if a.size == 0 and not isinstance(value, np.ndarray):
        a = a.astype(np.int64)  # an empty list has no dtype of its own
    if a.dtype not in (np.int32, np.int64) or a.ndim not in ndims:
        raise ValueError(f"{name}: got {describe(a)}, expected {expected}")
    return a if a.flags.c_contiguous and a.flags.aligned else a.copy()


def boolean(name: str, value: bool) -> bool:
    """Return a switch; what is merely true or false is refused."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name}: got {value!r}, expected True or False")
    return bool(value)
