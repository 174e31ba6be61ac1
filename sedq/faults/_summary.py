"""Figures of a campaign: outcomes counted by stratum, rates with their intervals, sizes, and whether the goal holds."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sedq import _statistics
from sedq.datasets import auc
from sedq.faults import _strike, _targets
from sedq.faults._worker import FLOAT_SITES, Record

__all__ = [
    *("LEAST", "NEVER", "OUTCOMES", "STATES", "by", "goal", "one_word", "promised", "row", "scores_auc", "sizes", "stratum"),
    *("rate_text", "unsized"),
]

OUTCOMES = (
    "masked",
    "detected_consequential",
    "detected_benign",
    "tolerated",
    "sdc",
    "miscorrected",
    "crash",
    "hang",
    "false_alarm",
)
# what no check of a call can see: nothing knows what the caller's data was
UNSEEN = (*_strike.INPUT_SITES, "indices.consumed")
# computed, stored and summed alike wrongly: seen only by computing twice
TWICE_ONLY = ("requantised", *FLOAT_SITES)
# no fault is consequential: only the checks read it, or the unprotected call verifies it too
NEVER = (*_strike.DETECTOR_SITES, *_targets.AT_REST)
FINITE = 1e38
LEAST = 0.1  # the largest bound of the rate of misses that counts as evidence for a goal without a rate
STATES = ("holds", "fails", "unknown")


def stratum(record: Record) -> str:
    """Return the site of a record; faults that stay in a kernel or strike every time are a site of their own."""
    site = str(record["site"])
    return f"{site} (stuck)" if record["persistent"] and site in (*_strike.KERNEL_SITES, _strike.FLOW_SITE) else site


def one_word(record: Record) -> bool:
    """Whether the fault of a record changes one word."""
    return not str(record["model"]).startswith(("PairedError", "Dummy"))


def promised(record: Record, check: str) -> bool:
    """Whether a level of checking promises to see a fault of this kind: one word, in what the check covers."""
    site = stratum(record)
    if site.endswith("(stuck)") or site in UNSEEN or not one_word(record):
        return False
    if check == "full":
        return True
    if check == "exact":
        return site not in TWICE_ONLY
    if check == "digest":
        return site in ("table.codes", "table.scale", "table.bias", "pooled")
    return False


def counted(records: Iterable[Record], confidence: float) -> dict[str, Any]:
    """Count trials, those that are consequential, and of these what was missed: not noticed, or answered wrongly."""
    counts = Counter(str(r["outcome"]) for r in records)
    missed = counts["sdc"] + counts["miscorrected"]
    consequential = missed + counts["detected_consequential"]
    return {
        "trials": counts.total(),
        "consequential": consequential,
        "missed": missed,
        "missed_bound": _statistics.upper_bound(missed, consequential, confidence),
    }


def row(records: Sequence[Record], check: str, confidence: float) -> dict[str, Any]:
    """Count the outcomes of some trials and state the rates."""
    counts, found = Counter(str(r["outcome"]) for r in records), counted(records, confidence)
    right, consequential = found["consequential"] - found["missed"], found["consequential"]
    low, high = _statistics.interval(right, consequential, confidence)
    detected = [r for r in records if r["outcome"] in ("detected_consequential", "detected_benign", "miscorrected")]
    wrong = [r["error"] for r in records if r["outcome"] in ("sdc", "miscorrected")]
    return {
        **found,
        "outcomes": {name: counts[name] for name in OUTCOMES},
        "detection": {"rate": right / consequential if consequential else None, "low": low, "high": high},
        "promised": counted((r for r in records if promised(r, check)), confidence),
        "corrected": sum(1 for r in detected if r["error"] == 0),
        "rungs": dict(sorted(Counter(str(r["rung"]) for r in detected if r["rung"]).items())),
        "largest_missed": max(wrong, default=0.0),
        "largest_damage": max((r["damage"] for r in records), default=0.0),
    }


def rate_text(row: dict[str, Any]) -> str:
    """State the rate of consequential faults noticed and answered rightly: an interval, or a bound if none was missed."""
    n = row["consequential"]
    if not n:
        return (
            "none can be consequential"
            if str(row.get("site")).removesuffix(" (stuck)") in NEVER
            else "none was consequential"
        )
    if not row["missed"]:
        return f"0 of {n:,} missed or wrong: rate < {row['missed_bound']:.2g}"
    d = row["detection"]
    return f"{d['rate']:.2%} ({d['low']:.2%} to {d['high']:.2%})"


def by(
    records: Iterable[Record], key: Callable[[Record], tuple[Any, ...]], names: Sequence[str], check: str, confidence: float
) -> list[dict[str, Any]]:
    """Group records and count each group."""
    groups: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in records:
        groups[key(record)].append(record)
    return [dict(zip(names, k, strict=True)) | row(groups[k], check, confidence) for k in sorted(groups)]


def _returned(record: Record) -> bool:
    """Whether the protected call returned a result, and not the right one."""
    none = record["rung"] in ("raise", "refuse") or record["outcome"] in ("crash", "hang")
    return bool(record["error"] > 0 and not none)


def _sized(records: Iterable[Record], check: str) -> Iterator[tuple[str, str, float]]:
    """Yield (site, what it is, size) of all changed results, but those of faults of the detector."""
    for r in records:
        if r["site"] in _strike.DETECTOR_SITES:
            continue
        site, bad = stratum(r), r["outcome"] in ("sdc", "miscorrected")
        if r["damage"] > 0:
            yield site, "unprotected", r["damage"]
        if _returned(r):
            yield site, "returned", r["error"]
            if bad and promised(r, check):
                yield site, "promised", r["error"]


def sizes(records: Iterable[Record], check: str) -> list[dict[str, Any]]:
    """Count, by site and decade of the change, results that changed without protection, and those returned with it."""
    counts: dict[tuple[str, int], Counter[str]] = defaultdict(Counter)
    for site, name, size in _sized(records, check):
        if size < FINITE:
            counts[site, max(-12, math.floor(math.log10(size)))][name] += 1
    names = ("unprotected", "returned", "promised")
    return [{"site": site, "decade": decade} | {n: c[n] for n in names} for (site, decade), c in sorted(counts.items())]


def unsized(records: Iterable[Record], check: str) -> dict[str, int]:
    """Count what `sizes` leaves out: results that are not finite, or of calls that gave none."""
    counts = Counter(name for _, name, size in _sized(records, check) if size >= FINITE)
    return {name: counts[name] for name in ("unprotected", "returned", "promised")}


def goal(records: Iterable[Record], check: str, rate: float | None, confidence: float, quiet: int = 0) -> dict[str, Any]:
    """Say whether the goal holds.

    Without a rate: no fault that the check promises to see was missed or wrongly corrected, no call without a fault raised
    an alarm, and so many faults were consequential that the rate of misses is shown to be below `LEAST`. With one: no
    false alarm, and the rate of consequential faults that were missed is, with this confidence, no larger. "unknown" says
    that so few faults were consequential that nothing is shown either way. `quiet` calls were made without a fault, and
    without an alarm, apart from the trials.
    """
    every = list(records)
    alarms = sum(1 for r in every if r["outcome"] == "false_alarm")
    free = quiet + sum(1 for r in every if not r["changed"])
    counts = counted(every if rate is not None else (r for r in every if promised(r, check)), confidence)
    missed, n = counts["missed"], counts["consequential"]
    limit = LEAST if rate is None else rate
    shown = _statistics.upper_bound(0, n, confidence) <= limit  # with no miss at all
    if alarms or (missed and (rate is None or _statistics.interval(missed, n, confidence)[0] > rate)):
        state = "fails"
    elif not shown:
        state = "unknown"
    else:
        state = "holds" if rate is None or counts["missed_bound"] <= rate else "fails"
    return {
        "rate": rate,
        **counts,
        "false_alarms": alarms,
        "fault_free": free,
        "false_alarm_bound": _statistics.upper_bound(alarms, free, confidence),
        "state": state,
        "holds": state == "holds",
    }


def scores_auc(
    records: Iterable[Record], outputs: Sequence[NDArray[Any]], labels: Sequence[NDArray[Any]]
) -> dict[str, float] | None:
    """Area under the ROC curve if every batch met one fault: without faults, unprotected, and protected.

    A request without an answer, because the call raised, counts as 0.5. None if one label is missing.
    """
    truth, clean, plain, guarded = [], [], [], []
    for r in records:
        b = r["batch"]
        sound = outputs[b]
        none = np.full(len(sound), 0.5)
        truth.append(labels[b])
        clean.append(sound)
        plain.append(_scores(r.get("scores"), sound if r["damage"] == 0 else none))
        guarded.append(_scores(r.get("answers"), sound if r["error"] == 0 else none))
    if not truth or len(set(np.concatenate(truth).tolist())) < 2:
        return None
    y = np.concatenate(truth)
    return {
        name: auc(y, np.nan_to_num(np.concatenate(s)))
        for name, s in (("without_faults", clean), ("unprotected", plain), ("protected", guarded))
    }


def _scores(given: Any, otherwise: NDArray[Any]) -> NDArray[Any]:
    return otherwise if given is None else np.asarray(given)
