"""Once an operand was found bad, everything that the call computed from it is computed again, named by a finding or not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sedq
from sedq import faults
from sedq._core import _dispatch
from sedq.faults import _inject

Array = NDArray[Any]


def test_rows_whose_errors_cancelled_are_right_after_weights_healed(kernels: _dispatch.Context) -> None:
    w = np.full((4, 8), 10, np.int8)
    packed = sedq.pack_weights(w)
    x = np.full((3, 8), 7, np.uint8)
    x[0, 1:3] = 4, 8  # 4 * 4 + 8 * -2 = 0: the errors of both weights cancel in this row's sum
    x[1, 1:3] = 3, 50
    x[2, 1] = 9
    expected = sedq.matmul_integer(x, packed)
    faults.flip_weight_bit(packed, 0, 1, 2)
    faults.flip_weight_bit(packed, 3, 2, 1)
    with sedq.monitor() as m:
        got = sedq.matmul_integer(x, packed)
    np.testing.assert_array_equal(got, expected)
    assert {e.row for e in m.events} == {1, 2}
    assert m.verdicts == {"memory": 2}


@pytest.mark.parametrize("check", ["exact", "mod127"])
def test_no_answer_is_wrong_once_weights_healed(check: str, kernels: _dispatch.Context, rng: np.random.Generator) -> None:
    """One to three flips among neighbouring weights: found in some rows, cancelled in others."""
    x = rng.integers(256, size=(20, 24)).astype(np.uint8)
    w = rng.integers(-128, 128, (12, 24)).astype(np.int8)
    packed = sedq.pack_weights(w, encode=("exact", "mod127"))
    expected = sedq.matmul_integer(x, packed)
    healed = partly = 0
    for flips in [1, 2, 3] * 60:
        for _ in range(flips):
            faults.flip_weight_bit(packed, *rng.integers(0, 3, 2).tolist(), int(rng.integers(8)))
        wrong = set(np.flatnonzero((sedq.matmul_integer(x, packed, check="off") != expected).any(axis=1)).tolist())
        with sedq.monitor() as m:
            try:
                got = sedq.matmul_integer(x, packed, check=check)
            except sedq.SoftErrorDetected:  # several flips may be more than two syndromes determine
                assert m.verdicts == {"memory": m.detections}
                assert packed.verify().corrupted
                got = None
        named = {e.row for e in m.events}
        if got is not None and m.detections:
            np.testing.assert_array_equal(got, expected)
            healed += 1
            partly += not wrong <= named
        if packed.verify().corrupted:
            packed = sedq.pack_weights(w, encode=("exact", "mod127"))
    assert healed > 100
    assert partly > (5 if check == "mod127" else -1)  # findings did not name all that was wrong


@pytest.mark.parametrize("name", ["col_term", "bias", "mult"])
def test_every_row_is_computed_again_from_sound_parameters(
    name: str, kernels: _dispatch.Context, rng: np.random.Generator
) -> None:
    x = rng.integers(256, size=(40, 24)).astype(np.uint8)
    packed = sedq.pack_weights(rng.integers(-128, 128, (70, 24)).astype(np.int8), 0.01, bias=rng.normal(size=70))
    expected = sedq.qlinear(x, packed, x_scale=0.1, x_zero_point=7)
    (epilogue,) = packed._epilogues.values()
    faults.flip_bit(getattr(epilogue, name), 12, 5)
    with sedq.monitor() as m:
        np.testing.assert_array_equal(sedq.qlinear(x, packed, x_scale=0.1, x_zero_point=7), expected)
    assert set(m.verdicts) == {"memory"}


@pytest.mark.parametrize("weights", [False, True])
def test_dynamic_parameters_are_derived_again(
    weights: bool, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = rng.normal(size=(6, 24)).astype(np.float32)
    packed = sedq.pack_weights(rng.integers(-128, 128, (70, 24)).astype(np.int8), 0.01)
    expected = sedq.qlinear_dynamic(x, packed)
    honest, derived = type(packed).epilogue, []

    def struck(self: sedq.PackedWeights, *key: Any, cache: bool) -> Any:
        made = honest(self, *key, cache=cache)
        derived.append(made)
        if len(derived) == 1:
            faults.flip_bit(made.mult, 2, 4)
        return made

    monkeypatch.setattr(type(packed), "epilogue", struck)
    if weights:
        faults.flip_weight_bit(packed, 2, 4, 6)
    with sedq.monitor() as m:
        np.testing.assert_array_equal(sedq.qlinear_dynamic(x, packed), expected)
    # what is derived for the call stays struck, and is seen again where quantisation and product are computed again
    told = {"parameters derived again"} | ({"panels: W[2, 4]"} if weights else set())
    assert {(e.verdict, e.detail.partition(" from")[0]) for e in m.events} == {("memory", text) for text in told}


@pytest.mark.parametrize("collection", [False, True])
def test_bags_whose_errors_cancelled_are_right_after_rows_were_restored(
    collection: bool, kernels: _dispatch.Context
) -> None:
    """Two rows are off by +4 and -4 in one column: a bag of both has the sums of a sound one in digest and output."""
    table = np.zeros((10, 8), np.float32)
    table[:, 0], table[:, 1] = -100, 155
    bag = sedq.EmbeddingBag.from_float(table, keep_source=True)
    indices = np.array([[3, 3], [3, 5], [7, 8]])
    call = (
        (lambda: sedq.EmbeddingBagCollection([bag])(indices.ravel(), [0, 2, 4, 6])) if collection else (lambda: bag(indices))
    )
    expected = call()
    bag.table.rows[3, 2] += 4
    bag.table.rows[5, 3] -= 4
    with sedq.monitor() as m:
        got = call()
    np.testing.assert_array_equal(got, expected)
    assert {e.row for e in m.events} == {0}
    assert bag.bad_rows() == []


def test_a_bag_is_not_answered_from_a_row_that_cannot_be_restored() -> None:
    """Errors of two lost rows cancel in the digest of a bag: it is not answered once another bag has shown one of them."""
    table = np.zeros((10, 8), np.float32)
    table[:, 0], table[:, 1] = -100, 155
    bag = sedq.EmbeddingBag.from_float(table)
    bag.table.rows[3, 2] += 4
    bag.table.rows[5, 3] -= 4
    with pytest.raises(sedq.SoftErrorDetected, match=r"still corrupted: rows \[3, 5\]"):
        bag([[3, 3], [3, 5]])


@pytest.mark.parametrize("stuck", [False, True])
def test_transient_faults_under_mod127_are_corrected(
    stuck: bool, kernels: _dispatch.Context, rng: np.random.Generator
) -> None:
    """Also in rows where the error of a stuck lane is a multiple of 127 and so unseen."""
    x = rng.integers(0, 8, size=(40, 24)).astype(np.uint8)
    packed = sedq.pack_weights(rng.integers(-128, 128, (12, 24)).astype(np.int8), encode=("mod127",))
    expected = sedq.matmul_integer(x, packed, check="off")
    with sedq.monitor() as m, _inject.hooked_call("tile", (0, 3, 0, 1000 if stuck else 1, 0xFFFFFFFF, 0, 127 * 3 + 1)):
        np.testing.assert_array_equal(sedq.matmul_integer(x, packed, check="mod127"), expected)
    assert m.verdicts == {"transient": m.detections}
    assert m.detections


@pytest.mark.parametrize("check", ["exact", "full"])
def test_bags_below_the_bound_are_right_after_another_was_found(check: str, kernels: _dispatch.Context) -> None:
    """A stuck bit of an accumulator: the error exceeds the bound of one bag alone."""
    table = np.full((4, 8), 1000, np.float32)
    table[0, :] = table[1:, 0] = 0
    table[0, 3], table[1:, 3] = 1000, 5  # the struck accumulator is most of one bag, and next to nothing of the others
    bag = sedq.EmbeddingBag.from_float(table)
    indices = np.array([[0, 0], [1, 2], [2, 3]])
    expected = bag(indices)
    with sedq.monitor() as m, _inject.hooked_call("bag", (0, 3, 1 << 11, 1000)):
        np.testing.assert_array_equal(bag(indices, check="off") != expected, np.arange(8) == np.full((3, 1), 3))
        np.testing.assert_array_equal(bag(indices, check=check, on_error="recover"), expected)
    assert {e.row for e in m.events if e.kind == "sum"} == {0}


def test_a_stuck_fault_that_only_one_table_notices(kernels: _dispatch.Context, rng: np.random.Generator) -> None:
    """A stuck accumulator exceeds the bound of short bags, and stays below that of another table's long ones."""
    bags = [sedq.EmbeddingBag.from_float(rng.normal(size=(60, 16)).astype(np.float32)) for _ in range(2)]
    lengths = [1] * 5 + [500] * 5
    indices, offsets = rng.integers(0, 60, sum(lengths)), np.cumsum([0, *lengths])
    collection = sedq.EmbeddingBagCollection(bags)
    expected, noticed = collection(indices, offsets), 0
    for element in range(16):
        with sedq.monitor() as m, _inject.hooked_call("bag", (0, element, 1 << 13, 2**40)):
            got = collection(indices, offsets)
        if m.detections:
            noticed += 1
            np.testing.assert_array_equal(got, expected)
    assert noticed
