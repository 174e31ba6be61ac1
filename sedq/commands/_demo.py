"""The demonstration: a trained model answers real requests while faults are injected into it.

One fault strikes each batch of requests, drawn from the seed before the run: a flipped bit in a stored weight, in a stored
table row, in an int32 accumulator, or in the activations between two layers. Faults in memory stay until something
repairs them, as they would. Two copies of the model meet the same faults: one unprotected, one protected.
"""

from __future__ import annotations

import copy
import re
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from sedq import _info, detection
from sedq._config import config_context
from sedq.datasets import MSWeb, Requests, auc, load_msweb
from sedq.exceptions import SoftErrorDetected
from sedq.faults import _inject
from sedq.models import DLRM

__all__ = ["passed", "run", "table"]

Array = NDArray[Any]
BATCH = 16
TIMED_BATCHES = (64, 512)
TIMED_REPEATS = 200
SITES = ("weights", "table", "accumulator", "activation")


@dataclass(frozen=True)
class Fault:
    """One fault: where it strikes, as numbers that are read modulo what there is."""

    site: str
    target: tuple[int, ...]
    bit: int


@dataclass
class Arm:
    """What one copy of the model did under faults."""

    scores: list[Array] = field(default_factory=list)
    raised: int = 0


def _call(model: DLRM, r: Requests, check: str, num_threads: int | None = None) -> Array:
    return model(r.dense, r.indices, r.offsets, include_last_offset=True, check=check, num_threads=num_threads)


def _batches(requests: Requests, size: int = BATCH) -> list[Requests]:
    return [requests.batch(start, start + size) for start in range(0, len(requests), size)]


def _layers(model: DLRM) -> list[tuple[str, int]]:
    return [("bottom", i) for i in range(len(model.bottom))] + [("top", i) for i in range(len(model.top))]


def plan(model: DLRM, batches: list[Requests], rng: np.random.Generator) -> list[Fault]:
    """Draw one fault per batch: the sites in turn, everything else uniformly."""
    layers, faults = _layers(model), []
    for number, batch in enumerate(batches):
        site = SITES[number % len(SITES)]
        if site == "weights":
            which = int(rng.integers(len(layers)))
            n, k = getattr(model, layers[which][0])[layers[which][1]].packed.shape
            faults.append(Fault(site, (which, int(rng.integers(n)), int(rng.integers(k))), int(rng.integers(8))))
        elif site == "table":
            which = int(rng.integers(len(model.bags)))
            rows, dim = model.bags[which].shape
            faults.append(Fault(site, (which, int(rng.integers(rows))), int(rng.integers(8 * (dim + 8)))))
        elif site == "accumulator":
            with config_context(on_error="raise"):
                visits = _inject.count_visits(lambda b=batch: _call(model, b, "off"))  # type: ignore[misc]
            target = (int(rng.integers(visits)), int(rng.integers(2**16)))
            faults.append(Fault(site, target, int(rng.integers(32))))
        else:
            which = int(rng.integers(1, len(layers)))  # the first layer reads the request itself
            faults.append(Fault(site, (which, int(rng.integers(2**31))), int(rng.integers(8))))
    return faults


def _strike_and_call(model: DLRM, batch: Requests, fault: Fault, check: str) -> Array:
    """Answer a batch while a fault strikes."""
    if fault.site == "accumulator":
        visit, element = fault.target
        with _inject.accumulator_fault("tile", visit=visit, element=element, flip=1 << fault.bit):
            return _call(model, batch, check)
    if fault.site == "activation":
        mlp, layer = _layers(model)[fault.target[0]]
        with _inject.activation_fault(model, mlp, layer, byte=fault.target[1], bit=fault.bit):
            return _call(model, batch, check)
    if fault.site == "weights":
        mlp, layer = _layers(model)[fault.target[0]]
        _inject.flip_weight_bit(getattr(model, mlp)[layer].packed, fault.target[1], fault.target[2], fault.bit)
    else:
        _inject.flip_row_bit(model.bags[fault.target[0]], fault.target[1], fault.bit)
    return _call(model, batch, check)


def _names(fault: Fault, event: detection.Event, model: DLRM) -> bool:
    """Whether an event says that it healed this fault in memory."""
    if fault.site == "weights":
        mlp, layer = _layers(model)[fault.target[0]]
        return event.operator == f"{mlp}.{layer}" and f"W[{fault.target[1]}, {fault.target[2]}]" in event.detail
    if fault.site == "table":
        rows = {row for part in re.findall(r"rows \[(.*?)\]", event.detail) for row in part.split(", ")}
        return event.operator == f"table.{fault.target[0]}" and str(fault.target[1]) in rows
    return False


