"""What the check of a product detects: every fault that it claims to, nothing else, and its stated limit.

Each corruption is shown to matter with the check off, where it goes unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import sedq
from helpers import oracles
from helpers.products import LEVELS, QPARAMS, bits_of, checked, flipped, operands, watched
from sedq import _config, detection, faults
from sedq._core import _dispatch, _gemm, _packing
from sedq.linear import _products


def struck_tiles(m: int, n: int, mr: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Visit number, first row, rows, first column and columns of each tile, in the order of the kernels' visits."""
    visit = 0
    for row in range(0, m, mr):
        for column in range(0, n, 64):
            yield visit, row, min(mr, m - row), column, min(64, n - column)
            visit += 1


@checked
def test_every_bit_of_an_accumulator(kernels: _dispatch.Context, rng: np.random.Generator, check: str) -> None:
    m, n = 7, 70
    x, w = operands(rng, m, n, 9)
    packed = sedq.pack_weights(w)
    expected = oracles.matmul_integer(x, w)
    tiles = list(struck_tiles(m, n, kernels.mr))
    assert len(tiles) == faults.count_visits(lambda: sedq.matmul_integer(x, packed)) == 4
    for visit, row0, rows, column0, columns in tiles:
        for r, c in ((0, 0), (rows - 1, columns - 1), (rows // 2, columns // 2)):
            i, j, element = row0 + r, column0 + c, r * (-(-columns // 16) * 16) + c
            for bit in range(32):
                delta = np.zeros((m, n), np.uint32)
                delta[i, j] = 1 << bit
                strike = {"visit": visit, "element": element, "flip": 1 << bit}
                with faults.accumulator_fault(**strike) as hit:
                    y, events = watched(lambda: sedq.matmul_integer(x, packed, check="off"))
                assert hit.fired == 1
                assert events == []
                np.testing.assert_array_equal(y.view(np.uint32) ^ expected.view(np.uint32), delta)
                residual = int(y[i, j]) - int(expected[i, j])

                with faults.accumulator_fault(**strike) as hit:
                    y, events = watched(lambda: sedq.matmul_integer(x, packed, check=check))
                assert hit.fired == 1
                assert [(e.kind, e.row, e.rung, e.verdict) for e in events] == [("accumulator", i, "recompute", "transient")]
                assert (int(events[0].residual) - residual) % 2**32 == 0
                np.testing.assert_array_equal(y, expected)


@checked
@pytest.mark.parametrize("output", ["int32", "uint8", "float32", "dynamic"])
def test_any_change_of_an_accumulator_in_every_operator(
    kernels: _dispatch.Context, rng: np.random.Generator, check: str, output: str
) -> None:
    x, w = operands(rng, 5, 20, 33)
    packed = sedq.pack_weights(w, 0.01, zero_point=3, bias=np.linspace(-9, 9, 20))
    real = {name: value for name, value in QPARAMS.items() if name[0] == "x"}
    call: Callable[..., np.ndarray] = {
        "int32": lambda **o: sedq.matmul_integer(x, packed, 9, **o),
        "uint8": lambda **o: sedq.qlinear(x, packed, **QPARAMS, **o),
        "float32": lambda **o: sedq.qlinear(x, packed, **real, **o),
        "dynamic": lambda **o: sedq.qlinear_dynamic(x.astype(np.float32), packed, **o),
    }[output]
    expected, events = watched(lambda: call(check=check))
    assert events == []
    silent = 0
    for flip in rng.integers(1, 2**32, 60).tolist():
        with faults.accumulator_fault(flip=flip, element=3):
            y, events = watched(lambda: call(check="off"))
        assert events == []
        silent += not np.array_equal(y, expected)
        with faults.accumulator_fault(flip=flip, element=3):
            y, events = watched(lambda: call(check=check))
        assert [(e.kind, e.row) for e in events] == [("accumulator", 0)]
        np.testing.assert_array_equal(y, expected)
    assert silent > 30, "the flips matter"


@checked
def test_nothing_is_detected_without_a_fault(kernels: _dispatch.Context, rng: np.random.Generator, check: str) -> None:
    rows = 0
    with sedq.monitor() as m, sedq.config_context(check=check):
        for size in range(1, 40):
            x, w = operands(rng, size, 3 * size, 2 * size)
            packed = sedq.pack_weights(w, 0.1, zero_point=size % 3)
            sedq.matmul_integer(x, packed)
            sedq.qlinear(x, packed, **QPARAMS)
            sedq.qlinear_dynamic(x.astype(np.float32), packed)
            rows += size
    assert dict(m.checks) == {"matmul_integer": rows, "qlinear": rows, "qlinear_dynamic": rows}
    assert m.total_checks == 3 * rows
    assert m.detections == 0
    with sedq.monitor() as m:
        sedq.qlinear(x, packed, **QPARAMS, check="off")
    assert m.total_checks == 0


def test_a_fault_that_flips_nothing_is_not_detected(kernels: _dispatch.Context, rng: np.random.Generator) -> None:
    x, w = operands(rng, 3, 5, 8)
    packed = sedq.pack_weights(w)
    with faults.accumulator_fault(flip=0) as hit:
        _, events = watched(lambda: sedq.matmul_integer(x, packed))
    assert hit.fired == 1
    assert events == []


# ---- packed weights and digits


@checked
def test_every_bit_of_every_weight(kernels: _dispatch.Context, rng: np.random.Generator, check: str) -> None:
    n, k = 18, 5
    x, w = operands(rng, 3, n, k)
    x[:, 1] = 0  # what the weights of this column are does not matter
    x[[0, 2], 3] = 0  # and of this one only to row 1
    packed = sedq.pack_weights(w)
    expected, sound = oracles.matmul_integer(x, w), packed._core.panels.copy()
    for j, i, bit in np.ndindex(n, k, 8):
        faults.flip_weight_bit(packed, j, i, bit)
        y, events = watched(lambda: sedq.matmul_integer(x, packed, check="off"))
        assert events == []
        bad = np.flatnonzero((y != expected).any(axis=1)).tolist()
        assert bad == np.flatnonzero(x[:, i]).tolist()

        y, events = watched(lambda: sedq.matmul_integer(x, packed, check=check))
        np.testing.assert_array_equal(y, expected)
        assert [(e.kind, e.row, e.rung, e.verdict) for e in events] == [
            ("accumulator", row, "heal", "memory") for row in bad
        ]
        if not bad:
            faults.flip_weight_bit(packed, j, i, bit)
        np.testing.assert_array_equal(packed._core.panels, sound)


def test_corrupted_padding_of_the_panels(kernels: _dispatch.Context, rng: np.random.Generator) -> None:
    # harmless: not noticed, or else healed, so that it is not noticed in every call from then on
    x, w = operands(rng, 3, 18, 5)
    packed = sedq.pack_weights(w)
    used = {_packing.panel_index(18, 5, j, i) for j in range(18) for i in range(5)}
    padding = sorted(set(range(packed._core.panels.size)) - used)
    assert len(padding) == 32 * 8 - 18 * 5
    for byte in padding:
        with flipped(packed._core.panels, byte, 3):
            np.testing.assert_array_equal(sedq.matmul_integer(x, packed, check="off"), oracles.matmul_integer(x, w))
            y, events = watched(lambda: sedq.matmul_integer(x, packed))
            np.testing.assert_array_equal(y, oracles.matmul_integer(x, w))
            if events:
                assert {(e.verdict, e.detail) for e in events} == {("memory", "panels: padding")}
                assert packed.verify().ok
                faults.flip_bit(packed._core.panels, byte, 3)


@checked
def test_the_limit_differences_that_cancel_in_a_row(
    kernels: _dispatch.Context, rng: np.random.Generator, check: str
) -> None:
    x, w = operands(rng, 4, 20, 6)
    x[:, 4] = x[:, 2] + (x[:, 2] < 255) - (x[:, 2] == 255)  # all differ
    w[[3, 11], 2], w[11, 4] = (5, 64 + 5), 64 + 5
    expected = oracles.matmul_integer(x, w)
    packed = sedq.pack_weights(w)
    faults.flip_weight_bit(packed, 3, 2, 6)  # + 64
    faults.flip_weight_bit(packed, 11, 2, 6)  # - 64
    y, events = watched(lambda: sedq.matmul_integer(x, packed, check=check))
    assert events == []
    np.testing.assert_array_equal(np.flatnonzero((y != expected).any(axis=0)), [3, 11])
    assert packed.verify().corrupted == ["panels"], "found at rest all the same"

    packed = sedq.pack_weights(w)
    faults.flip_weight_bit(packed, 3, 2, 6)
    faults.flip_weight_bit(packed, 11, 4, 6)  # in another k they don't cancel
    y, events = watched(lambda: sedq.matmul_integer(x, packed, check=check))
    assert [e.row for e in events] == [0, 1, 2, 3]
    np.testing.assert_array_equal(y, expected)


@checked
def test_every_bit_of_the_digits(kernels: _dispatch.Context, rng: np.random.Generator, check: str) -> None:
    x, w = operands(rng, 2, 18, 5)
    x[:, 1] = 0
    packed = sedq.pack_weights(w)
    expected, digits = oracles.matmul_integer(x, w), packed._core.digits
    sound = digits.copy()
    for p, i, bit in np.ndindex(len(digits), 5, 8):
        faults.flip_bit(digits, p * 128 + i, bit)
        y, events = watched(lambda: sedq.matmul_integer(x, packed, check="off"))
        assert events == []
        y, events = watched(lambda: sedq.matmul_integer(x, packed, check=check))
        np.testing.assert_array_equal(y, expected)
        assert [(e.row, e.verdict, e.detail) for e in events] == (
            [(r, "memory", "digits") for r in (0, 1)] if x[0, i] else []
        )
        if i == 1:
            faults.flip_bit(digits, p * 128 + i, bit)
        np.testing.assert_array_equal(digits, sound)


@pytest.mark.skipif(not _dispatch.has_openmp(), reason="built without OpenMP")
@pytest.mark.parametrize(("m", "n", "k"), [(250, 130, 300), (5, 2078, 512)])
def test_partial_sums_of_two_threads(kernels: _dispatch.Context, rng: np.random.Generator, m: int, n: int, k: int) -> None:
    assert _dispatch.threads_for(2, n * k // 40 + m * n * k // 200) == 2
    x, w = operands(rng, m, n, k)
    x[:, 2] = 0
    x[3, 2] = 1
    packed = sedq.pack_weights(w)
    expected = sedq.matmul_integer(x, packed, check="off", num_threads=1)
    for j in (0, n - 1):
        faults.flip_weight_bit(packed, j, 2, 7)
        y, events = watched(lambda: sedq.matmul_integer(x, packed, check="off", num_threads=2))
        assert np.argwhere(y != expected).tolist() == [[3, j]]
        y, events = watched(lambda: sedq.matmul_integer(x, packed, num_threads=2))
        assert [(e.row, e.verdict) for e in events] == [(3, "memory")]
        np.testing.assert_array_equal(y, expected)
    faults.flip_bit(packed._core.digits, 3, 6)  # every row: more than a call lists
    y, events = watched(lambda: sedq.matmul_integer(x, packed, num_threads=2))
    assert len(events) == min(m, 64)
    np.testing.assert_array_equal(y, expected)


# ---- chained sums of rows


def chained(x: np.ndarray, packed: sedq.PackedWeights, x_sums: np.ndarray, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    y, y_sums = np.empty((len(x), packed.shape[0]), np.uint8), np.empty(len(x), np.uint32)
    settings = _config.resolve(options.get("check"), options.get("on_error"), None)
    _products.multiply(x, packed, (*QPARAMS.values(), False), y, settings, operator="test", x_sums=x_sums, y_sums=y_sums)
    return y, y_sums


@checked
def test_every_bit_of_an_input_against_its_chained_sums(
    kernels: _dispatch.Context, rng: np.random.Generator, check: str
) -> None:
    x, w = operands(rng, 5, 20, 11)
    packed = sedq.pack_weights(w, 0.01)
    sums = x.sum(axis=1, dtype=np.uint32)
    expected, y_sums = chained(x, packed, sums, check=check)
    np.testing.assert_array_equal(y_sums, expected.sum(axis=1, dtype=np.uint32))
    changed = 0
    for byte, bit in bits_of(x):
        with flipped(x, byte, bit):
            y, _ = chained(x, packed, sums, check="off")
            changed += not np.array_equal(y, expected)
            assert watched(lambda: sedq.qlinear(x, packed, **QPARAMS, check=check))[1] == [], "needs the sums"
            with pytest.raises(sedq.SoftErrorDetected) as caught:
                chained(x, packed, sums, check=check, on_error="raise")
            (event,) = caught.value.events
            assert (event.kind, event.row, abs(event.residual)) == ("input", byte // 11, 1 << bit)
            with pytest.raises(detection.UpstreamCorrupted, match="test: input corrupted"):
                chained(x, packed, sums, check=check)
    assert changed > x.size


@checked
def test_sums_that_are_out_of_date(kernels: _dispatch.Context, rng: np.random.Generator, check: str) -> None:
    x, w = operands(rng, 100, 20, 11)
    packed = sedq.pack_weights(w, 0.01)
    sums = x.sum(axis=1, dtype=np.uint32)
    for bit in range(32):
        with flipped(sums, 4 * 97 + bit // 8, bit % 8):
            chained(x, packed, sums, check="off")
            with pytest.raises(detection.UpstreamCorrupted) as caught:
                chained(x, packed, sums, check=check)
            assert [(row, kind) for row, kind, _, _ in caught.value.findings] == [(97, detection.Kind.INPUT)]


@checked
@pytest.mark.parametrize("output", ["int32", "float32"])
def test_output_overwritten_after_it_was_stored(
    kernels: _dispatch.Context, rng: np.random.Generator, check: str, output: str
) -> None:
    # the sum of row 0 is written over an element of row 1, before row 1 is read back
    x, w = operands(rng, 2, 20, 11)
    packed = sedq.pack_weights(w, 0.01)
    epilogue = packed.integer_epilogue(3, cache=False) if output == "int32" else packed.epilogue(0.1, 3, None, 0, False, cache=False)
    y = np.empty((2, 20), output)
    assert _gemm.linear(kernels, packed._core, epilogue, x, y, LEVELS[check], 1) is None
    words = y.view(np.uint32)
    sums, before = words.sum(axis=1, dtype=np.uint32), int(words[1, 4])
    over = words.reshape(-1)[24:26]
    for level in (0, LEVELS[check]):
        found = _gemm.linear(kernels, packed._core, epilogue, x, y, level, 1, None, over)
        if not level:
            assert found is None
            continue
        ((row, kind, residual, _),) = found
        assert (row, kind) == (1, detection.Kind.OUTPUT)
        assert (int(residual) - (int(sums[0]) - before)) % 2**32 == 0
