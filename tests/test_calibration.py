"""Calibrated thresholds: that they hold what they state, refuse what they can't, and are what kernels compare with."""

from __future__ import annotations

import json
import math
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

import sedq
from sedq import _config, faults
from sedq._core import _dispatch, _embedding
from sedq.calibration import ThresholdCalibration, _result, _samples, _scale, calibrate_thresholds
from sedq.datasets import Trace, load_msweb, load_pydocs_trace, synthetic_trace
from sedq.datasets._requests import Bags
from sedq.exceptions import CalibrationWarning, ModelFileError, SoftErrorDetected

Array = np.ndarray
ROWS, DIM = 2000, 16


def table(seed: int = 0, rows: int = ROWS, dim: int = DIM, **options: Any) -> sedq.EmbeddingBag:
    weight = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return sedq.EmbeddingBag.from_float(weight, **options)


# one trace for all: another seed would make other rows popular, which is another population
WHOLE = synthetic_trace(48_000, rows=ROWS, pooling=12.0)


def trace(bags: int, part: int = 0) -> Trace:
    """Return some bags of one of six parts of the trace."""
    return WHOLE.batch(8000 * part, 8000 * part + bags)


def batches(part: int) -> list[Trace]:
    """Return 300 calls of 20 bags."""
    return [trace(6000, part).batch(s, s + 20) for s in range(0, 6000, 20)]


@pytest.fixture(scope="module")
def bag() -> sedq.EmbeddingBag:
    return table()


@pytest.fixture(scope="module")
def calibrated(bag: sedq.EmbeddingBag) -> ThresholdCalibration:
    return calibrate_thresholds(bag, trace(8000), 2e-3)


def stats_of(bag: sedq.EmbeddingBag, calls: Any) -> _samples.TableSamples:
    (run,) = _samples.collect(bag, calls, False)
    return run


# ---- what the compiled loop returns and compares with


def pool(bag: sedq.EmbeddingBag, t: Trace, **options: Any) -> tuple[Any, Array, Array]:
    out, stats = np.empty((len(t), bag.shape[1]), np.float32), np.full((len(t), 3), np.nan)
    settings = _config.resolve(None, None, None)
    call = {"limit": _embedding.LIMIT_BOUND, "value": 0.0, "growth": (0, 0, 0, 0, 0)} | options
    check = _embedding.CHECK_SUM
    args = check, call["limit"], call["value"], bag.mode == "mean", 1, None, None, stats, call["growth"]
    return _embedding.pool(settings.kernels, bag._table, t.indices, t.offsets, None, out, *args), out, stats


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
            _embedding.pool(kernels, bag._table, t.indices, *args, np.empty(shape))


def test_the_limit_grows_as_computed_here(kernels: _dispatch.Context, bag: sedq.EmbeddingBag) -> None:
    t, growth = synthetic_trace(60, rows=ROWS, pooling=40.0), (1e-4, 0.02, 0.03, 0.004, 0.005)
    for value in (0.0, 1e-9, 0.3, 1e9):
        found, _, stats = pool(bag, t, limit=_embedding.LIMIT_GROWTH, value=value, growth=growth)
        limits = _scale.limits(value, growth, np.diff(t.offsets), DIM, stats[:, 2])
        beyond = np.flatnonzero(abs(stats[:, 0]) > limits)
        assert [b for b, *_ in found or ()] == beyond[:64].tolist()
        for b, kind, residual, limit in found or ():
            assert kind == sedq.recovery.SUM
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


# ---- methods


def test_the_bound_is_the_bound(bag: sedq.EmbeddingBag) -> None:
    cal = calibrate_thresholds(bag, trace(100), method="bound")
    assert (cal.threshold, cal.fpr_interval, cal.tail, cal.reason) == (math.inf, (0.0, 0.0), None, "")
    bits = cal.detectable_bits
    assert bits["output"] == bits["output_bound"]
    assert bits["code"] == bits["code_bound"]
    for threshold in (cal, "bound"):
        found = []
        for bit in range(32):
            with faults.accumulator_fault("bag", flip=1 << bit):
                found.append(alarms(bag, trace(5), threshold))
        assert 0 < sum(found) < 32
        assert found == sorted(found)


