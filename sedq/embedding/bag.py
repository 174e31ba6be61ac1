"""EmbeddingBag with its checks and its recovery.

The way of a call: validate indices, offsets and weights -> `_core._embedding.pool`, which pools and verifies -> the result,
or `recovery.handle` with how to recompute bags and reload rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sedq import _config, _validation, recovery
from sedq._core import _dispatch, _embedding
from sedq.embedding import layouts
from sedq.exceptions import ModelFileError, SoftErrorDetected

__all__ = ["EmbeddingBag"]

Array = NDArray[Any]
# gives the original fused rows of the given numbers, to restore corrupted ones from
Source = Callable[[Array], Array]

LEVELS = {
    "off": 0,
    "digest": _embedding.CHECK_DIGEST,
    "threshold": _embedding.CHECK_SUM,
    "exact": _embedding.CHECK_DIGEST | _embedding.CHECK_SUM,
    "full": _embedding.CHECK_DIGEST | _embedding.CHECK_SUM | _embedding.CHECK_TWICE,
}
PAPER_BOUND = 1e-5
MAX_FINDINGS = 64


class EmbeddingBag:
    """Sums or means of rows of a quantised table, each call checked.

    Made by `from_float` or `from_fused`. Rows are kept with a digest of their bytes and of their number, 8 bytes each
    (and d padded to a multiple of 8): 11 % of memory at d = 64.

    Attributes
    ----------
    shape : tuple of int
        (rows, d).
    mode : str
        ``"sum"`` or ``"mean"``. PyTorch's ``nn.EmbeddingBag`` has mean as its default; here it is sum, as in
        PyTorch's quantised operators.
    bits : int
        Bits of a code: 8.

    Examples
    --------
    >>> import numpy as np
    >>> import sedq
    >>> table = np.arange(12, dtype=np.float32).reshape(3, 4)
    >>> bag = sedq.EmbeddingBag.from_float(table)
    >>> bag(np.array([0, 2, 1]), offsets=np.array([0, 2])).round(2)
    array([[ 8., 10., 12., 14.],
           [ 4.,  5.,  6.,  7.]], dtype=float32)
    """

    def __init__(self, rows: Array, dim: int, mode: str = "sum", source: Source | None = None) -> None:
        if mode not in ("sum", "mean"):
            raise ValueError(f"mode: got {mode!r}, expected 'sum' or 'mean'")
        self._table = _embedding.Table(rows, dim)
        self.shape: tuple[int, int] = (len(rows), dim)
        self.mode = mode
        self.bits = 8
        self._source = source

    @classmethod
    def from_float(
        cls, weight: ArrayLike, *, bits: int = 8, mode: Literal["sum", "mean"] = "sum", keep_source: bool = False
    ) -> EmbeddingBag:
        """Quantise a float table row by row.

        Parameters
        ----------
        weight : array_like of float32, (rows, d)
            Finite values.
        bits : {8}, default 8
            Bits of a code.
        mode : {"sum", "mean"}, default "sum"
            How a bag is pooled.
        keep_source : bool, default False
            Keep a reference to `weight`, from which corrupted rows are restored. It must not change.

        Returns
        -------
        EmbeddingBag

        Raises
        ------
        ValueError
            For NaN or infinities, another shape or dtype, or an unknown mode.
        """
        _check_bits(bits)
        w = _validation.finite_array("weight", weight, (None, None))
        if w.shape[1] == 0:
            raise ValueError(f"weight: got shape {w.shape}, expected at least one column")
        if not len(w):
            raise ValueError(f"weight: got shape {w.shape}, expected at least one row")
        layouts.check_dim("weight", w.shape[1])
        rows = layouts.add_digests(layouts.quantize_rows(w), w.shape[1])
        return cls(rows, w.shape[1], mode, _FloatSource(w) if keep_source else None)

    @classmethod
    def from_fused(
        cls,
        rows: Array,
        *,
        bits: int = 8,
        layout: str = "torch",
        dim: int | None = None,
        mode: Literal["sum", "mean"] = "sum",
        keep_source: bool = False,
    ) -> EmbeddingBag:
        """Take rows that another library has quantised.

        Parameters
        ----------
        rows : ndarray of uint8, (rows, bytes)
            Codes, scale and bias of each row. Copied.
        bits : {8}, default 8
            Bits of a code.
        layout : {"torch"}, default "torch"
            d codes, float32 scale, float32 bias, as ``torch.ops.quantized.embedding_bag_byte_prepack`` makes them.
        dim : int, optional
            Dimension d, to be compared with the one that the layout gives.
        mode : {"sum", "mean"}, default "sum"
            How a bag is pooled.
        keep_source : bool, default False
            Keep a reference to `rows`, from which corrupted rows are restored. It must not change.

        Returns
        -------
        EmbeddingBag

        Raises
        ------
        ValueError
            For scales or biases that are not finite, another shape or dtype, or an unknown layout or mode.
        """
        _check_bits(bits)
        got = layouts.fused_dim(rows, layout, dim)
        if not len(rows):
            raise ValueError(f"rows: got shape {rows.shape}, expected at least one row")
        return cls(layouts.add_digests(rows, got), got, mode, _FusedSource(rows) if keep_source else None)

    def to_fused(self) -> NDArray[np.uint8]:
        """Return the rows in layout ``torch``: uint8 (rows, d + 8)."""
        self.require_intact()
        return layouts.strip_digests(self._table.rows, self.shape[1])

    def bad_rows(self, rows: ArrayLike | None = None) -> list[int]:
        """Return the numbers of rows, of those given or of all, that don't fit their digests.

        Examples
        --------
        >>> import numpy as np
        >>> import sedq
        >>> bag = sedq.EmbeddingBag.from_float(np.ones((3, 4), dtype=np.float32))
        >>> bag.bad_rows()
        []
        """
        return _embedding.bad_rows(self._table, self._row_numbers(rows))

    def _row_numbers(self, rows: ArrayLike | None) -> Array:
        """Return the row numbers given, or all, as int64."""
        if rows is None:
            return np.arange(self.shape[0])
        numbers = _validation.integers("rows", rows, (0, 1, 2)).reshape(-1).astype(np.int64)
        for number in numbers[(numbers < 0) | (numbers >= self.shape[0])]:
            raise IndexError(f"rows: got {number}, expected 0 to {self.shape[0] - 1}")
        return numbers

    def restore(self, rows: ArrayLike) -> list[int]:
        """Reload rows from the source, where one is kept, and return those whose digests then fit.

        Parameters
        ----------
        rows : array_like of int
            Row numbers.

        Returns
        -------
        list of int
            Rows restored; empty without a source.
        """
        numbers = self._row_numbers(rows)
        if self._source is None or not numbers.size:
            return []
        try:
            originals = self._source(numbers)
        except (OSError, ModelFileError, IndexError):  # the source is gone, or not what it was
            return []
        restored = []
        for number, fused in zip(numbers.tolist(), originals, strict=True):
            if fused.size != self.shape[1] + layouts.PARAMETERS:
                return []
            row, stored = layouts.add_digests(fused[None], self.shape[1], number)[0], self._table.rows[number]
            # a source may have changed, or been struck too: it must agree with the digest, or with all but the digest
            if np.array_equal(row[-8:], stored[-8:]) or np.array_equal(row[:-8], stored[:-8]):
                stored[...] = row
                restored.append(number)
        return restored

    def require_intact(self) -> None:
        """Restore corrupted rows, or raise SoftErrorDetected naming them."""
        bad = self.bad_rows()
        left = sorted(set(bad) - set(self.restore(bad)))
        if left:
            raise SoftErrorDetected(f"{self!r}: rows {left[:10]} are corrupted and {self._no_source()}")

    def _no_source(self) -> str:
        if self._source is None:
            return "there is no source to reload them from"
        return f"could not be reloaded from {self._source!r}"

    def __reduce__(self) -> tuple[Any, ...]:
        self.require_intact()
        return type(self), (self._table.rows.copy(), self.shape[1], self.mode, self._source)

    def __repr__(self) -> str:
        return f"<EmbeddingBag {self.shape[0]} x {self.shape[1]}, {self.bits} bit, mode={self.mode!r}>"

    def __call__(
        self,
        indices: ArrayLike,
        offsets: ArrayLike | None = None,
        per_sample_weights: ArrayLike | None = None,
        include_last_offset: bool = False,
        *,
        check: str | None = None,
        on_error: str | None = None,
        out: Array | None = None,
        num_threads: int | None = None,
        threshold: Any = "bound",
    ) -> NDArray[np.float32]:
        """Pool bags of rows.

        Parameters
        ----------
        indices : array_like of int32 or int64, (L,) or (B, L)
            Row numbers. Two-dimensional indices are B bags of L rows each, without offsets.
        offsets : array_like of int32 or int64, (B,) or (B + 1,), optional
            Where each bag starts in one-dimensional indices. The first is 0; they must not decrease.
        per_sample_weights : array_like of float32, of the shape of indices, optional
            Factors of the rows. Finite.
        include_last_offset : bool, default False
            Whether offsets have the end of the last bag as one more element.
        check : {"exact", "digest", "threshold", "full", "off"}, optional
            ``"digest"`` compares what was read with the rows' digests, exactly; ``"threshold"`` compares the sum of
            each output with precomputed sums, within `threshold`; ``"exact"``, the default, does both; ``"full"``
            also accumulates twice.
        on_error : {"recover", "raise", "warn"}, optional
            What to do on a detection; None takes the surrounding setting, "recover" by default.
        out : ndarray of float32, (B, d), optional
            Where to write; C-contiguous.
        num_threads : int, optional
            Threads; None takes the surrounding setting.
        threshold : {"bound", "paper"}, float or ThresholdCalibration, default "bound"
            ``"bound"`` is what rounding can't exceed; ``"paper"`` is 1e-5 of the magnitude of the precomputed sum; a
            number, also one in an attribute `threshold`, is compared with the residual divided by
            ``sum_i |w_i| (|scale_i| code_sum_i + d |bias_i|)``; a calibration has a false-alarm rate that it states.

        Returns
        -------
        ndarray of float32, (B, d)
            Zeros for empty bags.

        Raises
        ------
        IndexError
            For an index out of range.
        ValueError
            For wrong offsets, shapes, dtypes or settings, for weights that are not finite, and when sums overflow float32.
        SoftErrorDetected
            When data was corrupted and could not, or was not to, be corrected.
        """
        settings = _config.resolve(check, on_error, num_threads)
        index, starts = bags(indices, offsets, include_last_offset)
        weights = _weights(per_sample_weights, np.shape(indices))
        result = _validation.output(out, (len(starts) - 1, self.shape[1]), np.float32, (index, starts, weights))
        self.pool(index, starts, weights, result, settings, threshold=threshold)
        return result

    def pool(
        self,
        indices: Array,
        offsets: Array,
        weights: Array | None,
        out: Array,
        settings: _config.Settings,
        *,
        operator: str = "EmbeddingBag",
        threshold: Any = "bound",
        y_sums: Array | None = None,
    ) -> None:
        """Pool into `out`, whose rows may lie apart, as the settings say; offsets include the last. For models."""
        level = LEVELS.get(settings.check)
        if level is None:
            raise ValueError(f"check: got {settings.check!r}, expected one of {', '.join(map(repr, LEVELS))} here")
        limit = _limit(threshold, self)
        watched = limit.kind == _embedding.LIMIT_GROWTH and level & _embedding.CHECK_SUM
        stats = np.empty((len(out), 3)) if watched else None
        found = _embedding.pool(
            settings.kernels,
            self._table,
            indices,
            offsets,
            weights,
            out,
            level,
            limit.kind,
            limit.value,
            self.mode == "mean",
            settings.num_threads or 0,
            y_sums,
            stats,
            limit.growth,
        )
        if level:
            recovery.count_checks(operator, len(out))
        if found is not None:
            self._recover(found, indices, offsets, weights, out, y_sums, settings, operator, level, limit)
        if stats is not None:
            threshold.watch(self, offsets, weights, stats)

    def _recover(
        self,
        found: list[recovery.Finding],
        indices: Array,
        offsets: Array,
        weights: Array | None,
        out: Array,
        y_sums: Array | None,
        settings: _config.Settings,
        operator: str,
        level: int,
        limit: _Limit,
    ) -> None:
        """Deal with what `pool` found."""
        mean = self.mode == "mean"
        if limit.kind == _embedding.LIMIT_GROWTH:
            # rounding is the same on every path, so that a false alarm would come again: the second look is at the bound
            limit = _Limit(_embedding.LIMIT_BOUND)

        def compute_again(numbers: Array) -> tuple[list[recovery.Finding] | None, Array, Array]:
            index, starts, factors = _select(numbers, indices, offsets, weights)
            again, sums = np.empty((len(numbers), self.shape[1]), np.float32), np.empty(len(numbers), np.uint32)
            reference = _dispatch.get("reference")
            args = index, starts, factors, again, level, limit.kind, limit.value, mean, 1, sums, None, limit.growth
            remaining = _embedding.pool(reference, self._table, *args)
            if remaining and all(kind == _embedding.FOUND_OVERFLOW for _, kind, _, _ in remaining):
                bag = numbers[remaining[0][0]]
                raise ValueError(f"bag {bag}: its sums overflow float32, expected smaller weights or values")
            return remaining, again, sums

        def recompute() -> list[recovery.Finding] | None:
            numbers = _bags_in_doubt(found, len(out))
            remaining, again, sums = compute_again(numbers)
            if remaining is None:
                out[numbers] = again
                if y_sums is not None:
                    y_sums[numbers] = sums
            return remaining

        overflows = np.unique([bag for bag, kind, _, _ in found if kind == _embedding.FOUND_OVERFLOW])
        if overflows.size:
            compute_again(overflows)  # raises if they overflow without a fault too: an error of the input
            found = [(b, recovery.SUM if k == _embedding.FOUND_OVERFLOW else k, r, at) for b, k, r, at in found]

        def heal() -> tuple[str, str]:
            index, _, _ = _select(_bags_in_doubt(found, len(out)), indices, offsets, None)
            bad = self.bad_rows(np.unique(index))
            restored = self.restore(bad)
            left = sorted(set(bad) - set(restored))
            return f"rows {restored}" if restored else "", f"rows {left}, {self._no_source()}" if left else ""

        recovery.handle(operator, found, settings.on_error, recompute, heal)


class _FloatSource:
    """Restores rows from the float table they were quantised from."""

    def __repr__(self) -> str:
        return "the float table"

    def __init__(self, weight: Array) -> None:
        self.weight = weight

    def __call__(self, rows: Array) -> Array:
        return layouts.quantize_rows(self.weight[rows])


class _FusedSource:
    """Restores rows from the fused rows they were taken from."""

    def __repr__(self) -> str:
        return "the fused rows"

    def __init__(self, rows: Array) -> None:
        self.rows = rows

    def __call__(self, rows: Array) -> Array:
        return self.rows[rows]


def _check_bits(bits: int) -> None:
    if bits != 8:
        raise ValueError(f"bits: got {bits!r}, expected 8")


def bags(indices: ArrayLike, offsets: ArrayLike | None, include_last_offset: bool) -> tuple[Array, Array]:
    """Return indices (L,) and offsets (B + 1,) int64 with the last one, from any of the accepted forms."""
    index = _validation.integers("indices", indices, (1, 2))
    if index.ndim == 2:
        if offsets is not None:
            raise ValueError(f"offsets: got {_validation.describe(offsets)} with two-dimensional indices, expected None")
        count, length = index.shape
        return index.reshape(-1), np.arange(count + 1, dtype=np.int64) * length
    if offsets is None:
        raise ValueError("offsets: got None with one-dimensional indices, expected where each bag starts")
    starts = _validation.integers("offsets", offsets, (1,)).astype(np.int64, copy=False)
    if include_last_offset:
        if not starts.size:
            raise ValueError("offsets: got none, expected at least the last one with include_last_offset=True")
        return index, starts
    if not starts.size and index.size:
        raise ValueError(f"offsets: got none for {index.size} indices")
    if starts.size and starts[-1] > index.size:
        raise ValueError(f"offsets: got {starts[-1]} last, expected at most the number of indices, {index.size}")
    return index, np.append(starts, index.size)


def _weights(weights: ArrayLike | None, shape: tuple[int, ...]) -> Array | None:
    if weights is None:
        return None
    return _validation.finite_array("per_sample_weights", weights, shape).reshape(-1)


class _Limit(NamedTuple):
    """What the residual of a sum is compared with, as the compiled loop takes it."""

    kind: int
    value: float = 0.0
    growth: tuple[float, ...] = (0.0,) * _embedding.GROWTH_TERMS


def _limit(threshold: Any, bag: EmbeddingBag) -> _Limit:
    if isinstance(threshold, str) and threshold == "bound":
        return _Limit(_embedding.LIMIT_BOUND)
    if isinstance(threshold, str) and threshold == "paper":
        return _Limit(_embedding.LIMIT_REFERENCE, PAPER_BOUND)
    if hasattr(threshold, "growth"):  # a calibration; those with the bound say so by an infinite threshold
        growth = threshold.growth(bag)
        if threshold.threshold == math.inf:
            return _Limit(_embedding.LIMIT_BOUND)
        return _Limit(_embedding.LIMIT_GROWTH, threshold.threshold, growth)
    number = getattr(threshold, "threshold", threshold)
    real = isinstance(number, (int, float, np.floating, np.integer)) and not isinstance(number, bool)
    value = float(number) if real else math.nan
    if not 0 <= value < math.inf:
        raise ValueError(f"threshold: got {threshold!r}, expected 'bound', 'paper', a number >= 0 or a calibration")
    return _Limit(_embedding.LIMIT_MAGNITUDE, value)


def _bags_in_doubt(found: list[recovery.Finding], count: int) -> Array:
    # an output that isn't where it was stored may have hit another bag's
    if len(found) >= MAX_FINDINGS or any(row < 0 or kind == recovery.OUTPUT for row, kind, _, _ in found):
        return np.arange(count)
    return np.unique([row for row, _, _, _ in found])


def _select(numbers: Array, indices: Array, offsets: Array, weights: Array | None) -> tuple[Array, Array, Array | None]:
    """Return the bags of the given numbers as indices, offsets and weights of their own."""
    parts = [slice(offsets[b], offsets[b + 1]) for b in numbers]
    starts = np.cumsum([0] + [p.stop - p.start for p in parts]).astype(np.int64)
    index = np.concatenate([indices[p] for p in parts])
    return index, starts, None if weights is None else np.concatenate([weights[p] for p in parts])
