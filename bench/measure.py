"""Timing for the benchmarks: variants in turn in one process, medians, ratios pair by pair."""

from __future__ import annotations

import ctypes
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

import sedq

sys.path.append(str(Path(__file__).parent.parent / "tests"))  # helpers.oracles computes what results must be

__all__ = ["Times", "geometric_mean", "interleaved", "machine", "vnni_peak"]

Times = dict[str, list[float]]


def interleaved(
    variants: Mapping[str, Callable[[], object]], *, seconds: float = 0.3, least: int = 15, most: int = 2000
) -> Times:
    """Time variants in turn; nanoseconds per call of each round.

    A round calls each variant often enough to last some 20 microseconds, so that the clock doesn't show, after one call
    that isn't timed, and in an order of its own: or else who follows whom would show in what the caches hold.
    """
    repeats = {}
    for name, call in variants.items():
        call()
        start = time.perf_counter_ns()
        call()
        repeats[name] = max(1, int(20_000 / max(1, time.perf_counter_ns() - start)))
    times: Times = {name: [] for name in variants}
    names, order = list(variants), random.Random(0)
    begin = time.perf_counter()
    for done in range(most):
        if done >= least and time.perf_counter() - begin > seconds * len(variants):
            break
        order.shuffle(names)
        for name in names:
            call, n = variants[name], repeats[name]
            call()
            start = time.perf_counter_ns()
            for _ in range(n):
                call()
            times[name].append((time.perf_counter_ns() - start) / n)
    return times


def median(times: Times, name: str) -> float:
    """Median nanoseconds of a variant."""
    return statistics.median(times[name])


def ratio(times: Times, above: str, below: str) -> float:
    """Median of the ratios of two variants, round by round."""
    return statistics.median(a / b for a, b in zip(times[above], times[below], strict=True))


def geometric_mean(values: Sequence[float]) -> float:
    """Geometric mean."""
    return float(np.exp(np.mean(np.log(values))))


def vnni_peak() -> Callable[[], float] | None:
    """Return a function that measures multiply-adds per nanosecond of one core, or None without AVX-512 VNNI."""
    from sedq._core import _dispatch

    if "avx512vnni" not in _dispatch.available() or "avx512vnni" in _dispatch.emulated():
        return None
    source = Path(__file__).with_name("peak.c")
    with tempfile.TemporaryDirectory() as folder:
        library = os.path.join(folder, "peak.so")
        flags = ["-O2", "-shared", "-fPIC", "-mavx512f", "-mavx512vnni"]
        subprocess.run([os.environ.get("CC", "cc"), *flags, str(source), "-o", library], check=True)
        function = ctypes.CDLL(library).sedq_bench_peak
    function.argtypes, function.restype = [ctypes.c_int64], ctypes.c_int32

    def once(rounds: int) -> float:
        start = time.perf_counter_ns()
        function(rounds)
        return rounds * 24 * 64 / (time.perf_counter_ns() - start)

    def measure() -> float:
        return max(once(20_000) for _ in range(10))  # whatever else ran, it can only have been slower

    return measure


def machine(threads: int) -> str:
    """Say what is measured on what."""
    v = sedq.versions()
    return f"{v['cpu']}, {v['instruction set chosen']}, {threads} thread{'s' if threads > 1 else ''}, sedq {v['sedq']}"