def alarms(bag: sedq.EmbeddingBag, t: Trace, threshold: Any) -> int:
    """Detections of a call, result as it is."""
    with sedq.monitor() as m, warnings.catch_warnings():
        warnings.simplefilter("ignore", sedq.SoftErrorWarning)
        warnings.simplefilter("ignore", CalibrationWarning)
        bag(t.indices, t.offsets, include_last_offset=True, on_error="warn", threshold=threshold)
    return m.detections


def test_probabilistic_is_higham_and_mary(bag: sedq.EmbeddingBag) -> None:
    t = trace(500)
    cal = calibrate_thresholds(bag, t, 1e-6, method="probabilistic")
    longest = int(np.diff(t.offsets).max())
    factor = math.sqrt(2 * math.log(2 * (DIM + 1) * longest / 1e-6))
    assert cal.threshold == pytest.approx(factor, rel=1e-3)
    assert cal.threshold > factor
    assert cal.tables[0].growth == (0, 1, 5, 0, 0)
    assert cal.fpr_interval == (0, 1e-6)
    assert cal.verify(bag, trace(2000, 1)).alarms == 0
    # per request of two bags each may fail half as often
    assert _scale.probabilistic_lambda(5e-7, longest, DIM) > cal.threshold


def test_the_probabilistic_assumption_fails_where_rows_repeat() -> None:
    """Rounding errors of one row, again and again, are not independent: beyond that bound, never beyond the provable one."""
    n, failed = 4096, 0
    for seed in range(20):
        bag = table(seed, 4, 8)
        run = stats_of(bag, (np.zeros(n, np.int64), np.array([0])))
        limit = _scale.probabilistic_lambda(1e-6, n, 8) * _scale.scale((0, 1, 5, 0, 0), run.pooling, run.magnitude)
        failed += int(abs(run.residual[0]) > limit[0])
        assert abs(run.residual[0]) <= _scale.rounding_bound(run.pooling, 8, run.magnitude)[0]
    assert failed > 0


def test_empirical_has_at_most_the_rate(bag: sedq.EmbeddingBag, calibrated: ThresholdCalibration) -> None:
    cal = calibrated
    assert (cal.method, cal.unit, cal.samples) == ("empirical", "bag", 8000)
    assert 0 < cal.fpr_interval[0] < cal.fpr_interval[1] <= 2e-3
    assert cal.extrapolation < 1
    held = cal.verify(bag, trace(8000, 1))
    assert held.agrees
    assert cal.fpr_interval[0] <= held.rate <= cal.fpr_interval[1]
    assert held.alarms > 0


@pytest.mark.parametrize("part", range(3))
def test_gpd_within_the_data_has_at_most_the_rate(bag: sedq.EmbeddingBag, part: int) -> None:
    cal = calibrate_thresholds(bag, trace(6000, part), 2e-3, method="gpd", rng=part)
    assert cal.method == "gpd"
    assert cal.tail is not None
    assert cal.tail.p_value >= 0.1
    assert cal.tail.shape_interval[0] < cal.tail.shape < cal.tail.shape_interval[1]
    assert cal.fpr_interval[1] == pytest.approx(2e-3, rel=0.02)
    assert cal.verify(bag, trace(8000, part + 3)).agrees


def test_extrapolation_is_asked_for(bag: sedq.EmbeddingBag) -> None:
    with pytest.warns(CalibrationWarning, match=r"do not support a rate of 1e-06: it is .* times rarer.*the bound is used"):
        cal = calibrate_thresholds(bag, trace(3000))
    assert (cal.method, cal.threshold) == ("bound", math.inf)
    assert "extrapolate=True" in cal.reason
    assert cal.extrapolation == pytest.approx(1e6 / cal.distinct)
    told = calibrate_thresholds(bag, trace(3000), extrapolate=True)
    assert told.method == "gpd"
    assert told.extrapolation == cal.extrapolation > 300
    assert 0 <= told.fpr_interval[0] <= told.fpr_interval[1] <= 1.1e-6
    within = calibrate_thresholds(bag, trace(3000), 1e-3, method="gpd")
    assert told.threshold > within.threshold
    assert told.verify(bag, trace(20_000, 2)).alarms == 0


