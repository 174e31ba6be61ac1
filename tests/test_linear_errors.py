"""Bad arguments of the linear operators and of the weights: the error names the argument, what was got and what was
expected, and nothing is computed or written."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import sedq
from sedq import QParams

M, N, K = 2, 3, 4
GUARD = 99
W = np.arange(-6, 6, dtype=np.int8).reshape(N, K)
U8 = np.arange(M * K, dtype=np.uint8).reshape(M, K)
F32 = U8.astype(np.float32)
RAGGED = [[1], [2, 3]]
QPARAMS = {"x_scale": 0.1, "x_zero_point": 0, "y_scale": 0.1, "y_zero_point": 4}


def packed(**options: Any) -> sedq.PackedWeights:
    return sedq.pack_weights(W, **({"scale": 0.5, "bias": [1, 2, 3]} | options))


def linear(x: Any = U8, weights: Any = None, **options: Any) -> np.ndarray:
    return sedq.qlinear(x, packed() if weights is None else weights, **(QPARAMS | options))


def real(x: Any = U8, weights: Any = None, **options: Any) -> np.ndarray:
    return linear(x, weights, **({"y_scale": None, "y_zero_point": None} | options))


def integer(x: Any = U8, weights: Any = None, **options: Any) -> np.ndarray:
    return sedq.matmul_integer(x, packed() if weights is None else weights, **options)


def dynamic(x: Any = F32, weights: Any = None, **options: Any) -> np.ndarray:
    return sedq.qlinear_dynamic(x, packed() if weights is None else weights, **options)


DTYPES: dict[Callable[..., np.ndarray], type] = {linear: np.uint8, real: np.float32, integer: np.int32, dynamic: np.float32}
everywhere = pytest.mark.parametrize("call", DTYPES)
on_codes = pytest.mark.parametrize("call", [linear, real, integer])


def message(name: str, got: str) -> str:
    return rf"^{name}: got {re.escape(got)}.*, expected "


def assert_refused(
    call: Callable[..., Any], match: str, error: type[Exception] = ValueError, out: Any = None, **options: Any
) -> None:
    """The call raises, makes no check, and writes nothing to `out`."""
    if out is None and call in DTYPES:
        out = np.full((M, N), GUARD, DTYPES[call])
    before = out.copy() if isinstance(out, np.ndarray) else None
    with sedq.monitor() as m, pytest.raises(error, match=match) as caught:
        call(out=out, **options) if call in DTYPES else call(**options)
    assert type(caught.value) is error
    assert m.total_checks == m.detections == 0
    if before is not None:
        np.testing.assert_array_equal(out, before)


@on_codes
@pytest.mark.parametrize(
    ("x", "got"),
    [
        (U8.astype(np.int8), "int8 array of shape (2, 4)"),
        (U8.astype(np.int64), "int64 array"),
        (U8.astype(bool), "bool array"),
        (F32, "float32 array"),
        (U8.astype(object), "object array"),
        (U8.tolist(), "int64 array of shape (2, 4)"),
        (U8[:, :3], "uint8 array of shape (2, 3)"),
        (U8.T, "uint8 array of shape (4, 2)"),
        (np.uint8(3), "uint8 array of shape ()"),
        (np.empty((0,), np.uint8), "uint8 array of shape (0,)"),
        (np.empty((4, 0), np.uint8), "uint8 array of shape (4, 0)"),
        (None, "object array of shape ()"),
        ("abcd", "<U4 array of shape ()"),
        (RAGGED, ""),
    ],
)
def test_x(call: Callable[..., np.ndarray], x: Any, got: str) -> None:
    assert_refused(call, message("x", got), x=x)


@pytest.mark.parametrize(
    ("x", "got"),
    [
        (U8, "uint8 array of shape (2, 4)"),
        (F32.astype(complex), "complex128 array"),
        (F32[:, :3], "float32 array of shape (2, 3)"),
        (np.float32(1), "float32 array of shape ()"),
        (np.where(U8 == 3, np.nan, F32), "NaN or infinite values"),
        (np.where(U8 == 7, np.inf, F32), "NaN or infinite values"),
        (np.where(U8 == 0, -np.inf, F32), "NaN or infinite values"),
        (np.full((M, K), 1e300), ""),
        (None, "object array"),
        ("abcd", "<U4 array"),
        (RAGGED, ""),
    ],
)
def test_x_of_dynamic(x: Any, got: str) -> None:
    assert_refused(dynamic, message("x", got), x=x)


@everywhere
@pytest.mark.parametrize(("weights", "got"), [(W, "int8 array of shape (3, 4)"), ("w", "str 'w'"), (0, "int 0")])
def test_packed(call: Callable[..., np.ndarray], weights: Any, got: str) -> None:
    assert_refused(call, message("packed", got) + "the result of sedq.pack_weights", TypeError, weights=weights)


@everywhere
@pytest.mark.parametrize(
    ("make", "got"),
    [
        (lambda dtype: np.empty((N, M), dtype), "array of shape (3, 2)"),
        (lambda dtype: np.empty((1, M, N), dtype), "array of shape (1, 2, 3)"),
        (lambda dtype: np.empty(M * N, dtype), "array of shape (6,)"),
        (lambda dtype: np.zeros((M, N), np.float64), "float64 array"),
        (lambda dtype: np.zeros((M, N), np.int8), "int8 array"),
        (lambda dtype: np.zeros((M, N), ">i4"), ">i4 array"),
        (lambda dtype: np.zeros((M, N), dtype).tolist(), "list [[0"),
        (lambda dtype: "out", "str 'out'"),
        (lambda dtype: np.zeros((N, M), dtype).T, "a read-only or non-contiguous array"),
        (lambda dtype: np.zeros((M, 2 * N), dtype)[:, ::2], "a read-only or non-contiguous array"),
        (lambda dtype: np.broadcast_to(np.zeros(N, dtype), (M, N)), "a read-only or non-contiguous array"),
    ],
)
def test_out(call: Callable[..., np.ndarray], make: Callable[[type], Any], got: str) -> None:
    match = r"^out: got .*" + re.escape(got) + ".*, expected .+"
    assert_refused(call, match, out=make(DTYPES[call]))


@pytest.mark.parametrize(("first", "fits"), [(0, False), (7, False), (8, True), (15, True)])
def test_out_that_overlaps_x(first: int, fits: bool) -> None:
    memory = np.zeros(64, np.uint8)
    x, out = memory[:8].reshape(M, K), memory[first : first + 6].reshape(M, N)
    x[...] = U8
    if fits:
        np.testing.assert_array_equal(linear(x, out=out), linear())
    else:
        assert_refused(linear, message("out", "an array that overlaps an input"), x=x, out=out)
        np.testing.assert_array_equal(x, U8)
    strided = memory.reshape(-1, 2)[:8, 0].reshape(M, K)  # x is copied before anything is written
    strided[...] = U8
    np.testing.assert_array_equal(linear(strided, out=memory[first : first + 6].reshape(M, N)), linear())


@everywhere
@pytest.mark.parametrize(
    ("option", "value", "got"),
    [
        ("check", "exakt", "'exakt'"), ("check", 1, "1"), ("check", True, "True"), ("check", ["exact"], "['exact']"),
        ("check", "mod127", "'mod127'"), ("check", "digest", "'digest'"), ("check", "threshold", "'threshold'"),
        ("on_error", "ignore", "'ignore'"), ("on_error", 0, "0"), ("on_error", ("raise",), "('raise',)"),
        ("num_threads", 0, "0"), ("num_threads", -1, "-1"), ("num_threads", 1.0, "float 1.0"),
        ("num_threads", True, "bool True"),
        ("num_threads", "2", "str '2'"), ("num_threads", 2**31, "2147483648"), ("num_threads", 10**30, "10000"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("rows", [M, 0])
def test_settings(call: Callable[..., np.ndarray], option: str, value: Any, got: str, rows: int) -> None:
    x = (F32 if call is dynamic else U8)[:rows]
    out = np.full((rows, N), GUARD, DTYPES[call])
    assert_refused(call, message(option, got), x=x, out=out, **{option: value})


@everywhere
def test_integers_of_numpy_are_integers(call: Callable[..., np.ndarray]) -> None:
    np.testing.assert_array_equal(call(num_threads=np.int64(1)), call())


@pytest.mark.parametrize("call", [linear, real])
@pytest.mark.parametrize("name", ["x_scale", "y_scale"])
@pytest.mark.parametrize(
    ("value", "got"),
    [
        (0, "0.0"), (-0.1, "-0.1"), (np.nan, "nan"), (np.inf, "inf"), (1e39, "1e+39"), (1e-39, "1e-39"),
        pytest.param(10**400, "", id="huge"), ("0.5", "str '0.5'"), ("a", "str 'a'"), (1j, "complex 1j"),
        ([0.5], "list [0.5]"),
        (np.array([0.5]), "float64 array of shape (1,)"), (np.ones(3), "float64 array of shape (3,)"), (True, "bool True"),
    ],
)  # fmt: skip
def test_scales_of_activations(call: Callable[..., np.ndarray], name: str, value: Any, got: str) -> None:
    assert_refused(linear if name == "y_scale" else call, message(name, got), **{name: value})


@pytest.mark.parametrize(("call", "name"), [(linear, "x_zero_point"), (linear, "y_zero_point"), (integer, "x_zero_point")])
@pytest.mark.parametrize(
    ("value", "got"),
    [
        (-1, "-1"), (256, "256"), (10**30, "10000"), (1.0, "float 1.0"), (np.float32(1), "float32"), ("1", "str '1'"),
        ([1], "list [1]"), (np.arange(3), "int64 array of shape (3,)"), (True, "bool True"),
    ],
)  # fmt: skip
def test_zero_points_of_activations(call: Callable[..., np.ndarray], name: str, value: Any, got: str) -> None:
    assert_refused(call, message(name, got), **{name: value})


def test_none_for_what_is_required() -> None:
    assert_refused(linear, message("x_scale", "NoneType None"), x_scale=None)
    for call in (linear, integer):
        assert_refused(call, message("x_zero_point", "NoneType None"), x_zero_point=None)
    for name in ("y_scale", "y_zero_point"):
        got = " and ".join("None" if n == name else repr(QPARAMS[n]) for n in ("y_scale", "y_zero_point"))
        assert_refused(linear, message("y_scale, y_zero_point", got), **{name: None})
    with pytest.raises(TypeError, match="x_scale"):
        sedq.qlinear(U8, packed())  # type: ignore[call-arg]


@pytest.mark.parametrize("call", [linear, real, dynamic])
@pytest.mark.parametrize("value", [1, 0, "no", None, np.ones(2, bool)])
def test_relu(call: Callable[..., np.ndarray], value: Any) -> None:
    assert_refused(call, message("relu", repr(value)), relu=value)
    np.testing.assert_array_equal(call(relu=np.True_), call(relu=True))


@pytest.mark.parametrize("value", [1, "no", None])
def test_reduce_range(value: Any) -> None:
    assert_refused(dynamic, message("reduce_range", repr(value)), reduce_range=value)


@pytest.mark.parametrize(
    ("name", "value"), [("relu", 0), ("x_zero_point", 0.0), ("y_zero_point", 4.0), ("x_zero_point", False)]
)
def test_arguments_are_checked_when_equal_ones_are_remembered(name: str, value: Any) -> None:
    weights = packed()
    linear(weights=weights)
    assert_refused(linear, rf"^{name}: got", weights=weights, **{name: value})


EXTREME = {
    "product too large": ({"scale": 3e38}, {"x_scale": 3e38}),
    "product too large, per channel": ({"scale": [3e38] * 3}, {"x_scale": 3e38}),
    "product too small": ({"scale": 2e-38}, {"x_scale": 2e-38}),
    "product too small, per channel": ({"scale": [2e-38] * 3}, {"x_scale": 2e-38}),
    "quotient too large": ({"scale": 1.0}, {"x_scale": 1e30, "y_scale": 1e-30}),
    "quotient too small": ({"scale": 1e-20}, {"x_scale": 1e-15, "y_scale": 1e30}),
    "bias too large": ({"scale": 1e-10, "bias": [3e38] * 3}, {"x_scale": 1e-10}),
    "bias too large, per channel": ({"scale": [1e-10] * 3, "bias": [3e38] * 3}, {"x_scale": 1e-10}),
    "reciprocal too large": ({"scale": 2e-38, "bias": None}, {"x_scale": 0.01}),
}


@pytest.mark.parametrize("case", EXTREME)
def test_scales_that_float32_can_not_combine(case: str) -> None:
    options, activations = EXTREME[case]
    assert_refused(linear, message("scales", f"x_scale {activations['x_scale']}"), weights=packed(**options), **activations)
    if case.startswith("product"):
        assert_refused(real, message("scales", ""), weights=packed(**options), **activations)


@pytest.mark.parametrize(
    ("name", "value", "got"),
    [
        ("W", W.astype(np.int16), "int16 array of shape (3, 4)"), ("W", W.view(np.uint8), "uint8 array"),
        ("W", W[0], "int8 array of shape (4,)"), ("W", W[None], "int8 array of shape (1, 3, 4)"),
        ("W", W[:0], "int8 array of shape (0, 4)"), ("W", W[:, :0], "int8 array of shape (3, 0)"),
        ("W", W.tolist(), "int64 array"), ("W", None, "object array"), ("W", "w", "<U1 array"), ("W", RAGGED, ""),
        ("scale", 0, "0"), ("scale", -1.5, "-1.5"), ("scale", [1, 0, 1], "0"), ("scale", 1e-39, "1e-39"),
        ("scale", 1e39, "NaN or infinite"), ("scale", [1, np.nan, 1], "NaN or infinite"), ("scale", "a", "<U1 array"),
        ("scale", None, "object array"), ("scale", True, "bool array"), ("scale", 1j, "complex128 array"),
        ("scale", [1, 2], "int64 array of shape (2,)"), ("scale", np.ones((3, 1)), "float64 array of shape (3, 1)"),
        ("scale", RAGGED, ""),
        ("zero_point", 1.0, "float64 array"), ("zero_point", True, "bool array"), ("zero_point", None, "object array"),
        ("zero_point", 128, ""), ("zero_point", -129, ""), ("zero_point", 10**30, "object array"),
        ("zero_point", [1, 2], "int64 array of shape (2,)"), ("zero_point", RAGGED, ""),
        ("bias", 1.0, "float64 array of shape ()"), ("bias", [1, 2], "int64 array of shape (2,)"),
        ("bias", [1, 2, np.inf], "NaN or infinite"), ("bias", [1, 2, 1e39], "NaN or infinite"),
        ("bias", "abc", "<U3 array"), ("bias", [1, 2, None], "object array"), ("bias", RAGGED, ""),
        ("encode", "exact", "'exact'"), ("encode", ("mod128",), "('mod128',)"), ("encode", 5, "5"),
        ("encode", None, "None"), ("encode", [["exact"]], "[['exact']]"), ("encode", (np.ones(2),), ""),
    ],
)  # fmt: skip
def test_weights(name: str, value: Any, got: str) -> None:
    assert_refused(sedq.pack_weights, message(name, got), **({"W": W} | {name: value}))


@pytest.mark.parametrize("value", [128, -129])
def test_zero_point_out_of_range_is_named(value: int) -> None:
    with pytest.raises(ValueError, match=rf"^zero_point: got .*{value}.*, expected"):
        packed(zero_point=value)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("packed", W, TypeError), ("input_qparams", 0.1, TypeError), ("output_qparams", (0.1, 3), TypeError),
        ("input_qparams", QParams(1.0, 0, "int8"), ValueError), ("output_qparams", QParams(1.0, 0, "int8"), ValueError),
        ("input_qparams", QParams([1.0, 2.0]), ValueError), ("output_qparams", QParams([1.0, 2.0]), ValueError),
        ("relu", "no", ValueError), ("relu", 1, ValueError),
    ],
)  # fmt: skip
def test_layer(name: str, value: Any, error: type[Exception]) -> None:
    options = {"packed": packed(), "input_qparams": QParams(1.0), "output_qparams": QParams(1.0), "relu": False}
    assert_refused(sedq.QuantizedLinear, message(name, ""), error, **(options | {name: value}))


@pytest.mark.parametrize(
    ("name", "value", "got"),
    [
        ("W", W[0], "int8 array of shape (4,)"), ("W", W[:0], "shape (0, 4)"), ("W", W[:, :0], "shape (3, 0)"),
        ("W", [[np.nan]], "NaN or infinite"), ("W", [[1e39]], "NaN or infinite"), ("W", None, "object array"),
        ("W", "w", "<U1 array"), ("W", RAGGED, ""), ("bias", [1, 2], "int64 array of shape (2,)"),
        ("bias", [1, 2, np.nan], "NaN or infinite"), ("relu", "no", "'no'"), ("per_channel", "no", "'no'"),
    ],
)  # fmt: skip
def test_layer_from_float(name: str, value: Any, got: str) -> None:
    assert_refused(sedq.QuantizedLinear.from_float, message(name, got), **({"W": W.astype(np.float32)} | {name: value}))


def test_layer_that_is_not_frozen() -> None:
    layer = sedq.QuantizedLinear.from_float(W.astype(np.float32))
    for x in (F32, U8):
        with pytest.raises(ValueError, match=r"^layer: got no activation parameters, expected observe\(\) and freeze\(\)"):
            layer(x)
    for samples in (None, F32[:0]):
        if samples is not None:
            layer.observe(samples)
        with pytest.raises(ValueError, match=r"^observer: got no data, expected a call of observe\(\) first"):
            layer.freeze()
        assert not layer.frozen


@pytest.mark.parametrize("method", ["observe", "__call__"])
@pytest.mark.parametrize(
    ("x", "got"),
    [
        (F32[:, :3], "float32 array of shape (2, 3)"), (U8.astype(int), "int64 array"), (F32 * np.nan, "NaN"),
        (None, "object array"), ("x", "<U1 array"), (np.full((M, K), 1e300), ""), (RAGGED, ""),
    ],
)  # fmt: skip
def test_input_of_a_layer(method: str, x: Any, got: str) -> None:
    layer = sedq.QuantizedLinear.from_float(W.astype(np.float32)).observe(F32)
    if method == "__call__":
        layer.freeze()
    assert_refused(lambda: getattr(layer, method)(x), message("x", got))
    assert layer.freeze().input_qparams == sedq.choose_qparams(0, 7), "left as it was"


def test_a_frozen_layer_observes_nothing() -> None:
    given = sedq.QuantizedLinear(packed(), QParams(0.5, 10), QParams(2.0, 1))
    for layer in (sedq.QuantizedLinear.from_float(W.astype(np.float32)).observe(F32).freeze(), given):
        before = layer.input_qparams, layer.output_qparams
        with pytest.raises(
            ValueError, match=r"^The layer is frozen.* before freeze\(\), or make a new layer with from_float\(\)"
        ):
            layer.observe(F32 * 2)
        assert (layer.input_qparams, layer.output_qparams) == before


def test_samples_that_overflow() -> None:
    layer = sedq.QuantizedLinear.from_float(np.full((1, 4), 3e38, np.float32))
    with pytest.raises(ValueError, match=r"^(x|W): got"):
        layer.observe(np.full((1, 4), 1e20, np.float32))
    with pytest.raises(ValueError, match=r"^observer: got no data"):
        layer.freeze()
