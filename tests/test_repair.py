"""Corrupted rows are located and corrected, rebuilt from parity, reloaded, or named; in rows of every format."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sedq
from sedq._core import _dispatch
from sedq.embedding import _guard

Array = NDArray[Any]
ROWS, DIM, GROUP = 40, 12, 8

OWN = [("own", bits, "torch") for bits in (8, 4, 2, 16, 32)]
FOREIGN = [("view", bits, layout) for bits in (8, 4, 2) for layout in ("torch", "half", "tbe")]
FOREIGN += [("view", bits, "torch") for bits in (16, 32)]
FORMATS = pytest.mark.parametrize(("kind", "bits", "layout"), OWN + FOREIGN)


def values(rows: int = ROWS, seed: int = 4) -> Array:
    """Quantised without loss in any format: scale and bias are float16 numbers."""
    return np.random.default_rng(seed).integers(-3, 4, (rows, DIM)).astype(np.float32)


def made(kind: str = "own", bits: int = 8, layout: str = "torch", rows: int = ROWS, **kwargs: Any) -> sedq.EmbeddingBag:
    bag = sedq.EmbeddingBag.from_float(values(rows), bits=bits, **(kwargs if kind == "own" else {}))
    if kind == "own":
        return bag
    exact = bag.table.rows
    if bits == 8 and layout != "torch":  # float16 parameters
        params = exact[:, -16:-8].view("<f4")
        params[:] = params.astype(np.float16)
        bag.table.data.write_digests()
    return sedq.EmbeddingBag.view_fused(bag.to_fused(layout), bits=bits, layout=layout, dim=DIM, **kwargs)


def memory(bag: sedq.EmbeddingBag) -> list[Array]:
    """What a fault can strike: rows, and digests beside them."""
    return [part for part in (bag.table.rows, bag.table.sidecar) if part is not None]


def readable(bag: sedq.EmbeddingBag) -> list[Array]:
    """What calls read: rows with the overlay in place, and digests beside them."""
    rows = np.stack([bag.table.row(number) for number in range(bag.shape[0])])
    return [rows] + [part.copy() for part in memory(bag)[1:]]


def same(got: list[Array], expected: list[Array]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


# --- location ---


@FORMATS
def test_every_bit_of_a_row_is_located_and_corrected(kind: str, bits: int, layout: str) -> None:
    bag = made(kind, bits, layout, rows=10, locate=True)
    sound = readable(bag)
    for part in memory(bag):
        for bit in range(8 * part.shape[1]):
            part[3, bit // 8] ^= np.uint8(1 << bit % 8)
            report = bag.scrub()
            assert report.found == report.corrected == [3], bit
            assert same(readable(bag), sound), bit
            if kind == "view" and part is memory(bag)[0]:
                assert bag.bad_rows() == []
                part[3, bit // 8] ^= np.uint8(1 << bit % 8)  # nobody writes to it but the test
                bag.table.overlay.clear()
    assert not bag.scrub(redundancy=True)


@FORMATS
def test_without_locating_sums_nothing_is_located(kind: str, bits: int, layout: str) -> None:
    bag = made(kind, bits, layout)
    memory(bag)[0][3, 1] ^= 2
    report = bag.scrub()
    assert (report.found, report.corrected, report.left) == ([3], [], [3])
    assert memory(bag)[0][3, 1] ^ 2 == made(kind, bits, layout).table.rows[3, 1]


def test_any_wrong_value_of_a_byte_is_corrected() -> None:
    bag = made(locate=True)
    sound = bag.table.rows.copy()
    rng = np.random.default_rng(0)
    for _ in range(500):
        number, byte, change = rng.integers(ROWS), rng.integers(sound.shape[1]), rng.integers(1, 256)
        bag.table.rows[number, byte] ^= np.uint8(change)
        assert bag.scrub().corrected == [number]
        np.testing.assert_array_equal(bag.table.rows, sound)


@pytest.mark.parametrize("wrong", [2, 3, 8])
def test_several_wrong_bytes_are_never_taken_for_one(wrong: int) -> None:
    """The weighted sum often finds a byte that would explain them; the CRC knows better."""
    bag = made(locate=True)
    sound, rng = bag.table.rows.copy(), np.random.default_rng(wrong)
    length = bag.table.locator.length  # type: ignore[union-attr]
    candidates = 0
    for _ in range(2000):
        number = int(rng.integers(ROWS))
        at = rng.choice(length, wrong, replace=False)
        bag.table.rows[number, at] ^= rng.integers(1, 256, wrong, dtype=np.uint8)
        error = int(bag.table.rows[number, :length].sum(dtype=int) - sound[number, :length].sum(dtype=int))
        weights = np.arange(1, length + 1)
        moment = int((weights * (bag.table.rows[number, :length].astype(int) - sound[number, :length])).sum())
        candidates += bool(error and moment % error == 0 and 1 <= moment // error <= length)
        assert bag.scrub().left == bag.bad_rows() == ([number] if bag.bad_rows() else [])
        bag.table.rows[number] = sound[number]
    assert candidates > 5, "without the CRC some would have been corrected wrongly"


def test_a_wrong_crc_keeps_a_row_from_being_corrected() -> None:
    bag = made(locate=True)
    bag.table.rows[5, 0] ^= 1
    bag.table.locator.syndromes[5, 1] ^= 1  # type: ignore[union-attr]
    assert bag.scrub().left == [5]


# --- parity ---


@FORMATS
@pytest.mark.parametrize("locate", [False, True])
def test_one_row_per_group_is_restored_bit_for_bit(locate: bool, kind: str, bits: int, layout: str) -> None:
    """Whatever is wrong with it."""
    rows = 103
    bag = made(kind, bits, layout, rows, parity=GROUP, locate=locate)
    sound, stored = readable(bag), memory(bag)[0].copy()
    groups = -(-rows // GROUP)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        struck = sorted(int(rng.choice(np.arange(group, rows, groups))) for group in range(groups))
        for number in struck:
            memory(bag)[0][number] = rng.integers(0, 256, stored.shape[1], dtype=np.uint8)
        assert bag.bad_rows() == struck
        report = bag.scrub()
        assert (report.found, report.left) == (struck, [])
        assert sorted(report.rebuilt + report.corrected) == struck
        assert same(readable(bag), sound)
        assert bag.bad_rows() == []
        if kind == "view":
            memory(bag)[0][:] = stored
            bag.table.overlay.clear()


@pytest.mark.parametrize("kind", ["view"])
@pytest.mark.parametrize("bits", [8, 4, 32])
def test_digests_beside_the_rows_are_made_anew_where_parity_confirms_the_row(kind: str, bits: int) -> None:
    bag = made(kind, bits, parity=GROUP)
    sound, rng = readable(bag), np.random.default_rng(0)
    memory(bag)[1][7] = rng.integers(0, 256, memory(bag)[1].shape[1], dtype=np.uint8)
    assert bag.scrub().rebuilt == [7]
    assert same(readable(bag), sound)
    assert bag.table.overlay == {}


def test_two_bad_rows_of_a_group_are_named() -> None:
    bag = made(parity=GROUP)
    groups = ROWS // GROUP
    bag.table.rows[[3, 3 + groups, 4], 0] ^= 1
    report = bag.scrub()
    assert (report.rebuilt, report.left) == ([4], [3, 3 + groups])
    with pytest.raises(
        sedq.SoftErrorDetected, match=r"rows \[3, 8\], \[3, 8\] in one parity group are corrupted and there is"
    ):
        bag.table.require_intact()
    with sedq.monitor() as seen, pytest.raises(sedq.SoftErrorDetected, match=r"\[3, 8\] in one parity group"):
        bag([[3, 1]])
    assert {(e.rung, e.verdict) for e in seen.events} == {("raise", "memory")}


def test_a_source_helps_where_parity_does_not() -> None:
    bag = made(parity=GROUP, keep_source=True)
    sound = bag.table.rows.copy()
    bag.table.rows[[3, 8], 0] ^= 1
    report = bag.scrub()
    assert (report.reloaded, report.rebuilt, report.left) == ([3], [8], []), "the other of the group is no longer in doubt"
    # a row that the source doesn't know is rebuilt once the source has restored the other
    bag.update_rows([3], np.full((1, DIM), 2, np.float32))
    sound[3] = bag.table.rows[3]
    bag.table.rows[[3, 8], 0] ^= 1
    report = bag.scrub()
    assert (report.rebuilt, report.reloaded, report.left) == ([3], [8], [])
    np.testing.assert_array_equal(bag.table.rows, sound)


@FORMATS
def test_unsound_parity_restores_nothing(kind: str, bits: int, layout: str) -> None:
    bag = made(kind, bits, layout, parity=GROUP)
    bag.table.parity.rows[2, 0] ^= 1  # type: ignore[union-attr]
    memory(bag)[0][2, :4] ^= 255
    assert bag.scrub().left == [2]
    assert bag.bad_rows() == [2]


def test_a_parity_row_whose_crc_was_forged_restores_nothing_either() -> None:
    """The digest is checked again after all that."""
    bag = made(parity=GROUP)
    parity = bag.table.parity
    assert parity is not None
    parity.update(np.array([7]), np.ones_like(parity.rows[:1]))
    bag.table.rows[2, :4] ^= 255
    before = bag.table.rows.copy()
    assert bag.scrub().left == [2]
    np.testing.assert_array_equal(bag.table.rows, before)


# --- calls ---


@FORMATS
def test_calls_climb_the_ladder(kind: str, bits: int, layout: str, kernels: _dispatch.Context) -> None:
    bag = made(kind, bits, layout, locate=True, parity=GROUP)
    index = np.arange(15).reshape(5, 3)
    clean = bag(index)
    memory(bag)[0][4, 1] ^= 1
    memory(bag)[0][7, :3] ^= 255
    for check in ("exact", "full"):
        with sedq.monitor() as seen:
            np.testing.assert_array_equal(bag(index, check=check), clean)
        if check == "exact":
            assert {e.detail for e in seen.events} == {"rows [4] corrected; rows [7] rebuilt"}
            assert {(e.rung, e.verdict) for e in seen.events} == {("heal", "memory")}
            assert seen.repairs == {"corrected": 1, "rebuilt": 1}
        else:
            assert seen.detections == 0
    np.testing.assert_array_equal(bag(index, check="off"), clean)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_the_overlay_is_what_calls_read(mode: Any, weighted: bool, kernels: _dispatch.Context) -> None:
    bag = made("view", parity=GROUP, mode=mode)
    rng = np.random.default_rng(0)
    index, offsets = rng.integers(0, ROWS, 900), np.sort(rng.integers(0, 900, 200))
    offsets[0] = 0
    weights = rng.uniform(-1, 1, 900).astype(np.float32) if weighted else None
    clean = bag(index, offsets, weights)
    for number in (0, 6, ROWS - 1):
        memory(bag)[0][number] ^= 0x55
    assert not np.array_equal(bag(index, offsets, weights, check="off"), clean)
    with sedq.monitor() as seen:
        np.testing.assert_array_equal(bag(index, offsets, weights), clean)
    assert seen.detections > 0
    assert sorted(bag.table.overlay) == [0, 6, ROWS - 1]
    for check in ("off", "digest", "threshold", "exact", "full"):
        with sedq.monitor() as seen:
            np.testing.assert_array_equal(bag(index, offsets, weights, check=check), clean)
        assert seen.detections == 0, "known, and no news"
    # what stands for a row may rot as well
    bag.table.overlay[6][0] ^= 4
    with sedq.monitor() as seen:
        np.testing.assert_array_equal(bag(index, offsets, weights), clean)
    assert seen.repairs == {"rebuilt": 1}


def test_a_call_for_no_row_of_the_overlay_takes_no_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    bag = made("view", parity=GROUP)
    calls, exclusive = list[object](), _guard.Guard.exclusive

    def counted(self: _guard.Guard) -> Any:
        calls.append(self)
        return exclusive(self)

    monkeypatch.setattr(_guard.Guard, "exclusive", counted)
    memory(bag)[0][6] ^= 0x55
    bag.scrub()
    assert list(bag.table.overlay) == [6]
    for index, locks in (([[1, 2], [5, 7]], 0), ([[1, 2], [6, 7]], 1), ([[6]], 1)):
        calls.clear()
        bag(index)
        assert len(calls) == locks
    del bag.table.overlay[6]
    assert bag.table.overlay.places(np.array([6])).size == 0


def test_a_table_that_is_only_read_is_never_written_to() -> None:
    bag = made("view", locate=True, parity=GROUP)
    rows = bag.table.rows
    rows[5, 0] ^= 1
    struck = rows.copy()
    rows.flags.writeable = False
    bag.table.require_intact()
    np.testing.assert_array_equal(bag.table.rows, struck)


# --- the redundancy itself ---


@FORMATS
def test_redundancy_that_rotted_is_reported_and_made_anew_on_request(kind: str, bits: int, layout: str) -> None:
    bag = made(kind, bits, layout, locate=True, parity=GROUP)
    kept = bag.table
    assert kept.locator is not None
    assert kept.parity is not None
    sound = [kept.locator.syndromes.copy(), kept.parity.rows.copy(), kept.parity.crc.copy()]
    assert not bag.scrub(redundancy=True)
    kept.locator.syndromes[3, 0] ^= 8
    kept.locator.syndromes[8, 1] ^= 8  # whose parity group is sound
    kept.parity.rows[1, 2] ^= 8
    kept.parity.crc[4] ^= 8
    assert not bag.scrub()
    stale: list[str] = []
    for start in range(0, ROWS, 10):
        stale += bag.scrub(start, 10, redundancy=True).stale
    assert sorted(stale) == [
        "locating sums of row 3",
        "locating sums of row 8",
        "parity of group 1",
        "parity of group 4",
    ]
    assert not same([kept.locator.syndromes, kept.parity.rows, kept.parity.crc], sound), "a scrub writes no redundancy"
    made_anew = bag.rebuild_redundancy([1, 3, 8, 9])
    assert (sorted(made_anew.rebuilt), made_anew.refused) == (sorted(stale), [])
    assert same([kept.locator.syndromes, kept.parity.rows, kept.parity.crc], sound)


def test_redundancy_of_corrupted_rows_is_left_alone() -> None:
    bag = made(locate=True, parity=GROUP)
    sound = bag.table.rows.copy()
    bag.table.rows[5, :2] ^= 3
    assert bag.scrub(repair=False, redundancy=True).stale == []
    assert bag.scrub().rebuilt == [5]
    np.testing.assert_array_equal(bag.table.rows, sound)


@pytest.mark.parametrize("kind", ["own", "view"])
def test_copies_keep_their_redundancy(kind: str) -> None:
    bag = made(kind, locate=True, parity=GROUP)
    sound = readable(bag)
    for other in (pickle.loads(pickle.dumps(bag)), copy.deepcopy(bag), copy.copy(bag)):
        other.table.rows[5, :2] ^= 3
        assert bag.bad_rows() == []
        assert other.scrub().rebuilt == [5]
        assert same(readable(other), sound)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"parity": 0}, "parity: got 0, expected an integer from 1"),
        ({"parity": 2.5}, "parity: got float 2.5"),
        ({"parity": True}, "parity: got bool True"),
        ({"locate": 1}, "locate: got 1, expected True or False"),
    ],
)
def test_bad_options(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**option)


def test_memory_is_what_the_documentation_says() -> None:
    bag = sedq.EmbeddingBag.from_float(np.ones((6400, 64), np.float32))
    assert bag.nbytes == 6400 * 80
    more = sedq.EmbeddingBag.from_float(np.ones((6400, 64), np.float32), locate=True, parity=64)
    assert more.nbytes == 6400 * 88 + 100 * 84
