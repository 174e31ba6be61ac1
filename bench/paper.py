"""The experiments of Li et al. (arXiv:2103.00130), on their schemes and on ours: ``python bench/paper.py FOLDER``.

Parts: ``products`` (their 28 shapes, errors in B and in C), ``bags`` (four widths, flips in the high and the low half of a
code, false positives), ``cost`` (what the checks cost) and ``harder`` (faults that they did not inject). Each writes its
figures to FOLDER as it goes and leaves out what is there already; ``--write docs/paper.md`` puts the tables of all into the
page. All schemes meet the same faults. Rates are of faults that changed a result, with 95 % intervals.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gemm
import measure
import numpy as np
from numpy.typing import NDArray

import sedq
from sedq import _statistics, faults
from sedq.faults import _targets

Array = NDArray[Any]
Figures = dict[str, Any]
WIDTHS = (32, 64, 128, 256)


def rate(seen: int, n: int) -> str:
    """Detected of n: the interval, or where nothing was missed the bound on the rate of misses."""
    if not n:
        return "no such fault"
    if seen == n:
        return f"all {n:,} (missed < {_statistics.upper_bound(0, n):.1g})"
    low, high = _statistics.interval(seen, n)
    return f"{seen / n:.2%} ({low:.2%} to {high:.2%}) of {n:,}"


def counts(records: Sequence[dict[str, Any]]) -> Figures:
    """Injected, consequential and detected faults. One that was seen and left a wrong result counts as missed."""
    outcomes = Counter(r["outcome"] for r in records)
    return {
        "injected": len(records),
        "consequential": sum(outcomes[name] for name in ("detected_consequential", "miscorrected", "sdc")),
        "detected": outcomes["detected_consequential"],
        "small": outcomes["tolerated"],
    }


def summed(rows: Sequence[Figures]) -> Figures:
    return {name: sum(row[name] for row in rows) for name in rows[0]}


# ---- products


def activations(kind: str, shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """Uniform over all codes, or what a ReLU leaves: half of them 0."""
    if kind == "uniform":
        return rng.integers(0, 256, shape, dtype=np.uint8)
    return np.clip(rng.normal(0, 60, shape), 0, 255).astype(np.uint8)


def products(trials: int) -> Iterator[tuple[str, Callable[[], Figures]]]:
    """Errors in B and in C, bit flips and random values, on the 28 shapes."""
    for kind in ("uniform", "relu"):
        for number, (m, n, k) in enumerate(gemm.PAPER):
            yield f"{kind} {number:02d} {m}x{n}x{k}", lambda m=m, n=n, k=k, kind=kind: product(m, n, k, kind, trials)


def product(m: int, n: int, k: int, kind: str, trials: int) -> Figures:
    rng = np.random.default_rng([m, n, k])
    packed = sedq.pack_weights(rng.integers(-128, 128, (n, k), dtype=np.int8), encode=("exact", "mod127"))
    inputs = [activations(kind, (m, k), rng) for _ in range(max(4, 128 // m))]
    found: Figures = {"m": m}
    trials = max(min(trials, 100), min(trials, 2_000_000_000 // (m * n * k)))  # to compute large ones again takes its time
    for check in ("mod127", "exact"):
        campaign = faults.Campaign(
            packed,
            inputs,
            sites=["weights", "accumulator"],
            models=[faults.BitFlip(), faults.RandomValue()],
            check=check,
            persistence=[False],
        )
        for (site, model), records in grouped(campaign.run(4 * trials).records, "site", "model").items():
            found[f"{check} {site} {model}"] = counts(records)
    return found


def grouped(records: Sequence[dict[str, Any]], *names: str) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for r in records:
        groups[tuple(str(r[name]) for name in names)].append(r)
    return groups


def products_table(parts: Figures) -> str:
    """One line for each kind of error and activations."""
    lines = [
        "| A | error | their claim | `mod127`, M = 1 | `mod127`, M > 1 | ... of all injected, all M | `exact`, all M |",
        "|---|---|---|---|---|---|---|",
    ]
    names = {"weights": "in B", "accumulator": "in C"}
    for kind in ("uniform", "relu"):
        shapes = [f for name, f in parts.items() if name.startswith(kind)]
        for site, where in names.items():
            for model, what in (("BitFlip", "bit flip"), ("RandomValue", "random value")):
                one = summed([f[f"mod127 {site} {model}"] for f in shapes if f["m"] == 1])
                more = summed([f[f"mod127 {site} {model}"] for f in shapes if f["m"] > 1])
                ours = summed([f[f"exact {site} {model}"] for f in shapes])
                every = summed([one, more])
                cells = [
                    kind,
                    f"{what} {where}",
                    "> 95 %",
                    rate(one["detected"], one["consequential"]),
                    rate(more["detected"], more["consequential"]),
                    f"{every['detected'] / every['injected']:.2%}" if site == "weights" else "",
                    rate(ours["detected"], ours["consequential"]),
                ]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


# ---- embedding bags


def bags(trials: int) -> Iterator[tuple[str, Callable[[], Figures]]]:
    """Flips in the high and the low four bits of codes; calls without a fault."""
    for values in ("uniform", "normal"):
        for dim in WIDTHS:
            yield f"{values} {dim}", lambda values=values, dim=dim: bag_figures(values, dim, trials)


SCHEMES: dict[str, tuple[str, Any]] = {
    "paper": ("threshold", "paper"),
    "bound": ("threshold", "bound"),
    "calibrated": ("threshold", None),
    "exact": ("exact", "bound"),
}
FPR = 1e-3  # of bags, that thresholds are calibrated for


def bag_figures(values: str, dim: int, trials: int) -> Figures:
    """100,000 rows, 10 bags of 100: values uniform on [0, 1), or normal, whose sums nearly cancel."""
    rng = np.random.default_rng([dim, values == "normal"])
    table = rng.random((100_000, dim)) if values == "uniform" else rng.normal(size=(100_000, dim))
    bag = sedq.EmbeddingBag.from_float(table.astype(np.float32))
    words = _targets.memory(bag, "table.codes")
    assert words is not None
    starts = np.arange(0, 1000, 100)
    calls = [(rng.integers(0, 100_000, 1000), starts) for _ in range(1000)]
    schemes = SCHEMES | {"calibrated": ("threshold", sedq.calibrate_thresholds(bag, calls, FPR, "bag"))}
    found = {f"{scheme} {half}": {"consequential": 0, "detected": 0} for scheme in schemes for half in ("high", "low")}
    for trial in range(2 * trials):
        half, bit = ("high", 4) if trial % 2 else ("low", 0)
        indices = rng.integers(0, 100_000, (10, 100))
        row, column = int(rng.choice(indices.reshape(-1))), int(rng.integers(dim))
        at, flip = words.position(row * dim + column), np.uint8(1 << (bit + int(rng.integers(4))))
        sound = bag(indices, check="off")
        words.array[at] ^= flip
        changed = bag(indices, check="off").tobytes() != sound.tobytes()
        for scheme, level in schemes.items():
            found[f"{scheme} {half}"]["consequential"] += changed
            found[f"{scheme} {half}"]["detected"] += changed and alarm(bag, indices, *level) > 0
        words.array[at] ^= flip
    quiet = {scheme: {"calls": 0, "bags": 0, "alarming calls": 0, "alarming bags": 0} for scheme in schemes}
    for _ in range(2 * trials):
        indices = rng.integers(0, 100_000, (10, 100))
        for scheme, count in quiet.items():
            bad = alarm(bag, indices, *schemes[scheme])
            for name, more in (("calls", 1), ("bags", 10), ("alarming calls", bad > 0), ("alarming bags", bad)):
                count[name] += int(more)
    return found | {"quiet": quiet}


def alarm(bag: sedq.EmbeddingBag, indices: Array, check: str, threshold: Any) -> int:
    """How many bags a scheme finds wrong."""
    try:
        bag(indices, check=check, threshold=threshold, on_error="raise")
    except sedq.SoftErrorDetected as found:
        return len({e.row for e in found.events})
    return 0


def bags_table(parts: Figures) -> str:
    lines = [
        "| values, d | scheme | flips of the high 4 bits | flips of the low 4 bits | false positives, calls | ..., bags |",
        "|---|---|---|---|---|---|",
        "| *their claim* | | 99 % | | < 10 % | |",
    ]
    names = {"paper": "theirs", "bound": "rounding bound", "calibrated": f"calibrated for {FPR:g}", "exact": "`exact`"}
    for key, found in parts.items():
        for scheme, name in names.items():
            rates = [
                rate(f["detected"], f["consequential"]) for f in (found[f"{scheme} {half}"] for half in ("high", "low"))
            ]
            quiet = found["quiet"][scheme]
            rates += [alarms(quiet[f"alarming {unit}"], quiet[unit]) for unit in ("calls", "bags")]
            lines.append(f"| {key.replace(' ', ', ')} | {name} | {' | '.join(rates)} |")
    return "\n".join(lines)


def alarms(k: int, n: int) -> str:
    if not k:
        return f"0 of {n:,} (< {_statistics.upper_bound(0, n):.1g})"
    low, high = _statistics.interval(k, n)
    return f"{k / n:.2%} ({low:.2%} to {high:.2%})"


# ---- cost


def cost(trials: int) -> Iterator[tuple[str, Callable[[], Figures]]]:
    for number, (m, n, k) in enumerate(gemm.PAPER):
        yield f"product {number:02d} {m}x{n}x{k}", lambda m=m, n=n, k=k: product_cost(m, n, k)
    for dim in WIDTHS:
        yield f"bag {dim}", lambda dim=dim: bag_cost(dim)


def product_cost(m: int, n: int, k: int) -> Figures:
    """Cost over the unprotected product of weights that are encoded for nothing more than they need."""
    rng = np.random.default_rng(0)
    x, w = rng.integers(0, 256, (m, k), dtype=np.uint8), rng.integers(-128, 128, (n, k), dtype=np.int8)
    # weights of their own for each: else those that levels share would be in the cache more often than the others
    levels = {"off": "exact", "mod127": "mod127", "exact": "exact", "full": "exact"}
    packs = {check: sedq.pack_weights(w, encode=(name,)) for check, name in levels.items()}
    calls = {c: (lambda p=p, c=c: sedq.matmul_integer(x, p, check=c, num_threads=1)) for c, p in packs.items()}
    want = x.astype(np.int64) @ w.astype(np.int64).T
    return timed(calls, lambda y: np.array_equal(y, want))


def bag_cost(dim: int) -> Figures:
    """Cost of 10 bags of 100, from tables of 128 million codes and requests that name many times the caches."""
    rng, rows = np.random.default_rng(0), 128_000_000 // dim
    table = rng.random((rows, dim), dtype=np.float32)
    bag = sedq.EmbeddingBag.from_float(table)
    requests = [rng.integers(0, rows, (10, 100), dtype=np.int32) for _ in range(1600)]
    want = table[requests[0]].sum(axis=1, dtype=np.float64)

    def variant(check: str, threshold: str, first: int) -> Callable[[], Array]:
        position = [first - 1]

        def call() -> Array:
            position[0] = (position[0] + 1) % len(requests)
            return bag(requests[position[0]], check=check, threshold=threshold, num_threads=1, on_error="warn")

        return call

    levels = {
        "off": ("off", "bound"),
        "paper": ("threshold", "paper"),
        "exact": ("exact", "bound"),
        "full": ("full", "bound"),
    }
    first = bag(requests[0], check="exact")
    if np.abs(first - want).max() > 0.5:
        raise SystemExit(f"bag of {dim}: wrong")
    return timed({name: variant(*level, 400 * i) for i, (name, level) in enumerate(levels.items())}, lambda y: True)


def timed(calls: dict[str, Callable[[], Array]], right: Callable[[Array], bool]) -> Figures:
    for name, call in calls.items():
        if not right(call()):
            raise SystemExit(f"{name} is wrong")
    times = measure.interleaved(calls, seconds=0.2)
    return {name: measure.ratio(times, name, "off") for name in calls} | {"off": measure.median(times, "off") / 1e3}


def cost_table(parts: Figures) -> str:
    lines = ["| operator | their claim | their scheme | `exact` | `full` |", "|---|---|---|---|---|"]
    for kind, what, claim, theirs in (
        ("product", "28 products, geometric mean (worst)", "< 20 %", "mod127"),
        ("bag", "4 bags, geometric mean (worst)", "< 26 %", "paper"),
    ):
        rows = [f for name, f in parts.items() if name.startswith(kind)]
        cells = []
        for name in (theirs, "exact", "full"):
            values = [row[name] for row in rows]
            cells.append(f"{measure.geometric_mean(values) - 1:+.1%} ({max(values) - 1:+.1%})")
        lines.append(f"| {what} | {claim} | {' | '.join(cells)} |")
    return "\n".join(lines)


# ---- harder faults


def harder(trials: int) -> Iterator[tuple[str, Callable[[], Figures]]]:
    for check in ("mod127", "exact", "full"):
        yield f"layer {check}", lambda check=check: harder_layer(check, trials)
    for check in ("threshold", "exact", "full"):
        yield f"bag {check}", lambda check=check: harder_bag(check, trials)


def harder_layer(check: str, trials: int) -> Figures:
    rng = np.random.default_rng(0)
    w = rng.integers(-128, 128, (96, 128), dtype=np.int8)
    packed = sedq.pack_weights(w, 0.01, 3, rng.normal(size=96), encode=("exact", "mod127"))
    layer = sedq.QuantizedLinear(packed, sedq.QParams(0.02, 5, "uint8"), sedq.QParams(0.8, 128, "uint8"))
    inputs = [activations("relu", (3, 128), rng) for _ in range(16)]
    return by_site(faults.Campaign(layer, inputs, check=check), trials)


def harder_bag(check: str, trials: int) -> Figures:
    rng = np.random.default_rng(0)
    bag = sedq.EmbeddingBag.from_float(rng.normal(size=(1000, 64)).astype(np.float32), keep_source=True)
    batches = [(rng.integers(0, 1000, 90), np.array([0, 30, 60, 90])) for _ in range(16)]
    return by_site(faults.Campaign(bag, batches, check=check), trials)


PAIRED = "two words, +e and -e"


def by_site(campaign: faults.Campaign, trials: int) -> Figures:
    """Count by site; faults of two words apart."""
    n = trials * len(campaign.spec.sites) * len(campaign.spec.models) // 8
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for r in campaign.run(n).records:
        stuck = " (every visit)" if r["persistent"] and not r["part"] else ""
        groups[PAIRED if r["model"] == "PairedError" else f"{r['site']}{stuck}"].append(r)
    return {name: counts(records) for name, records in sorted(groups.items())}


def harder_table(parts: Figures) -> str:
    lines = []
    for kind, theirs in (("layer", "mod127"), ("bag", "threshold")):
        checks = (theirs, "exact", "full")
        lines += [f"| {kind}: fault in | `{theirs}` | `exact` | `full` |", "|---|---|---|---|"]
        for site in parts[f"{kind} exact"]:
            # a level without a part has no faults in it
            rows = [parts[f"{kind} {check}"].get(site, counts([])) for check in checks]
            if any(row["consequential"] for row in rows):
                cells = [rate(row["detected"], row["consequential"]) for row in rows]
                lines.append(f"| `{site}` | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines).rstrip()


# ---- running it

PARTS = {
    "products": (products, products_table),
    "bags": (bags, bags_table),
    "cost": (cost, cost_table),
    "harder": (harder, harder_table),
}


def run(folder: Path, name: str, trials: int) -> Figures:
    """Measure what the folder lacks of a part."""
    path = folder / f"{name}.json"
    figures: Figures = json.loads(path.read_text()) if path.exists() else {}
    for key, call in PARTS[name][0](trials):
        if key not in figures:
            figures[key] = call()
            path.write_text(json.dumps(figures, indent=1))
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument(
        "--trials", type=int, default=1000, help="of each kind of fault on each shape or width (default 1000)"
    )
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables between the marks of a page")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    print(measure.machine(1))
    for name in options.part or PARTS:
        table = PARTS[name][1](run(options.folder, name, options.trials))
        print(f"\n{name}\n{table}")
        if options.write:
            marks = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
            page = options.write.read_text()
            pattern = f"(?<={marks[0]}\n).*?(?={marks[1]})"
            options.write.write_text(re.sub(pattern, lambda _, t=table: f"{t}\n", page, flags=re.S))


if __name__ == "__main__":
    main()