def _protected(
    model: DLRM, batches: list[Requests], faults: list[Fault], expected: list[Array]
) -> tuple[Arm, dict[str, Counter[str]], int]:
    """Run the protected arm; outcomes by site, and the number of checks."""
    arm, checks = Arm(), 0
    outcomes = {site: Counter[str]() for site in SITES}
    latent: list[Fault] = []  # in memory, not yet read by any check
    for batch, fault, sound in zip(batches, faults, expected, strict=True):
        outcomes[fault.site]["injected"] += 1
        with detection.monitor() as m:
            try:
                scores = _strike_and_call(model, batch, fault, "exact")
                outcome = "corrected"
            except SoftErrorDetected:
                scores, outcome = np.full(len(batch), 0.5, np.float32), "raised"
                arm.raised += 1
        checks += m.total_checks
        arm.scores.append(scores)
        wrong = outcome == "corrected" and not np.array_equal(scores, sound)
        named = [f for f in latent if any(_names(f, event, model) for event in m.events)]
        others = [e for e in m.events if not any(_names(f, e, model) for f in named)]
        for f in named:
            outcomes[f.site]["detected"] += 1
            outcomes[f.site][outcome] += 1
            latent.remove(f)
        if others:
            outcomes[fault.site]["detected"] += 1
            outcomes[fault.site]["missed" if wrong else outcome] += 1
        elif wrong:
            outcomes[fault.site]["missed"] += 1
        elif fault.site in ("weights", "table"):
            latent.append(fault)
        else:
            outcomes[fault.site]["masked"] += 1
    for fault in latent:  # no result ever depended on them
        outcomes[fault.site]["masked"] += 1
    return arm, outcomes, checks


def _unprotected(model: DLRM, batches: list[Requests], faults: list[Fault]) -> Arm:
    arm = Arm()
    for batch, fault in zip(batches, faults, strict=True):
        arm.scores.append(_strike_and_call(model, batch, fault, "off"))
    return arm


def _damage(arm: Arm, expected: Array, labels: Array) -> dict[str, Any]:
    scores = np.concatenate(arm.scores)
    change = np.abs(scores - expected)
    return {
        "auc": auc(labels, scores),
        "largest_score_change": float(change.max()),
        "requests_changed": int((scores != expected).sum()),
        "requests_changed_by_more_than_0.01": int((change > 0.01).sum()),
        "batches_refused": arm.raised,
    }


def _times(model: DLRM, requests: Requests) -> list[dict[str, float]]:
    """Median time per batch, unprotected and protected in turn, on one thread."""
    results = []
    for size in TIMED_BATCHES:
        batch = requests.batch(0, size)
        seconds: dict[str, list[float]] = {"off": [], "exact": []}
        for _ in range(TIMED_REPEATS):
            for check, taken in seconds.items():
                start = time.perf_counter()
                _call(model, batch, check, num_threads=1)
                taken.append(time.perf_counter() - start)
        off, exact = (statistics.median(seconds[check]) * 1e6 for check in ("off", "exact"))
        results.append({"batch": size, "unprotected_us": off, "protected_us": exact, "ratio": exact / off})
    return results


def _fault_free(model: DLRM, batches: list[Requests]) -> tuple[list[Array], dict[str, int]]:
    """Answer everything protected, without faults."""
    with detection.monitor() as m:
        scores = [_call(model, batch, "exact") for batch in batches]
    return scores, {"checks": m.total_checks, "false_alarms": m.detections}


def _say(stream: TextIO | None, text: str) -> None:
    if stream is not None:
        print(text, file=stream, flush=True)


def build(data: MSWeb) -> DLRM:
    """Build the packaged model and quantise it on its calibration sample."""
    model = DLRM(data.bottom, data.tables, data.top, data.modes)
    c = data.calibration
    return model.quantize((c.dense, c.indices, c.offsets), include_last_offset=True)


