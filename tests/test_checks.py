"""Row and column checksums of a product: location and correction of wrong elements."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import sedq
from sedq.linear import checksums

M, N, K = 7, 20, 30


@pytest.fixture
def product(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, sedq.PackedWeights]:
    x = rng.integers(0, 256, (M, K), dtype=np.uint8)
    zero = rng.integers(-128, 128, N)
    packed = sedq.pack_weights(rng.integers(-128, 128, (N, K), dtype=np.int8), zero_point=zero)
    return sedq.matmul_integer(x, packed, 9), x, packed


def test_checksums_are_the_sums(product: tuple[np.ndarray, np.ndarray, sedq.PackedWeights]) -> None:
    c, x, packed = product
    np.testing.assert_array_equal(checksums.row_checksums(x, packed, 9), c.sum(axis=1, dtype=np.int64))
    np.testing.assert_array_equal(checksums.column_checksums(x, packed, 9), c.sum(axis=0, dtype=np.int64))
    report = checksums.locate(c, x, packed, 9)
    assert report.ok
    assert report.determined
    assert not report.elements
    assert not checksums.correct(c, x, packed, 9).corrected


def test_every_bit_of_an_element(product: tuple[np.ndarray, np.ndarray, sedq.PackedWeights]) -> None:
    c, x, packed = product
    sound = c.copy()
    for bit in range(32):
        for i, j in ((0, 0), (3, 11), (M - 1, N - 1)):
            c.view(np.uint32)[i, j] ^= np.uint32(1 << bit)
            report = checksums.correct(c, x, packed, 9)
            assert (report.corrected, report.determined) == (True, True)
            assert [e[:2] for e in report.elements] == [(i, j)]
            np.testing.assert_array_equal(c, sound)


CORRECTABLE = {
    "one row": [(2, 3, 5), (2, 7, -900), (2, 19, 2**30)],
    "one column": [(1, 4, 77), (5, 4, 78), (6, 4, -1)],
    "distinct": [(0, 1, 3), (4, 9, 1000), (6, 0, -77)],
}
NOT_CORRECTABLE = {
    "equal errors": [(0, 1, 3), (4, 9, 3)],
    "a rectangle that looks like one element": [(0, 0, 7), (0, 1, 7), (1, 0, -7)],
    "one row, cancelling": [(2, 3, 5), (2, 7, -5)],
    "two in a row and one beside": [(0, 1, 3), (0, 2, 4), (5, 6, 9)],
}


def strike(c: np.ndarray, errors: list[tuple[int, int, int]]) -> None:
    for i, j, error in errors:
        c[i, j] += np.int32(error)


@pytest.mark.parametrize("case", CORRECTABLE)
def test_what_residuals_determine(product: tuple[np.ndarray, np.ndarray, sedq.PackedWeights], case: str) -> None:
    c, x, packed = product
    sound = c.copy()
    strike(c, CORRECTABLE[case])
    assert not checksums.locate(c, x, packed, 9).ok
    report = checksums.correct(c, x, packed, 9)
    assert report.elements == sorted(CORRECTABLE[case])
    assert report.corrected
    np.testing.assert_array_equal(c, sound)


@pytest.mark.parametrize("case", NOT_CORRECTABLE)
def test_what_they_do_not(product: tuple[np.ndarray, np.ndarray, sedq.PackedWeights], case: str) -> None:
    c, x, packed = product
    sound = c.copy()
    strike(c, NOT_CORRECTABLE[case])
    struck = c.copy()
    report = checksums.correct(c, x, packed, 9)
    assert not report.ok
    if case.startswith("a rectangle"):  # indistinguishable from one element: the limit of two sums
        assert report.corrected
        assert not np.array_equal(c, sound)
    else:
        assert not report.determined
        assert not report.corrected
        np.testing.assert_array_equal(c, struck)


def test_leading_dimensions(rng: np.random.Generator) -> None:
    x = rng.integers(0, 256, (2, 3, K), dtype=np.uint8)
    packed = sedq.pack_weights(rng.integers(-128, 128, (N, K), dtype=np.int8))
    c = sedq.matmul_integer(x, packed)
    sound = c.copy()
    c[1, 2, 5] += 9
    assert checksums.locate(c, x, packed).elements == [(5, 5, 9)]
    assert checksums.correct(c, x, packed).corrected
    np.testing.assert_array_equal(c, sound)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"C": np.zeros((M, N))}, "C: got float64 array"),
        ({"C": np.zeros((M, N - 1), np.int32)}, r"C: got int32 array of shape \(7, 19\)"),
        ({"C": np.zeros((M + 1, N), np.int32)}, "C: got int32 array"),
        ({"C": [[1], [2, 3]]}, "C: got "),
        ({"x": np.zeros((M, K))}, "x: got float64 array"),
        ({"x_zero_point": 256}, "x_zero_point: got 256"),
        ({"packed": "w"}, "packed: got str 'w'"),
    ],
)
def test_bad_arguments(
    product: tuple[np.ndarray, np.ndarray, sedq.PackedWeights], change: dict[str, Any], message: str
) -> None:
    c, x, packed = product
    for call in (checksums.locate, checksums.correct):
        with pytest.raises(
            (ValueError, TypeError), match=message if call is checksums.locate or "C" not in change else "C: got"
        ):
            call(**({"C": c, "x": x, "packed": packed, "x_zero_point": 9} | change))


def test_what_can_not_be_written(product: tuple[np.ndarray, np.ndarray, sedq.PackedWeights]) -> None:
    c, x, packed = product
    c.flags.writeable = False
    with pytest.raises(ValueError, match=r"C: got int32 array .* expected a writeable"):
        checksums.correct(c, x, packed, 9)
