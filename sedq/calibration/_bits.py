"""Which flipped bits a threshold shows, on sampled bags."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sedq.calibration._samples import TableSamples
from sedq.calibration._scale import limits

__all__ = ["detectable_bits"]

Array = NDArray[Any]


def detectable_bits(
    runs: Sequence[TableSamples], growths: Sequence[tuple[float, ...]], threshold: float, rng: np.random.Generator
) -> dict[str, tuple[float, ...]]:
    """Return the share of flips of each bit, of an output and of a code, after which a bag's residual exceeds its limit."""
    seen: dict[str, list[Array]] = {}
    for run, growth in zip(runs, growths, strict=True):
        some = np.flatnonzero(run.pooling[: len(run.outputs)])
        if not some.size:
            continue
        dim = run.bag.shape[1]
        outputs = run.outputs[some, rng.integers(dim, size=some.size)]
        for name, value in (("", threshold), ("_bound", math.inf)):
            limit = limits(value, growth, run.pooling[some], dim, run.magnitude[some])
            residual = run.residual[some]
            seen.setdefault(f"output{name}", []).append(_beyond(residual, _flips(outputs), limit))
            codes = run.steps[some, None] * 2.0 ** np.arange(8) * rng.choice([-1, 1], (some.size, 1))
            seen.setdefault(f"code{name}", []).append(_beyond(residual, codes, limit))
    shares = {name: np.concatenate(parts).mean(axis=0) for name, parts in sorted(seen.items())}
    return {name: tuple(float(share) for share in each) for name, each in shares.items()}


def _flips(outputs: Array) -> Array:
    """Return by how much an output changes if each of its 32 bits flips."""
    flipped = (outputs.view(np.uint32)[:, None] ^ (np.uint32(1) << np.arange(32, dtype=np.uint32))).view(np.float32)
    with np.errstate(invalid="ignore"):  # some are NaN
        return flipped.astype(np.float64) - outputs[:, None]


def _beyond(residual: Array, change: Array, limit: Array) -> Array:
    # not <=: a NaN is seen
    return np.asarray(~(np.abs(residual[:, None] + change) <= limit[:, None]))
