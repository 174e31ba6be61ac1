"""What each observer's range costs: relative root mean square error of quantised activations and weights.

    python bench/observers.py

Activations: the input of every layer of the MSWeb model, parameters chosen on the calibration requests in batches of 64,
error measured on the held-out requests. Weights: the packaged matrix of MiniLM, parameters chosen on itself, error measured
on itself. The error of x is ||x - dequantize(quantize(x))|| / ||x||. Nothing is random: the output is the same every time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sedq import dequantize, quantize
from sedq.datasets import Requests, load_msweb
from sedq.datasets._minilm import load_minilm
from sedq.models._float import FloatDLRM, float_dlrm, mlp
from sedq.quantization import HistogramObserver, MinMaxObserver, MovingAverageObserver, PercentileObserver

Array = NDArray[Any]
BATCH = 64
OBSERVERS: dict[str, Callable[..., Any]] = {
    "min/max": MinMaxObserver,
    "moving average": MovingAverageObserver,
    "percentile 99.9": PercentileObserver,
    "percentile 99.99": lambda *args, **kwargs: PercentileObserver(*args, percentile=99.99, **kwargs),
    "histogram": HistogramObserver,
}


def layer_inputs(model: FloatDLRM, requests: Requests) -> dict[str, Array]:
    """Return what each layer of both MLPs reads."""
    inputs = {}

    def run(name: str, x: Array, layers: list[tuple[Array, Array]]) -> Array:
        for i in range(len(layers)):
            seen = mlp(x, layers[:i])
            inputs[f"{name}.{i}"] = np.maximum(seen, 0) if i else seen
        return mlp(x, layers)

    bottom = run("bottom", requests.dense, model.bottom)
    run("top", model.features(bottom, requests.indices, requests.offsets), model.top)
    return inputs


def error(x: Array, observer: Any) -> float:
    """Return the relative root mean square error of x under an observer's parameters."""
    axis = observer.channel_axis or 0
    qparams = observer.qparams()
    back = dequantize(quantize(x, qparams, axis=axis), qparams, axis=axis).astype(np.float64)
    return float(np.linalg.norm(back - x) / np.linalg.norm(x.astype(np.float64)))


def activation_rows(symmetric: bool) -> dict[str, list[float]]:
    """Return the errors of all observers, for each layer."""
    data = load_msweb()
    model = float_dlrm(data.bottom, data.tables, data.top, data.modes)
    seen, unseen = layer_inputs(model, data.calibration), layer_inputs(model, data.heldout)
    rows: dict[str, list[float]] = {}
    for name, x in seen.items():
        for make in OBSERVERS.values():
            observer = make(symmetric=symmetric)
            for start in range(0, len(x), BATCH):
                observer.observe(x[start : start + BATCH])
            rows.setdefault(name, []).append(error(unseen[name], observer))
    return rows


def weight_rows() -> dict[str, list[float]]:
    """Return the errors of all observers on weights, for each way to share parameters."""
    weight = load_minilm().weight()
    ways = {"one scale": None, "a scale per output": 0, "a scale per input": 1}
    return {
        f"{way}, {kind}": [
            error(weight, make("int8", symmetric=symmetric, channel_axis=axis).observe(weight))
            for make in OBSERVERS.values()
        ]
        for way, axis in ways.items()
        for kind, symmetric in (("symmetric", True), ("affine", False))
    }


def table(title: str, rows: dict[str, list[float]]) -> str:
    """Return rows of errors in percent as a Markdown table, the least of each in bold."""
    lines = [f"| {title} | {' | '.join(OBSERVERS)} |", "|---" * (1 + len(OBSERVERS)) + "|"]
    for name, errors in rows.items():
        texts = [f"{100 * e:.3f}" for e in errors]
        least = min(texts, key=float)
        lines.append(f"| {name} | {' | '.join(f'**{t}**' if t == least else t for t in texts)} |")
    return "\n".join(lines)


def main() -> None:
    print("Relative root mean square error, percent\n")
    print(table("activations, affine uint8", activation_rows(symmetric=False)), end="\n\n")
    print(table("activations, symmetric uint8", activation_rows(symmetric=True)), end="\n\n")
    print(table("weights, int8", weight_rows()))


if __name__ == "__main__":
    main()
