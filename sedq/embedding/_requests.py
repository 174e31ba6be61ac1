"""What a call of an EmbeddingBag pools: indices and offsets in any of the accepted forms, thresholds, left-out indices."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sedq import _validation
from sedq._core import _embedding

__all__ = ["Limit", "Pruning", "bags", "check_range", "limit", "select", "weights_of"]

Array = NDArray[Any]
PAPER_BOUND = 1e-5


def bags(indices: ArrayLike, offsets: ArrayLike | None, include_last_offset: bool) -> tuple[Array, Array]:
    """Return indices (L,) and offsets (B + 1,) int64 with the last one, from any of the accepted forms."""
    _validation.boolean("include_last_offset", include_last_offset)
    index = _validation.integers("indices", indices, (1, 2))
    if index.ndim == 2:
        if offsets is not None:
            raise ValueError(f"offsets: got {_validation.describe(offsets)} with two-dimensional indices, expected None")
        count, length = index.shape
        return index.reshape(-1), np.arange(count + 1, dtype=np.int64) * length
    if offsets is None:
        raise ValueError("offsets: got None with one-dimensional indices, expected where each bag starts")
    starts = _validation.integers("offsets", offsets, (1,))
    if starts.dtype is not _validation.INT64:
        starts = starts.astype(np.int64)
    if include_last_offset:
        if not starts.size:
            raise ValueError("offsets: got none, expected at least the last one with include_last_offset=True")
        return index, starts
    if not starts.size and index.size:
        raise ValueError(f"offsets: got none for {index.size} indices")
    if starts.size and starts[-1] > index.size:
        raise ValueError(f"offsets: got {starts[-1]} last, expected at most the number of indices, {index.size}")
    ends = np.empty(len(starts) + 1, _validation.INT64)
    ends[:-1], ends[-1] = starts, index.size
    return index, ends


def weights_of(weights: ArrayLike, shape: tuple[int, ...]) -> Array:
    """Return per-sample weights of finite numbers, one-dimensional."""
    a = _validation.finite_array("per_sample_weights", weights, shape)
    return a if a.ndim == 1 else a.reshape(-1)


class Limit(NamedTuple):
    """What the residual of a sum is compared with, as the compiled loop takes it."""

    kind: int
    value: float = 0.0
    growth: tuple[float, ...] = (0.0,) * _embedding.GROWTH_TERMS


BOUND = Limit(_embedding.LIMIT_BOUND)


def limit(threshold: Any, bag: Any) -> Limit:
    """Return what the residual of a sum of a bag is compared with."""
    if isinstance(threshold, str) and threshold == "bound":
        return BOUND
    if isinstance(threshold, str) and threshold == "paper":
        return Limit(_embedding.LIMIT_REFERENCE, PAPER_BOUND)
    if hasattr(threshold, "growth"):  # a calibration; those with the bound say so by an infinite threshold
        growth = threshold.growth(bag)
        if threshold.threshold == math.inf:
            return BOUND
        return Limit(_embedding.LIMIT_GROWTH, threshold.threshold, growth)
    number = getattr(threshold, "threshold", threshold)
    real = isinstance(number, (int, float, np.floating, np.integer)) and not isinstance(number, bool)
    value = float(number) if real else math.nan
    if not 0 <= value < math.inf:
        raise ValueError(f"threshold: got {threshold!r}, expected 'bound', 'paper', a number >= 0 or a calibration")
    return Limit(_embedding.LIMIT_MAGNITUDE, value)


def select(numbers: Array, indices: Array, offsets: Array, weights: Array | None) -> tuple[Array, Array, Array | None]:
    """Return the bags of the given numbers as indices, offsets and weights of their own."""
    lengths = np.diff(offsets)[numbers]
    starts = np.zeros(len(numbers) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    places = np.arange(starts[-1]) + np.repeat(offsets[numbers] - starts[:-1], lengths)
    return indices[places], starts, None if weights is None else weights[places]


def check_range(indices: Array, rows: int, first: int = 0, where: str = "") -> None:
    """IndexError unless indices, the first of which is at position `first`, are those of rows that there are."""
    bad = np.flatnonzero((indices < 0) | (indices >= rows))
    if bad.size:
        at = bad[0]
        raise IndexError(f"indices: got {indices[at]} at position {first + at}, expected 0 to {rows - 1}{where}")


class Pruning:
    """Which indices a bag leaves out, and which rows the others mean.

    Parameters
    ----------
    padding_idx : int or None
        Index that contributes nothing and doesn't count in the mean.
    mapping : ndarray of int32 or int64, (original rows,), or None
        Row of each index, or -1 where the row was pruned: it contributes nothing, and counts in the mean as a row of zeros.
    rows : int
        Rows that there are.
    """

    def __init__(self, padding_idx: int | None, mapping: ArrayLike | None, rows: int) -> None:
        self.mapping, self.inverse, self.rows = None, None, rows
        if mapping is not None:
            self.mapping = _validation.integers("index_mapping", mapping, (1,)).copy()
            self.inverse = _inverse(self.mapping, rows)
            rows = len(self.mapping)
        self.padding_idx = None
        if padding_idx is not None:
            self.padding_idx = _validation.integer("padding_idx", padding_idx, -rows, rows - 1) % rows

    @property
    def indices(self) -> int:
        """How many different indices may be asked for."""
        return self.rows if self.mapping is None else len(self.mapping)

    @property
    def intact(self) -> bool:
        """Whether the mapping and its inverse agree about all indices."""
        if self.mapping is None or self.inverse is None:
            return True
        try:
            return np.array_equal(_inverse(self.mapping, self.rows), self.inverse)
        except ValueError:  # nor is it a mapping any more
            return False

    def apply(
        self, indices: Array, offsets: Array, weights: Array | None, *, compare: bool = True
    ) -> tuple[Array, Array, Array | None, Array]:
        """Return indices, offsets and weights of the rows that contribute, and the lengths by which means divide.

        Unless `compare` is set, the mapping is taken at its word.
        """
        check_range(indices, self.indices)
        _embedding.check_offsets(offsets, len(indices))
        keep = np.ones(len(indices), bool) if self.padding_idx is None else indices != self.padding_idx
        lengths = np.diff(_counted(keep, offsets))
        if self.mapping is not None:
            indices = self._mapped(indices, compare)
            keep &= indices >= 0
        kept = None if weights is None else weights[keep]
        return indices[keep], _counted(keep, offsets), kept, lengths

    def disagreeing(self, start: int, stop: int) -> list[str]:
        """Where mapping and inverse disagree: of rows start .. stop, and of as large a part of the indices."""
        if self.mapping is None or self.inverse is None:
            return []
        first, last = (at * len(self.mapping) // self.rows for at in (start, stop))
        indices = np.arange(first, last)
        lost = indices[~self._agree(self.mapping[first:last], indices)]
        rows, known = np.arange(start, stop), self.inverse[start:stop]
        inside = (known >= 0) & (known < len(self.mapping))
        right = inside | (known == -1)
        right[inside] = self.mapping[known[inside]] == rows[inside]
        return [f"index mapping at {index}" for index in lost] + [f"index mapping of row {row}" for row in rows[~right]]

    def _agree(self, rows: Array, indices: Array) -> Array:
        """Whether the inverse has each of the rows that indices are mapped to, if it is one."""
        assert self.inverse is not None
        inside = (rows >= 0) & (rows < self.rows)
        right: Array = inside | (rows == -1)
        right[inside] = self.inverse[rows[inside]] == indices[inside]
        return right

    def _mapped(self, indices: Array, compare: bool) -> Array:
        """Rows of indices; the mapping and its inverse must agree about each, or memory was corrupted."""
        assert self.mapping is not None
        rows = self.mapping[indices]
        if not compare:
            return np.where((rows >= 0) & (rows < self.rows), rows, rows.dtype.type(-1))
        right = self._agree(rows, indices)
        if not right.all():
            raise CorruptMapping(np.unique(indices[~right]))
        return rows


class CorruptMapping(Exception):
    """A mapping of indices and its inverse disagree about some indices."""

    def __init__(self, indices: Array) -> None:
        super().__init__(f"the index mapping is corrupted at {indices[:10].tolist()}")
        self.indices = indices


def _inverse(mapping: Array, rows: int) -> Array:
    """Index of each row."""
    kept = np.flatnonzero(mapping >= 0)
    inverse = np.full(rows, -1, np.int64)
    wrong = np.flatnonzero((mapping < -1) | (mapping >= rows))
    if wrong.size:
        raise ValueError(f"index_mapping: got {mapping[wrong[0]]} at position {wrong[0]}, expected -1 or a row below {rows}")
    inverse[mapping[kept]] = kept
    twice = np.flatnonzero(inverse[mapping[kept]] != kept)
    if twice.size:
        raise ValueError(f"index_mapping: got row {mapping[kept[twice[0]]]} more than once, expected at most once")
    return inverse


def _counted(keep: Array, offsets: Array) -> Array:
    """Offsets in what is kept."""
    counts = np.zeros(len(keep) + 1, np.int64)
    np.cumsum(keep, out=counts[1:])
    return counts[offsets]
