"""Draw a fault from the seed, and let it strike a target during one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sedq import _config, detection
from sedq.detection import _monitor
from sedq.embedding import EmbeddingBag
from sedq.embedding._bag import Call
from sedq.faults import _inject, _targets
from sedq.faults._models import Change, FaultModel

__all__ = ["Drawer", "Fault", "Struck", "struck"]

Array = NDArray[Any]

# site: which hook of the kernels, and the width of the words that are struck
KERNEL_SITES = {
    "accumulator": ("tile", 32),
    "bag.accumulator": ("bag", 32),
    "requantised": ("epilogue", 0),  # 0: that of the outputs
    "output": ("store", 0),
    "pooled": ("pooled", 32),
    "checks": ("checks", 32),
    "bag.sums": ("sums", 32),
    "codes": ("codes", 8),
    "interaction": ("dots", 32),
    "indices.consumed": ("index", 32),
}
FLOW_SITE = "activations"
INPUT_SITES = ("input", "dense", "indices", "offsets", "per_sample_weights")
# what only the checks read: nothing that a call returns depends on it
DETECTOR_SITES = (
    "encoded_column",
    "digits",
    "row_sums",
    "table.digest",
    "table.sums",
    "parameters.digest",
    "checks",
    "bag.sums",
)
# struck after validation, so that a call may read outside a table
MAY_CRASH = ("indices.consumed",)


@dataclass(frozen=True)
class Fault:
    """One fault: where it strikes and what it does.

    Attributes
    ----------
    trial : int
        Its number.
    site, model : str
        Site, and name of the model.
    part : str
        Packed weights, table or place; empty for sites inside kernels, whose visits count over the whole call.
    batch : int
        Which inputs.
    visit : int
        At which visit of a kernel, as an unprotected call counts them.
    element : int
        Which word.
    bits : int
        Its width.
    change : Change
        What becomes of it.
    persistent : bool
        Whether it stays: in memory until it is repaired, in a kernel at every later visit.
    """

    trial: int
    site: str
    model: str
    part: str
    batch: int
    visit: int
    element: int
    bits: int
    change: Change
    persistent: bool


@dataclass
class Struck:
    """Whether a fault struck, and whether any word changed."""

    fired: int = 0
    changed: int = 0


class Drawer:
    """Draws the fault of a trial from the seed and the trial's number alone."""

    def __init__(
        self,
        target: _targets.Target,
        sites: tuple[str, ...],
        models: tuple[FaultModel, ...],
        persistence: tuple[bool, ...],
        seed: int,
        check: str,
        threshold: Any,
    ) -> None:
        self.target, self.sites, self.models, self.persistence, self.seed = target, sites, models, persistence, seed
        self._check, self._threshold = check, threshold
        self._last: Fault | None = None
        self._visits: dict[tuple[str, int, str], int] = {}
        self._wide = target.call(target.batches[0], "off", threshold).itemsize * 8

    def visits(self, site: str, batch: int, check: str) -> int:
        """Count how often a call visits a site."""
        given = self.target.batches[batch]
        sizes = sum(np.asarray(a).size for v in given.values() for a in (v if isinstance(v, list) else [v]))
        rows = len(given["offsets"][0]) if "offsets" in given else len(given["input"])
        key = (site, rows if "offsets" in given else sizes, check)
        if key not in self._visits:
            with _inject.hooked_call(KERNEL_SITES[site][0], (_inject.UNREACHED, 0, 0, 1)) as outcome:
                self.target.call(given, check, self._threshold)
                self._visits[key] = _inject.UNREACHED - outcome()[1]
        return self._visits[key]

    def visit_when(self, fault: Fault, check: str) -> int:
        """Return the visit of a fault as a call at a level of checking counts: what is computed twice is visited twice."""
        if check == "off" or fault.site in DETECTOR_SITES:
            return fault.visit
        plain, checked = (self.visits(fault.site, fault.batch, c) for c in ("off", check))
        if plain == checked or not plain:
            return fault.visit
        block = max(1, self._blocks(fault) if fault.site == "bag.accumulator" else 1)
        return fault.visit // block * block * (checked // plain) + fault.visit % block

    def _blocks(self, fault: Fault) -> int:
        starts = self.target.batches[fault.batch]["offsets"]
        return self.visits(fault.site, fault.batch, "off") // max(1, sum(len(s) - 1 for s in starts))

    def draw(self, trial: int) -> Fault:
        """Draw a fault: sites, models and persistence in turn, everything else at random."""
        if self._last is None or self._last.trial != trial:
            self._last = self._drawn(trial)
        return self._last

    def _drawn(self, trial: int) -> Fault:
        turn, site = divmod(trial, len(self.sites))
        turn, model = divmod(turn, len(self.models))
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(trial,)))
        name, batch = self.sites[site], int(rng.integers(len(self.target.batches)))
        part, visit, element, bits = self._place(name, batch, rng)
        drawn = self.models[model]
        persistent = name in INPUT_SITES or name in _targets.AT_REST or self.persistence[turn % len(self.persistence)]
        return Fault(trial, name, drawn.name, part, batch, visit, element, bits, drawn.draw(rng, bits), persistent)

    def _place(self, site: str, batch: int, rng: np.random.Generator) -> tuple[str, int, int, int]:
        """Draw (part, visit, element, bits), each word of a site as likely as any other."""
        if site in KERNEL_SITES:
            visits = self.visits(site, batch, self._check if site in DETECTOR_SITES else "off")
            bits = KERNEL_SITES[site][1] or (32 if isinstance(self.target, _targets.ProductTarget) else self._output_bits())
            return "", int(rng.integers(max(1, visits))), int(rng.integers(2**31)), bits
        if site == FLOW_SITE:
            place = self.target.flows()[int(rng.integers(len(self.target.flows())))]
            return place, 0, int(rng.integers(2**31)), 32 if place in ("vectors", "logits") else 8
        if site in INPUT_SITES:
            return self._input(site, batch, rng)
        return self._memory(site, batch, rng)

    def _output_bits(self) -> int:
        # inside a model most outputs are bytes; of its float ones the low byte is struck
        return 8 if isinstance(self.target, _targets.ModelTarget) else self._wide

    def _input(self, site: str, batch: int, rng: np.random.Generator) -> tuple[str, int, int, int]:
        given = self.target.batches[batch][site]
        arrays = given if isinstance(given, list) else [given]
        ends = np.cumsum([a.size for a in arrays])
        at = int(rng.integers(max(1, int(ends[-1]) if len(ends) else 1)))
        which = int(np.searchsorted(ends, at, side="right")) if len(ends) and ends[-1] else 0
        bits = arrays[which].itemsize * 8 if arrays else 8
        return str(which), 0, at - (int(ends[which - 1]) if which else 0), bits

    def _memory(self, site: str, batch: int, rng: np.random.Generator) -> tuple[str, int, int, int]:
        found = {name: _targets.memory(part, site) for name, part in self.target.parts.items()}
        words = {name: w for name, w in found.items() if w is not None}
        if site in _targets.TABLE_SITES:
            # of the rows that the batch reads: a fault in another changes nothing until it is read
            read = {name: self.target.rows_read(self.target.batches[batch], name) for name in words}
            sizes = np.array([len(read[name]) for name in words])
            if not sizes.any():
                return next(iter(words)), 0, 0, next(iter(words.values())).bits
            name = list(words)[int(rng.choice(len(sizes), p=sizes / sizes.sum()))]
            width = words[name].array.shape[1]
            row = int(read[name][int(rng.integers(len(read[name])))])
            return name, 0, row * width + int(rng.integers(width)), words[name].bits
        sizes = np.array([w.count for w in words.values()])
        name = list(words)[int(rng.choice(len(sizes), p=sizes / sizes.sum()))]
        return name, 0, int(rng.integers(words[name].count)), words[name].bits


