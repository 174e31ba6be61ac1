"""A table at rest: looked over, restored, changed.

What writes a row holds the guard; who reads one meanwhile reads it again. See `sedq.embedding._guard`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sedq import _config, _validation, detection
from sedq._core import _dispatch, _rows
from sedq.embedding import _formats
from sedq.embedding._guard import Guard
from sedq.embedding._outcomes import RebuildReport, Repairs, ScrubReport
from sedq.embedding._repair import Redundancy
from sedq.embedding._requests import Pruning
from sedq.embedding._sources import Originals, Source
from sedq.exceptions import ModelFileError, SoftErrorDetected

__all__ = ["Maintained", "ScrubReport"]

Array = NDArray[Any]
SCRUBBED = 2**16  # rows looked over between two looks at whether a writer came by
UPDATED = 1024  # rows written while readers wait
RECORDED = 64  # most events of one call


class Maintained:
    """The half of an EmbeddingBag that looks after its rows."""

    shape: tuple[int, int]
    bits: int
    _layout: str
    _table: _rows.Table
    _source: Source | None
    _guard: Guard
    _redundancy: Redundancy
    _pruning: Pruning | None
    _updated: Array | None  # rows that the source doesn't know, one flag each
    _mends: int  # how often rows were mended
    _mended: dict[int, int]  # rows that were, and the number of the last time

    def _maintain(self, source: Source | None, redundancy: Redundancy) -> None:
        self._source, self._updated = source, None
        self._mends, self._mended = 0, {}
        self._guard = Guard()
        self._redundancy = redundancy

    def _reload_from(self, source: Source, version: int) -> None:
        """Take another source for the one there is; it has the rows as they were at a version. For models that are saved."""
        with self._guard.exclusive():
            if self.version == version:  # else what was updated before or since then stays unknown to it
                self._updated = None
            self._source = source

    @property
    def version(self) -> int:
        """Changes with every write to the rows, repairs included; odd while one is going on."""
        return self._guard.version

    @property
    def nbytes(self) -> int:
        """Bytes of memory: rows with their digests, locating sums and parity rows; without a source that is kept."""
        sidecar = 0 if self._table.sidecar is None else self._table.sidecar.nbytes
        with self._guard.exclusive():  # the overlay may grow
            return int(self._table.rows.nbytes) + sidecar + self._redundancy.nbytes

    def bad_rows(self, rows: ArrayLike | None = None) -> list[int]:
        """Return the numbers of rows, of those given or of all, that don't fit their digests.

        Examples
        --------
        >>> import numpy as np
        >>> import sedq
        >>> bag = sedq.EmbeddingBag.from_float(np.ones((3, 4), dtype=np.float32))
        >>> bag.bad_rows()
        []
        """
        return self._guard.read(self._redundancy.bad, self._row_numbers(rows))

    def _row_numbers(self, rows: ArrayLike | None, name: str = "rows") -> Array:
        """Return the row numbers given, or all, as int64."""
        if rows is None:
            return np.arange(self.shape[0])
        numbers = _validation.integers(name, rows, (0, 1, 2)).reshape(-1).astype(np.int64)
        for number in numbers[(numbers < 0) | (numbers >= self.shape[0])]:
            raise IndexError(f"{name}: got {number}, expected 0 to {self.shape[0] - 1}")
        return numbers

    def restore(self, rows: ArrayLike) -> list[int]:
        """Reload rows from the source, where one is kept, and return those whose digests then fit.

        Parameters
        ----------
        rows : array_like of int
            Row numbers.

        Returns
        -------
        list of int
            Rows restored; empty without a source. Rows that `update_rows` has changed are not in it.
        """
        numbers = self._row_numbers(rows)
        with self._guard.writing():
            bad = self._redundancy.bad(np.unique(numbers))
            originals = self._originals(numbers.tolist())
            restored = [number for number in numbers.tolist() if self._reload(number, originals)]
            mended = set(restored)
            left = [number for number in bad if number not in mended]
            reason = originals.refused if any(number in originals.rows for number in left) else originals.missing
            done = Repairs(reloaded=[number for number in bad if number in mended], left=left, reason=reason)
            self._note(done)
        self._recorded("restore", bad, str(done), done.why_left(), "none")
        return restored

    def _reload(self, number: int, originals: Originals) -> bool:
        """Store a row of the source, if it agrees with what is stored, or if that can't be right."""
        row, stored = originals.rows.get(number), self._table.rows[number]
        # a source may have changed, or been struck too: it must agree with the digest, or with all but the digest
        if row is None or (
            self._redundancy.digest_possible(number)
            and not np.array_equal(row[-8:], stored[-8:])
            and not np.array_equal(row[:-8], stored[:-8])
        ):
            return False
        stored[...] = row
        return True

    def _originals(self, rows: list[int]) -> Originals:
        """Return rows as the source has them, but for those that were updated since."""
        if self._source is None or not self._table.own:
            return Originals({}, "there is no source to reload them from", "")
        said = f"could not be reloaded from {self._source!r}: "
        known = rows if self._updated is None else [number for number in rows if not self._updated[number]]
        missing, made = "they were updated since", dict[int, Array]()
        if known:
            try:
                fused = self._source(np.array(known))
            except (OSError, ModelFileError, IndexError) as error:  # the source is gone, or not what it was
                text = getattr(error, "strerror", None) or str(error)
                missing, fused = text.removeprefix(f"{self._source!r}: "), None
            if fused is not None and fused.shape[1:] != (self._geometry().width,):
                missing, fused = f"its rows are of {fused.shape[1:]} bytes, expected ({self._geometry().width},)", None
            if fused is not None:
                made = {number: self._sealed(number, row) for number, row in zip(known, fused, strict=True)}
        return Originals(made, said + missing, f"{said}what it has does not fit their digests")

    def _geometry(self) -> _formats.Geometry:
        return _formats.geometry(self._layout, self.bits, self.shape[1])

    def _sealed(self, number: int, fused: Array) -> Array:
        """Return a row of ours from a fused one of the bag's layout."""
        row: Array = _formats.add_digests(fused[None], self.shape[1], number, bits=self.bits, layout=self._layout)[0]
        return row

    def _mend(self, bad: list[int]) -> Repairs:
        """Restore bad rows by whatever there is."""
        if not bad:
            return Repairs()
        with self._guard.writing():
            done = self._redundancy.mend(bad, self._originals)
            self._note(done)
        return done

    def _note(self, done: Repairs) -> None:
        """Count what was restored, and remember it for the calls that read it before."""
        if done.restored():
            self._mends += 1
            self._mended |= dict.fromkeys(done.restored(), self._mends)
            detection.count_repairs(done.counts())

    def mend_in_call(self, rows: Array, mends: int) -> detection.Repair:
        """Restore the bad ones of some rows, for a call that began when rows had been mended so many times."""
        bad = self.bad_rows(rows)
        since = [number for number in rows.tolist() if self._mended.get(number, 0) > mends] if self._mends > mends else []
        done = self._mend(bad)
        restored = str(done) or (f"rows {since} mended by another thread" if since else "")
        return detection.Repair(restored, done.why_left())

    def require_intact(self, rows: ArrayLike | None = None) -> None:
        """Restore corrupted rows, of those given or of all, or raise SoftErrorDetected naming them."""
        with self._guard.exclusive():
            bad = self.bad_rows(rows)
            done = self._mend(bad)
        events = self._recorded("EmbeddingBag", bad, str(done), done.why_left(), "raise")
        if done.left:
            raise SoftErrorDetected(f"{self!r}: {done.why_left(' are corrupted and')}", events)

    def _recorded(self, operator: str, bad: list[int], healed: str, left: str, rung: str) -> list[detection.Event]:
        """Record what was found at rest; `rung` is how far that goes if some of it is left."""
        if not healed and not left:
            return []
        findings = [detection.Finding(number, detection.Kind.DIGEST) for number in bad[:RECORDED] or [-1]]
        detail = _joined("; ", [healed, f"still corrupted: {left}" if left else ""])
        return detection.conclude(operator, findings, _dispatch.current_cpu(), rung if left else "heal", "memory", detail)

    def scrub(
        self, start: int = 0, rows: int | None = None, *, repair: bool = True, redundancy: bool = False
    ) -> ScrubReport:
        """Compare rows with their digests, and restore those that don't fit.

        Rows that nobody asks for rot unseen: go through a table now and then, some rows at a time. Calls go on meanwhile.
        What was found is logged, and told to the monitors in force, by the name ``"scrub"``.

        Parameters
        ----------
        start : int, default 0
            First row.
        rows : int, optional
            How many rows; to the end of the table by default, and never beyond it.
        repair : bool, default True
            Restore what is corrupted; otherwise nothing is written.
        redundancy : bool, default False
            Also compare the locating sums of these rows, and the parity and the index mapping of as large a part of the
            groups and indices, which takes several times as long. A row that they contradict is restored if most witnesses
            agree on it. Otherwise it is left and reported. Redundancy itself is never written.

        Returns
        -------
        ScrubReport
            Its attribute `next` is where to go on.

        Examples
        --------
        >>> import numpy as np
        >>> import sedq
        >>> bag = sedq.EmbeddingBag.from_float(np.ones((1000, 4), dtype=np.float32), parity=100)
        >>> sedq.faults.flip_row_bit(bag, 600, 5)
        >>> bag.scrub(0, 500).found
        []
        >>> report = bag.scrub(500, 500)
        >>> report.found, report.rebuilt, report.next
        ([600], [600], 0)
        """
        first = _validation.integer("start", start, 0, self.shape[0] - 1)
        count = self.shape[0] - first
        if rows is not None:
            count = min(count, _validation.integer("rows", rows, 1, 2**62))
        _validation.boolean("repair", repair)
        _validation.boolean("redundancy", redundancy)
        found, done, stale, lost = list[int](), Repairs(), list[str](), list[str]()
        for at in range(first, first + count, SCRUBBED):
            stop = min(at + SCRUBBED, first + count)
            bad = self._guard.read(_rows.bad_in_range, self._table, at, stop - at, _config.get_config().kernels)
            if not bad and not redundancy:
                continue
            with self._guard.exclusive():  # nobody reads redundancy without the lock
                bad = self._redundancy.bad(np.array(bad, np.int64))  # as they are now
                found += bad
                done += self._mend(bad) if repair else Repairs(left=bad)
                if redundancy:
                    part, wrong = self._compared(at, stop, repair=repair)
                    found += [*part.restored(), *part.left]
                    done += part
                    stale += wrong
            if redundancy and self._pruning is not None:
                lost += self._pruning.disagreeing(at, stop)
        stop = first + count
        detection.count_checks("scrub", count)
        self._recorded("scrub", found, str(done), _joined(", ", [done.why_left(), *stale, *lost]), "none")
        mended = (done.corrected, done.rebuilt, done.reloaded)
        return ScrubReport(first, stop, stop % self.shape[0], found, *mended, done.left, stale + lost, done.evidence)

    def _compared(self, start: int, stop: int, *, repair: bool) -> tuple[Repairs, list[str]]:
        """Compare rows start .. stop with their redundancy.

        Returns what became of rows that only redundancy contradicts, and which redundancy is wrong itself.
        """
        kept, settle = self._redundancy, self._mend if repair else self._looked
        done = settle(kept.contradicted(start, stop))
        groups, stale = kept.suspect_groups(start, stop, self._originals)
        for rows in groups:
            if len(rows) == 1:
                done += settle(rows)
            else:  # parity says that one of them is wrong, and not which
                evidence = f"fits its digest, but the parity of its group says that one of rows {rows[:RECORDED]} is wrong"
                done += Repairs(left=rows, evidence=dict.fromkeys(rows, evidence))
        return done, kept.stale_sums(start, stop, done.left) + stale

    def _looked(self, rows: list[int]) -> Repairs:
        """Say which of some rows that fit their digests are wrong or undecided, without writing anything."""
        originals, done = self._originals(rows).rows, Repairs()
        for number in rows:
            ruling = self._redundancy.judge(number, originals.get(number))
            if ruling.made is None or ruling.how:
                done.left.append(number)
                done.evidence[number] = ruling.evidence
        return done

    def rebuild_redundancy(self, rows: ArrayLike) -> RebuildReport:
        """Make the locating sums and the parity of rows anew, where they are wrong and the rows are certainly right.

        A scrub reports redundancy that disagrees with its rows, and leaves it as it is, because the rows might be wrong.
        Here it is replaced if the source, or two of digest, locating sums and parity, confirm the row. Parity is replaced
        if they confirm every row of its group.

        Parameters
        ----------
        rows : array_like of int
            Row numbers. The parity of the groups that they belong to is looked at as well.

        Returns
        -------
        RebuildReport
            What was made anew, and what was refused, with the reason.

        Examples
        --------
        >>> import numpy as np
        >>> import sedq
        >>> bag = sedq.EmbeddingBag.from_float(np.ones((20, 4), dtype=np.float32), locate=True, parity=10)
        >>> bag._redundancy.locator.syndromes[3] ^= 1
        >>> bag.scrub(redundancy=True).stale
        ['locating sums of row 3']
        >>> bag.rebuild_redundancy([3]).rebuilt
        ['locating sums of row 3']
        """
        numbers = np.unique(self._row_numbers(rows)).tolist()
        with self._guard.exclusive():
            return self._redundancy.rebuild(numbers, self._originals)

    def update_rows(self, indices: ArrayLike, values: ArrayLike) -> None:
        """Give rows new values, while other threads read.

        Rows are written 1024 at a time with their digests, locating sums and parity. A call that ran meanwhile is computed
        again, so that it sees each row as it was or as it is, whatever its level of checking.

        Parameters
        ----------
        indices : array_like of int32 or int64, (k,)
            Row numbers, each once; of a pruned table those of the rows that there are, not those that its mapping maps.
        values : array_like of float32, (k, d), or ndarray of uint8, (k, bytes)
            Values to be quantised, or fused rows in the layout of the table.

        Raises
        ------
        IndexError
            For a row number out of range.
        ValueError
            For a number that occurs twice, NaN or infinities, another shape or dtype, or a table that is read-only. Nothing
            is written then.

        Examples
        --------
        >>> import numpy as np
        >>> import sedq
        >>> bag = sedq.EmbeddingBag.from_float(np.zeros((3, 4), dtype=np.float32))
        >>> bag.update_rows([1], np.ones((1, 4), dtype=np.float32))
        >>> bag([[0, 1]])
        array([[1., 1., 1., 1.]], dtype=float32)
        """
        numbers = self._row_numbers(_validation.integers("indices", indices, (1,)), "indices")
        if len(np.unique(numbers)) < len(numbers):
            raise ValueError("indices: got a row more than once, expected each once")
        if not self._table.own:
            raise ValueError("bag: got a table that is only read, expected one of rows of its own")
        rows = self._new_rows(values, numbers)
        for first in range(0, len(numbers), UPDATED):
            piece = slice(first, first + UPDATED)
            with self._guard.writing():
                self._redundancy.update(numbers[piece], rows[piece])
                if self._updated is None and self._source is not None:
                    self._updated = np.zeros(self.shape[0], np.bool_)
                if self._updated is not None:
                    self._updated[numbers[piece]] = True

    def _new_rows(self, values: ArrayLike, numbers: Array) -> Array:
        """Return new values as rows of ours, whose digests are those of the rows they will be."""
        layout = "torch"
        if isinstance(values, np.ndarray) and values.dtype == np.uint8:
            layout = self._layout
            fused, _ = _formats.fused_geometry(values, self.bits, layout, self.shape[1])
        else:
            floats = _validation.finite_array("values", values, (len(numbers), self.shape[1]))
            fused = _formats.quantize_rows(floats, self.bits) if len(floats) else floats.view(np.uint8)
        if len(fused) != len(numbers):
            raise ValueError(f"values: got {len(fused)} rows, expected one per index, {len(numbers)}")
        rows = _formats.add_digests(fused, self.shape[1], bits=self.bits, layout=layout)
        made = _rows.Table(rows, self.shape[1], self.bits)
        made.digests[...] += numbers.astype(np.uint64) - np.arange(len(numbers), dtype=np.uint64)
        return rows


def _joined(separator: str, parts: list[str]) -> str:
    """Return in one line what there is to say, or as much of it as a line holds."""
    said = [part for part in parts if part]
    more = [f"and {len(said) - RECORDED} more"] if len(said) > RECORDED else []
    return separator.join(said[:RECORDED] + more)
