"""Copies of a table: as rows of other libraries, and of the bag itself. A copy is only made of rows that are intact."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sedq import _validation
from sedq.embedding import _formats, _repair
from sedq.embedding._guard import Guard
from sedq.embedding._pooling import Pooling

__all__ = ["Copied"]

Array = NDArray[Any]
ITS_OWN = ("_guard", "_mended", "_mends", "_redundancy", "_table")  # what a copy has anew


class Copied(Pooling):
    """The part of an EmbeddingBag that copies it."""

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
        _formats.geometry(layout, self.bits, self.shape[1])
        align = _validation.integer("align", align, 1, 2**20)
        with self._guard.exclusive():
            self.require_intact()
            rows = self._own_rows(0, self.shape[0])
            return _formats.strip_digests(rows, self.shape[1], bits=self.bits, layout=layout, align=align)

    def _fused_pieces(self, layout: str, step: int) -> Iterator[Array]:
        """Yield the rows as `to_fused` has them, so many at a time, each intact as it is copied. For files."""
        for first in range(0, self.shape[0], step):
            stop = min(first + step, self.shape[0])
            with self._guard.exclusive():
                self.require_intact(np.arange(first, stop))
                rows = _formats.strip_digests(self._own_rows(first, stop), self.shape[1], bits=self.bits, layout=layout)
            yield rows

    def _own_rows(self, first: int, stop: int) -> Array:
        """Rows of ours, copied from another layout if need be."""
        if self._table.own:
            return self._table.rows[first:stop]
        fused = self._table.rows[first:stop]
        rows = _formats.add_digests(fused, self.shape[1], first, bits=self.bits, layout=self._layout)
        for number, row in self._redundancy.overlay.items():
            if first <= number < stop:
                rows[number - first] = self._sealed(number, row)
        return rows

    def __reduce__(self) -> tuple[Any, ...]:
        with self._guard.exclusive():
            self.require_intact()
            state: dict[str, Any] = {name: value for name, value in vars(self).items() if name not in ITS_OWN}
            state["_updated"] = copy.copy(self._updated)
            return type(self)._restored, (copy.deepcopy(self._redundancy), state)

    @classmethod
    def _restored(cls, redundancy: _repair.Redundancy, state: dict[str, Any]) -> Copied:
        bag = cls.__new__(cls)
        vars(bag).update(state, _guard=Guard(), _redundancy=redundancy, _table=redundancy.table, _mends=0, _mended={})
        return bag
