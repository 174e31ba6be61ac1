"""Parity rows: one xor of every G rows, from which any one of them can be made again.

::

    group g of n / G groups:   rows g, g + n/G, g + 2 n/G, ...      spread over the table, so that what strikes neighbours
    parity[g] = xor of them                                         (a page, a DIMM row) leaves each group at most one
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sedq._core import _syndromes

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

    def __init__(self, total: int, stride: int, group: int) -> None:
        self.group, self.total = group, total
        self.rows = np.zeros((-(-total // group), stride), np.uint8)
        self.crc = np.zeros(len(self.rows), np.uint32)

    def fill(self, table: Array, first: int, stop: int) -> None:
        """Add rows first .. stop of a table, which is gone through once from its beginning to its end."""
        for start in range(first - first % len(self.rows), stop, len(self.rows)):  # a row of each group
            begin, end = max(first, start), min(stop, start + len(self.rows))
            self.rows[begin - start : end - start] ^= table[begin:end]
        if stop == self.total:
            self.crc[:] = self._crcs(slice(None))

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

    def rebuild(self, number: int, stored: Callable[[int], Array]) -> Array:
        """Return row `number` made from its parity row and the others of its group, which should all be sound."""
        group = self.group_of(number)
        return self._xor(self.rows[group], (member for member in self.members(group) if member != number), stored)

    def _xor(self, row: Array, members: Iterable[int], stored: Callable[[int], Array]) -> Array:
        row = row.copy()
        for member in members:
            row ^= stored(member)
        return row

    def renew(self, group: int, stored: Callable[[int], Array]) -> None:
        """Make a parity row from its members, which must be sound."""
        row = self._demanded(group, stored)
        self.rows[group], self.crc[group] = row, zlib.crc32(row.data)

    def _demanded(self, group: int, stored: Callable[[int], Array]) -> Array:
        """Return the xor of a group's rows as they are."""
        return self._xor(np.zeros_like(self.rows[group]), self.members(group), stored)

    def disagreeing(self, table: Array, first: int, stop: int) -> list[int]:
        """Those of the groups first .. stop whose parity is not the xor of their rows, or not sound."""
        wrong = []
        for start, end in self._blocks(first, stop):
            differs = (self._made(table, start, end) != self.rows[start:end]).any(axis=1)
            differs |= self._crcs(slice(start, end)) != self.crc[start:end]
            wrong += [start + int(at) for at in np.flatnonzero(differs)]
        return wrong

    def agrees(self, group: int, stored: Callable[[int], Array]) -> bool:
        """Whether a parity row is sound, and the xor of its members."""
        return self.sound(group) and np.array_equal(self._demanded(group, stored), self.rows[group])

    def confirms(self, group: int, stored: Callable[[int], Array]) -> bool:
        """Whether the xor of a group's rows is its parity row, or has that one's CRC-32: then the rows are right."""
        row = self._demanded(group, stored)
        return np.array_equal(row, self.rows[group]) or zlib.crc32(row.data) == int(self.crc[group])

    def forget(self, group: int) -> None:
        """Make a parity row unsound: nothing can be rebuilt from it until it is renewed."""
        self.crc[group] = ~np.uint32(zlib.crc32(self.rows[group]))

    def update(self, numbers: Array, changes: Array) -> None:
        """Follow changes of rows, the xor of what they were and what they are; a parity row that was not sound stays so."""
        if not len(numbers):
            return
        order = np.argsort(numbers % len(self.rows), kind="stable")
        groups, starts = np.unique(numbers[order] % len(self.rows), return_index=True)
        sound = self._crcs(groups) == self.crc[groups]
        self.rows[groups] ^= np.bitwise_xor.reduceat(changes[order], starts, axis=0)
        self.crc[groups[sound]] = self._crcs(groups)[sound]

    def _crcs(self, groups: Array | slice) -> Array:
        """Return the CRC-32 of parity rows as they are."""
        rows = self.rows[groups]
        made = np.empty((len(rows), 2), np.uint32)
        _syndromes.row_syndromes(rows, rows.shape[1], made)
        return made[:, 1]