def test_empirical_refuses_what_order_statistics_can_not_show(bag: sedq.EmbeddingBag) -> None:
    with pytest.warns(CalibrationWarning, match="expected at least 3688 for a rate of 0.001"):
        cal = calibrate_thresholds(bag, trace(1000), 1e-3, method="empirical", extrapolate=True)
    assert cal.method == "bound"


def test_too_few_samples_for_a_tail(bag: sedq.EmbeddingBag) -> None:
    with pytest.warns(CalibrationWarning, match="no generalised Pareto tail fits"):
        assert calibrate_thresholds(bag, trace(300), 1e-4, extrapolate=True).method == "bound"


def test_the_same_bag_again_supports_nothing(bag: sedq.EmbeddingBag) -> None:
    t = trace(50)
    with pytest.warns(CalibrationWarning, match="got 50 distinct ones"):
        cal = calibrate_thresholds(bag, [t] * 400, 1e-3)
    assert (cal.method, cal.samples) == ("bound", 20_000)


def test_deterministic_from_the_seed(bag: sedq.EmbeddingBag) -> None:
    first, again, other = (calibrate_thresholds(bag, trace(2000), 1e-3, method="gpd", rng=seed) for seed in (3, 3, 4))
    assert first == again
    assert first.threshold != other.threshold


# ---- units


def test_units_are_the_largest_of_their_bags(bag: sedq.EmbeddingBag) -> None:
    by_bag, by_batch = (calibrate_thresholds(bag, batches(0), 0.05, unit) for unit in ("bag", "batch"))
    assert (by_bag.samples, by_batch.samples) == (6000, 300)
    assert (by_bag.bags_per_unit, by_batch.bags_per_unit) == (1, 20)
    assert by_batch.threshold > by_bag.threshold
    more = batches(1)
    held = by_batch.verify(bag, more)
    assert held.units == 300
    assert held.agrees
    assert by_bag.verify(bag, more).rate < 0.05
    # a batch's alarm is one of any of its bags: what suffices for bags does not for batches
    loose = ThresholdCalibration(**{**vars_of(by_batch), "threshold": by_bag.threshold})
    assert loose.verify(bag, more).rate > 0.1


def vars_of(cal: ThresholdCalibration) -> dict[str, Any]:
    return {name: value for name, value in vars(cal).items() if name != "_warned"}


@pytest.fixture(scope="module")
def msweb() -> tuple[sedq.DLRM, Any]:
    data = load_msweb()
    c = data.calibration
    model = sedq.DLRM(data.bottom, data.tables, data.top, data.modes)
    return model.quantize((c.dense, c.indices, c.offsets), include_last_offset=True), data.heldout


@pytest.mark.parametrize("unit", ["bag", "request", "batch"])
def test_held_out_on_msweb(msweb: tuple[sedq.DLRM, Any], unit: str) -> None:
    model, requests = msweb
    first, second = ([requests.batch(s, s + 16) for s in range(at, at + 6400, 16)] for at in (0, 6912))
    cal = calibrate_thresholds(model, first, 0.05, unit)
    assert cal.method in ("empirical", "gpd")
    assert len(cal.tables) == 6
    held = cal.verify(model, second)
    assert held.agrees
    assert held.rate <= cal.fpr_interval[1]
    assert cal.bags_per_unit == {"bag": 1, "request": 6, "batch": 96}[unit]
    assert held.units == {"bag": 38_400, "request": 6400, "batch": 400}[unit]


