"""Many tables in one call.

::

    indices, offsets of all tables, one table after another       as FBGEMM's TBE and TorchRec's KeyedJaggedTensor have them
        |
        |  one parallel region over the chunks of all tables, the longest first
        v
    out (B, d_0 + d_1 + ...), each table in its own columns;  what was found wrong goes to the bag it concerns
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sedq import _config, _validation, detection
from sedq._core import _collection, _dispatch, _embedding
from sedq.embedding._bag import Call, EmbeddingBag, level_of, pool_into, stats_for
from sedq.embedding._index_batch import IndexBatch, consume, require_none_beside
from sedq.embedding._requests import check_range, limit, weights_of

__all__ = ["EmbeddingBagCollection"]

Array = NDArray[Any]


class EmbeddingBagCollection:
    """Bags that are asked together: as many requests of each of several tables, in one call.

    Parameters
    ----------
    bags : sequence of EmbeddingBag
        Of any dimensions, formats and modes. Not copied.

    Attributes
    ----------
    bags : tuple of EmbeddingBag
    dim : int
        Columns of the output: the sum of the bags' dimensions.

    Raises
    ------
    ValueError
        For no bags.
    TypeError
        For something else than bags.

    Examples
    --------
    >>> import numpy as np
    >>> import sedq
    >>> ones, twos = (sedq.EmbeddingBag.from_float(np.full((3, d), d, np.float32)) for d in (1, 2))
    >>> tables = sedq.EmbeddingBagCollection([ones, twos])
    >>> tables(np.array([0, 1, 2, 0]), np.array([0, 1, 2, 4, 4]))  # two requests: [0] and [1]; [2, 0] and []
    array([[1., 4., 4.],
           [1., 0., 0.]], dtype=float32)
    """

    def __init__(self, bags: Sequence[EmbeddingBag]) -> None:
        self.bags = tuple(bags)
        if not self.bags:
            raise ValueError("bags: got none, expected at least one")
        for number, bag in enumerate(self.bags):
            if not isinstance(bag, EmbeddingBag):
                raise TypeError(f"bags[{number}]: got {_validation.describe(bag)}, expected an EmbeddingBag")
        self._columns = np.cumsum([0, *(bag.shape[1] for bag in self.bags)]).tolist()
        self.dim: int = self._columns[-1]

    def __len__(self) -> int:
        return len(self.bags)

    def __repr__(self) -> str:
        return f"<EmbeddingBagCollection of {len(self)} tables, {self.dim} columns>"

    def __call__(
        self,
        indices: ArrayLike | IndexBatch,
        offsets: ArrayLike | None = None,
        per_sample_weights: ArrayLike | None = None,
        *,
        check: str | None = None,
        on_error: str | None = None,
        out: Array | None = None,
        num_threads: int | None = None,
        threshold: Any = "bound",
    ) -> NDArray[np.float32]:
        """Pool the bags of B requests in each of T tables.

        Parameters
        ----------
        indices : array_like of int32 or int64, (L,), or IndexBatch
            Row numbers, those of the first table's bags first.
        offsets : array_like of int32 or int64, (T B + 1,)
            Where each bag starts, those of the first table first, and the end of the last one: ``offsets()`` of a
            KeyedJaggedTensor.
        per_sample_weights : array_like of float32, (L,), optional
            Factors of the rows. Finite.
        check, on_error, num_threads, threshold
            As for `EmbeddingBag`.
        out : ndarray of float32, (B, dim), optional
            Where to write; C-contiguous.

        Returns
        -------
        ndarray of float32, (B, dim)

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
            batch = indices
            require_none_beside(offsets, per_sample_weights)
            return consume(
                [batch],
                lambda using: self._pool(batch.indices, batch.offsets, batch.per_sample_weights, out, using, threshold),
                settings,
                "EmbeddingBagCollection",
            )
        index = _validation.integers("indices", indices, (1,))
        if offsets is None:
            raise ValueError("offsets: got None, expected where each bag starts, and the last one ends")
        starts = _validation.integers("offsets", offsets, (1,)).astype(np.int64, copy=False)
        weights = None if per_sample_weights is None else weights_of(per_sample_weights, index.shape)
        return self._pool(index, starts, weights, out, settings, threshold)

    def _pool(
        self,
        index: Array,
        starts: Array,
        weights: Array | None,
        out: Array | None,
        settings: _config.Settings,
        threshold: Any,
    ) -> NDArray[np.float32]:
        tables = len(self.bags)
        batch, rest = divmod(len(starts) - 1, tables)
        if rest or batch < 0:
            raise ValueError(f"offsets: got {len(starts)}, expected one more than a multiple of {tables} tables")
        result = _validation.output(out, (batch, self.dim), np.float32, (index, starts, weights))

        def compute(kernels: _dispatch.Context) -> Array:
            using = settings if kernels is settings.kernels else settings._replace(kernels=kernels)
            self._pool_into(result, index, starts, weights, using, threshold)
            return result

        answer = detection.replayed(compute, settings, lambda: [bag.version for bag in self.bags])
        if answer is not result:
            result[...] = answer
        return result

    def _pool_into(
        self,
        result: Array,
        index: Array,
        starts: Array,
        weights: Array | None,
        settings: _config.Settings,
        threshold: Any,
    ) -> None:
        """Pool all tables once, one after the other where one of them or a bag needs more than the compiled loop does."""
        tables, batch = len(self.bags), len(result)
        if any(bag._needs_own_call for bag in self.bags) or _any_long(index, starts):
            self._check_requests(index, starts)
            for number in range(tables):
                self._pool_one(number, index, starts, weights, result, settings, threshold)
            return
        level, limits = level_of(settings), [limit(threshold, bag) for bag in self.bags]
        stats = stats_for(limits[0], level, tables * batch)
        versions, repairs = [bag.version for bag in self.bags], [bag.table.repairs for bag in self.bags]
        found = _collection.pool_many(
            settings.kernels,
            [bag.table.data for bag in self.bags],
            index,
            starts,
            weights,
            result,
            level,
            limits,
            [bag.mode == "mean" for bag in self.bags],
            settings.num_threads or 0,
            stats,
        )
        for number, bag in enumerate(self.bags):
            if bag.version != versions[number] or versions[number] % 2:  # somebody wrote to it meanwhile
                self._pool_one(number, index, starts, weights, result, settings, threshold)
                continue
            if level:
                detection.count_checks(f"table.{number}", batch)
            if stats is None and found is None:
                continue
            arrays = self._part(number, index, starts, weights)
            if found is not None and number in found:
                out, name, mean = self._columns_of(number, result), f"table.{number}", bag.mode == "mean"
                call = Call(*arrays, out, settings, name, mean, level, limits[number])
                bag._recover(found[number], call, repairs[number])
            if stats is not None:
                threshold.watch(bag, arrays[1], weights, stats[number * batch : (number + 1) * batch])

    def _check_requests(self, index: Array, starts: Array) -> None:
        """ValueError or IndexError, before anything is written, unless every table is asked for what it has."""
        _embedding.check_offsets(starts, index.size)
        batch = (len(starts) - 1) // len(self.bags)
        for number, bag in enumerate(self.bags):
            first, stop = starts[number * batch], starts[(number + 1) * batch]
            check_range(index[first:stop], bag.num_embeddings, first, f" for table {number}")

    def _part(self, number: int, index: Array, starts: Array, weights: Array | None) -> tuple[Array, Array, Array | None]:
        """Return indices, offsets and weights of one table."""
        batch = (len(starts) - 1) // len(self.bags)
        at = starts[number * batch : (number + 1) * batch + 1]
        part = slice(at[0], at[-1])
        return index[part], at - at[0], None if weights is None else weights[part]

    def _columns_of(self, number: int, result: Array) -> Array:
        return result[:, self._columns[number] : self._columns[number + 1]]

    def _pool_one(
        self,
        number: int,
        index: Array,
        starts: Array,
        weights: Array | None,
        result: Array,
        settings: _config.Settings,
        threshold: Any,
    ) -> None:
        """Pool one table by itself."""
        arrays = self._part(number, index, starts, weights)
        out = self._columns_of(number, result)
        pool_into(self.bags[number], *arrays, out, settings, operator=f"table.{number}", threshold=threshold)


def _any_long(index: Array, starts: Array) -> bool:
    """Whether a bag is long enough that the threads share it."""
    return index.size > _embedding.PART and bool((np.diff(starts) > _embedding.PART).any())
