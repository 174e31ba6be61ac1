"""Intervals of counted rates: against scipy, against their definitions, and their coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sedq import _statistics as statistics

pytestmark = pytest.mark.any_isa

COUNTS = [(0, 1), (1, 1), (0, 50), (3, 50), (25, 50), (47, 50), (50, 50), (9, 10_000), (10, 10_000), (5_000, 10_000)]


@pytest.mark.parametrize(("k", "n"), COUNTS)
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
@pytest.mark.parametrize(("ours", "method"), [(statistics.wilson, "wilson"), (statistics.clopper_pearson, "exact")])
def test_intervals_agree_with_scipy(ours, method: str, k: int, n: int, confidence: float) -> None:
    theirs = stats.binomtest(k, n).proportion_ci(confidence, method)
    assert ours(k, n, confidence) == pytest.approx((theirs.low, theirs.high), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("k", "n"), COUNTS)
def test_intervals_hold_the_rate_and_end_at_0_and_1(k: int, n: int) -> None:
    for method in (statistics.wilson, statistics.clopper_pearson, statistics.interval):
        low, high = method(k, n)
        assert 0 <= low <= k / n <= high <= 1
        assert (low == 0) == (k == 0)
        assert (high == 1) == (k == n)


def test_the_interval_is_exact_where_either_outcome_is_rare() -> None:
    exact, other = statistics.clopper_pearson, statistics.wilson
    for k, method in ((0, exact), (9, exact), (10, other), (500, other), (990, other), (991, exact), (1000, exact)):
        assert statistics.interval(k, 1000) == method(k, 1000)


@pytest.mark.parametrize("rate", [1e-3, 0.01, 0.2, 0.5, 0.97])
def test_the_interval_covers_as_often_as_it_says(rate: float) -> None:
    n = 2000
    k = np.arange(n + 1)
    probability = stats.binom.pmf(k, n, rate)
    exact = wilson = 0.0
    for i in k[probability > 1e-12]:
        low, high = statistics.clopper_pearson(int(i), n)
        exact += probability[i] * (low <= rate <= high)
        low, high = statistics.interval(int(i), n)
        wilson += probability[i] * (low <= rate <= high)
    assert exact >= 0.95
    assert wilson >= 0.94


def test_no_trials_say_nothing() -> None:
    assert statistics.wilson(0, 0) == statistics.clopper_pearson(0, 0) == statistics.interval(0, 0) == (0.0, 1.0)
    assert statistics.upper_bound(0, 0) == 1.0


@pytest.mark.parametrize("n", [1, 10, 1000, 10**8])
def test_none_of_n_bounds_the_rate(n: int) -> None:
    bound = statistics.upper_bound(0, n)
    assert math.log(0.05) == pytest.approx(n * math.log1p(-bound), rel=1e-9)  # the chance of none, were the rate the bound
    assert 0.94 * 3 / (n + 3) < bound < 3 / n


def test_the_bound_is_one_sided() -> None:
    assert statistics.upper_bound(7, 100) == pytest.approx(statistics.clopper_pearson(7, 100, 0.9)[1])
    assert stats.binom.cdf(7, 100, statistics.upper_bound(7, 100)) == pytest.approx(0.05)
    assert statistics.upper_bound(100, 100) == 1.0


@pytest.mark.parametrize("rate", [0.0, 1e-4, 0.03, 0.5, 1.0])
@pytest.mark.parametrize("width", [1e-3, 0.02, 0.5])
def test_the_sample_size_is_the_least_that_suffices(width: float, rate: float) -> None:
    n = statistics.sample_size(width, rate)

    def extent(trials: int) -> float:
        low, high = statistics._interval(rate * trials, trials, 0.95)
        return high - low

    assert extent(n) <= width
    assert n == 1 or extent(n - 1) > width


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: statistics.wilson(3, 2), "k: got 3, expected an integer from 0 to 2"),
        (lambda: statistics.interval(-1, 2), "k: got -1"),
        (lambda: statistics.clopper_pearson(1, 2.5), "n: got float 2.5"),  # type: ignore[arg-type]
        (lambda: statistics.upper_bound(0, 2, 1.0), "confidence: got float 1.0, expected a number between 0 and 1"),
        (lambda: statistics.sample_size(0, 0.5), "width: got int 0"),
        (lambda: statistics.sample_size(0.1, math.nan), "rate: got float nan, expected a number from 0 to 1"),
        (lambda: statistics.sample_size(0.1, True), "rate: got bool True"),
    ],
)
def test_what_makes_no_rate_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
