"""Many tables in one call: ``python bench/collection.py [--quick] [--bits 8|4] [--threads N]``.

Tables of unequal widths, asked for unequally many rows, beside FBGEMM's table-batched bags over the same rows (left out if
not installed) and beside one call a table. Each call takes the next of several requests. Results are checked first; times
are medians, all variants in one process, in turn; ratios are medians of ratios taken round by round.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import measure
import numpy as np
import peers
from embedding import Configuration, Request, fused, in_turn, table
from numpy.typing import NDArray

import sedq

Array = NDArray[Any]
# rows, d, look-ups of a bag: mostly few, some many
WIDTHS, POOLINGS = (64, 32, 128, 64, 64, 32, 128, 64), (1, 1, 4, 10, 20, 40, 60, 120)
TABLES = [(200_000, d, pooling) for d, pooling in zip(WIDTHS, POOLINGS, strict=True)]
BATCH = 64
BALANCE = 1.7  # two threads against one


def requests(shapes: Sequence[tuple[int, int, int]], count: int, rng: np.random.Generator) -> list[Request]:
    """Requests in the order of a KeyedJaggedTensor, int32."""
    lengths = np.repeat([pooling for _, _, pooling in shapes], BATCH)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    made = []
    for _ in range(count):
        parts = [rng.integers(0, rows, BATCH * pooling, dtype=np.int32) for rows, _, pooling in shapes]
        made.append((np.concatenate(parts), offsets, None))
    return made


def one_by_one(bags: Sequence[sedq.EmbeddingBag], check: str, threads: int) -> Callable[..., Array]:
    """One call a table, and the results side by side."""

    def call(indices: Array, offsets: Array, weights: Array | None) -> Array:
        parts = []
        for number, bag in enumerate(bags):
            at = offsets[number * BATCH : (number + 1) * BATCH + 1]
            part = bag(indices[at[0] : at[-1]], at - at[0], None, True, check=check, num_threads=threads)
            parts.append(part)
        return np.hstack(parts)

    return call


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small tables: to try it, not to measure")
    parser.add_argument("--bits", type=int, choices=(8, 4), default=8)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    rng = np.random.default_rng(0)
    shapes = [(rows // (100 if options.quick else 1), d, pooling) for rows, d, pooling in TABLES]
    tables = [table(Configuration("", rows, d, 1, 1), options.bits, rng) for rows, d, _ in shapes]
    bags = [sedq.EmbeddingBag.from_fused(fused(*t, options.bits), bits=options.bits) for t in tables]
    collection = sedq.EmbeddingBagCollection(bags)
    made = requests(shapes, 4 if options.quick else 64, rng)

    def ours(check: str, n: int) -> Callable[..., Array]:
        return lambda i, o, w: collection(i, o, w, check=check, num_threads=n)

    print(f"{measure.machine(options.threads)}{', quick: not a measurement' if options.quick else ''}")
    print(f"{len(shapes)} tables, {options.bits} bit, batch {BATCH}, {len(made[0][0])} look-ups; microseconds")
    print(f"{'':10}{'TBE':>9}{'off':>9}{'exact':>9}{'each':>9}   exact against TBE, off, each")
    seconds = 0.05 if options.quick else 2.0
    for n in (1, options.threads):
        calls = {"off": ours("off", n), "exact": ours("exact", n), "each": one_by_one(bags, "exact", n)}
        try:
            calls["TBE"], read = peers.tables_peer(tables, options.bits, n)
        except ImportError:
            pass
        else:
            np.testing.assert_allclose(read(calls["TBE"](*made[0])), calls["exact"](*made[0]), rtol=0, atol=1e-2)
        np.testing.assert_array_equal(calls["exact"](*made[0]), calls["each"](*made[0]))
        variants = {name: in_turn(call, made, at * len(made) // len(calls)) for at, (name, call) in enumerate(calls.items())}
        times = measure.interleaved(variants, seconds=seconds)
        medians = [
            f"{measure.median(times, k) / 1e3:9.0f}" if k in times else f"{'-':>9}" for k in ("TBE", *list(calls)[:3])
        ]
        ratios = [f"{measure.ratio(times, k, 'exact'):.2f}" if k in times else "-" for k in ("TBE", "off", "each")]
        print(f"{n} thread{'s' if n > 1 else ' '} {''.join(medians)}   {', '.join(ratios)}", flush=True)
    pair = {str(n): in_turn(ours("exact", n), made, at) for n, at in ((1, 0), (options.threads, len(made) // 2))}
    gain = measure.ratio(measure.interleaved(pair, seconds=seconds), "1", str(options.threads))
    verdict = "reached" if gain >= BALANCE else "below"
    print(f"{options.threads} threads against one: {gain:.2f} (floor for two {BALANCE}: {verdict})")


if __name__ == "__main__":
    main()
