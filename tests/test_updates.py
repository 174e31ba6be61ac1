"""Rows get new values while others read: digests, locating sums and parity follow, and nobody sees half a row."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sedq
from sedq._core import _embedding
from sedq.embedding import _formats, _guard

Array = NDArray[Any]
ROWS, DIM, GROUP = 60, 16, 6


def values(seed: int, rows: int = ROWS) -> Array:
    return np.random.default_rng(seed).integers(-9, 10, (rows, DIM)).astype(np.float32)


def made(bits: int = 8, **kwargs: Any) -> sedq.EmbeddingBag:
    return sedq.EmbeddingBag.from_float(values(0), bits=bits, **kwargs)


def redundancy(bag: sedq.EmbeddingBag) -> list[Array]:
    kept = bag.table
    assert kept.locator is not None
    assert kept.parity is not None
    return [kept.locator.syndromes, kept.parity.rows, kept.parity.crc]


@pytest.mark.parametrize("bits", [8, 4, 2, 16, 32])
def test_an_updated_table_is_the_one_made_of_the_new_values(bits: int) -> None:
    bag = made(bits, locate=True, parity=GROUP)
    table, rng = values(0), np.random.default_rng(1)
    for seed in range(5):
        numbers = rng.choice(ROWS, 17, replace=False)
        table[numbers] = values(seed, 17)
        bag.update_rows(numbers, table[numbers])
    expected = sedq.EmbeddingBag.from_float(table, bits=bits, locate=True, parity=GROUP)
    np.testing.assert_array_equal(bag.table.rows, expected.table.rows)
    for got, want in zip(redundancy(bag), redundancy(expected), strict=True):
        np.testing.assert_array_equal(got, want)
    assert not bag.scrub(redundancy=True)


def test_fused_rows_in_the_layout_of_the_table() -> None:
    new = values(3, 2)
    bag = made()
    bag.update_rows(np.array([5, 2], np.int32), _formats.quantize_rows(new, 8))
    expected = made()
    expected.update_rows([5, 2], new)
    np.testing.assert_array_equal(bag.table.rows, expected.table.rows)


def test_an_update_over_a_corrupted_row_does_not_carry_its_error_into_the_parity() -> None:
    bag = made(locate=True, parity=GROUP)
    bag.table.rows[7, :3] ^= 255
    bag.update_rows([7], values(8, 1))
    assert not bag.scrub(redundancy=True)
    bag.table.rows[7, :3] ^= 255
    sound = bag.table.rows.copy()
    sound[7, :3] ^= 255
    assert bag.scrub().rebuilt == [7]
    np.testing.assert_array_equal(bag.table.rows, sound)


def test_an_update_beside_a_corrupted_row_of_its_group_keeps_it_repairable() -> None:
    bag = made(parity=GROUP)
    other = 7 + ROWS // GROUP
    sound = bag.table.rows[other].copy()
    bag.table.rows[other, :3] ^= 255
    bag.update_rows([7], values(8, 1))
    assert bag.scrub().rebuilt == [other]
    np.testing.assert_array_equal(bag.table.rows[other], sound)


def test_two_corrupted_rows_of_which_one_is_overwritten_are_not_rebuilt_from_what_nobody_knows() -> None:
    bag = made(parity=GROUP)
    other = 7 + ROWS // GROUP
    bag.table.rows[[7, other], :3] ^= 255
    bag.update_rows([7], values(8, 1))
    assert bag.scrub().left == [other]


def test_the_source_is_no_longer_asked_for_updated_rows() -> None:
    bag = made(keep_source=True)
    bag.update_rows([7], values(8, 1))
    bag.table.rows[[7, 8], 0] ^= 1
    report = bag.scrub()
    assert (report.reloaded, report.left) == ([8], [7])


def test_an_updated_row_is_not_replaced_by_its_old_self_of_the_same_digest() -> None:
    """Codes in another order have the same sum."""
    bag = made(keep_source=True)
    new = values(0)[7:8, ::-1].copy()
    bag.update_rows([7], new)
    sound = bag.table.rows[7].copy()
    bag.table.rows[7, 0] ^= 1
    report = bag.scrub()
    assert (report.reloaded, report.left) == ([], [7])
    bag.table.rows[7] = sound
    assert (sound != sedq.EmbeddingBag.from_float(values(0)).table.rows[7]).any()
    assert sound[-8:].tobytes() == sedq.EmbeddingBag.from_float(values(0)).table.rows[7, -8:].tobytes()


def test_a_source_that_is_not_what_it_was_restores_nothing() -> None:
    """Neither if it changed, nor where the digest was struck and the source can't confirm the row."""
    source = values(0)
    bag = sedq.EmbeddingBag.from_float(source, keep_source=True)
    sound = bag.table.rows.copy()
    source[7] += np.arange(DIM)
    bag.table.rows[7, 0] ^= 1
    bag.table.rows[8, -1] ^= 1
    struck = bag.table.rows.copy()
    report = bag.scrub()
    assert (report.reloaded, report.left) == ([8], [7])
    np.testing.assert_array_equal(bag.table.rows[8], sound[8])
    np.testing.assert_array_equal(bag.table.rows[7], struck[7])
    source[7] -= np.arange(DIM)
    assert bag.scrub().reloaded == [7]
    np.testing.assert_array_equal(bag.table.rows, sound)


