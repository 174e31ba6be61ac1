"""Requests that carry digests of their indices.

::

    IndexBatch(indices, offsets)     sums of the arrays, when the request is made
        |
        v
    a bag pools them  -> sums again, after the last read of them: another sum means that they changed on the way
        |                    position-weighted sums say which element, a CRC-32 confirms its correction
        v
    out
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sedq import _config, detection
from sedq._core import _dispatch, _syndromes
from sedq.embedding._requests import bags, weights_of

__all__ = ["IndexBatch", "consume", "require_none_beside"]

Array = NDArray[Any]
WORD = 2**64
MOST_CANDIDATES = 64


class Sealed:
    """An array of integers with its sums: plain, weighted with position + 1, and CRC-32."""

    __slots__ = ("array", "crc", "sums")

    def __init__(self, array: Array) -> None:
        self.array = array
        self.sums: tuple[int, int] = _syndromes.index_sums(array)
        self.crc = zlib.crc32(array.data)

    def intact(self) -> bool:
        """Whether the array is what it was."""
        return bool(_syndromes.index_sums(self.array) == self.sums)

    def mend(self) -> int | None:
        """Correct one element in a copy of the array, which takes its place; its position, or None if more is wrong."""
        plain, weighted = _syndromes.index_sums(self.array)
        error, moment = (plain - self.sums[0]) % WORD, (weighted - self.sums[1]) % WORD
        positions = np.arange(1, self.array.size + 1, dtype=np.uint64)
        right = (self.array.astype(np.int64).view(np.uint64) - np.uint64(error)).view(np.int64)
        # the bits of a negative weight are a negative integer
        fits = (positions * np.uint64(error) == moment) & (right.astype(self.array.dtype) == right)
        for at in np.flatnonzero(fits)[:MOST_CANDIDATES].tolist():
            copy = self.array.copy()
            copy[at] = right[at]
            if zlib.crc32(copy.data) == self.crc:
                self.array = copy
                return int(at)
        return None


class IndexBatch:
    """Indices and offsets of a request, with digests taken when it is made and compared as it is consumed.

    Two of three flipped bits of an index of a large table leave it in range: no bag can tell that another row was
    meant. Wherever a bag, a collection or a model takes indices and offsets, it takes an IndexBatch in their place (and no
    offsets or weights). A single changed element is located and corrected; more are an error, as they can only be
    asked for again.

    Parameters
    ----------
    indices : array_like of int32 or int64, (L,) or (B, L)
        As for `EmbeddingBag`. Contiguous arrays are not copied, and must not change.
    offsets : array_like of int32 or int64, (B,) or (B + 1,), optional
        As for `EmbeddingBag`.
    per_sample_weights : array_like of float32, of the shape of indices, optional
        Factors of the rows, which the digest covers too.
    include_last_offset : bool, default False
        Whether offsets have the end of the last bag as one more element.

    Raises
    ------
    ValueError
        For wrong shapes or dtypes, or weights that are not finite.

    Examples
    --------
    >>> import numpy as np
    >>> import sedq
    >>> bag = sedq.EmbeddingBag.from_float(np.arange(12, dtype=np.float32).reshape(3, 4))
    >>> request = sedq.IndexBatch(np.array([0, 2, 1]), np.array([0, 2]))
    >>> request.indices[0] = 1  # on its way something flips a bit
    >>> with sedq.monitor() as m:
    ...     pooled = bag(request)
    >>> pooled.round(2)
    array([[ 8., 10., 12., 14.],
           [ 4.,  5.,  6.,  7.]], dtype=float32)
    >>> m.events[0].detail
    'indices[0]'
    """

    def __init__(
        self,
        indices: ArrayLike,
        offsets: ArrayLike | None = None,
        per_sample_weights: ArrayLike | None = None,
        include_last_offset: bool = False,
    ) -> None:
        index, starts = bags(indices, offsets, include_last_offset)
        self._parts = {"indices": Sealed(index), "offsets": Sealed(starts)}
        if per_sample_weights is not None:
            weights = weights_of(per_sample_weights, np.shape(indices))
            self._parts["per_sample_weights"] = Sealed(weights.view(np.int32))

    @property
    def indices(self) -> Array:
        """Row numbers, (L,) of int32 or int64."""
        return self._parts["indices"].array

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where each bag starts, and the last one ends, (B + 1,)."""
        return self._parts["offsets"].array

    @property
    def per_sample_weights(self) -> NDArray[np.float32] | None:
        """Factors of the rows, (L,), or None."""
        part = self._parts.get("per_sample_weights")
        return None if part is None else part.array.view(np.float32)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __repr__(self) -> str:
        return f"<IndexBatch of {len(self)} bags, {self.indices.size} indices>"

    def corrupted(self) -> list[str]:
        """Names of the arrays that are not what they were when the batch was made."""
        return [name for name, part in self._parts.items() if not part.intact()]

    def mend(self) -> tuple[list[str], list[str]]:
        """Correct what one changed element explains; elements corrected, and arrays that can't be."""
        mended, left = [], []
        for name in self.corrupted():
            at = self._parts[name].mend()
            if at is None:
                left.append(name)
            else:
                mended.append(f"{name}[{at}]")
        return mended, left


