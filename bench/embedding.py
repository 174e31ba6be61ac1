"""EmbeddingBag beside unprotected peers: ``python bench/embedding.py [--quick] [--bits 8|4] [--threads N] [--only NAME]``.

PyTorch's quantised bag and FBGEMM's table-batched one, over the same rows; what is not installed is left out. Each call
of a variant takes the next of many sets of indices, together larger than the caches, and no two variants are near
the same set at a time. Every result is checked before anything is timed. Times are medians, all variants in one process, in
turn; ratios are medians of ratios taken round by round. Whole Python calls, int32 indices and offsets for all.

``--quick`` takes small tables and few rounds: to see that it runs, not to measure.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import measure
import numpy as np
import peers
from numpy.typing import NDArray

import sedq

Array = NDArray[Any]
# one call: indices (L,), offsets (B + 1,), both int32, and weights (L,) or None
Request = tuple[Array, Array, Array | None]

TOUCHED = 2**30  # bytes of rows that the sets of one configuration name: many times the last-level cache
# goals and floors of the design: protected against the fastest unprotected peer, by (bits, where)
SPEED = {(8, "DRAM"): (1.15, 1.25), (8, "cache"): (1.0, 1.15), (4, "DRAM"): (1.2, 1.4), (4, "cache"): (1.6, 1.9)}
COST = {"narrow": (0.20, 0.12), "DRAM": (0.10, 0.06), "cache": (0.30, 0.20)}
THREADS = (1.7, 1.85)


@dataclass(frozen=True)
class Configuration:
    """A table and how it is asked."""

    name: str
    rows: int
    dim: int
    batch: int
    pooling: int
    where: str = "DRAM"
    weighted: bool = False
    trace: str = ""  # "pydocs" or "synthetic": indices from a trace instead of uniform ones

    @property
    def title(self) -> str:
        """How the table of results names it."""
        what = self.trace or f"{self.batch} x {self.pooling}"
        return f"{self.rows:>9,} x {self.dim:<3} {what:>10}{' weighted' if self.weighted else ''}"


CONFIGURATIONS = [
    *(Configuration("dram", 4_000_000, d, 10, 100) for d in (32, 64, 128)),
    Configuration("dram", 2_000_000, 256, 10, 100),
    *(Configuration("dram", 4_000_000, d, 10, 100, weighted=True) for d in (64, 128)),
    Configuration("short", 2_000_000, 128, 256, 8),
    *(Configuration("cache", 2000, d, 256, 40, "cache") for d in (64, 128)),
    Configuration("cache", 2000, 64, 256, 40, "cache", weighted=True),
    *(Configuration("pydocs", 32_000, d, 64, 0, "cache", trace="pydocs") for d in (64, 128)),
    *(Configuration("synthetic", 4_000_000, d, 64, 0, trace="synthetic") for d in (64, 128)),
]
THREADED = Configuration("threads", 4_000_000, 64, 256, 100)


def table(c: Configuration, bits: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Random codes (rows, bytes), and scales and biases (rows, 2) that float16 holds exactly."""
    codes = rng.integers(0, 256, (c.rows, c.dim * bits // 8), dtype=np.uint8)
    params = np.column_stack([rng.uniform(0.001, 0.01, c.rows), rng.normal(0, 0.1, c.rows)]).astype(np.float16)
    return codes, params


def fused(codes: Array, params: Array, bits: int) -> Array:
    """The rows in the layout that PyTorch has for these bits."""
    stored = params.astype("<f4") if bits == 8 else params
    return np.hstack([codes, stored.view(np.uint8)])


def sets(c: Configuration, bits: int, quick: bool, rng: np.random.Generator) -> list[Request]:
    """Requests to take in turn."""
    if c.trace:
        made = list(traced(c, quick))
    else:
        length = c.batch * c.pooling
        line = 64 * -(-(c.dim * bits // 8 + 8) // 64)  # bytes of memory that a look-up touches, about
        count = 4 if c.where == "cache" else max(8, TOUCHED // (length * line) // (100 if quick else 1))
        offsets = np.arange(0, length + 1, c.pooling, dtype=np.int32)
        made = [(rng.integers(0, c.rows, length, dtype=np.int32), offsets, None) for _ in range(count)]
    if c.weighted:
        made = [(i, o, rng.uniform(0.5, 1.5, len(i)).astype(np.float32)) for i, o, _ in made]
    return made


def traced(c: Configuration, quick: bool) -> Iterator[Request]:
    """Batches of a trace, in its order."""
    if c.trace == "pydocs":
        trace = sedq.datasets.load_pydocs_trace()
    else:
        trace = sedq.datasets.synthetic_trace(2048 if quick else 65_536, rows=c.rows)
    for first in range(0, len(trace) - c.batch, c.batch):
        batch = trace.batch(first, first + c.batch)
        yield batch.indices.astype(np.int32), batch.offsets.astype(np.int32), None


def expected(codes: Array, params: Array, bits: int, request: Request) -> tuple[Array, Array]:
    """What the first request must give, in float64, and the magnitude that rounding scales with."""
    indices, offsets, weights = request
    q = codes[indices]
    if bits == 4:
        q = np.stack([q & 15, q >> 4], axis=2).reshape(len(q), -1)
    scale, bias = params[indices].astype(np.float64).T
    w = np.ones(len(indices)) if weights is None else weights.astype(np.float64)
    values = (w * scale)[:, None] * q + (w * bias)[:, None]
    size = (w * scale)[:, None] * q + np.abs(w * bias)[:, None]
    bags = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    out, magnitude = np.zeros((2, len(offsets) - 1, values.shape[1]))
    np.add.at(out, bags, values)
    np.add.at(magnitude, bags, size)
    return out, magnitude


def in_turn(
    call: Callable[[Array, Array, Array | None], object], requests: list[Request], first: int
) -> Callable[[], object]:
    """Call with one request after the other, from the `first` on."""
    order = itertools.cycle(requests[first:] + requests[:first])
    return lambda: call(*next(order))


def our_calls(bag: sedq.EmbeddingBag, threads: Sequence[int]) -> dict[str, Callable[..., Any]]:
    """Ours, unprotected and protected, by name; with the number of threads where there are several."""

    def call(check: str, n: int) -> Callable[..., Any]:
        return lambda i, o, w: bag(i, o, w, True, check=check, num_threads=n)

    several = len(threads) > 1
    return {f"{check}{n if several else ''}": call(check, n) for check in ("off", "exact") for n in threads}


def compare(c: Configuration, bits: int, threads: Sequence[int], quick: bool) -> tuple[measure.Times, list[str]]:
    """Check and time all variants on one configuration; times, and names of peers."""
    rng = np.random.default_rng(0)
    codes, params = table(c, bits, rng)
    requests = sets(c, bits, quick, rng)
    variants = our_calls(sedq.EmbeddingBag.from_fused(fused(codes, params, bits), bits=bits), threads)
    others = peers.bag_peers(codes, params, bits, max(threads))
    want, magnitude = expected(codes, params, bits, requests[0])
    del codes, params
    variants |= {name: call for name, (call, _) in others.items()}
    for name, call in variants.items():
        read = others[name][1] if name in others else np.asarray
        if not (np.abs(read(call(*requests[0])) - want) <= 1e-5 * magnitude).all():
            raise SystemExit(f"{c.title}: {name} is wrong")
    timed = {
        name: in_turn(call, requests, n * len(requests) // len(variants)) for n, (name, call) in enumerate(variants.items())
    }
    seconds, least = (0.02, 3) if quick else (1.0, 50)
    return measure.interleaved(timed, seconds=seconds, least=least, most=4000), list(others)


def mark(value: float, floor: float, goal: float, *, less: bool = False) -> str:
    """Say what of floor and goal a figure reaches."""
    sign = -1 if less else 1
    return "goal" if sign * value >= sign * goal else "floor" if sign * value >= sign * floor else "below"


def report(c: Configuration, bits: int, times: measure.Times, names: Sequence[str]) -> str:
    """One line of the table."""
    cost = measure.ratio(times, "exact", "off") - 1
    speed = min((measure.ratio(times, name, "exact") for name in names), default=float("nan"))
    floor, goal = COST["narrow" if c.where == "DRAM" and c.dim < 64 else c.where]
    least, aim = SPEED[bits, c.where]
    others = ", ".join(f"{name} {measure.median(times, name) / 1e3:.1f}" for name in names)
    return (
        f"{c.title:<36} {c.where:>5} {measure.median(times, 'off') / 1e3:8.1f} {measure.median(times, 'exact') / 1e3:8.1f} "
        f"{cost:+7.1%} {floor:4.0%}/{goal:<4.0%}{mark(cost, floor, goal, less=True):>5} "
        f"{speed:6.2f} {least:4.2f}/{aim:4.2f} {mark(speed, least, aim):>5}   {others}"
    )


def report_threads(c: Configuration, times: measure.Times) -> str:
    """Two threads against one."""
    gains = {check: measure.ratio(times, f"{check}1", f"{check}2") for check in ("off", "exact")}
    return (
        f"{c.title}: two threads against one: off {gains['off']:.2f}, exact {gains['exact']:.2f} "
        f"(floor {THREADS[0]}, goal {THREADS[1]}: {mark(gains['exact'], *THREADS)}); "
        + ", ".join(f"{name} {measure.median(times, name) / 1e3:.1f}" for name in times)
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small tables, few rounds: to try it, not to measure")
    parser.add_argument("--bits", type=int, choices=(8, 4), default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", action="append", choices=sorted({c.name for c in CONFIGURATIONS} | {"threads"}))
    options = parser.parse_args(arguments)
    print(
        measure.machine(options.threads) + f", {options.bits} bit" + (", quick: not a measurement" if options.quick else "")
    )
    print("microseconds, medians; cost of check='exact' (floor/goal); protected against the fastest peer (floor/goal)")
    print(f"{'rows x d, batch x pooling':<36} {'':>5} {'off':>8} {'exact':>8} {'cost':>7} {'':>14} {'speed-up':>6}")
    for c in CONFIGURATIONS:
        if options.only and c.name not in options.only:
            continue
        small = shrunk(c) if options.quick else c
        print(report(small, options.bits, *compare(small, options.bits, [options.threads], options.quick)), flush=True)
    if not options.only or "threads" in options.only:
        c = shrunk(THREADED) if options.quick else THREADED
        print(report_threads(c, compare(c, options.bits, (1, 2), options.quick)[0]))


def shrunk(c: Configuration) -> Configuration:
    """A small table, asked the same way."""
    rows = c.rows if c.trace == "pydocs" else min(c.rows, 20_000)
    return Configuration(c.name, rows, c.dim, c.batch, c.pooling, c.where, c.weighted, c.trace)


if __name__ == "__main__":
    main()
