"""The NumPy oracles: `fma` against exact rational arithmetic, the others against naive loops over Python numbers."""

from __future__ import annotations

import ast
import inspect
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from helpers import oracles
from sedq import QParams

Array = NDArray[Any]
F32 = np.float32


def rounded(exact: Fraction) -> np.float32:
    """Round to float32 once, halfway cases to even, denormals and overflow included."""
    if exact == 0:
        return F32(0)
    exponent = abs(exact).numerator.bit_length() - abs(exact).denominator.bit_length()
    if abs(exact) < Fraction(2) ** exponent:
        exponent -= 1
    quantum = Fraction(2) ** max(exponent - 23, -149)
    value = round(exact / quantum) * quantum
    if abs(value) >= 2**128:
        return F32(math.copysign(math.inf, exact))
    return F32(math.copysign(float(value), exact))


def exact_fma(a: float, b: float, c: float) -> np.float32:
    return rounded(Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c)))


def check_fma(a: Array, b: Array, c: Array) -> None:
    with np.errstate(over="ignore"):
        got = oracles.fma(a, b, c)
    want = np.array([exact_fma(*abc) for abc in zip(a, b, c, strict=True)], F32)
    assert got.dtype == F32
    np.testing.assert_array_equal(got, want)
    nonzero = want != 0
    np.testing.assert_array_equal(np.signbit(got[nonzero]), np.signbit(want[nonzero]))


def random_bits(rng: np.random.Generator, n: int) -> Array:
    """Finite floats of every magnitude, denormals among them."""
    values = rng.integers(0, 2**32, 2 * n, dtype=np.uint32).view(F32)
    return values[np.isfinite(values)][:n]


def test_rounded_agrees_with_numpy_and_knows_the_borders(rng: np.random.Generator) -> None:
    doubles = np.concatenate([rng.normal(size=500), rng.normal(size=500) * 2.0**-140, [3.5e38, -3.5e38]])
    with np.errstate(over="ignore"):
        want = doubles.astype(F32)
    np.testing.assert_array_equal([rounded(Fraction(x)) for x in doubles], want)
    assert rounded(Fraction(1) + Fraction(1, 2**24)) == 1  # a tie, to even
    assert rounded(Fraction(1) + Fraction(3, 2**24)) == F32(1) + F32(2**-22)
    assert rounded(Fraction(1, 2**150)) == 0
    assert rounded(Fraction(3, 2**150)) == F32(2.0**-148)


def test_fma_of_any_bits(rng: np.random.Generator) -> None:
    a, b, c = (random_bits(rng, 3000) for _ in range(3))
    check_fma(a, b, c)


def test_fma_of_similar_magnitudes(rng: np.random.Generator) -> None:
    a, b = (rng.normal(size=3000).astype(F32) for _ in range(2))
    c = (-a.astype(np.float64) * b * (1 + rng.choice([0, 2.0**-24, 2.0**-12, 1], 3000))).astype(F32)
    check_fma(a, b, c)
    check_fma(a, b, rng.normal(size=3000).astype(F32))


def test_fma_of_denormals(rng: np.random.Generator) -> None:
    """Results below 2^-126, where fewer bits are left to round to."""
    a = (rng.normal(size=2000) * 2.0**-70).astype(F32)
    b = (rng.normal(size=2000) * 2.0 ** rng.integers(-80, -55, 2000)).astype(F32)
    c = rng.integers(-(2**23), 2**23, 2000).astype(np.float64) * 2.0**-149
    check_fma(a, b, c.astype(F32))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        pytest.param(0, 0, id="tie"),
        pytest.param(1, -1, id="2^-70 below a tie"),
        pytest.param(1, 0, id="above a tie"),
        pytest.param(0, -1, id="below a tie"),
        pytest.param(2, -3, id="off a tie"),
    ],
)
def test_fma_at_halfway_cases(left: int, right: int, rng: np.random.Generator) -> None:
    """The product is half a unit in the last place of c, changed by factors 1 + 2^-23 and 1 - 2^-23."""
    n = 1500
    exponent = rng.integers(-100, 100, n)
    c = np.ldexp(rng.integers(2**23, 2**24, n), exponent - 23) * rng.choice([-1, 1], n)
    a = np.ldexp(1 + left * 2.0**-23, np.full(n, 5))
    b = np.ldexp(1 + right * 2.0**-23, exponent - 29) * rng.choice([-1, 1], n)
    check_fma(a.astype(F32), b.astype(F32), c.astype(F32))


