"""EmbeddingBag: a stored table, and how its rows are pooled.

::

    __call__          validates indices, offsets and weights                   -> `Call`
    _pool             leaves out padding and pruned rows; `Call.run` pools and verifies in the compiled loops
      nothing found   -> done
      findings        -> `_recover` -> `detection.handle`, which asks `_Bags`:
                           repair    the table restores the rows that the call read
                           compute   all bags are pooled again on another code path
"""

from __future__ import annotations

import copy
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sedq import _config, _validation, detection
from sedq._core import _dispatch, _embedding, _rows
from sedq.embedding import _formats, _requests
from sedq.embedding._index_batch import IndexBatch, consume, require_none_beside
from sedq.embedding._reports import RebuildReport, ScrubReport
from sedq.embedding._sources import FloatSource, FusedSource
from sedq.embedding._table import StoredTable
from sedq.exceptions import SoftErrorDetected

__all__ = ["Call", "EmbeddingBag", "level_of", "measure_sums", "pool_into", "stats_for"]

Array = NDArray[Any]
Mode = Literal["sum", "mean"]
LEVELS = {
    "off": 0,
    "digest": _embedding.CHECK_DIGEST,
    "threshold": _embedding.CHECK_SUM,
    "exact": _embedding.CHECK_DIGEST | _embedding.CHECK_SUM,
    "full": _embedding.CHECK_DIGEST | _embedding.CHECK_SUM | _embedding.CHECK_TWICE,
}
SAME = 2.0**-40  # how much residuals may differ between paths, whose sums are of float64, relative to the magnitude
# what checks of a bag find if a row that it reads is corrupted
OF_ROWS = (detection.Kind.DIGEST, detection.Kind.SUM, detection.Kind.OVERFLOW)


