"""Corrupted rows of a table at rest: where the error is, and what the row was.

::

    bad row -> located:   position-weighted sum and CRC-32 of the row name the one byte that changed, and its value
            -> parity:    the others of its group and their xor give the whole row
            -> source:    what the table was made from
            -> left

Whatever a row is restored from, its digest must fit afterwards, or it stays as it was.
"""

from __future__ import annotations

import zlib
from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sedq import _validation
from sedq._core import _rows, _syndromes
from sedq.embedding.parity import Parity

__all__ = ["DIGEST", "Locator", "Redundancy", "Repairs", "begun", "take"]

Array = NDArray[Any]
WORD = 2**32
NAMED = 64  # most rows that a message names
DIGEST = 8  # bytes at the end of a row of ours


class Locator:
    """Two words for every row, read only when its digest doesn't fit.

    Attributes
    ----------
    syndromes : ndarray of uint32, (rows, 2)
        Sum of (j + 1) times byte j, modulo 2^32, and CRC-32, over the first `length` bytes of a row.
    """

    def __init__(self, total: int, length: int) -> None:
        self.length = length
        self.syndromes = np.zeros((total, 2), np.uint32)

    def take(self, table: Array, first: int, stop: int) -> None:
        """Make the syndromes of rows first .. stop."""
        _syndromes.row_syndromes(table[first:stop], self.length, self.syndromes[first:stop])

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.syndromes.nbytes

    def sound(self, number: int, row: Array) -> bool:
        """Whether a row is what was written, whatever its digest says."""
        return _crc(row[: self.length]) == int(self.syndromes[number, 1])

    def correct(self, number: int, row: Array) -> Array | None:
        """Return the row with its one wrong byte put right; None if more is wrong.

        A byte j that is off by e changes the weighted sum by (j + 1) e: the divisors of the change are the candidates, and
        the CRC-32 confirms one.
        """
        weighted, crc = self.syndromes[number].tolist()
        now = np.empty((1, 2), np.uint32)
        _syndromes.row_syndromes(row[None], self.length, now)
        change = (int(now[0, 0]) - weighted + WORD // 2) % WORD - WORD // 2
        fixed = row.copy()
        for error in range(1, 256) if change else ():
            position, remainder = divmod(abs(change), error)
            if remainder or position > self.length:
                continue
            right = int(row[position - 1]) - (error if change > 0 else -error)
            if not 0 <= right <= 255:
                continue
            fixed[position - 1] = right
            if _crc(fixed[: self.length]) == crc:
                return fixed
            fixed[position - 1] = row[position - 1]
        return None

    def disagreeing(self, table: Array, start: int, stop: int) -> list[int]:
        """Those of rows start .. stop that don't fit their syndromes."""
        now = np.empty((stop - start, 2), np.uint32)
        _syndromes.row_syndromes(table[start:stop], self.length, now)
        wrong = (now != self.syndromes[start:stop]).any(axis=1)
        return [start + int(at) for at in np.flatnonzero(wrong)]

    def update(self, numbers: Array, rows: Array) -> None:
        """Follow changes of rows."""
        now = np.empty((len(rows), 2), np.uint32)
        _syndromes.row_syndromes(rows, self.length, now)
        self.syndromes[numbers] = now


@dataclass
class Repairs:
    """Row numbers by what restored them.

    Attributes
    ----------
    corrected : list of int
        One byte was located and corrected, or the digest was what was wrong.
    rebuilt : list of int
        Made again from the parity of their group.
    reloaded : list of int
        Taken from the source.
    left : list of int
        Still corrupted.
    collisions : list of list of int
        Rows left that share a parity group with one another.
    reason : str
        Why rows that are left were not reloaded.
    """

    corrected: list[int] = field(default_factory=list)
    rebuilt: list[int] = field(default_factory=list)
    reloaded: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    collisions: list[list[int]] = field(default_factory=list)
    reason: str = ""

    def __iadd__(self, other: Repairs) -> Repairs:
        self.reason = other.reason or self.reason
        for name in ("corrected", "rebuilt", "reloaded", "left", "collisions"):
            getattr(self, name).extend(getattr(other, name))
        return self

    def restored(self) -> list[int]:
        """Rows that are as they were."""
        return self.corrected + self.rebuilt + self.reloaded

    def counts(self) -> dict[str, int]:
        """How many rows were restored, by what."""
        return {how: len(getattr(self, how)) for how in ("corrected", "rebuilt", "reloaded") if getattr(self, how)}

    def __str__(self) -> str:
        named = (("corrected", self.corrected), ("rebuilt", self.rebuilt), ("reloaded", self.reloaded))
        return "; ".join(f"rows {_listed(sorted(rows))} {how}" for how, rows in named if rows)

    def why_left(self, separator: str = ",") -> str:
        """Say which rows are left, which of them parity could not tell apart, and why they were not reloaded, if any are."""
        if not self.left:
            return ""
        shared = "".join(f", {rows} in one parity group" for rows in self.collisions[:NAMED])
        return f"rows {_listed(self.left)}{shared}" + (f"{separator} {self.reason}" if self.reason else "")


def _listed(rows: list[int]) -> str:
    more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
    return f"{rows[:NAMED]}{more}"


def _crc(data: Array) -> int:
    return zlib.crc32(data.data)


def begun(rows: Array, locate: bool, parity: int | None, *, digest: int = 0) -> tuple[Locator | None, Parity | None]:
    """Return what rows are to be restored from, which takes them next; they end with so many bytes of digest."""
    _validation.boolean("locate", locate)
    if parity is not None:
        _validation.integer("parity", parity, 1, 2**31)
    locator = Locator(len(rows), rows.shape[1] - digest) if locate else None
    return locator, Parity(len(rows), rows.shape[1], parity) if parity else None


def take(kept: tuple[Locator | None, Parity | None], rows: Array, first: int, stop: int) -> None:
    """Follow rows first .. stop."""
    for part in kept:
        if part is not None:
            part.take(rows, first, stop)


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


class Redundancy:
    """What a table keeps beside its digests, and how rows are restored from it.

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

    def mend(self, bad: list[int], reload: Callable[[list[int]], tuple[list[int], str]]) -> Repairs:
        """Restore bad rows; `reload` restores from the source, and says which rows and why not the others."""
        done = Repairs(left=list(bad))
        self._locate(done)
        self._rebuild(done)
        if done.left:
            done.reloaded, done.reason = reload(done.left)
        done.left = [number for number in done.left if number not in set(done.reloaded)]
        if done.reloaded and done.left:  # fewer are bad in their groups now
            self._rebuild(done)
        return done

    def _locate(self, done: Repairs) -> None:
        if self.locator is None:
            return
        for number in list(done.left):
            row = self.stored(number)
            if self.locator.sound(number, row):
                self._seal(number)
            else:
                fixed = self.locator.correct(number, row)
                if fixed is None or not self.put(number, fixed):
                    continue
            done.corrected.append(number)
            done.left.remove(number)

    def _rebuild(self, done: Repairs) -> None:
        done.collisions = []
        if self.parity is None:
            return
        for number in list(done.left):
            bad = self.bad(np.array(self.parity.members(self.parity.group_of(number))))
            if len(bad) > 1:
                if bad not in done.collisions:
                    done.collisions.append(bad)
                continue
            row = self.parity.rebuild(number, self.stored)
            if row is None:
                continue
            if not self.put(number, row):
                if self.table.own or not np.array_equal(row, self.stored(number)):
                    continue
                self._seal(number)  # row and parity agree: it was the digest beside them
            done.rebuilt.append(number)
            done.left.remove(number)

    def put(self, number: int, row: Array) -> bool:
        """Let a row be what is read from now on, if its digest fits."""
        if not self._fits(number, row):
            return False
        if self.table.own:
            self.table.rows[number] = row
        else:
            self.overlay[number] = row
        return True

    def _fits(self, number: int, row: Array) -> bool:
        one = self.table.like(row[None], self._beside(number))
        return int(_rows.digests_of(one)[0]) + number == int(one.digests[0])

    def _beside(self, number: int) -> Array | None:
        """Return a copy of what a sidecar has for a row."""
        return None if self.table.sidecar is None else self.table.sidecar[number : number + 1].copy()

    def sealed(self, number: int, row: Array) -> _rows.Table:
        """Return a table of one row, whose sums and digest are made from it."""
        one = self.table.like(row[None].copy(), self._beside(number))
        one.write_digests(0, 1, number)
        return one

    def _seal(self, number: int) -> None:
        """Make the digest of a row anew: it was what was wrong."""
        one = self.sealed(number, self.stored(number))
        if self.table.own:
            self.table.rows[number] = one.rows[0]
        else:
            assert self.table.sidecar is not None
            assert one.sidecar is not None
            self.table.sidecar[number] = one.sidecar[0]

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

    def update(self, numbers: Array, rows: Array) -> None:
        """Store new rows with their digests, each number once, and follow them; the old ones may be corrupted."""
        bad = [] if self.parity is None else self.bad(numbers)
        changes = self.table.rows[numbers] ^ rows
        self.table.rows[numbers] = rows
        if self.locator is not None:
            self.locator.update(numbers, rows)
        if self.parity is None:
            return
        known = ~np.isin(numbers, bad)
        self.parity.update(numbers[known], changes[known])
        for group in {self.parity.group_of(number) for number in bad}:
            # what the parity held of the old row nobody knows
            if self.bad(np.array(self.parity.members(group))):
                self.parity.forget(group)
            else:
                self.parity.renew(group, self.stored)

    def refresh(self, start: int, stop: int, *, repair: bool = True) -> list[str]:
        """Make anew what disagrees with sound rows: locating sums of rows start .. stop, and parity of as many groups."""
        stale = []
        if self.locator is not None:
            for number in self.locator.disagreeing(self.table.rows, start, stop):
                if number not in self.overlay and not self.bad(np.array([number])):
                    if repair:
                        self.locator.update(np.array([number]), self.stored(number)[None])
                    stale.append(f"locating sums of row {number}")
        if self.parity is None:
            return stale
        # as large a part of the groups as of the rows: whoever goes through all rows goes through all groups
        first, last = (at * len(self.parity.rows) // self.parity.total for at in (start, stop))
        for group in self.parity.disagreeing(self.table.rows, first, last):
            members = np.array(self.parity.members(group))
            if not self.parity.agrees(group, self.stored) and not self.bad(members):
                if repair:
                    self.parity.renew(group, self.stored)
                stale.append(f"parity of group {group}")
        return stale