def require_none_beside(offsets: object, weights: object) -> None:
    """ValueError if a call has offsets or weights beside an IndexBatch, which has its own."""
    for name, value in (("offsets", offsets), ("per_sample_weights", weights)):
        if value is not None:
            raise ValueError(f"{name}: got some beside an IndexBatch, which has its own, expected None")


def consume(
    batches: Sequence[IndexBatch], compute: Callable[[_config.Settings], Array], settings: _config.Settings, operator: str
) -> Array:
    """Return what is computed from requests that are what they were when they were made, at the end of it.

    `compute` takes their arrays anew each time. What it raises about them counts only if they are intact.
    """
    if settings.check == "off":
        return compute(settings)
    result: Array | None = None
    failure: Exception | None = None
    try:
        result = compute(settings)
    except (ValueError, IndexError) as error:
        failure = error
    found = _differing(batches)
    if found is None:
        if failure is not None:
            raise failure
        assert result is not None
        return result
    consumed = _Consumed(operator, batches, compute, settings, result)
    detection.handle(consumed, found, settings)
    if consumed.result is None:  # on_error="warn": there is no result to return
        assert failure is not None
        raise failure
    return consumed.result


class _Consumed:
    """A call whose request had changed when it was done: the request corrected, and all computed again."""

    def __init__(
        self,
        operator: str,
        batches: Sequence[IndexBatch],
        compute: Callable[[_config.Settings], Array],
        settings: _config.Settings,
        result: Array | None,
    ) -> None:
        self.operator, self.result = operator, result
        self._batches, self._compute, self._settings = batches, compute, settings

    def repair(self) -> detection.Repair:
        mended: list[str] = []
        left: list[str] = []
        for number, batch in enumerate(self._batches):
            name = f"batch {number}: " if len(self._batches) > 1 else ""
            for parts, into in zip(batch.mend(), (mended, left), strict=True):
                into += [name + part for part in parts]
        return detection.Repair(", ".join(mended), ", ".join(left))

    def compute(self, kernels: _dispatch.Context) -> detection.Attempt:
        result = self._compute(self._settings._replace(kernels=kernels))
        found = _differing(self._batches)
        self.result = result  # the array of the caller, if there is one, whatever is in it now
        return detection.Attempt((result.copy(),), found or [])

    def is_rounding(self, finding: detection.Finding, answer: detection.Attempt) -> bool:
        return False

    def accept(self, answer: detection.Attempt) -> None:
        assert self.result is not None
        self.result[...] = answer.outputs[0]


def _differing(batches: Sequence[IndexBatch]) -> list[detection.Finding] | None:
    """Return findings, one for each batch that is not what it was; the row is its number."""
    return [detection.Finding(n, detection.Kind.INPUT) for n, batch in enumerate(batches) if batch.corrupted()] or None
