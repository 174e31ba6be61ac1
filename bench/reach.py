"""How far ``check="exact"`` has been tried: ``python bench/reach.py FOLDER [--part NAME] [--seconds S] [--docs PAGE]``.

More than a million faults of one word each under ``"exact"`` alone, fewer under ``"full"``, and every seventh trial without
one, over all sites and with both persistences, in products, layers, tables and the packaged model; faults of float
accumulators by their size; a hundred million checks without a fault. Logs and figures go into FOLDER, and a run that ended
early, as one does after --seconds, with exit status 3, goes on from there. --docs writes the figures of the faults between
the two marks of a page.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import measure
import numpy as np

import sedq
from sedq import _statistics, faults
from sedq.commands import _demo
from sedq.datasets import load_msweb
from sedq.faults import _summary
from sedq.faults._residuals import residuals_of

SINGLE = [
    faults.BitFlip(),
    faults.Carry(),
    faults.RandomValue(),
    faults.Burst(4),
    faults.KBits(2),
    faults.Zero(),
    faults.Dummy(),
]
NOT_COVERED = ("input", "dense", "indices", "offsets", "per_sample_weights", "indices.consumed")


def packs(rng: np.random.Generator) -> Iterator[tuple[str, Any, list[Any]]]:
    """Products and layers: with and without zero points, one scale and many, one digit and three, odd shapes."""
    for n, k, m in ((96, 128, 3), (300, 64, 2), (17, 33, 4)):
        zero = rng.integers(-5, 6, n)
        w = rng.integers(-128, 128, (n, k), dtype=np.int8)
        packed = sedq.pack_weights(w, zero_point=zero)
        yield f"product {m}x{n}x{k}", packed, [rng.integers(0, 256, (m, k), dtype=np.uint8) for _ in range(32)]
        weight = rng.normal(size=(n, k)).astype(np.float32)
        samples = rng.normal(size=(200, k)).astype(np.float32)
        layer = sedq.QuantizedLinear.from_float(
            weight, rng.normal(size=n).astype(np.float32), relu=n == 96, keep_source=True
        )
        layer.observe(samples).freeze()
        yield f"float layer {m}x{n}x{k}", layer, [samples[i * m : (i + 1) * m] for i in range(32)]
        yield f"uint8 layer {m}x{n}x{k}", layer, [rng.integers(0, 256, (m, k), dtype=np.uint8) for _ in range(32)]


def tables(rng: np.random.Generator) -> Iterator[tuple[str, Any, list[Any]]]:
    """Tables: sum and mean, weighted and not, widths that are whole vectors and not, all bits."""
    for dim, bits, mode, weighted in (
        *((64, 8, "sum", False), (32, 8, "mean", False), (100, 8, "sum", True), (7, 8, "sum", False)),
        *((48, 4, "sum", False), (40, 2, "mean", True), (24, 32, "sum", False)),
    ):
        table = rng.normal(size=(1000, dim)).astype(np.float32)
        bag = sedq.EmbeddingBag.from_float(table, bits=bits, mode=mode, keep_source=True)  # type: ignore[arg-type]
        batches = []
        for _ in range(64):
            lengths = rng.integers(0, 30, 3)
            index = rng.integers(0, 1000, lengths.sum())
            weights = rng.normal(size=index.size).astype(np.float32) if weighted else None
            batches.append((index, np.concatenate([[0], np.cumsum(lengths)]), weights))
        yield f"table {dim} x {bits} bit {mode}{' weighted' if weighted else ''}", bag, batches


def campaigns(scale: float) -> Iterator[tuple[str, faults.Campaign, int]]:
    rng = np.random.default_rng(0)
    data = load_msweb()
    model = _demo.build(data)
    requests = [data.heldout.batch(i, i + 2) for i in range(0, len(data.heldout), 32)]
    for check, trials in (("exact", 420_000), ("full", 100_000)):
        yield f"MSWeb model, {check}", campaign(model, requests, check), int(trials * scale)
    for name, target, inputs in packs(rng):
        yield f"{name}, exact", campaign(target, inputs, "exact"), int(48_000 * scale)
    for name, target, inputs in tables(rng):
        yield f"{name}, exact", campaign(target, inputs, "exact"), int(60_000 * scale)
    yield f"{name}, full", campaign(target, inputs, "full"), int(20_000 * scale)


def campaign(target: Any, inputs: list[Any], check: str) -> faults.Campaign:
    sites = [s for s in faults.site_names(target, inputs, check) if s not in NOT_COVERED]
    return faults.Campaign(target, inputs, models=SINGLE, sites=sites, check=check)


MARKS = ("<!-- figures of bench/reach.py -->", "<!-- end of these figures -->")
CLASSES = {
    "int32 accumulators": ("accumulator",),
    "packed weights": ("weights",),
    "derived parameters": ("parameters.col_offsets", "parameters.multiplier", "parameters.bias", "parameters.zero_point"),
    "table rows": ("table.codes", "table.scale", "table.bias"),
    "stored outputs and pooled vectors": ("output", "pooled"),
    "codes, activations between stages, interaction": ("codes", "activations", "interaction"),
    "float accumulators of bags": ("bag.accumulator",),
    "requantised outputs, before the store": ("requantised",),
    "words that only the checks read, parameters at rest": _summary.NEVER,
    "at every visit of a kernel or stage": (),  # the sites that are stuck
}


def table(documents: Sequence[dict[str, Any]]) -> str:
    """Faults by class, the consequential ones by model, and what was missed or wrongly corrected of these."""
    models = [m.name for m in SINGLE if not isinstance(m, faults.Dummy)]
    lines = [f"| fault in | faults | {' | '.join(models)} | missed | |", "|---" * (len(models) + 4) + "|"]
    for name, sites in CLASSES.items():
        strata = [r for d in documents for r in d["strata"] if r["model"] in models]
        rows = [r for r in strata if (r["site"] in sites if sites else r["site"].endswith("(stuck)"))]
        bad = sum(r["outcomes"]["sdc"] + r["outcomes"]["miscorrected"] for r in rows)
        count = {m: sum(counted(r) for r in rows if r["model"] == m) for m in models}
        n = sum(count.values())
        low, high = _statistics.interval(bad, n)
        stated = f"< {_statistics.upper_bound(0, n):.1g}" if not bad else f"{bad / n:.2%} ({low:.2%} to {high:.2%})"
        faults_ = sum(r["trials"] for r in rows)
        if not n:
            stated = "none is consequential"
        lines.append(f"| {name} | {faults_:,} | {' | '.join(f'{c:,}' for c in count.values())} | {bad:,} | {stated} |")
    return "\n".join(lines)


def counted(row: dict[str, Any]) -> int:
    return sum(row["outcomes"][name] for name in ("sdc", "miscorrected", "detected_consequential"))


class OutOfTime(Exception):
    """The time for this piece is over; the logs have what was done."""


def until(end: float) -> Callable[[int, int], None]:
    def show(done: int, trials: int) -> None:
        if time.monotonic() > end and done < trials:
            raise OutOfTime

    return show


def inject(folder: Path, scale: float, end: float, only: str = "") -> None:
    """Run the campaigns, and list what was missed of what is promised."""
    for name, c, trials in campaigns(scale):
        if only not in name:
            continue
        slug = "".join(ch if ch.isalnum() else "-" for ch in name)
        written, known = folder / f"{slug}.json", c.describe() | {"reference": c.reference}
        if written.exists() and (kept := json.loads(written.read_text()))["trials"] == trials and kept["campaign"] == known:
            continue
        result = c.run(trials, resume=folder / f"{slug}.jsonl", chunk=1000, progress=until(end))
        result.to_json(folder / f"{slug}-figures.json")
        bad = [r for r in result.records if r["outcome"] in ("sdc", "miscorrected") and _summary.promised(r, c.spec.check)]
        figures = {
            "name": name,
            "campaign": known,
            "trials": trials,
            "goal": result.goal,
            "total": result.outcomes,
            "bad": bad,
        }
        written.write_text(json.dumps(figures, indent=1))
        print(f"{name}: {trials} trials\n{result.table()}\n{bad[:5]}\n", flush=True)
    documents = [json.loads(path.read_text()) for path in sorted(folder.glob("*-figures.json"))]
    text = "\n".join(stated(check, [d for d in documents if d["campaign"]["check"] == check]) for check in ("exact", "full"))
    print(text, flush=True)
    (folder / "figures.md").write_text(text)


def stated(check: str, documents: Sequence[dict[str, Any]]) -> str:
    """What the campaigns of one level of checking show, as Markdown."""
    trials = sum(d["total"]["trials"] for d in documents)
    dummies = sum(row["trials"] for d in documents for row in d["models"] if row["model"] == faults.Dummy().name)
    names = ("consequential", "missed", "false_alarms", "fault_free")
    n, missed, alarms, free = (sum(d["goal"][name] for d in documents) for name in names)
    return (
        f'`"{check}"`: {trials - dummies:,} faults of one word each and {dummies:,} dummies. Of the {n:,} consequential\n'
        f"faults that it promises to see **{missed:,} were missed** or wrongly corrected (rate below "
        f"{_statistics.upper_bound(missed, n):.1g} at 95 %);\n{alarms:,} false alarms in {free:,} calls without a fault "
        f"(rate below {_statistics.upper_bound(alarms, free):.1g}).\n\n{table(documents)}\n"
    )


def write_docs(page: Path, figures: Path) -> None:
    """Put the figures between the two marks of a page."""
    before, first, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
    _, last, after = rest.partition(MARKS[1])
    if not first or not last:
        raise SystemExit(f"{page}: expected the marks {MARKS[0]} and {MARKS[1]}")
    page.write_text(f"{before}{first}\n\n{figures.read_text()}\n{last}{after}", encoding="utf-8")


def accumulators(folder: Path, scale: float, end: float, only: str = "") -> None:
    """Say which flips of float accumulators are missed, by how far the bag's residual is beyond the bound in force."""
    for name, bag, batches in list(tables(np.random.default_rng(2)))[:3]:
        path = folder / f"accumulators {name}.json".replace(" ", "-")
        if path.exists():
            continue
        counts: dict[str, list[int]] = {}
        c = faults.Campaign(bag, batches, sites=["bag.accumulator"], models=SINGLE[:4], persistence=[False])
        worker = c._worker
        sound = [residuals_of(worker.target, batch) for batch in worker.target.batches]
        for trial in range(int(12_000 * scale)):
            if time.monotonic() > end:
                raise OutOfTime
            record, struck = c.replay(trial), worker.answer(trial, "off").output
            if record["damage"] == 0 or struck is None:
                continue
            residual, bound = sound[record["batch"]]
            with np.errstate(all="ignore"):
                change = (struck.astype(np.float64) - worker.outputs[record["batch"]]).sum(axis=1)
                beyond = float(np.nan_to_num(np.abs(residual + change) / bound, nan=1e30, posinf=1e30).max())
            # exactly at the bound is not beyond it
            decade = "above" if beyond > 10 else f"{math.ceil(2 * math.log10(max(beyond, 1e-6))) / 2 - 0.5:g}"
            counts.setdefault(decade, [0, 0])[record["outcome"] in ("tolerated", "sdc", "masked")] += 1
        path.write_text(json.dumps({"log10 of residual / bound: seen, missed": dict(sorted(counts.items()))}))
        print(name, counts, flush=True)


