"""Sites of faults inside kernels: plans strike what they are told to."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from helpers.sites import Array, planned, product, visits, words
from sedq import _config, faults
from sedq._core import _dispatch, _faultkernels


@pytest.mark.parametrize("model", faults.default_models(), ids=lambda m: m.name)
def test_kernels_and_memory_change_words_alike(kernels: _dispatch.Context, model: faults.FaultModel) -> None:
    call = product("int32", 2, 5)
    sound = words(call(check="off")).copy()
    rng = np.random.default_rng(0)
    for _ in range(40):
        change, at = model.draw(rng, 32), int(rng.integers(10))
        with planned("store", element=at, change=change) as outcome:
            y = words(call(check="off"))
        want = sound.copy()
        want[at] = change.apply(int(sound[at]), 32)
        if change.pair:
            second = at // 5 * 5 + (at + 1) % 5
            want[second] = change.apply(int(sound[second]), 32, second=True)
        np.testing.assert_array_equal(y, want)
        assert outcome.fired == 1
        assert outcome.changed == (want != sound).sum()


def test_a_plan_strikes_as_many_visits_in_a_row_as_it_is_told_to() -> None:
    call = product("int32", 1, 200)  # four panels
    sound = call(check="off")
    assert visits("store", lambda: call(check="off")) == 4
    for visit, repeat, struck in ((0, 1, [0]), (1, 2, [1, 2]), (2, 9, [2, 3]), (4, 1, [])):
        with planned("store", visit, 3, repeat=repeat) as outcome:
            y = call(check="off")
        assert np.flatnonzero(y != sound).tolist() == [64 * p + 3 for p in struck]
        assert outcome.fired == len(struck)
        assert outcome.left == (-1 if len(struck) == repeat else 0 if visit == 4 else outcome.left)


def test_a_plan_belongs_to_its_thread() -> None:
    call = product("int32", 3, 5)
    sound = call(check="off")
    hooked = _faultkernels.hooked(_config.get_config().kernels.name)
    seen: list[Array] = []

    def other() -> None:
        with _config.use_kernels(hooked):
            seen.append(call(check="off"))

    with planned("tile") as outcome:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert outcome.fired == 0
        mine = call(check="off")
    np.testing.assert_array_equal(seen[0], sound)
    assert outcome.fired == 1
    assert (mine != sound).any()


def test_one_plan_for_a_site_at_a_time() -> None:
    with planned("store"), pytest.raises(RuntimeError, match="for which a fault is armed"), planned("store"):
        pass
    with pytest.raises(ValueError, match="kernel: got 'floor'"):
        _faultkernels.arm("floor", 0, 0, 1)
    for bad in ((-1, 0, 1), (0, -1, 1), (0, 0, 0)):
        with pytest.raises(ValueError, match="expected at least"):
            _faultkernels.arm("tile", *bad[:2], 1, bad[2])
