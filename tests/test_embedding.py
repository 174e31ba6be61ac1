"""EmbeddingBag: pooling bit for bit as the NumPy oracle on every instruction set; row quantisation and layout."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import sedq
from helpers import oracles
from sedq._core import _dispatch, _embedding, _rows
from sedq.embedding import _formats

Array = NDArray[Any]
DIMS = [*range(1, 41), 47, 48, 49, 63, 64, 65, 96, 100, 128, 200, 255, 256, 257, 300, 512, 520]
CHECKS = ["off", "digest", "threshold", "exact", "full"]
WEIGHTS = np.array([1, -1, 0, -0.0, 0.3, -7.5, 1e-45, -1e-40, 1e-30, 1e4], np.float32)


def random_fused(rng: np.random.Generator, rows: int, dim: int, size: float = 1.0) -> Array:
    """Rows of layout ``torch`` with scales and biases of either sign."""
    params = (rng.normal(size=(rows, 2)) * size).astype("<f4")
    return np.hstack([rng.integers(0, 256, (rows, dim), dtype=np.uint8), params.view(np.uint8)])


def bits_equal(got: Array, want: Array, message: str = "") -> None:
    """Signs of zeros included."""
    assert got.dtype == want.dtype == np.float32
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32), err_msg=message)


def ends(lengths: Sequence[int]) -> Array:
    """Offsets, the last included, of bags of these lengths."""
    return np.cumsum([0, *lengths])


# --- pooling ---


@cache
def case(dim: int) -> tuple[Array, Array, Array, Array, dict[tuple[str, bool], Array]]:
    """Rows, indices, offsets, weights, and the oracle's results by mode and whether weighted."""
    rng = np.random.default_rng(dim)
    fused = random_fused(rng, 11, dim)
    offsets = ends([0, 1, 3, 0, 8, 9, 0])
    indices = rng.integers(0, 11, offsets[-1])
    weights = rng.choice(WEIGHTS, len(indices))
    results = {
        (mode, weighted): oracles.bag(fused, indices, offsets, weights if weighted else None, mode)
        for mode in ("sum", "mean")
        for weighted in (False, True)
    }
    return fused, indices, offsets, weights, results


@pytest.mark.parametrize("dim", DIMS)
def test_pooling_is_the_oracle(dim: int, kernels: _dispatch.Context) -> None:
    fused, indices, offsets, weights, results = case(dim)
    with sedq.monitor() as seen:
        for (mode, weighted), want in results.items():
            bag = sedq.EmbeddingBag.from_fused(fused, mode=mode)  # type: ignore[arg-type]
            for number, check in enumerate(CHECKS):
                dtype = (np.int32, np.int64)[number % 2]
                got = bag(
                    indices.astype(dtype), offsets.astype(dtype), weights if weighted else None, True, check=check
                )  # fmt: skip
                bits_equal(got, want, f"{mode}, weighted {weighted}, {check}")
    assert seen.detections == 0
    assert seen.checks == {"EmbeddingBag": 4 * 4 * 7}
    plain = results["sum", False]
    assert not plain[[0, 3, 6]].any()
    assert plain[[1, 2, 4, 5]].any(axis=1).all()


@given(
    st.integers(1, 9), st.integers(1, 90), st.lists(st.integers(0, 9), max_size=7), st.booleans(), st.booleans(),
    st.booleans(), st.sampled_from(["sum", "mean"]), st.sampled_from([np.int32, np.int64]), st.sampled_from(CHECKS),
    st.integers(-30, 30), st.integers(0, 999),
)  # fmt: skip
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_any_bags(
    kernels: _dispatch.Context, rows: int, dim: int, lengths: list[int], weighted: bool, last: bool, given_out: bool,
    mode: Any, dtype: type, check: str, exponent: int, seed: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    fused = random_fused(rng, rows, dim, 2.0**exponent)
    offsets = ends(lengths)
    indices = rng.integers(0, rows, offsets[-1]).astype(dtype)
    weights = rng.normal(size=len(indices)).astype(np.float32) if weighted else None
    out = np.full((len(lengths), dim), np.nan, np.float32) if given_out else None
    starts = offsets if last else offsets[:-1]
    bag = sedq.EmbeddingBag.from_fused(fused, mode=mode)
    got = bag(indices, starts.astype(dtype), weights, last, check=check, on_error="raise", out=out)
    bits_equal(got, oracles.bag(fused, indices, offsets, weights, mode))
    assert got is out or out is None


@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (1, 1), (12, 1), (1, 12), (3, 0), (0, 3), (0, 0)])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_two_dimensional_indices(
    shape: tuple[int, int], dtype: type, kernels: _dispatch.Context, rng: np.random.Generator
) -> None:
    fused = random_fused(rng, 9, 20)
    indices = rng.integers(0, 9, shape).astype(dtype)
    weights = rng.normal(size=shape).astype(np.float32)
    offsets = ends([shape[1]] * shape[0])
    bag = sedq.EmbeddingBag.from_fused(fused)
    bits_equal(bag(indices), oracles.bag(fused, indices.ravel(), offsets))
    want = oracles.bag(fused, indices.ravel(), offsets, weights.ravel())
    bits_equal(bag(indices, per_sample_weights=weights), want)
    bits_equal(bag(np.asfortranarray(indices), per_sample_weights=np.asfortranarray(weights)), want)


