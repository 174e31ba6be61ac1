"""Tails: the estimator, its test, and whether intervals cover what they should."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import genpareto, norm

from sedq.calibration import _tail

pytestmark = pytest.mark.any_isa


@pytest.mark.parametrize("shape", [-0.4, -0.1, 0.05, 0.4])
def test_the_estimator_agrees_with_maximum_likelihood(shape: float) -> None:
    x = genpareto.rvs(shape, scale=3, size=4000, random_state=np.random.default_rng(1))
    got = _tail._fit(np.sort(x), np.ones(len(x)))
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
    assert _tail._anderson_darling(u, np.ones(30)) == pytest.approx(integral, rel=1e-3)


def test_the_test_accepts_what_fits_and_rejects_what_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tail, "REPLICATES", 100)
    accepted, rejected = 0, 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        for x, fits in ((genpareto.rvs(0.1, size=300, random_state=rng), True), (rng.lognormal(2, 0.2, 300), False)):
            once = np.ones(300)
            shape, scale = _tail._fit(np.sort(x), once)
            statistic = _tail._anderson_darling(_tail._cdf(np.sort(x), shape, scale), once)
            p = _tail._p_value(statistic, once, shape, scale, rng)
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


@pytest.mark.parametrize(("zipf", "target", "seeds"), [(0.8, 1e-2, 12), (0.8, 1e-3, 16), (1.1, 1e-2, 40)])
def test_the_rate_of_popular_samples_is_covered(
    monkeypatch: pytest.MonkeyPatch, zipf: float, target: float, seeds: int
) -> None:
    """Of 20,000 half-normal values, some popular: where a tail is fitted, and by counts."""
    monkeypatch.setattr(_tail, "REPLICATES", 50)
    popularity = np.arange(1, 20_001.0) ** -zipf
    popularity /= popularity.sum()
    inside, counted, trials = 0, 0, 0
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        values = abs(rng.normal(size=20_000))
        x = values[rng.choice(20_000, 40_000, p=popularity)]
        distinct = np.unique(x)
        threshold = _tail.order_statistic(np.sort(x), len(distinct), target, 0.95)
        counted += threshold is not None and popularity[values > threshold].sum() <= target
        fitted = _tail.fit_tail(x, distinct, target, 0.95, rng)
        if fitted is not None:
            tail, threshold, (low, high) = fitted
            assert tail.effective >= 50
            trials += 1
            inside += low <= popularity[values > threshold].sum() <= high
    assert trials >= 4  # of these a tail is fitted, the others keep the bound
    assert inside / trials >= 0.85
    assert counted / seeds >= 0.95


def test_counts_are_weights(rng: np.random.Generator) -> None:
    """The statistic of values that occur again is that of their repetition, but for what it is worth."""
    u = np.sort(rng.uniform(size=40))
    twice = np.sort(np.concatenate([u, u]))
    weights = rng.integers(1, 4, 40).astype(np.float64)
    repeated = np.repeat(u, weights.astype(int))
    assert _tail._anderson_darling(u, np.full(40, 2.0)) == pytest.approx(_tail._anderson_darling(twice, np.ones(80)) / 2)
    got, expected = _tail._anderson_darling(u, weights), _tail._anderson_darling(repeated, np.ones(len(repeated)))
    assert got / _tail._effective(weights) == pytest.approx(expected / len(repeated))
    assert _tail._effective(np.full(40, 3.0)) == pytest.approx(40)
    assert _tail._effective(np.array([1e6, 1.0, 1.0])) == pytest.approx(1, rel=1e-4)
    x = np.sort(genpareto.rvs(0.1, size=500, random_state=rng))
    counts = rng.integers(1, 4, 500)
    got, expected = _tail._fit(x, counts.astype(float)), _tail._fit(np.repeat(x, counts), np.ones(counts.sum()))
    assert got == pytest.approx(expected, rel=0.02, abs=0.01)  # the prior weighs the same against fewer


def test_what_comes_in_lumps_scatters(rng: np.random.Generator) -> None:
    """The quantile of a gamma distribution with that mean, whose variance is the mean times the lump."""
    rates = np.full(5, 0.01)
    drawn = rng.gamma(0.01 / 0.002, 0.002, 200_000)
    for probability in (0.025, 0.5, 0.975):
        assert _tail._quantile(rates, 0.002, probability) == pytest.approx(np.quantile(drawn, probability), rel=0.03)
        assert _tail._quantile(rates, 0.0, probability) == pytest.approx(0.01)
    assert _tail._quantile(np.zeros(5), 0.002, 0.975) == 0


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
