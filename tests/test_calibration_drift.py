"""Calls and tables that a calibration is not of: each warns once."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sedq
from helpers import calibrations
from helpers.calibrations import DIM, ROWS, Array, batches, table, trace, vars_of
from sedq import faults
from sedq.calibration import ThresholdCalibration, calibrate_thresholds
from sedq.exceptions import CalibrationWarning

bag, calibrated, msweb = calibrations.bag, calibrations.calibrated, calibrations.msweb  # fixtures


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