def test_a_model_takes_a_calibration(msweb: tuple[sedq.DLRM, Any]) -> None:
    model, requests = msweb
    r = requests.batch(0, 640)
    cal = calibrate_thresholds(model, r, 0.01)
    expected = model(r.dense, r.indices, r.offsets, include_last_offset=True)
    with sedq.monitor() as m:
        got = model(r.dense, r.indices, r.offsets, include_last_offset=True, threshold=cal)
    np.testing.assert_array_equal(got, expected)
    assert 0 < m.detections <= 64 * 6  # false alarms, as many as stated
    assert {event.verdict for event in m.events} == {"transient"}
    assert cal.verify(model, r).alarms == m.detections


def test_held_out_on_pydocs() -> None:
    t = load_pydocs_trace()
    bag = table(0, t.rows, 32)
    cal = calibrate_thresholds(bag, t.batch(0, 1304), 0.01, method="gpd")
    assert cal.method == "gpd"
    held = cal.verify(bag, t.batch(1304, 2608))
    assert cal.fpr_interval[0] <= held.rate <= cal.fpr_interval[1]
    assert held.position == "within"
    assert held.agrees


def stating(cal: ThresholdCalibration, low: float, high: float) -> ThresholdCalibration:
    """The same threshold with another interval."""
    return ThresholdCalibration(**{**vars_of(cal), "fpr_interval": (low, high)})


def test_an_understated_rate_is_contradicted(bag: sedq.EmbeddingBag, calibrated: ThresholdCalibration) -> None:
    second = trace(8000, 1)
    held = calibrated.verify(bag, second)
    assert (held.position, held.agrees) == ("within", True)
    low, high = held.interval
    for stated, position, agrees in (
        ((0, low / 2), "above", False),
        ((0, 0.95 * low), "above", False),
        ((0, (low + held.rate) / 2), "above", True),  # by chance
        ((0, held.rate), "within", True),
        ((held.rate, 1), "within", True),
        ((2 * high, 3 * high), "below", True),  # fewer than stated
    ):
        again = stating(calibrated, *stated).verify(bag, second)
        assert (again.position, again.agrees) == (position, agrees), stated
        effective = max(1, math.floor(held.alarms * held.distinct / held.units))
        assert again.p_value == pytest.approx(binom.sf(effective - 1, held.distinct, stated[1]), rel=1e-6)


def test_the_same_bags_again_are_no_more_evidence(bag: sedq.EmbeddingBag, calibrated: ThresholdCalibration) -> None:
    t = trace(8000, 1)
    once, again = calibrated.verify(bag, t), calibrated.verify(bag, [t] * 5)
    assert (again.units, again.alarms) == (5 * once.units, 5 * once.alarms)
    assert (again.distinct, again.distinct_alarms) == (once.distinct, once.distinct_alarms)
    assert again.interval == once.interval
    assert again.p_value == once.p_value


def test_a_tail_counts_what_was_sampled(bag: sedq.EmbeddingBag) -> None:
    """Not what is distinct: bags of the upper half three times each."""
    t = trace(6000)
    run = stats_of(bag, t)
    order = np.argsort(np.abs(run.residual) / np.maximum(run.magnitude, 1e-30) / np.sqrt(np.maximum(run.pooling, 1)))
    whole = Bags(t.indices, t.offsets)
    often = whole.take(np.concatenate([order, *[order[3000:]] * 2]))
    cal = calibrate_thresholds(bag, Trace(often.indices, often.offsets, ROWS), 5e-3, method="gpd")
    assert cal.tail is not None
    run = stats_of(bag, Trace(often.indices, often.offsets, ROWS))
    units = np.abs(run.residual) / np.maximum(_scale.scale(cal.tables[0].growth, run.pooling, run.magnitude), 1e-300)
    assert cal.tail.share == pytest.approx(np.mean(units > cal.tail.level))
    assert cal.tail.share > 1.2 * np.mean(np.unique(units) > cal.tail.level)
    assert cal.tail.rate(cal.tail.level) == pytest.approx(cal.tail.share)


# ---- in use


