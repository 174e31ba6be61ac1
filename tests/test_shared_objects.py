"""Threads that share weights or a table: memory that another thread has mended meanwhile is a memory fault all the same."""

from __future__ import annotations

import copy
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import sedq
from sedq import detection, faults
from sedq._core import _embedding, _gemm
from sedq.linear import _products

THREADS, ROUNDS = 4, 40
IDX = np.random.default_rng(1).integers(0, 50, (10, 20))


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def packed(rng: np.random.Generator) -> sedq.PackedWeights:
    return sedq.pack_weights(rng.integers(-128, 128, (128, 256), dtype=np.int8))


@pytest.fixture
def bag(rng: np.random.Generator) -> sedq.EmbeddingBag:
    return sedq.EmbeddingBag.from_float(rng.normal(size=(50, 16)).astype(np.float32), keep_source=True)


def together(call: Callable[[], object], strike: Callable[[int], None]) -> Counter[tuple[str, str]]:
    """Verdicts, and what was healed without its numbers, of threads that call at once after each strike."""
    seen: list[sedq.Event] = []
    barrier = threading.Barrier(THREADS)

    def work(first: bool) -> None:
        for i in range(ROUNDS):
            if first:
                strike(i)
            barrier.wait(30)
            with sedq.monitor() as m:
                call()
            seen.extend(m.events)
            barrier.wait(30)

    threads = [threading.Thread(target=work, args=(t == 0,)) for t in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Counter((e.verdict, e.detail.partition("[")[0]) for e in seen)


@pytest.mark.usefixtures("restless")
def test_weights_that_threads_share(packed: sedq.PackedWeights, rng: np.random.Generator) -> None:
    x = rng.integers(1, 256, (4, 256), dtype=np.uint8)
    expected = sedq.matmul_integer(x, packed)

    def call() -> None:
        np.testing.assert_array_equal(sedq.matmul_integer(x, packed, num_threads=1), expected)

    seen = together(call, lambda i: faults.flip_weight_bit(packed, i, 3 * i, 6))
    assert set(seen) == {("memory", "panels: W")}
    assert sum(seen.values()) >= ROUNDS


@pytest.mark.usefixtures("restless")
def test_a_table_that_threads_share(bag: sedq.EmbeddingBag) -> None:
    expected = bag(IDX)

    def call() -> None:
        np.testing.assert_array_equal(bag(IDX, num_threads=1), expected)

    seen = together(call, lambda i: faults.flip_row_bit(bag, int(IDX[i % 10, 0]), 5))
    assert set(seen) == {("memory", "rows ")}
    assert sum(seen.values()) >= ROUNDS


def test_two_that_heal_at_once(packed: sedq.PackedWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    faults.flip_weight_bit(packed, 5, 7, 6)
    honest, second, healed = sedq.PackedWeights.verify, threading.Thread(target=packed.heal), packed.heal

    def verify(self: sedq.PackedWeights) -> sedq.WeightsReport:
        report = honest(self)
        if second.ident is None:
            second.start()
            second.join(0.05)  # it has to wait for the first
        return report

    monkeypatch.setattr(sedq.PackedWeights, "verify", verify)
    (text,) = healed().healed
    second.join()
    assert text.startswith("panels: W[5, 7]")
    assert packed.heals == 1


def elsewhere(call: Callable[[], object]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def once(function: Callable[..., Any], then: Callable[[], object]) -> Callable[..., Any]:
    """A function after whose first run something happens in another thread."""
    runs: list[int] = []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        runs.append(1)
        first, result = len(runs) == 1, function(*args, **kwargs)
        if first:
            elsewhere(then)
        return result

    return wrapped


def test_weights_mended_between_a_computation_and_its_verdict(
    packed: sedq.PackedWeights, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = rng.integers(1, 256, (4, 256), dtype=np.uint8)
    faults.flip_weight_bit(packed, 5, 7, 6)
    monkeypatch.setattr(_gemm, "linear", once(_gemm.linear, packed.heal))
    with sedq.monitor() as m:
        sedq.matmul_integer(x, packed)
    assert {(e.rung, e.verdict, e.detail.partition(" from")[0]) for e in m.events} == {("heal", "memory", "panels: W[5, 7]")}
    assert all(e.detail.endswith(", by another thread") for e in m.events)
    with sedq.monitor() as m, faults.accumulator_fault(flip=1 << 20):
        sedq.matmul_integer(x, packed)
    assert m.verdicts == {"transient": 1}, "what was mended before is no excuse"


def test_every_row_is_computed_again_if_another_thread_healed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors cancelled in row 0, which no finding names; one of the findings has another cause than the weights."""
    packed = sedq.pack_weights(np.full((4, 8), 10, np.int8))
    x = np.full((3, 8), 7, np.uint8)
    x[0, 1:3], x[1, 1:3], x[2, 1] = (4, 8), (3, 50), 9
    expected = sedq.matmul_integer(x, packed)
    faults.flip_weight_bit(packed, 0, 1, 2)
    faults.flip_weight_bit(packed, 3, 2, 1)
    struck = once(_gemm.linear, packed.heal)

    def linear(*args: Any) -> detection.Findings | None:
        found = struck(*args)
        return found and detection.Findings([*found, detection.Finding(1, detection.Kind.INPUT)])

    monkeypatch.setattr(_gemm, "linear", linear)
    with sedq.monitor() as m:
        np.testing.assert_array_equal(sedq.matmul_integer(x, packed), expected)
    assert {e.row for e in m.events} == {1, 2}


def test_parameters_forgotten_before_the_product_began(
    packed: sedq.PackedWeights, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = rng.integers(1, 256, (4, 256), dtype=np.uint8)
    scales: dict[str, Any] = {"x_scale": 0.1, "x_zero_point": 3, "y_scale": 900.0, "y_zero_point": 8}
    expected = sedq.qlinear(x, packed, **scales)
    (derived,) = packed._epilogues.values()
    derived.col_term[5] ^= 1 << 25
    honest = _products.multiply

    def multiply(*args: Any, **kwargs: Any) -> None:
        elsewhere(packed.heal)
        honest(*args, **kwargs)

    monkeypatch.setattr(_products, "multiply", multiply)
    with sedq.monitor() as m:
        np.testing.assert_array_equal(sedq.qlinear(x, packed, **scales), expected)
    assert {(e.kind, e.verdict, e.detail) for e in m.events} == {("parameters", "memory", "parameters derived again")}


MEND = {
    "scrub": lambda bag, row: bag.scrub(),
    "restore": lambda bag, row: bag.restore([row]),
    "call": lambda bag, row: bag([[row]]),
    "to_fused": lambda bag, row: bag.to_fused(),
}


@pytest.mark.parametrize("collected", [False, True], ids=["bag", "collection"])
@pytest.mark.parametrize("mend", MEND)
def test_a_row_mended_between_a_computation_and_its_verdict(
    mend: str, collected: bool, bag: sedq.EmbeddingBag, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults.flip_row_bit(bag, 7, 5)
    faults.flip_row_bit(bag, 9, 5)
    bag.restore([9])
    monkeypatch.setattr(detection, "count_checks", once(detection.count_checks, lambda: MEND[mend](bag, 7)))
    with sedq.monitor() as m:
        if collected:
            sedq.EmbeddingBagCollection([bag])([7, 8, 9], [0, 2, 3])
        else:
            bag([[7, 8], [9, 9]])
    (event,) = m.events
    assert (event.kind, event.rung, event.verdict) == ("digest", "heal", "memory")
    assert event.detail == "rows [7] mended by another thread"


def test_another_row_that_was_mended_is_no_excuse(bag: sedq.EmbeddingBag, monkeypatch: pytest.MonkeyPatch) -> None:
    faults.flip_row_bit(bag, 7, 5)
    monkeypatch.setattr(detection, "count_checks", once(detection.count_checks, lambda: bag.restore([7, 3])))
    with sedq.monitor() as m, faults.accumulator_fault("bag", flip=1 << 29):
        bag([[3, 8], [9, 9]])
    assert set(m.verdicts) == {"transient"}


def test_copies_forget_what_was_mended(bag: sedq.EmbeddingBag) -> None:
    faults.flip_row_bit(bag, 7, 5)
    bag.scrub()
    for twin in (copy.copy(bag), copy.deepcopy(bag)):
        assert (twin.table.repairs, twin.table.repaired_at) == (0, {})
    assert (bag.table.repairs, bag.table.repaired_at) == (1, {7: 1})


# ---- what another thread mended, and did not cause the finding


def struck_once(honest: Callable[..., Any], found: Any, before: Callable[[int, Any], None]) -> Callable[..., Any]:
    """A kernel that calls `before` with its number and arguments, and finds something at its last such call."""
    calls = 0

    def kernel(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        result = honest(*arguments)
        before(calls, arguments)
        return found.get(calls, result)

    return kernel


def test_rows_mended_before_the_reading_that_counts(bag: sedq.EmbeddingBag, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = bag([[3, 4]])
    faults.flip_row_bit(bag, 3, 6)

    def before(call: int, arguments: Any) -> None:
        if call == 1:
            elsewhere(bag.scrub)  # so that the rows are read again
        elif call == 2:
            arguments[5][0, 0] += 1  # a store of this core

    found = {2: detection.Findings([detection.Finding(0, detection.Kind.OUTPUT, 1.0)])}
    monkeypatch.setattr(_embedding, "pool", struck_once(_embedding.pool, found, before))
    with sedq.monitor() as m:
        np.testing.assert_array_equal(bag([[3, 4]]), expected)
    assert [e.verdict for e in m.events if e.kind == "output"] == ["transient"]


@pytest.mark.parametrize("which", ["bias", "col_sums"])
def test_weights_healed_that_explain_nothing(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An accumulator is struck; the bias by another thread, or column sums by this one before, were healed."""
    packed = sedq.pack_weights(np.ones((8, 16), np.int8), 0.5, 0, np.ones(8, np.float32))
    x = np.ones((2, 16), np.uint8)
    expected = sedq.pack_weights(np.ones((8, 16), np.int8), 0.5, 0, np.ones(8, np.float32))
    if which == "col_sums":
        faults.flip_bit(packed._col_sums, 0, 0)

    def before(call: int, arguments: Any) -> None:
        if call > 1:
            return
        if which == "bias":
            faults.flip_bit(packed.bias, 0, 3)
            elsewhere(packed.heal)
        arguments[4][1, 2] += 1

    found = {1: detection.Findings([detection.Finding(1, detection.Kind.ACCUMULATOR, 1.0)])}
    monkeypatch.setattr(_gemm, "linear", struck_once(_gemm.linear, found, before))
    with sedq.monitor() as m:
        got = sedq.qlinear(x, packed, x_scale=0.1, x_zero_point=0)
    assert [e.verdict for e in m.events if e.kind == "accumulator"] == ["transient"]
    np.testing.assert_array_equal(got, sedq.qlinear(x, expected, x_scale=0.1, x_zero_point=0))
