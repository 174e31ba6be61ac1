"""EmbeddingBag with its checks and its recovery.

The way of a call: validate indices, offsets and weights -> `_core._embedding.pool`, which pools and verifies -> the result,
or `recovery.handle` with how to recompute bags and reload rows.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sedq import _config, _validation, recovery
from sedq._core import _dispatch, _embedding, _rows
from sedq.embedding import layouts, requests
from sedq.embedding.sources import FloatSource, FusedSource, Source
from sedq.exceptions import ModelFileError, SoftErrorDetected

__all__ = ["EmbeddingBag"]

Array = NDArray[Any]
Mode = Literal["sum", "mean"]

LEVELS = {
    "off": 0,
    "digest": _embedding.CHECK_DIGEST,
    "threshold": _embedding.CHECK_SUM,
    "exact": _embedding.CHECK_DIGEST | _embedding.CHECK_SUM,
    "full": _embedding.CHECK_DIGEST | _embedding.CHECK_SUM | _embedding.CHECK_TWICE,
}
MAX_FINDINGS = 64


class EmbeddingBag:
    """Sums or means of rows of a quantised table, each call checked.

    Made by `from_float`, `from_fused` or `view_fused`. Rows are kept with a digest of their bytes and of their number, 8
    bytes each (and codes padded to a multiple of 8 bytes): 11 % of memory at 8 bits and d = 64.

    Attributes
    ----------
    shape : tuple of int
        (rows, d).
    mode : str
        ``"sum"`` or ``"mean"``. PyTorch's ``nn.EmbeddingBag`` has mean as its default; here it is sum, as in
        PyTorch's quantised operators.
    bits : int
        Bits of a code: 8, 4 or 2; 16 for half and 32 for float rows.

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

    def __init__(
        self,
        table: _rows.Table,
        mode: str = "sum",
        source: Source | None = None,
        *,
        layout: str = "torch",
        padding_idx: int | None = None,
        index_mapping: ArrayLike | None = None,
    ) -> None:
        if mode not in ("sum", "mean"):
            raise ValueError(f"mode: got {mode!r}, expected 'sum' or 'mean'")
        self._table = table
        self.shape: tuple[int, int] = (table.num_rows, table.dim)
        self.mode = mode
        self.bits = table.bits
        self._layout = layout  # of the rows that the source gives, and of a table that is only read
        self._source = source
        pruned = padding_idx is not None or index_mapping is not None
        self._pruning = requests.Pruning(padding_idx, index_mapping, table.num_rows) if pruned else None

    @classmethod
    def from_float(
        cls,
        weight: ArrayLike,
        *,
        bits: int = 8,
        mode: Mode = "sum",
        keep_source: bool = False,
        padding_idx: int | None = None,
        index_mapping: ArrayLike | None = None,
    ) -> EmbeddingBag:
        """Quantise a float table row by row.

        Parameters
        ----------
        weight : array_like of float32, (rows, d)
            Finite values; of 4 and 2 bits, and of 16, in the range of float16.
        bits : {8, 4, 2, 16, 32}, default 8
            Bits of a code; 16 and 32 keep the rows as float16 and float32.
        mode : {"sum", "mean"}, default "sum"
            How a bag is pooled.
        keep_source : bool, default False
            Keep a reference to `weight`, from which corrupted rows are restored. It must not change.
        padding_idx : int, optional
            An index that contributes nothing and doesn't count in the mean; negative from the end.
        index_mapping : array_like of int32 or int64, (original rows,), optional
            For a pruned table: the row that each index means, or -1 for none, which contributes nothing but counts in
            the mean. Kept with its inverse, with which it is compared at every look-up.

        Returns
        -------
        EmbeddingBag

        Raises
        ------
        ValueError
            For NaN or infinities, another shape or dtype, or an unknown mode.
        """
        bits = layouts.check_bits(bits)
        w = _validation.finite_array("weight", weight, (None, None))
        if w.shape[1] == 0:
            raise ValueError(f"weight: got shape {w.shape}, expected at least one column")
        if not len(w):
            raise ValueError(f"weight: got shape {w.shape}, expected at least one row")
        dim = layouts.check_dim("weight", w.shape[1], bits)
        rows = layouts.add_digests(layouts.quantize_rows(w, bits), dim, bits=bits)
        source = FloatSource(w, bits) if keep_source else None
        table = _rows.Table(rows, dim, bits)
        return cls(table, mode, source, padding_idx=padding_idx, index_mapping=index_mapping)

    @classmethod
    def from_fused(
        cls,
        rows: Array,
        *,
        bits: int = 8,
        layout: str = "torch",
        dim: int | None = None,
        mode: Mode = "sum",
        keep_source: bool = False,
        padding_idx: int | None = None,
        index_mapping: ArrayLike | None = None,
    ) -> EmbeddingBag:
        """Take rows that another library has quantised, copied into rows with digests.

        Parameters
        ----------
        rows : ndarray of uint8, (rows, bytes)
            Codes, scale and bias of each row; with `bits` of 16 or 32 also a float16 or float32 array (rows, d).
        bits : {8, 4, 2, 16, 32}, default 8
            Bits of a code.
        layout : {"torch", "half", "tbe"}, default "torch"
            ``"torch"``: d codes, float32 scale, float32 bias, as ``torch.ops.quantized.embedding_bag_byte_prepack`` makes
            them; of 4 and 2 bits packed codes, float16 scale, float16 bias. ``"half"``: float16 scale and bias with 8 bits
            too. ``"tbe"``: float16 scale, float16 bias, codes, as FBGEMM's table-batched bags have them; rows may be
            padded to a multiple of 16 bytes.
        dim : int, optional
            Dimension d. Needed where the row's bytes don't give it: rows that are padded, or end within a byte.
        mode : {"sum", "mean"}, default "sum"
            How a bag is pooled.
        keep_source : bool, default False
            Keep a reference to `rows`, from which corrupted rows are restored. It must not change.
        padding_idx, index_mapping
            As for `from_float`.

        Returns
        -------
        EmbeddingBag

        Raises
        ------
        ValueError
            For scales or biases that are not finite, another shape or dtype, or an unknown layout or mode.

        Examples
        --------
        >>> import numpy as np
        >>> import sedq
        >>> row = np.array([[0x10, 0x32, 0, 0x38, 0, 0x3C]], dtype=np.uint8)  # codes 0 1 2 3, scale 0.5, bias 1
        >>> sedq.EmbeddingBag.from_fused(row, bits=4)([[0, 0]])
        array([[2., 3., 4., 5.]], dtype=float32)
        """
        rows, at = _checked(rows, bits, layout, dim)
        table = _rows.Table(layouts.add_digests(rows, at.dim, bits=bits, layout=layout), at.dim, bits)
        source = FusedSource(rows) if keep_source else None
        return cls(table, mode, source, layout=layout, padding_idx=padding_idx, index_mapping=index_mapping)

    @classmethod
    def view_fused(
        cls,
        rows: Array,
        *,
        bits: int = 8,
        layout: str = "torch",
        dim: int | None = None,
        mode: Mode = "sum",
        padding_idx: int | None = None,
        index_mapping: ArrayLike | None = None,
        progress: layouts.Progress | None = None,
    ) -> EmbeddingBag:
        """Use rows of another library where they are, a memory-mapped file for instance; they are never written to.

        Their digests are kept in an array of their own, 8 bytes a row (12 for 4 and 2 bits, 16 for half and float rows),
        made in one pass over the rows. A look-up reads one more cache line than from rows of ours.

        Parameters
        ----------
        rows : ndarray, (rows, bytes)
            As for `from_fused`. A reference is kept; bytes within a row must be contiguous. They must not change.
        bits, layout, dim, mode, padding_idx, index_mapping
            As for `from_fused`.
        progress : callable, optional
            Called as ``progress(done, rows)`` while digests are made.

        Returns
        -------
        EmbeddingBag

        Raises
        ------
        ValueError
            As for `from_fused`.

        Examples
        --------
        >>> import numpy as np
        >>> import sedq
        >>> table = sedq.EmbeddingBag.view_fused(np.ones((5, 3), dtype=np.float16), bits=16)
        >>> table([[1, 2]])
        array([[2., 2., 2.]], dtype=float32)
        """
        rows, at = _checked(rows, bits, layout, dim)
        table = layouts.attach_sidecar(rows, at, progress)
        return cls(table, mode, layout=layout, padding_idx=padding_idx, index_mapping=index_mapping)

    def to_fused(self, layout: str = "torch", *, align: int = 1) -> NDArray[np.uint8]:
        """Return the rows in a layout, as `from_fused` takes them: uint8 (rows, bytes).

        Parameters
        ----------
        layout : {"torch", "half", "tbe"}, default "torch"
            Layout of the rows.
        align : int, default 1
            Pad rows with zeros to a multiple of so many bytes; TorchRec has 16 with layout ``"tbe"``.

        Raises
        ------
        ValueError
            For a layout with float16 scale and bias, if they are not float16 numbers.
        SoftErrorDetected
            If rows are corrupted and can't be restored.

        Examples
        --------
        >>> import numpy as np
        >>> import sedq
        >>> bag = sedq.EmbeddingBag.from_float(np.ones((2, 64), dtype=np.float32), bits=4)
        >>> bag.to_fused().shape, bag.to_fused("tbe", align=16).shape
        ((2, 36), (2, 48))
        """
        layouts.geometry(layout, self.bits, self.shape[1])
        align = _validation.integer("align", align, 1, 2**20)
        self.require_intact()
        return layouts.strip_digests(self._own_rows(), self.shape[1], bits=self.bits, layout=layout, align=align)

    def _own_rows(self) -> Array:
        """Rows of ours, copied from another layout if need be."""
        if self._table.own:
            return self._table.rows
        return layouts.add_digests(self._table.rows, self.shape[1], bits=self.bits, layout=self._layout)

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
        if not self._table.own or originals.shape[1:] != (self._fused_width(),):
            return []
        restored = []
        for number, fused in zip(numbers.tolist(), originals, strict=True):
            row = layouts.add_digests(fused[None], self.shape[1], number, bits=self.bits, layout=self._layout)[0]
            stored = self._table.rows[number]
            # a source may have changed, or been struck too: it must agree with the digest, or with all but the digest
            if np.array_equal(row[-8:], stored[-8:]) or np.array_equal(row[:-8], stored[:-8]):
                stored[...] = row
                restored.append(number)
        return restored

    def _fused_width(self) -> int:
        return layouts.geometry(self._layout, self.bits, self.shape[1]).width

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
        return type(self)._restored, (self._table.copy(), self.mode, self._source, self._layout, self._pruning)

    @classmethod
    def _restored(
        cls, table: _rows.Table, mode: str, source: Source | None, layout: str, pruning: requests.Pruning | None
    ) -> EmbeddingBag:
        bag = cls(table, mode, source, layout=layout)
        bag._pruning = pruning
        return bag

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
        index, starts = requests.bags(indices, offsets, include_last_offset)
        weights = None
        if per_sample_weights is not None:
            weights = requests.weights_of(per_sample_weights, np.shape(indices))
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
        limit = requests.limit(threshold, self)
        watched = limit.kind == _embedding.LIMIT_GROWTH and level & _embedding.CHECK_SUM
        stats = np.empty((len(out), 3)) if watched else None
        lengths = None
        if self._pruning is not None:
            indices, offsets, weights, lengths = self._pruned(indices, offsets, weights, operator)
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
            lengths,
            stats,
            limit.growth,
        )
        if level:
            recovery.count_checks(operator, len(out))
        if found is not None:
            self._recover(found, indices, offsets, weights, lengths, out, y_sums, settings, operator, level, limit)
        if stats is not None:
            threshold.watch(self, offsets, weights, stats)

    def _pruned(
        self, indices: Array, offsets: Array, weights: Array | None, operator: str
    ) -> tuple[Array, Array, Array | None, Array]:
        """Leave out what contributes nothing."""
        assert self._pruning is not None
        try:
            return self._pruning.apply(indices, offsets, weights)
        except requests.CorruptMapping as error:
            found = [(-1, recovery.INPUT, 0.0, 0.0)]
            events = recovery.conclude(operator, found, _dispatch.current_cpu(), "raise", "memory", str(error))
            raise SoftErrorDetected(recovery.summary(events), events) from None

    def _recover(
        self,
        found: list[recovery.Finding],
        indices: Array,
        offsets: Array,
        weights: Array | None,
        lengths: Array | None,
        out: Array,
        y_sums: Array | None,
        settings: _config.Settings,
        operator: str,
        level: int,
        limit: requests.Limit,
    ) -> None:
        """Deal with what `pool` found."""
        mean = self.mode == "mean"
        if limit.kind == _embedding.LIMIT_GROWTH:
            # rounding is the same on every path, so that a false alarm would come again: the second look is at the bound
            limit = requests.Limit(_embedding.LIMIT_BOUND)

        def compute_again(numbers: Array) -> tuple[list[recovery.Finding] | None, Array, Array]:
            index, starts, factors = requests.select(numbers, indices, offsets, weights)
            again, sums = np.empty((len(numbers), self.shape[1]), np.float32), np.empty(len(numbers), np.uint32)
            reference, counts = _dispatch.get("reference"), None if lengths is None else lengths[numbers]
            args = index, starts, factors, again, level, limit.kind, limit.value, mean, 1, sums, counts, None, limit.growth
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
            index, _, _ = requests.select(_bags_in_doubt(found, len(out)), indices, offsets, None)
            bad = self.bad_rows(np.unique(index))
            restored = self.restore(bad)
            left = sorted(set(bad) - set(restored))
            return f"rows {restored}" if restored else "", f"rows {left}, {self._no_source()}" if left else ""

        recovery.handle(operator, found, settings.on_error, recompute, heal)


def _checked(rows: Array, bits: int, layout: str, dim: int | None) -> tuple[Array, layouts.Geometry]:
    """Fused rows as uint8, at least one, and where their parts stand."""
    rows, at = layouts.fused_geometry(rows, layouts.check_bits(bits), layout, dim)
    if not len(rows):
        raise ValueError(f"rows: got shape {rows.shape}, expected at least one row")
    return rows, at


def _bags_in_doubt(found: list[recovery.Finding], count: int) -> Array:
    # an output that isn't where it was stored may have hit another bag's
    if len(found) >= MAX_FINDINGS or any(row < 0 or kind == recovery.OUTPUT for row, kind, _, _ in found):
        return np.arange(count)
    return np.unique([row for row, _, _, _ in found])
