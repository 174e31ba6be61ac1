"""Bags of indices, and requests made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
LabelArray = npt.NDArray[np.uint8]
Layer = tuple[FloatArray, FloatArray]


@dataclass(frozen=True, eq=False)
class Bags:
    """Bags of indices: bag ``i`` is ``indices[offsets[i]:offsets[i + 1]]``.

    Attributes
    ----------
    indices : (nnz,) int64 array
    offsets : (n + 1,) int64 array
        Starts at 0 and ends at ``nnz``.
    """

    indices: IntArray
    offsets: IntArray

    @classmethod
    def of(cls, rows: Sequence[Sequence[int] | IntArray]) -> Bags:
        """Build from one sequence of indices per bag."""
        flat = [np.asarray(row, dtype=np.int64) for row in rows]
        indices = np.concatenate(flat) if flat else np.zeros(0, dtype=np.int64)
        return cls(indices, offsets_of(np.array([len(row) for row in flat], dtype=np.int64)))

    def lengths(self) -> IntArray:
        """Return the number of indices in each bag."""
        return np.diff(self.offsets)

    def owners(self) -> IntArray:
        """Return, for each index, the bag it is in."""
        lengths = self.lengths()
        return np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)

    def take(self, bags: IntArray) -> Bags:
        """Return the chosen bags, in the order chosen."""
        lengths = self.lengths()[bags]
        offsets = offsets_of(lengths)
        shift = np.repeat(self.offsets[:-1][bags] - offsets[:-1], lengths)
        return Bags(self.indices[np.arange(offsets[-1]) + shift], offsets)

    def expand(self, inner: Bags) -> Bags:
        """Replace each index by the bag of `inner` it names; there stay as many bags."""
        flat = inner.take(self.indices)
        return Bags(flat.indices, flat.offsets[self.offsets])


def offsets_of(lengths: IntArray) -> IntArray:
    """Return the offsets of bags of these lengths, the last offset included."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])


@dataclass(frozen=True, eq=False)
class Requests:
    """A batch of requests in CSR form.

    Attributes
    ----------
    dense : (B, n_dense) float32 array
        Standardised dense features.
    indices : list of int64 arrays
        For each table, the indices of all its bags one after another.
    offsets : list of (B + 1,) int64 arrays
        For each table, where each bag starts; the last offset is the number of indices.
    labels : (B,) uint8 array
        1 if the user visited the candidate area, else 0.
    """

    dense: FloatArray
    indices: list[IntArray]
    offsets: list[IntArray]
    labels: LabelArray

    def __len__(self) -> int:
        """Return the number of requests."""
        return len(self.labels)

    def batch(self, start: int, stop: int) -> Requests:
        """Return requests `start` to `stop`, with offsets that start at 0 again.

        Parameters
        ----------
        start, stop : int
            As in a slice: negative values count from the end, values past the end are clipped.

        Returns
        -------
        Requests
            The dense features, the indices and the labels are views.
        """
        start, stop, _ = slice(start, stop).indices(len(self))
        stop = max(start, stop)
        spans = [(int(o[start]), int(o[stop])) for o in self.offsets]
        return Requests(
            dense=self.dense[start:stop],
            indices=[i[low:high] for i, (low, high) in zip(self.indices, spans, strict=True)],
            offsets=[o[start : stop + 1] - low for o, (low, _) in zip(self.offsets, spans, strict=True)],
            labels=self.labels[start:stop],
        )


def read_requests(path: Path) -> Requests:
    """Read an .npz of dense, indices_0, offsets_0, indices_1, ..., offsets with the last one; ValueError for others."""
    with open(path, "rb") as stream:
        try:
            file = np.load(stream, allow_pickle=False)
            count = sum(key.startswith("indices_") for key in file.files)
            dense = file["dense"]
            indices, offsets = ([file[f"{key}_{t}"] for t in range(count)] for key in ("indices", "offsets"))
        except Exception as error:  # a damaged file makes zipfile and numpy raise nearly anything
            raise ValueError(f"--requests: got {path}, expected an .npz of requests ({error})") from None
    integers = all(a.ndim == 1 and a.dtype.kind in "iu" for a in (*indices, *offsets))
    if dense.ndim != 2 or dense.dtype.kind not in "fiu" or not integers:
        raise ValueError(f"--requests: got {path}, expected rows of numbers in dense, integers in indices and offsets")
    starts = [o.astype(np.int64) for o in offsets]
    if any(len(o) != len(dense) + 1 or o[0] != 0 or (np.diff(o) < 0).any() for o in starts):
        raise ValueError(f"--requests: got {path}, expected offsets from 0 that do not decrease, one more than requests")
    if any(o[-1] != len(i) for o, i in zip(starts, indices, strict=True)):
        raise ValueError(f"--requests: got {path}, expected last offsets that are the number of indices")
    return Requests(dense, indices, starts, np.zeros(len(dense), np.uint8))
