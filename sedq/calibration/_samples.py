"""Residuals of fault-free calls, table by table, and what they were like."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from sedq import _config, _validation, detection
from sedq._core import _dispatch
from sedq.embedding import EmbeddingBag, measure_sums
from sedq.embedding._requests import bags
from sedq.exceptions import SoftErrorDetected
from sedq.models import DLRM
from sedq.models._arguments import requests_of

__all__ = ["TableSamples", "collect", "table_digest", "units_of"]

Array = NDArray[Any]
KEPT = 2000  # bags whose outputs are kept, to see which flipped bits a threshold shows
# of each bag, and as of which version of its rows; a forked child counts versions from 0 again
_digests: WeakKeyDictionary[EmbeddingBag, tuple[tuple[int, int], str]] = WeakKeyDictionary()


@dataclass
class TableSamples:
    """Fault-free bags of one table.

    Attributes
    ----------
    bag : EmbeddingBag
    residual, magnitude : (B,) float64 arrays
        As the compiled loop saw them.
    pooling : (B,) int64 array
        Look-ups of each bag.
    calls : list of int
        Bags of each call.
    weighted : bool
        Whether any call had weights.
    repeats : float
        The chance that two look-ups of the samples are of one row.
    outputs : (k, d) float32 array
        Of the first bags.
    steps : (k,) float64 array
        What one unit of a code of each of these bags' first rows adds to the bag's sum; 0 for empty ones.
    """

    bag: EmbeddingBag
    residual: Array
    magnitude: Array
    pooling: Array
    calls: list[int]
    weighted: bool
    repeats: float
    outputs: Array
    steps: Array


def table_digest(bag: EmbeddingBag) -> str:
    """Return a digest of a table's row digests, which cover all its bytes; computed once for each version of the rows."""
    version = bag.version, os.getpid()
    known = _digests.get(bag)
    if known is None or known[0] != version:
        # a write meanwhile makes another version, under which the next call looks again
        known = _digests[bag] = version, bag.table.guard.read(_digest_of_digests, bag)
    return known[1]


def _digest_of_digests(bag: EmbeddingBag) -> str:
    return hashlib.sha256(np.ascontiguousarray(bag.table.data.digests).data).hexdigest()


def collect(target: EmbeddingBag | DLRM, samples: object, include_last_offset: bool) -> list[TableSamples]:
    """Run the samples and return what each table did.

    ValueError for samples that don't fit, SoftErrorDetected for rows or sums that are corrupted.
    """
    if isinstance(target, EmbeddingBag):
        return [_run(target, list(_bag_calls(samples, include_last_offset)))]
    if not isinstance(target, DLRM):
        raise TypeError(f"bag_or_model: got {_validation.describe(target)}, expected EmbeddingBag or DLRM")
    if not target.bags:
        raise ValueError("bag_or_model: got a model that is not quantised or has no tables, expected one to calibrate")
    calls = list(_model_calls(samples, target, include_last_offset))
    return [_run(bag, [call[t] for call in calls]) for t, bag in enumerate(target.bags)]


Call = tuple[Array, Array, Array | None]


def _bag_calls(samples: object, include_last_offset: bool) -> Iterator[Call]:
    """Yield indices, offsets with the last one, and weights of each call."""
    for sample in _listed(samples):
        if hasattr(sample, "indices") and hasattr(sample, "offsets"):
            yield (*bags(sample.indices, sample.offsets, True), None)
        elif isinstance(sample, (tuple, list)) and len(sample) in (2, 3):
            index, starts = bags(sample[0], sample[1], include_last_offset)
            weights = None
            if len(sample) == 3 and sample[2] is not None:
                weights = _validation.finite_array("per_sample_weights", sample[2], np.shape(sample[0])).reshape(-1)
            yield index, starts, weights
        else:
            raise ValueError(
                f"samples: got {_validation.describe(sample)}, expected (indices, offsets), (indices, offsets, "
                "per_sample_weights), an object with both as attributes, or a list of these"
            )


def _model_calls(samples: object, model: DLRM, include_last_offset: bool) -> Iterator[list[Call]]:
    """Yield for each call what each table is given; the calls are checked as the model would."""
    inputs, rows = model.bottom[0].packed.shape[1], [bag.num_embeddings for bag in model.bags]
    for sample in _listed(samples):
        if all(hasattr(sample, name) for name in ("dense", "indices", "offsets")):
            request, last = (sample.dense, sample.indices, sample.offsets), True
        elif isinstance(sample, (tuple, list)) and len(sample) == 3:
            request, last = tuple(sample), include_last_offset
        else:
            raise ValueError(
                f"samples: got {_validation.describe(sample)}, expected (dense, indices, offsets), requests with these as "
                "attributes, or a list of them"
            )
        _, indices, offsets = requests_of(*request, last, inputs, rows)
        yield [(i, o, None) for i, o in zip(indices, offsets, strict=True)]


