"""Two threads against one: ``python bench/threads.py [--threads N]``, protected products of a millisecond and more.

Ratios of medians, in turn in one process, results compared first.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence

import measure
import numpy as np
from gemm import ACTIVATION

import sedq

# (m, n, k): many rows, and few rows with many columns
SHAPES = [(256, 1024, 1024), (2048, 512, 256), (102, 2323, 1024), (20, 4096, 2048), (6, 8192, 4096), (1, 16384, 4096)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    threads = parser.parse_args(arguments).threads
    rng = np.random.default_rng(0)
    print(measure.machine(threads))
    print(f"{'m, n, k':>18} {'1 thread':>12} {f'{threads} threads':>12} {'ratio':>7}")
    for m, n, k in SHAPES:
        x = rng.integers(0, 256, (m, k), dtype=np.uint8)
        packed = sedq.pack_weights(rng.integers(-128, 128, (n, k), dtype=np.int8), np.full(n, 0.01, np.float32))
        variants = {
            str(count): functools.partial(sedq.qlinear, x, packed, **ACTIVATION, num_threads=count) for count in (1, threads)
        }
        first, *others = [call() for call in variants.values()]
        if not all(np.array_equal(first, other) for other in others):
            raise SystemExit(f"{(m, n, k)}: results differ by the number of threads")
        times = measure.interleaved(variants, seconds=1.0)
        one, many = measure.median(times, "1"), measure.median(times, str(threads))
        ratio = measure.ratio(times, "1", str(threads))
        print(f"{f'{m}, {n}, {k}':>18} {one / 1e3:>9.0f} us {many / 1e3:>9.0f} us {ratio:7.2f}", flush=True)


if __name__ == "__main__":
    main()
