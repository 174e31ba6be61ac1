"""int8 linear beside unprotected peers: ``python bench/gemm.py [--threads N] [--shapes paper|mlperf|all]``.

uint8 in, uint8 out, weight scales per channel, bias 0. Every result is checked before anything is timed: ours against the
NumPy reference, a peer's against ours (on AVX2 peers saturate, which is said). Ratios are medians of ratios taken round by
round, all variants in one process, in turn.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import measure
import numpy as np
import peers

import sedq
from helpers import oracles

# (m, n, k): the shapes of Li et al., arXiv:2103.00130
PAPER = (
    [(1, n, k) for n, k in ((128, 512), (1024, 256), (2048, 512), (4096, 1024), (800, 3200), (800, 8000))]
    + [(1, 128, 2876), (1, 128, 2722)]
    + [(6, n, k) for n, k in ((256, 1024), (256, 2048), (512, 512), (1024, 256), (2048, 256), (2048, 512))]
    + [(6, n, k) for n, k in ((4096, 256), (4096, 1024), (4096, 2048))]
    + [(m, n, k) for m in (10, 20) for n, k in ((2048, 256), (4096, 1024))]
    + [(102, 1024, 512), (102, 2323, 256), (102, 512, 256)]
    + [(16, 256, 1500), (16, 256, 1567), (16, 128, 1567), (16, 256, 512)]
)
# layers of MLPerf's DLRM at several batch sizes
MLPERF = [
    (m, n, k)
    for m in (1, 32, 256, 2048)
    for n, k in ((512, 13), (256, 512), (128, 256), (1024, 479), (1024, 1024), (512, 1024), (256, 512), (1, 256))
]
EXTRA = [(256, 1024, 1024), (2048, 512, 13), (2048, 1, 256)]
SETS = {"paper": PAPER, "mlperf": MLPERF, "extra": EXTRA, "all": PAPER + MLPERF + EXTRA}
ACTIVATION = {
    "x_scale": peers.X_SCALE,
    "x_zero_point": peers.X_ZERO,
    "y_scale": peers.Y_SCALE,
    "y_zero_point": peers.Y_ZERO,
}


def compare(m: int, n: int, k: int, threads: int, rng: np.random.Generator) -> tuple[measure.Times, list[str], list[str]]:
    """Time all variants on one shape; times, names of peers, and remarks."""
    x = rng.integers(0, 256, (m, k), dtype=np.uint8)
    w = rng.integers(-128, 128, (n, k), dtype=np.int8)
    scale = np.full(n, 0.01, np.float32)
    packed = sedq.pack_weights(w, scale, bias=np.zeros(n, np.float32))
    variants = {
        check: (lambda c=check: sedq.qlinear(x, packed, **ACTIVATION, check=c, num_threads=threads))
        for check in ("off", "exact", "full")
    }
    expected = oracles.qlinear(x, w, scale=scale, bias=np.zeros(n, np.float32), **ACTIVATION)
    for check, call in variants.items():
        if not np.array_equal(call(), expected):
            raise SystemExit(f"{(m, n, k)}: check={check!r} is wrong")
    remarks, names = [], []
    for name, (call, read) in peers.linear_peers(x, w, scale, threads).items():
        y = read(call())
        differ = y != expected
        if differ.mean() > 0.001:  # they round differently now and then
            off_by = np.abs(y.astype(int) - expected)[differ].max()
            remarks.append(f"{name} differs in {differ.mean():.1%}, by up to {off_by}")
        variants[name] = call
        names.append(name)
    return measure.interleaved(variants), names, remarks


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shapes", choices=SETS, default="paper")
    options = parser.parse_args(arguments)
    rng = np.random.default_rng(0)
    peak = measure.vnni_peak()
    print(measure.machine(options.threads))
    print("microseconds, medians; cost of the checks; of the VNNI peak of one core; protected against the fastest peer")
    print(f"{'m, n, k':>16} {'off':>9} {'exact':>9} {'cost':>7} {'full':>7} {'peak':>6} {'speed-up':>8}   peers")
    costs, fulls, speedups = [], [], []
    for m, n, k in SETS[options.shapes]:
        peak_now = peak() if peak else float("nan")
        times, names, remarks = compare(m, n, k, options.threads, rng)
        off = measure.median(times, "off")
        costs.append(measure.ratio(times, "exact", "off"))
        fulls.append(measure.ratio(times, "full", "off"))
        speedup = min((measure.ratio(times, name, "exact") for name in names), default=float("nan"))
        speedups.append(speedup)
        others = ", ".join(f"{name} {measure.median(times, name) / 1e3:.1f}" for name in names)
        print(
            f"{f'{m}, {n}, {k}':>16} {off / 1e3:9.2f} {measure.median(times, 'exact') / 1e3:9.2f} "
            f"{costs[-1] - 1:+7.1%} {fulls[-1] - 1:+7.1%} {m * n * k / off / peak_now:6.0%} {speedup:8.2f}   {others}"
            f"{'; ' + '; '.join(remarks) if remarks else ''}",
            flush=True,
        )
    print(
        f"geometric mean: exact {measure.geometric_mean(costs) - 1:+.1%} (worst {max(costs) - 1:+.1%}), "
        f"full {measure.geometric_mean(fulls) - 1:+.1%}, speed-up {measure.geometric_mean(speedups):.2f} "
        f"(least {min(speedups):.2f})"
    )


if __name__ == "__main__":
    main()
