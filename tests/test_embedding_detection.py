"""What the checks of an EmbeddingBag detect: every bit of stored rows, accumulator faults; and never a run without a fault.

Every corrupted result is first seen to pass in silence with the check off.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sedq
from sedq import Event, faults
from sedq._core import _dispatch, _embedding

Array = NDArray[Any]
TIMES = (1, 2, 4, 16, 256)  # how often the struck row occurs in each bag; the last two bags don't use it
STRUCK = 3


def table(dim: int, rows: int = 7) -> Array:
    return np.random.default_rng(dim).normal(size=(rows, dim)).astype(np.float32)


def requests(weighted: bool) -> tuple[Array, Array, Array | None]:
    """Bags with the struck row among two others, at different places."""
    parts = [[1] * (n % 3) + [STRUCK] * n + [5, 6] for n in TIMES] + [[0, 1, 2], [4]]
    indices = np.concatenate([np.array(p) for p in parts])
    offsets = np.cumsum([0, *map(len, parts)])[:-1]
    rng = np.random.default_rng(2)
    return indices, offsets, rng.choice([-1.5, -0.3, 0.7, 2], len(indices)).astype(np.float32) if weighted else None


def detected(bag: sedq.EmbeddingBag, *args: Any, **kwargs: Any) -> tuple[Event, ...]:
    """Return what a call with on_error="raise" found."""
    try:
        bag(*args, on_error="raise", **kwargs)
    except sedq.SoftErrorDetected as error:
        return error.events
    return ()


def same(a: Array, b: Array) -> Array:
    """Whether the rows of two outputs are the same bits."""
    return (a.view(np.uint32) == b.view(np.uint32)).all(axis=1)


# --- digests ---


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dim", [5, 8, 33])
def test_every_bit_of_a_row_is_detected(dim: int, weighted: bool, kernels: _dispatch.Context) -> None:
    """Codes and their padding, scale, bias and digest; the row used once or an even number of times."""
    bag = sedq.EmbeddingBag.from_float(table(dim))
    arguments = requests(weighted)
    clean = bag(*arguments)
    used, width = len(TIMES), _embedding.row_bytes(dim)
    silent = np.zeros(used, int)
    for bit in range(8 * width):
        byte = STRUCK * width + bit // 8
        faults.flip_bit(bag.table.rows, byte, bit % 8)
        got = bag(*arguments, check="off")
        silent += ~same(got, clean)[:used]
        assert same(got, clean)[used:].all()
        if bit < 8 * dim:
            assert not same(got, clean)[:used].any()
        for check in ("digest", "exact"):
            events = detected(bag, *arguments, check=check)
            digests = {e.row for e in events if e.kind == "digest"}
            assert digests == set(range(used)), f"bit {bit}, {check}"
            assert {e.kind for e in events} <= ({"digest"} if check == "digest" else {"digest", "sum"})
            assert all(e.residual != 0 for e in events)
        assert bag.bad_rows() == [STRUCK]
        faults.flip_bit(bag.table.rows, byte, bit % 8)
    assert (silent > 8 * (dim + 5)).all()  # codes, and nearly all bits of scale and bias
    assert detected(bag, *arguments) == ()
    assert same(bag(*arguments), clean).all()


@pytest.mark.parametrize("check", ["off", "digest", "exact", "full"])
def test_rows_that_are_not_used_do_not_matter(check: str, kernels: _dispatch.Context) -> None:
    bag = sedq.EmbeddingBag.from_float(table(8))
    clean = bag([[0, 1], [2, 4]])
    bag.table.rows[[STRUCK, 5, 6]] = 0xA5
    assert bag.bad_rows() == [STRUCK, 5, 6]
    with sedq.monitor() as seen:
        np.testing.assert_array_equal(bag([[0, 1], [2, 4]], check=check, on_error="raise"), clean)
    assert seen.detections == 0


@pytest.mark.parametrize("check", ["digest", "exact"])
@pytest.mark.parametrize("dim", [5, 64])
def test_exchanged_rows_are_detected_by_their_numbers(dim: int, check: str, kernels: _dispatch.Context) -> None:
    bag = sedq.EmbeddingBag.from_float(table(dim))
    indices = [[0, 1, 2], [1, 1, 5], [STRUCK] * 3, [4, 5, 6], [1] * 3]
    clean = bag(indices)
    bag.table.rows[[1, STRUCK]] = bag.table.rows[[STRUCK, 1]]
    assert same(bag(indices, check="off"), clean).tolist() == [False, False, False, True, False]
    assert detected(bag, indices, check="threshold") == ()
    events = detected(bag, indices, check=check)
    assert [(e.row, e.kind) for e in events] == [(b, "digest") for b in (0, 1, 2, 4)]
    assert [e.residual for e in events] == [1 - 3, 2 * (1 - 3), 3 * (3 - 1), 3 * (1 - 3)]


def test_a_row_in_place_of_another_is_detected(kernels: _dispatch.Context) -> None:
    bag = sedq.EmbeddingBag.from_float(table(16))
    bag.table.rows[2] = bag.table.rows[4]
    assert bag.bad_rows() == [2]
    assert [e.kind for e in detected(bag, [[2]])] == ["digest"]
    assert detected(bag, [[2]], check="threshold") == ()
    assert detected(bag, [[4]]) == ()


def test_bursts_within_a_byte_are_detected(kernels: _dispatch.Context) -> None:
    bag = sedq.EmbeddingBag.from_float(table(8))
    at = (STRUCK, 5)
    value = int(bag.table.rows[at])
    for mask in range(1, 256):
        bag.table.rows[at] = value ^ mask
        assert [e.row for e in detected(bag, [[0, 0], [STRUCK, STRUCK]], check="digest")] == [1]


# --- the threshold ---


def sums(bag: sedq.EmbeddingBag, indices: Array, weights: Array | None, out: Array) -> tuple[Array, Array, Array]:
    """Residual, reference and magnitude of bags, from the rows as they are stored."""
    fused = bag.to_fused()
    dim = bag.shape[1]
    params = np.ascontiguousarray(fused[:, dim:]).view("<f4").astype(np.float64)[indices]
    codes = fused[:, :dim].sum(axis=1, dtype=np.float64)[indices]
    w = np.ones(indices.shape) if weights is None else weights.astype(np.float64)
    length = indices.shape[1] if bag.mode == "mean" else 1
    reference = (w * (params[..., 0] * codes + dim * params[..., 1])).sum(axis=1) / length
    magnitude = (abs(w) * (abs(params[..., 0]) * codes + dim * abs(params[..., 1]))).sum(axis=1) / length
    return out.sum(axis=1, dtype=np.float64) - reference, reference, magnitude


def limits(threshold: Any, reference: Array, magnitude: Array, length: int, dim: int) -> Array:
    if threshold == "bound":
        steps = (length + 5) * 2.0**-24
        return steps / (1 - steps) * magnitude + dim * (257 * length + 4) * 2.0**-126
    if threshold == "paper":
        return 1e-5 * abs(reference)
    return getattr(threshold, "threshold", threshold) * magnitude


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("threshold", ["bound", "paper", 1e-6, 3, SimpleNamespace(threshold=1e-3)], ids=str)
def test_accumulator_faults_above_the_limit(
    threshold: Any, weighted: bool, mode: Any, kernels: _dispatch.Context, rng: np.random.Generator
) -> None:
    """Every bit of an accumulator: detected exactly when it moves the sum of the outputs beyond the limit."""
    length, dim = 6, 40
    bag = sedq.EmbeddingBag.from_float(table(dim), mode=mode)
    indices = rng.integers(0, 7, (3, length))
    weights = rng.normal(size=indices.shape).astype(np.float32) if weighted else None
    clean = bag(indices, None, weights)
    outcomes = set()
    for bit in range(32):
        for element in (0, 17, 39):
            fault = {"visit": 1, "element": element, "flip": 1 << bit}
            with faults.accumulator_fault("bag", **fault):
                silent = bag(indices, None, weights, check="off")
            changed = ~same(silent, clean)
            assert not changed[[0, 2]].any()
            with np.errstate(invalid="ignore", over="ignore"):
                residual, reference, magnitude = sums(bag, indices, weights, silent)
            limit = limits(threshold, reference, magnitude, length, dim)
            beyond = ~(abs(residual) <= limit)
            if 0.98 < abs(residual[1]) / limit[1] < 1.02:  # the reference of a kernel is rounded too
                continue
            assert not beyond[[0, 2]].any()
            for check in ("threshold", "exact"):
                with faults.accumulator_fault("bag", **fault) as strike:
                    events = detected(bag, indices, None, weights, check=check, threshold=threshold)
                assert strike.fired == 1
                assert [(e.row, e.kind) for e in events] == ([(1, "sum")] if beyond[1] else []), f"bit {bit}"
            with faults.accumulator_fault("bag", **fault):
                assert detected(bag, indices, None, weights, check="digest") == ()
            outcomes.add((bool(changed[1]), bool(beyond[1])))
    assert {(True, True), (True, False)} <= outcomes


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("dim", [5, 40, 300])
def test_check_full_detects_every_bit_that_shows(dim: int, mode: Any, kernels: _dispatch.Context) -> None:
    bag = sedq.EmbeddingBag.from_float(table(dim), mode=mode)
    indices = np.array([[0, 1, 2], [3, 4, 5]])
    clean = bag(indices)
    shown = 0
    for bit in range(32):
        for element in (0, dim - 1):
            fault = {"element": element, "flip": 1 << bit}
            with faults.accumulator_fault("bag", **fault):
                shows = not same(bag(indices, check="off"), clean)[0]
            with faults.accumulator_fault("bag", **fault):
                events = detected(bag, indices, check="full")
            assert {(e.row, e.kind) for e in events if e.kind == "repeat"} == ({(0, "repeat")} if shows else set())
            assert {e.row for e in events} <= {0}
            shown += shows
    assert shown > 45


@pytest.mark.parametrize("bit", range(32))
def test_check_full_detects_every_bit_without_a_bias(bit: int, kernels: _dispatch.Context) -> None:
    """What is added later can't hide it."""
    rows = np.zeros((2, 16), np.uint8)
    rows[:, :8] = np.arange(1, 17).reshape(2, 8)
    rows[:, 8:12] = np.float32(0.1).reshape(1).view(np.uint8)
    bag = sedq.EmbeddingBag.from_fused(rows)
    clean = bag([[0, 1]])
    with faults.accumulator_fault("bag", element=3, flip=1 << bit):
        assert "repeat" in {e.kind for e in detected(bag, [[0, 1]], check="full")}
    with faults.accumulator_fault("bag", element=3, flip=1 << bit):
        np.testing.assert_array_equal(bag([[0, 1]], check="full"), clean)
    with faults.accumulator_fault("bag", element=3, flip=1 << bit):
        assert not same(bag([[0, 1]], check="off"), clean)[0]


