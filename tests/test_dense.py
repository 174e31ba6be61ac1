"""The float operators between quantised ones (`_core._dense`): bit for bit the NumPy oracle, on every instruction set.

Their self-check: what they read against the sums of its writer, NaN, and the sums that they hand on.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from helpers import oracles
from sedq import QParams, detection, quantize
from sedq._core import _dense, _dispatch

Array = NDArray[Any]
DIMS = [*range(1, 41), 64, 100]


def interact(
    context: _dispatch.Context, x: Array, params: QParams, *, check: bool = True, threads: int = 1,
    x_sums: Array | None = None,
) -> tuple[Array, Array, list[detection.Finding] | None]:  # fmt: skip
    """Return codes, their sums and findings; outputs start as something else than what is right."""
    requests, features, dim = x.shape
    out = np.full((requests, dim + features * (features - 1) // 2), 77, np.uint8)
    y_sums = np.full(requests, 123, np.uint32)
    found = _dense.interact_quantize(context, x, params.scale, params.zero_point, out, check, threads, x_sums, y_sums)
    return out, y_sums, found


def word_sums(x: Array) -> Array:
    """Sums of the bit patterns along the last axis, modulo 2^32: what a writer of x takes."""
    return x.view(np.uint32).sum(axis=-1, dtype=np.uint32)


@cache
def case(features: int, dim: int) -> tuple[Array, QParams, Array]:
    rng = np.random.default_rng([features, dim])
    x = rng.normal(size=(2, features, dim)).astype(np.float32)
    params = QParams(0.02 * max(1, dim**0.5 * (features > 1)), int(rng.integers(0, 256)))
    return x, params, oracles.interact_quantize(x, params)


@pytest.mark.parametrize("features", range(1, 9))
def test_interaction_is_the_oracle(features: int, kernels: _dispatch.Context) -> None:
    for dim in DIMS:
        x, params, want = case(features, dim)
        out, y_sums, found = interact(kernels, x, params, x_sums=word_sums(x))
        assert found is None
        np.testing.assert_array_equal(out, want, err_msg=f"dim {dim}")
        np.testing.assert_array_equal(y_sums, want.sum(axis=1, dtype=np.uint32))
        np.testing.assert_array_equal(interact(kernels, x, params, check=False)[0], want)
    assert len(np.unique(want)) > 20


@given(
    st.integers(0, 7), st.integers(1, 6), st.integers(1, 70), st.integers(0, 255), st.floats(1e-3, 1e3), st.integers(0, 99)
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape(
    kernels: _dispatch.Context, requests: int, features: int, dim: int, zero_point: int, scale: float, seed: int
) -> None:
    x = np.random.default_rng(seed).normal(size=(requests, features, dim)).astype(np.float32)
    params = QParams(scale, zero_point)
    out, y_sums, found = interact(kernels, x, params, x_sums=word_sums(x))
    assert found is None
    np.testing.assert_array_equal(out, oracles.interact_quantize(x, params))
    np.testing.assert_array_equal(y_sums, out.sum(axis=1))


def quantize_rows(
    context: _dispatch.Context, x: Array, params: QParams, *, check: bool = True, threads: int = 1
) -> tuple[Array, Array]:
    out = np.full(x.shape, 77, np.uint8)
    y_sums = np.full(len(x), 123, np.uint32)
    found = _dense.quantize_rows(context, x, params.scale, params.zero_point, out, check, threads, y_sums)
    assert found is None
    return out, y_sums


@pytest.mark.parametrize("zero_point", [0, 1, 128, 255])
def test_rows_at_borders(zero_point: int, kernels: _dispatch.Context, rng: np.random.Generator) -> None:
    """Halfway cases, both ends of the codes and beyond, infinities, denormals."""
    scale = 0.25
    halves = (np.arange(-520, 521) / 2 * scale).astype(np.float32)
    beyond = np.array([np.inf, -np.inf, 3.4e38, -3.4e38, 1e-45, -1e-45, -0.0], np.float32)
    x = rng.permutation(np.concatenate([halves, np.nextafter(halves, np.float32(9e9)), beyond]))[None]
    params = QParams(scale, zero_point)
    out, y_sums = quantize_rows(kernels, x, params)
    np.testing.assert_array_equal(out, quantize(x, params))
    assert y_sums == out.sum()
    assert (out.min(), out.max()) == (0, 255)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("requests", "features", "dim"), [(90, 8, 64), (700, 1, 500), (1200, 3, 33)])
def test_threads(threads: int, requests: int, features: int, dim: int, kernels: _dispatch.Context) -> None:
    if _dispatch.has_openmp():
        assert _dispatch.threads_for(2, requests * features * features * dim // 8) == 2
    x = np.random.default_rng(5).normal(size=(requests, features, dim)).astype(np.float32)
    params = QParams(0.05 * dim**0.5, 120)
    out, y_sums, found = interact(kernels, x, params, threads=threads, x_sums=word_sums(x))
    assert found is None
    few = slice(None, None, requests // 30)
    np.testing.assert_array_equal(out[few], oracles.interact_quantize(x[few], params))
    np.testing.assert_array_equal(out, interact(_dispatch.get("reference"), x, params)[0])
    np.testing.assert_array_equal(y_sums, out.sum(axis=1))
    if features == 1:
        rows, row_sums = quantize_rows(kernels, x[:, 0], params, threads=threads)
        np.testing.assert_array_equal(rows, out)
        np.testing.assert_array_equal(row_sums, y_sums)


@pytest.mark.parametrize("bit", [0, 12, 22, 30, 31])
@pytest.mark.parametrize("threads", [1, 2])
def test_corrupted_input_is_reported(bit: int, threads: int, kernels: _dispatch.Context, rng: np.random.Generator) -> None:
    x = rng.normal(size=(90, 4, 300)).astype(np.float32)
    params = QParams(0.5, 120)
    sums = word_sums(x)
    clean = interact(kernels, x, params)[0]
    for request, feature, column in ((0, 0, 0), (17, 3, 299), (89, 1, 16)):
        struck = x.copy()
        struck.view(np.uint32)[request, feature, column] ^= np.uint32(1 << bit)
        found = interact(kernels, struck, params, threads=threads, x_sums=sums)[2]
        assert found is not None
        assert {(row, kind) for row, kind, _, _ in found} == {(request, detection.Kind.INPUT)}
        assert sum(residual for _, _, residual, _ in found) in (2.0**bit, -(2.0**bit))
        assert interact(kernels, struck, params, threads=threads)[2] is None  # without the sums nobody sees it
        silent, _, found = interact(kernels, struck, params, check=False, threads=threads, x_sums=sums)
        assert found is None
        if bit == 30:
            assert (silent[request] != clean[request]).any()


def test_wrong_sums_are_reported_in_every_request(kernels: _dispatch.Context, rng: np.random.Generator) -> None:
    x = rng.normal(size=(100, 2, 9)).astype(np.float32)
    sums = word_sums(x)
    sums[:, 1] += np.uint32(1)
    out, _, found = interact(kernels, x, QParams(0.1, 3), x_sums=sums)
    assert found is not None
    assert [row for row, _, _, _ in found] == list(range(64))  # the list is bounded
    assert {kind for _, kind, _, _ in found} == {detection.Kind.INPUT}
    np.testing.assert_array_equal(out, oracles.interact_quantize(x, QParams(0.1, 3)))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("position", [0, 15, 16, 256])
def test_nan_raises_if_checked(position: int, threads: int, kernels: _dispatch.Context) -> None:
    x = np.zeros((1500, 1, 257), np.float32)
    x[1234, 0, position] = np.nan
    with pytest.raises(ValueError, match="x: got values that give NaN in row 1234, expected numbers"):
        interact(kernels, x, QParams(1.0, 9), threads=threads)
    out, _, found = interact(kernels, x, QParams(1.0, 9), check=False, threads=threads)
    assert found is None
    out[1234, position] = 9
    assert (out == 9).all()


def test_infinities_that_give_nan_raise(kernels: _dispatch.Context) -> None:
    x = np.zeros((2, 2, 32), np.float32)
    x[1, 0, 0], x[1, 0, 16] = np.inf, -np.inf
    x[1, 1] = 1
    with pytest.raises(ValueError, match="NaN in row 1"):
        interact(kernels, x, QParams(1.0, 0))


def test_corruption_is_reported_rather_than_its_nan(kernels: _dispatch.Context) -> None:
    x = np.ones((3, 2, 8), np.float32)
    sums = word_sums(x)
    x[2, 1, 3] = np.nan
    found = interact(kernels, x, QParams(1.0, 0), x_sums=sums)[2]
    assert found is not None
    assert {(row, kind) for row, kind, _, _ in found} == {(2, detection.Kind.INPUT)}


def test_no_requests(kernels: _dispatch.Context) -> None:
    x = np.empty((0, 3, 5), np.float32)
    out, y_sums, found = interact(kernels, x, QParams(1.0, 0), x_sums=word_sums(x))
    assert (out.shape, y_sums.shape, found) == ((0, 8), (0,), None)
    assert quantize_rows(kernels, x[:, 0], QParams(1.0, 0))[0].shape == (0, 5)


def test_read_only_input(kernels: _dispatch.Context, rng: np.random.Generator) -> None:
    x = rng.normal(size=(4, 3, 5)).astype(np.float32)
    want = oracles.interact_quantize(x, QParams(0.1, 100))
    x.flags.writeable = False
    np.testing.assert_array_equal(interact(kernels, x, QParams(0.1, 100))[0], want)
    np.testing.assert_array_equal(quantize_rows(kernels, x[:, 0].copy(), QParams(0.1, 100))[0], want[:, :5])


@pytest.mark.parametrize(
    ("x", "out", "x_sums", "y_sums"),
    [
        pytest.param((2, 3, 5), (2, 9), None, None, id="out too wide"),
        pytest.param((2, 3, 5), (2, 7), None, None, id="out too narrow"),
        pytest.param((2, 3, 5), (3, 8), None, None, id="out too long"),
        pytest.param((2, 0, 5), (2, 5), None, None, id="no features"),
        pytest.param((2, 3, 0), (2, 3), None, None, id="no columns"),
        pytest.param((2, 3, 5), (2, 8), (3, 2), None, id="x_sums transposed"),
        pytest.param((2, 3, 5), (2, 8), (1, 3), None, id="x_sums too short"),
        pytest.param((2, 3, 5), (2, 8), None, (3,), id="y_sums too long"),
    ],
)
def test_shapes_that_do_not_fit(
    x: tuple[int, ...], out: tuple[int, ...], x_sums: tuple[int, ...] | None, y_sums: tuple[int, ...] | None,
    kernels: _dispatch.Context,
) -> None:  # fmt: skip
    target = np.full(out, 77, np.uint8)
    sums = [None if s is None else np.zeros(s, np.uint32) for s in (x_sums, y_sums)]
    with pytest.raises(ValueError, match="shape"):
        _dense.interact_quantize(kernels, np.zeros(x, np.float32), 1.0, 0, target, True, 1, *sums)
    assert (target == 77).all()


@pytest.mark.parametrize(
    "x", [np.zeros((2, 3, 5)), np.zeros((2, 3, 5), np.int32), np.zeros((2, 5, 3), np.float32).transpose(0, 2, 1)]
)
def test_wrong_dtype_or_strides(x: Array, kernels: _dispatch.Context) -> None:
    target = np.full((2, 8), 77, np.uint8)
    with pytest.raises(ValueError, match=r"Buffer dtype mismatch|not C-contiguous"):
        _dense.interact_quantize(kernels, x, 1.0, 0, target, True, 1)
    assert (target == 77).all()
