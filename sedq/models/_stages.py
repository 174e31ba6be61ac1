"""The float stages between the int8 ones: quantisation, with or without the dot interaction, and the sigmoid."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from sedq import _config, detection
from sedq._core import _dense, _dispatch
from sedq.quantization import QParams

__all__ = ["quantize", "sigmoid"]

Array = NDArray[Any]

# By how much the two computations of a probability may differ: relative to it, and where float32 has no normal numbers.
# 2^-21 is 4 to 8 units in the last place. The float32 sigmoid is off by 2 at most, in tests over all magnitudes.
SIGMOID_RELATIVE, SIGMOID_ABSOLUTE = 2.0**-21, 2.0**-126


def quantize(
    vectors: Array,
    params: QParams,
    settings: _config.Settings,
    operator: str,
    sums: Array | None,
    codes: Array | None = None,
) -> tuple[Array, Array | None]:
    """Quantise vectors (B, F, d) and, for F > 1, their dot products, into `codes` if given; sums (F, B) are the writers'."""
    count, features, dim = vectors.shape
    checked = settings.check != "off"
    if codes is None:
        codes = np.empty((count, dim + features * (features - 1) // 2), np.uint8)
    code_sums = np.empty(count, np.uint32)
    outputs = (codes, code_sums)
    x_sums = np.ascontiguousarray(sums.T) if checked and sums is not None else None
    x = np.ascontiguousarray(vectors)

    def run(kernels: _dispatch.Context, into: tuple[Array, ...]) -> list[detection.Finding] | None:
        found: list[detection.Finding] | None = _dense.interact_quantize(
            kernels, x, params.scale, params.zero_point, into[0], checked, settings.num_threads or 0, x_sums, into[1]
        )
        return found

    detection.checked_stage(run, outputs, settings, operator, count, has_writer=x_sums is not None)
    return codes, code_sums if checked else None


def agrees(logits: Array, probabilities: Array) -> NDArray[np.bool_]:
    """Whether each probability is the sigmoid of its logit, computed in float64, by NumPy's exp, from the last on.

    It takes other instructions and other lanes than the float32 sigmoid: a fault that sticks to one is in one of both.
    """
    with np.errstate(over="ignore"):  # exp of a large number is infinite, and the probability 0
        again = (1 / (1 + np.exp(-logits[::-1].astype(np.float64))))[::-1]
        close: NDArray[np.bool_] = np.abs(probabilities - again) <= SIGMOID_RELATIVE * again + SIGMOID_ABSOLUTE
    return close


def sigmoid(logits: Array, sums: Array | None, settings: _config.Settings) -> NDArray[np.float32]:
    """Turn logits (B, 1) into probabilities, and compute them a second time another way (`agrees`)."""
    probabilities = np.empty(len(logits), np.float32)
    if sums is None:
        expit(logits[:, 0], out=probabilities)
        return probabilities

    def run(kernels: _dispatch.Context, into: tuple[Array, ...]) -> list[detection.Finding] | None:
        probabilities = into[0]
        expit(logits[:, 0], out=probabilities)
        # the sum of one word is the word: what the last layer computed
        changed = np.flatnonzero(logits[:, 0].view(np.uint32) != sums)
        differs = np.flatnonzero(~agrees(logits[:, 0], probabilities))
        found = [detection.Finding(int(i), detection.Kind.INPUT) for i in changed[:64]]
        return found + [detection.Finding(int(i), detection.Kind.REPEAT) for i in differs[:64]] or None

    detection.checked_stage(run, (probabilities,), settings, "sigmoid", len(logits), has_writer=True)
    return probabilities
