"""Sites of faults in products: what each does without checks, and which check sees it and has it computed again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import sedq
from helpers.sites import Array, planned, product, visits, watched, words
from sedq._core import _dispatch
from sedq.faults._models import Change

OUTPUTS = ("int32", "uint8", "float32")
# columns in whole vectors, in strips, alone, and over panels
WIDTHS = (1, 7, 32, 41, 70)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("n", WIDTHS)
def test_requantised_outputs_are_seen_by_full_alone(kernels: _dispatch.Context, output: str, n: int) -> None:
    m = 3
    call = product(output, m, n)
    sound = call(check="off")
    count = visits("epilogue", lambda: call(check="off"))
    assert count >= m * n / 32
    struck = set()
    for visit in range(count):
        for element in (0, 5):
            change = Change(0xFFFFFFFF, flip=1 << 6)
            with planned("epilogue", visit, element, change) as hit:
                y, events = watched(call, "off")
            assert (hit.fired, hit.changed) == (1, 1)
            differ = np.flatnonzero(words(y) != words(sound))
            assert events == []
            assert len(differ) <= 1  # a lane without a column changes nothing
            struck |= set(differ.tolist())
            for check in ("exact", "full"):
                with planned("epilogue", visit, element, change) as hit:
                    y, events = watched(call, check)
                assert hit.fired == 1
                # a lane without a column may be compared too
                assert {e.kind for e in events} <= ({"epilogue", "output"} if check == "full" else set())
                if check == "full" and len(differ):
                    assert ("epilogue", "recompute", "transient") in {(e.kind, e.rung, e.verdict) for e in events}
                changed = np.flatnonzero(words(y) != words(sound))
                assert changed.tolist() == ([] if check == "full" else differ.tolist())
    assert len(struck) >= min(m * n, count)


@pytest.mark.parametrize("check", ["exact", "full"])
@pytest.mark.parametrize("output", OUTPUTS)
def test_a_wrong_store_is_read_back(kernels: _dispatch.Context, output: str, check: str) -> None:
    m, n = 9, 70
    call = product(output, m, n)
    sound = call(check="off")
    for visit in range(visits("store", lambda: call(check="off"))):
        for element in (0, 3, 11):
            with planned("store", visit, element):
                y, events = watched(call, "off")
            (at,) = np.flatnonzero(words(y) != words(sound))
            assert events == []
            with planned("store", visit, element):
                y, events = watched(call, check)
            assert [(e.kind, e.row, e.verdict) for e in events] == [("output", at // n, "transient")]
            assert y.tobytes() == sound.tobytes()


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_store_that_went_astray_has_the_whole_call_computed_again(kernels: _dispatch.Context, output: str) -> None:
    m, n = 250, 9  # three tasks: row 0 has been verified when the last tile is stored over it
    call = product(output, m, n)
    sound = call(check="off")
    last = visits("store", lambda: call(check="off")) - 1
    first = last * kernels.mr
    back = Change(0xFFFFFFFF, add=2**32 - first * n * sound.itemsize)

    def struck(check: str) -> tuple[Array, list[sedq.Event]]:
        out = np.zeros_like(sound)
        with planned("address", last, change=back) as hit:
            y, events = watched(lambda **options: call(**options, out=out), check)
        assert hit.fired == 1
        return y, events

    y, events = struck("off")
    assert events == []
    wrong = set(np.flatnonzero((y != sound).any(axis=1)).tolist())
    assert wrong >= {0, first, m - 1}
    y, events = struck("exact")
    assert {(e.kind, e.verdict) for e in events} == {("output", "transient")}
    assert 0 not in {e.row for e in events}
    assert y.tobytes() == sound.tobytes()
    # to compute only the rows again in which the check disagreed would not be enough
    assert wrong - {e.row for e in events}


@pytest.mark.parametrize("check", ["exact", "full"])
def test_a_fault_of_the_checks_own_sums_changes_nothing(kernels: _dispatch.Context, check: str) -> None:
    call = product("uint8", 9, 70)
    sound = call(check="off")
    for bit in range(32):
        with planned("checks", 0, bit % 9, Change(0xFFFFFFFF, flip=1 << bit)) as hit:
            y, events = watched(call, check)
        assert hit.fired == 1
        assert [(e.kind, e.row, e.verdict) for e in events] == [("accumulator", bit % 9, "transient")]
        assert y.tobytes() == sound.tobytes()


@pytest.mark.parametrize("check", ["exact", "full"])
def test_codes_are_quantised_twice(kernels: _dispatch.Context, check: str) -> None:
    rng = np.random.default_rng(0)
    packed = sedq.pack_weights(rng.integers(-128, 128, (20, 40), dtype=np.int8), 0.01)
    x = rng.normal(size=(3, 40)).astype(np.float32)

    def call(**options: Any) -> Array:
        return sedq.qlinear_dynamic(x, packed, **options)

    sound = call(check="off")
    for visit in range(visits("codes", lambda: call(check="off"))):
        for element in (0, 17, 39):
            change = Change(0xFFFFFFFF, flip=1 << 5)
            with planned("codes", visit, element, change):
                y, events = watched(call, "off")
            assert events == []
            assert (y != sound).any()
            with planned("codes", visit, element, change) as hit:
                y, events = watched(call, check)
            assert hit.fired == 1
            assert {e.verdict for e in events} == {"transient"}
            assert y.tobytes() == sound.tobytes()


def with_zero_points(output: str, rng: np.random.Generator) -> Any:
    """A product whose weights have zero points, so that its outputs depend on the sums of the rows of x."""
    x = rng.integers(0, 256, (9, 40)).astype(np.uint8)
    packed = sedq.pack_weights(rng.integers(-128, 128, (70, 40)).astype(np.int8), 0.01, rng.integers(-9, 10, 70))
    scales = {"x_scale": 0.02, "x_zero_point": 5} | ({"y_scale": 0.5, "y_zero_point": 9} if output == "uint8" else {})
    if output == "int32":
        return lambda **options: sedq.matmul_integer(x, packed, 5, **options)
    return lambda **options: sedq.qlinear(x, packed, **scales, **options)


@pytest.mark.parametrize("check", ["exact", "full"])
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize(("site", "kind"), [("rowsum", "accumulator"), ("given", "parameters")])
def test_row_sums_that_zero_points_multiply_are_compared(
    kernels: _dispatch.Context, rng: np.random.Generator, site: str, kind: str, output: str, check: str
) -> None:
    call = with_zero_points(output, rng)
    sound, changed = call(check="off"), 0
    for bit in (0, 5, 15, 16, 24, 31):
        change = Change(0xFFFFFFFF, flip=1 << bit)
        with planned(site, 0, 1, change):
            y, _ = watched(call, "off")
        with planned(site, 0, 1, change) as hit:
            repaired, events = watched(call, check)
        assert hit.fired == 1
        assert kind in {e.kind for e in events}
        assert repaired.tobytes() == sound.tobytes()
        changed += y.tobytes() != sound.tobytes()
    assert changed >= 3


@pytest.mark.parametrize("output", ["int32", "float32"])
@pytest.mark.parametrize("bit", [0, 15, 16, 31])
def test_full_compares_all_bits_of_outputs(kernels: _dispatch.Context, output: str, bit: int) -> None:
    call = product(output, 3, 41)
    sound = call(check="off")
    with planned("epilogue", 0, 0, Change(0xFFFFFFFF, flip=1 << bit)):
        y, events = watched(call, "full")
    assert "epilogue" in {e.kind for e in events}
    assert y.tobytes() == sound.tobytes()


@pytest.mark.parametrize("check", ["exact", "full"])
@pytest.mark.parametrize("output", ["int32", "float32"])
@pytest.mark.parametrize("bit", [0, 15, 16, 31])
def test_all_bits_of_what_was_stored_are_read_back(kernels: _dispatch.Context, output: str, bit: int, check: str) -> None:
    call = product(output, 3, 41)
    sound = call(check="off")
    with planned("store", 0, 7, Change(0xFFFFFFFF, flip=1 << bit)):
        y, events = watched(call, check)
    assert {e.kind for e in events} == {"output"}
    assert y.tobytes() == sound.tobytes()
