"""Calibrations by bag, batch and request, counted again on requests that were held out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

import sedq
from helpers import calibrations
from helpers.calibrations import ROWS, batches, stats_of, table, trace, vars_of
from sedq.calibration import ThresholdCalibration, _scale, calibrate_thresholds
from sedq.datasets import Trace, load_pydocs_trace
from sedq.datasets._requests import Bags

bag, calibrated, msweb = calibrations.bag, calibrations.calibrated, calibrations.msweb  # fixtures


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
    assert {event.verdict for event in m.events} == {"rounding"}
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
