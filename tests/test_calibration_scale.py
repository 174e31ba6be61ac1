"""Residuals of bags: what the compiled loop returns and compares with, and the scale that they grow with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import sedq
from helpers import calibrations
from helpers.calibrations import DIM, ROWS, Array, stats_of, table, trace
from sedq import _config
from sedq._core import _dispatch, _embedding
from sedq.calibration import _scale, calibrate_thresholds
from sedq.datasets import Trace, synthetic_trace

bag = calibrations.bag  # fixture

# ---- what the compiled loop returns and compares with


def pool(bag: sedq.EmbeddingBag, t: Trace, **options: Any) -> tuple[Any, Array, Array]:
    out, stats = np.empty((len(t), bag.shape[1]), np.float32), np.full((len(t), 3), np.nan)
    settings = _config.resolve(None, None, None)
    call = {"limit": _embedding.LIMIT_BOUND, "value": 0.0, "growth": (0, 0, 0, 0, 0)} | options
    check = _embedding.CHECK_SUM
    args = check, call["limit"], call["value"], bag.mode == "mean", 1, None, None, stats, call["growth"]
    return _embedding.pool(settings.kernels, bag.table.data, t.indices, t.offsets, None, out, *args), out, stats


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_stats_are_residual_reference_and_magnitude(kernels: _dispatch.Context, mode: Any) -> None:
    bag, t = table(mode=mode), trace(50)
    found, out, stats = pool(bag, t)
    assert found is None
    fused = bag.to_fused()
    params = np.ascontiguousarray(fused[:, DIM:]).view("<f4").astype(np.float64)
    sums = fused[:, :DIM].sum(axis=1, dtype=np.int64)
    for b in range(len(t)):
        rows = t.indices[t.offsets[b] : t.offsets[b + 1]]
        divisor = max(1, len(rows)) if mode == "mean" else 1
        reference = (params[rows, 0] * sums[rows] + DIM * params[rows, 1]).sum() / divisor
        magnitude = (abs(params[rows, 0]) * sums[rows] + DIM * abs(params[rows, 1])).sum() / divisor
        # the reference is a float64 sum of terms that cancel: it is as exact as their magnitude
        assert stats[b, 1] == pytest.approx(reference, abs=1e-14 * magnitude)
        assert stats[b, 2] == pytest.approx(magnitude, rel=1e-13)
        assert stats[b, 0] == pytest.approx(out[b].sum(dtype=np.float64) - reference, abs=1e-13 * magnitude)


def test_stats_of_another_shape_are_refused(bag: sedq.EmbeddingBag) -> None:
    t = trace(4)
    out = np.empty((4, DIM), np.float32)
    kernels = _config.resolve(None, None, None).kernels
    args = t.offsets, None, out, 2, 0, 0.0, False, 1, None, None
    for shape in ((3, 3), (4, 2)):
        with pytest.raises(ValueError, match=r"stats: got shape .*expected \(4, 3\)"):
            _embedding.pool(kernels, bag.table.data, t.indices, *args, np.empty(shape))


def test_the_limit_grows_as_computed_here(kernels: _dispatch.Context, bag: sedq.EmbeddingBag) -> None:
    t, growth = synthetic_trace(60, rows=ROWS, pooling=40.0), (1e-4, 0.02, 0.03, 0.004, 0.005)
    for value in (0.0, 1e-9, 0.3, 1e9):
        found, _, stats = pool(bag, t, limit=_embedding.LIMIT_GROWTH, value=value, growth=growth)
        limits = _scale.limits(value, growth, np.diff(t.offsets), DIM, stats[:, 2])
        beyond = np.flatnonzero(abs(stats[:, 0]) > limits)
        assert [b for b, *_ in found or ()] == beyond[:64].tolist()
        for b, kind, residual, limit in found or ():
            assert kind == sedq.detection.Kind.SUM
            assert residual == stats[b, 0]
            assert limit == pytest.approx(limits[b], rel=1e-12)
        assert (len(beyond) == 0) == (value == 1e9)  # the rounding bound stays in force above it


def test_a_calibrated_limit_allows_for_underflow(kernels: _dispatch.Context) -> None:
    tiny = sedq.EmbeddingBag.from_float(np.full((4, 8), 1e-38, np.float32))
    t = Trace(np.array([0, 1, 2, 3, 1]), np.array([0, 5]), 4)
    found, _, _ = pool(tiny, t, limit=_embedding.LIMIT_GROWTH, value=1e-12, growth=(0, 1, 0, 0, 0))
    assert found is None


# ---- the scale of residuals


def sized(sizes: tuple[int, ...], draw: Callable[[int], Array], bags: int = 400) -> list[tuple[Array, Array]]:
    return [(draw(n * bags), np.arange(0, n * bags, n)) for n in sizes]


@pytest.mark.parametrize(("dim", "mode", "weighted"), [(8, "sum", False), (64, "sum", False), (64, "mean", True)])
def test_one_scale_serves_bags_of_every_size(dim: int, mode: Any, weighted: bool, rng: np.random.Generator) -> None:
    bag, sizes = table(1, 8000, dim, mode=mode), (1, 2, 3, 10, 30, 100, 300, 1000, 10_000)

    def calls() -> list[Any]:
        made = sized(sizes[:-1], lambda k: rng.integers(0, 8000, k)) + sized(
            sizes[-1:], lambda k: rng.integers(0, 8000, k), 150
        )
        weigh = rng.uniform(0.5, 1.5, 2_000_000).astype(np.float32)
        return [(i, o, weigh[: len(i)]) for i, o in made] if weighted else made

    cal = calibrate_thresholds(bag, calls(), method="bound")
    run = stats_of(bag, calls())
    raw = run.residual / (_scale.UNIT * run.magnitude)
    z = run.residual / _scale.scale(cal.tables[0].growth, run.pooling, run.magnitude)
    rms = [float(np.sqrt((z[run.pooling == n] ** 2).mean())) for n in sizes]
    assert min(rms[:-1]) > 0.7  # the parts of the longest bags average out
    assert min(rms) > 0.4
    assert max(rms) < 1.4
    # without the scale they lie apart by more than an order of magnitude
    spread = [float(np.sqrt((raw[run.pooling == n] ** 2).mean())) for n in sizes]
    assert max(spread) / min(spread) > 10


def test_rows_that_occur_again_are_rounded_alike(rng: np.random.Generator) -> None:
    bag = table(1, 8000, 64)
    popular = np.concatenate([np.full(3000, 7), rng.integers(0, 8000, 7000)])
    sizes = (10, 100, 1000, 10_000)
    calls = sized(sizes, lambda k: rng.choice(popular, k), 100)
    run = stats_of(bag, calls)
    assert run.repeats == pytest.approx(0.09, rel=0.1)
    cal = calibrate_thresholds(bag, calls, method="bound")
    z = run.residual / _scale.scale(cal.tables[0].growth, run.pooling, run.magnitude)
    rms = np.array([np.sqrt((z[run.pooling == n] ** 2).mean()) for n in sizes])
    assert rms.max() < 2.5
    independent = _scale.terms(64, mean=False, weighted=False)[:2].sum(axis=0)
    z = run.residual / _scale.scale(tuple(independent), run.pooling, run.magnitude)
    without = np.array([np.sqrt((z[run.pooling == n] ** 2).mean()) for n in sizes])
    assert without[-1] / without[0] > 3  # square-root growth alone does not do


@pytest.mark.parametrize("n", [1, 2, 3, 7, 50])
def test_terms_are_the_sums_that_they_stand_for(n: int) -> None:
    steps = (np.arange(1, n + 1) / n) ** 2
    biases, products, again = (
        float(_scale.growth_of(part, np.array([n]))[0]) for part in _scale.terms(4, mean=True, weighted=True)
    )
    assert biases == pytest.approx(steps[1:].sum(), abs=1e-12)
    assert products == pytest.approx((steps.sum() + 2) / 4 + 1 / n)
    assert again == n * n


def test_samples_of_one_row_leave_the_derived_amplitudes(rng: np.random.Generator) -> None:
    bag = table(1, 8000, 64)
    cal = calibrate_thresholds(bag, [(rng.integers(0, 8000, 3000), np.arange(3000))], method="bound")
    run = stats_of(bag, sized((100,), lambda k: rng.integers(0, 8000, k)))
    z = run.residual / _scale.scale(cal.tables[0].growth, run.pooling, run.magnitude)
    assert 0.5 < np.sqrt((z**2).mean()) < 2
