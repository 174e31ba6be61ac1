"""EmbeddingBag: made from tables of many forms, called with requests of many forms.

The way of a call: validate indices, offsets and weights -> `Pooling.pool`, which pools, verifies and recovers -> the result.
"""

from __future__ import annotations

from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sedq import _config, _validation
from sedq._core import _rows
from sedq.embedding import layouts, repair, requests
from sedq.embedding.copies import Copied
from sedq.embedding.index_batch import IndexBatch, consume
from sedq.embedding.sources import FloatSource, FusedSource, Source

__all__ = ["EmbeddingBag"]

Array = NDArray[Any]
Mode = Literal["sum", "mean"]


class EmbeddingBag(Copied):
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

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = [_validation.describe(value) for value in args] + [f"{name}=" for name in kwargs]
        raise TypeError(
            f"EmbeddingBag: got {', '.join(given) or 'no arguments'}, but a table is made by a classmethod: "
            "EmbeddingBag.from_float(weight) quantises a float array (rows, d), such as module.weight.detach().numpy(); "
            "EmbeddingBag.from_fused(rows) copies rows that were quantised already; "
            "EmbeddingBag.view_fused(rows) uses such rows where they are"
        )

    @classmethod
    def _of(
        cls,
        table: _rows.Table,
        mode: str = "sum",
        source: Source | None = None,
        *,
        layout: str = "torch",
        padding_idx: int | None = None,
        index_mapping: ArrayLike | None = None,
        locate: bool = False,
        parity: int | None = None,
    ) -> Self:
        """Make a bag of a table whose digests are written."""
        self = cls.__new__(cls)
        if mode not in ("sum", "mean"):
            raise ValueError(f"mode: got {mode!r}, expected 'sum' or 'mean'")
        self._table = table
        self.shape = (table.num_rows, table.dim)
        self.mode = mode
        self.bits = table.bits
        self._layout = layout  # of the rows that the source gives, and of a table that is only read
        kept = repair.begun(table.rows, locate, parity, digest=repair.DIGEST if table.own else 0)
        repair.take(kept, table.rows, 0, table.num_rows)
        self._maintain(source, repair.Redundancy(table, *kept))
        pruned = padding_idx is not None or index_mapping is not None
        self._pruning = requests.Pruning(padding_idx, index_mapping, table.num_rows) if pruned else None
        return self

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
        locate: bool = False,
        parity: int | None = None,
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
            the mean. Kept with its inverse, with which it is compared at every look-up unless `check` is off; where they
            differ nothing can be restored, so that ``on_error="recover"`` raises too.
        locate : bool, default False
            Keep 8 more bytes a row, a position-weighted sum and a CRC-32, which locate and correct one wrong byte.
        parity : int, optional
            Keep the xor of every so many rows, from which one of them can be rebuilt whatever is wrong with it.

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
        source = FloatSource(w, bits) if _validation.boolean("keep_source", keep_source) else None
        table = _rows.Table(rows, dim, bits)
        return cls._of(
            table, mode, source, padding_idx=padding_idx, index_mapping=index_mapping, locate=locate, parity=parity
        )

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
        locate: bool = False,
        parity: int | None = None,
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
        padding_idx, index_mapping, locate, parity
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
        rows, at = layouts.table_geometry(rows, bits, layout, dim)
        table = _rows.Table(layouts.add_digests(rows, at.dim, bits=bits, layout=layout), at.dim, bits)
        source = FusedSource(rows[:, : at.width]) if _validation.boolean("keep_source", keep_source) else None
        return cls._of(
            table,
            mode,
            source,
            layout=layout,
            padding_idx=padding_idx,
            index_mapping=index_mapping,
            locate=locate,
            parity=parity,
        )

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
        locate: bool = False,
        parity: int | None = None,
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
        locate, parity
            As for `from_float`. A restored row is kept beside the rows, and stands for the corrupted one.
        progress : callable, optional
            Called as ``progress(done, rows)`` while they are gone through.

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
        rows, at = layouts.table_geometry(rows, bits, layout, dim)
        kept = repair.begun(rows, locate, parity)
        table = layouts.attach_sidecar(rows, at, progress, lambda first, stop: repair.take(kept, rows, first, stop))
        bag = cls._of(table, mode, layout=layout, padding_idx=padding_idx, index_mapping=index_mapping)
        bag._redundancy = repair.Redundancy(table, *kept)
        return bag

    def __repr__(self) -> str:
        return f"<EmbeddingBag {self.shape[0]} x {self.shape[1]}, {self.bits} bit, mode={self.mode!r}>"

    def __call__(
        self,
        indices: ArrayLike | IndexBatch,
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
        indices : array_like of int32 or int64, (L,) or (B, L), or IndexBatch
            Row numbers. Two-dimensional indices are B bags of L rows each, without offsets. An IndexBatch has its offsets
            and weights with it.
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
        if isinstance(indices, IndexBatch):
            return self._consumed(indices, offsets, per_sample_weights, out, settings, threshold)
        index, starts = requests.bags(indices, offsets, include_last_offset)
        weights = None
        if per_sample_weights is not None:
            weights = requests.weights_of(per_sample_weights, np.shape(indices))
        result = _validation.output(out, (len(starts) - 1, self.shape[1]), np.float32, (index, starts, weights))
        self.pool(index, starts, weights, result, settings, threshold=threshold)
        return result

    def _consumed(
        self,
        batch: IndexBatch,
        offsets: ArrayLike | None,
        weights: ArrayLike | None,
        out: Array | None,
        settings: _config.Settings,
        threshold: Any,
    ) -> NDArray[np.float32]:
        """Pool a request that carries digests."""
        batch.alone(offsets, weights)

        def compute(using: _config.Settings) -> Array:
            arrays = (batch.indices, batch.offsets, batch.per_sample_weights)
            result = _validation.output(out, (len(batch), self.shape[1]), np.float32, arrays)
            self.pool(*arrays, result, using, threshold=threshold)
            return result

        return consume([batch], compute, settings, "EmbeddingBag")
