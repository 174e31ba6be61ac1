"""Whether calibrated thresholds keep what they state: one threshold for bags of every size, and rates on held-out samples.

    python bench/calibration.py [--plot FILE]

Tables are seeded: normal random rows, those of the MSWeb model apart. Calibrated on one part of the samples, counted on the
other, never seen before. Nothing but the sampling is random, and that is seeded: the output is the same every time.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sedq
from sedq._statistics import clopper_pearson
from sedq.calibration import HeldOut, ThresholdCalibration, _samples, _scale, calibrate_thresholds
from sedq.datasets import Requests, Trace, load_msweb, load_pydocs_trace, synthetic_trace
from sedq.datasets._requests import Bags

Array = NDArray[Any]
SIZES = (1, 2, 3, 5, 10, 30, 100, 300, 1000, 3000, 10_000)
DIM, ROWS = 64, 32_000


def table(seed: int, rows: int = ROWS, dim: int = DIM) -> sedq.EmbeddingBag:
    """Return a bag of normal random rows."""
    return sedq.EmbeddingBag.from_float(np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32))


def by_size() -> None:
    """One threshold, bags of 1 to 10,000 look-ups: residuals by size, and how often each size raises a false alarm."""
    rng = np.random.default_rng(1)
    popular = synthetic_trace(65_536, rows=ROWS).indices
    draws: dict[str, Callable[[int], Array]] = {
        "rows drawn evenly": lambda k: rng.integers(0, ROWS, k),
        "rows as popular as in production": lambda k: rng.choice(popular, k),
    }
    for name, draw in draws.items():
        bag = table(2)

        def calls(draw: Callable[[int], Array] = draw) -> list[tuple[Array, Array]]:
            counts = {n: max(300, min(4000, 1_000_000 // n)) for n in SIZES}
            return [(draw(n * count), np.arange(0, n * count, n)) for n, count in counts.items()]

        cal = calibrate_thresholds(bag, calls(), 1e-3, method="gpd")
        (run,) = _samples.collect(bag, calls(), False)
        z = np.abs(run.residual) / _scale.scale(cal.tables[0].growth, run.pooling, run.magnitude)
        print(f"\nOne threshold for bags of every size, {name}, d = {DIM}: {cal}")
        head = "look-ups", "bags", "r/(uM) rms", "normalised rms", "99 %", "largest", "alarms"
        print("{:>10} {:>6} {:>11} {:>15} {:>6} {:>8} {:>7}".format(*head))
        for n in SIZES:
            some = run.pooling == n
            raw = run.residual[some] / (_scale.UNIT * run.magnitude[some])
            rms, highest = np.sqrt((z[some] ** 2).mean()), np.quantile(z[some], 0.99)
            alarms = int((z[some] > cal.threshold).sum())
            print(
                f"{n:10,} {some.sum():6,} {np.sqrt((raw**2).mean()):11.3f} {rms:15.2f} {highest:6.2f} {z[some].max():8.2f} "
                f"{alarms:7}"
            )


def halves(trace: Trace, seed: int) -> tuple[Trace, Trace]:
    """Return two halves of a trace, of bags drawn at random."""
    order = np.random.default_rng(seed).permutation(len(trace))
    whole = Bags(trace.indices, trace.offsets)
    parts = [whole.take(part) for part in np.array_split(order, 2)]
    return tuple(Trace(p.indices, p.offsets, trace.rows) for p in parts)  # type: ignore[return-value]


def report(name: str, cal: ThresholdCalibration, held: HeldOut) -> None:
    """Print a line: what is stated, what was counted, and the lowest bit of an output of which half the flips are seen."""
    stated = "{:.1e} to {:.1e}".format(*cal.fpr_interval)
    counted = "{:.1e} to {:.1e}".format(*held.interval)
    bit, bound = (next(b for b in range(32) if cal.detectable_bits[key][b] > 0.5) for key in ("output", "output_bound"))
    print(
        f"{name:18} {cal.target_fpr:6.0e} {cal.method:>9} {cal.threshold:6.2f}  {stated:18}  {held.alarms:5}/{held.units:<7}"
        f"{held.distinct_alarms:5} {held.rate:8.1e}  {counted:18}  {held.position:6} "
        f"{'' if held.agrees else 'NO':3} {bit:2}/{bound}"
    )


def held_out(pairs: list[tuple[str, Any, Any, Any, str]]) -> None:
    """Calibrate on the first part, count on the second."""
    head = "samples, unit", "target", "method", "at", "stated, 95 %", "alarms", "diff.", "rate", "counted, 95 %", "rate is"
    print("\nHeld out\n{:18} {:>6} {:>9} {:>6}  {:18}  {:>13}{:>5} {:>8}  {:18}  {:10} bit/bound".format(*head))
    for name, target, first, second, unit in pairs:
        for rate in (1e-2, 1e-3, 1e-4, 1e-6):
            for method in ("empirical", "gpd"):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", sedq.CalibrationWarning)
                    cal = calibrate_thresholds(target, first, rate, unit, method=method, extrapolate=True)
                    if cal.method == "bound":
                        print(f"{f'{name}, {unit}':18} {rate:6.0e} {method:>9}  bound  {cal.reason.partition(': ')[2]}")
                        continue
                    held = cal.verify(target, second)
                report(f"{name}, {unit}", cal, held)


def many_tables(trace: Trace, rate: float, tables: int = 60) -> None:
    """Say how often intervals hold: a small trace with many tables, each calibrated by itself."""
    agreed, alarms, units = 0, 0, 0
    positions = dict.fromkeys(("within", "above", "below"), 0)
    for seed in range(tables):
        bag = table(seed)
        first, second = halves(trace, seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", sedq.CalibrationWarning)
            cal = calibrate_thresholds(bag, first, rate, method="gpd", extrapolate=True)
        held = cal.verify(bag, second)
        alarms, units = alarms + held.alarms, units + held.units
        agreed += held.agrees
        positions[held.position] += 1
    low, high = clopper_pearson(alarms, units)
    print(
        f"pydocs, {tables} tables, gpd, target {rate:g}: {alarms} alarms of {units} held-out bags, {alarms / units:.2g} "
        f"({low:.2g} to {high:.2g}); the held-out rate within the stated interval {positions['within']} times, "
        f"above {positions['above']}, below {positions['below']}; {agreed} agree"
    )


def parts_of(requests: Requests) -> tuple[Requests, Requests]:
    """Return two halves; a user's requests are neighbours and stay together."""
    middle = len(requests) // 2 // 4 * 4
    return requests.batch(0, middle), requests.batch(middle, len(requests))