def test_a_calibrated_threshold_sees_what_the_bound_does_not(bag: sedq.EmbeddingBag, kernels: _dispatch.Context) -> None:
    t = trace(200, 3)
    cal = calibrate_thresholds(bag, trace(6000), 1e-3)
    share = cal.detectable_bits
    bits = [b for b in range(23) if share["output"][b] > 0.8 and share["output_bound"][b] < 0.3]
    assert bits
    # an accumulator is some powers of two above the output, before the bias is added
    seen = {"bound": 0, "calibrated": 0}
    some = np.flatnonzero(np.diff(t.offsets) > 0)[:100]
    for b in some:
        for name, threshold in (("bound", "bound"), ("calibrated", cal)):
            with faults.accumulator_fault("bag", element=int(b) % DIM, flip=1 << bits[0] - 3):
                seen[name] += alarms(bag, t.batch(b, b + 1), threshold) > 0
    assert seen["calibrated"] > 70
    assert seen["calibrated"] > seen["bound"] + 30


def test_an_injected_error_is_seen_above_the_threshold_and_not_below(
    bag: sedq.EmbeddingBag, calibrated: ThresholdCalibration
) -> None:
    """Each alarm is predicted from the corrupted sum; with the check off there is none."""
    t = trace(100, 3)
    run = stats_of(bag, t)
    limit = _scale.limits(calibrated.threshold, calibrated.tables[0].growth, run.pooling, DIM, run.magnitude)
    clean = bag(t.indices, t.offsets, include_last_offset=True, check="off")
    seen, expected = [], []
    for b in np.flatnonzero(run.pooling)[:40]:
        one = t.batch(int(b), int(b) + 1)
        for bit in (2, 6, 8, 10, 14, 20):
            with faults.accumulator_fault("bag", element=3, flip=1 << bit), sedq.monitor() as m:
                struck = bag(one.indices, one.offsets, include_last_offset=True, check="off", threshold=calibrated)
            assert m.detections == 0
            change = (struck[0].astype(np.float64) - clean[b]).sum()
            expected.append(bool(abs(run.residual[b] + change) > limit[b]))
            with faults.accumulator_fault("bag", element=3, flip=1 << bit):
                seen.append(alarms(bag, one, calibrated) > 0)
    assert seen == expected
    assert 40 < sum(seen) < len(seen) - 40


def test_detectable_bits_are_those_of_flipped_outputs(bag: sedq.EmbeddingBag) -> None:
    cal = calibrate_thresholds(bag, trace(6000), 1e-3)
    for name, length in (("output", 32), ("code", 8)):
        for suffix in ("", "_bound"):
            assert len(cal.detectable_bits[name + suffix]) == length
        calibrated, bound = (np.array(cal.detectable_bits[name + s]) for s in ("", "_bound"))
        assert (calibrated >= bound).all()
        assert calibrated[-1] == 1
    assert cal.detectable_bits["output"][0] < 0.01


def test_a_false_alarm_costs_a_recomputation_and_no_more(bag: sedq.EmbeddingBag, calibrated: ThresholdCalibration) -> None:
    """Rounding is the same on every path: the second look must not take it for a persistent fault."""
    t = trace(2000, 1)
    tight = ThresholdCalibration(**{**vars_of(calibrated), "threshold": 2.5})
    with sedq.monitor() as m:
        got = bag(t.indices, t.offsets, include_last_offset=True, threshold=tight)
    assert m.detections > 10
    assert set(m.verdicts) == {"transient"}
    np.testing.assert_array_equal(got, bag(t.indices, t.offsets, include_last_offset=True))


def test_verify_counts_what_calls_report(bag: sedq.EmbeddingBag, calibrated: ThresholdCalibration) -> None:
    parts = [trace(8000, 2).batch(s, s + 500) for s in range(0, 8000, 500)]
    held = calibrated.verify(bag, parts)
    assert held.alarms == sum(alarms(bag, part, calibrated) for part in parts) > 0


def test_no_warning_within_the_ranges(bag: sedq.EmbeddingBag, calibrated: ThresholdCalibration) -> None:
    t = trace(8000)
    bag(t.indices, t.offsets, include_last_offset=True, threshold=calibrated, on_error="recover")


# ---- drift


