"""Residuals of pooled sums, normalised: what the threshold check compares, without faults and with them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sedq import _config
from sedq._core import _embedding
from sedq.calibration._scale import chain_of, limits
from sedq.calibration._tail import Tail, fit_tail
from sedq.embedding import _requests, measure_sums
from sedq.faults import _strike, _targets
from sedq.faults._models import BitFlip
from sedq.faults._worker import FLOAT_TOLERANCE, LARGEST, Spec, difference

__all__ = ["Residuals", "residuals", "residuals_of"]

Array = NDArray[Any]
RARE = 1e-6  # the rate down to which the tail is looked at


@dataclass(frozen=True)
class Residuals:
    """Largest residual of each call, in multiples of the bound that rounding can't exceed.

    Attributes
    ----------
    sound : ndarray of float64
        Without a fault.
    struck : ndarray of float64
        With one flipped bit in a float accumulator or in the codes of a row.
    consequential : ndarray of bool
        Whether that changed an output by more than 1e-4 of the largest.
    tail : Tail or None
        Generalised Pareto tail of `sound`; None if none fits.
    limits : ndarray of float64
        The threshold in force for each bag of the calls without a fault, in the same multiples; none if it is the bound.
    sound_over, struck_over : ndarray of bool
        Whether a call has a residual beyond the threshold in force.
    """

    sound: Array
    struck: Array
    consequential: Array
    tail: Tail | None
    limits: Array
    sound_over: Array
    struck_over: Array


def _stats(target: _targets.BagTarget, batch: dict[str, Any]) -> tuple[Array, Array]:
    """Return (residual, reference, magnitude) of each bag of a batch, float64 (B, 3), and their lengths."""
    settings, dim = _config.resolve("threshold", None, 1), target.bag.shape[1]
    index, starts = batch["indices"][0], batch["offsets"][0]
    weights = batch["per_sample_weights"][0] if batch["per_sample_weights"] else None
    out = np.empty((len(starts) - 1, dim), np.float32)
    _, stats = measure_sums(target.bag, index, starts, weights, out, settings)
    return stats, np.diff(starts)


def residuals_of(target: _targets.BagTarget, batch: dict[str, Any]) -> tuple[Array, Array]:
    """Return the residual of each bag of a batch, and the bound that rounding can't exceed, as float64."""
    stats, lengths = _stats(target, batch)
    return stats[:, 0], _bounds(lengths, stats[:, 2], target.bag.shape[1])


def _in_force(target: _targets.BagTarget, threshold: Any, stats: Array, lengths: Array, bounds: Array) -> Array:
    """Return what the residuals are compared with under a threshold."""
    limit = _requests.limit(threshold, target.bag)
    if limit.kind == _embedding.LIMIT_REFERENCE:
        return np.asarray(limit.value * np.abs(stats[:, 1]))
    if limit.kind == _embedding.LIMIT_MAGNITUDE:
        return np.asarray(limit.value * stats[:, 2])
    if limit.kind == _embedding.LIMIT_GROWTH:
        return limits(limit.value, limit.growth, lengths, target.bag.shape[1], stats[:, 2])
    return bounds


def _call(target: _targets.BagTarget, batch: dict[str, Any], threshold: Any) -> tuple[float, bool, Array]:
    """Return the largest residual of a batch in multiples of the bound, whether one is beyond the limit, and the limits."""
    stats, lengths = _stats(target, batch)
    bounds = _bounds(lengths, stats[:, 2], target.bag.shape[1])
    with np.errstate(all="ignore"):
        residual = np.nan_to_num(np.abs(stats[:, 0]), nan=LARGEST, posinf=LARGEST)
        force = _in_force(target, threshold, stats, lengths, bounds)
        size = np.nan_to_num(np.abs(stats[:, 0]) / bounds, nan=LARGEST, posinf=LARGEST)
        return float(size.max(initial=0.0)), bool((~(residual <= force)).any()), force / bounds


def _bounds(lengths: Array, magnitudes: Array, dim: int) -> Array:
    """Return what rounding can't exceed."""
    steps = (chain_of(lengths) + 5) * 2.0**-24
    return np.asarray(steps / (1 - steps) * magnitudes + dim * (257 * lengths + 4) * 2.0**-126)


def _tables(spec: Spec) -> list[_targets.BagTarget]:
    """Return the tables of a target with the bags that its inputs have of each."""
    target = _targets.target_of(spec.target, spec.inputs)
    if isinstance(target, _targets.BagTarget):
        return [] if target.bag.pruning else [target]
    if not isinstance(target, _targets.ModelTarget):
        return []
    return [
        _targets.BagTarget(bag, [(b["indices"][t], b["offsets"][t]) for b in target.batches if b["indices"][t].size])
        for t, bag in enumerate(target.model.bags)
        if bag.pruning is None and any(b["indices"][t].size for b in target.batches)
    ]


def residuals(spec: Spec, trials: int) -> Residuals | None:
    """Measure residuals on the tables of a campaign; None without tables."""
    tables = _tables(spec)
    if not tables:
        return None
    sound, struck, consequential = [], [], []
    for target in tables:
        sound += [_call(target, batch, spec.threshold) for batch in target.batches]
        sites = ("bag.accumulator", "table.codes")
        drawer = _strike.Drawer(target, sites, (BitFlip(),), (True,), spec.seed, "threshold", "bound")
        for trial in range(-(-trials // len(tables))):
            fault = dataclasses.replace(drawer.draw(trial), persistent=trial % 2 == 1)  # accumulators once, codes at rest
            clean = target.call(target.batches[fault.batch], "off", "bound")
            with _strike.struck(drawer, fault, "off") as (batch, _):
                change = difference(target.call(batch, "off", "bound"), clean, relative=True)
            with _strike.struck(drawer, fault, "threshold") as (batch, _):
                struck.append(_call(target, batch, spec.threshold)[:2])
            consequential.append(change > FLOAT_TOLERANCE)
    sizes, over, force = zip(*sound, strict=True)
    struck_sizes, struck_over = np.array(struck).T
    return Residuals(
        np.array(sizes),
        struck_sizes,
        np.array(consequential),
        _tail(np.array(sizes), spec.seed),
        np.array([]) if isinstance(spec.threshold, str) and spec.threshold == "bound" else np.concatenate(force),
        np.array(over),
        struck_over.astype(bool),
    )


def _tail(sound: Array, seed: int) -> Tail | None:
    found = fit_tail(sound, np.unique(sound), RARE, 0.95, np.random.default_rng(seed))
    return None if found is None else found[0]
