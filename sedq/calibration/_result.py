"""A calibrated threshold: what it is worth, where it holds, and its file."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import warnings
from dataclasses import asdict, dataclass, field, fields
from typing import Any, get_type_hints
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from sedq._files import replacing
from sedq.calibration._samples import TableSamples, collect, table_digest, units_of
from sedq.calibration._scale import limits
from sedq.calibration._tail import Tail, probability_of, rate_interval
from sedq.calibration._types import fits
from sedq.dlrm import DLRM
from sedq.embedding import EmbeddingBag
from sedq.exceptions import CalibrationWarning, ModelFileError

__all__ = ["HeldOut", "TableRange", "ThresholdCalibration"]

Array = NDArray[Any]
FORMAT = "sedq-calibration"
VERSION = 1
# A range is left where a value lies beyond it by this factor. The scale of residuals is derived and only its amplitudes are
# fitted, so that it holds a little outside too, and the longest bag of a heavy-tailed sample is soon surpassed.
SLACK = 2.0


@dataclass(frozen=True)
class TableRange:
    """What the samples of one table were like.

    Attributes
    ----------
    digest : str
        SHA-256 of the digests of the table's rows.
    rows, dim : int
        Its shape.
    mode : str
        ``"sum"`` or ``"mean"``.
    weighted : bool
        Whether there were per-sample weights.
    pooling : (int, int)
        Least and most look-ups of a bag that isn't empty.
    magnitude : (float, float)
        Least and greatest magnitude ``sum_i |w_i| (|scale_i| code_sum_i + d |bias_i|)`` of a look-up, on average over a bag.
    growth : tuple of 5 floats
        Coefficients of g(n) = g0 n^2 + g1 n + g2 + g3 / n + g4 / n^2; a residual is divided by 2^-24 magnitude sqrt(g(n)).
    """

    digest: str
    rows: int
    dim: int
    mode: str
    weighted: bool
    pooling: tuple[int, int]
    magnitude: tuple[float, float]
    growth: tuple[float, ...]


@dataclass(frozen=True)
class HeldOut:
    """False alarms on samples that had no part in a calibration.

    Attributes
    ----------
    alarms, units : int
        Units in which a bag exceeded its limit, and all of them.
    distinct, distinct_alarms : int
        How many different residuals all units had, and those that exceeded: the same bag again tells nothing new.
    interval : (float, float)
        Clopper and Pearson's interval of the rate, for as many trials as there are distinct units.
    position : str
        Where the rate counted lies: ``"within"``, ``"above"`` or ``"below"`` the stated interval.
    p_value : float
        The probability of at least as many alarms at the upper end of the stated interval, for as many trials as there are
        distinct units, of which the same share exceeds.
    agrees : bool
        False if the rate lies above the stated interval and `p_value` is below ``(1 - confidence) / 2``, 0.025 at 95 %. A
        rate below it is safe: there are fewer false alarms than were stated.
    """

    alarms: int
    units: int
    distinct: int
    distinct_alarms: int
    interval: tuple[float, float]
    position: str
    p_value: float
    agrees: bool

    @property
    def rate(self) -> float:
        """The share of the units."""
        return self.alarms / self.units


@dataclass(frozen=True)
class ThresholdCalibration:
    """A threshold for the sums of embedding bags, with its false-alarm rate; made by `calibrate_thresholds`.

    Give it to a bag as ``threshold=``. A bag is then reported if its residual exceeds ``threshold`` times
    ``2^-24 magnitude sqrt(g(n))``, or the bound that rounding can't exceed, whichever is less.

    Attributes
    ----------
    threshold : float
        In units of the residual's scale; infinite for the bound.
    method : str
        ``"bound"``, ``"probabilistic"``, ``"empirical"`` or ``"gpd"``: how it was found in the end.
    target_fpr : float
        The rate asked for.
    unit : str
        What the rate is one of: ``"bag"``, ``"batch"`` (a call) or ``"request"``.
    confidence : float
        Of the interval.
    fpr_interval : (float, float)
        Interval of the false-alarm rate at this threshold.
    samples, distinct : int
        Units that were sampled, and how many different residuals they had.
    extrapolation : float
        How many times rarer the target is than one in `distinct`; up to 1 it lies within the data.
    reason : str
        Why the method is not the one asked for, if so.
    bags_per_unit : int
        Most bags of a sampled unit.
    tail : Tail or None
        The fitted tail, for ``"gpd"``.
    tables : tuple of TableRange
        The tables and the ranges that were seen.
    detectable_bits : dict
        Share of flips of each bit that exceed the threshold: ``"output"`` (32 bits of a float32 output, the lowest first),
        ``"code"`` (8 bits of a code), and both with the bound, ``"output_bound"`` and ``"code_bound"``. On sampled bags.
    curve : tuple of (float, float)
        Normalised residuals with the share of the units beyond each, for plots.
    """

    threshold: float
    method: str
    target_fpr: float
    unit: str
    confidence: float
    fpr_interval: tuple[float, float]
    samples: int
    distinct: int
    extrapolation: float
    reason: str
    bags_per_unit: int
    tail: Tail | None
    tables: tuple[TableRange, ...]
    detectable_bits: dict[str, tuple[float, ...]]
    curve: tuple[tuple[float, float], ...]
    _warned: WeakKeyDictionary[EmbeddingBag, set[str]] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ValueError(f"threshold: got {self.threshold!r}, expected a number >= 0")
        for table in self.tables:
            if len(table.growth) != 5 or not all(abs(g) < math.inf for g in table.growth):
                raise ValueError(f"growth: got {table.growth!r}, expected 5 finite numbers")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_warned"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _warned=WeakKeyDictionary())

    def __str__(self) -> str:
        low, high = self.fpr_interval
        rate = (
            "no false alarm is possible"
            if self.method == "bound"
            else f"false alarms per {self.unit}: {low:.2g} to {high:.2g}"
        )
        return (
            f"{self.method}: threshold {self.threshold:.4g}, {rate}, from {self.samples} samples ({self.distinct} distinct)"
        )

    def growth(self, bag: EmbeddingBag) -> tuple[float, ...]:
        """Return the coefficients for a bag's table; CalibrationWarning if the table has changed.

        Parameters
        ----------
        bag : EmbeddingBag

        Returns
        -------
        tuple of 5 floats

        Raises
        ------
        ValueError
            If no table of this dimension and mode was calibrated.
        """
        return self._table(bag).growth

    def _table(self, bag: EmbeddingBag) -> TableRange:
        digest, shape = table_digest(bag), (bag.shape[1], bag.mode)
        for table in self.tables:
            if table.digest == digest and (table.dim, table.mode) == shape:
                return table
        alike = [table for table in self.tables if (table.dim, table.mode) == shape]
        if not alike:
            known = ", ".join(f"{t.rows} x {t.dim} {t.mode}" for t in self.tables)
            raise ValueError(f"threshold: got a calibration of tables {known}, expected one of {bag!r}")
        self._warn("table", f"{bag!r} is not a table that was calibrated: its digest differs", bag)
        return max(alike, key=lambda table: sum(table.growth))

    def watch(self, bag: EmbeddingBag, offsets: Array, weights: Array | None, stats: Array) -> None:
        """Warn, once of each kind for each table, where a call leaves what was calibrated by more than a factor of 2.

        Parameters
        ----------
        bag : EmbeddingBag
            That was called.
        offsets : int64 array
            Of the call, the last one included.
        weights : float32 array or None
            Per-sample weights.
        stats : (B, 3) float64 array
            Residual, reference and magnitude of each bag.
        """
        table = self._table(bag)
        pooling = np.diff(offsets)
        some = pooling > 0
        most = self.bags_per_unit // len(self.tables)
        if self.unit == "batch" and len(pooling) > most:
            self._warn("batch", f"{len(pooling)} bags of {self._name(bag)} a batch, at most {most} in calibration", bag)
        if not some.any():
            return
        sizes = pooling[some]
        self._compare("pooling", sizes.min(), sizes.max(), table.pooling, bag)
        each = stats[some, 2] / (1 if bag.mode == "mean" else sizes)
        self._compare("magnitude of a look-up", each.min(), each.max(), table.magnitude, bag)
        if weights is not None and not table.weighted:
            self._warn("weights", f"per-sample weights of {self._name(bag)}, none in calibration", bag)

    def _compare(self, what: str, least: float, most: float, seen: tuple[float, float], bag: EmbeddingBag) -> None:
        if least < seen[0] / SLACK or most > seen[1] * SLACK:
            text = f"{what} {least:g} to {most:g} of {self._name(bag)}, {seen[0]:g} to {seen[1]:g} in calibration"
            self._warn(what, text, bag)

    def _name(self, bag: EmbeddingBag) -> str:
        """Return what tells a table from others of its shape: its number among those calibrated."""
        digests = [table.digest for table in self.tables]
        digest = table_digest(bag)
        return f"table {digests.index(digest)}, {bag!r}" if digest in digests else repr(bag)

    def _warn(self, kind: str, text: str, bag: EmbeddingBag) -> None:
        # by the bag, not by its digest: a table that is updated all the time warns once
        warned = self._warned.setdefault(bag, set())
        if kind not in warned:
            warned.add(kind)
            message = f"calibrated threshold: got {text}; the stated false-alarm rate may not hold"
            warnings.warn(message, CalibrationWarning, stacklevel=_caller())

    def verify(self, bag_or_model: EmbeddingBag | DLRM, samples: object, *, include_last_offset: bool = False) -> HeldOut:
        """Count false alarms on other samples, without faults.

        Parameters
        ----------
        bag_or_model, samples, include_last_offset
            As for `calibrate_thresholds`.

        Returns
        -------
        HeldOut

        Raises
        ------
        ValueError
            For samples that do not fit, or none.
        """
        runs = collect(bag_or_model, samples, include_last_offset)
        excess, _ = units_of([self._excess(run) for run in runs], runs[0].calls, self.unit)
        if not excess.size:
            raise ValueError(f"samples: got no {self.unit}, expected at least one")
        different = np.unique(excess)
        alarms, distinct = int((excess > 1).sum()), len(different)
        low, high = self.fpr_interval
        rate, interval = alarms / len(excess), rate_interval(alarms, len(excess), distinct, self.confidence)
        position = "above" if rate > high else "below" if rate < low else "within"
        p_value = probability_of(alarms, len(excess), distinct, high)
        agrees = position != "above" or p_value >= (1 - self.confidence) / 2
        seen = int((different > 1).sum())
        return HeldOut(alarms, len(excess), distinct, seen, interval, position, p_value, agrees)

    def _excess(self, run: TableSamples) -> Array:
        """Return each bag's residual in units of its limit."""
        growth = self._table(run.bag).growth
        limit = limits(self.threshold, growth, run.pooling, run.bag.shape[1], run.magnitude)
        return np.abs(run.residual) / limit

    def plot(self, ax: Any) -> Any:
        """Draw the share of samples beyond each residual, the fitted tail, the threshold and the target.

        Parameters
        ----------
        ax : matplotlib.axes.Axes

        Returns
        -------
        matplotlib.axes.Axes
            The same.
        """
        from sedq.calibration._plot import draw

        return draw(self, ax)

    def to_dict(self) -> dict[str, Any]:
        """Return all attributes as JSON knows them; a threshold of None stands for the bound."""
        body = asdict(self)
        del body["_warned"]
        body["threshold"] = None if self.threshold == math.inf else self.threshold
        return body

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the calibration to a JSON file, through a temporary one.

        Parameters
        ----------
        path : path-like
            Replaced if it exists.
        """
        body = self.to_dict()
        document = {"format": FORMAT, "version": VERSION, "sha256": _digest(body), "calibration": body}
        with replacing(path) as stream:
            stream.write((json.dumps(document, indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ThresholdCalibration:
        """Read a calibration that `save` wrote.

        Parameters
        ----------
        path : path-like

        Returns
        -------
        ThresholdCalibration

        Raises
        ------
        ModelFileError
            For a file that is altered, of another version, or not a calibration.
        OSError
            If the file can't be read.
        """
        with open(path, "rb") as stream:
            text = stream.read()
        try:
            document = json.loads(text)
            body = document["calibration"]
            if (document["format"], document["version"]) != (FORMAT, VERSION):
                raise ValueError(f"got {document['format']!r} version {document['version']!r}")
            if _digest(body) != document["sha256"]:
                raise ValueError("it does not fit its digest")
            made = cls(**_typed(body))
            if wrong := [name for name, kind in get_type_hints(cls).items() if not fits(getattr(made, name), kind)]:
                raise ValueError(f"of another type than it was saved with: {', '.join(wrong)}")
            return made
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ModelFileError(f"{os.fspath(path)}: not a calibration of version {VERSION} ({error})") from None


def _caller() -> int:
    """Return the level of the first caller outside sedq, for warnings that come up through operators and models."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "sedq":
        frame, level = frame.f_back, level + 1
    return level


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _typed(body: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that a JSON object stands for."""
    made = {f.name: _tuples(body[f.name]) for f in fields(ThresholdCalibration) if f.init}
    if made["threshold"] is None:
        made["threshold"] = math.inf
    made["tail"] = None if body["tail"] is None else Tail(**{k: _tuples(v) for k, v in body["tail"].items()})
    made["tables"] = tuple(TableRange(**{k: _tuples(v) for k, v in table.items()}) for table in body["tables"])
    made["detectable_bits"] = {k: _tuples(v) for k, v in body["detectable_bits"].items()}
    return made


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
