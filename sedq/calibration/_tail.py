"""Tails of samples: order statistics with exact intervals, and the generalised Pareto distribution over a high quantile."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, gammainc

from sedq._statistics import clopper_pearson

__all__ = ["Tail", "fit_tail", "order_statistic", "probability_of", "rate_interval", "worth_of_highest"]

Array = NDArray[Any]
FEWEST, MOST = 50, 1000  # exceedances that a tail is fitted to, the least as they are worth
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
    effective : float
        How many samples beyond it that occur once they are worth: Kish's (sum of counts)^2 / (sum of squared counts).
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
    effective: float
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


def probability_of(beyond: int, samples: int, distinct: int, rate: float) -> float:
    """Return the probability that at least as many exceed at a rate, of the trials that `rate_interval` counts."""
    if not beyond:
        return 1.0
    effective = max(1, math.floor(beyond * distinct / samples))
    return float(betainc(effective, distinct - effective + 1, rate))


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

    Each distinct value counts as often as it was sampled, and is drawn again, or not, with all of that. The largest number
    of excesses that passes the test is used; Bader, Yan and Zhang (2018) choose a level likewise. A tail that is worth too
    few values for its repeats is none (Kish, 1965).
    """
    ordered = np.sort(distinct)
    counts = _counts(samples, ordered)
    largest = min(max(MOST, int(2 * target * len(ordered))), int(HIGHEST * len(ordered)))
    for m in (largest >> k for k in range(HALVINGS)):
        if m < FEWEST:
            break
        excess, weights = ordered[-m:] - ordered[-m - 1], counts[-m:]
        share = float(weights.sum() / len(samples))
        if share < target or _effective(weights) < FEWEST:
            continue
        shape, scale = _fit(excess, weights)
        statistic = _anderson_darling(_cdf(excess, shape, scale), weights)
        p_value = _p_value(statistic, weights, shape, scale, rng)
        if p_value >= REJECTED:
            level = float(ordered[-m - 1])
            shapes, beyond, interval = _bootstrap(excess, counts, target, confidence, rng)
            tail = Tail(level, share, m, _effective(weights), shape, scale, shapes, statistic, p_value)
            return tail, level + beyond, interval
    return None


def worth_of_highest(samples: Array, distinct: Array) -> float:
    """Return how many samples that occur once the highest tenth of the distinct ones are worth."""
    ordered = np.sort(distinct)
    return _effective(_counts(samples, ordered)[-max(1, int(HIGHEST * len(ordered))) :])


def _counts(samples: Array, ordered: Array) -> Array:
    """Return how often each distinct value was sampled."""
    return np.bincount(np.searchsorted(ordered, samples), minlength=len(ordered)).astype(np.float64)


def _effective(weights: Array) -> float:
    """Return how many equal weights tell as much as these (Kish, Survey Sampling, 1965)."""
    return float(weights.sum() ** 2 / (weights**2).sum())


def _fit(excess: Array, weights: Array) -> tuple[float, float]:
    """Return shape and scale of ascending excesses by the estimator of Zhang and Stephens (Technometrics 51, 2009).

    The mean of theta = -shape / scale over a posterior of the profile likelihood, with a prior that the data suggest. Always
    feasible, nearly efficient, and no search. The likelihood is that of as many excesses as their weights
    are worth.
    """
    some = weights > 0
    x, p = excess[some], weights[some] / weights.sum()
    n = _effective(p)
    grid = 20 + math.isqrt(int(n))
    quartile = x[np.searchsorted(np.cumsum(p), 0.25)]
    theta = 1 / x[-1] + (1 - np.sqrt(grid / (np.arange(1, grid + 1) - 0.5))) / (3 * quartile)
    shapes = np.log1p(-theta[:, None] * x) @ p
    likelihood = n * (np.log(-theta / shapes) - shapes - 1)
    posterior = np.exp(likelihood - likelihood.max())
    best = float(theta @ posterior / posterior.sum())
    shape = float(np.log1p(-best * x) @ p)
    return shape, -shape / best


def _cdf(excess: Array, shape: float, scale: float) -> Array:
    from scipy.stats import genpareto  # slow to import

    return np.asarray(genpareto.cdf(excess, shape, scale=scale))


def _anderson_darling(uniform: Array, weights: Array) -> float:
    """Anderson and Darling's statistic of weighted ascending values that should be uniform.

    The integral of (P(u) - u)^2 / (u (1 - u)), with P the share of the weights up to u, times what they are worth. Between
    values P is constant and the integral P^2 ln u - (1 - P)^2 ln(1 - u) - u.
    """
    u = np.clip(uniform, 1e-15, 1 - 1e-15)
    upto = np.concatenate([[0.0], np.cumsum(weights)]) / weights.sum()
    below, above = np.diff(upto**2), -np.diff((1 - upto) ** 2)
    return float(_effective(weights) * (-1 - below @ np.log(u) - above @ np.log1p(-u)))


