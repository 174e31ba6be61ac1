"""Restore corrupted rows, follow updates, compare redundancy with the rows, and make redundancy anew on request.

All functions work on `ProtectedRows`. `sedq.embedding._witnesses` decides which bytes of a row are right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sedq.embedding._protected import ProtectedRows
from sedq.embedding._reports import RebuildReport, Repairs
from sedq.embedding._sources import Originals
from sedq.embedding._witnesses import judge

__all__ = ["contradicted", "mend", "rebuild", "stale_sums", "suspect_groups", "update"]

Array = NDArray[Any]
Load = Callable[[list[int]], Originals]


def mend(kept: ProtectedRows, doubted: list[int], load: Load) -> Repairs:
    """Restore rows that something contradicts; `load` gives rows of the source, which is asked only if need be."""
    done = Repairs(left=list(doubted))
    while _settle(kept, done, {}, unanimous=True):
        pass
    if not done.left:
        return done
    originals = load(done.left)
    while _settle(kept, done, originals.rows):
        pass
    done.reason = originals.refused if any(number in originals.rows for number in done.left) else originals.missing
    for number in done.left:
        done.evidence[number] = judge(kept, number, originals.rows.get(number)).evidence
    if kept.parity is not None:
        groups = sorted({kept.parity.group_of(number) for number in done.left})
        wrong = [kept.doubted(np.array(kept.parity.members(group))) for group in groups]
        done.collisions = [rows for rows in wrong if len(rows) > 1]
    return done


def _settle(kept: ProtectedRows, done: Repairs, originals: dict[int, Array], *, unanimous: bool = False) -> bool:
    """Restore what can be decided now; whether a row was, which may decide others of its parity group."""
    before = len(done.left)
    for number in list(done.left):
        ruling = judge(kept, number, originals.get(number))
        if ruling.made is None or (unanimous and not ruling.unanimous):
            continue
        done.left.remove(number)
        if ruling.how:  # else the stored row is right
            kept.put(number, ruling.made)
            getattr(done, ruling.how).append(number)
    return len(done.left) < before


def update(kept: ProtectedRows, numbers: Array, rows: Array) -> None:
    """Store new rows with their digests, each number once, and follow them; the old ones may be corrupted."""
    bad = [] if kept.parity is None else kept.doubted(numbers)
    changes = kept.data.rows[numbers] ^ rows
    kept.data.rows[numbers] = rows
    if kept.locator is not None:
        kept.locator.update(numbers, rows)
    if kept.parity is None:
        return
    known = ~np.isin(numbers, bad)
    kept.parity.update(numbers[known], changes[known])
    for group in {kept.parity.group_of(number) for number in bad}:
        # what the parity held of the old row nobody knows
        if kept.doubted(np.array(kept.parity.members(group))):
            kept.parity.forget(group)
        else:
            kept.parity.renew(group, kept.stored)


def contradicted(kept: ProtectedRows, start: int, stop: int) -> list[int]:
    """Return those of rows start .. stop that fit their digests and not their CRC-32."""
    if kept.locator is None:
        return []
    numbers = kept.locator.disagreeing(kept.data.rows, start, stop)
    wrong = [number for number in numbers if not kept.locator.sound(number, kept.stored(number))]
    bad = set(kept.bad(np.array(wrong, np.int64)))
    return [number for number in wrong if number not in bad]


def stale_sums(kept: ProtectedRows, start: int, stop: int, left: list[int]) -> list[str]:
    """Name the locating sums that disagree with rows start .. stop, but for rows that are left."""
    if kept.locator is None:
        return []
    disagreeing = kept.locator.disagreeing(kept.data.rows, start, stop)
    numbers = [
        number for number in disagreeing if number not in left and not kept.locator.exact(number, kept.stored(number))
    ]
    bad = set(kept.bad(np.array(numbers, np.int64)))
    return [f"locating sums of row {number}" for number in numbers if number not in bad]


def suspect_groups(kept: ProtectedRows, start: int, stop: int, load: Load) -> tuple[list[list[int]], list[str]]:
    """Compare as large a part of the parity groups as start .. stop is of the rows.

    Returns the rows of each group one of which is wrong, although nothing but parity says so, and the names of parity
    rows that are wrong themselves.
    """
    doubtful: list[list[int]] = []
    stale: list[str] = []
    if kept.parity is None:
        return doubtful, stale
    # whoever goes through all rows goes through all groups
    first, last = (at * len(kept.parity.rows) // kept.parity.total for at in (start, stop))
    for group in kept.parity.disagreeing(kept.data.rows, first, last):
        if kept.parity.agrees(group, kept.stored):
            continue
        members, sound = kept.parity.members(group), kept.parity.sound(group)
        if sound and kept.doubted(np.array(members)):
            continue  # a row that is in doubt explains it
        rows = _rows_that_explain(kept, members, load) if sound and kept.locator is None else []
        if rows:
            doubtful.append(rows)
        else:
            stale.append(f"parity of group {group}")
    return doubtful, stale


def _rows_that_explain(kept: ProtectedRows, members: list[int], load: Load) -> list[int]:
    """Return the rows of an inconsistent group whose digests fit what is stored and what parity demands.

    Rows that a source confirms are not among them; a rebuilt row that it confirms stands alone.
    """
    assert kept.parity is not None
    rebuilt = {number: kept.parity.rebuild(number, kept.stored) for number in members}
    rows = [number for number in members if kept.fits(number, rebuilt[number])]
    known = load(rows).rows if rows else {}
    confirmed = [number for number in rows if number in known and np.array_equal(known[number], rebuilt[number])]
    if len(confirmed) == 1:
        return confirmed
    return [number for number in rows if number not in known or not np.array_equal(known[number], kept.stored(number))]


def rebuild(kept: ProtectedRows, numbers: list[int], load: Load) -> RebuildReport:
    """Make locating sums and parity of rows anew where a source or two witnesses confirm the rows."""
    done = RebuildReport()
    for number in numbers:
        if kept.locator is not None and not kept.locator.exact(number, kept.stored(number)):
            refused = _unconfirmed(kept, [number], load)
            if not refused:
                kept.locator.update(np.array([number]), kept.stored(number)[None])
            done.add(f"locating sums of row {number}", refused)
    if kept.parity is None:
        return done
    for group in sorted({kept.parity.group_of(number) for number in numbers}):
        if kept.parity.agrees(group, kept.stored):
            continue
        refused = _unconfirmed(kept, kept.parity.members(group), load)
        if not refused:
            kept.parity.renew(group, kept.stored)
        done.add(f"parity of group {group}", refused)
    return done


def _unconfirmed(kept: ProtectedRows, numbers: list[int], load: Load) -> str:
    """Name the rows that neither a source nor two witnesses confirm; return an empty text if all are confirmed."""
    originals = load(numbers).rows
    for number in numbers:
        stored, original = kept.stored(number), originals.get(number)
        if not kept.fits(number, stored):
            return f"row {number} does not fit its digest"
        names = {"digest"}
        if kept.locator is not None and kept.locator.sound(number, stored):
            names.add("locating sums")
        if kept.parity is not None and kept.parity.confirms(kept.parity.group_of(number), kept.stored):
            names.add("parity")
        if original is not None and not np.array_equal(original, stored):
            return f"the source contradicts row {number}"
        if original is None and len(names) < 2:
            return f"only its digest confirms row {number}, expected a source or two witnesses"
    return ""