class Call(NamedTuple):
    """One call of a bag: the rows to pool, where the results go, and how they are checked.

    Attributes
    ----------
    indices : ndarray of int32 or int64, (L,)
        Row numbers.
    offsets : ndarray of int64, (B + 1,)
        Where each bag starts, and the last one ends.
    weights : ndarray of float32, (L,), or None
        Factors of the rows.
    out : ndarray of float32, (B, d)
        Results; its rows may lie apart.
    settings : Settings
        Code path, threads, and what to do on a detection.
    operator : str
        Name in events.
    mean : bool
        Whether bags are means.
    level : int
        Checks, as the compiled loops take them.
    limit : Limit
        What the residual of a sum is compared with.
    lengths : ndarray of int64, (B,), or None
        Divisors of means, if indices were left out.
    y_sums : ndarray of uint32, (B,), or None
        Where checksums of the results go.
    """

    indices: Array
    offsets: Array
    weights: Array | None
    out: Array
    settings: _config.Settings
    operator: str
    mean: bool
    level: int
    limit: _requests.Limit
    lengths: Array | None = None
    y_sums: Array | None = None

    def run(
        self, kernels: _dispatch.Context, table: _rows.Table, num_threads: int, stats: Array | None = None
    ) -> detection.Findings | None:
        """Pool rows of a table into `out`, and return what the checks found."""
        indices, offsets, weights, out, _, _, mean, level, (kind, value, growth), lengths, y_sums = self
        how = (level, kind, value, mean, num_threads, y_sums, lengths, stats, growth)
        return _embedding.pool(kernels, table, indices, offsets, weights, out, *how)

    def of_bags(self, numbers: Array) -> Call:
        """Return a call of the bags of the given numbers, with results in arrays of their own."""
        index, starts, weights = _requests.select(numbers, self.indices, self.offsets, self.weights)
        return self._replace(
            indices=index,
            offsets=starts,
            weights=weights,
            out=np.empty((len(numbers), self.out.shape[1]), np.float32),
            lengths=None if self.lengths is None else self.lengths[numbers],
            y_sums=np.zeros(len(numbers), np.uint32),
        )


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
    table : StoredTable
        The rows, and what verifies and restores them. `bad_rows`, `scrub`, `restore`, `update_rows`,
        `rebuild_redundancy` and `to_fused` are its methods.
    pruning : Pruning or None
        Indices that are left out (attribute `padding_idx`), and the row of each index (`mapping`, and its `inverse`).

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

    shape: tuple[int, int]
    mode: str
    bits: int
    table: StoredTable
    pruning: _requests.Pruning | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = [_validation.describe(value) for value in args] + [f"{name}=" for name in kwargs]
        raise TypeError(
            f"EmbeddingBag: got {', '.join(given) or 'no arguments'}, but a table is made by a classmethod: "
            "EmbeddingBag.from_float(weight) quantises a float array (rows, d), such as module.weight.detach().numpy(); "
            "EmbeddingBag.from_fused(rows) copies rows that were quantised already; "
            "EmbeddingBag.view_fused(rows) uses such rows where they are"
        )

    @classmethod
    def from_table(
        cls,
        table: StoredTable,
        *,
        mode: Mode = "sum",
        padding_idx: int | None = None,
        index_mapping: ArrayLike | None = None,
    ) -> Self:
        """Pool the rows of a stored table, which is not copied: bags may share it.

        Parameters
        ----------
        table : StoredTable
            Attribute `table` of another bag.
        mode, padding_idx, index_mapping
            As for `from_float`.

        Returns
        -------
        EmbeddingBag

        Raises
        ------
        TypeError
            For something else than a StoredTable.
        ValueError
            For an unknown mode, or a mapping that does not fit the table.

        Examples
        --------
        >>> import numpy as np
        >>> import sedq
        >>> sums = sedq.EmbeddingBag.from_float(np.ones((3, 2), dtype=np.float32))
        >>> means = sedq.EmbeddingBag.from_table(sums.table, mode="mean")
        >>> sums([[0, 1]]), means([[0, 1]])
        (array([[2., 2.]], dtype=float32), array([[1., 1.]], dtype=float32))
        """
        if not isinstance(table, StoredTable):
            raise TypeError(f"table: got {_validation.describe(table)}, expected a StoredTable, such as bag.table")
        self = cls.__new__(cls)
        if mode not in ("sum", "mean"):
            raise ValueError(f"mode: got {mode!r}, expected 'sum' or 'mean'")
        self.table, self.mode = table, mode
        self.shape, self.bits = table.shape, table.bits
        pruned = padding_idx is not None or index_mapping is not None
        self.pruning = _requests.Pruning(padding_idx, index_mapping, table.shape[0]) if pruned else None
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
        bits = _formats.check_bits(bits)
        w = _validation.finite_array("weight", weight, (None, None))
        if w.shape[1] == 0:
            raise ValueError(f"weight: got shape {w.shape}, expected at least one column")
        if not len(w):
            raise ValueError(f"weight: got shape {w.shape}, expected at least one row")
        dim = _formats.check_dim("weight", w.shape[1], bits)
        rows = _formats.add_digests(_formats.quantize_rows(w, bits), dim, bits=bits)
        source = FloatSource(w, bits) if _validation.boolean("keep_source", keep_source) else None
        table = StoredTable.protect(_rows.Table(rows, dim, bits), source=source, locate=locate, parity=parity)
        return cls.from_table(table, mode=mode, padding_idx=padding_idx, index_mapping=index_mapping)

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
        rows, at = _formats.table_geometry(rows, bits, layout, dim)
        data = _rows.Table(_formats.add_digests(rows, at.dim, bits=bits, layout=layout), at.dim, bits)
        source = FusedSource(rows[:, : at.width]) if _validation.boolean("keep_source", keep_source) else None
        table = StoredTable.protect(data, source=source, layout=layout, locate=locate, parity=parity)
        return cls.from_table(table, mode=mode, padding_idx=padding_idx, index_mapping=index_mapping)

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
        progress: _formats.Progress | None = None,
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
        rows, at = _formats.table_geometry(rows, bits, layout, dim)
        table = StoredTable.view(rows, at, layout=layout, locate=locate, parity=parity, progress=progress)
        return cls.from_table(table, mode=mode, padding_idx=padding_idx, index_mapping=index_mapping)

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
        index, starts = _requests.bags(indices, offsets, include_last_offset)
        weights = None
        if per_sample_weights is not None:
            weights = _requests.weights_of(per_sample_weights, np.shape(indices))
        result = _validation.output(out, (len(starts) - 1, self.shape[1]), np.float32, (index, starts, weights))
        pool_into(self, index, starts, weights, result, settings, threshold=threshold)
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
        require_none_beside(offsets, weights)

        def compute(using: _config.Settings) -> Array:
            arrays = (batch.indices, batch.offsets, batch.per_sample_weights)
            result = _validation.output(out, (len(batch), self.shape[1]), np.float32, arrays)
            pool_into(self, *arrays, result, using, threshold=threshold)
            return result

        return consume([batch], compute, settings, "EmbeddingBag")

    @property
    def num_embeddings(self) -> int:
        """Indices are below this number: the number of rows, or the length of the index mapping of a pruned table."""
        return self.shape[0] if self.pruning is None else self.pruning.indices

    @property
    def _needs_own_call(self) -> bool:
        """Whether a call does more than to pool rows as they are stored, so that a collection can't include it."""
        return self.pruning is not None or bool(self.table.overlay)

    def _pool(self, call: Call, threshold: Any) -> None:
        """Run a call: pool, verify, and recover from what was found."""
        stats = stats_for(call.limit, call.level, len(call.out))
        if self.pruning is not None:
            call = self._without_left_out(call)
        repairs, found = self.table.guard.read(self._read, call, stats)
        if call.level:
            detection.count_checks(call.operator, len(call.out))
        overlay = self.table.overlay
        if found is not None or (overlay and overlay.places(call.indices).size):
            self._recover(found, call, repairs)
        if stats is not None:
            threshold.watch(self, call.offsets, call.weights, stats)

    def _read(self, call: Call, stats: Array | None) -> tuple[int, detection.Findings | None]:
        """Run a call once, and return how often rows had been repaired before, and what was found."""
        repairs = self.table.repairs
        return repairs, call.run(call.settings.kernels, self.table.data, call.settings.num_threads or 0, stats)

    def _without_left_out(self, call: Call) -> Call:
        """Return a call without the indices that contribute nothing, with rows in the place of the others."""
        assert self.pruning is not None
        arrays, settings = (call.indices, call.offsets, call.weights), call.settings
        try:
            kept = self.pruning.apply(*arrays, compare=settings.check != "off")
        except _requests.CorruptMapping as error:
            found, corrupted = [detection.Finding(-1, detection.Kind.INPUT)], str(error)
            if settings.on_error != "warn":
                # nothing has a copy of the mapping, so that there is no recovery
                events = detection.conclude(call.operator, found, _dispatch.current_cpu(), "raise", "memory", corrupted)
                raise SoftErrorDetected(detection.summary(events), events) from None
            detection.warn(call.operator, found)
            kept = self.pruning.apply(*arrays, compare=False)
        index, offsets, weights, lengths = kept
        return call._replace(indices=index, offsets=offsets, weights=weights, lengths=lengths)

    def _recover(self, found: detection.Findings | None, call: Call, repairs: int) -> None:
        """Compute bags of overlaid rows, and recover from what was found, while no other thread writes rows.

        `repairs` is how often rows had been repaired when the call read them.
        """
        with self.table.guard.exclusive():
            left = self._compute_overlaid(found, call) if self.table.overlay else list(found or ())
            if not left:
                return
            overflows = np.unique([finding.row for finding in left if finding.kind == detection.Kind.OVERFLOW])
            if overflows.size:
                # raises if they overflow without a fault too: then the input is wrong
                self._compute_again(_dispatch.get("reference"), overflows, call)
                left = [f._replace(kind=detection.Kind.SUM) if f.kind == detection.Kind.OVERFLOW else f for f in left]
            detection.handle(_Bags(self, call, repairs), left, call.settings)

    def _compute_overlaid(self, found: detection.Findings | None, call: Call) -> list[detection.Finding]:
        """Compute the bags that have overlaid rows, which the kernel read as they are stored. Return the findings left."""
        places = self.table.overlay.places(call.indices)
        numbers = np.unique(np.searchsorted(call.offsets, places, side="right") - 1)
        if found is not None and found.cut_off:  # other bags may be wrong as well
            numbers = np.arange(len(call.out))
        if not numbers.size:
            return list(found or ())
        remaining, again = self._compute_again(_dispatch.get("reference"), numbers, call)
        call.out[numbers] = again.out
        if call.y_sums is not None:
            call.y_sums[numbers] = again.y_sums
        known = set(numbers.tolist())
        # the stored rows explain findings of rows in these bags; a store that went astray may have hit other bags
        elsewhere = [finding for finding in found or () if finding.row not in known or finding.kind not in OF_ROWS]
        return elsewhere + [
            finding._replace(row=int(numbers[finding.row])) if finding.row >= 0 else finding for finding in remaining or ()
        ]

    def _compute_again(
        self, kernels: _dispatch.Context, numbers: Array, call: Call, stats: Array | None = None
    ) -> tuple[detection.Findings | None, Call]:
        """Pool some bags of a call again with the overlay in place, and return findings and the call with their results."""
        again = call.of_bags(numbers)
        table, index = self.table.readable(again.indices)
        remaining = again._replace(indices=index).run(kernels, table, 1, stats)
        if remaining and all(finding.kind == detection.Kind.OVERFLOW for finding in remaining):
            bag = numbers[remaining[0].row]
            raise ValueError(f"bag {bag}: its sums overflow float32, expected smaller weights or values")
        return remaining, again

    # ---- the table

    def __copy__(self) -> Self:
        twin = type(self).__new__(type(self))
        vars(twin).update(vars(self), table=copy.copy(self.table))
        return twin

    @property
    def version(self) -> int:
        """Changes with every write to the rows, repairs included; odd while one is going on."""
        return self.table.version

    @property
    def nbytes(self) -> int:
        """Bytes of memory: rows with their digests, locating sums and parity rows; without a source that is kept."""
        return self.table.nbytes

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
        return self.table.bad_rows(rows)

    def restore(self, rows: ArrayLike) -> list[int]:
        """Reload rows from the source, where one is kept, and return those whose digests then fit.

        Parameters
        ----------
        rows : array_like of int
            Row numbers.

        Returns
        -------
        list of int
            Rows restored; empty without a source. Rows that `update_rows` has changed are not in it.
        """
        return self.table.restore(rows)

    def scrub(
        self, start: int = 0, rows: int | None = None, *, repair: bool = True, redundancy: bool = False
    ) -> ScrubReport:
        """Compare rows with their digests, and restore those that don't fit.

        Corruption in a row that is never read goes unnoticed, and a second corrupted row of its parity group can make both
        unrestorable. So scrub the table from time to time, some rows at a time. Calls go on meanwhile. Findings are logged
        and recorded by the monitors in force, as operator ``"scrub"``.

        Parameters
        ----------
        start : int, default 0
            First row.
        rows : int, optional
            How many rows; to the end of the table by default, and never beyond it.
        repair : bool, default True
            Restore what is corrupted; otherwise nothing is written.
        redundancy : bool, default False
            Also compare the locating sums of these rows, and the parity and the index mapping of as large a part of the
            groups and indices, which takes several times as long. A row that they contradict is restored if most witnesses
            agree on it. Otherwise it is left and reported. Redundancy itself is never written.

        Returns
        -------
        ScrubReport
            Its attribute `next` is where to go on.

        Examples
        --------
        >>> import numpy as np
        >>> import sedq
        >>> bag = sedq.EmbeddingBag.from_float(np.ones((1000, 4), dtype=np.float32), parity=100)
        >>> sedq.faults.flip_row_bit(bag, 600, 5)
        >>> bag.scrub(0, 500).found
        []
        >>> report = bag.scrub(500, 500)
        >>> report.found, report.rebuilt, report.next
        ([600], [600], 0)
        """
        return self.table.scrub(start, rows, repair=repair, redundancy=redundancy, mapping=self.pruning)

    def rebuild_redundancy(self, rows: ArrayLike) -> RebuildReport:
        """Make the locating sums and the parity of rows anew, where they are wrong and the rows are certainly right.

        A scrub reports redundancy that disagrees with its rows, and leaves it as it is, because the rows might be wrong.
        Here it is replaced if the source, or two of digest, locating sums and parity, confirm the row. Parity is replaced
        if they confirm every row of its group.

        Parameters
        ----------
        rows : array_like of int
            Row numbers. The parity of the groups that they belong to is looked at as well.

        Returns
        -------
        RebuildReport
            What was made anew, and what was refused, with the reason.

        Examples
        --------
        >>> import numpy as np
        >>> import sedq
        >>> bag = sedq.EmbeddingBag.from_float(np.ones((20, 4), dtype=np.float32), locate=True, parity=10)
        >>> bag.table.locator.syndromes[3] ^= 1
        >>> bag.scrub(redundancy=True).stale
        ['locating sums of row 3']
        >>> bag.rebuild_redundancy([3]).rebuilt
        ['locating sums of row 3']
        """
        return self.table.rebuild_redundancy(rows)

    def update_rows(self, indices: ArrayLike, values: ArrayLike) -> None:
        """Give rows new values, while other threads read.

        Rows are written 1024 at a time with their digests, locating sums and parity. A call that ran meanwhile is computed
        again, so that it sees each row as it was or as it is, whatever its level of checking.

        Parameters
        ----------
        indices : array_like of int32 or int64, (k,)
            Row numbers, each once; of a pruned table those of the rows that there are, not those that its mapping maps.
        values : array_like of float32, (k, d), or ndarray of uint8, (k, bytes)
            Values to be quantised, or fused rows in the layout of the table.

        Raises
        ------
        IndexError
            For a row number out of range.
        ValueError
            For a number that occurs twice, NaN or infinities, another shape or dtype, or a table that is read-only. Nothing
            is written then.

        Examples
        --------
        >>> import numpy as np
        >>> import sedq
        >>> bag = sedq.EmbeddingBag.from_float(np.zeros((3, 4), dtype=np.float32))
        >>> bag.update_rows([1], np.ones((1, 4), dtype=np.float32))
        >>> bag([[0, 1]])
        array([[1., 1., 1., 1.]], dtype=float32)
        """
        self.table.update_rows(indices, values)

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
        return self.table.to_fused(layout, align=align)