def fresh(cal: ThresholdCalibration) -> ThresholdCalibration:
    """The same, which has not warned yet."""
    return pickle.loads(pickle.dumps(ThresholdCalibration(**vars_of(cal))))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda bag: ((np.arange(1500), np.array([0])), {}),
            r"pooling 1500 to 1500 of table 0, <EmbeddingBag 2000 x 16.*>, 1 to .* in calibration",
        ),
        (lambda bag: ((np.arange(9), np.array([0])), {"per_sample_weights": np.ones(9, np.float32)}), "per-sample weights"),
        (
            lambda bag: ((np.arange(9), np.array([0])), {"per_sample_weights": np.full(9, 1e3, np.float32)}),
            "magnitude of a look-up",
        ),
    ],
    ids=["pooling", "weights", "magnitude"],
)
def test_leaving_a_range_warns_once(
    bag: sedq.EmbeddingBag, calibrated: ThresholdCalibration, call: Callable[..., Any], message: str
) -> None:
    cal = fresh(calibrated)
    args, options = call(bag)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bag(*args, **options, threshold=cal)
    assert {w.category for w in caught} == {CalibrationWarning}
    assert {w.filename for w in caught} == {__file__}
    assert any(re.search(message, str(w.message)) for w in caught)
    bag(*args, **options, threshold=cal)  # no second warning: it would be an error here


def test_another_table_warns_and_another_shape_is_refused(calibrated: ThresholdCalibration) -> None:
    cal, t = fresh(calibrated), trace(20)
    other = table(9)
    with pytest.warns(CalibrationWarning, match="is not a table that was calibrated: its digest differs"):
        other(t.indices, t.offsets, include_last_offset=True, threshold=cal)
    for wrong in (table(0, ROWS, 8), table(0, mode="mean")):
        with pytest.raises(ValueError, match=r"threshold: got a calibration of tables 2000 x 16 sum, expected one of <Emb"):
            wrong(t.indices, t.offsets, include_last_offset=True, threshold=cal)