def main() -> None:
    """Print all figures, and draw the picture if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--plot", help="draw the calibrations of the synthetic trace to this file")
    options = parser.parse_args()
    by_size()
    data = load_msweb()
    c = data.calibration
    model = sedq.DLRM(data.bottom, data.tables, data.top, data.modes)
    model.quantize((c.dense, c.indices, c.offsets), include_last_offset=True)
    trace, shaped = load_pydocs_trace(), synthetic_trace(400_000, rows=ROWS, rng=3)
    bag = table(0)
    held_out(
        [
            ("MSWeb", model, *parts_of(data.heldout), "request"),
            ("MSWeb", model, *parts_of(data.heldout), "bag"),
            ("pydocs", bag, *halves(trace, 0), "bag"),
            ("synthetic", bag, *halves(shaped, 0), "bag"),
        ]
    )
    print()
    for rate in (1e-2, 1e-3):
        many_tables(trace, rate)
    if options.plot:
        draw(bag, shaped, options.plot)


def draw(bag: sedq.EmbeddingBag, trace: Trace, path: str) -> None:
    """Draw a calibration within the data and one beyond them."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for ax, rate in zip(axes, (1e-3, 1e-6), strict=True):
        cal = calibrate_thresholds(bag, trace.batch(0, 20_000), rate, method="gpd", extrapolate=True)
        cal.plot(ax)
        ax.set_title(
            f"target {rate:g}: {'within the data' if cal.extrapolation < 1 else f'{cal.extrapolation:.0f} x beyond'}"
        )
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
