"""Which check detects which fault: ``python bench/coverage.py [--injections N] [--write docs/coverage.md]``.

Injects faults of each class through `sedq.faults` and into the arrays themselves, first with the checks off. A fault is
consequential if it changes the result there, in any bit. Then the same fault meets each level, and is detected or not.
The table of the documentation is what this prints; a test compares the two in kind.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import sedq
from sedq import faults

Fault = Callable[[], AbstractContextManager[Any]]
LEVELS = ("off", "baseline", "exact", "full")  # baseline: the paper's mod127 or threshold
COLUMNS = ("off", "`mod127` / `threshold`", "`exact`", "`full`")
BEGIN, END = "<!-- coverage: begin -->", "<!-- coverage: end -->"


@dataclass
class Target:
    """Something that faults are injected into: `call(check)` computes with it, `draw(rng)` draws a fault."""

    name: str
    call: Callable[[str], np.ndarray]
    draw: Callable[[np.random.Generator], Fault]
    baseline: str | None
    times: int = 1  # how many times as many injections: where misses are rare


@dataclass
class Cell:
    """Of the faults that matter at a level, how many were detected; and detections of those that don't matter."""

    consequential: int = 0
    detected: int = 0
    benign: int = 0

    @property
    def kind(self) -> str:
        """all, some or none."""
        return "all" if self.detected == self.consequential else "some" if self.detected else "none"


@contextmanager
def changed(view: np.ndarray, value: np.ndarray) -> Iterator[None]:
    """Have other contents in an array for a while."""
    before = view.copy()
    view[...] = value
    try:
        yield
    finally:
        view[...] = before


def bit_of(array: np.ndarray, rng: np.random.Generator) -> Fault:
    """One bit of an array's bytes."""
    flat = array.reshape(-1).view(np.uint8)
    at, bit = int(rng.integers(flat.size)), int(rng.integers(8))
    return lambda: changed(flat[at : at + 1], flat[at : at + 1] ^ np.uint8(1 << bit))


# ---- an int8 layer


def layer() -> tuple[sedq.PackedWeights, Callable[[str], np.ndarray]]:
    """Packed weights and a call of them."""
    rng = np.random.default_rng(1)
    w = rng.integers(-128, 128, (48, 40), dtype=np.int8)
    packed = sedq.pack_weights(w, rng.uniform(0.01, 0.02, 48), 3, rng.normal(size=48), encode=("exact", "mod127"))
    x = rng.integers(0, 256, (2, 40), dtype=np.uint8)
    x[:, ::8] = (0, 127, 254, 0, 127)  # what occurs now and then after a ReLU and at the ends of a range
    return packed, lambda check: sedq.qlinear(x, packed, x_scale=0.02, x_zero_point=5, check=check)


def accumulator(bits: str, kernel: str, visits: int) -> Callable[[np.random.Generator], Fault]:
    """Draw one accumulator and one bit of it, or any change."""

    def draw(rng: np.random.Generator) -> Fault:
        flip = 1 << int(rng.integers(32)) if bits == "one bit" else int(rng.integers(1, 2**32))
        plan = {"visit": int(rng.integers(visits)), "element": int(rng.integers(96)), "flip": flip}
        return lambda: faults.accumulator_fault(kernel, **plan)

    return draw


def layer_targets() -> Iterator[Target]:
    """Faults of products."""
    packed, call = layer()
    n, k = packed.shape
    visits = faults.count_visits(lambda: call("off"))
    for bits, times in (("one bit", 1), ("any change", 3)):
        yield Target(f"accumulator, {bits}", call, accumulator(bits, "tile", visits), "mod127", times)

    def weight(rng: np.random.Generator) -> Fault:
        at = (int(rng.integers(n)), int(rng.integers(k)), int(rng.integers(8)))
        return lambda: weight_bit(packed, *at)

    yield Target("packed weight, one bit", call, weight, "mod127")
    call("off")
    (epilogue,) = packed._epilogues.values()
    columns = [epilogue.col_term[:n], epilogue.w_zp[:n], epilogue.bias[:n], epilogue.mult[:n]]

    def parameter(rng: np.random.Generator) -> Fault:
        return bit_of(columns[int(rng.integers(4))], rng)

    yield Target("parameters of a layer, one bit", call, parameter, "mod127")


