"""How the residual of a bag's sum grows with the bag, so that one threshold serves bags of every size.

A bag of n rows of dimension d has the magnitude M = sum_i |w_i| (|scale_i| S_i + d |bias_i|) and the residual r, the sum of
its outputs less their reference. To first order r is the sum of all rounding errors, each at most u times the partial sum
it was made at. If they are taken as independent, and partial sums as growing evenly, the variance of r / (u M) is
g(n) = beta b(n) + alpha c(n) / d + kappa n^2:

* b(n) = sum over t = 2 .. n of (t / n)^2, the one chain of biases, whose errors enter all d outputs alike;
* c(n) = sum over t = 1 .. n of (t / n)^2, the d chains of products, plus 1 for the last addition, plus 1 for a mean's
  division; with weights each product w scale is rounded for the whole row: another d / n;
* n^2: a row that occurs again is rounded in the same direction again, as long as the sum stays between the same powers
  of two.

A bag of more than 4096 rows is pooled in parts; its n is the longest chain of additions, 4096 and the number of parts. That
is more than it needs: the errors of parts average out, unless rows occur again.

All are of the form g0 n^2 + g1 n + g2 + g3 / n + g4 / n^2, which the compiled loop evaluates. The amplitudes are fitted.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sedq._core import _embedding

__all__ = ["UNIT", "chain_of", "fit_growth", "growth_of", "limits", "probabilistic_lambda", "scale", "terms"]

Array = NDArray[Any]
Growth = tuple[float, ...]
UNIT = 2.0**-24
SMALLEST = 2.0**-126
# E[(error / (u |value|))^2] for errors even within half a unit in the last place and logarithmic mantissas
ROUNDING = 3 / (8 * math.log(2)) / 3
# What the samples must say against the derived amplitudes before these give way, in bags.
PRIOR_BAGS = 10


def terms(dim: int, *, mean: bool, weighted: bool) -> Array:
    """Return the coefficients of b(n), c(n) / d and n^2, each as (g0, ..., g4): (3, 5)."""
    chain = np.array([0, 1 / 3, 1 / 2, 1 / 6, 0])
    biases = chain - [0, 0, 0, 0, 1]
    products = (chain + [0, 0, 1 + mean, 0, 0]) / dim + [0, 0, 0, float(weighted), 0]
    return np.array([biases, products, [1, 0, 0, 0, 0]])


def chain_of(pooling: Array | int) -> Array:
    """Return the most additions that a row of a bag goes through: those of its part, and of the parts."""
    n = np.asarray(pooling, np.float64)
    return np.where(n <= _embedding.PART, n, _embedding.PART + np.ceil(n / _embedding.PART))


def growth_of(growth: Growth | Array, pooling: Array) -> Array:
    """Return g of the chains of bags of n >= 1 rows; 1 for empty ones."""
    n = np.maximum(chain_of(pooling), 1)
    g = np.asarray(growth)
    return np.asarray(n * (g[..., 0] * n + g[..., 1]) + g[..., 2] + (g[..., 3] + g[..., 4] / n) / n)


def scale(growth: Growth, pooling: Array, magnitude: Array) -> Array:
    """Return what a residual is divided by."""
    return np.asarray(UNIT * magnitude * np.sqrt(growth_of(growth, pooling)))


def fit_growth(residual: Array, magnitude: Array, pooling: Array, parts: Array, repeats: float) -> Growth:
    """Fit the three amplitudes to fault-free residuals, by iteratively reweighted non-negative least squares.

    The squares have a variance in proportion to the square of their mean, whence the weights. Where the samples say nothing
    of an amplitude, as bags of one row do of two of them, the derived one stays: for as much magnitude in the products as in
    the biases, and rows that occur again as often as `repeats`, the chance that two look-ups are of one row.
    """
    from scipy.optimize import nnls  # slow to import

    used = (magnitude > 0) & (pooling > 0)
    sizes, which = np.unique(pooling[used], return_inverse=True)
    counts = np.bincount(which, minlength=len(sizes))
    squares = np.bincount(which, (residual[used] / (UNIT * magnitude[used])) ** 2, len(sizes)) / counts
    columns = np.array([growth_of(part, sizes) for part in parts]).T
    prior = ROUNDING * np.array([0.25, 0.25, 0.25 * 0.27 * repeats + 1e-12])
    amplitudes = prior
    for _ in range(6):
        weights = np.sqrt(counts) / (columns @ amplitudes)
        system = np.vstack([columns * weights[:, None], np.diag(math.sqrt(PRIOR_BAGS) / prior)])
        wanted = np.concatenate([squares * weights, np.full(3, math.sqrt(PRIOR_BAGS))])
        # in units of the prior, for the amplitudes lie orders of magnitude apart
        amplitudes = nnls(system * prior, wanted)[0] * prior
    return tuple(float(g) for g in amplitudes @ parts)


def rounding_bound(pooling: Array, dim: int, magnitude: Array) -> Array:
    """Return what no fault-free residual exceeds, as the compiled loop computes it."""
    steps = (chain_of(pooling) + 5) * UNIT
    return np.asarray(steps / (1 - steps) * magnitude + _underflow(pooling, dim))


def _underflow(pooling: Array, dim: int) -> Array:
    return np.asarray(dim * (257.0 * pooling + 4) * SMALLEST)


def limits(threshold: float, growth: Growth, pooling: Array, dim: int, magnitude: Array) -> Array:
    """Return the limits of residuals, as the compiled loop computes them."""
    bound = rounding_bound(pooling, dim, magnitude)
    if threshold == math.inf:
        return bound
    return np.minimum(threshold * scale(growth, pooling, magnitude) + _underflow(pooling, dim), bound)


def probabilistic_lambda(failure: float, pooling: int, dim: int) -> float:
    """Return the factor of u M sqrt(n + 5) that bounds the residual except with probability `failure`; n is a chain's.

    Higham and Mary (2019), on products of k factors (1 + delta)^(+-1) and on inner products: with independent errors of mean
    zero the product is 1 + theta with |theta| <= exp(lambda sqrt(k) u + k u^2 / (1 - u)) - 1 except with probability
    2 exp(-lambda^2 (1 - u)^2 / 2). A bag has d n such products and n more for its biases; all must hold.
    """
    products = (dim + 1) * max(pooling, 1)
    factor = math.sqrt(2 * math.log(2 * products / failure)) / (1 - UNIT)
    steps = float(chain_of(pooling)) + 5
    exponent = factor * math.sqrt(steps) * UNIT + steps * UNIT**2 / (1 - UNIT)
    return math.expm1(exponent) / (math.sqrt(steps) * UNIT)