def _strike_word(array: Array, position: Any, change: Change, bits: int, seen: Struck, *, second: bool = False) -> int:
    old = int(array[position])
    new = change.apply(old, bits, second=second)
    array[position] = new
    seen.fired += 1
    seen.changed += new != old
    return old


class _Restoring(detection.Monitor):
    """Takes a transient fault out of memory as soon as the operator that read it has."""

    def __init__(self, operator: str, restore: Callable[[], None]) -> None:
        super().__init__()
        self._operator, self._restore = operator, restore

    def _count(self, operator: str, checks: int) -> None:
        if operator == self._operator:
            self._restore()


@contextmanager
def _in_memory(target: _targets.Target, fault: Fault, seen: Struck) -> Iterator[None]:
    part = target.parts[fault.part]
    words = _targets.memory(part, fault.site)
    assert words is not None
    undo = [(p := words.position(fault.element), _strike_word(words.array, p, fault.change, words.bits, seen))]
    if fault.change.pair and words.count > 1:
        p = words.position((fault.element + 1) % words.count)
        undo.append((p, _strike_word(words.array, p, fault.change, words.bits, seen, second=True)))
    if fault.site in _targets.AT_REST and not isinstance(part, EmbeddingBag):
        part._epilogues.clear()  # so that the call reads what it strikes

    def restore() -> None:
        for position, old in reversed(undo):
            words.array[position] = old

    token = None
    if not fault.persistent:
        token = _monitor._monitors.set((*_monitor._monitors.get(), _Restoring(fault.part, restore)))
    try:
        yield
    finally:
        if token is not None:
            _monitor._monitors.reset(token)
        restore()


