"""Least squares against brute force, beside outliers, and on the weights of MiniLM."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from helpers.observers import KINDS, error, samples, signs
from sedq import QParams, choose_qparams, dequantize, quantize
from sedq.datasets._minilm import load_minilm
from sedq.quantization import HistogramObserver, MinMaxObserver

pytestmark = pytest.mark.any_isa

# ---- least squares


@samples
@signs
def test_least_squares_is_as_good_as_brute_force(x: np.ndarray, symmetric: bool) -> None:
    found = error(x, HistogramObserver(symmetric=symmetric).observe(x).qparams())
    assert found <= error(x, choose_qparams(x.min(), x.max(), symmetric=symmetric)) * 1.005 + 1e-4 * np.abs(x).max() / 255
    shares = np.linspace(0.05, 1, 20)
    pairs = [(s, s) for s in shares] if symmetric else [(s, t) for s in shares for t in shares]
    part = x[:: max(1, len(x) // 4000)]
    found = error(part, HistogramObserver(symmetric=symmetric).observe(part).qparams())
    least = min(
        error(part, choose_qparams(*np.sort([part.min() * s, part.max() * t]), symmetric=symmetric)) for s, t in pairs
    )
    # where in a bin values lie matters only if they are few
    assert found <= least * 1.003 + (1e-3 * np.ptp(x) if len(np.unique(x)) < 10 else 0)


@signs
def test_least_squares_beats_the_extremes_where_tails_are_heavy(rng: np.random.Generator, symmetric: bool) -> None:
    x, unseen = (rng.laplace(size=300_000) ** 3 for _ in range(2))
    ours, extremes = (kind(symmetric=symmetric).observe(x).qparams() for kind in (HistogramObserver, MinMaxObserver))
    assert error(x, ours) < 0.95 * error(x, extremes)
    assert error(unseen, ours) < error(unseen, extremes)
    assert ours.scale < 0.85 * extremes.scale


@signs
def test_least_squares_has_nothing_better_around_it(rng: np.random.Generator, symmetric: bool) -> None:
    x = rng.laplace(size=100_000) + 0.2 * rng.gamma(0.3, size=100_000) ** 2
    o = HistogramObserver(symmetric=symmetric).observe(x)
    low, high = o._range()
    shares = np.linspace(0.9, 1.1, 9)
    pairs = [(s, s) for s in shares] if symmetric else [(s, t) for s in shares for t in shares]
    around = [error(x, choose_qparams(low * s, high * t, symmetric=symmetric)) for s, t in pairs]
    assert error(x, o.qparams()) <= 1.0005 * min(around)


def test_percentile_and_least_squares_are_better_for_most_values_beside_outliers(rng: np.random.Generator) -> None:
    bulk = rng.normal(size=1_000_000)
    data = np.append(bulk, [50.0, -45.0])
    errors = {name: error(bulk, kind().observe(data).qparams()) for name, kind in KINDS.items()}
    assert errors["PercentileObserver"] < 0.3 * errors["MinMaxObserver"]
    assert errors["HistogramObserver"] < 0.8 * errors["MinMaxObserver"]


def test_zeros_cost_nothing(rng: np.random.Generator) -> None:
    x = np.append(rng.exponential(size=10_000), 0)
    o = HistogramObserver(bins=256).observe(np.zeros(10))
    with_zeros = o.observe(x).observe(np.zeros((1000, 1000))).qparams()
    assert with_zeros == HistogramObserver(bins=256).observe(x).qparams()


@pytest.mark.parametrize("bins", [256, 300, 2048])
def test_a_histogram_that_outgrows_its_bins_counts_on(bins: int) -> None:
    parts = [np.array([1e-9, 1e-9]), np.array([2e-9]), -np.arange(1, 100.0), np.array([1e20, -1e-25]), np.array([-1e30])]
    o = HistogramObserver(bins=bins)
    for part in parts:
        o.observe(part)
        (h,) = o._histograms
        assert len(h.counts) == bins
    x = np.concatenate(parts)
    edges = np.ldexp(np.arange(h.first, h.first + bins + 1, dtype=np.float64), h.exponent)
    np.testing.assert_array_equal(h.counts, np.histogram(x, edges)[0])
    assert bins / 2 - 1 <= np.ptp(np.flatnonzero(h.counts)) + 1 <= bins
    assert h.counts.sum() == len(x)


def test_scipy_optimize_waits_until_it_is_needed() -> None:
    script = (
        "import sys; from sedq.quantization import *; HistogramObserver().observe([1.0]); "
        "assert 'scipy.optimize' not in sys.modules; HistogramObserver().observe([1.0]).qparams(); "
        "assert 'scipy.optimize' in sys.modules"
    )
    assert subprocess.run([sys.executable, "-P", "-c", script], timeout=60).returncode == 0


# ---- weights of MiniLM


def test_weights_of_minilm() -> None:
    data = load_minilm()
    assert (data.codes.shape, data.codes.dtype, data.scale.shape, data.scale.dtype) == (
        (384, 384),
        np.int8,
        (384,),
        np.float32,
    )
    assert (np.abs(data.codes.astype(np.int16)).max(axis=1) == 127).all()
    w = data.weight()
    assert w.dtype == np.float32
    np.testing.assert_array_equal(w, dequantize(data.codes, QParams(data.scale, 0, "int8")))
    # the scales of the file come back, and with them the codes
    p = MinMaxObserver("int8", symmetric=True, channel_axis=0).observe(w).qparams()
    np.testing.assert_allclose(p.scale, data.scale, rtol=1e-6)
    np.testing.assert_array_equal(quantize(w, p), data.codes)
    # least squares pays where outputs share a scale
    one = [kind("int8", symmetric=True).observe(w).qparams() for kind in (HistogramObserver, MinMaxObserver)]
    assert error(w, one[0]) < 0.85 * error(w, one[1])
    load_minilm().codes[:] = 0
    assert load_minilm().codes.any()
