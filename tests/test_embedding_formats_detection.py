"""Tables of every number of bits and layout: every flipped bit is detected, and nothing without a fault."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import sedq
from helpers import oracles
from helpers.rows import BITS, LAYOUTS, bits_equal, fused_rows, in_layout, tables
from sedq import faults
from sedq._core import _dispatch, _rows
from sedq.embedding import _formats


def test_a_fault_in_a_part_of_a_long_bag_is_detected(kernels: _dispatch.Context) -> None:
    rng = np.random.default_rng(0)
    bag = sedq.EmbeddingBag.from_float(rng.normal(size=(50, 24)), keep_source=True)
    indices = rng.integers(0, 50, (2, 9000))
    clean = bag(indices)
    for visit in range(6):
        fault = {"visit": visit, "element": 5, "flip": 1 << 30}
        with faults.accumulator_fault("bag", **fault):
            assert not np.array_equal(bag(indices, check="off"), clean)
        with faults.accumulator_fault("bag", **fault), sedq.monitor() as seen:
            np.testing.assert_array_equal(bag(indices), clean)
        assert [(e.row, e.kind, e.verdict) for e in seen.events] == [(visit // 3, "sum", "transient")]
    faults.flip_row_bit(bag, 7, 3)
    with sedq.monitor() as seen:
        np.testing.assert_array_equal(bag(indices), clean)
    assert {(e.row, e.kind, e.verdict) for e in seen.events} == {(0, "digest", "memory"), (1, "digest", "memory")}


def detected(bag: sedq.EmbeddingBag, indices: Any, **kwargs: Any) -> set[tuple[int, str]]:
    try:
        bag(indices, on_error="raise", **kwargs)
    except sedq.SoftErrorDetected as error:
        return {(e.row, e.kind) for e in error.events}
    return set()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dim", [1, 5, 19, 66])
def test_every_bit_of_every_row_is_detected(dim: int, bits: int, kernels: _dispatch.Context) -> None:
    """Rows of ours: codes, what pads them, words, digest; once in a bag, twice, and 16 times."""
    bag = sedq.EmbeddingBag.from_fused(fused_rows(np.random.default_rng(dim), 3, dim, bits), bits=bits, dim=dim)
    stored, silent = bag.table.rows, 0
    for row in range(3):
        others = [r for r in range(3) if r != row]
        indices = np.array([[row] + others * 8, [row, row] + others * 7 + [others[0]], [row] * 17, others * 8 + [others[0]]])
        clean = bag(indices)
        for bit in range(8 * stored.shape[1]):
            faults.flip_bit(stored[row], bit // 8, bit % 8)
            with np.errstate(over="ignore", invalid="ignore"):
                silent += not np.array_equal(bag(indices, check="off"), clean)
            for check in ("digest", "exact"):
                found = detected(bag, indices, check=check)
                assert {r for r, kind in found if kind == "digest"} == {0, 1, 2}, f"row {row}, bit {bit}, {check}"
                assert {r for r, _ in found} == {0, 1, 2}
            assert bag.bad_rows() == [row]
            assert _rows.bad_in_range(bag.table.data, 0, 3, kernels) == [row]
            faults.flip_bit(stored[row], bit // 8, bit % 8)
        np.testing.assert_array_equal(bag(indices), clean)
    assert silent > 0.85 * 3 * dim * bits  # with the check off all but the last bits of floats were believed


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("layout", "align"), LAYOUTS)
def test_every_bit_of_rows_that_are_only_read_is_detected(
    layout: str, align: int, bits: int, kernels: _dispatch.Context
) -> None:
    """Codes, scale and bias where they lie, and the sidecar. What pads a row belongs to no one."""
    dim = 13
    rows = in_layout(fused_rows(np.random.default_rng(1), 3, dim, bits, half=True), dim, bits, layout, align)
    bag = sedq.EmbeddingBag.view_fused(rows, bits=bits, layout=layout, dim=dim)
    width, side = _formats.geometry(layout, bits, dim).width, bag.table.sidecar
    assert side is not None
    indices = np.array([[0, 1, 1], [1, 0, 2], [2, 2, 2]])
    clean = bag(indices)
    for row in range(3):
        hit = {b for b in range(3) if row in indices[b]}
        for memory, bit in [(rows, b) for b in range(8 * width)] + [(side, b) for b in range(8 * side.shape[1])]:
            faults.flip_bit(memory[row], bit // 8, bit % 8)
            found = detected(bag, indices)
            assert {r for r, kind in found if kind == "digest"} == hit, f"row {row}, bit {bit}"
            assert bag.bad_rows() == [row]
            assert _rows.bad_in_range(bag.table.data, 0, 3, kernels) == [row]
            faults.flip_bit(memory[row], bit // 8, bit % 8)
    rows[:, width:] = 0
    assert detected(bag, indices) == set()
    bits_equal(bag(indices), clean)


@pytest.mark.parametrize("bits", BITS)
def test_accumulator_faults_above_the_bound(bits: int, kernels: _dispatch.Context) -> None:
    rng = np.random.default_rng(bits)
    dim, length = 40, 6
    fused = fused_rows(rng, 9, dim, bits)
    codes, scale, bias = (a.astype(np.float64) for a in oracles.unpack_rows(fused, bits))
    size = (abs(scale)[:, None] * abs(codes) + abs(bias)[:, None]).sum(axis=1)
    indices = rng.integers(0, 9, (2, length))
    weights = rng.normal(size=indices.shape).astype(np.float32)
    bag = sedq.EmbeddingBag.from_fused(fused, bits=bits)
    clean = bag(indices, None, weights)
    exact = (weights[..., None] * (scale[:, None] * codes + bias[:, None])[indices]).sum(axis=1)
    bound = (abs(weights) * size[indices]).sum(axis=1)[1] * (length + 7) * 2.0**-24
    beyond = 0
    for bit, element in itertools.product(range(32), (0, 17, 39)):
        fault = {"visit": 1, "element": element, "flip": 1 << bit}
        with faults.accumulator_fault("bag", **fault):
            silent = bag(indices, None, weights, check="off")
        changed = not np.array_equal(silent[1], clean[1])
        residual = silent[1].sum(dtype=np.float64) - exact[1].sum()
        with faults.accumulator_fault("bag", **fault):
            found = detected(bag, indices, per_sample_weights=weights)
        if abs(residual) > 1.01 * bound or not np.isfinite(residual):
            assert found == {(1, "sum")}, f"bit {bit}"
            beyond += 1
        elif abs(residual) < 0.9 * bound:
            assert found == set(), f"bit {bit}"
        with faults.accumulator_fault("bag", **fault):
            assert ((1, "repeat") in detected(bag, indices, per_sample_weights=weights, check="full")) == changed
    assert beyond > 20


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_nothing_is_detected_without_a_fault(mode: Any, bits: int, kernels: _dispatch.Context) -> None:
    """Scales, biases, values and weights of magnitudes from denormal to huge, cancelling sums, rows of zeros."""
    rng = np.random.default_rng(bits)
    with sedq.monitor() as seen:
        for dim, (low, high) in itertools.product((1, 9, 33, 100), ((-24, -10), (-24, 14), (-3, 3), (10, 14))):
            fused = fused_rows(rng, 40, dim, bits)
            sizes = 2.0 ** rng.uniform(low, high, (40, dim if bits > 8 else 2)) * rng.choice([-1, 1], (40, 1))
            kind = {8: "<f4", 32: "<f4"}.get(bits, "<f2")
            raw = sizes.astype(kind).view(np.uint8)
            fused[:, fused.shape[1] - raw.shape[1] :] = raw
            fused[0] = 0
            for bag in tables(fused, dim, bits, "torch", 1, mode=mode):
                offsets = np.cumsum([0, *rng.integers(0, 12, 300), 1000, *rng.integers(0, 300, 9)])
                indices = rng.integers(0, 40, offsets[-1])
                spread = rng.uniform(-149, 60, len(indices))
                weights = (2.0**spread * rng.choice([-1, 1], len(indices))).astype(np.float32)
                bag(indices, offsets, None, True, on_error="raise")
                bag(indices, offsets, weights, True, on_error="raise")
    assert seen.detections == 0
    assert seen.total_checks == 16 * 2 * 2 * 310
