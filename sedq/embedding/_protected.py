"""Rows with their digests, locating sums and parity, and the overlay of corrected rows over a table that is only read."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sedq import _validation
from sedq._core import _rows
from sedq.embedding._locator import WORD, Locator
from sedq.embedding._parity import Parity

__all__ = ["DIGEST", "Overlay", "ProtectedRows", "fill", "new_redundancy"]

Array = NDArray[Any]
DIGEST = 8  # bytes at the end of a row of ours


def new_redundancy(
    rows: Array, locate: bool, parity: int | None, *, digest: int = 0
) -> tuple[Locator | None, Parity | None]:
    """Return locating sums and parity for rows, as asked for; both are empty until `fill` has seen the rows.

    The last `digest` bytes of a row are its digest, which the locating sums leave out.
    """
    _validation.boolean("locate", locate)
    if parity is not None:
        _validation.integer("parity", parity, 1, 2**31)
    locator = Locator(len(rows), rows.shape[1] - digest) if locate else None
    return locator, Parity(len(rows), rows.shape[1], parity) if parity else None


def fill(redundancy: tuple[Locator | None, Parity | None], rows: Array, first: int, stop: int) -> None:
    """Compute locating sums and parity of rows first .. stop."""
    for part in redundancy:
        if part is not None:
            part.fill(rows, first, stop)


class Overlay(UserDict[int, Array]):
    """Corrected rows by number, with one flag per row of the table, so that a look-up needs no search."""

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
        """Return the positions of indices that name a row of the overlay."""
        return np.flatnonzero(self.marks[indices]) if self.marks is not None and self else np.empty(0, np.int64)


class ProtectedRows:
    """Rows with their digests, and the redundancy from which they are restored.

    Attributes
    ----------
    data : _rows.Table
        Rows and digests, as the compiled loops read them.
    locator : Locator or None
        Locating sums of each row.
    parity : Parity or None
        Parity of groups of rows.
    overlay : Overlay
        Corrected rows of a table that is only read, by number. They replace the stored rows.
    """

    def __init__(self, data: _rows.Table, locator: Locator | None = None, parity: Parity | None = None) -> None:
        self.data, self.locator, self.parity = data, locator, parity
        self.overlay = Overlay(data.num_rows)

    @property
    def nbytes(self) -> int:
        """Bytes of memory of the redundancy and the overlay."""
        parts = sum(part.nbytes for part in (self.locator, self.parity) if part is not None)
        return parts + self.overlay.nbytes

    def bad(self, numbers: Array) -> list[int]:
        """Return those of some rows that don't fit their digests. An overlaid row is judged by its replacement."""
        rows = _rows.bad_rows(self.data, np.ascontiguousarray(numbers))
        return self._still_bad(rows) if self.overlay else rows

    def _still_bad(self, rows: list[int]) -> list[int]:
        """Return rows that the overlay does not replace. A corrupted row of the overlay is dropped from it."""
        bad = []
        for number in rows:
            row = self.overlay.get(number)
            if row is not None and self.fits(number, row):
                continue
            self.overlay.pop(number, None)
            bad.append(number)
        return bad

    def stored(self, number: int) -> Array:
        """Return a row as calls read it: the overlay's if it has one, else the stored row."""
        row: Array = self.overlay[number] if number in self.overlay else self.data.rows[number]
        return row

    def readable(self, index: Array) -> tuple[_rows.Table, Array]:
        """Return a table that has the rows of the given numbers with the overlay in place, and their numbers in it."""
        if not self.overlay:
            return self.data, index
        numbers, renumbered = np.unique(index, return_inverse=True)
        rows = self.data.rows[numbers].copy()
        for at, number in enumerate(numbers.tolist()):
            if number in self.overlay:
                rows[at] = self.overlay[number]
        assert self.data.sidecar is not None  # only a table that is read has an overlay
        copy = self.data.like(rows, self.data.sidecar[numbers].copy())
        copy.digests[...] += np.arange(len(numbers), dtype=np.uint64) - numbers.astype(np.uint64)
        return copy, renumbered.astype(np.int64)

    def doubted(self, numbers: Array) -> list[int]:
        """Return those of some rows that their digest or their CRC-32 contradicts."""
        wrong = set(self.bad(numbers))
        if self.locator is not None:
            wrong.update(self.locator.contradicted(numbers, self._stored_rows(numbers)))
        return sorted(wrong)

    def _stored_rows(self, numbers: Array) -> Array:
        """Return copies of rows as calls read them."""
        rows: Array = self.data.rows[numbers]
        for at in self.overlay.places(numbers):
            rows[at] = self.overlay[int(numbers[at])]
        return rows

    def digest_possible(self, number: int) -> bool:
        """Whether the stored digest of a row is one that any row could have. If not, the digest itself is corrupted."""
        digest = int(self.data.digests[number])
        rest = (digest & (2**40 - 1)) - (number + 1)
        return digest >> 40 <= 255 * self.data.code_bytes and 0 <= rest <= 2 * (WORD - 1)

    @property
    def length(self) -> int:
        """Bytes of a row without its digest."""
        return int(self.data.rows.shape[1]) - (DIGEST if self.data.own else 0)

    def put(self, number: int, one: _rows.Table) -> None:
        """Store a sealed row: in the table, or in the overlay of a table that is only read."""
        if self.data.own:
            self.data.rows[number] = one.rows[0]
            return
        if not np.array_equal(self.stored(number), one.rows[0]):
            self.overlay[number] = one.rows[0]
        assert self.data.sidecar is not None
        assert one.sidecar is not None
        self.data.sidecar[number] = one.sidecar[0]

    def fits(self, number: int, row: Array) -> bool:
        """Whether a row fits its stored digest and sums."""
        one = self.sealed(number, row)
        return np.array_equal(one.rows[0, : self.length], row[: self.length]) and self.agrees(number, one)

    def agrees(self, number: int, one: _rows.Table) -> bool:
        """Whether a sealed row has the digest that is stored, and the sums beside it."""
        if self.data.sidecar is None:
            return bool(one.digests[0] == self.data.digests[number])
        assert one.sidecar is not None
        return np.array_equal(one.sidecar[0], self.data.sidecar[number])

    def sealed(self, number: int, row: Array) -> _rows.Table:
        """Return a table of one row, whose sums and digest are made from it."""
        sidecar = None if self.data.sidecar is None else self.data.sidecar[number : number + 1].copy()
        one = self.data.like(row[None].copy(), sidecar)
        one.write_digests(0, 1, number)
        return one
