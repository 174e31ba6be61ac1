"""Tails of samples: order statistics with exact intervals, and the generalised Pareto distribution over a high quantile."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sedq._statistics import clopper_pearson

__all__ = ["Tail", "fit_tail", "order_statistic", "rate_interval"]

Array = NDArray[Any]
FEWEST, MOST = 50, 1000  # exceedances that a tail is fitted to
HIGHEST = 0.1  # largest share of the distinct samples that a tail is fitted to
HALVINGS = 4  # levels that are tried
REPLICATES = 400
REJECTED = 0.1  # a fit with a smaller p-value is not used


@dataclass(frozen=True)
class Tail:
    """A generalised Pareto distribution fitted to the excesses over a high level.

    Attributes
    ----------
    level : float
        Excesses are over this, in units of the threshold.
    share : float
        Share of the samples beyond the level.
    exceedances : int
        Distinct samples beyond it, to which the distribution was fitted.
    shape, scale : float
        Parameters, as `scipy.stats.genpareto` has them: ``c`` and ``scale``. A negative shape has an end point.
    shape_interval : tuple of float
        Bootstrap interval of the shape.
    statistic, p_value : float
        Anderson and Darling's, and its p-value from a parametric bootstrap that fits again each time.
    """

    level: float
    share: float
    exceedances: int
    shape: float
    scale: float
    shape_interval: tuple[float, float]
    statistic: float
    p_value: float

    def rate(self, value: float | Array) -> Any:
        """Return the fitted probability that a sample exceeds a value at or above the level."""
        from scipy.stats import genpareto  # slow to import

        return self.share * genpareto.sf(np.asarray(value) - self.level, self.shape, scale=self.scale)


def rate_interval(beyond: int, samples: int, distinct: int, confidence: float) -> tuple[float, float]:
    """Clopper and Pearson's interval of a rate, for as many trials as there are distinct samples.

    A sample that occurs again tells nothing new; of the effective size the interval of Korn and Graubard (1998) is made.
    """
    effective = beyond * distinct / samples
    low, _ = clopper_pearson(math.floor(effective), distinct, confidence)
    _, high = clopper_pearson(min(distinct, math.ceil(effective)), distinct, confidence)
    return low, high


def order_statistic(ordered: Array, distinct: int, target: float, confidence: float) -> float | None:
    """Return the lowest sample whose rate of exceedance is at most `target` with confidence; None if there is none."""
    n = len(ordered)

    def holds(beyond: int) -> bool:
        return rate_interval(beyond, n, distinct, confidence)[1] <= target

    if not holds(0):
        return None
    good, bad = 0, n
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if holds(middle) else (good, middle)
    return float(ordered[n - 1 - good])


def fit_tail(
    samples: Array, distinct: Array, target: float, confidence: float, rng: np.random.Generator
) -> tuple[Tail, float, tuple[float, float]] | None:
    """Fit a tail and return it, the threshold for a rate, and the interval of the rate there; None if no tail fits.

    The largest number of excesses that passes the test is used; Bader, Yan and Zhang (2018) choose a level likewise.
    """
    ordered = np.sort(distinct)
    largest = min(max(MOST, int(2 * target * len(ordered))), int(HIGHEST * len(ordered)))
    for m in (largest >> k for k in range(HALVINGS)):
        if m < FEWEST:
            break
        level = float(ordered[-m - 1])
        share = float(np.mean(samples > level))
        if share < target:
            continue
        excess = ordered[-m:] - level
        shape, scale = _fit(excess)
        statistic = _anderson_darling(_cdf(excess, shape, scale))
        p_value = _p_value(statistic, m, shape, scale, rng)
        if p_value >= REJECTED:
            shapes, threshold, interval = _bootstrap(excess, level, share, len(ordered), target, confidence, rng)
            tail = Tail(level, share, m, shape, scale, shapes, statistic, p_value)
            return tail, threshold, interval
    return None


def _fit(excess: Array) -> tuple[float, float]:
    """Return shape and scale by the estimator of Zhang and Stephens (Technometrics 51, 2009).

    The mean of theta = -shape / scale over a posterior of the profile likelihood, with a prior that the data suggest. Always
    feasible, nearly efficient, and no search.
    """
    x = np.sort(excess)
    n = len(x)
    grid = 20 + math.isqrt(n)
    quartile = x[int(n / 4 + 0.5) - 1]
    theta = 1 / x[-1] + (1 - np.sqrt(grid / (np.arange(1, grid + 1) - 0.5))) / (3 * quartile)
    shapes = np.log1p(-theta[:, None] * x).mean(axis=1)
    likelihood = n * (np.log(-theta / shapes) - shapes - 1)
    posterior = np.exp(likelihood - likelihood.max())
    best = float(theta @ posterior / posterior.sum())
    shape = float(np.log1p(-best * x).mean())
    return shape, -shape / best


def _cdf(excess: Array, shape: float, scale: float) -> Array:
    from scipy.stats import genpareto  # slow to import

    return np.asarray(genpareto.cdf(np.sort(excess), shape, scale=scale))


def _anderson_darling(uniform: Array) -> float:
    """Anderson and Darling's statistic of ascending values that should be uniform."""
    u = np.clip(uniform, 1e-15, 1 - 1e-15)
    n = len(u)
    odd = 2 * np.arange(1, n + 1) - 1
    return float(-n - (odd * (np.log(u) + np.log1p(-u[::-1]))).sum() / n)


