"""Where corrupted rows are restored from: each gives fused rows of given numbers, in the layout of its bag."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from numpy.typing import NDArray

from sedq.embedding import layouts

__all__ = ["FloatSource", "FusedSource", "Originals", "Source"]

Array = NDArray[Any]
# gives the original fused rows of the given numbers
Source = Callable[[Array], Array]


class Originals(NamedTuple):
    """What a source gives of some rows.

    Attributes
    ----------
    rows : dict of int to ndarray
        Rows of ours, by number.
    missing : str
        Why the other rows are not there.
    refused : str
        What to say of a row that is there and is not taken.
    """

    rows: dict[int, Array]
    missing: str
    refused: str


class FloatSource:
    """Restores rows from the float table they were quantised from."""

    def __repr__(self) -> str:
        return "the float table"

    def __init__(self, weight: Array, bits: int = 8) -> None:
        self.weight, self.bits = weight, bits

    def __call__(self, rows: Array) -> Array:
        """Return fused rows of the given numbers."""
        return layouts.quantize_rows(self.weight[rows], self.bits)


class FusedSource:
    """Restores rows from the fused rows they were taken from."""

    def __repr__(self) -> str:
        return "the fused rows"

    def __init__(self, rows: Array) -> None:
        self.rows = rows

    def __call__(self, rows: Array) -> Array:
        """Return fused rows of the given numbers."""
        return self.rows[rows]
