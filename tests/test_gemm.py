"""The int8 product on every instruction set against NumPy, bit for bit: tails of tiles, blocks, extremes, layouts."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import sedq
from helpers import oracles
from sedq import _config
from sedq._core import _dispatch, _packing

LEVELS = ("off", "exact", "full")
EDGES_N = (1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 66, 79, 80, 81, 127, 128, 129, 130)
EDGES_K = (*range(1, 21), 31, 32, 33, 63, 64, 65, 127, 128, 129, 130)
GUARD = 1234567


def codes(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 256, shape, dtype=np.uint8)


def weights(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-128, 128, shape, dtype=np.int8)


def product(x: np.ndarray, packed: sedq.PackedWeights, *args: Any, **options: Any) -> np.ndarray:
    """The product, of which no check may say that anything was wrong."""
    with sedq.monitor() as m:
        y = sedq.matmul_integer(x, packed, *args, **options)
    assert m.detections == 0
    return y


def guarded(x: np.ndarray, packed: sedq.PackedWeights, **options: Any) -> np.ndarray:
    """The product into the middle of a buffer, whose ends must stay as they were."""
    m, n = len(x), packed.shape[0]
    buffer = np.full(m * n + 128, GUARD, np.int32)
    out = buffer[64 : 64 + m * n].reshape(m, n)
    assert product(x, packed, out=out, **options) is out
    assert (buffer[:64] == GUARD).all()
    assert (buffer[64 + m * n :] == GUARD).all()
    return out


@pytest.mark.parametrize("n", EDGES_N)
def test_every_tail_of_a_tile(kernels: _dispatch.Context, rng: np.random.Generator, n: int) -> None:
    for k in EDGES_K:
        x, w = codes(rng, 14, k), weights(rng, n, k)
        packed = sedq.pack_weights(w)
        expected = oracles.matmul_integer(x, w)
        for m in range(1, 15):
            level = LEVELS[(m + k) % 3]
            np.testing.assert_array_equal(guarded(x[:m], packed, check=level), expected[:m], f"{m}, {k}, {level}")


@pytest.mark.parametrize("k", [1, 63, 64, 65])
def test_every_number_of_columns(kernels: _dispatch.Context, rng: np.random.Generator, k: int) -> None:
    for n in range(1, 131):
        x, w = codes(rng, 3, k), weights(rng, n, k)
        np.testing.assert_array_equal(guarded(x, sedq.pack_weights(w)), oracles.matmul_integer(x, w), f"N = {n}")


@pytest.mark.parametrize(
    ("m", "n", "k"),
    [
        (95, 70, 33), (96, 70, 33), (97, 70, 33), (300, 70, 33),  # blocks of rows, of 96
        (9, 1100, 1000),  # several panels in a block of what stays in L2, and several blocks
        (3, 200, 9000),  # a panel larger than that
    ],
)  # fmt: skip
@pytest.mark.parametrize("check", LEVELS)
def test_blocks(kernels: _dispatch.Context, rng: np.random.Generator, m: int, n: int, k: int, check: str) -> None:
    x, w = codes(rng, m, k), weights(rng, n, k)
    y = guarded(x, sedq.pack_weights(w), check=check, num_threads=1)
    np.testing.assert_array_equal(y, (x.astype(np.float64) @ w.T.astype(np.float64)).astype(np.int32))


@pytest.mark.skipif(not _dispatch.has_openmp(), reason="built without OpenMP")
@pytest.mark.parametrize(("m", "n", "k"), [(250, 130, 300), (97, 200, 600), (5, 2078, 512), (1, 2048, 2048)])
@pytest.mark.parametrize("check", LEVELS)
def test_two_threads(kernels: _dispatch.Context, rng: np.random.Generator, m: int, n: int, k: int, check: str) -> None:
    # by rows, and for few rows by panels
    assert _dispatch.threads_for(2, n * k // 40 + m * n * k // 200) == 2, "not enough work for two threads"
    x, w = codes(rng, m, k), weights(rng, n, k)
    packed = sedq.pack_weights(w, zero_point=3)
    one, two = (guarded(x, packed, x_zero_point=7, check=check, num_threads=t) for t in (1, 2))
    np.testing.assert_array_equal(two, one)
    np.testing.assert_array_equal(
        two[-1:], ((x[-1:].astype(np.float64) - 7) @ (w.T.astype(np.float64) - 3)).astype(np.int32)
    )


@pytest.mark.parametrize("x_value", [0, 255])
@pytest.mark.parametrize("w_value", [-128, 127])
@pytest.mark.parametrize("x_zero_point", [0, 128, 255])
@pytest.mark.parametrize(("k", "zero_points"), [(65_793, (0,)), (33_025, (-128, 127))])
def test_extreme_values_at_the_limit_of_k(
    kernels: _dispatch.Context, x_value: int, w_value: int, x_zero_point: int, k: int, zero_points: tuple[int, ...]
) -> None:
    x, w = np.full((2, k), x_value, np.uint8), np.full((3, k), w_value, np.int8)
    for zero in zero_points:
        exact = (x_value - x_zero_point) * (w_value - zero) * k
        assert -(2**31) <= exact < 2**31
        assert (product(x, sedq.pack_weights(w, zero_point=zero), x_zero_point) == exact).all()


@pytest.mark.parametrize(("limit", "zero_point"), [(65_793, 0), (33_025, 1), (33_025, -128)])
def test_beyond_the_limit_of_k(limit: int, zero_point: int) -> None:
    sedq.pack_weights(np.zeros((1, limit), np.int8), zero_point=zero_point)
    with pytest.raises(ValueError, match=f"^W: got K = {limit + 1}, expected at most {limit}[, ]"):
        sedq.pack_weights(np.zeros((1, limit + 1), np.int8), zero_point=zero_point)
    one_channel = np.zeros(2, int)
    one_channel[1] = zero_point
    if zero_point:
        with pytest.raises(ValueError, match=f"at most {limit}"):
            sedq.pack_weights(np.zeros((2, limit + 1), np.int8), zero_point=one_channel)


@pytest.mark.parametrize("w_value", [-128, 127])
@pytest.mark.parametrize(("n", "digits"), [(1, 1), (2, 2), (257, 2), (258, 3), (65_793, 3), (65_794, 4)])
def test_digits_hold_every_row_sum(kernels: _dispatch.Context, w_value: int, n: int, digits: int) -> None:
    packed = sedq.pack_weights(np.full((n, 2), w_value, np.int8))
    assert packed._core.digits.shape == (digits, 128)
    powers = 256 ** np.arange(digits)
    assert (powers @ packed._core.digits[:, :2].astype(np.int64) == n * w_value).all()
    assert (product(np.uint8([[255, 254]]), packed) == 509 * w_value).all()


@pytest.mark.parametrize(("n", "k"), [(300, 300), (1000, 700)])
@pytest.mark.parametrize(("x_value", "w_value"), [(255, -128), (255, 127)])
def test_sums_that_wrap_raise_no_alarm(kernels: _dispatch.Context, n: int, k: int, x_value: int, w_value: int) -> None:
    assert abs(n * k * x_value * w_value) > 2**31
    x, w = np.full((8, k), x_value, np.uint8), np.full((n, k), w_value, np.int8)
    for check in ("exact", "full"):
        assert (product(x, sedq.pack_weights(w), check=check) == k * x_value * w_value).all()


def test_zero_points_all_over_the_range(kernels: _dispatch.Context, rng: np.random.Generator) -> None:
    x, w = codes(rng, 3, 21), weights(rng, 37, 21)
    per_channel = rng.integers(-128, 128, 37)
    zeros: list[Any] = [-128, -1, 0, 1, 127, per_channel, np.int8(5), per_channel.astype(np.int8)]
    for zero, x_zero in itertools.product(zeros, (0, 1, 127, 128, 254, 255)):
        y = product(x, sedq.pack_weights(w, zero_point=zero), x_zero)
        np.testing.assert_array_equal(y, oracles.matmul_integer(x, w, zero, x_zero))


@pytest.mark.parametrize("shape", [(9,), (1, 9), (2, 3, 9), (1, 1, 1, 9), (0, 9), (0, 3, 9), (3, 0, 9)])
def test_leading_dimensions(kernels: _dispatch.Context, rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    x, w = codes(rng, *shape), weights(rng, 19, 9)
    packed = sedq.pack_weights(w)
    expected = oracles.matmul_integer(x.reshape(-1, 9), w).reshape(*shape[:-1], 19)
    with sedq.monitor() as m:
        y = sedq.matmul_integer(x, packed)
    assert m.total_checks == x.size // 9
    assert m.detections == 0
    assert (y.shape, y.dtype) == (expected.shape, np.int32)
    np.testing.assert_array_equal(y, expected)
    out = np.full(expected.shape, GUARD, np.int32)
    assert sedq.matmul_integer(x, packed, out=out) is out
    np.testing.assert_array_equal(out, expected)


def read_only(a: np.ndarray) -> np.ndarray:
    b = a.copy()
    b.flags.writeable = False
    return b


LAYOUTS = {
    "fortran": np.asfortranarray,
    "strided": lambda a: np.repeat(np.repeat(a, 2, 0), 3, 1)[::2, ::3],
    "reversed": lambda a: a[::-1, ::-1].copy()[::-1, ::-1],
    "read-only": read_only,
    "read-only fortran": lambda a: read_only(a.T).T,
    "subclass": lambda a: a.view(np.matrix),
    "unaligned": lambda a: np.frombuffer(b"\0" + a.tobytes(), a.dtype, offset=1).reshape(a.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_the_input(kernels: _dispatch.Context, rng: np.random.Generator, layout: str) -> None:
    x, w = codes(rng, 7, 22), weights(rng, 35, 22)
    expected, change = oracles.matmul_integer(x, w), LAYOUTS[layout]
    changed_x, changed_w = change(x), change(w)
    np.testing.assert_array_equal(changed_x, x)
    np.testing.assert_array_equal(product(changed_x, sedq.pack_weights(w)), expected)
    np.testing.assert_array_equal(product(x, sedq.pack_weights(changed_w)), expected)
    np.testing.assert_array_equal(changed_x, x)


def test_weights_are_copied(rng: np.random.Generator) -> None:
    x, w, scale, bias = codes(rng, 2, 5), weights(rng, 3, 5), np.ones(3, np.float32), np.ones(3, np.float32)
    packed = sedq.pack_weights(w, scale, bias=bias)
    before = sedq.qlinear(x, packed, x_scale=1.0, x_zero_point=0)
    w[...], scale[...], bias[...] = 0, 2, 2
    assert packed.verify().ok
    np.testing.assert_array_equal(sedq.qlinear(x, packed, x_scale=1.0, x_zero_point=1), before - packed.unpack().sum(1))


def test_output_that_is_not_aligned(kernels: _dispatch.Context, rng: np.random.Generator) -> None:
    x, w = codes(rng, 13, 40), weights(rng, 67, 40)
    raw = np.zeros(13 * 67 * 4 + 8, np.uint8)
    out = raw[4 : 4 + 13 * 67 * 4].view(np.int32).reshape(13, 67)  # for int32, but not for vectors
    np.testing.assert_array_equal(product(x, sedq.pack_weights(w), out=out), oracles.matmul_integer(x, w))
    off = raw[1 : 1 + 13 * 67 * 4].view(np.int32).reshape(13, 67)
    with pytest.raises(ValueError, match="out: got a misaligned array, expected one aligned for int32"):
        product(x, sedq.pack_weights(w), out=off)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="protects a page of memory")
def test_nothing_beyond_the_input_is_read(kernels: _dispatch.Context, rng: np.random.Generator) -> None:
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 2 * page)
    raw = np.frombuffer(memory, np.uint8)
    end = ctypes.c_void_p(raw.ctypes.data + page)
    assert ctypes.CDLL(None).mprotect(end, ctypes.c_size_t(page), 0) == 0
    try:
        for k in (*range(1, 21), 63, 64, 65, 127, 129, 200):
            w = weights(rng, 17, k)
            packed = sedq.pack_weights(w, zero_point=1)
            for m in (1, 4, 6, 7):
                x = raw[page - m * k : page].reshape(m, k)
                x[...] = codes(rng, m, k)
                np.testing.assert_array_equal(product(x, packed), oracles.matmul_integer(x, w, 1))
    finally:
        ctypes.CDLL(None).mprotect(end, ctypes.c_size_t(page), mmap.PROT_READ | mmap.PROT_WRITE)


@given(
    m=st.integers(1, 20), n=st.integers(1, 140), k=st.integers(1, 140), x_zero=st.integers(0, 255),
    zero=st.integers(-128, 127), check=st.sampled_from(LEVELS), seed=st.integers(0, 99),
)  # fmt: skip
@example(m=1, n=1, k=1, x_zero=255, zero=-128, check="exact", seed=0)
def test_any_shape(m: int, n: int, k: int, x_zero: int, zero: int, check: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, w = codes(rng, m, k), weights(rng, n, k)
    packed = sedq.pack_weights(w, zero_point=zero)
    for name in _dispatch.available():
        with _config.use_kernels(_dispatch.get(name)):
            y = guarded(x, packed, x_zero_point=x_zero, check=check)
        np.testing.assert_array_equal(y, oracles.matmul_integer(x, w, zero, x_zero), name)


@given(n=st.integers(1, 200), k=st.integers(1, 40), seed=st.integers(0, 9))
def test_packing_has_an_inverse(n: int, k: int, seed: int) -> None:
    w = weights(np.random.default_rng(seed), n, k)
    packed = sedq.pack_weights(w)
    panels = packed._core.panels
    np.testing.assert_array_equal(packed.unpack(), w)
    assert panels.size == _packing.packed_size(n, k)
    places = [[_packing.panel_index(n, k, j, i) for i in range(k)] for j in range(n)]
    np.testing.assert_array_equal(panels[places], w)
    rest = np.delete(panels, np.ravel(places))
    assert rest.size == panels.size - w.size, "no two weights share a place"
    assert not rest.any(), "padding is zero"
