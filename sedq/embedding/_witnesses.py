"""Rows of a table that something contradicts: which bytes are right, as the independent witnesses say.

::

    witnesses    digest           beside the row: a sum of its bytes, blind to their order
                 locating sums    a position-weighted sum and a CRC-32
                 parity           the xor of the row's group, if its CRC-32 fits and no other row of the group is in doubt
                 source           what the table was made from
    candidates   the stored row, the row with one located byte corrected, the row rebuilt from parity, the row of the source

A candidate is kept if more witnesses confirm it than contradict it, and if more confirm it than any other candidate.
Otherwise the row is left as it is, and reported. Redundancy is never made from a row that something contradicts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sedq._core import _rows
from sedq.embedding._protected import ProtectedRows

__all__ = ["Ruling", "judge"]

Array = NDArray[Any]
# how a report names the repair of a row whose bytes are right, by the witness that confirms them
HOW = {"locating sums": "corrected", "parity": "rebuilt", "source": "reloaded"}


@dataclass
class Ruling:
    """What the witnesses of a row decide.

    Attributes
    ----------
    made : Table or None
        The row that they confirm, with its digest; None if they don't decide.
    how : str
        What restores it, as in `Repairs`; empty if the stored row is right as it is.
    unanimous : bool
        Whether none of them contradicts it.
    evidence : str
        Which of them confirm and which contradict the stored row.
    """

    made: _rows.Table | None = None
    how: str = ""
    unanimous: bool = False
    evidence: str = ""


def judge(kept: ProtectedRows, number: int, original: Array | None = None) -> Ruling:
    """Decide, without writing anything, which bytes of a row are right; `original` is the row of the source."""
    stored = kept.stored(number)
    witnesses = _witnesses(kept, number, original)
    names = {True: [name for name, fits in witnesses.items() if fits(kept.sealed(number, stored))]}
    names[False] = [name for name in witnesses if name not in names[True]]
    fitting = kept.fits(number, stored)
    tally: list[tuple[int, Ruling]] = []
    for how, row in _candidates(kept, number, stored, original):
        one = kept.sealed(number, row)
        if not np.array_equal(one.rows[0, : kept.length], row[: kept.length]):
            continue  # its own words contradict it
        confirm = [name for name, fits in witnesses.items() if fits(one)]
        independent = set(confirm) - {"digest"}
        if fitting and "digest" not in confirm:
            continue  # a digest that fits the stored row was not struck
        if not independent and not (fitting and how == "stored"):
            continue  # a digest alone is too weak for other bytes than the stored ones
        # if the digest doesn't fit, there may be a second copy: the stored bytes, or the digest rebuilt with the row
        twice = not fitting and (how == "stored" or (kept.data.own and "parity" in confirm))
        votes, against = len(confirm) + twice, len(witnesses) - len(confirm)
        by = next((HOW[name] for name in HOW if name in confirm), "") if how == "stored" else how
        accepted = one if votes > against else None
        tally.append((votes, Ruling(accepted, "" if fitting and how == "stored" else by, against == 0)))
    most = max((votes for votes, _ in tally), default=0)
    best = [ruling for votes, ruling in tally if votes == most]
    ruling = best[0] if len(best) == 1 else Ruling()
    ruling.evidence = _evidence(names[True], names[False])
    return ruling


def _candidates(kept: ProtectedRows, number: int, stored: Array, original: Array | None) -> list[tuple[str, Array]]:
    """Return the different rows that a row may have been, and what made them."""
    located = None if kept.locator is None else kept.locator.correct(number, stored)
    rebuilt = None if kept.parity is None else kept.parity.rebuild(number, kept.stored)
    made = {"stored": stored, "corrected": located, "rebuilt": rebuilt, "reloaded": original}
    different: dict[bytes, tuple[str, Array]] = {}
    for how, row in made.items():
        if row is not None:
            different.setdefault(row[: kept.length].tobytes(), (how, row))
    return list(different.values())


def _witnesses(kept: ProtectedRows, number: int, original: Array | None) -> dict[str, Callable[[_rows.Table], bool]]:
    """Return who can testify about a row, each as a test of a candidate that was sealed."""
    witnesses: dict[str, Callable[[_rows.Table], bool]] = {}
    if kept.digest_possible(number):
        witnesses["digest"] = lambda one: kept.agrees(number, one)
    if kept.locator is not None:
        locator = kept.locator
        witnesses["locating sums"] = lambda one: locator.sound(number, one.rows[0])
    rebuilt = _trusted(kept, number)
    if rebuilt is not None:
        witnesses["parity"] = lambda one: np.array_equal(one.rows[0], rebuilt)
    if original is not None:
        witnesses["source"] = lambda one: np.array_equal(one.rows[0, : kept.length], original[: kept.length])
    return witnesses


def _trusted(kept: ProtectedRows, number: int) -> Array | None:
    """Return a row as parity rebuilds it; None if the parity row or another row of the group is in doubt."""
    if kept.parity is None or not kept.parity.sound(kept.parity.group_of(number)):
        return None
    others = [member for member in kept.parity.members(kept.parity.group_of(number)) if member != number]
    if kept.doubted(np.array(others, np.int64)):
        return None
    row = kept.parity.rebuild(number, kept.stored)
    return row if np.array_equal(kept.sealed(number, row).rows[0], row) else None


def _evidence(confirm: list[str], contradict: list[str]) -> str:
    """Say in a few words who confirms a row and who contradicts it."""
    parts = (("fits its ", confirm), ("does not fit its ", contradict))
    return ", but ".join(start + " and ".join(names) for start, names in parts if names)