def test_parity_that_missed_an_update_rebuilds_nothing_whose_digest_fits_by_chance() -> None:
    fused = np.zeros((ROWS, DIM + 8), np.uint8)
    fused[:, DIM:] = np.array([1, 0], "<f4").view(np.uint8)
    other = 7 + ROWS // GROUP
    fused[[7, other], :2] = 0, 3
    bag = sedq.EmbeddingBag.from_fused(fused, parity=GROUP)
    bag.table.rows[[7, other], 5] ^= 255
    new = fused[7:8].copy()
    new[0, :2] ^= 3  # codes 0, 3 become 3, 0; the same change makes that of the other row, and neither changes its sum
    bag.update_rows([7], new)
    assert bag.scrub().left == [other]
    bag.update_rows([other], fused[other : other + 1])
    bag.scrub(redundancy=True)
    bag.table.rows[other, 5] ^= 255
    assert bag.scrub().rebuilt == [other]


BAD: list[tuple[type[Exception], str, Any, Any]] = [
    (IndexError, f"indices: got {ROWS}, expected 0 to {ROWS - 1}", [1, ROWS], np.zeros((2, DIM), np.float32)),
    (IndexError, "indices: got -1", [-1], np.zeros((1, DIM), np.float32)),
    (ValueError, "indices: got a row more than once", [1, 1], np.zeros((2, DIM), np.float32)),
    (ValueError, "indices: got", [[1]], np.zeros((1, DIM), np.float32)),
    (ValueError, "values: got", [1], np.full((1, DIM), np.nan, np.float32)),
    (ValueError, "values: got", [1, 2], np.zeros((1, DIM), np.float32)),
    (ValueError, "values: got 1 rows, expected one per index, 2", [1, 2], np.zeros((1, DIM + 8), np.uint8)),
]


@pytest.mark.parametrize(("kind", "message", "indices", "new"), BAD)
def test_bad_arguments_write_nothing(kind: type[Exception], message: str, indices: Any, new: Any) -> None:
    bag = made(parity=GROUP)
    before = bag.table.rows.copy()
    with pytest.raises(kind, match=message):
        bag.update_rows(indices, new)
    np.testing.assert_array_equal(bag.table.rows, before)
    assert not bag.scrub(redundancy=True)


def test_a_table_that_is_only_read_takes_no_updates() -> None:
    bag = sedq.EmbeddingBag.view_fused(made().to_fused())
    with pytest.raises(ValueError, match="a table that is only read"):
        bag.update_rows([0], values(0, 1))


