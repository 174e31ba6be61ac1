"""Observers watch sample data and choose quantisation parameters for it.

They differ in the range they choose: `MinMaxObserver` all that was seen, `MovingAverageObserver` that of a typical batch,
`PercentileObserver` without a share of outliers, `HistogramObserver` the one of least squared error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sedq import _validation
from sedq.qparams import LIMITS, QParams, choose_qparams, dtype_name

__all__ = ["HistogramObserver", "MinMaxObserver", "MovingAverageObserver", "PercentileObserver"]

Array = NDArray[Any]
Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]


class _Observer:
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
        low, high = _extremes(rows)
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


def _extremes(rows: Array) -> tuple[Doubles, Doubles]:
    return rows.min(axis=1).astype(np.float64), rows.max(axis=1).astype(np.float64)


def _number(name: str, value: float, low: float, high: float) -> float:
    """Return a number above `low` and at most `high` as a float."""
    real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not real or not low < value <= high:
        raise ValueError(f"{name}: got {_validation.describe(value)}, expected a number above {low:g}, at most {high:g}")
    return float(value)


class MinMaxObserver(_Observer):
    """Smallest and largest value seen: nothing is clipped, and outliers widen the step.

    Parameters
    ----------
    dtype : {"uint8", "int8"}, default "uint8"
        Type of the codes.
    symmetric : bool, default False
        Zero point in the middle.
    channel_axis : int, optional
        Axis of the channels, each of which gets parameters of its own; None for one set of parameters.

    Raises
    ------
    ValueError
        For an unknown dtype, or an argument of another type.

    Examples
    --------
    >>> import sedq
    >>> observer = sedq.MinMaxObserver()
    >>> observer.observe([0.0, 1.0]).observe([127.5])
    MinMaxObserver(low=0.0, high=127.5)
    >>> observer.qparams()
    QParams(scale=0.5, zero_point=0, dtype='uint8')
    >>> rows = sedq.MinMaxObserver("int8", symmetric=True, channel_axis=0)
    >>> rows.observe([[1.0, -127.0], [63.5, 0.0]]).qparams().scale
    array([1. , 0.5], dtype=float32)
    """


class MovingAverageObserver(_Observer):
    """Smallest and largest value of a batch, averaged over batches with exponentially falling weights.

    Each call of `observe` is one batch, so that, unlike with other observers, how data is divided matters.

    Parameters
    ----------
    dtype : {"uint8", "int8"}, default "uint8"
        Type of the codes.
    symmetric : bool, default False
        Zero point in the middle.
    channel_axis : int, optional
        Axis of the channels, each of which gets parameters of its own; None for one set of parameters.
    averaging_constant : float, default 0.01
        Weight c of the newest batch: ``low += c * (min(x) - low)``. The first batch is taken as it is.

    Raises
    ------
    ValueError
        For an unknown dtype, an argument of another type, or a constant not above 0 and at most 1.

    References
    ----------
    B. Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only inference",
    CVPR 2018. The arithmetic is that of PyTorch's MovingAverageMinMaxObserver, in float64.

    Examples
    --------
    >>> import sedq
    >>> observer = sedq.MovingAverageObserver(averaging_constant=0.25)
    >>> observer.observe([0.0, 100.0]).observe([-4.0, 200.0])
    MovingAverageObserver(low=-1.0, high=125.0)
    """

    def __init__(
        self,
        dtype: Literal["uint8", "int8"] = "uint8",
        *,
        symmetric: bool = False,
        channel_axis: int | None = None,
        averaging_constant: float = 0.01,
    ) -> None:
        super().__init__(dtype, symmetric=symmetric, channel_axis=channel_axis)
        self.averaging_constant = _number("averaging_constant", averaging_constant, 0, 1)

    def _update(self, rows: Array) -> None:
        low, high = _extremes(rows)
        if np.isfinite(self.low).all():
            c = self.averaging_constant
            # not low + c * (new - low), whose difference may overflow
            low, high = (1 - c) * self.low + c * low, (1 - c) * self.high + c * high
        self._set(low, high)


class PercentileObserver(_Observer):
    """Range without the largest values, a given share of them: outliers are clipped.

    Affine parameters clip ``100 - percentile`` percent of the values at each end, symmetric ones that share of the largest
    magnitudes. The limits are values of the data (the sample quantile without interpolation), known to within 0.2 %.

    Parameters
    ----------
    dtype : {"uint8", "int8"}, default "uint8"
        Type of the codes.
    symmetric : bool, default False
        Zero point in the middle.
    channel_axis : int, optional
        Axis of the channels, each of which gets parameters of its own; None for one set of parameters.
    percentile : float, default 99.9
        Above 50 and at most 100, which clips nothing.

    Raises
    ------
    ValueError
        For an unknown dtype, an argument of another type, or a percentile out of range.

    Notes
    -----
    Values are counted in bins of a logarithmic histogram, 256 to a power of two: a limit is within 2**-9 of the true one,
    relatively, however far away the outliers are, and the result does not depend on the order of the data or its division.
    Memory holds only bins that are not empty, 16 bytes each: some 50 KB for bell-shaped data, however much of it.

    References
    ----------
    C. Masson, J. E. Rim, H. K. Lee, "DDSketch: a fast and fully-mergeable quantile sketch with relative-error guarantees",
    Proceedings of the VLDB Endowment 12(12), 2019.
    H. Wu et al., "Integer quantization for deep learning inference: principles and empirical evaluation",
    arXiv:2004.09602, 2020.

    Examples
    --------
    >>> import sedq
    >>> observer = sedq.PercentileObserver(percentile=99)
    >>> for part in range(10):
    ...     _ = observer.observe([value / 10 for value in range(100 * part, 100 * part + 100)])
    >>> observer.observe([1e6])
    PercentileObserver(low=0.0, high=1000000.0)
    >>> limit = observer.qparams().scale * 255
    >>> abs(limit / 99.0 - 1) < 0.002
    True
    """

    def __init__(
        self,
        dtype: Literal["uint8", "int8"] = "uint8",
        *,
        symmetric: bool = False,
        channel_axis: int | None = None,
        percentile: float = 99.9,
    ) -> None:
        super().__init__(dtype, symmetric=symmetric, channel_axis=channel_axis)
        self.percentile = _number("percentile", percentile, 50, 100)
        self._sketches: list[_LogHistogram] = []

    def _update(self, rows: Array) -> None:
        super()._update(rows)
        self._sketches = self._sketches or [_LogHistogram() for _ in rows]
        for sketch, row in zip(self._sketches, rows, strict=True):
            sketch.add(row.astype(np.float64))

    def _range(self) -> tuple[Any, Any]:
        pairs = []
        for sketch, low, high in zip(self._sketches, np.atleast_1d(self.low), np.atleast_1d(self.high), strict=True):
            if self.symmetric:
                limit = sketch.magnitude(self.percentile, max(-low, high))
                pairs.append((-limit, limit))
            else:
                pairs.append(sketch.interval(self.percentile, low, high))
        return self._shaped(pairs)


class _LogHistogram:
    """Counts of numbers by sign, exponent and leading eight bits of the mantissa."""

    DROPPED = 52 - 8

    def __init__(self) -> None:
        self.keys: Integers = np.zeros(0, np.int64)  # in increasing order of the numbers
        self.counts: Integers = np.zeros(0, np.int64)

    def add(self, values: Doubles) -> None:
        keys = np.abs(values).view(np.int64) >> self.DROPPED
        self.keys, self.counts = _tally(
            np.concatenate([self.keys, np.where(values < 0, -keys, keys)]),
            np.concatenate([self.counts, np.ones(keys.size, np.int64)]),
        )

    def _number(self, key: int) -> float:
        """Return the middle of a bin."""
        bits = (abs(key) << self.DROPPED) + (1 << (self.DROPPED - 1)) if key else 0
        return math.copysign(np.int64(bits).view(np.float64), key)

    def magnitude(self, percentile: float, largest: float) -> float:
        """Return the percentile of the magnitudes, given the largest."""
        keys, counts = _tally(np.abs(self.keys), self.counts)
        total = np.cumsum(counts)
        rank = _rank(percentile, int(total[-1]))
        if rank == total[-1]:
            return largest
        return min(self._number(int(keys[np.searchsorted(total, rank)])), largest)

    def interval(self, percentile: float, low: float, high: float) -> tuple[float, float]:
        """Return the percentiles at both ends, given the extremes."""
        total = np.cumsum(self.counts)
        rank = _rank(percentile, int(total[-1]))
        if rank == total[-1]:
            return low, high
        below, above = np.searchsorted(total, [total[-1] + 1 - rank, rank])
        return max(self._number(int(self.keys[below])), low), min(self._number(int(self.keys[above])), high)


def _tally(keys: Integers, counts: Integers) -> tuple[Integers, Integers]:
    """Add up the counts of equal keys."""
    found, place = np.unique(keys, return_inverse=True)
    total = np.zeros(found.size, np.int64)
    np.add.at(total, place, counts)
    return found, total


def _rank(percentile: float, count: int) -> int:
    """Return the rank, from 1, of a percentile in sorted data; 99.9 of 1,000 is 999 in spite of rounding."""
    return math.ceil(round(count * percentile / 100, 6))


class HistogramObserver(_Observer):
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