def _p_value(statistic: float, weights: Array, shape: float, scale: float, rng: np.random.Generator) -> float:
    """Return how often samples of the fitted distribution with these weights, fitted again, have as large a statistic."""
    beyond = 0
    for _ in range(REPLICATES):
        drawn, shuffled = _draw(len(weights), shape, scale, rng), rng.permutation(weights)
        beyond += _anderson_darling(_cdf(drawn, *_fit(drawn, shuffled)), shuffled) >= statistic
    return (beyond + 1) / (REPLICATES + 1)


def _draw(n: int, shape: float, scale: float, rng: np.random.Generator) -> Array:
    from scipy.stats import genpareto  # slow to import

    return np.sort(genpareto.isf(rng.uniform(size=n), shape, scale=scale))


def _bootstrap(
    excess: Array, counts: Array, target: float, confidence: float, rng: np.random.Generator
) -> tuple[tuple[float, float], float, tuple[float, float]]:
    """Return the interval of the shape, the upper end of the quantile's interval, and the interval of the rate there.

    Distinct values are drawn again with replacement, each with its count: how many samples exceed the level, and by how
    much. A tail that the fit gives an end point counts, for the threshold and for the upper end of the rate, as the longer
    of itself and an exponential one of the same mean: over a level this low the fit suggests end points that are too near.

    What occurs again is one lump of the rate, on one side of the threshold or the other, so that the rate scatters about
    the tail: as a gamma distribution whose variance is the mean times the lump that a sample belongs to on average.
    """
    from scipy.stats import genpareto  # slow to import

    m, n, weights = len(excess), counts.sum(), counts[-len(excess) :]
    sizes, often = np.unique(counts[:-m], return_counts=True)
    fits, shares = np.empty((REPLICATES, 2)), np.empty(REPLICATES)
    for k in range(REPLICATES):
        inside = rng.binomial(len(counts), m / len(counts))
        drawn = np.bincount(rng.integers(m, size=max(inside, 1)), minlength=m) * weights
        rest = float(rng.multinomial(len(counts) - inside, often / often.sum()) @ sizes)
        fits[k], shares[k] = _fit(excess, drawn), drawn.sum() / (drawn.sum() + rest)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    shapes, scales = fits.T
    endless = np.maximum(shapes, 0), scales / (1 - np.minimum(shapes, 0))  # of the same mean
    lump = float((weights * (weights - 1)).sum() / (n * weights.sum()))

    def highest(beyond: float) -> Array:
        each = (genpareto.sf(beyond, shapes, scale=scales), genpareto.sf(beyond, endless[0], scale=endless[1]))
        return np.asarray(shares * np.maximum(*each))

    wanted = np.minimum(1, target / shares)
    each = genpareto.isf(wanted, shapes, scale=scales), genpareto.isf(wanted, endless[0], scale=endless[1])
    beyond = float(np.quantile(np.maximum(*each), tails[1]))
    if lump:
        beyond = _first(lambda at: _below(highest(at), lump, target) >= tails[1], beyond, float(excess[-1]))
    low = _quantile(shares * genpareto.sf(beyond, shapes, scale=scales), lump, tails[0])
    high = max(float(np.quantile(highest(beyond), tails[1])), _quantile(highest(beyond), lump, tails[1]))
    shape = np.quantile(shapes, tails)
    return (float(shape[0]), float(shape[1])), beyond, (low, high)


def _below(rates: Array, lump: float, value: float) -> float:
    """Return the probability that a rate that comes in lumps is at most a value, on average over its means."""
    return float(gammainc(rates / lump, value / lump).mean())


def _quantile(rates: Array, lump: float, probability: float) -> float:
    """Return a quantile of a rate whose mean is one of those given; 0 for any of less than 1e-12."""
    if not lump:
        return float(np.quantile(rates, probability))
    at = _first(lambda log: _below(rates, lump, math.exp(log)) >= probability, math.log(1e-12), 1.0)
    return math.exp(at) if at > math.log(1e-12) else 0.0


def _first(holds: Callable[[float], bool], start: float, step: float) -> float:
    """Return the least number from `start` on of which something holds that holds ever after, by bisection."""
    if holds(start):
        return start
    while not holds(start + step):
        step *= 2
    low, high = start, start + step
    while high - low > 1e-6 * step:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
