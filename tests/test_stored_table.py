"""A stored table by itself, and shared by bags that pool it differently."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import sedq
from sedq import faults
from sedq.embedding import StoredTable

INDICES = np.array([[0, 7, 3], [5, 5, 11]])


def floats(seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(size=(12, 6)).astype(np.float32)


@pytest.fixture
def bag() -> sedq.EmbeddingBag:
    return sedq.EmbeddingBag.from_float(floats(), parity=4, locate=True)


def test_bags_share_a_table(bag: sedq.EmbeddingBag) -> None:
    means = sedq.EmbeddingBag.from_table(bag.table, mode="mean")
    expected = sedq.EmbeddingBag.from_float(floats(), mode="mean")
    np.testing.assert_array_equal(means(INDICES), expected(INDICES))
    for made in (bag, expected):
        made.update_rows([7], floats(1)[:1])
    np.testing.assert_array_equal(means(INDICES), expected(INDICES))
    assert (means.version, means.nbytes) == (bag.version, bag.nbytes)


def test_a_row_that_one_bag_repairs_is_repaired_for_the_other(bag: sedq.EmbeddingBag) -> None:
    means = sedq.EmbeddingBag.from_table(bag.table, mode="mean")
    expected, stored = means(INDICES), bag.table.rows.copy()
    faults.flip_row_bit(bag, 7, 9)
    assert means.bad_rows() == [7]
    with sedq.monitor() as m:
        bag(INDICES)
    assert m.verdicts == {"memory": 1}
    np.testing.assert_array_equal(bag.table.rows, stored)
    with sedq.monitor() as m:
        np.testing.assert_array_equal(means(INDICES), expected)
    assert m.detections == 0


def test_bags_that_share_a_table_leave_out_other_indices(bag: sedq.EmbeddingBag) -> None:
    padded = sedq.EmbeddingBag.from_table(bag.table, padding_idx=5)
    mapped = sedq.EmbeddingBag.from_table(bag.table, index_mapping=np.array([2, -1, 0]))
    assert (bag.num_embeddings, padded.num_embeddings, mapped.num_embeddings) == (12, 12, 3)
    np.testing.assert_array_equal(padded(INDICES), bag([0, 7, 3, 11], [0, 3]))
    np.testing.assert_array_equal(mapped([[0, 1, 2]]), bag([[2, 0]]))


@pytest.mark.parametrize(
    ("table", "options", "kind", "message"),
    [
        ("rows", {}, TypeError, "table: got .*, expected a StoredTable"),
        ("table", {"mode": "max"}, ValueError, "mode: got 'max', expected 'sum' or 'mean'"),
        ("table", {"index_mapping": [12]}, ValueError, "index_mapping: got 12 at position 0"),
    ],
)
def test_what_makes_no_bag(
    bag: sedq.EmbeddingBag, table: str, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    given: Any = bag.table if table == "table" else bag.table.rows
    with pytest.raises(kind, match=message):
        sedq.EmbeddingBag.from_table(given, **options)


COPIES: dict[str, Callable[[StoredTable], StoredTable]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda table: pickle.loads(pickle.dumps(table)),
}


@pytest.mark.parametrize("kind", ["own", "viewed"])
@pytest.mark.parametrize("how", COPIES)
def test_copies_of_a_table_are_whole_and_independent(how: str, kind: str, bag: sedq.EmbeddingBag) -> None:
    if kind == "viewed":
        bag = sedq.EmbeddingBag.view_fused(bag.to_fused(), parity=4, locate=True)
    table, expected = bag.table, bag(INDICES)
    table.rows[7, 2] ^= 64
    twin = COPIES[how](table)  # restores the row first
    assert (table.repairs, table.repaired_at, twin.repairs, twin.repaired_at) == (1, {7: 1}, 0, {})
    table.rows[3, 1] ^= 1
    assert (twin.bad_rows(), table.bad_rows()) == ([], [3])
    twin.rows[5, 1] ^= 1
    assert twin.scrub().corrected == [5]
    np.testing.assert_array_equal(sedq.EmbeddingBag.from_table(twin)(INDICES), expected)


def test_a_table_that_cannot_be_restored_is_not_copied() -> None:
    bag = sedq.EmbeddingBag.from_float(floats())
    bag.table.rows[7, 2] ^= 64
    for duplicate in COPIES.values():
        with pytest.raises(sedq.SoftErrorDetected, match=r"<StoredTable 12 x 6, 8 bit>: rows \[7\] are corrupted"):
            duplicate(bag.table)


def test_copies_of_bags_that_share_a_table_share_its_copy(bag: sedq.EmbeddingBag) -> None:
    means = sedq.EmbeddingBag.from_table(bag.table, mode="mean")
    sums, twin = copy.deepcopy([bag, means])
    assert sums.table is twin.table
    assert sums.table is not bag.table
