"""Parity rows: one xor of every G rows, from which any one of them can be made again.

::

    group g of n / G groups:   rows g, g + n/G, g + 2 n/G, ...      spread over the table, so that what strikes neighbours
    parity[g] = xor of them                                         (a page, a DIMM row) leaves each group at most one
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Parity"]

Array = NDArray[Any]
BLOCK = 2**18  # bytes of parity made at a time: they stay in cache while their members stream by


class Parity:
    """Parity rows of a table of bytes (n, stride).

    Attributes
    ----------
    group : int
        Most rows of a group, G.
    rows : ndarray of uint8, (groups, stride)
        The xor of each group's rows.
    crc : ndarray of uint32, (groups,)
        CRC-32 of each parity row: it has no digest that could tell whether it is sound.
    """

    def __init__(self, table: Array, group: int, kept: tuple[Array, Array] | None = None) -> None:
        self.group = group
        self.total = len(table)
        if kept is not None:
            self.rows, self.crc = kept
            return
        self.rows = np.zeros((-(-len(table) // group), table.shape[1]), np.uint8)
        for first, stop in self._blocks(0, len(self.rows)):
            self.rows[first:stop] = self._made(table, first, stop)
        self.crc = np.array([zlib.crc32(row) for row in self.rows], np.uint32)

    def _blocks(self, first: int, stop: int) -> Iterator[tuple[int, int]]:
        step = max(1, BLOCK // self.rows.shape[1])
        return ((at, min(at + step, stop)) for at in range(first, stop, step))

    def _made(self, table: Array, first: int, stop: int) -> Array:
        """Return parity rows first .. stop as the table demands: member k of neighbouring groups are neighbours."""
        block = np.zeros((stop - first, table.shape[1]), np.uint8)
        for start in range(0, self.total, len(self.rows)):
            members = table[start + first : min(start + stop, self.total)]
            block[: len(members)] ^= members
        return block

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.rows.nbytes + self.crc.nbytes

    def group_of(self, number: int) -> int:
        """Return the group of a row."""
        return number % len(self.rows)

    def members(self, group: int) -> list[int]:
        """Return the numbers of a group's rows."""
        return list(range(group, self.total, len(self.rows)))

    def sound(self, group: int) -> bool:
        """Whether a parity row is what was written."""
        return zlib.crc32(self.rows[group]) == int(self.crc[group])

    def rebuild(self, number: int, stored: Callable[[int], Array]) -> Array | None:
        """Return row `number` made from the others of its group, which must be sound; None if their parity is not."""
        group = self.group_of(number)
        if not self.sound(group):
            return None
        row: Array = self.rows[group].copy()
        for member in self.members(group):
            if member != number:
                row ^= stored(member)
        return row

    def renew(self, group: int, stored: Callable[[int], Array]) -> None:
        """Make a parity row from its members, which must be sound."""
        row = np.zeros_like(self.rows[group])
        for member in self.members(group):
            row ^= stored(member)
        self.rows[group], self.crc[group] = row, zlib.crc32(row)

    def disagreeing(self, table: Array, first: int, stop: int) -> list[int]:
        """Those of the groups first .. stop whose parity is not the xor of their rows, or not sound."""
        wrong = []
        for start, end in self._blocks(first, stop):
            differs = (self._made(table, start, end) != self.rows[start:end]).any(axis=1)
            wrong += [group for group in range(start, end) if differs[group - start] or not self.sound(group)]
        return wrong

    def agrees(self, group: int, stored: Callable[[int], Array]) -> bool:
        """Whether a parity row is sound, and the xor of its members."""
        row = self.rows[group].copy()
        for member in self.members(group):
            row ^= stored(member)
        return self.sound(group) and not row.any()

    def forget(self, group: int) -> None:
        """Make a parity row unsound: nothing can be rebuilt from it until it is renewed."""
        self.crc[group] = ~np.uint32(zlib.crc32(self.rows[group]))

    def update(self, number: int, before: Array, after: Array) -> None:
        """Follow a change of one row; a parity row that was not sound stays so."""
        group = self.group_of(number)
        sound = self.sound(group)
        self.rows[group] ^= before ^ after
        if sound:
            self.crc[group] = zlib.crc32(self.rows[group])