def test_rounding_twice_would_not_do() -> None:
    a, b, c = F32(1 + 2.0**-23), F32((1 - 2.0**-23) * 2.0**-24), F32(1 + 2.0**-23)
    twice = F32(np.float64(a) * np.float64(b) + np.float64(c))
    assert oracles.fma(a, b, c) == exact_fma(a, b, c) == c
    assert twice != c


def test_fma_broadcasts() -> None:
    got = oracles.fma(F32(2), np.arange(3, dtype=F32), np.ones((2, 1), F32))
    np.testing.assert_array_equal(got, [[1, 3, 5], [1, 3, 5]])


@pytest.mark.parametrize(("k", "wraps"), [(7, False), (70_000, True)])
def test_matmul_integer(k: int, wraps: bool, rng: np.random.Generator) -> None:
    x = rng.integers(250, 256, (2, k), dtype=np.uint8)
    w = rng.integers(120, 128, (3, k), dtype=np.int8)
    for zero, x_zero in ((0, 0), (5, 128), (np.array([-128, 0, 127]), 255)):
        got = oracles.matmul_integer(x, w, zero, x_zero)
        zeros = np.broadcast_to(zero, 3).tolist()
        pairs = [[zip(xs, ws, strict=True) for ws in w.tolist()] for xs in x.tolist()]
        exact = [[sum((a - x_zero) * (b - z) for a, b in p) for p, z in zip(row, zeros, strict=True)] for row in pairs]
        assert got.dtype == np.int32
        assert got.tolist() == [[(v + 2**31) % 2**32 - 2**31 for v in row] for row in exact]
        if wraps and x_zero == 0:
            assert max(map(max, exact)) >= 2**31


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("y_scale", [None, 0.37])
@pytest.mark.parametrize("with_bias", [False, True])
def test_qlinear(per_channel: bool, relu: bool, y_scale: float | None, with_bias: bool, rng: np.random.Generator) -> None:
    m, n, k, x_scale, x_zero, y_zero = 4, 5, 9, 0.021, 117, 31
    x = rng.integers(0, 256, (m, k), dtype=np.uint8)
    w = rng.integers(-128, 128, (n, k), dtype=np.int8)
    scales = rng.uniform(0.005, 0.02, n).astype(F32) if per_channel else np.full(n, 0.011, F32)
    zeros = rng.integers(-9, 9, n) if per_channel else np.full(n, 3)
    bias = rng.normal(size=n).astype(F32) if with_bias else np.zeros(n, F32)
    got = oracles.qlinear(
        x, w, scale=scales if per_channel else scales[0], zero_point=zeros if per_channel else 3,
        bias=bias if with_bias else None, x_scale=x_scale, x_zero_point=x_zero, y_scale=y_scale,
        y_zero_point=y_zero, relu=relu,
    )  # fmt: skip
    want = np.empty((m, n))
    for i in range(m):
        for j in range(n):
            raw = F32(sum((int(x[i, t]) - x_zero) * (int(w[j, t]) - int(zeros[j])) for t in range(k)))
            aw = F32(x_scale) * scales[j]
            if y_scale is None:
                want[i, j] = exact_fma(raw, aw, bias[j])
                want[i, j] = max(want[i, j], 0) if relu else want[i, j]
                continue
            b = bias[j] / aw if per_channel else bias[j] * (F32(1) / aw)
            value = round(float((raw + b) * (aw / F32(y_scale)))) + y_zero
            want[i, j] = min(max(value, y_zero if relu else 0), 255)
    assert got.dtype == (F32 if y_scale is None else np.uint8)
    np.testing.assert_array_equal(got, want)
    assert len(np.unique(got)) > 3


