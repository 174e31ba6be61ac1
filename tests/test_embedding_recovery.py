"""What an EmbeddingBag does about corruption: recompute, restore rows, raise or warn; and what it says about it."""

from __future__ import annotations

import copy
import pickle
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sedq
from helpers import oracles
from sedq import faults
from sedq._core import _dispatch

Array = NDArray[Any]
DIM, ROWS = 12, 20
SCALE, BIAS, DIGEST = 8 * DIM, 8 * DIM + 32, 8 * DIM + 64  # first bits of them, as flip_row_bit counts
INDICES = np.arange(12).reshape(4, 3)


def table() -> Array:
    return np.random.default_rng(4).normal(size=(ROWS, DIM)).astype(np.float32)


def from_float(source: bool = True, **kwargs: Any) -> sedq.EmbeddingBag:
    return sedq.EmbeddingBag.from_float(table(), keep_source=source, **kwargs)


def from_fused(source: bool = True, **kwargs: Any) -> sedq.EmbeddingBag:
    return sedq.EmbeddingBag.from_fused(from_float().to_fused(), keep_source=source, **kwargs)


MAKERS = pytest.mark.parametrize("make", [from_float, from_fused])


def corrupt(bag: sedq.EmbeddingBag, *rows: int, bit: int = 6) -> None:
    for row in rows:
        faults.flip_row_bit(bag, row, bit)


# --- transient faults ---


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("check", ["threshold", "exact", "full"])
def test_transient_fault(check: str, weighted: bool, mode: str, kernels: _dispatch.Context) -> None:
    bag = from_float(False, mode=mode)
    weights = np.random.default_rng(5).normal(size=INDICES.shape).astype(np.float32) if weighted else None
    clean = bag(INDICES, None, weights)
    fault = {"visit": 2, "element": 5, "flip": 1 << 29}
    with faults.accumulator_fault("bag", **fault):
        assert not np.array_equal(bag(INDICES, None, weights, check="off"), clean)
    out = np.empty_like(clean)
    before = time.time()
    with sedq.monitor() as seen, faults.accumulator_fault("bag", **fault) as strike:
        got = bag(INDICES, None, weights, check=check, out=out)
    assert strike.fired == 1
    assert got is out
    np.testing.assert_array_equal(out, clean)
    assert seen.checks == {"EmbeddingBag": 4}
    assert seen.detections == len(seen.events) == (2 if check == "full" else 1)
    assert seen.verdicts == {"transient": seen.detections}
    assert [e.kind for e in seen.events] == (["sum", "repeat"] if check == "full" else ["sum"])
    for event in seen.events:
        assert (event.operator, event.row, event.rung, event.detail) == ("EmbeddingBag", 2, "recompute", "")
        assert event.thread == threading.get_ident()
        assert event.cpu >= -1
        assert event.cpu_after >= -1
        assert before <= event.time <= time.time()
    assert abs(seen.events[0].residual) > seen.events[0].limit > 0
    assert "EmbeddingBag: sum check, row 2, residual" in str(seen.events[0])


@pytest.mark.parametrize("bags", [63, 64, 65, 200])
@pytest.mark.parametrize("threads", [1, 2])
def test_more_bad_bags_than_findings_are_listed(bags: int, threads: int, kernels: _dispatch.Context) -> None:
    bag = from_float(False)
    indices = np.random.default_rng(6).integers(0, ROWS, (200, 5))
    clean = bag(indices)
    with sedq.monitor() as seen, faults.accumulator_fault("bag", flip=1 << 30, repeat=bags) as strike:
        got = bag(indices)
    assert strike.fired == bags
    np.testing.assert_array_equal(got, clean)
    assert seen.detections == min(bags, 64)
    # and with a corrupted row in each of many bags, on two threads
    bag, indices = from_float(), np.random.default_rng(6).integers(0, ROWS, (3000, 5))
    clean = bag(indices)
    corrupt(bag, *range(0, ROWS, 2))
    assert not np.array_equal(bag(indices, check="off"), clean)
    with sedq.monitor() as seen:
        np.testing.assert_array_equal(bag(indices, num_threads=threads), clean)
    assert seen.detections == 64
    assert bag.bad_rows() == []


# --- corrupted rows ---


