"""Tables of every number of bits and layout: pooling is the oracle's, rows come back."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest

import sedq
from helpers import oracles
from helpers.rows import BITS, LAYOUTS, bits_equal, fused_rows, in_layout, tables
from sedq import faults
from sedq._core import _dispatch, _rows
from sedq.embedding import _formats

DIMS = [*range(1, 36), 47, 63, 64, 65, 70, 96, 127, 128, 130, 200, 257]
WEIGHTS = np.array([1, -1, 0, -0.0, 0.3, -7.5, 1e-30, 1e4], np.float32)
LENGTHS = (0, 1, 3, 0, 8, 9, 20, 0)


# --- pooling ---


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dim", DIMS)
def test_pooling_is_the_oracle(dim: int, bits: int, kernels: _dispatch.Context) -> None:
    rng = np.random.default_rng([dim, bits])
    fused = fused_rows(rng, 11, dim, bits, half=True)
    offsets = np.cumsum([0, *LENGTHS])
    indices = rng.integers(0, 11, offsets[-1])
    weights = rng.choice(WEIGHTS, len(indices))
    layout, align = LAYOUTS[dim % len(LAYOUTS)]
    with sedq.monitor() as seen:
        for mode, w in itertools.product(("sum", "mean"), (None, weights)):
            want = oracles.bag(fused, indices, offsets, w, mode, bits=bits, dim=dim)
            for bag in tables(fused, dim, bits, layout, align, mode=mode):
                for check, dtype in (("off", np.int32), ("exact", np.int64), ("exact", np.int32), ("full", np.int64)):
                    got = bag(indices.astype(dtype), offsets, w, True, check=check)
                    bits_equal(got, want, f"{bag}, weighted {w is not None}, {check}")
    assert seen.detections == 0
    assert seen.checks == {"EmbeddingBag": 4 * 2 * 3 * len(LENGTHS)}


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("layout", "align"), LAYOUTS)
def test_layouts_hold_the_same_table(layout: str, align: int, bits: int, kernels: _dispatch.Context) -> None:
    rng = np.random.default_rng(bits)
    for dim in (1, 5, 8, 31, 64, 100):
        fused = fused_rows(rng, 9, dim, bits, half=True)
        indices = rng.integers(0, 9, (4, 7))
        want = oracles.bag(fused, indices.ravel(), np.arange(5) * 7, bits=bits, dim=dim)
        for bag in tables(fused, dim, bits, layout, align):
            bits_equal(bag(indices, on_error="raise"), want)
            assert bag.shape == (9, dim)
            assert bag.bits == bits
            assert bag.bad_rows() == []
            back = bag.to_fused(layout, align=align)
            width = _formats.geometry(layout, bits, dim).width
            np.testing.assert_array_equal(back[:, :width], in_layout(fused, dim, bits, layout, align)[:, :width])
            assert not back[:, width:].any()
            np.testing.assert_array_equal(bag.to_fused(), fused)


@pytest.mark.parametrize("bits", BITS)
def test_a_long_bag_is_the_same_on_any_number_of_threads(bits: int, kernels: _dispatch.Context) -> None:
    rng = np.random.default_rng(bits)
    fused = fused_rows(rng, 50, 24, bits)
    lengths = [3, 4096, 4097, 0, 9000]
    offsets = np.cumsum([0, *lengths])
    indices, weights = rng.integers(0, 50, offsets[-1]), rng.normal(size=offsets[-1]).astype(np.float32)
    bag = sedq.EmbeddingBag.from_fused(fused, bits=bits, mode="mean")
    want = oracles.bag(fused, indices, offsets, weights, "mean", bits=bits)
    for threads, check in itertools.product((1, 2, 3), ("off", "exact", "full")):
        bits_equal(bag(indices, offsets, weights, True, check=check, on_error="raise", num_threads=threads), want)


# --- storage ---


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dim", [1, 8, 33, 65])
def test_digests_are_the_oracle(dim: int, bits: int, kernels: _dispatch.Context, rng: np.random.Generator) -> None:
    fused = fused_rows(rng, 20, dim, bits, half=True)
    want = oracles.row_digests(fused, bits=bits, dim=dim)
    for bag in tables(fused, dim, bits, "torch", 1):
        np.testing.assert_array_equal(bag.table.data.digests, want)
        np.testing.assert_array_equal(_rows.digests_of(bag.table.data, context=kernels), want)
        np.testing.assert_array_equal(_rows.digests_of(bag.table.data, 3, 5, kernels), want[3:8])
        for first, count in ((-1, 2), (19, 2), (0, -1)):
            with pytest.raises(IndexError):
                _rows.digests_of(bag.table.data, first, count)
    shifted = _formats.add_digests(fused, dim, 2**33, bits=bits)
    np.testing.assert_array_equal(
        shifted[:, -8:].copy().view("<u8")[:, 0], oracles.row_digests(fused, 2**33, bits=bits, dim=dim)
    )


@pytest.mark.parametrize("bits", BITS)
def test_a_mapped_file_is_read_where_it_is(bits: int, tmp_path: Path, kernels: _dispatch.Context) -> None:
    rng = np.random.default_rng(bits)
    fused = fused_rows(rng, 300, 21, bits)
    (tmp_path / "rows").write_bytes(fused.tobytes())
    mapped = np.memmap(tmp_path / "rows", np.uint8, "r", shape=fused.shape)
    seen: list[tuple[int, int]] = []
    bag = sedq.EmbeddingBag.view_fused(mapped, bits=bits, dim=21, progress=lambda done, rows: seen.append((done, rows)))
    assert seen[-1] == (300, 300)
    assert np.shares_memory(bag.table.rows, mapped)
    indices = rng.integers(0, 300, (20, 9))
    indices[0] = 299  # nothing beyond the last row is read
    want = oracles.bag(fused, indices.ravel(), np.arange(21) * 9, bits=bits, dim=21)
    bits_equal(bag(indices, on_error="raise"), want)
    twin = pickle.loads(pickle.dumps(bag))
    bits_equal(twin(indices, on_error="raise"), want)
    assert bag.restore([3]) == []
    with pytest.raises(ValueError, match="expected one with rows of its own"):
        faults.flip_row_bit(bag, 0, 0)


def test_rows_that_lie_apart_and_the_progress_of_many(rng: np.random.Generator) -> None:
    """A slice of a wider array is read where it is; digests of a large table are made piece by piece."""
    wide = rng.integers(0, 256, (5, 50), dtype=np.uint8)
    wide[:, 30:38] = np.ones(2, "<f4").view(np.uint8)
    bag = sedq.EmbeddingBag.view_fused(wide[:, 10:38])
    bits_equal(bag([[1, 4]]), sedq.EmbeddingBag.from_fused(wide[:, 10:38].copy())([[1, 4]]))
    with pytest.raises(ValueError, match="bytes that lie apart"):
        sedq.EmbeddingBag.view_fused(np.repeat(wide[:, 10:38], 2, axis=1)[:, ::2])
    seen: list[int] = []
    sedq.EmbeddingBag.view_fused(np.zeros((3000, 2**14), np.uint8), progress=lambda done, rows: seen.append(done))
    assert seen == [1024, 2048, 3000]


def test_rows_of_ours_stand_one_right_after_another() -> None:
    """Scrubbing goes from row to row by their width."""
    rows = _formats.add_digests(fused_rows(np.random.default_rng(0), 6, 8, 8), 8)
    for apart in (rows[::2], rows[::-1]):
        with pytest.raises(ValueError, match=r"rows: got rows -?\d+ bytes apart, expected 24, one right after another"):
            _rows.Table(apart, 8)
    assert _rows.Table(rows[:1:2], 8).num_rows == 1


@pytest.mark.parametrize("bits", [16, 32])
def test_float_arrays_are_taken_as_they_are(bits: int, rng: np.random.Generator) -> None:
    table = rng.normal(size=(9, 7)).astype(f"f{bits // 8}")
    for make in (sedq.EmbeddingBag.from_fused, sedq.EmbeddingBag.view_fused):
        np.testing.assert_array_equal(make(table, bits=bits)(np.arange(9)[:, None]), table.astype(np.float32))
        table[2, 3] = np.inf
        with pytest.raises(ValueError, match="rows: got values or sums that are not finite in row 2, expected finite"):
            make(table, bits=bits)
        table[2, 3] = 0


@pytest.mark.parametrize("bits", BITS)
def test_tables_from_floats(bits: int, rng: np.random.Generator) -> None:
    table = rng.normal(size=(50, 19)).astype(np.float32)
    table[0], table[1] = 0, 0.25
    bag = sedq.EmbeddingBag.from_float(table, bits=bits, keep_source=True)
    got = bag(np.arange(50)[:, None])
    step = (table.max(axis=1) - table.min(axis=1)) / (2 ** min(bits, 8) - 1) if bits <= 8 else np.zeros(50)
    assert (abs(got - table) <= 0.51 * step[:, None] + 2e-3 * (bits != 32) + 1e-6 * (bits == 8)).all()
    np.testing.assert_array_equal(got[0], 0)
    np.testing.assert_array_equal(got[1], 0.25)
    for bit in (0, 8 * _rows.code_bytes(19, bits) + 3):
        faults.flip_row_bit(bag, 7, bit)
        with sedq.monitor() as seen:
            bits_equal(bag(np.arange(50)[:, None]), got)
        assert {e.verdict for e in seen.events} == {"memory"}


# --- errors ---


def test_rows_that_do_not_fit_are_refused(rng: np.random.Generator) -> None:
    make, rows = sedq.EmbeddingBag.from_fused, np.zeros((3, 24), np.uint8)
    for message, given in {
        "layout: got 'fbgemm', expected 'torch', 'half' or 'tbe'": {"layout": "fbgemm"},
        "bits: got 3, expected 8, 4, 2, 16 or 32": {"bits": 3},
        "dim: got 17, but rows of 24 bytes hold 16 codes": {"dim": 17},
        "dim: got 38, but rows of 24 bytes hold 40 codes": {"dim": 38, "bits": 4},
        "dim: got 3, but rows of 24 bytes hold 20 codes": {"dim": 3, "layout": "tbe"},
        "dim: got 0, expected an integer from 1": {"dim": 0},
    }.items():
        for way in (make, sedq.EmbeddingBag.view_fused):
            with pytest.raises(ValueError, match=message):
                way(rows, **given)
    assert make(rows, bits=4, dim=39).shape == (3, 39)
    for shape in ((0, 24), (3, 4), (3, 8)):
        with pytest.raises(ValueError, match="rows: got "):
            make(np.zeros(shape, np.uint8))
    bag = make(np.hstack([np.zeros((2, 4), np.uint8), np.full((2, 2), 0.1, "<f4").view(np.uint8)]))
    with pytest.raises(ValueError, match=r"layout: got 'half', but scale 0.1.* and bias 0.1.* of row 0 are no float16"):
        bag.to_fused("half")
    with pytest.raises(ValueError, match="align: got 0, expected"):
        bag.to_fused(align=0)
    for bits, value in ((4, 1e6), (2, -1e6), (16, 1e5)):
        with pytest.raises(ValueError, match=r"weight: got .* overflow"):
            sedq.EmbeddingBag.from_float(np.array([[0, value]]), bits=bits)
    nan = np.full((2, 8), 0, np.uint8)
    nan[1, 5] = 0x7C  # an infinite scale
    with pytest.raises(ValueError, match=r"rows: got scale inf and bias 0.0 in row 1, expected finite ones"):
        make(nan, bits=4)


DTYPES = ("f8", "f4", "f2", "u1", "i1", "u2", "i4", "i8", "?", "O", "S1", "M8[D]", "c8", ">f4", ">f2", "V4")


@pytest.mark.parametrize("bits", BITS)
def test_rows_are_bytes_or_floats_of_as_many_bits_and_nothing_else(bits: int) -> None:
    """Float64 in particular, which NumPy finds equal to no dtype at all."""
    for dtype in map(np.dtype, DTYPES):
        rows = np.zeros((10, 16), dtype)
        for make in (sedq.EmbeddingBag.from_fused, sedq.EmbeddingBag.view_fused):
            if dtype in (np.uint8, {16: np.float16, 32: np.float32}.get(bits, np.uint8)):
                assert make(rows, bits=bits).shape[0] == 10
                continue
            with pytest.raises(ValueError, match=r"rows: got .*, expected (uint8|float)"):
                make(rows, bits=bits)
    bag = sedq.EmbeddingBag.from_float(np.ones((10, 16)), bits=bits)
    with pytest.raises(ValueError, match="rows: got 5 bytes each, expected a multiple of 4, float32 columns"):
        sedq.EmbeddingBag.from_fused(np.zeros((3, 5), np.uint8), bits=32)
    bag.update_rows([1], np.zeros((1, 16)))  # values, not fused rows
    np.testing.assert_array_equal(bag([[1]]), np.zeros((1, 16), np.float32))


@pytest.mark.parametrize("bits", BITS)
def test_the_widest_rows(bits: int, kernels: _dispatch.Context) -> None:
    """Their bytes have 24 bits in a digest."""
    dim = 65_793 * 8 // bits
    size = 0 if bits > 8 else 8 if bits == 8 else 4
    width = _rows.code_bytes(dim, bits) + size
    rows = np.zeros((2, width), np.uint8)
    rows[:, : width - size] = 255 if bits <= 8 else 0
    bag = sedq.EmbeddingBag.from_fused(rows, bits=bits, dim=dim)
    assert not bag([[0, 1, 1]], on_error="raise").any()
    with pytest.raises(ValueError, match=f"expected at most {dim} of {bits} bits"):
        sedq.EmbeddingBag.from_fused(np.zeros((2, width + 4), np.uint8), bits=bits)
