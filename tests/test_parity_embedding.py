"""EmbeddingBag beside PyTorch's quantised one: rows bit for bit, pooling within the rounding of both."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sedq
from sedq._core import _dispatch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch")

Array = NDArray[Any]


def prepack(table: Array) -> Array:
    """PyTorch's fused rows of a float table."""
    rows: Array = torch.ops.quantized.embedding_bag_byte_prepack(torch.from_numpy(table)).numpy()
    return rows


def pool(rows: Array, indices: Array, offsets: Array, weights: Array | None) -> Array:
    """PyTorch's pooling; offsets include the last."""
    w = None if weights is None else torch.from_numpy(weights)
    out: Array = torch.ops.quantized.embedding_bag_byte_rowwise_offsets(
        torch.from_numpy(rows), torch.from_numpy(indices), torch.from_numpy(offsets), False, 0, False, w, None, True
    ).numpy()
    return out


def parameters(rows: Array) -> tuple[Array, Array]:
    params = np.ascontiguousarray(rows[:, -8:]).view("<f4").astype(np.float64)
    return params[:, :1], params[:, 1:]


def both(rows: Array, indices: Array, offsets: Array, weights: Array | None) -> None:
    """Pool with both, and compare within what rounding may change.

    Per output, ours rounds n fused steps, n of the bias, and 2 more; theirs 2 n, and n products with weights. So they
    differ by at most gamma_(n + 4) + gamma_(3 n + 2) of the sum of magnitudes.
    """
    got = sedq.EmbeddingBag.from_fused(rows)(indices, offsets, weights, include_last_offset=True, on_error="raise")
    want = pool(rows, indices, offsets, weights)
    assert got.shape == want.shape
    scale, bias = parameters(rows)
    w = np.ones(len(indices)) if weights is None else abs(weights.astype(np.float64))
    sizes = (abs(scale) * rows[:, :-8] + abs(bias))[indices] * w[:, None]
    for b, (begin, end) in enumerate(itertools.pairwise(offsets)):
        bound = (4 * (end - begin) + 7) * 2.0**-24 * sizes[begin:end].sum(axis=0)
        assert (abs(got[b].astype(np.float64) - want[b]) <= bound).all(), f"bag {b}"


@pytest.mark.parametrize("size", [1e-45, 1e-41, 1e-30, 1e-9, 1e-7, 1e-3, 1, 300, 1e20, 1e37])
@pytest.mark.parametrize("dim", [1, 3, 8, 13, 16, 33, 64, 100, 257])
def test_quantised_rows_are_the_same_bits(dim: int, size: float, rng: np.random.Generator) -> None:
    table = rng.normal(size=(30, dim)) * size
    table[0], table[1], table[2] = size, -size, 0  # constant
    table[3], table[4] = abs(table[3]), -abs(table[4])
    table[5] = rng.integers(0, 2, dim) * size
    table[6] = np.linspace(-size, size, dim)
    table[7] = rng.normal(size=dim) * 1e-6 * size + size
    table = table.astype(np.float32) + np.float32(0)  # no -0.0: whether 0 or -0 is the smaller one is left open
    np.testing.assert_array_equal(sedq.EmbeddingBag.from_float(table).to_fused(), prepack(table))


def test_quantised_rows_of_any_bits(rng: np.random.Generator) -> None:
    """Each row of numbers of one magnitude, drawn bit by bit, denormals among them."""
    bits = rng.integers(0, 2**23, (3000, 20), dtype=np.uint32)
    exponents = rng.integers(0, 253, (3000, 1), dtype=np.uint32) + rng.integers(0, 2, (3000, 20), dtype=np.uint32)
    signs = rng.integers(0, 2, (3000, 20), dtype=np.uint32)
    table = (signs << np.uint32(31) | exponents << np.uint32(23) | bits).view(np.float32)
    np.testing.assert_array_equal(sedq.EmbeddingBag.from_float(table).to_fused(), prepack(table))


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dim", [1, 7, 16, 33, 64, 128, 300])
def test_pooling_agrees_within_rounding(dim: int, weighted: bool, dtype: type, kernels: _dispatch.Context) -> None:
    rng = np.random.default_rng(dim)
    rows = prepack(rng.normal(size=(200, dim)).astype(np.float32))
    offsets = np.cumsum([0, 0, 1, 2, 0, 10, 100, 1000, 0]).astype(dtype)
    indices = rng.integers(0, 200, offsets[-1]).astype(dtype)
    both(rows, indices, offsets, rng.normal(size=len(indices)).astype(np.float32) if weighted else None)


def test_pooling_of_rows_of_mixed_magnitudes_agrees(kernels: _dispatch.Context, rng: np.random.Generator) -> None:
    table = rng.normal(size=(100, 40)) * 10.0 ** rng.integers(-12, 12, (100, 1))
    rows = prepack(table.astype(np.float32))
    indices, offsets = rng.integers(0, 100, 4000), np.arange(0, 4001, 40)
    both(rows, indices, offsets, None)
    both(rows, indices, offsets, (rng.normal(size=4000) * 10.0 ** rng.integers(-8, 8, 4000)).astype(np.float32))


def test_rows_of_torch_are_taken_as_they_come(rng: np.random.Generator) -> None:
    table = rng.normal(size=(50, 24)).astype(np.float32)
    rows = prepack(table)
    theirs, ours = sedq.EmbeddingBag.from_fused(rows, dim=24), sedq.EmbeddingBag.from_float(table)
    np.testing.assert_array_equal(theirs.to_fused(), rows)
    indices = rng.integers(0, 50, (9, 7))
    np.testing.assert_array_equal(theirs(indices), ours(indices))
    back = torch.ops.quantized.embedding_bag_byte_unpack(torch.from_numpy(ours.to_fused())).numpy()
    scale, _ = parameters(rows)
    assert (abs(back - table) <= 0.51 * scale + 1e-6).all()
    np.testing.assert_allclose(ours(np.arange(50)[:, None]), back, rtol=2e-7, atol=1e-6)