def test_threshold_sees_high_bits_of_codes(kernels: _dispatch.Context) -> None:
    bag = sedq.EmbeddingBag.from_float(table(33))
    indices = np.array([[STRUCK, 0, 1], [4, 5, 6]])
    clean = bag(indices)
    for column in range(33):
        for bit in (6, 7):
            faults.flip_row_bit(bag, STRUCK, 8 * column + bit)
            assert same(bag(indices, check="off"), clean).tolist() == [False, True]
            for threshold in ("bound", "paper", 1e-5):
                events = detected(bag, indices, check="threshold", threshold=threshold)
                assert [(e.row, e.kind) for e in events] == [(0, "sum")]
                assert abs(events[0].residual) > events[0].limit > 0
            faults.flip_row_bit(bag, STRUCK, 8 * column + bit)


@pytest.mark.parametrize("threshold", ["bound", "paper", 1e-5])
def test_threshold_does_not_see_scale_and_bias(threshold: Any, kernels: _dispatch.Context) -> None:
    """Both sides of the comparison use them: the limit of the scheme, which the digest makes good."""
    bag = sedq.EmbeddingBag.from_float(table(33))
    indices = np.array([[STRUCK, 0, 1]])
    clean = bag(indices)
    for bit in [8 * 33 + b for b in (20, 23, 24, 31, 32 + 20, 32 + 23, 32 + 31)]:
        faults.flip_row_bit(bag, STRUCK, bit)
        assert not same(bag(indices, check="off"), clean).any()
        assert detected(bag, indices, check="threshold", threshold=threshold) == ()
        assert "digest" in {e.kind for e in detected(bag, indices, threshold=threshold)}
        faults.flip_row_bit(bag, STRUCK, bit)


