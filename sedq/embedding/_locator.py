"""Locating sums: two words for each row, which name the one byte that changed, and its value."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sedq._core import _syndromes

__all__ = ["WORD", "Locator"]

Array = NDArray[Any]
WORD = 2**32


class Locator:
    """Two words for every row, read when its digest doesn't fit, and by a scrub that compares redundancy.

    Attributes
    ----------
    syndromes : ndarray of uint32, (rows, 2)
        Sum of (j + 1) times byte j, modulo 2^32, and CRC-32, over the first `length` bytes of a row.
    """

    def __init__(self, total: int, length: int) -> None:
        self.length = length
        self.syndromes = np.zeros((total, 2), np.uint32)

    def fill(self, table: Array, first: int, stop: int) -> None:
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
        change = (int(self._made(row[None])[0, 0]) - weighted + WORD // 2) % WORD - WORD // 2
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
        """Return those of rows start .. stop that don't fit their syndromes."""
        wrong = (self._made(table[start:stop]) != self.syndromes[start:stop]).any(axis=1)
        return [start + int(at) for at in np.flatnonzero(wrong)]

    def contradicted(self, numbers: Array, rows: Array) -> list[int]:
        """Return those of some rows whose CRC-32 doesn't fit."""
        return [int(number) for number in numbers[self._made(rows)[:, 1] != self.syndromes[numbers, 1]]]

    def exact(self, number: int, row: Array) -> bool:
        """Whether both words of a row are those that it demands."""
        return bool((self._made(row[None])[0] == self.syndromes[number]).all())

    def _made(self, rows: Array) -> Array:
        """Return the syndromes of rows as they are."""
        now = np.empty((len(rows), 2), np.uint32)
        _syndromes.row_syndromes(rows, self.length, now)
        return now

    def update(self, numbers: Array, rows: Array) -> None:
        """Follow changes of rows."""
        self.syndromes[numbers] = self._made(rows)


def _crc(data: Array) -> int:
    return zlib.crc32(data.data)
