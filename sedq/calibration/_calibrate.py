"""Calibration: from fault-free samples to a threshold with a stated rate."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sedq import _validation
from sedq.calibration import _scale
from sedq.calibration._bits import detectable_bits
from sedq.calibration._result import TableRange, ThresholdCalibration
from sedq.calibration._samples import TableSamples, collect, table_digest, units_of
from sedq.calibration._tail import FEWEST, HIGHEST, Tail, fit_tail, order_statistic, rate_interval, worth_of_highest
from sedq.embedding import EmbeddingBag
from sedq.exceptions import CalibrationWarning
from sedq.models import DLRM

__all__ = ["calibrate_thresholds"]

Array = NDArray[Any]
METHODS = ("auto", "bound", "probabilistic", "empirical", "gpd")
UNITS = ("bag", "batch", "request")
LEAST = round(FEWEST / HIGHEST)  # distinct samples that a tail can be fitted to
CURVE = 400  # points that are kept for plots


class _Choice(NamedTuple):
    """A threshold, how it was found, and the interval of its rate."""

    threshold: float
    method: str
    interval: tuple[float, float]
    tail: Tail | None = None


BOUND = _Choice(math.inf, "bound", (0.0, 0.0))


def calibrate_thresholds(
    bag_or_model: EmbeddingBag | DLRM,
    samples: object,
    target_fpr: float = 1e-6,
    unit: str = "bag",
    *,
    method: str = "auto",
    extrapolate: bool = False,
    confidence: float = 0.95,
    include_last_offset: bool = False,
    rng: int | np.random.Generator = 0,
) -> ThresholdCalibration:
    """Choose a threshold for the sums of embedding bags by a false-alarm rate, from calls without faults.

    The bound that is the default raises no false alarm ever, and is typically a hundred times what rounding does. A
    calibrated threshold is that much more sensitive, at a rate of false alarms that it states.

    Parameters
    ----------
    bag_or_model : EmbeddingBag or DLRM
        Whose tables are used. One threshold serves all of a model.
    samples : call or list of calls
        Without faults, and like those to come. For a bag ``(indices, offsets)``, ``(indices, offsets,
        per_sample_weights)`` or a `sedq.datasets.Trace`; for a model ``(dense, indices, offsets)`` or
        `sedq.datasets.Requests`. Calls should be independent of one another.
    target_fpr : float, default 1e-6
        The false-alarm rate wanted, per `unit`. The upper end of the interval of the rate is to be at most this.
    unit : {"bag", "batch", "request"}, default "bag"
        What the rate is one of. A batch is a call; a request of a model has a bag of each table. An alarm of a unit is one
        of any of its bags: its sample is the largest of theirs.
    method : {"auto", "empirical", "gpd", "probabilistic", "bound"}, default "auto"
        ``"empirical"`` takes an order statistic; ``"gpd"`` fits a generalised Pareto tail to the highest; ``"auto"`` takes
        the first of these that the sample supports; ``"probabilistic"`` is the bound of Higham and Mary, which needs no
        sample but its longest bag; ``"bound"`` is the provable one.
    extrapolate : bool, default False
        Whether a rate may be stated that is rarer than one in the number of distinct samples.
    confidence : float, default 0.95
        Of the interval of the rate.
    include_last_offset : bool, default False
        Whether offsets in tuples have the end of the last bag as one more element.
    rng : int or numpy.random.Generator, default 0
        For the bootstrap.

    Returns
    -------
    ThresholdCalibration
        With the bound, and a CalibrationWarning that says why, if the sample does not support the rate or no tail fits.

    Raises
    ------
    TypeError
        For something that is neither a bag nor a model.
    ValueError
        For samples that do not fit, or settings out of range.
    SoftErrorDetected
        If the samples met corrupted rows.

    References
    ----------
    N. J. Higham, T. Mary, "A new approach to probabilistic rounding error analysis", SIAM J. Sci. Comput. 41(5), 2019.
    S. Coles, "An Introduction to Statistical Modeling of Extreme Values", Springer, 2001.
    J. Zhang, M. A. Stephens, "A new and efficient estimation method for the generalized Pareto distribution",
    Technometrics 51(3), 2009.

    Examples
    --------
    >>> import numpy as np
    >>> import sedq
    >>> rng = np.random.default_rng(0)
    >>> bag = sedq.EmbeddingBag.from_float(rng.normal(size=(1000, 16)).astype(np.float32))
    >>> calls = [(rng.integers(0, 1000, 2000), np.arange(0, 2000, 20)) for _ in range(50)]
    >>> cal = sedq.calibrate_thresholds(bag, calls, target_fpr=1e-3)
    >>> cal.method, cal.fpr_interval[1] <= 1e-3
    ('empirical', True)
    >>> pooled = bag(*calls[0], threshold=cal)
    """
    _check(target_fpr, unit, method, confidence)
    _validation.boolean("extrapolate", extrapolate)
    generator = np.random.default_rng(rng)
    runs = collect(bag_or_model, samples, include_last_offset)
    if method == "probabilistic":
        growths: list[tuple[float, ...]] = [(0.0, 1.0, 5.0, 0.0, 0.0)] * len(runs)
    else:
        growths = [_fitted(run) for run in runs]
    normalised = [_normalised(run, growth) for run, growth in zip(runs, growths, strict=True)]
    units, bags_per_unit = units_of(normalised, runs[0].calls, unit)
    if not units.size:
        raise ValueError(f"samples: got no {unit}, expected at least one")
    distinct = np.unique(units)
    choice, reason = _choose(units, distinct, runs, bags_per_unit, target_fpr, method, extrapolate, confidence, generator)
    if reason:
        warnings.warn(f"{reason}; the bound is used instead", CalibrationWarning, stacklevel=2)
    return ThresholdCalibration(
        threshold=choice.threshold,
        method=choice.method,
        target_fpr=float(target_fpr),
        unit=unit,
        confidence=float(confidence),
        fpr_interval=choice.interval,
        samples=len(units),
        distinct=len(distinct),
        extrapolation=1 / (len(distinct) * target_fpr),
        reason=reason,
        bags_per_unit=bags_per_unit,
        tail=choice.tail,
        tables=tuple(_range(run, growth) for run, growth in zip(runs, growths, strict=True)),
        detectable_bits=detectable_bits(runs, growths, choice.threshold, generator),
        curve=_curve(units),
    )


def _check(target_fpr: float, unit: str, method: str, confidence: float) -> None:
    for name, value in (("target_fpr", target_fpr), ("confidence", confidence)):
        real = isinstance(value, (int, float, np.floating)) and not isinstance(value, bool)
        if not real or not 0 < value < 1:
            raise ValueError(f"{name}: got {_validation.describe(value)}, expected a number between 0 and 1")
    for name, text, known in (("unit", unit, UNITS), ("method", method, METHODS)):
        if text not in known:
            raise ValueError(f"{name}: got {text!r}, expected one of {', '.join(map(repr, known))}")


def _fitted(run: TableSamples) -> tuple[float, ...]:
    parts = _scale.terms(run.bag.shape[1], mean=run.bag.mode == "mean", weighted=run.weighted)
    return _scale.fit_growth(run.residual, run.magnitude, run.pooling, parts, run.repeats)


def _normalised(run: TableSamples, growth: tuple[float, ...]) -> Array:
    """Return |residual| in units of its scale; 0 for bags without magnitude."""
    unit = _scale.scale(growth, run.pooling, run.magnitude)
    return np.abs(np.divide(run.residual, unit, out=np.zeros(len(unit)), where=unit > 0))


def _choose(
    units: Array,
    distinct: Array,
    runs: Sequence[TableSamples],
    bags_per_unit: int,
    target: float,
    method: str,
    extrapolate: bool,
    confidence: float,
    rng: np.random.Generator,
) -> tuple[_Choice, str]:
    """Return the threshold by the method, or the bound and the reason."""
    n, support = len(units), len(distinct)
    if method == "bound":
        return BOUND, ""
    if method == "probabilistic":
        longest = max(int(run.pooling.max(initial=0)) for run in runs)
        widest = max(run.bag.shape[1] for run in runs)
        return _Choice(_scale.probabilistic_lambda(target / bags_per_unit, longest, widest), method, (0.0, target)), ""
    if method in ("auto", "empirical"):
        threshold = order_statistic(np.sort(units), support, target, confidence)
        if threshold is not None:
            beyond = int((units > threshold).sum())
            return _Choice(threshold, "empirical", rate_interval(beyond, n, support, confidence)), ""
        if method == "empirical":
            least = math.ceil(math.log((1 - confidence) / 2) / math.log1p(-target))
            return BOUND, f"samples: got {support} distinct ones, expected at least {least} for a rate of {target:g}"
    if support * target < 1 and not extrapolate:
        return BOUND, (
            f"samples: got {support} distinct ones, which do not support a rate of {target:g}: it is "
            f"{1 / (support * target):.3g} times rarer than one of them (extrapolate=True fits a tail beyond them)"
        )
    fitted = fit_tail(units, distinct, target, confidence, rng)
    if fitted is None:
        worth = worth_of_highest(units, distinct)
        if support >= LEAST and worth < FEWEST:
            return BOUND, (
                f"samples: the highest tenth of {support} distinct ones occur again so often that they are worth "
                f"{worth:.0f}, expected at least {FEWEST} for a tail"
            )
        return BOUND, f"samples: no generalised Pareto tail fits the highest of {support} distinct ones ({LEAST} at least)"
    tail, threshold, interval = fitted
    return _Choice(threshold, "gpd", interval, tail), ""


def _range(run: TableSamples, growth: tuple[float, ...]) -> TableRange:
    some = run.pooling > 0
    sizes = run.pooling[some]
    each = run.magnitude[some] / (1 if run.bag.mode == "mean" else sizes)
    rows, dim = run.bag.shape
    return TableRange(
        digest=table_digest(run.bag),
        rows=rows,
        dim=dim,
        mode=run.bag.mode,
        weighted=run.weighted,
        pooling=(int(sizes.min(initial=2**62)) if some.any() else 0, int(sizes.max(initial=0))),
        magnitude=(float(each.min()), float(each.max())) if some.any() else (0.0, 0.0),
        growth=growth,
    )


def _curve(units: Array) -> tuple[tuple[float, float], ...]:
    """Return residuals with the share of the units beyond them, closer together towards the tail."""
    ordered = np.sort(units)[::-1]
    ranks = np.unique(np.geomspace(1, len(ordered), CURVE).astype(np.int64)) - 1
    return tuple((float(ordered[r]), float(r / len(ordered))) for r in ranks[::-1])
