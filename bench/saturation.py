"""What peers return on AVX2 with full-range operands, beside what sedq returns.

Run as ``FBGEMM_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 SEDQ_ISA=avx2 python bench/saturation.py``: on AVX2 they
multiply bytes with vpmaddubsw, which saturates at 16 bits.
"""

from __future__ import annotations

import measure
import numpy as np
import peers

import sedq
from helpers import oracles


def main(m: int = 64, n: int = 512, k: int = 256) -> None:
    print(measure.machine(1))
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (m, k), dtype=np.uint8)
    w = rng.integers(-128, 128, (n, k), dtype=np.int8)
    scale, bias = np.full(n, 0.01, np.float32), np.zeros(n, np.float32)
    activation = {
        "x_scale": peers.X_SCALE,
        "x_zero_point": peers.X_ZERO,
        "y_scale": peers.Y_SCALE,
        "y_zero_point": peers.Y_ZERO,
    }
    exact = oracles.qlinear(x, w, scale=scale, bias=bias, **activation).astype(int)
    results = {name: read(call()) for name, (call, read) in peers.linear_peers(x, w, scale, 1).items()}
    results["sedq"] = sedq.qlinear(x, sedq.pack_weights(w, scale, bias=bias), **activation)
    print(f"({m}, {n}, {k}), operands over their whole range, sedq on {sedq.versions()['instruction set chosen']}")
    for name, y in results.items():
        error = np.abs(y.astype(int) - exact)
        print(f"{name:>14}: {(error > 0).mean():6.1%} of outputs differ, by up to {error.max()} of 255")


if __name__ == "__main__":
    main()