def _listed(samples: object) -> Sequence[Any]:
    """Return samples as a list of calls; a single call is told from a list of calls by what it begins with."""
    single = hasattr(samples, "indices") or (isinstance(samples, tuple) and not _is_call(samples[:1]))
    if single:
        return [samples]
    if not isinstance(samples, Sequence) or not samples:
        raise ValueError(f"samples: got {_validation.describe(samples)}, expected a call or a list of calls, at least one")
    return samples


def _is_call(first: Sequence[Any]) -> bool:
    return bool(first) and (hasattr(first[0], "indices") or isinstance(first[0], tuple))


def _run(bag: EmbeddingBag, calls: list[Call]) -> TableSamples:
    if bag.bits > 8:
        raise ValueError(f"bag_or_model: got {bag!r}, whose rows are floats, expected quantised ones of at most 8 bits")
    settings = _config.resolve("exact", None, None)
    parts, outputs, steps, kept = [], [], [], 0
    if bag.pruning is not None:
        raise ValueError(f"bag_or_model: got {bag!r} with pruned rows or a padding_idx, expected one without")
    for index, starts, weights in calls:
        out = np.empty((len(starts) - 1, bag.shape[1]), np.float32)
        found, stats = measure_sums(bag, index, starts, weights, out, settings)
        if found:
            known = [f for f in found if f.kind != detection.Kind.OVERFLOW] or [detection.Finding(-1, detection.Kind.SUM)]
            events = detection.conclude("calibrate_thresholds", known, _dispatch.current_cpu(), "raise", "unresolved")
            message = f"{bag!r}: bag {found[0].row} of the samples is corrupted, nothing was calibrated"
            raise SoftErrorDetected(message, events)
        parts.append(stats)
        if kept < KEPT:
            some = slice(KEPT - kept)
            outputs.append(out[some])
            steps.append(_steps(bag, index, starts, weights)[some])
            kept += len(outputs[-1])
    stats = np.concatenate(parts)
    indices = np.concatenate([index for index, _, _ in calls])
    return TableSamples(
        bag,
        stats[:, 0],
        stats[:, 2],
        np.concatenate([np.diff(starts) for _, starts, _ in calls]),
        [len(starts) - 1 for _, starts, _ in calls],
        any(weights is not None for _, _, weights in calls),
        _repeats(indices, bag.shape[0]),
        np.concatenate(outputs),
        np.concatenate(steps),
    )


def units_of(bags_of_tables: Sequence[Array], calls: list[int], unit: str) -> tuple[Array, int]:
    """Return the sample of each unit, the largest of its bags', and the most bags that a unit has."""
    if unit == "bag":
        return np.concatenate(bags_of_tables), 1
    requests = np.max(bags_of_tables, axis=0)
    if unit == "request":
        return requests, len(bags_of_tables)
    filled = np.array([count for count in calls if count], dtype=np.int64)
    starts = np.cumsum(filled) - filled
    batches = np.maximum.reduceat(requests, starts) if filled.size else requests[:0]
    return batches, int(filled.max(initial=0)) * len(bags_of_tables)


def _repeats(indices: Array, rows: int) -> float:
    """Return the chance that two look-ups are of one row, without bias."""
    counts = np.bincount(indices, minlength=rows).astype(np.float64)
    n = counts.sum()
    return float((counts * (counts - 1)).sum() / (n * (n - 1))) if n > 1 else 0.0


def _steps(bag: EmbeddingBag, index: Array, starts: Array, weights: Array | None) -> Array:
    """Return what a code of each bag's first row counts for in its sum."""
    steps = np.zeros(len(starts) - 1)
    some = np.flatnonzero(np.diff(starts))
    first = starts[some]
    table = bag.table.data
    kind, size = ("<f2", 2) if table.half else ("<f4", 4)
    stored = table.rows[index[first], table.params_at : table.params_at + size]
    scales = np.ascontiguousarray(stored).view(kind)[:, 0].astype(np.float64)
    steps[some] = np.abs(scales * (1 if weights is None else weights[first]))
    if bag.mode == "mean":
        steps[some] /= np.diff(starts)[some]
    return steps
