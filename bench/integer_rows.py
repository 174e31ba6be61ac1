"""Accuracy of integer rows, and how much damage to a row a bag's comparisons miss; in NumPy, by the oracle of the tests.

Run as ``python bench/integer_rows.py [damages of each kind]``, by default 10^6, which takes a few minutes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from helpers import integer_rows as ir
from sedq.datasets import load_minilm, load_msweb

Array = NDArray[Any]
Damage = Callable[[np.random.Generator, Array], None]
CHUNK, ROWS = 50_000, 2000
TIMES = (1, 2, 256, 257, 2**11, 2**16, 2**17)


# --- damage: each changes rows (n, bytes) in place ---


def flip(bits: int) -> Damage:
    def damage(rng: np.random.Generator, rows: Array) -> None:
        width = rows.shape[1] * 8
        chosen = np.zeros((len(rows), 0), np.int64)
        for _ in range(bits):  # without replacement
            chosen = np.hstack([chosen, rng.integers(0, width - chosen.shape[1], (len(rows), 1))])
            chosen.sort(axis=1)
            for k in range(1, chosen.shape[1]):
                chosen[:, k] += chosen[:, k] <= chosen[:, k - 1]
        for bit in chosen.T:
            rows[np.arange(len(rows)), bit // 8] ^= (1 << bit % 8).astype(np.uint8)

    return damage


def swap_bytes(rng: np.random.Generator, rows: Array) -> None:
    each = np.arange(len(rows))
    one = rng.integers(0, rows.shape[1], len(rows))
    two = (one + rng.integers(1, rows.shape[1], len(rows))) % rows.shape[1]
    rows[each, one], rows[each, two] = rows[each, two], rows[each, one]


def overwrite(size: int, aligned: bool = True) -> Damage:
    def damage(rng: np.random.Generator, rows: Array) -> None:
        at = rng.integers(0, rows.shape[1] // size, len(rows)) * size
        if not aligned:
            at = rng.integers(0, rows.shape[1] - size + 1, len(rows))
        columns = at[:, None] + np.arange(size)
        rows[np.arange(len(rows))[:, None], columns] = rng.integers(0, 256, columns.shape, dtype=np.uint8)

    return damage


DAMAGES: dict[str, Damage] = {
    "1 bit": flip(1),
    "2 bits": flip(2),
    "3 bits": flip(3),
    "2 bytes swapped": swap_bytes,
    "4 bytes overwritten": overwrite(4),
    "4 bytes, any address": overwrite(4, False),
    "8 bytes overwritten": overwrite(8),
}


# --- how much of it is missed ---


def missed(form: ir.Form, table: Array, damage: Damage, count: int, seed: int) -> dict[str, Array]:
    """Misses for each of `TIMES`: of (1) modulo 2^64 and 2^32, and of random odd 32-bit weights modulo 2^32."""
    rng = np.random.default_rng(seed)
    (at,) = form.segments
    odd = rng.integers(0, 2**31, at.slots, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    made = {"primes, 2^64": np.zeros(len(TIMES), int), "primes, 2^32": np.zeros(len(TIMES), int)}
    made["odd, 2^32"] = np.zeros(len(TIMES), int)
    done = 0
    while done < count:
        numbers = rng.integers(0, len(table), CHUNK)
        rows = table[numbers]
        damage(rng, rows)
        changed = (rows != table[numbers]).any(axis=1)
        rows, numbers = rows[changed], numbers[changed]
        done += len(rows)
        r1, r2 = (r[:, 0] for r in ir.residuals(form, rows, numbers))
        passed = r2 == 0  # P is prime, and a row is read fewer than P times
        _, _, was, tail_was = ir.unpack(form, table[numbers[passed]], at)
        s, _, codes, tail = ir.unpack(form, rows[passed], at)
        other = (codes - was).astype(np.uint64) @ odd - (tail[:, 1] - tail_was[:, 1]).astype(np.uint64)
        other = other * s.astype(np.uint64) & np.uint64(2**32 - 1)
        for k, times in enumerate(TIMES):
            made["primes, 2^64"][k] += (
                r1[passed] == 0
            ).sum()  # S is odd or seen by (2): m r is below 2^64 or not a multiple
            made["primes, 2^32"][k] += (r1[passed] * times % 2**32 == 0).sum()
            made["odd, 2^32"][k] += (other * np.uint64(times) % np.uint64(2**32) == 0).sum()
    return made


def detection(count: int) -> None:
    print(f"Misses of {count:,} damages of a row that its bag reads {', '.join(map(str, TIMES))} times")
    for bits, dim in ((8, 64), (4, 64), (2, 64)):
        weight = np.random.default_rng(bits).normal(size=(ROWS, dim)).astype(np.float32)
        form, table = ir.quantise(weight, bits, identity=0x243F6A8885A308D3)
        for name, damage in DAMAGES.items():
            found = missed(form, table, damage, count, bits)
            text = "; ".join(f"{kind}: {' '.join(map(str, n))}" for kind, n in found.items())
            print(f"  {bits} bits, {name:>20}  {text}", flush=True)


def word_escape(bits: int) -> Array:
    """The exact chance that (1) misses random content in each aligned word of 4 bytes of codes, with S odd."""
    weights = np.array(ir.weights()).reshape(-1, 4)[: ir.SEGMENT * bits // 32]
    codes = np.arange(256)[:, None] >> np.arange(0, 8, bits) & 2**bits - 1
    digits = codes @ (2**bits + 1) ** np.arange(8 // bits)
    x, count = np.unique(np.subtract.outer(digits, digits), return_counts=True)
    chance = np.outer(count, count).ravel() / 2.0**32
    made = []
    for a, b, c, d in weights:
        one, of_one = np.unique(np.add.outer(a * x, b * x), return_inverse=True)
        two, of_two = np.unique(-np.add.outer(c * x, d * x), return_inverse=True)
        p1, p2 = np.bincount(of_one.ravel(), chance), np.bincount(of_two.ravel(), chance)
        at = np.minimum(np.searchsorted(two, one), len(two) - 1)
        made.append(p1 @ (p2[at] * (two[at] == one)) - 2.0**-32)  # less the content that was there
    return np.array(made)


# --- accuracy ---


def tables() -> dict[str, Array]:
    model = load_msweb()
    made: dict[str, Array] = dict(zip(model.table_names, model.tables, strict=True))
    made |= {"minilm": load_minilm().weight()}
    for sigma, rows in ((1, 2000), (1, 20_000), (2, 2000)):
        rng = np.random.default_rng(0)
        made[f"{rows} lognormal, sigma {sigma}"] = rng.lognormal(0, sigma, (rows, 1)) * rng.normal(size=(rows, 64))
    return {name: np.asarray(x, np.float32) for name, x in made.items()}


def accuracy() -> None:
    print("Largest error of a row, relative to the float-scale row's: median, 99 %, worst (and with its luck, worst)")
    for name, x in tables().items():
        for bits in (8, 4, 2):
            ours, theirs, _ = ir.row_errors(x, bits)
            ratios = ir.error_ratios(x, bits)
            extent = np.ptp(x, axis=1)
            text = "  ".join(f"{v:.3f}" for v in (*np.quantile(ratios, [0.5, 0.99, 1]), (ours / theirs).max()))
            print(f"  {name:>24}, {bits} bits  {text}   ranges differ by {extent.max() / extent.min():.3g}")


def main(count: int = 10**6) -> None:
    accuracy()
    for bits in (8, 4, 2):
        chance = word_escape(bits)
        print(
            f"Random content in 4 bytes of codes, {bits} bits: escapes with {chance.mean():.2g}, at worst {chance.max():.2g}"
        )
    detection(count)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
