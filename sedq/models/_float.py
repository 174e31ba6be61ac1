"""The float DLRM: what is quantised, and what the quantised model is compared with. Unprotected, plain NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from sedq import _validation

__all__ = ["FloatDLRM", "float_dlrm", "linear", "mlp"]

Array = NDArray[Any]
Layer = tuple[Array, Array | None]


@dataclass(frozen=True)
class FloatDLRM:
    """Float arrays of a DLRM; see `sedq.DLRM` for what they mean. Made by `float_dlrm`."""

    bottom: list[Layer]
    tables: list[Array]
    top: list[Layer]
    modes: list[str]

    def pooled(self, table: int, indices: Array, offsets: Array) -> Array:
        """Pool the bags of one table; offsets include the last."""
        rows = self.tables[table]
        lengths = np.diff(offsets)
        out = np.zeros((len(lengths), rows.shape[1]), np.float32)
        full = lengths > 0
        if full.any():
            # reduceat gives a row, not zeros, for an empty bag; the starts of the others still delimit them
            out[full] = np.add.reduceat(rows[indices], offsets[:-1][full], axis=0)
        if self.modes[table] == "mean":
            out /= np.maximum(lengths, 1).astype(np.float32)[:, None]
        return out

    def features(self, bottom: Array, indices: Sequence[Array], offsets: Sequence[Array]) -> Array:
        """Return the input of the top MLP: the output of the bottom one, then the dot products of all pairs."""
        pooled = [self.pooled(t, i, o) for t, (i, o) in enumerate(zip(indices, offsets, strict=True))]
        vectors = np.stack([bottom, *pooled], axis=1)
        left, right = np.tril_indices(vectors.shape[1], -1)
        dots = np.matmul(vectors, vectors.transpose(0, 2, 1))[:, left, right]
        return np.concatenate([bottom, dots], axis=1)

    def predict(self, dense: Array, indices: Sequence[Array], offsets: Sequence[Array]) -> NDArray[np.float32]:
        """Return the probabilities (B,)."""
        x = self.features(mlp(dense, self.bottom), indices, offsets)
        return np.asarray(expit(mlp(x, self.top)[:, 0]), dtype=np.float32)


def mlp(x: Array, layers: Sequence[Layer]) -> Array:
    """Apply linear layers, with ReLU between them and none after the last."""
    for number, (weight, bias) in enumerate(layers):
        if number:
            x = np.maximum(x, np.float32(0))
        x = linear(x, weight, bias)
    return x


def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    """Apply a linear layer."""
    product = x @ weight.T
    return product if bias is None else product + bias


def _layers(name: str, layers: Sequence[tuple[ArrayLike, ArrayLike | None]], inputs: int | None) -> list[Layer]:
    """Check that layers fit one another and return them as float32."""
    checked: list[Layer] = []
    for number, layer in enumerate(layers):
        if not isinstance(layer, (tuple, list)) or len(layer) != 2:
            raise ValueError(f"{name}[{number}]: got {type(layer).__name__}, expected (weight, bias)")
        weight = _validation.finite_array(f"{name}[{number}] weight", layer[0], (None, inputs))
        if 0 in weight.shape:
            raise ValueError(f"{name}[{number}] weight: got shape {weight.shape}, expected neither dimension 0")
        bias = None if layer[1] is None else _validation.finite_array(f"{name}[{number}] bias", layer[1], (len(weight),))
        checked.append((weight, bias))
        inputs = len(weight)
    if not checked:
        raise ValueError(f"{name}: got no layers, expected at least one")
    return checked


def float_dlrm(
    bottom: Sequence[tuple[ArrayLike, ArrayLike | None]],
    tables: Sequence[ArrayLike],
    top: Sequence[tuple[ArrayLike, ArrayLike | None]],
    modes: str | Sequence[str],
) -> FloatDLRM:
    """Check the arrays of a DLRM and that they fit one another; ValueError says which doesn't."""
    for name, given in (("bottom", bottom), ("tables", tables), ("top", top)):
        if not isinstance(given, Sequence) and not isinstance(given, np.ndarray):
            raise TypeError(f"{name}: got {_validation.describe(given)}, expected a sequence")
    below = _layers("bottom", bottom, None)
    dim = len(below[-1][0])
    weights = [_validation.finite_array(f"tables[{t}]", w, (None, dim)) for t, w in enumerate(tables)]
    for t, w in enumerate(weights):
        if not len(w):
            raise ValueError(f"tables[{t}]: got no rows, expected at least one")
    above = _layers("top", top, dim + len(weights) * (len(weights) + 1) // 2)
    if len(above[-1][0]) != 1:
        raise ValueError(f"top: got a last layer of {len(above[-1][0])} outputs, expected one, the logit")
    given = [modes] if isinstance(modes, str) else list(modes) if isinstance(modes, Sequence) else []
    each = given * len(weights) if isinstance(modes, str) else given
    if len(each) != len(weights) or any(m not in ("sum", "mean") for m in (given or each)):
        raise ValueError(f"modes: got {modes!r}, expected 'sum' or 'mean', one or one per table ({len(weights)})")
    return FloatDLRM(below, weights, above, each)
