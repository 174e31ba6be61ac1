"""What a DLRM is given, checked: its parts, and requests."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sedq import _validation
from sedq.embedding import EmbeddingBag, IndexBatch
from sedq.embedding._index_batch import require_none_beside
from sedq.embedding._requests import bags
from sedq.linear import QuantizedLinear

__all__ = ["check_parts", "requests_of"]

Array = NDArray[Any]


def check_parts(bottom: Sequence[QuantizedLinear], bags: Sequence[EmbeddingBag], top: Sequence[QuantizedLinear]) -> None:
    """Check that frozen layers and bags make a model."""
    for name, parts, kind in (
        ("bottom", bottom, QuantizedLinear),
        ("bags", bags, EmbeddingBag),
        ("top", top, QuantizedLinear),
    ):
        for i, part in enumerate(parts):
            if not isinstance(part, kind):
                raise TypeError(f"{name}[{i}]: got {_validation.describe(part)}, expected {kind.__name__}")
    for name, layers in (("bottom", bottom), ("top", top)):
        if not layers:
            raise ValueError(f"{name}: got no layers, expected at least one")
        for i, layer in enumerate(layers):
            if not layer.frozen:
                raise ValueError(f"{name}[{i}]: got a layer without activation parameters, expected a frozen one")
        for i, (layer, following) in enumerate(itertools.pairwise(layers)):
            if layer.output_qparams != following.input_qparams or layer.packed.shape[0] != following.packed.shape[1]:
                raise ValueError(f"{name}[{i}]: its output does not fit the input of {name}[{i + 1}]")
    dim, features = bottom[-1].packed.shape[0], len(bags) + 1
    for t, bag in enumerate(bags):
        if bag.shape[1] != dim:
            raise ValueError(f"bags[{t}]: got dimension {bag.shape[1]}, expected {dim} as the bottom MLP gives")
    width = dim + features * (features - 1) // 2
    if top[0].packed.shape[1] != width or top[-1].packed.shape[0] != 1:
        got = (top[-1].packed.shape[0], top[0].packed.shape[1])
        raise ValueError(f"top: got {got[0]} outputs of {got[1]} inputs, expected 1 of {width}")


def requests_of(
    dense: ArrayLike,
    indices: Sequence[ArrayLike | IndexBatch],
    offsets: Sequence[ArrayLike | None] | None,
    include_last_offset: bool,
    n_dense: int,
    rows: list[int],
) -> tuple[Array, list[Array], list[Array]]:
    """Check a batch of requests against the model and return it with all last offsets."""
    x = _validation.float_rows(dense, n_dense, "dense")
    if np.ndim(dense) != 2:
        raise ValueError(f"dense: got {_validation.describe(np.asarray(dense))}, expected shape (B, {n_dense})")
    if not np.isfinite(x).all():
        raise ValueError("dense: got NaN or infinite values, expected finite ones")
    given: Sequence[ArrayLike | None] = [None] * len(rows) if offsets is None else offsets
    for name, value in (("indices", indices), ("offsets", given)):
        if not isinstance(value, (Sequence, np.ndarray)):
            raise TypeError(f"{name}: got {_validation.describe(value)}, expected one array per table")
    if len(indices) != len(rows) or len(given) != len(rows):
        raise ValueError(f"indices, offsets: got {len(indices)} and {len(given)}, expected one per table, {len(rows)}")
    pairs = [_bags_of(i, o, include_last_offset) for i, o in zip(indices, given, strict=True)]
    for t, (index, starts) in enumerate(pairs):
        if len(starts) - 1 != len(x):
            raise ValueError(f"offsets[{t}]: got {len(starts) - 1} bags, expected one per request, {len(x)}")
        if index.size and not 0 <= index.min() <= index.max() < rows[t]:
            raise IndexError(f"indices[{t}]: got {index.min()} to {index.max()}, expected 0 to {rows[t] - 1}")
        if starts[0] != 0 or starts[-1] != index.size or (np.diff(starts) < 0).any():
            raise ValueError(f"offsets[{t}]: expected offsets from 0 to {index.size} that do not decrease")
    return x, [i for i, _ in pairs], [s for _, s in pairs]


def _bags_of(indices: ArrayLike | IndexBatch, offsets: ArrayLike | None, include_last_offset: bool) -> tuple[Array, Array]:
    """Return indices and all offsets of one table's bags."""
    if not isinstance(indices, IndexBatch):
        return bags(indices, offsets, include_last_offset)
    require_none_beside(offsets, indices.per_sample_weights)
    return indices.indices, indices.offsets