def quiet(folder: Path, scale: float, end: float, only: str = "") -> None:
    """Check rows and bags without a fault, new data in every batch, until 10^8 have been checked."""
    path = folder / "quiet.json"
    fresh = {"rounds": 0, "rows": 0, "bags": 0, "alarms": 0}
    count: dict[str, int] = json.loads(path.read_text()) if path.exists() else fresh
    while count["rows"] + count["bags"] < 1e8 * scale:
        if time.monotonic() > end:
            raise OutOfTime
        round_ = quiet_round(np.random.default_rng([1, count["rounds"]]))
        count = {name: count[name] + round_[name] for name in count}
        path.write_text(json.dumps(count))
    print(f"{count['rows']} rows and {count['bags']} bags checked without a fault: {count['alarms']} alarms", flush=True)


def quiet_round(rng: np.random.Generator) -> dict[str, int]:
    """Check one product and one table of a random shape."""
    n, k, dim = int(rng.integers(1, 129)), int(rng.integers(1, 129)), int(rng.integers(1, 97))
    packed = sedq.pack_weights(
        rng.integers(-128, 128, (n, k), dtype=np.int8), 0.01, rng.integers(-128, 128, n), rng.normal(size=n)
    )
    table = (rng.normal(size=(1000, dim)) * 10.0 ** rng.integers(-6, 7, (1000, 1))).astype(np.float32)
    bag = sedq.EmbeddingBag.from_float(table, mode=("sum", "mean")[int(rng.integers(2))])  # type: ignore[arg-type]
    with sedq.monitor() as m, sedq.config_context(check="exact", num_threads=1):
        for _ in range(8):
            x = rng.integers(0, 256, (50_000, k), dtype=np.uint8)
            sedq.qlinear(x, packed, x_scale=0.1, x_zero_point=7, y_scale=3.0, y_zero_point=9)
            index = rng.integers(0, 1000, (100_000, int(rng.integers(1, 7))), dtype=np.int32)
            bag(index, None, rng.normal(size=index.shape).astype(np.float32) if rng.integers(2) else None)
    return {"rounds": 1, "rows": m.checks["qlinear"], "bags": m.checks["EmbeddingBag"], "alarms": m.detections}


PARTS = {"faults": inject, "accumulators": accumulators, "quiet": quiet}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--only", default="", metavar="WORD", help="of the faults, campaigns that have this in their name")
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="write the figures of the faults into this page")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + options.seconds
    try:
        for name in [options.part] if options.part else PARTS:
            PARTS[name](options.folder, options.scale, end, options.only)
    except OutOfTime:
        return 3
    if options.docs is not None:
        write_docs(options.docs, options.folder / "figures.md")
    print(measure.machine(1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