@MAKERS
@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize(
    "bit",
    [0, 7, 8 * DIM - 1, SCALE, SCALE + 22, SCALE + 30, BIAS + 3, BIAS + 30, BIAS + 31, DIGEST, DIGEST + 39, DIGEST + 63],
)
def test_corrupted_row_is_restored(
    bit: int, mode: str, make: Callable[..., sedq.EmbeddingBag], kernels: _dispatch.Context
) -> None:
    bag = make(mode=mode)
    clean, stored = bag(INDICES), bag.table.rows.copy()
    corrupt(bag, 7, bit=bit)
    silent = bag(INDICES, check="off")
    assert np.array_equal(silent, clean) == (bit >= DIGEST)
    with sedq.monitor() as seen:
        np.testing.assert_array_equal(bag(INDICES), clean)
    np.testing.assert_array_equal(bag.table.rows, stored)
    assert {(e.operator, e.row, e.rung, e.verdict, e.detail) for e in seen.events} == {
        ("EmbeddingBag", 2, "heal", "memory", "rows [7] reloaded")
    }
    assert seen.events[0].kind == "digest"
    with sedq.monitor() as seen:
        np.testing.assert_array_equal(bag(INDICES, check="full"), clean)
    assert seen.detections == 0


def test_padded_rows_are_a_source_too() -> None:
    padded = from_float(bits=4).to_fused("tbe", align=16)
    bag = sedq.EmbeddingBag.from_fused(padded, bits=4, layout="tbe", dim=table().shape[1], keep_source=True)
    assert bag.to_fused("tbe").shape[1] < padded.shape[1]
    corrupt(bag, 7)
    assert bag.restore([7]) == [7]


@MAKERS
def test_several_rows_in_several_bags(make: Callable[..., sedq.EmbeddingBag], kernels: _dispatch.Context) -> None:
    bag = make()
    clean, stored = bag(INDICES), bag.table.rows.copy()
    corrupt(bag, 0, 2, 9, 10, 15)
    with sedq.monitor() as seen:
        np.testing.assert_array_equal(bag(INDICES), clean)
    assert {e.row for e in seen.events} == {0, 3}
    assert {e.detail for e in seen.events} == {"rows [0, 2, 9, 10] reloaded"}
    assert bag.bad_rows() == [15]  # it was not needed
    bag.table.require_intact()
    np.testing.assert_array_equal(bag.table.rows, stored)


@pytest.mark.parametrize("bit", [SCALE + 30, SCALE + 29, BIAS + 30, 7])
@pytest.mark.parametrize("bags", [10, 33, 70, 300])
def test_one_row_in_many_bags(bags: int, bit: int, kernels: _dispatch.Context) -> None:
    """A scale that became huge overflows the sums too: all bags are right afterwards nevertheless."""
    bag = from_float()
    indices = np.array([[7, 3]] * bags)
    clean = bag(indices)
    corrupt(bag, 7, bit=bit)
    assert not np.array_equal(bag(indices, check="off"), clean)
    np.testing.assert_array_equal(bag(indices), clean)
    assert bag.bad_rows() == []


def test_a_row_detected_by_its_sum_alone_is_restored(kernels: _dispatch.Context) -> None:
    bag = from_float()
    clean = bag(INDICES)
    corrupt(bag, 7, bit=7)
    with sedq.monitor() as seen:
        np.testing.assert_array_equal(bag(INDICES, check="threshold"), clean)
    assert [(e.kind, e.verdict, e.detail) for e in seen.events] == [("sum", "memory", "rows [7] reloaded")]


@MAKERS
def test_without_a_source_corruption_raises(make: Callable[..., sedq.EmbeddingBag], kernels: _dispatch.Context) -> None:
    bag = make(False)
    corrupt(bag, 7, 11)
    stored = bag.table.rows.copy()
    with sedq.monitor() as seen, pytest.raises(sedq.SoftErrorDetected, match=r"still corrupted: rows \[7, 11\]") as caught:
        bag(INDICES)
    assert caught.value.events == tuple(seen.events)
    assert {(e.row, e.kind, e.rung, e.verdict, e.detail) for e in seen.events if e.kind == "digest"} == {
        (row, "digest", "raise", "memory", "still corrupted: rows [7, 11], there is no source to reload them from")
        for row in (2, 3)
    }
    np.testing.assert_array_equal(bag.table.rows, stored)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.events) == (str(caught.value), caught.value.events)


# --- policies ---