# --- no false alarms ---


def extreme_bag(rng: np.random.Generator, rows: int, dim: int, low: float, high: float, mode: Any) -> sedq.EmbeddingBag:
    """Rows whose scales and biases span magnitudes 2^low to 2^high, of both signs."""
    params = (2.0 ** rng.uniform(low, high, (rows, 2)) * rng.choice([-1, 1], (rows, 2))).astype("<f4")
    codes = rng.integers(0, 256, (rows, dim), dtype=np.uint8)
    codes[0], codes[1], params[2], params[3, 0], params[4, 1] = 0, 255, 0, 0, 0
    return sedq.EmbeddingBag.from_fused(np.hstack([codes, params.view(np.uint8)]), mode=mode)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_nothing_is_detected_without_a_fault(mode: Any, weighted: bool, kernels: _dispatch.Context) -> None:
    """More than 10^5 bags in all, of 0 to 10,000 rows, tables from denormal to huge, cancelling weights."""
    rng = np.random.default_rng([weighted, mode == "mean"])
    most = 10 if weighted else 55
    spans = [(-149, -120), (-149, most), (-30, 30), (-5, 5), (most, most + 30), (-1, 0)]
    count = 0
    with sedq.monitor() as seen:
        for number, (low, high) in enumerate(spans):
            dim = (1, 9, 16, 33, 64, 300)[number]
            bag = extreme_bag(rng, 50, dim, low, high, mode)
            few = [*rng.integers(0, 12, 5000 - 10 * dim), *rng.integers(0, 400, 30)]
            for lengths in (few, [1000, 0, 10_000] if dim < 64 else [2500]):
                indices = rng.integers(0, 50, sum(lengths))
                if len(lengths) == 3:
                    indices[1000:] = 7  # the same roundings again and again
                offsets = np.cumsum([0, *lengths])
                weights = None
                if weighted:
                    sizes = 2.0 ** rng.uniform(-149 if number % 2 else -20, 30, len(indices))
                    weights = (sizes * rng.choice([-1, 1], len(indices))).astype(np.float32)
                for check in ("exact", "full") if len(lengths) > 9 else ("exact",):
                    bag(indices, offsets, weights, True, check=check, on_error="raise")
                    count += len(lengths)
    assert seen.detections == 0
    assert seen.checks == {"EmbeddingBag": count}
    assert 4 * count > 100_000  # four such tests on every instruction set


@pytest.mark.parametrize("check", ["digest", "threshold", "exact", "full", "off"])
def test_the_monitor_counts_bags(check: str, kernels: _dispatch.Context) -> None:
    bag = sedq.EmbeddingBag.from_float(table(8))
    with sedq.monitor() as outer:
        bag([[0, 1], [2, 3]], check=check)
        with sedq.monitor() as inner:
            bag([1, 2], [0, 0, 1, 2, 2], check=check)
        bag([], [], check=check)
    assert (outer.total_checks, inner.total_checks) == ((0, 0) if check == "off" else (7, 5))
    assert (outer.detections, inner.detections) == (0, 0)
