"""Methods of calibration: thresholds hold what they state, and what samples do not support is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

import sedq
from helpers import calibrations
from helpers.calibrations import DIM, alarms, stats_of, table, trace
from sedq import faults
from sedq.calibration import ThresholdCalibration, _scale, calibrate_thresholds
from sedq.exceptions import CalibrationWarning

bag, calibrated = calibrations.bag, calibrations.calibrated  # fixtures


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
