"""A table with its redundancy, and the rows that stand for corrupted ones."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sedq._core import _rows
from sedq.embedding.locator import WORD, Locator
from sedq.embedding.parity import Parity

__all__ = ["DIGEST", "Kept", "Overlay"]

Array = NDArray[Any]
DIGEST = 8  # bytes at the end of a row of ours


class Overlay(UserDict[int, Array]):
    """Rows that stand for corrupted ones, by number; and a mark for every row there is, which says so without a search."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.marks: Array | None = None
        super().__init__()

    def __setitem__(self, number: int, row: Array) -> None:
        if self.marks is None:
            self.marks = np.zeros(self.total, np.bool_)
        super().__setitem__(number, row)
        self.marks[number] = True

    def __delitem__(self, number: int) -> None:
        super().__delitem__(number)
        if self.marks is not None:
            self.marks[number] = False

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return sum(row.nbytes for row in self.values()) + (0 if self.marks is None else self.marks.nbytes)

    def places(self, indices: Array) -> Array:
        """Where some indices ask for one of the rows."""
        return np.flatnonzero(self.marks[indices]) if self.marks is not None and self else np.empty(0, np.int64)


class Kept:
    """A table with what it keeps beside its digests.

    Attributes
    ----------
    overlay : Overlay
        Corrected rows of a table that is only read, by number: they stand for the rows of the table.
    """

    def __init__(self, table: _rows.Table, locator: Locator | None = None, parity: Parity | None = None) -> None:
        self.table, self.locator, self.parity = table, locator, parity
        self.overlay = Overlay(table.num_rows)

    @property
    def nbytes(self) -> int:
        """Bytes of memory, beyond the table and its digests."""
        parts = sum(part.nbytes for part in (self.locator, self.parity) if part is not None)
        return parts + self.overlay.nbytes

    def bad(self, numbers: Array) -> list[int]:
        """Those of some rows that don't fit their digests; of an overlaid row, what stands for it."""
        rows = _rows.bad_rows(self.table, np.ascontiguousarray(numbers))
        return self.still_bad(rows) if self.overlay else rows

    def still_bad(self, rows: list[int]) -> list[int]:
        """Rows without those that the overlay makes good; an overlaid row that rotted too is dropped."""
        bad = []
        for number in rows:
            row = self.overlay.get(number)
            if row is not None and self._fits(number, row):
                continue
            self.overlay.pop(number, None)
            bad.append(number)
        return bad

    def stored(self, number: int) -> Array:
        """Return a row as it is to be read."""
        row: Array = self.overlay[number] if number in self.overlay else self.table.rows[number]
        return row

    def readable(self, index: Array) -> tuple[_rows.Table, Array]:
        """Return a table that has the rows of the given numbers with the overlay in place, and their numbers in it."""
        if not self.overlay:
            return self.table, index
        numbers, renumbered = np.unique(index, return_inverse=True)
        rows = self.table.rows[numbers].copy()
        for at, number in enumerate(numbers.tolist()):
            if number in self.overlay:
                rows[at] = self.overlay[number]
        assert self.table.sidecar is not None  # only a table that is read has an overlay
        copy = self.table.like(rows, self.table.sidecar[numbers].copy())
        copy.digests[...] += np.arange(len(numbers), dtype=np.uint64) - numbers.astype(np.uint64)
        return copy, renumbered.astype(np.int64)

    def doubted(self, numbers: Array) -> list[int]:
        """Return those of some rows that their digest or their CRC-32 contradicts."""
        wrong = set(self.bad(numbers))
        if self.locator is not None:
            wrong.update(self.locator.contradicted(numbers, self._stored_rows(numbers)))
        return sorted(wrong)

    def _stored_rows(self, numbers: Array) -> Array:
        """Return rows as they are to be read, copied."""
        rows: Array = self.table.rows[numbers]
        for at in self.overlay.places(numbers):
            rows[at] = self.overlay[int(numbers[at])]
        return rows

    def digest_possible(self, number: int) -> bool:
        """Whether a row of this number could have the stored digest: one that could not was struck, and says nothing."""
        digest = int(self.table.digests[number])
        rest = (digest & (2**40 - 1)) - (number + 1)
        return digest >> 40 <= 255 * self.table.code_bytes and 0 <= rest <= 2 * (WORD - 1)

    @property
    def length(self) -> int:
        """Bytes of a row without its digest."""
        return int(self.table.rows.shape[1]) - (DIGEST if self.table.own else 0)

    def _put(self, number: int, one: _rows.Table) -> None:
        """Let a sealed row be what is read from now on."""
        if self.table.own:
            self.table.rows[number] = one.rows[0]
            return
        if not np.array_equal(self.stored(number), one.rows[0]):
            self.overlay[number] = one.rows[0]
        assert self.table.sidecar is not None
        assert one.sidecar is not None
        self.table.sidecar[number] = one.sidecar[0]

    def _fits(self, number: int, row: Array) -> bool:
        """Whether a row is what its stored digest and sums demand."""
        one = self.sealed(number, row)
        return np.array_equal(one.rows[0, : self.length], row[: self.length]) and self._agrees(number, one)

    def _agrees(self, number: int, one: _rows.Table) -> bool:
        """Whether a sealed row has the digest that is stored, and the sums beside it."""
        if self.table.sidecar is None:
            return bool(one.digests[0] == self.table.digests[number])
        assert one.sidecar is not None
        return np.array_equal(one.sidecar[0], self.table.sidecar[number])

    def sealed(self, number: int, row: Array) -> _rows.Table:
        """Return a table of one row, whose sums and digest are made from it."""
        sidecar = None if self.table.sidecar is None else self.table.sidecar[number : number + 1].copy()
        one = self.table.like(row[None].copy(), sidecar)
        one.write_digests(0, 1, number)
        return one
