"""A call of a bag: compiled loops pool and verify, and what they find wrong is dealt with here.

`_core._embedding.pool` -> nothing found: done. Else `_Bags` restores bad rows and computes the call again, as
`recovery.handle` asks it to.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sedq import _config, detection
from sedq._core import _dispatch, _embedding
from sedq.embedding import _requests
from sedq.embedding._maintenance import Maintained
from sedq.exceptions import SoftErrorDetected

__all__ = ["Call", "Pooling", "level_of", "stats_for"]

Array = NDArray[Any]

LEVELS = {
    "off": 0,
    "digest": _embedding.CHECK_DIGEST,
    "threshold": _embedding.CHECK_SUM,
    "exact": _embedding.CHECK_DIGEST | _embedding.CHECK_SUM,
    "full": _embedding.CHECK_DIGEST | _embedding.CHECK_SUM | _embedding.CHECK_TWICE,
}
SAME = 2.0**-40  # how much residuals may differ between paths, whose sums are of float64, relative to the magnitude
OF_ROWS = (
    detection.Kind.DIGEST,
    detection.Kind.SUM,
    detection.Kind.OVERFLOW,
)  # what corrupted rows make checks say of a bag


class Call(NamedTuple):
    """What a call pools, and how it is checked."""

    indices: Array
    offsets: Array
    weights: Array | None
    lengths: Array | None
    level: int
    limit: _requests.Limit
    mends: int  # how often rows had been mended when it began


class Pooling(Maintained):
    """The half of an EmbeddingBag that pools rows and recovers."""

    mode: str
    _pruning: _requests.Pruning | None

    def pool(
        self,
        indices: Array,
        offsets: Array,
        weights: Array | None,
        out: Array,
        settings: _config.Settings,
        *,
        operator: str = "EmbeddingBag",
        threshold: Any = "bound",
        y_sums: Array | None = None,
    ) -> None:
        """Pool into `out`, whose rows may lie apart, as the settings say; offsets include the last. For models."""
        level = level_of(settings)
        limit = _requests.limit(threshold, self)
        stats = stats_for(limit, level, len(out))
        lengths = None
        if self._pruning is not None:
            indices, offsets, weights, lengths = self._pruned(indices, offsets, weights, settings, operator)
        mends, found = self._guard.read(
            self._reading,
            settings.kernels,
            self._table,
            indices,
            offsets,
            weights,
            out,
            level,
            limit.kind,
            limit.value,
            self.mode == "mean",
            settings.num_threads or 0,
            y_sums,
            lengths,
            stats,
            limit.growth,
        )
        if level:
            detection.count_checks(operator, len(out))
        overlay = self._redundancy.overlay
        if found is not None or (overlay and overlay.places(indices).size):
            call = Call(indices, offsets, weights, lengths, level, limit, mends)
            self.deal_with(found, call, out, y_sums, settings, operator)
        if stats is not None:
            threshold.watch(self, offsets, weights, stats)

    def _reading(self, *arguments: Any) -> tuple[int, detection.Findings | None]:
        """Pool once; how often rows had been mended before, and what was found."""
        return self._mends, _embedding.pool(*arguments)

    @property
    def asks_apart(self) -> bool:
        """Whether a call does more than pooling rows as they are stored."""
        return self._pruning is not None or bool(self._redundancy.overlay)

    @property
    def asked_rows(self) -> int:
        """Indices are below this."""
        return self.shape[0] if self._pruning is None else self._pruning.indices

    def _pruned(
        self, indices: Array, offsets: Array, weights: Array | None, settings: _config.Settings, operator: str
    ) -> tuple[Array, Array, Array | None, Array]:
        """Leave out what contributes nothing."""
        assert self._pruning is not None
        try:
            return self._pruning.apply(indices, offsets, weights, compare=settings.check != "off")
        except _requests.CorruptMapping as error:
            corrupted = str(error)
        found = [detection.Finding(-1, detection.Kind.INPUT)]
        if settings.on_error == "warn":
            detection.warn(operator, found)
            return self._pruning.apply(indices, offsets, weights, compare=False)
        # what the right mapping is nobody knows: there is nothing to recover from
        events = detection.conclude(operator, found, _dispatch.current_cpu(), "raise", "memory", corrupted)
        raise SoftErrorDetected(detection.summary(events), events)

    def deal_with(
        self,
        found: detection.Findings | None,
        call: Call,
        out: Array,
        y_sums: Array | None,
        settings: _config.Settings,
        operator: str,
    ) -> None:
        """Put rows of the overlay in place, and recover from what was found, while nobody else writes."""
        with self._guard.exclusive():
            left = self._overlaid(found, call, out, y_sums) if self._redundancy.overlay else list(found or ())
            if not left:
                return
            overflows = np.unique([finding.row for finding in left if finding.kind == detection.Kind.OVERFLOW])
            if overflows.size:
                # raises if they overflow without a fault too: an error of the input
                self.compute_again(_dispatch.get("reference"), overflows, call)
                left = [f._replace(kind=detection.Kind.SUM) if f.kind == detection.Kind.OVERFLOW else f for f in left]
            detection.handle(_Bags(operator, self, call, out, y_sums), left, settings)

    def _overlaid(
        self, found: detection.Findings | None, call: Call, out: Array, y_sums: Array | None
    ) -> list[detection.Finding]:
        """Compute the bags that have overlaid rows, which the kernel read as they are stored; what is left to deal with."""
        places = self._redundancy.overlay.places(call.indices)
        numbers = np.unique(np.searchsorted(call.offsets, places, side="right") - 1)
        if found is not None and found.cut_off:  # which others were wrong as well is not known
            numbers = np.arange(len(out))
        if not numbers.size:
            return list(found or ())
        remaining, again, sums = self.compute_again(_dispatch.get("reference"), numbers, call)
        _store(numbers, again, sums, out, y_sums)
        known = set(numbers.tolist())
        # of these bags what rows as they are stored explain is no news; a store that went astray may have hit others
        elsewhere = [finding for finding in found or () if finding.row not in known or finding.kind not in OF_ROWS]
        return elsewhere + [
            finding._replace(row=int(numbers[finding.row])) if finding.row >= 0 else finding for finding in remaining or ()
        ]

    def compute_again(
        self, kernels: _dispatch.Context, numbers: Array, call: Call, stats: Array | None = None
    ) -> tuple[detection.Findings | None, Array, Array]:
        """Pool some bags of a call again, rows of the overlay in place: findings, outputs, their sums."""
        index, starts, factors = _requests.select(numbers, call.indices, call.offsets, call.weights)
        table, index = self._redundancy.readable(index)
        again, sums = np.empty((len(numbers), self.shape[1]), np.float32), np.zeros(len(numbers), np.uint32)
        counts = None if call.lengths is None else call.lengths[numbers]
        how = (call.level, call.limit.kind, call.limit.value, self.mode == "mean", 1)
        growth = call.limit.growth
        remaining = _embedding.pool(kernels, table, index, starts, factors, again, *how, sums, counts, stats, growth)
        if remaining and all(kind == detection.Kind.OVERFLOW for _, kind, _, _ in remaining):
            bag = numbers[remaining[0][0]]
            raise ValueError(f"bag {bag}: its sums overflow float32, expected smaller weights or values")
        return remaining, again, sums


class _Bags:
    """Bags whose checks disagreed: the rows that they read are restored, and all are pooled again."""

    def __init__(self, operator: str, bag: Pooling, call: Call, out: Array, y_sums: Array | None) -> None:
        self.operator = operator
        self._bag, self._call, self._out, self._y_sums = bag, call, out, y_sums
        self._stats: Array | None = None  # residual, reference, magnitude of each bag, if only a threshold complained

    def repair(self) -> detection.Repair:
        return self._bag.mend_in_call(np.unique(self._call.indices), self._call.mends)

    def compute(self, kernels: _dispatch.Context) -> detection.Attempt:
        every = np.arange(len(self._out))
        remaining, again, sums = self._bag.compute_again(kernels, every, self._call)
        sums_alone = remaining is not None and all(kind == detection.Kind.SUM for _, kind, _, _ in remaining)
        if sums_alone and self._call.limit != _requests.BOUND:
            # rounding is the same on every path, so that a false alarm of a threshold comes again: compare with the bound
            self._stats = np.empty((len(every), 3))
            call = self._call._replace(limit=_requests.BOUND)
            remaining, again, sums = self._bag.compute_again(kernels, every, call, self._stats)
        return detection.Attempt((again, sums), remaining or [])

    def is_rounding(self, finding: detection.Finding, answer: detection.Attempt) -> bool:
        bag, kind, residual, _ = finding
        if kind != detection.Kind.SUM or self._stats is None:
            return False
        there, _, magnitude = self._stats[bag]
        same = answer.outputs[0][bag].tobytes() == self._out[bag].tobytes()
        return same and bool(abs(residual - there) <= SAME * magnitude)

    def accept(self, answer: detection.Attempt) -> None:
        self._out[...], sums = answer.outputs
        if self._y_sums is not None:
            self._y_sums[...] = sums


def level_of(settings: _config.Settings) -> int:
    """Return what the kernels are to check."""
    level = LEVELS.get(settings.check)
    if level is None:
        raise ValueError(f"check: got {settings.check!r}, expected one of {', '.join(map(repr, LEVELS))} here")
    return level


def stats_for(limit: _requests.Limit, level: int, count: int) -> Array | None:
    """Return where residuals, references and magnitudes of bags go, if a calibration watches them."""
    watched = limit.kind == _embedding.LIMIT_GROWTH and level & _embedding.CHECK_SUM
    return np.empty((count, 3)) if watched else None


def _store(numbers: Array, again: Array, sums: Array, out: Array, y_sums: Array | None) -> None:
    out[numbers] = again
    if y_sums is not None:
        y_sums[numbers] = sums
