"""An observer that chooses the range of least squared error over a histogram."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sedq import _validation
from sedq.quantization._observer import Observer
from sedq.quantization._qparams import LIMITS, QParams, choose_qparams

__all__ = ["HistogramObserver"]

Array = NDArray[Any]
Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]


class HistogramObserver(Observer):
    """Range of least squared error: what clipping outliers costs against the finer step for the rest.

    Parameters
    ----------
    dtype : {"uint8", "int8"}, default "uint8"
        Type of the codes.
    symmetric : bool, default False
        Zero point in the middle.
    channel_axis : int, optional
        Axis of the channels, each of which gets parameters of its own; None for one set of parameters.
    bins : int, default 2048
        Most bins of the histogram, from 256 to 65,536; the range of the data takes more than half of them.

    Raises
    ------
    ValueError
        For an unknown dtype, an argument of another type, or bins out of range.

    Notes
    -----
    Bins are a power of two wide, with edges at multiples of their width. When the range of the data outgrows them, pairs of
    bins are merged, so that the histogram does not depend on the order of the data or its division, and memory is bounded
    by 8 bytes for each bin and channel. Zeros are left out: every range represents them exactly.

    The error of a range is integrated over the histogram exactly, the values in a bin taken as spread evenly. As the sum of
    a square of the width and two convex tails it is close to convex: the best of a coarse grid, which has the whole range
    too, is refined by `scipy.optimize` (Brent's method for one limit, Powell's for two).

    References
    ----------
    R. Banner, Y. Nahshan, D. Soudry, "Post training 4-bit quantization of convolutional networks for rapid-deployment",
    NeurIPS 2019.

    Examples
    --------
    >>> import numpy as np
    >>> import sedq
    >>> rng = np.random.default_rng(0)
    >>> observer = sedq.HistogramObserver("int8", symmetric=True)
    >>> for _ in range(100):
    ...     _ = observer.observe(rng.laplace(size=10_000))
    >>> full = max(-observer.low, observer.high) / 127
    >>> bool(0.5 < observer.qparams().scale / full < 0.9)
    True
    """

    def __init__(
        self,
        dtype: Literal["uint8", "int8"] = "uint8",
        *,
        symmetric: bool = False,
        channel_axis: int | None = None,
        bins: int = 2048,
    ) -> None:
        super().__init__(dtype, symmetric=symmetric, channel_axis=channel_axis)
        self.bins = _validation.integer("bins", bins, 256, 65_536)
        self._histograms: list[_Histogram] = []

    def _update(self, rows: Array) -> None:
        super()._update(rows)
        self._histograms = self._histograms or [_Histogram(self.bins) for _ in rows]
        extremes = np.atleast_1d(self.low), np.atleast_1d(self.high)
        for histogram, row, low, high in zip(self._histograms, rows, *extremes, strict=True):
            histogram.add(row.astype(np.float64), float(low), float(high))

    def _range(self) -> tuple[Any, Any]:
        # what float32 can't hold is an error, before any search
        choose_qparams(self.low, self.high, self.dtype, symmetric=self.symmetric)
        extremes = np.atleast_1d(self.low), np.atleast_1d(self.high)
        pairs = [
            _least_squares(histogram, float(low), float(high), self.dtype, self.symmetric)
            for histogram, low, high in zip(self._histograms, *extremes, strict=True)
        ]
        return self._shaped(pairs)


class _Histogram:
    """Counts of numbers other than 0 in bins of width 2**exponent, whose edges are multiples of it."""

    def __init__(self, bins: int) -> None:
        self.exponent = 0
        self.first = 0  # lower edge of the first bin, in widths
        self.counts: Integers = np.zeros(bins, np.int64)

    def add(self, values: Doubles, low: float, high: float) -> None:
        """Count values; `low` and `high` are the extremes of all so far."""
        bins = len(self.counts)
        exponent = _exponent(low, high, bins)
        first = math.floor(math.ldexp(low, -exponent))
        if (exponent, first) != (self.exponent, self.first):
            filled = np.flatnonzero(self.counts)
            places = ((filled + self.first) >> min(exponent - self.exponent, 63)) - first if filled.size else filled
            counts = np.zeros(bins, np.int64)
            np.add.at(counts, places, self.counts[filled])
            self.exponent, self.first, self.counts = exponent, first, counts
        scaled = np.ldexp(values[values != 0], -exponent)
        self.counts += np.bincount(np.floor(scaled).astype(np.int64) - first, minlength=bins)

    def filled(self, low: float, high: float) -> tuple[Doubles, Doubles, Integers]:
        """Return lower edges, upper edges and counts of the bins that are not empty, cut off at the extremes."""
        filled = np.flatnonzero(self.counts)
        left, right = (np.ldexp((filled + self.first + end).astype(np.float64), self.exponent) for end in (0, 1))
        return np.maximum(left, low), np.minimum(right, high), self.counts[filled]


def _exponent(low: float, high: float, bins: int) -> int:
    """Return the exponent of the least width of which so many bins hold a range: the wider, the larger."""
    # numbers of bins stay well within 53 bits
    exponent = max(math.frexp(max(abs(low), abs(high)))[1] - 40, -1000)
    if low < high:
        exponent = max(exponent, math.frexp(high / 2 - low / 2)[1] - bins.bit_length())
    while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= bins:
        exponent += 1
    return exponent


def _least_squares(histogram: _Histogram, low: float, high: float, dtype: str, symmetric: bool) -> tuple[float, float]:
    """Return the range, within that of the data, which represents a histogram with the least squared error."""
    left, right, counts = histogram.filled(low, high)
    if symmetric:
        high = max(-low, high)
        low = -high
    low, high = min(low, 0.0), max(high, 0.0)
    if not counts.size:  # zeros alone
        return low, high

    def error(shares: Doubles) -> Doubles:
        """Return the errors of ranges (n, 1 or 2), as shares of the whole one."""
        at_once = max(1, 2**18 // counts.size)  # of a size that caches hold
        parts = [shares[i : i + at_once] for i in range(0, len(shares), at_once)]
        limits = [choose_qparams(low * s[:, 0], high * s[:, -1], dtype, symmetric=symmetric) for s in parts]
        return np.concatenate([_squared_error(left, right, counts, each) for each in limits])

    one = symmetric or low == 0 or high == 0  # limit to choose
    share = _best_shares(error, 1 if one else 2, 1 / len(histogram.counts))
    return low * float(share[0]), high * float(share[-1])


def _best_shares(error: Callable[[Doubles], Doubles], limits: int, least: float) -> Doubles:
    """Minimise over one or two limits, from `least` to 1: a coarse grid, then a local search."""
    from scipy import optimize  # takes long to import, and nothing else needs it

    def one_error(shares: Any) -> float:
        return float(error(np.clip(np.atleast_2d(shares), least, 1.0))[0])

    fine = 32 if limits == 1 else 8
    axis = np.concatenate([np.geomspace(least, 1 / fine, 8)[:-1], np.linspace(1 / fine, 1, fine)])
    grid = axis[:, None] if limits == 1 else np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    best = int(error(grid).argmin())
    refined: Any
    if limits == 1:
        around = float(axis[max(best - 1, 0)]), float(axis[min(best + 1, len(axis) - 1)])
        refined = optimize.minimize_scalar(one_error, bounds=around, method="bounded", options={"xatol": 1e-4})
    else:
        refined = optimize.minimize(
            one_error,
            grid[best].copy(),
            method="Powell",
            bounds=[(least, 1.0), (least, 1.0)],
            options={"xtol": 1e-3, "ftol": 1e-5, "maxfev": 200},
        )
    candidates = np.stack([grid[best], np.clip(np.atleast_1d(refined.x), least, 1.0)])
    return np.asarray(candidates[error(candidates).argmin()], dtype=np.float64)


def _squared_error(left: Doubles, right: Doubles, counts: Integers, qparams: QParams) -> Doubles:
    """Return the sum of squared errors, for each of some parameters, of numbers spread evenly between edges."""
    qmin, qmax = LIMITS[qparams.dtype]
    scale = qparams.scale.astype(np.float64)[:, None]
    zero = qparams.zero_point[:, None]

    def code(u: Doubles) -> Doubles:
        return np.asarray(np.clip(np.rint(u), qmin - zero, qmax - zero))

    def integral(u: Doubles) -> Doubles:
        # of the squared distance to the nearest code: 1/12 for each code passed, and a cubic around the next
        nearest = code(u)
        return np.asarray(nearest / 12 + (u - nearest) ** 3 / 3)

    start, end = left / scale, right / scale
    width, middle = end - start, (start + end) / 2
    narrow = width < 1e-4  # where the difference of integrals would cancel
    mean = (integral(end) - integral(start)) / np.where(narrow, 1, width)
    mean = np.where(narrow, (middle - code(middle)) ** 2, mean)
    return np.asarray((scale[:, 0] ** 2) * (mean @ counts.astype(np.float64)))
