"""What all observers share: checking of data, its division into channels, and parameters from a range."""

from __future__ import annotations

from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sedq import _validation
from sedq.quantization._qparams import QParams, choose_qparams, dtype_name

__all__ = ["Observer", "extremes", "number"]

Array = NDArray[Any]
Doubles = NDArray[np.float64]


class Observer:
    """What all observers share: checking of data, its division into channels, and parameters from a range.

    Attributes
    ----------
    low, high : float or ndarray
        Smallest and largest value, one or one per channel; infinities before any data.
    """

    def __init__(
        self, dtype: Literal["uint8", "int8"] = "uint8", *, symmetric: bool = False, channel_axis: int | None = None
    ) -> None:
        self.dtype = dtype_name(dtype)
        self.symmetric = _validation.boolean("symmetric", symmetric)
        # the most dimensions that NumPy allows
        self.channel_axis = None if channel_axis is None else _validation.integer("channel_axis", channel_axis, -64, 63)
        self.low: Any = np.inf
        self.high: Any = -np.inf
        self._channels = 0  # none before any data

    def observe(self, x: ArrayLike) -> Self:
        """Take note of data.

        Parameters
        ----------
        x : array_like of float
            Any shape that has the axis of the channels, if there is one; may be empty.

        Returns
        -------
        observer
            The observer itself.

        Raises
        ------
        ValueError
            For NaN, infinities, what is not numbers, or another number of channels than before.
        """
        rows = self._rows(x)
        if rows.size:
            self._channels = len(rows)
            self._update(rows)
        return self

    def qparams(self) -> QParams:
        """Return parameters for what was seen; ValueError when nothing was.

        Those of a per-channel observer are for ``quantize(x, qparams, axis=channel_axis)``.
        """
        if not self._channels:
            raise ValueError("observer: got no data, expected a call of observe() first")
        low, high = self._range()
        return choose_qparams(low, high, self.dtype, symmetric=self.symmetric)

    def __repr__(self) -> str:
        if self.channel_axis is None:
            return f"{type(self).__name__}(low={self.low}, high={self.high})"
        return f"{type(self).__name__}(channel_axis={self.channel_axis}, channels={self._channels})"

    def _rows(self, x: ArrayLike) -> Array:
        """Check data and return it as (channels, values)."""
        a = _validation.array("x", x, "real numbers")
        if not a.size:
            return np.empty((0, 0))
        if a.dtype.kind not in "fiu":
            raise ValueError(f"x: got {_validation.describe(a)}, expected real numbers")
        if a.dtype.itemsize > 8:
            with np.errstate(over="ignore"):
                a = a.astype(np.float64)
        if not np.isfinite(a).all():
            raise ValueError("x: got NaN or infinite values, expected finite ones")
        if self.channel_axis is None:
            return a.reshape(1, -1)
        if not -a.ndim <= self.channel_axis < a.ndim:
            raise ValueError(f"x: got shape {a.shape}, expected channels along axis {self.channel_axis}")
        rows = np.moveaxis(a, self.channel_axis, 0).reshape(a.shape[self.channel_axis], -1)
        if self._channels not in (0, len(rows)):
            raise ValueError(
                f"x: got shape {a.shape}, expected {self._channels} channels along axis {self.channel_axis}, as before"
            )
        return rows

    def _update(self, rows: Array) -> None:
        """Take note of (channels, values), not empty; here of the extremes."""
        low, high = extremes(rows)
        self._set(np.minimum(self.low, low), np.maximum(self.high, high))

    def _set(self, low: Doubles, high: Doubles) -> None:
        per_channel = self.channel_axis is not None
        self.low, self.high = (low, high) if per_channel else (float(low[0]), float(high[0]))

    def _range(self) -> tuple[Any, Any]:
        """Return the range to represent, as `choose_qparams` takes it; here all that was seen."""
        return self.low, self.high

    def _shaped(self, pairs: list[tuple[float, float]]) -> tuple[Any, Any]:
        """Make a range of one (low, high) per channel."""
        if self.channel_axis is None:
            return float(pairs[0][0]), float(pairs[0][1])
        low, high = np.array(pairs).T
        return low, high


def extremes(rows: Array) -> tuple[Doubles, Doubles]:
    """Return the smallest and the largest value of each channel."""
    return rows.min(axis=1).astype(np.float64), rows.max(axis=1).astype(np.float64)


def number(name: str, value: float, low: float, high: float) -> float:
    """Return a number above `low` and at most `high` as a float."""
    real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not real or not low < value <= high:
        raise ValueError(f"{name}: got {_validation.describe(value)}, expected a number above {low:g}, at most {high:g}")
    return float(value)
