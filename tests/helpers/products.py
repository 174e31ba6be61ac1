"""Operands of products, and what watches them, for tests of what the checks detect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

import sedq
from sedq import faults

LEVELS = {"exact": 1, "full": 2}
checked = pytest.mark.parametrize("check", LEVELS)
QPARAMS = {"x_scale": 0.02, "x_zero_point": 5, "y_scale": 3.0, "y_zero_point": 128}


def operands(rng: np.random.Generator, m: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    return rng.integers(1, 256, (m, k), dtype=np.uint8), rng.integers(-128, 128, (n, k), dtype=np.int8)


def watched(call: Callable[[], np.ndarray]) -> tuple[np.ndarray, list[sedq.Event]]:
    with sedq.monitor() as m:
        y = call()
    assert m.detections == len(m.events)
    return y, list(m.events)


@contextmanager
def flipped(array: np.ndarray, byte: int, bit: int) -> Iterator[None]:
    faults.flip_bit(array, byte, bit)
    try:
        yield
    finally:
        faults.flip_bit(array, byte, bit)


def bits_of(array: np.ndarray) -> list[tuple[int, int]]:
    return [(byte, bit) for byte in range(array.nbytes) for bit in range(8)]


# ---- accumulators
