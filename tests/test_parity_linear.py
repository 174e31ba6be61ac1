"""Quantised linear layers and quantisation against PyTorch: uint8 output bit for bit."""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sedq
from sedq import QParams
from sedq._core import _dispatch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # PyTorch's deprecations
    pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="PyTorch without FBGEMM"),
]
SHAPES = [(1, 1, 1), (1, 64, 64), (5, 17, 33), (3, 130, 129), (20, 65, 256)]
# without VNNI PyTorch adds pairs of products in 16 bits, which saturate: these can't
LARGEST_X, LARGEST_W = 127, 63


@pytest.fixture(autouse=True)
def fbgemm() -> Iterator[None]:
    before, threads = torch.backends.quantized.engine, torch.get_num_threads()
    torch.backends.quantized.engine = "fbgemm"
    torch.set_num_threads(1)
    yield
    torch.backends.quantized.engine = before
    torch.set_num_threads(threads)


def operands(rng: np.random.Generator, m: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    x = rng.integers(0, LARGEST_X + 1, (m, k), dtype=np.uint8)
    return x, rng.integers(-LARGEST_W, LARGEST_W + 1, (n, k), dtype=np.int8)


def quantized_weights(w: np.ndarray, scale: Any, zero_point: Any) -> Any:
    t = torch.from_numpy(w)
    if np.ndim(scale) == 0:
        return torch._make_per_tensor_quantized_tensor(t, float(scale), int(zero_point))
    zeros = torch.from_numpy(np.broadcast_to(zero_point, len(w)).astype(np.int64).copy())
    return torch._make_per_channel_quantized_tensor(t, torch.from_numpy(np.float64(scale)), zeros, 0)


def parameters(rng: np.random.Generator, n: int, per_channel: bool, zero: bool) -> tuple[Any, Any]:
    if per_channel:
        return rng.uniform(0.001, 0.02, n).astype(np.float32), rng.integers(-9, 9, n) if zero else 0
    return np.float32(0.0123), 7 if zero else 0


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
def test_linear(kernels: _dispatch.Context, rng: np.random.Generator, per_channel: bool, bias: bool, relu: bool) -> None:
    op = torch.ops.quantized.linear_relu if relu else torch.ops.quantized.linear
    compared = set()
    for (m, n, k), zero, (y_scale, y_zero) in itertools.product(
        SHAPES, (False, True), ((0.5, 0), (0.031, 128), (0.11, 255))
    ):
        x, w = operands(rng, m, n, k)
        scale, zero_point = parameters(rng, n, per_channel, zero)
        b = rng.normal(scale=2, size=n).astype(np.float32) if bias else None
        weights = torch.ops.quantized.linear_prepack(
            quantized_weights(w, scale, zero_point), None if b is None else torch.from_numpy(b)
        )
        theirs = op(torch._make_per_tensor_quantized_tensor(torch.from_numpy(x), 0.02, 61), weights, y_scale, y_zero)
        ours = sedq.qlinear(
            x, sedq.pack_weights(w, scale, zero_point, b), x_scale=0.02, x_zero_point=61, y_scale=y_scale,
            y_zero_point=y_zero, relu=relu,
        )  # fmt: skip
        np.testing.assert_array_equal(ours, theirs.int_repr().numpy(), f"{m} x {n} x {k}, {zero}, {y_scale}")
        compared |= set(ours.ravel().tolist())
    assert len(compared) > 150, "not only what is clamped"


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize(("scale", "zero"), [(0.1, 3), (0.25, 0), (1 / 3, 127), (7e-5, 100)])
def test_quantize(rng: np.random.Generator, dtype: str, scale: float, zero: int) -> None:
    x = (rng.normal(scale=90, size=(40, 25)) * scale).astype(np.float32)
    if zero % 2 == 0:  # where PyTorch rounds halves after it added the zero point, and we before
        x[0, :20] = np.float32(scale) * (np.arange(20) - 10) / 2
    theirs = torch.quantize_per_tensor(torch.from_numpy(x), scale, zero, {"uint8": torch.quint8, "int8": torch.qint8}[dtype])
    p = QParams(scale, zero, dtype)
    codes = sedq.quantize(x, p)
    np.testing.assert_array_equal(codes, theirs.int_repr().numpy())
    np.testing.assert_array_equal(sedq.dequantize(codes, p), theirs.dequantize().numpy())


@pytest.mark.parametrize("axis", [0, 1])
def test_quantize_per_channel(rng: np.random.Generator, axis: int) -> None:
    x = rng.normal(size=(6, 9)).astype(np.float32)
    n = x.shape[axis]
    scale, zero = rng.uniform(0.01, 0.03, n).astype(np.float32), rng.integers(-5, 5, n)
    theirs = torch.quantize_per_channel(
        torch.from_numpy(x), torch.from_numpy(scale), torch.from_numpy(zero), axis, torch.qint8
    )
    p = QParams(scale, zero, "int8")
    codes = sedq.quantize(x, p, axis=axis)
    np.testing.assert_array_equal(codes, theirs.int_repr().numpy())
    np.testing.assert_allclose(sedq.dequantize(codes, p, axis=axis), theirs.dequantize().numpy(), rtol=1e-6)


@pytest.mark.parametrize(("symmetric", "reduce_range"), [(False, False), (False, True), (True, False)])
def test_choose_qparams(symmetric: bool, reduce_range: bool) -> None:
    scheme = torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine
    for low, high in ((-1.0, 2.0), (0.5, 3.0), (-4.0, -1.0), (-0.001, 77.0)):
        observer = torch.ao.quantization.MinMaxObserver(torch.quint8, scheme, reduce_range)
        observer(torch.tensor([low, high]))
        scale, zero = observer.calculate_qparams()
        p = sedq.choose_qparams(low, high, symmetric=symmetric, reduce_range=reduce_range)
        # PyTorch divides a symmetric range by half of 255, and we by the 127 codes on each side
        assert p.scale == pytest.approx(float(scale) * (127.5 / 127 if symmetric else 1), rel=1e-6)
        assert p.zero_point == int(zero)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("reduce_range", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
def test_dynamic_linear(
    kernels: _dispatch.Context, rng: np.random.Generator, per_channel: bool, reduce_range: bool, relu: bool
) -> None:
    op = torch.ops.quantized.linear_relu_dynamic if relu else torch.ops.quantized.linear_dynamic
    for m, n, k in SHAPES:
        x = rng.uniform(-2, 3, (m, k)).astype(np.float32)
        _, w = operands(rng, m, n, k)
        if not reduce_range and torch.backends.cpu.get_cpu_capability() != "AVX512":
            w = w // 2  # two products of them and 8 bits fit the 16 bits at which PyTorch saturates without VNNI
        scale, _ = parameters(rng, n, per_channel, False)
        b = rng.normal(size=n).astype(np.float32)
        weights = torch.ops.quantized.linear_prepack(quantized_weights(w, scale, 0), torch.from_numpy(b))
        theirs = op(torch.from_numpy(x), weights, reduce_range=reduce_range).numpy()
        ours = sedq.qlinear_dynamic(x, sedq.pack_weights(w, scale, 0, b), relu, reduce_range=reduce_range)
        # a value half-way between two codes may go either way: a step of x in a few of k products
        step = 5 / (127 if reduce_range else 255) * LARGEST_W * float(np.max(scale))
        assert np.abs(ours - theirs).max() <= 2 * step
        assert np.sqrt(np.mean((ours - theirs) ** 2)) <= 0.2 * step


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
def test_a_layer_of_either_kind_is_taken_as_the_guide_says(rng: np.random.Generator, per_channel: bool, bias: bool) -> None:
    page = (Path(__file__).parent.parent / "docs" / "howto" / "take-tables.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {"sedq": sedq}
    exec(next(block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "def take_linear" in block), names)
    ao = torch.ao.quantization
    how = {torch.nn.Linear: ao.per_channel_dynamic_qconfig} if per_channel else {torch.nn.Linear}
    torch.manual_seed(0)
    layer = ao.quantize_dynamic(torch.nn.Sequential(torch.nn.Linear(33, 18, bias=bias)), how)[0]
    assert ("per_channel" in str(layer.weight().qscheme())) == per_channel
    x, _ = operands(rng, 7, 18, 33)
    theirs = torch.ops.quantized.linear(
        torch._make_per_tensor_quantized_tensor(torch.from_numpy(x), 0.02, 61),
        layer._packed_params._packed_params,
        0.01,
        128,
    )
    ours = sedq.qlinear(x, names["take_linear"](layer), x_scale=0.02, x_zero_point=61, y_scale=0.01, y_zero_point=128)
    np.testing.assert_array_equal(ours, theirs.int_repr().numpy())
    assert len(set(ours.ravel().tolist())) > 50
