"""Kinds of observers, samples, and the error of quantisation."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sedq import QParams, dequantize, quantize
from sedq.quantization import HistogramObserver, MinMaxObserver, MovingAverageObserver, PercentileObserver

RNG = np.random.default_rng(7)
KINDS: dict[str, Callable[..., Any]] = {
    "MinMaxObserver": MinMaxObserver,
    "MovingAverageObserver": MovingAverageObserver,
    "PercentileObserver": PercentileObserver,
    "HistogramObserver": HistogramObserver,
}
every = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
signs = pytest.mark.parametrize("symmetric", [False, True])
SAMPLES = {
    "normal": RNG.normal(size=20_000),
    "heavy tails": RNG.standard_t(2, size=20_000),
    "ReLU": np.maximum(RNG.normal(size=20_000), 0),
    "negative": -RNG.exponential(size=20_000),
    "away from 0": RNG.normal(50, 1, size=20_000),
    "one side heavy": np.concatenate([RNG.laplace(size=20_000), -10 * RNG.gamma(0.2, size=300)]),
    "few values": RNG.choice([-1.0, 0.0, 0.3, 7.0], size=1000),
    "tiny": RNG.normal(size=1000) * 1e-30,
    "large": RNG.normal(size=1000) * 1e30,
}
samples = pytest.mark.parametrize("x", SAMPLES.values(), ids=SAMPLES)


def message(name: str, got: str = "") -> str:
    return rf"^{re.escape(name)}: got {re.escape(got)}.*, expected "


def error(x: np.ndarray, qparams: QParams, axis: int = 0) -> float:
    """Root mean square error of quantisation."""
    back = dequantize(quantize(x, qparams, axis=axis), qparams, axis=axis)
    return float(np.sqrt(np.mean((back.astype(np.float64) - x) ** 2)))