def test_on_error_raise(kernels: _dispatch.Context) -> None:
    bag = from_float()
    corrupt(bag, 7)
    stored = bag.table.rows.copy()
    with sedq.monitor() as seen, pytest.raises(sedq.SoftErrorDetected, match="digest check, row 2") as caught:
        bag(INDICES, on_error="raise")
    assert caught.value.events == tuple(seen.events)
    assert {(e.row, e.rung, e.verdict) for e in seen.events} == {(2, "raise", "unresolved")}
    np.testing.assert_array_equal(bag.table.rows, stored)  # nothing was tried
    assert isinstance(caught.value, RuntimeError)


def test_on_error_warn(kernels: _dispatch.Context) -> None:
    bag = from_float()
    corrupt(bag, 7)
    silent = bag(INDICES, check="off")
    with sedq.monitor() as seen, pytest.warns(sedq.SoftErrorWarning, match="digest check, row 2") as caught:
        got = bag(INDICES, on_error="warn")
    np.testing.assert_array_equal(got, silent)
    assert {(e.row, e.rung, e.verdict) for e in seen.events} == {(2, "none", "unresolved")}
    assert [w.filename for w in caught] == [__file__]
    assert bag.bad_rows() == [7]


def test_the_surrounding_policy() -> None:
    bag = from_float()
    corrupt(bag, 7)
    with sedq.config_context(on_error="raise"), pytest.raises(sedq.SoftErrorDetected):
        bag(INDICES)
    with sedq.config_context(check="off"), warnings.catch_warnings():
        warnings.simplefilter("error")
        silent = bag(INDICES)
    assert not np.array_equal(silent, bag(INDICES))


# --- overflow ---


def fused_row(code: int, scale: float, bias: float = 0) -> Array:
    params = np.array([[scale, bias]], "<f4").view(np.uint8)
    return np.hstack([np.full((1, DIM), code, np.uint8), params])


OVERFLOWS = {
    "weights": (fused_row(255, 1), 3e38),
    "scale": (fused_row(255, 3e38), 1),
    "product with codes of 0": (fused_row(0, 1e30), 1e20),
    "bias": (fused_row(0, 0, 3e38), 2),
    "sum": (fused_row(200, 1e36), 0.9),
}


@pytest.mark.parametrize("check", ["threshold", "exact", "full"])
@pytest.mark.parametrize("case", OVERFLOWS)
def test_overflowing_sums_are_an_error_of_the_input(case: str, check: str, kernels: _dispatch.Context) -> None:
    rows, weight = OVERFLOWS[case]
    fused, indices = np.vstack([fused_row(1, 1), rows]), [[0, 0, 0], [1, 1, 1]]
    weights = np.array([[1], [weight]], np.float32).repeat(3, axis=1)
    for mode in ("sum", "mean"):
        bag = sedq.EmbeddingBag.from_fused(fused, mode=mode)  # type: ignore[arg-type]
        assert np.isfinite(bag(indices, None, weights, check="off")).all(axis=1).tolist() == [True, False]
        for on_error in ("recover", "raise", "warn"):
            with (
                sedq.monitor() as seen,
                pytest.raises(ValueError, match=r"bag 1: .*overflow float32, expected smaller"),
            ):
                bag(indices, None, weights, check=check, on_error=on_error)
            assert seen.detections == 0


def test_a_huge_scale_is_a_detection(kernels: _dispatch.Context) -> None:
    """If a fault made it, that is: the digest says so."""
    bag = from_float(False)
    corrupt(bag, 7, bit=SCALE + 30)
    with np.errstate(over="ignore"):
        assert abs(bag(INDICES, check="off")[2]).max() > 1e35
    weights = np.full(INDICES.shape, 1e6, np.float32)
    for check in ("digest", "exact", "full"):
        for arguments in ((INDICES,), (INDICES, None, weights)):
            with pytest.raises(sedq.SoftErrorDetected) as caught:
                bag(*arguments, check=check)
            assert {(e.row, e.kind) for e in caught.value.events} <= {(2, "digest"), (2, "sum")}
            assert (2, "digest") in {(e.row, e.kind) for e in caught.value.events}


