"""The digest of consecutive rows, on every instruction set, against what the rows were given."""

from __future__ import annotations

import numpy as np
import pytest

import sedq
from sedq._core import _dispatch, _rows


@pytest.mark.parametrize("bits", [8, 4, 2, 16, 32])
@pytest.mark.parametrize("dim", [1, 7, 8, 15, 16, 31, 32, 33, 40, 63, 64, 100, 257])
def test_digests_of_own_and_foreign_rows(bits: int, dim: int, kernels: _dispatch.Context) -> None:
    weight = np.random.default_rng([bits, dim]).normal(size=(29, dim)).astype(np.float32)
    own = sedq.EmbeddingBag.from_float(weight, bits=bits)
    for layout in ("torch", "tbe") if bits < 8 else ("torch",):
        other = sedq.EmbeddingBag.view_fused(own.to_fused(layout), bits=bits, layout=layout, dim=dim)
        for table in (own.table.data, other.table.data):
            for first, count in ((0, 29), (28, 1), (3, 0), (5, 17)):
                got = _rows.digests_of(table, first, count, kernels)
                np.testing.assert_array_equal(got, table.digests[first : first + count])
            assert _rows.bad_in_range(table, 0, 29, kernels) == []
            table.rows[7, -1 if table is other.table.data else 0] ^= 1  # the last byte: what a tail would miss
            assert _rows.bad_in_range(table, 0, 29, kernels) == [7]
            assert _rows.bad_in_range(table, 8, 21, kernels) == []
            table.rows[7, -1 if table is other.table.data else 0] ^= 1


@pytest.mark.parametrize("dim", [5, 16, 45, 64])
@pytest.mark.parametrize("kind", ["own", "view"])
def test_every_byte_of_every_row_is_scanned(kind: str, dim: int, kernels: _dispatch.Context) -> None:
    """Four rows at a time and the rest by themselves."""
    bag = sedq.EmbeddingBag.from_float(np.random.default_rng(dim).normal(size=(11, dim)).astype(np.float32))
    table = bag.table.data if kind == "own" else sedq.EmbeddingBag.view_fused(bag.to_fused()).table.data
    for first, count in ((0, 11), (3, 8)):
        for row in range(11):
            for part in [table.rows] if table.sidecar is None else [table.rows, table.sidecar]:
                for byte in range(part.shape[1]):
                    part[row, byte] ^= 1 << (row + byte) % 8
                    expected = [row] if first <= row < first + count else []
                    assert _rows.bad_in_range(table, first, count, kernels) == expected, (row, byte)
                    part[row, byte] ^= 1 << (row + byte) % 8


def test_code_bytes_of_255_do_not_wrap(kernels: _dispatch.Context) -> None:
    rows = np.hstack([np.full((3, 65_792), 255, np.uint8), np.zeros((3, 8), np.uint8)])
    table = sedq.EmbeddingBag.from_fused(rows).table.data
    np.testing.assert_array_equal(_rows.digests_of(table, 0, 3, kernels), table.digests)
