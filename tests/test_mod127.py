"""The paper's scheme for products: what it detects, what it misses, and that it costs no other check anything."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import sedq
from helpers import oracles
from sedq import faults
from sedq._core import _dispatch

SHAPES = [(1, 1, 1), (5, 64, 13), (7, 63, 20), (3, 128, 70), (100, 65, 33), (13, 16, 4), (2, 300, 64)]


def operands(rng: np.random.Generator, m: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    return rng.integers(0, 256, (m, k), dtype=np.uint8), rng.integers(-128, 128, (n, k), dtype=np.int8)


@pytest.mark.parametrize("encode", [("mod127",), ("exact", "mod127"), ["mod127", "exact"]])
@pytest.mark.parametrize("shape", SHAPES)
def test_no_false_alarm(
    kernels: _dispatch.Context, rng: np.random.Generator, shape: tuple[int, int, int], encode: tuple[str, ...]
) -> None:
    x, w = operands(rng, *shape)
    packed = sedq.pack_weights(w, zero_point=3, encode=encode)
    expected = oracles.matmul_integer(x, w, 3, 7)
    for check in ("off", "mod127", *(("exact", "full") if "exact" in encode else ())):
        with sedq.monitor() as m:
            np.testing.assert_array_equal(sedq.matmul_integer(x, packed, 7, check=check), expected)
        assert m.detections == 0
        assert m.total_checks == (0 if check == "off" else len(x))
    np.testing.assert_array_equal(packed.unpack(), w)
    assert packed.verify().ok


@pytest.mark.parametrize("threads", [1, 2])
def test_columns_split_over_threads(kernels: _dispatch.Context, rng: np.random.Generator, threads: int) -> None:
    x, w = operands(rng, 8, 1000, 512)
    packed = sedq.pack_weights(w, encode=("exact", "mod127"))
    with sedq.monitor() as m:
        c = sedq.matmul_integer(x, packed, check="mod127", num_threads=threads)
    np.testing.assert_array_equal(c, oracles.matmul_integer(x, w))
    assert m.detections == 0


@pytest.mark.parametrize("k", [128, 129, 1000])
def test_weights_encoded_for_it_alone(kernels: _dispatch.Context, rng: np.random.Generator, k: int) -> None:
    x, w = operands(rng, 3, 20, k)
    packed = sedq.pack_weights(w, encode=("mod127",))
    np.testing.assert_array_equal(sedq.matmul_integer(x, packed, check="mod127"), oracles.matmul_integer(x, w))
    again = pickle.loads(pickle.dumps(packed))
    np.testing.assert_array_equal(again.unpack(), w)
    x[:, 70] = 1
    faults.flip_weight_bit(again, 3, 70, 6)
    with sedq.monitor() as m:
        np.testing.assert_array_equal(sedq.matmul_integer(x, again, check="mod127"), oracles.matmul_integer(x, w))
    assert {e.verdict for e in m.events} == {"memory"}


def test_every_bit_of_an_accumulator(kernels: _dispatch.Context, rng: np.random.Generator) -> None:
    """No power of two is a multiple of 127."""
    x, w = operands(rng, 3, 20, 9)
    packed = sedq.pack_weights(w, encode=("mod127",))
    expected = oracles.matmul_integer(x, w)
    for bit in range(32):
        with faults.accumulator_fault(element=5, flip=1 << bit):
            assert not np.array_equal(sedq.matmul_integer(x, packed, check="off"), expected)
        with sedq.monitor() as m, faults.accumulator_fault(element=5, flip=1 << bit):
            np.testing.assert_array_equal(sedq.matmul_integer(x, packed, check="mod127"), expected)
        assert [(e.kind, e.verdict) for e in m.events] == [("accumulator", "transient")]


def test_a_multiple_of_127_is_missed_and_exact_sees_it(kernels: _dispatch.Context) -> None:
    x = np.zeros((1, 4), np.uint8)  # accumulators of 0: flipping these bits adds 127
    packed = sedq.pack_weights(np.ones((20, 4), np.int8), encode=("exact", "mod127"))
    for check, detections in (("mod127", 0), ("exact", 1)):
        with sedq.monitor() as m, faults.accumulator_fault(element=3, flip=127):
            c = sedq.matmul_integer(x, packed, check=check)
        assert m.detections == detections
        assert c.any() == (detections == 0)


def test_weights(kernels: _dispatch.Context, rng: np.random.Generator) -> None:
    """A flipped weight is detected, unless every value that meets it is 0, 127 or 254."""
    w = rng.integers(-128, 128, (20, 4), dtype=np.int8)
    for value, seen in ((0, False), (127, False), (254, False), (1, True), (255, True)):
        for bit in range(8):
            packed = sedq.pack_weights(w, encode=("mod127",))
            faults.flip_weight_bit(packed, 7, 2, bit)
            with sedq.monitor() as m:
                sedq.matmul_integer(np.full((2, 4), value, np.uint8), packed, check="mod127")
            assert bool(m.detections) == seen
            assert packed.verify().ok == seen  # what is detected heals


def test_levels_that_are_not_encoded() -> None:
    x = np.zeros((1, 4), np.uint8)
    for encode, check in ((("exact",), "mod127"), (("mod127",), "exact"), ((), "mod127")):
        packed = sedq.pack_weights(np.ones((3, 4), np.int8), encode=encode)
        with pytest.raises(ValueError, match=f"check: got '{check}', expected one that these weights are encoded for"):
            sedq.matmul_integer(x, packed, check=check)


@pytest.mark.parametrize("rows", [1, 3])
def test_threads_that_share_the_columns_of_few_rows_add_their_parts(
    rows: int, kernels: _dispatch.Context, rng: np.random.Generator
) -> None:
    x = rng.integers(1, 127, (rows, 700)).astype(np.uint8)
    packed = sedq.pack_weights(rng.integers(-128, 128, (2560, 700)).astype(np.int8), encode=("mod127",))
    expected = sedq.matmul_integer(x, packed, check="off")
    with sedq.monitor() as m:
        np.testing.assert_array_equal(sedq.matmul_integer(x, packed, check="mod127", num_threads=2), expected)
    assert m.detections == 0
    for column in (0, 1279, 1280, 2559):
        faults.flip_weight_bit(packed, column, 5, 4)
        with sedq.monitor() as m:
            np.testing.assert_array_equal(sedq.matmul_integer(x, packed, check="mod127", num_threads=2), expected)
        assert m.verdicts == {"memory": rows}
