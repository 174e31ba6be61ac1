"""Conversion and checking of arguments, before anything is computed."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

__all__ = [
    "activations",
    "finite_array",
    "finite_scalar",
    "float_rows",
    "output",
    "positive_scalar",
    "zero_point",
]

Array = NDArray[Any]


def describe(value: object) -> str:
    """Say what an argument is: dtype and shape of an array, else its type."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} array of shape {value.shape}"
    return f"{type(value).__name__} {value!r}"


def activations(x: Array, k: int) -> Array:
    """Return quantised activations (..., K) as a contiguous (M, K) array of uint8."""
    if type(x) is not np.ndarray:
        x = np.asarray(x)
    if x.dtype != np.uint8 or x.ndim == 0 or x.shape[-1] != k:
        raise ValueError(f"x: got {describe(x)}, expected uint8 of shape (..., {k})")
    if x.ndim == 2 and x.flags.c_contiguous:
        return x
    return np.ascontiguousarray(x).reshape(math.prod(x.shape[:-1]), k)


def float_rows(x: ArrayLike, k: int, name: str = "x") -> Array:
    """Return float activations (..., K) as a contiguous (M, K) array of float32."""
    a = np.asarray(x)
    if a.dtype.kind != "f" or a.ndim == 0 or a.shape[-1] != k:
        raise ValueError(f"{name}: got {describe(a)}, expected float32 of shape (..., {k})")
    return np.ascontiguousarray(a, dtype=np.float32).reshape(math.prod(a.shape[:-1]), k)


def output(out: Array | None, shape: Sequence[int], dtype: DTypeLike, inputs: Sequence[Array] = ()) -> Array:
    """Return the array to write: `out` if it fits, else a new one."""
    if out is None:
        return np.empty(shape, dtype)
    if not isinstance(out, np.ndarray) or out.shape != tuple(shape) or out.dtype != dtype:
        raise ValueError(f"out: got {describe(out)}, expected {np.dtype(dtype)} array of shape {tuple(shape)}")
    if not out.flags.writeable or not out.flags.c_contiguous:
        raise ValueError("out: got a read-only or non-contiguous array, expected a writeable C-contiguous one")
    if any(np.may_share_memory(out, a) for a in inputs):
        raise ValueError("out: got an array that overlaps an input, expected memory of its own")
    return out


def finite_scalar(name: str, value: float) -> float:
    """Return a number as a float; it must be finite."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: got {describe(value)}, expected a number") from None
    if not math.isfinite(number):
        raise ValueError(f"{name}: got {number}, expected a finite number")
    return number


def positive_scalar(name: str, value: float) -> float:
    """Return a number as a float; it must be finite, positive, and stay so in float32."""
    number = finite_scalar(name, value)
    if not 2.0**-126 <= number <= 3.4028234663852886e38:
        raise ValueError(f"{name}: got {number}, expected a positive number in the range of float32")
    return number


def zero_point(name: str, value: int, low: int = 0, high: int = 255) -> int:
    """Return a zero point as an int within its bounds."""
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name}: got {describe(value)}, expected an integer") from None
    if not low <= number <= high:
        raise ValueError(f"{name}: got {number}, expected {low} to {high}")
    return number


def finite_array(name: str, value: ArrayLike, shape: tuple[int | None, ...]) -> Array:
    """Return a contiguous float32 array of finite numbers; None in `shape` stands for any length."""
    a = np.asarray(value)
    fits = a.ndim == len(shape) and all(want in (None, got) for got, want in zip(a.shape, shape, strict=True))
    if a.dtype.kind not in "fiu" or not fits:
        expected = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{name}: got {describe(a)}, expected float32 of shape ({expected})")
    with np.errstate(over="ignore"):
        a = np.asarray(a, dtype=np.float32, order="C")
    if not np.isfinite(a).all():
        raise ValueError(f"{name}: got NaN or infinite values, expected finite ones")
    return a