def _p_value(statistic: float, n: int, shape: float, scale: float, rng: np.random.Generator) -> float:
    """Return how often samples of the fitted distribution, fitted again, have as large a statistic."""
    beyond = 0
    for _ in range(REPLICATES):
        drawn = _draw(n, shape, scale, rng)
        beyond += _anderson_darling(_cdf(drawn, *_fit(drawn))) >= statistic
    return (beyond + 1) / (REPLICATES + 1)


def _draw(n: int, shape: float, scale: float, rng: np.random.Generator) -> Array:
    from scipy.stats import genpareto  # slow to import

    return np.asarray(genpareto.isf(rng.uniform(size=n), shape, scale=scale))


def _bootstrap(
    excess: Array, level: float, share: float, n: int, target: float, confidence: float, rng: np.random.Generator
) -> tuple[tuple[float, float], float, tuple[float, float]]:
    """Return the interval of the shape, the upper end of the quantile's interval, and the interval of the rate there.

    The samples are drawn again with replacement: how many exceed the level, and by how much. A tail that the fit gives an
    end point counts, for the threshold and for the upper end of the rate, as the longer of itself and an exponential one
    of the same mean: over a level this low the fit suggests end points that are too near.
    """
    from scipy.stats import genpareto  # slow to import

    fits = np.array([_fit(rng.choice(excess, len(excess))) for _ in range(REPLICATES)])
    shares = share * rng.binomial(n, len(excess) / n, REPLICATES) / len(excess)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    shapes, scales = fits.T
    endless = np.maximum(shapes, 0), scales / (1 - np.minimum(shapes, 0))  # of the same mean
    wanted = np.minimum(1, target / shares)
    quantiles = np.maximum(genpareto.isf(wanted, shapes, scale=scales), genpareto.isf(wanted, endless[0], scale=endless[1]))
    beyond = float(np.quantile(quantiles, tails[1]))
    rates = shares * genpareto.sf(beyond, shapes, scale=scales)
    highest = np.maximum(rates, shares * genpareto.sf(beyond, endless[0], scale=endless[1]))
    low, high = np.quantile(rates, tails[0]), np.quantile(highest, tails[1])
    shape = np.quantile(shapes, tails)
    return (float(shape[0]), float(shape[1])), level + beyond, (float(low), float(high))
