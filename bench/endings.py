"""What a detection ends in: ``python bench/endings.py [--trials N] [--seed S] [--docs PAGE]``.

Each trial flips 1 to 8 bits in memory that an operator keeps (weights, parameters, rows of tables, digests, redundancy) or
in what a kernel computes. The operator answers a request under ``on_error="recover"``, and its answer is compared with the
right one. A fault in memory *stays* until it is repaired, *passes* before recovery looks, or is *stuck*: it comes back after
every repair. A fault in a kernel strikes once, or is stuck for the whole call, in half of the cases for a recomputation too.

Exit status 1 if an answer was wrong after a detection, if an operand was repaired to something else than it was, or if a
promised fault was missed: any single bit, and any single word of weights and parameters, under ``"exact"`` and ``"full"``.
A table is also scrubbed, with its redundancy: "raised" then counts what a scrub reports and leaves as it is.

--docs writes the figures between the two marks of a page.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import measure
import numpy as np
from numpy.typing import NDArray

import sedq
from sedq import detection
from sedq._core import _dispatch
from sedq.faults import _inject

Array = NDArray[Any]
MARKS = "<!-- endings: begin -->", "<!-- endings: end -->"
PERSISTENCE = ("stays", "passes", "stuck")
PROMISED = ("exact", "full")
# sites of kernels, and whether "exact" promises to see one struck word; "full" promises all of them
KERNEL_SITES = {
    "product": {"tile": True, "epilogue": False, "store": True},
    "bag": {"bag": False, "pooled": True},
    "tables": {"bag": False, "pooled": True},
    "model": {"tile": True, "epilogue": False, "store": True, "bag": False, "pooled": True, "codes": True, "dots": True},
}


@dataclass
class Case:
    """An operator with its inputs and their right answers, and the memory that faults may strike.

    Attributes
    ----------
    call : callable
        Answers input `i` at a level of checking.
    sites : dict
        Arrays, by the group that they are counted in. None of them is looked at by two names.
    forget : callable
        Drops what was derived from the arrays, after they were set back.
    """

    kind: str
    call: Callable[[int, str], Array]
    inputs: int
    levels: tuple[str, ...]
    sites: dict[str, list[Array]]
    forget: Callable[[], None] = lambda: None
    bag: sedq.EmbeddingBag | None = None
    right: list[Array] = field(default_factory=list)
    saved: dict[str, list[Array]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.right = [self.call(i, "off") for i in range(self.inputs)]
        self.saved = {name: [a.copy() for a in arrays] for name, arrays in self.sites.items()}

    def reset(self) -> None:
        for name, arrays in self.sites.items():
            for a, was in zip(arrays, self.saved[name], strict=True):
                a[...] = was
        self.forget()

    def altered(self) -> list[str]:
        """Groups of arrays that are not as they were."""
        return [
            name
            for name, arrays in self.sites.items()
            if any(a.tobytes() != was.tobytes() for a, was in zip(arrays, self.saved[name], strict=True))
        ]


def product(rng: np.random.Generator, n: int, k: int, m: int, zero_points: bool, operator: str) -> Case:
    """A product with weights of its own: `matmul_integer`, or `qlinear` with uint8 or float32 output."""
    w = rng.integers(-128, 128, (n, k), dtype=np.int8)
    zero = rng.integers(-5, 6, n) if zero_points else 0
    packed = sedq.pack_weights(w, rng.uniform(0.001, 0.01, n), zero, rng.normal(size=n), encode=("exact", "mod127"))
    xs = [rng.integers(0, 256, (m, k), dtype=np.uint8) * rng.integers(0, 2, (m, k), dtype=np.uint8) for _ in range(16)]
    how: dict[str, Any] = {"x_scale": 0.02, "x_zero_point": 7}
    if operator == "qlinear u8":
        how |= {"y_scale": 0.05 * np.sqrt(k), "y_zero_point": 128, "relu": bool(n % 2)}

    def call(i: int, check: str) -> Array:
        if operator == "matmul_integer":
            return sedq.matmul_integer(xs[i], packed, 7, check=check)
        return sedq.qlinear(xs[i], packed, **how, check=check)

    call(0, "off")
    epilogues = dict(packed._epilogues)

    def forget() -> None:
        packed._epilogues.clear()
        packed._epilogues.update(epilogues)

    (e,) = epilogues.values()
    derived = [a for a in (e.col_term, e.w_zp, e.bias, e.mult) if a is not None]
    sites = {
        "weights": [packed._core.panels],
        "parameters": [*packed._parameters().values(), packed._col_sums, *derived],
        "digests": [packed._core.digits, packed._row_sums, e.digest],
        "redundancy": list(packed._spare.values()),
    }
    return Case("product", call, len(xs), ("exact", "full", "mod127"), sites, forget)


def table(rng: np.random.Generator, bits: int, dim: int, weighted: bool, **kept: Any) -> Case:
    """A table and bags of it."""
    weight = rng.normal(size=(60, dim)).astype(np.float32)
    bag = sedq.EmbeddingBag.from_float(weight, bits=bits, **kept)
    requests = []
    for _ in range(16):
        offsets = np.cumsum([0, *rng.integers(0, 6, 7)])
        factors = rng.normal(size=offsets[-1]).astype(np.float32) if weighted else None
        requests.append((rng.integers(0, 60, offsets[-1]), offsets, factors))

    def call(i: int, check: str) -> Array:
        indices, offsets, factors = requests[i]
        return bag(indices, offsets, factors, include_last_offset=True, check=check)

    rows, redundancy = bag.table.rows, bag.table
    beside = [] if redundancy.locator is None else [redundancy.locator.syndromes]
    beside += [] if redundancy.parity is None else [redundancy.parity.rows, redundancy.parity.crc]
    sites = {"rows": [rows[:, :-8]], "digests": [rows[:, -8:]]} | ({"redundancy": beside} if beside else {})
    return Case("bag", call, len(requests), ("exact", "full", "digest"), sites, bag=bag)


def tables(rng: np.random.Generator) -> Case:
    """A collection of tables, with bags of very different lengths."""
    bags = [sedq.EmbeddingBag.from_float(rng.normal(size=(60, d)).astype(np.float32)) for d in (8, 20, 32)]
    collection, requests = sedq.EmbeddingBagCollection(bags), []
    for _ in range(16):
        lengths = np.concatenate([rng.integers(0, 3, 5), rng.integers(0, 9, 5), rng.integers(20, 90, 5)])
        offsets = np.cumsum([0, *lengths])
        requests.append((rng.integers(0, 60, offsets[-1]), offsets))
    return Case("tables", lambda i, check: collection(*requests[i], check=check), 16, ("exact", "full", "digest"), {})


def model(rng: np.random.Generator) -> Case:
    """A DLRM of three tables."""

    def mlp(*widths: int) -> list[tuple[Array, Array]]:
        return [
            (rng.normal(0, 0.4, (n, k)).astype(np.float32), rng.normal(0, 0.1, n).astype(np.float32))
            for k, n in itertools.pairwise(widths)
        ]

    def request(count: int) -> tuple[Array, list[Array]]:
        return rng.normal(size=(count, 7)).astype(np.float32), [rng.integers(0, 60, (count, 4)) for _ in range(3)]

    made = sedq.DLRM(mlp(7, 20, 12), [rng.normal(size=(60, 12)).astype(np.float32) for _ in range(3)], mlp(18, 70, 1))
    made = made.quantize((*request(200), None))
    requests = [request(9) for _ in range(16)]
    return Case("model", lambda i, check: made(*requests[i], check=check), 16, ("exact", "full"), {})


def cases(rng: np.random.Generator) -> list[Case]:
    made = [
        product(rng, n, k, m, zero, operator)
        for n, k, m, zero in ((70, 33, 5, True), (17, 64, 20, False), (128, 24, 1, False), (200, 40, 3, True))
        for operator in ("matmul_integer", "qlinear u8", "qlinear f32")
    ]
    for bits in (8, 4, 2, 16, 32):
        for kept in ({"keep_source": True}, {"parity": 8}, {"locate": True}, {"parity": 8, "locate": True}, {}):
            made.append(table(rng, bits, 32 if bits == 8 else 30, weighted=bool(len(kept) % 2), **kept))
    return [*made, *(make(rng) for make in (tables, model) * 4)]


@dataclass
class Bits:
    """The bits that a fault strikes, and what they were."""

    places: list[tuple[Array, Any, int]]  # array of bytes, position, mask

    def flip(self) -> None:
        for array, at, mask in self.places:
            array[at] ^= mask

    def read(self) -> list[int]:
        return [int(array[at]) & mask for array, at, mask in self.places]

    def hold(self, values: list[int]) -> None:
        for (array, at, mask), value in zip(self.places, values, strict=True):
            array[at] = (int(array[at]) & ~mask) | value


def drawn(rng: np.random.Generator, arrays: list[Array], flips: int, spread: bool) -> Bits:
    """Draw distinct bits of one word, or spread over one row of a table or a whole array."""
    sizes = np.array([a.nbytes for a in arrays], float)
    array = arrays[int(rng.choice(len(arrays), p=sizes / sizes.sum()))]
    data = array if array.dtype == np.uint8 and array.ndim == 2 else array.reshape(-1).view(np.uint8)
    row = int(rng.integers(len(data))) if data.ndim == 2 else None
    width = data.shape[1] if data.ndim == 2 else data.size
    first, count = (0, width) if spread else (int(rng.integers(width)) // 4 * 4, 4)
    count = min(count, width - first)
    chosen = rng.choice(count * 8, size=min(flips, count * 8), replace=False)
    by_byte: Counter[int] = Counter()
    for bit in chosen.tolist():
        by_byte[first + bit // 8] |= 1 << bit % 8
    return Bits([(data, byte if row is None else (row, byte), mask) for byte, mask in by_byte.items()])


@contextmanager
def in_memory(bits: Bits, persistence: str) -> Iterator[None]:
    """Let a fault strike memory while a block runs."""
    bits.flip()
    held, honest = bits.read(), detection.handle
    gone = False

    def handle(call: Any, *arguments: Any, **how: Any) -> None:
        nonlocal gone
        if persistence == "passes" and not gone:
            bits.flip()
            gone = True
        repair = call.repair

        def repaired() -> Any:
            report = repair()
            if persistence == "stuck":
                bits.hold(held)
            return report

        call.repair = repaired
        honest(call, *arguments, **how)

    detection.handle = handle
    try:
        yield
    finally:
        detection.handle = honest


@contextmanager
def in_kernel(rng: np.random.Generator, site: str, flips: int, stuck: bool, again: bool) -> Iterator[None]:
    """Let a fault strike one word of what a kernel computes, once or at every visit; `again` in a recomputation too."""
    paths = _dispatch.paths
    flip = int(np.bitwise_or.reduce(1 << rng.choice(32, size=flips, replace=False)))
    plan = (int(rng.integers(3)) * (not stuck), int(rng.integers(1 << 16)), flip, 2**40 if stuck else 1)
    with _inject.hooked_call(site, plan):
        if again:  # the plan strikes in this thread, where the first recomputation runs
            struck = sedq.get_config().kernels
            others = [path for path in paths(struck) if path.name != struck.name]
            _dispatch.paths = lambda kernels: [struck, *others]
        try:
            yield
        finally:
            _dispatch.paths = paths


@dataclass
class Figures:
    """Counts of trials by group (site, level, what was struck)."""

    trials: Counter[tuple[str, ...]] = field(default_factory=Counter)
    outcomes: Counter[tuple[tuple[str, ...], str]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def add(self, group: tuple[str, ...], outcome: str) -> None:
        self.trials[group] += 1
        self.outcomes[group, outcome] += 1


def scrubbed(case: Case, rng: np.random.Generator, figures: Figures, trial: int) -> None:
    """Strike a table at rest and scrub it: a row must then be right, or be reported and left as it is."""
    assert case.bag is not None
    flips, spread = int(rng.integers(1, 9)), bool(rng.integers(2))
    site = list(case.sites)[int(rng.integers(len(case.sites)))]
    drawn(rng, case.sites[site], flips, spread).flip()
    rows, redundancy = case.bag.table.rows, [a.copy() for a in case.sites.get("redundancy", [])]
    struck = rows.copy()
    right = np.hstack([case.saved["rows"][0], case.saved["digests"][0]])
    report = case.bag.scrub(redundancy=True)
    wrong = np.flatnonzero((rows != right).any(axis=1))
    unseen = [row for row in wrong.tolist() if row not in report.left]
    changed = [row for row in report.left if rows[row].tobytes() != struck[row].tobytes()]
    kept = all(a.tobytes() == b.tobytes() for a, b in zip(case.sites.get("redundancy", []), redundancy, strict=True))
    size = "1 bit" if flips == 1 else "2 to 8 bits of a word" if not spread else "2 to 8 bits"
    outcome = "missed" if unseen else "raised" if report.left or report.stale else "corrected" if report.found else "masked"
    if changed or not kept:
        outcome = "wrong after a detection"
    group = ("bag", site, "scrub", size, "stays")
    figures.add(group, outcome)
    if outcome == "wrong after a detection" or (outcome == "missed" and flips == 1):
        figures.failures.append(f"trial {trial}: {', '.join(group)}: {outcome}")
    case.reset()


def run(case: Case, rng: np.random.Generator, figures: Figures, trial: int) -> None:
    """Make one trial."""
    if case.bag is not None and rng.integers(5) == 0:
        scrubbed(case, rng, figures, trial)
        return
    check = case.levels[int(rng.integers(len(case.levels)))]
    flips = int(rng.integers(1, 9))
    spread, i = bool(rng.integers(2)), int(rng.integers(case.inputs))
    if case.sites and rng.integers(4):
        names = list(case.sites)
        site = names[int(rng.integers(len(names)))]
        persistence = PERSISTENCE[int(rng.integers(3))]
        promised = check in PROMISED and (flips == 1 or (not spread and site in ("weights", "parameters")))
        strike: Any = in_memory(drawn(rng, case.sites[site], flips, spread), persistence)
    else:
        names = list(KERNEL_SITES[case.kind])
        site = names[int(rng.integers(len(names)))]
        stuck, spread = bool(rng.integers(2)), False
        again = stuck and bool(rng.integers(2))
        persistence = "stuck, also when computed again" if again else "stuck" if stuck else "once"
        # stuck lanes of several panels may cancel; errors of a bag's floats below the rounding bound count as benign
        promised = not stuck and (check == "full" or (check == "exact" and KERNEL_SITES[case.kind][site]))
        strike = in_kernel(rng, site, flips, stuck, again)
    got = None
    with sedq.monitor() as m, strike:
        try:
            got = case.call(i, check)
        except sedq.SoftErrorDetected:
            pass
        except ValueError as error:
            # a struck number may make sums overflow, or values NaN, which the call says of its input
            if not any(said in str(error) for said in ("overflow", "leaves the range", "give NaN")):
                raise
    size = "1 bit" if flips == 1 else "2 to 8 bits of a word" if not spread else "2 to 8 bits"
    group = (case.kind, site, check, size, persistence)
    wrong = got is not None and got.tobytes() != case.right[i].tobytes()
    outcome = (
        ("raised" if got is None else "wrong after a detection" if wrong else "corrected")
        if m.detections
        else ("refused" if got is None else "missed" if wrong else "masked")
    )
    figures.add(group, outcome)
    if outcome == "wrong after a detection" or (outcome == "missed" and promised):
        figures.failures.append(f"trial {trial}: {', '.join(group)}: {outcome}")
    if outcome == "corrected" and persistence == "stays" and m.repairs and set(case.altered()) - {site}:
        figures.failures.append(f"trial {trial}: {', '.join(group)}: {case.altered()} changed by a repair")
    case.reset()


def table_of(figures: Figures) -> list[str]:
    """Rows of the figures: by operator and level, what was struck and how much of it, over persistences."""
    outcomes = ("masked", "corrected", "raised", "refused", "missed", "wrong after a detection")
    total: Counter[tuple[tuple[str, ...], str]] = Counter()
    for ((kind, site, check, size, _), outcome), n in figures.outcomes.items():
        level = "`exact`, `full`" if check in PROMISED and site not in KERNEL_SITES[kind] else f"`{check}`"
        total[(kind, level, site, size), outcome] += n
    lines = [
        "| operator | level | site | flipped | faults | " + " | ".join(outcomes) + " |",
        "|---" * (5 + len(outcomes)) + "|",
    ]
    for group in sorted({group for group, _ in total}):
        counts = [total[group, outcome] for outcome in outcomes]
        lines.append(f"| {' | '.join(group)} | {sum(counts)} | " + " | ".join(map(str, counts)) + " |")
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--docs", type=Path)
    options = parser.parse_args(arguments)
    rng, figures = np.random.default_rng(options.seed), Figures()
    every = cases(rng)
    for trial in range(options.trials):
        run(every[trial % len(every)], rng, figures, trial)
        if sys.stderr.isatty() and trial % 100 == 0:
            print(f"\r{trial} of {options.trials}", end="", file=sys.stderr)
    lines = table_of(figures)
    print(
        "\n".join(
            [f"{options.trials} faults, seed {options.seed}; {measure.machine(1)}", "", *lines, *figures.failures[:40]]
        )
    )
    print(f"{len(figures.failures)} failures")
    if options.docs is not None:
        text = options.docs.read_text()
        begin, end = (text.index(mark) for mark in MARKS)
        options.docs.write_text(text[: begin + len(MARKS[0])] + "\n" + "\n".join(lines) + "\n" + text[end:])
    return 1 if figures.failures else 0


if __name__ == "__main__":
    sys.exit(main())
