"""Scrubbing beside what one thread can read: ``python bench/scrub.py [--quick]``.

The read is a loop over the table's own memory that only sums it (``read.c``), with prefetching of its own or without,
whichever is faster. All run in turn in one process; the ratio is the median of ratios taken round by round. Floor: 80 % of
the read.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import measure
import numpy as np
from embedding import Configuration as Asked
from embedding import fused, table

import sedq

FLOOR = 0.8
BYTES = 2**28
AHEAD = (0, 4096)
OWN = ((8, 32), (8, 64), (8, 128), (8, 256), (4, 64), (4, 128), (2, 128))
VIEWS = ((8, 64), (8, 128), (4, 128))


def reader() -> Callable[[int, int, int], int]:
    """Compile the loop that reads."""
    source = Path(__file__).with_name("read.c")
    with tempfile.TemporaryDirectory() as folder:
        library = os.path.join(folder, "read.so")
        flags = ["-O3", "-march=native", "-shared", "-fPIC"]
        subprocess.run([os.environ.get("CC", "cc"), *flags, str(source), "-o", library], check=True)
        function = ctypes.CDLL(library).sedq_bench_read
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64], ctypes.c_uint64
    return function


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small tables: to try it, not to measure")
    options = parser.parse_args(arguments)
    read = reader()
    print(f"{measure.machine(1)}{', quick: not a measurement' if options.quick else ''}")
    print("GB/s: reading, scrubbing rows of ours or another's, what of it that is; with locating sums and parity compared")
    for kind, bits, dim in (*(("own", *c) for c in OWN), *(("view", *c) for c in VIEWS)):
        rows = (BYTES >> (6 if options.quick else 0)) // (dim * bits // 8 + 16)
        codes, params = table(Asked("", rows, dim, 1, 1), bits, np.random.default_rng(0))
        make = sedq.EmbeddingBag.from_fused if kind == "own" else sedq.EmbeddingBag.view_fused
        bag = make(fused(codes, params, bits), bits=bits, locate=True, parity=64)
        stored, scrubbed = bag.table.rows, bag.table.rows.nbytes
        if bag.table.sidecar is not None:
            scrubbed += bag.table.sidecar.nbytes
        expected = int(stored.reshape(-1)[: stored.size // 128 * 128].view(np.uint64).sum())
        words = stored.size // 8
        if (
            any(read(stored.ctypes.data, words, ahead) != expected for ahead in AHEAD)
            or bag.scrub()
            or bag.scrub(redundancy=True)
        ):
            raise SystemExit(f"{bits} bit, d = {dim}: something is wrong")
        reads = {f"read {ahead}": functools.partial(read, stored.ctypes.data, words, ahead) for ahead in AHEAD}
        seconds = (0.02, 0.02) if options.quick else (1.0, 0.1)
        times = measure.interleaved({**reads, "scrub": bag.scrub}, seconds=seconds[0], least=5)
        deep = measure.interleaved({"deep": functools.partial(bag.scrub, redundancy=True)}, seconds=seconds[1], least=2)
        fastest = min(reads, key=lambda name: measure.median(times, name))
        share = measure.ratio(times, fastest, "scrub") * scrubbed / stored.size
        read_speed = stored.size / measure.median(times, fastest)
        speeds = [scrubbed / measure.median(t, name) for t, name in ((times, "scrub"), (deep, "deep"))]
        print(
            f"{kind:4} {bits} bit, {rows:>10,} x {dim:<3} {read_speed:6.1f} {speeds[0]:6.1f} {share:5.0%} "
            f"(floor {FLOOR:.0%}: {'reached' if share >= FLOOR else 'below'})  {speeds[1]:6.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
