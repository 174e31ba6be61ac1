"""The packaged trace, and the synthetic one against the histogram that it is fitted to."""

from __future__ import annotations

from importlib import resources

import numpy as np
import pytest

import sedq
from sedq.datasets import Trace, load_pydocs_trace, synthetic_trace
from sedq.datasets._traces import RATES, _rows_of_rates, rate_shares, reuse_histogram

pytestmark = pytest.mark.any_isa


def check_csr(trace: Trace) -> None:
    assert trace.indices.dtype == trace.offsets.dtype == np.int64
    assert trace.offsets[0] == 0
    assert trace.offsets[-1] == len(trace.indices)
    assert (np.diff(trace.offsets) >= 0).all()
    assert len(trace.indices) == 0 or 0 <= trace.indices.min() <= trace.indices.max() < trace.rows


def shares(trace: Trace) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the rows used and of the look-ups by reuse factor, in the bins of the published histogram."""
    reuse = np.bincount(trace.indices)
    reuse = reuse[reuse > 0]
    edges = [*reuse_histogram()["reuse_above"], np.iinfo(np.int64).max]
    bins = np.searchsorted(edges, reuse) - 1
    rows, lookups = np.bincount(bins, minlength=17), np.bincount(bins, reuse, minlength=17)
    return rows / rows.sum(), lookups / lookups.sum()


def test_pydocs_is_as_documented() -> None:
    trace = load_pydocs_trace()
    check_csr(trace)
    lengths = np.diff(trace.offsets)
    assert (len(trace), len(trace.indices), trace.rows) == (2608, 117_420, 32_000)
    assert (lengths.min(), lengths.max()) == (1, 1395)
    assert lengths.mean() == pytest.approx(45, abs=0.1)
    assert np.quantile(lengths, 0.99) == pytest.approx(212, abs=1)
    ranked = np.sort(np.bincount(trace.indices))[::-1][:1000]
    slope, _ = np.polyfit(np.log(np.arange(1, 1001)), np.log(ranked), 1)
    assert -1.4 < slope < -0.9


def test_pydocs_can_be_pooled() -> None:
    trace = load_pydocs_trace().batch(10, 20)
    table = np.random.default_rng(0).normal(size=(trace.rows, 8)).astype(np.float32)
    pooled = sedq.EmbeddingBag.from_float(table)(trace.indices, trace.offsets, include_last_offset=True)
    assert pooled.shape == (10, 8)


@pytest.mark.parametrize("bounds", [(0, 5), (2600, 9999), (-3, 10**9), (9, 3), (7, 7)])
def test_batch_is_a_slice_with_rebased_offsets(bounds: tuple[int, int]) -> None:
    whole = load_pydocs_trace()
    part = whole.batch(*bounds)
    check_csr(part)
    bags = range(len(whole))[slice(*bounds)]
    assert len(part) == len(bags)
    for here, bag in enumerate(bags):
        mine = part.indices[slice(*part.offsets[here : here + 2])]
        np.testing.assert_array_equal(mine, whole.indices[slice(*whole.offsets[bag : bag + 2])])


def test_the_packaged_histogram_is_whole() -> None:
    published = reuse_histogram()
    assert len(published["reuse_above"]) == len(published["share_of_rows"]) == len(published["share_of_lookups"]) == 17
    assert sum(published["share_of_rows"]) == pytest.approx(1, abs=0.003)
    assert sum(published["share_of_lookups"]) == pytest.approx(1, abs=0.003)
    assert published["lookups"] / published["rows_used"] == pytest.approx(6.9, abs=0.05)


def test_the_mixture_has_as_many_rows_used_as_published() -> None:
    v, published = rate_shares(), reuse_histogram()
    assert v.sum() == pytest.approx(1)
    assert (v >= 0).all()
    used = (v / RATES * -np.expm1(-RATES)).sum()
    assert 1 / used == pytest.approx(published["lookups"] / published["rows_used"], rel=0.01)


def test_synthetic_reuse_is_that_published() -> None:
    trace = synthetic_trace(65_536, rng=0)
    check_csr(trace)
    rows, lookups = shares(trace)
    published = reuse_histogram()
    np.testing.assert_allclose(rows, published["share_of_rows"], atol=0.002)
    np.testing.assert_allclose(lookups[:12], published["share_of_lookups"][:12], atol=0.002)
    # so few look-ups can't reach the highest reuse factors: those rows are the few most popular ones
    assert lookups[12:].sum() == pytest.approx(sum(published["share_of_lookups"][12:]), abs=0.005)
    assert len(trace.indices) / len(trace) == pytest.approx(15.8, rel=0.02)


def test_uniform_look_ups_would_fail_the_comparison() -> None:
    trace = synthetic_trace(65_536, rng=0)
    uniform = Trace(np.random.default_rng(0).integers(0, trace.rows, len(trace.indices)), trace.offsets, trace.rows)
    assert np.abs(shares(uniform)[1] - reuse_histogram()["share_of_lookups"]).max() > 0.1


def test_popular_rows_are_not_neighbours() -> None:
    reuse = np.bincount(synthetic_trace(4096, rows=10_000).indices, minlength=10_000)
    top = np.sort(np.argsort(reuse)[-100:])
    assert top.max() > 9000
    assert top.min() < 1000


def test_synthetic_is_deterministic_and_seeded() -> None:
    first, again, other = (synthetic_trace(300, rng=seed) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first.indices, again.indices)
    np.testing.assert_array_equal(first.offsets, again.offsets)
    assert first.rows == again.rows
    assert not np.array_equal(first.indices, other.indices)
    generator = np.random.default_rng(4)
    np.testing.assert_array_equal(synthetic_trace(300, rng=generator).indices, first.indices)
    assert not np.array_equal(synthetic_trace(300, rng=generator).indices, first.indices)


@pytest.mark.parametrize(("bags", "rows", "pooling"), [(0, None, None), (1, 64, 0.5), (50, 64, 200.0), (7, 10**6, 1.0)])
def test_sizes(bags: int, rows: int | None, pooling: float | None) -> None:
    trace = synthetic_trace(bags, rows=rows, pooling=pooling)
    check_csr(trace)
    assert len(trace) == bags
    assert trace.rows == (rows or 64)


def test_pooling_is_the_mean() -> None:
    lengths = np.diff(synthetic_trace(20_000, rows=1000, pooling=3.0).offsets)
    assert lengths.mean() == pytest.approx(3, rel=0.05)
    assert lengths.min() == 0


@pytest.mark.parametrize("rows", [64, 65, 1000, 123_457])
def test_rows_are_divided_among_the_rates(rows: int) -> None:
    held = rate_shares() / RATES
    counts = _rows_of_rates(held, rows)
    assert counts.sum() == rows
    assert (counts[held > 0] >= 1).all()
    assert (counts[held == 0] == 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bags": -1}, "bags: got -1"),
        ({"bags": 2.5}, "bags: got"),
        ({"rows": 63}, "rows: got 63"),
        ({"rows": True}, "rows: got"),
        ({"pooling": 0}, "pooling: got 0"),
        ({"pooling": float("nan")}, "pooling: got nan"),
        ({"bags": 2**31}, "bags, pooling: got 2147483648 bags"),
    ],
)
def test_wrong_sizes_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        synthetic_trace(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["pydocs.npz", "reuse.json", "LICENSE-pydocs.md", "LICENSE-reuse.md"])
def test_files_are_installed(name: str) -> None:
    assert resources.files("sedq.datasets").joinpath(name).is_file()
