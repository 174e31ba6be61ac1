"""Arguments of a calibration: forms of samples, what is refused, and its picture."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import sedq
from helpers import calibrations
from helpers.calibrations import ROWS, alarms, table, trace
from sedq import faults
from sedq.calibration import calibrate_thresholds
from sedq.commands import _demo
from sedq.datasets import Trace, load_msweb
from sedq.exceptions import SoftErrorDetected

bag = calibrations.bag  # fixture


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


@pytest.mark.parametrize("form", ["tuple", "list", "object"])
def test_samples_of_a_model_are_requests_that_fit_it(form: str) -> None:
    model = _demo.build(load_msweb())
    r = load_msweb().heldout.batch(0, 20)

    def samples(dense: Any, offsets: Any) -> Any:
        request = (dense, r.indices, offsets)
        return {
            "tuple": request,
            "list": [request],
            "object": SimpleNamespace(dense=dense, indices=r.indices, offsets=offsets),
        }[form]

    last = form != "object"
    calibrated = calibrate_thresholds(model, samples(r.dense, r.offsets), 0.1, method="bound", include_last_offset=last)
    assert calibrated.samples == 20 * len(model.bags)
    if last:
        with pytest.raises(ValueError, match=r"offsets\[0\]: got 21 bags, expected one per request, 20"):
            calibrate_thresholds(model, samples(r.dense, r.offsets), 0.1, method="bound")
    for dense, message in ((r.dense[:10], "expected one per request, 10"), (None, "dense: got")):
        with pytest.raises(ValueError, match=message):
            calibrate_thresholds(model, samples(dense, r.offsets), 0.1, method="bound", include_last_offset=last)
