"""Figures of a campaign: outcomes counted by stratum, rates with their intervals, sizes, and whether the goal holds."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sedq import _statistics
from sedq.datasets import auc
from sedq.faults import _strike
from sedq.faults._worker import FLOAT_SITES, Record

__all__ = ["OUTCOMES", "by", "goal", "one_word", "promised", "row", "scores_auc", "sizes", "stratum"]

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


def of_promised(records: Iterable[Record], check: str, confidence: float) -> dict[str, Any]:
    """Count what was missed, or wrongly corrected, of the consequential faults that the check promises to see."""
    counts = Counter(str(r["outcome"]) for r in records if promised(r, check))
    missed = counts["sdc"] + counts["miscorrected"]
    consequential = missed + counts["detected_consequential"]
    return {
        "trials": sum(counts.values()),
        "consequential": consequential,
        "missed": missed,
        "missed_bound": _statistics.upper_bound(missed, consequential, confidence),
    }


def row(records: Sequence[Record], check: str, confidence: float) -> dict[str, Any]:
    """Count the outcomes of some trials and state the rates."""
    counts = Counter(str(r["outcome"]) for r in records)
    outcomes = {name: counts[name] for name in OUTCOMES}
    seen = outcomes["detected_consequential"] + outcomes["miscorrected"]
    consequential = seen + outcomes["sdc"]
    low, high = _statistics.interval(seen, consequential, confidence)
    detected = [r for r in records if r["outcome"] in ("detected_consequential", "detected_benign", "miscorrected")]
    return {
        "trials": len(records),
        "outcomes": outcomes,
        "consequential": consequential,
        "missed": outcomes["sdc"],
        "detection": {"rate": seen / consequential if consequential else None, "low": low, "high": high},
        "missed_bound": _statistics.upper_bound(outcomes["sdc"], consequential, confidence),
        "promised": of_promised(records, check, confidence),
        "corrected": sum(1 for r in detected if r["error"] == 0),
        "rungs": dict(sorted(Counter(str(r["rung"]) for r in detected if r["rung"]).items())),
        "largest_missed": max((r["error"] for r in records if r["outcome"] == "sdc"), default=0.0),
        "largest_damage": max((r["damage"] for r in records), default=0.0),
    }


def by(
    records: Iterable[Record], key: Callable[[Record], tuple[Any, ...]], names: Sequence[str], check: str, confidence: float
) -> list[dict[str, Any]]:
    """Group records and count each group."""
    groups: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in records:
        groups[key(record)].append(record)
    return [dict(zip(names, k, strict=True)) | row(groups[k], check, confidence) for k in sorted(groups)]


def sizes(records: Iterable[Record], check: str) -> list[dict[str, Any]]:
    """Count what was seen and what was missed by site and by decade of the change of the unprotected result."""
    counts: dict[tuple[str, int], Counter[str]] = defaultdict(Counter)
    for r in records:
        if 0 < r["damage"] < 1e38 and r["site"] not in _strike.DETECTOR_SITES:
            seen = "missed" if r["outcome"] in ("sdc", "tolerated", "masked") else "seen"
            count = counts[stratum(r), max(-12, math.floor(math.log10(r["damage"])))]
            count[seen] += 1
            count["promised_missed"] += seen == "missed" and promised(r, check)
    names = ("seen", "missed", "promised_missed")
    return [{"site": site, "decade": decade} | {n: c[n] for n in names} for (site, decade), c in sorted(counts.items())]


def goal(records: Iterable[Record], check: str, rate: float | None, confidence: float) -> dict[str, Any]:
    """Say whether the goal holds.

    Without a rate: no fault that the check promises to see was missed or wrongly corrected, no trial without a fault raised
    an alarm. With one: no false alarm, and the rate of consequential faults that were missed is, with this confidence, no
    larger.
    """
    every = list(records)
    alarms = sum(1 for r in every if r["outcome"] == "false_alarm")
    if rate is None:
        counts = of_promised(every, check, confidence)
        holds = counts["missed"] == 0
    else:
        outcomes = Counter(str(r["outcome"]) for r in every)
        missed = outcomes["sdc"] + outcomes["miscorrected"]
        consequential = missed + outcomes["detected_consequential"]
        bound = _statistics.upper_bound(missed, consequential, confidence)
        counts = {"trials": len(every), "consequential": consequential, "missed": missed, "missed_bound": bound}
        holds = bound <= rate
    return {"rate": rate, **counts, "false_alarms": alarms, "holds": bool(holds and not alarms)}


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
