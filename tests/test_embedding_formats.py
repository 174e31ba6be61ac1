"""Tables of every number of bits and layout: pooling is the oracle's, rows come back, every flipped bit is detected."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sedq
from sedq import faults, reference
from sedq._core import _dispatch, _rows
from sedq.embedding import layouts

Array = NDArray[Any]
BITS = (8, 4, 2, 16, 32)
LAYOUTS = [("torch", 1), ("half", 1), ("tbe", 1), ("tbe", 16)]  # with the multiple of bytes that rows are padded to
DIMS = [*range(1, 36), 47, 63, 64, 65, 70, 96, 127, 128, 130, 200, 257]
WEIGHTS = np.array([1, -1, 0, -0.0, 0.3, -7.5, 1e-30, 1e4], np.float32)
LENGTHS = (0, 1, 3, 0, 8, 9, 20, 0)


def fused_rows(rng: np.random.Generator, rows: int, dim: int, bits: int, half: bool = False) -> Array:
    """Rows of layout ``torch``, with scales and biases of either sign; in 8 bits, of float16 numbers if `half`."""
    if bits > 8:
        return rng.normal(size=(rows, dim)).astype(f"<f{bits // 8}").view(np.uint8)
    params = rng.normal(size=(rows, 2)).astype("<f2")
    if bits == 8:
        params = params.astype("<f4") if half else rng.normal(size=(rows, 2)).astype("<f4")
    codes = layouts.pack_codes(rng.integers(0, 2**bits, (rows, dim), dtype=np.uint8), bits)
    return np.hstack([codes, params.view(np.uint8)])


def in_layout(fused: Array, dim: int, bits: int, layout: str, align: int) -> Array:
    """Rows of layout ``torch`` in another one, put together part by part; what pads them is not zero."""
    size = 0 if bits > 8 else 8 if bits == 8 else 4
    codes, params = fused[:, : fused.shape[1] - size], fused[:, fused.shape[1] - size :]
    if bits == 8 and layout != "torch":
        params = np.ascontiguousarray(params).view("<f4").astype("<f2").view(np.uint8)
    parts = [params, codes] if layout == "tbe" else [codes, params]
    width = codes.shape[1] + params.shape[1]
    return np.hstack([*parts, np.full((len(fused), -width % align), 0xA5, np.uint8)])


def tables(fused: Array, dim: int, bits: int, layout: str, align: int, **kwargs: Any) -> list[sedq.EmbeddingBag]:
    """Make a bag of rows of its own, and one over rows that are only read."""
    rows = in_layout(fused, dim, bits, layout, align)
    frozen = rows.copy()
    frozen.flags.writeable = False
    given = {"bits": bits, "layout": layout, "dim": dim} | kwargs
    return [sedq.EmbeddingBag.from_fused(rows, **given), sedq.EmbeddingBag.view_fused(frozen, **given)]


def bits_equal(got: Array, want: Array, message: str = "") -> None:
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32), err_msg=message)


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
            want = reference.bag(fused, indices, offsets, w, mode, bits=bits, dim=dim)
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
        want = reference.bag(fused, indices.ravel(), np.arange(5) * 7, bits=bits, dim=dim)
        for bag in tables(fused, dim, bits, layout, align):
            bits_equal(bag(indices, on_error="raise"), want)
            assert bag.shape == (9, dim)
            assert bag.bits == bits
            assert bag.bad_rows() == []
            back = bag.to_fused(layout, align=align)
            width = layouts.geometry(layout, bits, dim).width
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
    want = reference.bag(fused, indices, offsets, weights, "mean", bits=bits)
    for threads, check in itertools.product((1, 2, 3), ("off", "exact", "full")):
        bits_equal(bag(indices, offsets, weights, True, check=check, on_error="raise", num_threads=threads), want)


def test_a_fault_in_a_part_of_a_long_bag_is_detected(kernels: _dispatch.Context) -> None:
    rng = np.random.default_rng(0)
    bag = sedq.EmbeddingBag.from_float(rng.normal(size=(50, 24)), keep_source=True)
    indices = rng.integers(0, 50, (2, 9000))
    clean = bag(indices)
    for visit in range(6):
        fault = {"visit": visit, "element": 5, "flip": 1 << 30}
        with faults.accumulator_fault("bag", **fault):
            assert not np.array_equal(bag(indices, check="off"), clean)
        with faults.accumulator_fault("bag", **fault), sedq.monitor() as seen:
            np.testing.assert_array_equal(bag(indices), clean)
        assert [(e.row, e.kind, e.verdict) for e in seen.events] == [(visit // 3, "sum", "transient")]
    faults.flip_row_bit(bag, 7, 3)
    with sedq.monitor() as seen:
        np.testing.assert_array_equal(bag(indices), clean)
    assert {(e.row, e.kind, e.verdict) for e in seen.events} == {(0, "digest", "memory"), (1, "digest", "memory")}


# --- every bit ---


def detected(bag: sedq.EmbeddingBag, indices: Any, **kwargs: Any) -> set[tuple[int, str]]:
    try:
        bag(indices, on_error="raise", **kwargs)
    except sedq.SoftErrorDetected as error:
        return {(e.row, e.kind) for e in error.events}
    return set()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dim", [1, 5, 19, 66])
def test_every_bit_of_every_row_is_detected(dim: int, bits: int, kernels: _dispatch.Context) -> None:
    """Rows of ours: codes, what pads them, words, digest; once in a bag, twice, and 16 times."""
    bag = sedq.EmbeddingBag.from_fused(fused_rows(np.random.default_rng(dim), 3, dim, bits), bits=bits, dim=dim)
    stored, silent = bag._table.rows, 0
    for row in range(3):
        others = [r for r in range(3) if r != row]
        indices = np.array([[row] + others * 8, [row, row] + others * 7 + [others[0]], [row] * 17, others * 8 + [others[0]]])
        clean = bag(indices)
        for bit in range(8 * stored.shape[1]):
            faults.flip_bit(stored[row], bit // 8, bit % 8)
            with np.errstate(over="ignore", invalid="ignore"):
                silent += not np.array_equal(bag(indices, check="off"), clean)
            for check in ("digest", "exact"):
                found = detected(bag, indices, check=check)
                assert {r for r, kind in found if kind == "digest"} == {0, 1, 2}, f"row {row}, bit {bit}, {check}"
                assert {r for r, _ in found} == {0, 1, 2}
            assert bag.bad_rows() == [row]
            assert _rows.bad_in_range(bag._table, 0, 3, kernels) == [row]
            faults.flip_bit(stored[row], bit // 8, bit % 8)
        np.testing.assert_array_equal(bag(indices), clean)
    assert silent > 0.85 * 3 * dim * bits  # with the check off all but the last bits of floats were believed


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("layout", "align"), LAYOUTS)
def test_every_bit_of_rows_that_are_only_read_is_detected(
    layout: str, align: int, bits: int, kernels: _dispatch.Context
) -> None:
    """Codes, scale and bias where they lie, and the sidecar. What pads a row belongs to no one."""
    dim = 13
    rows = in_layout(fused_rows(np.random.default_rng(1), 3, dim, bits, half=True), dim, bits, layout, align)
    bag = sedq.EmbeddingBag.view_fused(rows, bits=bits, layout=layout, dim=dim)
    width, side = layouts.geometry(layout, bits, dim).width, bag._table.sidecar
    assert side is not None
    indices = np.array([[0, 1, 1], [1, 0, 2], [2, 2, 2]])
    clean = bag(indices)
    for row in range(3):
        hit = {b for b in range(3) if row in indices[b]}
        for memory, bit in [(rows, b) for b in range(8 * width)] + [(side, b) for b in range(8 * side.shape[1])]:
            faults.flip_bit(memory[row], bit // 8, bit % 8)
            found = detected(bag, indices)
            assert {r for r, kind in found if kind == "digest"} == hit, f"row {row}, bit {bit}"
            assert bag.bad_rows() == [row]
            assert _rows.bad_in_range(bag._table, 0, 3, kernels) == [row]
            faults.flip_bit(memory[row], bit // 8, bit % 8)
    rows[:, width:] = 0
    assert detected(bag, indices) == set()
    bits_equal(bag(indices), clean)


@pytest.mark.parametrize("bits", BITS)
def test_accumulator_faults_above_the_bound(bits: int, kernels: _dispatch.Context) -> None:
    rng = np.random.default_rng(bits)
    dim, length = 40, 6
    fused = fused_rows(rng, 9, dim, bits)
    codes, scale, bias = (a.astype(np.float64) for a in reference.unpack_rows(fused, bits))
    size = (abs(scale)[:, None] * abs(codes) + abs(bias)[:, None]).sum(axis=1)
    indices = rng.integers(0, 9, (2, length))
    weights = rng.normal(size=indices.shape).astype(np.float32)
    bag = sedq.EmbeddingBag.from_fused(fused, bits=bits)
    clean = bag(indices, None, weights)
    exact = (weights[..., None] * (scale[:, None] * codes + bias[:, None])[indices]).sum(axis=1)
    bound = (abs(weights) * size[indices]).sum(axis=1)[1] * (length + 7) * 2.0**-24
    beyond = 0
    for bit, element in itertools.product(range(32), (0, 17, 39)):
        fault = {"visit": 1, "element": element, "flip": 1 << bit}
        with faults.accumulator_fault("bag", **fault):
            silent = bag(indices, None, weights, check="off")
        changed = not np.array_equal(silent[1], clean[1])
        residual = silent[1].sum(dtype=np.float64) - exact[1].sum()
        with faults.accumulator_fault("bag", **fault):
            found = detected(bag, indices, per_sample_weights=weights)
        if abs(residual) > 1.01 * bound or not np.isfinite(residual):
            assert found == {(1, "sum")}, f"bit {bit}"
            beyond += 1
        elif abs(residual) < 0.9 * bound:
            assert found == set(), f"bit {bit}"
        with faults.accumulator_fault("bag", **fault | {"visit": 2}):  # every bag is visited twice
            assert ((1, "repeat") in detected(bag, indices, per_sample_weights=weights, check="full")) == changed
    assert beyond > 20


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_nothing_is_detected_without_a_fault(mode: Any, bits: int, kernels: _dispatch.Context) -> None:
    """Scales, biases, values and weights of magnitudes from denormal to huge, cancelling sums, rows of zeros."""
    rng = np.random.default_rng(bits)
    with sedq.monitor() as seen:
        for dim, (low, high) in itertools.product((1, 9, 33, 100), ((-24, -10), (-24, 14), (-3, 3), (10, 14))):
            fused = fused_rows(rng, 40, dim, bits)
            sizes = 2.0 ** rng.uniform(low, high, (40, dim if bits > 8 else 2)) * rng.choice([-1, 1], (40, 1))
            kind = {8: "<f4", 32: "<f4"}.get(bits, "<f2")
            raw = sizes.astype(kind).view(np.uint8)
            fused[:, fused.shape[1] - raw.shape[1] :] = raw
            fused[0] = 0
            for bag in tables(fused, dim, bits, "torch", 1, mode=mode):
                offsets = np.cumsum([0, *rng.integers(0, 12, 300), 1000, *rng.integers(0, 300, 9)])
                indices = rng.integers(0, 40, offsets[-1])
                spread = rng.uniform(-149, 60, len(indices))
                weights = (2.0**spread * rng.choice([-1, 1], len(indices))).astype(np.float32)
                bag(indices, offsets, None, True, on_error="raise")
                bag(indices, offsets, weights, True, on_error="raise")
    assert seen.detections == 0
    assert seen.total_checks == 16 * 2 * 2 * 310


# --- storage ---


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dim", [1, 8, 33, 65])
def test_digests_are_the_oracle(dim: int, bits: int, kernels: _dispatch.Context, rng: np.random.Generator) -> None:
    fused = fused_rows(rng, 20, dim, bits, half=True)
    want = reference.row_digests(fused, bits=bits, dim=dim)
    for bag in tables(fused, dim, bits, "torch", 1):
        np.testing.assert_array_equal(bag._table.digests, want)
        np.testing.assert_array_equal(_rows.digests_of(bag._table, context=kernels), want)
        np.testing.assert_array_equal(_rows.digests_of(bag._table, 3, 5, kernels), want[3:8])
        for first, count in ((-1, 2), (19, 2), (0, -1)):
            with pytest.raises(IndexError):
                _rows.digests_of(bag._table, first, count)
    shifted = layouts.add_digests(fused, dim, 2**33, bits=bits)
    np.testing.assert_array_equal(
        shifted[:, -8:].copy().view("<u8")[:, 0], reference.row_digests(fused, 2**33, bits=bits, dim=dim)
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
    assert np.shares_memory(bag._table.rows, mapped)
    indices = rng.integers(0, 300, (20, 9))
    indices[0] = 299  # nothing beyond the last row is read
    want = reference.bag(fused, indices.ravel(), np.arange(21) * 9, bits=bits, dim=21)
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
    rows = layouts.add_digests(fused_rows(np.random.default_rng(0), 6, 8, 8), 8)
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
