"""Thresholds below the rounding bound: what they exceed is looked at again, and rounding is not called a fault."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import sedq
from sedq import detection, faults
from sedq._core import _dispatch, _embedding

IDX = np.random.default_rng(3).integers(0, 1000, (500, 40))
TIGHT = ["paper", 1e-9, 0.0]


@pytest.fixture(scope="module")
def bag() -> sedq.EmbeddingBag:
    rng = np.random.default_rng(2)
    return sedq.EmbeddingBag.from_float(rng.normal(size=(1000, 64)).astype(np.float32), keep_source=True)


@pytest.mark.parametrize("check", ["threshold", "exact", "full"])
@pytest.mark.parametrize("threshold", TIGHT)
def test_rounding_is_not_a_persistent_fault(
    threshold: Any, check: str, bag: sedq.EmbeddingBag, kernels: _dispatch.Context
) -> None:
    expected = bag(IDX)
    with sedq.monitor() as m:
        got = bag(IDX, threshold=threshold, check=check)
    np.testing.assert_array_equal(got, expected)
    assert m.detections > 0
    assert {(e.kind, e.rung, e.verdict, e.detail) for e in m.events} == {("sum", "recompute", "rounding", "")}


@pytest.mark.parametrize("threshold", TIGHT)
def test_policies_hold_for_rounding_too(threshold: Any, bag: sedq.EmbeddingBag) -> None:
    with pytest.raises(sedq.SoftErrorDetected, match="raise: unresolved"):
        bag(IDX, threshold=threshold, on_error="raise")
    with pytest.warns(sedq.SoftErrorWarning, match="none: unresolved"):
        bag(IDX, threshold=threshold, on_error="warn")


@pytest.mark.parametrize("threshold", TIGHT)
def test_a_fault_beside_rounding_is_a_fault(threshold: Any, bag: sedq.EmbeddingBag) -> None:
    expected = bag(IDX)
    with sedq.monitor() as m, faults.accumulator_fault("bag", visit=3, element=5, flip=1 << 29):
        got = bag(IDX, threshold=threshold, check="threshold", num_threads=1)
    np.testing.assert_array_equal(got, expected)
    by_bag = {e.row: e.verdict for e in m.events}
    assert by_bag.pop(3) == "transient"
    assert set(by_bag.values()) == {"rounding"}


@pytest.mark.parametrize("visit", range(6))
def test_a_fault_that_left_the_output_as_it_was(visit: int, bag: sedq.EmbeddingBag) -> None:
    with sedq.monitor() as m, faults.accumulator_fault("bag", visit=visit, element=5, flip=1 << 29):
        got = bag(IDX[:3], threshold=0.0, check="full", on_error="recover", num_threads=1)
    np.testing.assert_array_equal(got, bag(IDX[:3]))
    assert ("transient" in m.verdicts) == any(e.kind != "sum" or e.residual > 1 for e in m.events)


def test_a_corrupted_row_beside_rounding_is_memory(bag: sedq.EmbeddingBag) -> None:
    expected = bag(IDX)
    faults.flip_row_bit(bag, int(IDX[0, 0]), 6)
    with sedq.monitor() as m:
        got = bag(IDX, threshold=0.0)
    np.testing.assert_array_equal(got, expected)
    for e in m.events:
        assert e.verdict == ("memory" if IDX[0, 0] in IDX[e.row] else "rounding")
    assert set(m.verdicts) == {"memory", "rounding"}


@pytest.mark.parametrize("threshold", ["paper", 1e-7])
@pytest.mark.parametrize("source", [True, False])
def test_a_corrupted_row_that_the_bound_accepts_is_memory(threshold: Any, source: bool, rng: np.random.Generator) -> None:
    bag = sedq.EmbeddingBag.from_float(rng.normal(size=(1000, 64)).astype(np.float32), keep_source=source)
    indices = rng.integers(0, 1000, (4, 100))
    expected = bag(indices)
    faults.flip_row_bit(bag, int(indices[1, 5]), 0)  # the lowest bit of a code
    assert bag(indices, check="threshold").tobytes() != expected.tobytes()  # within the bound
    with sedq.monitor() as m:
        if source:
            np.testing.assert_array_equal(bag(indices, check="threshold", threshold=threshold), expected)
        else:
            with pytest.raises(sedq.SoftErrorDetected, match=r"raise: memory, still corrupted: rows \["):
                bag(indices, check="threshold", threshold=threshold)
    for e in m.events:
        assert e.verdict == ("memory" if indices[1, 5] in indices[e.row] or not source else "rounding")
    assert m.verdicts["memory"] > 0


@pytest.mark.parametrize("threshold", TIGHT)
def test_a_residual_that_no_other_path_has_is_a_fault(
    threshold: Any, bag: sedq.EmbeddingBag, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, calls = _embedding.pool, 0

    def struck(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        found = honest(*arguments)
        return detection.Findings([detection.Finding(0, detection.Kind.SUM, 1000.0)]) if calls == 1 else found

    monkeypatch.setattr(_embedding, "pool", struck)
    with sedq.monitor() as m:
        bag(IDX[:3], threshold=threshold)
    assert set(m.verdicts) == {"transient"}


def test_what_the_bound_refuses_is_persistent(bag: sedq.EmbeddingBag, monkeypatch: pytest.MonkeyPatch) -> None:
    class Struck(type(bag)):  # type: ignore[misc]
        def _compute_again(self, kernels: Any, numbers: Any, call: Any, stats: Any = None) -> Any:
            _, again = super()._compute_again(kernels, numbers, call, stats)
            return [detection.Finding(0, detection.Kind.SUM, 1.0, 0.5)], again

    monkeypatch.setattr(bag, "__class__", Struck)
    for threshold in ("bound", "paper"):
        with (
            pytest.raises(sedq.SoftErrorDetected, match="persistent"),
            faults.accumulator_fault("bag", visit=3, element=5, flip=1 << 29),
        ):
            bag(IDX, threshold=threshold, check="threshold")


@pytest.mark.parametrize("threshold", TIGHT)
def test_bags_of_an_overlay(threshold: Any) -> None:
    rows = sedq.EmbeddingBag.from_float(np.random.default_rng(2).normal(size=(1000, 64))).to_fused()
    view = sedq.EmbeddingBag.view_fused(rows, parity=50)
    expected = view(IDX)
    rows[IDX[0, 0], 3] ^= 1
    view.scrub()
    with sedq.monitor() as m:
        np.testing.assert_array_equal(view(IDX, threshold=threshold), expected)
    assert set(m.verdicts) == {"rounding"}


@pytest.mark.parametrize("readers", [0, 1, 70])
def test_a_fault_of_another_bag_beside_an_overlay(readers: int, kernels: _dispatch.Context) -> None:
    """With 70 bags that read the row of the overlay, the fault is no longer among the 64 findings that are listed."""
    rows = sedq.EmbeddingBag.from_float(np.random.default_rng(2).normal(size=(50, 9))).to_fused()
    view = sedq.EmbeddingBag.view_fused(rows, parity=8)
    index = np.full((80, 2), 3)
    index[:readers, 1] = 7
    expected = view(index)
    rows[7, 2] ^= 64
    assert view.scrub().rebuilt == [7]
    with faults.accumulator_fault("bag", visit=79, element=5, flip=1 << 30) as strike, sedq.monitor() as m:
        np.testing.assert_array_equal(view(index), expected)
    assert strike.fired == 1
    assert [(e.kind, e.row, e.verdict) for e in m.events] == ([("sum", 79, "transient")] if readers < 70 else [])
