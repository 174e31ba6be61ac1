"""A stored table: rows that are verified, repaired, scrubbed, updated and copied. It knows nothing of pooling.

::

    StoredTable    source, lock, what was repaired when         this module
      ProtectedRows  rows, digests, locating sums, parity, overlay     `_protected`
      mend, update, rebuild, ...                                       `_repair`, on what `_witnesses` decide

A method that writes rows holds the guard; a reader whose run overlapped a write reads again. See `sedq.embedding._guard`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sedq import _config, _validation, detection
from sedq._core import _dispatch, _rows
from sedq.embedding import _formats, _protected, _repair
from sedq.embedding._guard import Guard
from sedq.embedding._protected import ProtectedRows
from sedq.embedding._reports import RebuildReport, Repairs, ScrubReport
from sedq.embedding._requests import Pruning
from sedq.embedding._sources import Originals, Source
from sedq.embedding._witnesses import judge
from sedq.exceptions import ModelFileError, SoftErrorDetected

__all__ = ["StoredTable", "record_at_rest"]

Array = NDArray[Any]
SCRUBBED = 2**16  # rows compared between two checks whether a writer changed the table
UPDATED = 1024  # rows written while readers wait
RECORDED = 64  # most events of one call


class StoredTable:
    """Rows of a quantised table with their digests, and all that verifies, restores and changes them.

    Usually reached as the attribute `table` of an `EmbeddingBag`. Methods may be called from several threads. Nothing in it
    knows how rows are pooled.

    Parameters
    ----------
    protected : ProtectedRows
        Rows whose digests are written, with their redundancy.
    source : callable, optional
        Gives the original fused rows of given numbers.
    layout : str, default "torch"
        Layout of the rows that the source gives, of fused rows in updates, and of a table that is only read.

    Attributes
    ----------
    shape : tuple of int
        (rows, d).
    bits : int
        Bits of a code; 16 for half and 32 for float rows.
    layout : str
        As the parameter.
    source : callable or None
        As the parameter.
    data : _rows.Table
        Rows and digests, as the compiled loops read them.
    rows : ndarray of uint8, (rows, bytes)
        The stored bytes. Writing to them is a memory error as far as this table knows: tests and fault injection do so. To
        change rows call `update_rows`.
    sidecar : ndarray of uint8 or None
        Digests that are kept beside the rows, for a table that is only read. Other tables have them in their rows.
    locator : Locator or None
        Locating sums of each row.
    parity : Parity or None
        Parity of groups of rows.
    overlay : Overlay
        Corrected rows of a table that is only read, by number.
    guard : Guard
        Orders readers and writers.
    repairs : int
        How often rows were repaired.
    repaired_at : dict of int to int
        For each row that was repaired, the value of `repairs` after the last time.

    Examples
    --------
    >>> import numpy as np
    >>> import sedq
    >>> table = sedq.EmbeddingBag.from_float(np.ones((3, 4), dtype=np.float32), parity=3).table
    >>> table.rows[1, 0] ^= 4
    >>> table.bad_rows()
    [1]
    >>> table.scrub().rebuilt
    [1]
    """

    def __init__(
        self,
        protected: ProtectedRows,
        *,
        source: Source | None = None,
        layout: str = "torch",
    ) -> None:
        self._stored, self.data, self.overlay = protected, protected.data, protected.overlay
        self.rows, self.sidecar = self.data.rows, self.data.sidecar
        self.locator, self.parity = protected.locator, protected.parity
        self.shape: tuple[int, int] = (self.data.num_rows, self.data.dim)
        self.bits, self.layout, self.source = self.data.bits, layout, source
        self._updated: Array | None = None  # rows that the source doesn't know, one flag each
        self.repairs, self.repaired_at = 0, dict[int, int]()
        self.guard = Guard()

    @classmethod
    def protect(
        cls,
        data: _rows.Table,
        *,
        source: Source | None = None,
        layout: str = "torch",
        locate: bool = False,
        parity: int | None = None,
    ) -> Self:
        """Return a table of rows whose digests are written, and compute the redundancy that `locate` and `parity` name.

        Arguments as for `StoredTable` (source, layout) and `EmbeddingBag.from_float` (locate, parity); `data` has the rows.
        """
        redundancy = _protected.new_redundancy(data.rows, locate, parity, digest=_protected.DIGEST if data.own else 0)
        _protected.fill(redundancy, data.rows, 0, data.num_rows)
        return cls(ProtectedRows(data, *redundancy), source=source, layout=layout)

    @classmethod
    def view(
        cls,
        rows: Array,
        geometry: _formats.Geometry,
        *,
        layout: str = "torch",
        locate: bool = False,
        parity: int | None = None,
        progress: _formats.Progress | None = None,
    ) -> Self:
        """Return a table over rows that are only read; digests and redundancy are computed in one pass.

        Arguments as for `EmbeddingBag.view_fused` (layout, locate, parity, progress); rows and geometry are what
        `_formats.table_geometry` returns.
        """
        redundancy = _protected.new_redundancy(rows, locate, parity)
        data = _formats.attach_sidecar(
            rows, geometry, progress, lambda first, stop: _protected.fill(redundancy, rows, first, stop)
        )
        return cls(ProtectedRows(data, *redundancy), layout=layout)

    def __repr__(self) -> str:
        return f"<StoredTable {self.shape[0]} x {self.shape[1]}, {self.bits} bit>"

    def __reduce__(self) -> tuple[Any, ...]:
        with self.guard.exclusive():
            self.require_intact()
            rows, updated = copy.deepcopy(self._stored), copy.copy(self._updated)
            return _copied, (type(self), rows, self.source, updated, self.layout)

    def row(self, number: int) -> Array:
        """Return the bytes of row `number` as calls read them: those of the overlay if it has the row."""
        return self._stored.stored(number)

    def readable(self, numbers: Array) -> tuple[_rows.Table, Array]:
        """Return rows of the given `numbers` with the overlay in place, for the compiled loops, and their numbers in it."""
        return self._stored.readable(numbers)

    def replace_source(self, source: Source, version: int) -> None:
        """Set another `source`, which has the rows as they were at a `version`."""
        with self.guard.exclusive():
            if self.version == version:  # else the source lacks what was updated before or since
                self._updated = None
            self.source = source

    @property
    def version(self) -> int:
        """Changes with every write to the rows, repairs included; odd while one is going on."""
        return self.guard.version

    @property
    def nbytes(self) -> int:
        """Bytes of memory: rows with their digests, locating sums and parity rows; without a source that is kept."""
        sidecar = 0 if self.sidecar is None else self.sidecar.nbytes
        with self.guard.exclusive():  # the overlay may grow
            return int(self.rows.nbytes) + sidecar + self._stored.nbytes

    def bad_rows(self, rows: ArrayLike | None = None) -> list[int]:
        """Return the numbers of `rows` (default: all) that don't fit their digests."""
        return self.guard.read(self._stored.bad, self._row_numbers(rows))

    def _row_numbers(self, rows: ArrayLike | None, name: str = "rows") -> Array:
        """Return the row numbers given, or all, as int64."""
        if rows is None:
            return np.arange(self.shape[0])
        numbers = _validation.integers(name, rows, (0, 1, 2)).reshape(-1).astype(np.int64)
        for number in numbers[(numbers < 0) | (numbers >= self.shape[0])]:
            raise IndexError(f"{name}: got {number}, expected 0 to {self.shape[0] - 1}")
        return numbers

    def restore(self, rows: ArrayLike) -> list[int]:
        """Reload rows from the source, and return those whose digests then fit.

        Arguments as for `EmbeddingBag.restore`: rows.
        """
        numbers = self._row_numbers(rows)
        with self.guard.writing():
            bad = self._stored.bad(np.unique(numbers))
            originals = self._originals(numbers.tolist())
            restored = [number for number in numbers.tolist() if self._reload(number, originals)]
            mended = set(restored)
            left = [number for number in bad if number not in mended]
            reason = originals.refused if any(number in originals.rows for number in left) else originals.missing
            done = Repairs(reloaded=[number for number in bad if number in mended], left=left, reason=reason)
            self._note(done)
        record_at_rest("restore", bad, str(done), done.why_left(), "none")
        return restored

    def _reload(self, number: int, originals: Originals) -> bool:
        """Store a row of the source, if it agrees with what is stored, or if that can't be right."""
        row, stored = originals.rows.get(number), self.rows[number]
        # a source may have changed, or been struck too: it must agree with the digest, or with all but the digest
        if row is None or (
            self._stored.digest_possible(number)
            and not np.array_equal(row[-8:], stored[-8:])
            and not np.array_equal(row[:-8], stored[:-8])
        ):
            return False
        stored[...] = row
        return True

    def _originals(self, rows: list[int]) -> Originals:
        """Return rows as the source has them, but for those that were updated since."""
        if self.source is None or not self.data.own:
            return Originals({}, "there is no source to reload them from", "")
        said = f"could not be reloaded from {self.source!r}: "
        known = rows if self._updated is None else [number for number in rows if not self._updated[number]]
        missing, made = "they were updated since", dict[int, Array]()
        if known:
            try:
                fused = self.source(np.array(known))
            except (OSError, ModelFileError, IndexError) as error:  # the source is gone, or not what it was
                text = getattr(error, "strerror", None) or str(error)
                missing, fused = text.removeprefix(f"{self.source!r}: "), None
            if fused is not None and fused.shape[1:] != (self._geometry().width,):
                missing, fused = f"its rows are of {fused.shape[1:]} bytes, expected ({self._geometry().width},)", None
            if fused is not None:
                made = {number: self._sealed(number, row) for number, row in zip(known, fused, strict=True)}
        return Originals(made, said + missing, f"{said}what it has does not fit their digests")

    def _geometry(self) -> _formats.Geometry:
        return _formats.geometry(self.layout, self.bits, self.shape[1])

    def _sealed(self, number: int, fused: Array) -> Array:
        """Return a row of ours from a fused one of the bag's layout."""
        row: Array = _formats.add_digests(fused[None], self.shape[1], number, bits=self.bits, layout=self.layout)[0]
        return row

    def _repair_rows(self, bad: list[int]) -> Repairs:
        """Restore bad rows from redundancy or the source."""
        if not bad:
            return Repairs()
        with self.guard.writing():
            done = _repair.mend(self._stored, bad, self._originals)
            self._note(done)
        return done

    def _note(self, done: Repairs) -> None:
        """Count what was restored, and remember it for the calls that read it before."""
        if done.restored():
            self.repairs += 1
            self.repaired_at |= dict.fromkeys(done.restored(), self.repairs)
            detection.count_repairs(done.counts())

    def repair(self, rows: Array, since: int) -> detection.Repair:
        """Restore the corrupted ones among some rows, for a call that read them when `repairs` was `since`.

        Parameters
        ----------
        rows : ndarray of int64
            Row numbers.
        since : int
            Value of `repairs` when the call began: rows that another thread repaired later may explain what the call found.

        Returns
        -------
        detection.Repair
        """
        bad, elsewhere = self.bad_rows(rows), list[int]()
        if self.repairs > since:
            elsewhere = [number for number in rows.tolist() if self.repaired_at.get(number, 0) > since]
        done = self._repair_rows(bad)
        restored = str(done) or (f"rows {elsewhere} mended by another thread" if elsewhere else "")
        return detection.Repair(restored, done.why_left())

    def require_intact(self, rows: ArrayLike | None = None) -> None:
        """Restore corrupted rows among `rows` (default: all), or raise SoftErrorDetected if some can't be restored."""
        with self.guard.exclusive():
            bad = self.bad_rows(rows)
            done = self._repair_rows(bad)
        events = record_at_rest("EmbeddingBag", bad, str(done), done.why_left(), "raise")
        if done.left:
            raise SoftErrorDetected(f"{self!r}: {done.why_left(' are corrupted and')}", events)

    def scrub(
        self,
        start: int = 0,
        rows: int | None = None,
        *,
        repair: bool = True,
        redundancy: bool = False,
        mapping: Pruning | None = None,
    ) -> ScrubReport:
        """Compare rows with their digests, and restore those that don't fit.

        Arguments as for `EmbeddingBag.scrub`: start, rows, repair, redundancy. With `redundancy`, also compare a part of
        `mapping`, an index mapping of these rows.
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
            bad = self.guard.read(_rows.bad_in_range, self.data, at, stop - at, _config.get_config().kernels)
            if not bad and not redundancy:
                continue
            with self.guard.exclusive():  # nobody reads redundancy without the lock
                bad = self._stored.bad(np.array(bad, np.int64))  # as they are now
                found += bad
                done += self._repair_rows(bad) if repair else Repairs(left=bad)
                if redundancy:
                    part, wrong = self._compared(at, stop, repair=repair)
                    found += [*part.restored(), *part.left]
                    done += part
                    stale += wrong
            if redundancy and mapping is not None:
                lost += mapping.disagreeing(at, stop)
        stop = first + count
        detection.count_checks("scrub", count)
        record_at_rest("scrub", found, str(done), _joined(", ", [done.why_left(), *stale, *lost]), "none")
        mended = (done.corrected, done.rebuilt, done.reloaded)
        return ScrubReport(first, stop, stop % self.shape[0], found, *mended, done.left, stale + lost, done.evidence)

    def _compared(self, start: int, stop: int, *, repair: bool) -> tuple[Repairs, list[str]]:
        """Compare rows start .. stop with their redundancy.

        Returns what became of rows that only redundancy contradicts, and which redundancy is wrong itself.
        """
        settle = self._repair_rows if repair else self._looked
        done = settle(_repair.contradicted(self._stored, start, stop))
        groups, stale = _repair.suspect_groups(self._stored, start, stop, self._originals)
        for rows in groups:
            if len(rows) == 1:
                done += settle(rows)
            else:  # parity says that one of them is wrong, and not which
                evidence = f"fits its digest, but the parity of its group says that one of rows {rows[:RECORDED]} is wrong"
                done += Repairs(left=rows, evidence=dict.fromkeys(rows, evidence))
        return done, _repair.stale_sums(self._stored, start, stop, done.left) + stale

    def _looked(self, rows: list[int]) -> Repairs:
        """Say which of some rows that fit their digests are wrong or undecided, without writing anything."""
        originals, done = self._originals(rows).rows, Repairs()
        for number in rows:
            ruling = judge(self._stored, number, originals.get(number))
            if ruling.made is None or ruling.how:
                done.left.append(number)
                done.evidence[number] = ruling.evidence
        return done

    def rebuild_redundancy(self, rows: ArrayLike) -> RebuildReport:
        """Make the locating sums and the parity of rows anew, where they are wrong and the rows are certainly right.

        Arguments as for `EmbeddingBag.rebuild_redundancy`: rows.
        """
        numbers = np.unique(self._row_numbers(rows)).tolist()
        with self.guard.exclusive():
            return _repair.rebuild(self._stored, numbers, self._originals)

    def to_fused(self, layout: str = "torch", *, align: int = 1) -> NDArray[np.uint8]:
        """Return a copy of the rows in a layout, each intact.

        Arguments as for `EmbeddingBag.to_fused`: layout, align.
        """
        _formats.geometry(layout, self.bits, self.shape[1])
        align = _validation.integer("align", align, 1, 2**20)
        with self.guard.exclusive():
            self.require_intact()
            rows = self._own_rows(0, self.shape[0])
            return _formats.strip_digests(rows, self.shape[1], bits=self.bits, layout=layout, align=align)

    def fused_pieces(self, layout: str, step: int) -> Iterator[Array]:
        """Yield the rows in a `layout` as `to_fused` returns them, `step` rows at a time, each intact as it is copied."""
        for first in range(0, self.shape[0], step):
            stop = min(first + step, self.shape[0])
            with self.guard.exclusive():
                self.require_intact(np.arange(first, stop))
                rows = _formats.strip_digests(self._own_rows(first, stop), self.shape[1], bits=self.bits, layout=layout)
            yield rows

    def _own_rows(self, first: int, stop: int) -> Array:
        """Return rows first .. stop in the layout of this package, copied if they are stored in another one."""
        if self.data.own:
            return self.rows[first:stop]
        fused = self.rows[first:stop]
        rows = _formats.add_digests(fused, self.shape[1], first, bits=self.bits, layout=self.layout)
        for number, row in self.overlay.items():
            if first <= number < stop:
                rows[number - first] = self._sealed(number, row)
        return rows

    def update_rows(self, indices: ArrayLike, values: ArrayLike) -> None:
        """Give rows new values, while other threads read.

        Arguments as for `EmbeddingBag.update_rows`: indices, values.
        """
        numbers = self._row_numbers(_validation.integers("indices", indices, (1,)), "indices")
        if len(np.unique(numbers)) < len(numbers):
            raise ValueError("indices: got a row more than once, expected each once")
        if not self.data.own:
            raise ValueError("bag: got a table that is only read, expected one of rows of its own")
        rows = self._new_rows(values, numbers)
        for first in range(0, len(numbers), UPDATED):
            piece = slice(first, first + UPDATED)
            with self.guard.writing():
                _repair.update(self._stored, numbers[piece], rows[piece])
                if self._updated is None and self.source is not None:
                    self._updated = np.zeros(self.shape[0], np.bool_)
                if self._updated is not None:
                    self._updated[numbers[piece]] = True

    def _new_rows(self, values: ArrayLike, numbers: Array) -> Array:
        """Return new values as rows in the layout of this package, with the digests of the row numbers they will have."""
        layout = "torch"
        if isinstance(values, np.ndarray) and values.dtype == np.uint8:
            layout = self.layout
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


def _copied(
    cls: type[StoredTable], rows: ProtectedRows, source: Source | None, updated: Array | None, layout: str
) -> StoredTable:
    """Return a table of copied rows, with a guard of its own and no memory of repairs."""
    table = cls(rows, source=source, layout=layout)
    table._updated = updated
    return table


def record_at_rest(operator: str, bad: list[int], healed: str, left: str, rung: str) -> list[detection.Event]:
    """Record what was found in a table that no call reads, and return the events.

    `rung` is the rung of the event if something is left corrupted.
    """
    if not healed and not left:
        return []
    findings = [detection.Finding(number, detection.Kind.DIGEST) for number in bad[:RECORDED] or [-1]]
    detail = _joined("; ", [healed, f"still corrupted: {left}" if left else ""])
    return detection.conclude(operator, findings, _dispatch.current_cpu(), rung if left else "heal", "memory", detail)


def _joined(separator: str, parts: list[str]) -> str:
    """Join the parts that are not empty, at most 64 of them."""
    said = [part for part in parts if part]
    more = [f"and {len(said) - RECORDED} more"] if len(said) > RECORDED else []
    return separator.join(said[:RECORDED] + more)
