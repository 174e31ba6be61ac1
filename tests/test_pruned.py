"""Padding and pruned rows: pooled as an oracle has it row by row, and a mapping that memory corrupted is noticed."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sedq
from sedq._core import _dispatch

Array = NDArray[Any]
ROWS, DIM, ORIGINAL = 11, 5, 17


def pruned(
    bits: int = 32, mode: Any = "sum", dtype: Any = np.int64, **kwargs: Any
) -> tuple[sedq.EmbeddingBag, Array, Array]:
    """A bag, its rows, and the row of each index, -1 where there is none."""
    rng = np.random.default_rng(3)
    table = rng.integers(-3, 4, (ROWS, DIM)).astype(np.float32)
    mapping = np.full(ORIGINAL, -1, dtype)
    mapping[rng.permutation(ORIGINAL)[:ROWS]] = rng.permutation(ROWS)
    kept = mapping.copy()
    bag = sedq.EmbeddingBag.from_float(table, bits=bits, mode=mode, index_mapping=mapping, **kwargs)
    return bag, table, kept


def oracle(table: Array, mapping: Array, padding: int | None, mode: str, bags: list[Array], weights: list[Array]) -> Array:
    out = np.zeros((len(bags), table.shape[1]))
    for number, (indices, factors) in enumerate(zip(bags, weights, strict=True)):
        counted = 0
        for index, factor in zip(indices.tolist(), factors.tolist(), strict=True):
            if index == padding:
                continue
            counted += 1
            if mapping[index] >= 0:
                out[number] += factor * table[mapping[index]].astype(float)
        if mode == "mean" and counted:
            out[number] /= counted
    return out.astype(np.float32)


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("padding", [None, 0, 4, -1, -3])
def test_as_the_oracle(padding: int | None, mapped: bool, dtype: Any, mode: str, kernels: _dispatch.Context) -> None:
    if padding is None and not mapped:
        return
    bag, table, mapping = pruned(mode=mode, dtype=dtype, padding_idx=padding)
    if not mapped:
        bag, mapping = sedq.EmbeddingBag.from_float(table, bits=32, mode=mode, padding_idx=padding), np.arange(ROWS)
    indices = len(mapping)
    padded = None if padding is None else padding % indices
    rng = np.random.default_rng(0)
    lengths = [0, 1, 7, 12, 1, 0, 30]
    bags = [rng.integers(0, indices, n).astype(dtype) for n in lengths]
    if padded is not None:
        bags[1][:] = padded  # a bag of nothing else
    if mapped:
        bags[4][:] = np.flatnonzero(mapping == -1)[0]
    ones = [np.ones(n, np.float32) for n in lengths]
    some = [rng.integers(-2, 3, n).astype(np.float32) for n in lengths]
    flat, starts = np.concatenate(bags), np.cumsum([0, *lengths]).astype(dtype)
    for check in ("off", "digest", "threshold", "exact", "full"):
        for factors in (ones, some):
            want = oracle(table, mapping, padded, mode, bags, factors)
            got = bag(flat, starts, np.concatenate(factors), True, check=check, on_error="raise")
            np.testing.assert_allclose(got, want, rtol=1e-6)
        np.testing.assert_allclose(
            bag(flat, starts[:-1], check=check), oracle(table, mapping, padded, mode, bags, ones), rtol=1e-6
        )
    matrix, factors = flat[:48].reshape(6, 8), np.concatenate(some)[:48].reshape(6, 8)
    np.testing.assert_allclose(
        bag(matrix, per_sample_weights=factors), oracle(table, mapping, padded, mode, list(matrix), list(factors)), rtol=1e-6
    )


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_every_flipped_bit_of_a_mapping_and_of_its_inverse_is_noticed(dtype: Any) -> None:
    bag, _, mapping = pruned(dtype=dtype, keep_source=True)
    every = np.arange(ORIGINAL)[:, None]
    sound, pruning = bag(every), bag.pruning
    assert pruning is not None
    wrong = 0
    for name in ("mapping", "inverse"):
        part = getattr(pruning, name)
        for at in range(len(part)):
            index = at if name == "mapping" else int(np.flatnonzero(mapping == at)[0])
            for bit in range(8 * part.itemsize):
                word = part[at : at + 1].view(f"u{part.itemsize}")
                word ^= word.dtype.type(1 << bit)
                wrong += not np.array_equal(bag(every, check="off"), sound)
                with (
                    sedq.monitor() as seen,
                    pytest.raises(sedq.SoftErrorDetected, match=rf"mapping is corrupted at \[{index}\]"),
                ):
                    bag(every, check=("digest", "threshold", "exact", "full")[bit % 4])
                assert [(e.kind, e.rung, e.verdict) for e in seen.events] == [("input", "raise", "memory")]
                word ^= word.dtype.type(1 << bit)
    assert wrong > 4 * ROWS, "with the check off these went unseen"
    np.testing.assert_array_equal(bag(every), sound)


def test_a_corrupted_mapping_is_dealt_with_as_settings_say() -> None:
    bag, table, mapping = pruned()
    assert bag.pruning is not None
    assert bag.pruning.mapping is not None
    index = int(np.flatnonzero(mapping >= 0)[0])
    other = [i for i in range(ORIGINAL) if i != index]
    for row, want in ((int(mapping[index]) ^ 1, table[int(mapping[index]) ^ 1]), (ROWS, np.zeros(DIM)), (-2, np.zeros(DIM))):
        bag.pruning.mapping[index] = row
        with warnings.catch_warnings(), sedq.monitor() as seen:
            warnings.simplefilter("error")
            np.testing.assert_array_equal(bag([[index]], check="off"), [want])
            bag([other])  # the others are sound
        assert seen.detections == 0
        with pytest.warns(sedq.SoftErrorWarning, match="input check"):
            np.testing.assert_array_equal(bag([[index]], on_error="warn"), [want])
        for on_error in ("raise", "recover"):
            with pytest.raises(sedq.SoftErrorDetected, match="input check"):
                bag([[index]], on_error=on_error)


def test_updates_and_restored_rows_go_by_the_numbers_of_rows() -> None:
    bag, table, mapping = pruned(keep_source=True)
    new = np.full((1, DIM), 9, np.float32)
    bag.update_rows([2], new)
    index = int(np.flatnonzero(mapping == 2)[0])
    np.testing.assert_array_equal(bag([[index]]), new)
    with pytest.raises(IndexError, match=f"indices: got {ROWS}, expected 0 to {ROWS - 1}"):
        bag.update_rows([ROWS], new)
    sedq.faults.flip_row_bit(bag, 3, 30)
    with sedq.monitor() as seen:
        np.testing.assert_array_equal(bag([np.flatnonzero(mapping == 3)]), table[3:4])
    assert seen.repairs == {"reloaded": 1}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"padding_idx": ROWS}, f"padding_idx: got {ROWS}"),
        ({"padding_idx": -ROWS - 1}, f"padding_idx: got {-ROWS - 1}"),
        ({"padding_idx": 1.5}, "padding_idx: got"),
        ({"index_mapping": [0, 0]}, "index_mapping: got row 0 more than once"),
        ({"index_mapping": [0, -2]}, "index_mapping: got -2 at position 1, expected -1 or a row below"),
        ({"index_mapping": [ROWS]}, f"index_mapping: got {ROWS} at position 0"),
        ({"index_mapping": [[0]]}, "index_mapping: got"),
        ({"index_mapping": [0.5]}, "index_mapping: got"),
    ],
)
def test_bad_options(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sedq.EmbeddingBag.from_float(np.zeros((ROWS, DIM)), **option)


def test_indices_are_those_of_the_mapping() -> None:
    bag, _, _ = pruned()
    for index in (ORIGINAL, -1):
        with pytest.raises(IndexError, match=f"indices: got {index} at position 1, expected 0 to {ORIGINAL - 1}"):
            bag([[0, index]])