def test_row_sums(rng: np.random.Generator) -> None:
    x = rng.integers(0, 256, (3, 400), dtype=np.uint8)
    w = np.full((300, 400), -128, np.int8)
    sums, checks = oracles.row_sums(x, w)
    assert sums.tolist() == [sum(row) for row in x.tolist()]
    exact = [sum(a * -128 for a in row) * 300 for row in x.tolist()]
    assert min(exact) < 0
    assert checks.tolist() == [v % 2**32 for v in exact]
    assert (sums.dtype, checks.dtype) == (np.uint32, np.uint32)


def random_fused(rng: np.random.Generator, rows: int, dim: int) -> Array:
    params = rng.normal(size=(rows, 2)).astype("<f4")
    return np.hstack([rng.integers(0, 256, (rows, dim), dtype=np.uint8), params.view(np.uint8)])


@pytest.mark.parametrize("first", [0, 3, 2**31 + 1])
def test_row_digests(first: int, rng: np.random.Generator) -> None:
    fused = random_fused(rng, 6, 300)
    fused[0, :300] = 255
    fused[1, 300:] = 255
    want = []
    for number, row in enumerate(fused.tolist(), first):
        scale, bias = (int.from_bytes(row[at : at + 4], "little") for at in (300, 304))
        want.append(sum(row[:300]) << 40 | (scale + bias + number + 1))
    assert oracles.row_digests(fused, first).tolist() == want


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_bag(mode: str, weighted: bool, rng: np.random.Generator) -> None:
    fused = random_fused(rng, 9, 5)
    indices = rng.integers(0, 9, 14)
    offsets = np.array([0, 0, 3, 3, 4, 14])
    weights = rng.normal(size=14).astype(F32) if weighted else None
    got = oracles.bag(fused, indices, offsets, weights, mode)
    want = np.zeros((5, 5), F32)
    for b in range(5):
        for j in range(5):
            acc = bias = F32(0)
            for i in range(offsets[b], offsets[b + 1]):
                scale, shift = fused[indices[i], 5:].view("<f4")
                w = F32(1) if weights is None else weights[i]
                acc = exact_fma(w * scale, fused[indices[i], j], acc)
                bias = exact_fma(w, shift, bias)
            total = acc + bias
            want[b, j] = total / F32(max(offsets[b + 1] - offsets[b], 1)) if mode == "mean" else total
    np.testing.assert_array_equal(got, want)
    assert got.dtype == F32
    assert not got[0].any()
    assert got[1].any()


def naive_dots(t: Array) -> list[np.float32]:
    out = []
    for i in range(len(t)):
        for j in range(i):
            lanes = [F32(0)] * 16
            for c in range(t.shape[1]):
                lanes[c % 16] = exact_fma(t[i, c], t[j, c], lanes[c % 16])
            while len(lanes) > 1:
                half = len(lanes) // 2
                lanes = [lanes[p] + lanes[p + half] for p in range(half)]
            out.append(lanes[0])
    return out


@pytest.mark.parametrize(("features", "dim"), [(1, 3), (2, 1), (2, 16), (3, 17), (4, 40)])
def test_dots_and_interaction(features: int, dim: int, rng: np.random.Generator) -> None:
    vectors = rng.normal(size=(2, features, dim)).astype(F32)
    params = QParams(0.05, 121)
    want = []
    for t in vectors:
        dots = naive_dots(t)
        np.testing.assert_array_equal(oracles.dots(t), np.array(dots, F32))
        inverse = F32(1) / F32(params.scale)
        want.append([min(max(round(float(v * inverse)) + 121, 0), 255) for v in [*t[0], *dots]])
    got = oracles.interact_quantize(vectors, params)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, want)


def test_it_imports_numpy_and_qparams_alone() -> None:
    imported = set()
    for node in ast.walk(ast.parse(inspect.getsource(oracles))):
        if isinstance(node, ast.Import):
            imported |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    assert imported - {"__future__", "typing"} == {"numpy", "numpy.typing", "sedq.quantization"}


def test_public_names_exist() -> None:
    assert sorted(oracles.__all__) == oracles.__all__
    assert all(callable(getattr(oracles, name)) for name in oracles.__all__)
