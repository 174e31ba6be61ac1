"""Tails: the estimator, its test, and whether intervals cover what they should."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import genpareto, norm

from sedq.calibration import _tail


@pytest.mark.parametrize("shape", [-0.4, -0.1, 0.05, 0.4])
def test_the_estimator_agrees_with_maximum_likelihood(shape: float) -> None:
    x = genpareto.rvs(shape, scale=3, size=4000, random_state=np.random.default_rng(1))
    got = _tail._fit(x)
    fitted, _, scale = genpareto.fit(x, floc=0)
    assert got[0] == pytest.approx(fitted, abs=0.02)
    assert got[1] == pytest.approx(scale, rel=0.02)
    # always feasible: no excess lies beyond the end point
    assert got[0] >= 0 or x.max() < -got[1] / got[0]


def test_anderson_darling_by_its_definition(rng: np.random.Generator) -> None:
    u = np.sort(rng.uniform(size=30))
    grid = np.linspace(0, 1, 2_000_001)[1:-1]
    empirical = np.searchsorted(u, grid, side="right") / 30
    integral = 30 * np.mean((empirical - grid) ** 2 / (grid * (1 - grid)))
    assert _tail._anderson_darling(u) == pytest.approx(integral, rel=1e-3)


def test_the_test_accepts_what_fits_and_rejects_what_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tail, "REPLICATES", 100)
    accepted, rejected = 0, 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        for x, fits in ((genpareto.rvs(0.1, size=300, random_state=rng), True), (rng.lognormal(2, 0.2, 300), False)):
            shape, scale = _tail._fit(x)
            p = _tail._p_value(_tail._anderson_darling(_tail._cdf(x, shape, scale)), 300, shape, scale, rng)
            accepted += fits and p >= 0.1
            rejected += not fits and p < 0.1
    assert accepted >= 14  # 18 expected
    assert rejected == 20


@pytest.mark.parametrize("target", [1e-2, 1e-3, 1e-5])
def test_the_rate_is_covered(monkeypatch: pytest.MonkeyPatch, target: float) -> None:
    """Of half-normal samples, whose tail is known, the true rate at the threshold is in the interval that is stated."""
    monkeypatch.setattr(_tail, "REPLICATES", 100)
    inside, trials = 0, 40
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        x = abs(rng.normal(size=4000))
        fitted = _tail.fit_tail(x, x, target, 0.95, rng)
        if fitted is None:  # a fit that is rejected by chance states nothing
            trials -= 1
            continue
        _, threshold, (low, high) = fitted
        assert high == pytest.approx(target, rel=0.2)
        inside += low <= 2 * norm.sf(threshold) <= high
    assert trials >= 30
    assert inside / trials >= 0.85


def test_order_statistics_cover_the_rate(rng: np.random.Generator) -> None:
    below, trials = 0, 400
    for _ in range(trials):
        x = np.sort(rng.uniform(size=2000))
        threshold = _tail.order_statistic(x, 2000, 0.01, 0.95)
        assert threshold is not None
        low, high = _tail.rate_interval(int((x > threshold).sum()), 2000, 2000, 0.95)
        assert high <= 0.01
        below += low <= 1 - threshold <= high
    assert below / trials >= 0.95


def test_the_lowest_order_statistic_is_taken(rng: np.random.Generator) -> None:
    x = np.sort(rng.uniform(size=2000))
    threshold = _tail.order_statistic(x, 2000, 0.01, 0.95)
    beyond = int((x > threshold).sum())
    assert _tail.rate_interval(beyond, 2000, 2000, 0.95)[1] <= 0.01 < _tail.rate_interval(beyond + 1, 2000, 2000, 0.95)[1]
    assert _tail.order_statistic(x, 300, 0.01, 0.95) is None  # so few distinct ones


def test_ties_do_not_raise_the_rate() -> None:
    x = np.sort(np.repeat(np.arange(1000.0), 5))
    threshold = _tail.order_statistic(x, 5000, 0.01, 0.95)
    assert (x > threshold).mean() <= 0.01


def test_repeated_samples_widen_the_interval() -> None:
    once, again = _tail.rate_interval(5, 1000, 1000, 0.95), _tail.rate_interval(50, 10_000, 1000, 0.95)
    assert once == again
    assert _tail.rate_interval(50, 10_000, 10_000, 0.95)[1] < again[1]


def test_tail_rate_is_that_of_scipy(rng: np.random.Generator) -> None:
    x = abs(rng.normal(size=3000))
    fitted = _tail.fit_tail(x, x, 1e-3, 0.95, rng)
    assert fitted is not None
    tail = fitted[0]
    at = tail.level + 0.7
    assert tail.rate(at) == pytest.approx(tail.share * genpareto.sf(0.7, tail.shape, scale=tail.scale))
    assert tail.rate(at) == pytest.approx(2 * norm.sf(at), rel=0.3)