class _Bags:
    """A call whose checks disagreed: the table restores the rows that it read, and all its bags are pooled again."""

    def __init__(self, bag: EmbeddingBag, call: Call, repairs: int) -> None:
        self.operator = call.operator
        self._bag, self._call, self._repairs = bag, call, repairs
        self._stats: Array | None = None  # residual, reference, magnitude of each bag, if only a threshold complained

    def repair(self) -> detection.Repair:
        return self._bag.table.repair(np.unique(self._call.indices), self._repairs)

    def compute(self, kernels: _dispatch.Context) -> detection.Attempt:
        every = np.arange(len(self._call.out))
        remaining, again = self._bag._compute_again(kernels, every, self._call)
        sums_alone = remaining is not None and all(finding.kind == detection.Kind.SUM for finding in remaining)
        if sums_alone and self._call.limit != _requests.BOUND:
            # rounding is the same on every path, so that a false alarm of a threshold comes again: compare with the bound
            self._stats = np.empty((len(every), 3))
            call = self._call._replace(limit=_requests.BOUND)
            remaining, again = self._bag._compute_again(kernels, every, call, self._stats)
        assert again.y_sums is not None
        return detection.Attempt((again.out, again.y_sums), list(remaining or ()))

    def is_rounding(self, finding: detection.Finding, answer: detection.Attempt) -> bool:
        if finding.kind != detection.Kind.SUM or self._stats is None:
            return False
        residual, _, magnitude = self._stats[finding.row]
        same = answer.outputs[0][finding.row].tobytes() == self._call.out[finding.row].tobytes()
        return same and bool(abs(finding.residual - residual) <= SAME * magnitude)

    def accept(self, answer: detection.Attempt) -> None:
        self._call.out[...], sums = answer.outputs
        if self._call.y_sums is not None:
            self._call.y_sums[...] = sums


