"""Threads that take denormal numbers for zero pool them without an alarm, whoever made the table."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sedq
from sedq._core import _dispatch

torch = pytest.importorskip("torch")
Array = NDArray[Any]
TINY = 2.0**-126


@contextmanager
def flushed(flush: bool = True) -> Iterator[None]:
    """Read and write denormal numbers as zero in this thread, which is the one that pools then."""
    if not torch.set_flush_denormal(flush):
        pytest.skip("denormal numbers can't be flushed here")
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def tables(rng: np.random.Generator, dim: int) -> Iterator[tuple[int, Array]]:
    """Bits, and rows that are denormal, about to be, or sums of few normal numbers that cancel."""
    yield 32, np.full((20, dim), 1e-38, np.float32)
    yield 32, np.full((20, dim), 1e-45, np.float32)
    for low, high in ((-149, -120), (-128, -124), (-149, -20)):
        sizes = 2.0 ** rng.uniform(low, high, (20, dim)) * rng.choice([-1, 1], (20, dim))
        yield 32, sizes.astype(np.float32)
    cancelling = np.zeros((20, dim), np.float32)
    cancelling[:, 0], cancelling[:, -1] = 1.5 * TINY, -1.25 * TINY
    yield 32, cancelling
    yield 16, rng.integers(-1000, 1000, (20, dim)).astype(np.float32) * np.float32(2.0**-24)
    params = (2.0 ** rng.uniform(-149, -110, (20, 2)) * rng.choice([-1, 1], (20, 2))).astype("<f4")
    yield 8, np.hstack([rng.integers(0, 256, (20, dim), dtype=np.uint8), params.view(np.uint8)])


@pytest.mark.parametrize("made", [False, True])
@pytest.mark.parametrize("dim", [3, 17, 64])
def test_no_alarm_where_denormals_are_zero(dim: int, made: bool, kernels: _dispatch.Context) -> None:
    rng = np.random.default_rng([dim, made])
    index = rng.integers(0, 20, (40, 8))
    weights: list[Array | None] = [None, np.full((40, 8), 1e30, np.float32)]
    weights.append((rng.normal(size=(40, 8)) * 2.0 ** rng.uniform(-149, 90, (40, 8))).astype(np.float32))
    single = index[:, :1], np.full((40, 1), 3e38, np.float32)
    with sedq.monitor() as seen:
        for bits, rows in tables(rng, dim):
            with flushed(made):
                make = sedq.EmbeddingBag.from_fused if bits == 8 else sedq.EmbeddingBag.from_float
                bag = make(rows, bits=bits)
            for flush, factors in itertools.product((False, True), weights):
                with flushed(flush):
                    bag(index, per_sample_weights=factors, check="full", on_error="raise", num_threads=1)
            if bits == 32 and abs(rows).max() < 1e-2:
                with flushed():
                    bag(single[0], per_sample_weights=single[1], on_error="raise", num_threads=1)
    assert seen.detections == 0
    assert seen.total_checks > 40 * 6 * 8


def test_denormal_values_count_in_the_magnitude_and_no_others() -> None:
    rows = np.array([[TINY / 2, 0, 0], [1, -TINY / 4, 0], [1.5 * TINY, -1.25 * TINY, 0], [0, 0, 0], [1, 2, 3]], np.float32)
    bag = sedq.EmbeddingBag.from_float(rows, bits=32)
    got = bag.table.rows[:, -12:-8].copy().view("<f4")[:, 0]
    np.testing.assert_allclose(got, [2 * 2.0**-104, 1, 2.0**-104, 0, 6], rtol=1e-6, atol=1e-44)