@contextmanager
def weight_bit(packed: sedq.PackedWeights, n: int, k: int, bit: int) -> Iterator[None]:
    """Have one bit of a stored weight flipped for a while."""
    faults.flip_weight_bit(packed, n, k, bit)
    try:
        yield
    finally:
        faults.flip_weight_bit(packed, n, k, bit)


# ---- activations between the stages of a model


def model_target() -> Target:
    """Activations of the packaged model."""
    data = sedq.datasets.load_msweb()
    model = sedq.DLRM(data.bottom, data.tables, data.top, data.modes)
    c, r = data.calibration, data.heldout.batch(0, 2)
    model.quantize((c.dense, c.indices, c.offsets), include_last_offset=True)
    layers = [("bottom", i) for i in range(len(model.bottom))] + [("top", i) for i in range(len(model.top))]

    def draw(rng: np.random.Generator) -> Fault:
        mlp, number = layers[int(rng.integers(len(layers)))]
        at = {"byte": int(rng.integers(2**16)), "bit": int(rng.integers(8))}
        return lambda: faults.activation_fault(model, mlp, number, **at)

    def call(check: str) -> np.ndarray:
        return model(r.dense, r.indices, r.offsets, include_last_offset=True, check=check)

    return Target("activations between stages, one bit", call, draw, None)


# ---- a bag


def bag_targets() -> Iterator[Target]:
    """Faults of embedding bags, long enough for the bound to hide low bits."""
    rng = np.random.default_rng(2)
    dim, few = 32, 48
    bag = sedq.EmbeddingBag.from_float(rng.normal(size=(few, dim)).astype(np.float32))
    indices = np.stack([rng.permutation(few) for _ in range(2)])  # every row is met
    weights = rng.uniform(0.5, 2, indices.shape).astype(np.float32)
    rows = bag.table.rows

    def call(check: str) -> np.ndarray:
        return bag(indices, None, weights, check=check)

    def bits(first: int, last: int) -> Callable[[np.random.Generator], Fault]:
        """Bits first .. last of the codes."""

        def draw(rng: np.random.Generator) -> Fault:
            at = rows[int(rng.integers(few))][int(rng.integers(dim)) :][:1]
            flip = np.uint8(1 << int(rng.integers(first, last + 1)))
            return lambda: changed(at, at ^ flip)

        return draw

    def params(rng: np.random.Generator) -> Fault:
        return bit_of(rows[int(rng.integers(few))][dim : dim + 8], rng)

    def wrong_row(rng: np.random.Generator) -> Fault:
        i, j = rng.choice(few, 2, replace=False)
        return lambda: changed(rows[i], rows[j].copy())

    yield Target("table code, bits 6 and 7", call, bits(6, 7), "threshold")
    yield Target("table code, bits 0 and 1", call, bits(0, 1), "threshold")
    yield Target("scale or bias of a row, one bit", call, params, "threshold")
    yield Target("a row in another's place", call, wrong_row, "threshold")

    def index_of(request: np.ndarray) -> Callable[[np.random.Generator], Fault]:
        """One bit of an index of a request."""

        def draw(rng: np.random.Generator) -> Fault:
            at = request.reshape(-1)[int(rng.integers(request.size)) :][:1]
            flip = 1 << int(rng.integers(4))  # 48 rows: stays in range
            return lambda: changed(at, at ^ flip)

        return draw

    yield Target("index before the call, one bit, in range", call, index_of(indices), "threshold")
    batch = sedq.IndexBatch(indices.copy(), None, weights)
    yield Target(
        "the same, the request an `IndexBatch`",
        lambda check: bag(batch, check=check),
        index_of(batch.indices),
        "threshold",
    )
    visits = faults.count_visits(lambda: call("off"), "bag")
    for change in ("one bit", "any change"):
        yield Target(f"accumulator of a bag, {change}", call, accumulator(change, "bag", visits), "threshold")


