"""Quantised linear layers on every instruction set against NumPy, bit for bit, and `QuantizedLinear` against float."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import sedq
from helpers import oracles
from sedq import QParams, _config
from sedq._core import _dispatch

LEVELS = ("off", "exact", "full")
GUARD = 77


def layer(
    rng: np.random.Generator, n: int, k: int, *, per_channel: bool, zero: bool, bias: bool
) -> tuple[np.ndarray, dict[str, Any]]:
    """Weights and their parameters."""
    w = rng.integers(-128, 128, (n, k), dtype=np.int8)
    scale = rng.uniform(0.001, 0.02, n).astype(np.float32) if per_channel else np.float32(0.007)
    zero_point = (rng.integers(-128, 128, n) if per_channel else -5) if zero else 0
    b = rng.normal(scale=3, size=n).astype(np.float32) if bias else None
    return w, {"scale": scale, "zero_point": zero_point, "bias": b}


def assert_same_bits(got: np.ndarray, expected: np.ndarray, note: object = "") -> None:
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    if got.dtype == np.float32:
        got, expected = got.view(np.uint32), expected.view(np.uint32)
    np.testing.assert_array_equal(got, expected, str(note))


def assert_like_reference(x: np.ndarray, w: np.ndarray, weights: dict[str, Any], real: dict[str, Any], check: str) -> None:
    expected = oracles.qlinear(x, w, **weights, **real)
    m, n = expected.shape
    buffer = np.full(m * n + 256, GUARD, expected.dtype)
    out = buffer[128 : 128 + m * n].reshape(m, n)
    with sedq.monitor() as monitor:
        assert sedq.qlinear(x, sedq.pack_weights(w, **weights), **real, check=check, out=out) is out
    assert monitor.detections == 0
    assert monitor.total_checks == (0 if check == "off" else m)
    assert_same_bits(out, expected, f"{x.shape} {w.shape} {real} {check}")
    assert (buffer[:128] == GUARD).all()
    assert (buffer[128 + m * n :] == GUARD).all()


@pytest.mark.parametrize("check", LEVELS)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("output", ["uint8", "float32"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_every_option(
    kernels: _dispatch.Context, rng: np.random.Generator, per_channel: bool, output: str, relu: bool, check: str
) -> None:
    for (n, k), zero, bias in itertools.product([(1, 1), (17, 5), (64, 64), (97, 130)], (False, True), (False, True)):
        w, weights = layer(rng, n, k, per_channel=per_channel, zero=zero, bias=bias)
        x = rng.integers(0, 256, (7, k), dtype=np.uint8)
        for x_zero, y_zero in ((0, 0), (131, 128), (255, 255)):
            real = {"x_scale": 0.013, "x_zero_point": x_zero, "relu": relu}
            if output == "uint8":
                real |= {"y_scale": 0.4, "y_zero_point": y_zero}
            assert_like_reference(x, w, weights, real, check)


@given(
    m=st.integers(1, 14), n=st.integers(1, 140), k=st.integers(1, 140), per_channel=st.booleans(), zero=st.booleans(),
    bias=st.booleans(), relu=st.booleans(), x_zero=st.integers(0, 255), y_zero=st.integers(0, 255),
    y_scale=st.none() | st.floats(2.0**-12, 8), check=st.sampled_from(LEVELS), seed=st.integers(0, 99),
)  # fmt: skip
@example(
    m=1, n=1, k=1, per_channel=True, zero=True, bias=True, relu=True, x_zero=255, y_zero=255, y_scale=1e-3, check="full",
    seed=0,
)  # fmt: skip
def test_any_shape(
    m: int, n: int, k: int, per_channel: bool, zero: bool, bias: bool, relu: bool, x_zero: int, y_zero: int,
    y_scale: float | None, check: str, seed: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    w, weights = layer(rng, n, k, per_channel=per_channel, zero=zero, bias=bias)
    x = rng.integers(0, 256, (m, k), dtype=np.uint8)
    real: dict[str, Any] = {"x_scale": 0.013, "x_zero_point": x_zero, "relu": relu}
    if y_scale is not None:
        real |= {"y_scale": y_scale, "y_zero_point": y_zero}
    for name in _dispatch.available():
        with _config.use_kernels(_dispatch.get(name)):
            assert_like_reference(x, w, weights, real, check)


@pytest.mark.parametrize("y_zero_point", [0, 100, 255])
@pytest.mark.parametrize("relu", [False, True])
def test_results_far_out_saturate(kernels: _dispatch.Context, y_zero_point: int, relu: bool) -> None:
    # far beyond int32, where a conversion that wraps would give the other end
    x, w = np.uint8([[255] * 4]), np.int8([[127] * 4, [-128] * 4, [0] * 4])
    packed = sedq.pack_weights(w, 100.0, bias=[0, 0, 0])
    options = {"x_scale": 1e5, "x_zero_point": 0, "y_scale": 1e-30, "y_zero_point": y_zero_point, "relu": relu}
    low = y_zero_point if relu else 0
    for level in LEVELS:
        np.testing.assert_array_equal(sedq.qlinear(x, packed, **options, check=level), [[255, low, y_zero_point]])


@pytest.mark.parametrize("y_zero_point", [0, 7, 255])
def test_halves_round_to_even(kernels: _dispatch.Context, y_zero_point: int) -> None:
    w = np.int8([[1], [-1]])
    x = np.arange(256, dtype=np.uint8)[:, None]
    y = sedq.qlinear(x, sedq.pack_weights(w), x_scale=0.5, x_zero_point=0, y_scale=1.0, y_zero_point=y_zero_point)
    halves = np.rint(np.arange(256)[:, None] * np.array([0.5, -0.5]))
    np.testing.assert_array_equal(y, np.clip(halves + y_zero_point, 0, 255))


def test_relu_of_minus_zero_is_plus_zero(kernels: _dispatch.Context) -> None:
    packed = sedq.pack_weights(np.int8([[1]]), bias=[-0.0])
    x = np.uint8([[4]])
    assert_same_bits(sedq.qlinear(x, packed, x_scale=1.0, x_zero_point=4, relu=True), np.zeros((1, 1), np.float32))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_scale_and_bias_of_other_dtypes(kernels: _dispatch.Context, rng: np.random.Generator, dtype: type) -> None:
    w = rng.integers(-128, 128, (9, 6), dtype=np.int8)
    x = rng.integers(0, 256, (3, 6), dtype=np.uint8)
    scale, bias = rng.uniform(0.01, 0.1, 18).astype(dtype)[::2], rng.normal(size=9).astype(dtype)
    scale.flags.writeable = bias.flags.writeable = False
    real = {"x_scale": np.float64(0.3), "x_zero_point": np.uint8(9), "y_scale": np.float32(0.7), "y_zero_point": np.int64(3)}
    y = sedq.qlinear(x, sedq.pack_weights(w, scale, bias=bias), **real)
    assert_same_bits(y, oracles.qlinear(x, w, scale=scale, bias=bias, **real))
    assert sedq.pack_weights(w, scale, bias=bias).scale.dtype == np.float32


@pytest.mark.parametrize("shape", [(6,), (2, 3, 6), (0, 6), (3, 0, 6)])
@pytest.mark.parametrize("output", [np.uint8, np.float32])
def test_leading_dimensions_and_out(
    kernels: _dispatch.Context, rng: np.random.Generator, shape: tuple[int, ...], output: type
) -> None:
    w, weights = layer(rng, 9, 6, per_channel=True, zero=True, bias=True)
    x = rng.integers(0, 256, shape, dtype=np.uint8)
    real: dict[str, Any] = {"x_scale": 0.1, "x_zero_point": 3}
    if output is np.uint8:
        real |= {"y_scale": 0.2, "y_zero_point": 77}
    packed = sedq.pack_weights(w, **weights)
    expected = oracles.qlinear(x.reshape(-1, 6), w, **weights, **real).reshape(*shape[:-1], 9)
    assert_same_bits(sedq.qlinear(x, packed, **real), expected)
    assert_same_bits(sedq.qlinear(np.asfortranarray(x), packed, **real), expected)
    out = np.full(expected.shape, GUARD, output)
    assert sedq.qlinear(x, packed, **real, out=out) is out
    assert_same_bits(out, expected)


def test_many_activation_parameters(rng: np.random.Generator) -> None:
    # more than the pack remembers, and each again
    w, weights = layer(rng, 9, 6, per_channel=True, zero=True, bias=True)
    x, packed = rng.integers(0, 256, (3, 6), dtype=np.uint8), sedq.pack_weights(w, **weights)
    for x_zero in (*range(60), *range(60)):
        np.testing.assert_array_equal(
            sedq.matmul_integer(x, packed, x_zero), oracles.matmul_integer(x, w, weights["zero_point"], x_zero)
        )
        real = {"x_scale": 0.1, "x_zero_point": x_zero, "y_scale": 0.5, "y_zero_point": 9}
        assert_same_bits(sedq.qlinear(x, packed, **real), oracles.qlinear(x, w, **weights, **real))
    assert len(packed._epilogues) <= 32


@pytest.mark.parametrize("check", LEVELS)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("reduce_range", [False, True])
@pytest.mark.parametrize("low", [-3.0, 0.5, -0.0])
def test_dynamic(
    kernels: _dispatch.Context, rng: np.random.Generator, low: float, reduce_range: bool, relu: bool, check: str
) -> None:
    w, weights = layer(rng, 37, 29, per_channel=True, zero=True, bias=True)
    packed = sedq.pack_weights(w, **weights)
    x = rng.uniform(low, 2.5, (2, 4, 29)).astype(np.float32)
    params = sedq.choose_qparams(x.min(), x.max(), reduce_range=reduce_range)
    codes = sedq.quantize(x, params)
    assert codes.max() <= (127 if reduce_range else 255)
    expected = oracles.qlinear(
        codes.reshape(8, 29), w, **weights, x_scale=params.scale, x_zero_point=params.zero_point, relu=relu
    ).reshape(2, 4, 37)
    options = {"reduce_range": reduce_range, "check": check}
    with sedq.monitor() as m:
        assert_same_bits(sedq.qlinear_dynamic(x, packed, relu, **options), expected)
    assert m.detections == 0
    out = np.full(expected.shape, GUARD, np.float32)
    assert sedq.qlinear_dynamic(x.astype(np.float64)[..., ::-1][..., ::-1], packed, relu, **options, out=out) is out
    assert_same_bits(out, expected)


@pytest.mark.parametrize("shape", [(5,), (0, 5), (2, 0, 5), (1, 2, 5)])
def test_dynamic_of_zeros_is_the_bias(kernels: _dispatch.Context, shape: tuple[int, ...]) -> None:
    packed = sedq.pack_weights(np.ones((3, 5), np.int8), bias=[1, 2, -3])
    y = sedq.qlinear_dynamic(np.zeros(shape, np.float32), packed)
    assert_same_bits(y, np.broadcast_to(np.float32([1, 2, -3]), (*shape[:-1], 3)).copy())


# ---- QuantizedLinear


def sample(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (
        rng.normal(size=(24, 40)).astype(np.float32), rng.normal(size=24).astype(np.float32),
        rng.normal(size=(300, 40)).astype(np.float32),
    )  # fmt: skip


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_layer_against_float(
    kernels: _dispatch.Context, rng: np.random.Generator, per_channel: bool, relu: bool, bias: bool
) -> None:
    w, b, x = sample(rng)
    made = sedq.QuantizedLinear.from_float(w, b if bias else None, relu=relu, per_channel=per_channel)
    assert made.packed.scale.shape == ((24,) if per_channel else ())
    np.testing.assert_allclose(made.packed.scale, np.abs(w).max(axis=1 if per_channel else None) / 127, rtol=1e-6)
    assert not made.frozen
    assert made.observe(x) is made
    assert made.freeze() is made
    assert made.frozen
    exact = x.astype(np.float64) @ w.T + (b if bias else 0)
    exact = np.maximum(exact, 0) if relu else exact
    y = made(x)
    assert y.dtype == np.float32
    # a step and a half of x (0.03) and of w (0.03), 40 of each, independent
    assert np.abs(y - exact).max() < 0.6
    assert np.sqrt(np.mean((y - exact) ** 2)) < 0.15
    qx, qy = made.input_qparams, made.output_qparams
    assert qx == sedq.choose_qparams(x.min(), x.max())
    codes = sedq.quantize(x, qx)
    quantised = made(codes)
    assert quantised.dtype == np.uint8
    lowest, highest = sedq.dequantize(np.uint8([0, 255]), qy)  # no sample gave more, but rounding may
    assert np.abs(sedq.dequantize(quantised, qy) - np.clip(y, lowest, highest)).max() <= qy.scale * 0.51
    weights = {"scale": made.packed.scale, "bias": b if bias else None}
    real = {"x_scale": qx.scale, "x_zero_point": qx.zero_point, "relu": relu}
    assert_same_bits(y, oracles.qlinear(codes, made.packed.unpack(), **weights, **real))
    real |= {"y_scale": qy.scale, "y_zero_point": qy.zero_point}
    assert_same_bits(quantised, oracles.qlinear(codes, made.packed.unpack(), **weights, **real))


def test_layer_observes_in_parts(rng: np.random.Generator) -> None:
    w, b, x = sample(rng)
    whole = sedq.QuantizedLinear.from_float(w, b).observe(x).freeze()
    parts = sedq.QuantizedLinear.from_float(w, b)
    for part in (x[:1], x[1:1], x[1:7].reshape(2, 3, 40), x[7], x[8:]):
        parts.observe(part)
    parts.freeze()
    assert parts.input_qparams == whole.input_qparams
    assert parts.output_qparams.zero_point == whole.output_qparams.zero_point
    assert parts.output_qparams.scale == pytest.approx(whole.output_qparams.scale, rel=1e-5)
    for shape in ((0, 40), (40,), (3, 2, 40)):
        data = np.ones(shape, np.float32)
        assert_same_bits(parts(data), whole(data))
        assert parts(data).shape == (*shape[:-1], 24)
        assert parts(data.astype(np.uint8)).shape == (*shape[:-1], 24)


@pytest.mark.parametrize("zero_point", [0, 5, np.array([-7, 90])])
def test_layer_observes_what_it_computes(zero_point: Any) -> None:
    packed = sedq.pack_weights(np.int8([[5, 9], [-3, 20]]), [0.5, 0.25], zero_point, bias=[1, -2])
    x = np.float32([[1, 2], [-3, 4], [0, 0]])
    made = sedq.QuantizedLinear(packed).observe(x).freeze()
    zero = np.broadcast_to(zero_point, 2)[:, None]
    exact = x @ ((packed.unpack() - zero) * packed.scale[:, None]).T + packed.bias
    assert made.output_qparams == sedq.choose_qparams(exact.min(), exact.max())
    assert np.abs(made(x) - exact).max() < 0.02 * np.abs(exact).max()


def test_layer_with_given_parameters() -> None:
    packed = sedq.pack_weights(np.int8([[1, 2], [3, 4]]))
    made = sedq.QuantizedLinear(packed, QParams(0.5, 10), QParams(2.0, 1))
    assert made.frozen
    np.testing.assert_array_equal(made(np.uint8([[10, 14]])), [[3, 5]])
    np.testing.assert_array_equal(made(np.float32([[0, 2]])), [[4, 8]])
    only_input = sedq.QuantizedLinear(packed, QParams(0.5, 10))
    np.testing.assert_array_equal(only_input(np.float32([[0, 2]])), [[4, 8]])
    with pytest.raises(ValueError, match=r"^layer: got uint8 input without output_qparams"):
        only_input(np.uint8([[10, 14]]))


def test_layer_with_a_row_of_zeros() -> None:
    made = sedq.QuantizedLinear.from_float(np.float32([[0, 0], [1, -2], [1e-45, 0]]), [3, 4, 5])
    y = made.observe(np.float32([[1, 1]])).freeze()(np.float32([[1, 1]]))
    np.testing.assert_allclose(y, [[3, 3, 5]], atol=0.03)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_layer_can_be_copied(rng: np.random.Generator, copied: Any) -> None:
    w, b, x = sample(rng)
    made = sedq.QuantizedLinear.from_float(w, b, relu=True).observe(x).freeze()
    again = copied(made)
    assert_same_bits(again(x), made(x))
    made.packed.bias[...] = 0
    assert again.packed.verify().ok
    assert again.input_qparams == made.input_qparams


def test_layer_passes_settings_on(rng: np.random.Generator) -> None:
    w, b, x = sample(rng)
    made = sedq.QuantizedLinear.from_float(w, b).observe(x).freeze()
    with sedq.monitor() as m:
        made(x, check="off", num_threads=1)
        assert m.total_checks == 0
        made(x, check="full")
        assert m.total_checks == len(x)
    made.packed._core.panels[0] ^= 64
    with pytest.raises(sedq.SoftErrorDetected):
        made(x, on_error="raise")
    with pytest.warns(sedq.SoftErrorWarning):
        made(x, on_error="warn")
