"""Calibrated thresholds in use: what they see, what a false alarm costs."""

from __future__ import annotations

import numpy as np

import sedq
from helpers import calibrations
from helpers.calibrations import DIM, alarms, stats_of, trace, vars_of
from sedq import faults
from sedq._core import _dispatch
from sedq.calibration import ThresholdCalibration, _scale, calibrate_thresholds

bag, calibrated = calibrations.bag, calibrations.calibrated  # fixtures


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
    assert set(m.verdicts) == {"rounding"}
    np.testing.assert_array_equal(got, bag(t.indices, t.offsets, include_last_offset=True))


def test_verify_counts_what_calls_report(bag: sedq.EmbeddingBag, calibrated: ThresholdCalibration) -> None:
    parts = [trace(8000, 2).batch(s, s + 500) for s in range(0, 8000, 500)]
    held = calibrated.verify(bag, parts)
    assert held.alarms == sum(alarms(bag, part, calibrated) for part in parts) > 0


def test_no_warning_within_the_ranges(bag: sedq.EmbeddingBag, calibrated: ThresholdCalibration) -> None:
    t = trace(8000)
    bag(t.indices, t.offsets, include_last_offset=True, threshold=calibrated, on_error="recover")