# ---- counting


def detects(target: Target, fault: Fault, level: str) -> bool:
    """Whether a level detects a fault."""
    with np.errstate(all="ignore"), sedq.config_context(on_error="raise"), fault():
        try:
            target.call(level)
        except sedq.SoftErrorDetected:
            return True
        except ValueError:  # sums that overflow: refused, and so noticed
            return True
    return False


def measured(target: Target, injections: int, rng: np.random.Generator) -> list[Cell | None]:
    """One cell a level; None where the operator doesn't have the level."""
    clean = target.call("off")
    levels = [target.baseline if level == "baseline" else level for level in LEVELS]
    cells = [None if level is None else Cell() for level in levels]
    for _ in range(injections * target.times):
        fault = target.draw(rng)
        with np.errstate(all="ignore"), fault():
            matters = target.call("off").tobytes() != clean.tobytes()
        for cell, level in zip(cells, levels, strict=True):
            if cell is None or level is None:
                continue
            seen = detects(target, fault, level)
            cell.consequential += matters
            cell.detected += seen and matters
            cell.benign += seen and not matters
    return cells


def targets() -> list[Target]:
    """Every class of faults that is injected."""
    return [*layer_targets(), model_target(), *bag_targets()]


def false_alarms(calls: int) -> tuple[int, int]:
    """Detections without a fault: alarms, and checks made."""
    with sedq.monitor() as m:
        for target in targets():
            for level in {target.baseline or "exact", "exact", "full"}:
                for _ in range(calls):
                    target.call(level)
    return m.detections, m.total_checks


def measure(injections: int) -> dict[str, list[Cell | None]]:
    """Cells of all levels, by class of fault."""
    return {t.name: measured(t, injections, np.random.default_rng(i)) for i, t in enumerate(targets())}


# ---- the table


def table(cells: dict[str, list[Cell | None]]) -> str:
    """Write the cells as a table of Markdown."""
    lines = [f"| fault | injected to effect | {' | '.join(COLUMNS)} |", "|---|---|---|---|---|---|"]
    for name, row in cells.items():
        effect = next(c.consequential for c in row if c)
        shown = ["no such level" if c is None else f"{c.kind}:\N{NO-BREAK SPACE}{c.detected}" for c in row]
        lines.append(f"| {name} | {effect} | {' | '.join(shown)} |")
    return "\n".join(lines)


def kinds_of(text: str) -> dict[str, list[str]]:
    """Read kinds back from a page that holds the table."""
    lines = text.partition(BEGIN)[2].partition(END)[0].strip().splitlines()[2:]
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in lines]
    return {row[0]: [part.partition(":")[0] for part in row[2:]] for row in rows}


def kinds(cells: dict[str, list[Cell | None]]) -> dict[str, list[str]]:
    """Kinds of measured cells, as they would be read back."""
    return {name: ["no such level" if c is None else c.kind for c in row] for name, row in cells.items()}


def write(path: Path, text: str) -> None:
    """Put the table into a page, between its marks."""
    page = path.read_text(encoding="utf-8")
    if BEGIN not in page or END not in page:
        raise SystemExit(f"{path}: lacks {BEGIN} or {END}")
    marked = re.compile(f"{BEGIN}.*{END}", re.S)
    path.write_text(marked.sub(lambda _: f"{BEGIN}\n{text}\n{END}", page), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--injections", type=int, default=500)
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table into this page")
    options = parser.parse_args(arguments)
    cells = measure(options.injections)
    text = table(cells)
    print(text)
    for name, row in cells.items():
        benign = max((c.benign for c in row if c), default=0)
        if benign:
            print(f"{name}: up to {benign} detections of faults that changed nothing")
    print("without a fault: {} alarms in {} checks".format(*false_alarms(200)))
    if options.write:
        write(options.write, text)


if __name__ == "__main__":
    main()
