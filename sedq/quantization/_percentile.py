"""An observer that clips a share of the values, found in a histogram whose bins grow with the values."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sedq.quantization._observer import Observer, number

__all__ = ["PercentileObserver"]

Array = NDArray[Any]
Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]


class PercentileObserver(Observer):
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
        self.percentile = number("percentile", percentile, 50, 100)
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
