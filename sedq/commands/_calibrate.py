"""``sedq calibrate``: calibrate on the first half of some requests, count false alarms on the second."""

from __future__ import annotations

import argparse
import json
import math
import warnings
from pathlib import Path
from typing import Any

from sedq import _info
from sedq.calibration._calibrate import METHODS, UNITS, calibrate_thresholds
from sedq.calibration._result import HeldOut, ThresholdCalibration
from sedq.datasets import Requests, load_msweb
from sedq.datasets._requests import read_requests
from sedq.exceptions import CalibrationWarning, SoftErrorDetected
from sedq.files._replacing import check_distinct, check_target, replacing
from sedq.models import DLRM

__all__ = ["add_parser", "run"]

REPORT_VERSION = 1


def add_parser(commands: Any) -> None:
    """Add the command to the parsers of ``sedq``."""
    parser = commands.add_parser(
        "calibrate",
        help="choose a threshold by its false-alarm rate",
        description="Calibrate the threshold of a model's embedding bags on the first half of the requests and count false "
        "alarms on the second. Exit status 1 if their rate lies above the stated interval and as many have a probability "
        "below 0.025 at its upper end, 2 if the run is invalid.",
    )
    parser.add_argument("--model", type=Path, metavar="FILE", help="a saved model (default: the packaged MSWeb model)")
    parser.add_argument(
        "--requests",
        type=Path,
        metavar="FILE",
        help=".npz with dense, indices_0, offsets_0, indices_1, ..., offsets with the last one (default: the packaged ones)",
    )
    parser.add_argument(
        "--target-fpr", type=float, default=1e-6, metavar="RATE", help="false alarms per unit (default 1e-6)"
    )
    parser.add_argument("--unit", choices=UNITS, default="request", help="what the rate is one of (default request)")
    parser.add_argument("--method", choices=METHODS, default="auto", help="how the threshold is found (default auto)")
    parser.add_argument("--extrapolate", action="store_true", help="state rates that are rarer than the sample shows")
    parser.add_argument("--batch", type=int, default=64, help="requests of a call (default 64)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    parser.add_argument(
        "--save", type=Path, metavar="FILE", help="write the calibration to FILE, for ThresholdCalibration.load"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the calibration and what was counted to FILE")


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    for option in ("json", "save"):
        check_target(f"--{option}", getattr(options, option))
    check_distinct({f"--{name}": getattr(options, name) for name in ("model", "requests", "save", "json")})
    for option, least in (("batch", 1), ("seed", 0)):
        if getattr(options, option) < least:
            raise ValueError(f"--{option}: got {getattr(options, option)}, expected {least} or more")
    if not 0 < options.target_fpr < 1:
        raise ValueError(f"--target-fpr: got {options.target_fpr}, expected a number between 0 and 1")
    model, requests, name = _load(options)
    first, second = _halves(requests, options.batch)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CalibrationWarning)  # the table says why
            calibration = calibrate_thresholds(
                model,
                first,
                options.target_fpr,
                options.unit,
                method=options.method,
                extrapolate=options.extrapolate,
                rng=options.seed,
            )
        held = calibration.verify(model, second)
    except SoftErrorDetected as error:
        raise ValueError(f"the samples must be free of faults: {error}") from None
    except (IndexError, TypeError) as error:
        raise ValueError(f"--requests: got {options.requests}, which the model refuses: {error}") from None
    if options.save is not None:
        calibration.save(options.save)
    if options.json is not None:
        with replacing(options.json) as stream:
            stream.write((json.dumps(_document(name, calibration, held), indent=2) + "\n").encode())
    print(_table(name, calibration, held))
    return 0 if held.agrees else 1


def _load(options: argparse.Namespace) -> tuple[DLRM, Requests, str]:
    data = load_msweb()
    if options.model is not None:
        model, name = DLRM.load(options.model), str(options.model)
    else:
        c = data.calibration
        model = DLRM(data.bottom, data.tables, data.top, data.modes)
        model.quantize((c.dense, c.indices, c.offsets), include_last_offset=True)
        name = "MSWeb"
    requests = data.heldout if options.requests is None else read_requests(options.requests)
    if options.requests is None and [bag.shape[0] for bag in model.bags] != [len(table) for table in data.tables]:
        raise ValueError(f"--model: got {options.model}, whose tables the packaged requests do not fit; give --requests")
    return model, requests, name