def test_no_rows_is_no_update() -> None:
    bag = made()
    before = bag.table.rows.copy()
    bag.update_rows(np.empty(0, np.int64), np.empty((0, DIM), np.float32))
    np.testing.assert_array_equal(bag.table.rows, before)


# ---- threads


def race(bag: sedq.EmbeddingBag, check: str, rounds: int) -> tuple[set[float], int, list[Exception]]:
    """Write rows of one value and read them all meanwhile: values seen, calls of which two rows differed within, errors."""
    index, done = np.zeros((1, 1), np.int64), threading.Event()
    seen, torn, errors, reads = set[float](), 0, list[Exception](), [0, 0]

    def write() -> None:
        try:
            for _ in range(5000):
                if min(reads) >= rounds and len(seen) > 1:
                    break
                for value in (1.0, 2.0):
                    bag.update_rows([0], np.full((1, bag.shape[1]), value, np.float32))
        except Exception as error:
            errors.append(error)
        finally:
            done.set()

    def read(who: int) -> None:
        nonlocal torn
        try:
            while not done.is_set():
                pooled = bag(index, check=check, num_threads=1)[0]
                reads[who] += 1
                seen.update(np.unique(pooled).tolist())
                torn += bool((pooled != pooled[0]).any())
        except Exception as error:
            errors.append(error)
        finally:
            reads[who] = max(reads[who], rounds)

    threads = [threading.Thread(target=write), *(threading.Thread(target=read, args=(n,)) for n in range(2))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen, torn, errors


@pytest.mark.parametrize("check", ["off", "exact"])
def test_readers_see_a_row_as_it_was_or_as_it_is(check: str) -> None:
    bag = sedq.EmbeddingBag.from_float(np.full((3, 16_000), 1, np.float32), bits=32, parity=2, locate=True)
    with sedq.monitor() as found:
        seen, torn, errors = race(bag, check, 100)
    assert errors == []
    assert torn == 0
    assert seen == {1.0, 2.0}
    assert found.detections == 0, "an update is no fault"
    assert not bag.scrub(redundancy=True)


def test_without_the_guard_a_reader_would_see_half_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The write that falls into a read is what the guard makes the reader repeat."""
    bag = sedq.EmbeddingBag.from_float(np.full((2, 4), 1, np.float32), bits=32)
    pool = _embedding.pool
    writes = [np.full((1, 4), 2, np.float32)]

    def late(*args: Any) -> Any:
        result = pool(*args)
        if writes:
            bag.update_rows([1], writes.pop())  # row 1 had been read already
        return result

    monkeypatch.setattr(_embedding, "pool", late)
    np.testing.assert_array_equal(bag([[0, 1]]), [[3, 3, 3, 3]])
    writes.append(np.full((1, 4), 5, np.float32))
    monkeypatch.setattr(_guard.Guard, "read", lambda self, function, *args: function(*args))
    np.testing.assert_array_equal(bag([[0, 1]]), [[3, 3, 3, 3]], "what was there before, without a second look")


def test_scrubbing_updates_and_calls_at_once() -> None:
    bag = made(locate=True, parity=GROUP)
    rng, errors, stop = np.random.default_rng(0), list[Exception](), threading.Event()
    new = values(5)

    def repeat(action: Any) -> None:
        try:
            while not stop.is_set():
                action()
        except Exception as error:
            errors.append(error)

    actions = [lambda: bag.scrub(redundancy=True), lambda: bag(np.arange(ROWS)[None])]
    threads = [threading.Thread(target=repeat, args=(action,)) for action in actions]
    with sedq.monitor() as found:
        for thread in threads:
            thread.start()
        for _ in range(200):
            numbers = rng.choice(ROWS, 9, replace=False)
            bag.update_rows(numbers, new[numbers])
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == []
    assert found.detections == 0
    assert not bag.scrub(redundancy=True)