@pytest.mark.parametrize(("rows", "dim"), [(700, 20), (1, 64)], ids=["many rows", "one row repeated"])
def test_one_bag_of_5000_rows(rows: int, dim: int, kernels: _dispatch.Context, rng: np.random.Generator) -> None:
    fused = random_fused(rng, rows, dim)
    indices = rng.integers(0, rows, 5000)
    bag = sedq.EmbeddingBag.from_fused(fused, mode="mean")
    want = oracles.bag(fused, indices, [0, 5000], None, "mean")  # type: ignore[arg-type]
    for check in CHECKS:
        bits_equal(bag(indices[None], check=check, on_error="raise"), want)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("bags", "length", "dim"), [(300, 30, 40), (3, 4000, 8), (9000, 1, 16)])
def test_threads(weighted: bool, bags: int, length: int, dim: int, kernels: _dispatch.Context) -> None:
    rng = np.random.default_rng(9)
    if _dispatch.has_openmp():
        assert _dispatch.threads_for(2, bags * length * (4 + dim // 16)) == 2
    fused = random_fused(rng, 500, dim)
    indices = rng.integers(0, 500, (bags, length))
    weights = rng.normal(size=indices.shape).astype(np.float32) if weighted else None
    bag = sedq.EmbeddingBag.from_fused(fused)
    one, two = (bag(indices, per_sample_weights=weights, num_threads=n, check="full", on_error="raise") for n in (1, 2))
    bits_equal(two, one)
    some = slice(None, None, -(-bags * length // 2000))
    picked = None if weights is None else weights[some].ravel()
    offsets = ends([length] * len(indices[some]))
    bits_equal(two[some], oracles.bag(fused, indices[some].ravel(), offsets, picked))


def test_forms_of_arguments(kernels: _dispatch.Context, rng: np.random.Generator) -> None:
    """Non-contiguous and read-only arrays, lists, numbers of other dtypes: all mean the same."""
    fused = random_fused(rng, 9, 20)
    indices, offsets = rng.integers(0, 9, 10), np.array([0, 4, 4])
    weights = rng.integers(-3, 4, 10).astype(np.float32)
    bag = sedq.EmbeddingBag.from_fused(fused)
    want = oracles.bag(fused, indices, ends([4, 0, 6]), weights)
    frozen = [a.copy() for a in (indices, offsets, weights)]
    for a in frozen:
        a.flags.writeable = False
    for arguments in (
        (indices, offsets, weights),
        frozen,
        [np.repeat(a, 3)[::3] for a in (indices, offsets, weights)],
        [a[::-1].copy()[::-1] for a in (indices, offsets, weights)],
        [a.tolist() for a in (indices, offsets, weights)],
        [tuple(a) for a in (indices, offsets, weights)],
        (indices.astype(np.int32), offsets, weights.astype(np.float64)),
        (indices, offsets.astype(np.int32), weights.astype(np.int64)),
        (indices, offsets, weights.astype(np.float16)),
    ):
        bits_equal(bag(*arguments), want)
    bits_equal(bag(indices, per_sample_weights=weights, offsets=offsets, include_last_offset=False), want)
    bits_equal(bag([], []), np.empty((0, 20), np.float32))
    bits_equal(bag([], [0, 0]), np.zeros((2, 20), np.float32))
    bits_equal(bag([], [0], None, True), np.empty((0, 20), np.float32))
    bits_equal(bag([[], []]), np.zeros((2, 20), np.float32))


def test_out_is_written_and_returned(kernels: _dispatch.Context, rng: np.random.Generator) -> None:
    fused = random_fused(rng, 9, 20)
    bag = sedq.EmbeddingBag.from_fused(fused)
    indices = rng.integers(0, 9, (3, 4))
    whole = np.full((5, 20), 7, np.float32)
    assert bag(indices, out=whole[1:4]).base is whole
    bits_equal(whole[1:4], bag(indices))
    assert (whole[[0, 4]] == 7).all()
    one = sedq.EmbeddingBag.from_fused(random_fused(rng, 9, 1))
    for out in (np.empty((3, 1), np.float32), np.empty(3, np.float32)[:, None], np.empty((1, 3), np.float32).T):
        bits_equal(one(indices, out=out), one(indices))


@pytest.mark.parametrize("check", [0, 1, 2, 3, 7])
def test_core_writes_rows_that_lie_apart(check: int, kernels: _dispatch.Context, rng: np.random.Generator) -> None:
    """As a model has it: each table's bags go into a slice of (B, F, d), with the sums of their bit patterns."""
    fused = random_fused(rng, 9, 20)
    table = _rows.Table(_formats.add_digests(fused, 20), 20)
    indices, offsets = rng.integers(0, 9, 300), ends([3] * 100)
    whole = np.full((100, 3, 20), 7, np.float32)
    y_sums = np.full(100, 123, np.uint32)
    found = _embedding.pool(kernels, table, indices, offsets, None, whole[:, 1], check, 0, 0.0, False, 1, y_sums)
    assert found is None
    want = oracles.bag(fused, indices, offsets)
    bits_equal(whole[:, 1].copy(), want)
    assert (whole[:, [0, 2]] == 7).all()
    if check:
        np.testing.assert_array_equal(y_sums, want.view(np.uint32).sum(axis=1, dtype=np.uint32))


def test_core_refuses_what_does_not_fit(kernels: _dispatch.Context, rng: np.random.Generator) -> None:
    table = _rows.Table(_formats.add_digests(random_fused(rng, 9, 20), 20), 20)
    indices, offsets, out = np.arange(6), ends([3, 3]), np.full((2, 20), 7, np.float32)

    def pool(weights: Array | None = None, target: Array = out, sums: Array | None = None, starts: Array = offsets) -> None:
        _embedding.pool(kernels, table, indices, starts, weights, target, 3, 0, 0.0, False, 1, sums)

    for message, arguments in {
        "out: got shape": {"target": np.empty((3, 20), np.float32)},
        r"out: got shape \(2, 19\), expected \(2, 20\)": {"target": out[:, :19]},
        "with contiguous rows": {"target": np.empty((2, 40), np.float32)[:, ::2]},
        "per_sample_weights: got 5, expected one per index, 6": {"weights": np.ones(5, np.float32)},
        "y_sums: got 3, expected 2": {"sums": np.empty(3, np.uint32)},
        "offsets: got 5 at the end, expected the number of indices, 6": {"starts": ends([3, 2])},
        r"out: got shape .*expected \(-1, 20\)": {"starts": offsets[:0]},
    }.items():
        with pytest.raises(ValueError, match=message):
            pool(**arguments)
    assert (out == 7).all()
    with pytest.raises(ValueError, match="rows: got 36 bytes each, expected 40 for dim 20"):
        _rows.Table(np.zeros((2, 36), np.uint8), 20)
    with pytest.raises(ValueError, match="rows: got 0 columns of 8 bits, expected at least 1"):
        _rows.Table(np.zeros((2, 16), np.uint8), 0)


# --- rows ---


def naive_rows(table: Array) -> Array:
    """Fused rows by the formulas, one number at a time."""
    made = []
    for row in table.astype(np.float32):
        low, extent = min(row), max(row) - min(row)
        inverse = np.float32(255) / (extent + np.float32(1e-8))
        params = np.array([extent / np.float32(255), low], "<f4").tobytes()
        made.append(bytes(int(np.rint((x - low) * inverse)) for x in row) + params)
    return np.frombuffer(b"".join(made), np.uint8).reshape(len(table), -1)


@pytest.mark.parametrize("size", [1e-44, 1e-39, 1e-12, 1e-7, 1, 1e5, 1e37])
@pytest.mark.parametrize("dim", [1, 5, 8, 33])
def test_quantised_rows_follow_the_formulas(dim: int, size: float, rng: np.random.Generator) -> None:
    table = rng.normal(size=(20, dim)) * size
    table[0] = 0
    table[1] = size  # constant
    table[2], table[3] = -np.abs(table[2]), np.abs(table[3])
    table[4] = np.linspace(-size, size, dim)
    table = table.astype(np.float32)
    bag = sedq.EmbeddingBag.from_float(table)
    fused = bag.to_fused()
    np.testing.assert_array_equal(fused, naive_rows(table))
    assert (bag.shape, bag.mode, bag.bits) == ((20, dim), "sum", 8)
    params = np.ascontiguousarray(fused[:, dim:]).view("<f4")
    assert params[1].tolist() == [0, np.float32(size)]
    np.testing.assert_array_equal(bag([[1]])[0], table[1])
    values = params[:, :1].astype(np.float64) * fused[:, :dim] + params[:, 1:]
    steps = params[:, :1] * 0.501 + (1e-8 if size < 1 else 0) + 2.0**-22 * np.abs(table) + 1e-44
    assert (np.abs(values - table) <= steps).all()


@pytest.mark.parametrize(
    "form", [lambda t: t.tolist(), lambda t: np.asfortranarray(t), lambda t: np.repeat(t, 2, 1)[:, ::2], np.float64]
)
def test_forms_of_tables(form: Any, rng: np.random.Generator) -> None:
    table = rng.normal(size=(6, 9)).astype(np.float32)
    np.testing.assert_array_equal(sedq.EmbeddingBag.from_float(form(table)).to_fused(), naive_rows(table))
    whole = rng.integers(-9, 9, (6, 9))
    np.testing.assert_array_equal(sedq.EmbeddingBag.from_float(whole).to_fused(), naive_rows(whole))


@pytest.mark.parametrize("dim", [1, 7, 8, 9, 64, 300])
def test_fused_rows_come_back(dim: int, rng: np.random.Generator) -> None:
    fused = random_fused(rng, 13, dim)
    frozen = fused.copy()
    frozen.flags.writeable = False
    for rows in (fused, frozen, np.asfortranarray(fused), np.repeat(fused, 2, 0)[::2], fused[::-1][::-1]):
        bag = sedq.EmbeddingBag.from_fused(rows, dim=dim, layout="torch", bits=8)
        np.testing.assert_array_equal(bag.to_fused(), fused)
        assert not np.may_share_memory(bag.table.rows, rows)
        assert bag.shape == (13, dim)
        assert bag.bad_rows() == []
    fused[:] = 0  # the bag has its own copy
    np.testing.assert_array_equal(bag.to_fused(), frozen)


@pytest.mark.parametrize("first", [0, 1, 2**33])
@pytest.mark.parametrize("dim", [1, 8, 33, 257])
def test_digests_are_the_oracle(dim: int, first: int, rng: np.random.Generator) -> None:
    fused = random_fused(rng, 20, dim)
    fused[0, :dim], fused[1, dim:], fused[2, :dim] = 255, 0xFE, 255
    rows = _formats.add_digests(fused, dim, first)
    width = _embedding.row_bytes(dim)
    assert rows.shape == (20, width)
    assert width == -(-dim // 8) * 8 + 16
    assert rows.ctypes.data % 64 == 0
    stored = np.ascontiguousarray(rows[:, -8:]).view("<u8")[:, 0]
    np.testing.assert_array_equal(stored, oracles.row_digests(fused, first))
    np.testing.assert_array_equal(rows[:, :dim], fused[:, :dim])
    assert not rows[:, dim:-16].any()
    np.testing.assert_array_equal(_formats.strip_digests(rows, dim), fused)
    with pytest.raises(ValueError, match=r"rows: got .* bytes each, expected"):
        _rows.Table(rows, dim + 8)


@pytest.mark.parametrize("dim", [65_793, 65_794, 70_000])
def test_the_widest_rows(dim: int, kernels: _dispatch.Context) -> None:
    """The code sum has 24 bits in a digest: wider rows than hold in it are refused, or work."""
    fused = np.full((2, dim + 8), 255, np.uint8)
    fused[:, dim:] = np.array([0.5, -1], "<f4").view(np.uint8)
    if dim == 65_793:
        bag = sedq.EmbeddingBag.from_fused(fused)
        assert (bag([[0, 1, 1]], on_error="raise") == 3 * 126.5).all()
        return
    with pytest.raises(ValueError, match=r"expected .*65793"):
        sedq.EmbeddingBag.from_fused(fused)
    with pytest.raises(ValueError, match=r"expected .*65793"):
        sedq.EmbeddingBag.from_float(np.eye(2, dim, dtype=np.float32))


def test_repr_names_what_it_is() -> None:
    bag = sedq.EmbeddingBag.from_float(np.ones((3, 4), np.float32), mode="mean")
    assert repr(bag) == "<EmbeddingBag 3 x 4, 8 bit, mode='mean'>"