def _halves(requests: Requests, size: int) -> tuple[list[Requests], list[Requests]]:
    """Return the calls of each half. Neighbours, which may be one user's, stay on one side."""
    middle = len(requests) // 2 // 4 * 4
    calls = []
    for begin, end in ((0, middle), (middle, len(requests))):
        calls.append([requests.batch(start, min(start + size, end)) for start in range(begin, end, size)])
        if not calls[-1]:
            raise ValueError(f"--requests: got {len(requests)} requests, expected at least 8")
    return calls[0], calls[1]


def _rate(value: float) -> str:
    return f"{value:.2g}"


def _bits(calibration: ThresholdCalibration, what: str) -> str:
    """Say from which bit on most flips are seen, with the threshold and with the bound."""
    first = [
        next((bit for bit, share in enumerate(calibration.detectable_bits.get(name, ())) if share > 0.5), None)
        for name in (what, f"{what}_bound")
    ]
    return "{} (bound: {})".format(*("none" if bit is None else bit for bit in first))


def _table(name: str, calibration: ThresholdCalibration, held: HeldOut) -> str:
    """Return what is printed."""
    c, tail = calibration, calibration.tail
    percent = f"{100 * c.confidence:g} %"
    stated = (
        "none possible" if c.method == "bound" else f"{_rate(c.fpr_interval[0])} to {_rate(c.fpr_interval[1])} ({percent})"
    )
    at = "the rounding bound" if c.threshold == math.inf else f"{c.threshold:.3f} of the residual's scale"
    lines = [
        f"sedq {_info.versions()['sedq']}, {_info.versions()['instruction set chosen']}",
        f"{name}: {len(c.tables)} tables, {c.samples} {_plural(c.unit)} to calibrate ({c.distinct} distinct), "
        f"{held.units} held out ({held.distinct})",
        "",
        f"threshold       {c.method}, {at}",
        f"false alarms    {stated} per {c.unit}, target {_rate(c.target_fpr)}",
        f"held out        {held.alarms} of {held.units} ({held.distinct_alarms} distinct), rate {_rate(held.rate)}, "
        f"{_rate(held.interval[0])} to {_rate(held.interval[1])} ({percent})",
    ]
    if tail is not None:
        lines.append(
            f"tail            shape {tail.shape:.3f} ({tail.shape_interval[0]:.3f} to {tail.shape_interval[1]:.3f}) over "
            f"{tail.level:.3f}, {tail.exceedances} excesses, p = {tail.p_value:.2f} (Anderson-Darling)"
        )
        lines.append(f"extrapolation   {_rate(c.extrapolation)} times beyond one in {c.distinct} samples")
    lines.append(f"most flips seen from output bit {_bits(c, 'output')}, from code bit {_bits(c, 'code')}")
    if c.reason:
        lines += ["", f"{c.reason}; the bound stays"]
    return "\n".join([*lines, "", _verdict(c, held)])


def _verdict(calibration: ThresholdCalibration, held: HeldOut) -> str:
    """Say where the rate counted lies, and what that means."""
    if held.position == "within":
        return "the rate counted lies within the stated interval"
    if held.position == "below":
        return "the rate counted lies below the stated interval: fewer false alarms than stated"
    chance = f"at its upper end, {_rate(calibration.fpr_interval[1])}, as many have a probability of {_rate(held.p_value)}"
    if held.agrees:
        return f"the rate counted lies above the stated interval, which chance can explain: {chance}"
    return f"THE COUNT CONTRADICTS THE STATED RATE: it lies above the interval, and {chance}"


def _plural(unit: str) -> str:
    return "batches" if unit == "batch" else f"{unit}s"


def _document(name: str, calibration: ThresholdCalibration, held: HeldOut) -> dict[str, Any]:
    counted = {
        "alarms": held.alarms,
        "units": held.units,
        "distinct": held.distinct,
        "distinct_alarms": held.distinct_alarms,
        "rate": held.rate,
        "interval": list(held.interval),
        "position": held.position,
        "p_value": held.p_value,
        "agrees": held.agrees,
    }
    return {
        "version": REPORT_VERSION,
        "versions": _info.versions(),
        "model": name,
        "calibration": calibration.to_dict(),
        "held_out": counted,
    }