def test_an_overflow_beside_a_fault_is_still_an_error(kernels: _dispatch.Context) -> None:
    """The fault is dealt with; the bag that overflows may not come back as if it were right."""
    bag = from_float()
    weights = np.ones(INDICES.shape, np.float32)
    weights[0] = 3e38
    corrupt(bag, 7)
    with pytest.raises(ValueError, match="bag 0: its sums overflow float32"):
        bag(INDICES, None, weights)
    with faults.accumulator_fault("bag", visit=1, flip=1 << 30), pytest.raises(ValueError, match="bag 0: its sums"):
        bag(INDICES, None, weights)


@pytest.mark.parametrize("bit", [23, 28])
def test_a_fault_among_huge_sums_is_a_detection(bit: int, kernels: _dispatch.Context) -> None:
    """Nothing overflows here, with the fault or without."""
    bag = sedq.EmbeddingBag.from_float(np.random.default_rng(1).uniform(-1e37, 1e37, (4, 64)))
    clean = bag([[0, 1]])
    with faults.accumulator_fault("bag", flip=1 << bit):
        silent = bag([[0, 1]], check="off")
    assert np.isfinite(silent).all()
    assert not np.array_equal(silent, clean)
    with sedq.monitor() as seen, faults.accumulator_fault("bag", flip=1 << bit):
        np.testing.assert_array_equal(bag([[0, 1]]), clean)
    assert seen.verdicts == {"transient": 1}


# --- rows at rest ---


def test_bad_rows_and_restore() -> None:
    bag = from_float()
    stored = bag.table.rows.copy()
    corrupt(bag, 2, 5, 11)
    assert bag.bad_rows() == [2, 5, 11]
    assert bag.bad_rows([5, 4, 2, 5]) == [5, 2, 5]
    assert bag.bad_rows(np.array([[0, 1], [11, 3]], np.int32)) == [11]
    assert bag.bad_rows([]) == []
    assert bag.bad_rows(5) == [5]
    assert bag.restore([]) == []
    assert bag.restore([5, 3]) == [5, 3]
    assert bag.bad_rows() == [2, 11]
    assert bag.restore(np.arange(ROWS)) == list(range(ROWS))
    np.testing.assert_array_equal(bag.table.rows, stored)
    alone = from_float(False)
    corrupt(alone, 2)
    assert alone.restore([2]) == []
    assert alone.bad_rows() == [2]


def uses(bag: sedq.EmbeddingBag) -> dict[str, Callable[[], Any]]:
    return {
        "require_intact": bag.table.require_intact,
        "to_fused": bag.to_fused,
        "pickle": lambda: pickle.dumps(bag),
        "copy": lambda: copy.copy(bag),
        "deepcopy": lambda: copy.deepcopy(bag),
    }


@pytest.mark.parametrize("use", uses(from_float()))
@MAKERS
def test_a_corrupted_table_is_restored_before_it_is_used_or_raises(make: Callable[..., sedq.EmbeddingBag], use: str) -> None:
    bag = make()
    corrupt(bag, 2, 11)
    uses(bag)[use]()
    assert bag.bad_rows() == []
    alone = make(False)
    corrupt(alone, 2, 11)
    with pytest.raises(sedq.SoftErrorDetected, match=r"rows \[2, 11\] are corrupted and there is no source"):
        uses(alone)[use]()


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("source", [False, True])
@MAKERS
def test_copies_are_equal_and_independent(
    make: Callable[..., sedq.EmbeddingBag], source: bool, protocol: int, kernels: _dispatch.Context
) -> None:
    bag = make(source, mode="mean")
    clean = bag(INDICES)
    for twin in (pickle.loads(pickle.dumps(bag, protocol)), copy.deepcopy(bag), copy.copy(bag)):
        assert repr(twin) == repr(bag)
        np.testing.assert_array_equal(twin(INDICES), clean)
        np.testing.assert_array_equal(twin.to_fused(), bag.to_fused())
        corrupt(twin, 7)
        assert bag.bad_rows() == []
        assert twin.restore([7]) == ([7] if source else [])
        if source:
            np.testing.assert_array_equal(twin(INDICES), clean)


def test_digests_written_again_hide_a_fault() -> None:
    """So that the tests above mean something: the digest is all that tells."""
    bag = from_float()
    clean = bag(INDICES)
    corrupt(bag, 7)
    bag.table.data.write_digests()
    got = bag(INDICES, on_error="raise")
    assert not np.array_equal(got, clean)
    np.testing.assert_array_equal(got, oracles.bag(bag.to_fused(), INDICES.ravel(), np.arange(5) * 3))
