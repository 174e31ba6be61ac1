"""What a call from Python costs: ``python bench/calls.py``.

The smallest product and the smallest bag, so that nearly all is the call: whole, and the compiled part alone; beside the
peers that are installed. Microseconds, medians, in turn in one process.
"""

from __future__ import annotations

import measure
import numpy as np
import peers
from gemm import ACTIVATION

import sedq
from sedq._core import _gemm


def main() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.integers(0, 256, (1, 16), dtype=np.uint8), rng.integers(-128, 128, (16, 16), dtype=np.int8)
    scale = np.full(16, 0.01, np.float32)
    packed = sedq.pack_weights(w, scale, bias=np.zeros(16, np.float32))
    bag = sedq.EmbeddingBag.from_float(rng.normal(size=(16, 16)).astype(np.float32))
    index, offsets = np.zeros(1, np.int64), np.zeros(1, np.int64)
    sedq.qlinear(x, packed, **ACTIVATION)
    (epilogue,) = packed._epilogues.values()
    kernels, out = sedq.get_config().kernels, np.empty((1, 16), np.uint8)
    variants = {
        "qlinear (1, 16, 16)": lambda: sedq.qlinear(x, packed, **ACTIVATION, num_threads=1),
        "... with the surrounding settings": lambda: sedq.qlinear(x, packed, **ACTIVATION),
        "... unchecked": lambda: sedq.qlinear(x, packed, **ACTIVATION, check="off", num_threads=1),
        "... the compiled part": lambda: _gemm.linear(kernels, packed._core, epilogue, x, out, 1, 1),
        "EmbeddingBag, one row of 16": lambda: bag(index, offsets),
    }
    variants |= {name: call for name, (call, _) in peers.linear_peers(x, w, scale, 1).items()}
    times = measure.interleaved(variants)
    print(measure.machine(1))
    for name in variants:
        print(f"{name:>36} {measure.median(times, name) / 1e3:7.2f} us")


if __name__ == "__main__":
    main()
