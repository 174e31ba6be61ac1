"""Intervals of rates that were counted, and how many trials a wanted interval needs.

References: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927);
C. J. Clopper and E. S. Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial",
Biometrika 26 (1934); L. D. Brown, T. T. Cai and A. DasGupta, "Interval estimation for a binomial proportion",
Statistical Science 16 (2001), for which of them to use where.
"""

from __future__ import annotations

import math
import sys

from scipy.special import betaincinv, ndtri

from sedq import _validation

__all__ = ["clopper_pearson", "interval", "sample_size", "upper_bound", "wilson"]

FEW = 10  # with fewer successes or failures than this `interval` is Clopper and Pearson's


def _proportion(name: str, value: float, *, closed: bool = False) -> float:
    """Return a number between 0 and 1 as a float; `closed` allows both ends."""
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    expected = "from 0 to 1" if closed else "between 0 and 1"
    if not real or not (0 <= value <= 1 if closed else 0 < value < 1):
        raise ValueError(f"{name}: got {_validation.describe(value)}, expected a number {expected}")
    return float(value)


def _counts(k: int, n: int) -> tuple[int, int]:
    trials = _validation.integer("n", n, 0, sys.maxsize)
    return _validation.integer("k", k, 0, trials), trials


def _wilson(k: float, n: int, confidence: float) -> tuple[float, float]:
    z2 = float(ndtri((1 + confidence) / 2)) ** 2
    centre = (k + z2 / 2) / (n + z2)
    half = math.sqrt(z2 * (k * (n - k) / n + z2 / 4)) / (n + z2)
    # at the ends rounding would leave 1e-19 where it is exactly 0 or 1
    return 0.0 if k == 0 else max(0.0, centre - half), 1.0 if k == n else min(1.0, centre + half)


def _clopper_pearson(k: float, n: int, confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low = 0.0 if k == 0 else float(betaincinv(k, n - k + 1, tail))
    return low, 1.0 if k == n else float(betaincinv(k + 1, n - k, 1 - tail))


def _interval(k: float, n: int, confidence: float) -> tuple[float, float]:
    method = _clopper_pearson if min(k, n - k) < FEW else _wilson
    return method(k, n, confidence)


def wilson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's interval of a rate; (0, 1) of no trials.

    Its coverage is `confidence` on average over the rates, and may be less at some of them, those near 0 and 1 above all.

    Parameters
    ----------
    k, n : int
        Successes and trials.
    confidence : float, default 0.95
        Of the two-sided interval.

    Returns
    -------
    low, high : float

    Examples
    --------
    >>> from sedq._statistics import wilson
    >>> low, high = wilson(50, 100)
    >>> round(low, 4), round(high, 4)
    (0.4038, 0.5962)
    """
    k, n = _counts(k, n)
    confidence = _proportion("confidence", confidence)
    return _wilson(k, n, confidence) if n else (0.0, 1.0)


def clopper_pearson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Clopper and Pearson's interval of a rate; (0, 1) of no trials.

    It covers every rate with at least `confidence`, at the price of being wider than need be for most.

    Parameters
    ----------
    k, n : int
        Successes and trials.
    confidence : float, default 0.95
        Of the two-sided interval.

    Returns
    -------
    low, high : float

    Examples
    --------
    >>> from sedq._statistics import clopper_pearson
    >>> low, high = clopper_pearson(0, 100)
    >>> low, round(high, 4)
    (0.0, 0.0362)
    """
    k, n = _counts(k, n)
    confidence = _proportion("confidence", confidence)
    return _clopper_pearson(k, n, confidence) if n else (0.0, 1.0)


def interval(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval to state for a rate: Clopper and Pearson's near 0 and 1, Wilson's elsewhere.

    Near means fewer than 10 successes, or fewer than 10 failures; there Wilson's may cover less than it says.

    Parameters
    ----------
    k, n : int
        Successes and trials.
    confidence : float, default 0.95
        Of the two-sided interval.

    Returns
    -------
    low, high : float
        (0, 1) of no trials.

    Examples
    --------
    >>> from sedq._statistics import clopper_pearson, interval, wilson
    >>> interval(9, 1000) == clopper_pearson(9, 1000), interval(10, 1000) == wilson(10, 1000)
    (True, True)
    """
    k, n = _counts(k, n)
    confidence = _proportion("confidence", confidence)
    return _interval(k, n, confidence) if n else (0.0, 1.0)


def upper_bound(k: int, n: int, confidence: float = 0.95) -> float:
    """Return the one-sided bound of Clopper and Pearson: the rate isn't larger, with at least this confidence.

    For k = 0 this is ``1 - (1 - confidence) ** (1 / n)``, about 3 / n at 95 % (the rule of three).

    Parameters
    ----------
    k, n : int
        Successes and trials.
    confidence : float, default 0.95
        Of the bound.

    Returns
    -------
    float
        1 of no trials.

    Examples
    --------
    >>> from sedq._statistics import upper_bound
    >>> round(upper_bound(0, 1000), 6)
    0.002991
    """
    k, n = _counts(k, n)
    confidence = _proportion("confidence", confidence)
    if k == n:
        return 1.0
    if k == 0:
        return -math.expm1(math.log1p(-confidence) / n)
    return float(betaincinv(k + 1, n - k, confidence))


def sample_size(width: float, rate: float, confidence: float = 0.95) -> int:
    """Return how many trials make the interval of a rate no wider than wanted.

    Parameters
    ----------
    width : float
        Wanted width of `interval`, between 0 and 1.
    rate : float
        What the rate is expected to be, from 0 to 1; 0.5 needs the most trials.
    confidence : float, default 0.95
        Of the two-sided interval.

    Returns
    -------
    int
        The least number of trials, if as many of them succeed as expected.

    Examples
    --------
    >>> from sedq._statistics import sample_size
    >>> sample_size(0.02, 0.5), sample_size(0.001, 0)
    (9600, 3688)
    """
    width = _proportion("width", width)
    rate = _proportion("rate", rate, closed=True)
    confidence = _proportion("confidence", confidence)

    def wide(n: int) -> bool:
        low, high = _interval(rate * n, n, confidence)
        return high - low > width

    enough = 1
    while wide(enough):
        enough *= 2
    low = enough // 2  # too few, or none at all
    while enough - low > 1:
        middle = (low + enough) // 2
        low, enough = (middle, enough) if wide(middle) else (low, middle)
    return enough
