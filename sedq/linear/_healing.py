"""Packed weights at rest: compared with their CRCs, and healed from what is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sedq import _fork, detection
from sedq._core import _dispatch, _packing
from sedq.exceptions import SoftErrorDetected
from sedq.linear import _encoding

__all__ = ["Healing", "Key", "WeightsReport", "crossings"]

Array = NDArray[Any]
# one heals at a time, in all packs: it is rare, and two would each take what the other wrote for something else
_healing = _fork.new_lock()
REMEMBERED = 64  # heals
# what an epilogue is kept by: activation parameters, or the zero point of an integer product
Key = tuple[float, int, float | None, int | None, bool] | int


@dataclass
class WeightsReport:
    """What `PackedWeights.verify` or `PackedWeights.heal` found.

    Attributes
    ----------
    corrupted : list of str
        Names of arrays that don't fit their CRC.
    healed : list of str
        What was restored.
    rows, columns : list of int
        k and n whose sums disagree with the stored ones.
    """

    corrupted: list[str] = field(default_factory=list)
    healed: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is corrupted."""
        return not self.corrupted


class Healing:
    """The half of PackedWeights that looks after what is stored."""

    shape: tuple[int, int]
    encode: tuple[str, ...]
    scale: Array
    zero_point: Array
    bias: Array | None
    _core: _packing.PackedB
    _row_sums: Array
    _col_sums: Array
    _spare: dict[str, Array]  # copies of the parameters
    _crcs: dict[str, int]
    _epilogues: dict[Key, _packing.Epilogue]
    _healed: tuple[tuple[int, str], ...]  # what was healed of late, numbered
    _source: Callable[[], Array] | None  # gives the original weights, to restore what the syndromes don't determine

    def _parameters(self) -> dict[str, Array]:
        named = {"scale": self.scale, "zero_point": self.zero_point, "bias": self.bias}
        return {name: a for name, a in named.items() if a is not None}

    def _arrays(self) -> dict[str, Array]:
        """Return every array that a fault may strike, by name."""
        return {
            "panels": self._core.panels,
            "digits": self._core.digits,
            "row_sums": self._row_sums,
            "col_sums": self._col_sums,
            **self._parameters(),
        }

    def _pack(self, w: Array, panels: Array) -> None:
        """Write weights into panels, and after them, if it is encoded, the column of the paper's scheme."""
        if "mod127" in self.encode:
            w = np.vstack([w, (self._row_sums % 127).astype(np.int8)])
        _packing.pack(w, panels)

    def unpack(self) -> NDArray[np.int8]:
        """Return the weights as they are stored now, (N, K) int8."""
        n, k = self.shape
        w = np.empty((n + ("mod127" in self.encode), k), np.int8)
        _packing.unpack(self._core.panels, w)
        return w[:n]

    def verify(self) -> WeightsReport:
        """Compare every stored array with its CRC, without changing anything.

        Returns
        -------
        WeightsReport

        Examples
        --------
        >>> import numpy as np
        >>> import sedq
        >>> sedq.pack_weights(np.ones((3, 4), dtype=np.int8)).verify().ok
        True
        """
        report = WeightsReport([name for name, a in self._arrays().items() if _encoding.crc(a) != self._crcs[name]])
        if "panels" in report.corrupted:
            w = self.unpack()
            report.rows = np.flatnonzero(w.sum(axis=0, dtype=np.int64) != self._row_sums).tolist()
            report.columns = np.flatnonzero(w.sum(axis=1, dtype=np.int64) != self._col_sums).tolist()
        return report

    def heal(self) -> WeightsReport:
        """Restore corrupted arrays where what is left determines them.

        Bytes of the panels are located by the crossing of the row and column sums that disagree, and a heal counts only
        when the CRC confirms it. What was found is logged, and told to the monitors in force.

        Returns
        -------
        WeightsReport
            `corrupted` names what is still corrupted.

        Examples
        --------
        >>> import numpy as np
        >>> import sedq
        >>> packed = sedq.pack_weights(np.ones((3, 4), dtype=np.int8))
        >>> packed._core.panels[5] ^= 64
        >>> packed.heal().healed
        ['panels: W[1, 1] from 65 to 1']
        """
        return self._heal_recorded("none")[0]

    def require_intact(self, otherwise: str) -> None:
        """Heal what is corrupted, or raise SoftErrorDetected, saying what can't be done otherwise."""
        report, events = self._heal_recorded("raise")
        if report.corrupted:
            raise SoftErrorDetected(otherwise, events)

    def _heal_recorded(self, rung: str) -> tuple[WeightsReport, list[detection.Event]]:
        """Heal, and record what was found; `rung` is how far that goes if it can't be healed."""
        report = self.heal_in_call()
        return report, self._recorded(report.healed, report.corrupted, rung)

    def _recorded(self, healed: list[str], corrupted: list[str], rung: str) -> list[detection.Event]:
        if not healed and not corrupted:
            return []
        left = [f"still corrupted: {', '.join(corrupted)}"] if corrupted else []
        detail = "; ".join(healed + left)
        finding = detection.Finding(-1, detection.Kind.PARAMETERS)
        return detection.conclude("weights", [finding], _dispatch.current_cpu(), rung if left else "heal", "memory", detail)

    def heal_in_call(self) -> WeightsReport:
        """Heal for an operator, which records what it found itself."""
        with _healing:
            report = self._heal_all()
            self._remember_healed(report.healed)
        return report

    def _remember_healed(self, healed: list[str]) -> None:
        more = enumerate(healed, self.heals + 1)
        self._healed = (*self._healed, *more)[-REMEMBERED:]

    @property
    def heals(self) -> int:
        """How much was healed."""
        return self._healed[-1][0] if self._healed else 0

    def healed_since(self, heals: int, kinds: set[detection.Kind]) -> str:
        """Say what another thread healed, after so many heals, that explains findings of all these kinds; else nothing."""
        of_panels = {text for number, text in self._healed if number > heals and text.startswith(("panels", "digits"))}
        others = {text for number, text in self._healed if number > heals} - of_panels
        explains = {
            detection.Kind.ACCUMULATOR: of_panels,
            detection.Kind.PARAMETERS: others,
            detection.Kind.EPILOGUE: others,
        }
        causes = [explains.get(kind, set()) for kind in kinds]
        return f"{'; '.join(sorted(set().union(*causes)))}, by another thread" if causes and all(causes) else ""

    def _heal_all(self) -> WeightsReport:
        report = self.verify()
        report.healed += self._drop_corrupted_epilogues()
        if report.ok:
            return report
        bad = set(report.corrupted)
        if "panels" not in bad:
            w = self.unpack()
            self._row_sums[...] = w.sum(axis=0, dtype=np.int64)
            self._col_sums[...] = w.sum(axis=1, dtype=np.int64)
            report.healed += sorted(bad & {"row_sums", "col_sums"})
        else:
            report.healed += self._heal_panels(report, bool(bad & {"row_sums", "col_sums"}))
        if "digits" in bad and _encoding.crc(self._row_sums) == self._crcs["row_sums"]:
            self._core.digits[...] = _encoding.encode(self._row_sums, self.shape[0])
            report.healed.append("digits")
        report.healed += self._restored_parameters()[0]
        self._epilogues.clear()
        report.corrupted = self.verify().corrupted
        return report

    def _heal_col_sums(self) -> bool:
        if _encoding.crc(self._core.panels) != self._crcs["panels"]:
            return False
        self._col_sums[...] = self.unpack().sum(axis=1, dtype=np.int64)
        return True

    def _heal_panels(self, report: WeightsReport, lost_syndrome: bool) -> list[str]:
        """Try what the syndromes determine, then the source; keep what the CRC agrees with, else change nothing."""
        healed = [] if lost_syndrome else self._heal_crossings(report)
        if healed or self._source is None:
            return healed
        try:
            original = self._source()
        except (OSError, ValueError):  # the source is gone, or not what it was
            return []
        if original.shape != self.shape or original.dtype != np.int8:
            return []
        return ["panels: reloaded"] if self._keep_if_confirmed(original) else []

    def _keep_if_confirmed(self, w: Array) -> bool:
        """Put weights into the panels if they are, by the CRC, those that were packed."""
        panels = np.zeros_like(self._core.panels)
        self._pack(w, panels)
        if _encoding.crc(panels) != self._crcs["panels"]:
            return False
        self._core.panels[...] = panels
        return True

    def _heal_crossings(self, report: WeightsReport) -> list[str]:
        w = self.unpack()
        fixed = w.copy()
        row_delta = self._row_sums - w.sum(axis=0, dtype=np.int64)
        col_delta = self._col_sums - w.sum(axis=1, dtype=np.int64)
        for n, k, delta in crossings(report.rows, report.columns, row_delta, col_delta):
            value = int(w[n, k]) + delta
            if not -128 <= value <= 127:
                return []
            fixed[n, k] = value
        if not self._keep_if_confirmed(fixed):
            return []
        changed = np.argwhere(fixed != w)
        return [f"panels: W[{n}, {k}] from {w[n, k]} to {fixed[n, k]}" for n, k in changed] or [
            "panels: padding" if "mod127" not in self.encode else "panels: padding or encoded column"
        ]

    def _restore_parameters(self) -> None:
        """Make sure that what parameters are derived from is as it was, or raise SoftErrorDetected."""
        arrays = (*self._parameters().items(), ("col_sums", self._col_sums))
        if all(_encoding.crc(a) == self._crcs[name] for name, a in arrays):
            return
        with _healing:
            healed, lost = self._restored_parameters()
            self._remember_healed(healed)
        events = self._recorded(healed, lost, "raise")
        if lost:
            raise SoftErrorDetected(
                f"{', '.join(lost)} of {self!r} is corrupted, and so is its copy: pack the weights again", events
            )

    def _restored_parameters(self) -> tuple[list[str], list[str]]:
        """Restore parameters from their copies, and column sums from the panels: what was, and what can't be."""
        healed: list[str] = []
        lost: list[str] = []
        for name, a in self._parameters().items():
            if _encoding.crc(a) != self._crcs[name]:
                sound = _encoding.crc(self._spare[name]) == self._crcs[name]
                (healed if sound else lost).append(name)
                if sound:
                    a[...] = self._spare[name]
        if _encoding.crc(self._col_sums) != self._crcs["col_sums"]:
            (healed if self._heal_col_sums() else lost).append("col_sums")
        return healed, lost

    def _drop_corrupted_epilogues(self) -> list[str]:
        """Forget derived parameters that don't fit their digests: the next call derives them again."""
        bad = [key for key, e in list(self._epilogues.items()) if not _encoding.intact(e)]
        for key in bad:
            self._epilogues.pop(key, None)
        return ["parameters derived again"] if bad else []


def crossings(rows: list[int], columns: list[int], row_delta: Array, col_delta: Array) -> list[tuple[int, int, int]]:
    """Return (n, k, correction) of the elements that row and column residuals determine.

    All in one row, or all in one column, are determined; else each row is matched with the one column whose residual
    equals its own. An empty list says that they are not.
    """
    if len(rows) == 1:
        return [(n, rows[0], int(col_delta[n])) for n in columns]
    if len(columns) == 1:
        return [(columns[0], k, int(row_delta[k])) for k in rows]
    by_delta = {int(col_delta[n]): n for n in columns}
    if len(rows) != len(columns) or len(by_delta) != len(columns):
        return []
    matched = [(by_delta[int(row_delta[k])], k, int(row_delta[k])) for k in rows if int(row_delta[k]) in by_delta]
    return matched if len({n for n, _, _ in matched}) == len(columns) else []
