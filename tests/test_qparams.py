"""Quantisation parameters, quantize and dequantize, and the observers, against plain formulas."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import sedq
from sedq import MinMaxObserver, QParams, choose_qparams, dequantize, quantize

LIMITS = {"uint8": (0, 255), "int8": (-128, 127)}
LARGEST = float(np.finfo(np.float32).max)
dtypes = pytest.mark.parametrize("dtype", LIMITS)
RAGGED = [[1], [2, 3]]


def plain_quantize(x: float, scale: float, zero_point: int, dtype: str) -> int:
    low, high = LIMITS[dtype]
    product = np.float32(x) * (np.float32(1) / np.float32(scale))
    if np.isinf(product):
        return high if product > 0 else low
    return min(max(round(float(product)) + zero_point, low), high)  # round() takes halves to even


def message(name: str, got: str) -> str:
    return rf"^{re.escape(name)}: got {re.escape(got)}.*, expected "


# ---- choose_qparams


@given(
    low=st.floats(-LARGEST, LARGEST, width=32), high=st.floats(-LARGEST, LARGEST, width=32),
    dtype=st.sampled_from(sorted(LIMITS)), symmetric=st.booleans(), reduce_range=st.booleans(),
)  # fmt: skip
@example(low=-LARGEST, high=LARGEST, dtype="uint8", symmetric=False, reduce_range=False)
@example(low=0.0, high=0.0, dtype="int8", symmetric=True, reduce_range=True)
@example(low=0.0, high=2.0**-119, dtype="uint8", symmetric=False, reduce_range=False)
def test_any_range(low: float, high: float, dtype: str, symmetric: bool, reduce_range: bool) -> None:
    low, high = min(low, high), max(low, high)
    p = choose_qparams(low, high, dtype, symmetric=symmetric, reduce_range=reduce_range)
    qmin, qmax = (limit // 2 if reduce_range else limit for limit in LIMITS[dtype])
    assert p.dtype == dtype
    assert qmin <= p.zero_point <= qmax
    assert 2.0**-126 <= p.scale <= LARGEST
    assert type(p.scale) is float
    assert type(p.zero_point) is int
    assert quantize([0.0], p) == p.zero_point, "0 has a code"
    assert dequantize(quantize([0.0], p), p) == 0, "and that stands for 0 exactly"
    codes = quantize([low, high], p).astype(int)
    assert codes.min() >= qmin - (reduce_range and symmetric)
    assert codes.max() <= qmax + (reduce_range and symmetric)
    if max(-low, high) > 2.0**-118:
        ends = np.float64(p.scale) * (codes - p.zero_point)
        np.testing.assert_allclose(ends, [low, high], rtol=0, atol=p.scale * 0.51)
    if symmetric:
        assert p.zero_point == {"uint8": 64 if reduce_range else 128, "int8": 0}[dtype]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (((-1.0, 1.55), {}), QParams(0.01, 100)),
        (((-1.0, 1.55, "int8"), {}), QParams(0.01, -28, "int8")),
        (((2.0, 5.1), {}), QParams(0.02, 0)),
        (((-5.1, -2.0), {}), QParams(0.02, 255)),
        (((-3.0, 1.27, "int8"), {"symmetric": True}), QParams(3 / 127, 0, "int8")),
        (((-3.0, 1.27), {"symmetric": True}), QParams(3 / 127, 128)),
        (((-1.0, 1.54), {"reduce_range": True}), QParams(0.02, 50)),
        (((-1.0, 1.54, "int8"), {"reduce_range": True}), QParams(0.02, -14, "int8")),
        (((0, 0), {}), QParams(1.0, 0)),
        (((0.0, 1e-40), {}), QParams(1.0, 0)),
        (((np.float32(-1), np.int64(1)), {}), QParams(2 / 255, 128)),
    ],
)
def test_known_ranges(arguments: tuple[tuple[Any, ...], dict[str, Any]], expected: QParams) -> None:
    positional, named = arguments
    p = choose_qparams(*positional, **named)
    assert p.scale == pytest.approx(expected.scale, rel=1e-12)
    assert (p.zero_point, p.dtype) == (expected.zero_point, expected.dtype)


@dtypes
@pytest.mark.parametrize("symmetric", [False, True])
def test_channels_are_chosen_one_by_one(rng: np.random.Generator, dtype: str, symmetric: bool) -> None:
    low, high = -rng.uniform(0, 9, 7), rng.uniform(0, 9, 7)
    low[2] = high[2] = 0
    p = choose_qparams(low, high, dtype, symmetric=symmetric)
    each = [choose_qparams(a, b, dtype, symmetric=symmetric) for a, b in zip(low, high, strict=True)]
    np.testing.assert_array_equal(p.scale, np.float32([q.scale for q in each]))
    np.testing.assert_array_equal(p.zero_point, [q.zero_point for q in each])
    np.testing.assert_array_equal(choose_qparams(low, 9.0).scale, choose_qparams(low, np.full(7, 9.0)).scale)


@pytest.mark.parametrize(
    ("low", "high", "got"),
    [
        (1, 0, "1 and 0"), (np.nan, 1, "nan and 1"), (0, np.inf, "0 and inf"), (-np.inf, 0, "-inf and 0"),
        ([0, 2], [1, 1], "[0, 2] and [1, 1]"), (0, 1e300, "0 and 1e+300"), (-1e308, 1e308, "-1e+308 and 1e+308"),
        (None, 1, "None and 1"), ("a", 1, "'a' and 1"), (1j, 2, "1j and 2"), pytest.param(0, 10**400, "0 and 1", id="huge"),
        ([0, 0], [1, 1, 1], "[0, 0] and [1, 1, 1]"), ([[0.0]], [[1.0]], "[[0.0]] and [[1.0]]"), (RAGGED, 9, ""),
    ],
)  # fmt: skip
def test_bad_ranges(low: Any, high: Any, got: str) -> None:
    with pytest.raises(ValueError, match=message("low, high", got)):
        choose_qparams(low, high)


@pytest.mark.parametrize("name", ["symmetric", "reduce_range"])
def test_bad_switches(name: str) -> None:
    with pytest.raises(ValueError, match=message(name, "'no'")):
        choose_qparams(0, 1, **{name: "no"})  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["int16", "UINT8", "", None, 8, ["uint8"], object()])
@pytest.mark.parametrize(
    "call", [lambda d: choose_qparams(0, 1, d), lambda d: QParams(1.0, 0, d), lambda d: MinMaxObserver(d)]
)
def test_bad_dtypes(call: Callable[[Any], Any], dtype: Any) -> None:
    with pytest.raises(ValueError, match=message("dtype", repr(dtype)) + "'uint8' or 'int8'"):
        call(dtype)


@pytest.mark.parametrize("dtype", [np.int8, np.dtype("int8"), "int8"])
@pytest.mark.parametrize(
    "call", [lambda d: choose_qparams(0, 1, d), lambda d: QParams(1.0, 0, d), lambda d: MinMaxObserver(d)]
)
def test_dtypes_of_numpy(call: Callable[[Any], Any], dtype: Any) -> None:
    assert call(dtype).dtype == "int8"


# ---- QParams


def test_qparams_are_values() -> None:
    p, q = QParams(0.5, 3), QParams([0.5, 1.0], [3, -4], "int8")
    assert p == QParams(np.float32(0.5), np.uint8(3), np.uint8)
    assert q == QParams(np.array([0.5, 1.0]), np.array([3, -4], np.int8), "int8")
    assert (q.scale.dtype, q.zero_point.dtype) == (np.float32, np.int32)
    for other in (QParams(0.25, 3), QParams(0.5, 4), QParams(0.5, 3, "int8"), QParams([0.5], [3]), "p", None):
        assert p != other
    for r in (p, q):
        assert pickle.loads(pickle.dumps(r)) == copy.deepcopy(r) == r
        with pytest.raises(TypeError, match="unhashable"):
            hash(r)
        with pytest.raises(dataclasses.FrozenInstanceError):
            r.scale = 1.0  # type: ignore[misc]
    assert repr(p) == "QParams(scale=0.5, zero_point=3, dtype='uint8')"


def test_qparams_do_not_change_with_what_they_were_made_from() -> None:
    scale, zero = np.float32([0.5, 1.0]), np.int32([3, 4])
    p = QParams(scale, zero)
    scale[0], zero[0] = 9, 9
    assert p == QParams([0.5, 1.0], [3, 4])


@pytest.mark.parametrize(
    ("name", "value", "got"),
    [
        ("scale", 0, "0"), ("scale", -1.0, "-1.0"), ("scale", np.nan, "NaN"), ("scale", [1.0, np.inf], "NaN or inf"),
        ("scale", 1e-300, "1e-300"), ("scale", 1e-40, "1e-40"), ("scale", 1e39, ""), ("scale", [[1.0]], "[[1.0]]"),
        ("scale", [], ""), ("scale", "a", "<U1 array"), ("scale", None, "object array"), ("scale", True, "bool array"),
        ("scale", 1j, "complex128 array"), ("scale", RAGGED, ""),
        ("zero_point", -1, "-1"), ("zero_point", 256, "256"), ("zero_point", 1.0, "1.0"), ("zero_point", True, "True"),
        ("zero_point", "1", "'1'"), ("zero_point", None, "None"), ("zero_point", 10**30, "1000"),
        ("zero_point", [1, 2], "shape (2,)"), ("zero_point", [[1]], "shape (1, 1)"), ("zero_point", RAGGED, ""),
    ],
)  # fmt: skip
def test_bad_qparams(name: str, value: Any, got: str) -> None:
    with pytest.raises(ValueError, match=message(name, got)):
        QParams(**({"scale": 1.0} | {name: value}))


@pytest.mark.parametrize("value", [-129, 128, 200])
def test_bad_zero_point_of_int8(value: int) -> None:
    with pytest.raises(ValueError, match=message("zero_point", str(value)) + "integers from -128 to 127"):
        QParams(1.0, value, "int8")


# ---- quantize, dequantize


@dtypes
@pytest.mark.parametrize(("scale", "zero"), [(0.25, 10), (0.1, 0), (3e-38, 127), (1e38, 1), (0.5, 100)])
def test_quantize_is_the_plain_formula(rng: np.random.Generator, dtype: str, scale: float, zero: int) -> None:
    x = (rng.normal(scale=90, size=500) * scale).clip(-LARGEST, LARGEST).astype(np.float32)
    x[:60] = (float(np.float32(scale)) * np.arange(-30, 30) / 2).clip(-LARGEST, LARGEST)  # halves
    x[60:64] = np.inf, -np.inf, LARGEST, -LARGEST
    p = QParams(scale, zero, dtype)
    codes = quantize(x, p)
    assert codes.dtype == dtype
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(codes, [plain_quantize(v, scale, zero, dtype) for v in x])
    with np.errstate(over="ignore"):
        back = dequantize(codes, p)
        exact = (codes.astype(np.float64) - zero) * float(np.float32(scale))
        np.testing.assert_array_equal(back, exact.astype(np.float32))
    assert back.dtype == np.float32


@dtypes
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
@pytest.mark.parametrize("zeros", ["scalar", "per channel"])
def test_per_channel_along_an_axis(rng: np.random.Generator, dtype: str, axis: int, zeros: str) -> None:
    x = rng.normal(size=(3, 4, 5)).astype(np.float32)
    channels = x.shape[axis]
    scale = rng.uniform(0.01, 0.1, channels)
    zero = 7 if zeros == "scalar" else np.arange(channels)
    p = QParams(scale, zero, dtype)
    codes = quantize(x, p, axis=axis)
    back = dequantize(codes, p, axis=axis)
    for i in range(channels):
        one = QParams(scale[i], 7 if zeros == "scalar" else i, dtype)
        part, restored = np.moveaxis(codes, axis, 0)[i], np.moveaxis(back, axis, 0)[i]
        np.testing.assert_array_equal(part, quantize(np.moveaxis(x, axis, 0)[i], one))
        np.testing.assert_array_equal(restored, dequantize(part, one))


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 0, 3), (2, 3)])
def test_shapes(shape: tuple[int, ...]) -> None:
    p = QParams(0.5, 3)
    codes = quantize(np.ones(shape), p)
    back = dequantize(codes, p)
    for a, dtype, value in ((codes, np.uint8, 5), (back, np.float32, 1)):
        assert isinstance(a, np.ndarray)
        assert (a.shape, a.dtype) == (shape, dtype)
        assert (a == value).all()


@pytest.mark.parametrize("x", [[1, 2], np.float64([1, 2]), np.float16([1, 2]), np.int8([1, 2]), (True, np.int64(2))])
def test_numbers_of_any_type(x: Any) -> None:
    np.testing.assert_array_equal(quantize(x, QParams(0.5)), [2, 4])


def test_float64_beyond_float32_is_clamped_too() -> None:
    np.testing.assert_array_equal(quantize([1e300, -1e300], QParams(0.5, 3)), [255, 0])


@pytest.mark.parametrize("x", [[1.0, np.nan], np.nan, None, "a", ["1"], 1j, object(), RAGGED, [10**400]])
def test_bad_values(x: Any) -> None:
    with pytest.raises(ValueError, match=message("x", "")):
        quantize(x, QParams(0.5))


@pytest.mark.parametrize("codes", [[1, 2], np.int8([1]), np.float32([1]), None, "a", RAGGED])
def test_bad_codes(codes: Any) -> None:
    with pytest.raises(ValueError, match=message("codes", "") + "uint8"):
        dequantize(codes, QParams(0.5))


@pytest.mark.parametrize("call", [quantize, dequantize])
@pytest.mark.parametrize("qparams", [None, 0.5, (0.5, 3), "uint8"])
def test_not_qparams(call: Callable[..., Any], qparams: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=message("qparams", "")):
        call(np.uint8([1]), qparams)


@pytest.mark.parametrize("call", [quantize, dequantize])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((2, 3), 2), ((2, 3), -3), ((), 0), ((2, 3), 1), ((1, 3), 0), ((0, 3), 0), ((2,), "0"), ((2,), 0.0), ((2,), None)],
)
def test_axis_that_does_not_fit(call: Callable[..., Any], shape: tuple[int, ...], axis: Any) -> None:
    with pytest.raises(ValueError, match=r"^(axis|qparams|x|codes): got .*, expected"):
        call(np.ones(shape, np.uint8), QParams([0.5, 0.25], [1, 2]), axis=axis)


# ---- observers


@dtypes
@pytest.mark.parametrize("symmetric", [False, True])
def test_observer(rng: np.random.Generator, dtype: Any, symmetric: bool) -> None:
    data = rng.normal(size=(5, 7, 3))
    o = MinMaxObserver(dtype, symmetric=symmetric)
    assert repr(o) == "MinMaxObserver(low=inf, high=-inf)"
    for part in (data[:2], [], data[2, 0, 0], data[2].astype(np.float32), data[3:].tolist()):
        assert o.observe(part) is o
    low, high = (min(data.min(), np.float32(data).min()), max(data.max(), np.float32(data).max()))
    assert o.low == pytest.approx(low, rel=1e-6)
    assert o.high == pytest.approx(high, rel=1e-6)
    assert o.qparams() == choose_qparams(o.low, o.high, dtype, symmetric=symmetric)
    assert o.observe(100).qparams() == choose_qparams(o.low, 100, dtype, symmetric=symmetric)


def test_observer_of_one_sign_and_of_nothing() -> None:
    assert MinMaxObserver().observe([2.0, 5.1]).qparams() == choose_qparams(0, 5.1)
    assert MinMaxObserver().observe(0.0).qparams() == QParams(1.0, 0)
    for o in (MinMaxObserver(), MinMaxObserver().observe([])):
        with pytest.raises(ValueError, match=r"^observer: got no data, expected a call of observe\(\) first$"):
            o.qparams()


@pytest.mark.parametrize("x", [[1.0, np.nan], np.inf, -np.inf, None, "a", 1j, object(), RAGGED, [10**400]])
def test_observer_refuses(x: Any) -> None:
    o = MinMaxObserver().observe([-1.0, 2.0])
    with pytest.raises(ValueError, match=message("x", "")):
        o.observe(x)
    assert (o.low, o.high) == (-1, 2)


def test_observer_of_what_float32_can_not_hold() -> None:
    with pytest.raises(ValueError, match="float32"):
        sedq.MinMaxObserver().observe([-1e308, 1e308]).qparams()


def test_observer_switch() -> None:
    with pytest.raises(ValueError, match=message("symmetric", "'no'")):
        MinMaxObserver(symmetric="no")  # type: ignore[arg-type]
