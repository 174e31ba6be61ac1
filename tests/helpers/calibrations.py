"""A table, its requests and a calibration, for the files of tests of calibrated thresholds."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import sedq
from sedq.calibration import ThresholdCalibration, _samples, calibrate_thresholds
from sedq.datasets import Trace, load_msweb, synthetic_trace
from sedq.exceptions import CalibrationWarning

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


def alarms(bag: sedq.EmbeddingBag, t: Trace, threshold: Any) -> int:
    """Detections of a call, result as it is."""
    with sedq.monitor() as m, warnings.catch_warnings():
        warnings.simplefilter("ignore", sedq.SoftErrorWarning)
        warnings.simplefilter("ignore", CalibrationWarning)
        bag(t.indices, t.offsets, include_last_offset=True, on_error="warn", threshold=threshold)
    return m.detections


def vars_of(cal: ThresholdCalibration) -> dict[str, Any]:
    return {name: value for name, value in vars(cal).items() if name != "_warned"}


@pytest.fixture(scope="module")
def msweb() -> tuple[sedq.DLRM, Any]:
    data = load_msweb()
    c = data.calibration
    model = sedq.DLRM(data.bottom, data.tables, data.top, data.modes)
    return model.quantize((c.dense, c.indices, c.offsets), include_last_offset=True), data.heldout
