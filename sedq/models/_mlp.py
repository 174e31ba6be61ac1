"""The quantised layers of an MLP, one after another."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sedq import _config
from sedq.linear import QuantizedLinear
from sedq.models._float import linear
from sedq.quantization import MinMaxObserver

__all__ = ["quantize_mlp", "run_mlp"]

Array = NDArray[Any]


def quantize_mlp(layers: Sequence[tuple[Array, Array | None]], x: Array) -> list[QuantizedLinear]:
    """Quantise the layers of an MLP; the output parameters of each are the input parameters of the next.

    `x` is float64, and rounded to float32 where it is looked at: the last bits of a float32 product depend on how many
    threads share it, and a model's parameters must not.
    """
    made = [QuantizedLinear.from_float(w, b, relu=i + 1 < len(layers), keep_source=True) for i, (w, b) in enumerate(layers)]
    for layer, (w, b) in zip(made, layers, strict=True):
        layer.input_qparams = MinMaxObserver().observe(x.astype(np.float32)).qparams()
        x = np.maximum(linear(x, w, b), np.float32(0))
    for layer, following in itertools.pairwise(made):
        layer.output_qparams = following.input_qparams
    return made


def run_mlp(
    layers: Sequence[QuantizedLinear], x: Array, x_sums: Array | None, settings: _config.Settings, name: str
) -> tuple[Array, Array | None]:
    """Run codes through the layers; the last gives float32."""
    for i, layer in enumerate(layers):
        x, x_sums = layer.run(x, settings, f"{name}.{i}", x_sums, to_float=i + 1 == len(layers))
    return x, x_sums
