"""Parity rows by themselves: what they rebuild, and what they know of themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sedq.embedding._parity import Parity

Array = NDArray[Any]


def table(rows: int, stride: int = 13) -> Array:
    return np.random.default_rng([rows, stride]).integers(0, 256, (rows, stride), dtype=np.uint8)


def parity_of(rows: Array, group: int, piece: int = 7) -> Parity:
    made = Parity(len(rows), rows.shape[1], group)
    for first in range(0, len(rows), piece):
        made.fill(rows, first, min(first + piece, len(rows)))
    return made


@pytest.mark.parametrize("group", [1, 2, 3, 7, 64, 100, 101, 1000])
@pytest.mark.parametrize("rows", [1, 2, 99, 100, 101])
def test_every_row_is_rebuilt(rows: int, group: int) -> None:
    sound = table(rows)
    parity = parity_of(sound, group)
    assert len(parity.rows) == -(-rows // group)
    groups = [parity.members(g) for g in range(len(parity.rows))]
    assert sorted(member for members in groups for member in members) == list(range(rows))
    assert max(map(len, groups)) <= group
    struck = sound.copy()
    for number in range(rows):
        assert number in parity.members(parity.group_of(number))
        struck[number] = 0xA5
        np.testing.assert_array_equal(parity.rebuild(number, lambda n: struck[n]), sound[number])
        struck[number] = sound[number]


def test_neighbours_are_in_different_groups() -> None:
    parity = parity_of(table(1000), 10)
    for number in range(900):
        assert len({parity.group_of(n) for n in range(number, number + 100)}) == 100


def test_rows_wider_than_a_block() -> None:
    sound = table(5, 2**18 + 3)
    parity = parity_of(sound, 2)
    np.testing.assert_array_equal(parity.rebuild(4, lambda n: sound[n]), sound[4])


def test_unsound_parity_is_known_until_it_is_renewed() -> None:
    sound = table(20)
    parity = parity_of(sound, 4)
    assert parity.disagreeing(sound, 0, 5) == []
    parity.rows[2, 3] ^= 16
    parity.crc[4] ^= 1
    assert parity.disagreeing(sound, 0, 5) == [2, 4]
    assert parity.disagreeing(sound, 3, 5) == [4]
    assert not parity.agrees(2, lambda n: sound[n])
    assert not parity.agrees(4, lambda n: sound[n])
    for group in (2, 4):
        assert not parity.sound(group)
        assert parity.confirms(group, lambda n: sound[n])
        parity.renew(group, lambda n: sound[n])
        assert parity.sound(group)
        np.testing.assert_array_equal(parity.rebuild(group, lambda n: sound[n]), sound[group])
    parity.forget(1)
    assert not parity.sound(1)
    parity.rows[1, 0] ^= 1
    assert not parity.confirms(1, lambda n: sound[n])


def test_parity_follows_updates() -> None:
    sound, rng = table(20), np.random.default_rng(0)
    parity = parity_of(sound, 4)
    parity.forget(3)
    for count in (1, 20, 0, 7, 13):  # several of one group at a time
        numbers = rng.permutation(20)[:count]
        after = rng.integers(0, 256, (count, 13), dtype=np.uint8)
        parity.update(numbers, sound[numbers] ^ after)
        sound[numbers] = after
    assert parity.disagreeing(sound, 0, 5) == [3], "what was not sound did not become so"
    fresh = parity_of(sound, 4)
    np.testing.assert_array_equal(fresh.rows, parity.rows)