def pool_into(
    bag: EmbeddingBag,
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
    """Pool validated arrays into `out`, whose rows may lie apart; `y_sums` gets checksums of its rows.

    The offsets include the last one. Models call this with a column of their own arrays.
    """
    mean, level = bag.mode == "mean", level_of(settings)
    limit = _requests.limit(threshold, bag)
    call = Call(indices, offsets, weights, out, settings, operator, mean, level, limit, None, y_sums)
    bag._pool(call, threshold)


def measure_sums(
    bag: EmbeddingBag,
    indices: Array,
    offsets: Array,
    weights: Array | None,
    out: Array,
    settings: _config.Settings,
) -> tuple[detection.Findings | None, Array]:
    """Pool rows as they are stored into `out`, and measure how exact the sums are, without recovery.

    Returns
    -------
    Findings or None
        What the checks found, with sums compared with the bound.
    ndarray of float64, (B, 3)
        Residual, reference and magnitude of each bag.
    """
    stats = np.empty((len(out), 3))
    call = Call(
        indices, offsets, weights, out, settings, "EmbeddingBag", bag.mode == "mean", level_of(settings), _requests.BOUND
    )
    return call.run(settings.kernels, bag.table.data, settings.num_threads or 0, stats), stats


def level_of(settings: _config.Settings) -> int:
    """Return what the kernels are to check."""
    level = LEVELS.get(settings.check)
    if level is None:
        raise ValueError(f"check: got {settings.check!r}, expected one of {', '.join(map(repr, LEVELS))} here")
    return level


def stats_for(limit: _requests.Limit, level: int, count: int) -> Array | None:
    """Return where residuals, references and magnitudes of bags go, if a calibration watches them."""
    watched = limit.kind == _embedding.LIMIT_GROWTH and level & _embedding.CHECK_SUM
    return np.empty((count, 3)) if watched else None
