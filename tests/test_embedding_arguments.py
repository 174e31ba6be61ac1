"""EmbeddingBag refuses wrong arguments, says what it got and what it expected, and leaves `out` as it was."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import sedq
from sedq._core import _dispatch

ROWS, DIM, BAGS = 10, 8, 3
INDICES = np.arange(6)
OFFSETS = np.array([0, 2, 4])
FUSED = sedq.EmbeddingBag.from_float(np.ones((ROWS, DIM), np.float32)).to_fused()


@pytest.fixture
def bag() -> sedq.EmbeddingBag:
    return sedq.EmbeddingBag.from_float(np.random.default_rng(1).normal(size=(ROWS, DIM)), keep_source=True)


def refused(bag: sedq.EmbeddingBag, error: type[Exception], message: str, *args: Any, **kwargs: Any) -> None:
    """The call raises, with every level of checking, and `out` keeps what it held."""
    for check in ("off", "exact", "full"):
        out = np.full((BAGS, DIM), 7, np.float32)
        with sedq.monitor() as seen, pytest.raises(error, match=message):
            bag(*args, **{"out": out, "check": check} | kwargs)
        assert (out == 7).all()
        assert (seen.total_checks, seen.detections) == (0, 0)


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (np.int32, [-1, ROWS, 2**31 - 1, -(2**31)]),
        (np.int64, [-1, ROWS, 2**31, 2**32, 2**32 + 1, -(2**32), 2**63 - 1, -(2**63)]),
    ],
)
@pytest.mark.parametrize("position", [0, 7, 8, 15, 16, 17, 40])
def test_index_out_of_range(
    position: int, dtype: type, values: list[int], bag: sedq.EmbeddingBag, kernels: _dispatch.Context
) -> None:
    for value in values:
        indices = np.zeros(41, dtype)
        indices[position] = value
        message = f"indices: got {value} at position {position}, expected 0 to {ROWS - 1}"
        refused(bag, IndexError, message, indices, OFFSETS)
        refused(bag, IndexError, message, indices, OFFSETS, np.zeros(41, np.float32))


@pytest.mark.parametrize(
    "indices",
    [
        INDICES.astype(float), INDICES.astype(np.int8), INDICES.astype(np.uint32), INDICES.astype(np.uint64),
        INDICES.astype(bool), INDICES.astype(object), INDICES.astype(">i8"), [[[0, 1]]], 3, np.int64(3), None, "0", [0.5],
        ["a"], [2**70], [None], {"a": 1}, np.zeros((0, 3, 3), int), np.array(["2020-01-01"], "M8[D]"),
    ],
    ids=repr,
)  # fmt: skip
def test_indices_of_a_wrong_kind(indices: Any, bag: sedq.EmbeddingBag) -> None:
    message = "indices: got .*, expected 1-dimensional or 2-dimensional int32 or int64"
    refused(bag, ValueError, message, indices, OFFSETS)
    refused(bag, ValueError, message, indices)


def test_ragged_indices(bag: sedq.EmbeddingBag) -> None:
    refused(bag, ValueError, r"indices: got list .*, expected 1-dimensional", [[0, 1], [2]])


@pytest.mark.parametrize(
    ("offsets", "last", "message"),
    [
        ([1, 2, 4], False, "offsets: got 1 first, expected 0"),
        ([-1, 2, 4], False, "offsets: got -1 first, expected 0"),
        ([0, 4, 2], False, "offsets: got 2 after 4 at position 2, expected offsets that do not decrease"),
        ([0, -1, 2], False, "offsets: got -1 after 0 at position 1"),
        ([0, 2**62, 2], False, "offsets: got 2 after 4611686018427387904 at position 2"),
        ([0, 2, 7], False, "offsets: got 7 last, expected at most the number of indices, 6"),
        ([0, 2, 2**63 - 1], False, "offsets: got 9223372036854775807 last, expected at most .* 6"),
        ([], False, "offsets: got none for 6 indices"),
        ([], True, "offsets: got none, expected at least the last one"),
        ([0, 2, 4, 5], True, "offsets: got 5 at the end, expected the number of indices, 6"),
        ([0, 2, 4, 7], True, "offsets: got 7 at the end, expected the number of indices, 6"),
        ([0, 4, 2, 6], True, "offsets: got 2 after 4 at position 2"),
        ([0.0, 2.0, 4.0], False, "offsets: got float64 array of shape .3,., expected 1-dimensional int32 or int64"),
        ([[0, 2, 4]], False, "offsets: got int64 array of shape .1, 3., expected 1-dimensional"),
        (np.uint64([0, 2, 4]), False, "offsets: got uint64 array"),
        ([True, False], False, "offsets: got bool array"),
        (0, False, "offsets: got int64 array of shape ()"),
        ("abc", False, "offsets: got .*, expected 1-dimensional int32 or int64"),
        ([2**70], False, "offsets: got object array"),
        (None, False, "offsets: got None with one-dimensional indices, expected where each bag starts"),
    ],
    ids=str,
)
def test_offsets(offsets: Any, last: bool, message: str, bag: sedq.EmbeddingBag, kernels: _dispatch.Context) -> None:
    refused(bag, ValueError, message, INDICES, offsets, None, last)


def test_offsets_with_two_dimensional_indices(bag: sedq.EmbeddingBag) -> None:
    message = "offsets: got .* with two-dimensional indices, expected None"
    refused(bag, ValueError, message, INDICES.reshape(3, 2), OFFSETS)
    refused(bag, ValueError, message, INDICES.reshape(3, 2), OFFSETS.tolist())


@pytest.mark.parametrize(
    "weights",
    [
        np.full(6, np.nan), [0, 0, 0, 0, 0, np.inf], [-np.inf, 0, 0, 0, 0, 0], np.full(6, 1e39), np.ones(5), np.ones(7),
        np.ones((6, 1)), np.ones((2, 3)), np.ones(6, complex), np.ones(6, bool), np.ones(6, object), 1.0, "abc", ["a"] * 6,
        [[1], [2, 3]], [None] * 6, [],
    ],
    ids=repr,
)  # fmt: skip
def test_weights(weights: Any, bag: sedq.EmbeddingBag) -> None:
    refused(bag, ValueError, r"per_sample_weights: got .*, expected", INDICES, OFFSETS, weights)


def test_weights_of_two_dimensional_indices(bag: sedq.EmbeddingBag) -> None:
    message = r"per_sample_weights: got .* expected float32 of shape \(3, 2\)"
    refused(bag, ValueError, message, INDICES.reshape(3, 2), None, np.ones(6, np.float32))
    refused(bag, ValueError, message, INDICES.reshape(3, 2), None, np.ones((2, 3), np.float32))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("check", ["mod127", "all", "", 1, True, b"off", ["off"]]),
        ("on_error", ["ignore", "", 0, ["raise"], object()]),
        ("num_threads", [0, -1, 1.0, "2", True, 2**31, 2**40, 2**70, [1], np.float32(2)]),
        ("threshold", ["tight", "", "1e-5", -1e-9, np.nan, np.inf, -np.inf, None, [], [1.0, 2.0], {}, object(), 1j,
                       SimpleNamespace(threshold=None), SimpleNamespace(threshold=-1.0),
                       SimpleNamespace(threshold="bound")]),
    ],
)  # fmt: skip
def test_settings(name: str, values: list[Any], bag: sedq.EmbeddingBag) -> None:
    for value in values:
        refused(bag, ValueError, rf"^{name}: got .*, expected", INDICES, OFFSETS, **{name: value})


def test_settings_that_are_right(bag: sedq.EmbeddingBag) -> None:
    want = bag(INDICES, OFFSETS)
    for right in (
        {"num_threads": 1}, {"num_threads": np.int64(2)}, {"num_threads": 2**31 - 1}, {"threshold": 1}, {"threshold": 1e-4},
        {"threshold": np.float32(1e-4)}, {"threshold": SimpleNamespace(threshold=1e-4)}, {"check": "digest"},
        {"on_error": "warn"},
    ):  # fmt: skip
        np.testing.assert_array_equal(bag(INDICES, OFFSETS, **right), want)


def test_the_surrounding_level_may_not_be_one_of_a_bag(bag: sedq.EmbeddingBag) -> None:
    message = "check: got 'mod127', expected one of 'off', 'digest', 'threshold', 'exact', 'full' here"
    with sedq.config_context(check="mod127"):
        refused(bag, ValueError, message, INDICES, OFFSETS, check=None)


@pytest.mark.parametrize(
    "out",
    [
        np.empty((BAGS, DIM)), np.empty((BAGS, DIM + 1), np.float32), np.empty((BAGS + 1, DIM), np.float32),
        np.empty(BAGS * DIM, np.float32), np.empty((BAGS, DIM), ">f4"), [[0.0] * DIM] * BAGS, "out", 3,
        np.empty((BAGS, 2 * DIM), np.float32)[:, ::2], np.empty((DIM, BAGS), np.float32).T,
    ],
    ids=lambda o: f"{type(o).__name__} {getattr(o, 'shape', '')}",
)  # fmt: skip
def test_out(out: Any, bag: sedq.EmbeddingBag) -> None:
    with pytest.raises(ValueError, match=r"out: got .*, expected"):
        bag(INDICES, OFFSETS, out=out)


def test_out_that_is_read_only(bag: sedq.EmbeddingBag) -> None:
    out = np.full((BAGS, DIM), 7, np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out: got a read-only or non-contiguous array"):
        bag(INDICES, OFFSETS, out=out)
    assert (out == 7).all()


@pytest.mark.parametrize("argument", ["indices", "offsets", "per_sample_weights"])
def test_out_that_overlaps_an_input(argument: str, bag: sedq.EmbeddingBag) -> None:
    """Or else the output is written while the input is still read."""
    memory = np.zeros(BAGS * DIM, np.float32)
    out = memory.reshape(BAGS, DIM)
    given: dict[str, Any] = {"indices": INDICES, "offsets": OFFSETS, "per_sample_weights": np.ones(6, np.float32)}
    last = argument == "offsets"  # an offset more, or they are copied
    given["offsets"] = np.append(OFFSETS, 6) if last else OFFSETS
    kind = given[argument].dtype
    shared = memory.view(kind)[: len(given[argument])]
    shared[:] = given[argument]
    before = memory.copy()
    with pytest.raises(ValueError, match="out: got an array that overlaps an input"):
        bag(**given | {argument: shared}, include_last_offset=last, out=out)
    np.testing.assert_array_equal(memory, before)


# --- making a bag ---


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ([[1.0, np.nan]], "weight: got NaN or infinite values, expected finite ones"),
        ([[1.0, -np.inf]], "weight: got NaN or infinite values"),
        ([[1.0, 1e39]], "weight: got NaN or infinite values"),
        ([[-3e38, 3e38]], "weight: got a row whose range overflows float32"),
        ([1.0, 2.0], r"weight: got float64 array of shape \(2,\), expected float32 of shape \(any, any\)"),
        ([[[1.0]]], "weight: got float64 array of shape"),
        ([[1j]], "weight: got complex128 array"),
        ([[True]], "weight: got bool array"),
        ([["a"]], "weight: got <U1 array"),
        ([[None]], "weight: got object array"),
        (None, "weight: got "),
        ("abc", "weight: got "),
        ([[1.0], [1.0, 2.0]], "weight: got list"),
        (np.empty((3, 0)), "weight: got shape .*expected at least one column"),
        (np.empty((0, 3)), "weight: got shape .*expected at least one row"),
    ],
    ids=str,
)
def test_tables(weight: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sedq.EmbeddingBag.from_float(weight)


@pytest.mark.parametrize(
    "rows",
    [
        FUSED.astype(np.int8), FUSED.astype(np.float32), FUSED[0], FUSED[None], FUSED[:, :8], FUSED[:, :0], FUSED.tolist(),
        FUSED.tobytes(), None, 3, FUSED[:0],
    ],
    ids=lambda r: f"{type(r).__name__} {getattr(r, 'dtype', '')} {getattr(r, 'shape', '')}",
)  # fmt: skip
def test_fused_rows(rows: Any) -> None:
    with pytest.raises(ValueError, match=r"rows: got .*, expected"):
        sedq.EmbeddingBag.from_fused(rows)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", [0, 4])
def test_fused_rows_with_parameters_that_are_not_finite(which: int, value: float) -> None:
    rows = FUSED.copy()
    rows[7, DIM + which : DIM + which + 4] = np.array([value], "<f4").view(np.uint8)
    with pytest.raises(ValueError, match=r"rows: got scale .* and bias .* in row 7, expected finite ones"):
        sedq.EmbeddingBag.from_fused(rows)


@pytest.mark.parametrize(
    ("name", "values", "both"),
    [
        ("mode", ["max", "", None, 0, ["sum"]], True),
        ("bits", [3, 0, -8, 64, None, "8", 8.5, True], True),
        ("layout", ["fbgemm", "", None, 1], False),
        ("dim", [DIM - 1, DIM + 8, 0, -1, "8", DIM + 0.5], False),
    ],
)
def test_settings_of_a_table(name: str, values: list[Any], both: bool) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"{name}: got "):
            sedq.EmbeddingBag.from_fused(FUSED, **{name: value})
        if both:
            with pytest.raises(ValueError, match=f"{name}: got .*, expected"):
                sedq.EmbeddingBag.from_float(np.ones((2, 3)), **{name: value})


# --- row numbers ---


@pytest.mark.parametrize("method", ["bad_rows", "restore"])
@pytest.mark.parametrize("source", [False, True])
def test_row_numbers_out_of_range(source: bool, method: str, rng: np.random.Generator) -> None:
    bag = sedq.EmbeddingBag.from_float(rng.normal(size=(ROWS, DIM)), keep_source=source)
    before = bag.table.rows.copy()
    for number in (-1, ROWS, -ROWS, 2**62):
        with pytest.raises(IndexError, match=f"rows?:? .*{number}"):
            getattr(bag, method)([0, number])
        np.testing.assert_array_equal(bag.table.rows, before)
    assert bag.bad_rows() == []


@pytest.mark.parametrize("rows", [[1.5], [None], [2**70], "abc"], ids=repr)
@pytest.mark.parametrize("method", ["bad_rows", "restore"])
def test_row_numbers_of_a_wrong_kind(rows: Any, method: str, bag: sedq.EmbeddingBag) -> None:
    with pytest.raises((ValueError, IndexError), match=r"rows: got .*expected"):
        getattr(bag, method)(rows)
    assert bag.bad_rows() == []


@pytest.mark.parametrize("value", [1, "no", None])
def test_keep_source_is_a_switch(value: Any) -> None:
    with pytest.raises(ValueError, match=r"keep_source: got .*, expected True or False"):
        sedq.EmbeddingBag.from_float(np.ones((ROWS, DIM), np.float32), keep_source=value)
    with pytest.raises(ValueError, match=r"keep_source: got .*, expected True or False"):
        sedq.EmbeddingBag.from_fused(FUSED, keep_source=value)


# --- the constructor ---


@pytest.mark.parametrize(
    ("arguments", "named", "got"),
    [
        ((10, 4), {}, "got int 10, int 4, but"),
        ((), {"num_embeddings": 10, "embedding_dim": 4}, "got num_embeddings=, embedding_dim=, but"),
        ((np.ones((3, 4), np.float32),), {}, r"got float32 array of shape \(3, 4\), but"),
        ((), {}, "got no arguments, but"),
    ],
)
def test_the_constructor_names_the_classmethods(arguments: Any, named: dict[str, Any], got: str) -> None:
    with pytest.raises(TypeError, match=got) as raised:
        sedq.EmbeddingBag(*arguments, **named)
    for method in ("from_float(weight)", "from_fused(rows)", "view_fused(rows)"):
        assert f"EmbeddingBag.{method}" in str(raised.value)
