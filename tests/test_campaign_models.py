"""Fault models: what each makes of a word, and that every bit can be struck."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sedq import faults
from sedq.faults._models import Change

MODELS = faults.default_models()
widths = st.sampled_from([8, 32, 64])
every_width = pytest.mark.parametrize("bits", [8, 32, 64])


def draws(model: faults.FaultModel, bits: int, count: int = 600) -> list[Change]:
    rng = np.random.default_rng(0)
    return [model.draw(rng, bits) for _ in range(count)]


@given(st.data(), widths)
def test_a_change_is_four_operations_modulo_the_width(data: st.DataObject, bits: int) -> None:
    numbers = st.integers(0, 2**bits - 1)
    word, keep, put, flip, add = (data.draw(numbers) for _ in range(5))
    change = Change(keep, put, flip, add, pair=True)
    assert change.apply(word, bits) == ((((word & keep) | put) ^ flip) + add) % 2**bits
    assert change.apply(word, bits, second=True) == (word - add) % 2**bits


@given(st.integers(0, 2**32), widths, st.sampled_from(MODELS))
def test_a_drawn_change_stays_within_its_word(seed: int, bits: int, model: faults.FaultModel) -> None:
    change = model.draw(np.random.default_rng(seed), bits)
    for operand in (change.keep, change.put, change.flip, change.add):
        assert 0 <= operand < 2**bits
    assert -1 <= change.bit < bits
    assert change.pair == (not model.single)
    assert change == model.draw(np.random.default_rng(seed), bits)


@every_width
def test_each_model_does_what_it_says(bits: int) -> None:
    word = 0xA5A5A5A5A5A5A5A5 % 2**bits
    ones = 2**bits - 1

    def flips(model: faults.FaultModel) -> set[int]:
        return {c.apply(word, bits) ^ word for c in draws(model, bits)}

    assert flips(faults.BitFlip()) == {1 << b for b in range(bits)}
    assert flips(faults.BitFlip(positions=(3, 70 % 64))) == {1 << 3, 1 << 6}
    assert {f.bit_count() for f in flips(faults.KBits(3))} == {3}
    assert {f.bit_count() for f in flips(faults.KBits(64))} == {bits}
    assert flips(faults.Burst(4)) == {15 << b for b in range(bits - 3)}
    assert flips(faults.Burst(64)) == {ones}
    assert flips(faults.Dummy()) == {0}
    assert flips(faults.Zero()) == {word}
    assert {c.apply(word, bits) for c in draws(faults.StuckAt0(), bits)} == {word & ~(1 << b) for b in range(bits)}
    assert {c.apply(word, bits) for c in draws(faults.StuckAt1(), bits)} == {word | 1 << b for b in range(bits)}
    carries = {(c.apply(word, bits) - word) % 2**bits for c in draws(faults.Carry(), bits)}
    assert carries == {s * (1 << b) % 2**bits for b in range(bits) for s in (1, -1)}
    values = [c.apply(word, bits) for c in draws(faults.RandomValue(), bits)]
    assert min(values) < 0.02 * ones < 0.98 * ones < max(values)
    for c in draws(faults.PairedError(), bits):
        first, second = c.apply(word, bits), c.apply(7, bits, second=True)
        assert (first + second - word - 7) % 2**bits == 0
        assert first != word


def test_bits_are_drawn_alike() -> None:
    counts = Counter(c.bit for c in draws(faults.BitFlip(), 8, 8000))
    assert set(counts) == set(range(8))
    assert max(counts.values()) < 1.15 * min(counts.values())


def test_results_are_grouped_by_the_bit_that_was_struck() -> None:
    for model in (faults.BitFlip(), faults.Burst(4)):
        assert all(c.bit == c.flip.bit_length() - 1 for c in draws(model, 32))
    assert {c.bit for c in draws(faults.RandomValue(), 8, 9)} == {-1}


def test_names_tell_models_apart() -> None:
    assert [m.name for m in MODELS] == (
        ["BitFlip", "KBits(2)", "Burst(4)", "Carry", "RandomValue", "Zero", "StuckAt0", "StuckAt1", "PairedError", "Dummy"]
    )
    assert faults.BitFlip(positions=[4, 5]).name == "BitFlip(4,5)"  # type: ignore[arg-type]
    assert faults.KBits(3) == faults.KBits(3) != faults.KBits(2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: faults.BitFlip(positions=()), "positions: got"),
        (lambda: faults.BitFlip(positions=3), "positions: got"),  # type: ignore[arg-type]
        (lambda: faults.BitFlip(positions=(64,)), "positions: got 64"),
        (lambda: faults.KBits(0), "k: got 0"),
        (lambda: faults.Burst(65), "n: got 65"),
        (lambda: faults.Burst(2.5), "n: got float 2.5"),  # type: ignore[arg-type]
    ],
)
def test_wrong_settings_are_refused(make: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_the_base_class_draws_nothing() -> None:
    with pytest.raises(NotImplementedError):
        faults.FaultModel().draw(np.random.default_rng(0), 8)
