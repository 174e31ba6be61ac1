"""Packed weights at rest: what verify finds, what heal restores and what it must not touch, copies."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sedq
from helpers import oracles
from sedq import faults
from sedq._core import _packing
from sedq.linear._healing import crossings

N, K = 18, 5


@pytest.fixture
def w(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(-100, 100, (N, K), dtype=np.int8)


@pytest.fixture
def packed(w: np.ndarray, rng: np.random.Generator) -> sedq.PackedWeights:
    return sedq.pack_weights(w, rng.uniform(0.1, 1, N), rng.integers(-9, 9, N), rng.normal(size=N))


def snapshot(packed: sedq.PackedWeights) -> dict[str, bytes]:
    return {name: a.tobytes() for name, a in packed._arrays().items()}


def corrupt(packed: sedq.PackedWeights, changes: dict[tuple[int, int], int]) -> None:
    """Add to stored weights, modulo 256."""
    for (n, k), delta in changes.items():
        at = _packing.panel_index(*packed.shape, n, k)
        packed._core.panels.view(np.uint8)[at : at + 1] += np.uint8(delta % 256)


def test_attributes(packed: sedq.PackedWeights, w: np.ndarray) -> None:
    assert packed.shape == (N, K)
    assert packed.encode == ("exact",)
    assert repr(packed) == "<PackedWeights 18 x 5 int8, encode=('exact',)>"
    assert packed.scale.dtype == packed.bias.dtype == np.float32
    assert packed.zero_point.shape == (N,)
    np.testing.assert_array_equal(packed.unpack(), w)
    assert sedq.pack_weights(w).bias is None
    assert sedq.pack_weights(w).scale.shape == ()


def test_sound_weights(packed: sedq.PackedWeights) -> None:
    before = snapshot(packed)
    for report in (packed.verify(), packed.heal()):
        assert report.ok
        assert report == sedq.WeightsReport()
    assert snapshot(packed) == before


@pytest.mark.parametrize("name", ["panels", "digits", "row_sums", "col_sums", "scale", "zero_point", "bias"])
def test_every_bit_of_every_array_is_restored(packed: sedq.PackedWeights, name: str) -> None:
    before, array = snapshot(packed), packed._arrays()[name]
    bits = [(byte, bit) for byte in range(array.nbytes) for bit in range(8)]
    if name == "digits":  # most of it is padding
        bits = [(byte, bit) for byte, bit in bits if byte % 128 < 6 or byte % 128 == 127]
    for byte, bit in bits:
        faults.flip_bit(array, byte, bit)
        report = packed.verify()
        assert not report.ok
        assert report.corrupted == [name]
        assert report.healed == []
        report = packed.heal()
        assert report.corrupted == []
        assert len(report.healed) == 1
        assert report.healed[0].startswith(name)
        assert snapshot(packed) == before


def test_reports_say_where_and_what(packed: sedq.PackedWeights, w: np.ndarray) -> None:
    corrupt(packed, {(7, 3): 5})
    report = packed.verify()
    assert (report.rows, report.columns) == ([3], [7])
    assert packed.heal().healed == [f"panels: W[7, 3] from {w[7, 3] + 5} to {w[7, 3]}"]
    used = {_packing.panel_index(N, K, n, k) for n in range(N) for k in range(K)}
    packed._core.panels[max(set(range(packed._core.panels.size)) - used)] = 1
    report = packed.verify()
    assert (report.corrupted, report.rows, report.columns) == (["panels"], [], [])
    assert packed.heal().healed == ["panels: padding"]


HEALABLE = {
    "one n": {(4, 0): 3, (4, 2): -9, (4, 3): 3},
    "all of one n": {(4, k): k - 8 for k in range(K)},
    "one k": {(0, 2): 3, (9, 2): -9, (17, 2): 3},
    "distinct rows and columns, distinct differences": {(0, 1): 3, (9, 2): -3, (17, 4): 7, (3, 0): 1},
}
UNHEALABLE = {
    "a rectangle that mimics the fourth corner": {(2, 1): 7, (9, 3): 7, (9, 1): -7},
    "the same difference twice": {(2, 1): 7, (9, 3): 7},
    "two in a row and one elsewhere": {(2, 1): 7, (2, 3): 5, (9, 0): 3},
    "one n, differences that cancel": {(4, 0): 9, (4, 2): -9},
    "one k, differences that cancel": {(0, 2): 9, (9, 2): -9},
    "a rectangle that cancels": {(2, 1): 7, (2, 3): -7, (9, 1): -7, (9, 3): 7},
}


@pytest.mark.parametrize("case", HEALABLE)
def test_several_bytes(packed: sedq.PackedWeights, case: str) -> None:
    before = snapshot(packed)
    corrupt(packed, HEALABLE[case])
    assert packed.verify().corrupted == ["panels"]
    report = packed.heal()
    assert report.corrupted == []
    assert len(report.healed) == len(HEALABLE[case])
    assert snapshot(packed) == before


@pytest.mark.parametrize("case", UNHEALABLE)
def test_what_is_not_determined_stays_and_is_reported(packed: sedq.PackedWeights, w: np.ndarray, case: str) -> None:
    corrupt(packed, UNHEALABLE[case])
    stored = snapshot(packed)
    for _ in range(2):
        report = packed.heal()
        assert (report.corrupted, report.healed) == (["panels"], [])
        assert snapshot(packed) == stored
    if case.startswith("a rectangle that mimics"):
        assert (packed.verify().rows, packed.verify().columns) == ([3], [2])
    x = np.full((2, K), 1, np.uint8) + np.arange(2 * K, dtype=np.uint8).reshape(2, K) ** 2
    assert (sedq.matmul_integer(x, packed, check="off") != oracles.matmul_integer(x, w, packed.zero_point)).any()
    if packed.verify().rows:
        with pytest.raises(sedq.SoftErrorDetected, match="memory, still corrupted: panels"):
            sedq.matmul_integer(x, packed)
    else:  # the limit of the check of a product
        assert case.endswith(("cancel", "cancels"))


@given(st.data())
def test_heal_restores_or_leaves_alone(data: Any) -> None:
    n, k = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 9))
    place = st.tuples(st.integers(0, n - 1), st.integers(0, k - 1))
    changes = data.draw(st.dictionaries(place, st.integers(1, 255), min_size=1, max_size=4))
    packed = sedq.pack_weights(np.random.default_rng(n).integers(-128, 128, (n, k), dtype=np.int8))
    before = snapshot(packed)
    corrupt(packed, changes)
    stored = snapshot(packed)
    report = packed.heal()
    assert snapshot(packed) == (before if report.ok else stored)
    assert report.ok or len(changes) > 1


@pytest.mark.parametrize("bad", [("row_sums",), ("col_sums",), ("row_sums", "col_sums"), ("digits", "row_sums")])
def test_sums_are_taken_again_from_sound_panels(packed: sedq.PackedWeights, bad: tuple[str, ...]) -> None:
    before = snapshot(packed)
    for name in bad:
        faults.flip_bit(packed._arrays()[name], 1, 4)
    report = packed.heal()
    assert report.corrupted == []
    assert sorted(report.healed) == sorted(bad)
    assert snapshot(packed) == before


@pytest.mark.parametrize("name", ["row_sums", "col_sums"])
def test_sums_and_panels_both_bad(packed: sedq.PackedWeights, name: str) -> None:
    faults.flip_bit(packed._arrays()[name], 1, 4)
    corrupt(packed, {(3, 3): 9})
    report = packed.heal()
    assert sorted(report.corrupted) == sorted(["panels", name])
    assert report.healed == []


def test_all_parameters_are_restored_together(packed: sedq.PackedWeights) -> None:
    before = snapshot(packed)
    for name in ("scale", "zero_point", "bias", "digits"):
        faults.flip_bit(packed._arrays()[name], 1, 4)
    corrupt(packed, {(3, 3): 9})
    report = packed.heal()
    assert report.corrupted == []
    assert sorted(h.split(":")[0] for h in report.healed) == ["bias", "digits", "panels", "scale", "zero_point"]
    assert snapshot(packed) == before


def test_one_parameter_lost_does_not_lose_the_others(packed: sedq.PackedWeights) -> None:
    for a in (packed.scale, packed._spare["scale"], packed.bias):
        faults.flip_bit(a, 1, 4)
    assert packed.heal().corrupted == ["scale"]


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    **{f"pickle {p}": lambda a, p=p: pickle.loads(pickle.dumps(a, p)) for p in range(pickle.HIGHEST_PROTOCOL + 1)},
}


@pytest.mark.parametrize("how", COPIES)
def test_copies(packed: sedq.PackedWeights, how: str) -> None:
    again = COPIES[how](packed)
    assert snapshot(again) == snapshot(packed)
    assert (again.shape, again.encode, repr(again)) == (packed.shape, packed.encode, repr(packed))
    assert again.verify().ok
    for name, a in packed._arrays().items():
        assert not np.shares_memory(a, again._arrays()[name]), name
    plain = COPIES[how](sedq.pack_weights(np.ones((2, 3), np.int8), 0.5, encode=()))
    assert (plain.encode, plain.bias, plain.scale.shape) == ((), None, ())


def test_what_kernels_are_given_is_not_pickled(w: np.ndarray) -> None:
    packed = sedq.pack_weights(w)
    for inner in (packed._core, packed.integer_epilogue(0, cache=False)):  # they hold pointers
        with pytest.raises(TypeError, match="cannot pickle"):
            pickle.dumps(inner)


@pytest.mark.parametrize("how", ["deepcopy", "pickle 5"])
def test_copies_of_corrupted_weights(packed: sedq.PackedWeights, w: np.ndarray, how: str) -> None:
    corrupt(packed, {(3, 3): 9})
    faults.flip_bit(packed.bias, 3, 5)
    again = COPIES[how](packed)
    np.testing.assert_array_equal(again.unpack(), w)
    assert packed.verify().ok
    np.testing.assert_array_equal(again.bias, packed.bias)
    corrupt(packed, UNHEALABLE["the same difference twice"])
    with pytest.raises(sedq.SoftErrorDetected, match=r"^<PackedWeights 18 x 5 .* is corrupted and can't be copied"):
        COPIES[how](packed)


def test_weights_without_encoding(w: np.ndarray) -> None:
    packed = sedq.pack_weights(w, encode=())
    x = np.arange(2 * K, dtype=np.uint8).reshape(2, K)
    np.testing.assert_array_equal(sedq.matmul_integer(x, packed, check="off"), oracles.matmul_integer(x, w))
    with pytest.raises(
        ValueError, match=r"^check: got 'exact', expected one that these weights are encoded for, \(\); pack them with"
    ):
        sedq.matmul_integer(x, packed)
    corrupt(packed, {(3, 3): 9})
    assert packed.heal().ok
    np.testing.assert_array_equal(packed.unpack(), w)


def test_crossings() -> None:
    row_delta, col_delta = np.array([5, 0, -2, 0]), np.array([0, -2, 5])
    assert crossings([0, 2], [1, 2], row_delta, col_delta) == [(2, 0, 5), (1, 2, -2)]
    assert crossings([0], [1, 2], row_delta, col_delta) == [(1, 0, -2), (2, 0, 5)]
    assert crossings([0, 2], [1], row_delta, col_delta) == [(1, 0, 5), (1, 2, -2)]
    assert crossings([0, 2], [2, 2], row_delta, col_delta) == []
    assert crossings([], [], row_delta, col_delta) == []
    assert crossings([0, 2], [], row_delta, col_delta) == []
    assert crossings([0, 1], [1, 2], row_delta, col_delta) == []
