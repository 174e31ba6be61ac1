"""Rows that something contradicts are restored; redundancy is compared, and made anew on request.

`sedq.embedding.witnesses` decides which bytes of a row are right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sedq import _validation
from sedq.embedding.kept import DIGEST
from sedq.embedding.locator import Locator
from sedq.embedding.outcomes import RebuildReport, Repairs
from sedq.embedding.parity import Parity
from sedq.embedding.sources import Originals
from sedq.embedding.witnesses import Judged

__all__ = ["DIGEST", "Redundancy", "begun", "take"]

Array = NDArray[Any]
Load = Callable[[list[int]], Originals]


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


class Redundancy(Judged):
    """What a table keeps beside its digests, how rows are restored from it, and how it follows changes."""

    def mend(self, doubted: list[int], load: Load) -> Repairs:
        """Restore rows that something contradicts; `load` gives rows of the source, which is asked only if need be."""
        done = Repairs(left=list(doubted))
        while self._settle(done, {}, unanimous=True):
            pass
        if not done.left:
            return done
        originals = load(done.left)
        while self._settle(done, originals.rows):
            pass
        done.reason = originals.refused if any(number in originals.rows for number in done.left) else originals.missing
        for number in done.left:
            done.evidence[number] = self.judge(number, originals.rows.get(number)).evidence
        if self.parity is not None:
            groups = sorted({self.parity.group_of(number) for number in done.left})
            wrong = [self.doubted(np.array(self.parity.members(group))) for group in groups]
            done.collisions = [rows for rows in wrong if len(rows) > 1]
        return done

    def _settle(self, done: Repairs, originals: dict[int, Array], *, unanimous: bool = False) -> bool:
        """Restore what can be decided now; whether a row was, which may decide others of its parity group."""
        before = len(done.left)
        for number in list(done.left):
            ruling = self.judge(number, originals.get(number))
            if ruling.made is None or (unanimous and not ruling.unanimous):
                continue
            done.left.remove(number)
            if ruling.how:  # else the stored row is right
                self._put(number, ruling.made)
                getattr(done, ruling.how).append(number)
        return len(done.left) < before

    def update(self, numbers: Array, rows: Array) -> None:
        """Store new rows with their digests, each number once, and follow them; the old ones may be corrupted."""
        bad = [] if self.parity is None else self.doubted(numbers)
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
            if self.doubted(np.array(self.parity.members(group))):
                self.parity.forget(group)
            else:
                self.parity.renew(group, self.stored)

    def contradicted(self, start: int, stop: int) -> list[int]:
        """Return those of rows start .. stop that fit their digests and not their CRC-32."""
        if self.locator is None:
            return []
        numbers = self.locator.disagreeing(self.table.rows, start, stop)
        wrong = [number for number in numbers if not self.locator.sound(number, self.stored(number))]
        bad = set(self.bad(np.array(wrong, np.int64)))
        return [number for number in wrong if number not in bad]

    def stale_sums(self, start: int, stop: int, left: list[int]) -> list[str]:
        """Name the locating sums that disagree with rows start .. stop, but for rows that are left."""
        if self.locator is None:
            return []
        disagreeing = self.locator.disagreeing(self.table.rows, start, stop)
        numbers = [
            number for number in disagreeing if number not in left and not self.locator.exact(number, self.stored(number))
        ]
        bad = set(self.bad(np.array(numbers, np.int64)))
        return [f"locating sums of row {number}" for number in numbers if number not in bad]

    def suspect_groups(self, start: int, stop: int, load: Load) -> tuple[list[list[int]], list[str]]:
        """Compare as large a part of the parity groups as start .. stop is of the rows.

        Returns the rows of each group one of which is wrong, although nothing but parity says so, and the names of parity
        rows that are wrong themselves.
        """
        doubtful: list[list[int]] = []
        stale: list[str] = []
        if self.parity is None:
            return doubtful, stale
        # whoever goes through all rows goes through all groups
        first, last = (at * len(self.parity.rows) // self.parity.total for at in (start, stop))
        for group in self.parity.disagreeing(self.table.rows, first, last):
            if self.parity.agrees(group, self.stored):
                continue
            members, sound = self.parity.members(group), self.parity.sound(group)
            if sound and self.doubted(np.array(members)):
                continue  # a row that is in doubt explains it
            rows = self._rows_that_explain(members, load) if sound and self.locator is None else []
            if rows:
                doubtful.append(rows)
            else:
                stale.append(f"parity of group {group}")
        return doubtful, stale

    def _rows_that_explain(self, members: list[int], load: Load) -> list[int]:
        """Return the rows of an inconsistent group whose digests fit what is stored and what parity demands.

        Rows that a source confirms are not among them; a rebuilt row that it confirms stands alone.
        """
        assert self.parity is not None
        rebuilt = {number: self.parity.rebuild(number, self.stored) for number in members}
        rows = [number for number in members if self._fits(number, rebuilt[number])]
        known = load(rows).rows if rows else {}
        confirmed = [number for number in rows if number in known and np.array_equal(known[number], rebuilt[number])]
        if len(confirmed) == 1:
            return confirmed
        return [number for number in rows if number not in known or not np.array_equal(known[number], self.stored(number))]

    def rebuild(self, numbers: list[int], load: Load) -> RebuildReport:
        """Make locating sums and parity of rows anew where a source or two witnesses confirm the rows."""
        done = RebuildReport()
        for number in numbers:
            if self.locator is not None and not self.locator.exact(number, self.stored(number)):
                refused = self._unconfirmed([number], load)
                if not refused:
                    self.locator.update(np.array([number]), self.stored(number)[None])
                done.add(f"locating sums of row {number}", refused)
        if self.parity is None:
            return done
        for group in sorted({self.parity.group_of(number) for number in numbers}):
            if self.parity.agrees(group, self.stored):
                continue
            refused = self._unconfirmed(self.parity.members(group), load)
            if not refused:
                self.parity.renew(group, self.stored)
            done.add(f"parity of group {group}", refused)
        return done

    def _unconfirmed(self, numbers: list[int], load: Load) -> str:
        """Say which of some rows neither a source nor two witnesses confirm; nothing if there is none."""
        originals = load(numbers).rows
        for number in numbers:
            stored, original = self.stored(number), originals.get(number)
            if not self._fits(number, stored):
                return f"row {number} does not fit its digest"
            names = {"digest"}
            if self.locator is not None and self.locator.sound(number, stored):
                names.add("locating sums")
            if self.parity is not None and self.parity.confirms(self.parity.group_of(number), self.stored):
                names.add("parity")
            if original is not None and not np.array_equal(original, stored):
                return f"the source contradicts row {number}"
            if original is None and len(names) < 2:
                return f"only its digest confirms row {number}, expected a source or two witnesses"
        return ""