def _once(fault: Fault, seen: Struck) -> Callable[[Array], None]:
    """Return what strikes an array of activations: the first time, or every time for a persistent fault."""

    def strike(a: Array) -> None:
        if a.size == 0 or (seen.fired and not fault.persistent):
            return
        flat = a if a.ndim == 2 and a.shape[1] > 1 else a.reshape(len(a), -1)
        words = flat.view(_targets.UNSIGNED[a.itemsize])
        row, column = divmod(fault.element % words.size, words.shape[1])
        _strike_word(words, (row, column), fault.change, fault.bits, seen)
        if fault.change.pair and words.shape[1] > 1:
            _strike_word(words, (row, (column + 1) % words.shape[1]), fault.change, fault.bits, seen, second=True)

    return strike


class _StruckBag(EmbeddingBag):
    """A table whose pooled vectors are struck after they were written and verified."""

    def __init__(self, bag: EmbeddingBag, after: Callable[[Array], None]) -> None:
        self.__dict__.update(bag.__dict__)
        self._after = after

    def _pool(self, call: Call, threshold: Any) -> None:
        super()._pool(call, threshold)
        self._after(call.out)


@contextmanager
def _between_stages(target: _targets.Target, fault: Fault, seen: Struck) -> Iterator[None]:
    assert isinstance(target, _targets.ModelTarget)
    model, strike = target.model, _once(fault, seen)
    name, _, number = fault.part.partition(".")
    parts: Any
    if name == "vectors":
        parts, at = model.bags, fault.element // 7 % len(model.bags)
        new: Any = _StruckBag(model.bags[at], strike)
    elif name == "logits":
        parts, at = model.top, len(model.top) - 1
        new = _inject.StruckLayer(model.top[at], None, strike)
    else:
        parts, at = getattr(model, name), int(number)
        new = _inject.StruckLayer(parts[at], strike)
    sound: Any = parts[at]
    parts[at] = new
    try:
        yield
    finally:
        parts[at] = sound


def _struck_input(batch: dict[str, Any], fault: Fault, seen: Struck) -> dict[str, Any]:
    """Return a batch one word of which is struck."""
    given = batch[fault.site]
    arrays = [a.copy() for a in given] if isinstance(given, list) else [given.copy()]
    if arrays and arrays[int(fault.part)].size:
        words = arrays[int(fault.part)].reshape(-1).view(_targets.UNSIGNED[fault.bits // 8])
        _strike_word(words, fault.element, fault.change, fault.bits, seen)
        if fault.change.pair and words.size > 1:
            _strike_word(words, (fault.element + 1) % words.size, fault.change, fault.bits, seen, second=True)
    return batch | {fault.site: arrays if isinstance(given, list) else arrays[0]}


@contextmanager
def _in_kernel(fault: Fault, visit: int, seen: Struck) -> Iterator[None]:
    c = fault.change
    mask = 0xFFFFFFFF
    plan = (visit, fault.element, c.flip & mask, _inject.UNREACHED if fault.persistent else 1)
    operands = (c.keep | mask ^ ((1 << fault.bits) - 1), c.put & mask, c.add & mask, c.pair)
    outcome = (0, 0, 0)
    try:
        with _inject.hooked_call(KERNEL_SITES[fault.site][0], plan + operands) as outcome_of:
            try:
                yield
            finally:
                outcome = outcome_of()
    finally:
        seen.fired, seen.changed = outcome[0], outcome[2]


@contextmanager
def struck(drawer: Drawer, fault: Fault, check: str) -> Iterator[tuple[dict[str, Any], Struck]]:
    """Let a fault strike what happens inside a ``with`` block; yields the inputs to use, and whether it struck."""
    target, seen = drawer.target, Struck()
    batch = target.batches[fault.batch]
    with ExitStack() as stack:
        stack.enter_context(_config.config_context(num_threads=1, on_error="recover"))
        if fault.site in KERNEL_SITES:
            if fault.site in MAY_CRASH:  # strikes the indices where they stand
                batch = batch | {"indices": [a.copy() for a in batch["indices"]]}
            stack.enter_context(_in_kernel(fault, drawer.visit_when(fault, check), seen))
        elif fault.site == FLOW_SITE:
            stack.enter_context(_between_stages(target, fault, seen))
        elif fault.site in INPUT_SITES:
            batch = _struck_input(batch, fault, seen)
        else:
            stack.enter_context(_in_memory(target, fault, seen))
        yield batch, seen