def run(*, seed: int = 0, progress: TextIO | None = None) -> dict[str, Any]:
    """Run the demonstration.

    Parameters
    ----------
    seed : int, default 0
        Of the faults.
    progress : file, optional
        Where to say what is being done.

    Returns
    -------
    dict
        The figures, as the JSON document of ``sedq demo --json``.
    """
    data = load_msweb()
    requests, labels = data.heldout, data.heldout.labels
    batches = _batches(requests)
    _say(progress, f"quantising the model on {len(data.calibration)} training requests")
    model = build(data)
    _say(progress, f"answering {len(requests)} held-out requests without faults")
    exact = model.predict_float(requests.dense, requests.indices, requests.offsets, include_last_offset=True)
    plain = np.concatenate([_call(model, batch, "off") for batch in batches])
    sound, fault_free = _fault_free(model, batches)
    expected = np.concatenate(sound)
    _say(progress, "timing")
    times = _times(model, requests)
    _say(progress, f"injecting {len(batches)} faults, unprotected")
    faults = plan(model, batches, np.random.default_rng(seed))
    struck = _unprotected(copy.deepcopy(model), batches, faults)
    _say(progress, f"injecting the same {len(batches)} faults, protected")
    guarded, outcomes, checks = _protected(copy.deepcopy(model), batches, faults, sound)
    names = ("injected", "masked", "detected", "corrected", "raised", "missed")
    by_site = {site: {name: outcomes[site][name] for name in names} for site in SITES}
    return {
        "format": "sedq-demo",
        "version": 1,
        "environment": _info.versions(),
        "seed": seed,
        "requests": len(requests),
        "requests_per_batch": BATCH,
        "auc": {
            "float": auc(labels, exact),
            "int8_unprotected": auc(labels, plain),
            "int8_protected": auc(labels, expected),
        },
        "time_per_batch": times,
        "fault_free": fault_free,
        "faults_per_1000_requests": 1000 / BATCH,
        "faults": by_site | {"all": {name: sum(by_site[s][name] for s in SITES) for name in names}},
        "checks_under_faults": checks,
        "under_faults": {
            "unprotected": _damage(struck, plain, labels),
            "protected": _damage(guarded, expected, labels),
        },
    }


def passed(result: dict[str, Any]) -> bool:
    """Whether no consequential fault was missed and no false alarm raised."""
    return bool(result["faults"]["all"]["missed"] == 0 and result["fault_free"]["false_alarms"] == 0)


def table(result: dict[str, Any]) -> str:
    """Return the figures as a table to be read."""
    env, scores, under = result["environment"], result["auc"], result["under_faults"]
    lines = [
        f"sedq {env['sedq']}, {env['instruction set chosen']}, {env['cpu']}",
        f"MSWeb: {result['requests']} held-out requests, {len(load_msweb().tables)} tables, int8",
        "",
        "Without faults              AUC",
        f"  float model            {scores['float']:.4f}",
        f"  int8, unprotected      {scores['int8_unprotected']:.4f}",
        f"  int8, protected        {scores['int8_protected']:.4f}",
        f"  {result['fault_free']['checks']} checks made, {result['fault_free']['false_alarms']} false alarms",
        "",
        "Time per batch        unprotected    protected    ratio   (one thread)",
    ]
    lines += [
        f"  {t['batch']:>5} requests     {t['unprotected_us']:>8.0f} us  {t['protected_us']:>8.0f} us    {t['ratio']:.3f}"
        for t in result["time_per_batch"]
    ]
    lines += [
        "",
        f"With one flipped bit per {result['requests_per_batch']} requests "
        f"({result['faults_per_1000_requests']:g} per 1000; in memory until repaired)",
        "                                unprotected    protected",
        f"  AUC                            {under['unprotected']['auc']:>10.4f}   {under['protected']['auc']:>10.4f}",
        f"  largest change of a score      {under['unprotected']['largest_score_change']:>10.4f}   "
        f"{under['protected']['largest_score_change']:>10.4f}",
        f"  requests answered differently  {under['unprotected']['requests_changed']:>10}   "
        f"{under['protected']['requests_changed']:>10}",
        f"  ... by more than 0.01          {under['unprotected']['requests_changed_by_more_than_0.01']:>10}   "
        f"{under['protected']['requests_changed_by_more_than_0.01']:>10}",
        "",
        "Faults, protected    injected  masked  detected  corrected  raised  missed",
    ]
    lines += [
        f"  {site:<18} {f['injected']:>8} {f['masked']:>7} {f['detected']:>9} "
        f"{f['corrected']:>10} {f['raised']:>7} {f['missed']:>7}"
        for site, f in result["faults"].items()
    ]
    verdict = "no consequential fault missed" if not result["faults"]["all"]["missed"] else "CONSEQUENTIAL FAULTS MISSED"
    alarms = "no false alarm" if not result["fault_free"]["false_alarms"] else "FALSE ALARMS RAISED"
    return "\n".join([*lines, "", f"{verdict}, {alarms}"])