def warned(bag: sedq.EmbeddingBag, call: tuple[Array, Array], cal: ThresholdCalibration) -> list[str]:
    """What a call warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bag(*call, threshold=cal)
    assert {w.category for w in caught} <= {CalibrationWarning}
    return [str(w.message) for w in caught]


def test_an_updated_table_is_another() -> None:
    bag, t = table(3), trace(200)
    cal = calibrate_thresholds(bag, t, method="bound")
    assert warned(bag, (t.indices, t.offsets[:-1]), cal) == []
    bag.update_rows(np.arange(ROWS), 1.3 * np.random.default_rng(3).normal(size=(ROWS, DIM)).astype(np.float32))
    (message,) = warned(bag, (t.indices, t.offsets[:-1]), cal)
    assert "is not a table that was calibrated: its digest differs" in message
    bag.update_rows([7], np.ones((1, DIM), np.float32))
    assert warned(bag, (t.indices, t.offsets[:-1]), cal) == []  # said before
    (message,) = warned(pickle.loads(pickle.dumps(bag)), (t.indices, t.offsets[:-1]), cal)
    assert "its digest differs" in message


def test_a_calibration_knows_the_table_as_it_was_then(tmp_path: Path) -> None:
    bag, t = table(3), trace(200)
    calibrate_thresholds(bag, t, method="bound")
    bag.update_rows([5], np.ones((1, DIM), np.float32))
    calibrate_thresholds(bag, t, method="bound").save(tmp_path / "cal.json")
    cal, copy = ThresholdCalibration.load(tmp_path / "cal.json"), pickle.loads(pickle.dumps(bag))
    for same in (copy, bag):
        same(t.indices, t.offsets, include_last_offset=True, threshold=cal)  # a warning would be an error here


def test_a_repaired_table_is_the_same() -> None:
    bag = table(3, parity=100)
    t = trace(200)
    cal = calibrate_thresholds(bag, t, method="bound")
    version = bag.version
    faults.flip_row_bit(bag, int(t.indices[0]), 5)
    with sedq.monitor() as m:
        bag(t.indices, t.offsets, include_last_offset=True, threshold=cal)
    assert m.detections > 0
    assert bag.version > version
    bag(t.indices, t.offsets, include_last_offset=True, threshold=cal)


def test_each_table_warns_by_name(msweb: tuple[sedq.DLRM, Any]) -> None:
    model, requests = msweb
    cal = calibrate_thresholds(model, requests.batch(0, 2000), 0.05, "request")
    for number, bag in enumerate(model.bags):
        call = np.arange(6000) % bag.shape[0], np.array([0])
        (message,) = (text for text in warned(bag, call, cal) if "pooling" in text)
        assert f"pooling 6000 to 6000 of table {number}, {bag!r}" in message
        assert warned(bag, call, cal) == []


def test_a_larger_batch_warns(bag: sedq.EmbeddingBag) -> None:
    cal = calibrate_thresholds(bag, batches(0), 0.05, "batch")
    t = trace(21)
    with pytest.warns(CalibrationWarning, match="got 21 bags of table 0, .* a batch, at most 20"):
        bag(t.indices, t.offsets, include_last_offset=True, threshold=cal)


def test_off_and_digest_do_not_watch(bag: sedq.EmbeddingBag, calibrated: ThresholdCalibration) -> None:
    for check in ("off", "digest"):
        bag(np.arange(1500), np.array([0]), check=check, threshold=fresh(calibrated))


# ---- files


@pytest.mark.parametrize("method", ["bound", "empirical", "gpd", "probabilistic"])
def test_save_and_load(bag: sedq.EmbeddingBag, tmp_path: Path, method: str) -> None:
    cal = calibrate_thresholds(bag, trace(3000), 5e-3, method=method)
    assert cal.method == method
    path = tmp_path / "cal.json"
    cal.save(path)
    loaded = ThresholdCalibration.load(path)
    assert loaded == cal
    assert str(loaded) == str(cal)
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    t = trace(5)
    bag(t.indices, t.offsets, include_last_offset=True, threshold=loaded)


def damaged(document: dict[str, Any]) -> list[str]:
    other = {**document, "version": 2}
    altered = json.loads(json.dumps(document))
    altered["calibration"]["threshold"] *= 2
    lacking = json.loads(json.dumps(document))
    del lacking["calibration"]["tables"]
    text = json.dumps(document)
    return ["", "[]", "{}", "null", text[:-20], "[" * 100_000, "\x00", *map(json.dumps, (other, altered, lacking))]


def test_damaged_files_are_refused(calibrated: ThresholdCalibration, tmp_path: Path) -> None:
    path = tmp_path / "cal.json"
    calibrated.save(path)
    for text in damaged(json.loads(path.read_text())):
        path.write_text(text)
        with pytest.raises(ModelFileError, match="not a calibration of version 1"):
            ThresholdCalibration.load(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelFileError):
        ThresholdCalibration.load(path)
    with pytest.raises(FileNotFoundError):
        ThresholdCalibration.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("name", "value"), [("threshold", -1.0), ("threshold", "1"), ("tail", []), ("tables", [1]), ("detectable_bits", [])]
)
def test_wrong_values_with_a_right_digest_are_refused(
    calibrated: ThresholdCalibration, tmp_path: Path, name: str, value: Any
) -> None:
    path = tmp_path / "cal.json"
    calibrated.save(path)
    document = json.loads(path.read_text())
    document["calibration"][name] = value
    document["sha256"] = _result._digest(document["calibration"])
    path.write_text(json.dumps(document))
    with pytest.raises(ModelFileError, match="not a calibration of version 1"):
        ThresholdCalibration.load(path)


# ---- arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_fpr": 0}, "target_fpr: got"),
        ({"target_fpr": 1.0}, "target_fpr: got"),
        ({"target_fpr": math.nan}, "target_fpr: got"),
        ({"target_fpr": "1e-6"}, "target_fpr: got"),
        ({"target_fpr": True}, "target_fpr: got"),
        ({"confidence": 1.0}, "confidence: got"),
        ({"unit": "row"}, "unit: got 'row', expected one of 'bag', 'batch', 'request'"),
        ({"method": "magic"}, "method: got 'magic'"),
        ({"extrapolate": 1}, "extrapolate: got 1"),
        ({"samples": []}, "samples: got"),
        ({"samples": None}, "samples: got"),
        ({"samples": [None]}, "samples: got"),
        ({"samples": [(np.arange(3),)]}, "samples: got"),
        ({"samples": (np.arange(3), np.array([0]), np.ones(2, np.float32))}, "per_sample_weights: got"),
        ({"samples": (np.arange(0), np.arange(0))}, "samples: got no bag"),
        ({"samples": (np.arange(3), np.array([1]))}, "offsets: got 1 first"),
    ],
)
def test_bad_arguments_are_refused(bag: sedq.EmbeddingBag, options: dict[str, Any], message: str) -> None:
    call = {"samples": trace(10)} | options
    with pytest.raises(ValueError, match=message):
        calibrate_thresholds(bag, **call)


def test_bad_targets_are_refused(bag: sedq.EmbeddingBag) -> None:
    with pytest.raises(TypeError, match="bag_or_model: got"):
        calibrate_thresholds(object(), trace(10))  # type: ignore[arg-type]
    with pytest.raises(IndexError, match="indices: got 2000"):
        calibrate_thresholds(bag, (np.array([2000]), np.array([0])))
    data = load_msweb()
    with pytest.raises(ValueError, match="not quantised"):
        calibrate_thresholds(sedq.DLRM(data.bottom, data.tables, data.top, data.modes), data.heldout)


def test_samples_with_a_fault_calibrate_nothing() -> None:
    bag = table()
    faults.flip_row_bit(bag, 3, 5)
    with pytest.raises(SoftErrorDetected, match="bag 0 of the samples is corrupted"):
        calibrate_thresholds(bag, (np.array([3]), np.array([0])))


@pytest.mark.parametrize("form", ["tuple", "list", "trace", "weights", "last", "2d"])
def test_forms_of_samples(bag: sedq.EmbeddingBag, form: str) -> None:
    t = trace(40)
    starts = t.offsets[:-1]
    samples: Any = {
        "tuple": (t.indices, starts),
        "list": [(t.indices, starts)],
        "trace": t,
        "weights": [(t.indices, starts, None)],
        "last": (t.indices, t.offsets),
        "2d": [(np.arange(80).reshape(40, 2), None)],
    }[form]
    cal = calibrate_thresholds(bag, samples, method="bound", include_last_offset=form == "last")
    assert cal.samples == 40


def test_empty_bags_count_and_raise_no_alarm(bag: sedq.EmbeddingBag) -> None:
    empty = Trace(np.zeros(0, np.int64), np.zeros(1001, np.int64), ROWS)
    cal = calibrate_thresholds(bag, [empty, trace(500)], method="probabilistic")
    assert cal.samples == 1500
    assert cal.verify(bag, empty).alarms == 0
    only = calibrate_thresholds(bag, empty, method="bound")
    assert only.tables[0].pooling == (0, 0)
    assert only.detectable_bits == {}


def test_a_plain_attribute_is_still_compared_with_the_magnitude(bag: sedq.EmbeddingBag) -> None:
    assert alarms(bag, trace(20), SimpleNamespace(threshold=1e-9)) > 0
    assert alarms(bag, trace(20), SimpleNamespace(threshold=1.0)) == 0


def test_plot_draws_every_part(bag: sedq.EmbeddingBag) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    for method in ("bound", "empirical", "gpd"):
        cal = calibrate_thresholds(bag, trace(3000), 5e-3, method=method)
        ax = Figure().subplots()
        assert cal.plot(ax) is ax
        labels = [text.get_text() for text in ax.get_legend().get_texts()]
        assert any("samples" in label for label in labels)
        assert any("threshold" in label for label in labels) == (method != "bound")
        assert any("Pareto" in label for label in labels) == (method == "gpd")
        ax.figure.canvas.draw()
